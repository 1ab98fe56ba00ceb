"""Words of a text exactly as spaCy's rule-based tokenizers cut them, through a memo per whitespace-free chunk.

spaCy's tokenizer treats each whitespace-free chunk alone, but for special cases (":-(", "don't", Russian "и т.д.")
that are matched over neighbouring tokens. So chunks are looked up in a memo (65 times faster than spaCy once warm),
and two chunks whose touching tokens could be part of one special case are segmented together. The memo never decides
an output: a chunk's words are a function of the chunk.

A document becomes an array of chunk rows; word features (length, hash, flags) are gathered from columns by row, so
that every rule works on arrays. Row 0 is a whitespace token: spaCy makes one of every gap that is not one space.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gristmill.curate.chunks import Ints, Scan, chunk_table
from gristmill.curate.kernels import kernels
from gristmill.curate.segmenter import ALPHA as ALPHA
from gristmill.curate.segmenter import (
    CHUNK_COLUMNS,
    LONG,
    WORD_COLUMNS,
    Column,
    Edges,
    Segmenter,
    Segments,
)
from gristmill.curate.segmenter import NONSYMBOL as NONSYMBOL
from gristmill.curate.segmenter import STOP_SHIFT as STOP_SHIFT
from gristmill.curate.segmenter import STOP_WORDS as STOP_WORDS
from gristmill.curate.segmenter import word_hash as word_hash
from gristmill.curate.tokenizers import tokenizer_of

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_ROWS = 1_000_000  # memo rows of one process, all languages: about 300 MB; then everything is forgotten
MAX_CHARS = 64_000_000  # characters held by those rows
JOINED = 256  # longest pair or run of chunks segmented together
EXACT = 2_000  # longest chunk given to spaCy, whose affix loop is quadratic: 0.25 s for 2,000 brackets
LONG_BUDGET = 50_000  # characters per document in chunks over LONG that spaCy gets; what exceeds is one word each
ZONE = 4_096  # chunks segmented in one call

Words64 = npt.NDArray[np.uint64]


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
    counts: Ints


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
        self._table = chunk_table()
        self._joined: dict[str, int] = {}  # chunks with a space inside
        self._chunks = [""]  # by row
        self._long: dict[str, int] = {}
        self._budget = LONG_BUDGET
        self._edges: Edges = {}
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

    def scan(self, lines: Sequence[str]) -> Scan:
        """Look up lines (without their line ends), learning nothing yet; for `learn` and then `finish`."""
        return self._table.scan(lines)

    def learn(self, scans: Sequence[Scan]) -> None:
        """Segment what is missing in scans of any number of documents, but for long chunks."""
        new = list(dict.fromkeys(chunk for scan in scans for chunk in scan.missing.values() if len(chunk) <= LONG))
        rows = dict(zip(new, range(self.rows, self.rows + len(new)), strict=True))
        self._segment(new)
        for scan in scans:
            scan.rows[list(scan.missing)] = [rows.get(chunk, -1) for chunk in scan.missing.values()]
            scan.missing = {at: chunk for at, chunk in scan.missing.items() if len(chunk) > LONG}

    def finish(self, scan: Scan) -> Lines:
        """Lines of a scan whose document has begun and whose missing chunks but the long ones are learned."""
        rows, starts = scan.rows, scan.starts
        if scan.missing:
            rows[list(scan.missing)] = self._rows_of(list(scan.missing.values()))
        hot = self._columns["hot"].take(rows)
        near = np.flatnonzero((hot[:-1] & 2).astype(bool) & (hot[1:] & 1).astype(bool)).tolist()
        joints = [i for i in near if self._may_join(int(rows[i]), int(rows[i + 1]))]
        if joints:
            runs, gone = self._runs(rows, joints)
            rows[list(runs)] = self._rows_of(list(runs.values()))
            rows = np.delete(rows, gone)
            starts = starts - np.searchsorted(np.array(gone, np.int64), starts)
        return Lines(rows, starts, scan.counts)

    def lines(self, lines: Sequence[str]) -> Lines:
        """Segment lines (without their line ends; only their strip()ped content counts but for inner gaps)."""
        scan = self.scan(lines)
        self.learn([scan])
        return self.finish(scan)

    def gather(self, rows: Ints) -> Words:
        """Word features of a sequence of chunk rows."""
        start, count = self._columns["start"].all(), self._columns["count"].all()
        return Words(*kernels().gather(rows, start, count, *(self._columns[name].all() for name in WORD_COLUMNS)))

    def word_count(self, rows: Ints) -> int:
        return int(self._columns["count"].take(rows).sum())

    def sentences(self, rows: Ints, ends: Ints) -> int:
        """Sentences of lines of chunk rows; `ends` is where each line ends among them."""
        breaks0, breaks1, state0, state1 = (
            self._columns[name].all() for name in ("breaks0", "breaks1", "state0", "state1")
        )
        return kernels().sentences(rows, breaks0, breaks1, state0, state1, ends)

    def words(self, text: str) -> list[str]:
        """The words themselves: spaCy's tokens, stripped, without the empty ones."""
        self.begin()
        rows = self.lines(text.splitlines()).rows
        start, count = (self._columns[name].take(rows).tolist() for name in ("start", "count"))
        return [word for a, n in zip(start, count, strict=True) for word in self._strings[a : a + n]]

    def _may_join(self, left: int, right: int) -> bool:
        """Whether some token at the end of one chunk and some token at the start of the next stand side by side in a
        special case."""
        lasts = self._edges[left][1] if left in self._edges else self._word(left, -1)
        firsts = self._edges[right][0] if right in self._edges else self._word(right, 0)
        return any((a, b) in self._pairs for a in lasts for b in firsts)

    def _word(self, row: int, at: int) -> tuple[str]:
        """A chunk's first word (0) or its last (-1)."""
        start = self._columns["start"].all()[row]
        return (self._strings[start + (at and self._columns["count"].all()[row] - 1)],)

    def _runs(self, rows: Ints, joints: list[int]) -> tuple[dict[int, str], list[int]]:
        """Chunks with those at i and i + 1 made one, for each i of `joints` (ascending): what begins where; and the
        positions that went."""
        runs: dict[int, str] = {}
        gone: list[int] = []
        head = -1
        for i in joints:
            if not gone or gone[-1] != i:
                head = i
            run, following = runs.get(head) or self._chunks[rows[i]], self._chunks[rows[i + 1]]
            if len(run) + len(following) < JOINED:  # a long run (":( ( ( ( (") costs its square
                runs[head] = f"{run} {following}"
                gone.append(i + 1)
        return runs, gone

    def _rows_of(self, chunks: list[str]) -> list[int]:
        """Rows of long chunks and of joined ones."""
        cut: list[str] = []
        whole: list[str] = []
        for chunk in dict.fromkeys(chunks):
            if len(chunk) > LONG and chunk not in self._long:
                fits = len(chunk) <= min(EXACT, self._budget)
                self._budget -= len(chunk) if fits else 0
                (cut if fits else whole).append(chunk)
            elif len(chunk) <= LONG and chunk not in self._joined:
                cut.append(chunk)
        self._segment(cut)
        if whole:
            self._add(whole, self._segmenter.whole(whole))
        return [(self._joined if len(chunk) <= LONG else self._long)[chunk] for chunk in chunks]

    def _segment(self, chunks: list[str]) -> None:
        for at in range(0, len(chunks), ZONE):
            part = chunks[at : at + ZONE]
            self._add(part, self._segmenter.segment(part))

    def _add(self, chunks: list[str], found: Segments) -> None:
        short: dict[str, int] = {}
        for row, chunk in enumerate(chunks, self.rows):
            (self._long if len(chunk) > LONG else self._joined if " " in chunk else short)[chunk] = row
            self.chars += len(chunk)
        if short:
            self._table.add(list(short), list(short.values()))
        self._chunks += chunks
        for i, edges in found.edges.items():
            self._edges[self.rows + i] = edges
        count = found.chunks["count"]
        self._columns["start"].extend(len(self._strings) + np.cumsum(count) - count)
        self._strings += found.strings
        for name, values in {**found.chunks, **found.words}.items():
            self._columns[name].extend(values)
        self.rows += len(chunks)


