"""The batch script of a Slurm job, run by bash with sbatch, srun and scontrol that only write down what they were told."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from trainer_launches import WAIT_SECONDS, steps_done, write_run

from gristmill.core.errors import ConfigError, GristmillError, UsageError
from gristmill.core.settings import load
from gristmill.trainer import outcome, slurm
from gristmill.trainer.outcome import Exit
from gristmill.trainer.slurm_schema import SlurmProfile

BASE = {"gristmill_slurm": 1, "time": "24:00:00", "gpus_per_node": 2, "nodes": 2}


def profile(**changes) -> SlurmProfile:
    return SlurmProfile.model_validate(BASE | changes)


def written(
    given: SlurmProfile, out: Path, arguments: tuple[str, ...] = ("--settings", "r.json"), name: str = "gristmill-1"
) -> str:
    return slurm.script(given, name, arguments, out, ["train", "run", "my run.yaml", "--root", "/r"], Path("/work dir"))


def options(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[list[str]]]:
    """Stand-ins for Slurm's commands first in PATH. Returns a function that gives the calls so far."""
    folder, log = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    commands = {
        "sbatch": 'echo "Submitted batch job 7"',
        "scontrol": '[ "$1" = show ] && echo localhost || true',
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    }
    for name, body in commands.items():
        path = folder / name
        path.write_text(
            f"#!/bin/bash\nprintf '%q ' {name} \"$@\" >> {shlex.quote(str(log))}; echo >> {shlex.quote(str(log))}\n{body}\n"
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[1-2]")
    return lambda: [shlex.split(line) for line in log.read_text().splitlines()] if log.exists() else []


def stand_in(folder: Path, body: str) -> str:
    """A `python` whose three commands (ranks, outcome, collect) are the cases of `body`."""
    path = folder / "python"
    path.write_text(f'#!/bin/bash\ncase "$*" in\n{body}\nesac\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_the_script_holds_what_the_profile_says(tmp_path):
    given = profile(
        partition="gpu",
        account="team-a",
        memory="0",
        cpus_per_task=96,
        signal_seconds=900,
        options=["--exclusive", "--gres=gpu:h100:2"],
        modules=["cuda/12.4"],
        env={"NCCL_DEBUG": "WARN", "NOTE": "it's $HOME; rm -rf / `id`"},
        setup=["source /opt/venv/bin/activate"],
        container={"image": "/img/torch.sqsh", "mounts": ["/data:/data", "/scratch:/scratch"]},
    )
    text = written(given, tmp_path)
    assert text.startswith("#!/bin/bash\n#SBATCH ")
    assert options(text) == [
        "--job-name=gristmill-1",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=2",
        "--cpus-per-task=96",
        "--mem=0",
        "--time=24:00:00",
        "--partition=gpu",
        "--account=team-a",
        "--signal=B:USR1@900",
        "--dependency=singleton",
        f"--output={tmp_path}/slurm-%j.log",
        "--open-mode=append",
        "--requeue",
        "--exclusive",
        "--gres=gpu:h100:2",
    ]
    for line in (
        "module load cuda/12.4",
        "export NCCL_DEBUG=WARN",
        "export NOTE='it'\"'\"'s $HOME; rm -rf / `id`'",
        "source /opt/venv/bin/activate",
    ):
        assert line in text.splitlines()
    assert "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=96 --container-image=/img/torch.sqsh" in text
    assert "--container-mounts=/data:/data,/scratch:/scratch" in text
    assert "--nnodes=2 --nproc-per-node=2" in text
    assert "train run 'my run.yaml' --root /r" in text
    assert "cd -- '/work dir'" in text
    for wanted in (text, written(profile(requeue=False), tmp_path)):
        subprocess.run(["bash", "-n"], input=wanted, text=True, check=True)
    assert "scontrol requeue" not in written(profile(requeue=False), tmp_path)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"partition": "gpu\n#SBATCH --wrap=id"}, "partition"),
        ({"account": "a b"}, "account"),
        ({"account": "$(id)"}, "account"),
        ({"env": {"A B": "x"}}, "env"),
        ({"env": {"A": "x\ny"}}, "env"),
        ({"setup": ["a\nb"]}, "setup"),
        ({"modules": ["x;id"]}, "modules"),
        ({"container": {"image": "a b"}}, "container.image"),
        ({"options": ["exclusive"]}, ""),
        ({"options": ["--x y"]}, "options"),
        ({"time": "24h"}, "time"),
        ({"time": "00:10:30"}, ""),
        ({"gpus_per_node": 0}, ""),
        ({"python": "python -c"}, "python"),
        ({"nodes": 0}, "nodes"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_what_could_leave_its_line_is_refused(changes, path, tmp_path):
    import orjson

    file = tmp_path / "profile.yaml"
    file.write_bytes(orjson.dumps(BASE | changes))  # JSON is YAML
    with pytest.raises(ConfigError) as caught:
        load(file, SlurmProfile)
    assert any(p.path.startswith(path) for p in caught.value.problems), caught.value


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("24:00:00", 86_400),
        ("1-12", 129_600),
        ("1-12:30", 131_400),
        ("2-00:00:01", 172_801),
    ],
)
def test_times_as_slurm_writes_them(text, seconds):
    assert profile(time=text).seconds == seconds


def test_a_path_that_slurm_would_read_otherwise_is_refused():
    for path in ("/scratch/my runs", "/scratch/100%j", "relative"):
        with pytest.raises(UsageError, match="Slurm cannot write its log"):
            written(profile(), Path(path))


