"""Documents into rows of L+1 tokens: best fit decreasing in windows, or plain concatenation.

A row holds L+1 tokens so that inputs = row[:-1] and targets = row[1:]. A document longer than a row is cut into
row-sized pieces and a remainder (bfd), or wherever a row ends (concat); a piece's first token is no target, so each
cut costs one target and no token is stored twice. `bfd-truncate` keeps a document's first L+1 tokens and counts the
rest as truncated; the other two drop nothing. What a row does not fill stays free at its end, for padding.
Where a phase ends inside a long document, the next phase goes on with the rest of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gristmill.mixes import kernels
from gristmill.mixes.draw import Cursor, Draws

WINDOW = 65_536
"""Documents packed together. Padding of web text at 4,096: 0.95 % with 256, 0.06 % with 4,096, 0.00 % with 65,536."""


@dataclass(frozen=True)
class Pieces:
    """Stretches of documents placed in rows: parallel int64 arrays, sorted by (row, row_start).

    `document` is the position in the documents that were packed.
    """

    row: np.ndarray
    row_start: np.ndarray
    document: np.ndarray
    doc_start: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class Window:
    """What was packed together. documents: DOCUMENT records; uses: earlier uses of each; cursor: behind the pieces."""

    documents: np.ndarray
    uses: np.ndarray
    pieces: Pieces
    cursor: Cursor
    truncated: int


def pack(
    draws: Draws, cursor: Cursor, rows: int, capacity: int, method: str, max_pieces: int, window: int = WINDOW
) -> Iterator[Window]:
    """Fill exactly `rows` rows of `capacity` tokens from the cursor on, window by window; none when `rows` is 0.

    method: "bfd", "bfd-truncate" or "concat". max_pieces: pieces in one row, at most. A document that does not fit any
    more is left to the next call; only one that is longer than all free rows is cut there.
    """
    if method == "concat":
        yield from _concat(draws, cursor, rows, capacity, max_pieces, window)
        return
    made = 0
    while made < rows:
        part, used = _window(draws, cursor, rows - made, capacity, max_pieces, method == "bfd-truncate", window)
        part.pieces.row[:] += made
        made += used
        cursor = part.cursor
        yield part


def _window(
    draws: Draws, cursor: Cursor, rows: int, capacity: int, max_pieces: int, truncate: bool, window: int
) -> tuple[Window, int]:
    """Pack one window into at most `rows` rows: as many documents as fit, or the head of a single longer one."""
    documents, uses = draws.ahead(cursor, window, rows * capacity + cursor.tokens + 1)
    whole = documents["length"].astype(np.int64)
    whole[0] -= cursor.tokens
    lengths = np.minimum(whole, capacity) if truncate else whole
    fit = int(np.searchsorted(np.cumsum(lengths), rows * capacity, side="right"))  # more cannot fit
    if fit == 0:
        full = np.arange(rows, dtype=np.int64)
        zero = np.zeros(rows, np.int64)
        pieces = Pieces(full, zero, zero, cursor.tokens + full * capacity, zero + capacity)
        return Window(documents, uses, pieces, Cursor(cursor.documents, cursor.tokens + rows * capacity), 0), rows
    best, used = _layout(lengths[:fit], capacity, max_pieces)
    if used > rows:  # step back from the upper bound in doubling steps, then bisect for the most documents that fit
        low, high = 0, fit
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
    best.doc_start[best.document == 0] += cursor.tokens
    lost = int((whole[:fit] - lengths[:fit]).sum()) if truncate else 0
    return Window(documents, uses, best, Cursor(cursor.documents + fit, 0), lost), used


def _layout(lengths: np.ndarray, capacity: int, max_pieces: int) -> tuple[Pieces, int]:
    """Best fit decreasing of whole documents, within a row the longest piece first, and the number of rows."""
    if len(lengths) and lengths.max() > capacity:
        total = int((-(-lengths // capacity)).sum())
        document, start, length = (np.empty(total, np.int64) for _ in range(3))
        kernels.split(lengths, capacity, document, start, length)
    else:
        document, start, length = np.arange(len(lengths)), np.zeros(len(lengths), np.int64), lengths
    row, row_start, order, held, out = (np.empty(len(length), np.int64) for _ in range(5))
    rows = kernels.fit_decreasing(length, capacity, max_pieces, row, row_start, order, held)
    kernels.by_row(row, order, held, rows, out)
    return Pieces(row[out], row_start[out], document[out], start[out], length[out]), rows


def best_fit_decreasing(lengths: np.ndarray, capacity: int, max_pieces: int) -> tuple[np.ndarray, int]:
    """Rows for pieces, longest first, each into the fullest row it fits. Returns (pieces,) int64 rows and their number.

    Ties: equal lengths in input order, equal rows oldest first. lengths: (pieces,) int64 in 1..capacity.
    """
    row, row_start, order, held = (np.empty(len(lengths), np.int64) for _ in range(4))
    rows = kernels.fit_decreasing(lengths, capacity, max_pieces, row, row_start, order, held)
    return row, rows


def _concat(draws: Draws, cursor: Cursor, rows: int, capacity: int, max_pieces: int, window: int) -> Iterator[Window]:
    """The documents as one stream, cut at every row's end; a row that reaches `max_pieces` ends there."""
    state = np.zeros(3, np.int64)  # row, tokens in it, pieces in it
    while state[0] < rows:
        ahead = (rows - int(state[0])) * capacity - int(state[1]) + cursor.tokens
        documents, uses = draws.ahead(cursor, window, ahead)
        lengths = documents["length"].astype(np.int64)
        most = len(lengths) + int(lengths.sum()) // capacity + 2  # every piece ends its document or fills its row
        out = np.empty((5, most), np.int64)
        pieces, used, left = kernels.concatenate(lengths, cursor.tokens, rows, capacity, max_pieces, state, out)
        cursor = Cursor(cursor.documents + used, left)
        yield Window(documents, uses, Pieces(*(column[:pieces].copy() for column in out)), cursor, 0)
