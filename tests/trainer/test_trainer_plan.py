"""The plan of a run says what the loop will do: the same steps, tokens, learning rates and parameters, without torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gristmill.core.errors import UsageError
from gristmill.core.mixlock import LockedPhase, LockedUse, MixLock
from gristmill.core.settings import load
from gristmill.core.tokshards import PackedManifest, PackedPhase
from gristmill.trainer.order import DataOrder
from gristmill.trainer.plan import add_gpus, plan_run
from gristmill.trainer.plan_text import render, short
from gristmill.trainer.schedule import LearningRate
from gristmill.trainer.schema import TrainRun

RECIPES = Path(__file__).resolve().parents[2] / "trainer" / "recipes"


def manifest(*phases: tuple[str, int, str]) -> PackedManifest:
    rows = [PackedPhase(n, 16, r, 4, 64, {"phase": kind}, {"a": {"target": 1, "realised": 1}}) for n, r, kind in phases]
    return PackedManifest("<u2", 512, {"eos": 1, "pad": 2}, "0", 0, "0", rows, [])


@pytest.mark.parametrize("recipe", ["demo", "web"])
def test_a_plan_is_what_the_schedule_and_the_order_say(recipe: str) -> None:
    run, _ = load(RECIPES / f"{recipe}.yaml", TrainRun)
    found = manifest(("warm", 403, "stable"), ("cool", 80, "decay"))
    plan = plan_run(run, found)
    assert plan["steps"] == DataOrder(found).steps == 120
    assert plan["tokens"] == DataOrder(found).tokens_after(120)
    assert [(p["first_step"], p["last_step"], p["steps"]) for p in plan["stages"]] == [(1, 100, 100), (101, 120, 20)]
    rate = LearningRate(run.optimizer.lr, run.schedule, found)
    assert all(rate.lr(step) == value for step, value in plan["schedule"])
    assert plan["schedule"][0][0] == 1
    assert plan["schedule"][-1][0] == 120
    assert plan["parameters"] == run.model.params(512)
    assert plan["bytes"]["total"] == sum(v for k, v in plan["bytes"].items() if k != "total")
    width = 6 if run.precision == "bf16" else 4  # autograd keeps the bf16 casts of the weights
    assert plan["bytes"]["parameters"] == width * plan["parameters"]
    assert plan["flops"] == run.model.flops_per_token(512, 16) * plan["tokens"]
    assert plan["tokens_per_parameter"] == plan["tokens"] / plan["parameters"]
    assert (plan["layouts"], plan["chosen"]) == ([], None)
    text = render(plan)
    assert "cool" in text
    assert f"{plan['parameters']:,} parameters" in text


def test_a_run_that_stops_early_is_planned_as_far_as_it_trains() -> None:
    found = manifest(("warm", 400, "stable"), ("cool", 80, "decay"))
    long = replace(found, phases=[found.phases[0], replace(found.phases[1], seq_len=64)])
    whole, _ = load(RECIPES / "demo.yaml", TrainRun)
    cost = whole.model.flops_per_token
    for steps, flops in ((7, cost(512, 16) * 7 * 64), (103, cost(512, 16) * 6400 + cost(512, 64) * 3 * 256)):
        run = whole.model_copy(update={"max_steps": steps})
        plan, full = plan_run(run, long), plan_run(whole, long)
        assert (plan["steps"], plan["schedule_steps"], full["steps"]) == (steps, 120, 120)
        assert plan["tokens"] == DataOrder(long).tokens_after(steps)
        assert plan["flops"] == flops
        assert plan["tokens_per_parameter"] == plan["tokens"] / plan["parameters"]
        assert (plan["schedule"], plan["stages"]) == (full["schedule"], full["stages"])
        assert f"{steps} steps of 120 (max_steps), {plan['tokens']:,} tokens" in render(plan)
        assert "120 steps, " in render(full)
        days = [add_gpus(p, r, long, gpus=1, gpu_memory=80e9)["days"] for p, r in ((plan, run), (full, whole))]
        assert days[0] / days[1] == pytest.approx(plan["flops"] / full["flops"])
    assert plan_run(whole.model_copy(update={"max_steps": 999}), long)["tokens"] == DataOrder(long).tokens


def test_epochs_come_from_the_lock_and_are_unknown_without_it() -> None:
    run, _ = load(RECIPES / "demo.yaml", TrainRun)
    found = manifest(("warm", 400, "stable"), ("cool", 80, "decay"))
    without = plan_run(run, found)
    assert [s["sources"]["a"] for s in without["stages"]] == [{"share": 1, "epochs": None, "epochs_so_far": None}] * 2
    phases = [
        LockedPhase(
            name=name,
            seq_len=16,
            rows=rows,
            batch_rows=4,
            shares=found.phases[0].shares,
            sources={"a": LockedUse(epochs=epochs)},
        )
        for name, rows, epochs in (("warm", 400, 1.5), ("cool", 80, 1.75))
    ]
    plan = plan_run(run, found, MixLock(phases=phases))
    assert [s["sources"]["a"]["epochs"] for s in plan["stages"]] == [1.5, 0.25]
    assert [s["sources"]["a"]["epochs_so_far"] for s in plan["stages"]] == [1.5, 1.75]
    assert "a 100.0% (0.25)" in render(plan)


def test_the_batch_ramp_is_part_of_the_plan() -> None:
    run, _ = load(RECIPES / "demo.yaml", TrainRun, overrides=["data.batch_ramp=[{rows: 2, until_samples: 40}]"])
    found = manifest(("warm", 400, "stable"), ("cool", 80, "decay"))
    plan = plan_run(run, found)
    assert plan["stages"][0]["batch_ramp"] == [2, 4]
    assert plan["stages"][0]["steps"] == 20 + 90
    assert plan["tokens"] == 480 * 16
    assert "batch ramp: 2 → 4 rows" in render(plan)
    assert plan == plan_run(run, DataOrder(found, run.data.batch_ramp))
    assert plan_run(run.model_copy(update={"data": type(run.data)()}), found)["steps"] == 120
    planned = add_gpus(plan, run, found, gpus=4, gpu_memory=80e9)
    reasons = {(r["tp"], r["dp"]): r["reason"] for r in planned["layouts"]}
    assert "a batch of 2 rows does not divide by dp 4 x 4 rows" in reasons[1, 4]


def test_settings_of_stages_are_part_of_the_plan() -> None:
    found = manifest(("warm", 400, "stable"), ("cool", 80, "stable"))
    settings = "stages={cool: {lr: {phase: decay, to: 0.5}, rope_theta: 500000}}"
    run, _ = load(RECIPES / "demo.yaml", TrainRun, overrides=[settings])
    plan = plan_run(run, found)
    assert [s["rope_theta"] for s in plan["stages"]] == [10_000, 500_000]
    assert plan["stages"][1]["lr_last"] < 0.6 * plan["stages"][0]["lr_last"]
    assert "RoPE base: 500,000" in render(plan)
    wrong, _ = load(RECIPES / "demo.yaml", TrainRun, overrides=["stages={hot: {rope_theta: 500000}}"])
    with pytest.raises(UsageError, match="no such stage"):
        plan_run(wrong, found)


def test_a_decay_inside_a_stage_is_refused() -> None:
    run, _ = load(RECIPES / "demo.yaml", TrainRun, overrides=["schedule.decay_tokens=2000"])
    with pytest.raises(UsageError, match="inside a phase"):
        plan_run(run, manifest(("warm", 400, "stable"), ("more", 80, "stable")))


def test_planning_needs_no_torch() -> None:
    code = (
        "import sys; import gristmill.trainer.plan, gristmill.trainer.plan_text, gristmill.trainer.memory; "
        "import gristmill.pipelines.trainplan; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_counts_for_people() -> None:
    assert [short(n) for n in (812, 1.2e6, 299_997_593_600, 11.1358e12)] == ["812", "1.20M", "300.00B", "11.14T"]
