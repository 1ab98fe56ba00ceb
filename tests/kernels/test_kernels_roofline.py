"""The roofline's counts: bytes of eager torch as torch's dispatcher sees them, operations by torch's counter, floors by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from gristmill.trainer.architecture import read_preset
from gristmill.trainer.kernels import roofline
from gristmill.trainer.kernels import roofline_passes as passes
from gristmill.trainer.layers import RMSNorm
from gristmill.trainer.ops import XIELUFunction, document_mask
from gristmill.trainer.optim_ademamix import AdEMAMix
from gristmill.trainer.optim_muon import newton_schulz
from gristmill.trainer.rope import rotate


class Traffic(TorchDispatchMode):
    """Bytes of all operations' inputs and outputs that move data; views do not."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not any(a.alias_info and not a.alias_info.is_write for a in func._schema.arguments) and not func.is_view:
            read, written = ([t for t in flat(x) if t.numel() > 1] for x in ((args, kwargs), out))
            size = sum(t.numel() * t.element_size() for t in read + written)
            if any(a.alias_info and a.alias_info.is_write for a in func._schema.arguments) and not written:
                for a, value in zip(func._schema.arguments, args, strict=False):  # in place on a list: written too
                    if a.alias_info and a.alias_info.is_write:
                        size += sum(t.numel() * t.element_size() for t in flat(value))
            self.bytes += size
            self.names.append(f"{func} {size}")
        return out


def flat(x: Any) -> list[Tensor]:
    if isinstance(x, Tensor):
        return [x]
    if isinstance(x, dict):
        return flat(list(x.values()))
    return [t for item in x for t in flat(item)] if isinstance(x, (list, tuple)) else []


def traffic(run: Callable[[], Any]) -> Traffic:
    with Traffic() as counted:
        run()
    return counted


N, C = 512, 256


