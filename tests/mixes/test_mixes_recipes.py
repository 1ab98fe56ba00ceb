"""The two published curricula plan to the numbers that are known of them, from the packaged tables of available tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gristmill.core.errors import ConfigError, UsageError
from gristmill.mixes.api import load_mixture, plan_from_table
from gristmill.mixes.available import read_available, recipe_files
from gristmill.mixes.schema import Mixture
from gristmill.pipelines.cli.main import cli


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["mix", "plan", *arguments], env={"GRISTMILL_ROOT": None})


def plan(*arguments: str) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.exception is None, done.exception
    return dict(json.loads(done.stdout))


def cells(line: dict[str, Any]) -> list[tuple[float, float, float]]:
    """(T tokens, %, cumulative epochs) of each phase, as a table prints them."""
    return [(round(c["tokens"] / 1e12, 3), round(100 * c["share"], 1), round(c["epochs"], 2)) for c in line["phases"]]


def test_smollm3() -> None:
    """Budgets and availability are those of the published curriculum: 5.1T English, 628B multilingual, 54B math tokens.

    3 % of math in 8T tokens is what 54B last for at 4 epochs.
    """
    found = plan("smollm3", "--available", "smollm3")
    groups = {line["name"]: line for line in found["groups"]}
    assert cells(groups["english"]) == [(5.824, 72.8, 1.14), (1.298, 64.9, 1.40), (0.564, 51.2, 1.51)]
    assert cells(groups["multilingual"]) == [(0.960, 12.0, 1.53), (0.234, 11.7, 1.90), (0.136, 12.3, 2.12)]
    assert cells(groups["math3"]) == [(0.216, 2.7, 4.00), (0.040, 2.0, 4.74), (0.004, 0.4, 4.82)]
    assert [groups[g]["flags"] for g in ("english", "multilingual", "math3")] == [[], [], ["W201"]]
    assert [groups[g]["limit"] for g in ("english", "multilingual", "math3")] == [4, 4, 5]
    assert round(groups["english"]["tokens"] / 1e12, 3) == 7.685
    assert round(groups["multilingual"]["tokens"] / 1e12, 3) == 1.330
    assert round(groups["math3"]["tokens"] / 1e12, 3) == 0.260
    assert groups["code"]["available"] is None
    assert groups["code"]["epochs"] is None
    assert [(p["name"], p["batches"], p["rows"]) for p in found["phases"]] == [
        ("stage1", 3_390_842, 1_953_124_992),
        ("stage2", 847_710, 488_280_960),
        ("stage3", 466_240, 268_554_240),
    ]
    assert found["bytes"] == sum(p["rows"] * 4097 * 4 for p in found["phases"])
    assert [(w["code"], w["path"]) for w in found["warnings"]] == [
        ("W201", "sources.math3"),
        ("W204", "stages[2].mix.wiki.other"),
        ("W204", "stages[2].mix.cosmopedia2"),
        ("W204", "stages[2].mix.reasoning"),
    ]
    assert all(w["file"].endswith("smollm3.yaml") and w["line"] > 1 for w in found["warnings"])


def test_smollm3s_published_weights() -> None:
    """41 weights sum to 1 in stage 1; stages 2 and 3 are published with sums of 1.00005 and 1.00565."""
    mixture, _ = load_mixture("smollm3")
    assert len(mixture.stages[0].mix) == 41
    sums = [sum(p for p in stage.mix.values() if isinstance(p, float)) for stage in mixture.stages]
    assert [round(s, 6) for s in sums] == [1.0, 1.00005, 1.00565]
    assert [stage.normalize for stage in mixture.stages] == [False, True, True]


def test_k2() -> None:
    """The data card's table of multipliers: 1.296T unique tokens make 1.300T, Wikipedia six times."""
    found = plan("k2", "--available", "k2", "--vocab-size", "32000")
    sources = {line["name"]: line for line in found["sources"]}
    assert round(sum(line["available"] for line in sources.values()) / 1e12, 3) == 1.296
    first = {name: line["phases"][0] for name, line in sources.items()}
    want = {
        "dm_math": 3,
        "pubmed_abs": 3,
        "uspto": 3,
        "pmc": 1,
        "sc_spm": 0.5,
        "starcoder": 0.5,
        "wiki": 6,
        "refinedweb": 1,
    }
    assert {name: round(first[name]["epochs"], 3) for name in want} == want
    shares = {
        "dm_math": 1.0,
        "wiki": 10.2,
        "refinedweb": 47.1,
        "s2orc": 8.3,
        "starcoder": 5.1,
        "sc_fim": 2.6,
        "law": 5.9,
    }
    assert {name: round(100 * first[name]["share"], 1) for name in shares} == shares
    phases = found["phases"]
    assert round(phases[0]["tokens"] / 1e12, 2) == 1.30
    assert phases[1]["tokens"] == 22_983 * 4_194_304
    assert (found["dtype"], found["bytes"]) == ("<u2", sum(p["rows"] * 2049 * 2 for p in phases))
    assert round(sources["wiki"]["epochs"], 2) == 6.22
    assert [(w["code"], w["path"]) for w in found["warnings"]] == [("W201", "sources.wiki")]


