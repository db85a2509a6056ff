"""``streamlstm forecast``: what comes after the end of each series of a table, by the live engine.

All series pass through one engine, and what it says at the last tick of each is the forecast. What
lies beyond the model's horizon is rolled forward on copies of their states: a copy is fed the
forecasts up to the horizon, and from there its own for the next step, again and again. (Taking the
next whole horizon at once instead erred about as much: less on electricity, more on weather.)

What may come instead, paths tell: copies that at each step are fed their forecast and an error,
drawn as the model's errors one step ahead lie on data that it had not seen, and as wide as the
series' own interval is by then. How paths hang together is theirs; how far they spread is measured
already, by the intervals: so at each step they are moved to lie around the forecast and stretched
to its interval, and beyond the horizon by as much as at its end. (Left as they are, nearly all of
what came lay within their nine tenths on water, and less than eight tenths on the sea.)
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.progress import Progress

from streamlstm.client import in_time_order
from streamlstm.console import check_table_out, how, say, spacing, write_table
from streamlstm.datasets.bundled import table_for
from streamlstm.datasets.frames import SeriesData
from streamlstm.datasets.onward import Onward, onward
from streamlstm.engine import Engine
from streamlstm.model import Model
from streamlstm.model_file import load_model
from streamlstm.terminal import LeavingConsole, print_lines
from streamlstm.ticks import WARM, Keys, Ticks

Floats = NDArray[np.float64]
Told = Callable[[int], None]
"""Called with the ticks done since the last time."""
BATCH = 1024
CROWD = 4096
"""Copies of series that are rolled forward together, unless one series alone has more."""
PATHS = 200
"""From which the intervals beyond the horizon are taken."""


class ForecastError(ValueError):
    """What cannot be forecast; the message is one line and says the mend."""


@dataclass(frozen=True)
class Ends:
    """Forecasts from the end of each of n series, and the states that they were made from."""

    model: Model
    coverage: float
    learning: bool
    names: list[str]
    ts: NDArray[np.int64]
    """(n,) of the last tick of each, ns"""
    step: NDArray[np.int64]
    """(n,) ns from one forecast to the next, where they are as far apart as any two"""
    onward: list[Onward]
    """how the times of each go on"""
    point: Floats
    """(n, horizon, targets) NaN where there is no forecast"""
    lower: Floats
    """(n, horizon, targets) NaN where there is no interval"""
    upper: Floats
    """(n, horizon, targets)"""
    records: NDArray[np.uint8]
    recurrent: NDArray[np.float32]

    @property
    def horizon(self) -> int:
        """Steps ahead."""
        return self.point.shape[1]

    def times(self, horizon: int | None = None, rows: slice = slice(None)) -> NDArray[np.int64]:
        """(n, horizon) what the forecasts of some series are for, ns."""
        ahead = np.arange(1, (horizon or self.horizon) + 1)
        ts, step, ways = self.ts[rows], self.step[rows], self.onward[rows]
        found = np.empty((len(ts), len(ahead)), np.int64)
        for way in set(ways):
            going = np.array([each == way for each in ways])
            found[going] = way.after(ts[going], step[going], ahead)
        return found


# --- forecasts ------------------------------------------------------------------------------------


def at_the_end(
    model: Model,
    series: Sequence[SeriesData],
    *,
    coverage: float = 0.9,
    learning: bool = True,
    timezone: str = "UTC",
    progress: Told = lambda ticks: None,
) -> Ends:
    """Run each of ``series`` through the live engine, and keep the forecast at its last tick.

    Ticks of the time that the model was fitted on are history: intervals do not learn from them.
    In ``timezone`` days and months begin.

    Raises:
        ForecastError: the model takes other values than the series have, or a tick was dropped.
        ModelError: they do not fit in memory.
    """
    spec, n = model.spec, len(series)
    if (has := series[0].values.shape[1]) != spec.inputs:
        raise ForecastError(
            f"the table has {has} value{'s' * (has > 1)} a tick, the model takes {spec.inputs}"
        )
    names = [s.name.encode() for s in series]
    engine = _engine(model, n, coverage, learning, max(map(len, names)))
    slots = engine.series.lookup(Keys.of(names))
    lengths = np.array([len(s.ts) for s in series])
    which, rows = in_time_order(series)
    at = (np.cumsum(lengths) - lengths)[which] + rows
    ts = np.concatenate([s.ts for s in series])[at]
    values = np.concatenate([s.values for s in series])[at]
    ending = rows == lengths[which] - 1
    flags = np.where((ts < model.fitted_until + 1_000_000_000) & ~ending, WARM, 0).astype(np.uint8)
    last = np.array([s.ts[-1] for s in series])
    by_slot = np.empty(n, np.int64)
    by_slot[slots] = np.arange(n)
    found = np.full((3, n, spec.horizon, spec.targets), np.nan)
    for begin in range(0, len(ts), engine.max_batch):
        cut = slice(begin, begin + engine.max_batch)
        out = engine.step(Ticks(slots[which[cut]], ts[cut], values[cut], flags[cut]), 0)
        row = by_slot[out.slot]
        made = out.ts == last[row]
        found[0, row[made]] = out.point[made]
        found[1:, row[made]] = out.quantiles[made].swapaxes(0, 1)
        progress(len(ts[cut]))
    if dropped := sum(engine.drops.values()):
        reasons = ", ".join(f"{count:,} {of}" for of, count in engine.drops.items() if count)
        raise ForecastError(f"the engine dropped {dropped:,} of {len(ts):,} ticks ({reasons})")
    if spec.step_ns:
        step = np.full(n, spec.step_ns)
    else:
        step = np.array([np.median(np.diff(s.ts)) if len(s.ts) > 1 else 0 for s in series])
    ways = onward([s.ts for s in series], timezone)
    if spec.step_ns:  # where the model's steps are others, these are as long as any
        alike = [0.8 < way.length / spec.step_ns < 1.25 for way in ways]
        ways = [way if as_long else Onward() for way, as_long in zip(ways, alike, strict=True)]
    return Ends(
        model, coverage, learning, [s.name for s in series], last, step.astype(np.int64),
        ways, found[0], found[1], found[2], *engine.records(slots),
    )  # fmt: skip


def _engine(model: Model, n: int, coverage: float, learning: bool, max_key: int = 8) -> Engine:
    return Engine(
        model, max_series=n, max_batch=min(max(n, 256), BATCH), coverage=coverage,
        learning=learning, max_key=max_key,
    )  # fmt: skip


def extend(ends: Ends, horizon: int, *, seed: int = 0, progress: Told = lambda ticks: None) -> Ends:
    """The same with another ``horizon``, of which what is beyond the model's is rolled forward.

    The intervals there are those of ``PATHS`` paths.

    Raises:
        ForecastError: what comes in cannot be rolled forward.
    """
    direct = ends.horizon
    if horizon <= direct:
        point, lower, upper = (part[:, :horizon] for part in (ends.point, ends.lower, ends.upper))
        return replace(ends, point=point, lower=lower, upper=upper)
    further = ((0, 0), (0, horizon - direct), (0, 0))
    point, lower, upper = (np.pad(part, further) for part in (ends.point, ends.lower, ends.upper))
    for sample in simulate(ends, horizon, PATHS, seed=seed, progress=progress):
        point[sample.rows, :, 0] = sample.point
        outer = np.quantile(sample.paths[:, :, direct:], _tails(ends.coverage), axis=1)
        lower[sample.rows, direct:, 0], upper[sample.rows, direct:, 0] = outer
    return replace(ends, point=point, lower=lower, upper=upper)


class Sample(NamedTuple):
    """Ways in which m series may go on."""

    rows: slice
    """which"""
    point: Floats
    """(m, horizon) their forecasts"""
    paths: Floats
    """(m, count, horizon)"""


def simulate(
    ends: Ends, horizon: int, count: int, *, seed: int = 0, progress: Told = lambda ticks: None
) -> Iterator[Sample]:
    """Sample ``count`` paths of all series, some series at a time.

    The k-th series of a table has the same paths at the same ``seed``, whatever the others are.

    Raises:
        ForecastError: what comes in cannot be rolled forward.
    """
    if (inputs := ends.model.spec.inputs) > 1:
        raise ForecastError(
            f"the model takes {inputs} values a tick, whose future is not known; ask for --horizon"
            f" {ends.horizon} or less, and no paths"
        )
    levels, sizes = _errors(ends.model, ends.coverage)
    drawn = max(count, PATHS)  # of fewer it is not known how far they spread
    rolling = _Rolling(ends, horizon, drawn, progress)
    for rows in rolling.parts():
        lots = np.stack([
            np.random.default_rng([seed, k]).uniform(-1, 1, (drawn, horizon))
            for k in range(rows.start, rows.stop)
        ])  # fmt: skip
        point, paths = rolling.on(rows, np.sign(lots) * np.interp(np.abs(lots), levels, sizes))
        reach = (ends.upper - ends.point)[rows, :horizon, 0]  # the lower end may be at the floor
        fitted = _fitted(paths, point, reach, ends.coverage)[:, :count]
        yield Sample(rows, point, np.maximum(fitted, _floor(ends.model)))


def _floor(model: Model) -> float:
    """Below which nothing lies."""
    return -np.inf if model.spec.floor is None else model.spec.floor


def _fitted(paths: Floats, point: Floats, reach: Floats, coverage: float) -> Floats:
    """Paths (m, count, horizon) around ``point``, that spread as ``reach`` (m, direct) says.

    To either side, since a floor may have cut one. All NaN where that is not known.
    """
    low, high = _tails(coverage)
    below, middle, above = np.quantile(paths, (low, 0.5, high), axis=1)
    off = paths - middle[:, None]
    down, up = (_stretch(spread, reach)[:, None] for spread in (middle - below, above - middle))
    moved: Floats = point[:, None] + np.where(off < 0, down, up) * off
    return moved


def _stretch(spread: Floats, reach: Floats) -> Floats:
    """By how much what spreads so far, (m, horizon), is to be stretched to reach (m, direct)."""
    stretch, direct = np.ones_like(spread), reach.shape[1]
    known = spread[:, :direct] > 0
    np.divide(reach, spread[:, :direct], out=stretch[:, :direct], where=known)
    stretch[:, direct:] = stretch[:, direct - 1 : direct]
    stretch[np.isnan(reach).any(axis=1)] = np.nan
    return stretch


def _tails(coverage: float) -> tuple[float, float]:
    return (1 - coverage) / 2, (1 + coverage) / 2


def _errors(model: Model, coverage: float) -> tuple[Floats, Floats]:
    """Levels, and the errors one step ahead there, in units of that at ``coverage``."""
    if model.errors is not None and (unit := float(model.errors.at(coverage)[0])) > 0:
        levels, sizes = model.errors.levels, model.errors.quantiles[:, 0] / unit
    else:  # nothing known: as if they were normal
        levels = np.linspace(0.01, 0.99, 99)
        normal = [NormalDist().inv_cdf((1 + level) / 2) for level in (*levels, coverage)]
        sizes = np.array(normal[:-1]) / normal[-1]
    return np.concatenate([[0.0], levels]), np.concatenate([[0.0], sizes])


class _Rolling:
    """Copies of the states of series, that are fed what is made up."""

    def __init__(self, ends: Ends, horizon: int, paths: int, progress: Told) -> None:
        """Of each series one for each of so many ``paths``, and one for the forecast."""
        self._ends, self._horizon, self._copies, self._progress = ends, horizon, paths + 1, progress
        self._each = max(1, min(CROWD // self._copies, len(ends.ts)))
        crowd = self._each * self._copies
        self._engine = _engine(ends.model, crowd, ends.coverage, ends.learning)
        self._slots = self._engine.series.lookup(Keys.of([b"%d" % i for i in range(crowd)]))

    def parts(self) -> Iterator[slice]:
        """All series, so many as can be rolled forward together."""
        n = len(self._ends.ts)
        for begin in range(0, n, self._each):
            yield slice(begin, min(begin + self._each, n))

    def on(self, rows: slice, errors: Floats) -> tuple[Floats, Floats]:
        """Roll these m series forward: their forecasts, (m, horizon), and paths as ``errors`` are.

        Those, (m, paths, horizon), are in units of the half-width of the interval then issued; it
        counts as 0 where there is none. All is NaN where there is no forecast.
        """
        ends, copies, horizon = self._ends, self._copies, self._horizon
        known = np.isfinite(ends.point[rows, 0, 0])
        which = np.repeat(np.arange(rows.start, rows.stop)[known], copies)
        plain = slice(copies - 1, None, copies)  # the copies that no error befalls
        slots = self._slots[: len(which)]
        self._engine.set_records(slots, ends.records[which], ends.recurrent[which])
        off = np.pad(errors[known], ((0, 0), (0, 1), (0, 0))).reshape(-1, horizon)
        point, half = ends.point[which, 0, 0], (ends.upper - ends.point)[which, 0, 0]
        times = ends.times(horizon, rows)[which - rows.start]
        floor = _floor(ends.model)
        fed = np.empty((len(which), horizon))
        for k in range(horizon):
            fed[:, k] = np.maximum(point + off[:, k] * np.nan_to_num(half), floor)
            if k < ends.horizon:
                fed[plain, k] = ends.point[rows, k, 0][known]
            if k < horizon - 1:
                point, half = self._move(slots, times[:, k].copy(), fed[:, k : k + 1])
            self._progress(len(which))
        rolled = np.full((len(known), copies, horizon), np.nan)
        rolled[known] = fed.reshape(-1, copies, horizon)
        return rolled[:, -1], rolled[:, :-1]

    def _move(
        self, slots: NDArray[np.int32], ts: NDArray[np.int64], values: Floats
    ) -> tuple[Floats, Floats]:
        """Forecast one step ahead and half-width, (n,) each, after one tick more of each."""
        engine = self._engine
        point, half = np.empty(len(slots)), np.empty(len(slots))
        for begin in range(0, len(slots), engine.max_batch):
            cut = slice(begin, begin + engine.max_batch)
            quiet = np.zeros(len(slots[cut]), np.uint8)
            out = engine.step(Ticks(slots[cut], ts[cut], values[cut].copy(), quiet), 0)
            if len(out.slot) < len(quiet):
                raise ForecastError(
                    "forecasts fed on forecasts grow without bound; ask for a shorter --horizon"
                )
            point[cut] = out.point[:, 0, 0]
            half[cut] = out.quantiles[:, 1, 0, 0] - out.point[:, 0, 0]
        return point, half


# --- the command ----------------------------------------------------------------------------------


def command(options: argparse.Namespace) -> None:
    """``streamlstm forecast``."""
    console = LeavingConsole(stderr=True)
    if options.out:
        check_table_out("--out", options.out, read=[options.data, options.model])
    model = load_model(options.model)
    zone = options.timezone or model.spec.timezone
    table = table_for(model.spec, options.data, **how(options))
    say(console, table.notes + spacing(table, model.spec))
    horizon = options.horizon or model.spec.horizon
    ticks = sum(len(s.ts) for s in table.series)
    rolled = options.paths or horizon > model.spec.horizon
    copies = max(options.paths or 0, PATHS) + 1 if rolled else 0
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("forecast", total=ticks + copies * horizon * len(table.series))

        def progress(done: int) -> None:
            bar.advance(task, done)

        ends = at_the_end(
            model, table.series, coverage=options.coverage, learning=not options.no_learning,
            timezone=zone, progress=progress,
        )  # fmt: skip
        if options.paths:
            parts = simulate(ends, horizon, options.paths, seed=options.seed, progress=progress)
            frames = (paths_frame(ends, part, zone, table.zoned) for part in parts)
            write_table(frames, options.out)
        else:
            whole = extend(ends, horizon, seed=options.seed, progress=progress)
            write_table(iter([forecasts_frame(whole, zone, table.zoned)]), options.out)
    none = int(np.isnan(ends.point[:, 0]).any(axis=1).sum())
    if none:
        say(console, [f"{none:,} of {len(ends.ts):,} series have no forecast that is finite"])
    if options.out:
        print_lines(console, f"written: {options.out}")


def forecasts_frame(ends: Ends, timezone: str = "UTC", zoned: bool = False) -> pd.DataFrame:
    """A row a forecast: unique_id, ds, the target's name where there are several, forecast, ...

    zoned: whether the times of the data say how far they are off UTC; then these do too.
    """
    n, horizon, targets = ends.point.shape
    times = np.repeat(ends.times()[:, None], targets, axis=1)
    named = [each.name for each in ends.model.spec.of_role("target")] if targets > 1 else []
    target = {"target": np.tile(np.repeat(np.array(named, object), horizon), n)} if named else {}
    return pd.DataFrame({
        "unique_id": np.repeat(np.array(ends.names, object), horizon * targets),
        "ds": _stamps(times, timezone, zoned),
        **target,
        "forecast": ends.point.swapaxes(1, 2).ravel(),
        "lower": ends.lower.swapaxes(1, 2).ravel(),
        "upper": ends.upper.swapaxes(1, 2).ravel(),
    })  # fmt: skip


def paths_frame(
    ends: Ends, sample: Sample, timezone: str = "UTC", zoned: bool = False
) -> pd.DataFrame:
    """A row a value of a path: unique_id, ds, path (from 1), value; ``zoned`` as above."""
    rows, paths = sample.rows, sample.paths
    n, count, horizon = paths.shape
    times = np.broadcast_to(ends.times(horizon, rows)[:, None], paths.shape)
    return pd.DataFrame({
        "unique_id": np.repeat(np.array(ends.names[rows], object), count * horizon),
        "ds": _stamps(times, timezone, zoned),
        "path": np.tile(np.repeat(np.arange(1, count + 1), horizon), n),
        "value": paths.ravel(),
    })  # fmt: skip


def _stamps(ts: NDArray[np.int64], timezone: str, zoned: bool) -> pd.DatetimeIndex:
    """With what they are off UTC, so that no hour is meant twice; in UTC plain, if they came so."""
    stamps = pd.DatetimeIndex(pd.to_datetime(ts.ravel()))
    if timezone == "UTC" and not zoned:
        return stamps
    return stamps.tz_localize("UTC").tz_convert(timezone)
