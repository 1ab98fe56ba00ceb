"""Tensor parallelism as explicit collectives on local tensors: the products of a layer's cut matrices.

A column-parallel matrix holds some of the outputs and needs all positions; a row-parallel one holds some of the inputs,
and its result is a part of a sum (Shoeybi et al., Megatron-LM, arXiv 1909.08053). With sequence parallelism
(Korthikanti et al., arXiv 2205.05198) the residual stream between them holds 1/tp of the positions, so the same bytes move
as one gather and one reduce-scatter. With one rank these are plain products.

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

WIDE = (torch.float32, torch.float64)  # dtypes whose sums need no wider one


class Column(torch.autograd.Function):
    """(n, C) and column-parallel weights (O, C) -> their (N, O) products; the gradient of x is summed over the ranks.

    Only this rank's positions are kept for the backward pass, which gathers again (arXiv 2205.05198, section 4.2).
    """

    @staticmethod
    def forward(ctx: Any, x_nC: Tensor, tp: TensorParallel, positions: int, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x_nC, *weights)
        ctx.tp, ctx.positions = tp, positions
        x_NC = tp.all_positions(x_nC, positions)
        return tuple(x_NC @ w.t() for w in weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_nC, *weights = ctx.saved_tensors
        tp: TensorParallel = ctx.tp
        part_NC = tp.product(gradients[0], weights[0])
        for gradient, weight in zip(gradients[1:], weights[1:], strict=True):
            part_NC += tp.product(gradient, weight)
        x_NC = tp.all_positions(x_nC, ctx.positions)
        return (
            tp.own_positions(part_NC).to(x_nC.dtype),
            None,
            None,
            *(gradient.t() @ x_NC for gradient in gradients),
        )


class Row(torch.autograd.Function):
    """(N, I) inner columns of this rank and its (C, I) weight -> this rank's (n, C) positions of the sum over the ranks."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_CI: Tensor, tp: TensorParallel) -> Tensor:
        ctx.save_for_backward(x_NI, weight_CI)
        ctx.tp = tp
        return tp.own_positions(tp.product(x_NI, weight_CI.t())).to(x_NI.dtype)

    @staticmethod
    def backward(ctx: Any, gradient_nC: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x_NI, weight_CI = ctx.saved_tensors
        gradient_NC = ctx.tp.all_positions(gradient_nC, len(x_NI))
        return gradient_NC @ weight_CI, gradient_NC.t() @ x_NI, None


class Own(torch.autograd.Function):
    """(N, C) parts of a sum -> this rank's (n, C) positions of it; gradients go to every part."""

    @staticmethod
    def forward(ctx: Any, part_NC: Tensor, tp: TensorParallel) -> Tensor:
        ctx.tp, ctx.positions = tp, len(part_NC)
        return tp.own_positions(part_NC)

    @staticmethod
    def backward(ctx: Any, gradient_nC: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.tp.all_positions(gradient_nC, ctx.positions), None


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
    """One rank of a tensor-parallel group.

    `sequence`: the residual stream is divided over the ranks by position. `wide`: parts of sums are fp32 from the product
    on until they are added, so that bf16 rounds the sum alone, whether its parts lie in one rank (the gradients of what
    query, key and value share) or in several; between ranks it moves twice the bytes.
    """

    size: int = 1
    rank: int = 0
    group: Any = None
    sequence: bool = False
    wide: bool = True

    def column(self, x_nC: Tensor, positions: int, *weights: Tensor) -> tuple[Tensor, ...]:
        """The (N, O) products of all N `positions` with column-parallel weights, each (O, C), in the dtype of x."""
        if self.size == 1 and (not self.wide or x_nC.dtype in WIDE):
            return tuple(F.linear(x_nC, weight) for weight in weights)
        return Column.apply(x_nC, self, positions, *weights)  # type: ignore[no-any-return, no-untyped-call]

    def row(self, x_NI: Tensor, weight_CI: Tensor) -> Tensor:
        """The residual stream (n, C) behind a row-parallel weight."""
        if self.size == 1:
            return F.linear(x_NI, weight_CI)
        return Row.apply(x_NI, weight_CI, self)  # type: ignore[no-any-return, no-untyped-call]

    def own(self, part_NC: Tensor) -> Tensor:
        """The residual stream (n, C) of parts (N, C) of a sum."""
        return part_NC if self.size == 1 else Own.apply(part_NC, self)  # type: ignore[no-any-return, no-untyped-call]

    def all_positions(self, x_nC: Tensor, positions: int) -> Tensor:
        """(N, C): under sequence parallelism the ranks' rows one after another. Without a gradient of its own."""
        return _all_gather(x_nC, self.group)[:positions] if self.sequence else x_nC

    def own_positions(self, part_NC: Tensor) -> Tensor:
        """(n, C): this rank's rows of the sum of the ranks' parts, or all of it without sequence parallelism."""
        if not self.sequence:
            return _all_reduce(part_NC, self.group) if self.size > 1 else part_NC
        missing = -len(part_NC) % self.size
        return _reduce_scatter(F.pad(part_NC, (0, 0, 0, missing)) if missing else part_NC, self.group)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """a @ b, a part of a sum: in fp32 where `wide`."""
        if not self.wide or a.dtype in WIDE:
            return a @ b
        if a.device.type == "cuda":
            return torch.mm(a, b, out_dtype=torch.float32)
        return a.float() @ b.float()  # exact products, as the GPU's

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
