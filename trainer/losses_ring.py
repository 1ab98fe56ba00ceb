"""The losses per token of the last steps, kept on the device for the day that a guard asks which document it was.

Nothing is copied to the host until then: a step costs one elementwise `where` over its own rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gristmill.trainer.data import IGNORE
from gristmill.trainer.pieces import NO_LOSS, StepLosses

MAX_BYTES = 256 << 20  # 16 steps of 4 million tokens a rank: never the largest thing on a device


@dataclass
class _Try:
    step: int
    rows: list[tuple[str, int]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    accepted: bool | None = None  # None: still running

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.losses)


class LossRing:
    """The last `steps` tries of a step of this rank. A deferred step is tried twice, each with rows of its own."""

    def __init__(self, steps: int, max_bytes: int = MAX_BYTES) -> None:
        self.steps, self.max_bytes = steps, max_bytes
        self._tries: deque[_Try] = deque()

    def add(self, step: int, rows: Sequence[tuple[str, int]], nll_BT: Tensor, labels_BT: Tensor) -> None:
        """Keep one micro batch: its loss per token and labels of shape (B, T); rows beyond len(rows) are filling."""
        if not self.steps:
            return
        if not self._tries or self._tries[-1].step != step or self._tries[-1].accepted is not None:
            self._tries.append(_Try(step))
        kept = len(rows)
        losses = torch.where(labels_BT[:kept] == IGNORE, NO_LOSS, nll_BT.detach()[:kept].float())
        self._tries[-1].rows += rows
        self._tries[-1].losses.append(losses)
        while len(self._tries) > 1 and (
            len(self._tries) > self.steps or sum(t.bytes for t in self._tries) > self.max_bytes
        ):
            self._tries.popleft()

    def close(self, step: int, accepted: bool) -> None:
        """The try of `step` has ended: whether its update was applied."""
        if self._tries and self._tries[-1].step == step:
            self._tries[-1].accepted = accepted

    def clear(self) -> None:
        """After a rewind: what was kept belongs to steps that are trained again."""
        self._tries.clear()

    def read(self, fired: int) -> list[StepLosses]:
        """All tries on the host, oldest first; the latest is the one that fired, if it is of that step."""
        out = []
        for i, t in enumerate(self._tries):
            losses = [part.cpu().numpy() for part in t.losses]
            last = i == len(self._tries) - 1 and t.step == fired
            out.append(StepLosses(t.step, last, bool(t.accepted), t.rows, np.concatenate(losses)))
        return out
