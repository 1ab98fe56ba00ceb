"""Apply rule sets to measured columns: the first rule that fails decides; no text is read and no row looped over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gristmill.core.expression import Expression, compile_expression
from gristmill.core.settings import Settings
from gristmill.curate.columns import CONDITION_SCHEMA, FAMILY, Family
from gristmill.curate.rules.registry import GROUPS, NEEDS, RULES, Rule
from gristmill.curate.schema_rules import Rules, UserRule

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


Threshold = float | None
"""None for rules without one ("set", "empty")."""


def sets_of(rules: Rules, language: str | None = None) -> dict[str, Mapping[str, Any]]:
    """The rule sets that are on, by name -> their settings, for documents of a language."""
    own = rules.of_language(language)
    out: dict[str, Mapping[str, Any]] = {}
    for name, info in type(rules).model_fields.items():
        block = getattr(rules, name)
        if not isinstance(block, Settings) or info.alias is None:
            continue
        settings = block.model_dump()
        for key, value in (own.overrides(info.alias) if own is not None else {}).items():
            settings[key] = {**settings[key], **value} if isinstance(value, dict) else value
        out[info.alias] = settings
    return out


def in_order(rules: Rules) -> list[Rule]:
    """The registry's rules in the order in which a recipe lets them decide."""
    order = list(dict.fromkeys([*rules.order, *GROUPS]))
    return sorted(RULES, key=lambda rule: order.index(rule.group))  # stable inside a group


def active(rules: Rules, language: str | None = None) -> list[tuple[Rule, Threshold]]:
    """Rules that are on for documents of a language, in order, each with its threshold."""
    sets = sets_of(rules, language)
    out: list[tuple[Rule, Threshold]] = []
    for rule in in_order(rules):
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
        elif value is not None and not (value == 0 and rule.zero_is_off):
            out.append((rule, float(value)))
    return out


def conditions(rules: Rules) -> list[tuple[UserRule, Expression]]:
    """The user's rules with their expressions."""
    return [(rule, compile_expression(rule.drop_if, CONDITION_SCHEMA)) for rule in rules.mine]


def columns_of(rules: Rules) -> list[str]:
    """The measured columns that these rules read, for any language."""
    names: dict[str, None] = dict.fromkeys(REWRITES.values())
    for language in (None, *rules.languages):
        for rule, _ in active(rules, language):
            for prefix in ("raw", "c4") if rule.metric.startswith("*.") else ("",):
                names[rule.metric.replace("*", prefix)] = None
            if rule.needs is not None:
                names[NEEDS[rule.needs]] = None
    for _, expression in conditions(rules):
        names.update(dict.fromkeys(expression.columns))
    return list(names)


def families_of(rules: Rules) -> list[Family]:
    """What must be measured: families of the columns that any rule of a set that is on reads, whatever its threshold."""
    on = sets_of(rules)
    names = {column for _, expression in conditions(rules) for column in expression.columns}
    for rule in RULES:
        if rule.set in on:
            names |= {rule.metric.replace("*", "raw"), *([] if rule.needs is None else [NEEDS[rule.needs]])}
    found = {FAMILY[name] for name in names if name in FAMILY} - {"size"}
    return sorted(found)


def column(measures: pa.Table, name: str) -> Floats:
    """A measured column as float64, NaN for null. Counts stay exact below 2**53."""
    values: Floats = measures.column(name).cast(pa.float64()).to_numpy()
    return values


REWRITES = {"c4": "c4.sentences", "refinedweb": "refinedweb.words"}
"""Text versions that replace the raw text -> the column that is null where the version is not there."""


def text_versions(measures: pa.Table, rules: Rules) -> npt.NDArray[np.object_]:
    """Which text stands at the end: "c4" or "refinedweb" where that set is on and applies to the language, else "raw"."""
    out = np.full(measures.num_rows, "raw", object)
    for version, marker in REWRITES.items():
        if getattr(rules, version) is not None:
            out[~np.isnan(column(measures, marker))] = version
    return out


def judges_c4(rules: Rules) -> bool:
    """Whether C4 rewrites before FineWeb's rules look."""
    order = list(dict.fromkeys([*rules.order, *GROUPS]))
    return rules.c4 is not None and order.index("c4@datatrove") < order.index("fineweb@datatrove")


