"""Prediction intervals from each series' own past errors: conformal inference, online.

For each scored step k a series keeps the intervals that it issued for the ticks to come. When a
tick arrives, the one issued k steps ago is scored, and the half-width for k moves by a fixed share:
wider by ``RATE * coverage`` of itself when the tick lay outside, narrower by
``RATE * (1 - coverage)`` when inside. That is adaptive conformal inference (Gibbs & Candes 2021) as
quantile tracking (Angelopoulos, Candes & Tibshirani 2023), in the log of the width: in the long run
a share 1 - coverage of what was issued misses, whatever the data do. Half-widths are in units of
the series' scale, so they follow it. Steps between two scored ones take the line between theirs,
bent as the model's errors on unseen data rise between them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm.jit import njit
from streamlstm.memory import Fields, records
from streamlstm.model import Errors
from streamlstm.placed import placed

RATE = 0.02
"""Share of itself by which a half-width moves at a miss (times coverage)."""


class Plan(NamedTuple):
    """What compiled code needs to know: which steps are scored, and where their rings lie."""

    coverage: float
    steps: NDArray[np.int64]
    """(scored,) rising, from 1; none where intervals are off"""
    ring: NDArray[np.int64]
    """(scored + 1,) where the ring of each scored step begins in ``pending``"""
    left: NDArray[np.int64]
    """(horizon,) index of the scored step at or below each step"""
    share: NDArray[np.float64]
    """(horizon,) weight of the scored step after that one"""
    shape: NDArray[np.float64]
    """(horizon, targets) half-width over what the line says"""
    initial: NDArray[np.float32]
    """(scored, targets) half-widths of a new series, in units of its scale; NaN: not known"""


class Bands(NamedTuple):
    """What a series keeps for its intervals: one row a series."""

    pending: NDArray[np.float64]
    """(series, sum of scored steps, targets) forecasts, each at its place modulo k in the ring of
    step k; NaN where a tick was missed"""
    reach: NDArray[np.float32]
    """(series, sum of scored steps, targets) half-widths issued with them, raw"""
    width: NDArray[np.float32]
    """(series, scored, targets) half-widths over scale"""


def bands_fields(plan: Plan) -> Fields:
    """Name, dtype and shape of one series' row of :class:`Bands`."""
    scored, targets = plan.initial.shape
    return {
        "pending": (np.float64, (int(plan.ring[-1]), targets)),
        "reach": (np.float32, (int(plan.ring[-1]), targets)),
        "width": (np.float32, (scored, targets)),
    }


def plan(
    horizon: int, targets: int, coverage: float, errors: Errors | None, steps: Sequence[int]
) -> Plan:
    """Lay out the scoring of ``steps`` ahead, rising; ``coverage`` 0 turns intervals off."""
    scored = np.array(steps if coverage else (), np.int64)
    count, every = len(scored), np.arange(1, horizon + 1)
    initial = np.full((count, targets), np.nan, np.float32)
    shape, left, share = np.ones((horizon, targets)), np.zeros(horizon, np.int64), np.zeros(horizon)
    if count:
        left = np.maximum(np.searchsorted(scored, every, side="right") - 1, 0)
        share = np.interp(every, scored, np.arange(count)) - left
    if errors is not None and count:
        known = errors.at(coverage).reshape(horizon, targets)
        initial[:] = known[scored - 1]
        line = np.stack([np.interp(every, scored, of) for of in initial.T], axis=1)
        np.divide(known, line, out=shape, where=(line > 0) & (known > 0))
    ring = np.concatenate(([0], np.cumsum(scored)))
    return Plan(coverage, scored, ring, left, share, shape, initial)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def surround(
    plan: Plan,
    bands: Bands,
    slot: int,
    place: int,
    steps: int,
    values: NDArray[np.float64],
    tick: int,
    scale: NDArray[np.float64],
    row: int,
    point: NDArray[np.float64],
    quantiles: NDArray[np.float64],
    to: int,
    warm: bool,
) -> None:
    """Learn from the tick at ``place``, then write the interval around the forecast made there.

    The tick came ``steps`` after the one before it; at ``place`` 0 the series begins anew. A
    ``warm`` one is history, maybe that which the model was fitted on: it teaches only where the
    model brings no errors on unseen data to start from. All are raw: its ``values`` (n, at least
    targets) at ``tick``, ``scale`` (n, targets) at ``row``, ``point`` (n, horizon, targets) and the
    ``quantiles`` (n, 2, horizon, targets) to be written at ``to``.
    """
    pending, reach, width, targets = bands.pending, bands.reach, bands.width, scale.shape[1]
    for a in range(len(plan.steps)):
        k, ring = plan.steps[a], plan.ring[a]
        for missed in range(max(place - steps + 1, place - k), place):
            for j in range(targets):
                pending[slot, ring + missed % k, j] = np.nan
        at = ring + place % k
        for j in range(targets):
            if place == 0:
                width[slot, a, j] = plan.initial[a, j]
            elif place >= k and not (warm and plan.initial[a, j] >= 0.0):
                # here lies what was issued k steps ago
                error = abs(values[tick, j] - pending[slot, at, j])
                if error <= reach[slot, at, j]:
                    width[slot, a, j] *= 1.0 - RATE * (1.0 - plan.coverage)
                elif width[slot, a, j] > 0.0 and error > 0.0:
                    width[slot, a, j] *= 1.0 + RATE * plan.coverage
                elif error >= 0.0:  # nothing to widen yet; NaN, after a gap, says nothing
                    width[slot, a, j] = error / scale[row, j]
            pending[slot, at, j] = point[to, k - 1, j]
            reach[slot, at, j] = np.float32(width[slot, a, j] * scale[row, j])
    for k in range(point.shape[1]):
        for j in range(targets):
            half = np.nan
            if len(plan.steps):
                a, share = plan.left[k], plan.share[k]
                half = np.float64(width[slot, a, j])
                if share > 0.0:
                    half += share * (width[slot, a + 1, j] - half)
                half *= plan.shape[k, j] * scale[row, j]
            quantiles[to, 0, k, j] = point[to, k, j] - half
            quantiles[to, 1, k, j] = point[to, k, j] + half


def around(
    layout: Plan, place: NDArray[np.int64], y: NDArray[np.float64], point: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper ends, (n, horizon), that one series would have had around any forecasts.

    ``place`` (n,) of each tick on its grid, ``y`` (n,), ``point`` (n, horizon) made there.
    """
    n, horizon = point.shape
    bands = placed(Bands(**records(bands_fields(layout), 1)))
    quantiles = np.empty((n, 2, horizon, 1))
    _around(placed(layout), bands, place, y[:, None], np.ones((1, 1)), point[:, :, None], quantiles)
    return quantiles[:, 0, :, 0], quantiles[:, 1, :, 0]


@njit(cache=True, error_model="numpy", _nrt=False)
def _around(
    plan: Plan,
    bands: Bands,
    place: NDArray[np.int64],
    values: NDArray[np.float64],
    scale: NDArray[np.float64],
    point: NDArray[np.float64],
    quantiles: NDArray[np.float64],
) -> None:
    before = place[0] - 1 if len(place) else 0
    for i in range(len(place)):
        surround(
            plan, bands, 0, place[i], place[i] - before, values, i, scale, 0, point, quantiles, i,
            False,
        )  # fmt: skip
        before = place[i]
