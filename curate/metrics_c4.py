"""C4's line rules: the text rewritten to the lines that survive, and what its document rules need to know.

Source: Raffel et al. 2020 (C4), section 2.2, and its released code; order of tests as in datatrove's C4QualityFilter.
Lines with "lorem ipsum" or a curly bracket do not vanish here: where the first one stands is stored, and `curate.decide`
drops the document or, with that rule off, keeps the line as datatrove does.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from gristmill.curate.schema import C4Rewrite
from gristmill.curate.words import Ints, Lexicon, Lines

POLICY_PHRASES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
"""Phrases whose lines go (C4's released code)."""

_CITATION = re.compile(r"\[(?:\d*|edit|citation needed)\]")
_SENTENCE_ENDS = (".", "?", "!", '"', "'")


class C4Text(NamedTuple):
    """A text after C4's line rules. Lines count from 1; null where no surviving line has the mark."""

    text: str
    words: int
    sentences: int
    lorem_ipsum_line: int | None
    curly_bracket_line: int | None


def rewrite(lines: list[str], segmented: Lines, lexicon: Lexicon, rules: C4Rewrite) -> C4Text:
    """Apply the line rules to a text's lines (splitlines), each already stripped and segmented."""
    joined = "\n".join(lines)
    brackets = rules.remove_citations and "[" in joined
    lowered = (_CITATION.sub("", joined) if brackets else joined).lower()  # a citation can part a phrase
    javascript = rules.drop_javascript and "javascript" in lowered
    lorem = "lorem ipsum" in lowered
    policy = rules.drop_policy and any(phrase in lowered for phrase in POLICY_PHRASES)
    curly = "{" in joined
    lorem_line = curly_line = None
    kept: list[str] = []
    pieces: list[Ints] = []  # chunk rows of each kept line; their order does not matter
    cleaned: list[str] = []
    bounds, counts = segmented.starts.tolist(), segmented.counts.tolist()
    for i, line in enumerate(lines):
        if counts[i] < rules.min_words_per_line:
            continue
        if len(line) > rules.max_word_chars >= 0 and any(len(w) > rules.max_word_chars for w in line.split()):
            continue
        text = _CITATION.sub("", line) if brackets else line
        if rules.terminal_punctuation and (not text.endswith(_SENTENCE_ENDS) or text.endswith("...")):
            continue
        if javascript or lorem or policy:
            low = text.lower()
            if lorem and lorem_line is None and "lorem ipsum" in low:
                lorem_line = i + 1
            if javascript and "javascript" in low:
                continue
        if curly and curly_line is None and "{" in text:
            curly_line = i + 1
        if policy and any(phrase in low for phrase in POLICY_PHRASES):
            continue
        kept.append(text)
        if text == line:
            pieces.append(segmented.rows[bounds[i] : bounds[i + 1] - 1])
        else:
            cleaned.append(text)
    if cleaned:
        again = lexicon.lines(cleaned)
        pieces += [again.rows[a : b - 1] for a, b in pairwise(again.starts.tolist())]
    n_sentences = n_words = 0
    if pieces:
        rows = np.concatenate(pieces)
        ends = np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)))
        n_words = lexicon.word_count(rows)
        n_sentences = lexicon.sentences(rows, ends)
    return C4Text("\n".join(kept).strip(), n_words, n_sentences, lorem_line, curly_line)
