"""What changes from step to step, as pure functions of the step and the manifest: learning rate, AdEMAMix. No torch.

A phase's `lr` block: {"phase": "stable" | "decay" | "full", "shape"?, "to"?, "warmup_steps"?}.
  stable  the peak
  decay   from the peak down to `to` x peak; neighbouring decay phases share one decay, so it always starts and
          ends on a phase edge (SmolLM3 starts its decay exactly where stage 3's data starts)
  full    its own warm-up, then a decay over the rest of the phase
Warm-up opens the run, or any phase that sets `warmup_steps` or that the run rewarms. All shapes are functions of the
tokens trained, so phases with other batches or sequence lengths bend nothing. (Warmup-stable-decay: Hu et al.,
arXiv 2404.06395; 1-sqrt: Haegele et al., arXiv 2405.18392.)

A batch-size warm-up (data.batch_ramp) changes the tokens of a step, so warm-ups and decays go on over it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from gristmill.core.errors import UsageError
from gristmill.core.tokshards import PackedManifest
from gristmill.trainer.optim_schema import AdEMAMix, Rewarm, Schedule
from gristmill.trainer.order import DataOrder, order_of
from gristmill.trainer.ramp import PhaseSpan

KINDS = ("stable", "decay", "full")
KEYS = ("phase", "shape", "to", "warmup_steps")
SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: 1.0 - x,
    "cosine": lambda x: 0.5 * (1.0 + math.cos(math.pi * x)),
    "1-sqrt": lambda x: 1.0 - math.sqrt(x),
}


class Clock:
    """Tokens and steps of a run: positions (rows x seq_len), padding included. Steps count from 1."""

    def __init__(self, data: PackedManifest | DataOrder) -> None:
        self.order = order_of(data)
        self.phases = self.order.phases
        self.steps = self.order.steps
        self.tokens = self.order.tokens

    def after(self, step: int) -> int:
        """Tokens trained once `step` is done; 0 before the first."""
        return self.order.tokens_after(step)

    def reaches(self, tokens: int) -> int:
        """The first step after which at least so many tokens are trained; the last step when none is."""
        for span in self.order.spans:
            before = self.after(span.first_step - 1)
            if tokens <= before + span.steps * span.tokens_per_step:
                return span.first_step - 1 + max(0, math.ceil((tokens - before) / span.tokens_per_step))
        return self.steps


@dataclass(frozen=True)
class Segment:
    """Steps first..last under one rule: a rise up to and with `warm` (first - 1: none), then the peak or a decay to `to`."""

    clock: Clock
    first: int
    last: int
    warm: int
    shape: str | None = None  # None: the peak
    to: float = 0.0
    start: float = 0.0  # what the rise begins above

    def factor(self, step: int) -> float:
        if step <= self.warm:
            return self.start + (1.0 - self.start) * self._part(step, self.first - 1, self.warm)
        if self.shape is None:
            return 1.0
        # The first decay step still runs at the peak and the step after the last would run at `to`, so a decay to 0
        # wastes no step at a learning rate of 0.
        x = self._part(step - 1, max(self.warm, self.first - 1), self.last)
        return self.to + (1.0 - self.to) * SHAPES[self.shape](x)

    def _part(self, step: int, first: int, last: int) -> float:
        """Share of the tokens of steps first + 1 .. last that are trained after `step`."""
        begin = self.clock.after(first)
        return (self.clock.after(step) - begin) / (self.clock.after(last) - begin)


class LearningRate:
    """lr(step) for steps 1..total. Raises UsageError when the phases' `lr` blocks or the run's settings make no schedule.

    `notes` says, for people, where the schedule is not what a reader of the settings would expect.
    """

    def __init__(self, peak: float, schedule: Schedule, data: PackedManifest | DataOrder) -> None:
        self.peak = peak
        self.clock = Clock(data)
        self.notes: list[str] = []
        rewarm = _rewarmed(schedule, self.clock)
        by_blocks = schedule.kind == "wsd" and schedule.decay_tokens is None
        self._rises: list[Segment] = [] if by_blocks else list(rewarm.values())
        self._drops = _drops(schedule, self.clock)
        if by_blocks:
            segments = _segments(schedule, self.clock, rewarm)
        else:
            segments = _whole_run(schedule, self.clock)
            if unused := [s.phase.name for s in self.clock.phases if _block(s).get("phase", "stable") != "stable"]:
                self.notes.append(f"the run's {schedule.kind} schedule replaces the lr of phase {', '.join(unused)}")
        self.segments = [self._capped(segment) for segment in segments]

    def _capped(self, segment: Segment) -> Segment:
        if segment.warm <= segment.last:
            return segment
        self.notes.append(f"a warm-up of {segment.warm - segment.first + 1} steps is cut at step {segment.last}")
        return replace(segment, warm=segment.last)

    def lr(self, step: int) -> float:
        """Raises UsageError outside the run."""
        for segment in self.segments:
            if segment.first <= step <= segment.last:
                factor = segment.factor(step)
                for first, ratio in self._drops:
                    factor = ratio if step >= first and step > segment.warm else factor
                for rise in self._rises:
                    factor *= rise.factor(step) if rise.first <= step <= rise.last else 1.0
                return self.peak * factor
        raise UsageError(f"no step {step} in the schedule")

    def curve(self, points: int = 60) -> list[tuple[int, int, float]]:
        """(step, tokens trained before it, learning rate) at most `points` times, evenly over the steps, both ends too."""
        if not self.clock.steps:
            return []
        last = max(1, points - 1)
        steps = sorted({1 + (self.clock.steps - 1) * i // last for i in range(points)})
        return [(step, self.clock.after(step - 1), self.lr(step)) for step in steps]


def _rewarmed(schedule: Schedule, clock: Clock) -> dict[str, Segment]:
    """A rise for each phase the run rewarms."""
    found = {span.phase.name: span for span in clock.phases}
    out = {}
    for item in schedule.rewarm:
        span = found.get(item.phase)
        if span is None:
            raise UsageError(
                f"schedule.rewarm names phase {item.phase!r}, which has no step in this dataset",
                hint=f"phases: {', '.join(found)}",
            )
        steps = _rise_steps(item, span, clock)
        if steps > span.steps:
            raise UsageError(
                f"schedule.rewarm: phase {item.phase!r} rises over {steps} steps, it has {span.steps}",
                hint="shorten the rise",
            )
        first = span.first_step
        out[item.phase] = Segment(clock, first, span.last_step, first + steps - 1, start=item.start)
    return out


def _rise_steps(item: Rewarm, span: PhaseSpan, clock: Clock) -> int:
    if item.steps is not None:
        return item.steps
    end = clock.after(span.first_step - 1) + (item.tokens or 0)
    over = end > clock.after(span.last_step)  # one more than there are: the clock may end with the phase
    return span.steps + 1 if over else clock.reaches(end) - span.first_step + 1


def _whole_run(schedule: Schedule, clock: Clock) -> list[Segment]:
    """Cosine, multi-step (its drops come on top) and a decay over the last tokens."""
    if not clock.steps:
        return []
    warm = _opening(schedule, clock)
    if schedule.kind == "cosine":
        return [Segment(clock, 1, clock.steps, warm, "cosine", schedule.final_ratio)]
    if schedule.kind == "multi-step":
        return [Segment(clock, 1, clock.steps, warm)]
    first = _decay_start(schedule.decay_tokens or 0, clock)
    decay = Segment(clock, first, clock.steps, first - 1, schedule.decay, schedule.final_ratio)
    if first == 1:
        return [replace(decay, warm=warm)]
    return [Segment(clock, 1, first - 1, warm), decay]


def _decay_start(tokens: int, clock: Clock) -> int:
    """First step of a decay over the last tokens. A new mixture of sources should come with it, not before or after."""
    if any(_block(span).get("phase", "stable") != "stable" for span in clock.phases):
        raise UsageError(
            "schedule.decay_tokens is given, and the mixture's phases say where the learning rate decays",
            hint="keep one of them: remove decay_tokens, or the `lr` of the phases",
        )
    if tokens > clock.tokens:
        raise UsageError(
            f"schedule.decay_tokens is {tokens:,}, the whole run has {clock.tokens:,}", hint="shorten the decay"
        )
    # after(first - 1) <= total - tokens: rounded up to whole steps
    left = clock.tokens - tokens
    first = clock.reaches(left) + (1 if clock.after(clock.reaches(left)) == left else 0)
    edges = [span.first_step for span in clock.phases]
    if len(edges) > 1 and first not in edges:
        fits = ", ".join(f"{clock.tokens - clock.after(edge - 1):,}" for edge in edges)
        raise UsageError(
            f"schedule.decay_tokens is {tokens:,}: the decay starts at step {first}, inside a phase",
            hint=f"a decay starts on a phase edge; these do: {fits}",
        )
    return first


def _drops(schedule: Schedule, clock: Clock) -> list[tuple[int, float]]:
    """(first step, ratio) of each milestone: the first step that begins with at least its tokens trained."""
    out: list[tuple[int, float]] = []
    for item in schedule.milestones:
        tokens = item.tokens if item.tokens is not None else round((item.fraction or 0.0) * clock.tokens)
        if tokens >= clock.tokens:
            raise UsageError(
                f"schedule.milestones: {tokens:,} tokens are not before the end of the run at {clock.tokens:,}",
                hint="give an earlier place, or a fraction",
            )
        first = clock.reaches(tokens) + 1
        if out and first <= out[-1][0]:
            raise UsageError(
                f"schedule.milestones: two begin at step {out[-1][0]} or in the wrong order", hint="move them apart"
            )
        out.append((first, item.ratio))
    return out


def _opening(schedule: Schedule, clock: Clock) -> int:
    """Last step of the run's warm-up, 0 when there is none. It may run over several phases."""
    if schedule.warmup_tokens is not None:
        return clock.reaches(schedule.warmup_tokens)
    return schedule.warmup_steps or 0


