"""What is said of forecasts live is what a backtest of them says afterwards."""

import numpy as np
import pytest

from streamlstm.engine import Engine
from streamlstm.features import features_of
from streamlstm.handover import Handover
from streamlstm.policies import Policies
from streamlstm.ticks import WARM, Keys, Ticks
from streamlstm.watch import ALARM, MEASURES
from tests.models import HOUR, random_model

HORIZON, SEASON = 5, 6


def test_scores_are_those_of_the_forecasts_published() -> None:
    """Two series, one with gaps and missing values, in batches; the first ticks are history."""
    model = random_model(horizon=HORIZON, lags=(1, 2, 8), season=SEASON)
    engine = Engine(model, max_series=2, max_batch=8)
    engine.series.lookup(Keys.of([b"a", b"b"]))
    rng, n, warm = np.random.default_rng(0), 120, 20
    lives = []
    for slot in (0, 1):
        place = np.cumsum([0, *rng.choice([1, 1, 1, 1, 2, 7][: 4 + 2 * slot], n - 1)])
        y = 10 + np.cumsum(rng.normal(size=n))
        lives.append((place, y, features_of(model.spec, HOUR * place, y[:, None]).scale[:, 0]))
    grids = [_grid(place, y, model.spec.history) for place, y, _ in lives]
    sums = {k: np.zeros(5) for k in (1, 3, 5)}
    made: list[dict[int, tuple[np.ndarray, ...]]] = [{}, {}]
    for i in range(n):
        for slot, (place, y, scale) in enumerate(lives):
            flags = np.full(1, WARM if i < warm else 0, np.uint8)
            ts = HOUR * place[i : i + 1]
            out = engine.step(Ticks(np.array([slot], np.int32), ts, y[i : i + 1, None], flags), 0)
            for k, total in sums.items():
                before = made[slot].get(place[i] - k)
                if before is not None and i >= warm:
                    point, low, high, latest = (each[k - 1] for each in before)
                    naive = abs(y[i] - latest) / scale[i] if k < model.spec.history else np.nan
                    error = abs(y[i] - point) / scale[i]
                    back = place[i] - SEASON
                    seasonal = abs(y[i] - grids[slot][back]) / scale[i] if back >= 0 else naive
                    total += [1, low <= y[i] <= high, error, naive, seasonal]
            shown = (
                engine.work.forecasts.point[0, :, 0],
                *engine.work.forecasts.quantiles[0, :, :, 0],
            )
            made[slot][place[i]] = (*(each.copy() for each in shown), np.full(HORIZON, y[i]))
            assert len(out.slot) == (i >= warm)
    for k, total in sums.items():
        np.testing.assert_allclose(engine.scores[k], total, rtol=1e-5)
        assert total[0] > 100


def _grid(place: np.ndarray, y: np.ndarray, history: int) -> np.ndarray:
    """A series by place; one that was missed holds what stood there whole seasons before."""
    grid = np.full(place[-1] + 1, np.nan)
    grid[place] = y
    for at in np.flatnonzero(np.isnan(grid)):
        grid[at] = grid[at - history] if at >= history else grid[at - 1]
    return grid


