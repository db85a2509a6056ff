"""json: the fields of :mod:`streamlstm.wire.maps` as JSON (RFC 8259)."""

import json
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw
from numpy.typing import NDArray

from streamlstm.decimals import (
    INTEGER,
    NUMBER,
    WIDEST,
    WIDEST_INT,
    read,
    read_seconds,
    write,
    write_int,
)
from streamlstm.jit import njit
from streamlstm.memory import load_u8, load_u32, load_u64
from streamlstm.ticks import Forecasts, Messages, Names
from streamlstm.wire.format import (
    ARRIVAL,
    NUMBERED,
    SOUND,
    Columns,
    Limits,
    MessageLayout,
    Shape,
    Writer,
    key_fault,
)
from streamlstm.wire.maps import (
    FIELDS,
    IS_END,
    IS_WARM,
    PUBLISHER,
    SEQ,
    SERIES,
    TS,
    TS_NS,
    VALUE,
    VALUES,
    Fields,
    MapReader,
    Prediction,
    complete,
    field,
    locate,
    put,
    put_topic,
    seconds,
)


class _Tick(Fields, gc=False, kw_only=True):
    ts: Raw = Raw(b"")  # the text: a double would lose digits


_DECODER = msgspec.json.Decoder(_Tick)
_ENCODER = msgspec.json.Encoder()


class JsonReader(MapReader):
    """Takes NaN and Infinity, which are not JSON but what Python writes, for null."""

    @property
    def compiled(self) -> Any:
        """As :attr:`Reader.compiled`."""
        return _read

    def parse(self, payload: bytes) -> Any:
        """As :meth:`MapReader.parse`."""
        try:
            return _DECODER.decode(payload)
        except msgspec.DecodeError:
            if b"NaN" not in payload and b"Infinity" not in payload:
                raise
        lenient = json.loads(payload, parse_float=lambda text: Raw(text.encode()))
        if isinstance(lenient, dict) and isinstance(lenient.get("ts"), float):
            lenient["ts"] = "NaN"  # is no time
        return _DECODER.decode(_ENCODER.encode(lenient))


class JsonWriter(Writer):
    """Writes numbers with as many digits as tell them apart, and null for those that are none."""

    def __init__(self, shape: Shape) -> None:
        """As :class:`Writer`."""
        labels = [b",%s:" % _ENCODER.encode(name) for name in Prediction.__struct_fields__[:6]]
        labels[0] = b"{" + labels[0][1:]
        constant = _ENCODER.encode({"model": shape.model, "boot": shape.boot})[1:-1]
        labels.append(b',%s,"seq":' % constant)
        begins = [b'},{"coverage":%s,"lower":' % _ENCODER.encode(each) for each in shape.further]
        for k, begin in enumerate(begins):
            labels += [begin if k else b',"intervals":[' + begin[2:], labels[5]]
        labels.append(b"}]" if begins else b"")
        if shape.quality:
            named = [b",%s:" % _ENCODER.encode(name) for name in shape.quality]
            labels[-1] += b',"quality":{' + named[0][1:]
            labels += [*named[1:], b"}"]
        labels[-1] += b"}"
        outputs = shape.horizon * (shape.targets * (WIDEST + 1) + 2)
        numbers = (1 + len(shape.quality)) * WIDEST + 2 * WIDEST_INT
        numbers += (3 + 2 * len(begins)) * (2 + outputs)
        # a name is in the topic as it is, and quoted, with six bytes for one that is escaped
        super().__init__(shape, labels, 2 + numbers, growth=7)

    @property
    def compiled(self) -> Any:
        """As :attr:`Writer.compiled`."""
        return _write


# --- compiled: reading ----------------------------------------------------------------------------
# Every function takes the place where it begins and returns the next one, or `end` where what it
# finds is not plain: no map ends there without its bracket.

_TAB, _NEWLINE, _RETURN, _SPACE = b"\t\n\r "
_OPEN, _CLOSE, _LIST, _UNLIST, _COLON, _COMMA, _QUOTE, _BACKSLASH = b'{}[]:,"\\'
_N, _T, _F, _R = b"ntfr"
_NULL, _TRUE, _ALSE = (
    np.uint32(int.from_bytes(text, "little")) for text in (b"null", b"true", b"alse")
)
_NAMES = np.array([int.from_bytes(f'{name}"'.encode()[:8], "little") for name in FIELDS], np.uint64)
"""Each name with the quote that ends it, as a word, or its first letters."""
_LENGTHS = np.array([len(name) + 1 for name in FIELDS])
_QUOTES, _ONES, _HIGH = (np.uint64(0x0101010101010101 * byte) for byte in (_QUOTE, 1, 0x80))


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _read(messages: Messages, count: int, columns: Columns, limits: Limits) -> int:
    data = messages.data
    for m in range(count):
        at, end = locate(messages, m, columns, limits.max_frame)
        if _tick(data, at, end, columns, m):
            begin = columns.begin[m]
            address, length = data.ctypes.data + begin, columns.end[m] - begin
            if key_fault(address, length, limits.max_key) == SOUND:
                columns.fault[m] = SOUND
    return count


