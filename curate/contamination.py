"""Benchmark items found in documents by word n-grams: an index over benchmark files, and batches of documents against it.

Words are `\\w+` of the lower-cased, NFKC-normalised text, so that layout, punctuation and quotes don't count. Each field of
an item (its question, its answer) is a segment of its own. The overlap of a document with a segment is the share of the
segment's distinct n-grams that the document holds: a page that quotes a whole question has 1.0, one that shares a phrase
with it little. GPT-3 and its followers take 13 words; shorter segments, from `min_words` on, count as one gram of all
their words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from gristmill.core.errors import FormatError
from gristmill.curate.jsonl import read_objects
from gristmill.curate.schema import Decontaminate

Keys = npt.NDArray[np.uint64]

MAX_GRAMS = 50_000_000
"""N-grams of all benchmarks together: 1 GB while the index is built. Public test sets have some hundred thousand."""
MAX_SHARED = 1000
"""An n-gram that stands in more segments than this is a template of its benchmark and tells nothing."""
_MEMO_WORDS = 1 << 20
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word's part in a gram is lost modulo 2^64
_WORD = re.compile(r"\w+")
_CALCULATION = re.compile(r"<<[^<>\n]*>>")
"""GSM8K writes its sums twice, once for a calculator; copies of it on the web mostly leave that out."""


class Match(NamedTuple):
    """A segment found in a document: `matched` of its `grams` distinct n-grams stand there; `quote` is the first one's words."""

    benchmark: str
    item: str
    field: str
    matched: int
    grams: int
    quote: str

    @property
    def overlap(self) -> float:
        return self.matched / self.grams


@dataclass(frozen=True)
class Segment:
    """One field of an item; `width` is the number of words of its grams, `grams` of how many distinct ones it has."""

    benchmark: str
    item: str
    field: str
    width: int
    grams: int


