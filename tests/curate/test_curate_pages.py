"""The stage curate.pages on WARC bytes written here: every record is a row, every row one outcome, every text found again."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from data_helper import shared_data

from gristmill.core.document import DROP_SCHEMA, PAGE_SCHEMA
from gristmill.core.errors import FormatError, GristmillError, InputError, UsageError
from gristmill.core.hashing import document_id
from gristmill.core.manifest import run_task
from gristmill.core.stage import Receipt, Shard, Task
from gristmill.curate.language import find_model
from gristmill.curate.pages import Pages, text_of_range
from gristmill.curate.schema import Extract

DATE = "2026-03-01T12:00:00Z"
SENTENCE = "The library of the old town opens at nine and closes at six on every working day. "


@pytest.fixture(autouse=True)
def _model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRISTMILL_TEST_SANDBOX", "1")
    try:
        find_model()
    except UsageError as error:
        pytest.skip(f"no language model here: {error.hint}")


def record(
    kind: str, url: str, block: bytes, number: int, content_type: str = "application/http; msgtype=response"
) -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{number:032d}>\r\nWARC-Date: {DATE}\r\n"
    head += f"WARC-Target-URI: {url}\r\n" if url else ""
    return (
        (head + f"Content-Type: {content_type}\r\nContent-Length: {len(block)}\r\n\r\n").encode() + block + b"\r\n\r\n"
    )


def http(body: bytes, status: int = 200, content_type: str = "text/html; charset=utf-8") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def html(n: int, extra: str = "", sentence: str = SENTENCE) -> bytes:
    return f"<html><head><title>{n}</title></head><body>{extra}<article><p>Page {n}. {sentence * 4}</p></article></body></html>".encode()


def response(n: int, url: str = "", body: bytes | None = None, **how: object) -> bytes:
    block = http(html(n) if body is None else body, **how)  # type: ignore[arg-type]
    return record("response", url or f"http://site{n}.example.org/page/{n}", block, n)


GERMAN = "Die Bibliothek der alten Stadt öffnet um neun Uhr und schließt um achtzehn Uhr. "
MIXED: list[tuple[bytes, str]] = [
    (record("warcinfo", "", b"software: test\r\n", 0, "application/warc-fields"), "record.warcinfo"),
    (record("request", "http://site1.example.org/page/1", b"GET / HTTP/1.1\r\n\r\n", 1), "record.request"),
    (response(1), "page"),
    (
        record("metadata", "http://site1.example.org/page/1", b"a: b\r\n", 2, "application/warc-fields"),
        "record.metadata",
    ),
    (response(2, status=404), "http.status_4xx"),
    (response(3, content_type="image/png", body=b"\x89PNG\r\n\x1a\n" + bytes(80)), "http.not_html"),
    (response(4, url="http://example.org/porno-porn-xxx-hardcore/"), "url.hard_word"),
    (
        response(
            5, body=html(5, sentence=GERMAN).decode().encode("latin-1"), content_type="text/html; charset=iso-8859-1"
        ),
        "page",
    ),
    (response(6, body=b"<html><body><script>1</script></body></html>"), "extract.no_text"),
    (response(7, body=html(7, "<!--gristmill-test:segv-->")), "quarantined.extract.killed"),
    (response(8, body=html(8, "<i></i>" * 300)), "extract.too_many_nodes"),
    (response(9, body=html(9, "<!--" + "x" * 40_000 + "-->")), "extract.too_large"),
    (response(10), "page"),
]
SETTINGS: dict[str, Any] = {"extract": {"max_nodes": 500, "max_html_bytes": 30_000}}


def write_gz(path: Path, records: list[bytes]) -> list[tuple[int, int]]:
    places, data = [], b""
    for r in records:
        member = gzip.compress(r, 6, mtime=0)
        places.append((len(data), len(member)))
        data += member
    path.write_bytes(data)
    return places


def task_of(path: Path, config: dict[str, object] | None = None, name: str = "") -> tuple[Pages, Task]:
    stage = Pages(config or {})
    size = path.stat().st_size if path.exists() else 0
    shard = Shard(str(path), name or path.name, "0" * 64, size)
    receipt = Receipt("input", 1, "", shard.name, {}, {}, {}, [shard], 0, 0, None, 0, {}, 0.0, "", "")
    (task,) = stage.tasks({"input": [receipt]})
    return stage, task


def run(path: Path, root: Path, config: dict[str, object] | None = None, name: str = "") -> Receipt:
    stage, task = task_of(path, config, name)
    return run_task(stage, task, root)


def rows(receipt: Receipt, name: str) -> list[dict[str, object]]:
    return pq.read_table(receipt.output(name).path).to_pylist()


def test_every_record_has_one_outcome(tmp_path: Path) -> None:
    path = tmp_path / "mixed.warc.gz"
    places = write_gz(path, [r for r, _ in MIXED])
    receipt = run(path, tmp_path / "root", SETTINGS, "crawl/mixed.warc.gz")
    want = Counter(outcome for _, outcome in MIXED)
    assert receipt.key == "crawl/mixed.warc.gz"
    assert receipt.rows_in == len(MIXED)
    assert receipt.rows_out == want.pop("page") == 3
    assert receipt.quarantined == want.pop("quarantined.extract.killed") == 1
    assert receipt.notes == {"quarantined.extract.killed": 1}
    assert receipt.drops == dict(want)

    pages = rows(receipt, "pages.parquet")
    kept = [i for i, (_, outcome) in enumerate(MIXED) if outcome == "page"]
    assert [(p["warc_offset"], p["warc_length"], p["warc_inner"]) for p in pages] == [(*places[i], 0) for i in kept]
    assert [p["id"] for p in pages] == [document_id("crawl/mixed.warc.gz", places[i][0]) for i in kept]
    assert [p["language"] for p in pages] == ["en", "de", "en"]
    assert pages[1]["charset"] == "windows-1252"
    assert GERMAN.strip() in str(pages[1]["text"])
    assert {p["date"] for p in pages} == {DATE}
    assert pages[0]["url"] == "http://site1.example.org/page/1"
    assert str(pages[0]["warc_record_id"]).strip("<>") == f"urn:uuid:{1:032d}"

    drops = rows(receipt, "drops.parquet")
    named = [
        (i, o)
        for i, (_, o) in enumerate(MIXED)
        if o not in ("page", *(f"record.{k}" for k in ("warcinfo", "request", "metadata")))
    ]
    assert [(d["warc_offset"], d["reason"]) for d in drops] == [
        (places[i][0], o.removeprefix("quarantined.")) for i, o in named
    ]
    measured = {str(d["reason"]): (d["value"], d["threshold"]) for d in drops}
    assert measured["extract.too_large"] == (float(len(html(9, "<!--" + "x" * 40_000 + "-->"))), 30_000.0)
    assert measured["extract.too_many_nodes"][1] == 500.0
    assert measured["http.status_4xx"] == (404.0, None)
    assert measured["url.hard_word"] == (None, None)


def test_schemas_and_batches(tmp_path: Path) -> None:
    path = tmp_path / "many.warc.gz"
    write_gz(path, [response(i) for i in range(300)])
    receipt = run(path, tmp_path / "root")
    file = pq.ParquetFile(receipt.output("pages.parquet").path)
    assert file.schema_arrow.equals(PAGE_SCHEMA)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [256, 44]
    assert pq.read_schema(receipt.output("drops.parquet").path).equals(DROP_SCHEMA)
    assert pq.read_table(receipt.output("drops.parquet").path).num_rows == 0


@pytest.mark.slow
def test_the_same_bytes_whatever_the_window_and_the_recycling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mixed.warc.gz"
    write_gz(path, [r for r, _ in MIXED])
    found = [[o.sha256 for o in run(path, tmp_path / "a", SETTINGS).outputs]]
    from gristmill.curate import sandbox

    first = sandbox.Sandbox.__init__
    monkeypatch.setattr(
        sandbox.Sandbox,
        "__init__",
        lambda self, s, m, **more: first(self, s.model_copy(update={"recycle_pages": 2}), m, window=1, **more),
    )
    found.append([o.sha256 for o in run(path, tmp_path / "b", SETTINGS).outputs])
    assert found[0] == found[1]


def test_a_truncated_tail_is_one_quarantined_row(tmp_path: Path) -> None:
    path = tmp_path / "cut.warc.gz"
    write_gz(path, [response(1), response(2), response(3)])
    path.write_bytes(path.read_bytes()[:-40])
    receipt = run(path, tmp_path / "root")
    assert (receipt.rows_in, receipt.rows_out, receipt.quarantined, receipt.drops) == (3, 2, 1, {})
    assert receipt.notes == {"quarantined.warc.truncated_member": 1}


def test_bytes_that_are_no_archive(tmp_path: Path) -> None:
    for name, data in (("empty.warc.gz", b""), ("text.warc", b"not an archive at all\n" * 50)):
        path = tmp_path / name
        path.write_bytes(data)
        receipt = run(path, tmp_path / "root")
        assert (receipt.rows_in, receipt.rows_out, receipt.quarantined) == (1, 0, 1)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    stage, task = task_of(tmp_path / "gone.warc.gz")
    with pytest.raises(InputError, match=r"gone\.warc\.gz"):
        run_task(stage, task, tmp_path / "root")


def test_a_worker_with_another_model_refuses(tmp_path: Path) -> None:
    path = tmp_path / "a.warc.gz"
    write_gz(path, [response(1)])
    stage, task = task_of(path)
    other = Task(task.stage, task.version, task.key, 0, task.config, {**task.uses, "lid_model": "1" * 64}, task.inputs)
    with pytest.raises(GristmillError, match="not the language model"):
        run_task(stage, other, tmp_path / "root")


def test_text_of_range_is_the_stored_text(tmp_path: Path) -> None:
    """In three layouts: a member per record, one member for all, and no compression."""
    records = [r for r, _ in MIXED]
    files = {"each.warc.gz": b"".join(gzip.compress(r, mtime=0) for r in records)}
    files["one.warc.gz"] = gzip.compress(b"".join(records), mtime=0)
    files["plain.warc"] = b"".join(records)
    texts = []
    settings = Extract(**SETTINGS["extract"])
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        pages = rows(run(path, tmp_path / "root", SETTINGS), "pages.parquet")
        assert len(pages) == 3
        texts.append([p["text"] for p in pages])
        for p in pages:
            place = (int(str(p["warc_offset"])), int(str(p["warc_length"])))
            found = text_of_range(str(path), *place, settings, name, inner=int(str(p["warc_inner"])))
            assert found == p["text"]
    assert texts[0] == texts[1] == texts[2]


def test_text_of_range_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "mixed.warc.gz"
    places = write_gz(path, [r for r, _ in MIXED])
    for i, word in ((4, "status_4xx"), (8, "no_text"), (0, "record.warcinfo")):
        with pytest.raises(FormatError, match=word):
            text_of_range(str(path), *places[i], Extract(), "mixed.warc.gz")
    with pytest.raises(FormatError, match="holds no record"):
        text_of_range(str(path), places[2][0] + 3, places[2][1], Extract(), "mixed.warc.gz")


def test_task_ids_follow_what_decides_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.warc.gz"
    write_gz(path, [response(1)])
    _, task = task_of(path)
    assert {"trafilatura", "lxml", "fasttext", "lid_model", "url_lists", "tldextract"} <= set(task.uses)
    _, without = task_of(path, {"urls": {"lists": "off"}})
    assert "url_lists" not in without.uses
    assert task.id != without.id != task_of(path, {"extract": {"favor": "recall"}})[1].id
    model = tmp_path / "other.ftz"
    model.write_bytes(b"another model")
    monkeypatch.setenv("GRISTMILL_LID_MODEL", str(model))
    assert task_of(path)[1].id != task.id


def test_importing_the_stage_is_cheap() -> None:
    heavy = ["trafilatura", "datatrove", "fasttext", "lxml", "pyarrow", "spacy", "numba", "torch", "tldextract"]
    code = f"import sys, gristmill.curate.pages; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_real_pages(tmp_path: Path) -> None:
    """327 real pages: the ledger balances, the manifest's places agree, every 10th text is found again from its range."""
    path = shared_data("warc/pages") / "pages-00000.warc.gz"
    receipt = run(path, tmp_path)
    assert (receipt.rows_in, receipt.quarantined) == (982, 0)
    assert receipt.drops is not None
    assert receipt.rows_out + sum(receipt.drops.values()) == 982
    assert receipt.rows_out >= 320
    pages = rows(receipt, "pages.parquet")
    with gzip.open(shared_data("warc/pages-manifest.jsonl.gz")) as f:
        known = {r["offset"]: r for r in map(json.loads, f) if Path(r["warc"]).name == path.name}
    for p in pages:
        row = known[p["warc_offset"]]
        assert (p["url"], p["warc_length"]) == (row["url"], row["length"])
    for p in pages[::10]:
        place = (int(str(p["warc_offset"])), int(str(p["warc_length"])))
        assert text_of_range(str(path), *place, Extract(), path.name) == p["text"]
    expected = [(p["language"], known[p["warc_offset"]]["lang_guess"]) for p in pages]
    assert sum(a == b for a, b in expected) > 0.8 * len(expected)


def test_a_file_that_changes_while_it_is_read_is_not_taken(tmp_path: Path) -> None:
    from gristmill.curate.warc_inputs import changed, expand_inputs

    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"one")
    (item,) = expand_inputs([str(path)])
    assert not changed(str(path), item.tag)
    path.write_bytes(b"two")
    assert changed(str(path), item.tag)
    path.unlink()
    assert changed(str(path), item.tag)
    assert not changed(str(path), "listed")
