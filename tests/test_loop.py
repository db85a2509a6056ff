"""The loop over real sockets: compiled and from Python, tick for tick the same."""

import contextlib
import itertools
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import zmq

from streamlstm import transport
from streamlstm.backlog import Backlog, Policy
from streamlstm.engine import Engine
from streamlstm.loop import Loop
from streamlstm.metrics import LAYOUT
from streamlstm.transport import Publisher, Receiver
from streamlstm.wire.codec import Decoder, Encoder
from streamlstm.wire.format import Format, Shape
from streamlstm.wire.peer import decode_prediction, encode_tick, encode_ticks
from tests.models import HOUR, random_model

POLICIES: list[Policy] = ["block", "drop_newest", "drop_oldest", "coalesce"]
MODEL = random_model()
WAYS = ["compiled", "from Python"]
needs_pyarrow = pytest.mark.skipif(not find_spec("pyarrow"), reason="pyarrow is not installed")


class Rig(AbstractContextManager["Rig"]):
    """A loop, and both its ends within this process, where what is sent is there at once."""

    def __init__(
        self,
        way: str,
        *,
        given: Format = "binary",
        wanted: Format = "binary",
        policy: Policy = "block",
        most: int = 20,
        batch: int = 8,
        series: int = 50,
        **options: int,
    ) -> None:
        self.context = zmq.Context()
        self.feed, self.sink = self.context.socket(zmq.PUSH), self.context.socket(zmq.SUB)
        self.feed.sndhwm = self.sink.rcvhwm = 0
        self.sink.subscribe(b"prediction")
        receiver = Receiver(self.context, kind="pull", hwm=0, most=batch, bind=["inproc://in"])
        publisher = Publisher(self.context, hwm=0, bind=["inproc://out"])
        self.feed.connect("inproc://in")
        self.sink.connect("inproc://out")
        self.wakeup, self.waker = socket.socketpair()
        self.values = np.zeros(1, LAYOUT)
        self.decoder = Decoder(given, 1, most=batch)
        self.engine = Engine(MODEL, max_series=series, max_batch=batch)
        read = len(self.decoder.reader.columns.ts)
        self.pending = Backlog(policy, most, batch, 1, series, read)
        self.loop = Loop(
            receiver,
            self.decoder,
            self.pending,
            self.engine,
            [Encoder(wanted, Shape(MODEL.id, 7, MODEL.spec.horizon, 1, 64, batch))],
            publisher,
            self.values,
            self.wakeup.fileno(),
            **options,
        )
        if way == "from Python":
            self.loop._way = None
        publisher.forget_subscriptions()

    def __exit__(self, *_: object) -> None:
        self.loop.receiver.close()
        self.loop.publisher.close()
        self.wakeup.close()
        self.waker.close()
        self.context.destroy(linger=0)

    def send(self, messages: list[list[bytes]]) -> None:
        for message in messages:
            self.feed.send_multipart(message)

    def serve(self) -> int:
        """Run until nothing is left; how many messages were taken."""
        self.waker.send(b"x")
        total, more = 0, True
        while more:
            before = len(self.pending)
            taken = self.loop.run(soon(60))
            total += taken
            more = bool(taken or before or len(self.pending))
        self.wakeup.recv(1)
        return total

    def received(self) -> list[list[bytes]]:
        found = []
        while self.sink.poll(0):
            found.append(self.sink.recv_multipart())
        return found

    @property
    def counts(self) -> dict[str, int]:
        """Where every tick went."""
        counters = ("ticks_received", "predictions_published", "batches")
        own = {"overload": self.pending.dropped, "coalesced": self.pending.coalesced}
        counted = {name: int(self.values[0][name]) for name in counters}
        return self.decoder.drops | self.engine.drops | own | counted


def soon(seconds: float) -> int:
    return time.monotonic_ns() + round(1e9 * seconds)


def ticks(count: int, format: Format, series: int = 7, seed: int = 0) -> list[list[bytes]]:
    """Among them warm ones, late ones, duplicates, gaps, and values that are missing."""
    rng = np.random.default_rng(seed)
    hours = np.zeros(series, np.int64)
    messages = []
    for _ in range(count):
        which = rng.integers(series)
        hours[which] += rng.choice([1, 1, 1, 1, 1, 2, 0, -1])
        value = rng.normal() if rng.random() < 0.95 else np.nan
        ts, warm = int(hours[which]) * HOUR, bool(rng.random() < 0.1)
        messages.append(encode_tick(format, f"s{which}", ts, [value], warm=warm))
    return messages


