"""Optimizers over a toy model, in one process or on 4 ranks (dp 2 x tp 2, sharded and replicated), skipped steps included.

The file is also what torchrun runs on each rank: `python -m torch.distributed.run --nproc-per-node 4 THIS OUT KERNELS`,
with KERNELS torch or triton. It writes OUT/KIND-ZERO.safetensors and OUT/untouched.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from gristmill.trainer import optim
from gristmill.trainer.gradients import clip_coefficient
from gristmill.trainer.optim_schema import Optimizer
from gristmill.trainer.optim_shards import Layout, layouts, local, placed_as
from gristmill.trainer.parallel import mesh
from gristmill.trainer.schedule import Mixing

STEPS, RESUMED, SKIPPED, CLIP, LR = 5, 3, 4, 2.0, 1e-2
KINDS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "muon": {"muon": {"ns_precision": "fp32"}},
    "muon-bf16": {"muon": {}},
    "ademamix": {"ademamix": {"beta3": 0.99}, "groups": [{"match": "head*", "lr_multiplier": 0.5}]},
}
ZERO = (3, 0)
CASES = [(kind, zero) for kind in KINDS for zero in ZERO]
TRITON_CASES = [("adamw", 3), ("adamw", 0), ("ademamix", 3), ("muon", 3)]  # the interpreter is slow
SHAPES = {  # name: shape and the dimension that tensor parallelism cuts
    "embed.weight": ((12, 8), 0),
    "blocks.0.q.weight": ((6, 8), 0),  # 3 rows per tp rank, 2 and 1 per rank
    "blocks.0.k.weight": ((3, 8), None),  # replicated over tp: fewer heads than ranks
    "blocks.0.v.weight": ((2, 8), 0),  # 1 row per tp rank: nothing on half of the ranks
    "blocks.0.down.weight": ((8, 20), 1),
    "blocks.0.square.weight": ((16, 16), 0),
    "blocks.0.norm.weight": ((8,), None),
    "blocks.0.scalar.weight": ((1,), None),
    "head.weight": ((12, 8), 0),
}


def value(name: str, step: int) -> Tensor:
    """The same numbers in every process: step 0 are the weights, others a step's gradient."""
    seed = 1000 * step + list(SHAPES).index(name)
    return torch.randn(SHAPES[name][0], generator=torch.Generator().manual_seed(seed))


class Toy(nn.Module):
    """Parameters of the names in SHAPES, cut over tp where there is a mesh; the loss is half the sum of squares."""

    def __init__(self, world: mesh.World) -> None:
        super().__init__()
        for name, (_, dim) in SHAPES.items():
            owner: nn.Module = self
            *path, leaf = name.split(".")
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            whole = value(name, 0)
            if world.mesh is not None:
                whole = distribute_tensor(whole, world.mesh[mesh.TP], [Replicate() if dim is None else Shard(dim)])
            owner.register_parameter(leaf, nn.Parameter(whole))

    def forward(self) -> Tensor:
        parts = [p.to_local() if isinstance(p, DTensor) else p for p in self.parameters()]
        return torch.stack([part.square().sum() / 2 for part in parts]).sum()


def toy(world: mesh.World, zero: int) -> Toy:
    model = Toy(world)
    if world.mesh is not None:
        over = world.mesh[mesh.REPLICATE, mesh.SHARD] if zero == 0 else world.mesh[mesh.SHARD]
        fully_shard(model, mesh=over, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))
        assert isinstance(model, FSDPModule)
        model.set_gradient_divide_factor(1.0)
        model.set_force_sum_reduction_for_comms(True)
    return model


def settings(kind: str) -> Optimizer:
    return Optimizer.model_validate({"name": kind.partition("-")[0], "lr": LR, **KINDS[kind]})


def bits(optimizer: optim.Hybrid) -> list[Tensor]:
    tensors = [*optimizer.views.values(), *map(local, optimizer.state_tensors().values())]
    return [t.detach().clone().view(torch.int32) for t in tensors]