@pytest.mark.parametrize("warned", [True, False])
def test_a_warned_job_saves_and_queues_itself_again(warned, cluster, tmp_path):
    """Ranks that leave when the trigger file appears: made by the script at Slurm's signal, or by a person."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "STOP").touch()  # of a job before
    python = stand_in(
        tmp_path,
        f'*torch.distributed.run*) while [ ! -e {out}/STOP ]; do sleep 0.05; done; echo "saved" >&2; sleep 0.5; exit 1;;\n'
        "*trainer.outcome*) exit 130;;",
    )
    script = tmp_path / "job"
    script.write_text(written(profile(python=python), out))
    job = subprocess.Popen(["bash", str(script)], stderr=subprocess.PIPE, text=True)
    wait_for_call(cluster, "srun")
    time.sleep(0.2)
    assert job.poll() is None, "the trigger file of an earlier job stopped this one"
    if warned:
        job.send_signal(signal.SIGUSR1)
    else:
        (out / "STOP").touch()
    err = job.communicate(timeout=20)[1]
    assert job.returncode == 130
    assert "saved" in err, "the script did not wait for its ranks"
    calls = cluster()
    assert (["scontrol", "requeue", "7"] in calls) == warned  # a person who stops a run wants it stopped
    started = next(call for call in calls if call[0] == "srun")
    assert "--rdzv-endpoint=localhost:29500" in started
    assert "--rdzv-id=7-0" in started
    assert not any("gristmill.pipelines" in call for call in calls)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_exit_code_is_the_ranks_and_success_is_collected(code, cluster, tmp_path):
    (tmp_path / "out").mkdir()
    python = stand_in(
        tmp_path,
        f"*torch.distributed.run*) exit {min(code, 1)};;\n*trainer.outcome*) exit {code};;\n*pipelines*) exit 0;;",
    )
    script = written(profile(python=python), tmp_path / "out").replace("'/work dir'", str(tmp_path))
    assert subprocess.run(["bash"], input=script, text=True, check=False).returncode == code
    collected = [call for call in cluster() if "gristmill.pipelines" in call]
    assert bool(collected) == (code == 0)
    if collected:
        assert collected[0][-5:] == ["train", "run", "my run.yaml", "--root", "/r"]


def test_submission(cluster, tmp_path, monkeypatch):
    assert slurm.submit(tmp_path / "job.sbatch") == "Submitted batch job 7"
    assert cluster() == [["sbatch", str(tmp_path / "job.sbatch")]]
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/bash\necho 'invalid partition' >&2; exit 1\n")
    with pytest.raises(GristmillError, match="invalid partition"):
        slurm.submit(tmp_path / "job.sbatch")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no sbatch here"):
        slurm.submit(tmp_path / "job.sbatch")


def test_the_outcome_of_all_ranks_as_a_command(tmp_path, capsys):
    for rank in range(2):
        outcome.write(tmp_path, rank, Exit(0))
    assert outcome.main([str(tmp_path), "2"]) == 0
    assert outcome.main([str(tmp_path), "3"]) == 1
    assert "a process ended without saying why" in capsys.readouterr().err
    outcome.write(tmp_path, 1, Exit(2, "bad setting", "mend it"))
    assert outcome.main([str(tmp_path), "2"]) == 2
    assert capsys.readouterr().err == "error: bad setting\n  hint: mend it\n"
    outcome.clear(tmp_path)
    for rank in range(2):
        outcome.write(tmp_path, rank, Exit(130))
    assert outcome.main([str(tmp_path), "2"]) == 130


@pytest.mark.slow
@pytest.mark.chaos
def test_a_job_of_two_ranks_is_warned_queued_again_and_ends(cluster, toy, run_maker, tmp_path):
    """The real torchrun and ranks under the script; only Slurm's commands are stand-ins."""
    pytest.importorskip("torch")
    out = tmp_path / "out"
    out.mkdir()
    run = write_run(tmp_path, run_maker(parallel={"nproc": 1}, micro_batch_rows=1))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    python = stand_in(tmp_path, f'*gristmill.pipelines*) exit 0;;\n*) exec {sys.executable} "$@";;')
    given = profile(nodes=1, gpus_per_node=0, processes_per_node=2, python=python, port=port)
    arguments = (
        "--settings",
        str(run),
        "--dataset",
        str(toy.folder),
        "--tokenizer",
        str(toy.folder / "tokenizer.json"),
    )
    text = written(given, out, (*arguments, "--out", str(out))).replace("'/work dir'", str(tmp_path))
    script = tmp_path / "job"
    script.write_text(text)
    job = subprocess.Popen(["bash", str(script)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + WAIT_SECONDS
    while steps_done(out) < 2:
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.send_signal(signal.SIGUSR1)
    err = job.communicate(timeout=WAIT_SECONDS)[1]
    assert job.returncode == 130, err
    assert ["scontrol", "requeue", "7"] in cluster()
    assert not (out / "STOP").exists()
    done = steps_done(out)
    assert 2 <= done < 40
    again = subprocess.run(["bash", str(script)], capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)
    assert again.returncode == 0, again.stderr
    assert f"resuming after step {done} of 40" in again.stderr
    assert steps_done(out) == 40
    assert (out / "finished.json").exists()
    assert any("gristmill.pipelines" in call for call in cluster())


def wait_for_call(calls: Callable[[], list[list[str]]], name: str) -> None:
    deadline = time.monotonic() + 20
    while not any(call[0] == name for call in calls()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
