"""Scores against plain loops, and a backtest that is the live engine's own forecasts."""

from statistics import NormalDist

import numpy as np
import pytest

from streamlstm.backtest import (
    Actual,
    BacktestError,
    Issued,
    crps,
    interval_score,
    judge,
    run,
    score,
    smape,
)  # fmt: skip
from streamlstm.engine import Engine
from streamlstm.features import grid_places
from streamlstm.ticks import Keys, Ticks
from tests.models import HOUR, random_model


def wave(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    hours = np.arange(n)
    return hours * HOUR, 10 + np.sin(2 * np.pi * hours / 24) + 0.1 * rng.normal(size=n)


def of_zeros(place: np.ndarray, horizon: int, *coverages: float) -> Issued:
    nothing = np.zeros((len(place), horizon))
    return Issued(place, nothing, dict.fromkeys(coverages or (0.9,), (nothing, nothing)))


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
    place = grid_places(HOUR, ts)[known - 1 :]
    ends = {0.9: (1.0, 1.5), 0.5: (0.4, 0.3), 0.8: (0.8, 0.9)}
    given = {c: (point - low, point + up) for c, (low, up) in ends.items()}
    issued = Issued(place, point, given)
    scores = judge(Actual.of(ts, y, HOUR, season, known), issued)

    value = dict(zip((ts // HOUR).tolist(), y.tolist(), strict=True))
    hours = (ts[known - 1 :] // HOUR).tolist()
    past = [h for h in value if h <= hours[0]]
    unit = np.mean([abs(value[h] - value[h - season]) for h in past if h - season in value])
    levels = np.array([0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95])
    offsets = np.array([-1.0, -0.8, -0.4, 0, 0.3, 0.9, 1.5])
    weights = np.diff([0, 0.075, 0.175, 0.375, 0.625, 0.825, 0.925, 1])
    everything = []
    for k in (1, 2, 3):
        came = [(row, h) for row, h in enumerate(hours) if h + k in value]
        target = np.array([value[h + k] for _, h in came])
        naive = np.array([season_before(value, h, h + k - season, season) for _, h in came])
        forecasts = {
            "model": np.array([point[row, k - 1] for row, _ in came]),
            "last_value": np.array([value[h] for _, h in came]),
            "seasonal_naive": naive,
        }
        for name, forecast in forecasts.items():
            error = target - forecast
            expected = {
                "mae": np.mean(np.abs(error)),
                "rmse": np.sqrt(np.mean(error**2)),
                "mase": np.mean(np.abs(error)) / unit,
                "smape": 100 * np.mean(2 * np.abs(error) / (np.abs(target) + np.abs(forecast))),
            }
            for measure, found in expected.items():
                assert scores.by_step(measure, name)[k - 1] == pytest.approx(found), measure
        for c, (low, up) in ends.items():
            lower, upper = forecasts["model"] - low, forecasts["model"] + up
            below, above = lower - target, target - upper
            winkler = low + up + 2 / (1 - c) * (np.maximum(below, 0) + np.maximum(above, 0))
            expected = {
                "coverage": np.mean((below <= 0) & (above <= 0)),
                "winkler": np.mean(winkler),
                "pinball_lower": mean_pinball(target, lower, (1 - c) / 2),
                "pinball_upper": mean_pinball(target, upper, (1 + c) / 2),
            }
            for measure, found in expected.items():
                assert scores.by_step(measure, "model", c)[k - 1] == pytest.approx(found), measure
        quantiles = forecasts["model"] + offsets[:, None]
        losses = [mean_pinball(target, q, p) for q, p in zip(quantiles, levels, strict=True)]
        assert scores.by_step("crps")[k - 1] == pytest.approx(2 * np.dot(weights, losses))
        everything += (target - forecasts["model"]).tolist()
    assert scores.by_step("coverage") == pytest.approx(scores.by_step("coverage", "model", 0.9))
    assert scores.mean("mae") == pytest.approx(np.mean(np.abs(everything)))
    assert scores.mean("rmse") == pytest.approx(np.sqrt(np.mean(np.square(everything))))
    assert scores.targets == len(everything)
    assert scores.forecasts == len(hours)


def season_before(value: dict[int, float], hour: int, back: int, season: int) -> float:
    """What came at ``back`` or else the fewest seasons before it; that of ``hour`` if nothing."""
    while back not in value and back >= 0:
        back -= season
    return value.get(back, value[hour])


def mean_pinball(target: np.ndarray, quantile: np.ndarray, level: float) -> float:
    above = target >= quantile
    return float(np.mean(np.where(above, level, 1 - level) * np.abs(target - quantile)))


def test_scores_of_series_add_up() -> None:
    parts = []
    for seed, origins in ((0, 20), (1, 30)):
        ts, y = wave(100, seed)
        point = np.random.default_rng(seed).normal(10, 1, (origins, 2))
        issued = Issued(np.arange(100 - origins, 100), point, {0.9: (point - 1, point + 1)})
        parts.append((Actual.of(ts, y, HOUR, 24, 101 - origins), issued))
    both, first, second = score(parts), score(parts[:1]), score(parts[1:])
    for measure, weight in (("mae", 1), ("rmse", 2), ("coverage", 1), ("winkler", 1)):
        whole = first.mean(measure) ** weight * first.targets
        whole += second.mean(measure) ** weight * second.targets
        assert both.mean(measure) == pytest.approx((whole / both.targets) ** (1 / weight))
        assert both.over_steps().mean(measure) == pytest.approx(both.mean(measure))
    assert both.targets == first.targets + second.targets == 19 + 18 + 29 + 28


def test_the_crps_comes_near_to_that_of_a_normal_distribution() -> None:
    """Gneiting and Raftery (2007), equation 21: z (2 F(z) - 1) + 2 f(z) - 1 / sqrt(pi)."""
    normal = NormalDist()
    levels = [0.5, *((1 + sign * c) / 2 for c in (0.2, 0.5, 0.8, 0.9, 0.95) for sign in (-1, 1))]
    target = np.random.default_rng(0).normal(size=20_000)
    quantiles = {level: np.full(len(target), normal.inv_cdf(level)) for level in levels}
    exact = [
        z * (2 * normal.cdf(z) - 1) + 2 * normal.pdf(z) - 1 / np.sqrt(np.pi)
        for z in target.tolist()
    ]
    assert crps(target, quantiles).mean() == pytest.approx(np.mean(exact), rel=0.015)


def test_first_middle_and_last_of_the_steps_that_came_are_shown() -> None:
    ts, y = wave(100)
    for apart, horizon, shown in ((1, 48, (1, 24, 48)), (1, 1, (1,)), (2, 5, (2, 4)), (9, 3, ())):
        few, some = ts[::apart], y[::apart]
        actual = Actual.of(few, some, HOUR, 0, 10)
        issued = of_zeros(grid_places(HOUR, few)[9:], horizon)
        assert score([(actual, issued)]).shown == shown


def test_smape_of_nothing_is_nothing() -> None:
    target, point = np.array([0.0, 0.0, 2.0, np.nan]), np.array([0.0, 3.0, 2.0, 1.0])
    np.testing.assert_array_equal(smape(target, point), [0, 200, 0, np.nan])


def test_an_interval_that_is_not_known_covers_nothing() -> None:
    ts, y = wave(50)
    unknown = np.full((10, 1), np.nan)
    issued = Issued(np.arange(39, 49), y[39:49, None], {0.9: (unknown, unknown)})
    scores = score([(Actual.of(ts, y, HOUR, 24, 40), issued)])
    assert scores.mean("coverage") == 0
    assert np.isnan(scores.mean("winkler"))
    assert 0.7 < scores.mean("coverage", "seasonal_naive") <= 1


def test_the_naive_intervals_learn_from_the_first_tick() -> None:
    """And know nothing of what comes: what is changed later changes none issued before."""
    ts, y = wave(400)
    issued = of_zeros(np.arange(200, 400), 2, 0.8, 0.5)
    scores = score([(Actual.of(ts, y, HOUR, 24, 201), issued)])
    for name in ("last_value", "seasonal_naive"):
        for coverage in (0.8, 0.5):
            found = scores.mean("coverage", name, coverage)
            assert found == pytest.approx(coverage, abs=0.08)


def test_all_coverages_share_their_forecasts() -> None:
    model = random_model(season=24, base="seasonal", horizon=5, directions=3)
    ts, y = wave(400)
    both = run(model, ts, y[:, None], 300, coverage=(0.95, 0.5))
    assert list(both.intervals) == [0.95, 0.5]
    widths = {}
    for coverage in (0.95, 0.5):
        alone = run(model, ts, y[:, None], 300, coverage=coverage)
        np.testing.assert_array_equal(both.point, alone.point)
        np.testing.assert_array_equal(both.intervals[coverage], alone.intervals[coverage])
        widths[coverage] = alone.upper - alone.lower
    assert (widths[0.95] > widths[0.5]).all()  # so none had to give way


def test_where_no_season_is_known_yet_the_last_value_stands_in() -> None:
    kept = np.delete(np.arange(60), [3, 27, 30])
    actual = Actual.of(kept * HOUR, 100.0 + kept, HOUR, 24, 50)
    place = np.array([10, 26, 50, 51, 53])
    assert actual.naive("seasonal_naive", place, 1).tolist() == [110, 126, 150, 128, 106]


def test_without_a_season_there_is_no_naive_forecast_from_it() -> None:
    ts, y = wave(100)
    issued = of_zeros(np.arange(80, 100), 2)
    scores = score([(Actual.of(ts, y, HOUR, 0, 81), issued)])
    assert scores.names == ("model", "last_value")
    assert scores.by_step("mae", "last_value")[0] == pytest.approx(np.abs(np.diff(y[80:])).mean())
    with_one = score([(Actual.of(ts, y, HOUR, 24, 81), issued)])
    assert with_one.names == ("model", "last_value", "seasonal_naive")


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
    issued = of_zeros(np.arange(40, 60), 2)
    scores = score([(Actual.of(ts, np.zeros(60), HOUR, 0, 41), issued)])
    assert scores.mean("mae") == 0
    assert scores.mean("smape") == 0
    assert np.isnan(scores.mean("mase"))
