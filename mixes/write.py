"""Write packed shards: from the memory-mapped stores or from buckets into rows, and describe the finished dataset."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson
import pyarrow as pa
import xxhash

from gristmill.core.errors import FormatError
from gristmill.core.stage import Shard
from gristmill.core.tokshards import PROVENANCE_SCHEMA, PackedManifest, PackedPhase, PackedShard
from gristmill.mixes.catalogue import PIECE
from gristmill.mixes.kernels import copy_pieces

RUN_BYTES = (8 << 20, 64 << 20)
"""Least and most that a task of `shards.buckets` spreads over the shards at a time and holds in memory, twice."""
STRETCH_BYTES = 64 << 10
"""Of one shard in one run, on average: long enough to be read at the speed of the disk."""
STRETCH = np.dtype([("shard", "<i4"), ("pieces", "<i4"), ("begin", "<i8"), ("bytes", "<i8"), ("check", "<u8")])
"""One shard's bytes in a bucket file: its PIECE records, then their tokens in that order, then zeros to a multiple of 8.

begin, bytes: in the file. check: xxh3-64 of those bytes, so that a reader of one stretch need not hash the whole file.
"""


def read_records(path: Path, dtype: np.dtype[Any]) -> np.ndarray:
    """(n,) records of an .npy. Raises FormatError on another dtype or a damaged file."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} is damaged: {error}") from error
    if found.dtype != dtype or found.ndim != 1:
        raise FormatError(f"{path} holds {found.dtype}, not the records that it should")
    return np.asarray(found)


class Rows:
    """One packed shard in memory: a (rows, L+1) array that pieces are placed in; `finish` pads what they leave free.

    layout: the phase's layout.json. number: which shard of the phase.
    """

    def __init__(self, layout: Mapping[str, Any], number: int) -> None:
        self.layout = layout
        self.first = number * layout["rows_per_shard"]
        self.capacity = layout["seq_len"] + 1
        count = min(layout["rows_per_shard"], layout["rows"] - self.first)
        self.tokens = np.empty((count, self.capacity), np.dtype(layout["dtype"]))
        self._pieces: list[np.ndarray] = []

    def place(self, pieces: np.ndarray, source: np.ndarray, begin: np.ndarray) -> None:
        """Copy (n,) PIECE records' tokens from one-dimensional `source`, each from its `begin` on.

        Raises FormatError when a piece does not lie within its row or `source`.
        """
        local = pieces["row"] - self.first
        length = pieces["length"].astype(np.int64)
        start = pieces["row_start"].astype(np.int64)
        if not len(pieces):
            return
        if local.min() < 0 or local.max() >= len(self.tokens) or start.min() < 0 or length.min() < 0:
            raise FormatError("a piece reaches beyond its row or its shard")
        if (start + length).max() > self.capacity:
            raise FormatError("a piece reaches beyond its row or its shard")
        if begin.min() < 0 or (begin + length).max() > len(source):
            raise FormatError("a piece reaches beyond its store")
        copy_pieces(self.tokens.reshape(-1), source, local * self.capacity + start, np.ascontiguousarray(begin), length)
        self._pieces.append(pieces.copy())  # not a view: `collect` reads over its buffer

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All pieces by (row, row_start), (rows+1,) int32 pointers and every row's piece starts.

        An unfilled tail is one last piece, filled with the pad id.
        """
        pieces = np.concatenate([np.empty(0, PIECE), *self._pieces])
        pieces = pieces[np.lexsort((pieces["row_start"], pieces["row"]))]
        rows = len(self.tokens)
        local = pieces["row"] - self.first
        filled = np.zeros(rows, np.int64)
        filled[local] = pieces["row_start"] + pieces["length"]  # of several in a row the last stays
        padded = filled < self.capacity
        for row in np.flatnonzero(padded).tolist():
            self.tokens[row, filled[row] :] = self.layout["pad"]
        counts = np.bincount(local, minlength=rows) + padded
        pointers = np.concatenate([[0], np.cumsum(counts)])
        starts = np.empty(pointers[-1], np.int32)
        tails = pointers[1:][padded] - 1
        starts[tails] = filled[padded]
        heads = np.ones(len(starts), bool)
        heads[tails] = False
        starts[heads] = pieces["row_start"]
        return pieces, pointers.astype(np.int32), starts

    def provenance(self, pieces: np.ndarray) -> pa.Table:
        """PROVENANCE_SCHEMA of sorted pieces."""
        names = pa.array(self.layout["sources"], pa.string())
        if len(pieces) and not 0 <= int(pieces["source"].min()) <= int(pieces["source"].max()) < len(names):
            raise FormatError("a piece names a source that the phase has not")
        plain = ("row", "row_start", "length", "doc_start", "store", "doc", "epoch")
        columns = {n: pa.array(pieces[n], PROVENANCE_SCHEMA.field(n).type) for n in plain}
        columns["source"] = pa.DictionaryArray.from_arrays(pa.array(pieces["source"]), names)
        ids = pa.py_buffer(np.ascontiguousarray(pieces["id"]).tobytes())
        columns["id"] = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(pieces), [None, ids])
        return pa.table({n: columns[n] for n in PROVENANCE_SCHEMA.names})


def open_store(path: Path, tokens: int, dtype: str) -> np.ndarray:
    """(tokens,) memory-mapped tokens.bin of a store. Raises FormatError when it has another size."""
    size = path.stat().st_size
    width = np.dtype(dtype).itemsize
    if size != tokens * width:
        other = {2: 4, 4: 2}[width]
        what = f"uint{8 * other} tokens, the dataset uint{8 * width}" if size == tokens * other else f"{size} bytes"
        raise FormatError(f"{path} holds {what}", hint=f"it should hold {tokens} tokens of {width} bytes")
    if not tokens:
        return np.empty(0, dtype)
    with open(path, "rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype)


def start_writeback(file: IO[bytes]) -> None:
    """Ask the system to begin writing a file's dirty pages out, so that the disk works while we hash what it gets.

    Waits for nothing and takes no error away from the fsync at the end. Only Linux has the call; elsewhere no-op.
    """
    file.flush()
    call = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
    if call is not None:
        call(ctypes.c_int(file.fileno()), ctypes.c_int64(0), ctypes.c_int64(0), ctypes.c_uint(2))


def by_store(pieces: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(store, its pieces in the order of its tokens), by store."""
    pieces = pieces[np.lexsort((pieces["begin"], pieces["store"]))]
    edges = [0, *(np.flatnonzero(np.diff(pieces["store"])) + 1).tolist(), len(pieces)]
    for begin, end in itertools.pairwise(edges):
        if end > begin:
            yield int(pieces["store"][begin]), pieces[begin:end]


