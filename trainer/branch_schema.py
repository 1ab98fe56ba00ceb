"""`from:` of a training run: the weights another run or an export gives it, instead of seeded ones. No torch here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from gristmill.core.settings import Settings


class Branch(Settings):
    """Where the weights of step 0 come from. Once the run has a checkpoint of its own, it goes on from that."""

    run: str | None = None
    """A training run: its folder (the one with checkpoints/), or the id of its task in this root, or the id's beginning."""
    step: int | None = Field(None, ge=1)
    """Which checkpoint of it; null takes the newest, and a newer one later makes another branch."""
    safetensors: str | None = None
    """A folder with model.safetensors and config.json, ours or of a layout that gristmill reads: continued pretraining."""
    optimizer: Literal["keep", "fresh"] = "keep"
    """keep: the averages and step counts come along (of a run only); fresh: they begin at zero."""
    keep_position: bool = False
    """Go on in the data behind the checkpoint's step, under this run's schedule: for another ending of the same
    mixture. The phases begun by then must be the same rows. false: begin at step 0 of this run's dataset."""
    sha256: str | None = None
    """Digest of the source, filled in by a launch; if given, another source is refused."""

    @field_validator("run", mode="before")
    @classmethod
    def _id_like_a_number(cls, value: Any) -> Any:
        """YAML reads the id 9494 as a number and 3e84 as 3 * 10^84, whose digits are lost."""
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, float):
            raise ValueError(
                """YAML reads this id as a number hint: quote it: run: "3e84", or --set from.run='"3e84"'"""
            )
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Branch:
        if (self.run is None) == (self.safetensors is None):
            raise ValueError("from needs run or safetensors, one of them hint: from: {run: PATH, step: 1000}")
        if self.safetensors is not None and (self.step is not None or self.keep_position):
            raise ValueError("safetensors hold no step and no position hint: leave out step and keep_position")
        return self
