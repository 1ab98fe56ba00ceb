"""`trace --spike` on a run folder made by hand: garbage first, averages, WARC ranges or why not, and the blocklist."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from click.testing import CliRunner, Result
from spiked import BATCH, Spiked, make_spiked

from gristmill.core.blocklist import read_blocklist
from gristmill.core.errors import UsageError
from gristmill.pipelines import spikes
from gristmill.pipelines.cli.look import trace
from gristmill.trainer import events, pieces

LOSS = {"web": 2.0, "code": 3.0}


@dataclass(frozen=True)
class Case:
    spiked: Spiked
    run: Path
    short: str  # a sound document of few tokens with a higher mean than any garbage

    def report(self, *options: str) -> Result:
        return CliRunner().invoke(trace, ["--run", str(self.run), *options], catch_exceptions=True)

    def json(self, *options: str) -> dict[str, Any]:
        done = self.report(*options, "--json")
        assert done.exit_code == 0, done.output
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def event(number: int, step: int, name: str | None, **changes: Any) -> dict[str, Any]:
    data = {
        "event": number,
        "step": step,
        "phase": "main",
        "action": "warn",
        "cause": "loss",
        "reason": "loss 6 is above 3",
        "value": 6.0,
        "threshold": 3.0,
        "rows": [["main", (step - 1) * BATCH, BATCH]],
        "document_ids": [],
        "edits": [],
        "report": name,
    }
    return data | changes


def losses_of(case: Spiked, step: int, rank: int, short: list[str]) -> pieces.StepLosses:
    """Half of a step's rows: tokens cost what their source does, garbage 8 nats, one short piece 11."""
    rng = np.random.default_rng((step, rank))
    rows = [("main", (step - 1) * BATCH + 4 * rank + i) for i in range(4)]
    losses_BT = np.full((4, 32), pieces.NO_LOSS, np.float32)
    for i, (phase, row) in enumerate(rows):
        for piece in pieces.Pieces(case.dataset).of(phase, row):
            mean = 8.0 if piece.id in case.garbage else LOSS[piece.source] + 0.2 * rng.standard_normal()
            if step == case.step and piece.id not in case.garbage and piece.length <= 5 and short in ([], [piece.id]):
                short[:] = [piece.id]
                mean = 11.0
            end = min(piece.row_start + piece.length - 1, 32)
            losses_BT[i, piece.row_start : end] = mean
    return pieces.StepLosses(step, step == case.step, step != case.step, rows, losses_BT)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("spikes")
    spiked, run, short = make_spiked(folder, main=40, anneal=2, step=30), folder / "run", []  # type: ignore[var-annotated]
    run.mkdir()
    name = pieces.report_name(2, 30)
    for rank in (0, 1):  # the garbage is in the rows of rank 0, the short piece in either's
        steps = [losses_of(spiked, step, rank, short) for step in range(20, 31)]
        table = pieces.piece_losses(pieces.Pieces(spiked.dataset), steps)
        pieces.write_report(run, name, rank, table, spiked.dataset)
    assert short
    log = events.EventLog(run / events.FILE, 0)
    log.write(event(1, 12, None))
    log.write(event(2, 30, name))
    log.write(event(3, 33, None))
    log.close()
    return Case(spiked, run, short[0])


def test_garbage_comes_first(case: Case) -> None:
    found = case.json("--spike", "--top", "20")
    documents = found["documents"]
    assert {d["id"] for d in documents[:8]} == case.spiked.garbage
    assert all(d["loss"] == pytest.approx(8, abs=1e-6) and d["tokens"] in (15, 16) for d in documents[:8])
    # 11 nats on 4 tokens or less: the highest mean, but too few tokens to be ranked by it
    assert case.short in {d["id"] for d in documents[8:]}
    assert found["event"]["step"] == 30
    assert "document_ids" not in found["event"]
    for source, average in LOSS.items():
        told = found["sources"][source]
        assert told["average"] == pytest.approx(average, abs=0.1)
        assert told["std"] == pytest.approx(0.2, abs=0.08)
        assert told["from"] == "report"
    worst = documents[0]
    source = found["sources"][worst["source"]]
    assert worst["sigma"] == pytest.approx((8 - source["average"]) / source["std"], rel=1e-6)
    n = worst["tokens"]
    assert worst["excess"] == pytest.approx(n * (8 - source["average"]) / (n + 16))
    assert found["batch"]["documents"] == len({i for i in _ids(case, 30)})


def _ids(case: Case, step: int) -> list[str]:
    rows = [("main", (step - 1) * BATCH + i) for i in range(BATCH)]
    return [
        p.id for row in rows for p in pieces.Pieces(case.spiked.dataset).of(*row) if p.length > 1 and p.row_start < 32
    ]


def test_text_and_warc_range_where_they_are_known(case: Case) -> None:
    [worst] = case.json("--spike", "--top", "1")["documents"]
    assert worst["text"].startswith("w")
    assert worst["warc_file"] is None
    assert "no root" in worst["unknown"]
    [worst] = case.json("--spike", "30", "--top", "1", "--root", str(case.spiked.root))["documents"]
    number = int(worst["url"].rsplit("/", 1)[1])
    assert (worst["warc_file"], worst["warc_offset"], worst["warc_length"]) == ("crawl.warc.gz", 1000 * number, 900)
    assert worst["unknown"] is None
    (case.spiked.root / "elsewhere").mkdir()
    [worst] = case.json("--spike", "--top", "1", "--root", str(case.spiked.root / "elsewhere"))["documents"]
    assert "no token store under" in worst["unknown"]


