"""Bugs planted into kernels: a copy of a kernel file with one text replaced takes the place of its kernel."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def plant(monkeypatch: pytest.MonkeyPatch, folder: Path, module: ModuleType, kernel: str, old: str, new: str) -> None:
    """module.kernel is, until the test ends, the one of a copy of the module in which `old` (there once) reads `new`."""
    assert module.__file__
    source = Path(module.__file__).read_text()
    assert source.count(old) == 1, f"{old!r} is {source.count(old)} times in {module.__file__}"
    copy = folder / f"planted_{kernel}.py"  # a file: triton reads a kernel's source from it
    copy.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location(copy.stem, copy)
    assert spec
    assert spec.loader
    planted = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(planted)
    monkeypatch.setattr(module, kernel, getattr(planted, kernel))
