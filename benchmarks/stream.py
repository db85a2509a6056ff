"""Socket to socket: ticks through the daemon, against libzmq's own proxy and what one would build.

    python -m benchmarks.stream [--systems proxy binary json] [--seconds 30] [--json FILE]

A feeder, the system under test and a sink are processes on this machine; each end counts for
itself. Systems take turns within one run; figures are medians over repeats, ratios are to the proxy
in the same repeat, on the same messages.

Throughput: the feeder sends as fast as the system takes it, with at most ``--window`` ticks on
their way, which is less than any queue holds, so that nothing may be lost; the rate is counted at
the sink.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from benchmarks.stream_ends import (
    RECEIVED,
    SENT,
    Drained,
    End,
    Feeder,
    Sink,
    shared_counters,
)
from benchmarks.stream_latency import PERCENTILES, Window, scraping, soon, summary, window_of
from benchmarks.stream_ticks import Reading, reading_of
from streamlstm.golden import make_golden
from streamlstm.model import Errors, Model, Spec, save_model
from streamlstm.wire import TOPIC
from tests import daemon

ROOT = Path(__file__).parents[1]
HOUR = 3600 * 10**9
FOREVER = 1 << 62
OURS = ("binary", "json", "msgpack")
SCRIPTS = {"script-json": "json", "script-lean": "binary"}
SYSTEMS = ("proxy", *OURS, *SCRIPTS)


class Case(NamedTuple):
    """What is forecast."""

    hidden: int
    horizon: int
    series: int
    hot: bool = False


class System(NamedTuple):
    """A running process under test."""

    name: str
    format: str
    case: Case
    input: str
    output: str
    reading: Reading
    pid: int
    url: str | None = None


# --- starting systems -----------------------------------------------------------------------------


def write_model(path: Path, case: Case) -> None:
    """A model of random weights, with error quantiles, so that intervals are computed."""
    spec = Spec(hidden=case.hidden, step_ns=HOUR, horizon=case.horizon)
    random = np.random.default_rng(0)
    weights = {
        name: (random.uniform(-1, 1, shape) / case.hidden**0.5).astype(np.float32)
        for name, shape in spec.weight_shapes().items()
    }
    levels = np.array([0.5, 0.8, 0.9, 0.95, 0.99])
    errors = Errors(levels, np.tile(levels[:, None], spec.outputs).astype(np.float32))
    save_model(Model(spec, weights, make_golden(spec, weights), errors, {"made by": "us"}), path)


@contextlib.contextmanager
def our_daemon(
    format: str, case: Case, folder: Path, options: argparse.Namespace
) -> Iterator[System]:
    folder.mkdir()
    write_model(folder / "model.safetensors", case)
    settings = {"engine.max_series": case.series, "output.hwm": 4 * options.window}
    settings |= dict(each.split("=", 1) for each in options.set)
    for end in ("input", "output"):
        settings |= {f"{end}.format": format, f"{end}.bind": endpoint(options, folder, end)}
    with daemon.start(folder, folder / "model.safetensors", cwd=options.cwd, **settings) as ours:
        reading = reading_of(format, TOPIC)
        yield System(
            "ours", format, case, ours.input, ours.output, reading, ours.process.pid, ours.url
        )


@contextlib.contextmanager
def peer(
    name: str, format: str, case: Case, folder: Path, options: argparse.Namespace
) -> Iterator[System]:
    folder.mkdir()
    command = [options.peers, "-m", "benchmarks.stream_peers"]
    arguments = []
    if name != "proxy":
        arguments = [str(folder / "model.onnx"), str(case.series)]
        subprocess.run(
            [*command, "onnx", arguments[0], str(case.hidden), str(case.horizon)],
            cwd=ROOT,
            check=True,
        )
    ends = [endpoint(options, folder, end) for end in ("input", "output")]
    kind = name.removeprefix("script-")
    with subprocess.Popen(
        [*command, kind, *ends, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())
            reading = reading_of(format, b"") if name == "proxy" else reading_of(kind, TOPIC)
            yield System(name, format, case, said["input"], said["output"], reading, process.pid)
        finally:
            process.kill()


def endpoint(options: argparse.Namespace, folder: Path, end: str) -> str:
    return "tcp://127.0.0.1:*" if options.transport == "tcp" else f"ipc://{folder}/{end}"


# --- the ends -------------------------------------------------------------------------------------


class Ends:
    """Feeder and sink, and what they do together."""

    def __init__(self, window: int) -> None:
        self.window = window
        memory = shared_counters()
        self.shared = np.frombuffer(memory, np.int64)
        self.feeder, self.sink = End(Feeder, memory), End(Sink, memory)

    @contextlib.contextmanager
    def joined(self, system: System) -> Iterator[None]:
        """Wake the system up, connect both ends to it, and wait until a tick comes through."""
        os.kill(system.pid, signal.SIGCONT)
        self.shared[SENT] = self.shared[RECEIVED] = 0
        case = system.case
        self.sink.call("open", system.output, system.reading, case.series, system.url is not None)
        self.feeder.call("open", system.input, system.format, case.series, case.hot)
        lost = 0
        while not self.shared[RECEIVED]:
            self.feeder.call("closed", FOREVER, 1, FOREVER)
            self.sink.call("drain", soon(0.2), 1, 1)
            lost += 1
            if lost > 50:
                raise TimeoutError(f"{system.name}: no tick comes through")
        time.sleep(0.1)
        self.shared[SENT] = self.shared[RECEIVED]
        try:
            yield
        finally:
            self.sink.call("close")
            self.feeder.call("close")
            os.kill(system.pid, signal.SIGSTOP)  # or its threads and timers disturb the others

    def prime(self, system: System) -> None:
        """Send each series a tick, so that all exist."""
        with self.joined(system):
            self.feeder.start("closed", FOREVER, 2 * system.case.series, self.window)
            self.sink.call("drain", soon(60), 2 * system.case.series, 64)
            self.feeder.result()

    def throughput(self, system: System, seconds: float, warm: float = 0.5) -> dict[str, Any]:
        """Of one system for so long; ``lost`` ticks and those out of ``order`` should be 0."""
        with self.joined(system):
            before = int(self.shared[SENT]), int(self.shared[RECEIVED])
            begin = time.monotonic_ns() + int(warm * 1e9)
            end = begin + int(seconds * 1e9)
            process = psutil.Process(system.pid)
            self.feeder.start("closed", end + 100_000_000, FOREVER, self.window)
            self.sink.call("drain", begin, FOREVER, 64)
            used = sum(process.cpu_times()[:2])
            counted: Drained = self.sink.call("drain", end, FOREVER, 64)
            used = sum(process.cpu_times()[:2]) - used
            self.feeder.result()
            self.settle()
            sent, received = int(self.shared[SENT]), int(self.shared[RECEIVED])
        return {
            "rate": (counted.count - 1) / max(counted.last - counted.first, 1) * 1e9,
            "cpu_us": 1e6 * used / max(counted.count, 1),
            "sent": sent - before[0],
            "lost": sent - before[0] - (received - before[1]),
            "disorder": counted.disorder,
        }

    def latency(
        self, system: System, rate: float, seconds: float, scraped: bool, warm: float = 0.2
    ) -> Window:
        """Of one system at ``rate`` ticks a second offered for so long."""
        with self.joined(system), scraping(system.url if scraped else None):
            start = soon(0.05)
            begin = start + int(warm * 1e9)
            end = begin + int(seconds * 1e9)
            self.feeder.start("open_loop", start, end, rate)
            drained: list[Drained] = [self.sink.call("drain", end + 50_000_000, FOREVER, 1)]
            self.feeder.result()
            while self.shared[RECEIVED] < self.shared[SENT] and drained[-1].count:
                drained.append(self.sink.call("drain", soon(0.5), FOREVER, 1))
            lost = int(self.shared[SENT] - self.shared[RECEIVED])
            lateness = np.concatenate([each.lateness for each in drained])
        return window_of(lateness, begin, end, rate, lost)

    def settle(self, patience: float = 1.0) -> None:
        """Take what is still on its way, until nothing came for a while."""
        while self.shared[RECEIVED] < self.shared[SENT]:
            drained: Drained = self.sink.call("drain", soon(patience), FOREVER, 64)
            if not drained.count:
                return

    def stop(self) -> None:
        """End both processes."""
        self.feeder.stop()
        self.sink.stop()


# --- questions ------------------------------------------------------------------------------------


def compare_throughput(
    ends: Ends, systems: list[System], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Rows of all systems, each in short windows by turns."""
    runs: dict[System, list[dict[str, Any]]] = {system: [] for system in systems}
    for system in systems:
        ends.prime(system)
    for _ in range(options.repeats):
        for system in systems:
            runs[system].append(ends.throughput(system, options.seconds / options.repeats))
    rows = []
    for system, results in runs.items():
        rates = np.array([result["rate"] for result in results])
        row: dict[str, Any] = {
            "system": system.name,
            "format": system.format,
            **system.case._asdict(),
            "ticks_per_second": float(np.median(rates)),
            "ticks_per_second_range": [float(rates.min()), float(rates.max())],
            "ratio_to_proxy": None,
            "latency_us": None,
            "offered": None,
            "cpu_us_per_tick": float(np.median([result["cpu_us"] for result in results])),
            **{name: sum(r[name] for r in results) for name in ("sent", "lost", "disorder")},
        }
        for other, theirs in runs.items():
            if (other.name, other.format) == ("proxy", system.format):
                ceiling = np.array([result["rate"] for result in theirs])
                row["ratio_to_proxy"] = float(np.median(rates / ceiling))
        rows.append(row)
    return rows


