"""What the intervals of a series never seen before are worth, from its first tick on.

    python -m benchmarks.young [--taxi nyc_taxi.csv.gz] [--json FILE]

A model is fitted to the later half of a set. From ``COPIES`` places in the earlier half on, the set
is streamed as a series that begins there. Figures are over all of these, by how old the series is
and how far ahead is forecast: the share of values within the 90 % interval, the interval's width
over the mean absolute error, and that error over the last value's.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.shift import taxi_series
from streamlstm.datasets import bundled
from streamlstm.datasets.frames import SeriesData
from streamlstm.engine import Engine
from streamlstm.ticks import Keys, Ticks
from streamlstm.train import FitOptions, fit

Floats = NDArray[np.float64]
COPIES, HORIZON, FIRST = 20, 24, 10


def young(series: SeriesData, season: int) -> list[dict[str, Any]]:
    """The rows of one set."""
    half, ticks = len(series.ts) // 2, 2 * season
    late = SeriesData(series.name, series.ts[half:], series.values[half:])
    model, _ = fit([late], FitOptions(horizon=HORIZON, season=season))
    begins = np.linspace(0, half - ticks - HORIZON, COPIES).astype(int)
    engine = Engine(model, max_series=COPIES, max_batch=COPIES)
    engine.series.lookup(Keys.of([b"%d" % i for i in range(COPIES)]))
    slots, flags = np.arange(COPIES, dtype=np.int32), np.zeros(COPIES, np.uint8)
    point, ends = np.zeros((ticks, COPIES, HORIZON)), np.zeros((ticks, COPIES, 2, HORIZON))
    for i in range(ticks):
        at = begins + i
        made = engine.step(Ticks(slots, series.ts[at], series.values[at], flags), 0)
        point[i], ends[i] = made.point[..., 0], made.quantiles[..., 0]
    y, rows = series.values[:, 0], []
    ages = {f"first {FIRST} ticks": (0, FIRST), "first season": (FIRST, season)}
    for age, (first, last) in (ages | {"second season": (season, ticks)}).items():
        here = begins + np.arange(first, last)[:, None]
        for k in (1, HORIZON // 2, HORIZON):
            actual, lower, upper = y[here + k], *np.moveaxis(ends[first:last, :, :, k - 1], 2, 0)
            off = np.abs(actual - point[first:last, :, k - 1]).mean()
            rows.append({
                "set": series.name, "age": age, "ahead": k,
                "covered": float(np.mean((lower <= actual) & (actual <= upper))),
                "width": float((upper - lower).mean() / off),
                "error": float(off / np.abs(actual - y[here]).mean()),
            })  # fmt: skip
            print(
                f"{series.name:12} {age:15} {k:3} ahead  covered {rows[-1]['covered']:6.1%}"
                f"  width {rows[-1]['width']:5.2f}  error {rows[-1]['error']:5.3f}",
                flush=True,
            )
    return rows


def main() -> None:
    """Print the table, and write it to a file where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.young")
    parser.add_argument("--taxi", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for name in ("electricity", "weather"):
        rows += young(bundled.load(name).series[0], bundled.DATASETS[name].season)
    if options.taxi:
        rows += young(taxi_series(options.taxi), 336)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
