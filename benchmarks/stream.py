"""Socket to socket: ticks through the daemon, against libzmq's own proxy and what one would build.

    python -m benchmarks.stream [--systems proxy,binary,json] [--seconds 30] [--json FILE]
    python -m benchmarks.stream --soak 3600

The peers want ``--peers PYTHON`` with onnx and onnxruntime, and ``--triton VENV`` with the wheel
nvidia-pytriton 0.7.0, numpy 1.26 and onnxruntime; what is not there is not run, and that is said.

A feeder, the system under test and a sink are processes on this machine; each end counts for
itself. Systems take turns within one run, and sleep (SIGSTOP) while it is not their turn; figures
are medians over repeats, ratios are to the proxy in the same repeat, on the same messages.

Throughput: the feeder sends as fast as the system takes it, with at most ``--window`` ticks on
their way, which is less than any queue holds, so that nothing may be lost; the rate is counted at
the sink. Latency: the feeder sends by the clock, whatever becomes of the ticks, and each is timed
from when it was due until its prediction is at the sink.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import stream_triton
from benchmarks.step_peers import random_weights
from benchmarks.step_timing import seconds_per_call
from benchmarks.stream_latency import PERCENTILES, Window, summary
from benchmarks.stream_measure import Ends, Meter, TritonMeter
from benchmarks.stream_soak import COUNTED, soak
from benchmarks.stream_systems import DURABLE, NAMES, OURS, ROOT, SCRIPTS, Case, Starter, System
from benchmarks.stream_ticks import MANY
from streamlstm.kernels import cpu
from streamlstm.kernels.cell import Head, Layer, Network

TRIES = 2
FAILURES = (ConnectionError, TimeoutError, RuntimeError)
"""What a system that broke down is known by; the others go on."""


class Meters(NamedTuple):
    """What measures each system."""

    ends: Ends
    triton: TritonMeter

    def of(self, system: System) -> Meter:
        """The one for a system."""
        return self.triton if system.client else self.ends


# --- throughput -----------------------------------------------------------------------------------


def start_all(
    names: list[str], case: Case, starter: Starter, stack: contextlib.ExitStack
) -> list[System]:
    """Every system asked for, a proxy for each of their formats."""
    formats = dict.fromkeys(format_of(name) for name in names if name not in ("proxy", "triton"))
    systems = []
    for format in formats or ("binary",):
        for name in ("proxy", *(each for each in names if format_of(each) == format)):
            if name in names:
                systems.append(starter.start(name, format, case, stack))
                if name == "binary":
                    hot = case._replace(hot=True)
                    systems.append(dataclasses.replace(systems[-1], case=hot))
    if "triton" in names:
        systems += start_triton(case, starter, stack)
    return systems


def start_triton(case: Case, starter: Starter, stack: contextlib.ExitStack) -> list[System]:
    """Triton, which at times crashes as it starts."""
    for _ in range(TRIES):
        try:
            return [starter.start("triton", "grpc", case, stack)]
        except FAILURES as error:
            print(f"triton: {str(error)[-300:]}", flush=True)
    print("triton: does not start, not run", flush=True)
    return []


def format_of(name: str) -> str:
    return {**SCRIPTS, **DURABLE}.get(name, name)


def compare_throughput(
    meters: Meters, systems: list[System], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Rows of all systems, each in short windows by turns."""
    runs: dict[System, list[dict[str, Any]]] = {system: [] for system in systems}
    bare: list[float] = []
    with_arrow = any(system.format == "arrow" for system in systems)
    alone = bare_step(systems[0].case) if with_arrow else None
    for system in systems:
        meters.of(system).prime(system)
    for _ in range(options.repeats):
        for system in list(runs):
            seconds = options.seconds / options.repeats
            try:
                runs[system].append(quiet_window(meters.of(system), system, seconds, options.quiet))
            except FAILURES as error:
                print(f"{system.name} {system.format}: broke down: {error}", flush=True)
                del runs[system]
        if alone:
            bare.append(MANY / seconds_per_call(alone, 0.5))
    rates = {system: np.array([each["rate"] for each in runs[system]]) for system in runs}

    def ratio(system: System, **other: object) -> float | None:
        """Median over repeats of the rate over that of the system which differs so."""
        wanted = dataclasses.replace(system, **other)  # type: ignore[arg-type]
        for each in runs:
            if (each.name, each.format, each.case) == (wanted.name, wanted.format, wanted.case):
                return float(np.median(rates[system] / rates[each]))
        return None

    rows = []
    for system, results in runs.items():
        even = system.case._replace(hot=False)
        row: dict[str, Any] = {
            "system": system.name,
            "format": system.format,
            **system.case._asdict(),
            "ticks_per_second": float(np.median(rates[system])),
            "ticks_per_second_range": [float(rates[system].min()), float(rates[system].max())],
            "ratio_to_proxy": ratio(system, name="proxy", case=even),
            "latency_us": None,
            "offered": None,
            "cpu_us_per_tick": float(np.median([each["cpu_us"] for each in results])),
            "cores_of_others": float(np.median([each["others"] for each in results])),
            **{name: sum(each[name] for each in results) for name in ("sent", "lost", "disorder")},
        }
        if system.client:
            row["client_cores"] = float(np.median([each["client_cores"] for each in results]))
        if system.case.hot:
            row["ratio_to_even"] = ratio(system, case=even)
        script = {"binary": "script-lean", "json": "script-json"}.get(system.format, "")
        if system.name == "ours":
            row["ratio_to_script"] = ratio(system, name=script, case=even)
            row["ratio_to_triton"] = ratio(system, name="triton", format="grpc", case=even)
            if system.format == "arrow":
                row["ratio_to_step"] = float(np.median(rates[system] / bare))
        rows.append(row)
    return rows


