"""A toy state for checkpoint tests: the same global values in every layout, and the state.json around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard

from gristmill.core.hashing import seed_of
from gristmill.trainer.checkpoint import MODEL, OPTIMIZER
from gristmill.trainer.checkpoint_plan import box_of, local
from gristmill.trainer.parallel.mesh import REPLICATE, SHARD, TP, World

VOCAB = 130  # padded: 192 rows at tp 1, 256 at tp 2 and 4
SHAPES = {  # name -> global shape (None: the padded vocabulary), the dimension that tp cuts
    "embed.weight": ((None, 12), 0),
    "blocks.0.q.weight": ((16, 12), 0),  # FSDP2 over it: a strided shard
    "blocks.0.o.weight": ((12, 16), 1),
    "blocks.0.k.weight": ((6, 12), None),  # replicated over tp
    "norm.weight": ((3,), None),  # fewer rows than 4 ranks: an empty shard
    "head.weight": ((None, 12), 0),
}


def values(key: str, shape: tuple[int | None, ...]) -> Tensor:
    """The real rows of a tensor, a function of its name."""
    generator = torch.Generator().manual_seed(seed_of(key) % 2**62)
    return torch.randn([VOCAB if n is None else n for n in shape], generator=generator)


def padded(full: Tensor, shape: tuple[int | None, ...], tp: int) -> Tensor:
    if shape[0] is not None:
        return full
    out = torch.zeros(-(-VOCAB // (64 * tp)) * 64 * tp, *full.shape[1:])
    out[:VOCAB] = full
    return out


def world_of(tp: int, zero: int = 3) -> World:
    """The running ranks as dp x tp, whatever other layouts the process has."""
    import torch.distributed as dist

    size, rank = dist.get_world_size(), dist.get_rank()
    dp = size // tp
    shape = (dp, 1, tp) if zero == 0 else (1, dp, tp)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=(REPLICATE, SHARD, TP))
    return World(torch.device("cpu"), rank, size, tp, mesh)


def module_of(world: World, zero: int = 3) -> nn.Module:
    """A module with the toy's parameters: plain, or as FSDP2 over tensor-parallel DTensors makes them."""
    root = nn.Module()
    for name, (shape, dim) in SHAPES.items():
        *path, last = name.split(".")
        owner = root
        for step in path:
            if step not in dict(owner.named_children()):
                owner.add_module(step, nn.Module())
            owner = owner.get_submodule(step)
        full = padded(values(f"{MODEL}/{name}", shape), shape, world.tp)
        if world.mesh is not None:
            cut = full if dim is None else full.chunk(world.tp, dim)[world.tp_rank].contiguous()
            placement: Any = Replicate() if dim is None else Shard(dim)
            full = DTensor.from_local(
                cut, world.mesh[TP], [placement], run_check=False, shape=full.shape, stride=full.stride()
            )
        owner.register_parameter(last, nn.Parameter(full))
    if world.mesh is not None:
        fully_shard(root, mesh=world.mesh[REPLICATE, SHARD] if zero == 0 else world.mesh[SHARD])
    return root


def parts_of(module: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Model and optimizer parts: two moments and a plain count a parameter, filled with the toy's values."""
    parts: dict[str, dict[str, Tensor]] = {MODEL: dict(module.named_parameters()), OPTIMIZER: {}}
    for name, p in parts[MODEL].items():
        for key in ("exp_avg", "exp_avg_sq"):
            moment = torch.empty_like(p, requires_grad=False)
            fill(f"{OPTIMIZER}/{name}.{key}", moment, SHAPES[name][0])
            parts[OPTIMIZER][f"{name}.{key}"] = moment
        parts[OPTIMIZER][f"{name}.step"] = torch.tensor(7.0)
    return parts


def wanted(key: str, tensor: Tensor, shape: tuple[int | None, ...]) -> Tensor:
    """What this rank's part of a tensor must hold."""
    full = values(key, shape)
    if shape[0] is None:
        full = torch.cat([full, torch.zeros(tensor.shape[0] - VOCAB, *full.shape[1:])])
    box = box_of(tensor)
    return full[tuple(slice(o, o + n) for o, n in zip(box.offsets, box.sizes, strict=True))]


def fill(key: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    local(tensor).copy_(wanted(key, tensor, shape))


def spoil(parts: dict[str, dict[str, Tensor]]) -> None:
    for named in parts.values():
        for tensor in named.values():
            local(tensor).fill_(float("nan"))


def check(parts: dict[str, dict[str, Tensor]]) -> None:
    """Every local part bit for bit, padding zero, counts too."""
    for part, named in parts.items():
        for name, tensor in named.items():
            if name.endswith(".step"):
                assert float(tensor) == 7.0, name
                continue
            shape = next(s for n, (s, _) in SHAPES.items() if name.startswith(n))
            assert torch.equal(local(tensor), wanted(f"{part}/{name}", tensor, shape)), f"{part}/{name}"


def state(step: int) -> dict[str, Any]:
    return {"step": step, "samples": 8 * step, "tokens": 64 * step, "dataset_digest": "0" * 64, "vocab_size": VOCAB} | {
        "run": {}
    }


def hidden(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


def failing(at: str, error: OSError) -> Any:
    """A `storage.put` that fails in the file whose name starts with `at`; if it holds tensors, after its header."""

    def put(handle: Any, data: Any) -> None:
        name = Path(handle.name).name
        if name.startswith(at) and (handle.tell() or name.endswith(".json")):
            raise error
        handle.write(data)

    return put
