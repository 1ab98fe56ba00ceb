"""Words for the fertility table: the segmenter named `runs`, and where it has no answer.

A word is a run of letters, marks and numbers. Scripts that write no spaces between words (Han, kana, Thai, Lao, Khmer,
Myanmar, Tibetan) are never measured by runs: their words are left out, and a language that is written so has no
fertility at all rather than a wrong one. `tokenize.segmenters` has named segmenters for some of them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import regex

SEGMENTER = "runs-1"
"""Name and version; fertilities of different segmenters are not comparable."""

UNSPACED_LANGUAGES = frozenset(
    [
        "ja",
        "jpn",
        "zh",
        "zho",
        "cmn",
        "lzh",
        "yue",
        "wuu",
        "gan",
        "hak",
        "th",
        "tha",
        "lo",
        "lao",
        "km",
        "khm",
        "my",
        "mya",
        "shn",
        "mnw",
        "bo",
        "bod",
        "dz",
        "dzo",
    ]
)
"""ISO 639 codes of languages written in such scripts; their technical prose is often half Latin."""

UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"


@lru_cache(maxsize=1)
def _patterns() -> tuple[regex.Pattern[str], regex.Pattern[str]]:
    import regex

    return regex.compile(r"[\p{L}\p{M}\p{N}]+"), regex.compile(f"[{UNSPACED}]")


def runs(text: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Words of a text: their (words,) int64 starts and ends in characters, and how many characters the runs had
    that are left out because they hold a character of an unspaced script."""
    word, unspaced = _patterns()
    spans, skipped = [], 0
    for match in word.finditer(text):
        start, end = match.span()
        if not text.isascii() and unspaced.search(text, start, end):
            skipped += end - start
        else:
            spans.append((start, end))
    table = np.asarray(spans, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1], skipped


def has_words(language: str, word_chars: int, skipped_chars: int) -> bool:
    """Whether runs tell the words of a language: not by its code (a region or script suffix is ignored), nor where
    at least half of the characters in runs were left out."""
    code = language.replace("_", "-").split("-")[0].lower()
    return code not in UNSPACED_LANGUAGES and word_chars > skipped_chars
