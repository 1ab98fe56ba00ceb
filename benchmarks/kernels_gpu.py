"""Time the Triton kernels on a GPU beside eager torch, torch.compile, Liger and the roofline's floor.

Usage: python benchmarks/kernels_gpu.py [--preset llama-3-8b] [--tokens 8192] [--only NAME ...] [--json]
       python benchmarks/kernels_gpu.py --interpret-smoke      (TRITON_INTERPRET=1, no GPU, tiny sizes, no times)

Medians of GPU time with the L2 cache cleared, microseconds; "of floor" is the roofline's least time over the measured
one. Before it is timed every kernel is compared with eager torch, outputs and gradients: `error` is the largest
difference relative to the largest element. Refuses to run without a GPU: there would be nothing to measure.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gristmill.trainer.architecture import Preset, preset_names, read_preset
from gristmill.trainer.hardware import device_key
from gristmill.trainer.kernels.attention_choice import cumulative_lengths, slots_for, torch_varlen, varlen_lacks
from gristmill.trainer.kernels.roofline import BANDWIDTH, DOCUMENT, LENGTH, floor
from gristmill.trainer.kernels.roofline_passes import VOCAB, costs, shard
from gristmill.trainer.ops import XIELUFunction, count_documents, document_mask
from gristmill.trainer.optim_ademamix import AdEMAMix
from gristmill.trainer.optim_muon import newton_schulz as eager_newton_schulz
from gristmill.trainer.rope import rotary_table, rotate
from gristmill.trainer.sizes import padded_vocab

Way = Callable[..., Any]
ADAM: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
SLOW: dict[str, Any] = {"beta3": 0.999, "alpha": 5.0}
QUINTIC = (3.4445, -4.7750, 2.0315)
Z = 1e-4


class Operation(NamedTuple):
    """One row's ways of doing the same: functions of `inputs`; gradients are timed for inputs that require them."""

    name: str
    inputs: list[Tensor]
    ours: Way
    eager: Way
    compiled: Way | None = None  # what torch.compile is given, where it isn't the eager way
    liger: Way | None = None


