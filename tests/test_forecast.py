"""Forecasts from the end are those of the live engine, also where it goes on from its own."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from streamlstm.backtest import run, run_all
from streamlstm.cli import main
from streamlstm.datasets.frames import SeriesData
from streamlstm.engine import Engine
from streamlstm.forecast import PATHS, ForecastError, at_the_end, extend, simulate
from streamlstm.golden import make_golden
from streamlstm.model import Errors, Model
from streamlstm.model_file import load_model
from streamlstm.ticks import Keys, Ticks
from tests.models import HOUR, random_model, random_model_file


def series(name: str = "a", n: int = 200, seed: int = 0) -> SeriesData:
    hours = np.arange(n)
    noise = np.random.default_rng(seed).normal(size=n)
    y = 10 + np.sin(2 * np.pi * hours / 24) + 0.1 * noise
    return SeriesData(name, (hours + 7 * seed) * HOUR, y[:, None])


def table() -> list[SeriesData]:
    """Of different lengths and times; one of a single tick."""
    return [series("a"), series("bc", 150, 1), series("d", 1, 2), series("e", 70, 3)]


def last_value(step: float = 1.0) -> Model:
    """The latest value is the forecast, and its errors are normal."""
    model = random_model(horizon=2, base="last", scaling={"kind": "none"})
    weights = {name: np.zeros_like(array) for name, array in model.weights.items()}
    levels = np.array([0.5, 0.683, 0.9, 0.955, 0.99])
    sizes = np.array([0.674, 1.0, 1.645, 2.0, 2.576])[:, None] * step * np.sqrt([1, 2])
    errors = Errors(levels, sizes.astype(np.float32))
    return Model(model.spec, weights, make_golden(model.spec, weights), errors, {})


def test_each_series_is_forecast_as_if_it_were_alone_and_live() -> None:
    model = random_model(season=24, base="seasonal", directions=2)
    found = at_the_end(model, table(), coverage=0.8)
    for k, s in enumerate(table()):
        alone = run(model, s.ts, s.values, 1, coverage=0.8)
        np.testing.assert_array_equal(found.point[k, :, 0], alone.point[-1])
        np.testing.assert_array_equal(found.lower[k, :, 0], alone.lower[-1])
        np.testing.assert_array_equal(found.upper[k, :, 0], alone.upper[-1])
        np.testing.assert_array_equal(found.times()[k], s.ts[-1] + HOUR * np.arange(1, 4))
    assert found.names == ["a", "bc", "d", "e"]


def test_what_the_model_was_fitted_on_is_history() -> None:
    model, s = random_model(season=24, base="seasonal"), series("a", 2000)
    told = dict(model.provenance) | {"to": "1970-02-28T00:00:00+00:00"}
    fitted = Model(model.spec, model.weights, model.golden, model.errors, told)
    known = 58 * 24 + 1  # the ticks up to then
    assert s.ts[known - 1] == pd.Timestamp(told["to"]).value
    found = at_the_end(fitted, [s])
    expected = run(model, s.ts, s.values, known + 1)  # of which the first `known` are warm
    np.testing.assert_array_equal(found.upper[0, :, 0], expected.upper[-1])
    assert (found.upper != at_the_end(model, [s]).upper).all()


def test_beyond_the_horizon_it_goes_on_from_its_own_forecasts() -> None:
    model = random_model(season=24, base="seasonal", directions=2)
    found = extend(at_the_end(model, table()), 8)
    for k, s in enumerate(table()):
        engine = Engine(model, max_series=1, max_batch=1)
        slot, quiet = engine.series.lookup(Keys.of([b"x"])), np.zeros(1, np.uint8)

        def step(ts: int, value: float, engine=engine, slot=slot, quiet=quiet) -> np.ndarray:
            tick = Ticks(slot, np.array([ts]), np.array([[value]]), quiet)
            return engine.step(tick, 0).point[0, :, 0].copy()

        for ts, value in zip(s.ts.tolist(), s.values[:, 0].tolist(), strict=True):
            expected = step(ts, value).tolist()
        for at in range(1, 8):
            (ahead, *_) = step(int(s.ts[-1]) + at * HOUR, expected[at - 1])
            if at >= 3:
                expected.append(float(ahead))
        np.testing.assert_array_equal(found.point[k, :, 0], expected)
    assert (found.lower < found.point).all()
    assert (found.point < found.upper).all()


def test_a_shorter_horizon_is_its_beginning() -> None:
    whole = at_the_end(random_model(), table())
    short = extend(whole, 2)
    np.testing.assert_array_equal(short.point, whole.point[:, :2])
    np.testing.assert_array_equal(short.upper, whole.upper[:, :2])
    assert short.times().shape == (4, 2)


def test_paths_of_the_last_value_are_random_walks() -> None:
    steps = np.random.default_rng(0).normal(size=100)  # of which the model knows the size
    walk = SeriesData("walk", HOUR * np.arange(100), np.cumsum(steps)[:, None])
    ends = at_the_end(last_value(), [walk])
    ((rows, point, paths),) = simulate(ends, 9, 5000)
    assert rows == slice(0, 1)
    np.testing.assert_array_equal(point[0], np.full(9, walk.values[-1, 0]))
    spread = (paths[0] - ends.point[0, 0, 0]).std(axis=0)
    np.testing.assert_allclose(spread / spread[0], np.sqrt(np.arange(1, 10)), rtol=0.06)
    half = (ends.upper - ends.lower)[0, 0, 0] / 2
    assert np.mean(np.abs(paths[0, :, 0] - ends.point[0, 0, 0]) <= half) == pytest.approx(
        0.9, abs=0.02
    )
    steps = np.diff(paths[0], axis=1)
    assert abs(np.corrcoef(steps[:, 0], steps[:, 4])[0, 1]) < 0.06
    wide = extend(ends, 9)
    width = (wide.upper - wide.lower)[0]
    np.testing.assert_allclose(width[8] / width[0], 3, rtol=0.25)  # of fewer paths
    np.testing.assert_array_equal(width[:2], (ends.upper - ends.lower)[0])


def test_paths_are_those_of_the_seed_whatever_the_other_series_are() -> None:
    model = random_model(season=24, base="seasonal")
    ends = at_the_end(model, table())
    one, same, other = (
        np.concatenate([part.paths for part in simulate(ends, 5, 30, seed=seed)])
        for seed in (1, 1, 2)
    )
    assert one.shape == (4, 30, 5)
    np.testing.assert_array_equal(one, same)
    assert (one != other).all()
    alone = next(simulate(at_the_end(model, table()[:1]), 5, 30, seed=1)).paths
    np.testing.assert_array_equal(one[:1], alone)


def test_many_series_are_rolled_forward_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = at_the_end(random_model(), table())
    (whole,) = simulate(ends, 6, 10)
    monkeypatch.setattr("streamlstm.forecast.CROWD", 3 * (PATHS + 1))
    monkeypatch.setattr("streamlstm.forecast.BATCH", 16)
    done: list[int] = []
    parts = [*simulate(ends, 6, 10, progress=done.append)]
    assert [(part.rows.start, part.rows.stop) for part in parts] == [(0, 3), (3, 4)]
    np.testing.assert_array_equal(np.concatenate([part.paths for part in parts]), whole.paths)
    assert sum(done) == 4 * 6 * (PATHS + 1)


def test_paths_spread_as_the_intervals_do() -> None:
    model = random_model(season=24, base="seasonal")
    ends = at_the_end(model, table(), coverage=0.8)
    (sample,) = simulate(ends, 6, 1000)
    lower, upper = ends.lower[:, None, :, 0], ends.upper[:, None, :, 0]
    inside = (lower <= sample.paths[..., :3]) & (sample.paths[..., :3] <= upper)
    np.testing.assert_allclose(inside.mean(axis=1), 0.8, atol=0.03)
    np.testing.assert_allclose(np.median(sample.paths, axis=1), sample.point, atol=1e-3)
    few = next(simulate(ends, 6, 3))  # those of many, not stretched by what three of them say
    many = next(simulate(ends, 6, PATHS))
    np.testing.assert_array_equal(few.paths, many.paths[:, :3])


def test_nothing_lies_below_a_floor_however_far_ahead() -> None:
    chance = np.random.default_rng(0)
    counts = [
        SeriesData(f"{n}", HOUR * np.arange(n), chance.poisson(0.7, (n, 1)) * 1.0)
        for n in (90, 200)
    ]
    ends = at_the_end(random_model(floor=0.0), counts, coverage=0.8)
    assert (ends.lower == 0).any()
    (sample,) = simulate(ends, 8, 1000)
    assert sample.paths.min() == 0
    above = np.mean(sample.paths[..., :3] > ends.upper[:, None, :, 0], axis=1)
    np.testing.assert_allclose(above, 0.1, atol=0.02)  # though the other end was cut
    wide = extend(ends, 8)
    assert min(wide.point.min(), wide.lower.min()) >= 0
    width = (wide.upper - wide.point)[..., 0]
    assert (width[:, 3] > 0.7 * width[:, 2]).all()  # no seam


def test_every_target_is_forecast(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    roles = [{"name": name, "role": "target"} for name in ("load", "temp")]
    path = random_model_file(tmp_path, inputs=2, targets=2, roles=roles)
    one, other = (series("x", 150, seed).values[:, 0] for seed in (1, 2))
    frame = pd.DataFrame({"ds": pd.to_datetime(series("x").ts[:150]), "load": one, "temp": other})
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert main(["forecast", str(path), str(tmp_path / "t.csv")]) == 0
    found = pd.read_csv(io.StringIO(capfd.readouterr().out))
    assert [*found] == ["unique_id", "ds", "target", "forecast", "lower", "upper"]
    assert found.target.tolist() == ["load"] * 3 + ["temp"] * 3
    ts, values = series("x").ts[:150], np.stack([one, other], axis=1)
    for each, name in zip(run_all(load_model(path), ts, values, 1), ("load", "temp"), strict=True):
        own = found[found.target == name]
        np.testing.assert_array_equal(own.forecast, each.point[-1])
        np.testing.assert_array_equal(own.upper, each.upper[-1])


def test_months_are_as_long_as_they_are(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = random_model_file(tmp_path, step_ns=31 * 24 * HOUR, horizon=12)
    ds = pd.date_range("2010-01-01", periods=50, freq="MS")
    pd.DataFrame({"ds": ds, "y": np.arange(50.0)}).to_csv(tmp_path / "t.csv", index=False)
    assert main(["forecast", str(path), str(tmp_path / "t.csv"), "--horizon", "40"]) == 0
    found = pd.read_csv(io.StringIO(capfd.readouterr().out), parse_dates=["ds"])
    assert found.ds.tolist() == pd.date_range(ds[-1], periods=41, freq="MS")[1:].tolist()


def test_a_step_is_the_models_where_ticks_are_further_apart() -> None:
    """Of an hourly model, say, a table with a tick a day."""
    daily = SeriesData("d", 24 * HOUR * np.arange(20), np.arange(20.0)[:, None])
    found = at_the_end(random_model(), [daily])
    np.testing.assert_array_equal(found.times()[0], daily.ts[-1] + HOUR * np.arange(1, 4))


def test_without_a_step_a_forecast_is_for_the_usual_time_after() -> None:
    ts = np.cumsum([0, 10, 10, 30, 10]) * HOUR
    uneven = SeriesData("u", ts, np.arange(5.0)[:, None])
    found = at_the_end(random_model(step_ns=0), [uneven])
    np.testing.assert_array_equal(found.times()[0], ts[-1] + np.array([10, 20, 30]) * HOUR)


def test_without_a_step_each_series_goes_on_by_its_own_spacing() -> None:
    """Months beside working days and hours, of which there are the most."""
    ends = [("B", 30), ("h", 200), ("MS", 12)]
    whole = [pd.date_range("2024-01-01", periods=n + 3, freq=freq) for freq, n in ends]
    times = [np.asarray(each.as_unit("ns").asi8) for each in whole]
    mixed = [SeriesData(f"{k}", ts[:-3], np.ones((len(ts) - 3, 1))) for k, ts in enumerate(times)]
    found = at_the_end(random_model(step_ns=0), mixed)
    np.testing.assert_array_equal(found.times(), [ts[-3:] for ts in times])
    np.testing.assert_array_equal(found.times(2, slice(1, 3)), [ts[-3:-1] for ts in times[1:]])


def test_without_known_errors_intervals_are_missing_not_made_up() -> None:
    ends = at_the_end(random_model(calibrated=False), [series("one", 1), series("many", 50)])
    wide = extend(ends, 5)
    assert np.isfinite(wide.point).all()
    assert np.isnan(wide.upper[0]).all()
    assert np.isfinite(wide.upper[1]).all()


def test_what_cannot_be_forecast_is_said() -> None:
    model = random_model(inputs=2)
    with pytest.raises(ForecastError, match="the table has 1 value a tick, the model takes 2"):
        at_the_end(model, table())
    two = SeriesData("two", series().ts, np.repeat(series().values, 2, axis=1))
    ends = at_the_end(model, [two])
    with pytest.raises(ForecastError, match="ask for --horizon 3 or less, and no paths"):
        extend(ends, 4)


# --- the command ----------------------------------------------------------------------------------


def files(folder: Path, **spec: object) -> tuple[Path, Path]:
    data = folder / "data.csv"
    parts = [
        pd.DataFrame({"unique_id": s.name, "ds": pd.to_datetime(s.ts), "y": s.values[:, 0]})
        for s in table()
    ]
    pd.concat(parts).to_csv(data, index=False)
    return random_model_file(folder, **spec), data


def test_forecasts_are_a_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, data = files(tmp_path)
    assert main(["forecast", str(model), str(data), "--coverage", "0.8"]) == 0
    out = capfd.readouterr().out
    frame = pd.read_csv(io.StringIO(out), parse_dates=["ds"])
    assert [*frame] == ["unique_id", "ds", "forecast", "lower", "upper"]
    found = at_the_end(random_model(), table(), coverage=0.8)
    np.testing.assert_array_equal(frame.forecast, found.point.ravel())
    np.testing.assert_array_equal(frame.upper, found.upper.ravel())
    assert frame[frame.unique_id == "bc"].ds.tolist() == [
        pd.Timestamp(table()[1].ts[-1] + k * HOUR) for k in (1, 2, 3)
    ]
    for name in ("f.csv", "f.parquet"):
        path = tmp_path / name
        line = ["forecast", str(model), str(data), "--coverage", "0.8", "--out", str(path)]
        assert main(line) == 0
        assert capfd.readouterr().out == ""
        again = pd.read_parquet(path) if name.endswith("t") else pd.read_csv(path)
        np.testing.assert_array_equal(again.forecast, frame.forecast)


@pytest.mark.parametrize("paths", [[], ["--paths", "1"]])
def test_times_that_say_their_offset_are_answered_with_it(
    paths: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Else an hour of Berlin would be read back as one of London."""
    model, data = files(tmp_path)
    frame = pd.read_csv(data, parse_dates=["ds"])
    last = frame[frame.unique_id == "a"].ds.iloc[-1]
    assert main(["forecast", str(model), str(data), *paths]) == 0
    plain = pd.read_csv(io.StringIO(capfd.readouterr().out))
    assert plain.ds[0] == str(last + pd.Timedelta("1h"))
    frame["ds"] = frame.ds.dt.tz_localize("UTC").dt.tz_convert("Europe/Berlin")
    frame.to_csv(data, index=False)
    assert main(["forecast", str(model), str(data), *paths]) == 0
    marked = pd.read_csv(io.StringIO(capfd.readouterr().out))
    assert marked.ds.tolist() == [f"{each}+00:00" for each in plain.ds]


