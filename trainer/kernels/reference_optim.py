"""AdamW, AdEMAMix and Newton-Schulz in plain torch at fp64: what the kernels' tests compare with.

Written from the papers' formulas, not from the kernels: trainer.optim_ademamix, torch.optim.AdamW and trainer.optim_muon
are compared with as well.
"""

from __future__ import annotations

import torch
from torch import Tensor


def adam(
    weight: Tensor,
    grad: Tensor,
    moments: tuple[Tensor, ...],
    step: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    beta3: float = 0.0,
    alpha: float = 0.0,
    scale: float = 1.0,
) -> tuple[Tensor, ...]:
    """(weight, moments...) after update number `step` (from 1), fp64. Moments: fast, square and, for AdEMAMix, slow."""
    g = grad.double() * scale
    fast, square, *slow = (m.double() for m in moments)
    fast = betas[0] * fast + (1 - betas[0]) * g
    square = betas[1] * square + (1 - betas[1]) * g * g
    slow = [beta3 * s + (1 - beta3) * g for s in slow]
    direction = fast / (1 - betas[0] ** step) + sum((alpha * s for s in slow), torch.zeros_like(g))
    root = (square / (1 - betas[1] ** step)).sqrt() + eps
    return weight.double() * (1 - lr * weight_decay) - lr * direction / root, fast, square, *slow


def newton_schulz(matrix: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """(..., R, C) by singular values, fp64: s / ||matrix|| mapped `steps` times by a s + b s^3 + c s^5."""
    a, b, c = coefficients
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm(dim=-1, keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        values = a * values + b * values**3 + c * values**5
    return left @ torch.diag_embed(values) @ right