def gather(pieces: np.ndarray, layout: Mapping[str, Any], number: int, stores: Mapping[int, Path]) -> Rows:
    """One shard straight from the stores. pieces: its (n,) PIECE records. stores: tokens.bin by ordinal."""
    rows = Rows(layout, number)
    for store, mine in by_store(pieces):
        if store not in stores:
            raise FormatError(f"a piece names store {store}, which the mixture has not")
        source = open_store(stores[store], layout["tokens"][store], layout["dtype"])
        rows.place(mine, source, mine["begin"])
    return rows


def scatter(pieces: np.ndarray, layout: Mapping[str, Any], stores: Mapping[int, Path], path: Path) -> np.ndarray:
    """Pass one: write the tokens of a part of the stores to a bucket file, shard by shard in runs.

    pieces: (n,) PIECE records in the order of the stores. Returns the file's (s,) STRETCH index.
    """
    width = np.dtype(layout["dtype"]).itemsize
    shards = -(-layout["rows"] // layout["rows_per_shard"])
    run = min(max(shards * STRETCH_BYTES, RUN_BYTES[0]), RUN_BYTES[1])
    size = np.cumsum(pieces["length"].astype(np.int64) * width + PIECE.itemsize)
    index: list[np.ndarray] = [np.empty(0, STRETCH)]
    done = at = 0
    # used again from run to run: fresh pages cost as much as a copy
    buffers = np.empty(0, np.uint8), np.empty(0, np.uint8)
    with open(path, "wb", buffering=0) as file:
        while at < len(pieces):
            end = max(int(np.searchsorted(size, (size[at - 1] if at else 0) + run, "right")), at + 1)
            data, found, buffers = _run(pieces[at:end], layout, stores, buffers)
            found["begin"] += done
            index.append(found)
            write_all(file, data)
            start_writeback(file)
            done += len(data)
            at = end
    return np.concatenate(index)


def _run(
    pieces: np.ndarray, layout: Mapping[str, Any], stores: Mapping[int, Path], buffers: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    width = np.dtype(layout["dtype"]).itemsize
    shard = pieces["row"] // layout["rows_per_shard"]
    order = np.argsort(shard, kind="stable")
    length = pieces["length"].astype(np.int64)
    present, first, count = np.unique(shard[order], return_index=True, return_counts=True)
    before = np.concatenate([[0], np.cumsum(length[order])])
    tokens = before[first + count] - before[first]
    index = np.zeros(len(present), STRETCH)
    index["shard"], index["pieces"] = present, count
    index["bytes"] = -(-(count * PIECE.itemsize + tokens * width) // 8) * 8
    index["begin"] = np.cumsum(index["bytes"]) - index["bytes"]
    whole = _at_least(buffers[0], int(index["bytes"].sum()))
    read = buffers[1]
    out = whole[: int(index["bytes"].sum())]
    # where each piece's tokens go, in units of one token from the start of `out`: every stretch begins at a multiple of 8
    base = np.repeat((index["begin"] + count * PIECE.itemsize) // width - before[first], count)
    place = np.empty(len(pieces), np.int64)
    place[order] = base + before[:-1]
    target = out.view(layout["dtype"])
    at = 0
    for store, mine in by_store(pieces):
        if store not in stores:
            raise FormatError(f"a piece names store {store}, which is not in this part")
        source = open_store(stores[store], layout["tokens"][store], layout["dtype"])
        begin, end = int(mine["begin"].min()), int((mine["begin"] + mine["length"]).max())
        if begin < 0 or end > len(source) or mine["length"].min() < 0:
            raise FormatError("a piece reaches beyond its store")
        if (end - begin) * width <= 2 * len(out):  # a read costs less than the page faults of a map, if most is used
            read = _at_least(read, (end - begin) * width)
            with open(stores[store], "rb", buffering=0) as file:
                file.seek(begin * width)
                if not _read_all(file, read[: (end - begin) * width]):
                    raise FormatError(f"{stores[store]} ends too early")
            source = read[: (end - begin) * width].view(layout["dtype"])
        else:
            begin = 0
        source.flags.writeable = False  # as a map is: one compiled copy loop for both
        copy_pieces(target, source, place[at : at + len(mine)], mine["begin"] - begin, mine["length"].astype(np.int64))
        at += len(mine)
    sorted_pieces = pieces[order]
    for i, (begin, size) in enumerate(zip(index["begin"].tolist(), index["bytes"].tolist(), strict=True)):
        records = sorted_pieces[first[i] : first[i] + count[i]]
        out[begin : begin + records.nbytes] = np.frombuffer(records.tobytes(), np.uint8)
        out[begin + records.nbytes + int(tokens[i]) * width : begin + size] = 0
        index["check"][i] = xxhash.xxh3_64_intdigest(out[begin : begin + size].data)
    return out, index, (whole, read)


def _at_least(buffer: np.ndarray, size: int) -> np.ndarray:
    """A buffer of at least `size` bytes: this one, or a new one."""
    return buffer if len(buffer) >= size else np.empty(size, np.uint8)


def write_all(file: IO[bytes], data: np.ndarray) -> None:
    """Write a whole array to an unbuffered file."""
    view = data.data.cast("B")
    while len(view):
        view = view[file.write(view) :]


def collect(layout: Mapping[str, Any], number: int, parts: Sequence[tuple[Path, np.ndarray]]) -> Rows:
    """Pass two: one shard from the bucket files. parts: each file with its STRETCH index."""
    rows = Rows(layout, number)
    dtype = np.dtype(layout["dtype"])
    wanted = [(path, index[index["shard"] == number]) for path, index in parts]
    buffer = np.empty(max((int(index["bytes"].max(initial=0)) for _, index in wanted), default=0), np.uint8)
    for path, index in wanted:
        with open(path, "rb", buffering=0) as file:
            for stretch in index:
                data = buffer[: int(stretch["bytes"])]
                file.seek(int(stretch["begin"]))
                if not _read_all(file, data) or xxhash.xxh3_64_intdigest(data.data) != stretch["check"]:
                    raise FormatError(f"{path} differs from its index", hint="delete its folder and run again")
                records = data[: int(stretch["pieces"]) * PIECE.itemsize].view(PIECE)
                length = records["length"].astype(np.int64)
                tokens = data[records.nbytes :].view(dtype)
                tokens.flags.writeable = False  # as a map is: one compiled copy loop for both
                rows.place(records, tokens, np.cumsum(length) - length)
    return rows


def _read_all(file: IO[bytes], data: np.ndarray) -> bool:
    """Fill (n,) uint8 from a file; False at its end."""
    view = data.data
    while len(view):
        n = file.readinto(view)  # type: ignore[attr-defined]
        if not n:
            return False
        view = view[n:]
    return True


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
                **{key: phase[key] for key in ("until_rows", "loss_weights", "chain", "spec") if key in phase},
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
