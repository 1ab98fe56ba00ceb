"""A run's optimizer: one or more algorithms over one model, stepped as one, their state named tensors without a pickle.

The algorithms run on each rank's local parts of the parameters ("views": plain tensors that share the parameters'
storage), so torch's fused kernels, or Triton's, serve every layout, and one process has no DTensor at all. State and
checkpoints are the same whichever kernels step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gristmill.core.errors import FormatError
from gristmill.trainer import optim_ademamix, optim_muon, optim_schema
from gristmill.trainer.gradients import global_norm
from gristmill.trainer.optim_groups import Choice, choose
from gristmill.trainer.optim_shards import counts, layouts, local, placed_as, placements
from gristmill.trainer.parallel.mesh import World
from gristmill.trainer.schedule import Mixing

STATE = {  # what each algorithm keeps per parameter; all but `step` have the parameter's shape
    "adamw": ("exp_avg", "exp_avg_sq", "step"),
    "muon": optim_muon.STATE,
    "ademamix": optim_ademamix.STATE,
}


class Hybrid:
    """The algorithms of a run, each over its own parameters. Groups hold "lr", "weight_decay" and "lr_multiplier".

    `notes`: what was chosen for its kernels and why, for the log.

    The state is there from the start, zeros, so that a checkpoint always has all of it.
    """

    def __init__(
        self,
        named: dict[str, nn.Parameter],
        choices: dict[str, Choice],
        parts: dict[str, torch.optim.Optimizer],
        views: dict[str, Tensor],
        world: World,
        notes: Sequence[str] = (),
    ) -> None:
        self.named, self.choices, self.parts = named, choices, parts
        self.views, self.world, self.notes = views, world, notes
        self.queued = world.device.type != "cpu"  # kernels run after the host has gone on: it must not read a flag
        self.counted = [name for name, p in named.items() if counts(p) and views[name].numel()]
        for name, view in views.items():
            algorithm = choices[name].algorithm
            self.parts[algorithm].state[view] = {
                key: torch.zeros((), device=view.device) if key == "step" else torch.zeros_like(view)
                for key in STATE[algorithm]
            }

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts.values() for group in part.param_groups]

    def at(self, lr: float, mixing: Mixing) -> None:
        """Set what the next step uses: the scheduled rate, and alpha and beta3 of AdEMAMix."""
        for group in self.param_groups:
            group["lr"] = lr * group["lr_multiplier"]
        for group in self.parts["ademamix"].param_groups if "ademamix" in self.parts else ():
            group["alpha"], group["beta3"] = mixing.alpha, mixing.beta3

    def norm(self) -> Tensor:
        """L2 norm of the whole gradient, 0-dim, on the device, the same on every rank. A collective call."""
        gradients = self._gradients()
        return global_norm([gradients[name] for name in self.counted if name in gradients], self.world)

    @torch.no_grad()
    def step(self, scale: Tensor | None = None, ok: Tensor | None = None) -> None:
        """One update from the gradients times `scale` (0-dim, of gradients.clip_coefficient; None: 1). A collective call.

        `ok` (0-dim bool on the device, the same on every rank; None: true): where false, weights, moments and step counts
        stay as they are to the bit, whatever the gradients are, without the host waiting for the device. Gradients are
        scaled in place, but for algorithms that take the scale themselves (kernels.adam: one pass over memory less).
        """
        if ok is not None and not self.queued:
            if not ok:
                return
            ok = None
        gradients = self._gradients()
        if scale is not None and not self.queued and float(scale) == 1.0:
            scale = None
        takers = {algorithm for algorithm, part in self.parts.items() if hasattr(part, "scale")}
        for algorithm in takers:
            self.parts[algorithm].scale = scale  # type: ignore[attr-defined]
        plain = [g for name, g in gradients.items() if self.choices[name].algorithm not in takers]
        if scale is not None and plain:
            torch._foreach_mul_(plain, scale)
        if self.world.size > 1:  # in one process they are the parameters
            for name, view in self.views.items():
                view.grad = gradients.get(name)
        skip = None if ok is None else (~ok).float()
        for part in self.parts.values():
            part.found_inf = skip  # type: ignore[attr-defined]  # torch's protocol for its fused kernels, and ours
            part.step()
        if self.world.size > 1:
            for view in self.views.values():
                view.grad = None  # else zero_grad would free nothing

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p in self.named.values():
            if set_to_none or p.grad is None:
                p.grad = None
            else:
                p.grad.zero_()

    def state_tensors(self) -> dict[str, Tensor]:
        """The state as {"parameter.exp_avg": tensor, ...}: the tensors themselves, to be written or filled in place.

        In several processes DTensors placed as their parameters; `step` is a plain scalar, the same on every rank.
        """
        return {
            f"{name}.{key}": tensor if key == "step" else placed_as(tensor, p)
            for name, p, state in self._states()
            for key, tensor in state.items()
        }

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `state_tensors` gave. Raises FormatError when a tensor is missing, unknown or of another shape.

        Nothing is changed then.
        """
        left, pairs = dict(tensors), []
        for name, p, state in self._states():
            for key, tensor in state.items():
                given = left.pop(f"{name}.{key}", None)
                want = tensor if key == "step" else placed_as(tensor, p)
                if given is None or given.shape != want.shape or placements(given) != placements(want):
                    raise FormatError(f"the checkpoint has no fitting optimizer state for {name}.{key}")
                pairs.append((tensor, local(given)))
        if left:
            raise FormatError(f"the checkpoint has optimizer state of another optimizer: {min(left)}")
        for tensor, given in pairs:
            tensor.copy_(given)

    def _states(self) -> Iterator[tuple[str, nn.Parameter, dict[str, Tensor]]]:
        for name, p in self.named.items():
            yield name, p, self.parts[self.choices[name].algorithm].state[self.views[name]]

    def _gradients(self) -> dict[str, Tensor]:
        """This rank's parts of the gradients; None ones left out. Views follow parameters to other storage."""
        gradients = {}
        for name, p in self.named.items():
            if p.grad is None:
                continue
            gradients[name] = local(p.grad)
            if self.world.size > 1:
                assert placements(p.grad) == placements(p), f"the gradient of {name} is cut unlike its parameter"
                now, view = local(p), self.views[name]
                if view.data_ptr() != now.data_ptr():  # model.to and the like give parameters other storage
                    view.data = now
        return gradients


