"""Garbage planted in one batch of a real run: the guard fires, trace ranks it first, the order follows, the edits replay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from click.testing import CliRunner  # noqa: E402
from spiked import BATCH, Spiked, make_spiked  # noqa: E402

from gristmill.core.blocklist import read_blocklist  # noqa: E402
from gristmill.core.errors import GristmillError  # noqa: E402
from gristmill.pipelines.cli.look import trace  # noqa: E402
from gristmill.trainer import checkpoint, loop, pieces  # noqa: E402
from gristmill.trainer.checkpoint_schema import Checkpoint  # noqa: E402
from gristmill.trainer.data_schema import Data  # noqa: E402
from gristmill.trainer.edits import read_edits  # noqa: E402
from gristmill.trainer.events import FILE, Event, read_events  # noqa: E402
from gristmill.trainer.journal import read_journal  # noqa: E402
from gristmill.trainer.schema import TrainRun  # noqa: E402

pytestmark = pytest.mark.spike

STEPS, EVERY = 70, 10  # of the run, and between checkpoints
ACTIONS = ("warn", "skip_update", "defer", "rewind")
RANKS = Path(__file__).parent.parent / "trainer_ranks.py"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def spiked(tmp_path_factory: pytest.TempPathFactory) -> Spiked:
    return make_spiked(tmp_path_factory.mktemp("spiked"))


def settings(run_maker: Callable[..., TrainRun], on_spike: str = "warn", **changes: Any) -> TrainRun:
    """The loss still falls at the planted step: a window of 12 steps is short beside that. The norm of 8 rows scatters."""
    guards = {"on_spike": on_spike, "watch": ["loss"], "window": 12, "min_steps": 8, "rewind_steps": 2}
    guards |= changes.pop("guards", {})
    return run_maker(guards=guards, micro_batch_rows=4, checkpoint={"every_steps": EVERY, "keep": 3}, **changes)


@pytest.fixture(scope="module")
def runs(spiked: Spiked, run_maker: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run of each action, in a folder of its own."""
    base = tmp_path_factory.mktemp("runs")
    for action in ACTIONS:
        assert loop.train(settings(run_maker, action), spiked.dataset, base / action).finished
    return {action: base / action for action in ACTIONS}


def weights(folder: Path) -> dict[str, Any]:
    found = checkpoint.latest(folder / "checkpoints")
    assert found is not None
    assert found.step == STEPS
    return found.tensors()[0]


def losses(folder: Path) -> dict[int, float]:
    return {r["step"]: r["loss"] for r in read_journal(folder / "metrics.jsonl") if r.get("applied", True)}


