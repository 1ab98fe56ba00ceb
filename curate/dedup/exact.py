"""Exact copies: documents with equal 128-bit text hashes, by sorting (exact, order-free, counted)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]


def exact_groups(hashes: NDArray[np.uint64], ranks: Int64s) -> tuple[Int64s, Int64s]:
    """For each document its group's representative (the copy of lowest rank) and the group's size, both (D,) int64.

    `hashes` is (D, 2) uint64, `ranks` (D,) distinct.
    """
    n = len(ranks)
    order = np.lexsort((ranks, hashes[:, 0], hashes[:, 1]))
    ordered = hashes[order]
    first = np.ones(n, bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    starts = np.flatnonzero(first)
    sizes = np.diff(np.append(starts, n))
    representative, copies = np.empty(n, np.int64), np.empty(n, np.int64)
    representative[order] = np.repeat(order[starts], sizes)
    copies[order] = np.repeat(sizes, sizes)
    return representative, copies
