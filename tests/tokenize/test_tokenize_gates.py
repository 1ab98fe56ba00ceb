"""Gates: what they look at, what breaks them, and that a gate that sees nothing does not pass."""

from __future__ import annotations

from typing import Any

import pytest

from gristmill.core.errors import UsageError
from gristmill.tokenize.gates import check, parse_gates, render
from gristmill.tokenize.schema import Tokenizer


def tokenizer(**more: Any) -> dict[str, Any]:
    rows = {
        "en": {"fertility": 1.4, "bytes_per_token": 4.4, "lossless": 1.0},
        "hi": {"fertility": 3.1, "bytes_per_token": 3.1, "lossless": 1.0},
        "zh": {"fertility": None, "bytes_per_token": 3.6, "lossless": 1.0},
    }
    found: dict[str, Any] = {"languages": rows, "aligned": None, "nsl": {}, "model_mix": None}
    found["strr"] = {"languages": {}}
    found["vocabulary"] = {"unreachable": 3}
    return {**found, **more}


ALIGNED = {
    "reference": "en",
    "languages": {"en": {"premium": 1.0}, "hi": {"premium": 4.5}, "th": {"premium": 3.0}},
    "mean": 3.75,
    "gini": 0.3,
}


def test_a_broken_gate_names_the_language_the_value_and_the_limit() -> None:
    result, low = check(tokenizer(aligned=ALIGNED), parse_gates(["max_premium=2.5", "min_bytes_per_token=3.5"]))
    assert result["broken"] == [{"where": "hi", "value": 4.5}, {"where": "th", "value": 3.0}]
    assert result["checked"] == 2  # the reference is 1 by definition
    assert low["broken"] == [{"where": "hi", "value": 3.1}]
    text = render([result, low])
    assert "gate max_premium=2.5: BROKEN" in text
    assert "  hi: 4.5 > 2.5" in text
    assert "  hi: 3.1 < 3.5" in text


def test_limits_are_inclusive_and_n_a_is_named() -> None:
    (result,) = check(tokenizer(), parse_gates(["max_fertility=3.1"]))
    assert result["passed"]
    assert result["not_told"] == ["zh"]
    assert "n/a: zh" in render([result])


@pytest.mark.parametrize(
    ("gate", "more", "passed"),
    [
        ("max_mean_premium=4", {"aligned": ALIGNED}, True),
        ("max_gini=0.2", {"aligned": ALIGNED}, False),
        ("min_lossless=1", {}, True),
        ("max_unreachable=0", {}, False),
        ("max_nsl=1", {"nsl": {"gpt2": {"languages": {"en": 0.9, "hi": 1.1}}}}, False),
        ("max_unused_share=0.1", {"model_mix": {"over": "packed", "unused_share": 0.05}}, True),
        ("min_strr=0.5", {"strr": {"languages": {"en": {"strr": 0.4}}}}, False),
    ],
)
def test_every_kind(gate: str, more: dict[str, Any], passed: bool) -> None:
    assert check(tokenizer(**more), parse_gates([gate]))[0]["passed"] == passed


@pytest.mark.parametrize("gate", ["max_premium=2.5", "max_nsl=1", "max_under_trained_share=0.1", "min_strr=0.1"])
def test_a_gate_without_a_value_is_an_error(gate: str) -> None:
    with pytest.raises(UsageError, match="has no"):
        check(tokenizer(), parse_gates([gate]))


@pytest.mark.parametrize(
    "gate", ["premium=2", "max_renyi=1", "most_premium=2", "max_premium", "max_premium=x", "max_gini=nan"]
)
def test_bad_gates(gate: str) -> None:
    with pytest.raises(UsageError):
        parse_gates([gate])


def test_the_last_of_one_name_counts() -> None:
    (gate,) = parse_gates(["max_premium=2", "max_premium=3"])
    assert gate.threshold == 3


def test_gates_of_a_recipe_are_checked_when_it_is_read_and_retrain_nothing() -> None:
    settings = Tokenizer.model_validate({"gates": {"max_premium": 2.5, "min_lossless": 1}})
    assert settings.gates == {"max_premium": 2.5, "min_lossless": 1.0}
    assert settings.model_dump(mode="json") == Tokenizer().model_dump(mode="json")
    with pytest.raises(ValueError, match="no gate named 'max_renyi'"):
        Tokenizer.model_validate({"gates": {"max_renyi": 1}})
