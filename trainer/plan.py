"""What a training run will do, before it costs anything: stages, steps, tokens, learning rates, memory, days. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gristmill.core.mixlock import LockedPhase, MixLock
from gristmill.core.tokshards import PackedManifest
from gristmill.trainer import capacity, memory
from gristmill.trainer.hardware import peak_flops
from gristmill.trainer.order import DataOrder
from gristmill.trainer.schedule import LearningRate, batch_hints
from gristmill.trainer.schema import TrainRun
from gristmill.trainer.stage_settings import rope_of, staged_manifest

CURVE_POINTS = 60
CHINCHILLA = 20.0  # tokens per parameter that use training compute best (Hoffmann et al., arXiv 2203.15556, table 3)
DAY = 86_400.0


def plan_run(
    run: TrainRun,
    data: PackedManifest | DataOrder,
    lock: MixLock | None = None,
) -> dict[str, Any]:
    """Stages with their steps, tokens, learning rates and sources, totals, and the schedule as evenly spaced points.

    `data`: a manifest, to which the run's own `stages` and batch ramp are applied, or an order that has them already.
    Totals (steps, tokens, FLOPs) end with the run's `max_steps`; stages and schedule are those of the whole dataset, as is
    the learning rate of a run that stops early. Epochs come from the lock and are None without it or where nobody has counted the source. Raises UsageError when the
    stages' `lr` blocks make no schedule: a decay that does not start on the edge of a stage, for one.
    """
    order = _order(run, data)
    manifest = order.manifest
    rate = LearningRate(run.optimizer.lr, run.schedule, order)
    count = run.model.params(manifest.vocab_size)
    stages = _stages(run, order, rate, lock)
    steps = min(order.steps, run.max_steps or order.steps)
    tokens = order.tokens_after(steps)
    return {
        "format": "gristmill-train-plan-2",
        "parameters": count,
        "vocab_size": manifest.vocab_size,
        "steps": steps,
        "schedule_steps": order.steps,
        "tokens": tokens,
        "tokens_per_parameter": tokens / count,
        "chinchilla_tokens_per_parameter": CHINCHILLA,
        "stages": stages,
        "schedule": [[step, value] for step, _, value in rate.curve(CURVE_POINTS)],
        # a float: a full-size run has more FLOPs than a 64-bit integer of orjson holds
        "flops": _flops(run, order, steps),
        "bytes": _alone(run, order).as_dict(),
        "layouts": [],
        "chosen": None,
        "lints": run.model.lints(),
        "notes": [*rate.notes, *_batch_notes(run, order)],
        "dataset": manifest.digest,
    }


def _flops(run: TrainRun, order: DataOrder, steps: int) -> float:
    """FLOPs of the first `steps` steps, stage by stage, since attention costs more in longer rows."""
    total = 0
    for phase in order.phases:
        tokens = order.tokens_after(min(phase.last_step, steps)) - order.tokens_after(min(phase.first_step - 1, steps))
        total += run.model.flops_per_token(order.manifest.vocab_size, phase.phase.seq_len) * tokens
    return float(total)


def _order(run: TrainRun, data: PackedManifest | DataOrder) -> DataOrder:
    """The order itself, or a manifest's with the run's settings of stages and its batch ramp."""
    return data if isinstance(data, DataOrder) else DataOrder(staged_manifest(data, run.stages), run.data.batch_ramp)


def _stages(run: TrainRun, order: DataOrder, rate: LearningRate, lock: MixLock | None) -> list[dict[str, Any]]:
    shapes = rope_of(run.model, [phase.phase.name for phase in order.phases], run.stages)
    out = []
    before: dict[str, float] = {}
    for phase in order.phases:
        batches = [span.rows for span in order.spans if span.phase.name == phase.phase.name]
        locked = lock.phase(phase.phase.name) if lock else None
        out.append(
            {
                "name": phase.phase.name,
                "first_step": phase.first_step,
                "last_step": phase.last_step,
                "steps": phase.steps,
                "batch_rows": phase.phase.batch_rows,
                "batch_ramp": batches if len(batches) > 1 else [],
                "seq_len": phase.phase.seq_len,
                "tokens": phase.samples * phase.phase.seq_len,
                "lr_first": rate.lr(phase.first_step),
                "lr_last": rate.lr(phase.last_step),
                "rope_theta": shapes[phase.phase.name].rope_theta,
                "sources": _sources(phase.phase.shares, locked, before),
                "memory": None,
            }
        )
    return out


def _sources(
    shares: Mapping[str, Mapping[str, float]], locked: LockedPhase | None, before: dict[str, float]
) -> dict[str, dict[str, float | None]]:
    """Per source its share, the epochs of this stage, and those by its end. `before` is carried from stage to stage."""
    out: dict[str, dict[str, float | None]] = {}
    for name, share in sorted(shares.items()):
        use = locked.sources.get(name) if locked else None
        known = locked is None or name in locked.shares
        total = use.epochs if use else None
        own = total - before.get(name, 0.0) if total is not None else None
        out[name] = {"share": share["realised"] if known else None, "epochs": own, "epochs_so_far": total}
        if total is not None:
            before[name] = total
    return out


def _batch_notes(run: TrainRun, order: DataOrder) -> list[str]:
    peak = run.optimizer.lr
    return [
        f"stage {name} has another batch size: the square-root rule would turn the peak {peak:.1e} into {hint:.1e}"
        for name, hint in batch_hints(peak, order).items()
    ]


def _alone(run: TrainRun, order: DataOrder) -> memory.Bytes:
    """Bytes of one process in the stage that needs most, on a CPU unless the run asks for a GPU."""
    layout = memory.Layout(checkpointing=run.parallel.checkpointing)
    run = run if run.device == "cuda" else run.model_copy(update={"device": "cpu"})
    sizes = [capacity.at_stage(run, order.manifest.vocab_size, layout, load)[0] for load in capacity.loads(order.spans)]
    return max(sizes, key=lambda size: size.total, default=memory.Bytes(0, 0, 0, 0, 0, 0))


def add_gpus(
    plan: dict[str, Any],
    run: TrainRun,
    data: PackedManifest | DataOrder,
    *,
    gpus: int,
    gpu_memory: float,
    gpu: str = "h100",
    mfu: float = 0.4,
    peak: float | None = None,
) -> dict[str, Any]:
    """The plan with its layouts on `gpus` GPUs of `gpu_memory` bytes, the chosen one, and the days at a model FLOPs
    utilisation `mfu` (PaLM, arXiv 2204.02311, appendix B) of `peak` FLOP/s: by default the run's, else the table's.
    """
    order = _order(run, data)
    vocab, work = order.manifest.vocab_size, capacity.loads(order.spans)
    found = capacity.layouts(run, vocab, work, gpus, gpu_memory)
    chosen = capacity.choose(found)
    if peak is None and run.peak_tflops is not None:
        peak = run.peak_tflops * 1e12
    rate = peak if peak is not None else peak_flops(gpu, run.precision)
    notes = capacity.advice(run, vocab, work, found, gpus, gpu_memory)
    if chosen is not None:
        notes += [lint for lint in run.model.lints(chosen["tp"]) if lint not in plan["lints"]]
    stages = [
        {**stage, "memory": _memory_note(run, vocab, load, found, chosen, gpu_memory)}
        for stage, load in zip(plan["stages"], work, strict=True)
    ]
    return {
        **plan,
        "stages": stages,
        "layouts": found,
        "chosen": chosen,
        "gpus": gpus,
        "gpu_memory": gpu_memory,
        "gpu": gpu,
        "precision": run.precision,
        "peak_flops": rate,
        "mfu": mfu,
        "days": plan["flops"] / (gpus * rate * mfu) / DAY if rate else None,
        "notes": [*plan["notes"], *notes],
    }


def _memory_note(
    run: TrainRun,
    vocab_size: int,
    load: capacity.Load,
    found: list[dict[str, Any]],
    chosen: dict[str, Any] | None,
    limit: float,
) -> str:
    """How full one GPU is in this stage, in words."""
    if chosen is None:
        valid = [row["bytes"]["total"] for row in found if row["reason"] is None]
        return f"no layout: the smallest valid one needs {min(valid) / 1e9:,.1f} GB" if valid else "no valid layout"
    layout = memory.Layout(chosen["tp"], chosen["dp"], chosen["zero"], chosen["checkpointing"])
    size, micro_batches = capacity.at_stage(run, vocab_size, layout, load)
    return (
        f"{size.total / 1e9:,.1f} of {limit / 1e9:,.1f} GB, {micro_batches} micro "
        f"batch{'es' if micro_batches > 1 else ''} of {run.micro_batch_rows} x {load.seq_len}"
    )
