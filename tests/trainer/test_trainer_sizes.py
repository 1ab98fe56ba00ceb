"""Sizes from settings alone, against built models (on the meta device), counted work and published figures."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from pydantic import ValidationError  # noqa: E402
from trainer_variants import VARIANTS, settings  # noqa: E402

from gristmill.core.errors import ConfigError  # noqa: E402
from gristmill.core.settings import load  # noqa: E402
from gristmill.trainer.architecture import preset_names, read_preset  # noqa: E402
from gristmill.trainer.layers import Matrix  # noqa: E402
from gristmill.trainer.model import Decoder  # noqa: E402
from gristmill.trainer.schema import Model, TrainRun, padded_vocab  # noqa: E402


def on_meta(c: Model, vocab: int) -> Decoder:
    with torch.device("meta"):
        return Decoder(c, vocab, 64)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_equal_the_built_model(name):
    c = settings(name)
    assert c.params(97) == on_meta(c, 97).params()


@pytest.mark.parametrize(
    ("name", "billions"), [("smollm3-3b", 3.08), ("llama-3-8b", 8.03), ("qwen3-0.6b", 0.596), ("apertus-8b", 8.05)]
)
def test_presets_have_their_published_size(name, billions):
    preset = read_preset(name)
    assert preset.vocab_size is not None
    assert (
        preset.model.params(preset.vocab_size) == preset.parameters == on_meta(preset.model, preset.vocab_size).params()
    )
    assert preset.parameters / 1e9 == pytest.approx(billions, rel=2e-3)
    assert preset.model.lints() == []


def test_presets_equal_the_default_configs_of_transformers():
    transformers = pytest.importorskip("transformers")
    for name, config in (("smollm3-3b", transformers.SmolLM3Config()), ("apertus-8b", transformers.ApertusConfig())):
        c = read_preset(name).model
        assert (c.layers, c.hidden, c.heads) == (
            config.num_hidden_layers,
            config.hidden_size,
            config.num_attention_heads,
        )
        assert (c.norm_eps, c.tie_embeddings) == (config.rms_norm_eps, config.tie_word_embeddings)
        assert read_preset(name).vocab_size == config.vocab_size
    assert transformers.SmolLM3Config().no_rope_layers == [
        int(read_preset("smollm3-3b").model.uses_rope(i)) for i in range(36)
    ]
    scaling = read_preset("apertus-8b").model.rope_scaling
    want = transformers.ApertusConfig().rope_parameters
    assert scaling is not None
    assert scaling.factor == want["factor"]
    assert scaling.original_seq_len == want["original_max_position_embeddings"]
    assert read_preset("apertus-8b").model.rope_theta == want["rope_theta"]


def test_every_preset_is_sound():
    assert {"tiny", "nano", "smollm3-3b"} <= set(preset_names())
    for name in preset_names():
        read_preset(name)
    assert read_preset("nano").model.params(16_384) == pytest.approx(10e6, rel=0.02)


def test_a_preset_is_a_start_that_other_keys_replace():
    c = Model.model_validate({"preset": "qwen3-0.6b", "layers": 3, "max_seq_len": 128})
    assert (c.layers, c.hidden, c.qk_norm, c.max_seq_len) == (3, 1024, True, 128)
    assert "preset" not in c.model_dump()  # what it stands for is recorded, so a changed preset changes no old run
    assert Model.model_validate(c.model_dump(mode="json")) == c.model_copy(update={"preset": None})


def test_an_unknown_preset_is_named_with_its_place(tmp_path):
    path = tmp_path / "run.yaml"
    text = "gristmill_train: 1\nmixture: m\nmodel: {preset: qwen4}\noptimizer: {lr: 1e-3}\n"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"run.yaml:3:\d+: error: model: no preset 'qwen4'") as caught:
        load(path, TrainRun)
    assert "qwen3-0.6b" in str(caught.value)
    path.write_text(text.replace("qwen4", "qwen3-0.6b, layers: 2"))
    assert load(path, TrainRun, overrides=["model.heads=8"])[0].model.heads == 8
    path.write_text(
        text.replace("preset: qwen4", "preset: tiny, rope_scaling: {type: yarn, factor: 2, original_seqlen: 9}")
    )
    with pytest.raises(ConfigError, match="did you mean `original_seq_len`"):
        load(path, TrainRun)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"kv_heads": 3}, "multiple of kv_heads"),
        ({"head_dim": 7}, "odd"),
        ({"activation": "gelu"}, "activation"),
        ({"rope_scaling": {"type": "llama3", "high_freq_factor": 1.0}}, "not above"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "original_seq_len": 8, "beta_fast": 1}}, "not above"),
        ({"nope_every": 0}, "nope_every"),
    ],
)
def test_impossible_shapes_are_refused(changes, word):
    with pytest.raises(ValidationError, match=word):
        settings(**changes)


@pytest.mark.parametrize("name", ["llama", "xielu", "untied", "wide heads"])
def test_flops_equal_counted_matrix_products(name):
    """torch counts the forward pass; a backward pass costs twice that. Attention is counted whole, so halved here."""
    from torch.utils.flop_counter import FlopCounterMode

    c, length = settings(name), 64
    model = on_meta(c, 128)
    layers = []
    for module in model.modules():
        if isinstance(module, Matrix):
            layers.append(2 * module.weight.numel())
    if c.tie_embeddings:
        layers.append(2 * model.embed.weight.numel())
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.linear(torch.empty(length, c.hidden, device="meta"), model.embed.weight)
    assert counter.get_total_flops() == 2 * length * model.embed.weight.numel()  # what torch calls a FLOP is what we do
    attention = 2 * 2 * c.heads * c.head_dim * length / 2  # q k^T and the weighted sum, half of them masked
    assert model.flops_per_token(length) == 3 * (sum(layers) + c.layers * attention)
    assert model.flops_per_token(length) == c.flops_per_token(128, length)


class Kept:
    """Bytes of distinct storages that autograd keeps while its hooks are on, parameters and `known` left out."""

    def __init__(self, model: Decoder, known: list[Any]) -> None:
        self.known = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *known]}
        self.alive: list[Any] = []  # a freed storage's address could come back
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda t: t)

    def pack(self, t: Any) -> Any:
        self.alive.append(t)
        return t

    @property
    def bytes(self) -> int:
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self.alive}
        return sum(n for pointer, n in sizes.items() if pointer not in self.known)


@pytest.mark.parametrize("name", ["llama", "relu2 plain", "xielu", "qk-norm", "nope", "wide heads"])
def test_activation_bytes_equal_what_autograd_keeps(name):
    """fp32 on CPU, where F.rms_norm also keeps its normalised input and rms, and the pieces' outputs are joined anew."""
    c, rows, length = settings(name), 2, 32
    model = Decoder(c, 64, length)
    model.init_weights(0)
    layout = model.layout(torch.arange(length).expand(rows, length))
    x = torch.zeros(rows * length, c.hidden, requires_grad=True)
    kept = Kept(model, [layout.cos_BTD, layout.sin_BTD])
    with kept.hooks:
        for block in model.blocks:
            x = block(x, layout)
        torch.nn.functional.linear(model.norm(x), model.embed.weight)
    norms = 2 * (c.hidden + 1) + ((c.heads + c.kv_heads) * (c.head_dim + 1) if c.qk_norm else 0)
    extra = c.layers * (norms + c.heads * c.head_dim) + c.hidden + 1
    assert kept.bytes == c.activation_bytes(rows, length, width=4) + 4 * rows * length * extra


