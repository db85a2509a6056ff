"""The house keeps its order: every import points down, and importing the package does nothing."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import streamlstm

ROOT = Path(streamlstm.__file__).parent
LEVELS = {
    "compiled": -2,
    "jit": -1,  # how all others have their functions compiled
    "files": -1, "children": -1, "allocation": -1, "endpoints": -1,
    "config": 0, "model": 0, "ticks": 0, "timestamps": 0, "metrics": 0, "memory": 0,
    "decimals": 0, "placed": 0, "calendars": 0, "security": 0, "logs": 0, "systemd": 0,
    "averages": 0, "fit_options": 1, "features": 1, "kernels": 1, "hashing": 1, "transport": 1,
    "intervals": 1, "adapt": 1, "backlog": 1, "events": 1, "copy_on_write": 1, "web": 1,
    "watch": 1, "model_file": 1,
    "golden": 2, "quality": 2, "ends": 2, "index": 2, "policies": 2, "segments": 2, "wire": 2,
    "series": 3, "appending": 3, "work": 3,
    "rounds": 4, "admission": 4, "stages": 4, "journal": 4,
    "engine": 5,
    "state_schema": 6, "snapshot": 6, "live": 6,
    "checkpoint": 7, "parking": 7, "handover": 7,
    "loop": 8, "models": 8, "replay": 8,
    "kept": 9,
    "reload": 10, "refitting": 10,
    "service": 11,
    "ahead": 12,
    # the side rooms: nothing of the daemon may import them
    "datasets": 12, "samples": 12, "speed": 12, "precision": 12, "backtest": 12,
    "svg": 12, "terminal": 12, "vitals": 12, "arguments": 12,
    "client": 13, "directions": 13, "rolling": 13, "peers": 13, "linear": 13, "gradient": 13,
    "outliers": 13,
    "importers": 13, "exporters": 13,
    "tables": 14, "mixture": 14, "spread": 14, "bptt": 14, "recorded": 14,
    "smoothing": 15, "plot": 15, "report": 15, "sequential": 15,
    "console": 15, "completion": 15, "top": 15, "watching": 15,
    "infer": 16, "exchange": 16, "offline": 16, "calibration": 16,
    "train": 17,
    "demo": 18, "publishing": 18, "refit": 18, "search": 18, "forecast": 18,
    "commands": 19, "forecaster": 19,
    "cli": 20,
    "__main__": 21,
}  # fmt: skip
WITHIN_KERNELS = {
    "simd": 0, "cell": 1, "pool": 1, "products": 1, "reference": 2, "gates": 2, "layers": 3,
    "tiles": 4, "rarer": 2, "cpu": 5, "device": 1, "warp": 4, "block": 5, "cuda": 6,
}  # fmt: skip
WITHIN_WIRE = {
    "format": 0, "big_endian": 0, "publishers": 0, "binary": 1, "maps": 1, "layout": 1,
    "json": 2, "msgpack": 2, "schemas": 2, "arrow": 3, "codec": 4, "peer": 4,
}  # fmt: skip
WITHIN_IMPORTERS = {
    "parts": 0, "keras_file": 1, "keras": 2, "state_dict": 1, "torch": 2,
    "onnx_graph": 1, "onnx_cells": 2, "onnx_trace": 3, "onnx": 4,
}  # fmt: skip
WITHIN_EXPORTERS = {"pipeline": 0, "torch": 1, "onnx": 1}
WITHIN = {
    "kernels": WITHIN_KERNELS, "wire": WITHIN_WIRE, "importers": WITHIN_IMPORTERS,
    "exporters": WITHIN_EXPORTERS,
}  # fmt: skip


def modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")


def imports(path: Path) -> set[tuple[str, ...]]:
    """Every module of ours that a file imports, late imports included, as parts below the root."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "streamlstm" or (node.module or "").startswith("streamlstm."):
                below = (node.module or "").split(".")[1:]
                found |= {(*below, alias.name)[:2] for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("streamlstm")]
            found |= {tuple(name.split(".")[1:]) for name in names}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)
def test_every_import_points_down(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    room = parts[0]
    assert room in LEVELS, f"{room}: say in LEVELS where this room stands"
    for target in imports(path):
        if target[0] != room:
            assert LEVELS[target[0]] < LEVELS[room], f"{'.'.join(parts)} imports {target[0]}"
        elif room in WITHIN:
            within = WITHIN[room]
            assert within[target[1]] < within[parts[1]], f"{parts} <- {target}"


def test_level_0_imports_nothing_else_of_ours() -> None:
    for path in modules():
        parts = path.relative_to(ROOT).with_suffix("").parts
        if LEVELS[parts[0]] == 0 and parts[0] != "kernels":
            assert {room for room, *_ in imports(path)} <= {"jit", "files", "endpoints"}, path


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_a_backend_offers_all_that_the_daemon_asks_it_for(backend: str) -> None:
    """Without importing it, since a GPU is nothing that each machine has."""
    rooms = ("engine", "loop", "checkpoint", "golden")
    text = "".join((ROOT / f"{room}.py").read_text() for room in rooms)
    asked = set(re.findall(r"\bkernels\.(\w+)\(", text))
    assert {"step", "allocate", "compiled_step"} <= asked
    tree = ast.parse((ROOT / "kernels" / f"{backend}.py").read_text())
    assert asked <= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_importing_the_package_brings_nothing_along() -> None:
    code = "import sys, streamlstm; print(*{'numba', 'zmq', 'pandas'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""


def test_the_daemon_does_not_import_what_only_people_need() -> None:
    heavy = {"pandas", "rich", "plotext", "matplotlib", "pyarrow"}
    code = f"import sys, streamlstm.service; print(*{heavy} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""


def lint(*command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    lint("ruff", "check")


def test_ruff_would_format_nothing() -> None:
    lint("ruff", "format", "--check")


def test_types_hold() -> None:
    lint("mypy")