@njit(cache=True, error_model="numpy", _nrt=False, inline="always")
def _tick(data: NDArray[np.uint8], at: int, end: int, columns: Columns, m: int) -> bool:
    """Read a tick to row ``m``; False where it is not plain."""
    seen, ts, exact, flags = 0, 0, False, ARRIVAL
    at = _space(data, at, end)
    if at == end or data[at] != _OPEN:
        return False
    while True:
        at = _space(data, at + 1, end)
        if at == end or data[at] != _QUOTE:
            return False
        name, at = _name(data, at + 1, end)
        if name >= 0:
            if seen >> name & 1:
                return False
            seen |= 1 << name
        at = _space(data, at, end)
        if at == end or data[at] != _COLON:
            return False
        at = _space(data, at + 1, end)
        if at == end:
            return False
        if name < 0:
            at = _skip(data, at, end)
        elif name == VALUE:
            if columns.values.shape[1] != 1:
                return False
            at = _number(data, at, end, columns.values, m, 0)
        elif name == VALUES:
            at = _numbers(data, at, end, columns.values, m)
        elif name == SERIES:
            begin = at + 1
            at = _string(data, at, end)
            if columns.begin[m] < 0:
                columns.begin[m], columns.end[m] = begin, at - 1
        elif name in (TS, TS_NS):
            if data[at] == _N:
                at = _literal(data, at, end)
            else:
                ns, at = _instant(data, at, end, name)
                flags &= ~ARRIVAL
                if name == TS_NS or not exact:
                    ts, exact = ns, name == TS_NS
        elif name == PUBLISHER:
            columns.publisher[m, 0] = at + 1
            at = _string(data, at, end)
            columns.publisher[m, 1] = at - 1
        elif name == SEQ:
            what, _, columns.seq[m], at = read(data, at, end)
            if what != INTEGER or columns.seq[m] < 0:
                return False
            flags |= NUMBERED
        elif data[at] == _F:
            at = _literal(data, at, end)
        elif data[at] == _T and IS_WARM <= name <= IS_END:
            at = _literal(data, at, end)
            flags |= 1 << (name - IS_WARM)  # as the flags are
        else:
            return False
        at = _space(data, at, end)
        if at == end:
            return False
        if data[at] == _CLOSE:
            break
        if data[at] != _COMMA:
            return False
    columns.ts[m] = ts
    return _space(data, at + 1, end) == end and complete(columns, m, seen, flags)


@njit(cache=True, _nrt=False)
def _space(data: NDArray[np.uint8], at: int, end: int) -> int:
    while at < end and (
        data[at] == _SPACE or data[at] == _NEWLINE or data[at] == _RETURN or data[at] == _TAB
    ):
        at += 1
    return at


@njit(cache=True, _nrt=False)
def _name(data: NDArray[np.uint8], at: int, end: int) -> tuple[int, int]:
    """(field or -1, next place) of the name whose first quote is behind."""
    address = data.ctypes.data + at
    word = np.uint64(0)
    if at + 8 <= end:
        word = load_u64(address)
    else:
        for k in range(end - at):
            word |= np.uint64(load_u8(address + k)) << np.uint64(8 * k)
    found = word ^ _QUOTES
    found = (found - _ONES) & ~found & _HIGH  # the lowest bit: the first quote
    name = field(word & (found ^ (found - np.uint64(1))), _NAMES)
    if name == PUBLISHER and not (  # longer than a word
        at + 10 <= end and data[at + 8] == _R and data[at + 9] == _QUOTE
    ):
        name = -1
    if name < 0:
        return name, _string(data, at - 1, end)
    return name, at + _LENGTHS[name]


@njit(cache=True, _nrt=False)
def _string(data: NDArray[np.uint8], at: int, end: int) -> int:
    """A string without escapes."""
    if data[at] != _QUOTE:
        return end
    begin = at + 1
    every = np.uint8(0)
    for at in range(begin, end):
        byte = data[at]
        if byte == _QUOTE:
            length = at - begin
            if every < 0x80 or key_fault(data.ctypes.data + begin, length, length) == SOUND:
                return at + 1
            return end
        if byte < 0x20 or byte == _BACKSLASH:
            return end
        every |= byte
    return end


@njit(cache=True, _nrt=False)
def _literal(data: NDArray[np.uint8], at: int, end: int) -> int:
    """null, true or false, whichever begins here."""
    text = _NULL if data[at] == _N else _TRUE
    if data[at] == _F:
        text = _ALSE
        at += 1
    if at + 4 <= end and load_u32(data.ctypes.data + at) == text:
        return at + 4
    return end


@njit(cache=True, error_model="numpy", _nrt=False)
def _instant(data: NDArray[np.uint8], at: int, end: int, name: int) -> tuple[int, int]:
    """(nanoseconds, next place) of what ``TS`` or ``TS_NS`` says."""
    if name == TS:
        what, ns, at = read_seconds(data, at, end)
        return ns, at if what == NUMBER else end
    what, _, ns, at = read(data, at, end)
    return ns, at if what == INTEGER else end


