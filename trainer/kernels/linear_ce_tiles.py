"""Tile sizes, warps and pipeline stages of the cross-entropy kernels by chip and arithmetic, each with its reason.

Chosen from what the ahead-of-time compiler reports, with and without a softcap: no spills, shared memory under the chip's
limit, matrix instructions of the chip's own kind. No GPU has timed them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from gristmill.trainer.kernels.config import Chip, chip

Kernel = Literal["statistics", "gradient"]


class Tiles(NamedTuple):
    """`m` positions by `n` ids a tile, `k` of the hidden width at a time; `warps`, and `stages` of loads in flight."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


INTERPRETER = Tiles(32, 64, 32, 4, 2)  # several tiles each way at the sizes of tests
FULL_FP32 = Tiles(64, 64, 16, 4, 2)  # no matrix units on NVIDIA: 128 registers, four blocks a multiprocessor
TF32 = Tiles(128, 128, 32, 8, 2)  # 32 KB of shared memory on gfx942, 64 KB on sm90

# 128 x 128 with 8 warps: 64 registers of sums a thread. Where all take no more than 128, two blocks share a multiprocessor
# and one's exponentials run beside the other's products. Larger where it doesn't spill and the main loop is long.
HALF: dict[tuple[Chip, Kernel], Tiles] = {
    ("sm80", "statistics"): Tiles(128, 128, 32, 8, 4),  # 127 registers
    ("sm80", "gradient"): Tiles(128, 128, 32, 8, 4),  # 128 x 256 has 32 spilling instructions with a softcap
    ("sm90", "statistics"): Tiles(128, 256, 64, 8, 3),  # a sixth fewer shared reads per operation than 128 x 128
    ("sm90", "gradient"): Tiles(128, 128, 64, 8, 3),  # 128 x 256 has 8 spilling instructions, 14 with a softcap
    ("sm100", "statistics"): Tiles(128, 256, 64, 8, 3),  # sums lie in 256 of 512 columns of tensor memory
    ("sm100", "gradient"): Tiles(128, 256, 64, 8, 3),  # 4 warps have 46 spilling instructions
    ("gfx942", "statistics"): Tiles(128, 128, 64, 8, 2),  # 32 of 64 KB
    ("gfx942", "gradient"): Tiles(128, 128, 64, 8, 2),
}
LONG = 2048  # hidden width below which the end of a 128 x 256 tile on sm90 takes a fifth of its time or more (counted)
SHORT = Tiles(128, 128, 64, 8, 3)


def tiles_for(kernel: Kernel, dtype: torch.dtype, width: int) -> Tiles:
    """The tiles of a kernel for operands of `dtype` and hidden `width`, on the chip that triton runs on.

    fp32 products are full or TF32 as torch.get_float32_matmul_precision() has them.
    """
    on = chip()
    if on == "interpreter":
        return INTERPRETER
    if dtype == torch.float32:
        return FULL_FP32 if torch.get_float32_matmul_precision() == "highest" else TF32
    if (on, kernel) == ("sm90", "statistics") and width < LONG:
        return SHORT
    return HALF[on, kernel]
