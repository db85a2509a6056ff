"""ONNX files, of any exporter: PyTorch's two, tf2onnx' and Keras', and streamlstm's own.

A network that can be run is a chain: input, perhaps scaled; layers of LSTM, GRU or RNN cells; a
dense head and its activation; output, perhaps scaled. Between these, exporters put nodes that only
move numbers: transposed, reshaped, the last step taken out. Which number lies where is not guessed
from their names; the graph is run with numbers that say where they came from (:class:`Trace`).
In the end the model made is compared with the graph itself, run by onnx' own evaluator.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.golden import forecasts_of, make_golden, outputs_of
from streamlstm.importers.onnx_cells import Cells, cells, constant
from streamlstm.importers.onnx_graph import Graph
from streamlstm.importers.onnx_trace import Trace, open_shape
from streamlstm.importers.parts import (
    COARSE,
    TOLERANCE,
    Floats,
    Parts,
    Recurrent,
    RefusedError,
    Wanted,
    assemble,
)
from streamlstm.kernels import cell, reference
from streamlstm.model import Model, Spec
from streamlstm.model_file import FORMAT

SIZES = (7, 4), (3, 5)
"""For dimensions that the file leaves open. Two, so that no step is by chance the last."""


def read(path: Path) -> Parts:
    """What there is in the file at ``path``.

    Raises:
        RefusedError: it cannot be read, or there is a node in it that cannot be run, by its name.
    """
    with _refusing():
        return _read(Graph(path))


def own(path: Path, wanted: Wanted) -> Model | None:
    """The model that streamlstm made the file at ``path`` of; None: another program made it.

    Raises:
        RefusedError: it cannot be read, or was changed since.
    """
    with _refusing():
        graph = Graph(path)
        return _own(graph, wanted) if "streamlstm" in graph.metadata else None


def run(path: Path, inputs: NDArray[np.float32]) -> Floats | None:
    """(O,) what the network itself gives after all ``inputs`` (T, I), by onnxruntime.

    From a zero state; a file that takes a fixed number of steps is given the last so many. None
    where there is nothing to compare with: no onnxruntime, or it cannot run the file, or the file
    takes a step at a time.
    """
    try:
        import onnxruntime
    except ImportError:
        return None
    graph = Graph(path)
    if "streamlstm" in graph.metadata:
        found = _by_onnxruntime(onnxruntime, path, graph, {"x": inputs[:, None]})
        return None if found is None else found[-1, 0].astype(np.float64)
    first = Trace(graph, open_shape(graph, SIZES[0]))
    trace = Trace(graph, first.shape_for(len(inputs)))
    steps = trace.signal[0]
    if trace.stateful and steps < len(inputs):
        return None
    if len(inputs) < steps:
        raise RefusedError(f"takes {steps} steps at a time, {len(inputs)} are given")
    found = _by_onnxruntime(onnxruntime, path, graph, trace.feeds(inputs[-steps:]))
    return None if found is None else found.reshape(-1)[trace.picked].astype(np.float64)


def _by_onnxruntime(onnxruntime: Any, path: Path, graph: Graph, feeds: Any) -> NDArray[Any] | None:
    """The first output, by onnxruntime; None where it cannot run the file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        return np.asarray(session.run(graph.outputs[:1], feeds)[0])
    except Exception:
        return None


@contextmanager
def _refusing() -> Iterator[None]:
    """What is no ONNX graph at all may fail anywhere."""
    try:
        yield
    except RefusedError:
        raise
    except (
        ValueError, TypeError, LookupError, AttributeError, MemoryError, RuntimeError,
        ArithmeticError,
    ) as error:  # fmt: skip
        raise RefusedError(f"is damaged, or no graph that can be read ({error!r})") from error


def _read(graph: Graph) -> Parts:
    trace = Trace(graph, open_shape(graph, SIZES[0]))
    parts = trace.parts()
    _check(trace, parts)
    if (shape := open_shape(graph, SIZES[1])) != trace.shape:
        _check(Trace(graph, shape), parts)
    return parts


def _check(trace: Trace, parts: Parts) -> None:
    """Run the graph and the model made of its parts over some steps, and compare.

    Raises:
        RefusedError: they differ.
    """
    T, _, width = trace.entry.shape
    x = np.random.default_rng(0).normal(size=(T, width))
    if parts.loc is not None and parts.scale is not None:
        x = parts.loc + parts.scale * x
    feeds = trace.feeds(x)
    x = feeds[trace.source].reshape(-1)[trace.entry[:, 0]].astype(np.float64)
    theirs = _output(trace.graph, trace.layers, feeds).reshape(-1)[trace.picked]
    _compare(trace.graph, forecasts_of(assemble(parts, Wanted()), x)[-1], theirs)


