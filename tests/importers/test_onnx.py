"""Networks in ONNX files are read as onnxruntime runs them, or refused by the name of a node."""

import builtins
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from streamlstm.golden import network_of
from streamlstm.importers import onnx as importer
from streamlstm.importers.parts import Dense, Parts, Recurrent, RefusedError, Wanted, assemble
from streamlstm.kernels import cpu, reference
from streamlstm.model import Model
from tests.importers.graphs import Kind, outputs_of, write

GOLDENS = Path(__file__).parent.parent / "goldens" / "onnx"
STEPS = 1000
GATED = [("Sigmoid", "Tanh"), ("HardSigmoid", "Relu"), ("Sigmoid", "Affine"),
         ("HardSigmoid", "HardSigmoid"), ("Sigmoid", "Sigmoid"), ("Sigmoid", "Elu"),
         ("Softsign", "Softsign"), ("HardSigmoid", "Elu")]  # fmt: skip
SIXTH = 1 / 6
ENDS = ("Tanh", "Sigmoid", "Relu", "HardSigmoid", "Identity", "Elu", "Softplus", "Softsign",
        "HardSwish")  # fmt: skip


def after(model: Model, inputs: NDArray[Any], backend: ModuleType = reference) -> NDArray[Any]:
    """(O,) the model's forecast after raw ``inputs`` (T, I), of one target."""
    scaling, (T, _) = model.spec.scaling, inputs.shape
    loc, scale = np.zeros(1), np.ones(1)
    if scaling.kind == "fixed":
        loc, scale = np.array(scaling.loc), np.array(scaling.scale)
    network = network_of(model.spec, model.weights)
    buffers = backend.allocate(network, 1)
    real = np.float64 if backend is reference else np.float32
    outputs = np.zeros((T, model.spec.answers), real)
    z = ((inputs - loc) / scale).astype(np.float32)
    backend.step(buffers, np.zeros(T, np.int32), z, np.arange(T + 1), outputs)
    return outputs[-1] * scale[0] + loc[0]


def sequence(kind: Kind, steps: int = STEPS) -> NDArray[np.float32]:
    rng = np.random.default_rng(kind.seed + 1)
    return rng.normal(size=(kind.fixed or steps, kind.inputs)).astype(np.float32)


