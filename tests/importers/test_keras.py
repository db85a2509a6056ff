"""Models that Keras saved compute here what they compute there."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from streamlstm.exchange import bring
from streamlstm.golden import network_of
from streamlstm.importers.keras import read
from streamlstm.importers.keras_file import LARGEST_CONFIG
from streamlstm.importers.parts import RefusedError, Wanted, assemble
from streamlstm.kernels import cpu, reference
from streamlstm.model import Model

ROOT = Path(__file__).parents[2]
STATEFUL = Wanted(window=0)


def convert(path: Path, wanted: Wanted) -> Model:
    return assemble(read(path), wanted)


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
GATES = ("tanh", "sigmoid", "hard_sigmoid", "softsign", "hard_tanh", "sparse_sigmoid")
OTHERS = (
    "relu", "linear", "elu", "celu", "selu", "gelu", "silu", "swish", "mish", "softplus",
    "leaky_relu", "relu6", "hard_silu", "log_sigmoid", "soft_shrink", "sparse_plus",
    "tanh_shrink", "exponential",
)  # fmt: skip
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
    options: dict[str, Any] = {"use_bias": draw(st.sampled_from((True, True, False)))}
    if cell == "GRU":
        options["reset_after"] = "before" not in kind
    layers = maybe(
        call("Normalization"),
        call("Rescaling", scale=-0.8, offset=0.1),
        call("Normalization", mean=[0.2] * inputs, variance=[1.5] * inputs),
        call("GaussianNoise", stddev=0.1),
    )
    units = draw(st.lists(st.sampled_from((1, 2, 3, 5, 8)), min_size=1, max_size=3))
    steps = draw(st.booleans())
    cells = draw(st.sampled_from(("layers", "layers", "RNN", "stacked")))
    chosen = []
    for _ in units:
        each = {"activation": draw(st.sampled_from(("tanh", *ACTIVATIONS)))}
        if cell != "SimpleRNN":
            each["recurrent_activation"] = draw(st.sampled_from(("sigmoid", *ACTIVATIONS)))
        chosen.append(each)
    # states that are not bounded by an activation grow unless the weights are small
    grows = any(name in UNBOUNDED for each in chosen for name in each.values())
    many = [f"L.{cell}Cell({n}, **{options | own})" for n, own in zip(units, chosen, strict=True)]
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
            own = options | chosen[k]
            layers.append(call(cell, units=n, return_sequences=on, dropout=dropout, **own))
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
    return {"source": chained, "gain": 0.3 if grows else 1.0, "window": window}


@pytest.mark.parametrize("kind", KINDS)
def test_any_stack_computes_what_keras_computes(
    kind: str, keras: Keras, tmp_path_factory: pytest.TempPathFactory
) -> None:
    seen = []

    @settings(
        max_examples=5,
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
        seen.append(drawn["source"])

    check()
    assert len({*seen}) >= 5


def stack(*layers: str) -> str:
    return f"model = keras.Sequential([keras.Input((10, 2)), {', '.join(layers)}])"


LSTM = "L.LSTM(3, name='state')"
OVER_TIME = "L.LSTM(3, return_sequences=True, name='state')"
HEAD = "L.Dense(4, name='head')"


@pytest.mark.parametrize("name", GATES + OTHERS)
def test_each_activation_is_that_of_keras(name: str, keras: Keras, tmp_path: Path) -> None:
    new = "tanh" if name == "exponential" else name  # of a state it is infinite in no time
    gate = name if name in GATES else "sigmoid"
    cell = f"L.LSTM(3, activation={new!r}, recurrent_activation={gate!r}, return_sequences=True)"
    head = f"L.Dense(2, activation={name!r})"
    path = keras.build(tmp_path, stack(cell, head), gain=0.2, steps=20)
    model, inputs = convert(path, STATEFUL), np.load(tmp_path / "inputs.npy")
    assert worst(outputs_of(model, inputs, cpu), np.load(tmp_path / "outputs.npy")) < 1e-5


def test_the_backend_of_the_daemon_computes_it_too(keras: Keras, tmp_path: Path) -> None:
    """In float32; that it computes what the oracle does is held to elsewhere."""
    path = keras.build(tmp_path, stack("L.Normalization()", LSTM, HEAD), steps=1000)
    model, inputs = convert(path, STATEFUL), np.load(tmp_path / "inputs.npy")
    assert worst(outputs_of(model, inputs, cpu), np.load(tmp_path / "outputs.npy")) < 1e-5


@pytest.mark.parametrize(
    "layers",
    [
        (LSTM, HEAD, "L.Reshape((2, 2))"),
        (LSTM, "L.Flatten()", HEAD),
        (LSTM, HEAD, "L.Reshape((2, 2))", "L.Rescaling(3.0, name='up')"),
        (LSTM, HEAD, "L.Rescaling(3.0, 1.0)", "L.Dense(2, activation='tanh')"),
        (LSTM, "L.Rescaling([1.0, 2.0, 3.0], 1.0)", HEAD),
        (LSTM, HEAD, "L.ReLU()"),
        (LSTM, HEAD, "L.Activation('linear')", "L.Activation('sigmoid')"),
        (LSTM, HEAD, "L.LeakyReLU(0.2)"),
        (LSTM, HEAD, "L.ReLU(6.0)"),
        (LSTM, HEAD, "L.ELU()"),
        (LSTM, "L.Dense(2, activation='exponential')"),
        ("L.Rescaling([0.5, -2.0], offset=[1.0, 3.0])", LSTM, HEAD),
        ("L.Normalization(axis=None)", LSTM, HEAD),
        ("L.Normalization(axis=2)", LSTM, HEAD, "L.Normalization(axis=1, invert=True)"),
    ],
)
def test_what_only_changes_the_form_of_a_model(
    layers: tuple[str, ...], keras: Keras, tmp_path: Path
) -> None:
    """All over a window, as it was built for; Keras' `run` gives the truth of its last step."""
    path = keras.build(tmp_path, stack(*layers), gain=1.0)
    inputs = np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32)
    np.save(tmp_path / "inputs.npy", inputs)
    assert keras.ask(path=str(path), folder=str(tmp_path))
    model = convert(path, Wanted())
    assert model.spec.window == 10
    assert worst(outputs_of(model, inputs)[-1], np.load(tmp_path / "last.npy")) < 1e-5


