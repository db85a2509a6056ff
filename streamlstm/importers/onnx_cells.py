"""LSTM, GRU and RNN nodes of ONNX as layers of ours: the order of gates, biases, activations."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm.importers.onnx_graph import Graph, Values, attributes, label
from streamlstm.importers.parts import Floats, Recurrent, RefusedError

GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""Where our gates lie: ONNX has i, o, f, c and z, r, h, ours are i, f, g, o and r, z, n."""
DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
PLAIN = {
    "tanh": "tanh", "sigmoid": "sigmoid", "relu": "relu", "softsign": "softsign",
    "softplus": "softplus", "mish": "mish", "hardswish": "hard_silu", "exp": "exponential",
}  # fmt: skip
NUMBERS: dict[str, tuple[float | None, float | None]] = {
    "hardsigmoid": (0.2, 0.5), "affine": (1.0, 0.0), "elu": (1.0, None), "leakyrelu": (0.01, None),
}  # fmt: skip
"""The alpha and beta of activations that have them, where the node does not say."""
ACTIVATIONS = (*PLAIN, *NUMBERS)
"""Of those that are nodes, and of those of cells, whose names are spelled in any case."""


class Activation(NamedTuple):
    """ONNX's activation at x is ours at ``factor * x + shift``."""

    name: str
    factor: float = 1.0
    shift: float = 0.0


def activation(where: str, name: str, alpha: float, beta: float) -> Activation:
    """Ours.

    Raises:
        RefusedError: there is none that does the same.
    """
    low = name.lower()
    if low in PLAIN:
        return Activation(PLAIN[low])
    if low == "hardsigmoid" and alpha > 0:  # ours is x / 6 + 1 / 2
        return Activation("hard_sigmoid", _near(6 * alpha, 1.0), _near(6 * (beta - 0.5), 0.0))
    if low == "affine" and (alpha, beta) == (1, 0):
        return Activation("linear")
    if low == "elu" and _near(alpha, 1.0) == 1:
        return Activation("elu")
    if low == "leakyrelu" and _near(alpha, 0.2) == 0.2:
        return Activation("leaky_relu")
    known = (
        "Tanh, Sigmoid, Relu, HardSigmoid, Softsign, Softplus, Affine with alpha 1 and beta 0, Elu"
        " with alpha 1 and LeakyRelu with 0.2"
    )
    raise RefusedError(f"{where}: activation {name} cannot be run; those that can: {known}")


def _near(number: float, plain: float) -> float:
    """A sixth in float32 is a sixth: what it is all but equal to."""
    return plain if abs(number - plain) < 1e-6 else number


class Cells(NamedTuple):
    """A node of recurrent cells."""

    layer: Recurrent
    batch_first: bool
    plain: bool
    """onnx' own evaluator computes it: it ignores activations other than the usual ones"""


