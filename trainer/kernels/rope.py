"""Rotary embedding of queries and keys in one launch, with the RMSNorm of each head (QK-norm) fused in front of it.

  (y_i, y_j) = (u_i cos - u_j sin, u_j cos + u_i sin)     j = i + D/2     u = x r w, or x itself without a norm's weight

Llama's pairing (trainer.rope); r, w as in `norm`. The backward pass turns the gradient back by the same angles. Arithmetic
is fp32 whatever the dtypes, offsets are 64-bit, and a weight's gradient is summed in one order: the same bits every time.
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
from gristmill.trainer.kernels.rows import same


@triton.jit
def _table(OF, position, T, strides, HALF: tl.constexpr, WIDE: tl.constexpr):
    """(positions, 1, half) of cos or sin: the first half of a row, which the second repeats."""
    at = (position // T).to(tl.int64) * strides[0] + (position % T).to(tl.int64) * strides[1]
    i = tl.arange(0, WIDE)[None, None, :]
    return tl.load(OF + at[:, None, None] + i, mask=i < HALF, other=0.0).to(tl.float32)


@triton.jit
def _heads(position, N, T, strides, COUNT: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, WIDE: tl.constexpr):
    """(offsets, mask) of the first half of every head of some of the N = B x T positions; strides of B, T and the heads."""
    head = tl.arange(0, HEADS)[None, :, None]
    i = tl.arange(0, WIDE)[None, None, :]
    at = (position // T).to(tl.int64) * strides[0] + (position % T).to(tl.int64) * strides[1]
    live = (position < N)[:, None, None] & (head < COUNT) & (i < HALF)
    return at[:, None, None] + head.to(tl.int64) * strides[2] + i, live


@triton.jit
def _rotate(
    program, X, Y, COS, SIN, WEIGHT, N, T, eps, strides_x, strides_y, strides_cos, strides_sin,
    COUNT: tl.constexpr, HEADS: tl.constexpr, POSITIONS: tl.constexpr, HALF: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    position = program * POSITIONS + tl.arange(0, POSITIONS)
    kept = tl.minimum(position, N - 1)  # a position past the end reads the last one's angles
    at, live = _heads(position, N, T, strides_x, COUNT, HEADS, HALF, WIDE)
    cos = _table(COS, kept, T, strides_cos, HALF, WIDE)
    sin = _table(SIN, kept, T, strides_sin, HALF, WIDE)
    first = tl.load(X + at, mask=live, other=0.0).to(tl.float32)
    second = tl.load(X + at + HALF, mask=live, other=0.0).to(tl.float32)
    if WEIGHT is not None:
        i = tl.arange(0, WIDE)
        scale = tl.rsqrt(tl.sum(first * first + second * second, 2) / (2 * HALF) + eps)[:, :, None]
        first = first * scale * tl.load(WEIGHT + i, mask=i < HALF, other=0.0).to(tl.float32)[None, None, :]
        second = second * scale * tl.load(WEIGHT + HALF + i, mask=i < HALF, other=0.0).to(tl.float32)[None, None, :]
    to, _ = _heads(position, N, T, strides_y, COUNT, HEADS, HALF, WIDE)
    tl.store(Y + to, (first * cos - second * sin).to(Y.dtype.element_ty), mask=live)
    tl.store(Y + to + HALF, (second * cos + first * sin).to(Y.dtype.element_ty), mask=live)


@triton.jit
def _turn_back(
    program, programs, DY, X, DX, COS, SIN, WEIGHT, PARTS, N, T, eps, strides_dy, strides_x, strides_dx, strides_cos, strides_sin,
    COUNT: tl.constexpr, HEADS: tl.constexpr, POSITIONS: tl.constexpr, HALF: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Program p has row p of PARTS (.., D) for its sum of the weight's gradient."""
    if WEIGHT is not None:
        i = tl.arange(0, WIDE)
        weight_first = tl.load(WEIGHT + i, mask=i < HALF, other=0.0).to(tl.float32)[None, None, :]
        weight_second = tl.load(WEIGHT + HALF + i, mask=i < HALF, other=0.0).to(tl.float32)[None, None, :]
        sum_first = tl.zeros([POSITIONS, HEADS, WIDE], dtype=tl.float32)
        sum_second = tl.zeros([POSITIONS, HEADS, WIDE], dtype=tl.float32)
    for start in range(program * POSITIONS, N, programs * POSITIONS):
        position = start + tl.arange(0, POSITIONS)
        kept = tl.minimum(position, N - 1)
        at, live = _heads(position, N, T, strides_dy, COUNT, HEADS, HALF, WIDE)
        cos = _table(COS, kept, T, strides_cos, HALF, WIDE)
        sin = _table(SIN, kept, T, strides_sin, HALF, WIDE)
        dy_first = tl.load(DY + at, mask=live, other=0.0).to(tl.float32)
        dy_second = tl.load(DY + at + HALF, mask=live, other=0.0).to(tl.float32)
        first = dy_first * cos + dy_second * sin
        second = dy_second * cos - dy_first * sin
        if WEIGHT is not None:
            of_x, _ = _heads(position, N, T, strides_x, COUNT, HEADS, HALF, WIDE)
            x_first = tl.load(X + of_x, mask=live, other=0.0).to(tl.float32)
            x_second = tl.load(X + of_x + HALF, mask=live, other=0.0).to(tl.float32)
            scale = tl.rsqrt(tl.sum(x_first * x_first + x_second * x_second, 2) / (2 * HALF) + eps)[:, :, None]
            x_first *= scale
            x_second *= scale
            sum_first += first * x_first
            sum_second += second * x_second
            first *= weight_first
            second *= weight_second
            along = (tl.sum(first * x_first + second * x_second, 2) / (2 * HALF))[:, :, None]
            first = (first - x_first * along) * scale
            second = (second - x_second * along) * scale
        to, _ = _heads(position, N, T, strides_dx, COUNT, HEADS, HALF, WIDE)
        tl.store(DX + to, first.to(DX.dtype.element_ty), mask=live)
        tl.store(DX + to + HALF, second.to(DX.dtype.element_ty), mask=live)
    if WEIGHT is not None:
        i = tl.arange(0, WIDE)
        part = PARTS + program * (2 * HALF) + i
        tl.store(part, tl.sum(tl.sum(sum_first, 0), 0), mask=i < HALF)
        tl.store(part + HALF, tl.sum(tl.sum(sum_second, 0), 0), mask=i < HALF)