def test_where_keras_cannot_tell_there_is_no_output(keras: Keras, tmp_path: Path) -> None:
    """Of weights alone it has no model; of Keras 2 it computes another hard_sigmoid.

    And a class that a later Keras may have is not known to this one.
    """
    keras.build(tmp_path, stack(LSTM, HEAD), (".h5", ".weights.h5"), steps=10)
    with h5py.File(tmp_path / "model.h5") as file:
        config = file.attrs["model_config"].replace("GlorotUniform", "Later")
    shutil.copy(tmp_path / "model.h5", tmp_path / "later.h5")
    with h5py.File(tmp_path / "later.h5", "a") as file:
        file.attrs["model_config"] = config
    with h5py.File(tmp_path / "model.h5", "a") as file:
        file.attrs["keras_version"] = "2.15.0"
    for name in ("model.h5", "model.weights.h5", "later.h5"):
        read(tmp_path / name)
        assert not keras.ask(path=str(tmp_path / name), folder=str(tmp_path))


def test_a_stateful_model_has_no_window(keras: Keras, tmp_path: Path) -> None:
    source = (
        "model = keras.Sequential([keras.Input(batch_shape=(4, 10, 2)),"
        " L.GRU(3, stateful=True), L.Dense(1)])"
    )
    path = keras.build(tmp_path, source, steps=0)
    inputs = np.random.default_rng(0).normal(size=(25, 2)).astype(np.float32)
    np.save(tmp_path / "inputs.npy", inputs)
    assert keras.ask(path=str(path), folder=str(tmp_path))
    model = convert(path, Wanted())
    assert model.spec.window == 0
    assert worst(outputs_of(model, inputs)[-1], np.load(tmp_path / "last.npy")) < 1e-5


