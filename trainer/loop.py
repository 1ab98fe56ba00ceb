"""The training loop: one process on CPU or one GPU, resumed exactly from its last checkpoint.

Per step: a global batch by index, gradients summed over micro batches of loss sum / valid tokens of the global batch,
a check that all is finite, clip, the optimizer. metrics.jsonl holds only functions of the state, so a killed and resumed run
gives the same bytes as an undisturbed one (CPU, one thread count); seconds go to timings.jsonl.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from gristmill.core.errors import FormatError, GristmillError, UsageError
from gristmill.core.settings import dotted, flatten
from gristmill.core.tokshards import PackedDataset, PackedManifest
from gristmill.trainer import checkpoint, goldfish, optim
from gristmill.trainer.data import Batch, batch_of_step
from gristmill.trainer.journal import Journal
from gristmill.trainer.model import Decoder
from gristmill.trainer.order import samples_after, span_of_step, tokens_after, total_steps
from gristmill.trainer.schedule import LearningRate, SlowAverage
from gristmill.trainer.schema import TrainRun

FREE = {"log_every", "checkpoint", "generate", "max_steps", "verify_shards", "mixture"}  # may change on resume
ROUNDING = {"threads", "device"}  # may change, but then sums round differently

Record = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended: at `step` of `steps`; stopped early by `stop` when not finished."""

    step: int
    steps: int
    model: Decoder

    @property
    def finished(self) -> bool:
        return self.step >= self.steps


def build_model(run: TrainRun, manifest: PackedManifest) -> Decoder:
    """The initial model for a dataset. Raises UsageError when its rotary table is shorter than a phase's rows."""
    longest = max((phase.seq_len for phase in manifest.phases), default=0)
    length = run.model.max_seq_len or longest
    if length < longest:
        raise UsageError(
            f"model.max_seq_len is {length}, the dataset has rows of {longest} tokens",
            hint="raise it, or leave it out to take the longest phase",
        )
    compute = torch.bfloat16 if run.precision == "bf16" else None
    model = Decoder(run.model, manifest.vocab_size, length, compute=compute, checkpointing=run.parallel.checkpointing)
    model.init_weights(run.seed)
    return model


def pick_device(name: str) -> torch.device:
    """`auto` is cuda where there is one, else cpu. Raises UsageError when cuda is asked for and absent."""
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UsageError("device: cuda, but torch sees no GPU", hint="use device: auto or cpu")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


