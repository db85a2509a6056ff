"""The peers of `benchmarks.step`: one step of the same layer by each library, to be called."""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any, NamedTuple

import numpy as np

from benchmarks.step_timing import Call

PEERS = ("torch", "onnxruntime", "openvino")


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
