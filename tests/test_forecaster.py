"""The Python interface: the same forecasts as the engine's, a tick or a table at a time."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from streamlstm.backtest import run_all
from streamlstm.config import ConfigError
from streamlstm.datasets.times import DataError
from streamlstm.forecaster import Forecaster
from streamlstm.model_file import save_model
from tests.models import HOUR, random_model, random_model_file

SMALL = {"season": 24, "hidden": 4, "updates": 20, "batch": 8, "chunk": 24}


def long(n: int = 600, names: tuple[str, ...] = ("a", "b")) -> pd.DataFrame:
    ts = pd.date_range("2026-01-01", periods=n, freq="h")
    rng = np.random.default_rng(0)
    parts = []
    for name in names:
        y = 100 + 20 * np.sin(2 * np.pi * np.arange(n) / 24) + rng.normal(size=n)
        parts.append(pd.DataFrame({"unique_id": name, "ds": ts, "y": y}))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def fitted() -> Forecaster:
    return Forecaster.fit(long(), horizon=6, **SMALL)


def test_a_fit_forecasts_the_next_hours_of_each_series(fitted: Forecaster) -> None:
    assert fitted.report is not None
    assert fitted.report.series == 2
    frame = fitted.predict(long())
    assert list(frame.columns) == ["unique_id", "ds", "forecast", "lower", "upper"]
    assert frame.groupby("unique_id").size().to_dict() == {"a": 6, "b": 6}
    first = frame[frame.unique_id == "b"]
    assert first.ds.iloc[0] == pd.Timestamp("2026-01-26 00:00")
    hours = np.arange(600, 606)
    np.testing.assert_allclose(first.forecast, 100 + 20 * np.sin(2 * np.pi * hours / 24), atol=4)
    assert (first.lower < first.forecast).all()
    assert (first.forecast < first.upper).all()
    assert len(fitted.predict(long(), horizon=9)) == 18


def test_tick_by_tick_it_says_what_a_whole_run_says(tmp_path: Path) -> None:
    model = random_model(season=24, base="seasonal", directions=2)
    save_model(model, tmp_path / "m.safetensors")
    frame = long(80, ("a",))
    stepped = Forecaster.load(tmp_path / "m.safetensors")
    for ts, y in zip(frame.ds[:-1], frame.y[:-1], strict=True):
        stepped.step(y, ts, "a")
    made = stepped.step(frame.y.iloc[-1], frame.ds.iloc[-1], "a")
    ns = frame.ds.astype("datetime64[ns]").astype("int64").to_numpy()
    (issued,) = run_all(model, ns, frame.y.to_numpy()[:, None], 1, coverage=(0.9,))
    np.testing.assert_array_equal(made.forecast, issued.point[-1])
    np.testing.assert_array_equal(made.lower, issued.lower[-1])
    np.testing.assert_array_equal(made.upper, issued.upper[-1])
    assert made.ts[0] == np.datetime64(int(ns[-1] + HOUR), "ns")
    taught = Forecaster(model)
    assert taught.update(frame[:-1]) == 79
    again = taught.step(frame.y.iloc[-1], str(frame.ds.iloc[-1]), "a")
    np.testing.assert_array_equal(again.forecast, made.forecast)


def test_what_is_saved_says_the_same(fitted: Forecaster, tmp_path: Path) -> None:
    fitted.save(tmp_path / "m.safetensors")
    long(50).to_csv(tmp_path / "data.csv", index=False)
    loaded = Forecaster.load(tmp_path / "m.safetensors")
    assert loaded.report is None
    pd.testing.assert_frame_equal(
        loaded.predict(tmp_path / "data.csv"), fitted.predict(long(50)), check_dtype=False
    )


def test_a_tick_that_is_refused_changes_nothing() -> None:
    forecaster = Forecaster(random_model())
    forecaster.step(1.0, "2026-01-01 00:00", "a")
    for value, ts, said in (
        (2.0, "2026-01-01 00:00", "duplicate"),
        (2.0, "2025-12-31", "late"),
        ([1.0, 2.0], "2026-01-01 01:00", "2 values; the model takes 1"),
    ):
        with pytest.raises(ValueError, match=said):
            forecaster.step(value, ts, "a")
    other = Forecaster(random_model())
    other.step(1.0, "2026-01-01 00:00", "a")
    assert (
        forecaster.step(3.0, "2026-01-01 01:00", "a").forecast.tolist()
        == other.step(3.0, "2026-01-01 01:00", "a").forecast.tolist()
    )
    with pytest.raises(ValueError, match="time"):
        forecaster.step(1.0, "soon", "a")
    with pytest.raises(ValueError, match="NaT"):
        forecaster.step(1.0, "NaT", "a")
    for ts in (12, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="no Unix time"):
            forecaster.step(1.0, ts, "a")
    with pytest.raises(ValueError, match="bounds"):
        forecaster.step(1.0, 1e20, "a")


@pytest.mark.parametrize("unit", [1.0, 1, 1_000, 1_000_000, 1_000_000_000])
def test_a_number_is_unix_time(unit: float) -> None:
    made = Forecaster(random_model()).step(1.0, 1_767_225_600 * unit, "a")
    assert made.ts[0] == np.datetime64("2026-01-01T01:00", "ns")


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_a_frame_of_arrow_is_read_as_any_other(zone: str | None) -> None:
    frame = long(60)
    frame["ds"] = pd.to_datetime(frame.ds).dt.tz_localize(zone)
    forecaster = Forecaster(random_model())
    pd.testing.assert_frame_equal(
        forecaster.predict(frame.convert_dtypes(dtype_backend="pyarrow")),
        forecaster.predict(frame),
        check_dtype=False,
    )


def test_a_series_is_a_table_of_one() -> None:
    frame, forecaster = long(60, ("a",)), Forecaster(random_model())
    alone = forecaster.predict(frame.set_index("ds").y.rename("load"))
    pd.testing.assert_frame_equal(
        alone.drop(columns="unique_id"), forecaster.predict(frame).drop(columns="unique_id")
    )


def test_the_name_of_a_series_may_be_a_number() -> None:
    forecaster = Forecaster(random_model())
    forecaster.update(long(60, ("a",)).assign(unique_id=7))
    with pytest.raises(ValueError, match="'7' is refused: late"):
        forecaster.step(1.0, "2000-01-01", 7)


def test_data_that_is_not_as_described_says_what(fitted: Forecaster) -> None:
    with pytest.raises(DataError, match="no rows"):
        fitted.predict(long(5)[:0])
    with pytest.raises(DataError, match=r"of type list; give a DataFrame"):
        fitted.predict([1.0, 2.0])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="'y' has complex numbers"):
        fitted.predict(long(5).assign(y=1 + 2j))
    with pytest.raises(ValueError, match="the model takes 2"):
        Forecaster(random_model(inputs=2)).predict(long(5))


@pytest.mark.parametrize("name", ["", "x" * 1025, "a\0b"])
def test_a_name_that_no_series_can_have_is_refused(name: str) -> None:
    forecaster = Forecaster(random_model())
    with pytest.raises(ValueError, match="1 to 1024 bytes"):
        forecaster.step(1.0, "2026-01-01", name)
    if name:
        for call in (forecaster.update, forecaster.predict):
            with pytest.raises(ValueError, match="1 to 1024 bytes"):
                call(long(5, (name,)))


def test_all_calls_take_the_same_names() -> None:
    forecaster, name = Forecaster(random_model()), "ä" * 512
    assert forecaster.predict(long(5, (name,))).unique_id.unique().tolist() == [name]
    assert forecaster.update(long(5, (name,))) == 5
    assert forecaster.step(1.0, "2026-02-01", name).series == name


def test_times_without_a_zone_are_of_the_one_asked_for() -> None:
    forecaster = Forecaster(random_model())
    with pytest.warns(UserWarning, match="times without a zone taken as Europe/Berlin"):
        frame = forecaster.predict(long(5, ("a",)), timezone="Europe/Berlin")
    assert frame.ds.iloc[0] == pd.Timestamp("2026-01-01 05:00", tz="Europe/Berlin")


@pytest.mark.parametrize("horizon", [0, -1, 1.5, float("nan"), float("inf")])
def test_a_horizon_is_a_whole_number_of_steps(horizon: float) -> None:
    with pytest.raises(ValueError, match=f"a horizon of {horizon} steps; a whole number, 1 at"):
        Forecaster(random_model()).predict(long(5), horizon)  # type: ignore[arg-type]


@pytest.mark.parametrize("coverage", [90, 1, -1, float("nan")])
def test_a_coverage_is_a_share(tmp_path: Path, coverage: float) -> None:
    path = random_model_file(tmp_path)
    with pytest.raises(ValueError, match=f"a coverage of {coverage}; a share from 0 to less than"):
        Forecaster.load(path, coverage=coverage)
    assert np.isnan(Forecaster.load(path, coverage=0).step(1.0, "2026-01-01").lower).all()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"hiden": 4}, "hiden=4: unknown option; did you mean 'hidden'?"),
        ({"colour": "red"}, "colour='red': unknown option; see streamlstm fit --help"),
        ({"hidden": 0}, "hidden=0: Input should be greater than or equal to 1"),
        ({"horizon": 1.5}, "horizon=1.5: Input should be a valid integer, .* fractional part"),
        ({"loss": "mes"}, "loss='mes': Input should be 'mse', 'mae' or 'huber'"),
        ({"lags": [24, 0]}, "lags=0: Input should be greater than or equal to 1"),
    ],
)
def test_an_option_that_cannot_be_is_told_in_a_line(option: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said.replace('?', '.')}$"):
        Forecaster.fit(long(), **option)


def test_one_column_may_be_named_without_a_list() -> None:
    frame = long(80).rename(columns={"y": "load"})
    frame["area"] = np.where(frame.unique_id == "a", 12.0, 7.0)
    made = Forecaster.fit(frame, horizon=3, targets="load", static="area", **SMALL)
    assert [each.name for each in made.model.spec.roles] == ["load", "area"]


def test_what_was_guessed_or_left_out_is_a_warning_of_the_line_that_asked() -> None:
    frame = long(80, ("a",)).rename(columns={"y": "load"})
    frame.loc[40, "load"] = np.nan
    forecaster = Forecaster(random_model(step_ns=60 * 10**9))
    calls: list[Callable[[], object]] = [
        lambda: Forecaster.fit(frame, horizon=3, **SMALL),
        lambda: forecaster.predict(frame),
        lambda: forecaster.update(frame),
    ]
    for call in calls:
        with warnings.catch_warnings(record=True, action="always") as told:
            call()
        assert told is not None
        said = [str(each.message) for each in told]
        assert said[:2] == [
            "column 'load' taken as the values",
            "1 missing values in 1 of 1 series: left as gaps",
        ]
        assert {each.filename for each in told} == {__file__}
        apart = ["the table's ticks are 1 h apart, the model was made for 1 min"]
        assert said[2:] == ([] if call is calls[0] else apart)


def test_times_with_a_zone_are_answered_with_one() -> None:
    forecaster, data = Forecaster(random_model()), long(5, ("a",))
    assert forecaster.predict(data).ds.dt.tz is None
    data["ds"] = data.ds.dt.tz_localize("Europe/Berlin")
    ds = forecaster.predict(data).ds
    assert str(ds.dt.tz) == "UTC"
    assert ds.iloc[0] == data.ds.iloc[-1] + pd.Timedelta("1h")