class Trainer:
    """One run's state, from its checkpoint or its seed: model, optimizer, step, journals."""

    def __init__(self, run: TrainRun, dataset: PackedDataset, out: Path, say: Callable[[str], None]) -> None:
        self.run, self.dataset, self.out = run, dataset, out
        self.manifest = dataset.manifest
        self.steps = min(total_steps(self.manifest), run.max_steps or total_steps(self.manifest))
        if not self.steps:
            raise UsageError(
                "no phase of the dataset fills one batch", hint="lower the mixture's global batch, or add data"
            )
        self.rate = LearningRate(run.optimizer.lr, run.schedule, self.manifest)
        self.slow = SlowAverage(run.optimizer.slow, run.optimizer.betas[0], self.manifest)
        for note in self.rate.notes:
            say(note)
        self.device = pick_device(run.device)
        torch.set_num_threads(run.threads)
        self.model = build_model(run, self.manifest).to(self.device)
        self.optimizer = optim.build(self.model, run.optimizer)
        out.mkdir(parents=True, exist_ok=True)
        self.step = self._resume(say)
        self.metrics = Journal(out / "metrics.jsonl", self.step, complete=True)
        self.timings = Journal(out / "timings.jsonl", self.step, complete=False)

    def _resume(self, say: Callable[[str], None]) -> int:
        found = checkpoint.latest(self.out / "checkpoints", say)
        if found is None:
            return 0
        check_resume(self.run, self.manifest, found.state, say)
        weights, moments = found.tensors()
        missing, unknown = self.model.load_state_dict(weights, strict=False)
        if missing or unknown:
            raise FormatError(f"{found.folder} does not fit the model", hint=f"tensors: {[*missing, *unknown][:3]}")
        self.optimizer.load_state(moments)
        say(f"resuming after step {found.step} of {self.steps} from {found.folder.name}")
        return found.step

    def train_step(self) -> Record:
        """Train one global batch. Raises GristmillError before a loss or gradient that is not finite is applied."""
        step = self.step + 1
        phase = span_of_step(self.manifest, step).phase.name
        batch = batch_of_step(self.dataset, step)
        if self.run.loss.goldfish is not None:
            batch = goldfish.mask_labels(batch, self.run.loss.goldfish)
        valid = batch.valid_tokens
        parts = [self._micro(part, valid) for part in batch.micro(self.run.micro_batch_rows)]
        loss, z_loss = (torch.stack(column).sum() for column in zip(*parts, strict=True))
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        loss_value, norm_value = loss.item(), norm.item()
        for what, value in (("loss", loss_value), ("gradient norm", norm_value)):
            if not math.isfinite(value):
                raise GristmillError(
                    f"step {step}, phase {phase}: {what} is {value}; nothing was applied",
                    hint="lower optimizer.lr or lengthen the warm-up; `gristmill trace --step` shows the step's documents",
                )
        if self.run.optimizer.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.run.optimizer.clip, norm)
        lr = self.rate.lr(step)
        self.optimizer.at(lr, self.slow.at(step))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step = step
        return {
            "step": step,
            "phase": phase,
            "loss": loss_value,
            "grad_norm": norm_value,
            "lr": lr,
            "tokens": tokens_after(self.manifest, step),
            "samples": samples_after(self.manifest, step),
            "valid_tokens": valid,
            **({"z_loss": z_loss.item()} if self.run.loss.z_loss else {}),
        }

    def _micro(self, part: Batch, valid: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Backward of one micro batch; its share of the global batch's mean cross-entropy and z-loss, in float64."""
        tokens_BT, labels_BT, position_BT = (
            torch.from_numpy(a).to(self.device) for a in (part.tokens_BT, part.labels_BT, part.position_BT)
        )
        if self.run.loss.z_loss:
            nll_BT, lse_BT = self.model.token_losses(tokens_BT, labels_BT, position_BT)
            entropy, z_loss = nll_BT.sum(), self.run.loss.z_loss * lse_BT.square().sum()
            total = entropy + z_loss
        else:
            total = entropy = self.model.loss(tokens_BT, labels_BT, position_BT)
            z_loss = entropy.new_zeros(())
        (total / max(valid, 1)).backward()  # type: ignore[no-untyped-call]
        return entropy.detach().double() / max(valid, 1), z_loss.detach().double() / max(valid, 1)

    def save(self) -> None:
        """Checkpoint the state after the current step; journals first, as a resume relies on them."""
        self.metrics.sync()
        state = {
            "step": self.step,
            "samples": samples_after(self.manifest, self.step),
            "tokens": tokens_after(self.manifest, self.step),
            "dataset_digest": self.manifest.digest,
            "vocab_size": self.manifest.vocab_size,
            "run": self.run.model_dump(mode="json"),
            "torch": torch.__version__,
        }
        moments = self.optimizer.state_tensors()
        checkpoint.save(self.out / "checkpoints", state, self.model.state_dict(), moments, self.run.checkpoint.keep)

    def due(self) -> bool:
        """Whether a checkpoint falls on the current step."""
        edge = self.step == span_of_step(self.manifest, self.step).last_step
        return edge or self.step == self.steps or self.step % self.run.checkpoint.every_steps == 0


def check_resume(run: TrainRun, manifest: PackedManifest, state: Record, say: Callable[[str], None]) -> None:
    """Raises UsageError when a checkpoint belongs to another dataset, vocabulary or run."""
    remedy = "give another --out, or remove this one to train from the beginning"
    if state["dataset_digest"] != manifest.digest:
        raise UsageError(
            f"the checkpoint was trained on dataset {state['dataset_digest'][:12]}, this one is {manifest.digest[:12]}",
            hint=remedy,
        )
    if state["vocab_size"] != manifest.vocab_size:
        raise UsageError(
            f"the checkpoint has {state['vocab_size']} ids, the dataset {manifest.vocab_size}", hint=remedy
        )
    if state["samples"] != samples_after(manifest, state["step"]):
        raise FormatError(f"the checkpoint of step {state['step']} stands at sample {state['samples']}", hint=remedy)
    old, new = flatten(with_defaults(state["run"])), flatten(run.model_dump(mode="json"))
    for path in sorted({*old, *new}, key=dotted):
        if old.get(path) == new.get(path) or path[0] in FREE:
            continue
        change = f"{dotted(path)} {old.get(path)} -> {new.get(path)}"
        if path[0] not in ROUNDING:
            raise UsageError(f"the checkpoint was made with other settings: {change}", hint=remedy)
        say(f"resuming with {change}: not equal bit for bit to one undisturbed run")


def with_defaults(run: Record) -> Record:
    """A checkpoint's settings with those that did not exist yet when it was made, at their defaults."""
    try:
        return TrainRun.model_validate(run).model_dump(mode="json")
    except ValidationError:
        return run  # made by a later version: its settings are compared as they stand


def train(
    run: TrainRun,
    dataset: PackedDataset,
    out: Path,
    *,
    report: Callable[[Record], None] = lambda record: None,
    say: Callable[[str], None] = lambda text: None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train to the end of the dataset (or run.max_steps), or until `stop()` is true after a step.

    Writes checkpoints, metrics.jsonl and timings.jsonl under `out` and goes on from what it finds there. `report` gets
    each step's metrics with `steps`, `seconds` and `tokens_per_second` added. Raises UsageError or FormatError before
    training on what does not fit, GristmillError at a step that is not finite.
    """
    trainer = Trainer(run, dataset, out, say)
    try:
        while trainer.step < trainer.steps:
            before, began = tokens_after(dataset.manifest, trainer.step), time.perf_counter()
            record = trainer.train_step()
            seconds = time.perf_counter() - began
            timing = {
                "seconds": round(seconds, 6),
                "tokens_per_second": round((record["tokens"] - before) / seconds, 1),
            }
            trainer.metrics.write(record)
            trainer.timings.write({"step": record["step"], **timing})
            stopping = stop()
            if trainer.due() or stopping:
                trainer.save()
            report({**record, **timing, "steps": trainer.steps})
            if stopping:
                break
    finally:
        trainer.metrics.close()
        trainer.timings.close()
    return Outcome(trainer.step, trainer.steps, trainer.model)
