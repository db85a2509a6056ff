"""Local time and where it stands in a day, a week, a year, as sine and cosine.

In compiled code without a mathematical library, so that the numbers are the same bits everywhere.
"""

from datetime import UTC, datetime, timedelta
from functools import cache
from math import factorial
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from streamlstm.jit import njit

SECOND = 1_000_000_000
MINUTE, HOUR, DAY = 60 * SECOND, 3600 * SECOND, 86400 * SECOND
WEEK, YEAR = 7 * DAY, 31_556_952 * SECOND  # the mean Gregorian year
PERIODS = {"hour": DAY, "week": WEEK, "year": YEAR}
"""Length of each phase by its name in a spec, ns."""
UTC_ALONE = (np.zeros(1, np.int64), np.zeros(1, np.int64))
"""What :func:`utc_offsets` gives for UTC."""
_SINE = tuple((-1.0) ** (n // 2) / factorial(n) for n in range(17, 0, -2))


@cache
def utc_offsets(name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Transitions of a time zone from 1970 to 2100: from when (UTC ns), local minus UTC (ns)."""
    zone = ZoneInfo(name)

    def offset(second: int) -> int:
        delta = datetime.fromtimestamp(second, UTC).astimezone(zone).utcoffset() or timedelta()
        return round(delta.total_seconds())

    week = WEEK // SECOND
    at, shifts = [0], [offset(0)]
    for start in range(0, 130 * YEAR // SECOND, week):
        low, high = start, start + week
        if offset(high) == shifts[-1]:
            continue
        while high - low > 1:
            middle = (low + high) // 2
            if offset(middle) == shifts[-1]:
                low = middle
            else:
                high = middle
        at.append(high)
        shifts.append(offset(high))
    return np.array(at, np.int64) * SECOND, np.array(shifts, np.int64) * SECOND


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def local_shift(shift_at: NDArray[np.int64], shift: NDArray[np.int64], ts: int) -> int:
    """Local time minus UTC at ``ts``, by bisection."""
    low, high = 0, len(shift_at)
    while high - low > 1:
        middle = (low + high) // 2
        if shift_at[middle] <= ts:
            low = middle
        else:
            high = middle
    return shift[low]


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def sin_cos(turn: float) -> tuple[float, float]:
    """Sine and cosine of a phase in [0, 1), in turns; within 1e-10, the same bits everywhere."""
    return _sin_quarter(_fold(turn)), _sin_quarter(_fold(turn + 0.25))


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _fold(turn: float) -> float:
    """The phase in [-1/4, 1/4] of the same sine."""
    turn -= np.floor(turn + 0.5)
    if turn > 0.25:
        return 0.5 - turn
    if turn < -0.25:
        return -0.5 - turn
    return turn


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _sin_quarter(turn: float) -> float:
    """Taylor's series of sin(2 pi turn) to the 17th power, |turn| <= 1/4; within 1e-13."""
    a = 6.283185307179586 * turn
    total = 0.0
    for coefficient in _SINE:
        total = total * (a * a) + coefficient
    return total * a
