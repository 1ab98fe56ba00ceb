"""The MLP's activations, with or without a gate: SwiGLU, squared ReLU and xIELU, forward and backward, one pass each.

  y = a(x) u     silu: x sigmoid(x)     relu2: max(x, 0)^2     xielu: p x^2 + x/2 for x > 0, else n (e^x - 1 - x) + x/2

with u = 1 without a gate, p = softplus(alpha_p) and n = 1/2 + softplus(alpha_n) (arXiv 2411.13010, section 3). Arithmetic is
fp32 whatever the dtypes; offsets are 64-bit. The gradients of xIELU's alphas are summed by each program and then over the
programs in one order: the same bits every time, without atomics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from gristmill.trainer.kernels.config import choose
from gristmill.trainer.kernels.rows import as_rows, same

Activation = Literal["silu", "relu2", "xielu"]
TILE = 2048  # elements; on the interpreter whatever `choose` says


@triton.jit
def _softplus(x):
    """log(1 + e^x) without overflow: e^-|x| <= 1."""
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def _beyond_linear(x):
    """e^x - 1 - x for x <= 0, to fp32's precision; near 0 it is x^2/2, of which exp(x) - 1 - x would leave no digit."""
    near = tl.maximum(x, -0.5)
    series = near / 10 + 1  # Taylor, 9 terms: a relative error of 1e-10 at -0.5
    for i in tl.static_range(9, 2, -1):
        series = series * (near / i) + 1
    return tl.where(x > -0.5, series * near * near * 0.5, tl.exp(x) - 1 - x)


@triton.jit
def _activate(x, P, N, KIND: tl.constexpr):
    """a(x). A NaN stays one: x <= 0 is false of it, as x > 0 is, and the formula of that side passes it on."""
    if KIND == "silu":
        y = x * tl.sigmoid(x)
    elif KIND == "relu2":
        y = tl.where(x <= 0, 0.0, x * x)
    else:
        p = _softplus(tl.load(P).to(tl.float32))
        n = _softplus(tl.load(N).to(tl.float32)) + 0.5
        y = tl.where(x > 0, p * x * x, n * _beyond_linear(tl.minimum(x, 0.0))) + 0.5 * x
    return y


@triton.jit
def _slope(x, P, N, KIND: tl.constexpr):
    """a'(x)."""
    if KIND == "silu":
        s = tl.sigmoid(x)
        slope = s * (1.0 + x * (1.0 - s))
    elif KIND == "relu2":
        slope = tl.where(x <= 0, 0.0, 2.0 * x)
    else:
        p = _softplus(tl.load(P).to(tl.float32))
        n = _softplus(tl.load(N).to(tl.float32)) + 0.5
        low = tl.minimum(x, 0.0)
        slope = tl.where(x > 0, 2.0 * p * x, n * (_beyond_linear(low) + low)) + 0.5
    return slope


