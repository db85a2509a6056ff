"""Times that go on as pandas' offsets say they do."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from streamlstm.datasets.onward import Onward, onward

CALENDAR = ["MS", "ME", "2MS", "QS-FEB", "QE", "YS", "YE", "B"]
FIXED = ["h", "30min", "W-TUE", "D"]


def stamps(freq: str, zone: str, count: int = 60) -> np.ndarray:
    index = pd.date_range("2019-10-03 07:00", periods=count, freq=freq, tz=zone)
    return np.asarray(index.tz_convert("UTC").as_unit("ns").asi8)


def after(times: np.ndarray, zone: str, ahead: int) -> np.ndarray:
    step = np.array([int(np.median(np.diff(times)))])
    short, long = onward([times[:2], times], zone)
    assert short == long  # what is too short to tell goes on as the longest
    return long.after(times[-1:], step, np.arange(1, ahead + 1))[0]


@pytest.mark.parametrize(
    ("freq", "zone"), [*product(CALENDAR + FIXED, ["UTC", "America/New_York"])]
)
def test_as_the_offset_says(freq: str, zone: str) -> None:
    times = stamps(freq, zone)
    np.testing.assert_array_equal(after(times[:25], zone, 35), times[25:])


@pytest.mark.parametrize("freq", ["MS", "ME", "QS-FEB", "W-TUE", "B"])
def test_with_some_missing(freq: str) -> None:
    times = stamps(freq, "Asia/Tokyo")
    kept = np.delete(times[:40], [4, 5, 11, 23])
    np.testing.assert_array_equal(after(kept, "Asia/Tokyo", 20), times[40:])


def test_all_else_is_evenly_spaced() -> None:
    hour = 3_600_000_000_000
    uneven = np.cumsum([0, 10, 10, 30, 10]) * hour
    assert onward([uneven]) == onward([uneven[:2]]) == [Onward()]
    last, ahead = np.array([5, 7 * hour]), np.array([1, 4])
    found = Onward().after(last, np.array([3, hour]), ahead)
    np.testing.assert_array_equal(found, [[8, 17], [8 * hour, 11 * hour]])


def test_series_that_are_spaced_otherwise_go_on_as_they_did() -> None:
    hours, days, months = stamps("h", "UTC", 500), stamps("B", "UTC", 60), stamps("ME", "UTC", 20)
    ways = onward([months, days, days[:5], hours])
    assert ways == [Onward(1, at_the_end=True), Onward(working_days=True), Onward(), Onward()]
    further = stamps("ME", "UTC", 25)[20:]
    found = ways[0].after(months[-1:], np.array([0]), np.arange(1, 6))
    np.testing.assert_array_equal(found[0], further)
