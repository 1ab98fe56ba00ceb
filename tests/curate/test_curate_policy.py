"""Takedowns and opt-outs as decisions: before every rule, from the pages' own columns, with the lists' digests in the id."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gristmill.core.document import PAGE_SCHEMA
from gristmill.core.errors import FormatError, GristmillError, UsageError
from gristmill.core.hashing import sha256_file
from gristmill.core.manifest import run_task
from gristmill.core.stage import Receipt, Shard
from gristmill.curate.decide import Decide
from gristmill.curate.policy import Policy, robots_of
from gristmill.curate.rules.engine import columns_of
from gristmill.curate.schema import Rules
from gristmill.curate.takedown import Takedown

SETS = ("gopher@datatrove", "c4@datatrove", "fineweb@datatrove")
CONFIG: dict[str, Any] = {"language": {"keep": ["en"]}, "rules": dict.fromkeys(SETS)}
PAGES = [  # url, optout, language
    ("https://good.example/a", None, "en"),
    ("https://ai.example/a", "x-robots-tag:noai", "en"),
    ("https://ai.example/b", "meta:noai", "en"),
    ("https://ai.example/c", "tdm-header", "de"),
    ("https://closed.example/private/x", None, "en"),
    ("https://closed.example/private/open?y", None, "en"),
    ("https://sub.gone.example/", "meta:noai", "en"),
    ("HTTP://Named.example/Page#top", None, "de"),
    ("https://named.example/page", None, "en"),
    ("https://german.example/", None, "de"),
]
ROBOTS = [
    {"host": "Closed.example", "text": "User-agent: GPTBot\nDisallow: /private\nAllow: /private/open\n"},
    {"host": "closed.example", "text": "User-agent: *\nDisallow: /\n"},  # of a repeated host the first row counts
    {"host": "good.example", "text": None},
    {"host": "good.example:8080", "text": "User-agent: *\nDisallow: /\n"},
]


def ids() -> list[str]:
    return [f"{i:032x}" for i in range(len(PAGES))]


def receipt(stage: str, path: Path, key: str = "f.warc.gz") -> Receipt:
    shard = Shard(str(path), path.name, sha256_file(path), path.stat().st_size)
    return Receipt(stage, 1, "", key, {}, {}, {}, [shard], 0, 0, None, 0, {}, 0.0, "", "")


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, list[Receipt]]:
    rows = [
        {"id": i, "url": url, "optout": optout, "language": language, "language_score": 0.9, "text": "Some text."}
        for i, (url, optout, language) in zip(ids(), PAGES, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows, PAGE_SCHEMA), tmp_path / "pages.parquet")
    measures = pa.Table.from_pylist(rows, PAGE_SCHEMA).select(["id", "language", "language_score"])
    for name in columns_of(Rules.model_validate(CONFIG["rules"])):
        if name not in measures.column_names:
            measures = measures.append_column(name, pa.nulls(len(rows), pa.float64()))
    pq.write_table(measures, tmp_path / "measures.parquet")
    stages = {"curate.pages": "pages.parquet", "curate.measure": "measures.parquet"}
    return {stage: [receipt(stage, tmp_path / name)] for stage, name in stages.items()}


def decide(inputs: Mapping[str, list[Receipt]], root: Path, **policy: Any) -> tuple[Receipt, list[str | None]]:
    stage = Decide({**CONFIG, **policy})
    (task,) = stage.tasks({name: inputs[name] for name in stage.upstream})
    done = run_task(stage, task, root)
    return done, pq.read_table(done.output("verdicts.parquet").path)["reason"].to_pylist()


def test_every_reason_before_any_rule(inputs: dict[str, list[Receipt]], tmp_path: Path) -> None:
    robots, listed = tmp_path / "robots.jsonl.gz", tmp_path / "takedown.txt"
    robots.write_bytes(gzip.compress("\n".join(map(json.dumps, ROBOTS)).encode()))
    listed.write_text(f"# asked for\ngone.example\nhttps://named.example/Page  # a letter of 3 May\n{ids()[2]}\n")
    optout = {"robots": str(robots), "agents": ["GPTBot"]}
    done, reasons = decide(inputs, tmp_path / "root", takedown=str(listed), optout=optout)
    assert reasons == [
        None,
        "optout.x_robots_tag",
        "takedown.id",
        "optout.tdm",
        "optout.robots",
        None,
        "takedown.domain",
        "takedown.url",
        None,
        "language.not_kept",
    ]
    assert done.drops == {r: reasons.count(r) for r in set(reasons) - {None}}
    assert done.uses == {"takedown": sha256_file(listed), "optout_robots": sha256_file(robots)}
    assert str(tmp_path) not in str(done.config)
    table = tmp_path / "robots.parquet"
    pq.write_table(pa.Table.from_pylist(ROBOTS), table)
    again, same = decide(inputs, tmp_path / "root", takedown=str(listed), optout={**optout, "robots": str(table)})
    assert same == reasons
    assert again.task != done.task


def test_agents_fall_under_the_star_group(inputs: dict[str, list[Receipt]], tmp_path: Path) -> None:
    table = tmp_path / "r.jsonl"
    table.write_text(
        json.dumps({"host": "good.example", "text": "User-agent: *\nDisallow: /\n\nUser-agent: a\nAllow: /"})
    )
    for agents, reason in ((["A"], None), (["b"], "optout.robots"), (["A", "*"], "optout.robots"), ([], None)):
        _, reasons = decide(inputs, tmp_path / "root", optout={"robots": str(table), "agents": agents})
        assert reasons[0] == reason, agents


def test_without_a_policy_nothing_of_it_is_read(inputs: dict[str, list[Receipt]], tmp_path: Path) -> None:
    stage = Decide(CONFIG)
    assert stage.upstream == ("curate.measure",)
    done, reasons = decide(inputs, tmp_path / "root")
    assert reasons.count(None) == 7
    assert done.uses == {}
    off = {"x_robots_tag": [], "meta": [], "tdm": False}
    assert decide(inputs, tmp_path / "root", optout=off)[1] == reasons


def test_a_list_that_changed_since_the_plan(inputs: dict[str, list[Receipt]], tmp_path: Path) -> None:
    listed = tmp_path / "takedown.txt"
    listed.write_text("gone.example\n")
    stage = Decide({**CONFIG, "takedown": str(listed)})
    (task,) = stage.tasks(inputs)
    listed.write_text("gone.example\nother.example\n")
    with pytest.raises(GristmillError, match="changed since"):
        run_task(stage, task, tmp_path / "root")
    with pytest.raises(UsageError, match="no such file"):
        Policy({"takedown": str(tmp_path / "none")}).uses()


def test_faulty_tables_and_lists(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for text, message in (
        ('{"host": "a"}\n{"text": 3}', "x:2: no `host`"),
        ("[1]", "x:1: no JSON object"),
        ("{", "x:1: no JSON"),
    ):
        path.write_text(text)
        with pytest.raises(FormatError, match=message):
            list(robots_of(path, {"a"}))
    pq.write_table(pa.table({"host": ["a"]}), path)
    with pytest.raises(FormatError, match="no table of robots"):
        list(robots_of(path, {"a"}))
    path.write_text("a.example\nnot a domain\n")
    with pytest.raises(FormatError, match="x:2: 'not a domain' is no URL, domain"):
        Takedown.read(path)


def test_a_takedown_says_what_it_did_not_find(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text(f"*.one.example\nhttps://two.example:443/\n{'a' * 32}\n")
    held = Takedown.read(path)
    assert len(held) == 3
    assert held.match("b" * 32, "ftp://deep.one.example/") == ("takedown.domain", "*.one.example")
    assert held.match("b" * 32, "https://two.example") == ("takedown.url", "https://two.example:443/")
    assert held.match("b" * 32, "https://two.example/x") is None
    assert held.unmatched(["*.one.example"]) == ["a" * 32, "https://two.example:443/"]
