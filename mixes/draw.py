"""A source's documents in the order they are drawn: epoch after epoch without end, each epoch in its own hashed order.

A document's place in epoch e follows from (its id, seed, source, e) alone, so it depends neither on how the input was
split into files nor on who reads it. The cursor goes on from phase to phase; within a document it counts tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from gristmill.core.hashing import mix64, seed_of


@dataclass(frozen=True)
class Cursor:
    """How far a source has been read: whole documents since the start of epoch 0, and tokens of the next one."""

    documents: int = 0
    tokens: int = 0


@dataclass
class Draws:
    """The endless sequence of one source.

    hashes: (D,) uint64 of the document ids; lengths: (D,) int64 tokens, all positive, D at least 1.
    """

    hashes: np.ndarray
    lengths: np.ndarray
    seed: int
    source: str
    _orders: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def order(self, epoch: int) -> np.ndarray:
        """(D,) int64: the documents of one epoch in order of their hash under that epoch's key."""
        if epoch not in self._orders:
            key = seed_of(self.seed, "documents", self.source, epoch)
            if len(self._orders) >= 2:  # a reader moves on through the epochs: two are enough
                self._orders.pop(min(self._orders))
            self._orders[epoch] = np.argsort(mix64(self.hashes, key), kind="stable")
        return self._orders[epoch]

    def ahead(self, cursor: Cursor, max_documents: int, max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """The next documents and their epochs, int64, from the cursor's on.

        Stops at `max_documents`, or with the document that reaches `max_tokens` (the cursor's own counts whole).
        """
        total = len(self.lengths)
        documents: list[np.ndarray] = []
        epochs: list[np.ndarray] = []
        at, found, tokens = cursor.documents, 0, 0
        while found < max_documents and tokens < max_tokens:
            epoch, first = divmod(at, total)
            part = self.order(epoch)[first : first + max_documents - found]
            ends = tokens + np.cumsum(self.lengths[part])
            part = part[: int(np.searchsorted(ends, max_tokens)) + 1]
            documents.append(part)
            epochs.append(np.full(len(part), epoch, np.int64))
            at += len(part)
            found += len(part)
            tokens = int(ends[len(part) - 1])
        return np.concatenate(documents), np.concatenate(epochs)
