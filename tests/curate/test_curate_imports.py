"""`imports.text`: JSONL and Parquet as documents, the faults of untrusted lines and files, bounds, and the ledger."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from gristmill.core.errors import FormatError, InputError, UsageError
from gristmill.core.hashing import document_id
from gristmill.core.imports import Import
from gristmill.core.manifest import run_task
from gristmill.core.stage import Receipt, Shard
from gristmill.curate import imports_files, imports_text
from gristmill.curate.imports_files import jsonl_rows
from gristmill.curate.imports_text import ImportsText
from gristmill.curate.jsonl import read_objects

SPEC: dict[str, Any] = {
    "jsonl": "x",
    "columns": {
        "text": "content",
        "url": "meta.url",
        "id": "uid",
        "language": "lang",
        "stars": "meta.stars",
        "kind": "kind",
    },
    "types": {"stars": "int64"},
}
GOOD = {"content": "a text", "meta": {"url": "http://a", "stars": 3}, "uid": 7, "lang": "en", "kind": "x"}


def imported(root: Path, path: Path, **spec: Any) -> tuple[Receipt, list[dict[str, Any]], list[dict[str, Any]]]:
    """(receipt, documents, drops) of one file."""
    import_ = Import.model_validate({**SPEC, **spec})
    raw = Shard(str(path), f"mine/{path.name}", "sha256:0", path.stat().st_size)
    given = Receipt("imports", 1, "", raw.name, {"import": "mine"}, {}, {}, [raw], 0, 0, None, 0, {}, 0.0, "", "", 0)
    stage = ImportsText({"imports": {"mine": import_.for_task()}})
    [task] = stage.tasks({"imports": [given]})
    receipt = run_task(stage, task, root)
    tables = [pq.read_table(receipt.output(n).path).to_pylist() for n in ("documents.parquet", "drops.parquet")]
    return receipt, tables[0], tables[1]


def lines(*rows: Any) -> bytes:
    return b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"\n"


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"])
def test_a_document_and_its_columns(pack: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(pack(lines(GOOD, b"", {"content": "bare"})))
    receipt, documents, drops = imported(tmp_path, path)
    assert (receipt.rows_in, receipt.rows_out, drops) == (2, 2, [])
    first, bare = documents
    want = {"text": "a text", "url": "http://a", "import_id": "7", "language": "en", "stars": 3, "kind": "x"}
    assert {k: first[k] for k in want} == want
    assert first["id"] == document_id("mine/a.jsonl", 0)
    assert (first["warc_file"], first["warc_offset"], first["warc_length"]) == ("mine/a.jsonl", 0, 0)
    assert {bare[k] for k in ("url", "import_id", "language", "stars", "kind", "date", "quality")} == {None}


def test_malformed_lines_are_quarantined_with_their_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        (GOOD, None),
        (b'{"content": ', "import.bad_json"),
        (b'{"content": "\xff"}', "import.bad_json"),
        (b"[1, 2]", "import.not_an_object"),
        ({"content": None}, "import.no_text"),
        ({"content": 5}, "import.no_text"),
        ({"content": ""}, "import.no_text"),
        ({"other": "x"}, "import.no_text"),
        ({"content": "x", "meta": {"stars": "many"}}, "import.bad_column"),
        ({"content": "x", "meta": {"stars": 1 << 63}}, "import.bad_column"),
        ({"content": "x", "meta": {"stars": True}}, "import.bad_column"),
        ({"content": "x", "lang": ["en"]}, "import.bad_column"),
        ({"content": "x", "uid": 123456789012345678901234}, "import.bad_column"),  # the parser rounds it
        ({"content": "y" * 500}, "import.line_too_long"),
        ({"content": "last", "meta": 3}, None),
    ]
    path.write_bytes(lines(*(row for row, _ in rows)))
    receipt, documents, drops = imported(tmp_path, path, max_line_bytes=400)
    assert [d["text"] for d in documents] == ["a text", "last"]
    assert [(d["warc_offset"], d["reason"]) for d in drops] == [(i, r) for i, (_, r) in enumerate(rows) if r]
    assert receipt.drops == {"import.no_text": 4}
    assert receipt.quarantined == 9
    assert receipt.rows_in == len(rows)
    long = next(d for d in drops if d["reason"] == "import.line_too_long")
    assert (long["value"], long["threshold"]) == (len(json.dumps({"content": "y" * 500})), 400)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_a_cut_file_gives_what_it_has_and_says_so(pack: Any, tmp_path: Path) -> None:
    import random

    letters = random.Random(4)
    rows = [{"content": "".join(letters.choices("abcdefgh ", k=4000))} for _ in range(200)]
    whole = pack(lines(*rows))
    path = tmp_path / "a.jsonl"
    for size in (len(whole) - 1, len(whole) * 2 // 3):
        path.write_bytes(whole[:size])
        receipt, documents, drops = imported(tmp_path, path)
        assert drops[-1]["reason"] == "import.truncated"
        assert receipt.quarantined == 1
        assert [d["text"] for d in documents] == [r["content"] for r in rows[: len(documents)]]
        assert 0 < len(documents) < 201
    path.write_bytes(pack(lines(*rows[:100])) + pack(lines(*rows[100:])))  # members and frames one after another
    assert imported(tmp_path, path)[0].rows_out == 200
    path.write_bytes(pack(lines(*rows[:100])) + b"garbage")
    receipt, documents, drops = imported(tmp_path, path)
    assert len(documents) == 100
    assert [d["reason"] for d in drops] == ["import.truncated"]


def test_what_stood_before_a_damaged_place_of_a_gzip_file_is_kept(tmp_path: Path) -> None:
    """The whole file is one read, and the call that meets the fault gives nothing."""
    rows = [{"content": f"text {i} {hash_like(i)}"} for i in range(2000)]
    whole = bytearray(gzip.compress(lines(*rows)))
    middle = len(whole) // 2
    whole[middle : middle + 64] = b"\xff" * 64
    path = tmp_path / "a.jsonl"
    path.write_bytes(whole)
    receipt, documents, drops = imported(tmp_path, path)
    got = [d["text"] for d in documents]
    good = next((i for i, t in enumerate(got) if t != rows[i]["content"]), len(got))
    assert good > 900
    assert drops[-1]["reason"] == "import.truncated"
    assert receipt.quarantined >= 1
    sound = gzip.compress(lines(*rows[:50]))
    path.write_bytes(sound[:-8] + bytes(8))  # the digest at the end is wrong
    receipt, documents, drops = imported(tmp_path, path)
    assert [d["text"] for d in documents] == [r["content"] for r in rows[:50]]
    assert [d["reason"] for d in drops] == ["import.truncated"]


def test_what_stood_before_a_damaged_place_of_a_zstd_file_is_kept(tmp_path: Path) -> None:
    """As much as a decompressor gives that is fed byte by byte: of several blocks in a call that fails it gives none."""
    rows = [{"content": f"text {i} " + "word " * 59 + "word"} for i in range(8000)]
    first, second = zstandard.compress(lines(*rows[:100])), zstandard.compress(lines(*rows))
    path = tmp_path / "a.jsonl"
    for place in (7_000, 10_000):
        broken = second[:place] + b"\xff" * (len(second) - place)  # the next block's type is reserved
        path.write_bytes(first + broken)
        _, documents, drops = imported(tmp_path, path)
        got = [d["text"] for d in documents]
        whole = given_before_fault(broken).split(b"\n")[:-1]
        assert len(documents) + len(drops) == 100 + len(whole) + 1
        assert len(whole) > 3_000
        assert drops[-1]["reason"] == "import.truncated"
        assert got[:1_100] == [row["content"] for row in [*rows[:100], *rows[:1_000]]]


def given_before_fault(broken: bytes) -> bytes:
    unpack, out = zstandard.ZstdDecompressor().decompressobj(), []
    try:
        for byte in broken:
            out.append(unpack.decompress(bytes((byte,))))
    except zstandard.ZstdError:
        return b"".join(out)
    raise AssertionError("no fault")


def test_a_zstd_file_may_begin_with_a_skippable_frame(tmp_path: Path) -> None:
    """As pzstd writes them: the size of the frame that follows, before each."""
    rows = [{"content": f"text {i}"} for i in range(10)]
    path = tmp_path / "a.jsonl"
    skip = b"\x50\x2a\x4d\x18\x04\0\0\0" + bytes(4)
    path.write_bytes(skip + zstandard.compress(lines(*rows[:5])) + skip + zstandard.compress(lines(*rows[5:])))
    _, documents, drops = imported(tmp_path, path)
    assert [d["text"] for d in documents] == [row["content"] for row in rows]
    assert drops == []
    assert [value for _, value in read_objects(path)] == rows
    path.write_bytes(path.read_bytes() + skip[:6])
    assert [d["reason"] for d in imported(tmp_path, path)[2]] == ["import.truncated"]


def hash_like(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def test_a_column_that_is_not_there_fails_the_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"content": ["a"], "meta": [{"url": "u"}]}), tmp_path / "a.parquet")
    spec: dict[str, Any] = {"jsonl": None, "parquet": "x", "types": {}}
    for columns, hint in (
        ({"text": "contnet"}, "did you mean `content`"),
        ({"text": "content", "url": "meta.ulr"}, "did you mean `meta.url`"),
        ({}, "columns"),
    ):
        with pytest.raises(InputError, match=r"a\.parquet has no column `.*`; has `content`, `meta.url`") as error:
            imported(tmp_path, tmp_path / "a.parquet", **spec, columns=columns)
        assert hint in str(error.value.hint)
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"contnet": "x", "meta": {"url": "u"}}, b"{broken", {"contnet": "y"}))
    with pytest.raises(InputError, match=r"a\.jsonl has no column `content`; has `contnet`, `meta.url`") as error:
        imported(tmp_path, path)
    assert "contnet" in str(error.value.hint)
    for sound in (b"", lines(b"{broken"), lines({"content": None}), lines({"other": 1}, {"content": "x"})):
        path.write_bytes(sound)
        imported(tmp_path, path)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_a_bomb_is_refused_in_bounded_memory(pack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports_files, "FREE_BYTES", 1 << 20)
    monkeypatch.setattr(imports_files, "MAX_RATIO", 100)
    path = tmp_path / "bomb.jsonl"
    path.write_bytes(pack(b"a" * (64 << 20)))
    held: list[Any] = []
    with pytest.raises(FormatError, match="grows more than 100 times"):
        held.extend(jsonl_rows(str(path), 1 << 20))
    assert held == []


def test_lines_across_pieces_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"content": "x" * n} for n in (1, 50, 3, 200, 7)]
    path = tmp_path / "a.jsonl"
    for chunk in (1, 2, 7, 64, 1 << 20):
        monkeypatch.setattr(imports_files, "CHUNK", chunk)
        for data in (lines(*rows), lines(*rows)[:-1], gzip.compress(lines(*rows))):
            path.write_bytes(data)
            found = [v["content"] if f is None else f[0] for v, f in jsonl_rows(str(path), 100)]
            assert found == ["x", "x" * 50, "xxx", "import.line_too_long", "x" * 7]


def test_a_parquet_file_may_not_grow_without_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports_files, "FREE_BYTES", 1 << 16)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"content": ["y" * 4_000_000]}), path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 4_000
    with pytest.raises(FormatError, match="grows more than"):
        imported(tmp_path, path, jsonl=None, parquet="x", types={}, columns={"text": "content"})


def test_parquet_with_nested_columns_and_its_own_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "content": ["one", None, "three"],
            "meta": [{"url": "http://a", "stars": 1}, {"url": None, "stars": 2}, None],
            "score": pa.array([0.5, None, 1.5], pa.float32()),
            "flag": [True, False, None],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    columns = {"text": "content", "url": "meta.url", "stars": "meta.stars", "score": "score", "flag": "flag"}
    spec = {"jsonl": None, "parquet": "x", "columns": columns, "types": {}, "constants": {"language": "fr", "tier": 2}}
    receipt, documents, drops = imported(tmp_path, tmp_path / "a.parquet", **spec)
    assert [(d["text"], d["url"], d["stars"], d["score"], d["flag"]) for d in documents] == [
        ("one", "http://a", 1, 0.5, True),
        ("three", None, None, 1.5, None),
    ]
    assert {(d["language"], d["tier"]) for d in documents} == {("fr", 2)}
    assert [(d["warc_offset"], d["reason"]) for d in drops] == [(1, "import.no_text")]
    schema = pq.read_schema(receipt.output("documents.parquet").path)
    assert [str(schema.field(n).type) for n in ("stars", "score", "flag", "tier")] == [
        "int64",
        "double",
        "bool",
        "int64",
    ]
    for wrong in ("meta", "nowhere", "meta.nowhere"):
        with pytest.raises(UsageError, match="column"):
            imported(tmp_path, tmp_path / "a.parquet", **{**spec, "columns": {"text": "content", "odd": wrong}})
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(FormatError):
        imported(tmp_path, tmp_path / "b.parquet", **spec)


def test_texts_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports_text, "MAX_CHARS", 10)
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"content": "x" * 10}, {"content": "é" * 11}))
    receipt, _, drops = imported(tmp_path, path)
    assert receipt.drops == {"import.too_large": 1}
    assert (drops[0]["value"], drops[0]["threshold"]) == (11, 10)


def test_batches_change_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(*({**GOOD, "content": f"text {i}"} if i % 3 else b"{" for i in range(40))))
    whole = imported(tmp_path / "one", path)
    monkeypatch.setattr(imports_text, "BATCH_ROWS", 3)
    assert imported(tmp_path / "two", path)[1:] == whole[1:]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "no files"),
        ({"jsonl": "a", "parquet": "b"}, "jsonl and parquet"),
        ({"jsonl": "a", "columns": {"offset": "x"}}, "gristmill's own"),
        ({"jsonl": "a", "columns": {"a b": "x"}}, "no name of a column"),
        ({"jsonl": "a", "types": {"stars": "int64"}}, "no column of your own"),
        ({"jsonl": "a", "columns": {"k": "x"}, "constants": {"k": 1}}, "a column and a constant"),
        ({"jsonl": "a", "vocab_size": 9}, "token stores"),
        ({"megatron": "a"}, "E106"),
        ({"megatron": "a", "vocab_size": 9, "columns": {"url": "x"}}, "no columns"),
    ],
)
def test_settings_that_cannot_be(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Import.model_validate(spec)
