"""Averaged weights against sums written out: EMA, its interval and resume, the mean of the last k, and the exchange."""

from __future__ import annotations

import contextlib

import pytest

torch = pytest.importorskip("torch")
import trainer_checkpoint_states as toy  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from gristmill.core.errors import FormatError  # noqa: E402
from gristmill.trainer.averaging import Ema, applied, last_k_mean  # noqa: E402
from gristmill.trainer.checkpoint import AVERAGE, MODEL  # noqa: E402
from gristmill.trainer.checkpoint_schema import Average, Checkpoint  # noqa: E402
from gristmill.trainer.parallel.mesh import World  # noqa: E402
from gristmill.trainer.saver import Checkpoints  # noqa: E402

ALONE = World(torch.device("cpu"))


def walk(steps: int) -> list[dict[str, Tensor]]:
    """Weights after each step of a random walk."""
    generator = torch.Generator().manual_seed(1)
    steps_of = {
        n: torch.randn(steps, *s, generator=generator).cumsum(0) for n, s in (("a.weight", (3, 4)), ("b.weight", (5,)))
    }
    return [{n: t[i] for n, t in steps_of.items()} for i in range(steps)]


def put(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        parameters[name].data.copy_(value)


def parameters_of(values: dict[str, Tensor]) -> dict[str, nn.Parameter]:
    return {n: nn.Parameter(t.clone()) for n, t in values.items()}


@pytest.mark.parametrize("every", [1, 3])
def test_ema_is_the_weighted_sum(every):
    """With weights w_1 .. w_m at the updates: d^(m-1) w_1 + (1 - d) sum over j > 1 of d^(m-j) w_j, d = 0.9^every."""
    path = walk(12)
    parameters = parameters_of(path[0])
    ema = Ema(parameters, Average(kind="ema", decay=0.9, every_steps=every))
    assert ema.tensors() == {}
    for step, values in enumerate(path, start=1):
        put(parameters, values)
        ema.update(step)
    taken = path[every - 1 :: every]
    d, m = 0.9**every, len(taken)
    for name, average in ema.averages.items():
        want = d ** (m - 1) * taken[0][name] + (1 - d) * sum(d ** (m - 1 - j) * taken[j][name] for j in range(1, m))
        torch.testing.assert_close(average, want)
        assert torch.equal(ema.tensors()["ema." + name], average)


def test_ema_of_bf16_weights_is_fp32():
    weights = {"a.weight": torch.full((4,), 1.0, dtype=torch.bfloat16)}
    ema = Ema(weights, Average(kind="ema", decay=0.999))
    ema.update(1)
    weights["a.weight"].fill_(2.0)
    for step in range(2, 12):
        ema.update(step)
    torch.testing.assert_close(ema.averages["a.weight"], torch.full((4,), 2.0 - 0.999**10))  # bf16 would stay at 1


def test_ema_goes_on_exactly(tmp_path):
    path = walk(8)
    settings = Average(kind="ema", decay=0.8)
    saver = Checkpoints(tmp_path, ALONE, Checkpoint(), None)
    parameters = parameters_of(path[0])
    whole = Ema(parameters, settings)
    for step, values in enumerate(path, start=1):
        put(parameters, values)
        whole.update(step)
        if step == 4:
            saver.begin(toy.state(4), {MODEL: parameters, AVERAGE: whole.tensors()})
    resumed = Ema(parameters, settings)
    found = saver.latest()
    assert found is not None
    resumed.load(saver, found)
    for step, values in enumerate(path[4:], start=5):
        put(parameters, values)
        resumed.update(step)
    assert all(torch.equal(t, whole.averages[n]) for n, t in resumed.averages.items())
    # from a checkpoint without an average it begins with the next update
    saver.begin(toy.state(8), {MODEL: parameters, AVERAGE: {}})
    found = saver.latest()
    assert found is not None
    resumed.load(saver, found)
    assert resumed.tensors() == {}
    resumed.update(9)
    assert all(torch.equal(t, path[-1][n]) for n, t in resumed.averages.items())


def test_the_mean_of_the_last_k(tmp_path):
    path = walk(11)
    settings = Average(kind="last_k", k=3, every_steps=2)
    saver = Checkpoints(tmp_path, ALONE, Checkpoint(keep=1), None, settings)
    parameters = parameters_of(path[0])
    for step, values in enumerate(path, start=1):
        put(parameters, values)
        saver.begin(toy.state(step), {MODEL: parameters})
    mean = last_k_mean(saver, parameters, settings, 11)
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, sum(path[s - 1][name] for s in (6, 8, 10)) / 3)
    (only,) = settings.snapshots(11, since=9)
    assert torch.equal(last_k_mean(saver, parameters, settings, 11, since=9)["b.weight"], path[only - 1]["b.weight"])
    assert torch.equal(last_k_mean(saver, parameters, settings, 1)["b.weight"], path[-1]["b.weight"])
    (tmp_path / "00000008" / "state.json").unlink()
    with pytest.raises(FormatError, match="of the last 3 checkpoints lacks step 8"):
        last_k_mean(saver, parameters, settings, 11)


def test_averages_stand_in_for_the_weights_and_leave():
    parameters = parameters_of(walk(1)[0])
    before = {n: p.detach().clone() for n, p in parameters.items()}
    places = {n: p.data_ptr() for n, p in parameters.items()}
    averages = {n: torch.ones_like(p) for n, p in parameters.items()}
    with contextlib.suppress(ZeroDivisionError), applied(parameters, averages):
        assert all(bool((p == 1).all()) for p in parameters.values())
        raise ZeroDivisionError  # an export that fails leaves the weights as they were, too
    assert all(torch.equal(p, before[n]) for n, p in parameters.items())
    assert {n: p.data_ptr() for n, p in parameters.items()} == places
