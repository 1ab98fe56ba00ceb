"""The activations' kernels (SwiGLU, squared ReLU, xIELU, with and without a gate) against fp64, and with planted bugs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_errors import DTYPES, Pairs, between_nans, check, error, guarded
from kernel_planting import plant
from torch import Tensor

from gristmill.trainer.kernels import mlp, reference
from gristmill.trainer.kernels.config import Choice
from gristmill.trainer.ops import XIELUFunction

KINDS = {
    "swiglu": "SwiGLU",
    "relu2": "ReLU2",
    "relu2 gated": "ReLU2 gated",
    "xielu": "xIELU",
    "xielu gated": "xIELU gated",
}
SHAPES = [(1, 1), (7, 13), (3, 5, 1021), (16385,), (0, 8), (5, 0)]  # primes; one more than a tile; nothing


class Inputs(NamedTuple):
    x: Tensor
    up: Tensor
    p: Tensor
    n: Tensor
    dy: Tensor


def draw(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Inputs:
    make = torch.Generator().manual_seed(seed)
    x, up, dy = (torch.randn(shape, generator=make) for _ in range(3))
    p, n = (torch.randn(1, generator=make) for _ in range(2))
    return Inputs((2 * x).to(dtype), up.to(dtype), p.to(dtype), n.to(dtype), dy.to(dtype))


def apply(module: Any, kind: str, x: Tensor, up: Tensor, p: Tensor, n: Tensor) -> Tensor:
    match kind.split():
        case ["swiglu"]:
            y = module.swiglu(x, up)
        case ["relu2", *gated]:
            y = module.relu2(x, up if gated else None)
        case ["xielu", *gated]:
            y = module.xielu(x, p, n, up if gated else None)
    return y  # type: ignore[no-any-return]


def run(kind: str, of: Inputs, module: Any = mlp) -> dict[str, Tensor | None]:
    leaves = [t.detach().requires_grad_() for t in of[:4]]
    y = apply(module, kind, *leaves)
    y.backward(of.dy)  # type: ignore[no-untyped-call]
    return {"y": y.detach()} | {f"d{name}": t.grad for name, t in zip(("x", "up", "p", "n"), leaves, strict=True)}


def compare(kind: str, of: Inputs) -> None:
    found, oracle = run(kind, of), run(kind, Inputs(*(t.double() for t in of)), reference)
    weight = of.dy.double() * (of.up.double() if "gated" in kind else 1)
    terms = {  # each alpha's gradient is a sum of these
        "dp": (weight * F.relu(of.x.double()).square()).abs().sum()[None],
        "dn": (weight * (torch.expm1(-F.relu(-of.x.double())) - of.x.double().clamp(max=0))).abs().sum()[None],
    }
    backward: Pairs = {
        name: (found[name], value, *([terms[name]] if name in terms else []))
        for name, value in oracle.items()
        if name != "y" and value is not None
    }
    assert {name for name, value in found.items() if value is not None} == {"y", *backward}
    shape = (tuple(of.x.shape), of.x.stride(), of.dy.stride())
    check(KINDS[kind], of.x.dtype, shape, {"y": (found["y"], oracle["y"])}, backward)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_activation(kind: str, shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    with guarded(monkeypatch):
        compare(kind, draw(shape, dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_strides(kind: str) -> None:
    of = draw((3, 7, 37), torch.bfloat16)
    side = torch.cat([of.x, of.up], -1)  # gate and up as halves of one projection's output
    x, up = side.split(37, -1)
    compare(kind, of._replace(x=x, up=up, dy=between_nans(of.dy)))
    compare(kind, of._replace(x=between_nans(of.x)))
    compare(kind, of._replace(dy=torch.ones((), dtype=torch.bfloat16).expand(of.x.shape)))  # the gradient of a sum
    compare(kind, of._replace(x=of.x.mT.contiguous().mT, dy=of.dy.transpose(0, 1).contiguous().transpose(0, 1)))


@pytest.mark.parametrize("kind", KINDS)
def test_extremes(kind: str) -> None:
    """Large arguments overflow nothing on the way; a NaN comes out as one, and so does its gradient."""
    x = torch.tensor([-1e4, -200.0, -88.0, -0.5, -0.0, 0.0, 0.5, 88.0, 200.0, 1e4])
    for p in (-30.0, 0.0, 30.0):
        of = Inputs(x, torch.ones_like(x), torch.tensor([p]), torch.tensor([p]), torch.ones_like(x))
        found, oracle = run(kind, of), run(kind, Inputs(*(t.double() for t in of)), reference)
        for name in ("y", "dx"):
            assert torch.allclose(found[name].double(), oracle[name], rtol=2e-6, atol=1e-7)  # type: ignore[union-attr,arg-type]
    nan = torch.tensor([1.0, float("nan"), 2.0])
    one, zero = torch.ones(3), torch.zeros(1)
    found = run(kind, Inputs(nan, one, zero, zero, one))
    assert found["y"].isnan().tolist() == [False, True, False]  # type: ignore[union-attr]
    assert run(kind, Inputs(one, one, zero, zero, nan))["dx"].isnan().tolist() == [False, True, False]  # type: ignore[union-attr]


def test_every_digit_near_zero() -> None:
    """e^x - 1 - x by itself, where the linear term hides nothing: dn keeps seven digits down to x = -1e-12."""
    for x in (-1e-12, -1e-6, -1e-3, -0.1, -0.49999, -0.50001, -3.0):
        of = draw((1, 1), torch.float32)._replace(x=torch.tensor([[x]]), dy=torch.ones(1, 1), n=torch.zeros(1))
        found, oracle = run("xielu", of), run("xielu", Inputs(*(t.double() for t in of)), reference)
        exact = torch.zeros((), dtype=torch.float64)
        for k in range(40, 1, -1):  # Taylor in fp64: expm1(x) - x loses digits there too
            exact = exact * float(of.x.double()) / (k + 1) + 1
        exact = exact * float(of.x.double()) ** 2 / 2 * torch.sigmoid(torch.tensor(0.0))
        assert error(found["dn"], exact[None]) < 1e-6  # type: ignore[arg-type]
        assert error(found["dx"], oracle["dx"]) < 2e-6  # type: ignore[arg-type]


def test_as_the_trainers_own_function() -> None:
    of = draw((4, 33), torch.float32)
    for got, expected in zip(
        torch.autograd.grad(mlp.xielu(*(a := [t.requires_grad_() for t in (of.x, of.p, of.n)])), a, of.dy),
        torch.autograd.grad(XIELUFunction.apply(*a), a, of.dy),  # type: ignore[no-untyped-call]
        strict=True,
    ):
        assert error(got, expected) < 1e-6


def test_refusals() -> None:
    of = draw((2, 3), torch.float32)
    with pytest.raises(ValueError, match="up"):
        mlp.swiglu(of.x, of.up[:1])
    with pytest.raises(ValueError, match="up"):
        mlp.relu2(of.x, of.up.half())
    with pytest.raises(ValueError, match="one each"):
        mlp.xielu(of.x, torch.ones(2), of.n)


# Properties.
@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(KINDS)), st.integers(1, 300), st.integers(-8, 8), st.integers(0, 99))
def test_linear_in_up_and_gradient(kind: str, size: int, power: int, seed: int) -> None:
    """A power of two in the gradient or in `up` comes out exactly; permuted elements give permuted results to the bit."""
    of, factor = draw((size,), torch.float32, seed), 2.0**power
    one, scaled, upped = (
        run(kind, of),
        run(kind, of._replace(dy=of.dy * factor)),
        run(kind, of._replace(up=of.up * factor)),
    )
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    permuted = run(kind, Inputs(of.x[order], of.up[order], of.p, of.n, of.dy[order]))
    for name, value in one.items():
        if value is None:
            continue
        if name != "y":
            assert torch.equal(value * factor, scaled[name])  # type: ignore[arg-type]
        if kind == "swiglu" or "gated" in kind:
            assert torch.equal(value * (1.0 if name == "dup" else factor), upped[name])  # type: ignore[arg-type]
        if value.numel() == size and name in ("y", "dx", "dup"):
            assert torch.equal(value[order], permuted[name])  # type: ignore[arg-type]


@pytest.mark.parametrize("block", [16, 64, 512])
def test_any_tiling(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlp, "choose", lambda kernel, width: Choice(1, block, 4, 0, "a test"))
    compare("xielu gated", draw((3, 101), torch.float32))


BUGS = {  # {what: (kernel, kind, old, new)}
    "columns outside": ("_forward_kernel", "swiglu", "live = column < columns\n    y =", "live = column <= columns\n    y ="),
    "gradient's columns outside": ("_backward_kernel", "swiglu", "live = column < columns\n    dense", "live = column <= columns\n    dense"),
    "row's stride ignored": ("_forward_kernel", "swiglu", "_activate(tl.load(X + row * stride_x", "_activate(tl.load(X + row * columns"),
    "up not multiplied": ("_backward_kernel", "relu2 gated", "dy *= up", "dy *= 1"),
    "slope of the sigmoid alone": ("_backward_kernel", "swiglu", "s * (1.0 + x * (1.0 - s))", "s"),
    "NaN hidden": ("_forward_kernel", "relu2", "tl.where(x <= 0, 0.0, x * x)", "tl.where(x > 0, x * x, 0.0)"),
    "no linear term": ("_backward_kernel", "xielu", "n * (_beyond_linear(low) + low)) + 0.5", "n * (_beyond_linear(low) + low))"),
    "one program's sum": ("_backward_kernel", "xielu", "tl.store(PARTS + program, of_p)", "tl.store(PARTS, of_p)"),
    "digits lost near 0": ("_backward_kernel", "digits", "tl.where(x > -0.5, series * near * near * 0.5,", "tl.where(x > 0.5, series * near * near * 0.5,"),
}  # fmt: skip


def all_of_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "digits":
        return test_every_digit_near_zero()
    of = draw((5, 101), torch.float32)
    with guarded(monkeypatch):
        compare(kind, of._replace(x=between_nans(of.x)))
    test_extremes(kind)


def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlp, "choose", lambda kernel, width: Choice(1, 64, 4, 0, "several tiles"))


@pytest.mark.parametrize("kind", sorted({bug[1] for bug in BUGS.values()}))
def test_without_a_bug(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch)
    all_of_it(kind, monkeypatch)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small_tiles(monkeypatch)
    kernel, kind, old, new = BUGS[bug]
    plant(monkeypatch, tmp_path, mlp, kernel, old, new)
    with pytest.raises(AssertionError):
        all_of_it(kind, monkeypatch)
