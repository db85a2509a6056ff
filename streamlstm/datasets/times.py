"""Times of rows: texts, numbers or counted steps to nanoseconds since the Unix epoch, UTC."""

import itertools
import re
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
from numpy.typing import NDArray

MISSING = ["", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "#N/A"]
"""Texts that stand for a value that was not measured."""

_ZONE = re.compile(r"\d:\d\d.*(?:Z|UTC|[+-]\d\d(?::?\d\d)?)$", re.IGNORECASE)
_DOTTED = r"^\s*\d{1,2}\.\s?\d{1,2}\.\s?\d{4}"  # nobody writes the month first with points
_QUARTER = r"^\s*(\d{4})[\s-]*[Qq]([1-4])\s*$"
_TWELVE = r"^(.*[\sT,])(\d{1,2})(:\d\d)?((?::\d\d(?:\.\d+)?)?)\s*([AaPp])\.?[Mm]\b\.?(.*)$"
_MONTHS = "%Y %b", "%b %Y", "%Y %B", "%B %Y"
_EPOCH_UNITS = (
    (1e17, "nanoseconds", 1),
    (1e14, "microseconds", 1_000),
    (1e11, "milliseconds", 1_000_000),
    (1e8, "seconds", 1_000_000_000),
)
"""The smallest number taken for a Unix time in a unit (1973), and how many nanoseconds that has."""
ENOUGH = 10
"""Ticks that tell how a series is spaced; days without a weekend that tell of working days."""
_HOUR = 3_600_000_000_000
Where = Callable[[int], str]
"""What to call row ``i`` of the source in a message."""


class DataError(ValueError):
    """Data that cannot be used as asked; the message is one line and says the mend."""


def counted(
    start: str, freq: str, timezone: str, bounds: NDArray[np.int64], notes: list[str]
) -> NDArray[np.int64]:
    """Timestamps of rows that are counted from ``start``, in each series anew."""
    try:
        begin = pd.Timestamp(start)
    except ValueError as error:
        raise DataError(f"--start {start!r} is not a time; write it as 2000-06-05 00:00") from error
    begin = (begin.tz_localize(timezone) if begin.tz is None else begin).tz_convert(timezone)
    longest = int(np.diff(bounds).max())
    try:
        index = pd.date_range(begin, periods=longest, freq=_spacing(freq))
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"--freq {freq!r} is not understood; write 30min, 1h, D, MS or another offset of pandas"
        ) from error
    ts = index.tz_convert("UTC").as_unit("ns").asi8
    if begin.as_unit("ns").value != ts[0]:
        notes.append(f"the first {freq} from {start} on is {index[0]}")
    return np.concatenate([ts[: end - at] for at, end in itertools.pairwise(bounds)])


def _spacing(freq: str) -> Any:
    """A calendar offset such as MS, or else a duration such as 30m; ValueError if neither."""
    if not any(map(str.isalpha, freq)):
        raise ValueError("no unit")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of spellings that pandas is about to give up
        try:
            spacing: Any = pd.tseries.frequencies.to_offset(freq)
        except ValueError:
            spacing = pd.Timedelta(freq if freq[:1].isdigit() else f"1{freq}")
    if pd.Timestamp(0) + spacing <= pd.Timestamp(0):
        raise ValueError("does not advance")
    return spacing


@dataclass(frozen=True)
class Stamps:
    """Times of all rows; ``later`` is the second reading where a clock went back, else the same."""

    ns: NDArray[np.int64]
    later: NDArray[np.int64]
    texts: "pd.Series[Any]"
    zoned: bool = False
    """whether they say how far they are off UTC"""


def epoch_unit(smallest: float) -> tuple[str, int] | None:
    """The unit of Unix times of which this is the smallest, and its nanoseconds, if they are."""
    return next(((unit, ns) for least, unit, ns in _EPOCH_UNITS if smallest >= least), None)


