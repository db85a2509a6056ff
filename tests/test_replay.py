"""A daemon that was killed goes on from the very bits that it had: real processes, real files."""

import errno
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamlstm import checkpoint
from streamlstm.appending import append
from streamlstm.engine import Engine, events
from streamlstm.events import CREATE, EVICT, UNPARK
from streamlstm.journal import Journal
from streamlstm.loop import _step
from streamlstm.model_file import load_model
from streamlstm.parking import Parking
from streamlstm.replay import replay
from streamlstm.segments import JournalError, read
from streamlstm.state_schema import parts, schema_of
from streamlstm.ticks import END, RESET, WARM, Arrivals, Keys, Ticks, rows_of
from streamlstm.wire.peer import encode_tick
from tests.daemon import Client, Daemon, eventually, start
from tests.models import HOUR, random_model, random_model_file
from tests.test_engine import everything, ticks
from tests.test_loop import MODEL, WAYS, Rig

NAMES = [f"s{k}".encode() for k in range(7)]


def value_of(series: int, tick: int) -> float:
    return float(np.sin(series + 0.1 * tick * tick))


def message(series: int, tick: int) -> bytes:
    name = NAMES[series].decode()
    (frame,) = encode_tick("binary", name, (1 + tick) * HOUR, [value_of(series, tick)])
    return frame


@contextmanager
def running(folder: Path, model: Path, **options: Any) -> Iterator[Daemon]:
    settings: dict[str, Any] = {
        "checkpoint.path": folder / "state",
        "checkpoint.interval": 0,
        "input.format": "binary",
        "input.kind": "pull",
        "output.format": "binary",
        "engine.max_batch": 16,
        "engine.max_series": 50,
        "journal.segment_bytes": 1 << 16,
    }
    with start(folder, model, **settings | options) as daemon:
        yield daemon


def never_killed(model: Path, seen: dict[bytes, int]) -> Engine:
    """An engine that took so many ticks of each series, in the order of these."""
    engine = Engine(load_model(model), max_series=50)
    slots = engine.series.lookup(Keys.of(list(seen)))
    for slot, (name, count) in zip(slots.tolist(), seen.items(), strict=True):
        for tick in range(count):
            value = np.array([value_of(NAMES.index(name), tick)])
            engine.step(
                Ticks(
                    np.array([slot], np.int32), np.array([(1 + tick) * HOUR]), value[None],
                    np.zeros(1, np.uint8),
                ),
                0,
            )  # fmt: skip
    return engine


def names_of(engine: Engine) -> list[bytes]:
    text, lengths = engine.series.names
    return [text[k, : lengths[k]].tobytes() for k in engine.series.slots]


@pytest.mark.parametrize("durability", ["strict", "interval"])
def test_killed_at_any_moment_it_goes_on_bit_for_bit(tmp_path: Path, durability: str) -> None:
    """Thrice in a row: with a checkpoint begun now and then, and without."""
    model = random_model_file(tmp_path, hidden=8)
    chance = random.Random(durability)
    published, sent = dict.fromkeys(NAMES, 0), dict.fromkeys(NAMES, 0)
    options = {"journal.durability": durability}
    for round_ in range(3):
        every = {"checkpoint.interval": 0.05} if round_ == 1 else {}
        with (
            running(tmp_path, model, **options, **every) as daemon,
            Client(daemon, push=True) as client,
        ):
            for _ in range(600):
                series = chance.randrange(len(NAMES))
                client.send(message(series, sent[NAMES[series]]))
                sent[NAMES[series]] += 1
            for frame, *_ in client.receive(chance.randrange(1, 600)):
                name = frame.removeprefix(b"prediction.").split(b"\0")[0]
                published[name] += 1
            os.kill(daemon.process.pid, signal.SIGKILL)
            daemon.process.wait(10)
            while client.sink.poll(50):
                frame = client.sink.recv()
                published[frame.removeprefix(b"prediction.").split(b"\0")[0]] += 1
        engine = Engine(load_model(model), max_series=50)
        restored = checkpoint.load(engine, tmp_path / "state")
        replay(engine, tmp_path / "state.journal", restored.journalled if restored else 0)
        seen = dict(zip(names_of(engine), engine.series.state["seen"].tolist(), strict=False))
        assert all(published[name] <= seen[name] <= sent[name] for name in published)
        assert everything(engine) == everything(never_killed(model, seen))
        sent = {name: seen[name] for name in NAMES}  # what was lost on its way comes again
        published = dict(sent)
    with running(tmp_path, model, **options) as daemon:
        assert "replayed" in daemon.log
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(30) == 0
    stopped = Engine(load_model(model), max_series=50)
    assert checkpoint.load(stopped, tmp_path / "state") is not None
    assert everything(stopped) == everything(engine)


