"""Token shards: the token store (one per curated shard) and the packed dataset, defined once for mixes and trainer.

Token store, a folder:   tokens.bin   documents back to back, little-endian uint16 or uint32, each closed by eos
                         docs.parquet one row per document: TOKEN_DOC_SCHEMA; `offset` and `length` are in tokens
Packed dataset, a folder: manifest.json  PackedManifest
                         PHASE/00042.bin           rows x (L+1) tokens, no header: np.memmap(..).reshape(-1, L+1)
                         PHASE/00042.bnd.npy       int32: rows+1 pointers, then every row's piece starts
                         PHASE/00042.prov.parquet  one row per piece: PROVENANCE_SCHEMA
A curriculum stage is called a phase here, wherever a pipeline stage could be meant. A row's unused tail (padding)
is one last piece without a provenance row, filled with the pad id; the loader never trains on it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.core.errors import FormatError
from gristmill.core.hashing import sha256_file

PACKED_FORMAT = "gristmill-packed-1"

TOKEN_DOC_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # 32 hex digits, core.hashing.document_id
        ("source", pa.string()),
        ("url", pa.string()),
        ("date", pa.string()),
        ("warc_file", pa.string()),  # input-relative name
        ("warc_offset", pa.int64()),  # compressed offset of the record's gzip member
        ("warc_length", pa.int64()),  # compressed length
        ("language", pa.string()),
        ("language_score", pa.float32()),
        ("quality", pa.float32()),  # null when no quality model was run
        ("dup_cluster", pa.string()),  # id of the cluster's keeper: held-out splits go by this
        ("bytes", pa.int32()),  # UTF-8 bytes of the text
        ("offset", pa.int64()),  # first token in tokens.bin
        ("length", pa.int32()),  # tokens, the closing eos included
    ]
)

PROVENANCE_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),  # row within the phase
        ("row_start", pa.int32()),  # first token of the piece inside the row
        ("length", pa.int32()),  # tokens of the piece
        ("source", pa.dictionary(pa.int16(), pa.string())),
        ("id", pa.binary(16)),  # document id, raw bytes
        ("doc_start", pa.int32()),  # first token of the piece inside its document
        ("store", pa.int32()),  # index into PackedManifest.stores
        ("doc", pa.int32()),  # row in that store's docs.parquet
        ("epoch", pa.int16()),  # 0 on the document's first use
    ]
)


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 while every id fits, else uint32; little-endian."""
    return np.dtype("<u2") if vocab_size <= 65_536 else np.dtype("<u4")


@dataclass(frozen=True)
class PackedShard:
    """One shard of a phase. `file` is the .bin's path inside the dataset folder, with forward slashes."""

    file: str
    rows: int
    sha256: dict[str, str]  # suffix ("bin", "bnd.npy", "prov.parquet") -> hex digest


@dataclass(frozen=True)
class PackedPhase:
    """One curriculum stage: `rows` rows of `seq_len`+1 tokens in `shards`, each of `rows_per_shard` but the last."""

    name: str
    seq_len: int
    rows: int
    batch_rows: int  # rows of one global batch
    rows_per_shard: int
    lr: dict[str, Any]  # the mixture's `lr:` block, read by the trainer
    shares: dict[str, dict[str, float]]  # source -> {"target": share, "realised": share of tokens}
    shards: list[PackedShard] = field(default_factory=list)

    @property
    def batches(self) -> int:
        return self.rows // self.batch_rows


@dataclass(frozen=True)
class PackedManifest:
    """What a trainer needs to know of a packed dataset. `digest` covers content only."""

    dtype: str
    vocab_size: int
    special_ids: dict[str, int]  # "bos", "eos", "pad"
    tokenizer_sha256: str
    seed: int
    lock_sha256: str  # of mix.lock.json
    phases: list[PackedPhase]
    stores: list[dict[str, str]]  # token stores by ordinal: {"path": relative to the root, "sha256": of docs.parquet}
    format: str = PACKED_FORMAT

    @property
    def digest(self) -> str:
        from gristmill.core.hashing import digest

        data = asdict(self)
        data.pop("stores")
        return digest(data)

    def phase(self, name: str) -> PackedPhase:
        for phase in self.phases:
            if phase.name == name:
                return phase
        raise FormatError(f"no phase named {name!r}", hint=f"phases here: {', '.join(p.name for p in self.phases)}")


