"""Causal attention inside documents in Triton: document bounds, the forward kernel, its launcher and the autograd op.

FlashAttention-2's walk (Dao, arXiv 2307.08691, section 3) over packed rows: query t sees the keys s with
start[t] <= s <= t, start[t] being the first position of its document. Documents are runs, so the tiles with a visible
pair are one range of blocks, found from two integers a block: tiles between documents are not visited at all. Tiles
whose pairs are all visible take a loop of their own, without a mask. Scores, softmax and sums are fp32; offsets are 64-bit.

Letters: B rows, T positions, H query heads, G key/value heads, D head dimension; m counts queries, n keys.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gristmill.core.errors import UsageError
from gristmill.trainer.kernels.attention_tiles import Tiles, tiles_for

LN2 = 0.6931471805599453
LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1.0e30)  # finite: a row's first tile may be all masked, and -inf - -inf is NaN


class Bounds(NamedTuple):
    """Per position, int32 (B, T): first position of its document, and one past its last."""

    start_BT: Tensor
    end_BT: Tensor


def document_bounds(position_BT: Tensor) -> Bounds:
    """Bounds of the documents of packed rows. A row's start begins a document whatever its position says.

    Shapes depend on (B, T) only and nothing is read back: no host synchronisation, no recompilation.
    """
    rows, length = position_BT.shape
    at_T = torch.arange(length, dtype=torch.int32, device=position_BT.device)
    begins_BT = position_BT == 0
    start_BT = at_T.where(begins_BT, 0)
    next_BT = at_T.where(begins_BT, length)
    if length == 0:
        return Bounds(start_BT, next_BT)
    past_B1 = next_BT.new_full((rows, 1), length)
    end_BT = torch.cat([next_BT[:, 1:], past_B1], 1).flip(1).cummin(1).values.flip(1)
    return Bounds(start_BT.cummax(1).values, end_BT.contiguous())


@triton.jit
def load_tile(P, at, stride, limit, d, HEAD: tl.constexpr, WIDE: tl.constexpr, BOUND: tl.constexpr):
    """(positions, WIDE) of one head: zeros beyond HEAD dimensions and, with BOUND, beyond `limit` positions."""
    pointers = P + at.to(tl.int64)[:, None] * stride + d[None, :]
    if BOUND:
        if HEAD == WIDE:
            x = tl.load(pointers, mask=(at < limit)[:, None], other=0.0)
        else:
            x = tl.load(pointers, mask=(at < limit)[:, None] & (d < HEAD)[None, :], other=0.0)
    else:
        if HEAD == WIDE:
            x = tl.load(pointers)
        else:
            x = tl.load(pointers, mask=(d < HEAD)[None, :], other=0.0)
    return x


@triton.jit
def store_tile(P, x, at, stride, limit, d, HEAD: tl.constexpr, WIDE: tl.constexpr):
    """Writes the HEAD dimensions of the positions below `limit`, rounded to the dtype of P."""
    pointers = P + at.to(tl.int64)[:, None] * stride + d[None, :]
    inside = (at < limit)[:, None]
    if HEAD != WIDE:
        inside = inside & (d < HEAD)[None, :]
    tl.store(pointers, x.to(P.dtype.element_ty), mask=inside)


@triton.jit
def key_range(START, first, T, BM: tl.constexpr, BN: tl.constexpr):
    """Key blocks of the query block at `first`: [lo, hi) have a visible pair, [whole_lo, whole_hi) no hidden one."""
    last = tl.minimum(first + BM, T) - 1
    lo = tl.load(START + first) // BN
    hi = last // BN + 1
    whole_lo = tl.cdiv(tl.load(START + last), BN)
    whole_hi = tl.maximum((first + 1) // BN, whole_lo)
    return lo, whole_lo, whole_hi, hi


@triton.jit
def _forward_tile(q, K, V, k_step, v_step, m, start, block, top, total, acc, score_scale, T, d,
                  HEAD: tl.constexpr, WIDE: tl.constexpr, BN: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """One step of the online softmax: running maximum (base 2), sum and weighted values of the query block."""
    n = block * BN + tl.arange(0, BN)
    k = load_tile(K, n, k_step, T, d, HEAD, WIDE, MASKED)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * score_scale
    if MASKED:
        scores = tl.where((n[None, :] <= m[:, None]) & (n[None, :] >= start[:, None]), scores, float("-inf"))
    above = tl.maximum(top, tl.max(scores, 1))
    weight = tl.exp2(scores - above[:, None])
    fade = tl.exp2(top - above)
    v = load_tile(V, n, v_step, T, d, HEAD, WIDE, MASKED)
    acc = tl.dot(weight.to(v.dtype), v, acc * fade[:, None], input_precision="ieee")
    return above, total * fade + tl.sum(weight, 1), acc


@triton.jit
def attention_forward_kernel(Q, K, V, START, Y, LSE, VISITED, q_strides, k_strides, v_strides, y_strides, T, heads,
                             scale, GROUP: tl.constexpr, ALIGN: tl.constexpr, HEAD: tl.constexpr, WIDE: tl.constexpr,
                             BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """A program per (row, query head, block of BM queries). LSE (B, H, T): natural log.

    Strides: (row, position, head) in units of ALIGN elements.
    """
    blocks = tl.cdiv(T, BM)
    which = tl.program_id(0)
    first = (blocks - 1 - which % blocks) * BM  # a row's long blocks first: short ones fill the last wave
    row = (which // blocks // heads).to(tl.int64)
    head = (which // blocks % heads).to(tl.int64)
    m = first + tl.arange(0, BM)
    d = tl.arange(0, WIDE)
    START += row * T
    K += row * k_strides[0] * ALIGN + head // GROUP * k_strides[2] * ALIGN
    V += row * v_strides[0] * ALIGN + head // GROUP * v_strides[2] * ALIGN
    k_step = tl.cast(k_strides[1], tl.int64) * ALIGN
    v_step = tl.cast(v_strides[1], tl.int64) * ALIGN
    q = load_tile(
        Q + row * q_strides[0] * ALIGN + head * q_strides[2] * ALIGN,
        m,
        tl.cast(q_strides[1], tl.int64) * ALIGN,
        T,
        d,
        HEAD,
        WIDE,
        True,
    )
    start = tl.load(START + m, mask=m < T, other=T)
    lo, whole_lo, whole_hi, hi = key_range(START, first, T, BM, BN)
    top = tl.full([BM], LOWEST, tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, WIDE], tl.float32)
    score_scale = scale * LOG2E
    visited = 0
    for block in range(whole_lo, whole_hi):
        top, total, acc = _forward_tile(q, K, V, k_step, v_step, m, start, block, top, total, acc,
                                        score_scale, T, d, HEAD, WIDE, BN, False)  # fmt: skip
        visited += 1
    left = whole_lo - lo  # tiles cut by a document's start, before those cut by the diagonal
    for i in range(0, left + hi - whole_hi):
        block = tl.where(i < left, lo + i, whole_hi + i - left)
        top, total, acc = _forward_tile(q, K, V, k_step, v_step, m, start, block, top, total, acc,
                                        score_scale, T, d, HEAD, WIDE, BN, True)  # fmt: skip
        visited += 1
    total = tl.where(m < T, total, 1.0)
    Y += row * y_strides[0] * ALIGN + head * y_strides[2] * ALIGN
    store_tile(Y, acc / total[:, None], m, tl.cast(y_strides[1], tl.int64) * ALIGN, T, d, HEAD, WIDE)
    tl.store(LSE + (row * heads + head) * T + m, (top + tl.log2(total)) / LOG2E, mask=m < T)
    if VISITED is not None:
        tl.store(VISITED + which, visited)


def common(*tensors: Tensor) -> int:
    """The unit in which kernels get strides: 8 elements where all are multiples of 8 but not of 16, else 1.

    Wide loads need to know of the former (a head of 24 or 40 dimensions); triton tells of multiples of 16 itself.
    """
    strides = [s for x in tensors for n, s in zip(x.shape[:3], x.stride()[:3], strict=True) if n > 1]
    return 8 if all(s % 8 == 0 for s in strides) and any(s % 16 for s in strides) else 1


def steps(unit: int, *tensors: Tensor) -> list[tuple[int, ...]]:
    """Strides of (row, position, head) of (B, T, heads, D) tensors whose last stride is 1, in units of `unit`."""
    return [tuple(s // unit for s in x.stride()[:3]) for x in tensors]


def dense_heads(x: Tensor) -> Tensor:
    """`x`, copied only if the elements of a head are not side by side; its other strides may be anything."""
    return x if x.stride(-1) == 1 else x.contiguous()


def padded(head_dim: int) -> int:
    """The tile's width: a power of two, and at least the 16 that a tensor core takes."""
    return max(16, triton.next_power_of_2(head_dim))


