"""The decoder's parts: RMSNorm, attention inside each document, the MLP and the residual block, over `ops`.

Every part computes on local tensors: a matrix may hold some of its heads or inner columns (tensor parallelism), and head
counts are read from what a projection returns. Matrices are used in the dtype of what comes in, so bf16 compute over fp32
weights needs no autocast. Letters of the shape suffixes: see `model`; n = positions of one rank (N without sequence
parallelism).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from gristmill.trainer.architecture import Model
from gristmill.trainer.ops import TORCH, XIELU_BETA, Layout, Ops
from gristmill.trainer.parallel.tensor import ALONE, TensorParallel, local
from gristmill.trainer.sizes import Checkpointing

XIELU_ALPHA = 0.8  # both curvatures at the start (there, section 4)


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

    def __init__(self, width: int, eps: float, partial: bool = False, ops: Ops = TORCH) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps, self.partial, self.ops = eps, partial, ops

    def like(self, x: Tensor) -> Tensor:
        """The weight in the dtype of x: rounded as the matrices are, since FSDP gathers bf16."""
        return local(self.weight, self.partial).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.rms_norm(x, self.like(x), self.eps)

    def after(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(normalised, residual + x)."""
        return self.ops.add_rms_norm(x, residual, self.like(x), self.eps)


