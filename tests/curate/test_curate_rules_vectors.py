"""Conformance vectors: texts written for one rule or corner case each; expected reason and datatrove's must agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.curate.decide import decide_table
from gristmill.curate.measure import measure_batch
from gristmill.curate.rules import RULES
from gristmill.curate.schema import C4, C4Rewrite, FineWeb, Gopher, Language, Rules

GOOD = [
    "The miller opened the gate before dawn and let the river turn the wheel for the first time that year.",
    "Nobody in the valley had seen so much grain, and the carts stood in a line down to the old bridge.",
    "A clerk weighed each sack, wrote the figure in a ledger, and called the owner to sign beside it.",
    "By noon the stones were warm, the flour was fine, and dust hung in every beam of light.",
    "Children ran between the wagons with apples that they had taken from an orchard near the church.",
    "When rain came, the farmers covered their loads with canvas and waited under the eaves to talk.",
    "One of them told how his grandfather had built a mill of his own, only to watch it burn.",
    "Another said that wind was better than water, though it could not be trusted in late summer.",
    "In the evening the gate was shut, and the pond behind it began to fill again without a sound.",
    "The owner counted what was owed to him twice, put out the lamp, and walked home along the bank.",
]
TEXT = "\n".join(GOOD)


def replaced(i: int, line: str) -> str:
    return "\n".join([*GOOD[:i], line, *GOOD[i + 1 :]])


def spread(words: str, n: int) -> str:
    """n lines of numbered words around the given ones, no two alike."""
    return "\n".join(f"{words} {i}{'abcdefghij'[i % 10]}." for i in range(n))


LETTERS = [f"{a}{b}{c}" for a in "bcdfghklmn" for b in "aeiou" for c in "prstvz"]


@dataclass(frozen=True)
class Vector:
    """`only` runs one set alone; `gopher` changes Gopher's thresholds on both sides."""

    text: str
    reason: str | None
    only: str = ""
    gopher: tuple[tuple[str, Any], ...] = ()


NO_REPETITION = (
    ("max_top_ngram_chars", ()),
    ("max_dup_ngram_chars", ()),
    *(
        (name, None)
        for name in ("max_dup_lines", "max_dup_paragraphs", "max_dup_line_chars", "max_dup_paragraph_chars")
    ),
)
long_words = " ".join(f"the of {a}{'overlongword'}{b}" for a, b in zip(LETTERS[:60], LETTERS[60:120], strict=True))

