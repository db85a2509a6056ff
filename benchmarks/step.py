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
import importlib.util
import json
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from streamlstm.kernels import cpu, products, simd
from streamlstm.kernels.cell import Head, Layer, Network

SERIES = 16_384  # in our table, at least
HIDDEN = (32, 64, 128, 256)
BATCH = (1, 16, 64, 1024, 16_384)
SETTLE = 0.06  # seconds; the threads of a peer spin for up to 40 ms after its last call
PEERS = ("torch", "onnxruntime", "openvino")

Call = Callable[[], Any]


class Weights(NamedTuple):
    """One layer, in PyTorch's layout."""

    weight_ih: Any  # (4H, 1)
    weight_hh: Any  # (4H, H)
    bias: Any  # (4H,)


def random_weights(hidden: int) -> Weights:
    random = np.random.default_rng(hidden)

    def draw(*shape: int) -> Any:
        return (random.uniform(-1, 1, shape) / hidden**0.5).astype(np.float32)

    return Weights(draw(4 * hidden, 1), draw(4 * hidden, hidden), draw(4 * hidden))


def states(hidden: int, batch: int) -> tuple[Any, Any, Any]:
    """x (B, 1), h and c (B, H)."""
    random = np.random.default_rng(batch)
    x = random.standard_normal((batch, 1), np.float32)
    return x, *random.uniform(-1, 1, (2, batch, hidden)).astype(np.float32)


# --- competitors ----------------------------------------------------------------------------------


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


def torch_calls(weights: Weights, hidden: int, batch: int, threads: int) -> dict[str, Call]:
    torch = importlib.import_module("torch")
    x, h, c = (torch.tensor(value) for value in states(hidden, batch))
    cell, layer = torch.nn.LSTMCell(1, hidden), torch.nn.LSTM(1, hidden)
    with torch.no_grad():
        for module, suffix in ((cell, ""), (layer, "_l0")):
            for name, value in zip(("weight_ih", "weight_hh", "bias_ih"), weights, strict=True):
                getattr(module, name + suffix).copy_(torch.tensor(value))
            getattr(module, "bias_hh" + suffix).zero_()
    sequence, state = x[None], (h[None], c[None])

    def cell_call() -> Any:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return cell(x, (h, c))

    def layer_call() -> Any:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return layer(sequence, state)

    return {"torch LSTMCell": cell_call, "torch nn.LSTM": layer_call}


def onnx_model(weights: Weights, hidden: int) -> bytes:
    """One LSTM step over any batch: x (1, B, 1), h and c (1, B, H) -> the new h and c."""
    onnx = importlib.import_module("onnx")
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    order = np.r_[
        0:hidden, 3 * hidden : 4 * hidden, hidden : 2 * hidden, 2 * hidden : 3 * hidden
    ]  # ONNX has i, o, f, g
    w, r = weights.weight_ih[order][None], weights.weight_hh[order][None]
    b = np.concatenate([weights.bias[order], np.zeros(4 * hidden, np.float32)])[None]
    node = helper.make_node(
        "LSTM", ["x", "w", "r", "b", "", "h", "c"], ["", "hn", "cn"], hidden_size=hidden
    )
    inputs = [("x", (1, "B", 1)), ("h", (1, "B", hidden)), ("c", (1, "B", hidden))]
    outputs = [("hn", (1, "B", hidden)), ("cn", (1, "B", hidden))]
    constants = (("w", w), ("r", r), ("b", b))
    graph = helper.make_graph(
        [node],
        "step",
        [helper.make_tensor_value_info(name, real, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(name, real, shape) for name, shape in outputs],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def onnxruntime_calls(weights: Weights, hidden: int, batch: int, threads: int) -> dict[str, Call]:
    ort = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        onnx_model(weights, hidden), options, providers=["CPUExecutionProvider"]
    )
    feed = {name: value[None] for name, value in zip("xhc", states(hidden, batch), strict=True)}
    binding = session.io_binding()
    for name, value in feed.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))
    for name in ("hn", "cn"):
        binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(feed["h"].copy()))
    return {
        "onnxruntime run": lambda: session.run(None, feed),
        "onnxruntime iobinding": lambda: session.run_with_iobinding(binding),
    }


def openvino_calls(weights: Weights, hidden: int, batch: int, threads: int) -> dict[str, Call]:
    ov = importlib.import_module("openvino")
    core = ov.Core()
    model = core.read_model(onnx_model(weights, hidden))
    feed = {name: value[None] for name, value in zip("xhc", states(hidden, batch), strict=True)}
    model.reshape({name: value.shape for name, value in feed.items()})
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(model, "CPU", config).create_infer_request()
    for name, value in feed.items():
        request.set_tensor(name, ov.Tensor(value))
    return {"openvino": request.infer}


def peer_calls(weights: Weights, hidden: int, batch: int) -> dict[str, Call]:
    """Each peer that is installed, once with all threads and once with one."""
    makers = dict(zip(PEERS, (torch_calls, onnxruntime_calls, openvino_calls), strict=True))
    calls = {}
    for threads in sorted({1, os.cpu_count() or 1}):
        for package, make in makers.items():
            if package in missing_peers():
                continue
            for name, call in make(weights, hidden, batch, threads).items():
                calls[f"{name}, {threads} threads" if threads > 1 else f"{name}, 1 thread"] = call
    return calls


def missing_peers() -> list[str]:
    needed = {"torch": ["torch"], "onnxruntime": ["onnx", "onnxruntime"]}
    needed["openvino"] = ["onnx", "openvino"]
    return [
        name
        for name, packages in needed.items()
        if any(importlib.util.find_spec(package) is None for package in packages)
    ]


# --- measuring ------------------------------------------------------------------------------------


def seconds_per_call(call: Call, budget: float) -> float:
    """Mean over as many calls as fit the budget, at least one, after a few to wake its threads."""
    time.sleep(SETTLE)
    start = time.perf_counter()
    while time.perf_counter() - start < budget / 4:
        call()
    count = 0
    start = time.perf_counter()
    while True:
        call()
        count += 1
        spent = time.perf_counter() - start
        if spent >= budget:
            return spent / count


def alternate(calls: dict[str, Call], repeats: int, budget: float) -> dict[str, Any]:
    """Seconds of each call in each repeat, the calls in turns."""
    for call in calls.values():
        seconds_per_call(call, budget)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds_per_call(call, budget))
    return {name: np.array(values) for name, values in times.items()}


def bounds(peer: Any, own: Any) -> tuple[float, float]:
    """95 % bounds of median(peer) / median(own), by bootstrap over the repeats."""
    pick = np.random.default_rng(0).integers(0, len(own), (2000, len(own)))
    ratios = np.median(peer[pick], axis=1) / np.median(own[pick], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


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
