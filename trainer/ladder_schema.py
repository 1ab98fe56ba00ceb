"""The `ladder:` section of a training run: the sizes and token counts of the small runs that predict it. No torch here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from gristmill.core.settings import Settings


class Size(Settings):
    """One model size of a ladder, from the run's own model."""

    width: float = Field(1.0, gt=0)
    """Multiplies hidden and ffn (to multiples of 8), and heads and kv_heads; head_dim stays."""
    depth: float = Field(1.0, gt=0)
    """Multiplies the layers."""
    model: dict[str, Any] = {}
    """Settings of the model that replace what width and depth gave, e.g. {heads: 3}."""
    lr: float | None = Field(None, gt=0)
    """Peak learning rate of this size; null takes the rule of `lr_exponent`."""


class Ladder(Settings):
    """Small runs of one recipe, every size with every token count, each a whole run in small with its own schedule.

    What they share with the run: data and its mixture by stages, optimizer, batch, seed. The token counts are given in
    one of three ways; without any they are 1/8, 1/4 and 1/2 of the dataset.
    """

    sizes: tuple[Size, ...] = Field((Size(width=0.35), Size(width=0.5), Size(width=0.7), Size(width=1.0)), min_length=1)
    """With width alone, parameters grow with its square: these are an eighth to all of the run's."""
    tokens: tuple[int, ...] = ()
    """Token counts, rounded to whole steps."""
    tokens_per_parameter: tuple[float, ...] = ()
    """Token counts as multiples of a size's parameters (`count` says which; Chinchilla's optimum is near 20)."""
    shares: tuple[float, ...] = ()
    """Token counts as shares of the dataset without the rows held out."""
    count: Literal["total", "non_embedding"] = "total"
    """What N counts. total: all parameters, a tied embedding once (Hoffmann et al., arXiv 2203.15556). non_embedding:
    without embedding and head (Kaplan et al., 2001.08361), which for small models leaves out most of the work: that
    accounts for most of the distance between the two papers' exponents (Pearce and Song, 2406.12907)."""
    lr_exponent: float = Field(0.25, ge=0)
    """A size's peak learning rate is the run's times (parameters of the run / of the size) to this power; 0 gives all
    the same. 0.25 is DeepSeek's C^-0.125 (arXiv 2401.02954) along compute-optimal sizes, where C grows with N squared."""
    heldout_rows: int = Field(128, ge=1)
    """Rows at the ends of the stages that no size trains on; their mean loss, in nats per token, is what is fitted."""
    resamples: int = Field(500, ge=20)
    """Bootstrap fits over the runs, for the intervals."""
    level: float = Field(0.9, gt=0, lt=1)
    """Part of the resamples inside an interval."""
    seed: int = Field(0, ge=0)
    """Of the bootstrap."""
    flops: tuple[float, ...] = ()
    """Training FLOPs (6 N D) of the IsoFLOP table; none: powers of ten from the smallest rung to the run itself."""

    @model_validator(mode="after")
    def _one_way(self) -> Ladder:
        given = [name for name in ("tokens", "tokens_per_parameter", "shares") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"both {given[0]} and {given[1]} are given hint: token counts are given in one way")
        for name in (*given, "flops"):
            values = getattr(self, name)
            if any(not value > 0 for value in values) or len(set(values)) < len(values):
                raise ValueError(f"{name} {list(values)} must be positive and differ")
        if any(share > 1 for share in self.shares):
            raise ValueError(f"shares {list(self.shares)} go beyond 1 hint: 1 is the whole dataset")
        return self

    @property
    def budgets(self) -> tuple[float, ...]:
        """The token counts in the way they are given; shares where none are."""
        return self.tokens or self.tokens_per_parameter or self.shares or (0.125, 0.25, 0.5)
