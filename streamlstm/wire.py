"""Bytes <-> arrays: the formats in which ticks come and predictions go.

**Ticks, json and msgpack.** Two frames, ``[series, payload]``, or one frame whose payload carries
the series. ``series`` is UTF-8 without NUL. Fields of the payload, a map:

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

**Ticks, binary.** One frame, little endian, nothing aligned; after the series, of any length:

======  =======  ===================================================================================
offset  type     what
======  =======  ===================================================================================
0       uint8    0, which ends the series (and lets a subscription select exactly one)
1       uint8    version, 1
2       uint8    flags: 1 warm; 2 ``ts`` is to be the arrival time; all others 0
3       int64    ts, Unix nanoseconds
11      float64  one for each input of the model; NaN where it is missing
======  =======  ===================================================================================

**Welcome.** A subscriber of ``streamlstm.welcome`` gets that topic alone, once it has connected.

**Predictions, json and msgpack.** Two frames: the topic ``prediction.<series>``, and a map with
``series``, ``ts`` (Unix seconds, as near as a double comes), ``ts_ns`` (exact), ``forecast``,
``lower`` and ``upper`` (lists over the steps ahead; of lists where there are several targets; null,
in msgpack NaN, where no interval is known), ``model``, ``boot`` (another number after each start of
the daemon) and ``seq`` (counts the predictions of a series from 1). Element k (from 0) is for
ts + (k + 1) * step of the model.

**Predictions, binary.** One frame, little endian; after the topic ``prediction.<series>``:

======  =======  ===================================================================================
offset  type     what
======  =======  ===================================================================================
0       uint8    0, which ends the topic
1       uint8    version, 1
2       uint16   horizon H: steps ahead
4       uint16   targets T
6       uint8    levels, 2: lower and upper follow the forecast
7       6 bytes  model; written as hexadecimal digits elsewhere
13      uint32   boot
17      uint64   seq
25      int64    ts, Unix nanoseconds
33      float64  forecast[H][T], then lower[H][T], then upper[H][T]; NaN where not known
======  =======  ===================================================================================
"""

import json
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, Raw, UnsetType
from numpy.typing import NDArray

from streamlstm import timestamps
from streamlstm.ticks import WARM, Forecasts, Keys

Format = Literal["json", "msgpack", "binary"]
Message = Sequence[bytes]
"""The frames of one ZeroMQ message."""

VERSION = 1
"""Of the binary formats."""
TOPIC = b"prediction."
"""What the topic of a prediction begins with, before the series."""
REASONS = (
    "malformed",
    "wrong_values",
    "bad_timestamp",
    "bad_key",
    "key_too_long",
    "frame_too_large",
    "unsupported",
)
"""Why a message is dropped here. ``wrong_values``: not as many as the model has inputs.
``bad_key``: empty, not UTF-8, or with a NUL. ``unsupported``: a version, flag or field of a later
release."""

_ARRIVAL = 2
_UNREADABLE = (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError)


class WireError(ValueError):
    """A prediction that cannot be read."""


class Batch(NamedTuple):
    """What a batch of messages says, in their order; those dropped are not in it."""

    keys: Keys
    ts: NDArray[np.int64]
    """(n,) nanoseconds since the Unix epoch, UTC"""
    values: NDArray[np.float64]
    """(n, inputs)"""
    flags: NDArray[np.uint8]
    """(n,) ``WARM`` or 0"""


class _Columns(NamedTuple):
    """A batch whose arrival times are still to be filled in."""

    keys: Keys
    ts: NDArray[np.int64]
    arrival: NDArray[np.bool_]
    """(n,) whether ``ts`` is to be the arrival time"""
    values: NDArray[np.float64]
    flags: NDArray[np.uint8]


class _RefusedError(Exception):
    """A message that is dropped; ``args[0]`` is the reason."""


