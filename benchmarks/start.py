"""From process start to a daemon that is ready: with nothing compiled yet, and ever after.

    python -m benchmarks.start [--repeats 7] [--json FILE]

Beside it each peer that is installed: a fresh process until its first LSTM step of one series is
done. They are libraries, not daemons: no socket, no metrics, no store of series, no proof of the
model. Seconds by the clock and of the processor, resident memory at that moment.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import psutil

from benchmarks.step_peers import onnx_model, random_weights
from streamlstm.golden import make_golden
from streamlstm.model import Model, Spec
from streamlstm.model_file import save_model

ROOT = Path(__file__).parents[1]
HOUR = 3600 * 10**9
SPECS = {
    "small: H 8, 1 step": Spec(hidden=8, step_ns=HOUR, horizon=1),
    "typical: H 64, 24 steps, day, week": Spec(
        hidden=64, step_ns=HOUR, horizon=24, season=24, base="seasonal", lags=(1, 24),
        calendar=("hour", "week"), timezone="Europe/Paris",
    ),
}  # fmt: skip
HIDDEN = 64  # of the peers
PEERS = {
    "torch": """
import torch
with torch.inference_mode():
    torch.nn.LSTMCell(1, HIDDEN)(torch.zeros(1, 1))
""",
    "onnxruntime": """
import numpy, onnxruntime
feed = {name: numpy.zeros((1, 1, n), "f") for name, n in (("x", 1), ("h", HIDDEN), ("c", HIDDEN))}
onnxruntime.InferenceSession("step.onnx", providers=["CPUExecutionProvider"]).run(None, feed)
""",
    "openvino": """
import numpy, openvino
feed = {name: numpy.zeros((1, 1, n), "f") for name, n in (("x", 1), ("h", HIDDEN), ("c", HIDDEN))}
model = openvino.Core().read_model("step.onnx")
model.reshape({name: value.shape for name, value in feed.items()})
openvino.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY"})(feed)
""",
}


class Start(NamedTuple):
    """One process, from its start on."""

    seconds: float
    processor: float  # seconds
    resident: int  # bytes
    compiled: int  # functions


def timed(command: list[str], cwd: Path, **env: str) -> Start:
    """Run until a first line of output comes; then end the process."""
    begin = perf_counter()
    with subprocess.Popen(
        command, cwd=cwd, text=True, env=os.environ | env,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = perf_counter() - begin
        if not line:
            raise SystemExit(process.communicate()[1])
        seen = psutil.Process(process.pid)
        processor = sum(seen.cpu_times()[:2])
        resident = seen.memory_info().rss
        compiled = functions_compiled(json.loads(line)["metrics"]) if "metrics" in line else 0
        process.terminate()
        process.communicate()
    return Start(seconds, processor, resident, compiled)


def functions_compiled(url: str) -> int:
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("streamlstm_functions_compiled_total "):
                return int(float(line.split()[1]))
    raise KeyError("streamlstm_functions_compiled_total")


def daemon(model: Path, cache: Path) -> Start:
    options = {"model": model, "metrics.port": 0}
    options |= dict.fromkeys(("input.bind", "output.bind"), "tcp://127.0.0.1:*")
    command = [sys.executable, "-m", "streamlstm", "run", "--announce"]
    command += [part for name, value in options.items() for part in ("--set", f"{name}={value}")]
    return timed(command, ROOT, NUMBA_CACHE_DIR=str(cache))


def random_model(spec: Spec) -> Model:
    random = np.random.default_rng(0)
    weights = {
        name: (random.uniform(-1, 1, shape) / spec.hidden**0.5).astype(np.float32)
        for name, shape in spec.weight_shapes().items()
    }
    return Model(spec, weights, make_golden(spec, weights), None, {"made by": "benchmarks"})


def summary(name: str, starts: list[Start]) -> dict[str, Any]:
    """A row of the table."""
    seconds = [start.seconds for start in starts]
    return {
        "what": name,
        "seconds": statistics.median(seconds),
        "lowest": min(seconds),
        "highest": max(seconds),
        "processor_seconds": statistics.median(start.processor for start in starts),
        "resident_bytes": max(start.resident for start in starts),
        "functions_compiled": max(start.compiled for start in starts),
    }


def show(row: dict[str, Any]) -> None:
    if "seconds" not in row:
        print(f"{row['what']}: not installed")
        return
    print(
        f"{row['what']:54} {row['seconds']:6.2f} s [{row['lowest']:.2f}, {row['highest']:.2f}]"
        f" {row['processor_seconds']:6.2f} s CPU {row['resident_bytes'] / 1e6:5.0f} MB"
        f" {row['functions_compiled']:4d} compiled",
        flush=True,
    )


def peer(name: str, folder: Path, repeats: int) -> dict[str, Any]:
    needed = [name] if name == "torch" else [name, "onnx"]
    if any(importlib.util.find_spec(package) is None for package in needed):
        return {"what": name}
    model = folder / "step.onnx"
    if name != "torch" and not model.exists():
        model.write_bytes(onnx_model(random_weights(HIDDEN), HIDDEN))
    code = PEERS[name].replace("HIDDEN", str(HIDDEN)) + "print('done', flush=True); input()"
    starts = [timed([sys.executable, "-c", code], folder) for _ in range(repeats)]
    return summary(f"{name}, first LSTM step, H {HIDDEN}", starts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--repeats", type=int, default=7, help="starts with compiled code, of peers"
    )
    parser.add_argument("--json", metavar="FILE", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for number, (name, spec) in enumerate(SPECS.items()):
            model, cache = folder / f"{number}.safetensors", folder / f"cache-{number}"
            save_model(random_model(spec), model)
            for kind, repeats in (("nothing compiled", 1), ("compiled", options.repeats)):
                starts = [daemon(model, cache) for _ in range(repeats)]
                rows.append(summary(f"{name}; {kind}", starts))
                show(rows[-1])
        for name in PEERS:
            rows.append(peer(name, folder, options.repeats))
            show(rows[-1])
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
