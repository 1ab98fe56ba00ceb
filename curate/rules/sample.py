"""A seeded sample of documents by language from Parquet or JSONL files, the same whatever the order of the files."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from gristmill.core.errors import FormatError, UsageError
from gristmill.curate.jsonl import read_objects

MAX_CHARS = 100_000  # of one text: what comes after changes no ratio that is fitted
BATCH = 512


class Document(NamedTuple):
    """A text and its language score, None where the sample has none."""

    text: str
    score: float | None


class Fields(NamedTuple):
    """What the columns are called."""

    text: str = "text"
    language: str = "language"
    score: str = "language_score"


DEFAULT = Fields()


def sample(paths: Sequence[Path], size: int, seed: int, names: Fields = DEFAULT) -> dict[str, list[Document]]:
    """At most `size` documents of each language: those whose hash with the seed is smallest. Blank texts are left out.

    Raises UsageError for a file without the text or language column, FormatError for a damaged one.
    """
    heaps: dict[str, list[tuple[int, str, float | None]]] = {}
    for path in paths:
        for text, label, score in _rows(path, names):
            if not text or text.isspace() or not label:
                continue
            text = text[:MAX_CHARS]
            rank = xxhash.xxh3_64_intdigest(text.encode("utf-8", "replace"), seed)
            item = (-rank, text, score)
            heap = heaps.setdefault(label, [])
            if len(heap) < size:
                heapq.heappush(heap, item)
            elif item[0] > heap[0][0]:
                heapq.heapreplace(heap, item)
    return {
        label: [Document(text, score) for _, text, score in sorted(heap, key=lambda item: (-item[0], item[1]))]
        for label, heap in sorted(heaps.items())
    }


def _rows(path: Path, names: Fields) -> Iterator[tuple[str, str, float | None]]:
    if path.suffix == ".parquet":
        yield from _parquet(path, names)
        return
    for number, row in read_objects(path):
        text, label, score = row.get(names.text), row.get(names.language), row.get(names.score)
        if not isinstance(text, str) or not isinstance(label, str):
            hint = f"a line holds {{{names.text!r}: …, {names.language!r}: …}}; --text and --language name other fields"
            raise UsageError(f"{path}:{number}: no text or no language", hint=hint)
        yield text, label, _number(score, path, number)


def _number(score: Any, path: Path, number: int) -> float | None:
    if score is None:
        return None
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise UsageError(f"{path}:{number}: the language score is no number")
    return float(score)


def _parquet(path: Path, names: Fields) -> Iterator[tuple[str, str, float | None]]:
    try:
        with pq.ParquetFile(path) as file:
            known = file.schema_arrow.names
            if lacking := {names.text, names.language} - set(known):
                hint = f"columns: {', '.join(known[:20])}; --text and --language name others"
                raise UsageError(f"{path} has no column {', '.join(sorted(lacking))}", hint=hint)
            columns = [name for name in names if name in known]
            for batch in file.iter_batches(BATCH, columns=columns):
                rows = {name: batch.column(name).to_pylist() for name in columns}
                scores = rows.get(names.score, [None] * batch.num_rows)
                yield from zip(rows[names.text], rows[names.language], scores, strict=True)
    except pa.ArrowException as error:
        raise FormatError(f"{path} is no Parquet file: {error}", hint="give .parquet or JSON lines") from error
