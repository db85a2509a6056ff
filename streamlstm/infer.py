"""What a fit takes from the data where it is not told: step, season, lags, scales, a floor."""

from collections.abc import Sequence

import numpy as np

from streamlstm.calendars import DAY, WEEK, YEAR
from streamlstm.datasets.frames import SeriesData
from streamlstm.datasets.times import grid_of
from streamlstm.features import default_calendar, features_of, grid_places
from streamlstm.fit_options import FitOptions
from streamlstm.linear import trimmed_mean
from streamlstm.model import ROLES, Blend, Input, Scaling, Spec
from streamlstm.smoothing import with_smoothing

GAPPY = 0.01
"""Share of ticks that do not come a step after the one before, above which that is shown."""
ZEROS = 0.05
"""Share of counts that are 0, above which no forecast lies below."""


def targets_of(inputs: Sequence[Input]) -> int:
    """How many of a tick's values are forecast; the first, where nothing is said of them."""
    return max(1, sum(each.role == "target" for each in inputs))


def infer_spec(
    series: Sequence[SeriesData],
    options: FitOptions,
    notes: list[str],
    inputs: Sequence[Input] = (),
) -> Spec:
    """The spec that options and data ask for; what was inferred is noted."""
    spacing, step_ns = grid_of([s.ts for s in series])
    if spacing and not step_ns:
        notes.append("ticks are unevenly spaced: steps ahead are counted in ticks")
    targets = targets_of(inputs)
    # what was not seen three times over is not believed to repeat
    typical = np.median([len(s.ts) for s in series]) if series else 0
    seasons = [season for season in _seasons(spacing, step_ns) if typical >= 3 * season]
    if options.season is not None and options.season not in seasons:
        seasons = [options.season] if options.season else []
    season = options.season
    if season is None:
        season = best_season(series, step_ns, seasons, options, targets)
        notes.append(f"season of {season} steps" if season else "no season found")
    blend = None
    if seasons:
        zeros = ((0.0, 0.0, 0.0),) * (options.horizon * targets)
        blend = Blend(short=min(seasons), long=max(seasons), weights=zeros)
    lags = options.lags
    if lags is None:
        lags = _lags(seasons)
    calendar = options.calendar
    if calendar is None:
        span = max((int(s.ts[-1]) - int(s.ts[0]) for s in series if len(s.ts)), default=0)
        calendar = default_calendar(spacing, span)
    memory = options.memory or max([100, *seasons])
    count = series[0].values.shape[1] if series else 1
    measured = sum(each.role in ROLES[:2] for each in inputs) or count
    ratio = _prior_ratio(series, memory, measured)
    spec = Spec(
        inputs=count,
        targets=targets,
        roles=tuple(_scaled(each, k, series) for k, each in enumerate(inputs)),
        elapsed_ns=_elapsed(series, spacing, step_ns, options, notes),
        floor=_floor(series, targets, options, notes),
        layers=options.layers,
        hidden=options.hidden,
        step_ns=step_ns,
        horizon=options.horizon,
        season=season,
        base="blend" if blend else "last",
        blend=blend,
        lags=lags,
        calendar=calendar,
        timezone=options.timezone,
        scaling=Scaling(kind="running", memory=memory, prior_ratio=ratio),
    )
    return with_smoothing(spec, series, options.validation) if blend else spec


def _lags(seasons: Sequence[int]) -> tuple[int, ...]:
    """The latest values, and those around one and two short seasons and a long one before."""
    if not seasons:
        return (1, 2, 3, 4, 5)
    short, long = min(seasons), max(seasons)
    around = {p + near for p in (short, 2 * short, long) for near in range(-2, 3)}
    return tuple(sorted(n for n in {1, 2, 3, 4, 5} | around if 1 <= n <= short + long))