def test_what_does_nothing_is_left_out_and_said(keras: Keras, tmp_path: Path) -> None:
    lstm = "L.LSTM(3, recurrent_dropout=0.5, name='state')"
    path = keras.build(tmp_path, stack("L.GaussianNoise(0.1, name='hiss')", lstm, HEAD))
    noise, dropout = read(path).notes
    assert noise == "hiss (GaussianNoise) does nothing outside of fitting"
    assert dropout == "state: its dropout does nothing outside of fitting"


@pytest.mark.parametrize(
    ("layers", "coarse"),
    [
        (("L.LSTM(3, dtype='mixed_float16')", HEAD), True),
        (("L.LSTM(3, dtype='mixed_bfloat16')", HEAD), True),
        (("L.RNN(L.LSTMCell(3, dtype='mixed_float16'))", HEAD), True),
        ((OVER_TIME, "L.TimeDistributed(L.Dense(2, dtype='mixed_float16'))"), True),
        (("L.Rescaling(2.0, dtype='mixed_float16')", LSTM), True),
        ((LSTM, HEAD, "L.Dropout(0.1, dtype='mixed_float16')"), False),
        (("L.LSTM(3, name='float16')", HEAD), False),
    ],
)
def test_that_it_computed_in_16_bits_is_known(
    layers: tuple[str, ...], coarse: bool, keras: Keras, tmp_path: Path
) -> None:
    keras.build(tmp_path, stack(*layers), (".keras", ".h5"))
    for name in ("model.keras", "model.h5"):
        assert read(tmp_path / name).coarse == coarse


def test_a_dropout_of_each_step_is_left_out(keras: Keras, tmp_path: Path) -> None:
    path = keras.build(
        tmp_path, stack(OVER_TIME, "L.TimeDistributed(L.Dropout(0.5), name='thin')", "L.LSTM(2)")
    )
    found = read(path)
    assert [layer.weight_hh.shape[1] for layer in found.layers] == [3, 2]
    assert found.notes == ["thin (TimeDistributed) does nothing outside of fitting"]


