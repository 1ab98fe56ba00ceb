"""Checkpoints of one process: complete or not there, verified, without pickle, kept by policy, written meanwhile."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import orjson
import pytest

torch = pytest.importorskip("torch")
import torch.distributed.checkpoint as dcp  # noqa: E402
import trainer_checkpoint_states as toy  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from gristmill.core.errors import FormatError, GristmillError  # noqa: E402
from gristmill.trainer import checkpoint, saver, storage  # noqa: E402
from gristmill.trainer.checkpoint import MODEL, OPTIMIZER  # noqa: E402
from gristmill.trainer.checkpoint_plan import LoadPlanner, SavePlanner  # noqa: E402
from gristmill.trainer.checkpoint_schema import Average, Checkpoint, due, kept  # noqa: E402
from gristmill.trainer.parallel.mesh import World  # noqa: E402
from gristmill.trainer.saver import Checkpoints  # noqa: E402

ALONE = World(torch.device("cpu"))


@pytest.fixture
def parts():
    return toy.parts_of(toy.module_of(ALONE))


def saver_of(folder, **settings) -> Checkpoints:
    return Checkpoints(folder, ALONE, Checkpoint(**settings), toy.VOCAB)


@pytest.fixture
def saved(tmp_path, parts):
    """A folder with the checkpoints of steps 5 and 6, and the newest one's folder."""
    for step in (5, 6):
        saver_of(tmp_path).begin(toy.state(step), parts)
    return tmp_path / "00000006"


def test_what_is_saved_is_what_is_loaded(saved, parts):
    found = checkpoint.latest(saved.parent)
    assert found is not None
    assert (found.step, found.folder) == (6, saved)
    assert found.state["layout"] == {"size": 1, "dp": 1, "tp": 1}
    toy.spoil(parts)
    saver_of(saved.parent).load(found, parts)
    toy.check(parts)
    weights, moments = found.tensors()
    assert {n: tuple(t.shape) for n, t in weights.items()} == {
        n: tuple(toy.VOCAB if d is None else d for d in shape) for n, (shape, _) in toy.SHAPES.items()
    }
    assert moments["embed.weight.step"].shape == ()
    # any reader of safetensors can open the files: torch's own names, no boxes, in one process
    plain = load_file(saved / "model.safetensors")
    assert all(torch.equal(plain[n], t) for n, t in weights.items())
    assert not any(b"pickle" in p.read_bytes() or p.suffix == ".pt" for p in saved.iterdir())


def test_dtypes_and_odd_shapes_survive(tmp_path):
    odd = {
        "bf16": torch.randn(3, 5).bfloat16(),
        "f64": torch.randn(2, dtype=torch.float64),
        "i64": torch.tensor(2**40),
        "flags": torch.tensor([True, False, True]),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "view": torch.randn(6, 4).T[1:, ::2],
    }
    done = saver_of(tmp_path).begin(toy.state(1), {MODEL: odd})
    assert done is not None
    for name, tensor in checkpoint.read(done.folder).part(MODEL).items():
        assert tensor.dtype == odd[name].dtype
        assert torch.equal(tensor, odd[name]), name


def test_planners_and_storage_are_torchs(tmp_path, parts):
    """The parts work under torch's own driver: dcp.save and dcp.load."""
    state = {f"{p}/{n}": t for p, named in parts.items() for n, t in named.items()}
    writer = storage.Writer(tmp_path / "x")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, storage_writer=writer, planner=SavePlanner(toy.VOCAB), no_dist=True)
        toy.spoil(parts)
        reader = storage.Reader(tmp_path / "x", {n: f["bytes"] for n, f in writer.files.items()})
        with torch.no_grad():
            dcp.load(state, storage_reader=reader, planner=LoadPlanner(toy.VOCAB), no_dist=True)
    toy.check(parts)
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == [
        "index.json",
        "model.safetensors",
        "optimizer.safetensors",
    ]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import trainer_checkpoint_states as toy, torch
