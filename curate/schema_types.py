"""Types of settings that several blocks of the recipe's `curate:` share, and the check that limits are in order."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from gristmill.core.settings import Settings

Fraction = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
"""A share of a document's words, lines or characters, or a probability."""
Count = Annotated[int, Field(strict=True, ge=0)]
Positive = Annotated[int, Field(strict=True, ge=1)]
Average = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
"""An average that may exceed 1: characters a word, newlines a word."""


def ordered(value: Settings, *pairs: tuple[str, str]) -> None:
    """Raise where a lower limit is above its upper one; the fault stands at the upper one."""
    faults: list[InitErrorDetails] = []
    for low, high in pairs:
        a, b = getattr(value, low), getattr(value, high)
        if a is not None and b is not None and a > b:
            text = f"{high} {b} is less than {low} {a} hint: it would drop every document; swap them or raise {high}"
            kind = PydanticCustomError("curate", "{message}", {"message": text})
            faults.append(InitErrorDetails(type=kind, loc=(high,), input=b))
    if faults:
        raise ValidationError.from_exception_data(type(value).__name__, faults)