def test_keras_itself_is_never_imported(keras: Keras, tmp_path: Path) -> None:
    read(keras.build(tmp_path, stack(LSTM, HEAD)))
    assert not {"keras", "jax", "tensorflow"} & {*sys.modules}


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (("L.Bidirectional(L.LSTM(3), name='x')", HEAD), r"x \(Bidirectional\): .*backwards too"),
        (("L.Conv1D(3, 2, name='x')", LSTM, HEAD), r"x \(Conv1D\): it cannot be run: streamlstm"),
        ((LSTM, "L.LayerNormalization(name='x')", HEAD), r"x \(LayerNormalization\): "),
        ((LSTM, "L.BatchNormalization(name='x')", HEAD), r"x \(BatchNormalization\): "),
        (("L.Masking(name='x')", LSTM, HEAD), r"x \(Masking\): .* leaves steps out"),
        (("L.LSTM(3, go_backwards=True, name='x')", HEAD), r"x \(LSTM\): it reads .* backwards"),
        ((LSTM, "L.RepeatVector(3, name='x')", HEAD), r"x \(RepeatVector\): .*decoder"),
        ((OVER_TIME, "L.GlobalAveragePooling1D(name='x')", HEAD), r"x \(GlobalAverage"),
        ((OVER_TIME, "L.Flatten(name='x')", HEAD), r"x \(Flatten\): it mixes steps"),
        (("L.Reshape((5, 4), name='x')", LSTM, HEAD), r"x \(Reshape\): it mixes steps"),
        ((LSTM, "L.Reshape((1, 3), name='x')", HEAD), r"head \(Dense\): comes after a Reshape"),
        (("L.Dense(3, name='x')", LSTM, HEAD), r"x \(Dense\): comes before the recurrent layers"),
        (("L.Activation('relu', name='x')", LSTM), r"x \(Activation\): relu before the recurrent"),
        ((LSTM, HEAD, "L.PReLU(name='x')"), r"x \(PReLU\): it cannot be run"),
        (
            (LSTM, HEAD, "L.LeakyReLU(name='x')"),
            r"x \(LeakyReLU\): its negative_slope is 0.3; only 0.2",
        ),
        ((LSTM, HEAD, "L.ReLU(5.0, name='x')"), r"x \(ReLU\): its max_value is 5.0; only None"),
        ((LSTM, HEAD, "L.ReLU(6.0, threshold=1, name='x')"), r"x \(ReLU\): its threshold is 1"),
        ((LSTM, HEAD, "L.ELU(0.5, name='x')"), r"x \(ELU\): its alpha is 0.5; only 1 can"),
        (
            (LSTM, "L.Dense(4, activation='relu', name='hidden')", "L.Dense(1, name='x')"),
            r"x \(Dense\): comes after hidden, whose activation is relu; streamlstm has one head",
        ),
        ((OVER_TIME, HEAD, "L.LSTM(2, name='x')"), r"x \(LSTM\): head is between it and state"),
        ((OVER_TIME, "L.Rescaling(2.0)", "L.LSTM(2, name='x')"), r"x \(LSTM\): a scaling is "),
        (
            ("L.LSTM(3, activation='squareplus', name='x')",),
            r"x: activation squareplus cannot be run",
        ),
        (("L.GRU(3, recurrent_activation='glu', name='x')",), r"x: activation glu cannot be run"),
        ((LSTM, "L.Dense(3, activation='softmax', name='x')"), r"x: activation softmax cannot"),
        (("L.LSTM(3, activation=mine, name='x')",), r"x: activation mine of your own cannot"),
        ((OVER_TIME, "L.GRU(3, name='x')"), r"x is of GRU cells, state of LSTM"),
        (("L.Normalization(axis=1, name='x')", LSTM), r"x \(Normalization\): axis \[1\]; it can"),
        (("L.Normalization(mean=0, variance=-1, name='x')", LSTM), r"x .*: its numbers are not"),
        (("L.Rescaling(0.0)", LSTM), r"an input is scaled by 0"),
        ((LSTM, "L.Dense(2, activation='relu', name='x')", "L.Rescaling(2.0)"), r"x: its outputs"),
        (("keras.Sequential([L.LSTM(3)], name='x')", HEAD), r"x \(Sequential\): .*inside a model"),
        (("L.TimeDistributed(L.LayerNormalization(), name='x')", LSTM), r"x \(TimeDistributed\)"),
        (("L.RNN(Own(units=3), name='x')",), r"x \(RNN\): cells of the class Own"),
        (("OwnDense(3, name='x')",), r"x \(OwnDense of your own\): it cannot be run"),
        (("L.Dropout(0.5)",), r"there is no recurrent layer in it"),
    ],
)
def test_a_stack_that_cannot_be_run_is_refused_by_name(
    layers: tuple[str, ...], message: str, keras: Keras, tmp_path: Path
) -> None:
    own = "class Own(L.LSTMCell): pass\nclass OwnDense(L.Dense): pass\ndef mine(x): return x\n"
    path = keras.build(tmp_path, own + stack(*layers))
    with pytest.raises(RefusedError, match=message) as refused:
        bring(path, "keras")
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "a = L.LSTM(3, return_sequences=True)(i)\nx = L.Attention(name='x')([a, a])",
            r"x \(Attention\): takes what (\w+), \1 give",
        ),
        (
            "x = L.Add(name='x')([L.LSTM(3, name='a')(i), L.GRU(3, name='b')(i)])",
            r"x \(Add\): takes what a, b give",
        ),
        (
            "y, h, c = L.LSTM(3, return_state=True, name='x')(i)\nx = L.Dense(1)(y)",
            r"x \(LSTM\): its state is an output",
        ),
        (
            "h = L.Flatten()(i)\nh = L.Dense(3, name='h')(h)\n"
            "x = L.GRU(3, name='x')(i, initial_state=h)",
            r"x \(GRU\): takes what .*, h give",
        ),
        (
            "one = L.LSTM(2, return_sequences=True, name='x')\nx = one(one(i))",
            r"x \(LSTM\): used 2",
        ),
        (
            "x = L.LSTM(3)(L.Dropout(0.5, name='x')(i, training=True))",
            r"x \(Dropout\): called with training=True",
        ),
        (
            "x = L.LSTM(3, return_sequences=True)(i)[:, -1]",
            r"get_item\w* \(GetItem\): .*leave return_seq",
        ),
        ("x = [L.LSTM(3, name='a')(i), L.LSTM(3, name='b')(i)]", r"2 outputs \(a, b\)"),
        ("j = keras.Input((10, 1), name='j')\nx = L.LSTM(3)(i)\ni = [i, j]", r"2 inputs \(i, j\)"),
    ],
)
def test_a_graph_that_is_no_chain_is_refused_by_name(
    body: str, message: str, keras: Keras, tmp_path: Path
) -> None:
    source = f"i = keras.Input((10, 2), name='i')\n{body}\nmodel = keras.Model(i, x)"
    keras.build(tmp_path, source, (".keras", ".h5"))
    for form in (".keras", ".h5"):
        with pytest.raises(RefusedError, match=message):
            convert(tmp_path / f"model{form}", Wanted())


