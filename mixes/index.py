"""The find index of a packed dataset: from a document's id or URL to the rows that hold it, by bisection of sorted files.

find.json  FIND_FORMAT, the sha256 of the manifest it belongs to, the records of each file and its sha256
find.ids   <u8 key: the first 8 bytes of the id as a big-endian number; <u8 where: phase's ordinal << 48 | row
find.urls  <u8 key: hash64 of the URL or of an imported document's own id; <u8 where: store's ordinal << 32 | row of docs.parquet

Both are sorted by (key, where), 16 B a record, and memory-mapped. A key may belong to several documents: whoever looks
one up confirms it in the provenance or in docs.parquet. The stage `shards` writes the index beside the manifest; for
a dataset without one it is built once, in ROOT/cache/find.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.core.errors import FormatError
from gristmill.core.hashing import hash64, sha256_file
from gristmill.core.tokshards import PackedDataset

FIND_FORMAT = "gristmill-find-index-2"
NAMES = ("find.json", "find.ids", "find.urls")
NAMED = ("url", "import_id")
"""Columns of docs.parquet that a document is sought by; the second one is there where a store was imported."""
RECORD = np.dtype([("key", "<u8"), ("where", "<u8")])
BUCKET_RECORDS = 1 << 20
"""Records sorted at once: 16 MB, some 50 MB with the sort's own arrays."""
MOST_BUCKETS = 4096


def id_key(document: str | bytes) -> int:
    """The index key of a document id (32 hex digits or 16 bytes)."""
    raw = bytes.fromhex(document) if isinstance(document, str) else document
    return int.from_bytes(raw[:8], "big")


class FindIndex:
    """An index opened for reading. Raises FormatError when it is damaged or belongs to another manifest."""

    def __init__(self, folder: str | Path, manifest_sha256: str) -> None:
        self.folder = Path(folder)
        try:
            head = orjson.loads((self.folder / "find.json").read_bytes())
            sizes = {name: (self.folder / f"find.{name}").stat().st_size for name in ("ids", "urls")}
            same = head["format"] == FIND_FORMAT and head["manifest_sha256"] == manifest_sha256
            whole = all(sizes[name] == head[name] * RECORD.itemsize for name in sizes)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{self.folder} has no find index: {error}") from error
        if not same or not whole:
            raise FormatError(f"{self.folder} has the find index of another dataset, or a part of one")
        self._files = {name: self._map(name, size) for name, size in sizes.items()}

    def _map(self, name: str, size: int) -> np.ndarray:
        return np.memmap(self.folder / f"find.{name}", RECORD, "r") if size else np.empty(0, RECORD)

    def rows(self, document: str) -> list[tuple[int, int]]:
        """(phase's ordinal, row) that may hold a document, in row order: each once."""
        return sorted({(w >> 48, w & (1 << 48) - 1) for w in self._where("ids", id_key(document))})

    def documents(self, url: str) -> list[tuple[int, int]]:
        """(store's ordinal, row of docs.parquet) that may have this URL, or this id of their own."""
        return sorted({(w >> 32, w & 0xFFFFFFFF) for w in self._where("urls", hash64(url))})

    def _where(self, name: str, key: int) -> list[int]:
        keys: Any = self._files[name]["key"]
        begin, end = bisect_left(keys, np.uint64(key)), bisect_right(keys, np.uint64(key))
        found: list[int] = self._files[name]["where"][begin:end].tolist()
        return found


