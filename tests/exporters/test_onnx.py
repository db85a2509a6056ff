"""What is written as ONNX, onnxruntime runs as streamlstm does, and comes back bit for bit."""

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from streamlstm.exporters.onnx import export
from streamlstm.exporters.pipeline import described
from streamlstm.golden import make_golden, network_of
from streamlstm.importers import onnx as importer
from streamlstm.importers.parts import RefusedError, Wanted, assemble
from streamlstm.kernels import reference
from streamlstm.model import Model, ModelError, Spec, without
from tests.models import random_model

KINDS: list[dict[str, Any]] = [
    {},
    {"layers": 3, "hidden": 5, "inputs": 2, "targets": 2, "lags": (1, 2), "calendar": ("hour",)},
    {"cell": "gru", "layers": 2, "spread": True, "directions": 4},
    {"cell": "gru", "reset_after": False, "layers": 2, "recurrent_activation": "hard_sigmoid"},
    {"cell": "rnn", "activation": "relu", "head_activation": "sigmoid"},
    {"cell": "rnn", "activation": "linear", "layers": 2, "head_activation": "tanh"},
    {
        "activation": "hard_sigmoid", "recurrent_activation": "hard_sigmoid",
        "head_activation": "hard_sigmoid",
    },
    {"activation": "linear", "recurrent_activation": "sigmoid", "head_activation": "relu"},
    {"activation": "elu", "recurrent_activation": "softsign", "head_activation": "hard_silu"},
    {"cell": "gru", "activation": "softsign", "head_activation": "softplus"},
    {"cell": "rnn", "activation": "leaky_relu", "head_activation": "exponential"},
    {"layers": 2, "activation": ("relu", "tanh"), "recurrent_activation": ("sigmoid", "elu")},
    {"cell": "gru", "layers": 2, "activation": ("softsign", "linear")},
    {"window": 9, "cell": "gru", "layers": 2},
    {"window": 1},
]  # fmt: skip


