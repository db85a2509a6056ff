"""What json and msgpack have in common: a map of fields, read by msgspec where it is unusual.

**Ticks.** Two frames, ``[series, payload]``, or one frame whose payload carries the series.
``series`` is UTF-8 without NUL. Fields of the payload, a map:

===========  =======================================================================================
``value``    number; null (or NaN) where it is missing
``values``   list of numbers, one for each input of the model, instead of ``value``
``ts``       Unix seconds, read from the decimal text to the nanosecond (further digits are cut), or
             an RFC 3339 text such as ``"2024-06-10T06:13:20.5Z"``
``ts_ns``    Unix nanoseconds, instead of ``ts``
``series``   only in a single frame
``warm``     true: the series moves, no prediction is published
===========  =======================================================================================

Without ``ts`` and ``ts_ns`` a tick has its arrival time. A msgpack double is taken for the shortest
decimal that denotes it. Fields of other names are ignored.

**Predictions.** Two frames: the topic ``prediction.<series>``, and a map with ``series``, ``ts``
(Unix seconds, as near as a double comes), ``ts_ns`` (exact), ``forecast``, ``lower`` and ``upper``
(lists over the steps ahead; of lists where there are several targets; null, in msgpack NaN, where
no interval is known), ``model``, ``boot`` (another number after each start of the daemon) and
``seq`` (counts the predictions of a series from 1). Element k (from 0) is for ts + (k + 1) * step
of the model.
"""

from abc import abstractmethod
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, Raw, UnsetType
from numpy.typing import NDArray

from streamlstm import timestamps
from streamlstm.ticks import WARM, Forecasts, Messages, Names
from streamlstm.wire.format import (
    ARRIVAL,
    BAD_TIMESTAMP,
    FRAME_TOO_LARGE,
    MALFORMED,
    SOUND,
    TOPIC,
    UNREAD,
    UNSUPPORTED,
    WRONG_VALUES,
    Columns,
    Reader,
    Shape,
    Writer,
    key_fault,
)

UNREADABLE = (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError)
"""What reading a payload may raise."""
NUMBER = 26
"""Bytes of a number and a comma at most."""


class Fields(msgspec.Struct, gc=False, kw_only=True):
    """A tick as a map says it; ``ts`` is for each format to add."""

    value: float | UnsetType | None = UNSET
    values: list[float | None] | UnsetType = UNSET
    ts_ns: int | None = None
    series: str = ""
    warm: bool = False
    reset: bool = False
    end: bool = False

    def row(self) -> list[float | None]:
        """Give the values, however they were said."""
        if self.value is not UNSET:
            return [self.value]
        return [] if self.values is UNSET else self.values


class Prediction(msgspec.Struct, gc=False):
    """A prediction as a map says it."""

    series: str
    ts: float
    ts_ns: int
    forecast: list[Any]
    lower: list[Any]
    upper: list[Any]
    model: str
    boot: int
    seq: int


