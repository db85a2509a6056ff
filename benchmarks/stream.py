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
    Reading,
    Sink,
    reading_of,
    shared_counters,
)
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
        self.sink.call("open", system.output, system.reading, case.series)
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


def soon(seconds: float) -> int:
    """So long from now, by CLOCK_MONOTONIC."""
    return time.monotonic_ns() + int(1e9 * seconds)


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


def start_all(
    case: Case, options: argparse.Namespace, folder: Path, stack: contextlib.ExitStack
) -> list[System]:
    """Every system asked for, and a proxy for each of their formats."""
    formats = dict.fromkeys(SCRIPTS.get(name, name) for name in options.systems if name != "proxy")
    systems = []

    def enter(name: str, format: str) -> None:
        where = folder / f"{name}-{format}-{len(systems)}"
        if name == "ours":
            systems.append(stack.enter_context(our_daemon(format, case, where, options)))
        else:
            systems.append(stack.enter_context(peer(name, format, case, where, options)))
        os.kill(systems[-1].pid, signal.SIGSTOP)

    for format in formats or ("binary",):
        if "proxy" in options.systems:
            enter("proxy", format)
        for name in options.systems:
            if name == format:
                enter("ours", format)
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
                systems = start_all(case, options, Path(folder), stack)
                for row in compare_throughput(ends, systems, options):
                    rows.append(row)
                    show(row)
                for system in systems:  # or they could not end
                    os.kill(system.pid, signal.SIGCONT)
    finally:
        ends.stop()
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
