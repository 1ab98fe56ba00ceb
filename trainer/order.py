"""Data order: step -> rows of the packed dataset, a pure function of (manifest, batch ramp, edits). No torch.

A phase's rows stand at slots, row r at slot r until an edit moves it. Steps take the slots in order, so many a step as
the phase's batch or the run's batch ramp says; slots left over where no whole batch fits are never trained. Samples
count the slots taken over all phases, from 0; steps count from 1. Ranks slice the rows of a step; they never change
which rows those are.

Edits (edits.py) leave every step before their own as it was, and never move a step or a sample:
  defer  rows move to the end of the slots that their phase trains, those behind them move up
  skip   rows stay where they are, untrained. A step without rows left is jumped over: its number passes, and its
         learning rate, schedule tokens and samples with it
  block  the labels inside a document are ignored from a sample on
  ramp   another batch ramp from a step on; the order of the samples stays
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from gristmill.core.errors import UsageError
from gristmill.core.tokshards import PackedManifest
from gristmill.trainer.data_schema import RampStep
from gristmill.trainer.edits import Block, Defer, Edit, Edits, Ramp, Skip
from gristmill.trainer.ramp import PhaseSpan, Span, spans_of


class Slots:
    """Which row stands at each slot of a phase: runs of consecutive rows in the order of the slots."""

    def __init__(self, rows: int) -> None:
        self.runs = [(0, rows)]  # (first row, rows)
        self._begin = [0]  # first slot of each run

    def rows(self, slot: int, count: int) -> list[int]:
        """Rows of `count` slots from `slot` on."""
        out: list[int] = []
        for first, length in self._between(slot, slot + count):
            out.extend(range(first, first + length))
        return out

    def where(self, first: int, count: int) -> list[tuple[int, int]]:
        """(slot, rows) of each stretch of slots in which rows first.. stand, in the order of the slots."""
        out: list[tuple[int, int]] = []
        for begin, (row, length) in zip(self._begin, self.runs, strict=True):
            low, high = max(row, first), min(row + length, first + count)
            if high <= low:
                continue
            slot = begin + low - row
            if out and sum(out[-1]) == slot:
                out[-1] = (out[-1][0], out[-1][1] + high - low)
            else:
                out.append((slot, high - low))
        return out

    def move(self, first: int, count: int, end: int) -> None:
        """Take out rows first.. (side by side) and put them back so that they end before slot `end`."""
        [(slot, length)] = self.where(first, count)
        assert length == count
        total = sum(length for _, length in self.runs)
        rest = [*self._between(0, slot), *self._between(slot + count, total)]
        self._set(rest)
        self._set([*self._between(0, end - count), (first, count), *self._between(end - count, total - count)])

    def _set(self, runs: list[tuple[int, int]]) -> None:
        self.runs = runs
        self._begin = [0, *accumulate(length for _, length in runs[:-1])]

    def _between(self, begin: int, end: int) -> list[tuple[int, int]]:
        """The runs of slots begin..end-1, cut at both."""
        out = []
        for i in range(max(bisect_right(self._begin, begin) - 1, 0), len(self.runs)):
            at, (first, length) = self._begin[i], self.runs[i]
            if at >= end:
                break
            low, high = max(begin - at, 0), min(end - at, length)
            if high > low:
                out.append((first + low, high - low))
        return out


class DataOrder:
    """Steps, samples and tokens of a run, and the rows of each step.

    `spans` are its stretches of equal batches, `phases` the phases with at least one step, `steps` its last step,
    `sources` the sorted names of the sources that the manifest's shares name. Raises UsageError on a ramp that does not
    fit the phases and on an edit that cannot be made.
    """

    def __init__(self, manifest: PackedManifest, ramp: Sequence[RampStep] = (), edits: Edits | None = None) -> None:
        self.manifest, self.ramp = manifest, tuple(ramp)
        self.edits = Edits() if edits is None else edits
        self.sources = sorted({source for phase in manifest.phases for source in phase.shares})
        self._rules: list[tuple[int, tuple[RampStep, ...]]] = [(1, self.ramp)]  # (from this step on, ramp)
        self._slots = {phase.name: Slots(phase.rows) for phase in manifest.phases}
        self._skips: dict[str, list[tuple[int, int]]] = {}  # phase -> (first row, end) of each skip
        self._defers: dict[str, list[tuple[int, int]]] = {}
        self._blocked: dict[str, int] = {}
        self._lay()
        for edit in self.edits:
            self._make(edit)

    # --- where steps, samples and tokens lie

    def _lay(self) -> None:
        self.spans = list(spans_of(self.manifest, self._rules))
        self._first_steps = [span.first_step for span in self.spans]
        self._tokens = [0, *accumulate(span.steps * span.tokens_per_step for span in self.spans)]
        self.steps = self.spans[-1].last_step if self.spans else 0
        self.phases: list[PhaseSpan] = []
        for span in self.spans:
            if self.phases and self.phases[-1].phase is span.phase:
                last = self.phases[-1]
                self.phases[-1] = replace(last, last_step=span.last_step, samples=last.samples + span.samples)
            else:
                self.phases.append(
                    PhaseSpan(span.phase, span.first_step, span.last_step, span.first_sample, span.samples)
                )

    @property
    def samples(self) -> int:
        """Samples of the whole run."""
        return self.spans[-1].first_sample + self.spans[-1].samples if self.spans else 0

    @property
    def tokens(self) -> int:
        """Positions of the whole run (rows x seq_len), padding included."""
        return self._tokens[-1]

    def span(self, step: int) -> Span:
        """The span of a step (from 1). Raises UsageError outside the run."""
        if not 1 <= step <= self.steps:
            raise UsageError(f"no step {step}", hint=f"this dataset has steps 1..{self.steps}")
        return self.spans[bisect_right(self._first_steps, step) - 1]

    def samples_after(self, step: int) -> int:
        """Samples consumed once `step` is done, 0 before the first. Raises UsageError outside the run."""
        if step == 0:
            return 0
        span = self.span(step)
        return span.first_sample + (step - span.first_step + 1) * span.rows

    def tokens_after(self, step: int) -> int:
        """Positions consumed (rows x seq_len, padding and skipped rows included) once `step` is done."""
        i = bisect_right(self._first_steps, step) - 1
        if i < 0:
            return 0
        span = self.spans[i]
        return self._tokens[i] + min(step - span.first_step + 1, span.steps) * span.tokens_per_step

    def row_of_sample(self, sample: int) -> tuple[str, int]:
        """(phase, row) of a sample, skipped or not. Raises UsageError outside the run."""
        for phase in self.phases:
            if 0 <= sample - phase.first_sample < phase.samples:
                return phase.phase.name, self._slots[phase.phase.name].rows(sample - phase.first_sample, 1)[0]
        raise UsageError(f"no sample {sample}", hint=f"this dataset has samples 0..{self.samples - 1}")

    # --- the rows of a step

    def _rows(self, step: int) -> tuple[Span, int, list[int]]:
        """(span, first slot, rows of all slots) of a step."""
        span = self.span(step)
        slot = span.first_slot + (step - span.first_step) * span.rows
        return span, slot, self._slots[span.phase.name].rows(slot, span.rows)

    def samples_of_step(self, step: int) -> list[tuple[int, int]]:
        """(sample, row of the step's phase) of one global batch in order, skipped rows left out."""
        span, _, rows = self._rows(step)
        first = span.first_sample + (step - span.first_step) * span.rows
        skips = self._skips.get(span.phase.name, [])
        return [(first + i, row) for i, row in enumerate(rows) if not _inside(row, skips)]

    def rows_of_step(self, step: int) -> list[tuple[str, int]]:
        """(phase, row) of one global batch in order, skipped rows left out. Raises UsageError outside the run."""
        name = self.span(step).phase.name
        return [(name, row) for _, row in self.samples_of_step(step)]

    def skipped(self, step: int) -> list[tuple[str, int]]:
        """(phase, row) that stand in a step and are not trained."""
        span, _, rows = self._rows(step)
        skips = self._skips.get(span.phase.name, [])
        return [(span.phase.name, row) for row in rows if _inside(row, skips)]

    def next_step(self, after: int) -> int | None:
        """The first step later than `after` that has a row to train; None at the end of the run."""
        for step in range(max(after, 0) + 1, self.steps + 1):
            skips = self._skips.get(self.span(step).phase.name)
            if not skips or self.samples_of_step(step):
                return step
        return None

    def step_of_row(self, phase: str, row: int) -> int | None:
        """The step that trains a row, the inverse of `rows_of_step`; None for rows skipped or beyond the last whole batch.

        Raises FormatError for an unknown phase and UsageError for a row it does not have.
        """
        spec = self.manifest.phase(phase)
        if not 0 <= row < spec.rows:
            raise UsageError(f"phase {phase!r} has no row {row}", hint=f"its rows are 0..{spec.rows - 1}")
        return (
            None
            if _inside(row, self._skips.get(phase, []))
            else self._step_of_slot(phase, self._slots[phase].where(row, 1)[0][0])
        )

    def position_of_row(self, phase: str, row: int) -> int:
        """Where a row stands in its phase's order, from 0: its own number until an edit moves it."""
        return self._slots[phase].where(row, 1)[0][0]

    def rows_at(self, phase: str, position: int, count: int) -> list[int]:
        """The rows that stand at `count` positions of a phase's order, skipped ones too."""
        return self._slots[phase].rows(position, count)

    def _step_of_slot(self, phase: str, slot: int) -> int | None:
        for span in self.spans:
            if span.phase.name == phase and 0 <= slot - span.first_slot < span.samples:
                return span.first_step + (slot - span.first_slot) // span.rows
        return None

    @property
    def blocked(self) -> Mapping[str, int]:
        """Blocked documents (32 hex digits): the sample from which each teaches nothing."""
        return self._blocked

    # --- edits

    def edited(self, *edits: Edit) -> DataOrder:
        """This order with more edits. Raises UsageError when one cannot be made, or defers rows of a phase that decays."""
        decays = {p.name: kind for p in self.manifest.phases if (kind := p.lr.get("phase") or "stable") != "stable"}
        for edit in edits:  # only new ones: those of a finished run stand, whatever its `lr` blocks were
            if isinstance(edit, Defer) and edit.phase in decays:
                raise UsageError(
                    f"cannot defer rows of phase {edit.phase!r}: its learning rate is `{decays[edit.phase]}`, "
                    "so it has no end before the decay"
                )
        return DataOrder(self.manifest, self.ramp, self.edits.plus(*edits))

    def refusal(self, *edits: Edit) -> str | None:
        """Why these edits cannot be made, None when they can."""
        try:
            self.edited(*edits)
        except UsageError as error:
            return error.message
        return None

    def skip(self, step: int, reason: str = "", at_step: int | None = None) -> tuple[Skip, ...]:
        """Edits that skip what is left of a step's batch, one for each run of neighbouring rows."""
        name, at = self.span(step).phase.name, at_step or step
        return tuple(Skip(name, first, count, at, reason) for first, count in _runs(self.samples_of_step(step)))

    def defer(self, step: int, reason: str = "", at_step: int | None = None) -> tuple[Defer, ...]:
        """Edits that move a step's batch to the end of its phase. `at_step` is the next step that will run, if earlier."""
        name, at = self.span(step).phase.name, at_step or step
        return tuple(Defer(name, first, count, at, reason) for first, count in _runs(self.samples_of_step(step)))

    def cannot_defer(self, step: int, at_step: int | None = None) -> str | None:
        """Why a step's batch cannot be deferred, None when it can."""
        return (
            self.refusal(*self.defer(step, "", at_step)) if self.samples_of_step(step) else f"step {step} has no rows"
        )

    def _make(self, edit: Edit) -> None:
        if isinstance(edit, Block):
            for document in edit.documents:
                self._blocked[document] = min(self._blocked.get(document, edit.from_sample), edit.from_sample)
            return
        if isinstance(edit, Ramp):
            if edit.at_step > self.steps + 1:
                raise UsageError(f"a batch ramp from step {edit.at_step}: the run has {self.steps} steps")
            self._rules = [rule for rule in self._rules if rule[0] < edit.at_step] + [(edit.at_step, edit.steps)]
            self._lay()
            return
        what = f"cannot {edit.kind} rows {edit.first_row}..{edit.first_row + edit.rows - 1} of phase {edit.phase!r}"
        problem = self._problem(edit)
        if problem:
            raise UsageError(f"{what}: {problem}", hint="gristmill trace --step shows the rows of a run's steps")
        if isinstance(edit, Skip):
            insort(self._skips.setdefault(edit.phase, []), (edit.first_row, edit.first_row + edit.rows))
        else:
            self._slots[edit.phase].move(edit.first_row, edit.rows, self._phase(edit.phase).samples)
            self._defers.setdefault(edit.phase, []).append((edit.first_row, edit.first_row + edit.rows))

    def _problem(self, edit: Skip | Defer) -> str | None:
        names = [phase.phase.name for phase in self.phases]
        if edit.phase not in names:
            return f"no phase of that name has a step here ({', '.join(names)})"
        phase = self._phase(edit.phase)
        if edit.first_row + edit.rows > phase.phase.rows:
            return f"it has rows 0..{phase.phase.rows - 1}"
        if _overlaps(edit, self._skips.get(edit.phase, [])):
            return "some are skipped already"
        if isinstance(edit, Defer) and _overlaps(edit, self._defers.get(edit.phase, [])):
            return "some were deferred before"
        stretches = self._slots[edit.phase].where(edit.first_row, edit.rows)
        first, last = stretches[0][0], sum(stretches[-1]) - 1
        if last >= phase.samples:
            return "some lie beyond its last whole batch"
        step = self._step_of_slot(edit.phase, first)
        assert step is not None
        if step < edit.at_step:
            return f"some were trained before step {edit.at_step}"
        if isinstance(edit, Defer) and step == phase.last_step:
            return "they are its last batch already"
        if isinstance(edit, Defer) and len(stretches) > 1:
            return "they stand apart"
        return None

    def _phase(self, name: str) -> PhaseSpan:
        return next(phase for phase in self.phases if phase.phase.name == name)


def _runs(samples: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(first row, rows) of each run of neighbouring rows."""
    rows = [row for _, row in samples]
    begin = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[i - 1] + 1:
            yield rows[begin], i - begin
            begin = i


def _inside(row: int, ranges: Sequence[tuple[int, int]]) -> bool:
    """Whether one of the sorted ranges (first, end), none of which overlap, holds a row."""
    i = bisect_right(ranges, row, key=lambda r: r[0])
    return i > 0 and row < ranges[i - 1][1]


def _overlaps(edit: Skip | Defer, ranges: Sequence[tuple[int, int]]) -> bool:
    return any(edit.first_row < end and first < edit.first_row + edit.rows for first, end in ranges)


def order_of(data: PackedManifest | DataOrder) -> DataOrder:
    """The order of a manifest without ramp and edits, or the order itself."""
    return data if isinstance(data, DataOrder) else DataOrder(data)