def good(count: int, format: Format = "binary", series: int = 7) -> list[list[bytes]]:
    """Each leads to a prediction."""
    return [
        encode_tick(format, f"s{i % series}", i // series * HOUR, [i / 3]) for i in range(count)
    ]


@pytest.mark.parametrize(
    ("given", "wanted", "policy", "batch"),
    [
        *((format, format, "block", 8) for format in ("binary", "json", "msgpack")),
        ("json", "binary", "block", 1),
        ("binary", "json", "block", 300),
        *(("binary", "msgpack", policy, 8) for policy in POLICIES[1:]),
        *(("json", "json", policy, 3) for policy in POLICIES[1:]),
        *(
            pytest.param(given, wanted, policy, 8, marks=needs_pyarrow)
            for given, wanted, policy in [
                ("arrow", "arrow", "block"),
                ("arrow", "binary", "block"),
                ("json", "arrow", "block"),
                *(("binary", "arrow", policy) for policy in POLICIES[1:]),
            ]
        ),
    ],
)
def test_either_way_says_the_same_bytes(
    given: Format, wanted: Format, policy: Policy, batch: int
) -> None:
    said = []
    for way in WAYS:
        options: Any = {"given": given, "wanted": wanted, "policy": policy, "batch": batch}
        with Rig(way, **options) as rig:
            assert rig.loop.compiled == (way == "compiled")
            taken = 0
            for seed, count in enumerate((0, 1, 200, 7, 100)):
                rig.send(ticks(count, given, seed=seed))
                taken += rig.serve()
            said.append((rig.received(), rig.counts))
            assert taken == 308
            counts = dict(rig.counts)
            assert counts.pop("ticks_received") == 308
            assert counts.pop("batches") >= 308 // batch / 4
            warm = 308 - sum(counts.values())
            assert 0 < warm < 60
            assert (counts["overload"] + counts["coalesced"] > 0) == (policy != "block")
    assert said[0] == said[1]


@pytest.mark.parametrize("way", WAYS)
def test_a_tick_is_served_as_by_the_engine_alone(way: str) -> None:
    engine = Engine(MODEL, max_series=50, max_batch=1)
    with Rig(way) as rig:
        rig.send(good(100))
        rig.serve()
        found = [decode_prediction("binary", message) for message in rig.received()]
    assert len(found) == 100
    decoder = Decoder("binary", 1)
    messages = transport.Messages
    for message, prediction in zip(good(100), found, strict=True):
        arrivals = decoder.decode(messages.of([message]), 1, 0)
        row = engine.step(engine.place(arrivals), 0)
        assert np.array_equal(prediction.forecast, row.point[0])
        assert (prediction.ts_ns, prediction.seq) == (row.ts[0], row.seq[0])


ODD: dict[Format, list[list[bytes]]] = {
    "json": [
        [b"odd", b'{"ts": "1970-01-01T00:00:00Z", "value": 1}'],
        [b"odd", b'{"\\u0074s": 3600, "value": 1}'],
        [b"odd", b'{"ts": 7200, "value": NaN}'],
        [b"odd", b'{"ts": 1, '],
        [b""],
        [b"a", b"b", b"c", b"d"],
        [b"k" * 65, b'{"ts": 1, "value": 1}'],
        [b"\xff", b'{"ts": 1, "value": 1}'],
    ],
    "binary": [[b""], [b"no end"], [b"a\0\2"], [b"a", b"b"], [b"x" * 70_000]],
    "msgpack": [[b"odd", b"\xc1"], [b"odd"], [b""], [b"odd", b"\x81\xa2ts\x01"]],
    "arrow": [[b"odd", b"\xff\xff\xff\xff\1"], [b"odd"], [b""], [b"a", b"b", b"c", b"d"]],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "format", [pytest.param(f, marks=needs_pyarrow if f == "arrow" else ()) for f in ODD]
)
@pytest.mark.parametrize("policy", ["block", "drop_oldest"])
def test_odd_messages_keep_no_series_waiting_and_nothing_is_counted_twice(
    format: Format, way: str, policy: Policy
) -> None:
    sound, odd = good(120, format), itertools.cycle(ODD[format])
    mixed = []
    for i, message in enumerate(sound):
        mixed += [message, next(odd)] if i % 5 == 0 or 40 < i < 60 else [message]
    with Rig(way, given=format, policy=policy, most=1000) as rig:
        rig.send(mixed)
        assert rig.serve() == len(mixed)
        found, counts = rig.received(), dict(rig.counts)
        assert counts.pop("ticks_received") == len(mixed)
        counts.pop("batches")
        assert sum(counts.values()) == len(mixed)
        assert rig.decoder.sample
    with Rig(way, given=format) as rig:
        rig.send(sound)
        rig.serve()
        alone = rig.received()
    assert [each for each in found if not each[0].startswith(b"prediction.odd")] == alone


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("policy", POLICIES)
def test_odd_messages_that_never_end_keep_no_tick_waiting(way: str, policy: Policy) -> None:
    """Where ticks may be dropped, the input is looked at again and again before a step."""
    with Rig(way, policy=policy) as rig:
        rig.send([message for tick in good(400) for message in (tick, [b"odd"])])
        rig.waker.send(b"x")
        for _ in range(10):
            assert rig.loop.run(soon(60)) > 0
        assert len(rig.received()) >= 10


# when it comes back


@pytest.mark.parametrize("way", WAYS)
def test_it_comes_back_in_time_where_nothing_is_to_be_done(way: str) -> None:
    with Rig(way) as rig:
        began = time.monotonic()
        assert rig.loop.run(soon(-1)) == 0
        assert rig.loop.run(soon(0.03)) == 0
        assert 0.03 <= time.monotonic() - began < 10


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("policy", POLICIES)
def test_it_comes_back_in_time_where_ticks_never_end(way: str, policy: Policy) -> None:
    with Rig(way, policy=policy, most=1000) as rig:
        rig.send(good(20_000))
        while not (taken := rig.loop.run(soon(0.002))):
            pass  # the time was over before it began
        assert taken < 20_000


@pytest.mark.parametrize("way", WAYS)
def test_it_comes_back_for_what_else_there_is(way: str) -> None:
    with Rig(way) as rig:
        began = time.monotonic()
        waker = threading.Timer(0.02, rig.waker.send, [b"x"])
        waker.start()
        assert rig.loop.run(soon(60)) == 0
        waker.join()
        rig.wakeup.recv(1)
        with rig.context.socket(zmq.SUB) as another:
            another.subscribe(b"another")
            another.connect("inproc://out")
            assert rig.loop.run(soon(60)) == 0
            rig.loop.publisher.forget_subscriptions()
        assert time.monotonic() - began < 30


def run_until(rig: Rig, wanted: int, meanwhile: Callable[[], object] = int) -> int:
    """Run until another thread has seen so many predictions, or none for long; how many it saw."""
    seen = []

    def look() -> None:
        meanwhile()
        rig.sink.rcvtimeo = 10_000
        with contextlib.suppress(zmq.Again):
            while len(seen) < wanted:
                seen.append(rig.sink.recv_multipart())
        rig.waker.send(b"x")

    looker = threading.Thread(target=look)
    looker.start()
    while looker.is_alive():
        rig.loop.run(soon(60))
    looker.join()
    return len(seen)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("policy", POLICIES)
def test_no_tick_is_left_waiting_when_the_input_falls_silent(way: str, policy: Policy) -> None:
    with Rig(way, policy=policy, most=1000) as rig:
        rig.send(good(500))
        assert run_until(rig, 500) == 500
        assert len(rig.pending) == 0


@pytest.fixture
def storm() -> Iterator[list[None]]:
    """Signals, each of which interrupts what waits."""
    hit: list[None] = []
    before = signal.signal(signal.SIGALRM, lambda *_: hit.append(None))
    signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)
    yield hit
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("policy", ["block", "coalesce"])
def test_signals_lose_no_tick(way: str, policy: Policy, storm: list[None]) -> None:
    sound = good(2000)
    with Rig(way, policy=policy, most=5000) as rig:

        def drip() -> None:
            for begin in range(0, 2000, 50):
                rig.send(sound[begin : begin + 50])
                time.sleep(0.001)  # a signal comes

        assert run_until(rig, 2000, drip) == 2000
    assert storm


