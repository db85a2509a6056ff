"""What is said of forecasts live is what a backtest of them says afterwards."""

import numpy as np

from streamlstm.engine import Engine
from streamlstm.features import features_of
from streamlstm.handover import Handover
from streamlstm.policies import Policies
from streamlstm.ticks import WARM, Keys, Ticks
from tests.models import HOUR, random_model

HORIZON = 5


def test_scores_are_those_of_the_forecasts_published() -> None:
    """Two series, one with gaps and missing values, in batches; the first ticks are history."""
    model = random_model(horizon=HORIZON, lags=(1, 2), season=6)
    engine = Engine(model, max_series=2, max_batch=8)
    engine.series.lookup(Keys.of([b"a", b"b"]))
    rng, n, warm = np.random.default_rng(0), 120, 20
    lives = []
    for slot in (0, 1):
        place = np.cumsum([0, *rng.choice([1, 1, 1, 1, 2, 7][: 4 + 2 * slot], n - 1)])
        y = 10 + np.cumsum(rng.normal(size=n))
        lives.append((place, y, features_of(model.spec, HOUR * place, y[:, None]).scale[:, 0]))
    sums = {k: np.zeros(4) for k in (1, 3, 5)}
    made: list[dict[int, tuple[np.ndarray, ...]]] = [{}, {}]
    for i in range(n):
        for slot, (place, y, scale) in enumerate(lives):
            flags = np.full(1, WARM if i < warm else 0, np.uint8)
            ts = HOUR * place[i : i + 1]
            out = engine.step(Ticks(np.array([slot], np.int32), ts, y[i : i + 1, None], flags), 0)
            for k, total in sums.items():
                before = made[slot].get(place[i] - k)
                if before is not None and i >= warm:
                    point, low, high, latest = (each[k - 1] for each in before)
                    naive = abs(y[i] - latest) / scale[i] if k < model.spec.history else np.nan
                    error = abs(y[i] - point) / scale[i]
                    total += [1, low <= y[i] <= high, error, naive]
            shown = (
                engine.work.forecasts.point[0, :, 0],
                *engine.work.forecasts.quantiles[0, :, :, 0],
            )
            made[slot][place[i]] = (*(each.copy() for each in shown), np.full(HORIZON, y[i]))
            assert len(out.slot) == (i >= warm)
    for k, total in sums.items():
        np.testing.assert_allclose(engine.scores[k], total, rtol=1e-5)
        assert total[0] > 100


def test_nothing_is_scored_without_intervals() -> None:
    engine = Engine(random_model(), max_series=2, coverage=0)
    assert engine.scores == {}
    assert engine.work.quality.marks.size == 0


def test_a_missing_value_scores_nothing() -> None:
    policies = Policies(not_a_number="missing")
    engine = Engine(random_model(), max_series=2, policies=policies)
    engine.series.lookup(Keys.of([b"a"]))
    for i, value in enumerate([1.0, 2.0, np.nan, 4.0]):
        ticks = Ticks(
            np.zeros(1, np.int32), np.array([HOUR * i]), np.array([[value]]), np.zeros(1, np.uint8)
        )
        engine.step(ticks, 0)
    assert engine.scores[1][0] == 2


def test_another_model_counts_on() -> None:
    old, new = (
        Engine(random_model(seed, lags=(1, 4)), max_series=2, ordered=True) for seed in (0, 1)
    )
    old.series.lookup(Keys.of([b"a"]))
    for i in range(5):
        one = np.zeros(1, np.int32), np.array([HOUR * i]), np.array([[1.0 + i]])
        old.step(Ticks(*one, np.zeros(1, np.uint8)), 0)
    assert old.scores[1][0] > 0
    handover = Handover(old, new)
    while not handover.done:
        handover.prepare()
        handover.advance()
    handover.settle()
    assert new.scores == old.scores
