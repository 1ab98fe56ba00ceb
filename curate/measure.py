"""The stage `curate.measure`: every number that a rule compares, measured once and stored as columns.

`raw.*` columns measure the extracted text, `c4.*` the text that C4's line rules leave (English only), which is stored
as `c4.text`. A null says that the metric has no meaning there: no table or no segmenter for the language, or too few
words. Thresholds are no part of this stage's config, so changing one measures nothing again.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from gristmill.core.docshards import TableWriter, read_batches
from gristmill.core.stage import Counters, Outbox, Stage, Task
from gristmill.curate.metrics import LayoutMetrics, LineMetrics, WordMetrics, layout_metrics, line_metrics, word_metrics
from gristmill.curate.metrics_c4 import rewrite
from gristmill.curate.schema import C4Rewrite
from gristmill.curate.words import LEXICONS

TABLE_LANGUAGES = frozenset({"en"})
"""Languages that the published tables (stop words, C4's phrases and sentence rule) are written for."""

_COUNTS = {"words", "nonsymbol_words", "stop_words", "nonblank_lines"}


def _fields(prefix: str, names: Sequence[str]) -> list[tuple[str, pa.DataType]]:
    return [(f"{prefix}.{name}", pa.int64() if name in _COUNTS else pa.float64()) for name in names]


METRIC_SCHEMA = pa.schema(
    [
        ("raw.chars", pa.int64()),
        *_fields("raw", LineMetrics._fields),
        *_fields("raw", WordMetrics._fields),
        *_fields("raw", LayoutMetrics._fields),
        ("c4.chars", pa.int64()),
        ("c4.words", pa.int64()),
        *_fields("c4", LayoutMetrics._fields),
        ("c4.sentences", pa.int64()),
        ("c4.lorem_ipsum_line", pa.int64()),  # first non-blank line with it, from 1; null when none
        ("c4.curly_bracket_line", pa.int64()),
        ("c4.text", pa.string()),
    ]
)
"""What `measure_batch` returns, one row per text."""

MEASURE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("language", pa.string()),
        ("language_score", pa.float32()),
        ("text_version_available", pa.string()),  # "c4" where c4.text is there, else "raw"
        *METRIC_SCHEMA,
    ]
)
"""One row per page, in the order of `curate.pages`."""

_NO_WORDS = (None,) * len(WordMetrics._fields)
_NO_C4 = (None,) * (2 + len(LayoutMetrics._fields) + 4)
_GROUP_ROWS, _GROUP_CHARS = 4096, 32_000_000  # rows and c4.text characters of one Parquet row group


def measure_text(text: str, language: str | None, c4: C4Rewrite | None, short_line_chars: int) -> tuple[Any, ...]:
    """One row of METRIC_SCHEMA."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()  # lone surrogates become "?"; Parquet cannot hold them
    lexicon = LEXICONS.get(language)
    lines = text.splitlines()
    by_line = line_metrics(text, lines)
    by_word: tuple[Any, ...] = _NO_WORDS
    by_c4: tuple[Any, ...] = _NO_C4
    n_words = None
    if lexicon is not None:
        tables = language in TABLE_LANGUAGES
        blank = c4 is not None and c4.min_words_per_line < 1  # then C4 keeps blank lines
        stripped = [bare for line in lines if (bare := line.strip()) or blank]
        segmented = lexicon.lines(stripped)
        words = lexicon.gather(segmented.rows)
        n_words = len(words)
        by_word = word_metrics(text, words, stop_words=tables)
        if c4 is not None and tables:
            left = rewrite(stripped, segmented, lexicon, c4)
            layout = layout_metrics(left.text, left.words, short_line_chars)
            marks = (left.sentences, left.lorem_ipsum_line, left.curly_bracket_line, left.text)
            by_c4 = (len(left.text), left.words, *layout, *marks)
    return (len(text), *by_line, *by_word, *layout_metrics(text, n_words, short_line_chars), *by_c4)


def measure_batch(
    texts: Sequence[str | None], languages: Sequence[str | None], c4: C4Rewrite | None, short_line_chars: int
) -> pa.Table:
    """Measure texts, each in its fastText language. Returns METRIC_SCHEMA, same rows, same order.

    `c4` None leaves all `c4.*` columns null. `short_line_chars` is FineWeb's length of a short line in characters.
    """
    rows = [measure_text(t or "", lang, c4, short_line_chars) for t, lang in zip(texts, languages, strict=True)]
    columns = zip(*rows, strict=True) if rows else ([] for _ in METRIC_SCHEMA)
    arrays = [pa.array(values, f.type) for values, f in zip(columns, METRIC_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=METRIC_SCHEMA)


class Measure(Stage):
    """Measures each page. Config: `c4`, the C4Rewrite settings or None; `short_line_chars`, an int."""

    name = "curate.measure"
    version = 1
    upstream = ("curate.pages",)

    def uses(self) -> Mapping[str, str]:
        return {
            "spacy": version("spacy"),
            "datatrove": version("datatrove"),  # its punctuation tables
            "unicode": unicodedata.unidata_version,
        }

    def run(self, task: Task, out: Outbox) -> Counters:
        c4 = None if self.config["c4"] is None else C4Rewrite.model_validate(self.config["c4"])
        short = int(self.config["short_line_chars"])
        counters = Counters()
        pages = read_batches(
            task.shard("curate.pages", "pages.parquet"), ["id", "text", "language", "language_score"], rows=256
        )
        with TableWriter(out.path("measures.parquet"), MEASURE_SCHEMA) as writer:
            for group in _groups(_measure(batch, c4, short) for batch in pages):
                writer.write(group)
                counters.rows_in += group.num_rows
        counters.rows_out = counters.rows_in
        return counters


def _measure(batch: pa.RecordBatch, c4: C4Rewrite | None, short_line_chars: int) -> Iterator[pa.Table]:
    """Slices of at most 32 rows, so that a batch of huge texts is not held twice."""
    for at in range(0, batch.num_rows, 32):
        part = batch.slice(at, 32)
        languages = part.column("language").to_pylist()
        table = measure_batch(part.column("text").to_pylist(), languages, c4, short_line_chars)
        available = ["raw" if null else "c4" for null in table.column("c4.text").is_null().to_pylist()]
        head = [part.column("id"), part.column("language"), part.column("language_score"), pa.array(available)]
        arrays = [*head, *(column.combine_chunks() for column in table.columns)]
        yield pa.Table.from_arrays(arrays, names=MEASURE_SCHEMA.names)


def _groups(batches: Iterator[Iterator[pa.Table]]) -> Iterator[pa.Table]:
    """Tables joined to row groups of bounded size; their bounds depend on the rows alone."""
    held: list[pa.Table] = []
    rows = chars = 0
    for batch in batches:
        for table in batch:
            held.append(table)
            rows += table.num_rows
            chars += table.column("c4.text").nbytes
            if rows >= _GROUP_ROWS or chars >= _GROUP_CHARS:
                yield pa.concat_tables(held)
                held, rows, chars = [], 0, 0
    if held:
        yield pa.concat_tables(held)
