"""The compiled loop over n-grams of words by DCLM's count of all copies, with a numpy twin of equal results.

N-grams are told apart by the same polynomial hashes as in `curate.kernels`, over (hash, length) of their words.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from gristmill.curate.kernels import DUP_SIZES, STEP, TOP_SIZES, Array, addmod, mulmod

Copies = Callable[[Array, Array], Array]
"""Per word (n,) uint64 hash and int64 length -> int64 (9,): characters times count of the longest among the most
frequent 2-, 3-, 4-grams (-1 with fewer words than that, 0 where none repeats), then characters of the words that lie in
some 5- to 10-gram that occurs more than once, each word counted once. White space is in none of them."""

_S = np.uint64(STEP)


def copies_twin(hashes: Array, lengths: Array) -> Array:
    """See `Copies`; numpy alone."""
    n_top = len(TOP_SIZES)
    out = np.zeros(n_top + len(DUP_SIZES), np.int64)
    out[:n_top] = -1
    n_words = len(hashes)
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    words = addmod(mulmod(hashes, np.full(n_words, _S)), lengths.astype(np.uint64))
    grams = words
    for n in range(2, DUP_SIZES[-1] + 1):
        if n_words < n:
            break
        grams = addmod(mulmod(grams[:-1], np.full(len(grams) - 1, _S)), words[n - 1 :])
        if TOP_SIZES[-1] < n < DUP_SIZES[0]:
            continue
        _, inverse, counts = np.unique(grams, return_inverse=True, return_counts=True)
        times = counts[inverse]
        best = int(times.max())
        if n <= TOP_SIZES[-1]:
            chars = ends[n:] - ends[:-n]
            out[n - 2] = int(chars[times == best].max()) * best if best > 1 else 0
        elif best > 1:
            steps = np.zeros(n_words + 1, np.int64)
            at = np.flatnonzero(times > 1)
            np.add.at(steps, at, 1)
            np.add.at(steps, at + n, -1)
            out[n_top + n - DUP_SIZES[0]] = int(lengths[np.cumsum(steps[:-1]) > 0].sum())
    return out


@cache
def copies() -> Copies:
    """The compiled loop (from numba's cache after the first time); the twin where numba is missing."""
    try:
        from gristmill.curate import kernels_numba
    except ImportError:
        return copies_twin
    loop = kernels_numba.compiled_copies()

    def run(hashes: Array, lengths: Array) -> Array:
        found: Array = loop(hashes, lengths, _S, TOP_SIZES[-1], DUP_SIZES[0], DUP_SIZES[-1])
        return found

    return run
