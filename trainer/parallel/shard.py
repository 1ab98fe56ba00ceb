"""A decoder over the processes of a World: parameters cut over tensor-parallel ranks, then sharded by FSDP2.

Every parameter becomes a DTensor on the tp mesh (norms are replicated there), so clipping, optimizers and checkpoints
see one kind of thing; the forward pass takes the local parts. FSDP2 is mapped to ZeRO's words as follows:
  zero 0  weights replicated over data-parallel ranks, gradients summed once a step
  zero 1  fp32 weights and optimizer state sharded; gathered weights and whole gradients live through the step
  zero 2  gradients reduced and cut after every micro batch
  zero 3  gathered weights are freed after each use, too
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate, Shard

from gristmill.core.errors import UsageError
from gristmill.trainer.architecture import Model
from gristmill.trainer.capacity import cannot_split
from gristmill.trainer.model import Decoder
from gristmill.trainer.ops import TORCH, Ops
from gristmill.trainer.parallel.mesh import REPLICATE, SHARD, TP, World
from gristmill.trainer.parallel.tensor import TensorParallel
from gristmill.trainer.schema import Parallel

COLUMN = ("embed.weight", "head.weight", "q.weight", "k.weight", "v.weight", "gate.weight", "up.weight")
ROW = ("o.weight", "down.weight")
ALL_GATHERED = ("forward", "token_losses", "token_loss", "loss")  # calls that need the root's weights


def build(
    config: Model,
    vocab_size: int,
    max_seq_len: int,
    world: World,
    settings: Parallel,
    compute: torch.dtype | None = None,
    ops: Ops = TORCH,
) -> Decoder:
    """The decoder of this process, on its device, its weights not set yet. `compute` None: fp32.

    Raises UsageError when the shape cannot be cut over `settings.tp` ranks.
    """
    tp = TensorParallel(
        world.tp, world.tp_rank, world.tp_group, settings.sequence and world.tp > 1, settings.reduce == "fp32"
    )
    if why := cannot_split(config, tp.size):
        raise UsageError(f"parallel.tp: {why}", hint="take a tp that divides the heads and ffn")
    with torch.device("meta" if world.size > 1 else world.device):
        model = Decoder(config, vocab_size, max_seq_len, tp, compute, settings.checkpointing, ops)
    if settings.compile:
        model.pieces = False  # pieces change with every batch, and each change compiles anew
    if world.mesh is not None:
        _distribute(model, world, settings, compute)
    if settings.compile:
        for block in model.blocks:
            block.compile()
    return model


def _distribute(model: Decoder, world: World, settings: Parallel, compute: torch.dtype | None) -> None:
    assert world.mesh is not None
    for name, parameter in list(model.named_parameters()):
        owner = model.get_submodule(name.rpartition(".")[0])
        setattr(owner, name.rpartition(".")[2], nn.Parameter(_cut(name, parameter, model, world)))
    mesh = world.mesh[REPLICATE, SHARD] if settings.zero == 0 else world.mesh[SHARD]
    policy = MixedPrecisionPolicy(
        param_dtype=compute,
        reduce_dtype=torch.float32 if settings.reduce == "fp32" else compute,
        cast_forward_inputs=False,
    )
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh, reshard_after_forward=settings.zero == 3, mp_policy=policy)
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)  # sums: the loss is divided by the global batch's valid tokens
        module.set_force_sum_reduction_for_comms(True)  # gloo has no premultiplied sum
    for method in ALL_GATHERED[1:]:
        register_fsdp_forward_method(model, method)
    model.to_empty(device=world.device)
    model.set_rope(model.config)


def _cut(name: str, parameter: Tensor, model: Decoder, world: World) -> DTensor:
    """A parameter (on the meta device) as a DTensor over the tp mesh."""
    assert world.mesh is not None
    c, tp = model.config, world.tp
    dim = 0 if name.endswith(COLUMN) else 1 if name.endswith(ROW) else None
    if tp > c.kv_heads and name.endswith(("attention.k.weight", "attention.v.weight")):
        dim = None
    shape = list(parameter.shape)
    if dim is not None:
        shape[dim] //= tp
    part = torch.empty(shape, device="meta")
    placement: Any = Replicate() if dim is None else Shard(dim)
    return DTensor.from_local(
        part, world.mesh[TP], [placement], run_check=False, shape=parameter.shape, stride=parameter.stride()
    )


def before_micro_batch(model: nn.Module, zero: Literal[0, 1, 2, 3], last: bool) -> None:
    """Say whether the coming backward pass is the step's last: gradients are summed then, or each time (zero 2 and 3)."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last or zero >= 2)
        model.set_reshard_after_backward(last or zero == 3)


def settle(model: nn.Module) -> None:
    """Free gathered weights after a forward pass without a backward one: they would outlive the next change of weights."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
