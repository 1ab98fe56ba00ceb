"""Learning rate as a pure function of the step: warm-up, stable, decay over the phases of a mixture. No torch.

A phase's `lr` block: {"phase": "stable" | "decay" | "full", "shape"?, "to"?, "warmup_steps"?}.
  stable  the peak
  decay   from the peak down to `to` x peak; neighbouring decay phases share one decay, so it always starts and
          ends on a phase edge (SmolLM3 starts its decay exactly where stage 3's data starts)
  full    its own warm-up, then a decay over the rest of the phase
Warm-up opens the run, or any phase that sets `warmup_steps`. (Warmup-stable-decay: Hu et al., arXiv 2404.06395;
1-sqrt: Haegele et al., arXiv 2405.18392.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gristmill.core.errors import UsageError
from gristmill.core.tokshards import PackedManifest
from gristmill.trainer.order import Span, spans
from gristmill.trainer.schema import Schedule

KINDS = ("stable", "decay", "full")
KEYS = ("phase", "shape", "to", "warmup_steps")
SHAPES = {
    "linear": lambda x: 1.0 - x,
    "cosine": lambda x: 0.5 * (1.0 + math.cos(math.pi * x)),
    "1-sqrt": lambda x: 1.0 - math.sqrt(x),
}


@dataclass(frozen=True)
class Segment:
    """Steps first..last under one rule: `warmup` rising steps, then the peak (shape None) or a decay to `to` x peak."""

    first: int
    last: int
    warmup: int
    shape: str | None
    to: float

    def factor(self, step: int) -> float:
        i = step - self.first  # from 0
        if i < self.warmup:
            return (i + 1) / self.warmup
        if self.shape is None:
            return 1.0
        # The first decay step still runs at the peak and the step after the last would run at `to`, so a decay to 0
        # wastes no step at a learning rate of 0.
        x = (i - self.warmup) / (self.last - self.first + 1 - self.warmup)
        return self.to + (1.0 - self.to) * float(SHAPES[self.shape](x))


class LearningRate:
    """lr(step) for steps 1..total. Raises UsageError when the phases' `lr` blocks make no schedule."""

    def __init__(self, peak: float, schedule: Schedule, manifest: PackedManifest) -> None:
        self.peak = peak
        self.segments = _segments(schedule, spans(manifest))

    def lr(self, step: int) -> float:
        for segment in self.segments:
            if segment.first <= step <= segment.last:
                return self.peak * segment.factor(step)
        raise UsageError(f"no step {step} in the schedule")


def _segments(schedule: Schedule, run: list[Span]) -> list[Segment]:
    out: list[Segment] = []
    previous: tuple[str, str | None, float] | None = None
    for span in run:
        block = _block(span)
        kind = block.get("phase", "stable")
        shape = None if kind == "stable" else block.get("shape", schedule.decay)
        to = float(block.get("to", schedule.final_ratio))
        _check(span, kind, shape, to, previous[0] if previous else None)
        warmup = block.get("warmup_steps")
        if warmup is None:
            warmup = _default_warmup(schedule, span) if previous is None else 0
        warmup = min(int(warmup), span.phase.batches)
        if kind == "decay" and previous and previous[0] == "decay" and not warmup:
            if "shape" in block and shape != previous[1]:
                raise UsageError(
                    f"phases of one decay have two shapes: {previous[1]} and {shape} (phase {span.phase.name!r})",
                    hint="give the shape once, in the first phase of the decay",
                )
            last = out[-1]
            to = to if "to" in block else last.to
            out[-1] = Segment(last.first, span.last_step, last.warmup, last.shape, to)
            previous = (kind, last.shape, to)
            continue
        out.append(Segment(span.first_step, span.last_step, warmup, shape, to))
        previous = (kind, shape, to)
    return out


def _block(span: Span) -> dict[str, Any]:
    block = {k: v for k, v in span.phase.lr.items() if v is not None}
    unknown = [k for k in block if k not in KEYS]
    if unknown:
        raise UsageError(
            f"phase {span.phase.name!r}: lr has the unknown setting `{unknown[0]}`", hint=f"known: {', '.join(KEYS)}"
        )
    return block


def _check(span: Span, kind: str, shape: str | None, to: float, previous: str | None) -> None:
    name = f"phase {span.phase.name!r}"
    if kind not in KINDS:
        raise UsageError(f"{name}: lr.phase is {kind!r}", hint=f"one of {', '.join(KINDS)}")
    if shape is not None and shape not in SHAPES:
        raise UsageError(f"{name}: lr.shape is {shape!r}", hint=f"one of {', '.join(SHAPES)}")
    if not 0 <= to <= 1:
        raise UsageError(f"{name}: lr.to is {to}", hint="a fraction of the peak between 0 and 1")
    if kind == "stable" and previous in ("decay", "full"):
        raise UsageError(f"{name} is stable after a decay", hint="put stable phases first, or make it `full`")


def _default_warmup(schedule: Schedule, first: Span) -> int:
    if schedule.warmup_tokens is not None:
        return math.ceil(schedule.warmup_tokens / (first.phase.batch_rows * first.phase.seq_len))
    return schedule.warmup_steps or 0
