"""The decoder's parts: RMSNorm, attention inside each document, the MLP and the residual block, in plain torch.

Head counts are read from what a projection returns, so a projection that holds only some heads (tensor parallelism)
needs no other code. Letters of the shape suffixes: see `model`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gristmill.trainer.architecture import Model
from gristmill.trainer.rope import rotate, wide

XIELU_BETA = 0.5  # slope at 0 (Huang and Schlag, arXiv 2411.13010, section 3)
XIELU_ALPHA = 0.8  # both curvatures at the start (there, section 4)


@dataclass(frozen=True)
class Layout:
    """What attention needs to know of a micro batch, built once per forward pass."""

    cos_BTD: Tensor
    sin_BTD: Tensor
    lengths: list[int] | None  # pieces of the N flattened positions (CPU)
    mask_B1TT: Tensor | None  # True where a query may look (elsewhere)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, over the last dimension, in fp32 (Zhang and Sennrich, arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(wide(x), (x.shape[-1],), self.weight, self.eps).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query causal attention that stays inside a piece."""

    def __init__(self, c: Model, layer: int) -> None:
        super().__init__()
        self.head_dim, self.rope = c.head_dim, c.uses_rope(layer)
        self.q = nn.Linear(c.hidden, c.heads * c.head_dim, bias=False)
        self.k = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=False)
        self.v = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=False)
        self.o = nn.Linear(c.heads * c.head_dim, c.hidden, bias=False)
        self.q_norm = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else None
        self.k_norm = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else None

    def forward(self, x_BTC: Tensor, layout: Layout) -> Tensor:
        q_BTHD, k_BTGD, v_BTGD = (f(x_BTC).unflatten(-1, (-1, self.head_dim)) for f in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHD, k_BTGD = self.q_norm(q_BTHD), self.k_norm(k_BTGD)
        if self.rope:
            q_BTHD, k_BTGD = (rotate(x, layout.cos_BTD, layout.sin_BTD) for x in (q_BTHD, k_BTGD))
        return self.o(attend(q_BTHD, k_BTGD, v_BTGD, layout).flatten(-2))  # type: ignore[no-any-return]


class XIELUFunction(torch.autograd.Function):
    """xIELU and its gradients by hand, so that only the input is kept (autograd would keep over four arrays of its size)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: Tensor, q: Tensor) -> Tensor:
        ctx.save_for_backward(x, p, q)
        y = wide(x)
        positive = F.softplus(p) * y * y
        negative = (XIELU_BETA + F.softplus(q)) * (torch.expm1(y.clamp(max=0)) - y)  # clamped: no inf where x > 0
        return (torch.where(y > 0, positive, negative) + XIELU_BETA * y).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        x, p, q = ctx.saved_tensors
        y, g = wide(x), wide(gradient)
        above, grown = y > 0, torch.expm1(y.clamp(max=0))
        slope = torch.where(above, 2 * F.softplus(p) * y, (XIELU_BETA + F.softplus(q)) * grown) + XIELU_BETA
        of_p = (g * torch.where(above, y * y, 0.0)).sum() * torch.sigmoid(p)
        of_q = (g * torch.where(above, 0.0, grown - y)).sum() * torch.sigmoid(q)
        return (g * slope).to(x.dtype), of_p, of_q


class XIELU(nn.Module):
    """xIELU: a x^2 + b x for x > 0, else n (e^x - 1 - x) + b x, with b = 0.5, a = softplus(p), n = b + softplus(q).

    p and q are learnt, one each per layer (arXiv 2411.13010, section 3); computed in fp32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alpha_p = nn.Parameter(torch.empty(1))  # one element, not none: FSDP2 shards the first dimension
        self.alpha_n = nn.Parameter(torch.empty(1))

    def forward(self, x: Tensor) -> Tensor:
        return XIELUFunction.apply(x, self.alpha_p, self.alpha_n)  # type: ignore[no-any-return, no-untyped-call]


def xielu_start(name: str) -> float:
    """Initial `alpha_p` or `alpha_n`: the inverse softplus that makes the curvature 0.8."""
    return math.log(math.expm1(XIELU_ALPHA if name.endswith("alpha_p") else XIELU_ALPHA - XIELU_BETA))


class SiLU(nn.Module):
    """x sigmoid(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


class SquaredReLU(nn.Module):
    """max(x, 0)^2 (So et al., Primer, arXiv 2109.08668)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": SiLU, "relu2": SquaredReLU, "xielu": XIELU}


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)), or down(act(up(x))) without a gate."""

    def __init__(self, c: Model) -> None:
        super().__init__()
        self.gate = nn.Linear(c.hidden, c.ffn, bias=False) if c.gated else None
        self.up = nn.Linear(c.hidden, c.ffn, bias=False)
        self.down = nn.Linear(c.ffn, c.hidden, bias=False)
        self.act = ACTIVATIONS[c.activation]()

    def forward(self, x_BTC: Tensor) -> Tensor:
        inner = self.act(self.up(x_BTC)) if self.gate is None else self.act(self.gate(x_BTC)) * self.up(x_BTC)
        return self.down(inner)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm residual block: attention, then the MLP."""

    def __init__(self, c: Model, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(c.hidden, c.norm_eps)
        self.attention = Attention(c, layer)
        self.ffn_norm = RMSNorm(c.hidden, c.norm_eps)
        self.ffn = MLP(c)

    def forward(self, x_BTC: Tensor, layout: Layout) -> Tensor:
        x_BTC = x_BTC + self.attention(self.attention_norm(x_BTC), layout)
        return x_BTC + self.ffn(self.ffn_norm(x_BTC))  # type: ignore[no-any-return]


def attend(q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, layout: Layout) -> Tensor:
    """(B, T, H, D) attention, causal within pieces. Both ways give the same numbers up to rounding."""
    if layout.lengths is None:
        q_BHTD, k_BGTD, v_BGTD = (x.transpose(1, 2) for x in (q_BTHD, k_BTGD, v_BTGD))
        y_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BGTD, v_BGTD, attn_mask=layout.mask_B1TT, enable_gqa=True)
        return y_BHTD.transpose(1, 2)
    # split, not slices: the backward pass of a slice fills a whole zero tensor per piece
    q, k, v = (x.flatten(0, 1).transpose(0, 1)[None].split(layout.lengths, 2) for x in (q_BTHD, k_BTGD, v_BTGD))
    y_1HND = torch.cat(
        [
            F.scaled_dot_product_attention(*piece, is_causal=True, enable_gqa=True)
            for piece in zip(q, k, v, strict=True)
        ],
        2,
    )
    return y_1HND[0].transpose(0, 1).reshape(q_BTHD.shape)


def piece_lengths(position_BT: Tensor) -> list[int]:
    """Lengths of the pieces of the flattened N positions; a row's start always begins a piece."""
    starts = (position_BT.flatten() == 0).nonzero().flatten()
    ends = torch.cat([starts[1:], starts.new_tensor([position_BT.numel()])])
    return [int(n) for n in (ends - starts).tolist()]


def document_mask(position_BT: Tensor) -> Tensor:
    """(B, 1, T, T), True where the key is in the query's piece and not after it."""
    piece_BT = (position_BT == 0).cumsum(1)
    same_BTT = piece_BT.unsqueeze(2) == piece_BT.unsqueeze(1)
    return same_BTT.tril().unsqueeze(1)
