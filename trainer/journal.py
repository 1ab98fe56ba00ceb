"""A JSONL file with one record per step that is cut back to a checkpoint's step when a run resumes. No torch.

After a kill the file holds steps that the checkpoint does not, perhaps half a line. Cutting those off and training them
again gives the bytes of an undisturbed run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from gristmill.core.errors import FormatError


class Journal:
    """Opened at a step: later records are gone. A `complete` one must hold every step to it, or those `needed`."""

    def __init__(self, path: Path, step: int, *, complete: bool, needed: Iterable[int] | None = None) -> None:
        kept, size = _prefix(path, step)
        wanted = set(range(1, step + 1) if needed is None else needed) if complete else set()
        if wanted - set(kept) or (complete and len(set(kept)) != len(kept)):
            raise FormatError(
                f"{path} does not hold the steps up to {step} of its checkpoint",
                hint=f"remove {path.parent} to train from the beginning",
            )
        self._file = open(path, "ab")  # noqa: SIM115  closed by close()
        self._file.truncate(size)

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(orjson.dumps(record) + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """On disk before a checkpoint that relies on it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All whole records."""
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def _prefix(path: Path, step: int) -> tuple[list[int], int]:
    """Steps of the leading records up to `step`, and their size in bytes. Stops at the first line that is not whole."""
    steps: list[int] = []
    size = 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            number = int(orjson.loads(line)["step"])
        except (ValueError, TypeError, KeyError):
            break
        if not line.endswith(b"\n") or number > step:
            break
        steps.append(number)
        size += len(line)
    return steps, size
