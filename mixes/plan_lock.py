"""A plan as the lock that the trainer reads, before anything is packed: an outline where tokens are unknown."""

from __future__ import annotations

from pathlib import Path

import orjson

from gristmill.core.errors import UsageError
from gristmill.core.mixlock import LockedPhase, LockedSource, LockedUse, MixLock
from gristmill.mixes.plan import Plan
from gristmill.mixes.schema import Mixture


def lock_of(plan: Plan, mixture: Mixture) -> MixLock:
    """Rows, shares and epochs of every phase. What packing finds out (cursors, chains, padding) is left out.

    Raises UsageError for a phase whose size is unknown.
    """
    if plan.unsized:
        name, missing = next(iter(plan.unsized.items()))
        raise UsageError(
            f"stage `{name}` is sized in epochs of {', '.join(missing[:5])}, whose tokens are unknown",
            hint="list their available tokens, or give the stage `tokens` and shares",
        )
    stages = {phase.name: phase for phase in mixture.stages}
    phases = []
    for phase in plan.phases:
        phases.append(
            LockedPhase(
                name=phase.name,
                seq_len=phase.seq_len,
                rows=phase.rows,
                batch_rows=phase.batch_rows,
                until_rows=phase.until_rows,
                lr=stages[phase.name].lr.model_dump(mode="json", exclude_none=True),
                loss_weights=loss_weights(mixture, [use.source for use in phase.uses]),
                shares={u.source: {"target": u.share, "realised": u.rows / phase.rows} for u in phase.uses},
                sources={u.source: LockedUse(rows=u.rows, tokens=u.tokens, epochs=u.epochs) for u in phase.uses},
            )
        )
    sources = [
        LockedSource(name=s.name, documents=s.documents, tokens=s.tokens, max_epochs=s.max_epochs)
        for s in plan.supplies
    ]
    return MixLock(
        seed=plan.seed, vocab_size=plan.vocab_size, sources=sources, phases=phases, warnings=list(plan.warnings)
    )


def loss_weights(mixture: Mixture, sources: list[str]) -> dict[str, float]:
    """{drawable source: weight} of those whose losses do not count once."""
    found = {name: mixture.sources[mixture.parent(name)].loss_weight for name in sources}
    return {name: weight for name, weight in found.items() if weight != 1.0}


def write_lock(path: Path, lock: MixLock) -> None:
    """Raises UsageError when it cannot be written."""
    data = lock.model_dump(mode="json", exclude_none=True)
    try:
        path.write_bytes(orjson.dumps(data, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
