"""Which processes train together: data parallel x tensor parallel ranks, from torchrun's environment, or one alone.

One process has no process group and no mesh, so its code path is plain torch. Several form a mesh of three dimensions,
(replicate, shard, tp): `zero: 0` replicates the weights over data-parallel ranks (replicate = dp, shard = 1), any other
shards them (replicate = 1, shard = dp). Neighbouring ranks are one tensor-parallel group, which talks most.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from gristmill.trainer import ranks

REPLICATE, SHARD, TP = "replicate", "shard", "tp"
TIMEOUT = timedelta(minutes=10)  # a collective that waits longer has lost a rank


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them. Ranks count from 0; rank = dp_rank * tp + tp_rank."""

    device: torch.device
    rank: int = 0
    size: int = 1
    tp: int = 1
    mesh: DeviceMesh | None = None  # None: one process, no process group
    data_group: Any = field(
        default=None, repr=False
    )  # ranks that hold other rows: all data-parallel ranks of one tp_rank

    @property
    def dp(self) -> int:
        return self.size // self.tp

    @property
    def dp_rank(self) -> int:
        return self.rank // self.tp

    @property
    def tp_rank(self) -> int:
        return self.rank % self.tp

    @property
    def leads(self) -> bool:
        """Whether this process writes what one process writes: logs, markers."""
        return self.rank == 0

    @property
    def tp_group(self) -> Any:
        """Process group of the tensor-parallel ranks; None in one process or with tp 1."""
        return self.mesh[TP].get_group() if self.mesh is not None and self.tp > 1 else None

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def sum_data(self, value: Tensor) -> Tensor:
        """The sum over the processes that hold other rows, in place: what tensor-parallel ranks know counts once."""
        if self.dp > 1:
            dist.all_reduce(value, group=self.data_group)
        return value

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def leave(code: int) -> NoReturn:
    """End this process at once, its files written: the way out for one rank of several, after a barrier.

    The ordinary way out unwinds native threads in an order that nobody promises: with FSDP2 on gloo (torch 2.13) a rank in
    some tens ended in "terminate called without an active exception", its work done, and on a busy machine more.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def start(device: torch.device, tp: int = 1, zero: int = 3, timeout: timedelta = TIMEOUT) -> World:
    """The world of this process: of torchrun's RANK and WORLD_SIZE, or alone where they are not set.

    Raises UsageError when the processes cannot be divided into groups of `tp`.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    ranks.check_groups(size, tp)
    if size == 1:
        return World(device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    dp = size // tp
    shape = (dp, 1, tp) if zero == 0 else (1, dp, tp)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=(REPLICATE, SHARD, TP))
    return World(device, rank, size, tp, mesh, mesh[REPLICATE if zero == 0 else SHARD].get_group())
