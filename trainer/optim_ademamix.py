"""AdEMAMix: AdamW whose update adds alpha times a second, slow average of gradients (arXiv 2409.03137, algorithm 1).

  m1 = b1 m1 + (1 - b1) g      m2 = b3 m2 + (1 - b3) g      v = b2 v + (1 - b2) g^2
  w -= lr ((m1 / (1 - b1^t) + alpha m2) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay w)

The slow average has no bias correction. alpha and b3 are warmed up by functions of the run's progress, not of the
optimizer's own counters (trainer.schedule), so that a skipped update does not shift them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

STATE = ("exp_avg", "exp_avg_slow", "exp_avg_sq", "step")


class AdEMAMix(torch.optim.Optimizer):
    """Groups need "lr" and "weight_decay"; "alpha" and "beta3" are set before each step, as "lr" is.

    Everything is element by element and in one kernel per list where torch has one. `step` is a scalar on the CPU.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, betas: tuple[float, float], beta3: float, alpha: float, eps: float
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "beta3": beta3, "alpha": alpha})
        self.betas, self.eps = betas, eps

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            live = [p for p in group["params"] if p.grad is not None]
            if live:
                self._step(live, group)

    def _step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        b1, b2 = self.betas
        b3, lr = group["beta3"], group["lr"]
        grads = [p.grad for p in params if p.grad is not None]
        states = [self._state(p) for p in params]
        fast, slow, square = ([s[k] for s in states] for k in STATE[:3])
        for s in states:
            s["step"] += 1
        counts = [int(s["step"]) for s in states]
        torch._foreach_lerp_(fast, grads, 1 - b1)
        torch._foreach_lerp_(slow, grads, 1 - b3)
        torch._foreach_mul_(square, b2)
        torch._foreach_addcmul_(square, grads, grads, 1 - b2)
        root = torch._foreach_sqrt(square)
        torch._foreach_div_(root, [(1 - b2**t) ** 0.5 for t in counts])
        torch._foreach_add_(root, self.eps)
        update = torch._foreach_div(fast, [1 - b1**t for t in counts])
        torch._foreach_add_(update, slow, alpha=group["alpha"])
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_addcdiv_(params, update, root, -lr)

    def _state(self, p: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        if not state:
            state.update({k: torch.zeros_like(p) for k in STATE[:3]})
            state["step"] = torch.tensor(0.0)
        return state
