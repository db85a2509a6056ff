"""``streamlstm import`` and ``export``: models from other frameworks, and for them.

An imported model is compared with its framework where that is installed: a random sequence goes
through both. The golden trajectory, which each start repeats, is in the file either way.
"""

import argparse
import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm.config import ConfigError
from streamlstm.console import LeavingConsole, check_out, print_lines, say
from streamlstm.exporters import onnx as to_onnx
from streamlstm.exporters import torch as to_torch
from streamlstm.golden import network_of
from streamlstm.importers import keras, onnx, torch
from streamlstm.importers.parts import Parts, RefusedError, Wanted, assemble
from streamlstm.kernels import reference
from streamlstm.model import Model, load_model, save_model

KINDS = ("keras", "torch", "onnx")
SUFFIXES = {
    ".keras": "keras", ".h5": "keras", ".hdf5": "keras", ".onnx": "onnx",
    ".safetensors": "torch", ".pt": "torch", ".pth": "torch", ".bin": "torch", ".ckpt": "torch",
}  # fmt: skip
FRAMEWORKS = {"keras": "Keras", "torch": "PyTorch", "onnx": "ONNX Runtime"}
STEPS = 32
"""Of the sequence that is compared, where the model has no window."""
TOLERANCE = 1e-4
"""Largest deviation, over 1 + |output|: beyond it the network was not understood."""
SEED = 0


class Imported(NamedTuple):
    """A model, and what is to be said of it."""

    model: Model
    notes: list[str]
    deviation: float | None
    """largest from the framework's own outputs, over 1 + |output|; None: not compared"""


def kind_of(path: Path) -> str:
    """Which framework's a file is, by its name, and where that says nothing by its content.

    Raises:
        ConfigError: it cannot be told.
    """
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None and zipfile.is_zipfile(path):
        names = zipfile.ZipFile(path).namelist()
        kind = "keras" if "config.json" in names else "torch"
    if kind is None:
        raise ConfigError(f"{path}: whose file is this? Say it with --from keras, torch or onnx")
    return kind


def bring(
    path: Path, kind: str, wanted: Wanted | None = None, activation: str | None = None
) -> Imported:
    """Import a model of a framework, and compare it with that where it is installed.

    Args:
        path: of the file.
        kind: of ``KINDS``.
        wanted: what the file does not say.
        activation: of a PyTorch RNN, which its file does not say.

    Raises:
        RefusedError: what of it cannot be run, by name; or it does not do what the framework does.
        ModelError, OSError: it cannot be read.
    """
    parts = _read(path, kind, activation)
    model = assemble(parts, wanted or Wanted())
    origin = {
        "imported": path.name,
        "from": FRAMEWORKS[kind] if kind != "onnx" else "ONNX",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "streamlstm": version("streamlstm"),
        "numpy": np.__version__,
    }
    inputs = sample(model, model.spec.window or STEPS)
    run: dict[str, Callable[[], NDArray[np.float32] | None]] = {
        "keras": lambda: keras.run(path, inputs),
        "torch": lambda: torch.run(path, inputs, activation),
        "onnx": lambda: onnx.run(path, inputs),
    }
    theirs = run[kind]()
    deviation = None
    if theirs is not None:
        ours = raw_outputs(model, inputs)[-1]
        off = np.abs(ours - np.asarray(theirs, np.float64).reshape(-1)) / (1 + np.abs(ours))
        deviation = float(off.max())
        origin["parity"] = f"{deviation:.1e} from {FRAMEWORKS[kind]}, {len(inputs)} random steps"
        if not deviation <= TOLERANCE:
            raise RefusedError(
                f"{path}: {FRAMEWORKS[kind]} gives something else for the same inputs, by"
                f" {deviation:.2g}; it was not understood, and is not imported"
            )
    return Imported(replace(model, provenance=origin), list(parts.notes), deviation)


def _read(path: Path, kind: str, activation: str | None) -> Parts:
    if kind == "torch":
        return torch.read(path, activation)
    return keras.read(path) if kind == "keras" else onnx.read(path)


def sample(model: Model, steps: int) -> NDArray[np.float32]:
    """(steps, inputs) raw values such as the model is given."""
    inputs = np.random.default_rng(SEED).normal(size=(steps, model.spec.inputs))
    scaling = model.spec.scaling
    if scaling.kind == "fixed":
        inputs = np.array(scaling.loc) + np.array(scaling.scale) * inputs
    return inputs.astype(np.float32)


def raw_outputs(model: Model, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    """(T, outputs) in raw units at each of ``inputs`` (T, inputs), from a zero state, in float64.

    Of a model without lags, calendar and base, as imported ones are.
    """
    spec, scaling = model.spec, model.spec.scaling
    z: NDArray[Any] = np.asarray(inputs, np.float64)
    loc, scale = np.zeros(spec.inputs), np.ones(spec.inputs)
    if scaling.kind == "fixed":
        loc, scale = np.array(scaling.loc), np.array(scaling.scale)
    z = (z - loc) / scale
    outputs = np.zeros((len(z), spec.answers))
    buffers = reference.allocate(network_of(spec, model.weights), 1)
    slots = np.zeros(len(z), np.int32)
    reference.step(buffers, slots, z, np.arange(len(z) + 1), outputs)
    back = (np.tile(part[: spec.targets], spec.horizon) for part in (loc, scale))
    center, unit = back
    raw: NDArray[np.float64] = center + unit * outputs[:, : spec.outputs]
    return raw


# --- the commands ---------------------------------------------------------------------------------


def import_model(options: argparse.Namespace) -> None:
    """``streamlstm import``."""
    console = LeavingConsole(stderr=True)
    check_out("--out", options.out)
    path: Path = options.model
    if not path.exists():
        raise ConfigError(f"{path}: no such file")
    kind = options.framework or kind_of(path)
    wanted = Wanted(options.targets, round(options.step * 1e9), options.window)
    found = bring(path, kind, wanted, options.activation)
    save_model(found.model, options.out)
    spec = found.model.spec
    say(console, found.notes)
    if found.deviation is None:
        compared = f"not compared: {FRAMEWORKS[kind]} is not installed here"
    else:
        compared = f"{FRAMEWORKS[kind]} gives the same, within {found.deviation:.1e}"
    how = f"the last {spec.window} ticks, afresh" if spec.window else "a state that runs on"
    print_lines(
        console,
        f"{options.out}: model {found.model.id}, {spec.layers} x {spec.cell.upper()} of"
        f" {spec.hidden} over {spec.inputs} value{'s' * (spec.inputs > 1)}, {spec.horizon}"
        f" step{'s' * (spec.horizon > 1)} of {spec.targets} ahead, from {how}\n"
        f"{compared}\n"
        f"next: streamlstm inspect {options.out}, or streamlstm run --set model={options.out}",
    )


def export_model(options: argparse.Namespace) -> None:
    """``streamlstm export``."""
    console = LeavingConsole(stderr=True)
    check_out("--out", options.out)
    model = load_model(options.model)
    {"onnx": to_onnx, "torch": to_torch}[options.to].export(model, options.out)
    print_lines(console, f"written: {options.out}")
