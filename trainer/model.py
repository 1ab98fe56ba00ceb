"""The decoder: embedding, residual blocks, norm and output, its initial values and its losses, in plain torch.

Llama's shape by default (Touvron et al., arXiv 2302.13971; GQA: 2305.13245), with the features of `architecture.Model`.
A packed row holds several documents; attention never crosses a position 0. On CPU each piece is its own causal call (4x
faster than a boolean mask at T = 512, and equal to it to 4e-7); elsewhere one mask is built per micro batch.

Letters of the shape suffixes:
  B rows   T positions   N = B*T   C hidden   F ffn   H query heads   G key/value heads   D head dimension
  V vocabulary padded to a multiple of 64
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gristmill.core.hashing import seed_of
from gristmill.trainer.architecture import Model
from gristmill.trainer.data import IGNORE
from gristmill.trainer.layers import Block, Layout, RMSNorm, document_mask, piece_lengths, xielu_start
from gristmill.trainer.rope import rotary_table, wide
from gristmill.trainer.sizes import padded_vocab

INIT_STD_EMBEDDING = 0.02  # GPT-2's; tied logits start with a deviation of 0.02 sqrt(C), so the loss starts near ln V


class Decoder(nn.Module):
    """Token ids -> logits over `vocab_size` ids. Build it, then call `init_weights(seed)` or load a state."""

    def __init__(self, config: Model, vocab_size: int, max_seq_len: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.max_seq_len = max_seq_len
        self.embed = nn.Embedding(padded_vocab(vocab_size), config.hidden)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.norm_eps)
        self.head = None if config.tie_embeddings else nn.Linear(config.hidden, padded_vocab(vocab_size), bias=False)
        self.cos_TD: Tensor
        self.sin_TD: Tensor
        for name, table_TD in zip(("cos_TD", "sin_TD"), rotary_table(config, max_seq_len), strict=True):
            self.register_buffer(name, table_TD, persistent=False)

    def set_rope(self, config: Model) -> None:
        """Take another theta or scaling of the rotary frequencies (a long-context stage), all else unchanged."""
        self.config = self.config.model_copy(
            update={"rope_theta": config.rope_theta, "rope_scaling": config.rope_scaling}
        )
        for old, new in zip(
            (self.cos_TD, self.sin_TD), rotary_table(self.config, self.max_seq_len, self.cos_TD.dtype), strict=True
        ):
            old.copy_(new)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Set every parameter from (seed, its name) alone, so neither construction order nor device decides a value."""
        for name, parameter in self.named_parameters():
            parameter.copy_(initial_value(self.config, name, parameter.shape, seed))

    def forward(self, tokens_BT: Tensor, position_BT: Tensor | None = None) -> Tensor:
        """(B, T, vocab_size) logits. `position_BT` restarts at 0 with each piece; None: each row is one piece."""
        if position_BT is None:
            position_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand_as(tokens_BT)
        layout = self.layout(position_BT)
        x_BTC = self.embed(tokens_BT)
        for block in self.blocks:
            x_BTC = block(x_BTC, layout)
        weight_VC = self.embed.weight if self.head is None else self.head.weight
        logits_BTV = F.linear(self.norm(x_BTC), weight_VC)[..., : self.vocab_size]  # a padded id has no probability
        cap = self.config.logit_softcap
        return logits_BTV if cap is None else cap * torch.tanh(wide(logits_BTV) / cap)

    def loss(self, tokens_BT: Tensor, labels_BT: Tensor, position_BT: Tensor) -> Tensor:
        """Cross-entropy in fp32, summed over labels other than -100 (nats). Divide by the global batch's valid tokens."""
        return _entropy(self(tokens_BT, position_BT).flatten(0, 1), labels_BT.flatten())

    def losses(self, tokens_BT: Tensor, labels_BT: Tensor, position_BT: Tensor) -> tuple[Tensor, Tensor]:
        """`loss`, and log(sum exp logits)^2 summed over the same tokens.

        z-loss (PaLM, arXiv 2204.02311, section 5) is a small multiple of the second.
        """
        logits_NV, labels_N = self(tokens_BT, position_BT).flatten(0, 1), labels_BT.flatten()
        partition_N = torch.logsumexp(wide(logits_NV), -1)
        return _entropy(logits_NV, labels_N), torch.where(labels_N == IGNORE, 0.0, partition_N.square()).sum()

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
        """Floating-point operations per trained token, forward and backward: `sizes.flops_per_token`."""
        return self.config.flops_per_token(self.vocab_size, seq_len)


def _entropy(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    return F.cross_entropy(wide(logits_NV), labels_N, ignore_index=IGNORE, reduction="sum")


def initial_value(c: Model, name: str, shape: torch.Size, seed: int) -> Tensor:
    """A parameter's first value, whole and in fp32 on the CPU: a function of (seed, its name) and the settings.

    Matrices: normal with deviation `init_std`, or 1/sqrt(fan in); those that write into the residual stream are scaled
    by depth (`init_depth`), so that the stream's variance does not grow with the layers (GPT-2). Norms start at 1,
    xIELU's curvatures at 0.8.
    """
    if "alpha_" in name:
        return torch.full(shape, xielu_start(name))
    if len(shape) < 2:
        return torch.ones(shape)
    outer = name.startswith(("embed", "head"))
    std = c.init_std or (INIT_STD_EMBEDDING if outer else shape[1] ** -0.5)
    writer = re.fullmatch(r"blocks\.(\d+)\.(attention\.o|ffn\.down)\.weight", name)
    if writer and c.init_depth != "none":
        std *= (2 * (c.layers if c.init_depth == "all" else int(writer[1]) + 1)) ** -0.5
    generator = torch.Generator().manual_seed(seed_of(seed, name) >> 1)  # a 63-bit seed is valid everywhere
    return torch.randn(shape, generator=generator) * std
