"""How steps take the slots of the phases: batch sizes, constant or on a ramp, in samples or tokens consumed. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from gristmill.core.errors import UsageError
from gristmill.core.tokshards import PackedManifest, PackedPhase
from gristmill.trainer.data_schema import RampStep


@dataclass(frozen=True)
class Span:
    """Consecutive steps of one phase with `rows` rows each; a batch ramp makes several of a phase."""

    phase: PackedPhase
    first_step: int
    first_sample: int
    first_slot: int  # of the phase
    steps: int
    rows: int

    @property
    def last_step(self) -> int:
        return self.first_step + self.steps - 1

    @property
    def samples(self) -> int:
        return self.steps * self.rows

    @property
    def tokens_per_step(self) -> int:
        """Positions of one step, padding included."""
        return self.rows * self.phase.seq_len


@dataclass(frozen=True)
class PhaseSpan:
    """The steps and samples of one phase."""

    phase: PackedPhase
    first_step: int
    last_step: int
    first_sample: int
    samples: int

    @property
    def steps(self) -> int:
        return self.last_step - self.first_step + 1


def spans_of(manifest: PackedManifest, rules: Sequence[tuple[int, tuple[RampStep, ...]]]) -> Iterator[Span]:
    """Spans of every phase that has a step. The rule in force is the last one that begins at or before a step."""
    step, sample, tokens = 1, 0, 0
    for phase in manifest.phases:
        slot = 0
        pending: Span | None = None
        while True:
            i = max(k for k, (begin, _) in enumerate(rules) if begin <= step)
            rows, room = _stair(phase, rules[i][1], sample, tokens)
            steps = min((phase.rows - slot) // rows, room)
            if i + 1 < len(rules):
                steps = min(steps, rules[i + 1][0] - step)
            if not steps:
                break
            if pending and pending.rows == rows:
                pending = replace(pending, steps=pending.steps + steps)
            else:
                if pending:
                    yield pending
                pending = Span(phase, step, sample, slot, steps, rows)
            step, slot, sample = step + steps, slot + steps * rows, sample + steps * rows
            tokens += steps * rows * phase.seq_len
        if pending:
            yield pending


def _stair(phase: PackedPhase, ramp: Sequence[RampStep], sample: int, tokens: int) -> tuple[int, int]:
    """(rows a step, steps for which they hold) where so many samples and tokens are consumed."""
    for stair in ramp:
        left = stair.until - (sample if stair.until_samples else tokens)
        if left > 0:
            if stair.rows > phase.batch_rows:
                raise UsageError(
                    f"the batch ramp still takes {stair.rows} rows in phase {phase.name!r}, whose batch has {phase.batch_rows}",
                    hint="end the ramp before that phase, or make its batch larger",
                )
            return stair.rows, -(-left // (stair.rows * (1 if stair.until_samples else phase.seq_len)))
    return phase.batch_rows, phase.rows + 1
