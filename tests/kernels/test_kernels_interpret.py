"""The interpreter's patch for bf16: products and casts as torch has them to the bit, everything else refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import InterpreterError

from gristmill.trainer.kernels import interpret
from gristmill.trainer.kernels.config import WIDEST, chip, choose


@triton.jit
def _dot(A, B, C, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    i, j, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    a, b = tl.load(A + i * K + k[None, :]), tl.load(B + k[:, None] * N + j)
    tl.store(C + i * N + j, tl.dot(a, b, tl.load(C + i * N + j), input_precision="ieee"))


@triton.jit
def _cast(X, Y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(Y + i, tl.load(X + i).to(Y.dtype.element_ty))


@triton.jit
def _move(X, Y, N: tl.constexpr):
    """Reversed halves of a masked load through where, reshape, trans, join, split and broadcast."""
    i = tl.arange(0, N)
    x = tl.load(X + i, mask=i > 0, other=-1.5)
    x = tl.where(i < N, x, tl.zeros([N], dtype=tl.bfloat16))
    table = tl.trans(tl.reshape(x, [2, N // 2]))
    first, second = tl.split(table)
    back = tl.reshape(tl.trans(tl.join(second, first)), [N])
    tl.store(Y + i, tl.broadcast_to(back[None, :], [1, N]).reshape([N]))


@triton.jit
def _apply(X, Y, OP: tl.constexpr, N: tl.constexpr):
    x = tl.load(X + tl.arange(0, N))
    y = x
    if OP == "add":
        y = x + x
    elif OP == "add a number":
        y = x + 1.0
    elif OP == "subtract":
        y = x - x
    elif OP == "negate":
        y = -x
    elif OP == "multiply":
        y = x * x
    elif OP == "divide":
        y = x / x
    elif OP == "compare":
        y = tl.where(x < x, x, x)
    elif OP == "maximum":
        y = tl.maximum(x, x)
    elif OP == "exp":
        y = tl.exp(x)
    elif OP == "abs":
        y = tl.abs(x)
    elif OP == "fma":
        y = tl.fma(x, x, x)
    elif OP == "clamp":
        y = tl.clamp(x, 0.0, 1.0)
    elif OP == "cumsum":
        y = tl.cumsum(x, 0)
    elif OP == "max":
        y = tl.max(x, 0) + tl.zeros([N], dtype=tl.float32)
    elif OP == "sum":
        y += tl.sum(x, 0)
    elif OP == "from integer":
        y = tl.arange(0, N).to(tl.bfloat16)
    elif OP == "from double":
        y = x.to(tl.float32).to(tl.float64).to(tl.bfloat16)
    elif OP == "towards zero":
        y = x.to(tl.float32).to(tl.bfloat16, fp_downcast_rounding="rtz")
    elif OP == "atomic":
        tl.atomic_add(Y + tl.arange(0, N), x)
    tl.store(Y + tl.arange(0, N), y.to(Y.dtype.element_ty))


REFUSED = [
    *("add", "add a number", "subtract", "negate", "multiply", "compare", "exp", "abs", "fma", "sum"),
    *("from integer", "from double", "towards zero", "atomic"),
]
WIDENED: dict[str, Callable[[Tensor], Tensor]] = {  # by triton itself, to fp32
    "divide": lambda x: x / x,
    "maximum": lambda x: x,
    "clamp": lambda x: x.clamp(0, 1),
    "cumsum": lambda x: x.cumsum(0),
    "max": lambda x: x.max().expand(x.shape),
}


def all_bf16() -> Tensor:
    """Each of the 65,536 bit patterns."""
    return torch.arange(65536, dtype=torch.int32).sub(32768).short().view(torch.bfloat16)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """NaNs count as one: their payloads are the chip's own."""
    return torch.equal(a.nan_to_num(-7.0, 8.0, -8.0), b.nan_to_num(-7.0, 8.0, -8.0)) and torch.equal(
        a.isnan(), b.isnan()
    )


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    y = torch.empty(x.shape, dtype=dtype)
    _cast[(1,)](x, y, N=x.numel())
    return y


