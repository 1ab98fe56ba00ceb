"""The row-wise kernels in plain torch, in the dtype of their inputs: oracles in fp64, and what a GPU run is compared to.

Gradients are autograd's. Formulas and sources: trainer.layers and trainer.rope, which round to the model's dtype in between.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

XIELU_BETA = 0.5  # arXiv 2411.13010, section 3


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(normed, x + residual)."""
    total = x + residual
    return rms_norm(total, weight, eps), total


def rope(x_BTHD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor) -> Tensor:
    """Dimension i turns with i + D/2."""
    first, second = x_BTHD.chunk(2, -1)
    return x_BTHD * cos_BTD.unsqueeze(2) + torch.cat([-second, first], -1) * sin_BTD.unsqueeze(2)


def rope_qk(
    q_BTHD: Tensor,
    k_BTGD: Tensor,
    cos_BTD: Tensor,
    sin_BTD: Tensor,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """RMSNorm of each head where it has a weight, then the rotation."""
    q_BTHD = q_BTHD if q_weight is None else rms_norm(q_BTHD, q_weight, eps)
    k_BTGD = k_BTGD if k_weight is None else rms_norm(k_BTGD, k_weight, eps)
    return rope(q_BTHD, cos_BTD, sin_BTD), rope(k_BTGD, cos_BTD, sin_BTD)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return gate * torch.sigmoid(gate) * up


def relu2(x: Tensor, up: Tensor | None = None) -> Tensor:
    y = F.relu(x).square()
    return y if up is None else y * up


def xielu(x: Tensor, alpha_p: Tensor, alpha_n: Tensor, up: Tensor | None = None) -> Tensor:
    """softplus(p) x^2 + x/2 for x > 0, else (1/2 + softplus(n)) (e^x - 1 - x) + x/2."""
    positive = F.softplus(alpha_p) * x.square()
    negative = (XIELU_BETA + F.softplus(alpha_n)) * (torch.expm1(x.clamp(max=0)) - x)
    y = torch.where(x > 0, positive, negative) + XIELU_BETA * x
    return y if up is None else y * up
