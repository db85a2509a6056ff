"""When ticks come faster than they are served, or predictions faster than somebody reads them."""

from pathlib import Path

import numpy as np
import pytest
import zmq

from streamlstm.backlog import Policy
from streamlstm.wire.peer import decode_prediction, encode_tick, encode_ticks
from tests.daemon import Client, Daemon, eventually, start
from tests.models import HOUR, random_model_file

SERIES = 20
OVERLOAD = 'streamlstm_ticks_dropped_total{reason="overload"}'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model_file(tmp_path_factory.mktemp("model"))


def burst(daemon: Daemon, client: Client, count: int, sent: int) -> None:
    """Send ticks number ``sent`` on while nothing is served, and wait until all are taken."""
    with daemon.stopped():
        for i in range(sent, sent + count):
            client.send(*encode_tick("binary", f"s{i % SERIES}", i // SERIES * HOUR, [float(i)]))
    eventually(
        lambda: (
            daemon.metric("streamlstm_ticks_received_total") == sent + count
            and daemon.metric("streamlstm_pending_ticks") == 0
        )
    )


@pytest.mark.parametrize("policy", ["block", "drop_newest", "drop_oldest", "coalesce"])
def test_every_tick_is_accounted_for(policy: Policy, model: Path, tmp_path: Path) -> None:
    options = {
        "input__format": "binary", "output__format": "binary", "input__overload": policy,
        "input__max_pending": SERIES, "engine__max_batch": 16,
    }  # fmt: skip
    with start(tmp_path, model, **options) as daemon, Client(daemon) as client:
        sent, count = 0, 10_000
        for _ in range(10):
            burst(daemon, client, count, sent)
            sent += count
            dropped = int(daemon.metric(OVERLOAD))
            coalesced = int(daemon.metric("streamlstm_ticks_coalesced_total"))
            if dropped + coalesced or policy == "block":
                break
        published = int(daemon.metric("streamlstm_predictions_published_total"))
        assert published == sent - dropped - coalesced
        found = [decode_prediction("binary", message) for message in client.receive(published)]
        assert client.silent()
        eventually(lambda: not dropped or 'tick dropped reason="overload"' in daemon.log)
    assert (dropped > 0) == policy.startswith("drop")
    assert (coalesced > 0) == (policy == "coalesce")
    latest: dict[str, int] = {}
    for each in found:
        assert each.ts_ns > latest.get(each.series, -1)
        latest[each.series] = each.ts_ns
    if policy != "drop_newest":
        assert latest == {f"s{i}": (sent // SERIES - 1) * HOUR for i in range(SERIES)}


def test_a_daemon_that_pulls_makes_its_publishers_wait(model: Path, tmp_path: Path) -> None:
    options = {"input__kind": "pull", "input__hwm": 10}
    padding = "x" * 20_000
    with start(tmp_path, model, **options) as daemon, Client(daemon, push=True) as client:
        client.feed.sndhwm = 10  # of connections from here on
        client.feed.disconnect(daemon.input)
        client.feed.connect(daemon.input)
        sent, numbers = 0, {"publisher": "one"}
        for stop in range(1, 3):
            waited = False
            with daemon.stopped():
                client.feed.sndtimeo = 500
                while not waited:
                    try:
                        client.tick("pulled", ts=sent, value=1, seq=sent, note=padding, **numbers)
                        sent += 1
                    except zmq.Again:
                        waited = True
                assert sent < 5000 * stop  # what the system's buffers hold, and no more
            client.feed.sndtimeo = 30_000
            for _ in range(1000):
                client.tick("pulled", ts=sent, value=1, seq=sent, **numbers)
                sent += 1
        assert [each["ts"] for each in client.predictions(sent)] == list(range(sent))
        assert client.silent()
        assert daemon.metric("streamlstm_ticks_received_total") == sent
        gaps = "streamlstm_publisher_gaps_total"
        assert daemon.metric(gaps) == 0
        client.tick("pulled", ts=sent, value=1, seq=sent + 7, **numbers)
        client.predictions(1)
        assert daemon.metric(gaps) == 7


def test_a_subscriber_that_stops_reading_harms_nobody_and_is_counted(tmp_path: Path) -> None:
    model = random_model_file(tmp_path, horizon=500)  # predictions of 30 kB
    overflows = "streamlstm_subscriber_overflows_total"
    with start(tmp_path, model, output__hwm=10) as daemon, Client(daemon) as client:
        stuck = client.context.socket(zmq.SUB)
        stuck.rcvhwm, stuck.rcvbuf = 1, 4096
        stuck.subscribe(b"")
        stuck.connect(daemon.output)
        assert stuck.recv() == b"streamlstm.welcome"
        assert daemon.metric(overflows) == 0
        ticks = 0
        while not ticks % 100 or daemon.metric(overflows) == 0:
            client.tick("read", ts=ticks, value=1)
            assert client.predictions(1)[0]["ts"] == ticks
            ticks += 1
            assert ticks < 10_000
        assert client.silent()
        assert daemon.metric("streamlstm_predictions_published_total") == ticks


def test_a_stop_serves_all_batches_that_have_arrived(model: Path, tmp_path: Path) -> None:
    """However many ticks each message holds: hwm is of messages."""
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    options = {"input__format": "arrow", "output__format": "binary", "input__hwm": 10}
    with start(tmp_path, model, **options) as daemon, Client(daemon) as client:
        with daemon.stopped():
            for hour in range(4):
                values = np.full((1000, 1), float(hour))
                names = [f"s{i}" for i in range(1000)]
                client.send(*encode_ticks(names, [hour * HOUR] * 1000, values))
            daemon.process.terminate()
        assert daemon.wait() == 0
        assert len(client.receive(4000)) == 4000
        assert client.silent()
