"""What is fuzzed of the wire: readers of ticks, each message alone and all at once, by two readers.

A message lies by itself between pages that nobody may touch, so that a byte read beyond it ends the
process. What compiled code takes has to be what msgspec, struct or pyarrow reads there.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.fuzz_memory import Arena, Fenced
from benchmarks.fuzz_mutate import LONGEST, Message
from streamlstm.ticks import END, RESET, WARM, Messages
from streamlstm.wire.codec import Decoder
from streamlstm.wire.format import (
    ARRIVAL,
    NUMBERED,
    SOUND,
    UNREAD,
    Columns,
    Format,
    Limits,
    Reader,
    WireError,
)
from streamlstm.wire.maps import FIELDS, MapReader
from streamlstm.wire.peer import decode_predictions, encode_tick, encode_ticks
from streamlstm.wire.publishers import Publishers

NOW = 1_700_000_000_000_000_000
LIMITS = Limits(max_key=64, max_frame=4096)
INPUTS = (1, 2)
"""Of the models in turn."""

Finding = tuple[int, str]
"""Which message, -1: not known, and what is wrong."""


class Wire:
    """Readers of one format, for one input and for two."""

    def __init__(self, format: Format, most: int) -> None:
        """For ``most`` messages at once."""
        self.format = format
        self._decoders = [
            Decoder(format, inputs, most=most, max_key=LIMITS.max_key, max_frame=LIMITS.max_frame)
            for inputs in INPUTS
        ]
        self._fenced = []
        for decoder in self._decoders:
            fenced = Fenced.like(decoder.reader.columns)
            decoder.reader.columns = fenced.columns
            self._fenced.append(fenced)
        self._arena, self._whole = Arena(4 * LONGEST), Arena(2 * most * LONGEST)

    def seeds(self) -> list[Message]:
        """Sound messages of all kinds."""
        made = []
        for values in ([1.25], [-3e-7, 1e300], [float("nan"), 0.1]):
            for series, ts, more in _KINDS:
                if values == values or "seq" in more:  # NaN once
                    made.append(encode_tick(self.format, series, ts, values, **more))
        if self.format != "arrow":
            made += [encode_tick(self.format, "k", ts, [], end=True) for ts in (None, 5)]
        return made + _MORE.get(self.format, [])

    @property
    def tokens(self) -> Sequence[bytes]:
        """What may be put in anywhere."""
        return _TOKENS[self.format]

    def check(self, messages: Messages, number: int) -> Iterator[Finding]:
        """Read a batch; what is wrong. ``number``: of the batch."""
        which = number % len(INPUTS)
        decoder, fenced, count = self._decoders[which], self._fenced[which], len(messages.first) - 1
        reader = decoder.reader
        alone = self._read_alone(reader, messages, count)
        size = messages.frames[messages.first[count]]
        data = self._whole.put(messages.data[:size])
        laid = Messages(data, messages.frames, messages.first)
        reader.compiled(laid, count, reader.columns, reader.limits)
        together = _rows(reader.columns, count, messages)
        sound = alone["fault"] == SOUND
        same = _same(alone, together) & ((alone["begin"] == together["begin"]) | ~sound)
        for m in np.flatnonzero(~same).tolist():
            yield m, f"alone it is {alone[m]}, beside others {together[m]}"
        before = data.copy()
        yield from self._compare(reader.inputs, Messages(before, *laid[1:]), alone)

        decoder.publishers, before[:] = Publishers.none(), data
        decoder.refused[:] = 0
        arrivals = decoder.decode(laid, count, NOW)
        if decoder.rows != count or len(arrivals.ts) + decoder.refused.sum() != count:
            yield -1, f"{len(arrivals.ts)} ticks and {decoder.drops} dropped are not {count}"
        keys, begins, ends = arrivals.keys
        text = keys.tobytes()
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            if not _is_key(text[begin:end]):
                yield -1, f"{text[begin:end]!r} was taken for a name"
        if self.format == "binary" and not np.array_equal(before, data):
            yield -1, "a message was written to"
        if fenced.touched():
            yield -1, "a byte before a column was written to"

    def _read_alone(self, reader: Reader, messages: Messages, count: int) -> NDArray[np.void]:
        """What compiled code reads where each message is the only one; keys count from its begin.

        By turns it lies at the end of the arena and at its begin.
        """
        made, row = np.zeros(count, _row_type(reader.inputs)), np.zeros(1, _row_type(reader.inputs))
        columns = Columns(*(row[name] for name in Columns._fields[:-1]), reader.columns.scratch)
        first, read, place = messages.first.tolist(), reader.compiled, self._arena.put
        one, two = np.array([0, 1]), np.array([0, 2])
        for m in range(count):
            begin, end = first[m], first[m + 1]
            frames = messages.frames[begin : end + 1]
            data = place(messages.data[frames[0] : frames[-1]], first=bool(m & 1))
            index = one if end - begin == 1 else two if end - begin == 2 else np.array([0, 3])
            read(Messages(data, frames - frames[0], index), 1, columns, reader.limits)
            made[m] = row[0]
        return made

    def _compare(
        self, inputs: int, messages: Messages, rows: NDArray[np.void]
    ) -> Iterator[Finding]:
        """What a second reader makes of the sound rows."""
        raise NotImplementedError


class Binary(Wire):
    """binary, against struct."""

    def _compare(
        self, inputs: int, messages: Messages, rows: NDArray[np.void]
    ) -> Iterator[Finding]:
        text, sound = messages.data.tobytes(), (rows["fault"] == SOUND).tolist()
        frames, first = messages.frames.tolist(), messages.first.tolist()
        for m, taken in enumerate(sound):
            begin, end = first[m], first[m + 1]
            frame = text[frames[begin] : frames[end]]
            tick = read_binary(frame, inputs) if end == begin + 1 else None
            if (tick is not None) != taken:
                yield m, f"taken: {taken}; struct reads {tick}"
            elif tick:
                row = rows[m]
                ts, flags, values, seq = tick
                said = row["ts"], row["flags"], row["values"].tobytes()
                if said != (ts, flags, values) or (flags & NUMBERED and row["seq"] != seq):
                    yield m, f"{row}; struct reads {tick}"


class Maps(Wire):
    """json and msgpack, against msgspec."""

    def __init__(self, format: Format, most: int) -> None:
        """As :class:`Wire`."""
        super().__init__(format, most)
        self._second = [type(d.reader)(d.reader.inputs, LIMITS, most) for d in self._decoders]

    def _compare(
        self, inputs: int, messages: Messages, rows: NDArray[np.void]
    ) -> Iterator[Finding]:
        second = self._second[INPUTS.index(inputs)]
        assert isinstance(second, MapReader)
        text, own = messages.data.tobytes(), _moved(rows, messages, 1)
        sound = np.flatnonzero(rows["fault"] == SOUND)
        for m in sound.tolist():
            second.columns.fault[m] = second.read_one(messages, m)
        theirs = _rows(second.columns, len(rows), None)
        same, after = _same(rows, theirs), messages.data.tobytes()
        for m in sound.tolist():
            ours, other = _texts(own[m], text), _texts(theirs[m], after)
            if not same[m] or ours != other:
                yield m, f"read as {rows[m]} {ours}, by msgspec as {theirs[m]} {other}"


class Arrow(Wire):
    """arrow, against pyarrow: what is read like an earlier message, and what is not."""

    def __init__(self, format: Format, most: int) -> None:
        """As :class:`Wire`."""
        super().__init__(format, most)
        from streamlstm.wire import arrow

        self._second: list[Any] = []
        for decoder in self._decoders:
            reader: Any = decoder.reader
            reader._known = reader.columns.scratch.view(arrow.KNOWN)
            self._second.append(arrow.ArrowReader(reader.inputs, LIMITS, most))

    def check(self, messages: Messages, number: int) -> Iterator[Finding]:
        """As :meth:`Wire.check`."""
        which = number % len(INPUTS)
        decoder, second, fenced = self._decoders[which], self._second[which], self._fenced[which]
        reader: Any = decoder.reader
        reader.columns.scratch[:], reader._missed = 0, 0  # each batch begins with nothing known
        decoder.publishers = Publishers.none()
        for seed in self.seeds()[which * 4 : which * 4 + 3]:
            decoder.decode(Messages.of([seed]), 1, NOW)
        for m in range(len(messages.first) - 1):
            begin, end = messages.first[m : m + 2]
            frames = messages.frames[begin : end + 1]
            data = self._arena.put(messages.data[frames[0] : frames[-1]], first=bool(m & 1))
            laid = Messages(data, frames - frames[0], np.array([0, end - begin]))
            rows = int(reader.compiled(laid, 1, reader.columns, LIMITS))
            mine = _rows(reader.columns, rows, None)
            if not (rows == 1 and mine["fault"][0] == UNREAD):
                theirs = _rows(second.columns, second.read_one(laid, 0, 0), None)
                if len(theirs) != rows or not _same(mine, theirs).all():
                    yield m, f"read as {mine}, by pyarrow as {theirs}"
            before = data.copy()
            decoder.refused[:] = 0
            arrivals = decoder.decode(laid, 1, NOW)
            if len(arrivals.ts) + decoder.refused.sum() != decoder.rows:
                yield m, f"{len(arrivals.ts)} ticks, {decoder.drops}: not {decoder.rows}"
            keys, begins, ends = arrivals.keys
            text = keys.tobytes()
            for at, until in zip(begins.tolist(), ends.tolist(), strict=True):
                if not _is_key(text[at:until]):
                    yield m, f"{text[at:until]!r} was taken for a name"
            if not np.array_equal(before, data):
                yield m, "the message was written to"
        if fenced.touched():
            yield -1, "a byte before a column was written to"


class Predictions:
    """Predictions of all formats, as a subscriber reads them: nothing but a WireError."""

    tokens: Sequence[bytes] = (b"prediction.", b"predictions.batch", b"forecast", b"\xff" * 8)

    def seeds(self) -> list[Message]:
        """As the daemon writes them."""
        from streamlstm.ticks import Forecasts, Names
        from streamlstm.wire.codec import Encoder
        from streamlstm.wire.format import Shape

        made: list[Message] = []
        names = Names(np.full((2, 4), ord("k"), np.uint8), np.array([2, 4], np.uint16))
        numbers = np.arange(18.0).reshape(3, 2, 3, 1)
        rows = Forecasts(
            np.arange(2, dtype=np.int32), np.array([NOW, -1]), np.array([1, 2**40]), numbers[0],
            np.stack((numbers[1], numbers[2]), axis=1),
        )  # fmt: skip
        for format in _TOKENS:
            encoder = Encoder(format, Shape("0123456789ab", 7, 3, 1, 4, 2))
            encoder.encode(rows, names)
            made += [encoder.messages.message(m) for m in range(encoder.count)]
        return made

    def check(self, messages: Messages, number: int) -> Iterator[Finding]:
        """As :meth:`Wire.check`."""
        for m in range(len(messages.first) - 1):
            message = messages.message(m)
            for format in _TOKENS:
                try:
                    decode_predictions(format, message)
                except WireError:
                    pass
                except Exception as error:
                    yield m, f"{format}: {error!r}"


def nothing_known(messages: Messages, count: int, columns: Columns, limits: Limits) -> int:
    """A reader that leaves all to its library."""
    columns.fault[:count] = UNREAD
    return count


# --- second readers -------------------------------------------------------------------------------


def read_binary(frame: bytes, inputs: int) -> tuple[int, int, bytes, int] | None:
    """A tick as the table of :mod:`streamlstm.wire.binary` has it: ts, flags, values, number."""
    key, nul, rest = frame.partition(b"\0")
    if len(frame) > LIMITS.max_frame or not nul or not _is_key(key) or len(rest) < 10:
        return None
    version, said, ts = struct.unpack_from("<BBq", rest)
    if version != 1 or said >= 32:
        return None
    rest, seq = rest[10:], 0
    if said & 16:
        if len(rest) < 9:
            return None
        seq, length = struct.unpack_from("<QB", rest)
        if seq >= 2**63 or length > len(rest) - 9:
            return None
        rest = rest[9 + length :]
    if not rest and said & 12:
        rest = struct.pack(f"<{inputs}d", *[np.nan] * inputs)
    if len(rest) != 8 * inputs:
        return None
    flags = (
        (said & 1) * int(WARM) | (said >> 2 & 1) * int(RESET) | (said >> 3 & 1) * int(END)
        | (said >> 1 & 1) * ARRIVAL | (said >> 4 & 1) * NUMBERED
    )  # fmt: skip
    return ts, flags, rest, seq


def _is_key(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return 0 < len(name) <= LIMITS.max_key and b"\0" not in name


# --- rows -----------------------------------------------------------------------------------------


def _row_type(inputs: int) -> np.dtype[np.void]:
    """One row of :class:`Columns`."""
    kinds = ["i8", "i8", "i8", ("f8", (inputs,)), "u1", "u1", "i8", ("i8", (2,))]
    named: Any = [
        (name, *(kind if isinstance(kind, tuple) else (kind,)))
        for name, kind in zip(Columns._fields[:-1], kinds, strict=True)
    ]
    return np.dtype(named, align=True)


def _rows(columns: Columns, count: int, messages: Messages | None) -> NDArray[np.void]:
    """The first rows; where they are of so many messages, keys count from the begin of each."""
    rows = np.zeros(count, _row_type(columns.values.shape[1]))
    for name in Columns._fields[:-1]:
        rows[name] = getattr(columns, name)[:count]
    return _moved(rows, messages, -1) if messages else rows


def _moved(rows: NDArray[np.void], messages: Messages, sign: int) -> NDArray[np.void]:
    """The same, with where names lie moved by where their messages begin, this way or the other."""
    moved = rows.copy()
    begins = sign * messages.frames[messages.first[: len(rows)]]
    for name in ("begin", "end", "publisher"):
        moved[name].T[:] += begins
    return moved


def _same(ours: NDArray[np.void], theirs: NDArray[np.void]) -> NDArray[np.bool_]:
    """Which rows say the same, to the bit; what is not sound says nothing but that."""
    same = ours["fault"] == theirs["fault"]
    sound, numbered = ours["fault"] == SOUND, (ours["flags"] & NUMBERED) > 0
    same &= (ours["flags"] == theirs["flags"]) | ~sound
    same &= (ours["ts"] == theirs["ts"]) | ((ours["flags"] & ARRIVAL) > 0) | ~sound
    ours_bits, theirs_bits = (
        np.ascontiguousarray(rows["values"]).view(np.int64) for rows in (ours, theirs)
    )
    both_nan = np.isnan(ours["values"]) & np.isnan(theirs["values"])
    same &= ((ours_bits == theirs_bits) | both_nan).all(axis=1) | ~sound
    same &= (ours["seq"] == theirs["seq"]) | ~numbered | ~sound
    name, other = (rows["end"] - rows["begin"] for rows in (ours, theirs))
    same &= (name == other) | ~sound
    name, other = (rows["publisher"][:, 1] - rows["publisher"][:, 0] for rows in (ours, theirs))
    return same & ((name == other) | ~numbered | ~sound)


def _texts(row: np.void, data: bytes) -> tuple[bytes, bytes]:
    """The names of a series and of a publisher."""
    begin, end = row["publisher"].tolist() if row["flags"] & NUMBERED else (0, 0)
    return data[row["begin"] : row["end"]], data[begin:end]


# --- what to begin with ---------------------------------------------------------------------------

_KINDS: list[tuple[str, int | None, dict[str, Any]]] = [
    ("boiler", 1_718_000_000_123_456_789, {}),
    ("é/ключ", None, {"warm": True}),
    ("k" * 64, -1, {"reset": True, "end": True}),
    ("pump 7", 1_718_000_000_000_000_000, {"seq": 2**40, "publisher": "hälle"}),
    ("k", 0, {"seq": 0}),
]
_JSON = [
    b'{"ts": 1718000000.123456789, "value": 12.345678901234567, "warm": true, "unit": "MW"}',
    b'{"series": "\\u00e9 \\"x\\"", "ts": "2024-06-10T06:13:20.5Z", "value": null}',
    b' {"series":"ab","ts_ns" : 5, "values" : [ 1 , null ] , "reset":false,"x":-1e-7}\r\n',
    b'{"value": NaN, "ts": 1.5, "seq": 18, "publisher": "h\\u00e4"}',
    b'{"value": -Infinity, "end": true, "nested": {"a": [1, {"b": []}]}}',
    b'{"values": [1e999, 0.1e-400], "ts": 1e3, "ts_ns": 9223372036854775807}',
    b'{"value": 0.500000000000000166533453693773481063544750213623046875, "ts": null}',
]
_MORE: dict[Format, list[Message]] = {
    "json": [[b"key", text] for text in _JSON] + [[text] for text in _JSON],
    "msgpack": [
        [b"key", msgspec.msgpack.encode(tick)]
        for tick in (
            {"ts": 1718000000.123456, "value": 1e-300, "unit": "MW"},
            {"ts": "2024-06-10T06:13:20.5Z", "value": None, "x" * 40: "y" * 40},
            {"ts": 5, "values": [1, None], "seq": 2**63 - 1, "publisher": "ä" * 20},
            {"ts_ns": -5, "values": [-(2**40), 2.5], "nested": {"a": [1, {"b": []}]}},
            {"ts": None, "values": list(range(20))},
        )
    ]
    + [[msgspec.msgpack.encode({"series": "a", "value": -3, "reset": True})]],
    "arrow": [
        encode_ticks(["a", "b", "a"], [1, 2, 3], np.arange(3.0)[:, None]),
        encode_ticks(["a", "é"], None, np.arange(4.0).reshape(2, 2), warm=True),
        encode_ticks(["a", "b"], [1, 2], np.ones((2, 2)), seq=[5, 6], publisher=["p", ""]),
        encode_ticks(["a", "b"], [1, 2], np.ones((2, 1)), reset=[True, False], end=[False, True]),
    ],
}
_NUMBERS = [
    b"0", b"-0", b"1e999", b"-1e-400", b"9223372036854775807", b"-9223372036854775808", b"1E+308",
    b"18446744073709551616", b"123456789012345678901234567890", b"0.1", b"1.7976931348623159e308",
    b"2.2250738585072011e-308", b"9007199254740993", b"4.9e-324", b"NaN", b"-Infinity", b"null",
]  # fmt: skip
_TOKENS: dict[Format, list[bytes]] = {
    "binary": [b"\0\1\0", b"\0\1\x10", b"\0\1\x1f", b"\0" * 8, b"\xff" * 8, b"\0" * 6 + b"\xf8"],
    "json": [
        *_NUMBERS, *(f'"{name}":'.encode() for name in FIELDS), b'"ts"', b'"seq"', b'"publisher',
        b"true", b"false", b"{}", b"[]", b"[", b"{", b'{"":', b",", b"}", b"]", b'"', b"\\u0000",
        b"\\ud800", b"\\udc00", b"\\", b"\\u00e9", b" ", b"\t\r\n", b"\xef\xbb\xbf", b"/", b"0" * 9,
    ],
    "msgpack": [
        *map(msgspec.msgpack.encode, (*FIELDS, None, True, False, -1, 2**63, 0.1, "", [], {}, 300)),
        b"\x80", b"\x8f", b"\x91", b"\x81\xa0", b"\x9f", b"\xc1", b"\xc4\1x", b"\xd4\1x",
        b"\xd6\xff\0\0\0\0", b"\xd9\xff", b"\xda\xff\xff", b"\xdb\xff\xff\xff\xff",
        b"\xdc\0\1", b"\xdd\0\0\0\1", b"\xdd\xff\xff\xff\xff", b"\xde\0\1", b"\xdf\xff\xff\xff\xff",
        b"\xca\x7f\xc0\0\0", b"\xcb\x7f\xf0\0\0\0\0\0\0", b"\xcb\xff\xf8\0\0\0\0\0\1", b"\xa1k",
    ],
    "arrow": [
        b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\xff\0\0\0\0", b"\0" * 8, b"series",
        b"value", b"values", b"ts\0\0", b"warm", b"reset", b"seq\0", b"publisher",
        b"ARROW1", b"\x10\0\0\0",
    ],
}  # fmt: skip
