"""Bytes and operations of every kernel, of the trainer's eager torch, and of what torch.compile fuses that into: counted.

A pass is one trip through device memory: what it reads and writes, each array once (a second read is hoped to hit L2), and
its operations. bf16 arrays are 2 bytes an element, fp32 ones 4; eager is the code of layers.py, rope.py, vocabulary.py and
the optimizers, operation by operation. Compiled: elementwise chains and a reduction over their last dimension become one
pass; a sum over rows (a weight's gradient) and a matrix product are passes of their own.
Letters: N positions, C hidden, F ffn, H and G query and key/value heads, D head dimension, V padded vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from gristmill.trainer.architecture import Preset
from gristmill.trainer.sizes import padded_vocab, params

Unit = Literal["bf16", "fp32"]  # matrix units, or arithmetic outside of them


class Pass(NamedTuple):
    """One trip: bytes read and written, operations and the unit that does them."""

    bytes: float
    flops: float = 0
    unit: Unit = "fp32"


class Cost(NamedTuple):
    """One operation on a shape, three ways: passes of our kernel, of eager torch, of torch.compile's code."""

    name: str
    shape: str
    ours: list[Pass]
    eager: list[Pass]
    compiled: list[Pass]


PARTIALS = 4 * 132  # rows of a weight's gradient that programs leave to be summed: four a multiprocessor (H100)
VOCAB = 16384  # ids of presets of our own, which have no vocabulary
TILE = 128  # of the matrix kernels
CHUNK = 1 << 28  # elements of the logits' gradient held at once (linear_ce.BUDGET at 2 bytes)
RANKS, SHARD = 8, 1 << 27  # an optimizer's shard: of the parameters over 8 ranks, at most 134 million elements


def each(elements: float, *sizes: float, flops: float = 0) -> list[Pass]:
    """Passes over as many elements, of so many bytes an element each; `flops` an element in all."""
    return [Pass(size * elements, flops * elements / len(sizes)) for size in sizes]


def product(bytes_: float, flops: float) -> Pass:
    """A matrix product on matrix units."""
    return Pass(bytes_, flops, "bf16")


UP, DOWN = 2 + 4, 4 + 2  # casts bf16 -> fp32 and back
NORM_EAGER = (UP, 4 + 4, DOWN)  # layers.RMSNorm: wide, F.rms_norm, to
NORM_EAGER_BACK = (UP, 4 + 4 + 4, 4 + 4, DOWN)  # dy wide; dx; the weight's gradient reads both again; dx narrow
ROTATE_EAGER = (UP, UP, 4, 8, 8, 8, 12, DOWN)  # wide twice, -half, cat, x cos, turned sin, sum, to
ROTATE_EAGER_BACK = (UP, 8, 8, 4, 8, DOWN, DOWN, 6)  # wide; cos; sin; -half; halves joined; two casts; their sum
XIELU_EAGER = (UP, 8, 12, 8, 8, 12, 8, 5, 13, 8, 12, DOWN)  # clamp, expm1, where and products, each an fp32 pass
XIELU_EAGER_BACK = (UP, UP, 5, 8, 8, 8, 8, 13, 8, 8, 9, 12, 4, 12, 9, 12, 4, 12, DOWN)  # slope, two sums, product


def norms(n: int, c: int) -> Iterator[Cost]:
    e, shape, partial = n * c, f"{n} x {c}", Pass(2 * 4 * PARTIALS * c)
    yield Cost("rms_norm", shape, each(e, 4, flops=4), each(e, *NORM_EAGER, flops=4), each(e, 4, flops=4))
    yield Cost(
        "rms_norm backward",
        shape,
        [*each(e, 6, flops=9), partial],
        each(e, *NORM_EAGER_BACK, flops=9),
        each(e, 6, 4, flops=9),
    )
    yield Cost("add_rms_norm", shape, each(e, 8, flops=5), each(e, 6, *NORM_EAGER, flops=5), each(e, 8, flops=5))
    yield Cost(
        "add_rms_norm backward",
        shape,
        [*each(e, 8, flops=10), partial],
        each(e, *NORM_EAGER_BACK, 6, flops=10),
        each(e, 8, 4, flops=10),
    )