def _segments(schedule: Schedule, clock: Clock, rewarm: dict[str, Segment]) -> list[Segment]:
    """The phases' own blocks. Neighbours of one rule become one segment."""
    out: list[Segment] = []
    previous: tuple[str, str | None, float] | None = None
    for span in clock.phases:
        block = _block(span)
        kind = block.get("phase", "stable")
        shape = None if kind == "stable" else block.get("shape", schedule.decay)
        to = float(block.get("to", schedule.final_ratio))
        rise = rewarm.get(span.phase.name)
        warmup = block.get("warmup_steps")
        if rise is not None:
            warm = rise.warm
        elif warmup is not None:
            warm = span.first_step - 1 + int(warmup)
        else:
            warm = span.first_step - 1 if previous else _opening(schedule, clock)
        rises = warm >= span.first_step
        _check(span, kind, shape, to, previous[0] if previous and not rises else None)
        if previous and previous[0] == kind != "full" and not rises:
            if "shape" in block and shape != previous[1] and kind == "decay":
                raise UsageError(
                    f"phases of one decay have two shapes: {previous[1]} and {shape} (phase {span.phase.name!r})",
                    hint="give the shape once, in the first phase of the decay",
                )
            last = out[-1]
            to = to if "to" in block else last.to
            out[-1] = replace(last, last=span.last_step, to=to)
            previous = (kind, last.shape, to)
            continue
        start = rise.start if rise is not None else 0.0
        out.append(Segment(clock, span.first_step, span.last_step, warm, shape, to, start))
        previous = (kind, shape, to)
    return out


