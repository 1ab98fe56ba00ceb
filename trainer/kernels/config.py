"""The static table of tiles for the row-wise kernels (norm, rope, mlp) by kernel, width and chip, each with its reason.

Nothing is tuned at run time: choices come from what the ahead-of-time compiler reports (registers, spills, wide access) and
from counting bytes in flight, and no GPU has timed them. Kernels made of matrix products have tables of their own.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from gristmill.trainer.kernels.interpret import interpreting

Kernel = Literal["norm forward", "norm backward", "rope forward", "rope backward", "mlp forward", "mlp backward"]
Chip = Literal["interpreter", "sm80", "sm90", "sm100", "gfx942"]

MULTIPROCESSORS: dict[Chip, int] = {"sm80": 108, "sm90": 132, "sm100": 148, "gfx942": 304, "interpreter": 1}
WIDEST = 16_384  # elements of a row, held in registers: 8192 spill nowhere, 16384 in the backward pass of sm80 to sm100


class Choice(NamedTuple):
    """A program works on `rows` x `block` elements at a time with `warps` warps.

    `programs`: how many there are where each walks over the rows (it keeps a part of a weight's gradient); 0 where one
    tile is one program.
    """

    rows: int
    block: int
    warps: int
    programs: int
    reason: str

    @property
    def elements(self) -> int:
        """Of a tile."""
        return self.rows * self.block


def chip() -> Chip:
    """The chip of the table that suits the one that triton runs on.

    sm86, sm89 and sm120 have warps' HMMA alone and 99 KB of shared memory: sm80's tiles are the ones that fit.
    """
    if interpreting():
        return "interpreter"
    from triton.runtime import driver

    target = driver.active.get_current_target()
    if target.backend != "cuda":
        return "gfx942"
    by_major: dict[int, Chip] = {9: "sm90", 10: "sm100"}
    return by_major.get(target.arch // 10, "sm80")


class _Tile(NamedTuple):
    elements: int  # of a tile, unless one row has more
    per_thread: int  # elements of each array that a thread holds, when rows are wide
    resident: int  # programs a multiprocessor runs at once; 0: one tile is one program
    reason: str


TABLE: dict[Kernel, _Tile] = {
    "norm forward": _Tile(2048, 16, 0, "two 128-bit loads of bf16 a thread in flight; narrow rows share a program"),
    "norm backward": _Tile(
        2048, 16, 4, "four arrays of a row and the sum of dW in registers: 16 each is under 128 in all"
    ),
    "rope forward": _Tile(2048, 16, 0, "both halves of all heads of a position: cos and sin are read once"),
    "rope backward": _Tile(2048, 16, 4, "as forward, and each program keeps its part of dW"),
    "mlp forward": _Tile(2048, 16, 0, "two 128-bit loads of bf16 a thread and array: hides latency at full occupancy"),
    "mlp backward": _Tile(
        2048, 16, 0, "as forward: five arrays of 16 a thread, 64 registers but for a gated xIELU (112)"
    ),
}
INTERPRETED = _Tile(
    16_384, 1024, 3, "an operation costs the same whatever its size: few, large tiles; several programs"
)
WARP: dict[Chip, int] = {"gfx942": 64}  # threads; 32 elsewhere


def choose(kernel: Kernel, width: int, on: Chip | None = None) -> Choice:
    """Tiles for rows of `width` elements. Raises ValueError for rows wider than `WIDEST`."""
    on = on or chip()
    if not 0 < width <= WIDEST:
        raise ValueError(f"{kernel}: rows of {width} elements; from 1 to {WIDEST} fit in a program")
    tile = INTERPRETED if on == "interpreter" else TABLE[kernel]
    block = 1 << (width - 1).bit_length()
    rows = max(1, tile.elements // block)
    threads = rows * block // tile.per_thread
    warps = min(max(threads // WARP.get(on, 32), 1), 16 if on == "gfx942" else 32)
    most = max(1, min(tile.resident, 16 // warps))  # 16 warps of 128 registers are all of a multiprocessor's
    programs = most * MULTIPROCESSORS[on] if TABLE[kernel].resident else 0
    return Choice(rows, block, warps, programs, tile.reason)
