"""Words of a text exactly as spaCy's rule-based tokenizers cut them, through a memo per whitespace-free chunk.

spaCy's tokenizer treats each whitespace-free chunk alone, but for special cases (":-(", "don't", Russian "и т.д.")
that are matched over neighbouring tokens. So chunks are looked up in a memo (65 times faster than spaCy once warm),
and two chunks whose touching tokens could be part of one special case are segmented together. The memo never decides
an output: a chunk's words are a function of the chunk.

A document becomes an array of chunk rows; word features (length, hash, flags) are gathered from columns by row, so
that every rule works on arrays. Row 0 is a whitespace token: spaCy makes one of every gap that is not one space.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gristmill.curate.segmenter import ALPHA as ALPHA
from gristmill.curate.segmenter import (
    CHUNK_COLUMNS,
    LONG,
    WORD_COLUMNS,
    Column,
    Ints,
    Segmenter,
    Segments,
)
from gristmill.curate.segmenter import NONSYMBOL as NONSYMBOL
from gristmill.curate.segmenter import STOP_SHIFT as STOP_SHIFT
from gristmill.curate.segmenter import STOP_WORDS as STOP_WORDS
from gristmill.curate.segmenter import word_hash as word_hash
from gristmill.curate.tokenizers import tokenizer_of

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_ROWS = 1_000_000  # memo rows of one process, all languages: about 300 MB; then everything is forgotten
MAX_CHARS = 64_000_000  # characters held by those rows
JOINED = 256  # longest pair or run of chunks segmented together
EXACT = 2_000  # longest chunk given to spaCy, whose affix loop is quadratic: 0.25 s for 2,000 brackets
LONG_BUDGET = 50_000  # characters per document in chunks over LONG that spaCy gets; what exceeds is one word each
ZONE = 4_096  # chunks segmented in one call

Words64 = npt.NDArray[np.uint64]

_RUNS = re.compile(r"\S+|\s+")


@dataclass(frozen=True)
class Words:
    """One document's words as columns, all of length n: characters, content hash, BASE**length, flags."""

    length: Ints
    hash: Words64
    power: Words64
    flags: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.length)


@dataclass
class Lines:
    """Segmented lines: chunk rows of all lines in one array; line i holds rows[starts[i]:starts[i + 1] - 1].

    Each line ends with row 0, which keeps special cases from reaching over a line end. `counts` are the lines'
    whitespace-separated words, as `str.split` counts them.
    """

    rows: Ints
    starts: Ints
    counts: list[int]


def split_line(line: str) -> tuple[list[str], int]:
    """A line's chunks, with "\\n" standing for each whitespace token between or after them; and the chunk count."""
    chunks = line.split()
    n = len(chunks)
    if n and " ".join(chunks) != line:
        # spaCy swallows one space per gap; any other gap is a token, which matters to its sentence rule
        chunks = [run if not run.isspace() else "\n" for run in _RUNS.findall(line) if run != " "]
    return chunks, n


