"""The settings of one import of a recipe: text or tokens that gristmill did not curate, mixed like any other source.

`curate` reads the text of JSONL and Parquet files (stage `imports.text`), `tokenize` the token stores of Megatron and
datatrove (stage `tokens`). What a document lacks is null; `warc_file` is its file's name and `warc_offset` its number in it.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from gristmill.core.settings import Settings

FORMATS = ("jsonl", "parquet", "megatron", "datatrove")
TEXT_FORMATS = ("jsonl", "parquet")
KNOWN_COLUMNS = ("text", "id", "url", "date", "language", "quality", "dup_cluster", "dup_count")
"""Targets with a meaning; any other target is an extra column, which filters and `split_by` may name."""
TAKEN_COLUMNS = frozenset(
    {"source", "bytes", "offset", "length", "warc_file", "warc_offset", "warc_length", "import_id"}
)

ColumnType = Literal["string", "int64", "double", "bool"]
Scalar = bool | int | float | str


class Import(Settings):
    """Files of one format that become one source's documents, and which of their columns mean what."""

    jsonl: str | None = None
    """A glob of JSON Lines files: .jsonl, .jsonl.gz or .jsonl.zst (told by their first bytes, not their names)."""
    parquet: str | None = None
    """A glob of Parquet files, one document a row."""
    megatron: str | None = None
    """A glob of Megatron's .idx files; their .bin lie beside them."""
    datatrove: str | None = None
    """A glob of .ds files of datatrove's DocumentTokenizer, which nanotron reads; their .ds.index lie beside them. Packed
    rows of `mix export datatrove` are no documents and are refused."""
    columns: dict[str, str] = {}
    """Target column: the file's column, dotted where it is nested (`url: meta.url`). `text` is `text` where it is not named.
    Targets are text, id, url, date, language, quality, dup_cluster, dup_count, or any name of your own."""
    types: dict[str, ColumnType] = {}
    """Types of columns of your own, for JSONL: string where it is not named. Parquet's are the file's."""
    constants: dict[str, Scalar] = {}
    """Columns with one value for all documents, such as `language: fr`."""
    max_line_bytes: int = Field(64 << 20, ge=1, le=1 << 30)
    """Longer lines of JSONL are quarantined unread."""
    tokenizer_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Token stores: the digest of the tokenizer.json that made their ids. The recipe's tokenizer must be that file (E106)."""
    vocab_size: int | None = Field(None, ge=1, le=1 << 31)
    """Token stores: the size of the vocabulary that made their ids, where no digest is known (E106 when it differs)."""

    @model_validator(mode="after")
    def _one_format(self) -> Import:
        named = [f for f in FORMATS if getattr(self, f) is not None]
        if len(named) != 1:
            raise ValueError(
                f"an import has {' and '.join(named) if named else 'no files'} hint: name one of {', '.join(FORMATS)}"
            )
        targets = {*self.columns, *self.constants}
        if both := sorted(set(self.columns) & set(self.constants)):
            raise ValueError(f"`{both[0]}` is a column and a constant hint: leave one out")
        if taken := sorted(targets & TAKEN_COLUMNS):
            raise ValueError(f"`{taken[0]}` is a column of gristmill's own hint: give it another name")
        odd = [t for t in targets if not t.isidentifier() or len(t) > 64]
        if odd:
            raise ValueError(f"{odd[0][:80]!r} is no name of a column hint: letters, digits and _")
        if unknown := sorted(set(self.types) - set(self.extra)):
            raise ValueError(f"`types` names `{unknown[0]}`, which is no column of your own hint: add it to `columns`")
        if self.text:
            if self.tokenizer_sha256 is not None or self.vocab_size is not None:
                raise ValueError("tokenizer_sha256 and vocab_size are of token stores hint: leave them out")
        elif self.columns:
            raise ValueError("a token store has no columns hint: `constants` gives all its documents one value")
        elif self.tokenizer_sha256 is None and self.vocab_size is None:
            raise ValueError(
                "E106 nobody says which tokenizer made these ids hint: tokenizer_sha256: of its tokenizer.json, "
                "or at least its vocab_size:"
            )
        return self

    @property
    def format(self) -> str:
        return next(f for f in FORMATS if getattr(self, f) is not None)

    @property
    def text(self) -> bool:
        return self.format in TEXT_FORMATS

    @property
    def glob(self) -> str:
        return str(getattr(self, self.format))

    @property
    def extra(self) -> list[str]:
        """Names of the columns of one's own, sorted: so the bytes do not hang on the order in the YAML."""
        return sorted({*self.columns, *self.constants} - {*KNOWN_COLUMNS})

    def for_task(self) -> dict[str, Any]:
        """What decides the bytes made of one file: everything but the glob that found it."""
        data = self.model_dump(mode="json", exclude=set(FORMATS), exclude_defaults=True)
        return {"format": self.format, **data}
