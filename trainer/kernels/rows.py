"""Tensors as rows for the row-wise kernels: a 2-D view with adjacent elements in a row, or a copy where there is none."""

from __future__ import annotations

from torch import Tensor


def as_rows(x: Tensor) -> Tensor:
    """(rows, width) of a tensor whose last dimension is the width; its stride is 1.

    Rows may lie apart (a slice of a wider tensor). What no such view describes is copied: the expanded gradient of a sum, a
    transposed one.
    """
    width = x.shape[-1]
    rows = x.reshape(x.numel() // width if width else 0, width)
    return rows if rows.stride(1) == 1 or (width == 1 and rows.stride(0) >= 1) else rows.contiguous()


def same(**tensors: Tensor | None) -> None:
    """Raises ValueError unless all have the first one's shape, dtype and device; None is skipped."""
    present = {name: t for name, t in tensors.items() if t is not None}
    (first, a), *rest = present.items()
    for name, b in rest:
        if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
            raise ValueError(
                f"{first} is {tuple(a.shape)} {a.dtype} on {a.device}, {name} {tuple(b.shape)} {b.dtype} on {b.device}"
            )
