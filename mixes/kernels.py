"""The compiled loops of packing and shuffling: best fit decreasing, concatenation, the even interleave, copying pieces.

numba's disk cache sees changes of this file only, so everything a loop uses is here or passed to it. Each loop is exact:
tests compare it with a plain Python twin, and its result depends on its arguments alone.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

U64 = np.uint64


def compiled(function: Any) -> Any:
    """The function compiled at its first call, kept on disk where numba finds a folder to write to."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except (OSError, RuntimeError):
        return numba.njit(nogil=True)(function)


@compiled
def lowest_bit(word):  # type: ignore[no-untyped-def]
    """The place (0..63) of the lowest set bit of a uint64 that is not 0."""
    at = 0
    if word & U64(0xFFFFFFFF) == U64(0):
        at += 32
        word >>= U64(32)
    if word & U64(0xFFFF) == U64(0):
        at += 16
        word >>= U64(16)
    if word & U64(0xFF) == U64(0):
        at += 8
        word >>= U64(8)
    if word & U64(0xF) == U64(0):
        at += 4
        word >>= U64(4)
    if word & U64(0x3) == U64(0):
        at += 2
        word >>= U64(2)
    if word & U64(0x1) == U64(0):
        at += 1
    return at


@compiled
def first_set(words, summary, at):  # type: ignore[no-untyped-def]
    """The smallest set bit >= `at`, or -1. `summary` has one bit per word of `words`: whether it holds any."""
    word = at >> 6
    if word >= len(words):
        return -1
    found = words[word] >> U64(at & 63)
    if found:
        return at + lowest_bit(found)
    word += 1
    block = word >> 6
    if block >= len(summary):
        return -1
    rest = summary[block] >> U64(word & 63)
    if rest:
        word += lowest_bit(rest)
        return (word << 6) + lowest_bit(words[word])
    for b in range(block + 1, len(summary)):
        if summary[b]:
            word = (b << 6) + lowest_bit(summary[b])
            return (word << 6) + lowest_bit(words[word])
    return -1


@compiled
def fit_decreasing(lengths, capacity, max_pieces, row_of, start_of, order, held):  # type: ignore[no-untyped-def]
    """Best fit decreasing of pieces into rows; returns the number of rows.

    lengths: (n,) int64 in 1..capacity. Fills, for every piece, row_of and start_of (its first token in the row), and
    `order`, the pieces longest first, equal ones in input order; `held` counts the pieces of each row. Rows of the same
    free space wait in a queue, oldest first; the free spaces that have one are the bits of a two-level bitmap.
    """
    n = len(lengths)
    counts = np.zeros(capacity + 2, np.int64)  # counting sort, descending
    for i in range(n):
        counts[capacity - lengths[i] + 1] += 1
    for k in range(1, capacity + 2):
        counts[k] += counts[k - 1]
    for i in range(n):
        k = capacity - lengths[i]
        order[counts[k]] = i
        counts[k] += 1
    words = np.zeros((capacity >> 6) + 1, np.uint64)
    summary = np.zeros((len(words) >> 6) + 1, np.uint64)
    head = np.full(capacity + 1, -1, np.int64)
    tail = np.full(capacity + 1, -1, np.int64)
    following = np.empty(n, np.int64)
    free = np.empty(n, np.int64)
    rows = 0
    at = 0
    while at < n:
        length = lengths[order[at]]
        space = first_set(words, summary, length)
        if space >= 0:
            row = head[space]
            head[space] = following[row]
            if head[space] < 0:
                words[space >> 6] &= ~(U64(1) << U64(space & 63))
                if words[space >> 6] == U64(0):
                    summary[space >> 12] &= ~(U64(1) << U64((space >> 6) & 63))
        else:
            row = rows
            rows += 1
            free[row] = capacity
            held[row] = 0
        # a row that takes a piece and can take another of this length is now the fullest that can
        while at < n and lengths[order[at]] == length and free[row] >= length and held[row] < max_pieces:
            piece = order[at]
            row_of[piece] = row
            start_of[piece] = capacity - free[row]
            free[row] -= length
            held[row] += 1
            at += 1
        left = free[row]
        if left > 0 and held[row] < max_pieces:
            following[row] = -1
            if head[left] < 0:
                head[left] = row
                words[left >> 6] |= U64(1) << U64(left & 63)
                summary[left >> 12] |= U64(1) << U64((left >> 6) & 63)
            else:
                following[tail[left]] = row
            tail[left] = row
    return rows


@compiled
def by_row(row_of, order, held, rows, out):  # type: ignore[no-untyped-def]
    """The pieces row by row into `out`, within a row in their order in `order`."""
    place = np.zeros(rows + 1, np.int64)
    for row in range(rows):
        place[row + 1] = place[row] + held[row]
    for i in range(len(order)):
        row = row_of[order[i]]
        out[place[row]] = order[i]
        place[row] += 1


@compiled
def split(lengths, capacity, document, start, length):  # type: ignore[no-untyped-def]
    """Cut documents into pieces of at most `capacity` tokens, in order; the last three are filled, one entry a piece."""
    at = 0
    for d in range(len(lengths)):
        begin = 0
        while begin < lengths[d]:
            document[at] = d
            start[at] = begin
            length[at] = min(capacity, lengths[d] - begin)
            begin += capacity
            at += 1


