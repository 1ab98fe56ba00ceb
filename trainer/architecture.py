"""The `model:` section of a training run: the decoder's shape and features, and the packaged presets. No torch here.

The methods give what a plan needs without building anything: parameters, FLOPs, activation bytes, lints (formulas in
`sizes`). A preset is a published model's shape in `presets/NAME.yaml`; keys given beside `preset:` replace its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gristmill.core.settings import Settings, load
from gristmill.trainer import sizes

PRESETS = Path(__file__).parent / "presets"


class Yarn(Settings):
    """YaRN (Peng et al., arXiv 2309.00071): slow dimensions interpolated, fast ones kept, logits sharpened."""

    type: Literal["yarn"]
    factor: float = Field(ge=1)
    """How many times longer than `original_seq_len` the context gets."""
    original_seq_len: int = Field(ge=1)
    """Sequence length (tokens) before the extension."""
    beta_fast: float = Field(32.0, gt=0)
    """Dimensions that turn more often than this over the original length keep their frequency."""
    beta_slow: float = Field(1.0, gt=0)
    """Dimensions that turn less often than this are slowed by the whole factor."""
    attention_factor: float | None = Field(None, gt=0)
    """Multiplies cos and sin (the logits by its square); null takes the paper's 0.1 ln(factor) + 1."""

    @model_validator(mode="after")
    def _order(self) -> Yarn:
        if self.beta_fast <= self.beta_slow:
            raise ValueError(f"beta_fast {self.beta_fast} is not above beta_slow {self.beta_slow}")
        return self


class Llama3Rope(Settings):
    """Llama 3.1's scaling (arXiv 2407.21783): long wavelengths divided by `factor`, short ones kept, a ramp between."""

    type: Literal["llama3"]
    factor: float = Field(8.0, ge=1)
    original_seq_len: int = Field(8192, ge=1)
    """Sequence length (tokens) before the extension."""
    low_freq_factor: float = Field(1.0, gt=0)
    """Wavelengths above original_seq_len / this are divided by the whole factor."""
    high_freq_factor: float = Field(4.0, gt=0)
    """Wavelengths below original_seq_len / this are kept."""

    @model_validator(mode="after")
    def _order(self) -> Llama3Rope:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor {self.high_freq_factor} is not above low_freq_factor {self.low_freq_factor}"
            )
        return self


RopeScaling = Annotated[Yarn | Llama3Rope, Field(discriminator="type")]


class Model(Settings):
    """A decoder: RMSNorm, grouped-query attention, RoPE, a gated or plain MLP; Llama's shape unless told otherwise."""

    preset: str | None = Field(None, exclude=True)
    """A packaged shape, e.g. qwen3-0.6b; other keys given here replace its own. It is resolved on reading."""
    layers: int = Field(ge=1)
    hidden: int = Field(ge=2)
    """Width of the residual stream."""
    heads: int = Field(ge=1)
    """Query heads."""
    kv_heads: int = Field(ge=1)
    """Key and value heads; each serves heads / kv_heads query heads."""
    head_dim: int = Field(ge=2)
    """Width of a head; heads x head_dim need not be `hidden`."""
    ffn: int = Field(ge=1)
    """Inner width of the MLP."""
    activation: Literal["silu", "relu2", "xielu"] = "silu"
    """silu (gated: SwiGLU, arXiv 2002.05202), relu2 (Primer, 2109.08668) or xielu (2411.13010, two scalars learnt)."""
    gated: bool = True
    """down(act(gate(x)) * up(x)) with three matrices; false is down(act(up(x))) with two."""
    rope_theta: float = Field(10_000.0, gt=1)
    """Base of the rotary frequencies. Raising it for longer rows is ABF (arXiv 2309.16039)."""
    rope_scaling: RopeScaling | None = None
    """Stretches the rotary frequencies for rows longer than those trained on; null leaves them."""
    nope_every: int | None = Field(None, ge=1)
    """Every n-th layer gets no positions (NoPE, arXiv 2501.18795; SmolLM3: 4); null gives all layers RoPE."""
    qk_norm: bool = False
    """RMSNorm over each query and key head before RoPE (arXiv 2302.05442), which bounds attention logits."""
    logit_softcap: float | None = Field(None, gt=0)
    """Output logits become cap * tanh(logits / cap) (Gemma 2, arXiv 2408.00118); null leaves them."""
    norm_eps: float = Field(1e-5, gt=0)
    tie_embeddings: bool = True
    init_std: float | None = Field(None, gt=0)
    """Deviation of the initial matrices; null takes 1/sqrt(fan in), and 0.02 for embeddings and head."""
    init_depth: Literal["all", "layer", "none"] = "all"
    """Matrices that write into the residual stream start scaled by 1/sqrt(2 layers) (GPT-2), 1/sqrt(2 n) in the n-th
    layer, or not at all."""
    max_seq_len: int | None = Field(None, ge=1)
    """Longest sequence (tokens) the rotary table covers; null takes the longest phase of the dataset."""

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("preset"), str):
            return data
        return {**_preset_settings(data["preset"]), **{k: v for k, v in data.items() if k != "preset"}}

    @model_validator(mode="after")
    def _divides(self) -> Model:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd hint: rotary embedding turns pairs of dimensions")
        return self

    def uses_rope(self, layer: int) -> bool:
        """Whether a layer (from 0) turns its queries and keys: with nope_every 4, layers 3, 7, ... do not."""
        return self.nope_every is None or (layer + 1) % self.nope_every != 0

    def params(self, vocab_size: int, tp: int = 1) -> int:
        """Parameters of the whole model, the padded vocabulary included; a tied head counts once."""
        return sizes.params(self, vocab_size, tp)

    def flops_per_token(self, vocab_size: int, seq_len: int) -> int:
        """Floating-point operations per trained token, forward and backward: see `sizes.flops_per_token`."""
        return sizes.flops_per_token(self, vocab_size, seq_len)

    def activation_bytes(
        self, rows: int, seq_len: int, checkpointing: sizes.Checkpointing = "none", width: int = 2, tp: int = 1
    ) -> int:
        """Bytes kept for the backward pass of one micro batch on one rank, logits left out: `sizes.activation_bytes`."""
        return sizes.activation_bytes(self, rows, seq_len, checkpointing, width, tp)

    def logits_bytes(self, vocab_size: int, rows: int, seq_len: int, width: int = 2, tp: int = 1) -> int:
        """Bytes of logits and their softmax for one micro batch on one rank: `sizes.logits_bytes`."""
        return sizes.logits_bytes(self, vocab_size, rows, seq_len, width, tp)

    def lints(self, tp: int = 1) -> list[str]:
        """What makes this shape slow or impossible to split over `tp` ranks, in words; empty when nothing does."""
        return sizes.lints(self, tp)


class Preset(Settings):
    """A packaged model shape: what a file of presets/ holds."""

    about: str
    """Whose model it is and where the figures stand."""
    vocab_size: int | None = Field(None, ge=1)
    """Ids of the published model; null for shapes of our own."""
    parameters: int | None = Field(None, ge=1)
    """Published parameter count."""
    model: Model


def preset_names() -> list[str]:
    """Names of the packaged presets, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_preset(name: str) -> Preset:
    """A packaged preset. Raises ValueError, naming those there are, when there is none of that name."""
    if name not in preset_names():
        raise ValueError(f"no preset {name!r} hint: there are {', '.join(preset_names())}")
    return load(PRESETS / f"{name}.yaml", Preset)[0]


def _preset_settings(name: str) -> dict[str, Any]:
    return read_preset(name).model.model_dump(exclude_unset=True)
