"""Words by Unicode's default word boundaries (UAX #29), through a memo per whitespace-free chunk; DCLM's words.

No boundary rule reaches over white space (but U+202F, which joins words: texts with it are cut so that it stays inside
its chunk), so a chunk's words are a function of the chunk. Words that start with neither letter nor digit are left out,
as DCLM's `split_words(…, model="uniseg", ignore_punctuation=True)` does.
"""

from __future__ import annotations

import re
import threading
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gristmill.curate.segmenter import LONG, STOP_WORDS, Column, Ints, word_hash
from gristmill.curate.words import Words64

MAX_ROWS = 500_000  # memo rows of one thread, about 100 MB; then everything is forgotten
MAX_CHARS = 32_000_000

ALPHA, STOP = 1, 2
"""Bits of a chunk's flags: has a letter; is one of Gopher's stop words, lower-cased."""

_JOINER = "\u202f"  # NARROW NO-BREAK SPACE: white space to Python, ExtendNumLet to UAX #29
_JOINED_CHUNKS = re.compile(rf"[\S{_JOINER}]+")
_STOP = frozenset(STOP_WORDS)

_COLUMNS: dict[str, npt.DTypeLike] = {"start": np.int64, "count": np.int64, "chars": np.int64, "flags": np.uint8}


class Tokens(NamedTuple):
    """A text's whitespace-separated words as columns (n,), and its UAX #29 words as columns (m,)."""

    chars: Ints
    flags: npt.NDArray[np.uint8]
    hash: Words64
    length: Ints


class UaxLexicon(threading.local):
    """The memo of one thread."""

    def __init__(self) -> None:
        import regex

        self._boundary = regex.compile(r"\b", regex.VERSION1 | regex.WORD)
        self.clear()

    def clear(self) -> None:
        """Forget everything. Changes no result."""
        self._memo: dict[str, int] = {}
        self._columns = {name: Column(dtype) for name, dtype in _COLUMNS.items()}
        self._hash = Column(np.uint64)
        self._length = Column(np.int64)
        self._chars = 0

    def tokens(self, text: str) -> Tokens:
        """Words of a text, both kinds."""
        if self._columns["start"].size >= MAX_ROWS or self._chars >= MAX_CHARS:
            self.clear()
        rows, long = self._rows(text.split())
        chars, flags = self._columns["chars"].take(rows), self._columns["flags"].take(rows)
        if _JOINER in text:
            self._forget(long)
            rows, long = self._rows(_JOINED_CHUNKS.findall(text))
        count = self._columns["count"].take(rows)
        ends = np.cumsum(count)
        total = int(ends[-1]) if len(ends) else 0
        at = np.repeat(self._columns["start"].take(rows) - (ends - count), count) + np.arange(total)
        found = Tokens(chars, flags, self._hash.take(at), self._length.take(at))
        self._forget(long)
        return found

    def words(self, text: str) -> list[str]:
        """The UAX #29 words themselves."""
        return [word for chunk in _JOINED_CHUNKS.findall(text) for word in self._cut(chunk)]

    def _rows(self, chunks: list[str]) -> tuple[Ints, list[str]]:
        """Rows of the chunks, and which of them are too long to remember."""
        found: list[Any] = list(map(self._memo.get, chunks))
        long: list[str] = []
        if None in found:
            new = dict.fromkeys(chunk for chunk, row in zip(chunks, found, strict=True) if row is None)
            long = [chunk for chunk in new if len(chunk) > LONG]  # they seldom come back
            self._learn(list(new))
            memo = self._memo
            found = [memo[chunk] for chunk in chunks]
        return np.array(found, np.int64), long

    def _forget(self, chunks: list[str]) -> None:
        for chunk in chunks:
            self._memo.pop(chunk, None)

    def _cut(self, chunk: str) -> list[str]:
        if chunk.isascii() and chunk.isalnum():  # letters and digits join: most chunks are one word
            return [chunk]
        return [piece for piece in self._boundary.split(chunk) if piece and piece[0].isalnum()]

    def _learn(self, chunks: list[str]) -> None:
        starts, counts, chars, flags = [], [], [], []
        hashes: list[int] = []
        lengths: list[int] = []
        row = self._columns["start"].size
        for chunk in chunks:
            words = self._cut(chunk)
            starts.append(self._hash.size + len(hashes))
            counts.append(len(words))
            chars.append(len(chunk))
            flags.append((ALPHA if any(map(str.isalpha, chunk)) else 0) | (STOP if chunk.lower() in _STOP else 0))
            hashes += map(word_hash, words)
            lengths += map(len, words)
            self._memo[chunk] = row
            row += 1
            self._chars += len(chunk)
        for name, values in (("start", starts), ("count", counts), ("chars", chars), ("flags", flags)):
            self._columns[name].extend(values)
        self._hash.extend(hashes)
        self._length.extend(lengths)


UAX = UaxLexicon()
