"""The attention op in torch: autograd, checkpointing, checks of arguments; which attention `auto` takes, and why."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import pytest
import torch
from kernels_attention import Case, inputs, positions
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from gristmill.core.errors import UsageError
from gristmill.trainer.kernels import attention
from gristmill.trainer.kernels.attention_choice import choose_attention
from gristmill.trainer.kernels.attention_tiles import HALF, tiles_for
from gristmill.trainer.ops import Layout, attend, piece_lengths

FP32, BF16 = torch.float32, torch.bfloat16


def test_op_equals_the_trainers_attention() -> None:
    case = Case([[10, 15], [25]], heads=4, groups=2, head_dim=24)
    (q, k, v, dy), position_BT = inputs(case, FP32)
    results = []
    for ours in (True, False):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        if ours:
            y = attention.varlen_attention(leaves[0], leaves[1], leaves[2], position_BT)
        else:
            layout = Layout(2, torch.empty(2, 25), torch.empty(2, 25), piece_lengths(position_BT), None)
            y = attend(leaves[0], leaves[1], leaves[2], layout)
        y.backward(dy)  # type: ignore[no-untyped-call]
        results.append([y.detach(), *(x.grad for x in leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=3e-6)


def test_op_is_a_sound_op_of_torch() -> None:
    (q, k, v, _), position_BT = inputs(Case([[5, 4]], heads=2, groups=1), FP32)
    args = (*(x.requires_grad_() for x in (q, k, v)), *attention.document_bounds(position_BT), 0.25)
    torch.library.opcheck(torch.ops.gristmill.varlen_attention.default, args)


def test_selective_checkpointing_can_keep_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[int] = []
    launch = attention.forward

    def counted(*args: Any, **options: Any) -> Any:
        launches.append(1)
        return launch(*args, **options)

    monkeypatch.setattr(attention, "forward", counted)
    (q, k, v, dy), position_BT = inputs(Case([[5, 4]], heads=2, groups=1), FP32)

    def policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        kept = op is torch.ops.gristmill.varlen_attention.default
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    def block(q: Tensor) -> Tensor:
        return attention.varlen_attention(q * 2, k, v, position_BT)

    gradients = []
    choices: list[dict[str, Any]] = [{}, {"context_fn": partial(create_selective_checkpoint_contexts, policy)}]
    for arguments in choices:
        launches.clear()
        leaf = q.clone().requires_grad_()
        checkpoint(block, leaf, use_reentrant=False, **arguments).backward(dy)
        gradients.append(leaf.grad)
        assert len(launches) == (1 if arguments else 2)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_empty_rows_and_frozen_inputs() -> None:
    (q, k, v, dy), position_BT = inputs(Case([[5, 4]], heads=2, groups=1), FP32)
    none = [x[:0].requires_grad_() for x in (q, k, v)]
    assert attention.varlen_attention(none[0], none[1], none[2], position_BT[:0]).shape == (0, 9, 2, 16)
    assert attention.document_bounds(position_BT[:, :0]).start_BT.shape == (1, 0)
    k.requires_grad_()
    attention.varlen_attention(q, k, v, position_BT).backward(dy)  # type: ignore[no-untyped-call]
    assert k.grad is not None
    assert q.grad is None


def test_wrong_arguments_are_named() -> None:
    (q, k, v, _), position_BT = inputs(Case([[5, 4]], heads=2, groups=1), FP32)
    with pytest.raises(UsageError, match="do not fit"):
        attention.varlen_attention(q, k, v, position_BT[:, :8])
    with pytest.raises(UsageError, match="3 query heads over 2"):
        attention.varlen_attention(
            q.repeat(1, 1, 2, 1)[:, :, :3], k.repeat(1, 1, 2, 1), v.repeat(1, 1, 2, 1), position_BT
        )
    with pytest.raises(UsageError, match="dtypes"):
        attention.varlen_attention(q.double(), k.double(), v.double(), position_BT)
    with pytest.raises(UsageError, match="head_dim 144"):
        attention.varlen_attention(q.repeat(1, 1, 1, 9), k.repeat(1, 1, 1, 9), v.repeat(1, 1, 1, 9), position_BT)


def test_bounds_are_those_of_the_documents_and_need_no_look_at_the_data() -> None:
    position_BT = positions([[3, 1, 5], [9], [1] * 9])
    position_BT[1] += 4  # a row that begins in the middle of a document
    start_BT, end_BT = attention.document_bounds(position_BT)
    assert start_BT.tolist() == [[0, 0, 0, 3, 4, 4, 4, 4, 4], [0] * 9, list(range(9))]
    assert end_BT.tolist() == [[3, 3, 3, 4, 9, 9, 9, 9, 9], [9] * 9, list(range(1, 10))]
    assert start_BT.dtype == end_BT.dtype == torch.int32
    meta = attention.document_bounds(position_BT.to("meta"))  # reading a value of a meta tensor raises
    assert [x.shape for x in meta] == [(3, 9), (3, 9)]


def test_the_log_sum_exp_has_a_gradient() -> None:
    tensors, position_BT = inputs(Case([[20, 13]], heads=2, groups=1), FP32)
    dlse = torch.randn(1, 2, 33, generator=torch.Generator().manual_seed(1))
    leaves = [x.clone().requires_grad_() for x in tensors[:3]]
    _, lse = torch.ops.gristmill.varlen_attention(*leaves, *attention.document_bounds(position_BT), 0.25)
    lse.backward(dlse)
    exact = [x.double().requires_grad_() for x in tensors[:3]]
    from gristmill.trainer.kernels import reference_attention

    reference_attention.attention(exact[0], exact[1], exact[2], position_BT)[1].backward(dlse.double())
    for a, b in zip(leaves[:2], exact[:2], strict=True):
        torch.testing.assert_close(a.grad, b.grad.float(), rtol=0, atol=3e-6)  # type: ignore[union-attr]
    assert leaves[2].grad is not None
    assert not leaves[2].grad.any()


# --- the choice

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch built with FlashAttention for CUDA."""
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "options", "name", "why"),
    [
        (CPU, BF16, 128, {}, "torch", "one call a document"),
        (CUDA, BF16, 128, {}, "varlen", "predicted, not measured"),
        (CUDA, FP32, 128, {}, "triton", "not torch.float32"),
        (CUDA, BF16, 36, {}, "triton", "steps of 8, not 36"),
        (CUDA, BF16, 256, {}, "varlen", "no torch.bfloat16 x 256"),
        (CUDA, torch.float64, 64, {}, "torch", "no torch.float64"),
        (CUDA, BF16, 128, {"capability": (7, 5)}, "triton", "compute capability 8.0"),
        (CUDA, torch.float16, 64, {}, "varlen", "7 matrix products"),
    ],
)
def test_choice_and_its_reason(
    device: torch.device, dtype: torch.dtype, head_dim: int, options: dict[str, Any], name: str, why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    torch.use_deterministic_algorithms(False)  # conftest asks for them, and the choice looks at that
    with caplog.at_level(logging.INFO):
        chosen = choose_attention(device, dtype, head_dim, **{"capability": (9, 0), **options})
    assert chosen.name == name
    assert why in chosen.reason
    assert chosen.ours == ("our kernel takes no" not in chosen.reason)
    assert f"attention: {name} ({chosen.reason})" in caplog.text


@pytest.mark.usefixtures("flash")
def test_determinism_chooses_ours() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        assert choose_attention(CUDA, BF16, 128, capability=(9, 0)).name == "triton"
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_torch_without_flash_attention_or_varlen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    assert "built with FlashAttention" in choose_attention(CUDA, BF16, 128, capability=(9, 0)).reason
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", lambda query, key, value: None)
    assert "takes no enable_gqa" in choose_attention(CUDA, BF16, 128, capability=(9, 0)).reason


@pytest.mark.parametrize("on", [*HALF])
def test_every_chip_has_tiles_for_every_head(on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile's sides are powers of two from the 16 that a matrix unit takes; operands fit twice in 64 KiB or more."""
    monkeypatch.setattr("gristmill.trainer.kernels.attention_tiles.chip", lambda: on)
    for head_dim in range(2, 129, 2):
        for dtype in attention.DTYPES:
            for kernel in ("forward", "dq", "dkv"):
                t = tiles_for(kernel, dtype, head_dim)  # type: ignore[arg-type]
                assert {t.m, t.n} <= {16, 32, 64, 128}