@triton.jit
def _place(columns, BLOCK: tl.constexpr):
    """(row, columns) of this program: programs go along a row first."""
    blocks = tl.cdiv(columns, BLOCK)
    program = tl.program_id(0)
    column = (program % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return (program // blocks).to(tl.int64), column


@triton.jit
def _forward_kernel(
    X, UP, P, N, Y, columns, stride_x, stride_up, KIND: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row, column = _place(columns, BLOCK)
    live = column < columns
    y = _activate(tl.load(X + row * stride_x + column, mask=live, other=0.0).to(tl.float32), P, N, KIND)
    if UP is not None:
        y *= tl.load(UP + row * stride_up + column, mask=live, other=0.0).to(tl.float32)
    tl.store(Y + row * columns + column, y.to(Y.dtype.element_ty), mask=live)


@triton.jit
def _backward_kernel(
    DY, X, UP, P, N, DX, DUP, PARTS, columns, stride_dy, stride_x, stride_up, KIND: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """PARTS (2, programs): this program's sums for softplus(alpha_p) and softplus(alpha_n)."""
    row, column = _place(columns, BLOCK)
    live = column < columns
    dense = row * columns + column
    x = tl.load(X + row * stride_x + column, mask=live, other=0.0).to(tl.float32)
    dy = tl.load(DY + row * stride_dy + column, mask=live, other=0.0).to(tl.float32)
    if UP is not None:
        up = tl.load(UP + row * stride_up + column, mask=live, other=0.0).to(tl.float32)
        tl.store(DUP + dense, (dy * _activate(x, P, N, KIND)).to(DUP.dtype.element_ty), mask=live)
        dy *= up
    tl.store(DX + dense, (dy * _slope(x, P, N, KIND)).to(DX.dtype.element_ty), mask=live)
    if KIND == "xielu":
        program = tl.program_id(0)
        of_p = tl.sum(tl.where(x > 0, dy * x * x, 0.0), 0)
        of_n = tl.sum(tl.where(x > 0, 0.0, dy * _beyond_linear(tl.minimum(x, 0.0))), 0)
        tl.store(PARTS + program, of_p)
        tl.store(PARTS + tl.num_programs(0) + program, of_n)


def launch_forward(kind: Activation, x: Tensor, up: Tensor | None, alphas: tuple[Tensor, Tensor] | None) -> Tensor:
    """a(x) up, dense, in the dtype of x; rows as `_flat` makes them."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel():
        c = choose("mlp forward", TILE)
        block = c.elements
        _forward_kernel[(x.shape[0] * triton.cdiv(x.shape[1], block),)](
            x,
            up,
            *(alphas or (None, None)),
            y,
            x.shape[1],
            x.stride(0),
            0 if up is None else up.stride(0),
            KIND=kind,
            BLOCK=block,
            num_warps=c.warps,
        )
    return y


def launch_backward(
    kind: Activation, dy: Tensor, x: Tensor, up: Tensor | None, alphas: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(dx, dup, (2,) fp32 gradients of softplus(alpha_p) and softplus(alpha_n))."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dup = None if up is None else torch.empty_like(dx)
    if not dx.numel():
        return dx, dup, None if alphas is None else torch.zeros(2, device=x.device)
    c = choose("mlp backward", TILE)
    block = c.elements
    programs = x.shape[0] * triton.cdiv(x.shape[1], block)
    parts = None if alphas is None else torch.empty((2, programs), dtype=torch.float32, device=x.device)
    _backward_kernel[(programs,)](
        dy,
        x,
        up,
        *(alphas or (None, None)),
        dx,
        dup,
        parts,
        x.shape[1],
        dy.stride(0),
        x.stride(0),
        0 if up is None else up.stride(0),
        KIND=kind,
        BLOCK=block,
        num_warps=c.warps,
    )
    return dx, dup, None if parts is None else parts.sum(1)


def _flat(*tensors: Tensor | None) -> list[Tensor | None]:
    """One row where all are dense, which leaves no part of a tile empty; else rows of the last dimension."""
    if all(t is None or t.is_contiguous() for t in tensors):
        return [None if t is None else t.view(1, -1) for t in tensors]
    return [None if t is None else as_rows(t) for t in tensors]


class ActivationFunction(torch.autograd.Function):
    """Keeps x, up and the alphas."""

    @staticmethod
    def forward(
        ctx: Any, kind: Activation, x: Tensor, up: Tensor | None, alpha_p: Tensor | None, alpha_n: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, up, alpha_p, alpha_n)
        ctx.kind = kind
        rows, rows_up = _flat(x, up)
        assert rows is not None
        alphas = None if alpha_p is None or alpha_n is None else (alpha_p, alpha_n)
        return launch_forward(kind, rows, rows_up, alphas).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, up, alpha_p, alpha_n = ctx.saved_tensors
        if dy.stride()[-1:] not in ((1,), ()):
            dy = dy.contiguous()  # else the expanded gradient of a sum would take x off its flat rows
        rows_dy, rows, rows_up = _flat(dy, x, up)
        assert rows_dy is not None and rows is not None  # noqa: PT018
        alphas = None if alpha_p is None else (alpha_p, alpha_n)
        dx, dup, sums = launch_backward(ctx.kind, rows_dy, rows, rows_up, alphas)
        of_p, of_n = (
            None if sums is None or a is None else (s * torch.sigmoid(a.float())).view(a.shape).to(a.dtype)
            for s, a in zip((None, None) if sums is None else sums, (alpha_p, alpha_n), strict=True)
        )
        return None, dx.view(x.shape), None if dup is None else dup.view(x.shape), of_p, of_n


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) up, any shape and strides. Raises ValueError unless shapes, dtypes and devices agree."""
    same(gate=gate, up=up)
    return ActivationFunction.apply("silu", gate, up, None, None)  # type: ignore[no-any-return, no-untyped-call]


def relu2(x: Tensor, up: Tensor | None = None) -> Tensor:
    """max(x, 0)^2 (Primer, arXiv 2109.08668), times `up` if there is one. Raises as `swiglu`."""
    same(x=x, up=up)
    return ActivationFunction.apply("relu2", x, up, None, None)  # type: ignore[no-any-return, no-untyped-call]


def xielu(x: Tensor, alpha_p: Tensor, alpha_n: Tensor, up: Tensor | None = None) -> Tensor:
    """xIELU of x, times `up` if there is one. The alphas are the learnt ones, of one element, before softplus.

    Raises as `swiglu`, and ValueError for alphas of another size.
    """
    same(x=x, up=up)
    if alpha_p.numel() != 1 or alpha_n.numel() != 1:
        raise ValueError(f"alphas of {alpha_p.numel()} and {alpha_n.numel()} elements: one each")
    return ActivationFunction.apply("xielu", x, up, alpha_p, alpha_n)  # type: ignore[no-any-return, no-untyped-call]


def aot_cases() -> list[tuple[str, Callable[[], object]]]:
    """8192 positions at the presets' inner widths; a gate and its up side by side in one matrix's output."""

    def case(kind: Activation, width: int, gated: bool, dtype: torch.dtype, apart: int = 0) -> None:
        def new() -> Tensor:
            wide = torch.empty((8192, width + apart), dtype=dtype, device="meta")
            return wide[:, :width] if apart else wide.view(1, -1)

        x, up = new(), new() if gated else None
        alphas = (x.new_empty(1), x.new_empty(1)) if kind == "xielu" else None
        launch_backward(kind, launch_forward(kind, x, up, alphas), x, up, alphas)

    bf16, fp32 = torch.bfloat16, torch.float32
    return [
        ("llama-3-8b/bf16", lambda: case("silu", 14336, True, bf16)),
        ("llama-3-8b/fp32", lambda: case("silu", 14336, True, fp32)),
        ("llama-3-8b/bf16 side by side", lambda: case("silu", 14336, True, bf16, 14336)),
        ("relu2/bf16", lambda: case("relu2", 11008, False, bf16)),
        ("relu2/bf16 gated", lambda: case("relu2", 11008, True, bf16)),
        ("apertus-8b/bf16", lambda: case("xielu", 21504, False, bf16)),
        ("apertus-8b/fp32", lambda: case("xielu", 21504, False, fp32)),
        ("xielu/bf16 gated", lambda: case("xielu", 14336, True, bf16)),
    ]
