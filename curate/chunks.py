"""Which row of a memo each whitespace-free chunk of some lines has: a compiled scan, and a twin of equal results.

Cutting a text into Python strings to look each of them up takes five times as long as the compiled scan of its bytes.
Where a chunk's place in the table is follows from a number of the process's own, so that no page can be made to
crowd the table; no result does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gristmill.curate.segmenter import Column

if TYPE_CHECKING:
    from collections.abc import Callable

Ints = npt.NDArray[np.int64]

_RUNS = re.compile(r"\S+|\s+")
_SEED = np.uint64(hash("gristmill") & 0xFFFF_FFFF_FFFF_FFFF)  # Python's own salt of strings


@dataclass
class Scan:
    """Lines as rows: row 0 for each whitespace token between or after chunks, and at each line's end.

    Line i holds rows[starts[i]:starts[i + 1] - 1]; `counts` (lines,) are its whitespace-separated words, as `str.split`
    counts them. `missing` maps positions among the rows, where -1 stands, to chunks that have no row yet.
    """

    rows: Ints
    starts: Ints
    counts: Ints
    missing: dict[int, str]


class Chunks:
    """The table. Not thread-safe."""

    def __init__(self) -> None:
        self._find, self._insert = kernel()
        self._arena, self._rows = Column(np.uint8), Column(np.int64)
        self._allot(1 << 12)

    def _allot(self, slots: int) -> None:
        """A table of so many slots, a power of two, with the chunks that are known."""
        self._keys = np.zeros(slots, np.uint64)
        self._places = np.zeros((slots, 2), np.int64)
        if self._rows.size:
            self._enter(0, self._rows.all())

    def _enter(self, begin: int, rows: Ints) -> None:
        arena = self._arena.all()
        self._insert(arena, begin, len(arena), rows, self._keys, self._places, _SEED)

    def add(self, chunks: Sequence[str], rows: Sequence[int]) -> None:
        """Give rows to new chunks, which hold no white space."""
        begin = self._arena.size
        self._arena.extend(_bytes(chunks))
        self._rows.extend(rows)
        if 2 * self._rows.size > len(self._keys):
            self._allot(1 << (4 * self._rows.size).bit_length())
        else:
            self._enter(begin, np.array(rows, np.int64))

    def scan(self, lines: Sequence[str]) -> Scan:
        """Look up the chunks of lines, in which no line feed is. Lone surrogates count as `?`."""
        data = _bytes(lines)
        n = len(data)
        rows, missing = np.empty(n, np.int64), np.empty((n // 2 + 1, 3), np.int64)  # at most; untouched it takes none
        starts, counts = np.zeros(len(lines) + 1, np.int64), np.empty(len(lines), np.int64)
        found = self._find(data, self._keys, self._places, self._arena.all(), _SEED, rows, starts, counts, missing)
        new: dict[int, str] = {}
        if found:
            view = data.data
            new = {at: str(view[a:b], "utf-8") for at, a, b in missing[:found].tolist()}
        return Scan(rows[: starts[-1]], starts, counts, new)


class ChunksTwin:
    """`Chunks` without numba."""

    def __init__(self) -> None:
        self._memo: dict[str, int] = {"\n": 0}

    def add(self, chunks: Sequence[str], rows: Sequence[int]) -> None:
        self._memo.update(zip(chunks, rows, strict=True))

    def scan(self, lines: Sequence[str]) -> Scan:
        flat: list[str] = []
        counts: list[int] = []
        starts = [0]
        for line in lines:
            chunks, n = split_line(line.encode("utf-8", "replace").decode())
            flat += chunks
            flat.append("\n")
            counts.append(n)
            starts.append(len(flat))
        rows = [self._memo.get(chunk, -1) for chunk in flat]
        missing = {i: flat[i] for i, row in enumerate(rows) if row < 0}
        return Scan(np.array(rows, np.int64), np.array(starts, np.int64), np.array(counts, np.int64), missing)


def split_line(line: str) -> tuple[list[str], int]:
    """A line's chunks, with "\\n" standing for each whitespace token between or after them; and the chunk count."""
    chunks = line.split()
    n = len(chunks)
    if n and " ".join(chunks) != line:
        # spaCy swallows one space per gap; any other gap is a token, which matters to its sentence rule
        chunks = [run if not run.isspace() else "\n" for run in _RUNS.findall(line) if run != " "]
    return chunks, n


def _bytes(lines: Iterable[str]) -> npt.NDArray[np.uint8]:
    """The lines as UTF-8, a line feed after each."""
    text = "\n".join([*lines, ""])
    return np.frombuffer(bytearray(text, "utf-8", "replace"), np.uint8)  # numba takes only what can be written to


@cache
def kernel() -> list[Callable[..., Any]]:
    """The compiled loops: find and insert. Raises ImportError where numba is missing."""
    from gristmill.curate import kernels_chunks

    return kernels_chunks.compiled()


def chunk_table() -> Chunks | ChunksTwin:
    """An empty table, compiled where numba is there."""
    try:
        return Chunks()
    except ImportError:
        return ChunksTwin()
