"""Fits a table of thresholds by language to a sample of documents, as FineWeb-2 did for its languages.

FineWeb-2 (Penedo et al. 2025) publishes its thresholds but not the code that fitted them. Published: a language's score
must reach max(0.3, min(0.9, median − standard deviation)) of its scores. Read off its tables, and said so here: the other
thresholds are FineWeb's English ones carried over by mean and standard deviation (`mean-std`): they run above 1, which
no quantile does, and average word lengths are whole. `quantile`, `median-ratio` and `tail` are the other ways that
suggest themselves. Stop words: all words of a share above 0.8 %; with fewer than 8, above 0.3 %; then the 8 most frequent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from gristmill.curate.kernels import TOP_SIZES
from gristmill.curate.measure import Plan, measure_batch
from gristmill.curate.rules.engine import Floats, column
from gristmill.curate.rules.registry import RULES, Rule
from gristmill.curate.rules.sample import Document
from gristmill.curate.schema_rules import MAX_STOP_WORDS, FineWeb, Gopher
from gristmill.curate.words import LEXICONS, Lexicon

Method = Literal["mean-std", "quantile", "median-ratio", "tail"]

_FITTED = (
    "gopher.dup_lines gopher.top_2_gram gopher.top_3_gram gopher.top_4_gram gopher.dup_5_grams gopher.dup_6_grams "
    "gopher.dup_7_grams gopher.dup_8_grams gopher.dup_9_grams gopher.dup_10_grams gopher.short_words gopher.long_words "
    "gopher.too_few_alpha_words fineweb.few_punctuated_lines fineweb.newlines"
)
FITTED = frozenset(_FITTED.split())
"""The rules whose thresholds differ by language in FineWeb-2's tables."""

WHOLE = ("min_avg_word_length", "max_avg_word_length")
"""Settings that are rounded to whole numbers there; the others have three decimals."""
SCORE_FLOOR, SCORE_CEILING = 0.3, 0.9
COMMON, LESS_COMMON, FEWEST = 0.008, 0.003, 8
TAIL = 0.10
"""Share of documents that each rule drops by the method `tail`."""
MOST_DROPPED = 0.5
_UNBOUNDED = frozenset(["raw.avg_word_length", "raw.newlines_per_word", *(f"raw.top_{n}gram_chars" for n in TOP_SIZES)])
"""Metrics that may exceed 1; n-grams overlap, so the share of the most frequent one may."""


@dataclass(frozen=True)
class Notice:
    """Something to look at before the table is used."""

    language: str
    setting: str
    message: str

    def __str__(self) -> str:
        return f"{self.language}: {self.setting}: {self.message}"


@dataclass
class Fit:
    """A table (`languages` of a table file) and what to look at."""

    languages: dict[str, dict[str, Any]] = field(default_factory=dict)
    documents: dict[str, int] = field(default_factory=dict)
    warnings: list[Notice] = field(default_factory=list)


def fit(
    documents: Mapping[str, Sequence[Document]],
    *,
    method: Method = "mean-std",
    reference: str = "en",
    min_documents: int = 100,
) -> Fit:
    """A table for every language of `documents` but the reference, whose published thresholds are carried over.

    `documents` maps a label to a sample that no rule and no score has thinned. Raises ValueError when the method needs
    the reference and the sample has none of it.
    """
    if method != "tail" and not documents.get(reference):
        raise ValueError(f"the method {method} compares with {reference}, which the sample has none of")
    out = Fit()
    rules = [rule for rule in RULES if rule.name in FITTED]
    base = _measured(documents[reference], reference) if documents.get(reference) else None
    for label in sorted(documents):
        if label == reference:
            continue
        sample = documents[label]
        out.documents[label] = len(sample)
        if len(sample) < min_documents:
            message = f"{len(sample)} documents are fewer than {min_documents}: no entry, the recipe's thresholds stay"
            out.warnings.append(Notice(label, "all", message))
            continue
        measures = _measured(sample, label)
        entry: dict[str, Any] = {}
        _fit_score(out, label, sample, entry)
        lexicon = LEXICONS.get(label)
        if lexicon is None:
            out.warnings.append(Notice(label, "words", "its words need a segmenter: only rules over lines are fitted"))
        else:
            entry["stop_words"] = stop_words(lexicon, [document.text for document in sample])
        for rule in rules:
            if rule.needs == "segmenter" and lexicon is None:
                continue
            _fit_rule(out, label, rule, measures, base, method, entry)
        _keep_order(out, label, entry)
        out.languages[label] = entry
    return out


def _measured(sample: Sequence[Document], label: str) -> pa.Table:
    plan = Plan(families=frozenset({"lines", "words", "ngrams", "layout"}))
    texts = [document.text for document in sample]
    parts = [
        measure_batch(texts[at : at + 256], [label] * len(texts[at : at + 256]), None, plan.short_line_chars, plan)
        for at in range(0, len(texts), 256)
    ]
    return pa.concat_tables(parts)


def score_threshold(scores: Floats) -> float:
    """max(0.3, min(0.9, median − standard deviation)) of a language's scores, to three decimals."""
    value = float(np.median(scores) - np.std(scores))
    return round(max(SCORE_FLOOR, min(SCORE_CEILING, value)), 3)


