"""Which layouts of a number of GPUs can train a run: validity with its reason, bytes, and the choice. No torch here.

A layout is tp (1, 2, 4, 8) x zero (0 to 3) x checkpointing. It is valid when the GPUs divide by tp, heads and ffn divide
(key/value heads divide or are replicated evenly; the vocabulary is padded, so it always does), and every batch of every
stage, those of the batch ramp too, divides by dp x micro_batch_rows. A batch that does not divide would train all the same,
since ranks left without rows get ignored ones; but it pays for GPUs that stand idle, so it is not valid here.

The choice is the first of the valid layouts that fit, in this order:
  1. the smallest tp: its collectives are in the way of every matrix product
  2. the least checkpointing: full computes the forward pass again, a third more work
  3. the least traffic of data parallelism (`memory.traffic`), which mostly hides behind the computing
  4. the lowest zero
so memory decides, and what costs time is taken only when it must be. Zero 1 moves less than zero 0 in bf16: an all-reduce
is a fp32 reduce-scatter and gather, while FSDP2 gathers weights in the compute dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from gristmill.trainer import memory
from gristmill.trainer.architecture import Model
from gristmill.trainer.memory import Bytes, Layout
from gristmill.trainer.ramp import Span
from gristmill.trainer.schema import TrainRun
from gristmill.trainer.sizes import Checkpointing

TENSOR_PARALLEL = (1, 2, 4, 8)  # one node has 8 GPUs as a rule, and tp beyond it would cross the network each layer
ZERO = (0, 1, 2, 3)
CHECKPOINTING: tuple[Checkpointing, ...] = get_args(Checkpointing)  # cheapest first
OUT_OF_SCOPE = "pipeline, context and expert parallelism and FP8 are out of scope of this trainer"
SAFE = 0.05  # below this share of memory left a layout is called tight: the fixed parts of the overhead are estimates


@dataclass(frozen=True)
class Load:
    """What a stage asks of a GPU: rows of `seq_len` tokens, in global batches of these sizes (a ramp has several)."""

    stage: str
    seq_len: int
    batches: tuple[int, ...]  # rows


def loads(spans: Sequence[Span]) -> list[Load]:
    """The load of each phase, in order."""
    found: dict[str, Load] = {}
    for span in spans:
        before = found.get(span.phase.name)
        batches = tuple(dict.fromkeys((*(before.batches if before else ()), span.rows)))
        found[span.phase.name] = Load(span.phase.name, span.phase.seq_len, batches)
    return list(found.values())


def cannot_split(c: Model, tp: int) -> str | None:
    """Why the matrices of this shape cannot be cut over `tp` ranks; None when they can."""
    for name, size in (("heads", c.heads), ("ffn", c.ffn), ("hidden", c.hidden)):
        if size % tp:
            return f"{name} {size} does not divide over tp {tp}"
    if c.kv_heads % tp and tp % c.kv_heads:
        return f"kv_heads {c.kv_heads} neither divide over tp {tp} nor are replicated evenly"
    return None


def invalid(run: TrainRun, layout: Layout, gpus: int, work: Sequence[Load]) -> str | None:
    """Why a layout is not valid; None when it is."""
    if gpus % layout.tp:
        return f"{gpus} GPUs are no multiple of tp {layout.tp}"
    if why := cannot_split(run.model, layout.tp):
        return why
    step = layout.dp * run.micro_batch_rows
    for load in work:
        for rows in load.batches:
            if rows % step:
                return (
                    f"stage {load.stage}: a batch of {rows:,} rows does not divide by dp {layout.dp} x "
                    f"{run.micro_batch_rows} rows of a micro batch"
                )
    return None


def at_stage(run: TrainRun, vocab_size: int, layout: Layout, load: Load) -> tuple[Bytes, int]:
    """Bytes of one GPU in a stage, and the micro batches of its largest global batch."""
    micro_batches = max(-(-rows // (layout.dp * run.micro_batch_rows)) for rows in load.batches)
    return memory.layout_bytes(run, vocab_size, layout, load.seq_len, micro_batches), micro_batches


def layouts(run: TrainRun, vocab_size: int, work: Sequence[Load], gpus: int, limit: float) -> list[dict[str, Any]]:
    """Every layout of `gpus` GPUs with `limit` bytes each: validity, bytes of its fullest stage, whether they fit.

    `paper` holds what the ZeRO paper and the rule of thumb for activations give for the same layout.
    """
    out = []
    for tp in (n for n in TENSOR_PARALLEL if n <= gpus):
        own = sum(piece.elements for piece in memory.pieces(run.model, vocab_size, tp))
        for zero in ZERO:
            for checkpointing in CHECKPOINTING:
                layout = Layout(tp, gpus // tp, zero, checkpointing)
                found = [(*at_stage(run, vocab_size, layout, load), load) for load in work]
                size, micro_batches, load = max(found, key=lambda item: item[0].total)
                simple = memory.simple_activation_bytes(
                    run.model.layers, run.micro_batch_rows, load.seq_len, run.model.hidden
                )
                out.append(
                    {
                        "tp": tp,
                        "dp": layout.dp,
                        "zero": zero,
                        "checkpointing": checkpointing,
                        "reason": invalid(run, layout, gpus, work),
                        "bytes": size.as_dict(),
                        "fits": size.total <= limit,
                        "stage": load.stage,
                        "micro_batches": micro_batches,
                        "traffic": memory.traffic(run, vocab_size, layout, micro_batches),
                        "paper": {
                            "states": round(memory.zero_bytes(own, layout.dp, zero)),
                            "activations": simple // tp,
                        },
                    }
                )
    return out


def cost(row: dict[str, Any]) -> tuple[int, int, int, int]:
    """What the choice goes by, cheapest first."""
    return row["tp"], CHECKPOINTING.index(row["checkpointing"]), row["traffic"], row["zero"]


def choose(found: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The cheapest valid layout that fits; None when there is none."""
    return min((row for row in found if row["reason"] is None and row["fits"]), key=cost, default=None)


