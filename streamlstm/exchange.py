"""``streamlstm import`` and ``export``: models from other frameworks, and for them.

An imported model is compared with its framework where that is installed: a random sequence goes
through both. The golden trajectory, which each start repeats, is in the file either way.
"""

import argparse
import contextlib
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
from streamlstm.console import check_out, say
from streamlstm.exporters import onnx as to_onnx
from streamlstm.exporters import torch as to_torch
from streamlstm.golden import forecasts_of, outputs_of
from streamlstm.importers import keras, onnx, torch
from streamlstm.importers.parts import (
    COARSE,
    ROUNDED,
    TOLERANCE,
    Parts,
    RefusedError,
    Wanted,
    assemble,
)
from streamlstm.model import Model
from streamlstm.model_file import load_model, save_model
from streamlstm.terminal import LeavingConsole, print_lines

SUFFIXES = {
    ".keras": "keras", ".h5": "keras", ".hdf5": "keras", ".onnx": "onnx",
    ".safetensors": "torch", ".pt": "torch", ".pth": "torch", ".bin": "torch", ".ckpt": "torch",
}  # fmt: skip
FRAMEWORKS = {"keras": "Keras", "torch": "PyTorch", "onnx": "ONNX Runtime"}
OURS = (
    "an export of streamlstm's, of the network alone: what series learn by, how far each forecast"
    " may err and where intervals begin stayed in the model that it was made of"
)
STEPS = 32
"""Of the sequence that is compared, where the model has no window."""
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
    if kind is None:
        with contextlib.suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(path) as archive:
            kind = "keras" if "config.json" in archive.namelist() else "torch"
    if kind is None:
        raise ConfigError(f"{path}: whose file is this? Say it with --from keras, torch or onnx")
    return kind


def bring(
    path: Path, kind: str, wanted: Wanted | None = None, activation: str | None = None
) -> Imported:
    """Import a model of a framework, and compare it with that where it is installed.

    Args:
        path: of the file.
        kind: a key of ``FRAMEWORKS``.
        wanted: what the file does not say.
        activation: of a PyTorch RNN, which its file does not say.

    Raises:
        RefusedError: what of it cannot be run, by name; or it does not do what the framework does.
        ModelError, OSError: it cannot be read.
    """
    try:
        return _bring(path, kind, wanted or Wanted(), activation)
    except RefusedError as error:
        said = str(error)
        raise RefusedError(said if said.startswith(str(path)) else f"{path}: {said}") from error


def _bring(path: Path, kind: str, wanted: Wanted, activation: str | None) -> Imported:
    tolerance = TOLERANCE
    model = onnx.own(path, wanted) if kind == "onnx" else None
    if model is not None:  # its input is that of the network, not a tick's values
        if wanted.targets != 1 or wanted.step_ns:
            raise RefusedError(
                "an export of streamlstm's says its targets and step; leave them out"
            )
        notes = [OURS]
        inputs = _drawn(model.spec.window or STEPS, model.spec.width)
        ours = outputs_of(model, inputs)
    else:
        parts = _read(path, kind, activation)
        model, notes = assemble(parts, wanted), list(parts.notes)
        inputs = _values(model, parts.window)
        ours = forecasts_of(model, inputs)
        if parts.coarse:
            tolerance = COARSE
            notes.append(ROUNDED)
        if not model.spec.window and wanted.window is None:
            notes.append(
                "the file names no number of steps, so the state runs on from tick to tick; give"
                " --window W if the model was trained on windows of W"
            )
        if kind == "onnx" and parts.window == 1 and wanted.window is None:
            notes.append(
                "the file takes a single step and no states, so each tick is run from a zero one;"
                " give --window 0 if the model was stateful, which tf2onnx leaves out"
            )
    provenance = {
        "imported": path.name,
        "from": "ONNX" if kind == "onnx" else FRAMEWORKS[kind],
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "streamlstm": version("streamlstm"),
        "numpy": np.__version__,
    }
    run: dict[str, Callable[[], NDArray[Any] | None]] = {
        "keras": lambda: keras.run(path, inputs),
        "torch": lambda: torch.run(path, inputs, activation),
        "onnx": lambda: onnx.run(path, inputs),
    }
    theirs, deviation = run[kind](), None
    if theirs is not None:
        deviation = float((np.abs(ours[-1] - theirs.reshape(-1)) / (1 + np.abs(ours[-1]))).max())
        provenance["parity"] = f"{FRAMEWORKS[kind]}, {len(inputs)} random steps: {deviation:.1e}"
        if not deviation <= tolerance:
            raise RefusedError(
                f"{FRAMEWORKS[kind]} gives something else for the same inputs, by"
                f" {deviation:.2g}; it was not understood, and is not imported"
            )
    return Imported(replace(model, provenance=provenance), notes, deviation)


def _read(path: Path, kind: str, activation: str | None) -> Parts:
    if kind == "torch":
        return torch.read(path, activation)
    return keras.read(path) if kind == "keras" else onnx.read(path)


def _drawn(steps: int, width: int) -> NDArray[np.float32]:
    return np.random.default_rng(SEED).normal(size=(steps, width)).astype(np.float32)


def _values(model: Model, window: int) -> NDArray[np.float32]:
    """(T, inputs) of random ticks, in raw units; ``window``: as many as the file takes; 0: any."""
    spec, scaling = model.spec, model.spec.scaling
    drawn = _drawn(window or spec.window or STEPS, spec.inputs)
    if scaling.kind == "none":
        return drawn
    return (np.array(scaling.loc) + np.array(scaling.scale) * drawn).astype(np.float32)


# --- the commands ---------------------------------------------------------------------------------


def import_model(options: argparse.Namespace) -> None:
    """``streamlstm import``."""
    console = LeavingConsole(stderr=True)
    path: Path = options.model
    _check_paths(path, options.out)
    kind = options.framework or kind_of(path)
    wanted = Wanted(options.targets, round(options.step * 1e9), options.window)
    found = bring(path, kind, wanted, options.activation)
    save_model(found.model, options.out)
    spec = found.model.spec
    say(console, found.notes)
    if found.deviation is None:
        compared = f"not compared: no {FRAMEWORKS[kind]} here that runs the file"
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


def _check_paths(path: Path, out: Path, suffix: str = "") -> None:
    check_out("--out", out, suffix, read=[path])
    if not path.exists():
        raise ConfigError(f"{path}: no such file")


def export_model(options: argparse.Namespace) -> None:
    """``streamlstm export``."""
    console = LeavingConsole(stderr=True)
    exporter = {"onnx": to_onnx, "torch": to_torch}[options.to]
    _check_paths(options.model, options.out, exporter.SUFFIX)
    exporter.export(load_model(options.model), options.out)
    print_lines(console, f"written: {options.out}")
