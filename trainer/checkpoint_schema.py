"""Settings of checkpoints and of averaged weights: when the state is saved, what is kept, what is averaged. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gristmill.core.settings import Settings


class Checkpoint(Settings):
    """When the whole state is saved: every `every_steps`, at the end of each phase and when the run stops."""

    every_steps: int = Field(100, ge=1)
    keep: int = Field(2, ge=1)
    """Newest checkpoints kept; older ones are removed after a new one is complete."""
    keep_every_steps: int | None = Field(None, ge=1)
    """Checkpoints at multiples of this step are kept forever, beside the newest; null: none."""
    asynchronous: bool = False
    """Copy the state to memory and write it while training goes on: costs one copy of the state in host memory."""


class Average(Settings):
    """Averaged weights, used for the final export instead of the last step's."""

    kind: Literal["none", "ema", "last_k"] = "none"
    """ema: an exponential average, held beside the weights in fp32 (arXiv 2411.18704). last_k: the mean of the weights at
    the last k multiples of the interval, from their checkpoints (LAWA, arXiv 2209.14981)."""
    decay: float = Field(0.999, gt=0, lt=1)
    """ema: what the average keeps of itself each step; 0.999 looks back about 1,000 steps, whatever the interval."""
    k: int = Field(5, ge=2)
    """last_k: checkpoints averaged; they are kept until they have left the window."""
    every_steps: int | None = Field(None, ge=1)
    """Steps between two updates of ema (null: 1) or between two averaged checkpoints of last_k (null: 100)."""

    @property
    def interval(self) -> int:
        return self.every_steps or {"none": 1, "ema": 1, "last_k": 100}[self.kind]

    def snapshots(self, step: int, since: int = 0) -> list[int]:
        """The steps after `since` whose weights the last_k average at `step` consists of, oldest first; else none."""
        if self.kind != "last_k":
            return []
        every = self.interval
        return [n * every for n in range(max(step // every - self.k + 1, since // every + 1), step // every + 1)]


def due(step: int, checkpoint: Checkpoint, average: Average) -> bool:
    """Whether the settings ask for a checkpoint after this step. The loop adds phase ends, the last step and stops."""
    return step % checkpoint.every_steps == 0 or (average.kind == "last_k" and step % average.interval == 0)


def kept(steps: list[int], now: int, checkpoint: Checkpoint, average: Average) -> set[int]:
    """Which of the complete checkpoints outlive the one just written at step `now`.

    The newest `keep` up to `now`, multiples of `keep_every_steps`, what the last_k average still needs, and all later
    than `now`: those belong to another try from which this one went back, and are not this one's to remove.
    """
    newest = sorted(s for s in steps if s <= now)[-checkpoint.keep :]
    forever = [s for s in steps if checkpoint.keep_every_steps and s % checkpoint.keep_every_steps == 0]
    later = [s for s in steps if s > now]
    return {*newest, *forever, *later, *(s for s in average.snapshots(now) if s in steps)}
