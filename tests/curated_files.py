"""Hand-made outputs of the stages before the end of curation, so that its stages read genuine receipts; and random prose."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from gristmill.core.docshards import TableWriter
from gristmill.core.document import DROP_SCHEMA, PAGE_SCHEMA
from gristmill.core.hashing import document_id
from gristmill.core.manifest import run_task
from gristmill.core.stage import Counters, Outbox, Receipt, Stage, Task
from gristmill.curate.final_text import KEPT_FILES

MEASURES = pa.schema([("id", pa.string()), ("c4.text", pa.string()), ("refinedweb.text", pa.string())])
VERDICTS = pa.schema(
    [
        ("id", pa.string()),
        ("reason", pa.string()),
        ("value", pa.float64()),
        ("threshold", pa.float64()),
        ("text_version", pa.string()),
    ]
)

Page = dict[str, Any]  # text, and maybe c4 (its rewritten text, judged by), reason, date


class Given(Stage):
    """Writes prepared tables, so that the stages under test read genuine receipts."""

    name = ""

    def __init__(self, name: str, tables: Mapping[str, dict[str, tuple[pa.Table, int]]]) -> None:
        super().__init__({})
        self.name = name  # type: ignore[misc]
        self.tables = tables

    def run(self, task: Task, out: Outbox) -> Counters:
        for name, (table, rows) in self.tables[task.key].items():
            with TableWriter(out.path(name), table.schema) as writer:
                for i in range(0, table.num_rows, rows):
                    writer.write(table.slice(i, rows))
        return Counters(drops=None)


def upstream(root: Path, files: Mapping[str, Sequence[Page]]) -> dict[str, list[Receipt]]:
    tables: dict[str, dict[str, dict[str, tuple[pa.Table, int]]]] = {stage: {} for stage in KEPT_FILES}
    for key, pages in files.items():
        ids = [page.get("id") or document_id(key, 1000 * i) for i, page in enumerate(pages)]
        page_rows = [
            {
                "id": id_,
                "text": page["text"],
                "url": f"https://example.org/{i}",
                "date": page.get("date", "2024-01-01T00:00:00Z"),
                "warc_file": key,
                "warc_offset": 1000 * i,
                "warc_inner": 0,
                "warc_length": 900,
                "warc_record_id": f"urn:{i}",
                "charset": "utf-8",
                "language": "en",
                "language_score": 0.9,
            }
            for i, (id_, page) in enumerate(zip(ids, pages, strict=True))
        ]
        verdicts = [
            {"id": id_, "reason": page.get("reason"), "text_version": "c4" if "c4" in page else "raw"}
            for id_, page in zip(ids, pages, strict=True)
        ]
        measures = [{"id": id_, "c4.text": page.get("c4")} for id_, page in zip(ids, pages, strict=True)]
        # Row groups of unlike sizes: the files agree in row order only.
        tables["curate.pages"][key] = {
            "pages.parquet": (pa.Table.from_pylist(page_rows, PAGE_SCHEMA), 7),
            "drops.parquet": (DROP_SCHEMA.empty_table(), 7),
        }
        tables["curate.measure"][key] = {"measures.parquet": (pa.Table.from_pylist(measures, MEASURES), 5)}
        tables["curate.decide"][key] = {"verdicts.parquet": (pa.Table.from_pylist(verdicts, VERDICTS), 1000)}
    receipts: dict[str, list[Receipt]] = {}
    for name in KEPT_FILES:
        stage = Given(name, tables[name])
        tasks = [Task(name, 1, key, i, {"key": key}, {}, {}) for i, key in enumerate(files)]
        receipts[name] = [run_task(stage, task, root) for task in tasks]
    return receipts


def advance(root: Path, stage: Stage, receipts: dict[str, list[Receipt]]) -> list[Receipt]:
    receipts[stage.name] = [run_task(stage, task, root) for task in stage.tasks(receipts)]
    return receipts[stage.name]


def word(rng: random.Random) -> str:
    return "".join(rng.choices("abcdefghijklmnop", k=4))  # letters only: signatures see every digit as 0


def prose(seed: int, words: int = 300) -> str:
    rng = random.Random(seed)
    return " ".join(word(rng) for _ in range(words)) + "."
