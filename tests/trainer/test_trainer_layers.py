"""Every variant of the decoder against a plain loop in fp64; RoPE scalings against transformers; xIELU by gradcheck."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from trainer_variants import VARIANTS, fp64_model, naive_frequencies, naive_logits, packed_rows, settings  # noqa: E402

from gristmill.trainer import ops  # noqa: E402
from gristmill.trainer.layers import XIELU, xielu_start  # noqa: E402
from gristmill.trainer.model import Decoder  # noqa: E402
from gristmill.trainer.ops import Layout, document_mask  # noqa: E402
from gristmill.trainer.rope import frequencies, rotary_table  # noqa: E402
from gristmill.trainer.schema import Model  # noqa: E402


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_gradients_equal_a_plain_loop(name):
    c = settings(name)
    model = fp64_model(c)
    tokens, _, position = packed_rows(rows=1)
    weights = dict(model.named_parameters())
    want = naive_logits(c, weights, tokens[0].tolist(), position[0].tolist(), 61)
    got = model(tokens, position)[0]
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    direction = torch.randn(want.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for a, b, key in zip(
        torch.autograd.grad((got * direction).sum(), list(weights.values())),
        torch.autograd.grad((want * direction).sum(), list(weights.values())),
        weights,
        strict=True,
    ):
        assert bool((b != 0).any()), key  # every parameter takes part
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8, msg=key)


def test_no_two_variants_give_the_same_logits():
    """So a setting that does nothing is seen: the shapes of these agree, and their weights come from the same names."""
    alike = ("llama", "abf", "yarn", "llama3", "nope", "qk-norm", "softcap", "relu2", "xielu gated")
    tokens, _, position = packed_rows()
    logits = [fp64_model(settings(name))(tokens, position) for name in alike]
    for i, a in enumerate(logits):
        for j in range(i):
            assert not torch.allclose(a, logits[j], rtol=1e-4), (alike[i], alike[j])


@pytest.mark.parametrize("name", VARIANTS)
def test_packed_equals_each_document_alone(name):
    model = fp64_model(settings(name))
    tokens, labels, position = packed_rows(3, rows=3)
    for part in (0, 1):  # cross-entropy, log-partition
        packed = model.token_losses(tokens, labels, position)[part].square().sum()
        alone = torch.zeros((), dtype=torch.float64)
        for row in range(len(tokens)):
            starts = (position[row] == 0).nonzero().flatten().tolist()
            for begin, end in zip(starts, [*starts[1:], tokens.shape[1]], strict=True):
                cut = slice(begin, end)
                alone = (
                    alone
                    + model.token_losses(tokens[row, cut][None], labels[row, cut][None], position[row, cut][None])[part]
                    .square()
                    .sum()
                )
        assert packed.item() == pytest.approx(alone.item(), rel=1e-12)
        for a, b in zip(
            torch.autograd.grad(packed, list(model.parameters())),
            torch.autograd.grad(alone, list(model.parameters())),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_mask_path_equals_the_path_by_pieces(name, monkeypatch):
    model = fp64_model(settings(name))
    tokens, _, position = packed_rows(5)
    by_piece = model(tokens, position)
    monkeypatch.setattr(
        model, "layout", lambda p, documents: Layout(len(p), model.cos_TD[p], model.sin_TD[p], None, document_mask(p))
    )
    torch.testing.assert_close(model(tokens, position), by_piece, rtol=1e-10, atol=1e-10)


def test_nope_layers_do_not_turn():
    c = settings("nope", layers=8, nope_every=4)
    assert [block.attention.rope for block in Decoder(c, 61, 8).blocks] == [True, True, True, False] * 2
    only = fp64_model(settings("nope", layers=1, nope_every=1))
    tokens = torch.tensor([[5, 9, 11, 30]])
    swapped = torch.tensor([[9, 5, 11, 30]])  # without positions, attention sees a set
    torch.testing.assert_close(only(tokens)[0, -1], only(swapped)[0, -1], rtol=1e-10, atol=1e-10)


def test_qk_norm_bounds_the_logits_of_attention(monkeypatch):
    seen = []
    attend = ops.attend
    monkeypatch.setattr(ops, "attend", lambda q, k, v, where: seen.append((q, k)) or attend(q, k, v, where))
    model = fp64_model(settings("qk-norm", norm_eps=1e-12))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0) if p.dim() == 1 else p.mul_(100.0)
    model(*packed_rows()[::2])
    for q, k in seen:
        for x in (q, k):
            torch.testing.assert_close(x.square().mean(-1), torch.ones(x.shape[:-1], dtype=torch.float64))


SCALINGS = [
    {"rope_scaling": {"type": "yarn", "factor": 4, "original_seq_len": 4096}},
    {"rope_scaling": {"type": "yarn", "factor": 32, "original_seq_len": 8192, "beta_fast": 16, "beta_slow": 2}},
    {"rope_scaling": {"type": "yarn", "factor": 8, "original_seq_len": 2048, "attention_factor": 1.3}},
    {"rope_scaling": {"type": "llama3", "factor": 8, "original_seq_len": 8192}, "rope_theta": 5e5},
    {"rope_scaling": {"type": "llama3", "factor": 32, "original_seq_len": 4096, "high_freq_factor": 6}},
    {"preset": "apertus-8b"},
]


@pytest.mark.parametrize("changes", SCALINGS)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_scaled_frequencies_equal_transformers(changes, head_dim):
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    llama = pytest.importorskip("transformers.models.llama.configuration_llama")
    from gristmill.trainer.layouts import describe, layout_of

    shape = {"layers": 1, "hidden": 256, "heads": 4, "kv_heads": 4, "ffn": 64, "head_dim": head_dim}
    c = Model.model_validate({**({} if "preset" in changes else shape), **changes, "head_dim": head_dim})
    config = llama.LlamaConfig(**describe(layout_of(c), c, 128, 65536) | {"model_type": "llama"})
    assert c.rope_scaling is not None
    want, factor = rope_utils.ROPE_INIT_FUNCTIONS[c.rope_scaling.type](config, torch.device("cpu"))
    got, our_factor = frequencies(c)
    torch.testing.assert_close(got, want.float(), rtol=2e-6, atol=0)
    assert our_factor == pytest.approx(factor, rel=1e-12)
    exact, _ = frequencies(c, torch.float64)
    torch.testing.assert_close(exact, torch.tensor(naive_frequencies(c), dtype=torch.float64), rtol=1e-13, atol=0)
    plain, _ = frequencies(c.model_copy(update={"rope_scaling": None}))
    assert torch.equal(got[0], plain[0])  # the fastest pair is kept, the slowest divided by the factor
    assert (plain[-1] / got[-1]).item() == pytest.approx(c.rope_scaling.factor, rel=1e-5)


def test_plain_table_is_cos_and_sin_of_position_times_frequency():
    c = settings()
    cos, sin = rotary_table(c, 50, torch.float64)
    for p in (0, 1, 49):
        for i in range(4):
            angle = p * 10_000.0 ** (-2 * i / 8)
            for column in (i, i + 4):
                assert cos[p, column].item() == pytest.approx(math.cos(angle), abs=1e-12)
                assert sin[p, column].item() == pytest.approx(math.sin(angle), abs=1e-12)


def test_a_stage_can_change_the_rope_base():
    model = Decoder(settings(), 61, 64)
    model.init_weights(0)
    raised = Decoder(settings("abf"), 61, 64)
    raised.init_weights(0)
    tokens = packed_rows()[0]
    assert not torch.equal(model(tokens), raised(tokens))
    model.set_rope(settings("abf"))
    assert torch.equal(model(tokens), raised(tokens))
    assert model.config == raised.config


def test_xielu_is_its_formula_and_its_gradients_are_right():
    act = XIELU().double()
    assert xielu_start("alpha_p") == pytest.approx(math.log(math.e**0.8 - 1))
    with torch.no_grad():
        act.alpha_p.fill_(xielu_start("alpha_p"))
        act.alpha_n.fill_(xielu_start("alpha_n"))
    x = torch.tensor([-300.0, -3.0, -1e-3, 0.0, 1e-3, 2.0, 300.0], dtype=torch.float64, requires_grad=True)
    y = act(x)
    for got, value in zip(y.tolist(), x.tolist(), strict=True):
        bent = 0.8 * value**2 if value > 0 else 0.8 * (math.expm1(value) - value)
        assert got == pytest.approx(bent + 0.5 * value, rel=1e-12)
    y.sum().backward()
    assert bool(torch.isfinite(x.grad).all())  # exp of the positive side never reaches a gradient
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(5, 7, dtype=torch.float64, generator=generator, requires_grad=True)]
    inputs += [torch.randn(1, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(ops.XIELUFunction.apply, inputs)
    assert act.bfloat16()(torch.tensor([2.0], dtype=torch.bfloat16)).dtype == torch.bfloat16
