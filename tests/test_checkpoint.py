"""Checkpoints: a restart goes on with the same bits, and a damaged file is refused."""

import errno
import os
import shutil
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from safetensors import SafetensorError

from streamlstm import checkpoint
from streamlstm.checkpoint import CheckpointError, Saving
from streamlstm.engine import Engine
from streamlstm.model import load_model
from streamlstm.ticks import Keys, Ticks
from streamlstm.wire.peer import encode_tick
from tests.daemon import Client, eventually, start
from tests.models import random_model, random_model_file
from tests.test_engine import RICH, everything, ticks

Kind = Mapping[str, object]
NO_KIND: Kind = MappingProxyType({})


def running(seed: int = 0, kind: Kind = NO_KIND, **options: object) -> Engine:
    """An engine of 5 series with 30 ticks each."""
    engine = fresh(seed, kind, **options)
    slots = engine.series.lookup(Keys.of([b"a", b"bb", b"ccc", b"d", b"e"])).tolist()
    values = np.random.default_rng(1).normal(size=(30, 5))
    for hour, row in enumerate(values):
        engine.step(ticks(slots, [hour] * 5, row), 0)
    return engine


def fresh(seed: int = 0, kind: Kind = NO_KIND, **options: object) -> Engine:
    return Engine(random_model(seed, **RICH | dict(kind)), **{"max_series": 20} | options)