def test_inputs_without_steps_are_refused(keras: Keras, tmp_path: Path) -> None:
    source = "model = keras.Sequential([keras.Input((20,), name='x'), L.Dense(3)])"
    with pytest.raises(RefusedError, match=r"x \(InputLayer\): inputs of the shape \[None, 20\]"):
        read(keras.build(tmp_path, source))


# --- weights alone -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layers",
    [
        (
            "L.LSTM(3, return_sequences=True, name='b')",
            "L.Dropout(0.1)",
            "L.LSTM(2, name='a')",
            HEAD,
        ),
        ("L.GRU(3)", HEAD),
        ("L.GRU(3, reset_after=False)",),
        ("L.SimpleRNN(3, use_bias=False)", "L.Dense(1, use_bias=False)"),
        (*["L.SimpleRNN(2, return_sequences=True)"] * 12, HEAD),  # their order is no text's
    ],
)
def test_weights_alone_say_what_they_are_by_their_shapes(
    layers: tuple[str, ...], keras: Keras, tmp_path: Path
) -> None:
    path = keras.build(tmp_path, stack(*layers), (".keras", ".weights.h5"))
    whole = convert(path, STATEFUL)
    alone = convert(tmp_path / "model.weights.h5", STATEFUL)
    assert alone.spec == whole.spec
    for name, weights in whole.weights.items():
        assert np.array_equal(alone.weights[name], weights), name
    assert (
        "the activations that Keras has by default" in read(tmp_path / "model.weights.h5").notes[0]
    )


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((LSTM, HEAD, "L.Activation('relu')"), "say nothing about activation"),
        ((LSTM, HEAD, "L.Dense(2)"), "say no activations of dense, dense_1"),
        (("L.Normalization()", LSTM), "do not say what normalization is"),
        (("L.GRU(3, use_bias=False)",), "do not say what gru is"),
        (("L.RNN(L.LSTMCell(3), return_sequences=True)", LSTM), "say no order of lstm and rnn"),
    ],
)
def test_weights_alone_that_say_too_little_are_refused(
    layers: tuple[str, ...], message: str, keras: Keras, tmp_path: Path
) -> None:
    keras.build(tmp_path, stack(*layers), (".weights.h5",))
    with pytest.raises(RefusedError, match=f"{message}; save the whole model: model.save"):
        read(tmp_path / "model.weights.h5")


# --- files of Keras 2 ----------------------------------------------------------------------------

OLD = "def old(x): return keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0)\n"
"""Keras 2's hard_sigmoid, for Keras 3 to give the truth with."""


