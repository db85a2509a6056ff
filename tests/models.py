"""Models with random weights, for tests that need one and care for no forecast."""

from pathlib import Path

import numpy as np

from streamlstm.golden import make_golden
from streamlstm.model import Errors, Model, Spec
from streamlstm.model_file import save_model

HOUR = 3_600_000_000_000


def random_model(seed: int = 0, *, calibrated: bool = True, **spec: object) -> Model:
    """A model of ``spec`` (an hourly one of 8 units, 3 steps ahead, unless it says otherwise)."""
    full = Spec.model_validate({"hidden": 8, "step_ns": HOUR, "horizon": 3} | spec)
    rng = np.random.default_rng(seed)
    size = 1 / np.sqrt(full.hidden)
    weights = {
        name: rng.uniform(-size, size, shape).astype(np.float32)
        for name, shape in full.weight_shapes().items()
    }
    levels = np.array([0.5, 0.8, 0.9, 0.95, 0.99])
    widths = rng.uniform(0.5, 1.0, (1, full.outputs)) * levels[:, None]
    errors = Errors(levels, widths.astype(np.float32)) if calibrated else None
    return Model(full, weights, make_golden(full, weights), errors, {"made by": "tests"})


def random_model_file(folder: Path, seed: int = 0, **spec: object) -> Path:
    """The same, saved."""
    path = folder / "model.safetensors"
    save_model(random_model(seed, **spec), path)
    return path
