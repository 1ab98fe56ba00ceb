"""The sandbox: pages that crash, hang or eat memory cost themselves only, and nothing else changes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from gristmill.core.errors import GristmillError, UsageError
from gristmill.curate import sandbox as sandboxes
from gristmill.curate.extract import page_text
from gristmill.curate.identify import Identifier
from gristmill.curate.language import find_model
from gristmill.curate.sandbox import Answer, Job, Sandbox
from gristmill.curate.sandbox_child import pack, read_frame
from gristmill.curate.schema import Extract

TYPE = "text/html; charset=utf-8"


@pytest.fixture(scope="module")
def model() -> Path:
    try:
        return find_model()
    except UsageError as error:
        pytest.skip(f"no language model here: {error.hint}")


@pytest.fixture(autouse=True)
def allow_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRISTMILL_TEST_SANDBOX", "1")


def body(i: int, how: str = "", size: int = 3) -> bytes:
    text = f"This is page number {i} about the opening hours of the museum in the old town. " * size
    mark = f"<!--gristmill-test:{how}-->" if how else ""
    return f"<html><head><title>T</title></head><body>{mark}<article><p>{text}</p></article></body></html>".encode()


def job(i: int, how: str = "", size: int = 3) -> tuple[int, Job]:
    return i, Job(body(i, how, size), TYPE)


def plain(i: int, model: Path, size: int = 3) -> Answer:
    """What the sandbox must say of an innocent page: the same functions, in this process."""
    found = page_text(body(i, size=size), TYPE, Extract())
    language, score = Identifier(model).identify([found.text])[0]
    return Answer(found.text, found.charset, language, score, notes=dict(found.notes), facts=dict(found.facts))


def test_answers_in_order_and_equal_to_this_process(model: Path) -> None:
    with Sandbox(Extract(), model) as sandbox:
        found = list(sandbox.map([job(i) for i in range(12)]))
        assert sandbox.started == 1
    assert found == [(i, plain(i, model)) for i in range(12)]
    assert found[0][1] is not None
    assert found[0][1].language == "en"


def test_items_without_a_job_pass_through_in_place(model: Path) -> None:
    items: list[tuple[int, Job | None]] = [job(i) if i % 3 == 0 else (i, None) for i in range(30)]
    with Sandbox(Extract(), model) as sandbox:
        found = list(sandbox.map(items))
    assert [i for i, _ in found] == list(range(30))
    assert [answer is None for _, answer in found] == [i % 3 != 0 for i in range(30)]


def test_without_a_page_no_process_is_started(model: Path) -> None:
    with Sandbox(Extract(), model) as sandbox:
        assert list(sandbox.map([(1, None), (2, None)])) == [(1, None), (2, None)]
        assert list(sandbox.map([])) == []
        assert sandbox.started == 0


def test_large_pages_both_ways(model: Path) -> None:
    """Payloads and texts far beyond a pipe's buffer, several in flight: neither side waits for the other for ever."""
    size = 20_000  # 1.6 MB each
    with Sandbox(Extract(), model) as sandbox:
        found = list(sandbox.map([job(i, size=size) for i in range(6)]))
    assert [answer for _, answer in found] == [plain(i, model, size) for i in range(6)]


@pytest.mark.parametrize(("how", "reason"), [("segv", "extract.killed"), ("oom", "extract.memory")])
def test_a_page_that_kills_its_process_is_quarantined(model: Path, how: str, reason: str) -> None:
    with Sandbox(Extract(memory_mb=600), model) as sandbox:
        found = dict(sandbox.map([job(0), job(1), job(2, how), job(3), job(4)]))
        assert sandbox.started == 3  # the first, one for the retry alone, one for the rest
    assert found[2] == Answer(reason=reason, quarantined=True)
    assert [found[i] for i in (0, 1, 3, 4)] == [plain(i, model) for i in (0, 1, 3, 4)]


def test_a_page_that_burns_cpu_is_hung(model: Path) -> None:
    with Sandbox(Extract(cpu_seconds=1), model) as sandbox:
        found = dict(sandbox.map([job(0), job(1, "hang"), job(2)]))
    assert found[1] == Answer(reason="extract.hung", quarantined=True)
    assert [found[i] for i in (0, 2)] == [plain(i, model) for i in (0, 2)]


