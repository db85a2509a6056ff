"""How good the forecasts are, live: those whose tick has come, by step ahead.

Beside their errors stand those of two naive forecasts, the latest value and that of the season
before, and whether the tick lay within the interval that was issued. Errors count in units of the
scale of their series, so that those of many series add up.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm.intervals import Bands, Plan
from streamlstm.jit import njit
from streamlstm.memory import beyond, row_of
from streamlstm.watch import ALARM, DRIFT, LIKELIHOOD, MEASURES, Watched, look
from streamlstm.watch import ERROR as SIGNED

ERROR, NAIVE, SEASONAL, INSIDE = range(4)
"""What is marked of a forecast whose tick came."""


class Score(NamedTuple):
    """What became of forecasts, by scored step."""

    scored: NDArray[np.float64]
    """(scored,) forecasts whose tick came"""
    covered: NDArray[np.float64]
    """(scored,) of them those within their interval"""
    error: NDArray[np.float64]
    """(scored,) sum of their absolute errors, in units of the scale of the series"""
    naive: NDArray[np.float64]
    """(scored,) the same of the value that was the latest when they were made"""
    seasonal: NDArray[np.float64]
    """(scored,) the same of the latest value at the phase of the season that they were for, or
    of the latest where there was none"""


class Quality(NamedTuple):
    """What is scored, and its sums."""

    marks: NDArray[np.float32]
    """(n, scored, targets, 4) of the ticks of a batch; a NaN error where none was due"""
    measures: NDArray[np.float64]
    """(n, measures) what is told of each, :data:`streamlstm.watch.MEASURES`"""
    sums: Score
    alarms: NDArray[np.int64]
    """(2,) ticks that were anomalies, drifts"""

    @classmethod
    def of(cls, plan: Plan, targets: int, n: int) -> "Quality":
        """Nothing scored yet; room for ``n`` ticks."""
        steps = len(plan.steps)
        return cls(
            np.full((n, steps, targets, 4), np.nan, np.float32),
            np.full((n, len(MEASURES)), np.nan),
            Score(*(np.zeros(steps) for _ in Score._fields)),
            np.zeros(2, np.int64),
        )


# _nrt=False: nothing here owns an array, and reference counts would cost more than the work.
@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def mark(
    plan: Plan,
    bands: Bands,
    past: NDArray[np.float64],
    season: int,
    quality: Quality,
    slot: int,
    place: int,
    steps: int,
    values: NDArray[np.float64],
    tick: int,
    scale: NDArray[np.float64],
    row: int,
    targets: int,
) -> None:
    """Look at the forecasts that were made for the tick at ``place``, ``steps`` after the latest.

    ``past`` (series, history, targets) is that of :class:`streamlstm.features.Memory`, the rest as
    :func:`streamlstm.intervals.surround`, before which this is called, is given it. The interval
    looked at is the main one.
    """
    marks, history = row_of(quality.marks, tick), past.shape[1]
    pending, reaches, before = (
        row_of(bands.pending, slot), row_of(bands.reach, slot), row_of(past, slot)
    )  # fmt: skip
    value, size, many = row_of(values, tick), row_of(scale, row), len(plan.coverages)
    quality.measures[tick, SIGNED] = np.nan
    for a in range(len(plan.steps)):
        k = plan.steps[a]
        at = plan.ring[a] + place % k
        for j in range(targets):
            here = beyond(marks, 4 * (a * targets + j))
            here[ERROR] = np.nan
            if place < k or steps > k:  # no forecast was made then
                continue
            reach = np.float64(reaches[at * many * targets + j])
            off = value[j] - pending[at * targets + j]
            error, unit = abs(off), 1.0 / size[j]
            if a == j == 0:
                quality.measures[tick, SIGNED] = off
            if not (error >= 0.0 and reach >= 0.0):
                continue
            here[ERROR] = error * unit
            here[INSIDE] = error <= reach
            here[NAIVE] = np.nan
            if k < history:
                latest = before[(place - k) % history * targets + j]
                here[NAIVE] = abs(value[j] - latest) * unit
            here[SEASONAL] = here[NAIVE]
            if season > 0:
                back = season * ((k + season - 1) // season)
                if place >= back and back < history:
                    then = before[(place - back) % history * targets + j]
                    here[SEASONAL] = abs(value[j] - then) * unit


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def judge(
    watched: Watched, quality: Quality, slot: int, tick: int, season: int, targets: int
) -> None:
    """Let a series see what was marked of its tick, of the first scored step."""
    marks = row_of(quality.marks, tick)
    error = last = seasonal = inside = 0.0
    known = 0.0
    for j in range(targets):
        here = beyond(marks, 4 * j)
        if here[ERROR] >= 0.0:
            known += 1.0
            error += here[ERROR]
            last += here[NAIVE]
            seasonal += here[SEASONAL]
            inside += here[INSIDE]
    share = 1.0 / known
    look(
        watched, slot, error * share, last * share, seasonal * share, season, inside * share,
        quality.measures, tick,
    )  # fmt: skip


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def tally(quality: Quality, tick: int) -> None:
    """Count what was marked of a tick."""
    marks = quality.marks
    for a in range(marks.shape[1]):
        for j in range(marks.shape[2]):
            if marks[tick, a, j, ERROR] >= 0.0:
                quality.sums.scored[a] += 1.0
                quality.sums.covered[a] += marks[tick, a, j, INSIDE]
                quality.sums.error[a] += marks[tick, a, j, ERROR]
                quality.sums.naive[a] += marks[tick, a, j, NAIVE]
                quality.sums.seasonal[a] += marks[tick, a, j, SEASONAL]
    if quality.measures[tick, LIKELIHOOD] >= ALARM:
        quality.alarms[0] += 1
    if quality.measures[tick, DRIFT] > 0.0:
        quality.alarms[1] += 1
