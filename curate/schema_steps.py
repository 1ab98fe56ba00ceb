"""datatrove's own blocks in a recipe, checked when the file is loaded: `curate.steps`, `input.reader`, `extract.engine`."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from gristmill.core.settings import Settings


class Named(Settings):
    """A block of `datatrove.pipeline`, by its place in that package, with the arguments of its constructor."""

    block: str
    """Module and class under `datatrove.pipeline`, for example `filters.GopherQualityFilter`."""
    args: dict[str, Any] = {}
    """Arguments of its constructor."""

    @model_validator(mode="after")
    def _exists(self) -> Named:
        from gristmill.curate.blocks import faults

        found = faults(self.block, self.args)
        if found:
            details: list[InitErrorDetails] = []
            for loc, message, hint in found:
                kind = PydanticCustomError("curate", "{message}", {"message": f"{message} hint: {hint}"})
                details.append(InitErrorDetails(type=kind, loc=loc, input=None))
            raise ValidationError.from_exception_data("Block", details)
        return self


class Block(Named):
    """A filter or a formatter."""

    block: str = Field(pattern=r"^(filters|formatters)(\.[a-z][a-z0-9_]*)*\.[A-Z][A-Za-z0-9]*$")
    """For example `filters.GopherQualityFilter`. Only filters and formatters may stand here."""


class Reader(Named):
    """A reader of files, one task a file: rows of JSONL, Parquet, CSV or Arrow files take the place of WARC records."""

    block: str = Field(pattern=r"^readers(\.[a-z][a-z0-9_]*)*\.[A-Z][A-Za-z0-9]*$")
    """For example `readers.JsonlReader`, with `args: {text_key: content}`. `input.paths` names the files."""


class Extractor(Named):
    """An extractor, in the place of an extraction engine."""

    block: str = Field(pattern=r"^extractors(\.[a-z][a-z0-9_]*)*\.[A-Z][A-Za-z0-9]*$")
    """For example `extractors.Trafilatura`."""


class Step(Settings):
    """One step between extraction and measuring: it may drop pages and rewrite their text."""

    datatrove: Block
