"""Muon: momentum whose update is made nearly orthogonal by Newton-Schulz iterations, for matrices of hidden layers.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon): the update U S V^T becomes about U V^T, so that every direction
of a matrix moves alike. Conventions are those of torch.optim.Muon, to which bf16 is equal bit for bit on one device:
the momentum is an average, weight decay is lr x weight_decay without the shape's factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gristmill.trainer import optim_schema
from gristmill.trainer.gradients import unless
from gristmill.trainer.optim_shards import Layout, from_owner, to_owner
from gristmill.trainer.parallel.mesh import World

EPS = 1e-7  # smallest norm divided by, as Jordan's
STATE = ("momentum_buffer",)
PRECISION = {"fp32": torch.float32, "bf16": torch.bfloat16}
NewtonSchulz = Callable[[Tensor, tuple[float, float, float], int, torch.dtype], Tensor]


def newton_schulz(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, dtype: torch.dtype) -> Tensor:
    """(R, C) -> (R, C) in `dtype`: singular values s / ||matrix|| mapped `steps` times by a s + b s^3 + c s^5.

    Works on the wide orientation, so that the Gram matrix is the smaller one: 2 steps (2 m^2 M + m^3) operations for
    m = min(R, C), M = max(R, C).
    """
    a, b, c = coefficients
    tall = matrix.size(0) > matrix.size(1)
    x = matrix.to(dtype)
    x = x.mT if tall else x
    x = x / x.norm().clamp(min=EPS)  # the Frobenius norm bounds the largest singular value
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def shape_factor(scale: str, rows: int, columns: int) -> float:
    """The learning rate's factor for a shape: 0.2 sqrt(max) (arXiv 2502.16982, eq. 4) or sqrt(max(1, rows / columns)).

    0.2 is AdamW's usual RMS of an update; an orthogonal R x C matrix has an RMS of 1 / sqrt(max(R, C)).
    """
    if scale == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))


def cost(shape: tuple[int, ...]) -> int:
    """Newton-Schulz' operations per step for a shape: 4 m^2 M + 2 m^3 for m = min, M = max."""
    small, large = sorted(shape)
    return 4 * small**2 * large + 2 * small**3


class Muon(torch.optim.Optimizer):
    """Groups need "lr" and "weight_decay". Parameters are each rank's local parts of matrices; state must be there.

    All is element by element but Newton-Schulz, which needs the whole matrix. With several processes, rounds of one
    matrix per rank, the costliest first so that those of a round cost about the same, go to their owners and back in the
    precision of Newton-Schulz: the result is that of one process, and a rank holds one whole matrix at a time.

    `iterate` is `newton_schulz` or what takes its place (kernels.newton_schulz).
    """

    found_inf: Tensor | None = None  # set by who steps, as for torch's optimizers: where 1, nothing changes

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        settings: optim_schema.Muon,
        layouts: Mapping[Tensor, Layout],
        world: World,
        iterate: NewtonSchulz = newton_schulz,
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self.settings, self.layouts, self.world, self.iterate = settings, layouts, world, iterate

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        work = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        work.sort(key=lambda row: -cost(self.layouts[row[0]].shape))  # stable: ties as in the groups, on every rank
        skip = None if self.found_inf is None else self.found_inf != 0
        for i in range(0, len(work), self.world.size):
            matrices = work[i : i + self.world.size]
            with unless(skip, [t for p, _ in matrices for t in (p, *self.state[p].values())]):
                self._round(matrices)

    def _round(self, matrices: list[tuple[Tensor, dict[str, Any]]]) -> None:
        updates = self.orthogonal([self._momentum(p) for p, _ in matrices], [self.layouts[p] for p, _ in matrices])
        for (p, group), update in zip(matrices, updates, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update, alpha=-group["lr"] * shape_factor(self.settings.scale, *self.layouts[p].shape))

    def _momentum(self, p: Tensor) -> Tensor:
        c, average = self.settings, self.state[p]["momentum_buffer"]
        assert p.grad is not None
        average.lerp_(p.grad, 1 - c.momentum)
        return p.grad.lerp(average, c.momentum) if c.nesterov else average

    def orthogonal(self, parts: list[Tensor], rows: list[Layout]) -> list[Tensor]:
        """This rank's parts of the directions of a round's matrices."""
        c = self.settings
        dtype = PRECISION[c.ns_precision]
        if self.world.size == 1:
            return [self.iterate(part, c.ns_coefficients, c.ns_steps, dtype) for part in parts]
        whole = to_owner([part.to(dtype) for part in parts], rows, self.world)
        if whole is not None:
            whole = self.iterate(whole, c.ns_coefficients, c.ns_steps, dtype)
        return from_owner(whole, rows, parts[0].new_empty(0, dtype=dtype), self.world)
