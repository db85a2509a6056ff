"""How good forecasts were: a series run through the live engine, or predictions of a daemon.

Every figure stands beside those of the naive forecasts (last value and, where there is a season,
the same place one season before) on the same targets. All are causal: a forecast issued at a tick
knows nothing after it.
"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from streamlstm import intervals
from streamlstm.engine import Engine
from streamlstm.features import grid_places
from streamlstm.model import Model
from streamlstm.policies import LIMIT
from streamlstm.ticks import WARM, Keys, Ticks

Floats = NDArray[np.float64]
_SPARSE = 100
"""Steps to a tick, at most, of a long series that is judged."""
MODELS = ("model", "last_value", "seasonal_naive")
"""The forecasters; the last one only where there is a season."""
ENOUGH = 3
"""Intervals, at least, from which the CRPS is approximated."""


class BacktestError(ValueError):
    """A series that cannot be judged; the message is one line and says the mend."""


@dataclass(frozen=True)
class Issued:
    """Forecasts of one series, in the order of their ticks."""

    place: NDArray[np.int64]
    """(m,) of the tick on the series' grid of steps"""
    point: Floats
    """(m, horizon)"""
    intervals: Mapping[float, tuple[Floats, Floats]]
    """coverage -> lower and upper, (m, horizon); the first is the main one"""

    @property
    def lower(self) -> Floats:
        """(m, horizon) of the main interval."""
        return next(iter(self.intervals.values()))[0]

    @property
    def upper(self) -> Floats:
        """(m, horizon) of the main interval."""
        return next(iter(self.intervals.values()))[1]


