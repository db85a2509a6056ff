"""What the daemon promises as a whole, counted and measured from outside.

The client here is plain pyzmq and the standard library: nothing of ours but the process.
"""

import json
import threading
from collections import defaultdict
from pathlib import Path

import numpy as np
import psutil
import pytest
import zmq

from streamlstm.engine import Engine
from streamlstm.model_file import load_model
from tests.daemon import start
from tests.models import random_model_file
from tests.oracle import Oracle

HOUR = 3600
CONSTANT = 250e6
"""Bytes of a daemon without series: interpreter, libraries, code that was compiled before."""


def exchange(
    address_in: str, address_out: str, ticks: list[tuple[bytes, bytes]], expected: int
) -> list[list[bytes]]:
    """Send every tick over a PUB socket and take what a SUB socket gets, and a moment longer."""
    context = zmq.Context()
    feed, sink = context.socket(zmq.XPUB), context.socket(zmq.SUB)
    feed.setsockopt(zmq.XPUB_NODROP, 1)
    sink.rcvhwm = 0
    sink.subscribe(b"")
    sink.connect(address_out)
    assert sink.poll(30_000), "no welcome"
    sink.recv()
    feed.connect(address_in)
    assert feed.poll(30_000), "the daemon does not subscribe"

    def send() -> None:
        for frames in ticks:
            feed.send_multipart(frames)

    sender = threading.Thread(target=send)
    sender.start()
    received = []
    while len(received) < expected and sink.poll(30_000):
        received.append(sink.recv_multipart())
    sender.join()
    while sink.poll(200):  # anything beyond what is expected
        received.append(sink.recv_multipart())
    context.destroy(linger=0)
    return received


@pytest.mark.parametrize(
    "spec",
    [
        {"hidden": 32, "layers": 1, "horizon": 1},
        {
            "hidden": 24, "layers": 2, "horizon": 6, "season": 4, "base": "seasonal",
            "lags": (1, 4), "calendar": ("hour", "week"), "timezone": "Europe/Paris",
        },
    ],
    ids=["plain", "rich"],
)  # fmt: skip
def test_a_foreign_client_gets_one_equal_prediction_for_each_tick_in_order(
    tmp_path: Path, spec: dict[str, object]
) -> None:
    """1,000 series, 12 ticks each, in a random interleaving that keeps each series' order."""
    path = random_model_file(tmp_path, **spec)
    rng = np.random.default_rng(0)
    count, each = 1000, 12
    names = [f"site-{i}/é" for i in range(count)]
    values = 20 + rng.normal(size=(count, each)).cumsum(axis=1)
    order, position = rng.permutation(np.repeat(np.arange(count), each)), [0] * count
    ticks = []
    for i in order:
        k, position[i] = position[i], position[i] + 1
        payload = json.dumps({"ts": 1_700_000_000 + k * HOUR, "value": values[i, k]})
        ticks.append((names[i].encode(), payload.encode()))

    with start(tmp_path, path) as daemon:
        received = exchange(daemon.input, daemon.output, ticks, len(ticks))

    assert len(received) == len(ticks)
    by_series = defaultdict(list)
    for topic, payload in received:
        prediction = json.loads(payload)
        assert topic == b"prediction." + prediction["series"].encode()
        by_series[prediction["series"]].append(prediction)
    assert sorted(by_series) == sorted(names)
    for i, name in enumerate(names):
        oracle = Oracle(path)
        assert [p["seq"] for p in by_series[name]] == list(range(1, each + 1))
        for k, prediction in enumerate(by_series[name]):
            ts = 1_700_000_000 + k * HOUR
            assert prediction["ts"] == ts
            point, lower, upper = oracle.step(ts * 10**9, [values[i, k]])
            np.testing.assert_allclose(prediction["forecast"], point[:, 0], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(prediction["lower"], lower[:, 0], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(prediction["upper"], upper[:, 0], rtol=1e-4, atol=1e-4)


def test_memory_of_100_000_series_is_what_inspect_declares(tmp_path: Path) -> None:
    path = random_model_file(
        tmp_path,
        hidden=64,
        horizon=24,
        season=24,
        base="seasonal",
        lags=(1, 24),
        calendar=("hour",),
    )
    count = 100_000
    declared = Engine(load_model(path), max_series=count).bytes_per_series
    assert declared["recurrent"] == 2 * 1 * 64 * 4
    ticks = [
        (b"series-%06d" % i, b'{"ts": %d, "value": %d}' % (1_700_000_000 + k * HOUR, i % 100 + k))
        for k in range(2)
        for i in range(count)
    ]
    options = {"engine__max_series": count, "output__hwm": 10 * count, "input__hwm": 10 * count}
    with start(tmp_path, path):
        pass  # it may have to compile, which takes memory that is not given back
    with start(tmp_path, path, **options) as daemon:
        process = psutil.Process(daemon.process.pid)
        received = exchange(daemon.input, daemon.output, ticks, len(ticks))
        assert len(received) == len(ticks)
        assert daemon.metric("streamlstm_active_series") == count
        per_series = sum(declared.values())
        assert daemon.metric("streamlstm_state_bytes") == count * per_series
        resident = process.memory_info().rss
    assert resident <= 1.1 * count * per_series + CONSTANT
    assert resident >= 0.9 * count * per_series
