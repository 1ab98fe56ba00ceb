"""A run's optimizer on Triton kernels beside the one in torch: weights, state, clipping, groups, skipped steps, shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from optim_ranks import BOUND, KINDS, LR, ONE, SHAPES, STEPS, TRITON_CASES, apart, launch, settings, toy, train, value
from safetensors.torch import load_file
from torch import Tensor

from gristmill.trainer import optim, optim_muon
from gristmill.trainer.kernels import adam
from gristmill.trainer.kernels import newton_schulz as ns
from gristmill.trainer.kernels.config import Chip
from gristmill.trainer.schedule import Mixing

CLOSE = {kind: BOUND for kind in KINDS} | {"muon": 5e-6, "muon-bf16": 2e-3}
"""Relative to a tensor's largest value; of muon what 5 iterations make of another order of sums (bf16: of its rounding)."""


def worst(got: dict[str, Tensor], want: dict[str, Tensor]) -> tuple[float, str]:
    return max((apart(got[name], tensor), name) for name, tensor in want.items() if name in got)


@pytest.mark.parametrize("kind", ["adamw", "ademamix", "muon-bf16"])
def test_steps_are_those_of_torch(kind: str) -> None:
    """5 clipped steps of Hybrid with groups and a resume, one refused with NaN gradients, as a CPU and as a GPU does it."""
    got, untouched = train(kind, ONE, 3, triton=True)
    want, _ = train(kind, ONE, 3)
    assert got.keys() == want.keys()  # weights, state under the same names, norms
    assert worst(got, want)[0] <= CLOSE[kind], worst(got, want)
    assert untouched == [True, True]
    assert {float(t) for n, t in got.items() if n.endswith(".step")} <= {float(STEPS)}
    assert apart(got["head.weight"], value("head.weight", 0)) > 1e-2  # it moved


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    launch(out, "triton", TRITON_INTERPRET="1")
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "zero"), TRITON_CASES)
def test_four_ranks_step_as_one_process_of_torch(kind: str, zero: int, ranks: Path) -> None:
    """Local parts of DTensors, on half of the ranks empty ones (blocks.0.v), and scalars."""
    got, (want, _) = load_file(ranks / f"{kind}-{zero}.safetensors"), train(kind, ONE, zero)
    assert got.keys() == want.keys()
    assert worst(got, want)[0] <= CLOSE[kind], worst(got, want)
    assert json.loads((ranks / "untouched.json").read_text())[f"{kind} {zero}"] == [True, True]


def built(kind: str, triton: bool) -> optim.Hybrid:
    optimizer = optim.build(toy(ONE, 3), settings(kind), triton=triton)
    for name, p in optimizer.named.items():
        p.grad = value(name, 1)
    optimizer.at(LR, Mixing(2.0, 0.9))
    return optimizer


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_goes_from_one_to_the_other(kind: str) -> None:
    first, second = built(kind, False), built(kind, True)
    first.step()
    state = {name: tensor.clone() for name, tensor in first.state_tensors().items()}
    second.load_state(state)
    assert all(torch.equal(state[name], tensor) for name, tensor in second.state_tensors().items())
    assert list(state) == list(second.state_tensors())


@pytest.mark.parametrize("queued", [True, False])
def test_who_takes_the_scale(queued: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW's kernel multiplies as it reads; Muon's gradients are multiplied in place; 1 is nothing to do on a CPU."""
    monkeypatch.setattr(ns, "chip", lambda: "sm90")  # Newton-Schulz in torch: quicker
    optimizer = built("muon", True)
    optimizer.queued = queued
    optimizer.step(torch.tensor(0.5))
    for name, p in optimizer.named.items():
        factor = 0.5 if optimizer.choices[name].algorithm == "muon" else 1.0
        assert torch.equal(p.grad, factor * value(name, 1)), name  # type: ignore[arg-type]
    assert float(optimizer.parts["adamw"].scale) == 0.5  # type: ignore[attr-defined]
    optimizer.step(torch.tensor(1.0))
    assert (optimizer.parts["adamw"].scale is None) != queued  # type: ignore[attr-defined]


def test_groups_keep_their_decay_and_rate() -> None:
    """With gradients of 0 a weight only decays: by its own group's rate and decay."""
    optimizer = built("ademamix", True)
    before = {name: p.detach().clone() for name, p in optimizer.named.items()}
    for p in optimizer.named.values():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    factors = set()
    for name, p in optimizer.named.items():
        c = optimizer.choices[name]
        factor = 1 - LR * c.lr_multiplier * c.weight_decay
        factors.add(factor)
        torch.testing.assert_close(p.detach(), before[name] * factor, rtol=2e-7, atol=0)
    assert len(factors) == 3, factors  # none, all, and half the rate of head


def test_a_lost_scale_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    update = adam.adamw_step
    monkeypatch.setattr(adam, "adamw_step", lambda *a, scale, **k: update(*a, **k))
    assert worst(train("adamw", ONE, 3, triton=True)[0], train("adamw", ONE, 3)[0])[0] > 1000 * BOUND


# --- Muon's products

BF16, FP32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("on", "dtype", "shape", "name", "why"),
    [
        ("interpreter", FP32, (8, 20), "triton", "interpreter"),
        ("sm90", FP32, (4096, 14336), "torch", "full precision"),
        ("sm90", BF16, (4096, 14336), "triton", "72% of the operations"),
        ("sm90", BF16, (14336, 4096), "triton", "72% of the operations"),
        ("sm90", BF16, (1024, 1024), "triton", "67% of the operations"),
        ("sm100", BF16, (1024, 3072), "torch", "136 tiles of 64 would leave some of 148 multiprocessors idle"),
        ("sm80", BF16, (512, 8192), "torch", "36 tiles of 64"),
        ("gfx942", BF16, (1024, 3072), "torch", "304 multiprocessors"),
    ],
)
def test_whose_products_and_why(on: Chip, dtype: torch.dtype, shape: tuple[int, int], name: str, why: str) -> None:
    choice = ns.choose(on, dtype, *shape)
    assert choice.name == name
    assert why in choice.reason


def test_muon_says_what_it_chose_and_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(name: str) -> Any:
        def iterate(matrix: Tensor, *rest: Any) -> Tensor:
            called.setdefault(name, set()).add(tuple(matrix.shape))
            return plain(matrix, *rest)

        return iterate

    plain, called = optim_muon.newton_schulz, dict[str, set[tuple[int, ...]]]()
    monkeypatch.setattr(ns, "newton_schulz", counted("triton"))
    monkeypatch.setattr(optim_muon, "newton_schulz", counted("torch"))
    built("muon", True).step()
    matrices = {SHAPES[n][0] for n, c in built("muon", True).choices.items() if c.algorithm == "muon"}
    assert called == {"triton": matrices}
    called.clear()
    monkeypatch.setattr(ns, "chip", lambda: "sm90")
    optimizer = built("muon-bf16", True)
    optimizer.step()
    assert called == {"torch": matrices}
    assert len(optimizer.notes) == len(matrices)
    assert "muon: products of 8 x 20 by torch: 1 tiles of 64" in "\n".join(optimizer.notes)
    assert not built("muon", False).notes
