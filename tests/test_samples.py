"""What a model learns from: targets that match their times, and nothing from beyond the cut."""

import numpy as np
import pytest

from streamlstm.features import features_of, grid_places
from streamlstm.model import Scaling, Spec
from streamlstm.samples import draw, evenly, gather, lanes

HOUR = 3_600_000_000_000


def walk(n: int, seed: int = 0) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).normal(size=(n, 1)), axis=0) + 50


def with_gaps(n: int, missing: set[int]) -> tuple[np.ndarray, np.ndarray]:
    kept = np.array([i for i in range(n) if i not in missing])
    return kept * HOUR + 7, walk(n)[kept]


@pytest.mark.parametrize("base", ["none", "last", "seasonal"])
def test_a_target_restores_the_value_at_its_time(base: str) -> None:
    spec = Spec(step_ns=HOUR, hidden=4, horizon=5, season=6, base=base, lags=(2,))
    ts, values = with_gaps(60, {20, 21, 33})
    pool = gather(spec, [(ts, values)], [45])
    rows = features_of(spec, ts, values)
    truth = dict(zip(ts.tolist(), values[:, 0], strict=True))
    asked = 0
    for i, now in enumerate(ts.tolist()):
        for k in range(5):
            later = truth.get(now + (k + 1) * HOUR)
            crosses = i < 45 and later is not None and now + (k + 1) * HOUR >= ts[45]
            if later is None or crosses or i < spec.history:
                assert np.isnan(pool.target[i, k])
            else:
                asked += 1
                restored = rows.base[i, k] + pool.target[i, k] * rows.scale[i, 0]
                assert restored == pytest.approx(later, abs=1e-4)
    assert asked > 200


def test_nothing_before_the_cut_depends_on_what_comes_after() -> None:
    spec = Spec(step_ns=HOUR, hidden=4, horizon=3, season=4, base="seasonal", lags=(1, 4))
    ts = np.arange(50) * HOUR
    one, other = walk(50), walk(50)
    other[30:] = 1e6
    pools = [gather(spec, [(ts, values)], [30]) for values in (one, other)]
    for name in ("x", "target", "part"):
        first, second = (getattr(pool, name)[:30] for pool in pools)
        np.testing.assert_array_equal(first, second, err_msg=name)


def test_steps_are_ticks_where_no_step_is_known() -> None:
    spec = Spec(step_ns=0, hidden=4, horizon=2, base="last", scaling=Scaling(kind="none"))
    values = np.array([[1.0], [2.0], [4.0], [8.0]])
    pool = gather(spec, [(np.array([0, 5, 100, 101]), values)], [4])
    np.testing.assert_array_equal(pool.target, [[1, 3], [2, 6], [4, np.nan], [np.nan, np.nan]])


def test_places_count_missed_steps() -> None:
    ts = np.array([0, 1, 2, 5, 6]) * HOUR + np.array([0, 9, -9, 9, 0])
    assert grid_places(HOUR, ts).tolist() == [0, 1, 2, 5, 6]
    assert grid_places(0, ts).tolist() == [0, 1, 2, 3, 4]


def two_series() -> tuple[Spec, list[tuple[np.ndarray, np.ndarray]]]:
    spec = Spec(step_ns=HOUR, hidden=4, horizon=1)
    return spec, [(np.arange(n) * HOUR, walk(n, n)) for n in (300, 20)]


def test_series_lie_end_to_end() -> None:
    spec, series = two_series()
    pool = gather(spec, series, [200, 15])
    assert pool.bounds.tolist() == [[0, 200, 300], [300, 315, 320]]
    np.testing.assert_array_equal(pool.x[300:], features_of(spec, *series[1]).x)


def test_spans_are_drawn_before_the_cut_from_every_series() -> None:
    spec, series = two_series()
    pool = gather(spec, series, [200, 15])
    start, length = draw(np.random.default_rng(0), pool, 2000, 50)
    first = start < 300
    assert (start[first] + length[first] <= 200).all()
    assert (length[first] == 50).all()
    assert ((start[~first] == 300) & (length[~first] == 15)).all()
    assert (start[first].min(), start[first].max()) == (0, 150)
    assert (~first).mean() == pytest.approx(15 / 215, abs=0.02)


def test_lanes_end_with_their_series_and_warm_up_before_the_cut() -> None:
    spec, series = two_series()
    pool = gather(spec, series, [200, 15])
    one = [spans.tolist() for spans in lanes(pool, 1, 40, 9)]
    assert one == [[[160, 140, 40]], [[300, 20, 15]]]
    assert [len(spans) for spans in lanes(pool, 8, 40, 9)] == [2]
    assert [len(spans) for spans in lanes(pool, 8, 40, 1)] == [1]


def test_of_many_a_few_are_taken_evenly() -> None:
    assert evenly(5, 9).tolist() == [0, 1, 2, 3, 4]
    taken = evenly(1001, 11)
    np.testing.assert_array_equal(taken, np.arange(0, 1001, 100))
