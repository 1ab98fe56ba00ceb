"""One live run per root: a file lock that names its holder and dies with it.

flock is released by the kernel when its process ends, kill -9 included, so a dead lease is taken over unaided.
"""

from __future__ import annotations

import datetime
import fcntl
import os
import socket
from pathlib import Path
from types import TracebackType

import orjson

from gristmill.core.errors import LeaseHeld


class Lease:
    """`with Lease(root, "run web.yaml"):` raises LeaseHeld, naming host, pid and since when, if another run holds it."""

    def __init__(self, root: Path, what: str) -> None:
        self.path = root / "lease.json"
        self.what = what
        self._file: int | None = None
        self.took_over: dict[str, object] | None = None

    def __enter__(self) -> Lease:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = _read(handle)
            os.close(handle)
            raise LeaseHeld(
                f"{self.path.parent} is held by {holder.get('host', '?')}:{holder.get('pid', '?')} "
                f"({holder.get('what', '?')}) since {holder.get('since', '?')}",
                hint="wait for that run, or stop it: the lease is freed when its process ends",
            ) from None
        self.took_over = _read(handle) or None
        mine = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "what": self.what,
            "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(handle, 0)
        os.pwrite(handle, orjson.dumps(mine), 0)
        self._file = handle
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.ftruncate(self._file, 0)
            os.close(self._file)
            self._file = None


def holder(root: Path) -> dict[str, object] | None:
    """Who holds the root right now; None when nobody does. Takes nothing."""
    try:
        handle = os.open(root / "lease.json", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _read(handle)
    finally:
        os.close(handle)
    return None


def _read(handle: int) -> dict[str, object]:
    try:
        data = orjson.loads(os.pread(handle, 4096, 0) or b"{}")
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}
