"""RefinedWeb's line rules by DCLM's modifiers: the text rewritten to what is left, and the share of words that went.

Source: Penedo et al. 2023 (RefinedWeb), appendix G.2, as read by DCLM's public code at 361714b: six modifiers, one
after another, after each of which but the one for line lengths the document is stripped. A phrase to cut ends in any
three characters where RefinedWeb's has three full stops, as DCLM's pattern has it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from gristmill.curate.metrics_dclm import DIGIT, UPPER, Codes, char_classes, fasttext_words
from gristmill.curate.schema_rules import RefinedWebRewrite

_COUNTED = "likes|shares|comments|retweets|reposts|quotes|bookmarks|upvotes|downvotes|downloads|views|followers"
_ANY_COUNTED = re.compile(_COUNTED)
_COUNTER = re.compile(rf"\W*\d[,.\d]*[kmb]?\s+(?:{_COUNTED})\W*$")

_CUTS = (
    ("items in cart", re.compile(r"\s?items in cart", re.I)),
    ("read more", re.compile(r"\s?read more...$", re.I)),
    ("sign-in", re.compile(r"^sign-in\s?", re.I)),
)
"""A text that a document must have, lower-cased, and what is cut."""

_FOLDED = "İıſ"
"""Characters that a pattern takes for i or s although they are not so lower-cased."""


class RefinedText(NamedTuple):
    """A text after RefinedWeb's line rules; `words` as `raw.dclm_words` counts them."""

    chars: int
    words: int
    words_removed: float
    text: str


def refine(text: str, classes: Codes, rules: RefinedWebRewrite) -> RefinedText:
    """Apply the line rules to a text, whose character classes are given."""
    squeezed = re.sub(rf"\n{{{rules.max_newlines + 1},}}", "\n" * rules.max_newlines, text)
    before = fasttext_words(classes)
    if squeezed != text:
        classes = char_classes(squeezed)
    lowered = squeezed.lower()
    lines = squeezed.split("\n")
    upper, digits = _per_line(classes, lines)
    kept = [i for i, line in enumerate(lines) if not line or upper[i] / len(line) <= rules.max_uppercase]
    kept = _stripped(lines, kept)
    kept = [i for i in kept if not lines[i] or digits[i] / len(lines[i]) <= rules.max_numeric]
    kept = _stripped(lines, kept)
    if rules.drop_counters and _ANY_COUNTED.search(lowered):
        kept = _stripped(lines, [i for i in kept if not (digits[i] and _COUNTER.match(lines[i].lower()))])
    if rules.min_words_per_line:
        least = rules.min_words_per_line
        kept = [i for i in kept if not lines[i] or _has_words(lines[i], least)]
    if rules.cut_phrases:
        if rules.min_words_per_line < 1:  # a blank line goes with the lines that a cut leaves blank
            kept = [i for i in kept if not lines[i] or lines[i].strip()]
        anywhere = not squeezed.isascii() and any(c in squeezed for c in _FOLDED)
        for mark, pattern in _CUTS:
            if anywhere or mark in lowered:
                kept = _cut(lines, kept, pattern, rules.phrase_line_words)
                anywhere = True  # a cut may have joined the parts of the next phrase
            kept = _stripped(lines, kept)
    kept = _stripped(lines, kept)
    left = "\n".join(lines[i] for i in kept)
    after = before if left == text else fasttext_words(char_classes(left))
    return RefinedText(len(left), after, (before - after) / before if before else 1.0, left)


def _per_line(classes: Codes, lines: list[str]) -> tuple[list[int], list[int]]:
    """Upper-case letters and digits of each line."""
    stops = np.cumsum(np.fromiter((len(line) + 1 for line in lines), np.int64, len(lines)))
    starts = np.concatenate([np.zeros(1, np.int64), stops[:-1]])
    padded = np.append(classes, np.uint8(0))  # the last line's end; an empty last line starts there
    return tuple(np.add.reduceat((padded & bit) != 0, starts, dtype=np.int64).tolist() for bit in (UPPER, DIGIT))  # type: ignore[return-value]


def _stripped(lines: list[str], kept: list[int]) -> list[int]:
    """What str.strip does to the joined lines: blank ones at the ends go, the first and last lose their outer blanks."""
    start, stop = 0, len(kept)
    while start < stop and not lines[kept[start]].strip():
        start += 1
    while start < stop and not lines[kept[stop - 1]].strip():
        stop -= 1
    if start < stop:
        lines[kept[start]] = lines[kept[start]].lstrip()
        lines[kept[stop - 1]] = lines[kept[stop - 1]].rstrip()
    return kept[start:stop]


def _has_words(line: str, least: int) -> bool:
    return len(line.split(None, least)) >= least


def _cut(lines: list[str], kept: list[int], pattern: re.Pattern[str], most_words: int) -> list[int]:
    """Cut a phrase out of short lines; a line that then is blank goes."""
    out = []
    for i in kept:
        line = lines[i]
        if line and not _has_words(line, most_words + 1):
            lines[i] = pattern.sub("", line)
            if not lines[i].strip():
                continue
        out.append(i)
    return out