def rope(n: int, heads: int, groups: int, d: int, normed: bool) -> Iterator[Cost]:
    """cos and sin are fp32, (N, D) each, read once by us and once for q and once for k by the others."""
    e, shape, tables = n * (heads + groups) * d, f"{n} x ({heads} + {groups}) x {d}", 2 * 4 * n * d
    name, flops = ("rope_qk with QK-norm", 10) if normed else ("rope_qk", 6)
    eager = each(e, *(NORM_EAGER if normed else ()), *ROTATE_EAGER, flops=flops)
    yield Cost(
        name,
        shape,
        [Pass(4 * e + tables, flops * e)],
        [*eager, Pass(2 * tables)],
        [Pass(4 * e + 2 * tables, flops * e)],
    )
    back = each(e, *ROTATE_EAGER_BACK, *(NORM_EAGER_BACK if normed else ()), flops=2 * flops)
    read = 6 if normed else 4  # the norm's input once more
    ours = [Pass(read * e + tables, 2 * flops * e)] + ([Pass(2 * 4 * PARTIALS * 2 * d)] if normed else [])
    compiled = [Pass(read * e + 2 * tables, 2 * flops * e)] + ([Pass(4 * e)] if normed else [])
    yield Cost(f"{name} backward", shape, ours, [*back, Pass(2 * tables)], compiled)


def activations(n: int, f: int, kind: str) -> Iterator[Cost]:
    e, shape = n * f, f"{n} x {f}"
    if kind == "swiglu":
        yield Cost(kind, shape, each(e, 6, flops=5), each(e, 4, 6, flops=5), each(e, 6, flops=5))
        back = each(e, 6, 6, 6, flops=11)  # of up, of the activation, of gate
        yield Cost(f"{kind} backward", shape, each(e, 10, flops=11), back, each(e, 10, flops=11))
    elif kind == "relu2":
        yield Cost(kind, shape, each(e, 4, flops=2), each(e, 4, 4, flops=2), each(e, 4, flops=2))
        back = each(e, 4, 4, 6, 6, flops=3)  # relu(x)^1, times 2, times dy, where x > 0
        yield Cost(f"{kind} backward", shape, each(e, 6, flops=3), back, each(e, 6, flops=3))
    else:
        yield Cost(kind, shape, each(e, 4, flops=10), each(e, *XIELU_EAGER, flops=10), each(e, 4, flops=10))
        back = each(e, *XIELU_EAGER_BACK, flops=18)
        yield Cost(f"{kind} backward", shape, each(e, 6, flops=18), back, each(e, 6, 4, flops=18))


