"""Late joiners of a real daemon: what they are told, and that it goes on from there."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from streamlstm import snapshot
from streamlstm.checkpoint import load, save
from streamlstm.client import Listener
from streamlstm.engine import Engine
from streamlstm.snapshot import Snapshots
from streamlstm.ticks import Arrivals, Keys, Ticks
from streamlstm.transport import REPLIES, Publisher, Responder, TransportError
from streamlstm.watch import MEASURES
from streamlstm.wire.codec import Encoder
from streamlstm.wire.format import JOINED, Format, Shape
from streamlstm.wire.peer import Prediction, decode_predictions, encode_tick
from tests.daemon import LOCAL, Client, Daemon, eventually, start
from tests.models import HOUR, random_model, random_model_file

Told = tuple[int, bytes]


def told(prediction: Prediction) -> Told:
    """Its number and moment, and all its forecasts to the bit; of whatever boot."""
    steps = [prediction.forecast, prediction.lower, prediction.upper]
    steps += (end for _, *ends in prediction.intervals for end in ends)
    bits = b"".join(np.ascontiguousarray(step, np.float64).tobytes() for step in steps)
    return prediction.seq, prediction.ts_ns.to_bytes(8, "little", signed=True) + bits


def message(series: int, tick: int) -> list[bytes]:
    name = f"{'odd' if series % 2 else 'even'}.{series}"
    return encode_tick("binary", name, (1 + tick) * HOUR, [float(np.sin(series + 0.3 * tick))])


@contextlib.contextmanager
def running(folder: Path, model: Path, **options: Any) -> Iterator[Daemon]:
    given = {"snapshot.bind": LOCAL, "input.format": "binary", "input.kind": "pull"} | options
    with start(folder, model, **given) as daemon:
        yield daemon


def everything(client: Client, format: Format, count: int) -> dict[str, dict[int, bytes]]:
    """The next predictions, by series and number."""
    found: dict[str, dict[int, bytes]] = {}
    while count:
        for each in decode_predictions(format, client.sink.recv_multipart()):
            seq, bits = told(each)
            found.setdefault(each.series, {})[seq] = bits
            count -= 1
    return found


@pytest.mark.parametrize("format", ["json", "msgpack", "binary", "arrow"])
def test_a_late_joiner_under_load_misses_none_and_has_none_twice(
    tmp_path: Path, format: Format
) -> None:
    """Each series' predictions are, from that of the snapshot on, those of an early subscriber."""
    if format == "arrow":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    model, series, ticks = random_model_file(tmp_path, hidden=8), 300, 200
    topic = b"predictions.batch" if format == "arrow" else b"prediction."
    joined = threading.Event()
    with (
        running(tmp_path, model, output__format=format) as daemon,
        Client(daemon, topic, push=True) as early,
    ):
        compiled = daemon.metric("streamlstm_functions_compiled_total")
        sent = [0]

        def feed() -> None:
            for tick in range(100_000):
                for each in range(series):
                    early.send(*message(each, tick))
                sent[0] += series
                if joined.is_set() and tick >= ticks:
                    return

        thread = threading.Thread(target=feed)
        thread.start()
        listener = Listener(daemon.output, format, "odd.")
        listener.wait(30)
        eventually(lambda: sent[0] > 10 * series)
        found: dict[str, list[Told]] = {}
        for each in listener.catch_up(daemon.snapshot, 30):
            assert each.series not in found
            found[each.series] = [told(each)]
        joined.set()
        assert found.keys() == {f"odd.{k}" for k in range(1, series, 2)}
        thread.join()
        seen = everything(early, format, sent[0])
        left = sum(max(seen[name]) - told[0][0] for name, told in found.items())
        assert left > 0
        while left:
            for each in listener.receive(30):
                found[each.series].append(told(each))
                left -= 1
        listener.close()
        for name, all_told in found.items():
            first, last = all_told[0][0], max(seen[name])
            assert [seq for seq, _ in all_told] == list(range(first, last + 1))
            assert [bits for _, bits in all_told] == [seen[name][seq] for seq, _ in all_told]
        assert daemon.metric("streamlstm_snapshots_served_total") >= 1
        assert daemon.metric("streamlstm_functions_compiled_total") == compiled


def snapshot_of(daemon: Daemon, prefix: str = "", format: Format = "json") -> dict[str, Told]:
    listener = Listener(daemon.output, format, prefix)
    try:
        listener.wait(30)
        return {each.series: told(each) for each in listener.catch_up(daemon.snapshot, 30)}
    finally:
        listener.close()


