"""A ladder of small runs from one recipe: which they are, their training one after another, and the losses they end at.

A rung is the whole run in small: a smaller model on the same share of every stage, with the learning rate's schedule
drawn for that share. A long run read off half-way would not do: before its decay a loss lies above what the same tokens
reach when the rate decays in time, so the data term would be fitted to the schedule (Hoffmann et al., arXiv 2203.15556,
appendix B: a cosine drawn for 25 % more steps than the run has already ends clearly higher). Warm-ups are cut to the same
share, since one of a fixed length takes most of a short run (Porian et al., arXiv 2406.19146, section 3). What a rung does
not have: weights to begin with, held-out evaluation of its own, samples, averaged weights, data edits, tensor parallelism.

Its loss is the mean over rows that no rung trains on, the same for all: a training loss at the end of a short run
scatters by more than the rungs differ.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from gristmill.core.errors import FormatError, UsageError
from gristmill.core.hashing import digest
from gristmill.core.tokshards import PackedDataset, PackedManifest, PackedPhase, write_manifest
from gristmill.trainer import ladder_report, sizes
from gristmill.trainer.architecture import Model
from gristmill.trainer.ladder_schema import Ladder, Size
from gristmill.trainer.order import DataOrder
from gristmill.trainer.scaling_fit import LEAST_RUNS
from gristmill.trainer.schedule import LearningRate
from gristmill.trainer.schema import TrainRun
from gristmill.trainer.stopping import signals
from gristmill.trainer.train import launch_training, require_torch

RESULT = "rung.json"
UNUSED = ("branch", "evaluate", "gallery", "track", "average", "max_steps", "ladder")  # at their defaults in a rung
OPERATIONAL = ("checkpoint", "log_every", "verify_shards", "mixture", "generate", "peak_tflops")  # change no loss
WIDTH_MULTIPLE = 8  # of hidden and ffn

Say = Callable[[str], None]


@dataclass(frozen=True)
class Rung:
    """One small run: its settings, the manifest of its share of the data, its parameters and trained tokens."""

    name: str
    run: TrainRun
    manifest: PackedManifest
    parameters: dict[str, int]
    """By what is counted: total, non_embedding."""
    tokens: int
    """Positions trained, padding included."""

    @property
    def key(self) -> str:
        """Of everything that decides the loss."""
        settings = {k: v for k, v in self.run.model_dump(mode="json").items() if k not in OPERATIONAL}
        return digest({"run": settings, "dataset": self.manifest.digest})


def rungs_of(run: TrainRun, manifest: PackedManifest) -> list[Rung]:
    """The rungs of a run's `ladder:` section on a dataset, by size and then tokens.

    Raises UsageError when a size makes no model, the dataset is too small, or two rungs are the same.
    """
    ladder = run.ladder or Ladder()
    room, _ = split(manifest, ladder.heldout_rows)
    whole = DataOrder(room, run.data.batch_ramp).tokens
    out: dict[str, Rung] = {}
    for size in ladder.sizes:
        model = sized(run.model, size)
        counts = count(model, manifest.vocab_size)
        ratio = count(run.model, manifest.vocab_size)["total"] / counts["total"]
        lr = size.lr or run.optimizer.lr * ratio**ladder.lr_exponent
        for budget in ladder.budgets:
            if ladder.tokens:
                wanted = float(budget)
            elif ladder.tokens_per_parameter:
                wanted = budget * counts[ladder.count]
            else:
                wanted = budget * whole
            if wanted > whole * 1.000001:
                raise UsageError(
                    f"a rung needs {wanted:,.0f} tokens, the dataset has {whole:,} beside the rows held out",
                    hint="give lower token counts or pack more data; an epoch is never repeated",
                )
            share = min(wanted / whole, 1.0)
            cut = shortened(room, share)
            small = in_small(run, model, lr, share, room, cut)
            tokens = DataOrder(cut, small.data.batch_ramp).tokens
            name = f"{counts['total']}-{tokens}"
            if name in out:
                raise UsageError(
                    f"two rungs have {counts['total']:,} parameters and {tokens:,} tokens",
                    hint="token counts are rounded to whole steps: spread them, or the sizes, further",
                )
            out[name] = Rung(name, small, cut, counts, tokens)
    return list(out.values())


def sized(base: Model, size: Size) -> Model:
    """The run's model, wider or deeper. Raises UsageError when the result is no model."""
    data = base.model_dump(mode="json")

    def wide(name: str, multiple: int) -> int:
        return max(1, round(float(data[name]) * size.width / multiple)) * multiple

    if size.width != 1:
        kv_heads = max(1, round(base.kv_heads * size.width))
        data |= {"hidden": wide("hidden", WIDTH_MULTIPLE), "ffn": wide("ffn", WIDTH_MULTIPLE)}
        data |= {"kv_heads": kv_heads, "heads": max(1, round(base.heads * size.width / kv_heads)) * kv_heads}
    data["layers"] = max(1, round(base.layers * size.depth))
    try:
        return Model.model_validate(data | size.model)
    except ValueError as error:
        raise UsageError(f"ladder.sizes {size.model_dump(exclude_defaults=True)} makes no model: {error}") from error


