"""The conformance suite put to datatrove itself: its verdicts, reasons and rewritten texts, and every value to the bit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from parity.ask import FILTERS, REASONS, ask

from gristmill.curate.rules import RULES
from gristmill.curate.rules.conformance import Answer, Tool, Vector, run, vectors

SEMANTICS = ("gopher@datatrove", "c4@datatrove", "fineweb@datatrove")
OPERATORS: dict[tuple[str, str], str] = {(rule.set, rule.name.partition(".")[2]): rule.operator for rule in RULES}


@pytest.fixture(scope="module")
def tool(peer: Path) -> Tool:
    """datatrove, asked once for all that this module wants to know."""
    answers: dict[str, Answer] = {}
    questions = [vector.question for vector in [*vectors(SEMANTICS), *around_the_values()]]
    for question, answer in zip(questions, ask(peer, [{"do": "vector", **q} for q in questions]), strict=True):
        assert "error" not in answer, answer
        if "filter" in answer:
            answer["reason"] = REASONS[FILTERS[answer["filter"]], answer["reason"]].partition(".")[2]
        answers[question["id"]] = answer
    return lambda questions: [answers[question["id"]] for question in questions]


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_datatrove_passes(semantics: str, tool: Tool) -> None:
    suite = vectors([semantics])
    report = run(tool, suite)
    assert report.failures == []
    assert report.passed[semantics] == len(suite)


def around_the_values() -> list[Vector]:
    """Each vector at a threshold equal to its value, which keeps, and at the next number, which drops."""
    asked = []
    for vector in vectors(SEMANTICS):
        if vector.value is None:
            continue
        operator = OPERATORS[vector.semantics, str(vector.rule)]
        worse = math.inf if operator == "<" else -math.inf
        counted = vector.rule in ("too_few_words", "too_many_words", "too_few_stop_words", "too_few_sentences")
        beyond = vector.value + math.copysign(1, worse) if counted else math.nextafter(vector.value, worse)
        bare = replace(vector, reason=None, value=None, text_after=None)
        asked.append(replace(bare, id=f"{vector.id} equal", threshold=vector.value, verdict="keep"))
        if (operator, beyond) != ("<", 0):
            asked.append(replace(bare, id=f"{vector.id} beyond", threshold=beyond, verdict="drop"))
    return asked


def test_values_are_datatroves(tool: Tool) -> None:
    """A filter tells no values, but where it begins to drop."""
    asked = around_the_values()
    assert len(asked) >= 250
    assert run(tool, asked).failures == []
