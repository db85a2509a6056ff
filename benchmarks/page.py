"""What an open live page costs the daemon: share of a core, and lateness of predictions.

    python -m benchmarks.page [--series 1000,100000] [--rates 200,20000] [--seconds 120]

One daemon of each size, with ticks sent by the clock, in short windows by turns: nobody looks; a
page is open (it asks each second, of six series, as page.js does); and somebody types in its search
as well, two letters a second, every third of which finds nothing. CPU is that of all the daemon's
threads, and of the one that answers; lateness is from when a tick was due to when its prediction
came, as in benchmarks.stream. Intervals of 95 % by bootstrap over windows.
"""

import argparse
import contextlib
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from benchmarks.stream_latency import PERCENTILES, Window, interval, percentiles, resampled
from benchmarks.stream_measure import Ends
from benchmarks.stream_systems import Case, Starter, System

CHARTS = 6
"""Series that the page shows."""
WAYS = ("nobody looks", "page open", "page and search")
TYPED = ("1", "no such series", "99")


class Looker:
    """A page that is open: it asks as ``page.js`` does, and throws away what it hears."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._at = place.hostname or "", place.port or 80
        self._known: dict[str, int] = {}
        self._about = ""
        self.answers: list[float] = []

    def get(self, path: str) -> bytes:
        """What is answered."""
        began = time.perf_counter()
        with socket.create_connection(self._at) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            parts = []
            while came := connection.recv(1 << 20):
                parts.append(came)
        self.answers.append(time.perf_counter() - began)
        return b"".join(parts).partition(b"\r\n\r\n")[2]

    def ask(self) -> None:
        """Ask for what is new, as once a second."""
        if not self._known:
            found = json.loads(self.get("/live/find?q="))["found"]
            self._known = {each["name"]: 0 for each in found[:CHARTS]}
        of = "&".join(f"of={count}.0.{quote(name)}" for name, count in self._known.items())
        told = json.loads(self.get(f"/live/now?events=0&about={self._about}&{of}"))
        self._about = told["about"]
        for name, series in zip(self._known, told["series"], strict=True):
            self._known[name] = series["count"]

    def type(self, number: int) -> None:
        """Search for one of what is typed."""
        self.get(f"/live/find?q={quote(TYPED[number % len(TYPED)])}")


@contextlib.contextmanager
def beside(looker: Looker, way: str) -> Iterator[None]:
    """What goes on meanwhile."""
    done = threading.Event()

    def look() -> None:
        turns = 0
        while not done.wait(0.5):
            if turns % 2 == 0:
                looker.ask()
            if way == WAYS[2]:
                looker.type(turns)
            turns += 1

    thread = threading.Thread(target=look)
    if way != WAYS[0]:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if thread.ident:
            thread.join()


def busy(pid: int) -> dict[str, float]:
    """Seconds of CPU that each thread of a process had."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {task.name: int((task / "schedstat").read_text().split()[0]) / 1e9 for task in tasks}


def answering(ends: Ends, system: System, looker: Looker) -> str:
    """The thread that answers: the busiest while nothing else is asked for."""
    with ends.joined(system):
        before = busy(system.pid)
        for _ in range(100):
            looker.ask()
        after = busy(system.pid)
    return max(after, key=lambda task: after[task] - before.get(task, 0))


def measure(
    ends: Ends, system: System, rate: int, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """A row of each way."""
    assert system.url
    looker = Looker(system.url)
    repeats = max(2, round(options.seconds / options.window))
    windows: dict[str, list[Window]] = {way: [] for way in WAYS}
    cores: dict[str, list[float]] = {way: [] for way in WAYS}
    own_cores: dict[str, list[float]] = {way: [] for way in WAYS}
    answers: dict[str, list[float]] = {way: [] for way in WAYS}
    thread = answering(ends, system, looker)
    ends.lateness(system, rate, options.window)
    for turn in range(repeats):
        for way in WAYS[turn % 3 :] + WAYS[: turn % 3]:
            before, looker.answers = busy(system.pid), []
            with beside(looker, way):
                windows[way].append(ends.lateness(system, rate, options.window))
            after = busy(system.pid)
            cores[way].append((sum(after.values()) - sum(before.values())) / options.window)
            own_cores[way].append((after[thread] - before[thread]) / options.window)
            answers[way] += looker.answers
    plain = resampled(windows[WAYS[0]])
    whole = {way: percentiles(sum(w.counts for w in windows[way])) for way in WAYS}  # type: ignore[arg-type]
    for way in WAYS:
        own = resampled(windows[way])
        more = np.subtract(cores[way], cores[WAYS[0]])
        draws = np.random.default_rng(0).choice(more, (1000, len(more))).mean(axis=1)
        yield {
            **system.case._asdict(),
            "rate": rate,
            "way": way,
            "cores": float(np.mean(cores[way])),
            "answering_cores": float(np.mean(own_cores[way])),
            "more_cores": float(more.mean()),
            "more_cores_interval": interval(draws),
            "latency_us": {name: float(whole[way][name]) for name in PERCENTILES},
            "added_us": {
                name: float(whole[way][name] - whole[WAYS[0]][name]) for name in PERCENTILES
            },
            "added_us_interval": {name: interval(own[name] - plain[name]) for name in PERCENTILES},
            "answer_ms": 1e3 * median(answers[way]) if answers[way] else None,
            "slowest_answer_ms": 1e3 * max(answers[way]) if answers[way] else None,
            "lost": sum(window.lost for window in windows[way]),
            "windows": repeats,
        }


def show(row: dict[str, Any]) -> None:
    line = f"{row['series']:7,d} series {row['rate']:6,d}/s  {row['way']:15s}"
    line += f"  {row['cores']:.2%} of a core"
    if row["way"] != WAYS[0]:
        low, high = row["more_cores_interval"]
        line += f" ({row['more_cores']:+.2%} [{low:+.2%} {high:+.2%}];"
        line += f" the thread that answers {row['answering_cores']:.2%})"
    for name in PERCENTILES:
        line += f"  {name} {row['latency_us'][name]:,.0f} us"
        if row["way"] != WAYS[0]:
            low, high = row["added_us_interval"][name]
            line += f" ({row['added_us'][name]:+,.0f} [{low:+,.0f} {high:+,.0f}])"
    if row["answer_ms"]:
        line += f"  answers {row['answer_ms']:.1f} ms, at most {row['slowest_answer_ms']:.1f}"
    if row["lost"]:
        line += f"  LOST {row['lost']}"
    print(line, flush=True)


def main() -> None:
    def numbers(text: str) -> list[int]:
        return list(map(int, text.split(",")))

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=numbers, default=[1000, 100_000])
    parser.add_argument("--rates", type=numbers, default=[200, 20_000])
    parser.add_argument("--seconds", type=float, default=120, help="of each way, all windows")
    parser.add_argument("--window", type=float, default=6, help="seconds")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--horizon", type=int, default=24)
    parser.add_argument("--format", default="binary")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    ends = Ends(10_000)
    try:
        for series in options.series:
            case = Case(options.hidden, options.horizon, series)
            with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
                starter = Starter(Path(folder), options={"metrics.page": True})
                system = starter.start(options.format, options.format, case, stack)
                ends.prime(system)
                for rate in options.rates:
                    for row in measure(ends, system, rate, options):
                        rows.append(row | {"cpus": os.cpu_count()})
                        show(row)
                        if options.json:
                            Path(options.json).write_text(json.dumps(rows, indent=1))
    finally:
        ends.stop()


if __name__ == "__main__":
    main()