def traced(folder: Path, *options: str) -> dict[str, Any]:
    done = CliRunner().invoke(trace, ["--run", str(folder), "--spike", *options, "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def rows_of(event: Event) -> list[Any]:
    return [event["step"], event["rows"]]


@pytest.mark.parametrize("action", ACTIONS)
def test_the_guard_fires_at_the_garbage_and_nowhere_else(action: str, runs: dict[str, Path], spiked: Spiked) -> None:
    first, *later = read_events(runs[action])
    assert (first["action"], first["step"], first["cause"]) == (action, spiked.step, "loss")
    assert first["rows"] == [["main", (spiked.step - 1) * BATCH, BATCH]]
    assert spiked.garbage < set(first["document_ids"])
    # what was deferred comes back at the end of the phase, spikes again there and is skipped then
    want = {"defer": ["skip_update"], "rewind": ["rewind"]}.get(action, [])
    assert [e["action"] for e in later] == want
    assert all(e["step"] == 60 and {x["kind"] for x in e["edits"]} == {"skip"} for e in later)


@pytest.mark.parametrize("action", ACTIONS)
def test_trace_ranks_the_garbage_first(action: str, runs: dict[str, Path], spiked: Spiked) -> None:
    found = traced(runs[action], str(spiked.step), "--root", str(spiked.root))
    assert {d["id"] for d in found["documents"][:8]} == spiked.garbage
    assert all(d["sigma"] > 3 for d in found["documents"][:8])
    assert max(d["loss"] for d in found["documents"][8:]) < min(d["loss"] for d in found["documents"][:8])
    assert all(d["text"] and d["warc_file"] == "crawl.warc.gz" for d in found["documents"])
    assert found["batch"]["loss"] == pytest.approx(found["event"]["value"], rel=1e-5) or action == "rewind"


def test_the_losses_of_the_report_are_those_of_the_steps(runs: dict[str, Path], spiked: Spiked) -> None:
    table = pieces.read_report(runs["warn"], read_events(runs["warn"])[0]["report"])
    known = {r["step"]: r for r in read_journal(runs["warn"] / "metrics.jsonl")}
    assert set(table["step"].to_pylist()) == set(range(spiked.step - 15, spiked.step + 1))
    for step in range(spiked.step - 15, spiked.step + 1):
        part = [r for r in table.to_pylist() if r["step"] == step]
        assert sum(r["tokens"] for r in part) == known[step]["valid_tokens"]
        mean = sum(r["loss_sum"] for r in part) / sum(r["tokens"] for r in part)
        assert mean == pytest.approx(known[step]["loss"], rel=1e-6)


def test_each_action_does_what_it_says(runs: dict[str, Path], spiked: Spiked) -> None:
    step, found = spiked.step, {action: losses(folder) for action, folder in runs.items()}
    assert len(found["warn"]) == STEPS
    assert found["warn"][step] > found["warn"][step - 1] + 1.5
    for action in ACTIONS[1:]:
        before = step - 1 if action != "rewind" else step - 2
        assert all(found[action][n] == found["warn"][n] for n in range(1, before + 1)), "nothing before it changes"
    assert found["skip_update"].keys() == set(range(1, STEPS + 1)) - {step}
    assert found["defer"].keys() == set(range(1, STEPS + 1)) - {60}
    assert found["defer"][step] < found["warn"][step] - 1.5, "the batch behind moved up"
    [rewind, _] = read_events(runs["rewind"])
    assert rewind["to_step"] == 40
    assert [(e["kind"], e["first_row"], e["rows"]) for e in rewind["edits"]] == [
        ("defer", (n - 1) * BATCH, BATCH) for n in (step - 1, step)
    ]
    assert found["rewind"].keys() == set(range(1, STEPS + 1)) - {59, 60}
    rates = [{r["step"]: (r["lr"], r["tokens"]) for r in read_journal(f / "metrics.jsonl")} for f in runs.values()]
    assert all(r[n] == rates[0][n] for r in rates for n in r), "the schedule is that of the step numbers"


@pytest.mark.parametrize("action", ACTIONS[1:])
def test_the_final_edits_replay_the_run_bit_for_bit(
    action: str, runs: dict[str, Path], spiked: Spiked, run_maker: Any, tmp_path: Path
) -> None:
    run = settings(run_maker, action, data={"edits": str(runs[action] / "edits.json")})
    assert loop.train(run, spiked.dataset, tmp_path).finished
    assert read_events(tmp_path) == []
    assert losses(tmp_path) == losses(runs[action])
    want, got = weights(runs[action]), weights(tmp_path)
    assert want.keys() == got.keys()
    assert all(torch.equal(want[name], got[name]) for name in want)


@pytest.mark.parametrize(
    ("action", "killed_at"), [("skip_update", 45), ("defer", 45), ("defer", 48), ("rewind", 43), ("rewind", 47)]
)
def test_a_killed_run_does_the_same_again(
    action: str, killed_at: int, runs: dict[str, Path], spiked: Spiked, run_maker: Any, tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    def kill(record: dict[str, Any]) -> None:
        if record["step"] == killed_at:
            raise Killed

    with pytest.raises(Killed):
        loop.train(settings(run_maker, action), spiked.dataset, tmp_path, report=kill)
    assert loop.train(settings(run_maker, action), spiked.dataset, tmp_path).finished
    for name in (FILE, "metrics.jsonl", "edits.json"):
        assert (tmp_path / name).read_bytes() == (runs[action] / name).read_bytes(), name
    assert all(torch.equal(w, weights(tmp_path)[name]) for name, w in weights(runs[action]).items())


def test_a_blocklist_from_trace_prevents_the_spike(
    runs: dict[str, Path], spiked: Spiked, run_maker: Any, tmp_path: Path
) -> None:
    path = tmp_path / "garbage.txt"
    traced(runs["warn"], "--top", "8", "--block", str(path))
    assert set(read_blocklist(path)) == spiked.garbage
    run = settings(run_maker, data={"blocklist": str(path)})
    loop.train(run, spiked.dataset, tmp_path / "run")
    assert read_events(tmp_path / "run") == []
    found, before = losses(tmp_path / "run"), losses(runs["warn"])
    assert all(found[n] == before[n] for n in range(1, spiked.step))
    assert found[spiked.step] < before[spiked.step] - 1.5


def test_a_limit_ends_the_run_and_a_higher_one_resumes_it(spiked: Spiked, run_maker: Any, tmp_path: Path) -> None:
    """The second spike, of what was deferred, is one action too many; the same folder goes on with a higher limit."""
    run = settings(run_maker, "defer", guards={"max_actions": 1})
    with pytest.raises(GristmillError, match=r"step 60: .*guards\.max_actions allows no more"):
        loop.train(run, spiked.dataset, tmp_path)
    found = checkpoint.latest(tmp_path / "checkpoints")
    assert found is not None
    assert found.step == 50
    assert loop.train(settings(run_maker, "defer"), spiked.dataset, tmp_path).finished
    assert [(e["step"], e["action"]) for e in read_events(tmp_path)] == [(45, "defer"), (60, "skip_update")]


def test_edits_made_before_the_first_checkpoint_are_on_disk_when_a_limit_ends_the_run(
    spiked: Spiked, run_maker: Any, tmp_path: Path
) -> None:
    late = {"every_steps": STEPS}
    run = settings(run_maker, "defer", guards={"max_actions": 1}).model_copy(
        update={"checkpoint": Checkpoint.model_validate(late)}
    )
    with pytest.raises(GristmillError, match=r"step 60: ") as raised:
        loop.train(run, spiked.dataset, tmp_path / "run")
    assert checkpoint.latest(tmp_path / "run" / "checkpoints") is None
    edits = tmp_path / "run" / "edits.json"
    assert [e.kind for e in read_edits(edits)] == ["defer"]
    assert f"data.edits={edits} begins a run with the 1 edits made so far" in str(raised.value)
    again = run.model_copy(update={"data": Data(edits=str(edits))})
    assert loop.train(again, spiked.dataset, tmp_path / "again").finished
    assert [(e["step"], e["action"]) for e in read_events(tmp_path / "again")] == [(60, "skip_update")]


@pytest.mark.parametrize("again", ["warn", "defer"])
def test_on_resume_the_edits_of_the_checkpoint_hold(
    again: str, runs: dict[str, Path], spiked: Spiked, run_maker: Any, tmp_path: Path
) -> None:
    """Deferred at step 45, killed at 48: the checkpoint of step 40 knows nothing of it, so edits.json forgets it too."""

    class Killed(Exception):
        pass

    def kill(record: dict[str, Any]) -> None:
        if record["step"] == at:
            raise Killed

    at = 48
    with pytest.raises(Killed):
        loop.train(settings(run_maker, "defer"), spiked.dataset, tmp_path, report=kill)
    assert [e.kind for e in read_edits(tmp_path / "edits.json")] == ["defer"]
    at = 42
    with pytest.raises(Killed):
        loop.train(settings(run_maker, again), spiked.dataset, tmp_path, report=kill)
    assert not (tmp_path / "edits.json").exists()
    assert loop.train(settings(run_maker, again), spiked.dataset, tmp_path).finished
    want = runs[again] / "edits.json"
    assert (tmp_path / "edits.json").exists() == want.exists() == (again == "defer")
    if want.exists():
        assert (tmp_path / "edits.json").read_bytes() == want.read_bytes()


@pytest.fixture(scope="module")
def two_processes(spiked: Spiked, run_maker: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs by two data-parallel processes, in one launch."""
    base = tmp_path_factory.mktemp("two")
    cases = [{"name": action, "run": settings(run_maker, action).model_dump(mode="json")} for action in ACTIONS[1:]]
    (base / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(RANKS)]
    done = subprocess.run(
        [*command, str(spiked.dataset.folder), str(base), str(base / "cases.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return base


@pytest.mark.slow
@pytest.mark.parametrize("action", ACTIONS[1:])
def test_two_processes_decide_as_one(action: str, runs: dict[str, Path], two_processes: Path, spiked: Spiked) -> None:
    out = two_processes / action
    one, two = read_events(runs[action]), read_events(out)
    assert [rows_of(e) for e in two] == [rows_of(e) for e in one]
    # the sentences of the reasons hold values, which differ in their last digits between layouts
    plain = [[{k: v for k, v in x.items() if k != "reason"} for x in e["edits"]] for e in (*one, *two)]
    assert plain[: len(one)] == plain[len(one) :]
    assert losses(out) == pytest.approx(losses(runs[action]), abs=1e-4)
    names = [p.name for p in sorted(out.glob("spikes/00000045-*.parquet"))]
    assert names == [f"00000045-00001-{rank}.parquet" for rank in (0, 1)]
    assert {d["id"] for d in traced(out, str(spiked.step))["documents"][:8]} == spiked.garbage
    assert not list((out / "heartbeat").iterdir()), "ranks that have ended are not stalled"
