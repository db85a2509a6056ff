"""Tables of a user's own: what is read from them, and what is said of those that are not plain."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from streamlstm.datasets import frames
from streamlstm.datasets.frames import DataError, Table, from_frame, read_table

HOUR = 3_600_000_000_000


def ns(*times: str) -> list[int]:
    return [pd.Timestamp(time).as_unit("ns").value for time in times]


def read(folder: Path, text: str, name: str = "load.csv", **options: object) -> Table:
    path = folder / name
    path.write_text(text)
    return read_table(path, **options)


def refuse(folder: Path, text: str, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read(folder, text, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


LONG = """unique_id,ds,y
b,2024-01-01 00:00,1
a,2024-01-01 00:00,10
b,2024-01-01 01:00,2
a,2024-01-01 01:00,20
a,2024-01-01 02:00,30
"""


def test_long_format_gives_each_series_its_rows(tmp_path: Path) -> None:
    table = read(tmp_path, LONG)
    assert [s.name for s in table.series] == ["b", "a"]
    np.testing.assert_array_equal(table.series[0].values, [[1.0], [2.0]])
    np.testing.assert_array_equal(table.series[1].values, [[10.0], [20.0], [30.0]])
    assert table.series[1].ts.tolist() == ns("2024-01-01 00", "2024-01-01 01", "2024-01-01 02")
    assert table.series[1].ts.dtype == np.int64
    assert (table.name, table.step_ns, table.notes) == ("load", HOUR, [])


def test_gzip_and_parquet_say_the_same_as_csv(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    expected = read(tmp_path, LONG)
    (tmp_path / "z.csv.gz").write_bytes(gzip.compress(LONG.encode()))
    frame = pd.read_csv(tmp_path / "load.csv", parse_dates=["ds"])
    frame.to_parquet(tmp_path / "p.parquet")
    for name in ("z.csv.gz", "p.parquet"):
        table = read_table(tmp_path / name)
        assert table.name == name[0]
        for ours, theirs in zip(table.series, expected.series, strict=True):
            assert ours.name == theirs.name
            np.testing.assert_array_equal(ours.ts, theirs.ts)
            np.testing.assert_array_equal(ours.values, theirs.values)


def test_a_frame_in_memory_reads_like_a_file(tmp_path: Path) -> None:
    frame = pd.read_csv((tmp_path / "load.csv") if read(tmp_path, LONG) else "")
    table = from_frame(frame, "mine")
    assert [s.name for s in table.series] == ["b", "a"]
    assert table.name == "mine"


def test_columns_may_be_named(tmp_path: Path) -> None:
    text = "time,site,kw,other\n2024-01-01,x,1.5,9\n2024-01-02,x,2.5,9\n"
    table = read(tmp_path, text, id="site", ds="time", y="kw")
    assert table.series[0].name == "x"
    assert table.series[0].values.ravel().tolist() == [1.5, 2.5]


def test_two_plain_columns_are_recognised_and_said(tmp_path: Path) -> None:
    table = read(tmp_path, "Time,Water flow [l/s]\n2024-01-01T00:00Z,1\n2024-01-01T01:00Z,2\n")
    assert table.series[0].name == "load"
    assert table.notes == [
        "column 'Time' taken as the time",
        "column 'Water flow [l/s]' taken as the values",
    ]


def test_a_date_column_is_preferred_to_one_that_only_sounds_like_time(tmp_path: Path) -> None:
    text = "year,time_hour,y\n2013,2013-01-01T06:00:00Z,1\n2013,2013-01-01T07:00:00Z,2\n"
    assert read(tmp_path, text).step_ns == HOUR


def test_wide_format_is_one_column_a_series(tmp_path: Path) -> None:
    text = "when,north,south\n2024-01-01,1,10\n2024-01-02,,20\n2024-01-03,3,30\n"
    table = read(tmp_path, text, wide=True)
    assert [s.name for s in table.series] == ["north", "south"]
    assert table.series[0].values.ravel().tolist() == [1, 3]
    assert table.series[0].ts.tolist() == ns("2024-01-01", "2024-01-03")
    assert table.notes == ["1 missing values in 1 of 2 series: left as gaps"]


def test_wide_without_header_or_time(tmp_path: Path) -> None:
    text = "1.5,2.5\n,3.5\n4.5,NA\n"
    table = read(tmp_path, text, wide=True, start="1996-03-18", freq="D")
    assert [s.name for s in table.series] == ["1", "2"]
    assert table.series[0].ts.tolist() == ns("1996-03-18", "1996-03-20")
    assert table.series[1].values.ravel().tolist() == [2.5, 3.5]
    assert any("no header" in note for note in table.notes)


def test_a_column_of_numbers_is_counted_from_its_start(tmp_path: Path) -> None:
    table = read(tmp_path, "mw\n5\n\n7\n\n", start="2000-06-05 00:00", freq="30min")
    (series,) = table.series
    assert series.values.ravel().tolist() == [5, 7]  # the empty line within is a missing value
    assert series.ts.tolist() == ns("2000-06-05 00:00", "2000-06-05 01:00")


@pytest.mark.parametrize(
    ("freq", "second"),
    [
        ("15s", "2024-01-01 00:00:15"),
        ("h", "2024-01-01 01:00"),
        ("2 hours", "2024-01-01 02:00"),
        ("D", "2024-01-02"),
        ("MS", "2024-02-01"),
    ],
)
def test_spacings_are_written_as_pandas_does(tmp_path: Path, freq: str, second: str) -> None:
    table = read(tmp_path, "y\n1\n2\n", start="2024-01-01", freq=freq)
    assert table.series[0].ts.tolist() == ns("2024-01-01", second)


def test_months_have_a_usual_length(tmp_path: Path) -> None:
    table = read(tmp_path, "month,y\n1949-01,1\n1949-02,2\n1949-03,3\n1949-04,4\n")
    assert table.series[0].ts.tolist()[1:3] == ns("1949-02-01", "1949-03-01")
    assert table.step_ns == 31 * 24 * HOUR


def test_naive_times_are_of_the_zone_that_is_told(tmp_path: Path) -> None:
    text = "ds,y\n2024-07-01 00:00,1\n2024-07-01 01:00,2\n"
    table = read(tmp_path, text, timezone="America/New_York")
    assert table.series[0].ts[0] == ns("2024-07-01 04:00")[0]
    assert any("America/New_York" in note for note in table.notes)
    aware = text.replace("0:00,", "0:00+02:00,").replace("1:00,", "1:00+02:00,")
    table = read(tmp_path, aware, timezone="America/New_York")
    assert table.series[0].ts[0] == ns("2024-06-30 22:00")[0]


def test_the_hour_that_clocks_repeat_is_read_in_order(tmp_path: Path) -> None:
    local = ["01:30", "02:00", "02:30", "02:00", "02:30", "03:00"]
    text = "ds,y\n" + "".join(f"2023-10-29 {time},{i}\n" for i, time in enumerate(local))
    table = read(tmp_path, text, timezone="Europe/Berlin")
    assert np.diff(table.series[0].ts).tolist() == [HOUR // 2] * 5
    assert table.series[0].ts[0] == ns("2023-10-28 23:30")[0]


def test_a_time_that_clocks_skip_is_refused(tmp_path: Path) -> None:
    text = "ds,y\n2023-03-26 01:30,1\n2023-03-26 02:30,2\n"
    message = refuse(tmp_path, text, timezone="Europe/Berlin")
    assert "line 3" in message
    assert "Europe/Berlin" in message


@pytest.mark.parametrize("factor", [1, 10**3, 10**6, 10**9])
def test_unix_times_are_recognised_by_their_size(tmp_path: Path, factor: int) -> None:
    seconds = [1_700_000_000, 1_700_000_060]
    text = "ds,y\n" + "".join(f"{second * factor},1\n" for second in seconds)
    table = read(tmp_path, text)
    assert table.series[0].ts.tolist() == [second * 10**9 for second in seconds]
    assert any("Unix time" in note for note in table.notes)


def test_days_and_months_are_told_apart_by_what_makes_time_rise(tmp_path: Path) -> None:
    text = "ds,y\n01/02/2024,1\n02/02/2024,2\n01/03/2024,3\n"
    table = read(tmp_path, text)
    assert table.series[0].ts.tolist() == ns("2024-02-01", "2024-02-02", "2024-03-01")
    assert any("day first" in note for note in table.notes)


@pytest.mark.parametrize(("order", "said"), [("%d/%m/%Y", "day"), ("%m/%d/%Y", "month")])
def test_first_days_of_months_are_told_apart_by_what_makes_time_rise_evenly(
    tmp_path: Path, order: str, said: str
) -> None:
    months = pd.date_range("2012-01-01", periods=24, freq="MS")
    text = "ds,y\n" + "".join(f"{month:{order}},1\n" for month in months)
    table = read(tmp_path, text)
    assert table.series[0].ts.tolist() == months.as_unit("ns").astype("int64").tolist()
    assert any(f"{said} first" in note for note in table.notes)


@pytest.mark.parametrize(
    ("texts", "times"),
    [
        (("1/31/2024 11:00 AM", "1/31/2024 12:00 PM"), ("2024-01-31 11:00", "2024-01-31 12:00")),
        (("31/01/2024 11:30:15 pm", "01/02/2024 12:30:15 am"),
         ("2024-01-31 23:30:15", "2024-02-01 00:30:15")),
        (("2024-01-31 9 a.m.", "2024-01-31 9 p.m."), ("2024-01-31 09:00", "2024-01-31 21:00")),
        (("2024-01-31 09:00PM +02:00", "2024-01-31 10:00PM +02:00"),
         ("2024-01-31 19:00", "2024-01-31 20:00")),
        (("Jan 31, 2024 12:00:00.5 AM", "Jan 31, 2024 1:00:00.5 AM"),
         ("2024-01-31 00:00:00.5", "2024-01-31 01:00:00.5")),
    ],
)  # fmt: skip
def test_hours_may_be_counted_to_twelve(
    texts: tuple[str, str], times: tuple[str, str], tmp_path: Path
) -> None:
    table = read(tmp_path, "ds,y\n" + "".join(f'"{text}",1\n' for text in texts))
    assert table.series[0].ts.tolist() == ns(*times)


def test_no_half_of_a_day_has_thirteen_hours(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="line 3: '1/31/2024 13:00 PM' in column 'ds' is not a time"
    ):
        read(tmp_path, "ds,y\n1/31/2024 11:00 AM,1\n1/31/2024 13:00 PM,2\n")


def test_semicolons_a_byte_order_mark_and_quotes_are_understood(tmp_path: Path) -> None:
    table = read(tmp_path, '\ufeff"ds";"y"\n"2024-01-01";"1"\n"2024-01-02";"2"\n')
    assert table.series[0].values.ravel().tolist() == [1, 2]


def test_a_series_may_be_called_na(tmp_path: Path) -> None:
    text = "unique_id,ds,y\nNA,2024-01-01,1\nNA,2024-01-02,NA\n"
    table = read(tmp_path, text)
    assert [s.name for s in table.series] == ["NA"]
    assert len(table.series[0].ts) == 1


def test_infinite_values_count_as_missing(tmp_path: Path) -> None:
    table = read(tmp_path, "ds,y\n2024-01-01,1\n2024-01-02,inf\n2024-01-03,nan\n")
    assert table.series[0].values.ravel().tolist() == [1]
    assert table.notes == ["2 missing values in 1 of 1 series: left as gaps"]


# --- refusals -------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv: no such file"):
        read_table(tmp_path / "nowhere.csv")


def test_a_column_that_was_named_is_missed_nowhere_else(tmp_path: Path) -> None:
    text = "ds,y\n2024-01-01,1\n2024-01-02,2\n"
    with pytest.raises(DataError, match=r"none that looks like a time \(.*: ds, y; --y is 'ds'\)"):
        read(tmp_path, text, y="ds")
    with pytest.raises(DataError, match=r"has a time but no values; --id is 'y'; is it the right"):
        read(tmp_path, text, id="y")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_table(tmp_path)


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    assert "is empty" in refuse(tmp_path, text)


def test_a_header_alone_is_refused(tmp_path: Path) -> None:
    assert "no rows" in refuse(tmp_path, "ds,y\n")


def test_a_column_that_is_not_there_is_named_with_its_like(tmp_path: Path) -> None:
    message = refuse(tmp_path, "ds,value\n2024-01-01,1\n", y="values")
    assert "no column 'values'" in message
    assert "did you mean 'value'?" in message
    assert "ds, value" in message


def test_several_candidates_are_the_users_to_choose_from(tmp_path: Path) -> None:
    message = refuse(tmp_path, "date,open,close\n2024-01-01,1,2\n")
    assert "--y" in message
    assert "open, close" in message


def test_a_file_without_times_is_told_what_to_give(tmp_path: Path) -> None:
    message = refuse(tmp_path, "mw\n1\n2\n")
    assert "--start" in message
    assert "--freq" in message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"start": "2024-01-01"}, "--freq"),
        ({"freq": "h"}, "--start"),
        ({"start": "soon", "freq": "h"}, "'soon'"),
        ({"start": "2024-01-01", "freq": "often"}, "'often'"),
        ({"start": "2024-01-01", "freq": "0h"}, "'0h'"),
        ({"start": "2024-01-01", "freq": "-1h"}, "'-1h'"),
        ({"start": "2024-01-01", "freq": "5"}, "'5'"),
        ({"start": "2024-01-01", "freq": "h", "ds": "y"}, "not both"),
        ({"timezone": "Mars/Olympus"}, "Mars/Olympus"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: dict[str, str], said: str) -> None:
    assert said in refuse(tmp_path, "y\n1\n2\n", **options)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ds,y\n2024-01-01,1\nlater,2\n", ("line 3", "'later'", "'ds'")),
        ("ds,y\n2024-01-01,1\n,2\n", ("line 3", "'ds' is empty")),
        ("ds,y\n2024-01-02,1\n2024-01-01,2\n", ("line 3", "goes back", "sort")),
        ("ds,y\n2024-01-01,1\n2024-01-01,2\n", ("line 3", "twice", "--id")),
        ("ds,y\n2024-01-01,1\n2024-01-02,1.2.3\n", ("line 3", "'1.2.3'", "'y'")),
        ("ds,y\n2024-01-01,1\n\n2024-01-02,x\n", ("line 4", "'x'")),
        ("ds,y\n2024-01-01,1\n2024-01-02,2,3\n", ("line 3", "damaged CSV")),
        ("ds\ry\n2024-01-01,1\n", ("line 1", "is not CSV", "give a text file")),
        ("ds,y\n2024-01-01T00:00Z,1\n2024-01-02T00:00,2\n", ("line 3", "offset")),
        ("ds,y\n1500-01-01,1\n1500-01-02,2\n", ("line 2", "1678")),
        ("ds,y\n2115-12-31,1\n2116-01-01,2\n", ("line 3", "2115")),
        ("ds,y\n1970Q4,1\n1970Q5,2\n", ("line 2", "'1970Q4'")),
        ("unique_id,ds,y\n,2024-01-01,1\n", ("line 2", "'unique_id' is empty")),
        ("ds,y\n2024-01-01,NA\n2024-01-02,\n", ("holds no number",)),
    ],
)
def test_a_row_that_is_not_plain_is_named(tmp_path: Path, text: str, said: tuple[str, ...]) -> None:
    message = refuse(tmp_path, text)
    for part in said:
        assert part in message


@pytest.mark.parametrize(
    ("first", "second", "dates"),
    [
        ("1977-Jan", "1977-Feb", ["1977-01-01", "1977-02-01"]),
        ("1991 Jul", "1991 Aug", ["1991-07-01", "1991-08-01"]),
        ("Dec 1999", "Jan 2000", ["1999-12-01", "2000-01-01"]),
        ("September-1999", "October-1999", ["1999-09-01", "1999-10-01"]),
        ("1970 Q4", "1971 Q1", ["1970-10-01", "1971-01-01"]),
        ("1970Q1", "1970Q2", ["1970-01-01", "1970-04-01"]),
        ("2001-q3", "2001-q4", ["2001-07-01", "2001-10-01"]),
    ],
)
def test_months_and_quarters_are_their_first_days(
    tmp_path: Path, first: str, second: str, dates: list[str]
) -> None:
    (tmp_path / "x.csv").write_text(f"period,y\n{first},1\n{second},2\n")
    table = read_table(tmp_path / "x.csv")  # and the column is known for one of times
    assert table.series[0].ts.tolist() == [pd.Timestamp(date).value for date in dates]
    assert f"times such as {first!r} read" in " ".join(table.notes)


def test_the_series_that_is_not_sorted_is_named(tmp_path: Path) -> None:
    text = LONG + "b,2024-01-01 00:30,3\n"
    message = refuse(tmp_path, text)
    assert "'b' goes back in time, from 2024-01-01 01:00 to 2024-01-01 00:30" in message


def test_a_damaged_gzip_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(LONG.encode())
    broken = bytearray(whole)
    broken[15] ^= 0xFF
    for data in (whole[:-12], bytes(broken)):
        (tmp_path / "x.csv.gz").write_bytes(data)
        with pytest.raises(DataError, match="damaged gzip"):
            read_table(tmp_path / "x.csv.gz")


def test_a_damaged_parquet_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    (tmp_path / "x.parquet").write_bytes(b"PAR1" + b"\0" * 50)
    with pytest.raises(DataError, match="damaged Parquet"):
        read_table(tmp_path / "x.parquet")


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(path: Path) -> None:
        raise ImportError("Unable to find a usable engine")

    monkeypatch.setattr(frames.pd, "read_parquet", missing)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"streamlstm\[parquet\]"):
        read_table(tmp_path / "x.parquet")


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes("ds,y\n2024-01-01,1\n2024-01-02,é\n".encode("latin-1"))
    with pytest.raises(DataError, match="line 3: is not UTF-8 text; save the file as UTF-8"):
        read_table(tmp_path / "x.csv")


def test_a_series_without_a_value_is_left_out_and_told(tmp_path: Path) -> None:
    table = read(tmp_path, LONG + "c,2024-01-01 00:00,\n")
    assert [s.name for s in table.series] == ["b", "a"]
    assert "1 series without a value left out: c" in table.notes


def test_values_that_no_model_takes_are_refused_by_their_row(tmp_path: Path) -> None:
    message = refuse(tmp_path, "ds,y\n2024-01-01,1\n2024-01-02,-2e37\n")
    assert "line 3: -2e+37 in column 'y' is beyond 1e+37" in message


def test_decimal_commas_between_semicolons(tmp_path: Path) -> None:
    table = read(tmp_path, "ds;load;note\n2024-01-01;1,5;x\n2024-01-02;-,25;y\n2024-01-03;3;z\n")
    np.testing.assert_array_equal(table.series[0].values[:, 0], [1.5, -0.25, 3])
    assert "numbers are read with a decimal comma" in table.notes
    table = read(tmp_path, "2024-01-01;1,5\n2024-01-02;2,5\n")
    np.testing.assert_array_equal(table.series[0].values[:, 0], [1.5, 2.5])
    table = read(tmp_path, "ds;y\n2024-01-01;1.5\n2024-01-02;2.5\n")
    np.testing.assert_array_equal(table.series[0].values[:, 0], [1.5, 2.5])
    assert not any("comma" in note for note in table.notes)


@pytest.mark.parametrize("name", ["ds", "Date", None])
def test_the_index_of_a_frame_is_its_time(tmp_path: Path, name: str | None) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    index = pd.DatetimeIndex(["2024-01-01 00:00", "2024-01-01 01:00"], name=name)
    frame = pd.DataFrame({"y": [1.0, 2.0]}, index)
    frame.to_parquet(tmp_path / "p.parquet")
    for table in (read_table(tmp_path / "p.parquet"), from_frame(frame, "mine")):
        assert table.series[0].ts.tolist() == ns("2024-01-01 00", "2024-01-01 01")


def test_an_hour_that_clocks_repeat_names_the_time_zone(tmp_path: Path) -> None:
    rows = "2024-10-27 01:00,1\n2024-10-27 02:00,2\n2024-10-27 02:00,3\n2024-10-27 03:00,4\n"
    assert "by --timezone" in refuse(tmp_path, "ds,y\n" + rows)
    assert len(read(tmp_path, "ds,y\n" + rows, timezone="Europe/Berlin").series[0].ts) == 4
