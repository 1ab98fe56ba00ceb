"""Every rule of one document: its value against its threshold, kept or not; what `drops --doc` prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from gristmill.curate.rules import engine
from gristmill.curate.rules.registry import NEEDS, Rule
from gristmill.curate.schema_language import Wanted
from gristmill.curate.schema_rules import Rules

Verdict = Literal["pass", "drop", "off", "not_applied"]


@dataclass(frozen=True)
class Row:
    """One rule and one document.

    `text_version` is the text that `value` describes ("" for the language rules and for expressions over several
    columns); `operator` is the one that drops (`value operator threshold`), for a rule without a threshold "is set" or
    "= 0", for an expression its text. `verdict` judges each rule by itself: "off" in the recipe, "not_applied" where
    the language lacks what the rule needs, else "drop" or "pass".
    """

    rule: str
    metric: str
    text_version: str
    value: float | None
    operator: str
    threshold: float | None
    verdict: Verdict


def explain(measures_row: pa.Table, rules: Rules, language: Wanted) -> list[Row]:
    """One Row per rule, in order of decision: language, the rule sets, the user's own.

    `measures_row` is one row of `curate.measure`'s output with all its columns. The first "drop" is the reason that
    `curate.decide` gives.
    """
    if measures_row.num_rows != 1:
        raise ValueError(f"explain takes one document, not {measures_row.num_rows}")
    label = measures_row["language"][0].as_py()
    on = {rule.name: threshold for rule, threshold in engine.active(rules, label)}
    c4 = (engine.text_versions(measures_row, rules) == "c4") & engine.judges_c4(rules)
    both = np.array(["c4.lorem_ipsum" in on and "c4.curly_bracket" in on])
    out = _language(measures_row, rules, language, label)
    for rule in engine.in_order(rules):
        value = engine.values_of(rule, measures_row, c4)
        limit = on.get(rule.name)
        threshold = np.array([np.nan if limit is None else limit])
        if rule.name not in on:
            verdict: Verdict = "off"
        elif rule.needs is not None and np.isnan(engine.column(measures_row, NEEDS[rule.needs])[0]):
            verdict = "not_applied"
        else:
            verdict = "drop" if engine.failing(rule, value, threshold, measures_row, both)[0] else "pass"
        out.append(_row(rule, float(value[0]), limit, bool(c4[0]), verdict))
    for own, expression in engine.conditions(rules):
        verdict = "drop" if expression.mask(measures_row)[0].as_py() else "pass"
        if expression.simple is None:
            out.append(Row(own.name, ", ".join(expression.columns), "", None, own.drop_if, None, verdict))
            continue
        name, sign, number = expression.simple
        version = name.partition(".")[0] if "." in name else ""
        value = engine.column(measures_row, name)
        out.append(Row(own.name, name, version, _known(float(value[0])), sign, number, verdict))
    return out


def _language(measures: pa.Table, rules: Rules, settings: Wanted, label: str | None) -> list[Row]:
    unwanted = settings.keep != "all" and label not in settings.keep
    score = measures["language_score"][0].as_py()
    limit = minimum(settings, rules, label)
    low = (0.0 if score is None else score) <= limit
    listed: Verdict = "off" if settings.keep == "all" else "drop" if unwanted else "pass"
    return [
        Row("language.not_kept", "language", "", None, f"{label or 'none'} not in keep", None, listed),
        Row("language.low_score", "language_score", "", score, "<=", limit, "drop" if low else "pass"),
    ]


def minimum(settings: Wanted, rules: Rules, label: str | None) -> float:
    """The language score to exceed: `min_scores`, else the table's `language_score`, else `min_score`."""
    own = rules.of_language(label)
    table = own.language_score if own is not None else None
    return settings.min_scores.get(label or "", settings.min_score if table is None else table)


def _row(rule: Rule, value: float, threshold: float | None, c4: bool, verdict: Verdict) -> Row:
    metric = rule.metric.replace("*", "c4" if c4 else "raw")
    operator = {"set": "is set", "empty": "= 0"}.get(rule.operator, rule.operator)
    return Row(rule.name, metric, metric.partition(".")[0], _known(value), operator, threshold, verdict)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
