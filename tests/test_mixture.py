"""The mixture trusts what has proved itself, and folds into the weights of one network."""

import numpy as np
import pytest

from streamlstm.features import features_of
from streamlstm.golden import network_of
from streamlstm.kernels import reference
from streamlstm.linear import linear_start, with_blend
from streamlstm.mixture import Span, Trust, student, trusted
from streamlstm.model import Blend, Smoothing, Spec

HOUR = 3_600_000_000_000
ROWS = 400
BLOCK = np.arange(ROWS) // 10


def forecasts(*sizes: float, outputs: int = 4, seed: int = 0) -> list[np.ndarray]:
    """A target, and forecasts that miss it by errors of these sizes."""
    rng = np.random.default_rng(seed)
    target = rng.normal(size=(ROWS, outputs)).astype(np.float32)
    return [target, *(np.float32(target + s * rng.normal(size=target.shape)) for s in sizes)]


def span(target: np.ndarray, naive: np.ndarray, linear: np.ndarray, full: np.ndarray) -> Span:
    """Without a smoothing."""
    return of(target, naive, naive, linear, full)


def of(*forecasts: np.ndarray) -> Span:
    """Target, naive, smoothed, linear and full, in blocks of ten rows; there is no floor."""
    n = len(forecasts[0])
    return Span(*forecasts, np.full((n, 1), -np.inf, np.float32), np.ones((n, 1)), BLOCK[:n])


@pytest.mark.parametrize(
    ("sizes", "linear", "recurrent"),
    [((1, 3, 3), 0, 0), ((1, 0.1, 3), 1, 0), ((1, 0.1, 0.01), 1, 1), ((1, 3, 0.01), 1, 1)],
)
def test_the_best_is_trusted(sizes: tuple[float, ...], linear: int, recurrent: int) -> None:
    trust = trusted(span(*forecasts(*sizes)))
    np.testing.assert_allclose(trust.linear, linear, atol=0.3)
    np.testing.assert_allclose(trust.recurrent, recurrent, atol=0.3)


@pytest.mark.parametrize("better", ["smoothed", "linear"])
def test_the_smoothed_forecast_is_trusted_where_it_is_the_best(better: str) -> None:
    target, naive, good, bad = forecasts(1, 0.1, 3)
    smoothed, linear = (good, bad) if better == "smoothed" else (bad, good)
    trust = trusted(of(target, naive, smoothed, linear, linear))
    np.testing.assert_allclose(trust.smoothed, better == "smoothed", atol=0.3)
    np.testing.assert_allclose(trust.linear, better == "linear", atol=0.3)
    assert (trust.smoothed + trust.linear <= 1).all()


def test_of_spans_before_the_network_has_no_share() -> None:
    # one block in which a network is right says little, whatever lies before
    target, naive, linear, full = forecasts(1, 0.5, 0.1)
    before = of(target, naive, naive, linear, linear)
    assert (trusted(span(target, naive, linear, full), [before]).recurrent > 0.7).all()
    few = of(*(each[:10] for each in (target, naive, naive, linear, full)))
    trust = trusted(few, [before])
    np.testing.assert_allclose(trust.linear, 1, atol=0.3)
    np.testing.assert_array_equal(trust.recurrent, 0)


@pytest.mark.parametrize(("blocks", "trusted_at_all"), [(5, False), (6, True)])
def test_a_network_that_is_right_in_few_blocks_is_not_trusted(
    blocks: int, trusted_at_all: bool
) -> None:
    few = of(*(each[: 10 * blocks] for each in forecasts(1, 1, 1, 0.1)))
    assert (trusted(few).recurrent > 0).all() == trusted_at_all


