"""All sockets of a daemon together; what hostile peers make of them is in test_hostile.py."""

import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq

from streamlstm import ends as room
from streamlstm.config import Config, load_config
from streamlstm.ends import Ends, allow_files, memory_taken
from streamlstm.security import SecurityError
from streamlstm.transport import WELCOME, TransportError
from tests.daemon import LOCAL, eventually
from tests.test_transport import Context


def config(**options: object) -> Config:
    given = {"model": "m", "input.bind": LOCAL, "output.bind": LOCAL}
    given |= {name.replace("__", "."): value for name, value in options.items()}
    return load_config(None, given, environ={})


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    context = Context()
    yield context
    context.destroy(linger=0)


def said(ends: Ends, socket: zmq.Socket) -> bytes:
    """What comes next there; the daemon's sockets notice what has happened when they are used."""

    def comes() -> bool:
        ends.publisher.forget_subscriptions()
        ends.receiver.receive(10)
        return bool(socket.poll(1))

    eventually(comes)
    return socket.recv()


def test_where_too_much_is_held_all_are_ended_and_come_back(
    context: zmq.Context, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that connected, and those that the daemon connects to."""
    taken = [1000]
    monkeypatch.setattr(room, "memory_taken", lambda: taken[0])
    far = context.socket(zmq.XPUB)
    far.bind(LOCAL)
    there = far.get_string(zmq.LAST_ENDPOINT)
    ends = Ends(config(input__connect=there, security__max_held=1 << 20))
    ends.open(may_grow=lambda: 24)
    near = context.socket(zmq.SUB)
    near.subscribe(WELCOME)
    near.connect(ends.publisher.endpoints[0])
    assert said(ends, near) == WELCOME
    assert said(ends, far) == b"\1"
    taken[0] = 1000 + (1 << 20) + 24  # as much as there may be
    assert not near.poll(3000 * room.LOOK_EVERY)
    assert ends.doors.ended == 0
    taken[0] += 1
    eventually(lambda: ends.doors.ended >= 2)
    taken[0] = 1000
    assert "all connections ended" in caplog.text
    assert said(ends, near) == WELCOME

    def heard() -> bool:
        far.send(b"tick")
        return ends.receiver.receive(10) > 0

    eventually(heard)
    ends.close()


def test_an_endpoint_that_cannot_be_opened_leaves_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        ends = Ends(config(output__bind="tcp://192.0.2.1:1"), umask=0o007)
        with pytest.raises(TransportError):
            ends.open(lambda: 0)
        assert os.umask(0o027) == 0o027
        ends.close()
        ends = Ends(config(output__bind=f"ipc://{tmp_path}/out"), umask=0o007)
        ends.open(lambda: 0)
        assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o770
        ends.close()
    finally:
        os.umask(before)


def test_keys_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(SecurityError, match="streamlstm keys"):
        Ends(config(security__secret_key=tmp_path / "none"))


def test_memory_taken_is_what_was_written_to() -> None:
    before = memory_taken()
    block = np.ones(4_000_000)
    assert 30_000_000 < memory_taken() - before < 40_000_000
    del block


def test_as_many_files_as_connections_and_more(caplog: pytest.LogCaptureFixture) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
        allow_files(100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (100 + room.OTHER_FILES, hard)
        allow_files(1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (100 + room.OTHER_FILES, hard)
        assert not caplog.text
        if hard not in (resource.RLIM_INFINITY,):
            allow_files(hard)
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
            assert "lower security.max_connections" in caplog.text
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
