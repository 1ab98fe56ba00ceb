"""Which rank writes and reads which box of which tensor: torch's distributed-checkpoint planners, made for our tensors.

A state is a flat {"part/name": Tensor or DTensor}. Two things differ from torch's defaults. The vocabulary is padded to a
multiple that depends on the layout, so of embed.weight, head.weight and their optimizer state only the first `vocab_size`
rows are planned; the padding is zeroed on load. And plans travel between ranks as boxes of integers, not as pickles.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, SavePlan, WriteItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.tensor import DTensor

from gristmill.core.errors import FormatError
from gristmill.trainer.exchange import Exchange

PADDED = re.compile(r"[^/]*/(ema\.)?(embed|head)\.weight(\.[^./]+)?")  # "model/embed.weight", "optimizer/….exp_avg"
DIMENSIONS = 4  # of a tensor at most; a decoder has 2


def stored_shape(key: str, shape: torch.Size, vocab_size: int | None) -> torch.Size:
    """A tensor's shape in a checkpoint: without the rows that pad the vocabulary. `vocab_size` None: as it is."""
    if vocab_size is None or not shape or not PADDED.fullmatch(key):
        return shape
    return torch.Size([min(vocab_size, shape[0]), *shape[1:]])


def box_of(tensor: Tensor) -> ChunkStorageMetadata:
    """The part of the global tensor that this rank holds. Its volume may be 0."""
    if isinstance(tensor, DTensor):
        (chunk,) = tensor.__create_chunk_list__()
        return ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes))
    return ChunkStorageMetadata(torch.Size([0] * tensor.dim()), tensor.shape)


def clip(box: ChunkStorageMetadata, rows: int) -> ChunkStorageMetadata:
    """The box without what lies at or beyond `rows` of the first dimension."""
    start = min(box.offsets[0], rows)
    size = max(min(box.offsets[0] + box.sizes[0], rows) - start, 0)
    return ChunkStorageMetadata(torch.Size([start, *box.offsets[1:]]), torch.Size([size, *box.sizes[1:]]))


def volume(box: ChunkStorageMetadata) -> int:
    return math.prod(box.sizes)


def local(tensor: Tensor) -> Tensor:
    """This rank's part, sharing storage, detached."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


class SavePlanner(DefaultSavePlanner):
    """One item a tensor on every rank, in the order of the state, empty boxes included until the global plan."""

    def __init__(self, vocab_size: int | None) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.vocab_size = vocab_size

    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        self.plan = replace(plan, items=[self._clipped(item) for item in plan.items])
        return self.plan

    def _clipped(self, item: WriteItem) -> WriteItem:
        assert item.tensor_data is not None, f"{item.index.fqn} is no tensor"
        data = item.tensor_data
        size = stored_shape(item.index.fqn, data.size, self.vocab_size)
        box = clip(data.chunk, size[0]) if size else data.chunk
        properties = TensorProperties(dtype=data.properties.dtype)
        return moved(replace(item, tensor_data=replace(data, size=size, properties=properties)), box)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """Without empty boxes, and each box on one rank only: the one with the least to write so far.

        Raises ValueError where the boxes overlap or leave a hole.
        """
        full = [replace(p, items=[i for i in p.items if volume(_box(i))]) for p in all_plans]
        return super().create_global_plan(full)

    def transform_object(self, write_item: WriteItem, object: Tensor) -> Tensor:  # noqa: A002  torch's name
        sizes = _box(write_item).sizes
        return object.detach()[: sizes[0]] if sizes else object.detach()


class LoadPlanner(DefaultLoadPlanner):
    """Fills each rank's boxes from whatever boxes were written, and zeroes the rows that pad the vocabulary."""

    def __init__(self, vocab_size: int | None) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.vocab_size = vocab_size

    def create_local_plan(self) -> LoadPlan:
        """Raises FormatError where a tensor is missing, has another shape or dtype, or is not wholly stored."""
        assert self.metadata is not None
        items = []
        for key, tensor in self.state_dict.items():
            stored = self.metadata.state_dict_metadata.get(key)
            if not isinstance(stored, TensorStorageMetadata):
                raise FormatError(f"the checkpoint has no tensor {key}")
            want, dtype = stored_shape(key, tensor.shape, self.vocab_size), stored.properties.dtype
            if stored.size != want or dtype != tensor.dtype:
                raise FormatError(
                    f"the checkpoint's {key} has the shape {list(stored.size)} of {dtype}, "
                    f"this run's {list(want)} of {tensor.dtype}"
                )
            box = box_of(tensor)
            if want:
                box = clip(box, want[0])
                local(tensor)[box.sizes[0] :].zero_()
            if not volume(box):
                continue
            found = create_read_items_for_chunk_list(key, stored, [box])
            if sum(math.prod(item.lengths) for item in found) != volume(box):
                raise FormatError(f"the checkpoint holds only a part of {key}")
            items += found
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return local(self.state_dict[index.fqn])


