"""The model file: one ``.safetensors`` with spec, weights, error quantiles and a golden trajectory.

This room only writes and parses what :mod:`streamlstm.model` describes. That the weights do what
the file says is proved by :mod:`streamlstm.golden`, each time an engine opens the model.

Tensors, all little endian (H = hidden, I = length of the input vector, O = horizon * targets
forecasts, N = O + directions, or 2 O + directions with a spread):

==========================  ==========  ============================================================
``lstm.weight_ih_l{n}``     (4H, I|H)   float32, gate order i, f, g, o, as PyTorch
``lstm.weight_hh_l{n}``     (4H, H)     float32
``lstm.bias_l{n}``          (4H,)       float32, PyTorch's two biases summed
``gru.weight_ih_l{n}``      (3H, I|H)   float32, gate order r, z, n, as PyTorch (Keras: z, r, h)
``gru.weight_hh_l{n}``      (3H, H)     float32
``gru.bias_ih_l{n}``        (3H,)       float32, where ``reset_after``
``gru.bias_hh_l{n}``        (3H,)       float32, where ``reset_after``: beside the product with h
``gru.bias_l{n}``           (3H,)       float32, where not
``rnn.weight_ih_l{n}``      (H, I|H)    float32
``rnn.weight_hh_l{n}``      (H, H)      float32
``rnn.bias_l{n}``           (H,)        float32, PyTorch's two biases summed
``head.weight``             (N, H)      float32, row ``k * targets + j``: step k, target j; then
                                        their spreads in the same order, if any
                                        (:mod:`streamlstm.intervals`); then the directions
                                        (:mod:`streamlstm.adapt`)
``head.bias``               (N,)        float32
``head.skip``               (N, I)      float32, the linear shortcut from the input vector
``golden.inputs``           (T, I)      float32
``golden.outputs``          (T, N)      float64, from a zero state
``golden.h``, ``golden.c``  (layers, H) float32, after the last input; ``c`` of an LSTM alone,
                                        neither where the model has a ``window``
``errors.levels``           (Q,)        float64, optional: probabilities, rising
``errors.quantiles``        (Q, O)      float32: quantiles of |error| / scale, unseen data; with
                                        a spread, of that over its root
``errors.ages``             (P,)        int64, optional: :attr:`Spec.ages`
``errors.young``            (P, Q, O)   float32: the quantiles of a series with less of a past
``errors.seen``             (O,)        float32, optional: mean |error| on data trained on
==========================  ==========  ============================================================

The metadata key ``streamlstm`` holds JSON: ``format`` (version), ``spec``, ``provenance``.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from streamlstm.files import mend_of, write_whole
from streamlstm.model import PHASES, Errors, Golden, Model, ModelError, Spec

FORMAT = 1
MOST_EVIDENCE = 1 << 24
"""Numbers at most in a tensor whose length the spec does not say, such as a golden trajectory's."""
_WEIGHTS = ("lstm.", "gru.", "rnn.", "head.")
_ERRORS = ("levels", "quantiles", "ages", "young", "seen")


def save_model(model: Model, path: Path, mode: int | None = None) -> None:
    """Write ``model`` to ``path``, whole or not at all, of the ``mode`` if one is given.

    Raises:
        ModelError: a weight is missing, of another shape, or not finite.
        OSError: the file cannot be written.
    """
    _check_weights(model.spec, model.weights)
    tensors: dict[str, NDArray[Any]] = dict(model.weights)
    golden = model.golden
    run: dict[str, NDArray[Any]] = {
        "inputs": golden.inputs,
        "outputs": golden.outputs,
        **golden.states,
    }
    tensors |= {f"golden.{name}": array for name, array in run.items()}
    if model.errors is not None:
        tensors["errors.levels"] = model.errors.levels
        tensors["errors.quantiles"] = model.errors.quantiles
        if len(model.errors.ages):
            tensors["errors.ages"] = model.errors.ages
            tensors["errors.young"] = model.errors.young
        if len(model.errors.seen):
            tensors["errors.seen"] = model.errors.seen
    header = {
        "format": FORMAT,
        "spec": model.spec.model_dump(mode="json"),
        "provenance": dict(model.provenance),
    }
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    write_whole(path, save(contiguous, {"streamlstm": json.dumps(header)}), mode)


def load_model(path: Path) -> Model:
    """Parse the model file at ``path``.

    Raises:
        ModelError: there is no such file, or it is damaged, of another format, or inconsistent.
    """
    try:
        if path.is_dir():
            raise ModelError(f"{path}: is a folder; name the model file in it")
        if not path.is_file():
            raise ModelError(f"{path}: no such model file; make one with 'streamlstm fit'")
        path.open("rb").close()  # safetensors would say that it is not there
    except OSError as error:
        mend = mend_of(error, "copy it again")
        raise ModelError(f"{path}: cannot be read ({error.strerror}); {mend}") from None
    try:
        with safe_open(path, framework="numpy") as file:
            header = _header(file.metadata() or {})
            spec = Spec.model_validate(header["spec"])
            names = [*file.keys()]
            tensors = _tensors(file, names, spec)
        golden = _golden(spec, tensors)
        errors = _errors(spec, tensors)
        weights = {k: v for k, v in tensors.items() if k.startswith(_WEIGHTS)}
        _check_weights(spec, weights)
        _check_names(spec, names)
        return Model(spec, weights, golden, errors, dict(header.get("provenance", {})))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "spec"
        raise ModelError(f"{path}: bad spec, {where}: {first['msg']}; fit it again") from error
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: no model file, or a damaged one ({error}); name one of 'streamlstm fit', or"
            " copy it again"
        ) from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: damaged model file ({error!r}); fit or copy it again") from error


