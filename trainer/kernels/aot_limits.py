"""Limits on compiled kernels: absolute ones by chip, and drift from the committed figures of the same compiler versions.

budgets/<target>.json holds {toolchain: {kernel: figures}}. Registers differ by 10 to 15 % between triton versions, so figures
of another toolchain say nothing: an unknown one is a fault that `--write` mends after a look at the figures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from gristmill.trainer.kernels.aot_measure import CHIPS, MATRIX, WIDE

Figures = Mapping[str, int]

FOLDER = Path(__file__).parent / "budgets"
REGISTERS, INSTRUCTIONS = 1.05, 1.20  # growth that passes: allocation jitters by a few registers, scheduling by more


def wrong(kernel: str, now: Figures, target: str) -> list[str]:
    """Faults that no budget excuses: spills, shared memory over the chip's, a dot that missed the matrix units."""
    limit = CHIPS[target].shared
    faults = []
    if now["shared"] > limit:
        faults.append(f"{kernel}: {now['shared']} bytes of shared memory, {target} has {limit} a block")
    if now.get("spills", 0):
        faults.append(f"{kernel}: {now['spills']} instructions spill registers: choose a smaller tile for {target}")
    if now.get("dots", 0) and not any(now.get(kind, 0) for kind in MATRIX):
        faults.append(f"{kernel}: {now['dots']} dots, no matrix instruction")
    return faults


def drifted(kernel: str, now: Figures, was: Figures) -> list[str]:
    """What got worse against the committed figures."""
    faults = []
    for key in ("stack", "spills"):
        if now.get(key, 0) > was.get(key, 0):
            faults.append(f"{kernel}: {key} {was.get(key, 0)} -> {now[key]}")
    for key in (*MATRIX, *WIDE):
        if was.get(key, 0) and not now.get(key, 0):
            faults.append(f"{kernel}: lost all of its {was[key]} {key} instructions")
    for key, growth in (("registers", REGISTERS), ("instructions", INSTRUCTIONS)):
        if now[key] > was[key] * growth:
            faults.append(f"{kernel}: {key} {was[key]} -> {now[key]}, more than {growth - 1:+.0%}")
    return faults


def check(now: Mapping[str, Figures], target: str, toolchain: str, folder: Path = FOLDER) -> list[str]:
    """All faults of a target's kernels; empty when every limit holds."""
    faults = [fault for kernel, figures in now.items() for fault in wrong(kernel, figures, target)]
    budgets = load(target, folder)
    again = f"python -m gristmill.trainer.kernels.aot --target {target} --write"
    if toolchain not in budgets:
        known = "; ".join(sorted(budgets)) or "none"
        return [*faults, f"no figures for {toolchain} (known: {known}): look at the table, then `{again}` and commit"]
    was = budgets[toolchain]
    for kernel, figures in now.items():
        if kernel in was:
            faults += drifted(kernel, figures, was[kernel])
        else:
            faults.append(f"{kernel}: not among the committed figures: `{again}`")
    return faults + [f"{kernel}: committed, but no longer compiled: `{again}`" for kernel in was if kernel not in now]


def load(target: str, folder: Path = FOLDER) -> dict[str, dict[str, dict[str, int]]]:
    """{toolchain: {kernel: figures}} of a target."""
    path = folder / f"{target}.json"
    budgets: dict[str, dict[str, dict[str, int]]] = json.loads(path.read_text()) if path.exists() else {}
    return budgets


def write(now: Mapping[str, Figures], target: str, toolchain: str, folder: Path = FOLDER) -> Path:
    """Put a target's figures in the place of those of the same toolchain; those of others stay."""
    budgets = {**load(target, folder), toolchain: {kernel: dict(figures) for kernel, figures in now.items()}}
    path = folder / f"{target}.json"
    path.parent.mkdir(exist_ok=True)
    rows = {
        name: "{\n"
        + ",\n".join(f"  {json.dumps(kernel)}: {json.dumps(figures)}" for kernel, figures in sorted(kernels.items()))
        + "\n }"
        for name, kernels in sorted(budgets.items())
    }
    path.write_text("{\n" + ",\n".join(f" {json.dumps(name)}: {text}" for name, text in rows.items()) + "\n}\n")
    return path
