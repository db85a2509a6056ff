"""The clients in the README, as they stand there, against the real daemon."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import Daemon, start
from tests.models import random_model_file

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("daemon")
    with start(folder, random_model_file(folder)) as daemon:
        yield daemon


def client(daemon: Daemon, language: str, path: Path) -> None:
    """Write the client of a language to ``path``; its ports are those of ``daemon``."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.M | re.S)
    (source,) = [block for block in blocks if "5556" in block]
    assert source.count("tcp://127.0.0.1:5555") == source.count("tcp://127.0.0.1:5556") == 1
    source = source.replace("tcp://127.0.0.1:5555", daemon.input)
    path.write_text(source.replace("tcp://127.0.0.1:5556", daemon.output))


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check(daemon: Daemon, said: str) -> None:
    """It printed the topic and all that a prediction holds."""
    assert "prediction.boiler" in said
    for name in ("series", "ts", "forecast", "lower", "upper", "model", "boot", "seq"):
        assert re.search(rf"""["']?{name}["']?: ?""", said), said
    assert daemon.metric("streamlstm_ticks_received_total") >= 1


def test_python(daemon: Daemon, tmp_path: Path) -> None:
    client(daemon, "python", tmp_path / "client.py")
    check(daemon, run(sys.executable, tmp_path / "client.py"))


def test_node(daemon: Daemon, tmp_path: Path) -> None:
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    run("npm", "install", "--no-audit", "--no-fund", "--prefix", tmp_path, "zeromq@6")
    client(daemon, "js", tmp_path / "client.mjs")
    check(daemon, run("node", tmp_path / "client.mjs"))


def test_c(daemon: Daemon, tmp_path: Path) -> None:
    if not (shutil.which("cc") and Path("/usr/include/zmq.h").exists()):
        pytest.skip("a C compiler and libzmq3-dev are not installed")
    client(daemon, "c", tmp_path / "client.c")
    run("cc", "-Wall", "-Werror", tmp_path / "client.c", "-o", tmp_path / "client", "-lzmq")
    check(daemon, run(tmp_path / "client"))


def test_go(daemon: Daemon, tmp_path: Path) -> None:
    if not (shutil.which("go") and shutil.which("cc") and Path("/usr/include/zmq.h").exists()):
        pytest.skip("go, a C compiler and libzmq3-dev are not installed")
    client(daemon, "go", tmp_path / "client.go")
    cache = str(tmp_path / "cache")
    check(daemon, run("go", "run", tmp_path / "client.go", GOCACHE=cache, CGO_ENABLED="1"))
