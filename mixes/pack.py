"""Documents into rows of L+1 tokens: best fit decreasing in windows, or plain concatenation; nothing is dropped.

A row holds L+1 tokens so that inputs = row[:-1] and targets = row[1:]. A document longer than a row is cut into
row-sized pieces and a remainder (bfd), or wherever a row ends (concat); a piece's first token is no target, so each
cut costs one target and no token is stored twice. What a row does not fill stays free at its end, for padding.
Where a phase ends inside a long document, the next phase goes on with the rest of it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from gristmill.mixes.draw import Cursor, Draws

WINDOW = 65_536
"""Documents packed together. Padding of web text at 4,096: 0.95 % with 256, 0.06 % with 4,096, 0.00 % with 65,536."""


@dataclass(frozen=True)
class Pieces:
    """Stretches of documents placed in rows: parallel int64 arrays, sorted by (row, row_start)."""

    row: np.ndarray
    row_start: np.ndarray
    document: np.ndarray
    doc_start: np.ndarray
    length: np.ndarray
    epoch: np.ndarray

    @staticmethod
    def join(parts: list[Pieces]) -> Pieces:
        names = list(Pieces.__dataclass_fields__)
        none = np.empty(0, np.int64)
        return Pieces(**{n: np.concatenate([none, *(getattr(p, n) for p in parts)]) for n in names})

    def __len__(self) -> int:
        return len(self.row)


def pack(draws: Draws, cursor: Cursor, rows: int, capacity: int, method: str, max_pieces: int) -> tuple[Pieces, Cursor]:
    """Fill exactly `rows` rows of `capacity` tokens from the cursor on. Returns the pieces and the cursor behind them.

    method: "bfd" or "concat". max_pieces: pieces in one row, at most. A document that does not fit any more is left to
    the next call; only one that is longer than all free rows is cut there.
    """
    if method == "concat":
        return _concat(draws, cursor, rows, capacity, max_pieces)
    parts: list[Pieces] = []
    made = 0
    while made < rows:
        part, cursor, used = _window(draws, cursor, rows - made, capacity, max_pieces)
        part.row[:] += made
        parts.append(part)
        made += used
    return Pieces.join(parts), cursor


def _window(draws: Draws, cursor: Cursor, rows: int, capacity: int, max_pieces: int) -> tuple[Pieces, Cursor, int]:
    """Pack one window into at most `rows` rows: as many documents as fit, or the head of a single longer one."""
    documents, epochs = draws.ahead(cursor, WINDOW, rows * capacity + cursor.tokens + 1)
    lengths = draws.lengths[documents].copy()
    lengths[0] -= cursor.tokens
    fit = int(np.searchsorted(np.cumsum(lengths), rows * capacity, side="right"))  # more cannot fit
    if fit == 0:
        full = np.arange(rows, dtype=np.int64)
        zero = np.zeros(rows, np.int64)
        starts = cursor.tokens + full * capacity
        part = Pieces(full, zero, zero + documents[0], starts, zero + capacity, zero + epochs[0])
        return part, Cursor(cursor.documents, cursor.tokens + rows * capacity), rows
    best, used = _layout(lengths[:fit], capacity, max_pieces)
    if used > rows:  # step back from the upper bound in doubling steps, then bisect for the most documents that fit
        low, high = 0, fit
        best, used = _empty(), 0
        step = 1 + fit // (8 * rows)
        while high - low > 1:
            middle = max(high - step, low + 1) if low == 0 else (low + high) // 2
            step *= 2
            tried, count = _layout(lengths[:middle], capacity, max_pieces)
            if count <= rows:
                low, best, used = middle, tried, count
            else:
                high = middle
        fit = low
    doc = best.document
    start = best.doc_start + np.where(doc == 0, cursor.tokens, 0)
    part = Pieces(best.row, best.row_start, documents[doc], start, best.length, epochs[doc])
    return part, Cursor(cursor.documents + fit, 0), used


def _empty() -> Pieces:
    return Pieces.join([])


def _layout(lengths: np.ndarray, capacity: int, max_pieces: int) -> tuple[Pieces, int]:
    """Best fit decreasing of whole documents: pieces (documents by position, epoch 0) and the number of rows."""
    counts = -(-lengths // capacity)
    document = np.repeat(np.arange(len(lengths)), counts)
    nth = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = nth * capacity
    length = np.minimum(lengths[document] - start, capacity)
    row, rows = best_fit_decreasing(length, capacity, max_pieces)
    order = np.lexsort((np.arange(len(row)), -length, row))  # within a row the longest piece first
    row, document, start, length = row[order], document[order], start[order], length[order]
    ends = np.cumsum(length)
    first = np.searchsorted(row, np.arange(rows))  # each row's first piece
    before = (ends - length)[first]
    return Pieces(row, ends - length - before[row], document, start, length, np.zeros_like(row)), rows


def best_fit_decreasing(lengths: np.ndarray, capacity: int, max_pieces: int) -> tuple[np.ndarray, int]:
    """Rows for pieces, longest first, each into the fullest row it fits. Returns (pieces,) int64 rows and their number.

    Exactly one-at-a-time best fit decreasing, done for all pieces of a length together: rows with the same free space
    are alike, so the state is {free space: rows} and the set of free spaces as the bits of one integer. A row that
    takes a piece and can take another of that length is now the fullest that can, so it is filled before the next.
    Ties: equal lengths in input order, equal rows oldest first. lengths: (pieces,) int64 in 1..capacity.
    """
    n = len(lengths)
    order = np.argsort(-lengths, kind="stable")
    ordered = lengths[order]
    row_of = np.empty(n, np.int64)
    held = np.zeros(n, np.int64)  # pieces in each row; there are at most n rows
    free: dict[int, deque[np.ndarray]] = {}
    spaces = 0
    rows = 0
    edges = np.flatnonzero(np.diff(ordered)) + 1
    for begin, end in zip([0, *edges.tolist()], [*edges.tolist(), n], strict=True) if n else []:
        length = int(ordered[begin])
        at = begin
        while at < end:
            fitting = spaces >> length
            if fitting:
                space = length + (fitting & -fitting).bit_length() - 1
                queue = free[space]
                candidates = queue.popleft()
                if not queue:
                    spaces ^= 1 << space
            else:
                space = capacity
                per_row = min(capacity // length, max_pieces)
                opened = -(-(end - at) // per_row)
                candidates = np.arange(rows, rows + opened)
                rows += opened
            room = np.minimum(space // length, max_pieces - held[candidates])
            ends = np.cumsum(room)
            taken = min(int(np.searchsorted(ends, end - at)) + 1, len(candidates))
            untouched, candidates, room = candidates[taken:], candidates[:taken], room[:taken]
            room[-1] -= max(int(ends[taken - 1]) - (end - at), 0)
            placed = int(room.sum())
            row_of[order[at : at + placed]] = np.repeat(candidates, room)
            held[candidates] += room
            at += placed
            back = [(space, untouched, True)]
            back += [(space - int(k) * length, candidates[room == k], False) for k in np.unique(room)]
            for left, group, older in back:
                group = group[held[group] < max_pieces]
                if left and len(group):
                    queue = free.setdefault(left, deque())
                    queue.appendleft(group) if older else queue.append(group)
                    spaces |= 1 << left
    return row_of, rows


def _concat(draws: Draws, cursor: Cursor, rows: int, capacity: int, max_pieces: int) -> tuple[Pieces, Cursor]:
    """The documents as one stream, cut at every row's end; a row that reaches `max_pieces` ends there."""
    want = rows * capacity + cursor.tokens
    if not rows:  # a share so small that it rounds to nothing (W202)
        none = np.empty(0, np.int64)
        return Pieces(none, none, none, none, none, none), cursor
    documents, epochs = draws.ahead(cursor, want, want)
    ends = np.cumsum(draws.lengths[documents])
    out: list[tuple[int, int, int, int, int]] = []  # row, row_start, position, doc_start, length
    at = cursor.tokens  # in the stream that starts with the cursor's document
    position = 0
    for row in range(rows):
        begin = at
        for _ in range(max_pieces):
            end = min(int(ends[position]), begin + capacity)
            doc_start = at - (int(ends[position - 1]) if position else 0)
            out.append((row, at - begin, position, doc_start, end - at))
            at = end
            if end == ends[position]:
                position += 1
            if at == begin + capacity:
                break
    table = np.asarray(out, np.int64).reshape(-1, 5).T
    pieces = Pieces(table[0], table[1], documents[table[2]], table[3], table[4], epochs[table[2]])
    left = at - (int(ends[position - 1]) if position else 0)
    return pieces, Cursor(cursor.documents + position, left)
