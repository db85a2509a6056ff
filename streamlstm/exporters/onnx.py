"""A model as an ONNX file, for onnxruntime and whatever else reads them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.exporters.pipeline import described
from streamlstm.files import write_whole
from streamlstm.model import Model, ModelError, Spec, without
from streamlstm.model_file import FORMAT

SUFFIX = ".onnx"
OPSET = 17
GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}
"""Where ONNX' gates lie: ours are i, f, g, o and r, z, n, those are i, o, f, c and z, r, h."""
ACTIVATIONS = {
    "tanh": "Tanh", "sigmoid": "Sigmoid", "relu": "Relu", "hard_sigmoid": "HardSigmoid",
    "linear": "Affine", "elu": "Elu", "leaky_relu": "LeakyRelu", "softplus": "Softplus",
    "softsign": "Softsign",
}  # fmt: skip
OF_HEADS = ACTIVATIONS | {"exponential": "Exp", "hard_silu": "HardSwish"}
NUMBERS = {
    "hard_sigmoid": {"alpha": 1 / 6, "beta": 0.5}, "linear": {"alpha": 1.0, "beta": 0.0},
    "elu": {"alpha": 1.0}, "leaky_relu": {"alpha": 0.2},
}  # fmt: skip
"""of those that take some"""


def export(model: Model, path: Path) -> None:
    """Write the network of ``model`` to ``path``, opset 17, its spread and directions left out.

    Input ``x`` (steps, batch, I), and, if the state runs on, ``h0`` and of an LSTM ``c0``
    (layers, batch, H), which may be left out: they are then zero. Outputs ``y`` (steps, batch, O)
    and the states after the last step, ``h`` and ``c``. What x and y are to the data is said in the
    file's metadata.

    Raises:
        ModelError: the package for it is missing, or ONNX has no such activation.
        OSError: the file cannot be written.
    """
    try:
        import onnx
        from onnx import TensorProto, helper
    except ImportError as error:
        raise ModelError(
            "writing ONNX files needs the package onnx: pip install 'streamlstm[onnx]'"
        ) from error
    spec, weights = without(model.spec, model.weights, spread=True, directions=True)
    _check(spec)
    made = _Made(helper, onnx.numpy_helper)
    x = y = "x"
    states = spec.states
    start = {name: _start(made, spec, name) for name in states}
    ends: dict[str, list[str]] = {name: [] for name in states}
    for n in range(spec.layers):
        y = _layer(made, spec, weights, n, y, start, ends)
    _head(made, spec, weights, x, y)
    for name, each in ends.items():
        made.node("Concat", each, [name], axis=0)

    def tensor(name: str, *shape: int | str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    steps = spec.window or "steps"
    of_states = [(spec.layers, "batch", spec.hidden)] * len(states)
    graph = helper.make_graph(
        made.nodes,
        "streamlstm",
        [
            tensor("x", steps, "batch", spec.width),
            # a constant of the same name is what an input is if it is not given: one series'
            # zeros, so that its second dimension has to be open
            *(tensor(f"{name}0", spec.layers, f"{name}0_batch", spec.hidden) for name in states),
        ],
        [
            tensor("y", steps, "batch", spec.outputs),
            *(tensor(name, *shape) for name, shape in zip(states, of_states, strict=True)),
        ],
        made.constants,
    )
    file = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,
        producer_name="streamlstm",
    )
    helper.set_model_props(file, _metadata(model, spec))
    onnx.checker.check_model(file)
    write_whole(path, file.SerializeToString())


def _check(spec: Spec) -> None:
    of_layers = {each for both in spec.activations for each in both[: 1 + (spec.cell != "rnn")]}
    for used, known in ((of_layers, ACTIVATIONS), ({spec.head_activation}, OF_HEADS)):
        if strange := sorted(used - {*known}):
            raise ModelError(
                f"activation {strange[0]}: ONNX has none such there; it has {', '.join(known)}"
            )