def test_forecasts_say_what_is_known_of_their_series() -> None:
    """The same whether a tick comes alone or with others."""
    model = random_model(horizon=HORIZON, lags=(1, 2, 8), season=SEASON)
    rng, n = np.random.default_rng(0), 300
    y, flags = rng.normal(size=n), np.zeros(n, np.uint8)
    flags[:20] = WARM
    told = []
    for batch in (1, 64):
        engine = Engine(model, max_series=2, max_batch=64, telling=True)
        engine.series.lookup(Keys.of([b"a"]))
        parts = []
        for begin in range(0, n, batch):
            part = slice(begin, begin + batch)
            ts = HOUR * np.arange(n)[part]
            slots = np.zeros(len(ts), np.int32)
            out = engine.step(Ticks(slots, ts, y[part, None], flags[part]), 0)
            assert len(out.quality) == len(out.slot)
            parts.append((out.quality.copy(), out.point.copy()))
        told.append([np.concatenate(each) for each in zip(*parts, strict=True)])
        assert engine.alarms == alarms_of(told[-1][0])
    (quality, point), (other, _) = told
    np.testing.assert_array_equal(quality, other)
    of = dict(zip(MEASURES, quality.T, strict=True))
    np.testing.assert_allclose(of["error"][1:], y[21:] - point[:-1, 0, 0])
    scored, covered, error, naive, seasonal = engine.scores[1]
    assert of["coverage"][-1] == pytest.approx(covered / scored)
    assert of["over_last_value"][-1] == pytest.approx(error / naive, rel=1e-4)
    assert of["over_seasonal_naive"][-1] == pytest.approx(error / seasonal, rel=1e-4)
    assert np.isfinite(of["likelihood"][100:]).all()


def alarms_of(quality: np.ndarray) -> dict[str, int]:
    of = dict(zip(MEASURES, quality.T, strict=True))
    return {"anomaly": int((of["likelihood"] >= ALARM).sum()), "drift": int(of["drift"].sum())}


def test_anomalies_and_drifts_are_counted() -> None:
    """A season that is no more what the one before was, of a model that repeats it.

    All the same where the forecasts do not say so, though not all of it is computed then.
    """
    model = random_model(horizon=1, lags=(1,), season=24, base="seasonal")
    y = 20 * np.sin(2 * np.pi * np.arange(900) / 24) + np.random.default_rng(0).normal(size=900)
    y[600:] *= -1
    nothing = np.zeros(900, np.uint8)
    ticks = Ticks(nothing.astype(np.int32), HOUR * np.arange(900), y[:, None], nothing)
    counted = []
    for telling in (True, False):
        engine = Engine(model, max_series=1, max_batch=900, telling=telling)
        engine.series.lookup(Keys.of([b"a"]))
        out = engine.step(ticks, 0)
        counted.append(engine.alarms)
        if telling:
            assert engine.alarms == alarms_of(out.quality)
    assert counted[0] == counted[1]
    assert min(counted[0].values()) > 0


def test_series_that_are_not_watched_cost_nothing() -> None:
    watching, not_watching = (
        Engine(random_model(), max_series=2, watching=watching) for watching in (True, False)
    )
    more = watching.bytes_per_series.keys() - not_watching.bytes_per_series.keys()
    assert more == {"watched", "averages"}
    assert sum(watching.bytes_per_series[name] for name in more) == 48


def test_nothing_is_scored_without_intervals() -> None:
    engine = Engine(random_model(), max_series=2, coverage=0)
    assert engine.scores == {}
    assert engine.work.quality.marks.size == 0


def test_a_missing_value_scores_nothing() -> None:
    policies = Policies(not_a_number="missing")
    engine = Engine(random_model(), max_series=2, policies=policies)
    engine.series.lookup(Keys.of([b"a"]))
    for i, value in enumerate([1.0, 2.0, np.nan, 4.0]):
        ticks = Ticks(
            np.zeros(1, np.int32), np.array([HOUR * i]), np.array([[value]]), np.zeros(1, np.uint8)
        )
        engine.step(ticks, 0)
    assert engine.scores[1][0] == 2


def test_another_model_counts_on() -> None:
    old, new = (
        Engine(random_model(seed, lags=(1, 4)), max_series=2, ordered=True) for seed in (0, 1)
    )
    old.series.lookup(Keys.of([b"a"]))
    for i in range(5):
        one = np.zeros(1, np.int32), np.array([HOUR * i]), np.array([[1.0 + i]])
        old.step(Ticks(*one, np.zeros(1, np.uint8)), 0)
    assert old.scores[1][0] > 0
    handover = Handover(old, new)
    while not handover.done:
        handover.prepare()
        handover.advance()
    handover.settle()
    assert new.scores == old.scores
