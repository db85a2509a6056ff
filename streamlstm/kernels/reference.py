"""The oracle: the same step in plain float64 NumPy, to be read and compared with, not to be fast.

Offers the names of every backend: `allocate`, `step`, `to_host`, `from_host`, `warm_up`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from streamlstm.kernels.cell import Floats, Layer, Network, activation_code, padded

Doubles = NDArray[np.float64]

ACTIVATIONS: dict[str, Callable[[Doubles], Doubles]] = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0.0),
    "tanh": np.tanh,
    "sigmoid": lambda x: 0.5 * np.tanh(0.5 * x) + 0.5,
    "hard_sigmoid": lambda x: np.clip(x + 3.0, 0.0, 6.0) / 6.0,
}


@dataclass
class Buffers:
    """A network and the state of each slot, [slot, layer, (h, c), unit]; float64."""

    network: Network
    state: Doubles


def allocate(network: Network, capacity: int, threads: int | None = None) -> Buffers:
    """Zero states for `capacity` series; there is one thread, whatever is asked for."""
    for layer in network.layers:
        activation_code(layer.activation)
        activation_code(layer.recurrent_activation)
    units = max(padded(layer.weight_hh.shape[1]) for layer in network.layers)
    return Buffers(network, np.zeros((capacity, len(network.layers), 2, units)))


def cell(layer: Layer, x: Doubles, h: Doubles, c: Doubles) -> tuple[Doubles, Doubles]:
    """(h', c') of a layer: x (n, I), h and c (n, H)."""
    gates = x @ layer.weight_ih.T.astype(float) + h @ layer.weight_hh.T.astype(float) + layer.bias
    i, f, g, o = np.split(gates, 4, axis=1)
    act = ACTIVATIONS[layer.activation]
    recurrent = ACTIVATIONS[layer.recurrent_activation]
    c = recurrent(f) * c + recurrent(i) * act(g)
    return recurrent(o) * act(c), c


def step(
    buffers: Buffers,
    slots: NDArray[np.int32],
    inputs: Floats,
    rounds: NDArray[np.int64],
    outputs: NDArray[np.floating],
) -> None:
    """Move each series one step per row, round after round; see `cpu.step`."""
    head = buffers.network.head
    for start, stop in pairwise(rounds):
        rows = slots[start:stop]
        skip = inputs[start:stop].astype(float)
        x = skip
        for number, layer in enumerate(buffers.network.layers):
            hidden = layer.weight_hh.shape[1]
            h, c = buffers.state[rows, number, 0, :hidden], buffers.state[rows, number, 1, :hidden]
            h, c = cell(layer, x, h, c)
            buffers.state[rows, number, 0, :hidden] = h
            buffers.state[rows, number, 1, :hidden] = c
            x = h
        out = x @ head.weight.T.astype(float) + skip @ head.skip.T.astype(float) + head.bias
        outputs[start:stop] = ACTIVATIONS[head.activation](out)


def to_host(buffers: Buffers, slots: NDArray[np.int32]) -> Floats:
    """The records of some slots, float32 (n, layers, 2, units)."""
    return buffers.state[slots].astype(np.float32)


def from_host(buffers: Buffers, slots: NDArray[np.int32], records: Floats) -> None:
    """Set the records of some slots from (n, layers, 2, units)."""
    buffers.state[slots] = records


def warm_up(buffers: Buffers) -> None:
    """Nothing to compile."""
