"""The scaling-law fit on losses of known laws: exact without noise, inside its intervals with it, and as scipy's minimum."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from gristmill.core.errors import UsageError
from gristmill.trainer import ladder_report
from gristmill.trainer.ladder_schema import Ladder
from gristmill.trainer.scaling_fit import DELTA, Law, fit, huber, minimise, predict

CHINCHILLA = Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)  # arXiv 2203.15556, equation 10
TINY = Law(E=0.9, A=22.0, B=160.0, alpha=0.28, beta=0.41)  # as of models of 10k parameters
SIZES = np.geomspace(2e6, 1e8, 5)
RATIOS = (5, 10, 20, 40, 80)  # tokens per parameter


def ladder(law, sizes=SIZES, ratios=RATIOS, noise=0.0, outliers=0, seed=0):
    n, ratio = np.array(list(itertools.product(sizes, ratios))).T
    d = n * ratio
    rng = np.random.default_rng(seed)
    error = noise * rng.standard_normal(len(n))
    error[rng.choice(len(n), outliers, replace=False)] += 0.05
    return n, d, np.array([law.loss(*nd) for nd in zip(n, d, strict=True)]) * np.exp(error)


@pytest.mark.parametrize(
    ("law", "sizes", "ratios"),
    [
        (CHINCHILLA, SIZES, RATIOS),
        (CHINCHILLA, (1e7, 1e8, 1e9), (5, 20, 80)),
        (TINY, (1e4, 3e4, 1e5, 3e5), (2, 8, 32)),
        (Law(0.5, 5.0, 3000.0, 0.1, 0.7), SIZES, RATIOS),
    ],
)
def test_losses_of_a_law_give_the_law_back(law, sizes, ratios):
    found = fit(*ladder(law, sizes, ratios), resamples=50)
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(found.law, name) == pytest.approx(getattr(law, name), rel=1e-3), name
    far = found.loss(7e10, 1.4e12)
    assert far.value == pytest.approx(law.loss(7e10, 1.4e12), rel=1e-6)
    assert far.high - far.low < 1e-6
    assert not found.notes


def test_outliers_hardly_move_the_fit():
    clean = fit(*ladder(CHINCHILLA), resamples=20)
    spoilt = fit(*ladder(CHINCHILLA, outliers=4), resamples=20)
    assert spoilt.law.alpha == pytest.approx(clean.law.alpha, abs=0.01)
    assert spoilt.loss(1e9, 2e10).value == pytest.approx(CHINCHILLA.loss(1e9, 2e10), rel=2e-3)
    n, d, loss = ladder(CHINCHILLA, outliers=4)
    squares = np.linalg.lstsq(np.stack([np.ones_like(n), n**-0.34, d**-0.28], 1), loss, rcond=None)[0]
    assert abs(squares @ [1, 1e9**-0.34, 2e10**-0.28] / CHINCHILLA.loss(1e9, 2e10) - 1) > 1e-2, (
        "least squares does move"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "ratios", "outliers"), [(SIZES, RATIOS, 3), (SIZES[::2], RATIOS[::2], 0)])
def test_the_interval_covers_the_truth_as_often_as_it_says(sizes, ratios, outliers):
    """90 % intervals of the loss ten times further in both; 40 ladders, so chance alone may take it to 80 %."""
    n, d = SIZES[-1] * 10, SIZES[-1] * 200
    hits = 0
    for seed in range(40):
        far = fit(*ladder(CHINCHILLA, sizes, ratios, 3e-3, outliers, seed), resamples=100, seed=seed).loss(n, d)
        assert far.low <= far.high
        hits += far.low <= CHINCHILLA.loss(n, d) <= far.high
    assert hits >= 32


def test_the_minimum_is_that_of_scipy():
    optimize = pytest.importorskip("scipy.optimize")
    n, d, loss = ladder(CHINCHILLA, noise=5e-3, outliers=3, seed=4)
    x, y, target = np.log(n) - np.log(n).mean(), np.log(d) - np.log(d).mean(), np.log(loss)

    def objective(theta):
        value, share = predict(theta[None], x, y)
        residual, p = value[0] - target, share[0]
        jacobian = np.stack([p[:, 0], p[:, 1], p[:, 2], -x * p[:, 1], -y * p[:, 2]], 1)
        return 1e6 * huber(residual).sum(), 1e6 * jacobian.T @ np.clip(residual, -DELTA, DELTA)

    starts = [np.array([e, -1.0, -1.0, a, b]) for e in (-0.5, 0.5) for a in (0.2, 0.6) for b in (0.2, 0.6)]
    theirs = min(
        optimize.minimize(objective, s, jac=True, method="L-BFGS-B", options={"maxiter": 9999, "ftol": 1e-16}).fun
        for s in starts
    )
    _, ours = minimise(np.array(starts), x, y, target, np.ones((1, len(x))))
    assert 1e6 * ours.min() == pytest.approx(theirs, rel=1e-6)


def test_the_same_runs_and_seed_give_the_same_bytes_and_another_order_the_same_law():
    n, d, loss = ladder(CHINCHILLA, noise=3e-3)
    first, again = (fit(n, d, loss, resamples=30, seed=5) for _ in range(2))
    assert first == again
    turned = fit(n[::-1], d[::-1], loss[::-1], resamples=20)
    assert turned.law.alpha == pytest.approx(first.law.alpha, rel=1e-5)


def test_the_optimum_is_the_lowest_loss_of_its_flops():
    n, d, loss = CHINCHILLA.optimum(5.76e23)
    assert 6 * n * d == pytest.approx(5.76e23)
    for factor in (0.9, 1.1):
        assert CHINCHILLA.loss(n * factor, d / factor) > loss
    assert n == pytest.approx(
        32e9, rel=0.05
    )  # the parametric fit's answer for Gopher's budget: 2203.15556, table 3: 40B
    assert CHINCHILLA.optimum(1e24)[0] / n == pytest.approx((1e24 / 5.76e23) ** (0.28 / 0.62))


def test_a_law_without_a_term_still_has_an_optimum():
    for law in (Law(1.0, 1e-17, 400.0, 0.01, 3.0), Law(1.0, 1e30, 1e-17, 3.0, 0.01)):
        for flops in (1e6, 1e26):
            assert all(math.isfinite(value) and value > 0 for value in law.optimum(flops))


def test_what_does_not_determine_a_law_is_refused_or_said():
    n, d, loss = ladder(CHINCHILLA, SIZES[:2])
    with pytest.raises(UsageError, match="10 runs of 2 sizes and 10 token counts"):
        fit(n, d, loss)
    n, d, loss = ladder(CHINCHILLA)
    loss[3] = math.nan
    with pytest.raises(UsageError, match="not a positive number"):
        fit(n, d, loss)
    flat = fit(n, d, 2.0 + 100 / d**0.3, resamples=30)  # the size does nothing
    assert flat.loss(1e9, 1e10).value == pytest.approx(2.0 + 100 / 1e10**0.3, rel=1e-3)
    assert any("alpha" in note for note in flat.notes)
    floorless = fit(n, d, 400 / n**0.34 + 410 / d**0.28, resamples=20)
    assert any("no floor" in note for note in floorless.notes)


def test_points_are_read_from_csv_and_json_and_bad_ones_named(tmp_path):
    n, d, loss = ladder(CHINCHILLA, noise=2e-3)
    rows = [{"parameters": a, "tokens": b, "loss": c} for a, b, c in zip(n, d, loss, strict=True)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.csv").write_text(
        "name,parameters,tokens,loss\n"
        + "".join(f"r,{r['parameters']!r},{r['tokens']!r},{r['loss']!r}\n" for r in rows)
        .replace("np.float64(", "")
        .replace(")", "")
    )
    points = ladder_report.read_points(tmp_path / "a.json")
    assert points == ladder_report.read_points(tmp_path / "a.csv")
    found = ladder_report.report(points, Ladder(resamples=50), [(1e9, 2e10), (1e13, 1e15)])
    near, far = found["predictions"]
    assert near["loss"]["low"] < CHINCHILLA.loss(1e9, 2e10) < near["loss"]["high"]
    assert far["times_largest_run"] > 1e6
    assert any("times the FLOPs" in note for note in found["notes"])
    budgets = [row["flops"] for row in found["isoflop"]]
    assert budgets[0] <= 6 * min(n * d)
    assert budgets[-1] >= 6e28
    text = ladder_report.render(found, points)
    assert len(text.splitlines()) >= 25 + len(budgets)
    assert "1B parameters on 20B tokens" in text

    for text, word in (("parameters,tokens\n1,2\n", "loss is None"), ("[1, 2]", "no list"), ("[{]", "no JSON")):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(UsageError, match=word):
            ladder_report.read_points(tmp_path / "bad")
    (tmp_path / "bad").write_text('[{"parameters": 1, "tokens": 2, "loss": -1}]')
    with pytest.raises(UsageError, match="run 1: loss is -1"):
        ladder_report.read_points(tmp_path / "bad")
