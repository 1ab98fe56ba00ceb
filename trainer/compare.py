"""Several training runs in one table: the settings that differ, then steps, tokens, losses and evaluations. No torch.

A run is a folder with metrics.jsonl (a launch's folder, or a train task's in a root). Losses are means of the last
10 steps, of the run and of each phase; evaluations are the last row of evaluations.jsonl.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from gristmill.core.errors import FormatError, UsageError
from gristmill.core.settings import dotted, flatten
from gristmill.trainer.resume import with_defaults
from gristmill.trainer.summary import FINAL_STEPS, losses
from gristmill.trainer.train import OPERATIONAL, ROUNDING, WATCHING

TASK_ID = re.compile(r"[0-9a-f]{4,32}")
NAME_CHARACTERS = 12  # of a task's id
LOWER_IS_BETTER = ("loss", "bits_per_byte")
Row = tuple[str, list[Any]]  # a label and one value a run; None where a run has none


@dataclass(frozen=True)
class Run:
    """What a run's folder says of it. `settings` are its resolved ones as {dotted path: value}."""

    name: str
    folder: Path
    settings: dict[str, Any]
    records: list[dict[str, Any]]
    evaluation: dict[str, Any] | None
    finished: bool

    def phase_losses(self) -> dict[str, float]:
        """Final loss in nats per token of each phase, in order."""
        phases: dict[str, list[dict[str, Any]]] = {}
        for record in self.records:
            phases.setdefault(record["phase"], []).append(record)
        return {name: losses(part)["final_loss"] for name, part in phases.items()}

    @property
    def began(self) -> str | None:
        """`NAME@STEP` of the run that this one branched off, or the folder of an export."""
        source = self.settings.get("branch.run") or self.settings.get("branch.safetensors")
        if not source:
            return None
        path = Path(source)
        name = path.parent.name if path.name == "work" else path.name
        step = self.settings.get("branch.step")
        return name[:NAME_CHARACTERS] + (f"@{step}" if step else "")


def find_runs(names: Sequence[str], root: Path | None) -> list[Run]:
    """The runs with these names (folders, task ids of the root or their beginnings), or all of the root's when none is named.

    Raises UsageError when a name is none, FormatError when a file of a run is damaged.
    """
    tasks = {p.name: p for p in _tasks(root)}
    if not names:
        if not tasks:
            raise UsageError("no runs to compare", hint="name their folders, or give a --root that has trained some")
        return [read_run(folder) for folder in tasks.values()]
    found = []
    for name in names:
        if (Path(name) / "metrics.jsonl").is_file() or (Path(name) / "work" / "metrics.jsonl").is_file():
            found.append(read_run(Path(name)))
            continue
        matching = [p for task, p in tasks.items() if TASK_ID.fullmatch(name) and task.startswith(name)]
        if len(matching) != 1:
            have = ", ".join(task[:NAME_CHARACTERS] for task in tasks) or "none"
            raise UsageError(f"{name} is no run", hint=f"a folder with metrics.jsonl; runs of the root: {have}")
        found.append(read_run(matching[0]))
    return found


def _tasks(root: Path | None) -> Iterator[Path]:
    folder = root / "stages" / "train" if root is not None else None
    for path in sorted(folder.iterdir()) if folder is not None and folder.is_dir() else []:
        if (path / "metrics.jsonl").is_file() or (path / "work" / "metrics.jsonl").is_file():
            yield path


def read_run(folder: Path) -> Run:
    """A launch's folder, or a task's with the launch in work/. Raises FormatError when a file is damaged."""
    folder = folder.absolute()
    name = folder.parent.name if folder.name == "work" else folder.name
    work = folder / "work" if (folder / "work").is_dir() else folder
    run: Any = None
    if (work / "run.json").is_file():
        run = _json(work / "run.json")
    elif checkpoints := sorted((work / "checkpoints").glob("*/state.json")):
        run = _json(checkpoints[-1]).get("run")
    elif (folder / "receipt.json").is_file():
        run = _json(folder / "receipt.json").get("config", {}).get("run")
    records = [r for r in _lines(work, folder, "metrics.jsonl") if "step" in r]
    if not records:
        raise FormatError(f"{folder} has no finished step")
    settings = {
        dotted(path): value for path, value in flatten(with_defaults(run if isinstance(run, dict) else {})).items()
    }
    evaluations = _lines(work, folder, "evaluations.jsonl")
    short = name[:NAME_CHARACTERS] if TASK_ID.fullmatch(name) and len(name) > NAME_CHARACTERS else name
    finished = (folder / "summary.json").is_file() or (work / "summary.json").is_file()
    return Run(short, folder, settings, records, evaluations[-1] if evaluations else None, finished)


