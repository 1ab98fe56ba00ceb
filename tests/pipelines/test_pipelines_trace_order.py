"""Steps of a trace belong to a run: its batch ramp and the edits in its newest checkpoint decide which rows they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gristmill.core.errors import FormatError
from gristmill.core.tokshards import PackedDataset, PackedManifest, PackedPhase, write_manifest
from gristmill.pipelines import tracing
from gristmill.pipelines.cli.look import trace
from gristmill.trainer.edits import Block, Edits, write_edits
from gristmill.trainer.order import DataOrder

RUN = "abc123"
BLOCKED = "0" * 31 + "7"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with an unfinished run on a dataset of 32 rows; the document of row r is r, in hex."""
    write_manifest(tmp_path, PackedManifest("<u2", 97, {}, "", 0, "", [PackedPhase("a", 8, 32, 8, 32, {}, {})], []))
    dataset = PackedDataset(tmp_path)
    monkeypatch.setattr(tracing, "run_dataset", lambda root, run_id: (run_id, dataset))
    monkeypatch.setattr(tracing, "input_places", lambda root: {})

    def rows_of(dataset: PackedDataset, root: Path, rows: list[tuple[str, int]]) -> list[dict[str, Any]]:
        return [{"phase": phase, "row": row, "id": f"{row:032x}", "warc_file": "w"} for phase, row in rows]

    monkeypatch.setattr("gristmill.mixes.tracing.trace_rows", rows_of)
    return tmp_path


def work(root: Path, **settings: Any) -> Path:
    folder = root / "stages" / "train" / RUN / "work"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"gristmill_train": 1, **settings}))
    return folder


def checkpoint(folder: Path, step: int, state: str) -> None:
    (folder / "checkpoints" / f"{step:08d}").mkdir(parents=True)
    (folder / "checkpoints" / f"{step:08d}" / "state.json").write_text(state)


def edited(root: Path) -> Edits:
    order = DataOrder(PackedDataset(root).manifest)
    order = order.edited(*order.defer(1))
    return order.edited(*order.skip(1), Block((BLOCKED,), 0)).edits


def traced(root: Path, step: int, run: str | None = RUN) -> list[tuple[int, bool]]:
    return [(row["row"], row["trained"]) for row in tracing.trace_step(root, step, run)]


def test_without_a_run_steps_are_those_of_the_dataset(root: Path) -> None:
    assert traced(root, 2, None) == [(row, True) for row in range(8, 16)]


def test_a_ramp_moves_the_steps(root: Path) -> None:
    work(root, data={"batch_ramp": [{"rows": 4, "until_samples": 8}]})
    assert [traced(root, step) for step in (2, 3)] == [
        [(row, True) for row in range(4, 8)],
        [(row, True) for row in range(8, 16)],
    ]


def test_edits_of_the_newest_whole_checkpoint_hold(root: Path) -> None:
    folder = work(root)
    checkpoint(folder, 1, json.dumps({"edits": []}))
    checkpoint(folder, 2, json.dumps({"edits": edited(root).to_json()}))
    checkpoint(folder, 3, '{"edits": [')  # cut short
    assert traced(root, 1) == [(row, False) for row in range(8, 16)]  # skipped, after the first batch was moved away
    assert traced(root, 2) == [(row, True) for row in range(16, 24)]
    assert traced(root, 4) == [(row, row != 7) for row in range(8)]
    checkpoint(folder, 4, json.dumps({"edits": [{"kind": "lose"}]}))
    with pytest.raises(FormatError, match="kind is 'lose'"):
        traced(root, 1)


def test_a_finished_run_without_its_checkpoints_has_its_output(root: Path) -> None:
    folder = work(root)
    write_edits(folder.parent / "edits.json", edited(root))
    assert traced(root, 2) == [(row, True) for row in range(16, 24)]


def test_settings_of_another_version_are_told(root: Path) -> None:
    work(root, data={"batch_ramp": "large"})
    with pytest.raises(FormatError, match="no settings that this version reads"):
        traced(root, 1)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("abc123" + "0" * 26, "step 2 of training run abc123000000\n"),
        (None, "step 2 of the packed dataset (no training"),
    ],
)
def test_the_command_says_whose_step_it_traced(run, words, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = PackedDataset(root)
    monkeypatch.setattr(tracing, "run_dataset", lambda root, run_id: (run, dataset))  # nobody names one
    monkeypatch.setattr(tracing, "trace_step", lambda root, step, run_id: [{"run": run}])
    monkeypatch.setattr(tracing, "render", lambda row: "a piece")
    (root / "gristmill.json").touch()
    done = CliRunner().invoke(trace, ["--root", str(root), "--step", "2"], catch_exceptions=False)
    assert words in done.stderr
    assert done.stdout == "a piece\n"
    done = CliRunner().invoke(trace, ["--root", str(root), "--step", "2", "--json"], catch_exceptions=False)
    assert [row["run"] for row in json.loads(done.stdout)] == [run]


def test_each_row_names_its_run(root: Path) -> None:
    work(root)
    assert {row["run"] for row in tracing.trace_step(root, 2, RUN)} == {RUN}
    assert {row["run"] for row in tracing.trace_step(root, 2, None)} == {None}
