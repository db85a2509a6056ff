"""Intervals keep their promise on series they were not made for."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlstm import intervals
from streamlstm.backtest import run as run_model
from streamlstm.backtest import run_all
from streamlstm.engine import Engine
from streamlstm.features import features_of
from streamlstm.model import Errors, Model, Spec
from streamlstm.ticks import WARM, Keys, Ticks
from tests.models import HOUR, random_model


def run(
    y: np.ndarray,
    point: np.ndarray,
    plan: intervals.Plan,
    places: np.ndarray | None = None,
    told: np.ndarray | None = None,
) -> np.ndarray:
    """(n, 2 * coverages, horizon) of one series y (n,) whose forecasts are point (n, horizon)."""
    places = np.arange(len(y)) if places is None else places
    return intervals.around(plan, places, y, point, told)


def coverage(y: np.ndarray, quantiles: np.ndarray, k: int, skip: int) -> float:
    target = y[skip + k :]
    low, high = (quantiles[skip : len(y) - k, side, k - 1] for side in (0, 1))
    return float(np.mean((low <= target) & (target <= high)))


@pytest.mark.parametrize("cover", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("noise", ["normal", "heavy", "growing", "shift"])
def test_long_run_coverage_whatever_the_data(cover: float, noise: str) -> None:
    n, skip, rng = 6000, 500, np.random.default_rng(1)
    e = {
        "normal": rng.normal(size=n),
        "heavy": rng.standard_t(2, size=n),
        "growing": rng.normal(size=n) * np.linspace(1, 20, n),
        "shift": rng.normal(size=n) * np.where(np.arange(n) < n // 2, 1, 8),
    }[noise]
    quantiles = run(e, np.zeros((n, 3)), intervals.plan(3, 1, cover, None, (1, 2, 3)))
    growth = {"growing": 20, "shift": 8}.get(noise, 1)
    chasing = np.log(growth) / (intervals.RATE * (n - skip))  # what the growth costs at most
    for k in (1, 2, 3):
        assert coverage(e, quantiles, k, skip) == pytest.approx(cover, abs=0.015 + chasing)


@pytest.mark.parametrize("growth", [5, 50, 500])
def test_intervals_follow_a_lasting_change_at_once(growth: float) -> None:
    """One step ahead they are as wide as they have to be some 30 ticks later."""
    n, change, copies = 900, 500, 40
    found, width = [], []
    for seed in range(copies):
        e = np.random.default_rng(seed).normal(size=n)
        e[change:] *= growth
        quantiles = run(e, np.zeros((n, 1)), intervals.plan(1, 1, 0.9, None, (1,)))
        found.append(np.abs(e[1:]) <= quantiles[:-1, 1, 0])
        width.append(quantiles[:, 1, 0])
    covered, width = np.mean(found, axis=0), np.median(width, axis=0)
    assert covered[change + 30 : change + 80].mean() > 0.8
    assert covered[change + 80 :].mean() == pytest.approx(0.9, abs=0.02)
    assert width[change + 200 :].mean() == pytest.approx(1.645 * growth, rel=0.25)


def test_a_short_outage_does_not_make_them_wide_for_long() -> None:
    e = np.random.default_rng(0).normal(size=900)
    e[500:510] *= 100
    width = run(e, np.zeros((900, 1)), intervals.plan(1, 1, 0.9, None, (1,)))[:, 1, 0]
    assert width[510] > 5 * width[499]
    assert width[600] < 2 * width[499]


def test_after_a_long_time_without_errors_the_first_ones_count_at_once() -> None:
    for cover in (0.5, 0.9):
        e = np.random.default_rng(0).normal(size=8000)
        e[1000:5000] = 0.0
        width = run(e, np.zeros((8000, 1)), intervals.plan(1, 1, cover, None, (1,)))[:, 1, 0]
        found = np.abs(e[1:]) <= width[:-1]
        assert found[5050:5500].mean() > cover - 0.1
        assert found[5500:].mean() == pytest.approx(cover, abs=0.03)


def test_a_calibrated_model_covers_from_the_first_tick() -> None:
    rng = np.random.default_rng(2)
    errors = Errors(np.array([0.8, 0.9]), np.array([[1.2816] * 2, [1.6449] * 2], np.float32))
    y = rng.normal(size=(400, 30))
    plan = intervals.plan(2, 1, 0.9, errors, (1, 2))
    first = [coverage(c, run(c, np.zeros((30, 2)), plan), 1, 0) for c in y]
    assert np.mean(first) == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("scored", [(1, 2, 3, 4), (1, 4)])
def test_in_its_youth_a_series_has_the_intervals_of_the_young(scored: tuple[int, ...]) -> None:
    """At each step, scored or not: far from all lie on the line between those that are."""
    grown, young = np.array([[1.0, 2.0, 2.0, 1.0]]), np.array([[[4, 9, 7, 1]], [[2, 0, 5, 2]]])
    errors = Errors(
        np.array([0.9]), grown.astype(np.float32), np.array([2, 5]), young.astype(np.float32)
    )
    plan = intervals.plan(4, 1, 0.9, errors, scored)
    quantiles = run(np.full(8, np.nan), np.zeros((8, 4)), plan)  # no error says anything
    expected = [[4, 9, 7, 1]] + 3 * [[2, 2, 5, 2]] + 4 * [[1, 2, 2, 1]]  # 0: not known
    np.testing.assert_allclose(quantiles[:, 1], expected, rtol=1e-6)


def seldom(cover: float) -> float:
    """So many misses in a row are."""
    return float(np.ceil(np.log(1e-4) / np.log(1 - cover) - 1e-9))


def moved(
    rate: float, run: int, k: int, error: float, reach: float, cover: float
) -> tuple[float, int]:
    """The rate for k ahead, and misses in a row."""
    run = 0 if error <= reach else run + (error > reach)
    if run >= seldom(cover) * k:
        rate = 0.4 / k
    elif rate > 0.02:
        rate *= 1 - 0.02 / k
    return float(np.float32(rate)), run


def plainly(
    y: np.ndarray,
    point: np.ndarray,
    coverages: tuple[float, ...],
    told: np.ndarray,
    errors: Errors | None,
) -> np.ndarray:
    """The same as :func:`run`, all steps scored, as the module says it: a loop for each number.

    The errors that a model brings are the same at all levels.
    """
    n, horizon = point.shape

    def youth(place: int, k: int) -> float:
        ages = errors.ages.tolist() if errors else []
        phase = sum(place + 1 >= age for age in ages)
        return float(errors.young[phase, 0, k]) if errors and phase < len(ages) else 1.0

    share = np.tile([0.5, 0.25], (len(coverages), horizon, 1))
    told, mean = np.clip(told, -1.5, 1.5), np.zeros(horizon)
    for i in range(n):
        mean += (told[i] - mean) / min(i + 11, 50)
        told[i] = np.clip(told[i] - mean, -1.5, 1.5)
    factors = np.zeros((n, horizon, 2))
    factors[:, :, 0] = told
    quantiles = np.full((n, 2 * len(coverages), horizon), np.nan)
    half = np.full((n, len(coverages), horizon), np.nan)
    width = np.full((len(coverages), horizon), np.nan, np.float32)
    if errors:
        width[:] = errors.quantiles[0]
    paces, (count, late, usual) = {}, np.zeros((3, horizon))
    for i in range(n):
        for k in range(horizon):
            said = np.rint(64 * factors[i - k - 1, k]) / 64
            if i > k:
                error = abs(y[i] - point[i - k - 1, k])
                unit = youth(i - k - 1, k)
                most = 10 * usual[k] if count[k] > 20 and usual[k] > 0 else 1e6
                off = min(error / unit / np.exp(share[0, k, 0] * said[0]), most)
                count[k] = min(count[k] + 1, 1000)
                late[k] += (off - late[k]) / min(count[k], 20)
                usual[k] += (off - usual[k]) / count[k]
                if paces.get((0, k), (0.0, 0))[1] >= seldom(coverages[0]) * (k + 1):
                    count[k], usual[k] = min(count[k], 20), late[k]
                factors[i, k, 1] = 2 * (late[k] - usual[k]) / (late[k] + usual[k])
            for c, cover in enumerate(coverages):
                if i > k:
                    reach = half[i - k - 1, c, k]
                    pace = paces.get((c, k), (0.0, 0))
                    paces[c, k] = moved(*pace, k + 1, error, reach, cover)
                    rate = max(0.02, paces[c, k][0]) + 2 / (10 * (k + 2) + count[k])
                    if reach >= 0:
                        missed = cover - (error <= reach)
                        share[c, k] += np.array([0.05, 0.02]) * missed * said
                        share[c, k] = np.clip(share[c, k], 0, 1)
                    if error <= reach:
                        width[c, k] = float(width[c, k]) * np.exp(-rate * (1 - cover))
                        width[c, k] *= width[c, k] >= 1e-9
                    elif not width[c, k] > 0:
                        width[c, k] = error / unit / np.exp(share[c, k] @ said)
                    elif error > reach:
                        width[c, k] = float(width[c, k]) * np.exp(rate * cover)
                before = range(c)
                within = [half[i, d, k] for d in before if coverages[d] < cover]
                beyond = [half[i, d, k] for d in before if coverages[d] > cover]
                wide = width[c, k] * youth(i, k) * np.exp(share[c, k] @ factors[i, k])
                half[i, c, k] = min([max([wide, *within]), *beyond])
        quantiles[i, 0::2], quantiles[i, 1::2] = point[i] - half[i], point[i] + half[i]
    return quantiles


Several = st.lists(st.sampled_from([0.1, 0.3, 0.5, 0.8, 0.9, 0.95, 0.99]), min_size=2, unique=True)


Ages = st.sets(st.integers(2, 60), max_size=3).map(sorted)


@given(Several.map(tuple), st.integers(0, 1000), st.booleans(), st.booleans(), Ages)
@settings(max_examples=60, deadline=None)
def test_several_are_tracked_each_on_its_own_and_issued_nested(
    coverages: tuple[float, ...], seed: int, calm: bool, spread: bool, ages: list[int]
) -> None:
    n, horizon, rng = 150, 3, np.random.default_rng(seed)
    y = rng.normal(size=n) if calm else rng.standard_t(1, size=n)
    point = rng.normal(size=(n, horizon))
    told = rng.normal(size=(n, horizon)).astype(np.float32) * spread
    errors = None
    if ages:
        young = np.exp(rng.normal(size=(len(ages), 1, horizon))).astype(np.float32)
        errors = Errors(np.full(1, 0.01), np.ones((1, horizon), np.float32), np.array(ages), young)

    def of(coverages: tuple[float, ...]) -> np.ndarray:
        plan = intervals.plan(horizon, 1, coverages, errors, (1, 2, 3), spread=spread)
        return run(y, point, plan, told=told)

    quantiles = of(coverages)
    half = quantiles - point[:, None]
    plain = plainly(y, point, coverages, told, errors) - point[:, None]
    # what is kept of a logarithm is rounded: rarely the other way, where float32 says otherwise
    np.testing.assert_allclose(half, plain, rtol=5e-3, atol=1e-5)
    assert np.isclose(half, plain, rtol=2e-4, atol=1e-5, equal_nan=True).mean() > 0.8
    assert np.isfinite(quantiles[horizon:]).all()
    for narrow in range(len(coverages)):
        for wide in range(len(coverages)):
            if coverages[narrow] < coverages[wide]:
                known = quantiles[horizon:]
                assert (known[:, 2 * narrow] >= known[:, 2 * wide]).all()
                assert (known[:, 2 * narrow + 1] <= known[:, 2 * wide + 1]).all()
    for few in range(1, len(coverages)):  # whatever is named after them
        alone = of(coverages[:few])
        np.testing.assert_array_equal(quantiles[:, : 2 * few], alone)


@pytest.mark.parametrize("honest", [True, False])
def test_a_spread_is_believed_as_far_as_it_is_right(honest: bool) -> None:
    """Errors are three times as large by day; another series is told so of nights by chance."""
    n, skip, rng = 6000, 2000, np.random.default_rng(3)
    day = np.arange(n) % 24 < 12
    size = np.where(day, 3.0, 1.0)
    e, point = rng.normal(size=n) * size, np.zeros((n, 1))
    log = np.log(np.roll(size, -1) / np.sqrt(3)) if honest else rng.normal(size=n)
    told = log[:, None].astype(np.float32)
    plan = intervals.plan(1, 1, 0.9, None, (1,))
    spread = intervals.plan(1, 1, 0.9, None, (1,), spread=True)
    plain, with_it = run(e, point, plan)[:, 1, 0], run(e, point, spread, told=told)[:, 1, 0]
    inside = [np.abs(e[skip:]) <= half[skip - 1 : -1] for half in (plain, with_it)]
    for found in inside:
        assert found.mean() == pytest.approx(0.9, abs=0.015)
    losses = [
        np.mean(
            2 * half[skip - 1 : -1] + 20 * np.maximum(np.abs(e[skip:]) - half[skip - 1 : -1], 0)
        )
        for half in (plain, with_it)
    ]
    if honest:
        assert losses[1] < 0.9 * losses[0]
        assert inside[1][day[skip:]].mean() == pytest.approx(0.9, abs=0.03)
        assert inside[0][day[skip:]].mean() < 0.85
        assert with_it[skip:][np.roll(day, -1)[skip:]].mean() == pytest.approx(3 * 1.645, rel=0.1)
    else:
        assert losses[1] < 1.05 * losses[0]


@pytest.mark.parametrize("calm", [True, False])
def test_intervals_widen_while_errors_are_large(calm: bool) -> None:
    """For a hundred ticks at a time they are three times as large; or never."""
    n, skip, rng = 6000, 1000, np.random.default_rng(6)
    size = np.where(np.arange(n) // 100 % 2 & (not calm), 3.0, 1.0)
    e = rng.normal(size=n) * size
    half = run(e, np.zeros((n, 1)), intervals.plan(1, 1, 0.9, None, (1,)))[skip - 1 : -1, 1, 0]
    e, size = e[skip:], size[skip:]
    assert np.mean(np.abs(e) <= half) == pytest.approx(0.9, abs=0.015)
    score = np.mean(2 * half + 20 * np.maximum(np.abs(e) - half, 0))
    best = np.full(len(e), np.quantile(np.abs(e), 0.9))  # of those that stay as they are
    same = np.mean(2 * best + 20 * np.maximum(np.abs(e) - best, 0))
    if calm:
        assert score < 1.03 * same
    else:
        assert score < 0.93 * same
        late = np.arange(skip, n) % 100 >= 30
        for large in (1.0, 3.0):
            found = (np.abs(e) <= half)[late & (size == large)]
            assert found.mean() == pytest.approx(0.9, abs=0.06)


@pytest.mark.parametrize("wrong", [0.5, 2.0])
def test_half_widths_that_are_wrong_at_first_are_mended_sooner(wrong: float) -> None:
    """A model's errors on other data, half or twice as large: half forgotten in a hundred ticks."""
    rng, n = np.random.default_rng(7), 101
    errors = Errors(np.array([0.9]), np.array([[1.6449 * wrong]], np.float32))
    plan = intervals.plan(1, 1, 0.9, errors, (1,))
    half = np.array([
        run(e, np.zeros((n, 1)), plan)[:, 1, 0] for e in rng.normal(size=(200, n))
    ])  # fmt: skip
    off = np.abs(np.log(np.median(half, axis=0) / 1.6449))
    assert off[0] == pytest.approx(np.log(2), rel=0.01)
    assert off[100] < 0.5 * off[0]


