"""One LSTM step of B series: ours against the libraries a user would pick instead.

    python -m benchmarks.step [--hidden 32 64] [--batch 1 1024] [--json FILE]

Ours gathers and scatters the states of random series of a table, and computes a head of one output;
the peers get their states ready-made and compute neither. All in float32 with one input, on all
cores; where a peer is faster with one thread it runs with one. Every competitor is called as a
Python caller calls it, in alternating repeats within one run; figures are medians over repeats.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import njit

from benchmarks.step_peers import Weights, missing_peers, peer_calls, random_weights, states
from benchmarks.step_timing import Call, alternate, bounds
from streamlstm.kernels import cpu, products, simd
from streamlstm.kernels.cell import Head, Layer, Network

SERIES = 16_384  # in our table, at least
HIDDEN = (32, 64, 128, 256)
BATCH = (1, 16, 64, 1024, 16_384)


def network(weights: Weights, hidden: int) -> Network:
    head = Head(*(np.ones(shape, np.float32) for shape in ((1, hidden), (1,), (1, 1))))
    return Network((Layer(*weights),), head)


def ours(weights: Weights, hidden: int, batch: int) -> Call:
    table = max(SERIES, batch)
    buffers = cpu.allocate(network(weights, hidden), table)
    cpu.warm_up(buffers)
    random = np.random.default_rng(0)
    choices = [random.permutation(table)[:batch].astype(np.int32) for _ in range(16)]
    inputs = states(hidden, batch)[0]
    rounds, outputs = np.array([0, batch]), np.zeros((batch, 1), np.float32)
    turn = 0

    def call() -> None:
        nonlocal turn
        turn = (turn + 1) % 16
        cpu.step(buffers, choices[turn], inputs, rounds, outputs)

    return call


def sgemm_call() -> tuple[Call, float]:
    """A square product by the best library here, and its floating-point operations."""
    n = 1536
    a = np.random.default_rng(0).standard_normal((n, n), np.float32)
    if "torch" in missing_peers():
        c = np.empty_like(a)
        return lambda: np.matmul(a, a, out=c), 2.0 * n**3
    torch = importlib.import_module("torch")
    t = torch.tensor(a)
    out = torch.empty_like(t)

    def call() -> None:
        torch.set_num_threads(os.cpu_count() or 1)
        torch.mm(t, t, out=out)

    return call, 2.0 * n**3


@njit(nogil=True)
def multiply_in_registers(terms: int, a: Any, c: Any) -> None:
    """A register block of products without a load or a store."""
    products.multiply_add(simd.host_tile(), terms, a, 0, 0, 0, a, 0, 0, c, 0, 64)


def fma_gflops(repeats: int = 20, terms: int = 500_000) -> float:
    """What all cores can multiply and add, if nothing else is to be done."""
    threads, shape = os.cpu_count() or 1, simd.host_shape()
    a = np.zeros((threads, 64 * shape.rows), np.float32)
    multiply_in_registers(1, a[0], a[0])
    best = math.inf
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            start = time.perf_counter()
            list(pool.map(multiply_in_registers, [terms] * threads, a, a))
            best = min(best, time.perf_counter() - start)
    return 2.0 * math.prod(shape) * terms * threads / best / 1e9


def measure(hidden: int, batch: int, repeats: int, budget: float) -> dict[str, Any]:
    """A row of the table."""
    weights = random_weights(hidden)
    sgemm, operations = sgemm_call()
    calls = {"ours": ours(weights, hidden, batch), "sgemm": sgemm}
    times = alternate(calls | peer_calls(weights, hidden, batch), repeats, budget)
    own, product = times.pop("ours"), times.pop("sgemm")
    row: dict[str, Any] = {
        "device": f"cpu, {os.cpu_count()} threads",
        "hidden": hidden,
        "batch": batch,
        "ours_us": float(np.median(own)) * 1e6,
        "peers_us": {name: float(np.median(values)) * 1e6 for name, values in times.items()},
        "missing_peers": missing_peers(),
        "gflops": 8 * hidden * (hidden + 1) * batch / float(np.median(own)) / 1e9,
        "sgemm_gflops": operations / float(np.median(product)) / 1e9,
        "state_bytes_per_series": cpu.bytes_per_series(network(weights, hidden)),
    }
    if times:
        best = min(times, key=lambda name: float(np.median(times[name])))
        low, high = bounds(times[best], own)
        row["best_peer"] = best
        row["ratio"] = {"value": row["peers_us"][best] / row["ours_us"], "low": low, "high": high}
    return row


def hot_key(hidden: int, repeats: int, budget: float) -> dict[str, Any]:
    """64 ticks of one series in one call against single steps inside one call of 64 series."""
    weights, ticks = random_weights(hidden), 64
    single = ours(weights, hidden, 1)
    buffers = cpu.allocate(network(weights, hidden), SERIES)
    slots, inputs = np.zeros(ticks, np.int32), states(hidden, ticks)[0]
    rounds, outputs = np.arange(ticks + 1), np.zeros((ticks, 1), np.float32)
    calls = {
        "hot": lambda: cpu.step(buffers, slots, inputs, rounds, outputs),
        "single": single,
    }
    times = alternate(calls, repeats, budget)
    own, one = (float(np.median(times[name])) for name in ("hot", "single"))
    return {
        "device": f"cpu, {os.cpu_count()} threads",
        "hidden": hidden,
        "hot_key_ticks": ticks,
        "ours_us": own * 1e6,
        "times_single_step": own / one / ticks,
    }


def show(row: dict[str, Any]) -> None:
    if "hot_key_ticks" in row:
        print(
            f"H {row['hidden']:4d}  hot key: {row['hot_key_ticks']} ticks of one series cost"
            f" {row['times_single_step']:.2f} single steps each"
        )
        return
    line = f"H {row['hidden']:4d}  B {row['batch']:6d}  ours {row['ours_us']:10.2f} us"
    line += f"  {row['batch'] / row['ours_us']:7.3f} M/s"
    line += f"  {row['gflops']:6.1f} of {row.get('sgemm_gflops', math.nan):.0f} GFLOP/s"
    if "share_of_roofline" in row:
        line += f"  {row['share_of_roofline']:.0%} of the roofline"
        line += f" ({row['kernel_share_of_roofline']:.0%} without copies)"
    if "ratio" in row:
        ratio = row["ratio"]
        line += f"  {ratio['value']:5.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] times"
        line += f" {row['best_peer']} ({row['peers_us'][row['best_peer']]:.2f} us)"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--hidden", type=int, nargs="+", default=HIDDEN)
    parser.add_argument("--batch", type=int, nargs="+")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--budget", type=float, default=0.02, help="seconds of a repeat")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    for name in missing_peers():
        print(f"{name}: not installed, not run")
    if options.device == "cpu":
        print(f"multiply-adds in registers, all cores: {fma_gflops():.0f} GFLOP/s")
    on_cuda = importlib.import_module("benchmarks.step_cuda") if options.device == "cuda" else None
    rows = []
    for hidden in options.hidden:
        for batch in options.batch or (on_cuda.BATCH if on_cuda else BATCH):
            measured = on_cuda.measure if on_cuda else measure
            rows.append(measured(hidden, batch, options.repeats, options.budget))
            show(rows[-1])
        if on_cuda:
            continue
        rows.append(hot_key(hidden, options.repeats, options.budget))
        show(rows[-1])
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
