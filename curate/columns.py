"""Every measured column: its type, the family that is measured together, and its formula; docs/metrics.md prints it.

The first part of a name says which text a value describes: `raw` the extracted text, `c4` and `refinedweb` what the
line rules of those sets leave. A null says that the metric has no meaning there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

Family = Literal["size", "lines", "words", "ngrams", "layout", "c4", "dclm", "refinedweb"]

_TYPES = {"int": pa.int64(), "float": pa.float64(), "text": pa.string()}


@dataclass(frozen=True)
class Column:
    """One measured column."""

    name: str
    type: pa.DataType
    family: Family
    formula: str


# name | type | family | formula
_TABLE = """
raw.chars | int | size | len(text): characters (code points)
raw.dup_paragraphs | float | lines | paragraphs (text stripped, cut at 2 or more line feeds) that repeat an earlier one / paragraphs
raw.dup_paragraph_chars | float | lines | characters of those repeating paragraphs / len(text)
raw.dup_lines | float | lines | lines (cut at 1 or more line feeds) that repeat an earlier one / lines
raw.dup_line_chars | float | lines | characters of those repeating lines / len(text)
raw.bullet_lines | float | lines | lines (splitlines) whose first character after white space is • or - / lines
raw.ellipsis_lines | float | lines | lines (splitlines) that end in ... or … before white space / lines
raw.words | int | words | tokens of the language's segmenter, punctuation included
raw.nonsymbol_words | int | words | tokens with a character that is no punctuation
raw.avg_word_length | float | words | characters of those tokens / their number
raw.hash_ratio | float | words | count("#") / raw.words
raw.ellipsis_ratio | float | words | (count("...") + count("…")) / raw.words
raw.alpha_words | float | words | tokens with a letter (isalpha) / raw.words
raw.stop_words | int | words | distinct stop words among the tokens, case-sensitive; null where the language has no list
raw.top_2gram_chars | float | ngrams | characters of the most frequent 2-gram of tokens, joined by spaces, × its count / len(text)
raw.top_3gram_chars | float | ngrams | the same for 3-grams
raw.top_4gram_chars | float | ngrams | the same for 4-grams
raw.dup_5gram_chars | float | ngrams | characters of 5-grams of tokens that repeat an earlier one; after a hit the next 5 tokens are skipped / len(text)
raw.dup_6gram_chars | float | ngrams | the same for 6-grams
raw.dup_7gram_chars | float | ngrams | the same for 7-grams
raw.dup_8gram_chars | float | ngrams | the same for 8-grams
raw.dup_9gram_chars | float | ngrams | the same for 9-grams
raw.dup_10gram_chars | float | ngrams | the same for 10-grams
raw.nonblank_lines | int | layout | lines (cut at line feeds) with a character that is no white space
raw.line_punctuation | float | layout | those lines that end in terminal punctuation of some script / raw.nonblank_lines
raw.short_lines | float | layout | those lines of at most `short_line_chars` characters / raw.nonblank_lines
raw.repeated_line_chars | float | layout | characters of those lines that repeat an earlier one / characters without line feeds
raw.newlines_per_word | float | layout | line feeds / raw.words
c4.chars | int | c4 | len(c4.text)
c4.words | int | c4 | tokens of c4.text
c4.nonblank_lines | int | c4 | as raw.nonblank_lines, of c4.text
c4.line_punctuation | float | c4 | as raw.line_punctuation, of c4.text
c4.short_lines | float | c4 | as raw.short_lines, of c4.text
c4.repeated_line_chars | float | c4 | as raw.repeated_line_chars, of c4.text
c4.newlines_per_word | float | c4 | line feeds of c4.text / c4.words
c4.sentences | int | c4 | sentences of the lines that C4's line rules leave, each line at least one
c4.lorem_ipsum_line | int | c4 | first line with "lorem ipsum" that no earlier rule removes, non-blank lines counted from 1; null: none
c4.curly_bracket_line | int | c4 | first line with "{" that no earlier rule removes, counted so; null: none
c4.text | text | c4 | the text that C4's line rules leave
raw.dclm_words | int | dclm | pieces between spaces, tabs, line ends and NULs that start with a letter or digit (isalnum)
raw.dclm_tokens | int | dclm | whitespace-separated words (str.split)
raw.dclm_avg_word_length | float | dclm | characters of those words / raw.dclm_tokens
raw.dclm_symbol_ratio | float | dclm | (count("#") + count("...") + count(". . .") + count("…")) / raw.dclm_tokens
raw.dclm_nonalpha_words | float | dclm | those words without a letter / raw.dclm_tokens
raw.dclm_stop_words | int | dclm | occurrences of Gopher's eight stop words among them, lower-cased; null but for English
raw.dclm_bullet_lines | float | dclm | stripped non-empty lines (cut at line feeds) that start with ●, •, * or - / those lines
raw.dclm_ellipsis_lines | float | dclm | those lines that end in ..., . . . or … / those lines
raw.dclm_dup_lines | float | dclm | those lines that occur more than once, all copies counted / those lines
raw.dclm_dup_line_chars | float | dclm | their characters / characters of those lines
raw.dclm_dup_paragraphs | float | dclm | the same for stripped non-empty paragraphs (cut at 2 line feeds), by number
raw.dclm_dup_paragraph_chars | float | dclm | the same by characters
raw.dclm_top_2gram_chars | float | dclm | (characters × count) of the longest among the most frequent 2-grams of words by UAX #29 that start with a letter or digit / characters of those words; 0 where none repeats
raw.dclm_top_3gram_chars | float | dclm | the same for 3-grams
raw.dclm_top_4gram_chars | float | dclm | the same for 4-grams
raw.dclm_dup_5gram_chars | float | dclm | characters of those words that lie in a 5-gram that occurs more than once, all copies, each word once / characters of those words
raw.dclm_dup_6gram_chars | float | dclm | the same for 6-grams
raw.dclm_dup_7gram_chars | float | dclm | the same for 7-grams
raw.dclm_dup_8gram_chars | float | dclm | the same for 8-grams
raw.dclm_dup_9gram_chars | float | dclm | the same for 9-grams
raw.dclm_dup_10gram_chars | float | dclm | the same for 10-grams
refinedweb.chars | int | refinedweb | len(refinedweb.text)
refinedweb.words | int | refinedweb | as raw.dclm_words, of refinedweb.text
refinedweb.words_removed | float | refinedweb | (raw.dclm_words − refinedweb.words) / raw.dclm_words; 1 where there were none
refinedweb.text | text | refinedweb | the text that RefinedWeb's line rules leave
"""


def _parse(table: str) -> tuple[Column, ...]:
    out = []
    for line in table.strip().splitlines():
        name, kind, family, formula = line.split(" | ")
        out.append(Column(name, _TYPES[kind], family, formula))  # type: ignore[arg-type]
    return tuple(out)


COLUMNS = _parse(_TABLE)
"""In the order of the file."""

FAMILY: dict[str, Family] = {column.name: column.family for column in COLUMNS}

METRIC_SCHEMA = pa.schema([(column.name, column.type) for column in COLUMNS])
"""What `measure_batch` returns, one row per text."""

CONDITION_SCHEMA = pa.schema(
    [
        ("language", pa.string()),
        ("language_score", pa.float32()),
        *((column.name, column.type) for column in COLUMNS if column.type != pa.string()),
    ]
)
"""What a rule of the user's may compare."""


def versions() -> list[str]:
    """The texts that are measured, `raw` first."""
    return list(dict.fromkeys(column.name.partition(".")[0] for column in COLUMNS))
