"""The decoder's operations on Triton kernels, in the place of `trainer.ops.Ops`, and which of the two a run gets."""

from __future__ import annotations

import importlib.util
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gristmill.core.errors import UsageError
from gristmill.trainer.kernels import attention_choice
from gristmill.trainer.ops import TORCH, Layout, Ops, count_documents
from gristmill.trainer.parallel.tensor import TensorParallel


class Prepared(NamedTuple):
    """What our attention kernel shares over the layers of a micro batch; torch's varlen attention: the starts alone."""

    position_BT: Tensor
    bounds: Any


class TritonOps(Ops):
    """`attention` as in `attention_choice.Choice`; "varlen" leaves micro batches of short documents to our kernel, if `ours`
    is true: if it takes such heads.
    """

    name = "triton"

    def __init__(self, attention: str = "triton", ours: bool = True) -> None:
        self.attention, self.ours = attention, ours

    def layout(
        self,
        position_BT: Tensor,
        cos_BTD: Tensor,
        sin_BTD: Tensor,
        pieces: bool,
        dtype: torch.dtype,
        documents: int | None = None,
    ) -> Layout:
        if self.attention == "torch":
            return super().layout(position_BT, cos_BTD, sin_BTD, pieces, dtype, documents)
        if self.attention == "varlen":
            if documents is None:  # evaluations: they read the losses back at once anyway
                documents = count_documents(position_BT)
            rows, length = position_BT.shape
            if not (self.ours and attention_choice.too_many(rows, length, documents)):
                starts = attention_choice.cumulative_lengths(position_BT, attention_choice.slots_for(documents))
                return Layout(len(position_BT), cos_BTD, sin_BTD, None, None, starts)
        from gristmill.trainer.kernels import attention

        prepared = Prepared(position_BT, attention.document_bounds(position_BT))
        return Layout(len(position_BT), cos_BTD, sin_BTD, None, None, prepared)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        from gristmill.trainer.kernels import norm

        return norm.rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        from gristmill.trainer.kernels import norm

        return norm.add_rms_norm(x, residual, weight, eps)

    def queries_and_keys(
        self,
        q_BTHD: Tensor,
        k_BTGD: Tensor,
        layout: Layout,
        rope: bool,
        norms: tuple[Tensor, Tensor] | None,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        if not rope:
            return super().queries_and_keys(q_BTHD, k_BTGD, layout, rope, norms, eps)
        from gristmill.trainer.kernels import rope as kernel

        q_weight, k_weight = norms or (None, None)
        return kernel.rope_qk(q_BTHD, k_BTGD, layout.cos_BTD, layout.sin_BTD, q_weight, k_weight, eps)

    def attend(self, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, layout: Layout) -> Tensor:
        if self.attention == "torch":
            return super().attend(q_BTHD, k_BTGD, v_BTGD, layout)
        if isinstance(layout.kernel, Tensor):
            return attention_choice.torch_varlen(q_BTHD, k_BTGD, v_BTGD, layout.kernel)
        from gristmill.trainer.kernels import attention

        given: Prepared = layout.kernel
        return attention.varlen_attention(q_BTHD, k_BTGD, v_BTGD, given.position_BT, bounds=given.bounds)

    def silu(self, up: Tensor, gate: Tensor | None) -> Tensor:
        from gristmill.trainer.kernels import mlp

        return super().silu(up, gate) if gate is None else mlp.swiglu(gate, up)

    def relu2(self, up: Tensor, gate: Tensor | None) -> Tensor:
        from gristmill.trainer.kernels import mlp

        return mlp.relu2(up) if gate is None else mlp.relu2(gate, up)

    def xielu(self, up: Tensor, gate: Tensor | None, alpha_p: Tensor, alpha_n: Tensor) -> Tensor:
        from gristmill.trainer.kernels import mlp

        return mlp.xielu(up, alpha_p, alpha_n) if gate is None else mlp.xielu(gate, alpha_p, alpha_n, up)

    def losses(
        self,
        x_nC: Tensor,
        weight_vC: Tensor,
        labels_N: Tensor,
        tp: TensorParallel,
        *,
        valid: int,
        softcap: float | None,
        partition: bool,
    ) -> tuple[Tensor, Tensor | None]:
        from gristmill.trainer.kernels.linear_ce import linear_cross_entropy

        return linear_cross_entropy(x_nC, weight_vC, labels_N, vocab_valid=valid, softcap=softcap, tp=tp)


def choose(kernels: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[Ops, str]:
    """The operations of a run's `kernels: auto | torch | triton`, and why, for the log.

    Raises UsageError where `triton` is asked for and cannot run: no package, or a device without kernels (on a CPU they
    run in Triton's interpreter alone, for tests: TRITON_INTERPRET=1).
    """
    there = importlib.util.find_spec("triton") is not None
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if kernels == "torch":
        return TORCH, "kernels: torch"
    if kernels == "auto":
        if device.type != "cuda" or not there:
            return TORCH, "kernels: torch (auto: " + ("no triton)" if device.type == "cuda" else f"a {device.type})")
        chosen = attention_choice.choose_attention(device, dtype, head_dim)
        why = f"kernels: triton (auto: a GPU), attention {chosen.name}: {chosen.reason}"
        return TritonOps(chosen.name, chosen.ours), why
    if not there:
        raise UsageError("kernels: triton, but triton is not installed", hint="pip install 'gristmill[train]'")
    if device.type != "cuda" and not interpreted:
        raise UsageError(
            f"kernels: triton, but the device is a {device.type}",
            hint="use kernels: auto; TRITON_INTERPRET=1 runs them in Triton's interpreter, slowly, for tests",
        )
    return TritonOps(), "kernels: triton" + (" in Triton's interpreter" if interpreted else "")