def train(
    kind: str, world: mesh.World, zero: int, faulty_norm: bool = False, triton: bool = False
) -> tuple[dict[str, Tensor], list[bool]]:
    """STEPS steps. The whole weights and states and the norms; whether each kind of skipped step changed nothing."""
    model = toy(world, zero)
    optimizer = optim.build(model, settings(kind), world, triton=triton)
    boxes, untouched, norms = layouts(dict(model.named_parameters()), world), [], []
    for step in range(1, STEPS + 1):
        if step == 2:
            model._apply(torch.clone)  # weights get other storage, as by model.to
        if step == 1:  # a true backward pass; FSDP2 finishes setting itself up only then, after the optimizer is built
            loss = model()
            (loss if world.size > 1 else 2 * loss).backward()  # 2 data-parallel ranks are summed
        else:
            for name, p in model.named_parameters():
                p.grad = placed_as(value(name, step)[boxes[name].mine.where].contiguous(), p)
        if faulty_norm:
            optimizer.counted = list(SHAPES)
        optimizer.at(LR * step, Mixing(2.0, 0.9))
        if step == SKIPPED:
            untouched = [skipped(optimizer, queued) for queued in (True, False)]
            for name, p in model.named_parameters():
                p.grad = placed_as(value(name, step)[boxes[name].mine.where].contiguous(), p)
        optimizer.queued = step > 2  # both the way of a CPU and that of a GPU
        norms.append(optimizer.norm())
        optimizer.step(clip_coefficient(norms[-1], CLIP), torch.tensor(True) if step != 2 else None)
        optimizer.zero_grad()
        assert all(p.grad is None for p in (*model.parameters(), *optimizer.views.values()))
        if step == RESUMED:
            state = {n: copied(t) for n, t in optimizer.state_tensors().items()}
            optimizer = optim.build(model, settings(kind), world, triton=triton)
            optimizer.load_state(state)
    out = {n: whole(local(p), boxes[n], world) for n, p in model.named_parameters()}
    for name, tensor in optimizer.state_tensors().items():
        owner, _, key = name.rpartition(".")
        out[name] = tensor.clone() if key == "step" else whole(local(tensor), boxes[owner], world)
    return {**out, "norms": torch.stack(norms)}, untouched


def skipped(optimizer: optim.Hybrid, queued: bool) -> bool:
    """Whether a step with NaN and inf gradients that is not ok leaves every bit, also of -0."""
    first = optimizer.views["embed.weight"].detach().view(-1)[:1]
    kept = first.clone()
    first.fill_(-0.0)
    before = bits(optimizer)
    for i, p in enumerate(optimizer.named.values()):
        part = torch.full_like(local(p), (float("nan"), float("inf"))[i % 2])
        p.grad = placed_as(part, p)
    optimizer.queued = queued
    norm = optimizer.norm()
    optimizer.step(clip_coefficient(norm, CLIP), norm.isfinite())
    same = all(torch.equal(a, b) for a, b in zip(before, bits(optimizer), strict=True))
    first.copy_(kept)
    return same and not norm.isfinite()


def copied(tensor: Tensor) -> Tensor:
    return placed_as(local(tensor).clone(), tensor)


def whole(part: Tensor, layout: Layout, world: mesh.World) -> Tensor:
    out = torch.zeros(layout.shape)
    if layout.mine.counts:
        out[layout.mine.where] = part.detach()
    return world.sum(out)


def launch(out: Path, kernels: str, **environment: str) -> None:
    """Run this file on 4 ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    done = subprocess.run(
        [*command, __file__, str(out), kernels],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def main(out: Path, kernels: str) -> None:
    torch.set_num_threads(1)
    report = {}
    for kind, zero in TRITON_CASES if kernels == "triton" else CASES:
        world = mesh.start(torch.device("cpu"), tp=2, zero=zero)
        got, untouched = train(kind, world, zero, triton=kernels == "triton")
        if kind == "adamw" and kernels == "torch":
            got["faulty norms"] = train(kind, world, zero, faulty_norm=True)[0]["norms"]
        report[f"{kind} {zero}"] = [int(world.sum(torch.tensor(int(not flag)))) == 0 for flag in untouched]
        if world.leads:
            save_file({k: t.detach().contiguous() for k, t in got.items()}, out / f"{kind}-{zero}.safetensors")
    if world.leads:
        (out / "untouched.json").write_text(json.dumps(report))
    world.barrier()
    mesh.leave(0)


ONE = mesh.World(torch.device("cpu"))
BOUND = 1e-6  # relative to the largest value of a tensor


def apart(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).abs().max() / want.double().abs().max().clamp(min=1e-30))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
