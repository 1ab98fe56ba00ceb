"""The stage `curate.pages`: a WARC or ARC file in, its extracted pages with their language out.

The parent reads records and applies the URL rules; decoding, extraction and language identification run in a process
that a page may kill (curate.sandbox). Every record of any type is a row of the ledger: a page, a drop with its reason,
or quarantined (damaged bytes, and pages that kill their process again and again).
"""

from __future__ import annotations

import importlib.metadata
import io
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from xxhash import xxh3_128

from gristmill.core.errors import FormatError, GristmillError, InputError, UsageError
from gristmill.core.hashing import document_id
from gristmill.core.stage import Counters, Outbox, Receipt, Shard, Stage, Task
from gristmill.curate.optout import signals
from gristmill.curate.page_head import absolute
from gristmill.curate.schema import Extract, Urls
from gristmill.curate.schema_language import Reading

if TYPE_CHECKING:
    import pyarrow as pa

    from gristmill.core.docshards import TableWriter
    from gristmill.curate.sandbox import Answer, Job
    from gristmill.curate.warc import Damage, Limits, Page, Record

BATCH_ROWS = 256
BATCH_CHARS = 8 << 20
"""A batch is written when its texts reach this, so that memory is bounded whatever the pages."""
MAX_SEEN = 1_000_000
QUIET_KINDS = frozenset({"warcinfo", "request", "metadata"})
"""Record types that are counted but leave no row in drops.parquet: they are no documents."""
LIBRARIES = ("faust-cchardet", "brotli", "zstandard")
"""They decide texts, as do the engine's. The rest of reading is the standard library's and ours."""


class Pages(Stage):
    """Config: `extract` (schema.Extract), `urls` (schema.Urls), `language` (schema_language.Reading), `raw_duplicates`
    (whether byte-identical pages of one file are dropped); with a language gate `gate` (schema_language.Gate) and
    `wanted` (labels); `reader` (schema.Reader) where rows of texts take the place of records. Input: one raw file per
    task, keyed by its name.
    """

    name = "curate.pages"
    version = 4
    upstream = ("input",)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.extract = Extract.model_validate(self.config.get("extract", {}))
        self.urls = Urls.model_validate(self.config.get("urls", {}))
        self.language: dict[str, Any] = {k: v for k, v in self.config.items() if k in ("language", "gate", "wanted")}
        self.model: str | None = Reading.model_validate(self.config.get("language", {})).model

    def uses(self) -> Mapping[str, str]:
        """Library versions, the language model's sha256 and the URL lists' digest. Raises UsageError without a model."""
        from gristmill.curate import urls
        from gristmill.curate.engines import engine_uses
        from gristmill.curate.language import find_model, model_digest

        found = {name: importlib.metadata.version(name) for name in LIBRARIES} | engine_uses(self.extract.engine)
        found["fasttext"] = _fasttext()
        found["unicode"] = unicodedata.unidata_version  # decides what is a space and what is printable
        found["lid_model"] = model_digest(find_model(self.model))
        if "reader" in self.config:
            found["datatrove"] = importlib.metadata.version("datatrove")
        return {**found, **urls.uses(self.urls)}

    def tasks(self, inputs: Mapping[str, Sequence[Receipt]]) -> list[Task]:
        from gristmill.curate.url_lists import without_paths

        config = {**self.config, **({"urls": without_paths(self.config["urls"])} if "urls" in self.config else {})}
        if self.model is not None:
            config["language"] = {**self.config["language"], "model": None}  # it counts by its digest in `uses`
        return [replace(task, config=config) for task in self.map_tasks(inputs)]

    def run(self, task: Task, out: Outbox) -> Counters:
        """Read one file. Raises InputError when it is missing, forbidden or fails to read."""
        from gristmill.core.docshards import TableWriter
        from gristmill.core.document import DROP_SCHEMA, PAGE_SCHEMA
        from gristmill.curate import reader_pages, url_lists
        from gristmill.curate.language import find_model, model_digest
        from gristmill.curate.sandbox import Sandbox

        model = find_model(self.model)
        wanted = task.uses.get("lid_model")
        if wanted not in (None, model_digest(model)):
            raise GristmillError(
                f"{model} is not the language model this task was planned with (sha256 {wanted})",
                hint="give every worker the same model, or set $GRISTMILL_LID_MODEL",
            )
        url_lists.same_files(self.urls, task.uses)
        shard = task.shard("input")
        if "reader" in self.config:
            counters = reader_pages.read(self.config, shard, model, out)
            _unchanged(shard)
            return counters
        counters = Counters()
        with (
            Sandbox(self.extract, model, language=self.language, keep=True) as sandbox,
            TableWriter(out.path("pages.parquet"), PAGE_SCHEMA) as pages,
            TableWriter(out.path("drops.parquet"), DROP_SCHEMA) as drops,
        ):
            kept, dropped = _Rows(pages), _Rows(drops)
            for item, answer in sandbox.map(self._items(shard.path, shard.name, counters)):
                outcome = item if answer is None else _outcome(item, answer)
                counters.notes.update(answer.notes if answer else {})
                if isinstance(outcome, _Drop):
                    outcome.count(counters)
                    if outcome.url and outcome.kind not in QUIET_KINDS:
                        dropped.add(outcome.row(), 0)
                else:
                    counters.rows_out += 1
                    kept.add(outcome, len(outcome["text"]))
            kept.flush()
            dropped.flush()
        _unchanged(shard)
        return counters

    def _items(self, url: str, name: str, counters: Counters) -> Iterator[tuple[Any, Job | None]]:
        """Every record as (page, job), or (drop, None) when it is decided here."""
        from gristmill.curate.sandbox import Job
        from gristmill.curate.urls import UrlRules
        from gristmill.curate.warc import Damage, Skip, open_warc, page_of, read_records

        rules = UrlRules(self.urls)
        seen = _Seen() if self.config.get("raw_duplicates") else None
        limits = reading_limits(self.extract)
        with open_warc(url) as stream:
            for record in read_records(stream, name, limits):
                counters.rows_in += 1
                if isinstance(record, Damage):
                    yield _Drop.of(record, name, record.reason, quarantined=True), None
                    continue
                page = page_of(record, limits)
                if isinstance(page, Skip) and record.kind in QUIET_KINDS:
                    counters.drop(page.reason)  # two of three records of a crawl: no row, no place in the queue
                elif isinstance(page, Skip):
                    yield _Drop.of(record, name, page.reason, page.value), None
                elif reason := rules.check(page.url):
                    yield _Drop.of(record, name, reason), None
                elif len(page.html) > self.extract.max_html_bytes:
                    size, most = float(len(page.html)), float(self.extract.max_html_bytes)
                    yield _Drop.of(record, name, "extract.too_large", size, most), None
                elif seen is not None and seen.before(page):
                    yield _Drop.of(record, name, "extract.raw_duplicate"), None
                else:
                    yield _page(page, record, name), Job(page.html, page.content_type)


