"""Charts show what they are given."""

import numpy as np
import pytest

from streamlstm.terminal import (
    Canvas,
    byte_size,
    exact_time,
    fan_chart,
    printable,
    short_time,
    sparkline,
    steps_ahead,
    when,
)


def test_a_sparkline_has_a_character_a_value() -> None:
    assert sparkline([0, 1, 2, 7]) == "▁▂▃█"
    assert sparkline([3, 3]) == "▁▁"
    assert sparkline([np.nan, 1, 2]) == " ▁█"
    assert sparkline([np.nan]) == " "
    assert sparkline([7, 6, np.nan], 0.0) == "█▇ "
    assert sparkline([0, 0], 0.0) == "▁▁"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 us"), (85e-6, "85 us"), (1.24e-3, "1.2 ms"), (0.0126, "13 ms"), (1, "1.0 s"),
        (99.4, "99 s"), (100, "1 min 40 s"), (7384, "2 h 3 min"), (266_400, "3 d 2 h"),
        (np.nan, "–"),
    ],
)  # fmt: skip
def test_a_span_of_time(seconds: float, said: str) -> None:
    assert short_time(seconds) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (1e-6, "1 us"), (1e-3, "1 ms"), (0.25, "250 ms"), (1, "1 s"), (59, "59 s"),
        (60, "1 min"), (1800, "30 min"), (3600, "1 h"),
        (5400, "1.5 h"), (86_400, "1 day"), (604_800, "7 days"), (30 * 86_400, "30 days"),
        (31 * 86_400, "1 month"), (91.5 * 86_400, "3 months"), (365 * 86_400, "1 year"),
    ],
)  # fmt: skip
def test_a_spacing_of_ticks_is_said_exactly(seconds: float, said: str) -> None:
    assert exact_time(round(seconds * 1e9)) == said


def test_a_horizon_is_of_steps_or_of_ticks() -> None:
    assert steps_ahead(24, 10**9 // 20) == "24 steps of 50 ms"
    assert steps_ahead(1, 86_400 * 10**9) == "1 step of 1 day"
    assert (steps_ahead(24, 0), steps_ahead(1, 0)) == ("24 ticks", "1 tick")


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (999, "999 B"), (50_024, "50 kB"), (2.093e8, "209 MB"), (3e15, "3e+03 TB")],
)
def test_a_number_of_bytes(count: float, said: str) -> None:
    assert byte_size(count) == said


def test_a_line_goes_from_corner_to_corner() -> None:
    canvas = Canvas(4, 2, (0.0, 1.0), (0.0, 1.0))
    canvas.line(np.array([0.0, 1.0]), np.array([0.0, 1.0]), "red")
    np.testing.assert_array_equal(canvas.dots, np.eye(8, dtype=bool)[::-1])


def test_what_is_not_known_is_not_drawn() -> None:
    canvas = Canvas(4, 2, (0.0, 2.0), (0.0, 1.0))
    canvas.line(np.array([0.0, 1.0, 2.0]), np.array([0.0, np.nan, 1.0]), "red")
    canvas.band(np.array([0.0, 2.0]), np.array([np.nan, np.nan]), np.array([1.0, 1.0]), "red")
    assert not canvas.dots.any()


def test_a_fan_chart_fits_its_frame_and_shows_its_range() -> None:
    actual, ahead = np.linspace(100, 200, 50), np.linspace(200, 220, 10)
    chart = fan_chart(actual, ahead, ahead - 30, ahead + 30, 60, 10).plain.splitlines()
    assert len(chart) == 11
    assert all(len(line) <= 60 for line in chart)
    top = float(chart[0].split("│")[0].replace(",", ""))
    assert top >= 250
    assert "actual" in chart[-1]


def test_a_flat_series_and_unknown_intervals_are_drawn_too() -> None:
    unknown = np.full(3, np.nan)
    assert "│" in fan_chart(np.ones(5), np.ones(3), unknown, unknown, 40, 6).plain


def test_when() -> None:
    assert when(951_782_400 * 10**9 + 5) == "2000-02-29 00:00:00"


@pytest.mark.parametrize(("width", "height"), [(1, 1), (8, 2), (0, 0)])
def test_a_chart_in_a_tiny_window_is_drawn_all_the_same(width: int, height: int) -> None:
    some, unknown = np.arange(3.0), np.full(3, np.nan)
    assert "│" in fan_chart(some, some, some, some, width, height).plain
    assert "│" in fan_chart(unknown, unknown, unknown, unknown, width, height).plain


def test_what_could_steer_a_terminal_is_replaced() -> None:
    assert printable("größe [/x] 漢") == "größe [/x] 漢"
    assert printable("a\x1b[2Jb\nc\u202e\ud800") == "a\ufffd[2Jb\ufffdc\ufffd\ufffd"