@pytest.mark.parametrize("kind", [{}, {"cell": "gru"}, {"cell": "rnn"}, {"window": 12}], ids=str)
def test_a_restart_goes_on_bit_for_bit(tmp_path: Path, kind: Kind) -> None:
    one, other = running(kind=kind), fresh(kind=kind)
    checkpoint.save(one, tmp_path / "c")
    assert checkpoint.load(other, tmp_path / "c") is not None
    assert everything(one) == everything(other)
    keys = Keys.of([b"ccc", b"new", b"a"])
    np.testing.assert_array_equal(one.series.lookup(keys), other.series.lookup(keys))
    batch = ticks([2, 5, 0], [31, 31, 33], np.array([1.0, 2, 3]))
    for ours, theirs in zip(one.step(batch, 0), other.step(batch, 0), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_none_there_is_no_error(tmp_path: Path) -> None:
    assert checkpoint.load(fresh(), tmp_path / "c") is None


def test_it_replaces_the_one_before_whole_and_is_the_owners_alone(tmp_path: Path) -> None:
    engine = running()
    for _ in range(2):
        checkpoint.save(engine, tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o600


def test_a_failed_write_leaves_the_one_before(tmp_path: Path) -> None:
    engine = running()
    checkpoint.save(engine, tmp_path / "c")
    before = (tmp_path / "c").read_bytes()

    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(OSError, match="No space"):
            checkpoint.save(engine, tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_damage_anywhere_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c"
    checkpoint.save(running(), path)
    content = path.read_bytes()
    for at in [*range(0, 64, 7), *range(64, len(content), len(content) // 100)]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        engine = fresh()
        with pytest.raises(CheckpointError, match="move it away"):
            checkpoint.load(engine, path)
        assert engine.series.active == 0
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(fresh(), path)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"seed": 1}, "of model"),
        ({"max_series": 4}, "of 5 series, max_series is 4"),
        ({"coverage": 0.5}, r"made at interval.coverage = 0.9, now 0.5"),
        ({"max_key": 2}, "has keys of 3 bytes, max_key is 2; raise it"),
    ],
)
def test_of_another_engine(tmp_path: Path, other: dict[str, object], said: str) -> None:
    checkpoint.save(running(), tmp_path / "c")
    with pytest.raises(CheckpointError, match=said):
        checkpoint.load(fresh(**other), tmp_path / "c")


# beside the loop, by a child process


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipe: the child waits at it, and opening it waits for the child."""
    path, save = tmp_path / "gate", checkpoint.save
    os.mkfifo(path)
    monkeypatch.setattr(checkpoint, "save", lambda *given: (path.read_bytes(), save(*given)))
    return path


def end_of(saving: Saving) -> bool:
    """Wait for the child, and see how it went."""
    os.waitid(os.P_PID, saving.pid, os.WEXITED | os.WNOWAIT)
    return saving.done()


def no_child_is_left() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


def test_a_child_writes_the_moment_at_which_it_began(tmp_path: Path, gate: Path) -> None:
    engine, other = running(), fresh()
    before, open_files = everything(engine), os.listdir("/proc/self/fd")
    saving = Saving(engine, tmp_path / "c")
    with gate.open("wb"):
        engine.step(ticks([2, 0], [31, 33], np.array([1.0, 2])), 0)
        engine.series.lookup(Keys.of([b"new"]))
        assert not saving.done()
        assert everything(engine) != before
        for number in (signal.SIGTERM, signal.SIGINT):  # to the whole group, from a terminal
            os.kill(saving.pid, number)
    assert end_of(saving)
    assert checkpoint.load(other, tmp_path / "c") is not None
    assert everything(other) == before
    assert no_child_is_left()
    assert os.listdir("/proc/self/fd") == open_files


def test_what_the_parent_closes_is_closed_while_the_child_writes(
    tmp_path: Path, gate: Path
) -> None:
    near, far = socket.socketpair()
    with far:
        saving = Saving(running(), tmp_path / "c")
        with gate.open("wb"):
            near.close()
            far.settimeout(10)
            assert far.recv(1) == b""
        assert end_of(saving)


def test_a_child_that_fails_says_why(tmp_path: Path) -> None:
    saving = Saving(running(), tmp_path / "none" / "c")
    with pytest.raises(OSError, match=r"No such file or directory.*none"):
        end_of(saving)
    assert no_child_is_left()


def test_a_child_that_is_killed_is_a_failure(tmp_path: Path, gate: Path) -> None:
    (tmp_path / "c").write_bytes(b"the one before")
    saving = Saving(running(), tmp_path / "c")
    with gate.open("wb"):
        os.kill(saving.pid, signal.SIGKILL)
        with pytest.raises(OSError, match="ended with -9"):
            end_of(saving)
    assert (tmp_path / "c").read_bytes() == b"the one before"
    assert no_child_is_left()


@pytest.mark.parametrize("over", [False, True])
def test_one_that_is_stopped_leaves_nothing(tmp_path: Path, gate: Path, over: bool) -> None:
    open_files = os.listdir("/proc/self/fd")
    saving = Saving(running(), tmp_path / "c")
    with gate.open("wb"):
        if not over:
            saving.stop()
    if over:
        os.waitid(os.P_PID, saving.pid, os.WEXITED | os.WNOWAIT)
        saving.stop()
    assert (tmp_path / "c").exists() == over
    assert no_child_is_left()
    assert os.listdir("/proc/self/fd") == open_files


def test_one_stopped_at_its_worst_does_not_hinder_the_next(tmp_path: Path) -> None:
    (tmp_path / ".c.new").write_bytes(b"x" * 1_000_000)  # what it had begun
    engine, other = running(), fresh()
    assert end_of(Saving(engine, tmp_path / "c"))
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert checkpoint.load(other, tmp_path / "c") is not None


def test_no_room_for_a_child_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    engine, open_files = running(), os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="temporarily unavailable"):
        Saving(engine, tmp_path / "c")
    assert os.listdir("/proc/self/fd") == open_files


# by the daemon, beside the ticks


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model_file(tmp_path_factory.mktemp("model"))


def test_checkpoints_are_written_now_and_then_and_a_failure_is_counted(
    model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    written = "streamlstm_checkpoint_last_success_timestamp_seconds"
    path = folder / "checkpoint"
    with start(tmp_path, model, checkpoint__path=path, checkpoint__interval=0.05) as daemon:
        eventually(lambda: written in daemon.get("/metrics"))
        assert path.stat().st_mode & 0o777 == 0o600
        shutil.rmtree(folder)
        eventually(lambda: daemon.metric("streamlstm_checkpoint_failures_total") > 0)
        with Client(daemon) as client:
            client.tick("a", ts=1, value=1)
            client.predictions(1)
        assert daemon.stop() == 0
    assert "no checkpoint: " in daemon.log


WAITS = """
import os, pathlib
save, parent = checkpoint.save, os.getpid()
def wait_and_save(engine, path):
    if os.getpid() != parent:
        (path.parent / "gate").read_bytes()
    save(engine, path)
checkpoint.save = wait_and_save
"""
"""A child that is to write a checkpoint waits until somebody has opened and closed the gate."""


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
def test_a_checkpoint_that_takes_long_keeps_no_tick_waiting_nor_the_end(
    end: str, model: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "gate")
    path = tmp_path / "c"
    options = {"checkpoint__path": path, "checkpoint__interval": 0.01}
    with (
        start(tmp_path, model, before=WAITS, **options) as daemon,
        (tmp_path / "gate").open("wb") as gate,  # waits for the child
        Client(daemon) as client,
    ):
        (child,) = daemon.children
        for hour in range(50):
            client.tick("beside", ts=hour, value=1)
            assert client.predictions(1)[0]["seq"] == hour + 1
        assert daemon.children == [child]
        daemon.process.send_signal(signal.Signals[end])
        code = daemon.wait()
        eventually(lambda: not alive(child))
        gate.close()
    if end == "SIGKILL":
        assert not path.exists()
        return
    assert code == 0
    engine = Engine(load_model(model))
    assert checkpoint.load(engine, path) is not None
    assert engine.series.state["seq"][:1].tolist() == [50]
    assert "no checkpoint" not in daemon.log
    assert sorted(each.name for each in tmp_path.iterdir()) == ["c", "daemon.log", "gate"]


def test_a_child_that_is_killed_is_counted_and_the_next_one_writes(
    model: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "gate")
    options = {"checkpoint__path": tmp_path / "c", "checkpoint__interval": 0.01}
    with start(tmp_path, model, before=WAITS, **options) as daemon:
        with (tmp_path / "gate").open("wb"):
            (child,) = daemon.children
            os.kill(child, signal.SIGKILL)
            eventually(lambda: daemon.metric("streamlstm_checkpoint_failures_total") == 1)
        (tmp_path / "gate").open("wb").close()
        eventually((tmp_path / "c").exists)
        assert "no checkpoint: the child that wrote it ended with -9" in daemon.log
        assert daemon.metric("streamlstm_checkpoint_failures_total") == 1
        eventually(lambda: all(map(alive, daemon.children)))  # none is left as a zombie


def test_a_checkpoint_is_of_one_moment(model: Path, tmp_path: Path) -> None:
    """Of the ticks sent, it holds the first so many, and the state after them bit for bit."""
    path, rng = tmp_path / "c", np.random.default_rng(0)
    options = {"checkpoint__path": path, "checkpoint__interval": 0.02, "input__format": "binary"}
    sent: list[tuple[str, int, float]] = []
    written = set()  # times
    with start(tmp_path, model, **options) as daemon, Client(daemon) as client:
        deadline = time.monotonic() + 30
        while len(written) < 2:
            assert time.monotonic() < deadline
            for _ in range(200):
                tick = f"s{rng.integers(30)}", len(sent), float(rng.normal())
                client.send(*encode_tick("binary", tick[0], tick[1], tick[2:]))
                sent.append(tick)
            client.receive(100)  # half as many: others wait
            if path.exists():
                written.add(path.stat().st_mtime_ns)
        daemon.process.kill()
        daemon.wait()
    found, wanted = (Engine(load_model(model), max_batch=len(sent)) for _ in range(2))
    assert checkpoint.load(found, path) is not None
    count = int(found.series.state["seq"].sum())
    assert 0 < count <= len(sent)
    names, stamps, values = zip(*sent[:count], strict=True)
    slots = wanted.series.lookup(Keys.of([name.encode() for name in names]))
    flags = np.zeros(count, np.uint8)
    wanted.step(Ticks(slots, np.array(stamps), np.array(values)[:, None], flags), 0)
    assert everything(found) == everything(wanted)
