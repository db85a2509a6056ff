"""What json and msgpack have in common: a map of fields, read by msgspec where it is unusual.

Compiled code takes the plain ticks and leaves all in which it finds a fault, or anything that it
does not know, to msgspec, whose verdict counts.

**Ticks.** Two frames, ``[series, payload]``, or one frame whose payload carries the series.
``series`` is UTF-8 without NUL. Fields of the payload, a map:

=============  =====================================================================================
``value``      number; null (or NaN) where it is missing
``values``     list of numbers, one for each input of the model, instead of ``value``
``ts``         Unix seconds, read from the decimal text to the nanosecond (further digits are cut),
               or an RFC 3339 text such as ``"2024-06-10T06:13:20.5Z"``
``ts_ns``      Unix nanoseconds, instead of ``ts``
``series``     only in a single frame
``warm``       true: the series moves, no prediction is published
``reset``      true: the series starts anew, and then takes the value, if there is one
``end``        true: the series takes the value, if there is one, and is then closed
``seq``        integer from 0 on, which rises by 1 with each tick of the publisher; gaps are counted
``publisher``  text, whose numbers these are; without it the empty one
=============  =====================================================================================

Without ``ts`` and ``ts_ns`` a tick has its arrival time. A msgpack double is taken for the shortest
decimal that denotes it. Fields of other names are ignored.

**Predictions.** Two frames: the topic ``prediction.<series>``, and a map with ``series``, ``ts``
(Unix seconds, as near as a double comes), ``ts_ns`` (exact), ``forecast``, ``lower`` and ``upper``
(lists over the steps ahead; of lists where there are several targets; null, in msgpack NaN, where
no interval is known), ``model``, ``boot`` (another number after each start of the daemon) and
``seq`` (counts the predictions of a series from 1). Element k (from 0) is for ts + (k + 1) * step
of the model. Where there are intervals of further coverages, ``intervals`` is a list of maps with
``coverage``, ``lower`` and ``upper``, in the order in which they were asked for. Where the daemon
says how good the forecasts are, ``quality`` is a map of the numbers that :mod:`streamlstm.watch`
explains (null, in msgpack NaN, where one is not known).
"""

from abc import abstractmethod
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, Raw, UnsetType
from numpy.typing import NDArray

from streamlstm import timestamps
from streamlstm.jit import njit
from streamlstm.memory import copy
from streamlstm.ticks import END, RESET, WARM, Keys, Messages, Names
from streamlstm.wire.format import (
    ARRIVAL,
    BAD_TIMESTAMP,
    FRAME_TOO_LARGE,
    MALFORMED,
    NUMBERED,
    SOUND,
    TOPIC,
    TOPIC_SIZE,
    UNREAD,
    WRONG_VALUES,
    Columns,
    Limits,
    Reader,
    key_fault,
)

UNREADABLE = (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError)
"""What reading a payload may raise."""
FIELDS = (
    "value", "ts", "ts_ns", "values", "series", "warm", "reset", "end", "seq", "publisher",
)  # fmt: skip
VALUE, TS, TS_NS, VALUES, SERIES, IS_WARM, IS_RESET, IS_END, SEQ, PUBLISHER = range(len(FIELDS))
"""The fields that compiled code knows, by their place in ``FIELDS``."""
EITHER = 1 << VALUE | 1 << VALUES
"""A bit for each of the two ways to say the values: a plain tick has one of them."""
ALONE = int(RESET | END)
"""Flags of ticks that may come without a value."""


class Fields(msgspec.Struct, gc=False, kw_only=True):
    """A tick as a map says it; ``ts`` is for each format to add."""

    value: float | UnsetType | None = UNSET
    values: list[float | None] | UnsetType = UNSET
    ts_ns: int | None = None
    series: str = ""
    warm: bool = False
    reset: bool = False
    end: bool = False
    seq: int | None = None
    publisher: str = ""

    def row(self) -> list[float | None]:
        """Give the values, however they were said."""
        if self.value is not UNSET:
            return [self.value]
        return [] if self.values is UNSET else self.values

    def flags(self) -> int:
        """Of those in :mod:`streamlstm.ticks`."""
        return self.warm * int(WARM) | self.reset * int(RESET) | self.end * int(END)


class Interval(msgspec.Struct, gc=False):
    """An interval beside the main one, as a map says it."""

    coverage: float
    lower: list[Any]
    upper: list[Any]


class Prediction(msgspec.Struct, gc=False, omit_defaults=True):
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
    intervals: list[Interval] = []
    quality: dict[str, float | None] = {}


