"""Series learn from their own errors alone, and never make the model's forecasts worse for long.

That the sums are those of the documentation is shown by the oracle, in test_engine.
"""

import numpy as np
import pytest
from numpy.typing import NDArray

from streamlstm import adapt, offline
from streamlstm.backtest import run
from streamlstm.datasets.frames import SeriesData
from streamlstm.directions import BYTES, room, with_directions
from streamlstm.engine import Engine
from streamlstm.features import features_of
from streamlstm.golden import make_golden, network_of
from streamlstm.kernels import cpu
from streamlstm.model import Model, ModelError, Spec
from streamlstm.ticks import Keys, Ticks
from streamlstm.train import FitOptions, fit
from tests.models import HOUR, random_model

N = 4000


def autoregression(shares: tuple[float, float], seed: int, n: int) -> NDArray[np.float64]:
    """(n,) values around 10 that remember their two predecessors so."""
    rng, y = np.random.default_rng(seed), np.zeros(n)
    for i in range(2, n):
        y[i] = shares[0] * y[i - 1] + shares[1] * y[i - 2] + rng.normal()
    return 10 + y


def hours(n: int) -> NDArray[np.int64]:
    return HOUR * np.arange(n)


@pytest.fixture(scope="module")
def model() -> Model:
    """Fitted to a series that swings slowly."""
    past = SeriesData("a", hours(N), autoregression((0.9, 0.0), 0, N)[:, None])
    options = FitOptions(horizon=1, season=0, hidden=8, updates=60, batch=16, calendar=())
    return fit([past], options)[0]


def errors(model: Model, y: NDArray[np.float64], learning: bool) -> NDArray[np.float64]:
    """(n - 1,) of the forecasts of the next step."""
    issued = run(model, hours(len(y)), y[:, None], 1, learning=learning)
    return np.abs(issued.point[:-1, 0] - y[1:])


def test_a_series_that_behaves_otherwise_is_learned(model: Model) -> None:
    y = autoregression((-0.7, -0.5), 1, N)
    learned, frozen = (errors(model, y, learning) for learning in (True, False))
    best = np.sqrt(2 / np.pi)  # the mean size of noise that nobody can foresee
    assert frozen[-1000:].mean() > 1.7 * best
    assert learned[-1000:].mean() < 1.25 * best


@pytest.mark.parametrize("shares", [(0.9, 0.0), (1.0, 0.0)], ids=["as fitted", "random walk"])
def test_where_nothing_is_to_be_learned_the_model_stands(
    model: Model, shares: tuple[float, float]
) -> None:
    for seed in range(3):
        y = autoregression(shares, 10 + seed, N)
        learned, frozen = (errors(model, y, learning) for learning in (True, False))
        assert learned.mean() < 1.005 * frozen.mean()


def test_history_teaches_what_to_correct_but_not_that_it_helps(model: Model) -> None:
    """The model may have been fitted on it."""
    y, known = autoregression((-0.7, -0.5), 1, N)[:, None], N - 1000
    learned, frozen = (run(model, hours(N), y, known, learning=on) for on in (True, False))
    np.testing.assert_array_equal(learned.point[:20], frozen.point[:20])
    off, plain = (np.abs(each.point[:-1, 0] - y[known:, 0]) for each in (learned, frozen))
    assert off[100:300].mean() < 0.8 * plain[100:300].mean()


def test_where_values_repeat_the_latest_one_does_not_win_by_that() -> None:
    rng = np.random.default_rng(0)
    y = np.where(rng.random(3000) < 0.2, rng.poisson(3, 3000), 0.0)
    options = FitOptions(horizon=2, season=0, hidden=8, updates=60, batch=16, calendar=())
    counts = fit([SeriesData("a", hours(2000), y[:2000, None])], options)[0]
    learned, frozen = (errors(counts, y, learning)[2000:] for learning in (True, False))
    assert frozen.mean() < 0.75 * np.abs(np.diff(y[2000:])).mean()
    assert learned.mean() < 1.02 * frozen.mean()


