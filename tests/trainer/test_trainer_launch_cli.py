"""`gristmill train run` and `compare` on a root: two processes, a Slurm script, what a job left, one table."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import orjson
import pytest

pytest.importorskip("torch")

from trainer_launches import WAIT_SECONDS, command
from worlds import gristmill, start

from gristmill.core.errors import ConfigError
from gristmill.core.hashing import sha256_file
from gristmill.core.manifest import encode, write_manifest
from gristmill.core.stage import Receipt, Shard
from gristmill.pipelines.cli.training import _load_run
from gristmill.trainer.branch_schema import Branch


@pytest.fixture
def root(toy, tmp_path) -> Path:
    """A root whose shards stage is done: the toy dataset."""
    folder = tmp_path / "root" / "stages" / "shards" / ("0" * 32)
    shutil.copytree(toy.folder, folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    shards = [Shard(str(p), p.relative_to(folder).as_posix(), sha256_file(p), p.stat().st_size) for p in files]
    receipt = Receipt("shards", 1, "0" * 32, "all", {}, {}, {}, shards, 0, 0, None, 0, {}, 0.0, "", "")
    (folder / "receipt.json").write_bytes(orjson.dumps(encode(receipt)))
    write_manifest(tmp_path / "root", "shards", [receipt], True)
    return tmp_path / "root"


@pytest.mark.slow
def test_a_job_then_two_processes_then_a_table(root, run_maker, tmp_path):
    run = tmp_path / "run.yaml"
    run.write_bytes(orjson.dumps(run_maker(max_steps=12).model_dump(mode="json", by_alias=True)))
    profile = tmp_path / "profile.yaml"
    profile.write_text("gristmill_slurm: 1\ntime: '01:00:00'\ngpus_per_node: 0\nprocesses_per_node: 2\n")
    base = ("train", "run", str(run), "--root", str(root))
    before = sorted(root.rglob("*"))
    done = gristmill(*base, "--slurm", str(profile), "--dry-run", "--set", "seed=4")
    assert done.returncode == 0, done.stderr
    assert sorted(root.rglob("*")) == before, "a dry run writes nothing"
    assert done.stdout.startswith("#!/bin/bash\n#SBATCH --job-name=gristmill-")
    assert f"train run {run} --root {root} --set seed=4" in done.stdout
    subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)
    refused = gristmill(*base, "--slurm", str(profile), env={"PATH": "/nowhere"})
    assert refused.returncode == 2
    assert "there is no sbatch here" in refused.stderr
    assert sorted(root.rglob("*")) == before, "a refusal writes nothing"
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text("#!/bin/sh\necho Submitted batch job 7\n")
    sbatch.chmod(0o755)
    submitted = gristmill(*base, "--slurm", str(profile), env={"PATH": f"{sbatch.parent}:{os.environ['PATH']}"})
    assert submitted.returncode == 0, submitted.stderr
    assert "Submitted batch job 7" in submitted.stderr
    (work,) = (root / "stages" / "train").glob("*/work")  # ready for a launch, as the job would start it
    launched = command(work / "run.json", root / "stages" / "shards" / ("0" * 32), work)
    subprocess.run(launched, check=True, capture_output=True, timeout=120)

    collected = gristmill(*base)
    assert collected.returncode == 0, collected.stderr
    assert "step  1/12" not in collected.stderr, "trained again what the job had trained"
    assert (work.parent / "receipt.json").exists()
    shown = gristmill(*base, "--slurm", str(profile), "--dry-run")
    assert "nothing to do: this run is trained" in shown.stderr
    assert shown.stdout.startswith("#!/bin/bash\n")

    done = gristmill(*base, "--nproc", "2", "--set", "optimizer.lr=5e-3")
    assert done.returncode == 0, done.stderr
    assert "step 12/12" in done.stderr
    assert done.stdout == ""
    again = gristmill(*base, "--nproc", "4", "--set", "optimizer.lr=5e-3")
    assert "nothing to do" in again.stderr, "the layout makes no other run"
    table = orjson.loads(gristmill("train", "compare", "--root", str(root), "--json").stdout)
    assert sorted(table["settings"]["optimizer.lr"]) == [5e-3, 1e-2]
    assert list(table["settings"]) == ["optimizer.lr"]
    assert table["rows"]["finished"] == [True, True]


@pytest.mark.slow
def test_the_trigger_file_ends_a_run_as_ctrl_c_does(root, run_maker, tmp_path):
    run = tmp_path / "run.yaml"
    run.write_bytes(orjson.dumps(run_maker().model_dump(mode="json", by_alias=True)))
    log = tmp_path / "log"
    base = ("train", "run", str(run), "--root", str(root))
    child = start(*base, log=log)
    deadline = time.monotonic() + WAIT_SECONDS
    tasks = root / "stages" / "train"
    while not (begun := [f for task in tasks.glob("*") if (f := task / "work" / "metrics.jsonl").exists()]):
        assert child.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (begun[0].parent / "STOP").touch()
    assert child.wait(WAIT_SECONDS) == 130, log.read_text()
    text = log.read_text()
    assert "FAILED" not in text
    assert "failed" not in text
    assert "stopped: train all: training was asked to stop" in text
    assert "hint: the same command goes on from it" in text
    assert "resume: " in text
    again = gristmill(*base)
    assert again.returncode == 0, again.stderr
    assert "resuming after step" in again.stderr


@pytest.mark.parametrize("name", ["9494", "3e84", "0012", "9494be66", "3fa1"])
def test_a_task_id_may_look_like_a_number(name, run_maker, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_bytes(orjson.dumps(run_maker().model_dump(mode="json", by_alias=True)))
    for text in (f"from.run={name}", f"from.run = {name}", f"from.run='{name}'", f'from.run="{name}"'):
        settings, _ = _load_run(str(file), (text, "from.step=20"))
        assert settings.branch is not None
        assert (settings.branch.run, settings.branch.step) == (name, 20)


def test_a_number_in_a_file_is_an_id_where_no_digit_is_lost():
    assert Branch.model_validate({"run": 9494}).run == "9494"
    with pytest.raises(ConfigError) as caught:
        _load_run("demo", ("from={run: 3e84}",))
    assert "reads this id as a number" in str(caught.value)
    assert """hint: quote it: run: "3e84", or --set from.run='"3e84"'""" in str(caught.value)
    with pytest.raises(ConfigError, match="valid string"):
        _load_run("demo", ("from.run=true",))


def test_options_that_contradict_each_other(root, run_maker, tmp_path):
    for extra, word in (
        (("--nproc", "2", "--slurm", "p.yaml"), "both --nproc and --slurm"),
        (("--dry-run",), "--dry-run needs --slurm"),
        (("--slurm", str(tmp_path / "none.yaml")), "no such profile"),
    ):
        done = gristmill("train", "run", "demo", "--root", str(root), *extra)
        assert done.returncode == 2
        assert word in done.stderr