def test_an_ablation_is_planned() -> None:
    text = run("smollm3", "--available", "smollm3").output
    assert "ablation try-megamath: 50.00B tokens from 7.00T of `stage1` on, its mix 40.0%, megamath 60.0%" in text
    found = plan("smollm3", "--available", "smollm3", "--ablation", "try-megamath")
    parent, branch = found["phases"]
    assert parent["until_rows"] == 7 * 10**12 // 2_359_296 * 576
    assert (branch["name"], branch["learning_rate"], branch["batches"]) == ("try-megamath", "decay", 21_192)
    shares = {u["source"]: u["share"] for u in branch["uses"]}
    assert shares["megamath"] == pytest.approx(0.6)
    assert shares["dclm"] == pytest.approx(0.4 * 0.37)
    wrong = run("smollm3", "--available", "smollm3", "--ablation", "other")
    assert "E102 no ablation named `other`" in str(wrong.exception)


def test_a_recipe_builds_a_branch(tmp_path: Path) -> None:
    from gristmill.pipelines.schema import load_recipe

    (tmp_path / "mix.yaml").write_text(
        "gristmill_mix: 1\nsources: {web: {}, math: {}}\nstages:\n"
        "  - {name: main, tokens: 1M, seq_len: 128, global_batch: 4096, mix: {web: 1.0}}\n"
        "ablations:\n  - {name: a, from: {stage: main, at: 500K}, tokens: 100K, base: 0.5, candidate: {math: 0.5}}\n"
    )
    (tmp_path / "r.yaml").write_text(
        "gristmill: 1\ninput: {paths: [x.warc.gz]}\ncurate: {}\ntokenizer: {vocab_size: 512}\nmixture: mix.yaml\n"
    )
    whole = load_recipe(str(tmp_path / "r.yaml"))
    branched = load_recipe(str(tmp_path / "r.yaml"), ["mixture.branch=a"])
    assert whole.mixture is not None
    assert branched.mixture is not None
    assert [p.name for p in whole.mixture[0].stages] == ["main"]
    assert [(p.name, p.until) for p in branched.mixture[0].stages] == [("main", 499_712), ("a", None)]
    assert branched.mixture[1].mark(("stages", 1, "tokens")).line == 6


def test_the_lock_is_written(tmp_path: Path) -> None:
    from gristmill.core.mixlock import read_lock

    done = run("k2", "--available", "k2", "--vocab-size", "32000", "-o", str(tmp_path / "mix.lock.json"))
    assert done.exit_code == 0
    lock = read_lock(tmp_path / "mix.lock.json")
    assert [p.batches for p in lock.phases] == [309_795, 22_983]
    assert lock.phases[1].sources["wiki"].epochs == pytest.approx(6.218, abs=1e-3)
    outline = run("smollm3", "--available", "smollm3", "-o", str(tmp_path / "outline.json"))
    assert outline.exit_code == 0
    assert read_lock(tmp_path / "outline.json").phases[0].sources["stack.C"].epochs is None
    assert "cannot be written" in str(run("k2", "--available", "k2", "-o", str(tmp_path / "no" / "x")).exception)


@pytest.mark.parametrize("name", sorted(recipe_files()))
def test_a_table_goes_with_its_mixture(name: str) -> None:
    mixture, _ = load_mixture(name)
    supplies, _, partial = read_available(name, mixture)
    assert not partial
    assert {mixture.parent(s.name) for s in supplies} <= set(mixture.sources)


MIX: dict[str, Any] = {
    "gristmill_mix": 1,
    "sources": {"a": {"group": "g"}, "b": {"group": "g"}, "fw": {"split_by": "language", "group": "fw"}},
    "stages": [
        {
            "name": "s",
            "tokens": 9000,
            "seq_len": 9,
            "global_batch": 36,
            "mix": {"a": 0.5, "b": 0.2, "fw": 0.2, "fw.de": 0.1},
        }
    ],
}


