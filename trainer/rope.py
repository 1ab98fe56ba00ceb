"""Rotary position embedding: frequencies under no scaling, YaRN or Llama 3's scaling, and the rotation itself.

RoPE (Su et al., arXiv 2104.09864) turns dimension i of a head together with i + D/2 by position x frequency, Llama's
pairing. ABF (arXiv 2309.16039) is a larger theta.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gristmill.trainer.architecture import Llama3Rope, Model, Yarn


def wide(x: Tensor) -> Tensor:
    """`x` in fp32, or as it is in fp64."""
    return x if x.dtype == torch.float64 else x.float()


def frequencies(c: Model, dtype: torch.dtype = torch.float32) -> tuple[Tensor, float]:
    """(D/2,) radians per position, and the factor on cos and sin (1 but for YaRN)."""
    plain = c.rope_theta ** (-torch.arange(0, c.head_dim, 2, dtype=dtype) / c.head_dim)
    match c.rope_scaling:
        case None:
            return plain, 1.0
        case Yarn() as yarn:
            return yarn_frequencies(plain, yarn, c.rope_theta, c.head_dim)
        case Llama3Rope() as llama3:
            return llama3_frequencies(plain, llama3), 1.0


def yarn_frequencies(plain: Tensor, s: Yarn, theta: float, head_dim: int) -> tuple[Tensor, float]:
    """NTK-by-parts (YaRN, arXiv 2309.00071, section 3.2) and the attention factor (section 3.3).

    Dimension d turns r(d) = original length / wavelength times. The ramp between beta_fast and beta_slow turns runs
    linearly over the dimension's index, rounded outwards, as in the authors' code.
    """

    def index_of(turns: float) -> float:
        """The dimension pair that turns `turns` times over the original length."""
        return head_dim * math.log(s.original_seq_len / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(index_of(s.beta_fast)), 0)
    high = min(math.ceil(index_of(s.beta_slow)), head_dim - 1)
    slowed = ((torch.arange(len(plain), dtype=plain.dtype) - low) / max(high - low, 0.001)).clamp(0, 1)
    attention = s.attention_factor if s.attention_factor is not None else 0.1 * math.log(s.factor) + 1.0
    return plain / s.factor * slowed + plain * (1 - slowed), attention


def llama3_frequencies(plain: Tensor, s: Llama3Rope) -> Tensor:
    """Llama 3.1: f / factor where the wavelength exceeds original / low, f where it is below original / high.

    Between the two, (1 - t) f / factor + t f with t = (original / wavelength - low) / (high - low).
    """
    turns = s.original_seq_len * plain / (2 * math.pi)  # original / wavelength
    kept = ((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)).clamp(0, 1)
    return (1 - kept) * plain / s.factor + kept * plain


def rotary_table(c: Model, length: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """cos and sin of position x frequency, each (length, D)."""
    frequency, factor = frequencies(c, dtype)
    angle = torch.outer(torch.arange(length, dtype=dtype), frequency)
    angle_TD = torch.cat([angle, angle], dim=-1)
    cos_TD, sin_TD = angle_TD.cos(), angle_TD.sin()
    return (cos_TD, sin_TD) if factor == 1.0 else (cos_TD * factor, sin_TD * factor)


def rotate(x_BTHD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor) -> Tensor:
    """Rotary position embedding, computed in fp32."""
    first, second = wide(x_BTHD).chunk(2, dim=-1)
    turned_BTHD = torch.cat([-second, first], dim=-1)
    return (wide(x_BTHD) * cos_BTD.unsqueeze(2) + turned_BTHD * sin_BTD.unsqueeze(2)).to(x_BTHD.dtype)