@dataclass(frozen=True)
class Variants:
    """Documents by what the table says of their language: variant 0 is for all that it does not name."""

    labels: list[str | None]
    of: npt.NDArray[np.intp]
    rules: list[dict[str, Threshold]]
    """Per variant: the rules that are on, by name, with their thresholds."""

    @classmethod
    def found(cls, measures: pa.Table, rules: Rules) -> Variants:
        if not rules.languages:
            return cls([None], np.zeros(measures.num_rows, np.intp), [_by_name(rules, None)])
        coded = measures.column("language").combine_chunks().dictionary_encode()
        values: list[str | None] = coded.dictionary.to_pylist()
        labels: list[str | None] = [None, *sorted(v for v in values if v is not None and rules.of_language(v))]
        places = [labels.index(v) if v in labels else 0 for v in values]
        of = np.array([*places, 0], np.intp)[coded.indices.fill_null(len(places)).to_numpy(zero_copy_only=False)]
        return cls(labels, of, [_by_name(rules, label) for label in labels])

    def on(self, name: str) -> Bools:
        """Per document: whether the rule is on."""
        found: Bools = np.array([name in rules for rules in self.rules])[self.of]
        return found

    def threshold(self, name: str) -> Floats:
        """Per document: the rule's threshold, NaN where it has none or is off."""
        limits = [rules.get(name) for rules in self.rules]
        found: Floats = np.array([np.nan if limit is None else limit for limit in limits])[self.of]
        return found


def _by_name(rules: Rules, language: str | None) -> dict[str, Threshold]:
    return {rule.name: threshold for rule, threshold in active(rules, language)}


def values_of(rule: Rule, measures: pa.Table, c4: Bools) -> Floats:
    """What a rule compares, per document; `c4` says where its text is the one that C4 rewrote."""
    if not rule.metric.startswith("*."):
        return column(measures, rule.metric)
    raw, new = (column(measures, rule.metric.replace("*", prefix)) for prefix in ("raw", "c4"))
    return np.where(c4, new, raw)


def failing(rule: Rule, value: Floats, threshold: Floats, measures: pa.Table, both: Bools) -> Bools:
    """Where a rule that is on drops. `both`: lorem ipsum and curly brackets both drop documents there."""
    if rule.operator == "empty":
        return np.asarray(value == 0)
    if rule.operator == "set":
        fails = ~np.isnan(value)
        if rule.name == "c4.lorem_ipsum" and both.any():  # datatrove stops at the first line that has either
            fails &= ~(both & (column(measures, "c4.curly_bracket_line") < value))
        return fails
    return np.asarray(value < threshold if rule.operator == "<" else value > threshold)


def apply(measures: pa.Table, rules: Rules, outcome: Outcome) -> Counter[str]:
    """Decide the documents still open in `outcome`, in place. Returns notes: rule_not_applied.RULE -> documents.

    A note counts documents that were open on entry and whose language lacks what an active rule needs.
    """
    notes: Counter[str] = Counter()
    entered = outcome.open
    variants = Variants.found(measures, rules)
    c4 = (text_versions(measures, rules) == "c4") & judges_c4(rules)
    both = variants.on("c4.lorem_ipsum") & variants.on("c4.curly_bracket")
    known = set().union(*variants.rules)
    lacking: dict[str, Bools] = {}
    for rule in in_order(rules):
        if rule.name not in known:
            continue
        on = variants.on(rule.name)
        if rule.needs is not None:
            if rule.needs not in lacking:
                lacking[rule.needs] = np.isnan(column(measures, NEEDS[rule.needs]))
            if n := int((lacking[rule.needs] & entered & on).sum()):
                notes[f"rule_not_applied.{rule.name}"] = n
        value, threshold = values_of(rule, measures, c4), variants.threshold(rule.name)
        outcome.drop(failing(rule, value, threshold, measures, both) & on, rule.name, value, threshold)
    for own, expression in conditions(rules):
        simple = expression.simple
        fails = expression.mask(measures).to_numpy(zero_copy_only=False)
        if simple is None:
            outcome.drop(fails, own.name)
        else:
            outcome.drop(fails, own.name, column(measures, simple[0]), simple[2])
    return notes