def write_keras_2(
    path: Path,
    layers: list[tuple[str, dict[str, Any], list[str]]],
    weights: list[np.ndarray],
    version: str,
    model: str | None = "Sequential",
) -> None:
    """A file as Keras 2 writes it; each layer has class, config and names of weights."""
    listed = [{"class_name": kind, "config": config} for kind, config, _ in layers]
    names = [config["name"] for _, config, _ in layers]
    config: Any = {"name": "model", "layers": listed}
    if model == "list":  # before 2.2.3
        model, config = "Sequential", listed
    elif model == "Functional":
        for k, each in enumerate(listed):
            each["name"] = names[k]
            each["inbound_nodes"] = [[[names[k - 1], 0, 0, {}]]] if k else []
        listed.reverse()  # the order in a file is no order of the data
        config |= {"input_layers": [[names[0], 0, 0]], "output_layers": [[names[-1], 0, 0]]}
    left = list(weights)
    with h5py.File(path, "w") as file:
        about = {"keras_version": version.encode(), "backend": b"tensorflow"}
        group = file
        if model is not None:
            whole = {"class_name": model, "config": config}
            file.attrs.update(about | {"model_config": json.dumps(whole).encode()})
            group = file.create_group("model_weights")
        group.attrs.update(about | {"layer_names": [name.encode() for name in names]})
        for _, config, own in layers:
            of = group.create_group(config["name"])
            of.attrs["weight_names"] = [name.encode() for name in own]
            for name in own:
                of[name] = left.pop(0)
    assert not left


def names_of(*kept: str) -> list[str]:
    return [f"it/cell/{name}:0" for name in kept]


THREE = names_of("kernel", "recurrent_kernel", "bias")
TWO = names_of("kernel", "bias")


@pytest.mark.parametrize(
    ("source", "version", "model", "recurrent"),
    [
        (
            "L.LSTM(3, recurrent_activation=old)",
            "2.2.2",
            "list",
            ("LSTM", {"activation": "tanh", "recurrent_activation": "hard_sigmoid"}),
        ),
        (
            "L.GRU(3, recurrent_activation=old, reset_after=False)",
            "2.2.4",
            "Sequential",
            ("GRU", {"activation": "tanh", "recurrent_activation": "hard_sigmoid"}),
        ),
        (
            "L.GRU(3, activation=old, recurrent_activation=old)",
            "2.15.0",
            "Functional",
            (
                "GRU",
                {
                    "activation": "hard_sigmoid",
                    "recurrent_activation": "hard_sigmoid",
                    "reset_after": True,
                },
            ),
        ),
        (
            "L.SimpleRNN(3, activation=old)",
            "2.9.0",
            "Sequential",
            ("SimpleRNN", {"activation": "hard_sigmoid"}),
        ),
        (
            "L.LSTM(3, activation='relu')",
            "2.4.0",
            "Functional",
            ("LSTM", {"activation": "relu", "recurrent_activation": "sigmoid"}),
        ),
    ],
)
def test_files_of_keras_2(
    source: str,
    version: str,
    model: str,
    recurrent: tuple[str, dict[str, Any]],
    keras: Keras,
    tmp_path: Path,
) -> None:
    stack = f"[keras.Input((7, 2)), {source}, L.Dense(2, activation=old)]"
    keras.build(tmp_path, f"{OLD}model = keras.Sequential({stack})", (), gain=0.7, steps=200)
    weights = [*np.load(tmp_path / "weights.npz").values()]
    kind, options = recurrent
    cell = {"name": "it", "units": 3, "use_bias": True, "return_sequences": False} | options
    head = {"name": "head", "units": 2, "activation": "hard_sigmoid", "use_bias": True}
    layers = [(kind, cell, THREE), ("Dense", head, TWO)]
    shape = {"batch_input_shape": [None, 7, 2]}
    if model == "list":  # such old ones had no layer for the input
        cell |= shape
    else:
        layers.insert(0, ("InputLayer", {"name": "in", **shape}, []))
    path = tmp_path / "old.h5"
    write_keras_2(path, layers, weights, version, model)
    inputs, truth = np.load(tmp_path / "inputs.npy"), np.load(tmp_path / "outputs.npy")
    assert read(path).window == 7
    assert worst(outputs_of(convert(path, STATEFUL), inputs), truth) < 1e-5


