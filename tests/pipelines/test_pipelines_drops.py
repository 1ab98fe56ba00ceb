"""What a root says of its documents: fates, funnels, samples of drops, one document's rules, and what differs between two."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from click.testing import CliRunner

from gristmill.core.docshards import read_table
from gristmill.core.errors import UsageError
from gristmill.core.manifest import find_receipt, run_task, write_manifest
from gristmill.pipelines import dropped, explained, funnel, verdicts
from gristmill.pipelines.cli.main import cli
from gristmill.pipelines.fates import FATE_SCHEMA, Fates
from gristmill.pipelines.graph import build
from gristmill.pipelines.inputs import list_inputs
from gristmill.pipelines.report import curation
from gristmill.pipelines.report.page import page
from gristmill.pipelines.sample import write_sample
from gristmill.pipelines.schema import load_recipe
from gristmill.pipelines.views import manifests

RECIPE = """
gristmill: 1
input: {{paths: ["{sample}/*.warc.gz"], source: sample}}
curate:
  language: {{keep: [en, de, fr], min_score: 0.5}}
  rules:
    gopher@datatrove: {{min_words: {words}}}
    c4@datatrove: {{min_sentences: 5}}
    fineweb@datatrove: {{}}
"""


def curated(folder: Path, sample: Path, words: int, copied: Path | None = None) -> Path:
    """A root with every curation stage run, one task after the other; what a copied root has done is not done again."""
    recipe = folder / f"recipe-{words}.yaml"
    recipe.write_text(RECIPE.format(sample=sample, words=words))
    loaded = load_recipe(str(recipe))
    root = folder / f"root-{words}"
    root.mkdir() if copied is None else shutil.copytree(copied, root)
    known = {"input": list_inputs(loaded.recipe.input.paths, root)[0]}
    for node in build(loaded):
        tasks = node.stage.tasks({name: known[name] for name in node.upstream})
        known[node.name] = [find_receipt(root, task) or run_task(node.stage, task, root) for task in tasks]
        write_manifest(root, node.name, known[node.name], complete=True)
    return root


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("drops")
    write_sample(folder / "sample", seed=0, pages=40, files=2)
    one = curated(folder, folder / "sample", 50)
    return one, curated(folder, folder / "sample", 150, copied=one)


def all_fates(root: Path) -> list[dict[str, Any]]:
    found = Fates(root)
    return [row for file in found.files() for row in found.table(file).to_pylist()]


def test_fates_agree_with_the_ledger(roots: tuple[Path, Path]) -> None:
    rows = all_fates(roots[0])
    told = Counter((row["stage"], row["reason"]) for row in rows if row["reason"])
    known = manifests(roots[0])
    for stage, reason, n in dropped.reasons(roots[0]):
        assert told[stage, reason] == n or (stage == "curate.pages" and reason.startswith("record.")), reason
    kept = [row for row in rows if row["reason"] is None]
    assert len(kept) == known["curate"].total()["rows_out"] > 5
    assert all(row["kept_chars"] > 0 and row["stage"] is None for row in kept)
    assert Fates(roots[0]).table(Fates(roots[0]).files()[0]).schema.equals(FATE_SCHEMA)


def test_funnels_add_up_whatever_is_shown(roots: tuple[Path, Path]) -> None:
    rows = all_fates(roots[0])
    for by in (("language",), ("domain",), ("language", "domain")):
        for top in (1, 3, 1000):
            view = funnel.funnel(roots[0], by, top)
            groups = view["groups"]
            assert view["total"]["documents"] == len(rows) == sum(g["documents"] for g in groups)
            assert view["total"]["kept"] == sum(g["kept"] for g in groups)
            for group in groups:
                assert group["documents"] == group["kept"] + sum(group["lost"].values())
                assert sum(group["reasons"].values()) == sum(group["lost"].values())
            assert funnel.render(view).splitlines()[-1].startswith("total")
    languages = {g["group"][0]: g for g in funnel.funnel(roots[0], ("language",), 100)["groups"]}
    assert languages["en"]["kept"] > 0
    assert languages["-"]["kept"] == 0, "a page without a language was dropped before"


@pytest.mark.parametrize(
    ("url", "domain"),
    [
        ("https://www.example.co.uk/a?b", "example.co.uk"),
        ("http://a.b.example.com:8080/", "example.com"),
        ("http://localhost/x", "localhost"),
        ("", "-"),
    ],
)
def test_registered_domains(url: str, domain: str) -> None:
    assert funnel.registered_domain(url) == domain


def test_a_sample_is_of_the_reason_seeded_and_has_the_text_that_was_judged(roots: tuple[Path, Path]) -> None:
    family = dropped.sample_of(roots[0], "gopher", 100, 0, 10_000)
    assert {row["reason"].partition(".")[0] for row in family} == {"gopher"}
    assert family == dropped.sample_of(roots[0], "gopher.*", 100, 0, 10_000)
    few = dropped.sample_of(roots[0], "gopher", 3, 0, 10_000)
    assert few == family[:3], "a smaller sample is the beginning of a larger one"
    if len(family) > 6:
        assert dropped.sample_of(roots[0], "gopher", 3, 1, 50) != dropped.sample_of(roots[0], "gopher", 3, 2, 50)
    for row in family:
        assert row["text"], row
        assert row["text_version"] == "raw", "Gopher's rules measure the extracted text"
        assert len(row["text"]) == min(10_000, row["chars"])
    with pytest.raises(UsageError, match="nothing was dropped"):
        dropped.sample_of(roots[0], "goph", 1, 0, 10)
    with pytest.raises(UsageError, match="no documents"):
        dropped.sample_of(roots[0], "record.request", 1, 0, 10)


def test_one_document_shows_every_rule_and_the_reason_is_the_first_that_fails(roots: tuple[Path, Path]) -> None:
    checked = 0
    for row in all_fates(roots[0]):
        if row["stage"] != "curate.decide":
            continue
        [document] = explained.explain_document(roots[0], row["id"])
        failing = [r for r in document["rules"] if r["verdict"] == "drop"]
        assert failing[0]["rule"] == row["reason"] == document["fate"]["reason"]
        if row["value"] is not None:
            assert failing[0]["value"] == row["value"]
            assert failing[0]["threshold"] == row["threshold"]
        assert "← the reason" in explained.render(document)
        checked += 1
    assert checked > 5


def test_a_kept_document_fails_no_rule_and_tells_its_cluster(roots: tuple[Path, Path]) -> None:
    kept = next(row for row in all_fates(roots[0]) if row["reason"] is None and row["language"] == "en")
    for name in (kept["id"], kept["url"]):
        document = next(d for d in explained.explain_document(roots[0], name) if d["id"] == kept["id"])
        assert [r for r in document["rules"] if r["verdict"] == "drop"] == []
        assert document["cluster"]["keeper"] == kept["id"]
        assert set(document["texts"]) == {"raw", "c4"}
    with pytest.raises(UsageError, match="no document"):
        explained.explain_document(roots[0], "https://nowhere.example/")


def test_diff_names_every_document_whose_verdict_changed(roots: tuple[Path, Path]) -> None:
    view = verdicts.compare(*roots, count=2)
    one, two = ({r["id"]: r["reason"] for r in all_fates(root)} for root in roots)
    changed = Counter((one[i] or "kept", two[i] or "kept") for i in one if one[i] != two[i])
    assert changed
    assert {(c["from"], c["to"]): c["documents"] for c in view["changes"]} == changed
    assert view["documents"] == len(one) == view["same"] + view["changed"]
    assert {c["setting"].rpartition(".")[2]: (c["one"], c["two"]) for c in view["config"]} == {"min_words": (50, 150)}
    for change in view["changes"]:
        assert len(change["examples"]) == min(2, change["documents"])
        for row in change["examples"]:
            assert (one[row["id"]] or "kept") == change["from"]
    backwards = verdicts.compare(roots[1], roots[0])
    assert {(c["to"], c["from"]): c["documents"] for c in backwards["changes"]} == changed
    same = verdicts.compare(roots[0], roots[0])
    assert (same["config"], same["changed"], same["changes"]) == ([], 0, [])


def test_the_commands_print_and_write_what_the_functions_find(roots: tuple[Path, Path], tmp_path: Path) -> None:
    def run(*words: str) -> str:
        done = CliRunner().invoke(cli, [*words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    root = str(roots[0])
    shown = json.loads(run("show", "curate", "--by", "language,domain", "--root", root, "--json"))
    assert shown["total"]["documents"] == len(all_fates(roots[0]))
    assert run("show", "curate.decide", "--root", root).count("\ncurate") == 1
    assert "drops if" in run("drops", "--doc", all_fates(roots[0])[0]["id"], "--root", root)
    assert "min_words: 50 → 150" in run("diff", root, str(roots[1]))
    run("drops", "--sample", "2", "--out", str(tmp_path / "s.jsonl"), "--root", root)
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    counts = Counter(row["reason"] for row in rows)
    documents = {r: n for _, r, n in dropped.reasons(roots[0]) if r in counts}
    assert counts == {reason: min(2, n) for reason, n in documents.items()}
    run("report", "--root", root, "--html", str(tmp_path / "r.html"))
    assert "<h1>Curation</h1>" in (tmp_path / "r.html").read_text()


def test_wrong_options_are_refused_with_a_hint(roots: tuple[Path, Path]) -> None:
    root = str(roots[0])
    for words in (
        ["show", "--by", "colour", "--root", root],
        ["show", "nothing", "--root", root],
        ["drops", "gopher", "--doc", "x", "--root", root],
        ["drops", "--sample", "3", "--root", root],
    ):
        with pytest.raises(UsageError):
            CliRunner().invoke(cli, words, catch_exceptions=False)


def test_untrusted_text_cannot_leave_its_place_in_the_page(roots: tuple[Path, Path]) -> None:
    evil = "<script>alert(1)</script>"
    samples = dropped.samples(roots[0], 1, 0, 100)
    row = next(iter(samples.values()))[0]
    row.update(text=evil, url=evil, language=evil)
    html = page("title", curation.section(curation.collect(roots[0], {evil: [row]})))
    assert evil not in html
    assert html.count("&lt;script&gt;") >= 3


def test_a_root_whose_last_stage_is_missing_still_tells_what_it_knows(roots: tuple[Path, Path]) -> None:
    found = Fates(roots[0])
    found.final, found.judges = {}, [j for j in found.judges if j[0] != "curate"]
    for file in found.files():
        table = found.table(file)
        assert table["kept_chars"].null_count == table.num_rows
        decided = read_table(manifests(roots[0])["curate.decide"].receipts[0].output("verdicts.parquet"))
        assert pc.sum(pc.is_valid(decided["reason"])).as_py() > 0