def compare_latency(
    ends: Ends, case: Case, options: argparse.Namespace, folder: Path
) -> Iterator[dict[str, Any]]:
    """Rows of each system asked for at each rate; ours also while scraped, while checkpointing."""
    with contextlib.ExitStack() as stack:
        for format in options.latency:
            run = start_named("proxy", format, case, folder, options, stack)
            echo = Variant(run, "")
            variants = [echo]
            for name in (format, *(n for n, f in SCRIPTS.items() if f == format)):
                if name not in options.systems:
                    continue
                plain = start_named(name, format, case, folder, options, stack)
                variants.append(Variant(plain, ""))
                if name in OURS:
                    saving = argparse.Namespace(**vars(options))
                    path = folder / f"{format}.checkpoint"
                    saving.set = [*options.set, f"checkpoint.path={path}", "checkpoint.interval=1"]
                    variants.append(Variant(plain, "scraped"))
                    run = start_named(name, format, case, folder, saving, stack)
                    variants.append(Variant(run, "checkpointing"))
            for system in dict.fromkeys(variant.system for variant in variants):
                ends.prime(system)
            for rate in options.rates:
                yield from latencies(ends, variants, rate, options)


class Variant(NamedTuple):
    """A system, and what goes on beside."""

    system: System
    beside: str


