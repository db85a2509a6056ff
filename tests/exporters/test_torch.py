"""Models for PyTorch: they come back bit for bit, and what is said of their input is so."""

import ast
import importlib.util
import re
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from streamlstm.calendars import DAY
from streamlstm.exporters.pipeline import described
from streamlstm.exporters.torch import export
from streamlstm.features import features_of
from streamlstm.golden import network_of
from streamlstm.importers.parts import Wanted, assemble
from streamlstm.importers.torch import read, run
from streamlstm.kernels import reference
from streamlstm.model import ModelError, Spec, without
from streamlstm.model_file import save_model
from tests.models import HOUR, random_model

SPECS: dict[str, dict[str, Any]] = {
    "lstm": {"layers": 2},
    "gru": {"cell": "gru", "layers": 3, "inputs": 2, "targets": 2},
    "rnn": {"cell": "rnn", "activation": "relu", "head_activation": "hard_sigmoid"},
    "two": {"cell": "rnn", "layers": 2, "activation": ("relu", "relu")},
    "rows": {"spread": True, "directions": 3, "lags": (1, 2), "calendar": ("week",)},
    "window": {"cell": "gru", "window": 8},
}


@pytest.mark.parametrize("which", SPECS)
@pytest.mark.parametrize("skip", [True, False])
def test_it_comes_back_bit_for_bit(which: str, skip: bool, tmp_path: Path) -> None:
    model = random_model(**SPECS[which])
    if not skip:
        model.weights["head.skip"][:] = 0
    path = tmp_path / "exported.safetensors"
    export(model, path)
    relu = "relu" if "relu" in model.spec.activations[0] else None
    said = path.with_suffix(".py").read_text("utf-8")
    assert ('nonlinearity="relu"' in said) == bool(relu)
    back = assemble(read(path, relu), Wanted())
    spec, weights = without(model.spec, model.weights, spread=True, directions=True)
    assert back.weights.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(back.weights[name], array)
    assert (back.spec.inputs, back.spec.horizon) == (spec.width, spec.outputs)
    with safe_open(path, framework="numpy") as file:
        assert ("skip.weight" in file.keys()) == skip  # noqa: SIM118
        assert Spec.model_validate_json(file.metadata()["spec"]) == spec


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"activation": "relu"}, r"activation relu: nn\.LSTM has tanh; export it as \.onnx"),
        ({"cell": "rnn", "activation": "linear"}, r"activation linear: nn\.RNN has tanh or relu"),
        (
            {"cell": "rnn", "layers": 2, "activation": ("tanh", "relu")},
            r"layers of relu and tanh: nn\.RNN has one; export",
        ),
        ({"recurrent_activation": "hard_sigmoid"}, "recurrent_activation hard_sigmoid: .* sigmoid"),
        ({"cell": "gru", "reset_after": False}, r"reset_after false: nn\.GRU .* \.onnx"),
    ],
)
def test_what_pytorch_cannot_run_is_refused_by_name(
    spec: dict[str, Any], why: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=why):
        export(random_model(**spec), tmp_path / "a.safetensors")
    assert not [*tmp_path.iterdir()]


def test_nothing_that_is_not_of_an_export_is_written_over(tmp_path: Path) -> None:
    model, path = random_model(), tmp_path / "model.safetensors"
    with pytest.raises(ModelError, match=r"written as \.safetensors"):
        export(model, tmp_path / "model.pt")
    save_model(model, path)
    whole = path.read_bytes()
    with pytest.raises(ModelError, match="is a model of streamlstm; choose another name"):
        export(model, path)
    assert path.read_bytes() == whole
    path.unlink()
    (tmp_path / "model.py").write_text("mine = 1\n")
    with pytest.raises(ModelError, match=r"model\.py is there already"):
        export(model, path)
    assert not path.exists()
    (tmp_path / "model.py").unlink()
    export(model, path)
    export(random_model(1), path)  # an export is
    back = assemble(read(path), Wanted())
    assert back.weights["head.bias"][0] == random_model(1).weights["head.bias"][0]


