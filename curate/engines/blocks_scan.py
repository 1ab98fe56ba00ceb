"""Kernel: canonical HTML bytes to text blocks with their counts, and the tree of block-level elements around them.

numba compiles it; run as plain Python (`scan.py_func`) it gives the same bytes and numbers. numba's disk cache sees
changes of the compiled function's own file only: change a number below, and `blocks_fill.py` must change too.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

TEXT, DROPPED, LINK, BREAK, BLOCK = range(5)
"""What an element does: nothing, goes with its content, marks link text, ends a block, or is an element of the tree."""
SPACE, WORD, LOWER, UPPER, DIGIT, WIDE, STOP, COMMA, RULE, QUOTE = range(10)
"""Classes of characters."""
(NODE, BROKEN, START, END, TOKENS, LINK_TOKENS, CHARS, STOPS, COMMAS, RULES, QUOTES, LINKS, DIGITS) = range(13)
(UPPERS, LOWER_STARTS, UPPER_STARTS, WIDES, ENDS_STOP, ENDS_COLON, GOOD, HEAD) = range(13, 21)
BLOCK_FIELDS = 21
"""Per block: its element, whether a `<br>` began it, its bytes, counts, and a hash of its first 80 bytes."""
PARENT, TAG, HINTS, ABOVE_HINTS, ABOVE_TAGS, DEPTH, FIRST, LAST = range(8)
NODE_FIELDS = 8
"""Per element: see `blocks_dom.Page`; its blocks are FIRST <= i < LAST."""
FNV_BASIS, FNV_PRIME = np.uint64(14695981039346656037), np.uint64(1099511628211)


def compiled(function: Any) -> Any:
    """The function compiled at its first call, kept on disk where numba finds a folder to write to."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except (OSError, RuntimeError):
        return numba.njit(nogil=True)(function)


