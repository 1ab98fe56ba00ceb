"""What a run says of its dataset's curriculum stages over the mixture: learning rate, RoPE, weights of sources. No torch.

Such settings never touch shard bytes: the dataset, its digest and its rows stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import Field

from gristmill.core.errors import UsageError
from gristmill.core.settings import Settings
from gristmill.core.tokshards import PackedManifest
from gristmill.trainer.architecture import Model, RopeScaling


class StageSettings(Settings):
    """One stage (phase) of the mixture, as this run trains it. What is not given stays as the mixture and `model` say."""

    lr: dict[str, Any] | None = None
    """Replaces the stage's `lr` block of the mixture: {phase: stable | decay | full, shape, to, warmup_steps}."""
    rope_theta: float | None = Field(None, gt=1)
    """Base of the rotary frequencies from this stage on (ABF, arXiv 2309.16039), until a later stage sets another."""
    rope_scaling: RopeScaling | None = None
    """Scaling of the rotary frequencies from this stage on."""
    loss_weights: dict[str, float] = {}
    """{source: weight of its tokens' losses}; 1 where a source is not named. The divisor stays the number of tokens."""


def staged_manifest(manifest: PackedManifest, stages: Mapping[str, StageSettings]) -> PackedManifest:
    """The manifest as this run trains it: the run's `lr` blocks, and of the stage that an ablation branches from, the rows up
    to there. Raises UsageError on a stage or source it does not have.
    """
    names = [phase.name for phase in manifest.phases]
    if unknown := [name for name in stages if name not in names]:
        raise UsageError(
            f"stages.{unknown[0]}: the dataset has no such stage", hint=f"its stages: {', '.join(names) or 'none'}"
        )
    phases = []
    for phase in manifest.phases:
        own = stages.get(phase.name, StageSettings())
        if odd := [source for source in own.loss_weights if source not in phase.shares]:
            raise UsageError(
                f"stages.{phase.name}.loss_weights: no source {odd[0]!r} in this stage",
                hint=f"its sources: {', '.join(sorted(phase.shares))}",
            )
        if bad := [f"{source} {weight}" for source, weight in own.loss_weights.items() if not 0 <= weight < 1e6]:
            raise UsageError(f"stages.{phase.name}.loss_weights: {bad[0]} is no weight", hint="give 0 or more")
        rows = phase.rows if phase.until_rows is None else phase.until_rows
        phases.append(replace(phase, rows=rows, lr=phase.lr if own.lr is None else own.lr))
    return replace(manifest, phases=phases)


def rope_of(model: Model, names: list[str], stages: Mapping[str, StageSettings]) -> dict[str, Model]:
    """{stage: the model with the rotary settings in force there}: each keeps the last one's until it sets its own."""
    out = {}
    for name in names:
        own = stages.get(name, StageSettings())
        change = {k: getattr(own, k) for k in ("rope_theta", "rope_scaling") if getattr(own, k) is not None}
        model = model.model_copy(update=change)
        out[name] = model
    return out
