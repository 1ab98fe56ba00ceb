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
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gristmill.curate.kernels import BASE, PRIME
from gristmill.curate.tokenizers import tokenizer_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
"""Gopher's stop words (Rae et al. 2021, appendix A1.1), matched case-sensitively as datatrove does."""

MAX_ROWS = 1_000_000  # memo rows of one process, all languages: about 250 MB; then everything is forgotten
MAX_CHARS = 64_000_000  # characters held by those rows
LONG = 64  # longer chunks (URLs, base64, unspaced scripts) seldom come back and are not memoised
JOINED = 256  # longest pair or run of chunks segmented together
EXACT = 2_000  # longest chunk given to spaCy, whose affix loop is quadratic: 0.25 s for 2,000 brackets
LONG_BUDGET = 50_000  # characters per document in chunks over LONG that spaCy gets; what exceeds is one word each
ZONE = 4_096  # chunks segmented per spaCy memory zone, which frees the lexemes they made

NONSYMBOL, ALPHA, STOP_SHIFT = 1, 2, 2
"""Bits of a word's flags: has a character that is no punctuation; has a letter; from bit 2 on, index of its stop word
plus one."""

Ints = npt.NDArray[np.int64]
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


class _Column:
    """A numpy array that grows by doubling."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._data = np.zeros(1024, dtype)
        self.size = 0

    def extend(self, values: Sequence[int]) -> None:
        end = self.size + len(values)
        if end > len(self._data):
            grown = np.zeros(max(end, 2 * len(self._data)), self._data.dtype)
            grown[: self.size] = self._data[: self.size]
            self._data = grown
        self._data[self.size : end] = values
        self.size = end

    def take(self, rows: Ints) -> npt.NDArray[Any]:
        return self._data[rows]


@dataclass
class _Rows:
    """New rows, before they join the columns."""

    start: list[int] = field(default_factory=list)
    count: list[int] = field(default_factory=list)
    hot: list[int] = field(default_factory=list)
    breaks0: list[int] = field(default_factory=list)  # sentence breaks in a chunk entered without a pending full stop
    breaks1: list[int] = field(default_factory=list)  # ... and with one
    state0: list[int] = field(default_factory=list)  # 1 when the chunk leaves a full stop pending
    state1: list[int] = field(default_factory=list)
    length: list[int] = field(default_factory=list)
    hash: list[int] = field(default_factory=list)
    power: list[int] = field(default_factory=list)
    flags: list[int] = field(default_factory=list)


_CHUNK_COLUMNS: dict[str, npt.DTypeLike] = {
    "start": np.int64,
    "count": np.int64,
    "hot": np.uint8,
    "breaks0": np.int32,
    "breaks1": np.int32,
    "state0": np.uint8,
    "state1": np.uint8,
}
_WORD_COLUMNS: dict[str, npt.DTypeLike] = {
    "length": np.int64,
    "hash": np.uint64,
    "power": np.uint64,
    "flags": np.uint8,
}


class Lexicon:
    """Chunks of one spaCy pipeline and their words. Call `begin` before each document; not thread-safe."""

    def __init__(self, code: str) -> None:
        import spacy
        from datatrove.utils.text import PUNCTUATION_SET
        from spacy.pipeline.sentencizer import Sentencizer
        from spacy.symbols import IS_PUNCT, ORTH
        from spacy.tokenizer import Tokenizer

        self.code = code
        self._nlp = spacy.blank(code)
        # spaCy cannot forget the lexeme whose key is 1 when a memory zone ends and fails at its next use (datatrove
        # then deletes the word from the text, from the second document on); made outside any zone, it stays
        self._nlp.vocab["IS_ALPHA"]
        tok: Any = self._nlp.tokenizer
        self._tokenizer = tok
        # the same tokenizer without special cases, to see which tokens a special case is matched on
        self._bare = Tokenizer(
            self._nlp.vocab,
            rules={},
            prefix_search=tok.prefix_search,
            suffix_search=tok.suffix_search,
            infix_finditer=tok.infix_finditer,
            token_match=tok.token_match,
            url_match=tok.url_match,
        )
        self._special = frozenset(part.get(ORTH) for parts in tok.rules.values() for part in parts)
        self._pairs: set[tuple[str, str]] = set()
        for special in tok.rules:
            tokens = [t.text for t in self._bare(special) if not t.is_space]
            self._pairs.update(pairwise(tokens))
        self._firsts = {second for _, second in self._pairs}
        self._lasts = {first for first, _ in self._pairs}
        # of the twenty attributes of a new lexeme only this one is read; the others take half of a miss
        vocab: Any = self._nlp.vocab
        vocab.lex_attr_getters = {IS_PUNCT: vocab.lex_attr_getters[IS_PUNCT]}
        self._punctuation = PUNCTUATION_SET
        self._terminals = frozenset(Sentencizer.default_punct_chars)
        self._stop = {word: i + 1 << STOP_SHIFT for i, word in enumerate(STOP_WORDS)}
        self.clear()

    def clear(self) -> None:
        """Forget everything. Changes no result."""
        self._memo: dict[str, int] = {"\n": 0}
        self._long: dict[str, int] = {}
        self._budget = LONG_BUDGET
        self._edges: dict[int, tuple[set[str], set[str]]] = {}
        self._strings: list[str] = []
        self._columns = {name: _Column(dtype) for name, dtype in {**_CHUNK_COLUMNS, **_WORD_COLUMNS}.items()}
        self.rows = 0
        self.chars = 0
        new = _Rows()
        self._add(new, [], [0])
        self._flush(new)

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
        take = {name: self._columns[name].take(at) for name in _WORD_COLUMNS}
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
        found = list(map(self._memo.get, flat))
        if None in found:
            self._learn(dict.fromkeys(chunk for chunk, row in zip(flat, found, strict=True) if row is None))
            memo, long = self._memo, self._long
            found = [memo[c] if c in memo else long[c] for c in flat]
        return np.array(found, np.int64)

    def _may_join(self, left: int, right: int) -> bool:
        """Whether some token at the end of one chunk and some token at the start of the next stand side by side in a
        special case."""
        lasts, firsts = self._edges[left][1], self._edges[right][0]
        return any((a, b) in self._pairs for a in lasts for b in firsts)

    def _learn(self, chunks: Iterable[str]) -> None:
        todo = [chunk for chunk in chunks if chunk not in self._long]
        for at in range(0, len(todo), ZONE):
            new = _Rows()
            with self._nlp.memory_zone():  # frees the lexemes at the end: the vocabulary would grow without bound
                for chunk in todo[at : at + ZONE]:
                    row = self.rows + len(new.start)
                    self._segment(new, row, chunk)
                    if len(chunk) <= LONG:
                        self._memo[chunk] = row
                    else:
                        self._long[chunk] = row
            self._flush(new)

    def _segment(self, new: _Rows, row: int, chunk: str) -> None:
        tokens: list[str] = []
        symbols: list[int] = []
        if len(chunk) > LONG and len(chunk) > min(EXACT, self._budget):
            self._add(new, [chunk], [0], 0, chunk)
            return
        if len(chunk) > LONG:
            self._budget -= len(chunk)
        for token in self._tokenizer(_utf8(chunk)):
            text = token.text
            symbols.append(2 if text in self._terminals else int(token.is_punct))
            stripped = text.strip()
            if stripped:
                tokens.append(stripped)
        hot = 0
        if tokens:
            firsts, lasts = {tokens[0]}, {tokens[-1]}
            if not self._special.isdisjoint(tokens):  # then the tokens that special cases are matched on may differ
                firsts.add(self._bare(_utf8(chunk[:LONG]))[0].text)
                lasts.add(self._bare(_utf8(chunk[-LONG:]))[-1].text)
            firsts &= self._firsts
            lasts &= self._lasts
            hot = (1 if firsts else 0) | (2 if lasts else 0)
            if hot:
                self._edges[row] = (firsts, lasts)
        self._add(new, tokens, symbols, hot, chunk)

    def _add(self, new: _Rows, tokens: list[str], symbols: list[int], hot: int = 0, chunk: str = "") -> None:
        self.chars += len(chunk)
        new.start.append(len(self._strings))
        new.count.append(len(tokens))
        new.hot.append(hot)
        for state, breaks, after in ((0, new.breaks0, new.state0), (1, new.breaks1, new.state1)):
            n, pending = 0, state
            for symbol in symbols:  # spaCy's Sentencizer: full stops, then anything that is no punctuation
                if symbol == 2:
                    pending = 1
                elif symbol == 0 and pending:
                    n, pending = n + 1, 0
            breaks.append(n)
            after.append(pending)
        for word in tokens:
            self._strings.append(chunk if word == chunk else word)  # one string object, not two
            new.length.append(len(word))
            new.hash.append(word_hash(word))
            new.power.append(pow(BASE, len(word), PRIME))
            nonsymbol = not self._punctuation.issuperset(word)
            alpha = any(map(str.isalpha, word))
            new.flags.append((NONSYMBOL if nonsymbol else 0) | (ALPHA if alpha else 0) | self._stop.get(word, 0))

    def _flush(self, new: _Rows) -> None:
        for name, column in self._columns.items():
            column.extend(getattr(new, name))
        self.rows += len(new.start)


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


def _utf8(text: str) -> str:
    """Text that spaCy can keep as UTF-8: lone surrogates become "?"."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def word_hash(word: str) -> int:
    """Polynomial hash of a word's characters modulo 2**61 - 1; of a concatenation it follows from the parts'."""
    h = 0
    for c in word:
        h = (h * BASE + ord(c) + 1) % PRIME
    return h


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
