"""What a series' features are worth: causal, the same for stream and training, aligned in gaps."""

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlstm import features
from streamlstm.calendars import HOUR, YEAR, sin_cos
from streamlstm.features import FAR, features_of
from streamlstm.model import Blend, Scaling, Smoothing, Spec

START = 1_400_000_000 * 10**9 // HOUR * HOUR


def spec(**changes: object) -> Spec:
    return Spec.model_validate({"hidden": 4, "step_ns": HOUR, "horizon": 5} | changes)


def series(n: int, seed: int = 0, inputs: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return START + np.arange(n) * HOUR, rng.normal(100, 10, (n, inputs))


def test_features_never_look_ahead() -> None:
    s = spec(season=24, base="seasonal", lags=(24, 1), calendar=("hour", "week"))
    ts, y = series(200)
    whole = features_of(s, ts, y)
    for n in (1, 2, 50, 199):
        for ours, full in zip(features_of(s, ts[:n], y[:n]), whole, strict=True):
            np.testing.assert_array_equal(ours, full[:n])


def test_running_scaling_is_the_mean_and_deviation_of_the_past() -> None:
    s = spec(scaling=Scaling(memory=10_000, prior_ratio=1e-9))
    ts, y = series(500)
    rows = features_of(s, ts, y)
    for i in (10, 100, 499):
        past = y[: i + 1, 0]
        deviation = past.std() * np.sqrt((i + 1) / (i + 11))  # the prior is worth ten ticks
        assert rows.scale[i, 0] == pytest.approx(deviation, rel=1e-6)
        assert rows.x[i, 0] == pytest.approx((y[i, 0] - past.mean()) / deviation, abs=1e-5)


def test_running_scaling_forgets_a_level_of_long_ago() -> None:
    ts, y = series(3000)
    y[500:] += 1e3
    rows = features_of(spec(scaling=Scaling(memory=50, prior_ratio=1e-3)), ts, y)
    assert rows.scale[2999, 0] == pytest.approx(10, rel=0.3)
    assert abs(rows.x[2999, 0]) < 4


@pytest.mark.parametrize("level", [1e3, -1e9])
def test_what_other_series_vary_by_gives_way_to_what_a_series_does_itself(level: float) -> None:
    """Of another level over its deviation than they, say an air pressure among temperatures."""
    ts, y = series(4000)
    y += level
    scale = features_of(spec(scaling=Scaling(memory=100, prior_ratio=0.3)), ts, y).scale[:, 0]
    assert scale[0] == pytest.approx(0.3 * abs(y[0, 0]) * (10 / 11) ** 0.5)
    own = np.array([y[max(0, n - 400) : n + 1].std() for n in range(len(y))])
    assert (scale[200:] < 3 * own[200:] + 1e-2 * abs(level)).all()
    assert scale[-1] < 2.2 * own[-1]


def test_what_other_series_vary_by_holds_where_a_series_is_somewhat_quieter() -> None:
    ts, y = series(1000)
    y += 100
    scale = features_of(spec(scaling=Scaling(memory=100, prior_ratio=0.3)), ts, y).scale[:, 0]
    alone = features_of(spec(scaling=Scaling(memory=100, prior_ratio=1e-12)), ts, y).scale[:, 0]
    assert (scale[200:] ** 2 > alone[200:] ** 2 * 100 / 110 + 30.0**2 / 12).all()


BLEND = Blend(
    short=12, long=24, weights=((0.1, 0.2, 0.3, 0.4),) * 5,
    smoothing=Smoothing(season=12, level=0.3, profile=0.2),
)  # fmt: skip


@pytest.mark.parametrize("many", [1, 2])
@pytest.mark.parametrize("size", [-1e3, 1e9])
@pytest.mark.parametrize("at", [35, 200])
def test_a_wild_reading_is_forgotten_but_for_half_of_what_is_believed(
    at: int, size: float, many: int
) -> None:
    """All that the series says from then on is nearly what it would have said."""
    s = spec(base="blend", lags=(1, 24), blend=BLEND, scaling=Scaling(memory=300))
    ts, y = series(1200)
    clean, wild = features_of(s, ts, y), y.copy()
    wild[at : at + many] += size
    rows, after = features_of(s, ts, wild), at + many + 1  # at the one before that it is seen
    np.testing.assert_array_equal(np.flatnonzero(rows.error), np.arange(at, at + many))
    assert (np.abs(rows.x) <= FAR).all()
    ratio = rows.scale[at + many :] / clean.scale[at + many :]
    assert ratio.max() < 1.35**many
    assert ratio[-1] == pytest.approx(1, abs=0.1)
    off = np.abs(rows.base[after:] - clean.base[after:])
    assert off.max() < 4 * clean.scale.max()
    assert np.abs(rows.base[at] - clean.base[at]).max() > 0.2 * abs(size)  # it may be true


@pytest.mark.parametrize("size", [-1e4, 1e9])
def test_a_wild_reading_of_a_feature_is_forgotten_and_a_new_level_is_met(size: float) -> None:
    s = spec(inputs=2, lags=(1,), scaling=Scaling(memory=300))
    ts, y = series(1200, inputs=2)
    clean, wild, moved = features_of(s, ts, y).x[:, 1], y.copy(), y.copy()
    wild[200, 1] += size
    moved[200:, 1] += size
    shown = features_of(s, ts, wild).x[:, 1]
    assert abs(shown[200]) > FAR / 2
    assert np.abs(shown[201:] - clean[201:]).max() < 0.35 * np.abs(clean).max()
    assert np.abs(shown[1100:] - clean[1100:]).max() < 0.05
    assert np.abs(features_of(s, ts, moved).x[600:, 1]).max() < 3


@pytest.mark.parametrize(("size", "doubted"), [(500.0, [200]), (1e8, [200, 201])])
def test_a_third_wild_reading_in_a_row_is_a_new_level(size: float, doubted: list[int]) -> None:
    ts, y = series(400)
    y[200:] += size
    rows = features_of(spec(lags=(1, 3), scaling=Scaling(memory=100)), ts, y)
    np.testing.assert_array_equal(np.flatnonzero(rows.error), doubted)
    assert (rows.scale[202:210] > size / 20).all()
    np.testing.assert_allclose(rows.base[200:], np.repeat(y[200:], 5, axis=1))


def test_what_comes_again_and_again_is_believed_by_and_by() -> None:
    """Bursts in a series that was at rest for so long that the first is beyond belief."""
    ts, y = series(6000)
    y[3000::50] += 1e4
    error = features_of(spec(lags=(3,), scaling=Scaling(memory=300)), ts, y).error[:, 0]
    assert error[3000]
    assert not error[4500:].any()


def test_where_nothing_is_looked_back_to_and_where_nothing_runs_all_is_believed() -> None:
    ts, y = series(100)
    y[50] = 1e6
    for s in (spec(), spec(lags=(3,), scaling=Scaling(kind="none"))):
        rows = features_of(s, ts, y)
        assert not rows.error.any()
    assert rows.x.max() == 1e6


def test_scaling_none_and_fixed() -> None:
    ts, y = series(3, inputs=2)
    rows = features_of(spec(inputs=2, base="none", scaling=Scaling(kind="none")), ts, y)
    np.testing.assert_allclose(rows.x, y, rtol=1e-6)
    np.testing.assert_array_equal(rows.base, 0)
    fixed = Scaling(kind="fixed", loc=(90.0, 50.0), scale=(2.0, 4.0))
    rows = features_of(spec(inputs=2, base="none", scaling=fixed), ts, y)
    np.testing.assert_allclose(rows.x, (y - [90, 50]) / [2, 4], rtol=1e-6)
    np.testing.assert_array_equal(rows.base, 90)


@pytest.mark.parametrize("value", [0.0, 5.0, -3e7])
def test_a_constant_series_is_finite_and_at_rest(value: float) -> None:
    ts, y = series(300)
    rows = features_of(spec(season=24, base="seasonal", lags=(24,)), ts, 0 * y + value)
    assert np.isfinite(rows.x).all()
    assert (rows.scale > 0).all()
    np.testing.assert_array_equal(rows.x, 0)
    np.testing.assert_array_equal(rows.base, value)


def test_seasonal_base_is_the_value_one_season_before_the_forecast() -> None:
    ts, y = series(100)
    rows = features_of(spec(season=4, horizon=9, base="seasonal"), ts, y)
    i = 60  # steps 1..4 from one season back, 5..8 from the same places, 9 again
    expected = [y[i - 3], y[i - 2], y[i - 1], y[i]] * 2 + [y[i - 3]]
    np.testing.assert_allclose(rows.base[i], np.ravel(expected), rtol=1e-6)


def test_until_a_week_has_passed_a_series_goes_by_its_days() -> None:
    ts, y = series(60)
    blend = BLEND.model_copy(update={"smoothing": Smoothing(season=48, level=0.3, profile=0.2)})
    rows = features_of(spec(base="blend", lags=(1,), blend=blend), ts, y)
    for i in (12, 15, 18):  # the long season is of 24 steps, the smoothed one of 48
        near = y[i - 11 : i - 6, 0]
        np.testing.assert_allclose(rows.base[i], y[i] + (0.1 + 0.2 + 0.4) * (near - y[i]))
    np.testing.assert_array_equal(rows.base[3], y[3].repeat(5))


def test_before_a_season_has_passed_the_base_is_the_last_value() -> None:
    ts, y = series(3)
    rows = features_of(spec(season=24, base="seasonal", lags=(24,)), ts, y)
    np.testing.assert_array_equal(rows.base, np.repeat(y, 5, axis=1))
    np.testing.assert_array_equal(rows.x[:, 1], 0)


def test_a_blend_is_weighed_of_values_at_the_same_phase() -> None:
    ts, y = series(100)
    weights = np.random.default_rng(1).normal(size=(14, 3))
    blend = Blend(short=4, long=12, weights=tuple(map(tuple, weights)))
    rows = features_of(spec(horizon=14, base="blend", blend=blend), ts, y)
    i, v = 60, y[:, 0]
    for k, (w1, w2, w3) in enumerate(weights, start=1):
        at1, at2 = i + k - 4 * -(-k // 4), i + k - 12 * -(-k // 12)
        expected = v[i] + w1 * (v[at1] - v[i]) + w2 * (v[at2] - v[i]) + w3 * (v[at1] - v[at1 - 12])
        assert rows.base[i, k - 1] == pytest.approx(expected, abs=1e-4)


def test_a_blend_leaves_out_what_was_never_seen_or_takes_the_nearer_season() -> None:
    ts, y = series(16)
    blend = Blend(short=4, long=12, weights=((1.0, 10.0, 100.0),))
    base = features_of(spec(horizon=1, base="blend", blend=blend), ts, y).base[:, 0]
    v = y[:, 0]
    assert base[2] == v[2]
    assert base[3] == pytest.approx(v[3] + 11 * (v[0] - v[3]))
    assert base[10] == pytest.approx(v[10] + 11 * (v[7] - v[10]))
    assert base[11] == pytest.approx(v[8] + 10 * (v[0] - v[11]), rel=1e-5)
    known = v[12] + 10 * (v[4] - v[15]) + 100 * (v[12] - v[0])
    assert base[15] == pytest.approx(known, rel=1e-5)


def test_a_smoothing_is_holt_winters_method() -> None:
    ts, y = series(60)
    alone, n, S = ((0.0, 0.0, 0.0, 1.0),) * 9, 60, 6
    smoothing = Smoothing(season=S, level=0.6, profile=0.4)
    blend = Blend(short=3, long=6, weights=alone, smoothing=smoothing)
    rows = features_of(spec(horizon=9, base="blend", blend=blend), ts, y)
    v, level, profile = y[:, 0], 0.0, list(y[:S, 0])
    for i in range(n):
        if i >= S:
            off = v[i] - level - profile[i % S]
            assert rows.x[i, -1] * rows.scale[i, 0] == pytest.approx(off, rel=1e-5, abs=1e-5)
            level += 0.6 * off
            share = max(0.4, 1 / (i // S + 1))  # a half of the second season
            profile[i % S] += share * 0.4 * off
        else:
            assert rows.x[i, -1] == 0
        for k in range(9):
            at = i + 1 + k
            near = v[at - 3 * (k // 3 + 1)] if at >= 3 * (k // 3 + 1) else v[i]
            expected = level + profile[at % S] if at % S <= i else near
            assert rows.base[i, k] == pytest.approx(expected, rel=1e-9)


def test_a_slow_smoothing_is_the_mean_of_the_seasons_before() -> None:
    rng = np.random.default_rng(0)
    y = (np.tile(rng.normal(size=8), 5) + 0.1 * rng.normal(size=40))[:, None]
    smoothing = Smoothing(season=8, level=1e-9, profile=0.0)
    blend = Blend(short=8, long=8, weights=((0.0, 0.0, 0.0, 1.0),) * 8, smoothing=smoothing)
    s = spec(horizon=8, base="blend", blend=blend)
    base = features_of(s, np.arange(40) * HOUR, y).base[39]
    mean = y[:, 0].reshape(5, 8).mean(axis=0)
    off, latest = base - mean, y[32:, 0] - mean
    assert off.std() < 0.2 * latest.std()  # but for the level, that of a short while


def test_a_gap_in_the_first_season_leaves_the_latest_value_in_its_profile() -> None:
    ts = np.array([0, 1, 4, 6, 7]) * HOUR
    y = np.array([[1.0], [2.0], [5.0], [10.0], [20.0]])
    smoothing = Smoothing(season=6, level=1.0, profile=0.0)
    blend = Blend(short=6, long=6, weights=((0.0, 0.0, 0.0, 1.0),) * 6, smoothing=smoothing)
    base = features_of(spec(horizon=6, base="blend", blend=blend), ts, y).base
    np.testing.assert_allclose(base[2], [5, 1, 2, 2, 2, 5])  # the next phase was never seen
    np.testing.assert_allclose(base[3], np.array([2, 2, 2, 5, 5, 1]) + 10 - 1)


def test_lags_are_scaled_differences_to_the_present() -> None:
    s = spec(targets=2, inputs=3, lags=(7, 1), scaling=Scaling(kind="none"))
    ts, y = series(50, inputs=3)
    rows = features_of(s, ts, y)
    expected = np.hstack([y[20], y[13, :2] - y[20, :2], y[19, :2] - y[20, :2]])
    np.testing.assert_allclose(rows.x[20], expected, rtol=1e-6)


@pytest.mark.parametrize("horizon", [1, 24])
@pytest.mark.parametrize("base", ["last", "seasonal", "blend"])
@pytest.mark.parametrize("targets", [1, 3])
def test_what_is_read_of_the_past_is_fetched_before(base: str, horizon: int, targets: int) -> None:
    """Of what lies side by side at least the first lines, and the last one."""
    lags, weights = (1, 2, 3, 24, 170), ((0.1, 0.2, 0.3),) * (horizon * targets)
    blend = Blend(short=24, long=168, weights=weights) if base == "blend" else None
    spec = Spec(
        hidden=4, step_ns=HOUR, inputs=targets, targets=targets, horizon=horizon, season=24,
        lags=lags, base=base, blend=blend,
    )  # fmt: skip
    fetched, place, line = features.plan(spec).reads, 10_000, 8 // targets
    read = {place - lag for lag in lags}
    for k in range(horizon if base != "last" else 0):
        season = place + k + 1 - 24 * (k // 24 + 1)
        read |= {season}
        if base == "blend":
            read |= {season - 168, place + k + 1 - 168}
    runs = np.split(np.array(sorted(read)), np.flatnonzero(np.diff(sorted(read)) > line) + 1)
    for run in runs:
        lines = {place - back for back in fetched.tolist()} & {*range(run[0], run[-1] + 1)}
        assert {run[0], run[-1]} <= lines
        for at in run[: 4 * line].tolist():
            assert min(abs(at - known) for known in lines) < line


def test_a_gap_keeps_the_season_aligned() -> None:
    ts = START + np.arange(200) * HOUR
    wave = np.sin(2 * np.pi * np.arange(200) / 24)[:, None]
    keep = np.r_[0:100, 131:200]  # 31 ticks missed
    s = spec(season=24, base="seasonal", lags=(24,), scaling=Scaling(kind="none"))
    rows = features_of(s, ts[keep], wave[keep])
    np.testing.assert_allclose(rows.base[100], wave[132:137, 0], atol=1e-6)
    np.testing.assert_allclose(rows.x[100, 1], wave[131 - 24, 0] - wave[131, 0], atol=1e-6)


def test_small_changes_of_a_large_counter_survive_float32() -> None:
    ts, y = series(100)
    y = 1e9 + (y - 100) / 10
    rows = features_of(spec(season=24, base="seasonal"), ts, y)
    np.testing.assert_allclose(rows.base[50], y[27:32, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("zone", ["UTC", "Europe/London", "America/New_York", "Asia/Kolkata"])
def test_calendar_is_that_of_the_stated_time_zone(zone: str) -> None:
    s = spec(calendar=("hour", "week", "year"), timezone=zone)
    hours = np.arange(0, 24 * 366, 7)
    ts = START + hours * HOUR
    rows = features_of(s, ts, np.ones((len(ts), 1)))
    for i in range(0, len(ts), 11):
        local = datetime.fromtimestamp(ts[i] // 10**9, UTC).astimezone(ZoneInfo(zone))
        hour = local.hour + local.minute / 60 + local.second / 3600
        day = 2 * np.pi * hour / 24
        week = 2 * np.pi * (((local.weekday() - 3) % 7) * 24 + hour) / 168  # the epoch: a Thursday
        waves = (day, 2 * day, week, 2 * week)
        expected = [f(wave) for wave in waves for f in (np.sin, np.cos)]
        np.testing.assert_allclose(rows.x[i, 1:9], expected, atol=1e-6)
    year = np.unwrap(np.arctan2(rows.x[:, 9], rows.x[:, 10]))
    assert (year[-1] - year[0]) / (2 * np.pi) == pytest.approx(1, abs=0.01)


@given(st.floats(0, 1, exclude_max=True))
@settings(max_examples=500)
def test_sine_and_cosine(turn: float) -> None:
    ours = sin_cos(turn)
    assert ours == pytest.approx((np.sin(2 * np.pi * turn), np.cos(2 * np.pi * turn)), abs=1e-12)


@given(st.integers(1, 10**15), st.integers(0, 10**18), st.integers(0, 10**18))
def test_steps_are_the_rounded_distance(step: int, last: int, ahead: int) -> None:
    steps = features.steps_since(step, last, last + ahead)
    assert 1 <= steps <= features.FARTHEST
    if 1 < steps < features.FARTHEST:
        assert abs(steps * step - ahead) <= step / 2


@given(st.integers(1, 10**18), st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, unique=True))
def test_steps_of_a_series_are_those_of_its_ticks(step: int, times: list[int]) -> None:
    ts = np.sort(np.array(times))
    steps = [features.steps_since(step, last, ts) for last, ts in itertools.pairwise(ts.tolist())]
    np.testing.assert_array_equal(features.grid_steps(step, ts), [1, *steps])
    assert min(steps) >= 1


def test_default_calendar_is_what_spacing_and_span_can_show() -> None:
    day, week = 24 * HOUR, 168 * HOUR
    assert features.default_calendar(HOUR, 3 * week) == ("hour", "week")
    assert features.default_calendar(HOUR, 3 * day) == ("hour",)
    assert features.default_calendar(day, 60 * day) == ("week",)
    assert features.default_calendar(30 * day, 800 * day) == ("year",)
    assert features.default_calendar(0, 800 * day) == ()
    assert timedelta(microseconds=YEAR // 1000).days == 365