def test_how_good_forecasts_are_is_told_with_them_and_later_too(tmp_path: Path) -> None:
    """Also after a kill."""
    model = random_model_file(tmp_path, hidden=8)
    options = {"checkpoint.path": tmp_path / "state", "journal.durability": "strict"}
    options |= {"output.quality": "true", "input.format": "json"}
    with running(tmp_path, model, **options) as daemon, Client(daemon, push=True) as client:
        for hour in range(6):
            client.tick("a", ts=3600 * hour, value=10 + hour % 3)
        *_, before, last = client.predictions(6)
        assert daemon.metric("streamlstm_anomalies_total") == 0
        os.kill(daemon.process.pid, signal.SIGKILL)
        daemon.process.wait(30)
    assert tuple(last["quality"]) == MEASURES
    assert last["quality"]["error"] == 10 + 5 % 3 - before["forecast"][0]
    assert 0 < last["quality"]["anomaly"] < 1
    assert last["quality"]["likelihood"] is None  # too early
    with running(tmp_path, model, **options) as daemon:
        listener = Listener(daemon.output, "json")
        listener.wait(30)
        (told_later,) = listener.catch_up(daemon.snapshot, 30)
        listener.close()
    known = {name: number for name, number in last["quality"].items() if number is not None}
    assert known == {n: number for n, number in told_later.quality.items() if number == number}


def test_after_a_kill_it_tells_what_was_published_last_to_the_bit(tmp_path: Path) -> None:
    """Of some series from the checkpoint, of others from the journal, of others from both."""
    model = random_model_file(tmp_path, hidden=8)
    options = {"checkpoint.path": tmp_path / "state", "journal.durability": "strict"}
    options |= {"interval.coverage": "0.9,0.5,0.8"}
    last: dict[str, Told] = {}
    tick = 0
    for which, end in ((range(40), signal.SIGTERM), (range(20, 60), signal.SIGKILL)):
        with (
            running(tmp_path, model, **options) as daemon,
            Client(daemon, push=True) as client,
        ):
            assert snapshot_of(daemon) == last
            for _ in range(5):
                for each in which:
                    client.send(*message(each, tick))
                tick += 1
            for name, numbered in everything(client, "json", 5 * len(which)).items():
                last[name] = max(numbered.items())
            os.kill(daemon.process.pid, end)
            daemon.process.wait(30)
    with running(tmp_path, model, **options) as daemon, Client(daemon, push=True) as client:
        assert {len(bits) for _, bits in last.values()} == {8 + (1 + 3 * 2) * 3 * 8}
        assert len(last) == 60
        assert snapshot_of(daemon) == last
        assert client.silent(0)
        assert snapshot_of(daemon, "even.1") == {k: v for k, v in last.items() if "even.1" in k}
        assert snapshot_of(daemon, "x" * 100) == {}