def words_of(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


class WordHashes(dict[str, int]):
    """word -> its 64-bit hash, computed once; emptied when it holds a million words, which changes no result."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MEMO_WORDS:
            self.clear()
        value = self[word] = xxh3_64_intdigest(word.encode("utf-8", "surrogatepass"))
        return value

    def of(self, words: Sequence[str]) -> Keys:
        return np.fromiter(map(self.__getitem__, words), np.uint64, len(words))


def grams(hashes: Keys, width: int) -> Keys:
    """Hashes (max(n - width + 1, 0),) of all runs of `width` words: a polynomial in _BASE modulo 2^64."""
    n = len(hashes) - width + 1
    if n <= 0:
        return np.empty(0, np.uint64)
    out = np.full(n, width, np.uint64)  # runs of different widths never meet
    for i in range(width):
        out *= _BASE
        out += hashes[i : i + n]
    return out


class Index:
    """The grams of benchmark files. Memory: 20 bytes a gram and a bit table of 8 to 16 bits a gram."""

    def __init__(self, files: Iterable[tuple[str, Path]], settings: Decontaminate) -> None:
        self.segments: list[Segment] = []
        self.skipped: dict[str, int] = {}
        """Segments too short to be told apart, by benchmark."""
        self._memo = WordHashes()
        keys, owners = self._read(files, settings)
        order = np.argsort(keys, kind="stable")
        keys, owners = keys[order], owners[order]
        first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.empty(0, np.int64)
        counts = np.diff(np.append(first, len(keys)))
        self.keys: Keys = keys[first]
        self._first, self._count, self._owners = first, counts, owners
        self.widths = sorted({s.width for s in self.segments})
        bits = max(10, int(len(self.keys) * 8 - 1).bit_length()) if len(self.keys) else 10
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, bool)
        self._table[self._slots(self.keys)] = True

    def _read(self, files: Iterable[tuple[str, Path]], settings: Decontaminate) -> tuple[Keys, npt.NDArray[np.int32]]:
        keys: list[Keys] = []
        owners: list[npt.NDArray[np.int32]] = []
        total = 0
        for benchmark, path in files:
            for item, name, text in _fields(path, settings):
                words = words_of(_CALCULATION.sub("", text))
                width = min(settings.ngram, len(words))
                whole = name in settings.fields[:1]  # only a question of few words is still its own
                if width < settings.min_words or (width < settings.ngram and not whole):
                    self.skipped[benchmark] = self.skipped.get(benchmark, 0) + 1
                    continue
                found = np.unique(grams(self._memo.of(words), width))
                total += len(found)
                if total > MAX_GRAMS:
                    raise FormatError(f"{path}: the benchmarks have more than {MAX_GRAMS:,} n-grams", hint="name fewer")
                keys.append(found)
                owners.append(np.full(len(found), len(self.segments), np.int32))
                self.segments.append(Segment(benchmark, item, name, width, len(found)))
        if not keys:
            return np.empty(0, np.uint64), np.empty(0, np.int32)
        return np.concatenate(keys), np.concatenate(owners)

    def _slots(self, keys: Keys) -> npt.NDArray[np.uint64]:
        return (keys * _BASE) >> self._shift

    def find(self, texts: Sequence[str], min_overlap: float) -> Iterator[list[Match]]:
        """For each text its matches with at least this overlap, highest first, ties in the order of the files."""
        documents = [words_of(text) for text in texts]
        starts = np.cumsum([0, *map(len, documents)])
        hashes = self._memo.of([word for words in documents for word in words])
        hits = [self._hits(hashes, starts, width) for width in self.widths]
        places = np.concatenate([h[0] for h in hits]) if hits else np.empty(0, np.int64)
        found = np.concatenate([h[1] for h in hits]) if hits else np.empty(0, np.int64)
        order = np.argsort(places, kind="stable")
        places, found = places[order], found[order]
        bounds = np.searchsorted(places, starts)
        for i, words in enumerate(documents):
            mine = slice(bounds[i], bounds[i + 1])
            yield (
                self._matches(words, places[mine] - starts[i], found[mine], min_overlap)
                if bounds[i + 1] > bounds[i]
                else []
            )

    def _hits(self, hashes: Keys, starts: Any, width: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(word places, indices into `keys`) of the runs of `width` words that are in the index and in one document."""
        runs = grams(hashes, width)
        at = np.flatnonzero(self._table[self._slots(runs)])  # nearly every run of a page ends here
        if not len(self.keys) or not len(at):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        where = np.minimum(np.searchsorted(self.keys, runs[at]), len(self.keys) - 1)
        real = self.keys[where] == runs[at]
        at, where = at[real], where[real]
        inside = np.searchsorted(starts, at, "right") == np.searchsorted(starts, at + width - 1, "right")
        return at[inside], where[inside]

    def _matches(self, words: list[str], places: Any, found: Any, min_overlap: float) -> list[Match]:
        kinds, first = np.unique(found, return_index=True)
        matched: dict[int, list[int]] = {}  # segment -> [distinct grams, place of the first]
        for kind, place in zip(kinds.tolist(), places[first].tolist(), strict=True):
            if self._count[kind] > MAX_SHARED:
                continue
            begin = self._first[kind]
            for owner in self._owners[begin : begin + self._count[kind]].tolist():
                held = matched.setdefault(owner, [0, place])
                held[0] += 1
                held[1] = min(held[1], place)
        out = []
        for owner, (count, place) in sorted(matched.items()):
            segment = self.segments[owner]
            if count >= min_overlap * segment.grams:
                quote = " ".join(words[place : place + segment.width])
                out.append(Match(segment.benchmark, segment.item, segment.field, count, segment.grams, quote))
        out.sort(key=lambda match: -match.overlap)
        return out


def _fields(path: Path, settings: Decontaminate) -> Iterator[tuple[str, str, str]]:
    """(item, field, text) of a benchmark file. Raises FormatError on a line that has none of the fields."""
    for number, row in read_objects(path):
        item = row.get(settings.id_field)
        name = str(item) if item is not None else f"line {number}"
        texts = [(field, text) for field in settings.fields for text in _texts(row.get(field))]
        if not texts:
            raise FormatError(
                f"{path}:{number}: none of the fields {', '.join(settings.fields)}",
                hint=f"the line has {', '.join(list(row)[:12])}; name its fields in `curate.decontaminate.fields`",
            )
        yield from ((name, field, text) for field, text in texts)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []
