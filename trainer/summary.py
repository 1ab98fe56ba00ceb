"""Totals of a run from its metrics: losses, whole and per phase. No torch, and no times: they are outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

FINAL_STEPS = 10
"""The final loss is the mean of this many last steps: single batches scatter by tenths of a nat."""


def summarise(records: list[dict[str, Any]], params: int) -> dict[str, Any]:
    """Totals of a run from its metrics: losses in nats per token, whole and per phase. No times."""
    phases: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        phases.setdefault(record["phase"], []).append(record)
    return {
        "steps": len(records),
        "samples": records[-1]["samples"],
        "tokens": records[-1]["tokens"],
        "valid_tokens": sum(r["valid_tokens"] for r in records),
        "params": params,
        **losses(records),
        "phases": [{"name": name, "steps": len(part), **losses(part)} for name, part in phases.items()],
    }


def losses(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    tail = [r["loss"] for r in records[-FINAL_STEPS:]]
    return {"first_loss": records[0]["loss"], "final_loss": sum(tail) / len(tail)}
