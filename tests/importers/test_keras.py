"""Models that Keras saved compute here what they compute there."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from streamlstm.golden import network_of
from streamlstm.importers.keras import convert, read
from streamlstm.importers.parts import Wanted
from streamlstm.kernels import cpu, reference
from streamlstm.model import Model

ROOT = Path(__file__).parents[2]
STATEFUL = Wanted(window=0)


class Keras:
    """Keras in a process of its own."""

    def __init__(self) -> None:
        # NumPy: small models are run once, sooner than others compile them
        backend = {"KERAS_BACKEND": "numpy", "JAX_PLATFORMS": "cpu"}
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("keras_builds.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | backend | {"PYTHONPATH": str(ROOT)},
        )

    def ask(self, **asked: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer["done"]

    def build(
        self,
        folder: Path,
        source: str,
        formats: tuple[str, ...] = (".keras",),
        seed: int = 0,
        gain: float = 1.0,
        steps: int = 0,
    ) -> Path:
        folder.mkdir(exist_ok=True)
        self.ask(
            folder=str(folder), source=source, formats=formats, seed=seed, gain=gain, steps=steps
        )
        return folder / "model.keras"

    def close(self) -> None:
        self.process.communicate()


@pytest.fixture(scope="module")
def keras() -> Iterator[Keras]:
    process = Keras()
    yield process
    process.close()


def outputs_of(model: Model, inputs: np.ndarray, backend: ModuleType = reference) -> np.ndarray:
    """Raw outputs (T, O) of raw inputs (T, I), one tick after another from a zero state."""
    spec = model.spec
    loc, scale, answers = np.zeros(1), np.ones(1), np.ones(1)
    if spec.scaling.kind == "fixed":
        loc, scale = np.array(spec.scaling.loc), np.array(spec.scaling.scale)
    buffers = backend.allocate(network_of(spec, model.weights), 1)
    length = len(inputs)
    answers = np.zeros((length, spec.answers), np.float64 if backend is reference else np.float32)
    scaled = ((inputs - loc) / scale).astype(np.float32)
    slots = np.zeros(length, np.int32)
    backend.step(buffers, slots, scaled, np.arange(length + 1), answers)
    return answers * scale[0] + loc[0]


def worst(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    return float(np.abs(one - other).max())


# --- random architectures ------------------------------------------------------------------------

ACTIVATIONS = ("tanh", "sigmoid", "relu", "hard_sigmoid", "linear")
UNBOUNDED = ("relu", "linear")
NAMES = st.text("abcXYZ 019_-é", min_size=1, max_size=6)
KINDS = ("LSTM", "GRU", "GRU, reset before", "SimpleRNN")


@st.composite
def sources(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    """The source of a model, and what is known of it."""

    def name(of: str) -> str:
        # by its place, so that no two are the same; the order of names is not that of layers
        places.append(of)
        return repr(f"{draw(NAMES)}{99 - len(places)}")

    def call(layer: str, **options: Any) -> str:
        options = {"name": name(layer)} | {key: repr(value) for key, value in options.items()}
        return f"L.{layer}({', '.join(f'{key}={value}' for key, value in options.items())})"

    def maybe(*layers: str) -> list[str]:
        return [layer for layer in layers if draw(st.booleans())]

    places: list[str] = []
    inputs = draw(st.integers(1, 3))
    window = draw(st.sampled_from([None, 7]))
    cell = kind.split(",")[0]
    options: dict[str, Any] = {"activation": draw(st.sampled_from(("tanh", *ACTIVATIONS)))}
    if cell != "SimpleRNN":
        chosen = draw(st.sampled_from(("sigmoid", *ACTIVATIONS)))
        options["recurrent_activation"] = chosen
    if cell == "GRU":
        options["reset_after"] = "before" not in kind
    options["use_bias"] = draw(st.sampled_from((True, True, False)))
    # states that are not bounded by an activation grow unless the weights are small
    grows = any(options.get(what) in UNBOUNDED for what in ("activation", "recurrent_activation"))
    layers = maybe(
        call("Normalization"),
        call("Rescaling", scale=-0.8, offset=0.1),
        call("Normalization", mean=[0.2] * inputs, variance=[1.5] * inputs),
        call("GaussianNoise", stddev=0.1),
    )
    units = draw(st.lists(st.sampled_from((1, 2, 3, 5, 8)), min_size=1, max_size=3))
    steps = draw(st.booleans())
    cells = draw(st.sampled_from(("layers", "layers", "RNN", "stacked")))
    many = [f"L.{cell}Cell({n}, **{options})" for n in units]
    if len(units) == 1 and cells == "stacked":
        cells = "RNN"  # Keras itself fails on one LSTM cell in a list
    if cells == "stacked":
        layers.append(f"L.RNN([{', '.join(many)}], return_sequences={steps}, name={name(cell)})")
    for k, n in enumerate(units if cells != "stacked" else []):
        on = steps or k < len(units) - 1
        if cells == "RNN":
            layers.append(f"L.RNN({many[k]}, return_sequences={on}, name={name(cell)})")
        else:
            dropout = draw(st.sampled_from((0.0, 0.2)))
            layers.append(call(cell, units=n, return_sequences=on, dropout=dropout, **options))
        layers += maybe(call("Dropout", rate=0.2))
    last = draw(st.sampled_from(ACTIVATIONS))
    head = draw(st.sampled_from(("Dense", "two", "apart", "none", "each")))
    if head == "each" and steps:
        inner = f"L.Dense(4, activation={last!r})"
        layers.append(f"L.TimeDistributed({inner}, name={name('Dense')})")
    elif head == "apart":
        layers += [call("Dense", units=2, use_bias=False), call("Activation", activation=last)]
    elif head == "two":
        layers += [call("Dense", units=3), call("Dense", units=2, activation=last)]
    elif head == "none":
        last = "linear"
    else:
        layers.append(call("Dense", units=2, activation=last))
    if last == "linear":
        layers += maybe(
            call("Rescaling", scale=1.5, offset=-0.3), call("Normalization", invert=True)
        )
    chained = f"model = keras.Sequential([keras.Input(({window}, {inputs})), {', '.join(layers)}])"
    if draw(st.booleans()):
        calls = "\n".join(f"x = {layer}(x)" for layer in layers)
        chained = f"i = x = keras.Input(({window}, {inputs}))\n{calls}\nmodel = keras.Model(i, x)"
    return {"source": chained, "gain": 0.3 if grows else 1.0, "window": window, "units": units}


@pytest.mark.parametrize("kind", KINDS)
def test_any_stack_computes_what_keras_computes(
    kind: str, keras: Keras, tmp_path_factory: pytest.TempPathFactory
) -> None:
    seen = []

    @settings(
        max_examples=6,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(sources(kind), st.integers(0, 1 << 30))
    def check(drawn: dict[str, Any], seed: int) -> None:
        folder = tmp_path_factory.mktemp("keras")
        formats = (".keras", ".h5")
        path = keras.build(folder, drawn["source"], formats, seed, drawn["gain"], steps=1000)
        inputs, truth = np.load(folder / "inputs.npy"), np.load(folder / "outputs.npy")
        assume(truth.std(axis=0).max() > 1e-3)  # else a dead relu, which says nothing
        assert np.abs(truth).max() < 100, "weights with which states grow"
        model, legacy = convert(path, STATEFUL), convert(folder / "model.h5", STATEFUL)
        assert read(path).window == (drawn["window"] or 0)
        assert legacy.spec == model.spec
        for name, weights in model.weights.items():
            assert np.array_equal(legacy.weights[name], weights), name
        assert worst(outputs_of(model, inputs), truth) < 1e-5
        if len(drawn["units"]) == 1:
            assert worst(outputs_of(model, inputs, cpu), truth) < 1e-5
        seen.append(drawn["source"])

    check()
    assert len({*seen}) >= 5
