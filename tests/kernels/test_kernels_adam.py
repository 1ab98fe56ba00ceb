"""The fused AdamW and AdEMAMix updates against fp64 formulas, torch's fused AdamW and trainer.optim_ademamix."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_errors import note
from kernel_planting import plant
from torch import Tensor, nn

from gristmill.trainer.kernels import adam
from gristmill.trainer.kernels.reference_optim import adam as reference
from gristmill.trainer.optim_ademamix import AdEMAMix

SETTINGS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
SLOW: dict[str, Any] = {"beta3": 0.999, "alpha": 5.0}
SIZES = [1, 15, 16, 17, 1024, 4099]
TOLERANCE = {torch.float32: 4e-7, torch.bfloat16: 1e-6}  # of fp32 arithmetic, relative to the largest element
ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11}  # half a unit in the last place of the rounded copy


def update(
    slow: bool, weight: Tensor, grad: Tensor, moments: list[Tensor], step: Tensor, **more: Any
) -> tuple[Tensor, ...]:
    """One update of copies: (weight, fast, square[, slow])."""
    weight, moments = weight.clone(), [m.clone() for m in moments]
    settings = {**SETTINGS, **(SLOW if slow else {}), **more}
    if slow:
        adam.ademamix_step(weight, grad, moments[0], moments[2], moments[1], step, **settings)
    else:
        adam.adamw_step(weight, grad, moments[0], moments[1], step, **settings)
    return weight, *moments[: 3 if slow else 2]


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, list[Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    new = [torch.randn(shape, generator=draw) for _ in range(5)]
    return new[0].to(dtype), (new[1] * 1e-2).to(dtype), [new[2] * 1e-2, new[3].square() * 1e-4, new[4] * 1e-2]


def worst(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> float:
    """The largest error of any array, relative to the array's largest element."""
    return max(
        float((g.double() - w).abs().max() / w.abs().max().clamp(min=1e-30)) for g, w in zip(got, want, strict=True)
    )


@pytest.mark.parametrize("slow", [False, True], ids=["adamw", "ademamix"])
@pytest.mark.parametrize("grads", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_one_update_is_the_formula(slow: bool, grads: torch.dtype, size: int) -> None:
    weight, grad, moments = numbers(size)
    grad, step = grad.to(grads), torch.tensor(6.0)
    got = update(slow, weight, grad, moments, step, scale=torch.tensor(0.3))
    want = reference(
        weight, grad, tuple(moments[: 3 if slow else 2]), 7, **SETTINGS, **(SLOW if slow else {}), scale=0.3
    )
    assert step == 7
    assert worst(got, want) < TOLERANCE[torch.float32]
    note("AdEMAMix" if slow else "AdamW", grads, size, worst(got, want))


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.99999), (0.0, 0.95), (0.99, 0.9)])
@pytest.mark.parametrize("before", [0, 1, 100, 1_000_000])
def test_bias_correction_at_every_age(betas: tuple[float, float], before: int) -> None:
    """1 - 0.99999 has 2 digits in fp32; at step 1 a correction in fp32 by a plain power would be off by 1e-2."""
    weight, grad, _ = numbers(64)
    zeros = [torch.zeros(64), torch.zeros(64)]
    got = update(False, weight, grad, zeros, torch.tensor(float(before)), betas=betas)
    want = reference(weight, grad, tuple(zeros), before + 1, **{**SETTINGS, "betas": betas})
    assert worst(got, want) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_steps_are_those_of_torch(dtype: torch.dtype) -> None:
    weight, _, _ = numbers(9, 7, dtype=dtype)
    theirs = nn.Parameter(weight.clone())
    optimizer = torch.optim.AdamW([theirs], **SETTINGS, fused=True)
    moments, step = [torch.zeros_like(weight), torch.zeros_like(weight)], torch.zeros(())
    for seed in range(3):
        grad = numbers(9, 7, dtype=dtype, seed=seed)[1]
        theirs.grad = grad.clone()
        optimizer.step()
        adam.adamw_step(weight, grad, moments[0], moments[1], step, **SETTINGS)
    state = optimizer.state[theirs]
    assert step == state["step"]
    close = TOLERANCE[torch.float32] if dtype == torch.float32 else 2 * ROUNDING[dtype]  # rounded once more than torch
    assert worst(
        (weight, *moments), tuple(t.double() for t in (theirs.data, state["exp_avg"], state["exp_avg_sq"]))
    ) < (close)


