"""Lost workers: a start, a wait and a drain that outlive them, and a run whose workers die all the time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from worlds import gristmill, page, response, shown, start, write_warc

from gristmill.core.errors import GristmillError, UsageError
from gristmill.pipelines import cluster as clusters


class Workers:
    """What `Pool` needs of a client and of an as_completed, with a number of workers that tests set."""

    def __init__(self, found: int = 0, ready: list[str] | None = None) -> None:
        self.found, self.ready = found, ready or []
        self.thread_condition = threading.Condition()
        self.cluster = type("Cluster", (), {"worker_spec": {}})()

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        return {"workers": dict.fromkeys(range(self.found))}

    def has_ready(self) -> bool:
        return bool(self.ready)

    def __next__(self) -> str:
        return self.ready.pop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(clusters, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(clusters, "LOST_SECONDS", 0.1)


def connected(monkeypatch: pytest.MonkeyPatch, *outcomes: Any) -> list[str]:
    """Let `connect` give each outcome in turn, the last for ever. Returns what it was asked and what was closed."""
    left, log = list(outcomes), []

    @contextlib.contextmanager
    def connect(spec: str) -> Any:
        log.append("start")
        outcome = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(outcome, Exception):
            raise outcome
        yield outcome
        log.append("close")

    monkeypatch.setattr(clusters, "connect", connect)
    return log


def pool(spec: str = "local:1", said: list[str] | None = None, stopped: bool = False) -> clusters.Pool:
    lines: list[str] = [] if said is None else said
    return clusters.Pool(spec, lines.append, lambda: stopped)


DEAD = RuntimeError("Nanny failed to start.")


def test_a_cluster_that_fails_to_start_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Workers()
    log = connected(monkeypatch, DEAD, OSError("reset"), client)
    assert pool().client is client
    assert log == ["start"] * 3


def test_a_cluster_that_never_starts_is_an_error_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    log = connected(monkeypatch, DEAD)
    with pytest.raises(GristmillError, match="did not start in 6 tries: Nanny failed") as caught:
        _ = pool().client
    assert "resumes" in str(caught.value.hint)
    assert len(log) == clusters.START_TRIES


def test_a_wrong_address_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    log = connected(monkeypatch, UsageError("no Dask scheduler answers"))
    with pytest.raises(UsageError):
        _ = pool("tcp://127.0.0.1:1").client
    assert log == ["start"]


def test_a_stop_ends_the_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    log = connected(monkeypatch, DEAD)
    with pytest.raises(GristmillError):
        _ = pool(stopped=True).client
    assert log == ["start"]


def test_a_local_cluster_without_workers_is_lost_and_restarted_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    log = connected(monkeypatch, Workers())
    lost = pool()
    for _ in range(clusters.RESTARTS):
        assert lost.next_ended(lost.client) is None
        lost.restart()
    with pytest.raises(GristmillError, match="4 times in a row"):
        lost.restart()
    assert log == ["start", "close"] * (clusters.RESTARTS + 1)


def test_a_task_that_ends_forgives_the_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    connected(monkeypatch, Workers())
    lost = pool()
    lost.restart()
    assert lost.restarts == 1
    assert lost.next_ended(Workers(ready=["future"])) == "future"
    assert lost.restarts == 0


def test_a_scheduler_elsewhere_is_waited_for_and_that_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Workers()
    connected(monkeypatch, client)
    said: list[str] = []
    later = threading.Timer(0.5, lambda: client.ready.append("future"))  # five times LOST_SECONDS
    later.start()
    assert pool("tcp://host:8786", said).next_ended(client) == "future"
    assert said == ["tcp://host:8786 has no workers: waiting for some"]


@pytest.mark.parametrize("spec", ["local:1", "tcp://host:8786"])
def test_a_drain_without_workers_ends_at_once(monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    monkeypatch.setattr(clusters, "LOST_SECONDS", 60.0)
    client = Workers()
    connected(monkeypatch, client)
    began = time.monotonic()
    assert pool(spec, stopped=True).next_ended(client) is None
    assert time.monotonic() - began < 5


@pytest.fixture(scope="module")
def warc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = "The museum in the old town opens at nine and closes at five on every day of the week but Monday."
    folder = tmp_path_factory.mktemp("warcs")
    for n in range(3):
        records = [
            response(
                f"https://example.org/{n}/{i}", page(f"Page {n} {i}", [f"{words} Hall {i * k}." for k in range(9)])
            )
            for i in range(8)
        ]
        write_warc(folder / f"{n}.warc.gz", records)
    return folder


def arguments(warc: Path, root: Path) -> list[str]:
    paths = json.dumps([str(warc / "*.warc.gz")])
    given = ["--root", str(root), "--set", f"input.paths={paths}", "--to", "curate.decide"]
    return ["run", "demo", *given, "--cluster", "local:1"]


def workers_of(driver: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if not entry.name.isdigit() or b"spawn_main" not in (entry / "cmdline").read_bytes():
                continue
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == driver:
                found.append(int(entry.name))
    return found


def digests(root: Path) -> dict[str, str]:
    return {name: stage["digest"] for name, stage in shown(root).items()}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds workers through /proc")
@pytest.mark.parametrize("first", [0.3, 2.5])
def test_a_run_whose_workers_die_all_the_time_gives_the_same_bytes(warc: Path, tmp_path: Path, first: float) -> None:
    calm = gristmill(*arguments(warc, tmp_path / "calm"))
    assert calm.returncode == 0, calm.stderr
    assert "8787" not in calm.stderr
    log = tmp_path / "log"
    driver = start(*arguments(warc, tmp_path / "root"), log=log)
    struck: set[int] = set()

    def strike() -> None:
        while not workers_of(driver.pid) and driver.poll() is None:
            time.sleep(0.05)
        time.sleep(first)
        end = time.monotonic() + 6
        while time.monotonic() < end:
            for pid in workers_of(driver.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    struck.add(pid)
            time.sleep(1.0)

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        code = driver.wait(200)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
        thread.join()
    assert code == 0, log.read_text()
    assert len(struck) >= 2
    assert "Traceback" not in log.read_text()
    assert digests(tmp_path / "root") == digests(tmp_path / "calm")
