"""Lone errors in the data of a fit, which would spoil it."""

import numpy as np
import pytest

from streamlstm.datasets.frames import SeriesData
from streamlstm.fit_options import FitOptions
from streamlstm.outliers import outliers, without_outliers
from streamlstm.train import fit

HOUR = 3_600_000_000_000
NOISE = np.random.default_rng(0).standard_normal(2000)
DAYS = 25 + 5 * np.sin(np.arange(2000) * 2 * np.pi / 24) + 0.3 * NOISE


def series(values: np.ndarray, name: str = "boiler") -> SeriesData:
    ts = 1_700_000_000_000_000_000 // HOUR * HOUR + np.arange(len(values)) * HOUR
    return SeriesData(name, ts, values.reshape(len(values), -1))


@pytest.mark.parametrize("value", [-999.0, 200.0, 1e6, 1e300])
@pytest.mark.parametrize("at", [0, 1, 1000, 1999])
def test_a_lone_value_far_beyond_the_rest_is_one(value: float, at: int) -> None:
    values = DAYS.copy()
    values[at] = value
    assert np.flatnonzero(outliers(values)).tolist() == [at]


def test_what_a_series_does_otherwise_is_none() -> None:
    level, burst = DAYS.copy(), DAYS.copy()
    level[1000:] += 500
    burst[1000:1006] += 500
    counts = np.where(np.arange(2000) % 50 == 0, 7.0, 0.0)
    weekly = np.where(np.arange(2000) % 168 == 0, 1000.0, 10.0) + NOISE
    walk = np.cumsum(np.random.default_rng(1).standard_t(3, 2000))
    few = DAYS[:20], DAYS[:0]
    for values in (DAYS, level, burst, counts, weekly, walk, np.full(2000, 3.0), *few):
        assert not outliers(values).any()


def test_its_tick_is_left_out_and_named() -> None:
    values = np.stack([DAYS, DAYS, NOISE], axis=1)
    values[700, 1] = -9e5
    values[800, 2] = 9e5  # of what is measured beside the targets
    notes: list[str] = []
    same = series(np.stack([DAYS, NOISE], axis=1), "oven")
    first, second = without_outliers([series(values), same], 2, notes)
    assert second is same
    assert len(first.ts) == 1999
    assert first.values[700, 0] == DAYS[701]
    assert notes == [
        "left out of the fit as errors, 30 times as far from their neighbours as is usual: 1 ticks"
        " (the first: -900000 of 'boiler' at 2023-12-14T02:00:00)"
    ]


def test_a_fit_is_as_good_as_without_it() -> None:
    spoilt = DAYS.copy()
    spoilt[1300] = 1e6
    options = FitOptions(horizon=3, season=24, hidden=16, updates=50)
    _, clean = fit([series(DAYS)], options)
    model, report = fit([series(spoilt)], options)
    assert (clean.skill < 0.85).all()
    np.testing.assert_allclose(report.skill, clean.skill, atol=0.02)
    assert any("1e+06 of 'boiler'" in note for note in report.notes)
    assert model.errors is not None
