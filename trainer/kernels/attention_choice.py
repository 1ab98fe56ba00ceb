"""Which attention a device gets under `kernels: auto`, with the reason, and the bridge to torch's own varlen attention.

No triton here: choosing is cheap. Letters: N = B x T positions, S slots for documents.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

log = logging.getLogger(__name__)

BLOCK = 128  # queries a program of FlashAttention-2 takes at most, and ours
EMPTY = 8  # programs without work per program with work that torch's kernel may launch, see `choose_attention`
SLOTS = 16  # fewest slots: below it, fewer shapes are worth more than the empty programs


class Choice(NamedTuple):
    """`name`: "varlen" (torch.nn.attention.varlen), "triton" (ours) or "torch" (scaled_dot_product_attention)."""

    name: str
    reason: str


def choose_attention(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    *,
    capability: tuple[int, int] | None = None,
    blocks: tuple[int, int] | None = None,
    seconds: Mapping[str, float] | None = None,
) -> Choice:
    """What `auto` takes on `device`, logged with its reason: a function of its arguments and of torch's build.

    `capability` replaces the device's own. `blocks`: what `varlen_blocks` gives, if known. `seconds`: measured forward
    and backward times by name; the least of those that can run wins. Without them torch's varlen is preferred on NVIDIA:
    its backward pass forms scores once (5 matrix products a tile), ours twice (3 + 4), so that it needs no atomics.
    """
    chosen = _choose(device, dtype, head_dim, capability, blocks, seconds or {})
    log.info("attention: %s (%s)", *chosen)
    return chosen


def _choose(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    capability: tuple[int, int] | None,
    blocks: tuple[int, int] | None,
    seconds: Mapping[str, float],
) -> Choice:
    if device.type != "cuda":
        return Choice(
            "torch", f"no kernels for {device.type}: one call a document" if device.type == "cpu" else "no GPU"
        )
    ours = (
        None if dtype in (torch.bfloat16, torch.float16, torch.float32) and head_dim <= 128 else f"{dtype} x {head_dim}"
    )
    theirs = varlen_lacks(device, dtype, head_dim, capability)
    if ours:
        return (
            Choice("torch", f"our kernel takes no {ours}")
            if theirs
            else Choice("varlen", f"our kernel takes no {ours}")
        )
    if theirs:
        return Choice("triton", f"torch's varlen attention {theirs}")
    if {"varlen", "triton"} <= seconds.keys():
        name = min(("varlen", "triton"), key=lambda n: seconds[n])
        times = ", ".join(f"{n} {seconds[n] * 1e3:.3g} ms" for n in ("varlen", "triton"))
        return Choice(name, f"measured: {times}")
    if torch.are_deterministic_algorithms_enabled():
        return Choice("triton", "deterministic algorithms are asked for, and it adds nothing atomically")
    if blocks and blocks[0] > EMPTY * blocks[1]:
        return Choice(
            "triton", f"short documents: torch's varlen would launch {blocks[0]} blocks a head, {blocks[1]} with work"
        )
    return Choice(
        "varlen", "predicted, not measured: 7 matrix products a tile, forward and backward, to our kernel's 9"
    )


def varlen_lacks(
    device: torch.device, dtype: torch.dtype, head_dim: int, capability: tuple[int, int] | None = None
) -> str | None:
    """Why torch.nn.attention.varlen cannot be used for grouped causal attention with gradients; None where it can."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return f"is not in torch {torch.__version__}"
    if missing := {"enable_gqa", "window_size", "scale"} - inspect.signature(varlen_attn).parameters.keys():
        return f"of torch {torch.__version__} takes no {', '.join(sorted(missing))}"
    if torch.version.hip:
        return "is not known to work on ROCm"
    if not torch.backends.cuda.is_flash_attention_available():
        return "needs a torch built with FlashAttention"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"takes bf16 and fp16, not {dtype}"
    if head_dim % 8 or head_dim > 256:
        return f"takes head_dim up to 256 in steps of 8, not {head_dim}"
    if (capability or torch.cuda.get_device_capability(device)) < (8, 0):
        return "needs compute capability 8.0"
    return None


def slots_for(position_BT: Tensor) -> int:
    """Power of two with room for a batch's documents: count it on the CPU, before the batch is sent to the GPU."""
    assert position_BT.device.type == "cpu", "counting documents on a GPU would wait for it"
    begins_BT = position_BT == 0
    begins_BT[:, :1] = True
    return max(SLOTS, 1 << (int(begins_BT.sum()) - 1).bit_length())


def varlen_blocks(rows: int, length: int, slots: int) -> tuple[int, int]:
    """(blocks of BLOCK queries that torch's kernel launches a head, at least so many of them with work)."""
    a_row = -(-length // BLOCK)
    return slots * a_row, rows * a_row


def cumulative_lengths(position_BT: Tensor, slots: int) -> Tensor:
    """(slots + 1,) int32: starts of the documents in the N flattened positions, then N.

    Spare slots are empty documents at N, so the shape is that of `slots` only. Nothing is read back; more documents
    than slots fail on the device.
    """
    begins_BT = position_BT == 0
    begins_BT[:, :1] = True
    begins_N = begins_BT.flatten()
    at_N = torch.arange(begins_N.numel(), dtype=torch.int32, device=position_BT.device)
    slot_N = begins_N.cumsum(0) - 1
    torch._assert_async((slot_N[-1] < slots), f"more documents than {slots} slots")
    starts = torch.full((slots + 1,), begins_N.numel(), dtype=torch.int32, device=position_BT.device)
    return starts.scatter_(0, slot_N.where(begins_N, slots), at_N.where(begins_N, begins_N.numel()))


def torch_varlen(q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, starts: Tensor, scale: float | None = None) -> Tensor:
    """(B, T, H, D) by torch.nn.attention.varlen, with `starts` from `cumulative_lengths`. CUDA, bf16 or fp16.

    The longest document is given as T, a bound that needs no look at the data.
    """
    from torch.nn.attention.varlen import varlen_attn

    q_NHD, k_NGD, v_NGD = (x.flatten(0, 1) for x in (q_BTHD, k_BTGD, v_BTGD))
    longest = q_BTHD.shape[1]
    y_NHD = varlen_attn(
        q_NHD, k_NGD, v_NGD, starts, starts, longest, longest, scale=scale, window_size=(-1, 0), enable_gqa=True
    )
    assert isinstance(y_NHD, Tensor)
    return y_NHD.view(q_BTHD.shape)
