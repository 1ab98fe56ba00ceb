"""Rows of a datatrove reader in the place of WARC records: the same columns, every row counted, every text found again."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curated_files import prose

from gristmill.core.document import PAGE_SCHEMA
from gristmill.core.errors import FormatError, InputError, UsageError
from gristmill.core.hashing import document_id
from gristmill.core.manifest import run_task
from gristmill.core.settings import parse, validate
from gristmill.core.stage import Receipt, Shard
from gristmill.curate.language import find_model
from gristmill.curate.pages import Pages
from gristmill.curate.reader_pages import text_of_row
from gristmill.pipelines.schema import Recipe

SENTENCE = "The library of the old town opens at nine and closes at six on every working day. "
ROWS: list[dict[str, Any]] = [
    {"id": "x1", "content": SENTENCE * 3, "url": "http://a.example/1", "date": "2026-01-01"},
    {"id": "x2", "content": ""},
    {"content": "Die Bibliothek der alten Stadt öffnet um neun Uhr.\r\nNeue Zeile.\0"},
    {"id": "x4", "content": SENTENCE, "url": "http://b.example/porno-porn-xxx-hardcore/"},
    {"id": 5, "content": 7},
    {"id": "x6", "content": prose(1)},
]


@pytest.fixture(autouse=True)
def _model() -> None:
    try:
        find_model()
    except UsageError as error:
        pytest.skip(f"no language model here: {error.hint}")


def read(path: Path, root: Path, block: str, **args: Any) -> tuple[Receipt, list[dict[str, Any]], list[dict[str, Any]]]:
    stage = Pages({"reader": {"block": f"readers.{block}", "args": args}})
    shard = Shard(str(path), path.name, "0" * 64, path.stat().st_size)
    receipt = Receipt("input", 1, "", shard.name, {}, {}, {}, [shard], 0, 0, None, 0, {}, 0.0, "", "")
    (task,) = stage.tasks({"input": [receipt]})
    done = run_task(stage, task, root)
    tables = (pq.read_table(done.output(name).path).to_pylist() for name in ("pages.parquet", "drops.parquet"))
    return (done, *tables)


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "[a]*.jsonl.gz"  # a name that is a glob is still one name
    (tmp_path / "other[a]x.jsonl.gz").write_bytes(b"not read")
    lines = [json.dumps(row) for row in ROWS]
    path.write_bytes(gzip.compress("\n".join([*lines[:3], "{damaged", *lines[3:]]).encode()))
    done, kept, gone = read(path, tmp_path / "root", "JsonlReader", text_key="content")
    assert done.rows_in == 7
    assert done.rows_out == len(kept) == 3
    assert done.drops == {"datatrove.JsonlReader.lost": 2, "url.hard_word": 1, "extract.no_text": 1}
    assert done.notes["datatrove.JsonlReader.warnings"] == 2
    assert done.notes["text.nul"] == 1
    assert [row["language"] for row in kept][:2] == ["en", "de"]
    assert kept[0]["text"] == ROWS[0]["content"]
    assert (kept[0]["url"], kept[0]["date"], kept[0]["warc_record_id"]) == ("http://a.example/1", "2026-01-01", "x1")
    assert [row["id"] for row in kept] == [document_id(path.name, i) for i in (0, 1, 4)]
    assert [row["warc_offset"] for row in gone] == [2, 3]
    for row in kept:
        reader = {"block": "readers.JsonlReader", "args": {"text_key": "content"}}
        assert text_of_row(str(path), reader, row["warc_offset"]) == row["text"]
    assert done.uses["datatrove"]


@pytest.mark.parametrize("block", ["ParquetReader", "CSVReader", "IpcReader"])
def test_other_formats(tmp_path: Path, block: str) -> None:
    texts = [SENTENCE + prose(i) for i in range(300)]
    table = pa.table({"id": [f"r{i}" for i in range(300)], "text": texts})
    path = tmp_path / "a.data"
    if block == "ParquetReader":
        pq.write_table(table, path, row_group_size=70)
    elif block == "IpcReader":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer_ = csv.DictWriter(file, ["id", "text"])
            writer_.writeheader()
            writer_.writerows(table.to_pylist())
    done, kept, _ = read(path, tmp_path / "root", block)
    assert [row["text"] for row in kept] == texts
    assert (done.rows_in, done.drops) == (300, {})
    assert list(kept[0]) == PAGE_SCHEMA.names
    some, few, _ = read(path, tmp_path / "root", block, limit=5, skip=2)
    assert [row["warc_record_id"] for row in few] == ["r2", "r3", "r4", "r5", "r6"]
    assert some.task != done.task


def test_what_can_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 not at all")
    with pytest.raises(FormatError, match="ParquetReader can't read"):
        read(path, tmp_path / "root", "ParquetReader")
    with pytest.raises(InputError, match="no such file"):
        text_of_row(str(tmp_path / "none"), {"block": "readers.JsonlReader"}, 0)
    (tmp_path / "b.jsonl").write_text('{"text": "a"}')
    with pytest.raises(FormatError, match="has no row 3"):
        text_of_row(str(tmp_path / "b.jsonl"), {"block": "readers.JsonlReader"}, 3)


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        ("{block: readers.WarcReader}", "WARC files need no reader"),
        ("{block: readers.HuggingFaceDatasetReader, args: {dataset: x}}", "can't read the files"),
        ("{block: readers.JsonlReader, args: {data_folder: /etc}}", "`input.paths` names the files"),
        ("{block: readers.JsonlReader, args: {adapter: eval}}", "Python function"),
        ("{block: readers.JsonlReader, args: {limit: many}}", "valid integer"),
        ("{block: filters.RegexFilter, args: {regex_exp: a}}", "should match pattern"),
    ],
)
def test_faulty_readers_are_found_at_load(reader: str, message: str) -> None:
    _, problems = validate(parse(f"gristmill: 1\ninput: {{reader: {reader}}}\n", "t.yaml"), Recipe)
    (problem,) = problems
    assert message in f"{problem.message} {problem.hint}"
    assert problem.line == 2
