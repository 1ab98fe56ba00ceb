"""Each optimizer beside an independent reference: torch's own, an SVD in fp64, the paper's formula in plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from gristmill.trainer import optim, optim_muon  # noqa: E402
from gristmill.trainer.optim_schema import AdEMAMix, Optimizer  # noqa: E402
from gristmill.trainer.schedule import Mixing, alpha_at, beta3_at  # noqa: E402

STEPS = 25
NO_MIXING = Mixing(0.0, 0.5)


class Toy(nn.Module):
    """The decoder's names: an embedding, two blocks with a tall, a wide and a square matrix and a gain, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(8, 20, False), "down": nn.Linear(20, 8, False), "norm": nn.RMSNorm(8)})
            for _ in range(2)
        )
        self.head = nn.Linear(8, 12, bias=False)


def toy() -> Toy:
    torch.manual_seed(0)
    return Toy()


def gradients(model: nn.Module, step: int) -> dict[str, Tensor]:
    """Gradients of one step: noise of its own with a part that all steps share, of sizes from 1e-3 to 1e3."""
    out = {}
    for i, (name, p) in enumerate(model.named_parameters()):
        noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(1000 * step + i))
        shared = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
        out[name] = (noise + 0.5 * shared) * 10.0 ** (i % 7 - 3)
    return out


def rate(step: int) -> float:
    return 1e-2 * min(1.0, step / 5) * (1.0 if step < 15 else 0.3)


def trained(settings: Optimizer, mixing: Callable[[int], Mixing] = lambda step: NO_MIXING) -> dict[str, Tensor]:
    """Weights after STEPS steps of our optimizer on the toy."""
    model = toy()
    optimizer = optim.build(model, settings)
    for step in range(1, STEPS + 1):
        for name, gradient in gradients(model, step).items():
            model.get_parameter(name).grad = gradient
        optimizer.at(rate(step), mixing(step))
        optimizer.step()
        optimizer.zero_grad()
        assert all(p.grad is None for p in model.parameters())
    return {n: p.detach() for n, p in model.named_parameters()}


def trained_by_torch(make: Callable[[list[nn.Parameter]], Any], names: list[str]):
    model = toy()
    optimizer = make([model.get_parameter(n) for n in names])
    for step in range(1, STEPS + 1):
        for name, gradient in gradients(model, step).items():
            model.get_parameter(name).grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
    return {n: model.get_parameter(n).detach() for n in names}


def furthest(got: dict[str, Tensor], want) -> float:
    return max(float((got[n].double() - torch.as_tensor(w).double()).abs().max()) for n, w in want.items())


MATRICES = [n for n, p in Toy().named_parameters() if n.startswith("blocks") and p.dim() == 2]
DECAYED = [*MATRICES, "head.weight"]
SPARED = ["embed.weight", "blocks.0.norm.weight", "blocks.1.norm.weight"]


@pytest.mark.parametrize(("names", "decay"), [(DECAYED, 0.1), (SPARED, 0.0)])
def test_adamw_is_torchs(names, decay):
    """Beside torch's AdamW one tensor at a time: differs only by the fused kernel's rounding (measured: 3e-8)."""
    got = trained(Optimizer(lr=1e-2, weight_decay=0.1))
    want = trained_by_torch(
        lambda ps: torch.optim.AdamW(ps, betas=(0.9, 0.95), eps=1e-8, weight_decay=decay, foreach=False, fused=False),
        names,
    )
    assert furthest(got, want) <= 3e-7
    moved = trained_by_torch(lambda ps: torch.optim.AdamW(ps, betas=(0.9, 0.95), weight_decay=decay + 0.05), names)
    assert furthest(got, moved) > 1e-4  # the bound sees another decay


