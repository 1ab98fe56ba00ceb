"""The mixture YAML: which documents are sources, what is held out, and how much of each source every phase takes.

A curriculum stage (`stages:`) is called a phase everywhere in code and output. Amounts are tokens, written as a number
or with a decimal suffix: 20M, 2.5B (K, M, B, T = 1e3, 1e6, 1e9, 1e12). Faults carry the codes E101 … E110; those that
need the token counts (E103, E104, parts of E109) are found by `mixes.plan`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from gristmill.core.settings import Settings

SHARE_TOLERANCE = 1e-6  # shares are written by hand; 1e-6 of 10T tokens is 10M, below any rounding that matters
MAX_EPOCHS = 1000.0  # an epoch is an int16 in the provenance, and no one means more
UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}

Fault = tuple[tuple[str | int, ...], str]
"""Where (a path below the model) and what, with ` hint: ` between the message and its remedy."""


def parse_tokens(value: Any) -> Any:
    """`20M` or 20_000_000 -> 20000000. Raises ValueError (E107) on another unit or a fraction of a token."""
    number = value
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", value.replace("_", "").strip())
        if match is None:
            raise ValueError(f"E107 {value[:40]!r} is not a number of tokens hint: write 20000000 or 20M")
        if match[2] not in UNITS:
            near = match[2].upper() if match[2].upper() in UNITS else {"G": "B"}.get(match[2].upper())
            remedy = f"write {match[1]}{near}" if near else "units are K, M, B, T (1e3, 1e6, 1e9, 1e12)"
            raise ValueError(f"E107 unknown unit {match[2][:10]!r} hint: {remedy}")
        whole, _, part = match[1].partition(".")
        scale = UNITS[match[2]]
        if len(whole) > 18 or len(part) > 18:
            raise ValueError("E107 a number of tokens has at most 18 digits")
        number, left = divmod(int(whole + part) * scale, 10 ** len(part))
        if left:
            raise ValueError(f"E107 {value} is a fraction of a token")
    elif isinstance(value, float) and value.is_integer():
        number = int(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError("E107 expected a number of tokens hint: write 20000000 or 20M")
    if not 0 < number < 1 << 60:
        raise ValueError("E109 a number of tokens must be positive and below 2^60")
    return number


TokenCount = Annotated[int, BeforeValidator(parse_tokens, json_schema_input_type=int | str)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
PhaseName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Epochs = Annotated[float, Field(gt=0, le=MAX_EPOCHS, allow_inf_nan=False)]


class Defaults(Settings):
    """What holds for every source and phase that says nothing else."""

    max_epochs: Epochs = 4.0
    """Times a document may be seen over all phases. Up to 4 cost almost nothing (Muennighoff et al., arXiv 2305.16264)."""
    on_short: Literal["error", "repeat"] = "error"
    """When a source has too few tokens for its limit: stop with E104, or repeat it beyond the limit (warned as W201)."""
    pack: Literal["bfd", "concat"] = "bfd"
    """`bfd` cuts only documents longer than a row (best fit decreasing); `concat` cuts wherever a row ends."""
    max_docs_per_row: int = Field(512, ge=1)
    """Pieces of documents in one row, at most; keeps best-fit rows of crumbs from growing without bound."""


class Source(Settings):
    """A named set of documents. Without filter and path: all documents of the token stores."""

    filter: str | None = None
    """A condition over the columns of docs.parquet, e.g. `language == 'en' and quality >= 0.5` (core.expression)."""
    path: str | None = Field(None, min_length=1, max_length=1000)
    """A glob over the input-relative WARC names: only documents from these files."""
    max_epochs: Epochs | None = None
    """This source's own limit in place of `defaults.max_epochs`."""

    @field_validator("filter")
    @classmethod
    def _filter_compiles(cls, text: str | None) -> str | None:
        if text is not None:
            from gristmill.core.expression import ExpressionError, compile_expression

            try:
                compile_expression(text, filter_schema())
            except ExpressionError as error:
                raise ValueError(f"E102 {error.message}{f' hint: {error.hint}' if error.hint else ''}") from None
        return text


class HeldOutAmount(Settings):
    """How much of each source is held out."""

    docs: float = Field(0.001, ge=0, lt=1, allow_inf_nan=False)
    """Fraction of its near-duplicate clusters, chosen by hash."""
    max_tokens: TokenCount | None = None
    """Tokens of one source, at most."""


class HeldOut(Settings):
    """Documents that no phase trains on."""

    per_source: HeldOutAmount = HeldOutAmount()
    key: Literal["dup_cluster", "id"] = "dup_cluster"
    """Whole near-duplicate clusters are held out, or a copy of a held-out document would be trained on."""


class LearningRate(Settings):
    """What the learning rate does in a phase; the trainer reads it."""

    phase: Literal["stable", "decay", "full"] = "stable"
    shape: Literal["linear", "cosine", "1-sqrt"] | None = None
    to: float | None = Field(None, ge=0, le=1)
    """Where a decay ends, as a fraction of the peak."""
    warmup_steps: int | None = Field(None, ge=0)


