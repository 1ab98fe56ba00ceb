"""Measure several tokenizers on the same documents, by language, source and domain: the figures of a tokenizer report.

Definitions, with k_w the tokens of word w (words of the segmenter that the row names):
- fertility, pcw: the whole text is encoded; k_w = tokens whose character span intersects w. Mean of k_w, share k_w >= 2.
- fertility_iso, pcw_iso: each word encoded alone without a leading space, as the Hugging Face tokenizer playbook does.
  On one English text they gave 1.70 / 39.5 % where in context it was 1.51 / 23.1 %: never compare one with the other.
- bytes_per_token, chars_per_token: UTF-8 bytes and code points of all text over all tokens, specials excluded.
- nsl (normalised sequence length): tokens over a baseline's tokens on the same text.
- Rényi efficiency: H_a / log2(V), H_a = log2(sum p^a) / (1 - a), a = 2.5, p the unigram shares (arXiv:2306.16842). It
  can be raised without gain (arXiv:2402.14614), so it informs and has no gate.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from gristmill.tokenize.baselines import Encoder
from gristmill.tokenize.fertility import BATCH_CHARS, Tally, ratio, tokens_per_word
from gristmill.tokenize.report_docs import PARTS, Document
from gristmill.tokenize.segment import SEGMENTER, has_words
from gristmill.tokenize.segmenters import Segmenter

RENYI_ALPHA = 2.5
MEMO_WORDS = 1 << 20
"""Distinct words whose lengths are kept; about 100 MB of strings."""
OTHER = "(other domains)"

Key = tuple[str, str, str, int]
"""language, source, domain, part of the sample"""


@dataclass
class Row(Tally):
    """A Tally with the isolated-word figures beside."""

    iso_tokens: int = 0
    iso_continued: int = 0

    def forget_words(self) -> None:
        super().forget_words()
        self.iso_tokens = self.iso_continued = 0

    def row(self) -> dict[str, Any]:
        found = super().row()
        found["fertility_iso"] = ratio(self.iso_tokens, self.words)
        found["pcw_iso"] = ratio(self.iso_continued, self.words)
        return found


@dataclass
class Subject:
    """One tokenizer and what was counted for it. `counts` (vocab_size,) occurrences of each id."""

    name: str
    encoder: Encoder
    tallies: dict[Key, Row] = field(default_factory=dict)
    counts: np.ndarray = field(init=False)
    lengths: list[int] = field(default_factory=list)  # of the words of `_Words`, encoded alone

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.encoder.vocab_size, np.int64)


@dataclass
class Measured:
    """All that was counted. `segmenters`: language -> segmenter, or None where its words cannot be told. `types`:
    language -> word type -> occurrences."""

    subjects: list[Subject]
    segmenters: dict[str, Segmenter | None]
    types: dict[str, Counter[str]]

    def told(self, language: str) -> bool:
        return self.segmenters.get(language) is not None


class _Words:
    """Numbers for distinct words, so that each is encoded alone once and looked up as an array."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}

    def number(self, words: Sequence[str]) -> np.ndarray:
        index = self.index
        return np.fromiter((index.setdefault(w, len(index)) for w in words), np.int64, len(words))


