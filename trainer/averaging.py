"""Averaged weights: an exponential average held beside the weights, or the mean of the last k checkpoints.

Both work on each rank's local shards: an average is elementwise, so no rank asks another. Averages are dicts of
fp32 tensors with the parameters' names and placements; `applied` puts one in the weights' place for an export or an
evaluation and takes it out again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from gristmill.core.errors import FormatError
from gristmill.trainer.checkpoint import AVERAGE, MODEL, Checkpoint
from gristmill.trainer.checkpoint_plan import local
from gristmill.trainer.checkpoint_schema import Average
from gristmill.trainer.saver import Checkpoints

PREFIX = "ema."


class Ema:
    """e <- d e + (1 - d) w, every `interval` steps with d = decay ** interval. The first update takes the weights.

    4 bytes a parameter of memory on the weights' device, sharded as they are.
    """

    def __init__(self, parameters: Mapping[str, Tensor], settings: Average) -> None:
        self.parameters, self.interval = parameters, settings.interval
        self.weight = 1.0 - settings.decay**settings.interval
        self.averages = {
            n: torch.empty_like(p, dtype=torch.float32, requires_grad=False) for n, p in parameters.items()
        }
        self._empty = True

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, if it is one of the interval's."""
        if step % self.interval:
            return
        averages = [local(t) for t in self.averages.values()]
        weights = [local(self.parameters[n]) for n in self.averages]
        if self._empty:
            torch._foreach_copy_(averages, weights)
        elif all(w.dtype == torch.float32 for w in weights):
            torch._foreach_lerp_(averages, weights, self.weight)
        else:
            torch._foreach_lerp_(averages, [w.float() for w in weights], self.weight)
        self._empty = False

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint's AVERAGE part; nothing before the first update."""
        return {} if self._empty else {PREFIX + name: t for name, t in self.averages.items()}

    def load(self, checkpoints: Checkpoints, found: Checkpoint) -> None:
        """Collective. Go on from a checkpoint; from one without an average, the next update begins anew.

        Raises FormatError when it holds an average of other parameters.
        """
        self._empty = not checkpoints.names(found, AVERAGE)
        if not self._empty:
            checkpoints.load(found, {AVERAGE: {PREFIX + name: t for name, t in self.averages.items()}})


@torch.no_grad()
def last_k_mean(
    checkpoints: Checkpoints, parameters: Mapping[str, Tensor], settings: Average, step: int, since: int = 0
) -> dict[str, Tensor]:
    """Collective. The mean of the weights of `settings.snapshots(step, since)`, from their checkpoints.

    Takes two copies of the local shards. Without any snapshot it is the weights as they are. Raises FormatError when a
    checkpoint is missing or damaged, naming the step.
    """
    steps = settings.snapshots(step, since)
    mean = {n: torch.empty_like(p, dtype=torch.float32) for n, p in parameters.items()}
    one = {n: torch.empty_like(p) for n, p in parameters.items()}
    if not steps:
        for name, tensor in mean.items():
            local(tensor).copy_(local(parameters[name]))
    for count, at in enumerate(steps, start=1):
        try:
            checkpoints.load(checkpoints.open(at), {MODEL: one})
        except FormatError as error:
            raise FormatError(
                f"the average of the last {len(steps)} checkpoints lacks step {at}: {error.message}",
                hint="set average.kind to none to export the last step's weights",
            ) from error
        for name, tensor in mean.items():
            here, other = local(tensor), local(one[name]).float()
            here.copy_(other) if count == 1 else here.lerp_(other, 1.0 / count)
    return mean


@contextlib.contextmanager
def applied(parameters: Mapping[str, Tensor], averages: Mapping[str, Tensor]) -> Iterator[None]:
    """Averages in the place of the weights, which are kept in a copy of the local shards and put back on the way out.

    Nothing may train meanwhile. With FSDP2, free gathered weights first and after (parallel.shard.settle).
    """
    weights = {name: local(parameters[name]).clone() for name in averages}
    with torch.no_grad():
        for name, average in averages.items():
            local(parameters[name]).copy_(local(average))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                local(parameters[name]).copy_(weight)
