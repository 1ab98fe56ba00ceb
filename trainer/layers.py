"""The decoder's parts: RMSNorm, attention inside each document, the MLP and the residual block, in plain torch.

Every part computes on local tensors: a matrix may hold some of its heads or inner columns (tensor parallelism), and head
counts are read from what a projection returns. Matrices are used in the dtype of what comes in, so bf16 compute over fp32
weights needs no autocast. Letters of the shape suffixes: see `model`; n = positions of one rank (N without sequence
parallelism).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from gristmill.trainer.architecture import Model
from gristmill.trainer.parallel.tensor import ALONE, TensorParallel, local
from gristmill.trainer.rope import rotate, wide
from gristmill.trainer.sizes import Checkpointing

XIELU_BETA = 0.5  # slope at 0 (Huang and Schlag, arXiv 2411.13010, section 3)
XIELU_ALPHA = 0.8  # both curvatures at the start (there, section 4)


@dataclass(frozen=True)
class Layout:
    """What attention needs to know of a micro batch, built once per forward pass."""

    rows: int  # B
    cos_BTD: Tensor
    sin_BTD: Tensor
    lengths: list[int] | None  # pieces of the N flattened positions (CPU)
    mask_B1TT: Tensor | None  # added to the scores: -inf where a query may not look (elsewhere)

    @property
    def positions(self) -> int:
        """N = B x T."""
        return self.cos_BTD.shape[0] * self.cos_BTD.shape[1]


class Matrix(nn.Module):
    """A weight of (outputs, inputs), filled by `Decoder.init_weights`; `like(x)` is this rank's part in the dtype of x."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def like(self, x: Tensor, partial: bool = False) -> Tensor:
        return local(self.weight, partial).to(x.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, over the last dimension, in fp32 (Zhang and Sennrich, arXiv 1910.07467).

    `partial`: each tensor-parallel rank normalises other positions or heads, so gradients of the weight are parts of a sum.
    """

    def __init__(self, width: int, eps: float, partial: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self.partial = partial

    def forward(self, x: Tensor) -> Tensor:
        weight = local(self.weight, self.partial).to(x.dtype)  # rounded as the matrices are: FSDP gathers bf16
        return F.rms_norm(wide(x), (x.shape[-1],), wide(weight), self.eps).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query causal attention that stays inside a piece. Key/value heads fewer than the ranks are replicated."""

    def __init__(self, c: Model, layer: int, tp: TensorParallel = ALONE) -> None:
        super().__init__()
        self.head_dim, self.rope, self.tp = c.head_dim, c.uses_rope(layer), tp
        self.kv_heads: slice | None = None  # of a replicated matrix: the head that serves this rank's query heads
        if tp.size > c.kv_heads:
            head = tp.rank * c.kv_heads // tp.size
            self.kv_heads = slice(head * c.head_dim, (head + 1) * c.head_dim)
        self.q = Matrix(c.hidden, c.heads * c.head_dim)
        self.k = Matrix(c.hidden, c.kv_heads * c.head_dim)
        self.v = Matrix(c.hidden, c.kv_heads * c.head_dim)
        self.o = Matrix(c.heads * c.head_dim, c.hidden)
        shared = tp.size > 1
        self.q_norm = RMSNorm(c.head_dim, c.norm_eps, shared) if c.qk_norm else None
        self.k_norm = RMSNorm(c.head_dim, c.norm_eps, shared) if c.qk_norm else None

    def forward(self, x_nC: Tensor, layout: Layout) -> Tensor:
        given = self.tp.column(
            x_nC, layout.positions, self.q.like(x_nC), self._kv(self.k, x_nC), self._kv(self.v, x_nC)
        )
        q_BTHD, k_BTGD, v_BTGD = (y.view(layout.rows, len(y) // layout.rows, -1, self.head_dim) for y in given)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHD, k_BTGD = self.q_norm(q_BTHD), self.k_norm(k_BTGD)
        if self.rope:
            q_BTHD, k_BTGD = (rotate(x, layout.cos_BTD, layout.sin_BTD) for x in (q_BTHD, k_BTGD))
        y_NI = attend(q_BTHD, k_BTGD, v_BTGD, layout).flatten(2).flatten(0, 1)
        return self.tp.row(y_NI, self.o.like(y_NI))

    def _kv(self, matrix: Matrix, x: Tensor) -> Tensor:
        """The rows of a key or value matrix that this rank's query heads use."""
        return matrix.like(x) if self.kv_heads is None else matrix.like(x, partial=True)[self.kv_heads]


class XIELUFunction(torch.autograd.Function):
    """xIELU and its gradients by hand, so that only the input is kept (autograd would keep over four arrays of its size)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: Tensor, q: Tensor) -> Tensor:
        ctx.save_for_backward(x, p, q)
        y = wide(x)
        positive = F.softplus(wide(p)) * y * y
        negative = (XIELU_BETA + F.softplus(wide(q))) * (torch.expm1(y.clamp(max=0)) - y)  # clamped: no inf where x > 0
        return (torch.where(y > 0, positive, negative) + XIELU_BETA * y).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        x, p, q = ctx.saved_tensors
        y, g, wide_p, wide_q = wide(x), wide(gradient), wide(p), wide(q)
        above, grown = y > 0, torch.expm1(y.clamp(max=0))
        slope = torch.where(above, 2 * F.softplus(wide_p) * y, (XIELU_BETA + F.softplus(wide_q)) * grown) + XIELU_BETA
        of_p = (g * torch.where(above, y * y, 0.0)).sum() * torch.sigmoid(wide_p)
        of_q = (g * torch.where(above, 0.0, grown - y)).sum() * torch.sigmoid(wide_q)
        return (g * slope).to(x.dtype), of_p.to(p.dtype), of_q.to(q.dtype)


class XIELU(nn.Module):
    """xIELU: a x^2 + b x for x > 0, else n (e^x - 1 - x) + b x, with b = 0.5, a = softplus(p), n = b + softplus(q).

    p and q are learnt, one each per layer (arXiv 2411.13010, section 3); computed in fp32.
    """

    def __init__(self, tp: TensorParallel = ALONE) -> None:
        super().__init__()
        self.alpha_p = nn.Parameter(torch.empty(1))  # one element, not none: FSDP2 shards the first dimension
        self.alpha_n = nn.Parameter(torch.empty(1))
        self.partial = tp.size > 1  # each rank sees some inner columns

    def forward(self, x: Tensor) -> Tensor:
        p, q = (local(a, self.partial).to(x.dtype) for a in (self.alpha_p, self.alpha_n))
        return XIELUFunction.apply(x, p, q)  # type: ignore[no-any-return, no-untyped-call]


def xielu_start(name: str) -> float:
    """Initial `alpha_p` or `alpha_n`: the inverse softplus that makes the curvature 0.8."""
    return math.log(math.expm1(XIELU_ALPHA if name.endswith("alpha_p") else XIELU_ALPHA - XIELU_BETA))


class SiLU(nn.Module):
    """x sigmoid(x)."""

    def __init__(self, tp: TensorParallel = ALONE) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


class SquaredReLU(nn.Module):
    """max(x, 0)^2 (So et al., Primer, arXiv 2109.08668)."""

    def __init__(self, tp: TensorParallel = ALONE) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": SiLU, "relu2": SquaredReLU, "xielu": XIELU}


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)), or down(act(up(x))) without a gate."""

    def __init__(self, c: Model, tp: TensorParallel = ALONE) -> None:
        super().__init__()
        self.tp = tp
        self.gate = Matrix(c.hidden, c.ffn) if c.gated else None
        self.up = Matrix(c.hidden, c.ffn)
        self.down = Matrix(c.ffn, c.hidden)
        self.act = ACTIVATIONS[c.activation](tp)

    def forward(self, x_nC: Tensor, positions: int) -> Tensor:
        if self.gate is None:
            (up_NF,) = self.tp.column(x_nC, positions, self.up.like(x_nC))
            inner_NF = self.act(up_NF)
        else:
            gate_NF, up_NF = self.tp.column(x_nC, positions, self.gate.like(x_nC), self.up.like(x_nC))
            inner_NF = self.act(gate_NF) * up_NF
        return self.tp.row(inner_NF, self.down.like(inner_NF))


class Block(nn.Module):
    """Pre-norm residual block: attention, then the MLP. `checkpointing`: what its backward pass computes again."""

    def __init__(self, c: Model, layer: int, tp: TensorParallel = ALONE, checkpointing: Checkpointing = "none") -> None:
        super().__init__()
        self.checkpointing = checkpointing
        shared = tp.size > 1 and tp.sequence
        self.attention_norm = RMSNorm(c.hidden, c.norm_eps, shared)
        self.attention = Attention(c, layer, tp)
        self.ffn_norm = RMSNorm(c.hidden, c.norm_eps, shared)
        self.ffn = MLP(c, tp)

    def forward(self, x_nC: Tensor, layout: Layout) -> Tensor:
        if self.checkpointing == "none" or not torch.is_grad_enabled():
            return self._block(x_nC, layout)
        if self.checkpointing == "full":
            return checkpoint(self._block, x_nC, layout, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]
        return checkpoint(  # type: ignore[no-any-return]
            self._block, x_nC, layout, use_reentrant=False, preserve_rng_state=False, context_fn=SELECTIVE
        )

    def _block(self, x_nC: Tensor, layout: Layout) -> Tensor:
        x_nC = x_nC + self.attention(self.attention_norm(x_nC), layout)
        return x_nC + self.ffn(self.ffn_norm(x_nC), layout.positions)  # type: ignore[no-any-return]


KEPT = (  # outputs that selective checkpointing keeps: what costs most to compute again
    torch.ops.aten.mm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
)


def _policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


SELECTIVE = partial(create_selective_checkpoint_contexts, _policy)


def attend(q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, layout: Layout) -> Tensor:
    """(B, T, H, D) attention, causal within pieces. Both ways give the same numbers up to rounding."""
    if layout.lengths is None:
        q_BHTD, k_BGTD, v_BGTD = (x.transpose(1, 2) for x in (q_BTHD, k_BTGD, v_BTGD))
        shared = q_BHTD.shape[1] // k_BGTD.shape[1]
        if (
            shared > 1
        ):  # torch's fused kernels that take a mask take no grouped heads: they would fall back to T x T scores
            k_BGTD, v_BGTD = (x.repeat_interleave(shared, 1) for x in (k_BGTD, v_BGTD))
        y_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BGTD, v_BGTD, attn_mask=layout.mask_B1TT)
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
