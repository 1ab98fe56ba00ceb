"""TensorBoard and Weights & Biases, both optional: the numbers and texts that the run's own files hold, drawn elsewhere.

A tracker is a guest: one that fails after the start is said once and left out, and the run goes on. Keys are the run's
own, W&B's environment (WANDB_MODE=offline, WANDB_PROJECT, WANDB_DIR …) is left to W&B.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from gristmill.core.errors import UsageError

SPEEDS = ("tokens_per_second", "tflops", "mfu", "memory_bytes", "data_wait", "seconds")
METRICS = ("loss", "grad_norm", "lr", "tokens", "samples", "valid_tokens", "z_loss")

Record = dict[str, Any]


class Sink(Protocol):
    """What a tracker does."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def texts(self, step: int, values: Mapping[str, str]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in OUT/tensorboard. On resume, points after the checkpoint's step are marked to be left out."""

    def __init__(self, out: Path, settings: Record, step: int) -> None:
        _need("tensorboard", "tensorboard")
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(log_dir=str(out / "tensorboard"), purge_step=step + 1 if step else None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def texts(self, step: int, values: Mapping[str, str]) -> None:
        for name, text in values.items():
            self._writer.add_text(name, "    " + text.replace("\n", "\n    "), step)  # as code, not as Markdown

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A W&B run whose id is kept in OUT/wandb.id, so that a resumed run goes on in the same one.

    Values carry their step themselves: W&B's own step only grows, and a resumed run trains steps again.
    """

    def __init__(self, out: Path, settings: Record, step: int) -> None:
        self._wandb = _need("wandb", "wandb")
        kept = out / "wandb.id"
        known = kept.read_text().strip() if kept.exists() else None
        self._run = self._wandb.init(dir=str(out), id=known, resume="allow", config=settings)
        kept.write_text(str(self._run.id))
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def texts(self, step: int, values: Mapping[str, str]) -> None:
        table = self._wandb.Table(columns=["step", "prompt", "text"])
        for name, text in values.items():
            table.add_data(step, name, text)
        self._run.log({"step": step, "samples": table})

    def close(self) -> None:
        self._run.finish()


KINDS: dict[str, Callable[[Path, Record, int], Sink]] = {"tensorboard": TensorBoard, "wandb": Wandb}


class Trackers:
    """All trackers of a run; with none, every method does nothing. Only the first process has any."""

    def __init__(
        self, names: Sequence[str], out: Path, settings: Record, step: int, say: Callable[[str], None]
    ) -> None:
        """`settings`: of the run, to be shown. `step`: where it stands. Raises UsageError where a package is missing."""
        self._say = say
        self._sinks = {name: KINDS[name](out, settings, step) for name in dict.fromkeys(names)}

    def step(self, record: Record) -> None:
        """A step's metrics and timing."""
        values = {f"train/{n}": record[n] for n in METRICS if n in record}
        values |= {f"source/{n}": loss for n, loss in (record.get("source_loss") or {}).items()}
        values |= {f"speed/{n}": record[n] for n in SPEEDS if n in record}
        self._each(lambda sink: sink.scalars(record["step"], values))

    def evaluation(self, record: Record) -> None:
        """A row of evaluations.jsonl."""
        values = {f"heldout/{n}/bits_per_byte": found["bits_per_byte"] for n, found in record["heldout"].items()}
        for name, found in record["tasks"].items():
            keys = ("accuracy", "accuracy_per_char", "gold_logprob_per_char")
            values |= {f"task/{name}/{key}": found[key] for key in keys if key in found}
        self._each(lambda sink: sink.scalars(record["step"], values))

    def samples(self, record: Record | None) -> None:
        """What `generate.write_samples` returned."""
        if record is not None:
            texts = {f"sample/{i} {s['prompt']}": s["text"] for i, s in enumerate(record["samples"])}
            self._each(lambda sink: sink.texts(record["step"], texts))

    def close(self) -> None:
        self._each(lambda sink: sink.close())
        self._sinks = {}

    def _each(self, act: Callable[[Sink], None]) -> None:
        for name, sink in list(self._sinks.items()):
            try:
                act(sink)
            except Exception as error:  # whatever a network or a disk does to a guest
                del self._sinks[name]
                self._say(f"{name} failed and is left out from here on: {type(error).__name__}: {error}")


def _need(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"track: {extra} needs a package that is not installed", hint=f"pip install 'gristmill[{extra}]'"
        ) from error