def test_an_lstm_that_keras_2_computes_otherwise_is_refused(tmp_path: Path) -> None:
    """Its hard_sigmoid of the cell state has no weight to fold the slope into."""
    cell = {"name": "it", "units": 1, "activation": "hard_sigmoid"}
    weights = [np.ones((1, 4)), np.ones((1, 4)), np.ones(4)]
    layers = [("LSTM", cell | {"recurrent_activation": "sigmoid"}, THREE)]
    write_keras_2(tmp_path / "old.h5", layers, weights, "2.15.0")
    with pytest.raises(RefusedError, match=r"it \(LSTM\): hard_sigmoid as activation of an LSTM"):
        read(tmp_path / "old.h5")


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("2.15.0", None),
        ("2.2.4-tf", r"had hard_sigmoid as the default .* or sigmoid; save the whole model"),
        ("1.2.2", "Keras 1 wrote it"),
    ],
)
def test_weights_alone_of_keras_2(version: str, message: str | None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=shape) for shape in ((2, 9), (3, 9), (2, 9), (3, 1), (1,))]
    layers = [("", {"name": "z"}, THREE), ("", {"name": "dropout_1"}, []), ("", {"name": "a"}, TWO)]
    path = tmp_path / "old.weights.h5"
    write_keras_2(path, layers, weights, version, None)
    if message is not None:
        with pytest.raises(RefusedError, match=message):
            read(path)
        return
    found = read(path)
    assert [layer.name for layer in found.layers] == ["z"]
    assert found.layers[0].cell == "gru"
    assert np.array_equal(found.layers[0].weight_hh[3:6], weights[1][:, :3].T.astype(np.float32))
    assert found.head is not None
    assert np.array_equal(found.head.weight, weights[3].T.astype(np.float32))