@compiled
def concatenate(lengths, skip, rows, capacity, max_pieces, state, out):  # type: ignore[no-untyped-def]
    """Lay documents end to end into rows, cutting at every row's end; returns (pieces, documents used up, left over).

    skip: tokens of the first document that are placed already. state: int64 (row, filled, pieces in it), carried from
    window to window. out: (5, most) int64, filled with row, row_start, document, doc_start, length. Stops with row
    `rows` or with the documents; `left over` counts the placed tokens of the document after the used-up ones.
    """
    row, filled, held = state[0], state[1], state[2]
    pieces = 0
    document = 0
    done = skip
    while row < rows and document < len(lengths):
        take = min(capacity - filled, lengths[document] - done)
        out[0, pieces] = row
        out[1, pieces] = filled
        out[2, pieces] = document
        out[3, pieces] = done
        out[4, pieces] = take
        pieces += 1
        held += 1
        filled += take
        done += take
        if done == lengths[document]:
            document += 1
            done = 0
        if filled == capacity or held == max_pieces:
            row += 1
            filled = 0
            held = 0
    state[0], state[1], state[2] = row, filled, held
    return pieces, document, done


@compiled
def sift(keys, sources, size, key, source):  # type: ignore[no-untyped-def]
    """Add (key, source) to a binary heap of `size` entries; the smallest key, then source, is on top."""
    at = size
    while at > 0:
        up = (at - 1) >> 1
        if keys[up] < key or (keys[up] == key and sources[up] < source):
            break
        keys[at], sources[at] = keys[up], sources[up]
        at = up
    keys[at], sources[at] = key, source


@compiled
def sink(keys, sources, size):  # type: ignore[no-untyped-def]
    """Remove the top of a heap of `size` entries."""
    size -= 1
    key, source = keys[size], sources[size]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        other = child + 1
        if other < size and (
            keys[other] < keys[child] or (keys[other] == keys[child] and sources[other] < sources[child])
        ):
            child = other
        if key < keys[child] or (key == keys[child] and source < sources[child]):
            break
        keys[at], sources[at] = keys[child], sources[child]
        at = child
    keys[at], sources[at] = key, source


@compiled
def deal(counts, out):  # type: ignore[no-untyped-def]
    """The slots of `order.interleave`: earliest deadline first over the sources' counts (int64) into `out`.

    Item j's window [floor(j N / n), ceil((j+1) N / n)) is carried as quotient and remainder, so no product overflows.
    Returns the first slot whose deadline is missed (none ever is), else -1.
    """
    sources = len(counts)
    total = len(out)
    value = np.zeros(sources, np.int64)  # floor(j N / n) of each source's next item, and the remainder of it
    part = np.zeros(sources, np.int64)
    left = counts.copy()
    wait_key, wait_of = np.empty(sources, np.int64), np.empty(sources, np.int64)
    ready_key, ready_of = np.empty(sources, np.int64), np.empty(sources, np.int64)
    waiting = 0
    ready = 0
    for i in range(sources):
        if counts[i]:
            sift(wait_key, wait_of, waiting, 0, i)
            waiting += 1
    for slot in range(total):
        while waiting and wait_key[0] <= slot:
            i = wait_of[0]
            sink(wait_key, wait_of, waiting)
            waiting -= 1
            value[i] += total // counts[i]
            part[i] += total % counts[i]
            if part[i] >= counts[i]:
                part[i] -= counts[i]
                value[i] += 1
            sift(ready_key, ready_of, ready, value[i] + (1 if part[i] else 0), i)
            ready += 1
        if not ready or ready_key[0] <= slot:
            return slot
        i = ready_of[0]
        sink(ready_key, ready_of, ready)
        ready -= 1
        out[slot] = i
        left[i] -= 1
        if left[i]:
            sift(wait_key, wait_of, waiting, value[i], i)
            waiting += 1
    return -1


@compiled
def group(slots, starts, out):  # type: ignore[no-untyped-def]
    """Slots by source into `out`, ascending within each; starts: where each source's begin (moved to their ends)."""
    for slot in range(len(slots)):
        i = slots[slot]
        out[starts[i]] = slot
        starts[i] += 1


@compiled
def copy_pieces(target, source, place, begin, length):  # type: ignore[no-untyped-def]
    """target[place : place+length] = source[begin : begin+length] for every piece, in one-dimensional arrays."""
    for p in range(len(place)):
        a, b, n = place[p], begin[p], length[p]
        target[a : a + n] = source[b : b + n]


@compiled
def fold(a, b):  # type: ignore[no-untyped-def]
    """The two halves of the 128-bit product of uint64s, xored."""
    mask = U64(0xFFFFFFFF)
    al, ah, bl, bh = a & mask, a >> U64(32), b & mask, b >> U64(32)
    low, one, two = al * bl, ah * bl, al * bh
    middle = (low >> U64(32)) + (one & mask) + two
    return (a * b) ^ (ah * bh + (one >> U64(32)) + (middle >> U64(32)))


@compiled
def hash_32_bytes(words, out):  # type: ignore[no-untyped-def]
    """xxh3-64 (seed 0) of 32-byte keys: words (n, 4) little-endian uint64. Constants of the XXH3 specification."""
    for i in range(len(words)):
        acc = U64(32) * U64(0x9E3779B185EBCA87)
        acc += fold(words[i, 0] ^ U64(0xBE4BA423396CFEB8), words[i, 1] ^ U64(0x1CAD21F72C81017C))
        acc += fold(words[i, 2] ^ U64(0xDB979083E96DD4DE), words[i, 3] ^ U64(0x1F67B3B7A4A44072))
        acc = (acc ^ (acc >> U64(37))) * U64(0x165667919E3779F9)
        out[i] = acc ^ (acc >> U64(32))