def advice(
    run: TrainRun, vocab_size: int, work: Sequence[Load], found: Sequence[dict[str, Any]], gpus: int, limit: float
) -> list[str]:
    """What the choice leaves unsaid: a tight fit, the run's own settings, or why nothing can be chosen."""
    chosen = choose(found)
    if chosen is None:
        return _nothing(run, vocab_size, work, found, gpus, limit)
    notes = []
    if chosen["bytes"]["total"] > limit * (1 - SAFE):
        notes.append(f"the chosen layout leaves less than {SAFE:.0%} of memory: the estimate's margin is about that")
    own = run.parallel
    mine = next(
        (r for r in found if (r["tp"], r["zero"], r["checkpointing"]) == (own.tp, own.zero, own.checkpointing)), None
    )
    if mine is not None and (mine["reason"] or not mine["fits"]):
        why = mine["reason"] or f"{mine['bytes']['total'] / 1e9:,.1f} GB do not fit"
        notes.append(f"the run's own layout (tp {own.tp}, zero {own.zero}, {own.checkpointing}) will not do: {why}")
    return notes


def _nothing(
    run: TrainRun, vocab_size: int, work: Sequence[Load], found: Sequence[dict[str, Any]], gpus: int, limit: float
) -> list[str]:
    notes = []
    if not any(row["reason"] is None for row in found):
        notes.append(f"no layout of {gpus:,} GPUs is valid for every stage{_remedy(run, work, gpus)}")
    else:
        for load in work:
            valid = [row for row in layouts(run, vocab_size, [load], gpus, limit) if row["reason"] is None]
            least = min(row["bytes"]["total"] for row in valid)
            if least > limit:
                smaller = "; lower micro_batch_rows first" if run.micro_batch_rows > 1 else ""
                notes.append(
                    f"stage {load.stage} ({load.seq_len:,} tokens a row) fits in no valid layout: the smallest needs "
                    f"{least / 1e9:,.1f} GB of {limit / 1e9:,.1f}{smaller}"
                )
    if not notes:
        notes.append("each stage fits in a valid layout, but no one layout fits them all: train them as separate runs")
    return [*notes, f"cutting the model or its rows further needs what is not here: {OUT_OF_SCOPE}"]


def _remedy(run: TrainRun, work: Sequence[Load], gpus: int) -> str:
    """What would divide: micro batches of one row, or the next lower number of GPUs; nothing when neither does."""
    if _divides(run.model_copy(update={"micro_batch_rows": 1}), work, gpus):
        return ": micro_batch_rows 1 would divide the batches"
    most = min(gpus, min(rows for load in work for rows in load.batches) * TENSOR_PARALLEL[-1])
    fewer = next((n for n in range(most, 0, -1) if _divides(run, work, n)), None)
    return f": {fewer:,} GPUs would divide the batches" if fewer else ""


def _divides(run: TrainRun, work: Sequence[Load], gpus: int) -> bool:
    return any(invalid(run, Layout(tp, gpus // tp), gpus, work) is None for tp in TENSOR_PARALLEL if tp <= gpus)
