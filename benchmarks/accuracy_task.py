"""What all tables of :mod:`benchmarks.accuracy` share: a task, the naive forecasts, and ours."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import coverage
from streamlstm.backtest import Actual, Issued, run, targets
from streamlstm.datasets.frames import SeriesData, heads
from streamlstm.directions import with_directions
from streamlstm.golden import make_golden
from streamlstm.model import Model
from streamlstm.train import FitOptions, fit

Floats = NDArray[np.float64]
Measures = dict[str, float]
Bars = Mapping[str, tuple[float, float]]
"""Between what and what a measure has to lie."""
LEVELS = coverage.LEVELS
NAIVE = {"last value": "last_value", "seasonal naive": "seasonal_naive"}


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    table: str
    method: str
    measures: Measures
    fit_seconds: float = float("nan")
    bars: Bars = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """What holds for all tables of a run."""

    seeds: int = 3
    fit: Mapping[str, Any] = field(default_factory=dict)
    """options of the fit otherwise than by default, beside horizon and season"""


@dataclass(frozen=True)
class Task:
    """Series of which the first ticks are known, and the rest comes live."""

    table: str
    series: Sequence[SeriesData]
    known: Sequence[int]
    """of each series: ticks to learn from"""
    horizon: int
    season: int
    step_ns: int
    first: int = -1
    """the first scored forecast is made at the tick known + first"""

    @cached_property
    def actual(self) -> list[Actual]:
        """What came."""
        return [
            Actual.of(s.ts, s.values[:, 0], self.step_ns, self.season, n)
            for s, n in zip(self.series, self.known, strict=True)
        ]


Score = Callable[[Sequence[Actual], Sequence[Issued]], Measures]
"""What forecasts are worth, by a table's own measure."""


def made_at(place: NDArray[np.int64], point: Floats) -> Issued:
    """Forecasts without known intervals."""
    nothing = np.full(point.shape, np.nan)
    return Issued(place, point, dict.fromkeys(LEVELS, (nothing, nothing)))


def naive(actual: Actual, place: NDArray[np.int64], horizon: int, kind: str) -> Issued:
    """A naive forecast made at each of those places."""
    return made_at(
        place, np.stack([actual.naive(kind, place, k + 1) for k in range(horizon)], axis=1)
    )


def absolute_errors(actual: Actual, issued: Issued) -> Floats:
    """(m, horizon)"""
    return np.abs(issued.point - targets(actual, issued))


def fitted(task: Task, past: Sequence[SeriesData], seed: int, settings: Settings) -> Model:
    """The one fit of all tables: horizon and season are given, all else is by default."""
    given = {"horizon": task.horizon, "season": task.season, "seed": seed}
    model, _ = fit(past, FitOptions(**(given | dict(settings.fit))))
    return model


def forecast(model: Model, series: SeriesData, first: int, learning: bool = True) -> Issued:
    """The one way through the live engine: forecasts made from tick ``first`` on."""
    return run(model, series.ts, series.values, first + 1, coverage=LEVELS, learning=learning)


def known_part(task: Task) -> list[SeriesData]:
    """What there is to learn from."""
    return heads(task.series, task.known)


def without_lstm(task: Task, seed: int, settings: Settings) -> Model:
    """The linear start of the fit alone, with directions of the input vector alone."""
    past, fit = known_part(task), dict(settings.fit) | {"updates": 1}
    model = fitted(task, past, seed, replace(settings, fit=fit))
    few = model.spec.outputs
    weights = {
        name: np.zeros_like(array) if name.startswith("lstm") else array[:few]
        for name, array in model.weights.items()
    }
    weights["head.weight"] = np.zeros_like(weights["head.weight"])
    spec = model.spec.model_copy(update={"directions": 0, "spread": False})
    spec, weights = with_directions(spec, weights, [(s.ts, s.values) for s in past])
    return Model(spec, weights, make_golden(spec, weights), model.errors)


def live(task: Task, seed: int, settings: Settings) -> tuple[list[Issued], float]:
    """Our forecasts, and the seconds of the fit."""
    past = known_part(task)
    began = time.perf_counter()
    model = fitted(task, past, seed, settings)
    seconds = time.perf_counter() - began
    pairs = zip(task.series, task.known, strict=True)
    return [forecast(model, s, n + task.first) for s, n in pairs], seconds


def naive_rows(task: Task, places: Sequence[NDArray[np.int64]], score: Score) -> Iterator[Row]:
    """Both naive forecasts, made at those places of each series."""
    for method, kind in NAIVE.items():
        if kind == "seasonal_naive" and not task.season:
            continue
        pairs = zip(task.actual, places, strict=True)
        made = [naive(actual, place, task.horizon, kind) for actual, place in pairs]
        yield Row(task.table, method, score(task.actual, made))


def our_rows(
    task: Task,
    score: Score,
    settings: Settings,
    bars: Bars,
    make: Callable[[Task, int, Settings], tuple[list[Issued], float]] = live,
    judged: slice = slice(None),
) -> Iterator[Row]:
    """Ours: a row a seed, their mean, and their intervals, of the ``judged`` forecasts."""
    found: list[Row] = []
    intervals: dict[float, list[Measures]] = {level: [] for level in LEVELS}
    for seed in range(settings.seeds):
        issued, seconds = make(task, seed, settings)
        found.append(
            Row(task.table, f"streamlstm, seed {seed}", score(task.actual, issued), seconds)
        )
        yield found[-1]
        pairs = [(a, cut(i, judged)) for a, i in zip(task.actual, issued, strict=True)]
        for level, measures in coverage.judged(pairs, task.season).items():
            intervals[level].append(measures)
    seconds = float(np.mean([row.fit_seconds for row in found]))
    measures = mean_of([row.measures for row in found])
    yield Row(task.table, "streamlstm, mean", measures, seconds, bars)
    for level, parts in intervals.items():
        measures = mean_of(parts)
        off, least = measures.pop("tolerance"), measures.pop("chance", 0.0)
        bars = {
            "covered": (level - off, level + off),
            "worst fifth": (least, 1),
            "Winkler": (0, 1),
        }
        yield Row(task.table, f"  its {level:.0%} intervals", measures, bars=bars)


def cut(issued: Issued, which: slice) -> Issued:
    """Some of the forecasts."""
    intervals = {c: (low[which], high[which]) for c, (low, high) in issued.intervals.items()}
    return Issued(issued.place[which], issued.point[which], intervals)


def mean_of(parts: Sequence[Measures]) -> Measures:
    """Of each measure."""
    return {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}
