"""How good the forecasts are on public tables, by the protocols of those who measured there first.

    python -m benchmarks.accuracy FOLDER [--seeds 3] [--json FILE]

FOLDER holds the data sets; a table whose data is absent is left out, and said. Beside our rows
stand both naive forecasts, computed here, and the rows of the literature, quoted.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from streamlstm.backtest import Actual, run
from streamlstm.datasets.frames import SeriesData, from_frame
from streamlstm.train import FitOptions, fit


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    table: str
    method: str
    measures: dict[str, float]
    fit_seconds: float = float("nan")


def taxi(folder: Path, seeds: int) -> Iterator[Row]:
    """Table A: passengers of New York's taxis, half-hourly, 5 steps ahead on the live stream.

    Cui, Ahmad & Hawkins 2016: fitted on the first 10,000 values, scored on the forecasts made from
    there on (7,515); altMAPE = mean |error| / mean |value|, NRMSE = RMSE / std of all values.
    """
    known, ahead = 10_000, 5
    frame = pd.read_csv(folder / "nyc_taxi.csv.gz", skiprows=[1, 2])
    (series,) = from_frame(frame, "nyc_taxi", ds="timestamp", y="passenger_count").series
    ts, y = series.ts, series.values[:, 0]
    origins = np.arange(known, len(y) - ahead)
    target = y[origins + ahead]

    def row(method: str, forecast: np.ndarray, seconds: float = float("nan")) -> Row:
        error = forecast - target
        measures = {
            "altMAPE": float(np.abs(error).mean() / np.abs(target).mean()),
            "NRMSE": float(np.sqrt((error**2).mean()) / y.std()),
        }
        return Row("A", method, measures, seconds)

    actual = Actual.of(ts, y, 1_800_000_000_000, 336, known)
    yield row("last value", actual.naive("last_value", origins, ahead))
    yield row("same time last week", actual.naive("seasonal_naive", origins, ahead))
    for method, alt_mape, nrmse in (
        ("LSTM, retrained weekly (quoted)", 0.0819, 0.274),
        ("HTM, online (quoted)", 0.0809, 0.287),
        ("best stored LSTM (quoted)", 0.0731, 0.258),
    ):
        yield Row("A", method, {"altMAPE": alt_mape, "NRMSE": nrmse})
    past = SeriesData("nyc_taxi", ts[:known], series.values[:known])
    for seed in range(seeds):
        began = time.perf_counter()
        model, _ = fit([past], FitOptions(horizon=ahead, season=336, seed=seed))
        seconds = time.perf_counter() - began
        issued = run(model, ts, series.values, known)  # the first forecast is made at known - 1
        forecast = issued.point[1 : 1 + len(origins), ahead - 1]
        yield row(f"streamlstm, frozen, seed {seed}", forecast, seconds)


TABLES = {"nyc_taxi.csv.gz": taxi}


def main() -> None:
    """Print the tables, and write them to a file where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[Row] = []
    for file, table in TABLES.items():
        if not (options.folder / file).exists():
            print(f"left out, no {file} in {options.folder}")
            continue
        for row in table(options.folder, options.seeds):
            figures = "  ".join(f"{name} {value:.4f}" for name, value in row.measures.items())
            spent = "" if np.isnan(row.fit_seconds) else f"  fit {row.fit_seconds:.1f} s"
            print(f"{row.table}  {row.method:36}{figures}{spent}", flush=True)
            rows.append(row)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