def test_with_retention_a_checkpoint_of_long_ago_can_be_gone_on_from(tmp_path: Path) -> None:
    """Here that of before the first tick; all since is there, in several files."""
    model = random_model_file(tmp_path, hidden=8)
    options = {"journal.retention": 3600, "checkpoint.interval": 0.05, "checkpoint.keep": 1}
    sent = dict.fromkeys(NAMES, 400)
    with running(tmp_path, model, **options) as daemon, Client(daemon, push=True) as client:
        for tick in range(400):
            for series in range(len(NAMES)):
                client.send(message(series, tick))
        client.receive(400 * len(NAMES))
        assert daemon.stop() == 0
    assert len(list((tmp_path / "state.journal").iterdir())) > 1
    engine = Engine(load_model(model), max_series=50)
    replay(engine, tmp_path / "state.journal", 0)
    assert everything(engine) == everything(never_killed(model, sent))


def test_without_a_journal_the_checkpoint_alone_comes_back(tmp_path: Path) -> None:
    model = random_model_file(tmp_path, hidden=8)
    with (
        running(tmp_path, model, **{"journal.durability": "off"}) as daemon,
        Client(daemon, push=True) as client,
    ):
        client.send(message(0, 0))
        client.receive(1)
        os.kill(daemon.process.pid, signal.SIGKILL)
    assert not (tmp_path / "state.journal").exists()
    assert not (tmp_path / "state").exists()


FAILS = """
import errno, os, threading
there = os.{call}
def fails(*given):
    if os.path.exists({flag!r}) and threading.current_thread().name in {threads}:
        raise {error}
    there(*given)
os.{call} = fails
"""


@pytest.mark.parametrize(
    ("durability", "call", "error", "said"),
    [
        ("strict", "posix_fallocate", OSError(errno.ENOSPC, "No space"), "free some space"),
        ("strict", "posix_fallocate", OSError(errno.EMFILE, "Too many"), "raise the limit of open"),
        ("interval", "posix_fallocate", OSError(errno.ENOSPC, "No space"), "free some space"),
        ("interval", "fdatasync", ZeroDivisionError("what a bug"), "report this"),
    ],
)
def test_a_full_disk_stops_strict_and_not_interval_and_both_go_on_when_it_is_mended(
    tmp_path: Path, durability: str, call: str, error: Exception, said: str
) -> None:
    """A bug in the thread behind the journal is taken to be a disk that fails."""
    model, flag = random_model_file(tmp_path, hidden=8), tmp_path / "full"
    threads = ("journal", "MainThread")[: 2 if isinstance(error, OSError) else 1]
    before = FAILS.format(call=call, flag=str(flag), error=repr(error), threads=threads)
    settings = {"journal.durability": durability, "checkpoint.interval": 0.2}
    with (
        running(tmp_path, model, before=before, **settings) as daemon,
        Client(daemon, push=True) as client,
    ):
        flag.touch()
        count = 0

        def failed() -> bool:
            nonlocal count
            for _ in range(200):
                client.send(message(0, count))
                count += 1
            return daemon.metric("streamlstm_journal_failures_total") > 0

        eventually(failed)
        if durability == "interval":
            client.receive(count)
            client.send(message(0, count))
            count += 1
            client.receive(1)
            missed = daemon.metric("streamlstm_ticks_not_journalled_total")
            assert missed > 0 or call == "fdatasync"  # a thread is begun anew at once, if it can be
        flag.unlink()
        if durability == "strict":
            client.receive(count)
        eventually(lambda: (tmp_path / "state").exists())
        client.send(message(0, count))
        client.receive(1)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(30) == 0
        assert said in daemon.log
    engine = Engine(load_model(model), max_series=50)
    restored = checkpoint.load(engine, tmp_path / "state")
    assert restored is not None
    assert replay(engine, tmp_path / "state.journal", restored.journalled).entries == 0
    assert everything(engine) == everything(never_killed(model, {NAMES[0]: count + 1}))