def test_each_of_several_covers_in_the_long_run() -> None:
    n, skip, rng = 6000, 500, np.random.default_rng(4)
    y, coverages = rng.standard_t(3, size=n), (0.9, 0.5, 0.8, 0.95)
    quantiles = run(y, np.zeros((n, 2)), intervals.plan(2, 1, coverages, None, (1, 2)))
    for c, cover in enumerate(coverages):
        for k in (1, 2):
            found = coverage(y, quantiles[:, 2 * c : 2 * c + 2], k, skip)
            assert found == pytest.approx(cover, abs=0.015)


def test_between_scored_steps_several_are_nested_too() -> None:
    """Though the model's errors on unseen data rise otherwise for each of them."""
    rng = np.random.default_rng(5)
    sizes = np.sort(rng.uniform(0.1, 3, (3, 9)), axis=0).astype(np.float32)
    errors = Errors(np.array([0.5, 0.8, 0.9]), sizes)
    y, point, scored = rng.standard_t(2, size=600), rng.normal(size=(600, 9)), (1, 4, 9)
    quantiles = run(y, point, intervals.plan(9, 1, (0.8, 0.9, 0.5), errors, scored))
    halves = (quantiles[:, 1::2] - quantiles[:, 0::2]) / 2
    np.testing.assert_allclose(halves[0], sizes[[1, 2, 0]], rtol=1e-5)
    assert (halves[:, 2] <= halves[:, 0]).all()
    assert (halves[:, 0] <= halves[:, 1]).all()
    touched = 0
    for c, cover in enumerate((0.8, 0.9, 0.5)):
        alone = run(y, point, intervals.plan(9, 1, cover, errors, scored))
        same = (alone == quantiles[:, 2 * c : 2 * c + 2]).all(axis=1)
        assert same.all() or c
        touched += (~same).sum()
    assert touched > 0


