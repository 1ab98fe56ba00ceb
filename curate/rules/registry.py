"""Every rule of `curate.decide`: which column it compares, how, with which setting, and what it needs to apply.

The order is the order of decision (FineWeb's: Gopher repetition, Gopher quality, C4, FineWeb), and inside a set that of
datatrove's filter, so the first rule that fails names a drop as datatrove's reason would. One corner differs on
purpose: datatrove switches a Gopher quality, line or paragraph rule off when its threshold is 0 (a truth test); here
only null does, and 0 is a threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from gristmill.curate.kernels import DUP_SIZES, TOP_SIZES

Need = Literal["segmenter", "stop_words", "c4_tables"]
Operator = Literal["<", ">", "set", "empty"]

NEEDS: dict[Need, str] = {
    "segmenter": "raw.words",
    "stop_words": "raw.stop_words",
    "c4_tables": "c4.sentences",
}
"""What a rule may need of a document's language -> the column that is null where the language has none."""


@dataclass(frozen=True)
class Rule:
    """One rule. It drops a document if `metric operator threshold` holds; a null metric passes.

    `setting` is the key in the set's block (None: on with the set), `size` the n-gram size where that setting is a
    table. A metric that starts with "*." is read from the C4-rewritten text where C4 applies, else from the raw text.
    Operator "set" drops where the metric is not null, "empty" where it is 0; neither has a threshold.
    `datatrove` is datatrove's name of the reason.
    """

    name: str
    set: str
    setting: str | None
    metric: str
    operator: Operator
    needs: Need | None
    size: int | None
    datatrove: str
    description: str


# name | setting | metric | operator | needs | datatrove's reason | what the metric is
_REPETITION = """
empty | - | raw.chars | empty | - | empty | the text is empty
dup_paragraphs | max_dup_paragraphs | raw.dup_paragraphs | > | - | dup_para_frac | share of paragraphs that repeat an earlier one
dup_paragraph_chars | max_dup_paragraph_chars | raw.dup_paragraph_chars | > | - | dup_para_char_frac | share of characters in repeated paragraphs
dup_lines | max_dup_lines | raw.dup_lines | > | - | dup_line_frac | share of lines that repeat an earlier one
dup_line_chars | max_dup_line_chars | raw.dup_line_chars | > | - | dup_line_char_frac | share of characters in repeated lines
"""

_QUALITY = """
too_few_words | min_words | raw.nonsymbol_words | < | segmenter | gopher_short_doc | words with a character that is no punctuation
too_many_words | max_words | raw.nonsymbol_words | > | segmenter | gopher_long_doc | words with a character that is no punctuation
short_words | min_avg_word_length | raw.avg_word_length | < | segmenter | gopher_below_avg_threshold | mean length of those words in characters
long_words | max_avg_word_length | raw.avg_word_length | > | segmenter | gopher_above_avg_threshold | mean length of those words in characters
hashes | max_hash_ratio | raw.hash_ratio | > | segmenter | gopher_too_many_hashes | hash signs per token
ellipses | max_ellipsis_ratio | raw.ellipsis_ratio | > | segmenter | gopher_too_many_ellipsis | ellipses per token
bullet_lines | max_bullet_lines | raw.bullet_lines | > | - | gopher_too_many_bullets | share of lines that start with a bullet
ellipsis_lines | max_ellipsis_lines | raw.ellipsis_lines | > | - | gopher_too_many_end_ellipsis | share of lines that end with an ellipsis
too_few_alpha_words | min_alpha_words | raw.alpha_words | < | segmenter | gopher_below_alpha_threshold | share of tokens with a letter
too_few_stop_words | min_stop_words | raw.stop_words | < | stop_words | gopher_enough_stop_words | distinct stop words
"""

_C4 = """
lorem_ipsum | drop_lorem_ipsum | c4.lorem_ipsum_line | set | c4_tables | lorem_ipsum | first line with lorem ipsum, if no curly bracket comes before
curly_bracket | drop_curly_bracket | c4.curly_bracket_line | set | c4_tables | curly_bracket | first line with a curly bracket that no line rule removes
too_few_sentences | min_sentences | c4.sentences | < | c4_tables | too_few_sentences | sentences in the lines that C4's line rules leave
"""

_FINEWEB = """
empty | - | *.nonblank_lines | empty | - | empty | no line is left
few_punctuated_lines | min_line_punctuation | *.line_punctuation | < | - | line_punct_ratio | share of lines that end in terminal punctuation
short_lines | max_short_lines | *.short_lines | > | - | short_line_ratio | share of lines of at most `short_line_chars` characters
dup_line_chars | max_dup_line_chars | *.repeated_line_chars | > | - | char_dup_ratio | share of characters in repeated lines, line feeds not counted
newlines | max_newlines_per_word | *.newlines_per_word | > | segmenter | list_ratio | line feeds per token
"""


def _parse(prefix: str, table: str) -> list[Rule]:
    rules = []
    for line in table.strip().splitlines():
        cells: list[Any] = [None if cell == "-" else cell for cell in line.split(" | ")]
        name, setting, metric, operator, needs, datatrove, description = cells
        rules.append(
            Rule(
                f"{prefix}.{name}",
                f"{prefix}@datatrove",
                setting,
                metric,
                operator,
                needs,
                None,
                datatrove,
                description,
            )
        )
    return rules


def _ngrams() -> list[Rule]:
    def rule(n: int, name: str, setting: str, metric: str, datatrove: str, what: str) -> Rule:
        return Rule(
            f"gopher.{name}", "gopher@datatrove", setting, f"raw.{metric}", ">", "segmenter", n, datatrove, what
        )

    top = "share of characters in the most frequent {}-gram of words"
    dup = "share of characters in repeated {}-grams of words"
    return [
        *(
            rule(n, f"top_{n}_gram", "max_top_ngram_chars", f"top_{n}gram_chars", f"top_{n}_gram", top.format(n))
            for n in TOP_SIZES
        ),
        *(
            rule(
                n,
                f"dup_{n}_grams",
                "max_dup_ngram_chars",
                f"dup_{n}gram_chars",
                f"duplicated_{n}_n_grams",
                dup.format(n),
            )
            for n in DUP_SIZES
        ),
    ]


RULES: tuple[Rule, ...] = (
    *_parse("gopher", _REPETITION),
    *_ngrams(),
    *_parse("gopher", _QUALITY),
    *_parse("c4", _C4),
    *_parse("fineweb", _FINEWEB),
)
"""Every rule, in order of decision."""
