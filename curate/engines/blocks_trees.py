"""Kernel: the forest of `blocks_model` over columns of features."""

from __future__ import annotations

import numpy as np

from gristmill.curate.engines.blocks_scan import compiled


@compiled
def walk(columns, features, cuts, leaves, start, out):  # type: ignore[no-untyped-def]
    """Sum of the leaves that each column (block) falls into, plus `start`, into `out`: (F, N) int8 → (N,) int64."""
    n = columns.shape[1]
    trees, depth = features.shape
    out[:] = start
    leaf = np.empty(n, np.int64)
    for t in range(trees):
        leaf[:] = 0
        for d in range(depth):
            cut, row = cuts[t, d], columns[features[t, d]]
            for i in range(n):
                leaf[i] |= np.int64(row[i] > cut) << d
        for i in range(n):
            out[i] += leaves[t, leaf[i]]
