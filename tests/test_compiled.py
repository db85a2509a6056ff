"""Compiled code of one state of the sources is never used for another."""

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import streamlstm
from streamlstm import compiled

CODE = "from streamlstm import compiled; print(compiled.choose_folder())"


def folder(package: Path, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=package, capture_output=True, text=True, check=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(package)} | env,
    )  # fmt: skip
    return done.stdout.strip()


def test_a_changed_source_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    shutil.copytree(
        Path(streamlstm.__file__).parent, tmp_path / "streamlstm",
        ignore=shutil.ignore_patterns("*.gz", "__pycache__"),
    )  # fmt: skip
    before = folder(tmp_path, NUMBA_CACHE_DIR="/given")
    assert before.startswith("/given/streamlstm-")
    assert folder(tmp_path, NUMBA_CACHE_DIR="/given") == before
    assert folder(tmp_path, NUMBA_CACHE_DIR=before) == before, "a child keeps its parent's"
    with (tmp_path / "streamlstm" / "kernels" / "cell.py").open("a") as source:
        source.write("# changed\n")
    assert folder(tmp_path, NUMBA_CACHE_DIR="/given") != before


def test_by_default_it_is_the_users_cache_folder(tmp_path: Path) -> None:
    root = Path(streamlstm.__file__).parent.parent
    assert folder(root, XDG_CACHE_HOME="/cache").startswith("/cache/streamlstm/streamlstm-")
    assert folder(root, HOME="/home/me").startswith("/home/me/.cache/streamlstm/streamlstm-")


def test_without_a_home_a_folder_must_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/given")
    assert compiled.choose_folder().parent == Path("/given")
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    with pytest.raises(compiled.NoFolderError, match="set NUMBA_CACHE_DIR"):
        compiled.choose_folder()
