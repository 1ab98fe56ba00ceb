"""A seeded sample of curated documents, the same whatever the order of files, rows or workers.

Within a group (a language, or a source), documents are taken in the order of hash(id, seed) until the group's bytes are
full. Which documents those are is a function of the set of documents alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gristmill.core.errors import InputError
from gristmill.core.hashing import hash64, seed_of
from gristmill.tokenize.schema import Sample

if TYPE_CHECKING:
    import regex

UNKNOWN = "und"
"""ISO 639's code for "undetermined", for rows without a language (or source)."""

PRUNE_ROWS = 1 << 20  # candidates kept per group before the tail that can never be chosen is cut off


@dataclass(frozen=True)
class Picked:
    """A choice of rows in a list of files: `rows[i]` are the ascending row numbers in file i."""

    rows: list[np.ndarray]
    docs: dict[str, int]  # group -> documents chosen
    bytes: dict[str, int]  # group -> their UTF-8 bytes, each document capped, as often as it is passed
    available: dict[str, int]  # group -> the bytes of all documents, once
    available_docs: int
    times: list[np.ndarray]  # as `rows`: how often each document is passed; more than once by `unimax` alone
    by: str = "language"


class _Candidates:
    """The documents of one group that may still be chosen: (hash, id, file, row, bytes)."""

    def __init__(self) -> None:
        self.parts: list[pa.Table] = []
        self.count = 0
        self.limit = PRUNE_ROWS

    def add(self, table: pa.Table, budget: int, docs: int | None) -> None:
        self.parts.append(table)
        self.count += table.num_rows
        if self.count > self.limit:
            kept = self.take(budget, docs)
            self.parts, self.count = [kept], kept.num_rows
            self.limit = max(PRUNE_ROWS, 2 * self.count)  # doubling: n rows are sorted log n times, not n times

    def take(self, budget: int, docs: int | None) -> pa.Table:
        """The first documents in hash order: until `budget` bytes are full (passed by one at most) and at most `docs`."""
        table = pa.concat_tables(self.parts).sort_by([("hash", "ascending"), ("id", "ascending")])
        sizes = table["bytes"].to_numpy()
        before = np.cumsum(sizes) - sizes
        return table.slice(
            0, min(int(np.searchsorted(before, budget, "left")), docs if docs is not None else len(sizes))
        )


def pick(paths: Sequence[Path], sample: Sample, seed: int, docs_per_language: int | None = None) -> Picked:
    """Choose documents from Parquet files that have the columns id, text and (maybe) language.

    With `docs_per_language` the choice is that many documents of each group, whatever the policy.
    Raises InputError when a file lacks a column.
    """
    candidates: dict[str, _Candidates] = defaultdict(_Candidates)
    available: dict[str, int] = defaultdict(int)
    total = 0
    for index, path in enumerate(paths):
        first_row = 0
        for batch in _batches(path, sample.by):
            sizes = pc.binary_length(pc.utf8_slice_codeunits(batch["text"], 0, sample.doc_cap_chars))
            table = pa.table(
                {
                    "hash": pa.array([hash64(i, seed) for i in batch["id"].to_pylist()], pa.uint64()),
                    "id": batch["id"],
                    "file": pa.array(np.full(len(batch), index, np.int32)),
                    "row": pa.array(np.arange(first_row, first_row + len(batch), dtype=np.int64)),
                    "bytes": sizes.cast(pa.int64()),
                }
            )
            first_row += len(batch)
            total += len(batch)
            for group in sorted(pc.unique(batch["group"]).to_pylist()):
                own = table.filter(pc.equal(batch["group"], group))
                available[group] += pc.sum(own["bytes"]).as_py()
                candidates[group].add(own, sample.bytes, docs_per_language)
    if docs_per_language is None:
        budgets = divide(available, sample)
    else:
        budgets = dict.fromkeys(available, sample.bytes)
    chosen = {
        name: _passed(candidates[name], budgets[name], available[name], docs_per_language)
        for name in sorted(candidates)
    }
    rows, times = [], []
    for index in range(len(paths)):
        mine = [t.filter(pc.equal(t["file"], index)) for t in chosen.values()]
        numbers = np.concatenate([np.empty(0, np.int64), *(t["row"].to_numpy() for t in mine)])
        order = np.argsort(numbers, kind="stable")
        rows.append(numbers[order])
        times.append(np.concatenate([np.empty(0, np.int64), *(t["times"].to_numpy() for t in mine)])[order])
    docs = {name: t.num_rows for name, t in chosen.items()}
    sizes = {name: int(pc.sum(pc.multiply(t["bytes"], t["times"])).as_py() or 0) for name, t in chosen.items()}
    return Picked(rows, docs, sizes, dict(sorted(available.items())), total, times, sample.by)