def test_steps_are_those_of_the_trainer() -> None:
    weight, _, _ = numbers(9, 7)
    theirs = nn.Parameter(weight.clone())
    group = {"params": [theirs], "lr": SETTINGS["lr"], "weight_decay": SETTINGS["weight_decay"]}
    optimizer = AdEMAMix([group], betas=SETTINGS["betas"], eps=SETTINGS["eps"], **SLOW)
    names = ("exp_avg", "exp_avg_slow", "exp_avg_sq")
    optimizer.state[theirs] = {name: torch.zeros_like(weight) for name in names} | {"step": torch.zeros(())}
    ours: dict[str, Any] = {name: torch.zeros_like(weight) for name in names}
    step = torch.zeros(())
    for seed in range(3):
        grad = numbers(9, 7, seed=seed)[1]
        theirs.grad = grad.clone()
        optimizer.step()
        adam.ademamix_step(weight, grad, step=step, **ours, **SETTINGS, **SLOW)
    want = (theirs.data, *(optimizer.state[theirs][name] for name in names))
    assert worst((weight, *ours.values()), tuple(t.double() for t in want)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("slow", [False, True], ids=["adamw", "ademamix"])
def test_an_optimizer_in_the_place_of_the_trainers(slow: bool) -> None:
    """The same groups, state and flag: a step, a refused one, a step of one parameter alone."""
    names = ("exp_avg", "exp_avg_sq", *(["exp_avg_slow"] if slow else []))
    weights = [numbers(5, 3)[0], numbers(21, seed=1)[0]]
    theirs, ours = ([nn.Parameter(w.clone()) for w in weights] for _ in range(2))
    common: dict[str, Any] = {"betas": SETTINGS["betas"], "eps": SETTINGS["eps"]}

    def groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
        return [{"params": [p], "lr": 1e-2 * (i + 1), "weight_decay": 0.1 * i} for i, p in enumerate(params)]

    a: Any = (
        AdEMAMix(groups(theirs), **common, **SLOW) if slow else torch.optim.AdamW(groups(theirs), **common, fused=True)
    )
    b = adam.Adam(groups(ours), **common, **(SLOW if slow else {}))
    for optimizer, params in ((a, theirs), (b, ours)):
        for p in params:
            optimizer.state[p] = {n: torch.zeros_like(p) for n in names} | {"step": torch.zeros(())}
    for found_inf, live in ((0.0, (0, 1)), (1.0, (0, 1)), (0.0, (1,))):
        for optimizer, params in ((a, theirs), (b, ours)):
            optimizer.found_inf = torch.tensor(found_inf)
            for i, p in enumerate(params):
                p.grad = numbers(*p.shape, seed=7 + i)[1] if i in live else None
            optimizer.step()
    for p, q in zip(theirs, ours, strict=True):
        assert torch.equal(a.state[p]["step"], b.state[q]["step"])
        pairs = [(q.detach(), p.detach())] + [(b.state[q][n], a.state[p][n]) for n in names]
        got, want = zip(*pairs, strict=True)
        assert worst(got, tuple(t.double() for t in want)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("slow", [False, True], ids=["adamw", "ademamix"])
def test_a_refused_update_changes_no_bit(slow: bool) -> None:
    weight, grad, moments = numbers(40)
    grad[3] = math.nan
    copy, step = torch.zeros(40, dtype=torch.float16), torch.tensor(4.0)
    got = update(slow, weight, grad, moments, step, ok=torch.tensor(False), copy=copy)
    for before, after in zip((weight, *moments), got, strict=False):
        assert torch.equal(before, after)
    assert step == 4
    assert not copy.any()
    done = update(slow, weight, grad, moments, step, ok=torch.tensor(True), copy=copy)
    assert step == 5
    assert done[0].isnan().sum() == 1  # the flag was all that held it back


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_copy_is_the_weight_rounded(dtype: torch.dtype) -> None:
    weight, grad, moments = numbers(33)
    copy = torch.zeros(33, dtype=dtype)
    new, *_ = update(False, weight, grad, moments, torch.zeros(()), copy=copy)
    assert torch.equal(copy, new.to(dtype))


def test_shards_of_any_kind() -> None:
    """Empty, of several dimensions, with strided gradients; and elements past the end are not touched."""
    step = torch.zeros(())
    update(False, torch.empty(0, 8), torch.empty(0, 8), [torch.empty(0, 8)] * 2, step)
    assert step == 1
    weight, grad, moments = numbers(6, 5)
    strided = torch.empty(5, 12).t()[::2].copy_(grad)
    assert not strided.is_contiguous()
    for got, want in zip(
        update(True, weight, strided, moments, torch.zeros(())),
        update(True, weight, grad, moments, torch.zeros(())),
        strict=True,
    ):
        assert torch.equal(got, want)
    around = torch.full((64,), 7.0)
    adam.adamw_step(around[16:37], grad.view(-1)[:21], torch.zeros(21), torch.zeros(21), torch.zeros(()), **SETTINGS)
    assert (around[:16] == 7).all()
    assert (around[37:] == 7).all()
    assert (around[16:37] != 7).all()


def test_what_cannot_be_updated_in_place_is_refused() -> None:
    weight, grad, moments = numbers(6, 4)
    with pytest.raises(ValueError, match="param is not contiguous"):
        adam.adamw_step(weight.t(), grad.t(), moments[0].t(), moments[1].t(), torch.zeros(()), **SETTINGS)
    with pytest.raises(ValueError, match=r"exp_avg_sq is \(4,\)"):
        adam.adamw_step(weight, grad, moments[0], torch.zeros(4), torch.zeros(()), **SETTINGS)


PLANTED = {
    "no bias correction": ("m / _one_minus_power(step, log1)", "m"),
    "decay of the gradient (L2)": ("w * decay - lr *", "w - lr *"),
    "epsilon inside the root": ("tl.sqrt(v) / tl.sqrt(_one_minus_power(step, log2)) + eps", "tl.sqrt(v + eps)"),
    "square before the scale": (
        "g *= tl.load(SCALE).to(tl.float32)",
        "g = tl.where(tl.load(SCALE).to(tl.float32) < 0, 0.0, g)",
    ),
    "no mask at the end": ("live = at < size", "live = at < size - 1"),
    "beta3 of the fast average": ("s * keep3 + g * take3", "s * keep1 + g * take1"),
    "moment not stored": ("tl.store(SQUARE + at, v.to", "tl.store(SQUARE + at, (v * 0).to"),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    test_one_update_is_the_formula(True, torch.float32, 17)
    plant(monkeypatch, tmp_path, adam, "_adam_kernel", *PLANTED[bug])
    with pytest.raises(AssertionError):
        test_one_update_is_the_formula(True, torch.float32, 17)
