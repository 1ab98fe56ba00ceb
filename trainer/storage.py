"""Tensors of a checkpoint on disk: a storage writer and reader for torch's distributed checkpoints, without pickle.

Each rank writes one safetensors file a part of the state ("model", "optimizer", "average"): PART.safetensors in one
process, PART-RANK.safetensors in several. index.json says which box of which tensor stands in which file. Files are
written here rather than by the safetensors package, because that holds a second copy of all bytes in memory and
the sha256 is wanted on the way; they are read by that package, from memory maps.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint import StorageReader, StorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from gristmill.core.errors import FormatError
from gristmill.core.hashing import sha256_bytes

INDEX = "index.json"
PIECE = 16 << 20  # bytes between two looks at whether a save is given up
DTYPES = {  # torch's name in index.json -> dtype, safetensors' name
    "float64": (torch.float64, "F64"),
    "float32": (torch.float32, "F32"),
    "bfloat16": (torch.bfloat16, "BF16"),
    "float16": (torch.float16, "F16"),
    "int64": (torch.int64, "I64"),
    "int32": (torch.int32, "I32"),
    "uint8": (torch.uint8, "U8"),
    "bool": (torch.bool, "BOOL"),
}
NAMES = {dtype: name for name, (dtype, _) in DTYPES.items()}

Payload = dict[str, dict[str, Tensor]]  # part -> name -> this rank's box


class GivenUp(Exception):
    """A save was told to stop between two pieces."""


@dataclass(frozen=True)
class FileInfo:
    """A file that is on disk, synced."""

    name: str
    bytes: int
    sha256: str


def file_name(part: str, rank: int, size: int) -> str:
    return f"{part}.safetensors" if size == 1 else f"{part}-{rank:05d}.safetensors"


def split_key(key: str) -> tuple[str, str]:
    part, _, name = key.partition("/")
    return part, name


def put(handle: BinaryIO, data: bytes | memoryview) -> None:
    """The one place where payload goes to disk. Raises OSError, as when the disk is full."""
    handle.write(data)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], stop: Callable[[], bool]) -> FileInfo:
    """Write and sync a safetensors file. Tensors may be on any device; one at a time is brought to CPU.

    Raises OSError, and GivenUp when `stop()` says so.
    """
    order = sorted(tensors, key=lambda n: (-tensors[n].element_size(), n))  # wide types first: all stand aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        t = tensors[name]
        begin, end = end, end + t.numel() * t.element_size()
        shape = list(t.shape)
        header[name] = {"dtype": DTYPES[NAMES[t.dtype]][1], "shape": shape, "data_offsets": [begin, end]}
    text = orjson.dumps(header)
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as handle:
        for data in _pieces(len(text).to_bytes(8, "little") + text, [tensors[n] for n in order]):
            if stop():
                raise GivenUp
            digest.update(data)
            put(handle, data)
        handle.flush()
        os.fsync(handle.fileno())
    return FileInfo(path.name, 8 + len(text) + end, digest.hexdigest())


def _pieces(head: bytes, tensors: list[Tensor]) -> Iterator[bytes | memoryview]:
    yield head
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        data = flat.numpy().data
        for start in range(0, len(data), PIECE):
            yield data[start : start + PIECE]


class Writer(StorageWriter):
    """Writes a rank's boxes into `folder`. Its `files` are known after `finish`, on the coordinator."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, dict[str, Any]] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        self.folder = Path(checkpoint_id) if checkpoint_id is not None else self.folder

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return [replace(plan, storage_data=(rank, len(plans))) for rank, plan in enumerate(plans)]

    def payload(self, plan: SavePlan, planner: SavePlanner) -> Payload:
        """The tensors of a plan, live: they share storage with the state."""
        parts: Payload = defaultdict(dict)
        for item in plan.items:
            part, name = split_key(item.index.fqn)
            tensor = planner.resolve_data(item)
            assert isinstance(tensor, Tensor)
            parts[part][name] = tensor
        return dict(parts)

    def write(
        self, payload: Payload, rank: int, size: int, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, FileInfo]:
        """Write and sync this rank's files. Returns part -> file. Raises OSError or GivenUp."""
        return {
            part: write_safetensors(self.folder / file_name(part, rank, size), tensors, stop)
            for part, tensors in payload.items()
        }

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        infos = self.write(self.payload(plan, planner), *plan.storage_data)
        done: Future[list[WriteResult]] = Future()
        done.set_result(results_of(plan, infos))
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write and sync index.json. Not the marker: that is the caller's, after it."""
        infos = {r.index: r.storage_data for rows in results for r in rows}
        tensors: dict[str, Any] = {}
        for key, stored in sorted(metadata.state_dict_metadata.items()):
            assert isinstance(stored, TensorStorageMetadata)
            chunks = [
                [infos[MetadataIndex(key, c.offsets)].name, list(c.offsets), list(c.sizes)] for c in stored.chunks
            ]
            tensors[key] = {"dtype": NAMES[stored.properties.dtype], "shape": list(stored.size), "chunks": chunks}
        text = orjson.dumps({"tensors": tensors})
        with open(self.folder / INDEX, "wb") as handle:
            put(handle, text)
            handle.flush()
            os.fsync(handle.fileno())
        every = [*infos.values(), FileInfo(INDEX, len(text), sha256_bytes(text))]
        self.files = {info.name: {"bytes": info.bytes, "sha256": info.sha256} for info in every}

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return bool(os.fspath(checkpoint_id))


