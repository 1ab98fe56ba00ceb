"""DCLM's metrics and RefinedWeb's line rules against the plainest statement of each; kernel and twin give the same bits."""

from __future__ import annotations

import re
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.curate import kernels_dclm as K
from gristmill.curate.kernels import DUP_SIZES, TOP_SIZES
from gristmill.curate.metrics_dclm import char_classes, dclm_metrics, fasttext_words
from gristmill.curate.metrics_refinedweb import refine
from gristmill.curate.schema import RefinedWebRewrite
from gristmill.curate.words import STOP_WORDS, word_hash
from gristmill.curate.words_uax import UAX, UaxLexicon

WORDS = ["a", "b", "ab", "c", "bc", "abc", "é", "word", "中"]


def by_counting(words: list[str]) -> list[int]:
    """The nine numbers of `Copies` from their definition."""
    out = []
    for n in (*TOP_SIZES, *DUP_SIZES):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        counts = Counter(grams)
        best = max(counts.values(), default=0)
        if n in TOP_SIZES:
            longest = max((len("".join(g)) for g, k in counts.items() if k == best), default=0)
            out.append(-1 if not grams else longest * best if best > 1 else 0)
        else:
            inside = {i + j for i, g in enumerate(grams) if counts[g] > 1 for j in range(n)}
            out.append(sum(len(words[i]) for i in inside))
    return out


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=60), st.integers(1, 4))
def test_kernel_and_twin_count_all_copies(words: list[str], times: int) -> None:
    words = words * times
    hashes = np.array([word_hash(w) for w in words], np.uint64)
    lengths = np.array([len(w) for w in words], np.int64)
    expected = by_counting(words)
    assert K.copies_twin(hashes, lengths).tolist() == expected
    assert K.copies()(hashes, lengths).tolist() == expected


def test_the_twin_is_used_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "gristmill.curate.kernels_numba", raising=False)
    monkeypatch.delattr("gristmill.curate.kernels_numba", raising=False)
    assert K.copies.__wrapped__() is K.copies_twin


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop: 3.14 foo_bar e-mail!", ["Don't", "stop", "3.14", "foo_bar", "e", "mail"]),
        ("“Hé” 中文 カタカナ", ["Hé", "中", "文", "カタカナ"]),
        ("1\u202f234 x", ["1\u202f234", "x"]),  # a narrow no-break space joins
        ("a\u00a0b c\u2028d", ["a", "b", "c", "d"]),
        ("_x x_ (y)", ["x_", "y"]),  # `_x` is one word that starts with neither letter nor digit
        ("... — !", []),
    ],
)
def test_words_by_unicode_boundaries(text: str, words: list[str]) -> None:
    assert UAX.words(text) == words
    tokens = UAX.tokens(text)
    assert tokens.length.tolist() == [len(word) for word in words]
    assert tokens.hash.tolist() == [word_hash(word) for word in words]
    assert tokens.chars.tolist() == [len(word) for word in text.split()]


def test_the_memo_changes_no_word() -> None:
    text = "The well-known mill 1\u202f234 " + "x" * 200 + " Mill"
    lexicon = UaxLexicon()
    first, again = lexicon.tokens(text), lexicon.tokens(text)
    lexicon.clear()
    for other in (again, lexicon.tokens(text)):
        assert [a.tolist() for a in other] == [a.tolist() for a in first]
    assert list(lexicon._table.scan([text]).missing.values()) == ["x" * 200]


