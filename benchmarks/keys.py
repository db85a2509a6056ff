"""Keys to slots: how many of a million names are found in a second.

    python -m benchmarks.keys [--keys 1000000] [--repeats 5] [--json FILE]

Names of 8 to 64 bytes are looked up in random order, a batch at a time: ours in compiled code, from
bytes as they lie in a message, against a dict of Python that is given bytes objects made before.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from streamlstm.series import Series
from streamlstm.ticks import Keys

BATCH = 1024


def main() -> None:
    """Build the names, look them up by both, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.keys")
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    rows = [_measure(size, options.keys, options.repeats) for size in (8, 16, 32, 64)]
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


def _measure(size: int, count: int, repeats: int) -> dict[str, float]:
    """Look ``count`` names of so many bytes up."""
    names = [b"%0*d" % (size, i) for i in range(count)]
    order = np.random.default_rng(0).permutation(count)
    batches = [order[begin : begin + BATCH] for begin in range(0, count, BATCH)]
    asked = [Keys.of([names[i] for i in batch]) for batch in batches]
    series = Series({"level": (np.float64, ())}, count, 64)
    series.lookup(Keys.of([]))  # compiled
    first_seen = _rate(count, lambda: [series.lookup(keys) for keys in asked])
    known = {name: i for i, name in enumerate(names)}
    ours, theirs = [], []
    for _ in range(repeats):
        ours.append(_rate(count, lambda: [series.lookup(keys) for keys in asked]))
        fresh = [[bytes(bytearray(names[i])) for i in batch] for batch in batches]  # not yet hashed
        theirs.append(_rate(count, partial(_look_up, known, fresh)))
    row = {
        "key_bytes": size,
        "keys": count,
        "ours_per_second": statistics.median(ours),
        "dict_per_second": statistics.median(theirs),
        "first_seen_per_second": first_seen,
    }
    print(
        f"{size:3} bytes  {row['ours_per_second'] / 1e6:6.2f} M/s"
        f"  [{min(ours) / 1e6:.2f} .. {max(ours) / 1e6:.2f}]"
        f"  dict {row['dict_per_second'] / 1e6:6.2f} M/s"
        f"  first seen {first_seen / 1e6:6.2f} M/s"
    )
    return row


def _look_up(known: dict[bytes, int], batches: list[list[bytes]]) -> list[list[int]]:
    return [[known[name] for name in batch] for batch in batches]


def _rate(count: int, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
