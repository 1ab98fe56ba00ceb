"""Read and write document shards: Parquet files whose content is checked against the digest in their receipt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.core.errors import FormatError
from gristmill.core.hashing import sha256_file
from gristmill.core.stage import Shard


@lru_cache(maxsize=4096)
def _verified(path: str, sha256: str, size: int, mtime_ns: int) -> bool:
    return sha256_file(path) == sha256


def verify(shard: Shard) -> Path:
    """The shard's path, once its size and sha256 agree with its receipt. Raises FormatError otherwise."""
    path = Path(shard.path)
    try:
        stat = path.stat()
    except OSError as error:
        raise FormatError(f"{path} is gone: {error.strerror}", hint="run the same command again") from error
    if stat.st_size != shard.bytes or not _verified(shard.path, shard.sha256, stat.st_size, stat.st_mtime_ns):
        raise FormatError(
            f"{path} differs from its receipt", hint=f"delete {path.parent} and run the same command again"
        )
    return path


def read_table(shard: Shard, columns: Sequence[str] | None = None) -> pa.Table:
    """A whole shard, or some of its columns, after its digest was checked."""
    return pq.read_table(verify(shard), columns=list(columns) if columns is not None else None)


def read_batches(shard: Shard, columns: Sequence[str] | None = None, rows: int = 512) -> Iterator[pa.RecordBatch]:
    """A shard in batches of at most `rows` rows, so that memory stays bounded by the batch."""
    with pq.ParquetFile(verify(shard)) as file:
        yield from file.iter_batches(batch_size=rows, columns=list(columns) if columns is not None else None)


class TableWriter:
    """A Parquet file written in batches (zstd 3; no statistics that could vary). Use as a context manager."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", compression_level=3)
        self.rows = 0

    def write(self, table: pa.Table | pa.RecordBatch) -> None:
        if isinstance(table, pa.RecordBatch):
            table = pa.Table.from_batches([table])
        if table.num_rows:
            self._writer.write_table(table.select(self.schema.names).cast(self.schema))
            self.rows += table.num_rows

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()


def write_table(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path, compression="zstd", compression_level=3)