@pytest.mark.parametrize(("M", "N", "K"), [(16, 16, 16), (32, 16, 64), (16, 128, 32)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_dot(M: int, N: int, K: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(s, generator=draw) for s in ((M, K), (K, N), (M, N)))
    a, b = a.to(dtype), b.to(dtype)
    got = c.clone()
    _dot[(1,)](a, b, got, M=M, N=N, K=K)
    exact = a.double() @ b.double() + c.double()
    assert (got.double() - exact).abs().max() / exact.abs().max() < 5e-7


def test_casts_up_are_exact() -> None:
    assert same_bits(cast(all_bf16(), torch.float32), all_bf16().float())


def test_casts_down_round_to_even() -> None:
    """Around every bf16: half way to its neighbour and one unit less and more, as torch rounds; overflow is infinite."""
    bits = all_bf16().view(torch.int16).int() << 16
    for offset in (0, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        x = (bits + offset).view(torch.float32)
        assert same_bits(cast(x, torch.bfloat16), x.bfloat16()), offset
    draw = torch.randn(65536, generator=torch.Generator().manual_seed(0))
    assert same_bits(cast(draw, torch.bfloat16), draw.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32], ids=str)
def test_casts_by_way_of_fp32(dtype: torch.dtype) -> None:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0)).bfloat16() * 1000
    assert torch.equal(cast(x, dtype), x.float().to(dtype))
    half = x.half()
    assert torch.equal(cast(half, torch.bfloat16), half.float().bfloat16())


def test_moves() -> None:
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)).bfloat16()
    y = torch.empty_like(x)
    _move[(1,)](x, y, N=64)
    expected = x.clone()
    expected[0] = -1.5
    assert torch.equal(y, torch.cat([expected[32:], expected[:32]]))


@pytest.mark.parametrize("operation", REFUSED)
def test_the_rest_is_refused(operation: str) -> None:
    x = torch.ones(16, dtype=torch.bfloat16)
    with pytest.raises(InterpreterError, match=r"no bf16.*\.to\(tl\.float32\)|get_bf16|but got bf16"):
        _apply[(1,)](x, x.clone(), OP=operation, N=16)
    if operation not in ("from integer", "from double", "towards zero"):  # of other dtypes nothing is refused
        _apply[(1,)](torch.ones(16), torch.ones(16), OP=operation, N=16)


@pytest.mark.parametrize("operation", WIDENED)
def test_what_triton_widens_is_right(operation: str) -> None:
    x = torch.randn(16, generator=torch.Generator().manual_seed(0)).bfloat16()
    y = torch.empty_like(x)
    _apply[(1,)](x, y, OP=operation, N=16)
    assert torch.equal(y, WIDENED[operation](x.float()).bfloat16())


def test_every_operation_is_decided() -> None:
    """An operation that a new triton brings is refused until it is looked at; the names that pass exist."""
    from triton.runtime.interpreter import InterpreterBuilder

    names = {name for name in dir(InterpreterBuilder) if name.startswith("create_")}
    assert names >= interpret.COVERED
    for name in names - interpret.COVERED:
        assert getattr(InterpreterBuilder, name).__name__ == "refuse", name
    before: Callable[..., Any] = InterpreterBuilder.create_dot
    interpret.patch()
    assert InterpreterBuilder.create_dot is before, "patched twice"


UNPATCHED = """
import importlib.util, sys, types
import gristmill.trainer.kernels.interpret as interpret
interpret.patch = lambda: None
spec = importlib.util.spec_from_file_location("cases", sys.argv[1])
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)
import torch
wrong = []
for name, test in (
    ("dot", lambda: cases.test_dot(16, 16, 16, torch.bfloat16)),
    ("down", cases.test_casts_down_round_to_even),
    ("add", lambda: cases.test_the_rest_is_refused("add")),
):
    try:
        test()
    except BaseException:
        wrong.append(name)
print(",".join(wrong))
"""


def test_without_the_patch_these_tests_fail() -> None:
    """When they pass, triton has mended its interpreter: the patch can go."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", UNPATCHED, __file__], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "dot,down,add", done.stderr[-2000:]


def test_table_of_tiles() -> None:
    """A choice for every kernel, width and chip: tiles hold a row, warps are powers of two that a program may have."""
    assert chip() == "interpreter"
    for kernel in ("norm forward", "norm backward", "rope forward", "rope backward", "mlp forward", "mlp backward"):
        for on in ("interpreter", "sm80", "sm90", "sm100", "gfx942"):
            for width in (1, 24, 96, 128, 1024, 4096, 5120, WIDEST):
                c = choose(kernel, width, on)  # type: ignore[arg-type]
                assert c.block >= width > c.block // 2
                assert c.rows & (c.rows - 1) == 0
                assert c.warps & (c.warps - 1) == 0
                assert 1 <= c.warps <= (16 if on == "gfx942" else 32)
                assert (c.programs > 0) == (kernel in ("norm backward", "rope backward"))
                assert c.reason
    with pytest.raises(ValueError, match="rows of 0"):
        choose("norm forward", 0, "sm90")
