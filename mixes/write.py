"""Write packed shards: gather a shard's tokens from the memory-mapped stores, and describe the finished dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from gristmill.core.errors import FormatError
from gristmill.core.stage import Shard
from gristmill.core.tokshards import PROVENANCE_SCHEMA, PackedManifest, PackedPhase, PackedShard
from gristmill.core.tokstore import TokenStore


def gather(
    pieces: pa.Table, layout: Mapping[str, Any], first_row: int, stores: Sequence[tuple[Path, Path]]
) -> tuple[np.ndarray, list[np.ndarray], pa.Table]:
    """One shard: (R, L+1) tokens, each row's piece starts, and its provenance.

    pieces: PIECES_SCHEMA of the shard, sorted by (row, row_start). layout: the phase's layout.json. first_row: the
    shard's first row within the phase. stores: (tokens.bin, docs.parquet) by ordinal; only those used are opened.
    Raises FormatError when a piece does not lie within its document or its row.
    """
    capacity = layout["seq_len"] + 1
    count = min(layout["rows_per_shard"], layout["rows"] - first_row)
    rows = np.full((count, capacity), layout["pad"], np.dtype(layout["dtype"]))
    column = {n: pieces[n].to_numpy().astype(np.int64) for n in pieces.schema.names}
    local, row_start, length = column["row"] - first_row, column["row_start"], column["length"]
    opened = {int(i): TokenStore(*stores[int(i)]) for i in np.unique(column["store"])}
    ids = np.empty(pieces.num_rows, object)
    begin = np.empty(pieces.num_rows, np.int64)
    for i, store in opened.items():
        if store.dtype != rows.dtype:
            raise FormatError(f"{stores[i][0]} holds {store.dtype} tokens, the dataset {rows.dtype}")
        mine = np.flatnonzero(column["store"] == i)
        doc = column["doc"][mine]
        if doc.min() < 0 or doc.max() >= len(store):
            raise FormatError(f"{stores[i][1]} has no document {doc.max()}")
        if (column["doc_start"][mine] + length[mine] > store.lengths[doc]).any():
            raise FormatError(f"{stores[i][1]}: a piece reaches beyond its document")
        ids[mine] = store.docs["id"].take(pa.array(doc)).to_pylist()
        begin[mine] = store.offsets[doc] + column["doc_start"][mine]
    if pieces.num_rows and (local.min() < 0 or local.max() >= count or (row_start + length > capacity).any()):
        raise FormatError("a piece reaches beyond its row or its shard")
    for row, at, store_id, start, size in zip(
        local.tolist(), row_start.tolist(), column["store"].tolist(), begin.tolist(), length.tolist(), strict=True
    ):
        rows[row, at : at + size] = opened[store_id].data[start : start + size]
    return (
        rows,
        _starts(local, row_start, length, count, capacity),
        _provenance(pieces, ids.tolist(), layout["sources"]),
    )


def _starts(local: np.ndarray, row_start: np.ndarray, length: np.ndarray, rows: int, capacity: int) -> list[np.ndarray]:
    """Each row's piece starts; an unfilled tail is one last piece."""
    filled = np.zeros(rows, np.int64)
    np.add.at(filled, local, length)
    padded = np.flatnonzero(filled < capacity)
    row = np.concatenate([local, padded])
    start = np.concatenate([row_start, filled[padded]])
    order = np.lexsort((start, row))
    cuts = np.searchsorted(row[order], np.arange(1, rows))
    return np.split(start[order].astype(np.int32), cuts)


def _provenance(pieces: pa.Table, ids: Sequence[str], sources: Sequence[str]) -> pa.Table:
    columns = {n: pieces[n].combine_chunks() for n in PROVENANCE_SCHEMA.names if n not in ("source", "id")}
    columns["source"] = pa.DictionaryArray.from_arrays(
        pieces["source"].combine_chunks(), pa.array(sources, pa.string())
    )
    columns["id"] = pa.array([bytes.fromhex(i) for i in ids], pa.binary(16))
    return pa.table({n: columns[n] for n in PROVENANCE_SCHEMA.names})


def manifest(lock: Shard, written: Sequence[Shard], docs: Sequence[Shard]) -> PackedManifest:
    """The dataset's manifest from the lock, the shard files and the stores' docs.parquet (in ordinal order).

    A store's path is relative to the run's root: stages/tokens/TASK/docs.parquet.
    """
    found = orjson.loads(Path(lock.path).read_bytes())
    if [s.sha256 for s in docs] != [s["docs_sha256"] for s in found["stores"]]:
        raise FormatError("the token stores are not those of the mixture", hint="run the same command again")
    digests = {s.name: s.sha256 for s in written}
    phases = []
    for phase in found["phases"]:
        shards = []
        for i in range(phase["shards"]):
            base = f"{phase['name']}/{i:05d}"
            rows = min(phase["rows_per_shard"], phase["rows"] - i * phase["rows_per_shard"])
            hashes = {suffix: digests[f"{base}.{suffix}"] for suffix in ("bin", "bnd.npy", "prov.parquet")}
            shards.append(PackedShard(f"{base}.bin", rows, hashes))
        phases.append(
            PackedPhase(
                name=phase["name"],
                seq_len=phase["seq_len"],
                rows=phase["rows"],
                batch_rows=phase["batch_rows"],
                rows_per_shard=phase["rows_per_shard"],
                lr=phase["lr"],
                shares=phase["shares"],
                shards=shards,
            )
        )
    return PackedManifest(
        dtype=found["dtype"],
        vocab_size=found["vocab_size"],
        special_ids=found["special_ids"],
        tokenizer_sha256=found["tokenizer_sha256"],
        seed=found["seed"],
        lock_sha256=lock.sha256,
        phases=phases,
        stores=[{"path": "/".join(Path(s.path).parts[-4:]), "sha256": s.sha256} for s in docs],
    )
