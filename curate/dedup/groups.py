"""Documents that share a band key, as star edges to the smallest ordinal of each bucket."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]


def star_edges(keys: NDArray[np.uint64], documents: Int64s) -> tuple[Int64s, Int64s]:
    """Edges (member, smallest ordinal of its bucket) for one band: n - 1 of them for a bucket of n documents.

    `keys` (M,) are the band's keys of `documents` (M,), which are ascending ordinals. Linear in a bucket's size: a
    bucket of 1e6 copies gives 1e6 - 1 edges, where all pairs would be 5e11.
    """
    order = np.argsort(keys, kind="stable")  # stable, so a bucket's first entry is its smallest ordinal
    ordered, members = keys[order], documents[order]
    first = np.ones(len(keys), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(first)
    roots = np.repeat(members[starts], np.diff(np.append(starts, len(keys))))
    return members[~first], roots[~first]
