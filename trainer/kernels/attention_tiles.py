"""Tile sizes, warps and pipeline stages of the attention kernels by chip, dtype and head dimension, with reasons.

Chosen from what the ahead-of-time compiler reports (triton 3.7.1): no spills, shared memory under the chip's limit,
then the largest tile, since a tile's loads are shared by more products. No GPU has timed them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from gristmill.trainer.kernels.config import Chip, chip

Kernel = Literal["forward", "dq", "dkv"]


class Tiles(NamedTuple):
    """`m` queries by `n` keys a tile, for `warps` warps and `stages` tiles in flight."""

    m: int
    n: int
    warps: int = 4
    stages: int = 2


Row = tuple[Tiles, Tiles, Tiles]  # forward, dq, dkv

INTERPRETED: Row = (Tiles(64, 64), Tiles(64, 64), Tiles(64, 64))  # time goes by the tile, whatever its size
SMALL: Row = (Tiles(128, 64, 4, 3), Tiles(64, 64), Tiles(64, 64))  # a head's rows are short: tiles fit in 4 warps
GROUPS: Row = (Tiles(128, 128, 8), Tiles(128, 64, 8), Tiles(64, 128, 8))  # 8 warps: two warp groups of 64 rows each
HALF: dict[Chip, dict[int, Row]] = {  # bf16 and fp16, by the widest head; 127: those masked within 128 dimensions
    "sm80": {
        32: SMALL,  # dq: 128 queries in 4 warps spill 10
        64: (Tiles(128, 64, 8, 3), Tiles(128, 64, 8), Tiles(32, 64)),  # dkv: 64 x 64 spills 31, 64 x 128 35
        127: (Tiles(64, 64, 8), Tiles(64, 64, 8), Tiles(32, 64, 8)),  # masks cost 15 to 20 registers
        128: (Tiles(128, 64, 8, 3), Tiles(64, 64, 8), Tiles(64, 64, 8)),  # dq: 128 x 64 spills 6; dkv: 64 x 128 398
    },
    "sm90": {
        32: SMALL,
        64: GROUPS,
        127: (Tiles(128, 64, 8, 3), Tiles(128, 64, 8), Tiles(64, 64, 8)),  # dkv: 64 x 128 spills 13
        128: GROUPS,
    },
    "sm100": {  # sums are in tensor memory: 225 registers at the most
        32: (*SMALL[:2], Tiles(64, 64, 8)),  # dkv: 4 warps spill 5 where 24 dimensions are masked
        128: GROUPS,
    },
    "gfx942": {  # 64 KiB of shared memory
        32: (Tiles(128, 64), Tiles(64, 64), Tiles(32, 64)),  # dkv: 64 x 64 takes all 512 registers
        64: (Tiles(128, 64, 8), Tiles(128, 32), Tiles(32, 64)),  # dkv: 64 x 64 spills 54
        128: (Tiles(128, 64, 8), Tiles(64, 32), Tiles(32, 64)),  # dq: 64 x 64 spills 146; dkv: 32 x 128 422
    },
}
# fp32 for comparisons, not for speed: exact products, without TF32, hold whole operands in registers
SINGLE: Row = (Tiles(32, 32, 8, 1), Tiles(32, 16), Tiles(16, 32, 8))
SINGLE_AMD: Row = (Tiles(32, 32, 8, 1), Tiles(32, 16), Tiles(16, 32))  # dkv: 8 warps spill 10


def tiles_for(kernel: Kernel, dtype: torch.dtype, head_dim: int) -> Tiles:
    """Tiles for heads of up to 128 dimensions on the chip that triton would launch on."""
    on, which = chip(), ("forward", "dq", "dkv").index(kernel)
    if on == "interpreter":
        return INTERPRETED[which]
    if dtype == torch.float32:
        return (SINGLE_AMD if on == "gfx942" else SINGLE)[which]
    return next(row for widest, row in HALF[on].items() if head_dim <= widest)[which]
