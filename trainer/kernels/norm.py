"""RMSNorm, alone and fused with the residual's addition before it: forward and backward, one pass over memory each.

  y = x r w     r = 1 / sqrt(mean(x^2) + eps)     dx = r (w dy - x r mean(w dy x r))     dw = sum over rows of dy x r

(Zhang and Sennrich, arXiv 1910.07467). Arithmetic is fp32 whatever the dtypes; offsets of rows are 64-bit. dw is summed in
fp32, by each program over its rows and then over the programs in one order: the same bits every time, without atomics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from gristmill.trainer.kernels.config import choose
from gristmill.trainer.kernels.rows import as_rows, same


@triton.jit
def _forward_kernel(
    X,
    RESIDUAL,
    WEIGHT,
    Y,
    TOTAL,
    SCALE,
    rows,
    width,
    stride_x,
    stride_residual,
    eps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Y, TOTAL and SCALE (r) are dense. The total is rounded to its dtype before it is normalised, as it is eagerly."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    live = (row < rows)[:, None] & (column < width)[None, :]
    x = tl.load(X + row[:, None] * stride_x + column[None, :], mask=live, other=0.0).to(tl.float32)
    dense = row[:, None] * width + column[None, :]
    if RESIDUAL is not None:
        at = row[:, None] * stride_residual + column[None, :]
        x += tl.load(RESIDUAL + at, mask=live, other=0.0).to(tl.float32)
        rounded = x.to(TOTAL.dtype.element_ty)
        tl.store(TOTAL + dense, rounded, mask=live)
        x = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 1) / width + eps)
    tl.store(SCALE + row, scale, mask=row < rows)
    weight = tl.load(WEIGHT + column, mask=column < width, other=0.0).to(tl.float32)
    y = x * scale[:, None] * weight[None, :]
    tl.store(Y + dense, y.to(Y.dtype.element_ty), mask=live)


@triton.jit
def _backward_kernel(
    DY,
    DTOTAL,
    X,
    WEIGHT,
    SCALE,
    DX,
    PARTS,
    rows,
    width,
    stride_dy,
    stride_dtotal,
    stride_x,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """DTOTAL: what comes to x besides, through the residual stream. Program p has row p of PARTS for its sum of dw."""
    column = tl.arange(0, BLOCK)
    inside = column < width
    weight = tl.load(WEIGHT + column, mask=inside, other=0.0).to(tl.float32)
    dw = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    for first in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = tl.cast(first, tl.int64) + tl.arange(0, ROWS)
        live = (row < rows)[:, None] & inside[None, :]
        x = tl.load(X + row[:, None] * stride_x + column[None, :], mask=live, other=0.0).to(tl.float32)
        dy = tl.load(DY + row[:, None] * stride_dy + column[None, :], mask=live, other=0.0).to(tl.float32)
        scale = tl.load(SCALE + row, mask=row < rows, other=0.0)[:, None]
        unit = x * scale
        weighted = dy * weight[None, :]
        dx = (weighted - unit * (tl.sum(weighted * unit, 1) / width)[:, None]) * scale
        if DTOTAL is not None:
            at = row[:, None] * stride_dtotal + column[None, :]
            dx += tl.load(DTOTAL + at, mask=live, other=0.0).to(tl.float32)
        tl.store(DX + row[:, None] * width + column[None, :], dx.to(DX.dtype.element_ty), mask=live)
        dw += dy * unit
    tl.store(PARTS + tl.program_id(0) * width + column, tl.sum(dw, 0), mask=inside)


def launch_forward(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(y, x + residual or x itself, r in fp32) for rows as `as_rows` makes them."""
    rows, width = x.shape
    y = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    total = x if residual is None else torch.empty_like(y)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    if rows and width:
        c = choose("norm forward", width)
        _forward_kernel[(triton.cdiv(rows, c.rows),)](
            x,
            residual,
            weight,
            y,
            None if residual is None else total,
            scale,
            rows,
            width,
            x.stride(0),
            0 if residual is None else residual.stride(0),
            float(eps),
            ROWS=c.rows,
            BLOCK=c.block,
            num_warps=c.warps,
        )
    return y, total, scale


