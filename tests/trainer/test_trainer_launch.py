"""The launch and the train stage as real processes: SIGKILL, SIGTERM, a dying parent, the stage's outputs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

torch = pytest.importorskip("torch")

from gristmill.core.errors import TaskFailed, UsageError  # noqa: E402
from gristmill.core.hashing import sha256_file  # noqa: E402
from gristmill.core.stage import Outbox, Receipt, Shard  # noqa: E402
from gristmill.trainer import launch  # noqa: E402
from gristmill.trainer.progress import thousands  # noqa: E402
from gristmill.trainer.train import OUTPUTS, Train  # noqa: E402

KILLER = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from gristmill.core.tokshards import PackedDataset
from gristmill.trainer import launch, loop
def report(record):
    if record["step"] == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
loop.train(launch.read_run(Path(sys.argv[1])), PackedDataset(sys.argv[2]), Path(sys.argv[3]), report=report)
"""


def write_run(folder: Path, run) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.json"
    path.write_bytes(orjson.dumps(run.model_dump(mode="json")))
    return path


def command(run: Path, dataset: Path, out: Path) -> list[str]:
    options = ["--settings", run, "--dataset", dataset, "--tokenizer", dataset / "tokenizer.json", "--out", out]
    return [sys.executable, "-m", "gristmill.trainer.launch", *map(str, options)]


def run_launch(*args: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*args), capture_output=True, text=True, timeout=120)


def shards_receipt(folder: Path) -> Receipt:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    shards = [Shard(str(p), p.relative_to(folder).as_posix(), sha256_file(p), p.stat().st_size) for p in files]
    return Receipt("shards", 1, "t", "all", {}, {}, {}, shards, 0, 0, None, 0, {}, 0.0, "", "")


def wait_for(path: Path, lines: int) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < deadline, f"{path} did not reach {lines} lines"
        time.sleep(0.01)


def run_stage(stage: Train, toy, folder: Path):
    (task,) = stage.tasks({"shards": [shards_receipt(toy.folder)]})
    out = Outbox(folder, "1")
    return stage.run(task, out), out


@pytest.mark.slow
def test_sigkill_at_17_of_40_then_the_same_command_gives_the_same_bytes(toy, run_maker, tmp_path):
    run = write_run(tmp_path, run_maker())
    killed = subprocess.run(
        [sys.executable, "-c", KILLER, str(run), str(toy.folder), str(tmp_path / "b"), "17"],
        capture_output=True,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "b" / "metrics.jsonl").read_bytes().count(b"\n") == 17
    resumed, undisturbed = run_launch(run, toy.folder, tmp_path / "b"), run_launch(run, toy.folder, tmp_path / "a")
    assert (resumed.returncode, undisturbed.returncode) == (0, 0), resumed.stderr + undisturbed.stderr
    assert "resuming after step 15 of 40" in resumed.stderr
    for name in OUTPUTS:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_the_stage_trains_and_its_outputs_hold_no_time(toy, run_maker, tmp_path, capfd):
    stage = Train({"run": run_maker(max_steps=12).model_dump(mode="json")})
    counters, out = run_stage(stage, toy, tmp_path)
    counters.check("train")
    assert (counters.rows_in, counters.rows_out, counters.drops) == (96, 96, None)
    assert counters.notes["steps"] == 12
    assert set(out.files) == {*OUTPUTS, "events.jsonl"}
    assert out.files["tokenizer.json"].read_bytes() == (toy.folder / "tokenizer.json").read_bytes()
    assert orjson.loads(out.files["generation_config.json"].read_bytes())["max_new_tokens"] == 8
    came_from = orjson.loads(out.files["provenance.json"].read_bytes())
    assert (came_from["step"], came_from["run"]["max_steps"]) == (12, 12)
    assert str(tmp_path) not in out.files["provenance.json"].read_text()
    assert (out.work / "timings.jsonl").exists()
    summary = orjson.loads(out.files["summary.json"].read_bytes())
    assert summary["first_loss"] > summary["final_loss"]
    assert [p["name"] for p in summary["phases"]] == ["main"]
    assert summary["params"] == run_maker().model.params(97)
    assert out.files["generated.txt"].read_text().startswith("w5 w9")
    err = capfd.readouterr().err
    assert "step 12/12 | main " in err
    assert " tok/s" in err
    again, second = run_stage(stage, toy, tmp_path)  # its work is done: it only writes the results again
    assert again == counters
    assert all(second.files[n].read_bytes() == out.files[n].read_bytes() for n in OUTPUTS)


def test_the_task_follows_the_run_and_the_shards(toy, run_maker):
    receipt = shards_receipt(toy.folder)

    def task_id(**changes) -> str:
        (task,) = Train({"run": run_maker(**changes).model_dump(mode="json")}).tasks({"shards": [receipt]})
        return task.id

    assert task_id() == task_id()
    assert task_id() != task_id(seed=4)
    # what only watches, and limits: the run goes on in its folder
    assert task_id() == task_id(gallery={"tokens": 8}, log_every=3)
    limits = {"max_actions": 40, "max_actions_in_window": 9, "max_reports": 3, "ring_steps": 4, "health_every": 5}
    times = {"slow_rank_factor": 2.0, "throughput_drop": 0.4, "heartbeat_seconds": 5.0, "stalled_seconds": 90.0}
    assert task_id() == task_id(guards=limits | times)
    # what decides a weight, an edit or another output
    assert task_id() != task_id(guards={"sigma": 5.0})
    assert task_id() != task_id(guards={"max_defers_per_document": 3})
    assert task_id() != task_id(evaluate={"every_steps": 4})
    assert task_id() != task_id(generate={"tokens": 4})
    assert Train.upstream == ("shards",)
    assert "torch" in Train({}).uses()


