"""The peer's interpreter for this folder's tests, and `--all`: the real data, too, which then must be there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from data_helper import REPO, data_root


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="compare on all pages and texts of the test data, too")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "real: needs the test data; run with --all, fails without it")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--all"):
        return
    real = [item for item in items if item.get_closest_marker("real")]
    if real:
        config.hook.pytest_deselected(items=real)
        items[:] = [item for item in items if item not in real]


@pytest.fixture(scope="session")
def peer() -> Path:
    """The peer's interpreter, built when missing. Fails, never skips."""
    python = REPO / ".venv-parity" / "bin" / "python"
    if not (REPO / ".venv-parity" / ".gristmill").is_file():
        built = subprocess.run(["make", "parity"], cwd=REPO, capture_output=True, text=True)
        if built.returncode:
            pytest.fail(f"`make parity` failed:\n{built.stdout[-2000:]}\n{built.stderr[-4000:]}", pytrace=False)
    return python


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of the test data. Fails, never skips."""
    root = data_root()
    if root is None:
        pytest.fail("--all needs the test data (set GRISTMILL_TEST_DATA)", pytrace=False)
    return root
