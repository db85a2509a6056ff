"""A fit learns what there is to learn, never from its validation span, and says what it did."""

import numpy as np
import pytest

from streamlstm.backtest import run
from streamlstm.datasets.bundled import load
from streamlstm.datasets.frames import SeriesData
from streamlstm.datasets.times import DataError
from streamlstm.features import features_of
from streamlstm.golden import check_golden
from streamlstm.kernels import cpu
from streamlstm.model import Model, load_model, save_model
from streamlstm.train import (
    FitOptions,
    FitReport,
    _student,
    fit,
    infer_spec,
    initial_weights,
    ridge,
)

MINUTE, HOUR, DAY = 60_000_000_000, 3_600_000_000_000, 86_400_000_000_000
SMALL = {"hidden": 8, "updates": 40, "batch": 16, "chunk": 24, "carried": 2}


def wave(n: int, *, period: int = 24, seed: int = 0, noise: float = 0.1, name: str = "w"):
    """A season, a slow random walk, noise, and a step_ns of one hour."""
    rng = np.random.default_rng(seed)
    t = np.arange(n)
    values = 10 + np.sin(2 * np.pi * t / period) + noise * rng.normal(size=n)
    return SeriesData(name, t * HOUR, (values + 0.02 * np.cumsum(rng.normal(size=n)))[:, None])


def quick(series: list[SeriesData], **options: object) -> tuple[Model, FitReport]:
    return fit(series, FitOptions.model_validate(SMALL | options))


def test_a_model_learns_more_than_its_naive_start() -> None:
    rng, off = np.random.default_rng(0), np.zeros(6000)
    for i in range(1, 6000):  # what is off today is so for some hours
        off[i] = 0.9 * off[i - 1] + 0.1 * rng.normal()
    calm = wave(6000, noise=0.01)
    series = SeriesData("w", calm.ts, calm.values + off[:, None])
    model, report = quick([series], horizon=12)
    assert (model.spec.season, model.spec.base) == (24, "seasonal")
    assert report.skill.shape == (12,)
    assert report.skill[0] < 0.5  # of seasonal naive's error
    assert report.skill.max() < 1.0


def test_what_cannot_be_forecast_is_left_to_the_naive_forecast() -> None:
    """A random walk: nothing beats its last value, and a fit does not believe that it did."""
    walk = np.cumsum(np.random.default_rng(5).normal(size=(1500, 1)), axis=0)
    series = SeriesData("walk", np.arange(1500) * HOUR, walk)
    model, report = quick([series], horizon=24, season=0, updates=120)
    assert report.skill.max() <= 1.0
    ahead = run(model, series.ts, series.values, 1300).point
    np.testing.assert_allclose(ahead[:, 23], walk[1299:, 0], atol=1.0)


@pytest.mark.parametrize("freedom", [2, 3, 5, 10, 30, 1000])
def test_students_quantile(freedom: int) -> None:
    exact = {2: 4.303, 3: 3.182, 5: 2.571, 10: 2.228, 30: 2.042, 1000: 1.962}[freedom]
    ours = _student(np.array([freedom]))[0]
    assert ours == pytest.approx(exact, rel=0.11 if freedom == 2 else 0.04)


def test_the_model_file_is_whole(tmp_path) -> None:
    model, _ = quick([wave(400)], horizon=3)
    save_model(model, tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors")
    check_golden(again, cpu)
    assert again.id == model.id
    assert again.provenance["data"] == "data"
    assert again.provenance["series"] == 1
    assert again.provenance["ticks"] == 400
    assert again.provenance["from"] == "1970-01-01T00:00:00+00:00"
    assert again.provenance["options"]["updates"] == 40
    assert again.errors is not None


def test_the_model_brings_error_quantiles_of_a_span_that_it_had_not_seen() -> None:
    """Noise of known size: nine tenths of the errors of forecasting it lie within 1.645 of it."""
    rng = np.random.default_rng(3)
    values = 100 + rng.normal(0, 2, (6000, 1))
    series = SeriesData("noise", np.arange(6000) * HOUR, values)
    model, _ = quick([series], horizon=2, season=0, updates=100)
    scale = features_of(model.spec, series.ts, series.values).scale[-1, 0]
    assert model.errors is not None
    np.testing.assert_allclose(model.errors.at(0.9) * scale, 1.645 * 2, rtol=0.15)


def test_the_same_seed_is_the_same_model_and_another_is_not() -> None:
    series = [wave(300)]
    ids = [quick(series, horizon=2, seed=seed)[0].id for seed in (1, 1, 2)]
    assert ids[0] == ids[1] != ids[2]


def test_what_is_learned_does_not_depend_on_the_validation_span() -> None:
    series = wave(500)
    changed = SeriesData(series.name, series.ts, series.values.copy())
    changed.values[425:] = 1e3
    options = FitOptions.model_validate(SMALL | {"horizon": 2, "season": 24, "patience": 99})
    told: list[list[float]] = []
    for s in (series, changed):
        losses: list[float] = []
        fit([s], options, lambda done, total, loss, unseen, into=losses: into.append(loss))
        told.append(losses[: options.updates])  # the stage that is judged; the next one sees all
    assert told[0] == told[1]


def test_one_model_learns_from_many_series_of_any_size() -> None:
    many = [wave(300, seed=i, name=str(i)) for i in range(40)]
    scaled = [SeriesData(s.name, s.ts, s.values * 10.0 ** (i % 5)) for i, s in enumerate(many)]
    _, report = quick(scaled, horizon=4)
    assert (report.series, report.ticks) == (40, 12_000)
    assert report.skill.max() < 1


def test_series_too_short_are_skipped_counted_and_said() -> None:
    _, report = quick([wave(300), wave(20, name="short"), wave(1, name="one")], horizon=4)
    assert (report.series, report.skipped) == (1, 2)
    assert any("2 of 3 series skipped" in note for note in report.notes)


def test_nothing_but_short_series_is_refused() -> None:
    with pytest.raises(DataError, match="no series is long enough") as caught:
        quick([wave(20)], horizon=30)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [0.0, 42.0])
