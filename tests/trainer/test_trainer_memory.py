"""Bytes of a GPU: the published teaching figures, and what the trainer's own models, optimizers and shards hold."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from trainer_variants import VARIANTS, settings  # noqa: E402

from gristmill.trainer.architecture import Model, read_preset  # noqa: E402
from gristmill.trainer.memory import (  # noqa: E402
    ADAM_BYTES,
    Layout,
    kept_activations,
    layout_bytes,
    optimizer_states,
    pieces,
    simple_activation_bytes,
    traffic,
    training_steps,
    zero_bytes,
)
from gristmill.trainer.model import Decoder  # noqa: E402
from gristmill.trainer.optim_groups import choose  # noqa: E402
from gristmill.trainer.optim_schema import Optimizer  # noqa: E402
from gristmill.trainer.parallel.shard import COLUMN, ROW  # noqa: E402
from gristmill.trainer.schema import TrainRun  # noqa: E402


def run_of(model: dict[str, Any] | None = None, **changes: Any) -> TrainRun:
    base = {"gristmill_train": 1, "mixture": "x", "model": model or {"preset": "llama-3-8b"}, "optimizer": {"lr": 1e-3}}
    return TrainRun.model_validate({**base, "precision": "bf16", "device": "cuda", "micro_batch_rows": 1, **changes})


# ZeRO (arXiv 1910.02054), table 1: GB of model states per GPU for stages 1, 2 and 3
ZERO_TABLE = [
    (7.5e9, 1, ("120", "120", "120")),
    (7.5e9, 4, ("52.5", "41.3", "30")),
    (7.5e9, 16, ("35.6", "21.6", "7.5")),
    (7.5e9, 64, ("31.4", "16.6", "1.88")),
    (7.5e9, 1024, ("30.1", "15.1", "0.12")),
    (128e9, 64, ("536", "284", "32")),
    (1e12, 1024, ("4011", "2013", "15.6")),
]


def unit(printed: str) -> float:
    """One unit of the last printed digit."""
    return 10.0 ** -len(printed.partition(".")[2])


@pytest.mark.parametrize(("params", "ranks", "printed"), ZERO_TABLE)
def test_the_zero_table(params, ranks, printed):
    for stage, figure in enumerate(printed, 1):
        assert abs(zero_bytes(params, ranks, stage) / 1e9 - float(figure)) <= unit(figure)


def test_teaching_figures():
    assert ADAM_BYTES == 16
    assert zero_bytes(8e9, 1, 0) / 1e9 == zero_bytes(8e9, 1, 3) / 1e9 == 128
    assert zero_bytes(7.5e9, 64, 0) / 1e9 == 120
    assert abs(simple_activation_bytes(48, 8, 2048, 4096) / 1e9 - 19) <= 1
    assert abs(training_steps(300e9, 131_072) / 1e6 - 2.29) <= 0.01
    with pytest.raises(ValueError, match="stages 0 to 3"):
        zero_bytes(1.0, 1, 4)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_pieces_are_the_parameters_of_a_rank(name, tp):
    c = settings(name)
    with torch.device("meta"):
        model = Decoder(c, 97 if tp == 1 else 64 * tp, 64)
    want = {}
    for parameter_name, parameter in model.named_parameters():
        whole = tp > c.kv_heads and parameter_name.endswith(("attention.k.weight", "attention.v.weight"))
        cut = parameter_name.endswith((*COLUMN, *ROW)) and not whole
        want[parameter_name] = parameter.numel() // (tp if cut else 1)
    got = pieces(c, 97 if tp == 1 else 64 * tp, tp)
    assert {p.name: p.elements for p in got} == want
    assert {p.name for p in got if p.matrix} == {n for n, p in model.named_parameters() if p.dim() == 2}
    if tp == 1:
        assert sum(p.elements for p in got) == c.params(97)


@pytest.mark.parametrize(
    "optimizer",
    [
        {"lr": 1e-3},
        {"lr": 1e-3, "name": "muon"},
        {"lr": 1e-3, "name": "ademamix"},
        {"lr": 1e-3, "name": "muon", "groups": [{"match": "*.q.weight", "optimizer": "adamw"}]},
        {"lr": 1e-3, "groups": [{"match": "re:.*ffn.up.weight", "optimizer": "muon"}]},
    ],
)
def test_optimizer_state_follows_the_optimizers_choice(optimizer):
    c, chosen = settings("all"), Optimizer.model_validate(optimizer)
    with torch.device("meta"):
        model = Decoder(c, 64, 64)
    states = {"adamw": 2, "muon": 1, "ademamix": 3}
    taken = choose(model, chosen)
    want = sum(states[taken[name].algorithm] * p.numel() for name, p in model.named_parameters())
    assert optimizer_states(chosen, pieces(c, 64)) == want


def test_one_process_holds_sixteen_bytes_a_parameter_in_fp32():
    run = run_of(settings("untied").model_dump(), precision="fp32", device="cpu")
    size = layout_bytes(run, 64, Layout(), 32)
    count = run.model.params(64)
    assert (size.parameters, size.gradients, size.optimizer) == (4 * count, 4 * count, 8 * count)
    assert size.activations == run.model.activation_bytes(1, 32, width=4)
    assert size.overhead == 0
    assert size.total == sum(v for k, v in size.as_dict().items() if k != "total")
    averaged = layout_bytes(
        run.model_copy(update={"average": run.average.model_copy(update={"kind": "ema"})}), 64, Layout(), 32
    )
    assert averaged.optimizer == 12 * count


def test_what_each_stage_of_zero_shards():
    """8B on 8 ranks, bf16: fp32 weights 4P, gathered 2P, gradients 4P, moments 8P, by the stage."""
    run, count = run_of(), read_preset("llama-3-8b").parameters
    assert count is not None
    size = {zero: layout_bytes(run, 128_256, Layout(1, 8, zero), 4096, micro_batches=4) for zero in range(4)}
    whole = {zero: s.gradients / count for zero, s in size.items()}
    assert size[0].parameters == 6 * count
    assert size[1].parameters == size[2].parameters == pytest.approx(2.5 * count, rel=1e-6)
    assert 0.5 * count < size[3].parameters < 1.0 * count  # the root and two blocks stay gathered
    assert size[0].optimizer == 8 * size[1].optimizer == 8 * count
    assert size[1].optimizer == size[2].optimizer == size[3].optimizer
    assert whole[0] == whole[1] > 4  # whole gradients, summed once a step
    assert 0.5 < whole[2] == whole[3] < 0.9
    once = layout_bytes(run, 128_256, Layout(1, 8, 1), 4096, micro_batches=1)
    assert once.gradients == size[2].gradients  # with one micro batch nothing has to wait
    totals = [size[zero].total for zero in range(4)]
    assert totals == sorted(totals, reverse=True)


def test_zero_on_one_rank_changes_no_state():
    run = run_of()
    sizes = {layout_bytes(run, 128_256, Layout(8, 1, zero), 4096).optimizer for zero in range(4)}
    assert len(sizes) == 1
    assert all(traffic(run, 128_256, Layout(8, 1, zero), 4) == 0 for zero in range(4))


def test_traffic_grows_with_zero_and_micro_batches():
    run, count = run_of(), read_preset("llama-3-8b").parameters
    moved = [traffic(run, 128_256, Layout(1, 4, zero), 8) for zero in range(4)]
    assert moved == [each * count * 3 // 4 for each in (8, 6, 34, 64)]


def test_reducing_in_bf16_halves_what_waits_and_what_moves():
    run = run_of()
    half = run.model_copy(update={"parallel": run.parallel.model_copy(update={"reduce": "bf16"})})
    one = Layout(1, 8, 1)
    wide, narrow = (layout_bytes(r, 128_256, one, 4096, 4) for r in (run, half))
    count = read_preset("llama-3-8b").parameters
    assert count is not None
    assert wide.gradients - narrow.gradients == 2 * count
    assert traffic(half, 128_256, Layout(1, 4, 1), 8) == 4 * count * 3 // 4
    assert (
        layout_bytes(half, 128_256, Layout(1, 8, 2), 4096, 4).gradients
        == layout_bytes(run, 128_256, Layout(1, 8, 2), 4096, 4).gradients
    )


def test_activations_of_checkpointing_tensor_parallelism_and_the_mask():
    run = run_of()
    tokens, c = 4096, run.model
    none, selective, full = (
        kept_activations(run, Layout(1, 8, 0, how), tokens) for how in ("none", "selective", "full")
    )
    assert none > selective > full
    mask = tokens**2
    fp32_norms = 2 * 2 * c.hidden * tokens  # two bytes more for each of two inputs
    assert none == c.activation_bytes(1, tokens) + c.layers * (2 * mask + fp32_norms) + mask
    assert full == c.activation_bytes(1, tokens, "full") + 2 * mask + fp32_norms + mask
    split = kept_activations(run, Layout(4, 2), tokens)
    assert none / 4 < split < none
    whole_stream = run.model_copy(update={"parallel": run.parallel.model_copy(update={"sequence": False})})
    assert kept_activations(whole_stream, Layout(4, 2), tokens) > split
    assert kept_activations(whole_stream, Layout(1, 8), tokens) == none


def test_a_wider_model_with_more_tensor_parallelism_needs_less():
    run = run_of()
    totals = [layout_bytes(run, 128_256, Layout(tp, 8 // tp, 1, "full"), 8192, 4).total for tp in (1, 2, 4, 8)]
    assert totals == sorted(totals, reverse=True)


SHARDS = """
import torch, torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.distributed.device_mesh import init_device_mesh
from gristmill.trainer.memory import pieces
from gristmill.trainer.parallel.mesh import World
from gristmill.trainer.parallel.shard import build
from gristmill.trainer.schema import Model, Parallel

dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
c = Model(layers=2, hidden=64, heads=8, kv_heads=2, head_dim=8, ffn=128, tie_embeddings=False, qk_norm=True)
for tp in (1, 2, 4):
    for zero in (0, 2):
        dp = 8 // tp
        mesh = init_device_mesh("cpu", (dp, 1, tp) if zero == 0 else (1, dp, tp), mesh_dim_names=("replicate", "shard", "tp"))
        model = build(c, 512, 32, World(torch.device("cpu"), 0, 8, tp, mesh), Parallel(tp=tp, zero=zero))
        held = {n: p.to_local().numel() for n, p in model.named_parameters()}
        shards = dp if zero else 1
        assert held == {p.name: p.elements // shards for p in pieces(c, 512, tp)}, (tp, zero)
print("equal")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_shards_hold_what_the_plan_says():
    """Eight ranks of a fake process group: the local parts of every parameter, by tp and zero."""
    done = subprocess.run([sys.executable, "-c", SHARDS], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


def test_a_models_shape_may_not_divide():
    c = Model.model_validate({"layers": 1, "hidden": 8, "heads": 3, "kv_heads": 3, "head_dim": 4, "ffn": 10})
    assert sum(p.elements for p in pieces(c, 64, 1)) == c.params(64)
