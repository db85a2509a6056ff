"""A fit learns what there is to learn, never from its validation span, and says what it did."""

import numpy as np
import pytest

from streamlstm import train
from streamlstm.backtest import run
from streamlstm.datasets.bundled import load
from streamlstm.datasets.frames import SeriesData
from streamlstm.datasets.times import DataError
from streamlstm.features import features_of
from streamlstm.golden import check_golden, network_of
from streamlstm.infer import infer_spec
from streamlstm.kernels import cpu
from streamlstm.model import Model, load_model, save_model
from streamlstm.train import (
    LEVELS,
    FitOptions,
    FitReport,
    _Stage,
    error_quantiles,
    fit,
    initial_weights,
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
    assert (model.spec.season, model.spec.base) == (24, "blend")
    assert report.skill.shape == (12,)
    assert report.skill[0] < 0.5  # of the naive forecast's error
    assert report.skill.max() < 1.0


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


def test_an_event_on_the_unseen_span_does_not_make_the_intervals() -> None:
    rng, block = np.random.default_rng(0), np.repeat(np.arange(40), 24)
    off = np.abs(rng.normal(size=(len(block), 2))).astype(np.float32)
    off[::7, 0] = np.nan
    calm = error_quantiles(off, block)
    np.testing.assert_allclose(calm[list(LEVELS).index(0.9)], 1.645, rtol=0.1)
    outage = off.copy()
    outage[240:480] += 1000  # a quarter of the span
    np.testing.assert_allclose(error_quantiles(outage, block), calm, rtol=0.25)
    often = np.where(rng.random(off.shape) < 0.2, 1000 * off, off)  # no event: they are like that
    assert (error_quantiles(often, block)[list(LEVELS).index(0.9)] > 100).all()


def test_errors_of_few_blocks_promise_less() -> None:
    off = np.abs(np.random.default_rng(0).normal(size=(1200, 1))).astype(np.float32)
    at = list(LEVELS).index(0.95)
    ninety_five = [
        error_quantiles(off, np.arange(1200) // length)[at, 0] for length in (12, 200, 600)
    ]
    # Student's t at 99, 5 and 2 degrees of freedom over the normal's quantile
    ratio = np.array(ninety_five) / np.quantile(off, 0.95)
    np.testing.assert_allclose(ratio, [1.012, 1.312, 2.195], rtol=0.11)


def test_the_same_seed_is_the_same_model_and_another_is_not() -> None:
    series = [wave(300)]
    ids = [quick(series, horizon=2, seed=seed)[0].id for seed in (1, 1, 2)]
    assert ids[0] == ids[1] != ids[2]


def test_the_first_training_does_not_depend_on_the_unseen_span() -> None:
    series = wave(500)
    changed = SeriesData(series.name, series.ts, series.values.copy())
    changed.values[425:] += 1
    losses: list[list[float]] = [[], []]
    for s, seen in zip((series, changed), losses, strict=True):
        options = FitOptions.model_validate(SMALL | {"horizon": 2, "season": 24, "memory": 100})
        spec = infer_spec([series], options, [])
        stage = _Stage(spec, [(s.ts, s.values)], [425], options, 20)
        stage.train(lambda *told, seen=seen: seen.append(told[2]), 0, 20)
    assert losses[0] == losses[1]
    assert len(losses[0]) == 20


def test_one_model_learns_from_many_series_of_any_size() -> None:
    many = [wave(300, seed=i, name=str(i)) for i in range(40)]
    scaled = [SeriesData(s.name, s.ts, s.values * 10.0 ** (i % 5)) for i, s in enumerate(many)]
    _, report = quick(scaled, horizon=4)
    assert (report.series, report.ticks) == (40, 12_000)
    assert report.skill.max() < 1


def test_series_too_short_are_skipped_counted_and_said() -> None:
    _, report = quick(
        [wave(300), wave(40, name="short"), wave(1, name="one")], horizon=4, season=24
    )
    assert (report.series, report.skipped) == (1, 2), report.notes
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


def test_what_cannot_be_forecast_is_left_to_the_naive_forecast() -> None:
    """A random walk: nothing beats its last value, and a fit does not believe that it did."""
    walk = np.cumsum(np.random.default_rng(5).normal(size=(1500, 1)), axis=0)
    series = SeriesData("walk", np.arange(1500) * HOUR, walk)
    model, report = quick([series], horizon=24, season=0, updates=120)
    assert report.skill.max() <= 1.0
    ahead = run(model, series.ts, series.values, 1300).point
    np.testing.assert_allclose(ahead[:, 23], walk[1299:, 0], atol=1.0)


def test_the_scale_of_a_new_series_is_guessed_from_those_at_hand() -> None:
    rng = np.random.default_rng(0)
    many = [
        SeriesData(str(i), np.arange(400) * HOUR, 1000.0**i * rng.normal(5, 0.5, (400, 1)))
        for i in range(3)
    ]
    spec = infer_spec(many, FitOptions(horizon=2), [])
    assert spec.scaling.prior_ratio == pytest.approx(0.1, rel=0.1)


def test_progress_is_told_after_each_update() -> None:
    told: list[tuple[int, int, float, float]] = []
    fit([wave(300)], FitOptions.model_validate(SMALL | {"horizon": 2}), lambda *a: told.append(a))
    assert [t[0] for t in told] == list(range(1, 81))  # two trainings of 40 updates
    assert {t[1] for t in told} == {80}
    assert np.isfinite([t[2] for t in told]).all()
    assert np.isfinite([t[3] for t in told[2:40]]).all()


def test_an_interrupt_keeps_the_best_weights() -> None:
    def stop(done: int, total: int, loss: float, validation: float) -> None:
        if done == 5:
            raise KeyboardInterrupt

    options = FitOptions.model_validate(SMALL | {"horizon": 2})
    model, report = fit([wave(300)], options, stop)
    assert report.interrupted
    assert report.updates == 5
    check_golden(model, cpu)


def test_patience_ends_the_training_early() -> None:
    walk = np.cumsum(np.random.default_rng(0).normal(size=(400, 1)), axis=0)
    series = [SeriesData("r", np.arange(400) * HOUR, walk)]
    _, patient = quick(series, horizon=2, updates=200)
    _, report = quick(series, horizon=2, updates=200, patience=1)
    assert report.updates < patient.updates == 400


def test_an_interrupt_of_the_second_training_keeps_the_first() -> None:
    def stop(done: int, total: int, loss: float, validation: float) -> None:
        if done == 60:
            raise KeyboardInterrupt

    model, report = fit([wave(300)], FitOptions.model_validate(SMALL | {"horizon": 2}), stop)
    assert report.interrupted
    assert report.updates == 60
    check_golden(model, cpu)


def test_more_data_than_fit_in_memory_is_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "BUDGET", 80_000)
    many = [wave(300, seed=i, name=str(i)) for i in range(20)]
    _, report = quick(many, horizon=4)
    assert 1 < report.series < 20
    assert any("drawn by lot" in note for note in report.notes)
    (long,) = [wave(5000)]
    _, report = quick([long], horizon=4)
    assert report.ticks < 5000


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
    seen = SeriesData(series.name, series.ts[:3225], series.values[:3225])
    model, _ = fit([seen], FitOptions(horizon=48, updates=200))
    assert (model.spec.season, model.spec.base) == (336, "blend")
    # on the last fifth, by the engine's own kernel over the whole history
    rows = features_of(model.spec, series.ts, series.values)
    n = len(rows.base)
    out = np.zeros((n, model.spec.answers), np.float32)
    buffers = cpu.allocate(network_of(model.spec, model.weights), 1)
    cpu.step(buffers, np.zeros(n, np.int32), rows.x, np.arange(n + 1), out)
    forecast = rows.base + rows.scale * out[:, :48]
    y = series.values[:, 0]
    for k, share in ((1, 0.3), (24, 0.75), (48, 0.8)):
        ours = np.abs(y[3225 + k :] - forecast[3225 : n - k, k - 1]).mean()
        last_week = np.abs(y[3225 + k :] - y[3225 + k - 336 : n - 336]).mean()
        assert ours < share * last_week
