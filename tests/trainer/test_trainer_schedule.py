"""Schedules in tokens: every kind beside its formula, phases of unequal batches, rewarms, the refusals, AdEMAMix's warm-ups."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from gristmill.core.errors import UsageError
from gristmill.core.tokshards import PackedManifest, PackedPhase
from gristmill.trainer.optim_schema import AdEMAMix, Schedule
from gristmill.trainer.order import DataOrder
from gristmill.trainer.schedule import Clock, LearningRate, SlowAverage, batch_hints, beta3_at, sqrt_rule

STABLE: dict[str, Any] = {"phase": "stable"}


def manifest(*phases: tuple[int, int, dict[str, Any]]) -> PackedManifest:
    """Phases a, b, ... of (steps, rows of 32 tokens a step, lr block); 3 rows are left over in each."""
    made = [
        PackedPhase(name, 32, steps * rows + min(3, rows - 1), rows, 100, lr, {})
        for name, (steps, rows, lr) in zip("abcdef", phases, strict=False)
    ]
    return PackedManifest("<u2", 97, {}, "", 0, "", made, [])


def schedule(**settings: Any) -> Schedule:
    return Schedule.model_validate(settings)


def rates(settings: Schedule, *phases: tuple[int, int, dict[str, Any]]) -> list[float]:
    m = manifest(*phases)
    rate = LearningRate(1.0, settings, m)
    return [rate.lr(step) for step in range(1, DataOrder(m).steps + 1)]


UNEQUAL = ((6, 2, STABLE), (4, 8, STABLE), (5, 4, STABLE))  # 64, 256 and 128 tokens a step: 384, 1024, 640


def test_the_clock_counts_like_the_data_order():
    m = manifest(*UNEQUAL)
    clock = Clock(m)
    after = [clock.after(step) for step in range(16)]
    assert after == [DataOrder(m).tokens_after(step) for step in range(16)]
    assert (clock.tokens, clock.steps) == (2048, 15)
    for tokens in range(clock.tokens + 1):
        assert clock.reaches(tokens) == next(s for s in range(16) if after[s] >= tokens)
    assert clock.reaches(9999) == 15


def begun(m: PackedManifest) -> list[int]:
    """Tokens trained before each step."""
    return [DataOrder(m).tokens_after(step - 1) for step in range(1, DataOrder(m).steps + 1)]


def test_a_whole_run_cosine_is_a_function_of_tokens():
    got = rates(schedule(kind="cosine", final_ratio=0.1, warmup_tokens=384), *UNEQUAL)
    for step, (rate, tokens) in enumerate(zip(got, begun(manifest(*UNEQUAL)), strict=True), 1):
        cosine = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (tokens - 384) / (2048 - 384)))
        assert rate == pytest.approx(step / 6 if step <= 6 else cosine)
    assert got[6] == 1.0  # the first step after the warm-up is at the peak
    assert got[-1] > 0.1


def test_the_same_tokens_in_other_batches_give_the_same_curve():
    """The rate where t tokens are trained does not depend on the batch."""
    for kind in ({"kind": "cosine"}, {"decay": "1-sqrt", "decay_tokens": 1024}):
        small = rates(schedule(**kind), (64, 1, STABLE))
        large = rates(schedule(**kind), (16, 4, STABLE))
        mixed = rates(
            schedule(kind=kind.get("kind", "wsd"), decay=kind.get("decay", "linear")),
            (8, 4, STABLE),
            (32, 1, {"phase": "decay"}),
        )
        assert small[::4] == pytest.approx(large)
        if "decay_tokens" in kind:
            assert mixed[8:] == pytest.approx(small[32:])


def test_one_decay_over_phases_of_unequal_batches_is_straight_in_tokens():
    decay = {"phase": "decay", "to": 0.0}
    got = rates(schedule(), UNEQUAL[0], (4, 8, decay), (5, 4, decay))
    tokens = begun(manifest(*UNEQUAL))
    assert got[:6] == [1.0] * 6
    assert got[6:] == pytest.approx([1 - (t - 384) / 1664 for t in tokens[6:]])


@pytest.mark.parametrize(("shape", "at_half"), [("linear", 0.5), ("cosine", 0.5), ("1-sqrt", 1 - math.sqrt(0.5))])
def test_decay_over_the_last_tokens(shape, at_half):
    got = rates(schedule(decay=shape, decay_tokens=500, final_ratio=0.2), (20, 2, STABLE))  # 64 a step: 8 steps
    assert got[:13] == [1.0] * 13
    assert got[16] == pytest.approx(0.2 + 0.8 * at_half)
    assert all(a > b for a, b in itertools.pairwise(got[12:]))
    whole = rates(schedule(decay=shape, decay_tokens=1280, warmup_steps=4), (20, 2, STABLE))
    assert whole[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert whole[12] == pytest.approx(at_half)


def test_a_decay_starts_on_a_phase_edge():
    assert rates(schedule(decay_tokens=640), *UNEQUAL)[10:12] == pytest.approx([1.0, 0.8])
    assert rates(schedule(decay_tokens=513), *UNEQUAL)[10:12] == pytest.approx([1.0, 0.8])  # whole steps: 640
    with pytest.raises(UsageError, match="starts at step 12, inside a phase") as caught:
        rates(schedule(decay_tokens=512), *UNEQUAL)
    assert "2,048, 1,664, 640" in str(caught.value)


def test_multi_step_drops_at_tokens():
    drops = [{"fraction": 0.5, "ratio": 0.316}, {"tokens": 1500, "ratio": 0.1}]
    got = rates(schedule(kind="multi-step", milestones=drops, warmup_steps=2), *UNEQUAL)
    for step, (rate, tokens) in enumerate(zip(got, begun(manifest(*UNEQUAL)), strict=True), 1):
        assert rate == (0.5 if step == 1 else 1.0 if tokens < 1024 else 0.316 if tokens < 1500 else 0.1)
    assert {0.5, 1.0, 0.316, 0.1} == set(got)


def test_a_warm_up_goes_on_over_stable_phases():
    """600 tokens: 6 steps of 64 and one of 256, as a batch-size ramp by phases has it."""
    got = rates(schedule(warmup_tokens=600), *UNEQUAL)
    assert got[:8] == pytest.approx([*(64 * i / 640 for i in range(1, 7)), 1.0, 1.0])
    assert rates(schedule(warmup_steps=7), *UNEQUAL) == got


def test_a_warm_up_cut_by_a_decay_is_told():
    m = manifest((2, 2, STABLE), (4, 2, {"phase": "decay"}))
    rate = LearningRate(1.0, schedule(warmup_steps=5), m)
    assert rate.notes == ["a warm-up of 5 steps is cut at step 2"]
    assert [rate.lr(s) for s in (1, 2, 3)] == [0.5, 1.0, 1.0]
    assert not LearningRate(1.0, schedule(warmup_steps=2), m).notes


def test_phases_rise_again():
    rewarm = [{"phase": "b", "tokens": 500, "start": 0.5}]  # 2 steps of 256
    got = rates(schedule(rewarm=rewarm), *UNEQUAL)
    assert got[5:9] == pytest.approx([1.0, 0.75, 1.0, 1.0])
    again = rates(schedule(rewarm=[{"phase": "b", "steps": 2}]), (3, 2, {"phase": "decay"}), (4, 2, STABLE))
    assert again[3:] == pytest.approx([0.5, 1.0, 1.0, 1.0])  # a new cycle after a decay
    decay = rates(schedule(rewarm=[{"phase": "b", "steps": 2}]), (2, 2, STABLE), (6, 2, {"phase": "decay"}))
    assert decay[2:] == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])
    plain = rates(schedule(kind="cosine"), *UNEQUAL)
    cosine = rates(schedule(kind="cosine", rewarm=rewarm), *UNEQUAL)
    assert cosine == pytest.approx([*plain[:6], 0.75 * plain[6], *plain[7:]])


def test_a_run_schedule_over_the_phases_own_is_told():
    m = manifest((2, 2, STABLE), (4, 2, {"phase": "decay"}))
    assert LearningRate(1.0, schedule(kind="cosine"), m).notes == [
        "the run's cosine schedule replaces the lr of phase b"
    ]


@pytest.mark.parametrize(
    ("settings", "phases", "message"),
    [
        ({"decay_tokens": 64}, [(2, 2, {"phase": "decay"})], "the mixture's phases say where"),
        ({"decay_tokens": 9999}, [(2, 2, STABLE)], "the whole run has 128"),
        ({"rewarm": [{"phase": "z", "steps": 1}]}, [(2, 2, STABLE)], "phase 'z', which has no step"),
        ({"rewarm": [{"phase": "a", "steps": 3}]}, [(2, 2, STABLE)], "rises over 3 steps, it has 2"),
        ({"kind": "multi-step", "milestones": [{"tokens": 128, "ratio": 0.1}]}, [(2, 2, STABLE)], "not before the end"),
        (
            {"kind": "multi-step", "milestones": [{"fraction": 0.6, "ratio": 0.3}, {"tokens": 65, "ratio": 0.1}]},
            [(4, 2, STABLE)],
            "wrong order",
        ),
        ({}, [(2, 2, {"phase": "decay"}), (2, 2, STABLE)], "stable after a decay"),
    ],
)
def test_schedules_that_do_not_fit_the_data_are_refused(settings, phases, message):
    with pytest.raises(UsageError, match=message) as caught:
        rates(schedule(**settings), *phases)
    assert caught.value.hint


def test_a_curve_for_plots():
    rate = LearningRate(2.0, schedule(warmup_steps=5), manifest(*UNEQUAL))
    curve = rate.curve(60)
    assert [step for step, _, _ in curve] == list(range(1, 16))
    assert curve[0] == (1, 0, rate.lr(1))
    assert [(p[0], p[1]) for p in rate.curve(3)] == [(1, 0), (8, 640), (15, 1920)]


def half_life(beta: float) -> float:
    return math.log(0.5) / math.log(beta)


def test_ademamix_warms_up_with_the_tokens():
    m = manifest(*UNEQUAL)
    slow = SlowAverage(AdEMAMix(alpha=8.0, beta3=0.999), 0.9, m)
    for step in range(1, 16):
        x = DataOrder(m).tokens_after(step) / 2048
        mixing = slow.at(step)
        assert mixing.alpha == pytest.approx(8 * x)
        assert half_life(mixing.beta3) == pytest.approx((1 - x) * half_life(0.9) + x * half_life(0.999))
    assert (slow.at(15).alpha, slow.at(15).beta3) == (8.0, 0.999)
    for settings in (AdEMAMix(warmup_steps=6), AdEMAMix(warmup_tokens=384)):
        short = SlowAverage(settings, 0.9, m)
        assert short.at(3).alpha == pytest.approx(2.5)
        assert (short.at(6), short.at(15)) == (short.at(7), short.at(7))
        assert short.at(5).beta3 < short.at(6).beta3 == 0.9999
    even = manifest((10, 2, STABLE))
    assert SlowAverage(AdEMAMix(warmup_steps=40), 0.9, even).at(10).alpha == pytest.approx(5 / 4)


def test_beta3_starts_at_beta1_and_never_falls():
    values = [beta3_at(x / 100, 0.9999, 0.9) for x in range(130)]
    assert values[0] == pytest.approx(0.9)
    assert values == sorted(values)
    assert values[100:] == [0.9999] * 30


def test_the_square_root_rule():
    assert sqrt_rule(1e-3, 1_000_000, 4_000_000) == pytest.approx(2e-3)
    assert batch_hints(1e-3, manifest(*UNEQUAL)) == pytest.approx({"b": 2e-3, "c": 1e-3 * math.sqrt(2)})