def _header(metadata: Mapping[str, str]) -> dict[str, Any]:
    if "streamlstm" not in metadata:
        raise ModelError("a safetensors file, but not a model of streamlstm; fit one")
    header: dict[str, Any] = json.loads(metadata["streamlstm"])
    if header["format"] != FORMAT:
        raise ModelError(f"format {header['format']}, this version reads {FORMAT}; fit it again")
    return header


def _tensors(file: Any, names: Iterable[str], spec: Spec) -> dict[str, NDArray[Any]]:
    """Those known; before memory is taken for one, it is seen that it is of a size to be asked."""
    shapes = spec.weight_shapes()
    shapes |= {f"golden.{name}": (spec.layers, spec.hidden) for name in spec.states}
    most = {name: math.prod(shape) for name, shape in shapes.items()} | dict.fromkeys(
        ("golden.inputs", "golden.outputs", *(f"errors.{name}" for name in _ERRORS)), MOST_EVIDENCE
    )
    tensors = {}
    for name in most.keys() & names:
        shape = file.get_slice(name).get_shape()
        if math.prod(shape) > most[name]:
            asked = f"the spec asks for {list(shapes[name])}" if name in shapes else "too large"
            raise ModelError(f"tensor {name} is {shape}, {asked}; fit or copy it again")
        tensors[name] = file.get_tensor(name)
    return tensors


def _expect(name: str, tensor: NDArray[Any] | None, dtype: type, shape: tuple[int, ...]) -> None:
    if tensor is None:
        raise ModelError(f"tensor {name} is missing; fit or copy it again")
    if tensor.dtype != dtype or tensor.shape != shape:
        raise ModelError(
            f"tensor {name} is {tensor.dtype}{list(tensor.shape)},"
            f" the spec asks for {np.dtype(dtype)}{list(shape)}"
        )
    if not np.isfinite(tensor).all():
        raise ModelError(f"tensor {name} holds NaN or infinity; fit it again")


def _check_weights(spec: Spec, weights: Mapping[str, NDArray[Any]]) -> None:
    shapes = spec.weight_shapes()
    for name, shape in shapes.items():
        _expect(name, weights.get(name), np.float32, shape)
    _check_names(spec, weights)


def _check_names(spec: Spec, names: Iterable[str]) -> None:
    weights = {name for name in names if name.startswith(_WEIGHTS)}
    if unknown := sorted(weights - spec.weight_shapes().keys()):
        raise ModelError(f"unknown tensor {unknown[0]}; is the file of a later version?")


def _golden(spec: Spec, tensors: Mapping[str, NDArray[Any]]) -> Golden:
    inputs = tensors["golden.inputs"]
    length = len(inputs)
    _expect("golden.inputs", inputs, np.float32, (length, spec.width))
    _expect("golden.outputs", tensors.get("golden.outputs"), np.float64, (length, spec.answers))
    for name in spec.states:
        shape = spec.layers, spec.hidden
        _expect(f"golden.{name}", tensors.get(f"golden.{name}"), np.float32, shape)
    if not length:
        raise ModelError("the golden trajectory is empty; fit it again")
    states = {name: tensors[f"golden.{name}"] for name in spec.states}
    return Golden(inputs, tensors["golden.outputs"], states)


def _errors(spec: Spec, tensors: Mapping[str, NDArray[Any]]) -> Errors | None:
    if "errors.levels" not in tensors:
        return None
    levels = tensors["errors.levels"]
    _expect("errors.levels", levels, np.float64, (len(levels),))
    quantiles = tensors.get("errors.quantiles")
    _expect("errors.quantiles", quantiles, np.float32, (len(levels), spec.outputs))
    if not len(levels) or not all(map(math.isfinite, levels)) or (np.diff(levels) <= 0).any():
        raise ModelError("errors.levels must rise; fit it again")
    found = Errors(levels, tensors["errors.quantiles"])
    if (seen := tensors.get("errors.seen")) is not None:
        _expect("errors.seen", seen, np.float32, (spec.outputs,))
        found = replace(found, seen=seen)
    if "errors.ages" in tensors:
        ages, young = tensors["errors.ages"], tensors.get("errors.young")
        _expect("errors.ages", ages, np.int64, (len(ages),))
        _expect("errors.young", young, np.float32, (len(ages), len(levels), spec.outputs))
        if len(ages) > PHASES or not (ages[1:] > ages[:-1]).all() or (ages < 1).any():
            raise ModelError(f"errors.ages must rise, {PHASES} at most; fit it again")
        found = replace(found, ages=ages, young=tensors["errors.young"])
    return found
