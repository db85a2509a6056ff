"""Intervals keep their promise on series they were not made for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlstm import intervals
from streamlstm.model import Errors, Spec


def run(
    y: np.ndarray, point: np.ndarray, plan: intervals.Plan, places: np.ndarray | None = None
) -> np.ndarray:
    """(n, 2 * coverages, horizon) of one series y (n,) whose forecasts are point (n, horizon)."""
    places = np.arange(len(y)) if places is None else places
    return intervals.around(plan, places, y, point)


def coverage(y: np.ndarray, quantiles: np.ndarray, k: int, skip: int) -> float:
    target = y[skip + k :]
    low, high = (quantiles[skip : len(y) - k, side, k - 1] for side in (0, 1))
    return float(np.mean((low <= target) & (target <= high)))


@pytest.mark.parametrize("cover", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("noise", ["normal", "heavy", "growing", "shift"])
def test_long_run_coverage_whatever_the_data(cover: float, noise: str) -> None:
    n, skip, rng = 6000, 500, np.random.default_rng(1)
    e = {
        "normal": rng.normal(size=n),
        "heavy": rng.standard_t(2, size=n),
        "growing": rng.normal(size=n) * np.linspace(1, 20, n),
        "shift": rng.normal(size=n) * np.where(np.arange(n) < n // 2, 1, 8),
    }[noise]
    quantiles = run(e, np.zeros((n, 3)), intervals.plan(3, 1, cover, None, (1, 2, 3)))
    growth = {"growing": 20, "shift": 8}.get(noise, 1)
    chasing = np.log(growth) / (intervals.RATE * (n - skip))  # what the growth costs at most
    for k in (1, 2, 3):
        assert coverage(e, quantiles, k, skip) == pytest.approx(cover, abs=0.015 + chasing)


def test_a_calibrated_model_covers_from_the_first_tick() -> None:
    rng = np.random.default_rng(2)
    errors = Errors(np.array([0.8, 0.9]), np.array([[1.2816] * 2, [1.6449] * 2], np.float32))
    y = rng.normal(size=(400, 30))
    plan = intervals.plan(2, 1, 0.9, errors, (1, 2))
    first = [coverage(c, run(c, np.zeros((30, 2)), plan), 1, 0) for c in y]
    assert np.mean(first) == pytest.approx(0.9, abs=0.02)


def test_without_calibration_the_first_interval_is_unknown_not_invented() -> None:
    y = np.array([0.0, 2.0, 1.0])
    quantiles = run(y, np.zeros((3, 1)), intervals.plan(1, 1, 0.9, None, (1,)))
    assert np.isnan(quantiles[0]).all()
    np.testing.assert_allclose(quantiles[1, :, 0], [-2, 2])


def test_coverage_zero_means_no_intervals() -> None:
    plan = intervals.plan(3, 1, 0.0, None, (1, 3))
    assert intervals.bands_fields(plan)["pending"][1][0] == 0
    assert np.isnan(run(np.ones(4), np.zeros((4, 3)), plan)).all()


def test_a_forecast_is_scored_against_its_own_tick_across_a_gap() -> None:
    """Forecasts say their target's place: any other pairing would leave an error."""
    horizon = 6
    places = np.cumsum([0, 1, 1, 1, 3, 1, 2, 1, 9, 1, 1, 1, 1, 1])
    y = places.astype(float)
    point = places[:, None] + np.arange(1.0, horizon + 1)
    quantiles = run(y, point, intervals.plan(horizon, 1, 0.9, None, range(1, 7)), places)
    known = quantiles[~np.isnan(quantiles).any(axis=1).any(axis=1)]
    assert len(known) > 2
    np.testing.assert_allclose(known[:, 0], known[:, 1])  # zero width: no error was ever seen


@given(st.integers(1, 400))
@settings(max_examples=50)
def test_scored_steps_span_the_horizon_within_bounds(horizon: int) -> None:
    spec = Spec(hidden=1, step_ns=1, horizon=horizon)
    plan = intervals.plan(horizon, 1, 0.9, None, spec.scored)
    steps = plan.steps
    assert (steps[0], steps[-1]) == (1, horizon)
    assert (np.diff(steps) > 0).all()
    assert len(steps) == min(horizon, 3) == len(plan.initial)
    right = np.minimum(plan.left + 1, len(steps) - 1)
    between = (1 - plan.share) * steps[plan.left] + plan.share * steps[right]
    np.testing.assert_allclose(between, np.arange(1, horizon + 1))


def test_between_scored_steps_the_width_bends_as_errors_on_unseen_data_do() -> None:
    sizes = np.array([1.0, 3.0, 4.0, 4.5, 5.0], np.float32)
    errors = Errors(np.array([0.9]), sizes[None])
    plan = intervals.plan(5, 1, 0.9, errors, (1, 5))
    quantiles = run(np.zeros(1), np.zeros((1, 5)), plan)
    np.testing.assert_allclose(quantiles[0, 1], sizes)
