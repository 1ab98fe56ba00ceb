"""The records that planning keeps of documents: 48 bytes each, never a Python string."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gristmill.core.errors import FormatError
from gristmill.core.hashing import hash64
from gristmill.mixes.kernels import hash_32_bytes

DOCUMENT = np.dtype(
    [
        ("hash", "<u8"),  # xxh3-64 of the id: what the order of documents is made of
        ("offset", "<i8"),  # first token in the store's tokens.bin
        ("id", "V16"),  # raw bytes of the 32 hex digits
        ("length", "<i4"),  # tokens
        ("store", "<i4"),  # ordinal of the token store
        ("doc", "<i4"),  # row in its docs.parquet
        ("copy", "<i2"),  # 0 .. weight-1
        ("weight", "<i2"),  # times the document is drawn in one epoch
    ]
)
"""One draw of a document in an epoch of its source."""

PIECE = np.dtype(
    [
        ("row", "<i8"),  # destination: row within the phase
        ("begin", "<i8"),  # first token in the store's tokens.bin
        ("id", "V16"),
        ("row_start", "<i4"),  # first token of the piece inside the row
        ("length", "<i4"),  # tokens
        ("doc_start", "<i4"),  # first token of the piece inside its document
        ("store", "<i4"),
        ("doc", "<i4"),
        ("source", "<i2"),  # index into the layout's `sources`
        ("epoch", "<i2"),  # earlier uses of the document in its source
    ]
)
"""A stretch of a document placed in a row."""

_DIGITS = np.full(256, 255, np.uint8)
_DIGITS[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16, dtype=np.uint8)


def raw_ids(ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """(D,) V16 of ids given as 32 lower-case hex digits. Raises FormatError on any other."""
    texts = _bytes_of(ids, 32)
    if texts is None:
        raise FormatError("a document id is not 32 hex digits")
    values = _DIGITS[texts]
    if (values == 255).any():
        raise FormatError("a document id is not 32 hex digits")
    return np.ascontiguousarray(values[:, ::2] << 4 | values[:, 1::2]).view("V16").reshape(-1)


def hex_ids(ids: np.ndarray) -> list[str]:
    """The 32 hex digits of (D,) V16."""
    data = ids.tobytes().hex()
    return [data[i : i + 32] for i in range(0, len(data), 32)]


def hash_texts(texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """(D,) uint64: `core.hashing.hash64` of every text, none null. Ids of 32 bytes at 10 ns each, others one by one."""
    out = np.empty(len(texts), np.uint64)
    fixed = _bytes_of(texts, 32)
    if fixed is None:
        out[:] = np.fromiter((hash64(t) for t in texts.to_pylist()), np.uint64, len(texts))
    elif len(fixed):
        hash_32_bytes(fixed.view("<u8"), out)
    return out


def _bytes_of(texts: pa.Array | pa.ChunkedArray, size: int) -> np.ndarray | None:
    """(D, size) uint8 when every text is there and has `size` bytes; else None."""
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    if texts.null_count:
        return None
    if not len(texts):
        return np.empty((0, size), np.uint8)
    texts = texts.cast(pa.string())
    sizes = pc.min_max(pc.binary_length(texts)).as_py()
    if sizes != {"min": size, "max": size}:
        return None
    first = int(np.frombuffer(texts.buffers()[1], np.int32, 1, texts.offset * 4)[0])
    return np.frombuffer(texts.buffers()[2], np.uint8, len(texts) * size, first).reshape(-1, size)
