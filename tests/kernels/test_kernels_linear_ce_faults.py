"""Mistakes that such kernels are known for, planted one by one into the fused cross-entropy: a comparison must fail."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_planting import plant
from kernels_linear_ce import Case, errors, fused, inputs, oracle, wrong

from gristmill.trainer.kernels import linear_ce, linear_ce_kernels
from gristmill.trainer.kernels.linear_ce import Chunks


@pytest.fixture(autouse=True)
def memory_of_nan() -> Iterator[None]:
    """torch.empty fills with NaN: what a kernel left out isn't right by the chance of what lay there before."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


EVERYTHING = Case(41, 150, 40, 131, 5.0, 0.05, Chunks(16, 50), 2.0)  # softcap, z-loss, padded ids, many chunks each way

KERNELS = {  # (kernel, text, what it reads instead)
    "ids beyond the chunk have a probability": (
        "_statistics_kernel",
        'logits = tl.where((n < columns)[None, :], logits, float("-inf"))',
        "logits = logits",
    ),
    "the label's column counts from the vocabulary's start": ("_gradient_kernel", "other=-1) - first", "other=-1)"),
    "the label's logit too": ("_statistics_kernel", "other=-1) - first", "other=-1)"),
    "every block of ids writes the label's logit": ("_statistics_kernel", "(label // BN == across) & ", ""),
    "the softcap is left out": ("_statistics_kernel", "logits = cap * (2 *", "logits = logits + 0 * (2 *"),
    "its derivative is left out": (
        "_gradient_kernel",
        "g *= 1 - (logits * inverse)",
        "g *= 1 - 0 * (logits * inverse)",
    ),
    "the hidden width's rest is left out": (
        "_gradient_kernel",
        "range(0, width, BK)",
        "range(0, width // BK * BK, BK)",
    ),
    "blocks of positions in two groups": (
        "_statistics_kernel",
        "return group * GROUP + inside",
        "return group + inside",
    ),
    "no gradient at the label": ("_gradient_kernel", "of_label[:, None], 0.0)", "0.0, 0.0)"),
}
LAUNCHERS = {  # (function or class, text, what it reads instead)
    "missing z-loss term": ("LinearCrossEntropy", " + 2 * options.z_weight * lse_N * of_nll_N", ""),
    "missing z-loss": ("LinearCrossEntropy", "loss_N + options.z_weight * lse_N.square()", "loss_N"),
    "no gradient through the log-sum-exp": ("LinearCrossEntropy", "of_nll_N + of_lse_N", "of_nll_N"),
    "ignored positions learn": ("LinearCrossEntropy", "* of_nll_N).where(valid_N, 0.0)", "* of_nll_N)"),
    "lost dW chunk": ("gradients", "part_vC if of_ids_vC is None else of_ids_vC.add_(part_vC)", "part_vC"),
    "lost dx chunk": ("gradients", "of_x_NC[m] += ", "of_x_NC[m] = "),
    "dW of the wrong ids": ("gradients", "of_weight_vC[n] = of_ids_vC", "of_weight_vC[: len(of_ids_vC)] = of_ids_vC"),
    "the sum isn't rescaled": ("log_sum_exp", "total_N = total_N * (top_N - above_N).exp() +", "total_N = total_N +"),
    "the last chunk is left out": (
        "log_sum_exp",
        "for ids in _pieces(options.valid,",
        "for ids in _pieces(options.valid - 31,",
    ),
    "padded ids have a probability": (
        "log_sum_exp",
        "for ids in _pieces(options.valid,",
        "for ids in _pieces(len(weight_vC),",
    ),
}


def compare(case: Case = EVERYTHING, dtype: torch.dtype = torch.float32) -> None:
    tensors = inputs(case, dtype)
    got, want = fused(case, tensors), oracle(case, tensors)
    assert not wrong(got, want, dtype), errors(got, want)


def test_without_a_bug_all_is_right() -> None:
    compare()
    compare(TALL)
    compare(CHUNKS_OF_16_BITS, torch.bfloat16)


TALL = Case(11 * 32 - 5, 130, 16)  # more blocks of positions than one group, and three of ids in a chunk
OF_SEVERAL_BLOCKS = ("blocks of positions in two groups", "every block of ids writes the label's logit")


@pytest.mark.parametrize("bug", KERNELS)
def test_a_planted_bug_in_a_kernel_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plant(monkeypatch, tmp_path, linear_ce_kernels, *KERNELS[bug])
    with pytest.raises(AssertionError):
        compare(TALL if bug in OF_SEVERAL_BLOCKS else EVERYTHING)


