"""Networks of PyTorch: read without it, run as it runs them, and nothing of a file is executed.

What PyTorch itself saved and gave is in tests/goldens/torch, made by tests/goldens/make_torch.py.
"""

import importlib.util
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

from streamlstm.features import features_of
from streamlstm.golden import network_of
from streamlstm.importers.parts import Dense, Parts, Recurrent, RefusedError, Wanted, assemble
from streamlstm.importers.state_dict import read_state_dict, unpickled
from streamlstm.importers.torch import UNSAID, read, run
from streamlstm.kernels import cpu, reference
from streamlstm.model import Model
from streamlstm.model_file import load_model, save_model
from tests.models import random_model

GOLDENS = Path(__file__).parent.parent / "goldens" / "torch"
CASES: list[dict[str, Any]] = json.loads((GOLDENS / "cases.json").read_text())
Singles = NDArray[np.float32]


def activation_of(case: dict[str, Any]) -> str | None:
    return str(case["activation"]) if case["cell"] == "rnn" else None


def outputs_of(model: Model, inputs: Singles, backend: ModuleType = reference) -> NDArray[Any]:
    """(T, O) of the backend, from a zero state."""
    inputs = np.ascontiguousarray(inputs)
    n = len(inputs)
    dtype = np.float64 if backend is reference else np.float32
    outputs = np.zeros((n, model.spec.answers), dtype)
    buffers = backend.allocate(network_of(model.spec, model.weights), 1)
    backend.step(buffers, np.zeros(n, np.int32), inputs, np.arange(n + 1), outputs)
    return outputs


@pytest.mark.parametrize("number", range(len(CASES)))
def test_a_network_gives_what_pytorch_gave_over_1000_steps(number: int, tmp_path: Path) -> None:
    case = CASES[number]
    path = GOLDENS / f"{number:02}.pt"
    model = assemble(read(path, activation_of(case)), Wanted())
    runs = np.load(GOLDENS / "runs.npz")
    inputs, wanted = runs["inputs"][:, : case["inputs"]], runs[f"{number:02}"]
    np.testing.assert_allclose(outputs_of(model, inputs)[4::5], wanted, rtol=0, atol=1e-5)
    if number < 3:  # one of each cell
        ours = outputs_of(model, inputs, cpu)[4::5]
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-5)

    assert (model.spec.cell, model.spec.layers) == (case["cell"], case["layers"])
    assert (model.spec.hidden, model.spec.outputs) == (case["hidden"], case["outputs"])
    other = assemble(read(path.with_suffix(".safetensors"), activation_of(case)), Wanted())
    assert other.id == model.id
    save_model(model, tmp_path / "model.safetensors")
    assert load_model(tmp_path / "model.safetensors").id == model.id


def test_the_goldens_are_of_all_kinds() -> None:
    dtypes = {case["dtype"].removeprefix("torch.") for case in CASES}
    assert dtypes == {"float32", "float16", "bfloat16", "float64"}
    assert {case["activation"] for case in CASES} == {"tanh", "relu"}
    assert {case["layers"] for case in CASES} == {1, 2, 3}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("bidirectional", "weight_ih_l0_reverse: bidirectional"),
        ("projected", "weight_hr_l0: proj_size"),
        ("module", r"a whole module, pickled: .*rnn\.LSTM.*torch\.save\(model\.state_dict\(\)"),
        ("scripted", r"a scripted module .*torch\.save\(model\.state_dict\(\)"),
        ("legacy", r"not the zip .*torch\.save\(model\.state_dict\(\)"),
    ],
)
def test_what_pytorch_saves_otherwise_is_refused_by_name(name: str, why: str) -> None:
    with pytest.raises(RefusedError, match=why):
        read(GOLDENS / "refused" / f"{name}.pt")


# --- what the names say


def lstm(prefix: str, inputs: int, hidden: int, layers: int = 1, gates: int = 4) -> dict[str, Any]:
    rng = np.random.default_rng(len(prefix) + inputs + hidden)
    tensors = {}
    for n in range(layers):
        for name, shape in (
            ("weight_ih", (gates * hidden, hidden if n else inputs)),
            ("weight_hh", (gates * hidden, hidden)),
            ("bias_ih", (gates * hidden,)),
            ("bias_hh", (gates * hidden,)),
        ):
            tensors[f"{prefix}{name}_l{n}"] = rng.normal(size=shape).astype(np.float32)
    return tensors


def linear(prefix: str, inputs: int, outputs: int) -> dict[str, Any]:
    zeros = np.ones((outputs, inputs), np.float32), np.ones(outputs, np.float32)
    return {f"{prefix}weight": zeros[0], f"{prefix}bias": zeros[1]}


