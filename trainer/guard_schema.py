"""Settings of a run's guards: when a step counts as a spike, what is done then, and when a rank counts as slow. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gristmill.core.settings import Settings

Watched = Literal["loss", "grad_norm"]


class Guards(Settings):
    """What watches a run. Each action is a line of events.jsonl and, where it changes the data order, an edit of it."""

    on_spike: Literal["warn", "skip_update", "defer", "rewind"] = "warn"
    """warn: train on, only say so. skip_update: leave the step out; its number, tokens and learning rate pass. defer: move
    its batch to the end of the phase before the decay and run the step again with the rows that move up. rewind: go back
    to the newest checkpoint before the last `rewind_steps` steps, with their rows edited."""
    on_nonfinite: Literal["stop", "skip_update"] = "stop"
    """A loss or gradient norm that is not finite is never applied; the run ends, or goes on without that step."""
    watch: tuple[Watched, ...] = ("loss", "grad_norm")
    """What is held against its own window; none: only values that are not finite count."""
    sigma: float = Field(6.0, gt=0)
    """A spike lies above mean + sigma x standard deviation of the window (6 over 128 steps: OLMo's SkipStepOptimizer)."""
    window: int = Field(128, ge=2)
    """Steps in the window: the latest whose update was applied."""
    min_steps: int = Field(32, ge=2)
    """Applied steps before the first judgement: the first losses fall too fast for a mean to say much."""
    max_actions: int = Field(20, ge=1)
    """Skipped, deferred or rewound steps in one run; one more ends it with an error. With a higher limit the run goes on."""
    max_actions_in_window: int = Field(5, ge=1)
    """The same within `window` steps: more is no spike but a run that diverges."""
    max_defers_per_document: int = Field(2, ge=1)
    """A batch that holds a document deferred so often already is skipped in place of deferred."""
    rewind_steps: int = Field(1, ge=1)
    """Steps up to and with the spike whose batches a rewind edits: the cause may lie before it shows."""
    rewind_edit: Literal["defer", "skip"] = "defer"
    """What a rewind does to these batches. What cannot be deferred is skipped."""
    ring_steps: int = Field(16, ge=0)
    """Steps whose loss per token stays in memory (4 bytes a token of a rank's own rows, at most 256 MiB), to be written
    per document when a guard acts; 0: no such reports. It starts empty when a run resumes."""
    max_reports: int = Field(50, ge=0)
    """Reports written in one run; later events come without one."""
    health_every: int = Field(20, ge=1)
    """Steps between two comparisons of the ranks' times and of the throughput (health.jsonl)."""
    slow_rank_factor: float = Field(1.5, gt=1)
    """A rank slower than this many times the median of the ranks is named."""
    throughput_drop: float = Field(0.5, gt=0, lt=1)
    """Tokens/s below this share of the run's median so far is an event."""
    heartbeat_seconds: float = Field(10.0, gt=0)
    """Between two writes of heartbeat/RANK, by a thread of each rank: its step and what it was last doing."""
    stalled_seconds: float = Field(60.0, gt=0)
    """A heartbeat older than this is a rank that hangs or is gone; it is named when the others wait for it in vain."""

    @model_validator(mode="after")
    def _fits(self) -> Guards:
        if self.min_steps > self.window:
            raise ValueError(
                f"min_steps {self.min_steps} is more than the window's {self.window} hint: lower min_steps"
            )
        if self.stalled_seconds <= self.heartbeat_seconds:
            raise ValueError("stalled_seconds must be longer than heartbeat_seconds hint: six times as long")
        return self
