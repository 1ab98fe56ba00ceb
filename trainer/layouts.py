"""Which published layout a decoder fits, and its config.json: Llama, Qwen3, SmolLM3, Apertus and Arcee. No torch here.

`LAYOUTS` says what each can hold, in `transformers` model types. A shape that fits none has a list of reasons.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gristmill.core.errors import FormatError, UsageError
from gristmill.trainer.architecture import Llama3Rope, Model, Yarn

NATIVE = "gristmill"  # our own names and settings, for shapes that no layout holds

ATTENTION = {f"attention.{ours}": f"self_attn.{ours}_proj" for ours in "qkvo"}
LLAMA_NAMES = {  # ours -> theirs, per block
    "attention_norm": "input_layernorm",
    **ATTENTION,
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}
QK_NAMES = {"attention.q_norm": "self_attn.q_norm", "attention.k_norm": "self_attn.k_norm"}
APERTUS_NAMES = {
    **LLAMA_NAMES,
    **QK_NAMES,
    "attention_norm": "attention_layernorm",
    "ffn_norm": "feedforward_layernorm",
    "ffn.act.alpha_p": "mlp.act_fn.alpha_p",
    "ffn.act.alpha_n": "mlp.act_fn.alpha_n",
}


@dataclass(frozen=True)
class HFLayout:
    """One model type of `transformers`: its class, its tensor names and what it can hold."""

    model_type: str
    architecture: str
    names: dict[str, str] = field(default_factory=lambda: LLAMA_NAMES)
    gated: bool = True
    activations: tuple[str, ...] = ("silu", "relu2")
    qk_norm: bool = False
    nope: bool = False

    def misfits(self, c: Model) -> list[str]:
        """Why a shape does not fit, in words; empty when it does."""
        nope = any(not c.uses_rope(layer) for layer in range(c.layers))
        reasons = []
        if c.gated != self.gated:
            reasons.append(f"gated is {str(c.gated).lower()}")
        if c.activation not in self.activations:
            reasons.append(f"activation is {c.activation}")
        if c.qk_norm != self.qk_norm:
            reasons.append(f"qk_norm is {str(c.qk_norm).lower()}")
        if nope and not self.nope:
            reasons.append(f"nope_every is {c.nope_every}")
        if c.logit_softcap is not None:
            reasons.append("it has no logit_softcap")
        return reasons


LAYOUTS = [  # the first that fits is taken
    HFLayout("llama", "LlamaForCausalLM"),
    HFLayout("smollm3", "SmolLM3ForCausalLM", nope=True),
    HFLayout("qwen3", "Qwen3ForCausalLM", {**LLAMA_NAMES, **QK_NAMES}, qk_norm=True),
    HFLayout("apertus", "ApertusForCausalLM", APERTUS_NAMES, gated=False, activations=("xielu",), qk_norm=True),
    HFLayout("arcee", "ArceeForCausalLM", gated=False, activations=("relu2",)),
]


def layout_of(c: Model) -> HFLayout:
    """The layout a shape fits. Raises UsageError that says why it fits none."""
    for layout in LAYOUTS:
        if not layout.misfits(c):
            return layout
    reasons = "; ".join(f"{layout.model_type}: {', '.join(layout.misfits(c))}" for layout in LAYOUTS)
    raise UsageError(
        f"no layout that transformers loads holds this model ({reasons})",
        hint="its export keeps our own names, which gristmill reads back",
    )


def describe(layout: HFLayout, c: Model, vocab_size: int, max_seq_len: int) -> dict[str, Any]:
    """config.json of a shape in a layout, token ids left out."""
    config = {
        "architectures": [layout.architecture],
        "model_type": layout.model_type,
        "vocab_size": vocab_size,
        "hidden_size": c.hidden,
        "intermediate_size": c.ffn,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": c.activation,  # both sides use the same words
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "tie_word_embeddings": c.tie_embeddings,
        "max_position_embeddings": max_seq_len,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
    }
    if c.rope_scaling is not None:
        config["rope_scaling"] = _scaling(c.rope_scaling)
    if layout.nope:
        config["no_rope_layers"] = [int(c.uses_rope(layer)) for layer in range(c.layers)]
        config["no_rope_layer_interval"] = c.nope_every or c.layers + 1
    return config


def understand(config: dict[str, Any]) -> tuple[HFLayout, Model]:
    """The layout and shape that a config.json of `transformers` describes.

    Raises FormatError on a model type, scaling or feature we cannot hold, KeyError or ValueError on a damaged one.
    """
    layout = next((x for x in LAYOUTS if x.model_type == config["model_type"]), None)
    if layout is None:
        raise FormatError(
            f"model type {config['model_type']!r} is not known",
            hint=f"these are: {', '.join(x.model_type for x in LAYOUTS)}",
        )
    for key in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if config.get(key):
            raise FormatError(f"{key} is true, which this decoder does not have")
    activation = config.get("hidden_act", layout.activations[0])
    if activation not in layout.activations:
        raise FormatError(f"hidden_act {activation!r} is not known for {layout.model_type}")
    rope = config.get("rope_parameters") or {}  # transformers 5; before: rope_theta and rope_scaling
    hidden, heads, layers = config["hidden_size"], config["num_attention_heads"], config["num_hidden_layers"]
    shape = Model(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        ffn=config["intermediate_size"],
        activation=activation,
        gated=layout.gated,
        rope_theta=rope.get("rope_theta") or config["rope_theta"],
        rope_scaling=_unscaling(rope or config.get("rope_scaling") or {}, config),
        nope_every=_nope_every(config, layers) if layout.nope else None,
        qk_norm=layout.qk_norm,
        norm_eps=config["rms_norm_eps"],
        tie_embeddings=config["tie_word_embeddings"],
    )
    return layout, shape


def _scaling(s: Yarn | Llama3Rope) -> dict[str, Any]:
    fields = s.model_dump(exclude_none=True)
    kind, original = fields.pop("type"), fields.pop("original_seq_len")
    return {"rope_type": kind, "original_max_position_embeddings": original, **fields}


def _unscaling(fields: dict[str, Any], config: dict[str, Any]) -> Yarn | Llama3Rope | None:
    kind = fields.get("rope_type", fields.get("type", "default"))
    if fields.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        raise FormatError("partial_rotary_factor is not 1: this decoder turns whole heads")
    if kind == "default":
        return None
    original = fields.get("original_max_position_embeddings") or config["max_position_embeddings"]
    if kind == "llama3":
        keys = ("factor", "low_freq_factor", "high_freq_factor")
        return Llama3Rope(type="llama3", original_seq_len=original, **{k: fields[k] for k in keys})
    unusual = [k for k in ("mscale", "mscale_all_dim") if fields.get(k)] + ["truncate"] * (
        not fields.get("truncate", True)
    )
    if kind != "yarn" or unusual:
        raise FormatError(f"rope scaling {kind!r} {unusual or ''} is not known", hint="yarn and llama3 are")
    given = {k: fields[k] for k in ("beta_fast", "beta_slow", "attention_factor") if fields.get(k)}
    return Yarn(type="yarn", factor=fields["factor"], original_seq_len=original, **given)


def _nope_every(config: dict[str, Any], layers: int) -> int | None:
    """The n of "every n-th layer has no positions". Raises FormatError on another pattern."""
    rope = config.get("no_rope_layers")
    every = config.get("no_rope_layer_interval") or 4  # SmolLM3Config's default
    if rope is None:
        return int(every) if every <= layers else None
    flags = [bool(flag) for flag in rope[:layers]]
    if all(flags) and len(flags) == layers:
        return None
    every = flags.index(False) + 1 if False in flags else 0
    if not every or flags != [(i + 1) % every != 0 for i in range(layers)]:
        raise FormatError("no_rope_layers is not every n-th layer")
    return every