def timestamps(column: "pd.Series[Any]", timezone: str, where: Where, notes: list[str]) -> Stamps:
    """Read a column of times: ISO 8601, other dates by their first, or Unix time by its size."""
    empty = (column.isna() | (column == "")).to_numpy()
    if empty.any():
        row = int(np.argmax(empty))
        raise DataError(f"{where(row)}: column {column.name!r} is empty; give every row a time")
    times = column
    if isinstance(column.dtype, pd.ArrowDtype) and column.dtype.kind == "M":
        times = pd.Series(pd.DatetimeIndex(column), column.index)
    elif not pd.api.types.is_datetime64_any_dtype(column.dtype):
        numbers = pd.to_numeric(column, errors="coerce")
        if numbers.notna().all() and (found := epoch_unit(numbers.min())):
            unit, factor = found
            notes.append(f"column {column.name!r} read as Unix time in {unit}")
            whole = pd.api.types.is_integer_dtype(numbers.dtype)
            values = numbers.to_numpy() * factor
            ns = (values if whole else np.rint(values)).astype(np.int64)
            return Stamps(ns, ns, column)
        times = _dates(column.astype(str), where, notes)
    if times.dt.tz is not None:
        instants = _nanoseconds(times.dt.tz_convert("UTC"), where)
        return Stamps(instants, instants, column, zoned=True)
    if timezone != "UTC":
        notes.append(f"times without a zone taken as {timezone}")
    first, later = (
        times.dt.tz_localize(timezone, ambiguous=np.full(len(times), summer), nonexistent="NaT")
        for summer in (True, False)
    )
    if first.isna().any():
        row = int(np.argmax(first.isna().to_numpy()))
        raise DataError(
            f"{where(row)}: {times.iloc[row]} does not exist in {timezone}, the clocks were"
            " put forward; choose another --timezone, or write times with their offset"
        )
    return Stamps(_nanoseconds(first, where), _nanoseconds(later, where), column)


def _dates(texts: "pd.Series[str]", where: Where, notes: list[str]) -> "pd.Series[Any]":
    """Parse ``texts``; dates that are not ISO 8601 are read in the order that makes time rise.

    Where either does, as of the first days of months, in the one that makes it rise evenly.
    """
    plain = _of_24_hours(texts) if len(texts) and re.match(_TWELVE, texts.iloc[0]) else texts
    zoned = texts.str.contains(_ZONE).to_numpy()
    aware = bool(zoned.any())
    times = pd.to_datetime(plain, format="ISO8601", errors="coerce", utc=aware)
    if times.isna().any():
        orders = ["day"] if texts.str.match(_DOTTED).all() else ["month", "day"]
        readings = [(order, _guessed(plain, order, aware)) for order in orders]
        order, reading = min(
            readings, key=lambda r: (r[1].isna().sum(), _backward(r[1]), _uneven(r[1]))
        )
        if reading.isna().sum() < times.isna().sum():
            times = reading
            notes.append(f"times such as {texts.iloc[0]!r} read with the {order} first")
    if times.isna().any() and (periods := _periods(texts)).notna().all():
        times = periods
        notes.append(f"times such as {texts.iloc[0]!r} read as {times.iloc[0]:%Y-%m-%d}")
    if times.isna().any():
        row = int(np.argmax(times.isna().to_numpy()))
        raise DataError(
            f"{where(row)}: {texts.iloc[row]!r} in column {texts.name!r} is not a time;"
            " write 2024-01-31 12:00 (or give --start and --freq)"
        )
    if aware and not zoned.all():
        row = int(np.argmax(zoned != zoned[0]))
        raise DataError(
            f"{where(row)}: {texts.iloc[row]!r} and {texts.iloc[0]!r} in one column: write"
            " all times with an offset, or none"
        )
    return times


def _of_24_hours(texts: "pd.Series[str]") -> "pd.Series[str]":
    """Those that count hours to 12, such as 1/31/2024 3:00 PM, with hours counted to 24."""
    parts = texts.str.extract(_TWELVE)
    day, hour, minutes, seconds, half, zone = (parts[column] for column in parts)
    number = hour.where(pd.to_numeric(hour) <= 12).dropna().astype(int)
    later = 12 * half[number.index].str.upper().eq("P")
    hours = (number % 12 + later).astype(str).str.zfill(2)
    read = day + hours + minutes.fillna(":00") + seconds + zone
    return read.where(read.notna(), texts)


def _periods(texts: "pd.Series[str]") -> "pd.Series[Any]":
    """First days of months and quarters, such as 1977-Jan, Jan 1977, 1970Q1 or 1970 Q1."""
    parts = texts.str.extract(_QUARTER)
    if parts.notna().all(axis=None):
        texts = parts[0] + "-" + (3 * parts[1].astype(int) - 2).astype(str)
        return pd.to_datetime(texts, format="%Y-%m")
    texts = texts.str.replace("-", " ")
    for format in _MONTHS:
        times = pd.to_datetime(texts, format=format, errors="coerce")
        if times.notna().all():
            break
    return times


