"""The stage `curate.measure`: every number that a rule compares, measured once and stored as columns.

`raw.*` columns measure the extracted text, `c4.*` and `refinedweb.*` the text that the line rules of those sets leave
(English only), which is stored as `c4.text` and `refinedweb.text`. A null says that the metric has no meaning there (no
table or no segmenter for the language, too few words) or that no rule set of the recipe needs its family.
Thresholds are no part of this stage's config, so changing one measures nothing again.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from gristmill.core.docshards import TableWriter, read_batches
from gristmill.core.stage import Counters, Outbox, Stage, Task
from gristmill.curate.chunks import Scan
from gristmill.curate.columns import COLUMNS, Family
from gristmill.curate.columns import METRIC_SCHEMA as METRIC_SCHEMA
from gristmill.curate.final_text import STEPS, pages_shard
from gristmill.curate.labels import rules_language
from gristmill.curate.metrics import (
    GOPHER_STOP_WORDS,
    StopWords,
    layout_metrics,
    line_metrics,
    stop_hashes,
    word_metrics,
)
from gristmill.curate.metrics_c4 import rewrite
from gristmill.curate.schema import C4Rewrite, RefinedWebRewrite
from gristmill.curate.words import LEXICONS, Lexicon

TABLE_LANGUAGES = frozenset({"en"})
"""Languages that the published tables (stop words, C4's phrases and sentence rule) are written for."""

MEASURE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("language", pa.string()),
        ("language_score", pa.float32()),
        ("text_version_available", pa.string()),  # "c4" or "refinedweb" where that text is there, else "raw"
        *METRIC_SCHEMA,
    ]
)
"""One row per page, in the order of `curate.pages`."""

_GROUP_ROWS, _GROUP_CHARS = 4096, 32_000_000  # rows and rewritten characters of one Parquet row group
TOGETHER = 200_000
"""Characters of text whose new chunks are segmented in one call."""
_REWRITES = {"c4": "c4.text", "refinedweb": "refinedweb.text"}
_SEGMENTED = ("words", "ngrams", "layout", "c4")
_AT = {name: i for i, name in enumerate(METRIC_SCHEMA.names)}
_LINES, _WORDS, _LAYOUT = _AT["raw.dup_paragraphs"], _AT["raw.words"], _AT["raw.nonblank_lines"]
_C4, _DCLM, _REFINEDWEB = _AT["c4.chars"], _AT["raw.dclm_words"], _AT["refinedweb.chars"]
"""Where a family's values begin in a row; they stand together, in the order in which they are measured."""


@dataclass(frozen=True)
class Plan:
    """What is measured beside `raw.chars`. Columns of other families stay null."""

    families: frozenset[Family] = frozenset({"lines", "words", "ngrams", "layout", "c4"})
    c4: C4Rewrite | None = None
    refinedweb: RefinedWebRewrite = field(default_factory=RefinedWebRewrite)
    short_line_chars: int = 30
    """FineWeb's length of a short line in characters."""
    stop_words: Mapping[str, StopWords] = field(default_factory=dict)
    """fastText label -> the stop words that replace Gopher's eight there."""
    languages: frozenset[str] | None = None
    """Only texts in these are measured beyond `raw.chars`: others are dropped whatever they measure, and a tokenizer
    for each of 40 stray languages takes 0.1 to 5 s to load. None: all."""

    def c4_of(self, language: str | None) -> C4Rewrite | None:
        """C4's line rules for texts in a language; None where they are off or have no tables."""
        return self.c4 if "c4" in self.families and rules_language(language) in TABLE_LANGUAGES else None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Plan:
        """From the stage's config."""
        c4, refined = config.get("c4"), config.get("refinedweb")
        families = config.get("families")
        return cls(
            cls.families if families is None else frozenset(families),
            None if c4 is None else C4Rewrite.model_validate(c4),
            RefinedWebRewrite.model_validate(refined or {}),
            int(config["short_line_chars"]),
            {label: stop_hashes(words) for label, words in (config.get("stop_words") or {}).items()},
            None if config.get("languages") is None else frozenset(config["languages"]),
        )


@dataclass
class _Page:
    """A text that is to be measured, its chunks looked up."""

    text: str
    language: str | None
    n_lines: int = 0
    """As `str.splitlines` cuts them."""
    stripped: list[str] = field(default_factory=list)
    """Those lines without white space around; blank ones only where C4 keeps them."""
    lexicon: Lexicon | None = None
    scan: Scan | None = None


def _page(text: str, language: str | None, plan: Plan) -> _Page:
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()  # lone surrogates become "?"; Parquet cannot hold them
    page = _Page(text, language)
    if plan.languages is not None and language not in plan.languages:
        return page
    lines = text.splitlines()
    c4 = plan.c4_of(language)
    blank = c4 is not None and c4.min_words_per_line < 1  # then C4 keeps blank lines
    page.n_lines, page.stripped = len(lines), [bare for line in lines if (bare := line.strip()) or blank]
    if not plan.families.isdisjoint(_SEGMENTED) and (lexicon := LEXICONS.of(language)) is not None:
        page.lexicon, page.scan = lexicon, lexicon.scan(page.stripped)
    return page


