"""Which document of a cluster stays: a total order over documents from the recipe's `keep` list."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Int64s = NDArray[np.int64]

UNKNOWN = np.iinfo(np.int64).max


def date_numbers(dates: pa.Array | pa.ChunkedArray) -> Int64s:
    """WARC dates (ISO 8601, any precision down to milliseconds, or ARC's 14 digits) as sortable numbers.

    The first 17 digits, padded with zeros: 2024-03-01T12:00:00Z -> 20240301120000000. `UNKNOWN` for null or for
    text with fewer than 4 digits.
    """
    digits = pc.replace_substring_regex(pc.fill_null(dates, ""), "[^0-9]", "")
    known = pc.greater_equal(pc.binary_length(digits), 4)
    padded = pc.utf8_slice_codeunits(pc.utf8_rpad(digits, 17, "0"), 0, 17)
    numbers = pc.cast(pc.if_else(known, padded, str(UNKNOWN)), pa.int64())
    return np.asarray(numbers.to_numpy(zero_copy_only=False) if isinstance(numbers, pa.Array) else numbers.to_numpy())


def keep_ranks(keep: Sequence[str], lengths: Int64s, dates: Int64s) -> Int64s:
    """(D,) ranks, 0 first to stay, of documents given in id order: by the `keep` list, then the smallest id.

    A document without a date comes after those that have one under both `earliest` and `latest`.
    """
    keys: list[Int64s] = []
    for name in keep:
        if name == "longest":
            keys.append(-lengths)
        elif name == "shortest":
            keys.append(lengths)
        elif name == "earliest":
            keys.append(dates)
        else:
            assert name == "latest", name
            keys.append(np.where(dates == UNKNOWN, UNKNOWN, -dates))
    keys.append(np.arange(len(lengths)))
    ranks = np.empty(len(lengths), np.int64)
    ranks[np.lexsort(keys[::-1])] = np.arange(len(lengths))
    return ranks