PLAIN_USER = (
    ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override") * (os.geteuid() == 0)
)  # fmt: skip
"""What starts a process that heeds the modes of files, though it be root's."""


def test_a_folder_that_may_not_be_written_to_is_an_error_at_the_start(tmp_path: Path) -> None:
    model, state = random_model_file(tmp_path, hidden=8), tmp_path / "kept"
    state.mkdir(0o500)
    options = {"checkpoint.path": state / "state", "launcher": PLAIN_USER}
    with (
        pytest.raises(
            AssertionError,
            match=r"exit code 1: .*Permission denied; let user .* in \(chown, chmod\)",
        ),
        running(tmp_path, model, **options),
    ):
        pass


@pytest.mark.parametrize("durability", ["strict", "interval"])
def test_a_folder_that_may_no_more_be_written_to_is_as_a_disk_that_fails(
    tmp_path: Path, durability: str
) -> None:
    """Strict stops, and has all; interval goes on without a journal until it may be again."""
    model, state = random_model_file(tmp_path, hidden=8), tmp_path / "kept"
    state.mkdir(0o700)
    options: dict[str, Any] = {"checkpoint.path": state / "state", "launcher": PLAIN_USER}
    options |= {"journal.durability": durability, "checkpoint.interval": 0.2}
    count, published = 0, 0
    with running(tmp_path, model, **options) as daemon, Client(daemon, push=True) as client:

        def given_up() -> bool:
            nonlocal count
            for _ in range(200):
                client.send(message(0, count))
                count += 1
            with suppress(OSError):  # it may be gone
                return daemon.metric("streamlstm_ticks_not_journalled_total") > 0
            return daemon.wait() == 1

        eventually(lambda: (state / "state").exists())
        for folder in (state, state / "state.journal"):
            folder.chmod(0o500)
        eventually(given_up)
        if durability == "interval":
            eventually(lambda: daemon.metric("streamlstm_checkpoint_failures_total") > 0)
            client.receive(count)
        else:
            while client.sink.poll(50):
                client.sink.recv()
                published += 1
        for folder in (state, state / "state.journal"):
            folder.chmod(0o700)
        if durability == "interval":
            published = count
            assert daemon.stop() == 0
        assert "Permission denied" in daemon.log
    engine = Engine(load_model(model), max_series=50)
    restored = checkpoint.load(engine, state / "state")
    assert restored is not None
    replay(engine, state / "state.journal", restored.journalled)
    seen = int(engine.series.state["seen"][0])
    assert published <= seen <= count
    assert everything(engine) == everything(never_killed(model, {NAMES[0]: seen}))


def journalled(folder: Path, engine: Engine, hours: range) -> None:
    """Ticks of two series, stepped and written."""
    journal = Journal(
        folder, inputs=1, max_batch=256, max_key=64, model=engine.model.id, durability="strict",
        first=1 + max((entry.number for entry in read(folder, 0)), default=0),
    )  # fmt: skip
    slots = engine.series.lookup(Keys.of([b"a", b"b"])).tolist()
    for hour in hours:
        batch = ticks(slots, [hour, hour], np.array([hour, -hour]))
        assert append(journal.log, batch, events(engine.work), 0) == 0
        engine.step(batch, 0)
    journal.close()


def test_what_is_replayed_is_not_counted_again(tmp_path: Path) -> None:
    one, other = (Engine(random_model(), max_series=5) for _ in range(2))
    journalled(tmp_path / "j", one, range(5))
    journalled(tmp_path / "j", one, range(3))  # all late
    assert one.drops["late"] > 0
    assert replay(other, tmp_path / "j", 0).entries == 8
    assert everything(one) == everything(other)
    assert not any(other.drops.values())
    assert sum(column[0] for column in one.scores.values()) > 0
    assert not any(map(any, other.scores.values()))
    again = Engine(random_model(), max_series=5)
    replay(again, tmp_path / "j", 0, counting=True)
    assert (again.drops, str(again.scores)) == (one.drops, str(one.scores))  # NaN: not known


