"""``streamlstm import`` and ``export``, as they are typed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from streamlstm import exchange
from streamlstm.cli import main
from streamlstm.exporters.onnx import export as export_to_onnx
from streamlstm.golden import forecasts_of
from streamlstm.model_file import load_model, save_model
from tests.models import random_model, random_model_file

GOLDENS = Path(__file__).parent / "goldens" / "torch"


@pytest.fixture
def state_dict() -> Path:
    """Of a network that can be run."""
    return sorted(GOLDENS.glob("[0-9]*.pt"))[0]


def test_whose_file_it_is_is_seen_by_its_name_or_its_content(
    state_dict: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exchange.kind_of(Path("m.keras")) == exchange.kind_of(Path("m.H5")) == "keras"
    assert exchange.kind_of(Path("m.onnx")) == "onnx"
    odd = tmp_path / "weights"
    shutil.copy(state_dict, odd)
    assert exchange.kind_of(odd) == "torch"
    (tmp_path / "text").write_text("hello")
    for name, said in (("text", "--from keras, torch or onnx"), ("none.pt", "no such file")):
        assert main(["import", str(tmp_path / name), "--out", str(tmp_path / "m")]) == 2
        assert said in capsys.readouterr().err


def test_an_import_says_what_it_is_and_where_it_is_from(
    state_dict: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.safetensors"
    given = ["import", str(state_dict), "--out", str(out), "--step", "1h"]
    assert main([*given, "--window", "7"]) == 0
    model = load_model(out)
    assert (model.spec.step_ns, model.spec.window) == (3_600_000_000_000, 7)
    assert model.provenance["imported"] == state_dict.name
    assert model.provenance["from"] == "PyTorch"
    assert "next: streamlstm inspect" in capsys.readouterr().err.replace("\n", " ")
    assert main(given) == 0
    capsys.readouterr()
    assert main(["inspect", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["million_steps_per_second"].keys() == {"1", "64", "1024"}
    assert min(report["million_steps_per_second"].values()) > 0


def test_what_the_framework_says_otherwise_is_refused(
    state_dict: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its outputs are made up here: those of ours, and others."""
    seen: list[np.ndarray] = []

    def off_by(amount: float) -> None:
        def run(path: Path, inputs: np.ndarray, activation: str | None) -> np.ndarray:
            seen.append(inputs)
            model = exchange.assemble(exchange.torch.read(path), exchange.Wanted())
            return forecasts_of(model, inputs)[-1] + amount

        monkeypatch.setattr(exchange.torch, "run", run)

    off_by(1e-6)
    found = exchange.bring(state_dict, "torch")
    assert found.deviation == pytest.approx(1e-6, rel=0.5)
    assert seen[0].shape == (exchange.STEPS, found.model.spec.inputs)
    assert "PyTorch, 32 random steps" in found.model.provenance["parity"]
    off_by(1e-2)
    with pytest.raises(exchange.RefusedError, match="gives something else") as error:
        exchange.bring(state_dict, "torch")
    assert str(error.value).startswith(str(state_dict))


@pytest.mark.parametrize("kind", [{}, {"window": 5}, {"cell": "gru"}, {"lags": (1, 24)}])
def test_what_is_exported_as_onnx_comes_back_bit_for_bit(tmp_path: Path, kind: dict) -> None:
    model = random_model(directions=3, spread=True, **kind)
    save_model(model, tmp_path / "m.safetensors")
    onnx, back = tmp_path / "m.onnx", tmp_path / "back.safetensors"
    export = ["export", str(tmp_path / "m.safetensors"), "--to", "onnx", "--out", str(onnx)]
    assert main(export) == 0
    assert main(["import", str(onnx), "--out", str(back)]) == 0
    assert main(["import", str(onnx), "--out", str(back), "--targets", "3"]) == 1
    again = load_model(back)
    assert again.spec == model.spec.model_copy(update={"directions": 0, "spread": False})
    for name, weight in again.weights.items():
        np.testing.assert_array_equal(weight, model.weights[name][: len(weight)])
    assert float(str(again.provenance["parity"]).split(": ")[1]) < 1e-5


def test_what_an_export_of_ours_lacks_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx = tmp_path / "m.onnx"
    export_to_onnx(random_model(directions=3, spread=True), onnx)
    assert main(["import", str(onnx), "--out", str(tmp_path / "back.safetensors")]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes == [f"note: {exchange.OURS}"]
    back = load_model(tmp_path / "back.safetensors")
    assert (back.spec.directions, back.spec.spread, back.errors) == (0, False, None)
    for lacking in ("learn", "may err", "intervals begin"):
        assert lacking in exchange.OURS


@pytest.mark.parametrize(
    ("kind", "name", "suffix"),
    [("onnx", "x.bin", ".onnx"), ("onnx", "x", ".onnx"), ("torch", "x.pt", ".safetensors")],
)
def test_an_export_is_called_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, name: str, suffix: str
) -> None:
    model, out = random_model_file(tmp_path), tmp_path / name
    assert main(["export", str(model), "--to", kind, "--out", str(out)]) == 2
    said = f"streamlstm export: --out {out}: name a file that ends in {suffix}\n"
    assert capsys.readouterr().err == said
    assert not out.exists()


def test_a_state_dict_is_written_with_a_module_that_runs_it(tmp_path: Path) -> None:
    model = random_model(directions=3)
    save_model(model, tmp_path / "m.safetensors")
    out = tmp_path / "net.safetensors"
    assert (
        main(["export", str(tmp_path / "m.safetensors"), "--to", "torch", "--out", str(out)]) == 0
    )
    compile((tmp_path / "net.py").read_text(), "net.py", "exec")
    assert main(["import", str(out), "--out", str(tmp_path / "back.safetensors")]) == 0
    again = load_model(tmp_path / "back.safetensors")
    for name in ("lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_l0"):
        np.testing.assert_array_equal(again.weights[name], model.weights[name])


def test_no_command_writes_over_what_it_reads(
    state_dict: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "model.safetensors"
    shutil.copy(state_dict.with_suffix(".safetensors"), mine)
    before = mine.read_bytes()
    assert main(["import", str(mine), "--out", str(tmp_path / "." / "model.safetensors")]) == 2
    assert main(["export", str(mine), "--to", "torch", "--out", str(mine)]) == 2
    assert capsys.readouterr().err.count("name another file") == 2
    assert mine.read_bytes() == before


def test_what_looks_like_an_archive_and_is_none_is_no_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / "odd"
    odd.write_bytes(b"x" * 50 + b"PK\x05\x06" + b"\xff" * 16 + b"\0\0")
    assert main(["import", str(odd), "--out", str(tmp_path / "m")]) == 2
    assert "whose file is this" in capsys.readouterr().err


def test_that_a_state_runs_on_is_said_where_the_file_does_not_say(state_dict: Path) -> None:
    told = exchange.bring(state_dict, "torch")
    assert any("--window W" in note for note in told.notes)
    chosen = exchange.bring(state_dict, "torch", exchange.Wanted(window=0))
    assert not any("--window W" in note for note in chosen.notes)
