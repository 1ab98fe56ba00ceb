"""Parameters, FLOPs, activation bytes and shape lints of a decoder, from its settings alone. No torch here.

Letters: C hidden, F ffn, H query heads, G key/value heads, D head dimension, L layers, V padded vocabulary,
B rows and T positions of a micro batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from gristmill.trainer.architecture import Model

Checkpointing = Literal["none", "selective", "full"]

VOCAB_MULTIPLE = 64  # embedding rows per tensor-parallel rank are padded to this: whole tiles for matrix units
TILE = 64  # elements: tensor cores work in tiles of 64 to 128; a size that is no multiple leaves part of a tile idle


def padded_vocab(vocab_size: int, tp: int = 1) -> int:
    """Rows of the embedding: `vocab_size` rounded up to a multiple of 64 x tp."""
    multiple = VOCAB_MULTIPLE * tp
    return -(-vocab_size // multiple) * multiple


def matrix_params(c: Model) -> int:
    """Elements of the matrices of all blocks."""
    attention = 2 * c.hidden * (c.heads + c.kv_heads) * c.head_dim
    return c.layers * (attention + (3 if c.gated else 2) * c.hidden * c.ffn)


def params(c: Model, vocab_size: int, tp: int = 1) -> int:
    """Parameters of the whole model: matrices, norms, xIELU's two scalars a layer, embeddings (tied: once)."""
    vectors = 2 * c.hidden + (2 * c.head_dim if c.qk_norm else 0) + (2 if c.activation == "xielu" else 0)
    embedding = padded_vocab(vocab_size, tp) * c.hidden
    return matrix_params(c) + c.layers * vectors + c.hidden + embedding * (1 if c.tie_embeddings else 2)


def flops_per_token(c: Model, vocab_size: int, seq_len: int) -> int:
    """Floating-point operations per trained token, forward and backward.

    6 per matrix parameter (2 forward, 4 backward) and 6 L H D T for causal attention over whole rows (PaLM,
    arXiv 2204.02311, appendix B, halved for causality); document masks only lower it. The embedding look-up costs
    nothing; the output matrix counts, tied or not.
    """
    matrices = matrix_params(c) + padded_vocab(vocab_size) * c.hidden
    return 6 * matrices + 6 * c.layers * c.heads * c.head_dim * seq_len


def activation_bytes(
    c: Model, rows: int, seq_len: int, checkpointing: Checkpointing = "none", width: int = 2, tp: int = 1
) -> int:
    """Bytes kept for the backward pass of `rows` x `seq_len` tokens on one tensor-parallel rank, logits left out.

    Counted with kernels that keep their inputs only (flash attention, fused norms), `width` bytes an element (2: bf16).
    Per token and layer, none: inputs of both norms and of the matrices behind them (4C); q, k, v and the attention's
    output (2HD + 2GD) with its fp32 log-sum-exp (4 bytes a head), and under QK-norm q and k before it (HD + GD); of the
    MLP's inner width 4F when gated (gate, its activation, up, product), else 2F. selective: the block's input, and the
    outputs of matrix products and of attention, all else computed again. full: the block's input, and one block whole
    while it is computed again. Around the blocks: the last norm's input and output. Sequence parallelism (Korthikanti
    et al., arXiv 2205.05198) keeps the C terms as 1/tp each, gathering again in the backward pass; key/value heads are
    replicated once tp exceeds them.
    """
    heads, kv_heads, ffn, hidden = c.heads / tp, max(c.kv_heads / tp, 1.0), c.ffn / tp, c.hidden / tp
    projected = (2 * heads + 2 * kv_heads) * c.head_dim * width + 4 * heads
    before_norm = (heads + kv_heads) * c.head_dim * width if c.qk_norm else 0.0
    whole = 4 * hidden * width + projected + before_norm + (4 if c.gated else 2) * ffn * width
    if checkpointing == "none":
        blocks = c.layers * whole
    elif checkpointing == "selective":
        blocks = c.layers * (3 * hidden * width + projected + (2 if c.gated else 1) * ffn * width)
    else:
        blocks = c.layers * hidden * width + whole
    return round((blocks + 2 * hidden * width) * rows * seq_len)


def logits_bytes(c: Model, vocab_size: int, rows: int, seq_len: int, width: int = 2, tp: int = 1) -> int:
    """Bytes of the output at its peak, in the backward pass: three fp32 arrays of the vocabulary, and logits at `width`.

    log-softmax, its gradient and the logits' are held at once; a softcap keeps one more (its tanh).
    """
    fp32 = 3 + (c.logit_softcap is not None)
    copies = width if width < 4 else 0  # fp32 logits are not copied
    return rows * seq_len * (padded_vocab(vocab_size, tp) // tp) * (copies + 4 * fp32)


def lints(c: Model, tp: int = 1) -> list[str]:
    """Warnings, in words: what cannot be split over `tp` ranks, and sizes per rank that are no multiple of 64."""
    found = []
    if c.heads % tp:
        found.append(f"heads {c.heads} do not divide over tp {tp}")
    if c.kv_heads % tp and tp % c.kv_heads:
        found.append(f"kv_heads {c.kv_heads} neither divide over tp {tp} nor are replicated evenly")
    elif tp > c.kv_heads:
        found.append(f"kv_heads {c.kv_heads} are replicated {tp // c.kv_heads} times over tp {tp}")
    if c.ffn % tp:
        found.append(f"ffn {c.ffn} does not divide over tp {tp}")
    if c.hidden % tp:
        found.append(f"hidden {c.hidden} does not divide over tp {tp}")
    where = f" per rank (tp {tp})" if tp > 1 else ""
    per_rank = {
        "hidden": (c.hidden, 1),  # kept whole by every rank's matrices
        "head_dim": (c.head_dim, 1),
        "ffn": (c.ffn, tp),
    }
    for name, (size, parts) in per_rank.items():
        if size % parts == 0 and (size // parts) % TILE:
            found.append(f"{name} {size // parts}{where if parts > 1 else ''} is no multiple of {TILE}: slower on GPUs")
    if c.rope_scaling and c.max_seq_len and c.max_seq_len > c.rope_scaling.factor * c.rope_scaling.original_seq_len:
        found.append(f"max_seq_len {c.max_seq_len} is longer than rope_scaling's factor x original_seq_len covers")
    return found