def test_paths_are_a_table(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr("streamlstm.forecast.CROWD", 2 * (PATHS + 1))  # in parts
    model, data = files(tmp_path)
    line = ["forecast", str(model), str(data), "--paths", "4", "--horizon", "5", "--seed", "3"]
    assert main([*line, "--timezone", "Europe/Berlin"]) == 0
    frame = pd.read_csv(io.StringIO(capfd.readouterr().out))
    assert frame.groupby(["unique_id", "path"]).size().to_dict() == {
        (name, path): 5 for name in ("a", "bc", "d", "e") for path in (1, 2, 3, 4)
    }
    assert frame.ds[0].endswith("+01:00")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--horizon", "0"], "'0' is not a whole number, 1 or more"),
        (["--paths", "x"], "'x' is not a whole number, 1 or more"),
        (["--out", "f.txt"], "--out f.txt: name a file that ends in .csv or .parquet"),
        (["--out", "{data}"], "data.csv: is read from; name another file"),
        (["--out", "none/f.csv"], "its folder does not exist"),
    ],
)
def test_wrong_usage_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    model, data = files(tmp_path)
    try:
        asked = [each.format(data=data) for each in arguments]
        code = main(["forecast", str(model), str(data), *asked])
    except SystemExit as left:
        code = int(left.code or 0)
    told = capfd.readouterr()
    assert (code, told.out) == (2, "")
    (line,) = told.err.splitlines()
    assert said in line
