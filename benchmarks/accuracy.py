"""How good the forecasts are on public tables, by the protocols of those who measured there first.

    python -m benchmarks.accuracy FOLDER [--tables A,B,C,D,E,demo] [--seeds 3] [--json FILE]

FOLDER holds the data sets; a table whose data is absent is left out, and said. Beside our rows
stand the naive forecasts and online peers, computed here, and the rows of the literature, quoted.
All are causal. Horizon and season are given to the fit, and nothing else but what ``--fit`` says.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.accuracy_tables import TABLES
from benchmarks.accuracy_task import Row, Settings


def line(row: Row) -> str:
    """A row as text; of a measure with a bar whether it keeps it."""
    parts = []
    for name, value in row.measures.items():
        text = f"{name} {value:.4g}"
        if name in row.bars:
            low, high = row.bars[name]
            wanted = f"{low:.4g} to {high:.4g}" if low else f"at most {high:.4g}"
            text += f" ({'met' if low <= value <= high else 'MISSED'}: {wanted})"
        parts.append(text)
    if not np.isnan(row.fit_seconds):
        parts.append(f"fit {row.fit_seconds:.1f} s")
    return f"{row.table:12}{row.method:40}{'  '.join(parts)}"


def main() -> None:
    """Print the tables, and write them to a file where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tables", default=",".join(TABLES), help="which, e.g. A,demo")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--fit", nargs="*", default=[], metavar="NAME=VALUE", help="options of the fit to override"
    )
    options = parser.parse_args()
    overrides = dict(option.split("=", 1) for option in options.fit)
    settings = Settings(options.seeds, {k: json.loads(v) for k, v in overrides.items()})
    print("fit: horizon and season given,", options.fit or "no option overridden")
    rows: list[Row] = []
    for name in options.tables.split(","):
        file, parts = TABLES[name]
        if not (options.folder / file).exists():
            print(f"left out, no {file} in {options.folder}")
            continue
        for part in parts:
            for row in part(options.folder, settings):
                print(line(row), flush=True)
                rows.append(row)
            print()
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
