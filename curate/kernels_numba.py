"""The numba side of `curate.kernels`; importing it imports numba.

Everything that a loop uses is in this file or passed to it: numba's disk cache sees changes of this file only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from gristmill.curate.light_imports import light_numba

_P = np.uint64((1 << 61) - 1)
_B1, _B30, _B31, _B61 = np.uint64(1), np.uint64(30), np.uint64(31), np.uint64(61)
_M30, _M31 = np.uint64((1 << 30) - 1), np.uint64((1 << 31) - 1)
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: spreads hashes over the table's slots


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _add(a: Any, b: Any) -> Any:
    x = a + b
    return x - _P if x >= _P else x


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _mul(a: Any, b: Any) -> Any:
    """a * b modulo 2**61 - 1, as `kernels.mulmod`."""
    au, ad = a >> _B31, a & _M31
    bu, bd = b >> _B31, b & _M31
    mid = ad * bu + au * bd
    x = ((au * bu) << _B1) + (mid >> _B30) + ((mid & _M30) << _B31) + ad * bd
    x = (x >> _B61) + (x & _P)
    return x - _P if x >= _P else x


def _ngrams(hashes: Any, powers: Any, ends: Any, step: Any, top_last: int, dup_first: int, dup_last: int) -> Any:
    n_words = hashes.shape[0]
    n_top = top_last - 1
    out = np.zeros(n_top + dup_last - dup_first + 1, np.int64)
    out[:n_top] = -1
    if n_words == 0:
        return out
    bits = 4
    while (1 << bits) < 2 * n_words:
        bits += 1
    shift = np.uint64(64 - bits)
    mask = (1 << bits) - 1
    slots = np.zeros(1 << bits, np.int32)  # position + 1 of the first n-gram with this hash; open addressing
    count = np.zeros(n_words, np.int32)
    grams = np.empty(n_words, np.uint64)
    words = np.empty(n_words, np.uint64)
    for i in range(n_words):
        start = ends[i - 1] if i > 0 else 0
        words[i] = _add(_mul(hashes[i], step), np.uint64(ends[i] - start))
        grams[i] = words[i]
    for n in range(2, top_last + 1):
        last = n_words - n + 1
        if last <= 0:
            break
        slots[:] = 0
        best = 0
        for i in range(last):
            g = _add(_mul(grams[i], step), words[i + n - 1])
            grams[i] = g
            p = np.int64((g * _SPREAD) >> shift)
            while slots[p] != 0 and grams[slots[p] - 1] != g:
                p = (p + 1) & mask
            if slots[p] == 0:
                slots[p] = i + 1
                count[i] = 1
            else:
                count[slots[p] - 1] += 1
                count[i] = 0
            best = max(best, count[slots[p] - 1])
        at = 0
        while count[at] != best:  # Counter.most_common: the first seen among the most frequent
            at += 1
        start = ends[at - 1] if at > 0 else 0
        out[n - 2] = (ends[at + n - 1] - start + n - 1) * best
    for i in range(n_words):
        grams[i] = hashes[i]
    for n in range(2, dup_last + 1):
        last = n_words - n + 1
        if last <= 0:
            break
        for i in range(last):
            grams[i] = _add(_mul(grams[i], powers[i + n - 1]), hashes[i + n - 1])
        if n < dup_first:
            continue
        slots[:] = 0
        chars = 0
        i = 0
        while i < last:
            g = grams[i]
            p = np.int64((g * _SPREAD) >> shift)
            while slots[p] != 0 and grams[slots[p] - 1] != g:
                p = (p + 1) & mask
            if slots[p] == 0:
                slots[p] = i + 1
                i += 1
            else:
                chars += ends[i + n - 1] - (ends[i - 1] if i > 0 else 0)
                i += n
        out[n_top + n - dup_first] = chars
    return out


def _sentences(rows: Any, breaks0: Any, breaks1: Any, state0: Any, state1: Any, ends: Any) -> Any:
    total = 0
    at = 0
    for line in range(ends.shape[0]):
        pending = 0
        while at < ends[line]:
            row = rows[at]
            if pending:
                total += breaks1[row]
                pending = state1[row]
            else:
                total += breaks0[row]
                pending = state0[row]
            at += 1
        total += 1
    return total


def _gather(
    rows: Any,
    start: Any,
    count: Any,
    length: Any,
    hashes: Any,
    powers: Any,
    flags: Any,
    lengths_out: Any,
    hashes_out: Any,
    powers_out: Any,
    flags_out: Any,
) -> Any:
    n = 0
    for row in rows:
        for at in range(start[row], start[row] + count[row]):
            lengths_out[n] = length[at]
            hashes_out[n] = hashes[at]
            powers_out[n] = powers[at]
            flags_out[n] = flags[at]
            n += 1
    return n


def _hashes(codes: Any, lengths: Any, base: Any, out: Any) -> Any:
    at = 0
    for i in range(lengths.shape[0]):
        h = np.uint64(0)
        power = np.uint64(1)
        for _ in range(lengths[i]):
            h = _add(_mul(h, base), np.uint64(codes[at]) + _B1)
            power = _mul(power, base)
            at += 1
        out[0, i] = h
        out[1, i] = power
    return at


def _copies(hashes: Any, lengths: Any, step: Any, top_last: int, dup_first: int, dup_last: int) -> Any:
    n_words = hashes.shape[0]
    n_top = top_last - 1
    out = np.zeros(n_top + dup_last - dup_first + 1, np.int64)
    out[:n_top] = -1
    if n_words == 0:
        return out
    bits = 4
    while (1 << bits) < 2 * n_words:
        bits += 1
    shift = np.uint64(64 - bits)
    mask = (1 << bits) - 1
    slots = np.zeros(1 << bits, np.int32)  # position + 1 of the first n-gram with this hash; open addressing
    first = np.empty(n_words, np.int32)
    count = np.zeros(n_words, np.int32)
    grams = np.empty(n_words, np.uint64)
    words = np.empty(n_words, np.uint64)
    for i in range(n_words):
        words[i] = _add(_mul(hashes[i], step), np.uint64(lengths[i]))
        grams[i] = words[i]
    for n in range(2, dup_last + 1):
        last = n_words - n + 1
        if last <= 0:
            break
        for i in range(last):
            grams[i] = _add(_mul(grams[i], step), words[i + n - 1])
        if top_last < n < dup_first:
            continue
        slots[:] = 0
        best = 0
        for i in range(last):
            g = grams[i]
            p = np.int64((g * _SPREAD) >> shift)
            while slots[p] != 0 and grams[slots[p] - 1] != g:
                p = (p + 1) & mask
            if slots[p] == 0:
                slots[p] = i + 1
                count[i] = 0
            at = slots[p] - 1
            first[i] = at
            count[at] += 1
            best = max(best, count[at])
        if n <= top_last:
            out[n - 2] = 0
            if best > 1:
                chars = 0
                longest = 0
                for i in range(n):
                    chars += lengths[i]
                for i in range(last):
                    if count[first[i]] == best:
                        longest = max(longest, chars)
                    if i + n < n_words:
                        chars += lengths[i + n] - lengths[i]
                out[n - 2] = longest * best
        elif best > 1:
            total = 0
            covered = 0  # words before this one are counted
            for i in range(last):
                if count[first[i]] > 1:
                    for j in range(max(i, covered), i + n):
                        total += lengths[j]
                    covered = i + n
            out[n_top + n - dup_first] = total
    return out


def compiled_copies() -> Callable[..., Any]:
    """`_copies`, compiled now; apart from the others, which every recipe with rules needs."""
    signature = "int64[::1](uint64[::1], int64[::1], uint64, int64, int64, int64)"
    return compiled_loops((_copies, signature))[0]


def compiled() -> list[Callable[..., Any]]:
    """`_ngrams`, `_sentences`, `_gather` and `_hashes`, compiled now."""
    u64, i64, i32, u8 = "uint64[::1]", "int64[::1]", "int32[::1]", "uint8[::1]"
    return compiled_loops(
        (_ngrams, f"{i64}({u64}, {u64}, {i64}, uint64, int64, int64, int64)"),
        (_sentences, f"int64({i64}, {i32}, {i32}, {u8}, {u8}, {i64})"),
        (_gather, f"int64({i64}, {i64}, {i64}, {i64}, {u64}, {u64}, {u8}, {i64}, {u64}, {u64}, {u8})"),
        (_hashes, f"int64(uint32[::1], {i64}, uint64, uint64[:, ::1])"),
    )


def compiled_loops(*loops: tuple[Callable[..., Any], str]) -> list[Callable[..., Any]]:
    """Loops compiled for one signature each; without a disk cache where numba finds no folder to write to."""
    with light_numba():
        try:
            return [numba.njit(signature, cache=True, nogil=True)(loop) for loop, signature in loops]
        except (OSError, RuntimeError):
            return [numba.njit(signature, nogil=True)(loop) for loop, signature in loops]
