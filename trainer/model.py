"""The decoder: embedding, residual blocks, norm and output, its initial values and its losses, in plain torch.

Llama's shape by default (Touvron et al., arXiv 2302.13971; GQA: 2305.13245), with the features of `architecture.Model`.
A packed row holds several documents; attention never crosses a position 0. On CPU each piece is its own causal call (4x
faster than a boolean mask at T = 512, and equal to it to 4e-7); elsewhere one mask is built per micro batch.

Letters of the shape suffixes:
  B rows   T positions   N = B*T   C hidden   F ffn   H query heads   G key/value heads   D head dimension
  V vocabulary padded to a multiple of 64 x tp   v = V/tp, the ids of one rank   n = N/tp, its positions
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from gristmill.core.hashing import seed_of
from gristmill.trainer.architecture import Model
from gristmill.trainer.layers import Block, Matrix, RMSNorm, xielu_start
from gristmill.trainer.ops import TORCH, Layout, Ops
from gristmill.trainer.parallel.tensor import ALONE, TensorParallel, fill, local
from gristmill.trainer.parallel.vocabulary import embed
from gristmill.trainer.rope import rotary_table
from gristmill.trainer.sizes import Checkpointing, padded_vocab

INIT_STD_EMBEDDING = 0.02  # GPT-2's; tied logits start with a deviation of 0.02 sqrt(C), so the loss starts near ln V


class Embedding(nn.Module):
    """The table of V x C; a module so that its parameter is called embed.weight."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))


