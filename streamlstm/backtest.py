"""How good forecasts were: a series run through the live engine, or predictions of a daemon.

Every figure stands beside those of the two naive forecasts (last value, same place one season
before) on the same targets. All are causal: a forecast issued at a tick knows nothing after it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamlstm import intervals
from streamlstm.engine import Engine
from streamlstm.features import grid_steps
from streamlstm.model import Model
from streamlstm.policies import LIMIT
from streamlstm.ticks import WARM, Keys, Ticks

Floats = NDArray[np.float64]
_SPARSE = 100
"""Steps to a tick, at most, of a long series that is judged."""
MODELS = ("model", "last_value", "seasonal_naive")


class BacktestError(ValueError):
    """A series that cannot be judged; the message is one line and says the mend."""


@dataclass(frozen=True)
class Issued:
    """Forecasts of one series, in the order of their ticks."""

    place: NDArray[np.int64]
    """(m,) of the tick on the series' grid of steps"""
    point: Floats
    """(m, horizon)"""
    lower: Floats
    """(m, horizon)"""
    upper: Floats
    """(m, horizon)"""


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
        place = places(ts, step_ns)
        if place[-1] > _SPARSE * len(ts) + 1_000_000:
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
        """The naive forecasts for ``place + k``, made at ``place``."""
        if kind == "last_value" or not self.season:
            return self.y[place]
        back = place + k - self.season * -(-k // self.season)
        before = self.y[np.maximum(back, 0)]
        return np.where((back >= 0) & np.isfinite(before), before, self.y[place])


@dataclass(frozen=True)
class Scores:
    """Means over all series and forecasts whose target came; by step ahead."""

    steps: tuple[int, ...]
    mae: dict[str, dict[str, float]]
    """step -> model, last_value, seasonal_naive"""
    mase: dict[str, dict[str, float]]
    """the same over the mean absolute seasonal change of the history"""
    coverage: dict[str, float]
    """step -> share of targets within the interval"""
    pooled_coverage: float
    winkler: dict[str, float]
    """model and seasonal_naive: mean interval score (Winkler 1972) over all steps; the naive one
    around the same online intervals made of its own errors"""
    forecasts: int


def places(ts: NDArray[np.int64], step_ns: int) -> NDArray[np.int64]:
    """Where each tick lies on its series' grid of steps, (n,)."""
    return np.cumsum(grid_steps(step_ns, ts)) - 1


def run(
    model: Model,
    ts: NDArray[np.int64],
    values: Floats,
    known: int,
    *,
    coverage: float = 0.9,
    learning: bool = True,
    progress: Callable[[int], None] = lambda done: None,
) -> Issued:
    """Feed a series, ``ts`` (n,) and ``values`` (n, inputs), to a fresh live engine, tick by tick.

    The first ``known`` ticks are warm: forecasts are issued from tick ``known - 1`` on, which is
    the first whose targets are all unseen. Without ``learning`` the model stays as it is.

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
        parts.append((out.point[:, :, 0].copy(), out.quantiles[:, :, :, 0].copy()))
        progress(min(at + 256, len(ts)))
    if dropped := {reason: count for reason, count in engine.drops.items() if count}:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
        raise BacktestError(
            f"the engine dropped {sum(dropped.values()):,} of {len(ts):,} ticks ({reasons}); times"
            f" must rise, and values be finite and at most {LIMIT:g}"
        )
    point = np.concatenate([part[0] for part in parts])
    quantiles = np.concatenate([part[1] for part in parts])
    place = places(ts, model.spec.step_ns)[known - 1 :]
    return Issued(place, point, quantiles[:, 0], quantiles[:, 1])


def score(
    pairs: Sequence[tuple[Actual, Issued]], steps: Sequence[int], coverage: float = 0.9
) -> Scores:
    """Compare forecasts with what came; every forecast counts as much as another."""
    errors: dict[tuple[int, str], list[Floats]] = {}
    scaled: dict[tuple[int, str], list[Floats]] = {}
    covered: dict[int, list[Floats]] = {}
    winkler: dict[str, list[Floats]] = {"model": [], "seasonal_naive": []}
    for actual, issued in pairs:
        naive_lower, naive_upper = _naive_interval(actual, issued, coverage)
        for k in range(1, issued.point.shape[1] + 1):
            came, target = _targets(actual, issued, k)
            if not len(target):
                continue
            lower, upper = issued.lower[came, k - 1], issued.upper[came, k - 1]
            covered.setdefault(k, []).append((lower <= target) & (target <= upper))
            winkler["model"].append(interval_score(target, lower, upper, coverage))
            winkler["seasonal_naive"].append(
                interval_score(target, naive_lower[came, k - 1], naive_upper[came, k - 1], coverage)
            )
            if k in steps:
                for name in MODELS:
                    forecast = issued.point[came, k - 1]
                    if name != "model":
                        forecast = actual.naive(name, issued.place[came], k)
                    error = np.abs(target - forecast)
                    errors.setdefault((k, name), []).append(error)
                    scaled.setdefault((k, name), []).append(error / actual.scale)
    shown = tuple(k for k in steps if (k, "model") in errors)
    return Scores(
        shown,
        {str(k): {name: mean(errors[k, name]) for name in MODELS} for k in shown},
        {str(k): {name: mean(scaled[k, name]) for name in MODELS} for k in shown},
        {str(k): mean(parts) for k, parts in covered.items()},
        mean([part for parts in covered.values() for part in parts]),
        {name: mean(parts) for name, parts in winkler.items()},
        sum(len(issued.place) for _, issued in pairs),
    )


def interval_score(target: Floats, lower: Floats, upper: Floats, coverage: float) -> Floats:
    """Width, and for each miss 2 / (1 - coverage) times its distance (Winkler 1972); (n,)."""
    missed = np.maximum(lower - target, 0) + np.maximum(target - upper, 0)
    score: Floats = upper - lower + 2 / (1 - coverage) * missed
    return score


def mean(parts: list[Floats]) -> float:
    """Of all that is known; NaN of nothing."""
    values = np.concatenate(parts) if parts else np.zeros(0)
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _targets(actual: Actual, issued: Issued, k: int) -> tuple[NDArray[np.int64], Floats]:
    """Which forecasts' k-th target came, and the targets."""
    at = issued.place + k
    y = np.where(at < len(actual.y), actual.y[np.minimum(at, len(actual.y) - 1)], np.nan)
    came = np.flatnonzero(np.isfinite(y))
    return came, y[came]


def _naive_interval(actual: Actual, issued: Issued, coverage: float) -> tuple[Floats, Floats]:
    """The same online intervals around the seasonal naive forecast, from the first tick on."""
    horizon = issued.point.shape[1]
    place = np.flatnonzero(np.isfinite(actual.y))
    point = np.stack([actual.naive("seasonal_naive", place, k + 1) for k in range(horizon)], axis=1)
    steps = np.unique(np.round(np.linspace(1, horizon, min(horizon, 8))).astype(int))
    layout = intervals.plan(horizon, 1, coverage, None, steps.tolist())
    lower, upper = intervals.around(layout, place, actual.y[place], point)
    at = np.searchsorted(place, issued.place)
    return lower[at], upper[at]
