"""The training part of the HTML report: losses, evaluations, what the guards did, and samples side by side by checkpoint.

It reads a run's own files and needs none of them: metrics.jsonl, evaluations.jsonl, events.jsonl, summary.json, and
samples/*.json, which stay in the task's work folder. What is absent, or a line that is no record, is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import orjson

from gristmill.pipelines.report.charts import Point, line_chart

MOST_ROWS = 20_000  # of a journal kept in memory: every n-th of a long one; a chart shows 600 points
MOST_SAMPLES = 24  # checkpoints in the gallery: the first, the last and evenly spaced ones between
MOST_EVENTS = 200
MEAN = 20  # steps of the smoothed loss

Record = dict[str, Any]


def collect(folder: Path) -> Record:
    """What a run's folder holds: {"metrics", "evaluations", "events", "samples", "summary"}; lists may be empty."""
    paths = [path for place in (folder, folder / "work") for path in sorted((place / "samples").glob("*.json"))]
    samples = [s for path in paths for s in _records(path)]
    return {
        "metrics": _steps(folder / "metrics.jsonl"),
        "evaluations": [
            e
            for e in _steps(folder / "evaluations.jsonl")
            if all(isinstance(e.get(kind), dict) for kind in ("heldout", "tasks"))
        ],
        "events": list(_records(folder / "events.jsonl")),
        "samples": [s for s in samples if isinstance(s.get("samples"), list) and isinstance(s.get("step"), int)],
        "summary": next(_records(folder / "summary.json"), {}),
    }