class MapReader(Reader):
    """Reads plain ticks in compiled code, and by msgspec those that it leaves."""

    def __init__(self, inputs: int, limits: Limits, most: int) -> None:
        """As :class:`Reader`."""
        super().__init__(inputs, limits, most)
        key_fault(0, 0, 0)  # compile it now, not when the first tick is odd

    @abstractmethod
    def parse(self, payload: bytes) -> Any:
        """Read a payload as :class:`Fields` with ``ts``, or raise one of ``UNREADABLE``."""

    def read(self, messages: Messages, count: int) -> tuple[Columns, int]:
        """As :meth:`Reader.read`."""
        super().read(messages, count)
        for row in np.flatnonzero(self.columns.fault[:count] == UNREAD).tolist():
            self.columns.fault[row] = self.read_one(messages, row)
        return self.columns, count

    def read_one(self, messages: Messages, m: int) -> int:
        """Read one message to its row by msgspec, and return its fault."""
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
        flags = tick.flags()
        row = tick.row()
        if not row and flags & ALONE:
            row = [np.nan] * self.inputs
        if len(row) != self.inputs:
            return WRONG_VALUES
        try:
            ts = _time(tick)
        except UNREADABLE:
            return BAD_TIMESTAMP
        columns = self.columns
        columns.begin[m], columns.end[m] = begin, begin + length
        columns.ts[m], columns.values[m] = ts or 0, row
        columns.flags[m] = flags | (ts is None) * ARRIVAL
        return SOUND if tick.seq is None else self._number(messages, m, tick)

    def _number(self, messages: Messages, m: int, tick: Any) -> int:
        """Keep the tick's number and its publisher; returns the fault."""
        if not 0 <= tick.seq < 2**63:
            return MALFORMED
        name = tick.publisher.encode("utf-8", "surrogatepass")
        end = messages.frames[messages.first[m + 1]]  # the payload's, where it is read no more
        messages.data[end - len(name) : end] = np.frombuffer(name, np.uint8)
        self.columns.flags[m] |= NUMBERED
        self.columns.seq[m], self.columns.publisher[m] = tick.seq, (end - len(name), end)
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


# --- compiled -------------------------------------------------------------------------------------


@njit(cache=True, _nrt=False)
def locate(messages: Messages, m: int, columns: Columns, max_frame: int) -> tuple[int, int]:
    """Where a payload begins and ends; it is empty where the frames are not plain.

    The key is set, and begins at -1 where it is to be found in the payload.
    """
    frame, frames = messages.first[m], messages.first[m + 1] - messages.first[m]
    columns.fault[m] = UNREAD
    columns.begin[m] = -1
    if frames == 2:
        columns.begin[m], columns.end[m] = messages.frames[frame], messages.frames[frame + 1]
        frame += 1
    elif frames != 1:
        return 0, 0
    begin, end = messages.frames[frame], messages.frames[frame + 1]
    if end - begin > max_frame:
        return 0, 0
    return begin, end


@njit(cache=True, _nrt=False, inline="always")
def complete(columns: Columns, m: int, seen: int, flags: int) -> bool:
    """Whether all is there that a tick needs, of the fields ``seen``; what may be left out is set.

    Its ``flags`` are kept.
    """
    columns.flags[m] = flags
    if flags & NUMBERED and not seen >> PUBLISHER & 1:
        columns.publisher[m, 0] = columns.publisher[m, 1] = 0
    valued = seen & EITHER
    if valued == 0 and flags & ALONE:
        columns.values[m] = np.nan
    elif valued in (0, EITHER):
        return False
    return bool(columns.begin[m] >= 0)


@njit(cache=True, _nrt=False)
def field(word: np.uint64, known: NDArray[np.uint64]) -> int:
    """The field whose name is ``word``, among the ``known`` ones; else -1."""
    for k in range(len(known)):
        if word == known[k]:
            return k
    return -1


@njit(cache=True, _nrt=False)
def put_name(data: NDArray[np.uint8], at: int, names: Names, slot: int) -> int:
    """Write the name in ``slot`` and return the next place."""
    length = int(names.lengths[slot])
    source = names.text.ctypes.data + slot * names.text.strides[0]
    copy(data.ctypes.data + at, source, length)
    return at + length


@njit(cache=True, _nrt=False)
def put(data: NDArray[np.uint8], at: int, texts: Keys, k: int) -> int:
    """Write text ``k`` and return the next place."""
    begin, length = texts.begin[k], texts.end[k] - texts.begin[k]
    copy(data.ctypes.data + at, texts.data.ctypes.data + begin, length)
    return at + length


@njit(cache=True, _nrt=False)
def put_topic(messages: Messages, m: int, at: int, names: Names, slot: int) -> int:
    """Write the topic of message ``m``, its first frame; returns the next place."""
    for k in range(TOPIC_SIZE):
        messages.data[at + k] = TOPIC[k]
    at = put_name(messages.data, at + TOPIC_SIZE, names, slot)
    messages.frames[2 * m + 1] = at
    return at


@njit(cache=True, error_model="numpy", _nrt=False)
def seconds(ts: int) -> float:
    """Seconds of nanoseconds, the nearest double where microseconds say it all."""
    if -(2**53) < ts < 2**53:  # as a double, so that the division alone rounds
        return ts / 1e9
    return ts // 1_000_000_000 + ts % 1_000_000_000 / 1e9
