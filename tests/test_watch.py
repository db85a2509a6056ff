"""A series is compared with itself: with what its errors usually are, and with naive forecasts."""

from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray

from streamlstm.memory import records
from streamlstm.placed import placed
from streamlstm.watch import ALARM, MEASURES, Watched, look, watched_fields

Floats = NDArray[np.float64]


def watch(
    error: Floats, last: Floats, seasonal: Floats, inside: Floats, *, season: int = 1
) -> dict[str, Floats]:
    """What is said of each tick of one series."""
    watched = placed(Watched(True, True, *records(watched_fields(), 1).values()))
    measures = np.full((len(error), len(MEASURES)), np.nan)
    for i in range(len(error)):
        look(watched, 0, error[i], last[i], seasonal[i], season, inside[i], measures, i)
    return dict(zip(MEASURES, measures.T, strict=True))


def exponential(n: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).exponential(size=n)


def test_all_is_as_the_text_says() -> None:
    """Computed anew in plain Python, in doubles."""
    rng = np.random.default_rng(1)
    error = exponential(700)
    error[rng.random(700) < 0.1] = np.nan  # no tick was forecast
    error[300:] *= 1.3
    last, seasonal = 2 * exponential(700, 2), 3 * exponential(700, 3)
    inside = (error < 2).astype(float)
    found = watch(error, last, seasonal, inside)
    known = np.isfinite(error)
    usual = lately = mean = variance = excess = 0.0
    for count, i in enumerate(np.flatnonzero(known)):
        if count:
            anomaly = error[i] / (error[i] + usual)
            assert found["anomaly"][i] == pytest.approx(anomaly, rel=1e-5)
            lately += (anomaly - lately) / min(count, 10)
            if count >= 100:
                sigma = max(variance, 0.0003) ** 0.5
                likely = NormalDist().cdf((lately - max(mean, 0.03)) / sigma)
                assert found["likelihood"][i] == pytest.approx(likely, abs=1e-4)
                before = known[:i].nonzero()[0]
                beside = last[i] * error[before].sum() / last[before].sum()
                excess = max(0.0, excess + min(error[i] / usual, 4) - 1.5 * beside / usual)
                assert excess < 45
            else:
                assert np.isnan(found["likelihood"][i])
            share = 1 / count
            off = lately - mean
            mean += share * off
            variance = (1 - share) * (variance + share * off * off)
        usual += (error[i] - usual) / (count + 1)
        for name, naive in (("over_last_value", last), ("over_seasonal_naive", seasonal)):
            ratio = error[: i + 1][known[: i + 1]].sum() / naive[: i + 1][known[: i + 1]].sum()
            assert found[name][i] == pytest.approx(ratio, rel=1e-4)
        assert found["coverage"][i] == pytest.approx(inside[: i + 1][known[: i + 1]].mean())
    assert np.isnan(found["anomaly"][~known]).all()
    assert not found["drift"].any()


def test_what_is_usual_is_seldom_an_anomaly_and_what_is_not_is_one() -> None:
    error = exponential(100_000)
    error[50_000:50_008] = 30
    ones = np.ones(len(error))
    likelihood = watch(error, ones, ones, ones)["likelihood"]
    alarms = np.flatnonzero(likelihood >= ALARM)
    assert {*alarms} & {*range(50_000, 50_010)}
    assert sum(not 50_000 <= at < 50_050 for at in alarms) < 20


def test_errors_that_grow_for_good_are_a_drift_once_and_then_the_usual() -> None:
    error = exponential(200_000)
    error[100_000:] *= 3
    ones = np.ones(len(error))
    found = watch(error, ones, ones, ones)
    (drift,) = np.flatnonzero(found["drift"])
    assert 100_000 <= drift < 100_100
    before, after = found["anomaly"][1:100_000], found["anomaly"][drift + 2000 :]
    assert abs(after.mean() - before.mean()) < 0.01


@pytest.mark.parametrize("active", [0.25, 0.5])
def test_hours_in_which_all_errs_more_are_no_drift(active: float) -> None:
    """Five-minute ticks whose errors are twenty times as large by day, day after day."""
    day = 288
    course = np.where(np.arange(100 * day) % day < active * day, 1, 0.05)
    error, last = exponential(100 * day) * course, 3 * exponential(100 * day, 1) * course
    ones = np.ones(len(error))
    assert not watch(error, last, ones, ones)["drift"].any()
    error[50 * day :] *= 4
    found = watch(error, last, ones, ones)["drift"]
    assert not found[: 50 * day].any()
    assert found[50 * day : 52 * day].any() == (active == 0.5)  # else the day hides it


def test_without_a_season_there_is_no_such_naive_forecast() -> None:
    ones = np.ones(10)
    found = watch(2 * ones, ones, ones, ones, season=0)
    assert np.isnan(found["over_seasonal_naive"]).all()
    assert (found["over_last_value"] == 2).all()


def test_a_series_that_is_never_wrong_is_fine() -> None:
    nothing = np.zeros(500)
    found = watch(nothing, nothing, nothing, np.ones(500))
    assert (found["coverage"] == 1).all()
    assert not found["drift"].any()
    assert np.isnan(found["over_last_value"]).all()  # 0 / 0
