"""The data sets that come with the package are whole, credited, and what they are said to be."""

import csv
import gzip
from datetime import UTC, datetime
from importlib.resources import files

import numpy as np
import pytest

from streamlstm.datasets.bundled import DATASETS, load

FOLDER = files("streamlstm.datasets")


@pytest.mark.parametrize("name", DATASETS)
def test_values_are_those_of_the_file(name: str) -> None:
    known = DATASETS[name]
    with gzip.open(str(FOLDER / known.file), "rt", encoding="utf-8") as file:
        truth = [float(row[known.y]) for row in csv.DictReader(file) if row[known.y]]
    (series,) = load(name).series
    assert series.name == name
    assert series.values.shape == (len(series.ts), 1)
    assert len(truth) - len(series.ts) == (1 if name == "sea" else 0)
    np.testing.assert_array_equal(np.unique(series.values), np.unique(truth))


@pytest.mark.parametrize("name", DATASETS)
def test_times_rise_by_the_usual_step(name: str) -> None:
    table = load(name)
    gaps = np.diff(table.series[0].ts)
    assert gaps.min() > 0
    assert table.step_ns == np.median(gaps)


def test_electricity_begins_when_taylor_says() -> None:
    (series,) = load("electricity").series
    begin = datetime(2000, 6, 5, tzinfo=UTC).timestamp()
    assert series.ts[0] == begin * 10**9
    assert series.ts[-1] == (begin + 4031 * 1800) * 10**9
    assert series.values[0, 0] == 22262


def test_water_keeps_its_instants_across_the_change_of_clocks() -> None:
    (series,) = load("water").series
    first = datetime.fromisoformat("2022-03-20T11:00:00+01:00").timestamp()
    last = datetime.fromisoformat("2022-05-16T22:00:00+02:00").timestamp()
    assert (series.ts[0], series.ts[-1]) == (first * 10**9, last * 10**9)


def test_of_a_time_measured_twice_the_first_value_stands() -> None:
    table = load("sea")
    at = datetime.fromisoformat("2017-03-21T16:30:00+00:00").timestamp() * 10**9
    assert table.series[0].values[table.series[0].ts == at] == [4.276]
    assert any("twice" in note for note in table.notes)


def test_every_file_is_credited() -> None:
    credits = (FOLDER / "README.md").read_text(encoding="utf-8")
    carried = [file.name for file in FOLDER.iterdir() if file.name.endswith(".csv.gz")]
    assert sorted(carried) == sorted(known.file for known in DATASETS.values())
    for name in carried:
        assert name in credits


@pytest.mark.parametrize("name", DATASETS)
def test_what_is_told_of_a_series_is_there(name: str) -> None:
    known = DATASETS[name]
    assert known.title
    assert known.unit
    assert known.season >= 0
