"""Heartbeats of a run's ranks, and which rank is slow or stalled while the others wait for it. No torch.

Each rank's thread writes OUT/heartbeat/RANK every few seconds: what the rank was last doing, and at which step. A process
that is gone or stopped writes no more; one that hangs in its own code still writes, but stays behind the others, who wait
for it one place further. Both are named.
"""

from __future__ import annotations

import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

FOLDER = "heartbeat"
PLACES = ("start", "batch", "compute", "update", "report", "save", "evaluate")
"""What a rank does within a step, in this order."""


class Heartbeat:
    """Writes one rank's heartbeat from a thread of its own until it is closed. `at` costs no system call."""

    def __init__(self, out: Path, rank: int, every: float) -> None:
        self.path, self.every = out / FOLDER / str(rank), every
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._now = (0, PLACES[0], time.time())
        self._host = socket.gethostname()
        self._closed = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")
        self._thread.start()

    def at(self, step: int, place: str) -> None:
        """What this rank begins to do now. Raises ValueError when the place is none of PLACES."""
        if place not in PLACES:
            raise ValueError(f"no place {place!r}")
        self._now = (step, place, time.time())

    @property
    def rank(self) -> int:
        return int(self.path.name)

    @property
    def unmoved(self) -> float:
        """Seconds since the last `at`."""
        return time.time() - self._now[2]

    def close(self) -> None:
        """Stop writing and remove the file: a rank that has ended is not stalled."""
        self._closed.set()
        self._thread.join()
        self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._closed.wait(self.every):
            self._write()

    def _write(self) -> None:
        step, place, since = self._now
        data = {"step": step, "place": place, "since": since, "time": time.time(), "host": self._host}
        new = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            new.write_bytes(orjson.dumps(data))
            new.replace(self.path)
        except OSError:
            return  # a full or slow disk must not end a run; the missing beat shows


@dataclass(frozen=True)
class Stalled:
    """A rank that the others wait for. `silent`: seconds since its last heartbeat."""

    rank: int
    host: str
    step: int
    place: str
    silent: float

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}: step {self.step}, {self.place}, heartbeat {self.silent:.0f} s ago"


def stalled(out: Path, now: float, older_than: float) -> list[Stalled]:
    """Ranks to blame while a run stands still: the silent ones, else those that are behind. Empty when none stands out.

    `now` and `older_than` are in seconds (time.time()); a beat that a faster clock dated later moves `now` forward.
    """
    beats = [beat for path in _files(out) if (beat := _read(path)) is not None]
    now = max([now, *(b[1] for b in beats)])
    found = [Stalled(s.rank, s.host, s.step, s.place, now - at) for s, at in beats]
    silent = [s for s in found if s.silent > older_than]
    if silent:
        return silent
    progress = [(s.step, PLACES.index(s.place)) for s in found]
    return [s for s, p in zip(found, progress, strict=True) if p < max(progress)]


class Watchdog:
    """Tells, from a thread, which rank the others wait for: each rank once at each place where it is stuck.

    A rank that is merely behind is told of once this rank (whose heartbeat is `heart`) has not moved for as long.
    """

    def __init__(self, out: Path, heart: Heartbeat, older_than: float, tell: Callable[[Stalled], None]) -> None:
        self.out, self.heart, self.older_than, self.tell = out, heart, older_than, tell
        self._told: set[tuple[int, int, str]] = set()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(self.older_than / 4):
            for rank in stalled(self.out, time.time(), self.older_than):
                stuck = rank.silent > self.older_than or self.heart.unmoved > self.older_than
                key = (rank.rank, rank.step, rank.place)
                if stuck and rank.rank != self.heart.rank and key not in self._told:
                    self._told.add(key)
                    self.tell(rank)


def remove_heartbeats(out: Path, ranks: int) -> None:
    """Remove those of an earlier launch with more than `ranks` ranks; the others are written anew."""
    for path in _files(out):
        if int(path.name) >= ranks:
            path.unlink(missing_ok=True)


def _files(out: Path) -> list[Path]:
    folder = out / FOLDER
    return (
        sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name)) if folder.is_dir() else []
    )


def _read(path: Path) -> tuple[Stalled, float] | None:
    try:
        data = orjson.loads(path.read_bytes())
        place = str(data["place"])
        beat = Stalled(int(path.name), str(data["host"]), int(data["step"]), place, 0.0)
        return (beat, float(data["time"])) if place in PLACES else None
    except (OSError, ValueError, TypeError, KeyError):
        return None  # of another version, or gone since it was listed


def slow_ranks(times: Sequence[float], factor: float, least: float = 0.0) -> list[int]:
    """Ranks whose time is above `factor` times the median of all and above it by more than `least` seconds.

    The median of an even number is the lower middle one, so that of two ranks the slower can be named.
    """
    if len(times) < 2:
        return []
    middle = statistics.median_low(times)
    return [rank for rank, t in enumerate(times) if t > factor * middle and t - middle > least]


def throughput_dropped(rate: float, earlier: Sequence[float], share: float) -> float | None:
    """The median of earlier rates when `rate` is below `share` of it, else None. Judges from the fifth rate on."""
    if len(earlier) < 4:
        return None
    median = statistics.median(earlier)
    return median if rate < share * median else None
