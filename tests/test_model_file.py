"""Model files: what is written is read; what is damaged is refused in one line with the mend."""

import contextlib
import json
import pickle
import re
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import streamlstm
from streamlstm.golden import check_golden
from streamlstm.kernels import reference
from streamlstm.model import ModelError
from streamlstm.model_file import load_model, save_model
from tests.models import random_model, random_model_file


def rewritten(path: Path, change: object) -> Path:
    """The model file at ``path`` after ``change(header, tensors)``."""
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["streamlstm"])
    tensors = load_file(path)
    change(header, tensors)  # type: ignore[operator]
    save_file(tensors, path, {"streamlstm": json.dumps(header)})
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as error:
        load_model(path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


CELLS: list[dict[str, object]] = [
    {},
    {"cell": "gru"},
    {"cell": "gru", "reset_after": False},
    {"cell": "rnn", "activation": "relu"},
    {"activation": ("relu", "tanh")},
    {"window": 5},
    {"cell": "gru", "window": 24},
]


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("kind", CELLS, ids=str)
def test_what_is_saved_is_loaded(tmp_path: Path, calibrated: bool, kind: dict[str, object]) -> None:
    model = random_model(
        3, calibrated=calibrated, layers=2, targets=2, inputs=3, lags=(1, 24), calendar=("hour",),
        **kind,
    )  # fmt: skip
    save_model(model, tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors")
    assert again.spec == model.spec
    assert again.id == model.id
    assert again.provenance == model.provenance
    assert again.weights.keys() == model.weights.keys()
    for name, weight in model.weights.items():
        np.testing.assert_array_equal(again.weights[name], weight)
    np.testing.assert_array_equal(again.golden.inputs, model.golden.inputs)
    np.testing.assert_array_equal(again.golden.outputs, model.golden.outputs)
    assert again.golden.states.keys() == model.golden.states.keys() == set(model.spec.states)
    for name, state in model.golden.states.items():
        np.testing.assert_array_equal(again.golden.states[name], state)
    assert (again.errors is not None) == calibrated


def test_errors_of_the_young_are_loaded_as_they_were_saved(tmp_path: Path) -> None:
    model, ages = random_model(lags=(1, 24)), np.array([7, 24])
    assert model.errors is not None
    young = np.random.default_rng(0).uniform(size=(2, 5, 3)).astype(np.float32)
    errors = replace(model.errors, ages=ages, young=young, seen=young[0, 0])
    save_model(replace(model, errors=errors), tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors").errors
    assert again is not None
    np.testing.assert_array_equal(again.ages, ages)
    np.testing.assert_array_equal(again.young, young)
    np.testing.assert_array_equal(again.young_at(0.8), young[:, 1])
    np.testing.assert_array_equal(again.seen, young[0, 0])
    assert model.errors.young_at(0.8).shape == (0, 3)  # of a model that has none


def test_missing_file(tmp_path: Path) -> None:
    assert "no such model file" in refusal(tmp_path / "none.safetensors")


@given(st.data())
@settings(max_examples=60)
def test_a_damaged_file_is_refused_or_proves_its_weights(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any cut or flipped byte: an error in one line, or a model whose golden is still checked."""
    path = random_model_file(tmp_path_factory.mktemp("m"))
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:at]
    else:
        content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        model = load_model(path)
    except ModelError as error:
        said = str(error)
        assert "\n" not in said
        return
    with contextlib.suppress(ModelError):
        check_golden(model, reference)


def test_a_safetensors_file_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": np.zeros(3)}, path)
    assert "not a model of streamlstm" in refusal(path)


def young(ages: Sequence[int] = (2,), outputs: int = 3) -> dict[str, np.ndarray]:
    """Tensors of the errors of the young."""
    errors = np.ones((len(ages), 5, outputs), np.float32)
    return {"errors.ages": np.array(ages), "errors.young": errors}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda h, t: h.update(format=99), "format 99"),
        (lambda h, t: h["spec"].update(hidden="many"), "hidden"),
        (lambda h, t: h["spec"].update(colour="red"), "colour"),
        (lambda h, t: h["spec"].update(timezone="Mars/Olympus"), "unknown time zone"),
        (lambda h, t: h["spec"].update(hidden=9), "the spec asks for"),
        (lambda h, t: h["spec"].update(base="seasonal"), "needs a season"),
        (lambda h, t: h["spec"].update(activation=["tanh"] * 3), "3 activations, but layers: 1"),
        (lambda h, t: h["spec"].update(activation=[]), "0 activations, but layers: 1"),
        (lambda h, t: h["spec"].update(activation=["tan"]), "spec, activation.layer.0: Input"),
        (lambda h, t: h["spec"].update(recurrent_activation=1), "recurrent_activation.all: Input"),
        (lambda h, t: h["spec"].update(base="blend"), "goes with a blend"),
        (
            lambda h, t: h["spec"].update(
                base="blend", blend={"short": 1, "long": 2, "weights": [[0, 0, 0]]}
            ),
            "weights for 1 outputs",
        ),
        (lambda h, t: h["spec"].update(targets=4), "targets"),
        (lambda h, t: h.pop("spec"), "damaged"),
        (lambda h, t: t.pop("head.bias"), "head.bias is missing"),
        (lambda h, t: t.pop("golden.h"), "golden.h is missing"),
        (lambda h, t: t.pop("golden.c"), "golden.c is missing"),
        (lambda h, t: h["spec"].update(cell="gru"), "gru.weight_ih_l0 is missing"),
        (lambda h, t: h["spec"].update(cell="transformer"), "cell"),
        (lambda h, t: h["spec"].update(window=-1), "window"),
        (lambda h, t: t.update({"gru.bias_l0": np.zeros(1)}), "unknown tensor"),
        (lambda h, t: t.update({"lstm.extra": np.zeros(1)}), "unknown tensor lstm.extra"),
        (lambda h, t: t["head.bias"].fill(np.nan), "NaN"),
        (lambda h, t: t.update({"head.bias": t["head.bias"].astype(float)}), "float64"),
        (lambda h, t: t["errors.levels"].fill(0.5), "must rise"),
        (lambda h, t: t.update(young(ages=[3, 2])), "errors.ages must rise"),
        (lambda h, t: t.update(young(ages=[0])), "errors.ages must rise"),
        (lambda h, t: t.update(young(ages=range(1, 18))), "errors.ages must rise, 16 at most"),
        (lambda h, t: t.update(young(outputs=2)), "errors.young is float32[1, 5, 2]"),
        (lambda h, t: t.update({"errors.ages": np.array([2])}), "errors.young is missing"),
        (
            lambda h, t: t.update({"errors.seen": np.ones(2, np.float32)}),
            "errors.seen is float32[2]",
        ),
        (lambda h, t: h["spec"].update(horizon=10**9), "horizon"),
        (lambda h, t: h["spec"].update(horizon=-(10**30)), "horizon"),
        (lambda h, t: h["spec"].update(hidden=10**6), "hidden"),
        (lambda h, t: h["spec"].update(inputs=10**6), "inputs"),
        (lambda h, t: h["spec"].update(layers=10**6), "layers"),
        (lambda h, t: h["spec"].update(lags=[10**9]), "lags"),
        (lambda h, t: h["spec"].update(lags=[*range(1, 70_000)]), "65,536 at most"),
        (
            lambda h, t: h["spec"].update(inputs=1024, targets=1024, horizon=4096),
            "4,194,304 forecasts a tick; 65,536 at most",
        ),
        (lambda h, t: h.update(provenance=[1, 2]), "damaged"),
        (lambda h, t: h["spec"].update({"a\n\x1b[2Jb": 1}), "a\\n\\x1b[2Jb: Extra inputs"),
    ],
)
def test_an_inconsistent_file(tmp_path: Path, change: object, said: str) -> None:
    assert said in refusal(rewritten(random_model_file(tmp_path), change))


def header_of(path: Path, shapes: dict[str, list[int]], text: str) -> Path:
    """A file that promises tensors of ``shapes``, zeros that take no room on the disk."""
    tensors: dict[str, object] = {"__metadata__": {"streamlstm": text}}
    at = 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        tensors[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(tensors).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + at)
    return path


@pytest.mark.parametrize(
    "name", ["head.weight", "golden.inputs", "errors.quantiles", "errors.seen"]
)
def test_no_memory_is_taken_for_what_is_too_large(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a few bytes on the disk that says to hold 400 GB."""
    spec = random_model().spec.model_dump_json()
    text = f'{{"format": 1, "spec": {spec}}}'
    path = header_of(tmp_path / "m.safetensors", {name: [10**8, 1000]}, text)
    assert path.stat().st_blocks * 512 < 100_000
    tracemalloc.start()
    assert f"tensor {name} is [100000000, 1000]" in refusal(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


def test_metadata_nested_without_end(tmp_path: Path) -> None:
    assert "damaged" in refusal(header_of(tmp_path / "m.safetensors", {}, "[" * 1_000_000))


class Marker:
    """What a pickle of it does when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.path,))


def test_a_model_file_runs_no_code(tmp_path: Path) -> None:
    """A pickle is refused unread, by whatever name, and nothing here could read one."""
    ran = tmp_path / "ran"
    for protocol in range(6):
        path = tmp_path / f"{protocol}.safetensors"
        path.write_bytes(pickle.dumps(Marker(ran), protocol))
        assert "damaged" in refusal(path)
    assert not ran.exists()
    pickle.loads(path.read_bytes())
    assert ran.exists()  # it would have
    for source in Path(streamlstm.__file__).parent.rglob("*.py"):
        text = source.read_text()
        for word in ("pickle", "marshal", "shelve", "joblib", "dill", "yaml"):
            assert not re.search(rf"\b(import|from) {word}\b", text), source
        assert not re.search(r"allow_pickle *= *True|(?<![.\w])(eval|exec)\(", text), source


def test_saving_refuses_weights_that_are_not_finite(tmp_path: Path) -> None:
    model = random_model()
    model.weights["head.bias"][0] = np.inf
    with pytest.raises(ModelError, match="NaN or infinity"):
        save_model(model, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())