def test_a_page_that_is_always_killed_is_quarantined_at_the_third_death(model: Path) -> None:
    with Sandbox(Extract(), model) as sandbox:
        found = dict(sandbox.map([job(0), job(1, "kill"), job(2)]))
        assert sandbox.started == 4
    assert found[1] == Answer(reason="extract.killed", quarantined=True)
    assert [found[i] for i in (0, 2)] == [plain(i, model) for i in (0, 2)]


def test_two_kills_from_outside_count_against_no_page(model: Path, tmp_path: Path) -> None:
    with Sandbox(Extract(), model) as sandbox:
        found = dict(sandbox.map([job(0), job(1, f"kill:2:{tmp_path / 'kills'}"), job(2)]))
        assert sandbox.started == 3
    assert found == {i: plain(i, model) for i in range(3)}


def strike_starts(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Kill the first `times` extraction processes before they are ready. Returns the list their ids go to."""
    monkeypatch.setattr(sandboxes, "PAUSE_SECONDS", 0.02)
    struck: list[int] = []
    begin = sandboxes._Child._start

    def start(self: sandboxes._Child, hello: Mapping[str, Any]) -> None:
        if len(struck) < times:
            struck.append(self.pid)
            os.kill(self.pid, signal.SIGKILL)
        begin(self, hello)

    monkeypatch.setattr(sandboxes._Child, "_start", start)
    return struck


def test_a_process_killed_while_it_starts_is_started_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    struck = strike_starts(monkeypatch, 4)
    with Sandbox(Extract(), model) as sandbox:
        assert list(sandbox.map([job(0)])) == [(0, plain(0, model))]
    assert len(struck) == 4
    assert all(gone(pid, 1.0) for pid in struck)


def test_a_process_that_never_starts_is_an_error(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    struck = strike_starts(monkeypatch, 99)
    with Sandbox(Extract(), model) as sandbox, pytest.raises(GristmillError, match=r"5 times in a row.*status -9"):
        list(sandbox.map([job(0)]))
    assert len(struck) == 5


@pytest.mark.slow
def test_cpu_is_counted_per_page(model: Path) -> None:
    """Many pages may together use far more CPU than one may alone."""
    with Sandbox(Extract(cpu_seconds=1), model) as sandbox:
        found = list(sandbox.map([job(i, size=20_000) for i in range(60)]))
        assert sandbox.started == 1
        assert sandbox.pid is not None
        fields = Path(f"/proc/{sandbox.pid}/stat").read_text().rpartition(")")[2].split()
    used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    assert used > 2.0, f"{used} s is no test of the limit"
    assert all(answer is not None and answer.reason is None for _, answer in found)


@pytest.mark.slow
def test_a_page_that_sleeps_for_good_is_hung(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gristmill.curate.sandbox.POLL_SECONDS", 0.2)
    with Sandbox(Extract(), model, stall_seconds=1.0) as sandbox:
        found = dict(sandbox.map([job(0), job(1, "sleep"), job(2)]))
    assert found[1] == Answer(reason="extract.hung", quarantined=True)
    assert [found[i] for i in (0, 2)] == [plain(i, model) for i in (0, 2)]


@pytest.mark.slow
def test_the_outcome_depends_on_no_window(model: Path) -> None:
    items = [job(0, "segv"), job(1), job(2, "exit"), job(3, "segv"), job(4), (5, None), job(6)]
    found = []
    for window in (1, 2, 7):
        with Sandbox(Extract(), model, window=window) as sandbox:
            found.append(list(sandbox.map(items)))
    assert found[0] == found[1] == found[2]
    assert [answer.quarantined for _, answer in found[0] if answer] == [True, False, True, True, False, False]


def test_one_kill_from_outside_counts_against_no_page(model: Path) -> None:
    with Sandbox(Extract(), model) as sandbox:
        found = []
        for item in sandbox.map([job(i, size=2_000) for i in range(10)]):
            found.append(item)
            if len(found) in (1, 5):
                assert sandbox.pid is not None
                os.kill(sandbox.pid, signal.SIGKILL)
        assert sandbox.started >= 2
    assert found == [(i, plain(i, model, 2_000)) for i in range(10)]


def test_signals_meant_for_the_run_do_not_reach_a_page(model: Path) -> None:
    with Sandbox(Extract(), model) as sandbox:
        found = []
        for item in sandbox.map([job(i, size=1_000) for i in range(6)]):
            found.append(item)
            assert sandbox.pid is not None
            for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(sandbox.pid, name)
        assert sandbox.started == 1
    assert found == [(i, plain(i, model, 1_000)) for i in range(6)]


@pytest.mark.slow
def test_processes_are_recycled(model: Path) -> None:
    with Sandbox(Extract(recycle_pages=3), model) as sandbox:
        found = list(sandbox.map([job(i) for i in range(10)]))
        assert sandbox.started == 4
    assert found == [(i, plain(i, model)) for i in range(10)]


def test_the_marks_do_nothing_without_the_variable(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRISTMILL_TEST_SANDBOX")
    with Sandbox(Extract(), model) as sandbox:
        found = dict(sandbox.map([job(0, "segv"), job(1, "hang")]))
    assert [found[i] for i in (0, 1)] == [plain(i, model) for i in (0, 1)]


def test_reasons_come_through_with_their_values(model: Path) -> None:
    settings = Extract(max_nodes=8, min_chars=40)
    many, none = b"<html><body>" + b"<p>x</p>" * 9, b"<html><body></body></html>"
    with Sandbox(settings, model) as sandbox:
        found = dict(sandbox.map([(0, Job(many)), (1, Job(none, "x; charset=\ud800"))]))
    answers = [a for a in found.values() if a is not None]
    assert [(a.reason, a.value, a.threshold) for a in answers] == [
        ("extract.too_many_nodes", 20.0, 8.0),
        ("extract.no_text", 0.0, 40.0),
    ]
    assert not any(a.quarantined or a.text for a in answers)


def test_a_process_that_cannot_start_is_an_error_not_a_quarantine(model: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.ftz"
    bad.write_bytes(b"no model")
    with Sandbox(Extract(), bad) as sandbox, pytest.raises(GristmillError, match="not a fastText model"):
        list(sandbox.map([job(0)]))
    small = Extract().model_copy(update={"memory_mb": 128})  # below what the schema allows
    with Sandbox(small, model) as sandbox, pytest.raises(GristmillError, match="cannot start"):
        list(sandbox.map([job(0)]))


ORPHAN = """
import sys, time
from gristmill.curate.language import find_model
from gristmill.curate.sandbox import Job, Sandbox
from gristmill.curate.schema import Extract
with Sandbox(Extract(), find_model()) as sandbox:
    for _ in sandbox.map([(0, Job(b"<html><body><p>One page of words.</p></body></html>")), (1, None)]):
        break
    print(sandbox.pid, flush=True)
    HANG
    time.sleep(600)
"""
IN_HAND = "list(sandbox.map([(0, Job(b'<html><!--gristmill-test:hang--></html>'))]))"


@pytest.mark.parametrize("in_hand", [False, True])
def test_a_killed_parent_leaves_no_process(model: Path, in_hand: bool) -> None:
    script = ORPHAN.replace("HANG", IN_HAND if in_hand else "pass")
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    if in_hand:
        time.sleep(0.5)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert gone(child, 10.0)


def test_closing_leaves_no_process(model: Path) -> None:
    with Sandbox(Extract(), model) as sandbox:
        list(sandbox.map([job(0)]))
        child = sandbox.pid
    assert child is not None
    assert gone(child, 1.0)


def gone(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                time.sleep(0.05)
                continue
        return True
    return False


def test_two_sandboxes_in_two_threads(model: Path) -> None:
    found: dict[int, list[tuple[int, Answer | None]]] = {}

    def work(n: int) -> None:
        with Sandbox(Extract(), model) as sandbox:
            found[n] = list(sandbox.map([job(i) for i in range(n, n + 6)]))

    threads = [threading.Thread(target=work, args=(n,)) for n in (0, 100)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == {n: [(i, plain(i, model)) for i in range(n, n + 6)] for n in (0, 100)}


def test_the_source_is_read_lazily(model: Path) -> None:
    """Never more than the window and the queue are read ahead of what was answered."""
    seen = []

    def source() -> Iterator[tuple[int, Job | None]]:
        for i in range(40):
            seen.append(i)
            yield job(i)

    with Sandbox(Extract(), model, window=3) as sandbox:
        for i, _ in sandbox.map(source()):
            assert len(seen) <= i + 1 + 3


def test_frames_survive_a_cut(tmp_path: Path) -> None:
    whole = b"".join(pack({"a": 1}, b"xyz"))
    for n in range(len(whole)):
        path = tmp_path / "cut"
        path.write_bytes(whole[:n])
        with open(path, "rb") as f:
            assert read_frame(f) is None
    path.write_bytes(whole * 2)
    with open(path, "rb") as f:
        assert [read_frame(f), read_frame(f), read_frame(f)] == [({"a": 1}, b"xyz"), ({"a": 1}, b"xyz"), None]
