"""Tables whose ticks carry more than y: the columns that make their values, and what they lack."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from streamlstm.datasets.bundled import table, table_for
from streamlstm.datasets.frames import Table, from_frame, read_table
from streamlstm.datasets.inputs import Columns
from streamlstm.datasets.times import DataError
from streamlstm.model import Input, Spec
from tests.models import HOUR

COLUMNS = {
    "targets": ["load", "temp"], "features": ["wind"], "known": ["holiday"],
    "static": ["type", "size"], "horizon": 2,
}  # fmt: skip


def rows() -> pd.DataFrame:
    """Two series of eight hours; of b the first is missing."""
    hours = pd.date_range("2024-01-01", periods=8, freq="h")
    parts = []
    for name, size, kind in (("a", 10, "shop"), ("b", 30, "office")):
        number = np.arange(8.0) + size
        parts.append(
            pd.DataFrame({
                "unique_id": name, "ds": hours, "load": number, "temp": -number,
                "wind": number / 10, "holiday": np.arange(8) % 3, "size": size, "type": kind,
            })
        )  # fmt: skip
    return pd.concat([parts[0], parts[1][1:]], ignore_index=True)


def written(folder: Path, frame: pd.DataFrame) -> Path:
    path = folder / "data.csv"
    frame.to_csv(path, index=False)
    return path


def read(folder: Path, frame: pd.DataFrame, **changes: object) -> Table:
    path = written(folder, frame)
    return read_table(path, columns=Columns.named(**(COLUMNS | changes)))  # type: ignore[arg-type]


def refusal(folder: Path, frame: pd.DataFrame, **changes: object) -> str:
    with pytest.raises(DataError) as caught:
        read(folder, frame, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_values_of_a_tick_in_their_order(tmp_path: Path) -> None:
    found = read(tmp_path, rows())
    assert [(each.name, each.role) for each in found.inputs] == [
        ("load", "target"), ("temp", "target"), ("wind", "measured"), ("holiday", "known"),
        ("size", "number"), ("type", "category"),
    ]  # fmt: skip
    size, kind = found.inputs[4:]
    assert (size.loc, size.scale) == (20, 10)  # mean and deviation over series
    assert kind.categories == ("office", "shop")
    a, b = found.series
    assert b.values.shape == (7, 6)
    # a holiday is that of two hours later, and at the end the last one known
    np.testing.assert_array_equal(a.values[:, 3], [2, 0, 1, 2, 0, 1, 1, 1])
    np.testing.assert_array_equal(b.values[:, 3], [0, 1, 2, 0, 1, 1, 1])
    np.testing.assert_array_equal(a.values[0], [10, -10, 1, 2, 10, 1])
    np.testing.assert_array_equal(b.values[0, 4:], [30, 0])
    assert found.notes == []


def test_a_frame_and_a_file_say_the_same(tmp_path: Path) -> None:
    columns = Columns.named(**COLUMNS)  # type: ignore[arg-type]
    one, other = read(tmp_path, rows()), from_frame(rows(), "data", columns=columns)
    assert one.inputs == other.inputs
    for ours, theirs in zip(one.series, other.series, strict=True):
        np.testing.assert_array_equal(ours.values, theirs.values)


def test_without_targets_y_is_the_target(tmp_path: Path) -> None:
    frame = rows().rename(columns={"load": "y"})
    found = read(tmp_path, frame, targets=[], static=[])
    assert [each.name for each in found.inputs] == ["y", "wind", "holiday"]
    path = written(tmp_path, rows())
    columns = Columns.named(features=["wind"])
    named = read_table(path, y="temp", columns=columns)
    assert [each.name for each in named.inputs] == ["temp", "wind"]
    np.testing.assert_array_equal(named.series[0].values[0], [-10, 1])


def test_what_a_feature_lacks_is_its_latest_value_and_said(tmp_path: Path) -> None:
    frame = rows()
    frame.loc[[3, 4], "wind"] = np.nan
    found = read(tmp_path, frame)
    wind = found.series[0].values[:, 2]
    np.testing.assert_allclose(wind, [1.0, 1.1, 1.2, 1.2, 1.2, 1.5, 1.6, 1.7])
    assert found.notes == ["column 'wind': 2 missing values filled with the one before"]
    frame["wind"] = np.nan
    assert "series 'a' has no value in column 'wind'" in refusal(tmp_path, frame)


def test_no_feature_is_filled_with_what_came_later(tmp_path: Path) -> None:
    """So ticks before its first value are none, as on the stream: whatever is to come."""
    frame = rows()
    frame.loc[[0, 1, 8, 9, 10, 11], "wind"] = frame.loc[[0, 1, 8, 9], "holiday"] = np.nan
    found = read(tmp_path, frame)
    a, b = found.series
    assert a.ts.tolist() == frame["ds"][2:8].astype("datetime64[ns]").astype("int64").tolist()
    np.testing.assert_array_equal(a.values[:, 0], np.arange(12, 18))
    np.testing.assert_array_equal(a.values[:, 3], [1, 2, 0, 1, 1, 1])
    assert len(b.ts) == 3
    assert found.notes == ["6 ticks before the first value of 'wind' left out"]
    frame.loc[2:5, "holiday"] = np.nan  # known two hours ahead, from 6 on
    found = read(tmp_path, frame)
    assert found.series[0].values[:, [0, 3]].tolist() == [[14, 0], [15, 1], [16, 1], [17, 1]]
    assert found.notes[0] == "8 ticks before the first value of 'holiday' and 'wind' left out"
    frame.loc[:6, "wind"] = np.nan
    frame.loc[7, "load"] = np.nan
    message = refusal(tmp_path, frame)
    assert "series 'a' ends before the first value of column 'wind'" in message


def test_a_row_without_a_target_is_a_gap_but_tells_what_is_known(tmp_path: Path) -> None:
    """As the rows of the days to come are, of which only the holidays are known."""
    frame = rows()
    frame.loc[[3, 6, 7], "load"] = np.nan
    a = read(tmp_path, frame).series[0]
    assert (np.diff(a.ts) // HOUR).tolist() == [1, 1, 2, 1]
    np.testing.assert_array_equal(a.values[:, 3], [2, 0, 1, 0, 1])


def test_steps_ahead_are_ticks_where_ticks_are_unevenly_spaced(tmp_path: Path) -> None:
    frame = rows()[:8]
    frame["ds"] = pd.to_datetime([0, 1, 5, 6, 20, 21, 40, 41], unit="h")
    frame["holiday"] = np.arange(8)
    columns: dict[str, object] = {"static": [], "horizon": 3}
    known = read(tmp_path, frame, **columns).series[0].values[:, 3]
    np.testing.assert_array_equal(known, [3, 4, 5, 6, 7, 7, 7, 7])
    frame.loc[[2, 7], "load"] = np.nan  # no tick; the last is one to come
    known = read(tmp_path, frame, **columns).series[0].values[:, 3]
    np.testing.assert_array_equal(known, [4, 5, 6, 7, 7, 7])


def test_steps_of_months_are_months(tmp_path: Path) -> None:
    months = pd.date_range("2015-01-01", periods=100, freq="MS")
    frame = pd.DataFrame({"ds": months, "load": np.arange(100.0), "promo": np.arange(100)})
    found = read(
        tmp_path, frame, targets=["load"], features=[], known=["promo"], static=[], horizon=36
    )
    np.testing.assert_array_equal(found.series[0].values[:64, 1], np.arange(36, 100))


def model(**changes: object) -> Spec:
    roles = (
        Input(name="load", role="target"), Input(name="wind", role="measured"),
        Input(name="holiday", role="known"),
        Input(name="type", role="category", categories=("office", "school")),
    )  # fmt: skip
    return Spec.model_validate(
        {"hidden": 4, "step_ns": HOUR, "horizon": 3, "inputs": 4, "roles": roles} | changes
    )


def test_a_model_finds_its_columns_by_their_names(tmp_path: Path) -> None:
    path = written(tmp_path, rows())
    found = table_for(model(), str(path))
    assert found.inputs == model().roles
    a, b = found.series
    np.testing.assert_array_equal(a.values[:, 2], [0, 1, 2, 0, 1, 1, 1, 1])  # three steps
    assert found.notes == [
        "column 'type': not known to the model, and taken as of no category: shop"
    ]
    assert (a.values[0, 3], b.values[0, 3]) == (-1, 0)
    minutes = table_for(model(step_ns=HOUR // 2, horizon=4), str(path)).series[0]
    np.testing.assert_array_equal(minutes.values[:, 2], [2, 0, 1, 2, 0, 1, 1, 1])
    renamed = written(tmp_path, rows().rename(columns={"load": "kw"}))
    other = table_for(model(), str(renamed), y="kw")
    np.testing.assert_array_equal(other.series[0].values, a.values)
    with pytest.raises(DataError, match="column 'wind' is asked for twice; name it once"):
        table_for(model(), str(path), y="wind")


def test_times_are_in_the_zone_of_the_model_where_none_is_said(tmp_path: Path) -> None:
    path = written(tmp_path, rows())
    found, said = (
        table_for(model(timezone="Asia/Tokyo"), str(path), timezone=zone).series[0].ts
        for zone in (None, "UTC")
    )
    np.testing.assert_array_equal(found, said - 9 * HOUR)


def test_a_model_misses_a_column_in_one_line(tmp_path: Path) -> None:
    path = written(tmp_path, rows().drop(columns="wind"))
    with pytest.raises(DataError, match="has no column 'wind' \\(an input of the model\\)"):
        table_for(model(), str(path))
    number = Input(name="type", role="number", scale=1.0)
    roles = (*model().roles[:3], number)
    path = written(tmp_path, rows())
    with pytest.raises(DataError, match="holds 'shop', the model takes numbers there"):
        table_for(model(roles=roles), str(path))
    with pytest.raises(DataError, match="1 value a tick, the model takes 2 that have no names"):
        table_for(Spec(hidden=4, step_ns=HOUR, horizon=3, inputs=2), str(path), y="load")


def test_a_bundled_series_has_one_value() -> None:
    columns = Columns.named(features=["wind"])
    with pytest.raises(DataError, match="weather: a bundled series has one value, not wind"):
        table("weather", columns)
    assert table("weather", Columns.named(targets=["temp"])).inputs[0].name == "temp"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"features": ["wnd"]}, "no column 'wnd' (--features); did you mean 'wind'?"),
        ({"known": ["wind"]}, "column 'wind' is asked for twice"),
        ({"static": ["holiday"], "known": []}, "different values in column 'holiday'"),
        ({"features": ["type"], "static": []}, "'shop' in column 'type' is not a number"),
    ],
)
def test_columns_that_cannot_be_what_they_are_asked_to_be(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    assert said in refusal(tmp_path, rows(), **changes)


def test_static_columns_that_are_empty(tmp_path: Path) -> None:
    frame = rows()
    frame["type"] = frame["type"].where(frame["unique_id"] == "b")
    found = read(tmp_path, frame)
    assert found.inputs[5].categories == ("office",)
    assert found.series[0].values[0, 5] == -1
    frame["size"] = frame["size"].where(frame["unique_id"] == "b")
    assert "series 'a' has no value in column 'size'" in refusal(tmp_path, frame)


def test_numbers_with_a_decimal_comma_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("unique_id;ds;y;size\na;2024-01-01;1,5;2,5\nb;2024-01-01;1;3,5\n")
    found = read_table(path, columns=Columns.named(static=["size"]))
    assert found.inputs[1] == Input(name="size", role="number", loc=3.0, scale=0.5)


def test_a_wide_table_has_no_room_for_features(tmp_path: Path) -> None:
    path = written(tmp_path, rows())
    with pytest.raises(DataError, match=r"--wide has one column a series.*write the table long"):
        read_table(path, wide=True, columns=Columns.named(features=["wind"]))
    with pytest.raises(DataError, match="--y names one column, there are 2 targets"):
        read_table(path, y="load", columns=Columns.named(targets=["load", "temp"]))
