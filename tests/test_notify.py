"""What systemd is told, and its journal, without a systemd (tests/test_systemd.py has one)."""

import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamlstm import logs, systemd
from streamlstm.systemd import Watchdog, notify


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[socket.socket]:
    """What is told arrives there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield manager


def heard(manager: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(manager.recv(4096))
        except BlockingIOError:
            return found


def test_the_watchdog_is_fed_when_it_is_due_and_no_more(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    watchdog = Watchdog()
    for _ in range(3):
        watchdog.feed()
    assert heard(manager) == [b"WATCHDOG=1"]
    wait = watchdog.due - time.monotonic()
    assert 0 < wait < 0.15, "less than half of the interval"
    time.sleep(wait)
    watchdog.feed()
    assert heard(manager) == [b"WATCHDOG=1"]


@pytest.mark.parametrize("of", ["nobody", "another process"])
def test_it_is_not_fed_where_it_is_not_asked_for(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    if of == "another process":
        monkeypatch.setenv("WATCHDOG_USEC", "1")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getppid()))
    watchdog = Watchdog()
    watchdog.feed()
    assert watchdog.due == float("inf")
    assert not heard(manager)


def test_a_systemd_that_does_not_listen_does_not_end_the_daemon(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(systemd, "PATIENCE", 0.01)
    monkeypatch.setattr(logging.getLogger("streamlstm"), "propagate", True)
    sent = 0
    while not caplog.messages:  # until no more fits in there
        notify("READY=1")
        sent += 1
    assert "systemd could not be told READY=1: " in caplog.text
    assert heard(manager) == [b"READY=1"] * (sent - 1)
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    notify("READY=1")
    assert "No such file" in caplog.text


def test_each_line_in_the_journal_has_its_priority(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = logging.getLogger("streamlstm")
    for name in ("handlers", "propagate", "level"):
        monkeypatch.setattr(log, name, getattr(log, name))
    with (tmp_path / "log").open("w+") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        of = os.fstat(stream.fileno())
        for journal in (f"{of.st_dev}:{of.st_ino}", f"{of.st_dev}:{of.st_ino + 1}"):
            monkeypatch.setenv("JOURNAL_STREAM", journal)
            logs.to_stderr("info")
            logs.event(logging.INFO, "ready", pid=1)
            logs.event(logging.DEBUG, "not asked for")
            log.error("one\ntwo")
        stream.seek(0)
        lines = stream.read().splitlines()
    assert lines[:3] == ["<6>ready pid=1", "<3>one", "<3>two"]
    assert lines[3].endswith(" INFO ready pid=1"), "with the time, as stderr is something else"
