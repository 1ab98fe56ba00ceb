"""Gradient boosting of oblivious trees on small whole numbers: what `fit_blocks.py` fits the blocks engine with."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np


@dataclass(frozen=True)
class Settings:
    """The defaults are what the package's weights were fitted with; only depth and rounds were varied, inside the fitting half."""

    rounds: int = 200
    depth: int = 4
    rate: float = 0.1
    """Shrinkage of each tree's leaves."""
    ridge: float = 5.0
    """Added to the sum of second derivatives of each leaf."""
    least: float = 2.0
    """Sum of second derivatives that a leaf must have for its split to count."""
    columns: float = 0.12
    rows: float = 0.35
    """Shares drawn for each tree."""
    seed: int = 0


@dataclass(frozen=True)
class Trees:
    """See `gristmill.curate.engines.blocks_model.Forest`; leaves and start in log-odds."""

    start: float
    features: np.ndarray
    cuts: np.ndarray
    leaves: np.ndarray


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _histogram(columns, rows, leaf, first, second, drawn, sums):  # type: ignore[no-untyped-def]
    for k in range(len(drawn)):
        column = columns[drawn[k]]
        for r in rows:
            sums[k, leaf[r], column[r], 0] += first[r]
            sums[k, leaf[r], column[r], 1] += second[r]


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _best(sums, leaves, ridge, least):  # type: ignore[no-untyped-def]
    """The drawn feature and bin whose question, put to every leaf, gains most (-1 where none can be put)."""
    most, feature, cut = -1e300, -1, -1
    total = np.zeros((leaves, 2))
    for leaf in range(leaves):
        for b in range(sums.shape[2]):
            total[leaf] += sums[0, leaf, b]
    low = np.zeros((leaves, 2))
    for k in range(sums.shape[0]):
        low[:] = 0
        for b in range(sums.shape[2] - 1):
            gain, any_rows = 0.0, False
            for leaf in range(leaves):
                any_rows |= sums[k, leaf, b, 1] > 0
                low[leaf] += sums[k, leaf, b]
                g, h = total[leaf]
                gl, hl = low[leaf]
                if hl < least or h - hl < least:
                    gain += g * g / (h + ridge)
                else:
                    gain += gl * gl / (hl + ridge) + (g - gl) ** 2 / (h - hl + ridge)
            if any_rows and gain > most + 1e-12:
                most, feature, cut = gain, k, b
    return feature, cut


def fit(columns: np.ndarray, labels: np.ndarray, weights: np.ndarray, settings: Settings) -> Trees:
    """Weighted logistic loss on (F, N) int8 columns and labels of 0 to 1, second-order (Chen & Guestrin 2016)."""
    rng = np.random.default_rng(settings.seed)
    lowest = int(columns.min())
    shifted = (columns.astype(np.int16) - lowest).astype(np.uint8)
    n, depth = len(labels), settings.depth
    mean = float((weights * labels).sum() / weights.sum())
    start = float(np.log(mean / (1 - mean)))
    score = np.full(n, start)
    live = np.flatnonzero(shifted.max(axis=1) > shifted.min(axis=1))
    drawn_count = max(1, int(len(live) * settings.columns))
    sums = np.zeros((drawn_count, 1 << depth, int(shifted.max()) + 1, 2))
    features = np.zeros((settings.rounds, depth), dtype=np.int64)
    cuts = np.full((settings.rounds, depth), 127, dtype=np.int64)
    leaves = np.zeros((settings.rounds, 1 << depth))
    for t in range(settings.rounds):
        chance = 1 / (1 + np.exp(-score))
        first = weights * (chance - labels)
        second = weights * np.maximum(chance * (1 - chance), 1e-4)
        rows = np.flatnonzero(rng.random(n) < settings.rows)
        drawn = rng.choice(live, drawn_count, replace=False)
        leaf = np.zeros(n, dtype=np.int64)
        for level in range(depth):
            sums[:] = 0
            _histogram(shifted, rows, leaf, first, second, drawn, sums)
            feature, cut = _best(sums, 1 << level, settings.ridge, settings.least)
            if feature < 0:
                break
            features[t, level], cuts[t, level] = drawn[feature], cut + lowest
            leaf |= (columns[features[t, level]] > cuts[t, level]).astype(np.int64) << level
        g = np.bincount(leaf[rows], first[rows], 1 << depth)
        h = np.bincount(leaf[rows], second[rows], 1 << depth)
        leaves[t] = -settings.rate * g / (h + settings.ridge)
        score += leaves[t][leaf]
    return Trees(start, features, cuts, leaves)
