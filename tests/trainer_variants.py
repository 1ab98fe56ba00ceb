"""Decoder variants for the trainer's tests, and a plain reference of each: loops over tokens and heads, in fp64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gristmill.trainer.schema import Model

BASE: dict[str, Any] = {"layers": 2, "hidden": 24, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 40}
YARN = {"type": "yarn", "factor": 4.0, "original_seq_len": 16, "beta_fast": 4.0}
LLAMA3 = {"type": "llama3", "factor": 8.0, "original_seq_len": 16}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "untied": {"tie_embeddings": False},
    "wide heads": {"head_dim": 16, "kv_heads": 1},
    "abf": {"rope_theta": 5e5},
    "yarn": {"rope_scaling": YARN},
    "llama3": {"rope_scaling": LLAMA3, "rope_theta": 100.0},
    "nope": {"nope_every": 2},
    "qk-norm": {"qk_norm": True},
    "softcap": {"logit_softcap": 0.5},
    "relu2": {"activation": "relu2"},
    "relu2 plain": {"activation": "relu2", "gated": False},
    "xielu": {"activation": "xielu", "gated": False},
    "xielu gated": {"activation": "xielu"},
    "all": {
        "layers": 3,
        "head_dim": 10,
        "activation": "xielu",
        "gated": False,
        "qk_norm": True,
        "nope_every": 2,
        "logit_softcap": 2.0,
        "rope_scaling": LLAMA3,
        "tie_embeddings": False,
        "norm_eps": 1e-3,
    },
}


def settings(name: str = "llama", **changes: Any) -> Model:
    return Model.model_validate(BASE | VARIANTS[name] | changes)


def fp64_model(c: Model, vocab: int = 61, length: int = 64, seed: int = 7) -> Any:
    """A decoder in fp64, its rotary table included; norms and biases of all kinds moved off their start."""
    import torch

    from gristmill.trainer.model import Decoder

    model = Decoder(c, vocab, length)
    model.init_weights(seed)
    model.double()
    model.set_rope(c)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
            else:
                p.mul_(3.0)  # so that attention and activations are far from linear
    return model


def naive_logits(c: Model, weights: dict[str, Any], tokens: list[int], position: list[int], vocab: int) -> Any:
    """(T, vocab) logits of one packed row in plain torch fp64. `weights` is {parameter name: tensor}."""
    import torch

    frequency = naive_frequencies(c)
    stretch = (0.1 * math.log(c.rope_scaling.factor) + 1) if c.rope_scaling and c.rope_scaling.type == "yarn" else 1.0

    def norm(x: Any, name: str) -> Any:
        return x / torch.sqrt((x * x).mean() + c.norm_eps) * weights[f"{name}.weight"]

    def turn(x: Any, p: int) -> Any:
        half = c.head_dim // 2
        turned = torch.complex(x[:half], x[half:]) * torch.exp(1j * p * torch.tensor(frequency, dtype=torch.float64))
        return torch.cat([turned.real, turned.imag]) * stretch

    def act(x: Any, name: str) -> Any:
        if c.activation == "silu":
            return x / (1 + torch.exp(-x))
        if c.activation == "relu2":
            return torch.where(x > 0, x * x, 0.0)
        a = torch.log(1 + torch.exp(weights[f"{name}.act.alpha_p"]))
        n = 0.5 + torch.log(1 + torch.exp(weights[f"{name}.act.alpha_n"]))
        return torch.where(x > 0, a * x * x + 0.5 * x, n * (torch.exp(x.clamp(max=0)) - 1) - n * x + 0.5 * x)

    stream = [weights["embed.weight"][t] for t in tokens]
    for layer in range(c.layers):
        base = f"blocks.{layer}"
        queries, keys, values = [], [], []
        for x, p in zip(stream, position, strict=True):
            h = norm(x, f"{base}.attention_norm")
            q, k, v = ((weights[f"{base}.attention.{w}.weight"] @ h).reshape(-1, c.head_dim) for w in "qkv")
            if c.qk_norm:
                q = torch.stack([norm(head, f"{base}.attention.q_norm") for head in q])
                k = torch.stack([norm(head, f"{base}.attention.k_norm") for head in k])
            if c.nope_every is None or (layer + 1) % c.nope_every:
                q, k = (torch.stack([turn(head, p) for head in x]) for x in (q, k))
            queries.append(q)
            keys.append(k)
            values.append(v)
        after = []
        for t, x in enumerate(stream):
            seen = range(t - position[t], t + 1)  # its own piece, up to itself
            heads = []
            for h in range(c.heads):
                g = h // (c.heads // c.kv_heads)
                score = torch.stack([queries[t][h] @ keys[s][g] for s in seen]) / math.sqrt(c.head_dim)
                share = torch.exp(score) / torch.exp(score).sum()
                heads.append(sum(w * values[s][g] for w, s in zip(share, seen, strict=True)))
            x = x + weights[f"{base}.attention.o.weight"] @ torch.cat(heads)
            h = norm(x, f"{base}.ffn_norm")
            up = weights[f"{base}.ffn.up.weight"] @ h
            inner = (
                act(weights[f"{base}.ffn.gate.weight"] @ h, f"{base}.ffn") * up if c.gated else act(up, f"{base}.ffn")
            )
            after.append(x + weights[f"{base}.ffn.down.weight"] @ inner)
        stream = after
    out = weights["embed.weight" if c.tie_embeddings else "head.weight"]
    logits = torch.stack([out @ norm(x, "norm") for x in stream])[:, :vocab]
    return logits if c.logit_softcap is None else c.logit_softcap * torch.tanh(logits / c.logit_softcap)


def naive_frequencies(c: Model) -> list[float]:
    """Radians per position of each pair, from the papers' definitions, pair by pair."""
    found = []
    for i in range(c.head_dim // 2):
        f = c.rope_theta ** (-2 * i / c.head_dim)
        s = c.rope_scaling
        turns = s.original_seq_len * f / (2 * math.pi) if s else 0.0
        if s is not None and s.type == "llama3":
            if turns < s.low_freq_factor:
                f = f / s.factor
            elif turns <= s.high_freq_factor:
                t = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
                f = (1 - t) * f / s.factor + t * f
        elif s is not None:
            first, last = (
                c.head_dim * math.log(s.original_seq_len / (2 * math.pi * b)) / (2 * math.log(c.rope_theta))
                for b in (s.beta_fast, s.beta_slow)
            )
            low, high = max(math.floor(first), 0), min(math.ceil(last), c.head_dim - 1)
            t = min(max((i - low) / (high - low), 0.0), 1.0)
            f = t * f / s.factor + (1 - t) * f
        found.append(f)
    return found


def packed_rows(seed: int = 0, rows: int = 2, length: int = 20, vocab: int = 61) -> tuple[Any, Any, Any]:
    """(rows, length) tokens, labels and positions as torch tensors: pieces of 1 to 9 tokens, last labels ignored."""
    import torch

    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab, (rows, length))
    labels = rng.integers(0, vocab, (rows, length))
    position = np.zeros((rows, length), np.int64)
    for row in range(rows):
        at = 0
        while at < length:
            n = min(int(rng.integers(1, 10)), length - at)
            position[row, at : at + n] = np.arange(n)
            labels[row, at + n - 1] = -100
            at += n
    return torch.from_numpy(tokens), torch.from_numpy(labels), torch.from_numpy(position)
