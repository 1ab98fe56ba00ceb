"""The plan of a run says what the loop will do: the same steps, tokens, learning rates and parameters, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gristmill.core.settings import load
from gristmill.core.tokshards import PackedManifest, PackedPhase
from gristmill.trainer.order import tokens_after, total_steps
from gristmill.trainer.plan import plan_run, render
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
    assert plan["steps"] == total_steps(found) == 120
    assert plan["tokens"] == tokens_after(found, 120)
    assert [(p["first_step"], p["last_step"]) for p in plan["phases"]] == [(1, 100), (101, 120)]
    rate = LearningRate(run.optimizer.lr, run.schedule, found)
    assert all(rate.lr(step) == value for step, value in plan["schedule"])
    assert plan["schedule"][0][0] == 1
    assert plan["schedule"][-1][0] == 120
    assert plan["parameters"] == run.model.params(512)
    assert plan["bytes"]["total"] == sum(v for k, v in plan["bytes"].items() if k != "total")
    assert plan["bytes"]["parameters"] == 4 * plan["parameters"]
    assert plan["flops"] == run.model.flops_per_token(512, 16) * plan["tokens"]
    text = render(plan)
    assert "cool" in text
    assert f"{plan['parameters']:,} parameters" in text


def test_planning_needs_no_torch() -> None:
    code = "import sys; import gristmill.trainer.plan; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
