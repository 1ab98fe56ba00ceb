"""Kills, full disks, damaged files and stops of a run of two processes: it resumes right or refuses with a clear word."""

from __future__ import annotations

import os
import random
import resource
import signal
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from trainer_launches import (  # noqa: E402
    end,
    kill,
    launch,
    ranks_of,
    steps_done,
    wait_for_step,
    wait_until_gone,
    write_run,
)

from gristmill.trainer.checkpoint import steps_in  # noqa: E402
from gristmill.trainer.train import OUTPUTS  # noqa: E402

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

STEPS = 40
SAVED_EVERY = 4
SEED = 11  # of the steps at which something is killed


@pytest.fixture(scope="module")
def world(toy, run_maker, tmp_path_factory) -> tuple[Path, Path, Path]:
    """(run.json, dataset, the folder of an undisturbed run) of a run of two processes."""
    folder = tmp_path_factory.mktemp("chaos")
    changes = {"parallel": {"nproc": 2}, "checkpoint": {"every_steps": SAVED_EVERY, "keep": 3}, "micro_batch_rows": 1}
    run = write_run(folder, run_maker(**changes))
    code, err = end(launch(run, toy.folder, folder / "undisturbed"))
    assert code == 0, err
    return run, toy.folder, folder / "undisturbed"


def assert_undisturbed(out: Path, undisturbed: Path) -> None:
    for name in OUTPUTS:
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes(), name


def small_files() -> None:
    """A disk that takes no file above 48 KiB: each rank's part of the optimizer's state has more."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (48 << 10, 48 << 10))


def test_kills_and_a_full_disk_and_a_cut_checkpoint_change_nothing(world, tmp_path):
    run, dataset, undisturbed = world
    out, at = tmp_path / "out", random.Random(SEED)

    def killed_at(step: int, *who: int, everyone: bool = False) -> str:
        """Kill ranks (or all and their launcher) once `step` is done. Returns what the launch said."""
        child = launch(run, dataset, out)
        wait_for_step(child, out, step)
        ranks = ranks_of(child.pid)
        assert set(ranks) == {0, 1}
        kill(*([child.pid, *ranks.values()] if everyone else [ranks[rank] for rank in who]))
        code, err = end(child)
        wait_until_gone(*ranks.values())
        assert code == (-signal.SIGKILL if everyone else 1), err
        assert steps_done(out) < STEPS
        return err

    err = killed_at(at.randrange(SAVED_EVERY + 1, 10), 1)
    assert "error: rank 1 was ended by SIGKILL" in err
    assert "hint: the same command goes on from the last checkpoint" in err
    assert "Traceback" not in err

    before = steps_in(out / "checkpoints")
    assert before
    code, err = end(launch(run, dataset, out, preexec_fn=small_files))
    assert code == 1
    assert "the checkpoint of step" in err
    assert "was not written: File too large" in err
    assert "Traceback" not in err
    assert steps_in(out / "checkpoints") == before  # the last one is whole

    err = killed_at(at.randrange(12, 20), 0)
    assert "error: rank 0 was ended by SIGKILL" in err

    newest = out / "checkpoints" / f"{steps_in(out / 'checkpoints')[-1]:08d}"
    part = max(newest.glob("*.safetensors"), key=lambda p: p.stat().st_size)
    part.write_bytes(part.read_bytes()[:-100])
    err = killed_at(at.randrange(24, 32), everyone=True)
    assert f"passing over a checkpoint: {part} has" in err

    code, err = end(launch(run, dataset, out))
    assert code == 0, err
    assert "resuming after step" in err
    assert_undisturbed(out, undisturbed)


def test_a_trigger_file_or_a_signal_to_one_rank_saves_and_stops_all(world, tmp_path):
    run, dataset, undisturbed = world
    out = tmp_path / "out"

    def stopped(step: int, how, why: str) -> None:
        child = launch(run, dataset, out)
        wait_for_step(child, out, step)
        how(child)
        code, err = end(child)
        assert code == 130, err
        assert f"{why}: stopping after this step" in err
        done = steps_done(out)
        assert f"stopped after step {done} of {STEPS}" in err
        assert steps_in(out / "checkpoints")[-1] == done
        assert not file.exists()

    file = out / "STOP"
    stopped(5, lambda child: file.touch(), f"{file} is there")
    first = steps_done(out)
    stopped(first + 3, lambda child: child.send_signal(signal.SIGTERM), f"{file} is there")  # the launcher makes it

    one = "another rank was told to stop"
    stopped(steps_done(out) + 2, lambda child: os.kill(ranks_of(child.pid)[1], signal.SIGUSR1), one)
    assert steps_done(out) < STEPS
    code, err = end(launch(run, dataset, out))
    assert code == 0, err
    assert_undisturbed(out, undisturbed)


def test_a_changed_shard_byte_is_refused_by_all_ranks(world, dataset_maker, tmp_path):
    run, _, _ = world
    dataset = dataset_maker(tmp_path / "dataset")
    path = dataset.folder / "main" / "00000.bin"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    code, err = end(launch(run, dataset.folder, tmp_path / "out"))
    assert code == 1
    assert f"error: {path} was changed" in err
    assert err.count("was changed") == 1
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "finished.json").exists()
