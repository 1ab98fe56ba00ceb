"""Run by torchrun in test_trainer_checkpoint_ranks.py: `trainer_checkpoint_ranks.py FOLDER`, on 4 ranks, then on 2."""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parent))
import pytest
import trainer_checkpoint_states as toy

from gristmill.core.errors import FormatError, GristmillError
from gristmill.trainer import storage
from gristmill.trainer.averaging import Ema, last_k_mean
from gristmill.trainer.checkpoint import AVERAGE, MODEL, OPTIMIZER
from gristmill.trainer.checkpoint_plan import box_of, local
from gristmill.trainer.checkpoint_schema import Average, Checkpoint
from gristmill.trainer.parallel import mesh
from gristmill.trainer.saver import Checkpoints

SETTINGS = Checkpoint(keep=2)
LATER = Checkpoint(keep=2, asynchronous=True)


def loads(folder: Path, tp: int, zero: int = 3) -> None:
    """The newest checkpoint of a folder into a layout, in place and into fresh tensors, equals the values."""
    world = toy.world_of(tp, zero)
    parts = toy.parts_of(toy.module_of(world, zero))
    toy.check(parts)
    toy.spoil(parts)
    saver = Checkpoints(folder, world, SETTINGS, toy.VOCAB)
    found = saver.latest()
    assert found is not None
    saver.load(found, parts)
    toy.check(parts)
    fresh = saver.like(found, OPTIMIZER, parts[MODEL])
    toy.spoil({OPTIMIZER: fresh})
    saver.load(found, {OPTIMIZER: fresh})
    toy.check({OPTIMIZER: fresh})


def saves(folder: Path, tp: int, zero: int = 3) -> None:
    world = toy.world_of(tp, zero)
    done = Checkpoints(folder, world, SETTINGS, toy.VOCAB).begin(toy.state(7), toy.parts_of(toy.module_of(world, zero)))
    assert done is not None
    assert done.state["layout"] == {"size": world.size, "dp": world.dp, "tp": tp}


def slow_put(handle: Any, data: Any) -> None:
    time.sleep(0.05)
    handle.write(data)


def overlaps(folder: Path) -> None:
    """An asynchronous save is the state of its step, while collectives and changes of the weights go on."""
    world = toy.world_of(2)
    saver = Checkpoints(folder, world, LATER, toy.VOCAB)
    plain = storage.put
    if world.rank == 1:  # one slow rank: nobody may take the checkpoint for complete before it is done
        storage.put = slow_put
    for step in (7, 9):
        parts = toy.parts_of(toy.module_of(world))
        assert saver.begin(toy.state(step), parts) is None
        assert saver.saving
        toy.spoil(parts)
        polls, done = 0, None
        while done is None:
            assert not (folder / f"{step:08d}").exists()
            ones = torch.ones(3)
            dist.all_reduce(ones)
            assert ones.tolist() == [4.0] * 3
            done, polls = saver.poll(), polls + 1
            time.sleep(0.01)
        assert polls > 1
        assert not saver.saving
        toy.spoil(parts)
        saver.load(saver.open(step), parts)
        toy.check(parts)
    storage.put = plain


def disk_full(folder: Path, settings: Checkpoint) -> None:
    """On one rank only: all ranks raise, the last checkpoint stays, nothing is left behind."""
    world = toy.world_of(2)
    saver = Checkpoints(folder, world, settings, toy.VOCAB)
    before = sorted(p.name for p in folder.iterdir())
    plain = storage.put
    if world.rank == 2:
        storage.put = toy.failing("optimizer-00002", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(GristmillError, match=r"rank 2: the checkpoint of step 20 .* No space left .* bytes, .* free"):
        saver.begin(toy.state(20), toy.parts_of(toy.module_of(world))) or saver.wait()
    storage.put = plain
    dist.barrier()
    assert sorted(p.name for p in folder.iterdir()) == before
    assert not saver.saving
    found = saver.latest()
    assert found is not None
    assert found.step == 9


def damaged(folder: Path) -> None:
    """All ranks pass over the same damaged checkpoint, whichever of them hashed the bad file."""
    world = toy.world_of(2)
    said: list[str] = []
    saver = Checkpoints(folder, world, SETTINGS, toy.VOCAB, say=said.append)
    if world.leads:
        path = folder / "00000009" / "optimizer-00003.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    dist.barrier()
    found = saver.latest()
    assert found is not None
    assert found.step == 7
    assert ("does not match its sha256" in "".join(said)) == world.leads
    with pytest.raises(FormatError, match="sha256"):
        saver.open(9)


def averages(folder: Path) -> None:
    """EMA and the mean of the last three checkpoints on shards equal the same sums over whole tensors."""
    world = toy.world_of(2)
    parameters = dict(toy.module_of(world).named_parameters())
    settings = Average(kind="last_k", k=3, every_steps=1)
    saver = Checkpoints(folder, world, Checkpoint(keep=1), toy.VOCAB, settings)
    ema = Ema(parameters, Average(kind="ema", decay=0.9))
    start = {n: local(p).clone() for n, p in parameters.items()}
    want: dict[str, torch.Tensor] = {}
    for step in range(1, 5):
        for name, p in parameters.items():
            local(p).copy_(start[name] * step)
            old = want.get(name)
            want[name] = start[name].clone() if old is None else 0.9 * old + 0.1 * local(p)
        ema.update(step)
        saver.begin(toy.state(step), {MODEL: parameters, AVERAGE: ema.tensors()})
    found = saver.latest()
    assert found is not None
    other = Ema(parameters, Average(kind="ema", decay=0.9))
    other.load(saver, found)
    for name, average in other.averages.items():
        assert torch.equal(local(average), local(ema.averages[name]))
        torch.testing.assert_close(local(average), want[name])
    for name, mean in last_k_mean(saver, parameters, settings, 4).items():
        torch.testing.assert_close(local(mean), start[name] * 3)  # (2 + 3 + 4) / 3


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    if dist.get_world_size() == 4:
        world = toy.world_of(2)
        named = dict(toy.module_of(world).named_parameters())
        strided = named["blocks.0.q.weight"]
        assert isinstance(strided, DTensor)
        assert "_StridedShard" in str(strided.placements)
        four = dict(toy.module_of(toy.world_of(1)).named_parameters())
        assert (box_of(four["norm.weight"]).sizes[0] == 0) == (world.rank == 3)
        for tp, zero in ((2, 3), (2, 0), (4, 3), (1, 3)):
            loads(folder / "one", tp, zero)
            saves(folder / f"tp{tp}-zero{zero}", tp, zero)
        loads(folder / "tp2-zero3", 1)
        loads(folder / "tp2-zero3", 4)
        loads(folder / "tp1-zero3", 2, 0)
        overlaps(folder / "async")
        disk_full(folder / "async", SETTINGS)
        disk_full(folder / "async", LATER)
        damaged(folder / "async")
        averages(folder / "averages")
    else:
        loads(folder / "tp2-zero3", 2)
        loads(folder / "tp1-zero3", 2)
        saves(folder / "two", 2)
    dist.barrier()
    mesh.leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
