"""Order without ramp and edits, and the schedule: functions of the manifest; schemas and the stage import no torch."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from gristmill.core.errors import FormatError, UsageError
from gristmill.core.places import recipes_in
from gristmill.core.settings import load
from gristmill.core.tokshards import PackedManifest, PackedPhase
from gristmill.trainer.data import batch_of_step
from gristmill.trainer.order import DataOrder
from gristmill.trainer.schedule import LearningRate
from gristmill.trainer.schema import Schedule, TrainRun


def test_steps_cover_every_whole_batch_once_and_in_order(toy):
    assert DataOrder(toy.manifest).steps == 40
    seen = [pair for step in range(1, 41) for pair in DataOrder(toy.manifest).rows_of_step(step)]
    assert seen == [("main", r) for r in range(240)] + [("anneal", r) for r in range(40)]
    assert seen == [DataOrder(toy.manifest).row_of_sample(g) for g in range(280)]


def test_step_of_row_is_the_inverse(toy):
    for step in range(1, 41):
        assert {DataOrder(toy.manifest).step_of_row(*pair) for pair in DataOrder(toy.manifest).rows_of_step(step)} == {
            step
        }
    assert DataOrder(toy.manifest).step_of_row("main", 240) is None  # beyond the last whole batch
    assert DataOrder(toy.manifest).step_of_row("anneal", 42) is None
    with pytest.raises(UsageError):
        DataOrder(toy.manifest).step_of_row("main", 243)
    with pytest.raises(FormatError):
        DataOrder(toy.manifest).step_of_row("none", 0)


def test_position_counts_samples_and_tokens(toy):
    assert [DataOrder(toy.manifest).samples_after(s) for s in (0, 1, 30, 31, 40)] == [0, 8, 240, 244, 280]
    assert [DataOrder(toy.manifest).tokens_after(s) for s in (0, 1, 30, 31)] == [0, 256, 7680, 7680 + 192]
    assert DataOrder(toy.manifest).samples == 280


@pytest.mark.parametrize("step", [0, -1, 41])
def test_steps_outside_the_run_are_refused(toy, step):
    with pytest.raises(UsageError, match="no step"):
        DataOrder(toy.manifest).rows_of_step(step)


def test_valid_tokens_agree_with_provenance(toy):
    """Each document piece of n tokens teaches n - 1 of them; padding teaches nothing."""
    for step in (1, 17, 40):
        want = 0
        for phase, row in DataOrder(toy.manifest).rows_of_step(step):
            reader, _ = toy.locate(phase, row)
            table = reader.provenance().to_pydict()
            want += sum(n - 1 for r, n in zip(table["row"], table["length"], strict=True) if r == row)
        assert batch_of_step(toy, step).valid_tokens == want


def test_ids_beyond_the_vocabulary_are_refused(toy):
    small = dataclasses.replace(toy.manifest, vocab_size=50)
    broken = type(toy)(toy.folder)
    broken.manifest = small
    with pytest.raises(FormatError, match="token id 9"):
        batch_of_step(broken, 1)


def manifest(*phases: tuple[str, int, dict[str, Any]]) -> PackedManifest:
    made = [PackedPhase(name, 32, batches * 4, 4, 100, lr, {}) for name, batches, lr in phases]
    return PackedManifest("<u2", 97, {}, "", 0, "", made, [])


def rates(schedule: Schedule, *phases: tuple[str, int, dict[str, Any]]) -> list[float]:
    m = manifest(*phases)
    rate = LearningRate(1.0, schedule, m)
    return [rate.lr(step) for step in range(1, DataOrder(m).steps + 1)]


def test_warmup_stable_decay():
    got = rates(Schedule(warmup_steps=2), ("a", 4, {"phase": "stable"}), ("b", 4, {"phase": "decay", "to": 0.2}))
    assert got == pytest.approx([0.5, 1, 1, 1, 1, 0.8, 0.6, 0.4])


def test_one_decay_spans_neighbouring_phases_and_ends_where_the_last_says():
    got = rates(
        Schedule(), ("a", 2, {}), ("b", 2, {"phase": "decay", "to": 0.5}), ("c", 2, {"phase": "decay", "to": 0})
    )
    assert got == pytest.approx([1, 1, 1, 0.75, 0.5, 0.25])


def test_shapes_warmup_in_tokens_and_full_phases():
    cosine = rates(Schedule(), ("a", 4, {"phase": "full", "shape": "cosine", "warmup_steps": 2, "to": 0}))
    assert cosine == pytest.approx([0.5, 1, 1, 0.5])
    root = rates(Schedule(decay="1-sqrt", final_ratio=0.0), ("a", 4, {"phase": "decay", "shape": None}))
    assert root == pytest.approx([1, 0.5, 1 - 0.5**0.5, 1 - 0.75**0.5])
    tokens = rates(Schedule(warmup_tokens=300), ("a", 4, {"phase": "stable"}))  # 128 a step: 2.3, rounded up to 3
    assert tokens == pytest.approx([1 / 3, 2 / 3, 1, 1])


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([("a", 2, {"phase": "decay"}), ("b", 2, {"phase": "stable"})], "stable after a decay"),
        ([("a", 2, {"phase": "dekay"})], "lr.phase"),
        ([("a", 2, {"phase": "decay", "shape": "square"})], "lr.shape"),
        ([("a", 2, {"phase": "decay", "to": 1.5})], "lr.to"),
        ([("a", 2, {"phase": "decay", "until": 3})], "unknown setting `until`"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(phases, message):
    with pytest.raises(UsageError, match=message):
        rates(Schedule(), *phases)


def test_a_phase_without_one_whole_batch_has_no_step():
    m = manifest(("a", 2, {}), ("b", 0, {}), ("c", 1, {"phase": "decay"}))
    assert DataOrder(m).steps == 3
    assert DataOrder(m).span(3).phase.name == "c"


def test_packaged_recipes_are_valid():
    recipes = recipes_in("gristmill.trainer")
    assert {"demo", "web"} <= set(recipes)
    for path in recipes.values():
        run, _ = load(path, TrainRun)
        assert TrainRun.model_validate(run.model_dump(mode="json")) == run
    assert 9.5e6 < load(recipes["web"], TrainRun)[0].model.params(16_384) < 10.5e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": {"warmup_steps": 1, "warmup_tokens": 5}}, "both warmup_steps and warmup_tokens"),
        ({"model": {"layers": 1, "hidden": 8, "heads": 3, "kv_heads": 2, "head_dim": 4, "ffn": 8}}, "not a multiple"),
        ({"model": {"layers": 1, "hidden": 8, "heads": 2, "kv_heads": 2, "head_dim": 3, "ffn": 8}}, "odd"),
        ({"optimizer": {"lr": 1e-3, "betas": [0.9, 1.0]}}, "betas"),
        ({"precision": "fp8"}, "precision"),
        ({"epochs": 2}, "epochs"),
    ],
)
def test_settings_that_cannot_work_are_refused(run_maker, change, message):
    with pytest.raises(ValidationError, match=message):
        run_maker(**change)


def test_no_torch_without_training():
    code = (
        "import sys; import gristmill.trainer.schema, gristmill.trainer.order, gristmill.trainer.schedule, "
        "gristmill.trainer.data, gristmill.trainer.integrity, gristmill.trainer.journal, gristmill.trainer.train, gristmill.trainer.launch; "
        "bad = {'torch', 'tokenizers', 'safetensors', 'dask', 'distributed'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
