"""Checkpoints: a restart goes on with the same bits, and a damaged file is refused."""

import errno
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from streamlstm import checkpoint
from streamlstm.checkpoint import CheckpointError, Saving
from streamlstm.copy_on_write import NOTHING, sweep
from streamlstm.engine import Engine
from streamlstm.hashing import checksum
from streamlstm.model_file import load_model
from streamlstm.state_schema import parts
from streamlstm.ticks import WARM, Keys, Ticks
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


def test_intervals_of_several_coverages_go_on(tmp_path: Path) -> None:
    options = {"coverage": (0.9, 0.5, 0.8), "keep_latest": True}
    one, other = running(**options), fresh(**options)
    checkpoint.save(one, tmp_path / "c")
    assert checkpoint.load(other, tmp_path / "c") is not None
    assert everything(one) == everything(other)
    batch = ticks([0, 3], [40, 40], np.array([1.0, 2]))
    ours, theirs = one.step(batch, 0), other.step(batch, 0)
    assert ours.quantiles.shape[1] == 6
    np.testing.assert_array_equal(ours.quantiles, theirs.quantiles)


def test_none_there_is_no_error(tmp_path: Path) -> None:
    assert checkpoint.load(fresh(), tmp_path / "c") is None


def test_it_replaces_the_one_before_whole_and_is_the_owners_alone(tmp_path: Path) -> None:
    engine = running()
    for _ in range(2):
        checkpoint.save(engine, tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o600


def test_a_failed_write_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = running()
    checkpoint.save(engine, tmp_path / "c")
    before = (tmp_path / "c").read_bytes()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            checkpoint.save(engine, tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_as_many_are_kept_as_asked_for(tmp_path: Path) -> None:
    engine, path = running(), tmp_path / "c"
    (tmp_path / "c.other").write_bytes(b"not ours")
    for number in range(1, 7):
        checkpoint.save(engine, path, number, keep=3)
    assert [each.name for each in checkpoint.kept(path)] == ["c", "c.1", "c.2"]
    assert checkpoint.journalled(path) == 4
    checkpoint.save(engine, path, 7, keep=1)
    assert [each.name for each in checkpoint.kept(path)] == ["c"]
    assert checkpoint.journalled(path) == 7
    assert (tmp_path / "c.other").exists()


def test_an_older_one_serves_where_the_newest_is_damaged(tmp_path: Path) -> None:
    engine, path = running(), tmp_path / "c"
    checkpoint.save(engine, path, 1, keep=3)
    before = everything(engine)
    for number in (2, 3):
        engine.step(ticks([2, 0], [30 + number] * 2, np.array([1.0, 2])), 0)
        checkpoint.save(engine, path, number, keep=3)
    path.write_bytes(path.read_bytes()[:-1])
    path.with_suffix(".1").write_bytes(b"")
    other = fresh()
    restored = checkpoint.load(other, path)
    assert restored is not None
    assert (restored.journalled, restored.path.name) == (1, "c.2")
    assert [each.partition(": ")[0] for each in restored.damaged] == [str(path), f"{path}.1"]
    assert everything(other) == before


def test_one_whose_name_was_not_yet_given_leaves_those_before(tmp_path: Path) -> None:
    """A crash between the two renames."""
    engine, path = running(), tmp_path / "c"
    checkpoint.save(engine, path, 1)
    path.rename(path.with_suffix(".1"))
    restored = checkpoint.load(fresh(), path)
    assert restored is not None
    assert restored.journalled == 1


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
        ({"max_key": 2}, "has keys of 3 bytes, max_key is 2; raise it"),
    ],
)
def test_of_another_engine(tmp_path: Path, other: dict[str, object], said: str) -> None:
    checkpoint.save(running(), tmp_path / "c")
    with pytest.raises(CheckpointError, match=said):
        checkpoint.load(fresh(**other), tmp_path / "c")