def _steps(path: Path) -> list[Record]:
    """A journal's rows that name their step, at most MOST_ROWS of them, evenly spaced."""
    if not path.exists():
        return []
    with open(path, "rb") as file:
        rows = sum(1 for _ in file)
    stride = -(-rows // MOST_ROWS) or 1
    return [r for i, r in enumerate(_records(path)) if i % stride == 0 and isinstance(r.get("step"), int)]


def _records(path: Path) -> Iterator[Record]:
    """The JSON objects of a file: one of a .json file, one a line else."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        for line in [file.read()] if path.suffix == ".json" else file:
            try:
                found = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(found, dict):
                yield found


def section(found: Record, title: str = "Training") -> str:
    """The part as HTML, without a page around it."""
    metrics, summary = found["metrics"], found["summary"]
    parts = [f"<h1>{escape(title)}</h1>"]
    if summary:
        numbers = [f"{summary[key]:,} {key}" for key in ("steps", "tokens", "params") if key in summary]
        parts.append(
            f"<p>{', '.join(numbers)}; loss {_number(summary.get('final_loss'))} nats per token at the end.</p>"
        )
    borders = _borders(metrics)
    marks = [float(e["step"]) for e in found["events"] if isinstance(e.get("step"), int)]
    loss = _column(metrics, "loss")
    smooth = [
        (x, sum(y for _, y in loss[max(0, i - MEAN + 1) : i + 1]) / min(i + 1, MEAN)) for i, (x, _) in enumerate(loss)
    ]
    sources = sorted({name for row in metrics for name in row.get("source_loss") or {}})
    by_source = {
        n: [(float(r["step"]), r["source_loss"][n]) for r in metrics if n in (r.get("source_loss") or {})]
        for n in sources
    }
    heldout, accuracy = _nested(found["evaluations"], "heldout", "bits_per_byte"), _accuracies(found["evaluations"])
    for heading, drawing in (
        (
            "Loss",
            line_chart(
                {"loss": loss, f"mean of {MEAN} steps": smooth}, "step", "nats per token", borders=borders, marks=marks
            ),
        ),
        ("Loss by source", line_chart(by_source, "step", "nats per token", borders=borders)),
        ("Held-out bits per byte", line_chart(heldout, "step", "bits per byte", borders=borders)),
        ("Task accuracy", line_chart(accuracy, "step", "accuracy", borders=borders)),
        (
            "Gradient norm",
            line_chart({"norm": _column(metrics, "grad_norm")}, "step", "norm", borders=borders, marks=marks),
        ),
        ("Learning rate", line_chart({"rate": _column(metrics, "lr")}, "step", "learning rate", borders=borders)),
    ):
        if drawing:
            parts.append(f"<h2>{heading}</h2>{drawing}")
    parts += [_tasks(found["evaluations"]), _events(found["events"]), gallery(found["samples"])]
    return "".join(parts)


def gallery(samples: Sequence[Record]) -> str:
    """Each prompt with its continuations from the first checkpoint to the last; empty without samples."""
    if not samples:
        return ""
    n = len(samples)
    shown = [samples[i] for i in sorted({round(k * (n - 1) / (MOST_SAMPLES - 1)) for k in range(MOST_SAMPLES)})]
    prompts = list(dict.fromkeys(str(s["prompt"]) for one in shown for s in one["samples"]))
    out = ["<h2>Samples by checkpoint</h2>"]
    for prompt in prompts:
        out.append(f"<h3>{escape(prompt) or 'start of a document'}</h3><table><tr><th>step<th>stage<th>text</tr>")
        for one in shown:
            for s in one["samples"]:
                if s["prompt"] == prompt:
                    text = str(s["text"])
                    rest = text.removeprefix(prompt)
                    out.append(
                        f"<tr><td class=n>{int(one['step']):,}<td>{escape(str(one.get('phase', '')))}"
                        f"<td class=sample><b>{escape(text[: len(text) - len(rest)])}</b>{escape(rest)}</tr>"
                    )
        out.append("</table>")
    return "".join(out)


def evaluation_lines(evaluations: Sequence[Record]) -> list[str]:
    """The first and the last evaluation for a terminal: bits per byte by source, accuracies with their errors."""
    if not evaluations:
        return []
    first, last = evaluations[0], evaluations[-1]
    out = []
    for name, now in last["heldout"].items():
        then = first["heldout"].get(name, now)
        out.append(
            f"  held-out {name:<14} {_number(then['bits_per_byte'])} → {_number(now['bits_per_byte'])} bits/byte"
        )
    for name, now in last["tasks"].items():
        out.append(f"  task {name:<18} {_task_words(now)}")
    return out


def _tasks(evaluations: Sequence[Record]) -> str:
    tasks = evaluations[-1]["tasks"] if evaluations else {}
    if not tasks:
        return ""
    rows = "".join(
        f"<tr><td>{escape(name)}<td class=n>{found['items']:,}<td>{escape(_task_words(found))}"
        f"<td class=n>{_number(found['gold_logprob_per_char'])}</tr>"
        for name, found in tasks.items()
    )
    step = int(evaluations[-1]["step"])
    return f"<h2>Tasks after step {step:,}</h2><table><tr><th>task<th>items<th>accuracy<th>nats per character of the right answer</tr>{rows}</table>"


def _task_words(found: Record) -> str:
    key = next((k for k in ("accuracy_per_char", "accuracy") if k in found), None)
    if key is None:
        return f"{_number(found['gold_logprob_per_char'])} nats/char"
    chance = f" (chance {found['random']:.1%})" if "random" in found else ""
    return f"{found[key]:.1%} ± {found[f'{key}_stderr']:.1%}{chance}"


def _events(events: Sequence[Record]) -> str:
    if not events:
        return ""
    rows = "".join(
        f"<tr><td class=n>{escape(str(e.get('step', '')))}<td>{escape(str(e.get('phase', '')))}"
        f"<td>{escape(str(e.get('action', '')))}<td>{escape(str(e.get('cause', '')))}<td>{escape(str(e.get('reason', '')))}</tr>"
        for e in events[:MOST_EVENTS]
    )
    more = f"<p>and {len(events) - MOST_EVENTS} more</p>" if len(events) > MOST_EVENTS else ""
    return f"<h2>Events</h2><table><tr><th>step<th>stage<th>action<th>cause<th>reason</tr>{rows}</table>{more}"


def _borders(metrics: Sequence[Record]) -> dict[str, float]:
    """{stage: its first step}."""
    out: dict[str, float] = {}
    for row in metrics:
        out.setdefault(str(row.get("phase", "")), float(row["step"]))
    return out if len(out) > 1 else {}


def _column(rows: Sequence[Record], name: str) -> list[Point]:
    return [(float(r["step"]), float(r[name])) for r in rows if isinstance(r.get(name), int | float)]


def _nested(evaluations: Sequence[Record], kind: str, key: str) -> dict[str, list[Point]]:
    out: dict[str, list[Point]] = {}
    for row in evaluations:
        for name, found in row.get(kind, {}).items():
            if isinstance(found.get(key), int | float):
                out.setdefault(name, []).append((float(row["step"]), float(found[key])))
    return out


def _accuracies(evaluations: Sequence[Record]) -> dict[str, list[Point]]:
    """Per character where a task has it, else as it is."""
    return _nested(evaluations, "tasks", "accuracy") | _nested(evaluations, "tasks", "accuracy_per_char")


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "n/a"
