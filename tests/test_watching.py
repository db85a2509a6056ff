"""``streamlstm watch``: its lines, and its table in a terminal."""

import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from rich.cells import cell_len
from rich.console import Console

from streamlstm import watching as room
from streamlstm.watching import Board, json_line, line
from streamlstm.wire.peer import Glance, Prediction, glance, glance_at
from tests.daemon import start
from tests.models import random_model_file
from tests.pseudo_terminal import Terminal, terminal
from tests.test_cli import series_file, streamlstm

WATCH = (sys.executable, "-m", "streamlstm", "watch")


def prediction(series: str, **changed: Any) -> Prediction:
    steps = np.ones((2, 1))
    return Prediction(series, 0, steps, steps, steps, "0" * 12, 1, 1)._replace(**changed)


def seen(series: str, seq: int = 1, value: float = 1.0, boot: int = 1) -> Glance:
    steps = np.array([[value], [value + 1]])
    return glance_at(prediction(series, seq=seq, boot=boot, forecast=steps))


def shown(board: Board, width: int = 100, height: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True)
    console.print(board.view(width, height))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "\x1b]" not in text
    return [each.rstrip() for each in re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()]


# --- the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["[/red]", "[bold red]x", "a\x1b]0;title\x07", ":smile:"])
def test_names_of_series_are_shown_as_they_are_and_steer_nothing(name: str) -> None:
    safe = "".join(c if c.isprintable() else "\ufffd" for c in name)
    board = Board()
    board.add([seen(name)])
    assert safe in "\n".join(shown(board))
    assert safe in line(prediction(name))


def test_the_latest_come_first_each_with_its_recent_forecasts() -> None:
    board = Board()
    for seq, value in enumerate((1.0, 3.0, 2.0), 1):
        board.add([seen("a", seq, value), seen("b", seq, 5.0)])
    board.add([seen("a", 4, 8.0)])
    header, first, second, summary = shown(board)
    assert header.split() == ALL
    expected = ["a", "1970-01-01", "00:00:00", "8", "1", "1", "▁▃▂█", "▁█", "now"]
    assert (first.split(), second.split()[0]) == (expected, "b")
    assert "2 series  7 predictions  no gaps in seq" in summary


def test_of_a_series_that_comes_often_the_latest_forecasts_are_kept() -> None:
    board = Board()
    for seq in range(1, 101):
        board.add([seen("a", seq, float(seq))])
    recent = shown(board)[1].split()[6]
    assert len(recent) == room.RECENT
    assert (recent[0], recent[-1]) == ("▁", "█")
    assert [*recent] == sorted(recent)


def test_what_is_missing_is_counted() -> None:
    board = Board()
    board.add([seen("a", 1), seen("b", 1), seen("a", 2), seen("a", 5), seen("b", 3)])
    assert "3 missed in 2 gaps of seq" in shown(board)[-1]
    board.add([seen("a", 1, boot=2), seen("a", 2, boot=2)])
    summary = shown(board)[-1]
    assert "3 missed in 2 gaps" in summary
    assert "1 series" in summary
    assert "started anew 1 time" in shown(board, width=200)[-1]


def test_what_was_missed_is_told_before_all_else_that_a_narrow_window_has_no_room_for() -> None:
    board = Board()
    board.add([seen("a", seq, boot=boot) for boot in (1, 2) for seq in (1, 7)])
    board._seconds.extend((board._heard + i, 66_000 * i) for i in range(1, 31))
    assert re.match(r"66,000/s █{30}  10 missed in 2 gaps of seq  daemon", shown(board, 160)[-1])
    assert re.match(r"66,000/s █{3}  10 missed in .* time  1 series  4 pred", shown(board, 93)[-1])
    assert shown(board, 40)[-1] == "66,000/s  10 missed in 2 gaps of seq  d…"


@pytest.mark.parametrize("height", [0, 1, 3, 4])
def test_a_tiny_window_shows_the_latest(height: int) -> None:
    board = Board()
    board.add([seen("first"), seen("last")])
    text = "\n".join(shown(board, height=height))
    assert "last" in text
    assert "first" not in text


ALL = ["series", "time", "(UTC)", "next", "lower", "upper", "recent", "ahead", "age"]


@pytest.mark.parametrize(
    ("width", "lacking"),
    [
        (99, 0), (88, 0), (87, 1), (81, 1), (80, 3), (67, 3), (66, 5), (46, 5), (45, 6), (38, 6),
        (37, 7), (20, 7), (9, 7),
    ],
)  # fmt: skip
def test_a_narrow_window_has_fewer_columns_and_no_line_is_broken(width: int, lacking: int) -> None:
    board = Board()
    board.add([seen("a-rather-long-name-of-a-series", value=123456.0), seen("漢" * 20)])
    lines = shown(board, width)
    assert len(lines) == 4
    assert all(cell_len(each) <= width for each in lines)
    gone = ["ahead", "lower", "upper", "time", "(UTC)", "recent", "age"][:lacking]
    if width > 15:
        assert lines[0].split() == [each for each in ALL if each not in gone]
        assert "123,456" in lines[2]


