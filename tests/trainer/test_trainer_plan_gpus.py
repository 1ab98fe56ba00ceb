"""`train plan` on GPUs: the packaged full-size runs, which layouts are valid, which one is chosen, and the days."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from gristmill.core.tokshards import PackedManifest, PackedPhase
from gristmill.pipelines.cli.main import cli
from gristmill.trainer.capacity import CHECKPOINTING, Load, cannot_split, choose, invalid
from gristmill.trainer.hardware import PEAKS, device_key, peak_flops
from gristmill.trainer.memory import Layout
from gristmill.trainer.plan import add_gpus, plan_run
from gristmill.trainer.plan_text import render
from gristmill.trainer.schema import Model, TrainRun

BYTES = {"parameters", "gradients", "optimizer", "activations", "logits", "overhead", "total"}


def planned(*arguments: str) -> dict[str, Any]:
    """The JSON of `gristmill train plan`, without a root."""
    done = CliRunner().invoke(cli, ["train", "plan", *arguments, "--json"], env={"GRISTMILL_ROOT": None})
    assert done.exception is None, done.exception
    return orjson.loads(done.stdout)  # type: ignore[no-any-return]


def said(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["train", "plan", *arguments], env={"GRISTMILL_ROOT": None})
    return str(done.exception) if done.exception else done.stdout


def a_run(**changes: Any) -> TrainRun:
    base = {"gristmill_train": 1, "mixture": "x", "model": {"preset": "smollm3-3b"}, "optimizer": {"lr": 2e-4}}
    return TrainRun.model_validate({**base, "precision": "bf16", "device": "cuda", "micro_batch_rows": 3, **changes})


def one_stage(seq_len: int, batch_rows: int) -> PackedManifest:
    phase = PackedPhase("main", seq_len, batch_rows * 10, batch_rows, 64, {"phase": "stable"}, {})
    return PackedManifest("<u4", 128_256, {}, "", 0, "", [phase], [])


def test_smollm3_3b_on_384_gpus_is_planned_as_it_was_trained():
    plan = planned("smollm3-3b", "--gpus", "384", "--gpu-memory", "80GB")
    assert plan["parameters"] == 3_075_098_624
    assert plan["steps"] == 4_720_000
    assert plan["tokens"] == 4_720_000 * 2_359_296
    assert [s["last_step"] for s in plan["stages"]] == [3_450_000, 4_198_000, 4_720_000]
    assert (
        plan["stages"][1]["lr_last"] == 2e-4 > plan["stages"][2]["lr_last"]
    )  # the decay starts on the last stage's edge
    assert all(source["epochs"] is None for s in plan["stages"] for source in s["sources"].values())
    assert {(r["tp"], r["zero"], r["checkpointing"]) for r in plan["layouts"]} == {
        (tp, zero, how) for tp in (1, 2, 4, 8) for zero in range(4) for how in CHECKPOINTING
    }
    for row in plan["layouts"]:
        assert set(row["bytes"]) == BYTES
        assert row["bytes"]["total"] == sum(v for k, v in row["bytes"].items() if k != "total")
        assert row["fits"] == (row["bytes"]["total"] <= 80e9)
        assert row["tp"] * row["dp"] == 384
        assert (row["reason"] is None) == (row["tp"] > 1)  # 576 rows are 1.5 for each of 384 ranks
    chosen = plan["chosen"]
    assert chosen in plan["layouts"]
    assert (chosen["tp"], chosen["dp"], chosen["micro_batches"]) == (2, 192, 1)
    assert plan["days"] == pytest.approx(plan["flops"] / (384 * 989.4e12 * 0.4) / 86400)
    assert 15 < plan["days"] < 24  # 24 days at about 30 % were reported


def test_8b_on_32_gpus():
    plan = planned("llama-3-8b", "--gpus", "32", "--gpu-memory", "80GB")
    assert plan["parameters"] == 8_030_261_248
    chosen = plan["chosen"]
    assert (chosen["tp"], chosen["reason"], chosen["fits"]) == (1, None, True)
    cheaper = [r for r in plan["layouts"] if r["tp"] == 1 and r["checkpointing"] == "none"]
    assert not any(r["fits"] for r in cheaper)  # or it would have been chosen
    smaller = planned("llama-3-8b", "--gpus", "32", "--gpu-memory", "40GB")["chosen"]
    assert smaller["bytes"]["total"] <= 40e9
    assert (smaller["tp"], CHECKPOINTING.index(smaller["checkpointing"])) > (1, CHECKPOINTING.index("selective"))
    text = said("llama-3-8b", "--gpus", "32")
    assert "parallel.tp=1" in text
    assert "37.4 tokens a parameter (Chinchilla: 20)" in text
    assert "days on 32 GPUs at 40% of 989.4 TFLOP/s (h100, bf16)" in text


def test_apertus_8b_has_its_published_steps():
    plan = planned("apertus-8b", "--gpus", "1024", "--gpu", "gh200", "--gpu-memory", "96GB")
    assert [s["steps"] for s in plan["stages"]] == [1_678_000, 591_525, 160_395, 197_220]
    assert plan["stages"][3]["lr_last"] == pytest.approx(1.1e-5, rel=1e-2)
    assert plan["chosen"]["tp"] == 2


def test_a_long_context_stage_that_fits_nowhere_says_what_is_out_of_scope():
    for gpus, memory, word in (
        ("384", "80GB", "no layout of 384 GPUs is valid for every stage"),
        ("48", "24GB", "long-64k"),
    ):
        plan = planned("smollm3-3b-long", "--gpus", gpus, "--gpu-memory", memory)
        assert plan["chosen"] is None
        text = "\n".join(plan["notes"])
        assert word in text
        for kind in ("pipeline", "context", "expert", "FP8"):
            assert kind in text
    assert "chosen         none" in said("smollm3-3b-long", "--gpus", "48", "--gpu-memory", "24GB")
    fits = planned("smollm3-3b-long", "--gpus", "48")
    assert fits["chosen"]["checkpointing"] == "full"
    assert [s["rope_theta"] for s in fits["stages"]] == [2e6, 5e6]
    assert [s["steps"] for s in fits["stages"]] == [20_000, 22_000]


def test_settings_of_the_mixture_and_the_run_reach_the_plan():
    plan = planned("llama-3-8b", "--set", "mixture.stages.0.tokens=1T", "--set", "optimizer.lr=1e-4")
    assert plan["steps"] == 10**12 // 8192 // 512
    assert max(rate for _, rate in plan["schedule"]) == pytest.approx(1e-4, rel=1e-3)
    assert "own layout" not in said("smollm3-3b", "--gpus", "384")
    assert "own layout (tp 1, zero 1, none) will not do" in said(
        "smollm3-3b", "--gpus", "384", "--set", "parallel.tp=1"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo"], "sized in epochs"),
        (["llama-3-8b", "--gpus", "8", "--gpu-memory", "80"], "no amount of memory"),
        (["llama-3-8b", "--gpus", "8", "--gpu", "abacus"], "no peak is known"),
        (["llama-3-8b", "--gpus", "8", "--mfu", "140%"], "no utilisation"),
    ],
)
def test_what_cannot_be_planned_is_refused(arguments, message):
    assert message in said(*arguments)


def test_a_batch_must_divide_by_ranks_and_micro_batches():
    run, work = a_run(), [Load("main", 4096, (576,)), Load("late", 4096, (576, 600))]
    assert invalid(run, Layout(2, 192), 384, work[:1]) is None
    assert "600 rows" in str(invalid(run, Layout(2, 192), 384, work))
    assert "no multiple of tp 8" in str(invalid(run, Layout(8, 1), 12, work[:1]))


def test_shapes_that_cannot_be_cut():
    c = Model.model_validate({"layers": 1, "hidden": 48, "heads": 12, "kv_heads": 3, "head_dim": 4, "ffn": 20})
    assert [cannot_split(c, tp) for tp in (1, 3)] == [None, "ffn 20 does not divide over tp 3"]
    assert "heads 12" in str(cannot_split(c, 8))
    assert "neither divide" in str(cannot_split(c, 2))
    wide = Model.model_validate({"layers": 1, "hidden": 64, "heads": 8, "kv_heads": 4, "head_dim": 8, "ffn": 64})
    assert cannot_split(wide, 8) is None  # key/value heads are replicated twice


def test_the_choice_is_the_cheapest_layout_that_fits():
    def row(tp: int, zero: int, how: str, traffic: int, fits: bool = True, reason: str | None = None) -> dict[str, Any]:
        return {"tp": tp, "zero": zero, "checkpointing": how, "traffic": traffic, "fits": fits, "reason": reason}

    rows = [
        row(1, 0, "none", 1, fits=False),
        row(1, 1, "none", 1, reason="no"),
        row(1, 3, "full", 9),
        row(1, 3, "selective", 9),
        row(1, 2, "selective", 5),
        row(2, 1, "none", 1),
    ]
    assert choose(rows) == rows[4]
    assert choose(rows[:2]) is None


def test_less_memory_never_chooses_less_checkpointing_or_tp():
    run, data = a_run(model={"preset": "llama-3-8b"}, micro_batch_rows=1), one_stage(8192, 512)
    plan, seen = plan_run(run, data), []
    for memory in (200e9, 100e9, 60e9, 40e9, 25e9):
        chosen = add_gpus(plan, run, data, gpus=32, gpu_memory=memory)["chosen"]
        assert chosen["bytes"]["total"] <= memory
        seen.append((chosen["tp"], CHECKPOINTING.index(chosen["checkpointing"])))
    assert seen == sorted(seen)
    assert len(set(seen)) > 2


def test_a_run_without_a_peak_has_no_days():
    run = a_run(precision="fp32")
    plan = plan_run(run, one_stage(4096, 576))
    kept = {"gpus": 8, "gpu_memory": 80e9}
    assert add_gpus(plan, run, one_stage(4096, 576), gpu="unknown", **kept)["days"] is None
    slow, fast = (add_gpus(plan, run, one_stage(4096, 576), peak=p, **kept)["days"] for p in (1e12, 2e12))
    assert slow == pytest.approx(2 * fast)
    own = run.model_copy(update={"peak_tflops": 2.0})
    assert add_gpus(plan, own, one_stage(4096, 576), **kept)["days"] == fast
    assert "days" not in render(add_gpus(plan, run, one_stage(4096, 576), gpu="unknown", **kept))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L40", None),
        ("cpu", None),
    ],
)
def test_drivers_names_find_their_peaks(name, key):
    assert device_key(name) == key
    assert peak_flops(name, "bf16") == (PEAKS[key]["bf16"] if key else None)
    assert peak_flops(name, "fp8") is None