def write_manifest(folder: Path, manifest: PackedManifest) -> Path:
    path = folder / "manifest.json"
    path.write_bytes(orjson.dumps(asdict(manifest), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
    return path


def read_manifest(folder: str | Path) -> PackedManifest:
    """Raises FormatError when the folder holds no packed dataset of this version."""
    path = Path(folder) / "manifest.json"
    try:
        data = orjson.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} is not a packed dataset: {error}") from error
    if data.get("format") != PACKED_FORMAT:
        raise FormatError(f"{path} has format {data.get('format')!r}, this version reads {PACKED_FORMAT!r}")
    try:
        phases = [PackedPhase(**{**p, "shards": [PackedShard(**s) for s in p["shards"]]}) for p in data["phases"]]
        return PackedManifest(**{**data, "phases": phases})
    except (TypeError, KeyError) as error:
        raise FormatError(f"{path} is damaged: {error}") from error


def write_rows(base: Path, rows: np.ndarray, starts: list[np.ndarray], provenance: pa.Table) -> None:
    """Write one shard as base.bin, base.bnd.npy and base.prov.parquet (`base` has no suffix).

    rows: (R, L+1) of the dataset's dtype. starts: per row the ascending int32 piece starts, first 0; the padding
    counts as one last piece. provenance: PROVENANCE_SCHEMA, sorted by (row, row_start).
    """
    if len(starts) != len(rows):
        raise ValueError(f"{len(starts)} boundary lists for {len(rows)} rows")
    np.ascontiguousarray(rows).tofile(f"{base}.bin")
    counts = np.fromiter((len(s) for s in starts), np.int64, len(starts))
    pointers = np.concatenate([[0], np.cumsum(counts)]).astype("<i4")
    flat = np.concatenate(starts).astype("<i4") if starts else np.empty(0, "<i4")
    np.save(f"{base}.bnd.npy", np.concatenate([pointers, flat]), allow_pickle=False)
    pq.write_table(provenance.cast(PROVENANCE_SCHEMA), f"{base}.prov.parquet", compression="zstd", compression_level=3)


class ShardReader:
    """Rows and boundaries of one shard, memory-mapped. Raises FormatError when sizes disagree with the manifest."""

    def __init__(self, base: Path, rows: int, seq_len: int, dtype: str) -> None:
        want = rows * (seq_len + 1) * np.dtype(dtype).itemsize
        path = Path(f"{base}.bin")
        size = path.stat().st_size if path.exists() else -1
        if size != want:
            raise FormatError(
                f"{path} has {size} bytes, its manifest says {want}",
                hint=f"delete {base.parents[1]} and run the recipe again: its shards are written anew",
            )
        self.base = base
        self.tokens: np.ndarray = np.memmap(path, dtype=dtype, mode="r").reshape(rows, seq_len + 1)
        try:
            bounds = np.load(f"{base}.bnd.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:  # a pickle, say: never loaded
            raise FormatError(f"{base}.bnd.npy is damaged: {error}") from error
        self._pointers = np.asarray(bounds[: rows + 1])
        self._starts = bounds[rows + 1 :]
        if len(self._starts) != int(self._pointers[-1]):
            raise FormatError(f"{base}.bnd.npy does not match its shard")

    def starts(self, row: int) -> np.ndarray:
        """int32 piece starts of one row, ascending, first 0."""
        return np.asarray(self._starts[self._pointers[row] : self._pointers[row + 1]])

    def provenance(self) -> pa.Table:
        return pq.read_table(f"{self.base}.prov.parquet", schema=PROVENANCE_SCHEMA)


class PackedDataset:
    """A packed dataset opened for reading: (phase, row) -> tokens, boundaries and documents. No torch."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(folder)
        self._reader = lru_cache(maxsize=64)(self._open)

    def _open(self, phase_name: str, index: int) -> ShardReader:
        phase = self.manifest.phase(phase_name)
        shard = phase.shards[index]
        base = self.folder / shard.file.removesuffix(".bin")
        if self.folder.resolve() not in base.resolve().parents:
            raise FormatError(f"shard path {shard.file!r} leaves the dataset folder")
        return ShardReader(base, shard.rows, phase.seq_len, self.manifest.dtype)

    def locate(self, phase: str, row: int) -> tuple[ShardReader, int]:
        """The shard that holds a row and the row's index inside it. Raises FormatError when out of range."""
        spec = self.manifest.phase(phase)
        if not 0 <= row < spec.rows:
            raise FormatError(f"phase {phase!r} has rows 0..{spec.rows - 1}, not {row}")
        shard, local = divmod(row, spec.rows_per_shard)
        return self._reader(phase, shard), local

    def row(self, phase: str, row: int) -> tuple[np.ndarray, np.ndarray]:
        """(L+1,) tokens and the (pieces,) int32 piece starts of one row."""
        reader, local = self.locate(phase, row)
        return reader.tokens[local], reader.starts(local)

    def verify(self) -> list[str]:
        """Names of shard files whose sha256 differs from the manifest."""
        bad = []
        for phase in self.manifest.phases:
            for shard in phase.shards:
                base = str(self.folder / shard.file.removesuffix(".bin"))
                bad += [f"{base}.{s}" for s, want in shard.sha256.items() if sha256_file(f"{base}.{s}") != want]
        return bad
