"""Data order: global sample index and step -> (phase, row), a pure function of the manifest. No torch.

Samples (rows) are counted over the phases in order, each phase cut to whole global batches; rows beyond its last
whole batch are never trained on. Steps count from 1, samples and rows from 0. Ranks, when there are several, slice
the rows of a step; they never change which rows those are.
"""

from __future__ import annotations

from dataclasses import dataclass

from gristmill.core.errors import UsageError
from gristmill.core.tokshards import PackedDataset, PackedManifest, PackedPhase


@dataclass(frozen=True)
class Span:
    """One phase's place in the run: its steps are first_step..last_step, its samples start at first_sample."""

    phase: PackedPhase
    first_step: int
    first_sample: int

    @property
    def last_step(self) -> int:
        return self.first_step + self.phase.batches - 1

    @property
    def samples(self) -> int:
        return self.phase.batches * self.phase.batch_rows


def spans(manifest: PackedManifest) -> list[Span]:
    """Where each phase lies in the run, in order. Phases shorter than one batch have no step and are left out."""
    out = []
    step, sample = 1, 0
    for phase in manifest.phases:
        span = Span(phase, step, sample)
        if phase.batches:
            out.append(span)
        step, sample = step + phase.batches, sample + span.samples
    return out


def total_steps(manifest: PackedManifest) -> int:
    return sum(phase.batches for phase in manifest.phases)


def span_of_step(manifest: PackedManifest, step: int) -> Span:
    """The phase a step (from 1) belongs to. Raises UsageError outside the run."""
    for span in spans(manifest):
        if span.first_step <= step <= span.last_step:
            return span
    raise UsageError(f"no step {step}", hint=f"this dataset has steps 1..{total_steps(manifest)}")


def row_of_sample(manifest: PackedManifest, sample: int) -> tuple[str, int]:
    """(phase, row) of a global sample index (from 0). Raises UsageError outside the run."""
    for span in spans(manifest):
        if 0 <= sample - span.first_sample < span.samples:
            return span.phase.name, sample - span.first_sample
    raise UsageError(f"no sample {sample}", hint=f"this dataset has samples 0..{samples_after(manifest, None) - 1}")


def samples_after(manifest: PackedManifest, step: int | None) -> int:
    """Samples consumed once `step` is done (0 before the first; None: the whole run)."""
    if step == 0:
        return 0
    span = span_of_step(manifest, total_steps(manifest) if step is None else step)
    done = span.phase.batches if step is None else step - span.first_step + 1
    return span.first_sample + done * span.phase.batch_rows


def tokens_after(manifest: PackedManifest, step: int) -> int:
    """Positions trained on (rows x seq_len, padding included) once `step` is done."""
    total = 0
    for span in spans(manifest):
        done = min(max(step - span.first_step + 1, 0), span.phase.batches)
        total += done * span.phase.batch_rows * span.phase.seq_len
    return total


def rows_of_step(dataset: PackedDataset, step: int) -> list[tuple[str, int]]:
    """The (phase, row) pairs of one global batch, in order. Steps count from 1; raises UsageError outside the run."""
    span = span_of_step(dataset.manifest, step)
    first = (step - span.first_step) * span.phase.batch_rows
    return [(span.phase.name, row) for row in range(first, first + span.phase.batch_rows)]


def step_of_row(dataset: PackedDataset, phase: str, row: int) -> int | None:
    """The step that trains on a row, the inverse of `rows_of_step`; None for rows beyond the phase's last whole batch.

    Raises FormatError for an unknown phase and UsageError for a row it does not have.
    """
    spec = dataset.manifest.phase(phase)
    if not 0 <= row < spec.rows:
        raise UsageError(f"phase {phase!r} has no row {row}", hint=f"its rows are 0..{spec.rows - 1}")
    for span in spans(dataset.manifest):
        if span.phase.name == phase and row < span.samples:
            return span.first_step + row // spec.batch_rows
    return None