def results_of(plan: SavePlan, infos: Mapping[str, FileInfo]) -> list[WriteResult]:
    """What `finish` needs to know of a rank's writes: which file holds each of its boxes."""
    return [
        WriteResult(
            item.index,
            math.prod(item.tensor_data.chunk.sizes) * item.tensor_data.properties.dtype.itemsize,
            infos[split_key(item.index.fqn)[0]],
        )
        for item in plan.items
        if item.tensor_data is not None
    ]


class Reader(StorageReader):
    """Reads boxes of the tensors in `folder`; `files` are the names and sizes that its marker vouches for."""

    def __init__(self, folder: Path, files: Mapping[str, int]) -> None:
        self.folder, self.files = folder, files
        self._metadata = Metadata({})

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        self.folder = Path(checkpoint_id) if checkpoint_id is not None else self.folder

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """index.json, checked. Raises FormatError where it is damaged or contradicts itself or its files."""
        try:
            tensors = orjson.loads((self.folder / INDEX).read_bytes())["tensors"]
            md: dict[str, Any] = {}
            where: dict[MetadataIndex, str] = {}
            used: dict[str, int] = defaultdict(int)
            for key, entry in tensors.items():
                size, dtype = torch.Size(entry["shape"]), DTYPES[entry["dtype"]][0]
                chunks = []
                for name, offsets, sizes in entry["chunks"]:
                    box = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
                    inside = (
                        o >= 0 and n > 0 and o + n <= d for o, n, d in zip(box.offsets, box.sizes, size, strict=True)
                    )
                    if name not in self.files or not all(inside):
                        raise ValueError(f"{key} has an impossible box in {name!r}")
                    chunks.append(box)
                    where[MetadataIndex(key, box.offsets)] = name
                    used[name] += math.prod(box.sizes) * dtype.itemsize
                if math.prod(size) != sum(math.prod(c.sizes) for c in chunks):
                    raise ValueError(f"the boxes of {key} are not the whole of it")
                md[key] = TensorStorageMetadata(TensorProperties(dtype=dtype), size, chunks)
            if over := [name for name, n in used.items() if n > self.files[name]]:
                raise ValueError(f"{over[0]} is smaller than the tensors it is said to hold")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise FormatError(f"{self.folder / INDEX} cannot be read: {error}") from error
        self._metadata = Metadata(md, storage_data=where)
        return self._metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._metadata = metadata

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy every box of the plan to its place. Raises FormatError where a file does not hold what the index says."""
        by_file: dict[str, list[Any]] = defaultdict(list)
        for item in plan.items:
            by_file[self._metadata.storage_data[item.storage_index]].append(item)
        for name, items in sorted(by_file.items()):
            try:
                with safe_open(self.folder / name, framework="pt", device="cpu") as file:
                    for item in items:
                        target = planner.resolve_tensor(item).detach()
                        target.copy_(self._box(file, item))
                        planner.commit_tensor(item, target)
            except (SafetensorError, OSError, ValueError) as error:
                raise FormatError(f"{self.folder / name} cannot be read: {error}") from error
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _box(self, file: Any, item: Any) -> Tensor:
        key = item.storage_index.fqn
        stored = self._metadata.state_dict_metadata[key]
        assert isinstance(stored, TensorStorageMetadata)
        sizes = next(c.sizes for c in stored.chunks if c.offsets == item.storage_index.offset)
        name = split_key(key)[1]
        piece = file.get_slice(name)
        if (list(piece.get_shape()), piece.get_dtype()) != (list(sizes), DTYPES[NAMES[stored.properties.dtype]][1]):
            raise ValueError(f"{name} is {piece.get_dtype()} {piece.get_shape()}, the index says {list(sizes)}")
        if not sizes:
            return file.get_tensor(name)
        return piece[tuple(slice(o, o + n) for o, n in zip(item.storage_offsets, item.lengths, strict=True))]

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return (Path(checkpoint_id) / INDEX).is_file()
