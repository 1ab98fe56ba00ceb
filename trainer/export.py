"""A trained model as model.safetensors + config.json under the names other tools load, and back.

Llama's names where the model is one, else Qwen3's, SmolLM3's, Apertus' or Arcee's (`layouts`); a shape that none of
them holds keeps our own. The rows that padded the vocabulary are cut off, so the exported size is the tokenizer's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gristmill.core.errors import FormatError, UsageError
from gristmill.trainer.layouts import NATIVE, HFLayout, describe, layout_of, understand
from gristmill.trainer.model import Decoder
from gristmill.trainer.parallel.tensor import whole
from gristmill.trainer.schema import Model

TOP = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights in several files
CONSTANTS = re.compile(r".*(\.rotary_emb\.inv_freq|\.act_fn\.(beta|eps))")  # buffers that some tools save
XIELU_CONSTANTS = {"beta": 0.5, "eps": -1e-6}


def exported_name(name: str, layout: HFLayout) -> str:
    """`blocks.3.attention.q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    stem = name.removesuffix(".weight")
    suffix = name[len(stem) :]
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", stem)
    return f"model.layers.{block[1]}.{layout.names[block[2]]}{suffix}" if block else TOP[stem] + suffix


def export(
    model: Decoder, special_ids: dict[str, int], folder: Path, *, strict: bool = False, write: bool = True
) -> None:
    """Write model.safetensors (fp32) and config.json into `folder`.

    Of a model over several ranks every rank calls this, since weights are gathered one by one, and one has `write` true.
    A model that no layout of `transformers` holds is written under our own names (model_type gristmill), which only
    `load_exported` reads; `strict` raises UsageError with the reasons instead.
    """
    c = model.config
    layout: HFLayout | None = None
    try:
        layout = layout_of(c)
        config = describe(layout, c, model.vocab_size, model.max_seq_len)
    except UsageError:
        if strict:
            raise
        config = {
            "model_type": NATIVE,
            "model": c.model_dump(mode="json"),
            "vocab_size": model.vocab_size,
            "max_position_embeddings": model.max_seq_len,
        }
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensor = whole(parameter)
        if not write:
            continue
        tensor = tensor.cpu()
        if name.startswith(("embed", "head")):
            tensor = tensor[: model.vocab_size]
        tensors[exported_name(name, layout) if layout else name] = tensor.contiguous()
    if not write:
        return
    if layout and c.activation == "xielu":  # transformers keeps xIELU's constants as buffers
        for i in range(c.layers):
            for key, value in XIELU_CONSTANTS.items():
                tensors[f"model.layers.{i}.mlp.act_fn.{key}"] = torch.tensor(value)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config |= {f"{key}_token_id": special_ids.get(key) for key in ("bos", "eos", "pad")}
    (folder / "config.json").write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))


def load_exported(folder: Path) -> tuple[Decoder, dict[str, Any]]:
    """The model of an export, ours or of a layout of `layouts`, on CPU in fp32, and its config.json.

    Raises FormatError when the folder holds no model of a known layout, or tensors that do not fit it.
    """
    layout: HFLayout | None = None
    try:
        config = orjson.loads((folder / "config.json").read_bytes())
        if config["model_type"] == NATIVE:
            settings = Model.model_validate(config["model"])
        else:
            layout, settings = understand(config)
        tensors = _read_tensors(folder)
        model = Decoder(settings, config["vocab_size"], config["max_position_embeddings"])
        for name, parameter in model.named_parameters():
            tensor = tensors.pop(exported_name(name, layout) if layout else name)
            want = list(parameter.shape)
            if name.startswith(("embed", "head")):
                want[0] = model.vocab_size
            if list(tensor.shape) != want:
                raise ValueError(f"{name} has the shape {list(tensor.shape)}, the settings say {want}")
            parameter.data.zero_()
            parameter.data[: tensor.shape[0]].copy_(tensor)
        _check_rest(tensors, model)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise FormatError(f"{folder} holds no exported model: {error}") from error
    return model, config


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of model.safetensors, or of the files its index names. Raises ValueError on a name with a path."""
    if not (folder / INDEX).is_file():
        return load_file(folder / WEIGHTS)
    files = sorted(set(orjson.loads((folder / INDEX).read_bytes())["weight_map"].values()))
    if outside := [name for name in files if Path(name).name != name]:
        raise ValueError(f"{INDEX} names {outside[0]!r}, which is no file of this folder")
    tensors: dict[str, Tensor] = {}
    for name in files:
        tensors |= load_file(folder / name)
    return tensors


def _check_rest(tensors: dict[str, Tensor], model: Decoder) -> None:
    """Raises ValueError on a tensor that has no place in the model, or another constant than ours."""
    for name, tensor in tensors.items():
        if model.config.tie_embeddings and name == "lm_head.weight":
            if not tensor.float().equal(model.embed.weight[: model.vocab_size]):
                raise ValueError("lm_head.weight differs from the embedding, but tie_word_embeddings is true")
        elif not CONSTANTS.fullmatch(name):
            raise ValueError(f"{name} has no place in this decoder")
        want = XIELU_CONSTANTS.get(name.rsplit(".", 1)[1])
        if want is not None and abs(float(tensor) - want) > 1e-2 * abs(want):  # they may stand in bf16
            raise ValueError(f"{name} is {float(tensor)}, this decoder has {want}")
