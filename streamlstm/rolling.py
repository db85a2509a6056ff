"""A backtest of a whole table: every tick of the latest part of each series is an origin.

What is kept of a series does not grow with it: sums of losses, and its latest forecast.
"""

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from streamlstm.backtest import (
    Actual,
    BacktestError,
    Floats,
    Issued,
    Scores,
    forecasters,
    judge,
    run_all,
)
from streamlstm.datasets.frames import SeriesData
from streamlstm.model import Model, Spec
from streamlstm.terminal import exact_time, when

BACK = 48
"""Steps shown before a forecast, at least."""


@dataclass(frozen=True)
class Fan:
    """The latest forecast of a series of which all steps came, or else its first."""

    origin_ns: int
    """time of the tick that it was made at"""
    past: Floats
    """(n,) what came up to then, by step; NaN where a tick is missing"""
    came: Floats
    """(horizon,) what came since"""
    point: Floats
    """(horizon,)"""
    intervals: dict[float, tuple[Floats, Floats]]
    """coverage -> lower and upper, (horizon,)"""

    @classmethod
    def of(cls, ts: int, actual: Actual, issued: Issued, row: int) -> "Fan":
        """Made at the tick of time ``ts``, that of the forecast in ``row``."""
        place, horizon = int(issued.place[row]), issued.point.shape[1]
        came = np.full(horizon, np.nan)
        known = actual.y[place + 1 : place + 1 + horizon]
        came[: len(known)] = known
        return cls(
            ts,
            actual.y[max(0, place - max(BACK, 3 * horizon)) : place + 1].copy(),
            came,
            issued.point[row].copy(),
            {c: (low[row].copy(), high[row].copy()) for c, (low, high) in issued.intervals.items()},
        )


@dataclass(frozen=True)
class Judged:
    """One series."""

    name: str
    scores: Scores
    """of all steps together"""
    fan: Fan


@dataclass(frozen=True)
class Backtest:
    """What a backtest found."""

    model: Model
    data: str
    learning: bool
    by_target: dict[str, Scores]
    """of all series together, by the target's name; targets may be of different units"""
    series: list[Judged]
    skipped: int
    """series after whose first forecast nothing came"""
    period_ns: tuple[int, int]
    """the first and the last tick that was forecast"""
    first: tuple[Actual, Issued]
    """the first series, for a picture"""

    @property
    def scores(self) -> Scores:
        """Of all targets together."""
        return functools.reduce(operator.add, self.by_target.values())

    @property
    def notes(self) -> list[str]:
        """What is to be known beside the figures: that the model may have seen what is judged."""
        begin, end = self.period_ns
        until = self.model.fitted_until
        if until < (begin if len(self.series) == self.model.spec.targets else end):
            return []
        return [
            f"the model was fitted on ticks up to {when(until)} UTC: where they are these, the"
            " figures flatter it; judge it by later ones, or leave some out (fit --holdout 0.2)"
        ]

    def worst_first(self) -> list[Judged]:
        """The series by their MASE, or MAE where there is none for any; not known is last."""
        measure = "mase" if np.isfinite(self.scores.mean("mase")) else "mae"
        found = np.array([one.scores.mean(measure) for one in self.series])
        return [self.series[i] for i in np.argsort(-found, kind="stable")]

    def as_json(self) -> dict[str, Any]:
        """Lists of records, as ``pandas.DataFrame`` takes them; NaN where not known."""
        spec, scores = self.model.spec, self.scores
        begin, end = (_time(ts) for ts in self.period_ns)
        return {
            "model": self.model.id,
            "data": self.data,
            "from": begin,
            "to": end,
            "step_seconds": spec.step_ns / 1e9,
            "horizon": spec.horizon,
            "season": spec.season,
            "learning": self.learning,
            "coverage": scores.coverages[0],
            "series": len(self.series),
            "skipped": self.skipped,
            "forecasts": scores.forecasts,
            "targets": scores.targets,
            "notes": self.notes,
            "overall": [row for _, row in _records(scores.over_steps())],
            "by_step": [{"step": k} | row for k, row in _records(scores)],
            "by_target": [
                {"target": name, "step": k} | row
                for name, scores_of in self.by_target.items()
                for k, row in _records(scores_of)
            ],
            "by_series": [
                {"series": one.name, "forecasts": one.scores.forecasts} | row
                for one in self.series
                for _, row in _records(one.scores)
            ],
            "intervals": [
                {"interval": c, "step": k} | row
                for c in scores.coverages
                for k, row in _records(scores, c)
            ],
        }