def launch_backward(
    dy: Tensor, dtotal: Tensor | None, x: Tensor, weight: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """(dx, dw in the weight's dtype)."""
    rows, width = x.shape
    dx = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    if not rows or not width:
        return dx, torch.zeros_like(weight)
    c = choose("norm backward", width)
    programs = min(c.programs, triton.cdiv(rows, c.rows))
    parts = torch.empty((programs, width), dtype=torch.float32, device=x.device)
    _backward_kernel[(programs,)](
        dy,
        dtotal,
        x,
        weight,
        scale,
        dx,
        parts,
        rows,
        width,
        dy.stride(0),
        0 if dtotal is None else dtotal.stride(0),
        x.stride(0),
        ROWS=c.rows,
        BLOCK=c.block,
        num_warps=c.warps,
    )
    return dx, parts.sum(0).to(weight.dtype)


class RMSNormFunction(torch.autograd.Function):
    """Keeps x (or the total) and r."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, total, scale = launch_forward(as_rows(x), None, weight.contiguous(), eps)
        ctx.save_for_backward(total, weight, scale)
        return y.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        total, weight, scale = ctx.saved_tensors
        dx, dw = launch_backward(as_rows(dy), None, total, weight.contiguous(), scale)
        return dx.view(dy.shape), dw, None


class AddRMSNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        y, total, scale = launch_forward(as_rows(x), as_rows(residual), weight.contiguous(), eps)
        ctx.save_for_backward(total, weight, scale)
        ctx.set_materialize_grads(False)
        return y.view(x.shape), total.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, dy: Tensor | None, dtotal: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        total, weight, scale = ctx.saved_tensors
        if dy is None:
            return dtotal, dtotal, None, None
        later = None if dtotal is None else as_rows(dtotal)
        dx, dw = launch_backward(as_rows(dy), later, total, weight.contiguous(), scale)
        dx = dx.view(dy.shape)
        return dx, dx, dw, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension (any shape, any strides), in the dtype of x.

    The weight may have another dtype and gets its gradient in it. Raises ValueError where weight is not (width,) or a row
    wider than config.WIDEST.
    """
    _check(x, weight)
    return RMSNormFunction.apply(x, weight, eps)  # type: ignore[no-any-return, no-untyped-call]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual); gradients may come through both. Raises as `rms_norm`, and for unlike inputs."""
    same(x=x, residual=residual)
    _check(x, weight)
    return AddRMSNormFunction.apply(x, residual, weight, eps)  # type: ignore[no-any-return, no-untyped-call]


def _check(x: Tensor, weight: Tensor) -> None:
    if not x.dim() or weight.shape != x.shape[-1:]:
        raise ValueError(f"weight is {tuple(weight.shape)} for x of {tuple(x.shape)}: one element a column")


def aot_cases() -> list[tuple[str, Callable[[], object]]]:
    """8192 rows at the presets' hidden widths; a head's norm alone, as in layers without RoPE."""

    def case(rows: int, width: int, dtype: torch.dtype, add: bool) -> None:
        def new(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        x, weight = new(rows, width), new(width)
        residual = new(rows, width) if add else None
        _, total, scale = launch_forward(x, residual, weight, 1e-5)
        launch_backward(new(rows, width), residual, total, weight, scale)

    bf16, fp32 = torch.bfloat16, torch.float32
    return [
        ("llama-3-8b/bf16", lambda: case(8192, 4096, bf16, False)),
        ("llama-3-8b/bf16 add", lambda: case(8192, 4096, bf16, True)),
        ("llama-3-8b/fp32 add", lambda: case(8192, 4096, fp32, True)),
        ("smollm3-3b/bf16 add", lambda: case(8192, 2048, bf16, True)),
        ("qwen3-0.6b/bf16 add", lambda: case(8192, 1024, bf16, True)),
        ("head 128/bf16", lambda: case(8192 * 16, 128, bf16, False)),
        ("nano/bf16 add", lambda: case(8192, 256, bf16, True)),
        ("tiny/bf16 add", lambda: case(8192, 96, bf16, True)),
        ("one row/bf16 add", lambda: case(1, 4096, bf16, True)),  # an argument of 1 is compiled in as a constant
    ]
