"""Cases of the fused linear cross-entropy for its tests: inputs, both ways of computing them, and their distance."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gristmill.trainer.kernels import linear_ce, reference_ce
from gristmill.trainer.kernels.linear_ce import Chunks

# Of the largest element of each result. Logits, softmax and sums are fp32 whatever the operands are; in 16 bits the
# gradient of a logit is rounded, and x's and weight's once more: each time half a unit in the last place.
FORWARD = 2e-6
BACKWARD = {torch.float32: 4e-6, torch.bfloat16: 2 * 2**-8, torch.float16: 2 * 2**-11}


class Case(NamedTuple):
    positions: int
    ids: int
    width: int
    valid: int | None = None
    softcap: float | None = None
    z_weight: float = 0.0
    chunks: Chunks | None = None
    scale: float = 1.0

    @property
    def options(self) -> dict[str, Any]:
        return {"vocab_valid": self.valid, "softcap": self.softcap, "z_weight": self.z_weight}


CASES = {
    "one row": Case(1, 64, 32),
    "one row, one id, one column": Case(1, 1, 1),
    "a tile exactly": Case(32, 64, 32),
    "one more than a tile": Case(33, 65, 33),
    "primes": Case(37, 101, 53),
    "primes, padded ids": Case(31, 131, 67, valid=127),
    "softcap": Case(37, 101, 53, softcap=3.0, scale=2.0),
    "z-loss": Case(37, 101, 53, z_weight=0.01),
    "softcap, z-loss, padded, chunks": Case(41, 150, 48, 131, 5.0, 0.02, Chunks(16, 50), 2.0),
    "many chunks": Case(67, 200, 40, chunks=Chunks(13, 37)),
    "one id a chunk": Case(9, 5, 24, chunks=Chunks(4, 1)),
    "sharp": Case(20, 100, 64, scale=20.0),  # softmax 1 at one id, 0 elsewhere
}

Results = dict[str, Tensor]


def inputs(case: Case, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, ...]:
    """x, weight, labels, and gradients of nll and lse. Each seventh label is ignored, but the first never."""
    draw = torch.Generator().manual_seed(seed)
    x_NC = (torch.randn(case.positions, case.width, generator=draw) * case.scale).to(dtype)
    weight_vC = (torch.randn(case.ids, case.width, generator=draw) / case.width**0.5).to(dtype)
    labels_N = torch.randint(case.ids if case.valid is None else case.valid, (case.positions,), generator=draw)
    labels_N[6::7] = -100
    labels_N[-1:] = labels_N[-1:].clamp(min=0) if case.positions > 1 else (case.ids - 1)
    return x_NC, weight_vC, labels_N, *torch.randn(2, case.positions, generator=draw)


def fused(case: Case, tensors: tuple[Tensor, ...]) -> Results:
    return results(linear_ce.linear_cross_entropy, tensors, **case.options, chunks=case.chunks)


def oracle(case: Case, tensors: tuple[Tensor, ...]) -> Results:
    return results(
        reference_ce.linear_cross_entropy, tuple(t.double() for t in tensors[:2]) + tensors[2:], **case.options
    )


def results(function: Any, tensors: tuple[Tensor, ...], **options: Any) -> Results:
    """Both outputs, and the gradients of sum(a nll + b lse)."""
    x_NC, weight_vC = (t.detach().requires_grad_() for t in tensors[:2])
    nll_N, lse_N = function(x_NC, weight_vC, tensors[2], **options)
    of_x, of_weight = torch.autograd.grad((nll_N * tensors[3] + lse_N * tensors[4]).sum(), (x_NC, weight_vC))
    return {"nll": nll_N.detach(), "lse": lse_N.detach(), "x": of_x, "weight": of_weight}


def errors(got: Results, want: Results) -> dict[str, float]:
    """Largest error of each result, relative to its largest element."""
    found = {}
    for name, value in want.items():
        error = (got[name].double() - value.double()).abs().max() / value.double().abs().max().clamp(min=1e-2)
        found[name] = float(error)
    return found


def wrong(got: Results, want: Results, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """The errors that are too large; NaN is one."""
    limits = dict.fromkeys(("nll", "lse"), FORWARD) | dict.fromkeys(("x", "weight"), BACKWARD[dtype])
    return {name: error for name, error in errors(got, want).items() if not error <= limits[name]}
