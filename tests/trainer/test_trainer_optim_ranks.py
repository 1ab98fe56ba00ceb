"""Optimizers on 4 ranks (dp 2 x tp 2, sharded and replicated) beside one process: weights, state, norm, skipped steps."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path
from unittest import mock

import pytest

torch = pytest.importorskip("torch")

from optim_ranks import (  # noqa: E402
    BOUND,
    CASES,
    CLIP,
    KINDS,
    LR,
    ONE,
    STEPS,
    ZERO,
    apart,
    launch,
    settings,
    skipped,
    toy,
    train,
    value,
)
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from gristmill.trainer import optim  # noqa: E402
from gristmill.trainer.gradients import clip_coefficient, unless  # noqa: E402
from gristmill.trainer.optim_ademamix import portions  # noqa: E402
from gristmill.trainer.schedule import Mixing  # noqa: E402


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    launch(out, "torch")
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "zero"), CASES)
def test_four_ranks_train_as_one(kind, zero, ranks):
    got = load_file(ranks / f"{kind}-{zero}.safetensors")
    want, untouched = train(kind, ONE, zero)
    assert set(got) - {"faulty norms"} == set(want)
    worst = {name: apart(got[name], tensor) for name, tensor in want.items()}
    assert max(worst.values()) <= BOUND, sorted(worst.items(), key=lambda row: -row[1])[:3]
    assert float(want["norms"].min()) > CLIP  # clipping works at every step
    assert {float(t) for n, t in want.items() if n.endswith(".step")} <= {float(STEPS)}  # a skipped step counts nowhere
    assert untouched == [True, True]
    assert json.loads((ranks / "untouched.json").read_text())[f"{kind} {zero}"] == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("zero", ZERO)
def test_a_norm_that_counts_replicated_parameters_twice_is_seen(zero, ranks):
    got = load_file(ranks / f"adamw-{zero}.safetensors")
    assert apart(got["faulty norms"], train("adamw", ONE, zero)[0]["norms"]) > 1000 * BOUND


@pytest.mark.parametrize("queued", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_first_step_leaves_a_whole_state(kind, queued):
    model = toy(ONE, 3)
    optimizer = optim.build(model, settings(kind))
    assert skipped(optimizer, queued)
    again = optim.build(model, settings(kind))
    again.load_state(optimizer.state_tensors())
    assert not any(t.any() for t in again.state_tensors().values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_queued_step_reads_nothing_on_the_host(kind):
    """On a GPU each of these would wait for all kernels before it."""

    def refuse(*args, **kwargs):
        raise AssertionError("the host waits")

    model = toy(ONE, 3)
    optimizer = optim.build(model, settings(kind))
    model().backward()
    optimizer.at(LR, Mixing(2.0, 0.9))
    optimizer.queued = True
    with contextlib.ExitStack() as stack:
        for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "numpy", "cpu"):
            stack.enter_context(mock.patch.object(Tensor, name, refuse))
        norm = optimizer.norm()
        optimizer.step(clip_coefficient(norm, CLIP), norm.isfinite())
    assert not torch.equal(model.get_parameter("head.weight"), value("head.weight", 0))


def test_updates_that_may_be_undone_are_done_in_portions():
    sizes = [3, 4, 9, 1, 1, 8]
    got = [[t.numel() for t in part] for part in portions([torch.zeros(n) for n in sizes], 8)]
    assert got == [[3, 4], [9], [1, 1], [8]]
    assert list(portions([])) == []


def test_what_is_undone_is_what_the_flag_says():
    tensors = [torch.tensor([-0.0, float("nan"), 2.0]), torch.tensor(3.0)]
    for flag, changed in itertools.product((torch.tensor(True), torch.tensor(False), None), (0.0, 1.0)):
        before = [t.clone() for t in tensors]
        with unless(flag, tensors):
            for t in tensors:
                t.fill_(changed)
        stays = flag is not None and bool(flag)
        for now, then in zip(tensors, before, strict=True):
            want = then if stays else torch.full_like(then, changed)
            assert torch.equal(now.view(torch.int32), want.view(torch.int32))


def test_clip_coefficient_is_torchs():
    for norm, clip in itertools.product((0.0, 1e-7, 0.5, 1.0, 3.0, 1e4), (0.5, 1.0)):
        p = nn.Parameter(torch.zeros(3))
        p.grad = torch.tensor([1.0, -2.0, 0.3])
        want = p.grad * clip_coefficient(torch.tensor(norm), clip)
        torch.nn.utils.clip_grads_with_norm_([p], clip, torch.tensor(norm))
        assert torch.equal(p.grad, want)
    assert clip_coefficient(torch.tensor(float("nan")), 1.0).isnan()
