"""Token stores on disk: write one document after the other, read any document back.

The format is that of `core.tokshards`: tokens.bin and docs.parquet (TOKEN_DOC_SCHEMA, then extra columns). The token
width is not stored; it follows from the size of tokens.bin and the number of tokens that docs.parquet names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gristmill.core.docshards import TableWriter
from gristmill.core.errors import FormatError
from gristmill.core.tokshards import TOKEN_DOC_SCHEMA, token_dtype


def is_scalar(kind: pa.DataType) -> bool:
    """Whether a column of this type may stand in a token store beside the fixed ones: text, number or truth value."""
    tests = (pa.types.is_string, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating)
    return any(test(kind) for test in tests)


def extra_fields(schema: pa.Schema) -> list[pa.Field]:
    """The columns of a docs.parquet behind the fixed ones. Raises ValueError where it is no token store's."""
    fixed = len(TOKEN_DOC_SCHEMA)
    names = schema.names[:fixed]
    if names != TOKEN_DOC_SCHEMA.names or any(f.type != TOKEN_DOC_SCHEMA.field(f.name).type for f in [*schema][:fixed]):
        raise ValueError("other columns than a token store's documents")
    extra = [*schema][fixed:]
    if odd := [f.name for f in extra if not is_scalar(f.type) or f.name in names]:
        raise ValueError(f"column `{odd[0]}` is no text, number or truth value, or stands there twice")
    return extra


class StoreWriter:
    """Writes a token store in batches. Use as a context manager; memory is bounded by one batch.

    `extra`: further columns of each document, of types that `is_scalar` allows.
    """

    def __init__(self, tokens_path: Path, docs_path: Path, vocab_size: int, extra: Sequence[pa.Field] = ()) -> None:
        schema = pa.schema([*TOKEN_DOC_SCHEMA, *(pa.field(f.name, f.type) for f in extra)])
        extra_fields(schema)
        self.dtype = token_dtype(vocab_size)
        self.tokens = 0
        self._bin = open(tokens_path, "wb")  # noqa: SIM115  closed by __exit__
        self._docs = TableWriter(docs_path, schema)

    def write(self, documents: Sequence[np.ndarray], columns: pa.Table) -> None:
        """Append documents: per document its ids (closing eos included), and a table of the other columns.

        `columns` has one row per document, every column of TOKEN_DOC_SCHEMA but `offset` and `length`, and the extra
        ones. A `dup_count` that is absent or null is written as 1. Raises ValueError when the row counts differ.
        """
        if len(documents) != columns.num_rows:
            raise ValueError(f"{len(documents)} documents for {columns.num_rows} rows")
        if not documents:
            return
        lengths = np.fromiter((len(d) for d in documents), np.int64, len(documents))
        offsets = self.tokens + np.concatenate([[0], np.cumsum(lengths)[:-1]])
        self._bin.write(np.concatenate(documents).astype(self.dtype, casting="same_kind").tobytes())
        if "dup_count" in columns.column_names:
            counts = pc.fill_null(columns["dup_count"], 1)
            columns = columns.drop_columns(["dup_count"])
        else:
            counts = pa.array(np.ones(len(documents), np.int32))
        columns = columns.append_column("dup_count", counts)
        table = columns.append_column("offset", pa.array(offsets, pa.int64()))
        self._docs.write(table.append_column("length", pa.array(lengths, pa.int32())))
        self.tokens += int(lengths.sum())

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._bin.close()
        self._docs.__exit__(*error)


class TokenStore:
    """A token store opened for reading; tokens are memory-mapped.

    `docs` is the whole document table, `offsets` (docs,) and `lengths` (docs,) are int64 in tokens.
    Raises FormatError when the files are damaged or do not belong together.
    """

    def __init__(self, tokens_path: str | Path, docs_path: str | Path) -> None:
        self.path = Path(tokens_path)
        try:
            size = self.path.stat().st_size
            self.docs: pa.Table = pq.read_table(docs_path)
        except (OSError, pa.ArrowInvalid) as error:
            raise FormatError(f"{tokens_path}, {docs_path}: no token store: {error}") from error
        try:
            extra_fields(self.docs.schema)
        except ValueError as error:
            raise FormatError(f"{docs_path}: {error}") from error
        self.offsets: np.ndarray = self.docs["offset"].to_numpy()
        self.lengths: np.ndarray = self.docs["length"].to_numpy().astype(np.int64)
        ends = np.cumsum(self.lengths)
        total = int(ends[-1]) if len(ends) else 0
        if (self.lengths < 0).any() or not np.array_equal(self.offsets, ends - self.lengths):
            raise FormatError(f"{docs_path}: documents do not stand back to back")
        widths = {total * width: dtype for width, dtype in ((2, "<u2"), (4, "<u4"))}
        if size not in widths:
            raise FormatError(f"{self.path} has {size} bytes, its documents have {total} tokens")
        self.dtype: np.dtype[Any] = np.dtype(widths[size] if total else "<u2")
        self.data: np.ndarray = np.memmap(self.path, self.dtype, "r") if total else np.empty(0, self.dtype)

    def __len__(self) -> int:
        return len(self.lengths)

    def tokens(self, doc: int) -> np.ndarray:
        """(length,) ids of one document, closing eos included; a view of the file. Raises IndexError."""
        if not 0 <= doc < len(self):
            raise IndexError(f"document {doc} of {len(self)}")
        start = int(self.offsets[doc])
        return self.data[start : start + int(self.lengths[doc])]
