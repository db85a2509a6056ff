"""How late predictions are: ticks sent by the clock, timed from when each was due.

The systems take turns in short windows, a bare libzmq forwarder among them. Intervals are by
bootstrap over windows, since the ticks of one window share its luck.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

BOUNDS = np.geomspace(1.0, 1e8, 8001)
"""Of the bins of a histogram, microseconds: 0.23 % wide."""
PERCENTILES = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
DRAWS = 1000


class Window(NamedTuple):
    """What one window brought."""

    counts: NDArray[np.int64]
    """ticks in each bin"""
    due: int
    """ticks that were due"""
    lost: int


def window_of(lateness: NDArray[np.int64], begin: int, end: int, rate: float, lost: int) -> Window:
    """Of ``lateness`` (n, 2), the ticks due from ``begin`` on, nanoseconds."""
    inside = (lateness[:, 0] >= begin) & (lateness[:, 0] < end)
    microseconds = np.clip(lateness[inside, 1] / 1e3, BOUNDS[0], BOUNDS[-1])
    counts = np.histogram(microseconds, BOUNDS)[0]
    return Window(counts, round((end - begin) * rate / 1e9), lost)


def percentiles(counts: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Microseconds, for each row of ``counts`` (..., bins)."""
    ranks = counts.cumsum(axis=-1)
    total = ranks[..., -1:]
    middles = np.sqrt(BOUNDS[:-1] * BOUNDS[1:])
    return {
        name: middles[np.minimum((ranks < total * share).sum(axis=-1), len(middles) - 1)]
        for name, share in PERCENTILES.items()
    }


def resampled(windows: list[Window]) -> dict[str, NDArray[np.float64]]:
    """Percentiles of ``DRAWS`` bootstrap samples; the same draws whenever there are as many."""
    counts = np.array([window.counts for window in windows])
    draws = np.random.default_rng(0).multinomial(
        len(windows), np.full(len(windows), 1 / len(windows)), DRAWS
    )
    return percentiles(draws @ counts)


def interval(samples: NDArray[np.float64]) -> list[float]:
    """95 %."""
    return [float(each) for each in np.percentile(samples, [2.5, 97.5])]


def summary(windows: list[Window], echo: list[Window], plain: list[Window]) -> dict[str, Any]:
    """Latencies, against the forwarder and against the undisturbed daemon of the same windows."""
    whole = {
        name: percentiles(sum((window.counts for window in each), np.zeros(len(BOUNDS) - 1, int)))
        for name, each in (("own", windows), ("echo", echo), ("plain", plain))
    }
    own, theirs, undisturbed = resampled(windows), resampled(echo), resampled(plain)
    answered = sum(int(window.counts.sum()) for window in windows)
    return {
        "latency_us": {name: float(whole["own"][name]) for name in PERCENTILES},
        "latency_us_interval": {name: interval(own[name]) for name in PERCENTILES},
        "times_echo": {
            name: float(whole["own"][name] / whole["echo"][name]) for name in PERCENTILES
        },
        "times_echo_interval": {name: interval(own[name] / theirs[name]) for name in PERCENTILES},
        "added_us": {
            name: float(whole["own"][name] - whole["plain"][name]) for name in PERCENTILES
        },
        "added_us_interval": {
            name: interval(own[name] - undisturbed[name]) for name in PERCENTILES
        },
        "answered_of_due": answered / sum(window.due for window in windows),
        "lost": sum(window.lost for window in windows),
    }


@contextlib.contextmanager
def scraping(url: str | None, every: float = 1.0) -> Iterator[None]:
    """Ask for the metrics every second, as Prometheus does, and throw them away."""
    if url is None:
        yield
        return
    place = urlsplit(url)
    done = threading.Event()

    def scrape() -> None:
        while not done.wait(every):
            with socket.create_connection((place.hostname or "", place.port or 80)) as connection:
                connection.sendall(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
                while connection.recv(1 << 20):
                    pass

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def soon(seconds: float) -> int:
    """So long from now, by CLOCK_MONOTONIC."""
    return time.monotonic_ns() + int(1e9 * seconds)