VECTORS: dict[str, Vector] = {
    "good": Vector(TEXT, None),
    "good, paragraphs": Vector("\n\n".join(GOOD), None),
    "empty": Vector("", "gopher.empty"),
    "empty, FineWeb": Vector(" \n\t\n", "fineweb.empty", "fineweb"),
    "whitespace": Vector(
        " \n \n", "gopher.too_few_words", "gopher", (("max_dup_lines", None), ("max_dup_line_chars", None))
    ),
    # repetition
    "paragraphs": Vector("\n\n".join(["Same here.", "Same here.", "Same here.", *GOOD[:2]]), "gopher.dup_paragraphs"),
    "paragraph characters": Vector("\n\n".join([GOOD[0], GOOD[0], *GOOD[1:4]]), "gopher.dup_paragraph_chars"),
    "lines": Vector("\n".join([*["again"] * 8, *GOOD]), "gopher.dup_lines"),
    "lines, at the threshold": Vector("\n".join([*["ab"] * 4, *GOOD[:6]]), None, "gopher", NO_REPETITION[:2]),
    "line characters": Vector("\n".join([*GOOD[:5], GOOD[0], GOOD[1]]), "gopher.dup_line_chars"),
    "blank lines are no duplicates": Vector("\n\n\n".join(GOOD), None, "gopher"),
    "a single 2-gram counts": Vector("internationalisation standards", "gopher.top_2_gram"),
    "2-gram": Vector(" ".join(f"milling stones {x}" for x in LETTERS[:60]), "gopher.top_2_gram"),
    "3-gram": Vector(
        " ".join(
            f"milling the stones {a} {b} {a}{b} {b}{a} {b}{b} {a}{a}"
            for a, b in zip(LETTERS[:60], LETTERS[60:120], strict=True)
        ),
        "gopher.top_3_gram",
        "gopher",
        (("max_top_ngram_chars", ((3, 0.18), (4, 0.16))),),
    ),
    "4-gram": Vector(
        " ".join(
            f"of mill and stone {a} {b} {a}{b} {b}{a} {b}{b}"
            for a, b in zip(LETTERS[:60], LETTERS[60:120], strict=True)
        ),
        "gopher.top_4_gram",
        "gopher",
        (("max_top_ngram_chars", ((4, 0.16),)),),
    ),
    **{
        f"{n}-grams": Vector(
            "\n".join(GOOD[:4]) + "\n" + " ".join(f"{GOOD[4 + i]} {LETTERS[i]} {GOOD[4 + i]}" for i in range(3)),
            f"gopher.dup_{n}_grams",
            "gopher",
            (("max_dup_ngram_chars", ((n, 0.1),)),),
        )
        for n in (5, 6, 7, 8, 9, 10)
    },
    "n-grams of joined characters": Vector(
        "a b c d e a b c d e",
        "gopher.dup_5_grams",
        "gopher",
        (("max_top_ngram_chars", ()), ("max_dup_ngram_chars", ((5, 0.26),))),
    ),
    "n-grams, at the threshold": Vector(
        "a b c d e a b c d e",
        "gopher.too_few_words",
        "gopher",
        (("max_top_ngram_chars", ()), ("max_dup_ngram_chars", ((5, 5 / 19),))),
    ),
    # quality
    "short": Vector("\n".join(GOOD[:2]), "gopher.too_few_words"),
    "49 words and much punctuation": Vector(
        " ".join(f"{w} ." for w in LETTERS[:49]), "gopher.too_few_words", "gopher", NO_REPETITION
    ),
    "long": Vector(TEXT, "gopher.too_many_words", "gopher", (("max_words", 100),)),
    "short words": Vector(" ".join(f"of a {i}" for i in range(10, 60)), "gopher.short_words", "gopher", NO_REPETITION),
    "long words": Vector(
        " ".join(f"{a}overlongword{b}" for a, b in zip(LETTERS[:60], LETTERS[60:120], strict=True)),
        "gopher.long_words",
        "gopher",
        NO_REPETITION,
    ),
    "hashes": Vector(TEXT + "\n" + " ".join(f"#{x}" for x in LETTERS[:45]), "gopher.hashes", "gopher", NO_REPETITION),
    "ellipses of both kinds": Vector(
        TEXT + "\n" + " ".join(f"{x}... {x}x…" for x in LETTERS[:20]), "gopher.ellipses", "gopher", NO_REPETITION
    ),
    "bullets": Vector("\n".join(f" {'-•'[i % 2]} {line}" for i, line in enumerate(GOOD)), "gopher.bullet_lines"),
    "bullets, at the threshold": Vector("\n".join([*(f"- {x}" for x in GOOD[:9]), GOOD[9]]), None),
    "ellipsis lines": Vector(
        "\n".join([*(f"{x[:-1]}... " for x in GOOD[:2]), *(f"{x[:-1]}…" for x in GOOD[2:4]), *GOOD[4:]]),
        "gopher.ellipsis_lines",
    ),
    "few letters": Vector(
        "\n".join(f"{x} {i} {i * 7} ( {i * 11} ) {i * 13} ;" for i, x in enumerate(GOOD)), "gopher.too_few_alpha_words"
    ),
    "stop words of one kind": Vector(
        " ".join(f"the {x}" for x in LETTERS[:60]), "gopher.too_few_stop_words", "gopher", NO_REPETITION
    ),
    "stop words in capitals": Vector(
        " ".join(f"The Of AND That {x}" for x in LETTERS[:40]), "gopher.too_few_stop_words", "gopher", NO_REPETITION
    ),
    # C4
    "lorem ipsum": Vector(replaced(3, "Here Lorem IPSUM stood in for words to come."), "c4.lorem_ipsum"),
    "lorem ipsum in a short line": Vector(replaced(3, "Lorem ipsum"), None),
    "lorem ipsum after javascript": Vector(replaced(3, "This javascript says lorem ipsum to all."), "c4.lorem_ipsum"),
    "curly bracket": Vector(replaced(3, "The set {a, b} was used by them all."), "c4.curly_bracket"),
    "curly bracket in a two-word line": Vector(replaced(3, "{ word"), None),
    "curly bracket with javascript": Vector(replaced(3, "Run javascript {x} to see the page."), None),
    "curly bracket with a policy phrase": Vector(
        replaced(3, "Our privacy policy {x} is on this page."), "c4.curly_bracket"
    ),
    "curly before lorem": Vector(
        "\n".join(["It was {so}, as he said.", "Then lorem ipsum it was.", *GOOD]), "c4.curly_bracket"
    ),
    "lorem before curly": Vector(
        "\n".join(["Then lorem ipsum it was.", "It was {so}, as he said.", *GOOD]), "c4.lorem_ipsum"
    ),
    "curly bracket in a line with a long word": Vector(replaced(3, "{ of the " + "w" * 1001), None, "c4"),
    "a word of 1000 characters": Vector(replaced(3, "of the " + "w" * 1000 + "."), None, "c4"),
    "policy lines": Vector("\n".join([*GOOD, "We use cookies on this site.", "Read our Terms of Use now."]), None),
    "javascript lines": Vector("\n".join(["Please turn JavaScript on here.", *GOOD]), None),
    "a phrase parted by a citation": Vector("\n".join(["It says java[1]script in this line.", *GOOD]), None),
    "citations": Vector("\n".join(f"{x[:-1]} [{i}][edit] [citation needed]." for i, x in enumerate(GOOD)), None, "c4"),
    "words counted before citations go": Vector(replaced(3, "Word [1] [2]"), None, "c4"),
    "nothing but citations": Vector("\n".join([*GOOD, "[1] [2] [3]"]), None, "c4"),
    "four sentences": Vector(" ".join(GOOD[:4]), "c4.too_few_sentences", "c4"),
    "five sentences": Vector(" ".join(GOOD[:5]), None, "c4"),
    "sentences over odd gaps": Vector("It ended.  ) . So it was. They left. He slept.", None, "c4"),
    "sentences over even gaps": Vector("It ended. ) . So it was. They left. He slept.", "c4.too_few_sentences", "c4"),
    "sentences of dropped lines": Vector(
        "\n".join([*GOOD[:4], "Stop. Now.", "Use javascript. Or not. Or else."]), "c4.too_few_sentences", "c4"
    ),
    # FineWeb
    "no line ends": Vector("\n".join(x[:-1] for x in GOOD), "fineweb.few_punctuated_lines", "fineweb"),
    "other scripts' ends": Vector("\n".join(x[:-1] + "。" for x in GOOD), None, "fineweb"),
    "a quote ends no line": Vector("\n".join(x + '"' for x in GOOD), "fineweb.few_punctuated_lines", "fineweb"),
    "a blank after the stop": Vector("\n".join(x + " " for x in GOOD), "fineweb.few_punctuated_lines", "fineweb"),
    "short lines": Vector("\n".join(x[:29] + "." for x in GOOD), "fineweb.short_lines", "fineweb"),
    "31 characters are not short": Vector("\n".join(x[:30] + "." for x in GOOD), None, "fineweb"),
    "repeated line": Vector("\n".join([*GOOD, GOOD[0][:40], GOOD[0][:40]]), "fineweb.dup_line_chars", "fineweb"),
    "newlines": Vector("\n\n\n\n\n\n".join(GOOD[i] for i in range(10)) + "\n" * 40, "fineweb.newlines", "fineweb"),
    "newlines that C4 takes away": Vector("\n\n\n\n\n\n".join(GOOD) + "\n" * 40, None),
    "short lines that C4 takes away": Vector(
        "\n".join(f"{x}\n{y} {y}" for x, y in zip(GOOD, LETTERS, strict=False)), None
    ),
    "line ends of other kinds": Vector("\r\n".join(GOOD[:5]) + "\x85" + "\u2028".join(GOOD[5:]), None),
    "odd characters": Vector(TEXT + "\n\x00 and the \ufeff words \u200b of it.", None),
}


