"""A fit learns what there is to learn, never from its validation span, and says what it did."""

import numpy as np
import pytest

from streamlstm import mixture, train
from streamlstm.backtest import run
from streamlstm.datasets.bundled import load
from streamlstm.datasets.frames import SeriesData
from streamlstm.datasets.times import DataError
from streamlstm.engine import Engine
from streamlstm.features import features_of
from streamlstm.golden import check_golden, network_of
from streamlstm.infer import infer_spec
from streamlstm.intervals import units
from streamlstm.kernels import cpu
from streamlstm.model import Input, Model
from streamlstm.model_file import load_model, save_model
from streamlstm.state_schema import schema_of
from streamlstm.train import (
    FitOptions,
    FitReport,
    _Stage,
    fit,
    initial_weights,
)

HOUR, DAY = 3_600_000_000_000, 86_400_000_000_000
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
    said = any("left out" in note for note in report.notes)
    assert said == (not report.trust.recurrent.any())
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


@pytest.mark.parametrize("season", [0, 24])
@pytest.mark.parametrize(
    "values",
    [
        np.arange(600.0),
        -np.arange(600.0),
        np.sin(2 * np.pi * np.arange(600) / 24),
        np.sin(2 * np.pi * np.arange(600) / 24) + np.sin(2 * np.pi * np.arange(600) / 168),
        np.full(600, 5.0),
    ],
    ids=["line", "falling", "sine", "two sines", "constant"],
)
def test_what_can_be_foreseen_exactly_gives_a_model_that_opens(
    values: np.ndarray, season: int
) -> None:
    model, report = quick([SeriesData("s", np.arange(600) * HOUR, values[:, None])], season=season)
    check_golden(model, cpu)
    assert np.isfinite(report.skill).all()


