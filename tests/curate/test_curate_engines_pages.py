"""Every engine through the stage: the stored text is found again from its range; a user's own; facts become columns."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from data_helper import REPO, shared_data
from page_engines import ENGINES, PAGES, PARAGRAPH, SHARED, article

from gristmill.core.errors import GristmillError, UsageError
from gristmill.core.manifest import run_task
from gristmill.core.stage import Receipt, Shard
from gristmill.curate.language import find_model
from gristmill.curate.pages import Pages, text_of_range
from gristmill.curate.sandbox import Job, Sandbox
from gristmill.curate.schema import Extract


@pytest.fixture
def model() -> Path:
    try:
        return find_model()
    except UsageError as error:
        pytest.skip(f"no language model here: {error.hint}")


def archive(path: Path, bodies: list[bytes], url: str = "http://site{}.example.org/a/page") -> None:
    data = b""
    for n, body in enumerate(bodies):
        http = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:{n:032d}>\r\nWARC-Date: 2026-03-01T12:00:00Z\r\n"
        head += f"WARC-Target-URI: {url.format(n)}\r\nContent-Type: application/http; msgtype=response\r\n"
        data += gzip.compress(f"{head}Content-Length: {len(http)}\r\n\r\n".encode() + http + b"\r\n\r\n", 6, mtime=0)
    path.write_bytes(data)


def run(path: Path, root: Path, extract: dict[str, Any]) -> tuple[Receipt, list[dict[str, Any]]]:
    stage = Pages({"extract": extract})
    shard = Shard(str(path), path.name, "0" * 64, path.stat().st_size)
    source = Receipt("input", 1, "", shard.name, {}, {}, {}, [shard], 0, 0, None, 0, {}, 0.0, "", "")
    (task,) = stage.tasks({"input": [source]})
    receipt = run_task(stage, task, root)
    return receipt, pq.read_table(receipt.output("pages.parquet").path).to_pylist()


@pytest.mark.parametrize("settings", ENGINES)
def test_the_stored_text_is_found_again(settings: Extract, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.warc.gz"
    archive(path, [html.encode() for html in PAGES])
    receipt, pages = run(path, tmp_path / "root", settings.model_dump())
    assert len(pages) >= len(PAGES) - 1
    assert receipt.rows_out + sum((receipt.drops or {}).values()) == len(PAGES)
    again = Extract(**receipt.config["extract"])
    for page in pages:
        found = text_of_range(str(path), page["warc_offset"], page["warc_length"], again, path.name)
        assert found == page["text"]


@pytest.mark.slow
@pytest.mark.parametrize("settings", ENGINES)
def test_real_texts_are_found_again(settings: Extract, model: Path, tmp_path: Path) -> None:
    path = shared_data("warc/pages") / "pages-00003.warc.gz"
    receipt, pages = run(path, tmp_path, settings.model_dump())
    assert receipt.rows_out + sum((receipt.drops or {}).values()) == receipt.rows_in
    assert receipt.quarantined == 0
    assert len(pages) >= 320
    for page in pages[::7]:
        found = text_of_range(str(path), page["warc_offset"], page["warc_length"], settings, path.name)
        assert found == page["text"]


def test_what_pages_say_of_themselves_are_columns(model: Path, tmp_path: Path) -> None:
    head = '<title>A &amp; B</title><meta name="date" content="2024-05-06"><link rel="canonical" href="/c">'
    body = article(SHARED).replace("<title>T</title>", head).replace("<html>", "<html lang='EN-us'>").encode()
    path = tmp_path / "a.warc.gz"
    archive(path, [body, article(SHARED).replace("<title>T</title>", "").encode()])
    names = ("title", "published", "html_lang", "canonical_url")
    _, pages = run(path, tmp_path / "on", {"engine": "resiliparse"})
    assert [pages[0][n] for n in names] == ["A & B", "2024-05-06", "en-us", "http://site0.example.org/c"]
    assert [pages[1][n] for n in names] == [None] * 4
    _, without = run(path, tmp_path / "off", {"engine": "resiliparse", "metadata": False})
    assert [without[0][n] for n in names] == [None] * 4
    assert [p["text"] for p in without] == [p["text"] for p in pages]


def test_a_refused_page_is_a_row_of_the_ledger(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.warc.gz"
    archive(path, [b"<p>" + b"<div>" * 5_000, article(SHARED).encode()])
    receipt, pages = run(path, tmp_path / "root", {"engine": "resiliparse"})
    assert receipt.drops == {"extract.too_deep": 1}
    assert len(pages) == 1
    (drop,) = pq.read_table(receipt.output("drops.parquet").path).to_pylist()
    assert (drop["reason"], drop["value"], drop["threshold"]) == ("extract.too_deep", None, 512.0)


def install(folder: Path, body: str) -> None:
    info = folder / "mill_ext-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mill-ext\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[gristmill.extractors]\nmill = mill_ext:extract\n")
    (folder / "mill_ext.py").write_text(body)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_a_users_own_engine_runs_in_the_sandbox(own: Path, model: Path) -> None:
    install(
        own, "def extract(html, **settings):\n    return html.partition('<article>')[2].partition('</article>')[0]\n"
    )
    path = own / "a.warc.gz"
    archive(path, [article(SHARED).encode()])
    receipt, (page,) = run(path, own / "root", {"engine": "mill"})
    assert page["text"] == f"<p>{SHARED}</p>"
    assert receipt.uses["extractor.mill"] == "mill-ext 1.2"
    assert "trafilatura" not in receipt.uses


def test_a_broken_engine_is_an_error_not_a_drop(own: Path, model: Path) -> None:
    install(own, "import no_such_module_anywhere\n")
    with Sandbox(Extract(engine="mill"), model) as sandbox, pytest.raises(GristmillError, match="no_such_module"):
        list(sandbox.map([(0, Job(article(SHARED).encode()))]))


def test_the_benchmark_scores_a_folder_of_gold(tmp_path: Path) -> None:
    """Three pages: one extracted whole, one whose gold has twice the words, one without any shared word."""
    bodies = [article(PARAGRAPH * 2 + end).encode() for end in ("", "", "")]
    (tmp_path / "warc" / "pages").mkdir(parents=True)
    archive(tmp_path / "warc" / "pages" / "x.warc.gz", bodies)
    gold = tmp_path / "gold"
    gold.mkdir()
    texts = [PARAGRAPH * 2, PARAGRAPH * 4, "nothing 漢字"]
    rows = [
        {"id": str(n), "warc": "x.warc.gz", "record_id": f"<urn:uuid:{n:032d}>", "collection": f"c{n}", "text": text}
        for n, text in enumerate(texts)
    ]
    (gold / "fulltext.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    snippets = {**rows[0], "with": ["every day but Monday.", "absent"], "without": ["museum", "absent"]}
    (gold / "snippets.jsonl").write_text(json.dumps(snippets) + "\n")
    command = [sys.executable, str(REPO / "benchmarks" / "extract.py"), "--gold", str(gold), "--json"]
    done = subprocess.run([*command, "--settings", "resiliparse"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["resiliparse"]
    assert {n: c["f1"] for n, c in report["collection"].items()} == {"c0": 1.0, "c1": 0.6667, "c2": 0.0}
    assert (report["f1"], report["precision"], report["recall"]) == (0.5556, 0.6667, 0.5)
    assert report["snippets"] == {"precision": 0.5, "recall": 0.5}
    assert report["ms_per_page"] > 0
