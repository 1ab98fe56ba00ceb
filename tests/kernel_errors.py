"""Errors of kernels against their oracles: the check, and the table of the worst ones that a run of tests/kernels ends with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

# {what: (the kernel's, the oracle's[, terms whose difference it is: their rounding, not the result's, bounds the error])}
Pairs = dict[str, tuple[Tensor | None, ...]]

# Half a unit in the last place of the largest result, and what fp32 arithmetic before the rounding moves it by.
LIMIT = {torch.float32: 1e-6, torch.float16: 1.02 * 2**-11, torch.bfloat16: 1.02 * 2**-8}
DTYPES = list(LIMIT)


@dataclass
class Worst:
    forward: float = 0.0
    backward: float = 0.0
    shapes: set[object] = field(default_factory=set)


WORST: dict[tuple[str, torch.dtype], Worst] = {}


def error(actual: Tensor, oracle: Tensor, terms: Tensor | None = None) -> float:
    """Largest difference by the largest magnitude of the oracle or of its terms; inf where a number is not finite."""
    assert actual.shape == oracle.shape
    if not oracle.numel():
        return 0.0
    difference = (actual.double() - oracle.double()).abs().max().item()
    largest = max(t.double().abs().max().item() for t in (oracle, oracle if terms is None else terms))
    if difference == 0:
        return 0.0
    return difference / max(largest, 1e-30) if difference < float("inf") else float("inf")


def check(
    kernel: str, dtype: torch.dtype, shape: object, forward: Pairs, backward: Pairs, limit: float | None = None
) -> None:
    """Asserts that errors are under the dtype's limit and of the expected dtype, then notes them for the table."""
    bound = LIMIT[dtype] if limit is None else limit
    found = [0.0, 0.0]
    for i, pairs in enumerate((forward, backward)):
        for what, (actual, oracle, *terms) in pairs.items():
            assert actual is not None, f"{kernel} has no {what}"
            assert oracle is not None
            assert actual.dtype == dtype, f"{kernel} {what} is {actual.dtype}"
            of = error(actual, oracle, *terms)
            assert of <= bound, f"{kernel} {shape} {dtype}: {what} is off by {of:.3g} (limit {bound:.3g})"
            found[i] = max(found[i], of)
    note(kernel, dtype, shape, *found)


def note(kernel: str, dtype: torch.dtype, shape: object, forward: float, backward: float = 0.0) -> None:
    """Errors for the table, of a test that judges them itself."""
    worst = WORST.setdefault((kernel, dtype), Worst())
    worst.forward, worst.backward = max(worst.forward, forward), max(worst.backward, backward)
    worst.shapes.add(shape)


def table() -> list[str]:
    """Lines of the worst errors so far."""
    lines = [f"{'kernel':24} {'dtype':9} {'forward':>9} {'backward':>9} {'shapes':>6}"] if WORST else []
    for (kernel, dtype), worst in WORST.items():
        word = str(dtype).removeprefix("torch.")
        lines.append(f"{kernel:24} {word:9} {worst.forward:9.1e} {worst.backward:9.1e} {len(worst.shapes):6}")
    return lines


@contextmanager
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Outputs that launchers make in this block lie between canaries, and begin as NaN: a write outside is asserted."""
    made: list[tuple[Tensor, int]] = []
    empty, canary, room = torch.empty, 12345.0, 4096

    def inside(*shape: object, dtype: torch.dtype = torch.float32, device: Any = None) -> Tensor:
        size = torch.Size(shape[0] if isinstance(shape[0], (tuple, list)) else shape)  # type: ignore[arg-type]
        whole = empty(size.numel() + 2 * room, dtype=dtype, device=device).fill_(canary)
        made.append((whole, size.numel()))
        whole[room : room + size.numel()] = float("nan")
        return whole[room : room + size.numel()].view(size)

    with monkeypatch.context() as patch:
        patch.setattr(
            torch, "empty", lambda *a, **k: inside(*(a if len(a) and not isinstance(a[0], int) else [a]), **k)
        )
        patch.setattr(torch, "empty_like", lambda t: inside(t.shape, dtype=t.dtype, device=t.device))
        yield
    assert made, "no output was made"
    for whole, size in made:
        expected = torch.tensor(canary).to(whole.dtype)
        assert bool((whole[:room] == expected).all()), "written before an output"
        assert bool((whole[room + size :] == expected).all()), "written behind an output"


def between_nans(x: Tensor, apart: int = 5) -> Tensor:
    """`x` as a view of wider rows, whose other elements are NaN: a wrong mask shows."""
    width = x.shape[-1]
    whole = torch.full((*x.shape[:-1], width + 2 * apart), float("nan"), dtype=x.dtype)
    whole[..., apart : apart + width] = x
    return whole[..., apart : apart + width]
