"""Check a packed dataset folder against itself: hashes, row counts, boundaries, provenance, shares, held-out documents."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gristmill.core.errors import FormatError
from gristmill.core.hashing import sha256_file
from gristmill.core.tokshards import PackedDataset, PackedPhase, ShardReader


def problems(folder: str | Path, digests: bool = True) -> list[str]:
    """Everything wrong with a dataset folder; empty when it is sound. `digests` also hashes every shard file.

    Raises FormatError when there is no readable manifest.
    """
    dataset = PackedDataset(folder)
    out: list[str] = []
    for name, want in (
        ("mix.lock.json", dataset.manifest.lock_sha256),
        ("tokenizer.json", dataset.manifest.tokenizer_sha256),
    ):
        path = dataset.folder / name
        if not path.exists() or sha256_file(path) != want:
            out.append(f"{name} is missing or differs from the manifest")
    if digests:
        try:
            out += [f"{name} differs from the manifest" for name in dataset.verify()]
        except OSError as error:
            out.append(f"{error.filename} is gone")
    heldout = _heldout(dataset.folder)
    for phase in dataset.manifest.phases:
        out += _phase_problems(dataset, phase, heldout)
    return out


def _heldout(folder: Path) -> pa.Array:
    path = folder / "heldout.parquet"
    ids = pq.read_table(path, columns=["id"])["id"].to_pylist() if path.exists() else []
    return pa.array(sorted({bytes.fromhex(i) for i in ids}), pa.binary(16))


def _phase_problems(dataset: PackedDataset, phase: PackedPhase, heldout: pa.Array) -> list[str]:
    out: list[str] = []
    stored = sum(s.rows for s in phase.shards)
    if stored != phase.rows or phase.rows % phase.batch_rows:
        out.append(
            f"{phase.name}: {stored} rows in shards, {phase.rows} in the manifest, batches of {phase.batch_rows}"
        )
    tokens: Counter[str] = Counter()
    for i, shard in enumerate(phase.shards):
        if shard.rows != min(phase.rows_per_shard, phase.rows - i * phase.rows_per_shard):
            out.append(f"{shard.file}: {shard.rows} rows, expected {phase.rows_per_shard} but for the last shard")
        try:
            reader, _ = dataset.locate(phase.name, i * phase.rows_per_shard)
            provenance = reader.provenance()
        except (FormatError, OSError, pa.ArrowException, ValueError) as error:
            out.append(f"{shard.file}: {error}")
            continue
        pad = dataset.manifest.special_ids["pad"]
        fault = _shard_problem(reader, provenance, i * phase.rows_per_shard, pad, dataset.manifest.vocab_size)
        if fault:
            out.append(f"{shard.file}: {fault}")
        if len(heldout) and pc.any(pc.is_in(provenance["id"], value_set=heldout)).as_py():
            out.append(f"{shard.file}: holds a held-out document")
        sources = provenance["source"].combine_chunks()
        names = sources.dictionary.to_pylist()
        sums = np.zeros(len(names) + 1, np.int64)
        np.add.at(sums, sources.indices.to_numpy(), provenance["length"].to_numpy())
        tokens.update(dict(zip(names, sums.tolist(), strict=False)))
    total = sum(tokens.values())
    for source, share in phase.shares.items():
        if total and abs(tokens[source] / total - share["realised"]) > 1e-9:
            out.append(
                f"{phase.name}: {source} is {tokens[source] / total:.6f} of the tokens, the manifest says {share['realised']:.6f}"
            )
    if set(tokens) - set(phase.shares):
        out.append(f"{phase.name}: sources {sorted(set(tokens) - set(phase.shares))} are not in the manifest")
    return out


def _shard_problem(reader: ShardReader, provenance: pa.Table, first_row: int, pad: int, vocab_size: int) -> str | None:
    """The first disagreement of tokens, boundaries and provenance: every token is in exactly one piece or is padding."""
    rows, capacity = reader.tokens.shape
    local = provenance["row"].to_numpy() - first_row
    start = provenance["row_start"].to_numpy().astype(np.int64)
    length = provenance["length"].to_numpy().astype(np.int64)
    if len(local) and (local.min() < 0 or local.max() >= rows or length.min() < 1):
        return "a piece lies outside the shard"
    if len(local) and (np.diff(local * capacity + start) <= 0).any():
        return "the provenance is not in order"
    filled = np.zeros(rows, np.int64)
    np.add.at(filled, local, length)
    before = np.cumsum(length) - length  # pieces must stand back to back from each row's start
    base = (np.cumsum(filled) - filled)[local]
    if (start != before - base).any() or filled.max(initial=0) > capacity or filled.min(initial=1) < 1:
        return "pieces leave a gap or overlap"
    padded = np.flatnonzero(filled < capacity)
    want = np.sort(np.concatenate([local * capacity + start, padded * capacity + filled[padded]]))
    got = np.concatenate(
        [np.empty(0, np.int64), *(r * capacity + reader.starts(r).astype(np.int64) for r in range(rows))]
    )
    if not np.array_equal(want, got):
        return "boundaries and provenance disagree"
    if any((reader.tokens[r, filled[r] :] != pad).any() for r in padded):
        return "padding holds other tokens than the pad id"
    if rows and int(reader.tokens.max()) >= vocab_size:
        return "a token is not in the vocabulary"
    return None
