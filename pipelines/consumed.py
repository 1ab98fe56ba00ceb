"""E120: fields of a mixture whose stages a training run of the root has consumed, old -> new, at their lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from gristmill.core.errors import ConfigError, Problem, UsageError
from gristmill.core.settings import Document, Loc, dotted, flatten

if TYPE_CHECKING:
    from gristmill.mixes.schema import Mixture

MAX_STATE = 64 << 20


def check_consumed(root: Path, mixture: Mixture, document: Document | None = None) -> None:
    """Compare the mixture with what the root's furthest training run has trained on, stage by stage.

    Raises UsageError (with `document`, a ConfigError that has the places) for every field of those stages that would make
    other rows. Stages behind may change freely: the run goes on into them.
    """
    found = _furthest(root)
    if found is None:
        return
    run, step, stages = found
    faults = [(loc, f"{text} (run {run}, step {step:,})") for loc, text in edits(mixture, stages)]
    hint = "take the edit back, put it into a stage behind, or plan a new run with --new-run"
    if faults and document is not None:
        problems: list[Problem] = [document.problem(loc, text, hint) for loc, text in faults]
        raise ConfigError(problems)
    if faults:
        raise UsageError("\n".join(f"{dotted(loc)}: {text}" for loc, text in faults), hint=hint)


def edits(mixture: Mixture, stages: list[tuple[str, dict[str, Any]]]) -> list[tuple[Loc, str]]:
    """(place, E120 …) of each difference between trained stages, as (name, spec of mixes.chain), and the mixture's."""
    from gristmill.mixes.chain import spec_of

    out: dict[Loc, str] = {}
    for i, (name, spec) in enumerate(stages):
        if i >= len(mixture.stages) or mixture.stages[i].name != name:
            now = f"is `{mixture.stages[i].name}` now" if i < len(mixture.stages) else "is gone"
            loc: Loc = ("stages", i, "name") if i < len(mixture.stages) else ("stages",)
            out[loc] = f"E120 stage {i + 1} is trained on as `{name}`, and {now}"
            break
        new = spec_of(mixture, mixture.stages[i])
        old_flat = flatten(
            {key: spec.get(key) for key in {**new, **{k: v for k, v in spec.items() if k == "on_short"}}}
        )
        new_flat = flatten(new)
        for path in sorted({*old_flat, *new_flat}, key=dotted):
            old, now_value = old_flat.get(path), new_flat.get(path)
            if old != now_value:
                out.setdefault(
                    _place(path, i), f"E120 stage `{name}` is trained on: {dotted(path)} {old} -> {now_value}"
                )
    return list(out.items())


def _place(path: Loc, number: int) -> Loc:
    """Where a field of a stage's spec stands in the YAML."""
    if path[0] == "stage":
        return ("stages", number, *path[1:])
    if path[0] == "pack":
        return ("stages", number, "pack")
    if path[0] == "max_docs_per_row":
        return ("defaults", "max_docs_per_row")
    if path[0] == "on_short":
        return ("sources", *path[1:], "max_epochs") if len(path) > 1 else ("defaults", "on_short")
    return path


def _furthest(root: Path) -> tuple[str, int, list[tuple[str, dict[str, Any]]]] | None:
    """The run with most samples trained: its task's id, its step, and the stages it has begun."""
    best: tuple[int, str, int, list[tuple[str, dict[str, Any]]]] | None = None
    for marker in sorted(root.glob("stages/train/*/work/checkpoints/*/state.json")):
        if not marker.parent.name.isdecimal():
            continue
        try:
            if marker.stat().st_size > MAX_STATE:
                continue
            state = orjson.loads(marker.read_bytes())
            stages = [(str(name), dict(spec)) for name, sha256, spec, _ in state["consumed"] if sha256]
            one = (int(state["samples"]), marker.parents[3].name, int(state["step"]), stages)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # damaged, or of a version without chains: the trainer judges it
        if stages and (best is None or one[0] > best[0]):
            best = one
    return None if best is None else best[1:]