def _block(span: PhaseSpan) -> dict[str, Any]:
    block = {k: v for k, v in span.phase.lr.items() if v is not None}
    unknown = [k for k in block if k not in KEYS]
    if unknown:
        raise UsageError(
            f"phase {span.phase.name!r}: lr has the unknown setting `{unknown[0]}`", hint=f"known: {', '.join(KEYS)}"
        )
    return block


def _check(span: PhaseSpan, kind: str, shape: str | None, to: float, previous: str | None) -> None:
    """`previous` is the rule of the phase before, None when this one rises anew."""
    name = f"phase {span.phase.name!r}"
    if kind not in KINDS:
        raise UsageError(f"{name}: lr.phase is {kind!r}", hint=f"one of {', '.join(KINDS)}")
    if shape is not None and shape not in SHAPES:
        raise UsageError(f"{name}: lr.shape is {shape!r}", hint=f"one of {', '.join(SHAPES)}")
    if not 0 <= to <= 1:
        raise UsageError(f"{name}: lr.to is {to}", hint="a fraction of the peak between 0 and 1")
    if kind == "stable" and previous in ("decay", "full"):
        raise UsageError(
            f"{name} is stable after a decay", hint="put stable phases first, make it `full`, or rewarm it"
        )


@dataclass(frozen=True)
class Mixing:
    """AdEMAMix's weight of the slow average and its decay at one step."""

    alpha: float
    beta3: float


