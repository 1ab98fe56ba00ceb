"""The `curate:` block of a recipe: what is extracted, measured, decided, deduplicated and scored, with units.

Larger blocks have files of their own, `schema_*.py`; everything can be imported from here.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gristmill.core.settings import Settings
from gristmill.curate.schema_extract import Extract
from gristmill.curate.schema_language import LID_LABELS, Language, language_label
from gristmill.curate.schema_policy import Decontaminate, FilePath, Optout, Pii, Urls
from gristmill.curate.schema_rules import (
    C4,
    C4Rewrite,
    FineWeb,
    Gopher,
    GopherDclm,
    LanguageRules,
    RefinedWeb,
    RefinedWebRewrite,
    Rules,
    UserRule,
)
from gristmill.curate.schema_steps import Block, Reader, Step
from gristmill.curate.schema_types import Fraction

__all__ = [
    "C4",
    "LID_LABELS",
    "Block",
    "C4Rewrite",
    "Curate",
    "Decontaminate",
    "Dedup",
    "Extract",
    "FineWeb",
    "Gopher",
    "GopherDclm",
    "Language",
    "LanguageRules",
    "MinHash",
    "Optout",
    "Pii",
    "Quality",
    "Reader",
    "RefinedWeb",
    "RefinedWebRewrite",
    "Rules",
    "Step",
    "Urls",
    "UserRule",
    "language_label",
]


class MinHash(Settings):
    """Near-duplicate detection: word n-grams, datasketch's affine32 scheme."""

    bands: int = Field(14, ge=1, le=256, strict=True)
    rows: int = Field(8, ge=1, le=64, strict=True)
    ngram: int = Field(5, ge=1, le=50, strict=True)
    seed: int = Field(1, ge=0, lt=1 << 32, strict=True)
    verify: Fraction | None = 0.70
    """A document is removed only if its own estimated Jaccard to the kept one reaches this; null = whole component."""


class Dedup(Settings):
    """Exact, then near duplicates."""

    exact: bool = True
    raw: bool = True
    """Of byte-identical pages in one input file only the first is extracted; the others are `extract.raw_duplicate` and
    count in no cluster. Acts while `exact` is on and `keep` asks for no date; comes before opt-outs and takedowns."""
    minhash: MinHash | None = MinHash()
    keep: list[Literal["longest", "shortest", "earliest", "latest"]] = ["longest"]
    """Which member of a cluster stays, in order of priority; ties go to the smallest id."""

    @property
    def raw_duplicates(self) -> bool:
        """Whether the pages of one file may be thinned out by their bytes without changing which texts remain."""
        return self.raw and self.exact and not {"earliest", "latest"} & set(self.keep)


class Quality(Settings):
    """A fastText quality model, trained by `gristmill quality train`; it enters a run by its digest."""

    model: str = Field(min_length=1)
    """Path of the .ftz/.bin file: absolute, or relative to the recipe or else to the working directory."""
    label: str = Field("hq", min_length=1)
    min_score: Fraction = 0.0
    """Documents whose probability of `label` is below this are dropped as `quality.low_score`."""


class Curate(Settings):
    """From WARC records to curated Parquet."""

    extract: Extract = Extract()
    urls: Urls = Urls()
    takedown: FilePath | None = None
    """A list of URLs, domains and document ids, one a line, that are dropped as `takedown.url`, `.domain` and `.id`."""
    optout: Optout | None = None
    """Statements against use that count; null: none does."""
    steps: list[Step] = []
    """datatrove's filters and formatters, in this order, between extraction and measuring."""
    language: Language = Language()
    c4: C4Rewrite = C4Rewrite()
    refinedweb: RefinedWebRewrite = RefinedWebRewrite()
    rules: Rules = Rules()
    dedup: Dedup = Dedup()
    quality: Quality | None = None
    decontaminate: Decontaminate | None = None
    pii: Pii | None = None
