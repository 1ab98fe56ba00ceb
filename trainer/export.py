"""A trained model as model.safetensors + config.json in Llama's names, which other tools load as they are.

The rows that padded the vocabulary are cut off, so the exported size is the tokenizer's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gristmill.core.errors import FormatError
from gristmill.trainer.model import Decoder
from gristmill.trainer.schema import Model

NAMES = {  # ours -> Llama's, per block
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}
TOP = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}


def exported_name(name: str) -> str:
    """`blocks.3.attention.q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    stem = name.removesuffix(".weight")
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", stem)
    return f"model.layers.{block[1]}.{NAMES[block[2]]}.weight" if block else f"{TOP[stem]}.weight"


def export(model: Decoder, special_ids: dict[str, int], folder: Path) -> None:
    """Write model.safetensors (fp32) and config.json into `folder`."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensor = parameter.detach().cpu()
        if name.startswith(("embed", "head")):
            tensor = tensor[: model.vocab_size]
        tensors[exported_name(name)] = tensor.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    c = model.config
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": model.vocab_size,
        "hidden_size": c.hidden,
        "intermediate_size": c.ffn,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "tie_word_embeddings": c.tie_embeddings,
        "max_position_embeddings": model.max_seq_len,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": special_ids.get("bos"),
        "eos_token_id": special_ids.get("eos"),
        "pad_token_id": special_ids.get("pad"),
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))


def load_exported(folder: Path) -> tuple[Decoder, dict[str, Any]]:
    """The model of an export, on CPU, and its config.json. Raises FormatError when the folder holds no export of ours."""
    try:
        config = orjson.loads((folder / "config.json").read_bytes())
        tensors = load_file(folder / "model.safetensors")
        settings = Model(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            ffn=config["intermediate_size"],
            rope_theta=config["rope_theta"],
            norm_eps=config["rms_norm_eps"],
            tie_embeddings=config["tie_word_embeddings"],
        )
        model = Decoder(settings, config["vocab_size"], config["max_position_embeddings"])
        for name, parameter in model.named_parameters():
            tensor = tensors[exported_name(name)]
            parameter.data.zero_()
            parameter.data[: tensor.shape[0]].copy_(tensor)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise FormatError(f"{folder} holds no exported model: {error}") from error
    return model, config