def _fit_score(out: Fit, label: str, sample: Sequence[Document], entry: dict[str, Any]) -> None:
    scores = np.array([document.score for document in sample if document.score is not None])
    if len(scores):
        entry["language_score"] = score_threshold(scores)
    else:
        out.warnings.append(Notice(label, "language_score", "the sample has no scores: the recipe's threshold stays"))


def stop_words(lexicon: Lexicon, texts: Sequence[str]) -> list[str]:
    """A language's most frequent words, most frequent first; words have a letter and are lower-cased."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word.lower() for word in lexicon.words(text))
    words = {word: n for word, n in counts.items() if any(map(str.isalpha, word)) and len(word) <= 64}
    total = sum(words.values())
    ranked = sorted(words, key=lambda word: (-words[word], word))
    for share in (COMMON, LESS_COMMON):
        found = [word for word in ranked if words[word] > share * total]
        if len(found) >= FEWEST:
            return found[:MAX_STOP_WORDS]
    return ranked[:FEWEST]


def _fit_rule(
    out: Fit, label: str, rule: Rule, measures: pa.Table, base: pa.Table | None, method: Method, entry: dict[str, Any]
) -> None:
    metric = rule.metric.replace("*", "raw")
    values = _known(measures, metric)
    assert rule.setting is not None
    name = f"{rule.set}.{rule.setting}" + (f".{rule.size}" if rule.size is not None else "")
    if not len(values):
        out.warnings.append(Notice(label, name, "no document of the sample has a value: not fitted"))
        return
    published = _published(rule)
    reference = _known(base, metric) if base is not None else values[:0]
    if method != "tail" and not len(reference):
        out.warnings.append(Notice(label, name, "no document of the reference has a value: not fitted"))
        return
    upper = rule.operator == ">"
    found = _METHODS[method](published, reference, values, upper)
    if found is None:
        out.warnings.append(Notice(label, name, f"all documents agree: the published {published} is kept"))
        found = published
    value: float | int = round(found) if rule.setting in WHOLE else round(found, 3)
    value = max(value, 0)
    limit = np.inf if metric in _UNBOUNDED else 1.0
    if (upper and value >= limit) or (not upper and value <= 0):
        out.warnings.append(Notice(label, name, f"{found:.3g} can never fire: switched off"))
        _put(entry, rule, None)
        return
    dropped = int(np.count_nonzero(values > value if upper else values < value))
    if dropped == 0:
        out.warnings.append(Notice(label, name, f"{value} fires on none of {len(values)} documents"))
    elif dropped > MOST_DROPPED * len(values):
        out.warnings.append(Notice(label, name, f"{value} drops {dropped} of {len(values)} documents"))
    _put(entry, rule, value)


def _put(entry: dict[str, Any], rule: Rule, value: float | None) -> None:
    block = entry.setdefault(rule.set, {})
    if rule.size is None:
        block[rule.setting] = value
    else:
        block.setdefault(rule.setting, {})[rule.size] = 1.0 if value is None or value > 1 else value


def _keep_order(out: Fit, label: str, entry: dict[str, Any]) -> None:
    """Take out word lengths that cross: two rounded thresholds of a sample with next to no spread."""
    block = entry.get("gopher@datatrove", {})
    low, high = (block.get(name) for name in WHOLE)
    if low is not None and high is not None and low > high:
        out.warnings.append(Notice(label, "gopher@datatrove.avg_word_length", f"{low} is above {high}: not fitted"))
        for name in WHOLE:
            del block[name]


def _published(rule: Rule) -> float:
    value: Any = getattr(Gopher() if rule.set == "gopher@datatrove" else FineWeb(), str(rule.setting))
    return float(value if rule.size is None else value[rule.size])


def _known(measures: pa.Table, metric: str) -> Floats:
    values = column(measures, metric)
    return values[~np.isnan(values)]


Way = Callable[[float, Floats, Floats, bool], "float | None"]
"""(published threshold, the reference's values, the language's values, whether it is an upper limit) -> threshold, or
None where the values do not spread."""


def _mean_std(published: float, reference: Floats, values: Floats, upper: bool) -> float | None:
    spread = float(np.std(reference))
    if spread == 0:
        return None
    return float(np.mean(values) + (published - np.mean(reference)) / spread * np.std(values))


def _quantile(published: float, reference: Floats, values: Floats, upper: bool) -> float | None:
    share = np.mean(reference <= published) if upper else np.mean(reference < published)
    return float(np.quantile(values, share))


def _median_ratio(published: float, reference: Floats, values: Floats, upper: bool) -> float | None:
    middle = float(np.median(reference))
    return published * float(np.median(values)) / middle if middle else None


def _tail(published: float, reference: Floats, values: Floats, upper: bool) -> float | None:
    return float(np.quantile(values, 1 - TAIL if upper else TAIL))


_METHODS: dict[Method, Way] = {
    "mean-std": _mean_std,
    "quantile": _quantile,
    "median-ratio": _median_ratio,
    "tail": _tail,
}
