"""The training-run YAML: which model, optimizer, schedule and precision a mixture is trained with. No torch here.

A run names its mixture for the record only; what is read is the packed dataset given to the launch. The number of
steps, the sequence length and the batch come from that dataset's phases, so a run cannot disagree with its data.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gristmill.core.settings import Settings
from gristmill.trainer.optim_schema import Optimizer as Optimizer
from gristmill.trainer.optim_schema import Schedule as Schedule

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
