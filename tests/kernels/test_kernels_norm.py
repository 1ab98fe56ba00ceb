"""RMSNorm and residual-add + RMSNorm kernels against fp64, at shapes that hurt, strided, and with planted bugs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_errors import DTYPES, Pairs, between_nans, check, error, guarded
from kernel_planting import plant
from torch import Tensor

from gristmill.trainer.kernels import norm, reference
from gristmill.trainer.kernels.config import WIDEST, Choice
from gristmill.trainer.layers import RMSNorm

# One element, one row, one column, primes, a width that fills its tile, one more, several tiles of rows, heads, nothing.
SHAPES = [(1, 1), (1, 257), (509, 1), (7, 13), (61, 127), (64, 256), (33, 1025), (2, 3, 5, 24), (400, 128), (0, 8)]
EPS = 1e-5


def draw(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, residual, weight, dy, dtotal."""
    make = torch.Generator().manual_seed(seed)
    x, residual, dy, dtotal = (torch.randn(shape, generator=make).to(dtype) for _ in range(4))
    return x, residual, (1 + 0.3 * torch.randn(shape[-1], generator=make)).to(dtype), dy, dtotal


def run(
    x: Tensor, weight: Tensor, dy: Tensor, residual: Tensor | None = None, dtotal: Tensor | None = None
) -> list[Tensor | None]:
    """[y, total, dx, dresidual, dw] of the kernels, or in fp64 of the reference."""
    module = reference if x.dtype == torch.float64 else norm
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, residual, weight)]
    a, b, w = leaves
    assert a is not None
    assert w is not None
    y, total = (module.rms_norm(a, w, EPS), None) if b is None else module.add_rms_norm(a, b, w, EPS)
    outputs = [(y, dy)] + ([(total, dtotal)] if total is not None and dtotal is not None else [])
    torch.autograd.backward([o for o, _ in outputs], [g for _, g in outputs])
    return [y.detach(), None if total is None else total.detach(), a.grad, None if b is None else b.grad, w.grad]


def compare(
    x: Tensor, weight: Tensor, dy: Tensor, residual: Tensor | None = None, dtotal: Tensor | None = None
) -> None:
    """Asserts that the kernels give what fp64 does. The sum is rounded before it is normalised, there too."""
    found = run(x, weight, dy, residual, dtotal)
    total = x if residual is None else x + residual
    wide = run(total.double(), weight.double(), dy.double())
    dx = wide[2]
    assert dx is not None
    dx = dx if dtotal is None else dx + dtotal.double()
    terms = dy.double() * weight.double() * torch.rsqrt(total.double().square().mean(-1, keepdim=True) + EPS)
    forward: Pairs = {"y": (found[0], wide[0])}
    forward |= {} if residual is None else {"total": (found[1], total)}
    backward: Pairs = {"dx": (found[2], dx, terms), "dw": (found[4], wide[4])}
    backward |= {} if residual is None else {"dr": (found[3], dx, terms)}
    name = "RMSNorm" if residual is None else "add + RMSNorm"
    check(name, x.dtype, (tuple(x.shape), x.stride(), dy.stride()), forward, backward)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm(shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, residual, weight, dy, dtotal = draw(shape, dtype)
    with guarded(monkeypatch):
        compare(x, weight, dy)
        compare(x, weight, dy, residual, dtotal)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(dtype: torch.dtype) -> None:
    x, residual, weight, dy, dtotal = draw((17, 3, 37), dtype)
    apart = [between_nans(t) for t in (x, residual, dy, dtotal)]
    assert not apart[0].is_contiguous()
    compare(apart[0], weight, apart[2], apart[1], apart[3])
    compare(apart[0], between_nans(weight), apart[2])
    compare(x, weight, dy.transpose(0, 1).contiguous().transpose(0, 1))  # rows of a gradient in another order
    compare(x.mT.contiguous().mT, weight, dy.mT.contiguous().mT)  # elements of a row lie apart: copied
    compare(x, weight, torch.ones((), dtype=dtype).expand(x.shape), residual, dtotal)  # the gradient of a sum


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_through_one_output(dtype: torch.dtype) -> None:
    """Of the last layer's residual stream nothing is used, of a stage's end the norm."""
    x, residual, weight, dy, dtotal = draw((9, 31), dtype)
    compare(x, weight, dy, residual, None)
    a, b = (t.clone().requires_grad_() for t in (x, residual))
    norm.add_rms_norm(a, b, weight, EPS)[1].backward(dtotal)
    assert a.grad is not None
    assert b.grad is not None
    assert torch.equal(a.grad, dtotal)
    assert torch.equal(b.grad, dtotal)


def test_mixed_dtypes() -> None:
    """bf16 activations under fp32 weights: the weight's gradient is fp32, not rounded on the way."""
    x, _, weight, dy, _ = draw((19, 45), torch.bfloat16)
    weight = weight.float()
    found, wide = run(x, weight, dy), run(x.double(), weight.double(), dy.double())
    assert found[4] is not None
    assert found[4].dtype == torch.float32
    assert error(found[4], wide[4]) < 1e-6  # type: ignore[arg-type]


def test_as_the_trainers_own_layer() -> None:
    layer = RMSNorm(48, EPS)
    x, _, weight, _, _ = draw((10, 48), torch.bfloat16)
    layer.weight.data = weight.float()
    assert error(norm.rms_norm(x, weight, EPS), layer(x)) <= 2**-8


def test_a_nan_stays_in_its_row() -> None:
    x, _, weight, _, _ = draw((5, 16), torch.float32)
    x[2, 3] = float("nan")
    y = norm.rms_norm(x, weight, EPS)
    assert y[2].isnan().all()
    assert y[[0, 1, 3, 4]].isfinite().all()


def test_refusals() -> None:
    x, residual, weight, _, _ = draw((4, 8), torch.float32)
    with pytest.raises(ValueError, match="one element a column"):
        norm.rms_norm(x, weight[:7], EPS)
    with pytest.raises(ValueError, match="residual"):
        norm.add_rms_norm(x, residual.half(), weight, EPS)
    with pytest.raises(ValueError, match="from 1 to 16384 fit"):
        norm.rms_norm(torch.ones(1, WIDEST + 1), torch.ones(WIDEST + 1), EPS)


# Properties.
@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 70), st.integers(0, 99))
def test_rows_are_independent(rows: int, width: int, seed: int) -> None:
    """Permuted rows give permuted results to the bit; so does a row alone. dw is the sum of its parts."""
    x, _, weight, dy, _ = draw((rows, width), torch.float32, seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    whole, permuted = run(x, weight, dy), run(x[order], weight, dy[order])
    for a, b in ((whole[0], permuted[0]), (whole[2], permuted[2])):
        assert a is not None
        assert b is not None
        assert torch.equal(a[order], b)
    parts = [run(x[i : i + 1], weight, dy[i : i + 1]) for i in range(min(rows, 3))]
    assert all(torch.equal(whole[0][i : i + 1], p[0]) for i, p in enumerate(parts))  # type: ignore[index,arg-type]
    cut = rows // 2
    if cut:
        halves = run(x[:cut], weight, dy[:cut])[4] + run(x[cut:], weight, dy[cut:])[4]  # type: ignore[operator]
        assert error(whole[4], halves) < 2e-6  # type: ignore[arg-type]


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(1, 20), st.integers(1, 50), st.integers(-8, 8), st.integers(0, 99))
def test_linear_in_the_gradient(rows: int, width: int, power: int, seed: int) -> None:
    """Gradients scale exactly by a power of two, and add up."""
    x, _, weight, dy, other = draw((rows, width), torch.float32, seed)
    one, scaled, both, rest = (run(x, weight, g) for g in (dy, dy * 2.0**power, dy + other, other))
    for i in (2, 4):
        a, b, c, d = (r[i] for r in (one, scaled, both, rest))
        assert a is not None
        assert b is not None
        assert c is not None
        assert d is not None
        assert torch.equal(a * 2.0**power, b)
        assert (a + d - c).abs().max() <= 3e-6 * max(1.0, a.abs().max().item(), d.abs().max().item())


