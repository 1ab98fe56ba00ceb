"""Output matrix and cross-entropy as one operation that holds the logits of no more than a chunk of the vocabulary.

Forward: per chunk of ids, each tile of logits becomes three numbers a position and is gone. Backward: per chunk, the
tiles are computed again and their gradient is written, rounded once; two matrix products turn it into the gradients of x
and weight, whose sums over chunks are fp32 (in bf16 they diverge late: Liger-Kernel issue 512). That is 8 N v C operations
where the plain way has 6, and 512 MiB and some fp32 arrays of N x C and chunk x C where it has N x v x 14 bytes
(trainer.sizes.logits_bytes). No atomics: results repeat to the bit.

With tensor parallelism each rank holds consecutive ids; what crosses the ranks is as in trainer.parallel.vocabulary.
Letters: N positions, n those of this rank under sequence parallelism, C hidden, v ids of this rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from gristmill.trainer.data import IGNORE
from gristmill.trainer.kernels.linear_ce_kernels import gradient, statistics
from gristmill.trainer.parallel.tensor import ALONE, TensorParallel

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BUDGET = 512 << 20  # bytes of a chunk's gradient: 32,768 ids of 8,192 positions in bf16
FEWEST = (
    4096  # ids a chunk while positions can be cut instead: the sum over chunks moves 16 bytes for 2 x ids operations
)
ROUND = 256  # ids: the largest tile


class Chunks(NamedTuple):
    """Positions and ids of a chunk."""

    positions: int
    ids: int


class Options(NamedTuple):
    """What is not a tensor."""

    first: int
    valid: int
    softcap: float | None
    z_weight: float
    tp: TensorParallel
    chunks: Chunks | None


def chunks_for(positions: int, ids: int, width: int) -> Chunks:
    """The fewest equal chunks of `width` bytes an element within BUDGET; positions are cut once ids are down to FEWEST."""
    most, whole = BUDGET // width, max(_tiles(ids), ROUND)
    rows = max(1, min(positions, most // min(FEWEST, whole)))
    pieces = -(-whole // (most // rows // ROUND * ROUND))
    return Chunks(rows, max(_tiles(-(-ids // pieces)), ROUND))


def _tiles(ids: int) -> int:
    """`ids` rounded up to whole tiles."""
    return -(-ids // ROUND) * ROUND


def linear_cross_entropy(
    x_nC: Tensor,
    weight_vC: Tensor,
    labels_N: Tensor,
    *,
    vocab_start: int | None = None,
    vocab_valid: int | None = None,
    softcap: float | None = None,
    z_weight: float = 0.0,
    tp: TensorParallel | None = None,
    chunks: Chunks | None = None,
) -> tuple[Tensor, Tensor]:
    """Per position, fp32, on every rank of `tp`: negative log-likelihood in nats and log-sum-exp of the logits.

    Logits are x weight^T in fp32, softcap x tanh(. / softcap) where it is set. Both results are 0 at label -100, and pass
    gradients on: z-loss is a multiple of the second's square (PaLM, arXiv 2204.02311, section 5). `z_weight` adds that
    square times z_weight to the first. A label that no rank has makes NaN, not a plausible number.

    Row i of `weight_vC` is id `vocab_start` + i (default: equal shares by rank); rows from `vocab_valid` on are no ids,
    and their gradient is 0. `x_nC` and `weight_vC` are plain tensors of one dtype, fp32, bf16 or fp16, with any strides;
    weight may be the embedding's. Under `tp` x is this rank's part of the residual stream, and its gradient is summed over
    the ranks in fp32 before it is rounded, as `tp.column` does; `labels_N` are all positions' on every rank.
    """
    tp = tp or ALONE
    assert not any(isinstance(t, DTensor) for t in (x_nC, weight_vC, labels_N)), "kernels take local tensors"
    assert x_nC.dtype == weight_vC.dtype in DTYPES, f"{x_nC.dtype} x {weight_vC.dtype}"
    assert x_nC.shape[1] == weight_vC.shape[1], f"{tuple(x_nC.shape)} x {tuple(weight_vC.shape)}"
    assert labels_N.dtype == torch.int64, labels_N.dtype
    own = len(weight_vC)
    first = tp.rank * own if vocab_start is None else vocab_start
    valid = own if vocab_valid is None else min(max(vocab_valid, 0), own)
    options = Options(first, valid, None if softcap is None else float(softcap), float(z_weight), tp, chunks)
    return LinearCrossEntropy.apply(x_nC, weight_vC, labels_N, options)  # type: ignore[no-any-return, no-untyped-call]


class LinearCrossEntropy(torch.autograd.Function):
    """The operation; keeps x, weight, labels and the log-sum-exp."""

    @staticmethod
    def forward(ctx: Any, x_nC: Tensor, weight_vC: Tensor, labels_N: Tensor, options: Options) -> tuple[Tensor, Tensor]:
        labels_N = labels_N.contiguous()
        x_NC = _rows(options.tp.all_positions(x_nC, len(labels_N)))
        lse_N, of_label_N = log_sum_exp(x_NC, _rows(weight_vC), labels_N, options)
        ctx.save_for_backward(x_nC, weight_vC, labels_N, lse_N)
        ctx.options = options
        valid_N = labels_N != IGNORE
        loss_N = lse_N - of_label_N
        if options.z_weight:
            loss_N = loss_N + options.z_weight * lse_N.square()
        return loss_N.where(valid_N, 0.0), lse_N.where(valid_N, 0.0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_nll_N: Tensor, of_lse_N: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x_nC, weight_vC, labels_N, lse_N = ctx.saved_tensors
        options: Options = ctx.options
        valid_N = labels_N != IGNORE
        of_all_N = (of_nll_N + of_lse_N + 2 * options.z_weight * lse_N * of_nll_N).where(valid_N, 0.0)
        x_NC = _rows(options.tp.all_positions(x_nC, len(labels_N)))
        part_NC, of_weight_vC = gradients(
            x_NC,
            _rows(weight_vC),
            labels_N,
            lse_N,
            of_all_N,
            of_nll_N.contiguous(),  # an ignored label is in no chunk
            options,
            ctx.needs_input_grad[:2],
        )
        of_x_nC = None if part_NC is None else options.tp.own_positions(part_NC).to(x_nC.dtype)
        return of_x_nC, of_weight_vC, None, None


def log_sum_exp(x_NC: Tensor, weight_vC: Tensor, labels_N: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """(N,) fp32, on every rank: log-sum-exp of all ranks' logits, and the label's logit (NaN where no rank has it)."""
    top_N = torch.full((len(x_NC),), float("-inf"), device=x_NC.device)
    total_N, picked_N = torch.zeros_like(top_N), torch.zeros_like(top_N)
    for ids in _pieces(options.valid, _chunks(x_NC, options).ids):
        # positions are not cut: what this leaves behind is 8 bytes a position and block of ids
        first = options.first + ids.start
        top_SN, of_top_SN = statistics(x_NC, weight_vC[ids], labels_N, first, options.softcap, picked_N)
        above_N = torch.maximum(top_N, top_SN.amax(0))
        total_N = total_N * (top_N - above_N).exp() + (of_top_SN * (top_SN - above_N).exp_()).sum(0)
        top_N = above_N
    above_N = options.tp.all_reduce(top_N.clone(), dist.ReduceOp.MAX)
    row_N = labels_N - options.first
    found_N = ((row_N >= 0) & (row_N < options.valid)).to(torch.float32)
    sums_3N = torch.stack([total_N * (top_N - above_N).exp(), picked_N * found_N, found_N])
    total_N, picked_N, found_N = options.tp.all_reduce(sums_3N)
    return above_N + total_N.log(), picked_N.where(found_N == 1, float("nan"))


def gradients(
    x_NC: Tensor,
    weight_vC: Tensor,
    labels_N: Tensor,
    lse_N: Tensor,
    of_all_N: Tensor,
    of_label_N: Tensor,
    options: Options,
    wanted: tuple[bool, bool] = (True, True),
) -> tuple[Tensor | None, Tensor | None]:
    """This rank's part of the gradient of x, (N, C) fp32, and the gradient of weight in its dtype, or None where unwanted.

    Ids outermost: the weight's sum over chunks of positions needs fp32 for one chunk's ids only.
    """
    positions, ids = _chunks(x_NC, options)
    of_x_NC = torch.zeros_like(x_NC, dtype=torch.float32, memory_format=torch.contiguous_format) if wanted[0] else None
    of_weight_vC = torch.empty_like(weight_vC, memory_format=torch.contiguous_format) if wanted[1] else None
    shape = min(positions, len(x_NC)), _tiles(min(ids, options.valid))
    buffer_Nv = torch.empty(shape, dtype=x_NC.dtype, device=x_NC.device)
    for n in _pieces(options.valid, ids):
        of_ids_vC: Tensor | None = None
        for m in _pieces(len(x_NC), positions):
            g_Nv = buffer_Nv[: m.stop - m.start]
            rows = (labels_N[m], options.first + n.start, options.softcap, lse_N[m], of_all_N[m], of_label_N[m])
            gradient(x_NC[m], weight_vC[n], *rows, g_Nv)
            g_Nv = g_Nv[:, : n.stop - n.start]
            if of_x_NC is not None:
                of_x_NC[m] += ALONE.product(g_Nv, weight_vC[n])
            if of_weight_vC is not None:
                part_vC = ALONE.product(g_Nv.t(), x_NC[m])
                of_ids_vC = part_vC if of_ids_vC is None else of_ids_vC.add_(part_vC)
        if of_weight_vC is not None and of_ids_vC is not None:
            of_weight_vC[n] = of_ids_vC
    if of_weight_vC is not None:
        of_weight_vC[options.valid if len(x_NC) else 0 :] = 0.0
    return of_x_NC, of_weight_vC


def aot_cases() -> list[tuple[str, Callable[[], object]]]:
    """Forward and backward of 8,192 positions at the presets' widths and vocabularies, for trainer.kernels.aot.

    tiny and nano have no vocabulary of their own: 4,096 and 16,384 ids. Then a softcap, the other dtypes, and a GPT-2
    vocabulary (50,257 ids in 50,304 rows) on the second of two ranks.
    """
    bf16 = torch.bfloat16
    cases = [
        ("tiny/bf16", _case(96, 4096, bf16)),
        ("nano/bf16", _case(256, 16384, bf16)),
        ("qwen3-0.6b/bf16", _case(1024, 151936, bf16)),
        ("smollm3-3b/bf16", _case(2048, 128256, bf16)),
        ("llama-3-8b/bf16", _case(4096, 128256, bf16)),
        ("apertus-8b/bf16", _case(4096, 131072, bf16)),
    ]
    return [
        *cases,
        ("softcap llama-3-8b/bf16", _case(4096, 128256, bf16, softcap=30.0)),
        ("softcap nano/bf16", _case(256, 16384, bf16, softcap=30.0)),
        ("llama-3-8b/fp16", _case(4096, 128256, torch.float16)),
        ("nano/fp32", _case(256, 16384, torch.float32)),
        ("nano/tf32", _case(256, 16384, torch.float32, precision="high")),
        ("rank 1 of 2, 50257 ids/bf16", _case(1024, 25152, bf16, vocab_start=25152, vocab_valid=25105)),
    ]


def _case(width: int, ids: int, dtype: torch.dtype, precision: str = "highest", **options: Any) -> Callable[[], object]:
    def launch() -> None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        x_NC, weight_vC = (torch.empty((n, width), dtype=dtype, device="meta", requires_grad=True) for n in (8192, ids))
        labels_N = torch.empty(8192, dtype=torch.int64, device="meta")
        try:
            nll_N, lse_N = linear_cross_entropy(x_NC, weight_vC, labels_N, **options)
            (nll_N + lse_N).sum().backward()
        finally:
            torch.set_float32_matmul_precision(before)

    return launch


def _chunks(x_NC: Tensor, options: Options) -> Chunks:
    return options.chunks or chunks_for(len(x_NC), options.valid, x_NC.element_size())


def _pieces(size: int, most: int) -> Iterator[slice]:
    """Consecutive ranges of at most `most` that cover `size`."""
    return (slice(start, min(start + most, size)) for start in range(0, size, most))


def _rows(x: Tensor) -> Tensor:
    """`x` with contiguous rows, which may lie at any distance; copied if they are not."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()
