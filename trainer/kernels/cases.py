"""The list of kernel files, and of each file's launches at the presets' shapes: what aot.py compiles.

A kernel file has `aot_cases() -> list[(name, launch)]`: launch() calls the production launcher on device="meta" tensors.
Names say preset and dtype ("llama-3-8b/bf16"); a file's names are distinct.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

Case = tuple[str, Callable[[], object]]

PACKAGE = "gristmill.trainer.kernels"
FILES = ("norm", "rope", "mlp", "linear_ce", "attention", "adam", "newton_schulz")
MODULES = tuple(f"{PACKAGE}.{file}" for file in FILES)


def cases(module: str) -> list[Case]:
    """The launches of a kernel file, by its dotted name."""
    found: list[Case] = importlib.import_module(module).aot_cases()
    assert len({name for name, _ in found}) == len(found), f"{module} has two cases of one name"
    return found