def saved(model: Any, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


@st.composite
def kinds(draw: Callable[..., Any]) -> Kind:
    def one(*of: Any) -> Any:
        return draw(st.sampled_from(of))

    cell = one("LSTM", "GRU", "RNN")
    activations: tuple[str, ...] = ()
    alpha_beta = None
    if one(True, False):
        gate, new = one(*GATED)
        activations = {"LSTM": (gate, new, new), "GRU": (gate, new), "RNN": (new,)}[cell]
        alpha_beta = (1.0, 0.0) if "Affine" in activations else None
        if "HardSigmoid" in activations:
            alpha_beta = one((SIXTH, 0.5), (0.2, 0.5), (0.25, 0.4), None)
            if cell == "LSTM" and new == "HardSigmoid":
                alpha_beta = (SIXTH, 0.5)
    head, last = one("gemm", "transposed", "matmul", "none"), one("slice", "gather", "state", "all")
    end = one("", *ENDS) if head != "none" else ""
    return Kind(
        seed=draw(st.integers(0, 1 << 20)),
        cell=cell,
        widths=tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))),
        inputs=one(1, 2, 5),
        outputs=one(1, 3),
        activations=activations,
        alpha_beta=alpha_beta,
        reset_after=one(0, 1),
        batch_first=one(True, False),
        biased=one(True, True, False),
        states=one("none", "shape", "expand"),
        last=last,
        head=head,
        end=end,
        scaled=one("", "sub_div", "mul_add"),
        rescaled=one(True, False) if end in ("", "Identity") else False,
        behind=one("", "constant", "transpose", "half", "double"),
        through=one((), ("Identity", "Dropout"), ("Cast",)),
        fixed=one(0, 0, 30),
        rank=one(3, 3, 2),
        opset=one(14, 17, 20),
    )


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(kinds())
def test_any_network_gives_what_onnxruntime_gives(tmp_path: Path, kind: Kind) -> None:
    file, inputs = write(kind), sequence(kind)
    truth = outputs_of(file, kind, inputs)
    path = saved(file, tmp_path)
    parts = importer.read(path)
    assert parts.window == kind.fixed
    model = assemble(importer.read(path), Wanted())
    assert model.spec.layers == len(kind.widths)
    np.testing.assert_allclose(after(model, inputs), truth, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(importer.run(path, inputs), truth, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "kind",
    [
        Kind(widths=(8, 5), scaled="sub_div"),
        Kind(cell="GRU", end="Tanh", activations=("HardSigmoid", "Tanh"), last="state"),
        Kind(cell="GRU", reset_after=0, head="matmul"),
        Kind(cell="RNN", widths=(4, 9), activations=("Relu",)),
    ],
    ids=lambda kind: kind.cell,
)
def test_so_does_the_daemons_kernel(tmp_path: Path, kind: Kind) -> None:
    file, inputs = write(kind), sequence(kind)
    model = assemble(importer.read(saved(file, tmp_path)), Wanted())
    found = after(model, inputs, cpu)
    np.testing.assert_allclose(found, outputs_of(file, kind, inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("numbers", [None, (SIXTH, 0.5), (0.2, 0.5), (0.25, 0.4)], ids=str)
@pytest.mark.parametrize(
    "kind",
    [
        Kind(activations=("HardSigmoid", "Tanh", "Tanh")),
        Kind(cell="GRU", activations=("HardSigmoid", "HardSigmoid")),
        Kind(cell="GRU", activations=("HardSigmoid", "HardSigmoid"), reset_after=0),
        Kind(cell="RNN", activations=("HardSigmoid",)),
    ],
    ids=lambda kind: f"{kind.cell} {kind.reset_after}",
)
def test_hard_sigmoids_of_any_slope(
    tmp_path: Path, kind: Kind, numbers: tuple[float, float] | None
) -> None:
    kind = replace(kind, alpha_beta=numbers, end="HardSigmoid")
    file, inputs = write(kind), sequence(kind, 30)
    model = assemble(importer.read(saved(file, tmp_path)), Wanted())
    truth = outputs_of(file, kind, inputs)
    np.testing.assert_allclose(after(model, inputs), truth, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("last", ["slice", "gather", "state", "all"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_a_node_with_the_series_first(tmp_path: Path, cell: str, last: str) -> None:
    """onnxruntime cannot run one; it is the same network with its layout said otherwise."""
    kind = Kind(cell=cell, widths=(4, 6), states="shape", last=last)
    inputs = sequence(kind, 50)
    truth = outputs_of(write(kind), kind, inputs)
    path = saved(write(replace(kind, layout=1)), tmp_path)
    model = assemble(importer.read(path), Wanted())
    np.testing.assert_allclose(after(model, inputs), truth, rtol=1e-5, atol=1e-5)
    assert importer.run(path, inputs) is None


TRUTH = np.load(GOLDENS / "truth.npz")


@pytest.mark.parametrize("path", sorted(GOLDENS.glob("*.onnx")), ids=lambda path: path.stem)
def test_files_of_both_of_pytorchs_exporters(path: Path) -> None:
    name, how, _ = path.name.split(".")
    inputs, truth = TRUTH[f"{name}.inputs"], TRUTH[f"{name}.outputs"]
    parts = importer.read(path)
    fixes = how == "fixed" or f"{name}.{how}" in ("no_bias.dynamo", "unbatched.dynamo")
    assert parts.window == (len(inputs) if fixes and name != "stateful" else 0)
    model = assemble(importer.read(path), Wanted())
    np.testing.assert_allclose(after(model, inputs), truth, rtol=1e-6, atol=1e-6)
    ran = importer.run(path, inputs)
    if name != "double":  # onnxruntime has no LSTM in float64
        np.testing.assert_allclose(ran, truth, rtol=1e-6, atol=1e-6)
    if name.startswith("scaled"):
        assert model.spec.scaling.loc == (3.0, -2.0, 0.5)
        assert model.spec.scaling.scale == (2.0, 0.5, 4.0)


def test_there_are_such_files() -> None:
    assert len([*GOLDENS.glob("*.onnx")]) >= 20


def test_states_that_are_inputs_run_on(tmp_path: Path) -> None:
    kind = Kind(widths=(4, 4), states="input", fixed=20)
    parts = importer.read(saved(write(kind), tmp_path))
    assert parts.window == 0
    step = saved(write(replace(kind, fixed=1)), tmp_path)
    assert importer.read(step).window == 0
    assert importer.run(step, sequence(replace(kind, fixed=0))) is None


def test_a_window_is_given_the_last_steps(tmp_path: Path) -> None:
    kind = Kind(fixed=12)
    file, inputs = write(kind), sequence(replace(kind, fixed=0), 40)
    path = saved(file, tmp_path)
    truth = outputs_of(file, kind, inputs[-12:])
    np.testing.assert_array_equal(importer.run(path, inputs), truth)
    np.testing.assert_allclose(
        after(assemble(importer.read(path), Wanted()), inputs), truth, atol=1e-6
    )
    assert assemble(importer.read(path), Wanted(window=0)).spec.window == 0
    with pytest.raises(RefusedError, match="takes 12 steps at a time, 5 are given"):
        importer.run(path, inputs[:5])


def test_outputs_in_another_order_are_given_in_it(tmp_path: Path) -> None:
    """[target][step] in the head, [step][target] of what comes out."""
    kind = Kind(outputs=6)
    file = write(kind)
    plain = outputs_of(file, kind, sequence(kind, 9))
    last = file.graph.node.pop()
    name = last.input[0]
    shape = numpy_helper.from_array(np.array([-1, 2, 3]), "shape")
    file.graph.initializer.append(shape)
    file.graph.node.extend([
        helper.make_node("Reshape", [name, "shape"], ["a"]),
        helper.make_node("Transpose", ["a"], ["y"], perm=[0, 2, 1]),
    ])  # fmt: skip
    path = saved(file, tmp_path)
    expected = plain.reshape(2, 3).T.reshape(-1)
    model = assemble(importer.read(path), Wanted(targets=2))
    assert (model.spec.horizon, model.spec.targets) == (3, 2)
    np.testing.assert_allclose(after(model, sequence(kind, 9)), expected, atol=1e-6)
    np.testing.assert_allclose(importer.run(path, sequence(kind, 9)), expected, atol=1e-6)


def test_weights_in_a_file_beside_it(tmp_path: Path) -> None:
    kind = Kind()
    path, inside = tmp_path / "model.onnx", importer.read(saved(write(kind), tmp_path))
    onnx.save(write(kind), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert path.stat().st_size < (tmp_path / "w.bin").stat().st_size * 20
    beside = importer.read(path)
    np.testing.assert_array_equal(beside.layers[0].weight_ih, inside.layers[0].weight_ih)
    (tmp_path / "w.bin").rename(tmp_path / "elsewhere")
    with pytest.raises(RefusedError, match=r"its numbers lie in w\.bin, which is not there"):
        importer.read(path)
    (tmp_path / "w.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RefusedError, match="not beside the file"):
        importer.read(path)
    file = onnx.load(path, load_external_data=False)
    for tensor in file.graph.initializer:
        for each in tensor.external_data:
            if each.key == "location":
                each.value = "../../etc/passwd"
    path.write_bytes(file.SerializeToString())
    with pytest.raises(RefusedError, match="not beside the file"):
        importer.read(path)


def with_node(kind: Kind, op: str, before: str = "Squeeze", **attributes: Any) -> Any:
    """The network with a node of one input put where the first ``before`` reads."""
    file = write(kind)
    at = next(n for n, node in enumerate(file.graph.node) if node.op_type == before)
    node = helper.make_node(
        op, [file.graph.node[at].input[0]], ["new"], name="guilty", **attributes
    )
    file.graph.node[at].input[0] = "new"
    file.graph.node.insert(at, node)
    return file


def with_input(place: int, array: NDArray[Any]) -> Any:
    """An LSTM with a constant at an input of its node."""
    file = write(Kind(states="shape"))
    file.graph.initializer.append(numpy_helper.from_array(array, "given"))
    node = next(node for node in file.graph.node if node.op_type == "LSTM")
    node.name = "guilty"
    node.input.extend([""] * (place + 1 - len(node.input)))
    node.input[place] = "given"
    return file


def joined() -> Any:
    """A head on the last state and the first."""
    file = write(Kind(last="state"))
    lstm = next(node for node in file.graph.node if node.op_type == "LSTM")
    gemm = next(node for node in file.graph.node if node.op_type == "Gemm")
    at = [*file.graph.node].index(gemm)
    gemm.input[0] = "sum"
    file.graph.node.insert(at, helper.make_node("Squeeze", [lstm.output[1]], ["h"]))
    file.graph.node.insert(at + 1, helper.make_node("Squeeze", [lstm.output[2]], ["c"]))
    file.graph.node.insert(at + 2, helper.make_node("Add", ["h", "c"], ["sum"], name="guilty"))
    return file


def reading_cell_state() -> Any:
    file = write(Kind(last="state"))
    lstm = next(node for node in file.graph.node if node.op_type == "LSTM")
    for node in file.graph.node:
        if node.op_type == "Squeeze":
            node.input[0] = lstm.output[2]
        if node.op_type == "Gemm":
            node.name = "guilty"
    return file


def first_step() -> Any:
    file = write(Kind(last="gather", head="none"))
    node = next(node for node in file.graph.node if node.op_type == "Gather")
    index = next(each for each in file.graph.initializer if each.name == node.input[1])
    index.CopyFrom(numpy_helper.from_array(np.array(0), index.name))
    return file


def fourth_of_any() -> Any:
    """What is the last step only if there happen to be four."""
    file = write(Kind(last="gather", head="none"))
    node = next(node for node in file.graph.node if node.op_type == "Gather")
    index = next(each for each in file.graph.initializer if each.name == node.input[1])
    index.CopyFrom(numpy_helper.from_array(np.array(3), index.name))
    return file


def reversed_between() -> Any:
    file = write(Kind(widths=(4, 4)))
    second = [node for node in file.graph.node if node.op_type == "LSTM"][1]
    second.name = "guilty"
    at = [*file.graph.node].index(second)
    for name, number in {"s": -1, "e": -1000, "a": 0, "t": -1}.items():
        file.graph.initializer.append(numpy_helper.from_array(np.array([number]), name))
    turn = helper.make_node("Slice", [second.input[0], "s", "e", "a", "t"], ["turned"])
    second.input[0] = "turned"
    file.graph.node.insert(at, turn)
    return file


REFUSED = {
    "reverse": (Kind(extra={"direction": "reverse"}), r"\(LSTM\): direction is reverse"),
    "both ways": (Kind(extra={"direction": "bidirectional"}), "direction is bidirectional"),
    "clip": (Kind(cell="GRU", extra={"clip": 1.0}), r"\(GRU\): clips"),
    "coupled": (Kind(extra={"input_forget": 1}), "input_forget"),
    "activation": (
        Kind(activations=("Sigmoid", "ThresholdedRelu", "ThresholdedRelu")),
        "Thresholded",
    ),
    "two activations": (Kind(activations=("Sigmoid", "Tanh", "Relu")), "Tanh makes its new"),
    "affine": (
        Kind(cell="RNN", activations=("Affine",), alpha_beta=(2.0, 0.0)),
        "activation Affine",
    ),
    "peepholes": (lambda: with_input(7, np.ones((1, 15), np.float32)), r"guilty \(LSTM\).*peeph"),
    "lengths": (lambda: with_input(4, np.array([3] * 4, np.int32)), r"guilty \(LSTM\).*early"),
    "h": (lambda: with_input(5, np.ones((1, 4, 5), np.float32)), "guilty.*initial_h is not zero"),
    "c": (lambda: with_input(6, np.ones((1, 4, 5), np.float32)), "guilty.*initial_c is not zero"),
    "opset": (Kind(opset=13), "opset 13: 14 and up are read"),
    "norm": (lambda: with_node(Kind(), "Softmax"), r"guilty \(Softmax\)"),
    "activation between": (lambda: with_node(Kind(), "Relu"), r"guilty \(Relu\)"),
    "activation before": (lambda: with_node(Kind(), "Tanh", "Transpose"), r"guilty \(Tanh\)"),
    "rounded": (lambda: with_node(Kind(), "Cast", to=TensorProto.INT32), "guilty.*rounds to int32"),
    "custom": (lambda: with_node(Kind(), "Foo", domain="com.acme"), r"guilty \(Foo\)"),
    "sum": (joined, r"guilty \(Add\): joins h and c"),
    "cell state": (reading_cell_state, r"guilty \(Gemm\): does not take what"),
    "first step": (first_step, "does not hold each number of the last step once"),
    "a step": (fourth_of_any, "does not hold each number of the last step once"),
    "turned": (reversed_between, "guilty.*not given all steps of"),
    "scaled after": (Kind(end="Tanh", rescaled=True), "scaled after it"),
}


@pytest.mark.parametrize(("made", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_run_is_refused_by_name(tmp_path: Path, made: Any, why: str) -> None:
    file = write(made) if isinstance(made, Kind) else made()
    with pytest.raises(RefusedError, match=why) as caught:
        assemble(importer.read(saved(file, tmp_path)), Wanted())
    assert "\n" not in str(caught.value)


def ended(kind: Kind, *ops: tuple[str, list[Any]]) -> Any:
    """The network with nodes behind it: an op and its inputs after the first; None: left out."""
    file = write(kind)
    last = file.graph.node.pop()
    at = last.input[0]
    for n, (op, beside) in enumerate(ops):
        names = ["" if each is None else f"{op}{n}.{k}" for k, each in enumerate(beside)]
        file.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(each, np.float32), name)
            for name, each in zip(names, beside, strict=True)
            if name
        )
        file.graph.node.append(helper.make_node(op, [at, *names], [f"at{n}"], f"guilty{n}"))
        at = f"at{n}"
    last.input[0] = at
    file.graph.node.append(last)
    return file


WEIGHT, BIAS = np.array([[1.0, -2.0], [0.5, 3.0]]), [0.3, -0.7]


@pytest.mark.parametrize(
    "ops",
    [
        [("MatMul", [WEIGHT])],
        [("Mul", [[2.0, -3.0]]), ("MatMul", [WEIGHT]), ("Add", [BIAS])],
        [("Gemm", [WEIGHT, BIAS]), ("Add", [BIAS]), ("Gemm", [WEIGHT]), ("Tanh", [])],
        [("Mul", [1.0]), ("Clip", [0.0, 1.0])],
        [("Mul", [0.2]), ("Add", [0.5]), ("Min", [1.0]), ("Max", [0.0])],
        [("Max", [0.0]), ("Min", [1.0])],
        [("Max", [0.0])],
        [("Clip", [0.0, 6.0])],
        [("Mul", [4.0]), ("Clip", [-1.0, 1.0])],
        [("Clip", [0.0])],
        [("Clip", [None, 1.0]), ("Clip", [0.0, None])],
    ],
    ids=lambda ops: " ".join(op for op, _ in ops),
)
def test_what_follows_the_head(tmp_path: Path, ops: list[tuple[str, Any]]) -> None:
    """Linear layers, which are one, and bounds, which are activations."""
    kind = Kind(outputs=2, seed=4)
    file = ended(kind, *ops)
    model = assemble(importer.read(saved(file, tmp_path)), Wanted())
    unlike = after(assemble(importer.read(saved(write(kind), tmp_path)), Wanted()), sequence(kind))
    for seed in range(3):
        inputs = sequence(replace(kind, seed=seed), 50)
        truth = outputs_of(file, kind, inputs)
        np.testing.assert_allclose(after(model, inputs), truth, rtol=1e-6, atol=1e-6)
    assert np.abs(after(model, sequence(kind)) - unlike).max() > 1e-3


@pytest.mark.parametrize(
    ("ops", "why"),
    [
        ([("Tanh", []), ("MatMul", [WEIGHT])], r"guilty1 \(MatMul\): comes after .* is tanh"),
        ([("Max", [0.0]), ("MatMul", [WEIGHT])], r"guilty1 \(MatMul\): comes after .* is relu"),
        ([("Clip", [0.0, 5.0])], r"\(Gemm\): is clipped to 0 to 5; 0 and up \(relu\), 0 to 1, "),
        ([("Min", [1.0]), ("Mul", [2.0]), ("Max", [0.0])], r"\(Gemm\): is clipped to -inf to 1"),
        ([("Max", [[0.0, 1.0]])], r"guilty0 \(Max\): does not clip to the same bounds"),
        ([("Max", [0.0, 1.0])], r"guilty0 \(Max\): does not clip to the same bounds"),
        ([("Sigmoid", []), ("Clip", [0.0, 1.0])], r"guilty1 \(Clip\): Clip after"),
    ],
    ids=lambda given: " ".join(op for op, _ in given) if isinstance(given, list) else "",
)
def test_what_may_not_follow_the_head(tmp_path: Path, ops: list[tuple[str, Any]], why: str) -> None:
    with pytest.raises(RefusedError, match=why):
        importer.read(saved(ended(Kind(outputs=2), *ops), tmp_path))


def before_the_layer(*nodes: Any) -> Any:
    """The network with nodes that make ``new`` of x, which then is what it reads."""
    file = write(Kind(widths=(4, 4)))
    for node in file.graph.node:
        node.input[:] = ["new" if each == "x" else each for each in node.input]
    for node in reversed(nodes):
        file.graph.node.insert(0, node)
    return file


def test_a_mask_of_ones_in_the_shape_of_the_input_is_nothing(tmp_path: Path) -> None:
    """Of a dropout that drops nothing, as tf2onnx writes it; twos are a scale."""
    kind = Kind(widths=(4, 4))
    plain = importer.read(saved(write(kind), tmp_path))
    for number in (1.0, 2.0):
        mask = helper.make_tensor("value", TensorProto.FLOAT, [1], [number])
        file = before_the_layer(
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("ConstantOfShape", ["shape"], ["mask"], value=mask),
            helper.make_node("Mul", ["x", "mask"], ["new"]),
        )
        found = importer.read(saved(file, tmp_path))
        assert (found.scale is None) == (number == 1)
        assert np.array_equal(found.layers[0].weight_ih, plain.layers[0].weight_ih)
        if found.scale is not None:
            assert found.scale.tolist() == [0.5, 0.5, 0.5]


def test_a_scale_that_depends_on_the_number_of_steps_is_refused(tmp_path: Path) -> None:
    file = before_the_layer(
        helper.make_node("Size", ["x"], ["size"]),
        helper.make_node("Cast", ["size"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["x", "number"], ["new"]),
    )
    with pytest.raises(RefusedError, match="gives other numbers than the file itself"):
        importer.read(saved(file, tmp_path))


def test_a_scale_that_depends_on_another_input_is_refused(tmp_path: Path) -> None:
    file = ended(Kind(states="input"), ("Mul", [1.0]))
    file.graph.node[-2].input[1] = "h0"
    with pytest.raises(RefusedError, match="input h0 is asked for where no value but x can be"):
        importer.read(saved(file, tmp_path))


def test_a_negative_scale_goes_into_the_weights(tmp_path: Path) -> None:
    kind = Kind(scaled="sub_div")
    file = write(kind)
    name = next(node for node in file.graph.node if node.op_type == "Div").input[1]
    scale = next(each for each in file.graph.initializer if each.name == name)
    scale.CopyFrom(numpy_helper.from_array(np.array([[-2, 0.5, -1]], np.float32), name))
    model = assemble(importer.read(saved(file, tmp_path)), Wanted())
    assert model.spec.scaling.scale == (2.0, 0.5, 1.0)
    inputs = sequence(kind, 50)
    truth = outputs_of(file, kind, inputs)
    np.testing.assert_allclose(after(model, inputs), truth, rtol=1e-6, atol=1e-6)


def test_a_network_without_cells_is_refused(tmp_path: Path) -> None:
    file = write(Kind())
    keep = [node for node in file.graph.node if node.op_type == "Transpose"]
    del file.graph.node[:]
    file.graph.node.extend(keep)
    file.graph.output[0].name = keep[0].output[0]
    with pytest.raises(RefusedError, match="no LSTM, GRU or RNN node in it"):
        importer.read(saved(file, tmp_path))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 nothing of the kind", b"\x08\x08"])
def test_another_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(RefusedError, match="ONNX file"):
        importer.read(path)
    with pytest.raises(RefusedError, match="cannot be read"):
        importer.read(tmp_path / "none.onnx")


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    file = write(Kind())
    weights = numpy_helper.to_array(file.graph.initializer[0]).copy()
    weights.flat[0] = np.nan
    file.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(weights, file.graph.initializer[0].name)
    )
    with pytest.raises(RefusedError, match="holds NaN or infinity"):
        importer.read(saved(file, tmp_path))


@pytest.mark.parametrize("how", ["script", "fixed"])
def test_a_network_read_wrongly_is_noticed(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Each file is run beside what was made of it."""
    path = GOLDENS / f"gru_tanh.{how}.onnx"
    monkeypatch.setitem(importer.cells.__globals__["GATES"], "GRU", (0, 1, 2))
    with pytest.raises(RefusedError, match="gives other numbers than the file itself"):
        importer.read(path)


def test_without_the_package_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(write(Kind()), tmp_path)
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.split(".")[0] in missing:
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    missing = {"onnxruntime"}
    assert importer.run(path, sequence(Kind(), 9)) is None
    missing = {"onnx"}
    with pytest.raises(RefusedError, match=r"pip install 'streamlstm\[onnx\]'"):
        importer.read(path)


def test_a_signalling_nan_is_refused_as_any_other(tmp_path: Path) -> None:
    proto = write(Kind(cell="GRU", scaled="sub_div"))
    damaged = [each for each in proto.graph.initializer if each.data_type == 1 and each.raw_data]
    assert damaged
    for each in damaged:
        each.raw_data = np.uint32(0x7FA00000).tobytes() + each.raw_data[4:]
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(RefusedError, match="NaN"):
        assemble(importer.read(path), Wanted())


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_a_scale_that_takes_a_weight_beyond_float32_is_refused(activation: str) -> None:
    layer = Recurrent(
        "l", "rnn", *(np.ones((2, k), np.float32) for k in (1, 2)), np.zeros(2, np.float32)
    )
    head = Dense("head", np.ones((1, 2), np.float32), np.zeros(1, np.float32), activation)
    parts = Parts(layers=[layer], head=head, loc=np.zeros(1), scale=np.full(1, 1e-40))
    with pytest.raises(RefusedError, match=r"weight.*: with the scaling .* beyond float32"):
        assemble(parts, Wanted())


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_are_refused(tmp_path: Path, data: st.DataObject) -> None:
    """Or read, where the damage is to a number or a name."""
    kind = data.draw(st.sampled_from([Kind(states="shape"), Kind(cell="GRU", scaled="sub_div")]))
    content = bytearray(write(kind).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with suppress(RefusedError):  # anything else fails
        assemble(importer.read(path), Wanted())