def ones(*shape: int) -> Singles:
    return np.ones(shape, np.float32)


REFUSED = {
    "there is no nn.LSTM": linear("fc.", 2, 2),
    "fc1 and fc2: more than one": lstm("r.", 2, 3) | linear("fc1.", 3, 4) | linear("fc2.", 4, 1),
    "fc: takes 4 numbers, r gives 3": lstm("r.", 2, 3) | linear("fc.", 4, 1),
    "emb: an nn.Embedding": {"emb.weight": ones(9, 2)} | lstm("r.", 2, 3) | linear("fc.", 3, 1),
    "bn.running_mean: of an nn.BatchNorm": lstm("r.", 2, 3) | {"bn.running_mean": ones(3)},
    "ln.bias: of an nn.LayerNorm": lstm("r.", 2, 3) | {"ln.weight": ones(3), "ln.bias": ones(3)},
    "c.0.weight: of an nn.Conv": lstm("r.", 2, 3) | {"c.0.weight": ones(2, 2, 3)},
    "scale: of no": lstm("r.", 2, 3) | {"scale": ones()},
    r"r.\*_l0: some of its tensors": {
        k: v for k, v in lstm("r.", 2, 3).items() if "bias_hh" not in k
    },
    r"r.\*: the layers \[1\]": {k.replace("l0", "l1"): v for k, v in lstm("r.", 2, 3).items()},
    r"r.\*_l0: the shapes": lstm("r.", 2, 3) | {"r.bias_hh_l0": ones(11)},
    r"r.\*_l1: the shapes": lstm("r.", 2, 3, 2) | {"r.weight_ih_l1": ones(12, 2)},
    r"r.\*_l0: 6 rows over 3 units": lstm("r.", 2, 3, gates=2),
    r"r.\*_l0: 7 rows over 3 units": {"r.weight_ih_l0": ones(7, 1), "r.weight_hh_l0": ones(7, 3)},
    "its layers are of different": lstm("r.", 2, 3, 2)
    | {"r.weight_ih_l1": ones(9, 3), "r.weight_hh_l1": ones(9, 3)}
    | {"r.bias_ih_l1": ones(9), "r.bias_hh_l1": ones(9)},
    "b is of GRU cells, a of LSTM": lstm("a.", 2, 3) | lstm("b.", 3, 4, gates=3),
    "r.bias_hh_l0: .*NaN": lstm("r.", 2, 3) | {"r.bias_hh_l0": np.full(12, np.nan, np.float32)},
    "r.weight_ih_l0: is int64": lstm("r.", 2, 3) | {"r.weight_ih_l0": np.ones((12, 2), np.int64)},
    "r.weight_ih_l0: is empty": lstm("r.", 2, 3) | {"r.weight_ih_l0": ones(12, 0)},
    "fc: weight and bias do not": lstm("r.", 2, 3) | linear("fc.", 3, 4) | {"fc.bias": ones(3)},
    "fc.bias: of an nn.LayerNorm": lstm("r.", 2, 3) | {"fc.bias": ones(3)},
    "layers: .* 16": lstm("r.", 1, 1, 17),
}


@pytest.mark.parametrize("why", REFUSED, ids=str)
def test_what_streamlstm_cannot_run_is_refused_by_name(why: str, tmp_path: Path) -> None:
    save_file(REFUSED[why], tmp_path / "state.safetensors")
    with pytest.raises(RefusedError, match=why):
        assemble(read(tmp_path / "state.safetensors"), Wanted())


def test_a_model_of_ours_is_not_imported(tmp_path: Path) -> None:
    save_model(random_model(), tmp_path / "model.safetensors")
    with pytest.raises(RefusedError, match="already a model of streamlstm"):
        read(tmp_path / "model.safetensors")


