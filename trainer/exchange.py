"""Short messages between the ranks of a world over CPU memory, for saving and loading: no pickle, no GPU work.

Every method is collective: all ranks call it in the same order. On GPUs it uses a gloo group of its own, so that asking
whether a save is done neither waits for the device nor mixes with NCCL's queue. One process talks to itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gristmill.trainer.parallel.mesh import World

TEXT_BYTES = 1024  # of one rank's text; longer ones are cut


class Exchange:
    """Made on all ranks at once, on GPUs, as it makes a process group."""

    def __init__(self, world: World) -> None:
        self.rank, self.size = world.rank, world.size
        cuda = world.size > 1 and world.device.type == "cuda"
        self._group: Any = dist.new_group(backend="gloo") if cuda else None  # None: the world's own gloo group

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set on any rank. Waits for all ranks."""
        if self.size == 1:
            return flags
        told = torch.tensor(flags, dtype=torch.int64)
        dist.all_reduce(told, op=dist.ReduceOp.MAX, group=self._group)
        return tuple(bool(n) for n in told.tolist())

    def gather(self, value: Tensor) -> list[Tensor]:
        """Every rank's tensor, in rank order. They are on CPU and have one shape and dtype."""
        if self.size == 1:
            return [value]
        parts = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(parts, value, group=self._group)
        return parts

    def texts(self, text: str) -> list[str]:
        """Every rank's text, in rank order, cut to TEXT_BYTES."""
        data = text.encode(errors="replace")[:TEXT_BYTES]
        row = torch.zeros(TEXT_BYTES + 2, dtype=torch.uint8)
        row[:2] = torch.tensor(divmod(len(data), 256), dtype=torch.uint8)
        row[2 : 2 + len(data)] = torch.tensor(list(data), dtype=torch.uint8)
        rows = [bytes(part.tolist()) for part in self.gather(row)]
        return [r[2 : 2 + r[0] * 256 + r[1]].decode(errors="ignore") for r in rows]

    def from_lead(self, data: bytes) -> bytes:
        """Rank 0's bytes, on every rank; the other ranks' argument is ignored."""
        if self.size == 1:
            return data
        size = torch.tensor([len(data)], dtype=torch.int64)
        dist.broadcast(size, 0, group=self._group)
        row = torch.zeros(int(size.item()), dtype=torch.uint8)
        if self.leads:
            row.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else row)
        dist.broadcast(row, 0, group=self._group)
        return row.numpy().tobytes()
