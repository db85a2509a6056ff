"""What a fit takes from the data: step, season, lags, scales, a floor, and what is shown."""

import numpy as np
import pytest

from streamlstm.datasets.frames import SeriesData
from streamlstm.fit_options import FitOptions
from streamlstm.infer import infer_spec
from streamlstm.model import Input, Spec
from tests.test_train import wave

MINUTE, HOUR, DAY = 60_000_000_000, 3_600_000_000_000, 86_400_000_000_000


def inferred(
    *series: SeriesData, inputs: tuple[Input, ...] = (), **options: object
) -> tuple[Spec, list[str]]:
    notes: list[str] = []
    chosen = FitOptions.model_validate({"horizon": 2} | options)
    return infer_spec(series, chosen, notes, inputs), notes


def test_a_series_of_centuries_has_a_step_and_no_calendar() -> None:
    """Its ends are further apart than 64 bits of nanoseconds say."""
    years = (np.arange(1700, 2009) - 1970) * 365 * DAY
    spec, _ = inferred(SeriesData("sunspots", years, wave(len(years)).values), season=0)
    assert (spec.step_ns, spec.calendar) == (365 * DAY, ())


def test_uneven_spacing_is_counted_in_ticks() -> None:
    days = np.array([i for i in range(300) if i % 7 < 5]) * DAY
    series = SeriesData("market", days, wave(len(days)).values)
    notes: list[str] = []
    spec = infer_spec([series], FitOptions(horizon=1, season=0), notes)
    assert spec.step_ns == 0
    assert any("unevenly" in note for note in notes)


