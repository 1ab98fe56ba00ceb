"""The trainer beside a decoder, optimizer and schedule written here from the papers, which share no code with it."""

from __future__ import annotations

import itertools
import math

import pytest

torch = pytest.importorskip("torch")

import grammar_data as text  # noqa: E402

from gristmill.trainer import loop  # noqa: E402
from gristmill.trainer.data import batch_of_step  # noqa: E402
from gristmill.trainer.journal import read_journal  # noqa: E402
from gristmill.trainer.model import Decoder  # noqa: E402

IGNORED = -100
WARM, MAIN, ANNEAL = 6, 35, 20  # steps
PEAK, FLOOR = 5e-3, 0.1
DECAY, BETAS, EPS, CLIP = 0.1, (0.9, 0.95), 1e-8, 1.0
PLAIN = {"layers": 2, "hidden": 48, "heads": 4, "kv_heads": 2, "head_dim": 12, "ffn": 128}
VARIANTS = {
    "plain": (PLAIN, 0.0),
    "odd": (
        {
            **PLAIN,
            "layers": 4,
            "heads": 6,
            "kv_heads": 3,
            "qk_norm": True,
            "tie_embeddings": False,
            "nope_every": 4,
            "logit_softcap": 12.0,
            "activation": "relu2",
            "gated": False,
        },
        1e-3,
    ),
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    phases = [
        ("main", 48, 6, MAIN, {"phase": "stable", "warmup_steps": WARM}),
        ("anneal", 64, 4, ANNEAL, {"phase": "decay", "shape": "linear", "to": FLOOR}),
    ]
    return text.write_dataset(tmp_path_factory.mktemp("reference") / "dataset", phases, text.grammar_documents(11, 40))


@pytest.fixture(params=VARIANTS)
def variant(request, run_maker):
    model, z_loss = VARIANTS[request.param]
    run = run_maker(
        model=model,
        optimizer={"lr": PEAK, "weight_decay": DECAY, "betas": BETAS, "eps": EPS, "clip": CLIP},
        loss={"z_loss": z_loss},
        micro_batch_rows=4,
        checkpoint={"every_steps": 1000, "keep": 1},
    )
    start = Decoder(run.model, text.VOCAB, 64)
    start.init_weights(run.seed)
    return run, start, Reference(model, z_loss, {n: p.detach().double() for n, p in start.named_parameters()})


class Reference:
    """Llama's decoder in float64, written with loops and einsum: one document at a time, never packed."""

    def __init__(self, shape, z_loss, weights):
        self.c, self.z_loss = shape, z_loss
        self.w = {name: value.clone().requires_grad_() for name, value in weights.items()}

    def norm(self, x, name):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * self.w[name]

    def turned(self, x):
        """Each pair (i, i + D/2) of (T, H, D) as a complex number, turned by position x 10000^(-2i/D)."""
        half = x.shape[-1] // 2
        pairs = torch.complex(x[..., :half], x[..., half:])
        speed = torch.tensor([10_000.0 ** (-2 * i / x.shape[-1]) for i in range(half)], dtype=torch.float64)
        angle = torch.arange(len(x), dtype=torch.float64)[:, None] * speed
        pairs = pairs * torch.polar(torch.ones_like(angle), angle)[:, None]
        return torch.cat([pairs.real, pairs.imag], -1)

    def attention(self, x, layer):
        c, at = self.c, f"blocks.{layer}.attention."
        heads = {"q": c["heads"], "k": c["kv_heads"], "v": c["kv_heads"]}
        q, k, v = (
            torch.einsum("tc,oc->to", x, self.w[f"{at}{n}.weight"]).view(len(x), h, -1) for n, h in heads.items()
        )
        if c.get("qk_norm"):
            q, k = self.norm(q, f"{at}q_norm.weight"), self.norm(k, f"{at}k_norm.weight")
        if not c.get("nope_every") or (layer + 1) % c["nope_every"]:
            q, k = self.turned(q), self.turned(k)
        group = c["heads"] // c["kv_heads"]
        out = []
        for head in range(c["heads"]):
            scores = q[:, head] @ k[:, head // group].T / math.sqrt(c["head_dim"])
            later = torch.triu(torch.ones_like(scores, dtype=torch.bool), 1)
            out.append(scores.masked_fill(later, -math.inf).softmax(-1) @ v[:, head // group])
        return torch.cat(out, -1) @ self.w[f"{at}o.weight"].T

    def mlp(self, x, layer):
        at = f"blocks.{layer}.ffn."
        up = x @ self.w[f"{at}up.weight"].T
        if self.c.get("gated", True):
            gate = x @ self.w[f"{at}gate.weight"].T
            inner = gate / (1 + torch.exp(-gate)) * up
        else:
            inner = torch.where(up > 0, up * up, torch.zeros_like(up))
        return inner @ self.w[f"{at}down.weight"].T

    def document(self, ids, labels):
        """(cross-entropy, z-loss), each summed over one document's labels."""
        x = self.w["embed.weight"][ids]
        for layer in range(self.c["layers"]):
            x = x + self.attention(self.norm(x, f"blocks.{layer}.attention_norm.weight"), layer)
            x = x + self.mlp(self.norm(x, f"blocks.{layer}.ffn_norm.weight"), layer)
        table = self.w["embed.weight" if self.c.get("tie_embeddings", True) else "head.weight"][: text.VOCAB]
        logits = self.norm(x, "norm.weight") @ table.T
        if cap := self.c.get("logit_softcap"):
            logits = cap * torch.tanh(logits / cap)
        loss, z = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for i, label in enumerate(labels.tolist()):
            if label != IGNORED:
                partition = torch.logsumexp(logits[i], 0)
                loss, z = loss + partition - logits[i, label], z + partition**2
        return loss, z

    def batch(self, rows):
        """Mean over a global batch; its gradients are added up. `rows`: (tokens, piece starts) of each packed row."""
        parts = [piece for row in rows for piece in pieces(*row)]
        count = sum(int((labels != IGNORED).sum()) for _, labels in parts)
        whole = 0.0
        for ids, labels in parts:
            if bool((labels == IGNORED).all()):
                continue
            loss, z = self.document(ids, labels)
            ((loss + self.z_loss * z) / count).backward()
            whole += loss.item() / count
        return whole


def pieces(tokens, starts):
    """(ids, labels) of each document of a row of T + 1 tokens, cut at T as the trainer's rows are; padding left out."""
    ids = torch.tensor(tokens.astype("int64"))
    for begin, end in itertools.pairwise([*starts.tolist(), len(ids)]):
        piece = ids[begin:end]
        if bool((piece == text.SPECIAL["pad"]).all()):
            continue
        if end == len(ids):
            piece, following = piece[:-1], piece[1:]
        else:
            following = torch.cat([piece[1:], torch.tensor([IGNORED])])
        if len(piece):
            yield piece, following


def rows_of(dataset, step):
    name, batch, first = ("main", 6, step - 1) if step <= MAIN else ("anneal", 4, step - 1 - MAIN)
    return [dataset.row(name, first * batch + i) for i in range(batch)]


def rate(step):
    """Warm-up, the peak, and a line down to a tenth whose first step still has the peak."""
    if step <= WARM:
        return PEAK * step / WARM
    return PEAK if step <= MAIN else PEAK * (FLOOR + (1 - FLOOR) * (1 - (step - 1 - MAIN) / ANNEAL))


class AdamW:
    """Loshchilov and Hutter (arXiv 1711.05101), algorithm 2, after clipping by the global norm."""

    def __init__(self, weights):
        self.w = weights
        self.m = {n: torch.zeros_like(p) for n, p in weights.items()}
        self.v = {n: torch.zeros_like(p) for n, p in weights.items()}
        self.t = 0

    @torch.no_grad()
    def step(self, lr):
        self.t += 1
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in self.w.values()))
        for name, p in self.w.items():
            g = p.grad * min(1.0, CLIP / (norm + 1e-6))
            self.m[name] = BETAS[0] * self.m[name] + (1 - BETAS[0]) * g
            self.v[name] = BETAS[1] * self.v[name] + (1 - BETAS[1]) * g**2
            mean = self.m[name] / (1 - BETAS[0] ** self.t)
            size = (self.v[name] / (1 - BETAS[1] ** self.t)).sqrt()
            decayed = p.dim() == 2 and not name.startswith("embed")
            p -= lr * ((DECAY if decayed else 0.0) * p + mean / (size + EPS))
            p.grad = None
        return norm


@pytest.mark.slow
def test_fifty_steps_are_those_of_the_reference(dataset, variant, tmp_path):
    """Loss within 1e-5 of float64 at every step, over the warm-up, the peak and 15 steps of the decay (seen: 1e-6)."""
    run, _, reference = variant
    steps = 50
    loop.train(run.model_copy(update={"max_steps": steps}), dataset, tmp_path)
    records = read_journal(tmp_path / "metrics.jsonl")
    optimizer = AdamW(reference.w)
    assert len(records) == steps
    clipped = 0
    for record in records:
        step = record["step"]
        assert record["loss"] == pytest.approx(reference.batch(rows_of(dataset, step)), abs=1e-5), step
        assert record["lr"] == pytest.approx(rate(step)), step
        norm = optimizer.step(rate(step))
        assert record["grad_norm"] == pytest.approx(norm, rel=1e-4), step
        clipped += norm > CLIP
    assert 0 < clipped < steps, "clipping is part of what is compared"
    assert records[-1]["loss"] < records[0]["loss"] - 1


def test_gradients_are_those_of_the_reference(dataset, variant):
    """Step 1, each parameter: the distance is below 1e-5 of its norm."""
    run, model, reference = variant
    whole = reference.batch(rows_of(dataset, 1))
    batch = batch_of_step(dataset, 1)
    given = [torch.from_numpy(a) for a in (batch.tokens_BT, batch.labels_BT, batch.position_BT)]
    nll_BT, lse_BT = model.token_losses(*given)
    ((nll_BT.sum() + run.loss.z_loss * lse_BT.square().sum()) / batch.valid_tokens).backward()
    assert nll_BT.sum().item() / batch.valid_tokens == pytest.approx(whole, abs=1e-5)
    assert {n for n, p in model.named_parameters() if p.grad is not None} == set(reference.w)
    for name, parameter in model.named_parameters():
        want = reference.w[name].grad
        assert float((parameter.grad.double() - want).norm() / want.norm()) < 1e-5, name


def test_packed_losses_are_those_of_each_document_alone(dataset, variant):
    """Per piece, in both phases: packed in a row, alone in the model, alone in the reference."""
    _, model, reference = variant
    seen = 0
    for step in (3, MAIN + 2):
        batch = batch_of_step(dataset, step)
        given = [torch.from_numpy(a) for a in (batch.tokens_BT, batch.labels_BT, batch.position_BT)]
        with torch.no_grad():
            packed_BT = model.token_losses(*given)[0]
        for row, (tokens, starts) in enumerate(rows_of(dataset, step)):
            at = 0
            for ids, labels in pieces(tokens, starts):
                part = packed_BT[row, at : at + len(ids)].double()
                with torch.no_grad():
                    position = torch.arange(len(ids))[None]
                    alone = model.token_losses(ids[None], labels[None], position)[0][0].double()
                    theirs = reference.document(ids, labels)[0].item()
                assert float((part - alone).abs().max()) < 1e-5
                assert part.sum().item() == pytest.approx(theirs, abs=1e-4)
                at += len(ids)
                seen += 1
    assert seen > 15
