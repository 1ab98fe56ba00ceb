"""Compiled loops over a document's words (n-gram repetition, sentences), each with a numpy twin of equal results.

N-grams are told apart by polynomial hashes modulo the Mersenne prime 2**61 - 1: two different ones of a document of
1,000 words collide with a chance near 1e-12. Kernel and twin use the same hashes, so they agree even then.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

PRIME = (1 << 61) - 1
BASE = 0x1B873593CC9E2D51 % PRIME  # any large number does; it must stay the same, as words are hashed with it
STEP = 0x0E6546B64A5C1D3B % PRIME  # base of hashes over sequences of words
TOP_SIZES = (2, 3, 4)
DUP_SIZES = (5, 6, 7, 8, 9, 10)

Array = npt.NDArray[Any]

_P = np.uint64(PRIME)
_S = np.uint64(STEP)
_B31, _B30, _B61, _ONE = np.uint64(31), np.uint64(30), np.uint64(61), np.uint64(1)
_M31, _M30 = np.uint64((1 << 31) - 1), np.uint64((1 << 30) - 1)


def mulmod(a: Any, b: Any) -> Any:
    """a * b modulo 2**61 - 1 in 64-bit arithmetic; a, b uint64 below the prime, scalars or arrays."""
    au, ad = a >> _B31, a & _M31
    bu, bd = b >> _B31, b & _M31
    mid = ad * bu + au * bd
    x = au * bu * np.uint64(2) + (mid >> _B30) + ((mid & _M30) << _B31) + ad * bd
    x = (x >> _B61) + (x & _P)
    return x - _P * (x >= _P)


def addmod(a: Any, b: Any) -> Any:
    x = a + b
    return x - _P * (x >= _P)


def _ngrams_twin(hashes: Array, powers: Array, ends: Array) -> Array:
    out = np.full(len(TOP_SIZES) + len(DUP_SIZES), -1, np.int64)
    out[len(TOP_SIZES) :] = 0
    n_words = len(hashes)
    starts = np.zeros(n_words, np.int64)
    starts[1:] = ends[:-1]
    lengths = ends - starts
    # a sequence tells apart "a bc" and "ab c", as datatrove's top n-grams are joined by spaces ...
    words = addmod(mulmod(hashes, np.full(n_words, _S)), lengths.astype(np.uint64))
    top = words
    for q, n in enumerate(TOP_SIZES):
        if n_words < n:
            break
        top = addmod(mulmod(top[:-1], np.full(len(top) - 1, _S)), words[n - 1 :])
        _, first, count = np.unique(top, return_index=True, return_counts=True)
        best = int(count.max())
        at = int(first[count == best].min())  # Counter.most_common: the first seen among the most frequent
        out[q] = (int(ends[at + n - 1] - starts[at]) + n - 1) * best
    # ... while its duplicate n-grams are joined by nothing
    dup = hashes
    for n in range(2, DUP_SIZES[-1] + 1):
        if n_words < n:
            break
        dup = addmod(mulmod(dup[:-1], powers[n - 1 :]), hashes[n - 1 :])
        if n < DUP_SIZES[0]:
            continue
        _, inverse = np.unique(dup, return_inverse=True)
        if int(inverse.max()) + 1 == len(dup):
            continue
        ids, begin, end = inverse.tolist(), starts.tolist(), ends.tolist()
        seen: set[int] = set()
        i = chars = 0
        while i < len(ids):
            if ids[i] in seen:
                chars += end[i + n - 1] - begin[i]
                i += n
            else:
                seen.add(ids[i])
                i += 1
        out[len(TOP_SIZES) + n - DUP_SIZES[0]] = chars
    return out


def _sentences_twin(breaks0: Array, breaks1: Array, state0: Array, state1: Array, ends: Array) -> int:
    total, pending, line = 0, 0, 0
    b0, b1, s0, s1, stops = breaks0.tolist(), breaks1.tolist(), state0.tolist(), state1.tolist(), ends.tolist()
    for stop in stops:
        at, line = line, stop
        pending = 0
        for i in range(at, stop):
            if pending:
                total += b1[i]
                pending = s1[i]
            else:
                total += b0[i]
                pending = s0[i]
        total += 1
    return total


class Kernels(NamedTuple):
    """The loops, compiled or not.

    `ngrams(hashes, powers, ends)`: per word (n,) uint64 hash, uint64 BASE**length, int64 end offset among the joined
    characters -> int64 (9,): characters of the most frequent 2-, 3-, 4-gram times its count, joined by spaces (-1
    with fewer words than that), then characters in repeated 5- to 10-grams, where a repeat is skipped whole.
    `sentences(breaks0, breaks1, state0, state1, ends)`: per chunk columns of `Lexicon.sentence_columns`, and the end of
    each line among them -> number of sentences of all lines, at least one each.
    """

    ngrams: Callable[[Array, Array, Array], Array]
    sentences: Callable[[Array, Array, Array, Array, Array], int]
    compiled: bool


TWINS = Kernels(_ngrams_twin, _sentences_twin, False)


@cache
def kernels() -> Kernels:
    """The compiled kernels (about 1 s to compile once, then from numba's cache); the twins where numba is missing."""
    try:
        from gristmill.curate import kernels_numba
    except ImportError:
        return TWINS
    ngrams, sentences = kernels_numba.compiled()

    def ngrams_of(hashes: Array, powers: Array, ends: Array) -> Array:
        out: Array = ngrams(hashes, powers, ends, _S, TOP_SIZES[-1], DUP_SIZES[0], DUP_SIZES[-1])
        return out

    return Kernels(ngrams_of, sentences, True)
