"""What the guards do, on a stand-in for training: skip, defer, rewind, limits, resumes, and replay by the edits alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from spiked import BATCH, Spiked, make_spiked  # noqa: E402

from gristmill.core.errors import GristmillError  # noqa: E402
from gristmill.core.hashing import hash64  # noqa: E402
from gristmill.trainer import pieces  # noqa: E402
from gristmill.trainer.edits import Defer, Edits, Skip  # noqa: E402
from gristmill.trainer.events import FILE, read_events  # noqa: E402
from gristmill.trainer.guard_schema import Guards  # noqa: E402
from gristmill.trainer.guards import Guard, Verdict  # noqa: E402
from gristmill.trainer.order import DataOrder  # noqa: E402
from gristmill.trainer.parallel.mesh import World  # noqa: E402

CPU = torch.device("cpu")
pytestmark = pytest.mark.spike


@pytest.fixture(scope="module")
def spiked(tmp_path_factory: pytest.TempPathFactory) -> Spiked:
    return make_spiked(tmp_path_factory.mktemp("spiked"), main=30, anneal=8, step=20)


class Killed(Exception):
    pass


@dataclass
class Life:
    """A run without a model: its weight is a number that each applied batch changes, its loss high where rows are bad."""

    spiked: Spiked
    out: Path
    settings: Guards
    bad: dict[tuple[str, int], float]
    saved: dict[int, tuple[float, str, Edits]] = field(default_factory=dict)
    history: dict[int, tuple[float, list[tuple[str, int]]]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.out.mkdir(exist_ok=True)

    def train(self, edits: Edits | None = None, kill_at: int | None = None) -> float:
        step, weight, state = 0, 1.0, None
        if self.saved:
            step = max(self.saved)
            weight, text, edits = self.saved[step]
            state = json.loads(text)
        order = DataOrder(self.spiked.dataset.manifest, (), edits)
        guard = Guard(
            self.settings, self.spiked.dataset, self.out, World(CPU), CPU, self.newest, self.said.append, state
        )
        while (now := order.next_step(step)) is not None:
            if now == kill_at:
                guard.close()
                raise Killed
            rows = order.rows_of_step(now)
            noise = hash64(json.dumps([rows, weight])) / 2**64
            loss = 3 + 0.1 * noise + max((self.bad.get(row, 0.0) for row in rows), default=0.0)
            nll_BT = torch.tensor([[3 + self.bad.get(row, 0.0)] * 32 for row in rows])
            guard.ring.add(now, rows, nll_BT, torch.zeros(len(rows), 32, dtype=torch.int64))
            ok, numbers = guard.judge(torch.tensor(loss, dtype=torch.float64), torch.tensor(1 + noise))
            if ok:
                weight = 0.9 * weight + noise
            verdict = guard.after(now, numbers.tolist(), order)
            if verdict is not None:
                assert verdict.applied == bool(ok)
                order = order.edited(*verdict.edits)
                if verdict.action == "defer":
                    continue
                if verdict.action == "rewind":
                    assert verdict.to_step is not None
                    step, saved = verdict.to_step, self.saved.get(verdict.to_step)
                    weight = saved[0] if saved else 1.0
                    guard.rewound(json.loads(saved[1]) if saved else None)
                    self.saved = {n: s for n, s in self.saved.items() if n <= step}
                    self.history = {n: h for n, h in self.history.items() if n <= step}
                    continue
            step = now
            if ok:
                self.history[now] = (weight, rows)
            if now % 5 == 0:
                self.saved[now] = (weight, json.dumps(guard.state_dict()), order.edits)
        guard.close()
        self.edits = order.edits
        return weight

    def newest(self, before: int) -> int:
        return max((n for n in self.saved if n < before), default=0)


def live(spiked: Spiked, out: Path, bad: dict[tuple[str, int], float] | None = None, **settings: Any) -> Life:
    bad = {("main", (spiked.step - 1) * BATCH): 6.0} if bad is None else bad
    return Life(spiked, out, Guards.model_validate({"window": 8, "min_steps": 4} | settings), bad)


def replayed(life: Life, tmp_path: Path) -> Life:
    """A run with the final edits from its first step on: no guard acts, every step is the same."""
    again = Life(life.spiked, tmp_path / "again", life.settings, life.bad)
    again.train(life.edits)
    assert read_events(again.out) == []
    assert again.history == life.history
    return again


def trained_rows(life: Life) -> list[tuple[str, int]]:
    return [row for _, rows in life.history.values() for row in rows]


def test_warn_changes_nothing_and_writes_a_report(spiked: Spiked, tmp_path: Path) -> None:
    life = live(spiked, tmp_path / "run")
    life.train()
    [event] = read_events(life.out)
    assert (event["event"], event["step"], event["action"], event["cause"]) == (1, 20, "warn", "loss")
    assert event["applied"]
    assert event["edits"] == []
    assert event["rows"] == [["main", 19 * BATCH, BATCH]]
    assert event["value"] > event["threshold"] == pytest.approx(event["mean"] + 6 * event["std"])
    assert spiked.garbage <= set(event["document_ids"])
    assert event["documents"] == len(event["document_ids"])
    assert len(life.history) == 38
    table = pieces.read_report(life.out, event["report"])
    assert set(table["step"].to_pylist()) == set(range(5, 21))
    assert "the update was applied" in life.said[0]


def test_a_skipped_step_passes_and_replays(spiked: Spiked, tmp_path: Path) -> None:
    life = live(spiked, tmp_path / "run", on_spike="skip_update")
    life.train()
    assert 20 not in life.history
    assert len(life.history) == 37
    assert list(life.edits) == [Skip("main", 19 * BATCH, BATCH, 20, life.edits.items[0].reason)]
    assert not read_events(life.out)[0]["applied"]
    replayed(life, tmp_path)


def test_a_deferred_batch_comes_last_before_the_decay_and_is_skipped_there(spiked: Spiked, tmp_path: Path) -> None:
    life = live(spiked, tmp_path / "run", on_spike="defer")
    life.train()
    first, second = read_events(life.out)
    assert (first["action"], first["step"]) == ("defer", 20)
    assert life.history[20][1][0] == ("main", 20 * BATCH), "the rows behind moved up"
    # at the end of the phase the same rows spike again; nothing can be deferred twice
    assert (second["action"], second["step"]) == ("skip_update", 30)
    assert second["rows"] == first["rows"]
    assert "skipped in place of deferred" in second["reason"]
    assert [edit.kind for edit in life.edits] == ["defer", "skip"]
    assert len(trained_rows(life)) == len(set(trained_rows(life))) == 37 * BATCH
    replayed(life, tmp_path)


def test_in_the_decay_a_batch_is_skipped(spiked: Spiked, tmp_path: Path) -> None:
    life = live(spiked, tmp_path / "run", {("anneal", 3 * BATCH): 6.0}, on_spike="defer")
    life.train()
    [event] = read_events(life.out)
    assert (event["action"], event["step"], event["phase"]) == ("skip_update", 34, "anneal")
    assert "no end before the decay" in event["reason"]
    replayed(life, tmp_path)


@pytest.mark.parametrize(
    ("edit", "steps", "to_step"), [("defer", 1, 15), ("skip", 3, 15), ("skip", 6, 10), ("defer", 25, 0)]
)
def test_a_rewind_edits_the_last_batches_and_replays(
    edit: str, steps: int, to_step: int, spiked: Spiked, tmp_path: Path
) -> None:
    life = live(spiked, tmp_path / "run", on_spike="rewind", rewind_steps=steps, rewind_edit=edit)
    life.train()
    first, *later = read_events(life.out)
    edited = min(steps, 20)
    assert (first["action"], first["step"], first["to_step"]) == ("rewind", 20, to_step)
    assert [e["kind"] for e in first["edits"]] == [edit] * edited
    assert sum(e["rows"] for e in first["edits"]) == edited * BATCH
    moved = {("main", row) for row in range((20 - edited) * BATCH, 20 * BATCH)}
    assert not moved & set(trained_rows(life))
    # deferred rows that spike again cannot move once more: the rewind at the end of the phase skips them
    assert [(e["action"], e["step"]) for e in later] == ([("rewind", 30)] if edit == "defer" else [])
    assert len(trained_rows(life)) == (38 - edited) * BATCH
    replayed(life, tmp_path)


def test_a_document_deferred_too_often_is_skipped(spiked: Spiked, tmp_path: Path) -> None:
    """The batches of steps 5 and 6 share a document: the second is not deferred when one defer is all a document gets."""
    life = live(spiked, tmp_path / "run", on_spike="defer", max_defers_per_document=1)
    shared = spiked.dataset
    guard = Guard(life.settings, shared, life.out, World(CPU), CPU, lambda before: 0)
    order = DataOrder(shared.manifest)
    order = order.edited(*order.defer(5))
    assert guard._refusal(order, (), order.defer(6), 6) is None
    document = pieces.Pieces(shared).of("main", 4 * BATCH)[0].id  # deferred with the batch of step 5
    whole = guard.pieces.documents
    guard.pieces.documents = lambda rows: sorted({*whole(rows), document})  # type: ignore[method-assign]
    assert guard._refusal(order, (), order.defer(6), 6) == f"document {document} was deferred 1 of at most 1 times"
    guard.close()


def test_a_rewind_of_two_batches_counts_their_document_once(spiked: Spiked, tmp_path: Path) -> None:
    life = live(spiked, tmp_path / "run", on_spike="rewind", rewind_steps=2, max_defers_per_document=2)
    guard = Guard(life.settings, spiked.dataset, life.out, World(CPU), CPU, lambda before: 0)
    shared = "f" * 32  # a document that begins in one batch and ends in the next
    guard.pieces.documents = lambda rows: [shared] if rows else []  # type: ignore[method-assign]
    order, kinds, reasons = DataOrder(spiked.dataset.manifest), [], []
    for step in (6, 12, 18):
        found = Verdict(step, "rewind", "loss", f"loss {step} is above 3", 6.0, 3.0, 3.0, 0.1, 8, False)
        verdict, _ = guard._decide(found, order)
        kinds.append([edit.kind for edit in verdict.edits])
        reasons.append(verdict.reason)
        order = order.edited(*verdict.edits)
    guard.close()
    assert kinds == [["defer", "defer"], ["defer", "defer"], ["skip", "skip"]]
    assert [r for r in reasons if "deferred" in r] == [
        f"loss 18 is above 3 (skipped in place of deferred: document {shared} was deferred 2 of at most 2 times)"
    ]


@pytest.mark.parametrize("on_spike", ["warn", "skip_update", "defer", "rewind"])
@pytest.mark.parametrize("kill_at", [3, 19, 21, 24, 31])
def test_a_killed_run_gives_the_same_events_and_steps(
    on_spike: str, kill_at: int, spiked: Spiked, tmp_path: Path
) -> None:
    whole = live(spiked, tmp_path / "whole", on_spike=on_spike, rewind_steps=2)
    end = whole.train()
    life = live(spiked, tmp_path / "killed", on_spike=on_spike, rewind_steps=2)
    with pytest.raises(Killed):
        life.train(kill_at=kill_at)
    done = max(life.saved, default=0)
    life.history = {n: h for n, h in life.history.items() if n <= done}
    assert life.train() == end
    assert life.history == whole.history
    assert life.edits == whole.edits
    assert (life.out / FILE).read_bytes() == (whole.out / FILE).read_bytes()
    folder = life.out / pieces.FOLDER
    names = [sorted(p.name for p in (run / pieces.FOLDER).iterdir()) for run in (whole.out, life.out)]
    assert names[0] == names[1]
    assert (folder / pieces.DATASET_FILE).exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stops_the_run_or_is_skipped(value: float, spiked: Spiked, tmp_path: Path) -> None:
    bad = {("main", 9 * BATCH): value}
    life = live(spiked, tmp_path / "run", bad)
    with pytest.raises(GristmillError, match=rf"step 10: loss is {value}; nothing was applied") as raised:
        life.train()
    assert "trace --run R --spike" in str(raised.value)
    [event] = read_events(life.out)
    assert (event["action"], event["cause"], event["value"]) == ("stop", "nonfinite", str(value))
    life = live(spiked, tmp_path / "skip", bad, on_nonfinite="skip_update")
    life.train()
    assert [(e["action"], e["step"]) for e in read_events(life.out)] == [("skip_update", 10)]
    replayed(life, tmp_path)


@pytest.mark.parametrize(("limit", "fails_at"), [("max_actions", 20), ("max_actions_in_window", 12)])
def test_too_many_actions_end_the_run(limit: str, fails_at: int, spiked: Spiked, tmp_path: Path) -> None:
    bad = {("main", (n - 1) * BATCH): 6.0 for n in (10, 12, 20)}
    steps = {"max_actions": 2, "max_actions_in_window": 1}
    life = live(spiked, tmp_path / "run", bad, on_spike="skip_update", **{limit: steps[limit]})
    with pytest.raises(GristmillError, match=rf"step {fails_at}: .*guards\.{limit} allows no more"):
        life.train()
    assert read_events(life.out)[-1]["action"] == "stop"
    # it can be resumed: from its last checkpoint, with a limit that lets it
    life.settings = Guards.model_validate(life.settings.model_dump() | {limit: 5})
    life.train()
    assert [e["step"] for e in read_events(life.out)] == [10, 12, 20]
    assert len(life.history) == 35


def test_reports_are_limited_and_a_full_disk_ends_nothing(
    spiked: Spiked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {("main", (n - 1) * BATCH): 6.0 * n for n in (10, 15, 20)}
    life = live(spiked, tmp_path / "run", bad, max_reports=1)
    life.train()
    assert [bool(e["report"]) for e in read_events(life.out)] == [True, False, False][: len(read_events(life.out))]
    assert len(list((life.out / pieces.FOLDER).glob("*.parquet"))) == 1

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pieces, "write_report", full)
    life = live(spiked, tmp_path / "full")
    life.train()
    assert any("No space left" in text for text in life.said)


def test_edits_of_the_guards_are_plain_edits(spiked: Spiked, tmp_path: Path) -> None:
    life = live(spiked, tmp_path / "run", on_spike="defer")
    life.train()
    data = json.loads(json.dumps(life.edits.to_json()))
    assert Edits.from_json(data) == life.edits
    assert isinstance(life.edits.items[0], Defer)
    assert [e for event in read_events(life.out) for e in event["edits"]] == data
    assert np.all([e["at_step"] >= 1 for e in data])
