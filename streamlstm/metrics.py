"""What Prometheus reads: one record that compiled code writes, and a small HTTP server."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import formatdate
from http import HTTPStatus
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from socket import AF_INET, AF_INET6, SO_REUSEADDR, SOL_SOCKET, socket
from threading import Thread
from types import MappingProxyType
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

PREFIX = "streamlstm_"
LATENCIES = tuple(float(f"{1e-5 * 1.8**k:.2g}") for k in range(25))
"""Seconds: bounds of the buckets, from 10 us to 13 s."""
SIZES = tuple(float(1 << k) for k in range(17))
"""Ticks: bounds of the buckets, powers of 2."""
COUNTERS: Mapping[str, str] = MappingProxyType(
    {
        "ticks_received": "Ticks taken from the input.",
        "predictions_published": "Predictions handed to the output.",
        "batches": "Batches stepped.",
        "ticks_warm": "Ticks that moved their series in silence.",
        "ticks_coalesced": "Ticks skipped because a later one of their series waited.",
        "series_started": "Series seen for the first time.",
        "series_quarantined": "Series begun anew since their state or forecast was not finite.",
        "input_gaps": "Ticks that came after at least one was missed.",
        "subscriber_overflows": "Times that a subscriber's queue was found full; it loses what"
        " follows until it has read half of it.",
        "checkpoint_failures": "Checkpoints that could not be written.",
        "journal_bytes": "Bytes written to the journal.",
        "journal_failures": "Times that the journal could not be written or synced.",
        "ticks_not_journalled": "Ticks stepped while the journal could not be written.",
        "functions_compiled": "Functions compiled since the start; none are once ready.",
    }
)
GAUGES: Mapping[str, str] = MappingProxyType(
    {
        "active_series": "Series kept.",
        "state_bytes": "Memory taken by the series kept.",
        "pending_ticks": "Ticks taken from the input and not yet stepped.",
        "event_lag_seconds": "From the latest timestamp in the latest batch to its arrival.",
        "checkpoint_last_success_timestamp_seconds": "When a checkpoint was last written.",
    }
)
HISTOGRAMS: Mapping[str, tuple[tuple[float, ...], str]] = MappingProxyType(
    {
        "tick_to_publish_seconds": (
            LATENCIES,
            "From taking a tick from the input to handing its prediction to the output.",
        ),
        "decode_duration_seconds": (LATENCIES, "Decoding a batch."),
        "step_duration_seconds": (LATENCIES, "Stepping a batch."),
        "encode_duration_seconds": (LATENCIES, "Encoding the predictions of a batch."),
        "publish_duration_seconds": (LATENCIES, "Handing them to the output."),
        "batch_size": (SIZES, "Ticks in a batch."),
    }
)
LAYOUT = np.dtype(
    [
        *((name, np.int64) for name in COUNTERS),
        *((name, np.float64) for name in GAUGES),
        *(
            (name, [("counts", np.int64, (len(bounds) + 1,)), ("sum", np.float64)])
            for name, (bounds, _) in HISTOGRAMS.items()
        ),
    ]
)
"""The record of all values. Of a histogram: how many fell into each bucket, the last beyond all
bounds, and the sum of all."""
MOST_CLIENTS = 32
"""Connections kept at once; the oldest makes room for one more."""
PATIENCE = 5.0
"""Seconds that a client may take from connecting to having read its answer."""
LONGEST_REQUEST = 8192
"""Bytes of a request, all its headers included."""

_log = logging.getLogger("streamlstm")


class MetricsError(OSError):
    """An address that cannot be served; the message is one line and says the mend."""


class Metrics(Collector):
    """All metrics of one daemon; a collector to be registered.

    Attributes:
        values: (1,) of :data:`LAYOUT`; a gauge that is not known yet is NaN.
        dropped: ticks dropped, by reason.
        changed: ticks taken otherwise than as they came, by policy.
        model: labels of ``model_info``.
        refresh: called before each scrape, in the scraper's thread, to fetch what others count.
    """

    def __init__(self) -> None:
        """Begin with nothing counted."""
        self.values: NDArray[np.void] = np.zeros(1, LAYOUT)
        for name in GAUGES:
            self.values[name] = math.nan
        self.dropped: Mapping[str, int] = {}
        self.changed: Mapping[str, int] = {}
        self.model: dict[str, str] = {}
        self.refresh: Callable[[], None] = lambda: None

    def collect(self) -> Iterator[Metric]:
        """Every metric, as it stands."""
        self.refresh()
        values = self.values.copy()[0]  # of one moment, give or take a batch
        for name, help in COUNTERS.items():
            yield CounterMetricFamily(PREFIX + name, help, value=int(values[name]))
        for name, help, label, counts in (
            ("ticks_dropped", "Ticks dropped, by reason.", "reason", self.dropped),
            (
                "ticks_adjusted",
                "Ticks taken otherwise than as they came, by policy.",
                "policy",
                self.changed,
            ),
        ):
            family = CounterMetricFamily(PREFIX + name, help, labels=[label])
            for value, count in counts.items():
                family.add_metric([value], count)
            yield family
        for name, help in GAUGES.items():
            if not math.isnan(values[name]):
                yield GaugeMetricFamily(PREFIX + name, help, value=float(values[name]))
        for name, (bounds, help) in HISTOGRAMS.items():
            cumulated = np.cumsum(values[name]["counts"]).tolist()
            yield HistogramMetricFamily(
                PREFIX + name,
                help,
                buckets=list(zip([*map(str, bounds), "+Inf"], cumulated, strict=True)),
                sum_value=float(values[name]["sum"]),
            )
        yield InfoMetricFamily(f"{PREFIX}model", "The model served.", value=self.model)


class Server:
    """Serves /metrics, /-/healthy and, once ``ready`` is set, /-/ready from a thread of its own.

    One request a connection (RFC 9112), GET or HEAD. One thread serves all clients, so that none
    can take more of the machine than ``MOST_CLIENTS`` requests and answers, nor wait for another
    one that is slow.
    """

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        """Listen on ``host``, at any free port where ``port`` is 0.

        Raises:
            MetricsError: the port is in use, or the address not this machine's.
        """
        self.ready = False
        self.registry = CollectorRegistry()
        self.registry.register(metrics)
        ProcessCollector(registry=self.registry)
        self._listener = socket(AF_INET6 if ":" in host else AF_INET)
        self._listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        self._listener.setblocking(False)
        try:
            self._listener.bind((host, port))
            self._listener.listen()
        except OSError as error:
            self._listener.close()
            raise MetricsError(
                f"metrics on {host}:{port}: {error.strerror}; set metrics.host and metrics.port"
            ) from None
        self.port: int = self._listener.getsockname()[1]
        at = f"[{host}]" if ":" in host else host
        self.url = f"http://{at}:{self.port}"
        self._clients: dict[int, _Client] = {}  # by file descriptor, the oldest first
        self._wakeup, self._end = os.pipe()
        self._selector = DefaultSelector()
        self._selector.register(self._listener, EVENT_READ)
        self._selector.register(self._wakeup, EVENT_READ)
        self._thread = Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more, and hang up."""
        os.close(self._end)
        self._thread.join()
        for client in [*self._clients.values()]:
            self._hang_up(client)
        self._listener.close()
        self._selector.close()
        os.close(self._wakeup)

    def _serve(self) -> None:
        while True:
            oldest = next(iter(self._clients.values()), None)
            wait = None if oldest is None else max(0.0, oldest.deadline - time.monotonic())
            ready = [key.fd for key, _ in self._selector.select(wait)]
            if self._wakeup in ready:
                return
            for client in [self._clients[fd] for fd in ready if fd in self._clients]:
                self._attend(client)
            if oldest is not None and time.monotonic() >= oldest.deadline:
                self._hang_up(oldest)
            if self._listener.fileno() in ready:
                self._accept()

    def _accept(self) -> None:
        try:
            client = _Client(self._listener.accept()[0])
        except OSError:  # of file descriptors, maybe, there are none left: do not spin
            time.sleep(0.1)
            return
        if len(self._clients) == MOST_CLIENTS:
            self._hang_up(next(iter(self._clients.values())))
        client.socket.setblocking(False)
        self._clients[client.socket.fileno()] = client
        self._selector.register(client.socket, EVENT_READ)

    def _attend(self, client: "_Client") -> None:
        """Read what has come of a request, or send what there is room for of the answer."""
        try:
            if not client.answer:
                came = client.socket.recv(LONGEST_REQUEST)
                client.request += came
                if not came:
                    self._hang_up(client)
                elif b"\r\n\r\n" in client.request or len(client.request) >= LONGEST_REQUEST:
                    client.answer = self._answer(client.request)
                    self._selector.modify(client.socket, EVENT_WRITE)
                return
            client.answer = client.answer[client.socket.send(client.answer) :]
            if not client.answer:
                self._hang_up(client)
        except BlockingIOError:
            pass
        except OSError:
            self._hang_up(client)

    def _hang_up(self, client: "_Client") -> None:
        if self._clients.pop(client.socket.fileno(), None):
            self._selector.unregister(client.socket)
            client.socket.close()

    def _answer(self, request: bytes) -> bytes:
        line = request.partition(b"\r\n")[0].split(b" ")
        match line:
            case [b"GET" | b"HEAD", path, b"HTTP/1.1" | b"HTTP/1.0"]:
                status, body = self._look_up(path.partition(b"?")[0])
            case [_, _, b"HTTP/1.1" | b"HTTP/1.0"]:
                status, body = HTTPStatus.METHOD_NOT_ALLOWED, b"GET or HEAD\n"
            case _:
                status, body = HTTPStatus.BAD_REQUEST, b"HTTP/1.1, please\n"
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\n"
            f"Date: {formatdate(usegmt=True)}\r\n"
            "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\n"
            "Allow: GET, HEAD\r\n"
            "Connection: close\r\n\r\n"
        ).encode()
        return head if line[0] == b"HEAD" else head + body

    def _look_up(self, path: bytes) -> tuple[HTTPStatus, bytes]:
        match path:
            case b"/metrics":
                try:
                    return HTTPStatus.OK, generate_latest(self.registry)
                except Exception:
                    _log.exception("a scrape failed")
                    return HTTPStatus.INTERNAL_SERVER_ERROR, b"see the log\n"
            case b"/-/healthy":
                return HTTPStatus.OK, b"healthy\n"
            case b"/-/ready" if self.ready:
                return HTTPStatus.OK, b"ready\n"
            case b"/-/ready":
                return HTTPStatus.SERVICE_UNAVAILABLE, b"not ready\n"
        return HTTPStatus.NOT_FOUND, b"see /metrics, /-/healthy, /-/ready\n"


