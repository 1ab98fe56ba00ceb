"""Words must be spaCy's own, whatever the memo holds: the oracle is datatrove's tokenizer, which is spaCy per document."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.curate import words as W
from gristmill.curate.tokenizers import NO_SEGMENTER, TOKENIZERS, tokenizer_of

TEXTS = {
    "en": [
        "Don't say they'll go at 8am; Mr. O'Neil won't (he's in the U.S., e.g. in St. Louis).",
        "foo:( ( bar :-) ) foo:(( :( (",  # emoticons that start in one chunk and could go on in the next
        "he 's here , it 's 8 am or 9 p.m . I 'm sure . ca n't",
        "tabs\tand\u00a0no-break  spaces \u2028 and\x85others\x1c end ",
        "x" * 70 + " https://example.org/a/b?c=d&e=f#" + "g" * 90 + ".",
        "\x00 nul a\x00b \ufeff bom \u200b zero",
        "“Quoted” – dashed—together, 10km 5% $3.50 C++ #tag @name a/b and/or",
        "",
        " \n\t ",
    ],
    "de": ["Hr. Dr. Müller z. B. sagte: „Das geht’s nicht“, usw. am 3. Mai 2020 um 8 Uhr. d.h. i. d. R. :-) )"],
    "fr": ["L'eau d'aujourd'hui n'est pas chère ; qu'est-ce qu'il y a-t-il ? M. Dupont, av. J.-C. :( ("],
    "ru": ["Он и др. пришли и т.д. и т.п. в т.ч. канд. техн. наук Иванов, см. также стр. 5. ж/д ст. Тверь :( ("],
    "it": ["C'è un'altra cosa: dell'acqua, nell'anno 2020, ecc. dott. Rossi po' di più"],
    "xx": ["Σήμερα είναι καλά. Қазақстан :-) ) :( ( ... ok"],
}


def oracle(code: str, text: str) -> list[str]:
    from datatrove.utils.word_tokenizers import SpaCyTokenizer

    if code not in _ORACLES:
        _ORACLES[code] = SpaCyTokenizer(code)
    return _ORACLES[code].word_tokenize(text)


_ORACLES: dict = {}


SLOW = {"de", "fr", "it"}  # seconds to build their tokenizers


@pytest.mark.parametrize("code", [pytest.param(c, marks=pytest.mark.slow if c in SLOW else ()) for c in sorted(TEXTS)])
def test_words_are_those_of_spacy(code: str) -> None:
    language = "el" if code == "xx" else code
    if code == "xx":
        language = "ka"
        assert tokenizer_of(language) == "xx"
    for text in TEXTS[code]:
        assert W.words(text, language) == oracle(code, text), text


def test_special_cases_reach_over_chunks() -> None:
    """Cut chunk by chunk this text would give "foo", ":(", "(": the reason why neighbours are looked at."""
    assert W.words("foo:( (") == ["foo", ":", "(", "("]
    assert W.words("foo:(") == ["foo", ":("]
    assert "ж/д б-ка" in (W.words("новая ж/д б-ка там", "ru") or [])


PIECES = [
    *("the", "he", "'s", "'ll", "can't", "ca", "n't", "foo:(", ":(", "(", ")", ":", ":-)", "8", "am", "a.m.", "U.S."),
    *(
        "e.g.",
        "Mr.",
        "word",
        "word,",
        "(word)",
        "...",
        "…",
        ".",
        "!",
        '"',
        "'",
        "<3",
        "o_O",
        "d'",
        "[1]",
        "{",
        "\u4e2d",
    ),
]
GAPS = [" "] * 12 + ["\n", "  ", "\t", "\u00a0", " \u00a0", "\r\n", "\x85", "\u2028", ""]


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(GAPS)), max_size=40))
def test_words_of_random_texts(parts: list[tuple[str, str]]) -> None:
    text = "".join(piece + gap for piece, gap in parts)
    assert W.words(text) == oracle("en", text)


def test_memo_never_shows() -> None:
    """The same words from an empty memo, a full one, one cleared in between, and in another order of documents."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(PIECES, k=40)) for _ in range(30)]
    lexicon = W.LEXICONS.get("en")
    assert lexicon is not None
    lexicon.clear()
    first = [W.words(t) for t in texts]
    assert [W.words(t) for t in texts] == first
    lexicon.clear()
    assert [W.words(t) for t in reversed(texts)] == first[::-1]


def test_memo_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(W, "MAX_ROWS", 200)
    for i in range(40):
        W.words(" ".join(f"w{i}x{j}" for j in range(50)))
        assert sum(x.rows for x in W.LEXICONS._by_code.values()) <= 200 + 50 + 2
    assert W.words("w1x1 again") == ["w1x1", "again"]


def test_symbol_names_are_words_each_time() -> None:
    """In a memory zone spaCy knows IS_ALPHA once and then fails on it; datatrove deletes it from later documents."""
    for i in range(3):
        assert W.words(f"IS_ALPHA, IS_ALPHA is{i} NOUN") == ["IS_ALPHA", ",", "IS_ALPHA", f"is{i}", "NOUN"]


def test_long_chunks_cost_bounded_work_and_lose_nothing() -> None:
    for text in ("(" * 3_000, "a" * 5_000 + " b", "中文" * 4_000, " ".join("('\".-" * 30 for _ in range(500))):
        words = W.words(text)
        assert words is not None
        assert "".join(words) == text.replace(" ", "")
    words = W.words("( " * 600)
    assert words == ["("] * 600


def test_surrogates_do_not_crash() -> None:
    assert W.words("a\ud800b \udfff c") == ["a?b", "?", "c"]


def test_language_table_follows_datatrove() -> None:
    from datatrove.utils.word_tokenizers import load_tokenizer_assignments

    assigned = load_tokenizer_assignments()
    differs = {}
    for label, code in TOKENIZERS.items():
        name, peer = assigned[label].args if label in assigned else ("", "")
        if name == "SpaCyTokenizer" and peer != code:
            differs[label] = (code, peer)
    # lid.176's als is Alemannic; datatrove's is Tosk Albanian, and so, by its table's order, is its sa
    assert differs == {"als": ("de", "sq"), "sa": ("sa", "sq")}
    assert not NO_SEGMENTER & set(TOKENIZERS)


def test_languages_without_rules_for_words() -> None:
    for label in ("zh", "ja", "th", "ko", "km", "lo", "my", "bo", "vi"):
        assert tokenizer_of(label) is None
        assert W.words("文字", label) is None
    assert tokenizer_of("no such label") == tokenizer_of(None) == "xx"


@pytest.mark.slow
def test_every_tokenizer_loads() -> None:
    for code in sorted(set(TOKENIZERS.values())):
        assert W.Lexicon(code).words("a b, c") == oracle(code, "a b, c")
