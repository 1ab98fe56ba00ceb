"""Mean loss per source of a global batch, summed on the device: one small tensor, read once a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gristmill.trainer.data import IGNORE
from gristmill.trainer.parallel.mesh import World


class SourceLosses:
    """Sums of a step's token losses and token counts by source. `names` in the order of the batch's source numbers."""

    def __init__(self, names: Sequence[str], world: World) -> None:
        self.names, self.world = list(names), world
        # one slot more for tokens without a source: padding
        self._sums = torch.zeros(2, len(self.names) + 1, dtype=torch.float64, device=world.device)

    def add(self, nll_BT: Tensor, labels_BT: Tensor, source_BT: Tensor) -> None:
        """Add a micro batch. Labels of -100 count for nothing; a source number below 0 is none."""
        counted_N = (labels_BT != IGNORE).flatten()
        source_N = source_BT.flatten().long()
        slot_N = torch.where((source_N < 0) | ~counted_N, len(self.names), source_N)
        self._sums[0].index_add_(0, slot_N, torch.where(counted_N, nll_BT.detach().flatten().double(), 0.0))
        self._sums[1].index_add_(0, slot_N, counted_N.double())

    def take(self) -> dict[str, float]:
        """{source: mean nats per token} over all processes, for sources with tokens in the batch; clears. Collective."""
        sums, counts = self.world.sum_data(self._sums.clone()).cpu().tolist()
        self._sums.zero_()
        return {name: s / n for name, s, n in zip(self.names, sums, counts, strict=False) if n}
