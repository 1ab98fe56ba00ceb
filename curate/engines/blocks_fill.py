"""Kernel: a page's blocks and elements to the feature rows of `blocks_features`."""

from __future__ import annotations

import numpy as np

from gristmill.curate.engines.blocks_scan import (
    ABOVE_HINTS,
    ABOVE_TAGS,
    BROKEN,
    CHARS,
    COMMAS,
    DEPTH,
    DIGITS,
    END,
    ENDS_COLON,
    ENDS_STOP,
    FIRST,
    GOOD,
    HINTS,
    LAST,
    LINK_TOKENS,
    LINKS,
    LOWER_STARTS,
    NODE,
    PARENT,
    QUOTES,
    RULES,
    START,
    STOPS,
    TAG,
    TOKENS,
    UPPER_STARTS,
    UPPERS,
    WIDES,
    compiled,
)  # fmt: skip


@compiled
def _bin(bins, value):  # type: ignore[no-untyped-def]
    return bins[min(max(value, 0), len(bins) - 1)]


@compiled
def _of(part, whole):  # type: ignore[no-untyped-def]
    """`part / whole` in sixteenths, rounded down; at most 127, 0 where there is nothing."""
    return min(127, 16 * part // max(whole, 1))


@compiled
def _texts(rows, at, text, blocks, title, letters, starts, groups, firsts, phrase_rows):  # type: ignore[no-untyped-def]
    """Rows of phrases, and one of blocks that stand in the page's title. Returns the first such block or -1."""
    titled_at = -1
    for i in range(blocks.shape[1]):
        low, high = blocks[START, i], blocks[END, i]
        for k in range(low, high):
            byte = text[k]
            if 65 <= byte <= 90:
                byte += 32
            for p in range(firsts[byte], firsts[byte + 1]):
                size = starts[p + 1] - starts[p]
                if k + size > high:
                    continue
                same = True
                for j in range(1, size):
                    other = text[k + j]
                    if 65 <= other <= 90:
                        other += 32
                    if other != letters[starts[p] + j]:
                        same = False
                        break
                if same:
                    rows[at + groups[p], i] = 1
        if 9 < high - low < 300:
            for k in range(len(title) - (high - low) + 1):
                same = True
                for j in range(high - low):
                    if title[k + j] != text[low + j]:
                        same = False
                        break
                if same:
                    rows[at + phrase_rows, i] = 1
                    if titled_at < 0:
                        titled_at = i
                    break
    return titled_at


@compiled
def _gaps(rows, at, bins, marks):  # type: ignore[no-untyped-def]
    """Two rows: blocks back, and ahead, to the nearest other marked one; 1,000 where there is none."""
    n = len(marks)
    seen = -1000
    for i in range(n):
        rows[at, i] = _bin(bins, i - seen)
        if marks[i]:
            seen = i
    seen = n + 1000
    for i in range(n - 1, -1, -1):
        rows[at + 1, i] = _bin(bins, seen - i)
        if marks[i]:
            seen = i


@compiled
def fill(  # type: ignore[no-untyped-def]
    rows,
    text,
    blocks,
    nodes,
    times,
    title,
    bins,
    letters,
    starts,
    groups,
    firsts,
    phrase_rows,
    above,
    heads,
    tag_count,
    group_count,
):
    """Fill (WIDTH, blocks) int8 rows; returns how many."""
    n, elements = blocks.shape[1], nodes.shape[1]
    titled_at = _texts(rows, 22, text, blocks, title, letters, starts, groups, firsts, phrase_rows)
    done = np.zeros((4, n + 1), np.int64)  # running tokens, link tokens, good tokens, sentences
    for i in range(n):
        done[0, i + 1] = done[0, i] + blocks[TOKENS, i]
        done[1, i + 1] = done[1, i] + blocks[LINK_TOKENS, i]
        done[2, i + 1] = done[2, i] + blocks[GOOD, i]
        done[3, i + 1] = done[3, i] + blocks[STOPS, i]
    tokens, linked, good = done[0, n], done[1, n], done[2, n]
    page = np.empty(5, np.int64)
    page[0], page[1], page[2] = _bin(bins, n), _bin(bins, tokens), _bin(bins, good)
    page[3], page[4] = _of(good, tokens), _of(linked, tokens)
    place = 22 + phrase_rows + 3
    for i in range(n):
        size, chars, node = blocks[TOKENS, i], blocks[CHARS, i], blocks[NODE, i]
        at = 0
        for field in (TOKENS, CHARS, STOPS, COMMAS, RULES, QUOTES, LINKS):
            rows[at, i] = _bin(bins, blocks[field, i])
            at += 1
        for field in (LINK_TOKENS, LOWER_STARTS, UPPER_STARTS, STOPS, COMMAS):
            rows[at, i] = min(16, _of(blocks[field, i], size))
            at += 1
        for field in (DIGITS, UPPERS, WIDES):
            rows[at, i] = _of(blocks[field, i], chars)
            at += 1
        for field in (ENDS_STOP, ENDS_COLON, BROKEN):
            rows[at, i] = blocks[field, i]
            at += 1
        rows[at, i] = min(16, chars // max(size, 1))
        rows[at + 1, i] = 1 if blocks[GOOD, i] else 0
        rows[at + 2, i] = min(6, times[i])
        rows[at + 3, i] = min(40, nodes[DEPTH, node])
        at = 22 + phrase_rows + 1
        if titled_at >= 0:
            away = min(20, _bin(bins, abs(i - titled_at)))
            rows[at, i] = away if i >= titled_at else -away
            rows[at + 1, i] = 1
        rows[place, i] = _of(i, n)
        rows[place + 1, i] = _of(done[0, i + 1], tokens)
        rows[place + 2, i] = _of(done[2, i + 1], good)
        rows[place + 3, i] = _bin(bins, i)
        rows[place + 4, i] = _bin(bins, n - 1 - i)
        for k in range(5):
            rows[place + 5 + k, i] = page[k]
    _gaps(rows, place + 10, bins, blocks[GOOD] > 0)
    at = place + 12
    for offset in (-3, -2, -1, 1, 2, 3):
        for i in range(max(0, -offset), min(n, n - offset)):
            other = i + offset
            mine, its = blocks[NODE, i], blocks[NODE, other]
            tag = nodes[TAG, its]
            rows[at, i] = _bin(bins, blocks[TOKENS, other])
            rows[at + 1, i] = _of(blocks[LINK_TOKENS, other], blocks[TOKENS, other])
            rows[at + 2, i] = _bin(bins, blocks[STOPS, other])
            rows[at + 3, i] = 1 if tag == heads[2] else 0
            rows[at + 4, i] = 1 if heads[0] <= tag <= heads[1] else 0
            rows[at + 5, i] = 1 if mine == its or nodes[PARENT, mine] == nodes[PARENT, its] else 0
        at += 6
    # the element that gathers most good text: its own blocks and its children's in full, its grandchildren's half
    gathered = np.zeros((3, elements), np.int64)
    for i in range(n):
        gathered[0, blocks[NODE, i]] += blocks[GOOD, i]
    for step in range(2):
        for k in range(1, elements):
            gathered[step + 1, nodes[PARENT, k]] += gathered[step, k]
    best, most = 0, -1
    for k in range(elements):
        worth = 2 * gathered[0, k] + 2 * gathered[1, k] + gathered[2, k]
        if worth > most:
            best, most = k, worth
    around = at + 29
    for _ in range(3):
        low, high = nodes[FIRST, best], nodes[LAST, best]
        share = _of(done[2, high] - done[2, low], good)
        for i in range(n):
            if i < low:
                rows[around, i] = -min(20, _bin(bins, low - i))
            elif i >= high:
                rows[around, i] = min(20, _bin(bins, i - high + 1))
            else:
                rows[around + 1, i] = 1
            rows[around + 2, i] = share
        around += 3
        best = max(nodes[PARENT, best], 0)
    for i in range(n):
        node = blocks[NODE, i]
        row = at
        for step in range(4):
            if step:
                node = max(nodes[PARENT, node], 0)
            low, high = nodes[FIRST, node], nodes[LAST, node]
            inside, fine = done[0, high] - done[0, low], done[2, high] - done[2, low]
            rows[row, i] = _bin(bins, inside)
            rows[row + 1, i] = _of(done[1, high] - done[1, low], inside)
            rows[row + 2, i] = _bin(bins, high - low)
            rows[row + 3, i] = _of(fine, inside)
            rows[row + 4, i] = _of(fine, good)
            rows[row + 5, i] = _bin(bins, done[3, high] - done[3, low])
            rows[row + 6, i] = _of(blocks[TOKENS, i], inside)
            row += 7
        rows[row, i] = 1 if nodes[PARENT, blocks[NODE, i]] == 0 else 0
        row = at + 38
        node = blocks[NODE, i]
        hints = nodes[HINTS, node]
        for step in range(3):
            rows[row + nodes[TAG, node], i] = 1
            row += tag_count
            node = max(nodes[PARENT, node], 0)
            if step == 0:
                hints |= nodes[HINTS, node]
        node = blocks[NODE, i]
        for k in range(len(above)):
            rows[row + k, i] = nodes[ABOVE_TAGS, node] >> above[k] & 1
        row += len(above)
        for k in range(group_count):
            rows[row + k, i] = hints >> k & 1
            rows[row + group_count + k, i] = nodes[ABOVE_HINTS, node] >> k & 1
    return at + 38 + 3 * tag_count + len(above) + 2 * group_count
