"""Cuts ordinary English chunks as spaCy's rules do, without spaCy: nine in ten distinct chunks of real text.

An ordinary chunk is an optional run of opening marks, a core, and an optional run of closing marks. A core is ASCII
letters and digits, with single marks inside and perhaps a possessive at its end. spaCy's English rules take one opening
and one closing mark off at a time, a possessive as one, cut what is left at hyphens and a few other marks, and do nothing
else here: each of its other prefixes, suffixes and infixes needs a character that is not there, or is tested for below.
Its special cases come first, at every stage and over tokens side by side; where one might act the chunk is left to spaCy.
So is everything else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Set

PIPELINES = frozenset({"en"})
_MARKS = frozenset(",;:!?")
INITIALS = re.compile(r"(?:[A-Z]\.)+")
"""One token: a full stop is taken off after a lower-case letter or two capitals alone."""
ORDINARY = re.compile(
    r"""([("\[“‘'$£€#*_&<{]*)"""  # opening marks
    r"""([A-Za-z0-9]+(?:(?:--?|_+|[–—/=:(,.'’])[A-Za-z0-9]+)*)"""
    r"""((?:[)\]"”’',;:!?(*_}>—–]|(?<=[a-z0-9)\]"”])\.(?!\.)|(?<=[A-Z][A-Z])\.(?!\.)|(?<!\.)\.\.+)*)"""
)
CLOSING = re.compile(r"\.+|[^.]")
INFIX = re.compile(r"((?<=[0-9])-(?=[0-9-])|(?<=[A-Za-z]),(?=[A-Za-z])|(?<=[A-Za-z0-9])(?:--?|[–—]|[:=/])(?=[A-Za-z]))")
"""spaCy's infixes between letters and digits, but the full stop before a capital."""
UNIT = re.compile(r"[0-9][A-Za-z]+(?:/[A-Za-z])?$")
"""May end in a unit, which spaCy cuts off a number."""
CAPITAL = re.compile(r"[a-z]\.[A-Z]")
"""Cut at the full stop, but in a URL."""
POSSESSIVES = ("'s", "’s", "'S", "’S")
MAX_MARKS = 8
"""Opening or closing marks of a chunk that is cut here: the stages to look at grow with their product."""

Pieces = list[str]


def cutter(code: str, cases: Set[str], runs: Iterable[Pieces]) -> Callable[[str], Pieces | None] | None:
    """A function from a chunk to its tokens, or None where spaCy must cut it; None for a pipeline of other rules.

    `cases` are the special cases of the tokenizer, `runs` the tokens that each of them is matched on.
    """
    if code not in PIPELINES:
        return None
    beginning: dict[str, list[Pieces]] = {}
    for run in runs:
        if len(run) > 1:  # a case of one token is an affix, or is never matched inside a chunk
            beginning.setdefault(run[0], []).append(run)
    initials, ordinary = INITIALS.fullmatch, ORDINARY.fullmatch

    def cut(chunk: str) -> Pieces | None:
        if chunk in cases:
            return None
        if chunk.isascii():  # the simplest chunks, half of all
            if chunk.isalpha():
                return [chunk]
            core, mark = chunk[:-1], chunk[-1:]
            if core.isalpha() and (mark in _MARKS or (mark == "." and (core[-1].islower() or core[-2:-1].isupper()))):
                return None if core in cases else [core, mark]
        found = ordinary(chunk)
        if found is None:
            return [chunk] if initials(chunk) else None
        opening, core, closing = found.groups()
        begin, end = len(opening), len(chunk) - len(closing)
        if begin > MAX_MARKS or len(closing) > MAX_MARKS:
            return None
        stages = range(end, len(chunk) + 1)
        possessive = core[-2:] if core.endswith(POSSESSIVES) else ""
        if possessive:
            core = core[:-2]
            stages = range(end - 2, len(chunk) + 1)
            if core.endswith(POSSESSIVES):
                return None
        if opening and core in ("s", "S"):  # a possessive of its own, after a quote
            return None
        for low in range(begin + 1):
            for high in stages:
                if chunk[low:high] in cases:
                    return None
        parts = [core]
        if not core.isalnum():
            parts = [part for part in INFIX.split(core) if part]
            if "." in core and (len(parts) > 1 or CAPITAL.search(core)):  # uncut if it is a URL
                return None
        if not core.isalpha() and UNIT.search(core):
            return None
        if possessive:
            parts.append(possessive)
        parts = [*opening, *parts, *CLOSING.findall(closing)]
        for i, part in enumerate(parts):
            if part in beginning and any(parts[i : i + len(run)] == run for run in beginning[part]):
                return None
        return parts

    return cut