def quiet_window(meter: Meter, system: System, seconds: float, limit: float) -> dict[str, Any]:
    """A window in which others took no more than ``limit`` cores, or the best of some tries."""
    tries: list[dict[str, Any]] = []
    while len(tries) < TRIES and not (tries and tries[-1]["others"] <= limit):
        tries.append(meter.throughput(system, seconds))
    return min(tries, key=lambda each: float(each["others"]))


def bare_step(case: Case) -> Callable[[], Any]:
    """The step alone, on all cores, for batches as large as arrow's messages."""
    random = np.random.default_rng(0)
    shape = case.horizon, case.hidden
    head = Head(
        np.ones(shape, np.float32),
        np.ones(shape[:1], np.float32),
        np.ones((shape[0], 1), np.float32),
    )
    layer = Layer(*random_weights(case.hidden))
    buffers = cpu.allocate(Network((layer,), head), case.series)
    cpu.warm_up(buffers)
    slots = random.permutation(case.series)[:MANY].astype(np.int32)
    inputs, outputs = (
        random.standard_normal((MANY, 1), np.float32),
        np.zeros((MANY, case.horizon), np.float32),
    )
    rounds = np.array([0, MANY])
    return lambda: cpu.step(buffers, slots, inputs, rounds, outputs)


# --- latency --------------------------------------------------------------------------------------


class Variant(NamedTuple):
    """A system, and what goes on beside."""

    system: System
    beside: str


