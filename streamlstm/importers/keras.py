"""Models that Keras saved: ``.keras`` files, whole ``.h5`` files, ``.h5`` files of weights alone.

Keras' orders of gates are LSTM i, f, c, o and GRU z, r, h, and its kernels are (inputs, gates *
units). What lies in front of the layers and behind the head, such as a Normalization, is told
apart as scaling; a Dense layer behind a linear one is multiplied into it.
"""

import os
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm.importers.keras_file import (
    DROPPED,
    GATES,
    RUNS,
    Layer,
    bare_layers,
    class_of,
    layers_of,
    major_of,
    opened,
)
from streamlstm.importers.parts import (
    Dense,
    Floats,
    Parts,
    Recurrent,
    RefusedError,
    Singles,
    upright,
)

SAFE = (3, 12)
"""Version of Keras before which a file's own code may be run by loading it."""
LARGEST = 1 << 26
"""Numbers in one array at most: those of 4096 units of an LSTM over 4096 inputs."""
REASONS = {
    "Bidirectional": "it reads a series backwards too, from steps that have not come yet",
    "Masking": "it leaves steps out; streamlstm runs each tick that comes",
    "Embedding": "ticks are numbers, not places in a vocabulary",
    "RepeatVector": "an encoder with a decoder is no stack of layers",
    "Lambda": "it is code, which a file does not hold",
    "SlicingOpLambda": "it takes a slice; leave return_sequences out of the layer before it",
    "GetItem": "it takes a slice; leave return_sequences out of the layer before it",
    "TFOpLambda": "it is an operation of TensorFlow's; use a layer, such as Rescaling",
    "Sequential": "a model inside a model; build it of layers alone",
    "Functional": "a model inside a model; build it of layers alone",
    "CuDNNLSTM": "load it, build it anew of LSTM layers and set their weights",
    "CuDNNGRU": "load it, build it anew of GRU layers and set their weights",
}
BARE = "weights alone: taken to be a plain stack with the activations that Keras has by default"
DAMAGED = (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError)
"""What a file that is not as Keras writes it, or h5py, raises."""
OTHER_NAMES = {"swish": "silu", "hard_swish": "hard_silu", "celu": "elu"}
OWN: Mapping[str, tuple[str, Mapping[str, float | None]]] = {
    "ReLU": ("relu", {"negative_slope": 0, "threshold": 0, "max_value": None}),
    "LeakyReLU": ("leaky_relu", {"negative_slope": 0.2}),
    "ELU": ("elu", {"alpha": 1}),
}
"""Layers that are an activation of ours where they have these numbers."""
OLD_SLOPE = 1.2
"""Keras 2's hard_sigmoid is clip(0.2 x + 0.5), ours relu6(x + 3) / 6: 0.2 x = (1.2 x) / 6."""


def read(path: Path) -> Parts:
    """What is in a file that Keras 2 or 3 saved.

    Raises:
        RefusedError: it cannot be read, or has a layer that streamlstm does not run.
    """
    try:
        # numbers that overflow are refused, not warned of
        with np.errstate(all="ignore"), opened(path) as file:
            old = file.major < 3
            if file.config is not None:
                return _walk(layers_of(file), old)
            found = _walk(bare_layers(file), old)
            return found._replace(notes=[*found.notes, BARE])
    except RefusedError as error:
        raise RefusedError(f"{path}: {error}") from error
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise RefusedError(f"{path}: cannot be read ({reason}); save or copy it again") from error
    except DAMAGED as error:
        raise RefusedError(
            f"{path}: no model of Keras', or a damaged one ({error!r}); save or copy it again"
        ) from error


