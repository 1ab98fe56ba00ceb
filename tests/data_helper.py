"""Where tests find real data: $GRISTMILL_TEST_DATA, else ../shared/data beside the repository; else they skip."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


def data_root() -> Path | None:
    """The data folder, or None when there is none on this machine."""
    named = os.environ.get("GRISTMILL_TEST_DATA")
    path = Path(named) if named else REPO.parent / "shared" / "data"
    return path if path.is_dir() else None


def shared_data(name: str) -> Path:
    """A file or folder of the shared test data. Skips the calling test when it is absent."""
    root = data_root()
    if root is None or not (root / name).exists():
        pytest.skip(f"no test data: {name} not found (set GRISTMILL_TEST_DATA)")
    return root / name
