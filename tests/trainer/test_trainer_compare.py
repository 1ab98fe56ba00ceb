"""Ablations in one table: which settings differ, losses per phase, evaluations, and runs found by folder or id."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from gristmill.core.errors import FormatError, UsageError
from gristmill.trainer import compare


def write(folder: Path, run, losses: dict[str, list[float]], evaluation: dict | None = None, cut: bool = False) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_bytes(orjson.dumps(run.model_dump(mode="json", by_alias=True)))
    step, lines = 0, []
    for phase, values in losses.items():
        for value in values:
            step += 1
            lines.append(orjson.dumps({"step": step, "phase": phase, "loss": value, "tokens": step * 100}))
    text = b"\n".join(lines) + b"\n"
    (folder / "metrics.jsonl").write_bytes(text + b'{"step": 9' if cut else text)
    if not cut:
        (folder / "summary.json").write_text("{}")
    if evaluation is not None:
        (folder / "evaluations.jsonl").write_bytes(orjson.dumps({"step": 1}) + b"\n" + orjson.dumps(evaluation) + b"\n")
    return folder


@pytest.fixture
def two(run_maker, tmp_path) -> tuple[Path, Path]:
    evaluation = {
        "step": 3,
        "heldout": {"web": {"bits_per_byte": 1.25, "tokens": 9}},
        "tasks": {"piqa": {"accuracy": 0.5, "accuracy_per_char": 0.75}},
    }
    a = write(tmp_path / "a", run_maker(), {"main": [4.0, 3.0], "anneal": [2.0]}, evaluation)
    changes = {
        "optimizer": {"lr": 5e-3},
        "log_every": 3,
        "guards": {"max_actions": 30},
        "branch": {"run": str(tmp_path / "a"), "step": 2},
    }
    b = write(tmp_path / "b", run_maker(**changes), {"main": [4.0, 3.5], "cool": [1.5]}, cut=True)
    return a, b


def test_one_table(two):
    table = compare.compare(compare.find_runs([str(f) for f in two], None))
    assert table["runs"] == ["a", "b"]
    assert table["settings"] == {"optimizer.lr": [1e-2, 5e-3]}  # not log_every, the limit or the source's place
    assert table["rows"] == {
        "from": [None, "a@2"],
        "finished": [True, False],
        "step": [3, 3],
        "tokens": [300, 300],
        "loss": [3.0, 3.0],
        "loss.main": [3.5, 3.75],
        "loss.anneal": [2.0, None],
        "loss.cool": [None, 1.5],
        "evaluation.step": [3, None],
        "heldout.web.bits_per_byte": [1.25, None],
        "task.piqa.accuracy_per_char": [0.75, None],
    }
    lines = compare.render(table).splitlines()
    assert lines[0].split() == ["a", "b"]
    assert lines[1].split() == ["optimizer.lr", "0.0100", "0.005"]
    assert next(line for line in lines if line.startswith("loss.main")).split() == ["loss.main", "3.5000*", "3.7500"]
    assert next(line for line in lines if line.startswith("loss ")).split() == ["loss", "3.0000", "3.0000"]  # no best


def test_settings_that_an_older_run_lacks_are_at_their_defaults(two):
    run = orjson.loads((two[1] / "run.json").read_bytes())
    for key in ("loss", "average", "parallel"):
        run.pop(key)
    (two[1] / "run.json").write_bytes(orjson.dumps(run))
    found = compare.find_runs([str(f) for f in two], None)
    assert list(compare.differing(found)) == ["optimizer.lr"]


def test_runs_of_a_root_by_id(two, tmp_path):
    tasks = tmp_path / "root" / "stages" / "train"
    for folder, task in zip(two, ("aa11" * 8, "aa22" * 8), strict=True):
        (tasks / task).mkdir(parents=True)
        folder.rename(tasks / task / "work")
    root = tmp_path / "root"
    assert [r.name for r in compare.find_runs([], root)] == ["aa11aa11aa11", "aa22aa22aa22"]
    assert [r.name for r in compare.find_runs(["aa22", "aa11"], root)] == ["aa22aa22aa22", "aa11aa11aa11"]
    with pytest.raises(UsageError, match="aa is no run") as caught:
        compare.find_runs(["aa"], root)
    assert "aa11aa11aa11, aa22aa22aa22" in str(caught.value)
    with pytest.raises(UsageError, match="no runs to compare"):
        compare.find_runs([], tmp_path)


def test_damaged_runs_are_named(two):
    (two[0] / "metrics.jsonl").write_bytes(b"{")
    with pytest.raises(FormatError, match="has no finished step"):
        compare.read_run(two[0])
    (two[1] / "run.json").write_bytes(b"{")
    with pytest.raises(FormatError, match=r"run\.json cannot be read"):
        compare.read_run(two[1])
