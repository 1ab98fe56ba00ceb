"""A training loop as one would write it in plain PyTorch, to measure the trainer against: no journals, guards or resume.

It is given batches that lie in memory. `bare` trains any model with forward(tokens, positions) -> logits; `PlainDecoder` is
a decoder of the same shape written on its own, with one boolean document mask a batch. Shares no code with the trainer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class StepData:
    """The micro batches of a step: tokens, labels (-100: none) and positions that restart, each (B, T)."""

    micros: list[tuple[Tensor, Tensor, Tensor]]
    valid: int


def bare(
    model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float, clip: float
) -> Callable[[StepData], float]:
    """A function that trains one step and returns its mean loss."""
    decayed = [p for n, p in model.named_parameters() if p.dim() == 2 and not n.startswith("embed")]
    rest = [p for n, p in model.named_parameters() if p.dim() != 2 or n.startswith("embed")]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-8, fused=True)

    def step(data: StepData) -> float:
        total = 0.0
        for tokens, labels, positions in data.micros:
            logits = model(tokens, positions)
            loss = (
                F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum") / data.valid
            )
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    return step


class Norm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.q = nn.Linear(width, heads * head_dim, bias=False)
        self.k = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.v = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.o = nn.Linear(heads * head_dim, width, bias=False)
        self.head_dim = head_dim

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(turn(q, cos, sin), turn(k, cos, sin), v, attn_mask=mask, enable_gqa=True)
        return self.o(y.transpose(1, 2).flatten(2))


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, inner: int, eps: float) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = Norm(width, eps), Norm(width, eps)
        self.attention = Attention(width, heads, kv_heads, head_dim)
        self.ffn = FeedForward(width, inner)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, mask)
        return x + self.ffn(self.ffn_norm(x))


class PlainDecoder(nn.Module):
    """Llama's shape with tied embeddings; its parameters have the trainer's names, so that its weights can be copied."""

    def __init__(
        self, vocab: int, layers: int, width: int, heads: int, kv_heads: int, head_dim: int, inner: int, length: int
    ) -> None:
        super().__init__()
        eps = 1e-5
        self.embed = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(Layer(width, heads, kv_heads, head_dim, inner, eps) for _ in range(layers))
        self.norm = Norm(width, eps)
        angle = torch.outer(torch.arange(length), 10_000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)).repeat(1, 2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        piece = (positions == 0).cumsum(1)
        mask = (piece[:, :, None] == piece[:, None]).tril()[:, None]
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, cos, sin, mask)
        return F.linear(self.norm(x), self.embed.weight)