def operations(
    preset: Preset, n: int, length: int, document: int, dtype: torch.dtype, device: str
) -> Iterator[Operation]:
    """The operations of roofline_passes.costs, by their names, and torch's own varlen attention where it runs."""
    from gristmill.trainer.kernels import adam, attention, linear_ce, mlp, norm, rope
    from gristmill.trainer.kernels.newton_schulz import newton_schulz

    c, vocab = preset.model, preset.vocab_size or VOCAB
    draw = torch.Generator(device).manual_seed(0)

    def new(*shape: int, kind: torch.dtype = dtype, grad: bool = True, size: float = 1.0) -> Tensor:
        x = torch.randn(shape, generator=draw, device=device) * size
        return x.to(kind).requires_grad_(grad)

    def rms(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], weight.float(), c.norm_eps).to(x.dtype)

    def added(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return rms(x + residual, weight), x + residual

    x, weight = new(n, c.hidden), new(c.hidden)
    yield Operation(
        "rms_norm",
        [x, weight],
        lambda x, w: norm.rms_norm(x, w, c.norm_eps),
        rms,
        liger=liger("liger_rms_norm", lambda f: lambda x, w: f(x, w, c.norm_eps, in_place=False)),
    )
    yield Operation(
        "add_rms_norm",
        [x, new(n, c.hidden), weight],
        lambda x, r, w: norm.add_rms_norm(x, r, w, c.norm_eps),
        added,
        liger=liger("liger_fused_add_rms_norm", lambda f: lambda x, r, w: f(x, r, w, c.norm_eps, in_place=False)),
    )
    rows = n // length
    q, k = new(rows, length, c.heads, c.head_dim), new(rows, length, c.kv_heads, c.head_dim)
    position = (torch.arange(length, device=device) % document).expand(rows, length).contiguous()
    cos, sin = (table.to(device)[position] for table in rotary_table(c, document))
    weights = [new(c.head_dim), new(c.head_dim)] if c.qk_norm else []

    def turned(q: Tensor, k: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        if weights:
            q, k = rms(q, weights[0]), rms(k, weights[1])
        return rotate(q, cos, sin), rotate(k, cos, sin)

    def turned_by_liger(f: Way) -> Way:
        return lambda q, k: f(q.transpose(1, 2), k.transpose(1, 2), cos.to(q.dtype), sin.to(q.dtype))

    yield Operation(
        "rope_qk with QK-norm" if c.qk_norm else "rope_qk",
        [q, k, *weights],
        lambda q, k, *w: rope.rope_qk(q, k, cos, sin, w[0] if w else None, w[1] if w else None, c.norm_eps),
        turned,
        liger=None if c.qk_norm else liger("liger_rope", turned_by_liger),
    )
    up, gate = new(n, c.ffn), new(n, c.ffn)
    if c.activation == "xielu":
        scalars = [new(1), new(1)]
        yield Operation("xielu", [up, *scalars], mlp.xielu, XIELUFunction.apply)
    if c.activation == "silu":
        yield Operation(
            "swiglu", [gate, up], mlp.swiglu, lambda g, u: F.silu(g) * u, liger=liger("liger_swiglu", lambda f: f)
        )
    if c.activation != "xielu":
        yield Operation("relu2", [up], mlp.relu2, lambda x: F.relu(x).square())

    v = padded_vocab(vocab)
    labels = torch.randint(vocab, (n,), generator=draw, device=device)
    labels[:: min(document, 7)] = -100
    head = new(v, c.hidden, size=c.hidden**-0.5)

    def crossed(x: Tensor, w: Tensor) -> Tensor:
        logits = (x @ w.t()).float()
        logits = logits.masked_fill(torch.arange(v, device=device) >= vocab, float("-inf")) if v > vocab else logits
        nll = F.cross_entropy(logits, labels, ignore_index=-100, reduction="none")
        return nll + Z * torch.logsumexp(logits, 1).square().where(labels != -100, 0.0)

    yield Operation(
        "linear_cross_entropy",
        [x, head],
        lambda x, w: linear_ce.linear_cross_entropy(x, w, labels, vocab_valid=vocab, z_weight=Z)[0],
        crossed,
        liger=liger(
            "liger_fused_linear_cross_entropy",
            lambda f: lambda x, w: f(x, w, labels, lse_square_scale=Z, reduction="sum"),
        ),
    )
    mask = document_mask(position)

    def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shared = c.heads // c.kv_heads
        k, v = (t.transpose(1, 2).repeat_interleave(shared, 1) for t in (k, v))
        return F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=mask).transpose(1, 2)

    values = new(*k.shape)
    yield Operation(
        "varlen_attention",
        [q, k, values],
        lambda q, k, v: attention.varlen_attention(q, k, v, position),
        attended,
        compiled=flex(position) if device == "cuda" else None,
    )
    if device == "cuda" and not varlen_lacks(torch.device(device), dtype, c.head_dim):  # what `kernels: auto` takes
        starts = cumulative_lengths(position, slots_for(count_documents(position)))
        yield Operation(
            "varlen_attention of torch",
            [q, k, values],
            lambda q, k, v: torch_varlen(q, k, v, starts),
            attended,
        )
    size = shard(preset)
    arrays = [new(size, kind=torch.float32, grad=False, size=0.01) for _ in range(3)]
    square = new(size, kind=torch.float32, grad=False).square_().mul_(1e-4)
    scale, ok = torch.tensor(0.5, device=device), torch.tensor(True, device=device)
    step, theirs = torch.zeros((), device=device), torch.zeros((), device=device)

    def ours(w: Tensor, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        adam.adamw_step(w, g, m, v, step, **ADAM, scale=scale, ok=ok)
        return w, m, v

    def fused(w: Tensor, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        found_inf = torch.zeros((), device=device)
        torch._foreach_add_([theirs], 1)
        settings = {"lr": ADAM["lr"], "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1, "eps": 1e-8}
        torch._fused_adamw_(
            [w], [g * scale], [m], [v], [], [theirs], **settings, amsgrad=False, maximize=False, found_inf=found_inf
        )
        return w, m, v

    yield Operation("adamw", [*arrays, square], ours, fused)
    slow, mixed = new(size, kind=torch.float32, grad=False, size=0.01), torch.zeros((), device=device)

    def mix(w: Tensor, g: Tensor, m: Tensor, s: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        adam.ademamix_step(w, g, m, s, v, mixed, **ADAM, **SLOW, scale=scale, ok=ok)
        return w, m, s, v

    counted = torch.zeros((), device=device)

    def foreach(w: Tensor, g: Tensor, m: Tensor, s: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        weight = torch.nn.Parameter(w)  # shares w's memory
        weight.grad = g * scale
        group = {"params": [weight], "lr": ADAM["lr"], "weight_decay": 0.1}
        optimizer = AdEMAMix([group], betas=ADAM["betas"], eps=1e-8, **SLOW)
        optimizer.state[weight] = {"exp_avg": m, "exp_avg_slow": s, "exp_avg_sq": v, "step": counted}
        optimizer.step()
        return w, m, s, v

    yield Operation("ademamix", [*arrays, slow, square], mix, foreach)
    yield Operation(
        "newton_schulz",
        [new(c.hidden, c.ffn, kind=torch.float32, grad=False)],
        lambda m: newton_schulz(m, QUINTIC, 5, dtype),
        lambda m: eager_newton_schulz(m, QUINTIC, 5, dtype),
    )


def liger(name: str, wrap: Callable[[Way], Way]) -> Way | None:
    """Liger's function of that name, called as ours is; None where Liger or the function is not installed."""
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    functional = importlib.import_module("liger_kernel.transformers.functional")

    found = getattr(functional, name, None)
    return None if found is None else wrap(found)


def flex(position: Tensor) -> Way:
    """FlexAttention with a mask of blocks: what torch.compile has for packed documents."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    rows, length = position.shape
    document = (position == 0).cumsum(1)

    def inside(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (document[b, i] == document[b, j]) & (i >= j)

    blocks = create_block_mask(inside, rows, None, length, length, device=str(position.device))

    def attended(q: Tensor, k: Tensor, v: Tensor) -> Any:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out = flex_attention(q, k, v, block_mask=blocks, enable_gqa=True)
        return out.transpose(1, 2)  # type: ignore[union-attr]

    return attended


def outputs(way: Way, inputs: list[Tensor]) -> list[Tensor]:
    """Results and gradients of one call, on copies of the inputs."""
    copies = [t.detach().clone().requires_grad_(t.requires_grad) for t in inputs]
    results = way(*copies)
    results = list(results) if isinstance(results, tuple) else [results]
    wanted = [t for t in copies if t.requires_grad]
    if not wanted:
        return results
    return [r.detach() for r in results] + list(torch.autograd.grad(results, wanted, [upstream(r) for r in results]))


def upstream(result: Tensor) -> Tensor:
    """A gradient for a result: the same for every way."""
    draw = torch.Generator(result.device).manual_seed(1)
    return torch.randn(result.shape, generator=draw, device=result.device).to(result.dtype)


def error(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest difference of any array, relative to the array's largest element."""
    assert len(a) == len(b)
    pairs = ((x.double(), y.double()) for x, y in zip(a, b, strict=True))
    return max(float((x - y).abs().max() / y.abs().max().clamp(min=1e-30)) for x, y in pairs)


def times(way: Way, inputs: list[Tensor], seconds: Callable[[Way], float]) -> list[float]:
    """Seconds of the call and, where an input needs a gradient, of the backward pass."""
    found = [seconds(lambda: way(*inputs))]
    wanted = [t for t in inputs if t.requires_grad]
    if wanted:
        results = way(*inputs)
        results = list(results) if isinstance(results, tuple) else [results]
        gradients = [upstream(r) for r in results]
        found.append(seconds(lambda: torch.autograd.grad(results, wanted, gradients, retain_graph=True)))
    return found


def measure(
    op: Operation, seconds: Callable[[Way], float], floors: dict[str, float], compiling: bool
) -> list[dict[str, Any]]:
    """The operation's lines: forward, and backward where it has one."""
    wrong = error(outputs(op.ours, op.inputs), outputs(op.eager, op.inputs))
    ways: dict[str, Way | None] = {"ours": op.ours, "eager": op.eager, "compile": None, "liger": op.liger}
    if compiling:
        ways["compile"] = torch.compile(op.compiled or op.eager)
    found = {name: times(way, op.inputs, seconds) if way else None for name, way in ways.items()}
    names = [op.name, f"{op.name} backward"][: len(found["ours"] or [])]
    return [
        {
            "kernel": name,
            "error": wrong,
            "floor_us": floors[name] * 1e6 if name in floors else None,
            **{f"{way}_us": None if t is None else t[i] * 1e6 for way, t in found.items()},
        }
        for i, name in enumerate(names)
    ]


def render(lines: list[dict[str, Any]]) -> str:
    head = (
        "| kernel | error | floor, µs | ours | of floor | eager | compile | Liger |\n|---|---|---|---|---|---|---|---|"
    )

    def cell(value: float | None) -> str:
        return "–" if value is None or math.isnan(value) else f"{value:,.1f}"

    rows = []
    for r in lines:
        share = "–" if r["floor_us"] is None else f"{r['floor_us'] / r['ours_us']:.0%}"
        others = " | ".join(cell(r[f"{way}_us"]) for way in ("eager", "compile", "liger"))
        rows.append(
            f"| {r['kernel']} | {r['error']:.1e} | {cell(r['floor_us'])} | {cell(r['ours_us'])} | {share} | {others} |"
        )
    return "\n".join([head, *rows])


def gpu_seconds(way: Way) -> float:
    from triton.testing import do_bench

    return float(do_bench(way, quantiles=[0.5])) / 1e3


def smoke(only: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Every operation once in triton's interpreter at tiny sizes, compared with eager torch in fp32."""
    from gristmill.trainer.kernels.interpret import interpreting

    if not interpreting():
        raise SystemExit("--interpret-smoke needs TRITON_INTERPRET=1")
    tiny = read_preset("tiny")
    other = tiny.model.model_copy(update={"activation": "xielu", "gated": False, "qk_norm": True})
    lines: list[dict[str, Any]] = []
    for preset in (tiny.model_copy(update={"vocab_size": 250}), Preset(about="", vocab_size=250, model=other)):
        for op in operations(preset, 32, 16, 7, torch.float32, "cpu"):
            if (not only or op.name in only) and not any(line["kernel"] == op.name for line in lines):
                lines += measure(op, lambda way: (way(), math.nan)[1], {}, compiling=False)
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--preset", default="llama-3-8b", choices=preset_names())
    parser.add_argument("--tokens", type=int, default=8192, help=f"positions of a micro batch, a multiple of {LENGTH}")
    parser.add_argument("--only", action="append", help="an operation's name, e.g. rms_norm")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--interpret-smoke", action="store_true")
    options = parser.parse_args(arguments)
    if options.interpret_smoke:
        lines = smoke(options.only)
        print(render(lines))
        return int(any(not line["error"] < 1e-4 for line in lines))
    if not torch.cuda.is_available():
        print("no GPU: kernels are measured on one, never elsewhere", file=sys.stderr)
        return 2
    preset, name = read_preset(options.preset), torch.cuda.get_device_name()
    gpu, floors = device_key(name), {}
    if gpu in BANDWIDTH:
        floors = {cost.name: floor(cost.ours, gpu) for cost in costs(preset, options.tokens, LENGTH, DOCUMENT)}
    lines = []
    for op in operations(preset, options.tokens, LENGTH, DOCUMENT, torch.bfloat16, "cuda"):
        if not options.only or op.name in options.only:
            lines += measure(op, gpu_seconds, floors, compiling=True)
    report = {
        "gpu": name,
        "torch": torch.__version__,
        "preset": options.preset,
        "tokens": options.tokens,
        "lines": lines,
    }
    print(json.dumps(report, indent=1) if options.json else f"{name}, {options.preset}\n\n{render(lines)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