class TokensPart(Settings):
    """So many tokens of a source."""

    tokens: TokenCount


class EpochsPart(Settings):
    """So many passes over a source."""

    epochs: Epochs


def _part_kind(value: Any) -> str | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "share"
    if value == "rest":
        return "rest"
    keys = (
        set(value) if isinstance(value, Mapping) else set(value.model_fields_set if isinstance(value, Settings) else ())
    )
    return next(iter(keys)) if keys in ({"tokens"}, {"epochs"}) else None


Part = Annotated[
    Annotated[float, Field(gt=0, allow_inf_nan=False), Tag("share")]
    | Annotated[Literal["rest"], Tag("rest")]
    | Annotated[TokensPart, Tag("tokens")]
    | Annotated[EpochsPart, Tag("epochs")],
    Discriminator(
        _part_kind,
        custom_error_type="mixture_part",
        custom_error_message="E107 expected an amount hint: a share like 0.3, {tokens: 20M}, {epochs: 1.5} or rest",
    ),
]
"""A source's amount in one phase: share of the phase's tokens, tokens, epochs, or what the others leave."""


class Phase(Settings):
    """One curriculum stage: whole global batches of rows, drawn from the sources in fixed proportions."""

    name: PhaseName
    tokens: TokenCount | None = None
    """Positions trained on (seq_len per row). Left out, and derived, when every amount is {tokens} or {epochs}."""
    seq_len: int = Field(ge=2, le=1 << 24)
    """Tokens of a sequence; a stored row has one more, so that inputs = row[:-1] and targets = row[1:]."""
    global_batch: TokenCount
    """Tokens of one optimizer step, a multiple of seq_len."""
    normalize: bool = False
    """Scale the shares to sum to 1."""
    lr: LearningRate = LearningRate()
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
        if self.tokens is not None and self.tokens < self.global_batch:
            faults.append(
                (
                    ("tokens",),
                    f"E109 {self.tokens} tokens are less than one global batch of {self.global_batch} "
                    "hint: raise tokens or lower global_batch",
                )
            )
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


class Mixture(Settings):
    """One mixture file: sources, held-out share and the phases in curriculum order."""

    gristmill_mix: Literal[1]
    """Version of this file's format."""
    seed: int = Field(0, ge=0, lt=1 << 63)
    """Decides the order of documents and rows, and what is held out."""
    defaults: Defaults = Defaults()
    sources: dict[Name, Source] = Field(min_length=1)
    heldout: HeldOut | None = None
    stages: list[Phase] = Field(min_length=1)

    def limit(self, source: str) -> float:
        """Epochs that a source may reach over all phases."""
        own = self.sources[source].max_epochs
        return self.defaults.max_epochs if own is None else own

    @model_validator(mode="after")
    def _phases_fit_sources(self) -> Mixture:
        faults: list[Fault] = []
        known = ", ".join(self.sources)
        seen: set[str] = set()
        decaying = previous = None
        for i, phase in enumerate(self.stages):
            faults += [(("stages", i, *loc), text) for loc, text in phase.faults()]
            for source in phase.mix:
                if source not in self.sources:
                    faults.append(
                        (("stages", i, "mix", source), f"E102 unknown source `{source}` hint: sources: {known}")
                    )
            if phase.name in seen:
                faults.append((("stages", i, "name"), f"E107 a second phase named `{phase.name}`"))
            seen.add(phase.name)
            if decaying and phase.lr.phase == "stable":
                faults.append(
                    (
                        ("stages", i, "lr"),
                        f"E110 the learning rate is stable after it decayed in `{decaying}` "
                        "hint: put stable phases first, or make this one `full`",
                    )
                )
            if previous == "full" and phase.lr.phase == "decay" and not phase.lr.warmup_steps:
                faults.append(
                    (
                        ("stages", i, "lr"),
                        "E110 a decay after a `full` phase would jump back to the peak "
                        "hint: give it warmup_steps, or make both one decay",
                    )
                )
            previous = phase.lr.phase
            if phase.lr.phase != "stable":
                decaying = phase.name
        raise_faults("Mixture", faults, self)
        return self


def raise_faults(title: str, faults: list[Fault], value: Any) -> None:
    """Raise faults below a model so that each keeps its own place in the YAML. Nothing happens when there are none."""
    if faults:
        details = [
            InitErrorDetails(type=PydanticCustomError("mixture", "{message}", {"message": text}), loc=loc, input=value)
            for loc, text in faults
        ]
        raise ValidationError.from_exception_data(title, details)


def filter_schema() -> Any:
    """The columns that a filter may name: those of docs.parquet but the place in tokens.bin."""
    import pyarrow as pa

    from gristmill.core.tokshards import TOKEN_DOC_SCHEMA

    return pa.schema([f for f in TOKEN_DOC_SCHEMA if f.name != "offset"])
