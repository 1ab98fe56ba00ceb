"""Engines by name, and each of them: settings that reach it, the same text in any order and process, hostile pages."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from data_helper import shared_data
from page_engines import ENGINES, PAGES, PARAGRAPH, RULED, SHARED, article, page

from gristmill.core.settings import parse, validate
from gristmill.curate.engines import BUILTIN, GROUP, RefusedPage, engine_uses, load_engine
from gristmill.curate.engines.resiliparse import MAX_DEPTH
from gristmill.curate.extract import extract_text, page_text
from gristmill.curate.schema import Extract

REASONS = {None, "extract.no_text", "extract.too_deep", "extract.too_many_nodes"}


def problems(text: str) -> list[tuple[int, str, str | None]]:
    _, found = validate(parse(text, "recipe.yaml"), Extract)
    return [(p.line, p.message, p.hint) for p in found]


def test_unknown_engines_have_a_place_and_a_hint() -> None:
    assert problems("tables: true\nengine: trafilature\n") == [
        (2, "no extractor is called `trafilature`", "did you mean `trafilatura`?")
    ]
    ((_, _, hint),) = problems("engine: xyz\n")
    assert hint is not None
    assert all(name in hint for name in (*BUILTIN, GROUP))
    for module in ("os", "gristmill.curate.engines.trafilatura", "", "trafilatura:extract"):
        assert problems(f"engine: '{module}'\n"), "only installed names, no module or attribute"


def test_mode_belongs_to_an_engine() -> None:
    assert problems("mode: full\n") == []
    ((_, message, hint),) = problems("engine: resiliparse\nmode: full\n")
    assert "no mode `full`" in message
    assert "trafilatura" in str(hint)


def test_what_decides_a_text_is_told() -> None:
    assert set(engine_uses("trafilatura")) == {"trafilatura", "lxml", "jusText"}
    assert set(engine_uses("resiliparse")) == {"resiliparse"}


def install(folder: Path, module: str, name: str, version: str, body: str) -> None:
    """A distribution with one extractor, as pip would leave it in `folder`."""
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {module}:extract\n")
    (folder / f"{module}.py").write_text(body)


OWN = "def extract(html, *, tables, comments, favor):\n    return f'{len(html)} {tables} {comments} {favor}'\n"


def test_a_users_own_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "mill_ext", "mill", "1.2", OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = Extract(engine="mill", favor="recall", tables=False)
    assert page_text(b"<p>x</p>", "", settings).text == "8 False False recall"
    assert engine_uses("mill") == {"extractor.mill": "mill_ext 1.2"}
    assert problems("engine: mil\n")[0][2] == "did you mean `mill`?"
    install(tmp_path / "more", "other_ext", "mill", "3", OWN)
    monkeypatch.syspath_prepend(str(tmp_path / "more"))
    ((_, message, hint),) = problems("engine: mill\n")
    assert "several packages" in message
    assert hint == "keep one of mill_ext, other_ext"


def test_an_own_engine_never_stands_in_for_one_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "shadow_ext", "resiliparse", "1", OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert PARAGRAPH.strip() in page_text(PAGES[0].encode(), "", Extract(engine="resiliparse")).text
    assert "extractor.resiliparse" not in engine_uses("resiliparse")


def test_an_entry_point_that_is_no_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "flat_ext", "flat", "1", "extract = 5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(TypeError, match="no function"):
        load_engine("flat")


@pytest.mark.parametrize("settings", ENGINES)
def test_the_whole_article(settings: Extract) -> None:
    text = page_text(PAGES[0].encode(), "text/html; charset=utf-8", settings).text
    assert "First." in text
    assert text.count(PARAGRAPH.strip()) == 5


@pytest.mark.parametrize("settings", RULED)
def test_nothing_around_the_article(settings: Extract) -> None:
    text = page_text(PAGES[0].encode(), "text/html; charset=utf-8", settings).text
    assert "all rights reserved" not in text
    assert "Home" not in text


@pytest.mark.parametrize("settings", ENGINES)
def test_settings_reach_the_engine(settings: Extract) -> None:
    without = settings.model_copy(update={"tables": False})
    assert "another cell" in (extract_text(PAGES[5], settings) or "")
    assert "another cell" not in (extract_text(PAGES[5], without) or "")
    assert "A reader says" in (extract_text(PAGES[8], settings.model_copy(update={"comments": True})) or "")


@pytest.mark.parametrize("favor", ["balanced", "precision", "recall"])
@pytest.mark.parametrize("settings", RULED)
def test_each_favor_finds_the_article(settings: Extract, favor: str) -> None:
    assert "First." in (extract_text(PAGES[0], settings.model_copy(update={"favor": favor})) or "")


@pytest.mark.parametrize("settings", RULED)
def test_comments_are_left_out(settings: Extract) -> None:
    assert "A reader says" not in (extract_text(PAGES[8], settings) or "")


@pytest.mark.parametrize("settings", ENGINES)
def test_the_text_depends_on_no_other_page(settings: Extract) -> None:
    want = [extract_text(html, settings) for html in PAGES]
    assert sum(SHARED[:60] in (text or "") for text in want) >= 7
    for seed in range(4):
        order = list(range(len(PAGES))) * 3
        random.Random(seed).shuffle(order)
        assert [extract_text(PAGES[i], settings) for i in order] == [want[i] for i in order]


SCRIPT = """
import base64, hashlib, json, random, sys
from gristmill.curate.extract import page_text
from gristmill.curate.schema import Extract
bodies, settings = json.load(open(sys.argv[1])), Extract.model_validate_json(sys.argv[2])
order = sorted(bodies)
random.Random(int(sys.argv[3])).shuffle(order)
found = {}
for name in order:
    r = page_text(base64.b64decode(bodies[name]), "text/html", settings)
    found[name] = hashlib.sha256(repr((r.text, r.charset, r.reason, sorted(r.facts.items()))).encode()).hexdigest()
