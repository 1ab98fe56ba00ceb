"""For each stage: how many tasks are fresh, how many must run, and why: config field old → new, code, inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gristmill.core.manifest import all_receipts, find_receipt, read_manifest
from gristmill.core.settings import Loc, flatten
from gristmill.core.stage import Receipt, Task
from gristmill.pipelines.graph import Node


@dataclass
class StagePlan:
    """One row of the plan. `tasks` and `run` are None when they depend on what an earlier stage will write."""

    stage: str
    tasks: int | None
    fresh: int
    run: int | None
    why: list[str] = field(default_factory=list)
    bytes: int = 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class StageState:
    """A stage's tasks split into finished ones (with receipts) and the rest."""

    node: Node
    tasks: list[Task]
    done: list[Receipt]
    todo: list[Task]


def state_of(node: Node, root: Path, inputs: dict[str, list[Receipt]]) -> StageState:
    """Name a stage's tasks and find which are done."""
    tasks = node.stage.tasks({name: inputs[name] for name in node.upstream})
    done, todo = [], []
    for task in tasks:
        receipt = find_receipt(root, task)
        if receipt is None:
            todo.append(task)
        else:
            done.append(receipt)
    return StageState(node, tasks, done, todo)


def plan(
    nodes: Sequence[Node], root: Path, inputs: list[Receipt], given: Mapping[str, list[Receipt]] | None = None
) -> list[StagePlan]:
    """The plan of a run, from receipts alone: no data is read. `given` are receipts of stages that are not run."""
    known: dict[str, list[Receipt]] = {"input": inputs, **(given or {})}
    out = []
    for node in nodes:
        waiting = [up for up in node.upstream if up not in known]
        if waiting:
            previous = read_previous(root, node.name)
            out.append(
                StagePlan(node.name, None, len(previous), None, [f"depends on what {', '.join(waiting)} will write"])
            )
            continue
        state = state_of(node, root, known)
        total = sum(s.bytes for t in state.todo for shards in t.inputs.values() for s in shards)
        row = StagePlan(node.name, len(state.tasks), len(state.done), len(state.todo), bytes=total)
        if state.todo:
            row.why = reasons(node, root, state.todo)
        else:
            row.why = ["up to date"]
            known[node.name] = state.done
        out.append(row)
    return out


def read_previous(root: Path, stage: str) -> dict[str, Receipt]:
    """The receipts that a stage's tasks are compared with, by key: the last manifest's, else any that exist."""
    from gristmill.core.errors import FormatError

    try:
        manifest = read_manifest(root, stage)
    except FormatError:
        manifest = None
    if manifest is not None:
        return {r.key: r for r in manifest.receipts}
    return {r.key: r for r in sorted(all_receipts(root, stage), key=lambda r: r.finished)}


def reasons(node: Node, root: Path, todo: Sequence[Task]) -> list[str]:
    """Why tasks must run, most common first; identical reasons are said once, with the number of tasks they hold for."""
    previous = read_previous(root, node.name)
    counts: Counter[str] = Counter()
    for task in todo:
        old = previous.get(task.key)
        for reason in _compare(node, task, old):
            counts[reason] += 1
    return [text if n == len(todo) else f"{text} ({n} of {len(todo)})" for text, n in counts.most_common(12)]


def _compare(node: Node, task: Task, old: Receipt | None) -> list[str]:
    if old is None:
        return ["never run here"]
    found = []
    if old.task == task.id:
        return ["an output is missing or has another size"]
    if old.version != task.version:
        found.append(f"code {node.name} v{old.version} → v{task.version}")
    found += config_changes(node, old.config, dict(task.config))
    for name in sorted({*old.uses, *task.uses}):
        before, after = old.uses.get(name), task.uses.get(name)
        if before != after:
            found.append(f"{name} {_short(before)} → {_short(after)}")
    current = {name: [[s.name, s.sha256] for s in shards] for name, shards in task.inputs.items()}
    for name in sorted({*old.inputs, *current}):
        if old.inputs.get(name) != current.get(name):
            found.append("input file changed" if name in ("input", "imports") else f"output of {name} changed")
    return found or ["changed"]


def config_changes(node: Node, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`config curate.rules.gopher@datatrove.min_words 50 → 40 (web.yaml:31)` for every leaf that differs."""
    before, after = _leaves(flatten(old), flatten(new))
    out = []
    for path in sorted({*before, *after}, key=str):
        if before.get(path, "absent") == after.get(path, "absent"):
            continue
        head, rest = str(path[0]) if path else "", list(path[1:])
        origin = node.origins.get(head)
        label = origin.label(rest) if origin else ".".join(map(str, path))
        place = f" ({origin.mark(rest)})" if origin else ""
        out.append(f"config {label} {_show(before, path)} → {_show(after, path)}{place}")
    return out


def _leaves(old: dict[Loc, Any], new: dict[Loc, Any]) -> tuple[dict[Loc, Any], dict[Loc, Any]]:
    """Lists of blocks, as a mixture's stages, opened where both have as many: by position, `stages[1].mix.web`."""
    for path in [p for p in old if p in new and _blocks(old[p]) and _blocks(new[p]) and len(old[p]) == len(new[p])]:
        before, after = old.pop(path), new.pop(path)
        for i, (one, other) in enumerate(zip(before, after, strict=True)):
            parts = _leaves(flatten(one, (*path, i)), flatten(other, (*path, i)))
            old |= parts[0]
            new |= parts[1]
    return old, new


def _blocks(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _show(values: dict[Any, Any], path: Any) -> str:
    if path not in values:
        return "unset"
    value = values[path]
    if value is None:
        return "null"
    text = str(value)
    if _blocks(value):
        text = f"[{', '.join(str(item.get('name', '…')) for item in value)}]"
    return text if len(text) <= 60 else text[:57] + "..."


def _short(value: str | None) -> str:
    if value is None:
        return "unset"
    return value if len(value) <= 24 else value[:12]


def render(plans: Sequence[StagePlan]) -> str:
    """The plan as a table for people."""
    rows = [("stage", "tasks", "fresh", "run", "why")]
    for p in plans:
        count = "?" if p.tasks is None else f"{p.tasks:,}"
        run = "?" if p.run is None else f"{p.run:,}"
        for i, why in enumerate(p.why or [""]):
            rows.append((p.stage, count, f"{p.fresh:,}", run, why) if i == 0 else ("", "", "", "", why))
    widths = [max(len(r[i]) for r in rows) for i in range(4)]
    lines = []
    for r in rows:
        cells = [r[0].ljust(widths[0]), *(r[i].rjust(widths[i]) for i in (1, 2, 3)), r[4]]
        lines.append("  ".join(cells).rstrip())
    todo = sum(p.run or 0 for p in plans)
    unknown = [p.stage for p in plans if p.run is None]
    size = sum(p.bytes for p in plans)
    if not todo and not unknown:
        lines.append("nothing to do: every stage is up to date")
    else:
        tail = f"; then {', '.join(unknown)} where their inputs change" if unknown else ""
        lines.append(f"{todo:,} tasks to run, {size / 1e6:,.1f} MB to read{tail}")
    return "\n".join(lines)
