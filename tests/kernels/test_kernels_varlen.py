"""torch's own varlen attention under `kernels: auto`: from the loader's count of documents to the call, which needs a GPU.

In its place stands plain torch that takes the same arguments; torch's op itself is called on the meta device.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import packed_rows
import pytest
import torch
import torch.nn.functional as F
from kernels_attention import Case, inputs, oracle, positions
from torch import Tensor

from gristmill.trainer import layers, loop, startup
from gristmill.trainer.architecture import Model
from gristmill.trainer.journal import read_journal
from gristmill.trainer.kernels import attention_choice, ops
from gristmill.trainer.kernels.attention_choice import SLOTS, cumulative_lengths, slots_for, too_many, torch_varlen
from gristmill.trainer.kernels.ops import Prepared, TritonOps, choose
from gristmill.trainer.model import Decoder
from gristmill.trainer.ops import TORCH, Ops, count_documents
from gristmill.trainer.schema import TrainRun

VOCAB = 61
SHAPE: dict[str, Any] = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 48}
ATTENTION = ("layout", "attend", "__init__")
# TritonOps with the attention alone, the rest in torch: the interpreter would take most of the time
OnlyAttention: Callable[..., TritonOps] = type(
    "OnlyAttention",
    (TritonOps,),
    {n: f for n, f in vars(Ops).items() if n not in (*ATTENTION, "__dict__", "__weakref__")},
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The starts given to a stand-in for torch's function, with its signature and meaning."""
    seen: list[Tensor] = []

    def stand_in(
        q_NHD: Tensor, k_NGD: Tensor, v_NGD: Tensor, starts: Tensor, starts_k: Tensor, longest: int, longest_k: int,
        *, scale: float | None, window_size: tuple[int, int], enable_gqa: bool,
    ) -> Tensor:  # fmt: skip
        assert window_size == (-1, 0)
        assert enable_gqa
        assert starts is starts_k
        assert starts.dtype == torch.int32
        lengths = starts.diff().tolist()
        assert starts[0] == 0
        assert sum(lengths) == len(q_NHD)
        assert min(lengths) >= 0
        assert max(lengths) <= longest == longest_k
        seen.append(starts)
        q, k, v = (x.transpose(0, 1)[None].split(lengths, 2) for x in (q_NHD, k_NGD, v_NGD))
        parts = [
            F.scaled_dot_product_attention(q[i], k[i], v[i], is_causal=True, scale=scale, enable_gqa=True)
            for i, length in enumerate(lengths)
            if length
        ]
        return torch.cat(parts, 2)[0].transpose(0, 1)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", stand_in)
    return seen


def test_documents_as_torch_wants_them() -> None:
    position_BT = positions([[3, 1, 5], [9]])
    assert count_documents(position_BT) == 4
    assert [slots_for(n) for n in (1, SLOTS, SLOTS + 1, 500, 512)] == [SLOTS, SLOTS, 2 * SLOTS, 512, 512]
    assert cumulative_lengths(position_BT, 4).tolist() == [0, 3, 4, 9, 18]
    assert cumulative_lengths(position_BT, 6).tolist() == [0, 3, 4, 9, 18, 18, 18]
    assert cumulative_lengths(position_BT.to("meta"), 6).shape == (7,)
    assert position_BT[1, 0] == 0
    with pytest.raises(RuntimeError, match="more documents than 3 slots"):
        cumulative_lengths(position_BT, 3)


def test_rows_that_begin_inside_a_document() -> None:
    position_BT = positions([[3, 6], [9]]) + torch.tensor([[4], [2]])
    position_BT[0, 3:] -= 4
    assert count_documents(position_BT) == 3
    assert cumulative_lengths(position_BT, 3).tolist() == [0, 3, 9, 18]
    assert position_BT[1, 0] == 2


def test_it_is_the_same_function(calls: list[Tensor]) -> None:
    """Output and gradients beside the fp64 oracle: documents, causality, scale and grouped heads are ours."""
    tensors, position_BT = inputs(Case([[10, 15], [25]], heads=4, groups=2), torch.float32)
    leaves = [x.clone().requires_grad_() for x in tensors[:3]]
    y = torch_varlen(leaves[0], leaves[1], leaves[2], cumulative_lengths(position_BT, slots_for(3)), 0.3)
    y.backward(tensors[3])  # type: ignore[no-untyped-call]
    want = oracle(tensors, position_BT, 0.3)
    for got, exact in zip((y, *(x.grad for x in leaves)), (want.y, want.dq, want.dk, want.dv), strict=True):
        torch.testing.assert_close(got, exact.float(), rtol=0, atol=3e-6)
    assert len(calls) == 1


