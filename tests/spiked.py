"""A packed dataset with garbage planted in one batch, with the token store that its documents came from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gristmill.core.docshards import write_table
from gristmill.core.hashing import document_id, sha256_file
from gristmill.core.tokshards import (
    PROVENANCE_SCHEMA,
    TOKEN_DOC_SCHEMA,
    PackedDataset,
    PackedManifest,
    PackedPhase,
    PackedShard,
    write_manifest,
    write_rows,
)

VOCAB = 64
SPECIAL = {"bos": 0, "eos": 1, "pad": 2}
SEQ, BATCH = 32, 8
STORE = "stages/tokens/0/docs.parquet"
SOURCES = ("code", "web")


@dataclass(frozen=True)
class Spiked:
    """The dataset, its garbage documents' ids and the step (of an unedited run) whose batch holds them all."""

    root: Path
    dataset: PackedDataset
    garbage: frozenset[str]
    step: int


def make_spiked(
    root: Path, *, main: int = 60, anneal: int = 10, step: int = 45, rows: int = 4, seed: int = 5
) -> Spiked:
    """Phases main (stable) and anneal (decay) of that many batches of 8 rows; garbage in `rows` rows of batch `step`.

    A sound document counts up by 1 ("web") or by 3 ("code") from a random id; garbage is random, two documents a row.
    """
    rng = np.random.default_rng(seed)
    folder = root / "dataset"
    documents: list[dict[str, Any]] = []
    phases, garbage = [], set()
    for name, batches, lr in (
        ("main", main, {"phase": "stable", "warmup_steps": 4}),
        ("anneal", anneal, {"phase": "decay", "shape": "linear", "to": 0.1}),
    ):
        bad = range((step - 1) * BATCH, (step - 1) * BATCH + rows) if name == "main" else range(0)
        packed, starts, records = [], [], []
        for row in range(batches * BATCH):
            lengths = [17, 16] if row in bad else _lengths(rng)
            pieces: list[np.ndarray] = []
            for length in lengths:
                number = len(documents)
                source = SOURCES[int(rng.integers(2))]
                ids = rng.integers(3, VOCAB, length - 1)
                if row not in bad:
                    stride = 1 if source == "web" else 3
                    ids = 3 + (int(ids[0]) + stride * np.arange(length - 1)) % (VOCAB - 3)
                identity = document_id("crawl.warc.gz", 1000 * number)
                if row in bad:
                    garbage.add(identity)
                documents.append(_document(number, identity, source, length))
                records.append(
                    (row, sum(len(piece) for piece in pieces), length, source, bytes.fromhex(identity), 0, 0, number, 0)
                )
                pieces.append(np.append(ids, SPECIAL["eos"]))
            packed.append(np.concatenate(pieces).astype("<u2"))
            starts.append(np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int32))
        (folder / name).mkdir(parents=True)
        base = folder / name / "00000"
        types = [f.type if f.name != "source" else pa.string() for f in PROVENANCE_SCHEMA]
        columns = [pa.array(c, t) for c, t in zip(zip(*records, strict=True), types, strict=True)]
        columns[3] = columns[3].dictionary_encode().cast(PROVENANCE_SCHEMA.field("source").type)
        write_rows(base, np.stack(packed), starts, pa.table(columns, schema=PROVENANCE_SCHEMA))
        digests = {suffix: sha256_file(f"{base}.{suffix}") for suffix in ("bin", "bnd.npy", "prov.parquet")}
        shares = {source: {"target": 0.5, "realised": 0.5} for source in SOURCES}
        phase = PackedPhase(name, SEQ, batches * BATCH, BATCH, batches * BATCH, lr, shares)
        phases.append(replace(phase, shards=[PackedShard(f"{name}/00000.bin", batches * BATCH, digests)]))
    store = root / STORE
    store.parent.mkdir(parents=True)
    write_table(store, pa.Table.from_pylist(documents, schema=TOKEN_DOC_SCHEMA))
    _tokenizer(folder / "tokenizer.json")
    stores = [{"path": STORE, "sha256": sha256_file(store)}]
    sha = sha256_file(folder / "tokenizer.json")
    write_manifest(folder, PackedManifest("<u2", VOCAB, SPECIAL, sha, seed, "0" * 64, phases, stores))
    return Spiked(root, PackedDataset(folder), frozenset(garbage), step)


def _lengths(rng: np.random.Generator) -> list[int]:
    out: list[int] = []
    while sum(out) < SEQ + 1:
        out.append(int(rng.integers(4, 24)))
    out[-1] -= sum(out) - SEQ - 1
    return out if out[-1] > 1 else [*out[:-2], out[-2] + out[-1]]


def _document(number: int, identity: str, source: str, length: int) -> dict[str, Any]:
    return {
        "id": identity,
        "source": source,
        "url": f"https://{source}.example/{number}",
        "date": "2024-01-01T00:00:00Z",
        "warc_file": "crawl.warc.gz",
        "warc_offset": 1000 * number,
        "warc_length": 900,
        "language": "en",
        "language_score": 1.0,
        "quality": None,
        "dup_cluster": identity,
        "bytes": 3 * length,
        "offset": 0,
        "length": length,
    }


def _tokenizer(path: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    names = ["<|bos|>", "<|eos|>", "<|pad|>", *(f"w{i}" for i in range(3, VOCAB))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<|pad|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names[:3]])
    tokenizer.save(str(path))
