"""A run's optimizer: one or more algorithms over one model, stepped as one, their state named tensors without a pickle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gristmill.core.errors import FormatError
from gristmill.trainer import optim_ademamix, optim_muon, optim_schema
from gristmill.trainer.optim_groups import Choice, choose
from gristmill.trainer.schedule import Mixing

STATE = {  # what each algorithm keeps per parameter; all but `step` have the parameter's shape
    "adamw": ("exp_avg", "exp_avg_sq", "step"),
    "muon": optim_muon.STATE,
    "ademamix": optim_ademamix.STATE,
}
FUSED = ("cpu", "cuda")  # devices where torch's AdamW is one kernel (a third of the loop's time for small models)


class Hybrid:
    """The algorithms of a run, each over its own parameters. Groups hold "lr", "weight_decay" and "lr_multiplier"."""

    def __init__(self, model: nn.Module, choices: dict[str, Choice], parts: dict[str, torch.optim.Optimizer]) -> None:
        self.model, self.choices, self.parts = model, choices, parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts.values() for group in part.param_groups]

    def at(self, lr: float, mixing: Mixing) -> None:
        """Set what the next step uses: the scheduled rate, and alpha and beta3 of AdEMAMix."""
        for group in self.param_groups:
            group["lr"] = lr * group["lr_multiplier"]
        for group in self.parts["ademamix"].param_groups if "ademamix" in self.parts else ():
            group["alpha"], group["beta3"] = mixing.alpha, mixing.beta3

    def step(self) -> None:
        for part in self.parts.values():
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts.values():
            part.zero_grad(set_to_none)

    def state_tensors(self) -> dict[str, Tensor]:
        """The state as {"parameter.exp_avg": tensor, ...}. Empty before the first step."""
        return {
            f"{name}.{key}": part.state[p][key]
            for name, p, part, keys in self._parameters()
            if p in part.state
            for key in keys
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `state_tensors` gave. Raises FormatError when a tensor is missing, unknown or of another shape."""
        left = dict(tensors)
        for name, p, part, keys in self._parameters():
            state = {}
            for key in keys:
                tensor = left.pop(f"{name}.{key}", None)
                want = torch.Size([]) if key == "step" else p.shape
                if tensor is None or tensor.shape != want:
                    raise FormatError(f"the checkpoint has no fitting optimizer state for {name}.{key}")
                # only fused AdamW reads its count on the device
                there = key == "step" and part is not self.parts.get("adamw")
                state[key] = tensor if there else tensor.to(p.device)
            part.state[p] = state
        if left:
            raise FormatError(f"the checkpoint has optimizer state of another optimizer: {min(left)}")

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter, torch.optim.Optimizer, tuple[str, ...]]]:
        for name, p in self.model.named_parameters():
            algorithm = self.choices[name].algorithm
            yield name, p, self.parts[algorithm], STATE[algorithm]


def build(model: nn.Module, settings: optim_schema.Optimizer) -> Hybrid:
    """The optimizer over all parameters, which must already be on their device.

    Raises UsageError when a group of the settings gets no parameter, or gives Muon something that is no matrix.
    """
    choices = choose(model, settings)
    named = dict(model.named_parameters())
    parts: dict[str, torch.optim.Optimizer] = {}
    for algorithm in STATE:  # in this order, whatever the names
        rows = {n: c for n, c in choices.items() if c.algorithm == algorithm}
        kinds = sorted({(c.lr_multiplier, c.weight_decay) for c in rows.values()}, key=lambda k: (k[0], -k[1]))
        groups: list[dict[str, Any]] = [
            {
                "params": [named[n] for n, c in rows.items() if (c.lr_multiplier, c.weight_decay) == (times, decay)],
                "lr": settings.lr * times,
                "lr_multiplier": times,
                "weight_decay": decay,
            }
            for times, decay in kinds
        ]
        if groups:
            parts[algorithm] = _algorithm(algorithm, groups, settings)
    return Hybrid(model, choices, parts)


def _algorithm(name: str, groups: list[dict[str, Any]], settings: optim_schema.Optimizer) -> torch.optim.Optimizer:
    if name == "muon":
        return optim_muon.Muon(groups, settings.muon or optim_schema.Muon())
    if name == "ademamix":
        slow = settings.slow
        return optim_ademamix.AdEMAMix(
            groups, betas=settings.betas, beta3=slow.beta3, alpha=slow.alpha, eps=settings.eps
        )
    fused = all(p.device.type in FUSED for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused or None)
