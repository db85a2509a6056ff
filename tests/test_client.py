"""Feed and listener against real sockets; the daemon itself meets them in test_cli."""

import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zmq

from streamlstm.client import Continuity, Feed, Listener, Pace, in_time_order
from streamlstm.datasets.frames import SeriesData
from streamlstm.security import SecurityError, make_keys
from streamlstm.transport import TransportError
from streamlstm.wire.peer import Prediction

NOWHERE = "tcp://127.0.0.1:9"


def test_a_feed_waits_for_a_slow_daemon_and_drops_nothing() -> None:
    context = zmq.Context()
    sink = context.socket(zmq.SUB)
    sink.rcvhwm = 10
    sink.subscribe(b"")
    port = sink.bind_to_random_port("tcp://127.0.0.1")
    count = 20_000  # far beyond what the queues of both ends hold

    def publish() -> None:
        feed = Feed(f"tcp://127.0.0.1:{port}", "binary")
        feed.wait(10)
        for i in range(count):
            feed.send("s", i, [float(i)])
        feed.close()

    thread = threading.Thread(target=publish)
    thread.start()
    received = []
    while len(received) < count and sink.poll(10_000):
        received.append(np.frombuffer(sink.recv()[-8:], "<f8")[0])
    thread.join()
    context.destroy(linger=0)
    np.testing.assert_array_equal(received, np.arange(count))


def test_nobody_there_is_one_line_with_the_mend() -> None:
    feed, listener = Feed(NOWHERE, "json"), Listener(NOWHERE, "json")
    with pytest.raises(TransportError, match=r"no daemon subscribed within 0.05 s; is 'streamlstm"):
        feed.wait(0.05)
    with pytest.raises(
        TransportError, match=r"no daemon answered within 0.05 s; .* its output, and"
    ):
        listener.wait(0.05)
    feed.close(0)
    listener.close()


@pytest.mark.parametrize("end", [Feed, Listener])
def test_a_malformed_endpoint(end: type) -> None:
    with pytest.raises(TransportError, match=r"nonsense: an endpoint is tcp://address:port"):
        end("nonsense", "json")


def test_an_endpoint_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(TransportError, match=f"^{endpoint}: .*in use; stop what listens"):
            Feed(endpoint, "json", bind=True)


@pytest.mark.parametrize("end", [Feed, Listener])
def test_a_key_without_the_daemons_is_an_error(end: type, tmp_path: Path) -> None:
    make_keys(tmp_path / "me")
    with pytest.raises(SecurityError, match=r"me\.key_secret: .*--server-key"):
        end("tcp://127.0.0.1:1", "json", key=tmp_path / "me.key_secret")


def test_series_are_played_together_in_time_order() -> None:
    def series(name: str, *ts: int) -> SeriesData:
        return SeriesData(name, np.array(ts), np.zeros((len(ts), 1)))

    which, row = in_time_order([series("a", 1, 4, 5), series("b", 2, 4), series("c", 0)])
    assert list(zip(which.tolist(), row.tolist(), strict=True)) == [
        (2, 0), (0, 0), (1, 0), (0, 1), (1, 1), (0, 2),
    ]  # fmt: skip


def test_pace() -> None:
    assert Pace(0).until(10**18) == 0
    pace = Pace(3600)
    began = time.monotonic()
    assert pace.until(0) == 0
    assert pace.until(3600 * 10**9) == pytest.approx(1 - (time.monotonic() - began), abs=0.2)


def test_a_feed_notices_that_the_daemon_has_gone() -> None:
    context = zmq.Context()
    sink = context.socket(zmq.SUB)
    sink.rcvhwm = 1
    sink.subscribe(b"")
    port = sink.bind_to_random_port("tcp://127.0.0.1")
    feed = Feed(f"tcp://127.0.0.1:{port}", "json")
    while not feed.socket.poll(10):
        sink.poll(0)  # which lets it subscribe
    feed.check()
    sink.close(0)

    def fill() -> None:
        for i in range(1_000_000):  # more than the queue holds: it must not wait forever
            feed.send("s", i, [0.0])

    with pytest.raises(TransportError, match="the daemon went away"):
        fill()
    context.destroy(linger=0)
    feed.close(0)


def test_what_a_watcher_missed_is_said() -> None:
    def at(series: str, boot: int, seq: int) -> Prediction:
        none = np.zeros((1, 1))
        return Prediction(series, 0, none, none, none, "0" * 12, boot, seq)

    continuity = Continuity()
    assert [continuity.broken(at(*p)) for p in (("a", 1, 7), ("a", 1, 8), ("b", 1, 1))] == [""] * 3
    assert continuity.broken(at("a", 1, 11)) == (
        "a: seq 8 is followed by 11, predictions were missed"
    )
    assert continuity.broken(at("b", 2, 2)) == "the daemon was started anew: boot 1, now 2"
    assert continuity.broken(at("a", 2, 30)) == ""


def test_what_is_missing_is_counted_and_memory_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamlstm.client.MOST_FOLLOWED", 2)
    steps, continuity = np.zeros((1, 1)), Continuity()
    for series, seq in (("a", 1), ("b", 1), ("a", 4), ("c", 7), ("b", 9), ("a", 9), ("c", 7)):
        continuity.broken(Prediction(series, 0, steps, steps, steps, "m", 1, seq))
    # c takes the place of b, and b that of a; then a and c come as if for the first time
    assert (continuity.gaps, continuity.missed, continuity.series) == (1, 2, 2)
