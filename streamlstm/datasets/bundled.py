"""Five small public series that come with the package, and any table by name.

Sources and licences: README.md beside.
"""

import difflib
import re
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import pandas as pd

from streamlstm.datasets.frames import Table, from_frame, read_table
from streamlstm.datasets.inputs import Columns
from streamlstm.datasets.times import DataError
from streamlstm.model import Spec


@dataclass(frozen=True)
class DataSet:
    """What is known of a bundled series, beside its values."""

    file: str
    title: str
    unit: str
    season: int
    """steps after which the series is most like itself; 0: none"""
    y: str
    ds: str | None = None
    start: str | None = None
    freq: str | None = None


DATASETS = {
    "electricity": DataSet(
        file="taylor.csv.gz",
        title="Electricity demand, England and Wales, half-hourly, 2000",
        unit="MW",
        season=336,
        y="demand_mw",
        start="2000-06-05 00:00",
        freq="30min",
    ),
    "weather": DataSet(
        file="seattle-temps.csv.gz",
        title="Air temperature, Seattle, hourly, 2010",
        unit="°F",
        season=24,
        y="temp",
        ds="date",
    ),
    "sea": DataSet(
        file="sea_surface_temperature.csv.gz",
        title="Sea surface temperature, NERACOOS buoy B01, half-hourly, 2016 to 2017",
        unit="°C",
        season=48,
        y="temperature (celsius)",
        ds="time (UTC)",
    ),
    "stock": DataSet(
        file="msft_daily.csv.gz",
        title="Microsoft share, adjusted close, trading days, 2000 to 2013",
        unit="USD",
        season=0,
        y="adj_close",
        ds="date",
    ),
    "water": DataSet(
        file="water-flow.csv.gz",
        title="Water flow through a pipeline branch, hourly, 2022",
        unit="l/s",
        season=24,
        y="Water flow [l/s]",
        ds="Time",
    ),
}


HOW = ("id", "ds", "y", "wide", "start", "freq", "timezone")
"""What may be said of how a table is to be read."""


def table(name: str, columns: Columns | None = None, **how: Any) -> Table:
    """A bundled series by name, or a file, read as :func:`read_table` does with ``how``.

    Raises:
        DataError: there is no such file, or it is not as described.
    """
    if name in DATASETS:
        if columns is None:
            return load(name)
        if [each.role for each in columns.inputs] != ["target"] or columns.static:
            others = ", ".join(columns.asked())
            raise DataError(f"{name}: a bundled series has one value, not {others}; name a file")
        return replace(load(name), inputs=columns.inputs)
    if not Path(name).exists():
        if close := difflib.get_close_matches(name, DATASETS, 1):
            raise DataError(f"{name}: no such file; did you mean the bundled series {close[0]!r}?")
        if re.fullmatch(r"\w+", name):
            *some, last = DATASETS
            known = f"{', '.join(some)} and {last}"
            raise DataError(f"{name}: no such file, nor such a bundled series; there are {known}")
    said = {key: value for key, value in how.items() if value is not None}
    return read_table(Path(name), columns=columns, **said)


def table_for(spec: Spec, name: str, **how: Any) -> Table:
    """The same, of the columns that a model takes, in its time zone where none is said.

    Raises:
        DataError: also where the model takes several values that have no names.
    """
    zone = how.get("timezone") or spec.timezone
    found = table(name, Columns.of_model(spec), **how | {"timezone": zone})
    values = found.series[0].values.shape[1]
    if values != spec.inputs:
        raise DataError(
            f"{name}: {values} value a tick, the model takes {spec.inputs} that have no names;"
            " fit one with --targets and --features"
        )
    return found


def load(name: str) -> Table:
    """The table, of one series called ``name``, of a key of :data:`DATASETS` (else KeyError)."""
    known = DATASETS[name]
    with as_file(files("streamlstm.datasets") / known.file) as path:
        frame = pd.read_csv(path)
    notes = []
    if known.ds is not None and (twice := int(frame.duplicated(known.ds).sum())):
        frame = frame.drop_duplicates(known.ds)  # the first measurement of a time stands
        notes.append(f"{twice} times measured twice: the first taken")
    table = from_frame(frame, name, ds=known.ds, y=known.y, start=known.start, freq=known.freq)
    table.notes.extend(notes)
    return table
