"""The gradient's global norm and clip coefficient, and changes that a flag on the device takes back without a host sync."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gristmill.trainer.parallel.mesh import World

EPS = 1e-6  # added to the norm that divides, as in torch.nn.utils.clip_grad_norm_


@torch.no_grad()
def global_norm(counted: Sequence[Tensor], world: World) -> Tensor:
    """L2 norm of the gradient over all ranks: 0-dim, on the device, the same on each. A collective call.

    `counted` are this rank's local gradients whose elements no other rank counts. One process gives what
    torch.nn.utils.get_total_norm gives, bit for bit. Of several, each tensor's norm is taken in fp32 and the few squares
    are added in fp64, so that a layout shows in the last bit or two only. NaN and inf come through.
    """
    if world.size == 1:
        return torch.nn.utils.get_total_norm(counted)
    square = torch.zeros((), dtype=torch.float64, device=world.device)
    if counted:
        norms = torch._foreach_norm(list(counted), 2, dtype=torch.float32)
        square += torch.stack(norms).double().square().sum()
    return world.sum(square).sqrt().float()


def clip_coefficient(norm: Tensor, clip: float) -> Tensor:
    """min(1, clip / (norm + 1e-6)), 0-dim: gradients times it have a norm of at most `clip`. NaN for a NaN norm."""
    return torch.clamp(clip / (norm + EPS), max=1.0)


@contextlib.contextmanager
def unless(skip: Tensor | None, changed: Sequence[Tensor]) -> Iterator[None]:
    """Where `skip` (a 0-dim bool on the device) is true, undo to the bit what the body does to `changed`. None: never.

    The body runs either way, as the host does not know the flag; a product with 0 would let NaN and inf through and
    turns -0 into 0. Holds a copy of `changed` meanwhile.
    """
    before = [] if skip is None else [t.clone() for t in changed]
    yield
    if skip is not None:
        for now, then in zip(changed, before, strict=True):
            torch.where(skip, then, now, out=now)