class Decoder:
    """Messages of one format -> arrays. No bytes whatever make it raise.

    A batch is read as a whole; only when that finds something wrong, its messages are looked at
    one by one, the bad ones counted, and the rest read.

    Attributes:
        drops: messages dropped so far, by reason.
        sample: reason and content of a message dropped since this was last set to None.
    """

    def __init__(
        self, format: Format, inputs: int, *, max_key: int = 64, max_frame: int = 65_536
    ) -> None:
        """Expect ``inputs`` values a tick; keys and frames of at most so many bytes."""
        self.drops = dict.fromkeys(REASONS, 0)
        self.sample: tuple[str, str] | None = None
        self._reader = _READERS[format](inputs, max_key, max_frame)
        self._latest_arrival = 0

    def warm_up(self) -> None:
        """Compile what decoding needs."""
        timestamps.parse_lines(np.frombuffer(b"0\n", np.uint8), 1)

    def decode(self, messages: Sequence[Message], now_ns: int) -> Batch:
        """Read what arrived at ``now_ns``; arrival times rise by 1 ns from tick to tick."""
        columns = self._reader.columns(messages)
        if columns is None:
            columns = self._reader.columns([each for each in messages if self._takes(each)])
            assert columns is not None, "messages good one by one are good together"
        count = int(np.count_nonzero(columns.arrival))
        if count:
            first = max(now_ns, self._latest_arrival + 1)
            columns.ts[columns.arrival] = np.arange(first, first + count)
            self._latest_arrival = first + count - 1
        return Batch(columns.keys, columns.ts, columns.values, columns.flags)

    def _takes(self, message: Message) -> bool:
        try:
            self._reader.check(message)
        except _RefusedError as refusal:
            self.drops[refusal.args[0]] += 1
            self.sample = refusal.args[0], " ".join(repr(frame[:80]) for frame in message[:3])
            return False
        return True


class _Reader(ABC):
    """Reads one format."""

    def __init__(self, inputs: int, max_key: int, max_frame: int) -> None:
        self.inputs, self.max_key, self.max_frame = inputs, max_key, max_frame

    @abstractmethod
    def columns(self, messages: Sequence[Message]) -> _Columns | None:
        """Read all of ``messages``; None where any is to be dropped."""

    @abstractmethod
    def check(self, message: Message) -> None:
        """Raise ``_RefusedError`` where ``message`` is to be dropped."""

    def check_key(self, key: bytes) -> None:
        if len(key) > self.max_key:
            raise _RefusedError("key_too_long")
        if not key or b"\0" in key or not _is_utf8(key):
            raise _RefusedError("bad_key")


class _Fields(msgspec.Struct, gc=False, kw_only=True):
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


class _Json(_Fields, gc=False, kw_only=True):
    ts: Raw = Raw(b"")  # the text: a double would lose digits


class _Msgpack(_Fields, gc=False, kw_only=True):
    ts: float | int | str | None = None


