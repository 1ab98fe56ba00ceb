"""Tensor parallelism as explicit collectives on local tensors: what a layer calls before and after its cut matrices.

A column-parallel matrix holds some of the outputs and needs all positions; a row-parallel one holds some of the inputs,
and its result is a part of a sum (Shoeybi et al., Megatron-LM, arXiv 1909.08053). With sequence parallelism
(Korthikanti et al., arXiv 2205.05198) the residual stream between them holds 1/tp of the positions, so the same bytes move
as one gather and one reduce-scatter. With one rank every method returns its argument.

Letters: N positions of a micro batch (rows x seq_len), n = N/tp rounded up: those of one rank, C width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


class Copy(torch.autograd.Function):
    """Identity; the gradient is summed over the ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _all_reduce(gradient, ctx.group), None


class Reduce(torch.autograd.Function):
    """The sum over the ranks; each rank's part gets the gradient as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        return _all_reduce(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


class Gather(torch.autograd.Function):
    """(n, C) -> (n x tp, C), the ranks' rows one after another; the gradient is summed and cut back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _all_gather(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _reduce_scatter(gradient, ctx.group), None


class Scatter(torch.autograd.Function):
    """(n x tp, C) parts of a sum -> this rank's (n, C) rows of the sum; gradients are gathered."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _reduce_scatter(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _all_gather(gradient, ctx.group), None


def _all_reduce(x: Tensor, group: Any) -> Tensor:
    x = x.contiguous().clone()
    dist.all_reduce(x, group=group)
    return x


def _all_gather(x: Tensor, group: Any) -> Tensor:
    out = x.new_empty((x.shape[0] * dist.get_world_size(group), *x.shape[1:]))
    dist.all_gather_into_tensor(out, x.contiguous(), group=group)
    return out


def _reduce_scatter(x: Tensor, group: Any) -> Tensor:
    out = x.new_empty((x.shape[0] // dist.get_world_size(group), *x.shape[1:]))
    dist.reduce_scatter_tensor(out, x.contiguous(), group=group)
    return out


@dataclass(frozen=True)
class TensorParallel:
    """One rank of a tensor-parallel group. `sequence`: the residual stream is divided over the ranks by position."""

    size: int = 1
    rank: int = 0
    group: Any = None
    sequence: bool = False

    def gather(self, x_nC: Tensor, positions: int) -> Tensor:
        """All N `positions` in front of column-parallel matrices."""
        if self.size == 1:
            return x_nC
        if not self.sequence:
            return Copy.apply(x_nC, self.group)  # type: ignore[no-any-return, no-untyped-call]
        return Gather.apply(x_nC, self.group)[:positions]  # type: ignore[no-any-return, no-untyped-call]

    def scatter(self, part_NC: Tensor) -> Tensor:
        """The residual stream behind row-parallel matrices, from each rank's part of the sum."""
        if self.size == 1:
            return part_NC
        if not self.sequence:
            return Reduce.apply(part_NC, self.group)  # type: ignore[no-any-return, no-untyped-call]
        missing = -len(part_NC) % self.size
        whole = F.pad(part_NC, (0, 0, 0, missing)) if missing else part_NC
        return Scatter.apply(whole, self.group)  # type: ignore[no-any-return, no-untyped-call]

    def columns(self, part: Tensor) -> Tensor:
        """The ranks' last dimensions side by side (no gradient)."""
        if self.size == 1:
            return part
        return _all_gather(part.movedim(-1, 0), self.group).movedim(0, -1)

    def all_reduce(self, x: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        """In place, without a gradient."""
        if self.size > 1:
            dist.all_reduce(x, op=op, group=self.group)
        return x


ALONE = TensorParallel()


def local(parameter: Tensor, partial: bool = False) -> Tensor:
    """This rank's part of a parameter, as a plain tensor that kernels take.

    `partial`: every rank holds the whole parameter but sees only some of what it acts on (norms under sequence parallelism,
    replicated key/value heads), so the gradients of the ranks are parts of a sum. FSDP2 sums them once a step.
    """
    if not isinstance(parameter, DTensor):
        return parameter
    if partial and parameter.device_mesh.size() > 1:
        return parameter.to_local(grad_placements=[Partial()])
    return parameter.to_local()


@torch.no_grad()
def fill(parameter: Tensor, whole: Tensor) -> None:
    """Set a parameter's local part from its whole value, which may lack the rows that pad the vocabulary: those are 0."""
    part, offset = parameter, (0,) * parameter.dim()
    if isinstance(parameter, DTensor):
        part = parameter.to_local()
        _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    cut = whole[tuple(slice(o, o + n) for o, n in zip(offset, part.shape, strict=True))]
    if cut.shape != part.shape:
        part.zero_()
    if cut.numel():
        part[: len(cut)].copy_(cut)


def whole(parameter: Tensor) -> Tensor:
    """A parameter gathered from all ranks, which must all ask."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()
