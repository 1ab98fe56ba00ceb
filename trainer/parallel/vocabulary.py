"""The two ends of the decoder over a vocabulary that is cut over tensor-parallel ranks: look-up and cross-entropy.

Each rank holds padded_vocab / tp consecutive ids. Logits are never gathered: three numbers a position cross the ranks
(largest logit, sum of exponentials, the label's logit), as in Megatron-LM (arXiv 1909.08053, section 3).
Letters: N positions, C hidden, v ids of one rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from gristmill.trainer.data import IGNORE
from gristmill.trainer.parallel.tensor import TensorParallel


def embed(tokens_N: Tensor, weight_vC: Tensor, tp: TensorParallel) -> Tensor:
    """(N, C) parts of the embeddings: zero where another rank holds the id."""
    if tp.size == 1:
        return F.embedding(tokens_N, weight_vC)
    row_N = tokens_N - tp.rank * len(weight_vC)
    mine_N = (row_N >= 0) & (row_N < len(weight_vC))
    return F.embedding(row_N.where(mine_N, 0), weight_vC) * mine_N.unsqueeze(1).to(weight_vC.dtype)


class CrossEntropy(torch.autograd.Function):
    """(N, v) fp32 logits of this rank -> the label's negative log-likelihood and the log-sum-exp, (N,) on every rank."""

    @staticmethod
    def forward(ctx: Any, logits_Nv: Tensor, labels_N: Tensor, tp: TensorParallel) -> tuple[Tensor, Tensor]:
        top_N = tp.all_reduce(logits_Nv.amax(1), dist.ReduceOp.MAX)
        exp_Nv = (logits_Nv - top_N.unsqueeze(1)).exp_()
        row_N = labels_N - tp.rank * logits_Nv.shape[1]
        mine_N = (row_N >= 0) & (row_N < logits_Nv.shape[1])
        row_N = row_N.where(mine_N, 0)
        of_label_N = logits_Nv.gather(1, row_N.unsqueeze(1)).squeeze(1).where(mine_N, 0.0)
        sums_2N = tp.all_reduce(torch.stack([exp_Nv.sum(1), of_label_N]))
        lse_N = top_N + sums_2N[0].log()
        ctx.save_for_backward(exp_Nv.div_(sums_2N[0].unsqueeze(1)), row_N, mine_N)
        return lse_N - sums_2N[1], lse_N

    @staticmethod
    def backward(ctx: Any, of_nll_N: Tensor, of_lse_N: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        softmax_Nv, row_N, mine_N = ctx.saved_tensors
        gradient_Nv = softmax_Nv * (of_nll_N + of_lse_N).unsqueeze(1)
        gradient_Nv.scatter_add_(1, row_N.unsqueeze(1), -of_nll_N.where(mine_N, 0.0).unsqueeze(1))
        return gradient_Nv, None, None


def cross_entropy(
    logits_Nv: Tensor, labels_N: Tensor, tp: TensorParallel, *, partition: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Per position: negative log-likelihood in nats, 0 where the label is -100; log-sum-exp if `partition`, else None.

    `logits_Nv` are fp32 or fp64; ids beyond the vocabulary hold -inf.
    """
    valid_N = labels_N != IGNORE
    if tp.size == 1:
        nll_N = F.cross_entropy(logits_Nv, labels_N, ignore_index=IGNORE, reduction="none")
        return nll_N, torch.logsumexp(logits_Nv, 1).where(valid_N, 0.0) if partition else None
    nll_N, lse_N = CrossEntropy.apply(logits_Nv, labels_N.where(valid_N, 0), tp)  # type: ignore[no-untyped-call]
    return nll_N.where(valid_N, 0.0), lse_N.where(valid_N, 0.0) if partition else None