def test_a_batch_larger_than_those_of_today_is_replayed_in_parts(tmp_path: Path) -> None:
    one, other = Engine(random_model(), max_series=5), Engine(random_model(), max_batch=1)
    journalled(tmp_path / "j", one, range(5))
    replay(other, tmp_path / "j", 2)
    replay(other, tmp_path / "none", 2)
    whole = Engine(random_model(), max_batch=1)
    replay(whole, tmp_path / "j", 0)
    assert everything(whole) == everything(one)
    assert everything(other) != everything(one)


def written(folder: Path, engine: Engine, first: int = 1) -> Journal:
    """A journal for this engine."""
    return Journal(
        folder, inputs=1, max_batch=engine.max_batch, max_key=64, model=engine.model.id,
        durability="interval", segment_bytes=1 << 22, first=first,
        state_bytes=schema_of(engine).bytes, schema=schema_of(engine).id,
    )  # fmt: skip


def kept(engine: Engine) -> dict[bytes, tuple[int, bytes, bytes]]:
    """Slot and state of each series; what is recurrent only where there is something."""
    slots = engine.series.slots
    records, recurrent = engine.records(slots)
    recurrent[engine.work.memory.seen[slots] == 0] = 0
    rows = zip(slots.tolist(), records, recurrent, strict=True)
    found = ((slot, record.tobytes(), hidden.tobytes()) for slot, record, hidden in rows)
    return dict(zip(engine.series.keys(slots), found, strict=True))