def test_what_little_is_unseen_does_not_hide_what_was_plain_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A swing that dies out and is pushed on, by a dozen ticks of which little can be told."""
    swings = []
    for seed in range(4, 8):
        rng, y = np.random.default_rng(seed), np.zeros(90)
        for t in range(2, len(y)):
            y[t] = 1.4 * y[t - 1] - 0.75 * y[t - 2] + rng.normal(0, 0.3)
        swings.append(SeriesData("swing", np.arange(90) * DAY, 10 + y[:, None]))

    def trust() -> float:
        fits = [quick([swing], horizon=5, season=0)[1] for swing in swings]
        return float(np.mean([report.trust.linear for report in fits]))

    by_all = trust()
    monkeypatch.setattr(mixture, "FEW", 0)  # by the unseen span alone
    assert by_all > 0.5 > 1.25 * trust()


def test_a_horizon_beyond_a_share_of_a_short_series_is_judged_to_its_end() -> None:
    """Of years of months a share of 15 % is less than the year that is to be forecast."""
    rng, months = np.random.default_rng(0), np.arange(84)
    y = [10 + np.sin(np.pi * months / 6 + k) + 0.1 * rng.normal(size=84) for k in range(20)]
    series = [SeriesData(f"s{k}", months * 30 * DAY, each[:, None]) for k, each in enumerate(y)]
    past = [SeriesData(s.name, s.ts[:72], s.values[:72]) for s in series]
    model, report = quick(past, horizon=12, season=12)
    assert np.isfinite(report.skill).all()
    assert model.errors is not None
    assert (model.errors.at(0.9) > 0).all()
    within = np.zeros(12)
    for s in series:
        issued = run(model, s.ts, s.values, 72)
        within += (issued.lower[0] <= s.values[72:, 0]) & (s.values[72:, 0] <= issued.upper[0])
    assert within[6:].mean() >= 0.8 * 20
    assert within.min() >= 10


def test_steps_farther_than_could_be_judged_err_as_those_before_them() -> None:
    rng, n = np.random.default_rng(0), 100
    both = 10 + np.stack([rng.normal(size=n), 9 * rng.normal(size=n)], axis=1)
    inputs = (Input(name="a", role="target"), Input(name="b", role="target"))
    options = FitOptions.model_validate(SMALL | {"horizon": 36, "season": 12})
    model, _ = fit([SeriesData("w", np.arange(n) * DAY, both)], options, inputs=inputs)
    assert model.errors is not None
    by_step = model.errors.at(0.9).reshape(36, 2)
    assert (by_step > 0).all()
    np.testing.assert_allclose(by_step[-1], by_step[-2], rtol=0.1)


def test_a_network_that_cannot_be_judged_is_left_out_and_it_is_said() -> None:
    """Of five days of hours less than one is unseen."""
    _, report = quick([wave(120)], horizon=12)
    assert not report.trust.recurrent.any()
    assert any("left out" in note and "too short" in note for note in report.notes)


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
        stage = _Stage(spec, [(s.ts, s.values)], [425], options, 20, 0.001)
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


def test_what_cannot_be_forecast_is_left_to_the_naive_forecast() -> None:
    """A random walk: nothing beats its last value, and a fit does not believe that it did."""
    walk = np.cumsum(np.random.default_rng(5).normal(size=(1500, 1)), axis=0)
    series = SeriesData("walk", np.arange(1500) * HOUR, walk)
    model, report = quick([series], horizon=24, season=0, updates=120)
    assert report.skill.max() <= 1.0
    ahead = run(model, series.ts, series.values, 1300).point
    np.testing.assert_allclose(ahead[:, 23], walk[1299:, 0], atol=1.0)


def quick_of(
    inputs: tuple[tuple[str, str], ...], series: list[SeriesData], **options: object
) -> tuple[Model, FitReport]:
    """A fit of inputs by name and role."""
    chosen = FitOptions.model_validate(SMALL | {"season": 0, "calendar": ()} | options)
    made = [Input.model_validate({"name": name, "role": role}) for name, role in inputs]
    return fit(series, chosen, inputs=made)


def test_what_is_known_ahead_is_made_use_of() -> None:
    """Days of which it is known whether they are holidays, and nothing else moves the series."""
    rng = np.random.default_rng(0)
    holiday = (rng.random(603) < 0.3).astype(float)
    y = 20 + 8 * holiday + 0.2 * rng.normal(size=603)
    ticks = np.stack([y[:600], holiday[3:]], axis=1)  # a tick tells of three days later
    ts = np.arange(600) * DAY
    told, report = quick_of(
        (("y", "target"), ("holiday", "known")), [SeriesData("a", ts, ticks)], horizon=3
    )
    _, untold = quick_of((("y", "target"),), [SeriesData("a", ts, ticks[:, :1])], horizon=3)
    assert (report.skill < 0.15).all()
    assert (untold.skill > 0.6).all()
    # and the engine forecasts as the fit says: each holiday, to within the noise
    point = run(told, ts, ticks, 500).point
    for k in range(3):
        off = y[500 + k : 600] - point[: 100 - k, k]
        assert np.abs(off).mean() < 0.5


def test_several_targets_and_what_is_measured_with_them() -> None:
    """The wind of an hour ago drives one target up and another, a thousand times larger, down."""
    rng = np.random.default_rng(1)
    wind = rng.normal(5, 1, 800)
    before = np.concatenate([[5], wind[:-1]])
    noise = 0.1 * rng.normal(size=(2, 800))
    up, down = 50 + 3 * before + noise[0], 1000 * (20 - 2 * before + noise[1])
    ts = np.arange(800) * HOUR
    values = np.stack([up, down, wind], axis=1)
    inputs = (("up", "target"), ("down", "target"), ("wind", "measured"))
    model, report = quick_of(inputs, [SeriesData("a", ts, values)], horizon=2)
    assert report.skill.shape == (4,)
    assert (report.skill[:2] < 0.15).all()  # a step ahead, of both
    assert (report.skill[2:] > 0.5).all()  # the wind of two hours ahead is not known
    assert model.spec.roles[2].name == "wind"
    rows = features_of(model.spec, ts, values)
    assert model.errors is not None
    reach = model.errors.at(0.9).reshape(2, 2)[0] * rows.scale[-1]
    assert (reach > [0.1, 100]).all()  # each in its own unit, and not less than the noise
    assert (reach < [0.6, 600]).all()
    _, alone = quick_of(inputs[:2], [SeriesData("a", ts, values[:, :2])], horizon=1)
    assert (alone.skill > 0.5).all()


def test_of_a_calm_span_of_late_the_intervals_know_what_came_before() -> None:
    """A short series whose latest part, on which the fit is judged, is ten times as calm."""
    noise = np.random.default_rng(0).normal(size=200)
    noise[170:] *= 0.1
    model, _ = quick_of(
        (("y", "target"),), [SeriesData("a", np.arange(200) * HOUR, noise[:, None])], horizon=6
    )
    rows = features_of(model.spec, np.arange(200) * HOUR, noise[:, None])
    unit = units(np.arange(200), rows.scale)[-1, 0]
    assert model.errors is not None
    assert (model.errors.at(0.9) * unit > 0.8).all()  # of what came before 1.6, of late .16


def test_what_a_series_is_decides_where_it_goes() -> None:
    """Of a series of which nothing but its kind is known: this one rises, that one falls."""
    rng = np.random.default_rng(2)
    t, series = np.arange(80), []
    for i in range(30):
        way = 1 if i % 2 else -1
        y = 100 + way * t + 0.1 * rng.normal(size=80)
        kind = np.full(80, float(i % 2))
        series.append(SeriesData(str(i), t * HOUR, np.stack([y, kind], axis=1)))
    options = FitOptions.model_validate(SMALL | {"horizon": 5, "season": 0, "calendar": ()})
    kinds = Input(name="kind", role="category", categories=("falls", "rises"))
    model, _ = fit(series, options, inputs=(Input(name="y", role="target"), kinds))
    first = [
        run(model, np.zeros(1, np.int64), np.array([[100.0, code]]), 1).point[0, 4] - 100
        for code in (0, 1, -1)
    ]
    assert first[0] < 0 < first[1]
    assert first[0] < first[2] < first[1]  # of a kind that it does not know


def test_counts_are_never_forecast_below_zero() -> None:
    rng = np.random.default_rng(3)
    ts = np.arange(800) * HOUR
    values = rng.poisson(0.3 + 0.3 * np.sin(2 * np.pi * np.arange(800) / 24), (1, 800)).T
    series = SeriesData("sold", ts, values.astype(float))
    model, report = quick([series], horizon=4)
    assert model.spec.floor == 0
    assert any("no forecast lies below 0" in note for note in report.notes)
    found = run(model, ts, series.values, 400)
    assert found.point.min() == found.lower.min() == 0
    free, _ = quick([series], horizon=4, floor="none")
    assert free.spec.floor is None
    assert run(free, ts, series.values, 400).lower.min() < 0
    # the errors that intervals start from are those of forecasts that are not below it
    assert model.errors is not None
    assert free.errors is not None
    assert (model.errors.quantiles <= free.errors.quantiles + 1e-6).all()


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
    model, _ = fit([seen], FitOptions(horizon=48, updates=60))
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


def test_a_model_like_another_goes_on_with_its_states() -> None:
    """Whatever the data would ask for, and though they have fewer directions than there were."""
    old, _ = quick([wave(800)], horizon=3, lags=(1, 2, 30))
    still = SeriesData("s", np.arange(300) * HOUR, np.full((300, 1), 5.0))
    new, _ = fit([still], FitOptions.model_validate(SMALL | {"hidden": 4}), like=old.spec)
    assert new.spec.directions == old.spec.directions > 0
    assert schema_of(Engine(new, max_series=1)) == schema_of(Engine(old, max_series=1))
    assert not new.weights["head.skip"][-1].any()
    issued = run(new, still.ts, still.values, 100)
    np.testing.assert_allclose(issued.point, 5.0, atol=1e-6)


def test_what_is_fitted_is_not_lost_where_the_last_of_a_fit_is_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "with_young_errors", interrupted)
    model, _ = quick([wave(400)])
    check_golden(model, cpu)
    assert model.errors is not None
    assert not len(model.errors.ages)
