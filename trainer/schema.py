"""The training-run YAML: which model, optimizer, schedule and precision a mixture is trained with. No torch here.

A run names its mixture for the record only; what is read is the packed dataset given to the launch. The number of
steps, the sequence length and the batch come from that dataset's phases, so a run cannot disagree with its data.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gristmill.core.settings import Settings

Shape = Literal["linear", "cosine", "1-sqrt"]

VOCAB_MULTIPLE = (
    64  # embedding rows are padded to this: whole tiles for matrix units, divisible by any tensor-parallel size
)


def padded_vocab(vocab_size: int) -> int:
    """Rows of the embedding: `vocab_size` rounded up to a multiple of 64."""
    return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


class Model(Settings):
    """A Llama-shaped decoder: RMSNorm, RoPE, grouped-query attention, SwiGLU."""

    layers: int = Field(ge=1)
    hidden: int = Field(ge=2)
    """Width of the residual stream."""
    heads: int = Field(ge=1)
    """Query heads."""
    kv_heads: int = Field(ge=1)
    """Key and value heads; each serves heads / kv_heads query heads."""
    head_dim: int = Field(ge=2)
    ffn: int = Field(ge=1)
    """Inner width of the SwiGLU."""
    rope_theta: float = Field(10_000.0, gt=0)
    norm_eps: float = Field(1e-5, gt=0)
    tie_embeddings: bool = True
    max_seq_len: int | None = Field(None, ge=1)
    """Longest sequence (tokens) the rotary table covers; null takes the longest phase of the dataset."""

    @model_validator(mode="after")
    def _divides(self) -> Model:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd hint: rotary embedding turns pairs of dimensions")
        return self

    def params(self, vocab_size: int) -> int:
        """Parameters of the whole model, the padded vocabulary included."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        block = attention + 3 * self.hidden * self.ffn + 2 * self.hidden
        embedding = padded_vocab(vocab_size) * self.hidden
        return self.layers * block + self.hidden + embedding * (1 if self.tie_embeddings else 2)


class Optimizer(Settings):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101). Norms and embeddings are never decayed."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(gt=0)
    """Peak learning rate; the schedule multiplies it."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    clip: float | None = Field(1.0, gt=0)
    """Largest gradient norm; null clips nothing (the norm is recorded all the same)."""

    @model_validator(mode="after")
    def _betas(self) -> Optimizer:
        if not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"betas {list(self.betas)} must each be at least 0 and less than 1")
        return self


class Schedule(Settings):
    """Defaults of the learning-rate schedule; a phase's `lr:` block in the mixture says stable, decay or full."""

    warmup_steps: int | None = Field(None, ge=0)
    warmup_tokens: int | None = Field(None, ge=0)
    """Warm-up in tokens, rounded up to whole steps of the first phase. Give this or `warmup_steps`, not both."""
    decay: Shape = "linear"
    """Shape of a decay whose phase names none."""
    final_ratio: float = Field(0.0, ge=0, le=1)
    """Where a decay ends whose phase says no `to`, as a fraction of the peak."""

    @model_validator(mode="after")
    def _one_warmup(self) -> Schedule:
        if self.warmup_steps is not None and self.warmup_tokens is not None:
            raise ValueError("both warmup_steps and warmup_tokens are given hint: keep one of them")
        return self


class Checkpoint(Settings):
    """When the whole state is saved: every `every_steps`, at the end of each phase and when the run stops."""

    every_steps: int = Field(100, ge=1)
    keep: int = Field(2, ge=1)
    """Newest checkpoints kept; older ones are removed after a new one is complete."""


class Generate(Settings):
    """The line of text written at the end of a run."""

    prompt: str = "The"
    tokens: int = Field(48, ge=0)
    """Tokens sampled at most; sampling also stops at the end-of-document token."""
    temperature: float = Field(0.8, ge=0)
    """0 takes the likeliest token each time."""
    seed: int = Field(0, ge=0)


class TrainRun(Settings):
    """One training run: the whole surface of a training-run YAML."""

    gristmill_train: Literal[1]
    mixture: str
    """Name or path of the mixture this run is meant for (recorded, and used by recipes that name no mixture)."""
    seed: int = Field(0, ge=0)
    """Seeds the initial weights, each from (seed, its name)."""
    model: Model
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    micro_batch_rows: int = Field(8, ge=1)
    """Rows of one forward pass; a global batch is summed over as many as it takes."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: matrix products in bfloat16 (autocast); weights, gradients and optimizer state stay fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(1, ge=1)
    """CPU threads. Sums depend on it, so runs are equal bit for bit only at one number; 1 suits small models best."""
    max_steps: int | None = Field(None, ge=1)
    """Stop early, the schedule unchanged; null trains on the whole dataset."""
    checkpoint: Checkpoint = Checkpoint()
    log_every: int = Field(10, ge=1)
    """Steps between two progress lines."""
    verify_shards: bool = True
    """Read every shard once at the start and compare its sha256 with the manifest."""
    generate: Generate = Generate()
