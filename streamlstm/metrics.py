"""What Prometheus reads: arrays that the loop alone writes, and a small HTTP server beside it."""

import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socket import AF_INET, AF_INET6
from socketserver import ThreadingTCPServer
from threading import Thread
from types import MappingProxyType
from typing import Any

import numpy as np
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
        "ticks_received": "Messages taken from the input.",
        "predictions_published": "Predictions handed to the output.",
        "batches": "Batches stepped.",
        "series_started": "Series seen for the first time.",
        "input_gaps": "Ticks that came after at least one was missed.",
        "checkpoint_failures": "Checkpoints that could not be written.",
        "functions_compiled": "Functions compiled since the start; none are once ready.",
    }
)
GAUGES: Mapping[str, str] = MappingProxyType(
    {
        "active_series": "Series kept.",
        "state_bytes": "Memory taken by the series kept.",
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


class MetricsError(OSError):
    """An address that cannot be served; the message is one line and says the mend."""


class Histogram:
    """How often values fell at or below each bound.

    Attributes:
        counts: (bounds + 1,) by bucket, the last beyond all bounds.
        sum: (1,) of all values.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """Begin with nothing seen."""
        self.bounds = bounds
        self.counts: NDArray[np.int64] = np.zeros(len(bounds) + 1, np.int64)
        self.sum: NDArray[np.float64] = np.zeros(1)

    def observe(self, value: float, times: int = 1) -> None:
        """Count ``value``, ``times`` over."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum[0] += value * times


class Metrics(Collector):
    """All metrics of one daemon; a collector to be registered.

    Attributes:
        counters: by name, without prefix and ``_total``; those of :data:`COUNTERS`.
        dropped: ticks dropped, by reason.
        gauges: by name; those of :data:`GAUGES` that are known.
        histograms: by name; those of :data:`HISTOGRAMS`.
        model: labels of ``model_info``.
        refresh: called before each scrape, in the scraper's thread, to fetch what others count.
    """

    def __init__(self) -> None:
        """Begin with nothing counted."""
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.dropped: dict[str, int] = {}
        self.gauges: dict[str, float] = {}
        self.histograms = {name: Histogram(bounds) for name, (bounds, _) in HISTOGRAMS.items()}
        self.model: dict[str, str] = {}
        self.refresh: Callable[[], None] = lambda: None

    def collect(self) -> Iterator[Metric]:
        """Every metric, as it stands."""
        self.refresh()
        for name, help in COUNTERS.items():
            yield CounterMetricFamily(PREFIX + name, help, value=self.counters[name])
        dropped = CounterMetricFamily(
            f"{PREFIX}ticks_dropped", "Ticks dropped, by reason.", labels=["reason"]
        )
        for reason, count in self.dropped.items():
            dropped.add_metric([reason], count)
        yield dropped
        for name, value in self.gauges.copy().items():
            yield GaugeMetricFamily(PREFIX + name, GAUGES[name], value=value)
        for name, histogram in self.histograms.items():
            bounds = [*map(str, histogram.bounds), "+Inf"]
            cumulated = np.cumsum(histogram.counts).tolist()
            yield HistogramMetricFamily(
                PREFIX + name,
                HISTOGRAMS[name][1],
                buckets=list(zip(bounds, cumulated, strict=True)),
                sum_value=float(histogram.sum[0]),
            )
        yield InfoMetricFamily(f"{PREFIX}model", "The model served.", value=self.model)


class Server(ThreadingTCPServer):
    """Serves /metrics, /-/healthy and, once ``ready`` is set, /-/ready from a thread of its own."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        """Listen on ``host``, at any free port where ``port`` is 0.

        Raises:
            MetricsError: the port is in use, or the address not this machine's.
        """
        self.address_family = AF_INET6 if ":" in host else AF_INET
        self.ready = False
        self.registry = CollectorRegistry()
        self.registry.register(metrics)
        ProcessCollector(registry=self.registry)
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise MetricsError(
                f"metrics on {host}:{port}: {error.strerror}; set metrics.host and metrics.port"
            ) from None
        at = f"[{host}]" if ":" in host else host
        self.url = f"http://{at}:{self.server_address[1]}"
        Thread(target=self.serve_forever, args=(0.1,), name="metrics", daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 30  # seconds a client may take to say what it wants

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/metrics":
                self._answer(HTTPStatus.OK, generate_latest(self.server.registry))
            case "/-/healthy":
                self._answer(HTTPStatus.OK, b"healthy\n")
            case "/-/ready" if self.server.ready:
                self._answer(HTTPStatus.OK, b"ready\n")
            case "/-/ready":
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, b"not ready\n")
            case _:
                self._answer(HTTPStatus.NOT_FOUND, b"see /metrics, /-/healthy, /-/ready\n")

    def _answer(self, status: HTTPStatus, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass
