"""``streamlstm publish``: how far it is, and what it says at the end."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from streamlstm import publishing
from tests.daemon import Client, start
from tests.models import random_model_file
from tests.pseudo_terminal import terminal
from tests.test_cli import complaint, series_file, streamlstm

PUBLISH = (sys.executable, "-m", "streamlstm", "publish")


@pytest.fixture
def sink() -> Iterator["zmq.Socket[bytes]"]:
    """What subscribes as a daemon does."""
    with zmq.Context() as context, context.socket(zmq.SUB) as sink:
        sink.rcvhwm = 0
        sink.rcvtimeo = 60_000
        sink.subscribe(b"")
        sink.bind("tcp://127.0.0.1:*")
        yield sink


def endpoint(sink: "zmq.Socket[bytes]") -> str:
    return sink.last_endpoint.decode()


def test_a_terminal_has_a_bar_with_rate_and_time_left(
    tmp_path: Path, sink: "zmq.Socket[bytes]"
) -> None:
    data = series_file(tmp_path)
    # 299 hours, one a second
    command = [*PUBLISH, str(data), "--to", endpoint(sink), "--speed", "3600"]
    with terminal(command) as window:
        window.until(r"publishing .*[1-9]\d* of 600 ticks, [1-9]\d*/s, 4 min 5\d s left")
        assert window.end() == 130
    assert re.search(r"\d of 600 ticks published in \d", window.text)
    assert window.written.rindex("\x1b[?25h") > window.written.rindex("\x1b[?25l")  # the cursor


def test_without_a_terminal_a_line_now_and_then(
    tmp_path: Path, sink: "zmq.Socket[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "TOLD", 0.0)
    monkeypatch.setattr(publishing, "_SHOWN", 0.0)
    done = streamlstm(
        "publish", series_file(tmp_path), "--to", endpoint(sink), "--speed", "3600000"
    )
    *lines, last = done.stderr.splitlines()
    told = re.compile(r"published ([\d,]+) of 600 ticks, [\d,]+/s, .* left")
    counts = [int(found[1]) for line in lines if (found := told.fullmatch(line))]
    assert len(counts) > 10
    assert counts == sorted(counts)
    assert last.startswith("600 of 600 ticks published in 0.")
    assert "\x1b" not in done.stderr


def test_json_at_the_end(tmp_path: Path, sink: "zmq.Socket[bytes]") -> None:
    done = streamlstm("publish", series_file(tmp_path), "--to", endpoint(sink), "--json")
    said = json.loads(done.stdout)
    assert (said["sent"], said["ticks"]) == (600, 600)
    assert 0 < said["seconds"] < 60
    assert "published" not in done.stderr
    for _ in range(600):
        sink.recv_multipart()


def test_publish_says_that_the_daemon_went_away(tmp_path: Path) -> None:
    data, model = series_file(tmp_path), random_model_file(tmp_path)
    with start(tmp_path, model) as daemon:
        command = ["publish", str(data), "--to", daemon.input, "--speed", "3600"]
        process = subprocess.Popen(
            [sys.executable, "-m", "streamlstm", *command], stderr=subprocess.PIPE, text=True
        )
        with Client(daemon) as client:
            client.receive(1)
        daemon.process.kill()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the daemon went away" in said
    assert "of 600 ticks were sent, how many came is not known" in said
    assert "published" not in said
    endpoint = "tcp://127.0.0.1:9"
    assert "no daemon" in complaint("publish", data, "--to", endpoint, "--wait", "0.1")