def test_memory_is_bounded_whatever_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MOST_SERIES", 50)
    monkeypatch.setattr(room, "MOST_SHOWN", 10)
    monkeypatch.setattr("streamlstm.client.MOST_FOLLOWED", 100)
    monkeypatch.setattr(room, "MOST_FOLLOWED", 100)
    board = Board()
    for some in range(0, 1000, 20):
        board.add([seen(f"s{i}") for i in range(some, some + 20)])
    assert (len(board._recent), len(board._latest)) == (50, 10)
    lines = shown(board)
    assert [each.split()[0] for each in lines[1:-1]] == [f"s{i}" for i in range(999, 989, -1)]
    assert "100+ series  1,000 predictions  no gaps" in lines[-1]


# --- in a terminal --------------------------------------------------------------------------------


class Publisher:
    """Of predictions, as the daemon's output writes them."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.sndhwm = 0
        self.endpoint = f"tcp://127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"

    def welcome(self) -> None:
        """Who has subscribed."""
        topics = {self._socket.recv() for _ in range(2)}
        assert b"\1streamlstm.welcome" in topics
        self._socket.send(b"streamlstm.welcome")

    def send(self, series: str, seq: int) -> None:
        said = json_line(prediction(series, seq=seq, forecast=np.array([[seq], [0.5]])))
        self._socket.send_multipart([b"prediction." + series.encode(), said.encode()])

    def close(self) -> None:
        self._context.destroy(0)


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    publisher = Publisher()
    yield publisher
    publisher.close()


def left_in_order(window: Terminal) -> str:
    """Ended by Ctrl-C; what stays on the screen."""
    window.type("\x03")
    while window.read():
        pass
    assert window.process.wait(60) == 130
    assert window.written.count("\x1b[?1049h") == window.written.count("\x1b[?1049l") == 1
    assert window.written.rindex("\x1b[?25h") > window.written.rindex("\x1b[?25l")  # the cursor
    return window.text.rpartition("series ")[2]


def test_a_flood_is_counted_to_the_last_and_drawn_now_and_then(publisher: Publisher) -> None:
    count, series = 10_000, 1000
    with terminal([*WATCH, publisher.endpoint], rows=12, columns=120) as window:
        publisher.welcome()
        window.until("watching ")
        began = time.monotonic()
        for i in range(count):
            publisher.send(f"s{i % series}", i // series + 1)
        picture = window.drawn(f"{count:,} predictions")
        drawn = len(window.pictures)
        assert drawn <= room.REDRAWN * (time.monotonic() - began) + 20
        rows = [row.split()[0] for row in picture.splitlines() if re.match(r"s\d", row)]
        assert rows == [f"s{series - 1 - i}" for i in range(9)]
        assert "1,000 series  10,000 predictions  no gaps in seq" in picture
        publisher.send("s0", 12)
        window.drawn("1 missed in 1 gap of seq")
        window.resize(60, 8)
        picture = window.drawn(r"next")
        while "lower" in picture:  # drawn before
            picture = window.drawn(r"next")
        assert all(len(row) <= 60 for row in picture.splitlines())
        assert len([row for row in picture.splitlines() if re.match(r"s\d", row)]) == 5
        assert "10,001 predic" in left_in_order(window)


def test_as_many_as_were_asked_for_stay_on_the_screen(publisher: Publisher) -> None:
    with terminal([*WATCH, publisher.endpoint, "--count", "3"]) as window:
        publisher.welcome()
        for seq in range(1, 6):
            publisher.send("a", seq)
        while window.read():
            pass
        assert window.process.wait(60) == 0
    assert "3 predictions  no gaps" in window.text.splitlines()[-1]


def test_a_shell_has_its_screen_back_when_we_are_stopped_and_none_is_taken_from_it(
    publisher: Publisher,
) -> None:
    with terminal(["bash", "--norc", "--noprofile", "-i"]) as window:
        window.type(" ".join([*WATCH, publisher.endpoint]) + "\n")
        publisher.welcome()
        publisher.send("a", 1)
        window.drawn("1 predictions")
        window.type("\x1a")
        window.until("Stopped")
        assert window.written.rindex("\x1b[?1049l") > window.written.rindex("\x1b[?1049h")
        assert window.written.rindex("\x1b[?25h") > window.written.rindex("\x1b[?25l")
        before = len(window.written)
        window.type("set -b; bg\n")  # -b: to be told at once
        window.until("Stopped.*Stopped")  # it draws nothing where a shell is
        assert "\x1b[?1049h" not in window.written[before:]
        window.type("fg\n")
        publisher.send("a", 2)
        window.drawn("2 predictions")
        assert window.written.rindex("\x1b[?1049h") > window.written.rindex("\x1b[?1049l")


@pytest.mark.parametrize(
    ("shell", "env"), [("set -m; {} & wait", {}), ("exec {}", {"TERM": "dumb"})]
)
def test_in_the_background_or_where_none_can_be_drawn_there_are_lines(
    publisher: Publisher, shell: str, env: dict[str, str]
) -> None:
    command = shell.format(" ".join([*WATCH, publisher.endpoint, "--count", "1"]))
    with terminal(["bash", "-c", command], env=env) as window:
        publisher.welcome()
        publisher.send("a", 1)
        window.until(r"1970-01-01 00:00:00 a 1, 1, 1\n")
    assert "\x1b" not in window.written


def test_a_signal_that_ends_it_finds_the_terminal_as_it_was(publisher: Publisher) -> None:
    with terminal([*WATCH, publisher.endpoint]) as window:
        publisher.welcome()
        window.drawn("0 predictions")
        assert window.end(signal.SIGTERM) == -signal.SIGTERM
    assert window.written.count("\x1b[?1049h") == window.written.count("\x1b[?1049l") == 1
    assert window.written.rindex("\x1b[?25h") > window.written.rindex("\x1b[?25l")


def test_json_in_a_terminal_is_a_line_each_and_steers_nothing(publisher: Publisher) -> None:
    name = "a\x9b2J\u202e"
    with terminal([*WATCH, publisher.endpoint, "--json", "--count", "1"], columns=500) as window:
        publisher.welcome()
        publisher.send(name, 1)
        text = window.until(r"\{.*\}\n")
        assert window.process.wait(60) == 0
    said = text[text.index("{") :].strip()
    assert said.isprintable()
    assert json.loads(said)["series"] == name


def test_another_format_is_told(publisher: Publisher) -> None:
    command = [*WATCH, publisher.endpoint, "--format", "binary"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        publisher.welcome()
        publisher.send("a", 1)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.splitlines()[-1].endswith(
        "not predictions in binary; give the daemon's output.format by --format"
    )


# --- lines ----------------------------------------------------------------------------------------


def test_a_line_of_json_is_as_the_daemon_says_it() -> None:
    two = np.array([[1.0, 2.0], [3.0, np.nan]])
    said = json.loads(json_line(prediction("a", ts_ns=1_500_000_000, forecast=two)))
    assert list(said) == [
        "series", "ts", "ts_ns", "forecast", "lower", "upper", "model", "boot", "seq",
    ]  # fmt: skip
    assert said["ts"] == 1.5
    assert said["forecast"] == [[1, 2], [3, None]]
    assert said["lower"] == [1, 1]


def test_the_daemons_own_json_is_handed_on_on_one_line() -> None:
    payload = b'{"series": "a\\n",\n"boot": 1, "seq": 2, "forecast": [1.50], "more": "\xc2\x9b"}'
    (each,) = glance("json", [b"prediction.a\n", payload])
    said = room._json(each)
    assert said.isprintable()
    assert '"forecast": [1.50]' in said
    assert json.loads(said) == json.loads(payload)


def watching(*arguments: str) -> "subprocess.Popen[str]":
    """``streamlstm watch``, known to be connected."""
    process = subprocess.Popen(
        [*WATCH, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("watching ")
    return process


@pytest.mark.parametrize("format", ["json", "msgpack", "binary"])
def test_publish_and_watch_need_no_code(tmp_path: Path, format: str) -> None:
    data, model = series_file(tmp_path), random_model_file(tmp_path)
    with start(tmp_path, model, input__format=format, output__format=format) as daemon:
        endpoint = (daemon.output, "--format", format)
        watcher = watching(*endpoint[:1], "a", *endpoint[1:], "--json", "--count", "60")
        plain = watching(*endpoint, "--count", "1")
        sent = streamlstm(
            "publish", data, "--to", daemon.input, "--format", format, "--warm", "0.8"
        )  # fmt: skip
        assert "600 of 600 ticks published" in sent.stderr
        lines = [json.loads(line) for line in watcher.communicate(timeout=60)[0].splitlines()]
        shown = plain.communicate(timeout=60)[0].split()
    assert [line["seq"] for line in lines] == list(range(1, 61))
    assert {line["series"] for line in lines} == {"a"}
    assert all(len(line["forecast"]) == 3 for line in lines)
    assert shown[2] in ("a", "b")
