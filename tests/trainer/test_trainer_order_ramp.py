"""Batch ramps: stairs in samples and tokens, the same samples in the same order, the clock and the refusals."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gristmill.core.errors import UsageError
from gristmill.core.tokshards import PackedManifest, PackedPhase
from gristmill.trainer.data_schema import Data, RampStep
from gristmill.trainer.optim_schema import Schedule
from gristmill.trainer.order import DataOrder
from gristmill.trainer.schedule import Clock, LearningRate, SlowAverage
from gristmill.trainer.schema import TrainRun


def manifest(*phases: tuple[int, int, int]) -> PackedManifest:
    """Phases a, b, ... of (rows, rows of a batch, tokens of a row)."""
    made = [
        PackedPhase(n, length, rows, batch, 7, {}, {}) for n, (rows, batch, length) in zip("abcd", phases, strict=False)
    ]
    return PackedManifest("<u2", 97, {}, "", 0, "", made, [])


def ramp(*stairs: tuple[int, int], unit: str = "samples") -> tuple[RampStep, ...]:
    return Data.model_validate({"batch_ramp": [{"rows": r, f"until_{unit}": u} for r, u in stairs]}).batch_ramp


def test_stairs_in_samples_and_tokens():
    m = manifest((40, 8, 4), (25, 8, 6))
    order = DataOrder(m, ramp((2, 5), (4, 12)))
    # 2 rows at 0, 2, 4; 4 rows at 6, 10; then 8 rows: 26 of the 40 are left, three steps of them
    assert [(s.first_step, s.steps, s.rows, s.first_slot, s.first_sample) for s in order.spans] == [
        (1, 3, 2, 0, 0),
        (4, 2, 4, 6, 6),
        (6, 3, 8, 14, 14),
        (9, 3, 8, 0, 38),
    ]
    assert [order.samples_after(step) for step in range(12)] == [0, 2, 4, 6, 10, 14, 22, 30, 38, 46, 54, 62]
    assert order.tokens_after(3) == 24
    assert order.tokens_after(11) == order.tokens == 38 * 4 + 24 * 6
    assert [(p.first_step, p.last_step, p.samples) for p in order.phases] == [(1, 8, 38), (9, 11, 24)]
    in_tokens = DataOrder(m, ramp((2, 17), (4, 48), unit="tokens"))  # 17 tokens: the third step of 8 passes them
    assert in_tokens.spans == order.spans


def test_a_ramp_goes_on_over_phases():
    order = DataOrder(manifest((8, 4, 4), (12, 4, 4)), ramp((2, 12)))
    assert [(s.phase.name, s.rows, s.steps) for s in order.spans] == [("a", 2, 4), ("b", 2, 2), ("b", 4, 2)]


STAIRS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 15)), max_size=4)
PHASES = st.lists(st.tuples(st.integers(1, 60), st.integers(20, 24), st.integers(1, 5)), min_size=1, max_size=3)


def grown(steps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Rows and ends that grow, out of their differences; at most 20 rows."""
    rows, ends, out = 0, 0, []
    for more, later in steps:
        rows, ends = rows + more, ends + later
        out.append((rows, ends))
    return out


@settings(max_examples=60, deadline=None)
@given(PHASES, STAIRS, st.sampled_from(["samples", "tokens"]))
def test_a_ramp_changes_how_many_samples_a_step_takes_not_which(phases, stairs, unit):
    m, steps = manifest(*phases), grown(stairs)
    order = DataOrder(m, ramp(*steps, unit=unit))
    seen: list[tuple[str, int]] = []
    tokens = 0
    for step in range(1, order.steps + 1):
        rows = order.rows_of_step(step)
        spec = m.phase(rows[0][0])
        at = len(seen) if unit == "samples" else tokens
        assert len(rows) == next((r for r, until in steps if at < until), spec.batch_rows)
        assert [sample for sample, _ in order.samples_of_step(step)] == list(range(len(seen), len(seen) + len(rows)))
        assert [order.row_of_sample(len(seen) + i) for i in range(len(rows))] == rows
        assert {order.step_of_row(*pair) for pair in rows} == {step}
        seen += rows
        tokens += len(rows) * spec.seq_len
        assert (order.samples_after(step), order.tokens_after(step)) == (len(seen), tokens)
    for phase in m.phases:  # every phase's rows from 0 on, none between left out
        own = [row for name, row in seen if name == phase.name]
        assert own == list(range(len(own)))
        assert phase.rows - len(own) < phase.batch_rows
    clock = Clock(order)
    assert (clock.steps, clock.tokens) == (order.steps, tokens)
    for goal in range(0, tokens + 2, 3):
        want = next((s for s in range(order.steps + 1) if order.tokens_after(s) >= goal), order.steps)
        assert clock.reaches(goal) == want


