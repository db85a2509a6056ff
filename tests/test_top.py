"""``streamlstm top`` and ``streamlstm status``, of a real daemon."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamlstm import top
from streamlstm.metrics import Metrics
from streamlstm.web import Server, hash_password
from tests.daemon import Client, Daemon, eventually, start
from tests.models import random_model_file
from tests.pseudo_terminal import terminal
from tests.test_cli import complaint, streamlstm

TOP = (sys.executable, "-m", "streamlstm", "top")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One that served 20 ticks of 2 series, and dropped one."""
    folder = tmp_path_factory.mktemp("daemon")
    with (
        start(folder, random_model_file(folder), checkpoint__path=folder / "state") as daemon,
        Client(daemon) as client,
    ):
        tick_twenty(client)
        client.send(b"a", b"nonsense")
        eventually(lambda: daemon.metric('streamlstm_ticks_dropped_total{reason="malformed"}') > 0)
        yield daemon


def tick_twenty(client: Client, first: int = 0) -> None:
    for hour in range(first, first + 10):
        for series in ("a", "b"):
            client.tick(series, ts=3600 * hour, value=hour)
    client.receive(20)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "EVERY", 0.05)


def test_status_of_a_daemon_that_is_ready(daemon: Daemon) -> None:
    text = streamlstm("status", daemon.url).stdout
    assert re.match(rf"{daemon.url} ready, up .*, since \d{{4}}-.* UTC\n", text)
    for part in (
        "steps ahead, cpu",
        "dropped     1 malformed",
        "series      2 in ",
        "in          0/s",
    ):
        assert part in text
    said = json.loads(streamlstm("status", daemon.url, "--json").stdout)
    assert (said["url"], said["ready"], said["received"]) == (daemon.url, True, 21)
    assert (said["series"], said["dropped"]) == (2, {"malformed": 1})
    assert said["model"]["horizon"] == "3"
    assert said["p99"] is None  # nothing was served meanwhile


def test_top_once_tells_more(daemon: Daemon) -> None:
    text = streamlstm("top", daemon.url, "--once").stdout
    for label in ("model", "in", "p99", "waiting", "process", "forecasts", "checkpoint"):
        assert re.search(rf"^{label}  ", text, re.MULTILINE), text
    assert "within the interval" in text
    assert "\x1b" not in text
    assert json.loads(streamlstm("top", daemon.url, "--once", "--json").stdout)["published"] == 20


def test_a_daemon_that_cannot_be_asked() -> None:
    nowhere = "http://127.0.0.1:9"
    for command in ("top", "status"):
        said = f"streamlstm {command}: {nowhere}: nothing listens there"
        assert complaint(command, nowhere).startswith(said)
        assert complaint(command, "ftp://a", code=2).startswith(f"streamlstm {command}: ftp://a: ")
        said = complaint(command, nowhere, "--password-file", "p", code=2)
        assert said.endswith("--password-file p: give the name by --user")
    said = json.loads(streamlstm("status", nowhere, "--json", code=1).stdout)
    assert (said["ready"], said["url"]) == (False, nowhere)
    assert "nothing listens there" in said["error"]


def test_a_daemon_that_is_not_ready_or_asks_for_a_password_or_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    text = streamlstm("status", server.url, code=1).stdout
    assert " not ready" in text
    assert "model       none yet" in text
    with start(
        tmp_path, random_model_file(tmp_path), metrics__users=f'{{"ann": "{hash_password("x")}"}}'
    ) as guarded:
        assert "give the name by --user" in complaint("status", guarded.url)
        monkeypatch.setenv("METRICS_PASSWORD", "x")
        assert " ready" in streamlstm("status", guarded.url, "--user", "ann").stdout
        monkeypatch.delenv("METRICS_PASSWORD")
        command = [*TOP, guarded.url, "--user", "ann"]
        with terminal(command, env={"NO_COLOR": "1"}) as window:
            window.until("password of ann: ")
            window.type("x\n")
            window.drawn(r" ready, up .*model ")
            guarded.process.kill()
            picture = window.drawn("no answer for .*: nothing listens there")  # and it goes on
            assert picture.startswith(f"{guarded.url} away")
            assert window.end() == 130
    assert window.text.rpartition(" away\n")[2].startswith("no answer for ")  # what stays
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", window.written)  # no colours


def test_top_is_drawn_anew_while_ticks_come(daemon: Daemon) -> None:
    with terminal([*TOP, daemon.url], rows=30) as window, Client(daemon) as client:
        picture = window.drawn(r"p99 +–")
        assert all(len(line) <= 100 for line in picture.splitlines())
        tick_twenty(client, 10)
        picture = window.drawn(r"out +[1-9]\d*/s +[▁█]+")
        assert re.search(r"p99 +[\d.]+ (us|ms) ", picture), picture
        window.resize(30, 8)
        picture = window.drawn("…")
        assert all(len(line) <= 30 for line in picture.splitlines())
        assert len(picture.splitlines()) <= 8
        assert window.end() == 130
    last = window.text.rpartition(" ready, up")[2]
    assert "in " in last  # the last of it stays on the screen of before
    assert window.written.count("\x1b[?1049h") == window.written.count("\x1b[?1049l") == 1
    assert window.written.rindex("\x1b[?25h") > window.written.rindex("\x1b[?25l")  # the cursor


def test_in_a_terminal_that_cannot_draw_it_is_a_line_a_second(daemon: Daemon) -> None:
    with terminal([*TOP, daemon.url], env={"TERM": "dumb"}) as window:
        window.until(r"series 2\n.*series 2\n")
    assert "\x1b" not in window.written


def test_where_stdout_is_no_terminal_it_is_a_line_a_second(daemon: Daemon) -> None:
    command = f"{' '.join(TOP)} {daemon.url} | cat"
    with terminal(["bash", "-c", f"set -m; exec {command}"]) as window:
        text = window.until(r"series 2\n.*series 2\n")
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ready, in \d+/s, out \d+/s, p50 ", text)
    assert "\x1b" not in window.written
    command = f"{' '.join(TOP)} {daemon.url} --json | head -n 2"
    with terminal(["bash", "-c", command]) as window:
        text = window.until(r"\n\{.*\n")
    for line in text.splitlines()[:2]:
        assert json.loads(line)["ready"] is True


def test_what_a_daemon_says_steers_no_terminal() -> None:
    metrics = Metrics()
    metrics.model = {"model": "[bold]\x1b[2J"}
    metrics.dropped = {"a\x1b]0;title\x07": 1}
    server = Server(metrics, "127.0.0.1", 0)
    text = streamlstm("top", server.url, "--once").stdout
    server.close()
    assert "[bold]\ufffd[2J: ? x ? of ?" in text
    assert "1 a\ufffd]0;title\ufffd" in text