def _seasons(spacing: int, step_ns: int) -> list[int]:
    """Steps of the periods that people and weather follow, as a spacing lets them be seen."""
    if spacing == 0:
        return []
    if step_ns == 0:  # of trading days, say
        return [5] if DAY <= spacing < 2 * DAY else []
    periods = (DAY, WEEK) if spacing < DAY else (WEEK,) if spacing < WEEK else (YEAR,)
    return sorted({round(period / spacing) for period in periods} - {0, 1})


def best_season(
    series: Sequence[SeriesData],
    step_ns: int,
    seasons: Sequence[int],
    options: FitOptions,
    targets: int = 1,
) -> int:
    """The season whose repetition forecasts best before the unseen span, by trimmed error."""
    if len(seasons) < 2:
        return max(seasons, default=0)
    errors = dict.fromkeys(seasons, 0.0)
    for s in series[:64]:
        kept = len(s.ts) - round(options.validation * len(s.ts))
        place, values = grid_places(step_ns, s.ts[:kept]), s.values[:kept, :targets]
        size = np.maximum(values.std(axis=0), 1e-12)
        for season in seasons:
            for ahead in {1, options.horizon}:
                back = season * -(-ahead // season)
                at = np.searchsorted(place, place - back)
                known = (place[at] == place - back) & (place >= max(seasons))
                off = np.abs(values - values[at])[known]
                errors[season] += float((trimmed_mean(off) / size).sum())
    return min(errors, key=lambda season: errors[season])


def _scaled(of: Input, column: int, series: Sequence[SeriesData]) -> Input:
    """An input that is known ahead, with one scale for all series unless their levels differ.

    What is 1 on few days, as a holiday is, has no scale of its own that a series' past could tell.
    """
    if of.role != "known" or of.scale or not series:
        return of
    every = np.concatenate([s.values[:, column] for s in series])
    deviation = float(every.std())
    apart = float(np.std([s.values[:, column].mean() for s in series]))
    if deviation == 0 or apart > 0.5 * deviation:
        return of
    return of.model_copy(update={"loc": float(every.mean()), "scale": deviation})


def _elapsed(
    series: Sequence[SeriesData],
    spacing: int,
    step_ns: int,
    options: FitOptions,
    notes: list[str],
) -> int:
    """The unit in which the time since the tick before is shown; 0: it is not."""
    unit = step_ns or spacing
    if options.elapsed is not None or not unit:
        return unit if options.elapsed else 0
    steps = [np.rint(np.diff(s.ts) / unit) for s in series]
    off = sum(int((each != 1).sum()) for each in steps)
    if off <= GAPPY * sum(map(len, steps)):
        return 0
    notes.append("ticks come unevenly: the model is shown the time since the one before")
    return unit


def _floor(
    series: Sequence[SeriesData], targets: int, options: FitOptions, notes: list[str]
) -> float | None:
    """Below which no forecast is to lie: 0 where all are counts, and a fair share of them none."""
    if options.floor is not None:
        return None if options.floor == "none" else options.floor
    zeros = total = 0
    for s in series:
        values = s.values[:, :targets]
        if (values < 0).any() or (values != np.rint(values)).any():
            return None
        zeros, total = zeros + int((values == 0).sum()), total + values.size
    if zeros <= ZEROS * total or zeros == total:
        return None
    notes.append(f"counts, {zeros / total:.0%} of them 0: no forecast lies below 0")
    return 0.0


def _prior_ratio(series: Sequence[SeriesData], memory: int, measured: int) -> float:
    """What a new series' deviation over its mean may be: the median of those at hand."""
    alone = Scaling(kind="running", memory=memory, prior_ratio=1e-9)
    plain = Spec(hidden=1, step_ns=0, horizon=1, scaling=alone)
    ratios = []
    for s in series[:64]:
        for k in range(measured if len(s.ts) > 1 else 0):
            scale = features_of(plain, s.ts[-20_000:], s.values[-20_000:, k : k + 1]).scale
            mean = abs(float(np.median(s.values[:, k])))
            ratios.append(float(np.median(scale[len(scale) // 10 :])) / max(mean, 1e-12))
    return float(np.clip(np.median(ratios), 1e-6, 1.0)) if ratios else 0.1