def _unchanged(shard: Shard) -> None:
    from gristmill.curate.warc_inputs import changed

    if changed(shard.path, shard.sha256):
        raise InputError(f"{shard.path} changed while it was read", hint="run again when no one writes to it any more")


class _Seen:
    """The payloads of one file so far, by 16-byte digest of content type and bytes: together they decide the text.

    It is filled in the order of the file, so what it says depends on no worker. It holds MAX_SEEN digests (100 MB);
    later payloads are compared with those only.
    """

    def __init__(self) -> None:
        self.digests: set[bytes] = set()

    def before(self, page: Page) -> bool:
        """Whether an identical page came before this one."""
        hasher = xxh3_128(page.content_type.encode("utf-8", "replace"))  # blake2b takes 0.1 ms a page
        hasher.update(b"\0")
        hasher.update(page.html)
        digest = hasher.digest()
        if digest in self.digests:
            return True
        if len(self.digests) < MAX_SEEN:
            self.digests.add(digest)
        return False


@dataclass
class _Drop:
    """A record that gave no page, with all that drops.parquet says of it."""

    id: str
    kind: str
    url: str
    warc_file: str
    warc_offset: int
    warc_length: int
    reason: str
    value: float | None = None
    threshold: float | None = None
    quarantined: bool = False

    @classmethod
    def of(
        cls,
        record: Record | Damage,
        name: str,
        reason: str,
        value: float | None = None,
        threshold: float | None = None,
        quarantined: bool = False,
    ) -> _Drop:
        identity = document_id(name, record.offset, record.inner)
        where = (name, record.offset, record.length)
        return cls(identity, record.kind, record.url, *where, reason, value, threshold, quarantined)

    def count(self, counters: Counters) -> None:
        if self.quarantined:
            counters.quarantined += 1
            counters.notes[f"quarantined.{self.reason}"] += 1
        else:
            counters.drop(self.reason)

    def row(self) -> dict[str, Any]:
        names = ("id", "url", "warc_file", "warc_offset", "warc_length", "reason", "value", "threshold")
        return {n: getattr(self, n) for n in names}