def test_a_constant_series_is_forecast_as_constant(value: float) -> None:
    series = SeriesData("flat", np.arange(200) * HOUR, np.full((200, 1), value))
    model, report = quick([series], horizon=3)
    assert np.isfinite(report.loss)
    assert model.errors is not None
    assert model.errors.quantiles.max() < 0.05


def test_gaps_are_no_obstacle() -> None:
    series = wave(6000)
    kept = np.random.default_rng(0).random(6000) > 0.08
    gappy = SeriesData("g", series.ts[kept], series.values[kept])
    model, report = quick([gappy], horizon=4)
    assert model.spec.step_ns == HOUR
    assert report.skill.max() < 1.0


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


def test_a_random_walk_starts_from_its_last_value() -> None:
    walk = np.cumsum(np.random.default_rng(0).normal(size=(1000, 1)), axis=0)
    spec = infer_spec([SeriesData("r", np.arange(1000) * HOUR, walk)], FitOptions(horizon=1), [])
    assert spec.base == "last"


def test_progress_is_told_after_each_update() -> None:
    told: list[tuple[int, int, float, float]] = []
    fit([wave(300)], FitOptions.model_validate(SMALL | {"horizon": 2}), lambda *a: told.append(a))
    done = [t[0] for t in told]
    assert done == sorted(set(done))
    assert {t[1] for t in told} == {80}  # two stages: to judge, and on all data
    assert np.isfinite([t[2] for t in told]).all()


def test_an_interrupt_keeps_the_best_weights() -> None:
    def stop(done: int, total: int, loss: float, validation: float) -> None:
        if done == 5:
            raise KeyboardInterrupt

    options = FitOptions.model_validate(SMALL | {"horizon": 2})
    model, report = fit([wave(300)], options, stop)
    assert report.interrupted
    assert report.updates == 5
    check_golden(model, cpu)


def test_ridge_is_least_squares_with_a_small_penalty_and_ignores_gaps() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 3)).astype(np.float32)
    truth = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
    target = (x @ truth.T + [4.0, -1.0]).astype(np.float32)
    target[:50, 1] = np.nan
    skip, bias = ridge(x, target, 1e-6)
    np.testing.assert_allclose(skip, truth, atol=1e-4)
    np.testing.assert_allclose(bias, [4, -1], atol=1e-4)
    shrunk, _ = ridge(x, target, 1.0)
    np.testing.assert_allclose(shrunk, truth / 2, atol=0.15)


def test_weights_begin_as_the_textbooks_say() -> None:
    spec = infer_spec([wave(100)], FitOptions(horizon=2, hidden=16, layers=2), [])
    weights = initial_weights(spec, 0)
    for n in range(2):
        np.testing.assert_array_equal(weights[f"lstm.bias_l{n}"][16:32], 1)  # forget gate open
        for gate in range(4):
            square = weights[f"lstm.weight_hh_l{n}"][gate * 16 : (gate + 1) * 16]
            np.testing.assert_allclose(square @ square.T, np.eye(16), atol=1e-5)
    assert not weights["head.weight"].any()


def test_electricity_is_forecast_better_than_last_week() -> None:
    (series,) = load("electricity").series
    seen = SeriesData(series.name, series.ts[:3200], series.values[:3200])
    model, report = fit([seen], FitOptions(horizon=48, hidden=32, updates=150))
    assert (model.spec.season, model.spec.base) == (336, "seasonal")
    assert report.skill[0] < 0.5
    assert report.skill[23] < 0.9
    assert report.skill[47] < 0.95
