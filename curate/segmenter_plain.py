"""Cuts ordinary English chunks as spaCy's rules do, without spaCy: four in five distinct chunks of real text.

An ordinary chunk is an optional run of opening quotes and brackets, a core, and an optional run of closing marks. A core
is letters, letters with hyphens inside, letters with a possessive, or digits with points or commas inside. spaCy's English
rules take one opening or closing mark off at a time, a possessive as one, cut letters at hyphens, and do nothing else:
each of its prefixes, suffixes and infixes needs another character on the place where it cuts. Its special cases come
first, at every stage and over tokens side by side; where one might act the chunk is left to spaCy. So is everything else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Set
from itertools import pairwise

PIPELINES = frozenset({"en"})
LETTERS = re.compile(r"([A-Za-z]+)([,;:!?]|(?<=[a-z])\.)?")
"""The simplest ordinary chunks, half of all."""
ORDINARY = re.compile(
    r"""([("\[“‘']*)"""  # opening marks
    r"""(?:([A-Za-z]+(?:-[A-Za-z]+)*)(['’][sS])?|[0-9]+(?:[.,][0-9]+)*)"""
    r"""((?:[)\]"”’',;:!?]|(?<=[a-z0-9)\]"”])\.(?!\.))*)"""  # closing marks; two points are an ellipsis
)

Pieces = list[str]


def cutter(code: str, cases: Set[str], pairs: Set[tuple[str, str]]) -> Callable[[str], Pieces | None] | None:
    """A function from a chunk to its tokens, or None where spaCy must cut it; None for a pipeline of other rules.

    `cases` are the special cases of the tokenizer, `pairs` the tokens that stand side by side in one.
    """
    if code not in PIPELINES:
        return None
    letters, ordinary = LETTERS.fullmatch, ORDINARY.fullmatch

    def cut(chunk: str) -> Pieces | None:
        if chunk in cases:
            return None
        found = letters(chunk)
        if found is not None:
            core, mark = found[1], found[2]
            if mark is None:
                return [core]
            return None if core in cases else [core, mark]
        found = ordinary(chunk)
        if found is None:
            return None
        opening, word, possessive, closing = found.groups("")
        begin, end = len(opening), len(chunk) - len(closing)
        if opening and word in ("s", "S"):  # a possessive of its own, after a quote
            return None
        if possessive and chunk[begin : end - 2] in cases:
            return None
        for low in range(begin + 1):
            for high in range(end, len(chunk) + 1):
                if chunk[low:high] in cases:
                    return None
        middle = chunk[begin : end - len(possessive)]
        if word and "-" in middle:
            parts = middle.replace("-", " - ").split(" ")
        else:
            parts = [middle]
        if possessive:
            parts.append(possessive)
        parts = [*opening, *parts, *closing]
        for pair in pairwise(parts):
            if pair in pairs:
                return None
        return parts

    return cut
