"""Which attention a device gets under `kernels: auto`, with the reason, and the bridge to torch's own varlen attention.

torch's takes the starts of all documents as one array. Its length must not need a look at the GPU, and every new length
may compile anew: documents are counted on the CPU as a batch is read (trainer.loader) and the array gets a power of two of
slots. No triton here: choosing is cheap. Letters: N = B x T positions, S slots for documents.
"""

from __future__ import annotations

import inspect
import logging
from typing import NamedTuple

import torch
from torch import Tensor

log = logging.getLogger(__name__)

BLOCK = 128  # queries a program of FlashAttention-2 takes at most, and ours
EMPTY = 8  # programs that torch's kernel may launch per program with work, see `too_many`
SLOTS = 16  # fewest slots: below it, fewer shapes are worth more than the empty programs


class Choice(NamedTuple):
    """`name`: "varlen" (torch.nn.attention.varlen), "triton" (ours) or "torch" (scaled_dot_product_attention).

    `ours`: whether our kernel takes such heads, too, and so the batches of short documents (`too_many`).
    """

    name: str
    reason: str
    ours: bool = True


def choose_attention(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    *,
    capability: tuple[int, int] | None = None,
) -> Choice:
    """What `auto` takes on `device`, logged with its reason: a function of its arguments and of torch's build.

    `capability` replaces the device's own. Nothing is timed: a clock must not decide a run's numbers. torch's varlen is
    preferred on NVIDIA: its backward pass forms scores once (5 matrix products a tile), ours twice (3 + 4), so that it
    needs no atomics; where deterministic algorithms are asked for it is ours therefore.
    """
    chosen = _choose(device, dtype, head_dim, capability)
    log.info("attention: %s (%s)", chosen.name, chosen.reason)
    return chosen


def _choose(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    capability: tuple[int, int] | None,
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
        return Choice("torch" if theirs else "varlen", f"our kernel takes no {ours}", ours=False)
    if theirs:
        return Choice("triton", f"torch's varlen attention {theirs}")
    if torch.are_deterministic_algorithms_enabled():
        return Choice("triton", "deterministic algorithms are asked for, and it adds nothing atomically")
    return Choice(
        "varlen",
        "predicted, not measured: 7 matrix products a tile, forward and backward, to our kernel's 9; "
        "triton for micro batches of short documents",
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


def slots_for(documents: int) -> int:
    """Power of two with room for a micro batch's documents."""
    return max(SLOTS, 1 << (documents - 1).bit_length())


def varlen_blocks(rows: int, length: int, documents: int) -> tuple[int, int]:
    """(blocks of BLOCK queries that torch's kernel launches a head, at least so many of them with work).

    It launches as many for every slot as the longest document might need, and is told T for that.
    """
    a_row = -(-length // BLOCK)
    return slots_for(documents) * a_row, max(rows * a_row, documents)


def too_many(rows: int, length: int, documents: int) -> bool:
    """Whether documents are so short that torch's kernel would mostly launch blocks without work."""
    launched, working = varlen_blocks(rows, length, documents)
    return launched > EMPTY * working


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
