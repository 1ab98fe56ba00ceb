"""The decoder: RMSNorm, RoPE, grouped-query attention inside each document, SwiGLU, in plain torch.

Llama's shape (Touvron et al., arXiv 2302.13971; GQA: 2305.13245; RoPE: 2104.09864; SwiGLU: 2002.05202), so an export
loads in other tools. A packed row holds several documents; attention never crosses a position 0. On CPU each piece
is its own causal call (4x faster than a boolean mask at T = 512, and equal to it to 4e-7); elsewhere one mask is
built per micro batch.

Letters of the shape suffixes:
  B rows   T positions   N = B*T   C hidden   F ffn   H query heads   G key/value heads   D head dimension
  V vocabulary padded to a multiple of 64
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gristmill.core.hashing import seed_of
from gristmill.trainer.data import IGNORE
from gristmill.trainer.schema import Model, padded_vocab

INIT_STD_EMBEDDING = 0.02  # GPT-2's; tied logits start with a deviation of 0.02 sqrt(C), so the loss starts near ln V


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
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query causal attention that stays inside a piece."""

    def __init__(self, c: Model) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = c.heads, c.kv_heads, c.head_dim
        self.q = nn.Linear(c.hidden, c.heads * c.head_dim, bias=False)
        self.k = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=False)
        self.v = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=False)
        self.o = nn.Linear(c.heads * c.head_dim, c.hidden, bias=False)

    def forward(self, x_BTC: Tensor, layout: Layout) -> Tensor:
        B, T, _ = x_BTC.shape
        q_BTHD = rotate(self.q(x_BTC).view(B, T, self.heads, self.head_dim), layout)
        k_BTGD = rotate(self.k(x_BTC).view(B, T, self.kv_heads, self.head_dim), layout)
        v_BTGD = self.v(x_BTC).view(B, T, self.kv_heads, self.head_dim)
        y_BTHD = attend(q_BTHD, k_BTGD, v_BTGD, layout)
        return self.o(y_BTHD.reshape(B, T, self.heads * self.head_dim))  # type: ignore[no-any-return]


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, c: Model) -> None:
        super().__init__()
        self.gate = nn.Linear(c.hidden, c.ffn, bias=False)
        self.up = nn.Linear(c.hidden, c.ffn, bias=False)
        self.down = nn.Linear(c.ffn, c.hidden, bias=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BTC)) * self.up(x_BTC))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm residual block: attention, then SwiGLU."""

    def __init__(self, c: Model) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(c.hidden, c.norm_eps)
        self.attention = Attention(c)
        self.ffn_norm = RMSNorm(c.hidden, c.norm_eps)
        self.ffn = SwiGLU(c)

    def forward(self, x_BTC: Tensor, layout: Layout) -> Tensor:
        x_BTC = x_BTC + self.attention(self.attention_norm(x_BTC), layout)
        return x_BTC + self.ffn(self.ffn_norm(x_BTC))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Token ids -> logits over `vocab_size` ids. Build it, then call `init_weights(seed)` or load a state."""

    def __init__(self, config: Model, vocab_size: int, max_seq_len: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.max_seq_len = max_seq_len
        self.embed = nn.Embedding(padded_vocab(vocab_size), config.hidden)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.norm_eps)
        self.head = None if config.tie_embeddings else nn.Linear(config.hidden, padded_vocab(vocab_size), bias=False)
        self.cos_TD: Tensor
        self.sin_TD: Tensor
        for name, table_TD in zip(
            ("cos_TD", "sin_TD"), rotary_table(max_seq_len, config.head_dim, config.rope_theta), strict=True
        ):
            self.register_buffer(name, table_TD, persistent=False)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Set every matrix from (seed, its name) alone, so neither construction order nor device decides a value.

        Matrices: normal with deviation 1/sqrt(fan in); those that write into the residual stream are scaled by
        1/sqrt(2 layers) as in GPT-2. Norms start at 1.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0)
                continue
            std = INIT_STD_EMBEDDING if name.startswith(("embed", "head")) else parameter.shape[1] ** -0.5
            if name.endswith(("attention.o.weight", "ffn.down.weight")):
                std *= (2 * self.config.layers) ** -0.5
            generator = torch.Generator().manual_seed(seed_of(seed, name) >> 1)  # a 63-bit seed is valid everywhere
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

    def forward(self, tokens_BT: Tensor, position_BT: Tensor | None = None) -> Tensor:
        """(B, T, vocab_size) logits. `position_BT` restarts at 0 with each piece; None: each row is one piece."""
        if position_BT is None:
            position_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand_as(tokens_BT)
        layout = self.layout(position_BT)
        x_BTC = self.embed(tokens_BT)
        for block in self.blocks:
            x_BTC = block(x_BTC, layout)
        weight_VC = self.embed.weight if self.head is None else self.head.weight
        logits_BTV = F.linear(self.norm(x_BTC), weight_VC)
        return logits_BTV[..., : self.vocab_size]  # a padded id has no probability: it never enters the softmax

    def loss(self, tokens_BT: Tensor, labels_BT: Tensor, position_BT: Tensor) -> Tensor:
        """Cross-entropy in fp32, summed over labels other than -100 (nats). Divide by the global batch's valid tokens."""
        logits_BTV = self(tokens_BT, position_BT)
        return F.cross_entropy(
            logits_BTV.flatten(0, 1).float(), labels_BT.flatten(), ignore_index=IGNORE, reduction="sum"
        )

    def layout(self, position_BT: Tensor) -> Layout:
        """Rotary factors and document borders of a micro batch."""
        cos_BTD, sin_BTD = self.cos_TD[position_BT], self.sin_TD[position_BT]
        if position_BT.device.type == "cpu":
            return Layout(cos_BTD, sin_BTD, piece_lengths(position_BT), None)
        return Layout(cos_BTD, sin_BTD, None, document_mask(position_BT))

    def params(self) -> int:
        """All parameters, the padded vocabulary included; a tied head counts once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, seq_len: int) -> int:
        """Floating-point operations per trained token, forward and backward.

        6 per matrix parameter (2 forward, 4 backward) and 6 * layers * heads * head_dim * seq_len for causal attention over
        whole rows (PaLM, arXiv 2204.02311, appendix B, halved for causality); document masks only lower it. The embedding
        look-up costs nothing; the output matrix counts, tied or not.
        """
        c = self.config
        matrices = sum(
            p.numel() for n, p in self.named_parameters() if p.dim() == 2 and not n.startswith(("embed", "head"))
        )
        head = self.embed.weight.numel()
        return 6 * (matrices + head) + 6 * c.layers * c.heads * c.head_dim * seq_len


def rotary_table(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of position x frequency, each (length, D); dimension i turns with i + D/2."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency)
    angle_TD = torch.cat([angle, angle], dim=-1)
    return angle_TD.cos(), angle_TD.sin()


def rotate(x_BTHD: Tensor, layout: Layout) -> Tensor:
    """Rotary position embedding, computed in fp32."""
    first, second = x_BTHD.float().chunk(2, dim=-1)
    turned_BTHD = torch.cat([-second, first], dim=-1)
    cos, sin = layout.cos_BTD.unsqueeze(2), layout.sin_BTD.unsqueeze(2)
    return (x_BTHD.float() * cos + turned_BTHD * sin).to(x_BTHD.dtype)


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
