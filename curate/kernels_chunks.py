"""The numba side of `curate.chunks`: a hash table of whitespace-free chunks and the scan that looks a text up in it.

The table is open addressing over `keys` (2**bits,) uint64, 0 where free, and `places` (2**bits, 2) int64: a chunk's row
and where its bytes begin in the arena, in which a line feed ends each. Equal keys are compared byte by byte.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from gristmill.curate.kernels_numba import compiled_loops

_PRIME = np.uint64(0x100000001B3)  # FNV-1a's
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: spreads keys over the table
_ONE = np.uint64(1)


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _space(data: Any, at: int) -> int:
    """Bytes of the white space (str.isspace) at a character of UTF-8; 0 where it is none."""
    b = data[at]
    if b <= 32:
        return 1 if b == 32 or 9 <= b <= 13 or b >= 28 else 0
    if b < 0xC2 or b > 0xE3:
        return 0
    if b == 0xC2:
        return 2 if data[at + 1] == 0x85 or data[at + 1] == 0xA0 else 0
    if b == 0xE1:
        return 3 if data[at + 1] == 0x9A and data[at + 2] == 0x80 else 0
    if b == 0xE2:
        c, d = data[at + 1], data[at + 2]
        if c == 0x80:
            return 3 if d <= 0x8A or d == 0xA8 or d == 0xA9 or d == 0xAF else 0
        return 3 if c == 0x81 and d == 0x9F else 0
    if b == 0xE3:
        return 3 if data[at + 1] == 0x80 and data[at + 2] == 0x80 else 0
    return 0


def _find(
    data: Any, keys: Any, places: Any, arena: Any, seed: Any, rows: Any, starts: Any, counts: Any, missing: Any
) -> int:
    bits = 0
    while (1 << bits) < keys.shape[0]:
        bits += 1
    shift, mask = np.uint64(64 - bits), keys.shape[0] - 1
    n = data.shape[0]
    at = out = line = words = gap = n_missing = 0  # gap: 1 after one space, 2 after any other white space
    starts[0] = 0
    while at < n:
        b = data[at]
        if b == 10:
            for _ in range(2 if words and gap == 2 else 1):
                rows[out] = 0
                out += 1
            counts[line] = words
            line += 1
            starts[line] = out
            words = gap = 0
            at += 1
            continue
        width = _space(data, at)
        if width:
            gap = 1 if gap == 0 and b == 32 else 2
            at += width
            continue
        if gap == 2:
            rows[out] = 0
            out += 1
        gap = 0
        words += 1
        begin = at
        key = seed
        while (b > 32 and b < 0xC2) or not _space(data, at):
            key = (key ^ np.uint64(b)) * _PRIME
            at += 1
            b = data[at]
        key |= _ONE
        p = np.int64((key * _SPREAD) >> shift)
        row = -1
        while keys[p] != 0:
            if keys[p] == key:
                place = places[p, 1]
                i = begin
                while i < at and arena[place] == data[i]:
                    i += 1
                    place += 1
                if i == at and arena[place] == 10:
                    row = places[p, 0]
                    break
            p = (p + 1) & mask
        rows[out] = row
        if row < 0:
            missing[n_missing, 0] = out
            missing[n_missing, 1] = begin
            missing[n_missing, 2] = at
            n_missing += 1
        out += 1
    return n_missing


def _insert(arena: Any, begin: int, end: int, rows: Any, keys: Any, places: Any, seed: Any) -> int:
    bits = 0
    while (1 << bits) < keys.shape[0]:
        bits += 1
    shift, mask = np.uint64(64 - bits), keys.shape[0] - 1
    n = 0
    key, first = seed, begin
    for at in range(begin, end):
        b = arena[at]
        if b != 10:
            key = (key ^ np.uint64(b)) * _PRIME
            continue
        key |= _ONE
        p = np.int64((key * _SPREAD) >> shift)
        while keys[p] != 0:
            p = (p + 1) & mask
        keys[p] = key
        places[p, 0] = rows[n]
        places[p, 1] = first
        n += 1
        key, first = seed, at + 1
    return n


def compiled() -> list[Callable[..., Any]]:
    """`_find` and `_insert`, compiled now."""
    u8, i64, u64, pairs = "uint8[::1]", "int64[::1]", "uint64[::1]", "int64[:, ::1]"
    return compiled_loops(
        (_find, f"int64({u8}, {u64}, {pairs}, {u8}, uint64, {i64}, {i64}, {i64}, {pairs})"),
        (_insert, f"int64({u8}, int64, int64, {i64}, {u64}, {pairs}, uint64)"),
    )
