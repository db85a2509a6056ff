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

from streamlstm.averages import weight
from streamlstm.jit import njit
from streamlstm.memory import Fields, row_of

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
NEVER = 4.0
"""Deviations above the mean that are no alarm yet."""
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
    told: bool
    """whether all measures are; else only what is an alarm is known of them"""
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
    count, averages = row_of(watched.watched, slot), row_of(watched.averages, slot)
    said = row_of(measures, tick)
    said[ANOMALY] = said[LIKELIHOOD] = np.nan
    said[DRIFT] = 0.0
    if error < np.inf:  # a number, then
        beside = np.nan  # the error that usually goes with such a one of the latest value
        if count[1] >= ENOUGH and averages[LAST] > 0.0:
            beside = last * averages[MODEL] / averages[LAST]
        _usual(count, averages, watched.told, error, beside, said)
        _average(averages, INSIDE, inside, weight(count[2] + 1, MEMORY))
        count[2] = min(count[2] + 1, MEMORY)
        if last + seasonal < np.inf:
            share = weight(count[1] + 1, MEMORY)
            _average(averages, MODEL, error, share)
            _average(averages, LAST, last, share)
            _average(averages, SEASONAL, seasonal, share)
            count[1] = min(count[1] + 1, MEMORY)
    if not watched.told:
        return
    model, some = np.float64(averages[MODEL]), count[1] > 0
    said[COVERAGE] = averages[INSIDE] if count[2] > 0 else np.nan
    last, seasonal = np.float64(averages[LAST]), np.float64(averages[SEASONAL])
    said[OVER_LAST] = model / last if some and last > 0.0 else np.nan
    some &= season > 0 and seasonal > 0.0
    said[OVER_SEASONAL] = model / seasonal if some else np.nan


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _usual(
    seen: NDArray[np.int32],
    averages: NDArray[np.float32],
    told: bool,
    error: float,
    beside: float,
    said: NDArray[np.float64],
) -> None:
    """Compare an error with what is usual, and let it count for that."""
    count, usual = seen[0], np.float64(averages[USUAL])
    if count > 0 and usual > 0.0:
        anomaly = error / (error + usual)
        lately = np.float64(averages[LATELY])
        lately += (anomaly - lately) * weight(count, SHORT)
        mean, variance = np.float64(averages[MEAN]), np.float64(averages[VARIANCE])
        said[ANOMALY] = anomaly
        if count >= ENOUGH:
            sigma = np.sqrt(max(variance, LEAST_VARIANCE))
            off = lately - max(mean, LEAST_MEAN)
            if told or off > NEVER * sigma:  # else it is no alarm, and nobody asks
                said[LIKELIHOOD] = 1.0 - 0.5 * erfc(off / (sigma * np.sqrt(2.0)))
        if beside < np.inf:
            excess = (min(error, CAPPED * usual) - TOLERATED * beside) / usual
            excess = max(0.0, excess + averages[EXCESS])
            if excess > LIMIT:
                said[DRIFT] = 1.0
                excess, count = np.float64(0.0), np.int32(0)
                seen[1] = 0
            averages[EXCESS] = excess
        off = lately - mean
        share = weight(max(count, 1), MEMORY)
        averages[LATELY] = lately
        averages[MEAN] = mean + share * off
        averages[VARIANCE] = (1.0 - share) * (variance + share * off * off)
    _average(averages, USUAL, error, weight(count + 1, MEMORY))
    seen[0] = min(count + 1, MEMORY)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _average(averages: NDArray[np.float32], which: int, value: float, share: float) -> None:
    """Let a value count for a share of an average."""
    before = np.float64(averages[which])
    averages[which] = before + (value - before) * share