def test_full_checkpointing_keeps_the_inputs_of_blocks():
    c, rows, length = settings(layers=4), 2, 32
    model = Decoder(c, 64, length, checkpointing="full")
    model.init_weights(0)
    layout = model.layout(torch.arange(length).expand(rows, length))
    x = torch.zeros(rows * length, c.hidden, requires_grad=True)
    kept = Kept(model, [layout.cos_BTD, layout.sin_BTD])
    with kept.hooks:
        for block in model.blocks:
            x = block(x, layout)
    one_more = settings(layers=5)
    per_layer = one_more.activation_bytes(rows, length, "full", 4) - c.activation_bytes(rows, length, "full", 4)
    inputs = sum(t.untyped_storage().nbytes() for t in kept.alive if t.shape == x.shape)
    assert inputs == c.layers * per_layer


@pytest.mark.parametrize("name", ["llama", "relu2 plain", "qk-norm"])
def test_selective_checkpointing_keeps_the_outputs_of_products(name):
    c, rows, length = settings(name), 2, 32
    model = Decoder(c, 64, length)
    model.init_weights(0)
    elements = []
    for module in model.modules():
        if isinstance(module, Matrix):
            elements.append(rows * length * len(module.weight))
    attention = c.layers * rows * length * c.heads * (c.head_dim + 1)  # its output and log-sum-exp
    stream = (c.layers + 2) * rows * length * c.hidden  # inputs of blocks; input and output of the last norm
    assert c.activation_bytes(rows, length, "selective", 4) == 4 * (sum(elements) + attention + stream)
    none, some, full = (
        c.model_copy(update={"layers": 8}).activation_bytes(1, 64, how) for how in ("none", "selective", "full")
    )
    assert none > some > full


