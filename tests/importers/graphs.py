"""ONNX graphs as exporters write them, in many ways of saying the same; truth by onnxruntime."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
Array = NDArray[Any]


@dataclass(frozen=True)
class Kind:
    """What to write."""

    seed: int = 0
    cell: str = "LSTM"
    widths: tuple[int, ...] = (5,)
    inputs: int = 3
    outputs: int = 2
    activations: tuple[str, ...] = ()
    alpha_beta: tuple[float, float] | None = None
    reset_after: int = 1
    layout: int = 0
    batch_first: bool = True
    biased: bool = True
    states: str = "none"  # zeros, shape, expand, input
    last: str = "slice"  # gather, state, all
    head: str = "gemm"  # transposed, matmul, none
    end: str = ""
    scaled: str = ""  # sub_div, mul_add
    rescaled: bool = False
    behind: str = ""  # weights: constant, transpose, half, double
    through: tuple[str, ...] = ()  # nodes that do nothing
    fixed: int = 0  # steps
    rank: int = 3
    opset: int = 17
    extra: dict[str, Any] = field(default_factory=dict)  # of each node of cells


class Writer:
    """Nodes and constants of a graph."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.rng = np.random.default_rng(kind.seed)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.number = 0

    def name(self, of: str) -> str:
        self.number += 1
        return f"model/é {of}:{self.number}" if self.kind.seed % 2 else f"/{of}_{self.number}"

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [self.name(op) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=self.name("node"), **attributes))
        return names if outputs > 1 else names[0]

    def ints(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def constant(self, array: Array) -> str:
        name = self.name("constant")
        self.constants.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def weight(self, array: Array) -> str:
        array, behind = array.astype(np.float32), self.kind.behind
        if behind == "constant":
            return self.node("Constant", value=numpy_helper.from_array(array))
        if behind == "transpose":
            return self.node("Transpose", self.constant(array.T))
        if behind in ("half", "double"):
            other = np.float16 if behind == "half" else np.float64
            return self.node("Cast", self.constant(array.astype(other)), to=TensorProto.FLOAT)
        return self.constant(array)

    def random(self, *shape: int) -> Array:
        found = self.rng.uniform(-0.6, 0.6, shape) / np.sqrt(shape[-1])
        return found.astype(np.float16 if self.kind.behind == "half" else np.float32)


def write(kind: Kind) -> Any:
    """The model: input x, output y."""
    w = Writer(kind)
    x = scaled(w, "x")
    if kind.rank == 2:
        x = w.node("Unsqueeze", x, w.ints(1))
    time_first = not kind.batch_first or kind.rank == 2
    width = kind.inputs
    for n, units in enumerate(kind.widths):
        if time_first == bool(kind.layout):  # as the node has it
            x, time_first = w.node("Transpose", x, perm=[1, 0, 2]), not time_first
        y, h = cells(w, n, x, width, units)
        width = units
        for op in kind.through:
            y = w.node(op, y, **({"to": TensorProto.FLOAT} if op == "Cast" else {}))
        x = w.node("Squeeze", y, w.ints(2 if kind.layout else 1))
        top = h
    x = end_of(w, x, top, time_first)
    y = head(w, x, width)
    sizes: list[Any] = [kind.fixed or "steps", "series", kind.inputs]
    if kind.batch_first:
        sizes[:2] = sizes[1::-1]
    if kind.rank == 2:
        sizes = [kind.fixed or "steps", kind.inputs]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)]
    if kind.states == "input":
        for name in ("h0", "c0")[: 1 + (kind.cell == "LSTM")]:
            shape = [len(kind.widths), "series", kind.widths[0]]
            inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    w.nodes.append(helper.make_node("Identity", [y], ["y"]))
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(w.nodes, "graph", inputs, [out], w.constants)
    opset = helper.make_opsetid("", kind.opset)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def scaled(w: Writer, x: str) -> str:
    loc, scale = w.rng.normal(size=w.kind.inputs), w.rng.uniform(0.5, 2, w.kind.inputs)
    if w.kind.scaled == "sub_div":
        x = w.node("Sub", x, w.constant(loc.astype(np.float32)))
        return w.node("Div", x, w.constant(scale.astype(np.float32)[None]))
    if w.kind.scaled == "mul_add":
        x = w.node("Mul", w.constant(scale.astype(np.float32)), x)
        return w.node("Add", x, w.constant(loc.astype(np.float32)))
    return x