@compiled
def find(keys, wanted):  # type: ignore[no-untyped-def]
    """The place of a hash among sorted ones, or -1."""
    low, high = 0, len(keys)
    while low < high:
        middle = (low + high) // 2
        if keys[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    if low < len(keys) and keys[low] == wanted:
        return low
    return -1


@compiled
def hints_of(data, low, high, word_keys, word_bits, hidden):  # type: ignore[no-untyped-def]
    """Bits of the groups that the words of attributes `data[low:high]` name; values of href, src and style are left out."""
    bits = 0
    at = low
    while at < high:
        while at < high and data[at] == 32:
            at += 1
        name = at
        while at < high and data[at] != 61 and data[at] != 32:
            at += 1
        size = at - name
        first = data[name] if size else 0
        if at >= high or data[at] != 61:
            if size == 6 and first == 104 and data[name + 1] == 105:
                bits |= hidden
            continue
        at += 2
        value = at
        while at < high and data[at] != 34:
            at += 1
        end = at
        at += 1
        if (size == 6 and first == 104 and data[name + 1] == 105) or (
            size == 11 and first == 97 and end - value == 4 and data[value] == 116
        ):  # hidden=""
            bits |= hidden
        elif size == 5 and first == 115 and data[name + 1] == 116:  # style: display:none, visibility:hidden
            for i in range(value, end - 3):
                if data[i] == 58 or data[i] == 32:
                    none = data[i + 1] == 110 and data[i + 2] == 111 and data[i + 3] == 110
                    if none or (data[i + 1] == 104 and data[i + 2] == 105 and data[i + 3] == 100):
                        bits |= hidden
                        break
        elif (
            (size == 5 and first == 99)  # class
            or (size == 2 and first == 105)  # id
            or (size == 4 and first == 114)  # role
            or (size == 8 and first == 105)  # itemprop
            or (size >= 11 and first == 100 and data[name + 5] != 115)  # data-component, data-testid, not data-src
        ):
            word, length, upper = FNV_BASIS, 0, False
            for i in range(value, min(end, value + 2000) + 1):
                byte = data[i] if i < end else 32
                capital = 65 <= byte <= 90
                letter = capital or 97 <= byte <= 122
                if length and (not letter or (capital and not upper)):
                    found = find(word_keys, word)
                    if found >= 0:
                        bits |= word_bits[found]
                    word, length = FNV_BASIS, 0
                if letter:
                    word = (word ^ np.uint64(byte | 32)) * FNV_PRIME
                    length += 1
                upper = capital
    return bits


@compiled
def scan(data, keys, kinds, numbers, word_keys, word_bits, hidden, classes, pre_tag, max_nodes):  # type: ignore[no-untyped-def]
    """(bytes,) uint8 → text (bytes), blocks (BLOCK_FIELDS, B) and elements (NODE_FIELDS, N) int64, whether cut short.

    `keys`: FNV-1a hashes of element names, sorted; `kinds` and `numbers` what each is. An unknown name is a block-level
    element of number `numbers[-1]`. Text has white space collapsed outside `pre`, entities resolved, a newline after
    each block.
    """
    total = len(data)
    opens = 0
    for i in range(total):
        if data[i] == 60:
            opens += 1
    opens = min(opens, max_nodes) + 2
    out = np.empty(total + opens + 8, np.uint8)
    blocks = np.zeros((BLOCK_FIELDS, opens), np.int64)
    nodes = np.zeros((NODE_FIELDS, opens), np.int64)
    nodes[PARENT, 0] = -1
    nodes[ABOVE_TAGS, 0] = 1
    count, elements, node = 0, 1, 0
    links, pre, broken, seen_tags = 0, 0, 0, 0
    at, wrote, start = 0, 0, 0
    pending, visible, joined = False, False, False
    last_kind, kind_before, last_char = SPACE, SPACE, 0
    by_kind = np.zeros(10, np.int64)
    begins = np.zeros(10, np.int64)
    link_tokens, anchors = 0, 0
    short = False
    while at <= total:
        flush = at == total
        opened, closed, number, bits = False, False, 0, 0
        if at < total and data[at] == 60:
            seen_tags += 1
            if seen_tags > max_nodes:
                short = True
                at = total
                continue
            if at + 1 < total and data[at + 1] == 33:  # comment or doctype
                at = min(at + 2, total)
                if at + 1 < total and data[at] == 45 and data[at + 1] == 45:
                    at += 2
                    while at < total and not (data[at] == 62 and data[at - 1] == 45 and data[at - 2] == 45):
                        at += 1
                else:
                    while at < total and data[at] != 62:
                        at += 1
                at = min(at + 1, total)
                continue
            at += 1
            closing = at < total and data[at] == 47
            if closing:
                at += 1
            name_at, name = at, FNV_BASIS
            while at < total and data[at] != 32 and data[at] != 62:
                name = (name ^ np.uint64(data[at])) * FNV_PRIME
                at += 1
            name_end = at
            while at < total and data[at] != 62:
                at += 1
            attributes_end = at
            at = min(at + 1, total)
            place = find(keys, name)
            if place >= 0:
                kind, number = kinds[place], numbers[place]
            else:
                kind, number = BLOCK, numbers[-1]
            if kind == TEXT:
                continue
            if kind == LINK:
                if closing:
                    links = max(0, links - 1)
                else:
                    links += 1
                    anchors += 1
                continue
            if kind == DROPPED:
                if not closing:
                    size = name_end - name_at
                    while at < total:
                        if data[at] == 60 and at + 2 + size <= total and data[at + 1] == 47:
                            same = True
                            for i in range(size):
                                if data[at + 2 + i] != data[name_at + i]:
                                    same = False
                                    break
                            if same:
                                break
                        at += 1
                continue
            flush = True
            if kind == BLOCK:
                opened, closed = not closing, closing
                if opened and number:
                    bits = hints_of(data, name_end, min(attributes_end, total), word_keys, word_bits, hidden)
        if flush:
            if visible:
                while wrote > start and (out[wrote - 1] == 32 or out[wrote - 1] == 10):
                    wrote -= 1
                blocks[NODE, count], blocks[BROKEN, count] = node, broken
                blocks[START, count], blocks[END, count] = start, wrote
                blocks[TOKENS, count] = begins[WORD] + begins[LOWER] + begins[UPPER] + begins[DIGIT] + by_kind[WIDE]
                blocks[LINK_TOKENS, count] = link_tokens
                for i in range(WORD, WIDE + 1):
                    blocks[CHARS, count] += by_kind[i]
                blocks[STOPS, count], blocks[COMMAS, count] = by_kind[STOP], by_kind[COMMA]
                blocks[RULES, count], blocks[QUOTES, count] = by_kind[RULE], by_kind[QUOTE]
                blocks[LINKS, count] = anchors
                blocks[DIGITS, count], blocks[UPPERS, count] = by_kind[DIGIT], by_kind[UPPER]
                blocks[LOWER_STARTS, count], blocks[UPPER_STARTS, count] = begins[LOWER], begins[UPPER]
                blocks[WIDES, count] = by_kind[WIDE]
                if last_kind == STOP or (last_kind == QUOTE and kind_before == STOP):
                    blocks[ENDS_STOP, count] = 1
                blocks[ENDS_COLON, count] = 1 if last_char == 58 else 0
                head = FNV_BASIS
                for i in range(start, min(wrote, start + 80)):
                    head = (head ^ np.uint64(out[i])) * FNV_PRIME
                blocks[HEAD, count] = np.int64(head >> np.uint64(1))
                out[wrote] = 10
                wrote += 1
                count += 1
                broken = 0
            else:
                wrote = start
            start = wrote
            by_kind[:] = 0
            begins[:] = 0
            link_tokens, anchors = 0, 1 if links else 0
            pending, visible, joined = False, False, False
            last_kind, kind_before = SPACE, SPACE
            if at >= total and not (opened or closed):
                if at == total:
                    break
                continue
            if opened:
                nodes[PARENT, elements], nodes[TAG, elements], nodes[HINTS, elements] = node, number, bits
                nodes[ABOVE_HINTS, elements] = nodes[ABOVE_HINTS, node] | bits
                nodes[ABOVE_TAGS, elements] = nodes[ABOVE_TAGS, node] | (1 << number)
                nodes[DEPTH, elements] = nodes[DEPTH, node] + 1
                nodes[FIRST, elements], nodes[LAST, elements] = count, -1
                node = elements
                elements += 1
                if number == pre_tag:
                    pre += 1
            elif closed:
                if node:
                    nodes[LAST, node] = count
                    if number == pre_tag and pre:
                        pre -= 1
                    node = nodes[PARENT, node]
            else:
                broken = 1
            continue
        # one character of text
        byte = np.int64(data[at])
        size, char = 1, byte
        if byte == 38:
            left = total - at
            if left > 4 and data[at + 1] == 97 and data[at + 2] == 109 and data[at + 4] == 59:
                size = 5
            elif (
                left > 3 and data[at + 2] == 116 and data[at + 3] == 59 and (data[at + 1] == 108 or data[at + 1] == 103)
            ):
                size, char = 4, 60 if data[at + 1] == 108 else 62
            elif left > 5 and data[at + 1] == 110 and data[at + 2] == 98 and data[at + 5] == 59:
                size, char = 6, 32
        elif byte >= 240:
            size, char = 4, 65536
        elif byte >= 224:
            if at + 2 < total:
                char = ((byte & 15) << 12) | ((np.int64(data[at + 1]) & 63) << 6) | (np.int64(data[at + 2]) & 63)
            size = 3
        elif byte >= 192:
            if at + 1 < total:
                char = ((byte & 31) << 6) | (np.int64(data[at + 1]) & 63)
            size = 2
        kind = classes[char]
        if kind == SPACE:
            joined = False
            if pre:
                if visible or char != 10:
                    out[wrote] = 10 if char == 10 or char == 13 else 32
                    wrote += 1
            else:
                pending = visible
            at = min(at + size, total)
            continue
        if pending:
            out[wrote] = 32
            wrote += 1
            pending = False
        if byte == 38:
            out[wrote] = char
            wrote += 1
            at = min(at + size, total)
        else:
            for _ in range(min(size, total - at)):
                out[wrote] = data[at]
                wrote += 1
                at += 1
        visible = True
        by_kind[kind] += 1
        kind_before, last_kind, last_char = last_kind, kind, char
        letter = WORD <= kind <= DIGIT
        if letter and not joined:
            begins[kind] += 1
        if links and (kind == WIDE or (letter and not joined)):
            link_tokens += 1
        joined = letter
    while node > 0:
        nodes[LAST, node] = count
        node = nodes[PARENT, node]
    nodes[LAST, 0] = count
    for i in range(count):
        tokens = blocks[TOKENS, i]
        if tokens >= 10 and 3 * blocks[LINK_TOKENS, i] <= tokens and blocks[STOPS, i] + blocks[COMMAS, i] > 0:
            blocks[GOOD, i] = tokens
    return out[:wrote], blocks[:, :count].copy(), nodes[:, :elements].copy(), short
