"""Groups by name, settings and their faults, and the state in checkpoints: exact resume for every optimizer."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from gristmill.core.errors import ConfigError, FormatError, UsageError
from gristmill.core.settings import load
from gristmill.trainer.optim_schema import Optimizer
from gristmill.trainer.schema import TrainRun

torch = pytest.importorskip("torch")

from gristmill.core.hashing import sha256_file  # noqa: E402
from gristmill.trainer import checkpoint, loop, optim  # noqa: E402
from gristmill.trainer.journal import read_journal  # noqa: E402
from gristmill.trainer.model import Decoder  # noqa: E402
from gristmill.trainer.optim_groups import choose  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model(run_maker):
    settings = run_maker().model.model_copy(update={"tie_embeddings": False})
    return Decoder(settings, 97, 16)


def groups(model, *given, **settings):
    return choose(model, Optimizer.model_validate({"lr": 1e-2, "groups": given, **settings}))


def test_defaults(model):
    chosen = groups(model, name="muon", muon={"lr": 2e-2})
    assert chosen["blocks.1.attention.q.weight"] == chosen["blocks.0.ffn.down.weight"]
    assert (chosen["blocks.1.attention.q.weight"].algorithm, chosen["head.weight"].algorithm) == ("muon", "adamw")
    assert (chosen["blocks.1.attention.q.weight"].lr_multiplier, chosen["head.weight"].lr_multiplier) == (2.0, 1.0)
    spared = {n for n, c in chosen.items() if not c.weight_decay}
    assert spared == {n for n in chosen if "norm" in n or n.startswith("embed")}
    assert {c.algorithm for n, c in chosen.items() if n in spared} == {"adamw"}
    assert {c.algorithm for c in groups(model, name="ademamix").values()} == {"ademamix"}


def test_the_first_group_that_matches_decides_alone(model):
    chosen = groups(
        model,
        {"match": "blocks.0.*.q.weight", "lr_multiplier": 0.5},
        {"match": r"re:blocks\.\d+\.attention\.[qk]\.weight", "weight_decay": 0.3, "optimizer": "muon"},
        {"match": "embed*", "weight_decay": 0.01},
    )
    first, second, third = (
        chosen[n] for n in ("blocks.0.attention.q.weight", "blocks.1.attention.q.weight", "blocks.1.attention.v.weight")
    )
    assert (first.algorithm, first.lr_multiplier, first.weight_decay) == ("adamw", 0.5, 0.1)
    assert (second.algorithm, second.lr_multiplier, second.weight_decay) == ("muon", 1.0, 0.3)
    assert (third.algorithm, third.lr_multiplier, third.weight_decay) == ("adamw", 1.0, 0.1)
    assert chosen["embed.weight"].weight_decay == 0.01


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{"match": "block.*", "lr_multiplier": 2}], r"groups\[0\].match: 'block.\*' matches no parameter"),
        ([{"match": "re:blocks", "lr_multiplier": 2}], "matches no parameter"),  # the whole name, not a part
        (
            [{"match": "*norm*", "lr_multiplier": 2}, {"match": "norm.weight", "lr_multiplier": 3}],
            r"groups\[1\].match: 'norm.weight' matches only parameters that earlier groups take",
        ),
        ([{"match": "norm.weight", "optimizer": "muon"}], r"gives muon norm.weight, whose shape is \(32,\)"),
    ],
)
def test_groups_that_fit_no_model_are_refused(model, given, message):
    with pytest.raises(UsageError, match=message) as caught:
        groups(model, *given)
    assert caught.value.hint


def test_a_multiplier_of_0_freezes(model):
    optimizer = optim.build(
        model, Optimizer.model_validate({"lr": 1.0, "groups": [{"match": "head*", "lr_multiplier": 0}]})
    )
    optimizer.at(1.0, optim.Mixing(0.0, 0.0))
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.0, 0.1), (1.0, 0.1), (1.0, 0.0)]


YAML = """gristmill_train: 1
mixture: toy
model: {{layers: 1, hidden: 8, heads: 2, kv_heads: 2, head_dim: 4, ffn: 8}}
optimizer:
  lr: 1e-3
  {optimizer}
schedule:
  {schedule}
