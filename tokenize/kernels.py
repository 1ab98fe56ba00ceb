"""Kernels of encoding over flat bytes and ids: screen documents, group digits, compare tokens with the text they are of.

numba compiles them at the first call; run as plain Python (`scan.py_func`) they give the same numbers.
"""

from __future__ import annotations

from typing import Any

import numba

KNOWN, DIFFERS, NUMBER, SPACE, WAITING = 1, 2, 4, 8, 16
"""Bits of a code point's status for one backend: it was compared; it gives other ids; its class; it waits to be compared."""

HELD = 1
"""Flag of a document that holds what a backend may not be given."""


def compiled(function: Any) -> Any:
    """The function compiled at its first call, kept on disk where numba finds a folder to write to."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except (OSError, RuntimeError):
        return numba.njit(nogil=True)(function)


@compiled
def scan(data, offsets, status, groups, max_spaces, flags, waiting):  # type: ignore[no-untyped-def]
    """Screen documents of UTF-8 bytes `data[offsets[i]:offsets[i + 1]]` by the (0x110000,) `status` of code points.

    Sets flags[i] to HELD where a document holds a code point that DIFFERS, more than `max_spaces` white-space
    characters in a row, or (with `groups`) a number beside another of which one is no ASCII digit. Code points not yet
    KNOWN go to `waiting`, each once while there is room; returns how many. The bytes must be valid UTF-8.
    """
    found = 0
    for i in range(len(offsets) - 1):
        at, end = offsets[i], offsets[i + 1]
        spaces = 0
        before = 0  # 1 after an ASCII digit, 2 after another number
        held = 0
        while at < end:
            c = int(data[at])
            if c < 0x80:
                at += 1
                if c > 57:  # most letters
                    spaces = 0
                    before = 0
                elif c <= 32:
                    spaces += 1
                    before = 0
                    if spaces > max_spaces:
                        held = 1
                else:
                    spaces = 0
                    if c >= 48:
                        if before == 2 and groups:
                            held = 1
                        before = 1
                    else:
                        before = 0
                continue
            if c < 0xE0:
                more, c = 1, c & 0x1F
            elif c < 0xF0:
                more, c = 2, c & 0x0F
            else:
                more, c = 3, c & 0x07
            for k in range(at + 1, min(at + 1 + more, end)):
                c = c << 6 | (int(data[k]) & 0x3F)
            at += 1 + more
            if c >= len(status):  # cannot be in valid UTF-8
                held = 1
                continue
            state = int(status[c])
            if state & 1 == 0 and state & 16 == 0 and found < len(waiting):
                waiting[found] = c
                found += 1
                status[c] = state | 16
            if state & 2:
                held = 1
            if state & 8:
                spaces += 1
                if spaces > max_spaces:
                    held = 1
            else:
                spaces = 0
            if state & 4:
                if before and groups:
                    held = 1
                before = 2
            else:
                before = 0
        if held:
            flags[i] = 1
    return found


@compiled
def regroup(ids, offsets, digit, groups, group_ids, group_lengths, out, out_offsets):  # type: ignore[no-untyped-def]
    """Ids of text split with one digit a pre-token, as they are with up to `groups` digits a pre-token.

    `digit[id]` is 0 to 9 for the ids of ASCII digits, else -1. Within a document, a run of digits is cut from its
    start into groups of `groups`, the last one shorter; a group of n digits with decimal value v has the ids
    group_ids[(n - 1) * 1000 + v, :group_lengths[...]]. Fills `out` (as long as ids) and `out_offsets`.
    """
    to = 0
    for i in range(len(offsets) - 1):
        out_offsets[i] = to
        value = 0
        have = 0
        for at in range(offsets[i], offsets[i + 1]):
            d = digit[ids[at]]
            if d >= 0:
                value = value * 10 + d
                have += 1
                if have < groups:
                    continue
            if have:
                row = (have - 1) * 1000 + value
                for k in range(group_lengths[row]):
                    out[to] = group_ids[row, k]
                    to += 1
                value = 0
                have = 0
            if d < 0:
                out[to] = ids[at]
                to += 1
        if have:
            row = (have - 1) * 1000 + value
            for k in range(group_lengths[row]):
                out[to] = group_ids[row, k]
                to += 1
    out_offsets[len(offsets) - 1] = to
    return to


@compiled
def spells(ids, id_offsets, data, offsets, table, table_offsets, good):  # type: ignore[no-untyped-def]
    """Sets good[i] where the tokens of document i, joined, are exactly its bytes `data[offsets[i]:offsets[i + 1]]`.

    Token t is the bytes table[table_offsets[t]:table_offsets[t + 1]]; an id outside the table spells nothing.
    """
    top = len(table_offsets) - 1
    for i in range(len(offsets) - 1):
        at, end = offsets[i], offsets[i + 1]
        same = True
        for j in range(id_offsets[i], id_offsets[i + 1]):
            token = int(ids[j])
            if token >= top:
                same = False
                break
            start, stop = table_offsets[token], table_offsets[token + 1]
            if stop == start or at + stop - start > end:
                same = False
                break
            other = 0
            for k in range(stop - start):
                other |= table[start + k] ^ data[at + k]
            at += stop - start
            if other:
                same = False
                break
        good[i] = same and at == end
