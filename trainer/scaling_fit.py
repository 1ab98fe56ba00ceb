"""The scaling law L = E + A/N^alpha + B/D^beta fitted to runs, with intervals and compute-optimal sizes. numpy only.

Hoffmann et al. (arXiv 2203.15556, section 3.3 and appendix D.3): least Huber loss (delta 1e-3) of log L, the law's
three terms held as exponents, from a grid of starts. Two things are as Besiroglu et al. (arXiv 2404.10102) found
necessary when they repeated that fit: the Huber losses are summed and the minimiser runs to its end; stopped early,
that fit had other parameters and intervals far too narrow.

Here N and D are centred in the logarithm (A and alpha are otherwise almost one parameter), the grid of starts is over
shares of the losses, so that it serves losses of 1 and of 8 nats, and the minimiser is Levenberg-Marquardt on
reweighted squares, for all starts at once: a few milliseconds, and the same minimum as scipy's L-BFGS.

Letters of the shape suffixes: S fits done at once, R runs, P = 5 parameters (log E, log A', log B', alpha, beta).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gristmill.core.errors import UsageError

Array = np.ndarray[Any, np.dtype[np.float64]]

DELTA = 1e-3  # Huber's, in log loss: a run off by more than 0.1 % counts by its error, not by its square (2203.15556)
ITERATIONS = 300  # most fits need 20 to 100
TOLERANCE = 1e-13  # relative gain of a step that ends a fit
EXPONENTS = (0.1, 0.3, 0.6, 1.2)  # starts of alpha and of beta
FLOOR_SHARES = (0.1, 0.4, 0.7, 0.9)  # starts of E, as shares of the lowest loss
SIZE_SHARES = (0.2, 0.5, 0.8)  # starts of the size term, as shares of what E leaves
LOWEST = np.array([-40.0, -40.0, -40.0, 0.01, 0.01])  # bounds of P: an exponent at one says that its term is not seen
HIGHEST = np.array([5.0, 5.0, 5.0, 3.0, 3.0])
NUDGES = np.array(  # starts of a resample, beside the fit itself: it may fall into a neighbouring valley
    [[0, 0, 0, 0, 0], [-0.5, 0, 0, -0.1, -0.1], [0.1, -0.3, -0.3, 0.1, 0.1], [0, 0.5, -0.5, 0.2, -0.1], [0, -0.5, 0.5, -0.1, 0.2]]
)  # fmt: skip
FLOPS_PER_PARAMETER = 6.0  # of one trained token, forward and backward (Kaplan et al., arXiv 2001.08361, section 2.1)
LEAST_VALUES = 3  # sizes and token counts: with two, E cannot be told from A/N^alpha
LEAST_RUNS = 6  # one more than there are unknowns


FARTHEST = 300.0  # of log N at an optimum: a resample without a size term wants no parameters at all


@dataclass(frozen=True)
class Law:
    """Nats per token as a function of N parameters and D trained tokens."""

    E: float
    """Loss that neither size nor data removes."""
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, n: float, d: float) -> float:
        size = _exp(math.log(self.A) - self.alpha * math.log(n))
        return self.E + size + _exp(math.log(self.B) - self.beta * math.log(d))

    def optimum(self, flops: float, per_parameter: float = FLOPS_PER_PARAMETER) -> tuple[float, float, float]:
        """(N, D, loss) of the lowest loss where per_parameter x N x D = flops (arXiv 2203.15556, equation 4)."""
        log_nd = math.log(flops / per_parameter)
        ratio = math.log(self.alpha * self.A) - math.log(self.beta * self.B)
        log_n = (ratio + self.beta * log_nd) / (self.alpha + self.beta)
        log_n = max(-FARTHEST, min(FARTHEST, log_n))
        n, d = _exp(log_n), _exp(log_nd - log_n)
        return n, d, self.loss(n, d)


@dataclass(frozen=True)
class Estimate:
    """A value and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Fit:
    """A fitted law and the laws of the resampled runs, which give every interval."""

    law: Law
    resampled: tuple[Law, ...]
    level: float
    """Part of the resamples inside an interval."""
    residuals: tuple[float, ...]
    """log loss - log predicted loss of each run."""
    notes: tuple[str, ...]
    """What the runs do not determine, in words."""

    def estimate(self, what: Callable[[Law], float]) -> Estimate:
        """A figure of the law, with the percentile interval of the resamples."""
        tail = 50 * (1 - self.level)
        low, high = np.percentile([what(law) for law in self.resampled], [tail, 100 - tail])
        return Estimate(what(self.law), float(low), float(high))

    def loss(self, n: float, d: float) -> Estimate:
        return self.estimate(lambda law: law.loss(n, d))


