"""What becomes of forecasts, intervals and the watch when a series is no longer what it was.

    python -m benchmarks.shift [--taxi nyc_taxi.csv.gz] [--json FILE]

A model is fitted to the first 80 % of a demo set, and its unseen part is streamed ``COPIES`` times,
each copy with the same change, from another tick on. Figures are of one step ahead, over all
copies, in spans of ticks since the change: the share within the 90 % interval, its width and the
absolute error over those of the copies that nothing was done to; and of the drift flag, in how many
copies it was raised within ``LATEST`` ticks, the median of how long that took, and how often it is
raised in the part before the change. Where a single reading is wild, its own error and that of the
forecast made at it are left out.

With ``--taxi``, the series of the Numenta Anomaly Benchmark: which of the five events that its
authors know of lie within a day of a tick with a likelihood of 0.999, and how many other days do.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from streamlstm.datasets import bundled
from streamlstm.datasets.frames import SeriesData
from streamlstm.engine import Engine
from streamlstm.model import Model
from streamlstm.ticks import WARM, Keys, Ticks
from streamlstm.train import FitOptions, fit
from streamlstm.watch import MEASURES

Floats = NDArray[np.float64]
COPIES = 20
SPANS = ((-200, 0), (0, 25), (25, 100), (100, 400))
LATEST = 400
CHANGES: dict[str, tuple[Callable[[Floats, Floats], Floats], int]] = {
    "nothing": (lambda y, z: y, LATEST),
    "level + 3 deviations": (lambda y, z: y + 3 * y.std(), LATEST),
    "scale x 1.5": (lambda y, z: 1.5 * y, LATEST),
    "noise of 1 deviation": (lambda y, z: y + z * y.std(), LATEST),
    "one wild reading": (lambda y, z: y + 1000 * y.std(), 1),
}
"""What is made of a series and its noise, and of how many ticks."""
EVENTS = {
    "marathon": "2014-11-02", "Thanksgiving": "2014-11-27", "Christmas": "2014-12-25",
    "New Year": "2015-01-01", "snow storm": "2015-01-27",
}  # fmt: skip
"""Days of the labels of the Numenta Anomaly Benchmark for nyc_taxi."""


def stream(model: Model, ts: NDArray[np.int64], copies: Floats, known: int) -> tuple[Floats, ...]:
    """Forecast, width and measures of each tick after the ``known``; (copies, ticks, ...)."""
    n, series = copies.shape[1], len(copies)
    engine = Engine(model, max_series=series, max_batch=series, telling=True)
    engine.series.lookup(Keys.of([b"%d" % i for i in range(series)]))
    slots, out = np.arange(series, dtype=np.int32), []
    for i in range(n):
        flags = np.full(series, WARM if i < known else 0, np.uint8)
        made = engine.step(Ticks(slots, np.full(series, ts[i]), copies[:, i : i + 1], flags), 0)
        if i >= known:
            ends = made.quantiles[:, :, 0, 0]
            out.append((made.point[:, 0, 0].copy(), ends.copy(), made.quality.copy()))
    point, ends, quality = (np.stack(each, axis=1) for each in zip(*out, strict=True))
    return point, ends, quality


def changed(name: str, season: int) -> list[dict[str, Any]]:
    """The rows of one demo set."""
    series = bundled.load(name).series[0]
    known = int(0.8 * len(series.ts))
    past = SeriesData(series.name, series.ts[:known], series.values[:known])
    model, _ = fit([past], FitOptions(horizon=1, season=season))
    y = series.values[:, 0]
    begins = known + np.linspace(1 - SPANS[0][0], len(y) - known - LATEST - 1, COPIES).astype(int)
    rng, rows, before = np.random.default_rng(0), [], None
    noise = rng.normal(size=len(y))
    for change, (apply, ticks) in CHANGES.items():
        copies = np.tile(y, (COPIES, 1))
        for copy, begin in zip(copies, begins, strict=True):
            copy[begin : begin + ticks] = apply(y, noise)[begin : begin + ticks]
        point, ends, quality = stream(model, series.ts, copies, known)
        actual = copies[:, known + 1 :]
        off = np.abs(actual - point[:, :-1])
        inside = (ends[:, :-1, 0] <= actual) & (actual <= ends[:, :-1, 1])
        width = ends[:, :-1, 1] - ends[:, :-1, 0]
        drift = quality[:, 1:, MEASURES.index("drift")] > 0
        before = before or (off, width)
        row: dict[str, Any] = {"set": name, "change": change, "spans": []}
        for first, last in SPANS:
            left_out = 2 if first == 0 and ticks == 1 else 0
            at = [slice(b - known - 1 + first + left_out, b - known - 1 + last) for b in begins]
            pick = [(inside[c, s], width[c, s], off[c, s]) for c, s in enumerate(at)]
            base = [(before[1][c, s], before[0][c, s]) for c, s in enumerate(at)]
            row["spans"].append({
                "from": first, "to": last,
                "covered": float(np.mean([p[0] for p in pick])),
                "width": float(np.mean([p[1] for p in pick]) / np.mean([b[0] for b in base])),
                "error": float(np.mean([p[2] for p in pick]) / np.mean([b[1] for b in base])),
            })  # fmt: skip
        took = []
        for c, begin in enumerate(begins):
            raised = np.flatnonzero(drift[c, begin - known - 1 : begin - known - 1 + LATEST])
            took += raised[:1].tolist()
        row["drifts"], row["took"] = len(took), float(np.median(took)) if took else None
        quiet = [drift[c, : b - known - 1] for c, b in enumerate(begins)]
        row["raised before, per 1,000"] = 1000 * float(np.mean(np.concatenate(quiet)))
        rows.append(row)
        said = "  ".join(
            f"{s['covered']:6.1%} x{s['width']:5.2f} x{s['error']:5.2f}" for s in row["spans"]
        )
        print(f"{name:12} {change:22} {said}  drift {len(took)}, {row['took']}", flush=True)
    return rows


def taxi_series(path: Path) -> SeriesData:
    """The series of the Numenta Anomaly Benchmark."""
    frame = pd.read_csv(path, skiprows=[1, 2])
    ts = pd.to_datetime(frame["timestamp"]).to_numpy().astype("datetime64[ns]").astype(np.int64)
    return SeriesData("taxi", ts, frame["passenger_count"].to_numpy(float)[:, None])


def taxi(path: Path) -> dict[str, Any]:
    """Which known events are seen."""
    series, known = taxi_series(path), 5000
    ts, values, when = series.ts, series.values, pd.Series(pd.to_datetime(series.ts))
    past = SeriesData(series.name, ts[:known], values[:known])
    model, _ = fit([past], FitOptions(horizon=1, season=48))
    quality = stream(model, ts, values.T, known)[2][0]
    likely = quality[:, MEASURES.index("likelihood")]
    days = when[known:].dt.normalize()
    found: dict[str, Any] = {}
    near = pd.Timedelta(days=1)
    alarms = days[likely >= 0.999].drop_duplicates()
    events = {name: pd.Timestamp(day) for name, day in EVENTS.items()}
    for name, day in events.items():
        found[name] = float(np.nanmax(likely[(days - day).abs() <= near]))
    other = [d for d in alarms if all(abs(d - day) > near for day in events.values())]
    found["other days"], found["days"] = len(other), int(days.nunique())
    print("highest likelihood within a day of", found)
    return found


def main() -> None:
    """Print the tables, and write them to a file where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shift")
    parser.add_argument("--taxi", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "changes": [row for name in ("electricity", "weather") for row in
                    changed(name, bundled.DATASETS[name].season)]
    }  # fmt: skip
    if options.taxi:
        report["taxi"] = taxi(options.taxi)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
