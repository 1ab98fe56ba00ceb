"""What a run begins with: its device and its initial model over the processes of a world."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gristmill.core.errors import UsageError
from gristmill.core.tokshards import PackedManifest
from gristmill.trainer.kernels.ops import choose
from gristmill.trainer.model import Decoder
from gristmill.trainer.ops import TORCH
from gristmill.trainer.parallel import shard
from gristmill.trainer.parallel.mesh import World
from gristmill.trainer.schema import TrainRun


def build_model(
    run: TrainRun, manifest: PackedManifest, world: World, say: Callable[[str], None] = lambda text: None
) -> Decoder:
    """The initial model for a dataset. Raises UsageError when its rotary table is shorter than a phase's rows."""
    longest = max((phase.seq_len for phase in manifest.phases), default=0)
    length = run.model.max_seq_len or longest
    if length < longest:
        raise UsageError(
            f"model.max_seq_len is {length}, the dataset has rows of {longest} tokens",
            hint="raise it, or leave it out to take the longest phase",
        )
    compute = torch.bfloat16 if run.precision == "bf16" else None
    ops, why = choose(run.kernels, world.device, compute or torch.float32, run.model.head_dim)
    if ops is not TORCH:
        say(why)
    model = shard.build(run.model, manifest.vocab_size, length, world, run.parallel, compute, ops)
    model.init_weights(run.seed)
    return model


def pick_device(name: str) -> torch.device:
    """`auto` is cuda where there is one, else cpu. Raises UsageError when cuda is asked for and absent."""
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UsageError("device: cuda, but torch sees no GPU", hint="use device: auto or cpu")
    return torch.device("cuda" if there and name != "cpu" else "cpu")