def fit(
    n: Sequence[float],
    d: Sequence[float],
    loss: Sequence[float],
    *,
    resamples: int = 500,
    seed: int = 0,
    level: float = 0.9,
) -> Fit:
    """Fit the law to runs of `n` parameters, `d` trained tokens and final `loss` (nats per token).

    Intervals: bootstrap over the runs, percentiles of `resamples` fits. They are cautious: on made-up ladders of 9 and
    25 runs with noise of 0.3 %, with and without outliers of 5 %, extrapolated tenfold in both, the 90 % interval of the
    loss held the truth in 97 to 99 of 100 (a bootstrap of residuals would hold it in about 80). Raises UsageError when
    the runs are too few or not positive and finite.
    """
    runs = np.array([n, d, loss], dtype=np.float64)
    if not (np.isfinite(runs).all() and (runs > 0).all()):
        raise UsageError("a run's parameters, tokens or loss is not a positive number", hint="leave that run out")
    sizes, budgets = len(set(runs[0])), len(set(runs[1]))
    if min(sizes, budgets) < LEAST_VALUES or runs.shape[1] < LEAST_RUNS:
        raise UsageError(
            f"{runs.shape[1]} runs of {sizes} sizes and {budgets} token counts do not determine the law's five numbers",
            hint=f"give {LEAST_RUNS} runs or more, of {LEAST_VALUES} sizes and {LEAST_VALUES} token counts at least",
        )
    log_R3 = np.log(runs).T
    centre = log_R3[:, :2].mean(0)
    x_R, y_R = (log_R3[:, :2] - centre).T
    target_R = log_R3[:, 2]
    found_SP, objective_S = minimise(_starts(runs[2]), x_R, y_R, target_R, np.ones((1, len(x_R))))
    best_P = found_SP[objective_S.argmin()]
    rng = np.random.default_rng(seed)
    weight_SR = rng.multinomial(len(x_R), np.full(len(x_R), 1 / len(x_R)), size=resamples).astype(np.float64)
    resampled_SP = _resample(best_P, x_R, y_R, target_R, weight_SR)
    residual_R = target_R - predict(best_P[None], x_R, y_R)[0][0]
    return Fit(
        _law(best_P, centre),
        tuple(_law(row_P, centre) for row_P in resampled_SP),
        level,
        tuple(residual_R.tolist()),
        tuple(_notes(best_P, resampled_SP, np.exp(target_R), level)),
    )


def _exp(x: float) -> float:
    return math.exp(min(x, 700.0))  # 1e304, below the largest float


def predict(theta_SP: Array, x_R: Array, y_R: Array) -> tuple[Array, Array]:
    """(S, R) log losses, and (S, R, 3) the shares of E, the size term and the data term in the loss."""
    e, a, b, alpha, beta = (theta_SP[:, i, None] for i in range(5))
    terms_SR3 = np.stack([np.broadcast_to(e, (len(e), len(x_R))), a - alpha * x_R, b - beta * y_R], -1)
    top_SR1 = terms_SR3.max(-1, keepdims=True)
    share_SR3 = np.exp(terms_SR3 - top_SR1)
    total_SR1 = share_SR3.sum(-1, keepdims=True)
    return (top_SR1 + np.log(total_SR1))[..., 0], share_SR3 / total_SR1


def huber(residual: Array) -> Array:
    size = np.abs(residual)
    return np.where(size <= DELTA, 0.5 * residual**2, DELTA * (size - 0.5 * DELTA))