def settings_of(vector: Vector) -> tuple[Rules, dict[str, Any]]:
    changes = {k: dict(v) if k.endswith("ngram_chars") else v for k, v in vector.gopher}
    sets = {"gopher": Gopher(**changes), "c4": C4(), "fineweb": FineWeb()}
    on = [vector.only] if vector.only else list(sets)
    rules = Rules.model_validate({f"{name}@datatrove": sets[name] for name in on})
    return rules, {"on": on, "gopher": sets["gopher"]}


def ours(text: str, rules: Rules, c4: C4Rewrite | None = None) -> tuple[str | None, str | None]:
    """(reason, text after C4 where it is on)."""
    measures = measure_batch([text], ["en"], (c4 or C4Rewrite()) if rules.c4 else None, 30)
    head = {"id": pa.array(["x"]), "language": pa.array(["en"]), "language_score": pa.array([0.9], pa.float32())}
    for name, column in head.items():
        measures = measures.append_column(name, column)
    verdict = decide_table(measures, Language(), rules)[0].to_pylist()[0]
    assert verdict["text_version"] == ("c4" if rules.c4 else "raw")
    return verdict["reason"], measures.column("c4.text")[0].as_py() if rules.c4 else text


def theirs(text: str, on: list[str], gopher: Gopher, c4: C4Rewrite | None = None) -> tuple[str | None, str]:
    """The same from datatrove's filters, in FineWeb's order, reasons under our names."""
    from datatrove.data import Document
    from datatrove.pipeline import filters as peer

    c4 = c4 or C4Rewrite()
    steps: list[tuple[str, Any]] = []
    if "gopher" in on:
        repetition = peer.GopherRepetitionFilter(
            dup_line_frac=gopher.max_dup_lines,
            dup_para_frac=gopher.max_dup_paragraphs,
            dup_line_char_frac=gopher.max_dup_line_chars,
            dup_para_char_frac=gopher.max_dup_paragraph_chars,
            top_n_grams=tuple(gopher.max_top_ngram_chars.items()),
            dup_n_grams=tuple(gopher.max_dup_ngram_chars.items()),
        )
        quality = peer.GopherQualityFilter(min_doc_words=gopher.min_words, max_doc_words=gopher.max_words)
        steps += [("gopher", repetition), ("gopher", quality)]
    if "c4" in on:
        steps.append(("c4", peer.C4QualityFilter(filter_no_terminal_punct=c4.terminal_punctuation)))
    if "fineweb" in on:
        steps.append(("fineweb", peer.FineWebQualityFilter()))
    names = {(rule.name.split(".")[0], rule.datatrove): rule.name for rule in RULES}
    doc = Document(text=text, id="x")
    for prefix, step in steps:
        verdict = step.filter(doc)
        if verdict is not True:
            return names[prefix, verdict[1]], doc.text
    return None, doc.text