def compare_latency(
    meters: Meters, case: Case, starter: Starter, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Rows of each system asked for at each rate; ours also while scraped, while checkpointing."""
    for format in options.latency:
        with contextlib.ExitStack() as stack:
            variants = [Variant(starter.start("proxy", format, case, stack), "")]
            for name in options.systems:
                if format_of(name) != format:
                    continue
                plain = starter.start(name, format, case, stack)
                variants.append(Variant(plain, ""))
                if name not in OURS:
                    continue
                variants.append(Variant(plain, "scraped"))
                path = starter.folder / f"{format}.checkpoint"
                saving = {"checkpoint.path": path, "checkpoint.interval": 1}
                saver = dataclasses.replace(starter, options=starter.options | saving)
                saver_system = saver.start(name, format, case, stack)
                variants.append(Variant(saver_system, "checkpointing"))
            if "triton" in options.systems:
                quick = dataclasses.replace(starter, triton_settings=stream_triton.LATENCY)
                variants += [Variant(each, "") for each in start_triton(case, quick, stack)]
            for system in dict.fromkeys(variant.system for variant in variants):
                meters.of(system).prime(system)
                # not counted: what loads the code that measures would be late by it
                meters.of(system).latency(system, options.rates[0], options.latency_window, False)
            for rate in options.rates:
                yield from latencies(meters, variants, rate, options)


def latencies(
    meters: Meters, variants: list[Variant], rate: int, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Rows of all variants at one rate, each in short windows by turns."""
    repeats = max(2, round(options.latency_seconds / options.latency_window))
    windows: dict[Variant, list[Window]] = {variant: [] for variant in variants}
    for _ in range(repeats):
        for variant in variants:
            how = rate, options.latency_window, variant.beside == "scraped"
            meter = meters.of(variant.system)
            windows[variant].append(meter.latency(variant.system, *how))
    undisturbed = {each.system.name: windows[each] for each in variants if not each.beside}
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
            **summary(windows[variant], undisturbed["proxy"], undisturbed[system.name]),
        }


# --- tables ---------------------------------------------------------------------------------------


def head(row: dict[str, Any]) -> str:
    line = f"H {row['hidden']:3d}  horizon {row['horizon']:2d}  {row['series']:7,d} series"
    return f"{line}{' hot' if row['hot'] else '    '}  {row['system']:11s} {row['format']:7s}"


def show(row: dict[str, Any]) -> None:
    low, high = row["ticks_per_second_range"]
    line = f"{head(row)} {row['ticks_per_second']:9,.0f} /s [{low:,.0f} .. {high:,.0f}]"
    for key, of in (
        ("ratio_to_proxy", "the proxy"),
        ("ratio_to_even", "an even load"),
        ("ratio_to_step", "the bare step"),
    ):
        if row.get(key):
            line += f"  {row[key]:.1%} of {of}"
    for key, of in (("ratio_to_script", "script"), ("ratio_to_triton", "Triton")):
        if row.get(key):
            line += f"  {row[key]:.1f} x {of}"
    line += f"  {row['cpu_us_per_tick']:.2f} us of CPU"
    if "client_cores" in row:
        line += f" (client: {row['client_cores']:.2f} cores)"
    if row["cores_of_others"] > 0.1:
        line += f"  others took {row['cores_of_others']:.1f} cores"
    if row["lost"] or row["disorder"]:
        line += f"  LOST {row['lost']} OUT OF ORDER {row['disorder']}"
    print(line, flush=True)


def show_latency(row: dict[str, Any]) -> None:
    line = f"{head(row)} {row['beside']:13s} {row['offered']:7,d}/s"
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


def show_soak(row: dict[str, Any]) -> None:
    print(f"{head(row)} {row['soak_seconds']:,.0f} s at {row['offered']:,.0f}/s", end="")
    print(f" (half of {row['maximum']:,.0f}/s), scraped each second")
    print(
        f"  sent {row['sent']:,d} = received {row['received']:,d} + dropped {row['dropped']}",
        end="",
    )
    for name in COUNTED:
        print(f" + {name} {row[name]:,d}", end="")
    print(f" + unaccounted {row['unaccounted']:,d}", end="")
    print(f" (lost before {row['lost_before']:,d}, behind {row['lost_behind']:,d},", end="")
    print(f" {row['overflows']:,d} overflows)", end="")
    print(f"; out of order {row['disorder']}")
    print(f"  resident {row['resident_bytes'][-1] / 2**20:.1f} MiB,", end=" ")
    print(f"{row['resident_growth']:+.2%} from the second tenth to the last,", end=" ")
    print(f"range {row['resident_range']:.2%}", flush=True)