def _guessed(texts: "pd.Series[str]", order: str, aware: bool) -> "pd.Series[Any]":
    """Times by the format of the first text, NaT where it does not fit."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Could not infer format")
        warnings.filterwarnings("ignore", "Parsing dates in")
        try:
            return pd.to_datetime(texts, dayfirst=order == "day", errors="coerce", utc=aware)
        except UserWarning:
            return pd.Series(pd.NaT, texts.index)


def _backward(times: "pd.Series[Any]") -> int:
    return int((np.diff(times.to_numpy("int64")) < 0).sum())


def _uneven(times: "pd.Series[Any]") -> float:
    """Share of the steps onward that are a quarter longer or shorter than the usual one."""
    since = np.diff(times.to_numpy("int64"))
    since = since[since > 0]
    return float((np.abs(since / np.median(since) - 1) > 0.25).mean()) if len(since) else 0.0


def _nanoseconds(times: "pd.Series[Any]", where: Where) -> NDArray[np.int64]:
    far = ((times.dt.year < 1678) | (times.dt.year > 2115)).to_numpy()
    if far.any():
        row = int(np.argmax(far))
        raise DataError(f"{where(row)}: times must lie between the years 1678 and 2115")
    return times.dt.as_unit("ns").astype("int64").to_numpy()


def ordered(
    stamps: Stamps,
    order: NDArray[np.int64],
    bounds: NDArray[np.int64],
    names: Sequence[str],
    column: str,
    where: Where,
) -> NDArray[np.int64]:
    """Times in series order; an hour that clocks repeat is its first pass until time goes back."""
    ts, later = stamps.ns[order].copy(), stamps.later[order]
    twice = np.flatnonzero(ts != later)
    for begin, end in itertools.pairwise(bounds) if len(twice) else ():
        latest = np.maximum.accumulate(ts[begin:end])
        here = twice[(twice > begin) & (twice < end)]
        here = here[ts[here] <= latest[here - begin - 1]]
        ts[here] = later[here]
    falls = np.flatnonzero(np.diff(ts) <= 0) + 1
    falls = falls[~np.isin(falls, bounds)]  # a new series may begin earlier
    if len(falls):
        at = int(falls[0])
        row, before = int(order[at]), int(order[at - 1])
        name = names[int(np.searchsorted(bounds, at, side="right")) - 1]
        text = stamps.texts.iloc[row]
        hint = "" if len(names) > 1 else ", or name the series by --id"
        if 0 <= ts[at - 1] - ts[at] <= 7_200_000_000_000 and ":" in str(text):
            hint += "; if the clocks were put back there, name their zone by --timezone"
        if ts[at] == ts[at - 1]:
            raise DataError(
                f"{where(row)}: series {name!r} has {text} twice; keep one row a time{hint}"
            )
        raise DataError(
            f"{where(row)}: series {name!r} goes back in time, from"
            f" {stamps.texts.iloc[before]} to {text}; sort the file by {column!r}{hint}"
        )
    return ts


def spacing_of(ts: NDArray[np.int64]) -> float:
    """Usual spacing of two or more times (n,), ns: the median."""
    return float(np.median(np.diff(ts)))


def grid_of(times: Sequence[NDArray[np.int64]]) -> tuple[int, int]:
    """Usual spacing of the times (n,) of series, ns, and step of a grid that they keep to.

    The spacing is the median over all series of their median spacing (of two the lower, which is in
    the data), 0 where it is not known; the step is 0 where more than a tenth of the ticks come
    later than they should. Ticks that are only missing from a grid do not count, unless it is shut
    at hours or days: of a market, say.
    """
    spaced = [ts for ts in times if len(ts) > 1]
    spacing = int(statistics.median_low(map(spacing_of, spaced))) if spaced else 0
    if not spacing:
        return 0, 0
    gaps = np.concatenate([np.diff(ts) for ts in spaced]) / spacing
    late = gaps > 1.5
    if late.mean() > 0.1:
        uneven = late & (np.abs(gaps - np.rint(gaps)) > 0.1)
        missing = uneven.mean() <= 0.1 and len(gaps) >= 0.5 * gaps.sum()
        if not (missing and _is_open(np.concatenate(times), spacing)):
            return spacing, 0
    return spacing, spacing


def _is_open(ts: NDArray[np.int64], spacing: int) -> bool:
    """Whether there are ticks at all hours of the day and on all days of the week.

    Of those that are longer than the spacing; not so where there are too few ticks to tell.
    """
    for unit, number in ((_HOUR, 24), (24 * _HOUR, 7)):
        if spacing <= unit:
            counts = np.bincount(ts // unit % number, minlength=number)
            if counts.mean() < 5 or counts.min() < 0.1 * counts.mean():
                return False
    return True


def check_zone(timezone: str) -> None:
    """Raise DataError unless ``timezone`` is a name of the IANA database."""
    try:
        ZoneInfo(timezone)
    except (KeyError, OSError, ValueError) as error:
        raise DataError(f"unknown time zone {timezone!r}; write it as Europe/London") from error


def is_number(text: str) -> bool:
    """Whether ``text`` is a value, or stands for a missing one."""
    try:
        float(text)
    except ValueError:
        return text.strip() in MISSING
    return True


def is_date(text: str) -> bool:
    """Whether ``text`` is a date or time, and not a mere number."""
    if is_number(text) or not any(map(str.isdigit, text)):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of dates whose order of day and month is a guess
        found = pd.to_datetime(text, errors="coerce")
        return bool(pd.notna(found)) or bool(_periods(pd.Series([text])).notna().all())
