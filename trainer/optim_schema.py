"""Settings of the optimizer and of the learning-rate schedule in a training-run YAML. No torch here."""

from __future__ import annotations

import itertools
import re
from typing import Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from gristmill.core.settings import Settings

Algorithm = Literal["adamw", "muon", "ademamix"]
Shape = Literal["linear", "cosine", "1-sqrt"]

REGEX = "re:"  # marks a parameter pattern as a regular expression


class Finite(Settings):
    """Settings whose numbers are neither infinite nor NaN: either would pass a bound like `> 0`."""

    model_config = ConfigDict(allow_inf_nan=False)


class Muon(Finite):
    """Muon's own settings (Jordan et al. 2024, kellerjordan.github.io/posts/muon). Its matrices use no `betas`."""

    lr: float | None = Field(None, gt=0)
    """Peak learning rate of the Muon matrices; null takes `optimizer.lr`, which `scale: match_rms_adamw` is made for."""
    momentum: float = Field(0.95, ge=0, lt=1)
    nesterov: bool = True
    ns_steps: int = Field(5, ge=1, le=20)
    """Newton-Schulz iterations. 5 bring singular values above 0.01 (of a matrix of norm 1) to between 0.68 and 1.13."""
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
    """a, b, c of x -> a x + b x^3 + c x^5 on the singular values. The default is Jordan's, steep at 0; it does not converge
    to 1. (2, -1.5, 0.5) converges, slower."""
    ns_precision: Literal["fp32", "bf16"] = "bf16"
    """bf16 is twice as fast or more on a GPU and is what torch.optim.Muon does; fp32 differs less between layouts."""
    scale: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """Factor of a rows x columns update. match_rms_adamw: 0.2 sqrt(max(rows, columns)), an update as large as AdamW's, so
    both share a learning rate (Liu et al., arXiv 2502.16982, section 2.2). original: sqrt(max(1, rows / columns)) (Jordan)."""


class AdEMAMix(Finite):
    """The slow average of AdEMAMix (Pagliardini et al., arXiv 2409.03137); beta1 and beta2 are `betas`."""

    beta3: float = Field(0.9999, gt=0, lt=1)
    """Decay of the slow average of gradients, which has no bias correction."""
    alpha: float = Field(5.0, ge=0)
    """Weight of the slow average in the update; the paper finds 4 to 10 to work well."""
    warmup_steps: int | None = Field(None, ge=1)
    """Steps over which alpha rises from 0 and beta3 from beta1; neither this nor tokens: the whole run, as in the paper."""
    warmup_tokens: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_warmup(self) -> AdEMAMix:
        if self.warmup_steps is not None and self.warmup_tokens is not None:
            raise ValueError("both warmup_steps and warmup_tokens are given hint: keep one of them")
        return self


class ParameterGroup(Finite):
    """Overrides for the parameters whose names match. The first group that matches a parameter decides, alone."""

    match: str = Field(min_length=1)
    """Shell pattern for the whole name (`blocks.*.attention.q.weight`; * also crosses dots), or `re:` and a regular
    expression for the whole name. A group that no parameter falls to is an error when the run starts."""
    lr_multiplier: float = Field(1.0, ge=0)
    """Times the scheduled learning rate; 0 freezes the parameters."""
    weight_decay: float | None = Field(None, ge=0)
    """null keeps the default: `optimizer.weight_decay`, and 0 for embeddings and anything that is no matrix."""
    optimizer: Algorithm | None = None
    """null keeps what `optimizer.name` says for the parameter."""

    @field_validator("match")
    @classmethod
    def _compiles(cls, value: str) -> str:
        if value.startswith(REGEX):
            try:
                re.compile(value.removeprefix(REGEX))
            except re.error as error:
                raise ValueError(f"{value!r} is no regular expression: {error}") from error
        return value

    @model_validator(mode="after")
    def _changes_something(self) -> ParameterGroup:
        if self.lr_multiplier == 1 and self.weight_decay is None and self.optimizer is None:
            raise ValueError("the group changes nothing hint: give lr_multiplier, weight_decay or optimizer")
        return self


class Optimizer(Finite):
    """The optimizer of a run. Embeddings, norms and other vectors are not decayed unless a group says so.

    adamw     Loshchilov and Hutter, arXiv 1711.05101
    muon      Muon for the matrices of the blocks, AdamW for embeddings, head and vectors
    ademamix  AdamW with a second, slow average of gradients
    """

    name: Algorithm = "adamw"
    lr: float = Field(gt=0)
    """Peak learning rate; the schedule multiplies it."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the averages of the gradient and of its square (AdamW, AdEMAMix)."""
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled: a step takes lr x weight_decay of the weight away."""
    clip: float | None = Field(1.0, gt=0)
    """Largest gradient norm; null clips nothing (the norm is recorded all the same)."""
    groups: tuple[ParameterGroup, ...] = ()
    """Overrides by parameter name."""
    muon: Muon | None = None
    """null takes the defaults."""
    ademamix: AdEMAMix | None = None
    """null takes the defaults."""

    @field_validator("betas")
    @classmethod
    def _betas(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= b < 1 for b in value):
            raise ValueError(f"betas {list(value)} must each be at least 0 and less than 1")
        return value

    @field_validator("muon", "ademamix")
    @classmethod
    def _used(cls, value: Settings | None, info: ValidationInfo) -> Settings | None:
        name, groups = info.data.get("name"), info.data.get("groups", ())
        if value is not None and name is not None and info.field_name not in (name, *(g.optimizer for g in groups)):
            raise ValueError(
                f"settings for {info.field_name}, but no parameter is trained with it"
                f" hint: set optimizer.name: {info.field_name}, or remove them"
            )
        return value

    @model_validator(mode="after")
    def _slower(self) -> Optimizer:
        slow = self.slow
        if self.uses("ademamix") and slow.beta3 <= self.betas[0]:
            raise ValueError(
                f"ademamix.beta3 {slow.beta3} is not above beta1 {self.betas[0]} hint: it is the slow average"
            )
        if self.uses("ademamix") and not self.betas[0]:
            raise ValueError("betas[0] is 0 hint: ademamix raises beta3 from it, so it must be above 0")
        return self

    @property
    def slow(self) -> AdEMAMix:
        """AdEMAMix's settings, the defaults where none are given."""
        return self.ademamix or AdEMAMix()

    def uses(self, algorithm: Algorithm) -> bool:
        """Whether the name or a group asks for an algorithm."""
        return algorithm in (self.name, *(g.optimizer for g in self.groups))