def _box(item: WriteItem) -> ChunkStorageMetadata:
    assert item.tensor_data is not None
    return item.tensor_data.chunk


def moved(item: WriteItem, box: ChunkStorageMetadata) -> WriteItem:
    """The same tensor's item for another box of it."""
    assert item.tensor_data is not None
    data = replace(item.tensor_data, chunk=box)
    return replace(item, index=MetadataIndex(item.index.fqn, box.offsets), tensor_data=data)


class PlannedSave:
    """The global plan of a state, kept from save to save: it changes only when tensors appear or vanish."""

    def __init__(self, vocab_size: int | None) -> None:
        self.vocab_size = vocab_size
        self._local: SavePlan | None = None
        self.plans: list[SavePlan] = []
        self.metadata = Metadata({})

    def plan(self, state: Mapping[str, Tensor], exchange: Exchange) -> SavePlanner:
        """Collective. The planner of this rank, its final plan in `.plan`; all ranks' plans in `self.plans`."""
        planner = SavePlanner(self.vocab_size)
        planner.set_up_planner(dict(state), is_coordinator=exchange.leads)
        mine = planner.create_local_plan()
        (changed,) = exchange.any(mine != self._local)
        if changed:
            self.plans, self.metadata = planner.create_global_plan(_everyones(mine, exchange))
            self._local = mine
        planner.finish_plan(self.plans[exchange.rank])
        return planner


def _everyones(mine: SavePlan, exchange: Exchange) -> list[SavePlan]:
    """All ranks' local plans. They name the same tensors in one order, so boxes are all that has to travel."""
    facts = [(i.index.fqn, str(i.type), _data(i).size, str(_data(i).properties.dtype)) for i in mine.items]
    known = hashlib.sha256(repr(facts).encode()).digest()
    for rank, other in enumerate(exchange.gather(torch.tensor(list(known), dtype=torch.uint8))):
        assert bytes(other.tolist()) == known, f"rank {rank} saves other tensors than rank {exchange.rank}"
    boxes = torch.zeros(len(mine.items), 2, DIMENSIONS, dtype=torch.int64)
    for n, item in enumerate(mine.items):
        box = _box(item)
        assert len(box.sizes) <= DIMENSIONS
        boxes[n, 0, : len(box.sizes)] = torch.tensor(list(box.offsets), dtype=torch.int64)
        boxes[n, 1, : len(box.sizes)] = torch.tensor(list(box.sizes), dtype=torch.int64)
    plans = []
    for theirs in exchange.gather(boxes):
        rows = theirs.tolist()
        items = []
        for item, (offsets, sizes) in zip(mine.items, rows, strict=True):
            n = len(_data(item).size)
            items.append(moved(item, ChunkStorageMetadata(torch.Size(offsets[:n]), torch.Size(sizes[:n]))))
        plans.append(SavePlan(items))
    return plans


def _data(item: WriteItem) -> Any:
    assert item.tensor_data is not None
    return item.tensor_data
