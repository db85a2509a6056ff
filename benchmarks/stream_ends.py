"""The feeder and the sink of :mod:`benchmarks.stream`: processes far faster than what they measure.

Both call libzmq's C functions from compiled loops. Messages are laid out beforehand, one after the
other in the order in which they are sent; only the timestamp of a tick is written as it goes. That
timestamp is the time when the tick was due, by CLOCK_MONOTONIC plus a constant, and every system
hands it on, so that the sink knows how late a prediction is.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite.binding
import numpy as np
import zmq
from numba import carray, njit, types
from numpy.typing import NDArray

from benchmarks.stream_ticks import EPOCH, Reading, ticks_of

SENT, RECEIVED = 0, 16
"""Places in the memory that feeder and sink share; apart, so that they share no cache line."""

# --- the C functions ------------------------------------------------------------------------------

_pointer, _int, _size = types.uintp, types.int32, types.uintp


def _declare(name: str, *signature: Any) -> Any:
    result, *arguments = signature
    return types.ExternalFunction(name, result(*arguments))


_zmq_send = _declare("zmq_send", _int, _pointer, _pointer, _size, _int)
_zmq_msg_recv = _declare("zmq_msg_recv", _int, _pointer, _pointer, _int)
_zmq_msg_more = _declare("zmq_msg_more", _int, _pointer)
_zmq_msg_data = _declare("zmq_msg_data", types.CPointer(types.uint8), _pointer)
_zmq_msg_size = _declare("zmq_msg_size", _size, _pointer)
_clock_gettime = _declare("clock_gettime", _int, _int, _pointer)
_clock_nanosleep = _declare("clock_nanosleep", _int, _int, _int, _pointer, _pointer)
_MONOTONIC, _ABSOLUTE, _MORE = 1, 1, 2


def load_libzmq() -> ctypes.CDLL:
    """Make the libzmq that pyzmq brings along known to compiled code."""
    beside = Path(zmq.__file__).parents[1] / "pyzmq.libs"
    path = str(next(iter(beside.glob("libzmq*.so*")), "libzmq.so.5"))
    llvmlite.binding.load_library_permanently(path)
    return ctypes.CDLL(path)


@njit(cache=True, nogil=True)
def _now(clock: NDArray[np.int64]) -> int:
    _clock_gettime(_MONOTONIC, clock.ctypes.data)
    return clock[0] * 1_000_000_000 + clock[1]


@njit(cache=True, nogil=True)
def _sleep_until(clock: NDArray[np.int64], when: int) -> None:
    clock[0], clock[1] = when // 1_000_000_000, when % 1_000_000_000
    _clock_nanosleep(_MONOTONIC, _ABSOLUTE, clock.ctypes.data, 0)


# --- the loops ------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _write_stamps(row: NDArray[np.uint8], ticks: Any, ts: int) -> None:
    """Write ``ts``; where a message has many ticks, one nanosecond more for each."""
    at = ticks.stamp
    if ticks.many > 1:
        row[at : at + 8 * ticks.many].view(np.int64)[:] = np.arange(ts, ts + ticks.many)
        return
    if ticks.digits:
        for k in range(18, -1, -1):
            rest = ts // 10
            row[at + k] = 48 + (ts - 10 * rest)
            ts = rest
    elif ticks.big:
        for k in range(7, -1, -1):
            row[at + k] = ts & 255
            ts >>= 8
    else:
        for k in range(8):
            row[at + k] = ts & 255
            ts >>= 8


@njit(cache=True, nogil=True)
def _send(socket: int, row: NDArray[np.uint8], split: int, size: int) -> None:
    """Send one message, however long it takes; libzmq returns now and then so that we may leave."""
    at = row.ctypes.data
    if split:
        while _zmq_send(socket, at, split, _MORE) < 0:
            pass
    while _zmq_send(socket, at + split, size - split, 0) < 0:
        pass


@njit(cache=True, nogil=True)
def feed_closed(
    socket: int,
    ticks: Any,
    position: int,
    until: int,
    most: int,
    shared: NDArray[np.int64],
    window: int,
) -> int:
    """Send as fast as it goes until a time, ``most`` ticks at most; returns how many were sent.

    No more than ``window`` ticks are on their way at any moment: fewer than any queue holds.
    """
    clock = np.zeros(2, np.int64)
    n, size = ticks.rows.shape
    now = _now(clock)
    ts = now + EPOCH
    sent, allowed = 0, 0
    rest = 50_000 if ticks.many == 1 else 1_000_000  # a fraction of what a window takes
    begun = shared[SENT]
    while sent < most:
        if sent >= allowed:
            now = _now(clock)
            ts = max(ts, now + EPOCH)
            if now >= until:
                break
            room = window - (begun + sent - shared[RECEIVED])
            if room <= 0:
                shared[SENT] = begun + sent
                _sleep_until(clock, now + rest)
                continue
            allowed = min(sent + min(room, 64), most)  # to look at the clock now and then
        row = ticks.rows[position]
        ts += ticks.many
        _write_stamps(row, ticks, ts)
        _send(socket, row, ticks.split, size)
        position = position + 1 if position + 1 < n else 0
        sent += ticks.many
    shared[SENT] = begun + sent
    return sent


@njit(cache=True, nogil=True)
def feed_open(
    socket: int, ticks: Any, position: int, start: int, until: int, rate: float, shared: Any
) -> int:
    """Send each tick when it is due, or at once where that is past; returns how many were sent."""
    clock = np.zeros(2, np.int64)
    n, size = ticks.rows.shape
    sent = 0
    now = _now(clock)
    while True:
        due = start + np.int64(sent * (1e9 / rate))
        if due >= until:
            break
        if due > now:
            now = _now(clock)
            if due > now:
                _sleep_until(clock, due)
                now = _now(clock)
        row = ticks.rows[position]
        _write_stamps(row, ticks, due + EPOCH)
        _send(socket, row, ticks.split, size)
        position = position + 1 if position + 1 < n else 0
        sent += 1
        shared[SENT] += 1
        if sent % 256 == 0:
            now = _now(clock)
            if now >= until:  # hopelessly behind
                break
    return sent


@njit(cache=True, nogil=True)
def _read_stamp(data: NDArray[np.uint8], size: int, reading: Any) -> np.int64:
    """The timestamp of a prediction; 0 where there is none."""
    ts = np.int64(0)
    if not reading.search:
        if size >= reading.stamp + 8:
            for k in range(7, -1, -1):
                ts = ts << 8 | np.int64(data[reading.stamp + k])
        return ts
    for at in range(size - 14):
        if (
            data[at] == 116
            and data[at + 1] == 115
            and data[at + 2] == 95
            and data[at + 3] == 110
            and data[at + 4] == 115
        ):
            at += 5
            if data[at] == 0xCF or data[at] == 0xD3:  # msgpack's uint64 and int64
                for k in range(1, 9):
                    ts = ts << 8 | np.int64(data[at + k])
                return ts
            while at < size and (data[at] < 48 or data[at] > 57):
                at += 1
            while at < size and 48 <= data[at] <= 57:
                ts = 10 * ts + np.int64(data[at]) - 48
                at += 1
            return ts
    return np.int64(0)


@njit(cache=True, nogil=True)
def _read_series(data: NDArray[np.uint8], size: int, reading: Any) -> np.int64:
    if size < reading.series + 6:
        return np.int64(-1)
    return _digits(data, reading.series)


@njit(cache=True, nogil=True)
def _digits(data: NDArray[np.uint8], at: int) -> np.int64:
    """The number that six digits say."""
    number = np.int64(0)
    for k in range(6):
        number = np.int64(10 * number + data[at + k] - 48)
    return number


@njit(cache=True, nogil=True)
def _number(data: NDArray[np.uint8], at: int, size: int) -> np.int64:
    number = np.int64(0)
    for k in range(size - 1, -1, -1):
        number = number << 8 | np.int64(data[at + k])
    return number


@njit(cache=True, nogil=True)
def _table_field(data: NDArray[np.uint8], table: np.int64, field: int) -> np.int64:
    """Where a field of a table of FlatBuffers is; it must be there."""
    vtable = table - np.int64(np.int32(_number(data, table, 4)))
    return table + _number(data, vtable + 4 + 2 * field, 2)


@njit(cache=True, nogil=True)
def _read_batch(data: NDArray[np.uint8]) -> tuple[np.int64, np.int64, np.int64]:
    """Rows of the record batch in an Arrow IPC stream; series and timestamp of the last.

    The first columns are ``series``, utf8 that ends in six digits, and ``ts``.
    """
    begin = 8 + _number(data, 4, 4) + 8  # behind the schema
    body = begin + _number(data, begin - 4, 4)
    header = _table_field(data, begin + _number(data, begin, 4), 2)
    header += _number(data, header, 4)
    rows = _number(data, _table_field(data, header, 0), 8)
    buffers = _table_field(data, header, 2)
    buffers += _number(data, buffers, 4) + 4
    ends = body + _number(data, buffers + 16, 8)  # the second: where each name ends
    names = body + _number(data, buffers + 32, 8)
    stamps = body + _number(data, buffers + 64, 8)
    if rows == 0:
        return rows, np.int64(-1), np.int64(0)
    series = _digits(data, names + _number(data, ends + 4 * rows, 4) - 6)
    return rows, series, _number(data, stamps + 8 * (rows - 1), 8)


@njit(cache=True, nogil=True)
def drain(
    socket: int,
    message: NDArray[np.uint8],
    reading: Any,
    until: int,
    most: int,
    every: int,
    last: NDArray[np.int64],
    lateness: NDArray[np.int64],
    shared: NDArray[np.int64],
) -> tuple[int, int, int, int, int]:
    """Take predictions until a time, or ``most``.

    Every so many are looked at: are the timestamps of a series rising, and how late is it?
    ``lateness`` (m, 2) takes when it was due and by how many nanoseconds it is late, ring-wise.

    Returns how many came, when the first and the last, how many were looked at, and how many of
    those came out of order.
    """
    clock = np.zeros(2, np.int64)
    at = message.ctypes.data
    count, first, latest, seen, disorder = 0, 0, 0, 0, 0
    begun = shared[RECEIVED]
    while count < most:
        if _zmq_msg_recv(at, socket, 0) < 0:  # a time limit of the socket
            if _now(clock) >= until:
                break
            continue
        size = _zmq_msg_size(at)
        series = np.int64(-1)
        look = (count + 1) % every == 0
        if look:
            series = _read_series(carray(_zmq_msg_data(at), (size,)), size, reading)
        more = _zmq_msg_more(at)
        while more:
            _zmq_msg_recv(at, socket, 0)
            more = _zmq_msg_more(at)
        size = _zmq_msg_size(at)
        if size < 20:  # the welcome
            continue
        ts = np.int64(0)
        if reading.batch:
            rows, series, ts = _read_batch(carray(_zmq_msg_data(at), (size,)))
            count += rows
            look = True
        else:
            count += 1
        shared[RECEIVED] = begun + count
        if look:
            now = _now(clock)
            if not reading.batch:
                ts = _read_stamp(carray(_zmq_msg_data(at), (size,)), size, reading)
            if series < 0 or series >= len(last) or ts <= last[series]:
                disorder += 1
            else:
                last[series] = ts
            place = seen % len(lateness)
            lateness[place, 0] = ts - EPOCH
            lateness[place, 1] = now - (ts - EPOCH)
            seen += 1
        elif count % 64 == 0 or count == 1:
            now = _now(clock)
        else:
            continue
        if first == 0:
            first = now
        latest = now
        if now >= until:
            break
    return count, first, latest, seen, disorder


# --- the processes --------------------------------------------------------------------------------


class Feeder:
    """The process that sends ticks, from within."""

    def __init__(self, memory: Any) -> None:
        load_libzmq()
        self._shared = np.frombuffer(memory, np.int64)
        self._context = zmq.Context()
        ctypes.CDLL(None).prctl(29, 1, 0, 0, 0)  # wake up from a sleep within a microsecond

    def open(self, endpoint: str, format: str, series: int, hot: bool, spoilt: bool) -> None:
        """Connect, and wait until the other side has subscribed."""
        self._ticks, self._position = ticks_of(format, series, hot, spoilt), 0
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.xpub_nodrop = True
        self._socket.sndhwm = 10_000
        self._socket.sndtimeo = 1000
        self._socket.linger = 0
        self._socket.connect(endpoint)
        if not self._socket.poll(10_000):
            raise TimeoutError(f"{endpoint}: nobody subscribes")

    def closed(self, until: int, most: int, window: int) -> int:
        """Send as fast as the system under test takes it."""
        sent = feed_closed(
            self._socket.underlying, self._ticks, self._position, until, most, self._shared, window
        )
        self._advance(sent)
        return sent

    def open_loop(self, start: int, until: int, rate: float) -> int:
        """Send by the clock."""
        sent = feed_open(
            self._socket.underlying, self._ticks, self._position, start, until, rate, self._shared
        )
        self._advance(sent)
        return sent

    def _advance(self, sent: int) -> None:
        self._position = (self._position + sent // self._ticks.many) % len(self._ticks.rows)

    def close(self) -> None:
        """Let go of the connection."""
        self._socket.close(0)


class Drained(NamedTuple):
    """What a turn of the sink brought."""

    taken: int
    first: int
    """CLOCK_MONOTONIC"""
    last: int
    disorder: int
    lateness: NDArray[np.int64]
    """(n, 2) when each was due, and how many nanoseconds later it came"""


class Sink:
    """The process that takes predictions, from within."""

    def __init__(self, memory: Any) -> None:
        self._shared = np.frombuffer(memory, np.int64)
        self._context = zmq.Context()
        self._message = np.zeros(64, np.uint8)  # a zmq_msg_t
        load_libzmq().zmq_msg_init(ctypes.c_void_p(self._message.ctypes.data))
        self._lateness = np.zeros((1 << 21, 2), np.int64)

    def open(self, endpoint: str, reading: Reading, series: int, welcome: bool) -> None:
        """Connect and subscribe to everything; wait to be told so where there is a welcome."""
        self._reading = reading
        self._last = np.zeros(series, np.int64)
        self._socket = self._context.socket(zmq.SUB)
        self._socket.rcvhwm = 0
        self._socket.rcvtimeo = 10_000
        self._socket.linger = 0
        self._socket.subscribe(b"")
        self._socket.connect(endpoint)
        if welcome:
            self._socket.recv()
        self._socket.rcvtimeo = 20

    def drain(self, until: int, most: int, every: int) -> Drained:
        """Take what comes until a time, or so many."""
        count, first, last, seen, disorder = drain(
            self._socket.underlying,
            self._message,
            self._reading,
            until,
            most,
            every,
            self._last,
            self._lateness,
            self._shared,
        )
        lateness = self._lateness[: min(seen, len(self._lateness))]
        return Drained(count, first, last, disorder, lateness.copy())

    def close(self) -> None:
        """Let go of the connection."""
        self._socket.close(0)


_processes = multiprocessing.get_context("spawn")


def shared_counters() -> Any:
    """Memory that feeder and sink are to share."""
    return _processes.RawArray("q", 64)


class End:
    """One of the two, from outside: a process, and calls of its methods."""

    def __init__(self, kind: type[Any], *args: Any) -> None:
        self._pipe, theirs = _processes.Pipe()
        self._process = _processes.Process(target=_serve, args=(theirs, kind, args), daemon=True)
        self._process.start()
        self.pid = self._process.pid or 0

    def start(self, method: str, *args: Any) -> None:
        """Call a method and do not wait."""
        self._pipe.send((method, args))

    def result(self) -> Any:
        """Wait for what the method returns."""
        good, value = self._pipe.recv()
        if not good:
            raise RuntimeError(value)
        return value

    def call(self, method: str, *args: Any) -> Any:
        """Call a method and wait."""
        self.start(method, *args)
        return self.result()

    def stop(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(5)


def _serve(pipe: Connection, kind: type[Any], args: tuple[Any, ...]) -> None:
    end = kind(*args)
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, getattr(end, method)(*arguments)))
        except Exception:
            pipe.send((False, traceback.format_exc()))
