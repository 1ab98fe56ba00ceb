"""Bytes of one GPU for a layout of a run: weights, gradients, optimizer state, activations, logits. No torch here.

Two models stand side by side. The papers' formulas (`zero_bytes`, `simple_activation_bytes`) are what one calculates on
paper; `layout_bytes` counts what this trainer holds, where FSDP2 keeps fp32 weights and casts them to the compute dtype:

  ZeRO paper (arXiv 1910.02054, 3)   2 weights + 2 gradients + 12 optimizer (fp32 weights, two moments) a parameter
  here                               4 fp32 weights + 2 gathered in bf16 + 4 fp32 gradients + 8 moments

so a replica costs 18 bytes a parameter in bf16, not 16, and FSDP2 has no true stage 1: what `zero: 1` shards (fp32
weights and moments) and keeps (gathered weights, gradients) is listed at `layout_bytes`.
Letters: P parameters of one tensor-parallel rank, w bytes of the compute dtype, S ranks that share what is sharded.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from gristmill.trainer.sizes import Checkpointing, activation_bytes, logits_bytes, padded_vocab

if TYPE_CHECKING:
    from gristmill.trainer.architecture import Model
    from gristmill.trainer.optim_schema import Optimizer, ParameterGroup
    from gristmill.trainer.schema import TrainRun

ADAM_BYTES = 16  # mixed-precision Adam, a parameter: 2 + 2 + 4 + 4 + 4 (ZeRO, arXiv 1910.02054, section 3.1)
FP32 = 4
STATES = {"adamw": 2, "muon": 1, "ademamix": 3}  # arrays of the parameter's size

CONTEXT_BYTES = 1_000_000_000  # CUDA context, cuBLAS workspaces and kernels; ours: 0.5 to 1 GB are usual
COMMUNICATOR_BYTES = 1_000_000_000  # NCCL's channels of three groups (world, data, tensor); ours, on the safe side
FRAGMENTS = 0.05  # of everything else: what the caching allocator cannot hand out again; ours
BLOCKS_IN_FLIGHT = 2  # FSDP2 gathers the next block while one computes, and reduces the last one's gradients


def zero_bytes(params: float, ranks: int, stage: int) -> float:
    """Bytes of weights, gradients and Adam state of one GPU by the ZeRO paper (arXiv 1910.02054, figure 1).

    Stage 0 replicates 2 + 2 + 12 bytes a parameter; stage 1 divides the 12 over the ranks, 2 also the gradients' 2, 3 also
    the weights' 2. Raises ValueError on another stage.
    """
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"ZeRO has stages 0 to 3, not {stage}")
    weights, gradients, optimizer = 2.0, 2.0, ADAM_BYTES - 4.0
    divided = (optimizer if stage >= 1 else 0) + (gradients if stage >= 2 else 0) + (weights if stage >= 3 else 0)
    return params * (ADAM_BYTES - divided + divided / ranks)


def simple_activation_bytes(layers: int, rows: int, seq_len: int, hidden: int) -> int:
    """The rule of thumb 3 L B S d x 2 bytes: three bf16 arrays of the residual stream a layer, at any width of the MLP."""
    return 3 * layers * rows * seq_len * hidden * 2


def training_steps(tokens: float, tokens_per_step: float) -> float:
    """Optimizer steps that a budget of tokens takes."""
    return tokens / tokens_per_step


@dataclass(frozen=True)
class Layout:
    """How the GPUs of a run divide the work."""

    tp: int = 1
    dp: int = 1
    zero: int = 0
    checkpointing: Checkpointing = "none"

    @property
    def gpus(self) -> int:
        return self.tp * self.dp

    @property
    def shards(self) -> int:
        """S: ranks over which fp32 weights and optimizer state are divided."""
        return self.dp if self.zero else 1


@dataclass(frozen=True)
class Bytes:
    """Bytes of one GPU at the fullest moment of a step."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    overhead: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    def as_dict(self) -> dict[str, int]:
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True)
class Piece:
    """A parameter of one tensor-parallel rank: its elements there, and the FSDP2 unit it belongs to (block; -1: root)."""

    name: str
    elements: int
    matrix: bool
    unit: int


