"""Fused linear cross-entropy against fp64 and its own laws: shapes that hurt, dtypes, chunks, strides, ranks, memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from kernel_errors import note
from kernels_linear_ce import BACKWARD, CASES, Case, errors, fused, inputs, oracle, results, wrong
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gristmill.trainer.kernels import linear_ce, linear_ce_kernels
from gristmill.trainer.kernels.linear_ce import Chunks, chunks_for, linear_cross_entropy
from gristmill.trainer.kernels.linear_ce_tiles import Tiles
from gristmill.trainer.parallel.tensor import ALONE
from gristmill.trainer.parallel.vocabulary import cross_entropy


@pytest.fixture(autouse=True)
def memory_of_nan() -> Iterator[None]:
    """torch.empty fills with NaN: what a kernel left out isn't right by the chance of what lay there before."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


DTYPES = pytest.mark.parametrize("dtype", BACKWARD, ids=["fp32", "bf16", "fp16"])


@DTYPES
@pytest.mark.parametrize("name", CASES)
def test_equals_the_oracle_forward_and_backward(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    tensors = inputs(case, dtype)
    got, want = fused(case, tensors), oracle(case, tensors)
    assert got["nll"].dtype == got["lse"].dtype == torch.float32
    assert got["x"].dtype == got["weight"].dtype == dtype
    off = errors(got, want)
    assert not wrong(got, want, dtype), off
    note("linear + cross-entropy", dtype, name, max(off["nll"], off["lse"]), max(off["x"], off["weight"]))
    ignored = tensors[2] == -100
    for part in ("nll", "lse", "x"):
        assert not got[part][ignored].any()
    assert not got["weight"][case.valid or case.ids :].any()


@pytest.mark.parametrize("partition", [False, True])
def test_equals_the_trainer(partition: bool) -> None:
    tensors = inputs(Case(37, 101, 53))
    if not partition:
        tensors = (*tensors[:4], torch.zeros(37))

    def plain(x: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        nll, lse = cross_entropy(F.linear(x, weight), labels, ALONE, partition=True)
        assert lse is not None
        return nll, lse

    want = results(plain, tensors)
    assert not wrong(fused(Case(37, 101, 53), tensors), want)


def test_equals_pytorch() -> None:
    x, weight, labels, *_ = inputs(Case(37, 101, 53))
    nll, _ = linear_cross_entropy(x, weight, labels)
    torch.testing.assert_close(nll.sum(), F.cross_entropy(x @ weight.t(), labels, reduction="sum"))


@DTYPES
def test_chunks_change_nothing(dtype: torch.dtype) -> None:
    """Of a gradient's sums over chunks only fp32's last digits, whatever the dtype of the operands."""
    case = Case(67, 200, 40, valid=193, softcap=4.0, z_weight=0.01)
    tensors = inputs(case, dtype)
    whole = fused(case, tensors)
    for chunks in (Chunks(67, 64), Chunks(32, 193), Chunks(16, 100), Chunks(9, 200), Chunks(1000, 23)):
        got = fused(case._replace(chunks=chunks), tensors)
        assert not wrong(got, whole, dtype), (chunks, errors(got, whole))
        for part in ("nll", "lse"):
            torch.testing.assert_close(got[part], whole[part], rtol=1e-6, atol=1e-6)
        if dtype != torch.float32:  # no more than 1 in 100 falls to the other side of a rounding
            assert (got["weight"] != whole["weight"]).float().mean() < 0.01


@pytest.mark.parametrize(
    "tiles", [Tiles(16, 16, 16, 4, 2), Tiles(64, 128, 64, 4, 2), Tiles(16, 256, 16, 4, 2)], ids=str
)
def test_tiles_change_nothing(tiles: Tiles, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["softcap, z-loss, padded, chunks"]._replace(chunks=None)
    tensors = inputs(case)
    want = oracle(case, tensors)
    monkeypatch.setattr(linear_ce_kernels, "tiles_for", lambda *_: tiles)
    assert not wrong(fused(case, tensors), want)


def test_more_blocks_of_positions_than_share_ids() -> None:
    """Programs are numbered in groups of 8 blocks of positions; here the last group has 3."""
    case = Case(11 * 32 - 5, 130, 16)
    tensors = inputs(case)
    assert not wrong(fused(case, tensors), oracle(case, tensors))


def test_gradients_are_linear_in_what_they_are_given() -> None:
    case = Case(37, 101, 53, softcap=3.0, z_weight=0.01, chunks=Chunks(16, 40))
    x, weight, labels, *first = inputs(case)
    second = inputs(case, seed=1)[3:]
    both = [2 * a - 3 * b for a, b in zip(first, second, strict=True)]
    one, two, sums = (fused(case, (x, weight, labels, *given)) for given in (first, second, both))
    for part in ("x", "weight"):
        torch.testing.assert_close(sums[part], 2 * one[part] - 3 * two[part], rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_sum_is_the_sum_of_gradients() -> None:
    case = Case(9, 70, 24, z_weight=0.01)
    x, weight, labels, a, b = inputs(case)
    whole = fused(case, (x, weight, labels, a, b))
    alone = [
        fused(case, tuple(t[i : i + 1] if t is not weight else t for t in (x, weight, labels, a, b))) for i in range(9)
    ]
    torch.testing.assert_close(
        whole["weight"], sum((r["weight"] for r in alone), torch.zeros(())), rtol=1e-5, atol=1e-6
    )
    for part in ("nll", "lse", "x"):
        torch.testing.assert_close(whole[part], torch.cat([r[part] for r in alone]))


def test_a_shift_of_all_logits_moves_the_log_sum_exp_alone() -> None:
    """Adding one vector to every row of weight: no gradient from nll, and from lse the positions' own x."""
    case = Case(37, 101, 53)
    x, weight, labels, a, b = inputs(case)
    of_weight = fused(case, (x, weight, labels, a, b))["weight"]
    torch.testing.assert_close(
        of_weight.sum(0), (b.where(labels != -100, 0.0)[:, None] * x).sum(0), rtol=1e-4, atol=1e-5
    )


def test_z_weight_is_the_square_of_the_second_result() -> None:
    case = Case(37, 101, 53, z_weight=0.03)
    x, weight, labels, a, _ = inputs(case)

    def by_hand(x: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        nll, lse = linear_cross_entropy(x, weight, labels)
        return nll + 0.03 * lse.square(), lse

    given = (x, weight, labels, a, torch.zeros(37))
    assert not wrong(fused(case, given), results(by_hand, given))


def test_sums_over_chunks_of_positions_are_fp32() -> None:
    """64 chunks of the same positions: sums in bf16 stop growing at 256 times their parts, and lose digits long before."""
    case = Case(512, 20, 16, chunks=Chunks(8, 20))
    x, weight, labels, a, b = inputs(case, torch.bfloat16)
    tensors = x[:8].repeat(64, 1), weight, labels[:8].repeat(64), a[:8].repeat(64), b[:8].repeat(64)
    error = errors(fused(case, tensors), oracle(case, tensors))["weight"]
    assert error < 2 * 2**-8, error


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_the_gradient_at_a_label_is_a_difference_in_fp32(dtype: torch.dtype) -> None:
    """softmax - 1 where softmax is 0.999: rounding softmax first leaves bf16 nothing of it."""
    weight = torch.zeros(17, 16, dtype=dtype)
    weight[3, 0] = 1
    x = torch.zeros(4, 16, dtype=dtype)
    x[:, 0] = 10.0  # softmax 1 / (1 + 16 exp(-10)) = 0.99927
    tensors = x, weight, torch.full((4,), 3), torch.ones(4), torch.zeros(4)
    got, want = fused(Case(4, 17, 16), tensors), oracle(Case(4, 17, 16), tensors)
    assert 5e-4 < -want["x"][0, 0] < 1e-3
    assert not wrong(got, {**want, "nll": got["nll"]}, dtype), errors(got, want)
    torch.testing.assert_close(got["x"].double(), want["x"], rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_large_logits_do_not_overflow() -> None:
    case = Case(20, 100, 64, scale=1e4)
    tensors = inputs(case)
    got = fused(case, tensors)
    assert got["lse"].max() > 1e4
    assert not wrong(got, oracle(case, tensors))


def strided(x: Tensor, columns: int = 1, rows: int = 1) -> Tensor:
    """The values of x, `columns` and `rows` apart, between NaN that must not be read."""
    wide = torch.full((rows * len(x) + 1, columns * x.shape[1] + 8), math.nan, dtype=x.dtype)
    view = wide[: rows * len(x) : rows, 4 : 4 + columns * x.shape[1] : columns]
    return view.copy_(x)


@DTYPES
@pytest.mark.parametrize("case", [Case(37, 101, 53), Case(37, 101, 64)], ids=["ragged", "even"])
def test_strided_inputs_between_nan(case: Case, dtype: torch.dtype) -> None:
    x, weight, labels, a, b = inputs(case, dtype)
    want = fused(case, (x, weight, labels, a, b))
    every_other = torch.full((74,), 1 << 40)[::2].copy_(labels)
    for given in (
        (strided(x), strided(weight), labels, a, b),
        (strided(x, rows=3), strided(weight, rows=2), every_other, a, b),
        (strided(x, columns=2), strided(weight, columns=3), labels, a, b),
        (strided(x.t()).t(), strided(weight.t()).t(), labels, a, b),
    ):
        got = fused(case, given)
        for part, value in want.items():
            assert torch.equal(got[part], value), part


def test_gradients_given_with_any_stride() -> None:
    """sum() gives a gradient of stride 0, a slice of a larger result one with holes."""
    case = Case(37, 101, 53)
    x, weight, labels, *_ = inputs(case)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    ones = (x, weight, labels, torch.ones(37), torch.zeros(37))
    nll, _ = linear_cross_entropy(x, weight, labels)
    of_x, of_weight = torch.autograd.grad(nll.sum(), (x, weight))
    want = fused(case, ones)
    assert torch.equal(of_x, want["x"])
    assert torch.equal(of_weight, want["weight"])
    nll, lse = linear_cross_entropy(x, weight, labels)
    holes = torch.ones(37, 5)[:, 2]
    assert torch.equal(torch.autograd.grad((nll, lse), x, (holes, holes * 0))[0], want["x"])


def test_a_tied_table_gets_both_gradients() -> None:
    table = torch.randn(101, 48, generator=torch.Generator().manual_seed(0)).requires_grad_()
    tokens, labels = torch.randint(101, (2, 37), generator=torch.Generator().manual_seed(1))
    nll, _ = linear_cross_entropy(torch.tanh(F.embedding(tokens, table)), table, labels)
    (got,) = torch.autograd.grad(nll.sum(), table)
    loss = F.cross_entropy(torch.tanh(F.embedding(tokens, table)) @ table.t(), labels, reduction="sum")
    torch.testing.assert_close(got, torch.autograd.grad(loss, table)[0], rtol=1e-4, atol=1e-5)


def test_only_wanted_gradients_are_computed() -> None:
    case = Case(20, 70, 24)
    x, weight, labels, a, b = inputs(case)
    want = fused(case, (x, weight, labels, a, b))
    for name, tensor in (("x", x), ("weight", weight)):
        given = [t.detach().requires_grad_(t is tensor) for t in (x, weight)]
        nll, lse = linear_cross_entropy(given[0], given[1], labels)
        (nll * a + lse * b).sum().backward()
        assert [t.grad is not None for t in given] == [name == "x", name == "weight"]
        got = next(t.grad for t in given if t.grad is not None)
        assert torch.equal(got, want[name])
    assert not linear_cross_entropy(x, weight, labels)[0].requires_grad


def test_nothing_to_learn_from() -> None:
    """All labels ignored: zeros. No positions at all: empty results, and a gradient of zeros."""
    x, weight, labels, a, b = inputs(Case(20, 70, 24))
    got = fused(Case(20, 70, 24), (x, weight, torch.full_like(labels, -100), a, b))
    assert not any(value.any() for value in got.values())
    none = fused(Case(0, 70, 24), (x[:0], weight, labels[:0], a[:0], b[:0]))
    assert none["nll"].shape == none["lse"].shape == (0,)
    assert none["x"].shape == (0, 24)
    assert torch.equal(none["weight"], torch.zeros(70, 24))


@pytest.mark.parametrize("label", [70, 64, -1, -101, 2**32 + 5, -(2**32) + 5])
def test_a_label_that_is_no_id_makes_nan(label: int) -> None:
    """64 to 69 are padded ids; 2^32 + 5 is 5 in 32 bits."""
    x, weight, labels, *_ = inputs(Case(20, 70, 24, valid=64))
    labels[4] = label
    nll, lse = linear_cross_entropy(x, weight, labels, vocab_valid=64)
    assert nll.isnan().nonzero().flatten().tolist() == [4]
    assert lse.isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_shows(value: float) -> None:
    x, weight, labels, a, b = inputs(Case(20, 70, 24))
    x[4, 7] = value
    got = fused(Case(20, 70, 24), (x, weight, labels, a, b))
    assert got["nll"].isfinite().logical_not().nonzero().flatten().tolist() == [4]
    assert not got["weight"].isfinite().all()


def test_results_repeat_to_the_bit() -> None:
    case = CASES["many chunks"]
    first, second = (fused(case, inputs(case, torch.bfloat16)) for _ in range(2))
    assert all(torch.equal(first[part], second[part]) for part in first)


class Largest(TorchDispatchMode):
    """Bytes of the largest storage that any torch operation returns or Triton's interpreter looks into."""

    bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


def test_logits_are_never_there_at_once() -> None:
    case = Case(64, 2048, 16, chunks=Chunks(64, 256))
    tensors = inputs(case)
    with Largest() as seen:
        fused(case, tensors)
    assert seen.bytes == 4 * max(64 * 256, 2048 * 16)  # a chunk's gradient, and weight's
    with Largest() as seen:
        oracle(case, tensors)
    assert seen.bytes == 8 * 64 * 2048


@pytest.mark.parametrize("ids", [1, 97, 4096, 50257, 151936])
@pytest.mark.parametrize("positions", [0, 1, 4095, 8192, 100_000, 1_000_000])
@pytest.mark.parametrize("width", [2, 4])
def test_chunks_fit_their_budget(positions: int, ids: int, width: int) -> None:
    chunks = chunks_for(positions, ids, width)
    assert chunks.ids % 256 == 0
    assert chunks.ids < ids + 256
    assert chunks.positions * chunks.ids * width <= linear_ce.BUDGET
    if chunks.positions < positions:
        assert chunks.ids <= 4096


def test_chunks_of_a_large_model() -> None:
    assert chunks_for(8192, 128256, 2) == (8192, 32256)  # 4, not 3 of 32,768 and a rest
    assert chunks_for(131072, 128256, 2).ids <= 4096


class Told:
    """A tensor-parallel rank in a world of one process: reductions are answered from what the ranks asked before."""

    sequence = False

    def __init__(self, rank: int, size: int, asked: list[dict[Any, Tensor]]) -> None:
        self.rank, self.size, self.asked = rank, size, asked

    def all_positions(self, x: Tensor, positions: int) -> Tensor:
        return x

    own_positions = staticmethod(lambda part: part)

    def all_reduce(self, x: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        self.asked[self.rank][op] = x.clone()
        told = torch.stack([ask.get(op, x) for ask in self.asked])
        return told.amax(0) if op == dist.ReduceOp.MAX else told.sum(0)


@pytest.mark.parametrize("valid", [101, 70, 33])
def test_a_vocabulary_cut_over_ranks_is_the_whole(valid: int) -> None:
    """3 ranks of 35 ids. With 33 two ranks have padding alone: -inf and 0 to the others."""
    case = Case(37, 105, 53, valid=valid, softcap=3.0, z_weight=0.01, chunks=Chunks(16, 20))
    x, weight, labels, a, b = tensors = inputs(case)
    asked: list[dict[Any, Tensor]] = [{}, {}, {}]
    for _ in range(3):  # the largest logits are known to all after the first round, the sums after the second
        parts = [
            results(
                linear_cross_entropy,
                (x, weight[35 * rank : 35 * (rank + 1)], labels, a, b),
                vocab_valid=valid - 35 * rank,
                softcap=case.softcap,
                z_weight=case.z_weight,
                chunks=case.chunks,
                tp=Told(rank, 3, asked),
            )
            for rank in range(3)
        ]
    want = oracle(case, tensors)
    of_x = parts[0]["x"] + parts[1]["x"] + parts[2]["x"]
    of_weight = torch.cat([part["weight"] for part in parts])
    for part in parts:
        got = {"nll": part["nll"], "lse": part["lse"], "x": of_x, "weight": of_weight}
        assert not wrong(got, want), errors(got, want)
