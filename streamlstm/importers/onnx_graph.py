"""An ONNX file as a graph whose values can be asked for one by one.

What a piece of a graph does is found by running it, with the evaluator that the ``onnx`` package
brings along: so the reader in :mod:`streamlstm.importers.onnx` needs no rule for each way in which
an exporter says "the last time step".
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.importers.parts import RefusedError

OLDEST = 14
"""opset; before it an exporter says the same otherwise"""
RECURRENT = ("LSTM", "GRU", "RNN")
OURS = ("", "ai.onnx")
BY_CHANCE = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
             "Multinomial")  # fmt: skip
SIZES = ("Shape", "Size", "ConstantOfShape", "Range")
"""What comes of these holds sizes, not the values of what they are given."""
BY_FIRST = (*RECURRENT, "Reshape", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "Split",
            "Dropout")  # fmt: skip
"""What comes of these holds values of their first input alone."""
COARSE = ("FLOAT16", "BFLOAT16")
WRITTEN_OUT = (
    "cells written out step by step are not run; import the file of Keras' or PyTorch's that this"
    " one was made of"
)

Values = Mapping[str, NDArray[Any]]


def label(node: Any) -> str:
    """How a node is named to people."""
    return f"{node.name or next(iter(node.output), '?')} ({node.op_type})"


def attributes(node: Any) -> dict[str, Any]:
    """Of a node, by name."""
    import onnx

    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


class Graph:
    """The nodes of a file in an order in which they can be run, and the constants in it."""

    def __init__(self, path: Path) -> None:
        """Read it.

        Raises:
            RefusedError: it cannot be read, or the package for that is missing.
        """
        model = _load(path)
        self.opsets = list(model.opset_import)
        self.metadata = {each.key: each.value for each in model.metadata_props}
        graph = model.graph
        self.nodes = list(graph.node)
        self.constants = {each.name: each for each in graph.initializer}
        self.inputs = {each.name: each for each in graph.input if each.name not in self.constants}
        self.outputs = [each.name for each in graph.output]
        self.producers: dict[str, Any] = {}
        seen = {"", *self.constants, *self.inputs}
        for node in self.nodes:
            if not seen.issuperset(node.input):
                raise RefusedError(f"{label(node)}: takes what no node before it gives")
            seen.update(node.output)
            self.producers |= dict.fromkeys(node.output, node)
        if not self.outputs:
            raise RefusedError("there is no network in it")
        types = {model.graph.initializer[n].data_type for n in range(len(self.constants))}
        types |= {each.type.tensor_type.elem_type for each in graph.input}
        self.coarse = bool(types & {_type(name) for name in COARSE})
        """weights or inputs of 16 bits"""

    def recurrent(self) -> list[Any]:
        """The nodes that are layers of cells."""
        return [node for node in self.nodes if node.op_type in RECURRENT and node.domain in OURS]

    def shape(self, name: str) -> list[int | str]:
        """Of an input; a name, possibly empty, of a dimension that is not fixed."""
        dims = self.inputs[name].type.tensor_type.shape.dim
        return [dim.dim_value or dim.dim_param for dim in dims]

    def dtype(self, name: str) -> Any:
        """Of an input, NumPy's."""
        import onnx

        return onnx.helper.tensor_dtype_to_np_dtype(self.inputs[name].type.tensor_type.elem_type)

    def carried(self, node: Any) -> list[str]:
        """Those inputs of a node whose values come out of it again."""
        if node.op_type in SIZES:
            return []
        return list(node.input[:1] if node.op_type in BY_FIRST else node.input)

    def source(self) -> str:
        """The graph's input that the first layer of cells reads."""
        layers = self.recurrent()
        if not layers:
            why = self._hidden() or f"; {WRITTEN_OUT}"
            raise RefusedError(f"there is no LSTM, GRU or RNN node in it{why}")
        found, waiting = set(), [layers[0].input[0]]
        while waiting:
            name = waiting.pop()
            if name in self.inputs:
                found.add(name)
            elif name in self.producers:
                waiting += self.carried(self.producers[name])
        if len(found) != 1:
            what = " and ".join(sorted(found)) if found else "no input of the graph"
            why = ("" if found else self._hidden()) or "; it has to be one"
            raise RefusedError(f"{label(layers[0])}: reads {what}{why}")
        return found.pop()

    def _hidden(self) -> str:
        """The first node that may be the layer that is missing, and the mend; "": there is none."""
        strange = [node for node in self.nodes if _has_graph(node) or node.domain not in OURS]
        return f"; {label(strange[0])} cannot be read: {WRITTEN_OUT}" if strange else ""

    def between(self, source: str) -> list[tuple[Any, list[str]]]:
        """The nodes on ways from ``source`` to the first output, each with its inputs on them."""
        data = {source}
        for node in self.nodes:
            if data.intersection(self.carried(node)):
                data.update(node.output)
        wanted, found = {self.outputs[0]} & data, []
        for node in reversed(self.nodes):
            if wanted.intersection(node.output):
                inputs = [each for each in self.carried(node) if each in data]
                wanted.update(inputs)
                found.append((node, inputs))
        if source not in wanted:
            raise RefusedError(
                f"output {self.outputs[0]} does not depend on input {source}{self._hidden()}"
            )
        return found[::-1]

    def value(self, name: str, known: Values) -> NDArray[Any]:
        """Of a result, given those that are ``known``.

        Raises:
            RefusedError: it depends on something else, or on chance, or cannot be computed.
        """
        from onnx import GraphProto, ModelProto, ValueInfoProto
        from onnx.reference import ReferenceEvaluator

        if name in known:
            return known[name]
        needed, constants, feeds = self._needed(name, known)
        graph = GraphProto(name="part")
        graph.node.extend(needed)
        graph.initializer.extend(self.constants[each] for each in constants)
        graph.input.extend(ValueInfoProto(name=each) for each in feeds)
        graph.output.append(ValueInfoProto(name=name))
        model = ModelProto(ir_version=8, graph=graph, opset_import=self.opsets)
        try:
            with np.errstate(all="ignore"):
                found: Any = ReferenceEvaluator(model).run(
                    None, {each: known[each] for each in feeds}
                )
        except Exception as error:
            last = label(needed[-1]) if needed else name
            why = str(error).splitlines()[:1] or [type(error).__name__]
            raise RefusedError(f"{last}: cannot be computed: {why[0]}") from error
        return np.asarray(found[0])

    def _needed(self, name: str, known: Values) -> tuple[list[Any], list[str], list[str]]:
        """Nodes in order, constants and known values that a result is computed from."""
        wanted: dict[str, None] = {name: None}  # in a fixed order
        needed, constants, feeds = [], [], []
        waiting = [name]
        while waiting:
            one = waiting.pop()
            if one in known:
                feeds.append(one)
            elif one in self.producers:
                node = self.producers[one]
                if node.op_type in BY_CHANCE or _has_graph(node) or node.domain not in OURS:
                    raise RefusedError(f"{label(node)}: {node.op_type} cannot be read")
                fresh = [each for each in node.input if each and each not in wanted]
                wanted |= dict.fromkeys(fresh)
                waiting += dict.fromkeys(fresh)
            elif one in self.constants:
                constants.append(one)
            else:
                raise RefusedError(f"input {one} is asked for where no value but x can be")
        for node in self.nodes:
            outputs = [each for each in node.output if each in wanted and each not in known]
            if outputs:
                needed.append(node)
        return needed, constants, feeds