def test_people_read_which_step_which_documents_and_why(case: Case) -> None:
    done = case.report("--spike", "--top", "2", "--root", str(case.spiked.root))
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("event 2, step 30 of the run, phase main: loss 6 is above 3\naction: warn; batch of")
    assert "(from the steps before)" in done.stdout
    assert "loss 8.000" in done.stdout
    assert "crawl.warc.gz " in done.stdout


def test_block_writes_what_a_run_reads(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "garbage.txt"
    done = case.report("--spike", "--top", "8", "--block", str(path))
    assert done.exit_code == 0, done.output
    assert "8 of 8 documents added" in done.stderr
    assert set(read_blocklist(path)) == case.spiked.garbage
    assert "step 30: loss 8" in path.read_text()
    case.report("--spike", "--top", "9", "--block", str(path))
    assert len(read_blocklist(path)) == 9


def test_what_cannot_be_traced_is_told(case: Case, tmp_path: Path) -> None:
    def fails(*options: str, run: Path = case.run) -> str:
        done = CliRunner().invoke(trace, ["--run", str(run), *options])
        assert done.exit_code
        return str(done.exception)

    assert "no event of step 12 has a report" in fails("--spike", "12")
    assert "steps with one: 30" in fails("--spike", "12")
    assert "give one of" in fails("--spike", "--step", "3")
    assert "do not go with --spike" in fails("--spike", "--verify")
    assert "go with --spike" in fails("--step", "3", "--block", "x")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no guard acted" in fails("--spike", run=empty)
    unnamed = tmp_path / "unnamed"
    shutil.copytree(case.run, unnamed)
    (unnamed / pieces.FOLDER / pieces.DATASET_FILE).unlink()
    assert "does not say which packed dataset" in fails("--spike", run=unnamed)
    assert "no guard acted" in fails("--spike", "--dataset", str(case.spiked.dataset.folder), run=empty)
    other = make_spiked(tmp_path / "other", main=3, anneal=1, step=1, seed=9)
    assert "is not the dataset of this run" in fails("--spike", "--dataset", str(other.dataset.folder))


def test_a_run_of_a_root_is_named_by_the_beginning_of_its_id(case: Case, tmp_path: Path) -> None:
    """Also one that has not finished: its task folder has no receipt yet."""
    work = tmp_path / "stages" / "train" / "3fa9c0" / "work"
    shutil.copytree(case.run, work)
    (work / "launch.json").write_bytes(b"{}")
    (work / "metrics.jsonl").write_bytes(b"")
    run = spikes.find_run("3fa", tmp_path, case.spiked.dataset.folder)
    assert (run.id, run.folder) == ("3fa9c0", work)
    assert spikes.find_run(None, tmp_path, case.spiked.dataset.folder).id == "3fa9c0"
    with pytest.raises(UsageError, match="no training run '4f'"):
        spikes.find_run("4f", tmp_path, case.spiked.dataset.folder)
    with pytest.raises(UsageError, match="has no training run"):
        spikes.find_run(None, tmp_path / "none", case.spiked.dataset.folder)


def test_averages_fall_back_on_metrics_and_on_the_batch(case: Case) -> None:
    report = pieces.read_report(case.run, pieces.report_name(2, 30))
    batch = report.filter(report["fired"])
    (case.run / "metrics.jsonl").write_bytes(
        b"".join(orjson.dumps({"step": n, "source_loss": {"web": 1.0 + (n >= 14)}}) + b"\n" for n in range(1, 40))
    )
    metrics = spikes._metrics(case.run, 30)
    assert metrics == {"web": 2.0}
    found = spikes.averages(report.slice(0, 0), batch, metrics)
    assert found["web"] == {"average": 2.0, "std": None, "pieces": 0, "from": "metrics"}
    assert found["code"]["from"] == "batch"
    ranked = spikes.rank(batch, found)
    assert ranked[0]["sigma"] is None
    assert {d["id"] for d in ranked if d["source"] == "web"} & case.spiked.garbage


def test_a_loss_that_is_not_finite_ranks_before_all(case: Case) -> None:
    batch = pieces.read_report(case.run, pieces.report_name(2, 30))
    batch = batch.filter(batch["fired"])
    records = batch.to_pylist()
    records[5]["loss_sum"] = float("nan")
    found = spikes.averages(batch, batch, {})
    assert spikes.rank(type(batch).from_pylist(records, schema=batch.schema), found)[0]["id"] == records[5]["id"]


def test_a_rewind_blames_all_edited_batches(case: Case, tmp_path: Path) -> None:
    """The garbage of step 30 shows at step 32: a rewind of three steps ranks the batches of all three."""
    run = tmp_path / "run"
    run.mkdir()
    name = pieces.report_name(1, 32)
    steps = [losses_of(case.spiked, step, 0, ["none"]) for step in range(20, 33)]
    steps = [s._replace(fired=s.step == 32, accepted=s.step != 32) for s in steps]
    table = pieces.piece_losses(pieces.Pieces(case.spiked.dataset), steps)
    pieces.write_report(run, name, 0, table, case.spiked.dataset)
    log = events.EventLog(run / events.FILE, 0)
    log.write(event(1, 32, name, action="rewind", edits=[{"kind": "skip", "at_step": 30}]))
    log.close()
    found = spikes.trace_spike(spikes.find_run(str(run), None), None, None, top=8)
    assert {d["id"] for d in found["documents"]} == case.spiked.garbage
    assert {p["step"] for d in found["documents"] for p in d["places"]} == {30}
