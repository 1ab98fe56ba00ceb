"""The symmetric products of Muon's Newton-Schulz against trainer.optim_muon and the singular values' own formula."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kernel_errors import note
from kernel_planting import plant
from torch import Tensor

from gristmill.trainer import optim_muon
from gristmill.trainer.kernels import newton_schulz as ns
from gristmill.trainer.kernels.config import Chip
from gristmill.trainer.kernels.reference_optim import newton_schulz as reference

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients, trainer.optim_schema's default
SHAPES = [(1, 1), (1, 7), (5, 1), (64, 64), (67, 31), (31, 67), (130, 67), (97, 200)]
TOLERANCE = {torch.float32: 5e-6, torch.float16: 8e-3, torch.bfloat16: 6e-2}
"""Largest error of an element after 5 iterations, whose elements are at most 1.2; a half's rounding is amplified 10 times."""


def matrix(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_five_iterations(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = matrix(*shape)
    got = ns.newton_schulz(x, QUINTIC, 5, dtype)
    assert got.dtype == dtype
    assert got.shape == x.shape
    off = float((got.double() - reference(x, QUINTIC, 5)).abs().max())
    assert off < TOLERANCE[dtype]
    note("Newton-Schulz, 5 steps", dtype, shape, off)
    assert (got - optim_muon.newton_schulz(x, QUINTIC, 5, dtype)).abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize("shape", [(3, 20, 70), (2, 2, 70, 20), (0, 4, 6), (2, 0, 6)], ids=str)
def test_a_stack_is_its_matrices(shape: tuple[int, ...]) -> None:
    x = matrix(*shape)
    got = ns.newton_schulz(x, QUINTIC, 2, torch.float32)
    assert got.shape == x.shape
    for place in torch.cartesian_prod(*(torch.arange(n) for n in shape[:-2])).view(-1, len(shape) - 2).tolist():
        one = ns.newton_schulz(x[tuple(place)], QUINTIC, 2, torch.float32)
        assert torch.allclose(got[tuple(place)], one, rtol=0, atol=2e-7)


def test_zeros_stay_zeros() -> None:
    assert not ns.newton_schulz(torch.zeros(8, 9), QUINTIC, 5, torch.float32).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "inner"), [(1, 1), (64, 16), (65, 17), (129, 5), (200, 33)])
def test_one_product(rows: int, inner: int, dtype: torch.dtype) -> None:
    """alpha X X^T + beta A; what is not computed was mirrored to the bit."""
    x = matrix(2, rows, inner).to(dtype)
    add = ns.symmetric_product(x)
    got = ns.symmetric_product(x, add, alpha=-0.5, beta=2.0)
    x64 = x.double()
    want = -0.5 * (x64 @ x64.mT) + 2.0 * add.double()
    tile = ns.choose_tile("interpreter", dtype, rows, 2).tile
    for start in range(tile, rows, tile):
        below = got[:, start : start + tile, :start]
        assert torch.equal(below, got[:, :start, start : start + tile].mT)
    close = inner * (1e-6 if dtype == torch.float32 else 2e-3)
    assert (got.double() - want).abs().max() < close


def test_rows_may_lie_apart() -> None:
    x = matrix(3, 40, 64)[:, ::2, :30]
    assert not x.is_contiguous()
    assert torch.equal(ns.symmetric_product(x), ns.symmetric_product(x.contiguous()))


def test_programs_cover_the_triangle_once() -> None:
    """The kernel finds its tile by a square root in fp32: right for as many programs as matrices of 130,000 rows need."""
    pid = torch.arange(1025 * 1024 // 2)
    low = ((torch.sqrt(8.0 * pid.float() + 1.0) - 1.0) * 0.5).int()
    low = torch.where(low * (low + 1) // 2 > pid, low - 1, low)
    low = torch.where((low + 1) * (low + 2) // 2 <= pid, low + 1, low)
    rows, columns = torch.tril_indices(1024, 1024)
    assert torch.equal(low.long(), rows)
    assert torch.equal(pid - low * (low + 1) // 2, columns)


@pytest.mark.parametrize("on", ["sm80", "sm90", "sm100", "gfx942"])
def test_tiles(on: Chip) -> None:
    assert ns.choose_tile(on, torch.float32, 4096, 1) == ns.FULL
    assert ns.choose_tile(on, torch.bfloat16, 1024, 1) == ns.FEW  # 36 tiles of 128
    assert ns.choose_tile(on, torch.bfloat16, 4096, 1) == ns.choose_tile(on, torch.float16, 1024, 28) == ns.TILES[on]


PLANTED = {
    "no mirror": ("if low > left:", "if low > left + 1000:"),
    "mirrored without transposing": ("tl.trans(value)", "value"),
    "tile above the diagonal": ("left = pid - low * (low + 1) // 2", "left = pid - low * (low - 1) // 2"),
    "columns past the end": ("live = (start + k)[None, :] < inner", "live = (start + k)[None, :] < inner + 1"),
    "sum begun anew": ("acc = tl.dot(a, tl.trans(b), acc,", "acc = tl.dot(a, tl.trans(b), acc * 0,"),
    "added in every tile but scaled": ("acc += beta *", "acc += alpha * beta *"),
    "matrix of the stack": ("X += batch * x_batch", "X += 0 * batch * x_batch"),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def all_of_it() -> None:
        test_one_product(200, 33, torch.float32)
        x = torch.full((2, 66, 21), float("nan"))[:, :, :20].copy_(matrix(2, 66, 20))
        assert torch.equal(ns.symmetric_product(x), ns.symmetric_product(x.contiguous()))
        assert torch.allclose(ns.symmetric_product(x), x @ x.mT, atol=1e-5)

    all_of_it()
    plant(monkeypatch, tmp_path, ns, "_symmetric_kernel", *PLANTED[bug])
    with pytest.raises(AssertionError):
        all_of_it()