def of(kind: dict[str, Any], *, skip: bool = True) -> Model:
    model = random_model(3, **kind)
    weights = dict(model.weights)
    if not skip:
        weights["head.skip"] = np.zeros_like(weights["head.skip"])
    weights["head.bias"][:1] = -0.0
    for name in weights:
        if "bias" in name:
            weights[name][-1] = -0.0  # a bit that is easily lost
    return Model(model.spec, weights, make_golden(model.spec, weights))


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def ours(model: Model, x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Outputs (T, N) and the record of states after them."""
    network = network_of(model.spec, model.weights)
    if model.spec.window:
        network = network._replace(window=0)
    buffers = reference.allocate(network, 1)
    out = np.zeros((len(x), model.spec.answers))
    reference.step(buffers, np.zeros(len(x), np.int32), x, np.arange(len(x) + 1), out)
    return out, reference.to_host(buffers, np.zeros(1, np.int32))[0]


@pytest.mark.parametrize("skip", [True, False], ids=["skip", "no skip"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_onnxruntime_gives_the_same(tmp_path: Path, kind: dict[str, Any], skip: bool) -> None:
    model, path = of(kind, skip=skip), tmp_path / "model.onnx"
    export(model, path)
    spec = model.spec
    rng = np.random.default_rng(1)
    x = rng.normal(size=(spec.window or 40, 3, spec.width)).astype(np.float32)
    found = dict(zip(["y", *spec.states], session(path).run(None, {"x": x}), strict=True))
    for series in range(3):
        outputs, states = ours(model, x[:, series])
        np.testing.assert_allclose(
            found["y"][:, series], outputs[:, : spec.outputs], rtol=1e-5, atol=1e-5
        )
        for k, name in enumerate(spec.states):
            expected = states[:, k, : spec.hidden]
            np.testing.assert_allclose(found[name][:, series], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [{}, {"cell": "gru", "layers": 2}], ids=str)
def test_states_may_be_given(tmp_path: Path, kind: dict[str, Any]) -> None:
    """Two halves of a sequence give what the whole one gives."""
    model, path = of(kind), tmp_path / "model.onnx"
    export(model, path)
    run = session(path).run
    x = np.random.default_rng(0).normal(size=(20, 2, model.spec.width)).astype(np.float32)
    whole, first = run(None, {"x": x}), run(None, {"x": x[:11]})
    states = dict(zip(("h0", "c0"), first[1:], strict=False))
    second = run(None, {"x": x[11:]} | states)
    np.testing.assert_allclose(np.concatenate([first[0], second[0]]), whole[0], atol=1e-6)
    for one, other in zip(second[1:], whole[1:], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert abs(second[0] - run(None, {"x": x[11:]})[0]).max() > 1e-3


@pytest.mark.parametrize("skip", [True, False], ids=["skip", "no skip"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_it_comes_back_bit_for_bit(tmp_path: Path, kind: dict[str, Any], skip: bool) -> None:
    model, path = of(kind, skip=skip), tmp_path / "model.onnx"
    export(model, path)
    spec, weights = without(model.spec, model.weights, spread=True, directions=True)
    back = importer.own(path, Wanted())
    assert back.spec == spec
    for name, array in weights.items():
        assert back.weights[name].tobytes() == array.tobytes(), name
    assert back.id == Model(spec, weights, model.golden).id


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_so_it_does_as_a_file_like_any_other(tmp_path: Path, kind: dict[str, Any]) -> None:
    """Read without what streamlstm wrote beside the network."""
    model, path = of(kind, skip=False), tmp_path / "model.onnx"
    export(model, path)
    file = onnx.load(path)
    del file.metadata_props[:]
    onnx.save(file, path)
    assert importer.own(path, Wanted()) is None
    back = assemble(importer.read(path), Wanted())
    assert back.spec.window == model.spec.window
    _, weights = without(model.spec, model.weights, spread=True, directions=True)
    for name, array in weights.items():
        np.testing.assert_array_equal(back.weights[name], array, name)
    x = np.random.default_rng(2).normal(size=(model.spec.window or 9, model.spec.width))
    x = x.astype(np.float32)
    found = importer.run(path, x)
    np.testing.assert_allclose(found, ours(back, x)[0][-1], rtol=1e-5, atol=1e-5)


def test_a_skip_has_to_be_said_by_streamlstm(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export(of({}), path)
    with pytest.raises(RefusedError, match=r"WhSx \(Add\): joins Wh and Sx"):
        importer.read(path)


def test_a_model_imported_goes_out_as_it_came(tmp_path: Path) -> None:
    """Layers of several widths are padded; the padding changes nothing."""
    one, other = tmp_path / "one.onnx", tmp_path / "other.onnx"
    export(of({"layers": 2}, skip=False), one)
    parts = importer.read(one)
    narrow = parts.layers[0]
    rows = np.arange(32) % 8 < 5
    parts = parts._replace(layers=[
        narrow._replace(
            weight_ih=narrow.weight_ih[rows], weight_hh=narrow.weight_hh[rows][:, :5],
            bias=narrow.bias[rows],
        ),
        parts.layers[1]._replace(weight_ih=parts.layers[1].weight_ih[:, :5]),
    ])  # fmt: skip
    model = assemble(parts, Wanted())
    export(model, other)
    assert importer.own(other, Wanted()).id == model.id


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    model, path = of({"lags": (24,), "calendar": ("week",), "floor": 0.0}), tmp_path / "m.onnx"
    export(model, path)
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    said = {each.key: each.value for each in file.metadata_props}
    assert Spec.model_validate(json.loads(said["streamlstm"])["spec"]) == model.spec
    assert said["model"] == model.id
    assert said["description"].splitlines() == described(model.spec)
    assert file.opset_import[0].version == 17


@pytest.mark.parametrize("kind", [{"cell": "gru"}, {"activation": "relu"}], ids=str)
def test_a_file_changed_since_is_noticed(tmp_path: Path, kind: dict[str, Any]) -> None:
    path = tmp_path / "model.onnx"
    export(of(kind), path)
    file = onnx.load(path)
    for node in file.graph.node:
        if node.name == "before_activation" or node.output[0] == "y":
            node.op_type = "Sub"
    onnx.save(file, path)
    with pytest.raises(RefusedError, match="other numbers than the file itself"):
        importer.own(path, Wanted())
    said = next(each for each in file.metadata_props if each.key == "streamlstm")
    said.value = said.value.replace('"hidden": 8', '"hidden": 9')
    onnx.save(file, path)
    with pytest.raises(RefusedError, match="not those that its spec asks for"):
        importer.own(path, Wanted())
    said.value = "{}"
    onnx.save(file, path)
    with pytest.raises(RefusedError, match="its spec cannot be read"):
        importer.own(path, Wanted())


def test_without_the_package_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def no_onnx(name: str, *args: Any) -> Any:
        if name.split(".")[0] == "onnx":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", no_onnx)
    with pytest.raises(ModelError, match=r"pip install 'streamlstm\[onnx\]'"):
        export(of({}), tmp_path / "model.onnx")
