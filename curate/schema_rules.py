"""The `curate.rules` and `curate.c4` blocks: thresholds of every rule set, by whose semantics it follows."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from gristmill.core.settings import Settings
from gristmill.curate.schema_types import Average, Count, Fraction, Positive, ordered


class C4Rewrite(Settings):
    """Line rules of C4 that rewrite the text (datatrove's C4QualityFilter); measured beside the raw text as `c4.*`."""

    min_words_per_line: Count = 3
    max_word_chars: Positive = 1000
    terminal_punctuation: bool = False
    """Drop lines without terminal punctuation (FineWeb: off)."""
    drop_javascript: bool = True
    drop_policy: bool = True
    remove_citations: bool = True


def _measured(n: int, low: int, high: int) -> int:
    if not low <= n <= high:
        raise ValueError(f"n-grams of {n} words are not measured hint: use {low} to {high}")
    return n


def _top_size(n: int) -> int:
    return _measured(n, 2, 4)


def _dup_size(n: int) -> int:
    return _measured(n, 5, 10)


class Gopher(Settings):
    """Gopher quality and repetition rules, datatrove's semantics. `null` switches a rule off."""

    min_words: Count | None = 50
    max_words: Count | None = 100_000
    min_avg_word_length: Average | None = 3
    max_avg_word_length: Average | None = 10
    max_hash_ratio: Fraction | None = 0.1
    max_ellipsis_ratio: Fraction | None = 0.1
    max_bullet_lines: Fraction | None = 0.9
    max_ellipsis_lines: Fraction | None = 0.3
    min_alpha_words: Fraction | None = 0.8
    min_stop_words: Annotated[int, Field(strict=True, ge=0, le=8)] | None = 2
    """Of Gopher's eight: the, be, to, of, and, that, have, with."""
    max_dup_lines: Fraction | None = 0.30
    max_dup_paragraphs: Fraction | None = 0.30
    max_dup_line_chars: Fraction | None = 0.20
    max_dup_paragraph_chars: Fraction | None = 0.20
    max_top_ngram_chars: dict[Annotated[int, AfterValidator(_top_size)], Fraction] = {2: 0.20, 3: 0.18, 4: 0.16}
    """By n: 2, 3 and 4 are measured."""
    max_dup_ngram_chars: dict[Annotated[int, AfterValidator(_dup_size)], Fraction] = {
        5: 0.15,
        6: 0.14,
        7: 0.13,
        8: 0.12,
        9: 0.11,
        10: 0.10,
    }
    """By n: 5 to 10 are measured."""

    @model_validator(mode="after")
    def _limits_in_order(self) -> Gopher:
        ordered(self, ("min_words", "max_words"), ("min_avg_word_length", "max_avg_word_length"))
        return self


class C4(Settings):
    """C4 document rules after its line rules, datatrove's semantics."""

    min_sentences: Count | None = 5
    drop_lorem_ipsum: bool = True
    drop_curly_bracket: bool = True


class FineWeb(Settings):
    """FineWeb's own rules, datatrove's semantics; on the C4-rewritten text where C4 applies."""

    min_line_punctuation: Fraction | None = 0.12
    max_short_lines: Fraction | None = 0.67
    short_line_chars: Positive = 30
    """Belongs to measuring: lines of at most this many characters are short."""
    max_dup_line_chars: Fraction | None = 0.01
    max_newlines_per_word: Average | None = 0.3
    """Newlines / words; may exceed 1."""


class Rules(Settings):
    """Rule sets, each named by whose semantics it follows. `null` switches a set off."""

    gopher: Gopher | None = Field(None, alias="gopher@datatrove")
    c4: C4 | None = Field(None, alias="c4@datatrove")
    fineweb: FineWeb | None = Field(None, alias="fineweb@datatrove")
