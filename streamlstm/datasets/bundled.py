"""Five small public series that come with the package; sources and licences: README.md beside."""

from dataclasses import dataclass
from importlib.resources import as_file, files

import pandas as pd

from streamlstm.datasets.frames import Table, from_frame


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