def _passed(candidates: _Candidates, budget: int, available: int, docs: int | None) -> pa.Table:
    """The chosen documents of a group, with how often each is passed: all of them, and the first ones once more, where
    the budget is more than there is."""
    whole, rest = divmod(budget, available) if budget > available and docs is None else (0, budget)
    again = candidates.take(rest, docs)
    table = candidates.take(available, None) if whole else again
    times = np.full(len(table), whole, np.int64)
    times[: len(again)] += 1  # both are in hash order
    return table.append_column("times", pa.array(times))


def divide(available: Mapping[str, int], sample: Sample) -> dict[str, int]:
    """Bytes per group.

    natural, temperature: shares ~ n ** (1 / T), none above n; what a small group leaves goes to the others. T = 1 is
    the natural mix. Shares by temperature are those of multilingual BERT.
    unimax: from the smallest group on, an even share of what is left, none above `max_epochs` x n (algorithm 1 of
    arXiv:2304.09151). Where groups are equal, names decide.
    """
    budgets = dict.fromkeys(sorted(available), 0)
    if sample.policy == "unimax":
        whole = sample.bytes
        smallest = sorted((n, name) for name, n in available.items() if n > 0)
        for at, (n, name) in enumerate(smallest):
            budgets[name] = min(whole // (len(smallest) - at), int(n * sample.max_epochs))
            whole -= budgets[name]
        return budgets
    exponent = 1.0 if sample.policy == "natural" else 1.0 / sample.temperature
    left = float(sample.bytes)
    waiting = {name: n for name, n in sorted(available.items()) if n > 0}
    while waiting:
        weights = {name: float(n) ** exponent for name, n in waiting.items()}
        unit = left / sum(weights.values())
        full = [name for name, n in waiting.items() if weights[name] * unit >= n]
        if not full:
            budgets.update({name: int(weights[name] * unit) for name in waiting})
            break
        for name in full:
            budgets[name] = waiting.pop(name)
            left -= budgets[name]
    return budgets


def texts(paths: Sequence[Path], picked: Picked, cap: int) -> Iterator[tuple[str, str]]:
    """(group, text of at most `cap` characters) of the chosen documents, in file and row order."""
    for path, rows, times in zip(paths, picked.rows, picked.times, strict=True):
        if not len(rows):
            continue
        with pq.ParquetFile(path) as file:
            ends = np.cumsum([file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)])
        for group in np.unique(np.searchsorted(ends, rows, "right")).tolist():
            first = int(ends[group - 1]) if group else 0
            for batch in _batches(path, picked.by, [group]):
                place = slice(np.searchsorted(rows, first), np.searchsorted(rows, first + len(batch)))
                mine, often = rows[place] - first, times[place].tolist()
                first += len(batch)
                if len(mine):
                    few = batch.take(pa.array(mine))
                    for name, text, n in zip(few["group"].to_pylist(), few["text"].to_pylist(), often, strict=True):
                        for _ in range(n):
                            yield name, text[:cap]


def _batches(path: Path, by: str, groups: list[int] | None = None) -> Iterator[pa.RecordBatch]:
    """Batches with the columns id, text and group (the column `by`), none of them null."""
    needed = ("id", "text") if by == "language" else ("id", "text", by)
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            lacking = [c for c in needed if c not in names]
            if lacking:
                raise InputError(
                    f"{path} has no column {' or '.join(lacking)}", hint=f"give curated Parquet: id, text, {by}"
                )
            columns = [c for c in ("id", "text", by) if c in names]
            for batch in file.iter_batches(batch_size=1024, columns=columns, row_groups=groups):
                group = batch[by].cast(pa.string()) if by in names else pa.nulls(len(batch), pa.string())
                yield pa.record_batch(
                    {
                        "id": pc.fill_null(batch["id"].cast(pa.string()), ""),
                        "text": pc.fill_null(batch["text"].cast(pa.string()), ""),
                        "group": pc.fill_null(group, UNKNOWN),
                    }
                )
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} does not read as Parquet: {error}") from error


@lru_cache(maxsize=8)
def _compiled(pattern: str) -> regex.Pattern[str]:
    import regex

    return regex.compile(pattern)


def cut_pretokens(text: str, pattern: str, cap: int) -> Iterator[str]:
    """A text in pieces, cut where a pre-token of `pattern` is longer than `cap` characters; joined they are the text.

    Only stretches of more than `cap` characters with or without white space are looked at (few texts have any), so a
    piece's pre-tokens have at most 2 x cap + 1 characters: punctuation and the line ends behind it count apart.
    """
    done = 0
    for stretch in _compiled(rf"\S{{{cap + 1},}}+|\s{{{cap + 1},}}+").finditer(text):
        for match in _compiled(pattern).finditer(text, stretch.start(), stretch.end()):
            for cut in range(match.start() + cap, match.end(), cap):
                yield text[done:cut]
                done = cut
    yield text[done:]


def sample_seed(seed: int, purpose: str) -> int:
    return seed_of("tokenizer", purpose, seed)