def test_the_nonlinearity_is_asked_for_where_the_file_does_not_say_it(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_file(lstm("r.", 2, 3, gates=1), path)
    assert "tanh is taken" in read(path).notes[-1]
    assert read(path, "relu").layers[0].activation == "relu"
    assert read(path, "relu").notes == [UNSAID]
    with pytest.raises(RefusedError, match=r"r: an nn\.RNN has tanh or relu, not elu"):
        read(path, "elu")
    save_file(lstm("r.", 2, 3), path)
    with pytest.raises(RefusedError, match="r: an LSTM of PyTorch has tanh alone"):
        read(path, "relu")


def test_biases_are_summed_but_for_a_gru(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    for gates in (1, 3, 4):
        tensors = lstm("", 2, 3, gates=gates)
        save_file(tensors, path)
        layer = read(path).layers[0]
        if gates == 3:
            assert layer.bias_hh is not None
            np.testing.assert_array_equal(layer.bias, tensors["bias_ih_l0"])
            np.testing.assert_array_equal(layer.bias_hh, tensors["bias_hh_l0"])
        else:
            assert layer.bias_hh is None
            summed = tensors["bias_ih_l0"] + tensors["bias_hh_l0"]
            np.testing.assert_array_equal(layer.bias, summed)


def test_whole_numbers_are_left_out_with_a_note(tmp_path: Path) -> None:
    counted = lstm("r.", 2, 3) | {"steps": np.array(7)}
    save_file(counted, tmp_path / "state.safetensors")
    assert read(tmp_path / "state.safetensors").notes == [
        "steps is left out: whole numbers are no weights",
        UNSAID,
    ]


def test_modules_follow_each_other_as_their_widths_say(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    # a .safetensors is sorted by name; the widths put them right
    save_file(lstm("decoder.", 5, 4) | lstm("encoder.", 2, 5) | linear("fc.", 4, 1), path)
    parts = read(path)
    assert [layer.name for layer in parts.layers] == ["encoder", "decoder"]
    assert parts.notes == ["taken to follow each other: encoder, decoder", UNSAID]
    # where they do not, nothing is guessed
    save_file(lstm("decoder.", 5, 5) | lstm("encoder.", 5, 5), path)
    with pytest.raises(RefusedError, match="decoder, encoder: several orders fit"):
        read(path)
    save_file(lstm("decoder.", 5, 6) | lstm("encoder.", 2, 3), path)
    with pytest.raises(RefusedError, match="decoder, encoder: no order fits"):
        read(path)
    save_file(lstm("l.9.", 5, 5) | lstm("l.10.", 5, 5), path)
    assert [layer.name for layer in read(path).layers] == ["l.9", "l.10"]
    # torch.save keeps the order
    both = lstm("decoder.", 5, 5) | lstm("encoder.", 5, 5)
    for order in (["encoder.", "decoder."], ["decoder.", "encoder."]):
        named = {k: both[k] for prefix in order for k in both if k.startswith(prefix)}
        write(tmp_path / "state.pt", named)
        assert [layer.name + "." for layer in read(tmp_path / "state.pt").layers] == order


@pytest.mark.parametrize("head", ["linear", "sigmoid"])
def test_a_scaling_goes_through_the_way_past_the_layers_too(head: str) -> None:
    rng = np.random.default_rng(0)
    w, u, v, skip = (
        rng.normal(size=s).astype(np.float32) for s in ((3, 2), (3, 3), (2, 3), (2, 2))
    )
    b, c = rng.normal(size=3).astype(np.float32), rng.normal(size=2).astype(np.float32)
    loc, scale = np.array([5.0, -3.0]), np.array([2.0, 0.5])
    out_loc, out_scale = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    parts = Parts([Recurrent("r", "rnn", w, u, b)], Dense("d", v, c, head, skip), loc, scale)
    if head == "linear":
        parts = parts._replace(out_loc=out_loc, out_scale=out_scale)
    model = assemble(parts, Wanted(targets=2))

    x = (loc + scale * rng.normal(size=(50, 2))).astype(np.float32)
    h, wanted = np.zeros(3), []
    for row in (x - loc) / scale:
        h = np.tanh(w @ row + u @ h + b)
        out = v @ h + skip @ row + c
        wanted.append(out_loc + out_scale * out if head == "linear" else 1 / (1 + np.exp(-out)))
    rows = features_of(model.spec, np.arange(50), x.astype(np.float64))
    ours = rows.base + rows.scale * outputs_of(model, rows.x)
    np.testing.assert_allclose(ours, wanted, atol=1e-5)


# --- the files of torch.save, and what only looks like one


def atom(value: Any) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def tensor(key: str, shape: Any, strides: Any, offset: Any = 0, kind: str = "Float") -> bytes:
    """A pickle's instructions for a tensor, as torch.save writes them."""
    storage = b"(" + atom("storage") + f"ctorch\n{kind}Storage\n".encode()
    storage += atom(key) + atom("cpu") + atom(1) + b"tQ"
    view = atom(offset) + atom(shape) + atom(strides) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"tR"


def pickled(entries: dict[str, bytes]) -> bytes:
    items = b"".join(atom(name) + value for name, value in entries.items())
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u."


def archive(path: Path, program: bytes, storages: dict[str, bytes], **more: bytes) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", program)
        for key, stored in storages.items():
            file.writestr(f"a/data/{key}", stored)
        for name, text in more.items():
            file.writestr(f"a/{name}", text)


def write(path: Path, tensors: dict[str, Singles]) -> None:
    """A file as torch.save writes it."""
    entries, storages = {}, {}
    for n, (name, array) in enumerate(tensors.items()):
        strides = tuple(stride // 4 for stride in array.strides)
        entries[name] = tensor(str(n), array.shape, strides)
        storages[str(n)] = array.tobytes()
    archive(path, pickled(entries), storages)


def test_the_bytes_may_be_in_the_other_order(tmp_path: Path) -> None:
    stored = np.arange(7, dtype=">f4").tobytes()
    program = pickled({"x": tensor("0", (2, 2), (3, 2), 1)})
    archive(tmp_path / "a.pt", program, {"0": stored}, byteorder=b"big")
    # from number 1 on, rows 3 apart, columns 2
    np.testing.assert_array_equal(read_state_dict(tmp_path / "a.pt")["x"], [[1, 3], [4, 6]])


def test_nothing_of_a_file_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch '{mark}'",)

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        program = pickle.dumps({"state_dict": {}, "by the way": Evil()}, protocol)
        pickle.loads(program)
        mark.unlink()  # so it would do what it says
        archive(tmp_path / "evil.pt", program, {})
        with pytest.raises(RefusedError, match=r"its pickle holds|asks for .*system, which"):
            read(tmp_path / "evil.pt")
        assert not mark.exists()


LYING = {
    "more than there is": (tensor("0", (2**40, 2**20), (0, 0)), "x: is larger than its storage"),
    "one more": (tensor("0", (9,), (1,)), "x: is larger than its storage"),
    "far apart": (tensor("0", (2, 2), (2**62, 1)), "x: is larger than its storage"),
    "behind it": (tensor("0", (1,), (1,), 8), "x: is larger than its storage"),
    "backwards": (tensor("0", (2,), (-1,), 4), "x: damaged"),
    "before it": (tensor("0", (2,), (1,), -4), "x: damaged"),
    "of two ranks": (tensor("0", (2,), (1, 1)), "x: damaged"),
    "of words": (tensor("0", ("2",), (1,)), "x: damaged"),
    "of no shape": (tensor("0", 2, 1), "damaged"),
    "elsewhere": (tensor("../../0", (2,), (1,)), "damaged"),
    "of what is unknown": (tensor("0", (2,), (1,), kind="Evil"), "EvilStorage, which is not run"),
}  # fmt: skip


@pytest.mark.parametrize("what", LYING, ids=str)
def test_what_a_file_says_of_sizes_is_not_believed(what: str, tmp_path: Path) -> None:
    entry, why = LYING[what]
    floats = np.arange(8, dtype=np.float32)
    archive(tmp_path / "a.pt", pickled({"x": tensor("0", (8,), (1,))}), {"0": floats.tobytes()})
    np.testing.assert_array_equal(read_state_dict(tmp_path / "a.pt")["x"], floats)
    archive(tmp_path / "a.pt", pickled({"x": entry}), {"0": floats.tobytes()})
    with pytest.raises(RefusedError, match=why):
        read_state_dict(tmp_path / "a.pt")


def test_one_storage_does_not_fill_the_memory(tmp_path: Path) -> None:
    storage = {"0": bytes(4 * 100_000)}
    for count, fits in ((3, True), (100, False)):  # 100 of them would take 40 MB
        shared = {f"x{n}": tensor("0", (100_000,), (1,)) for n in range(count)}
        archive(tmp_path / "a.pt", pickled(shared), storage)
        if fits:
            assert len(read_state_dict(tmp_path / "a.pt")) == count
            continue
        with pytest.raises(RefusedError, match="its tensors are larger than the file"):
            read_state_dict(tmp_path / "a.pt")


PROGRAMS = {
    "no end": b"\x80\x02}",
    "nothing on the stack": b"\x80\x02.",
    "beneath a mark": b"\x80\x02}(0.",
    "no mark": b"\x80\x02}u.",
    "a memo that is not there": b"\x80\x02h\x07.",
    "a key that is a list": b"\x80\x02}]Ns.",
    "a key that is a tuple": b"\x80\x02})Ns.",
    "an odd number of items": b"\x80\x02}(NNNu.",
    "items into a list": b"\x80\x02](NNu.",
    "attributes of a word": b"\x80\x02ctorch\nFloatStorage\n}b.",
    "a call of a storage": b"\x80\x02ctorch\nFloatStorage\n)R.",
    "a call of a number": b"\x80\x02K\x01)R.",
    "a dict with contents": b"\x80\x02ccollections\nOrderedDict\n(NtR.",
    "a parameter of nothing": b"\x80\x02ctorch._utils\n_rebuild_parameter\n(NtR.",
    "a tensor of nothing": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR.",
    "an id that is a number": b"\x80\x02K\x01Q.",
    "an id of no storage": b"\x80\x02(NNNtQ.",
    "a function of Python": b"\x80\x02c__builtin__\neval\n.",
    "one in two words": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "a new object": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "one of a registry": b"\x80\x02\x82\x01.",
}


@pytest.mark.parametrize("what", PROGRAMS, ids=str)
def test_a_pickle_of_anything_else_is_refused(what: str, tmp_path: Path) -> None:
    archive(tmp_path / "a.pt", PROGRAMS[what], {})
    with pytest.raises(RefusedError):
        read_state_dict(tmp_path / "a.pt")


def test_a_pickle_may_be_of_a_later_protocol() -> None:
    value = {"a": [1, -2.5, None, True, "é" * 300, (1, 2, 3, 4), 2**70, {"b": ()}], 3: [[]] * 3}
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert unpickled(pickle.dumps(value, protocol)) == value


def test_a_place_of_the_memo_takes_no_memory() -> None:
    assert unpickled(b"\x80\x02Nr\xff\xff\xff\xffj\xff\xff\xff\xff.") is None


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_damaged_file_is_refused_or_read(suffix: str, tmp_path: Path) -> None:
    whole = (GOLDENS / f"04.{suffix}").read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / f"a.{suffix}"
    said = []
    for trial in range(300):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), 1 + trial % 4):
            data[at] = rng.integers(256)
        path.write_bytes(data[: rng.integers(len(data))] if trial % 10 == 0 else data)
        try:
            read(path)
        except RefusedError as error:
            said.append(str(error))
    assert len(said) > 50
    assert not any("\n" in line for line in said)


def test_a_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with pytest.raises(RefusedError, match="no such file"):
        read(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("hello", "world")
    with pytest.raises(RefusedError, match=r"a zip, but not of torch\.save"):
        read(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", bytes(1 << 20))
    with pytest.raises(RefusedError, match="compressed"):
        read(path)
    archive(path, pickled({}), {})
    with pytest.raises(RefusedError, match="there are no weights in it"):
        read(path)


# --- where PyTorch is installed


def test_without_pytorch_it_is_not_run() -> None:
    if importlib.util.find_spec("torch") is None:
        assert run(GOLDENS / "00.pt", np.zeros((3, 1), np.float32)) is None


def test_pytorch_runs_every_file_as_it_did() -> None:
    pytest.importorskip("torch", reason="runs the files by PyTorch itself")
    runs = np.load(GOLDENS / "runs.npz")
    for number, case in enumerate(CASES):
        for suffix in ("pt", "safetensors"):
            inputs = runs["inputs"][:, : case["inputs"]]
            last = run(GOLDENS / f"{number:02}.{suffix}", inputs, activation_of(case))
            assert last is not None
            np.testing.assert_allclose(last, runs[f"{number:02}"][-1], atol=1e-5)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_drawn_network_gives_what_pytorch_gives(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    torch = pytest.importorskip("torch", reason="draws networks of PyTorch's, live")
    integers = st.integers
    cell = data.draw(st.sampled_from(["LSTM", "GRU", "RNN"]))
    inputs, hidden, layers = (data.draw(integers(1, most)) for most in (3, 24, 3))
    options: dict[str, Any] = {"bias": data.draw(st.booleans())}
    activation = None
    if cell == "RNN":
        activation = options["nonlinearity"] = data.draw(st.sampled_from(["tanh", "relu"]))
    torch.manual_seed(data.draw(integers(0, 1000)))

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = getattr(torch.nn, cell)(inputs, hidden, layers, **options)
            self.top = torch.nn.Linear(hidden, 2, bias=options["bias"])

    net = Net()
    if activation == "relu":  # what is not bounded is kept from growing for ever
        with torch.no_grad():
            for n in range(layers):
                getattr(net.body, f"weight_hh_l{n}").mul_(0.5)
    path = tmp_path_factory.mktemp("drawn") / "net.pt"
    torch.save(net.state_dict(), path)
    x = torch.randn(1000, inputs)
    with torch.no_grad():
        wanted = net.top(net.body(x)[0]).numpy()
    model = assemble(read(path, activation), Wanted())
    np.testing.assert_allclose(outputs_of(model, x.numpy()), wanted, rtol=0, atol=1e-5)
    last = run(path, x.numpy(), activation)
    assert last is not None
    np.testing.assert_allclose(last, wanted[-1], rtol=0, atol=1e-5)