@njit(cache=True, error_model="numpy", _nrt=False)
def _number(
    data: NDArray[np.uint8], at: int, end: int, values: NDArray[np.float64], m: int, k: int
) -> int:
    """A number to ``values[m, k]``, or null."""
    if at < end and data[at] == _N:
        values[m, k] = np.nan
        return _literal(data, at, end)
    what, value, integer, at = read(data, at, end)
    values[m, k] = integer if what == INTEGER else value  # -0 is 0
    return at if what >= NUMBER else end


@njit(cache=True, error_model="numpy", _nrt=False)
def _numbers(
    data: NDArray[np.uint8], at: int, end: int, values: NDArray[np.float64], m: int
) -> int:
    """A list of numbers to ``values[m]``, as many."""
    if data[at] != _LIST:
        return end
    inputs = values.shape[1]
    for k in range(inputs):
        at = _space(data, at + 1, end)
        at = _space(data, _number(data, at, end, values, m, k), end)
        if at == end or data[at] != (_COMMA if k < inputs - 1 else _UNLIST):
            return end
    return at + 1


@njit(cache=True, error_model="numpy", _nrt=False)
def _skip(data: NDArray[np.uint8], at: int, end: int) -> int:
    """A scalar or a string of another field."""
    if data[at] == _QUOTE:
        return _string(data, at, end)
    if data[at] in (_N, _T, _F):
        return _literal(data, at, end)
    what, _, _, at = read(data, at, end)
    return at if what >= NUMBER else end


# --- compiled: writing ----------------------------------------------------------------------------


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _write(
    messages: Messages,
    layout: MessageLayout,
    forecasts: Forecasts,
    names: Names,
    begin: int,
) -> int:
    data, labels, at = messages.data, layout.labels, 0
    levels = forecasts.quantiles.shape[1]
    most = min(len(messages.first) - 1, len(forecasts.slot) - begin)
    for m in range(most):
        row = begin + m
        slot, ts = forecasts.slot[row], forecasts.ts[row]
        if m and at + layout.fixed + layout.growth * int(names.lengths[slot]) > len(data):
            return row
        at = put_topic(messages, m, at, names, slot)
        at = _quoted(data, put(data, at, labels, 0), names, slot)
        at = write(data, put(data, at, labels, 1), seconds(ts))
        at = write_int(data, put(data, at, labels, 2), ts)
        at = _list(data, put(data, at, labels, 3), forecasts.point[row])
        for level in range(2):
            at = _list(data, put(data, at, labels, 4 + level), forecasts.quantiles[row, level])
        at = write_int(data, put(data, at, labels, 6), forecasts.seq[row])
        for level in range(2, levels):
            at = _list(data, put(data, at, labels, 5 + level), forecasts.quantiles[row, level])
        at = put(data, at, labels, 5 + levels)
        for k in range(forecasts.quality.shape[1]):
            at = put(data, write(data, at, forecasts.quality[row, k]), labels, 6 + levels + k)
        messages.frames[2 * m + 2], messages.first[m + 1] = at, 2 * m + 2
    return begin + most


_U, _ZERO = b"u0"
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
_SHORT = np.zeros(256, np.uint8)
"""For a byte to be escaped, the letter after the backslash; 0 for all others."""
_SHORT[:0x20] = ord("u")
_SHORT[list(b'"\\\b\f\n\r\t')] = list(b'"\\bfnrt')


@njit(cache=True, _nrt=False)
def _quoted(data: NDArray[np.uint8], at: int, names: Names, slot: int) -> int:
    """A name as a string."""
    data[at] = _QUOTE
    at += 1
    for k in range(int(names.lengths[slot])):
        byte = names.text[slot, k]
        short = _SHORT[byte]
        if short == 0:
            data[at] = byte
            at += 1
            continue
        data[at], data[at + 1] = _BACKSLASH, short
        at += 2
        if short == _U:
            data[at], data[at + 1] = _ZERO, _ZERO
            data[at + 2], data[at + 3] = _HEX[byte >> 4], _HEX[byte & 15]
            at += 4
    data[at] = _QUOTE
    return at + 1


@njit(cache=True, error_model="numpy", _nrt=False)
def _list(data: NDArray[np.uint8], at: int, numbers: NDArray[np.float64]) -> int:
    """Numbers over the steps ahead, in lists of their own where there are several targets."""
    horizon, targets = numbers.shape
    data[at] = _LIST
    at += 1
    for k in range(horizon):
        if targets > 1:
            data[at] = _LIST
            at += 1
        for t in range(targets):
            at = write(data, at, numbers[k, t])
            data[at] = _COMMA
            at += 1
        if targets > 1:
            data[at - 1], data[at] = _UNLIST, _COMMA
            at += 1
    data[at - 1] = _UNLIST
    return at
