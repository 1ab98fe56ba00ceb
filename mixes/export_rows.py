"""Exports that keep the packed rows in their order: datatrove's .ds files and Parquet.

STAGE/00042.ds is the shard's .bin byte for byte: rows of seq_len + 1 tokens, as datatrove's and nanotron's readers cut
them (each file's length is a whole number of rows, so none is lost). `.index` has the ends of the pieces in tokens,
uint64, counted over the file; `.metadata` is `tokenizer|bytes per token`, the number of tokens, and that for people.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.core.errors import FormatError
from gristmill.core.tokshards import PackedDataset, PackedPhase, ShardReader

BATCH_TOKENS = 1 << 21
"""Tokens of one Parquet row group: 8 MB as int32."""

ROWS_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),  # seq_len + 1 tokens
        ("seq_lengths", pa.list_(pa.int32())),  # of the pieces, padding as a last one; they sum to seq_len + 1
        ("source", pa.string()),
    ]
)
"""One row per packed row, in order: what TRL, `datasets` and others call a packed example."""


def _shards(dataset: PackedDataset, phase: PackedPhase) -> Iterator[tuple[str, ShardReader]]:
    """(PHASE/00042, reader) in order."""
    for i, shard in enumerate(phase.shards):
        yield shard.file.removesuffix(".bin"), dataset.locate(phase.name, i * phase.rows_per_shard)[0]


def piece_lengths(reader: ShardReader) -> tuple[np.ndarray, np.ndarray]:
    """(R,) pieces of each row and (P,) int64 tokens of every piece, padding included. Raises FormatError."""
    rows, width = reader.tokens.shape
    starts = [reader.starts(row) for row in range(rows)]
    counts = np.fromiter(map(len, starts), np.int64, rows)
    flat = np.concatenate(starts).astype(np.int64) + np.repeat(np.arange(rows) * width, counts)
    lengths = np.diff(flat, append=rows * width)
    if not counts.all() or (flat[np.cumsum(counts) - counts] != np.arange(rows) * width).any() or (lengths < 1).any():
        raise FormatError(f"{reader.base}.bnd.npy: piece starts of a row do not ascend from 0")
    return counts, lengths


def write_datatrove(dataset: PackedDataset, phases: Sequence[PackedPhase], root: Path, out: Path) -> dict[str, Any]:
    """STAGE/00042.ds, .ds.index and .ds.metadata of every shard. Returns the facts for export.json."""
    size = np.dtype(dataset.manifest.dtype).itemsize
    total = 0
    for phase in phases:
        (out / phase.name).mkdir()
        for name, reader in _shards(dataset, phase):
            shutil.copyfile(f"{reader.base}.bin", out / f"{name}.ds")
            _, lengths = piece_lengths(reader)
            np.cumsum(lengths).astype("<u8").tofile(out / f"{name}.ds.index")
            tokens = int(lengths.sum())
            text = f"tokenizer.json|{size}\n{tokens}\n{tokens / 1e6:.2f} MT"
            (out / f"{name}.ds.metadata").write_text(text)
            total += tokens
    lengths_by_stage = {p.name: p.seq_len for p in phases}
    return {"tokens": total, "token_size": size, "seq_len": lengths_by_stage}


def write_parquet(dataset: PackedDataset, phases: Sequence[PackedPhase], root: Path, out: Path) -> dict[str, Any]:
    """STAGE/00042.parquet of every shard (ROWS_SCHEMA, zstd). Returns the facts for export.json."""
    facts = {"pad_id": str(dataset.manifest.special_ids.get("pad", ""))}
    total = 0
    for phase in phases:
        (out / phase.name).mkdir()
        for name, reader in _shards(dataset, phase):
            total += reader.tokens.size
            schema = ROWS_SCHEMA.with_metadata({**facts, "seq_len": str(phase.seq_len)})
            with pq.ParquetWriter(out / f"{name}.parquet", schema, compression="zstd", compression_level=3) as writer:
                for table in _row_tables(reader):
                    writer.write_table(table.cast(schema))
    return {"tokens": total, "seq_len": {p.name: p.seq_len for p in phases}}


def _row_tables(reader: ShardReader) -> Iterator[pa.Table]:
    rows, width = reader.tokens.shape
    counts, lengths = piece_lengths(reader)
    ends = np.concatenate([[0], np.cumsum(counts)])
    sources = row_sources(reader)
    step = max(BATCH_TOKENS // width, 1)
    for first in range(0, rows, step):
        end = min(first + step, rows)
        ids = pa.array(reader.tokens[first:end].astype(np.int32).reshape(-1))
        offsets = pa.array(np.arange(end - first + 1, dtype=np.int32) * width)
        pieces = pa.array(lengths[ends[first] : ends[end]].astype(np.int32))
        cuts = pa.array((ends[first : end + 1] - ends[first]).astype(np.int32))
        columns = [pa.ListArray.from_arrays(offsets, ids), pa.ListArray.from_arrays(cuts, pieces)]
        yield pa.table([*columns, sources.slice(first, end - first)], ROWS_SCHEMA.names)


def row_sources(reader: ShardReader) -> pa.Array:
    """The source of every row of a shard: that of its first piece. Raises FormatError when a row has none."""
    table = reader.provenance()
    row = table["row"].to_numpy()
    firsts = np.flatnonzero(np.diff(row, prepend=-1))
    if len(firsts) != len(reader.tokens) or (np.diff(row[firsts]) != 1).any():
        raise FormatError(f"{reader.base}.prov.parquet does not tell the source of every row")
    return table["source"].combine_chunks().take(pa.array(firsts)).cast(pa.string())
