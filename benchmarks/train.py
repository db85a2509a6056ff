"""Training by truncated backpropagation: ours against PyTorch, the same updates on the same data.

    python -m benchmarks.train [--updates 40] [--repeats 7] [--json FILE]

Both start from the same weights and see the same batches: the losses after the last update are
compared, so that what is timed is the same work. An update is forward, backward and Adam's step,
called as a Python caller calls it. Competitors alternate within one run; PyTorch runs once with all
threads and once with one; figures are medians over repeats of the mean time of an update. Apart,
from process start to prediction, in processes of their own: an LSTM of 50 relu cells, 10 epochs
over 50 windows of 10, the same lines of code in Keras and here; ours with an empty cache of
compiled code and with a filled one.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

SETTLE = 0.1  # seconds; the threads of a competitor spin for a while after its last call


class Task(NamedTuple):
    """What is trained: on random data, an LSTM and a dense head of one output."""

    name: str
    hidden: int
    layers: int
    batch: int
    steps: int
    every_step: bool
    """whether each step has a target, or only the last"""


TASKS = (
    Task("LSTM 50, window 10, Dense 1, batch 32", 50, 1, 32, 10, False),
    Task("H 32, batch 64, 96 steps", 32, 1, 64, 96, True),
    Task("H 64, batch 64, 96 steps", 64, 1, 64, 96, True),
    Task("H 64, 2 layers, batch 64, 96 steps", 64, 2, 64, 96, True),
    Task("H 128, batch 64, 96 steps", 128, 1, 64, 96, True),
)
RATE = 1e-3
Train = Callable[[int], float]
"""Makes so many updates and returns the loss before the last."""


def data(task: Task) -> tuple[Any, Any, dict[str, Any]]:
    """x and target (batch, steps, 1), and weights in the names of our model file."""
    rng = np.random.default_rng(0)
    x = rng.random((task.batch, task.steps, 1), np.float32)
    target = rng.random((task.batch, task.steps, 1), np.float32)
    shapes: dict[str, tuple[int, ...]] = {}
    for n in range(task.layers):
        shapes[f"lstm.weight_ih_l{n}"] = (4 * task.hidden, task.hidden if n else 1)
        shapes[f"lstm.weight_hh_l{n}"] = (4 * task.hidden, task.hidden)
        shapes[f"lstm.bias_l{n}"] = (4 * task.hidden,)
    shapes |= {"head.weight": (1, task.hidden), "head.bias": (1,)}
    limit = task.hidden**-0.5
    weights = {k: rng.uniform(-limit, limit, s).astype(np.float32) for k, s in shapes.items()}
    return x, target, weights


def ours(task: Task) -> Train:
    from streamlstm import bptt
    from streamlstm.model import Spec

    x, target, weights = data(task)
    spec = Spec(step_ns=0, hidden=task.hidden, layers=task.layers, horizon=1)
    net = bptt.net_of(spec)
    theta = bptt.pack(spec, weights | {"head.skip": np.zeros((1, 1))})
    begins = np.arange(task.batch) * task.steps
    quiet = 0 if task.every_step else task.steps - 1
    rows = np.stack([begins, 0 * begins + task.steps, 0 * begins + quiet], axis=1)
    state = np.zeros((task.layers, 2, task.batch, net.units), np.float32)
    one, none = np.ones(1, np.float32), np.zeros((0, 1), np.float32)
    x, target = x.reshape(-1, 1), target.reshape(-1, 1)
    chunk = bptt.Chunk(task.steps, x, target, one, rows, state, none)
    work, optimizer = bptt.allocate(net, task.batch, task.steps, False), bptt.adam(net)
    skip = slice(net.at[3 * task.layers + 2], net.at[3 * task.layers + 3])
    done = 0

    def train(updates: int) -> float:
        nonlocal done
        for _ in range(updates):
            done += 1
            state[:] = 0
            loss = bptt.learn(net, theta, work, chunk, optimizer, done, RATE)
            theta[skip] = 0  # PyTorch's network has no shortcut
        return loss

    return train


def pytorch(task: Task, threads: int) -> Train:
    import torch

    x, target, weights = (
        {k: torch.tensor(v) for k, v in part.items()}
        if isinstance(part, dict)
        else torch.tensor(part)
        for part in data(task)
    )
    lstm = torch.nn.LSTM(1, task.hidden, task.layers, batch_first=True)
    head = torch.nn.Linear(task.hidden, 1)
    with torch.no_grad():
        for n in range(task.layers):
            getattr(lstm, f"weight_ih_l{n}").copy_(weights[f"lstm.weight_ih_l{n}"])
            getattr(lstm, f"weight_hh_l{n}").copy_(weights[f"lstm.weight_hh_l{n}"])
            getattr(lstm, f"bias_ih_l{n}").copy_(weights[f"lstm.bias_l{n}"])
            getattr(lstm, f"bias_hh_l{n}").zero_().requires_grad_(False)
        head.weight.copy_(weights["head.weight"])
        head.bias.copy_(weights["head.bias"])
    learned = [p for p in (*lstm.parameters(), *head.parameters()) if p.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=RATE)

    def train(updates: int) -> float:
        torch.set_num_threads(threads)
        for _ in range(updates):
            optimizer.zero_grad()
            h, _ = lstm(x)
            off = head(h) - target if task.every_step else head(h[:, -1]) - target[:, -1]
            loss = (off * off).mean()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    return train


def competitors(task: Task) -> dict[str, Train]:
    trains = {"streamlstm": ours(task)}
    if importlib.util.find_spec("torch"):
        for threads in sorted({1, os.cpu_count() or 1}):
            trains[f"PyTorch, {threads} threads" if threads > 1 else "PyTorch, 1 thread"] = pytorch(
                task, threads
            )
    return trains


def measure(task: Task, updates: int, repeats: int) -> dict[str, Any]:
    """Milliseconds an update of each competitor, and the largest deviation of their losses."""
    trains = competitors(task)
    for train in trains.values():
        train(2)  # compile, wake the threads
    times: dict[str, list[float]] = {name: [] for name in trains}
    deviation = 0.0
    for _ in range(repeats):
        losses = []
        for name, train in trains.items():
            time.sleep(SETTLE)
            begin = time.perf_counter()
            losses.append(train(updates))
            times[name].append((time.perf_counter() - begin) / updates * 1e3)
        deviation = max(deviation, *(abs(loss / losses[0] - 1) for loss in losses))
    return {
        "task": task.name,
        "milliseconds": {name: median(values) for name, values in times.items()},
        "lowest": {name: min(values) for name, values in times.items()},
        "highest": {name: max(values) for name, values in times.items()},
        "losses_deviate": deviation,
    }


GUIDE = """
import numpy as np
{imports}

