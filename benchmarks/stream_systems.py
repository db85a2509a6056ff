"""Starting what :mod:`benchmarks.stream` measures: the daemon and its peers, on free ports."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import stream_triton
from benchmarks.stream_ticks import TOPIC, Reading, reading_of
from streamlstm.golden import make_golden
from streamlstm.model import Errors, Model, Spec
from streamlstm.model_file import save_model
from tests import daemon

ROOT = Path(__file__).parents[1]
HOUR = 3600 * 10**9
OURS = ("binary", "json", "msgpack", "arrow")
SCRIPTS = {"script-json": "json", "script-lean": "binary"}
DURABLE = {"binary-interval": "binary", "binary-strict": "binary"}
"""Ours with a journal and checkpoints."""
NAMES = ("proxy", *OURS, *DURABLE, *SCRIPTS, "triton")


class Case(NamedTuple):
    """What is forecast."""

    hidden: int
    horizon: int
    series: int
    hot: bool = False
    """whether every second tick is of one series"""


@dataclass(frozen=True)
class System:
    """A running process under test."""

    name: str
    format: str
    case: Case
    pid: int
    input: str = ""
    output: str = ""
    reading: Reading | None = None
    url: str | None = None
    client: stream_triton.Client | None = None


@dataclass(frozen=True)
class Starter:
    """How systems are started."""

    folder: Path
    cwd: Path = ROOT
    """checkout whose daemon is run"""
    peers: str = sys.executable
    """interpreter that has onnxruntime and onnx"""
    triton: Path | None = None
    """virtual environment that has Triton"""
    transport: str = "tcp"
    options: dict[str, Any] = field(default_factory=dict)
    """of the daemon, by their dotted names"""
    triton_settings: stream_triton.Settings = stream_triton.THROUGHPUT

    def start(self, name: str, format: str, case: Case, stack: contextlib.ExitStack) -> System:
        """Start a system, which then sleeps until it is its turn."""
        kind = "ours" if name in (*OURS, *DURABLE) else name
        start = {"ours": self._daemon, "triton": self._triton}.get(kind, self._peer)
        where = self.folder / str(len(list(self.folder.iterdir())))
        where.mkdir()
        system = stack.enter_context(start(name, format, case, where))
        if not system.client:
            os.kill(system.pid, signal.SIGSTOP)
            stack.callback(os.kill, system.pid, signal.SIGCONT)  # or it could not end
        return system

    @contextlib.contextmanager
    def _daemon(self, name: str, format: str, case: Case, folder: Path) -> Iterator[System]:
        write_model(folder / "model.safetensors", case)
        settings: dict[str, Any] = {"engine.max_series": case.series}
        for end in ("input", "output"):
            settings |= {f"{end}.format": format, f"{end}.bind": self._endpoint(folder, end)}
        said = "ours"
        if name in DURABLE:
            durability = name.partition("-")[2]
            said = f"ours, {durability}"
            settings |= {"checkpoint.path": folder / "state", "journal.durability": durability}
        settings |= self.options
        model = folder / "model.safetensors"
        with daemon.start(folder, model, cwd=self.cwd, **settings) as ours:
            ends = ours.input, ours.output, reading_of(format, TOPIC)
            yield System(said, format, case, ours.process.pid, *ends, ours.url)

    @contextlib.contextmanager
    def _peer(self, name: str, format: str, case: Case, folder: Path) -> Iterator[System]:
        kind = name.removeprefix("script-")
        command = [self.peers, "-m", "benchmarks.stream_peers", kind]
        command += [self._endpoint(folder, end) for end in ("input", "output")]
        if name != "proxy":
            command += [str(self._network(case, folder)), str(case.series)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                said = json.loads(process.stdout.readline())
                reading = reading_of(format, b"") if name == "proxy" else reading_of(kind, TOPIC)
                ends = said["input"], said["output"], reading
                yield System(name, format, case, process.pid, *ends)
            finally:
                process.kill()

    @contextlib.contextmanager
    def _triton(self, name: str, format: str, case: Case, folder: Path) -> Iterator[System]:
        assert self.triton is not None
        network = self._network(case, folder)
        place = case.horizon, case.series, self.triton_settings
        with stream_triton.running(folder, self.triton, network, *place) as server:
            client = stream_triton.Client(server.port, case.series, case.hot)
            yield System(name, format, case, server.pid, client=client)

    def _network(self, case: Case, folder: Path) -> Path:
        """One LSTM layer and a dense head, as ONNX."""
        path = folder / "model.onnx"
        command = [self.peers, "-m", "benchmarks.stream_peers", "onnx", str(path)]
        subprocess.run([*command, str(case.hidden), str(case.horizon)], cwd=ROOT, check=True)
        return path

    def _endpoint(self, folder: Path, end: str) -> str:
        return "tcp://127.0.0.1:*" if self.transport == "tcp" else f"ipc://{folder}/{end}"


def write_model(path: Path, case: Case) -> None:
    """A model of random weights, with error quantiles, so that intervals are computed."""
    spec = Spec(hidden=case.hidden, step_ns=HOUR, horizon=case.horizon)
    random = np.random.default_rng(0)
    weights = {
        name: (random.uniform(-1, 1, shape) / case.hidden**0.5).astype(np.float32)
        for name, shape in spec.weight_shapes().items()
    }
    levels = np.array([0.5, 0.8, 0.9, 0.95, 0.99])
    errors = Errors(levels, np.repeat(levels[:, None], spec.outputs, 1).astype(np.float32))
    save_model(Model(spec, weights, make_golden(spec, weights), errors, {"made by": "us"}), path)
