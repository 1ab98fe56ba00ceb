"""Stages of a mixture (called phases in code and output) and annealing ablations, as the YAML says them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from gristmill.core.settings import Settings
from gristmill.mixes.schema_amounts import (
    SHARE_TOLERANCE,
    Fault,
    Packing,
    Part,
    PhaseName,
    Share,
    TokenCount,
    TokensPart,
)


class LearningRate(Settings):
    """What the learning rate does in a phase; the trainer reads it. Its peak is the run's `optimizer.lr`."""

    phase: Literal["stable", "decay", "full"] = "stable"
    """stable: the peak; decay: from the peak down; full: a warm-up and a decay of its own."""
    shape: Literal["linear", "cosine", "1-sqrt"] | None = None
    to: float | None = Field(None, ge=0, le=1)
    """Where a decay ends, as a fraction of the peak."""
    warmup_steps: int | None = Field(None, ge=0)
    """A rise from 0 that opens the phase; what a phase after a decay needs to be stable, or to decay anew."""

    @model_validator(mode="before")
    @classmethod
    def _said_elsewhere(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "peak" in data:
            raise ValueError("E110 the peak is not the mixture's hint: give optimizer.lr in the training run's file")
        if isinstance(data, Mapping) and data.get("phase") == "rewarm_decay":
            raise ValueError("E110 a rise and a decay hint: write {phase: decay, warmup_steps: 500}")
        return data


class Phase(Settings):
    """One curriculum stage: whole global batches of rows, drawn from the sources in fixed proportions."""

    name: PhaseName
    tokens: TokenCount | None = None
    """Positions trained on (seq_len per row). Left out, and derived, when every amount is {tokens} or {epochs}."""
    seq_len: int = Field(ge=2, le=1 << 24, examples=[4096])
    """Tokens of a sequence; a stored row has one more, so that inputs = row[:-1] and targets = row[1:]."""
    global_batch: TokenCount = Field(examples=[524288])
    """Tokens of one optimizer step, a multiple of seq_len."""
    normalize: bool = False
    """Scale the shares to sum to 1."""
    pack: Packing | None = None
    """How documents become rows, in place of `defaults.pack`."""
    lr: LearningRate = LearningRate()
    until: TokenCount | None = None
    """Train only the rows of its first so many tokens; all of them are packed. What the parent stage of an ablation has."""
    mix: dict[str, Part] = Field(min_length=1)

    @property
    def batch_rows(self) -> int:
        """Rows of one global batch."""
        return self.global_batch // self.seq_len

    def faults(self) -> list[Fault]:
        """What does not add up; `Mixture` raises it, so that one phase's faults hide no other's."""
        faults: list[Fault] = []
        if self.global_batch % self.seq_len:
            down = max(self.global_batch // self.seq_len, 1) * self.seq_len
            faults.append(
                (
                    ("global_batch",),
                    f"E107 global_batch {self.global_batch} is not a multiple of seq_len {self.seq_len} "
                    f"hint: {down} is {down // self.seq_len} rows",
                )
            )
        for key, tokens in (("tokens", self.tokens), ("until", self.until)):
            if tokens is not None and tokens < self.global_batch:
                faults.append(
                    (
                        (key,),
                        f"E109 {tokens} tokens are less than one global batch of {self.global_batch} "
                        f"hint: raise {key} or lower global_batch",
                    )
                )
        if self.until is not None and self.tokens is not None and self.until > self.tokens:
            faults.append((("until",), f"E109 {self.until:,} tokens of a phase of {self.tokens:,}"))
        faults += [(("mix",), text) for text in self._mix_faults()]
        return faults

    def _mix_faults(self) -> Iterable[str]:
        shares = [part for part in self.mix.values() if isinstance(part, float)]
        rests = sum(part == "rest" for part in self.mix.values())
        absolute = len(self.mix) - len(shares) - rests
        total = sum(shares)
        if rests > 1:
            yield f"E105 {rests} sources take the `rest` hint: at most one can"
        if absolute and shares and not rests:
            yield "E105 shares and {tokens} or {epochs} in one phase hint: let one source take the `rest`"
        if self.normalize and (rests or not shares):
            yield "E105 normalize has nothing to scale hint: it goes with a phase of shares only"
        elif shares and not absolute and not rests and not self.normalize and abs(total - 1) > SHARE_TOLERANCE:
            yield (
                f"E101 shares sum to {total:.8g}, not 1 hint: {abs(1 - total):.6g} too "
                f"{'much' if total > 1 else 'little'}; or give one source `rest`, or set normalize: true"
            )
        elif rests and total >= 1:
            yield f"E101 shares sum to {total:.8g} and leave nothing for the `rest`"
        if self.tokens is None and (shares or rests):
            yield "E109 shares and `rest` need the phase's `tokens` hint: add tokens: 20M, or use {epochs: 1}"
        if self.tokens is not None and not shares and not rests:
            yield "E105 `tokens` of a phase whose amounts are all absolute hint: leave it out, or add a `rest`"
        fixed = sum(part.tokens for part in self.mix.values() if isinstance(part, TokensPart))
        if self.tokens is not None and rests and total < 1 and fixed + total * self.tokens >= self.tokens:
            yield f"E109 the other amounts take all of the phase's {self.tokens} tokens; nothing is the `rest`"


class Position(Settings):
    """A place in the curriculum."""

    stage: PhaseName
    at: TokenCount = Field(examples=["10B"])
    """Tokens from the beginning of that stage; rounded down to whole global batches."""


class Ablation(Settings):
    """An annealing branch: from a place in a stage on, part of that stage's mix goes to what is tried out."""

    name: PhaseName
    from_: Position = Field(alias="from")
    tokens: TokenCount = Field(examples=["1B"])
    """Length of the branch."""
    base: float = Field(ge=0, lt=1, allow_inf_nan=False)
    """Share that keeps the stage's own mix."""
    candidate: dict[str, Share] = Field(min_length=1)
    """{source: share} of what is tried out; with `base` they sum to 1."""
    lr: LearningRate = LearningRate(phase="decay")

    def faults(self, stages: Sequence[Phase]) -> list[Fault]:
        """What does not fit the stages; paths below the ablation."""
        faults: list[Fault] = []
        total = self.base + sum(self.candidate.values())
        if abs(total - 1) > SHARE_TOLERANCE:
            faults.append((("candidate",), f"E101 base and candidates sum to {total:.8g}, not 1"))
        stage = next((s for s in stages if s.name == self.from_.stage), None)
        if stage is None:
            known = ", ".join(s.name for s in stages)
            faults.append((("from", "stage"), f"E102 unknown stage `{self.from_.stage}` hint: stages: {known}"))
            return faults
        if any(s.name == self.name for s in stages):
            faults.append((("name",), f"E107 a stage is named `{self.name}` too"))
        if stage.tokens is not None and self.from_.at > stage.tokens:
            faults.append((("from", "at"), f"E109 stage `{stage.name}` has {stage.tokens:,} tokens"))
        if self.from_.at < stage.global_batch or self.tokens < stage.global_batch:
            where = ("from", "at") if self.from_.at < stage.global_batch else ("tokens",)
            faults.append((where, f"E109 less than one global batch of `{stage.name}`, {stage.global_batch:,} tokens"))
        if self.base and any(not isinstance(part, float) and part != "rest" for part in stage.mix.values()):
            faults.append((("base",), f"E105 `{stage.name}` is not given in shares hint: base: 0, all in `candidate`"))
        return faults


def lr_faults(stages: Sequence[Phase]) -> list[Fault]:
    """E110: learning rates that would jump back to the peak inside or at the end of a decay, as the trainer judges it.

    A rise (`warmup_steps`) opens a new schedule: mid-training after a decay is stable with one, as a second decay is.
    """
    faults: list[Fault] = []
    decaying: Phase | None = None
    for i, phase in enumerate(stages):
        kind, rises = phase.lr.phase, bool(phase.lr.warmup_steps)
        where = ("stages", i, "lr")
        if decaying is not None and not rises and kind == "stable":
            faults.append(
                (
                    where,
                    f"E110 the learning rate is stable after it decayed in `{decaying.name}` "
                    "hint: put stable phases first, make this one `full`, or rewarm it with warmup_steps",
                )
            )
        elif decaying is not None and not rises and kind == "decay":
            if decaying.lr.phase == "full":
                faults.append(
                    (
                        where,
                        "E110 a decay after a `full` phase would jump back to the peak "
                        "hint: give it warmup_steps, or make both one decay",
                    )
                )
            elif None not in (phase.lr.shape, decaying.lr.shape) and phase.lr.shape != decaying.lr.shape:
                faults.append(
                    (
                        where,
                        f"E110 one decay with two shapes, {decaying.lr.shape} in `{decaying.name}` and {phase.lr.shape} "
                        "hint: give the shape once, in the first phase of the decay",
                    )
                )
        decaying = phase if kind != "stable" else (None if rises else decaying)
    return faults


def known_source(sources: Mapping[str, object], split: Iterable[str], name: str) -> bool:
    """Whether a stage may name this: a source, or a child of one that is split."""
    return name in sources or any(name.startswith(f"{parent}.") and len(name) > len(parent) + 1 for parent in split)