@triton.jit
def _forward_kernel(
    Q, K, Q_OUT, K_OUT, COS, SIN, Q_WEIGHT, K_WEIGHT, q_programs, N, T, eps,
    strides_q, strides_k, strides_q_out, strides_k_out, strides_cos, strides_sin,
    Q_COUNT: tl.constexpr, Q_HEADS: tl.constexpr, Q_POSITIONS: tl.constexpr,
    K_COUNT: tl.constexpr, K_HEADS: tl.constexpr, K_POSITIONS: tl.constexpr,
    HALF: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The first `q_programs` turn queries, the others keys."""
    program = tl.program_id(0)
    if program < q_programs:
        _rotate(
            program, Q, Q_OUT, COS, SIN, Q_WEIGHT, N, T, eps, strides_q, strides_q_out, strides_cos, strides_sin,
            Q_COUNT, Q_HEADS, Q_POSITIONS, HALF, WIDE,
        )  # fmt: skip
    else:
        _rotate(
            program - q_programs, K, K_OUT, COS, SIN, K_WEIGHT, N, T, eps, strides_k, strides_k_out, strides_cos, strides_sin,
            K_COUNT, K_HEADS, K_POSITIONS, HALF, WIDE,
        )  # fmt: skip


@triton.jit
def _backward_kernel(
    DQ_OUT, DK_OUT, Q, K, DQ, DK, COS, SIN, Q_WEIGHT, K_WEIGHT, Q_PARTS, K_PARTS, q_programs, N, T, eps,
    strides_dq_out, strides_dk_out, strides_q, strides_k, strides_dq, strides_dk, strides_cos, strides_sin,
    Q_COUNT: tl.constexpr, Q_HEADS: tl.constexpr, Q_POSITIONS: tl.constexpr,
    K_COUNT: tl.constexpr, K_HEADS: tl.constexpr, K_POSITIONS: tl.constexpr,
    HALF: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if program < q_programs:
        _turn_back(
            program, q_programs, DQ_OUT, Q, DQ, COS, SIN, Q_WEIGHT, Q_PARTS, N, T, eps,
            strides_dq_out, strides_q, strides_dq, strides_cos, strides_sin,
            Q_COUNT, Q_HEADS, Q_POSITIONS, HALF, WIDE,
        )  # fmt: skip
    else:
        _turn_back(
            program - q_programs, tl.num_programs(0) - q_programs, DK_OUT, K, DK, COS, SIN, K_WEIGHT, K_PARTS, N, T, eps,
            strides_dk_out, strides_k, strides_dk, strides_cos, strides_sin,
            K_COUNT, K_HEADS, K_POSITIONS, HALF, WIDE,
        )  # fmt: skip


def launch_forward(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    in_place: bool = False,
) -> tuple[Tensor, Tensor]:
    """(q, k) turned, written over q and k themselves or into new dense tensors."""
    q_out, k_out = (q, k) if in_place else (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    batch, T, _, D = q.shape
    if not q.numel() + k.numel():
        return q_out, k_out
    (q_tile, k_tile), warps, _ = _tiles(q, k, "rope forward")
    q_programs = triton.cdiv(batch * T, q_tile["Q_POSITIONS"])
    _forward_kernel[(q_programs + triton.cdiv(batch * T, k_tile["K_POSITIONS"]),)](
        q,
        k,
        q_out,
        k_out,
        cos,
        sin,
        q_weight,
        k_weight,
        q_programs,
        batch * T,
        T,
        float(eps),
        *(x.stride()[:3] for x in (q, k, q_out, k_out)),
        *(x.stride()[:2] for x in (cos, sin)),
        **q_tile,
        **k_tile,
        HALF=D // 2,
        WIDE=triton.next_power_of_2(D // 2),
        num_warps=warps,
    )
    return q_out, k_out


def launch_backward(
    dq_out: Tensor,
    dk_out: Tensor,
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """(dq, dk, dw of q, dw of k). Without a weight the values of q and k aren't read."""
    dq, dk = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k))
    batch, T, _, D = q.shape
    if not q.numel() + k.numel():
        zeros = [None if w is None else torch.zeros_like(w) for w in (q_weight, k_weight)]
        return dq, dk, zeros[0], zeros[1]
    (q_tile, k_tile), warps, most = _tiles(q, k, "rope backward")
    needed = [triton.cdiv(batch * T, n) for n in (q_tile["Q_POSITIONS"], k_tile["K_POSITIONS"])]
    of_q = max(1, most * needed[0] // sum(needed))  # a program of either walks over about as many tiles
    q_programs, k_programs = min(needed[0], of_q), min(needed[1], max(1, most - of_q))
    q_parts, k_parts = (
        None if weight is None else torch.empty((programs, D), dtype=torch.float32, device=q.device)
        for weight, programs in ((q_weight, q_programs), (k_weight, k_programs))
    )
    _backward_kernel[(q_programs + k_programs,)](
        dq_out,
        dk_out,
        q,
        k,
        dq,
        dk,
        cos,
        sin,
        q_weight,
        k_weight,
        q_parts,
        k_parts,
        q_programs,
        batch * T,
        T,
        float(eps),
        *(x.stride()[:3] for x in (dq_out, dk_out, q, k, dq, dk)),
        *(x.stride()[:2] for x in (cos, sin)),
        **q_tile,
        **k_tile,
        HALF=D // 2,
        WIDE=triton.next_power_of_2(D // 2),
        num_warps=warps,
    )
    return dq, dk, _total(q_parts, q_weight), _total(k_parts, k_weight)


def _total(parts: Tensor | None, weight: Tensor | None) -> Tensor | None:
    return None if parts is None or weight is None else parts.sum(0).to(weight.dtype)


def _tiles(q: Tensor, k: Tensor, kernel: Literal["rope forward", "rope backward"]) -> tuple[Any, int, int]:
    """(the constants of q's and of k's tiles, warps, programs in all)."""
    heads = [triton.next_power_of_2(x.shape[2]) for x in (q, k)]
    widths = [n * triton.next_power_of_2(q.shape[3] // 2) * 2 for n in heads]
    chosen = choose(kernel, max(widths))
    constants = tuple(
        {
            f"{n}_COUNT": x.shape[2],
            f"{n}_HEADS": h,
            f"{n}_POSITIONS": chosen.rows * max(widths) // width,
        }  # tiles of a size
        for n, x, h, width in zip("QK", (q, k), heads, widths, strict=True)
    )
    return constants, chosen.warps, max(chosen.programs, 2)


class RoPEFunction(torch.autograd.Function):
    """Keeps the angles, and with a norm q and k."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        cos: Tensor,
        sin: Tensor,
        q_weight: Tensor | None,
        k_weight: Tensor | None,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        turned = launch_forward(q, k, cos, sin, q_weight, k_weight, eps)
        ctx.save_for_backward(
            q if q_weight is not None else None, k if k_weight is not None else None, cos, sin, q_weight, k_weight
        )
        ctx.eps = eps
        return turned

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq_out: Tensor, dk_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, cos, sin, q_weight, k_weight = ctx.saved_tensors
        dq_out, dk_out = _adjacent(dq_out), _adjacent(dk_out)
        q, k = dq_out if q is None else q, dk_out if k is None else k
        dq, dk, *dw = launch_backward(dq_out, dk_out, q, k, cos, sin, q_weight, k_weight, ctx.eps)
        return dq, dk, None, None, *dw, None


def _adjacent(x: Tensor) -> Tensor:
    """With adjacent elements in the last dimension: a copy where they are not."""
    return x if x.stride(-1) == 1 or not x.numel() else x.contiguous()


def rope_qk(
    q_BTHD: Tensor,
    k_BTGD: Tensor,
    cos_BTD: Tensor,
    sin_BTD: Tensor,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """q and k normalised by head (where a (D,) weight is given) and turned, in their dtype and as new dense tensors.

    cos and sin (fp32 in the trainer) repeat their first half in the second, as rotary_table makes them: only the first is
    read. Not in place under autograd: a norm's gradient needs q and k, and without one selective checkpointing may keep
    the product that q and k are views of. `rope_qk_` is in place. Raises ValueError for shapes that don't fit.
    """
    q, k, cos, sin = (_adjacent(x) for x in (q_BTHD, k_BTGD, cos_BTD, sin_BTD))
    q_weight, k_weight = (None if w is None else w.contiguous() for w in (q_weight, k_weight))
    _check(q, k, cos, sin, q_weight, k_weight)
    return RoPEFunction.apply(q, k, cos, sin, q_weight, k_weight, eps)  # type: ignore[no-any-return, no-untyped-call]


@torch.no_grad()
def rope_qk_(
    q_BTHD: Tensor,
    k_BTGD: Tensor,
    cos_BTD: Tensor,
    sin_BTD: Tensor,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 1e-5,
) -> None:
    """As `rope_qk`, written over q and k, without gradients. Raises ValueError too where either lacks adjacent elements."""
    if any(x.numel() and x.stride(-1) != 1 for x in (q_BTHD, k_BTGD)):
        raise ValueError("q and k are turned in place only with adjacent elements in the last dimension")
    cos, sin = (_adjacent(x) for x in (cos_BTD, sin_BTD))
    q_weight, k_weight = (None if w is None else w.contiguous() for w in (q_weight, k_weight))
    _check(q_BTHD, k_BTGD, cos, sin, q_weight, k_weight)
    launch_forward(q_BTHD, k_BTGD, cos, sin, q_weight, k_weight, eps, in_place=True)


def _check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, q_weight: Tensor | None, k_weight: Tensor | None) -> None:
    *batch, _, D = q.shape
    if q.dim() != 4 or D % 2 or (*k.shape[:2], k.shape[-1]) != (*batch, D) or q.dtype != k.dtype:
        raise ValueError(f"q is {tuple(q.shape)} {q.dtype}, k {tuple(k.shape)} {k.dtype}: (B, T, heads, even D) each")
    same(cos=cos, sin=sin)
    if cos.shape != (*batch, D):
        raise ValueError(f"cos and sin are {tuple(cos.shape)} for q of {tuple(q.shape)}: (B, T, D)")
    for weight in (q_weight, k_weight):
        if weight is not None and weight.shape != (D,):
            raise ValueError(f"a norm's weight is {tuple(weight.shape)} for heads of {D}")


def aot_cases() -> list[tuple[str, Callable[[], object]]]:
    """2 x 4096 positions at the presets' heads, with QK-norm where the preset has it."""

    def case(heads: int, groups: int, D: int, norm: bool, dtype: torch.dtype, B: int = 2, T: int = 4096) -> None:
        def new(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        q, k, dq, dk = (new(B, T, n, D) for n in (heads, groups, heads, groups))
        cos, sin = (new(B, T, D, dtype=torch.float32) for _ in range(2))
        q_weight, k_weight = (new(D) if norm else None for _ in range(2))
        launch_forward(q, k, cos, sin, q_weight, k_weight, 1e-5)
        launch_backward(dq, dk, q, k, cos, sin, q_weight, k_weight, 1e-5)

    bf16, fp32 = torch.bfloat16, torch.float32
    return [
        ("llama-3-8b/bf16", lambda: case(32, 8, 128, False, bf16)),
        ("llama-3-8b/fp32", lambda: case(32, 8, 128, False, fp32)),
        ("apertus-8b/bf16 norm", lambda: case(32, 8, 128, True, bf16)),
        ("apertus-8b/fp32 norm", lambda: case(32, 8, 128, True, fp32)),
        ("qwen3-0.6b/bf16 norm", lambda: case(16, 8, 128, True, bf16)),
        ("smollm3-3b/bf16", lambda: case(16, 4, 128, False, bf16)),
        ("nano/bf16", lambda: case(8, 4, 32, False, bf16)),
        ("tiny/bf16", lambda: case(4, 2, 24, False, bf16)),
        ("one position/bf16 norm", lambda: case(1, 1, 128, True, bf16, 1, 1)),  # ones are compiled in as constants
    ]