def _number(version: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def run(path: Path, inputs: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Keras' own output (O,) after the last of inputs (T, I), from a zero state.

    None where Keras is not installed, or one older than ``SAFE``, or is not of the major version
    that wrote the file (their hard_sigmoid differ), or cannot load the file, or where that holds
    weights alone. It computes with the backend of KERAS_BACKEND, else with one that is installed.
    """
    with opened(path) as file:
        bare, major = file.config is None, file.major
    if "KERAS_BACKEND" not in os.environ:  # TensorFlow unless told, whether it is here or not
        here = [name for name in ("tensorflow", "jax", "torch") if find_spec(name)]
        os.environ["KERAS_BACKEND"] = here[0] if here else "numpy"
    try:
        import keras
    except ImportError:
        return None
    if bare or major != major_of(keras.__version__) or _number(keras.__version__) < SAFE:
        return None
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception:  # another 3.x wrote it, say, with options that this one lacks
        return None
    # layer by layer, since a model holds its inputs to the length that it was built for
    rows = model.input_shape[0] or 1
    x: Any = np.repeat(np.asarray(inputs, np.float32)[None], rows, axis=0)
    steps = True
    for layer in model.layers:
        if type(layer).__name__ != "InputLayer":
            x = layer(x, training=False)
            steps = getattr(layer, "return_sequences", steps)
    out = np.asarray(keras.ops.convert_to_numpy(x), np.float32)[0]
    return out[-1] if steps else out.reshape(-1)


class _Affine(NamedTuple):
    """x * gain + offset; both one number, or one for each of x."""

    gain: Floats = np.ones(1)
    offset: Floats = np.zeros(1)

    def then(self, after: "_Affine") -> "_Affine":
        return _Affine(self.gain * after.gain, self.offset * after.gain + after.offset)


class _Walk:
    """What the layers up to some place compute."""

    def __init__(self) -> None:
        self.layers = list[Recurrent]()
        self.head: Dense | None = None
        self.before: _Affine | None = None
        """of the inputs"""
        self.after: _Affine | None = None
        """of the head's outputs"""
        self.gives = "steps"
        """or a vector, or a table: a vector in a shape of its own"""
        self.window = 0
        self.coarse = False
        self.notes = list[str]()

    @property
    def width(self) -> int:
        """How many numbers come out, once there is a recurrent layer."""
        return len(self.head.bias) if self.head else self.layers[-1].weight_hh.shape[1]

    def linear_head(self, layer: Layer) -> tuple[Floats, Floats]:
        """Weight and bias of all since the last recurrent layer, for ``layer`` to go on with."""
        weight, bias = np.eye(self.width), np.zeros(self.width)
        if self.head is not None:
            if self.head.activation != "linear":
                raise layer.refused(
                    f"comes after {self.head.name}, whose activation is {self.head.activation};"
                    " streamlstm has one head"
                )
            weight, bias = self.head.weight.astype(float), self.head.bias.astype(float)
        if self.after is not None:
            weight, bias = weight * self.after.gain[:, None], bias * self.after.gain
            bias, self.after = bias + self.after.offset, None
        return weight, bias

    def parts(self) -> Parts:
        """All of it."""
        layers = self.layers
        found = Parts(layers, self.head, window=self.window, coarse=self.coarse, notes=self.notes)
        if not layers:
            return found
        if self.before is not None:
            inputs = layers[0].weight_ih.shape[1]
            gain, offset = (np.broadcast_to(each, inputs) for each in self.before)
            if not gain.all():
                raise RefusedError("an input is scaled by 0, so that the network never sees it")
            layers[0], scale = upright(layers[0], 1 / gain)
            found = found._replace(loc=-offset / gain, scale=scale)
        if self.after is not None:
            gain, offset = (np.broadcast_to(each, self.width) for each in self.after)
            found = found._replace(out_loc=offset, out_scale=gain)
        return found


def _walk(layers: Sequence[Layer], old: bool) -> Parts:
    """What a chain of layers computes; ``old``: with Keras 2's hard_sigmoid."""
    walk = _Walk()
    stateful = False
    for layer in layers:
        config = layer.config
        shape = config.get("batch_shape", config.get("batch_input_shape"))
        if shape is not None and layer is layers[0]:
            if len(shape) != 3:
                raise layer.refused(f"inputs of the shape {shape}; they have to be (, steps, I)")
            walk.window = shape[1] or 0
        stateful |= bool(config.get("stateful"))
        if layer.kind in GATES:
            _recurrent(walk, layer, old)
        elif layer.kind == "RNN":
            _cells(walk, layer, old)
        elif layer.kind == "Dense":
            _dense(walk, layer, old)
        elif layer.kind == "TimeDistributed":
            inner = config["layer"]
            if class_of(inner) == "Dense":
                _dense(walk, layer._replace(config=inner["config"]), old)
            elif class_of(inner) in DROPPED:
                _drop(walk, layer)
            else:
                raise layer.refused(f"of {class_of(inner)}; it has to be of Dense")
        elif layer.kind == "Activation" or layer.kind in OWN:
            _activation(walk, layer, old)
        elif layer.kind in ("Normalization", "Rescaling"):
            _affine(walk, layer)
        elif layer.kind in ("Flatten", "Reshape"):
            if walk.gives == "steps":
                raise layer.refused("it mixes steps; streamlstm takes them one after another")
            walk.gives = "table" if layer.kind == "Reshape" else "vector"
        elif layer.kind in DROPPED:
            _drop(walk, layer)
        elif layer.kind != "InputLayer":
            raise layer.refused(f"it cannot be run: {REASONS.get(layer.kind, RUNS)}")
    if stateful:
        walk.window = 0
    return walk.parts()


def _drop(walk: _Walk, layer: Layer) -> None:
    walk.notes.append(f"{layer.name} ({layer.kind}) does nothing outside of fitting")


def _taken(layer: Layer, arrays: list[Any], shape: tuple[int | None, ...]) -> Floats:
    """The next array of a layer, which is to have this shape; None: any number."""
    if not arrays:
        raise layer.refused("its weights are not in the file; save it again")
    data = arrays.pop(0)
    if data.dtype.kind != "f":
        raise layer.refused(f"weights of {data.dtype}; dequantize it, or save it as float32")
    if len(data.shape) != len(shape) or any(
        want not in (None, have) for want, have in zip(shape, data.shape, strict=True)
    ):
        raise layer.refused(f"weights of the shape {data.shape}, where {shape} is expected")
    if data.size > LARGEST:
        raise layer.refused(f"weights of the shape {data.shape}; {LARGEST:,} numbers at most")
    if data.external or data.is_virtual:
        raise layer.refused("weights that lie in another file; save it again")
    found = np.asarray(data[...], np.float64)
    if not np.isfinite(found).all():
        raise layer.refused("weights that are no finite numbers; fit it again")
    return found


def _recurrent(walk: _Walk, layer: Layer, old: bool) -> None:
    arrays = list(layer.arrays)
    _cell(walk, layer, layer.kind, layer.config, arrays, old)
    _end_of(walk, layer, arrays)


def _cells(walk: _Walk, layer: Layer, old: bool) -> None:
    """RNN of a cell, or of cells one upon another."""
    cell = layer.config["cell"]
    stacked = cell["class_name"] == "StackedRNNCells"
    arrays = list(layer.arrays)
    for each in cell["config"]["cells"] if stacked else [cell]:
        kind = class_of(each).removesuffix("Cell")
        if kind not in GATES:
            raise layer.refused(f"cells of the class {class_of(each)}; {RUNS}")
        _cell(walk, layer, kind, each["config"], arrays, old)
    _end_of(walk, layer, arrays)


def _cell(
    walk: _Walk,
    layer: Layer,
    kind: str,
    config: Mapping[str, Any],
    arrays: list[Any],
    old: bool,
) -> None:
    """Take a cell's arrays."""
    if walk.gives != "steps":
        raise layer.refused("what is before it gives a vector, no steps")
    if walk.head is not None or walk.after is not None:
        between = walk.head.name if walk.head else "a scaling"
        raise layer.refused(f"{between} is between it and {walk.layers[-1].name}; {RUNS}")
    walk.coarse |= _in_16_bits(config)
    units, gates = config["units"], GATES[kind]
    gru, resets_after = kind == "GRU", bool(config.get("reset_after", False))
    order = [1, 0, 2] if gru else list(range(gates))
    activation = _name(config["activation"])
    recurrent = _name(config["recurrent_activation"]) if gates > 1 else "sigmoid"
    slopes = np.full(gates, _slope(recurrent, old))
    slopes[{1: 0, 3: 2, 4: 2}[gates]] = _slope(activation, old)
    if gates == 4 and _slope(activation, old) != 1:
        raise layer.refused(
            "hard_sigmoid as activation of an LSTM is another function in Keras 2; load it in"
            " Keras 3 and see whether it is still as good"
        )

    def ours(array: Floats) -> Singles:
        """(..., gates * units) in our order of gates, transposed."""
        by_gate = array.reshape(-1, gates, units)[:, order] * slopes[:, None]
        return np.ascontiguousarray(by_gate.reshape(-1, gates * units).T, np.float32)

    kernel = ours(_taken(layer, arrays, (None, gates * units)))
    by_state = ours(_taken(layer, arrays, (units, gates * units)))
    rows = 2 if gru and resets_after else 1
    bias = np.zeros((gates * units, rows), np.float32)
    if config.get("use_bias", True):
        shape = (2, gates * units) if rows == 2 else (gates * units,)
        bias = ours(_taken(layer, arrays, shape))
    bias_hh = bias[:, 1] if rows == 2 else None
    cell = "rnn" if kind == "SimpleRNN" else kind.lower()
    walk.layers.append(
        Recurrent(layer.name, cell, kernel, by_state, bias[:, 0], bias_hh, activation, recurrent)
    )


def _end_of(walk: _Walk, layer: Layer, arrays: Sequence[Any]) -> None:
    """Options of a whole recurrent layer."""
    config = layer.config
    _all_taken(layer, arrays)
    for option, reason in (
        ("go_backwards", "it reads a series backwards, from steps that have not come yet"),
        ("return_state", "its state is an output; leave return_state out"),
        ("time_major", "time is its first axis; leave time_major out"),
    ):
        if config.get(option):
            raise layer.refused(reason)
    if config.get("dropout") or config.get("recurrent_dropout"):
        walk.notes.append(f"{layer.name}: its dropout does nothing outside of fitting")
    walk.gives = "steps" if config.get("return_sequences") else "vector"


def _all_taken(layer: Layer, arrays: Sequence[Any]) -> None:
    if arrays:
        raise layer.refused(f"{len(arrays)} more weights than it should have; save it again")


def _single(array: Floats) -> Singles:
    return array.astype(np.float32)


def _in_16_bits(config: Mapping[str, Any]) -> bool:
    """Whether a layer computes so, by the name of its type or policy, which may be in a dict."""
    return "float16" in str(config.get("dtype"))


def _name(activation: Any) -> str:
    """Of an activation; of what is no plain function of Keras' something unknown to us."""
    if activation is None:
        return "linear"
    if isinstance(activation, str):
        return OTHER_NAMES.get(activation, activation)
    config = activation["config"]
    return f"{config if isinstance(config, str) else activation['class_name']} of your own"


def _layers_own(layer: Layer) -> str:
    """The activation that a layer of its own is."""
    config, (name, plain) = layer.config, OWN[layer.kind]
    if layer.kind == "ReLU" and config.get("max_value") == 6:
        name, plain = "relu6", {**plain, "max_value": 6}
    for option, number in plain.items():
        found = config.get(option, config.get("alpha"))  # as Keras 2 calls it
        if abs((found or 0) - (number or 0)) > 1e-6 or (found is not None and number is None):
            raise layer.refused(f"its {option} is {found}; only {number} can be run")
    return name


def _slope(activation: str, old: bool) -> float:
    """What the argument of an activation is multiplied by, for ours to give the same."""
    return OLD_SLOPE if old and activation == "hard_sigmoid" else 1.0


def _dense(walk: _Walk, layer: Layer, old: bool) -> None:
    if not walk.layers:
        raise layer.refused(f"comes before the recurrent layers; {RUNS}")
    if walk.gives == "table":
        raise layer.refused("comes after a Reshape; leave that out")
    walk.coarse |= _in_16_bits(layer.config)
    weight, bias = walk.linear_head(layer)
    units, activation = layer.config["units"], _name(layer.config["activation"])
    arrays, slope = list(layer.arrays), _slope(activation, old)
    own = _taken(layer, arrays, (walk.width, units)).T * slope
    bias = own @ bias
    if layer.config.get("use_bias", True):
        bias = bias + _taken(layer, arrays, (units,)) * slope
    _all_taken(layer, arrays)
    walk.head = Dense(layer.name, _single(own @ weight), _single(bias), activation)


def _activation(walk: _Walk, layer: Layer, old: bool) -> None:
    config = layer.config
    activation = _layers_own(layer) if layer.kind in OWN else _name(config["activation"])
    if activation == "linear":
        return
    if not walk.layers:
        raise layer.refused(f"{activation} before the recurrent layers; {RUNS}")
    weight, bias = walk.linear_head(layer)
    slope = _slope(activation, old)
    walk.head = Dense(layer.name, _single(weight * slope), _single(bias * slope), activation)


def _affine(walk: _Walk, layer: Layer) -> None:
    walk.coarse |= _in_16_bits(layer.config)
    found = _rescaling(layer) if layer.kind == "Rescaling" else _normalization(walk, layer)
    if not (np.isfinite(found.gain).all() and np.isfinite(found.offset).all()):
        raise layer.refused("its numbers are not finite")
    if walk.layers:
        for each in found:
            if each.size not in (1, walk.width) or (each.size > 1 and walk.gives == "table"):
                raise layer.refused(f"{each.size} numbers where {walk.width} come in")
        found = _Affine(*(np.broadcast_to(each, walk.width) for each in found))
        walk.after = walk.after.then(found) if walk.after else found
    else:
        walk.before = walk.before.then(found) if walk.before else found


def _rescaling(layer: Layer) -> _Affine:
    return _Affine(*(_numbers(layer.config[name]) for name in ("scale", "offset")))


def _numbers(value: Any) -> Floats:
    """A number or an array, as JSON or as Keras 3 writes arrays."""
    if isinstance(value, dict):
        value = value["config"]["value"]
    return np.asarray(value, np.float64).reshape(-1)


def _normalization(walk: _Walk, layer: Layer) -> _Affine:
    config = layer.config
    last = 2 if walk.gives == "steps" else 1
    axes = config.get("axis", -1)
    axes = [] if axes is None else [axes] if isinstance(axes, int) else axes
    if not {*axes} <= {-1, last}:
        raise layer.refused(f"axis {axes}; it can only be that of the values, -1")
    arrays = list(layer.arrays)
    if config.get("mean") is None:
        shape = (None,) if axes else ()
        mean, variance = (_taken(layer, arrays, shape).reshape(-1) for _ in range(2))
    else:
        mean, variance = (_numbers(config[name]) for name in ("mean", "variance"))
    deviation = np.maximum(np.sqrt(variance), 1e-7)
    if config.get("invert"):
        return _Affine(deviation, mean)
    return _Affine(1 / deviation, -mean / deviation)