def some(chance: np.random.Generator, hour: int) -> Arrivals:
    """A few ticks of twelve series, of which some start anew, end, or have no value."""
    n = int(chance.integers(1, 7))
    flags = chance.choice([0, WARM, RESET, END, RESET | END], n, p=[0.75, 0.1, 0.05, 0.07, 0.03])
    values = chance.normal(size=(n, 1))
    values[(flags & ~WARM > 0) & (chance.random(n) < 0.4)] = np.nan
    names = [b"series %d" % k for k in chance.integers(0, 12, n)]
    return Arrivals(Keys.of(names), (hour + np.arange(n) / 10) * HOUR // 1, values, flags)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("parks", [True, False])
@pytest.mark.parametrize("policy", ["block", "drop_oldest", "coalesce"])
def test_whatever_became_of_slots_becomes_of_them_again(
    tmp_path: Path, way: str, parks: bool, policy: Any
) -> None:
    """Begun, pushed out, idle, parked, back, ended and started anew, while ticks wait."""
    chance, journals = np.random.default_rng(len(policy)), []

    def beside(engine: Engine) -> dict[str, Any]:
        journals.append(written(tmp_path / "j", engine))
        parking = Parking(tmp_path / "parked", engine) if parks else None
        return {"log": journals[0].log, "parking": parking, "idle_timeout": 1e-9}

    with Rig(
        way, series=5, batch=6, most=12, policy=policy, ordered=True, evict=not parks, beside=beside
    ) as rig:
        engine, loop, (journal,) = rig.engine, rig.loop, journals
        loop.warm_up()
        for hour in range(600):
            if policy != "block" or not len(rig.pending):
                loop.let_wait(some(chance, hour), time.monotonic_ns())
            if chance.random() < 0.6 and len(rig.pending):
                if loop._way is None:
                    loop.step()
                else:
                    assert _step(loop._way) == 0
                    loop._close()
            if chance.random() < 0.01:
                loop.evict_idle()
            if hour == 300:
                checkpoint.save(engine, tmp_path / "c", journal.number - 1)
        while len(rig.pending):
            loop.step()
        nothing = rows_of(rig.pending.waiting, 0, 0)
        assert append(journal.log, nothing, events(engine.work), 0) == 0
        journal.close()
        found = engine.series.evicted
        assert min(found[reason] for reason in ("full", "idle", "ended")) > 5
        parking, rows = loop._parking, set()
        if parking:
            assert min(parking.parked, parking.returned) > 20
            assert (parking.refused, parking.failures) == (0, 0)
            rows = set(parking._file.execute("SELECT key, checksum FROM parked"))
            parking.close()
        kinds = {event.kind for entry in read(tmp_path / "j", 0) for event in entry.events}
        assert kinds == {CREATE, EVICT, UNPARK} if parks else {CREATE, EVICT}
        live = kept(engine)
    for saved in (None, tmp_path / "c"):
        again = Engine(MODEL, max_series=5, max_batch=4)
        restored = checkpoint.load(again, saved) if saved else None
        after = restored.journalled if restored else 0
        parking = Parking(tmp_path / "parked", again) if parks else None
        found = replay(again, tmp_path / "j", after, parking)
        assert found.last > after
        assert kept(again) == live
        if parking:
            assert set(parking._file.execute("SELECT key, checksum FROM parked")) == rows
            parking.close()


@pytest.mark.parametrize(
    ("before", "now", "lost"),
    [
        ({}, {}, set()),
        ({"coverage": 0.8}, {"coverage": 0.9}, {"intervals", "watch"}),  # of as many bytes
        ({}, {"coverage": (0.9, 0.5)}, {"intervals"}),
        ({"learning": False}, {}, {"corrections"}),
        ({"history": 3}, {"history": 7}, set()),
        ({}, {"keep_latest": True, "telling": True}, {"latest prediction"}),
    ],
)
def test_series_that_came_back_go_on_with_other_settings(
    tmp_path: Path, before: dict[str, Any], now: dict[str, Any], lost: set[str]
) -> None:
    """Killed, and started with other settings: their state is in the journal alone."""

    engine = Engine(MODEL, max_series=2, ordered=True, **before)
    journal, parking = written(tmp_path / "j", engine), Parking(tmp_path / "parked", engine)
    for hour in range(40):
        name, value = [b"abc"[hour % 3 : hour % 3 + 1]], np.array([[hour % 7.0]])
        part = Arrivals(Keys.of(name), np.array([hour * HOUR]), value, np.zeros(1, np.uint8))
        parking.make_way(part, hour + 1, hour + 1)
        placed = engine.place(part)
        assert append(journal.log, placed, events(engine.work), hour) == 0
        engine.step(placed, hour)
    journal.close()
    parking.close()
    assert parking.returned > 30
    again = Engine(MODEL, max_series=2, ordered=True, **now)
    parking = Parking(tmp_path / "parked", again)
    replay(again, tmp_path / "j", 0, parking)
    parking.close()
    if schema_of(again) != schema_of(engine):
        with pytest.raises(JournalError, match=r"other settings; start once with engine\.parking"):
            replay(Engine(MODEL, max_series=2, ordered=True, **now), tmp_path / "j", 0)
    assert again.series.keys(again.series.slots) == engine.series.keys(engine.series.slots)
    began = {field for name in lost for field in parts(again)[name].fields}
    ours, theirs, both = again.series.state, engine.series.state, engine.series.slots
    for field in ours.keys() - began - {"recent"}:
        np.testing.assert_array_equal(ours[field][both], theirs[field][both], err_msg=field)
    np.testing.assert_array_equal(again.records(both)[1], engine.records(both)[1])
    for mine, its in zip(again.recent(both[:1]), engine.recent(both[:1]), strict=True):
        few = min(len(mine), len(its))
        np.testing.assert_array_equal(mine[-few:], its[-few:])


@pytest.mark.parametrize(
    ("engine", "after", "says"),
    [
        (lambda: Engine(random_model(), max_series=1), 0, "more than max_series = 1"),
        # only the ticks say so: who has a slot was told before
        (lambda: Engine(random_model(), max_series=1), 1, "more than max_series = 1"),
    ],
)
def test_a_journal_of_something_else_is_refused(
    tmp_path: Path, engine: Any, after: int, says: str
) -> None:
    journalled(tmp_path / "j", Engine(random_model(), max_series=5), range(2))
    with pytest.raises(JournalError, match=says):
        replay(engine(), tmp_path / "j", after)