@pytest.mark.parametrize("way", WAYS)
def test_a_context_that_ends_is_an_error(way: str) -> None:
    with Rig(way) as rig:
        rig.feed.close()
        rig.sink.close()
        ender = threading.Thread(target=rig.context.term)
        ender.start()
        while transport.wait(rig.loop._items, 10_000) >= 0:
            pass
        with pytest.raises(zmq.ZMQError) as error:
            rig.loop.run(soon(60))
        assert error.value.errno == zmq.ETERM
        rig.loop.receiver.close()
        rig.loop.publisher.close()
        ender.join(30)
        assert not ender.is_alive()


# waiting for more, and looking without sleeping


@pytest.mark.parametrize("way", WAYS)
def test_the_first_tick_waits_for_others_as_long_as_it_is_told(way: str) -> None:
    with Rig(way, wait_ns=400_000_000) as rig:
        first, second = good(2)
        sender = threading.Timer(0.02, rig.send, [[second]])
        rig.send([first])
        sender.start()
        began = time.monotonic()
        assert run_until(rig, 2) == 2
        assert time.monotonic() - began >= 0.4
        assert rig.counts["batches"] == 1
        sender.join()


def test_it_looks_for_the_next_tick_without_sleeping_if_it_is_told() -> None:
    worked = []
    for spin in (0, 10**10):
        with Rig("compiled", spin_ns=spin) as rig:
            rig.send(good(1))
            began, before = time.monotonic(), time.thread_time()
            rig.loop.run(soon(0.1))
            worked.append(time.thread_time() - before)
            assert 0.1 <= time.monotonic() - began < 10
            assert len(rig.received()) == 1
    idle, busy = worked
    assert 4 * idle < busy