def forward(
    q_BTHD: Tensor,
    k_BTGD: Tensor,
    v_BTGD: Tensor,
    bounds: Bounds,
    scale: float,
    *,
    tiles: Tiles | None = None,
    visited: Tensor | None = None,
    y_BTHD: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(y_BTHD, lse_BHT in nats and fp32). `visited`: zeroed int32, filled with the tiles each program walked.

    `tiles` replaces the table's choice and `y_BTHD` the fresh output, whose strides may then be anything.
    """
    q_BTHD, k_BTGD, v_BTGD = (dense_heads(x) for x in (q_BTHD, k_BTGD, v_BTGD))
    rows, length, heads, head_dim = q_BTHD.shape
    y_BTHD = q_BTHD.new_empty(q_BTHD.shape) if y_BTHD is None else y_BTHD
    lse_BHT = q_BTHD.new_empty((rows, heads, length), dtype=torch.float32)
    if q_BTHD.numel() == 0:
        return y_BTHD, lse_BHT
    t = tiles or tiles_for("forward", q_BTHD.dtype, head_dim)
    unit = common(q_BTHD, k_BTGD, v_BTGD, y_BTHD)
    attention_forward_kernel[(triton.cdiv(length, t.m) * rows * heads,)](
        q_BTHD, k_BTGD, v_BTGD, bounds.start_BT, y_BTHD, lse_BHT, visited,
        *steps(unit, q_BTHD, k_BTGD, v_BTGD, y_BTHD), length, heads, scale,
        GROUP=heads // k_BTGD.shape[2], ALIGN=unit, HEAD=head_dim, WIDE=padded(head_dim), BM=t.m, BN=t.n,
        num_warps=t.warps, num_stages=t.stages,
    )  # fmt: skip
    return y_BTHD, lse_BHT


def _check(q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, position_BT: Tensor) -> None:
    """Raises UsageError for shapes or dtypes the kernels do not take: they would read other memory."""
    rows, length, heads, head_dim = q_BTHD.shape
    groups = k_BTGD.shape[2]
    if (
        k_BTGD.shape != (rows, length, groups, head_dim)
        or v_BTGD.shape != k_BTGD.shape
        or position_BT.shape != (rows, length)
    ):
        shapes = ", ".join(str(tuple(x.shape)) for x in (q_BTHD, k_BTGD, v_BTGD, position_BT))
        raise UsageError(
            f"attention: shapes {shapes} do not fit together",
            hint="q (B, T, H, D), k and v (B, T, G, D), positions (B, T)",
        )
    if heads % groups:
        raise UsageError(f"attention: {heads} query heads over {groups} key heads", hint="H must be a multiple of G")
    if not q_BTHD.dtype == k_BTGD.dtype == v_BTGD.dtype or q_BTHD.dtype not in DTYPES:
        raise UsageError(
            f"attention: dtypes {q_BTHD.dtype}, {k_BTGD.dtype}, {v_BTGD.dtype}", hint="all bf16, all fp16 or all fp32"
        )
    if padded(head_dim) > 128:
        raise UsageError(f"attention: head_dim {head_dim} is over 128", hint="use kernels: torch")


DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def varlen_attention(
    q_BTHD: Tensor,
    k_BTGD: Tensor,
    v_BTGD: Tensor,
    position_BT: Tensor,
    *,
    scale: float | None = None,
    bounds: Bounds | None = None,
) -> Tensor:
    """(B, T, H, D): softmax(scale q k^T) v over the keys of the query's document up to the query; differentiable.

    A position 0 begins a document, as in `trainer.ops.attend`. H is a multiple of G; head_dim is up to 128.
    `scale`: 1/sqrt(D) unless given. `bounds`: `document_bounds(position_BT)`, made once for all layers.
    Raises UsageError on shapes or dtypes that do not fit.
    """
    _check(q_BTHD, k_BTGD, v_BTGD, position_BT)
    start_BT, end_BT = bounds or document_bounds(position_BT)
    scale = q_BTHD.shape[-1] ** -0.5 if scale is None else float(scale)
    y_BTHD, _ = _attention(q_BTHD, k_BTGD, v_BTGD, start_BT, end_BT, scale)
    return y_BTHD  # type: ignore[no-any-return]


# Ops of torch, so that selective checkpointing can keep their outputs and torch.compile takes them as they are.
@torch.library.custom_op(
    "gristmill::varlen_attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor start, Tensor end, float scale) -> (Tensor, Tensor)",
)
def _attention(q: Tensor, k: Tensor, v: Tensor, start: Tensor, end: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return forward(q, k, v, Bounds(start, end), scale)


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, start: Tensor, end: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    rows, length, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((rows, heads, length), dtype=torch.float32)


@torch.library.custom_op(
    "gristmill::varlen_attention_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor y, Tensor lse, Tensor start, Tensor end, "
    "float scale) -> (Tensor, Tensor, Tensor)",
)
def _attention_backward(
    dy: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, start: Tensor,
    end: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from gristmill.trainer.kernels.attention_backward import backward

    return backward(dy, q, k, v, y, lse, Bounds(start, end), scale, dlse_BHT=dlse)


@_attention_backward.register_fake
def _(dy: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, start, end, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output, start, end)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        if dlse is None:
            return (None,) * 6
        dy = torch.zeros_like(ctx.saved_tensors[3])
    return (*_attention_backward(dy, dlse, *ctx.saved_tensors, ctx.scale), None, None, None)


_attention.register_autograd(_gradients, setup_context=_keep)


def aot_cases() -> list[tuple[str, Any]]:
    """Forward and backward launches on meta tensors at the presets' shapes, for `aot`; bf16, as matrix units take."""
    from gristmill.trainer.kernels.attention_backward import backward

    def launch(rows: int, length: int, heads: int, groups: int, head_dim: int, dtype: torch.dtype) -> None:
        q, k = (torch.empty(rows, length, n, head_dim, dtype=dtype, device="meta") for n in (heads, groups))
        bounds = document_bounds(torch.empty(rows, length, dtype=torch.int64, device="meta"))
        y, lse = forward(q, k, k, bounds, head_dim**-0.5)
        backward(y, q, k, k, y, lse, bounds, head_dim**-0.5)

    shapes = {
        "llama-3-8b/bf16": (1, 8192, 32, 8, 128, torch.bfloat16),  # apertus-8b, smollm3-3b: the same specialisation
        "qwen3-0.6b/bf16": (4, 4096, 16, 8, 128, torch.bfloat16),
        "head64/bf16": (4, 4096, 32, 8, 64, torch.bfloat16),
        "head96/bf16": (4, 4096, 32, 8, 96, torch.bfloat16),  # 96 of 128 dimensions: loads masked, still wide
        "nano/bf16": (8, 1024, 8, 4, 32, torch.bfloat16),
        "tiny/bf16": (8, 512, 4, 2, 24, torch.bfloat16),  # 24 of 32 dimensions: masked loads
    }
    return [(name, partial(launch, *shape)) for name, shape in shapes.items()]