def test_torch_takes_the_call() -> None:
    """The installed torch's own function and its backward pass, on shapes alone; checkpointing keeps its output."""
    q, k, v = (
        torch.empty((2, 25, heads, 16), dtype=torch.bfloat16, device="meta", requires_grad=True) for heads in (4, 2, 2)
    )
    y = torch_varlen(q, k, v, cumulative_lengths(positions([[10, 15], [25]]).to("meta"), SLOTS))
    assert (y.shape, y.dtype) == (q.shape, q.dtype)
    y.backward(torch.empty_like(y))  # type: ignore[no-untyped-call]
    for x in (q, k, v):
        assert x.grad is not None
        assert x.grad.shape == x.shape
    kept = layers._policy(None, torch.ops.torch_attn._varlen_attn.default)
    assert kept == torch.utils.checkpoint.CheckpointPolicy.MUST_SAVE


def losses_and_gradients(which: Ops, documents: int | None) -> dict[str, Tensor]:
    decoder = Decoder(Model(**SHAPE, qk_norm=True), VOCAB, 24, checkpointing="selective", ops=which)
    decoder.init_weights(5)
    generator = torch.Generator().manual_seed(1)
    tokens_BT, labels_BT = (torch.randint(0, VOCAB, (2, 24), generator=generator) for _ in range(2))
    nll_BT = decoder.token_loss(tokens_BT, labels_BT, positions([[7, 1, 16], [24]]), documents)
    nll_BT.sum().backward()
    return {"nll": nll_BT.detach(), **{n: p.grad for n, p in decoder.named_parameters() if p.grad is not None}}


def furthest(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    assert got.keys() == want.keys()
    return max(float((got[n] - x).norm() / x.norm().clamp(min=1e-6)) for n, x in want.items())


@pytest.mark.parametrize("documents", [4, None])
def test_a_decoder_on_it_equals_torch(documents: int | None, calls: list[Tensor]) -> None:
    want = losses_and_gradients(TORCH, None)
    assert furthest(losses_and_gradients(OnlyAttention("varlen"), documents), want) < 5e-6
    assert all(starts.tolist() == [0, 7, 8, 24, *[48] * 13] for starts in calls)
    assert len(calls) == 4  # a stand-in's output is no op's: each of 2 layers computes it again


@pytest.mark.usefixtures("calls")
def test_lost_document_borders_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    want = losses_and_gradients(TORCH, None)
    rows = torch.tensor([0, 24, 48], dtype=torch.int32)
    monkeypatch.setattr(attention_choice, "cumulative_lengths", lambda position_BT, slots: rows)
    assert furthest(losses_and_gradients(OnlyAttention("varlen"), 4), want) > 1e-2


def test_short_documents_go_to_our_kernel() -> None:
    """Rows of 4096 in blocks of 128: 64 documents in 4 rows launch 2048 blocks a head, 128 of them with work."""
    assert [too_many(4, 4096, n) for n in (1, 16, 32, 33, 64, 2048)] == [False, False, False, True, True, True]
    assert not too_many(4, 128, 500)  # a block a document is no waste
    short, long = positions([[8] * 128, [1024]]), positions([[1024], [1024]])
    for position_BT, ours, given in ((short, True, Prepared), (short, False, Tensor), (long, True, Tensor)):
        layout = TritonOps("varlen", ours).layout(
            position_BT, torch.empty(2, 1024), torch.empty(2, 1024), True, torch.bfloat16, count_documents(position_BT)
        )
        assert isinstance(layout.kernel, given)


def test_a_run_carries_the_count_and_never_asks_the_device(
    calls: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = packed_rows.make(tmp_path / "dataset")
    settings = {
        "gristmill_train": 1,
        "mixture": "toy",
        "seed": 3,
        "model": SHAPE,
        "optimizer": {"lr": 1e-2},
        "micro_batch_rows": 3,  # 7 rows: 3 + 3 + 1 and 2 that only fill
        "max_steps": 2,
        "device": "cpu",
    }
    run = TrainRun.model_validate(settings)
    loop.train(run, dataset, tmp_path / "torch")
    monkeypatch.setattr(startup, "choose", lambda *given: (OnlyAttention("varlen"), "for a test"))

    def refuse(position_BT: Tensor) -> int:
        raise AssertionError("the host waits for the device")

    monkeypatch.setattr(ops, "count_documents", refuse)
    said: list[str] = []
    loop.train(run, dataset, tmp_path / "varlen", say=said.append)
    assert "for a test" in said
    got, want = ([r["loss"] for r in read_journal(tmp_path / n / "metrics.jsonl")] for n in ("varlen", "torch"))
    assert len(got) == 2
    assert max(abs(x - y) for x, y in zip(got, want, strict=True)) < 2e-6
    assert len(calls) >= 2 * 3 * 2  # steps, micro batches, layers


def test_auto_takes_it_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    torch.use_deterministic_algorithms(False)  # conftest asks for them, and the choice looks at that
    cuda = torch.device("cuda")
    for head_dim, ours in ((128, True), (256, False)):
        chosen, why = choose("auto", cuda, torch.bfloat16, head_dim)
        assert isinstance(chosen, TritonOps)
        assert (chosen.attention, chosen.ours) == ("varlen", ours)
        assert why.startswith("kernels: triton (auto: a GPU), attention varlen: ")
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    deterministic, _ = choose("auto", cuda, torch.bfloat16, 128)
    assert isinstance(deterministic, TritonOps)
    assert deterministic.attention == "triton"
