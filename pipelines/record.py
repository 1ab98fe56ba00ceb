"""What a run leaves behind for people: ROOT/runs/0007/{run.json, events.jsonl, failed/*.txt}. Nothing here decides a byte."""

from __future__ import annotations

import datetime
import os
import platform
import socket
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import orjson

from gristmill.core.manifest import write_atomic

LIBRARIES = (
    "gristmill",
    "trafilatura",
    "resiliparse",
    "fasttext-numpy2",
    "datatrove",
    "spacy",
    "datasketch",
    "tokenizers",
    "pyarrow",
    "dask",
    "torch",
    "triton",
)


class RunRecord:
    """One invocation of `run`: its arguments, versions, timings and events."""

    def __init__(self, root: Path, argv: list[str]) -> None:
        runs = root / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        taken = [int(p.name) for p in runs.iterdir() if p.name.isdigit()]
        self.number = max(taken, default=0) + 1
        self.folder = runs / f"{self.number:04d}"
        self.folder.mkdir()
        self.data: dict[str, Any] = {
            "format": "gristmill-run-1",
            "argv": argv,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "python": platform.python_version(),
            "versions": versions(),
            "started": now(),
            "stages": {},
        }
        self._events = open(self.folder / "events.jsonl", "ab", buffering=0)  # noqa: SIM115
        self.save()

    def event(self, kind: str, **details: Any) -> None:
        self._events.write(orjson.dumps({"time": now(), "event": kind, **details}) + b"\n")

    def failure(self, stage: str, task: str, text: str) -> Path:
        path = self.folder / "failed" / f"{stage}-{task[:12]}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    def save(self) -> None:
        write_atomic(self.folder / "run.json", orjson.dumps(self.data, option=orjson.OPT_INDENT_2))

    def close(self, outcome: str, exit_code: int) -> None:
        self.data |= {"finished": now(), "outcome": outcome, "exit_code": exit_code}
        self.save()
        self._events.close()


def versions() -> dict[str, str]:
    out = {}
    for name in LIBRARIES:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def command_line() -> list[str]:
    """The command as a user would type it again."""
    name = os.path.basename(sys.argv[0])
    return ["gristmill" if name in ("gristmill", "__main__.py", "main.py") else name, *sys.argv[1:]]
