"""Inputs, comparisons and planted faults of the attention kernels' tests."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from gristmill.trainer.kernels import attention, attention_backward, reference_attention
from gristmill.trainer.kernels.attention_tiles import Tiles

# Largest error by largest magnitude, 2 to 4 times what is seen: P and dS are rounded to the dtype.
LIMIT = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SIXTEEN = Tiles(16, 16)
FAULTS: Iterator[int] = itertools.count()


class Case(NamedTuple):
    """Documents of each row, heads, key heads, head_dim and tiles of the forward, dQ and dK/dV kernels."""

    documents: list[list[int]]
    heads: int = 2
    groups: int = 1
    head_dim: int = 16
    tiles: tuple[Tiles, Tiles, Tiles] = (Tiles(32, 32),) * 3


class Results(NamedTuple):
    y: Tensor
    lse: Tensor
    dq: Tensor
    dk: Tensor
    dv: Tensor


def positions(documents: list[list[int]]) -> Tensor:
    return torch.stack([torch.cat([torch.arange(n) for n in row]) for row in documents])


def inputs(case: Case, dtype: torch.dtype, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """[q, k, v, dy] and positions."""
    generator = torch.Generator().manual_seed(seed)
    position_BT = positions(case.documents)
    heads = (case.heads, case.groups, case.groups, case.heads)
    shapes = [(*position_BT.shape, n, case.head_dim) for n in heads]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes], position_BT


def oracle(tensors: list[Tensor], position_BT: Tensor, scale: float | None = None) -> Results:
    """In fp64, from the same rounded inputs."""
    q, k, v, dy = (x.double() for x in tensors)
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    y, lse = reference_attention.attention(leaves[0], leaves[1], leaves[2], position_BT, scale)
    y.backward(dy)  # type: ignore[no-untyped-call]
    dq, dk, dv = (x.grad for x in leaves)
    assert dq is not None
    assert dk is not None
    assert dv is not None
    return Results(y.detach(), lse.detach(), dq, dk, dv)


def kernels(
    tensors: list[Tensor],
    position_BT: Tensor,
    case: Case,
    scale: float | None = None,
    forward: ModuleType = attention,
    backward: ModuleType = attention_backward,
    visited: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Results:
    """The launchers' results; a module with a planted fault may stand for either."""
    q, k, v, dy = tensors
    bounds = attention.document_bounds(position_BT)
    scale = case.head_dim**-0.5 if scale is None else scale
    y, lse = forward.forward(q, k, v, bounds, scale, tiles=case.tiles[0], visited=visited and visited[0])
    gradients = backward.backward(
        dy, q, k, v, y, lse, bounds, scale, tiles=case.tiles[1:], visited=visited and visited[1:]
    )
    return Results(y, lse, *gradients)


def errors(got: Results, want: Results) -> dict[str, float]:
    """Largest error of each by its largest magnitude, at least 1: gradients cancel to 0 in documents of one token."""
    found = {}
    for name, a, b in zip(Results._fields, got, want, strict=True):
        assert a.shape == b.shape
        difference = (a.double() - b).abs().nan_to_num(nan=float("inf"), posinf=float("inf"))
        found[name] = (difference.max() / b.abs().max().clamp_min(1.0)).item()
    return found


def worst(got: Results, want: Results, dtype: torch.dtype) -> float:
    """The largest error in units of the dtype's limit: at most 1 passes. The log-sum-exp is fp32 whatever the dtype."""
    limits = {"lse": LIMIT[torch.float32]}
    return max(error / limits.get(name, LIMIT[dtype]) for name, error in errors(got, want).items())


def planted(module: ModuleType, old: str, new: str, folder: Path) -> ModuleType:
    """`module` with one piece of its source replaced, under another name and with ops of its own."""
    source = Path(str(module.__file__)).read_text()
    assert source.count(old) == 1, f"{old!r} is {source.count(old)} times in {module.__name__}"
    name = f"planted{next(FAULTS)}"
    path = folder / f"{name}.py"
    path.write_text(source.replace(old, new).replace('"gristmill::', f'"{name}::'))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    changed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(changed)
    return changed


def walked(case: Case, forward: ModuleType = attention, backward: ModuleType = attention_backward) -> list[int]:
    """Tiles that the three kernels visit."""
    tensors, position_BT = inputs(case, torch.float32)
    visited = [torch.zeros(4096, dtype=torch.int32) for _ in range(3)]
    kernels(tensors, position_BT, case, None, forward, backward, (visited[0], visited[1], visited[2]))
    return [int(x.sum()) for x in visited]


def needed(case: Case) -> list[int]:
    """Tiles with a visible pair, for the three kernels."""
    return [case.heads * reference_attention.needed_tiles(positions(case.documents), t.m, t.n) for t in case.tiles]
