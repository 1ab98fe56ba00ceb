"""A source's documents in the order they are drawn: epoch after epoch without end, each epoch in its own hashed order.

A document's place in epoch e follows from (its id, seed, source, e) alone, so it depends neither on how the input was
split into files nor on who reads it. The cursor goes on from phase to phase; within a document it counts tokens.
A source larger than PART documents is spread on disk by the top bits of that hash, then sorted part by part.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gristmill.core.hashing import mix64, seed_of
from gristmill.mixes.buckets import Buckets
from gristmill.mixes.catalogue import DOCUMENT

PART, PARTS = 1 << 17, 1 << 10
"""Documents sorted together: 6 MB of records, and as much again while they are sorted; more where a source of over
10^8 documents would have more than PARTS."""
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Cursor:
    """How far a source has been read: whole documents since the start of epoch 0, and tokens of the next one.

    A document of weight w is drawn w times an epoch and counts w times.
    """

    documents: int = 0
    tokens: int = 0


class Draws:
    """The endless sequence of one source. `close` removes what it has on disk.

    spool: holds the source's DOCUMENT records, one per draw in an epoch, in bucket `number`; all lengths positive.
    """

    def __init__(self, spool: Buckets, number: int, seed: int, source: str, folder: Path) -> None:
        self.spool, self.number, self.seed, self.source, self.folder = spool, number, seed, source, folder
        self.total = spool.count(number)
        self._epoch = -1
        self._parts: Buckets | None = None
        self._starts = np.zeros(1, np.int64)
        self._loaded = -1
        self._part = np.empty(0, DOCUMENT)

    def keys(self, documents: np.ndarray, epoch: int) -> np.ndarray:
        """(D,) uint64: what the documents of an epoch are ordered by, ascending."""
        keys = mix64(documents["hash"], seed_of(self.seed, "documents", self.source, epoch))
        copies = np.flatnonzero(documents["copy"])
        if len(copies):
            keys[copies] = mix64(keys[copies] + documents["copy"][copies].astype(np.uint64) * GOLDEN)
        return keys

    def ahead(self, cursor: Cursor, max_documents: int, max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """The next (D,) DOCUMENT records from the cursor's on, and the number of earlier uses of each, int64.

        Stops at `max_documents`, or with the document that reaches `max_tokens` (the cursor's own counts whole).
        """
        documents: list[np.ndarray] = [np.empty(0, DOCUMENT)]
        uses: list[np.ndarray] = [np.empty(0, np.int64)]
        at, found, tokens = cursor.documents, 0, 0
        while found < max_documents and tokens < max_tokens:
            epoch, first = divmod(at, self.total)
            part = self._read(epoch, first, max_documents - found)
            ends = tokens + np.cumsum(part["length"], dtype=np.int64)
            part = part[: int(np.searchsorted(ends, max_tokens)) + 1]
            documents.append(part)
            uses.append(epoch * part["weight"].astype(np.int64) + part["copy"])
            at += len(part)
            found += len(part)
            tokens = int(ends[len(part) - 1])
        return np.concatenate(documents), np.concatenate(uses)

    def _read(self, epoch: int, first: int, most: int) -> np.ndarray:
        """At least one and at most `most` documents of an epoch from its document `first` on."""
        if epoch != self._epoch:
            self._open(epoch)
        part = int(np.searchsorted(self._starts, first, "right")) - 1
        if part != self._loaded:
            found = self.spool.bucket(self.number) if self._parts is None else self._parts.bucket(part)
            self._part = found[np.argsort(self.keys(found, epoch), kind="stable")]
            self._loaded = part
        begin = first - int(self._starts[part])
        return self._part[begin : begin + most]

    def _open(self, epoch: int) -> None:
        """Spread the source by an epoch's hash."""
        self.close()
        self._epoch = epoch
        bits = (max(self.total - 1, 0) // max(PART, self.total // PARTS)).bit_length()
        if not bits:
            self._starts = np.asarray([0, self.total])
            return
        self._parts = Buckets(self.folder / f"epoch-{self.number}-{epoch}", DOCUMENT)
        for at in range(0, self.total, PART):
            some = self.spool.part(self.number, at, PART)
            self._parts.add(some, (self.keys(some, epoch) >> np.uint64(64 - bits)).astype(np.int64))
        counts = [self._parts.count(i) for i in range(1 << bits)]
        self._starts = np.concatenate([[0], np.cumsum(counts)])

    def close(self) -> None:
        if self._parts is not None:
            self._parts.close()
        self._parts, self._epoch, self._loaded = None, -1, -1
        self._part = np.empty(0, DOCUMENT)