class Decoder(nn.Module):
    """Token ids -> logits over `vocab_size` ids. Build it, then call `init_weights(seed)` or load a state.

    `tp` is the rank's part in tensor parallelism; parameters are made whole and cut by `parallel.shard`. `compute` is the
    dtype of activations and matrix products.
    """

    def __init__(
        self,
        config: Model,
        vocab_size: int,
        max_seq_len: int,
        tp: TensorParallel = ALONE,
        compute: torch.dtype | None = None,
        checkpointing: Checkpointing = "none",
        ops: Ops = TORCH,
    ) -> None:
        super().__init__()
        self.config, self.vocab_size, self.max_seq_len = config, vocab_size, max_seq_len
        self.tp, self.compute, self.ops = tp, compute, ops
        self.pieces = True  # attention by pieces where the device is a CPU
        rows = padded_vocab(vocab_size, tp.size)
        self.embed = Embedding(rows, config.hidden)
        self.blocks = nn.ModuleList(Block(config, layer, tp, checkpointing, ops) for layer in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.norm_eps, tp.size > 1 and tp.sequence, ops)
        self.head = None if config.tie_embeddings else Matrix(config.hidden, rows)
        self.cos_TD: Tensor
        self.sin_TD: Tensor
        for name, table_TD in zip(("cos_TD", "sin_TD"), rotary_table(config, max_seq_len), strict=True):
            self.register_buffer(name, table_TD, persistent=False)

    def set_rope(self, config: Model) -> None:
        """Take another theta or scaling of the rotary frequencies (a long-context stage), all else unchanged."""
        self.config = self.config.model_copy(
            update={"rope_theta": config.rope_theta, "rope_scaling": config.rope_scaling}
        )
        with torch.device("cpu"):
            tables = rotary_table(self.config, self.max_seq_len, self.cos_TD.dtype)
        for old, new in zip((self.cos_TD, self.sin_TD), tables, strict=True):
            old.copy_(new)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Set every parameter from (seed, its name) alone: neither construction order, device nor layout decides a value."""
        for name, parameter in self.named_parameters():
            fill(parameter, self.initial_value(name, seed))

    def initial_value(self, name: str, seed: int) -> Tensor:
        """A parameter's first value, whole, without the rows that pad the vocabulary."""
        shape = self.get_parameter(name).shape
        if name.startswith(("embed", "head")):
            shape = torch.Size((self.vocab_size, *shape[1:]))
        return initial_value(self.config, name, shape, seed)

    def forward(self, tokens_BT: Tensor, position_BT: Tensor | None = None) -> Tensor:
        """(B, T, vocab_size) logits. `position_BT` restarts at 0 with each piece; None: each row is one piece.

        Under tensor parallelism they are gathered on every rank, without a gradient.
        """
        documents = None
        if position_BT is None:
            position_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand_as(tokens_BT)
            documents = len(tokens_BT)
        x_nC, weight_vC = self._last(tokens_BT, position_BT, documents)
        part_Nv = self.ops.logits(x_nC, weight_vC, tokens_BT.numel(), self.tp, self.config.logit_softcap)
        return self.tp.columns(part_Nv)[:, : self.vocab_size].unflatten(0, tokens_BT.shape)

    def token_losses(
        self, tokens_BT: Tensor, labels_BT: Tensor, position_BT: Tensor, documents: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Per token (B, T), in fp32 and on every rank: negative log-likelihood in nats, 0 where the label is -100.

        And log(sum exp logits) at the same tokens: z-loss (PaLM, arXiv 2204.02311, section 5) is a small multiple of the
        sum of its squares. `documents`: how many pieces the rows hold, if known without asking the device.
        """
        nll_BT, lse_BT = self._token_losses(tokens_BT, labels_BT, position_BT, documents, partition=True)
        assert lse_BT is not None
        return nll_BT, lse_BT

    def token_loss(
        self, tokens_BT: Tensor, labels_BT: Tensor, position_BT: Tensor, documents: int | None = None
    ) -> Tensor:
        """The first of `token_losses`, without computing the second."""
        return self._token_losses(tokens_BT, labels_BT, position_BT, documents, partition=False)[0]

    def loss(self, tokens_BT: Tensor, labels_BT: Tensor, position_BT: Tensor) -> Tensor:
        """`token_loss`, summed. Divide by the global batch's valid tokens."""
        return self.token_loss(tokens_BT, labels_BT, position_BT).sum()

    def _token_losses(
        self, tokens_BT: Tensor, labels_BT: Tensor, position_BT: Tensor, documents: int | None, partition: bool
    ) -> tuple[Tensor, Tensor | None]:
        x_nC, weight_vC = self._last(tokens_BT, position_BT, documents)
        nll_N, lse_N = self.ops.losses(
            x_nC,
            weight_vC,
            labels_BT.flatten(),
            self.tp,
            valid=min(max(self.vocab_size - self.tp.rank * len(weight_vC), 0), len(weight_vC)),
            softcap=self.config.logit_softcap,
            partition=partition,
        )
        return nll_N.view_as(labels_BT), None if lse_N is None else lse_N.view_as(labels_BT)

    def _last(self, tokens_BT: Tensor, position_BT: Tensor, documents: int | None) -> tuple[Tensor, Tensor]:
        """(n, C) behind the last norm, and this rank's part (v, C) of the output matrix in its dtype."""
        layout = self.layout(position_BT, documents)
        table_vC = local(self.embed.weight)
        if self.compute is not None:  # once: the gradients of a tied table are then added in one dtype everywhere
            table_vC = table_vC.to(self.compute)
        x_nC = self.tp.own(embed(tokens_BT.flatten(), table_vC, self.tp))
        for block in self.blocks:
            x_nC = block(x_nC, layout)
        x_nC = self.norm(x_nC)
        return x_nC, table_vC if self.head is None else self.head.like(x_nC)

    def layout(self, position_BT: Tensor, documents: int | None = None) -> Layout:
        """Rotary factors and document borders of a micro batch."""
        cos_BTD, sin_BTD = self.cos_TD[position_BT], self.sin_TD[position_BT]
        dtype = self.compute or self.cos_TD.dtype
        return self.ops.layout(position_BT, cos_BTD, sin_BTD, self.pieces, dtype, documents)

    def params(self) -> int:
        """All parameters, the padded vocabulary included; a tied head counts once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, seq_len: int) -> int:
        """Floating-point operations per trained token, forward and backward: `sizes.flops_per_token`."""
        return self.config.flops_per_token(self.vocab_size, seq_len)


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