@pytest.mark.parametrize("bug", LAUNCHERS)
def test_a_planted_bug_in_a_launcher_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plant(monkeypatch, tmp_path, linear_ce, *LAUNCHERS[bug])
    with pytest.raises(AssertionError):
        compare()


CHUNKS_OF_16_BITS = Case(256, 20, 16, chunks=Chunks(4, 20))


def test_sums_of_dw_in_16_bits_are_caught(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = "part_vC = ALONE.product(g_Nv.t(), x_NC[m])"
    plant(monkeypatch, tmp_path, linear_ce, "gradients", old, old + ".to(x_NC.dtype)")
    with pytest.raises(AssertionError):
        compare(CHUNKS_OF_16_BITS, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_a_softmax_rounded_before_the_label_is_taken_away_is_caught(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weight = torch.zeros(17, 16, dtype=dtype)
    weight[3, 0] = 1
    x = torch.zeros(4, 16, dtype=dtype)
    x[:, 0] = 10.0
    tensors = x, weight, torch.full((4,), 3), torch.ones(4), torch.zeros(4)
    case = Case(4, 17, 16)
    want = oracle(case, tensors)["x"]
    assert torch.allclose(fused(case, tensors)["x"].double(), want, rtol=2 * torch.finfo(dtype).eps, atol=0)
    old = "g = tl.exp(logits - lse[:, None]) * of_all[:, None]"
    new = old + "\n    g = g.to(G.dtype.element_ty).to(tl.float32)"
    plant(monkeypatch, tmp_path, linear_ce_kernels, "_gradient_kernel", old, new)
    assert not torch.allclose(fused(case, tensors)["x"].double(), want, rtol=0.05, atol=0)


FAR = """
import pathlib, sys
import pytest, torch
from kernel_planting import plant
from kernels_linear_ce import Case, inputs
from gristmill.trainer.kernels import linear_ce_kernels as kernels
where, kernel, old, new, which = sys.argv[1:]
plant(pytest.MonkeyPatch(), pathlib.Path(where), kernels, kernel, old, new)
x, weight, labels, a, _ = inputs(Case(3, 5, 16), torch.float16)

def far(t, columns):  # row 2 begins at element 2^31: memory that is never touched but for the rows themselves
    return torch.empty(2**31 + columns, dtype=t.dtype).as_strided((len(t), columns), (2**30, 1))

many = torch.cat([weight[:3]])
x_far, weight_far = (far(t, 16).copy_(t) if which == name else t for name, t in (("x", x), ("weight", many)))
labels = labels.clamp(max=2)
picked = torch.zeros(3)
top, total = kernels.statistics(x_far, weight_far, labels, 0, None, picked)
logits = x.float() @ many.float().t()
torch.testing.assert_close(top[0], logits.amax(1))
torch.testing.assert_close(picked.where(labels >= 0, 0), logits.gather(1, labels.clamp(min=0)[:, None])[:, 0].where(labels >= 0, 0))
out = far(x, 256) if which == "gradient" else torch.empty(3, 256, dtype=x.dtype)
kernels.gradient(x_far, weight_far, labels, 0, None, logits.logsumexp(1), a, torch.zeros(3), out)
torch.testing.assert_close(out[:, :3].float(), logits.softmax(1) * a[:, None], rtol=1e-3, atol=1e-5)
"""
OFFSETS = {
    "x": ("_statistics_kernel", "tl.minimum(m, rows - 1).to(tl.int64)", "tl.minimum(m, rows - 1)"),
    "weight": ("_statistics_kernel", "tl.minimum(n, columns - 1).to(tl.int64)", "tl.minimum(n, columns - 1)"),
    "gradient": ("_gradient_kernel", "m.to(tl.int64)[:, None] * g_row", "m[:, None] * g_row"),
}


def far(folder: Path, which: str, kernel: str, old: str, new: str) -> subprocess.CompletedProcess[str]:
    """The kernels on rows 2^30 elements apart, in a process of its own: a wrapped address may kill it."""
    tests = str(Path(__file__).resolve().parents[1])
    environment: dict[str, Any] = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": tests}
    command = [sys.executable, "-c", FAR, str(folder), kernel, old, new, which]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("which", OFFSETS)
def test_offsets_beyond_32_bits(which: str, tmp_path: Path) -> None:
    kernel, old, new = OFFSETS[which]
    done = far(tmp_path, which, kernel, old, old)
    assert done.returncode == 0, done.stderr[-2000:]
    assert far(tmp_path, which, kernel, old, new).returncode != 0
