"""A fitted model says how far its forecasts may err, where that can be seen beforehand."""

import numpy as np
import pytest

from streamlstm.backtest import run_all
from streamlstm.datasets.frames import SeriesData
from streamlstm.engine import Engine
from streamlstm.model import Model
from streamlstm.spread import QUANTILE, regressed
from streamlstm.state_schema import schema_of
from streamlstm.train import FitOptions, fit
from tests.models import HOUR, random_model

SMALL = {"horizon": 2, "season": 24, "hidden": 4, "updates": 40, "batch": 16, "chunk": 24}
N, KNOWN = 4000, 3000


def days(seed: int = 0) -> SeriesData:
    """Hours of noise, four times as much by day as by night."""
    hour = np.arange(N) % 24
    size = np.where((hour >= 6) & (hour < 18), 4.0, 1.0)
    y = 100 + 10 * np.sin(2 * np.pi * hour / 24) + size * np.random.default_rng(seed).normal(size=N)
    return SeriesData("a", np.arange(N) * HOUR, y[:, None])


def fitted(spread: bool) -> Model:
    past = days()
    known = SeriesData("a", past.ts[:KNOWN], past.values[:KNOWN])
    return fit([known], FitOptions.model_validate(SMALL | {"spread": spread}))[0]


def test_intervals_are_wide_when_errors_are_large() -> None:
    data, widths, losses = days(), {}, {}
    for spread in (True, False):
        model = fitted(spread)
        assert model.spec.spread is spread
        (issued,) = run_all(model, data.ts, data.values, KNOWN, coverage=(0.9,))
        low, high = (end[:-1, 0] for end in issued.intervals[0.9])
        y = data.values[issued.place[:-1] + 1, 0]
        day = (issued.place[:-1] + 1) % 24
        day = (day >= 6) & (day < 18)
        widths[spread] = np.median((high - low)[day]) / np.median((high - low)[~day])
        beyond = np.maximum(low - y, 0) + np.maximum(y - high, 0)
        losses[spread] = (high - low + 20 * beyond).mean()
        assert ((low <= y) & (y <= high)).mean() == pytest.approx(0.9, abs=0.03)
        early = slice(0, 96)  # from the first forecasts on
        assert ((low <= y) & (y <= high))[early].mean() == pytest.approx(0.9, abs=0.08)
    assert widths[False] == pytest.approx(1, abs=0.3)
    assert 2 < widths[True] < 5
    assert losses[True] < 0.85 * losses[False]


def test_a_model_fitted_like_another_has_its_state() -> None:
    data, old = days(), fitted(True)
    still = SeriesData("s", data.ts, np.full((N, 1), 5.0))
    for spread in (True, False):
        options = FitOptions.model_validate(SMALL | {"spread": spread})
        new, _ = fit([still], options, like=old.spec)
        assert new.spec.spread
        assert schema_of(Engine(new, max_series=1)) == schema_of(Engine(old, max_series=1))
        assert all(np.isfinite(weight).all() for weight in new.weights.values())


def test_where_there_are_no_intervals_it_costs_nothing() -> None:
    told, plain = random_model(spread=True), random_model()
    sizes = [sum(Engine(model, max_series=9).bytes_per_series.values()) for model in (told, plain)]
    assert sizes[0] > sizes[1]
    told, plain = (Engine(model, max_series=9, coverage=0) for model in (told, plain))
    assert told.bytes_per_series == plain.bytes_per_series
    assert told.work.outputs.shape == plain.work.outputs.shape


def test_the_regression_finds_the_quantile_of_each_output() -> None:
    """Against exponential errors of a log-linear scale, whose quantiles are known."""
    rng = np.random.default_rng(1)
    shown = rng.normal(size=(8000, 3))
    weights = np.array([[0.5, 0.0], [-0.3, 0.0], [0.0, 0.0]])
    off = rng.exponential(np.exp(shown @ weights))
    off[rng.random(off.shape) < 0.2] = np.nan
    found = regressed(shown, off, 1e-4)
    np.testing.assert_allclose(found, weights, atol=0.06)
    tight = regressed(shown, off, 10.0)
    assert np.abs(tight).max() < 0.05
    assert 0.5 < QUANTILE < 1
