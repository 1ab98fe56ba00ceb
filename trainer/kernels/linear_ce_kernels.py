"""Triton kernels of the output's cross-entropy: statistics of a tile of logits, and the tile's gradient.

Both multiply a block of positions with a block of ids and keep the logits in registers. The first writes three numbers
a position (Wijmans et al., Cut Your Losses, arXiv 2411.09009, section 3), the second the gradient, rounded once.
Letters: N positions, C hidden, v ids of a chunk, S blocks of ids; m counts positions, n ids.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gristmill.trainer.kernels.linear_ce_tiles import Tiles, tiles_for

GROUP = tl.constexpr(
    8
)  # blocks of positions that share a block of ids while it lies in L2: 8 x 128 rows of 4096 are 8 MB


@triton.jit
def _block(rows, columns, BM: tl.constexpr, BN: tl.constexpr):
    """(block of positions, block of ids) of this program: GROUP blocks of positions, id by id, then the next GROUP."""
    pid = tl.program_id(0)
    down, across = tl.cdiv(rows, BM), tl.cdiv(columns, BN)
    group = pid // (GROUP * across)
    here = tl.minimum(down - group * GROUP, GROUP)
    inside = pid % (GROUP * across)
    return group * GROUP + inside % here, inside // here


@triton.jit
def _logits(
    X,
    W,
    m,
    n,
    rows,
    columns,
    width,
    x_row,
    w_row,
    cap,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(BM, BN) logits in fp32. Beyond the last row the last one is read again: no mask narrows the loads."""
    k = tl.arange(0, BK)
    of_x = X + tl.minimum(m, rows - 1).to(tl.int64)[:, None] * x_row + k[None, :]
    of_w = W + tl.minimum(n, columns - 1).to(tl.int64)[None, :] * w_row + k[:, None]
    logits = tl.zeros([BM, BN], dtype=tl.float32)
    for start in range(0, width, BK):
        if EVEN:
            x, w = tl.load(of_x), tl.load(of_w)
        else:
            x = tl.load(of_x, mask=(k < width - start)[None, :], other=0.0)
            w = tl.load(of_w, mask=(k < width - start)[:, None], other=0.0)
        logits = tl.dot(x, w, logits, input_precision=PRECISION)
        of_x += BK
        of_w += BK
    if cap is not None:
        twice = 2 / cap
        logits = cap * (2 * tl.sigmoid(logits * twice) - 1)  # cap tanh(logits / cap): the interpreter has no tanh
    return logits


@triton.jit
def _label_columns(LABELS, m, rows, first, columns):
    """The labels' columns in this chunk of ids, -1 where it lies in another. Compared as 64-bit numbers."""
    label = tl.load(LABELS + m, mask=m < rows, other=-1) - first
    return tl.where((label >= 0) & (label < columns), label, -1).to(tl.int32)


