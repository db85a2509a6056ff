"""Scores against plain loops, and a backtest that is the live engine's own forecasts."""

import numpy as np
import pytest

from streamlstm.backtest import (
    Actual,
    BacktestError,
    Issued,
    interval_score,
    places,
    run,
    score,
)  # fmt: skip
from streamlstm.engine import Engine
from streamlstm.ticks import Keys, Ticks
from tests.models import HOUR, random_model


def wave(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    hours = np.arange(n)
    return hours * HOUR, 10 + np.sin(2 * np.pi * hours / 24) + 0.1 * rng.normal(size=n)


def test_it_is_the_live_engine_tick_by_tick() -> None:
    model = random_model(season=24, base="seasonal", horizon=5)
    ts, y = wave(400)
    issued = run(model, ts, y[:, None], 300)
    engine = Engine(model, max_series=1, max_batch=1)
    engine.series.lookup(Keys.of([b"x"]))
    slot, quiet, live = np.zeros(1, np.int32), np.zeros(1, np.uint8), []
    for i in range(400):
        one = slice(i, i + 1)
        live.append(engine.step(Ticks(slot, ts[one], y[one, None], quiet), 0).point[0, :, 0].copy())
    np.testing.assert_array_equal(issued.point, live[299:])
    np.testing.assert_array_equal(issued.place, np.arange(299, 400))


@pytest.mark.parametrize("gap", [False, True])
def test_scores_are_those_of_plain_loops(gap: bool) -> None:
    ts, y = wave(200)
    keep = np.delete(np.arange(200), [50, 160, 161]) if gap else np.arange(200)
    ts, y = ts[keep], y[keep]
    known, season, horizon = 150, 24, 3
    rng = np.random.default_rng(1)
    m = len(ts) - known + 1
    point = rng.normal(10, 1, (m, horizon))
    issued = Issued(places(ts, HOUR)[known - 1 :], point, point - 1, point + 1.5)
    scores = score([(Actual.of(ts, y, HOUR, season, known), issued)], (1, 3), 0.9)

    value = dict(zip((ts // HOUR).tolist(), y.tolist(), strict=True))
    hours = (ts[known - 1 :] // HOUR).tolist()
    past = [h for h in value if h <= hours[0]]
    changes = [abs(value[h] - value[h - season]) for h in past if h - season in value]
    unit = np.mean(changes)
    inside, widths = [], []
    for k in (1, 2, 3):
        errors = {"model": [], "last_value": [], "seasonal_naive": []}
        covered = []
        for row, h in enumerate(hours):
            if h + k not in value:
                continue
            target = value[h + k]
            errors["model"].append(abs(target - point[row, k - 1]))
            errors["last_value"].append(abs(target - value[h]))
            errors["seasonal_naive"].append(abs(target - value.get(h + k - season, value[h])))
            low, high = point[row, k - 1] - 1, point[row, k - 1] + 1.5
            covered.append(low <= target <= high)
            widths.append(2.5 + 20 * (max(low - target, 0) + max(target - high, 0)))
        inside += covered
        assert scores.coverage[str(k)] == pytest.approx(np.mean(covered))
        if k != 2:
            for name, found in errors.items():
                assert scores.mae[str(k)][name] == pytest.approx(np.mean(found))
                assert scores.mase[str(k)][name] == pytest.approx(np.mean(found) / unit)
    assert scores.pooled_coverage == pytest.approx(np.mean(inside))
    assert scores.winkler["model"] == pytest.approx(np.mean(widths))
    assert scores.forecasts == len(hours)
    assert set(scores.mae) == {"1", "3"}


def test_without_a_season_the_seasonal_naive_is_the_last_value() -> None:
    ts, y = wave(100)
    issued = Issued(np.arange(80, 100), *np.zeros((3, 20, 2)))
    scores = score([(Actual.of(ts, y, HOUR, 0, 81), issued)], (1, 2), 0.9)
    for k in ("1", "2"):
        assert scores.mae[k]["seasonal_naive"] == scores.mae[k]["last_value"]


def test_a_horizon_beyond_the_season_looks_whole_seasons_back() -> None:
    ts, y = wave(100)
    actual = Actual.of(ts, y, HOUR, 24, 80)
    place = np.array([90])
    assert actual.naive("seasonal_naive", place, 24)[0] == y[90]
    assert actual.naive("seasonal_naive", place, 25)[0] == y[67]


def test_the_interval_score_is_winklers() -> None:
    target = np.array([5.0, 0.0, 12.0])
    lower, upper = np.full(3, 2.0), np.full(3, 10.0)
    np.testing.assert_allclose(interval_score(target, lower, upper, 0.9), [8, 48, 48])


def test_a_tick_that_the_engine_drops_is_told() -> None:
    ts, y = wave(50)
    y[20] = 1e38
    with pytest.raises(BacktestError, match=r"dropped 1 of 50 ticks \(1 out_of_range\)"):
        run(random_model(), ts, y[:, None], 40)


def test_a_gap_that_would_fill_the_memory_is_refused() -> None:
    ts, y = np.array([0, 1, 10**12]) * 1_000_000, np.zeros(3)
    with pytest.raises(BacktestError, match=r"3 ticks lie on 1,000,000,000,001 steps of 0.001 s"):
        Actual.of(ts, y, 1_000_000, 0, 2)


@pytest.mark.filterwarnings("error")
def test_a_constant_series_has_no_mase_and_raises_no_warning() -> None:
    ts, _ = wave(60)
    issued = Issued(np.arange(40, 60), *np.zeros((3, 20, 2)))
    scores = score([(Actual.of(ts, np.zeros(60), HOUR, 0, 41), issued)], (1, 2), 0.9)
    assert scores.mae["1"]["model"] == 0
    assert np.isnan(scores.mase["1"]["model"])
