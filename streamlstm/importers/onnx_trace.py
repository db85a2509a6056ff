"""What a graph does, found by running it on numbers that say where they came from."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.importers.onnx_cells import (
    ACTIVATIONS,
    NUMBERS,
    Activation,
    Cells,
    activation,
    cells,
    constant,
)
from streamlstm.importers.onnx_graph import OURS, RECURRENT, Graph, attributes, label
from streamlstm.importers.parts import Dense, Floats, Parts, RefusedError, upright

Positions = NDArray[np.int64]

MOVING = ("Transpose", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Gather", "Slice", "Split",
          "Expand", "Concat", "Identity", "Dropout", "Cast")  # fmt: skip
"""Nodes that give the numbers that they are given; what they do with them is seen by running."""
ARITHMETIC = ("Add", "Sub", "Mul", "Div")
CLIPPING = ("Clip", "Min", "Max")
CLIPPED = {
    (0.0, np.inf): Activation("relu"), (0.0, 1.0): Activation("hard_sigmoid", 6.0, -3.0),
    (0.0, 6.0): Activation("relu6"), (-1.0, 1.0): Activation("hard_tanh"),
}  # fmt: skip
"""What it is to be clipped to these bounds."""
FIRST = 1 << 40
"""Positions begin here, so that no constant of a file is one."""
LARGEST = 1 << 26
"""Numbers of an input that is tried."""
ELSEWHERE = 1 << 60
"""Positions from here on are of no signal."""


def open_shape(graph: Graph, sizes: Sequence[int]) -> list[int]:
    """Of the input, with ``sizes`` for its open dimensions and the width that the first layer has.

    Dimensions of one name are of one size.
    """
    said = graph.shape(graph.source())
    left = iter([*sizes, *range(11, 11 + len(said))])
    first = graph.recurrent()[0]
    width = constant(graph, label(first), first.input[1]).shape[-1]
    shape: list[int] = []
    for at, size in enumerate(said):
        if isinstance(size, int) and size > 0:
            shape.append(size)
        elif at and at == len(said) - 1 and (width > 1 or at == 2):
            shape.append(width)
        else:
            shape.append(next(left))
    if np.prod(shape, dtype=float) > LARGEST:
        raise RefusedError(f"input {graph.source()} of the shape {shape} is too large")
    return shape


class Trace:
    """Follows numbers through the graph that say where they came from.

    What a layer gives is a signal, (T, B, width), as the graph's input is one; each of its numbers
    has a position, and no other has the same. The nodes between two layers are run on positions,
    and what comes out says what they do.
    """

    def __init__(self, graph: Graph, shape: Sequence[int]) -> None:
        """Of an input of this shape.

        Raises:
            RefusedError: a node cannot be run.
        """
        self.graph = graph
        self.source = graph.source()
        self.shape = list(shape)
        self.layers: list[tuple[Any, Cells]] = []
        self.stateful = False
        self.states: dict[str, NDArray[np.int64]] = {}
        self.head = _Head()
        self.notes: list[str] = []
        self.signal, self.first = tuple(shape), FIRST
        x = self._numbers()
        self.known: dict[str, Positions] = {self.source: x}
        self.loc, self.scale = np.zeros(x.size), np.ones(x.size)  # what is given is scaled by
        self.scaled = False
        way = graph.between(self.source)
        for node, names in way:
            if len(names) > 1 and node.op_type not in MOVING:
                raise RefusedError(
                    f"{label(node)}: joins {' and '.join(names)}; only a plain chain of layers can"
                    " be run"
                )
        for node, names in way:
            self._follow(node, names[0])
        self._end()

    def _numbers(self) -> Positions:
        """The positions of the latest signal."""
        return _numbered(self.signal, self.first)

    def _next_signal(self, *shape: int) -> None:
        self.first += int(np.prod(self.signal))
        self.signal = shape

    def _inside(self, where: str, name: str) -> Positions:
        """Positions in the latest signal, from 0, that come by an input of a node.

        Raises:
            RefusedError: something else comes, too.
        """
        at = self.graph.value(name, self.known)
        inside = (at >= self.first) & (at < self.first + np.prod(self.signal))
        if at.dtype.kind != "i" or not inside.all():
            before = self.head.name or (self.layers and self.layers[-1][1].layer.name)
            raise RefusedError(f"{where}: does not take what {before or self.source} gives alone")
        return at - self.first

    def _follow(self, node: Any, name: str) -> None:
        op = node.op_type
        if op in MOVING and node.domain in OURS:
            self._move(node, name)
            return
        at = self._inside(label(node), name)
        if op in RECURRENT and node.domain in OURS:
            self._recurrent(node, at)
        elif op in ("Gemm", "MatMul") and node.domain in OURS:
            self._dense(node, name, at)
        elif op in ARITHMETIC and node.domain in OURS:
            self._arithmetic(node, name, at)
        elif op.lower() in ACTIVATIONS and node.domain in OURS:
            self._activation(node, at)
        elif op in CLIPPING and node.domain in OURS:
            self._clipping(node, name, at)
        else:
            raise RefusedError(f"{label(node)}: {op} cannot be run; leave it out")

    def _move(self, node: Any, name: str) -> None:
        import onnx

        if node.op_type == "Dropout":
            self.notes.append(f"{label(node)} does nothing once a model is fitted")
        if node.op_type != "Cast":
            return
        to = onnx.helper.tensor_dtype_to_np_dtype(attributes(node)["to"])
        if np.issubdtype(to, np.integer) or to == np.bool_:
            raise RefusedError(f"{label(node)}: rounds to {to}")
        self.known[node.output[0]] = self.graph.value(name, self.known)

    def _recurrent(self, node: Any, at: Positions) -> None:
        where = label(node)
        if self.head.used:
            raise RefusedError(f"{where}: comes after {self.head.name}; the head has to be last")
        found = cells(self.graph, node)
        if at.ndim != 3:
            raise RefusedError(f"{where}: is given {at.ndim} dimensions, not 3")
        steps = at.swapaxes(0, 1) if found.batch_first else at
        if steps.shape[2] != found.layer.weight_ih.shape[1]:
            raise RefusedError(
                f"{where}: is given {steps.shape[2]} numbers a step, its weights take"
                f" {found.layer.weight_ih.shape[1]}"
            )
        if not self.layers:
            if not np.array_equal(np.sort(at, axis=None), np.arange(np.prod(self.shape))):
                raise RefusedError(f"{where}: is not given each number of {self.source} once")
            self.entry = steps
        elif not np.array_equal(steps, _numbered(self.signal, 0)):
            before = self.layers[-1][1].layer.name
            raise RefusedError(f"{where}: is not given all steps of {before} as they come")
        T, B, _ = steps.shape
        units = found.layer.weight_hh.shape[1]
        self._check_lengths(node, T)
        self._check_states(node, B)
        self.layers.append((node, found))
        self._next_signal(T, B, units)
        y = self._numbers()
        elsewhere = _numbered((1, B, units), ELSEWHERE)
        outputs = [y[:, None], y[-1:], elsewhere]
        if found.batch_first:
            outputs = [y.swapaxes(0, 1)[:, :, None], y[-1][:, None], elsewhere.swapaxes(0, 1)]
        self.known |= dict(zip(node.output, outputs, strict=False))

    def _check_lengths(self, node: Any, steps: int) -> None:
        """Of sequences: whole ones, if they are said."""
        if len(node.input) > 4 and (name := node.input[4]):
            lengths = self.graph.value(name, self.known)
            if not (lengths == steps).all():
                raise RefusedError(f"{label(node)}: stops early (sequence_lens)")

    def _check_states(self, node: Any, batch: int) -> None:
        """From zero, or from an input of the graph: then the state runs on."""
        for which, name in zip(("initial_h", "initial_c"), node.input[5:7], strict=False):
            if not name:
                continue
            self._offer_states(batch)
            state = self.graph.value(name, self.known)
            given = (state < 0).all() and len({*state.flat}) == state.size
            if not given and state.any():
                raise RefusedError(
                    f"{label(node)}: {which} is not zero; a series starts from zero. Reset the"
                    " states of a stateful model before it is exported"
                )
            self.stateful |= bool(given)

    def _offer_states(self, batch: int) -> None:
        """Positions below zero for the graph's other inputs."""
        said = dict(zip(self.graph.shape(self.source), self.shape, strict=True))
        for name in self.graph.inputs.keys() - {self.source} - self.states.keys():
            shape = [
                size if isinstance(size, int) and size > 0 else (size and said.get(size)) or batch
                for size in self.graph.shape(name)
            ]
            if np.prod(shape, dtype=float) > LARGEST:
                raise RefusedError(f"{name}: a state of the shape {shape}")
            self.states[name] = -_numbered(shape, 1)
            self.known[name] = self.states[name]

    def _dense(self, node: Any, name: str, at: Positions) -> None:
        where = label(node)
        if not self.layers:
            raise RefusedError(f"{where}: is before the first recurrent layer; leave it out")
        self.head.settle()
        if self.head.activation is not None:
            raise RefusedError(
                f"{where}: comes after {self.head.name}, whose activation is"
                f" {self.head.activation}; streamlstm has one head"
            )
        if node.input[0] != name:
            raise RefusedError(f"{where}: has its weights on the left")
        given = attributes(node) if node.op_type == "Gemm" else {}
        weight = constant(self.graph, where, node.input[1])
        if weight.ndim != 2:
            raise RefusedError(f"{where}: its weights have {weight.ndim} dimensions, not 2")
        weight = weight if given.get("transB") else weight.T
        at = at.T if given.get("transA") else at
        O, H = weight.shape  # noqa: E741
        if at.shape[-1:] != (self.signal[2],) or self.signal[2] != H:
            raise RefusedError(f"{where}: takes {H} numbers, the layer gives {self.signal[2]}")
        rows, columns = np.divmod(at, H)
        if (columns != np.arange(H)).any() or (rows != rows[..., :1]).any():
            raise RefusedError(f"{where}: does not take the layer's units in their order")
        bias = np.full(O, -0.0)
        if biased := len(node.input) > 2 and bool(node.input[2]):
            said = constant(self.graph, where, node.input[2]) * given.get("beta", 1.0)
            if said.ndim and said.size != said.shape[-1]:
                raise RefusedError(f"{where}: its bias has the shape {said.shape}")
            bias = np.broadcast_to(said.reshape(-1), O)
        self.head.begin(where, weight * given.get("alpha", 1.0), bias, biased)
        self._next_signal(*self.signal[:2], O)
        self.known[node.output[0]] = rows[..., :1] * O + np.arange(O) + self.first

    def _arithmetic(self, node: Any, name: str, at: Positions) -> None:
        where = label(node)
        left = node.input[0] == name
        said = self._beside(where, node.input[1 if left else 0])
        shape = np.broadcast_shapes(at.shape, said.shape)
        if np.prod(shape) != at.size:
            raise RefusedError(f"{where}: repeats what it is given")
        at, numbers = at.reshape(shape), np.broadcast_to(said, shape)
        if node.op_type == "Div" and (not left or (numbers == 0).any()):
            raise RefusedError(f"{where}: divides by what it is given, or by zero")
        same = 1 if node.op_type in ("Mul", "Div") else 0
        if (numbers == same).all() and (left or node.op_type != "Sub"):
            pass  # a dropout that drops nothing, say
        elif not self.layers:
            self._scale_input(node.op_type, left, at.reshape(-1), numbers.reshape(-1))
        elif self.head.used:
            of = np.ravel(at % self.signal[2])
            by_output = np.zeros(self.signal[2])
            by_output[of] = numbers.reshape(-1)
            if (by_output[of] != numbers.reshape(-1)).any():
                raise RefusedError(f"{where}: is not the same for each step")
            self.head.scale(node.op_type, left, by_output)
        else:
            raise RefusedError(
                f"{where}: arithmetic between layers cannot be run; leave it out, or fold it into"
                " the weights"
            )
        self.known[node.output[0]] = at + self.first

    def _beside(self, where: str, name: str) -> Floats:
        """What a node is given beside the signal: of the file, or made by the signal's sizes."""
        signals = {each: at for each, at in self.known.items() if each not in self.states}
        return constant(self.graph, where, name, signals)

    def _scale_input(self, op: str, left: bool, at: Positions, numbers: Floats) -> None:
        """What is done to (x - loc) / scale, in terms of these."""
        if at.size != self.scale.size:
            raise RefusedError(f"input {self.source} is not used whole")
        numbers = numbers[np.argsort(at)]
        self.scaled = True
        if op == "Mul":
            self.scale /= np.where(numbers == 0, np.inf, numbers)
        elif op == "Div":
            self.scale *= numbers
        elif left or op == "Add":
            self.loc += self.scale * (numbers if op == "Sub" else -numbers)
        else:
            self.scale = -self.scale
            self.loc += self.scale * -numbers

    def _activation(self, node: Any, at: Positions) -> None:
        where = label(node)
        self.head.settle()
        self._check_activated(node)
        given = attributes(node)
        usual = NUMBERS.get(node.op_type.lower(), (None, None))
        alpha, beta = (given.get(*each) for each in zip(("alpha", "beta"), usual, strict=True))
        self.head.activate(activation(where, node.op_type, alpha or 0.0, beta or 0.0))
        self.known[node.output[0]] = at + self.first

    def _check_activated(self, node: Any) -> None:
        if not self.head.used or self.head.activation is not None:
            before = self.head.name if self.head.used else "the recurrent layers"
            raise RefusedError(f"{label(node)}: {node.op_type} after {before} cannot be run there")

    def _clipping(self, node: Any, name: str, at: Positions) -> None:
        where = label(node)
        self._check_activated(node)
        others = list(node.input[1:])
        if node.op_type != "Clip":
            others = [each for each in node.input if each != name]
            others = [*others, ""] if node.op_type == "Max" else ["", *others]
        bounds = [self._beside(where, each) if each else None for each in [*others, "", ""][:2]]
        if any(each is not None and each.size != 1 for each in bounds) or len(others) > 2:
            raise RefusedError(f"{where}: does not clip to the same bounds everywhere")
        low, high = (None if each is None else each.item() for each in bounds)
        self.head.clip(-np.inf if low is None else low, np.inf if high is None else high)
        self.known[node.output[0]] = at + self.first

    def _end(self) -> None:
        """Which of the numbers that come out are the forecast after the last step."""
        name = self.graph.outputs[0]
        at = self._inside(f"output {name}", name).reshape(-1)
        if not self.layers:
            raise RefusedError(f"output {name} goes past the recurrent layers")
        T, B, O = self.signal  # noqa: E741
        rows, outputs = np.divmod(at, O)
        self.picked = np.flatnonzero(rows == (T - 1) * B)
        self.order = outputs[self.picked]
        if not np.array_equal(np.sort(self.order), np.arange(O)):
            raise RefusedError(f"output {name} does not hold each number of the last step once")
        self.notes += [f"output {each} is left out" for each in self.graph.outputs[1:]]

    def parts(self) -> Parts:
        """What was found."""
        T, at = len(self.entry), self.entry
        layers = [found.layer for _, found in self.layers]
        loc = scale = None
        if self.scaled:
            loc, scale = self.loc[at[0, 0]], self.scale[at[0, 0]]
            if (self.loc[at] != loc).any() or (self.scale[at] != scale).any():
                raise RefusedError(f"input {self.source} is not scaled alike at each step")
            if not (scale.all() and np.isfinite(scale).all()):
                raise RefusedError(f"input {self.source} is scaled by zero, or beyond all numbers")
            layers[0], scale = upright(layers[0], scale)
        fixed = self.time_axis is None or isinstance(self._said(self.time_axis), int)
        head, out_loc, out_scale = self.head.parts(self.signal[2], self.order)
        return Parts(
            layers,
            head,
            loc,
            scale,
            out_loc,
            out_scale,
            T if fixed and not self.stateful else 0,
            self.graph.coarse,
            tuple(self.notes),
        )

    def _said(self, axis: int) -> int | str:
        return self.graph.shape(self.source)[axis] or ""

    @property
    def time_axis(self) -> int | None:
        """Of the input; None: there is a single step, which is then fixed."""
        if len(self.entry) == 1:
            return None
        places = [np.unravel_index(p, self.shape) for p in self.entry[:2, 0, 0]]
        return int(np.flatnonzero(np.not_equal(*places))[0])

    def shape_for(self, steps: int) -> list[int]:
        """Of an input of so many steps, one series and what else the file fixes."""
        places = np.unravel_index(self.entry[0, 0], self.shape)
        width_axes = [axis for axis, at in enumerate(places) if (at != at[0]).any()]
        shape = []
        for axis, size in enumerate(self.graph.shape(self.source)):
            if isinstance(size, int) and size > 0:
                shape.append(size)
            elif axis == self.time_axis:
                shape.append(steps)
            else:
                shape.append(self.shape[axis] if axis in width_axes else 1)
        return shape

    def feeds(self, inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The graph's inputs where each series has ``inputs`` (T, I), and starts from zero."""
        x = np.zeros(self.shape, self.graph.dtype(self.source))
        x.reshape(-1)[self.entry] = np.asarray(inputs)[:, None]
        zeros = {
            name: np.zeros(state.shape, self.graph.dtype(name))
            for name, state in self.states.items()
        }
        return {self.source: x, **zeros}


class _Head:
    """The dense layer at the end, and what is done to its outputs, while they are followed."""

    weight: Floats
    bias: Floats
    out_loc: Floats
    out_scale: Floats

    def __init__(self) -> None:
        self.used = False
        self.name = ""
        self.activation: str | None = None
        self.low, self.high = -np.inf, np.inf

    def begin(self, name: str, weight: Floats, bias: Floats, biased: bool) -> None:
        """A layer; upon another, linear one the two are one."""
        if self.used:
            bias = weight @ (self.bias * self.out_scale + self.out_loc) + bias
            weight = weight @ (self.weight * self.out_scale[:, None])
        self.used, self.name = True, name
        self.weight, self.bias, self.biased = weight, bias, biased
        self.scaled = False
        self.out_loc, self.out_scale = np.full(len(weight), -0.0), np.ones(len(weight))

    def scale(self, op: str, left: bool, numbers: Floats) -> None:
        """What follows it; the first sum is its bias."""
        self.settle()
        if op == "Add" and not self.biased and not self.scaled and self.activation is None:
            self.bias, self.biased = self.bias + numbers, True
            return
        self.scaled = True
        if op in ("Mul", "Div"):
            by = numbers if op == "Mul" else 1 / numbers
            self.out_loc, self.out_scale = self.out_loc * by, self.out_scale * by
        elif left or op == "Add":
            self.out_loc = self.out_loc + (numbers if op == "Add" else -numbers)
        else:
            self.out_loc, self.out_scale = numbers - self.out_loc, -self.out_scale

    def clip(self, low: float, high: float) -> None:
        """Clip its outputs, which may take a node for each bound."""
        self.low, self.high = max(self.low, low), min(self.high, high)

    def settle(self) -> None:
        """Nothing more is clipped: it is an activation.

        Raises:
            RefusedError: there is none that does the same.
        """
        bounds = self.low, self.high
        if bounds == (-np.inf, np.inf):
            return
        if bounds not in CLIPPED:
            raise RefusedError(
                f"{self.name}: is clipped to {self.low:g} to {self.high:g}; 0 and up (relu), 0 to"
                " 1, 0 to 6 and -1 to 1 can be run"
            )
        self.low, self.high = -np.inf, np.inf
        self.activate(CLIPPED[bounds])

    def activate(self, of: Activation) -> None:
        """What was done before it becomes part of the weights."""
        factor = self.out_scale * of.factor
        self.weight = self.weight * factor[:, None]
        self.bias = self.bias * factor + (self.out_loc * of.factor + of.shift)
        self.out_loc, self.out_scale = np.full(len(self.bias), -0.0), np.ones(len(self.bias))
        self.activation, self.scaled = of.name, False

    def parts(
        self, width: int, order: Positions
    ) -> tuple[Dense | None, Floats | None, Floats | None]:
        """Head, out_loc and out_scale, outputs in ``order``."""
        self.settle()
        if not self.used:
            if np.array_equal(order, np.arange(width)):
                return None, None, None
            self.begin("output", np.eye(width), np.zeros(width), True)
        head = Dense(
            self.name,
            self.weight[order].astype(np.float32),
            self.bias[order].astype(np.float32),
            self.activation or "linear",
        )
        if not self.scaled:
            return head, None, None
        return head, self.out_loc[order], self.out_scale[order]


def _numbered(shape: Sequence[int], first: int) -> Positions:
    """An array of whole numbers from ``first`` on."""
    return np.arange(first, first + int(np.prod(shape)), dtype=np.int64).reshape(shape)