def test_the_learning_rate_is_a_function_of_tokens_whatever_the_ramp():
    m = manifest((64, 8, 4))
    plain, ramped = DataOrder(m), DataOrder(m, ramp((2, 8), (4, 16)))
    for kind in ({"kind": "cosine", "warmup_tokens": 64}, {"decay_tokens": 256, "warmup_steps": 0}):
        schedule = Schedule.model_validate(kind)
        a, b = LearningRate(1.0, schedule, plain), LearningRate(1.0, schedule, ramped)
        rates = {ramped.tokens_after(step - 1): b.lr(step) for step in range(1, ramped.steps + 1)}
        for step in range(3, plain.steps + 1):  # behind the warm-up both have a step that begins there
            assert a.lr(step) == pytest.approx(rates[plain.tokens_after(step - 1)])
    slow = TrainRun.model_fields["optimizer"].annotation(lr=1.0).slow
    assert SlowAverage(slow, 0.9, ramped).at(ramped.steps) == SlowAverage(slow, 0.9, plain).at(plain.steps)


def test_phases_are_one_to_the_schedule_though_a_ramp_cuts_them():
    phase = PackedPhase("a", 4, 48, 8, 100, {"phase": "full", "shape": "linear", "to": 0, "warmup_steps": 2}, {})
    m = PackedManifest("<u2", 97, {}, "", 0, "", [phase], [])
    order = DataOrder(m, ramp((4, 16)))
    rate = LearningRate(1.0, Schedule(), order)
    assert len(order.spans) == 2
    # tokens before each step: 0 16 32 48 64 96 128 160, of 192; the decay runs from 32 on
    want = [0.5, 1.0, *(1 - (t - 32) / 160 for t in (32, 48, 64, 96, 128, 160))]
    assert [rate.lr(step) for step in range(1, 9)] == pytest.approx(want)
    with pytest.raises(UsageError, match="rises over 9 steps, it has 8"):
        LearningRate(1.0, Schedule.model_validate({"rewarm": [{"phase": "a", "tokens": 193}]}), order)


@pytest.mark.parametrize(
    ("stairs", "message"),
    [
        ([{"rows": 4, "until_samples": 8}, {"rows": 4, "until_samples": 16}], "more rows and a later end"),
        ([{"rows": 4, "until_samples": 8}, {"rows": 8, "until_samples": 8}], "more rows and a later end"),
        ([{"rows": 4, "until_samples": 8}, {"rows": 8, "until_tokens": 800}], "in samples and in tokens"),
        ([{"rows": 4}], "one of until_samples and until_tokens"),
        ([{"rows": 4, "until_samples": 8, "until_tokens": 8}], "one of until_samples and until_tokens"),
        ([{"rows": 0, "until_samples": 8}], "greater than or equal to 1"),
    ],
)
def test_ramps_that_make_no_sense_are_refused(stairs, message):
    with pytest.raises(ValidationError, match=message):
        Data.model_validate({"batch_ramp": stairs})


def test_a_ramp_larger_than_the_batch_is_refused():
    with pytest.raises(UsageError, match="still takes 6 rows in phase 'b', whose batch has 4") as caught:
        DataOrder(manifest((32, 8, 4), (32, 4, 4)), ramp((6, 40)))
    assert caught.value.hint
    assert DataOrder(manifest((32, 8, 4), (32, 4, 4)), ramp((6, 30))).steps  # it ends in time
