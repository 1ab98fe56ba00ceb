"""The training-run YAML: which model, optimizer, schedule and precision a mixture is trained with. No torch here.

A run names its mixture for the record only; what is read is the packed dataset given to the launch. The number of
steps, the sequence length and the batch come from that dataset's phases, so a run cannot disagree with its data.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from gristmill.core.settings import Settings
from gristmill.trainer.architecture import Model as Model
from gristmill.trainer.branch_schema import Branch
from gristmill.trainer.checkpoint_schema import Average as Average
from gristmill.trainer.checkpoint_schema import Checkpoint as Checkpoint
from gristmill.trainer.data_schema import Data as Data
from gristmill.trainer.guard_schema import Guards as Guards
from gristmill.trainer.ladder_schema import Ladder
from gristmill.trainer.optim_schema import Optimizer as Optimizer
from gristmill.trainer.optim_schema import Schedule as Schedule
from gristmill.trainer.sizes import padded_vocab as padded_vocab
from gristmill.trainer.stage_settings import StageSettings
from gristmill.trainer.watch_schema import Evaluate, Gallery, Tracker


class Goldfish(Settings):
    """Goldfish loss (Hans et al., arXiv 2406.10209): a hash of the last h tokens leaves one label in k out of the loss."""

    k: int = Field(4, ge=2)
    """One label in k is dropped (Apertus: 50)."""
    h: int = Field(13, ge=1)
    """Tokens the hash covers; the paper's 13 is longer than common phrases (Apertus: 50)."""
    seed: int = Field(0, ge=0)


class Loss(Settings):
    """What is added to, or left out of, the cross-entropy."""

    z_loss: float = Field(0.0, ge=0)
    """Weight of log(sum exp logits)^2, which keeps logits from drifting (PaLM, arXiv 2204.02311: 1e-4; OLMo 2: 1e-5)."""
    goldfish: Goldfish | None = None


class Parallel(Settings):
    """How the processes of a run divide the work: data parallel = processes / tp. It changes rounding, never the data."""

    tp: int = Field(1, ge=1)
    """Ranks that share each matrix (tensor parallel); heads, ffn and vocabulary are divided by it."""
    sequence: bool = True
    """With tp > 1, norms and residuals hold 1/tp of the positions of a row (arXiv 2205.05198)."""
    reduce: Literal["fp32", "bf16"] = "fp32"
    """Dtype in which sums over ranks are made under `precision: bf16`: activations' parts (tp) and gradients (dp). fp32
    rounds as one process does and moves twice the bytes."""
    zero: Literal[0, 1, 2, 3] = 2
    """What data-parallel ranks divide by FSDP2. 0: nothing. 1: master weights and optimizer state; gradients are summed
    once a step. 2: gradients too, summed each micro batch. 3: also the weights between uses."""
    checkpointing: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass: none, all but matrix products and attention, or whole blocks."""
    compile: bool = False
    """torch.compile each block: slow to start, faster on GPUs."""
    nproc: int = Field(1, ge=1)
    """Processes on this machine where the launch does not say (`--nproc`)."""


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

    model_config = ConfigDict(populate_by_name=True)  # `from` is a word of Python's

    gristmill_train: Literal[1]
    mixture: str
    """Name or path of the mixture this run is meant for (recorded, and used by recipes that name no mixture)."""
    seed: int = Field(0, ge=0)
    """Seeds the initial weights, each from (seed, its name)."""
    branch: Branch | None = Field(None, alias="from")
    """Where the first weights come from: a checkpoint of another run, or an export; null: from the seed."""
    model: Model
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    loss: Loss = Loss()
    data: Data = Data()
    stages: dict[str, StageSettings] = {}
    """{stage of the mixture: what this run changes in it}: learning rate, RoPE, weights of sources. Shards stay."""
    parallel: Parallel = Parallel()
    micro_batch_rows: int = Field(8, ge=1)
    """Rows of one forward pass of one data-parallel rank; a global batch is summed over as many as it takes."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: activations and matrix products in bfloat16; weights, gradients and optimizer state stay fp32."""
    kernels: Literal["auto", "torch", "triton"] = "auto"
    """Model, loss and optimizer in Triton kernels, or in torch. auto: Triton on a GPU (which attention: docs/kernels.md)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(1, ge=1)
    """CPU threads. Sums depend on it, so runs are equal bit for bit only at one number; 1 suits small models best."""
    max_steps: int | None = Field(None, ge=1)
    """Stop early, the schedule unchanged; null trains on the whole dataset."""
    checkpoint: Checkpoint = Checkpoint()
    average: Average = Average()
    guards: Guards = Guards()
    log_every: int = Field(10, ge=1)
    """Steps between two progress lines."""
    verify_shards: bool = True
    """Read every shard once at the start and compare its sha256 with the manifest."""
    generate: Generate = Generate()
    ladder: Ladder | None = None
    """The small runs of `gristmill train ladder`; null takes its defaults. The run itself does not read it."""
    evaluate: Evaluate = Evaluate()
    gallery: Gallery = Gallery()
    track: list[Tracker] = []
    """Also draw the run in TensorBoard or Weights & Biases (extras of those names)."""
    peak_tflops: float | None = Field(None, gt=0)
    """Dense peak of one device in TFLOP/s at the run's precision, for MFU; null: the table in trainer/hardware.py."""
