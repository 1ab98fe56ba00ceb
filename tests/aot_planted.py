"""A kernel file for the ahead-of-time compiler's tests: one sound launch, and launches that break each absolute limit."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def _product_kernel(X, Y, OUT, inner, M: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    m, k = tl.arange(0, M), tl.arange(0, K)
    acc = tl.zeros([M, M], dtype=tl.float32)
    for start in range(0, inner, K):
        x = tl.load(X + m[:, None] * inner + (start + k)[None, :])
        y = tl.load(Y + m[:, None] * inner + (start + k)[None, :])
        acc = tl.dot(x, tl.trans(y), acc, input_precision=PRECISION)
    tl.store(OUT + m[:, None] * M + m[None, :], acc)


def product(dtype: torch.dtype, m: int, k: int, warps: int, stages: int, precision: str = "tf32") -> Callable[[], Any]:
    def launch() -> Any:
        x, out = torch.empty(m, 4096, dtype=dtype, device="meta"), torch.empty(m, m, device="meta")
        return _product_kernel[(1,)](x, x, out, 4096, m, k, precision, num_warps=warps, num_stages=stages)

    return launch


CASES = {
    "sound": product(torch.bfloat16, 64, 64, 4, 2),
    "sound again": product(torch.bfloat16, 64, 64, 4, 2),
    "full precision": product(torch.float32, 32, 32, 4, 2, "ieee"),
    "spills": product(torch.bfloat16, 256, 32, 4, 2),
    "shared": product(torch.bfloat16, 128, 128, 8, 4),
    "refused": lambda: _product_kernel[(1,)](None, None, None, 1, M=3, K=3, PRECISION="tf32"),
}


def aot_cases() -> list[tuple[str, Callable[[], Any]]]:
    """Those that the environment names: tests compile few."""
    return [(name, CASES[name]) for name in os.environ["PLANTED_CASES"].split(",")]