def pieces(c: Model, vocab_size: int, tp: int = 1) -> list[Piece]:
    """Every parameter of one rank, named as the decoder's: column- and row-parallel matrices hold 1/tp of it.

    Norms, xIELU's scalars, and key and value matrices of fewer heads than ranks are whole on every rank.
    """
    kv = c.kv_heads * c.head_dim * c.hidden
    block: dict[str, float] = {
        "attention_norm.weight": c.hidden,
        "attention.q.weight": c.heads * c.head_dim * c.hidden / tp,
        "attention.k.weight": kv if tp > c.kv_heads else kv / tp,
        "attention.v.weight": kv if tp > c.kv_heads else kv / tp,
        "attention.o.weight": c.heads * c.head_dim * c.hidden / tp,
        **({"attention.q_norm.weight": c.head_dim, "attention.k_norm.weight": c.head_dim} if c.qk_norm else {}),
        "ffn_norm.weight": c.hidden,
        **({"ffn.gate.weight": c.hidden * c.ffn / tp} if c.gated else {}),
        "ffn.up.weight": c.hidden * c.ffn / tp,
        "ffn.down.weight": c.hidden * c.ffn / tp,
        **({"ffn.act.alpha_p": 1, "ffn.act.alpha_n": 1} if c.activation == "xielu" else {}),
    }
    vectors = ("norm.weight", "alpha_p", "alpha_n")
    table = padded_vocab(vocab_size, tp) // tp * c.hidden
    out = [Piece("embed.weight", table, True, -1)]
    for layer in range(c.layers):
        out += [
            Piece(f"blocks.{layer}.{name}", round(size), not name.endswith(vectors), layer)
            for name, size in block.items()
        ]
    out.append(Piece("norm.weight", c.hidden, False, -1))
    return out if c.tie_embeddings else [*out, Piece("head.weight", table, True, -1)]


def optimizer_states(settings: Optimizer, held: list[Piece]) -> int:
    """Elements of all optimizer state of a rank before sharding, by the same choice as `optim_groups`."""
    total = 0
    for piece in held:
        group = _group_of(piece.name, settings)
        algorithm = group.optimizer if group and group.optimizer else settings.name
        if algorithm == "muon" and not (group and group.optimizer) and not (piece.matrix and piece.unit >= 0):
            algorithm = "adamw"
        total += STATES[algorithm] * piece.elements
    return total


def _group_of(name: str, settings: Optimizer) -> ParameterGroup | None:
    if not settings.groups:
        return None
    from gristmill.trainer.optim_groups import matches  # imports torch, so only where a run has groups

    return next((g for g in settings.groups if matches(g.match, name)), None)


def kept_activations(run: TrainRun, layout: Layout, seq_len: int) -> int:
    """Bytes of activations of one micro batch that the backward pass needs, the attention mask included.

    `sizes.activation_bytes`, and what plain torch keeps beyond it: fp32 inputs of the two norms of a layer under bf16 (the
    formula has them in bf16); and the boolean mask (B T^2), once, with its copy in the compute dtype for each layer that
    keeps it (a CPU computes piece by piece and has no mask).
    """
    c, rows, tp, w = run.model, run.micro_batch_rows, layout.tp, compute_width(run)
    tokens = rows * seq_len
    # without sequence parallelism the residual stream is whole on every rank: the formula divides it by tp
    shaped = c if run.parallel.sequence else c.model_copy(update={"hidden": c.hidden * tp})
    total = activation_bytes(shaped, rows, seq_len, layout.checkpointing, w, tp)
    whole_blocks = c.layers if layout.checkpointing == "none" else 1
    widened = 2 * shaped.hidden // tp * (FP32 - w)
    mask = 0 if run.device == "cpu" else rows * seq_len**2 * (1 + w * whole_blocks)
    return total + tokens * whole_blocks * widened + mask