def test_luck_is_not_taken_for_skill() -> None:
    # forecasts that are the naive one but for noise around it gain nothing
    taken = []
    for seed in range(10):
        target, naive = forecasts(1, seed=seed)
        rng = np.random.default_rng(100 + seed)
        linear, full = (naive + np.float32(0.3 * rng.normal(size=naive.shape)) for _ in range(2))
        trust = trusted(span(target, naive, linear, full))
        taken += [*trust.linear, *trust.recurrent]
    assert np.mean(taken) < 0.05


def test_one_upheaval_does_not_decide() -> None:
    target, naive = forecasts(1)
    linear = full = naive + np.sign(naive - target)  # worse everywhere
    target[:5] += 1000
    linear[:5] += 1000  # but for a few rows
    trust = trusted(span(target, naive, linear, full))
    np.testing.assert_array_equal(trust.linear, 0)


@pytest.mark.parametrize("freedom", [2, 3, 5, 10, 30, 1000])
def test_students_quantile(freedom: int) -> None:
    exact = {2: 4.303, 3: 3.182, 5: 2.571, 10: 2.228, 30: 2.042, 1000: 1.962}[freedom]
    ours = student(np.array([freedom]), 1.96)[0]
    assert ours == pytest.approx(exact, rel=0.11 if freedom == 2 else 0.04)


def test_what_is_missing_does_not_count() -> None:
    target, naive, linear, full = forecasts(1, 0.1, 3)
    target[::2] = np.nan
    full[1::4] = np.nan
    trust = trusted(span(target, naive, linear, full))
    np.testing.assert_allclose(trust.linear, 1, atol=0.3)
    target[:] = np.nan
    trust = trusted(span(target, naive, linear, full))
    assert np.isfinite([*trust.linear, *trust.recurrent]).all()


def test_steps_ahead_are_judged_apart() -> None:
    target, naive, good, bad = forecasts(1, 0.05, 5, outputs=20)
    linear = np.where(np.arange(20) < 8, good, bad).astype(np.float32)
    trust = trusted(span(target, naive, linear, linear))
    assert trust.linear[0] == 1
    assert trust.linear[-1] == 0


def test_the_folded_network_answers_with_the_mixture() -> None:
    rng = np.random.default_rng(0)
    zeros = ((0.0, 0.0, 0.0, 0.0),) * 3
    smoothing = Smoothing(season=6, level=0.2, profile=0.3)
    spec = Spec(
        hidden=5, step_ns=HOUR, horizon=3, base="blend", lags=(1, 2),
        blend=Blend(short=3, long=6, weights=zeros, smoothing=smoothing),
    )  # fmt: skip
    ts, values = np.arange(200) * HOUR, rng.normal(5, 1, (200, 1))
    start = linear_start(spec, [(ts, values)], [200], 0.01)
    weights = {
        k: rng.normal(0, 0.3, shape).astype(np.float32) for k, shape in spec.weight_shapes().items()
    }
    trust = Trust(
        np.array([0.0, 0.25, 0.75]), np.array([1.0, 0.5, 0.25]), np.array([0.75, 0.0, 1.0])
    )

    def forecast(spec: Spec, weights: dict[str, np.ndarray]) -> np.ndarray:
        rows = features_of(spec, ts, values)
        buffers = reference.allocate(network_of(spec, weights), 1)
        out = np.zeros((200, 3))
        reference.step(buffers, np.zeros(200, np.int32), rows.x, np.arange(201), out)
        return rows.base + rows.scale * out

    full = forecast(start.blended(1), weights)
    rows = features_of(start.blended(1), ts, values)
    linear = rows.base + rows.scale * (rows.x @ start.skip.T + start.bias)
    naive = features_of(with_blend(spec, start.naive), ts, values).base
    alone = with_blend(spec, np.tile([0.0, 0.0, 0.0, 1.0], (3, 1)))
    smoothed = features_of(alone, ts, values).base
    expected = naive + trust.smoothed * (smoothed - naive)
    expected += trust.linear * (linear - naive) + trust.recurrent * (full - linear)
    np.testing.assert_allclose(forecast(*trust.fold(start, weights)), expected, atol=2e-5)
