"""Runs the kernels of this folder in triton's interpreter, patched for bf16.

Triton decides on import, by TRITON_INTERPRET, whether a kernel is interpreted. The variable is taken away again once triton
is imported, so that processes which other tests start (the ahead-of-time compiler, trainers) don't inherit it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import kernel_errors
import pytest
import torch

if "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"
import triton
from triton import knobs

if not knobs.runtime.interpret:
    raise pytest.UsageError(
        "triton was imported without TRITON_INTERPRET=1 before tests/kernels: run that folder alone"
    )
knobs.runtime.__dict__["interpret"] = True  # what the knob's own setter does, but for writing the variable
os.environ.pop("TRITON_INTERPRET", None)

from gristmill.trainer.kernels.interpret import interpreting  # noqa: E402

assert interpreting()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """This folder is run by its name alone, and then all of it: its slow tests, too."""
    for item in items:
        item.own_markers = [mark for mark in item.own_markers if mark.name != "slow"]
        for parent in item.listchain()[:-1]:
            parent.own_markers = [mark for mark in parent.own_markers if mark.name != "slow"]


@pytest.fixture(autouse=True)
def interpreted() -> None:
    """No test of this folder may run what it thinks is interpreted on something else."""
    assert interpreting(), f"triton {triton.__version__} has left the interpreter"


@pytest.fixture(autouse=True)
def unwritten_is_nan() -> Iterator[None]:
    """What torch.empty hands out is NaN: an element that no program wrote can't pass as the last call's right answer."""
    torch.use_deterministic_algorithms(
        True, warn_only=True
    )  # torch.utils.deterministic.fill_uninitialized_memory is on
    yield
    torch.use_deterministic_algorithms(False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The worst errors of the kernels that noted theirs."""
    lines = kernel_errors.table()
    if lines:
        terminalreporter.section("worst errors against the oracles")
        terminalreporter.write_line("\n".join(lines))