def _json(path: Path) -> Any:
    try:
        return orjson.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read: {error}") from error


def _lines(work: Path, folder: Path, name: str) -> list[dict[str, Any]]:
    """Whole records of a journal in the work folder, else beside it. The last line may be cut by a kill."""
    path = next((p for p in (work / name, folder / name) if p.is_file()), None)
    out: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines() if path is not None else []:
        try:
            out.append(orjson.loads(line))
        except ValueError:
            break
    return out


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs, one value a run; those that change no output, or its rounding alone, are left out."""
    paths = sorted({path for run in runs for path in run.settings})
    out = {}
    for path in paths:
        values = [run.settings.get(path) for run in runs]
        if path.removeprefix("guards.") in WATCHING and path.startswith("guards."):
            continue
        if path.split(".")[0] in OPERATIONAL | ROUNDING or path.startswith("branch.") or path == "branch":
            continue
        if any(value != values[0] for value in values):
            out[path] = values
    return out


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """The table as data: {"runs": [names], "settings": {path: values}, "rows": {label: values}}, a value for each run."""
    rows: dict[str, list[Any]] = {}
    if any(run.began for run in runs):
        rows["from"] = [run.began for run in runs]
    rows["finished"] = [run.finished for run in runs]
    for label in ("step", "tokens"):
        rows[label] = [run.records[-1][label] for run in runs]
    rows["loss"] = [losses(run.records)["final_loss"] for run in runs]
    phases = [run.phase_losses() for run in runs]
    for name in dict.fromkeys(name for found in phases for name in found):
        rows[f"loss.{name}"] = [found.get(name) for found in phases]
    measured = [_measures(run.evaluation) for run in runs]
    for label in dict.fromkeys(label for found in measured for label in found):
        rows[label] = [found.get(label) for found in measured]
    return {
        "runs": [run.name for run in runs],
        "folders": [str(run.folder) for run in runs],
        "final_steps": FINAL_STEPS,
        "settings": differing(runs),
        "rows": rows,
    }


def _measures(evaluation: Mapping[str, Any] | None) -> dict[str, float]:
    if evaluation is None:
        return {}
    out = {"evaluation.step": evaluation["step"]}
    for source, found in (evaluation.get("heldout") or {}).items():
        out[f"heldout.{source}.bits_per_byte"] = found["bits_per_byte"]
    for task, found in (evaluation.get("tasks") or {}).items():
        for key in ("accuracy_per_char", "accuracy", "gold_logprob_per_char"):
            if key in found:
                out[f"task.{task}.{key}"] = found[key]
                break
    return out


def render(table: Mapping[str, Any]) -> str:
    """Settings and figures as rows, runs as columns; * marks the best of a row of losses or scores."""
    lines: list[list[str]] = [["", *table["runs"]]]
    lines += [[path, *map(_text, values)] for path, values in table["settings"].items()]
    if table["settings"]:
        lines.append([])
    for label, values in table["rows"].items():
        best = _best(label, values)
        lines.append([label, *(_text(v) + ("*" if best is not None and v == best else "") for v in values)])
    widths = [max((len(line[i]) for line in lines if line), default=0) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=False))
        ).rstrip()
        for line in lines
    )


def _best(label: str, values: Sequence[Any]) -> float | None:
    numbers = [v for v in values if isinstance(v, float)]
    if len(numbers) < 2 or min(numbers) == max(numbers):
        return None
    if label.startswith("task."):
        return max(numbers)
    return min(numbers) if any(word in label for word in LOWER_IS_BETTER) else None


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}" if 0.01 <= abs(value) < 1e4 else f"{value:.4g}"
    return str(value)