def test_what_was_learned_is_dropped_once_it_does_harm(model: Model) -> None:
    """The series first behaves otherwise than fitted, then as fitted."""
    y = np.concatenate([autoregression((-0.7, -0.5), 1, N), autoregression((0.9, 0.0), 2, N)])
    learned, frozen = (errors(model, y, learning) for learning in (True, False))
    assert learned[N // 2 : N].mean() < 0.8 * frozen[N // 2 : N].mean()
    assert learned[N + 500 :].mean() < 1.02 * frozen[N + 500 :].mean()


def test_after_a_shift_the_latest_value_serves_until_the_model_is_better() -> None:
    """Of a model that says what was a season before. A single value far off changes nothing."""
    model = random_model(directions=8, horizon=1, season=48, base="seasonal", lags=(1,))
    n, shift, noise = 1200, 800, np.random.default_rng(0).normal(size=1200)
    usual = 20 * np.sin(2 * np.pi * np.arange(n) / 48) + 0.1 * noise
    shifted, spike = usual.copy(), usual.copy()
    shifted[shift:] += 100
    spike[shift] += 100
    naive = np.abs(np.diff(shifted))
    learned, frozen = (errors(model, shifted, learning) for learning in (True, False))
    at_first, later = slice(shift + 8, shift + 45), slice(shift + 100, n)
    assert frozen[at_first].mean() > 10 * naive[at_first].mean()
    assert learned[at_first].mean() < 1.1 * naive[at_first].mean()
    assert learned[later].mean() < 1.02 * min(frozen[later].mean(), naive[later].mean())
    learned, frozen = (errors(model, spike, learning) for learning in (True, False))
    assert learned[shift - 1 :].mean() < 1.02 * frozen[shift - 1 :].mean()


def test_so_it_does_where_the_shift_raised_the_scale_and_with_it_what_is_usual() -> None:
    n, known, shift = 2400, 1400, 1700
    noise = np.random.default_rng(0).normal(size=n)
    y = np.sin(2 * np.pi * np.arange(n) / 48) + 0.2 * noise
    y[shift:] += 20
    past = SeriesData("a", hours(known), y[:known, None])
    options = FitOptions(horizon=1, season=48, hidden=8, updates=60, batch=16, calendar=())
    model, naive = fit([past], options)[0], np.abs(np.diff(y))
    learned, frozen = (errors(model, y, learning) for learning in (True, False))
    before, later = slice(known, shift - 1), slice(shift + 100, n)
    assert learned[before].mean() < 0.8 * naive[before].mean()
    assert frozen[later].mean() > 3 * naive[later].mean()
    assert learned[later].mean() < 1.05 * naive[later].mean()


def test_a_forecast_is_never_corrected_by_what_came_after_it(model: Model) -> None:
    y = autoregression((-0.7, -0.5), 1, 1500)
    other = y.copy()
    other[1000:] = 3.0
    one, two = (run(model, hours(1500), v[:, None], 1).point for v in (y, other))
    np.testing.assert_array_equal(one[:1000], two[:1000])
    assert (one[1000:] != two[1000:]).any()


def test_years_of_nothing_and_then_a_jump_do_no_harm() -> None:
    """No sum winds up where nothing varies; a value far off moves nothing far."""
    model = random_model(directions=8, horizon=1)
    y = np.full(60_000, 5.0)
    y[50_000:50_010] = 1e14
    learned, frozen = (errors(model, y, learning) for learning in (True, False))
    assert np.isfinite(learned).all()
    assert learned[49_000:49_990].max() < 0.1
    assert learned[-500:].mean() < 1.01 * frozen[-500:].mean()


def test_what_overflows_teaches_nothing() -> None:
    """Directions can be infinite where the forecast is not; they leave nothing behind."""
    model = random_model(directions=3, horizon=1, scaling={"kind": "none"})
    skip = model.weights["head.skip"].copy()
    skip[1:] *= 1e6
    weights = {**model.weights, "head.skip": skip}
    large = Model(model.spec, weights, make_golden(model.spec, weights), model.errors)
    engine = Engine(large, max_series=2, max_batch=1)
    engine.series.lookup(Keys.of([b"a"]))
    slot, y = np.zeros(1, np.int32), autoregression((0.9, 0.0), 0, 200)
    y[::40] = 1e36
    for i, value in enumerate(y):
        ts = np.array([HOUR * i])
        out = engine.step(Ticks(slot, ts, np.array([[value]]), slot.astype(np.uint8)), 0)
        assert np.isfinite(out.point).all()
        assert len(out.point) == 1
    assert np.isfinite(engine.work.learned.theta[0]).all()
    assert np.isfinite(engine.work.learned.gain[0]).all()


def test_only_learned_steps_take_memory_and_time() -> None:
    model = random_model(directions=4, horizon=9)
    off = Engine(model, max_series=2, learning=False)
    on = Engine(model, max_series=2, scored=(9, 2))
    plain = Engine(random_model(horizon=9), max_series=2)
    assert "theta" not in off.bytes_per_series
    assert off.bytes_per_series.keys() == plain.bytes_per_series.keys()
    assert on.bytes_per_series["theta"] == 2 * (1 + 4) * 4
    made = []
    for engine in (off, on):
        engine.series.lookup(Keys.of([b"a"]))
        ticks = Ticks(np.zeros(5, np.int32), hours(5), np.ones((5, 1)), np.zeros(5, np.uint8))
        made.append(engine.step(ticks, 0).point.copy())
    assert (off.work.outputs.shape[1], on.work.outputs.shape[1]) == (9, 9 + 4)
    np.testing.assert_array_equal(*made)  # nothing is learned yet
    with pytest.raises(ModelError, match=r"choose engine.scored from 1 to 9"):
        Engine(model, max_series=2, scored=(10,))


@pytest.mark.parametrize("horizon", [1, 2, 24, 336])
def test_by_default_a_kibibyte_a_series_is_enough(horizon: int) -> None:
    spec = Spec(hidden=8, step_ns=HOUR, horizon=horizon, season=24)
    full = spec.model_copy(update={"directions": room(spec)})
    fields = adapt.learned_fields(adapt.plan(full, full.scored), full)
    size = sum(np.dtype(kind).itemsize * int(np.prod(n)) for kind, n in fields.values())
    assert BYTES // 2 < size <= BYTES


def test_examples_keep_to_no_phase_of_a_season() -> None:
    spec = Spec(hidden=8, step_ns=HOUR, horizon=48, season=24, directions=3)
    plan = adapt.plan(spec, spec.scored)
    assert plan.steps.tolist() == [1, 24, 48]
    assert plan.apart.tolist() == [1, 25, 49]


def test_directions_are_white_on_the_data_of_the_fit() -> None:
    spec = random_model(lags=(1, 2, 3)).spec
    weights = dict(random_model(lags=(1, 2, 3)).weights)
    rng = np.random.default_rng(0)
    pairs = [(hours(3000), np.cumsum(rng.normal(size=(3000, 1)), axis=0)) for _ in range(3)]
    spec, weights = with_directions(spec, weights, pairs, 5)
    assert spec.directions == 5
    shown = []
    for ts, values in pairs:
        x = features_of(spec, ts, values).x
        out = np.zeros((len(x), spec.answers), np.float32)
        slots = np.zeros(len(x), np.int32)
        cpu.step(cpu.allocate(network_of(spec, weights), 1), slots, x, np.arange(len(x) + 1), out)
        shown.append(out[3:, spec.outputs :])
    z = np.concatenate(shown).astype(float)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose(z.T @ z / len(z), np.eye(5), atol=0.03)


def test_another_model_begins_to_learn_anew() -> None:
    """Its directions mean something else; what was learned of others is no more used."""
    first, second = (random_model(seed, directions=4, horizon=2) for seed in (0, 1))
    engines = [Engine(each, max_series=2) for each in (first, second, second)]
    for engine in engines:
        engine.series.lookup(Keys.of([b"a"]))
    slot, y = np.zeros(1, np.int32), autoregression((-0.7, -0.5), 1, 400)

    def step(engine: Engine, at: int) -> None:
        engine.step(Ticks(slot, hours(400)[at : at + 1], y[at, None, None], slot.astype("u1")), 0)

    for at in range(399):
        step(engines[0], at)
    assert engines[0].work.learned.theta[0].any()
    engines[1].set_records(slot, *engines[0].records(slot))
    engines[2].set_records(slot, *engines[0].records(slot))
    engines[2].work.learned.model[0] = 0  # as one that never learned
    for engine in engines[1:]:
        step(engine, 399)
    assert not engines[1].work.learned.used[0].any()
    assert not offline.difference(*engines[1:])
