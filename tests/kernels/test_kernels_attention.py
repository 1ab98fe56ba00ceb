"""Document-masked attention against fp64: shapes that hurt, dtypes, visited tiles, properties, strides and offsets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_errors import note
from kernels_attention import SIXTEEN, Case, errors, inputs, kernels, needed, oracle, positions, walked, worst

from gristmill.trainer.kernels import attention, attention_backward, reference_attention
from gristmill.trainer.kernels.attention_tiles import Tiles

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
WIDE, TALL = Tiles(16, 32), Tiles(64, 16)

CASES = {
    "one token": Case([[1]]),
    "one document, a block exactly": Case([[32]]),
    "primes": Case([[7, 13, 3, 14], [37]], heads=4, groups=2, head_dim=32, tiles=(WIDE, TALL, WIDE)),
    "borders on and beside blocks": Case([[16, 1, 15, 33]], tiles=(SIXTEEN, WIDE, TALL)),
    "tall tiles": Case([[50, 3, 30]], heads=3, groups=3, tiles=(TALL, TALL, TALL)),
    "24 of 32 dimensions": Case([[20, 23]], heads=4, groups=2, head_dim=24),
    "96 of 128 dimensions": Case([[5, 40]], head_dim=96),
    "128 dimensions, 8 heads a key head": Case([[30, 10]], heads=8, head_dim=128, tiles=(Tiles(64, 64),) * 3),
    "2 of 16 dimensions": Case([[9, 8]], head_dim=2, heads=1),
    "tokens alone, but one pair": Case([[1] * 30 + [2]]),
}


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_oracle_forward_and_backward(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    tensors, position_BT = inputs(case, dtype)
    got = kernels(tensors, position_BT, case)
    want = oracle(tensors, position_BT)
    off = errors(got, want)
    assert worst(got, want, dtype) <= 1, off
    note("varlen attention", dtype, name, off["y"], max(off["dq"], off["dk"], off["dv"]))


def row_of(documents: int, length: int) -> list[int]:
    """`documents` lengths, uneven and in no order, that sum to `length`."""
    cuts = torch.randperm(length - 1, generator=torch.Generator().manual_seed(documents))[: documents - 1] + 1
    ends = torch.cat([cuts.sort().values, torch.tensor([length])])
    return [int(n) for n in torch.diff(ends, prepend=torch.tensor([0]))]


@pytest.mark.parametrize("documents", [1, 17, 500])
def test_1_to_500_documents_in_a_row_of_512(documents: int) -> None:
    case = Case([row_of(documents, 512)], heads=1, tiles=(Tiles(128, 64), Tiles(128, 128), Tiles(64, 128)))
    tensors, position_BT = inputs(case, FP32)
    visited = tuple(torch.zeros(512, dtype=torch.int32) for _ in range(3))
    got = kernels(tensors, position_BT, case, visited=(visited[0], visited[1], visited[2]))
    assert worst(got, oracle(tensors, position_BT), FP32) <= 1
    for seen, t in zip(visited, case.tiles, strict=True):
        assert int(seen.sum()) == reference_attention.needed_tiles(position_BT, t.m, t.n)


BLOCKED = Case([[64, 64, 64], [40, 100, 1, 51]], heads=2, tiles=(SIXTEEN, WIDE, Tiles(32, 16)))


def test_tiles_between_documents_are_not_visited() -> None:
    """As many as have a visible pair, counted from the T x T mask; far fewer than one document would take."""
    assert walked(BLOCKED) == needed(BLOCKED)
    one = BLOCKED._replace(documents=[[192], [192]])
    assert all(some < 0.7 * whole for some, whole in zip(needed(BLOCKED), needed(one), strict=True))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    st.lists(st.sampled_from([SIXTEEN, WIDE, Tiles(32, 16), Tiles(16, 64), Tiles(64, 32)]), min_size=3, max_size=3),
)
def test_any_documents_any_tiles(documents: list[int], tiles: list[Tiles]) -> None:
    case = Case([documents], heads=2, groups=1, tiles=(tiles[0], tiles[1], tiles[2]))
    tensors, position_BT = inputs(case, FP32)
    visited = [torch.zeros(64, dtype=torch.int32) for _ in range(3)]
    got = kernels(tensors, position_BT, case, visited=(visited[0], visited[1], visited[2]))
    assert worst(got, oracle(tensors, position_BT), FP32) <= 1
    assert [int(x.sum()) for x in visited] == needed(case)


def test_the_order_of_documents_changes_nothing() -> None:
    order, lengths = [2, 0, 3, 1], [11, 30, 5, 21]
    case = Case([lengths], heads=2, head_dim=16, tiles=(SIXTEEN, SIXTEEN, SIXTEEN))
    tensors, position_BT = inputs(case, FP32)
    taken = torch.cat([torch.arange(67).split(lengths)[i] for i in order])
    moved = case._replace(documents=[[lengths[i] for i in order]])
    got = kernels([x[:, taken] for x in tensors], positions(moved.documents), moved)
    plain = kernels(tensors, position_BT, case)
    for name, a, b in zip(got._fields, got, plain, strict=True):
        b = b[:, :, taken] if name == "lse" else b[:, taken]
        torch.testing.assert_close(a, b, rtol=0, atol=3e-6)


def test_gradients_add_up() -> None:
    """A query's weights sum to 1, so over a document dV sums to what dY of its group's heads sums to."""
    case = Case([[9, 28, 4]], heads=4, groups=2)
    tensors, position_BT = inputs(case, FP32)
    dv = kernels(tensors, position_BT, case).dv
    by_group = tensors[3].unflatten(2, (2, 2)).sum(3)
    for a, b in zip(dv.split([9, 28, 4], 1), by_group.split([9, 28, 4], 1), strict=True):
        torch.testing.assert_close(a.sum(1), b.sum(1), rtol=0, atol=2e-5)


@pytest.mark.parametrize("scale", [1.0, 0.03])
def test_scale(scale: float) -> None:
    case = Case([[20, 25]])
    tensors, position_BT = inputs(case, FP32)
    assert worst(kernels(tensors, position_BT, case, scale), oracle(tensors, position_BT, scale), FP32) <= 1


def test_large_scores_do_not_overflow() -> None:
    case = Case([[20, 25]])
    tensors, position_BT = inputs(case, FP32)
    tensors[0] *= 100
    with np.errstate(over="ignore"):  # of hidden scores, which are masked after exp2
        got, want = kernels(tensors, position_BT, case), oracle(tensors, position_BT)
    assert max(errors(got, want).values()) < 1e-4  # scores near 500: an fp32 score is exact to 3e-5


# --- strides and memory


def test_views_of_one_projection_and_gradients_of_any_strides() -> None:
    case = Case([[10, 27], [37]], heads=2, groups=1, head_dim=16)
    (q, k, v, dy), position_BT = inputs(case, FP32)
    packed = torch.cat([q, k, v], 2)
    views = packed.split([2, 1, 1], 2)
    want = oracle([q, k, v, dy], position_BT)
    by_head = dy.transpose(1, 2).contiguous().transpose(1, 2)
    every_second = torch.stack([dy, dy + 1], -1).flatten(3)[..., ::2]
    for gradient in (by_head, every_second):
        assert not gradient.is_contiguous()
        assert torch.equal(gradient, dy)
        assert worst(kernels([*views, gradient], position_BT, case), want, FP32) <= 1
    spread = torch.tensor(0.5).expand_as(dy)  # what sum() sends back: all strides 0
    assert worst(kernels([*views, spread], position_BT, case), oracle([q, k, v, spread], position_BT), FP32) <= 1


def test_nothing_outside_the_tensors_is_read_or_written() -> None:
    """NaN and a sentinel around what the kernels get: lengths and dimensions end inside a block."""
    case = Case([[21, 16]], heads=2, groups=1, head_dim=24)
    tensors, position_BT = inputs(case, FP32)
    fenced = []
    for x in tensors:
        buffer = torch.full((1, 37 + 64, x.shape[2] + 2, 24 + 40), float("nan"))
        buffer[:, 32:69, 1:-1, 20:44] = x
        fenced.append(buffer[:, 32:69, 1:-1, 20:44])
    q, k, v, dy = fenced
    bounds, scale = attention.document_bounds(position_BT), 24**-0.5
    outer = [torch.full((1, 37 + 64, n + 2, 24 + 40), 7.0) for n in (2, 2, 1, 1)]
    inner = [x[:, 32:69, 1:-1, 20:44] for x in outer]
    y, lse = attention.forward(q, k, v, bounds, scale, tiles=case.tiles[0], y_BTHD=inner[0])
    given = attention_backward.backward(
        dy, q, k, v, y, lse, bounds, scale, tiles=case.tiles[1:], outputs=(inner[1], inner[2], inner[3])
    )
    want = oracle(tensors, position_BT)
    assert max(errors(type(want)(y, lse, *given), want).values()) < 2e-6
    for x in outer:
        x[:, 32:69, 1:-1, 20:44] = 7.0
        assert (x == 7.0).all()


OFFSETS = """
import importlib.util, sys, torch
def module(path):
    spec = importlib.util.spec_from_file_location("under_test", path); m = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(m); return m
