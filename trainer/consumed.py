"""Whether a dataset still has the stages that a checkpoint has trained on; stages behind them may have changed. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gristmill.core.settings import dotted, flatten
from gristmill.trainer.order import DataOrder

MANY = 8  # differences that a message names


def consumed(order: DataOrder, samples: int) -> list[list[Any]]:
    """[name, chain, spec, first sample] of every stage of which rows are trained after `samples`, for a checkpoint's state."""
    begun = [s for s in order.phases if s.first_sample < samples]
    return [[s.phase.name, s.phase.chain, s.phase.spec, s.first_sample] for s in begun]


def chained(state: Mapping[str, Any], order: DataOrder) -> bool | None:
    """Whether the trained stages are rows of this order too, by their hash chain; None where either has no chain.

    They also begin at the same samples, and the last of them reaches as far as the checkpoint: where a branch ends its
    parent's stage early, a checkpoint from behind that place is none of its own.
    """
    known: Sequence[Sequence[Any]] = state.get("consumed") or []
    ours = order.phases[: len(known)]
    if not known or not all(entry[1] for entry in known) or any(not span.phase.chain for span in ours):
        return None
    if [[s.phase.name, s.phase.chain, s.first_sample] for s in ours] != [[e[0], e[1], e[3]] for e in known]:
        return False
    return int(state["samples"]) <= ours[-1].first_sample + ours[-1].samples


def differences(state: Mapping[str, Any], order: DataOrder) -> str:
    """E120: the first trained stage that is not this order's, and its fields old -> new."""
    ours = order.phases
    for i, (name, sha256, spec, first) in enumerate(state["consumed"]):
        if i >= len(ours):
            return f"E120 stage `{name}` is trained on, and gone from the mixture"
        if ours[i].phase.name != name:
            return f"E120 stage {i + 1} is trained on as `{name}`, and is `{ours[i].phase.name}` now"
        if ours[i].phase.chain != sha256:
            what = _changes(flatten(spec), flatten(ours[i].phase.spec))
            return f"E120 stage `{name}` is edited, and it is trained on: {what or 'a stage before it'}"
        if ours[i].first_sample != first:
            return f"E120 stage `{name}` is trained on from sample {first} on, and begins at {ours[i].first_sample} now"
    last = ours[len(state["consumed"]) - 1]
    end = last.first_sample + last.samples
    return f"E120 stage `{last.phase.name}` is trained on up to sample {state['samples']}, and ends at {end} now"


def _changes(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> str:
    found = [
        f"{dotted(path)} {old.get(path)} -> {new.get(path)}"
        for path in sorted({*old, *new}, key=dotted)
        if old.get(path) != new.get(path)
    ]
    more = f"; and {len(found) - MANY} more" if len(found) > MANY else ""
    return "; ".join(found[:MANY]) + more