class MapReader(Reader):
    """Reads plain ticks in compiled code, and by msgspec those that it leaves."""

    @abstractmethod
    def parse(self, payload: bytes) -> Any:
        """Read a payload as :class:`Fields` with ``ts``, or raise one of ``UNREADABLE``."""

    def read(self, messages: Messages, count: int) -> tuple[Columns, int]:
        """As :meth:`Reader.read`."""
        self.columns.fault[:count] = UNREAD
        for row in np.flatnonzero(self.columns.fault[:count] == UNREAD).tolist():
            self.columns.fault[row] = self._read(messages, row)
        return self.columns, count

    def _read(self, messages: Messages, m: int) -> int:
        """Read one message to its row, and return its fault."""
        frames = messages.message(m)
        if len(frames) > 2:
            return MALFORMED
        if len(frames[-1]) > self.limits.max_frame:
            return FRAME_TOO_LARGE
        try:
            tick = self.parse(frames[-1])
        except UNREADABLE:
            return MALFORMED
        begin = messages.frames[messages.first[m]]
        if len(frames) == 2:
            length = len(frames[0])
        else:  # escaped or not, it was longer in the payload, which has been read
            key = tick.series.encode("utf-8", "surrogatepass")
            length = len(key)
            messages.data[begin : begin + length] = np.frombuffer(key, np.uint8)
        fault = key_fault(messages.data.ctypes.data + begin, length, self.limits.max_key)
        if fault != SOUND:
            return fault
        if tick.reset or tick.end:
            return UNSUPPORTED
        row = tick.row()
        if len(row) != self.inputs:
            return WRONG_VALUES
        try:
            ts = _time(tick)
        except UNREADABLE:
            return BAD_TIMESTAMP
        columns = self.columns
        columns.begin[m], columns.end[m] = begin, begin + length
        columns.ts[m], columns.values[m] = ts or 0, row
        columns.flags[m] = tick.warm * WARM | (ts is None) * ARRIVAL
        return SOUND


def _time(tick: Any) -> int | None:
    """Nanoseconds since the epoch; None: the arrival time.

    Raises:
        one of ``UNREADABLE``: it is no time, or beyond 64 bits.
    """
    if tick.ts_ns is not None:
        if not -(2**63) <= tick.ts_ns < 2**63:
            raise ValueError("beyond 64 bits")
        return int(tick.ts_ns)
    text = _text(tick.ts)
    return None if text in ("", "null") else timestamps.parse(text)


def _text(stamp: Raw | float | str | None) -> str:
    """A ``ts`` as text, without quotes where it is one.

    Raises:
        ValueError: it is not UTF-8.
    """
    if stamp is None:
        return ""
    if not isinstance(stamp, Raw):
        return repr(stamp) if isinstance(stamp, float) else str(stamp)
    text = bytes(stamp).decode()
    return msgspec.json.decode(text, type=str) if text.startswith('"') else text


class MapWriter(Writer):
    """Writes maps."""

    def __init__(self, shape: Shape) -> None:
        """As :class:`Writer`."""
        largest = 3 * NUMBER * shape.horizon * (shape.targets + 1) + 16 * shape.max_key + 512
        super().__init__(shape, largest)

    @abstractmethod
    def payload(self, prediction: Prediction) -> bytes:
        """Write one map."""

    def write(self, forecasts: Forecasts, names: Names, begin: int) -> int:
        """As :meth:`Writer.write`."""
        messages, at, m = self.messages, 0, 0
        instants = seconds(forecasts.ts).tolist()
        flat = forecasts.point.shape[2] == 1
        for row in range(begin, min(begin + self.shape.most, len(forecasts.slot))):
            slot = forecasts.slot[row]
            name = names.text[slot, : names.lengths[slot]].tobytes()
            arrays = forecasts.point[row], *forecasts.quantiles[row]
            payload = self.payload(
                Prediction(
                    name.decode(),
                    instants[row],
                    int(forecasts.ts[row]),
                    *((array[:, 0] if flat else array).tolist() for array in arrays),
                    self.shape.model,
                    self.shape.boot,
                    int(forecasts.seq[row]),
                )
            )
            frames = TOPIC + name + payload
            if m and at + len(frames) > len(messages.data):
                return row
            messages.data[at : at + len(frames)] = np.frombuffer(frames, np.uint8)
            messages.frames[2 * m + 1] = at + len(TOPIC + name)
            at += len(frames)
            m += 1
            messages.frames[2 * m], messages.first[m] = at, 2 * m
        return begin + m


def seconds(ts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Seconds as a double each, the nearest one where microseconds say it all."""
    whole, nanos = np.divmod(ts, 1_000_000_000)
    exact = np.abs(ts) < 2**53  # as a double, so that the division alone rounds
    return np.where(exact, ts / 1e9, whole + nanos / 1e9)
