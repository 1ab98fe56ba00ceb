"""Muon's Newton-Schulz iterations with the symmetry of X X^T: tiles below the diagonal are computed and mirrored above it.

Per iteration G = X X^T, B = b G + c G G, X = a X + B X. G and B are symmetric, so half their products are saved:
m^2 M + m^3 + 2 m^2 M operations instead of 2 m^2 M + 2 m^3 + 2 m^2 M for m rows and M columns. The last product is torch's
own, which no Triton kernel beats. Sums are fp32; a value is rounded once when stored, as in trainer.optim_muon. Half the
operations are a gain only at more than half of torch's rate: `choose` says where to expect it, and none of it is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gristmill.trainer import optim_muon
from gristmill.trainer.kernels.config import MULTIPROCESSORS, Chip, chip

EPS = optim_muon.EPS  # smallest norm divided by


@triton.jit
def _symmetric_kernel(
    X,
    ADD,
    OUT,
    rows,
    inner,
    x_batch,
    x_row,
    out_batch,
    alpha,
    beta,
    TILE: tl.constexpr,
    INNER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """OUT = alpha X X^T + beta ADD, per matrix of a stack. Program 0, 1, 2, ...: tiles (0,0), (1,0), (1,1), (2,0), ..."""
    pid = tl.program_id(0)
    low = ((tl.sqrt(8.0 * pid.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    low = tl.where(low * (low + 1) // 2 > pid, low - 1, low)  # the root may round either way
    low = tl.where((low + 1) * (low + 2) // 2 <= pid, low + 1, low)
    left = pid - low * (low + 1) // 2
    batch = tl.program_id(1).to(tl.int64)
    X += batch * x_batch
    OUT += batch * out_batch
    i = low * TILE + tl.arange(0, TILE)
    j = left * TILE + tl.arange(0, TILE)
    k = tl.arange(0, INNER)
    of_i = X + i.to(tl.int64)[:, None] * x_row
    of_j = X + j.to(tl.int64)[:, None] * x_row
    acc = tl.zeros([TILE, TILE], dtype=tl.float32)
    for start in range(0, inner, INNER):
        live = (start + k)[None, :] < inner
        a = tl.load(of_i + (start + k)[None, :], mask=(i[:, None] < rows) & live, other=0.0)
        b = tl.load(of_j + (start + k)[None, :], mask=(j[:, None] < rows) & live, other=0.0)
        acc = tl.dot(a, tl.trans(b), acc, input_precision=PRECISION)
    acc *= alpha
    inside = (i[:, None] < rows) & (j[None, :] < rows)
    here = i.to(tl.int64)[:, None] * rows + j[None, :]
    if ADD is not None:
        acc += beta * tl.load(ADD + batch * out_batch + here, mask=inside, other=0.0).to(tl.float32)
    value = acc.to(OUT.dtype.element_ty)
    tl.store(OUT + here, value, mask=inside)
    if low > left:
        there = j.to(tl.int64)[:, None] * rows + i[None, :]
        tl.store(OUT + there, tl.trans(value), mask=(j[:, None] < rows) & (i[None, :] < rows))


def symmetric_product(x: Tensor, add: Tensor | None = None, alpha: float = 1.0, beta: float = 0.0) -> Tensor:
    """alpha x x^T + beta add for a stack of matrices (S, R, C) -> (S, R, R); `add` (S, R, R) is symmetric.

    The tiles above the diagonal mirror those below to the bit. Rows of x must be contiguous, at any
    distance; `add` wholly.
    """
    count, rows, inner = x.shape
    assert x.stride(2) == 1 or inner <= 1, "rows must be contiguous"
    assert add is None or add.is_contiguous()
    out = torch.empty((count, rows, rows), dtype=x.dtype, device=x.device)
    tile = choose_tile(chip(), x.dtype, rows, count)
    side = triton.cdiv(rows, tile.tile)
    if out.numel():
        _symmetric_kernel[(side * (side + 1) // 2, count)](
            x,
            add,
            out,
            rows,
            inner,
            x.stride(0),
            x.stride(1),
            rows * rows,
            float(alpha),
            float(beta),
            TILE=tile.tile,
            INNER=tile.inner,
            PRECISION="ieee" if x.dtype == torch.float32 else "tf32",  # fp32 stays fp32; bf16 knows one way only
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return out


class Tile(NamedTuple):
    """A square tile of the product, columns of X a step, warps, steps in flight."""

    tile: int
    inner: int
    warps: int
    stages: int


TILES: dict[Chip, Tile] = {  # bf16 and fp16; shared memory 64, 128, 128 and 32 KiB of 163, 227, 227 and 64
    "sm80": Tile(128, 64, 8, 3),  # with 4 warps: 255 registers and 14 spills
    "sm90": Tile(128, 64, 8, 4),  # a warp group's HGMMA 64x128x16, 110 registers
    "sm100": Tile(128, 64, 8, 4),  # with 4 warps: 255 registers and 19 spills
    "gfx942": Tile(128, 64, 8, 2),  # a third stage fills the LDS: one program per compute unit
}
FEW = Tile(64, 64, 4, 2)  # where tiles of 128 would leave much of the chip idle, and in the interpreter
FULL = Tile(64, 16, 8, 2)  # fp32 without matrix units: 80 registers; steps of 32 take 166, a third stage spills


def choose_tile(on: Chip, dtype: torch.dtype, rows: int, count: int) -> Tile:
    """The tile for `count` products of `rows` rows."""
    if dtype == torch.float32:
        return FULL
    large = TILES.get(on, FEW)
    side = triton.cdiv(rows, large.tile)
    return large if side * (side + 1) // 2 * count >= MULTIPROCESSORS[on] else FEW


@torch.no_grad()
def newton_schulz(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, dtype: torch.dtype) -> Tensor:
    """(..., R, C) -> (..., R, C) in `dtype`: trainer.optim_muon.newton_schulz, for a stack of matrices too.

    Singular values s / ||matrix|| are mapped `steps` times by a s + b s^3 + c s^5, in the wide orientation.
    """
    a, b, c = coefficients
    tall = matrix.size(-2) > matrix.size(-1)
    x = matrix.to(dtype)
    x = x.mT if tall else x
    x = x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:]).contiguous()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    for _ in range(steps):
        gram = symmetric_product(x)
        x = torch.baddbmm(x, symmetric_product(gram, gram, alpha=c, beta=b), x, beta=a)
    x = x.reshape(matrix.mT.shape if tall else matrix.shape)
    return x.mT if tall else x


class Choice(NamedTuple):
    """Whose products Newton-Schulz takes: "triton" (of half the operations) or "torch"."""

    name: str
    reason: str


def choose(on: Chip, dtype: torch.dtype, rows: int, columns: int) -> Choice:
    """Whose products a matrix gets on a chip: a function of its arguments, so that every layout and launch chooses alike."""
    if on == "interpreter":
        return Choice("triton", "the interpreter is there to run it")
    if dtype == torch.float32:
        return Choice(
            "torch", "fp32 at full precision: half of the rate of torch's library is not to be expected of the kernel"
        )
    small, large = sorted((rows, columns))
    side = triton.cdiv(small, FEW.tile)
    tiles, places = side * (side + 1) // 2, MULTIPROCESSORS[on]
    if tiles < places:
        return Choice("torch", f"{tiles} tiles of {FEW.tile} would leave some of {places} multiprocessors idle")
    share = (3 * large + small) / (4 * large + 2 * small)
    return Choice("triton", f"predicted, not measured: {share:.0%} of the operations of torch's products")


def by_shape(shapes: Iterable[tuple[int, ...]], dtype: torch.dtype) -> tuple[optim_muon.NewtonSchulz, list[str]]:
    """trainer.optim_muon.newton_schulz with the products that `choose` gives each shape, and what it chose, for the log."""
    on = chip()
    choices = {shape: choose(on, dtype, *shape) for shape in sorted(set(shapes))}

    def iterate(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, dtype: torch.dtype) -> Tensor:
        ours = choices[tuple(matrix.shape)].name == "triton"
        return (newton_schulz if ours else optim_muon.newton_schulz)(matrix, coefficients, steps, dtype)

    notes = [
        f"muon: products of {rows} x {columns} by {name}: {why}" for (rows, columns), (name, why) in choices.items()
    ]
    return iterate, notes


def aot_cases() -> list[tuple[str, Callable[[], object]]]:
    """Matrices of Llama 3 8B's blocks, and a stack of Qwen3 0.6B's."""

    def case(shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[], object]:
        return lambda: newton_schulz(torch.empty(shape, device="meta"), (3.4445, -4.775, 2.0315), 1, dtype)

    return [
        ("llama-3-8b/bf16", case((4096, 14336), torch.bfloat16)),
        ("qwen3-0.6b stack/bf16", case((28, 1024, 3072), torch.bfloat16)),
        ("qwen3-0.6b/bf16", case((1024, 3072), torch.bfloat16)),
        ("llama-3-8b/fp32", case((4096, 14336), torch.float32)),
    ]
