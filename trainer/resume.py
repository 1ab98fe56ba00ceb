"""Whether a checkpoint belongs to a run and its data, and what may change between the two. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from gristmill.core.errors import FormatError, UsageError
from gristmill.core.settings import dotted, flatten
from gristmill.core.tokshards import PackedManifest
from gristmill.trainer.consumed import chained, differences
from gristmill.trainer.order import DataOrder
from gristmill.trainer.schema import TrainRun

FREE = {  # may change on resume: none of it decides a weight, or (data, guards) each change is an edit or judged anew
    "average",
    "checkpoint",
    "data",
    "evaluate",
    "gallery",
    "generate",
    "guards",
    "ladder",
    "log_every",
    "max_steps",
    "mixture",
    "peak_tflops",
    "track",
    "verify_shards",
}
ROUNDING = {
    "threads",
    "kernels",
    "device",
    "parallel",
    "micro_batch_rows",
}  # may change, but then sums round differently
MOVED = {("branch", "run"), ("branch", "safetensors")}  # where a source stands; branch.sha256 says which it is
Record = dict[str, Any]


def check_resume(
    run: TrainRun, manifest: PackedManifest, order: DataOrder, state: Record, say: Callable[[str], None]
) -> None:
    """Raises UsageError when a checkpoint belongs to another dataset, vocabulary or run, FormatError when it is off its data.

    Another dataset is one whose stages up to the checkpoint have other rows (E120, by their hash chain); those behind it may
    have changed.
    """
    remedy = "give another --out, or remove this one to train from the beginning"
    if state["dataset_digest"] != manifest.digest:
        between = (
            f"the checkpoint was trained on dataset {state['dataset_digest'][:12]}, this one is {manifest.digest[:12]}"
        )
        same = chained(state, order)
        if same is not True:
            raise UsageError(between if same is None else f"{between}: {differences(state, order)}", hint=remedy)
        say(f"{between}: the stages trained so far are the same")
    if state["vocab_size"] != manifest.vocab_size:
        raise UsageError(
            f"the checkpoint has {state['vocab_size']} ids, the dataset {manifest.vocab_size}", hint=remedy
        )
    if state["samples"] != order.samples_after(state["step"]):
        raise FormatError(f"the checkpoint of step {state['step']} stands at sample {state['samples']}", hint=remedy)
    old, new = flatten(with_defaults(state["run"])), flatten(run.model_dump(mode="json"))
    for path in sorted({*old, *new}, key=dotted):
        if old.get(path) == new.get(path) or path[0] in FREE or path in MOVED:
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