@pytest.mark.slow
def test_stage_failures_keep_the_log(toy, run_maker, tmp_path):
    wild = run_maker(optimizer={"lr": 1e30, "clip": None})
    with pytest.raises(TaskFailed, match=r"training failed: step \d+: (loss|gradient norm) is.*\n.*step") as caught:
        run_stage(Train({"run": wild.model_dump(mode="json")}), toy, tmp_path / "a")
    assert "lower optimizer.lr" in str(caught.value)  # the log holds the cause and its hint
    short = run_maker().model_dump(mode="json")
    short["model"]["max_seq_len"] = 8
    with pytest.raises(UsageError, match="max_seq_len is 8"):
        run_stage(Train({"run": short}), toy, tmp_path / "b")


def test_without_torch_the_stage_says_what_to_install(toy, run_maker, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"training needs torch\n.*gristmill\[train\]"):
        run_stage(Train({"run": run_maker().model_dump(mode="json")}), toy, tmp_path)


@pytest.mark.slow
def test_sigterm_finishes_the_step_and_checkpoints(toy, run_maker, tmp_path):
    run = write_run(tmp_path, run_maker(checkpoint={"every_steps": 1000, "keep": 1}, micro_batch_rows=1))
    child = subprocess.Popen(command(run, toy.folder, tmp_path / "out"), stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / "out" / "metrics.jsonl", 2)
    child.send_signal(signal.SIGTERM)
    err = child.communicate(timeout=60)[1]
    assert child.returncode == 130, err
    done = (tmp_path / "out" / "metrics.jsonl").read_bytes().count(b"\n")
    assert [p.name for p in (tmp_path / "out" / "checkpoints").iterdir()] == [f"{done:08d}"]
    assert f"stopped after step {done} of 40" in err


@pytest.mark.slow
@pytest.mark.parametrize("sign", ["closed pipe", "changed parent"])
def test_the_child_dies_with_its_parent(sign, toy, run_maker, tmp_path):
    """The parent is killed outright; in one case something else holds its end of the pipe open."""
    big = {
        "layers": 8,
        "hidden": 256,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 64,
        "ffn": 1024,
    }  # seconds of training left
    run = write_run(tmp_path, run_maker(model=big, micro_batch_rows=1))
    read_end, write_end = os.pipe()
    keep = (read_end,) if sign == "changed parent" else ()
    parent_code = (
        "import os, subprocess, sys, time\n"
        f"stdin = {read_end if keep else 'subprocess.PIPE'}\n"
        f"p = subprocess.Popen({command(run, toy.folder, tmp_path / 'out')!r} + ['--parent', str(os.getpid())], stdin=stdin)\n"
        "print(p.pid, flush=True)\n"
        "time.sleep(120)"
    )
    parent = subprocess.Popen([sys.executable, "-c", parent_code], stdout=subprocess.PIPE, text=True, pass_fds=keep)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    wait_for(tmp_path / "out" / "metrics.jsonl", 2)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while _alive(child):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.05)
    os.close(read_end)
    os.close(write_end)
    done = (tmp_path / "out" / "metrics.jsonl").read_bytes().count(b"\n")
    assert done < 40  # it was still training


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_wrong_tokenizer_or_run_is_refused(toy, run_maker, tmp_path, capsys):
    wrong = tmp_path / "tokenizer.json"
    wrong.write_text("{}")
    with pytest.raises(UsageError, match="not the tokenizer of this dataset"):
        launch.check_tokenizer(toy, wrong)
    with pytest.raises(UsageError, match="no such file"):
        launch.check_tokenizer(toy, tmp_path / "none.json")
    (tmp_path / "run.json").write_text('{"gristmill_train": 2}')
    options = ["--settings", str(tmp_path / "run.json"), "--dataset", str(toy.folder), "--tokenizer", str(wrong)]
    assert launch.main([*options, "--out", str(tmp_path / "out")]) == 2
    assert "holds no training run" in capsys.readouterr().err


def test_a_shard_that_changed_on_disk_is_refused(dataset_maker, run_maker, tmp_path):
    dataset = dataset_maker(tmp_path / "dataset")
    path = dataset.folder / "main" / "00001.bin"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    done = run_launch(write_run(tmp_path, run_maker()), dataset.folder, tmp_path / "out")
    assert done.returncode == 1
    assert f"error: {path} was changed" in done.stderr
    assert not (tmp_path / "out" / "finished.json").exists()


@pytest.mark.parametrize(("value", "text"), [(950, "950"), (9_460, "9.5k"), (31_200, "31k"), (1_230_000, "1.2M")])
def test_speeds_read_well(value, text):
    assert thousands(value) == text
