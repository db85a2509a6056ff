"""The protocols of :mod:`benchmarks.accuracy`: a function a table, which yields its rows."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.accuracy_task import (
    LEVELS,
    Bars,
    Floats,
    Measures,
    Row,
    Settings,
    Task,
    absolute_errors,
    cut,
    fitted,
    forecast,
    known_part,
    made_at,
    naive,
    naive_rows,
    our_rows,
    without_lstm,
)
from streamlstm.backtest import Actual, Issued
from streamlstm.datasets.bundled import DATASETS, load
from streamlstm.datasets.frames import SeriesData, from_frame
from streamlstm.features import grid_places

SECOND = 1_000_000_000
HOUR, DAY = 3600 * SECOND, 86_400 * SECOND
FIRST = slice(0, 1)
LITTLE = (0, 1.02)
"""Ours over the better naive forecast's error, where nothing beats that."""


def quoted(table: str, measures: dict[str, Measures]) -> Iterator[Row]:
    """Rows of the literature."""
    for method, values in measures.items():
        yield Row(table, f"{method} (quoted)", values)


def taxi(folder: Path, settings: Settings) -> Iterator[Row]:
    """Table A: passengers of New York's taxis, half-hourly, 5 steps ahead on the live stream.

    Cui, Ahmad & Hawkins 2016: fitted on the first 10,000 values, scored on the forecasts made from
    there on (7,515); altMAPE = mean |error| / mean |value|, NRMSE = RMSE / std of all values.
    """
    known, ahead = 10_000, 5
    frame = pd.read_csv(folder / "nyc_taxi.csv.gz", skiprows=[1, 2])
    (series,) = from_frame(frame, "nyc_taxi", ds="timestamp", y="passenger_count").series
    task = Task("A", [series], [known], ahead, 336, HOUR // 2, first=0)
    y = series.values[:, 0]

    def score(actual: Sequence[Actual], issued: Sequence[Issued]) -> Measures:
        target = y[known + ahead :]
        error = issued[0].point[: len(target), ahead - 1] - target
        return {
            "altMAPE": float(np.abs(error).mean() / np.abs(target).mean()),
            "NRMSE": float(np.sqrt((error**2).mean()) / y.std()),
        }

    yield from naive_rows(task, [np.arange(known, len(y))], score)
    rows = {
        "ARIMA": (0.2514, 0.704),
        "TDNN": (0.1040, 0.327),
        "ESN, online": (0.0957, 0.286),
        "LSTM, retrained weekly": (0.0819, 0.274),
        "HTM, online": (0.0809, 0.287),
        "best stored LSTM": (0.0731, 0.258),
        "best stored kNN": (0.0706, 0.259),
    }
    named = {
        method: dict(zip(("altMAPE", "NRMSE"), pair, strict=True)) for method, pair in rows.items()
    }
    yield from quoted("A", named)
    yield from our_rows(task, score, settings, {"altMAPE": (0, 0.066)})


def etth1(folder: Path, settings: Settings) -> Iterator[Row]:
    """Table B: 7 readings of a transformer, hourly, one step ahead, as FSNet and OneNet stream it.

    Learned from the first 2,880 + 720 hours, each reading in units of its deviation in the first
    2,880; then 10,800 steps; mean squared error over all readings. Ours: one model, 7 series. The
    peers learn as they go: a day and its first hour again, of the series itself or of all seven.
    """
    scaled, known, steps = 2880, 3600, 10_800
    table = from_frame(pd.read_csv(folder / "ETTh1.csv.gz"), "ETTh1", ds="date", wide=True)
    series = []
    for s in table.series:
        past = s.values[:scaled]
        values = (s.values - past.mean()) / past.std()
        series.append(SeriesData(s.name, s.ts[: known + steps], values[: known + steps]))
    task = Task("B", series, [known] * len(series), 1, 24, HOUR)

    def score(actual: Sequence[Actual], issued: Sequence[Issued]) -> Measures:
        pairs = zip(actual, issued, strict=True)
        return {"MSE": float(np.nanmean([absolute_errors(a, i) ** 2 for a, i in pairs]))}

    place = np.arange(known - 1, known + steps)
    yield from naive_rows(task, [place] * len(series), score)
    y = np.concatenate([s.values for s in series], axis=1)
    for forgetting in (0.999, 0.9995):
        for shown, groups in (("its own", np.split(y, len(series), axis=1)), ("all", [y])):
            began = time.perf_counter()
            found = np.concatenate([least_squares(g, 25, forgetting) for g in groups], axis=1)
            made = [made_at(place, one[place, None]) for one in found.T]
            method = f"recursive LS, {shown} 25 h, {forgetting}"
            yield Row("B", method, score(task.actual, made), time.perf_counter() - began)
    yield from quoted("B", {"recursive LS, 24 lags": {"MSE": 0.2263}})
    for seed in range(settings.seeds):
        whole = fitted(task, known_part(task), seed, settings)
        linear = without_lstm(task, seed, settings)
        for method, model, learning in (
            ("learning alone, no LSTM", linear, True),
            ("LSTM alone, no learning", whole, False),
        ):
            made = [forecast(model, s, known - 1, learning) for s in series]
            yield Row("B", f"{method}, seed {seed}", score(task.actual, made))
    yield from our_rows(task, score, settings, {"MSE": (0, 0.226)})


def least_squares(y: Floats, lags: int, forgetting: float) -> Floats:
    """(n, series) one step ahead forecasts of series (n, series) by recursive least squares.

    The forecast at [t] is of y[t + 1], from the latest ``lags`` values of all these series and a
    constant; it has learned from all up to t, each counting ``forgetting`` of the one after it.
    """
    n, count = y.shape
    width = lags * count + 1
    weights, inverse, forecasts = np.zeros((width, count)), 1000 * np.eye(width), y.copy()
    shown = np.zeros(width)
    for t in range(lags - 1, n):
        if t >= lags:  # what was shown before is answered now
            moved = inverse @ shown
            gain = moved / (forgetting + shown @ moved)
            weights += np.outer(gain, y[t] - shown @ weights)
            inverse = (inverse - np.outer(gain, moved)) / forgetting
        shown = np.append(y[t - lags + 1 : t + 1].ravel(), 1)
        forecasts[t] = shown @ weights
    return forecasts


def nn5(folder: Path, settings: Settings) -> Iterator[Row]:
    """Table C: 111 cash machines, daily, the last 56 days from one origin, as Monash measures it.

    The mean of the series' mean absolute errors. A gap is filled with the median of the same
    weekday in what is learned from. Ours: one model, 111 series.
    """
    ahead = 56
    days = pd.read_csv(folder / "nn5_daily.csv.gz", header=None).to_numpy(np.float64)
    known = len(days) - ahead
    ts = pd.Timestamp("1996-03-18").value + DAY * np.arange(len(days))
    for weekday in range(7):
        median = np.nanmedian(days[weekday:known:7], axis=0)
        days[weekday::7] = np.where(np.isnan(days[weekday::7]), median, days[weekday::7])
    series = [SeriesData(str(n), ts, column[:, None]) for n, column in enumerate(days.T)]
    task = Task("C", series, [known] * len(series), ahead, 7, DAY)

    def score(actual: Sequence[Actual], issued: Sequence[Issued]) -> Measures:
        pairs = zip(actual, issued, strict=True)
        return {"MAE": float(np.mean([absolute_errors(a, cut(i, FIRST)).mean() for a, i in pairs]))}

    yield from naive_rows(task, [np.array([known - 1])] * len(series), score)
    rows = {
        "TBATS": 3.70,
        "Theta": 3.80,
        "DeepAR": 3.94,
        "WaveNet": 3.97,
        "FFNN": 4.06,
        "Transformer": 4.16,
        "N-BEATS": 4.92,
    }
    yield from quoted("C", {method: {"MAE": value} for method, value in rows.items()})
    yield from our_rows(task, score, settings, {"MAE": (0, 3.80)}, judged=FIRST)


def weather(folder: Path, settings: Settings) -> Iterator[Row]:
    """Table D: temperature at New York's 3 airports, hourly, with gaps, 1 to 24 hours ahead.

    The last 60 days of each; mean absolute error, degrees F. At 24 ahead the last value and that
    of the same hour yesterday are one. Ours: one model, 3 series.
    """
    ahead = 24
    frame = pd.read_csv(folder / "nycflights_weather.csv.gz")
    frame = frame.drop_duplicates(["origin", "time_hour"])
    series = from_frame(frame, "weather", id="origin", ds="time_hour", y="temp").series
    known = [int(np.searchsorted(s.ts, s.ts[-1] - 60 * DAY)) for s in series]
    task = Task("D", series, known, ahead, 24, HOUR)
    yield from over_naive(task, settings, (1, 24), {}, {"24": LITTLE, "1 to 24": LITTLE})


def bundled(name: str) -> Callable[[Path, Settings], Iterator[Row]]:
    """The table of a bundled set: its last fifth, 1 and 24 steps ahead."""

    def table(folder: Path, settings: Settings) -> Iterator[Row]:
        (series,), data = load(name).series, DATASETS[name]
        known = len(series.ts) - round(0.2 * len(series.ts))
        spacing = int(np.median(np.diff(series.ts)))
        week = 7 * DAY // spacing if spacing < DAY else 5
        step_ns = spacing if spacing < DAY else 0  # trading days are counted
        ahead, bars = (1, 24), {"1": LITTLE, "24": LITTLE}
        if name == "electricity":
            ahead = (1, 24, 48)
            over = ((1, 0.40), (24, 0.68), (48, 0.75))
            bars = {f"{k} over last week": (0, bar) for k, bar in over}
        task = Task(name, [series], [known], ahead[-1], data.season, step_ns)
        last_week = {"last week": Task(name, [series], [known], ahead[-1], week, step_ns)}
        yield from over_naive(task, settings, ahead, last_week, bars)

    return table


def over_naive(
    task: Task,
    settings: Settings,
    steps: Sequence[int],
    beside: dict[str, Task],
    bars: Bars,
) -> Iterator[Row]:
    """Mean absolute errors over that of the better naive forecast, step by step and over all.

    ``beside``: the same with another season, whose naive forecast is looked at too.
    """
    step = task.step_ns
    place = [grid_places(step, s.ts)[n - 1 :] for s, n in zip(task.series, task.known, strict=True)]

    def errors(actual: Sequence[Actual], issued: Sequence[Issued]) -> Measures:
        pairs = zip(actual, issued, strict=True)
        off = np.concatenate([absolute_errors(a, i) for a, i in pairs])
        by_step = {str(k): float(np.nanmean(off[:, k - 1])) for k in steps}
        return by_step | {f"1 to {task.horizon}": float(np.nanmean(off))}

    plain = {row.method: row.measures for row in naive_rows(task, place, errors)}
    for name, other in beside.items():
        (*_, row) = naive_rows(other, place, errors)
        plain[f"same time {name}"] = row.measures
    for method, measures in plain.items():
        yield Row(task.table, f"{method}, MAE", measures)

    def score(actual: Sequence[Actual], issued: Sequence[Issued]) -> Measures:
        ours = errors(actual, issued)
        ratios = {k: mae / min(one[k] for one in plain.values()) for k, mae in ours.items()}
        for name in beside:
            ratios |= {
                f"{k} over {name}": ours[str(k)] / plain[f"same time {name}"][str(k)] for k in steps
            }
        return ratios

    yield from our_rows(task, score, settings, bars)


def airline(folder: Path, settings: Settings) -> Iterator[Row]:
    """Table E: passengers of airlines, monthly."""
    frame = pd.read_csv(folder / "airline-passengers.csv.gz")
    (series,) = from_frame(frame, "airline", ds="month", y="passengers").series
    rows = {"LSTM": 295.1, "N-BEATS": 48.5, "Holt-Winters": 39.44, "SNARIMAX": 32.77}
    yield from growing("E airline", series, 12, [36, 48, 72, 108], rows, settings)


def approval(folder: Path, settings: Settings) -> Iterator[Row]:
    """Table E: approval of a president, daily."""
    frame = pd.read_csv(folder / "trump_approval.csv.gz")
    ts = (frame["ordinal_date"].to_numpy(np.int64) - 719_163) * DAY  # days since the year 1
    series = SeriesData("approval", ts, np.array(frame[["five_thirty_eight"]], np.float64))
    rows = {"LSTM": 22.41, "N-BEATS": 1.066, "Holt-Winters": 0.393, "SNARIMAX": 0.310}
    yield from growing("E approval", series, 0, [100, 200, 400, 800], rows, settings)


def growing(
    table: str,
    series: SeriesData,
    season: int,
    fits: Sequence[int],
    rows: dict[str, float],
    settings: Settings,
) -> Iterator[Row]:
    """deep-river's task: a series met from its first value on, 3 steps ahead, MAE.

    The third step's, as which the naive forecasts come nearest to what is quoted, and of all
    three. Nothing is known before, so ours is fitted anew whenever the known part has grown to one
    of ``fits`` ticks, and answers with the naive forecast before the first; forecasts count
    from the first whole season, or tick 20, on.
    """
    ahead, begin = 3, season or 20
    n = len(series.ts)
    task = Task(table, [series], [begin + 1], ahead, season, int(np.median(np.diff(series.ts))))
    (actual,) = task.actual

    def score(actual: Sequence[Actual], issued: Sequence[Issued]) -> Measures:
        off = absolute_errors(actual[0], issued[0])
        return {"third": float(np.nanmean(off[:, -1])), "all": float(np.nanmean(off))}

    def make(task: Task, seed: int, settings: Settings) -> tuple[list[Issued], float]:
        began, spent = np.arange(begin, fits[0] - 1), 0.0
        parts = [naive(actual, began, ahead, "seasonal_naive")]
        for known, until in zip(fits, [*fits[1:], n + 1], strict=True):
            started = time.perf_counter()
            past = SeriesData(series.name, series.ts[:known], series.values[:known])
            model = fitted(task, [past], seed, settings)
            spent += time.perf_counter() - started
            met = SeriesData(series.name, series.ts[: until - 1], series.values[: until - 1])
            parts.append(forecast(model, met, known - 1))
        return [joined(parts)], spent

    place = [np.arange(begin, n)]
    plain = list(naive_rows(task, place, score))
    yield from plain
    yield from quoted(table, {method: {"MAE": value} for method, value in rows.items()})
    best = {name: min(row.measures[name] for row in plain) for name in ("third", "all")}
    bars = {name: (0, 0.9999 * mae) for name, mae in best.items()}  # a tie, but for noise, is none
    late = slice(fits[0] - 1 - begin, None)
    yield from our_rows(task, score, settings, bars, make, late)


def joined(parts: Sequence[Issued]) -> Issued:
    """Forecasts of one series, one part after the other."""
    ends = {
        level: [np.concatenate([part.intervals[level][end] for part in parts]) for end in (0, 1)]
        for level in LEVELS
    }
    return Issued(
        np.concatenate([part.place for part in parts]),
        np.concatenate([part.point for part in parts]),
        {level: (lower, upper) for level, (lower, upper) in ends.items()},
    )


Table = Callable[[Path, Settings], Iterator[Row]]
TABLES: dict[str, tuple[str, Sequence[Table]]] = {
    "A": ("nyc_taxi.csv.gz", [taxi]),
    "B": ("ETTh1.csv.gz", [etth1]),
    "C": ("nn5_daily.csv.gz", [nn5]),
    "D": ("nycflights_weather.csv.gz", [weather]),
    "E": ("airline-passengers.csv.gz", [airline, approval]),
    "demo": ("", [bundled(name) for name in DATASETS]),
}
"""Of each table the file that it needs, and its parts."""