def _output(
    graph: Graph, layers: Sequence[tuple[Any, Cells]], feeds: dict[str, NDArray[Any]]
) -> Floats:
    """What the graph gives, by onnx' own evaluator wherever it can be trusted."""
    known = dict(feeds)
    for node, found in layers:
        if not found.plain:
            known |= _computed(graph, node, found, known)
    return graph.value(graph.outputs[0], known).astype(np.float64)


def _compare(graph: Graph, ours: Floats, theirs: Floats) -> None:
    worst = float(np.max(np.abs(ours - theirs) / (1 + np.abs(theirs))))
    if not worst <= (COARSE if graph.coarse else TOLERANCE):
        raise RefusedError(
            f"the model read from it gives other numbers than the file itself, by {worst:.2g}; it"
            " does something that was not understood"
        )


def _computed(
    graph: Graph, node: Any, found: Cells, known: dict[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """The outputs of a node that onnx' evaluator does not compute as onnxruntime does."""
    x = graph.value(node.input[0], known)
    y = _states(found.layer, x.swapaxes(0, 1) if found.batch_first else x).astype(x.dtype)
    outputs = [y[:, None], y[-1:]]
    if found.batch_first:
        outputs = [y.swapaxes(0, 1)[:, :, None], y[-1][:, None]]
    return dict(zip(node.output, outputs, strict=False))


def _states(layer: Recurrent, x: NDArray[Any]) -> Floats:
    """(T, B, H) of a layer over (T, B, I), float64."""
    ours = cell.Layer(
        layer.weight_ih,
        layer.weight_hh,
        layer.bias,
        layer.activation,
        layer.recurrent_activation,
        layer.cell,
        layer.bias_hh is not None,
        cell.NO_BIAS if layer.bias_hh is None else layer.bias_hh,
    )
    h = np.zeros((x.shape[1], layer.weight_hh.shape[1]))
    c = h
    found = []
    for inputs in x.astype(np.float64):
        if layer.cell == "lstm":
            h, c = reference.lstm(ours, inputs, h, c)
        else:
            h = (reference.gru if layer.cell == "gru" else reference.rnn)(ours, inputs, h)
        found.append(h)
    return np.array(found)


def _own(graph: Graph, wanted: Wanted) -> Model:
    """A file of :mod:`streamlstm.exporters.onnx`: it says what model it was made of."""
    try:
        said = json.loads(graph.metadata["streamlstm"])
        if said["format"] != FORMAT:
            raise RefusedError(f"its spec is of format {said['format']}; export it again")
        spec = Spec.model_validate(said["spec"])
    except (KeyError, TypeError, ValueError) as error:
        raise RefusedError(f"its spec cannot be read ({error!r}); export it again") from error
    if wanted.window is not None:
        spec = spec.model_copy(update={"window": wanted.window})
    weights = {}
    layers = [(node, cells(graph, node)) for node in graph.recurrent()]
    for n, (_, (layer, *_)) in enumerate(layers):
        apart = layer.bias_hh is not None
        weights[f"{spec.cell}.weight_ih_l{n}"] = layer.weight_ih
        weights[f"{spec.cell}.weight_hh_l{n}"] = layer.weight_hh
        weights[f"{spec.cell}.bias_{'ih_' * apart}l{n}"] = layer.bias
        if layer.bias_hh is not None:
            weights[f"{spec.cell}.bias_hh_l{n}"] = layer.bias_hh
    for name in ("head.weight", "head.skip", "head.bias"):
        if name in graph.constants:
            found = constant(graph, "head", name)
            weights[name] = np.ascontiguousarray(found.T.astype(np.float32))
        elif name == "head.skip":
            weights[name] = np.zeros((spec.answers, spec.width), np.float32)
    shapes = {name: array.shape for name, array in weights.items()}
    if shapes != spec.weight_shapes():
        raise RefusedError("its weights are not those that its spec asks for; export it again")
    model = Model(spec, weights, make_golden(spec, weights))
    x = np.random.default_rng(0).normal(size=(spec.window or 6, spec.width)).astype(np.float32)
    theirs = _output(graph, layers, {graph.source(): x[:, None]})[-1, 0]
    _compare(graph, outputs_of(model, x)[-1], theirs)
    return model