def cross_entropy(n: int, c: int, v: int) -> Iterator[Cost]:
    """With z-loss, whose log-sum-exp eager torch computes apart. Ours recomputes the logits: 8 N V C operations, not 6."""
    e, x, w, flops, shape = n * v, 2 * n * c, 2 * v * c, 2.0 * n * v * c, f"{n} x {c} x {v}"
    chunks = -(-e // CHUNK)
    statistics = 2 * 8 * n * -(-v // TILE)  # two fp32 numbers a position and block of ids, written and read
    yield Cost(
        "linear_cross_entropy",
        shape,
        [product(chunks * x + w, flops), Pass(statistics, 3 * e)],
        [
            product(x + w + 2 * e, flops),
            *each(e, UP, 8, 4, 8, 8, 4, flops=8),
        ],  # cast, log_softmax; max, difference, exp, sum
        [product(x + w + 2 * e, flops), *each(e, 2, flops=4)],
    )
    back = [product(2 * e + w + x, flops), product(2 * e + x + w, flops)]
    yield Cost(
        "linear_cross_entropy backward",
        shape,
        [
            product(chunks * x + w + 2 * e, flops),
            product(2 * e + w + 8 * x * chunks, flops),  # fp32 sums: written, then read twice and written
            product(2 * e + chunks * x + 5 * w, flops),  # fp32 written, read and rounded
        ],
        [*each(e, 4, 12, 8, 8, 8, 12, DOWN, flops=8), *back],  # zeros and label, log_softmax, log-sum-exp, sum, cast
        [*each(e, 4, flops=5), *back],
    )


def attention(n: int, length: int, document: int, heads: int, groups: int, d: int) -> Iterator[Cost]:
    """Rows of `length` positions packed with documents of `document`. Eager: SDPA with a mask, which skips no block and
    reads the mask, made bf16, for every head. Compiled: FlexAttention with a mask of blocks, as ours but for fusion."""
    inside = 4.0 * n * (document + 1) / 2 * heads * d  # two products over a document's triangle
    whole = 4.0 * n * length * heads * d
    q, k, mask = 2 * n * heads * d, 2 * n * groups * d, 2 * n * length * heads
    shape = f"{n // length} x {length} x {heads}/{groups} x {d}, documents of {document}"
    grown = [Pass(2 * (k + q)), Pass(3 * n * length)]  # k and v repeated for each query head; the mask as numbers
    yield Cost(
        "varlen_attention",
        shape,
        [product(2 * q + 2 * k + 4 * n * heads, inside)],
        [*grown, product(4 * q + mask, whole)],
        [product(2 * q + 2 * k + 4 * n * heads, inside)],
    )
    two = [product(4 * q + 2 * k, 1.5 * inside), product(2 * q + 4 * k, 2 * inside)]  # dq: 3 products; dk, dv: 4
    yield Cost(
        "varlen_attention backward",
        shape,
        two,
        [*grown[1:], product(8 * q + mask, 2.5 * whole), Pass(2 * (q + k))],
        two,
    )


def optimizers(size: int) -> Iterator[Cost]:
    """fp32 shards of `size` elements with the gradient's clipping scale, which eager torch multiplies in beforehand."""
    shape = f"{size} fp32"
    adamw = 4 * 4 + 3 * 4  # weight, gradient, two moments; all but the gradient written
    yield Cost("adamw", shape, each(size, adamw, flops=15), each(size, 8, adamw, flops=15), each(size, adamw, flops=15))
    foreach = (
        8,
        12,
        12,
        8,
        12,
        8,
        8,
        8,
        8,
        12,
        8,
        16,
    )  # scale, 2 lerp, mul, addcmul, sqrt, div, add, div, add, mul, addcdiv
    mix = adamw + 8
    yield Cost("ademamix", shape, each(size, mix, flops=19), each(size, *foreach, flops=19), each(size, mix, flops=19))


def newton_schulz(rows: int, columns: int, steps: int = 5) -> Iterator[Cost]:
    m, big = sorted((rows, columns))
    side = -(-m // TILE)
    part = (side + 1) / (2 * side)  # of the tiles: the diagonal and below
    gram, square, last = 2.0 * m * m * big, 2.0 * m**3, 2.0 * m * m * big
    x, g = 2 * m * big, 2 * m * m

    def passes(share: float) -> list[Pass]:
        one = [product(x + g, share * gram), product(2 * g, share * square), product(g + 2 * x, last)]
        return [*each(m * big, UP, 2, 4, flops=3), *one * steps]  # cast, norm, division

    yield Cost("newton_schulz", f"{rows} x {columns}", passes(part), passes(1.0), passes(1.0))


def shard(preset: Preset) -> int:
    """Elements of the optimizers' shard of a preset."""
    return min(params(preset.model, preset.vocab_size or VOCAB) // RANKS, SHARD)


def costs(preset: Preset, positions: int, length: int, document: int) -> list[Cost]:
    """Every operation of a preset at a micro batch of `positions` tokens in rows of `length`, on one device."""
    c, vocab = preset.model, preset.vocab_size or VOCAB
    kind = {"silu": "swiglu"}.get(c.activation, c.activation)
    return [
        *norms(positions, c.hidden),
        *rope(positions, c.heads, c.kv_heads, c.head_dim, c.qk_norm),
        *activations(positions, c.ffn, kind),
        *(activations(positions, c.ffn, "relu2") if kind == "swiglu" else ()),
        *cross_entropy(positions, c.hidden, padded_vocab(vocab)),
        *attention(positions, length, document, c.heads, c.kv_heads, c.head_dim),
        *optimizers(shard(preset)),
        *newton_schulz(c.hidden, c.ffn),
    ]
