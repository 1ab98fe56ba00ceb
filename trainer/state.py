"""One run's state on one rank, from its checkpoint or its beginning, and what a step, a save or a rewind does to it.

Per step: this rank's rows of the global batch, by index; gradients summed over micro batches and ranks of loss sum / valid
tokens of the global batch; the guard's judgement; clip and update where it is fit. The host reads numbers only after the
update.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gristmill.core.errors import UsageError
from gristmill.core.tokshards import PackedDataset
from gristmill.trainer import averaging, optim
from gristmill.trainer.branch import Source, identity
from gristmill.trainer.checkpoint import AVERAGE, MODEL, OPTIMIZER, Checkpoint, restore_rng, rng_state
from gristmill.trainer.checkpoint_schema import due
from gristmill.trainer.consumed import consumed
from gristmill.trainer.edits import FILE as EDITS_FILE
from gristmill.trainer.edits import Edits, edits_at_launch, write_edits
from gristmill.trainer.gradients import clip_coefficient
from gristmill.trainer.guards import Guard, Verdict
from gristmill.trainer.journal import Journal
from gristmill.trainer.loader import Loader, StepBatch
from gristmill.trainer.order import DataOrder
from gristmill.trainer.parallel import shard
from gristmill.trainer.parallel.mesh import World
from gristmill.trainer.parallel.tensor import local
from gristmill.trainer.resume import check_resume, with_defaults
from gristmill.trainer.saver import Checkpoints
from gristmill.trainer.schedule import LearningRate, SlowAverage
from gristmill.trainer.schema import TrainRun
from gristmill.trainer.source_loss import SourceLosses
from gristmill.trainer.stage_settings import rope_of, staged_manifest
from gristmill.trainer.startup import build_model
from gristmill.trainer.watch import Watch

Record = dict[str, Any]


class Trainer:
    """One run's state on one rank, from its checkpoint or its seed: model, optimizer, data order, step, journals."""

    def __init__(
        self,
        run: TrainRun,
        dataset: PackedDataset,
        out: Path,
        say: Callable[[str], None],
        world: World,
        tokenizer: Path | None = None,
    ) -> None:
        self.run, self.dataset, self.out, self.world, self.say = run, dataset, out, world, say
        self.manifest = staged_manifest(dataset.manifest, run.stages)
        torch.set_num_threads(run.threads)
        out.mkdir(parents=True, exist_ok=True)
        self.checkpoints = Checkpoints(
            out / "checkpoints", world, run.checkpoint, self.manifest.vocab_size, run.average, say
        )
        found = self.checkpoints.latest(say)
        self.source = Source(run, dataset.manifest, world, say) if run.branch is not None and found is None else None
        self.order = self._order(found or (self.source.position if self.source is not None else None))
        self.steps = min(self.order.steps, run.max_steps or self.order.steps)
        if not self.steps:
            raise UsageError(
                "no phase of the dataset fills one batch", hint="lower the mixture's global batch, or add data"
            )
        self.rate = LearningRate(run.optimizer.lr, run.schedule, self.order)
        self.slow = SlowAverage(run.optimizer.slow, run.optimizer.betas[0], self.order)
        for note in self.rate.notes:
            say(note)
        if found is not None:
            check_resume(run, dataset.manifest, self.order, found.state, say)
        self.model = build_model(run, self.manifest, world, say)
        self.parameters = dict(self.model.named_parameters())
        self.optimizer = optim.build(self.model, run.optimizer, world, triton=self.model.ops.name == "triton")
        for note in self.optimizer.notes:
            say(note)
        self.ema = averaging.Ema(self.parameters, run.average) if run.average.kind == "ema" else None
        self.rope = rope_of(run.model, [p.name for p in self.manifest.phases], run.stages)
        self._phase: str | None = None
        self.step = self.began = 0  # began: the step behind which a branch begins
        guard_state = None
        if found is not None:
            self._load(found)
            guard_state, self.began = found.state.get("guard"), int(found.state.get("began", 0))
            self._write_edits()  # the last launch may have made edits behind this checkpoint
            say(f"resuming after step {found.step} of {self.steps} from {found.folder.name}")
        elif self.source is not None:
            self.step = self.began = self.source.fill(self.model, self.optimizer, self.order, out)
        self.saved = self.step
        self.sources = SourceLosses(self.order.sources, world)
        self.guard = Guard(run.guards, dataset, out, world, world.device, self._newest, say, guard_state)
        self.loader = Loader(dataset, self.order, world, run, world.device)
        self.watch = Watch(run, dataset, tokenizer, out, world, self.order, self.model, self.step, say)
        self.metrics: Journal | None = None
        self.timings: Journal | None = None
        self._open_journals()

    # --- one step

    def train_step(self, step: int) -> tuple[Record, Verdict | None]:
        """Train one global batch, and say what the guard makes of it. Collective.

        Raises GristmillError where the guard ends the run, before a loss or gradient that is not finite is applied.
        """
        heart = self.watch.health.heart
        heart.at(step, "batch")
        batch = self.loader.batch(step)
        self._enter(batch.phase)
        heart.at(step, "compute")
        sums = self.world.sum_data(self.backward(batch)) / max(batch.valid_tokens, 1)
        norm = self.optimizer.norm()
        ok, numbers = self.guard.judge(sums[0], norm)
        heart.at(step, "update")
        lr, clip = self.rate.lr(step), self.run.optimizer.clip
        self.optimizer.at(lr, self.slow.at(step))
        self.optimizer.step(None if clip is None else clip_coefficient(norm, clip), ok)
        self.optimizer.zero_grad()
        loss, z_loss, *judged = torch.cat([sums, numbers]).tolist()  # from here on the host knows
        sources = self.sources.take()
        heart.at(step, "report")
        verdict = self.guard.after(step, judged, self.order)
        applied = verdict is None or verdict.applied
        if self.ema is not None and applied:
            self.ema.update(step)
        record = {
            "step": step,
            "phase": batch.phase,
            "loss": loss,
            "grad_norm": judged[1],
            "lr": lr,
            "tokens": self.order.tokens_after(step),
            "samples": self.order.samples_after(step),
            "valid_tokens": batch.valid_tokens,
            **({"z_loss": z_loss} if self.run.loss.z_loss else {}),
            **({"source_loss": sources} if len(self.order.sources) > 1 else {}),
            **({} if applied else {"applied": False}),
        }
        return record, verdict

    def backward(self, batch: StepBatch) -> Tensor:
        """Gradients of a step's rows of this rank. Returns its cross-entropy and z-loss, summed in float64: (2,)."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.world.device)
        weights_S = self._weights(batch.phase)
        first = 0
        for i, micro in enumerate(batch.micros):
            shard.before_micro_batch(self.model, self.run.parallel.zero, i == len(batch.micros) - 1)
            given = (micro.tokens_BT, micro.labels_BT, micro.position_BT, micro.documents)
            z_loss: Tensor | None = None
            if self.run.loss.z_loss:
                nll_BT, lse_BT = self.model.token_losses(*given)
                z_loss = self.run.loss.z_loss * lse_BT.square().sum()
            else:
                nll_BT = self.model.token_loss(*given)
            entropy = nll_BT.sum()
            total = entropy if weights_S is None else (nll_BT * weights_S[micro.source_BT.long()]).sum()
            total = total if z_loss is None else total + z_loss
            (total / max(batch.valid_tokens, 1)).backward()  # type: ignore[no-untyped-call]
            sums[0] += entropy.detach()
            if z_loss is not None:
                sums[1] += z_loss.detach()
            if len(self.order.sources) > 1:
                self.sources.add(nll_BT, micro.labels_BT, micro.source_BT)
            rows = batch.rows[first : first + len(micro.tokens_BT)]
            self.guard.ring.add(batch.step, rows, nll_BT, micro.labels_BT)
            first += len(micro.tokens_BT)
        return sums

    def _weights(self, phase: str) -> Tensor | None:
        """(sources + 1,) loss weights of a phase, the last for labels without a source; None: all 1."""
        own = dict(self.manifest.phase(phase).loss_weights)  # the mixture's; the run's go before them
        own |= self.run.stages[phase].loss_weights if phase in self.run.stages else {}
        if all(weight == 1.0 for weight in own.values()):
            return None
        return torch.tensor([*(own.get(name, 1.0) for name in self.order.sources), 1.0], device=self.world.device)

    def _enter(self, phase: str) -> None:
        """The rotary settings of a stage, where they differ from the last one's."""
        if phase != self._phase and self.run.stages:
            self.model.set_rope(self.rope[phase])
        self._phase = phase

    # --- the data order

    def next_step(self) -> int | None:
        step = self.order.next_step(self.step)
        return step if step is not None and step <= self.steps else None

    def follow(self, verdict: Verdict) -> bool:
        """Do what the guard said. Returns whether the step counts (as trained or left out): else it runs again, or the run
        went back."""
        if verdict.edits:
            self.order = self.order.edited(*verdict.edits)
            self._write_edits()  # a limit of actions may end the run before its next checkpoint
        if verdict.action == "rewind":
            self._rewind(verdict.to_step or 0)
        counts = verdict.action in ("warn", "skip_update")
        if verdict.edits:
            self.loader.reset(self.order, self.order.next_step(verdict.step if counts else self.step) or self.steps)
        return counts

    def _order(self, found: Checkpoint | None) -> DataOrder:
        run = self.run
        if found is None:
            edits = edits_at_launch(run.data, None)
        else:
            ramp = TrainRun.model_validate(with_defaults(found.state["run"])).data.batch_ramp
            saved = Edits.from_json(found.state.get("edits", []))
            at = {"step": found.step, "sample": int(found.state["samples"])}
            edits = edits_at_launch(run.data, saved, ramp=ramp, **at)
        return DataOrder(self.manifest, run.data.batch_ramp, edits)

    def _newest(self, before: int) -> int:
        """The step of the newest whole checkpoint before a step, 0 if there is none."""
        self.checkpoints.wait()
        found = self.checkpoints.latest(self.say, before - 1)
        return found.step if found is not None else 0

    def _rewind(self, step: int) -> None:
        """Go back to the state after `step`; the edits of the order stay."""
        state: Record | None = None
        if step:
            found = self.checkpoints.open(step)
            self._load(found)
            state = found.state.get("guard")
        else:
            for state_tensor in self.optimizer.state_tensors().values():
                local(state_tensor).zero_()
            if self.ema is not None:
                self.ema = averaging.Ema(self.parameters, self.run.average)
            if self.run.branch is None:
                self.model.init_weights(self.run.seed)
            else:
                self.source = self.source or Source(self.run, self.dataset.manifest, self.world, self.say)
                self.source.fill(self.model, self.optimizer, self.order, self.out)
            self.step = self.began
        self.checkpoints.forget_after(self.step)
        self.saved = self.step
        self._phase = None
        self.guard.rewound(state)
        self.watch.rewind(self.step)
        self._open_journals()

    # --- the state on disk

    def _load(self, found: Checkpoint) -> None:
        shard.settle(self.model)
        self.checkpoints.load(found, {MODEL: self.parameters, OPTIMIZER: self.optimizer.state_tensors()})
        if self.ema is not None:
            self.ema.load(self.checkpoints, found)
        restore_rng(found.state.get("rng", {}))
        self.step = found.step

    def save(self) -> None:
        """Checkpoint the state after the current step; journals first, as a resume relies on them. Collective."""
        self.watch.health.heart.at(self.step, "save")
        self.loader.check()
        if self.metrics is not None:
            self.metrics.sync()
        self.watch.before_save(self.step, self.due())
        state = {
            "step": self.step,
            "samples": self.order.samples_after(self.step),
            "tokens": self.order.tokens_after(self.step),
            "dataset_digest": self.manifest_digest,
            "vocab_size": self.manifest.vocab_size,
            "began": self.began,
            **identity(self.dataset.manifest),
            "consumed": consumed(self.order, self.order.samples_after(self.step)),
            "edits": self.order.edits.to_json(),
            "edits_digest": self.order.edits.digest,
            "guard": self.guard.state_dict(),
            "rng": rng_state(),
            "run": self.run.model_dump(mode="json"),
            "torch": torch.__version__,
        }
        parts: dict[str, dict[str, Tensor]] = {MODEL: dict(self.parameters), OPTIMIZER: self.optimizer.state_tensors()}
        if self.ema is not None and (averages := self.ema.tensors()):
            parts[AVERAGE] = averages
        self.checkpoints.begin(state, parts)
        self._write_edits()
        self.saved = self.step

    def _write_edits(self) -> None:
        """edits.json as the data order is now; no file where nothing was edited."""
        if not self.world.leads:
            return
        if len(self.order.edits):
            write_edits(self.out / EDITS_FILE, self.order.edits)
        else:
            (self.out / EDITS_FILE).unlink(missing_ok=True)

    @property
    def manifest_digest(self) -> str:
        """Of the dataset as it is, whatever this run's `stages` say."""
        return self.dataset.manifest.digest

    def edge(self) -> bool:
        """Whether the current step ends a stage or the run."""
        return self.step == self.steps or any(self.step == phase.last_step for phase in self.order.phases)

    def place(self) -> Record:
        """Where the current step stands in its stage."""
        stage = next(p for p in self.order.phases if p.first_step <= self.step <= p.last_step)
        return {"phase_step": self.step - stage.first_step + 1, "phase_steps": stage.steps}

    def due(self) -> bool:
        """Whether a checkpoint falls on the current step."""
        return self.edge() or due(self.step, self.run.checkpoint, self.run.average)

    def averages(self) -> dict[str, Tensor]:
        """The averaged weights to export, empty where the run keeps none. Collective."""
        if self.run.average.kind == "last_k":
            return averaging.last_k_mean(self.checkpoints, self.parameters, self.run.average, self.step, self.began)
        return {} if self.ema is None or not self.ema.tensors() else self.ema.averages

    def _open_journals(self) -> None:
        self._close_journals()
        if self.world.leads:
            needed = [step for step in range(1, self.step + 1) if self.order.samples_of_step(step)]
            self.metrics = Journal(self.out / "metrics.jsonl", self.step, complete=True, needed=needed)
            self.timings = Journal(self.out / "timings.jsonl", self.step, complete=False)

    def _close_journals(self) -> None:
        for journal in (self.metrics, self.timings):
            if journal is not None:
                journal.close()

    def close(self) -> None:
        self._close_journals()
        self.loader.close()
        self.guard.close()
        self.watch.close()
        self.checkpoints.close()