def build(
    model: nn.Module, settings: optim_schema.Optimizer, world: World | None = None, *, triton: bool = False
) -> Hybrid:
    """The optimizer over all parameters, which must already be on their device and, in several processes, on the mesh.

    `triton`: AdamW and AdEMAMix as one Triton kernel, and Muon's products where kernels.newton_schulz chooses it. Raises
    UsageError when a group of the settings gets no parameter, or gives Muon something that is no matrix.
    """
    choices = choose(model, settings)
    named = dict(model.named_parameters())
    world = world or World(next(iter(named.values())).device)
    assert world.size == 1 or all(placements(p) for p in named.values()), "a parameter is not on the mesh"
    views = {name: local(p) if world.size > 1 else p for name, p in named.items()}
    parts: dict[str, torch.optim.Optimizer] = {}
    notes: list[str] = []
    for algorithm in STATE:  # in this order, whatever the names
        rows = {n: c for n, c in choices.items() if c.algorithm == algorithm}
        kinds = sorted({(c.lr_multiplier, c.weight_decay) for c in rows.values()}, key=lambda k: (k[0], -k[1]))
        groups: list[dict[str, Any]] = [
            {
                "params": [views[n] for n, c in rows.items() if (c.lr_multiplier, c.weight_decay) == (times, decay)],
                "lr": settings.lr * times,
                "lr_multiplier": times,
                "weight_decay": decay,
            }
            for times, decay in kinds
        ]
        if groups:
            whole: dict[Tensor, Tensor] = {views[n]: named[n] for n in rows}
            parts[algorithm] = _algorithm(algorithm, groups, settings, whole, world, triton, notes)
    return Hybrid(named, choices, parts, views, world, notes)


def _algorithm(
    name: str,
    groups: list[dict[str, Any]],
    settings: optim_schema.Optimizer,
    whole: dict[Tensor, Tensor],
    world: World,
    triton: bool,
    notes: list[str],
) -> torch.optim.Optimizer:
    if name == "muon":
        muon = settings.muon or optim_schema.Muon()
        rows = layouts(whole, world)
        iterate: optim_muon.NewtonSchulz = optim_muon.newton_schulz
        if triton:
            from gristmill.trainer.kernels.newton_schulz import by_shape

            iterate, said = by_shape((row.shape for row in rows.values()), optim_muon.PRECISION[muon.ns_precision])
            notes.extend(said)
        return optim_muon.Muon(groups, muon, rows, world, iterate)
    if triton:
        from gristmill.trainer.kernels.adam import Adam

        mixing = {"beta3": settings.slow.beta3, "alpha": settings.slow.alpha} if name == "ademamix" else {}
        return Adam(groups, betas=settings.betas, eps=settings.eps, **mixing)
    if name == "ademamix":
        slow = settings.slow
        return optim_ademamix.AdEMAMix(
            groups, betas=settings.betas, beta3=slow.beta3, alpha=slow.alpha, eps=settings.eps
        )
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)
