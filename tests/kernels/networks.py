"""Networks for the kernel tests: from the goldens and at random."""

from pathlib import Path
from typing import Any

import numpy as np

from streamlstm.kernels.cell import NO_BIAS, Head, Layer, Network

GOLDENS = Path(__file__).parent / "goldens"
SHORT = sorted(path.stem for path in GOLDENS.glob("short_*.npz"))
OTHERS = sorted(path.stem for path in GOLDENS.glob("[gr][rn][un]_*.npz"))
LONG = sorted(path.stem for path in GOLDENS.glob("long_*.npz"))


CELLS: dict[str, dict[str, Any]] = {
    "lstm": {},
    "gru": {"cell": "gru"},
    "gru_before": {"cell": "gru", "reset_after": False},
    "rnn": {"cell": "rnn"},
}


def golden(name: str) -> tuple[Network, dict[str, Any]]:
    """The network of a golden file and all its arrays."""
    with np.load(GOLDENS / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    activations = (
        str(arrays.get("activation", "tanh")),
        str(arrays.get("recurrent_activation", "sigmoid")),
    )
    layers = tuple(
        Layer(
            arrays[f"weight_ih_{n}"],
            arrays[f"weight_hh_{n}"],
            arrays[f"bias_{n}"],
            *activations,
            cell=str(arrays.get("cell", "lstm")),
            bias_hh=arrays.get(f"bias_hh_{n}", NO_BIAS),
        )
        for n in range(int(arrays["layers"]))
    )
    hidden, inputs = layers[-1].weight_hh.shape[1], arrays["inputs"].shape[1]
    head = Head(
        arrays.get("head_weight", np.zeros((1, hidden), np.float32)),
        arrays.get("head_bias", np.zeros(1, np.float32)),
        arrays.get("head_skip", np.zeros((1, inputs), np.float32)),
    )
    return Network(layers, head), arrays


def random_network(
    hidden: int,
    inputs: int = 1,
    layers: int = 1,
    outputs: int = 1,
    activation: str = "tanh",
    recurrent_activation: str = "sigmoid",
    head_activation: str = "linear",
    seed: int = 0,
    cell: str = "lstm",
    reset_after: bool = True,
    window: int = 0,
) -> Network:
    """Weights as PyTorch draws them, uniform on +-1/sqrt(H)."""
    random = np.random.default_rng(seed)

    def draw(*shape: int) -> Any:
        return random.uniform(-1, 1, shape).astype(np.float32) / np.float32(hidden**0.5)

    gates = {"lstm": 4, "gru": 3, "rnn": 1}[cell]
    stack = []
    for number in range(layers):
        width = inputs if number == 0 else hidden
        rows = gates * hidden
        weights = draw(rows, width), draw(rows, hidden), draw(rows)
        bias_hh = draw(rows) if cell == "gru" and reset_after else NO_BIAS
        kind = activation, recurrent_activation, cell, reset_after, bias_hh
        stack.append(Layer(*weights, *kind))
    head = Head(draw(outputs, hidden), draw(outputs), draw(outputs, inputs), head_activation)
    return Network(tuple(stack), head, window)