@pytest.mark.parametrize("top", ["layers", "_layer_checkpoint_dependencies"])
def test_keras_archives_of_keras_2(top: str, keras: Keras, tmp_path: Path) -> None:
    """From 2.12 on it wrote them too, at first under another name."""
    path = keras.build(tmp_path, stack("L.GRU(3, recurrent_activation='hard_sigmoid')", HEAD))
    new, old = read(path), tmp_path / "old.keras"
    with zipfile.ZipFile(path) as archive:
        (tmp_path / "w.h5").write_bytes(archive.read("model.weights.h5"))
        config = archive.read("config.json")
    if top != "layers":
        with h5py.File(tmp_path / "w.h5", "a") as file:
            file.move("layers", top)
    with zipfile.ZipFile(old, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", config)
        archive.writestr("metadata.json", json.dumps({"keras_version": "2.13.1"}))
        archive.write(tmp_path / "w.h5", "model.weights.h5")
    layer, again = new.layers[0], read(old).layers[0]
    slopes = np.repeat([1.2, 1.2, 1.0], 3)  # r, z, n
    assert worst(again.weight_hh, layer.weight_hh * slopes[:, None]) < 1e-6
    assert worst(again.bias, layer.bias * slopes) < 1e-6


def test_weights_alone_of_keras_2_12(keras: Keras, tmp_path: Path) -> None:
    """Its .weights.h5 name the group of layers otherwise, and no version."""
    layers = ("L.GRU(3, return_sequences=True)", "L.Dropout(0.1)", "L.GRU(2)", HEAD)
    keras.build(tmp_path, stack(*layers), (".weights.h5",))
    path = tmp_path / "model.weights.h5"
    new = convert(path, STATEFUL)
    with h5py.File(path, "a") as file:
        file.move("layers", "_layer_checkpoint_dependencies")
    assert convert(path, STATEFUL).id == new.id


# --- files that are none -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(keras: Keras, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model in all forms."""
    folder = tmp_path_factory.mktemp("saved")
    keras.build(folder, stack(OVER_TIME, "L.LSTM(2)", HEAD), (".keras", ".h5", ".weights.h5"))
    return folder


def refused(path: Path) -> str:
    with pytest.raises(RefusedError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("form", [".keras", ".h5", ".weights.h5"])
def test_a_file_cut_short_is_refused_in_a_line(form: str, saved: Path, tmp_path: Path) -> None:
    whole = (saved / f"model{form}").read_bytes()
    path = tmp_path / f"cut{form}"
    for share in (0, 10, 2000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:share])
        refused(path)


def test_what_is_no_file_of_keras_is_refused_in_a_line(tmp_path: Path) -> None:
    assert "No such file or directory" in refused(tmp_path / "none.keras")
    assert "a folder; load it in Keras and save the whole model" in refused(tmp_path)
    (tmp_path / "text.h5").write_text("value\n1\n")
    assert "neither a .keras archive nor an .h5 file" in refused(tmp_path / "text.h5")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a", "b")
    assert "no model of Keras', or a damaged one" in refused(tmp_path / "other.zip")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["layers"] = np.ones(3)
    refused(tmp_path / "other.h5")


def test_a_whole_model_needs_no_more_than_its_weights(saved: Path, tmp_path: Path) -> None:
    """Sizes are looked at before anything is read; weights in another file are not."""
    for name, change, message in (
        ("large", {"shape": (1 << 20, 1 << 20), "dtype": "f4"}, "where .* is expected"),
        ("more", {"shape": (12,), "dtype": "f4"}, "1 more weights than it should have"),
        ("whole", {"data": np.ones((2, 12), np.int8)}, "weights of int8; dequantize"),
        ("nan", {"data": np.full((2, 12), np.nan)}, "weights that are no finite numbers"),
        ("other", {"shape": (2, 12), "dtype": "f4", "external": "/etc/passwd"}, "in another file"),
        ("none", None, "its weights are not in the file"),
    ):
        path = tmp_path / f"{name}.h5"
        path.write_bytes((saved / "model.h5").read_bytes())
        with h5py.File(path, "a") as file:
            weights = file["model_weights/state"]
            kernel = weights.attrs["weight_names"][0]
            if change is None:
                weights.attrs["weight_names"] = np.array([], "S1")
            elif name == "more":
                weights.create_dataset("fourth", **change)
                weights.attrs["weight_names"] = [*weights.attrs["weight_names"], "fourth"]
            else:
                del weights[kernel]
                weights.create_dataset(kernel, **change)
        assert re.search(rf"state \(LSTM\): .*{message}", refused(path)), message


def test_a_config_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", " " * (LARGEST_CONFIG + 1))
    assert "config.json is larger than" in refused(tmp_path / "bomb.keras")


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(data=st.data())
def test_any_config_is_read_or_refused_in_a_line(data: st.DataObject, saved: Path) -> None:
    """One place in it, at random, is something else."""
    with h5py.File(saved / "model.h5") as file:
        config = json.loads(file.attrs["model_config"])
    at: Any = config
    while True:
        keys = sorted(at) if isinstance(at, dict) else list(range(len(at)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(at[key], dict | list) or not at[key] or data.draw(st.integers(0, 4)) == 0:
            break
        at = at[key]
    at[key] = data.draw(st.sampled_from([None, -1, 1 << 70, 0.5, "x", "relu", [], [[1]], {}, True]))
    path = saved / "other.h5"
    path.write_bytes((saved / "model.h5").read_bytes())
    with h5py.File(path, "a") as file:
        file.attrs["model_config"] = json.dumps(config)
    said = ""
    try:
        convert(path, Wanted())
    except RefusedError as error:
        said = str(error)
    assert "\n" not in said


def test_without_h5py_the_mend_is_said(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "pip install 'streamlstm[keras]'" in refused(saved / "model.keras")


def test_more_than_a_model_may_have_is_refused(tmp_path: Path) -> None:
    cell = {"units": 1, "activation": "tanh", "use_bias": False, "return_sequences": True}
    layers = [("SimpleRNN", cell | {"name": f"l{k}"}, THREE[:2]) for k in range(17)]
    write_keras_2(tmp_path / "big.h5", layers, [np.ones((1, 1))] * 34, "2.15.0")
    with pytest.raises(RefusedError, match=r"layers: .* less than or equal to 16"):
        convert(tmp_path / "big.h5", Wanted())