def cells(w: Writer, n: int, x: str, width: int, units: int) -> tuple[str, str]:
    kind, rows = w.kind, GATES[w.kind.cell] * units
    inputs = [
        x,
        w.weight(w.random(1, rows, width)),
        w.weight(w.random(1, rows, units)),
        w.weight(w.random(1, 2 * rows)) if kind.biased else "",
        "",
    ]
    states = 1 + (kind.cell == "LSTM")
    inputs += [start(w, which, n, x, units) for which in range(states)]
    while not inputs[-1]:
        inputs.pop()
    options = dict(kind.extra)
    if kind.activations:
        options["activations"] = list(kind.activations)
    if kind.alpha_beta:
        both = [name for name in kind.activations if name in ("HardSigmoid", "Affine", "Elu")]
        takes = [kind.alpha_beta[0] if name != "Elu" else 1.0 for name in both]
        options["activation_alpha"] = takes
        options["activation_beta"] = [kind.alpha_beta[1] for name in both if name != "Elu"]
    if kind.cell == "GRU":
        options["linear_before_reset"] = kind.reset_after
    if kind.layout:
        options["layout"] = 1
    names = w.node(kind.cell, *inputs, outputs=1 + states, hidden_size=units, **options)
    return names[0], names[1]


def start(w: Writer, which: int, n: int, x: str, units: int) -> str:
    """A state's zeros, as exporters say them, (1, series, units)."""
    if w.kind.states == "none":
        return ""
    if w.kind.states == "input":
        return w.node("Slice", ("h0", "c0")[which], w.ints(n), w.ints(n + 1), w.ints(0))
    shape = w.node("Shape", x)
    series = w.node("Gather", shape, w.ints(0 if w.kind.layout else 1), axis=0)
    sizes = [w.ints(1), series] if not w.kind.layout else [series, w.ints(1)]
    shape = w.node("Concat", *sizes, w.ints(units), axis=0)
    if w.kind.states == "shape":
        return w.node("ConstantOfShape", shape)
    return w.node("Expand", w.constant(np.zeros((1, 1, 1), np.float32)), shape)


def end_of(w: Writer, x: str, h: str, time_first: bool) -> str:
    """(series, units), or of all steps."""
    axis = 0 if time_first else 1
    if w.kind.last == "state":
        return w.node("Squeeze", h, w.ints(1 if w.kind.layout else 0))
    if w.kind.last == "gather":
        return w.node("Gather", x, w.constant(np.array(-1)), axis=axis)
    if w.kind.last == "slice":
        far = w.ints(np.iinfo(np.int64).max)
        return w.node("Squeeze", w.node("Slice", x, w.ints(-1), far, w.ints(axis)), w.ints(axis))
    return x


def head(w: Writer, x: str, units: int) -> str:
    kind = w.kind
    if kind.head == "none":
        return x
    weight, bias = w.random(kind.outputs, units), w.random(1, kind.outputs)[0]
    if kind.last == "all" or kind.head == "matmul":
        x = w.node("MatMul", x, w.weight(weight.T))
        x = w.node("Add", w.weight(bias), x) if kind.biased else x
    elif kind.head == "gemm":
        x = w.node("Gemm", x, w.weight(weight), *[w.weight(bias)] * kind.biased, transB=1)
    else:
        x = w.node("Gemm", x, w.weight(weight.T), w.weight(bias), alpha=0.5, beta=2.0)
    if kind.end:
        x = w.node(kind.end, x)
    if kind.rescaled:
        x = w.node("Mul", x, w.constant(np.array(3, np.float32)))
        x = w.node("Add", x, w.constant(np.arange(kind.outputs, dtype=np.float32)))
    return x


def outputs_of(model: Any, kind: Kind, inputs: Array) -> Array:
    """(O,) what onnxruntime gives after ``inputs`` (T, I), from zero states."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = inputs if kind.rank == 2 else inputs[None] if kind.batch_first else inputs[:, None]
    feeds = {"x": x}
    for name in [each.name for each in session.get_inputs()][1:]:
        feeds[name] = np.zeros((len(kind.widths), 1, kind.widths[0]), np.float32)
    y: Array = session.run(None, feeds)[0]
    width = kind.widths[-1] if kind.head == "none" else kind.outputs
    return y.reshape(-1)[-width:]
