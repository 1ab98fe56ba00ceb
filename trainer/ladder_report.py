"""What a ladder's losses say: the fitted law, the big run's loss, the IsoFLOP table; as data and as text. No torch.

The runs come from `ladder` or from a file of one's own: CSV with the columns parameters, tokens, loss, or JSON, a list of
such objects (or a ladder.json written before).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from gristmill.core.errors import UsageError
from gristmill.trainer.ladder_schema import Ladder
from gristmill.trainer.scaling_fit import FLOPS_PER_PARAMETER, Estimate, Fit, Law, fit

FORMAT = "gristmill-ladder-1"
FAR = 100.0  # times the FLOPs of the largest run: beyond, a prediction rests on the law more than on the runs
COLUMNS = ("parameters", "tokens", "loss")

Point = dict[str, Any]


def read_points(path: Path, count: str = "total") -> list[Point]:
    """Runs as {"parameters", "tokens", "loss"}. Raises UsageError with the place of what is no run."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    if text.lstrip()[:1] in ("[", "{"):
        try:
            data = orjson.loads(text)
        except ValueError as error:
            raise UsageError(f"{path} is no JSON: {error}") from error
        rows = data.get("rungs", data.get("points")) if isinstance(data, dict) else data
    else:
        rows = list(csv.DictReader(text.splitlines()))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{path} holds no list of runs", hint=f"CSV with the columns {', '.join(COLUMNS)}")
    return [_point(row, f"{path}, run {number}", count) for number, row in enumerate(rows, 1)]


def _point(row: dict[str, Any], where: str, count: str) -> Point:
    out = {}
    for name in COLUMNS:
        value = row.get(name)
        if isinstance(value, dict):
            value = value.get(count)
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise UsageError(f"{where}: {name} is {value!r}", hint="every run needs all three, as numbers") from None
        if not (math.isfinite(number) and number > 0):
            raise UsageError(f"{where}: {name} is {value}", hint="leave this run out")
        out[name] = number
    return out


def report(
    points: Sequence[Point], settings: Ladder, targets: Sequence[tuple[float, float]], flops: Sequence[float] = ()
) -> dict[str, Any]:
    """Fit runs {"parameters", "tokens", "loss"} and predict `targets` (N, D). Raises UsageError on too few runs.

    The IsoFLOP table has `flops`, else settings.flops, else powers of ten from the smallest run to the largest target.
    """
    n, d, loss = ([point[name] for point in points] for name in COLUMNS)
    found = fit(n, d, loss, resamples=settings.resamples, seed=settings.seed, level=settings.level)
    largest = max(FLOPS_PER_PARAMETER * a * b for a, b in zip(n, d, strict=True))
    smallest = min(FLOPS_PER_PARAMETER * a * b for a, b in zip(n, d, strict=True))
    top = max([largest, *(FLOPS_PER_PARAMETER * a * b for a, b in targets)])
    table = flops or settings.flops or _decades(smallest, top)
    predictions = []
    notes = list(found.notes)
    for parameters, tokens in targets:
        times = FLOPS_PER_PARAMETER * parameters * tokens / largest
        predictions.append(
            {
                "parameters": parameters,
                "tokens": tokens,
                "loss": asdict(found.loss(parameters, tokens)),
                "times_largest_run": times,
            }
        )
        if times > FAR:
            notes.append(
                f"{parameters:.3g} parameters on {tokens:.3g} tokens take {times:,.0f} times the FLOPs of the largest run:"
                " the interval covers the scatter of the runs, not a law that bends"
            )
    return {
        "format": FORMAT,
        "count": settings.count,
        "level": settings.level,
        "law": {name: asdict(_figure(found, name)) for name in ("E", "A", "B", "alpha", "beta")},
        "optimal_exponents": {
            "parameters": asdict(found.estimate(lambda law: law.beta / (law.alpha + law.beta))),
            "tokens": asdict(found.estimate(lambda law: law.alpha / (law.alpha + law.beta))),
        },
        "residuals": list(found.residuals),
        "predictions": predictions,
        "isoflop": [_budget(found, budget) for budget in table],
        "notes": notes,
    }


def _figure(found: Fit, name: str) -> Estimate:
    return found.estimate(lambda law: float(getattr(law, name)))


def _budget(found: Fit, flops: float) -> dict[str, Any]:
    def part(index: int) -> dict[str, float]:
        def figure(law: Law) -> float:
            return law.optimum(flops)[index]

        return asdict(found.estimate(figure))

    return {"flops": flops, "parameters": part(0), "tokens": part(1), "loss": part(2)}


def _decades(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**power for power in range(first, last + 1)]


def render(found: dict[str, Any], points: Sequence[Point]) -> str:
    """The report for a terminal."""
    level = f"{found['level']:.0%}"
    lines = [f"{'parameters':>12} {'tokens':>14} {'loss':>8} {'predicted':>9} {'off':>7}"]
    for point, residual in zip(points, found["residuals"], strict=True):
        predicted = point["loss"] / math.exp(residual)
        lines.append(
            f"{_short(point['parameters']):>12} {_short(point['tokens']):>14} {point['loss']:>8.4f} {predicted:>9.4f}"
            f" {math.expm1(residual):>+7.2%}"
        )
    law = found["law"]
    lines.append("")
    lines.append(
        f"L = {law['E']['value']:.4g} + {law['A']['value']:.4g} / N^{law['alpha']['value']:.4g}"
        f" + {law['B']['value']:.4g} / D^{law['beta']['value']:.4g}   N: {found['count'].replace('_', '-')} parameters"
    )
    lines.append(f"{level} intervals: " + ", ".join(f"{k} {_interval(v)}" for k, v in law.items()))
    for part in found["predictions"]:
        loss = part["loss"]
        lines.append(
            f"predicted: {_short(part['parameters'])} parameters on {_short(part['tokens'])} tokens reach"
            f" {loss['value']:.4f} [{loss['low']:.4f}, {loss['high']:.4f}]"
        )
    lines += ["", f"{'FLOPs (6ND)':>12} {'best N':>26} {'best D':>26} {'D/N':>6} {'loss':>25}"]
    for row in found["isoflop"]:
        n, d, loss = row["parameters"], row["tokens"], row["loss"]
        lines.append(
            f"{row['flops']:>12.0e} {_short(n['value']):>8} {_interval(n, _short):>17} {_short(d['value']):>8}"
            f" {_interval(d, _short):>17} {d['value'] / n['value']:>6.3g} {loss['value']:>8.4f}"
            f" [{loss['low']:.4f}, {loss['high']:.4f}]"
        )
    lines += [f"note: {note}" for note in found["notes"]]
    return "\n".join(lines)


def _interval(part: dict[str, float], form: Any = None) -> str:
    show = form or (lambda value: f"{value:.4g}")
    return f"[{show(part['low'])}, {show(part['high'])}]"


def _short(value: float) -> str:
    """950, 95.0k, 1.20M, 70.0B, 1.40T; beyond, as 1.2e+16."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 1e15:
            break
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
