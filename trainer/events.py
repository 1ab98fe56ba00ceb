"""events.jsonl: what the guards did in a run, one JSON object a line, cut back to a checkpoint's count on resume. No torch.

An event is named by its number from 1: a rewind takes the steps back but not the events, so a checkpoint keeps how many
there were, not which steps they belong to. Nothing in the file depends on time: a killed and resumed run gives the same
bytes. Keys: event, step, phase, action (warn, skip_update, defer, rewind, stop), cause (loss, grad_norm, nonfinite),
reason (one sentence), value, threshold, mean, std, steps_judged (in the window), applied, rows ([phase, first row, rows]),
documents (how many), document_ids (where a report was written), edits, to_step (of a rewind), report (path prefix or null).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from gristmill.core.errors import FormatError

FILE = "events.jsonl"
Event = dict[str, Any]


class EventLog:
    """Opened with the number of events to keep: later ones, written after the checkpoint, are gone."""

    def __init__(self, path: Path, keep: int) -> None:
        size = 0
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines[:keep] if line.endswith(b"\n")]
        if len(whole) < keep:
            raise FormatError(
                f"{path} holds {len(whole)} of the {keep} events of its checkpoint",
                hint=f"remove {path.parent} to train from the beginning",
            )
        size = sum(map(len, whole))
        self._file = open(path, "ab")  # noqa: SIM115  closed by close()
        self._file.truncate(size)

    def write(self, event: Event) -> None:
        """On disk when it returns: the action that follows may be the run's last."""
        self._file.write(orjson.dumps(event) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_events(folder: Path) -> list[Event]:
    """The whole events of a run's folder; none where no guard ever acted. Raises FormatError on a damaged line."""
    path = folder / FILE
    if not path.exists():
        return []
    events = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break  # being written
        try:
            event = orjson.loads(line)
            int(event["event"]), int(event["step"])
        except (ValueError, TypeError, KeyError) as error:
            raise FormatError(f"{path}:{number} is no event: {error}") from error
        events.append(event)
    return events


def row_ranges(rows: Iterable[tuple[str, int]]) -> list[list[Any]]:
    """[phase, first row, rows] of each run of neighbouring rows, in the given order."""
    out: list[list[Any]] = []
    for phase, row in rows:
        if out and out[-1][0] == phase and sum(out[-1][1:]) == row:
            out[-1][2] += 1
        else:
            out.append([phase, row, 1])
    return out


def rows_in(ranges: Iterable[list[Any]]) -> list[tuple[str, int]]:
    """The inverse of `row_ranges`."""
    return [(phase, row) for phase, first, count in ranges for row in range(first, first + count)]