# many ticks in a message


@needs_pyarrow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("policy", POLICIES)
def test_batches_of_ticks_are_dropped_and_coalesced_too(policy: Policy, way: str) -> None:
    with Rig(way, given="arrow", policy=policy, most=20) as rig:
        assert rig.loop.compiled == (way == "compiled")
        for hour in range(8):
            names, stamps = [f"s{i}" for i in range(10)], [hour * HOUR] * 10
            rig.send([encode_ticks(names, stamps, np.full((10, 1), hour))])
        assert rig.serve() == 8
        found = [decode_prediction("binary", message) for message in rig.received()]
        counts = rig.counts
    lost = counts["overload"] + counts["coalesced"]
    assert (lost > 0) == (policy != "block")
    assert counts["ticks_received"] == 80 == counts["predictions_published"] + lost
    assert counts["late"] == counts["duplicate"] == 0
    if policy in ("drop_oldest", "coalesce"):
        latest = {each.series: each.ts_ns for each in found}
        assert set(latest.values()) == {7 * HOUR}


@needs_pyarrow
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("wanted", ["binary", "arrow"])
def test_messages_larger_than_a_batch_go_the_same_either_way(
    policy: Policy, wanted: Format
) -> None:
    """Of two schemas by turns, and some with a row that is not sound."""
    said = []
    for way in WAYS:
        rng = np.random.default_rng(3)
        with Rig(way, given="arrow", wanted=wanted, policy=policy, most=30) as rig:
            taken = total = bad = 0
            seen: list[Any] = []
            by_pyarrow = rig.decoder.reader.read_one

            def read_one(*args: Any, seen: list[Any] = seen, read: Any = by_pyarrow) -> Any:
                seen.append(args)
                return read(*args)

            rig.decoder.reader.read_one = read_one
            for turn in range(60):
                size, odd = int(rng.integers(1, 50)), policy == "block" and turn % 20 == 19
                total, bad = total + size, bad + odd
                names = [f"s{i}" for i in rng.integers(0, 9, size - odd)] + [""] * odd
                stamps = turn * HOUR + np.arange(size)
                values = rng.normal(size=(size, 1))
                rig.send([encode_ticks(names, stamps, values, warm=turn % 2 == 1)])
                taken += rig.serve() if turn < 2 else 0  # by pyarrow, as first of its schema
            assert taken + rig.serve() == 60
            assert len(seen) == 2 + bad  # the first of each schema, and those not sound
            counts, found = dict(rig.counts), rig.received()
            assert counts["ticks_received"] == total
            assert counts["bad_key"] == bad
            assert (counts["batches"] > 60) == (policy == "block")
            assert (counts["overload"] + counts["coalesced"] > 0) == (policy != "block")
            said.append((found, counts))
    assert said[0] == said[1]


@needs_pyarrow
@pytest.mark.parametrize("policy", ["block", "coalesce"])
def test_a_large_message_is_predicted_as_its_ticks_alone(policy: Policy) -> None:
    names, stamps = [f"s{i % 7}" for i in range(100)], [i // 7 * HOUR for i in range(100)]
    values = np.arange(100)[:, None] / 3
    said = []
    for given in ("binary", "arrow"):
        with Rig("compiled", given=given, policy=policy, most=1000) as rig:
            if given == "arrow":
                rig.send([encode_ticks(names[:1], stamps[:1], values[:1])])
                rig.send([encode_ticks(names[1:], stamps[1:], values[1:])])
            else:
                rig.send(good(100))
            rig.serve()
            said.append(rig.received())
    assert len(said[0]) == 100
    assert said[0] == said[1]


# what has no compiled code of its own


def test_where_libzmq_is_not_found_ticks_pass_from_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "compiled", lambda: False)
    with Rig("one by one") as rig:
        assert not rig.loop.compiled
        rig.send(good(100))
        assert rig.serve() == 100
        assert len(rig.received()) == 100


@pytest.mark.parametrize("way", WAYS)
def test_warming_up_takes_and_counts_nothing(way: str) -> None:
    with Rig(way) as rig:
        rig.send(good(3))
        rig.loop.warm_up()
        assert not rig.values.view(np.uint8).any()
        assert len(rig.pending) == rig.engine.series.active == 0
        assert rig.serve() == 3
        assert len(rig.received()) == 3