def _time(ts_ns: int) -> str:
    return datetime.fromtimestamp(ts_ns // 1_000_000_000, UTC).isoformat()


def _records(scores: Scores, coverage: float = 0.0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Step and measures of each forecaster; all measures, or those of one interval."""
    measures = [of for of in scores.measures if not coverage or (of, coverage) in scores.sums]
    names = scores.names
    found = {(of, name): scores.by_step(of, name, coverage) for of in measures for name in names}
    for k in range(1, scores.horizon + 1):
        if scores.came(k):
            for name in names:
                row = {of: float(found[of, name][k - 1]) for of in measures}
                yield k, {"forecast": name} | row


def effort(series: Sequence[SeriesData], spec: Spec) -> int:
    """Ticks that a backtest passes through: of the model, and of the naive forecasts a target."""
    naive = len(forecasters(spec.season)) - 1
    return (1 + spec.targets * naive) * sum(len(s.ts) for s in series)


def backtest(
    model: Model,
    data: str,
    series: Sequence[SeriesData],
    known: Sequence[int],
    coverages: Sequence[float],
    *,
    learning: bool = True,
    progress: Callable[[int], None] = lambda ticks: None,
) -> Backtest:
    """Judge ``model`` on all of each series but its first ``known`` ticks.

    Of several targets each counts as a series, and is judged on its own too. ``data`` says where
    they are from; the first of ``coverages`` is that of the main interval.
    ``progress`` is told how many ticks of :func:`effort` are done.

    Raises:
        BacktestError: no series is long enough, or one cannot be judged.
    """
    spec = model.spec
    judged: list[Judged] = []
    by_target: dict[str, Scores] = {}
    first: tuple[Actual, Issued] | None = None
    period: list[int] = []
    skipped = 0
    for s, past in zip(series, known, strict=True):
        past, ticks = max(past, 1), len(s.ts)
        if past >= ticks:  # nothing comes after its first forecast
            skipped += 1
            progress(effort([s], spec))
            continue
        made = run_all(model, s.ts, s.values, past, coverage=coverages, learning=learning)
        progress(ticks)
        for j, issued in enumerate(made):
            actual = Actual.of(s.ts, s.values[:, j], spec.step_ns, spec.season, past)
            scores = judge(actual, issued, functools.partial(progress, ticks))
            row = int(np.searchsorted(issued.place, len(actual.y) - 1 - spec.horizon, side="right"))
            row = max(0, row - 1)
            fan = Fan.of(int(s.ts[past - 1 + row]), actual, issued, row)
            judged.append(Judged(_named(spec, s.name, j), scores.over_steps(), fan))
            name = _target(spec, j)
            by_target[name] = by_target[name] + scores if name in by_target else scores
            first = first or (actual, issued)
        period += [int(s.ts[past]), int(s.ts[-1])]
    if first is None:
        raise BacktestError(f"{data}: no series is long enough to be judged; raise --last")
    if not any(scores.targets for scores in by_target.values()):
        raise BacktestError(
            f"{data}: no tick lies on a step that was forecast; a step of the model is"
            f" {exact_time(spec.step_ns)}, its horizon {spec.horizon} steps"
        )
    return Backtest(
        model, data, learning, by_target, judged, skipped,
        (min(period), max(period)), first,
    )  # fmt: skip


def _named(spec: Spec, series: str, target: int) -> str:
    """A target of a series: ``series/target``, unless there is but one."""
    if spec.targets == 1:
        return series
    return f"{series}/{_target(spec, target)}"


def _target(spec: Spec, target: int) -> str:
    return spec.roles[target].name if spec.roles else str(target)
