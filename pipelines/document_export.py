"""`gristmill export documents`: the curated documents of a root as files of a target size, with a manifest of digests.

The same documents give the same files: rows go in the order of the input files, and where a file ends depends on the rows
and the compressed size so far, on no clock and no worker. Files appear under their names once they are whole, the manifest
last, so a folder without one is an export that did not finish.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import orjson
import pyarrow as pa

from gristmill.core.docshards import read_batches
from gristmill.core.document import CURATED_SCHEMA
from gristmill.core.errors import UsageError
from gristmill.core.hashing import sha256_file
from gristmill.core.manifest import read_manifest, write_atomic

Format = Literal["parquet", "jsonl.zst"]
FORMATS: tuple[Format, ...] = ("parquet", "jsonl.zst")
MANIFEST = "manifest.json"
GROUP_BYTES = 8 << 20
"""Uncompressed bytes of a row group or a Zstandard frame, a quarter of the target at most: what is held in memory."""
READ_ROWS = 256
ZSTD_LEVEL = 3


class _Sink(Protocol):
    def write(self, table: pa.Table) -> None: ...

    def close(self) -> None: ...


def export(
    root: Path, to: Path, *, shard_bytes: int, form: Format = "parquet", columns: Sequence[str] = ()
) -> dict[str, Any]:
    """Write a root's curated documents to the folder `to`. Returns the manifest that it writes there.

    No file is larger than `shard_bytes` but by what one group of rows takes; `columns` (default: all of CURATED_SCHEMA)
    are written in the schema's order. Raises UsageError when the root has no complete `curate` stage, the folder is not
    empty or a column is unknown.
    """
    manifest = read_manifest(root, "curate")
    if manifest is None or not manifest.complete:
        what = "no curated documents" if manifest is None else "an incomplete curate stage"
        raise UsageError(f"{root} has {what}", hint="gristmill run RECIPE --root DIR --to curate")
    unknown = [name for name in columns if name not in CURATED_SCHEMA.names]
    if unknown:
        raise UsageError(f"no column {unknown[0]!r}", hint=f"columns: {', '.join(CURATED_SCHEMA.names)}")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UsageError(f"{to} is not an empty folder", hint="name a new one")
    to.mkdir(parents=True, exist_ok=True)
    names = [name for name in CURATED_SCHEMA.names if not columns or name in columns]
    shards = [receipt.output("documents.parquet") for receipt in manifest.receipts]
    batches = (batch for shard in shards for batch in read_batches(shard, names, READ_ROWS))
    files = list(_files(_groups(batches, names, min(GROUP_BYTES, shard_bytes // 4)), to, shard_bytes, form, names))
    documents = sum(file["documents"] for file in files)
    assert documents == sum(receipt.rows_out for receipt in manifest.receipts), "documents were lost on the way"
    out = {
        "format": "gristmill-documents-1",
        "curate": manifest.digest,  # of the stage's content: the same for the same documents
        "columns": names,
        "documents": documents,
        "bytes": sum(file["bytes"] for file in files),
        "files": files,
    }
    write_atomic(to / MANIFEST, orjson.dumps(out, option=orjson.OPT_INDENT_2))
    return out


def verify(folder: Path) -> list[str]:
    """Names of files in an export that are missing or differ from its manifest. Raises UsageError without a manifest."""
    try:
        manifest = orjson.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} holds no whole export: {error}", hint=f"it has no readable {MANIFEST}") from error
    bad = []
    for file in manifest["files"]:
        path = folder / file["file"]
        if not path.is_file() or path.stat().st_size != file["bytes"] or sha256_file(path) != file["sha256"]:
            bad.append(str(file["file"]))
    return bad


def _groups(batches: Iterator[pa.RecordBatch], names: Sequence[str], size: int) -> Iterator[pa.Table]:
    """Tables of at least `size` bytes (the last may be smaller), cut between documents."""
    schema = pa.schema([CURATED_SCHEMA.field(name) for name in names])
    held: list[pa.Table] = []
    total = 0
    for batch in batches:
        table = pa.Table.from_batches([batch]).select(list(names)).cast(schema)
        at = 0
        for row, length in enumerate(_row_bytes(table)):
            total += length
            if total >= size:
                yield pa.concat_tables([*held, table.slice(at, row + 1 - at)]).combine_chunks()
                held, total, at = [], 0, row + 1
        if at < table.num_rows:
            held.append(table.slice(at))
    if held:
        yield pa.concat_tables(held).combine_chunks()


def _row_bytes(table: pa.Table) -> list[int]:
    """UTF-8 bytes of each row's text, and 256 for all else."""
    import pyarrow.compute as pc

    if "text" not in table.column_names:
        return [256] * table.num_rows
    return [256 + (n or 0) for n in pc.binary_length(table["text"]).to_pylist()]


def _files(
    groups: Iterator[pa.Table], to: Path, shard_bytes: int, form: Format, names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    number, group = 0, next(groups, None)
    while group is not None or not number:  # an empty root gives one empty file, so that its columns are told
        name = f"documents-{number:05d}.{form}"
        path = to / f".tmp-{name}"
        documents = size = last = 0
        with open(path, "wb") as file:
            sink = _sink(file, form, names)
            while group is not None and (not documents or size + last <= shard_bytes):
                sink.write(group)
                documents += group.num_rows
                last, size = file.tell() - size, file.tell()  # the next group is taken to need what this one did
                group = next(groups, None)
            sink.close()
        path.rename(to / name)
        path = to / name
        yield {"file": name, "documents": documents, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
        number += 1


def _sink(file: IO[bytes], form: Format, names: Sequence[str]) -> _Sink:
    if form == "parquet":
        return _Parquet(file, pa.schema([CURATED_SCHEMA.field(name) for name in names]))
    return _JsonLines(file)


class _Parquet:
    """One row group a table."""

    def __init__(self, file: IO[bytes], schema: pa.Schema) -> None:
        import pyarrow.parquet as pq

        self._writer = pq.ParquetWriter(file, schema, compression="zstd", compression_level=ZSTD_LEVEL)

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))

    def close(self) -> None:
        self._writer.close()


class _JsonLines:
    """One Zstandard frame a table: a reader may start at any of them."""

    def __init__(self, file: IO[bytes]) -> None:
        import zstandard

        self._file = file
        self._compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)

    def write(self, table: pa.Table) -> None:
        lines = (orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in table.to_pylist())
        self._file.write(self._compressor.compress(b"".join(lines)))

    def close(self) -> None:
        pass
