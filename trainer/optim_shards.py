"""Which box of each parameter every rank holds, and how whole matrices travel to an owner rank and back.

An optimizer that works element by element is given each rank's local tensor and needs nothing of this. The gradient norm
needs to know which rank counts a replicated box; Muon needs a matrix in one place (all-to-all: each rank sends its box of
every matrix to that matrix' owner, all ranks at once; the boxes of a matrix are sent once, whatever is replicated).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset

from gristmill.trainer.parallel.mesh import World

Key = TypeVar("Key")


@dataclass(frozen=True)
class Box:
    """The part of a tensor on one rank. May be empty: FSDP2 cuts 1 row over 2 ranks into 1 and 0."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    counts: bool  # the one rank, of those that hold this box, that counts and sends it

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def sent(self) -> int:
        """Elements that this rank contributes to the whole."""
        return self.size if self.counts else 0

    @property
    def where(self) -> tuple[slice, ...]:
        return tuple(slice(o, o + n) for o, n in zip(self.offset, self.shape, strict=True))


@dataclass(frozen=True)
class Layout:
    """A parameter's shape and its boxes by rank, seen from `rank`."""

    shape: tuple[int, ...]
    boxes: tuple[Box, ...]
    rank: int = 0

    @property
    def mine(self) -> Box:
        return self.boxes[self.rank]


def counts(parameter: Tensor) -> bool:
    """Whether this rank counts its elements of a parameter: one rank does of those that hold the same ones."""
    if not isinstance(parameter, DTensor):
        return True
    place = parameter.device_mesh.get_coordinate()
    assert place is not None
    return _counts(parameter, place)


def _counts(parameter: DTensor, place: Sequence[int]) -> bool:
    return not any(i for i, placement in zip(place, parameter.placements, strict=True) if placement.is_replicate())


def layouts(parameters: Mapping[Key, Tensor], world: World) -> dict[Key, Layout]:
    """{key: layout} of the parameters. In several processes each must be a DTensor over all ranks of the world."""
    known: dict[Any, Layout] = {}  # blocks repeat, and one shape takes 0.3 s for 384 ranks
    out = {}
    for given, parameter in parameters.items():
        if world.size == 1:
            shape = tuple(parameter.shape)
            out[given] = Layout(shape, (Box((0,) * len(shape), shape, True),))
            continue
        assert isinstance(parameter, DTensor), "a parameter is not on the mesh"
        key = (parameter.shape, parameter.placements, parameter.device_mesh)
        if key not in known:
            known[key] = _layout(parameter, world)
        out[given] = known[key]
    return out


def _layout(parameter: DTensor, world: World) -> Layout:
    mesh = parameter.device_mesh
    assert mesh.size() == world.size, "a parameter that is not on every rank"
    boxes = {}
    for place in itertools.product(*map(range, mesh.shape)):
        shape, offset = _compute_local_shape_and_global_offset(
            parameter.shape, mesh.shape, list(place), parameter.placements
        )
        boxes[int(mesh.mesh[place])] = Box(offset, shape, _counts(parameter, place))
    layout = Layout(tuple(parameter.shape), tuple(boxes[rank] for rank in range(world.size)), world.rank)
    assert layout.mine.shape == local(parameter).shape
    return layout


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a parameter or gradient, a plain tensor that shares its storage."""
    if not isinstance(tensor, DTensor):
        return tensor
    part: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return part


def placements(tensor: Tensor) -> tuple[Placement, ...] | None:
    """How a tensor is cut over the mesh; None for a plain one."""
    return tensor.placements if isinstance(tensor, DTensor) else None


def placed_as(part: Tensor, parameter: Tensor) -> Tensor:
    """A local tensor as the DTensor whose part it is, placed as `parameter` is; itself where that is a plain tensor."""
    if not isinstance(parameter, DTensor):
        return part
    return DTensor.from_local(
        part,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def to_owner(parts: Sequence[Tensor], rows: Sequence[Layout], world: World) -> Tensor | None:
    """This rank's whole matrix, from all ranks' parts. A collective call.

    parts[r] is this rank's box of the matrix that rank r owns, rows[r] that matrix' layout. Where there are fewer matrices
    than ranks the last ranks own none and get None. All parts have one dtype, in which they are sent.
    """
    sent = [part.reshape(-1)[: row.mine.sent] for part, row in zip(parts, rows, strict=True)]
    mine = rows[world.rank] if world.rank < len(rows) else None
    received = _all_to_all(sent, [box.sent for box in mine.boxes] if mine else [], parts[0], world)
    if mine is None:
        return None
    whole = parts[0].new_empty(mine.shape)
    for box, part in zip(mine.boxes, received, strict=True):
        if box.sent:
            whole[box.where] = part.view(box.shape)
    return whole


def from_owner(whole: Tensor | None, rows: Sequence[Layout], like: Tensor, world: World) -> list[Tensor]:
    """The way back: this rank's part of every owner's whole matrix, of the dtype and device of `like`. Collective."""
    sent = [] if whole is None else [whole[box.where].reshape(-1) for box in rows[world.rank].boxes]
    received = _all_to_all(sent, [row.mine.size for row in rows], like, world)
    return [part.view(row.mine.shape) for row, part in zip(rows, received, strict=True)]


def _all_to_all(sent: Sequence[Tensor], sizes: Sequence[int], like: Tensor, world: World) -> tuple[Tensor, ...]:
    """sent[r] (flat) goes to rank r, sizes[r] elements come from it; ranks past a list's end send or get nothing."""
    taken = [*sizes, *[0] * (world.size - len(sizes))]
    given = [*(t.numel() for t in sent), *[0] * (world.size - len(sent))]
    received = like.new_empty(sum(sizes))
    dist.all_to_all_single(received, torch.cat(list(sent)) if sent else like.new_empty(0), taken, given)
    return received.split(list(sizes)) if sizes else ()