from gristmill.trainer import checkpoint
from gristmill.trainer.checkpoint_schema import Checkpoint
from gristmill.trainer.parallel.mesh import World
from gristmill.trainer.saver import Checkpoints
setattr(checkpoint, sys.argv[3], lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL))
world = World(torch.device("cpu"))
saver = Checkpoints(Path(sys.argv[1]), world, Checkpoint(asynchronous=True), toy.VOCAB)
saver.begin(toy.state(7), toy.parts_of(toy.module_of(world)))
saver.wait()
"""


@pytest.mark.slow
@pytest.mark.parametrize("at", ["write_marker", "publish"])
def test_killed_before_the_marker_or_the_name(at, saved, parts, tmp_path):
    command = [sys.executable, "-c", KILLED, tmp_path, Path(__file__).parents[1], at]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = toy.hidden(tmp_path)
    assert (tmp_path / left / "optimizer.safetensors").exists()
    assert (tmp_path / left / "state.json").exists() == (at == "publish")
    found = saver_of(tmp_path).latest()
    assert found is not None
    assert found.step == 6
    saver_of(tmp_path).begin(toy.state(7), parts)
    assert toy.hidden(tmp_path) == []
    assert checkpoint.steps_in(tmp_path) == [6, 7]


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
NOT_WRITTEN = r"step 7 was not written: (No space left|File too large).*; it takes \d\d,\d+ bytes, [\d,]+ are free"


def no_room(*args: object) -> None:
    raise FULL


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("file", ["model", "optimizer", "index", "state"])
def test_a_full_disk_leaves_the_last_checkpoint(file, asynchronous, saved, parts, monkeypatch):
    monkeypatch.setattr(storage, "put", toy.failing(file, FULL))
    if file == "state":
        monkeypatch.setattr(checkpoint, "write_marker", no_room)
    ours = saver_of(saved.parent, asynchronous=asynchronous)
    with pytest.raises(GristmillError, match=NOT_WRITTEN):
        ours.begin(toy.state(7), parts) or ours.wait()
    assert sorted(p.name for p in saved.parent.iterdir()) == ["00000005", "00000006"]
    monkeypatch.undo()
    assert ours.begin(toy.state(8), parts) or ours.wait()
    assert checkpoint.steps_in(saved.parent) == [6, 8]


def test_a_limit_of_the_system_does_too(saved, parts):
    """The kernel's own refusal: no file larger than 8 KiB may be written."""
    ours = saver_of(saved.parent, asynchronous=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        ours.begin(toy.state(7), parts)
        with pytest.raises(GristmillError, match=NOT_WRITTEN):
            ours.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(p.name for p in saved.parent.iterdir()) == ["00000005", "00000006"]


def test_a_disk_too_small_is_seen_before_anything_is_written(saved, parts, monkeypatch):
    monkeypatch.setattr(saver.shutil, "disk_usage", lambda path: FakeDisk)
    written: list[str] = []
    monkeypatch.setattr(storage, "put", lambda h, d: written.append(h.name))
    with pytest.raises(GristmillError, match=r"takes .* 999 are free"):
        saver_of(saved.parent).begin(toy.state(7), parts)
    assert not written


class FakeDisk:
    total, free = 10_000_000, 999


class Gate:
    """A `storage.put` that waits to be let through."""

    def __init__(self) -> None:
        self.open, self.reached = threading.Event(), threading.Event()

    def __call__(self, handle, data) -> None:
        self.reached.set()
        assert self.open.wait(30)
        handle.write(data)


def test_an_asynchronous_save_is_of_its_step_and_one_at_a_time(tmp_path, parts, monkeypatch):
    monkeypatch.setattr(storage, "put", gate := Gate())
    ours = saver_of(tmp_path, asynchronous=True)
    assert ours.begin(toy.state(1), parts) is None
    assert gate.reached.wait(30)
    toy.spoil(parts)  # training goes on
    assert ours.poll() is None
    assert ours.saving
    assert checkpoint.latest(tmp_path) is None
    later = toy.parts_of(toy.module_of(ALONE))
    begun = threading.Thread(target=ours.begin, args=(toy.state(2), later))
    begun.start()
    begun.join(0.2)
    assert begun.is_alive(), "a second save waits for the first"
    gate.open.set()
    begun.join(30)
    assert checkpoint.steps_in(tmp_path)[0] == 1
    done = ours.wait()
    assert done is not None
    assert done.step == 2
    assert not ours.saving
    for step in (1, 2):
        toy.spoil(parts)
        ours.load(ours.open(step), parts)
        toy.check(parts)


def test_a_failure_in_the_background_is_raised_at_the_next_edge(saved, parts, monkeypatch):
    monkeypatch.setattr(storage, "put", toy.failing("model", OSError(errno.EIO, "Input/output error")))
    ours = saver_of(saved.parent, asynchronous=True)
    ours.begin(toy.state(7), parts)
    assert ours._save is not None
    assert ours._save.thread is not None
    ours._save.thread.join()
    with pytest.raises(GristmillError, match=r"step 7 was not written: .*Input/output error"):
        ours.begin(toy.state(8), parts)
    assert ours.poll() is None
    assert checkpoint.steps_in(saved.parent) == [5, 6]
    assert toy.hidden(saved.parent) == []


def test_closing_drops_a_save_in_flight(tmp_path, parts, monkeypatch):
    monkeypatch.setattr(storage, "put", gate := Gate())
    ours = saver_of(tmp_path, asynchronous=True)
    ours.begin(toy.state(1), parts)
    assert gate.reached.wait(30)
    threading.Timer(0.1, gate.open.set).start()
    ours.close()
    assert not ours.saving
    assert list(tmp_path.iterdir()) == []


def test_the_same_step_again_replaces(saved, parts):
    (saved / "model.safetensors").write_bytes(b"")
    saver_of(saved.parent).begin(toy.state(6), parts)
    assert checkpoint.read(saved).step == 6
    assert toy.hidden(saved.parent) == []


def test_which_checkpoints_are_kept(tmp_path, parts):
    ours = Checkpoints(tmp_path, ALONE, Checkpoint(keep=2, keep_every_steps=4), toy.VOCAB)
    for step in range(1, 11):
        ours.begin(toy.state(step), {MODEL: parts[MODEL]})
    assert checkpoint.steps_in(tmp_path) == [4, 8, 9, 10]
    ours.forget_after(8)
    assert checkpoint.steps_in(tmp_path) == [4, 8]
    found = ours.latest(at_most=7)
    assert found is not None
    assert found.step == 4
    assert checkpoint.latest(tmp_path, at_most=3) is None


def test_the_policy():
    average = Average(kind="last_k", k=3, every_steps=10)
    steps = [5, 10, 20, 25, 30, 35, 36, 90]
    assert kept(steps, 36, Checkpoint(keep=1), Average()) == {36, 90}
    assert kept(steps, 36, Checkpoint(keep=2, keep_every_steps=25), Average()) == {25, 35, 36, 90}
    assert kept(steps, 36, Checkpoint(keep=1), average) == {10, 20, 30, 36, 90}
    assert average.snapshots(29) == [10, 20]
    assert average.snapshots(45, since=20) == [30, 40]
    assert Average(kind="ema").snapshots(100) == []
    assert [s for s in range(1, 41) if due(s, Checkpoint(every_steps=15), average)] == [10, 15, 20, 30, 40]
    assert Average(kind="ema").interval == 1
    assert Average(kind="last_k").interval == 100


def test_names_without_a_marker_are_no_checkpoints(saved):
    (saved.parent / "00000009").mkdir()
    (saved.parent / "7").mkdir()
    (saved.parent / "7" / "state.json").write_text("{}")
    (saved.parent / "٣٣٣٣٣٣٣٣").mkdir()
    assert checkpoint.steps_in(saved.parent) == [5, 6]


def test_tensors_that_do_not_belong_are_not_made(saved, parts):
    ours = saver_of(saved.parent)
    found = checkpoint.read(saved)
    fresh = ours.like(found, OPTIMIZER, parts[MODEL])
    ours.load(found, {OPTIMIZER: fresh})
    toy.check({OPTIMIZER: fresh})
    assert fresh["embed.weight.exp_avg"].shape[0] == 192
    for without in ({}, {"norm.weight": torch.zeros(4)}):
        with pytest.raises(FormatError, match="nothing here has it"):
            ours.like(found, OPTIMIZER, {**parts[MODEL], **without} if without else without)


def test_generators_go_through_json():
    torch.manual_seed(5)
    torch.rand(3)
    state = orjson.loads(orjson.dumps(checkpoint.rng_state()))
    want = torch.rand(4)
    torch.manual_seed(6)
    checkpoint.restore_rng(state)
    assert torch.equal(torch.rand(4), want)
    for bad in ({"cpu": "AAAA"}, {"cpu": "no base64!"}, {"cpu": 3}):
        with pytest.raises(FormatError, match="random state"):
            checkpoint.restore_rng(bad)


def test_reading_needs_no_torch():
    code = "import sys; import gristmill.trainer.checkpoint; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