class _Client:
    """A connection: what it asked so far, or what is still to be sent."""

    def __init__(self, socket: socket) -> None:
        self.socket, self.deadline = socket, time.monotonic() + PATIENCE
        self.request, self.answer = b"", b""


# --- compiled -------------------------------------------------------------------------------------

_LATENCIES, _SIZES = np.array(LATENCIES), np.array(SIZES)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def took(values: NDArray[np.void], ticks: int, decode: float) -> None:
    """Count a batch that was taken from the input, and decoded in so many seconds."""
    for record in values:
        record.ticks_received += ticks
        _observe(record.decode_duration_seconds, _LATENCIES, decode, 1)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def stepped(
    values: NDArray[np.void],
    ts: NDArray[np.int64],
    published: int,
    warm: int,
    now: int,
    step: float,
    encode: float,
    publish: float,
    tick_to_publish: float,
) -> None:
    """Count a batch that was stepped, and its predictions that were handed to the output.

    Args:
        values: (1,) of :data:`LAYOUT`; none: nothing is counted.
        ts: (ticks,) ns since the epoch.
        published: predictions.
        warm: ticks without one, that were taken nevertheless.
        now: ns since the epoch.
        step, encode, publish: seconds that each stage took.
        tick_to_publish: seconds since the first of the ticks was taken from the input.
    """
    for record in values:
        record.predictions_published += published
        record.ticks_warm += warm
        record.batches += 1
        latest = ts[0] if len(ts) else now
        for i in range(1, len(ts)):
            latest = max(latest, ts[i])
        record.event_lag_seconds = (now - latest) / 1e9
        _observe(record.batch_size, _SIZES, len(ts), 1)
        _observe(record.step_duration_seconds, _LATENCIES, step, 1)
        _observe(record.encode_duration_seconds, _LATENCIES, encode, 1)
        _observe(record.publish_duration_seconds, _LATENCIES, publish, 1)
        _observe(record.tick_to_publish_seconds, _LATENCIES, tick_to_publish, published)


@njit(cache=True, error_model="numpy", _nrt=False)
def _observe(histogram: Any, bounds: NDArray[np.float64], value: float, times: int) -> None:
    """Count ``value``, ``times`` over, in the first bucket whose bound is not below it."""
    histogram.counts[np.searchsorted(bounds, value)] += times
    histogram.sum += value * times
