"""Faults planted into the attention kernels are caught by the comparison with fp64 or by the counter of tiles."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from kernels_attention import SIXTEEN, Case, inputs, needed, oracle, planted, walked, worst

from gristmill.trainer.kernels import attention, attention_backward

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a faulty kernel may overflow

BF16 = torch.bfloat16
SEEN = "(n[None, :] <= m[:, None]) & (n[None, :] >= start[:, None])"
SEEN_KV = "(n[:, None] <= m[None, :]) & (n[:, None] >= start[None, :]) & (m[None, :] < T)"
FORWARD_FAULTS = {
    "documents are not told apart": (SEEN, "(n[None, :] <= m[:, None])"),
    "the next token is seen": (SEEN, SEEN.replace("n[None, :] <= m", "n[None, :] <= 1 + m")),
    "a token does not see itself": (SEEN, SEEN.replace("n[None, :] <= m", "n[None, :] < m")),
    "the diagonal has no mask": ("whole_hi = tl.maximum((first + 1) // BN, whole_lo)", "whole_hi = hi"),
    "documents' starts have no mask": ("tl.cdiv(tl.load(START + last), BN)", "tl.load(START + last) // BN"),
    "the maximum is not carried": ("fade = tl.exp2(top - above)", "fade = tl.exp2(top - top)"),
    "key heads are taken in turns": ("head // GROUP * k_strides[2]", "head % 2 * k_strides[2]"),
}
BACKWARD_FAULTS = {
    "dq: documents are not told apart": (SEEN, "(n[None, :] <= m[:, None])"),
    "dk, dv: documents are not told apart": (SEEN_KV, "(n[:, None] <= m[None, :]) & (m[None, :] < T)"),
    "dk, dv: the next token is seen": (SEEN_KV, SEEN_KV.replace("<= m", "<= 1 + m")),
    "dk, dv: a group's first head only": ("group * GROUP + i // cut,", "group * GROUP,"),
    "dk, dv: documents' ends have no mask": (
        "tl.load(END + row * T + first) // BM",
        "tl.cdiv(tl.load(END + row * T + first), BM)",
    ),
    "dq: delta is left out": (
        "delta = tl.sum(y.to(tl.float32) * dy.to(tl.float32), 1)",
        "delta = tl.zeros([BM], tl.float32)",
    ),
    "dq: not scaled": ("dq * scale", "dq"),
}
FAULTY = Case([[50, 27, 19]], heads=4, groups=2, tiles=(SIXTEEN, SIXTEEN, SIXTEEN))


@pytest.mark.parametrize("name", FORWARD_FAULTS)
def test_planted_faults_in_the_forward_kernel_are_caught(name: str, tmp_path: Path) -> None:
    changed = planted(attention, *FORWARD_FAULTS[name], tmp_path)
    tensors, position_BT = inputs(FAULTY, BF16)
    want = oracle(tensors, position_BT)
    y, lse = changed.forward(*tensors[:3], attention.document_bounds(position_BT), 0.25, tiles=SIXTEEN)
    assert worst(want._replace(y=y, lse=lse), want, BF16) > 3


@pytest.mark.parametrize("name", BACKWARD_FAULTS)
def test_planted_faults_in_the_backward_kernels_are_caught(name: str, tmp_path: Path) -> None:
    changed = planted(attention_backward, *BACKWARD_FAULTS[name], tmp_path)
    tensors, position_BT = inputs(FAULTY, BF16)
    want = oracle(tensors, position_BT)
    y, lse, bounds = want.y.to(BF16), want.lse.float(), attention.document_bounds(position_BT)
    args = (tensors[3], *tensors[:3], y, lse, bounds, 0.25)
    given = changed.backward(*args, tiles=(SIXTEEN, SIXTEEN))
    got = want._replace(**dict(zip(("dq", "dk", "dv"), given, strict=True)))
    assert worst(got, want, BF16) > 3


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        (attention, "lo = tl.load(START + first) // BN", "lo = 0"),
        (attention_backward, "hi = tl.cdiv(tl.load(END + row * T + last), BM)", "hi = tl.cdiv(T, BM)"),
    ],
)
def test_walking_over_documents_that_are_masked_anyway_is_caught(
    module: ModuleType, old: str, new: str, tmp_path: Path
) -> None:
    """Such a kernel's results are right: only the counter tells."""
    changed = planted(module, old, new, tmp_path)
    case = Case([[30, 40, 26]], heads=1, tiles=(SIXTEEN, SIXTEEN, SIXTEEN))
    which = {"forward": changed} if module is attention else {"backward": changed}
    assert walked(case) == needed(case)
    assert sum(walked(case, **which)) > sum(needed(case))


def test_sources_with_nothing_planted_pass(tmp_path: Path) -> None:
    """So that it is the fault, not the planting, that the tests above see."""
    tensors, position_BT = inputs(FAULTY, BF16)
    want = oracle(tensors, position_BT)
    bounds = attention.document_bounds(position_BT)
    forward = planted(attention, SEEN, SEEN, tmp_path)
    backward = planted(attention_backward, SEEN, SEEN, tmp_path)
    y, lse = forward.forward(*tensors[:3], bounds, 0.25, tiles=SIXTEEN)
    args = (tensors[3], *tensors[:3], want.y.to(BF16), want.lse.float(), bounds, 0.25)
    assert worst(type(want)(y, lse, *backward.backward(*args, tiles=(SIXTEEN, SIXTEEN))), want, BF16) <= 1
