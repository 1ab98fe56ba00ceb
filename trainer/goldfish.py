"""Goldfish loss: one label in k is left out of the loss, chosen by a hash of the tokens before it. No torch.

Hans et al. (arXiv 2406.10209, section 3.1): a passage that recurs loses the same labels each time, so a model cannot
learn it by heart. The hash covers the h tokens up to the one that predicts the label; a label with fewer tokens of its
piece before it is always kept, so no window crosses a document.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gristmill.core.hashing import mix64
from gristmill.trainer.data import IGNORE, Batch
from gristmill.trainer.schema import Goldfish

ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: an odd multiplier, so every place of the window counts


def dropped(tokens_BT: np.ndarray, position_BT: np.ndarray, settings: Goldfish) -> np.ndarray:
    """(B, T) bool: the label at this index is left out. A function of the window's tokens and the settings alone."""
    value_BT = mix64(tokens_BT, settings.seed)
    window_BT = np.zeros_like(value_BT)
    with np.errstate(over="ignore"):
        for back in range(settings.h):  # the token `back` places earlier counts ODD^back, modulo 2^64
            window_BT[:, back:] += value_BT[:, : value_BT.shape[1] - back] * ODD**back
    threshold = np.uint64((1 << 64) // settings.k)
    return (mix64(window_BT, settings.seed) < threshold) & (position_BT >= settings.h - 1)


def mask_labels(batch: Batch, settings: Goldfish) -> Batch:
    """The batch with the dropped labels set to -100."""
    gone_BT = dropped(batch.tokens_BT, batch.position_BT, settings)
    return replace(batch, labels_BT=np.where(gone_BT, IGNORE, batch.labels_BT))