def measure(
    subjects: Sequence[tuple[str, Encoder]],
    documents: Iterable[Document],
    segmenter_of: Callable[[str], Segmenter],
) -> Measured:
    """Encode every document with every tokenizer and count. Memory: a batch of half a million characters, the distinct
    words, and one row per (language, source, domain, part)."""
    measured = Measured([Subject(name, encoder) for name, encoder in subjects], {}, defaultdict(Counter))
    words = _Words()
    word_chars: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    used: dict[str, Segmenter] = {}
    for batch in _batches(documents):
        if len(words.index) > MEMO_WORDS:
            words = _Words()
            for subject in measured.subjects:
                subject.lengths = []
        split = []
        for document in batch:
            segmenter = used.setdefault(document.language, segmenter_of(document.language))
            starts, ends, skipped = segmenter.split(document.text)
            spelt = [document.text[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
            measured.types[document.language].update(spelt)
            word_chars[document.language] += int((ends - starts).sum())
            left_out[document.language] += skipped
            split.append((starts, ends, words.number(spelt)))
        for subject in measured.subjects:
            _count(subject, batch, split, words)
    for language, segmenter in used.items():
        told = (
            word_chars[language] > 0
            if segmenter.unspaced
            else has_words(language, word_chars[language], left_out[language])
        )
        measured.segmenters[language] = segmenter if told else None
    for subject in measured.subjects:
        for key, row in subject.tallies.items():
            if not measured.told(key[0]):
                row.forget_words()
    return measured


def _count(
    subject: Subject,
    batch: Sequence[Document],
    split: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    words: _Words,
) -> None:
    encoder = subject.encoder
    fresh = list(islice(words.index, len(subject.lengths), None))
    subject.lengths += map(len, encoder.encode_batch(fresh))
    alone = np.asarray(subject.lengths, np.int64)
    encoded = encoder.encode_spans([d.text for d in batch])
    decoded = encoder.decode_batch([ids for ids, _ in encoded])
    for document, (ids, spans), back, (starts, ends, numbers) in zip(batch, encoded, decoded, split, strict=True):
        k, iso = tokens_per_word(spans, starts, ends), alone[numbers]
        subject.counts += np.bincount(ids, minlength=len(subject.counts))
        key = (document.language, document.source, document.domain, document.part)
        subject.tallies.setdefault(key, Row()).add(
            Row(
                docs=1,
                bytes=len(document.text.encode()),
                chars=len(document.text),
                tokens=len(ids),
                words=len(k),
                word_tokens=int(k.sum()),
                continued=int((k >= 2).sum()),
                lossless=int(back == document.text),
                iso_tokens=int(iso.sum()),
                iso_continued=int((iso >= 2).sum()),
            )
        )


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    chars = 0
    for document in documents:
        batch.append(document)
        chars += len(document.text)
        if chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def tables(measured: Measured, subject: Subject, top_domains: int) -> dict[str, Any]:
    """`languages`, `sources`, `domains` and `all` of one tokenizer as plain JSON, and the sample curve.

    A group of several languages tells the words of `runs-1` alone, since words of different segmenters do not add up.
    `domains` are those with the most bytes; documents without a URL are in none.
    """
    languages: dict[str, Row] = defaultdict(Row)
    sources: dict[str, Row] = defaultdict(Row)
    domains: dict[str, Row] = defaultdict(Row)
    parts: list[Row] = [Row() for _ in range(PARTS)]
    every = Row()
    for (language, source, domain, part), row in subject.tallies.items():
        languages[language].add(row)
        segmenter = measured.segmenters.get(language)
        plain = Row(**vars(row))
        if segmenter is None or segmenter.label != SEGMENTER:
            plain.forget_words()
        sources[source].add(plain)
        if domain:
            domains[domain].add(plain)
        parts[part].add(plain)
        every.add(plain)
    order = sorted(domains, key=lambda d: (-domains[d].bytes, d))
    shown = {d: domains[d] for d in order[:top_domains]}
    if len(order) > top_domains:
        rest = Row()
        for name in order[top_domains:]:
            rest.add(domains[name])
        shown[OTHER] = rest
    rows = {}
    for name in sorted(languages):
        segmenter = measured.segmenters.get(name)
        rows[name] = {**languages[name].row(), "segmenter": segmenter.label if segmenter else None}
    return {
        "languages": rows,
        "sources": {name: _grouped(sources[name]) for name in sorted(sources)},
        "domains": {name: _grouped(row) for name, row in shown.items()},
        "all": _grouped(every),
        "sample_curve": _curve(parts),
    }


def _grouped(row: Row) -> dict[str, Any]:
    return {**row.row(), "segmenter": SEGMENTER if row.words else None}


def _curve(parts: Sequence[Row]) -> list[dict[str, Any]]:
    """Fertility and bytes per token on a growing share of the documents; flat at its end, the sample is enough."""
    grown, out = Row(), []
    for i, part in enumerate(parts):
        grown.add(part)
        row = grown.row()
        out.append(
            {
                "share": (i + 1) / len(parts),
                **{key: row[key] for key in ("docs", "words", "tokens", "fertility", "bytes_per_token")},
            }
        )
    return out


def nsl(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens of `ours` over tokens of `theirs` (two results of `tables`), by language, source, domain and for all."""
    found: dict[str, Any] = {"all": ratio(ours["all"]["tokens"], theirs["all"]["tokens"])}
    for group in ("languages", "sources", "domains"):
        found[group] = {
            name: ratio(row["tokens"], theirs[group][name]["tokens"])
            for name, row in ours[group].items()
            if name in theirs[group]
        }
    return found


def strr(encoder: Encoder, words: Sequence[str], spaced: bool) -> dict[str, Any]:
    """Single-token retention: the share of word types that are one token, encoded with the leading space that running
    text gives them (arXiv:2510.09947). `spaced` False: the script writes none, so none is put there."""
    lead = " " if spaced and not getattr(encoder, "prefix_space", False) else ""
    whole = sum(1 for ids in encoder.encode_batch([lead + w for w in words]) if len(ids) == 1)
    return {"words": len(words), "strr": ratio(whole, len(words))}


def common_words(types: Mapping[str, int], most: int) -> list[str]:
    """The most frequent word types, ties in code point order."""
    return [w for w, _ in sorted(types.items(), key=lambda item: (-item[1], item[0]))[:most]]


def renyi_efficiency(counts: np.ndarray, vocab_size: int, alpha: float = RENYI_ALPHA) -> float | None:
    """H_alpha of the unigram distribution over log2(vocab_size); None without tokens."""
    total = counts.sum()
    if not total or vocab_size < 2:
        return None
    p = counts[counts > 0] / total
    return round(float(np.log2((p**alpha).sum()) / (1 - alpha) / np.log2(vocab_size)), 6)


def rank_frequency(counts: np.ndarray, points: int = 120) -> list[list[int]]:
    """[rank, count] of the used ids, most frequent first, at ranks evenly spaced in the logarithm."""
    used = np.sort(counts[counts > 0])[::-1]
    if not len(used):
        return []
    ranks = np.unique(np.rint(np.geomspace(1, len(used), points)).astype(np.int64))
    return [[int(r), int(used[r - 1])] for r in ranks]


def gini(values: Sequence[float]) -> float | None:
    """Gini coefficient of non-negative values: mean absolute difference over twice the mean; 0 is even."""
    x = np.sort(np.asarray(values, np.float64))
    n, total = len(x), x.sum()
    if not n or total <= 0:
        return None
    return round(float(2 * (np.arange(1, n + 1) * x).sum() / (n * total) - (n + 1) / n), 6)
