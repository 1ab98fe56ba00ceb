"""Sources of a mixture and what is held out of them, as the YAML says it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from gristmill.core.settings import Settings
from gristmill.mixes.schema_amounts import Epochs, Name, TokenCount

MAX_WEIGHT = 1000


class Source(Settings):
    """A named set of documents. Without filter and path: all documents of the token stores."""

    filter: str | None = None
    """A condition over the columns of docs.parquet, e.g. `language == 'en' and quality >= 0.5` (core.expression)."""
    path: str | None = Field(None, min_length=1, max_length=1000)
    """A glob over the input-relative WARC names: only documents from these files."""
    split_by: str | None = Field(None, min_length=1, max_length=64)
    """A column of docs.parquet: the source fans out into one child per value, NAME.VALUE (NAME.none for nulls). A stage
    names children, or the source itself, which then splits by the children's available tokens."""
    max_epochs: Epochs | None = None
    """This source's own limit in place of `defaults.max_epochs`; of each child where it is split."""
    group: Name | None = None
    """A line of the plan's table that sums the sources of this name."""
    loss_weight: float = Field(1.0, ge=0, lt=1e6, allow_inf_nan=False)
    """Weight of its tokens' losses in every stage; a run's `stages.NAME.loss_weights` goes before it. No row changes."""
    rehydrate: dict[int, int] | None = None
    """{copies: weight}: a document that had so many near duplicates or more (`dup_count`) is drawn so many times in each
    epoch, 0 times included; below the first number, once. FineWeb2 gives back what deduplication took from documents
    that people copied for a reason (arXiv 2506.20920): {1: 1, 2: 2, 5: 3}."""

    @field_validator("filter")
    @classmethod
    def _filter_compiles(cls, text: str | None) -> str | None:
        """Columns beside the fixed ones are known once there are stores; their filters are checked then."""
        if text is not None:
            from gristmill.core.expression import ExpressionError, compile_expression

            try:
                compile_expression(text, filter_schema(), closed=False)
            except ExpressionError as error:
                raise ValueError(f"E102 {error.message}{f' hint: {error.hint}' if error.hint else ''}") from None
        return text

    @field_validator("rehydrate")
    @classmethod
    def _weights_are_whole(cls, weights: dict[int, int] | None) -> dict[int, int] | None:
        if weights is not None:
            if not weights:
                raise ValueError("E107 no thresholds hint: {1: 1, 2: 2, 5: 3}")
            for copies, weight in weights.items():
                if copies < 1:
                    raise ValueError(f"E107 {copies} copies hint: a document alone has 1")
                if not 0 <= weight <= MAX_WEIGHT:
                    raise ValueError(f"E107 weight {weight} hint: whole numbers up to {MAX_WEIGHT}")
            return dict(sorted(weights.items()))
        return weights


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


def filter_schema() -> Any:
    """The fixed columns that a filter may name: those of docs.parquet but the place in tokens.bin."""
    import pyarrow as pa

    from gristmill.core.tokshards import TOKEN_DOC_SCHEMA

    return pa.schema([f for f in TOKEN_DOC_SCHEMA if f.name != "offset"])
