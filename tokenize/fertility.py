"""How well a tokenizer fits each language: fertility, compression, unused ids, and whether the round trip is exact.

Definitions. k_w is the number of tokens whose character span intersects the word w, with the whole text encoded (in
context). fertility = mean of k_w; pcw (proportion of continued words) = share of words with k_w >= 2; bytes and chars
per token count all of the text. Words are those of the segmenter named in the table (`tokenize.segment`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gristmill.tokenize.codec import Codec
from gristmill.tokenize.segment import SEGMENTER, has_words, runs

FORMAT = "gristmill-fertility-1"
BATCH_CHARS = 1 << 19


@dataclass
class Tally:
    """Sums over documents; `row` gives the ratios."""

    docs: int = 0
    bytes: int = 0
    chars: int = 0
    tokens: int = 0
    words: int = 0
    word_tokens: int = 0
    continued: int = 0
    word_chars: int = 0
    skipped_chars: int = 0
    lossless: int = 0

    def add(self, other: Tally) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def forget_words(self) -> None:
        """Leave the words out, where `has_words` says that runs do not tell them."""
        self.words = self.word_tokens = self.continued = 0

    def row(self) -> dict[str, Any]:
        told = self.words > 0
        return {
            "docs": self.docs,
            "bytes": self.bytes,
            "chars": self.chars,
            "words": self.words if told else None,
            "tokens": self.tokens,
            "fertility": ratio(self.word_tokens, self.words) if told else None,
            "pcw": ratio(self.continued, self.words) if told else None,
            "bytes_per_token": ratio(self.bytes, self.tokens),
            "chars_per_token": ratio(self.chars, self.tokens),
            "lossless": ratio(self.lossless, self.docs),
        }


def ratio(a: int, b: int) -> float | None:
    """a / b to six decimals; None where b is 0."""
    return round(a / b, 6) if b else None


def tokens_per_word(spans: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(words,) k_w: tokens of `spans` (tokens, 2) that intersect each word [start, end).

    A token that ends at or before a word's start also starts before its end, so the difference of two counts is the
    number that intersects, in whatever order the tokens stand (a normaliser may reorder characters).
    """
    after = np.searchsorted(np.sort(spans[:, 0]), ends, "left")
    before = np.searchsorted(np.sort(spans[:, 1]), starts, "right")
    return np.asarray(after - before)


def measure(codec: Codec, documents: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The fertility table over (language, text) pairs, as plain JSON: `languages` by name, `all` of them together.

    `unused` are ids that a text could give but none here did; `free` ids (special, reserved) are not among them.
    """
    tallies: dict[str, Tally] = {}
    used = np.zeros(codec.vocab_size, np.int64)
    for batch in batched(documents):
        encoded = codec.encode_spans([text for _, text in batch])
        decoded = codec.decode_batch([ids for ids, _ in encoded])
        for (language, text), (ids, spans), back in zip(batch, encoded, decoded, strict=True):
            starts, ends, skipped = runs(text)
            k = tokens_per_word(spans, starts, ends)
            used += np.bincount(ids, minlength=codec.vocab_size)
            tallies.setdefault(language, Tally()).add(
                Tally(
                    docs=1,
                    bytes=len(text.encode()),
                    chars=len(text),
                    tokens=len(ids),
                    words=len(k),
                    word_tokens=int(k.sum()),
                    continued=int((k >= 2).sum()),
                    word_chars=int((ends - starts).sum()),
                    skipped_chars=skipped,
                    lossless=int(back == text),
                )
            )
    every = Tally()
    for language, tally in tallies.items():
        if not has_words(language, tally.word_chars, tally.skipped_chars):
            tally.forget_words()
        every.add(tally)
    reachable = np.ones(codec.vocab_size, bool)
    reachable[codec.free_ids] = False
    unused = int((used[reachable] == 0).sum())
    total = int(reachable.sum())
    return {
        "format": FORMAT,
        "tokenizer_sha256": codec.sha256,
        "vocab_size": codec.vocab_size,
        "segmenter": SEGMENTER,
        "languages": {name: tallies[name].row() for name in sorted(tallies)},
        "all": every.row(),
        "unused": {"ids": unused, "of": total, "share": ratio(unused, total), "free": codec.vocab_size - total},
    }


def batched(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch: list[tuple[str, str]] = []
    chars = 0
    for document in documents:
        batch.append(document)
        chars += len(document[1])
        if chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


_COLUMNS: Sequence[tuple[str, str, str]] = (
    ("docs", "docs", ",d"),
    ("bytes", "bytes", ",d"),
    ("tokens", "tokens", ",d"),
    ("words", "words", ",d"),
    ("fertility", "fertility", ".3f"),
    ("pcw", "PCW", ".1%"),
    ("bytes_per_token", "bytes/tok", ".2f"),
    ("chars_per_token", "chars/tok", ".2f"),
    ("lossless", "lossless", ".2%"),
)


def render(table: dict[str, Any]) -> str:
    """The table as plain text for a terminal, largest language first; n/a where a measure has no meaning."""
    order = sorted(table["languages"].items(), key=lambda item: (-item[1]["bytes"], item[0]))
    lines = [["language", *(title for _, title, _ in _COLUMNS)]]
    for name, row in [*order, ("all", table["all"])]:
        lines.append([name, *("n/a" if row[key] is None else format(row[key], form) for key, _, form in _COLUMNS)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    unused = table["unused"]
    share = f" ({unused['share']:.1%})" if unused["share"] is not None else ""
    return "\n".join(
        [
            *text,
            f"{table['vocab_size']:,} ids, {unused['free']:,} of them special or reserved; "
            f"{unused['ids']:,} of the other {unused['of']:,}{share} unused on these documents",
            f"words by {table['segmenter']}, tokens per word in context",
        ]
    )