def bf16(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16().requires_grad_()


def both(forward: Callable[[], Tensor]) -> tuple[Traffic, Traffic]:
    """Traffic of a call and of its backward pass."""
    results: list[Tensor] = []
    ahead = traffic(lambda: results.append(forward()))
    gradient = torch.ones_like(results[0])
    return ahead, traffic(lambda: results[0].backward(gradient))


def of(name: str, rows: Any) -> float:
    (found,) = [c for c in rows if c.name == name]
    return sum(p.bytes for p in found.eager)


def eager_ways() -> dict[str, tuple[Callable[[], Tensor], Any]]:
    x, gate, a, b = bf16(N, C), bf16(N, C), bf16(1), bf16(1)
    q, tables = bf16(1, N, 6, 64), torch.randn(1, N, 64)
    return {
        "swiglu": (lambda: F.silu(gate) * x, list(passes.activations(N, C, "swiglu"))),
        "relu2": (lambda: F.relu(x).square(), list(passes.activations(N, C, "relu2"))),
        "xielu": (lambda: XIELUFunction.apply(x, a, b), list(passes.activations(N, C, "xielu"))),
        "rope_qk": (lambda: rotate(q, tables, tables), list(passes.rope(N, 4, 2, 64, False))),
    }


@pytest.mark.parametrize("name", ["swiglu", "relu2", "xielu", "rope_qk"])
def test_eager_bytes(name: str) -> None:
    forward, rows = eager_ways()[name]
    """On the CPU, where these are the operations that a GPU gets. In the sheet every array counts once an operation."""
    for counted, row in zip(both(forward), (name, f"{name} backward"), strict=True):
        assert counted.bytes == pytest.approx(of(row, rows), rel=0.15), "\n".join(counted.names)


def test_eager_norms_cast() -> None:
    """F.rms_norm is one operation on a GPU and seven on the CPU: the casts around it are the same."""
    norm, x = RMSNorm(C, 1e-5).bfloat16(), bf16(N, C)
    for counted, sizes in zip(both(lambda: norm(x)), (passes.NORM_EAGER, passes.NORM_EAGER_BACK), strict=True):
        casts = sum(int(name.split()[-1]) for name in counted.names if name.startswith("aten._to_copy"))
        assert casts == pytest.approx((sizes[0] + sizes[-1]) * N * C, rel=0.01)
        assert counted.bytes > sum(sizes) * N * C  # the sheet favours torch


def test_eager_cross_entropy() -> None:
    v = 1024
    x, weight, labels = bf16(N, C), bf16(v, C), torch.randint(v, (N,))

    def forward() -> Tensor:
        logits = (x @ weight.t()).float()
        lse = torch.logsumexp(logits, 1)
        return F.cross_entropy(logits, labels, reduction="none") + 1e-4 * lse * lse

    with FlopCounterMode(display=False) as flops:
        forward().sum().backward()
    rows = list(passes.cross_entropy(N, C, v))
    assert flops.get_total_flops() == sum(p.flops for row in rows for p in row.eager if p.unit == "bf16")
    ours = sum(p.flops for row in rows for p in row.ours if p.unit == "bf16")
    assert ours * 3 == flops.get_total_flops() * 4  # the logits once more
    for counted, row in zip(both(forward), rows, strict=True):
        # torch.logsumexp is four kernels in one operation, and nll_loss reads one element a position
        seen = sum(
            {"aten.logsumexp.default": 24 * N * v, "aten.nll_loss_forward.default": 0}.get(name, int(size))
            for name, size in (line.split() for line in counted.names)
        )
        assert seen == pytest.approx(sum(p.bytes for p in row.eager), rel=0.15), "\n".join(counted.names)


def test_eager_optimizers() -> None:
    size = 4096
    weight = torch.nn.Parameter(torch.randn(size))
    gradient = torch.randn(size)
    weight.grad = gradient
    group = {"params": [weight], "lr": 1e-3, "weight_decay": 0.1}
    optimizer = AdEMAMix([group], betas=(0.9, 0.95), beta3=0.999, alpha=5.0, eps=1e-8)
    names = ("exp_avg", "exp_avg_slow", "exp_avg_sq")
    optimizer.state[weight] = {name: torch.zeros(size) for name in names} | {"step": torch.zeros(())}

    def step() -> None:
        torch._foreach_mul_([gradient], torch.tensor(0.5))
        optimizer.step()

    counted = traffic(step)
    assert counted.bytes == pytest.approx(of("ademamix", passes.optimizers(size)), rel=0.1), "\n".join(counted.names)


@pytest.mark.parametrize(("rows", "columns"), [(256, 640), (640, 256)])
def test_newton_schulz_operations(rows: int, columns: int) -> None:
    with FlopCounterMode(display=False) as flops:
        newton_schulz(torch.randn(rows, columns), (3.0, -4.0, 2.0), 5, torch.float32)
    (row,) = passes.newton_schulz(rows, columns)
    assert flops.get_total_flops() == sum(p.flops for p in row.eager if p.unit == "bf16")
    small, large = 256, 640
    triangle = 3 / 4  # of 2 x 2 tiles of 128, three are computed
    ours = 5 * (triangle * (2 * small**2 * large + 2 * small**3) + 2 * small**2 * large)
    assert sum(p.flops for p in row.ours if p.unit == "bf16") == ours


def test_attention_counts_the_documents_triangles() -> None:
    length, document = 64, 16
    position = torch.arange(length).expand(2, length) % document
    pairs = int(document_mask(position).sum())
    ahead, back = passes.attention(2 * length, length, document, 4, 2, 8)
    assert sum(p.flops for p in ahead.ours) == 2 * 2 * 8 * 4 * pairs  # two products, two operations, D, H
    assert sum(p.flops for p in back.ours) == 7 * 2 * 8 * 4 * pairs
    assert sum(p.flops for p in ahead.eager) == 2 * 2 * 8 * 4 * 2 * length * length


def test_floor() -> None:
    """The slower of memory and arithmetic, pass by pass; figures of the data sheets."""
    assert roofline.floor([passes.Pass(3.35e12)], "h100") == pytest.approx(1.0)
    assert roofline.floor([passes.Pass(2.039e12, 1e6)], "a100") == pytest.approx(1.0)
    assert roofline.floor([passes.Pass(1, 989.4e12, "bf16"), passes.Pass(1, 66.9e12)], "h100") == pytest.approx(2.0)


@pytest.mark.parametrize("preset", roofline.PRESETS)
def test_no_kernel_moves_more_than_eager(preset: str) -> None:
    rows = roofline.sheet(preset)
    assert len(rows) >= 14
    for r in rows:
        assert r["saved_to_eager"] >= 0, r["kernel"]
        assert r["floor_a100_us"] > r["floor_h100_us"] > 0
    text = roofline.render(rows)
    assert text.count("\n") == len(rows) + 1


def test_the_presets_have_their_kernels() -> None:
    names = {
        preset: {c.name for c in passes.costs(read_preset(preset), 4096, 4096, 512)} for preset in roofline.PRESETS
    }
    assert {"xielu", "rope_qk with QK-norm"} <= names["apertus-8b"]
    assert {"swiglu", "rope_qk"} <= names["llama-3-8b"]
    assert "xielu" not in names["llama-3-8b"]