@pytest.mark.parametrize(
    ("text", "supplies", "totals"),
    [
        ("{}", {"a": None, "b": None, "fw.de": None, "fw": None}, {"fw": None, "group g": None, "group fw": None}),
        ('{"a": 100, "b": "2K"}', {"a": 100, "b": 2000}, {"group g": 2100}),
        ('{"a": 100, "g": "1K"}', {"a": 100, "b": None}, {"group g": 1000}),
        ('{"fw": 900}', {"fw.de": None, "fw": 900}, {"fw": 900, "group fw": 900}),
        ('{"fw.de": 300, "fw.fr": 600}', {"fw.de": 300, "fw.fr": 600, "fw": "absent"}, {"fw": 900, "group fw": 900}),
        ('{"fw": 1000, "fw.de": 300}', {"fw.de": 300, "fw": 1000}, {"fw": 1000}),
        ('{"fw.de": 300, "fw.fr": null}', {"fw.de": 300, "fw.fr": None, "fw": None}, {"fw": None}),
        ('{"# note": "text", "a": 1}', {"a": 1}, {}),
    ],
)
def test_tables(tmp_path: Path, text: str, supplies: dict[str, Any], totals: dict[str, Any]) -> None:
    (tmp_path / "t.json").write_text(text)
    found, sums, _ = read_available(str(tmp_path / "t.json"), Mixture.model_validate(MIX))
    by_name = {s.name: s.tokens for s in found}
    assert {name: by_name.get(name, "absent") for name in supplies} == supplies
    assert {name: sums[name] for name in totals} == totals


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{\n  "a": 1,\n  "c": 2\n}', r"t\.json:3:3: error: c: E102 the mixture has no source, child or group `c`"),
        ('{"b": "2G"}', r"t\.json:1:2: error: b: E107 unknown unit 'G'"),
        ('{"b": -2}', "E109"),
        ('{"b": 1, "b.x": 2}', "E102"),
        ("[1]", "holds no mapping"),
        ('{\n "a": 1,\n}', r"t\.json:2:8: error: E107 this is no JSON: "),
        ('{"a": 1,\n "b": "a", "a": 2}', r"t\.json:2:12: error: a: E107 `a` is there 2 times"),
        ('{"a":' + "[" * 1001 + "]" * 1001 + "}", "nested too deep|expected a number|E107"),
    ],
)
def test_faulty_tables(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises((ConfigError, UsageError), match=words):
        read_available(str(tmp_path / "t.json"), Mixture.model_validate(MIX))


def test_what_the_command_needs(tmp_path: Path) -> None:
    assert "no root and no table" in str(run("smollm3").exception)
    absent = run("smollm3", "--available", str(tmp_path / "x.json")).exception
    assert "no such file" in str(absent)
    assert "k2, smollm3" in str(absent)
    assert "no encoded documents" in str(run("demo", "--root", str(tmp_path)).exception)
    short = run("smollm3", "--available", "smollm3", "--set", "sources.math3.max_epochs=3.9")
    assert "E104 source `math3` would be seen 4.00 times by the end of phase `stage1`" in str(short.exception)
    assert "smollm3.yaml" in str(short.exception)
    closer = str(run("smollm3", "--available", "smollm3", "--set", "sources.math3.max_epochs=4").exception)
    assert closer.count("E104") == 1  # not of its group too
    assert "would be seen 4.001 times" in closer
    assert "give it a share of 0.02699 of" in closer


def test_a_table_of_some_children_says_what_it_leaves_out(tmp_path: Path) -> None:
    mixture = Mixture.model_validate(MIX)
    for text, noted in (
        ('{"fw.de": 3000, "fw.fr": 6000}', ["source `fw` is planned as fw.de, fw.fr alone"]),
        ('{"fw": 9000, "fw.de": 3000, "fw.fr": 6000}', []),
        ('{"fw": 9000, "fw.de": 3000}', []),
        ('{"fw.fr": 6000}', []),  # fw.de, which the stage names, is unknown: then all of fw is
    ):
        (tmp_path / "t.json").write_text(text)
        plan = plan_from_table(mixture, str(tmp_path / "t.json"))
        found = [note.text.partition(":")[0] for note in plan.notes if note.code == "W211"]
        assert found == noted, text
