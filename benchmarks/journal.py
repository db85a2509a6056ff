"""Where the journal is to lie: our segments, SQLite in WAL mode, or LMDB.

    python -m benchmarks.journal [--seconds 3] [--repeats 3] [--folder .] [--json FILE]

An entry is a batch of 1, 64 or 1,024 ticks of 1 value each (21 bytes of columns and the entry's
head), with the name of a new series in one tick of a hundred. ``strict``: on disk before append
returns (fdatasync; SQLite synchronous=FULL; LMDB's default). ``interval``: append returns once the
system has it, and a thread syncs each 100 ms (SQLite synchronous=NORMAL and fdatasync of its WAL;
LMDB with sync=False and ``sync``). First as fast as it goes, then at a pace, to see how long an
append keeps a batch from being stepped. Each second all entries older than a second are deleted, as
after a checkpoint; what that and the stores' own checkpoints take counts as the next append's.

Ours lays the entry out and checksums it in that time; the others are given finished bytes. LMDB is
measured where it is installed. Stores take turns; medians over repeats.
"""

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from streamlstm import appending, journal
from streamlstm.events import NEW as NEW_SERIES
from streamlstm.events import Changes, no_events
from streamlstm.ticks import Names, Ticks

BATCHES = {1: 1_000, 64: 1_600, 1024: 1_000}
"""Ticks of an entry, and entries a second where they come at a pace."""
INTERVAL = 0.1
"""Seconds between two syncs."""
KEEP = 1.0
"""Seconds that an entry is needed."""
KEY = b"sensor-000000-of-plant-7"
NEW = 100
"""Ticks to one of a series not seen before."""
SLOTS = 1 << 16


class Store(Protocol):
    """Takes entries, numbered from 1."""

    def append(self, number: int) -> None:
        """Add an entry; under ``strict`` it is on disk then."""

    def sync(self) -> None:
        """Have all on disk that was appended."""

    def forget(self, before: int) -> None:
        """Delete all entries below this number."""

    def size(self) -> int:
        """Bytes that it takes on disk, but for what is only allocated ahead."""

    def close(self) -> None:
        """Let go of all."""


