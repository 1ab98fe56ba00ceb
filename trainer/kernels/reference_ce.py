"""The output matrix and its cross-entropy in plain torch at fp64: what the kernels' tests compare with."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_cross_entropy(
    x_NC: Tensor,
    weight_VC: Tensor,
    labels_N: Tensor,
    *,
    vocab_valid: int | None = None,
    softcap: float | None = None,
    z_weight: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Per position, fp64: -log softmax(logits)[label] + z_weight lse^2, and lse = log(sum exp logits); 0 at label -100.

    The whole vocabulary in one piece: rows of weight beyond `vocab_valid` are left out.
    """
    logits_NV = x_NC.double() @ weight_VC[:vocab_valid].double().t()
    if softcap is not None:
        logits_NV = softcap * torch.tanh(logits_NV / softcap)
    valid_N = labels_N != -100
    logp_NV = torch.log_softmax(logits_NV, 1)
    nll_N = -logp_NV.gather(1, labels_N.where(valid_N, 0).unsqueeze(1)).squeeze(1)
    lse_N = torch.logsumexp(logits_NV, 1)
    return (nll_N + z_weight * lse_N.square()).where(valid_N, 0.0), lse_N.where(valid_N, 0.0)