class Attention(nn.Module):
    """Grouped-query causal attention that stays inside a piece. Key/value heads fewer than the ranks are replicated."""

    def __init__(self, c: Model, layer: int, tp: TensorParallel = ALONE, ops: Ops = TORCH) -> None:
        super().__init__()
        self.head_dim, self.rope, self.tp, self.ops = c.head_dim, c.uses_rope(layer), tp, ops
        self.kv_heads: slice | None = None  # of a replicated matrix: the head that serves this rank's query heads
        if tp.size > c.kv_heads:
            head = tp.rank * c.kv_heads // tp.size
            self.kv_heads = slice(head * c.head_dim, (head + 1) * c.head_dim)
        self.q = Matrix(c.hidden, c.heads * c.head_dim)
        self.k = Matrix(c.hidden, c.kv_heads * c.head_dim)
        self.v = Matrix(c.hidden, c.kv_heads * c.head_dim)
        self.o = Matrix(c.heads * c.head_dim, c.hidden)
        shared = tp.size > 1
        self.q_norm = RMSNorm(c.head_dim, c.norm_eps, shared, ops) if c.qk_norm else None
        self.k_norm = RMSNorm(c.head_dim, c.norm_eps, shared, ops) if c.qk_norm else None

    def forward(self, x_nC: Tensor, layout: Layout) -> Tensor:
        given = self.tp.column(
            x_nC, layout.positions, self.q.like(x_nC), self._kv(self.k, x_nC), self._kv(self.v, x_nC)
        )
        q_BTHD, k_BTGD, v_BTGD = (y.view(layout.rows, len(y) // layout.rows, -1, self.head_dim) for y in given)
        norms, eps = None, 0.0
        if self.q_norm is not None and self.k_norm is not None:
            norms, eps = (self.q_norm.like(q_BTHD), self.k_norm.like(k_BTGD)), self.q_norm.eps
        q_BTHD, k_BTGD = self.ops.queries_and_keys(q_BTHD, k_BTGD, layout, self.rope, norms, eps)
        y_NI = self.ops.attend(q_BTHD, k_BTGD, v_BTGD, layout).flatten(2).flatten(0, 1)
        return self.tp.row(y_NI, self.o.like(y_NI))

    def _kv(self, matrix: Matrix, x: Tensor) -> Tensor:
        """The rows of a key or value matrix that this rank's query heads use."""
        return matrix.like(x) if self.kv_heads is None else matrix.like(x, partial=True)[self.kv_heads]


class XIELU(nn.Module):
    """xIELU: a x^2 + b x for x > 0, else n (e^x - 1 - x) + b x, with b = 0.5, a = softplus(p), n = b + softplus(q).

    p and q are learnt, one each per layer (arXiv 2411.13010, section 3); computed in fp32.
    """

    def __init__(self, tp: TensorParallel = ALONE, ops: Ops = TORCH) -> None:
        super().__init__()
        self.alpha_p = nn.Parameter(torch.empty(1))  # one element, not none: FSDP2 shards the first dimension
        self.alpha_n = nn.Parameter(torch.empty(1))
        self.partial, self.ops = tp.size > 1, ops  # each rank sees some inner columns

    def forward(self, up: Tensor, gate: Tensor | None = None) -> Tensor:
        p, q = (local(a, self.partial).to(up.dtype) for a in (self.alpha_p, self.alpha_n))
        return self.ops.xielu(up, gate, p, q)


def xielu_start(name: str) -> float:
    """Initial `alpha_p` or `alpha_n`: the inverse softplus that makes the curvature 0.8."""
    return math.log(math.expm1(XIELU_ALPHA if name.endswith("alpha_p") else XIELU_ALPHA - XIELU_BETA))


class SiLU(nn.Module):
    """silu(gate) * up (SwiGLU, arXiv 2002.05202), or silu(up) without a gate."""

    def __init__(self, tp: TensorParallel = ALONE, ops: Ops = TORCH) -> None:
        super().__init__()
        self.ops = ops

    def forward(self, up: Tensor, gate: Tensor | None = None) -> Tensor:
        return self.ops.silu(up, gate)


class SquaredReLU(SiLU):
    """max(gate, 0)^2 * up, or max(up, 0)^2 without a gate (So et al., Primer, arXiv 2109.08668)."""

    def forward(self, up: Tensor, gate: Tensor | None = None) -> Tensor:
        return self.ops.relu2(up, gate)


ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": SiLU, "relu2": SquaredReLU, "xielu": XIELU}


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)), or down(act(up(x))) without a gate."""

    def __init__(self, c: Model, tp: TensorParallel = ALONE, ops: Ops = TORCH) -> None:
        super().__init__()
        self.tp = tp
        self.gate = Matrix(c.hidden, c.ffn) if c.gated else None
        self.up = Matrix(c.hidden, c.ffn)
        self.down = Matrix(c.ffn, c.hidden)
        self.act = ACTIVATIONS[c.activation](tp, ops)

    def forward(self, x_nC: Tensor, positions: int) -> Tensor:
        if self.gate is None:
            (up_NF,) = self.tp.column(x_nC, positions, self.up.like(x_nC))
            inner_NF = self.act(up_NF)
        else:
            gate_NF, up_NF = self.tp.column(x_nC, positions, self.gate.like(x_nC), self.up.like(x_nC))
            inner_NF = self.act(up_NF, gate_NF)
        return self.tp.row(inner_NF, self.down.like(inner_NF))


class Block(nn.Module):
    """Pre-norm residual block: attention, then the MLP. `checkpointing`: what its backward pass computes again."""

    def __init__(
        self,
        c: Model,
        layer: int,
        tp: TensorParallel = ALONE,
        checkpointing: Checkpointing = "none",
        ops: Ops = TORCH,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        shared = tp.size > 1 and tp.sequence
        self.attention_norm = RMSNorm(c.hidden, c.norm_eps, shared, ops)
        self.attention = Attention(c, layer, tp, ops)
        self.ffn_norm = RMSNorm(c.hidden, c.norm_eps, shared, ops)
        self.ffn = MLP(c, tp, ops)

    def forward(self, x_nC: Tensor, layout: Layout) -> Tensor:
        if self.checkpointing == "none" or not torch.is_grad_enabled():
            return self._block(x_nC, layout)
        if self.checkpointing == "full":
            return checkpoint(self._block, x_nC, layout, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]
        return checkpoint(  # type: ignore[no-any-return]
            self._block, x_nC, layout, use_reentrant=False, preserve_rng_state=False, context_fn=SELECTIVE
        )

    def _block(self, x_nC: Tensor, layout: Layout) -> Tensor:
        normed_nC, x_nC = self.ffn_norm.after(self.attention(self.attention_norm(x_nC), layout), x_nC)
        return x_nC + self.ffn(normed_nC, layout.positions)  # type: ignore[no-any-return]


KEPT = (  # outputs that selective checkpointing keeps: what costs most to compute again
    torch.ops.aten.mm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
)
KEPT_KERNELS = ("gristmill::varlen_attention", "torch_attn::_varlen_attn")  # by name: known once they are loaded


def _policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = op in KEPT or op.name() in KEPT_KERNELS
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


SELECTIVE = partial(create_selective_checkpoint_contexts, _policy)
