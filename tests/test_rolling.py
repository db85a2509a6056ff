"""A backtest of a table is that of its series, and its records say what the sums say."""

from dataclasses import replace

import msgspec
import numpy as np
import pandas as pd
import pytest

from streamlstm.backtest import MODELS, Actual, BacktestError, run, run_all, score
from streamlstm.datasets.frames import SeriesData
from streamlstm.golden import make_golden
from streamlstm.model import Model
from streamlstm.rolling import backtest, effort
from tests.models import HOUR, random_model

COVERAGES = (0.9, 0.5, 0.8)


def series(name: str, n: int = 200, seed: int = 0, size: float = 1.0) -> SeriesData:
    hours = np.arange(n)
    noise = np.random.default_rng(seed).normal(size=n)
    y = 10 + size * (np.sin(2 * np.pi * hours / 24) + 0.1 * noise)
    return SeriesData(name, hours * HOUR, y[:, None])


def table() -> list[SeriesData]:
    return [series("a"), series("b", 150, 1, 5.0), series("short", 10)]


def test_a_table_is_judged_as_its_series_are() -> None:
    model = random_model(season=24, base="seasonal")
    done: list[int] = []
    found = backtest(model, "t.csv", table(), [150, 100, 10], COVERAGES, progress=done.append)
    pairs = []
    for s, known in zip(table()[:2], (150, 100), strict=True):
        actual = Actual.of(s.ts, s.values[:, 0], HOUR, 24, known)
        pairs.append((actual, run(model, s.ts, s.values, known)))
    alone = score(pairs)
    for measure in ("mae", "rmse", "mase", "smape", "coverage", "winkler", "pinball_lower"):
        for name in MODELS:
            np.testing.assert_allclose(
                found.scores.by_step(measure, name), alone.by_step(measure, name)
            )
        one = found.series[1].scores.mean(measure)
        assert one == pytest.approx(score(pairs[1:]).mean(measure))
    assert sum(done) == effort(table(), model.spec) == 3 * 360
    assert (found.skipped, [one.name for one in found.series]) == (1, ["a", "b"])
    assert found.period_ns == (100 * HOUR, 199 * HOUR)


def test_each_target_is_judged_as_a_series_of_its_own() -> None:
    names = (("load", "target"), ("temp", "target"), ("wind", "measured"))
    roles = [{"name": name, "role": role} for name, role in names]
    model = random_model(season=24, base="seasonal", inputs=3, targets=2, roles=roles)
    values = np.concatenate([series("", seed=k, size=k + 1.0).values for k in range(3)], axis=1)
    both = SeriesData("a", series("").ts, values)
    done: list[int] = []
    found = backtest(model, "t.csv", [both], [150], COVERAGES, progress=done.append)
    assert [one.name for one in found.series] == ["a/load", "a/temp"]
    assert sum(done) == effort([both], model.spec) == 5 * 200
    for j, issued in enumerate(run_all(model, both.ts, values, 150)):
        actual = Actual.of(both.ts, values[:, j], HOUR, 24, 150)
        off = np.abs(actual.y[150:] - issued.point[:-1, 0])  # a step ahead
        alone = score([(actual, issued)])
        assert alone.by_step("mae")[0] == pytest.approx(off.mean())
        assert found.series[j].scores.mean("mae") == pytest.approx(alone.mean("mae"))
        own = found.by_target[("load", "temp")[j]]
        np.testing.assert_allclose(own.by_step("mae"), alone.by_step("mae"))
    together = sum(of.sums["mae", 0.0] for of in found.by_target.values())
    np.testing.assert_array_equal(found.scores.sums["mae", 0.0], together)
    told = [row["mae"] for row in found.as_json()["by_target"] if row["target"] == "temp"]
    assert told[0] == found.by_target["temp"].by_step("mae")[0]
    unnamed = random_model(season=24, base="seasonal", inputs=3, targets=2)
    assert backtest(unnamed, "t", [both], [150], (0.9,)).series[1].name == "a/1"


def test_the_fan_is_the_latest_of_which_all_came() -> None:
    model = random_model(season=24, base="seasonal")
    s = series("a")
    fan = backtest(model, "t", [s], [150], COVERAGES).series[0].fan
    assert fan.origin_ns == 196 * HOUR
    np.testing.assert_array_equal(fan.came, s.values[197:, 0])
    np.testing.assert_array_equal(fan.past, s.values[196 - 48 : 197, 0])
    issued = run(model, s.ts, s.values, 150, coverage=0.5)
    np.testing.assert_array_equal(fan.point, issued.point[196 - 149])
    np.testing.assert_array_equal(fan.intervals[0.5][1], issued.upper[196 - 149])


