"""The plan of a training run as text for a terminal: stages, the schedule as a line of blocks, the best layouts."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gristmill.trainer.capacity import cost

BLOCKS = "▁▂▃▄▅▆▇█"
SHOWN = 6  # layouts in the table; --json has all


def render(plan: dict[str, Any]) -> str:
    """The whole plan, a line or a few each for stages, learning rate, memory, layouts, notes and totals."""
    lines = [f"{'stage':<14} {'steps':>21} {'batch':>13} {'tokens':>10} {'lr':>20}  sources (epochs)"]
    for stage in plan["stages"]:
        lines.append(
            f"{stage['name']:<14} {stage['first_step']:>10,}-{stage['last_step']:<10,} "
            f"{stage['batch_rows']:>6} x {stage['seq_len']:<6}{short(stage['tokens']):>8} "
            f"{stage['lr_first']:>9.1e} → {stage['lr_last']:<8.1e}  {_sources(stage['sources'])}"
        )
        if stage["batch_ramp"]:
            lines.append(f"{'':<14} batch ramp: {' → '.join(str(rows) for rows in stage['batch_ramp'])} rows")
        if len({other["rope_theta"] for other in plan["stages"]}) > 1:
            lines.append(f"{'':<14} RoPE base: {stage['rope_theta']:,.0f}")
        if stage["memory"]:
            lines.append(f"{'':<14} memory: {stage['memory']}")
    peak = max((rate for _, rate in plan["schedule"]), default=0.0) or 1.0
    curve = "".join(BLOCKS[min(int(rate / peak * len(BLOCKS)), len(BLOCKS) - 1)] for _, rate in plan["schedule"])
    lines.append(f"lr             {curve}  peak {peak:.1e}")
    lines += _layouts(plan) if plan["layouts"] else [_alone(plan)]
    lines += [f"note: {note}" for note in (*plan["notes"], *plan["lints"])]
    stops = f" of {plan['schedule_steps']:,} (max_steps)" if plan["steps"] < plan["schedule_steps"] else ""
    lines.append(
        f"{plan['steps']:,} steps{stops}, {plan['tokens']:,} tokens, {plan['parameters']:,} parameters, "
        f"{plan['tokens_per_parameter']:,.1f} tokens a parameter (Chinchilla: "
        f"{plan['chinchilla_tokens_per_parameter']:g}), {plan['flops']:.2e} FLOPs{_days(plan)}"
    )
    return "\n".join(lines)


def _sources(sources: dict[str, dict[str, float | None]]) -> str:
    parts = []
    for name, entry in sources.items():
        share = "?" if entry["share"] is None else f"{entry['share']:.1%}"
        parts.append(f"{name} {share}" + ("" if entry["epochs"] is None else f" ({entry['epochs']:.2f})"))
    return ", ".join(parts)


def _alone(plan: dict[str, Any]) -> str:
    parts = ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in plan["bytes"].items() if name != "total")
    return f"memory         {plan['bytes']['total'] / 1e6:,.1f} MB in one process: {parts}"


def _layouts(plan: dict[str, Any]) -> list[str]:
    valid = sorted((row for row in plan["layouts"] if row["reason"] is None), key=cost)
    fitting = [row for row in valid if row["fits"]]
    lines = [
        f"layouts of {plan['gpus']:,} GPUs with {plan['gpu_memory'] / 1e9:,.1f} GB, GB of one GPU (states: weights, "
        "gradients and optimizer, and the ZeRO paper's figure; activations, and the rule of thumb 3 L B S d x 2):",
        f"  {'tp':>3} {'dp':>5} {'zero':>4} {'checkpointing':<13} {'states':>7} {'paper':>7} {'activ.':>7} {'thumb':>7} "
        f"{'logits':>7} {'over':>6} {'total':>7} {'moved':>7}",
    ]
    shown = fitting[:SHOWN] or sorted(valid, key=lambda row: row["bytes"]["total"])[:SHOWN]
    for row in shown:
        size = row["bytes"]
        states = size["parameters"] + size["gradients"] + size["optimizer"]
        mark = ">" if row == plan["chosen"] else " "
        lines.append(
            f"{mark} {row['tp']:>3} {row['dp']:>5} {row['zero']:>4} {row['checkpointing']:<13} {states / 1e9:>7.1f} "
            f"{row['paper']['states'] / 1e9:>7.1f} {size['activations'] / 1e9:>7.1f} "
            f"{row['paper']['activations'] / 1e9:>7.1f} {size['logits'] / 1e9:>7.1f} {size['overhead'] / 1e9:>6.1f} "
            f"{size['total'] / 1e9:>7.1f} {row['traffic'] / 1e9:>7.1f}{'' if row['fits'] else '  does not fit'}"
        )
    lines.append(
        f"  {len(plan['layouts'])} layouts: {len(valid)} valid, {len(fitting)} of them fit"
        + (f", {len(fitting) - len(shown)} more in --json" if len(fitting) > len(shown) else "")
    )
    reasons = Counter(row["reason"] for row in plan["layouts"] if row["reason"] is not None)
    lines += [f"  {count} not valid: {reason}" for reason, count in reasons.items()]
    if chosen := plan["chosen"]:
        lines.append(
            f"chosen         parallel.tp={chosen['tp']} parallel.zero={chosen['zero']} "
            f"parallel.checkpointing={chosen['checkpointing']}: dp {chosen['dp']}, "
            f"micro batches a step: {chosen['micro_batches']}, fullest stage: {chosen['stage']}"
        )
    else:
        lines.append("chosen         none: no valid layout fits")
    return lines


def _days(plan: dict[str, Any]) -> str:
    if plan.get("days") is None:
        return ""
    return (
        f", {plan['days']:,.1f} days on {plan['gpus']:,} GPUs at {plan['mfu']:.0%} of "
        f"{plan['peak_flops'] / 1e12:,.1f} TFLOP/s ({plan['gpu']}, {plan['precision']})"
    )


def short(n: float) -> str:
    """A count for people: 5.10T, 1.20M, 812."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if n >= size * 0.9995:
            return f"{n / size:.2f}{unit}"
    return f"{n:.0f}"