class Batch:
    """The same ticks for all stores: arrays, and their bytes."""

    def __init__(self, size: int) -> None:
        random = np.random.default_rng(size)
        self.size = size
        self.ticks = Ticks(
            random.integers(0, SLOTS, size, np.int32),
            random.integers(0, 1 << 62, size),
            random.normal(size=(size, 1)),
            np.zeros(size, np.uint8),
        )
        changes = Changes(
            np.zeros(SLOTS, np.int32), np.zeros(1, np.int64), np.zeros(SLOTS, np.uint8)
        )
        text = np.tile(np.frombuffer(KEY, np.uint8), (SLOTS, 1))
        names = Names(text, np.full(SLOTS, len(KEY), np.uint16))
        self.events = no_events()._replace(changes=changes, names=names)
        self.bytes = b"".join(column.tobytes() for column in self.ticks)
        self.bytes += bytes(56) + KEY * (size // NEW)

    def begin_series(self, number: int) -> None:
        """Let those begin whose names go with this entry."""
        new = self.size // NEW or int(number % NEW == 0)
        changes, slots = self.events.changes, np.arange(new) + number * new % (SLOTS - new)
        changes.slots[:new], changes.length[0], changes.marks[slots] = slots, new, NEW_SERIES


class _Segments:
    """Ours."""

    def __init__(self, folder: Path, batch: Batch, strict: bool) -> None:
        self._batch = batch
        self._journal = journal.Journal(
            folder / "journal",
            inputs=1,
            max_batch=1024,
            max_key=64,
            model="benchmark",
            durability="strict" if strict else "interval",
            fsync_interval=INTERVAL,
            first=1,
        )

    def append(self, number: int) -> None:
        log, batch = self._journal.log, self._batch
        batch.begin_series(number)
        while (error := appending.append(log, batch.ticks, batch.events, 0)) == appending.FULL:
            time.sleep(0.001)
        if error or appending.commit(log):
            raise OSError(error, "journal")

    def sync(self) -> None:
        """Its own thread does."""

    def forget(self, before: int) -> None:
        self._journal.forget(before)

    def size(self) -> int:
        return int(self._journal.log.state[appending.BYTES])

    def close(self) -> None:
        self._journal.close()


class _Sqlite:
    """The standard library's SQLite, write-ahead logging, its automatic checkpoints."""

    def __init__(self, folder: Path, batch: Batch, strict: bool) -> None:
        self._batch, self._folder = batch, folder
        self._db = sqlite3.connect(folder / "journal.db", isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute(f"PRAGMA synchronous={'FULL' if strict else 'NORMAL'}")
        self._db.execute("CREATE TABLE journal (number INTEGER PRIMARY KEY, entry BLOB NOT NULL)")
        self._wal = os.open(folder / "journal.db-wal", os.O_RDONLY)

    def append(self, number: int) -> None:
        entry = self._batch.bytes if number % NEW else self._batch.bytes + KEY
        self._db.execute("INSERT INTO journal VALUES (?, ?)", (number, entry))

    def sync(self) -> None:
        os.fdatasync(self._wal)

    def forget(self, before: int) -> None:
        self._db.execute("DELETE FROM journal WHERE number < ?", (before,))

    def size(self) -> int:
        return _bytes_of(self._folder)

    def close(self) -> None:
        os.close(self._wal)
        self._db.close()


class _Lmdb:
    """LMDB, an entry a transaction."""

    def __init__(self, folder: Path, batch: Batch, strict: bool) -> None:
        lmdb = importlib.import_module("lmdb")
        self._batch, self._folder, self._oldest = batch, folder, 1
        self._env = lmdb.open(str(folder / "lmdb"), map_size=1 << 36, sync=strict)

    def append(self, number: int) -> None:
        entry = self._batch.bytes if number % NEW else self._batch.bytes + KEY
        with self._env.begin(write=True) as transaction:
            transaction.put(number.to_bytes(8, "big"), entry, append=True)

    def sync(self) -> None:
        self._env.sync(True)

    def forget(self, before: int) -> None:
        with self._env.begin(write=True) as transaction:
            for number in range(self._oldest, before):
                transaction.delete(number.to_bytes(8, "big"))
        self._oldest = max(self._oldest, before)

    def size(self) -> int:
        return _bytes_of(self._folder)

    def close(self) -> None:
        self._env.sync(True)
        self._env.close()


STORES: dict[str, Callable[[Path, Batch, bool], Store]] = {"segments": _Segments, "SQLite": _Sqlite}
if importlib.util.find_spec("lmdb"):
    STORES["LMDB"] = _Lmdb


def main() -> None:
    """Measure every store at every batch and durability, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        prog="python -m benchmarks.journal",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", default=".", help="on the disk to be measured")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    if len(STORES) < 3:
        print("lmdb is not installed: not measured")
    print(
        f"{'durability':10} {'ticks':>5}  {'store':8} {'entries/s':>9} {'ticks/s':>9} {'B/tick':>7}"
        f"  stall us: {'p50':>7} {'p99':>7} {'p99.9':>7} {'max':>8}, at ticks/s"
    )
    rows = []
    for durability in ("strict", "interval"):
        for size, pace in BATCHES.items():
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in STORES}
            for _ in range(options.repeats):
                for name in STORES:
                    runs[name].append(_measure(name, durability, size, pace, options))
            for name, each in runs.items():
                row = {key: float(np.median([run[key] for run in each])) for key in each[0]}
                spread = [run["entries_per_second"] for run in each]
                rows.append(
                    {"store": name, "durability": durability, "ticks": size, **row}
                    | {"slowest": min(spread), "fastest": max(spread)}
                )
                _print(rows[-1])
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))


def _measure(
    name: str, durability: str, size: int, pace: int, options: argparse.Namespace
) -> dict[str, float]:
    """As fast as it goes, then at a pace, each with a fresh store."""
    row: dict[str, float] = {}
    for rate in (0, pace):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            strict = durability == "strict"
            stalls, seconds, on_disk = _run(name, Path(folder), size, strict, rate, options.seconds)
        if not rate:
            row["entries_per_second"] = len(stalls) / seconds
            row["bytes_per_tick"] = on_disk / (len(stalls) * size)
            continue
        for share, percentile in (("p50", 50), ("p99", 99), ("p99.9", 99.9), ("max", 100)):
            row[f"{share}_us"] = 1e6 * float(np.percentile(stalls, percentile))
        row["paced_ticks_per_second"] = len(stalls) * size / seconds
    return row


def _run(
    name: str, folder: Path, size: int, strict: bool, rate: int, seconds: float
) -> tuple[list[float], float, int]:
    """Seconds of each append, of all, and the most bytes that the store took on disk."""
    batch, stalls, kept = Batch(size), list[float](), 1
    store = STORES[name](folder, batch, strict)
    over = threading.Event()

    def tend() -> None:
        while not over.wait(INTERVAL):
            store.sync()

    tender = threading.Thread(target=tend)
    with contextlib.closing(store):
        store.append(1)  # compiled, or loaded
        if not strict:
            tender.start()
        began = forgotten = time.perf_counter()
        number, on_disk, entries = 1, 0, 1
        while (now := time.perf_counter()) < began + seconds:
            if rate and (wait := began + len(stalls) / rate - now) > 0:
                time.sleep(wait)
            begin = time.perf_counter()
            if begin >= forgotten + KEEP:
                if not on_disk:
                    on_disk, entries = store.size(), number
                    begin = time.perf_counter()
                store.forget(kept)
                kept, forgotten = number, begin
            number += 1
            store.append(number)
            stalls.append(time.perf_counter() - begin)
        seconds = time.perf_counter() - began
        over.set()
        if not strict:
            tender.join()
    return stalls, seconds, on_disk * number // entries


def _bytes_of(folder: Path) -> int:
    return sum(512 * path.stat().st_blocks for path in folder.rglob("*"))


def _print(row: dict[str, Any]) -> None:
    entries = row["entries_per_second"]
    print(
        f"{row['durability']:10} {row['ticks']:5,}  {row['store']:8} {entries:9,.0f}"
        f" {entries * row['ticks']:9,.0f} {row['bytes_per_tick']:7,.1f}"
        f"  {'':9} {row['p50_us']:7,.0f} {row['p99_us']:7,.0f} {row['p99.9_us']:7,.0f}"
        f" {row['max_us']:8,.0f}  {row['paced_ticks_per_second']:9,.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