class Lexicons(threading.local):
    """The lexicons of one thread, by spaCy pipeline, within one bound on their total size."""

    def __init__(self) -> None:
        self._by_code: dict[str, Lexicon] = {}

    def trim(self) -> None:
        """Forget everything where the bound is reached. Not between a scan and its `finish`."""
        lexicons = self._by_code.values()
        if sum(x.rows for x in lexicons) >= MAX_ROWS or sum(x.chars for x in lexicons) >= MAX_CHARS:
            for lexicon in lexicons:
                lexicon.clear()

    def of(self, language: str | None) -> Lexicon | None:
        """The lexicon for a fastText label; None where words need a segmenter."""
        code = tokenizer_of(language)
        if code is None:
            return None
        if code not in self._by_code:
            self._by_code[code] = Lexicon(code)
        return self._by_code[code]

    def get(self, language: str | None) -> Lexicon | None:
        """The same, within the bound and ready for a new document."""
        self.trim()
        lexicon = self.of(language)
        if lexicon is not None:
            lexicon.begin()
        return lexicon


LEXICONS = Lexicons()


def words(text: str, language: str = "en") -> list[str] | None:
    """Words of a text as datatrove's spaCy tokenizers give them; None where the language needs a segmenter."""
    lexicon = LEXICONS.get(language)
    return None if lexicon is None else lexicon.words(text)
