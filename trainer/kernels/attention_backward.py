"""Backward pass of document-masked attention in Triton: a kernel for dQ, one for dK and dV, and their launcher.

FlashAttention-2's recomputation (Dao, arXiv 2307.08691, algorithm 2): P = exp(S - lse), dS = P (dP - delta) with
dP = dY V^T and delta = rowsum(Y dY). Each program owns what it writes: there are no
atomics, and a result does not depend on the order of programs. The key/value program adds up all query heads of its
group. Letters: see `attention`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gristmill.trainer.kernels.attention import (
    LOG2E,
    Bounds,
    common,
    dense_heads,
    key_range,
    load_tile,
    padded,
    steps,
    store_tile,
)
from gristmill.trainer.kernels.attention_tiles import Tiles, tiles_for


@triton.jit
def _query_tile(q, dy, lse, delta, K, V, k_step, v_step, m, start, block, dq, score_scale, T, d,
                HEAD: tl.constexpr, WIDE: tl.constexpr, BN: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    n = block * BN + tl.arange(0, BN)
    k = load_tile(K, n, k_step, T, d, HEAD, WIDE, MASKED)
    v = load_tile(V, n, v_step, T, d, HEAD, WIDE, MASKED)
    weight = tl.exp2(tl.dot(q, tl.trans(k), input_precision="ieee") * score_scale - lse[:, None])
    if MASKED:
        weight = tl.where((n[None, :] <= m[:, None]) & (n[None, :] >= start[:, None]), weight, 0.0)
    ds = weight * (tl.dot(dy, tl.trans(v), input_precision="ieee") - delta[:, None])
    return tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")


@triton.jit
def attention_dq_kernel(Q, K, V, Y, DY, LSE, DLSE, START, DELTA, DQ, VISITED, q_strides, k_strides, v_strides,
                        y_strides, dy_strides, dq_strides, T, heads, scale, GROUP: tl.constexpr, ALIGN: tl.constexpr,
                        HEAD: tl.constexpr,
                        WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """A program per (row, query head, block of BM queries); also writes DELTA (B, H, T) for the other kernel."""
    blocks = tl.cdiv(T, BM)
    which = tl.program_id(0)
    first = (blocks - 1 - which % blocks) * BM
    row = (which // blocks // heads).to(tl.int64)
    head = (which // blocks % heads).to(tl.int64)
    m = first + tl.arange(0, BM)
    d = tl.arange(0, WIDE)
    START += row * T
    K += row * k_strides[0] * ALIGN + head // GROUP * k_strides[2] * ALIGN
    V += row * v_strides[0] * ALIGN + head // GROUP * v_strides[2] * ALIGN
    k_step = tl.cast(k_strides[1], tl.int64) * ALIGN
    v_step = tl.cast(v_strides[1], tl.int64) * ALIGN
    dy = load_tile(
        DY + row * dy_strides[0] * ALIGN + head * dy_strides[2] * ALIGN,
        m,
        tl.cast(dy_strides[1], tl.int64) * ALIGN,
        T,
        d,
        HEAD,
        WIDE,
        True,
    )
    y = load_tile(
        Y + row * y_strides[0] * ALIGN + head * y_strides[2] * ALIGN,
        m,
        tl.cast(y_strides[1], tl.int64) * ALIGN,
        T,
        d,
        HEAD,
        WIDE,
        True,
    )
    delta = tl.sum(y.to(tl.float32) * dy.to(tl.float32), 1)
    of_row = (row * heads + head) * T + m
    if DLSE is not None:  # the derivative of the log-sum-exp by a score is P
        delta -= tl.load(DLSE + of_row, mask=m < T, other=0.0)
    tl.store(DELTA + of_row, delta, mask=m < T)
    lse = tl.load(LSE + of_row, mask=m < T, other=0.0) * LOG2E
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
    dq = tl.zeros([BM, WIDE], tl.float32)
    score_scale = scale * LOG2E
    visited = 0
    for block in range(whole_lo, whole_hi):
        dq = _query_tile(q, dy, lse, delta, K, V, k_step, v_step, m, start, block, dq, score_scale, T, d,
                         HEAD, WIDE, BN, False)  # fmt: skip
        visited += 1
    left = whole_lo - lo
    for i in range(0, left + hi - whole_hi):
        block = tl.where(i < left, lo + i, whole_hi + i - left)
        dq = _query_tile(q, dy, lse, delta, K, V, k_step, v_step, m, start, block, dq, score_scale, T, d,
                         HEAD, WIDE, BN, True)  # fmt: skip
        visited += 1
    store_tile(
        DQ + row * dq_strides[0] * ALIGN + head * dq_strides[2] * ALIGN,
        dq * scale,
        m,
        tl.cast(dq_strides[1], tl.int64) * ALIGN,
        T,
        d,
        HEAD,
        WIDE,
    )
    if VISITED is not None:
        tl.store(VISITED + which, visited)


@triton.jit
def _key_tile(k, v, Q, DY, LSE, DELTA, START, q_strides, dy_strides, n, head, block, dk, dv, score_scale, T, d,
              ALIGN: tl.constexpr, HEAD: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr,
              MASKED: tl.constexpr):  # fmt: skip
    """Scores are formed with keys as rows, so that P^T and dS^T are left operands as they come out of registers."""
    m = block * BM + tl.arange(0, BM)
    q = load_tile(Q + head * q_strides[2] * ALIGN, m, tl.cast(q_strides[1], tl.int64) * ALIGN, T, d, HEAD, WIDE, MASKED)
    of_row = head * T + m
    if MASKED:
        lse = tl.load(LSE + of_row, mask=m < T, other=0.0)
    else:
        lse = tl.load(LSE + of_row)
    weight = tl.exp2(tl.dot(k, tl.trans(q), input_precision="ieee") * score_scale - (lse * LOG2E)[None, :])
    if MASKED:
        start = tl.load(START + m, mask=m < T, other=T)
        seen = (n[:, None] <= m[None, :]) & (n[:, None] >= start[None, :]) & (m[None, :] < T)
        weight = tl.where(seen, weight, 0.0)
    dy = load_tile(
        DY + head * dy_strides[2] * ALIGN, m, tl.cast(dy_strides[1], tl.int64) * ALIGN, T, d, HEAD, WIDE, MASKED
    )
    dv = tl.dot(weight.to(dy.dtype), dy, dv, input_precision="ieee")
    if MASKED:
        delta = tl.load(DELTA + of_row, mask=m < T, other=0.0)
    else:
        delta = tl.load(DELTA + of_row)
    ds = weight * (tl.dot(v, tl.trans(dy), input_precision="ieee") - delta[None, :])
    return tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee"), dv


@triton.jit
def attention_dkv_kernel(Q, K, V, DY, LSE, DELTA, START, END, DK, DV, VISITED, q_strides, k_strides, v_strides,
                         dy_strides, dk_strides, dv_strides, T, groups, scale, GROUP: tl.constexpr, ALIGN: tl.constexpr,
                         HEAD: tl.constexpr,
                         WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """A program per (row, key head, block of BN keys): it walks the query blocks of all GROUP heads it serves."""
    blocks = tl.cdiv(T, BN)
    which = tl.program_id(0)
    first = which % blocks * BN  # the first keys are seen by most queries: longest first
    row = (which // blocks // groups).to(tl.int64)
    group = (which // blocks % groups).to(tl.int64)
    n = first + tl.arange(0, BN)
    d = tl.arange(0, WIDE)
    START += row * T
    Q += row * q_strides[0] * ALIGN
    DY += row * dy_strides[0] * ALIGN
    LSE += row * groups * GROUP * T
    DELTA += row * groups * GROUP * T
    k = load_tile(
        K + row * k_strides[0] * ALIGN + group * k_strides[2] * ALIGN,
        n,
        tl.cast(k_strides[1], tl.int64) * ALIGN,
        T,
        d,
        HEAD,
        WIDE,
        True,
    )
    v = load_tile(
        V + row * v_strides[0] * ALIGN + group * v_strides[2] * ALIGN,
        n,
        tl.cast(v_strides[1], tl.int64) * ALIGN,
        T,
        d,
        HEAD,
        WIDE,
        True,
    )
    dk = tl.zeros([BN, WIDE], tl.float32)
    dv = tl.zeros([BN, WIDE], tl.float32)
    score_scale = scale * LOG2E
    # query blocks: [lo, hi) have a visible pair, [whole_lo, whole_hi) no hidden one
    last = tl.minimum(first + BN, T) - 1
    lo = first // BM
    hi = tl.cdiv(tl.load(END + row * T + last), BM)
    whole_lo = tl.cdiv(last, BM)
    whole_hi = tl.maximum(tl.load(END + row * T + first) // BM, whole_lo)
    whole = whole_hi - whole_lo
    a_head = tl.maximum(whole, 1)  # a divisor: a pipelined loop computes its first addresses even where it runs 0 times
    visited = 0
    for i in range(0, GROUP * whole):  # one loop over heads and blocks: short documents give a head few blocks
        dk, dv = _key_tile(k, v, Q, DY, LSE, DELTA, START, q_strides, dy_strides, n, group * GROUP + i // a_head,
                           whole_lo + i % a_head, dk, dv, score_scale, T, d, ALIGN, HEAD, WIDE, BM, False)  # fmt: skip
        visited += 1
    left = whole_lo - lo  # cut by the diagonal, before those cut by a document's end
    cut = tl.maximum(left + hi - whole_hi, 1)  # the diagonal: never 0
    for i in range(0, GROUP * cut):
        at = i % cut
        block = tl.where(at < left, lo + at, whole_hi + at - left)
        dk, dv = _key_tile(k, v, Q, DY, LSE, DELTA, START, q_strides, dy_strides, n, group * GROUP + i // cut, block,
                           dk, dv, score_scale, T, d, ALIGN, HEAD, WIDE, BM, True)  # fmt: skip
        visited += 1
    store_tile(
        DK + row * dk_strides[0] * ALIGN + group * dk_strides[2] * ALIGN,
        dk * scale,
        n,
        tl.cast(dk_strides[1], tl.int64) * ALIGN,
        T,
        d,
        HEAD,
        WIDE,
    )
    store_tile(
        DV + row * dv_strides[0] * ALIGN + group * dv_strides[2] * ALIGN,
        dv,
        n,
        tl.cast(dv_strides[1], tl.int64) * ALIGN,
        T,
        d,
        HEAD,
        WIDE,
    )
    if VISITED is not None:
        tl.store(VISITED + which, visited)


def backward(
    dy_BTHD: Tensor,
    q_BTHD: Tensor,
    k_BTGD: Tensor,
    v_BTGD: Tensor,
    y_BTHD: Tensor,
    lse_BHT: Tensor,
    bounds: Bounds,
    scale: float,
    *,
    dlse_BHT: Tensor | None = None,
    tiles: tuple[Tiles, Tiles] | None = None,
    visited: tuple[Tensor, Tensor] | None = None,
    outputs: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (dq_BTHD, dk_BTGD, dv_BTGD) in the inputs' dtype; `dy_BTHD` may have any strides.

    `dlse_BHT`: the log-sum-exp's gradient, if it has one.
    `tiles`, `visited` (for dQ and for dK/dV) and `outputs`: as in `attention.forward`.
    """
    dy_BTHD, q_BTHD, k_BTGD, v_BTGD = (dense_heads(x) for x in (dy_BTHD, q_BTHD, k_BTGD, v_BTGD))
    rows, length, heads, head_dim = q_BTHD.shape
    groups = k_BTGD.shape[2]
    dq_BTHD, dk_BTGD, dv_BTGD = outputs or tuple(x.new_empty(x.shape) for x in (q_BTHD, k_BTGD, v_BTGD))
    if q_BTHD.numel() == 0:
        return dq_BTHD, dk_BTGD, dv_BTGD
    delta_BHT = torch.empty_like(lse_BHT)
    dlse_BHT = None if dlse_BHT is None else dlse_BHT.contiguous()
    wide = padded(head_dim)
    of_q, of_kv = tiles or (tiles_for("dq", q_BTHD.dtype, head_dim), tiles_for("dkv", q_BTHD.dtype, head_dim))
    seen_q, seen_kv = visited or (None, None)
    unit = common(q_BTHD, k_BTGD, v_BTGD, y_BTHD, dy_BTHD, dq_BTHD, dk_BTGD, dv_BTGD)
    shape = {"GROUP": heads // groups, "ALIGN": unit, "HEAD": head_dim, "WIDE": wide}
    attention_dq_kernel[(triton.cdiv(length, of_q.m) * rows * heads,)](
        q_BTHD, k_BTGD, v_BTGD, y_BTHD, dy_BTHD, lse_BHT, dlse_BHT, bounds.start_BT, delta_BHT, dq_BTHD, seen_q,
        *steps(unit, q_BTHD, k_BTGD, v_BTGD, y_BTHD, dy_BTHD, dq_BTHD), length, heads, scale,
        **shape, BM=of_q.m, BN=of_q.n, num_warps=of_q.warps, num_stages=of_q.stages,
    )  # fmt: skip
    attention_dkv_kernel[(triton.cdiv(length, of_kv.n) * rows * groups,)](
        q_BTHD, k_BTGD, v_BTGD, dy_BTHD, lse_BHT, delta_BHT, bounds.start_BT, bounds.end_BT, dk_BTGD, dv_BTGD, seen_kv,
        *steps(unit, q_BTHD, k_BTGD, v_BTGD, dy_BTHD, dk_BTGD, dv_BTGD), length, groups, scale,
        **shape, BM=of_kv.m, BN=of_kv.n, num_warps=of_kv.warps, num_stages=of_kv.stages,
    )  # fmt: skip
    return dq_BTHD, dk_BTGD, dv_BTGD
