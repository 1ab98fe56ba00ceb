"""A launch of several processes: one voice, one exit code, one death; and the flag that stops them together."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from trainer_launches import (  # noqa: E402
    WAIT_SECONDS,
    alive,
    end,
    kill,
    launch,
    ranks_of,
    wait_for_step,
    wait_until_gone,
    write_run,
)

from gristmill.core.errors import FormatError, LeaseHeld, UsageError  # noqa: E402
from gristmill.trainer import launch as launching  # noqa: E402
from gristmill.trainer import outcome, ranks, stopping, train  # noqa: E402
from gristmill.trainer.exchange import Exchange  # noqa: E402
from gristmill.trainer.outcome import Exit  # noqa: E402
from gristmill.trainer.parallel.mesh import World  # noqa: E402
from gristmill.trainer.stopping import Stop  # noqa: E402

ALONE = Exchange(World(torch.device("cpu")))
SLOW_MODEL = {"layers": 8, "hidden": 256, "heads": 4, "kv_heads": 2, "head_dim": 64, "ffn": 1024}  # seconds of training


# no two ranks share 3 heads
ODD_MODEL = {"layers": 2, "hidden": 32, "heads": 3, "kv_heads": 3, "head_dim": 8, "ffn": 64}


class Leader:
    """Rank 0 as Stop sees it; the other rank is asked to stop when `other` is true."""

    leads = True
    other = False

    def any(self, *flags: bool) -> tuple[bool, ...]:
        return tuple(flag or self.other for flag in flags)


class Follower(Leader):
    leads = False


def test_the_trigger_file_counts_for_the_leading_rank_and_goes_when_honoured(tmp_path):
    said: list[str] = []
    stop = Stop(tmp_path, said.append)
    assert not stop.agreed(ALONE)
    stop.file.touch()
    assert not stop.agreed(ALONE), "looked again at once"
    stop._looked -= stopping.POLL_SECONDS
    assert stop.agreed(ALONE)
    assert stop.agreed(ALONE)
    assert said == [f"{stop.file} is there: stopping after this step"]
    stop.honoured()
    stop.honoured()
    assert not stop.file.exists()
    other = Stop(tmp_path)
    other.file.touch()
    assert not other.agreed(Follower()), "only rank 0 looks"


def test_a_rank_that_was_not_asked_hears_of_it(tmp_path):
    said: list[str] = []
    stop, two = Stop(tmp_path, said.append), Leader()
    assert not stop.agreed(two)
    two.other = True
    assert stop.agreed(two)
    assert said == ["another rank was told to stop: stopping after this step"]


def test_a_lost_rank_makes_the_agreement_fail(tmp_path):
    class Broken(Leader):
        def any(self, *flags: bool) -> tuple[bool, ...]:
            raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1")

    stop = Stop(tmp_path)
    stop.ask("SIGTERM")
    with pytest.raises(RuntimeError) as caught:
        stop.agreed(Broken())
    assert outcome.of_error(caught.value).peer


def test_the_first_signal_asks_and_a_later_one_ends(monkeypatch):
    asked: list[str] = []
    ended = threading.Event()
    monkeypatch.setattr(stopping, "AGAIN_SECONDS", 0.2)
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    with stopping.signals(asked.append, ended.set):
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)  # at once: the same request
        deadline = time.monotonic() + 5
        while not asked and time.monotonic() < deadline:
            time.sleep(0.01)
        assert asked == ["SIGUSR1"] or asked == ["SIGTERM"]
        assert not ended.is_set()
        time.sleep(0.25)
        os.kill(os.getpid(), signal.SIGINT)
        assert ended.wait(5)
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("exits", "killed", "code", "message"),
    [
        ({0: Exit(0), 1: Exit(0)}, {1: "SIGKILL"}, 1, "rank 1 was ended by SIGKILL, as the kernel does"),
        ({0: Exit(1, "lost", peer=True, at=1.0)}, {1: "SIGSEGV"}, 1, "rank 1 was ended by SIGSEGV"),
        ({0: Exit(1, "gloo", peer=True, at=1.0), 1: Exit(2, "bad setting", at=2.0)}, {}, 2, "bad setting"),
        ({0: Exit(1, "late", at=3.0), 1: Exit(1, "early", at=2.0)}, {}, 1, "early"),
        ({0: Exit(1, "gloo", peer=True, at=1.0)}, {}, 1, "rank 0 lost another process: gloo"),
        ({0: Exit(130), 1: Exit(130)}, {}, 130, ""),
        ({0: Exit(130), 1: Exit(1, "disk", at=1.0)}, {}, 1, "disk"),
        ({}, {}, 1, "a process ended without saying why"),
    ],
)
def test_one_outcome_from_many(exits, killed, code, message):
    found = outcome.root_cause(exits, killed)
    assert found.code == code
    assert found.message.startswith(message)


def test_outcomes_on_disk(tmp_path):
    outcome.clear(tmp_path)
    first = outcome.of_error(FormatError("bad file", hint="mend it"))
    outcome.write(tmp_path, 0, first)
    outcome.write(tmp_path, 1, Exit(130))
    (tmp_path / outcome.FOLDER / "2.json").write_text("{")
    (tmp_path / outcome.FOLDER / "x.json").write_text("{}")
    assert outcome.read(tmp_path) == {0: first, 1: Exit(130)}
    assert first.render() == "error: bad file\n  hint: mend it"
    full = outcome.of_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x/metrics.jsonl"))
    assert full.message == "x/metrics.jsonl: No space left on device"
    assert outcome.of_error(UsageError("no")).code == 2
    assert not outcome.of_error(RuntimeError("shape mismatch")).peer
    outcome.clear(tmp_path)
    assert outcome.read(tmp_path) == {}


def test_lines_of_other_ranks_carry_their_number(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    stream = ranks._Prefixed("[rank 3] ")
    stream.write("one\ntw")
    stream.write("o\n\nthree")
    stream.flush()
    assert capsys.readouterr().err == "[rank 3] one\n[rank 3] two\n[rank 3] \n"


def test_one_launch_at_a_time_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(launching, "LOCK_SECONDS", 0.0)
    with (
        launching._lock(tmp_path),
        pytest.raises(LeaseHeld, match="another process is training"),
        launching._lock(tmp_path),
    ):
        raise AssertionError("two hold the lock")


def test_a_finished_launch_is_known_by_its_outputs(tmp_path):
    assert not train.finished(tmp_path)
    for name in train.OUTPUTS:
        (tmp_path / name).write_text(name)
    import orjson

    from gristmill.core.hashing import sha256_file

    (tmp_path / train.FINISHED).write_bytes(orjson.dumps({n: sha256_file(tmp_path / n) for n in train.OUTPUTS}))
    assert train.finished(tmp_path)
    (tmp_path / "summary.json").write_text("other")
    assert not train.finished(tmp_path)


def test_processes_that_tp_does_not_divide_are_refused_before_any_starts(toy, run_maker, tmp_path):
    run = write_run(tmp_path, run_maker(parallel={"nproc": 3, "tp": 2}))
    code, err = end(launch(run, toy.folder, tmp_path / "out"))
    assert code == 2
    assert err == "error: parallel.tp is 2, there are 3 processes\n  hint: start a multiple of it with `--nproc`\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_fault_of_all_ranks_is_said_once_with_its_exit_code(toy, run_maker, tmp_path):
    run = write_run(tmp_path, run_maker(parallel={"nproc": 2, "tp": 2}, model=ODD_MODEL))
    code, err = end(launch(run, toy.folder, tmp_path / "out"))
    assert code == 2
    message = (
        "error: parallel.tp: heads 3 does not divide over tp 2\n  hint: take a tp that divides the heads and ffn\n"
    )
    assert err == message


SUPERVISOR = """
import sys
from pathlib import Path
from gristmill.trainer.train import launch_training
run, dataset, out = map(Path, sys.argv[1:])
launch_training(run, dataset, dataset / "tokenizer.json", out)
"""


@pytest.mark.slow
def test_all_processes_end_with_the_worker_that_supervises_them(toy, run_maker, tmp_path):
    run = write_run(tmp_path, run_maker(parallel={"nproc": 2}, model=SLOW_MODEL, micro_batch_rows=1))
    out = tmp_path / "out"
    out.mkdir()
    worker = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, run, toy.folder, out], stderr=subprocess.PIPE, text=True
    )
    wait_for_step(worker, out, 1)
    (launcher,) = children_of(worker.pid)
    pids = [launcher, *ranks_of(launcher).values()]
    assert len(pids) == 3
    kill(worker.pid)
    worker.communicate()
    wait_until_gone(*pids)
    assert not (out / "finished.json").exists()

    child = launch(run, toy.folder, out)  # the lock is free; and a second signal does not wait for a step
    deadline = time.monotonic() + WAIT_SECONDS
    while len(found := ranks_of(child.pid)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    time.sleep(stopping.AGAIN_SECONDS + 0.2)
    child.send_signal(signal.SIGINT)
    code, _ = end(child)
    assert code == 130
    wait_until_gone(*found.values())
    assert not any(alive(pid) for pid in pids)


def children_of(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
