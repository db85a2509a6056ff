"""Keras in a process of its own, so that the tests' own process stays without it.

A line of JSON on stdin is a model to build, a line on stdout the answer; see `Keras` in
`test_keras.py`. Imports nothing of ours but what `run` is asked for.
"""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import keras
import numpy as np


def random_weights(model: Any, seed: int, gain: float) -> None:
    """Far from any a fit would start with; `gain` times smaller where a state might grow."""
    rng = np.random.default_rng(seed)
    weights = []
    for variable in model.weights:
        name, shape = variable.path.split("/")[-1], tuple(variable.shape)
        drawn = rng.normal(size=shape)
        if name == "recurrent_kernel":  # a contraction by gate, so that no rounding error grows
            for part in np.split(drawn, shape[1] // shape[0], axis=1):
                part *= 0.8 * gain / np.linalg.norm(part, 2)
        elif name == "variance":
            drawn = 0.5 + drawn**2
        elif name == "kernel":
            drawn *= (0.7 * gain) if "rnn" in variable.path else 0.7
        weights.append(drawn)
    model.set_weights(weights)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()


def build(
    source: str, folder: Path, formats: list[str], seed: int, gain: float, steps: int
) -> None:
    """Save the model of a source, and what it computes of `steps` inputs, each step's outputs."""
    keras.utils.clear_session()
    scope: dict[str, Any] = {"keras": keras, "L": keras.layers}
    exec(source, scope)
    model = scope["model"]
    random_weights(model, seed, gain)
    np.savez(folder / "weights.npz", *model.get_weights())
    for form in formats:
        path = folder / f"model{form}"
        (model.save_weights if "weights" in form else model.save)(path)
    if not steps:
        return
    inputs = np.random.default_rng(seed + 1).normal(size=(steps, model.input_shape[-1]))
    x: Any = np.clip(inputs, -2, 2).astype(np.float32)[None]
    np.save(folder / "inputs.npy", x[0])
    for layer in model.layers:
        if hasattr(layer, "return_sequences"):
            layer.return_sequences = True
        if not isinstance(layer, keras.layers.InputLayer):
            x = layer(x, training=False)
    np.save(folder / "outputs.npy", keras.ops.convert_to_numpy(x)[0])


def run(path: str, folder: Path) -> bool:
    """What `streamlstm.importers.keras.run` gives of the inputs in a folder."""
    from streamlstm.importers.keras import run

    out = run(Path(path), np.load(folder / "inputs.npy"))
    if out is not None:
        np.save(folder / "last.npy", out)
    return out is not None


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what Keras prints is no answer
    for line in sys.stdin:
        asked = json.loads(line)
        folder = Path(asked.pop("folder"))
        try:
            done = (run if "path" in asked else build)(folder=folder, **asked)
            answers.write(json.dumps({"done": done}) + "\n")
        except Exception:
            answers.write(json.dumps({"error": traceback.format_exc()}) + "\n")


if __name__ == "__main__":
    main()