@triton.jit(do_not_specialize=["rows", "columns", "first"])
def _statistics_kernel(
    X,
    W,
    LABELS,
    TOP,
    TOTAL,
    PICKED,
    rows,
    columns,
    first,
    width,
    x_row,
    w_row,
    cap,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """TOP, TOTAL (S, N): largest logit of each block of ids, and sum of exp(logit - top). PICKED (N,): the label's logit."""
    down, across = _block(rows, columns, BM, BN)
    m = down * BM + tl.arange(0, BM)
    n = across * BN + tl.arange(0, BN)
    logits = _logits(X, W, m, n, rows, columns, width, x_row, w_row, cap, BM, BN, BK, EVEN, PRECISION)
    label = _label_columns(LABELS, m, rows, first, columns)
    picked = tl.sum(tl.where(n[None, :] == label[:, None], logits, 0.0), 1)
    tl.store(PICKED + m, picked, mask=(m < rows) & (label // BN == across) & (label >= 0))  # one block has it
    logits = tl.where((n < columns)[None, :], logits, float("-inf"))
    top = tl.max(logits, 1)
    at = across.to(tl.int64) * rows + m
    tl.store(TOP + at, top, mask=m < rows)
    tl.store(TOTAL + at, tl.sum(tl.exp(logits - top[:, None]), 1), mask=m < rows)


@triton.jit(do_not_specialize=["rows", "columns", "first"])
def _gradient_kernel(
    X,
    W,
    LABELS,
    LSE,
    OF_ALL,
    OF_LABEL,
    G,
    rows,
    columns,
    first,
    width,
    x_row,
    w_row,
    g_row,
    cap,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """G (N, v) = softmax x OF_ALL - (OF_LABEL at the label), of the products before the softcap. Rounded when stored.

    At the label both terms may agree in all digits that 16 bits hold, so their difference is taken in fp32.
    """
    down, across = _block(rows, columns, BM, BN)
    m = down * BM + tl.arange(0, BM)
    n = across * BN + tl.arange(0, BN)
    logits = _logits(X, W, m, n, rows, columns, width, x_row, w_row, cap, BM, BN, BK, EVEN, PRECISION)
    label = _label_columns(LABELS, m, rows, first, columns)
    lse = tl.load(LSE + m, mask=m < rows, other=float("inf"))
    of_all = tl.load(OF_ALL + m, mask=m < rows, other=0.0)
    of_label = tl.load(OF_LABEL + m, mask=m < rows, other=0.0)
    g = tl.exp(logits - lse[:, None]) * of_all[:, None]
    g -= tl.where(n[None, :] == label[:, None], of_label[:, None], 0.0)
    if cap is not None:
        inverse = 1 / cap
        g *= 1 - (logits * inverse) * (logits * inverse)
    at = m.to(tl.int64)[:, None] * g_row + n[None, :]
    tl.store(G + at, g.to(G.dtype.element_ty), mask=(m < rows)[:, None])  # a mask on n would make stores of 2 bytes


def statistics(
    x_NC: Tensor, weight_vC: Tensor, labels_N: Tensor, first: int, cap: float | None, picked_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Of a chunk of ids, the first of which is `first`: (top, total), (S, N) fp32, by block of ids.

    Sets picked_N where a label lies in the chunk. Rows of x and weight are contiguous, at any distance.
    """
    tiles = tiles_for("statistics", x_NC.dtype, x_NC.shape[1])
    rows, columns = len(x_NC), len(weight_vC)
    parts_2SN = torch.empty((2, triton.cdiv(columns, tiles.n), rows), dtype=torch.float32, device=x_NC.device)
    _statistics_kernel[_grid(rows, columns, tiles)](
        x_NC,
        weight_vC,
        labels_N,
        parts_2SN[0],
        parts_2SN[1],
        picked_N,
        rows,
        columns,
        first,
        *_strides(x_NC, weight_vC),
        cap,
        **_options(x_NC, tiles),
    )
    return parts_2SN[0], parts_2SN[1]


def gradient(
    x_NC: Tensor,
    weight_vC: Tensor,
    labels_N: Tensor,
    first: int,
    cap: float | None,
    lse_N: Tensor,
    of_all_N: Tensor,
    of_label_N: Tensor,
    out_Nv: Tensor,
) -> None:
    """Fill `out_Nv` with the gradient of the products x weight^T of a chunk of ids, the first of which is `first`.

    `of_all_N` multiplies the softmax, `of_label_N` is taken away at the label. `out_Nv` is as wide as the chunk's whole
    tiles; what lies beyond the chunk's ids is no gradient.
    """
    tiles = tiles_for("gradient", x_NC.dtype, x_NC.shape[1])
    rows, columns = len(x_NC), len(weight_vC)
    assert len(out_Nv) == rows
    assert out_Nv.shape[1] >= triton.cdiv(columns, tiles.n) * tiles.n
    assert out_Nv.stride(1) == 1
    _gradient_kernel[_grid(rows, columns, tiles)](
        x_NC,
        weight_vC,
        labels_N,
        lse_N,
        of_all_N,
        of_label_N,
        out_Nv,
        rows,
        columns,
        first,
        *_strides(x_NC, weight_vC),
        out_Nv.stride(0),
        cap,
        **_options(x_NC, tiles),
    )


def _grid(rows: int, columns: int, tiles: Tiles) -> tuple[int]:
    return (triton.cdiv(rows, tiles.m) * triton.cdiv(columns, tiles.n),)


def _strides(x_NC: Tensor, weight_vC: Tensor) -> tuple[int, int, int]:
    return x_NC.shape[1], x_NC.stride(0), weight_vC.stride(0)


def _options(x_NC: Tensor, tiles: Tiles) -> dict[str, object]:
    wide = x_NC.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return {
        "BM": tiles.m,
        "BN": tiles.n,
        "BK": tiles.k,
        "EVEN": x_NC.shape[1] % tiles.k == 0,
        "PRECISION": "ieee" if wide else "tf32",  # of fp32 alone, as torch's own products have it
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }
