"""Document-masked attention in plain torch, one document at a time, and the tiles it needs: the kernels' oracle."""

from __future__ import annotations

import torch
from torch import Tensor

from gristmill.trainer.ops import document_mask, piece_lengths


def attention(
    q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, position_BT: Tensor, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """(y_BTHD, lse_BHT): softmax attention within each document and not ahead, in the inputs' dtype (give fp64).

    Written out, without torch's fused kernels, so that it also gives the log-sum-exp; autograd differentiates it.
    """
    rows, length, heads, head_dim = q_BTHD.shape
    scale = head_dim**-0.5 if scale is None else scale
    k_BTHD, v_BTHD = (x.repeat_interleave(heads // k_BTGD.shape[2], 2) for x in (k_BTGD, v_BTGD))
    outputs, sums = [], []
    lengths = piece_lengths(position_BT)
    for q_lHD, k_lHD, v_lHD in zip(*(x.flatten(0, 1).split(lengths) for x in (q_BTHD, k_BTHD, v_BTHD)), strict=True):
        ahead_ll = torch.ones(len(q_lHD), len(q_lHD), dtype=torch.bool, device=q_lHD.device).triu(1)
        scores_Hll = torch.einsum("mhd,nhd->hmn", q_lHD, k_lHD) * scale
        scores_Hll = scores_Hll.masked_fill(ahead_ll, float("-inf"))
        outputs.append(torch.einsum("hmn,nhd->mhd", scores_Hll.softmax(-1), v_lHD))
        sums.append(scores_Hll.logsumexp(-1))
    y_BTHD = torch.cat(outputs).view(q_BTHD.shape)
    return y_BTHD, torch.cat(sums, 1).view(heads, rows, length).transpose(0, 1)


def needed_tiles(position_BT: Tensor, m: int, n: int) -> int:
    """Tiles of m queries by n keys with at least one visible pair, summed over the rows, for one head."""
    seen_BTT = document_mask(position_BT)[:, 0]
    length = seen_BTT.shape[1]
    blocks = seen_BTT.new_zeros((len(seen_BTT), -(-length // m) * m, -(-length // n) * n))
    blocks[:, :length, :length] = seen_BTT
    return int(blocks.unflatten(2, (-1, n)).unflatten(1, (-1, m)).any(4).any(2).sum())