def _row(page: _Page, plan: Plan) -> list[Any]:
    """One row of METRIC_SCHEMA."""
    text, language, on = page.text, page.language, plan.families
    row: list[Any] = [None] * len(METRIC_SCHEMA)
    row[0] = len(text)
    if plan.languages is not None and language not in plan.languages:
        return row

    def put(at: int, values: Sequence[Any]) -> None:
        row[at : at + len(values)] = values

    known = rules_language(language)
    tables = known in TABLE_LANGUAGES
    if "lines" in on:
        put(_LINES, line_metrics(text, page.n_lines, page.stripped))
    n_words = None
    if (lexicon := page.lexicon) is not None and page.scan is not None:
        lexicon.begin()
        segmented = lexicon.finish(page.scan)
        if "words" in on or "ngrams" in on:
            words = lexicon.gather(segmented.rows)
            n_words = len(words)
            stops = plan.stop_words.get(
                language or "", plan.stop_words.get(known, GOPHER_STOP_WORDS if tables else None)
            )
            put(_WORDS, word_metrics(text, words, stop_words=stops, ngrams="ngrams" in on))
        else:
            n_words = lexicon.word_count(segmented.rows)
        if (c4 := plan.c4_of(language)) is not None:
            left = rewrite(page.stripped, segmented, lexicon, c4)
            layout = layout_metrics(left.text, left.words, plan.short_line_chars)
            marks = (left.sentences, left.lorem_ipsum_line, left.curly_bracket_line, left.text)
            put(_C4, (len(left.text), left.words, *layout, *marks))
    if "layout" in on:
        put(_LAYOUT, layout_metrics(text, n_words, plan.short_line_chars))
    if "dclm" in on or "refinedweb" in on:
        from gristmill.curate import metrics_dclm as dclm
        from gristmill.curate import metrics_refinedweb as refinedweb

        classes = dclm.char_classes(text)
        if "dclm" in on:
            put(_DCLM, dclm.dclm_metrics(text, classes, stop_words=tables))
        if "refinedweb" in on and tables:
            put(_REFINEDWEB, refinedweb.refine(text, classes, plan.refinedweb))
    return row


def _rows(texts: Sequence[str | None], languages: Sequence[str | None], plan: Plan) -> Iterator[list[Any]]:
    """Rows of METRIC_SCHEMA. New chunks of about TOGETHER characters of text are segmented in one call: a call for
    each text takes twice as long."""
    pages: list[_Page] = []
    size = 0
    for i, (text, language) in enumerate(zip(texts, languages, strict=True), 1):
        if not pages:
            LEXICONS.trim()
        pages.append(_page(text or "", language, plan))
        size += len(text or "")
        if size >= TOGETHER or i == len(texts):
            scans: dict[Lexicon, list[Scan]] = {}
            for page in pages:
                if page.lexicon is not None and page.scan is not None:
                    scans.setdefault(page.lexicon, []).append(page.scan)
            for lexicon, group in scans.items():
                lexicon.learn(group)
            yield from (_row(page, plan) for page in pages)
            pages, size = [], 0


def measure_batch(
    texts: Sequence[str | None],
    languages: Sequence[str | None],
    c4: C4Rewrite | None,
    short_line_chars: int,
    plan: Plan | None = None,
) -> pa.Table:
    """Measure texts, each in its fastText language. Returns METRIC_SCHEMA, same rows, same order.

    Without a `plan` all metrics of datatrove's sets are measured; `c4` None leaves all `c4.*` columns null;
    `short_line_chars` is FineWeb's length of a short line in characters. A plan replaces both.
    """
    plan = plan or Plan(c4=c4, short_line_chars=short_line_chars)
    rows = list(_rows(texts, languages, plan))
    columns = zip(*rows, strict=True) if rows else ([] for _ in METRIC_SCHEMA)
    families = {"size", *plan.families} | ({"words"} if "ngrams" in plan.families else set())
    arrays = [
        pa.array(values, column.type) if column.family in families else pa.nulls(len(rows), column.type)
        for values, column in zip(columns, COLUMNS, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=METRIC_SCHEMA)


class Measure(Stage):
    """Measures each page. Config: `families`, a list of those of `curate.columns` (default: all of datatrove's sets);
    `c4` and `refinedweb`, their line rules or None; `short_line_chars`, an int; `stop_words`, lists by language;
    `languages`, the only ones that are measured (default: all)."""

    name = "curate.measure"
    version = 2
    upstream: tuple[str, ...] = ("curate.pages",)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        if self.config.get("steps"):
            self.upstream = (STEPS,)

    def uses(self) -> Mapping[str, str]:
        return {
            "spacy": version("spacy"),
            "datatrove": version("datatrove"),  # its punctuation tables
            "regex": version("regex"),  # its word boundaries
            "unicode": unicodedata.unidata_version,
        }

    def run(self, task: Task, out: Outbox) -> Counters:
        plan = Plan.of(self.config)
        counters = Counters()
        pages = read_batches(pages_shard(task), ["id", "text", "language", "language_score"], rows=256)
        with TableWriter(out.path("measures.parquet"), MEASURE_SCHEMA) as writer:
            for group in _groups(_measure(batch, plan) for batch in pages):
                writer.write(group)
                counters.rows_in += group.num_rows
        counters.rows_out = counters.rows_in
        return counters


def _measure(batch: pa.RecordBatch, plan: Plan) -> Iterator[pa.Table]:
    """Slices of at most 32 rows, so that a batch of huge texts is not held twice."""
    for at in range(0, batch.num_rows, 32):
        part = batch.slice(at, 32)
        languages = part.column("language").to_pylist()
        table = measure_batch(part.column("text").to_pylist(), languages, None, plan.short_line_chars, plan)
        available = ["raw"] * table.num_rows
        for name, text in _REWRITES.items():
            there = table.column(text).is_valid().to_pylist()
            available = [name if new else old for new, old in zip(there, available, strict=True)]
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
            chars += sum(table.column(text).nbytes for text in _REWRITES.values())
            if rows >= _GROUP_ROWS or chars >= _GROUP_CHARS:
                yield pa.concat_tables(held)
                held, rows, chars = [], 0, 0
    if held:
        yield pa.concat_tables(held)
