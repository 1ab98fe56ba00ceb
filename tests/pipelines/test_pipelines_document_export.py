"""Curated documents as files of a target size: nothing lost, the same files for the same documents, digests that hold."""

from __future__ import annotations

import io
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from click.testing import CliRunner
from curated_files import Page, advance, prose, upstream

from gristmill.core.document import CURATED_SCHEMA
from gristmill.core.errors import UsageError
from gristmill.core.manifest import write_manifest
from gristmill.curate.curated import Curated
from gristmill.pipelines import document_export
from gristmill.pipelines.cli.policy import export as command

SIZE = 40_000


def root_of(folder: Path, files: dict[str, list[Page]]) -> Path:
    receipts = advance(folder, Curated({"dedup": False}), upstream(folder, files))
    write_manifest(folder, "curate", receipts, True)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files: dict[str, list[Page]] = {
        name: [{"text": prose(1000 * i + j, 100 + 90 * (j % 5))} for j in range(70)] for i, name in enumerate("abc")
    }
    files["b"][7] = {"text": "x", "reason": "gopher.too_few_words"}
    return root_of(tmp_path / "root", files)


def written(root: Path) -> pa.Table:
    tables = [pq.read_table(path) for path in (root / "stages/curate").glob("*/documents.parquet")]
    return pa.concat_tables(tables).sort_by([("warc_file", "ascending"), ("warc_offset", "ascending")])


def lines(path: Path) -> list[dict[str, object]]:
    data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(path.read_bytes()), read_across_frames=True).read()
    return [orjson.loads(line) for line in data.splitlines()]


def test_parquet_files_hold_every_document_in_order(root: Path, tmp_path: Path) -> None:
    found = document_export.export(root, tmp_path / "out", shard_bytes=SIZE)
    assert found["documents"] == 209
    assert len(found["files"]) > 4
    paths = [tmp_path / "out" / file["file"] for file in found["files"]]
    assert pa.concat_tables([pq.read_table(p) for p in paths]).equals(written(root))
    assert pq.read_schema(paths[0]).equals(CURATED_SCHEMA)
    assert document_export.verify(tmp_path / "out") == []


def test_json_lines_hold_the_same(root: Path, tmp_path: Path) -> None:
    found = document_export.export(root, tmp_path / "out", shard_bytes=SIZE, form="jsonl.zst", columns=["text", "id"])
    rows = [row for file in found["files"] for row in lines(tmp_path / "out" / file["file"])]
    assert rows == written(root).select(["id", "text"]).to_pylist()
    assert found["columns"] == ["id", "text"]
    assert sum(file["documents"] for file in found["files"]) == len(rows)
    sizes = [file["bytes"] for file in found["files"]]  # Parquet's footers take 10 kB more, much for files this small
    assert max(sizes) < 1.1 * SIZE
    assert min(sizes[:-1]) > 0.6 * SIZE


@pytest.mark.parametrize("form", document_export.FORMATS)
def test_the_same_documents_give_the_same_files(
    root: Path, tmp_path: Path, form: document_export.Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = document_export.export(root, tmp_path / "one", shard_bytes=SIZE, form=form)
    monkeypatch.setattr(document_export, "READ_ROWS", 11)  # how rows are read decides no byte
    two = document_export.export(root, tmp_path / "two", shard_bytes=SIZE, form=form)
    assert one == two
    for file in one["files"]:
        assert (tmp_path / "one" / file["file"]).read_bytes() == (tmp_path / "two" / file["file"]).read_bytes()


def test_verify_names_damaged_and_missing_files(root: Path, tmp_path: Path) -> None:
    found = document_export.export(root, tmp_path / "out", shard_bytes=SIZE)
    first, second = (tmp_path / "out" / file["file"] for file in found["files"][:2])
    data = bytearray(first.read_bytes())
    data[100] ^= 1
    first.write_bytes(bytes(data))
    second.unlink()
    assert document_export.verify(tmp_path / "out") == [first.name, second.name]
    (tmp_path / "out" / document_export.MANIFEST).unlink()
    with pytest.raises(UsageError, match="no whole export"):
        document_export.verify(tmp_path / "out")


def test_an_empty_root_and_a_document_larger_than_a_file(tmp_path: Path) -> None:
    none = document_export.export(root_of(tmp_path / "none", {"a": []}), tmp_path / "n", shard_bytes=SIZE)
    assert [(f["file"], f["documents"]) for f in none["files"]] == [("documents-00000.parquet", 0)]
    big: list[Page] = [{"text": prose(i, 40_000)} for i in range(3)]
    found = document_export.export(root_of(tmp_path / "big", {"a": big}), tmp_path / "b", shard_bytes=SIZE)
    assert [f["documents"] for f in found["files"]] == [1, 1, 1]


def test_what_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("x")
    with pytest.raises(UsageError, match="not an empty folder"):
        document_export.export(root, tmp_path / "full", shard_bytes=SIZE)
    with pytest.raises(UsageError, match="no column 'texts'"):
        document_export.export(root, tmp_path / "out", shard_bytes=SIZE, columns=["texts"])
    with pytest.raises(UsageError, match="no curated documents"):
        document_export.export(tmp_path / "full", tmp_path / "out", shard_bytes=SIZE)
    assert not (tmp_path / "out").exists()


def test_the_command(root: Path, tmp_path: Path) -> None:
    arguments = ["documents", "--root", str(root), "--to", str(tmp_path / "out"), "--shard-mb", "0.04", "--json"]
    done = CliRunner().invoke(command, [*arguments, "--format", "jsonl.zst", "--columns", "id, url"])
    assert done.exit_code == 0, done.output
    assert orjson.loads(done.stdout_bytes) == orjson.loads((tmp_path / "out" / "manifest.json").read_bytes())
