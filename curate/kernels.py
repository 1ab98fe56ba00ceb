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


def _sentences_twin(rows: Array, breaks0: Array, breaks1: Array, state0: Array, state1: Array, ends: Array) -> int:
    total, pending, line = 0, 0, 0
    b0, b1, s0, s1 = (column.take(rows).tolist() for column in (breaks0, breaks1, state0, state1))
    for stop in ends.tolist():
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


def stretches(start: Array, count: Array) -> Array:
    """All numbers of the ranges [start, start + count), one range after another: int64 (n,), (n,) -> (sum,)."""
    ends = np.cumsum(count)
    out: Array = np.repeat(start - (ends - count), count) + np.arange(int(ends[-1]) if len(ends) else 0)
    return out


def _gather_twin(rows: Array, start: Array, count: Array, *columns: Array) -> list[Array]:
    at = stretches(start.take(rows), count.take(rows))
    return [column.take(at) for column in columns]


def _hashes_twin(codes: Array, lengths: Array) -> tuple[Array, Array]:
    hashes, powers = [], []
    at = 0
    for n in lengths.tolist():
        h = 0
        for code in codes[at : at + n].tolist():
            h = (h * BASE + code + 1) % PRIME
        at += n
        hashes.append(h)
        powers.append(pow(BASE, n, PRIME))
    return np.array(hashes, np.uint64), np.array(powers, np.uint64)


class Kernels(NamedTuple):
    """The loops, compiled or not.

    `ngrams(hashes, powers, ends)`: per word (n,) uint64 hash, uint64 BASE**length, int64 end offset among the joined
    characters -> int64 (9,): characters of the most frequent 2-, 3-, 4-gram times its count, joined by spaces (-1
    with fewer words than that), then characters in repeated 5- to 10-grams, where a repeat is skipped whole.
    `sentences(rows, breaks0, breaks1, state0, state1, ends)`: int64 chunks, four of `segmenter.CHUNK_COLUMNS`, and the
    int64 end of each line among the chunks -> number of sentences of all lines, at least one each.
    `gather(rows, start, count, length, hash, power, flags)`: int64 chunks, two of CHUNK_COLUMNS and WORD_COLUMNS -> the
    latter of the chunks' words, one after another.
    `hashes(codes, lengths)`: uint32 code points of joined words and the int64 length of each word -> per word its
    uint64 hash and BASE**length.
    """

    ngrams: Callable[[Array, Array, Array], Array]
    sentences: Callable[[Array, Array, Array, Array, Array, Array], int]
    gather: Callable[..., list[Array]]
    hashes: Callable[[Array, Array], tuple[Array, Array]]
    compiled: bool


TWINS = Kernels(_ngrams_twin, _sentences_twin, _gather_twin, _hashes_twin, False)


@cache
def kernels() -> Kernels:
    """The compiled kernels (about 1 s to compile once, then from numba's cache); the twins where numba is missing."""
    try:
        from gristmill.curate import kernels_numba
    except ImportError:
        return TWINS
    ngrams, sentences, gather, hashes = kernels_numba.compiled()

    def ngrams_of(hashes: Array, powers: Array, ends: Array) -> Array:
        out: Array = ngrams(hashes, powers, ends, _S, TOP_SIZES[-1], DUP_SIZES[0], DUP_SIZES[-1])
        return out

    def gather_of(rows: Array, start: Array, count: Array, *columns: Array) -> list[Array]:
        total = int(count.take(rows).sum())
        out = [np.empty(total, column.dtype) for column in columns]
        gather(rows, start, count, *columns, *out)
        return out

    def hashes_of(codes: Array, lengths: Array) -> tuple[Array, Array]:
        out = np.empty((2, len(lengths)), np.uint64)
        hashes(codes, lengths, np.uint64(BASE), out)
        return out[0], out[1]

    return Kernels(ngrams_of, sentences, gather_of, hashes_of, True)
