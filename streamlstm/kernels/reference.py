"""The oracle: the same step in plain float64 NumPy, to be read and compared with, not to be fast.

Offers the names of every backend: `allocate`, `bytes_per_series`, `step`, `to_host`, `from_host`,
`warm_up`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from streamlstm.kernels.cell import (
    Floats,
    Layer,
    Network,
    activation_code,
    kind_of,
    record_shape,
    state_shape,
)

Doubles = NDArray[np.float64]

LARGEST_EXPONENT = 60 * math.log(2)  # beyond it the other backends stay there
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
_erf = np.vectorize(math.erf, otypes=[float])

ACTIVATIONS: dict[str, Callable[[Doubles], Doubles]] = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0.0),
    "tanh": np.tanh,
    "sigmoid": lambda x: 0.5 * np.tanh(0.5 * x) + 0.5,
    "hard_sigmoid": lambda x: np.clip(x + 3.0, 0.0, 6.0) / 6.0,
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
    "exponential": lambda x: np.exp(np.minimum(x, LARGEST_EXPONENT)),
    "gelu": lambda x: 0.5 * x * (1.0 + _erf(x / math.sqrt(2))),
    "hard_silu": lambda x: x * np.clip(x + 3.0, 0.0, 6.0) / 6.0,
    "hard_tanh": lambda x: np.clip(x, -1.0, 1.0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.2 * x),
    "log_sigmoid": lambda x: -np.logaddexp(0.0, -x),
    "mish": lambda x: x * np.tanh(np.logaddexp(0.0, x)),
    "relu6": lambda x: np.clip(x, 0.0, 6.0),
    "selu": lambda x: SELU_SCALE * np.where(x > 0, x, SELU_ALPHA * np.expm1(np.minimum(x, 0.0))),
    "silu": lambda x: x * (0.5 * np.tanh(0.5 * x) + 0.5),
    "soft_shrink": lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0.0),
    "softplus": lambda x: np.logaddexp(0.0, x),
    "softsign": lambda x: x / (1.0 + np.abs(x)),
    "sparse_plus": lambda x: np.where(x <= -1, 0.0, np.where(x < 1, (x + 1.0) ** 2 / 4.0, x)),
    "sparse_sigmoid": lambda x: np.clip((x + 1.0) / 2.0, 0.0, 1.0),
    "tanh_shrink": lambda x: x - np.tanh(x),
}


@dataclass
class Buffers:
    """A network and what is kept of each slot, [slot, *cell.record_shape]; float64."""

    network: Network
    state: Doubles


def allocate(network: Network, capacity: int, threads: int | None = None) -> Buffers:
    """Zero states for `capacity` series; there is one thread, whatever is asked for."""
    for layer in network.layers:
        activation_code(layer.activation)
        activation_code(layer.recurrent_activation)
    return Buffers(network, np.zeros((capacity, *record_shape(network))))


def bytes_per_series(network: Network) -> int:
    """What `allocate` takes for each series."""
    return math.prod(record_shape(network)) * 8


def lstm(layer: Layer, x: Doubles, h: Doubles, c: Doubles) -> tuple[Doubles, Doubles]:
    """(h', c') of a layer: x (n, I), h and c (n, H)."""
    gates = x @ layer.weight_ih.T.astype(float) + h @ layer.weight_hh.T.astype(float) + layer.bias
    i, f, g, o = np.split(gates, 4, axis=1)
    act = ACTIVATIONS[layer.activation]
    recurrent = ACTIVATIONS[layer.recurrent_activation]
    c = recurrent(f) * c + recurrent(i) * act(g)
    return recurrent(o) * act(c), c


def gru(layer: Layer, x: Doubles, h: Doubles) -> Doubles:
    """h' of a layer: x (n, I), h (n, H)."""
    act = ACTIVATIONS[layer.activation]
    recurrent = ACTIVATIONS[layer.recurrent_activation]
    of_x = np.split(x @ layer.weight_ih.T.astype(float) + layer.bias, 3, axis=1)
    own = layer.bias_hh if layer.reset_after else 0.0
    of_h = np.split(h @ layer.weight_hh.T.astype(float) + own, 3, axis=1)
    r, z = (recurrent(a + b) for a, b in zip(of_x[:2], of_h[:2], strict=True))
    if layer.reset_after:
        n = act(of_x[2] + r * of_h[2])
    else:
        n = act(of_x[2] + (r * h) @ np.split(layer.weight_hh, 3)[2].T.astype(float))
    return (1 - z) * n + z * h


def rnn(layer: Layer, x: Doubles, h: Doubles) -> Doubles:
    """h' of a layer: x (n, I), h (n, H)."""
    sums = x @ layer.weight_ih.T.astype(float) + h @ layer.weight_hh.T.astype(float) + layer.bias
    return ACTIVATIONS[layer.activation](sums)


def advance(network: Network, inputs: Doubles, state: Doubles) -> Doubles:
    """h of the top layer after a step; inputs (n, I), state (n, *cell.state_shape) is moved."""
    kind = kind_of(network)
    x = inputs
    for number, layer in enumerate(network.layers):
        parts = state[:, number, :, : layer.weight_hh.shape[1]]
        if kind == "lstm":
            parts[:, 0], parts[:, 1] = lstm(layer, x, parts[:, 0], parts[:, 1])
        else:
            parts[:, 0] = (rnn if kind == "rnn" else gru)(layer, x, parts[:, 0])
        x = parts[:, 0]
    return x


def over_window(network: Network, inputs: Doubles, ring: Doubles) -> Doubles:
    """h of the top layer over the last inputs of one series, inputs (I,); its ring is moved."""
    window, width = network.window, len(inputs)
    seen = int(ring[-1])
    kept = ring[:-1].reshape(window, width)
    kept[seen % window] = inputs
    seen += 1
    ring[-1] = window if seen == 2 * window else seen
    state = np.zeros((1, *state_shape(network)))
    for at in range(max(seen - window, 0), seen):
        top = advance(network, kept[at % window][None], state)
    return top[0]


def step(
    buffers: Buffers,
    slots: NDArray[np.int32],
    inputs: NDArray[np.floating],
    rounds: NDArray[np.int64],
    outputs: NDArray[np.floating],
) -> None:
    """Move each series one step per row, round after round; see `cpu.step`."""
    network, head = buffers.network, buffers.network.head
    for start, stop in pairwise(np.unique([0, *rounds])):
        rows = slots[start:stop]
        x = inputs[start:stop].astype(float)
        state = buffers.state[rows]
        if network.window:
            pairs = zip(x, state, strict=True)
            h = np.array([over_window(network, *pair) for pair in pairs]).reshape(len(x), -1)
        else:
            h = advance(network, x, state)
        buffers.state[rows] = state
        out = h @ head.weight.T.astype(float) + x @ head.skip.T.astype(float) + head.bias
        outputs[start:stop] = ACTIVATIONS[head.activation](out)


def to_host(buffers: Buffers, slots: NDArray[np.int32]) -> Floats:
    """The records of some slots, float32 (n, *cell.record_shape)."""
    return buffers.state[slots].astype(np.float32)


def from_host(buffers: Buffers, slots: NDArray[np.int32], records: Floats) -> None:
    """Set the records of some slots from (n, *cell.record_shape)."""
    buffers.state[slots] = records


def clear(buffers: Buffers, slots: NDArray[np.int32]) -> None:
    """Set the records of some slots to zero."""
    buffers.state[slots] = 0


def warm_up(buffers: Buffers) -> None:
    """Nothing to compile."""
