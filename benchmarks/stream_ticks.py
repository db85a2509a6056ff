"""The ticks that :mod:`benchmarks.stream` sends, in each format; where a prediction says when."""

from __future__ import annotations

import functools
import importlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

EPOCH = 1_700_000_000_000_000_000
"""Nanoseconds added to CLOCK_MONOTONIC, so that timestamps look like today's: 19 digits."""
KEY = b"sensor-000000"
"""What a series is called, its number in the last six digits."""
TOPIC = b"prediction."
"""What the topic of a prediction begins with, before the series."""
BATCH = b"ticks.batch"
"""The topic of a message of the format arrow."""
MANY = 1000
"""Ticks in a message of the format arrow."""
CYCLE = 1 << 17
"""Ticks laid out, at least, before they repeat."""


class Ticks(NamedTuple):
    """Ticks in the order of sending, as bytes; each lies where it is to be sent from."""

    rows: NDArray[np.uint8]
    """(n, size) each a message"""
    split: int
    """where the second frame begins; 0: one frame"""
    stamp: int
    """where the timestamp is"""
    digits: bool
    """whether that is 19 digits, not an int64"""
    big: bool
    """whether that int64 is big endian"""
    many: int = 1
    """ticks in each message, their timestamps one after the other"""


class Reading(NamedTuple):
    """Where the sink finds the timestamp and the series of a prediction."""

    search: bool
    """the timestamp follows ``ts_ns`` in the last frame; else it is at ``stamp``, little endian"""
    stamp: int
    series: int
    """where six digits of the first frame say the series"""
    batch: bool = False
    """the last frame is an Arrow IPC stream of many rows, which says all that"""


def order_of(series: int, hot: bool) -> NDArray[np.int64]:
    """Each series once a round, in an order of its own; with ``hot`` every second tick is of 0."""
    random = np.random.default_rng(series)
    rounds = -(-CYCLE // series)
    order = np.concatenate([random.permutation(series) for _ in range(rounds)])
    if hot:
        order[::2] = 0
    return order


def spoilt_of(n: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of ``n`` ticks are warm, and which are of a version that nobody knows."""
    places = np.arange(n)
    warm, unsupported = places % 997 == 0, places % 1499 == 5
    return warm & ~unsupported, unsupported


def _digits(numbers: NDArray[np.int64], count: int) -> NDArray[np.uint8]:
    powers = 10 ** np.arange(count - 1, -1, -1)
    return (numbers[:, None] // powers % 10 + ord("0")).astype(np.uint8)


@functools.cache
def ticks_of(format: str, series: int, hot: bool, spoilt: bool = False) -> Ticks:
    """Lay the ticks out; with ``spoilt`` (binary alone) some are those of :func:`spoilt_of`."""
    order = order_of(series, hot)
    n, width = len(order), len(KEY)
    tenths = np.random.default_rng(0).integers(10_000, 99_999, n)  # values of 1.0000 to 9.9999

    def tile(template: bytes) -> NDArray[np.uint8]:
        rows = np.tile(np.frombuffer(template, np.uint8), (n, 1))
        rows[:, width - 6 : width] = _digits(order, 6)
        return rows

    match format:
        case "binary":
            rows = tile(KEY + b"\0\1\0" + bytes(16))
            rows[:, width + 11 :] = (tenths / 1e4).astype("<f8")[:, None].view(np.uint8)
            if spoilt:
                warm, unsupported = spoilt_of(n)
                rows[warm, width + 2] = 1
                rows[unsupported, width + 1] = 9
            return Ticks(rows, 0, width + 3, False, False)
        case "json":
            head = KEY + b'{"ts_ns":'
            rows = tile(head + b"0" * 19 + b',"value":0.0000}')
            figures = _digits(tenths, 5)
            at = len(head) + 19 + len(',"value":')
            rows[:, at], rows[:, at + 2 : at + 6] = figures[:, 0], figures[:, 1:]
            return Ticks(rows, width, len(head), True, False)
        case "msgpack":
            head = KEY + b"\x82\xa5ts_ns\xcf"
            rows = tile(head + bytes(8) + b"\xa5value\xcb" + bytes(8))
            rows[:, -8:] = (tenths / 1e4).astype(">f8")[:, None].view(np.uint8)
            return Ticks(rows, width, len(head), False, True)
        case "arrow":
            return _arrow_ticks(order, tenths / 1e4)
    raise ValueError(f"unknown format {format!r}")


def _arrow_ticks(order: NDArray[np.int64], values: NDArray[np.float64]) -> Ticks:
    """``MANY`` ticks a message: a topic, and an Arrow IPC stream with one record batch."""
    pa = importlib.import_module("pyarrow")
    digits = _digits(order, 6)
    marks = np.arange(MANY) + EPOCH
    rows = []
    for begin in range(0, len(order) - MANY + 1, MANY):
        some = slice(begin, begin + MANY)
        names = [KEY[:-6] + each.tobytes() for each in digits[some]]
        columns = {
            "series": pa.array(names, pa.binary()).cast(pa.utf8()),
            "ts": pa.array(marks, pa.timestamp("ns", "UTC")),
            "value": pa.array(values[some]),
        }
        batch, sink = pa.record_batch(columns), pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as stream:
            stream.write_batch(batch)
        rows.append(BATCH + bytes(sink.getvalue()))
    stamp = rows[0].index(marks.tobytes())
    table = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1).copy()
    return Ticks(table, len(BATCH), stamp, False, False, MANY)


def reading_of(format: str, topic: bytes) -> Reading:
    """How a prediction in ``format`` is read, or a tick that comes back (without a topic).

    ``lean`` is a binary tick's answer from a script: topic, NUL and at once the timestamp.
    """
    if format == "arrow":
        return Reading(False, 0, 0, batch=True)
    width = len(topic) + len(KEY)
    after = {"binary": 25 if topic else 3, "lean": 1}
    return Reading(format not in after, width + after.get(format, 0), width - 6)