def _has_graph(node: Any) -> bool:
    return any(each.HasField("g") or len(each.graphs) for each in node.attribute)


def _type(name: str) -> int:
    from onnx import TensorProto

    return int(TensorProto.DataType.Value(name))


def _load(path: Path) -> Any:
    try:
        import onnx
        from onnx import external_data_helper, inliner
    except ImportError as error:
        raise RefusedError(
            "reading ONNX files needs the package onnx: pip install 'streamlstm[onnx]'"
        ) from error
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise RefusedError(f"cannot be read as an ONNX file: {error}") from error
    opset = max((each.version for each in model.opset_import if each.domain in OURS), default=0)
    if not opset:
        raise RefusedError("is no ONNX file: it names no opset")
    if opset < OLDEST:
        raise RefusedError(
            f"opset {opset}: {OLDEST} and up are read; export it again with opset_version=17, or"
            " use onnx.version_converter"
        )
    constants = [
        each.t for node in model.graph.node for each in node.attribute if each.HasField("t")
    ]
    try:
        for tensor in [*model.graph.initializer, *constants]:
            if external_data_helper.uses_external_data(tensor):
                _check_external(tensor, path)
                external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
                tensor.data_location = onnx.TensorProto.DEFAULT
                del tensor.external_data[:]
        return inliner.inline_local_functions(model) if model.functions else model
    except RefusedError:
        raise
    except Exception as error:
        raise RefusedError(f"its weights cannot be read: {error}") from error


def _check_external(tensor: Any, path: Path) -> None:
    """Weights may lie in a plain file beside the model's, and nowhere else."""
    where = "".join(each.value for each in tensor.external_data if each.key == "location")
    beside = path.parent / where
    if not where or Path(where).name != where or "\\" in where or beside.is_symlink():
        raise RefusedError(f"{tensor.name}: its numbers lie in {where!r}, not beside the file")
    if not beside.is_file():
        raise RefusedError(f"{tensor.name}: its numbers lie in {where}, which is not there")