def test_watch_begins_with_the_latest_and_goes_on_from_there(tmp_path: Path) -> None:
    model = random_model_file(tmp_path)
    options = {"interval.coverage": "0.9,0.5,0.99"}
    with running(tmp_path, model, **options) as daemon, Client(daemon, push=True) as client:
        for each in range(6):
            client.send(*message(each, 0))
        published = client.predictions(6)[1::2]
        command = [sys.executable, "-m", "streamlstm", "watch", daemon.output, "odd."]
        command += ["--snapshot", daemon.snapshot, "--json", "--count", "4"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
            assert watching.stdout is not None
            lines = [json.loads(watching.stdout.readline()) for _ in range(3)]
            client.send(*message(3, 1))
            published += client.predictions(1)
            lines.append(json.loads(watching.stdout.readline()))
            assert watching.wait(30) == 0
    told = [(line["series"], line["seq"]) for line in lines]
    assert told == [("odd.1", 1), ("odd.3", 1), ("odd.5", 1), ("odd.3", 2)]
    assert lines == published
    engine = Engine(random_model(), max_series=2, coverage=(0.9, 0.5, 0.99))
    engine.series.lookup(Keys.of([b"odd.3"]))
    ts, values = np.array([1, 2]) * HOUR, np.sin(3 + 0.3 * np.array([[0.0], [1.0]]))
    made = engine.step(Ticks(np.zeros(2, np.int32), ts, values, np.zeros(2, np.uint8)), 0)
    ends = made.quantiles[1, :, :, 0].tolist()
    assert [lines[-1]["lower"], lines[-1]["upper"]] == ends[:2]
    assert lines[-1]["intervals"] == [
        {"coverage": 0.5, "lower": ends[2], "upper": ends[3]},
        {"coverage": 0.99, "lower": ends[4], "upper": ends[5]},
    ]


def ask(context: "zmq.Context[zmq.Socket[bytes]]", endpoint: str, *frames: bytes) -> Any:
    socket = context.socket(zmq.DEALER)
    socket.linger, socket.rcvtimeo = 0, 30_000
    socket.connect(endpoint)
    socket.send_multipart(frames)
    return socket


def test_as_the_protocol_says(tmp_path: Path) -> None:
    model = random_model_file(tmp_path)
    with (
        running(tmp_path, model, output__format="binary") as daemon,
        Client(daemon, b"", push=True) as client,
    ):
        client.send(*message(2, 0))
        client.send(*message(3, 0))
        published = client.receive(2)
        asking = ask(client.context, daemon.snapshot, b"", b"me")
        assert asking.recv_multipart() == published[0]
        assert asking.recv_multipart() == published[1]
        assert asking.recv_multipart() == [b"streamlstm.snapshot", b"2"]
        assert client.sink.recv_multipart() == [b"streamlstm.joined.me"]
        asking.send(b"even.")
        assert asking.recv_multipart() == published[0]
        assert asking.recv_multipart() == [b"streamlstm.snapshot", b"1"]
        assert client.silent()
        for odd in ([b"", b"t" * 65], [b"", b"", b""]):
            asking.send_multipart(odd)
            topic, _ = asking.recv_multipart()
            assert topic == b"streamlstm.refused"
        assert daemon.metric("streamlstm_snapshots_served_total") == 2
        assert daemon.metric("streamlstm_snapshots_refused_total") == 2


def test_it_is_off_unless_asked_for(tmp_path: Path) -> None:
    with start(tmp_path, random_model_file(tmp_path)) as daemon:
        assert daemon.snapshot == ""
    assert not [name for name in Engine(random_model()).series.state if name.startswith("latest")]


class Rig:
    """An engine with series ``s0``, ``s1``, ..., their predictions, and the service."""

    def __init__(self, series: int, hwm: int = REPLIES) -> None:
        self.engine = Engine(random_model(), max_series=series, max_batch=256, keep_latest=True)
        self.asking: list[Any] = []
        self.tick = 0
        self.names = [f"s{k}".encode() for k in range(series)]
        self.step()
        spec = self.engine.model.spec
        shape = Shape(self.engine.model.id, 7, spec.horizon, spec.targets, 64, 256)
        self.context = zmq.Context()
        self.publisher = Publisher(self.context)
        self.responder = Responder(self.context, hwm=hwm)
        encoder = Encoder("json", shape)
        self.service = Snapshots(self.responder, self.engine, encoder, self.publisher)
        if hwm < REPLIES:
            self.responder.socket.sndbuf = 4096
        self.responder.open([LOCAL])

    def step(self) -> None:
        self.tick += 1
        for begin in range(0, len(self.names), 256):
            keys = Keys.of(self.names[begin : begin + 256])
            n = len(keys.begin)
            arrivals = Arrivals(
                keys,
                np.full(n, self.tick * HOUR),
                np.full((n, 1), float(self.tick)),
                np.zeros(n, np.uint8),
            )
            self.engine.step(self.engine.place(arrivals), 0)

    def asked(self, **options: int) -> Any:
        """A requester of all, whose request has come."""
        socket = self.context.socket(zmq.DEALER)
        socket.linger = 0
        for name, value in options.items():
            setattr(socket, name, value)
        socket.connect(self.responder.endpoints[0])
        socket.send(b"")
        self.asking.append(socket)
        assert self.responder.socket.poll(30_000)
        return socket

    def serve_until(self, done: Any) -> None:
        deadline = time.monotonic() + 30
        self.service.serve()
        while not done():
            self.service.serve()
            assert time.monotonic() < deadline


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(5000)
    yield made
    made.context.destroy(linger=0)


def test_a_requester_that_does_not_read_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps a bounded number of messages, waits apart, and is given up at last."""
    rig = Rig(5000, hwm=10)
    stuck = rig.asked(rcvhwm=1, rcvbuf=4096)
    rig.serve_until(lambda: rig.service.due > time.monotonic() + snapshot.BLOCKED / 2)
    assert rig.service.due < np.inf
    quick = rig.asked(rcvhwm=0)
    got = []

    def whole() -> bool:
        while quick.poll(0):
            got.append(quick.recv_multipart())
        return bool(got) and got[-1] == [b"streamlstm.snapshot", b"5000"]

    rig.serve_until(whole)
    assert len(got) == 5001
    monkeypatch.setattr(snapshot, "PATIENCE", 0.0)
    rig.serve_until(lambda: rig.service.due == np.inf)
    assert (rig.service.served, rig.service.refused) == (1, 1)
    stuck.close()
    rig.context.destroy(linger=0)


def test_a_requester_that_vanishes_is_forgotten(rig: Rig) -> None:
    rig.asked(rcvhwm=1, rcvbuf=4096).close()
    rig.serve_until(lambda: rig.service.due == np.inf)
    assert rig.service.served + rig.service.refused == 1


def test_a_turn_is_short_whatever_is_asked(rig: Rig) -> None:
    requesters = [rig.asked(rcvhwm=0) for _ in range(3)]
    turns = []
    while rig.service.served < 3:
        began = time.perf_counter()
        rig.service.serve()
        turns.append(time.perf_counter() - began)
    assert np.median(turns) < 0.01  # a turn, a piece, and what a busy machine adds
    for each in requesters:
        each.close()


def test_too_many_requests_are_refused_at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "MOST", 2)
    monkeypatch.setattr(snapshot, "TURN", 0.0)
    asking = []
    for _ in range(2):
        asking.append(rig.asked())
        rig.service.serve()
    late = rig.asked()
    rig.service.serve()
    assert late.poll(30_000)
    assert late.recv_multipart() == [b"streamlstm.refused", b"busy; ask again later"]
    asking[0].send(b"again")
    assert rig.responder.socket.poll(30_000)
    rig.service.serve()
    assert rig.service.refused == 2


def test_a_series_is_told_as_it_is_when_its_turn_comes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "TURN", 1e-9)
    asking = rig.asked(rcvhwm=0)
    rig.service.serve()  # a piece
    rig.step()
    rig.serve_until(lambda: rig.service.served)
    seqs = [decode_predictions("json", asking.recv_multipart())[0].seq for _ in range(5000)]
    assert seqs == [1] * snapshot.PIECE + [2] * (5000 - snapshot.PIECE)


def test_of_a_prediction_that_was_taken_back_nothing_is_told(rig: Rig) -> None:
    rig.engine.work.seq[7] -= 1
    asking = rig.asked(rcvhwm=0)
    rig.serve_until(lambda: rig.service.served)
    *found, end = [asking.recv_multipart() for _ in range(5000)]
    assert end == [b"streamlstm.snapshot", b"4999"]
    assert b"prediction.s7" not in {topic for topic, _ in found}


def test_warm_ticks_leave_the_latest_prediction_as_it_was() -> None:
    rig = Rig(1)
    before = {k: v.copy() for k, v in rig.engine.series.state.items() if k.startswith("latest")}
    warm = Arrivals(Keys.of(rig.names), np.array([9 * HOUR]), np.ones((1, 1)), np.ones(1, np.uint8))
    rig.engine.step(rig.engine.place(warm), 0)
    for name, array in before.items():
        np.testing.assert_array_equal(rig.engine.series.state[name][0], array[0])
    rig.context.destroy(linger=0)


def test_a_checkpoint_made_without_it_is_taken(tmp_path: Path) -> None:
    """The series go on; there is no latest prediction of them until the next one."""
    plain = Engine(random_model(), max_series=10)
    keys = Keys.of([b"a", b"b"])
    one = Arrivals(keys, np.full(2, HOUR), np.ones((2, 1)), np.zeros(2, np.uint8))
    plain.step(plain.place(one), 0)
    save(plain, tmp_path / "state")
    engine = Engine(random_model(), max_series=10, keep_latest=True)
    load(engine, tmp_path / "state")
    assert not engine.work.latest.latest_seq[:2].any()
    two = one._replace(ts=np.full(2, 2 * HOUR))
    engine.step(engine.place(two), 0)
    assert engine.work.latest.latest_seq[:2].tolist() == [2, 2]
    save(engine, tmp_path / "state")
    load(Engine(random_model(), max_series=10), tmp_path / "state")


def test_no_snapshot_is_one_line_with_the_mend(tmp_path: Path) -> None:
    listener = Listener("tcp://127.0.0.1:9", "json")
    with pytest.raises(TransportError, match=r"no snapshot in time; is that the daemon's snapshot"):
        listener.catch_up("tcp://127.0.0.1:9", 0.05)
    with pytest.raises(TransportError, match=r"nonsense: an endpoint is tcp://address:port"):
        listener.catch_up("nonsense", 0.05)
    listener.close()
    assert JOINED.startswith(b"streamlstm.")