# --- arguments ------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def numbers(text: str) -> list[int]:
    return list(map(int, words(text)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", type=words, default=list(NAMES), help=",".join(NAMES))
    parser.add_argument("--hidden", type=numbers, default=[64])
    parser.add_argument("--horizon", type=numbers, default=[1, 24])
    parser.add_argument("--series", type=numbers, default=[1000, 100_000])
    parser.add_argument("--seconds", type=float, default=30, help="of each throughput; 0: none")
    parser.add_argument("--repeats", type=int, default=5, help="windows that they are split in")
    parser.add_argument(
        "--quiet", type=float, default=0.2, help=f"cores that others may take, {TRIES} tries"
    )
    parser.add_argument("--window", type=int, default=10_000, help="ticks on their way at most")
    parser.add_argument("--latency", type=words, default=["binary"], help="formats; empty: none")
    parser.add_argument("--rates", type=numbers, default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--latency-seconds", type=float, default=30, help="of each, all windows")
    parser.add_argument("--latency-window", type=float, default=3, help="seconds")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="of the first case, only")
    parser.add_argument("--transport", choices=("tcp", "ipc"), default="tcp")
    parser.add_argument("--cwd", type=Path, default=ROOT, help="checkout whose daemon is run")
    parser.add_argument("--peers", default=sys.executable, help="python with onnx and onnxruntime")
    parser.add_argument("--triton", type=Path, help="virtual environment with nvidia-pytriton")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of ours")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    for name in options.systems:
        if name not in NAMES:
            parser.error(f"unknown system {name!r}; there is: {', '.join(NAMES)}")
    if "arrow" in options.latency:
        parser.error("--latency: a message of the format arrow has no one time when it is due")
    looks = [options.peers, "-c", "import msgspec, onnx, onnxruntime, zmq"]
    if (
        set(SCRIPTS) & set(options.systems)
        and subprocess.run(looks, capture_output=True).returncode
    ):
        print("script-json, script-lean: no onnxruntime and onnx for --peers, not run")
        options.systems = [name for name in options.systems if name not in SCRIPTS]
    if importlib.util.find_spec("pyarrow") is None and "arrow" in options.systems:
        print("arrow: pyarrow is not installed, not run")
        options.systems.remove("arrow")
    if "triton" in options.systems and not options.triton:
        print("triton: no environment given by --triton, not run")
        options.systems.remove("triton")
    return options


def main() -> None:
    options = parse()
    rows: list[dict[str, Any]] = []

    def keep(row: dict[str, Any], show: Callable[[dict[str, Any]], None]) -> None:
        rows.append(row | {"cores": os.cpu_count(), "transport": options.transport})
        show(row)
        if options.json:
            with open(options.json, "w") as file:
                json.dump(rows, file, indent=1)

    meters = Meters(Ends(options.window), TritonMeter())
    try:
        for case in (
            Case(hidden, horizon, series)
            for hidden in options.hidden
            for horizon in options.horizon
            for series in options.series
        ):
            with tempfile.TemporaryDirectory() as folder:
                starter = Starter(
                    Path(folder),
                    options.cwd,
                    options.peers,
                    options.triton,
                    options.transport,
                    dict(each.split("=", 1) for each in options.set),
                )
                if options.soak:
                    with contextlib.ExitStack() as stack:
                        system = starter.start("binary", "binary", case, stack)
                        keep(soak(meters.ends, system, options.soak), show_soak)
                    break
                if options.seconds:
                    with contextlib.ExitStack() as stack:
                        systems = start_all(options.systems, case, starter, stack)
                        for row in compare_throughput(meters, systems, options):
                            keep(row, show)
                for row in compare_latency(meters, case, starter, options):
                    keep(row, show_latency)
    finally:
        meters.ends.stop()


if __name__ == "__main__":
    main()