def test_names_are_words_and_no_code(tmp_path: Path) -> None:
    name = 'a"""\nraise SystemExit\n"""\\'
    roles = [{"name": name, "role": "target"}, {"name": "\x00\u2028", "role": "measured"}]
    export(random_model(inputs=2, roles=roles), tmp_path / "a.safetensors")
    tree = ast.parse((tmp_path / "a.py").read_text("utf-8"))
    kinds = [type(node) for node in tree.body]
    assert kinds == [ast.Expr, *[ast.ImportFrom] * 2, ast.Import, *[ast.ImportFrom] * 2,
                     ast.ClassDef, ast.FunctionDef]  # fmt: skip
    assert 'a""" raise SystemExit """\\' in re.sub(r"\s+", " ", ast.get_docstring(tree) or "")


FULL: dict[str, Any] = {
    "inputs": 6, "targets": 2, "horizon": 4, "lags": (1, 24), "season": 24, "base": "seasonal",
    "calendar": ("hour", "week", "year"), "elapsed_ns": HOUR, "floor": 0.0, "window": 5,
    "roles": [
        {"name": "load", "role": "target"}, {"name": "heat", "role": "target"},
        {"name": "wind", "role": "measured"}, {"name": "price", "role": "known"},
        {"name": "size", "role": "number", "loc": 3.0, "scale": 2.0},
        {"name": "kind", "role": "category", "categories": ["u", "v", "w"]},
    ],
}  # fmt: skip


SMOOTHED: dict[str, Any] = {
    "targets": 2, "inputs": 2, "elapsed_ns": HOUR, "base": "blend", "lags": (1,), "season": 24,
    "blend": {"short": 6, "long": 24, "weights": [[0.1, 0.2, 0.3, 0.4]] * 6,
              "smoothing": {"season": 6, "level": 0.3, "profile": 0.2}},
}  # fmt: skip


@pytest.mark.parametrize("of", [FULL, SMOOTHED, *SPECS.values()], ids=["full", "smoothed", *SPECS])
def test_each_number_of_the_input_is_told(of: dict[str, Any]) -> None:
    spec = random_model(**of).spec
    ranges = [re.match(r"x\[(\d+):(\d+)\] ", line) for line in described(spec)]
    told = [(int(found[1]), int(found[2])) for found in ranges if found]
    assert told[0][0] == 0
    assert told[-1][1] == spec.width
    assert all(before[1] == after[0] for before, after in pairwise(told))


def test_what_is_told_of_the_input_is_so() -> None:
    """The words, followed by hand."""
    spec = random_model(**{**FULL, "window": 0}).spec
    rng = np.random.default_rng(0)
    ticks = 60
    ts = np.arange(ticks) * HOUR + 400 * DAY
    values = np.concatenate(
        [rng.normal(10, 3, (ticks, 4)), np.tile([5.0, 1.0], (ticks, 1))], axis=1
    )
    rows = features_of(spec, ts, values)
    loc, variance = np.zeros(4), np.zeros(4)
    for n in range(1, ticks + 1):
        v = values[n - 1]
        a, off = 1 / min(n, 1000), v[:4] - loc
        loc += a * off
        variance = (1 - a) * (variance + a * off**2)
        m, p = min(n, 1000), (0.1 * loc) ** 2
        if n > 30:
            p = np.minimum(p, 25 * variance + p / (1 + (n - 30) / 480) ** 16)
        scale = np.sqrt((m * variance + 10 * p) / (m + 10))
        x = [*((v[:3] - loc[:3]) / scale[:3])]
        for lag in (1, 24):
            x += [(values[n - 1 - lag, j] - v[j]) / scale[j] if n > lag else 0.0 for j in (0, 1)]
        for seconds in (86_400, 604_800, 31_556_952):
            angle = 2 * np.pi * (ts[n - 1] / 1e9 % seconds) / seconds
            x += [np.sin(angle), np.cos(angle), np.sin(2 * angle), np.cos(2 * angle)]
        x += [0.0]  # each comes one step after the other
        # of step k ahead: what the tick 4 - k before said, or else the first
        told = [values[max(n - 1 - (4 - k), 0), 3] for k in (0, 1, 2, 3, 4)]
        x += [*((np.array(told) - loc[3]) / scale[3]), (5.0 - 3.0) / 2.0, 0.0, 1.0, 0.0]
        np.testing.assert_allclose(rows.x[n - 1], x, atol=1e-5)
        ahead = [values[n + k - 24 if n + k >= 24 else n - 1, :2] for k in range(4)]
        np.testing.assert_allclose(rows.base[n - 1], np.ravel(ahead))
        np.testing.assert_allclose(rows.scale[n - 1], scale[:2])