def compute_width(run: TrainRun) -> int:
    """w: bytes of an element of activations and gathered weights."""
    return 2 if run.precision == "bf16" else FP32


def reduce_width(run: TrainRun) -> int:
    """r: bytes of an element of the gradients that ranks add up, whole ones that wait for it among them."""
    return min(FP32, compute_width(run)) if run.parallel.reduce == "bf16" else FP32


def layout_bytes(run: TrainRun, vocab_size: int, layout: Layout, seq_len: int, micro_batches: int = 1) -> Bytes:
    """Bytes of one GPU while it trains rows of `seq_len` tokens, `run.micro_batch_rows` at a time, as FSDP2 holds them.

    parameters   fp32 4P/S; gathered wP, at zero 3 only the root (embedding, head) and two blocks. One process holds the
                 casts of its weights that autograd keeps: wP in bf16 without checkpointing, nothing in fp32
    gradients    fp32 4P/S; at zero 1 with several micro batches rP instead, cut at the end of the step only. With
                 several processes also the whole gradients of the root and one block before they are reduced, at w
    optimizer    4 bytes for each element of state, /S; an exponential average of the weights (`average`) is one more
    overhead     CUDA, NCCL, buffers of gathering and reducing two blocks, 5 % of fragments; the root's buffer where the
                 activations, gone by then, do not make room for it
    A run with `device: cpu` has no overhead.
    """
    held = pieces(run.model, vocab_size, layout.tp)
    count, shards, w = sum(p.elements for p in held), layout.shards, compute_width(run)
    root = sum(p.elements for p in held if p.unit < 0)
    block = sum(p.elements for p in held if p.unit == 0)
    several = layout.gpus > 1
    if not several:
        gathered = 0 if w == FP32 else w * (count if layout.checkpointing == "none" else root + block)
    elif layout.zero == 3:
        gathered = w * (root + min(BLOCKS_IN_FLIGHT, run.model.layers) * block)
    else:
        gathered = w * count
    r = reduce_width(run)
    waiting = r * count if layout.zero < 2 and micro_batches > 1 else 0
    gradients = max(FP32 * -(-count // shards), waiting) + (w * (root + block) if several else 0)
    average = FP32 * count if run.average.kind == "ema" else 0
    optimizer = (FP32 * optimizer_states(run.optimizer, held) + average) // shards
    activations = kept_activations(run, layout, seq_len)
    logits = logits_bytes(run.model, vocab_size, run.micro_batch_rows, seq_len, w, layout.tp)
    sizes = (FP32 * -(-count // shards) + gathered, gradients, optimizer, activations, logits)
    if run.device == "cpu":
        return Bytes(*sizes, overhead=0)
    fixed = CONTEXT_BYTES
    if several:
        fixed += COMMUNICATOR_BYTES + BLOCKS_IN_FLIGHT * block * (w + r)
        fixed += max(0, r * root - activations - logits)
    return Bytes(*sizes, overhead=round(fixed + FRAGMENTS * (sum(sizes) + fixed)))


def traffic(run: TrainRun, vocab_size: int, layout: Layout, micro_batches: int) -> int:
    """Bytes that data parallelism moves through one GPU each step of m micro batches: gradients at r, weights at w.

    zero 0  an all-reduce, 2rP      zero 1  reduce-scatter and gather once, (r + w)P
    zero 2  reduce-scatter every micro batch, (mr + w)P      zero 3  and two gathers each time, (r + 2w) m P
    """
    if layout.dp == 1:
        return 0
    count, w, r = (
        sum(p.elements for p in pieces(run.model, vocab_size, layout.tp)),
        compute_width(run),
        reduce_width(run),
    )
    each = {0: 2 * r, 1: r + w, 2: r * micro_batches + w, 3: (r + 2 * w) * micro_batches}[layout.zero]
    return each * count * (layout.dp - 1) // layout.dp
