"""The real documents of the test data: every page of every archive, extracted by the default engine, and every text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import zstandard
from parity.corpus import Text

from gristmill.curate.extract import page_text
from gristmill.curate.schema import Extract
from gristmill.curate.warc import Limits, Page, Record, open_warc, page_of, read_records

LIMITS = Limits()
ARCHIVES = (".warc", ".arc", ".gz", ".lz4", ".bad")


def pages(data: Path) -> Iterator[tuple[str, str, str]]:
    """(id, URL, text) of each page of warc/*; text is empty where the engine finds none."""
    settings = Extract()
    for path in sorted(p for p in (data / "warc").rglob("*") if p.suffix in ARCHIVES and ".jsonl" not in p.name):
        with open_warc(str(path)) as stream:
            for record in read_records(stream, path.name, LIMITS):
                page = page_of(record, LIMITS) if isinstance(record, Record) else None
                if isinstance(page, Page):
                    found = page_text(page.html, page.content_type, settings)
                    yield f"{path.name}:{page.offset}:{page.inner}", page.url, found.text


def texts(data: Path) -> Iterator[Text]:
    """Every row of text/*; `language` as the file says it (of code: the programming language)."""
    for path in sorted((data / "text").iterdir()):
        if path.suffix == ".zst":
            with open(path, "rb") as file:
                lines = zstandard.ZstdDecompressor().stream_reader(file).read().decode().split("\n")
            rows = [json.loads(line) for line in lines if line]
        else:
            rows = pq.read_table(path).to_pylist()
        for i, row in enumerate(rows):
            yield Text(f"{path.name}:{i}", str(row.get("lang") or "en"), row["text"])
