"""The decoder: documents never see each other, weights depend on (seed, name), exports load elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gristmill.trainer import export, generate, optim  # noqa: E402
from gristmill.trainer.data import IGNORE, batch_of_step  # noqa: E402
from gristmill.trainer.model import Decoder  # noqa: E402
from gristmill.trainer.ops import Layout, document_mask, piece_lengths  # noqa: E402
from gristmill.trainer.schema import Model  # noqa: E402

SETTINGS = Model(layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, ffn=64)


def tensors(batch):
    return tuple(torch.from_numpy(a) for a in (batch.tokens_BT, batch.labels_BT, batch.position_BT))


@pytest.fixture
def model():
    made = Decoder(SETTINGS, 97, 64)
    made.init_weights(7)
    return made


def test_packed_loss_equals_each_document_alone(toy, model):
    tokens, labels, position = tensors(batch_of_step(toy, 3))
    packed = model.loss(tokens, labels, position)
    alone, pieces = torch.zeros(()), 0
    for row in range(len(tokens)):
        starts = (position[row] == 0).nonzero().flatten().tolist()
        for begin, end in zip(starts, [*starts[1:], tokens.shape[1]], strict=True):
            part = slice(begin, end)
            if bool((labels[row, part] == IGNORE).all()):
                continue
            alone = alone + model.loss(
                tokens[row, part][None], labels[row, part][None], torch.arange(end - begin)[None]
            )
            pieces += 1
    assert pieces > len(tokens)  # several documents a row
    assert packed.item() == pytest.approx(alone.item(), rel=1e-5)
    want = torch.autograd.grad(alone, list(model.parameters()))
    got = torch.autograd.grad(packed, list(model.parameters()))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_changed_document_changes_no_other(toy, model):
    tokens, _, position = tensors(batch_of_step(toy, 3))
    row = next(r for r in range(len(tokens)) if (position[r] == 0).sum() >= 3)
    second, third = (position[row] == 0).nonzero().flatten().tolist()[1:3]
    changed = tokens.clone()
    changed[row, second:third] = (changed[row, second:third] + 11) % 97
    same = (model(tokens, position) == model(changed, position)).all(-1)
    assert bool(same[row, :second].all())
    assert bool(same[row, third:].all())
    assert not bool(same[row, second:third].any())


def test_the_mask_path_gives_the_same_logits(toy, model, monkeypatch):
    tokens, _, position = tensors(batch_of_step(toy, 31))
    by_piece = model(tokens, position)
    monkeypatch.setattr(
        model, "layout", lambda p, documents: Layout(len(p), model.cos_TD[p], model.sin_TD[p], None, document_mask(p))
    )
    torch.testing.assert_close(model(tokens, position), by_piece, rtol=1e-4, atol=1e-5)


def test_piece_lengths_never_cross_rows():
    assert piece_lengths(torch.tensor([[0, 1, 2, 0], [0, 1, 0, 0]])) == [3, 1, 2, 1, 1]


def test_initial_values_come_from_seed_and_name(model):
    torch.manual_seed(999)  # the global generator and the number of layers play no part
    torch.randn(5)
    deeper = Decoder(SETTINGS.model_copy(update={"layers": 3}), 97, 64)
    deeper.init_weights(7)
    values = dict(deeper.named_parameters())
    for name, parameter in model.named_parameters():
        if not name.endswith(("attention.o.weight", "ffn.down.weight")):  # these are scaled by the depth
            assert torch.equal(parameter, values[name]), name
    deeper.init_weights(8)
    assert not torch.equal(model.embed.weight, deeper.embed.weight)
    assert len({p.flatten()[0].item() for p in model.parameters() if p.dim() == 2}) == 15  # no two start alike


def test_first_loss_is_near_uniform_and_padded_ids_have_no_share(toy, model):
    batch = batch_of_step(toy, 1)
    loss = model.loss(*tensors(batch)).item() / batch.valid_tokens
    assert loss == pytest.approx(math.log(97), abs=0.05)  # ln 128 = 4.85 would count the padding
    assert model.embed.weight.shape[0] == 128
    assert model(torch.zeros(1, 4, dtype=torch.long)).shape == (1, 4, 97)


@pytest.mark.parametrize("tied", [True, False])
def test_parameter_count_matches_the_settings(tied):
    settings = SETTINGS.model_copy(update={"tie_embeddings": tied})
    model = Decoder(settings, 97, 16)
    assert model.params() == settings.params(97)
    matrices = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64) + 128 * 32
    assert model.flops_per_token(16) == 6 * matrices + 6 * 2 * 32 * 16


def test_weight_decay_spares_norms_and_embeddings(run_maker):
    model = Decoder(SETTINGS.model_copy(update={"tie_embeddings": False}), 97, 16)
    optimizer = optim.build(model, run_maker().optimizer)
    names = {id(p): n for n, p in model.named_parameters()}
    decayed, spared = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    assert "head.weight" in decayed
    assert "blocks.1.ffn.down.weight" in decayed
    assert spared == {n for n in names.values() if "norm" in n or n.startswith("embed")}


def test_export_round_trips(model, tmp_path):
    export.export(model, {"eos": 1}, tmp_path)
    again, config = export.load_exported(tmp_path)
    tokens = torch.arange(3, 40)[None]
    assert torch.equal(model(tokens), again(tokens))
    assert config["vocab_size"] == 97


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_an_export_is_a_llama_to_transformers(tied, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = Decoder(SETTINGS.model_copy(update={"tie_embeddings": tied, "rope_theta": 500.0}), 97, 64)
    model.init_weights(1)
    export.export(model, {"bos": 0, "eos": 1, "pad": 2}, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(3, 97, (2, 50)))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)


def test_generation_is_seeded(model):
    first = generate.generate(model, [5, 9], 12, 1.0, 4, None)
    assert first == generate.generate(model, [5, 9], 12, 1.0, 4, None)
    assert first != generate.generate(model, [5, 9], 12, 1.0, 5, None)
    assert len(first) == 12
    greedy = generate.generate(model, [5], 3, 0, 0, None)
    assert greedy == generate.generate(model, [5], 3, 0, 1, None)
    assert generate.generate(model, [5], 3, 0, 0, eos=greedy[1]) == greedy[:1]  # eos ends it and is left out
    assert len(generate.generate(model, list(range(3, 80)), 2, 1.0, 0, None)) == 2  # longer than the context