A, B = module(sys.argv[1]), module(sys.argv[2])
generator = torch.Generator().manual_seed(0)
def far(shape, strides):
    x = torch.empty(sum((n - 1) * s for n, s in zip(shape, strides)) + 1, dtype=torch.float16)  # lazy
    return x.as_strided(shape, strides)
position = torch.arange(20).remainder(13)[None].expand(2, -1).contiguous()
# a row, a position and a head that start beyond 2^31 elements
for strides in ((2**31 + 512, 32, 16, 1), (16, 2**27, 32, 1), (512, 16, 2**31 + 512, 1)):
    q, k, v, dy, y, dq, dk, dv = (far((2, 20, 2, 16), strides) for _ in range(8))
    for x in (q, k, v, dy): x.copy_(torch.randn(x.shape, generator=generator))
    near = [x.contiguous() for x in (q, k, v, dy)]
    bounds = A.document_bounds(position)
    lse = A.forward(q, k, v, bounds, 0.25, y_BTHD=y)[1]
    B.backward(dy, q, k, v, y, lse, bounds, 0.25, outputs=(dq, dk, dv))
    want_y, want_lse = A.forward(*near[:3], bounds, 0.25)
    want = B.backward(near[3], *near[:3], want_y, want_lse, bounds, 0.25)
    for a, b in zip((y, lse, dq, dk, dv), (want_y, want_lse, *want)): assert torch.equal(a, b), strides
print("equal")
"""


def offsets(forward: str, backward: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", OFFSETS, forward, backward]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


def test_offsets_are_64_bit(tmp_path: Path) -> None:
    """Rows, positions and heads whose elements lie beyond 2^31; the same with 32-bit positions fails."""
    forward, backward = str(attention.__file__), str(attention_backward.__file__)
    own = tmp_path / "own.py"
    own.write_text(Path(forward).read_text().replace('"gristmill::', '"own::'))
    done = offsets(str(own), backward)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]
    source = own.read_text()
    wrong = "pointers = P + at.to(tl.int64)[:, None] * stride + d[None, :]\n    if BOUND"
    assert source.count(wrong) == 1
    own.write_text(
        source.replace(wrong, wrong.replace("int64", "int32").replace("stride +", "tl.cast(stride, tl.int32) +"))
    )
    done = offsets(str(own), backward)
    assert done.returncode != 0
    assert "equal" not in done.stdout