def minimise(start_SP: Array, x_R: Array, y_R: Array, target_R: Array, weight_SR: Array) -> tuple[Array, Array]:
    """Least weighted sum of Huber losses from each start: (S, P) parameters and (S,) sums. Weights broadcast over S."""
    theta = np.clip(start_SP, LOWEST, HIGHEST)
    weight_SR = np.broadcast_to(weight_SR, (len(theta), len(x_R)))
    value, share = predict(theta, x_R, y_R)
    residual = value - target_R
    objective = (weight_SR * huber(residual)).sum(1)
    damping = np.full(len(theta), 1e-2)
    left = np.arange(len(theta))
    for _ in range(ITERATIONS):
        if not len(left):
            break
        p, r, w = share[left], residual[left], weight_SR[left]
        jacobian_SRP = np.stack([p[..., 0], p[..., 1], p[..., 2], -x_R * p[..., 1], -y_R * p[..., 2]], -1)
        # Huber's loss as a weighted square: at most 1, and DELTA / |r| beyond DELTA
        w = w * np.minimum(1.0, DELTA / np.maximum(np.abs(r), DELTA))
        gradient = np.einsum("srp,sr->sp", jacobian_SRP, w * r)
        normal = np.einsum("srp,srq->spq", jacobian_SRP * w[..., None], jacobian_SRP)
        diagonal = np.einsum("spp->sp", normal)
        ridge = damping[left, None] * (diagonal + 1e-12 * diagonal.max(1, keepdims=True) + 1e-300)
        step = np.linalg.solve(normal + ridge[..., None] * np.eye(5), gradient[..., None])[..., 0]
        tried = np.clip(theta[left] - step, LOWEST, HIGHEST)
        value, share_tried = predict(tried, x_R, y_R)
        residual_tried = value - target_R
        reached = (weight_SR[left] * huber(residual_tried)).sum(1)
        better = reached < objective[left]
        settled = better & (objective[left] - reached <= TOLERANCE * objective[left] + 1e-18)
        kept = left[better]
        theta[kept], residual[kept], share[kept] = tried[better], residual_tried[better], share_tried[better]
        objective[kept] = reached[better]
        damping[left] = np.where(better, damping[left] / 5, damping[left] * 4).clip(1e-14, 1e12)
        left = left[~settled & (damping[left] < 1e10)]  # so damped, a step cannot move any more
    return theta, objective


def _starts(loss_R: Array) -> Array:
    lowest, mean = loss_R.min(), loss_R.mean()
    rows = []
    for alpha, beta, floor, size in itertools.product(EXPONENTS, EXPONENTS, FLOOR_SHARES, SIZE_SHARES):
        rest = mean - floor * lowest
        rows.append([math.log(floor * lowest), math.log(rest * size), math.log(rest * (1 - size)), alpha, beta])
    return np.array(rows)


def _resample(best_P: Array, x_R: Array, y_R: Array, target_R: Array, weight_SR: Array) -> Array:
    """The fit of each row of weights, from the whole fit and points around it."""
    start = np.repeat(best_P + NUDGES, len(weight_SR), 0)
    weights = np.tile(weight_SR, (len(NUDGES), 1))
    theta, objective = minimise(start, x_R, y_R, target_R, weights)
    best = objective.reshape(len(NUDGES), -1).argmin(0)
    chosen: Array = theta.reshape(len(NUDGES), -1, 5)[best, np.arange(len(weight_SR))]
    return chosen


def _law(theta_P: Array, centre: Array) -> Law:
    e, a, b, alpha, beta = theta_P.tolist()
    log_n, log_d = centre.tolist()
    return Law(math.exp(e), math.exp(a + alpha * log_n), math.exp(b + beta * log_d), alpha, beta)


def _notes(best_P: Array, resampled_SP: Array, loss_R: Array, level: float) -> list[str]:
    notes = [
        f"{name} stands at its bound {value:g}: the runs do not show this term"
        for name, value, low, high in zip(("alpha", "beta"), best_P[3:], LOWEST[3:], HIGHEST[3:], strict=True)
        if not low * 1.01 < value < high * 0.99
    ]
    tail = 50 * (1 - level)
    low, high = np.percentile(np.exp(resampled_SP[:, 0]), [tail, 100 - tail])
    if math.exp(best_P[0]) < 0.01 * loss_R.min():
        notes.append("the runs show no floor E: they are far from it, and predictions far beyond them are too low")
    elif high - low > 0.5 * loss_R.min():
        notes.append(f"E lies anywhere between {low:.2f} and {high:.2f}: predictions far beyond the runs are guesses")
    return notes
