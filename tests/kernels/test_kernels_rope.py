"""The RoPE kernel with and without QK-norm against fp64, at shapes that hurt, strided, and with planted bugs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_errors import DTYPES, Pairs, between_nans, check, error, guarded
from kernel_planting import plant
from torch import Tensor

from gristmill.trainer.architecture import Model
from gristmill.trainer.kernels import reference, rope
from gristmill.trainer.kernels.config import Choice
from gristmill.trainer.rope import rotary_table, rotate

EPS = 1e-5

# (B, T, heads, key heads, D): the least, odd counts of heads, more key heads than a power of two, several rows and tiles.
SHAPES = [(1, 1, 1, 1, 2), (2, 7, 3, 1, 24), (1, 67, 4, 2, 64), (3, 31, 5, 5, 14), (2, 129, 8, 2, 32), (1, 0, 2, 1, 8)]


class Inputs(NamedTuple):
    q: Tensor
    k: Tensor
    cos: Tensor
    sin: Tensor
    q_weight: Tensor | None
    k_weight: Tensor | None
    dq: Tensor
    dk: Tensor


def draw(shape: tuple[int, ...], dtype: torch.dtype, norm: bool, seed: int = 0) -> Inputs:
    B, T, heads, groups, D = shape
    make = torch.Generator().manual_seed(seed)
    q, dq, k, dk = (torch.randn(B, T, n, D, generator=make).to(dtype) for n in (heads, heads, groups, groups))
    angle = (5 * torch.randn(B, T, D // 2, generator=make)).repeat(1, 1, 2)
    q_weight, k_weight = ((1 + 0.3 * torch.randn(D, generator=make)).to(dtype) if norm else None for _ in range(2))
    return Inputs(q, k, angle.cos(), angle.sin(), q_weight, k_weight, dq, dk)


def run(of: Inputs, module: Any = rope) -> list[Tensor | None]:
    """[q, k, dq, dk, dw of q, dw of k]."""
    q, k, q_weight, k_weight = (
        None if t is None else t.detach().requires_grad_() for t in (of.q, of.k, of.q_weight, of.k_weight)
    )
    assert q is not None
    assert k is not None
    turned = module.rope_qk(q, k, of.cos, of.sin, q_weight, k_weight, EPS)
    torch.autograd.backward(turned, [of.dq, of.dk])
    return [*(t.detach() for t in turned), *(None if t is None else t.grad for t in (q, k, q_weight, k_weight))]


def wide(of: Inputs) -> list[Tensor | None]:
    return run(Inputs(*(None if t is None else t.double() for t in of)), reference)  # type: ignore[arg-type]


def compare(of: Inputs) -> None:
    found, oracle = run(of), wide(of)
    normed = [of.q_weight is not None, of.k_weight is not None]
    forward: Pairs = {"q": (found[0], oracle[0]), "k": (found[1], oracle[1])}
    backward: Pairs = {}
    for i, (x, weight, dy) in enumerate(((of.q, of.q_weight, of.dq), (of.k, of.k_weight, of.dk))):
        name, terms = "qk"[i], dy.double()
        if weight is not None:
            terms = torch.rsqrt(x.double().square().mean(-1, keepdim=True) + EPS) * terms.abs().amax(-1, True)
            terms = terms * weight.double().abs().max()
            backward[f"dw of {name}"] = (found[4 + i], oracle[4 + i])
        backward[f"d{name}"] = (found[2 + i], oracle[2 + i], terms)
    shape = (tuple(of.q.shape), tuple(of.k.shape), of.q.stride(), of.dq.stride(), *normed)
    check("QK-norm + RoPE" if any(normed) else "RoPE", of.q.dtype, shape, forward, backward)


@pytest.mark.parametrize("norm", [False, True], ids=["rope", "norm"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rope(shape: tuple[int, ...], dtype: torch.dtype, norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with guarded(monkeypatch):
        compare(draw(shape, dtype, norm))


@pytest.mark.parametrize("norm", [False, True], ids=["rope", "norm"])
def test_strides(norm: bool) -> None:
    of = draw((2, 13, 3, 2, 24), torch.bfloat16, norm)
    together = between_nans(torch.cat([of.q.flatten(2), of.k.flatten(2)], -1))  # slices of one fused projection
    q, k = (t.unflatten(-1, (-1, 24)) for t in together.split([72, 48], -1))
    assert not q.is_contiguous()
    compare(of._replace(q=q, k=k))
    heads_first = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (of.dq, of.dk)]  # as attention returns them
    compare(of._replace(dq=heads_first[0], dk=heads_first[1]))
    one = torch.ones((), dtype=torch.bfloat16)
    compare(of._replace(dq=one.expand(of.dq.shape), dk=one.expand(of.dk.shape)))  # the gradient of a sum
    compare(of._replace(q=of.q.mT.contiguous().mT))  # elements of a head lie apart: copied
    row = [t[:1].expand_as(t) for t in (of.cos, of.sin)]  # one table for all rows
    compare(of._replace(cos=row[0], sin=row[1]))
    compare(of._replace(q_weight=None))  # a norm on keys alone
    compare(of._replace(cos=of.cos.bfloat16(), sin=of.sin.bfloat16()))


def test_in_place() -> None:
    """The same bits as out of place, in slices of a wider tensor of which nothing else changes."""
    for norm in (False, True):
        of = draw((2, 13, 3, 2, 24), torch.bfloat16, norm)
        q, k = between_nans(of.q), of.k.clone()
        expected = rope.rope_qk(*of[:6], EPS)
        rope.rope_qk_(q, k, *of[2:6], EPS)
        assert torch.equal(q, expected[0])
        assert torch.equal(k, expected[1])
    with pytest.raises(ValueError, match="in place"):
        rope.rope_qk_(of.q.mT.contiguous().mT, of.k, of.cos, of.sin)


def test_as_the_trainers_own_rotation() -> None:
    c = Model.model_validate({"layers": 1, "hidden": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "ffn": 8})
    cos, sin = (t.expand(2, -1, -1) for t in rotary_table(c, 40))
    of = draw((2, 40, 2, 1, 16), torch.float32, norm=False)
    q, k = rope.rope_qk(of.q, of.k, cos, sin)
    assert error(q, rotate(of.q, cos, sin)) < 2e-7
    assert error(k, rotate(of.k, cos, sin)) < 2e-7


def test_mixed_dtypes() -> None:
    of = draw((1, 9, 2, 1, 16), torch.bfloat16, norm=True)
    assert of.q_weight is not None
    assert of.k_weight is not None
    of = of._replace(q_weight=of.q_weight.float(), k_weight=of.k_weight.float())
    found, oracle = run(of), wide(of)
    for i in (4, 5):
        assert found[i].dtype == torch.float32  # type: ignore[union-attr]
        assert error(found[i], oracle[i]) < 1e-6  # type: ignore[arg-type]


def test_refusals() -> None:
    q, k, cos, sin = draw((2, 5, 2, 1, 8), torch.float32, norm=False)[:4]
    with pytest.raises(ValueError, match="even D"):
        rope.rope_qk(q[..., :7], k[..., :7], cos, sin)
    with pytest.raises(ValueError, match="heads, even D"):
        rope.rope_qk(q, k.half(), cos, sin)
    with pytest.raises(ValueError, match="cos and sin"):
        rope.rope_qk(q, k, cos[:, :4], sin[:, :4])
    with pytest.raises(ValueError, match="weight"):
        rope.rope_qk(q, k, cos, sin, torch.ones(4))


# Properties.
@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    st.integers(1, 2), st.integers(1, 9), st.integers(1, 5), st.integers(1, 3), st.integers(1, 20), st.integers(0, 9)
)
def test_a_rotation(B: int, T: int, heads: int, groups: int, half: int, seed: int) -> None:
    """Lengths stay; the gradient of what comes out, turned back, is what went in; heads and positions are independent."""
    of = draw((B, T, heads, groups, 2 * half), torch.float32, norm=False, seed=seed)
    q, k = rope.rope_qk(of.q, of.k, of.cos, of.sin)
    assert error(q.square().sum(-1), of.q.square().sum(-1)) < 1e-6
    back = run(of._replace(dq=q, dk=k))
    assert error(back[2], of.q) < 1e-6  # type: ignore[arg-type]
    assert error(back[3], of.k) < 1e-6  # type: ignore[arg-type]
    order = torch.randperm(T, generator=torch.Generator().manual_seed(seed))
    permuted = rope.rope_qk(of.q[:, order], of.k[:, order].flip(2), of.cos[:, order], of.sin[:, order])
    assert torch.equal(permuted[0], q[:, order])
    assert torch.equal(permuted[1], k[:, order].flip(2))


@settings(max_examples=5, deadline=None, derandomize=True)
@given(st.integers(2, 9), st.integers(-6, 6), st.integers(0, 9))
def test_linear_in_the_gradient(T: int, power: int, seed: int) -> None:
    of = draw((2, T, 3, 2, 12), torch.float32, norm=True, seed=seed)
    one, scaled = run(of), run(of._replace(dq=of.dq * 2.0**power, dk=of.dk * 2.0**power))
    parts = [run(Inputs(*(t[b : b + 1] if t is not None and t.dim() > 1 else t for t in of))) for b in range(2)]  # type: ignore[arg-type]
    for i in range(2, 6):
        assert torch.equal(one[i] * 2.0**power, scaled[i])  # type: ignore[operator,arg-type]
    for i in (4, 5):
        assert error(one[i], parts[0][i] + parts[1][i]) < 2e-6  # type: ignore[operator,arg-type]


def test_relative_positions() -> None:
    """Scores depend on how far q and k lie apart alone (Su et al., arXiv 2104.09864)."""
    c = Model.model_validate({"layers": 1, "hidden": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "ffn": 8})
    cos, sin = (t[None] for t in rotary_table(c, 40))
    q, k = (torch.randn(1, 1, 1, 16, generator=torch.Generator().manual_seed(i)).expand(1, 40, 1, 16) for i in (0, 1))
    q, k = rope.rope_qk(q, k, cos, sin)
    scores = q[0, :, 0] @ k[0, :, 0].T
    assert (scores.diagonal(3) - scores[0, 3]).abs().max() < 1e-5
    assert scores.std() > 0.1


@pytest.mark.parametrize(("rows", "programs"), [(1, 2), (2, 9), (8, 3), (64, 2)])
def test_any_tiling(rows: int, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rope, "choose", lambda kernel, width: Choice(rows, width, 4, programs, "a test"))
    compare(draw((2, 11, 3, 1, 12), torch.float32, norm=True))


HEADS = "(position < N)[:, None, None] & (head < COUNT) & (i < HALF)"
BUGS = {  # {what: (kernel, old, new)}
    "turned the other way": ("_forward_kernel", "(first * cos - second * sin)", "(first * cos + second * sin)"),
    "not turned back": ("_backward_kernel", "second = dy_second * cos - dy_first * sin", "second = dy_second * cos + dy_first * sin"),
    "heads outside": ("_forward_kernel", HEADS, HEADS.replace("head < COUNT", "head <= COUNT")),
    "dimensions outside": ("_forward_kernel", HEADS, HEADS.replace("i < HALF", "i < WIDE")),
    "positions outside": ("_forward_kernel", HEADS, HEADS.replace("position < N", "position <= N")),
    "rows as one": ("_forward_kernel", "(position // T).to(tl.int64) * strides[0] + (position % T).to(tl.int64) * strides[1]\n    i =", "position.to(tl.int64) * strides[1]\n    i ="),
    "norm of half a head": ("_forward_kernel", "tl.sum(first * first + second * second, 2)", "tl.sum(first * first, 2)"),
    "no projection": ("_backward_kernel", "first = (first - x_first * along)", "first = (first - 0 * x_first * along)"),
    "later tiles of dw lost": ("_backward_kernel", "sum_first += first * x_first", "sum_first = first * x_first"),
    "weight before its gradient": (
        "_backward_kernel",
        "            sum_first += first * x_first\n            sum_second += second * x_second\n            first *= weight_first\n",
        "            first *= weight_first\n            sum_first += first * x_first\n            sum_second += second * x_second\n",
    ),
}  # fmt: skip


def all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    of = draw((2, 11, 3, 1, 12), torch.float32, norm=True)
    with guarded(monkeypatch):
        compare(of._replace(q=between_nans(of.q), k=between_nans(of.k)))
        one = [t[:1].expand_as(t) for t in (of.cos, of.sin)]  # one table for all rows
        compare(of._replace(cos=one[0], sin=one[1], q_weight=None, k_weight=None))


def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rope, "choose", lambda kernel, width: Choice(2, width, 4, 5, "several tiles a program"))


def test_without_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch)
    all_of_it(monkeypatch)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small_tiles(monkeypatch)
    source = Path(str(rope.__file__)).read_text()
    kernel, old, new = BUGS[bug]
    if source.count(old) != 1:  # of two helpers that read alike, the first
        at = source.index(old)
        old, new = source[: at + len(old)], source[:at] + new
    plant(monkeypatch, tmp_path, rope, kernel, old, new)
    with pytest.raises(AssertionError):
        all_of_it(monkeypatch)
