"""The linear start: the best naive forecast at each step ahead, and what corrects it."""

import numpy as np
import pytest

from streamlstm.features import features_of
from streamlstm.linear import (
    PENALTIES,
    best_penalty,
    earlier,
    linear_start,
    ridge,
    trimmed_mean,
)
from streamlstm.model import Blend, Smoothing, Spec

HOUR = 3_600_000_000_000


def blended_spec(short: int, long: int, horizon: int, **more: object) -> Spec:
    blend = Blend(short=short, long=long, weights=((0.0, 0.0, 0.0),) * horizon)
    return Spec(hidden=4, step_ns=HOUR, horizon=horizon, base="blend", blend=blend, **more)


def errors_of(spec: Spec, ts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(n, horizon) value to come less base, NaN beyond the end."""
    base = features_of(spec, ts, values).base
    off = np.full_like(base, np.nan)
    for k in range(spec.horizon):
        off[: -k - 1, k] = values[k + 1 :, 0] - base[: -k - 1, k]
    return off


def test_the_naive_forecast_is_the_best_one_at_each_step() -> None:
    n = np.arange(600)
    rng = np.random.default_rng(0)
    weekly = np.tile(rng.normal(size=42), 15)[:600]  # repeats after 42 steps, not after 6
    values = (np.cumsum(rng.normal(size=600)) * 0.05 + weekly)[:, None]
    start = linear_start(blended_spec(6, 42, 3), [(n * HOUR, values)], [500], 0.01)
    np.testing.assert_array_equal(start.naive, [[0, 1, 0]] * 3)
    walk = np.cumsum(rng.normal(size=(600, 1)), axis=0)
    start = linear_start(blended_spec(6, 42, 3), [(n * HOUR, walk)], [500], 0.01)
    np.testing.assert_array_equal(start.naive, np.zeros((3, 3)))


def test_the_blend_carries_over_what_is_new_since_last_week() -> None:
    rng = np.random.default_rng(0)
    new = rng.normal(size=2000)  # what differs from the week before lives on from day to day
    for i in range(10, 2000):
        new[i] = 0.9 * new[i - 10] + 0.4 * rng.normal()
    values = (3 * np.tile(rng.normal(size=70), 29)[:2000] + new)[:, None]
    pairs, spec = [(np.arange(2000) * HOUR, values)], blended_spec(10, 70, 10)
    start = linear_start(spec, pairs, [1500], 0.01)
    np.testing.assert_array_equal(start.naive, [[0, 1, 0]] * 10)
    naive, blend = (
        np.nanmean(np.abs(errors_of(start.blended(share), *pairs[0])[1500:]), axis=0)
        for share in (0, 1)
    )
    assert (blend < 0.7 * naive).all()


def test_without_a_season_the_last_value_is_corrected() -> None:
    rng = np.random.default_rng(0)
    values = np.zeros((800, 1))
    for i in range(1, 800):
        values[i] = 0.5 * values[i - 1] + rng.normal()
    spec = Spec(hidden=4, step_ns=HOUR, horizon=1, lags=(1,))
    start = linear_start(spec, [(np.arange(800) * HOUR, values)], [800], 1e-6)
    assert start.blended(1) == spec
    rows = features_of(spec, np.arange(800) * HOUR, values)
    forecast = rows.base[:, 0] + rows.scale[:, 0] * (rows.x @ start.skip[0] + start.bias[0])
    assert np.corrcoef(forecast[50:], 0.5 * values[50:, 0])[0, 1] > 0.98


def test_many_series_and_short_ones_do() -> None:
    rng = np.random.default_rng(0)
    pairs = [(np.arange(40) * HOUR, rng.normal(5, 1, (40, 1))) for _ in range(300)]
    start = linear_start(blended_spec(3, 6, 2), pairs, [30] * 300, 0.01)
    assert np.isfinite(start.skip).all()
    assert np.isfinite(start.blend).all()


def test_a_share_of_the_correction() -> None:
    start = linear_start(
        blended_spec(3, 6, 2),
        [(np.arange(300) * HOUR, np.random.default_rng(0).normal(size=(300, 1)))],
        [300],
        0.01,
    )
    shared = start.blended(np.array([0.5, 0.0])).blend
    assert shared is not None
    np.testing.assert_allclose(shared.weights[0], start.naive[0] + 0.5 * start.blend[0])
    np.testing.assert_allclose(shared.weights[1], start.naive[1])


def test_of_the_naive_forecast_a_share_is_smoothed() -> None:
    spec = blended_spec(3, 6, 2)
    assert spec.blend is not None
    smoothing = Smoothing(season=6, level=0.1, profile=0.1)
    zeros = ((0.0, 0.0, 0.0, 0.0),) * 2
    blend = spec.blend.model_copy(update={"weights": zeros, "smoothing": smoothing})
    spec = spec.model_copy(update={"blend": blend})
    noise = np.random.default_rng(0).normal(size=(300, 1))
    start = linear_start(spec, [(np.arange(300) * HOUR, noise)], [300], 0.01)
    assert start.naive.shape == start.blend.shape == (2, 4)
    assert not start.naive[:, 3].any()  # it is not one of the naive forecasts
    shared = start.blended(0, np.array([0.25, 1.0])).blend
    assert shared is not None
    np.testing.assert_allclose(shared.weights[0], 0.75 * start.naive[0] + [0, 0, 0, 0.25])
    np.testing.assert_allclose(shared.weights[1], [0, 0, 0, 1])


def short(n: int, seed: int = 0) -> tuple[Spec, list[tuple[np.ndarray, np.ndarray]]]:
    """A series that its latest two values say most of, and a spec that shows a dozen."""
    rng = np.random.default_rng(seed)
    y = np.zeros(n)
    for t in range(2, n):
        y[t] = 1.2 * y[t - 1] - 0.5 * y[t - 2] + rng.normal()
    spec = Spec(hidden=3, step_ns=HOUR, horizon=2, lags=tuple(range(1, 13)))
    return spec, [(np.arange(n) * HOUR, 10 + y[:, None])]


def test_earlier_spans_are_judged_by_what_lies_before_them_alone() -> None:
    spec, [(ts, values)] = short(200)
    found = list(earlier(spec, [(ts, values)], [160], 0.1, 20))
    assert [(rows[0], rows[-1]) for *_, rows in found] == [(120, 159), (80, 119)]
    for k, begin in enumerate((120, 80)):
        changed = values.copy()
        changed[begin:] = 1e3 * np.random.default_rng(1).normal(size=changed[begin:].shape)
        begun = list(earlier(spec, [(ts, changed)], [160], 0.1, 20))[k]
        # the answer at its first tick knows that one, and nothing of what follows
        changed[begin] = values[begin]
        first = list(earlier(spec, [(ts, changed)], [160], 0.1, 20))[k]
        np.testing.assert_allclose(first[2][0], found[k][2][0], atol=1e-5)
        assert not np.allclose(begun[2][0], found[k][2][0])
    assert not list(earlier(spec, [(ts, values)], [160], 0.1, 130))


def test_the_fewer_ticks_the_larger_the_penalty_that_errs_least() -> None:
    few = [best_penalty(*short(60, seed), [50], 20) for seed in range(5)]
    many = [best_penalty(*short(2000, seed), [1700], 20) for seed in range(5)]
    assert np.median(few) >= 10 * np.median(many)
    spec, pairs = short(60)
    assert best_penalty(spec, pairs, [50], 60) == PENALTIES[0]  # no span to judge by
    assert best_penalty(*short(3000), [2600], 20) == PENALTIES[0]


def test_ridge_is_least_squares_with_a_small_penalty() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 3)).astype(np.float32)
    coefficients, intercept = ridge(x, x @ [1.0, -2.0, 0.5] + 4, 1e-6)
    np.testing.assert_allclose(coefficients, [1, -2, 0.5], atol=1e-4)
    assert intercept == pytest.approx(4, abs=1e-4)
    shrunk, _ = ridge(x, x @ [1.0, -2.0, 0.5] + 4 + rng.normal(size=500), 1.0)
    np.testing.assert_allclose(shrunk, [0.5, -1, 0.25], atol=0.15)


def test_ridge_is_not_led_astray_by_outliers() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 1))
    y = 2 * x[:, 0] + rng.normal(0, 0.1, 500)
    y[:20] += 1000
    (slope,), intercept = ridge(x, y, 1e-6)
    assert slope == pytest.approx(2, abs=0.05)
    assert intercept == pytest.approx(0, abs=0.05)


def test_trimmed_mean_leaves_out_the_largest_tenth_and_what_is_missing() -> None:
    errors = np.array([[1.0, np.nan], [100.0, 2.0], *[[1.0, 4.0]] * 8])
    np.testing.assert_allclose(trimmed_mean(errors), [1.0, (2 + 8 * 4) / 9])
    np.testing.assert_array_equal(trimmed_mean(np.full((3, 1), np.nan)), [0])
