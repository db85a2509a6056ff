"""What a series' own forecasts say of it, live: is it as usual, and are they any good?

Of the forecast that a tick answers (that of the first scored step), error e in units of the scale:

``anomaly``, from 0 to 1, is e / (e + u), where u is the usual error of the series: 0.5 for a usual
error, 0.9 for one nine times as large. Its mean over some ``SHORT`` ticks, m, is compared with what
it usually is, and how far it usually strays from that, over ``MEMORY``: ``likelihood`` is the share
of the normal distribution below m, as anomaly likelihood has it (Ahmad, Lavin, Purdy & Agha 2017,
section 3.2, whose bounds on mean and variance are taken too); from ``ALARM`` on it counts as one.

``drift`` says that the forecasts lost ground to the latest value for good: what their errors exceed
those that go with the latest value's, and half of these, adds up (CUSUM, Page 1954) to more than
``LIMIT`` usual ones. Hours in which all errs more are none, and may hide one. With it, what is
usual is learned anew.

``coverage`` is the share of ticks within their interval, ``over_last_value`` and
``over_seasonal_naive`` are the mean error over those of two naive forecasts, of the latest
``MEMORY`` ticks, or so.
"""

from math import erfc
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm.jit import njit
from streamlstm.memory import Fields

MEASURES = (
    "error", "anomaly", "likelihood", "drift", "coverage", "over_last_value", "over_seasonal_naive",
)  # fmt: skip
"""What is told of a tick, in this order: ``error`` is its value less the forecast (of several
targets the first), ``drift`` 0 or 1. Each NaN where it is not known."""
ERROR, ANOMALY, LIKELIHOOD, DRIFT, COVERAGE, OVER_LAST, OVER_SEASONAL = range(len(MEASURES))
MEMORY = 1000
"""Ticks over which averages are taken."""
SHORT = 10
"""Ticks over which the anomaly is averaged, before it is compared."""
ENOUGH = 100
"""Errors after which it is known what is usual."""
ALARM = 1 - 1e-5
"""Likelihood that counts as an anomaly, as in the Numenta Anomaly Benchmark."""
LEAST_MEAN, LEAST_VARIANCE = 0.03, 0.0003
"""Of the averaged anomaly; less is taken for these."""
CAPPED, TOLERATED, LIMIT = 4.0, 1.5, 45.0
"""Usual errors that one counts for at most; times the error that goes with the latest value's, that
is no drift; usual errors that they may exceed that by in sum. In nine million independent errors
of both, distributed exponentially, no drift was seen."""
USUAL, LATELY, MEAN, VARIANCE, EXCESS, MODEL, LAST, SEASONAL, INSIDE = range(9)
"""What is averaged: e; the anomaly over ``SHORT``, the mean of that and its variance; the sum for
the drift; errors of the model and both naive forecasts, each where all are known; within interval
or not."""


class Watched(NamedTuple):
    """What a series keeps for this: one row a series."""

    kept: bool
    """else nothing of it means anything"""
    watched: NDArray[np.int32]
    """(series, 3) errors of which what is usual is known, those that were compared with naive
    ones, and all"""
    averages: NDArray[np.float32]
    """(series, 9)"""


def watched_fields() -> Fields:
    """Name, dtype and shape of one series' row of :class:`Watched`, in its order."""
    return {"watched": (np.int32, (3,)), "averages": (np.float32, (9,))}


# _nrt=False: nothing here owns an array, and reference counts would cost more than the work.
@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def look(
    watched: Watched,
    slot: int,
    error: float,
    last: float,
    seasonal: float,
    season: int,
    inside: float,
    measures: NDArray[np.float64],
    tick: int,
) -> None:
    """Take in the errors of a tick, and write what they say to ``measures`` (n, 7) at ``tick``.

    ``error`` is the absolute one of the forecast, ``last`` and ``seasonal`` those of the naive
    forecasts, in units of the scale; NaN where there was none. ``season`` is the model's, in steps;
    0: none. ``inside``: whether the tick lay within its interval. ``measures[tick, ERROR]`` is left
    as it is.
    """
    count, averages = watched.watched, watched.averages
    measures[tick, ANOMALY] = measures[tick, LIKELIHOOD] = np.nan
    measures[tick, DRIFT] = 0.0
    if error < np.inf:  # a number, then
        beside = np.nan  # the error that usually goes with such a one of the latest value
        if count[slot, 1] >= ENOUGH and averages[slot, LAST] > 0.0:
            beside = last * averages[slot, MODEL] / averages[slot, LAST]
        _usual(watched, slot, error, beside, measures, tick)
        _average(averages, slot, INSIDE, inside, count[slot, 2])
        count[slot, 2] = min(count[slot, 2] + 1, MEMORY)
        if last + seasonal < np.inf:
            _average(averages, slot, MODEL, error, count[slot, 1])
            _average(averages, slot, LAST, last, count[slot, 1])
            _average(averages, slot, SEASONAL, seasonal, count[slot, 1])
            count[slot, 1] = min(count[slot, 1] + 1, MEMORY)
    model, some = np.float64(averages[slot, MODEL]), count[slot, 1] > 0
    measures[tick, COVERAGE] = averages[slot, INSIDE] if count[slot, 2] > 0 else np.nan
    last, seasonal = np.float64(averages[slot, LAST]), np.float64(averages[slot, SEASONAL])
    measures[tick, OVER_LAST] = model / last if some and last > 0.0 else np.nan
    some &= season > 0 and seasonal > 0.0
    measures[tick, OVER_SEASONAL] = model / seasonal if some else np.nan


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _usual(
    watched: Watched,
    slot: int,
    error: float,
    beside: float,
    measures: NDArray[np.float64],
    tick: int,
) -> None:
    """Compare an error with what is usual, and let it count for that."""
    averages, count = watched.averages, float(watched.watched[slot, 0])
    usual = np.float64(averages[slot, USUAL])
    if count > 0 and usual > 0.0:
        anomaly = error / (error + usual)
        lately = np.float64(averages[slot, LATELY])
        lately += (anomaly - lately) / min(count, SHORT)
        mean, variance = np.float64(averages[slot, MEAN]), np.float64(averages[slot, VARIANCE])
        measures[tick, ANOMALY] = anomaly
        if count >= ENOUGH:
            sigma = np.sqrt(max(variance, LEAST_VARIANCE))
            off = (lately - max(mean, LEAST_MEAN)) / sigma
            measures[tick, LIKELIHOOD] = 1.0 - 0.5 * erfc(off / np.sqrt(2.0))
        if beside < np.inf:
            excess = (min(error, CAPPED * usual) - TOLERATED * beside) / usual
            excess = max(0.0, excess + averages[slot, EXCESS])
            if excess > LIMIT:
                measures[tick, DRIFT] = 1.0
                excess, count = np.float64(0.0), 0.0
                watched.watched[slot, 1] = 0
            averages[slot, EXCESS] = excess
        off = lately - mean
        share = 1.0 / min(max(count, 1.0), MEMORY)
        averages[slot, LATELY] = lately
        averages[slot, MEAN] = mean + share * off
        averages[slot, VARIANCE] = (1.0 - share) * (variance + share * off * off)
    averages[slot, USUAL] = usual + (error - usual) / min(count + 1.0, MEMORY)
    watched.watched[slot, 0] = min(count + 1.0, MEMORY)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _average(
    averages: NDArray[np.float32], slot: int, which: int, value: float, count: int
) -> None:
    """Let one count for the average of so many."""
    before = np.float64(averages[slot, which])
    averages[slot, which] = before + (value - before) / min(count + 1, MEMORY)