x, y = np.random.random((50, 10)), np.random.random((50, 1))
model = Sequential()
model.add(LSTM(50, activation="relu", input_shape=(10, 1)))
model.add(Dense(1))
model.compile(optimizer="adam", loss="mse")
model.fit(x, y, epochs=10{quiet})
print(model.predict(np.random.random((1, 10)){quiet}))
"""
OURS = "from streamlstm.sequential import LSTM, Dense, Sequential"
KERAS = """import os
os.environ["KERAS_BACKEND"] = "jax"
from keras import Sequential
from keras.layers import LSTM, Dense"""


def from_process_start(repeats: int = 5) -> dict[str, float]:
    """Seconds from process start to the prediction of the guide's example, medians by turns.

    50 windows of 10, ten epochs, as the text has it.
    """
    root = Path(__file__).parents[1]

    def seconds(imports: str, cache: str, quiet: str = "") -> float:
        script = GUIDE.format(imports=imports, quiet=quiet)
        begin = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-u", "-c", script],
            cwd=root,
            env=os.environ | {"NUMBA_CACHE_DIR": cache},
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            predicted = [time.perf_counter() for line in process.stdout if line.startswith("[[")]
        assert process.returncode == 0
        return predicted[-1] - begin

    ways = {"streamlstm, compiled before": (OURS, "")}
    if importlib.util.find_spec("keras"):
        ways["Keras (JAX)"] = KERAS, ", verbose=0"
    with tempfile.TemporaryDirectory() as cache:
        found = {"streamlstm, nothing compiled": seconds(OURS, cache)}
        runs = [
            {name: seconds(imports, cache, quiet) for name, (imports, quiet) in ways.items()}
            for _ in range(repeats)
        ]
    return found | {name: median(run[name] for run in runs) for name in ways}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    for task in TASKS:
        result = measure(task, options.updates, options.repeats)
        results.append(result)
        print(f"{task.name}: losses deviate by {result['losses_deviate']:.1e}")
        for name, value in result["milliseconds"].items():
            low, high = result["lowest"][name], result["highest"][name]
            ratio = value / result["milliseconds"]["streamlstm"]
            print(f"  {name:22} {value:8.2f} ms ({low:.2f} to {high:.2f})   x {ratio:.2f}")
    start = from_process_start()
    print("from process start to the prediction of the guide's example:")
    for name, value in start.items():
        print(f"  {name:30} {value:6.2f} s")
    if options.json:
        report = {"updates": options.updates, "repeats": options.repeats}
        options.json.write_text(
            json.dumps(report | {"tasks": results, "from_process_start_seconds": start}, indent=1)
        )


if __name__ == "__main__":
    main()
