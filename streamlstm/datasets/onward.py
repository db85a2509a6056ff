"""When the ticks to come are due: steps of months, of (working) days, or of a fixed length."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamlstm.datasets.times import ENOUGH, spacing_of

DAY = np.timedelta64(1, "D")
Times = NDArray[np.datetime64]


class Onward(NamedTuple):
    """How the times of a table go on."""

    months: int = 0
    """from one to the next; 0: none"""
    at_the_end: bool = False
    """of these months"""
    days: int = 0
    """from one to the next, whatever clocks do; 0: none"""
    working_days: bool = False
    timezone: str = "UTC"

    @property
    def length(self) -> int:
        """Of a usual step, ns; 0 where it is a fixed one."""
        days = 1 if self.working_days else self.days or 30.437 * self.months
        return round(days * DAY.astype("timedelta64[ns]").astype(int))

    def after(
        self, last: NDArray[np.int64], step: NDArray[np.int64], ahead: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """(n, m) ns, the times ``ahead`` (m,) steps after ``last`` (n,), ns.

        ``step`` (n,) is the length of one, ns, where it is a fixed one.
        """
        if not self.length:
            return last[:, None] + step[:, None] * ahead
        to: Any
        local = _local(last, self.timezone)[:, None]
        days = local.astype("datetime64[D]")
        if self.working_days:
            to = np.busday_offset(days, ahead, roll="backward")
        elif self.days:
            to = days + self.days * ahead * DAY
        else:
            months = local.astype("datetime64[M]")
            then = months + self.months * ahead
            to = then.astype("datetime64[D]") + (days - months.astype("datetime64[D]"))
            if self.at_the_end:
                to = (then + 1).astype("datetime64[D]") - DAY
        times = pd.DatetimeIndex((to + (local - days)).ravel())
        zoned = times.tz_localize(
            self.timezone, ambiguous=np.ones(len(times), bool), nonexistent="shift_forward"
        )
        return zoned.as_unit("ns").asi8.reshape(to.shape)


def onward(times: Sequence[NDArray[np.int64]], timezone: str = "UTC") -> list[Onward]:
    """How the times (n,) of each series, ns since the epoch, go on: as those of the longest do.

    But a series that is spaced otherwise goes on as its own times do. They are looked at in local
    time, by which months and days begin.
    """
    longest = max(times, key=len)
    as_it = _onward(longest, timezone)
    if len(longest) < ENOUGH:
        return [as_it] * len(times)
    usual = spacing_of(longest)
    return [
        as_it if len(ts) < ENOUGH or 0.8 < spacing_of(ts) / usual < 1.25 else _onward(ts, timezone)
        for ts in times
    ]


def _onward(ts: NDArray[np.int64], timezone: str) -> Onward:
    """How the times of one series go on."""
    if len(ts) < 3:
        return Onward()
    local = _local(ts, timezone)
    days, months = local.astype("datetime64[D]"), local.astype("datetime64[M]")
    if len(np.unique(local - days)) > 1:  # another time of day
        return Onward()
    apart = np.diff(months).astype(int)
    usual = int(np.median(apart))
    if apart.min() > 0 and not (apart % usual).any():
        of_month = days - months.astype("datetime64[D]")
        if (of_month == of_month[0]).all() and of_month[0] < 28 * DAY:
            return Onward(usual, timezone=timezone)
        if (days + DAY == (months + 1).astype("datetime64[D]")).all():
            return Onward(usual, at_the_end=True, timezone=timezone)
    gaps = np.diff(days).astype(int)
    usual = int(np.median(gaps))
    if usual == 1 and len(days) >= ENOUGH and np.is_busday(days).all():
        return Onward(working_days=True, timezone=timezone)
    if usual > 0 and not (gaps % usual).any():
        return Onward(days=usual, timezone=timezone)
    return Onward()


def _local(ts: NDArray[np.int64], timezone: str) -> Times:
    stamps = pd.DatetimeIndex(pd.to_datetime(ts)).tz_localize("UTC").tz_convert(timezone)
    return np.asarray(stamps.tz_localize(None).as_unit("ns"), "datetime64[ns]")