def test_activations_shrink_with_tensor_parallelism():
    c = read_preset("smollm3-3b").model
    whole = c.activation_bytes(1, 4096)
    assert c.activation_bytes(1, 4096, tp=4) == pytest.approx(whole / 4, rel=1e-9)
    assert c.activation_bytes(1, 4096, tp=8) > whole / 8  # 4 key/value heads: replicated beyond tp 4
    assert c.activation_bytes(3, 4096) == 3 * whole
    # 14 bytes a logit: 2 in bf16, and fp32 three times
    assert c.logits_bytes(128_256, 1, 4096) == 4096 * 128_256 * 14
    assert c.logits_bytes(128_256, 1, 4096, tp=4) == 4096 * 128_256 * 14 // 4
    capped = c.model_copy(update={"logit_softcap": 30.0})
    assert capped.logits_bytes(128_256, 1, 4096) == 4096 * 128_256 * 18


def test_vocabulary_is_padded_for_every_rank():
    assert [padded_vocab(n) for n in (1, 64, 65)] == [64, 64, 128]
    assert [padded_vocab(65, tp) for tp in (2, 4, 3)] == [128, 256, 192]
    c = settings()
    assert c.params(97, tp=4) - c.params(97) == (256 - 128) * c.hidden


def test_lints():
    c = read_preset("smollm3-3b").model
    assert c.lints(tp=4) == []
    assert c.lints(tp=8) == [
        "kv_heads 4 are replicated 2 times over tp 8",
        "ffn 1376 per rank (tp 8) is no multiple of 64: slower on GPUs",
    ]
    assert c.lints(tp=6) == [
        "heads 16 do not divide over tp 6",
        "kv_heads 4 neither divide over tp 6 nor are replicated evenly",
        "ffn 11008 does not divide over tp 6",
        "hidden 2048 does not divide over tp 6",
    ]
    assert read_preset("tiny").model.lints() == [
        "hidden 96 is no multiple of 64: slower on GPUs",
        "head_dim 24 is no multiple of 64: slower on GPUs",
    ]
    short = settings(
        hidden=64,
        head_dim=64,
        ffn=128,
        max_seq_len=100,
        rope_scaling={"type": "llama3", "factor": 2, "original_seq_len": 32},
    )
    assert short.lints() == ["max_seq_len 100 is longer than rope_scaling's factor x original_seq_len covers"]