def count(model: Model, vocab_size: int) -> dict[str, int]:
    """Parameters: all, and without embedding and head."""
    total = model.params(vocab_size)
    tables = sizes.padded_vocab(vocab_size) * model.hidden * (1 if model.tie_embeddings else 2)
    return {"total": total, "non_embedding": total - tables}


def split(manifest: PackedManifest, heldout: int) -> tuple[PackedManifest, list[tuple[str, int]]]:
    """The manifest without the held-out rows, and those as (phase, row): the last rows of each stage, by its tokens.

    Raises UsageError when a stage keeps no whole batch.
    """
    tokens = [phase.rows * phase.seq_len for phase in manifest.phases]
    phases: list[PackedPhase] = []
    rows: list[tuple[str, int]] = []
    seen = 0
    for phase, own in zip(manifest.phases, tokens, strict=True):
        first, seen = seen, seen + own
        n = round(heldout * seen / sum(tokens)) - round(heldout * first / sum(tokens))
        left = (phase.rows - n) // phase.batch_rows * phase.batch_rows
        if phase.batches and left < phase.batch_rows:
            raise UsageError(
                f"stage {phase.name!r} has {phase.rows} rows: {n} held out leave no batch of {phase.batch_rows}",
                hint="lower ladder.heldout_rows, or pack more data",
            )
        rows += [(phase.name, row) for row in range(phase.rows - n, phase.rows)]
        phases.append(replace(phase, rows=left))
    return replace(manifest, phases=phases), rows