@dataclass(frozen=True)
class Actual:
    """What came of one series, on its grid of steps from the first tick on."""

    y: Floats
    """(places,) NaN where a tick is missing"""
    season: int
    """0: none"""
    scale: float
    """mean absolute seasonal (or one-step) change before the first forecast: MASE's unit; NaN where
    there was none"""

    @classmethod
    def of(
        cls, ts: NDArray[np.int64], y: Floats, step_ns: int, season: int, known: int
    ) -> "Actual":
        """A series of which the first ``known`` ticks came before the first forecast.

        Raises:
            BacktestError: its ticks are so far apart that its grid would fill the memory.
        """
        place = grid_places(step_ns, ts)
        if sparse(place):
            raise BacktestError(
                f"{len(ts):,} ticks lie on {place[-1] + 1:,} steps of {step_ns / 1e9:g} s: too"
                " sparse to be judged; cut the series at its gaps, or use a model of longer steps"
            )
        grid = np.full(place[-1] + 1, np.nan)
        grid[place] = y
        past = grid[: place[known - 1] + 1]
        change = np.abs(past[season or 1 :] - past[: -(season or 1)])
        change = change[np.isfinite(change)]
        return cls(grid, season, float(change.mean()) if change.any() else np.nan)

    def naive(self, kind: str, place: NDArray[np.int64], k: int) -> Floats:
        """The naive forecasts for ``place + k``, made at ``place``.

        Of the season: the latest value at the phase of the step ahead, or the last one where there
        is none yet.
        """
        if kind == "last_value" or not self.season:
            return self.y[place]
        back = place + k - self.season * -(-k // self.season)
        before = self._of_phase[np.maximum(back, 0)]
        return np.where((back >= 0) & np.isfinite(before), before, self.y[place])

    @cached_property
    def _of_phase(self) -> Floats:
        """(places,) the latest value up to each place at its phase of the season; NaN: none yet."""
        seasons = -(-len(self.y) // self.season)
        grid = np.full((seasons, self.season), np.nan)
        grid.ravel()[: len(self.y)] = self.y
        came = np.where(np.isfinite(grid), np.arange(seasons)[:, None], 0)
        latest = np.maximum.accumulate(came, axis=0)
        return np.take_along_axis(grid, latest, axis=0).ravel()


@dataclass(frozen=True)
class Scores:
    """What the forecasts of one series or of many came to: sums, so that more can be added.

    Measures of the point forecast are ``mae``, ``rmse``, ``mase`` (error over the mean absolute
    seasonal change of the history) and ``smape`` (0 to 200 %); of the interval ``coverage`` (the
    share of targets within it; one that is not known covers nothing), ``winkler`` (interval score),
    ``pinball_lower`` and ``pinball_upper`` (quantile loss at its ends); ``crps`` of all intervals
    together, where there are enough of them (:func:`crps`).
    """

    coverages: tuple[float, ...]
    """of the intervals; the first is meant where none is named"""
    sums: dict[tuple[str, float], Floats]
    """measure and coverage (0: not of one interval) -> (2, forecasters, horizon): sum over the
    forecasts whose target came, and their number; the square of ``rmse``; the forecasters are
    ``names``"""
    forecasts: int

    def __add__(self, other: "Scores") -> "Scores":
        sums = {key: array + other.sums[key] for key, array in self.sums.items()}
        return Scores(self.coverages, sums, self.forecasts + other.forecasts)

    @property
    def names(self) -> tuple[str, ...]:
        """The forecasters, the model first; the last one is that of the season if there is one."""
        return MODELS[: next(iter(self.sums.values())).shape[1]]

    @property
    def horizon(self) -> int:
        """Steps ahead."""
        return next(iter(self.sums.values())).shape[2]

    @property
    def targets(self) -> int:
        """How many targets came, of all steps."""
        return int(self.sums["mae", 0.0][1, 0].sum())

    @property
    def measures(self) -> tuple[str, ...]:
        """All that there are."""
        return tuple(dict.fromkeys(measure for measure, _ in self.sums))

    @property
    def shown(self) -> tuple[int, ...]:
        """The steps ahead that are reported in short: first, middle, last, of those that came."""
        came = [k for k in range(1, self.horizon + 1) if self.came(k)]
        return tuple(sorted({came[at] for at in (0, max(0, len(came) // 2 - 1), -1) if came}))

    def over_steps(self) -> "Scores":
        """The same, of all steps together, as of one: it takes less memory."""
        sums = {key: array.sum(axis=2, keepdims=True) for key, array in self.sums.items()}
        return Scores(self.coverages, sums, self.forecasts)

    def by_step(self, measure: str, name: str = "model", coverage: float = 0.0) -> Floats:
        """(horizon,) means of one of ``names``; NaN where nothing came."""
        total, count = self._of(measure, coverage)[:, MODELS.index(name)]
        found = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
        return np.sqrt(found) if measure == "rmse" else found

    def mean(self, measure: str, name: str = "model", coverage: float = 0.0) -> float:
        """Over all steps and forecasts; every target counts as much as another."""
        return float(self.over_steps().by_step(measure, name, coverage)[0])

    def came(self, step: int) -> bool:
        """Whether any target so many steps ahead did."""
        return bool(self.sums["mae", 0.0][1, 0, step - 1])

    def _of(self, measure: str, coverage: float) -> Floats:
        if (measure, coverage) in self.sums:
            return self.sums[measure, coverage]
        return self.sums[measure, self.coverages[0]]


def forecasters(season: int) -> tuple[str, ...]:
    """Those of ``MODELS`` that there are: without a season (0) there is no forecast from it."""
    return MODELS if season else MODELS[:-1]


def sparse(place: NDArray[np.int64]) -> bool:
    """Whether ticks lie at places so far apart that a grid of them would fill the memory."""
    return bool(place[-1] > _SPARSE * len(place) + 1_000_000)


def run(
    model: Model,
    ts: NDArray[np.int64],
    values: Floats,
    known: int,
    *,
    coverage: float | Sequence[float] = 0.9,
    learning: bool = True,
) -> Issued:
    """The forecasts of the first target, as :func:`run_all` gives them."""
    return run_all(model, ts, values, known, coverage=coverage, learning=learning)[0]


def run_all(
    model: Model,
    ts: NDArray[np.int64],
    values: Floats,
    known: int,
    *,
    coverage: float | Sequence[float] = 0.9,
    learning: bool = True,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Issued]:
    """Feed a series, ``ts`` (n,) and ``values`` (n, inputs), to a fresh live engine, tick by tick.

    The first ``known`` ticks are warm: forecasts are issued from tick ``known - 1`` on, which is
    the first whose targets are all unseen. ``coverage`` is one or several, the main one first.
    Without ``learning`` the model stays as it is. The forecasts are those of each target.

    Raises:
        BacktestError: the engine dropped a tick.
    """
    engine = Engine(model, max_series=1, max_batch=256, coverage=coverage, learning=learning)
    engine.series.lookup(Keys.of([b"series"]))
    flags = np.where(np.arange(len(ts)) < known - 1, WARM, 0).astype(np.uint8)
    parts: list[tuple[Floats, Floats]] = []
    for at in range(0, len(ts), 256):
        cut = slice(at, at + 256)
        slots = np.zeros(len(ts[cut]), np.int32)
        out = engine.step(Ticks(slots, ts[cut], values[cut], flags[cut]), 0)
        parts.append((out.point.copy(), out.quantiles.copy()))
        progress(min(at + 256, len(ts)))
    if dropped := {reason: count for reason, count in engine.drops.items() if count}:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
        raise BacktestError(
            f"the engine dropped {sum(dropped.values()):,} of {len(ts):,} ticks ({reasons}); times"
            f" must rise and lie between 1678 and 2115, values be finite and at most {LIMIT:g}"
        )
    point = np.concatenate([part[0] for part in parts])
    quantiles = np.concatenate([part[1] for part in parts])
    place = grid_places(model.spec.step_ns, ts)[known - 1 :]
    return [
        Issued(place, point[:, :, j], _pairs(engine.coverages, quantiles[:, :, :, j]))
        for j in range(model.spec.targets)
    ]


def _pairs(coverages: Sequence[float], quantiles: Floats) -> dict[float, tuple[Floats, Floats]]:
    """By coverage, of (m, 2 * coverages, horizon)."""
    return {c: (quantiles[:, 2 * k], quantiles[:, 2 * k + 1]) for k, c in enumerate(coverages)}


def score(pairs: Sequence[tuple[Actual, Issued]]) -> Scores:
    """Compare forecasts of series, one or more, with what came."""
    return functools.reduce(operator.add, (judge(actual, issued) for actual, issued in pairs))


def judge(actual: Actual, issued: Issued, progress: Callable[[], None] = lambda: None) -> Scores:
    """Compare the forecasts of one series with what came, and so the naive ones.

    ``progress`` is called once for each naive forecast.
    """
    target = targets(actual, issued)
    losses = [_losses(target, issued, actual.scale)]
    for kind in forecasters(actual.season)[1:]:
        losses.append(_losses(target, _naive(actual, kind, issued), actual.scale))
        progress()
    sums = {
        key: np.array([[of[key][part] for of in losses] for part in range(2)]) for key in losses[0]
    }
    return Scores(tuple(issued.intervals), sums, len(issued.place))


def targets(actual: Actual, issued: Issued) -> Floats:
    """(m, horizon) what came; NaN where nothing did."""
    at = issued.place[:, None] + np.arange(1, issued.point.shape[1] + 1)
    last = len(actual.y) - 1
    came: Floats = np.where(at <= last, actual.y[np.minimum(at, last)], np.nan)
    return came


def _naive(actual: Actual, kind: str, issued: Issued) -> Issued:
    """The naive forecasts made at the same ticks, with the same online intervals around them.

    Those learn from the first tick on.
    """
    horizon, coverages = issued.point.shape[1], tuple(issued.intervals)
    place = np.flatnonzero(np.isfinite(actual.y))
    point = np.stack([actual.naive(kind, place, k + 1) for k in range(horizon)], axis=1)
    steps = np.unique(np.round(np.linspace(1, horizon, min(horizon, 8))).astype(int))
    at = np.searchsorted(place, issued.place)
    layout = intervals.plan(horizon, 1, coverages, None, steps.tolist())
    quantiles = intervals.around(layout, place, actual.y[place], point)[at]
    return Issued(issued.place, point[at], _pairs(coverages, quantiles))


def _losses(
    target: Floats, issued: Issued, scale: float
) -> dict[tuple[str, float], tuple[Floats, Floats]]:
    """Sum of each loss by step, (horizon,), and of how many forecasts."""
    point = issued.point
    error = np.abs(target - point)
    loss = {
        ("mae", 0.0): error,
        ("rmse", 0.0): error**2,
        ("mase", 0.0): error / scale,
        ("smape", 0.0): smape(target, point),
    }
    quantiles = {0.5: point}
    for c, (lower, upper) in issued.intervals.items():
        low, high = (1 - c) / 2, (1 + c) / 2
        quantiles |= {low: lower, high: upper}
        within = (lower <= target) & (target <= upper)
        loss["coverage", c] = np.where(np.isnan(target), np.nan, within)
        loss["winkler", c] = interval_score(target, lower, upper, c)
        loss["pinball_lower", c] = pinball(target, lower, low)
        loss["pinball_upper", c] = pinball(target, upper, high)
    if len(issued.intervals) >= ENOUGH:
        loss["crps", 0.0] = crps(target, quantiles)
    return {key: (np.nansum(x, axis=0), np.isfinite(x).sum(axis=0)) for key, x in loss.items()}


# --- losses of single forecasts -------------------------------------------------------------------


def smape(target: Floats, point: Floats) -> Floats:
    """Error over the mean of target and forecast, in percent, 0 to 200; 0 where both are 0."""
    size = np.abs(target) + np.abs(point)
    error = 200 * np.abs(target - point)
    return np.divide(error, size, out=error * 0.0, where=size > 0)


def pinball(target: Floats, quantile: Floats, level: float) -> Floats:
    """Quantile loss: ``level`` times what the target lies above, 1 - level times below."""
    off = target - quantile
    loss: Floats = np.maximum(level * off, (level - 1) * off)
    return loss


def crps(target: Floats, quantiles: Mapping[float, Floats]) -> Floats:
    """Continuous ranked probability score, approximated from ``quantiles`` by level.

    It is twice the integral of the pinball loss over all levels; here a quantile stands for the
    levels that lie nearer to it than to another. The point forecast may serve as median. From the
    eleven of the default coverages it comes out 1 % too small where a normal distribution is right.
    """
    levels = np.sort(list(quantiles))
    edges = np.concatenate(([0.0], (levels[1:] + levels[:-1]) / 2, [1.0]))
    parts = [
        2 * width * pinball(target, quantiles[level], level)
        for level, width in zip(levels.tolist(), np.diff(edges).tolist(), strict=True)
    ]
    total: Floats = np.sum(parts, axis=0)
    return total


def interval_score(target: Floats, lower: Floats, upper: Floats, coverage: float) -> Floats:
    """Width, and for each miss 2 / (1 - coverage) times its distance (Winkler 1972); (n,)."""
    missed = np.maximum(lower - target, 0) + np.maximum(target - upper, 0)
    score: Floats = upper - lower + 2 / (1 - coverage) * missed
    return score