class _MapReader(_Reader):
    """What json and msgpack have in common."""

    @abstractmethod
    def parse(self, payloads: Sequence[bytes]) -> list[Any]:
        """Read each payload as a ``_Json`` or ``_Msgpack``, or raise one of ``_UNREADABLE``."""

    @abstractmethod
    def stamps(self, ticks: list[Any]) -> bytes:
        """Write the ``ts`` of each tick as a line of JSON."""

    def columns(self, messages: Sequence[Message]) -> _Columns | None:
        n = len(messages)
        payloads = [message[-1] for message in messages]
        if max(map(len, messages), default=0) > 2:
            return None
        if max(map(len, payloads), default=0) > self.max_frame:
            return None
        try:
            ticks = self.parse(payloads)
            keys = list(map(_key, messages, ticks))
            ts, arrival = self._times(ticks)
            values = _values(ticks)
        except _UNREADABLE:
            return None
        lengths = np.fromiter(map(len, keys), np.int64, n)
        names = b"".join(keys)
        if (
            ((lengths < 1) | (lengths > self.max_key)).any()
            or b"\0" in names
            or not (names.isascii() or all(map(_is_utf8, keys)))
            or any(tick.reset or tick.end for tick in ticks)
            or values.size != n * self.inputs
        ):
            return None
        flags = np.array([tick.warm for tick in ticks], np.uint8) * WARM
        return _Columns(Keys.of(keys), ts, arrival, values.reshape(n, self.inputs), flags)

    def check(self, message: Message) -> None:
        if len(message) > 2:
            raise _RefusedError("malformed")
        if len(message[-1]) > self.max_frame:
            raise _RefusedError("frame_too_large")
        try:
            (tick,) = self.parse([message[-1]])
        except _UNREADABLE:
            raise _RefusedError("malformed") from None
        self.check_key(_key(message, tick))
        if tick.reset or tick.end:
            raise _RefusedError("unsupported")
        if len(tick.row()) != self.inputs:
            raise _RefusedError("wrong_values")
        try:
            self._times([tick])
        except _UNREADABLE:
            raise _RefusedError("bad_timestamp") from None

    def _times(self, ticks: list[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Time of each tick, and whether it is to be that of arrival."""
        given = [tick.ts_ns for tick in ticks]
        if None not in given:
            return np.array(given, np.int64), np.zeros(len(ticks), np.bool_)
        ts, form = timestamps.parse_lines(np.frombuffer(self.stamps(ticks), np.uint8), len(ticks))
        for i in np.flatnonzero(form == timestamps.OTHER).tolist():
            ts[i] = timestamps.parse(_text(ticks[i].ts))
        for i, ns in enumerate(given):
            if ns is not None:
                ts[i], form[i] = ns, timestamps.SECONDS
        return ts, form == timestamps.ABSENT


class _JsonReader(_MapReader):
    def parse(self, payloads: Sequence[bytes]) -> list[Any]:
        try:
            return list(map(_JSON.decode, payloads))
        except msgspec.DecodeError:
            return list(map(_parse_leniently, payloads))

    def stamps(self, ticks: list[Any]) -> bytes:
        stamps = [tick.ts for tick in ticks]
        lines = b"\n".join(stamps) + b"\n"
        if lines.count(b"\n") != len(ticks):  # inside of a list, say
            lines = b"".join(bytes(stamp).replace(b"\n", b" ") + b"\n" for stamp in stamps)
        return lines


class _MsgpackReader(_MapReader):
    def parse(self, payloads: Sequence[bytes]) -> list[Any]:
        return list(map(_MSGPACK.decode, payloads))

    def stamps(self, ticks: list[Any]) -> bytes:
        return _JSON_WRITER.encode_lines([tick.ts for tick in ticks])


class _BinaryReader(_Reader):
    def __init__(self, inputs: int, max_key: int, max_frame: int) -> None:
        super().__init__(inputs, max_key, max_frame)
        self.row = _binary_row(inputs)

    def columns(self, messages: Sequence[Message]) -> _Columns | None:
        n, row = len(messages), self.row
        if max(map(len, messages), default=0) > 1:
            return None
        frames = [message[0] for message in messages]
        lengths = np.fromiter(map(len, frames), np.int64, n)
        most = min(self.max_frame, row.itemsize + self.max_key)
        if ((lengths <= row.itemsize) | (lengths > most)).any():
            return None
        data = np.frombuffer(b"".join(frames), np.uint8)
        at = (np.cumsum(lengths) - row.itemsize)[:, None] + np.arange(row.itemsize)
        rows = data[at].view(row)[:, 0]
        in_name = np.ones(len(data), np.bool_)
        in_name[at[:, 1:]] = False
        names = data[in_name]  # each with its NUL, so that no character spans two
        if (
            rows["end"].any()
            or (rows["version"] != VERSION).any()
            or (rows["flags"] & ~np.uint8(WARM | _ARRIVAL)).any()
            or np.count_nonzero(names == 0) != n
            or not _is_utf8(names.tobytes())
        ):
            return None
        offsets = np.zeros(n + 1, np.int64)
        np.cumsum(lengths - row.itemsize, out=offsets[1:])
        return _Columns(
            Keys(names[names != 0], offsets),
            rows["ts"].astype(np.int64),
            rows["flags"] & _ARRIVAL != 0,
            rows["values"].astype(np.float64),
            rows["flags"] & WARM,
        )

    def check(self, message: Message) -> None:
        frame = message[0]
        key, _, rest = frame.partition(b"\0")
        if len(frame) > self.max_frame:
            raise _RefusedError("frame_too_large")
        if len(message) > 1 or len(rest) < _binary_row(0).itemsize - 1:
            raise _RefusedError("malformed")
        if rest[0] != VERSION or rest[1] & ~(WARM | _ARRIVAL):
            raise _RefusedError("unsupported")
        if len(rest) != self.row.itemsize - 1:
            raise _RefusedError("wrong_values")
        self.check_key(key)


_READERS: Mapping[Format, Callable[[int, int, int], _Reader]] = MappingProxyType(
    {"json": _JsonReader, "msgpack": _MsgpackReader, "binary": _BinaryReader}
)


class _Prediction(msgspec.Struct, gc=False):
    series: str
    ts: float
    ts_ns: int
    forecast: list[Any]
    lower: list[Any]
    upper: list[Any]
    model: str
    boot: int
    seq: int


class Encoder:
    """Arrays -> messages of one format."""

    def __init__(self, format: Format, model: str, boot: int) -> None:
        """Say in each prediction that it is of ``model`` (12 hexadecimal digits) and ``boot``."""
        self.model, self.boot = model, boot
        self._encode = self._encode_binary if format == "binary" else self._encode_maps
        self._write = _write_json if format == "json" else _write_msgpack

    def encode(self, forecasts: Forecasts, names: Sequence[bytes]) -> list[list[bytes]]:
        """One message for each forecast; ``names`` are those of their series."""
        return self._encode(forecasts, names)

    def _encode_maps(self, forecasts: Forecasts, names: Sequence[bytes]) -> list[list[bytes]]:
        arrays = [forecasts.point, forecasts.quantiles[:, 0], forecasts.quantiles[:, 1]]
        if forecasts.point.shape[2] == 1:
            arrays = [array[..., 0] for array in arrays]
        rows = map(
            _Prediction,
            [name.decode() for name in names],
            _seconds(forecasts.ts).tolist(),
            forecasts.ts.tolist(),
            *(array.tolist() for array in arrays),
            repeat(self.model),
            repeat(self.boot),
            forecasts.seq.tolist(),
        )
        payloads = self._write(list(rows))
        return [[TOPIC + name, payload] for name, payload in zip(names, payloads, strict=True)]

    def _encode_binary(self, forecasts: Forecasts, names: Sequence[bytes]) -> list[list[bytes]]:
        count, horizon, targets = forecasts.point.shape
        rows = np.zeros(count, _binary_prediction(horizon, targets))
        rows["version"], rows["levels"] = VERSION, 2
        rows["horizon"], rows["targets"] = horizon, targets
        rows["model"] = np.frombuffer(bytes.fromhex(self.model), np.uint8)
        rows["boot"], rows["seq"], rows["ts"] = self.boot, forecasts.seq, forecasts.ts
        rows["forecast"], rows["interval"] = forecasts.point, forecasts.quantiles
        data, size = rows.tobytes(), rows.itemsize
        return [
            [TOPIC + name + data[at : at + size]]
            for name, at in zip(names, range(0, count * size, size), strict=True)
        ]


class Prediction(NamedTuple):
    """A prediction as a subscriber reads it."""

    series: str
    ts_ns: int
    forecast: NDArray[np.float64]
    """(horizon, targets)"""
    lower: NDArray[np.float64]
    """(horizon, targets); NaN where no interval is known"""
    upper: NDArray[np.float64]
    """(horizon, targets); NaN where no interval is known"""
    model: str
    boot: int
    seq: int


def encode_tick(
    format: Format,
    series: str,
    ts_ns: int | None,
    values: Sequence[float],
    *,
    warm: bool = False,
) -> list[bytes]:
    """Write one tick, as a publisher does; without ``ts_ns`` it has its arrival time."""
    key = series.encode()
    if format == "binary":
        flags = warm * WARM | (ts_ns is None) * _ARRIVAL
        head = struct.pack("<BBBq", 0, VERSION, flags, ts_ns or 0)
        return [key + head + struct.pack(f"<{len(values)}d", *values)]
    tick: dict[str, Any] = {} if ts_ns is None else {"ts_ns": ts_ns}
    numbers = list(map(float, values))
    tick |= {"value": numbers[0]} if len(numbers) == 1 else {"values": numbers}
    if warm:
        tick["warm"] = True
    return [key, msgspec.json.encode(tick) if format == "json" else msgspec.msgpack.encode(tick)]


def decode_prediction(format: Format, message: Message) -> Prediction:
    """Read one prediction, as a subscriber does.

    Raises:
        WireError: it is not one, or not of this format.
    """
    try:
        if format == "binary":
            return _read_binary_prediction(*message)
        _, payload = message
        decoder = msgspec.json if format == "json" else msgspec.msgpack
        read = decoder.decode(payload, type=_Prediction)
        steps = (np.array(part, np.float64) for part in (read.forecast, read.lower, read.upper))
        forecast, lower, upper = (part.reshape(len(part), -1) for part in steps)
        return Prediction(
            read.series, read.ts_ns, forecast, lower, upper, read.model, read.boot, read.seq
        )
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise WireError(f"not a prediction in {format}: {error}") from error


def _read_binary_prediction(frame: bytes) -> Prediction:
    topic, _, rest = frame.partition(b"\0")
    head = np.frombuffer(b"\0" + rest, _binary_prediction(0, 0), count=1)[0]
    if not topic.startswith(TOPIC) or head["version"] != VERSION or head["levels"] != 2:
        raise ValueError("another topic, version or number of levels")
    whole = _binary_prediction(int(head["horizon"]), int(head["targets"]))
    (row,) = np.frombuffer(b"\0" + rest, whole)
    lower, upper = row["interval"]
    series = topic.removeprefix(TOPIC).decode()
    numbers = (int(row["boot"]), int(row["seq"]))
    return Prediction(
        series,
        int(row["ts"]),
        row["forecast"],
        lower,
        upper,
        row["model"].tobytes().hex(),
        *numbers,
    )


def _binary_row(inputs: int) -> np.dtype[np.void]:
    """What follows the series in a binary tick."""
    return np.dtype(
        [
            ("end", "u1"),
            ("version", "u1"),
            ("flags", "u1"),
            ("ts", "<i8"),
            ("values", "<f8", (inputs,)),
        ]
    )


def _binary_prediction(horizon: int, targets: int) -> np.dtype[np.void]:
    """What follows the topic in a binary prediction."""
    return np.dtype(
        [
            ("end", "u1"),
            ("version", "u1"),
            ("horizon", "<u2"),
            ("targets", "<u2"),
            ("levels", "u1"),
            ("model", "u1", (6,)),
            ("boot", "<u4"),
            ("seq", "<u8"),
            ("ts", "<i8"),
            ("forecast", "<f8", (horizon, targets)),
            ("interval", "<f8", (2, horizon, targets)),
        ]
    )


def _seconds(ts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Seconds as a double each, the nearest one where microseconds say it all."""
    whole, nanos = np.divmod(ts, 1_000_000_000)
    exact = np.abs(ts) < 2**53  # as a double, so that the division alone rounds
    return np.where(exact, ts / 1e9, whole + nanos / 1e9)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


_JSON = msgspec.json.Decoder(_Json)
_MSGPACK = msgspec.msgpack.Decoder(_Msgpack)
_JSON_WRITER = msgspec.json.Encoder()
_MSGPACK_WRITER = msgspec.msgpack.Encoder()


def _parse_leniently(payload: bytes) -> _Json:
    """Take NaN and Infinity, which are not JSON but what Python writes, for null."""
    if b"NaN" not in payload and b"Infinity" not in payload:
        return _JSON.decode(payload)
    lenient = json.loads(
        payload, parse_float=lambda text: Raw(text.encode()), parse_constant=lambda _: None
    )
    return _JSON.decode(_JSON_WRITER.encode(lenient))


def _write_json(rows: list[_Prediction]) -> list[bytes]:
    return _JSON_WRITER.encode_lines(rows).splitlines()


def _write_msgpack(rows: list[_Prediction]) -> list[bytes]:
    return list(map(_MSGPACK_WRITER.encode, rows))


def _text(stamp: Raw | float | str | None) -> str:
    """A ``ts`` as text, without quotes where it is one.

    Raises:
        ValueError: it is not UTF-8.
    """
    if not isinstance(stamp, Raw):
        return str(stamp)
    text = bytes(stamp).decode()
    return msgspec.json.decode(text, type=str) if text.startswith('"') else text


def _key(message: Message, tick: _Fields) -> bytes:
    return message[0] if len(message) == 2 else tick.series.encode("utf-8", "surrogatepass")


def _values(ticks: list[Any]) -> NDArray[np.float64]:
    try:
        return np.array([tick.value for tick in ticks], np.float64)
    except TypeError:  # some have a list
        return np.array([tick.row() for tick in ticks], np.float64)
