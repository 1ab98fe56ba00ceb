"""What is looked at while a run trains: evaluations, samples, trackers, speed and health, none of which decides a weight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gristmill.core.tokshards import PackedDataset
from gristmill.trainer import generate
from gristmill.trainer.evaluate import Evaluator, open_tokenizer
from gristmill.trainer.health import Health
from gristmill.trainer.model import Decoder
from gristmill.trainer.order import DataOrder
from gristmill.trainer.parallel.mesh import World
from gristmill.trainer.progress import Meter, evaluation_line, find_peak
from gristmill.trainer.schema import TrainRun
from gristmill.trainer.trackers import Trackers

Record = dict[str, Any]


class Watch:
    """One rank's view of a run; collective where the model is asked. Without a tokenizer nothing is evaluated or sampled."""

    def __init__(
        self,
        run: TrainRun,
        dataset: PackedDataset,
        tokenizer: Path | None,
        out: Path,
        world: World,
        order: DataOrder,
        model: Decoder,
        step: int,
        say: Callable[[str], None],
    ) -> None:
        self.run, self.out, self.world, self.order, self.model, self.say = run, out, world, order, model, say
        self.special_ids = dataset.manifest.special_ids
        peak = find_peak(world.device.type, run.precision, run.peak_tflops)
        self.meter = Meter(model.flops_per_token, peak, world.size, world.device.type)
        self.codec = open_tokenizer(tokenizer) if tokenizer is not None else None
        self.evaluator: Evaluator | None = None
        if tokenizer is not None:
            rows = run.micro_batch_rows
            self.evaluator = Evaluator(run.evaluate, dataset, tokenizer, out, world, step=step, rows=rows, say=say)
        names = run.track if world.leads else ()
        self.trackers = Trackers(names, out, run.model_dump(mode="json"), step, say)
        self.health = Health(run.guards, world, out, say)
        self._drop_samples(step)

    def timing(self, step: int, tokens: int, seconds: float, waited: float) -> Record:
        """The timing record of a step; compares the ranks' pace now and then."""
        seq_len = self.order.span(step).phase.seq_len
        self.health.step(step, seconds, tokens, waited)
        return self.meter.timing(tokens=tokens, seq_len=seq_len, seconds=seconds, wait=waited)

    def after_step(self, record: Record, edge: bool) -> None:
        """Tell the trackers, and evaluate where it is due. `edge`: the step ends a stage or the run."""
        self.trackers.step(record)
        step = record["step"]
        if self.evaluator is not None and self.evaluator.due(step, edge=edge):
            self.health.heart.at(step, "evaluate")
            found = self.evaluator(self.model, step, record["phase"])
            self.say(evaluation_line(found))
            self.trackers.evaluation(found)

    def before_save(self, step: int, due: bool) -> None:
        """Samples of the state to be saved where a checkpoint was `due` (a stop adds none), and rows on disk."""
        if self.evaluator is not None:
            self.evaluator.sync()
        if self.codec is not None and due:
            phase = self.order.span(step).phase.name
            samples = generate.write_samples(
                self.model,
                self.codec,
                self.run.gallery,
                self.special_ids,
                self.out,
                step=step,
                phase=phase,
                world=self.world,
            )
            self.trackers.samples(samples)

    def rewind(self, step: int) -> None:
        """The run went back: what was measured after `step` is gone."""
        if self.evaluator is not None:
            self.evaluator.rewind(step)
        self._drop_samples(step)

    def close(self) -> None:
        if self.evaluator is not None:
            self.evaluator.close()
        self.trackers.close()
        self.health.close()

    def _drop_samples(self, step: int) -> None:
        if self.world.leads:
            generate.drop_samples(self.out, step)
