"""The smoothing that a fit chooses suits what the series do."""

import numpy as np
import pytest

from streamlstm.datasets.frames import SeriesData
from streamlstm.infer import infer_spec
from streamlstm.model import Smoothing
from streamlstm.train import FitOptions

HOUR = 3_600_000_000_000


def chosen(values: np.ndarray, season: int, horizon: int = 3) -> Smoothing:
    series = [SeriesData("s", np.arange(len(values)) * HOUR, values[:, None])]
    spec = infer_spec(series, FitOptions(horizon=horizon, season=season, calendar=()), [])
    assert spec.blend is not None
    assert spec.smoothing is not None
    assert spec.blend.weights == ((0.0,) * 4,) * horizon
    return spec.smoothing


def seasonal(n: int, season: int, noise: float, wander: float) -> np.ndarray:
    """A fixed season in noise, on a level that wanders."""
    rng = np.random.default_rng(0)
    profile = np.tile(rng.normal(0, 3, season), n // season + 1)[:n]
    return profile + noise * rng.normal(size=n) + np.cumsum(wander * rng.normal(size=n))


def test_a_level_that_wanders_is_followed_and_one_that_stays_is_not() -> None:
    assert chosen(seasonal(1200, 10, 0.1, 1.0), 10).level >= 0.6
    assert chosen(seasonal(1200, 10, 1.0, 0.0), 10).level <= 0.05


def test_a_profile_that_stays_is_averaged() -> None:
    assert chosen(seasonal(1200, 10, 1.0, 0.0), 10).profile == 0.05


@pytest.mark.parametrize("season", [24, 168])
def test_the_season_is_that_which_repeats(season: int) -> None:
    assert chosen(seasonal(168 * 8, season, 0.5, 0.0), season).season == season


def test_what_is_never_seen_does_not_matter() -> None:
    values = seasonal(400, 10, 0.3, 0.1)
    changed = values.copy()
    changed[340:] = 1e6 * np.random.default_rng(1).normal(size=60)  # the last 15 %
    assert chosen(values, 10) == chosen(changed, 10)


def test_the_shortest_series_and_constant_ones_do() -> None:
    for values in (np.arange(24.0), np.full(60, 5.0)):
        assert chosen(values, 4, horizon=4).season == 4
