"""`curate.pages` over the rows of a datatrove reader: JSONL, Parquet, CSV or Arrow files whose rows are texts already.

A row takes the place of a record: `warc_file` is the input's name, `warc_offset` the row's number among those that the
reader gave (from 0), `warc_length` is 0, and `warc_record_id` the id that the source gave it. Its URL and date are the
row's own where it has `url` and `date`. URL rules and language identification are those of WARC input; no engine runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from gristmill.core.docshards import TableWriter
from gristmill.core.document import DROP_SCHEMA, PAGE_SCHEMA
from gristmill.core.errors import FormatError, InputError
from gristmill.core.hashing import document_id
from gristmill.core.stage import Counters, Outbox, Shard
from gristmill.curate.blocks import build
from gristmill.curate.normalise import normalise
from gristmill.curate.schema import Extract, Reader, Urls

BATCH_ROWS = 256
BATCH_CHARS = 8 << 20
MAX_CHARS = 20_000_000
"""Longer texts are dropped as `extract.too_large` (characters), as WARC payloads of so many bytes are."""


class Source:
    """One file through a reader. `lost` counts rows that the reader passed over, `warnings` what it complained of."""

    def __init__(self, reader: Reader, path: str) -> None:
        self.path = path
        self.name = reader.block.rpartition(".")[2]
        if not Path(path).is_file():
            raise InputError(f"no such file: {path}", hint="a reader takes local files")
        self.block = build(reader, data_folder=str(Path(path).parent))
        self.lost = self.warnings = 0
        self._next = 0
        made = self.block.get_document_from_dict

        def counted(data: dict[str, Any], source_file: str, id_in_file: Any) -> Any:
            if isinstance(id_in_file, int):  # a row's number in its file: a gap is rows that could not be read
                self.lost += max(0, id_in_file - self._next)
                self._next = id_in_file + 1
            document = made(data, source_file, id_in_file)
            self.lost += document is None
            return document

        self.block.get_document_from_dict = counted

    def documents(self) -> Iterator[Any]:
        """Documents in the order of the file. Raises FormatError with what the reader raised."""
        from datatrove.utils.logging import logger

        def heard(message: Any) -> None:
            self.warnings += message.record["level"].no >= 30  # WARNING

        with contextlib.suppress(ValueError):
            logger.remove(0)  # its lines about every file on stderr; what went wrong is counted
        handler = logger.add(heard, level="WARNING")
        try:
            yield from self.block.read_files_shard([Path(self.path).name])
        except Exception as error:  # whatever a decoder raises on a damaged file
            raise FormatError(f"{self.name} can't read {self.path}: {type(error).__name__}: {error}") from error
        finally:
            logger.remove(handler)


def read(config: Mapping[str, Any], shard: Shard, model: Path, out: Outbox) -> Counters:
    """The `run` of `curate.pages` for a recipe with a reader; same outputs, same columns."""
    from gristmill.curate.identify import Identifier
    from gristmill.curate.schema_language import Reading
    from gristmill.curate.urls import UrlRules

    extract = Extract.model_validate(config.get("extract", {}))
    reading = Reading.model_validate(config.get("language", {}))
    identifier = Identifier(model, reading.chars, reading.slices)
    rules = UrlRules(Urls.model_validate(config.get("urls", {})))
    source = Source(Reader.model_validate(config["reader"]), shard.path)
    counters = Counters()
    with (
        TableWriter(out.path("pages.parquet"), PAGE_SCHEMA) as pages,
        TableWriter(out.path("drops.parquet"), DROP_SCHEMA) as drops,
    ):
        held: list[dict[str, Any]] = []
        chars = 0
        for number, document in enumerate(source.documents()):
            counters.rows_in += 1
            row = _row(document, shard.name, number)
            text, notes = normalise(_text(document)[: MAX_CHARS + 1])
            dropped = _dropped(row, text, rules, extract)
            if dropped is not None:
                counters.drop(dropped["reason"])
                drops.write(pa.Table.from_pylist([dropped], DROP_SCHEMA))
                continue
            counters.notes.update(notes)
            language, score = identifier.identify([text])[0]
            held.append({**row, "text": text, "language": language, "language_score": score})
            chars += len(text)
            if len(held) >= BATCH_ROWS or chars >= BATCH_CHARS:
                pages.write(pa.Table.from_pylist(held, PAGE_SCHEMA))
                held, chars = [], 0
        pages.write(pa.Table.from_pylist(held, PAGE_SCHEMA))
    if source.lost:
        counters.rows_in += source.lost
        counters.drop(f"datatrove.{source.name}.lost", source.lost)
    if source.warnings:
        counters.notes[f"datatrove.{source.name}.warnings"] += source.warnings
    counters.rows_out = pages.rows
    return counters


def text_of_row(path: str, reader: Mapping[str, Any], number: int) -> str:
    """The text of one row again, as `curate.pages` stored it. Raises FormatError when the file has no such row."""
    for i, document in enumerate(Source(Reader.model_validate(reader), path).documents()):
        if i == number:
            return normalise(_text(document))[0]
    raise FormatError(f"{path} has no row {number}", hint="the file changed since the run")


def _text(document: Any) -> str:
    return document.text if isinstance(document.text, str) else ""  # a number, say, in a column of another kind


def _row(document: Any, name: str, number: int) -> dict[str, Any]:
    def stated(key: str) -> str | None:
        value = document.metadata.get(key)
        return None if value is None else str(value)

    return {
        "id": document_id(name, number),
        "url": stated("url"),
        "date": stated("date"),
        "warc_file": name,
        "warc_offset": number,
        "warc_inner": 0,
        "warc_length": 0,
        "warc_record_id": str(document.id),
        "charset": "utf-8",
    }


def _dropped(row: dict[str, Any], text: str, rules: Any, extract: Extract) -> dict[str, Any] | None:
    value: float | None = float(len(text))
    threshold: float | None = None
    reason = rules.check(row["url"] or "")
    if reason is not None:
        value = None
    elif len(text) > MAX_CHARS:
        reason, threshold = "extract.too_large", float(MAX_CHARS)
    elif len(text) < max(1, extract.min_chars):
        reason, threshold = "extract.no_text", float(max(1, extract.min_chars))
    if reason is None:
        return None
    return {**{n: row.get(n) for n in DROP_SCHEMA.names}, "reason": reason, "value": value, "threshold": threshold}
