"""Where training begins: the best naive forecast of each step ahead, corrected linearly.

A barely trained network is then no worse than a linear model, and a linear model that was given
nothing to learn no worse than the naive forecast.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm.model import Blend, Spec
from streamlstm.samples import Pairs, evenly, gather

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
SERIES = 256
"""The linear correction is fitted to no more series than these."""
ROWS, FEWER, FORECASTS = 20_000, 6_000, 2_000_000
"""And to no more rows, evenly spaced; to fewer where these would have more forecasts than that."""
PENALTIES = 0.003, 0.01, 0.1, 1.0
SHORT = 2000
"""Ticks to fit to, beyond which the first of these penalties is taken without a trial."""


class Start(NamedTuple):
    """A linear forecast: a naive one, and what corrects it."""

    spec: Spec
    """of the model; the weights of its blend, if it has one, are those below"""
    naive: Floats
    """(outputs, terms) weights of the blend that is the naive forecast: zeros and ones"""
    blend: Floats
    """(outputs, terms) what the correction adds to them"""
    skip: Floats
    """(outputs, width)"""
    bias: Floats
    """(outputs,)"""

    def blended(self, share: Floats | float, smoothed: Floats | float = 0) -> Spec:
        """The spec whose base is the naive forecast and a share (outputs,) of its correction.

        Of the naive forecast a share may be ``smoothed``: given by the smoothing, if there is one.
        """
        if self.spec.blend is None:
            return self.spec
        weights = self.naive + np.reshape(share, (-1, 1)) * self.blend
        if self.spec.smoothing:
            weights += np.reshape(smoothed, (-1, 1)) * ([0, 0, 0, 1] - self.naive)
        return with_blend(self.spec, weights)


def with_blend(spec: Spec, weights: Floats) -> Spec:
    """``spec`` with other weights (outputs, terms) of its blend."""
    assert spec.blend is not None
    rows = tuple(tuple(map(float, row)) for row in weights)
    blend = Blend(**dict(spec.blend) | {"weights": rows})
    return spec.model_copy(update={"blend": blend})


def linear_start(spec: Spec, pairs: Pairs, cuts: Sequence[int], penalty: float) -> Start:
    """Fit the linear forecast to what lies before the cuts of (ts, values) pairs."""
    outputs = spec.outputs
    x, target, terms = _examples(spec, pairs, cuts)
    naives, picks = np.zeros((1, len(terms))), np.zeros(outputs, int)
    if terms:  # the latest value, or the value one short or one long season before the step
        naives = np.eye(3, len(terms), -1)
        errors = [np.abs(off) for off in (target, target - terms[0], target - terms[1])]
        picks = np.argmin([trimmed_mean(error) for error in errors], axis=0)
    blend, skip = np.zeros((outputs, len(terms))), np.zeros((outputs, spec.width))
    bias = np.zeros(outputs)
    for k, pick in enumerate(picks):
        left = target[:, k] - (terms[pick - 1][:, k] if pick else 0)
        known = np.isfinite(left)
        if known.any():
            shown = np.concatenate([x, *(term[:, k : k + 1] for term in terms)], axis=1)
            found, bias[k] = ridge(shown[known], left[known], penalty)
            skip[k], blend[k] = found[: spec.width], found[spec.width :]
    return Start(spec, naives[picks], blend, skip, bias)


class Earlier(NamedTuple):
    """A span before the cuts: (n, outputs) of each, as seen from the naive forecast."""

    target: Singles
    """NaN where there is none"""
    smoothed: Singles
    """what smoothing answers"""
    linear: Singles
    """what the linear start does"""
    least: Singles
    """the floor of the forecasts"""
    part: Floats
    """(n, targets) as a pool has it"""
    rows: NDArray[np.int64]
    """(n,) where each lies in the pool"""


def earlier(
    spec: Spec, pairs: Pairs, cuts: Sequence[int], penalty: float, least: int
) -> Iterator[Earlier]:
    """How smoothing and linear starts do on spans before the cuts, fitted to what lies before.

    The spans are as long as what lies after the cuts, and go back to the middle of what lies before
    them, or to tick ``least`` of a series.
    """
    late = [len(ts) - cut for (ts, _), cut in zip(pairs, cuts, strict=True)]
    for back in itertools.count(1):
        begins = [cut - back * length for cut, length in zip(cuts, late, strict=True)]
        used = [i for i, at in enumerate(begins) if at >= max(least, cuts[i] / 2)]
        if not used:
            return
        ends = [begins[i] + late[i] for i in used]
        past = [(pairs[i][0][:end], pairs[i][1][:end]) for i, end in zip(used, ends, strict=True)]
        begun = [begins[i] for i in used]
        start = linear_start(spec, past, begun, penalty)
        naive, smoothing, pool = (
            gather(start.blended(*shares), past, begun) for shares in ((0, 0), (0, 1), (1, 0))
        )
        rows = pool.after_cut()
        target = naive.target[rows]
        left = pool.target[rows] - (pool.x[rows] @ start.skip.T + start.bias)
        smoothed, answer = target - smoothing.target[rows], (target - left).astype(np.float32)
        yield Earlier(target, smoothed, answer, naive.least_of(rows), pool.part[rows], rows)


def best_penalty(spec: Spec, pairs: Pairs, cuts: Sequence[int], least: int) -> float:
    """Of ``PENALTIES`` that with which linear starts err least on spans :func:`earlier`.

    Where there are more than ``SHORT`` ticks before the cuts, or no such span, the first.
    """
    if sum(cuts) > SHORT:
        return PENALTIES[0]

    def error(penalty: float) -> float:
        spans = [
            (np.nansum(np.abs(s.target - s.linear), axis=0), np.nansum(np.abs(s.target), axis=0))
            for s in earlier(spec, pairs, cuts, penalty, least)
        ]
        ours, naive = np.sum(spans, axis=0) if spans else np.zeros((2, 1))
        return float(np.mean(ours / np.maximum(naive, 1e-12)))

    return min(PENALTIES, key=error)


def _examples(
    spec: Spec, pairs: Pairs, cuts: Sequence[int]
) -> tuple[NDArray[np.float32], NDArray[np.float32], list[NDArray[np.float32]]]:
    """x, targets as seen from the latest value, and how far each term of a blend moves the base."""
    few = evenly(len(pairs), SERIES)
    pairs, cuts = [pairs[i] for i in few], [cuts[i] for i in few]
    zero = np.zeros((spec.outputs, len(spec.blend.weights[0]) if spec.blend else 0))
    pool = gather(with_blend(spec, zero) if spec.blend else spec, pairs, cuts)
    rows = pool.before_cut()
    rows = rows[evenly(len(rows), min(ROWS, max(FEWER, FORECASTS // spec.outputs)))]
    x, target = pool.x[rows], pool.target[rows]
    terms = []
    for term in range(zero.shape[1]):
        weights = zero.copy()
        weights[:, term] = 1
        terms.append(target - gather(with_blend(spec, weights), pairs, cuts).target[rows])
    return x, target, terms


def trimmed_mean(errors: NDArray[Any]) -> Floats:
    """(columns,) mean of the lower 90 % of each column of errors, NaN left out."""
    ordered = np.sort(errors, axis=0)  # NaN last
    kept = np.ceil(0.9 * np.isfinite(errors).sum(axis=0)).astype(int)
    lower = np.where(np.arange(len(errors))[:, None] < kept, ordered, 0)
    return lower.sum(axis=0, dtype=np.float64) / np.maximum(kept, 1)


def ridge(x: NDArray[Any], target: NDArray[Any], penalty: float) -> tuple[Floats, float]:
    """Robust linear regression of target (n,) on x (n, I): coefficients (I,) and intercept.

    Huber's loss, which turns from square to line at three times the median error, by iteratively
    reweighted least squares (Holland & Welsch 1977). ``penalty`` shrinks each coefficient, in
    shares of the weighted mean square of its column.
    """
    a = np.concatenate([x, np.ones((len(x), 1))], axis=1, dtype=np.float64)
    y = target.astype(np.float64)
    weight: NDArray[Any] = np.ones(len(y))
    solution: Floats = np.zeros(a.shape[1])
    for _ in range(6):
        weighted = a * weight[:, None]
        square = weighted.T @ a
        shrink = penalty * np.diag(square) + 1e-9 * len(y)
        shrink[-1] = 1e-9 * len(y)
        before = solution
        solution = np.linalg.solve(square + np.diag(shrink), weighted.T @ y)
        off = np.abs(a @ solution - y)
        weight = np.minimum(1, 3 * (np.median(off) + 1e-9) / np.maximum(off, 1e-12))
        if np.abs(solution - before).max() < 1e-4:
            break
    return solution[:-1], float(solution[-1])
