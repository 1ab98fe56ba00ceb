"""The conformance suite: we pass it, it covers every rule in both directions, and it finds a tool's faults."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from gristmill.core.errors import FormatError, UsageError
from gristmill.curate.rules import RULES
from gristmill.curate.rules import conformance as C
from gristmill.curate.rules.conformance_own import answer_all
from gristmill.pipelines.cli.main import cli

SUITE = C.vectors()


def test_we_pass() -> None:
    report = C.run(answer_all, SUITE)
    assert report.failures == []
    assert set(report.unsupported) == {"gopher@nemo"}
    assert sum(report.passed.values()) >= 220


@pytest.mark.parametrize("semantics", ["gopher@datatrove", "c4@datatrove", "fineweb@datatrove", "gopher@dclm"])
def test_every_rule_has_vectors(semantics: str) -> None:
    verdicts = defaultdict(set)
    for vector in C.vectors([semantics]):
        verdicts[vector.rule].add(vector.verdict)
    rules = {rule.name.partition(".")[2] for rule in RULES if rule.set == semantics}
    assert rules <= set(verdicts)
    if semantics.endswith("@datatrove"):  # each rule is seen to drop, and all but the empty text's to keep
        assert all(C.DROP in verdicts[rule] for rule in rules)
        assert all(C.KEEP in verdicts[rule] for rule in rules - {"empty"} - {f"dup_{n}_grams" for n in range(6, 10)})


def test_one_text_has_one_value_per_semantics() -> None:
    """The same ten lines: 0.2 later copies, 0.4 repeated lines, 0.8 distinct ones."""
    lines = "A\nA\nB\nB\nC\nD\nE\nF\nG\nH"
    values = {v.semantics: v.value for v in SUITE if v.rule == "dup_lines" and v.text == lines}
    assert values == {"gopher@datatrove": 0.2, "gopher@dclm": 0.4, "gopher@nemo": 0.8}
    grams = {v.semantics: v.value for v in SUITE if v.rule == "dup_5_grams" and v.text == "a b c d e a b c d e"}
    assert grams == {"gopher@datatrove": 5 / 19, "gopher@dclm": 1.0, "gopher@nemo": 9 / 19}


def test_ids_are_unique_and_rows_explained() -> None:
    assert len({vector.id for vector in SUITE}) == len(SUITE)
    assert all(vector.why and vector.id.startswith(f"{vector.semantics}/{vector.rule or 'all'}/") for vector in SUITE)


def test_faults_are_found() -> None:
    """Wrong verdicts, values, reasons and texts, one each."""

    def wrong(questions: Sequence[C.Question]) -> list[C.Answer]:
        answers = answer_all(questions)
        for answer in answers:
            if answer["id"] == "gopher@datatrove/dup_lines/above":
                answer["verdict"] = C.KEEP
            elif answer["id"] == "gopher@datatrove/dup_5_grams/equal":
                answer["value"] += 1e-6
            elif answer["id"] == "c4@datatrove/all/curly-first":
                answer["reason"] = "lorem_ipsum"
            elif answer["id"] == "c4@datatrove/rewrite/citations":
                answer["text_after"] += " "
        return answers

    report = C.run(wrong, C.vectors(["gopher@datatrove", "c4@datatrove"]))
    assert [failure.what for failure in report.failures] == ["text_after", "reason", "verdict", "value"]
    assert report.failed == {"c4@datatrove": 2, "gopher@datatrove": 2}


def test_answers_must_match_the_questions() -> None:
    with pytest.raises(FormatError, match="order"):
        C.run(lambda questions: answer_all(questions)[::-1], SUITE[:2])
    with pytest.raises(FormatError, match="1 answers to 2"):
        C.run(lambda questions: answer_all(questions)[:1], SUITE[:2])


def test_unknown_semantics() -> None:
    with pytest.raises(UsageError, match="no vectors for gopher@nobody"):
        C.vectors(["gopher@nobody"])
    assert "unsupported" in answer_all([replace(SUITE[0], semantics="gopher@nobody").question])[0]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A tool of four lines that keeps everything."""
    path = tmp_path / "tool.py"
    path.write_text(
        "import json, sys\nfor line in sys.stdin:\n    q = json.loads(line)\n"
        "    print(json.dumps({'id': q['id'], 'verdict': 'keep'}))\n"
    )
    return path


def test_another_tool_by_command(program: Path) -> None:
    found = CliRunner().invoke(
        cli, ["rules", "conformance", "c4@datatrove", "--command", f"{sys.executable} {program}"]
    )
    assert found.exit_code == 1, found.output
    assert "c4@datatrove" in found.output
    drops = sum(v.verdict == C.DROP for v in C.vectors(["c4@datatrove"]))
    assert f"{drops} failed" in found.output


@pytest.mark.parametrize(
    ("body", "match"),
    [("print('keep')", "no JSON: 'keep'"), ("print(1)", "no JSON object"), ("raise SystemExit(3)", "ended with 3")],
)
def test_a_tool_that_fails(tmp_path: Path, body: str, match: str) -> None:
    path = tmp_path / "tool.py"
    path.write_text(body)
    with pytest.raises(FormatError, match=match):
        C.run(C.command(f"{sys.executable} {path}"), SUITE[:1])
    with pytest.raises(UsageError, match="cannot be run"):
        C.run(C.command(str(tmp_path / "none")), SUITE[:1])
    with pytest.raises(UsageError, match="cannot be run"):
        C.run(C.command(""), SUITE[:1])


def test_command_line() -> None:
    found = CliRunner().invoke(cli, ["rules", "conformance", "gopher@datatrove", "--json"])
    assert found.exit_code == 0, found.output
    counts = json.loads(found.stdout)
    assert counts["version"] == C.VERSION
    assert counts["semantics"]["gopher@datatrove"]["failed"] == 0
    asked = CliRunner().invoke(cli, ["rules", "conformance", "--questions"]).stdout.strip().split("\n")
    assert [json.loads(line) for line in asked] == [vector.question for vector in SUITE]
    assert not {"verdict", "value", "why"} & set(json.loads(asked[0]))
