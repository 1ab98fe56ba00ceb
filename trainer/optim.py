"""AdamW with two groups, and its state as named tensors, so a checkpoint needs no pickle.

Weight decay goes to matrices only: a decayed norm gain or embedding row shrinks for want of gradient, not for lack of
use (rare tokens' rows get few gradients; OLMo 2, arXiv 2501.00656 section 3.4, drops it for embeddings).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gristmill.core.errors import FormatError
from gristmill.trainer.schema import Optimizer

STATE = ("exp_avg", "exp_avg_sq", "step")  # what torch's AdamW keeps per parameter


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: matrices, but not the token embedding (nor a head tied to it)."""
    return parameter.dim() >= 2 and not name.startswith("embed")


def build(model: nn.Module, settings: Optimizer) -> torch.optim.AdamW:
    """The optimizer over all parameters, in name order so that the groups never depend on construction."""
    named = sorted(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if decays(n, p)], "weight_decay": settings.weight_decay},
        {"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0},
    ]
    # fused: one kernel per step on CPU and CUDA (a third of the time of the loop for small models)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as {"parameter.exp_avg": tensor, ...}."""
    return {
        f"{n}.{k}": optimizer.state[p][k] for n, p in model.named_parameters() if p in optimizer.state for k in STATE
    }


def load_state(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `state_tensors` gave. Raises FormatError when a tensor is missing or has another shape."""
    for name, parameter in model.named_parameters():
        state = {}
        for key in STATE:
            tensor = tensors.get(f"{name}.{key}")
            want = parameter.shape if key != "step" else torch.Size([])
            if tensor is None or tensor.shape != want:
                raise FormatError(f"the checkpoint has no fitting optimizer state for {name}.{key}")
            state[key] = tensor.to(parameter.device)
        optimizer.state[parameter] = state
