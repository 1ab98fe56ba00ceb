"""Token shards: the token store (one per curated shard) and the packed dataset, defined once for mixes and trainer.

Token store, a folder:   tokens.bin   documents back to back, little-endian uint16 or uint32, each closed by eos
                         docs.parquet one row per document: TOKEN_DOC_SCHEMA, then any columns of texts, numbers or
                         truth values that filters and split_by may name; `offset` and `length` are in tokens
Packed dataset, a folder: manifest.json  PackedManifest
                         PHASE/00042.bin           rows x (L+1) tokens, no header: np.memmap(..).reshape(-1, L+1)
                         PHASE/00042.bnd.npy       int32: rows+1 pointers, then every row's piece starts
                         PHASE/00042.prov.parquet  one row per piece: PROVENANCE_SCHEMA
A curriculum stage is called a phase here, wherever a pipeline stage could be meant. A row's unused tail (padding)
is one last piece without a provenance row, filled with the pad id; the loader never trains on it.
"""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.core.errors import FormatError
from gristmill.core.hashing import sha256_file
from gristmill.core.shardtable import PackedShard as PackedShard
from gristmill.core.shardtable import ShardTable

PACKED_FORMAT = "gristmill-packed-1"
PHASE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""A phase is a folder of the dataset, and of what is exported from it."""

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
        ("dup_count", pa.int32()),  # documents of that cluster before deduplication, this one included; 1 where unknown
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
class PackedPhase:
    """One curriculum stage: `rows` rows of `seq_len`+1 tokens in `shards`, each of `rows_per_shard` but the last."""

    name: str
    seq_len: int
    rows: int
    batch_rows: int  # rows of one global batch
    rows_per_shard: int
    lr: dict[str, Any]  # the mixture's `lr:` block, read by the trainer
    shares: dict[str, dict[str, float]]  # source -> {"target": share, "realised": share of tokens}
    shards: Sequence[PackedShard] = field(default_factory=list)
    until_rows: int | None = None  # rows trained on, where not all: the stage that an ablation branches from
    loss_weights: dict[str, float] = field(default_factory=dict)  # source -> weight of its losses, where not 1
    chain: str = ""  # hash over what makes the rows of this stage and of those before it (mixes.chain)
    spec: dict[str, Any] = field(default_factory=dict)  # what went into it, so that a change can be named

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

        data = _plain(self)
        data.pop("stores")
        for phase in data["phases"]:  # as if they were not there, so that older datasets keep their digest
            phase.pop("spec")  # in the chain
            for key in ("until_rows", "loss_weights", "chain"):
                if not phase[key]:
                    phase.pop(key)
        return digest(data)

    def phase(self, name: str) -> PackedPhase:
        for phase in self.phases:
            if phase.name == name:
                return phase
        raise FormatError(f"no phase named {name!r}", hint=f"phases here: {', '.join(p.name for p in self.phases)}")


def _plain(manifest: PackedManifest) -> dict[str, Any]:
    data = asdict(replace(manifest, phases=[replace(phase, shards=[]) for phase in manifest.phases]))
    for phase, entry in zip(manifest.phases, data["phases"], strict=True):
        entry["shards"] = [asdict(shard) for shard in phase.shards]
    return data


def _leaves(path: object) -> bool:
    """Whether a file's name in the manifest is no place below a folder."""
    return not isinstance(path, str) or path.startswith("/") or ".." in path.split("/")


def _shards(entries: Sequence[dict[str, Any]]) -> Sequence[PackedShard]:
    if any(type(entry["rows"]) is not int or entry["rows"] < 0 for entry in entries):
        raise TypeError("a shard without a number of rows")
    if any(_leaves(entry["file"]) for entry in entries):
        raise TypeError("a shard outside the dataset folder")
    try:
        return ShardTable(entries)
    except ValueError:  # digests that are none: `mix verify` and the loader say so
        return [PackedShard(**entry) for entry in entries]