class SlowAverage:
    """The warm-ups of AdEMAMix over the run (arXiv 2409.03137, section 3): at(step) for steps from 1."""

    def __init__(self, settings: AdEMAMix, beta1: float, data: PackedManifest | DataOrder) -> None:
        self.settings, self.beta1 = settings, beta1
        self.clock = Clock(data)
        if settings.warmup_steps is not None:
            # its tokens when the run is shorter than the warm-up: the last step stands part of the way
            self._length: float = self.clock.tokens * settings.warmup_steps / max(1, self.clock.steps)
            if settings.warmup_steps <= self.clock.steps:
                self._length = self.clock.after(settings.warmup_steps)
        else:
            self._length = settings.warmup_tokens or self.clock.tokens

    def at(self, step: int) -> Mixing:
        x = self.clock.after(step) / self._length
        return Mixing(alpha_at(x, self.settings.alpha), beta3_at(x, self.settings.beta3, self.beta1))


def alpha_at(x: float, alpha: float) -> float:
    """alpha at a fraction x of its warm-up: linear from 0."""
    return min(1.0, x) * alpha


def beta3_at(x: float, beta3: float, beta1: float) -> float:
    """beta3 at a fraction x of its warm-up: the half-life ln 0.5 / ln beta rises linearly from beta1's to beta3's.

    That is exp(ln b1 ln b3 / ((1 - x) ln b3 + x ln b1)), at most b3.
    """
    if x >= 1 or beta1 == 0:
        return beta3
    slow, fast = math.log(beta3), math.log(beta1)
    return min(math.exp(fast * slow / ((1 - x) * slow + x * fast)), beta3)


def sqrt_rule(lr: float, batch: int, new_batch: int) -> float:
    """The learning rate for another batch size by the square-root rule: lr sqrt(new_batch / batch), in any one unit.

    For adaptive optimizers (Malladi et al., arXiv 2205.10330, section 4): the noise of a gradient, not its mean, sets
    the size of their step. The rule of theirs also moves the betas: 1 - beta grows with the batch.
    """
    return lr * math.sqrt(new_batch / batch)


def batch_hints(lr: float, data: PackedManifest | DataOrder) -> dict[str, float]:
    """{phase: the square-root rule's peak} for phases whose tokens per whole batch differ from the first phase's."""
    sizes = {s.phase.name: s.phase.batch_rows * s.phase.seq_len for s in order_of(data).phases}
    first = next(iter(sizes.values()), 0)
    return {name: sqrt_rule(lr, first, size) for name, size in sizes.items() if size != first}
