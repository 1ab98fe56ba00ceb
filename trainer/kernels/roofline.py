"""The least time every kernel can take on a GPU, and what it should save: predicted from counts, not measured.

  python -m gristmill.trainer.kernels.roofline [--preset NAME] [--tokens N] [--json]

Floor of a pass: the longer of its bytes over the memory's bandwidth and its operations over the units' peak (Williams et
al. 2009, the roofline model); passes add up. Real kernels reach 70 to 90 % of the bandwidth and less of the peak, eager
torch also waits for launches: ratios say which way to look, `benchmarks/kernels_gpu.py` says what is true.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from typing import Any

from gristmill.trainer.architecture import preset_names, read_preset
from gristmill.trainer.hardware import PEAKS
from gristmill.trainer.kernels.roofline_passes import Cost, Pass, costs

BANDWIDTH = {
    "a100": 2.039e12,  # SXM, 80 GB (NVIDIA's data sheet)
    "h100": 3.35e12,  # SXM
    "h200": 4.8e12,
    "b200": 8.0e12,
    "mi300x": 5.3e12,
}
"""Bytes/s of device memory by data sheet, keys as in trainer.hardware.PEAKS."""

GPUS = ("a100", "h100")
PRESETS = ("llama-3-8b", "apertus-8b", "smollm3-3b", "qwen3-0.6b")
TOKENS, LENGTH, DOCUMENT = 8192, 4096, 1024


def floor(passes: Iterable[Pass], gpu: str) -> float:
    """Seconds that the passes take at least, one after the other."""
    return sum(max(p.bytes / BANDWIDTH[gpu], p.flops / PEAKS[gpu][p.unit]) for p in passes)


def row(cost: Cost) -> dict[str, Any]:
    """One line of the sheet: bytes and operations, floors in microseconds, and predicted ratios on an H100."""
    total = {way: sum(p.bytes for p in getattr(cost, way)) for way in ("ours", "eager", "compiled")}
    return {
        "kernel": cost.name,
        "shape": cost.shape,
        "bytes": total["ours"],
        "flops": sum(p.flops for p in cost.ours),
        "saved_to_eager": 1 - total["ours"] / total["eager"],
        "saved_to_compiled": 1 - total["ours"] / total["compiled"],
        **{f"floor_{gpu}_us": floor(cost.ours, gpu) * 1e6 for gpu in GPUS},
        "ratio_to_eager": floor(cost.eager, "h100") / floor(cost.ours, "h100"),
        "ratio_to_compiled": floor(cost.compiled, "h100") / floor(cost.ours, "h100"),
    }


def sheet(preset: str, positions: int = TOKENS) -> list[dict[str, Any]]:
    """The sheet's lines for a preset at a micro batch of `positions` tokens on one device."""
    return [
        row(cost) for cost in costs(read_preset(preset), positions, min(LENGTH, positions), min(DOCUMENT, positions))
    ]


def render(rows: list[dict[str, Any]]) -> str:
    """The lines as Markdown."""
    lines = [
        "| kernel | shape | MB moved | GFLOP | floor A100, µs | H100, µs | bytes saved: eager | compile | predicted ratio: eager | compile |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['kernel']} | {r['shape']} | {r['bytes'] / 1e6:,.0f} | {r['flops'] / 1e9:,.1f} "
            f"| {r['floor_a100_us']:,.0f} | {r['floor_h100_us']:,.0f} "
            f"| {r['saved_to_eager']:.0%} | {r['saved_to_compiled']:.0%} "
            f"| {r['ratio_to_eager']:.1f} | {r['ratio_to_compiled']:.2f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m gristmill.trainer.kernels.roofline", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--preset", action="append", choices=preset_names(), help="a model's shape (default: four)")
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"positions of a micro batch (default {TOKENS})")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    sheets = {name: sheet(name, options.tokens) for name in options.preset or PRESETS}
    if options.json:
        print(json.dumps(sheets, indent=1))
        return
    for name, rows in sheets.items():
        print(f"{name}, {options.tokens} tokens, bf16: predicted\n\n{render(rows)}\n")


if __name__ == "__main__":
    main()
