"""How far apart the ticks of a table are, and in which order its dates are written."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from streamlstm.datasets.frames import from_frame, read_table
from streamlstm.datasets.times import grid_of

HOUR = 3_600_000_000_000


def stamps(freq: str, count: int = 1000) -> np.ndarray:
    return np.asarray(pd.date_range("2024-01-01", periods=count, freq=freq).as_unit("ns").asi8)


def some(ts: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    return ts[np.random.default_rng(seed).random(len(ts)) < share]


@pytest.mark.parametrize("share", [1, 0.95, 0.85, 0.7])
@pytest.mark.parametrize(("freq", "step"), [("h", 1), ("15min", 0.25), ("D", 24), ("W", 168)])
def test_a_grid_of_which_ticks_are_missing_is_a_grid(freq: str, step: float, share: float) -> None:
    pair = [some(stamps(freq), share), some(stamps(freq, 200), share)]
    assert grid_of(pair) == (step * HOUR, step * HOUR)


def test_a_market_that_is_shut_is_none() -> None:
    hours = stamps("h", 3000)
    open_, local = hours // HOUR % 24, pd.to_datetime(hours)
    by_day = hours[(open_ >= 9) & (open_ < 16)]
    weekdays = hours[local.day_of_week < 5]
    assert grid_of([by_day]) == grid_of([by_day[np.isin(by_day, weekdays)]]) == (HOUR, 0)
    assert grid_of([stamps("B")]) == (24 * HOUR, 0)
    assert grid_of([stamps("B", 20)]) == (24 * HOUR, 0)  # too few to tell


def test_ticks_at_any_time_are_none() -> None:
    ts = np.cumsum(np.random.default_rng(0).exponential(HOUR, 1000)).astype(np.int64)
    assert grid_of([ts])[1] == 0
    assert grid_of([some(stamps("h", 5000), 0.3)])[1] == 0  # most are missing
    assert grid_of([ts[:1]]) == (0, 0)


def test_the_usual_spacing_is_one_of_the_data() -> None:
    hours, days = stamps("h", 2000), stamps("D", 80)
    assert grid_of([hours, days]) == grid_of([days, hours]) == (HOUR, HOUR)
    assert grid_of([days, hours, days])[0] == 24 * HOUR


def test_series_that_are_spaced_otherwise_are_named() -> None:
    def notes(*freqs: str) -> list[str]:
        parts = [
            pd.DataFrame({"unique_id": f"{freq} {k}", "ds": pd.to_datetime(stamps(freq)), "y": 1.0})
            for k, freq in enumerate(freqs)
        ]
        return from_frame(pd.concat(parts), "t").notes

    (note,) = notes("h", "D", "h", "30min")
    said = "2 of 4 series spaced otherwise than the usual 3600 s: D 1 (86400 s), 30min 3 (1800 s);"
    assert note.startswith(said)
    assert notes("h", "h", "45min") == []


@pytest.mark.parametrize("dates", ["%d.%m.%Y", "%d. %m. %Y", "%d.%m.%Y %H:%M"])
def test_dates_with_points_begin_with_the_day(tmp_path: Path, dates: str) -> None:
    """Even where months, read as days, would rise as well."""
    index = pd.date_range("2000-01-01", periods=40, freq="MS")
    pd.DataFrame({"ds": index.strftime(dates), "y": np.arange(40.0)}).to_csv(
        tmp_path / "t.csv", index=False
    )
    (one,) = read_table(tmp_path / "t.csv").series
    assert pd.to_datetime(one.ts).tolist() == index.tolist()
