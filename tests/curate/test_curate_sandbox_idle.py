"""One extraction process for several files of a worker: when it is taken again, and when it is not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gristmill.core.errors import UsageError
from gristmill.curate import sandbox_idle
from gristmill.curate.language import find_model
from gristmill.curate.sandbox import Answer, Job, Sandbox
from gristmill.curate.schema import Extract

WORDS = "A page of plain English words that is long enough for an engine to keep as its main text. "
FAST = Extract(engine="resiliparse")


@pytest.fixture(scope="module")
def model() -> Path:
    try:
        return find_model()
    except UsageError as error:
        pytest.skip(f"no language model here: {error.hint}")


@pytest.fixture(autouse=True)
def _no_process_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GRISTMILL_TEST_SANDBOX", "1")
    sandbox_idle.release()
    yield
    sandbox_idle.release()


def job(mark: str = "") -> Job:
    return Job(f"<html><body>{mark}<article><p>{WORDS * 4}</p></article></body></html>".encode(), "text/html")


def answers(model: Path, settings: Extract, *jobs: Job, keep: bool = True) -> tuple[int | None, list[Answer | None]]:
    """(the process that gave the last answer, the answers)."""
    pid = None
    found = []
    with Sandbox(settings, model, keep=keep) as sandbox:
        for _, answer in sandbox.map(enumerate(jobs)):
            pid = sandbox.pid or pid
            found.append(answer)
    return pid, found


def alive(pid: int | None) -> bool:
    try:
        os.kill(pid or 0, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_next_file_takes_it_and_gives_the_same(model: Path) -> None:
    first, one = answers(model, FAST, job())
    assert alive(first)
    second, two = answers(model, FAST, job(), job())
    assert (second, two) == (first, one * 2)
    alone, three = answers(model, FAST, job(), keep=False)
    assert alone != first
    assert three == one
    sandbox_idle.release()
    assert not alive(first)


def test_other_settings_or_surroundings_start_another(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = answers(model, FAST, job())
    second, _ = answers(model, Extract(engine="resiliparse", tables=False), job())
    assert second != first
    assert not alive(first)
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    third, _ = answers(model, Extract(engine="resiliparse", tables=False), job())
    assert third != second


def test_pages_count_over_files(model: Path) -> None:
    settings = Extract(engine="resiliparse", recycle_pages=3)
    first, _ = answers(model, settings, job(), job())
    assert alive(first)
    with Sandbox(settings, model, keep=True) as sandbox:
        pids = [sandbox.pid for _ in sandbox.map((i, job()) for i in range(3))]
        assert sandbox.started == 1, "the first page went to the kept process, the others to a new one"
    assert not alive(first)
    assert first not in pids[1:]


def test_one_that_died_or_is_at_work_is_not_kept(model: Path) -> None:
    first, _ = answers(model, FAST, job())
    os.kill(first or 0, 9)
    second, found = answers(model, FAST, job())
    assert second != first
    assert [a.reason for a in found if a] == [None]
    _, dead = answers(model, FAST, job(), job("<!--gristmill-test:exit-->"))
    assert [a.reason for a in dead if a] == [None, "extract.killed"]
    with Sandbox(FAST, model, keep=True) as sandbox:
        assert [answer.reason for _, answer in sandbox.map([(0, job())]) if answer] == [None]
        busy = sandbox.pid
        assert sandbox._child is not None
        sandbox._child.send(job())  # on its way, and nobody reads the answer
    assert not alive(busy)


def test_a_process_that_kept_one_ends_cleanly(model: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from gristmill.curate.sandbox import Job, Sandbox
from gristmill.curate.schema import Extract
with Sandbox(Extract(engine="resiliparse"), Path({str(model)!r}), keep=True) as sandbox:
    for _ in sandbox.map([(0, Job(b"<p>{WORDS}"))]):
        print(sandbox.pid)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert not alive(int(done.stdout))