def cells(graph: Graph, node: Any) -> Cells:
    """The layer that a node is, its states left aside.

    Raises:
        RefusedError: it does what no layer of ours does.
    """
    op, where, given = node.op_type, label(node), attributes(node)
    inputs = [*node.input, *[""] * 8]
    direction = given.get("direction", b"forward").decode()
    if direction != "forward":
        raise RefusedError(
            f"{where}: direction is {direction}; a stream is known up to now, so only forward"
            " layers can be run"
        )
    if "clip" in given:
        raise RefusedError(f"{where}: clips what goes into its activations; leave clip out")
    if given.get("input_forget"):
        raise RefusedError(f"{where}: couples its input and forget gates (input_forget)")
    if op == "LSTM" and inputs[7]:
        raise RefusedError(f"{where}: has peepholes (input P); a layer without can be run")
    gates = GATES[op]
    weight = constant(graph, where, inputs[1])
    hidden = constant(graph, where, inputs[2])
    units, rows = hidden.shape[-1], len(gates) * hidden.shape[-1]
    bias = constant(graph, where, inputs[3]) if inputs[3] else np.zeros((1, 2 * rows))
    shapes = (weight.shape[:2], hidden.shape, bias.shape)
    if weight.ndim != 3 or shapes != ((1, rows), (1, rows, units), (1, 2 * rows)):
        raise RefusedError(f"{where}: weights of shapes {weight.shape} and {shapes[1:]} do not fit")
    ours = _activations(where, op, given)
    of_gates = {"LSTM": (0, 0, 1, 0), "GRU": (0, 0, 1), "RNN": (0,)}[op]
    factor = np.repeat([ours[k].factor for k in of_gates], units)
    shift = np.repeat([ours[k].shift for k in of_gates], units)

    def ordered(array: Floats) -> Floats:
        split = array.reshape(len(gates), units, -1)[list(gates)]
        return split.reshape(array.shape) * (factor[:, None] if array.ndim > 1 else factor)

    of_input, own = ordered(bias[0, :rows]), ordered(bias[0, rows:])
    apart = op == "GRU" and bool(given.get("linear_before_reset", 0))
    layer = Recurrent(
        where,
        op.lower(),
        ordered(weight[0]).astype(np.float32),
        ordered(hidden[0]).astype(np.float32),
        ((of_input if apart else of_input + own) + _or_nothing(shift)).astype(np.float32),
        own.astype(np.float32) if apart else None,
        ours[-1].name,
        ours[0].name if op != "RNN" else "sigmoid",
    )
    batch_first = bool(given.get("layout", 0))
    usual = [each.name for each in ours] == [PLAIN[each.lower()] for each in DEFAULTS[op]]
    return Cells(layer, batch_first, usual and not batch_first)


def _or_nothing(shift: Floats) -> Floats:
    """-0.0 changes no bit of what it is added to; 0.0 makes -0.0 another."""
    return np.where(shift == 0, -0.0, shift)


def _activations(where: str, op: str, given: dict[str, Any]) -> list[Activation]:
    """Of the gates, of the new value, and of an LSTM of its state, which has to be the same."""
    names = [each.decode() for each in given.get("activations", [])] or [*DEFAULTS[op]]
    numbers = []
    for number, what in enumerate(("activation_alpha", "activation_beta")):
        said = list(given.get(what, []))
        usual = [NUMBERS.get(name.lower(), (None, None))[number] for name in names]
        needed = [each for each in usual if each is not None]
        if len(said) > len(needed) and len({*said}) > 1:
            raise RefusedError(f"{where}: {what} has {len(said)} numbers, its activations take"
                               f" {len(needed)}")  # fmt: skip
        own = iter([*said[: len(needed)], *needed[len(said) :]])
        numbers.append([0.0 if each is None else next(own) for each in usual])
    ours = [activation(where, *each) for each in zip(names, *numbers, strict=True)]
    if len(ours) != len(DEFAULTS[op]):
        raise RefusedError(f"{where}: has {len(ours)} activations, not {len(DEFAULTS[op])}")
    if op == "LSTM" and (ours[2] != Activation(ours[1].name) or ours[1] != ours[2]):
        raise RefusedError(
            f"{where}: {names[1]} makes its new values and {names[2]} its output; both have to be"
            " the same activation, as it is"
        )
    return ours


def constant(
    graph: Graph, where: str, name: str, known: Values | None = None
) -> NDArray[np.float64]:
    """Numbers of the file, whatever nodes they come through.

    ``known``: values whose sizes they may depend on.

    Raises:
        RefusedError: they depend on an input, or are not finite.
    """
    try:
        with np.errstate(invalid="ignore"):  # a signalling NaN; refused below as any other
            found = graph.value(name, known or {}).astype(np.float64)
    except RefusedError as error:
        raise RefusedError(f"{where}: {name} is no constant of the file: {error}") from error
    if not np.isfinite(found).all():
        raise RefusedError(f"{where}: {name} holds NaN or infinity")
    return found
