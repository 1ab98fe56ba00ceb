"""The whole line with every policy on: planted pages go for the reason they were planted for, and what stays is traced."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from worlds import gristmill, page, shown, warc_record, write_warc

from gristmill.pipelines.sample import write_sample

pytestmark = pytest.mark.slow

QUESTION = (
    "A baker in the harbour town sells forty small loaves every morning and gives every ninth customer a ginger biscuit, "
    "so how many biscuits must she bake for a week in which she never closes?"
)
SUBJECTS = [
    "The harbour",
    "The market",
    "Our teacher",
    "A fisherman",
    "The old mill",
    "My neighbour",
    "The council",
    "A painter",
]
VERBS = ["looked after", "remembered", "wrote about", "repaired", "visited", "described", "counted", "painted"]
OBJECTS = [
    "the long bridge",
    "two wooden boats",
    "a quiet garden",
    "the winter road",
    "every window",
    "the first train",
    "some letters",
]


def sentences(seed: int) -> list[str]:
    rng = random.Random(seed)
    one = lambda: f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(OBJECTS)} in {rng.randrange(1800, 1990)}."  # noqa: E731
    return [" ".join(one() for _ in range(5)) for _ in range(6)]


def response(url: str, paragraphs: list[str], *headers: str, head: str = "") -> bytes:
    body = page("A page", paragraphs).replace(b"<head>", b"<head>" + head.encode())
    lines = ["HTTP/1.1 200 OK", "Content-Type: text/html; charset=utf-8", *headers, f"Content-Length: {len(body)}"]
    return warc_record("response", "\r\n".join(lines).encode() + b"\r\n\r\n" + body, url)


MAIL = "Please write to Anna.Berg@harbour-museum.example.net or to the server at 8.8.4.4 when you plan a visit."
PLANTED = {
    "https://listed.example/a": (sentences(1), (), "", "url.list.mine"),
    "https://header.example/a": (sentences(2), ("X-Robots-Tag: noai",), "", "optout.x_robots_tag"),
    "https://meta.example/a": (sentences(3), (), '<meta name="robots" content="noai">', "optout.meta"),
    "https://tdm.example/a": (sentences(4), ("tdm-reservation: 1",), "", "optout.tdm"),
    "https://robots.example/private/a": (sentences(5), (), "", "optout.robots"),
    "https://gone.example/a": (sentences(6), (), "", "takedown.domain"),
    "https://exam.example/a": ([*sentences(7), QUESTION], (), "", "decontaminate.exam"),
    "https://mail.example/a": ([*sentences(8)[:3], "=====", *sentences(8)[3:], MAIL], (), "", None),
    "https://word.example/a": ([*sentences(10), "It was utterly forbidden."], (), "", "datatrove.RegexFilter.dropped"),
    "https://robots.example/open/a": (sentences(9), (), "", None),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(root, folder of the recipe): the sample web and the planted pages, to packed shards."""
    folder = tmp_path_factory.mktemp("world")
    write_sample(folder / "sample", seed=0, pages=120, files=1)
    write_warc(folder / "sample" / "z.warc.gz", [response(u, p, *h, head=m) for u, (p, h, m, _) in PLANTED.items()])
    (folder / "lists").mkdir()
    (folder / "lists/domains.txt").write_text("listed.example\n")
    (folder / "lists/gone.txt").write_text("gone.example\n")
    robots = {"host": "robots.example", "text": "User-agent: GPTBot\nDisallow: /private/\n"}
    (folder / "lists/robots.jsonl").write_text(json.dumps(robots))
    (folder / "lists/exam.jsonl.gz").write_bytes(gzip.compress(json.dumps({"id": "q1", "question": QUESTION}).encode()))
    recipe = {
        "gristmill": 1,
        "input": {"paths": [str(folder / "sample/*.warc.gz")], "source": "sample"},
        "curate": {
            "urls": {"own": [{"name": "mine", "domains": "lists/domains.txt"}]},
            "optout": {"robots": "lists/robots.jsonl"},
            "takedown": "lists/gone.txt",
            "steps": [
                {"datatrove": {"block": "formatters.SymbolLinesFormatter"}},
                {"datatrove": {"block": "filters.RegexFilter", "args": {"regex_exp": "utterly forbidden"}}},
            ],
            "language": {"keep": "all", "min_score": 0.3},
            "decontaminate": {"benchmarks": ["lists/*.jsonl.gz"]},
            "pii": {},
        },
        "tokenizer": {"vocab_size": 1024},
        "mixture": "demo",
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    root = folder / "root"
    run(folder / "recipe.yaml", root)
    return root, folder


def run(recipe: Path, root: Path, *more: str) -> None:
    done = gristmill(
        "run", str(recipe), "--root", str(root), "--cluster", "inline", "--to", "shards", *more, timeout=900
    )
    assert done.returncode == 0, done.stderr


def outputs(root: Path, stage: str, name: str) -> list[dict[str, Any]]:
    found = sorted((root / "stages" / stage).glob(f"*/{name}"))
    return [row for path in found for row in pq.read_table(path).to_pylist()]


def test_each_planted_page_goes_for_its_reason(world: tuple[Path, Path]) -> None:
    root, _ = world
    reasons: dict[str, str | None] = {
        row["url"]: row["reason"] for row in outputs(root, "curate.pages", "drops.parquet")
    }
    verdicts = {row["id"]: row["reason"] for row in outputs(root, "curate.decide", "verdicts.parquet")}
    reasons |= {row["url"]: row["reason"] for row in outputs(root, "curate.steps", "drops.parquet")}
    reasons |= {row["url"]: verdicts[row["id"]] for row in outputs(root, "curate.steps", "pages.parquet")}
    reasons |= {row["url"]: row["reason"] for row in outputs(root, "curate", "drops.parquet")}
    assert {url: reasons.get(url) for url in PLANTED} == {url: reason for url, (*_, reason) in PLANTED.items()}
    for stage in shown(root).values():
        if stage["drops"] is not None:
            assert stage["rows_in"] == stage["rows_out"] + sum(stage["drops"].values()) + stage["quarantined"]


def test_the_report_names_the_item(world: tuple[Path, Path]) -> None:
    found = json.loads(gristmill("report", "--root", str(world[0]), "--json").stdout)["contamination"]
    assert found["exam"]["items"] == ["q1"]
    assert found["exam"]["strongest"][0]["url"] == "https://exam.example/a"
    assert "q1 question 100% of" in gristmill("report", "--root", str(world[0])).stdout


def test_cleaned_text_is_traced_and_verified(world: tuple[Path, Path]) -> None:
    root, _ = world
    (document,) = [d for d in outputs(root, "curate", "documents.parquet") if d["url"] == "https://mail.example/a"]
    assert (document["pii_emails"], document["pii_ips"]) == (1, 1)
    assert "Anna" not in document["text"]
    extracted = {row["id"]: row["text"] for row in outputs(root, "curate.pages", "pages.parquet")}[document["id"]]
    assert "\n=====\n" in extracted
    assert "=====" not in document["text"]
    found = json.loads(gristmill("find", document["id"], "--root", str(root), "--json").stdout)
    place = found["places"][0]
    address = f"{place['phase']}:{place['row']}:{place['row_start']}"
    done = gristmill("trace", "--root", str(root), "--token", address, "--text", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["verified"] is True
    assert row["text"] == document["text"]


def test_a_takedown_list_finds_files_rows_and_fates(world: tuple[Path, Path]) -> None:
    root, folder = world
    listed = folder / "requests.txt"
    listed.write_text("mail.example\nhttps://gone.example/a#x\nnowhere.example\nlisted.example\n")
    done = gristmill("takedown", str(listed), "--root", str(root), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    fates = {d["url"]: d["fate"] for d in found["documents"]}
    assert fates == {
        "https://mail.example/a": "kept",
        "https://gone.example/a": "dropped by curate.decide: takedown.domain",
        "https://listed.example/a": "dropped by curate.pages",
    }
    assert found["unmatched"] == ["nowhere.example"]
    (kept,) = [d["id"] for d in found["documents"] if d["fate"] == "kept"]
    told = json.loads(gristmill("find", kept, "--root", str(root), "--json").stdout)["places"]
    assert [(p["phase"], p["row"], p["row_start"], p["step"]) for p in found["places"]] == [
        (p["phase"], p["row"], p["row_start"], p["step"]) for p in told
    ]
    assert len(found["places"]) >= 1
    kinds = {Path(f["file"]).suffix for f in found["files"]}
    assert {".parquet", ".bin"} <= kinds
    assert all(Path(f["file"]).exists() for f in found["files"])
    text = gristmill("takedown", str(listed), "--root", str(root)).stdout
    assert "in no record here: nowhere.example" in text


def test_another_takedown_list_extracts_nothing_again(world: tuple[Path, Path]) -> None:
    root, folder = world
    more = folder / "more.txt"
    more.write_text("gone.example\nmail.example\n")
    done = gristmill(
        "plan", str(folder / "recipe.yaml"), "--root", str(root), "--set", f"curate.takedown={more}", "--json"
    )
    plans = {row["stage"]: row for row in json.loads(done.stdout)["stages"]}
    assert plans["curate.pages"]["run"] == plans["curate.measure"]["run"] == 0
    assert plans["curate.decide"]["run"] == 2


def test_rows_of_a_reader_go_the_whole_line_and_are_traced(world: tuple[Path, Path], tmp_path: Path) -> None:
    german = [
        "\n".join(f"Die Bibliothek der alten Stadt öffnete im Jahr {n}." for n in range(i, i + 60)) for i in range(40)
    ]
    texts = ["\n".join(sentences(100 + i)) for i in range(150)] + german
    rows = [{"id": f"r{i}", "content": text, "url": f"https://rows.example/{i}"} for i, text in enumerate(texts)]
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    recipe = json.loads((world[1] / "recipe.yaml").read_text())
    reader = {"block": "readers.JsonlReader", "args": {"text_key": "content"}}
    recipe["input"] = {"paths": [str(tmp_path / "rows.jsonl.gz")], "source": "sample", "reader": reader}
    recipe["curate"] = {"language": {"keep": "all", "min_score": 0.3}, "dedup": {"exact": False, "minhash": None}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    run(tmp_path / "recipe.yaml", tmp_path / "root")
    documents = outputs(tmp_path / "root", "curate", "documents.parquet")
    assert [d["text"] for d in documents] == [row["content"] for row in rows]
    found = json.loads(gristmill("find", "https://rows.example/7", "--root", str(tmp_path / "root"), "--json").stdout)
    place = found["places"][0]
    address = f"{place['phase']}:{place['row']}:{place['row_start']}"
    done = gristmill("trace", "--root", str(tmp_path / "root"), "--token", address, "--verify", "--json")
    assert done.returncode == 0, done.stderr
    (traced,) = json.loads(done.stdout)
    assert (traced["verified"], traced["url"], traced["warc_offset"]) == (True, "https://rows.example/7", 7)