PIECES = [
    *(
        "the",
        "To",
        "of",
        "mill",
        "MILL",
        "Mill's",
        "3",
        "12,5K",
        "likes",
        "Views",
        "#",
        "...",
        "…",
        ". . .",
        "-",
        "•",
        "●",
    ),
    *(
        "*",
        "_x",
        "(y)",
        "é",
        "中文",
        "123456",
        "Read more...",
        "read moreABC",
        "Sign-in",
        "items in cart",
        "itemſ in cart",
    ),
    *("share", "ⒶⒷ", "²", "1\u202f234", "a\x00b", "\u200b"),
]
GAPS = [" "] * 8 + ["\n"] * 6 + ["\n\n", "\n\n\n\n", "  ", "\t", "\u00a0", "\r\n", "\u2028", "", "\n \n"]
TEXTS = st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(GAPS)), max_size=40).map(
    lambda parts: "".join(piece + gap for piece, gap in parts)
)


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_shares_of_random_texts(text: str) -> None:
    found = dclm_metrics(text, char_classes(text), stop_words=True)
    words = text.split()
    ascii_words = [w for w in re.split("[ \n\r\t\v\f\0]", text) if w]
    assert found.dclm_words == sum(w[0].isalnum() for w in ascii_words)
    assert found.dclm_tokens == len(words)
    assert found.dclm_stop_words == sum(w.lower() in STOP_WORDS for w in words)
    if words:
        assert found.dclm_avg_word_length == sum(map(len, words)) / len(words)
        assert found.dclm_nonalpha_words == sum(not any(c.isalpha() for c in w) for w in words) / len(words)
        symbols = text.count("#") + text.count("...") + text.count(". . .") + text.count("…")
        assert found.dclm_symbol_ratio == symbols / len(words)
    for cut, share, chars in (
        ("\n", found.dclm_dup_lines, found.dclm_dup_line_chars),
        ("\n\n", found.dclm_dup_paragraphs, found.dclm_dup_paragraph_chars),
    ):
        parts = [p.strip() for p in text.split(cut) if p.strip()]
        copies = [p for p in parts if parts.count(p) > 1]
        assert share == (len(copies) / len(parts) if parts else None)
        assert chars == (sum(map(len, copies)) / sum(map(len, parts)) if parts else None)
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if lines:
        assert found.dclm_bullet_lines == sum(line[0] in "●•*-" for line in lines) / len(lines)
        ends = ("...", ". . .", "…")
        assert found.dclm_ellipsis_lines == sum(line.endswith(ends) for line in lines) / len(lines)


def lines_of(text: str, keep: object) -> str:
    return "\n".join(line for line in text.split("\n") if not line or keep(line))  # type: ignore[operator]


def refined(text: str, rules: RefinedWebRewrite) -> str:
    """The line rules one after another over whole texts."""
    text = re.sub("\n{3,}", "\n\n", text)
    text = lines_of(text, lambda x: sum(c.isupper() for c in x) / len(x) <= rules.max_uppercase).strip()
    text = lines_of(text, lambda x: sum(c.isdigit() for c in x) / len(x) <= rules.max_numeric).strip()
    what = "likes shares comments retweets reposts quotes bookmarks upvotes downvotes downloads views followers"
    counter = re.compile(rf"\W*\d(,|\.|\d)*[kmb]?\s+({what.replace(' ', '|')})\W*")
    text = lines_of(text, lambda x: not counter.fullmatch(x.lower())).strip()
    text = lines_of(text, lambda x: len(x.split()) >= rules.min_words_per_line)
    for pattern in (r"\s?items in cart", r"\s?read more...$", r"^sign-in\s?"):
        out = []
        for line in text.split("\n"):
            cut = re.sub(pattern, "", line, flags=re.I) if len(line.split()) <= rules.phrase_line_words else line
            if not line or cut.strip():
                out.append(cut)
        text = "\n".join(out).strip()
    return text


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.sampled_from([0, 1, 2, 4]), st.sampled_from([0.2, 0.5]), st.sampled_from([0.5, 0.999999]))
def test_line_rules_of_random_texts(text: str, least: int, upper: float, numeric: float) -> None:
    rules = RefinedWebRewrite(min_words_per_line=least, max_uppercase=upper, max_numeric=numeric)
    found = refine(text, char_classes(text), rules)
    assert found.text == refined(text, rules)
    assert found.chars == len(found.text)
    assert found.words == fasttext_words(char_classes(found.text))
    before = fasttext_words(char_classes(text))
    assert found.words_removed == ((before - found.words) / before if before else 1.0)


def test_line_rules_can_be_off() -> None:
    text = "3 likes\nSHOUT IT ALL\nword\n\n\n\nRead more..."
    off = RefinedWebRewrite(
        max_uppercase=1, drop_counters=False, min_words_per_line=0, cut_phrases=False, max_newlines=9
    )
    assert refine(text, char_classes(text), off).text == text
    assert refine(text, char_classes(text), RefinedWebRewrite()).text == ""
