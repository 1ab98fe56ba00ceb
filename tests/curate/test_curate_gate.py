"""The language gate: what it refuses and lets pass, in this process, in the sandbox, in the stage and in the recipe."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from data_helper import shared_data
from language_models import WORDS, train

from gristmill.core.errors import UsageError
from gristmill.core.manifest import run_task
from gristmill.core.stage import Receipt, Shard
from gristmill.curate.extract import page_text
from gristmill.curate.gate import LanguageGate
from gristmill.curate.identify import Identifier
from gristmill.curate.language import find_model
from gristmill.curate.pages import Pages
from gristmill.curate.schema import Extract, Language
from gristmill.curate.schema_language import Gate
from gristmill.pipelines.graph import build
from gristmill.pipelines.planner import config_changes
from gristmill.pipelines.schema import load_recipe

ENGLISH = "The library of the old town opens at nine and closes at six on every working day of the week. "
GERMAN = "Die Bibliothek der alten Stadt öffnet an jedem Werktag um neun Uhr und schließt um achtzehn Uhr. "
JAPANESE = "古い町の図書館は平日の午前九時に開き、午後六時に閉まります。休館日は月曜日です。"
COOKIES = "We use cookies to improve your experience and to show you personalised advertising on our site. "


@pytest.fixture(scope="module")
def identifier() -> Identifier:
    try:
        return Identifier(find_model())
    except UsageError as error:
        pytest.skip(f"no language model here: {error.hint}")


def page(*paragraphs: str, tag: str = "p", extra: str = "") -> str:
    body = "".join(f"<{tag}>{text}</{tag}>" for text in paragraphs)
    return f"<html><head><title>t</title></head><body>{extra}<article>{body}</article></body></html>"


SCRIPT = "<script>var words = 'this is an English script that is no text of the page at all';</script>"
CASES: list[tuple[str, str, tuple[str, ...], str | None]] = [
    ("another language", page(GERMAN * 3), ("en",), "de"),
    ("the wanted one", page(ENGLISH * 3), ("en",), None),
    ("one of several", page(GERMAN * 3), ("en", "de"), None),
    ("short text", page("Bibliothek der Stadt"), ("en",), None),
    ("no text", page(), ("en",), None),
    ("no body", "<frameset></frameset>", ("en",), None),
    ("empty", "", ("en",), None),
    ("text outside paragraphs", page(GERMAN, GERMAN, GERMAN, tag="div"), ("en",), "de"),
    (
        "foreign notices over wanted divs",
        page(*[JAPANESE] * 20, tag="div", extra=f"<p>{COOKIES * 4}</p>"),
        ("ja",),
        None,
    ),
    ("foreign navigation", page(JAPANESE * 8, extra="<nav>Home Products About us Contact</nav>" * 3), ("ja",), None),
    ("scripts are no text", page(*[JAPANESE] * 5, tag="div", extra=SCRIPT * 50), ("ja",), None),
    ("two languages", page(ENGLISH * 4, GERMAN * 4), ("en",), None),
    ("unsure", page("0123456789 " * 60), ("ja",), None),
    ("many open tags", "<div>" * 100_000 + GERMAN * 5, ("en",), "de"),
    ("paragraphs never closed", "<p>" + f"<p class='a'>{GERMAN}" * 5, ("en",), "de"),
    ("upper-case tags", page(GERMAN * 3, tag="P").replace("body", "BODY"), ("en",), "de"),
    ("entities", page("".join(f"&#{ord(c)};" for c in JAPANESE) * 6), ("en",), "ja"),
    ("scripts that no one ends", f"<body><script>{GERMAN * 9}", ("en",), None),
    (
        "the notices' language in the html tag",
        page(*[JAPANESE] * 20, tag="div", extra=f"<p>{COOKIES * 4}</p>").replace("<html>", "<html lang=en>"),
        ("ja",),
        None,
    ),
    (
        "a long text in the language of the html tag over another body",
        page(GERMAN * 12, extra=f"<div>{ENGLISH}</div>" * 40).replace("<html>", "<html lang='de-AT'>"),
        ("en",),
        "de",
    ),
    (
        "the same where the tag says otherwise",
        page(GERMAN * 12, extra=f"<div>{ENGLISH}</div>" * 40).replace("<html>", "<html lang='en'>"),
        ("en",),
        None,
    ),
    ("lone surrogates", page("\ud800" + GERMAN * 4), ("en",), "de"),
]


@pytest.mark.parametrize(("what", "html", "wanted", "refused"), CASES, ids=[c[0] for c in CASES])
def test_what_is_refused(
    identifier: Identifier, what: str, html: str, wanted: tuple[str, ...], refused: str | None
) -> None:
    found = LanguageGate(Gate(), wanted, identifier).refuses(html)
    assert (None if found is None else found[0]) == refused
    if found is not None:
        assert 0 <= found[1] < Gate().max_wanted


def test_each_setting_lets_pages_pass(identifier: Identifier) -> None:
    html = page(GERMAN * 3)
    assert LanguageGate(Gate(), ["en"], identifier).refuses(html) is not None
    for settings in (Gate(min_chars=10_000), Gate(min_score=1.0), Gate(max_wanted=0.0)):
        assert LanguageGate(settings, ["en"], identifier).refuses(html) is None


def test_an_own_model_gates_by_its_own_labels(tmp_path: Path) -> None:
    gate = LanguageGate(Gate(), ["jpn_Latn"], Identifier(train(tmp_path / "m.bin")))
    assert gate.refuses(page((WORDS["eng_Latn"] + " ") * 5)) is not None
    assert gate.refuses(page((WORDS["jpn_Latn"] + " ") * 5)) is None


def test_a_refused_page_says_why(identifier: Identifier) -> None:
    gate = LanguageGate(Gate(), ["en"], identifier)
    found = page_text(page(GERMAN * 3).encode(), "text/html; charset=utf-8", Extract(), gate)
    assert (found.reason, found.text, found.threshold) == ("language.gate", "", Gate().max_wanted)
    assert found.value is not None
    assert found.value < 0.03
    assert found.notes == {"language.gate.de": 1}
    passed = page(ENGLISH * 3).encode()
    assert page_text(passed, "text/html", Extract(), gate) == page_text(passed, "text/html", Extract())


def warc(path: Path, pages: list[tuple[str, str, str]]) -> Path:
    """(url, content type, html) as responses."""
    data = b""
    for n, (url, kind, html) in enumerate(pages):
        body = html.encode()
        block = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:{n:032d}>\r\nWARC-Target-URI: {url}\r\n"
        head += f"WARC-Date: 2026-03-01T12:00:00Z\r\nContent-Length: {len(block)}\r\n\r\n"
        data += gzip.compress(head.encode() + block + b"\r\n\r\n", mtime=0)
    path.write_bytes(data)
    return path


def run(path: Path, root: Path, config: dict[str, Any]) -> Receipt:
    stage = Pages({"urls": {"lists": "off"}, **config})
    shard = Shard(str(path), path.name, "0" * 64, path.stat().st_size)
    receipt = Receipt("input", 1, "", shard.name, {}, {}, {}, [shard], 0, 0, None, 0, {}, 0.0, "", "")
    (task,) = stage.tasks({"input": [receipt]})
    return run_task(stage, task, root)


def rows(receipt: Receipt, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(receipt.output(name).path).to_pylist()
    return found


HTML = "text/html; charset=utf-8"


@pytest.mark.usefixtures("identifier")
def test_the_stage_counts_what_it_refuses(tmp_path: Path) -> None:
    pages = [
        ("http://a.example/1", HTML, page(ENGLISH * 3)),
        ("http://a.example/2", HTML, page(GERMAN * 3)),
        ("http://a.example/3", HTML, page("Kurz.")),
        ("http://a.example/4", HTML, page(JAPANESE * 6)),
        ("http://a.example/5", HTML, page(GERMAN * 4)),
    ]
    path = warc(tmp_path / "a.warc.gz", pages)
    receipt = run(path, tmp_path / "root", Language(keep=["en"]).for_pages())
    assert receipt.drops == {"language.gate": 3}
    assert receipt.rows_in == receipt.rows_out + 3 == 5
    assert receipt.notes == {"language.gate.de": 2, "language.gate.ja": 1}
    drops = rows(receipt, "drops.parquet")
    assert [d["url"][-1] for d in drops] == ["2", "4", "5"]
    assert {(d["reason"], d["threshold"]) for d in drops} == {("language.gate", 0.03)}
    off = run(path, tmp_path / "off", Language(keep=["en"], gate=None).for_pages())
    assert off.drops == {}
    kept = {p["id"]: p for p in rows(off, "pages.parquet")}
    assert all(kept[p["id"]] == p for p in rows(receipt, "pages.parquet")), "label and score are the final text's"


@pytest.mark.usefixtures("identifier")
def test_raw_duplicates_of_one_file(tmp_path: Path) -> None:
    """The first of identical payloads stays; another charset label, or another file, makes another page."""
    text = page(ENGLISH * 3)
    pages = [
        ("http://a.example/1", HTML, text),
        ("http://b.example/2", HTML, text),
        ("http://b.example/3", "text/html; charset=iso-8859-2", text),
        ("http://b.example/4", HTML, text + " "),
        ("http://b.example/5", HTML, text),
    ]
    path = warc(tmp_path / "a.warc.gz", pages)
    receipt = run(path, tmp_path / "root", {"raw_duplicates": True})
    assert receipt.drops == {"extract.raw_duplicate": 2}
    assert [p["url"][-1] for p in rows(receipt, "pages.parquet")] == ["1", "3", "4"]
    assert [d["url"][-1] for d in rows(receipt, "drops.parquet")] == ["2", "5"]
    assert run(path, tmp_path / "off", {"raw_duplicates": False}).drops == {}


def configs(text: str, tmp_path: Path, *sets: str) -> dict[str, Any]:
    path = tmp_path / "r.yaml"
    path.write_text(f"gristmill: 1\n{text}", encoding="utf-8")
    return {node.name: node for node in build(load_recipe(str(path), sets))}


def test_what_reaches_the_stages(tmp_path: Path) -> None:
    text = "curate:\n  language:\n    keep: [en, de, en]\n"
    nodes = configs(text, tmp_path)
    pages = nodes["curate.pages"].stage.config
    assert pages["wanted"] == ["de", "en"]
    assert pages["gate"] == {"min_chars": 100, "min_score": 0.3, "max_wanted": 0.03}
    assert pages["language"] == {"model": None, "chars": 1024, "slices": 16}
    assert pages["raw_duplicates"] is True
    assert set(nodes["curate.decide"].stage.config["language"]) == {"keep", "min_score", "min_scores"}
    for off in ("curate.language.gate=null", "curate.language.keep=all"):
        assert not {"gate", "wanted"} & set(configs(text, tmp_path, off)["curate.pages"].stage.config)
    for dedup in ("curate.dedup.raw=false", "curate.dedup.exact=false", "curate.dedup.keep=[earliest]"):
        assert configs(text, tmp_path, dedup)["curate.pages"].stage.config["raw_duplicates"] is False


def test_a_changed_wish_is_named_where_it_stands(tmp_path: Path) -> None:
    """With the gate on, other languages are extracted again, and the plan says which line asks for it."""
    text = "curate:\n  language:\n    keep: [en]\n    min_score: 0.5\n"
    old = configs(text, tmp_path)["curate.pages"]
    low = configs(text.replace("0.5", "0.4"), tmp_path)["curate.pages"]
    assert config_changes(low, old.stage.config, low.stage.config) == []
    new = configs(text.replace("[en]", "[en, de]"), tmp_path)["curate.pages"]
    (change,) = config_changes(new, old.stage.config, new.stage.config)
    assert "curate.language.keep" in change
    assert "r.yaml:4" in change


@pytest.mark.slow
def test_wanted_real_pages_are_not_lost(identifier: Identifier) -> None:
    """327 real pages: English, German and Japanese ones with a sure final label all pass, most of the others do not."""
    from gristmill.curate.warc import Damage, Skip, open_warc, page_of, read_records
    from gristmill.curate.warc_types import Limits

    bodies = []
    with open_warc(str(shared_data("warc/pages") / "pages-00000.warc.gz")) as stream:
        for record in read_records(stream, "w", Limits()):
            if not isinstance(record, Damage) and not isinstance(found := page_of(record, Limits()), Skip):
                bodies.append((found.html, found.content_type))
    gates = {label: LanguageGate(Gate(), [label], identifier) for label in ("en", "de", "ja")}
    refused = dict.fromkeys(gates, 0)
    lost = []
    for body, kind in bodies:
        plain = page_text(body, kind, Extract())
        label, score = identifier.identify([plain.text])[0]
        for name, gate in gates.items():
            if page_text(body, kind, Extract(), gate).reason == "language.gate":
                refused[name] += 1
                if label == name and score > 0.65:
                    lost.append((name, score))
    assert lost == []
    assert refused["en"] > 0.3 * len(bodies)
    assert min(refused["de"], refused["ja"]) > 0.6 * len(bodies)
    with gzip.open(shared_data("warc/pages-manifest.jsonl.gz")) as f:
        assert sum(json.loads(line)["warc"].endswith("pages-00000.warc.gz") for line in f) == len(bodies)


def test_the_stage_with_an_own_model(tmp_path: Path) -> None:
    """Labels of the model's own layout are stored, and the model's path reaches no task's identity."""
    words = {label: " ".join([text] * 4) for label, text in WORDS.items()}
    path = warc(tmp_path / "a.warc.gz", [("http://a.example/" + k, HTML, page(v)) for k, v in words.items()])
    receipts: list[Any] = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        model = tmp_path / folder / "glot.bin"
        if receipts:
            model.write_bytes((tmp_path / "one" / "glot.bin").read_bytes())
        else:
            train(model)
        config = Language(keep=["eng_Latn", "jpn_Latn"], model=str(model)).for_pages()
        receipts.append(run(path, tmp_path / folder / "root", config))
    assert receipts[0].task == receipts[1].task
    assert [p["language"] for p in rows(receipts[0], "pages.parquet")] == ["eng_Latn", "jpn_Latn"]
    assert receipts[0].drops == {"language.gate": 3}
    assert receipts[0].content == receipts[1].content
