"""DCLM's Gopher metrics: what `gopher@dclm` compares, computed as DCLM's filters do (docs/metrics.md, `raw.dclm_*`).

Source: Li et al. 2024 (DCLM), the mappers of its public code at 361714b. Where datatrove counts the second and later
copies and skips over a hit, DCLM counts all copies; white space and punctuation are in neither side of its n-gram shares.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gristmill.curate.kernels_dclm import copies
from gristmill.curate.words_uax import ALPHA, STOP, UAX

_BULLETS = ("●", "•", "*", "-")
_LINE_ELLIPSES = ("...", ". . .", "…")
_SYMBOLS = ("#", "...", ". . .", "…")

_SEPARATORS = " \n\r\t\v\f\0"
"""What ends a word for fastText's tokenizer, which DCLM counts words with."""

UPPER, DIGIT, ALNUM, SEPARATOR = 1, 2, 4, 8
"""Bits of a character's class: str.isupper, str.isdigit, str.isalnum, one of _SEPARATORS."""

Codes = npt.NDArray[np.uint8]


class DclmMetrics(NamedTuple):
    """In the order of `curate.columns`; fractions are null without words or lines."""

    dclm_words: int
    dclm_tokens: int
    dclm_avg_word_length: float | None
    dclm_symbol_ratio: float | None
    dclm_nonalpha_words: float | None
    dclm_stop_words: int | None
    dclm_bullet_lines: float | None
    dclm_ellipsis_lines: float | None
    dclm_dup_lines: float | None
    dclm_dup_line_chars: float | None
    dclm_dup_paragraphs: float | None
    dclm_dup_paragraph_chars: float | None
    dclm_top_2gram_chars: float | None
    dclm_top_3gram_chars: float | None
    dclm_top_4gram_chars: float | None
    dclm_dup_5gram_chars: float | None
    dclm_dup_6gram_chars: float | None
    dclm_dup_7gram_chars: float | None
    dclm_dup_8gram_chars: float | None
    dclm_dup_9gram_chars: float | None
    dclm_dup_10gram_chars: float | None


@cache
def _classes(size: int) -> Codes:
    table = np.zeros(size, np.uint8)
    for code in range(size):
        c = chr(code)
        if c.isalnum():
            table[code] = ALNUM | (UPPER if c.isupper() else 0) | (DIGIT if c.isdigit() else 0)
        elif c.isupper():  # circled letters
            table[code] = UPPER
        elif c in _SEPARATORS:
            table[code] = SEPARATOR
    return table


def char_classes(text: str) -> Codes:
    """(len(text),) the class bits of each character. No lone surrogates."""
    if text.isascii():
        return _classes(128)[np.frombuffer(text.encode("ascii"), np.uint8)]
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    top = int(codes.max())
    return _classes(0x3000 if top < 0x3000 else 0x110000)[codes]  # the whole table takes 0.2 s to make


def fasttext_words(classes: Codes) -> int:
    """Words as fastText cuts them that start with a letter or digit, from a text's character classes."""
    if not len(classes):
        return 0
    starts = np.empty(len(classes), bool)
    starts[0] = True
    np.not_equal(classes[:-1] & SEPARATOR, 0, out=starts[1:])
    return int(np.count_nonzero(starts & ((classes & ALNUM) != 0)))


def dclm_metrics(text: str, classes: Codes, *, stop_words: bool) -> DclmMetrics:
    """`classes` are the text's character classes; `stop_words` says whether the text's language is Gopher's list's."""
    tokens = UAX.tokens(text)
    n = len(tokens.chars)
    lines = [bare for line in text.split("\n") if (bare := line.strip())]
    bullets = ellipses = 0
    if any(mark in text for mark in _BULLETS):
        bullets = sum(line.startswith(_BULLETS) for line in lines)
    symbols = sum(map(text.count, _SYMBOLS))
    if symbols:
        ellipses = sum(line.endswith(_LINE_ELLIPSES) for line in lines)
    line_dups, line_chars = _copied(lines)
    paragraph_dups, paragraph_chars = line_dups, line_chars
    if "\n\n" in text or len(lines) != 1:
        paragraph_dups, paragraph_chars = _copied([bare for part in text.split("\n\n") if (bare := part.strip())])
    total = int(tokens.length.sum())
    grams: list[float | None] = [None] * 9
    if total:
        grams = [chars / total if chars >= 0 else None for chars in copies()(tokens.hash, tokens.length).tolist()]
    return DclmMetrics(
        fasttext_words(classes),
        n,
        int(tokens.chars.sum()) / n if n else None,
        symbols / n if n else None,
        int(np.count_nonzero(tokens.flags & ALPHA == 0)) / n if n else None,
        int(np.count_nonzero(tokens.flags & STOP)) if stop_words else None,
        bullets / len(lines) if lines else None,
        ellipses / len(lines) if lines else None,
        line_dups,
        line_chars,
        paragraph_dups,
        paragraph_chars,
        *grams,
    )


def _copied(parts: list[str]) -> tuple[float | None, float | None]:
    """Share of parts that occur more than once, and their share of the characters; null without parts."""
    if not parts:
        return None, None
    if len(set(parts)) == len(parts):
        return 0.0, 0.0
    counts = [(len(part), count) for part, count in Counter(parts).items() if count > 1]
    copied = sum(count for _, count in counts)
    return copied / len(parts), sum(size * count for size, count in counts) / sum(map(len, parts))
