"""How far a model errs is what its intervals begin with."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streamlstm import calibration
from streamlstm.backtest import run
from streamlstm.calibration import LEVELS, _errors_of, _Youth, error_quantiles, mean_of_late
from streamlstm.datasets.frames import SeriesData
from streamlstm.engine import Engine
from streamlstm.features import features_of
from streamlstm.fit_options import FitOptions
from streamlstm.golden import network_of
from streamlstm.intervals import units
from streamlstm.kernels import reference
from streamlstm.ticks import Arrivals, Keys
from streamlstm.train import fit
from tests.models import random_model

HOUR, DAY = 3_600_000_000_000, 86_400_000_000_000


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


def test_an_event_is_one_at_all_steps_ahead() -> None:
    """Of one that errs 8 and 20 times as much as most blocks, by turns from step to step."""
    rng, block = np.random.default_rng(0), np.repeat(np.arange(40), 24)
    off = np.abs(rng.normal(size=(len(block), 12))).astype(np.float32)
    calm = error_quantiles(off, block)
    off[240:264] *= np.where(np.arange(12) % 2, 8, 20)
    np.testing.assert_allclose(error_quantiles(off, block), calm, rtol=0.05)


def test_each_target_has_events_of_its_own() -> None:
    rng, block = np.random.default_rng(0), np.repeat(np.arange(40), 24)
    off = np.abs(rng.normal(size=(len(block), 6))).astype(np.float32)
    off[240:264, ::2] *= 100
    both = error_quantiles(off, block, 2)
    for j in range(2):
        np.testing.assert_array_equal(both[:, j::2], error_quantiles(off[:, j::2], block))
    np.testing.assert_array_equal(both[:, 1], error_quantiles(off[:, 1:2], block)[:, 0])


def test_of_a_step_known_in_an_event_alone_that_is_known() -> None:
    off = np.ones((480, 2), np.float32)
    off[:, 1], off[24:48] = np.nan, 50.0
    found = error_quantiles(off, np.repeat(np.arange(20), 24))
    assert (found[:, 0] < 2).all()
    assert (found[:, 1] >= 50).all()


def test_what_is_so_every_other_day_is_no_event() -> None:
    """Lights that burn on working days, with three of five days that are none."""
    block = np.repeat(np.arange(5), 24)
    off = np.where((block == 1) | (block == 3), 1.0, 1e-6).astype(np.float32)[:, None]
    assert error_quantiles(off, block)[list(LEVELS).index(0.9), 0] >= 1


def test_errors_of_few_blocks_promise_less() -> None:
    off = np.abs(np.random.default_rng(0).normal(size=(1200, 1))).astype(np.float32)
    at = list(LEVELS).index(0.95)
    ninety_five = [
        error_quantiles(off, np.arange(1200) // length)[at, 0] for length in (12, 200, 600)
    ]
    # Student's t at 99, 5 and 2 degrees of freedom over the normal's quantile
    ratio = np.array(ninety_five) / np.quantile(off, 0.95)
    np.testing.assert_allclose(ratio, [1.012, 1.312, 2.195], rtol=0.11)


def test_the_mean_of_late_is_of_the_rows_before() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(30, 2)).astype(np.float32)
    found = mean_of_late(numbers, 7)
    for i in range(30):
        np.testing.assert_allclose(found[i], numbers[max(0, i - 6) : i + 1].mean(axis=0), atol=1e-6)
    assert mean_of_late(numbers[:0], 7).shape == (0, 2)


def shops(count: int, seed: int) -> list[SeriesData]:
    """A day that all have in common, each at a size of its own."""
    rng, hours = np.random.default_rng(seed), np.arange(24 * 21)
    day = np.sin(2 * np.pi * hours / 24) + 0.5 * np.sin(4 * np.pi * hours / 24)
    sizes = rng.uniform(20, 200, count)
    noise = rng.normal(size=(count, len(hours)))
    values = sizes[:, None] * (3 + day + 0.1 * noise)
    return [SeriesData(f"s{n}", hours * HOUR, row[:, None]) for n, row in enumerate(values)]


def mean_until(places: np.ndarray, scale: np.ndarray, last: int) -> np.ndarray:
    """(targets,) each tick counts as the one after so many steps."""
    mean = scale[0]
    for i in range(1, last + 1):
        mean = mean + (scale[i] - mean) / (places[i] + 1)
    return mean


@pytest.mark.parametrize("floor", [None, 10.0])
def test_errors_of_the_young_are_those_of_a_stream_that_begins_there(floor: float | None) -> None:
    """With gaps, and two targets: what the engine forecasts after each tick, and what then came."""
    rng = np.random.default_rng(0)
    model = random_model(1, targets=2, inputs=2, base="seasonal", season=6, lags=(2,), floor=floor)
    places = np.flatnonzero(rng.random(60) < 0.7)
    ts, values = places * HOUR, 10 + rng.normal(size=(len(places), 2))
    youth = _Youth(model.spec, (ts, values), 5, 20, [np.arange(4), np.arange(4, 18)])
    ts, values, places = ts[5:25], values[5:25], places[5:25] - places[5]
    engine = Engine(model, max_series=1, learning=False, threads=1)
    scale = features_of(model.spec, ts, values).scale
    unit = [0.75 * mean_until(places, scale, i) + 0.25 * scale[i] for i in range(len(ts))]
    expected = np.full((18, 3, 2), np.nan)
    for i, place in enumerate(places.tolist()):
        arrivals = Arrivals(
            Keys.of([b"s"]), ts[i : i + 1], values[i : i + 1], np.zeros(1, np.uint8)
        )
        point = engine.step(engine.place(arrivals), 0).point[0]
        for j, later in enumerate(places.tolist()):
            if place < 18 and 0 < later - place <= 3:
                expected[place, later - place - 1] = np.abs(values[j] - point[later - place - 1])
                expected[place, later - place - 1] /= unit[i]
    found = np.concatenate(_errors_of(model, [youth], [np.arange(4), np.arange(4, 18)]))
    np.testing.assert_allclose(found, expected.reshape(18, 6), rtol=1e-4, atol=1e-5)
    assert np.isfinite(found).mean() > 0.3


def test_errors_of_the_young_are_over_the_root_of_the_spread() -> None:
    """One that is said to be the same at each tick is at first news, and soon what is usual."""
    said, ts = np.array([1.0, -2.0, 0.5]), np.arange(40) * HOUR
    model = random_model(1, spread=True, season=6, base="seasonal")
    for name in ("head.weight", "head.skip", "head.bias"):
        model.weights[name][3:] = 0
    youth = _Youth(model.spec, (ts, np.sin(ts / DAY)[:, None]), 0, 30, [np.arange(20)])
    plain = _errors_of(model, [youth], [np.arange(20)])[0]
    model.weights["head.bias"][3:] = said
    over, mean = _errors_of(model, [youth], [np.arange(20)])[0], np.zeros(3)
    for i in range(20):
        mean += (np.clip(said, -1.5, 1.5) - mean) / (i + 11)
        root = np.exp(0.5 * (np.clip(said, -1.5, 1.5) - mean))
        np.testing.assert_allclose(over[i] * root, plain[i], rtol=1e-5)


@pytest.mark.parametrize("spread", [False, True])
def test_errors_on_what_was_trained_on_are_those_of_the_engine(spread: bool) -> None:
    """In units of the interval, once a series has its past; with a spread, over its root."""
    model = random_model(2, season=6, base="seasonal", spread=spread, floor=100.0)
    series = shops(3, 0)
    judged = calibration.with_seen_errors(model, [(s.ts, s.values) for s in series], 12).errors
    assert judged is not None
    off = []
    for s in series:
        issued = run(model, s.ts, s.values, 1)
        unit = units(np.arange(len(s.ts)), features_of(model.spec, s.ts, s.values).scale)[:, 0]
        target = np.full((len(s.ts), 3), np.nan)
        for k in (1, 2, 3):
            target[:-k, k - 1] = s.values[k:, 0]
        error = np.abs(target - issued.point) / unit[:, None]
        if spread:
            n, x = len(s.ts), features_of(model.spec, s.ts, s.values).x
            buffers = reference.allocate(network_of(model.spec, model.weights), 1)
            out = np.ones((n, 6))
            reference.step(buffers, np.zeros(n, np.int32), x, np.arange(n + 1), out)
            said, mean = out[:, 3:], np.zeros(3)
            for i, each in enumerate(np.clip(said, -1.5, 1.5)):
                mean += (each - mean) / min(i + 11, 50)
                error[i] /= np.exp(0.5 * np.clip(each - mean, -1.5, 1.5))
        off.append(error[model.spec.history :])
    errors, unseen = np.concatenate(off), model.errors
    assert unseen is not None
    np.testing.assert_allclose(judged.seen, np.nanmean(errors, axis=0), rtol=0.02)
    # by halves with those on 12 blocks of unseen data
    both = np.sqrt(unseen.quantiles * np.nanquantile(errors, unseen.levels, axis=0))
    np.testing.assert_allclose(judged.quantiles, both, rtol=0.03)


def test_the_more_blocks_of_unseen_data_the_less_those_seen_count() -> None:
    model, series = random_model(season=6, base="seasonal"), shops(2, 0)
    pairs, unseen = [(s.ts, s.values) for s in series], model.errors
    assert unseen is not None
    off = []
    for blocks in (3, 30, 3000):
        found = calibration.with_seen_errors(model, pairs, blocks).errors
        assert found is not None
        assert (np.diff(found.quantiles, axis=0) >= 0).all()
        off.append(np.abs(np.log(found.quantiles / unseen.quantiles)).mean())
    assert off == sorted(off, reverse=True)
    assert off[-1] < 0.01 * off[0]


def test_of_many_series_those_that_vary_more_by_chance_begin_with_wider_intervals() -> None:
    """Beside how much each varies at all."""
    rng, hours = np.random.default_rng(0), np.arange(24 * 21)
    day, noise = np.sin(2 * np.pi * hours / 24), rng.normal(size=(12, len(hours)))
    values = day + np.repeat([0.1, 0.5], 6)[:, None] * noise
    series = [SeriesData(f"s{n}", hours * HOUR, row[:, None]) for n, row in enumerate(values)]
    model, _ = fit(series, FitOptions(horizon=3, season=24, hidden=8, updates=100, batch=16))
    half = []
    for s in series:
        low, high = (ends[0] for ends in run(model, s.ts, s.values, len(s.ts)).intervals[0.9])
        unit = units(np.arange(len(s.ts)), features_of(model.spec, s.ts, s.values).scale)[-1, 0]
        half.append((high - low).mean() / unit)
    quiet, noisy = np.mean(half[:6]), np.mean(half[6:])
    assert 2 * quiet < noisy < 4 * quiet


def test_of_long_series_the_latest_errors_count_and_of_one_alone_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, series = random_model(season=6, base="seasonal"), shops(2, 0)
    pairs = [(s.ts, s.values) for s in series]
    latest = [(ts[-100:], values[-100:]) for ts, values in pairs]
    alone = calibration.with_seen_errors(model, pairs[:1], 9).errors
    assert alone is not None
    assert len(alone.seen) == 0
    expected = calibration.with_seen_errors(model, latest, 9).errors
    monkeypatch.setattr(calibration, "LATEST", 100)
    found = calibration.with_seen_errors(model, pairs, 9).errors
    assert found is not None
    assert expected is not None
    np.testing.assert_array_equal(found.seen, expected.seen)
    assert (found.seen > 0).all()


def test_of_many_forecasts_some_of_each_series_say_how_far_they_are_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, series = random_model(season=6, base="seasonal"), shops(2, 0)
    pairs, taken = [(s.ts, s.values) for s in series], list[int]()
    quantiles_of = calibration.quantiles_of

    def noted(off: NDArray[np.float32], *rest: Any) -> NDArray[np.float32]:
        taken.append(len(off))
        return quantiles_of(off, *rest)

    monkeypatch.setattr(calibration, "quantiles_of", noted)
    whole = calibration.with_seen_errors(model, pairs, 9).errors
    monkeypatch.setattr(calibration, "FORECASTS", 2 * 3 * 50)
    some = calibration.with_seen_errors(model, pairs, 9).errors
    assert taken == [sum(len(s.ts) for s in series), 100]
    assert some is not None
    assert whole is not None
    np.testing.assert_array_equal(some.seen, whole.seen)
    np.testing.assert_allclose(some.quantiles, whole.quantiles, rtol=0.25)


@pytest.mark.parametrize("limit", ["LONGEST", "MOST_AT_ONCE"])
def test_a_model_that_looks_back_very_far_is_left_as_it_is(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, series = random_model(season=6, base="seasonal"), shops(1, 0)[0]
    pairs = [(series.ts, series.values)]
    judged = calibration.with_young_errors(model, pairs, 0).errors
    assert judged is not None
    assert judged.ages.tolist() == [3, 4, 6]
    assert judged.young.shape == (3, len(LEVELS), 3)
    monkeypatch.setattr(calibration, limit, 8)
    assert calibration.with_young_errors(model, pairs, 0) is model


@pytest.mark.parametrize("horizon", [12, 48])
def test_intervals_keep_their_promise_from_the_first_day_of_a_series_on(horizon: int) -> None:
    """At no day of its first three, nor far ahead, does one never seen before miss much more.

    Without its own day before there is little to forecast from; from the second one on there is.
    """
    options = FitOptions(horizon=horizon, season=24, hidden=8, updates=200, batch=16)
    model, _ = fit(shops(12, 0), options)
    new = shops(60, 1)
    engine = Engine(model, max_series=len(new), max_batch=len(new), threads=1)
    keys = Keys.of([series.name.encode() for series in new])
    first, inside = 5 * HOUR, np.full((72, 60, horizon), np.nan)
    y = np.array([series.values[5:, 0] for series in new])
    for i in range(72):
        at = np.full(len(new), first + i * HOUR)
        arrivals = Arrivals(keys, at, y[:, i : i + 1], np.zeros(len(new), np.uint8))
        made = engine.step(engine.place(arrivals), first)
        order = np.argsort(made.slot)
        lower, upper = np.moveaxis(made.quantiles[order, :2, :, 0], 1, 0)
        to_come = y[:, i + 1 : i + 1 + horizon]
        inside[i] = (lower <= to_come) & (to_come <= upper)
    days = inside.reshape(3, 24, 60, horizon).mean(axis=(1, 2))
    assert (np.abs(days - 0.9) < 0.1).all()
    assert inside[:6].mean() > 0.8  # nor at its very first ticks
