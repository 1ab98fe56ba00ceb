"""A whole decoder on the kernels equals the one in plain torch: losses and every gradient; and who gets which operations."""

from __future__ import annotations

import pytest
import torch

from gristmill.core.errors import UsageError
from gristmill.trainer.architecture import Model
from gristmill.trainer.kernels.ops import TritonOps, choose
from gristmill.trainer.model import Decoder
from gristmill.trainer.ops import TORCH, Ops

VOCAB, LENGTH = 61, 24
SHAPE = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 48}
MODELS = {
    "llama": {"qk_norm": True, "nope_every": 2},
    "apertus": {"activation": "xielu", "gated": False, "tie_embeddings": False, "logit_softcap": 8.0},
    "primer": {"activation": "relu2"},
}


def losses_and_gradients(ops: Ops, model: Model) -> dict[str, torch.Tensor]:
    decoder = Decoder(model, VOCAB, LENGTH, checkpointing="selective", ops=ops)
    decoder.init_weights(5)
    generator = torch.Generator().manual_seed(1)
    tokens_BT = torch.randint(0, VOCAB, (2, LENGTH), generator=generator)
    labels_BT = torch.randint(0, VOCAB, (2, LENGTH), generator=generator)
    labels_BT[:, 6] = -100
    position_BT = torch.arange(LENGTH).repeat(2, 1)
    position_BT[:, 7:] -= 7
    nll_BT, lse_BT = decoder.token_losses(tokens_BT, labels_BT, position_BT)
    (nll_BT.sum() + 1e-2 * lse_BT.square().sum()).backward()
    found = {n: p.grad for n, p in decoder.named_parameters() if p.grad is not None}
    assert len(found) == len(list(decoder.parameters()))
    return {"nll": nll_BT.detach(), "lse": lse_BT.detach(), **found}


@pytest.mark.parametrize("name", MODELS)
def test_a_decoder_on_kernels_equals_torch(name):
    model = Model(**SHAPE, **MODELS[name])
    want, found = losses_and_gradients(TORCH, model), losses_and_gradients(TritonOps(), model)
    for key, value in want.items():
        assert ((found[key] - value).norm() / value.norm().clamp(min=1e-6)).item() < 5e-6, key


def test_who_gets_kernels(monkeypatch):
    cpu = torch.device("cpu")
    assert choose("torch", cpu, torch.float32, 64)[0] is TORCH
    assert choose("auto", cpu, torch.float32, 64)[0] is TORCH
    with pytest.raises(UsageError, match="the device is a cpu"):
        choose("triton", cpu, torch.float32, 64)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("triton", cpu, torch.float32, 64)[1].endswith("interpreter")
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    chosen, why = choose("auto", torch.device("cuda"), torch.bfloat16, 128)
    assert isinstance(chosen, TritonOps)
    assert "triton" in why