def test_without_calibration_the_first_interval_is_unknown_not_invented() -> None:
    y = np.array([0.0, 2.0, 1.0])
    quantiles = run(y, np.zeros((3, 1)), intervals.plan(1, 1, 0.9, None, (1,)))
    assert np.isnan(quantiles[0]).all()
    np.testing.assert_allclose(quantiles[1, :, 0], [-2, 2])


def test_half_widths_are_in_units_of_what_the_scale_usually_is() -> None:
    """By a quarter of what it is now, in the stream: of a step whose ticks are yet to come."""
    n, spec = 40, {"horizon": 40, "scaling": {"kind": "running", "memory": 5}}
    model = random_model(**spec)
    ts, values = HOUR * np.arange(n), 100 + np.random.default_rng(0).normal(size=(n, 1))
    values[20:] *= 3
    issued = run_model(model, ts, values, 1, coverage=0.9, learning=False)
    assert model.errors is not None
    half = (issued.intervals[0.9][1] - issued.intervals[0.9][0])[:, -1] / 2
    scale = features_of(model.spec, ts, values).scale[:, 0]
    usual = np.cumsum(scale) / np.arange(1, n + 1)
    expected = model.errors.at(0.9)[-1] * (0.75 * usual + 0.25 * scale)
    np.testing.assert_allclose(half, expected, rtol=1e-5)
    found = intervals.units(np.arange(n), scale[:, None])[:, 0]
    np.testing.assert_allclose(found, 0.75 * usual + 0.25 * scale)