def shortened(room: PackedManifest, share: float) -> PackedManifest:
    """The first rows of every stage, the same share of each, in whole batches (one at least); its warm-ups as well.

    Shards without such a row are left out.
    """
    phases = []
    seen = 0
    for phase in room.phases:
        first, seen = seen, seen + phase.batches
        batches = max(1, round(share * seen) - round(share * first)) if phase.batches else 0
        rows = min(batches, phase.batches) * phase.batch_rows
        shards = phase.shards[: -(-rows // phase.rows_per_shard)]
        phases.append(replace(phase, rows=rows, lr=_short_block(phase.lr, share), shards=shards))
    return replace(room, phases=phases)


def _short_block(block: dict[str, Any], share: float) -> dict[str, Any]:
    steps = block.get("warmup_steps")
    return {**block, "warmup_steps": max(1, round(steps * share))} if steps else block


def in_small(
    run: TrainRun, model: Model, lr: float, share: float, room: PackedManifest, cut: PackedManifest
) -> TrainRun:
    """The run's settings for a share of its data: every length in steps or tokens is that share of the run's."""
    data = run.model_dump(mode="json")
    for name in UNUSED:
        data.pop(name, None)
    data["evaluate"] = {"mixture": False}
    data["gallery"] = {"prompts": []}
    data["model"] = model.model_dump(mode="json")
    data["optimizer"]["lr"] = lr
    data["parallel"] |= {"tp": 1}
    data["checkpoint"] |= {"keep": 1, "keep_every_steps": None}
    data["data"]["edits"] = None  # they name rows of the whole run

    def short(settings: dict[str, Any] | None, *names: str) -> None:
        for name in names:
            if settings and settings.get(name):
                settings[name] = max(1, round(settings[name] * share))

    schedule = data["schedule"]
    short(schedule, "warmup_steps", "warmup_tokens")
    if schedule["decay_tokens"]:
        schedule["decay_tokens"] = _decay(run, share, room, cut)
    for item in (*schedule["milestones"], *schedule["rewarm"]):
        short(item, "tokens", "steps")
    short(data["optimizer"]["ademamix"], "warmup_steps", "warmup_tokens")
    for stair in data["data"]["batch_ramp"]:
        short(stair, "until_samples", "until_tokens")
    for stage in (data.get("stages") or {}).values():
        if stage.get("lr"):
            stage["lr"] = _short_block(stage["lr"], share)
    return TrainRun.model_validate(data)


def _decay(run: TrainRun, share: float, room: PackedManifest, cut: PackedManifest) -> int:
    """schedule.decay_tokens of a rung: of several stages the decay takes the same ones as in the run."""
    tokens = run.schedule.decay_tokens or 0
    sums = [phase.batches * phase.batch_rows * phase.seq_len for phase in room.phases]
    if sum(map(bool, sums)) == 1:
        return max(1, round(tokens * share))
    # the rows held out are missing at the stages' ends: the stage edge nearest to the run's
    edges = [sum(sums[i:]) for i in range(len(sums)) if sums[i]]
    first = min(range(len(edges)), key=lambda i: abs(edges[i] - tokens))
    return sum([p.rows * p.seq_len for p in cut.phases if p.rows][first:])


def climb(
    run: TrainRun,
    dataset: PackedDataset,
    tokenizer: Path,
    out: Path,
    say: Say,
    *,
    targets: Sequence[tuple[float, float]] = (),
    flops: Sequence[float] = (),
) -> dict[str, Any]:
    """Train all rungs, fit their losses and write `out`/ladder.json: the report, with the rungs.

    Predicted are `targets` (N, D), and without any the run itself on its whole dataset. Raises what `run_rungs` does.
    """
    settings = run.ladder or Ladder()
    if len(rungs_of(run, dataset.manifest)) < LEAST_RUNS:
        raise UsageError(
            f"a ladder of fewer than {LEAST_RUNS} rungs fits no law", hint="give more sizes or token counts"
        )
    results = run_rungs(run, dataset, tokenizer, out, say)
    own = count(run.model, dataset.manifest.vocab_size)
    whole = (float(own[settings.count]), float(DataOrder(dataset.manifest, run.data.batch_ramp).tokens))
    found = ladder_report.report(points_of(results, settings.count), settings, targets or [whole], flops)
    found["notes"] += schedule_notes(rungs_of(run, dataset.manifest)[0])
    found["rungs"] = results
    _write(out / "ladder.json", found)
    return found


def points_of(results: Sequence[dict[str, Any]], counted: str) -> list[dict[str, Any]]:
    """What is fitted of rungs' results."""
    return [{"parameters": r["parameters"][counted], "tokens": r["tokens"], "loss": r["loss"]} for r in results]


def run_rungs(run: TrainRun, dataset: PackedDataset, tokenizer: Path, out: Path, say: Say) -> list[dict[str, Any]]:
    """Train every rung that has no result under `out` yet, one after another, and return all results.

    Each is a launch in its own folder and goes on from its checkpoint when it was stopped. A signal stops the rung at
    hand after a save. Raises what a launch raises (Stopped after a signal), and UsageError when a folder holds a rung of
    other settings or data.
    """
    require_torch()
    rungs = rungs_of(run, dataset.manifest)
    _, rows = split(dataset.manifest, (run.ladder or Ladder()).heldout_rows)
    results = []
    stop = threading.Event()

    def ask(why: str) -> None:
        say(f"{why}: this rung saves and stops")
        stop.set()

    for number, rung in enumerate(rungs, 1):
        folder = out / rung.name
        title = f"rung {number}/{len(rungs)}: {rung.parameters['total']:,} parameters, {rung.tokens:,} tokens"
        found = finished(folder, rung)
        if found is None:
            say(f"{title}, peak lr {rung.run.optimizer.lr:.2e}")
            with signals(ask):
                _train(rung, dataset, tokenizer, folder, stop.is_set)
            found = {**_described(rung), "loss": heldout_loss(folder, dataset, rows, rung.run)}
            found["training_loss"] = orjson.loads((folder / "summary.json").read_bytes())["final_loss"]
            _write(folder / RESULT, {"key": rung.key, **found})
        else:
            say(f"{title}: done before")
        say(f"  held-out loss {found['loss']:.4f}")
        results.append(found)
    return results


def finished(folder: Path, rung: Rung) -> dict[str, Any] | None:
    """A rung's result, None when it has none yet. Raises UsageError when the folder's result is of another rung."""
    path = folder / RESULT
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = orjson.loads(path.read_bytes())
        key = found.pop("key")
    except (ValueError, KeyError, AttributeError) as error:
        raise FormatError(f"{path} is damaged: {error}", hint="remove it: the rung is then evaluated again") from error
    if key != rung.key:
        raise UsageError(
            f"{folder} holds a rung of other settings or another dataset", hint="give another --out, or remove it"
        )
    return found


def _described(rung: Rung) -> dict[str, Any]:
    steps = DataOrder(rung.manifest, rung.run.data.batch_ramp).steps
    longest = max(phase.seq_len for phase in rung.manifest.phases)
    per_token = rung.run.model.flops_per_token(rung.manifest.vocab_size, longest)
    return {
        "name": rung.name,
        "parameters": rung.parameters,
        "tokens": rung.tokens,
        "steps": steps,
        "lr": rung.run.optimizer.lr,
        "flops": per_token * rung.tokens,
        "model": {k: getattr(rung.run.model, k) for k in ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn")},
    }


def _train(rung: Rung, dataset: PackedDataset, tokenizer: Path, folder: Path, stopping: Callable[[], bool]) -> None:
    data = folder / "dataset"
    _link(dataset.folder, rung.manifest, data)
    settings = folder / "run.json"
    _write(settings, rung.run.model_dump(mode="json"))
    launch_training(settings, data, tokenizer, folder, stopping)


def _link(source: Path, manifest: PackedManifest, folder: Path) -> None:
    """A dataset of a rung's shards: hard links, or copies on another file system. A shard may hold rows beyond its own."""
    for phase in manifest.phases:
        for shard in phase.shards:
            for suffix in shard.sha256:
                name = f"{shard.file.removesuffix('.bin')}.{suffix}"
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists():
                    continue
                try:
                    os.link(source / name, target)
                except OSError:
                    shutil.copyfile(source / name, target)
    write_manifest(folder, manifest)


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2))
    os.replace(part, path)


def heldout_loss(folder: Path, dataset: PackedDataset, rows: Sequence[tuple[str, int]], run: TrainRun) -> float:
    """Mean cross-entropy (nats per token) of the model exported to `folder` on rows of the dataset."""
    import torch

    from gristmill.trainer.data import RowReader
    from gristmill.trainer.export import load_exported

    torch.set_num_threads(run.threads)
    device = torch.device("cuda" if run.device != "cpu" and torch.cuda.is_available() else "cpu")
    model = load_exported(folder)[0].to(device)
    single = PackedDataset(dataset.folder)
    single.manifest = replace(
        dataset.manifest, phases=[replace(phase, batch_rows=1) for phase in dataset.manifest.phases]
    )
    order = DataOrder(single.manifest)
    reader = RowReader(single, order)
    total, tokens = 0.0, 0
    with torch.no_grad():
        for phase, row in rows:
            step = order.step_of_row(phase, row)
            assert step is not None, "with one row a batch every row has a step"
            batch = reader.arrays(reader.of_step(step), 0, 1)[0]
            arrays = (batch.tokens_BT, batch.labels_BT, batch.position_BT)
            total += float(model.loss(*(torch.from_numpy(array).to(device) for array in arrays)))
            tokens += batch.valid_tokens
    if not tokens:
        raise UsageError("the rows held out hold no token to predict", hint="raise ladder.heldout_rows")
    return total / tokens


def schedule_notes(rung: Rung) -> list[str]:
    """What makes a rung's loss no measure of its tokens, in words."""
    rate = LearningRate(rung.run.optimizer.lr, rung.run.schedule, DataOrder(rung.manifest, rung.run.data.batch_ramp))
    last = rate.lr(rate.clock.steps)
    if last > 0.5 * rung.run.optimizer.lr:
        return ["the learning rate never decays: the losses are those of its peak, above what the tokens allow"]
    return []