def write_manifest(folder: Path, manifest: PackedManifest) -> Path:
    path = folder / "manifest.json"
    path.write_bytes(orjson.dumps(_plain(manifest), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
    return path


def read_manifest(folder: str | Path) -> PackedManifest:
    """Raises FormatError when the folder holds no packed dataset of this version."""
    path = Path(folder) / "manifest.json"
    manifest = _parsed(path)
    if path.stat().st_size > 1 << 20:
        _give_back()
    return manifest


def _give_back() -> None:
    """Hand what parsing freed back to the system: glibc keeps 3 MB of 12,000 shards' JSON, on every rank."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # another C library
        return


def _parsed(path: Path) -> PackedManifest:
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            text = memoryview(mapped)  # megabytes that every rank would else copy first
            try:
                data = orjson.loads(text)
            finally:
                text.release()
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} is not a packed dataset: {error}") from error
    if data.get("format") != PACKED_FORMAT:
        raise FormatError(f"{path} has format {data.get('format')!r}, this version reads {PACKED_FORMAT!r}")
    try:
        phases = [PackedPhase(**{**p, "shards": _shards(p["shards"])}) for p in data["phases"]]
        return _checked(PackedManifest(**{**data, "phases": phases}))
    except (TypeError, KeyError, ValueError) as error:
        raise FormatError(f"{path} is damaged: {error}") from error


def _checked(manifest: PackedManifest) -> PackedManifest:
    """Raises ValueError on numbers that nothing can be divided by, and on phases whose names are no folder names."""
    names = [phase.name for phase in manifest.phases]
    for phase in manifest.phases:
        if not isinstance(phase.name, str) or not PHASE_NAME.fullmatch(phase.name):
            raise ValueError(f"{str(phase.name)[:80]!r} is no phase's name")
        least = {"seq_len": 1, "rows": 0, "batch_rows": 1, "rows_per_shard": 1}
        for key, low in least.items():
            value = getattr(phase, key)
            if type(value) is not int or not low <= value < 1 << 62:
                raise ValueError(f"phase {phase.name}: {key} is {str(value)[:80]}")
    if any(_leaves(store["path"]) for store in manifest.stores):
        raise ValueError("a token store outside the root")
    if len(set(names)) < len(names):
        raise ValueError("two phases have one name")
    return manifest


def write_rows(base: Path, rows: np.ndarray, starts: list[np.ndarray], provenance: pa.Table) -> None:
    """Write one shard as base.bin, base.bnd.npy and base.prov.parquet (`base` has no suffix).

    rows: (R, L+1) of the dataset's dtype. starts: per row the ascending int32 piece starts, first 0; the padding
    counts as one last piece. provenance: PROVENANCE_SCHEMA, sorted by (row, row_start).
    """
    if len(starts) != len(rows):
        raise ValueError(f"{len(starts)} boundary lists for {len(rows)} rows")
    counts = np.fromiter((len(s) for s in starts), np.int64, len(starts))
    pointers = np.concatenate([[0], np.cumsum(counts)])
    write_packed(base, rows, pointers, np.concatenate(starts) if starts else np.empty(0, "<i4"), provenance)


def write_packed(base: Path, rows: np.ndarray, pointers: np.ndarray, starts: np.ndarray, provenance: pa.Table) -> None:
    """`write_rows` with the boundaries as two arrays: (R+1,) pointers into the piece starts of all rows."""
    with open(f"{base}.bin", "wb") as file:
        file.write(np.ascontiguousarray(rows).data)
    np.save(f"{base}.bnd.npy", np.concatenate([pointers, starts]).astype("<i4"), allow_pickle=False)
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

    def starts_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) int64 pieces of each of n rows, and their int64 starts one row after another. Raises FormatError."""
        begin, end = self._pointers[rows].astype(np.int64), self._pointers[rows + 1].astype(np.int64)
        counts = end - begin
        if (counts < 1).any() or end.max(initial=0) > len(self._starts):
            raise FormatError(f"{self.base}.bnd.npy: a row without a piece, or with pieces beyond the file")
        if not len(counts):
            return counts, np.empty(0, np.int64)
        ends = np.cumsum(counts)
        place = np.arange(ends[-1]) + np.repeat(begin - (ends - counts), counts)
        return counts, self._starts[place].astype(np.int64)

    def provenance(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The pieces of all rows (PROVENANCE_SCHEMA), or some columns of them."""
        wanted = list(columns) if columns is not None else None
        return pq.read_table(f"{self.base}.prov.parquet", columns=wanted, schema=PROVENANCE_SCHEMA)


class PackedDataset:
    """A packed dataset opened for reading: (phase, row) -> tokens, boundaries and documents. No torch."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(folder)
        self._reader = lru_cache(maxsize=64)(self._open)

    def _open(self, phase_name: str, index: int) -> ShardReader:
        phase = self.manifest.phase(phase_name)
        shard = phase.shards[index]
        base = Path(str(self.path_of(shard)).removesuffix(".bin"))
        return ShardReader(base, shard.rows, phase.seq_len, self.manifest.dtype)

    def path_of(self, shard: PackedShard) -> Path:
        """A shard's .bin. Raises FormatError when it would lie outside the dataset."""
        path = self.folder / shard.file
        if self.folder.resolve() not in path.resolve().parents:
            raise FormatError(f"shard path {shard.file!r} leaves the dataset folder")
        return path

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
