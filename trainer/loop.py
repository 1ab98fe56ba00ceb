"""The training loop of every process of a run, resumed exactly from its last checkpoint.

metrics.jsonl holds only functions of the state, so a killed and resumed run gives the same bytes as an undisturbed one
(CPU, one layout, one thread count); seconds go to timings.jsonl.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gristmill.core.tokshards import PackedDataset
from gristmill.trainer import averaging
from gristmill.trainer.model import Decoder
from gristmill.trainer.parallel import shard
from gristmill.trainer.parallel.mesh import World
from gristmill.trainer.schema import TrainRun
from gristmill.trainer.startup import pick_device
from gristmill.trainer.state import Trainer

Record = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended: at `step` of `steps`; stopped early by `stop` when not finished."""

    step: int
    steps: int
    model: Decoder
    finished: bool
    averages: dict[str, Tensor]

    def averaged(self) -> AbstractContextManager[None]:
        """The run's averaged weights in the model's place, where it keeps any, for an export."""
        if not self.averages:
            return nullcontext()
        shard.settle(self.model)
        return averaging.applied(dict(self.model.named_parameters()), self.averages)


def train(
    run: TrainRun,
    dataset: PackedDataset,
    out: Path,
    *,
    report: Callable[[Record], None] = lambda record: None,
    say: Callable[[str], None] = lambda text: None,
    stop: Callable[[], bool] = lambda: False,
    world: World | None = None,
    tokenizer: Path | None = None,
) -> Outcome:
    """Train to the end of the dataset (or run.max_steps), or until `stop()` is true after a step.

    Writes checkpoints, metrics.jsonl and timings.jsonl under `out` and goes on from what it finds there. `report` gets
    each step's metrics with `steps` and its timing added. Every process of `world` (None: this one alone) calls this;
    `stop` must give the same on all. Raises UsageError or FormatError before training on what does not fit,
    GristmillError where a guard ends the run.
    """
    world = world or World(pick_device(run.device))
    trainer = Trainer(run, dataset, out, say, world, tokenizer)
    try:
        finished = _run(trainer, report, stop)
        trainer.checkpoints.wait()
        averages = trainer.averages() if finished else {}
    finally:
        trainer.close()
    return Outcome(trainer.step, trainer.steps, trainer.model, finished, averages)


def _run(trainer: Trainer, report: Callable[[Record], None], stop: Callable[[], bool]) -> bool:
    """Steps until the run ends (True) or is told to stop (False)."""
    while (step := trainer.next_step()) is not None:
        before, began = trainer.order.tokens_after(step - 1), time.perf_counter()
        waited = trainer.loader.wait_seconds
        record, verdict = trainer.train_step(step)
        seconds = time.perf_counter() - began
        waited = trainer.loader.wait_seconds - waited
        if verdict is not None and not trainer.follow(verdict):
            continue
        trainer.step = step
        timing = trainer.watch.timing(step, record["tokens"] - before, seconds, waited)
        if trainer.metrics is not None and trainer.timings is not None:
            trainer.metrics.write(record)
            trainer.timings.write({"step": step, **timing})
        trainer.watch.after_step({**record, **timing}, trainer.edge())
        stopping = stop()
        if trainer.due() or stopping:
            trainer.save()
        trainer.checkpoints.poll()
        report({**record, **timing, **trainer.place(), "steps": trainer.steps})
        if stopping and trainer.next_step() is not None:
            trainer.loader.finish()
            return False
    trainer.loader.finish()
    if trainer.saved != trainer.step:  # the last steps were skipped
        trainer.save()
    return True
