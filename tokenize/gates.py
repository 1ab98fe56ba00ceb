"""Limits on a tokenizer report, for CI: `max_premium: 2.5`, `min_bytes_per_token: 3.5`. A broken one names the language."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gristmill.core.errors import UsageError

Values = Iterator[tuple[str, float | None]]
"""(where, value): a language, or "all"; None where the measure has no meaning there"""


def _language(key: str) -> Callable[[Mapping[str, Any]], Values]:
    def values(tokenizer: Mapping[str, Any]) -> Values:
        for name, row in tokenizer["languages"].items():
            yield name, row[key]

    return values


def _premium(tokenizer: Mapping[str, Any]) -> Values:
    aligned = tokenizer["aligned"]
    for name, row in aligned["languages"].items() if aligned else ():
        if name != aligned["reference"]:
            yield name, row["premium"]


def _aligned(key: str) -> Callable[[Mapping[str, Any]], Values]:
    def values(tokenizer: Mapping[str, Any]) -> Values:
        if tokenizer["aligned"]:
            yield "all languages", tokenizer["aligned"][key]

    return values


def _strr(tokenizer: Mapping[str, Any]) -> Values:
    for name, row in tokenizer["strr"]["languages"].items():
        yield name, row["strr"]


def _nsl(tokenizer: Mapping[str, Any]) -> Values:
    for baseline, found in tokenizer["nsl"].items():
        for name, value in found["languages"].items():
            yield f"{name} against {baseline}", value


def _usage(key: str) -> Callable[[Mapping[str, Any]], Values]:
    def values(tokenizer: Mapping[str, Any]) -> Values:
        if tokenizer["model_mix"]:
            yield "the model mix", tokenizer["model_mix"][key]

    return values


def _unreachable(tokenizer: Mapping[str, Any]) -> Values:
    yield "vocabulary", tokenizer["vocabulary"]["unreachable"]


GATES: dict[str, tuple[Callable[[Mapping[str, Any]], Values], str]] = {
    "fertility": (_language("fertility"), ""),
    "pcw": (_language("pcw"), ""),
    "fertility_iso": (_language("fertility_iso"), ""),
    "pcw_iso": (_language("pcw_iso"), ""),
    "bytes_per_token": (_language("bytes_per_token"), ""),
    "chars_per_token": (_language("chars_per_token"), ""),
    "lossless": (_language("lossless"), ""),
    "premium": (_premium, "give --aligned FILE"),
    "mean_premium": (_aligned("mean"), "give --aligned FILE"),
    "gini": (_aligned("gini"), "give --aligned FILE"),
    "strr": (_strr, ""),
    "nsl": (_nsl, "give --baseline FILE"),
    "unused_share": (_usage("unused_share"), "give --tokens FOLDER or --root DIR"),
    "under_trained_share": (_usage("under_trained_share"), "give --tokens FOLDER or --root DIR"),
    "unreachable": (_unreachable, ""),
}
"""Metric -> where its values are, and what a report needs that has none. A gate is `min_` or `max_` and a metric; by
language wherever there is a value by language. Rényi efficiency has none: it is gameable."""


@dataclass(frozen=True)
class Gate:
    """`name` as given, such as max_premium; `least` for a min_ gate."""

    name: str
    metric: str
    least: bool
    threshold: float

    def holds(self, value: float) -> bool:
        return value >= self.threshold if self.least else value <= self.threshold


def parse_gate(name: str, threshold: Any) -> Gate:
    """Raises UsageError with the names there are."""
    side, _, metric = name.partition("_")
    if side not in ("min", "max") or metric not in GATES:
        raise UsageError(f"no gate named {name!r}", hint=f"min_ or max_ and one of {', '.join(GATES)}")
    try:
        limit = float(threshold)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name}={threshold!r} is no number") from error
    if limit != limit:
        raise UsageError(f"{name} is not a number")
    return Gate(name, metric, side == "min", limit)


def parse_gates(texts: Sequence[str]) -> list[Gate]:
    """Gates from NAME=NUMBER; the last of one name counts."""
    for text in texts:
        if "=" not in text:
            raise UsageError(f"--gate {text!r} has no value", hint="--gate max_premium=2.5")
    found = (parse_gate(*text.split("=", 1)) for text in texts)
    return list({gate.name: gate for gate in found}.values())


def check(tokenizer: Mapping[str, Any], gates: Sequence[Gate]) -> list[dict[str, Any]]:
    """Per gate {"gate", "threshold", "checked", "not_told", "broken": [{"where", "value"}], "passed"}, worst first.

    `not_told` names the languages without a value. Raises UsageError when the report has no value at all for a gate:
    a gate that looks at nothing must not pass.
    """
    results = []
    for gate in gates:
        values_of, needs = GATES[gate.metric]
        values = list(values_of(tokenizer))
        told = [(where, value) for where, value in values if value is not None]
        if not told:
            raise UsageError(f"{gate.name}: the report has no {gate.metric} to check", hint=needs or None)
        broken = sorted(
            ((where, value) for where, value in told if not gate.holds(value)),
            key=lambda item: (item[1] if gate.least else -item[1], item[0]),
        )
        results.append(
            {
                "gate": gate.name,
                "threshold": gate.threshold,
                "checked": len(told),
                "not_told": sorted(where for where, value in values if value is None),
                "broken": [{"where": where, "value": value} for where, value in broken],
                "passed": not broken,
            }
        )
    return results


def plain(name: str, most: int = 40) -> str:
    """A name from the data for a terminal: short and without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in name)[:most]


def render(results: Sequence[Mapping[str, Any]], most: int = 10) -> str:
    """One line a gate; under a broken one, a line for each place with its value against the threshold."""
    lines = []
    for result in results:
        sign = "<" if result["gate"].startswith("min_") else ">"
        untold = f"; n/a: {', '.join(map(plain, result['not_told']))}" if result["not_told"] else ""
        word = "ok" if result["passed"] else "BROKEN"
        lines.append(f"gate {result['gate']}={result['threshold']:g}: {word}, {result['checked']} checked{untold}")
        for item in result["broken"][:most]:
            lines.append(f"  {plain(item['where'], 80)}: {item['value']:g} {sign} {result['threshold']:g}")
        if len(result["broken"]) > most:
            lines.append(f"  and {len(result['broken']) - most} more")
    return "\n".join(lines)
