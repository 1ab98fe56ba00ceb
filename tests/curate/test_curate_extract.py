"""Extraction: the same text whatever pages came before, in any process; bounded reasons; normalisation once."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from data_helper import shared_data

from gristmill.curate.extract import extract_text, page_text
from gristmill.curate.normalise import normalise
from gristmill.curate.schema import Extract

SETTINGS = Extract()
PARAGRAPH = "The museum opens its doors at nine and closes them at five, every day but Monday. "


def page(body: str, head: str = "") -> str:
    return f"<!DOCTYPE html><html><head><title>T</title>{head}</head><body>{body}</body></html>"


def article(*paragraphs: str) -> str:
    inner = "".join(f"<p>{p}</p>" for p in paragraphs)
    nav = '<nav class="menu"><ul><li><a href="/">Home</a></li><li><a href="/news">News</a></li></ul></nav>'
    return page(f"{nav}<main><article>{inner}</article></main><footer>Copyright, all rights reserved</footer>")


SHARED = PARAGRAPH * 3
PAGES = [
    article(SHARED, PARAGRAPH * 2 + "First."),
    article(SHARED, PARAGRAPH * 2 + "Second."),
    article(SHARED, SHARED, SHARED),
    article(SHARED),
    article(SHARED, "Third. " + PARAGRAPH),
    article(SHARED, "<table><tr><td>a cell of words</td><td>another cell</td></tr></table>", SHARED),
    article("Short."),
    page("<p>" + "No article at all, " * 40 + "</p><div class='comment'>a comment</div>"),
]
"""Pages that share long segments: with trafilatura's process-wide duplicate cache later ones would lose them."""


def test_the_text_depends_on_no_other_page() -> None:
    want = [extract_text(html, SETTINGS) for html in PAGES]
    assert sum(SHARED[:60] in (text or "") for text in want) == 6
    for seed in range(5):
        order = list(range(len(PAGES))) * 3
        random.Random(seed).shuffle(order)
        assert [extract_text(PAGES[i], SETTINGS) for i in order] == [want[i] for i in order]


def test_duplicate_removal_would_depend_on_other_pages() -> None:
    """The test above can fail: with the cache on, the same page gives another text later."""
    import trafilatura

    first, *_, last = [
        trafilatura.extract(PAGES[0], fast=True, include_comments=False, deduplicate=True) for _ in range(6)
    ]
    assert first != last


def digests(pages: list[str]) -> dict[str, str]:
    texts = {str(i): extract_text(html, SETTINGS) or "" for i, html in enumerate(pages)}
    return {i: hashlib.sha256(text.encode()).hexdigest() for i, text in texts.items()}


SCRIPT = """
import hashlib, json, random, sys
from gristmill.curate.extract import page_text
from gristmill.curate.schema import Extract
bodies = json.load(open(sys.argv[1]))
order = sorted(bodies)
random.Random(int(sys.argv[2])).shuffle(order)
found = {}
for name in order:
    r = page_text(bodies[name].encode("latin-1"), "text/html", Extract())
    found[name] = hashlib.sha256(repr((r.text, r.charset, r.reason)).encode()).hexdigest()
print(json.dumps(found, sort_keys=True))
"""


def run_permuted(bodies: dict[str, bytes], folder: Path, seeds: list[int]) -> list[str]:
    path = folder / "bodies.json"
    path.write_text(json.dumps({k: v.decode("latin-1") for k, v in bodies.items()}))
    found = []
    for seed in seeds:
        env = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(path), str(seed)], capture_output=True, text=True, env=env
        )
        assert done.returncode == 0, done.stderr
        found.append(done.stdout)
    return found


def test_other_processes_and_hash_seeds_give_the_same(tmp_path: Path) -> None:
    bodies = {str(i): html.encode() for i, html in enumerate(PAGES)}
    a, b = run_permuted(bodies, tmp_path, [1, 2])
    assert a == b
    assert len(json.loads(a)) == len(PAGES)


@pytest.mark.slow
def test_real_pages_give_the_same_in_any_order_and_process(tmp_path: Path) -> None:
    with gzip.open(shared_data("warc/pages-manifest.jsonl.gz")) as f:
        rows = [json.loads(line) for line in f][::12]
    bodies = {}
    for row in rows:
        path = shared_data("warc/pages") / Path(row["warc"]).name
        with open(path, "rb") as f:
            f.seek(row["offset"])
            record = gzip.decompress(f.read(row["length"]))
        bodies[row["id"]] = record.split(b"\r\n\r\n", 2)[2][: row["bytes"]]
    assert len(bodies) > 150
    a, b, c = run_permuted(bodies, tmp_path, [11, 12, 13])
    assert a == b == c


def test_settings_reach_trafilatura() -> None:
    html = PAGES[5]
    assert "another cell" in (extract_text(html, Extract()) or "")
    assert "another cell" not in (extract_text(html, Extract(tables=False)) or "")
    commented = page(f"<article><p>{SHARED}</p></article><div id='comments'><p>A reader says: {PARAGRAPH}</p></div>")
    assert "A reader says" not in (extract_text(commented, Extract()) or "")
    assert "A reader says" in (extract_text(commented, Extract(comments=True)) or "")