def latencies(
    ends: Ends, variants: list[Variant], rate: int, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Rows of all variants at one rate, each in short windows by turns."""
    repeats = max(2, round(options.latency_seconds / options.latency_window))
    windows: dict[Variant, list[Window]] = {variant: [] for variant in variants}
    for _ in range(repeats):
        for variant in variants:
            windows[variant].append(
                ends.latency(
                    variant.system, rate, options.latency_window, variant.beside == "scraped"
                )
            )
    echo = windows[variants[0]]
    undisturbed = {v.system.name: windows[v] for v in variants if not v.beside}
    for variant in variants:
        system = variant.system
        yield {
            "system": system.name,
            "format": system.format,
            **system.case._asdict(),
            "beside": variant.beside,
            "ticks_per_second": None,
            "ratio_to_proxy": None,
            "offered": rate,
            **summary(windows[variant], echo, undisturbed[system.name]),
        }


def start_named(
    name: str,
    format: str,
    case: Case,
    folder: Path,
    options: argparse.Namespace,
    stack: contextlib.ExitStack,
) -> System:
    """Start a system, which then sleeps until it is its turn."""
    where = folder / str(len(list(folder.iterdir())))
    start = our_daemon(format, case, where, options) if name in OURS else None
    system = stack.enter_context(start or peer(name, format, case, where, options))
    os.kill(system.pid, signal.SIGSTOP)
    stack.callback(os.kill, system.pid, signal.SIGCONT)  # or it could not end
    return system


def start_all(
    case: Case, options: argparse.Namespace, folder: Path, stack: contextlib.ExitStack
) -> list[System]:
    """Every system asked for, and a proxy for each of their formats."""
    formats = dict.fromkeys(SCRIPTS.get(name, name) for name in options.systems if name != "proxy")
    systems = []

    def enter(name: str, format: str) -> None:
        systems.append(start_named(name, format, case, folder, options, stack))

    for format in formats or ("binary",):
        if "proxy" in options.systems:
            enter("proxy", format)
        for name in options.systems:
            if name == format:
                enter(name, format)
            elif SCRIPTS.get(name) == format:
                enter(name, format)
    return systems


def show(row: dict[str, Any]) -> None:
    line = f"H {row['hidden']:3d}  horizon {row['horizon']:2d}  {row['series']:7,d} series"
    line += f"{' hot' if row['hot'] else '    '}  {row['system']:11s} {row['format']:8s}"
    low, high = row["ticks_per_second_range"]
    line += f" {row['ticks_per_second']:11,.0f} /s [{low:,.0f} .. {high:,.0f}]"
    if row["ratio_to_proxy"]:
        line += f"  {row['ratio_to_proxy']:6.1%} of the proxy"
    line += f"  {row['cpu_us_per_tick']:.2f} us of CPU"
    if row["lost"] or row["disorder"]:
        line += f"  LOST {row['lost']} OUT OF ORDER {row['disorder']}"
    print(line, flush=True)


def show_latency(row: dict[str, Any]) -> None:
    line = f"H {row['hidden']:3d}  horizon {row['horizon']:2d}  {row['series']:7,d} series"
    line += f"  {row['system']:11s} {row['format']:8s} {row['beside']:13s} {row['offered']:7,d}/s"
    for name in PERCENTILES:
        low, high = row["latency_us_interval"][name]
        line += f"  {name} {row['latency_us'][name]:6,.0f} [{low:,.0f} {high:,.0f}]"
    if row["system"] != "proxy":
        line += "  echo x" + "/".join(f"{row['times_echo'][name]:.2f}" for name in PERCENTILES)
    if row["beside"]:
        low, high = row["added_us_interval"]["p999"]
        line += f"  p999 {row['added_us']['p999']:+,.0f} [{low:+,.0f} {high:+,.0f}]"
    if row["lost"] or row["answered_of_due"] < 0.999:
        line += f"  LOST {row['lost']}, answered {row['answered_of_due']:.1%}"
    print(line, flush=True)


def words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def numbers(text: str) -> list[int]:
    return list(map(int, words(text)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", type=words, default=SYSTEMS, help=",".join(SYSTEMS))
    parser.add_argument("--hidden", type=numbers, default=[64])
    parser.add_argument("--horizon", type=numbers, default=[1, 24])
    parser.add_argument("--series", type=numbers, default=[1000, 100_000])
    parser.add_argument("--seconds", type=float, default=30, help="of each throughput, all repeats")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--latency", type=words, default=["binary"], help="formats")
    parser.add_argument("--rates", type=numbers, default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--latency-seconds", type=float, default=30, help="of each, all windows")
    parser.add_argument("--latency-window", type=float, default=3, help="seconds")
    parser.add_argument("--window", type=int, default=40_000, help="ticks on their way at most")
    parser.add_argument("--transport", choices=("tcp", "ipc"), default="tcp")
    parser.add_argument("--cwd", type=Path, default=ROOT, help="checkout whose daemon is run")
    parser.add_argument("--peers", default=sys.executable, help="python that has onnxruntime")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of ours")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    rows = []
    ends = Ends(options.window)
    try:
        for case in (
            Case(hidden, horizon, series)
            for hidden in options.hidden
            for horizon in options.horizon
            for series in options.series
        ):
            with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
                if not options.seconds:
                    break
                systems = start_all(case, options, Path(folder), stack)
                for row in compare_throughput(ends, systems, options):
                    rows.append(row)
                    show(row)
            with tempfile.TemporaryDirectory() as folder:
                for row in compare_latency(ends, case, options, Path(folder)):
                    rows.append(row)
                    show_latency(row)
    finally:
        ends.stop()
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
