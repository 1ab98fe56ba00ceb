"""The training part of the HTML report: from a run's files, whole or damaged, with nothing of theirs taken for markup."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import orjson
import pytest

from gristmill.pipelines.report import charts, training
from gristmill.pipelines.report.page import page


@pytest.fixture
def folder(tmp_path):
    """A run of 900 steps in two stages, three evaluations, one event, samples at five checkpoints."""
    metrics = [
        {
            "step": s,
            "phase": "main" if s <= 600 else "anneal<1>",
            "loss": 5 * math.exp(-s / 300) + 2,
            "grad_norm": 1.0,
            "lr": 1e-3,
            "source_loss": {"web": 3.0, "code & co": 2.0},
        }
        for s in range(1, 901)
    ]
    task = {"items": 10, "accuracy": 0.4, "accuracy_stderr": 0.1, "random": 0.25, "gold_logprob_per_char": -0.8}
    evaluations = [
        {"step": s, "phase": "main", "heldout": {"web": {"bits_per_byte": 2 - s / 900}}, "tasks": {"arc": task}}
        for s in (300, 600, 900)
    ]
    event = {"event": 1, "step": 450, "phase": "main", "action": "defer", "cause": "loss", "reason": "loss 9 > 4"}
    for name, rows in (("metrics", metrics), ("evaluations", evaluations), ("events", [event])):
        (tmp_path / f"{name}.jsonl").write_bytes(b"".join(orjson.dumps(r) + b"\n" for r in rows))
    (tmp_path / "samples").mkdir()
    for step in range(180, 901, 180):
        texts = [{"prompt": "The", "text": f"The <script>{step}</script>"}, {"prompt": "", "text": "x"}]
        sample = {"step": step, "phase": "main", "samples": texts}
        (tmp_path / "samples" / f"{step:08d}.json").write_bytes(orjson.dumps(sample))
    summary = {"steps": 900, "tokens": 1_000_000, "params": 42, "final_loss": 2.25}
    (tmp_path / "summary.json").write_bytes(orjson.dumps(summary))
    return tmp_path


def test_the_page_shows_every_part(folder):
    html = page("run", training.section(training.collect(folder)))
    for heading in (
        "Loss",
        "Loss by source",
        "Held-out bits per byte",
        "Task accuracy",
        "Gradient norm",
        "Learning rate",
    ):
        assert f"<h2>{heading}</h2><svg" in html
    for text in ("1,000,000 tokens", "40.0% ± 10.0% (chance 25.0%)", "defer", "loss 9 &gt; 4", "anneal&lt;1&gt;"):
        assert text in html
    assert html.count("&lt;script&gt;") == 5  # one sample of this prompt per checkpoint, none of them markup
    assert "<script" not in html
    assert "code &amp; co" in html
    assert html.index("&lt;script&gt;180") < html.index("&lt;script&gt;900")
    assert html.count('class="mark"') == 2  # the event, below loss and gradient norm
    for drawing in html.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + drawing.partition("</svg>")[0] + "</svg>")
    assert "http" not in html


def test_absent_and_damaged_files_leave_their_part_out(folder, tmp_path):
    empty = training.collect(tmp_path / "none")
    assert "<h2>" not in page("run", training.section(empty))
    for name in ("metrics.jsonl", "evaluations.jsonl", "events.jsonl"):
        with open(folder / name, "ab") as file:
            file.write(b'[1]\n{"phase": "main"}\n{"step": "x"}\n{"st')
    (folder / "samples" / "00000999.json").write_bytes(b"{")
    (folder / "summary.json").write_bytes(b"")
    found = training.collect(folder)
    assert [len(found[k]) for k in ("metrics", "evaluations", "samples")] == [900, 3, 5]
    assert "Samples by checkpoint" in page("run", training.section(found))


def test_terminal_lines_compare_the_first_and_the_last_evaluation(folder):
    assert training.evaluation_lines(training.collect(folder)["evaluations"]) == [
        "  held-out web            1.667 → 1.000 bits/byte",
        "  task arc                40.0% ± 10.0% (chance 25.0%)",
    ]
    assert training.evaluation_lines([]) == []


def test_long_runs_are_thinned_evenly():
    points = [(float(i), float(i % 2)) for i in range(100_000)]
    found = charts.thin(points)
    assert len(found) == charts.MOST_POINTS
    assert all(y == pytest.approx(0.5, abs=0.01) for _, y in found)
    assert charts.thin(points[:5]) == points[:5]


def test_a_gallery_of_many_checkpoints_keeps_the_first_and_the_last():
    samples = [{"step": s, "samples": [{"prompt": "a", "text": f"a {s}."}]} for s in range(1, 201)]
    shown = training.gallery(samples)
    assert shown.count("class=sample") == training.MOST_SAMPLES
    assert "> 1.<" in shown
    assert "> 200.<" in shown


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2.1, 2.9), (1, 900), (0, 2.5e9), (-3, 1e-4), (1e-5, 3e-5)])
def test_ticks_are_round_few_and_inside(low, high):
    found = charts.ticks(low, high)
    assert 2 <= len(found) <= 8
    slack = (high - low) * 1e-9
    assert low - slack <= found[0]
    assert found[-1] <= high + slack


def test_odd_values_draw_no_line():
    assert charts.line_chart({"a": [(1.0, math.nan), (2.0, math.inf)]}, "x", "y") == ""
    assert "polyline" in charts.line_chart({"a": [(1.0, 2.0)]}, "x", "y")