@pytest.mark.parametrize("favor", ["balanced", "precision", "recall"])
def test_each_favor_finds_the_article(favor: str) -> None:
    text = extract_text(PAGES[0], Extract(favor=favor)) or ""
    assert "First." in text
    assert "all rights reserved" not in text


@pytest.mark.parametrize("tag", ["div", "p", "b", "table", "blockquote", "span", "ul><li", "svg", "font", "form"])
def test_a_hundred_thousand_levels(tag: str) -> None:
    html = page(f"<p>{SHARED}</p>" + f"<{tag}>" * 100_000 + "bottom")
    found = page_text(html.encode(), "text/html; charset=utf-8", SETTINGS)
    assert found.reason in (None, "extract.no_text")


def test_a_text_near_the_depth_limit_does_not_depend_on_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    html = page(f"<p>{SHARED}</p>" + "<div><p><b>" * 80 + PARAGRAPH + "</b></p></div>" * 80)
    want = extract_text(html, SETTINGS)

    def deep(n: int) -> str | None:
        return deep(n - 1) if n else extract_text(html, SETTINGS)

    assert deep(600) == want


def test_too_many_nodes_is_counted_by_tags() -> None:
    html = page("<p>" + SHARED + "</p>" + "<i>" * 100)
    nodes = html.count("<")
    dropped = page_text(html.encode(), "", Extract(max_nodes=nodes - 1))
    assert (dropped.reason, dropped.value, dropped.threshold) == ("extract.too_many_nodes", nodes, nodes - 1)
    assert page_text(html.encode(), "", Extract(max_nodes=nodes)).reason is None


def test_too_large_is_counted_in_bytes() -> None:
    html = article("é" * 1000).encode()
    dropped = page_text(html, "", Extract(max_html_bytes=len(html) - 1))
    assert (dropped.reason, dropped.value, dropped.threshold) == ("extract.too_large", len(html), len(html) - 1)
    assert page_text(html, "", Extract(max_html_bytes=len(html))).reason is None


@pytest.mark.parametrize("body", [b"", b"   ", b"<html></html>", b"\0\0\0", b"\xff\xfe", b"<", b"plain words", b"<!--"])
def test_pages_without_text(body: bytes) -> None:
    assert page_text(body, "text/html", SETTINGS).reason == "extract.no_text"


def test_min_chars() -> None:
    html = article(SHARED).encode()
    n = len(page_text(html, "", SETTINGS).text)
    assert page_text(html, "", Extract(min_chars=n)).reason is None
    short = page_text(html, "", Extract(min_chars=n + 1))
    assert (short.reason, short.value, short.threshold) == ("extract.no_text", n, n + 1)


def test_a_fault_inside_trafilatura_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    import trafilatura

    def broken(*_: object, **__: object) -> str:
        raise RecursionError("too deep")

    monkeypatch.setattr(trafilatura, "extract", broken)
    assert page_text(article(SHARED).encode(), "", SETTINGS).reason == "extract.error"

    def hungry(*_: object, **__: object) -> str:
        raise MemoryError

    monkeypatch.setattr(trafilatura, "extract", hungry)
    with pytest.raises(MemoryError):
        page_text(article(SHARED).encode(), "", SETTINGS)


def test_random_bytes_never_raise() -> None:
    rng = random.Random(5)
    pieces = [
        b"<p>",
        b"</p>",
        b"<div class='",
        b"'>",
        b"&#0;",
        b"&#xD800;",
        b"\0",
        b"\xff",
        b"<![CDATA[",
        b"<?xml?>",
        b"]]>",
    ]
    pieces += [
        b"<script>",
        b"<table><tr><td>",
        b"words and words ",
        "é日本".encode(),
        b"<meta charset=utf-7>",
        b"<a href=",
        b"-->",
    ]
    for _ in range(150):
        body = b"".join(rng.choice(pieces) for _ in range(rng.randrange(1, 60)))
        found = page_text(
            body, rng.choice(["", "text/html", "text/html; charset=utf-16", "x; charset=\ud800"]), SETTINGS
        )
        assert found.reason in (None, "extract.no_text"), (body, found)
        found.text.encode()


def test_normalise() -> None:
    assert normalise("plain\ntext é") == ("plain\ntext é", {})
    assert normalise("a\0b\0") == ("ab", {"text.nul": 2})
    assert normalise("a\ud800b\udfff😀") == ("a\ufffdb\ufffd😀", {"text.surrogate": 2})
    assert normalise("a\r\nb\rc\n\rd") == ("a\nb\nc\n\nd", {})
    assert normalise("a\r\0\nb") == ("a\nb", {"text.nul": 1})
    assert normalise("") == ("", {})


def test_normalise_is_stable_and_touches_nothing_else() -> None:
    rng = random.Random(2)
    for _ in range(500):
        text = "".join(rng.choice("ab \r\n\0\ud800\udc00\u2028\u00a0\ufeff\x0b\x85é") for _ in range(rng.randrange(12)))
        once, _ = normalise(text)
        assert normalise(once) == (once, {})
        once.encode()
        kept = [c for c in text if c not in "\0\r\n\ud800\udc00"]
        assert [c for c in once if c not in "\n\ufffd"] == kept