def test_coverage_zero_means_no_intervals() -> None:
    for none in (0.0, 0, ()):
        plan = intervals.plan(3, 1, none, None, (1, 3))
        assert intervals.bands_fields(plan)["pending"][1][0] == 0
        quantiles = run(np.ones(4), np.zeros((4, 3)), plan)
        assert quantiles.shape == (4, 2, 3)
        assert np.isnan(quantiles).all()


def test_a_forecast_is_scored_against_its_own_tick_across_a_gap() -> None:
    """Forecasts say their target's place: any other pairing would leave an error."""
    horizon = 6
    places = np.cumsum([0, 1, 1, 1, 3, 1, 2, 1, 9, 1, 1, 1, 1, 1])
    y = places.astype(float)
    point = places[:, None] + np.arange(1.0, horizon + 1)
    quantiles = run(y, point, intervals.plan(horizon, 1, 0.9, None, range(1, 7)), places)
    known = quantiles[~np.isnan(quantiles).any(axis=1).any(axis=1)]
    assert len(known) > 2
    np.testing.assert_allclose(known[:, 0], known[:, 1])  # zero width: no error was ever seen


@given(st.integers(1, 400))
@settings(max_examples=50)
def test_scored_steps_span_the_horizon_within_bounds(horizon: int) -> None:
    spec = Spec(hidden=1, step_ns=1, horizon=horizon)
    plan = intervals.plan(horizon, 1, 0.9, None, spec.scored)
    steps = plan.steps
    assert (steps[0], steps[-1]) == (1, horizon)
    assert (np.diff(steps) > 0).all()
    assert len(steps) == min(horizon, 3) == len(plan.initial)
    every = np.arange(1, horizon + 1)
    left = np.searchsorted(steps, every, side="right") - 1
    right = np.minimum(left + 1, len(steps) - 1)
    between = (1 - plan.share) * steps[left] + plan.share * steps[right]
    np.testing.assert_allclose(between, every)