class Lexicon:
    """Chunks of one spaCy pipeline and their words. Call `begin` before each document; not thread-safe."""

    def __init__(self, code: str) -> None:
        self.code = code
        self._segmenter = Segmenter(code)
        self._pairs = self._segmenter.pairs
        self.clear()

    def clear(self) -> None:
        """Forget everything. Changes no result."""
        self._segmenter.forget()
        self._memo: dict[str, int] = {"\n": 0}
        self._long: dict[str, int] = {}
        self._budget = LONG_BUDGET
        self._edges: dict[int, tuple[frozenset[str], frozenset[str]]] = {}
        self._strings: list[str] = []
        self._columns = {name: Column(dtype) for name, dtype in {**CHUNK_COLUMNS, **WORD_COLUMNS}.items()}
        self.chars = 0
        for name in CHUNK_COLUMNS:  # row 0: no words; to the sentence rule it is no punctuation
            self._columns[name].extend([1 if name == "breaks1" else 0])
        self.rows = 1

    def begin(self) -> None:
        """Start a document: long chunks of the one before are forgotten and the budget for them is renewed."""
        self._long.clear()
        self._budget = LONG_BUDGET

    def lines(self, lines: Iterable[str]) -> Lines:
        """Segment lines (without their line ends; only their strip()ped content counts but for inner gaps)."""
        flat: list[str] = []
        counts: list[int] = []
        stops = [0]
        for line in lines:
            chunks, n = split_line(line)
            flat += chunks
            flat.append("\n")
            counts.append(n)
            stops.append(len(flat))
        starts = np.array(stops, np.int64)
        rows = self._lookup(flat)
        hot = self._columns["hot"].take(rows)
        near = np.flatnonzero((hot[:-1] & 2).astype(bool) & (hot[1:] & 1).astype(bool)).tolist()
        joints = [i for i in near if self._may_join(int(rows[i]), int(rows[i + 1]))]
        if joints:
            flat, gone = _joined(flat, joints)
            rows = self._lookup(flat)
            starts -= np.searchsorted(np.array(gone, np.int64), starts)
        return Lines(rows, starts, counts)

    def gather(self, rows: Ints) -> Words:
        """Word features of a sequence of chunk rows."""
        at = self._positions(rows)
        take = {name: self._columns[name].take(at) for name in WORD_COLUMNS}
        return Words(take["length"], take["hash"], take["power"], take["flags"])

    def word_count(self, rows: Ints) -> int:
        return int(self._columns["count"].take(rows).sum())

    def sentence_columns(self, rows: Ints) -> list[npt.NDArray[Any]]:
        """(breaks0, breaks1, state0, state1) per chunk, for `kernels.sentences`."""
        return [self._columns[name].take(rows) for name in ("breaks0", "breaks1", "state0", "state1")]

    def words(self, text: str) -> list[str]:
        """The words themselves: spaCy's tokens, stripped, without the empty ones."""
        self.begin()
        strings = self._strings
        return [strings[i] for i in self._positions(self.lines(text.splitlines()).rows).tolist()]

    def _positions(self, rows: Ints) -> Ints:
        count = self._columns["count"].take(rows)
        ends = np.cumsum(count)
        total = int(ends[-1]) if len(ends) else 0
        first = self._columns["start"].take(rows) - (ends - count)
        positions: Ints = np.repeat(first, count) + np.arange(total)
        return positions

    def _lookup(self, flat: list[str]) -> Ints:
        found: list[int | None] = list(map(self._memo.get, flat))
        if None in found:
            missing = [i for i, row in enumerate(found) if row is None]
            self._learn(dict.fromkeys(flat[i] for i in missing))
            memo, long = self._memo, self._long
            for i in missing:
                chunk = flat[i]
                found[i] = memo[chunk] if chunk in memo else long[chunk]
        return np.array(found, np.int64)

    def _may_join(self, left: int, right: int) -> bool:
        """Whether some token at the end of one chunk and some token at the start of the next stand side by side in a
        special case."""
        lasts, firsts = self._edges[left][1], self._edges[right][0]
        return any((a, b) in self._pairs for a in lasts for b in firsts)

    def _learn(self, chunks: Iterable[str]) -> None:
        cut: list[str] = []
        whole: list[str] = []
        for chunk in chunks:
            if len(chunk) <= LONG:
                cut.append(chunk)
            elif chunk not in self._long:
                fits = len(chunk) <= min(EXACT, self._budget)
                self._budget -= len(chunk) if fits else 0
                (cut if fits else whole).append(chunk)
        for at in range(0, len(cut), ZONE):
            part = cut[at : at + ZONE]
            self._add(part, self._segmenter.segment(part))
        if whole:
            self._add(whole, self._segmenter.whole(whole))

    def _add(self, chunks: list[str], found: Segments) -> None:
        for row, chunk in enumerate(chunks, self.rows):
            (self._memo if len(chunk) <= LONG else self._long)[chunk] = row
            self.chars += len(chunk)
        for i, edges in found.edges.items():
            self._edges[self.rows + i] = edges
        count = found.chunks["count"]
        self._columns["start"].extend(len(self._strings) + np.cumsum(count) - count)
        self._strings += found.strings
        for name, values in {**found.chunks, **found.words}.items():
            self._columns[name].extend(values)
        self.rows += len(chunks)


def _joined(flat: list[str], joints: list[int]) -> tuple[list[str], list[int]]:
    """Chunks with those at i and i + 1 made one, for each i of `joints` (ascending); and the positions that went."""
    gone: list[int] = []
    out: list[str] = []
    at = 0
    for i in joints:
        out += flat[at : i + 1]
        at = i + 1
        if len(out[-1]) + len(flat[at]) < JOINED:  # a long run (":( ( ( ( (") costs its square
            out[-1] += " " + flat[at]
            gone.append(at)
            at += 1
    return out + flat[at:], gone


class Lexicons(threading.local):
    """The lexicons of one thread, by spaCy pipeline, within one bound on their total size."""

    def __init__(self) -> None:
        self._by_code: dict[str, Lexicon] = {}

    def get(self, language: str | None) -> Lexicon | None:
        """The lexicon for a fastText label, ready for a new document; None where words need a segmenter."""
        code = tokenizer_of(language)
        if code is None:
            return None
        lexicons = self._by_code.values()
        if sum(x.rows for x in lexicons) >= MAX_ROWS or sum(x.chars for x in lexicons) >= MAX_CHARS:
            for lexicon in lexicons:
                lexicon.clear()
        if code not in self._by_code:
            self._by_code[code] = Lexicon(code)
        lexicon = self._by_code[code]
        lexicon.begin()
        return lexicon


LEXICONS = Lexicons()


def words(text: str, language: str = "en") -> list[str] | None:
    """Words of a text as datatrove's spaCy tokenizers give them; None where the language needs a segmenter."""
    lexicon = LEXICONS.get(language)
    return None if lexicon is None else lexicon.words(text)
