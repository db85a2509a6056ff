"""``streamlstm publish``: how far it is, and what it says at the end."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from streamlstm import publishing
from tests.daemon import Client, eventually, start
from tests.models import random_model_file
from tests.pseudo_terminal import terminal
from tests.test_cli import complaint, series_file, streamlstm

PUBLISH = (sys.executable, "-m", "streamlstm", "publish")


class Sink(threading.Thread):
    """Subscribes as a daemon does, and reads what comes in a thread of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._stop_it = threading.Event()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.subscribe(b"")
        self.endpoint = f"tcp://127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"
        self.start()

    def run(self) -> None:
        while not self._stop_it.is_set():
            while self._socket.poll(10):
                self._socket.recv_multipart()
                self.count += 1

    def close(self) -> None:
        self._stop_it.set()
        self.join()
        self._context.destroy(0)


@pytest.fixture
def sink() -> Iterator[Sink]:
    sink = Sink()
    yield sink
    sink.close()


def test_a_terminal_has_a_bar_with_rate_and_time_left(tmp_path: Path, sink: Sink) -> None:
    data = series_file(tmp_path)
    # 299 hours, one a second
    command = [*PUBLISH, str(data), "--to", sink.endpoint, "--speed", "3600"]
    with terminal(command) as window:
        window.until(r"publishing .*[1-9]\d* of 600 ticks, [1-9]\d*/s, 4 min 5\d s left")
        assert window.end() == 130
    assert re.search(r"\d of 600 ticks published in \d", window.text)
    assert window.written.rindex("\x1b[?25h") > window.written.rindex("\x1b[?25l")  # the cursor


def test_without_a_terminal_a_line_now_and_then(
    tmp_path: Path, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "TOLD", 0.0)
    monkeypatch.setattr(publishing, "_SHOWN", 0.0)
    done = streamlstm("publish", series_file(tmp_path), "--to", sink.endpoint, "--speed", "3600000")
    *lines, last = done.stderr.splitlines()
    told = re.compile(r"published ([\d,]+) of 600 ticks, [\d,]+/s, .* left")
    counts = [int(found[1]) for line in lines if (found := told.fullmatch(line))]
    assert len(counts) > 10
    assert counts == sorted(counts)
    assert last.startswith("600 of 600 ticks published in 0.")
    assert "\x1b" not in done.stderr


def test_json_at_the_end(tmp_path: Path, sink: Sink) -> None:
    done = streamlstm("publish", series_file(tmp_path), "--to", sink.endpoint, "--json")
    said = json.loads(done.stdout)
    assert (said["sent"], said["ticks"]) == (600, 600)
    assert 0 < said["seconds"] < 60
    assert "published" not in done.stderr
    eventually(lambda: sink.count == 600)


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
