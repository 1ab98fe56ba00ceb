"""Every rule of `curate.decide`: which column it compares, how, with which setting, and what it needs to apply.

The order is the order of decision unless a recipe gives another: FineWeb's (Gopher repetition, Gopher quality, C4,
FineWeb), then DCLM's (Gopher quality and repetition, RefinedWeb); inside a set that of the peer's filter, so the first
rule that fails names a drop as the peer's reason would. datatrove switches a Gopher quality, line or paragraph rule off
when its threshold is 0 (a truth test); so does a 0 here, in `gopher@datatrove` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from gristmill.curate.kernels import DUP_SIZES, TOP_SIZES
from gristmill.curate.schema_rules import Group, Set

Need = Literal["segmenter", "stop_words", "c4_tables", "dclm_stop_words", "refinedweb_tables"]
Operator = Literal["<", ">", "set", "empty"]

NEEDS: dict[Need, str] = {
    "segmenter": "raw.words",
    "stop_words": "raw.stop_words",
    "c4_tables": "c4.sentences",
    "dclm_stop_words": "raw.dclm_stop_words",
    "refinedweb_tables": "refinedweb.words",
}
"""What a rule may need of a document's language -> the column that is null where the language has none."""


@dataclass(frozen=True)
class Rule:
    """One rule. It drops a document if `metric operator threshold` holds; a null metric passes.

    `setting` is the key in the set's block (None: on with the set), `size` the n-gram size where that setting is a
    table. A metric that starts with "*." is read from the C4-rewritten text where C4 applies and has decided before, else
    from the raw text. Operator "set" drops where the metric is not null, "empty" where it is 0; neither has a threshold.
    `group` is what a recipe's `order` arranges; `datatrove` the peer's name of the reason (datatrove's reason, or the
    name of DCLM's mapper).
    """

    name: str
    set: Set
    group: Group
    setting: str | None
    metric: str
    operator: Operator
    needs: Need | None
    size: int | None
    datatrove: str
    description: str

    @property
    def zero_is_off(self) -> bool:
        """Whether a threshold of 0 switches the rule off, as datatrove's truth test does but for n-grams."""
        return self.set == "gopher@datatrove" and self.size is None


# name | setting | metric | operator | needs | the peer's reason | what the metric is
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


# DCLM's order; a document without words or lines is dropped by whichever mapper meets it first
_DCLM_QUALITY = """
too_few_words | min_words | raw.dclm_words | < | - | page_length_filter | words that start with a letter or digit
too_many_words | max_words | raw.dclm_words | > | - | page_length_filter | words that start with a letter or digit
empty | - | raw.dclm_tokens | empty | - | word_length_filter | the text has no words
short_words | min_avg_word_length | raw.dclm_avg_word_length | < | - | word_length_filter | mean length of whitespace-separated words
long_words | max_avg_word_length | raw.dclm_avg_word_length | > | - | word_length_filter | mean length of whitespace-separated words
symbols | max_symbol_ratio | raw.dclm_symbol_ratio | > | - | symbol_ratio_filter | hash signs and ellipses per word
bullet_lines | max_bullet_lines | raw.dclm_bullet_lines | > | - | bullet_count_filter | share of lines that start with a bullet
ellipsis_lines | max_ellipsis_lines | raw.dclm_ellipsis_lines | > | - | ellipsis_count_filter | share of lines that end with an ellipsis
nonalpha_words | max_nonalpha_words | raw.dclm_nonalpha_words | > | - | alphabetic_word_ratio_filter | share of words without a letter
too_few_stop_words | min_stop_words | raw.dclm_stop_words | < | dclm_stop_words | stop_word_filter | occurrences of stop words
"""

_DCLM_REPETITION = """
dup_lines | max_dup_lines | raw.dclm_dup_lines | > | - | massive_web_repetition_filters | share of lines that occur more than once
dup_paragraphs | max_dup_paragraphs | raw.dclm_dup_paragraphs | > | - | massive_web_repetition_filters | share of paragraphs that occur more than once
dup_line_chars | max_dup_line_chars | raw.dclm_dup_line_chars | > | - | massive_web_repetition_filters | share of characters in such lines
dup_paragraph_chars | max_dup_paragraph_chars | raw.dclm_dup_paragraph_chars | > | - | massive_web_repetition_filters | share of characters in such paragraphs
"""

_REFINEDWEB = """
empty | - | refinedweb.chars | empty | refinedweb_tables | line modifiers | no line is left
words_removed | max_removed_words | refinedweb.words_removed | > | refinedweb_tables | word_removal_ratio_filter | share of words that the line rules took
"""


def _parse(prefix: str, group: Group, table: str) -> list[Rule]:
    rules = []
    of: Any = _set_of(group)
    for line in table.strip().splitlines():
        cells: list[Any] = [None if cell == "-" else cell for cell in line.split(" | ")]
        name, setting, metric, operator, needs, peer, description = cells
        rules.append(Rule(f"{prefix}.{name}", of, group, setting, metric, operator, needs, None, peer, description))
    return rules


def _set_of(group: Group) -> str:
    """`gopher.quality@datatrove` is a part of `gopher@datatrove`."""
    name, _, peer = group.partition("@")
    return f"{name.partition('.')[0]}@{peer}"


def _ngrams(prefix: str, group: Group, metric: str, need: Need | None, peers: tuple[str, str]) -> list[Rule]:
    def rule(n: int, name: str, setting: str, column: str, peer: str, what: str) -> Rule:
        of: Any = _set_of(group)
        return Rule(f"{prefix}.{name}", of, group, setting, column, ">", need, n, peer.format(n), what)

    top = "share of characters in the most frequent {}-gram of words"
    dup = "share of characters in repeated {}-grams of words"
    return [
        *(
            rule(n, f"top_{n}_gram", "max_top_ngram_chars", f"{metric}top_{n}gram_chars", peers[0], top.format(n))
            for n in TOP_SIZES
        ),
        *(
            rule(n, f"dup_{n}_grams", "max_dup_ngram_chars", f"{metric}dup_{n}gram_chars", peers[1], dup.format(n))
            for n in DUP_SIZES
        ),
    ]


_BY_DCLM = "massive_web_repetition_filters"

RULES: tuple[Rule, ...] = (
    *_parse("gopher", "gopher.repetition@datatrove", _REPETITION),
    *_ngrams("gopher", "gopher.repetition@datatrove", "raw.", "segmenter", ("top_{}_gram", "duplicated_{}_n_grams")),
    *_parse("gopher", "gopher.quality@datatrove", _QUALITY),
    *_parse("c4", "c4@datatrove", _C4),
    *_parse("fineweb", "fineweb@datatrove", _FINEWEB),
    *_parse("dclm", "gopher@dclm", _DCLM_QUALITY),
    *_parse("dclm", "gopher@dclm", _DCLM_REPETITION),
    *_ngrams("dclm", "gopher@dclm", "raw.dclm_", None, (_BY_DCLM, _BY_DCLM)),
    *_parse("refinedweb", "refinedweb@dclm", _REFINEDWEB),
)
"""Every rule, in order of decision."""

GROUPS: tuple[Group, ...] = tuple(dict.fromkeys(rule.group for rule in RULES))
"""What a recipe's `order` arranges, in the order of the registry."""