"""


@pytest.mark.parametrize(
    ("optimizer", "schedule", "place", "message"),
    [
        ("groups: [{match: 're:(', lr_multiplier: 2}]", "kind: wsd", "6:20", "is no regular expression"),
        ("groups: [{match: head*}]", "kind: wsd", "6:12", "the group changes nothing"),
        ("muon: {momentum: 0.9}", "kind: wsd", "6:9", "settings for muon, but no parameter is trained with it"),
        ("name: moun", "kind: wsd", "6:9", "'adamw', 'muon' or 'ademamix'"),
        ("eps: .inf", "kind: wsd", "6:8", "valid number"),
        ("weight_decay: inf", "kind: wsd", "6:17", "finite"),
        ("betas: [0.9, 1.0]", "kind: wsd", "6:10", "less than 1"),
        ("eps: 1e-9", "decay_tokens: 5\n  kind: cosine", "8:17", "a cosine schedule has no decay_tokens"),
        ("eps: 1e-9", "kind: multi-step", "8:3", "needs milestones"),
        (
            "eps: 1e-9",
            "kind: multi-step\n  milestones: [{fraction: 0.9, ratio: 0.1}, {fraction: 0.8, ratio: 0.1}]",
            "9:15",
            "out of order",
        ),
        ("eps: 1e-9", "rewarm: [{phase: a, steps: 1, tokens: 5}]", "8:12", "needs one length"),
        ("eps: 1e-9", "milestone: []", "8:3", "unknown setting"),
    ],
)
def test_faults_are_told_with_their_place(tmp_path, optimizer, schedule, place, message):
    path = tmp_path / "run.yaml"
    path.write_text(YAML.format(optimizer=optimizer, schedule=schedule))
    with pytest.raises(ConfigError) as caught:
        load(path, TrainRun, name="run.yaml")
    text = str(caught.value)
    assert f"run.yaml:{place}: error" in text
    assert message in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "ademamix", "ademamix": {"beta3": 0.8}}, "not above beta1"),
        ({"name": "ademamix", "ademamix": {"warmup_steps": 3, "warmup_tokens": 5}}, "both warmup_steps"),
        ({"name": "ademamix", "betas": [0.0, 0.9]}, "must be above 0"),
        ({"name": "muon", "muon": {"momentum": 1.0}}, "momentum"),
        ({"lr": float("nan")}, "finite"),
    ],
)
def test_optimizers_that_cannot_work_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        Optimizer.model_validate({"lr": 1e-3, **change})


OPTIMIZERS = {
    "adamw": {"lr": 1e-2},
    "muon": {"name": "muon", "lr": 1e-2},
    "muon fp32": {"name": "muon", "lr": 1e-2, "muon": {"ns_precision": "fp32", "nesterov": False}},
    "ademamix": {"name": "ademamix", "lr": 5e-3, "ademamix": {"beta3": 0.99}},
    "all three": {
        "name": "muon",
        "lr": 1e-2,
        "groups": [{"match": "*attention.v.weight", "optimizer": "ademamix"}, {"match": "embed*", "weight_decay": 0.1}],
    },
}


class StopAt:
    def __init__(self, step: int) -> None:
        self.left = step

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_learns_and_resumes_bit_for_bit(kind, toy, run_maker, tmp_path):
    run = run_maker(optimizer=OPTIMIZERS[kind])
    assert TrainRun.model_validate(json.loads(run.model_dump_json())) == run
    assert loop.train(run, toy, tmp_path / "whole").finished
    loop.train(run, toy, tmp_path / "parts", stop=StopAt(7))
    assert loop.train(run, toy, tmp_path / "parts").finished
    whole, parts = ((tmp_path / n / "metrics.jsonl").read_bytes() for n in ("whole", "parts"))
    assert whole == parts
    records = read_journal(tmp_path / "whole" / "metrics.jsonl")
    assert records[-1]["loss"] < records[0]["loss"] - 1.0
    for a, b in zip(
        *(checkpoint.latest(tmp_path / n / "checkpoints").tensors() for n in ("whole", "parts")), strict=True
    ):
        assert set(a) == set(b)
        assert all(torch.equal(a[n], b[n]) for n in a)


def test_state_is_named_tensors(toy, run_maker, tmp_path):
    loop.train(run_maker(optimizer=OPTIMIZERS["all three"], max_steps=2), toy, tmp_path)
    moments = checkpoint.latest(tmp_path / "checkpoints").tensors()[1]
    kinds: dict[str, set[str]] = {}
    for name in moments:
        parameter, _, key = name.rpartition(".")
        kinds.setdefault(parameter, set()).add(key)
    assert kinds["blocks.0.attention.q.weight"] == {"momentum_buffer"}
    assert kinds["blocks.0.attention.v.weight"] == {"exp_avg", "exp_avg_slow", "exp_avg_sq", "step"}
    assert kinds["norm.weight"] == {"exp_avg", "exp_avg_sq", "step"}
    assert {float(t) for n, t in moments.items() if n.endswith(".step")} == {2.0}


@pytest.mark.parametrize(
    ("damage", "message"), [("missing", "no fitting"), ("shape", "no fitting"), ("more", "another optimizer")]
)
def test_state_that_does_not_fit_is_refused(damage, message, model):
    settings = Optimizer(name="muon", lr=1e-2)
    optimizer = optim.build(model, settings)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    tensors = optimizer.state_tensors()
    name = "blocks.0.ffn.up.weight.momentum_buffer"
    if damage == "missing":
        del tensors[name]
    elif damage == "shape":
        tensors[name] = tensors[name].T
    else:
        tensors["blocks.0.ffn.up.weight.exp_avg"] = tensors[name]
    with pytest.raises(FormatError, match=message):
        optim.build(model, settings).load_state(tensors)


def test_a_checkpoint_from_before_these_settings_resumes(toy, run_maker, tmp_path):
    loop.train(run_maker(max_steps=5), toy, tmp_path)
    folder = checkpoint.latest(tmp_path / "checkpoints").folder
    state = json.loads((folder / "state.json").read_text())
    for key in ("groups", "muon", "ademamix"):
        del state["run"]["optimizer"][key]
    for key in ("kind", "decay_tokens", "milestones", "rewarm"):
        del state["run"]["schedule"][key]
    (folder / "state.json").write_text(json.dumps(state))
    assert state["files"]["model.safetensors"]["sha256"] == sha256_file(folder / "model.safetensors")
    assert loop.train(run_maker(max_steps=6), toy, tmp_path).step == 6
    with pytest.raises(UsageError, match=r"optimizer\.name adamw -> muon"):
        loop.train(run_maker(max_steps=7, optimizer=OPTIMIZERS["muon"]), toy, tmp_path)