@pytest.mark.parametrize("name", VECTORS)
def test_vector(name: str) -> None:
    vector = VECTORS[name]
    rules, peer = settings_of(vector)
    reason, rewritten = ours(vector.text, rules)
    peer_reason, peer_text = theirs(vector.text, **peer)
    assert (reason, peer_reason) == (vector.reason, vector.reason)
    if reason is None:
        assert rewritten == peer_text


def test_vectors_cover_every_rule() -> None:
    named = {vector.reason for vector in VECTORS.values()}
    assert named - {None} == {rule.name for rule in RULES if rule.set.endswith("@datatrove")}
    assert len(VECTORS) >= 40


ATOMS = [
    *GOOD[:3],
    *(
        "The",
        "mill",
        "{",
        "javascript",
        "java[1]script",
        "lorem ipsum",
        "[2]",
        "[citation needed]",
        "terms of use",
        "w" * 1001,
    ),
    *("…", "...", "#", "-", "•", ".", "!", ":(", "(", ")", "e.g.", "it's", "of", "and", "said.", '"', "0", "é", "\x00"),
]
GAPS = [" "] * 9 + ["\n"] * 5 + ["\n\n", "  ", "\t", "\u00a0", "\u2028", "\r\n", ""]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(ATOMS), st.sampled_from(GAPS)), max_size=60),
    st.sampled_from(["gopher", "c4", "fineweb", ""]),
    st.booleans(),
)
def test_random_texts(parts: list[tuple[str, str]], only: str, terminal: bool) -> None:
    text = "A " + "".join(atom + gap for atom, gap in parts)
    rules, peer = settings_of(Vector(text, None, only, (("min_words", 5),)))
    c4 = C4Rewrite(terminal_punctuation=terminal)
    reason, rewritten = ours(text, rules, c4)
    peer_reason, peer_text = theirs(text, **peer, c4=c4)
    assert reason == peer_reason
    if reason is None:
        assert rewritten == peer_text
