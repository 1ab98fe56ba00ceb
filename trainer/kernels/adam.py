"""AdamW and AdEMAMix over flat local shards, one pass over memory each: every element is read and written once.

  m = b1 m + (1 - b1) g     v = b2 v + (1 - b2) g^2     w *= 1 - lr weight_decay
  w -= lr (m / (1 - b1^t) + alpha s) / (sqrt(v / (1 - b2^t)) + eps)

with AdEMAMix' slow average s = b3 s + (1 - b3) g, absent in AdamW (trainer.optim_ademamix; torch.optim.AdamW). g is the
gradient times `scale`. The step count, the scale and the flag `ok` are read by the kernel, so the host waits for nothing.
Arithmetic is fp32 whatever the dtypes; offsets are 64-bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 1024, 4  # 8 elements a thread: two 128-bit loads of each fp32 array, one of each bf16 array
ALIGNED = (
    16  # elements: what the compiler must know of a size to load vectors under its mask; the rest is launched apart
)


@triton.jit
def _one_minus_power(step, log_beta):
    """1 - beta^step = -expm1(step ln beta). exp(x) - 1 would lose 4 of 7 digits at beta2 = 0.9999, step 1."""
    x = step * log_beta
    near = tl.maximum(x, -0.5)
    series = near / 9 + 1  # Taylor, 9 terms: a relative error of 5e-10 at -0.5
    for i in tl.static_range(8, 1, -1):
        series = series * (near / i) + 1
    return -tl.where(x > -0.5, series * near, tl.exp(x) - 1)


@triton.jit
def _adam_kernel(
    WEIGHT,
    GRAD,
    FAST,
    SLOW,
    SQUARE,
    COPY,
    STEP,
    SCALE,
    OK,
    size,
    lr,
    keep1,
    take1,
    keep2,
    take2,
    keep3,
    take3,
    log1,
    log2,
    alpha,
    eps,
    decay,
    BLOCK: tl.constexpr,
):
    """take = 1 - keep, from the host: in fp32, 1 - 0.9999 has 3 digits."""
    if OK is not None:  # noqa: SIM102  (the compiler resolves the outer one)
        if tl.load(OK) == 0:
            return
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < size
    step = tl.load(STEP).to(tl.float32)
    g = tl.load(GRAD + at, mask=live, other=0.0).to(tl.float32)
    if SCALE is not None:
        g *= tl.load(SCALE).to(tl.float32)
    w = tl.load(WEIGHT + at, mask=live, other=0.0).to(tl.float32)
    m = tl.load(FAST + at, mask=live, other=0.0).to(tl.float32)
    v = tl.load(SQUARE + at, mask=live, other=0.0).to(tl.float32)
    m = m * keep1 + g * take1
    v = v * keep2 + g * g * take2
    update = m / _one_minus_power(step, log1)
    if SLOW is not None:
        s = tl.load(SLOW + at, mask=live, other=0.0).to(tl.float32)
        s = s * keep3 + g * take3
        update += alpha * s
        tl.store(SLOW + at, s.to(SLOW.dtype.element_ty), mask=live)
    root = tl.sqrt(v) / tl.sqrt(_one_minus_power(step, log2)) + eps
    w = w * decay - lr * (update / root)
    tl.store(FAST + at, m.to(FAST.dtype.element_ty), mask=live)
    tl.store(SQUARE + at, v.to(SQUARE.dtype.element_ty), mask=live)
    tl.store(WEIGHT + at, w.to(WEIGHT.dtype.element_ty), mask=live)
    if COPY is not None:
        tl.store(COPY + at, w.to(COPY.dtype.element_ty), mask=live)


@torch.no_grad()
def adamw_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    scale: Tensor | None = None,
    ok: Tensor | None = None,
    copy: Tensor | None = None,
) -> None:
    """One AdamW update of a shard of any shape, in place, as torch.optim.AdamW(fused=True) does it.

    `step` (0-dim, fp32) is raised by one first. `scale` (0-dim) multiplies the gradient, which stays as it is. `ok` (0-dim
    bool): where false, nothing changes to the bit, the step count neither. `copy` (bf16 or fp16) receives the new weights
    rounded. Raises ValueError for a shard or state that is not contiguous or not of the shard's shape.
    """
    _launch(param, grad, exp_avg, None, exp_avg_sq, step, lr, betas, 0.0, 0.0, eps, weight_decay, scale, ok, copy)


@torch.no_grad()
def ademamix_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_slow: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    beta3: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    scale: Tensor | None = None,
    ok: Tensor | None = None,
    copy: Tensor | None = None,
) -> None:
    """One AdEMAMix update in place, as trainer.optim_ademamix does it; arguments else as for `adamw_step`."""
    moments = (exp_avg, exp_avg_slow, exp_avg_sq)
    _launch(param, grad, *moments, step, lr, betas, beta3, alpha, eps, weight_decay, scale, ok, copy)


def _launch(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_slow: Tensor | None,
    exp_avg_sq: Tensor,
    step: Tensor,
    lr: float,
    betas: tuple[float, float],
    beta3: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    scale: Tensor | None,
    ok: Tensor | None,
    copy: Tensor | None,
) -> None:
    named = {"param": param, "grad": grad, "exp_avg": exp_avg, "exp_avg_slow": exp_avg_slow, "exp_avg_sq": exp_avg_sq}
    for name, tensor in {**named, "copy": copy}.items():
        if tensor is None:
            continue
        if tensor.shape != param.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, the shard {tuple(param.shape)}")
        if tensor is not grad and not tensor.is_contiguous():
            raise ValueError(f"{name} is not contiguous: it is updated in place as one flat array")
    step.add_(1 if ok is None else ok)
    size, (b1, b2) = param.numel(), betas
    arrays = [param, grad.contiguous(), exp_avg, exp_avg_slow, exp_avg_sq, copy]  # a strided gradient is copied once
    whole = size - size % ALIGNED
    for start, stop in ((0, whole), (whole, size)):
        if start == stop:  # FSDP2 cuts 1 row over 2 ranks into 1 and 0
            continue
        _adam_kernel[(triton.cdiv(stop - start, BLOCK),)](
            *(None if array is None else array.view(-1)[start:stop] for array in arrays),
            step,
            scale,
            None if ok is None else ok.view(torch.uint8),
            stop - start,
            float(lr),  # an int 1 would be compiled in as a constant
            float(b1),
            1.0 - b1,
            float(b2),
            1.0 - b2,
            float(beta3),
            1.0 - beta3,
            math.log(b1) if b1 else -100.0,  # exp(-100) = 4e-44: beta 0 has no correction from the first step on
            math.log(b2) if b2 else -100.0,
            float(alpha),
            float(eps),
            1.0 - lr * weight_decay,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )


class Adam(torch.optim.Optimizer):
    """AdamW, or AdEMAMix where `beta3` and `alpha` are given: groups and state as torch.optim.AdamW(fused=True) and
    trainer.optim_ademamix.AdEMAMix have them, whose place it takes in trainer.optim. State must be there.
    """

    found_inf: Tensor | None = None  # set by who steps, as for torch's optimizers: where 1, nothing changes
    scale: Tensor | None = None  # multiplies the gradients, which stay as they are; torch's protocol has 1 / grad_scale

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        betas: tuple[float, float],
        eps: float,
        beta3: float | None = None,
        alpha: float | None = None,
    ) -> None:
        slow = {} if beta3 is None else {"beta3": beta3, "alpha": alpha}
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, **slow})
        self.betas, self.eps, self.slow = betas, eps, beta3 is not None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        more: dict[str, Any] = {"betas": self.betas, "eps": self.eps, "scale": self.scale}
        more["ok"] = None if self.found_inf is None else self.found_inf == 0
        for group in self.param_groups:
            settings = {key: group[key] for key in ("lr", "weight_decay", *(("beta3", "alpha") if self.slow else ()))}
            for p in group["params"]:
                if p.grad is not None:
                    (ademamix_step if self.slow else adamw_step)(p, p.grad, **self.state[p], **settings, **more)


def aot_cases() -> list[tuple[str, Callable[[], None]]]:
    """Shards as FSDP2 leaves them: fp32 master weights with and without a bf16 copy, fp32 and bf16 gradients."""
    shard = 4096 * 4096 // 8  # one of Llama 3 8B's matrices over 8 ranks

    def case(slow: bool, grads: torch.dtype, copied: bool, size: int) -> None:
        def new(dtype: torch.dtype = torch.float32, *shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        weight, fast, average, square = (new(torch.float32, size) for _ in range(4))
        copy = new(torch.bfloat16, size) if copied else None
        arrays = (weight, new(grads, size), fast, average if slow else None, square)
        _launch(*arrays, new(), 1e-3, (0.9, 0.95), 0.999, 5.0, 1e-8, 0.1, new(), new(torch.bool), copy)

    fp32, bf16 = torch.float32, torch.bfloat16
    return [
        ("adamw/fp32", lambda: case(False, fp32, False, shard)),
        ("adamw/fp32 odd", lambda: case(False, fp32, False, shard + 1)),  # a remainder of 1
        ("adamw/bf16 grads and copy", lambda: case(False, bf16, True, shard)),
        ("ademamix/fp32", lambda: case(True, fp32, False, shard)),
        ("ademamix/bf16 grads and copy", lambda: case(True, bf16, True, shard)),
    ]
