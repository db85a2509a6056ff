"""What :mod:`benchmarks.stream` measures beside the daemon, each a process that says where it is.

    python -m benchmarks.stream_peers proxy ENDPOINT ENDPOINT
    python -m benchmarks.stream_peers json|lean ENDPOINT ENDPOINT MODEL SERIES
    python -m benchmarks.stream_peers onnx MODEL HIDDEN HORIZON

``json`` and ``lean`` (our binary ticks in, bare structs out) are the script that an engineer would
write: SUB, a state per series, ONNX Runtime over whatever waits, PUB.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import zmq


def sockets(bind_in: str, bind_out: str) -> tuple[Any, Any]:
    """SUB and PUB, bound; a line on stdout says where."""
    context: zmq.Context[Any] = zmq.Context()
    source, target = context.socket(zmq.SUB), context.socket(zmq.PUB)
    source.rcvhwm = target.sndhwm = 100_000
    source.subscribe(b"")
    source.bind(bind_in)
    target.bind(bind_out)
    places = [each.get_string(zmq.LAST_ENDPOINT) for each in (source, target)]
    print(json.dumps(dict(zip(("input", "output"), places, strict=True))), flush=True)
    return source, target


def proxy(bind_in: str, bind_out: str) -> None:
    zmq.proxy(*sockets(bind_in, bind_out))


def waiting(source: Any, most: int = 1024) -> list[list[bytes]]:
    """Whatever waits, at least one message."""
    messages = [source.recv_multipart()]
    try:
        while len(messages) < most:
            messages.append(source.recv_multipart(zmq.NOBLOCK))
    except zmq.Again:
        pass
    return messages


class Network:
    """The states of all series, and one step of some of them, each at most once."""

    def __init__(self, model: str, series: int) -> None:
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1  # two are slower where feeder and sink share two cores
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        hidden = self._session.get_inputs()[1].shape[2]
        self.h, self.c = np.zeros((2, series, hidden), np.float32)

    def step(self, slots: Any, values: Any) -> Any:
        """Forecasts (n, horizon); ticks of one series are stepped in their order."""
        horizon = self._session.get_outputs()[0].shape[1]
        forecasts = np.empty((len(slots), horizon), np.float32)
        for at in rounds(slots):
            some = slots[at]
            feed = {"x": values[None, at, None], "h": self.h[None, some], "c": self.c[None, some]}
            forecasts[at], h, c = self._session.run(None, feed)
            self.h[some], self.c[some] = h[0], c[0]
        return forecasts


def rounds(slots: Any) -> Any:
    """Places of first ticks, of second ticks, and so on: one series at most once in each."""
    left = np.arange(len(slots))
    while len(left):
        _, first = np.unique(slots[left], return_index=True)
        yield left[first]
        left = np.delete(left, first)


def script_json(bind_in: str, bind_out: str, model: str, series: str) -> None:
    source, target = sockets(bind_in, bind_out)
    network, slots = Network(model, int(series)), dict[bytes, int]()
    decode, encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode
    while True:
        messages = waiting(source)
        ticks = [decode(payload) for _, payload in messages]
        places = [slots.setdefault(key, len(slots)) for key, _ in messages]
        values = np.array([tick["value"] for tick in ticks], np.float32)
        forecasts = network.step(np.array(places), values).tolist()
        for (key, _), tick, forecast in zip(messages, ticks, forecasts, strict=True):
            prediction = {"series": key.decode(), "ts_ns": tick["ts_ns"], "forecast": forecast}
            target.send(b"prediction." + key, zmq.SNDMORE)
            target.send(encode(prediction))


def script_lean(bind_in: str, bind_out: str, model: str, series: str) -> None:
    source, target = sockets(bind_in, bind_out)
    network, slots = Network(model, int(series)), dict[bytes, int]()
    tick = np.dtype([("head", "V3"), ("ts", "<i8"), ("value", "<f8")])
    while True:
        frames = [frame for (frame,) in waiting(source)]
        keys = [frame[: -tick.itemsize] for frame in frames]
        places = [slots.setdefault(key, len(slots)) for key in keys]
        ticks = np.frombuffer(b"".join([frame[-tick.itemsize :] for frame in frames]), tick)
        forecasts = network.step(np.array(places), ticks["value"].astype(np.float32))
        rows = np.empty(len(ticks), [("ts", "<i8"), ("y", "<f4", forecasts.shape[1:])])
        rows["ts"], rows["y"] = ticks["ts"], forecasts
        data, size = rows.tobytes(), rows.itemsize
        for place, key in enumerate(keys):
            target.send(b"prediction." + key + b"\0" + data[place * size : (place + 1) * size])


def write_onnx(path: str, hidden: str, horizon: str) -> None:
    """One LSTM layer and a dense head: x (1, B, 1), h, c (1, B, H) -> y (B, O), the new h and c."""
    onnx = importlib.import_module("onnx")
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    H, O = int(hidden), int(horizon)  # noqa: E741
    random = np.random.default_rng(0)
    shapes = {"w": (1, 4 * H, 1), "r": (1, 4 * H, H), "b": (1, 8 * H), "head": (H, O), "bias": (O,)}
    constants = [
        onnx.numpy_helper.from_array(
            random.uniform(-1, 1, shape).astype(np.float32) / np.float32(H**0.5), name
        )
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node(
            "LSTM", ["x", "w", "r", "b", "", "h", "c"], ["", "hn", "cn"], hidden_size=H
        ),
        helper.make_node("Squeeze", ["hn", "axis"], ["last"]),
        helper.make_node("Gemm", ["last", "head", "bias"], ["y"]),
    ]
    constants.append(onnx.numpy_helper.from_array(np.array([0]), "axis"))

    def values(**shapes: tuple[object, ...]) -> list[Any]:
        return [helper.make_tensor_value_info(name, real, shape) for name, shape in shapes.items()]

    state = (1, "B", H)
    graph = helper.make_graph(
        nodes,
        "step",
        values(x=(1, "B", 1), h=state, c=state),
        values(y=("B", O), hn=state, cn=state),
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)


KINDS: dict[str, Callable[..., None]] = {
    "proxy": proxy,
    "json": script_json,
    "lean": script_lean,
    "onnx": write_onnx,
}

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    KINDS[name](*arguments)
