"""Peak FLOP/s of accelerators by dtype, for MFU and for the days of a plan. No torch here.

Figures are dense (no structured sparsity), matrix units with fp32 accumulation, from the vendors' data sheets: NVIDIA's
for B200, H200, H100, H20, A100, L40S, L4, RTX 4090 (Ada whitepaper, table 2), V100; AMD's for MI300X and MI250X. Where
a sheet gives sparse figures only, theirs are halved. `fp32` is arithmetic without matrix units (AMD: with them), which
is what torch uses unless TF32 is allowed.
"""

from __future__ import annotations

import re

PEAKS: dict[str, dict[str, float]] = {
    "b200": {"bf16": 2250e12, "fp16": 2250e12, "tf32": 1125e12, "fp32": 75e12},
    "h200": {"bf16": 989.4e12, "fp16": 989.4e12, "tf32": 494.7e12, "fp32": 66.9e12},
    "h100": {"bf16": 989.4e12, "fp16": 989.4e12, "tf32": 494.7e12, "fp32": 66.9e12},  # SXM
    "h100-pcie": {"bf16": 756e12, "fp16": 756e12, "tf32": 378e12, "fp32": 51.2e12},
    "gh200": {"bf16": 989.4e12, "fp16": 989.4e12, "tf32": 494.7e12, "fp32": 66.9e12},
    "h20": {"bf16": 148e12, "fp16": 148e12, "tf32": 74e12, "fp32": 44e12},
    "a100": {"bf16": 312e12, "fp16": 312e12, "tf32": 156e12, "fp32": 19.5e12},
    "l40s": {"bf16": 362.05e12, "fp16": 362.05e12, "tf32": 183e12, "fp32": 91.6e12},
    "l4": {"bf16": 121e12, "fp16": 121e12, "tf32": 60e12, "fp32": 30.3e12},
    "rtx-4090": {"bf16": 165.2e12, "fp16": 165.2e12, "tf32": 82.6e12, "fp32": 82.6e12},
    "v100": {"fp16": 125e12, "fp32": 15.7e12},
    "mi300x": {"bf16": 1307.4e12, "fp16": 1307.4e12, "tf32": 653.7e12, "fp32": 163.4e12},
    "mi250x": {"bf16": 383e12, "fp16": 383e12, "fp32": 95.7e12},
}
"""FLOP/s by device and dtype."""

GPUS = tuple(PEAKS)
"""Names that `--gpu` takes."""


def device_key(device_name: str) -> str | None:
    """The key of PEAKS for a name of ours (`h100`) or of the driver's ("NVIDIA H100 80GB HBM3"); None when unknown."""
    words = re.split(r"[^a-z0-9]+", device_name.lower())
    found = [key for key in PEAKS if all(part in words for part in key.split("-"))]
    return max(found, key=len, default=None)  # the longest: h100-pcie before h100


def peak_flops(device_name: str, dtype: str) -> float | None:
    """Dense peak FLOP/s of one device at a dtype (bf16, fp16, tf32, fp32); None when the table does not have it."""
    key = device_key(device_name)
    return PEAKS[key].get(dtype) if key else None