def test_between_scored_steps_the_width_bends_as_errors_on_unseen_data_do() -> None:
    sizes = np.array([1.0, 3.0, 4.0, 4.5, 5.0], np.float32)
    errors = Errors(np.array([0.9]), sizes[None])
    plan = intervals.plan(5, 1, 0.9, errors, (1, 5))
    quantiles = run(np.zeros(1), np.zeros((1, 5)), plan)
    np.testing.assert_allclose(quantiles[0, 1], sizes)


# --- what the history of a series says ------------------------------------------------------------


def with_seen(seen: list[float], **spec: object) -> Model:
    """One whose intervals are so wide that nothing lies outside; ``seen`` of each output."""
    model = random_model(4, **spec)
    assert model.errors is not None
    wide = replace(model.errors, quantiles=model.errors.quantiles + 50)
    return replace(model, errors=replace(wide, seen=np.array(seen, np.float32)))


@pytest.mark.parametrize("coverage", [0.9, (0.9, 0.5)])
@pytest.mark.parametrize("targets", [1, 2])
def test_a_series_that_errs_more_in_its_history_begins_with_wider_intervals(
    coverage: float | tuple[float, ...], targets: int
) -> None:
    """By how much more to the power of 3/4, all steps alike; nothing where that is not known."""
    known, spec = 40, {"targets": targets, "inputs": targets}
    seen, values = [0.5, 2.0, 3.0, 0.2, 0.7, 1.0][: 3 * targets], np.random.default_rng(0)
    y = values.normal(size=(60, targets)).cumsum(axis=0)
    ts = np.arange(60) * HOUR
    scale = features_of(random_model(4, **spec).spec, ts, y).scale
    unit = intervals.units(np.arange(60), scale)
    plain, told, every = (
        run_all(with_seen(brought, **spec), ts, y, begin, coverage=coverage)
        for brought, begin in (([], known), (seen, known), ([], 1))
    )
    for j in range(targets):
        ratios = []
        for k in (1, 2, 3):
            made = np.arange(known - 1 - k)  # the last warm tick is the one before the first issued
            off = np.abs(y[made + k, j] - every[j].point[made, k - 1]) / unit[made + k, j]
            mean = off.mean() / seen[(k - 1) * targets + j]
            ratios.append((25 + len(off) * mean) / (25 + len(off)))
        for level in np.atleast_1d(coverage):
            half, before = (np.diff(of[j].intervals[level], axis=0)[0] for of in (told, plain))
            np.testing.assert_allclose(half / before, np.mean(ratios) ** 0.75, rtol=1e-4)


def test_history_that_comes_late_says_nothing() -> None:
    """What a series learned from news is not forgotten over it."""
    y = np.random.default_rng(1).normal(size=80).cumsum()[:, None]

    def ends(seen: list[float]) -> np.ndarray:
        engine = Engine(with_seen(seen), max_series=1, max_batch=80)
        engine.series.lookup(Keys.of([b"series"]))
        flags = np.where((np.arange(80) < 20) | (np.arange(80) >= 50), 0, WARM).astype(np.uint8)
        ticks = Ticks(np.zeros(80, np.int32), np.arange(80) * HOUR, y, flags)
        return engine.step(ticks, 0).quantiles.copy()

    np.testing.assert_array_equal(ends([0.01, 0.01, 0.01]), ends([]))


def test_an_error_of_history_that_is_not_known_of_a_step_says_nothing_of_others() -> None:
    y, ts = np.random.default_rng(2).normal(size=60).cumsum()[:, None], np.arange(60) * HOUR
    some, none = (run_model(with_seen(seen), ts, y, 40) for seen in ([0.5, 0.0, 0.5], []))
    np.testing.assert_array_equal(some.intervals[0.9], none.intervals[0.9])
