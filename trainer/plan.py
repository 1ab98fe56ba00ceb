"""What a training run will do, before it costs anything: phases, steps, tokens, learning rates, parameters. No torch."""

from __future__ import annotations

from typing import Any

from gristmill.core.tokshards import PackedManifest
from gristmill.trainer.order import spans, total_steps
from gristmill.trainer.schedule import LearningRate, batch_hints
from gristmill.trainer.schema import TrainRun

CURVE_POINTS = 60
BLOCKS = "▁▂▃▄▅▆▇█"


def plan_run(run: TrainRun, manifest: PackedManifest) -> dict[str, Any]:
    """Phases with their steps, tokens and learning rates, totals, and the schedule as evenly spaced points.

    Raises UsageError when the phases' `lr` blocks make no schedule.
    """
    rate = LearningRate(run.optimizer.lr, run.schedule, manifest)
    steps = total_steps(manifest)
    last = min(steps, run.max_steps or steps)
    phases: list[dict[str, Any]] = [
        {
            "name": span.phase.name,
            "first_step": span.first_step,
            "last_step": span.last_step,
            "batch_rows": span.phase.batch_rows,
            "seq_len": span.phase.seq_len,
            "tokens": span.samples * span.phase.seq_len,
            "lr_first": rate.lr(span.first_step),
            "lr_last": rate.lr(span.last_step),
            "shares": {name: share["realised"] for name, share in sorted(span.phase.shares.items())},
        }
        for span in spans(manifest)
    ]
    return {
        "format": "gristmill-train-plan-1",
        "parameters": run.model.params(manifest.vocab_size),
        "vocab_size": manifest.vocab_size,
        "steps": last,
        "tokens": sum(p["tokens"] for p in phases),
        "phases": phases,
        "schedule": [[step, value] for step, _, value in rate.curve(CURVE_POINTS)],
        "flops": sum(run.model.flops_per_token(manifest.vocab_size, p["seq_len"]) * p["tokens"] for p in phases),
        "bytes": _memory(run, manifest),
        "lints": run.model.lints(),
        "notes": [*rate.notes, *_batch_notes(run, manifest)],
        "dataset": manifest.digest,
    }


def _batch_notes(run: TrainRun, manifest: PackedManifest) -> list[str]:
    peak = run.optimizer.lr
    return [
        f"phase {name} has another batch size: the square-root rule would turn the peak {peak:.1e} into {hint:.1e}"
        for name, hint in batch_hints(peak, manifest).items()
    ]


def _memory(run: TrainRun, manifest: PackedManifest) -> dict[str, int]:
    """Bytes of one process: fp32 parameters, gradients and optimizer state; activations and logits of a micro batch."""
    count = 4 * run.model.params(manifest.vocab_size)
    length = max((p.seq_len for p in manifest.phases), default=0)
    width = 2 if run.precision == "bf16" else 4
    states = {"adamw": 2, "muon": 2, "ademamix": 3}[run.optimizer.name]  # muon: at most, its matrices have one
    out = {
        "parameters": count,
        "gradients": count,
        "optimizer": states * count,
        "activations": run.model.activation_bytes(run.micro_batch_rows, length, width=width),
        "logits": run.model.logits_bytes(manifest.vocab_size, run.micro_batch_rows, length, width=width),
    }
    return {**out, "total": sum(out.values())}


def render(plan: dict[str, Any]) -> str:
    """The plan for a terminal, with the schedule as a line of blocks."""
    lines = [f"{'phase':<12} {'steps':>15} {'batch':>12} {'tokens':>14} {'lr':>20}  sources"]
    for p in plan["phases"]:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in p["shares"].items())
        lines.append(
            f"{p['name']:<12} {p['first_step']:>7,}-{p['last_step']:<7,} {p['batch_rows']:>5} x {p['seq_len']:<5}"
            f"{p['tokens']:>14,} {p['lr_first']:>9.1e} → {p['lr_last']:.1e}  {shares}"
        )
    peak = max((rate for _, rate in plan["schedule"]), default=0.0) or 1.0
    curve = "".join(BLOCKS[min(int(rate / peak * len(BLOCKS)), len(BLOCKS) - 1)] for _, rate in plan["schedule"])
    lines.append(f"lr           {curve}  peak {peak:.1e}")
    parts = ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in plan["bytes"].items() if name != "total")
    lines.append(f"memory       {plan['bytes']['total'] / 1e6:,.1f} MB in one process: {parts}")
    lines += [f"note: {note}" for note in (*plan["notes"], *plan["lints"])]
    lines.append(
        f"{plan['steps']:,} steps, {plan['tokens']:,} tokens, {plan['parameters']:,} parameters, {plan['flops']:.2e} FLOPs"
    )
    return "\n".join(lines)
