"""Keeps one idle extraction process for the next file of this worker: starting one costs 0.4 to 2 s of CPU.

It is taken again only for the same settings, model and worker process, lives at most IDLE_SECONDS between two files and
counts its pages over all of them, so that it is replaced after as many as ever. A text depends on no page before it, so
who extracted which page decides nothing.
"""

from __future__ import annotations

import atexit
import os
import threading
from dataclasses import dataclass
from typing import Protocol

IDLE_SECONDS = 20.0
"""A worker that goes on with another stage does not keep the process's memory (100 to 300 MB) much longer."""


class Child(Protocol):
    """What is kept: `curate.sandbox`'s handle of a living process."""

    def alive(self) -> bool: ...

    def end(self) -> int: ...


@dataclass
class _Kept:
    key: str
    child: Child
    owner: int
    timer: threading.Timer


_lock = threading.Lock()
_kept: _Kept | None = None


def keep(key: str, child: Child) -> None:
    """Leave a child without a page in hand to the next file; one that was kept before is ended."""
    global _kept
    release()
    timer = threading.Timer(IDLE_SECONDS, _expire, [child])
    timer.daemon = True
    with _lock:
        _kept = _Kept(key, child, os.getpid(), timer)
    timer.start()


def take(key: str) -> Child | None:
    """The kept child if it lives and was started the same way, else None: then any kept one is ended."""
    found = _remove()
    if found is None:
        return None
    if found.key == key and found.child.alive():
        return found.child
    found.child.end()
    return None


def release() -> None:
    """End the kept child, if there is one. Called at the interpreter's end, too."""
    if (found := _remove()) is not None:
        found.child.end()


def _remove() -> _Kept | None:
    global _kept
    with _lock:
        found, _kept = _kept, None
    if found is None or found.owner != os.getpid():  # after a fork it is another process's child
        return None
    found.timer.cancel()
    return found


def _expire(child: Child) -> None:
    with _lock:
        ours = _kept is not None and _kept.child is child
    if ours:
        release()


atexit.register(release)
