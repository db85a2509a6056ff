"""Small training problems, and what PyTorch makes of one of them."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm import bptt
from streamlstm.model import Spec

GOLDEN = np.load(Path(__file__).parent / "goldens" / "gradients.npz")
GOLDEN_SPEC = Spec(step_ns=1, hidden=13, layers=2, horizon=4, inputs=3)
Array = NDArray[Any]


def golden_problem(dtype: type) -> tuple[bptt.Net, Array, bptt.Chunk]:
    net = bptt.net_of(GOLDEN_SPEC)
    weights = {k: GOLDEN[f"weights.{k}"] for k in GOLDEN_SPEC.weight_shapes()}
    rows, steps, _ = GOLDEN["x"].shape
    state = np.zeros((2, 2, rows, net.units), dtype)
    state[:, 0, :, :13], state[:, 1, :, :13] = GOLDEN["start.h"], GOLDEN["start.c"]
    chunk = bptt.Chunk(
        steps,
        GOLDEN["x"].reshape(-1, 3).astype(dtype),
        GOLDEN["target"].reshape(-1, 4).astype(dtype),
        np.ones(4, dtype),
        np.array([[row * steps, steps, 0] for row in range(rows)]),
        state,
        np.zeros((0, 4), dtype),
    )
    return net, bptt.pack(GOLDEN_SPEC, weights, dtype), chunk


def random_problem(
    spec: Spec, rows: int, steps: int, dtype: type = np.float32, seed: int = 0
) -> tuple[bptt.Net, Array, bptt.Chunk]:
    """Random spans of random lengths, with states carried in, gaps and steps not scored."""
    rng = np.random.default_rng(seed)
    weights = {k: 0.3 * rng.normal(size=shape) for k, shape in spec.weight_shapes().items()}
    net, size = bptt.net_of(spec), 200
    target = rng.normal(size=(size, spec.outputs)).astype(dtype)
    target[rng.random(target.shape) < 0.1] = np.nan
    state = np.zeros((spec.layers, 2, rows, net.units), dtype)
    state[..., : spec.hidden] = 0.5 * rng.normal(size=(spec.layers, 2, rows, spec.hidden))
    chunk = bptt.Chunk(
        steps,
        rng.normal(size=(size, spec.width)).astype(dtype),
        target,
        rng.uniform(0.5, 2, spec.outputs).astype(dtype),
        np.stack(
            [
                rng.integers(0, size - steps, rows),
                rng.integers(steps - 2, steps + 1, rows),
                rng.integers(0, 3, rows),
            ],
            axis=1,
        ),
        state,
        np.zeros((0, spec.outputs), dtype),
    )
    return net, bptt.pack(spec, weights, dtype), chunk


def gradient(net: bptt.Net, theta: Array, chunk: bptt.Chunk, **options: Any) -> tuple[float, Array]:
    """Loss and gradient; the state of the chunk is left as it is."""
    drops = options.get("dropout", 0) + options.get("head_dropout", 0) > 0
    work = bptt.allocate(net, len(chunk.rows), chunk.steps, drops, theta.dtype.type)
    optimizer = bptt.adam(net, theta.dtype.type)
    same = chunk._replace(state=chunk.state.copy())
    loss = bptt.learn(net, theta, work, same, optimizer, 1, 0.0, **options)
    return loss, optimizer.gradient