class Milestone(Finite):
    """One drop of a multi-step schedule."""

    tokens: int | None = Field(None, ge=1)
    """Tokens trained before it; it applies from the first step that begins there or later."""
    fraction: float | None = Field(None, gt=0, lt=1)
    """The same as a fraction of the whole run's tokens. Give one of the two."""
    ratio: float = Field(ge=0, le=1)
    """The learning rate from there on, as a fraction of the peak."""

    @model_validator(mode="after")
    def _one_place(self) -> Milestone:
        if (self.tokens is None) == (self.fraction is None):
            raise ValueError("a milestone needs one place hint: give tokens or fraction")
        return self


class Rewarm(Finite):
    """A rise to the peak at the beginning of one phase, after which the phase's own rule goes on."""

    phase: str
    steps: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=1)
    """Rounded up to whole steps of the phase. Give this or `steps`, not both."""
    start: float = Field(0.0, ge=0, lt=1)
    """What the rise begins above, as a fraction of where it ends."""

    @model_validator(mode="after")
    def _one_length(self) -> Rewarm:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("a rewarm needs one length hint: give steps or tokens")
        return self


class Schedule(Finite):
    """The learning rate over the run, measured in tokens, so that phases of other batch sizes keep its shape.

    wsd         warm-up, stable, decay: each phase's `lr:` block in the mixture says stable, decay or full; with
                `decay_tokens` the run says it instead (Hu et al., arXiv 2404.06395)
    cosine      from the warm-up to the end of the run; the phases' blocks are not used
    multi-step  the peak, then `milestones`; the phases' blocks are not used (DeepSeek LLM, arXiv 2401.02954: ratios
                0.316 at 0.8 and 0.1 at 0.9)
    """

    kind: Literal["wsd", "cosine", "multi-step"] = "wsd"
    warmup_steps: int | None = Field(None, ge=0)
    warmup_tokens: int | None = Field(None, ge=0)
    """Warm-up in tokens, rounded up to whole steps. Give this or `warmup_steps`, not both."""
    decay: Shape = "linear"
    """Shape of a wsd decay whose phase names none."""
    decay_tokens: int | None = Field(None, ge=1)
    """wsd: decay over the last so many tokens (rounded up to whole steps). In a dataset of several phases it must begin
    on the edge of one."""
    final_ratio: float = Field(0.0, ge=0, le=1)
    """Where a wsd decay ends whose phase says no `to`, and where the cosine ends, as a fraction of the peak."""
    milestones: tuple[Milestone, ...] = ()
    """multi-step: the drops, in order."""
    rewarm: tuple[Rewarm, ...] = ()
    """Phases that begin with a rise. For cosine, multi-step and `decay_tokens` the rise multiplies the schedule."""

    @model_validator(mode="after")
    def _one_warmup(self) -> Schedule:
        if self.warmup_steps is not None and self.warmup_tokens is not None:
            raise ValueError("both warmup_steps and warmup_tokens are given hint: keep one of them")
        return self

    @field_validator("decay_tokens")
    @classmethod
    def _wsd_only(cls, value: int | None, info: ValidationInfo) -> int | None:
        kind = info.data.get("kind", "wsd")
        if value is not None and kind != "wsd":
            raise ValueError(f"a {kind} schedule has no decay_tokens hint: remove it, or set kind: wsd")
        return value

    @field_validator("milestones")
    @classmethod
    def _in_order(cls, value: tuple[Milestone, ...], info: ValidationInfo) -> tuple[Milestone, ...]:
        kind = info.data.get("kind", "multi-step")
        if value and kind != "multi-step":
            raise ValueError(f"a {kind} schedule has no milestones hint: set kind: multi-step")
        for unit in ("tokens", "fraction"):
            places = [at for m in value if (at := getattr(m, unit)) is not None]
            if any(b <= a for a, b in itertools.pairwise(places)):
                raise ValueError(
                    f"milestones are out of order: {unit} {places} hint: each must lie after the one before"
                )
        return value

    @field_validator("rewarm")
    @classmethod
    def _once(cls, value: tuple[Rewarm, ...]) -> tuple[Rewarm, ...]:
        names = [r.phase for r in value]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"phase {twice[0]!r} is rewarmed twice")
        return value

    @model_validator(mode="after")
    def _has_milestones(self) -> Schedule:
        if self.kind == "multi-step" and not self.milestones:
            raise ValueError("a multi-step schedule needs milestones hint: e.g. [{fraction: 0.8, ratio: 0.316}]")
        return self
