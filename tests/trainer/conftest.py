"""A tiny packed dataset that a tiny model can learn: two phases, several documents a row, padding, 97 ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

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
from gristmill.trainer.schema import TrainRun

VOCAB = 97  # no multiple of 64: the padded rows must show in nothing
SPECIAL = {"bos": 0, "eos": 1, "pad": 2}
SHARES = {"toy": {"target": 1.0, "realised": 1.0}}
SUFFIXES = ("bin", "bnd.npy", "prov.parquet")


def document(rng: np.random.Generator, length: int) -> np.ndarray:
    """Ids 3.. that mostly follow a rule (next = 5 id + 7), closed by eos."""
    ids = [int(rng.integers(0, VOCAB - 3))]
    while len(ids) < length - 1:
        ids.append(int(rng.integers(0, VOCAB - 3)) if rng.random() < 0.05 else (5 * ids[-1] + 7) % (VOCAB - 3))
    return np.array([*(i + 3 for i in ids[: length - 1]), SPECIAL["eos"]])


def packed_row(rng: np.random.Generator, width: int) -> tuple[np.ndarray, np.ndarray, int]:
    """One row of `width` tokens, its piece starts and how many of them are documents; every third row ends in padding."""
    lengths: list[int] = []
    while sum(lengths) < width:
        lengths.append(int(rng.integers(1, 24)))
    lengths[-1] -= sum(lengths) - width
    padded = bool(rng.random() < 0.34) and len(lengths) > 1
    pieces = [document(rng, n) for n in lengths]
    if padded:
        pieces[-1] = np.full(lengths[-1], SPECIAL["pad"])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int32)
    return np.concatenate(pieces).astype("<u2"), starts, len(pieces) - padded


def write_phase(folder: Path, phase: PackedPhase, seed: int) -> PackedPhase:
    rng = np.random.default_rng(seed)
    shards = []
    (folder / phase.name).mkdir(parents=True)
    for index, first in enumerate(range(0, phase.rows, phase.rows_per_shard)):
        rows = [packed_row(rng, phase.seq_len + 1) for _ in range(min(phase.rows_per_shard, phase.rows - first))]
        base = folder / phase.name / f"{index:05d}"
        ends = [np.append(starts, phase.seq_len + 1) for _, starts, _ in rows]
        pieces = [(first + r, int(e[i]), int(e[i + 1] - e[i])) for r, e in enumerate(ends) for i in range(rows[r][2])]
        columns: dict[str, Any] = {
            "row": [p[0] for p in pieces],
            "row_start": [p[1] for p in pieces],
            "length": [p[2] for p in pieces],
            "source": pa.array(["toy"] * len(pieces)).dictionary_encode().cast(PROVENANCE_SCHEMA.field("source").type),
            "id": [n.to_bytes(16, "big") for n in range(len(pieces))],
            "doc_start": [0] * len(pieces),
            "store": [0] * len(pieces),
            "doc": list(range(len(pieces))),
            "epoch": [0] * len(pieces),
        }
        table = pa.table([pa.array(columns[f.name], f.type) for f in PROVENANCE_SCHEMA], schema=PROVENANCE_SCHEMA)
        write_rows(base, np.stack([tokens for tokens, _, _ in rows]), [starts for _, starts, _ in rows], table)
        digests = {suffix: sha256_file(f"{base}.{suffix}") for suffix in SUFFIXES}
        shards.append(PackedShard(f"{phase.name}/{index:05d}.bin", len(rows), digests))
    return dataclasses.replace(phase, shards=shards)


def make_dataset(folder: Path, seed: int = 0, times: int = 1) -> PackedDataset:
    """30 steps of `main` (8 rows of 32) and 10 of `anneal` (4 rows of 48), each with rows left over; a tokenizer beside.

    `times`: so many times the rows, in each step too.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder.mkdir(parents=True)
    words = {name: i for i, name in enumerate([*SPECIAL, *(f"w{i}" for i in range(3, VOCAB))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="pad"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    main = PackedPhase("main", 32, 243 * times, 8 * times, 100, {"phase": "stable", "warmup_steps": 4}, SHARES)
    anneal = PackedPhase(
        "anneal", 48, 43 * times, 4 * times, 100, {"phase": "decay", "shape": "linear", "to": 0.1}, SHARES
    )
    phases = [write_phase(folder, main, seed), write_phase(folder, anneal, seed + 1)]
    sha = sha256_file(folder / "tokenizer.json")
    write_manifest(folder, PackedManifest("<u2", VOCAB, SPECIAL, sha, seed, "0" * 64, phases, []))
    return PackedDataset(folder)


def make_run(**changes: Any) -> TrainRun:
    """2 layers of width 32; `changes` replace top-level settings."""
    data: dict[str, Any] = {
        "gristmill_train": 1,
        "mixture": "toy",
        "seed": 3,
        "model": {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 64},
        "optimizer": {"lr": 1e-2},
        "micro_batch_rows": 3,
        "device": "cpu",
        "checkpoint": {"every_steps": 5, "keep": 2},
        "generate": {"prompt": "w5 w9", "tokens": 8},
    }
    return TrainRun.model_validate(data | changes)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    return make_dataset(tmp_path_factory.mktemp("toy") / "dataset")


@pytest.fixture(scope="session")
def dataset_maker() -> Callable[..., PackedDataset]:
    return make_dataset


@pytest.fixture(scope="session")
def run_maker() -> Callable[..., TrainRun]:
    return make_run
