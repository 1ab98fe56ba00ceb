"""A packed dataset of random tokens for the loader's tests: three sources, several shards, pieces of one token, padding."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gristmill.core.hashing import sha256_file
from gristmill.core.tokshards import (
    PROVENANCE_SCHEMA,
    PackedDataset,
    PackedManifest,
    PackedPhase,
    PackedShard,
    write_manifest,
    write_rows,
)

SOURCES = ["books", "code", "web"]
PAD = 2


def packed(rng: np.random.Generator, width: int) -> list[tuple[int, int]]:
    """(length, document or -1 for padding) of the pieces of one row."""
    lengths: list[int] = []
    while sum(lengths) < width:
        lengths.append(int(rng.integers(1, 12)))
    lengths[-1] -= sum(lengths) - width
    documents = [int(rng.integers(0, 40)) for _ in lengths]
    if rng.random() < 0.4 and len(lengths) > 1:
        documents[-1] = -1
    return list(zip(lengths, documents, strict=True))


def write(folder: Path, phase: PackedPhase, rng: np.random.Generator) -> PackedPhase:
    (folder / phase.name).mkdir(parents=True)
    shards = []
    for index, first in enumerate(range(0, phase.rows, phase.rows_per_shard)):
        tokens, starts, pieces = [], [], []
        for row in range(first, min(first + phase.rows_per_shard, phase.rows)):
            layout = packed(rng, phase.seq_len + 1)
            starts.append(np.cumsum([0, *(n for n, _ in layout[:-1])]).astype(np.int32))
            tokens.append(np.concatenate([np.full(n, PAD) if d < 0 else rng.integers(2, 90, n) for n, d in layout]))
            pieces += [(row, int(s), n, d) for s, (n, d) in zip(starts[-1], layout, strict=True) if d >= 0]
        columns: dict[str, Any] = {
            "row": [p[0] for p in pieces],
            "row_start": [p[1] for p in pieces],
            "length": [p[2] for p in pieces],
            "source": pa.array([SOURCES[p[3] % 3] for p in pieces])
            .dictionary_encode()
            .cast(PROVENANCE_SCHEMA.field("source").type),
            "id": [p[3].to_bytes(16, "big") for p in pieces],
            **{name: [0] * len(pieces) for name in ("doc_start", "store", "doc", "epoch")},
        }
        table = pa.table([pa.array(columns[f.name], f.type) for f in PROVENANCE_SCHEMA], schema=PROVENANCE_SCHEMA)
        base = folder / phase.name / f"{index:05d}"
        write_rows(base, np.stack(tokens).astype("<u2"), starts, table)
        digests = {suffix: sha256_file(f"{base}.{suffix}") for suffix in ("bin", "bnd.npy", "prov.parquet")}
        shards.append(PackedShard(f"{phase.name}/{index:05d}.bin", len(tokens), digests))
    return dataclasses.replace(phase, shards=shards)


def make(folder: Path) -> PackedDataset:
    """Phase a: 5 steps of 7 rows of 24 tokens over 4 shards; b: 3 steps of 4 rows of 30. Some pieces have one token."""
    rng = np.random.default_rng(5)
    shares = {name: {"target": 1 / 3, "realised": 1 / 3} for name in SOURCES}
    phases = [PackedPhase("a", 24, 38, 7, 11, {}, shares), PackedPhase("b", 30, 14, 4, 9, {}, shares)]
    made = [write(folder, phase, rng) for phase in phases]
    write_manifest(folder, PackedManifest("<u2", 97, {"bos": 0, "eos": 1, "pad": PAD}, "", 0, "", made, []))
    return PackedDataset(folder)
