"""Settings of a run's data order: a batch-size warm-up, documents to leave out, edits taken over. No torch here."""

from __future__ import annotations

from itertools import pairwise

from pydantic import Field, field_validator, model_validator

from gristmill.core.settings import Settings


class RampStep(Settings):
    """One stair of a batch-size warm-up: `rows` a step until so many samples, or tokens, of the run are consumed."""

    rows: int = Field(ge=1)
    """Rows of one global batch."""
    until_samples: int | None = Field(None, ge=1)
    """Samples (rows) of the whole run after which the next stair begins."""
    until_tokens: int | None = Field(None, ge=1)
    """The same in tokens: positions, padding included."""

    @model_validator(mode="after")
    def _one_end(self) -> RampStep:
        if (self.until_samples is None) == (self.until_tokens is None):
            raise ValueError("give one of until_samples and until_tokens hint: until_tokens: 20000000")
        return self

    @property
    def until(self) -> int:
        return self.until_samples or self.until_tokens or 0


class Data(Settings):
    """What a run makes of the packed rows: how many a step takes, and which it leaves out. It never changes a shard."""

    batch_ramp: tuple[RampStep, ...] = ()
    """Batch-size warm-up (GPT-3, arXiv 2005.14165, section 2.3): stairs that grow up to the phases' own batch."""
    blocklist: str | None = None
    """File of document ids that teach nothing from where they are first read (see `gristmill trace --spike --block`)."""
    edits: str | None = None
    """File of skips, deferrals, blocks and ramps that the run begins with: another run's edits.json, to replay it."""

    @field_validator("batch_ramp")
    @classmethod
    def _stairs(cls, ramp: tuple[RampStep, ...]) -> tuple[RampStep, ...]:
        for a, b in pairwise(ramp):
            if (a.until_samples is None) != (b.until_samples is None):
                raise ValueError("the stairs end in samples and in tokens hint: keep to one of them")
            if a.until >= b.until or a.rows >= b.rows:
                raise ValueError("each stair has more rows and a later end than the one before")
        return ramp
