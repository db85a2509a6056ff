"""Triton's sequence batcher, with the same network in its Python backend, and a client for it.

The server is the one in the wheel ``nvidia-pytriton``; its environment needs numpy 1.26
and onnxruntime. It is started directly. Its own Python client would be the bottleneck, so the
client here frames gRPC by hand: one stream of ``ModelStreamInfer``, messages laid out beforehand
and joined into large writes, answers counted by a regular expression. HTTP/2 is RFC 9113, HPACK
RFC 7541; the messages are those of Triton's ``grpc_service.proto``.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.stream_ends import Drained
from benchmarks.stream_ticks import order_of

PACKAGE = "lib/python3*/site-packages/pytriton/tritonserver"
CONFIG = """
name: "step"
backend: "python"
max_batch_size: {batch}
input [{{ name: "x" data_type: TYPE_FP32 dims: [1] }}]
output [{{ name: "y" data_type: TYPE_FP32 dims: [{horizon}] }}]
sequence_batching {{
  max_sequence_idle_microseconds: 3600000000
  oldest {{
    max_candidate_sequences: {series}
    preferred_batch_size: [{batch}]
    max_queue_delay_microseconds: {delay}
  }}
  control_input [
    {{ name: "CORRID" control [{{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }}] }}
  ]
}}
instance_group [{{ count: {instances} kind: KIND_CPU }}]
"""
ANSWER = re.compile(rb"\x1a\x08([0-9]{8})")
"""The field ``id`` of an answer: the number of its tick."""


class Server(NamedTuple):
    """A running Triton."""

    port: int
    pid: int


class Settings(NamedTuple):
    """What serves best, as far as was found."""

    batch: int = 256
    delay: int = 1000
    """microseconds to wait for a full batch"""
    instances: int = 2


MOST_WAITING = 20_000
"""Ticks without an answer beyond which the client waits, so that a window ends soon after."""
THROUGHPUT, LATENCY = Settings(), Settings(delay=0, instances=1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def running(
    folder: Path, environment: Path, network: Path, horizon: int, series: int, settings: Settings
) -> Iterator[Server]:
    """Start the server found in a virtual environment, and wait until it serves the ONNX file."""
    (package,) = environment.glob(PACKAGE)
    version = package.parents[2].name.removeprefix("python")
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True)
    for file in (package / "backends" / "python").iterdir():
        if file.is_file():
            (backend / file.name).symlink_to(file)
    stub = package / "python_backend_stubs" / version / "triton_python_backend_stub"
    (backend / stub.name).symlink_to(stub)
    model = folder / "models" / "step"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(
        CONFIG.format(horizon=horizon, series=series, **settings._asdict())
    )
    shutil.copy(Path(__file__).with_name("stream_triton_model.py"), model / "1" / "model.py")
    shutil.copy(network, model / "1" / "step.onnx")
    grpc, http = _free_ports(2)
    with (folder / "triton.log").open("w") as log:
        process = subprocess.Popen(
            [package / "bin" / "tritonserver", f"--model-repository={folder / 'models'}",
             f"--backend-directory={folder / 'backends'}", f"--grpc-port={grpc}",
             f"--http-port={http}", "--allow-metrics=false", "--exit-timeout-secs=2",
             "--grpc-address=127.0.0.1", "--http-address=127.0.0.1"],
            stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(package.parents[1])},
        )  # fmt: skip
    try:
        _await(process, http, folder / "triton.log")
        yield Server(grpc, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its stubs may be left


def _await(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            break
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=1) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"Triton does not start: {log.read_text()}")


# --- the client -----------------------------------------------------------------------------------


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def request_parts(series: int, value: float, start: bool) -> tuple[bytes, bytes]:
    """One tick's ``ModelInferRequest`` behind gRPC's prefix, before and after its 8-digit id."""

    def parameter(name: bytes, choice: bytes) -> bytes:
        return _field(4, _field(1, name) + _field(2, choice))

    head = _field(1, b"step") + b"\x1a\x08"
    tail = parameter(b"sequence_id", b"\x10" + _varint(series + 1))
    if start:
        tail += parameter(b"sequence_start", b"\x08\x01")
    tail += _field(5, _field(1, b"x") + _field(2, b"FP32") + _field(3, b"\x01\x01"))
    tail += _field(7, struct.pack("<f", value))
    return b"\0" + struct.pack(">I", len(head) + 8 + len(tail)) + head, tail


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _header(name: bytes, value: bytes) -> bytes:
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


DATA, HEADERS, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 4, 6, 7, 8
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(
    SETTINGS, 0, 0, struct.pack(">HI", 4, (1 << 31) - 1)
)
CALL = b"".join(
    _header(name, value)
    for name, value in {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": b"/inference.GRPCInferenceService/ModelStreamInfer",
        b":authority": b"localhost",
        b"te": b"trailers",
        b"content-type": b"application/grpc",
    }.items()
)


class Client:
    """Feeder and sink of Triton, in one process."""

    def __init__(self, port: int, series: int, hot: bool) -> None:
        self._order = order_of(series, hot).tolist()
        values = np.random.default_rng(0).uniform(1, 10, series).tolist()
        self._later = [request_parts(k, value, False) for k, value in enumerate(values)]
        self._first = [request_parts(k, value, True) for k, value in enumerate(values)]
        self._begun = bytearray(series)
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._out = bytearray(HELLO + _frame(WINDOW, 0, 0, struct.pack(">I", (1 << 31) - 65536)))
        self._out += _frame(HEADERS, 4, 1, CALL)
        self._in, self._answers = bytearray(), bytearray()
        self._whole_room, self._stream_room, self._initial = 65535, 65535, 65535
        self._ticks = bytearray()  # messages that no frame holds yet
        self._number = 0

    def closed(self, begin: int, end: int, most: int, window: int) -> Drained:
        """Keep ``window`` ticks on their way; the answers from ``begin`` to ``end`` are counted."""
        sent = answered = counted = first = last = 0
        while (now := time.monotonic_ns()) < end and answered < most:
            new = min(window - (sent - answered), most - sent)
            self._add(new)
            sent += new
            came = len(self._exchange(0.1))
            answered += came
            if came and now >= begin:
                first, last = first or now, now
                counted += came if first != now else 0
        self._finish(sent - answered)
        return Drained(counted, first, last, 0, np.zeros((0, 2), np.int64))

    def open_loop(self, start: int, until: int, rate: float) -> Drained:
        """Send by the clock, as long as not too many wait; how late each answer is."""
        base, sent = self._number, 0
        lateness: list[tuple[int, int]] = []
        due = start
        while True:
            now = time.monotonic_ns()
            if now >= until:
                break
            new = 0
            room = MOST_WAITING - (sent - len(lateness))
            while due <= now and due < until and new < room:
                new += 1
                due = start + int((sent + new) * 1e9 / rate)
            self._add(new)
            sent += new
            patience = (due - now) / 1e9 if new < room else 0.001
            self._note(lateness, self._exchange(patience), base, start, rate)
        deadline = time.monotonic() + 5
        while len(lateness) < sent and time.monotonic() < deadline:
            self._note(lateness, self._exchange(0.1), base, start, rate)
        return Drained(sent, start, until, 0, np.array(lateness, np.int64).reshape(-1, 2))

    def _note(
        self, lateness: list[tuple[int, int]], ids: list[bytes], base: int, start: int, rate: float
    ) -> None:
        now = time.monotonic_ns()
        for each in ids:
            due = start + int((int(each) - base) * 1e9 / rate)
            lateness.append((due, now - due))

    def _finish(self, left: int) -> None:
        deadline = time.monotonic() + 5
        while left > 0 and time.monotonic() < deadline:
            left -= len(self._exchange(0.1))
        if left > 0:
            raise TimeoutError(f"Triton leaves {left} ticks without an answer: {self._answers!r}")

    def _add(self, count: int) -> None:
        """Lay out the next ticks."""
        parts: list[bytes] = []
        for number in range(self._number, self._number + count):
            series = self._order[number % len(self._order)]
            requests = self._later if self._begun[series] else self._first
            self._begun[series] = 1
            head, tail = requests[series]
            parts += (head, b"%08d" % number, tail)
        self._ticks += b"".join(parts)
        self._number += count

    def _exchange(self, patience: float) -> list[bytes]:
        """Send what may be sent, take what has come; returns the ids of the answers."""
        while self._ticks and len(self._out) < 1 << 18:
            size = min(len(self._ticks), 16384, self._whole_room, self._stream_room)
            if size <= 0:
                break
            self._out += _frame(DATA, 0, 1, bytes(self._ticks[:size]))
            del self._ticks[:size]
            self._whole_room -= size
            self._stream_room -= size
        wanted = [self._socket] if self._out else []
        readable, writable, _ = select.select([self._socket], wanted, [], max(patience, 0))
        if writable:
            del self._out[: self._socket.send(self._out)]
        if not readable:
            return []
        got = self._socket.recv(1 << 20)
        if not got:
            raise ConnectionError("Triton hung up")
        self._in += got
        self._take_frames()
        ids = ANSWER.findall(self._answers)
        if ids:
            del self._answers[: self._answers.rindex(b"\x1a\x08" + ids[-1]) + 10]
        return ids

    def _take_frames(self) -> None:
        at, data = 0, bytes(self._in)
        while at + 9 <= len(data):
            size = int.from_bytes(data[at : at + 3])
            kind, flags = data[at + 3], data[at + 4]
            if at + 9 + size > len(data):
                break
            payload = data[at + 9 : at + 9 + size]
            stream = int.from_bytes(data[at + 5 : at + 9])
            at += 9 + size
            if kind == DATA:
                self._answers += payload
            elif kind == SETTINGS and not flags & 1:
                for name, value in struct.iter_unpack(">HI", payload):
                    if name == 4:
                        self._stream_room += value - self._initial
                        self._initial = value
                self._out += _frame(SETTINGS, 1, 0, b"")
            elif kind == PING and not flags & 1:
                self._out += _frame(PING, 1, 0, payload)
            elif kind == WINDOW and stream:
                self._stream_room += int.from_bytes(payload)
            elif kind == WINDOW:
                self._whole_room += int.from_bytes(payload)
            elif kind == GOAWAY or (kind == HEADERS and flags & 1):
                raise ConnectionError(f"Triton ends the call: {payload!r}")
        del self._in[:at]
