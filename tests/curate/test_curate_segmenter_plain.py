"""Chunks cut without spaCy are cut as spaCy cuts them; what spaCy's special cases may touch is left to it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from gristmill.curate.segmenter import Segmenter
from gristmill.curate.segmenter_plain import cutter

OPENING, CLOSING = list("([\"“‘'$£€#*_&<{"), [*")]\"”’',;:!?.(*_}>—–", "...", ".."]
INSIDE = [*"------__/=:(,.'’–—", "--", "__", "+", "@"]


@pytest.fixture(scope="module")
def english() -> Segmenter:
    return Segmenter("en")


def by_spacy(segmenter: Segmenter, chunks: Sequence[str]) -> list[list[str]]:
    tokenizer: Any = segmenter._tokenizer
    out: list[list[str]] = [[]]
    for token in tokenizer("\n".join(chunks)):
        if token.text == "\n":
            out.append([])
        else:
            out[-1].append(token.text)
    return out


def chunks(english: Segmenter, n: int) -> list[str]:
    """Marks around letters, words of special cases and numbers, in any order."""
    rng = random.Random(1)
    words = sorted(
        {w for case in english._cases for w in (case, case.strip(".'’")) if w and not any(map(str.isspace, w))}
    )
    words += ["word", "Word", "WORD", "a", "A", "I", "s", "S", "x", "D", "km", "8", "10", "com", "10km"] * 60
    out = []
    for _ in range(n):
        core = "".join(word + rng.choice(INSIDE) for word in rng.choices(words, k=rng.choice([0, 0, 0, 1, 2])))
        core += rng.choice(words)
        if rng.random() < 0.2:
            core = "".join(rng.choices("0123456789.,", k=rng.randint(1, 6)))
        if rng.random() < 0.15:
            core += rng.choice(["'s", "’s", "'S", "’S"])
        marks = (
            rng.choices(OPENING, k=rng.choice([0, 0, 0, 1, 1, 2, 3])),
            rng.choices(CLOSING, k=rng.choice([0, 0, 1, 1, 2, 3])),
        )
        out.append("".join(marks[0]) + core + "".join(marks[1]))
    return out


def test_as_spacy_cuts_them(english: Segmenter) -> None:
    made = chunks(english, 20_000)
    cut = english._plain
    assert cut is not None
    done = 0
    for chunk, tokens in zip(made, by_spacy(english, made), strict=True):
        found = cut(chunk)
        done += found is not None
        assert found in (None, tokens), chunk
    assert done > 5_000, "few were cut here: the test says little"


@pytest.mark.parametrize(
    ("chunk", "pieces"),
    [
        ("word", ["word"]),
        ("word.", ["word", "."]),
        ("(“well-known”).", ["(", "“", "well", "-", "known", "”", ")", "."]),
        ("Alice’s,", ["Alice", "’s", ","]),
        ("1,000.50", ["1,000.50"]),
        ("2021.", ["2021", "."]),
        ("Mr.", None),
        ("(Mr.)", None),
        ("don't", None),
        ("it’s", None),
        ("WORD.", ["WORD", "."]),
        ("word...", ["word", "..."]),
        ("U.N.", ["U.N."]),
        ("2021-03-04,", ["2021", "-", "03", "-", "04", ","]),
        ("1990–2000", ["1990–2000"]),
        ("up—or--down", ["up", "—", "or", "--", "down"]),
        ("O'Neil's", ["O'Neil", "'s"]),
        ("a_b/c", ["a_b", "/", "c"]),
        ("$1,000.50).", ["$", "1,000.50", ")", "."]),
        ("main()", ["main", "(", ")"]),
        ("example.com", ["example.com"]),
        ("example.com/a", None),
        ("end.Next", None),
        ("a's's", None),
        ("((((((((((a", None),
        ("word:)", None),
        ("'s", None),
        ("a/b", ["a", "/", "b"]),
        ("and/or", None),
        ("10km/h", None),
        ("10km", None),
        ("naïve", None),
        ("", None),
    ],
)
def test_what_is_left_to_spacy(english: Segmenter, chunk: str, pieces: list[str] | None) -> None:
    assert english._plain is not None
    assert english._plain(chunk) == pieces


def test_other_languages_are_left_to_spacy() -> None:
    assert cutter("de", frozenset(), frozenset()) is None
