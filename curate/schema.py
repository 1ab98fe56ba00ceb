"""The `curate:` block of a recipe: what is extracted, measured, decided, deduplicated and scored, with units."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from gristmill.core.settings import Settings

Fraction = float


class Extract(Settings):
    """HTML to main text."""

    engine: Literal["trafilatura"] = "trafilatura"
    """trafilatura 2.3 `fast`, without its process-wide duplicate cache and wall-clock limit."""
    favor: Literal["balanced", "precision", "recall"] = "balanced"
    tables: bool = True
    comments: bool = False
    max_html_bytes: int = Field(20_000_000, ge=1)
    """Larger decoded payloads are dropped as `extract.too_large` (bytes)."""
    max_nodes: int = Field(400_000, ge=1)
    """Pages with more `<` characters than this are dropped as `extract.too_many_nodes`."""
    min_chars: int = Field(1, ge=0)
    """Shorter texts are dropped as `extract.no_text` (characters)."""
    cpu_seconds: int = Field(60, ge=1)
    """A page that burns more CPU than this in two fresh processes is quarantined as hung: a backstop, far above the tail (p99 0.3 s)."""
    memory_mb: int = Field(3000, ge=512)
    """Address space of one extraction process (MiB)."""
    recycle_pages: int = Field(2000, ge=1)
    """An extraction process is replaced after this many pages (trafilatura leaks)."""


class Urls(Settings):
    """URL rules with datatrove's lists (its package data, read at run time)."""

    lists: Literal["datatrove", "off"] = "datatrove"
    soft_words: int = Field(2, ge=1)
    """Drop a URL with at least this many distinct-position soft words (datatrove's `soft_word_threshold`)."""


class Language(Settings):
    """fastText lid.176 on the first `chars` characters of the extracted text."""

    keep: list[str] | Literal["all"] = "all"
    """Languages to keep, as fastText labels (ISO 639-1 mostly)."""
    min_score: float = Field(0.65, ge=0, le=1)
    """Keep a document when its score is greater than this (FineWeb's 0.65 is exclusive)."""
    min_scores: dict[str, float] = {}
    """Per-language thresholds that replace `min_score`."""


class C4Rewrite(Settings):
    """Line rules of C4 that rewrite the text (datatrove's C4QualityFilter); measured beside the raw text as `c4.*`."""

    min_words_per_line: int = 3
    max_word_chars: int = 1000
    terminal_punctuation: bool = False
    """Drop lines without terminal punctuation (FineWeb: off)."""
    drop_javascript: bool = True
    drop_policy: bool = True
    remove_citations: bool = True


class Gopher(Settings):
    """Gopher quality and repetition rules, datatrove's semantics. `null` switches a rule off."""

    min_words: int | None = 50
    max_words: int | None = 100_000
    min_avg_word_length: float | None = 3
    max_avg_word_length: float | None = 10
    max_hash_ratio: Fraction | None = 0.1
    max_ellipsis_ratio: Fraction | None = 0.1
    max_bullet_lines: Fraction | None = 0.9
    max_ellipsis_lines: Fraction | None = 0.3
    min_alpha_words: Fraction | None = 0.8
    min_stop_words: int | None = 2
    max_dup_lines: Fraction | None = 0.30
    max_dup_paragraphs: Fraction | None = 0.30
    max_dup_line_chars: Fraction | None = 0.20
    max_dup_paragraph_chars: Fraction | None = 0.20
    max_top_ngram_chars: dict[int, Fraction] = {2: 0.20, 3: 0.18, 4: 0.16}
    """By n: 2, 3 and 4 are measured."""
    max_dup_ngram_chars: dict[int, Fraction] = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    """By n: 5 to 10 are measured."""

    @field_validator("max_top_ngram_chars", "max_dup_ngram_chars")
    @classmethod
    def _measured(cls, value: dict[int, Fraction], info: ValidationInfo) -> dict[int, Fraction]:
        sizes = range(2, 5) if info.field_name == "max_top_ngram_chars" else range(5, 11)
        unknown = sorted(set(value) - set(sizes))
        if unknown:
            raise ValueError(f"n-grams of {unknown[0]} words are not measured hint: use {sizes[0]} to {sizes[-1]}")
        return value


class C4(Settings):
    """C4 document rules after its line rules, datatrove's semantics."""

    min_sentences: int | None = 5
    drop_lorem_ipsum: bool = True
    drop_curly_bracket: bool = True


class FineWeb(Settings):
    """FineWeb's own rules, datatrove's semantics; on the C4-rewritten text where C4 applies."""

    min_line_punctuation: Fraction | None = 0.12
    max_short_lines: Fraction | None = 0.67
    short_line_chars: int = 30
    """Belongs to measuring: lines of at most this many characters are short."""
    max_dup_line_chars: Fraction | None = 0.01
    max_newlines_per_word: Fraction | None = 0.3


class Rules(Settings):
    """Rule sets, each named by whose semantics it follows. `null` switches a set off."""

    gopher: Gopher | None = Field(None, alias="gopher@datatrove")
    c4: C4 | None = Field(None, alias="c4@datatrove")
    fineweb: FineWeb | None = Field(None, alias="fineweb@datatrove")


class MinHash(Settings):
    """Near-duplicate detection: word n-grams, datasketch's affine32 scheme."""

    bands: int = Field(14, ge=1, le=256)
    rows: int = Field(8, ge=1, le=64)
    ngram: int = Field(5, ge=1, le=50)
    seed: int = 1
    verify: float | None = Field(0.70, ge=0, le=1)
    """A document is removed only if its own estimated Jaccard to the kept one reaches this; null = whole component."""


class Dedup(Settings):
    """Exact, then near duplicates."""

    exact: bool = True
    minhash: MinHash | None = MinHash()
    keep: list[Literal["longest", "shortest", "earliest", "latest"]] = ["longest"]
    """Which member of a cluster stays, in order of priority; ties go to the smallest id."""


class Quality(Settings):
    """A fastText quality model, trained by `gristmill quality train`; it enters a run by its digest."""

    model: str
    """Path of the .ftz/.bin file: absolute, or relative to the recipe or else to the working directory."""
    label: str = "hq"
    min_score: float = Field(0.0, ge=0, le=1)
    """Documents whose probability of `label` is below this are dropped as `quality.low_score`."""


class Curate(Settings):
    """From WARC records to curated Parquet."""

    extract: Extract = Extract()
    urls: Urls = Urls()
    language: Language = Language()
    c4: C4Rewrite = C4Rewrite()
    rules: Rules = Rules()
    dedup: Dedup = Dedup()
    quality: Quality | None = None
