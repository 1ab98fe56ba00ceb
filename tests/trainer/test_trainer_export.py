"""Exports load in transformers with equal logits where a layout fits, are refused in words where none does, and come back."""

from __future__ import annotations

import shutil

import orjson
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402
from trainer_variants import LLAMA3, YARN, settings  # noqa: E402

from gristmill.core.errors import FormatError, UsageError  # noqa: E402
from gristmill.trainer import export  # noqa: E402
from gristmill.trainer.layouts import layout_of  # noqa: E402
from gristmill.trainer.model import Decoder  # noqa: E402

FITTING = {
    "llama": ("llama", {}),
    "llama untied": ("llama", {"tie_embeddings": False, "rope_theta": 500.0}),
    "llama yarn": ("llama", {"rope_scaling": YARN}),
    "llama llama3": ("llama", {"rope_scaling": LLAMA3}),
    "llama relu2": ("llama", {"activation": "relu2"}),
    "qwen3": ("qwen3", {"qk_norm": True, "head_dim": 16}),
    "smollm3": ("smollm3", {"nope_every": 2, "layers": 5}),
    "smollm3 wide": ("smollm3", {"nope_every": 3, "layers": 4, "head_dim": 16}),
    "apertus": (
        "apertus",
        {"qk_norm": True, "gated": False, "activation": "xielu", "rope_scaling": LLAMA3, "tie_embeddings": False},
    ),
    "arcee": ("arcee", {"activation": "relu2", "gated": False}),
}
TOKENS = torch.arange(3, 51)[None]


def built(changes) -> Decoder:
    model = Decoder(settings(**changes), 61, 64)
    model.init_weights(1)
    with torch.no_grad():
        for name, p in model.named_parameters():  # a norm or scalar that is lost on the way must show
            if p.dim() == 1:
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    return model


@pytest.mark.parametrize("name", FITTING)
def test_exports_round_trip(name, tmp_path):
    kind, changes = FITTING[name]
    model = built(changes)
    assert layout_of(model.config).model_type == kind
    export.export(model, {"eos": 1}, tmp_path, strict=True)
    again, config = export.load_exported(tmp_path)
    assert config["model_type"] == kind
    assert again.config.model_dump() == model.config.model_dump()
    assert torch.equal(model(TOKENS), again(TOKENS))


@pytest.mark.slow
@pytest.mark.parametrize("name", FITTING)
def test_transformers_gives_equal_logits_and_its_own_saves_come_back(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    kind, changes = FITTING[name]
    model = built(changes)
    export.export(model, {"bos": 0, "eos": 1, "pad": 2}, tmp_path)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert theirs.config.model_type == kind
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        want = theirs(TOKENS).logits
        torch.testing.assert_close(model(TOKENS), want, rtol=1e-4, atol=2e-5)
    print(f"{name}: largest difference {(model(TOKENS) - want).abs().max().item():.1e}")
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="10KB")  # several files and an index
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    back, _ = export.load_exported(tmp_path / "theirs")
    assert torch.equal(back(TOKENS), model(TOKENS))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"logit_softcap": 30.0}, ["llama: it has no logit_softcap", "our own names"]),
        ({"activation": "xielu"}, ["llama: activation is xielu", "apertus: gated is true"]),
        ({"qk_norm": True, "nope_every": 2}, ["smollm3: qk_norm is true", "qwen3: nope_every is 2"]),
        ({"gated": False}, ["arcee: activation is silu"]),
    ],
)
def test_what_fits_no_layout_is_refused_and_kept_under_our_names(changes, words, tmp_path):
    model = built(changes)
    with pytest.raises(UsageError) as caught:
        export.export(model, {}, tmp_path, strict=True)
    assert not list(tmp_path.iterdir())
    for word in words:
        assert word in str(caught.value)
    export.export(model, {"eos": 1}, tmp_path)
    again, config = export.load_exported(tmp_path)
    assert (config["model_type"], config["eos_token_id"]) == ("gristmill", 1)
    assert again.config == model.config
    assert torch.equal(model(TOKENS), again(TOKENS))


def test_a_nope_interval_beyond_the_layers_is_a_llama():
    assert layout_of(settings(nope_every=3)).model_type == "llama"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model_type": "gpt2"}, "'gpt2' is not known"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "'longrope'"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"num_hidden_layers": 1}, "has no place"),
        ({"num_hidden_layers": 3}, "model.layers.2"),
        ({"vocab_size": 60}, "has the shape"),
        ({"hidden_size": None}, "no exported model"),
        ({"num_key_value_heads": 3}, "multiple of kv_heads"),
    ],
)
def test_a_config_that_does_not_fit_is_named(changes, word, tmp_path):
    export.export(built({}), {}, tmp_path)
    config = orjson.loads((tmp_path / "config.json").read_bytes())
    (tmp_path / "config.json").write_bytes(orjson.dumps(config | changes))
    with pytest.raises(FormatError, match=word):
        export.load_exported(tmp_path)


def test_odd_nope_patterns_and_other_constants_are_refused(tmp_path):
    export.export(built({"nope_every": 2, "layers": 4}), {}, tmp_path)
    config = orjson.loads((tmp_path / "config.json").read_bytes())
    assert config["no_rope_layers"] == [1, 0, 1, 0]
    (tmp_path / "config.json").write_bytes(orjson.dumps(config | {"no_rope_layers": [1, 0, 0, 1]}))
    with pytest.raises(FormatError, match="not every n-th"):
        export.load_exported(tmp_path)
    del config["no_rope_layers"]  # the interval alone says the same
    (tmp_path / "config.json").write_bytes(orjson.dumps(config))
    assert export.load_exported(tmp_path)[0].config.nope_every == 2
    folder = tmp_path / "apertus"
    folder.mkdir()
    export.export(built(FITTING["apertus"][1]), {}, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.act_fn.beta"] += 0.5
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(FormatError, match=r"beta is 1\.0, this decoder has 0.5"):
        export.load_exported(folder)


def test_an_index_may_not_lead_out_of_its_folder(tmp_path):
    inside = tmp_path / "model"
    inside.mkdir()
    export.export(built({}), {}, inside)
    shutil.move(inside / "model.safetensors", tmp_path / "other.safetensors")
    index = {"weight_map": {"model.norm.weight": "../other.safetensors"}}
    (inside / "model.safetensors.index.json").write_bytes(orjson.dumps(index))
    with pytest.raises(FormatError, match="no file of this folder"):
        export.load_exported(inside)


def test_an_untied_head_in_a_tied_model_is_refused(tmp_path):
    export.export(built({}), {}, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | {"lm_head.weight": head}, tmp_path / "model.safetensors")
    export.load_exported(tmp_path)
    save_file(tensors | {"lm_head.weight": head + 1}, tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match="differs from the embedding"):
        export.load_exported(tmp_path)
