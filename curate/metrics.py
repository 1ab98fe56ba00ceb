"""What a text measures: every number that a Gopher or FineWeb rule compares, computed exactly as datatrove does.

The functions take one text; `curate.measure` turns them into columns. Sources: Rae et al. 2021 (Gopher), appendix A1;
Penedo et al. 2024 (FineWeb), section 3; semantics of datatrove 0.10.1's filters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gristmill.curate.kernels import DUP_SIZES, TOP_SIZES, kernels
from gristmill.curate.words import ALPHA, NONSYMBOL, STOP_SHIFT, STOP_WORDS, Words, word_hash

_PARAGRAPH_BREAK = re.compile(r"\n{2,}")
_BULLETS = ("•", "-")
_ELLIPSES = ("...", "…")


class LineMetrics(NamedTuple):
    """Gopher's rules over lines and paragraphs. Fractions of lines, paragraphs or characters; null for an empty text."""

    dup_paragraphs: float | None
    dup_paragraph_chars: float | None
    dup_lines: float | None
    dup_line_chars: float | None
    bullet_lines: float | None
    ellipsis_lines: float | None


class WordMetrics(NamedTuple):
    """Gopher's rules over words. `words` counts all tokens; null where a text has too few words to say."""

    words: int
    nonsymbol_words: int
    avg_word_length: float | None
    hash_ratio: float | None
    ellipsis_ratio: float | None
    alpha_words: float | None
    stop_words: int | None
    top_2gram_chars: float | None
    top_3gram_chars: float | None
    top_4gram_chars: float | None
    dup_5gram_chars: float | None
    dup_6gram_chars: float | None
    dup_7gram_chars: float | None
    dup_8gram_chars: float | None
    dup_9gram_chars: float | None
    dup_10gram_chars: float | None


class LayoutMetrics(NamedTuple):
    """FineWeb's own rules. Fractions of non-blank lines (of characters for duplicates); null without such a line."""

    nonblank_lines: int
    line_punctuation: float | None
    short_lines: float | None
    repeated_line_chars: float | None
    newlines_per_word: float | None


def duplicates(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts repeat an earlier one, and their characters."""
    if len(set(parts)) == len(parts):
        return 0, 0
    seen: set[str] = set()
    count = chars = 0
    for part in parts:
        if part in seen:
            count += 1
            chars += len(part)
        else:
            seen.add(part)
    return count, chars


def _paragraphs(text: str) -> list[str]:
    """`re.split(r"\n{2,}", text)`, without the regular expression where no run is longer than two."""
    return _PARAGRAPH_BREAK.split(text) if "\n\n\n" in text else text.split("\n\n")


def _runs_of_lines(text: str) -> list[str]:
    """`re.split(r"\n+", text)`, three times faster: empty parts are at the ends alone."""
    parts = [part for part in text.split("\n") if part]
    if text.startswith("\n"):
        parts.insert(0, "")
    if text.endswith("\n") or not text:
        parts.append("")
    return parts


def line_metrics(text: str, n_lines: int, stripped: Sequence[str]) -> LineMetrics:
    """`n_lines` and `stripped` are the number and the stripped lines of `text.splitlines()`, blank ones there or not;
    the duplicate rules split at line feeds only, as datatrove's do."""
    if not text:
        return LineMetrics(None, None, None, None, None, None)
    paragraphs = _paragraphs(text.strip())
    paragraph_dups, paragraph_chars = duplicates(paragraphs)
    parts = _runs_of_lines(text)
    line_dups, line_chars = duplicates(parts)
    bullets = ellipses = 0
    if any(bullet in text for bullet in _BULLETS):
        bullets = sum([line.startswith(_BULLETS) for line in stripped])
    if any(ellipsis in text for ellipsis in _ELLIPSES):
        ellipses = sum([line.endswith(_ELLIPSES) for line in stripped])
    return LineMetrics(
        paragraph_dups / len(paragraphs),
        paragraph_chars / len(text),
        line_dups / len(parts),
        line_chars / len(text),
        bullets / n_lines,
        ellipses / n_lines,
    )


StopWords = npt.NDArray[np.uint64]
"""Hashes of a language's stop words, sorted. An empty one stands for Gopher's eight, which the words are flagged with."""

GOPHER_STOP_WORDS: StopWords = np.zeros(0, np.uint64)


def stop_hashes(words: Sequence[str]) -> StopWords:
    """Stop words as `word_metrics` compares them. Not for an empty list."""
    assert words, "no stop words"
    return np.unique(np.array([word_hash(word) for word in words], np.uint64))


def word_metrics(text: str, words: Words, *, stop_words: StopWords | None, ngrams: bool = True) -> WordMetrics:
    """`stop_words` are those of the text's language or None; they count distinct, case-sensitive. Without `ngrams` the
    repetition of n-grams stays null."""
    n = len(words)
    flags = words.flags
    nonsymbol = (flags & NONSYMBOL).astype(bool)
    n_nonsymbol = int(nonsymbol.sum())
    stops: int | None = None
    if stop_words is not None and len(stop_words):
        stops = int(np.isin(stop_words, words.hash).sum())
    elif stop_words is not None:
        seen = np.bincount(flags >> STOP_SHIFT, minlength=len(STOP_WORDS) + 1)
        stops = int((seen[1:] > 0).sum())
    grams: list[float | None] = [None] * (len(TOP_SIZES) + len(DUP_SIZES))
    if text and ngrams:
        ends = np.cumsum(words.length)
        chars = kernels().ngrams(words.hash, words.power, ends).tolist()
        grams = [c / len(text) if c >= 0 else None for c in chars]
    return WordMetrics(
        n,
        n_nonsymbol,
        int(words.length[nonsymbol].sum()) / n_nonsymbol if n_nonsymbol else None,
        text.count("#") / n if n else None,
        (text.count("...") + text.count("…")) / n if n else None,
        int(np.count_nonzero(flags & ALPHA)) / n if n else None,
        stops,
        *grams,
    )


@cache
def terminal_punctuation() -> frozenset[str]:
    """Characters that end a sentence in some script: datatrove's table, read from the installed package."""
    from datatrove.utils.text import TERMINAL_PUNCTUATION

    return frozenset(TERMINAL_PUNCTUATION)


def layout_metrics(text: str, n_words: int | None, short_line_chars: int) -> LayoutMetrics:
    """`n_words` counts all tokens of this text, null where its language needs a segmenter."""
    lines = [line for line in text.split("\n") if line and not line.isspace()]
    if not lines:
        return LayoutMetrics(0, None, None, None, None)
    stops = terminal_punctuation()
    newlines = text.count("\n")
    return LayoutMetrics(
        len(lines),
        sum(map(stops.__contains__, [line[-1] for line in lines])) / len(lines),
        sum(map(short_line_chars.__ge__, map(len, lines))) / len(lines),
        duplicates(lines)[1] / (len(text) - newlines),
        newlines / n_words if n_words else None,
    )
