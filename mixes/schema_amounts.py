"""Amounts in a mixture: numbers of tokens with units, epochs, and what one source gets of a stage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, StringConstraints, Tag

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
Share = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Packing = Literal["bfd", "bfd-truncate", "concat"]
"""`bfd` (best fit decreasing) cuts only documents longer than a row, and drops nothing; `concat` cuts wherever a row ends;
`bfd-truncate` drops what a document has beyond one row."""


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
    Annotated[Share, Tag("share")]
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