class _Made:
    """Nodes and constants so far."""

    def __init__(self, helper: Any, numpy_helper: Any) -> None:
        self.helper, self.numpy_helper = helper, numpy_helper
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def node(self, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        """Name of its first output."""
        name = outputs[0]
        self.nodes.append(self.helper.make_node(op, inputs, outputs, name=name, **attributes))
        return name

    def constant(self, name: str, numbers: NDArray[Any]) -> str:
        """Its name."""
        contiguous = np.ascontiguousarray(numbers)
        self.constants.append(self.numpy_helper.from_array(contiguous, name))
        return name


def _start(made: _Made, spec: Spec, name: str) -> str:
    """(layers, batch, H) of the states at first: ``h0`` or ``c0``, or zeros for each series."""
    zeros = np.zeros((spec.layers, 1, spec.hidden), np.float32)
    given = made.constant(f"{name}0", zeros)
    if name == "h":
        made.node("Shape", ["x"], ["batch_size"], start=1, end=2)
        made.constant("one", np.array([1]))
        made.node("Concat", ["one", "batch_size", "one"], ["every_series"], axis=0)
    return made.node("Expand", [given, "every_series"], [f"{name}0_each"])


def _layer(
    made: _Made,
    spec: Spec,
    weights: Any,
    n: int,
    x: str,
    start: dict[str, str],
    ends: dict[str, list[str]],
) -> str:
    """Add layer ``n``; the name of its states at each step, (steps, batch, H)."""
    of, gates, H = spec.cell, GATES[spec.cell], spec.hidden

    def ordered(array: NDArray[np.float32]) -> NDArray[np.float32]:
        return array.reshape(len(gates), H, -1)[list(gates)].reshape(array.shape)

    apart = of == "gru" and spec.reset_after
    bias = weights[f"{of}.bias_{'ih_' * apart}l{n}"]
    # -0.0, since 0.0 would make another number of a -0.0 that it is added to
    own = weights[f"{of}.bias_hh_l{n}"] if apart else np.full_like(bias, -0.0)
    both = np.concatenate([ordered(bias), ordered(own)])
    inputs = [
        x,
        made.constant(f"W_l{n}", ordered(weights[f"{of}.weight_ih_l{n}"])[None]),
        made.constant(f"R_l{n}", ordered(weights[f"{of}.weight_hh_l{n}"])[None]),
        made.constant(f"B_l{n}", both[None]),
        "",  # the length of each sequence: all steps
    ]
    outputs = [f"{of}_l{n}"]
    for name, each in start.items():
        which = made.constant(f"{name}_layer_{n}", np.array([n]))
        inputs.append(made.node("Gather", [each, which], [f"{name}0_l{n}"], axis=0))
        outputs.append(f"{name}_l{n}")
        ends[name].append(outputs[-1])
    activation, recurrent = spec.activations[n]
    used = {"lstm": [recurrent, activation, activation], "gru": [recurrent, activation]}.get(
        of, [activation]
    )
    options: dict[str, Any] = {"activations": [ACTIVATIONS[each] for each in used]}
    for name in ("alpha", "beta"):
        numbers = [NUMBERS[each][name] for each in used if name in NUMBERS.get(each, {})]
        if numbers:
            options[f"activation_{name}"] = numbers
    if of == "gru":
        options["linear_before_reset"] = int(spec.reset_after)
    made.node(of.upper(), inputs, outputs, hidden_size=H, **options)
    if not n:
        made.constant("direction", np.array([1]))
    return made.node("Squeeze", [outputs[0], "direction"], [f"states_l{n}"])


def _head(made: _Made, spec: Spec, weights: Any, x: str, h: str) -> None:
    """Add y = activation(weight @ h + skip @ x + bias)."""
    sums = made.node("MatMul", [h, made.constant("head.weight", weights["head.weight"].T)], ["Wh"])
    if weights["head.skip"].any():
        skip = made.node("MatMul", [x, made.constant("head.skip", weights["head.skip"].T)], ["Sx"])
        sums = made.node("Add", [sums, skip], ["WhSx"])
    bias = made.constant("head.bias", weights["head.bias"])
    if spec.head_activation == "linear":
        made.node("Add", [sums, bias], ["y"])
        return
    made.node("Add", [sums, bias], ["before_activation"])
    options = NUMBERS.get(spec.head_activation, {})
    made.node(OF_HEADS[spec.head_activation], ["before_activation"], ["y"], **options)


def _metadata(model: Model, spec: Spec) -> dict[str, str]:
    """What the network alone does not say."""
    return {
        "streamlstm": json.dumps({"format": FORMAT, "spec": spec.model_dump(mode="json")}),
        "model": model.id,
        "description": "\n".join(described(spec)),
    }
