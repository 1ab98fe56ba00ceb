"""The `curate.rules`, `curate.c4` and `curate.refinedweb` blocks: thresholds of every rule set, by whose semantics."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_serializer, model_validator

from gristmill.core.errors import UsageError
from gristmill.core.settings import Settings
from gristmill.curate.labels import rules_language
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


class RefinedWebRewrite(Settings):
    """Line rules of RefinedWeb that rewrite the text (DCLM's modifiers); measured beside the raw text as `refinedweb.*`."""

    max_newlines: Positive = 2
    """Longer runs of line feeds are cut to this many."""
    max_uppercase: Fraction = 0.5
    """Drop a line if a greater share of its characters is upper case."""
    max_numeric: Fraction = 0.999999
    """Drop a line if a greater share of its characters are digits (RefinedWeb: nothing but digits)."""
    drop_counters: bool = True
    """Drop lines that only count something, as `3 likes`."""
    min_words_per_line: Count = 2
    """Drop lines with fewer whitespace-separated words; empty lines stay."""
    cut_phrases: bool = True
    """Cut `items in cart`, a trailing `Read more` with three more characters and a leading `Sign-in` out of short lines."""
    phrase_line_words: Count = 10
    """A line of at most this many words is short."""


def _measured(n: int, low: int, high: int) -> int:
    if not low <= n <= high:
        raise ValueError(f"n-grams of {n} words are not measured hint: use {low} to {high}")
    return n


def _top_size(n: int) -> int:
    return _measured(n, 2, 4)


def _dup_size(n: int) -> int:
    return _measured(n, 5, 10)


class Gopher(Settings):
    """Gopher quality and repetition rules, datatrove's semantics. `null`, or 0 but for n-grams, switches a rule off."""

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


class GopherDclm(Settings):
    """Gopher quality and repetition rules, DCLM's semantics (docs/metrics.md, `raw.dclm_*`). `null` switches a rule off."""

    min_words: Count | None = 50
    """Words that start with a letter or digit."""
    max_words: Count | None = 100_000
    min_avg_word_length: Average | None = 3
    max_avg_word_length: Average | None = 10
    max_symbol_ratio: Average | None = 0.1
    """Hash signs and ellipses per whitespace-separated word; may exceed 1."""
    max_bullet_lines: Fraction | None = 0.9
    max_ellipsis_lines: Fraction | None = 0.3
    max_nonalpha_words: Fraction | None = 0.2
    min_stop_words: Count | None = 2
    """Occurrences, in any case, of Gopher's eight."""
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
    def _limits_in_order(self) -> GopherDclm:
        ordered(self, ("min_words", "max_words"), ("min_avg_word_length", "max_avg_word_length"))
        return self


class RefinedWeb(Settings):
    """RefinedWeb's document rule after its line rules, DCLM's semantics. English only."""

    max_removed_words: Fraction | None = 0.05
    """Drop a document if the line rules took a greater share of its words."""


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


Set = Literal["gopher@datatrove", "c4@datatrove", "fineweb@datatrove", "gopher@dclm", "refinedweb@dclm"]
Group = Literal[
    "gopher.repetition@datatrove",
    "gopher.quality@datatrove",
    "c4@datatrove",
    "fineweb@datatrove",
    "gopher@dclm",
    "refinedweb@dclm",
]
"""What `order` arranges: the rule sets, Gopher's by datatrove in its two filters."""

MAX_STOP_WORDS = 63  # FineWeb-2's longest list


class LanguageRules(Settings):
    """What differs for one language: a score, stop words and any thresholds; what is not named stays the recipe's."""

    language_score: Fraction | None = None
    """Keep a document when its score is greater; `curate.language.min_scores` goes before."""
    stop_words: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=MAX_STOP_WORDS)
    ] = []
    """Replaces Gopher's eight for `gopher@datatrove`: words as the language's segmenter cuts them, case-sensitive."""
    gopher: Gopher | None = Field(None, alias="gopher@datatrove")
    c4: C4 | None = Field(None, alias="c4@datatrove")
    fineweb: FineWeb | None = Field(None, alias="fineweb@datatrove")
    gopher_dclm: GopherDclm | None = Field(None, alias="gopher@dclm")
    refinedweb: RefinedWeb | None = Field(None, alias="refinedweb@dclm")

    @field_validator("fineweb")
    @classmethod
    def _one_short_line(cls, block: FineWeb | None) -> FineWeb | None:
        if block is not None and "short_line_chars" in block.model_fields_set:
            raise ValueError(
                "short_line_chars is measured once for all languages hint: set it in the recipe's fineweb set"
            )
        return block

    @model_serializer
    def _only_what_is_set(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name in sorted(self.model_fields_set):
            value, key = getattr(self, name), type(self).model_fields[name].alias or name
            out[key] = value.model_dump(mode="json", exclude_unset=True) if isinstance(value, Settings) else value
        return out

    def overrides(self, name: str) -> dict[str, Any]:
        """The settings of a rule set that this language sets."""
        for field, info in type(self).model_fields.items():
            block = getattr(self, field)
            if info.alias == name and isinstance(block, Settings):
                return block.model_dump(exclude_unset=True)
        return {}


LABEL = re.compile(r"[A-Za-z]{2,8}([_-][A-Za-z0-9]{1,8}){0,3}")


def _label(label: str) -> str:
    if not LABEL.fullmatch(label):
        raise ValueError(f"`{label[:40]}` is no language label hint: labels look like fr or fra_Latn")
    return label


LanguageTable = dict[Annotated[str, AfterValidator(_label)], LanguageRules]
"""Language label -> what differs there."""

RESERVED = frozenset(
    [
        "gopher",
        "c4",
        "fineweb",
        "dclm",
        "refinedweb",
        "language",
        "url",
        "takedown",
        "optout",
        "robots",
        "warc",
        "record",
        "extract",
        "dedup",
        "decontaminate",
        "quality",
        "datatrove",
    ]
)
"""First parts of names of reasons that are taken."""


class UserRule(Settings):
    """A rule of your own: an expression over measured columns (docs/metrics.md); where it holds, a document is dropped."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,31}(\.[a-z0-9][a-z0-9_-]{0,47})+$")
    """The reason in the ledger, `mine.too_short`: a prefix of your own, a dot, a name."""
    drop_if: str = Field(min_length=1)
    """A condition as `raw.words < 20 and language == 'de'`; a comparison with a null is false."""

    @field_validator("name")
    @classmethod
    def _own_prefix(cls, name: str) -> str:
        if name.split(".")[0] in RESERVED:
            raise ValueError(f"`{name.split('.')[0]}.` names reasons of the rule sets hint: take a prefix of your own")
        return name

    @field_validator("drop_if")
    @classmethod
    def _compiles(cls, text: str) -> str:
        from gristmill.core.expression import compile_expression
        from gristmill.curate.columns import CONDITION_SCHEMA

        try:
            compile_expression(text, CONDITION_SCHEMA)
        except UsageError as error:
            raise ValueError(f"{error.message}{f' hint: {error.hint}' if error.hint else ''}") from None
        return text


class Rules(Settings):
    """Rule sets, each named by whose semantics it follows. `null` switches a set off."""

    gopher: Gopher | None = Field(None, alias="gopher@datatrove")
    c4: C4 | None = Field(None, alias="c4@datatrove")
    fineweb: FineWeb | None = Field(None, alias="fineweb@datatrove")
    gopher_dclm: GopherDclm | None = Field(None, alias="gopher@dclm")
    refinedweb: RefinedWeb | None = Field(None, alias="refinedweb@dclm")
    mine: list[UserRule] = []
    """Rules of your own, after the sets, in this order."""
    per_language: str | LanguageTable | None = None
    """What differs by language: inline, or the path of a table (.yaml, .json or .csv; docs/metrics.md), or a packaged one's name."""
    order: list[Group] = []
    """Sets in the order in which they decide; those not named follow in the order of the registry."""

    @model_validator(mode="after")
    def _sound(self) -> Rules:
        if self.c4 is not None and self.refinedweb is not None:
            raise ValueError("c4@datatrove and refinedweb@dclm both rewrite the text hint: switch one of them off")
        if len(set(self.order)) < len(self.order):
            raise ValueError("a rule set stands twice in `order` hint: name each once")
        names = [rule.name for rule in self.mine]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two rules are named {twice} hint: a name is a reason in the ledger; give each its own")
        return self

    @property
    def languages(self) -> LanguageTable:
        """The table, once a path has been read; empty without one."""
        assert not isinstance(self.per_language, str), "the recipe's loader reads the table"
        return self.per_language or {}

    def of_language(self, label: str | None) -> LanguageRules | None:
        """The table's entry for a label: the label itself, else lid.176's for the same language (fra_Latn: fr)."""
        table = self.languages
        return (table.get(label or "") or table.get(rules_language(label))) if table else None
