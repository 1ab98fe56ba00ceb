"""The operations of a decoder that kernels can take over, in plain torch: one object is chosen for a run.

`kernels.ops.TritonOps` does the same in Triton. All take plain local tensors. Letters of the shape suffixes: see `model`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gristmill.trainer.parallel.tensor import TensorParallel
from gristmill.trainer.parallel.vocabulary import cross_entropy
from gristmill.trainer.rope import rotate, wide

XIELU_BETA = 0.5  # slope at 0 (Huang and Schlag, arXiv 2411.13010, section 3)


@dataclass(frozen=True)
class Layout:
    """What attention needs to know of a micro batch, built once per forward pass."""

    rows: int  # B
    cos_BTD: Tensor
    sin_BTD: Tensor
    lengths: list[int] | None  # pieces of the N flattened positions (torch on a CPU)
    mask_B1TT: Tensor | None  # added to the scores: -inf where a query may not look (torch elsewhere)
    kernel: Any = None  # what another Ops prepared in its `layout`

    @property
    def positions(self) -> int:
        """N = B x T."""
        return self.cos_BTD.shape[0] * self.cos_BTD.shape[1]


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


class Ops:
    """Plain torch."""

    name = "torch"

    def layout(
        self,
        position_BT: Tensor,
        cos_BTD: Tensor,
        sin_BTD: Tensor,
        pieces: bool,
        dtype: torch.dtype,
        documents: int | None = None,
    ) -> Layout:
        """`pieces`: attend piece by piece on a CPU. `dtype`: of the scores' mask elsewhere. `documents`: how many pieces
        there are, for kernels whose shapes need it; None: unknown, and a GPU would have to be asked.
        """
        rows = len(position_BT)
        if pieces and position_BT.device.type == "cpu":
            return Layout(rows, cos_BTD, sin_BTD, piece_lengths(position_BT), None)
        seen_B1TT = document_mask(position_BT)
        # an additive mask, made once: of a boolean one each layer makes its own
        hidden_B1TT = torch.zeros_like(seen_B1TT, dtype=dtype).masked_fill_(~seen_B1TT, float("-inf"))
        return Layout(rows, cos_BTD, sin_BTD, None, hidden_B1TT)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / rms(x) * weight over the last dimension, in fp32, returned in the dtype of x (arXiv 1910.07467)."""
        return F.rms_norm(wide(x), (x.shape[-1],), wide(weight), eps).to(x.dtype)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(rms_norm(residual + x), residual + x)."""
        total = residual + x
        return self.rms_norm(total, weight, eps), total

    def queries_and_keys(
        self,
        q_BTHD: Tensor,
        k_BTGD: Tensor,
        layout: Layout,
        rope: bool,
        norms: tuple[Tensor, Tensor] | None,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        """Normalised by head where `norms` gives weights (D,) of q and k, then turned by their positions if `rope`."""
        if norms is not None:
            q_BTHD, k_BTGD = (self.rms_norm(x, w, eps) for x, w in zip((q_BTHD, k_BTGD), norms, strict=True))
        if rope:
            q_BTHD, k_BTGD = (rotate(x, layout.cos_BTD, layout.sin_BTD) for x in (q_BTHD, k_BTGD))
        return q_BTHD, k_BTGD

    def attend(self, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, layout: Layout) -> Tensor:
        """(B, T, H, D) attention, causal within pieces."""
        return attend(q_BTHD, k_BTGD, v_BTGD, layout)

    def silu(self, up: Tensor, gate: Tensor | None) -> Tensor:
        """silu(gate) * up, or silu(up) without a gate."""
        return F.silu(up) if gate is None else F.silu(gate) * up

    def relu2(self, up: Tensor, gate: Tensor | None) -> Tensor:
        """max(x, 0)^2 of the gate, times up; or of up alone (Primer, arXiv 2109.08668)."""
        return F.relu(up).square() if gate is None else F.relu(gate).square() * up

    def xielu(self, up: Tensor, gate: Tensor | None, alpha_p: Tensor, alpha_n: Tensor) -> Tensor:
        """xIELU of the gate, times up; or of up alone: see `layers.XIELU`."""
        inner = XIELUFunction.apply(up if gate is None else gate, alpha_p, alpha_n)  # type: ignore[no-untyped-call]
        return inner if gate is None else inner * up  # type: ignore[no-any-return]

    def logits(
        self, x_nC: Tensor, weight_vC: Tensor, positions: int, tp: TensorParallel, softcap: float | None
    ) -> Tensor:
        """(N, v) logits of this rank's ids, fp32 where there is a softcap."""
        (logits_Nv,) = tp.column(x_nC, positions, weight_vC)
        return logits_Nv if softcap is None else softcap * torch.tanh(wide(logits_Nv) / softcap)

    def losses(
        self,
        x_nC: Tensor,
        weight_vC: Tensor,
        labels_N: Tensor,
        tp: TensorParallel,
        *,
        valid: int,
        softcap: float | None,
        partition: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Per position, fp32, 0 at label -100: negative log-likelihood; log-sum-exp if `partition`, else None.

        The first `valid` of this rank's ids are real.
        """
        logits_Nv = self.logits(x_nC, weight_vC, len(labels_N), tp, softcap)
        if tp.size == 1:
            logits_Nv = logits_Nv[:, :valid]
        elif valid < logits_Nv.shape[1]:
            real_v = torch.arange(logits_Nv.shape[1], device=logits_Nv.device) < valid
            logits_Nv = logits_Nv.where(real_v, float("-inf"))
        return cross_entropy(wide(logits_Nv), labels_N, tp, partition=partition)


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


def count_documents(position_BT: Tensor) -> int:
    """Pieces of all rows; a row's start always begins one. On a GPU this waits for it."""
    begins_BT = position_BT == 0
    begins_BT[:, :1] = True
    return int(begins_BT.sum())


def document_mask(position_BT: Tensor) -> Tensor:
    """(B, 1, T, T), True where the key is in the query's piece and not after it."""
    piece_BT = (position_BT == 0).cumsum(1)
    same_BTT = piece_BT.unsqueeze(2) == piece_BT.unsqueeze(1)
    return same_BTT.tril().unsqueeze(1)


TORCH = Ops()
