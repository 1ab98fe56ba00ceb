"""Muon: momentum whose update is made nearly orthogonal by Newton-Schulz iterations, for matrices of hidden layers.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon): the update U S V^T becomes about U V^T, so that every direction
of a matrix moves alike. Conventions are those of torch.optim.Muon, to which bf16 is equal bit for bit on one device:
the momentum is an average, weight decay is lr x weight_decay without the shape's factor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from gristmill.trainer import optim_schema

EPS = 1e-7  # smallest norm divided by, as Jordan's
STATE = ("momentum_buffer",)
PRECISION = {"fp32": torch.float32, "bf16": torch.bfloat16}


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


class Muon(torch.optim.Optimizer):
    """Groups need "lr" and "weight_decay"; every parameter must have two dimensions.

    Only `orthogonal` looks at a whole matrix, all else is element by element: a sharded version gathers there.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], settings: optim_schema.Muon) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self.settings = settings
        assert all(p.dim() == 2 for group in self.param_groups for p in group["params"])

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, p.grad, group["lr"], group["weight_decay"])

    def _step(self, p: Tensor, grad: Tensor, lr: float, weight_decay: float) -> None:
        c = self.settings
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        average = state["momentum_buffer"]
        average.lerp_(grad, 1 - c.momentum)
        update = self.orthogonal(grad.lerp(average, c.momentum) if c.nesterov else average)
        p.mul_(1 - lr * weight_decay)
        p.add_(update, alpha=-lr * shape_factor(c.scale, *p.shape))

    def orthogonal(self, update: Tensor) -> Tensor:
        """The direction of a step for a whole matrix."""
        c = self.settings
        return newton_schulz(update, c.ns_coefficients, c.ns_steps, PRECISION[c.ns_precision])
