"""Apply rule sets to measured columns: the first rule that fails decides; no text is read and no row looped over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gristmill.curate.rules.registry import NEEDS, RULES, Rule
from gristmill.curate.schema import Rules

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass
class Outcome:
    """Per document (all of length n): index of its drop reason in `reasons` or -1, and the metric and threshold that
    failed (NaN: none)."""

    code: npt.NDArray[np.int32]
    value: Floats
    threshold: Floats
    reasons: list[str] = field(default_factory=list)

    @classmethod
    def undecided(cls, n: int) -> Outcome:
        return cls(np.full(n, -1, np.int32), np.full(n, np.nan), np.full(n, np.nan))

    @property
    def open(self) -> Bools:
        """Documents that nothing has dropped yet."""
        return self.code < 0

    @property
    def reason(self) -> pa.StringArray:
        """The reasons as text, null where kept."""
        names = pa.array(self.reasons, pa.string())
        return names.take(pa.array(self.code, mask=self.code < 0))

    def drop(self, where: Bools, reason: str, value: Floats | None = None, threshold: float | Floats = np.nan) -> None:
        """Drop the open documents of `where`."""
        where = where & self.open
        self.code[where] = len(self.reasons)
        self.reasons.append(reason)
        if value is not None:
            self.value[where] = value[where]
        self.threshold[where] = threshold[where] if isinstance(threshold, np.ndarray) else threshold


def sets_of(rules: Rules) -> dict[str, Mapping[str, Any]]:
    """The rule sets that are on, by name -> their settings."""
    dumped = rules.model_dump(by_alias=True)
    return {name: block for name, block in dumped.items() if block is not None}


def active(rules: Rules) -> list[tuple[Rule, float | None]]:
    """Rules that are on, in order, each with its threshold (None for rules without one)."""
    sets = sets_of(rules)
    out: list[tuple[Rule, float | None]] = []
    for rule in RULES:
        if rule.set not in sets:
            continue
        if rule.setting is None:
            out.append((rule, None))
            continue
        value = sets[rule.set][rule.setting]
        if rule.size is not None:
            value = value.get(rule.size)
        if rule.operator == "set":
            if value:
                out.append((rule, None))
        elif value is not None:
            out.append((rule, float(value)))
    return out


def columns_of(rules: Rules) -> list[str]:
    """The measured columns that these rules read."""
    names: dict[str, None] = {"c4.sentences": None}
    for rule, _ in active(rules):
        for prefix in ("raw", "c4") if rule.metric.startswith("*.") else ("",):
            names[rule.metric.replace("*", prefix)] = None
        if rule.needs is not None:
            names[NEEDS[rule.needs]] = None
    return list(names)


def column(measures: pa.Table, name: str) -> Floats:
    """A measured column as float64, NaN for null. Counts stay exact below 2**53."""
    values: Floats = measures.column(name).cast(pa.float64()).to_numpy()
    return values


def rewritten(measures: pa.Table, rules: Rules) -> Bools:
    """Where the C4 set is on and applies, so that the C4-rewritten text takes the raw one's place."""
    if rules.c4 is None:
        return np.zeros(measures.num_rows, bool)
    there: Bools = ~np.isnan(column(measures, "c4.sentences"))
    return there


def apply(measures: pa.Table, rules: Rules, outcome: Outcome) -> Counter[str]:
    """Decide the documents still open in `outcome`, in place. Returns notes: rule_not_applied.RULE -> documents.

    A note counts documents that were open on entry and whose language lacks what an active rule needs.
    """
    notes: Counter[str] = Counter()
    entered = outcome.open
    c4 = rewritten(measures, rules)
    on = active(rules)
    lacking = {need: np.isnan(column(measures, marker)) for need, marker in NEEDS.items() if _needed(on, need)}
    both = {rule.name for rule, _ in on} >= {"c4.lorem_ipsum", "c4.curly_bracket"}
    for rule, threshold in on:
        if rule.needs is not None and (n := int((lacking[rule.needs] & entered).sum())):
            notes[f"rule_not_applied.{rule.name}"] = n
        if rule.metric.startswith("*."):
            raw, new = (column(measures, rule.metric.replace("*", prefix)) for prefix in ("raw", "c4"))
            value = np.where(c4, new, raw)
        else:
            value = column(measures, rule.metric)
        if rule.operator == "empty":
            fails = value == 0
        elif rule.operator == "set":
            fails = ~np.isnan(value)
            if both and rule.name == "c4.lorem_ipsum":  # datatrove stops at the first line that has either
                fails &= ~(column(measures, "c4.curly_bracket_line") < value)
        else:
            assert threshold is not None
            fails = value < threshold if rule.operator == "<" else value > threshold
        outcome.drop(fails, rule.name, value, np.nan if threshold is None else threshold)
    return notes


def _needed(on: list[tuple[Rule, float | None]], need: str) -> bool:
    return any(rule.needs == need for rule, _ in on)