def build(dataset: PackedDataset, docs: Sequence[Path | None], paths: dict[str, Path]) -> None:
    """Write the index of a dataset to `paths`, NAMES -> file. Memory is bounded by a bucket and one shard's provenance.

    `docs`: the docs.parquet of each token store, None where it is gone: its documents are found by id alone.
    """
    counts = {
        "ids": _write_sorted(_ids(dataset), _pieces(dataset), paths["find.ids"]),
        "urls": _write_sorted(_urls(docs), len(NAMED) * sum(_rows(path) for path in docs if path), paths["find.urls"]),
    }
    head = {
        "format": FIND_FORMAT,
        "manifest_sha256": sha256_file(dataset.folder / "manifest.json"),
        "sha256": {name: sha256_file(paths[name]) for name in NAMES[1:]},
        **counts,
    }
    paths["find.json"].write_bytes(orjson.dumps(head, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n")


def faults(folder: Path) -> Iterator[tuple[str, str]]:
    """(file, what) of each file of a folder's index that is not what find.json says; none where there is no index.

    Lookups do not hash: they take as long on a large index as on a small one. An index of an earlier format has no
    digests, and is not used but built again in the cache.
    """
    try:
        head = orjson.loads((folder / "find.json").read_bytes())
        if head["format"] != FIND_FORMAT:
            return
        said = {name: head["sha256"][name] for name in NAMES[1:]}
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield "find.json", f"is damaged: {error}"
        return
    for name, want in said.items():
        try:
            if sha256_file(folder / name) != want:
                yield name, "differs from find.json"
        except OSError as error:
            yield name, f"is gone: {error.strerror}"


def open_index(dataset: PackedDataset, root: Path) -> FindIndex:
    """The index beside the dataset, or that in the root's cache, which is built where there is none.

    Raises FormatError on damaged provenance, OSError when the cache cannot be written.
    """
    manifest = sha256_file(dataset.folder / "manifest.json")
    cached = root / "cache" / "find" / manifest[:32]
    for folder in (dataset.folder, cached):
        try:
            return FindIndex(folder, manifest)
        except FormatError:
            continue
    work = cached.with_name(f".tmp-{cached.name}-{os.getpid()}-{threading.get_ident()}")
    work.mkdir(parents=True)
    try:
        docs = [path if path.is_file() else None for path in (root / s["path"] for s in dataset.manifest.stores)]
        build(dataset, docs, {name: work / name for name in NAMES})
        try:
            os.replace(work, cached)
        except OSError:
            try:
                return FindIndex(cached, manifest)  # a twin was faster
            except FormatError:  # a damaged one is in the way
                shutil.rmtree(cached, ignore_errors=True)
                os.replace(work, cached)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return FindIndex(cached, manifest)


def _provenance(dataset: PackedDataset) -> Iterator[tuple[int, str]]:
    """(phase's ordinal, path of the provenance) of every shard."""
    for i, phase in enumerate(dataset.manifest.phases):
        for shard in phase.shards:
            yield i, str(dataset.folder / f"{shard.file.removesuffix('.bin')}.prov.parquet")


def _rows(path: str | Path) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowException) as error:
        raise FormatError(f"{path} is damaged: {error}") from error


def _pieces(dataset: PackedDataset) -> int:
    return sum(_rows(path) for _, path in _provenance(dataset))


def _ids(dataset: PackedDataset) -> Iterator[np.ndarray]:
    for phase, path in _provenance(dataset):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1 << 17, columns=["row", "id"]):
                ids = batch.column("id")
                raw = np.frombuffer(ids.buffers()[1] or b"", ">u8")[2 * ids.offset : 2 * (ids.offset + len(ids)) : 2]
                out = np.empty(len(ids), RECORD)
                out["key"] = raw
                out["where"] = batch.column("row").to_numpy().astype(np.uint64) | np.uint64(phase << 48)
                yield out


def _urls(docs: Sequence[Path | None]) -> Iterator[np.ndarray]:
    for store, path in enumerate(docs):
        if path is None:
            continue
        at = 0
        with pq.ParquetFile(path) as file:
            names = [name for name in NAMED if name in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=1 << 16, columns=names):
                for column in batch.columns:
                    texts = column.to_pylist()
                    out = np.empty(len(texts), RECORD)
                    out["key"] = np.fromiter((0 if t is None else hash64(t) for t in texts), np.uint64, len(texts))
                    out["where"] = np.arange(at, at + len(texts), dtype=np.uint64) | np.uint64(store << 32)
                    yield out[np.fromiter((t is not None for t in texts), bool, len(texts))]
                at += len(batch)


def _write_sorted(parts: Iterator[np.ndarray], most: int, path: Path) -> int:
    """Write the records of all parts, at most `most`, sorted by (key, where), each once. Returns how many."""
    buckets = min(-(-most // BUCKET_RECORDS) or 1, MOST_BUCKETS)
    written = 0
    with tempfile.TemporaryDirectory(prefix=".find-", dir=path.parent) as folder, open(path, "wb") as out:
        held: list[np.ndarray] = []
        for part in parts:
            if buckets == 1:
                held.append(part)
                continue
            bucket = (part["key"] >> np.uint64(52)).astype(
                np.int64
            ) * buckets >> 12  # leading bits: buckets are in order
            order = np.argsort(bucket, kind="stable")
            cuts = np.searchsorted(bucket[order], np.arange(buckets + 1))
            for i in np.flatnonzero(np.diff(cuts)).tolist():
                with open(f"{folder}/{i:04d}", "ab") as file:
                    part[order[cuts[i] : cuts[i + 1]]].tofile(file)
        if buckets == 1:
            written = _append(np.concatenate(held) if held else np.empty(0, RECORD), out)
        for name in sorted(os.listdir(folder)):
            written += _append(np.fromfile(f"{folder}/{name}", RECORD), out)
    return written


def _append(records: np.ndarray, out: Any) -> int:
    records = records[np.lexsort((records["where"], records["key"]))]
    if len(records):
        new = (np.diff(records["key"]) != 0) | (np.diff(records["where"]) != 0)
        records = records[np.concatenate([[True], new])]
    records.tofile(out)
    return len(records)
