"""The whole tokenizer report as plain JSON: every metric, by language, source and domain, for one tokenizer and its baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from gristmill.core.errors import InputError, UsageError
from gristmill.tokenize import metrics
from gristmill.tokenize.aligned import premiums, read_aligned
from gristmill.tokenize.baselines import Baseline
from gristmill.tokenize.files import read_bounded, read_json
from gristmill.tokenize.mix_counts import count_ids
from gristmill.tokenize.report_docs import choose, read
from gristmill.tokenize.segment import SEGMENTER
from gristmill.tokenize.segmenters import choose as choose_segmenters
from gristmill.tokenize.train import single_thread
from gristmill.tokenize.vocabulary_report import probes, usage, vocabulary

FORMAT = "gristmill-tokenizer-report-1"
STRR_WORDS = 1000
"""Word types a language is asked for when no list is given: the most frequent of its documents."""
FEWEST_STRR = 50
"""A language with fewer word types has no STRR."""

BETTER_LOW = ("fertility", "pcw", "fertility_iso", "pcw_iso", "premium")
BETTER_HIGH = ("bytes_per_token", "chars_per_token", "lossless", "strr")


@dataclass(frozen=True)
class Options:
    """What a report looks at besides documents. `words`: language -> file of one word a line; `tokens`: folders for
    `mix_counts.count_ids`; `segmenters`: as `segmenters.choose` takes them; `sweep`: a sweep.json of `tokenizer train`."""

    aligned: Path | None = None
    reference: str = "en"
    words: Mapping[str, Path] = field(default_factory=dict)
    tokens: Sequence[Path] = ()
    docs_per_language: int = 200
    doc_cap_chars: int = 10_000
    seed: int = 0
    segmenters: Sequence[str] = ()
    top_domains: int = 25
    sweep: Path | None = None


def build(tokenizers: Sequence[Baseline], paths: Sequence[Path], options: Options = Options()) -> dict[str, Any]:
    """Measure; the first tokenizer is the report's own, the others its baselines.

    Raises UsageError for two tokenizers of one name or an option that fits nothing, InputError for files that do not
    read or hold no document.
    """
    names = [t.name for t in tokenizers]
    if len(set(names)) < len(names):
        raise UsageError(f"two tokenizers share a name: {', '.join(names)}", hint="name them: NAME=FILE")
    aligned = read_aligned(options.aligned) if options.aligned else None
    lists = {language: _word_list(path) for language, path in options.words.items()}
    sweep = read_sweep(options.sweep) if options.sweep else None
    segmenter_of = choose_segmenters(options.segmenters)
    picked = choose(paths, options.docs_per_language, options.seed)
    documents = read(paths, picked, options.doc_cap_chars, options.seed)
    with single_thread():
        measured = metrics.measure([(t.name, t) for t in tokenizers], documents, segmenter_of)
        if not measured.segmenters:
            raise InputError("no document in the files given")
        found = [_one(t, measured, i, options, aligned, lists) for i, t in enumerate(tokenizers)]
    own = found[0]
    own["nsl"] = {other["name"]: metrics.nsl(own, other) for other in found[1:]}
    for other in found[1:]:
        other["nsl"] = {}
    own["model_mix"] = None
    if options.tokens:
        counts = count_ids(options.tokens, tokenizers[0].vocab_size, tokenizers[0].sha256)
        over = ", ".join(folder.name for folder in options.tokens[:3]) + (", …" if len(options.tokens) > 3 else "")
        own["model_mix"] = usage(tokenizers[0], counts, over)
    return {
        "format": FORMAT,
        "documents": {
            "docs": own["all"]["docs"],
            "bytes": own["all"]["bytes"],
            "available": picked.available_docs,
            "docs_per_language": options.docs_per_language,
            "doc_cap_chars": options.doc_cap_chars,
            "seed": options.seed,
        },
        "segmenters": {
            language: found.label if found else None for language, found in sorted(measured.segmenters.items())
        },
        "versions": {"tokenizers": version("tokenizers")},
        "tokenizers": found,
        "best": best(found),
        "sweep": sweep,
        "gates": [],
    }


def _one(
    tokenizer: Baseline,
    measured: metrics.Measured,
    index: int,
    options: Options,
    aligned: dict[str, dict[str, str]] | None,
    lists: Mapping[str, list[str]],
) -> dict[str, Any]:
    subject = measured.subjects[index]
    counts = subject.counts.copy()
    counts[tokenizer.special_ids] = 0
    found = {
        "name": tokenizer.name,
        "kind": tokenizer.kind,
        "sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "normalizes": tokenizer.normalizes,
        "prefix_space": tokenizer.prefix_space,
        **metrics.tables(measured, subject, options.top_domains),
        "aligned": premiums(tokenizer, aligned, options.reference) if aligned is not None else None,
        "strr": _strr(tokenizer, measured, lists),
        "renyi": {
            "alpha": metrics.RENYI_ALPHA,
            "efficiency": metrics.renyi_efficiency(counts, tokenizer.vocab_size),
        },
        "rank_frequency": metrics.rank_frequency(counts),
        "usage": usage(tokenizer, counts, "these documents"),
        "vocabulary": vocabulary(tokenizer),
        "probes": probes(tokenizer),
        "model_mix": None,
    }
    premium = found["aligned"]["languages"] if found["aligned"] else {}
    for language, row in found["languages"].items():
        row["premium"] = premium[language]["premium"] if language in premium else None
        row["strr"] = found["strr"]["languages"].get(language, {}).get("strr")
    return found


def _strr(tokenizer: Baseline, measured: metrics.Measured, lists: Mapping[str, list[str]]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for language in sorted({*measured.segmenters, *lists}):
        segmenter = measured.segmenters.get(language)
        if language in lists:
            words, source = lists[language], "list"
        elif segmenter is None:
            continue
        else:
            letters = {w: n for w, n in measured.types[language].items() if not any(c.isdecimal() for c in w)}
            words, source = metrics.common_words(letters, STRR_WORDS), "documents"
            if len(words) < FEWEST_STRR:
                continue
        spaced = segmenter is None or segmenter.label == SEGMENTER or language.split("-")[0] in ("ko", "kor")
        rows[language] = {**metrics.strr(tokenizer, words, spaced), "source": source}
    return {"most_words": STRR_WORDS, "languages": rows}


def best(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """language -> metric -> the tokenizer that does best there; equals go to the first named."""
    out: dict[str, dict[str, str]] = {}
    for language in found[0]["languages"]:
        out[language] = {}
        for key in (*BETTER_LOW, *BETTER_HIGH):
            values = [(t["languages"][language][key], t["name"]) for t in found]
            told = [(value, name) for value, name in values if value is not None]
            if told:
                top = (min if key in BETTER_LOW else max)(value for value, _ in told)
                out[language][key] = next(name for value, name in told if value == top)
    return out


def _word_list(path: Path) -> list[str]:
    """Distinct words of a file with one a line, in its order."""
    try:
        words = [line.strip() for line in read_bounded(path).decode().splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8: {error}") from error
    found = list(dict.fromkeys(w for w in words if w))
    if not found:
        raise InputError(f"{path} holds no word")
    return found


def read_sweep(path: Path) -> list[dict[str, Any]]:
    """[{"vocab_size", "metrics": {name: number}, "languages": {language: {name: number}}}] by vocabulary size, from a
    sweep.json or a bare list of that form. Raises InputError."""
    data = read_json(path)
    rows: Any = data.get("sweep", ()) if isinstance(data, dict) else data
    try:
        found = [
            {
                "vocab_size": int(row["vocab_size"]),
                "metrics": _numbers(row["metrics"]),
                "languages": {str(name): _numbers(own) for name, own in row.get("languages", {}).items()},
            }
            for row in rows
        ]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is no sweep", hint='[{"vocab_size": 32768, "metrics": {…}}, …]') from error
    return sorted(found, key=lambda row: row["vocab_size"])


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {str(k): float(v) for k, v in row.items() if type(v) in (int, float) and np.isfinite(v)}
