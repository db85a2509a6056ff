import contextlib
import itertools
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from streamlstm import metrics as room
from streamlstm.metrics import (
    COUNTERS,
    HISTOGRAMS,
    LATENCIES,
    LAYOUT,
    MOST_CLIENTS,
    Metrics,
    MetricsError,
    Server,
    stepped,
    took,
)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(Metrics(), "127.0.0.1", 0)
    yield server
    server.close()


def get(server: Server, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(server.url + path, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_latency_buckets_begin_at_10_us_and_grow_by_about_1_8() -> None:
    assert LATENCIES[0] == 1e-5
    assert LATENCIES[-1] > 10
    ratios = [b / a for a, b in itertools.pairwise(LATENCIES)]
    assert all(1.7 < ratio < 1.95 for ratio in ratios)


def step(metrics: Metrics, **changed: Any) -> None:
    """One batch of one tick, of a prediction, that took no time, but for what is ``changed``."""
    batch = {
        "ts": np.zeros(1, np.int64), "published": 1, "warm": 0, "now": 0,
        "step": 0.0, "encode": 0.0, "publish": 0.0, "tick_to_publish": 0.0,
    }  # fmt: skip
    stepped(metrics.values, *(batch | changed).values())


TIMES = st.sampled_from((*LATENCIES, *np.nextafter(LATENCIES, 99), 0.0, 1e-9, 20.0, 1e9))


@given(st.lists(st.tuples(st.integers(0, 70_000), st.integers(0, 1000), TIMES, TIMES)))
@settings(max_examples=50)
def test_a_batch_counts_in_the_first_bucket_whose_bound_is_not_below_it(
    batches: list[tuple[int, int, float, float]],
) -> None:
    metrics = Metrics()
    for ticks, published, one, other in batches:
        took(metrics.values, ticks, one)
        step(metrics, ts=np.zeros(ticks, np.int64), published=published,
             step=other, encode=one, publish=other, tick_to_publish=one)  # fmt: skip
    values = metrics.values[0]
    ticks, published, one, other = np.array(batches).reshape(-1, 4).T
    assert values["batches"] == len(batches)
    assert values["ticks_received"] == ticks.sum()
    assert values["predictions_published"] == published.sum()
    once = np.ones_like(ticks)
    for name, observed, times in (
        ("batch_size", ticks, once),
        ("decode_duration_seconds", one, once),
        ("step_duration_seconds", other, once),
        ("encode_duration_seconds", one, once),
        ("publish_duration_seconds", other, once),
        ("tick_to_publish_seconds", one, published),  # of each prediction, not of each batch
    ):
        at_or_below = [times[observed <= bound].sum() for bound in HISTOGRAMS[name][0]]
        counts = values[name]["counts"].cumsum()
        np.testing.assert_array_equal(counts, [*at_or_below, times.sum()])
        assert values[name]["sum"] == pytest.approx((observed * times).sum())


def test_the_lag_is_that_of_the_latest_tick_of_the_latest_batch() -> None:
    metrics = Metrics()
    step(metrics, ts=np.array([3, 9, 5]) * 10**9, now=11 * 10**9)
    assert metrics.values["event_lag_seconds"] == 2
    step(metrics, ts=np.array([4]) * 10**9, now=11 * 10**9)
    assert metrics.values["event_lag_seconds"] == 7


def test_without_a_record_nothing_is_counted() -> None:
    nothing = np.zeros(0, LAYOUT)  # of a warm-up
    took(nothing, 1, 1.0)
    stepped(nothing, np.zeros(0, np.int64), 0, 0, 0, 0.0, 0.0, 0.0, 0.0)


def test_a_scrape_tells_what_was_counted() -> None:
    metrics = Metrics()
    for _ in range(2):
        took(metrics.values, 3, 0.25)
        step(metrics, ts=np.zeros(3, np.int64), published=2)
    metrics.values["checkpoint_failures"] += 1
    metrics.model = {"model": "abc"}

    def refresh() -> None:
        metrics.dropped = {"late": 2, "malformed": 0}
        metrics.values["active_series"] = 5

    metrics.refresh = refresh
    server = Server(metrics, "127.0.0.1", 0)
    status, text = get(server, "/metrics")
    server.close()
    assert status == 200
    found = samples(text)
    nothing: frozenset[tuple[str, str]] = frozenset()
    assert found["streamlstm_ticks_received_total", nothing] == 6
    assert found["streamlstm_checkpoint_failures_total", nothing] == 1
    assert found["streamlstm_ticks_dropped_total", frozenset({("reason", "late")})] == 2
    assert found["streamlstm_active_series", nothing] == 5
    assert found["streamlstm_model_info", frozenset({("model", "abc")})] == 1
    assert found["streamlstm_batch_size_bucket", frozenset({("le", "2.0")})] == 0
    assert found["streamlstm_batch_size_bucket", frozenset({("le", "4.0")})] == 2
    assert found["streamlstm_batch_size_bucket", frozenset({("le", "+Inf")})] == 2
    assert found["streamlstm_batch_size_count", nothing] == 2
    assert found["streamlstm_batch_size_sum", nothing] == 6
    assert found["streamlstm_decode_duration_seconds_sum", nothing] == 0.5
    assert found["streamlstm_tick_to_publish_seconds_count", nothing] == 4
    for name in COUNTERS:
        assert (f"streamlstm_{name}_total", nothing) in found
    for name in HISTOGRAMS:
        assert (f"streamlstm_{name}_count", nothing) in found
    assert found["process_resident_memory_bytes", nothing] > 0


def test_what_is_not_known_yet_is_not_exposed(server: Server) -> None:
    assert "streamlstm_event_lag_seconds" not in get(server, "/metrics")[1]


def test_promtool_finds_nothing(server: Server) -> None:
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed")
    text = get(server, "/metrics")[1]
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_healthy_at_once_and_ready_when_told(server: Server) -> None:
    assert get(server, "/-/healthy")[0] == 200
    assert get(server, "/-/ready")[0] == 503
    server.ready = True
    assert get(server, "/-/ready")[0] == 200


@pytest.mark.parametrize("path", ["/", "/metricsx", "/-/", "/../etc/passwd"])
def test_other_paths_do_not_exist(server: Server, path: str) -> None:
    assert get(server, path)[0] == 404


def test_a_port_in_use_is_one_line_with_the_mend(server: Server) -> None:
    port = server.port
    with pytest.raises(MetricsError, match=r"in use; set metrics\.host and metrics\.port") as error:
        Server(Metrics(), "127.0.0.1", port)
    assert f"127.0.0.1:{port}" in str(error.value)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_of_another_machine(host: str) -> None:
    with pytest.raises(MetricsError, match=r"set metrics\.host"):
        Server(Metrics(), host, 0)


# clients that nobody can choose


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def read(client: socket.socket) -> bytes:
    """All that comes until the other end hangs up."""
    found = b""
    while came := client.recv(65_536):
        found += came
    return found


def ask(server: Server, *parts: bytes) -> bytes:
    with connect(server) as client:
        for part in parts:
            client.sendall(part)
        return read(client)


def test_the_head_of_an_answer(server: Server) -> None:
    head, _, body = ask(server, b"GET /metrics?a=b HTTP/1.1\r\nHost: a\r\n\r\n").partition(
        b"\r\n\r\n"
    )
    status, *fields = head.decode().split("\r\n")
    headers = dict(field.split(": ", 1) for field in fields)
    assert status == "HTTP/1.1 200 OK"
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert int(headers["Content-Length"]) == len(body) > 0
    assert headers["Connection"] == "close"
    assert parsedate_to_datetime(headers["Date"]).tzinfo


def test_head_gives_the_head_alone(server: Server) -> None:
    answer = ask(server, b"HEAD /metrics HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n")
    assert b"Content-Length: 0" not in answer


def test_a_request_may_come_in_pieces(server: Server) -> None:
    request = b"GET /-/healthy HTTP/1.1\r\nHost: a\r\n\r\n"
    with connect(server) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request:
            client.sendall(bytes([byte]))
        assert read(client).endswith(b"\r\n\r\nhealthy\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"DELETE / HTTP/1.1\r\n\r\n", b"405"),
        (b"GET /metrics\r\n\r\n", b"400"),
        (b"GET  /metrics HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/2\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x00\xff\r\n\r\n", b"400"),
        (b"\r\n\r\n", b"400"),
        (b"GET /" + b"x" * 8187, b"400"),
    ],
)
def test_what_is_no_request_is_answered_so(server: Server, request_: bytes, status: bytes) -> None:
    assert ask(server, request_).split(b" ")[1] == status
    assert get(server, "/-/healthy")[0] == 200


def test_a_scrape_that_fails_is_an_answer_and_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refresh() -> None:
        raise RuntimeError("broken")

    metrics = Metrics()
    metrics.refresh = refresh
    server = Server(metrics, "127.0.0.1", 0)
    assert get(server, "/metrics")[0] == 500
    assert get(server, "/-/healthy")[0] == 200
    server.close()
    assert "broken" in caplog.text


@pytest.mark.parametrize("said", [b"", b"GET /metrics HTTP/1.1\r\n"])
def test_idle_connections_take_no_thread_and_nobodys_place(server: Server, said: bytes) -> None:
    threads = threading.active_count()
    idle = [connect(server) for _ in range(200)]
    for client in idle:
        client.sendall(said)
    assert get(server, "/metrics")[0] == 200
    assert threading.active_count() == threads
    for client in idle[: -MOST_CLIENTS - 1]:  # the oldest made room
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    for client in idle:
        client.close()


def test_a_slow_client_is_cut_off_and_nobody_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "PATIENCE", 0.2)
    large = Metrics()
    large.model = {"model": "x" * 20_000_000}
    server = Server(large, "127.0.0.1", 0)
    with connect(server) as mute, connect(server) as deaf:
        deaf.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")  # and never reads it
        assert get(server, "/-/healthy")[0] == 200
        assert mute.recv(1) == b""
        with contextlib.suppress(ConnectionResetError):
            assert len(read(deaf)) < 20_000_000
    server.close()


def test_close_hangs_up_and_frees_the_port() -> None:
    server = Server(Metrics(), "127.0.0.1", 0)
    with connect(server) as client:
        get(server, "/-/healthy")
        server.close()
        assert client.recv(1) == b""
    Server(Metrics(), "127.0.0.1", server.port).close()
