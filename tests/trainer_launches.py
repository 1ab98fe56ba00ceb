"""Real launches for tests: start one, find its ranks, wait for a step, and kill what is asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson

WAIT_SECONDS = 120.0  # two cores may be shared by many tests


def write_run(folder: Path, run: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.json"
    path.write_bytes(orjson.dumps(run.model_dump(mode="json")))
    return path


def command(run: Path, dataset: Path, out: Path) -> list[str]:
    options = ["--settings", run, "--dataset", dataset, "--tokenizer", dataset / "tokenizer.json", "--out", out]
    return [sys.executable, "-m", "gristmill.trainer.launch", *map(str, options)]


def launch(run: Path, dataset: Path, out: Path, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(command(run, dataset, out), stderr=subprocess.PIPE, text=True, **options)


def end(child: subprocess.Popen[str]) -> tuple[int, str]:
    """(exit code, standard error)."""
    err = child.communicate(timeout=WAIT_SECONDS)[1]
    return child.returncode, err


def steps_done(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_step(child: subprocess.Popen[str], out: Path, step: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while steps_done(out) < step:
        assert child.poll() is None, f"ended before step {step}: {end(child)}"
        assert time.monotonic() < deadline, f"{out} did not reach step {step}"
        time.sleep(0.002)


def ranks_of(pid: int) -> dict[int, int]:
    """{rank: process id} of the ranks that a launch started."""
    found: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) != pid:
                continue
            variables = (folder / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        ranks = [int(v[5:]) for v in variables if v.startswith(b"RANK=")]
        found |= {rank: int(folder.name) for rank in ranks}
    return found


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(*pids: int, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.05)
