"""The CUDA half of `benchmarks.step`: ours against cuDNN and torch on one GPU, and its limits.

    python -m benchmarks.step --device cuda [--hidden 64] [--batch 1000000] [--json FILE]

Ours takes slots and inputs from host memory and gives outputs back to it in every call, gathers and
scatters the states of random series, and computes a head of one output. The peers get inputs and
states ready-made on the device, leave everything there and compute no head; each is one call and a
wait for its end. `kernel_us` is ours without the host's copies to and from pinned memory.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.step_peers import Weights, missing_peers, random_weights, states
from benchmarks.step_timing import Call, alternate, bounds
from streamlstm.kernels import cuda
from streamlstm.kernels.cell import Head, Layer, Network, padded

BATCH = (1, 64, 1024, 16_384, 100_000, 1_000_000)
COPIED = 1 << 28  # float32 of the copy that measures bandwidth


def ours(weights: Weights, hidden: int, batch: int) -> dict[str, Call]:
    """A whole step, and its kernels alone (where a step fits one set of pinned memory)."""
    head = Head(*(np.ones(shape, np.float32) for shape in ((1, hidden), (1,), (1, 1))))
    buffers = cuda.allocate(Network((Layer(*weights),), head), batch)
    cuda.warm_up(buffers)
    slots = np.random.default_rng(0).permutation(batch).astype(np.int32)
    inputs, rounds = states(hidden, batch)[0], np.array([0, batch])
    outputs = np.zeros((batch, 1), np.float32)
    cuda.step(buffers, slots, inputs, rounds, outputs)
    submits = range(0, batch, len(buffers.pinned[0].slots))
    sizes = [min(len(buffers.pinned[0].slots), batch - start) for start in submits]

    def kernels() -> None:
        for size in sizes:  # the slots of a set again and again: as many, as random
            cuda.launch(buffers, buffers.pinned[0], [size])
        buffers.stream.synchronize()

    return {
        "ours": lambda: cuda.step(buffers, slots, inputs, rounds, outputs),
        "kernels": kernels,
    }


def torch_calls(weights: Weights, hidden: int, batch: int) -> dict[str, Call]:
    """torch's ways to a step, TF32 off unless named."""
    torch = importlib.import_module("torch")
    x, h, c = (torch.tensor(value, device="cuda") for value in states(hidden, batch))
    cell, layer = torch.nn.LSTMCell(1, hidden).cuda(), torch.nn.LSTM(1, hidden).cuda()
    with torch.no_grad():
        for module, suffix in ((cell, ""), (layer, "_l0")):
            for name, value in zip(("weight_ih", "weight_hh", "bias_ih"), weights, strict=True):
                getattr(module, name + suffix).copy_(torch.tensor(value))
            getattr(module, "bias_hh" + suffix).zero_()
    compiled = torch.compile(cell, mode="max-autotune")

    def call(function: Callable[..., Any], *arguments: Any, tf32: bool = False) -> Call:
        def run() -> None:
            torch.backends.cuda.matmul.allow_tf32 = tf32
            torch.backends.cudnn.allow_tf32 = tf32
            with torch.inference_mode():
                function(*arguments)
            torch.cuda.synchronize()

        return run

    sequence = (x[None], (h[None], c[None]))
    return {
        "torch nn.LSTM (cuDNN)": call(layer, *sequence),
        "torch nn.LSTM (cuDNN), TF32": call(layer, *sequence, tf32=True),
        "torch LSTMCell": call(cell, x, (h, c)),
        "torch.compile LSTMCell": call(compiled, x, (h, c)),
    }


def limit_calls() -> tuple[dict[str, Call], float, float]:
    """A copy and a float32 product, the bytes the one moves and the operations of the other."""
    torch = importlib.import_module("torch")
    n = 8192
    a, source = torch.ones((n, n), device="cuda"), torch.ones(COPIED, device="cuda")
    out, target = torch.empty_like(a), torch.empty_like(source)

    def product() -> None:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.mm(a, a, out=out)
        torch.cuda.synchronize()

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    return {"copy": copy, "sgemm": product}, 8.0 * COPIED, 2.0 * n**3


def measure(hidden: int, batch: int, repeats: int, budget: float) -> dict[str, Any]:
    """A row of the table, as `benchmarks.step.measure` makes it."""
    weights, peers = random_weights(hidden), "torch" not in missing_peers()
    calls = ours(weights, hidden, batch)
    limits, moved, operations = limit_calls() if peers else ({}, 0.0, 0.0)
    if peers:
        calls |= limits | torch_calls(weights, hidden, batch)
    times = alternate(calls, repeats, budget)
    seconds = {name: float(np.median(values)) for name, values in times.items()}
    flops = 8 * hidden * (hidden + 1) * batch
    row: dict[str, Any] = {
        "device": device_name(),
        "hidden": hidden,
        "batch": batch,
        "ours_us": seconds["ours"] * 1e6,
        "kernel_us": seconds["kernels"] * 1e6,
        "peers_us": {
            name: value * 1e6
            for name, value in seconds.items()
            if name not in ("ours", "kernels", *limits)
        },
        "missing_peers": [] if peers else ["torch"],
        "gflops": flops / seconds["ours"] / 1e9,
        "state_bytes_per_series": 2 * padded(hidden) * 4,
    }
    if peers:
        bytes_each = 4 * 4 * padded(hidden)
        arithmetic = flops / (operations / seconds["sgemm"])
        traffic = bytes_each * batch / (moved / seconds["copy"])
        row["sgemm_gflops"] = operations / seconds["sgemm"] / 1e9
        row["copy_gbytes_per_second"] = moved / seconds["copy"] / 1e9
        row["share_of_roofline"] = max(arithmetic, traffic) / seconds["ours"]
        row["kernel_share_of_roofline"] = max(arithmetic, traffic) / seconds["kernels"]
        exact = [name for name in row["peers_us"] if not name.endswith("TF32")]
        best = min(exact, key=lambda name: seconds[name])
        low, high = bounds(times[best], times["ours"])
        row["best_peer"] = best
        row["ratio"] = {"value": seconds[best] / seconds["ours"], "low": low, "high": high}
    return row


def device_name() -> str:
    torch = importlib.util.find_spec("torch")
    if torch is None:
        return "cuda"
    return f"cuda, {importlib.import_module('torch').cuda.get_device_name()}"