print(json.dumps(found, sort_keys=True))
"""


def permuted(bodies: dict[str, bytes], settings: Extract, folder: Path, seeds: list[int]) -> set[str]:
    path = folder / "bodies.json"
    path.write_text(json.dumps({k: base64.b64encode(v).decode() for k, v in bodies.items()}))
    found = set()
    for seed in seeds:
        env = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", SCRIPT, str(path), settings.model_dump_json(), str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    return found


@pytest.mark.parametrize("settings", ENGINES)
def test_other_processes_and_hash_seeds_give_the_same(settings: Extract, tmp_path: Path) -> None:
    bodies = {str(i): html.encode() for i, html in enumerate(PAGES)}
    (found,) = permuted(bodies, settings, tmp_path, [1, 2])
    assert len(set(json.loads(found).values())) >= len(PAGES) - 1


@pytest.mark.slow
@pytest.mark.parametrize("settings", ENGINES)
def test_real_pages_give_the_same_in_any_order_and_process(settings: Extract, tmp_path: Path) -> None:
    with gzip.open(shared_data("warc/pages-manifest.jsonl.gz")) as f:
        rows = [json.loads(line) for line in f][::16]
    bodies = {}
    for row in rows:
        with open(shared_data("warc/pages") / Path(row["warc"]).name, "rb") as f:
            f.seek(row["offset"])
            record = gzip.decompress(f.read(row["length"]))
        bodies[row["id"]] = record.split(b"\r\n\r\n", 2)[2][: row["bytes"]]
    assert len(bodies) > 120
    assert len(permuted(bodies, settings, tmp_path, [11, 12, 13])) == 1


TAGS = ["b", "table", "blockquote", "span", "ul><li", "svg", "font", "form", "section", "dl><dd"]


@pytest.mark.parametrize("tag", ["div", "p", *(pytest.param(tag, marks=pytest.mark.slow) for tag in TAGS)])
@pytest.mark.parametrize("settings", ENGINES)
def test_a_hundred_thousand_levels(settings: Extract, tag: str) -> None:
    html = page(f"<p>{SHARED}</p>" + f"<{tag}>" * 100_000 + "bottom")
    found = page_text(html.encode(), "text/html; charset=utf-8", settings)
    assert found.reason in REASONS


def test_a_refused_depth_is_counted_at_its_limit() -> None:
    def deep(levels: int) -> str:
        return page(f"<p>{SHARED}</p>" + "<div>" * (levels - 3) + "<i>bottom</i>" + "</div>" * levels + "<br>" * 600)

    settings = Extract(engine="resiliparse")
    assert page_text(deep(MAX_DEPTH).encode(), "", settings).reason is None
    refused = page_text(deep(MAX_DEPTH + 1).encode(), "", settings)
    assert (refused.reason, refused.threshold) == ("extract.too_deep", MAX_DEPTH)
    with pytest.raises(RefusedPage):
        extract_text(deep(MAX_DEPTH + 1), settings)


BINARY = {
    "png": b"\x89PNG\r\n\x1a\n" + random.Random(1).randbytes(200_000),
    "gzip": gzip.compress(random.Random(2).randbytes(300_000), mtime=0),
    "zlib of html": zlib.compress(article(SHARED).encode() * 500),
    "pdf": b"%PDF-1.4\n" + b"<< /Type /Page >> stream\n" + random.Random(3).randbytes(100_000) + b"<html><p>",
    "nuls": b"\0" * 1_000_000,
    "wide": ("<p>" + SHARED).encode("utf-16-le") * 50,
    "tags of noise": b"<" + b"><".join(random.Random(4).randbytes(9) for _ in range(20_000)),
}


@pytest.mark.parametrize("kind", BINARY)
@pytest.mark.parametrize("settings", ENGINES)
def test_binary_posing_as_html(settings: Extract, kind: str) -> None:
    found = page_text(BINARY[kind], "text/html", settings)
    assert found.reason in REASONS | {"extract.error"}
    found.text.encode()
    assert "\0" not in found.text


PIECES = [
    *(b"<p>", b"</p>", b"<div class='", b"'>", b"&#0;", b"&#xD800;", b"\0", b"\xff", b"<![CDATA[", b"<?xml?>", b"]]>"),
    *(b"<script>", b"<table><tr><td>", b"words and words ", "é日本".encode(), b"<meta charset=utf-7>", b"<a href="),
    *(b"-->", b"<!--", b"<frameset>", b"<template>", b"</body>", b"<plaintext>", b"\x01\x02", b"<title>", b"<svg><p>"),
]


@pytest.mark.parametrize("settings", ENGINES)
def test_random_bytes_never_raise(settings: Extract) -> None:
    rng = random.Random(5)
    for _ in range(150):
        body = b"".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 60)))
        kind = rng.choice(["", "text/html", "text/html; charset=utf-16", "x; charset=\ud800"])
        found = page_text(body, kind, settings)
        assert found.reason in REASONS, (body, found)
        found.text.encode()


@pytest.mark.parametrize("settings", ENGINES)
def test_lone_surrogates_and_empty_pages(settings: Extract) -> None:
    assert "Monday" in (extract_text(article(SHARED + "\ud800 \udfff"), settings) or "")
    for body in (b"", b"   ", b"<html></html>", b"\0\0\0", b"\xff\xfe", b"<!--", b"<html><body><script>1</script>"):
        assert page_text(body, "text/html", settings).reason == "extract.no_text"


@pytest.mark.slow
@pytest.mark.parametrize("settings", ENGINES)
def test_a_page_of_nearly_twenty_megabytes(settings: Extract) -> None:
    body = article(*[f"{i}. " + SHARED * 4 for i in range(19_500_000 // (len(SHARED) * 4 + 20))]).encode()
    assert 19_000_000 < len(body) < settings.max_html_bytes
    found = page_text(body, "text/html; charset=utf-8", settings)
    assert found.reason is None
    assert len(found.text) > 0.9 * len(body)


@pytest.mark.slow
@pytest.mark.parametrize("settings", ENGINES)
def test_every_charset_of_real_pages(settings: Extract) -> None:
    """One page for each charset and script found in 2,287 real pages and the crawl samples: text, or a reason."""
    from gristmill.curate.warc import Damage, Limits, Skip, open_warc, page_of, read_records

    seen: dict[str, int] = {}
    for path in sorted([*shared_data("warc/pages").glob("*.gz"), *shared_data("warc/crawl").glob("*.warc.gz")]):
        with open_warc(str(path)) as stream:
            for record in read_records(stream, path.name, Limits()):
                item = None if isinstance(record, Damage) else page_of(record, Limits())
                if item is None or isinstance(item, Skip):
                    continue
                from gristmill.curate.charset import decode_html

                charset = decode_html(item.html, item.content_type)[1]
                if seen.get(charset, 0) >= 3:
                    continue
                seen[charset] = seen.get(charset, 0) + 1
                found = page_text(item.html, item.content_type, settings)
                assert found.reason in REASONS, (item.url, found.reason)
                assert found.text.count("\ufffd") <= 0.01 * len(found.text) + 20, (item.url, charset)
    assert len(seen) >= 6, seen


def test_the_texts_of_every_engine_differ() -> None:
    """The names lead to different engines: a list keeps its bullets or not, a table its bars."""
    texts = {hashlib.sha256(repr([extract_text(h, p.values[0]) for h in PAGES]).encode()).digest() for p in ENGINES}  # type: ignore[arg-type]
    assert len(texts) >= len({p.values[0].engine for p in ENGINES})  # type: ignore[union-attr]