@pytest.mark.parametrize(
    ("step", "period", "n", "season", "calendar"),
    [
        (HOUR, 24, 1000, 24, {"hour", "week"}),
        (HOUR, 168, 1200, 168, {"hour", "week"}),
        (30 * MINUTE, 48, 1500, 48, {"hour", "week"}),
        (DAY, 7, 400, 7, {"week"}),
        (DAY * 365 // 12, 12, 120, 12, {"year"}),
    ],
)
def test_season_and_calendar_are_inferred(
    step: int, period: int, n: int, season: int, calendar: set[str]
) -> None:
    series = SeriesData("s", np.arange(n) * step, wave(n, period=period).values)
    spec = infer_spec([series], FitOptions(horizon=4), [])
    assert spec.season == season
    assert set(spec.calendar) == calendar


def test_a_season_may_be_told() -> None:
    week, odd, none = (
        infer_spec([wave(1000)], FitOptions(horizon=2, season=season), [])
        for season in (168, 10, 0)
    )
    latest = (1, 2, 3, 4, 5)
    days = (22, 23, 24, 25, 26, 46, 47, 48, 49, 50)
    assert (week.season, week.lags) == (168, (*latest, *days, 166, 167, 168, 169, 170))
    assert (odd.season, odd.lags) == (10, (*latest, 8, 9, 10, 11, 12, 18, 19, 20))
    assert (none.season, none.base, none.blend, none.lags) == (0, "last", None, latest)


def test_what_was_not_seen_three_times_is_no_season() -> None:
    assert infer_spec([wave(60)], FitOptions(horizon=2), []).season == 0
    assert infer_spec([wave(400)], FitOptions(horizon=2), []).lags[-1] == 48


def test_the_scale_of_a_new_series_is_guessed_from_those_at_hand() -> None:
    rng = np.random.default_rng(0)
    many = [
        SeriesData(str(i), np.arange(400) * HOUR, 1000.0**i * rng.normal(5, 0.5, (400, 1)))
        for i in range(3)
    ]
    spec = infer_spec(many, FitOptions(horizon=2), [])
    assert spec.scaling.prior_ratio == pytest.approx(0.1, rel=0.1)


def test_the_time_since_the_tick_before_is_shown_where_ticks_are_missing() -> None:
    whole = wave(1000)
    few, more = (
        SeriesData("g", np.delete(whole.ts, gone), np.delete(whole.values, gone, axis=0))
        for gone in (range(100, 800, 100), range(100, 800, 25))
    )
    assert inferred(whole)[0].elapsed_ns == inferred(few)[0].elapsed_ns == 0
    spec, notes = inferred(more)
    assert spec.elapsed_ns == spec.step_ns == HOUR
    assert any("the time since the one before" in note for note in notes)
    assert inferred(more, elapsed=False)[0].elapsed_ns == 0
    assert inferred(whole, elapsed=True)[0].elapsed_ns == HOUR
    uneven = SeriesData("m", whole.ts[::2] * (1 + np.arange(500) % 3), whole.values[::2])
    uneven = SeriesData("m", np.sort(uneven.ts), uneven.values)
    spec, _ = inferred(uneven)
    assert spec.step_ns == 0
    assert spec.elapsed_ns == np.median(np.diff(uneven.ts))


@pytest.mark.parametrize(
    ("values", "floor"),
    [
        ([0, 1, 2, 0], 0.0),
        ([0, 1, 2, 0.5], None),
        ([0, 1, -1, 0], None),
        ([1, 1, 2, 3], None),  # none of them is zero
        ([0, 0, 0, 0], None),  # nothing but
    ],
)
def test_counts_of_which_some_are_zero_have_a_floor(
    values: list[float], floor: float | None
) -> None:
    series = SeriesData("s", np.arange(200) * HOUR, np.tile(values, 50)[:, None].astype(float))
    assert inferred(series, season=0)[0].floor == floor
    assert inferred(series, season=0, floor="none")[0].floor is None
    assert inferred(series, season=0, floor=-3)[0].floor == -3


def test_the_floor_is_that_of_targets_and_not_of_features() -> None:
    counts = np.tile([0.0, 1.0], 100)
    values = np.stack([counts, counts - 0.5], axis=1)
    series = SeriesData("s", np.arange(200) * HOUR, values)
    roles = [Input(name="a", role="target"), Input(name="b", role="measured")]
    assert inferred(series, inputs=(*roles,))[0].floor == 0
    both = (roles[0], Input(name="b", role="target"))
    spec, _ = inferred(series, inputs=both)
    assert (spec.floor, spec.targets, spec.outputs) == (None, 2, 4)


def test_what_is_known_has_one_scale_unless_the_levels_of_series_differ() -> None:
    rng = np.random.default_rng(0)
    holiday = (rng.random((2, 300)) < 0.05).astype(float)
    price = np.array([[10.0], [1000.0]]) * (1 + 0.1 * rng.normal(size=(2, 300)))
    series = [
        SeriesData(
            str(i), np.arange(300) * HOUR, np.stack([np.ones(300), holiday[i], price[i]], axis=1)
        )
        for i in range(2)
    ]
    names = (("y", "target"), ("holiday", "known"), ("price", "known"))
    inputs = tuple(Input.model_validate({"name": name, "role": role}) for name, role in names)
    _, found, own = inferred(*series, inputs=inputs)[0].roles
    assert (found.loc, found.scale) == pytest.approx((holiday.mean(), holiday.std()))
    assert own.scale == 0


def test_the_season_is_that_of_all_targets() -> None:
    """One repeats after a day; the other, which is the larger, after a week."""
    hours = np.arange(2000)
    rng = np.random.default_rng(0)
    daily = np.sin(2 * np.pi * hours / 24) + 0.3 * rng.normal(size=2000)
    weekly = 100 * np.tile(rng.normal(size=168), 12)[:2000]
    inputs = (Input(name="a", role="target"), Input(name="b", role="target"))
    values = np.stack([daily, weekly], axis=1)
    assert inferred(SeriesData("s", hours * HOUR, values), inputs=inputs)[0].season == 168
    assert inferred(SeriesData("s", hours * HOUR, values[:, :1]))[0].season == 24
