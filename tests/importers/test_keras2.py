"""Files that Keras 2 and tf2onnx wrote compute what Keras 2 predicted, or are refused by name.

`tests/goldens/make_keras2.py` made them, and says with which versions.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamlstm import exchange
from streamlstm.golden import forecasts_of
from streamlstm.importers import keras, onnx
from streamlstm.importers.parts import ROUNDED, RefusedError, Wanted, assemble
from streamlstm.model import Model
from tests.importers.test_keras import outputs_of

GOLDENS = Path(__file__).parents[1] / "goldens"
TRUTH = np.load(GOLDENS / "keras2" / "truth.npz")
BY_KERAS = sorted(
    path for path in (GOLDENS / "keras2").iterdir() if path.suffix in (".h5", ".keras")
)
BY_TF2ONNX = sorted((GOLDENS / "tf2onnx").glob("*.onnx"))
WINDOWS = {"guide": 10, "gru_after": 12, "scaled": 9, "slashes": 6} | dict.fromkeys(
    ("functional", "dropouts", "operations"), 8
)
LOOP = r"while_loop \(Loop\) cannot be read: cells written .* import the file of Keras'"
REFUSED = {
    "gru_after_weights.h5": "weights alone, which say nothing about reshape; save the whole model",
    "operations.keras": r"tf\.math\.subtract \(TFOpLambda\): .* use a layer, such as Rescaling",
    "simple.onnx": f"no LSTM, GRU or RNN node in it; .*/simple_rnn/{LOOP}",
    "gru_before.onnx": f"no LSTM, GRU or RNN node in it; .*/gru_1/{LOOP}",
    "cells.onnx": rf"LSTM\w+ \(LSTM\): reads no input of the graph; .*/rnn/{LOOP}",
    "dropouts.onnx": f"does not depend on input x; .*/gru_5/{LOOP}",
}


def case_of(path: Path) -> str:
    return re.sub(r"(_weights)?\..*", "", path.name)


def check(path: Path, model: Model) -> None:
    """Whether it computes what was predicted after each of the ticks for which that is known."""
    case = case_of(path)
    inputs, at, truth = (TRUTH[f"{case}.{what}"] for what in ("inputs", "at", "outputs"))
    assert len(inputs) == 240
    assert truth.std(axis=0).min() > 5e-3
    # 16 bits have 3 decimals, or 2
    rounded = {"mixed_float16": 1e-3, "mixed_bfloat16": 1e-2}.get(case, 1e-5)
    np.testing.assert_allclose(outputs_of(model, inputs)[at], truth, rtol=1e-6, atol=rounded)


@pytest.mark.parametrize("path", BY_KERAS, ids=lambda path: path.name)
def test_files_of_keras_2(path: Path) -> None:
    if path.name in REFUSED:
        with pytest.raises(RefusedError, match=REFUSED[path.name]):
            keras.read(path)
        return
    model = assemble(keras.read(path), Wanted())
    assert model.spec.window == (0 if "weights" in path.name else WINDOWS.get(case_of(path), 0))
    check(path, model)


@pytest.mark.parametrize("path", BY_TF2ONNX, ids=lambda path: path.name)
def test_files_of_tf2onnx(path: Path) -> None:
    """onnxruntime says the same of them, too."""
    wanted = Wanted(window=0 if path.stem == "stateful" else None)
    if path.name in REFUSED:
        with pytest.raises(RefusedError, match=REFUSED[path.name]):
            onnx.read(path)
        return
    found = exchange.bring(path, "onnx", wanted)
    assert found.model.spec.window == WINDOWS.get(path.stem, 0)
    check(path, found.model)
    assert found.deviation is not None
    assert (ROUNDED in found.notes) == path.stem.startswith("mixed")


def test_there_are_such_files() -> None:
    """Each way to save a model, and most of the models by tf2onnx."""
    forms = [path.name.partition("stacked")[2] for path in BY_KERAS]
    assert {".h5", ".keras", ".weights.h5", "_weights.h5"} <= {*forms}
    assert len(BY_KERAS) >= 25
    assert len(BY_TF2ONNX) >= 15
    names = {path.name for path in (*BY_KERAS, *BY_TF2ONNX)}
    assert names >= REFUSED.keys()


def test_a_single_step_is_said_to_begin_from_zero() -> None:
    """tf2onnx leaves out that a model is stateful, and its states."""
    path = GOLDENS / "tf2onnx" / "stateful.onnx"
    found = exchange.bring(path, "onnx")
    assert found.model.spec.window == 1
    assert any("--window 0 if the model was stateful" in note for note in found.notes)
    chosen = exchange.bring(path, "onnx", Wanted(window=1))
    assert not any("--window" in note for note in chosen.notes)


@pytest.mark.parametrize(
    ("name", "coarse"), [("mixed_float16.h5", True), ("mixed_bfloat16.keras", True),
                         ("hard.h5", False), ("hard.keras", False)]
)  # fmt: skip
def test_that_16_bits_were_computed_with_is_said_and_allowed_for(
    name: str, coarse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Keras gives is made up here: our outputs, and others."""
    path = GOLDENS / "keras2" / name
    model = assemble(keras.read(path), Wanted())

    def bring(off_by: float) -> exchange.Imported:
        run = lambda _, inputs: forecasts_of(model, inputs)[-1] + off_by  # noqa: E731
        monkeypatch.setattr(exchange.keras, "run", run)
        return exchange.bring(path, "keras")

    assert (ROUNDED in bring(0.0).notes) == coarse
    for off_by, refused in ((5e-3, not coarse), (0.1, True)):
        if refused:
            with pytest.raises(RefusedError, match="gives something else"):
                bring(off_by)
        else:
            bring(off_by)


@pytest.mark.parametrize("window", [0, 4, 14])
def test_other_steps_than_the_file_takes_are_no_deviation(window: int) -> None:
    """It is compared over its own, which are 10."""
    found = exchange.bring(GOLDENS / "tf2onnx" / "guide.onnx", "onnx", Wanted(window=window))
    assert found.model.spec.window == window
    assert "10 random steps" in str(found.model.provenance["parity"])


def test_states_that_are_left_over_are_refused(tmp_path: Path) -> None:
    """Of a stateful model that was exported in the midst of a series."""
    import onnx as package

    file: Any = package.load(GOLDENS / "tf2onnx" / "stateful.onnx")
    state = next(node for node in file.graph.node if node.op_type == "LSTM").input[5]
    for node in file.graph.node:
        if state in node.output:
            state = node.input[0]
    held = next(each for each in file.graph.initializer if each.name == state)
    held.CopyFrom(package.numpy_helper.from_array(np.full((1, 6), 0.5, np.float32), state))
    package.save(file, tmp_path / "m.onnx")
    with pytest.raises(RefusedError, match=r"initial_h is not zero; .* Reset the states"):
        onnx.read(tmp_path / "m.onnx")