def _page(page: Page, record: Record, name: str) -> dict[str, Any]:
    """A PAGE_SCHEMA row without what the sandbox adds; `kind` rides along for drops."""
    return {
        "id": document_id(name, page.offset, page.inner),
        "url": page.url,
        "date": page.date,
        "warc_file": name,
        "warc_offset": page.offset,
        "warc_inner": page.inner,
        "warc_length": page.length,
        "warc_record_id": page.record_id,
        "optout": signals(page.headers, page.html),
        "kind": record.kind,
    }


def _outcome(page: dict[str, Any], answer: Answer) -> dict[str, Any] | _Drop:
    kind = page.pop("kind")
    if answer.reason is not None:
        place = (page["warc_file"], page["warc_offset"], page["warc_length"])
        measured = (answer.value, answer.threshold, answer.quarantined)
        return _Drop(page["id"], kind, page["url"], *place, answer.reason, *measured)
    facts: dict[str, str | None] = dict(answer.facts)
    if (written := answer.facts.get("canonical_url")) is not None:
        facts["canonical_url"] = absolute(written, page["url"])
    added = {"text": answer.text, "charset": answer.charset, "language": answer.language}
    return {**page, **facts, **added, "language_score": answer.score}


def reading_limits(settings: Extract) -> Limits:
    """The reader's limits, raised where a recipe allows larger pages: what it refuses is `extract.too_large`."""
    from gristmill.curate.warc import Limits

    usual = Limits()
    room = settings.max_html_bytes + usual.max_header_bytes
    return Limits(max(usual.max_block_bytes, room), max(usual.max_body_bytes, settings.max_html_bytes + 1))


def text_of_range(url: str, offset: int, length: int, settings: Extract, name: str, inner: int = 0) -> str:
    """The text of one document again, from bytes [offset, offset + length) of its file, in this process.

    `inner` (the document's `warc_inner`) picks the record where a compressed member holds several. It is the text that
    `curate.pages` stored. Raises InputError when the file cannot be read, FormatError when that range holds no such
    page or the page gives no text under these settings.
    """
    from gristmill.curate.extract import page_text
    from gristmill.curate.warc import Damage, Skip, open_warc, page_of, read_records

    limits = reading_limits(settings)
    with open_warc(url) as stream:
        stream.seek(offset)
        cut = stream.read(length)
    where = f"{name} at {offset}+{inner}"
    for record in read_records(io.BytesIO(cut), name, limits):
        if isinstance(record, Damage) or (record.offset, record.inner) != (0, inner):
            continue
        page = page_of(record, limits)
        if isinstance(page, Skip):
            raise FormatError(f"{where} is no page: {page.reason}")
        found = page_text(page.html, page.content_type, settings)
        if found.reason is not None:
            raise FormatError(f"{where} gives no text: {found.reason}", hint="the settings differ from the run's")
        return found.text
    raise FormatError(f"{where} holds no record", hint="the file changed since the run")


class _Rows:
    """Rows on their way to a Parquet file, written in batches of at most 256 rows and about 8 M characters."""

    def __init__(self, writer: TableWriter) -> None:
        self.writer = writer
        self.rows: list[dict[str, Any]] = []
        self.chars = 0

    def add(self, row: dict[str, Any], chars: int) -> None:
        self.rows.append(row)
        self.chars += chars
        if len(self.rows) >= BATCH_ROWS or self.chars >= BATCH_CHARS:
            self.flush()

    def flush(self) -> None:
        import pyarrow as pa

        table: pa.Table = pa.Table.from_pylist(self.rows, schema=self.writer.schema)
        self.writer.write(table)
        self.rows, self.chars = [], 0


def _fasttext() -> str:
    """The distribution that gives `fasttext`: several do, under other names and with other numbers."""
    for name in ("fasttext-numpy2", "fasttext-numpy2-wheel", "fasttext-wheel", "fasttext"):
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    raise UsageError("no fasttext is installed", hint="pip install fasttext-numpy2")
