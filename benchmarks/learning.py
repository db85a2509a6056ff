"""What intervals, learning on the stream and live scores cost: time and memory, over the bare tick.

    python -m benchmarks.learning [--series 100000] [--hidden 64] [--repeats 40] [--json FILE]

The same batches of 1,024 ticks of different series go through engines that differ in what is on,
in turn within each repeat; figures are medians over repeats of a tick's time. The bare one's model
has neither directions nor spreads; the last one's has, and all is switched off.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from streamlstm.directions import room
from streamlstm.engine import Engine
from streamlstm.model import Model
from streamlstm.ticks import Keys, Ticks
from tests.models import HOUR, random_model

BATCH = 1024
PER_REPEAT = 16
"""Batches of each engine in a repeat."""
WAYS: dict[str, dict[str, Any]] = {
    "bare": {"coverage": 0.0, "learning": False},
    "intervals, scores": {"coverage": 0.9, "learning": False},
    "three intervals": {"coverage": (0.9, 0.5, 0.8), "learning": False},
    "learning": {"coverage": 0.0, "learning": True},
    "all": {"coverage": 0.9, "learning": True},
    "switched off": {"coverage": 0.0, "learning": False},
}


def model(hidden: int, horizon: int, directions: bool, spread: bool) -> Model:
    """An hourly one with random weights, of the shape that a fit gives."""
    lags = (*range(1, 6), *(p + n for p in (24, 48, 168) for n in range(-2, 3)))
    blend = {"short": 24, "long": 168, "weights": ((0.2, 0.3, 0.1),) * horizon}
    shape = {
        "hidden": hidden, "horizon": horizon, "season": 24, "base": "blend", "blend": blend,
        "lags": lags, "calendar": ("hour", "week"),
    }  # fmt: skip
    many = room(random_model(**shape).spec) if directions else 0
    return random_model(**shape, directions=many, spread=spread)


def measure(series: int, hidden: int, horizon: int, repeats: int) -> dict[str, dict[str, float]]:
    """Microseconds a tick and bytes a series of each way."""
    engines = {}
    for name, options in WAYS.items():
        off = name == "switched off"
        of = model(hidden, horizon, options["learning"] or off, bool(options["coverage"]) or off)
        engine = Engine(of, max_series=series, max_batch=BATCH, **options)
        engine.series.lookup(Keys.of([b"%d" % i for i in range(series)]))
        engine.warm_up()
        engines[name] = engine
    rng, spent = np.random.default_rng(0), {name: [] for name in engines}
    flags = np.zeros(BATCH, np.uint8)
    for repeat in range(repeats + 5):
        batches = []
        for k in range(PER_REPEAT):
            at = (repeat * PER_REPEAT + k) * BATCH + np.arange(BATCH)
            slots, ts = (at % series).astype(np.int32), HOUR * (1 + at // series)
            batches.append(Ticks(slots, ts, rng.normal(10, 1, (BATCH, 1)), flags))
        for name, engine in engines.items():
            began = time.perf_counter()
            for batch in batches:
                engine.step(batch, 0)
            spent[name].append((time.perf_counter() - began) / (PER_REPEAT * BATCH))
    return {
        name: {
            "microseconds": 1e6 * median(spent[name][5:]),
            "bytes": float(sum(engine.bytes_per_series.values())),
        }
        for name, engine in engines.items()
    }


def main() -> None:
    """Print the table, and write it to a file where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning")
    parser.add_argument("--series", type=int, default=100_000)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = {}
    for horizon in (1, 24):
        ways = measure(options.series, options.hidden, horizon, options.repeats)
        bare = ways["bare"]
        for name, found in ways.items():
            ratio = found["microseconds"] / bare["microseconds"]
            more = found["bytes"] - bare["bytes"]
            print(
                f"horizon {horizon:2}  {name:18} {found['microseconds']:6.3f} us a tick"
                f"  x {ratio:.2f}  + {more:5,.0f} bytes a series",
                flush=True,
            )
        report[horizon] = ways
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