@pytest.mark.parametrize("scale", ["match_rms_adamw", "original"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_torchs_bit_for_bit_in_bf16(scale, nesterov):
    got = trained(Optimizer(name="muon", lr=1e-2, muon={"scale": scale, "nesterov": nesterov}))
    want = trained_by_torch(
        lambda ps: torch.optim.Muon(ps, weight_decay=0.1, momentum=0.95, nesterov=nesterov, adjust_lr_fn=scale),
        MATRICES,
    )
    assert all(torch.equal(got[n], want[n]) for n in MATRICES)
    rest = trained(Optimizer(lr=1e-2))
    assert all(torch.equal(got[n], rest[n]) for n in (*SPARED, "head.weight"))  # the rest is AdamW


def test_muon_in_fp32_is_near_torchs():
    """torch's runs in bf16: apart by half a percent of the distance gone (measured: 3.6e-4 of 0.074)."""
    got = trained(Optimizer(name="muon", lr=1e-2, muon={"ns_precision": "fp32"}))
    want = trained_by_torch(lambda ps: torch.optim.Muon(ps, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"), MATRICES)
    gone = max(float((want[n] - toy().get_parameter(n).detach()).abs().max()) for n in MATRICES)
    assert 0 < furthest({n: got[n] for n in MATRICES}, want) < 0.01 * gone


def by_svd(matrix: np.ndarray, coefficients: tuple[float, float, float], steps: int) -> np.ndarray:
    """Newton-Schulz on the singular values, in fp64."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    a, b, c = coefficients
    s = s / np.sqrt((s**2).sum())
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ vt


@pytest.mark.parametrize("shape", [(20, 8), (8, 20), (16, 16), (1, 9)])
@pytest.mark.parametrize("coefficients", [(3.4445, -4.7750, 2.0315), (2.0, -1.5, 0.5)])
def test_newton_schulz_maps_singular_values(shape, coefficients):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 100
    before = matrix.clone()
    got = optim_muon.newton_schulz(matrix, coefficients, 5, torch.float32)
    want = by_svd(matrix.double().numpy(), coefficients, 5)
    assert float((got.double() - torch.from_numpy(want)).abs().max()) <= 2e-6
    assert torch.equal(matrix, before)  # without nesterov it is the momentum itself
    if coefficients[0] > 3:
        assert np.linalg.svd(got.numpy())[1].min() > 0.68
        assert np.linalg.svd(got.numpy())[1].max() < 1.14


def test_muon_in_fp32_is_the_formula_in_fp64():
    """The whole algorithm in numpy fp64 with an SVD (measured: 2.5e-7)."""
    got = trained(Optimizer(name="muon", lr=1e-2, muon={"ns_precision": "fp32", "momentum": 0.9}))
    model = toy()
    want = {n: model.get_parameter(n).detach().double().numpy().copy() for n in MATRICES}
    average = {n: np.zeros_like(w) for n, w in want.items()}
    for step in range(1, STEPS + 1):
        given = gradients(model, step)
        for n in MATRICES:
            g = given[n].double().numpy()
            average[n] = 0.9 * average[n] + 0.1 * g
            update = by_svd(0.1 * g + 0.9 * average[n], (3.4445, -4.7750, 2.0315), 5)
            factor = 0.2 * math.sqrt(max(want[n].shape))
            want[n] = want[n] * (1 - rate(step) * 0.1) - rate(step) * factor * update
    assert furthest(got, want) <= 2e-6


def paper(x0, grads, *, steps_of_warmup, alpha, b1, b2, b3, eps, decay):  # one scalar weight, floats only
    """Algorithm 1 of arXiv 2409.03137 with its schedulers f_alpha and f_beta3."""
    x, m1, m2, v = x0, 0.0, 0.0, 0.0
    for t, g in enumerate(grads, 1):
        a_t = min(t * alpha / steps_of_warmup, alpha)
        mix = (1 - t / steps_of_warmup) * math.log(b3) + t / steps_of_warmup * math.log(b1)
        b3_t = min(math.exp(math.log(b1) * math.log(b3) / mix), b3) if t < steps_of_warmup else b3
        m1 = b1 * m1 + (1 - b1) * g
        m2 = b3_t * m2 + (1 - b3_t) * g
        v = b2 * v + (1 - b2) * g * g
        update = (m1 / (1 - b1**t) + a_t * m2) / (math.sqrt(v / (1 - b2**t)) + eps)
        x = x - rate(t) * (update + decay * x)
    return x


@pytest.mark.parametrize("warmup", [1, 10, 400])
def test_ademamix_is_the_papers_formula(warmup):
    """Beside plain Python floats, every weight on its own, after, across and inside the warm-ups (measured: 6e-7)."""
    slow = AdEMAMix(beta3=0.999, alpha=8.0)
    settings = Optimizer(name="ademamix", lr=1e-2, betas=(0.9, 0.95), ademamix=slow)
    got = trained(settings, lambda t: Mixing(alpha_at(t / warmup, 8.0), beta3_at(t / warmup, 0.999, 0.9)))
    model = toy()
    given = [gradients(model, step) for step in range(1, STEPS + 1)]
    for name, p in model.named_parameters():
        decay = 0.1 if name in DECAYED else 0.0
        constants = {"alpha": 8.0, "b1": 0.9, "b2": 0.95, "b3": 0.999, "eps": 1e-8, "decay": decay}
        flat = [g[name].double().flatten().tolist() for g in given]
        want = [
            paper(x0, [g[i] for g in flat], steps_of_warmup=warmup, **constants)
            for i, x0 in enumerate(p.detach().double().flatten().tolist())
        ]
        worst = float((got[name].double().flatten() - torch.tensor(want, dtype=torch.float64)).abs().max())
        assert worst <= 2e-6, (name, worst)


def test_ademamix_without_its_slow_average_is_adamw():
    got = trained(Optimizer(name="ademamix", lr=1e-2))
    assert furthest(got, trained(Optimizer(lr=1e-2))) <= 1e-6
    assert furthest(got, trained(Optimizer(name="ademamix", lr=1e-2), lambda t: Mixing(5.0, 0.9))) > 1e-2


def test_a_parameter_without_gradient_stays_and_does_not_count():
    for name in ("adamw", "muon", "ademamix"):
        model = toy()
        optimizer = optim.build(model, Optimizer(name=name, lr=1e-2))
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        model.blocks[0]["up"].weight.grad = torch.ones(20, 8)
        optimizer.at(1e-2, Mixing(1.0, 0.99))
        optimizer.step()
        changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        assert changed == {"blocks.0.up.weight"}
        assert {k.rpartition(".")[0] for k, t in optimizer.state_tensors().items() if t.any()} == changed