def test_records_are_frames_of_what_was_found() -> None:
    model = random_model(season=24, base="seasonal")
    found = backtest(model, "t.csv", table(), [150, 100, 10], COVERAGES, learning=False)
    told = msgspec.json.decode(msgspec.json.encode(found.as_json()))
    steps = pd.DataFrame(told["by_step"]).set_index(["step", "forecast"])
    assert steps.shape == (3 * len(MODELS), 9)
    for measure in steps:
        for name in MODELS:
            np.testing.assert_allclose(
                steps[measure].xs(name, level="forecast"), found.scores.by_step(measure, name)
            )
    each = pd.DataFrame(told["by_series"]).set_index(["series", "forecast"])
    assert each.loc[("b", "model"), "mae"] == pytest.approx(found.series[1].scores.mean("mae"))
    assert each.loc[("b", "model"), "forecasts"] == 51
    between = pd.DataFrame(told["intervals"]).set_index(["interval", "step", "forecast"])
    assert between.loc[(0.5, 2, "last_value"), "winkler"] == pytest.approx(
        found.scores.by_step("winkler", "last_value", 0.5)[1]
    )
    whole = pd.DataFrame(told["overall"]).set_index("forecast")
    assert whole.loc["model", "crps"] == pytest.approx(found.scores.mean("crps"))
    assert (told["learning"], told["series"], told["skipped"]) == (False, 2, 1)
    assert (told["from"], told["to"]) == ("1970-01-05T04:00:00+00:00", "1970-01-09T07:00:00+00:00")


def test_the_worst_come_first_and_what_has_no_scale_last() -> None:
    flat = SeriesData("flat", np.arange(200) * HOUR, np.full((200, 1), 7.0))
    model = random_model(season=24, base="seasonal")
    found = backtest(model, "t", [flat, *table()], [150, 150, 100, 10], (0.9,))
    order = found.worst_first()
    assert order[-1].name == "flat"
    assert order[0].scores.mean("mase") >= order[1].scores.mean("mase")
    assert "crps" not in found.scores.measures  # one interval says too little


@pytest.mark.parametrize(
    ("until", "one", "many"), [(199, True, True), (198, True, False), (149, False, False)]
)
def test_what_the_model_was_fitted_on_is_said_to_flatter_it(
    until: int, one: bool, many: bool
) -> None:
    """Of one series the first tick that is forecast tells; of many, each its own, the last does."""
    model = replace(random_model(), provenance={"to": f"{np.datetime64(until, 'h')}:00:00+00:00"})
    for series_, said in ((table()[:1], one), (table(), many)):
        found = backtest(model, "t", series_, [150, 100, 10][: len(series_)], (0.9,))
        assert len(found.notes) == said
        assert found.as_json()["notes"] == found.notes
    assert not backtest(random_model(), "t", table()[:1], [150], (0.9,)).notes


def test_without_learning_the_model_stays_as_it_is() -> None:
    """A constant bias is learned, and so made smaller, or it is not."""
    model = random_model(season=24, base="seasonal", directions=2)
    model.weights["head.bias"][:3] += 2.0
    golden = make_golden(model.spec, model.weights)
    model = Model(model.spec, model.weights, golden, model.errors, {})
    long = series("a", 4000)
    learned, fixed = (
        backtest(model, "t", [long], [3000], (0.9,), learning=on).scores.mean("mae")
        for on in (True, False)
    )
    assert learned < 0.7 * fixed


def test_without_a_season_nothing_is_said_of_one() -> None:
    done: list[int] = []
    found = backtest(random_model(), "t", table(), [150, 100, 10], (0.9,), progress=done.append)
    assert {row["forecast"] for row in found.as_json()["by_step"]} == {"model", "last_value"}
    assert sum(done) == effort(table(), random_model().spec) == 2 * 360


def test_nothing_to_judge_is_an_error() -> None:
    model = random_model()
    with pytest.raises(BacktestError, match="no series is long enough to be judged; raise --last"):
        backtest(model, "t", [series("short", 10)], [10], (0.9,))
    apart = SeriesData("apart", np.arange(20) * 10 * HOUR, np.ones((20, 1)))
    with pytest.raises(BacktestError, match=r"no tick lies on a step .* its horizon 3 steps"):
        backtest(model, "t", [apart], [10], (0.9,))