@pytest.mark.parametrize("history", [0, 3, 50])
def test_more_of_the_latest_ticks_are_to_be_kept_or_fewer(tmp_path: Path, history: int) -> None:
    engine, other = running(), fresh(history=history)
    checkpoint.save(engine, tmp_path / "c")
    assert checkpoint.load(other, tmp_path / "c") is not None
    batch = ticks([0, 3], [40, 40], np.array([1.0, 2]))
    for ours, theirs in zip(other.step(batch, 0), engine.step(batch, 0), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for slot in engine.series.slots:
        before = engine.recent(np.array([slot], np.int32))
        for ours, theirs in zip(other.recent(np.array([slot], np.int32)), before, strict=True):
            np.testing.assert_array_equal(ours, theirs[max(0, len(theirs) - history) :])


def test_what_is_said_with_the_latest_prediction_may_change(tmp_path: Path) -> None:
    """It is forgotten until the next one; all else goes on."""
    engine = running(keep_latest=True)
    assert engine.work.latest.latest_seq[engine.series.slots].any()
    checkpoint.save(engine, tmp_path / "c")
    other = fresh(keep_latest=True, telling=True)
    assert checkpoint.load(other, tmp_path / "c") is not None
    assert not other.work.latest.latest_seq[other.series.slots].any()
    batch = ticks([0, 3], [40, 40], np.array([1.0, 2]))
    ours, theirs = other.step(batch, 0), engine.step(batch, 0)
    np.testing.assert_array_equal(ours.point, theirs.point)
    np.testing.assert_array_equal(ours.quantiles, theirs.quantiles)
    assert ours.quality.shape[1] > 0


ISSUED = ["intervals", "latest prediction"]


@pytest.mark.parametrize(
    ("before", "now", "anew"),
    [
        ({"coverage": 0.5}, {"coverage": 0.9}, ["intervals", "watch", "latest prediction"]),
        ({}, {"coverage": (0.9, 0.5)}, ISSUED),
        ({"coverage": (0.9, 0.5)}, {}, ISSUED),
        ({"coverage": (0.9, 0.8)}, {"coverage": (0.9, 0.5)}, ISSUED),
        ({"coverage": 0}, {}, ["intervals", "usual scale", "watch", "latest prediction"]),
        ({"scored": (1, 2, 6)}, {"scored": (1, 3, 5)}, ["intervals", "corrections"]),
        ({"scored": (1, 2, 6)}, {"scored": (2, 3, 4)}, ["intervals", "corrections", "watch"]),
        ({"learning": False}, {}, ["corrections"]),
        ({"watching": False}, {}, ["watch"]),
        ({"watching": False}, {"watching": False}, []),
    ],
)
def test_what_is_made_with_other_settings_begins_anew(
    tmp_path: Path, before: Kind, now: Kind, anew: list[str]
) -> None:
    """All else goes on, bit for bit."""
    kind, kept = {"spread": False}, {"keep_latest": True}
    engine, other = running(kind=kind, **kept | dict(before)), fresh(kind=kind, **kept | dict(now))
    checkpoint.save(engine, tmp_path / "c")
    restored = checkpoint.load(other, tmp_path / "c")
    assert restored is not None
    assert restored.anew == anew
    began = {field for name in anew for field in parts(other)[name].fields}
    ours, theirs = everything(other), everything(engine)
    assert all(ours[name] == theirs[name] for name in ours if name not in began)
    # history teaches intervals nothing where the model brings some: they are as in the beginning
    taught = Engine(engine.model, max_series=20, **kept | dict(now))
    slots = taught.series.lookup(Keys.of([b"a", b"bb", b"ccc", b"d", b"e"])).tolist()
    for hour, row in enumerate(np.random.default_rng(1).normal(size=(30, 5))):
        taught.step(ticks(slots, [hour] * 5, row, WARM), 0)
    batch = ticks([0, 3], [70, 70], np.array([1.0, 2]))  # for which nobody made a forecast
    like, found = taught.step(batch, 0), other.step(batch, 0)
    went_on = engine.step(batch, 0)
    if "corrections" not in anew:
        np.testing.assert_array_equal(found.point, went_on.point)
    if "intervals" in anew:
        ours, theirs = (each.quantiles - each.point[:, None] for each in (found, like))
        if "usual scale" in anew:  # then the scale of this tick is taken for that
            scale, usual = (each.work.bands.mean_scale[[0, 3]] for each in (other, taught))
            theirs *= (scale / (0.75 * usual + 0.25 * scale))[:, None, None]
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_corrections_of_other_steps_begin_as_if_none_had_been_learned(tmp_path: Path) -> None:
    steps = {"scored": (1, 2, 6)}, {"learning": False}, {"scored": (2, 3, 4)}
    engine, frozen, other = (fresh(**each) for each in steps)
    for each in (engine, frozen):
        each.series.lookup(Keys.of([b"a"]))
        for hour in range(200):
            each.step(ticks([0], [hour], np.array([9.0 + hour % 7])), 0)
    checkpoint.save(engine, tmp_path / "c")
    assert checkpoint.load(other, tmp_path / "c") is not None
    batch = ticks([0], [200], np.array([12.0]))
    corrected, anew, bare = (each.step(batch, 0).point for each in (engine, other, frozen))
    assert not np.array_equal(corrected, bare)
    np.testing.assert_array_equal(anew, bare)


def test_a_state_that_cannot_go_on_is_refused(tmp_path: Path) -> None:
    """Of an earlier version, say."""
    engine, other = running(), fresh()
    checkpoint.save(engine, tmp_path / "c")
    content = (tmp_path / "c").read_bytes()
    length = int.from_bytes(content[12:16], "little")
    text = content[24 : 24 + length].replace(b'"begun"', b'"began"')
    head = content[:16] + checksum(text).to_bytes(8, "little")
    (tmp_path / "c").write_bytes(head + text + content[24 + length :])
    with pytest.raises(CheckpointError, match=r"made with other settings \(began\); move it away"):
        checkpoint.load(other, tmp_path / "c")
    assert other.series.active == 0


# beside the loop, by a thread


def end_of(saving: Saving) -> None:
    """Copy what is left of the moment, and wait for the thread."""
    saving.finish()


def test_what_is_written_is_the_moment_at_which_it_began(tmp_path: Path) -> None:
    engine, other = running(), fresh()
    before = everything(engine)
    saving = Saving(engine, tmp_path / "c")
    engine.step(ticks([2, 0], [31, 33], np.array([1.0, 2])), 0)
    engine.series.lookup(Keys.of([b"new"]))
    engine.step(ticks([5, 2], [31, 34], np.array([1.0, 2])), 0)
    assert not saving.done()  # nobody has copied the rest
    assert everything(engine) != before
    end_of(saving)
    assert checkpoint.load(other, tmp_path / "c") is not None
    assert everything(other) == before


def test_many_series_that_change_all_the_while(tmp_path: Path) -> None:
    """Far more rows than are copied at once."""
    engine, other = (fresh(max_series=3000, max_batch=128) for _ in range(2))
    slots = engine.series.lookup(Keys.of([str(k).encode() for k in range(3000)]))
    chance = np.random.default_rng(0)

    def change(hour: int) -> None:
        some = chance.choice(slots, 128, replace=False).tolist()
        engine.step(ticks(some, [hour] * 128, chance.normal(size=128)), 0)

    for hour in range(60):
        change(hour)
    before = everything(engine)
    saving, hour = Saving(engine, tmp_path / "c"), 60
    while not saving.done():
        change(hour)
        sweep(engine.series.copies.shadow)
        hour += 1
    assert hour > 62
    assert checkpoint.load(other, tmp_path / "c") is not None
    assert everything(other) == before


def test_the_one_who_waits_is_told_of_the_end(tmp_path: Path) -> None:
    told = threading.Event()
    saving = Saving(running(), tmp_path / "c", tell=told.set)
    assert not told.is_set()
    end_of(saving)
    assert told.is_set()


def test_one_that_fails_says_why(tmp_path: Path) -> None:
    engine = running()
    with pytest.raises(OSError, match=r"No such file or directory.*none"):
        end_of(Saving(engine, tmp_path / "none" / "c"))
    checkpoint.save(engine, tmp_path / "c")  # and the next one is none the worse


@pytest.mark.parametrize("over", [False, True])
def test_one_that_is_stopped_leaves_nothing(tmp_path: Path, over: bool) -> None:
    open_files, engine = os.listdir("/proc/self/fd"), running()
    told = threading.Event()
    saving = Saving(engine, tmp_path / "c", tell=told.set)
    if over:
        assert sweep(engine.series.copies.shadow) == NOTHING
        assert told.wait(30)
    saving.stop()
    assert [path.name for path in tmp_path.iterdir()] == ["c"] * over
    assert os.listdir("/proc/self/fd") == open_files


def test_one_stopped_at_its_worst_does_not_hinder_the_next(tmp_path: Path) -> None:
    (tmp_path / ".c.new").write_bytes(b"x" * 1_000_000)  # what it had begun
    engine, other = running(), fresh()
    checkpoint.save(engine, tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert checkpoint.load(other, tmp_path / "c") is not None


def test_its_memory_is_given_back(tmp_path: Path) -> None:
    engine = running()
    for _ in range(3):
        checkpoint.save(engine, tmp_path / "c")
        assert engine.series.copies._log is None


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
    options = {"checkpoint__path": path, "checkpoint__interval": 0.05, "journal__durability": "off"}
    with start(tmp_path, model, **options) as daemon:
        eventually(lambda: written in daemon.get("/metrics"))
        assert path.stat().st_mode & 0o777 == 0o600
        folder.rename(tmp_path / "gone")  # at once, though the next one is being written there
        eventually(lambda: daemon.metric("streamlstm_checkpoint_failures_total") > 0)
        with Client(daemon) as client:
            client.tick("a", ts=1, value=1)
            client.predictions(1)
        assert daemon.stop() == 1  # what it knew is lost
    (*_, last) = [line for line in daemon.log.splitlines() if "no checkpoint: " in line]
    assert str(folder) in last
    assert last.endswith(": No such file or directory; see to its folder")


WAITS = """
import os, pathlib, threading
fsync = os.fsync
def wait_and_fsync(descriptor):
    if threading.current_thread().name == "checkpoint":
        pathlib.Path("{gate}").read_bytes()
    fsync(descriptor)
os.fsync = wait_and_fsync
"""
"""A thread that has written a checkpoint waits until somebody has opened and closed the gate."""


@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
def test_a_checkpoint_that_takes_long_keeps_no_tick_waiting(
    end: str, model: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "gate")
    path = tmp_path / "c"
    options = {"checkpoint__path": path, "checkpoint__interval": 0.01}
    before = WAITS.format(gate=tmp_path / "gate")
    with (
        start(tmp_path, model, before=before, **options) as daemon,
        (tmp_path / "gate").open("wb") as gate,  # waits for the thread
        Client(daemon) as client,
    ):
        for hour in range(50):
            client.tick("beside", ts=hour, value=1)
            assert client.predictions(1)[0]["seq"] == hour + 1
        assert not path.exists()
        daemon.process.send_signal(signal.Signals[end])
        if end == "SIGKILL":
            daemon.wait()
            assert not path.exists()
            return
        (tmp_path / "open").write_bytes(b"")
        (tmp_path / "open").replace(tmp_path / "gate")  # for who comes from now on
        gate.close()  # for who waits
        assert daemon.wait() == 0
    engine = Engine(load_model(model))
    assert checkpoint.load(engine, path) is not None
    assert engine.series.state["seq"][:1].tolist() == [50]
    assert "no checkpoint" not in daemon.log


def test_a_daemon_goes_on_after_its_settings_were_changed(model: Path, tmp_path: Path) -> None:
    """Also where it had been killed: what the journal has is stepped by the new ones."""
    kept = {"checkpoint__path": tmp_path / "c"}
    changed = {"interval__coverage": "0.9,0.5", "engine__watch": False}
    forecasts = []
    for number, options in enumerate([kept, kept | changed, kept | changed, kept]):
        with start(tmp_path, model, **options) as daemon, Client(daemon) as client:
            client.tick("a", ts=number, value=float(number))
            (said,) = client.predictions(1)
            assert said["seq"] == number + 1
            forecasts.append(said["forecast"])
            if number == 1:
                daemon.process.kill()
            assert daemon.stop() == (-9 if number == 1 else 0)
            began = daemon.log.count("begins anew")
            assert began == [0, 1, 1, 2][number], daemon.log  # intervals, and whoever was not there
    engine = Engine(load_model(model))
    slots = engine.series.lookup(Keys.of([b"a"]))
    for number, forecast in enumerate(forecasts):
        batch = ticks(slots.tolist(), [number], np.array([float(number)]))
        np.testing.assert_array_equal(engine.step(batch, 0).point[0, :, 0], forecast)


def test_a_checkpoint_is_of_one_moment(model: Path, tmp_path: Path) -> None:
    """Of the ticks sent, it holds the first so many, and the state after them bit for bit."""
    path, rng = tmp_path / "c", np.random.default_rng(0)
    options = {"checkpoint__path": path, "checkpoint__interval": 0.02, "input__format": "binary"}
    sent: list[tuple[str, int, float]] = []
    written = set()  # times; the third was begun once the first was seen, and so has ticks
    with start(tmp_path, model, **options) as daemon, Client(daemon) as client:
        deadline = time.monotonic() + 30
        while len(written) < 3:
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