def test_what_is_told_of_the_smoothing_is_so() -> None:
    spec = random_model(**SMOOTHED).spec
    ticks, rng = 60, np.random.default_rng(0)
    values = rng.normal(10, 3, (ticks, 2))
    rows = features_of(spec, np.arange(ticks) * HOUR, values)
    level, profile = np.zeros(2), np.zeros((6, 2))
    for n in range(ticks):
        y, phase, off = values[n], n % 6, np.zeros(2)
        if n < 6:
            profile[phase] = y
        else:
            off = y - (level + profile[phase])
            a, b = max(0.3, 1 / (n - 6 + 2)), max(0.2, 1 / (n // 6 + 1))
            level += a * off
            profile[phase] += b * (1 - a) * off
        np.testing.assert_allclose(rows.x[n, 5:7], off / rows.scale[n], atol=1e-5)
        for k in range(3):
            w, ahead = (0.1, 0.2, 0.3, 0.4), n + k + 1
            s1 = values[ahead - 6] if ahead >= 6 else y
            s2 = values[ahead - 24] if ahead >= 24 else s1
            s3 = values[ahead - 30] if ahead >= 30 else s1
            s4 = level + profile[ahead % 6] if ahead >= 6 or ahead % 6 <= n else s1
            base = y + w[0] * (s1 - y) + w[1] * (s2 - y) + w[2] * (s1 - s3) + w[3] * (s4 - y)
            np.testing.assert_allclose(rows.base[n, 2 * k : 2 * k + 2], base)


# --- where PyTorch is installed


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("exported", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("which", SPECS)
def test_the_module_gives_what_the_model_gives(which: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="runs the module that is written for it")
    model = random_model(**SPECS[which])
    spec, weights = without(model.spec, model.weights, spread=True, directions=True)
    x = np.random.default_rng(0).normal(size=(200, spec.width)).astype(np.float32)
    wanted = np.zeros((len(x), spec.outputs))
    buffers = reference.allocate(network_of(spec, weights), 1)
    reference.step(buffers, np.zeros(len(x), np.int32), x, np.arange(len(x) + 1), wanted)

    path = tmp_path / "a.safetensors"
    export(model, path)
    network = loaded(path.with_suffix(".py")).load()
    if spec.window:
        with torch.no_grad():
            last, _ = network(torch.from_numpy(x[None, -spec.window :]))
        np.testing.assert_allclose(last[0, -1].numpy(), wanted[-1], atol=1e-5)
        return
    with torch.no_grad():
        first, state = network(torch.from_numpy(x[None, :90]))
        second, _ = network(torch.from_numpy(x[None, 90:]), state)
    ours = torch.cat([first, second], dim=1)[0].numpy()
    np.testing.assert_allclose(ours, wanted, atol=1e-5)
    if spec.head_activation == "linear":
        np.testing.assert_allclose(run(path, x), wanted[-1], atol=1e-5)
