"""AdEMAMix: AdamW whose update adds alpha times a second, slow average of gradients (arXiv 2409.03137, algorithm 1).

  m1 = b1 m1 + (1 - b1) g      m2 = b3 m2 + (1 - b3) g      v = b2 v + (1 - b2) g^2
  w -= lr ((m1 / (1 - b1^t) + alpha m2) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay w)

The slow average has no bias correction. alpha and b3 are warmed up by functions of the run's progress, not of the
optimizer's own counters (trainer.schedule), so that a skipped update does not shift them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from gristmill.trainer.gradients import unless

PORTION = 1 << 26  # elements updated at a time when the update may be undone: copies of 4 tensors, 1 GiB in fp32
STATE = ("exp_avg", "exp_avg_slow", "exp_avg_sq", "step")


class AdEMAMix(torch.optim.Optimizer):
    """Groups need "lr" and "weight_decay"; "alpha" and "beta3" are set before each step, as "lr" is. State must be there.

    Everything is element by element, so parameters may be local parts, empty ones too, and in one kernel per list where
    torch has one. `step` is a scalar on the parameter's device: reading it on the host would wait for the GPU.
    """

    found_inf: Tensor | None = None  # set by who steps, as for torch's optimizers: where 1, nothing changes

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, betas: tuple[float, float], beta3: float, alpha: float, eps: float
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "beta3": beta3, "alpha": alpha})
        self.betas, self.eps = betas, eps

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        skip = None if self.found_inf is None else self.found_inf != 0
        for group in self.param_groups:
            live = [p for p in group["params"] if p.grad is not None]
            for params in [live] if skip is None else portions(live):
                with unless(skip, [t for p in params for t in (p, *self.state[p].values())]):
                    self._step(params, group)

    def _step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        if not params:
            return
        b1, b2 = self.betas
        b3, lr = group["beta3"], group["lr"]
        grads = [p.grad for p in params if p.grad is not None]
        fast, slow, square, count = ([self.state[p][k] for p in params] for k in STATE)
        torch._foreach_add_(count, 1)
        t = torch.stack(count).double()  # 1 - b^t loses three digits in fp32
        torch._foreach_lerp_(fast, grads, 1 - b1)
        torch._foreach_lerp_(slow, grads, 1 - b3)
        torch._foreach_mul_(square, b2)
        torch._foreach_addcmul_(square, grads, grads, 1 - b2)
        root = torch._foreach_sqrt(square)
        torch._foreach_div_(root, (1 - b2**t).sqrt().float().unbind())
        torch._foreach_add_(root, self.eps)
        update = torch._foreach_div(fast, (1 - b1**t).float().unbind())
        torch._foreach_add_(update, slow, alpha=group["alpha"])
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_addcdiv_(params, update, root, -lr)


def portions(params: list[Tensor], size: int = PORTION) -> Iterator[list[Tensor]]:
    """Consecutive parameters of at most `size` elements together, or one larger one."""
    part: list[Tensor] = []
    for p in params:
        if part and sum(q.numel() for q in part) + p.numel() > size:
            yield part
            part = []
        part.append(p)
    if part:
        yield part