@pytest.mark.parametrize(("rows", "programs"), [(1, 1), (4, 1), (4, 7), (16, 2), (128, 5)])
def test_any_tiling(rows: int, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few programs walk over many rows, many over few or none."""
    monkeypatch.setattr(norm, "choose", lambda kernel, width: Choice(rows, 64, 4, programs, "a test"))
    x, residual, weight, dy, dtotal = draw((101, 61), torch.float32)
    compare(x, weight, dy, residual, dtotal)


BUGS = {  # {what: (kernel, old, new)}
    "columns outside": ("_forward_kernel", "(column < width)[None, :]", "(column <= width)[None, :]"),
    "eps outside the root": (
        "_forward_kernel",
        "tl.rsqrt(tl.sum(x * x, 1) / width + eps)",
        "(tl.rsqrt(tl.sum(x * x, 1) / width) + eps)",
    ),
    "mean over the tile": ("_forward_kernel", "tl.sum(x * x, 1) / width", "tl.sum(x * x, 1) / BLOCK"),
    "sum not added": ("_forward_kernel", "x += tl.load(RESIDUAL", "tl.load(RESIDUAL"),
    "no projection": ("_backward_kernel", "(weighted - unit *", "(weighted - 0 * unit *"),
    "gradient of the stream lost": ("_backward_kernel", "dx += tl.load(DTOTAL", "tl.load(DTOTAL"),
    "later tiles of dw lost": ("_backward_kernel", "dw += dy * unit", "dw = dy * unit"),
    "tiles skipped": ("_backward_kernel", "tl.num_programs(0) * ROWS", "2 * tl.num_programs(0) * ROWS"),
    "rows outside": (
        "_backward_kernel",
        "live = (row < rows)[:, None] & inside[None, :]\n        x =",
        "live = (row <= rows)[:, None] & inside[None, :]\n        x =",
    ),
}


def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm, "choose", lambda kernel, width: Choice(4, 64, 4, 2, "several tiles a program"))


def all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x, residual, weight, dy, dtotal = draw((37, 61), torch.float32)
    with guarded(monkeypatch):
        compare(*(between_nans(t) if t is not weight else t for t in (0.01 * x, weight, dy)))
        compare(*(between_nans(t) if t is not weight else t for t in (x, weight, dy, residual, dtotal)))


def test_without_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch)
    all_of_it(monkeypatch)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small_tiles(monkeypatch)
    plant(monkeypatch, tmp_path, norm, *BUGS[bug])
    with pytest.raises(AssertionError):
        all_of_it(monkeypatch)
