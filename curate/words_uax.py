"""Words by Unicode's default word boundaries (UAX #29), through a memo per whitespace-free chunk; DCLM's words.

No boundary rule reaches over white space (but U+202F, which joins words: texts with it are cut so that it stays inside
its chunk), so a chunk's words are a function of the chunk. Words that start with neither letter nor digit are left out,
as DCLM's `split_words(…, model="uniseg", ignore_punctuation=True)` does.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gristmill.curate.chunks import chunk_table
from gristmill.curate.kernels import stretches
from gristmill.curate.segmenter import LONG, STOP_WORDS, Column, Ints, word_columns
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
        self._table = chunk_table()
        self._joined: dict[str, int] = {}  # chunks of texts with a joiner
        self._columns = {name: Column(dtype) for name, dtype in _COLUMNS.items()}
        for column in self._columns.values():
            column.extend([0])  # row 0: white space
        self._hash = Column(np.uint64)
        self._length = Column(np.int64)
        self._chars = 0

    def tokens(self, text: str) -> Tokens:
        """Words of a text, both kinds."""
        if self._columns["start"].size >= MAX_ROWS or self._chars >= MAX_CHARS:
            self.clear()
        rows = self._rows(text)
        chars, flags = self._columns["chars"].take(rows), self._columns["flags"].take(rows)
        if _JOINER in text:
            rows = self._rows_joined(_JOINED_CHUNKS.findall(text))
        at = stretches(self._columns["start"].take(rows), self._columns["count"].take(rows))
        return Tokens(chars, flags, self._hash.take(at), self._length.take(at))

    def words(self, text: str) -> list[str]:
        """The UAX #29 words themselves."""
        return [word for chunk in _JOINED_CHUNKS.findall(text) for word in self._cut(chunk)]

    def _rows(self, text: str) -> Ints:
        """Rows of the whitespace-separated words."""
        scan = self._table.scan(text.split("\n"))
        rows = scan.rows
        if scan.missing:
            new = self._learn(dict.fromkeys(scan.missing.values()))
            short = [chunk for chunk in new if len(chunk) <= LONG]  # others seldom come back
            self._table.add(short, [new[chunk] for chunk in short])
            rows[list(scan.missing)] = [new[chunk] for chunk in scan.missing.values()]
        return rows[rows != 0]

    def _rows_joined(self, chunks: list[str]) -> Ints:
        """Rows of chunks in which joiners may be."""
        new = self._learn(dict.fromkeys(chunk for chunk in chunks if chunk not in self._joined))
        known = self._joined
        rows = np.array([known[chunk] if chunk in known else new[chunk] for chunk in chunks], np.int64)
        known.update((chunk, row) for chunk, row in new.items() if len(chunk) <= LONG)
        return rows

    def _cut(self, chunk: str) -> list[str]:
        if chunk.isascii() and chunk.isalnum():  # letters and digits join: most chunks are one word
            return [chunk]
        return [piece for piece in self._boundary.split(chunk) if piece and piece[0].isalnum()]

    def _learn(self, chunks: Iterable[str]) -> dict[str, int]:
        """Chunks and their new rows."""
        chunks = list(chunks)
        cut = [self._cut(chunk) for chunk in chunks]
        words = word_columns([word for pieces in cut for word in pieces])
        count = np.fromiter(map(len, cut), np.int64, len(cut))
        row = self._columns["start"].size
        chars = np.fromiter(map(len, chunks), np.int64, len(chunks))
        columns: dict[str, Any] = {
            "start": self._hash.size + np.cumsum(count) - count,
            "count": count,
            "chars": chars,
            "flags": [
                (ALPHA if chunk.isalpha() or any(map(str.isalpha, chunk)) else 0)
                | (STOP if chunk.lower() in _STOP else 0)
                for chunk in chunks
            ],
        }
        for name, values in columns.items():
            self._columns[name].extend(values)
        self._hash.extend(words["hash"])
        self._length.extend(words["length"])
        self._chars += int(chars.sum())
        return dict(zip(chunks, range(row, row + len(chunks)), strict=True))


UAX = UaxLexicon()
