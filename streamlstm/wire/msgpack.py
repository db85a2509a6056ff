"""msgpack: the fields of :mod:`streamlstm.wire.maps` as MessagePack."""

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from streamlstm.decimals import NUMBER, read_seconds, write
from streamlstm.jit import njit
from streamlstm.memory import load_u64
from streamlstm.ticks import Forecasts, Messages, Names
from streamlstm.wire.big_endian import (
    load_f32,
    load_f64,
    load_i8,
    load_i16,
    load_i32,
    load_i64,
    load_u8,
    load_u16,
    load_u32,
    store_16,
    store_32,
    store_64,
    store_f64,
)
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
    put_name,
    put_topic,
    seconds,
)


class _Tick(Fields, gc=False, kw_only=True):
    ts: float | int | str | None = None


_DECODER = msgspec.msgpack.Decoder(_Tick)
_ENCODER = msgspec.msgpack.Encoder()


class MsgpackReader(MapReader):
    """Takes a double for the shortest decimal that denotes it."""

    @property
    def compiled(self) -> Any:
        """As :attr:`Reader.compiled`."""
        return _read

    def parse(self, payload: bytes) -> Any:
        """As :meth:`MapReader.parse`."""
        return _DECODER.decode(payload)


class MsgpackWriter(Writer):
    """Writes doubles."""

    def __init__(self, shape: Shape) -> None:
        """As :class:`Writer`."""
        names, further, quality = Prediction.__struct_fields__, shape.further, shape.quality
        labels = [*map(_ENCODER.encode, names[:6])]
        constant = _ENCODER.encode({"model": shape.model, "boot": shape.boot})[1:]
        fields = len(names) - (not further) - (not quality)
        labels[0] = bytes([0x80 | fields]) + labels[0]
        labels.append(constant + _ENCODER.encode("seq"))
        for k, coverage in enumerate(further):
            begin = b"" if k else _ENCODER.encode("intervals") + bytes([0x90 | len(further)])
            begin += b"\x83" + _ENCODER.encode({"coverage": coverage})[1:] + labels[4]
            labels += [begin, labels[5]]
        for k, name in enumerate(quality):
            begin = b"" if k else _ENCODER.encode("quality") + bytes([0x80 | len(quality)])
            labels.append(begin + _ENCODER.encode(name))
        numbers = (3 + 2 * len(further)) * (_HEAD + shape.horizon * (_HEAD + _WIDE * shape.targets))
        numbers += (3 + len(quality)) * _WIDE
        super().__init__(shape, labels, _HEAD + numbers, growth=2)

    @property
    def compiled(self) -> Any:
        """As :attr:`Writer.compiled`."""
        return _write


_HEAD, _WIDE = 5, 9
"""Bytes of the head of a string or list at most, and of a number."""


# --- compiled: reading ----------------------------------------------------------------------------
# Every function takes the place where it begins and returns the next one, or one beyond `end`
# where what it finds is not plain or is cut.

_NIL, _FALSE, _TRUE = 0xC0, 0xC2, 0xC3
_F32, _F64, _U8, _U64, _I8, _I64, _STR8 = 0xCA, 0xCB, 0xCC, 0xCF, 0xD0, 0xD3, 0xD9
_LIST16 = 0xDC
_NAMES = np.array(
    [int.from_bytes(_ENCODER.encode(name)[:8], "little") for name in FIELDS], np.uint64
)
"""Each name with its head, as a word, or the first bytes of that."""
_LONGER = 10
"""Bytes of ``publisher`` with its head, the last two of which are no part of that word."""
_ER = int.from_bytes(b"er", "big")


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _read(
    messages: Messages,
    count: int,
    columns: Columns,
    limits: Limits,
) -> int:
    data = messages.data.ctypes.data
    for m in range(count):
        begin, end = locate(messages, m, columns, limits.max_frame)
        if _tick(data, begin, end, columns, m):
            key, length = data + columns.begin[m], columns.end[m] - columns.begin[m]
            if key_fault(key, length, limits.max_key) == SOUND:
                columns.fault[m] = SOUND
    return count


@njit(cache=True, error_model="numpy", _nrt=False, inline="always")
def _tick(data: int, at: int, end: int, columns: Columns, m: int) -> bool:
    """Read a tick to row ``m``; False where it is not plain."""
    if at == end or load_u8(data + at) & 0xF0 != 0x80:
        return False
    seen, ts, exact, flags = 0, 0, False, ARRIVAL
    fields = load_u8(data + at) & 0x0F
    at += 1
    for _ in range(fields):
        name, at = _name(data, at, end)
        if at >= end:
            return False
        if name >= 0:
            if seen >> name & 1:
                return False
            seen |= 1 << name
        head = load_u8(data + at)
        if name < 0:
            at = _skip(data, at, end)
        elif name == VALUE:
            if columns.values.shape[1] != 1:
                return False
            at = _number(data, at, end, columns.values, m, 0)
        elif name == VALUES:
            at = _numbers(data, at, end, columns.values, m)
        elif name == SERIES:
            begin, at = _string(data, at, end)
            if columns.begin[m] < 0:
                columns.begin[m], columns.end[m] = begin, at
        elif name in (TS, TS_NS):
            if head == _NIL:
                at += 1
            else:
                ns, at = _instant(data, at, end, name, columns.scratch)
                flags &= ~ARRIVAL
                if name == TS_NS or not exact:
                    ts, exact = ns, name == TS_NS
        elif name == PUBLISHER:
            columns.publisher[m, 0], at = _string(data, at, end)
            columns.publisher[m, 1] = at
        elif name == SEQ:
            good, columns.seq[m], at = _integer(data, at, end)
            if not good or columns.seq[m] < 0:
                return False
            flags |= NUMBERED
        elif head == _FALSE:
            at += 1
        elif head == _TRUE and IS_WARM <= name <= IS_END:
            at += 1
            flags |= 1 << (name - IS_WARM)  # as the flags are
        else:
            return False
    columns.ts[m] = ts
    return at == end and complete(columns, m, seen, flags)


@njit(cache=True, _nrt=False)
def _name(data: int, at: int, end: int) -> tuple[int, int]:
    """(field, next place) of a name."""
    if at >= end:
        return -1, end + 1
    length = 1 + (load_u8(data + at) & 0x1F)  # if its head is of a short string
    if (length < 8 or length == _LONGER) and at + length <= end:
        word = np.uint64(0)
        if length == _LONGER:
            word = load_u64(data + at)
        elif at + 8 <= end:
            word = load_u64(data + at) & ((np.uint64(1) << np.uint64(8 * length)) - np.uint64(1))
        else:
            for k in range(length):
                word |= np.uint64(load_u8(data + at + k)) << np.uint64(8 * k)
        name = field(word, _NAMES)
        if name >= 0 and (name != PUBLISHER or load_u16(data + at + 8) == _ER):
            return name, at + length
    return -1, _string(data, at, end)[1]


@njit(cache=True, _nrt=False)
def _string(data: int, at: int, end: int) -> tuple[int, int]:
    """Where a string begins and ends."""
    head = load_u8(data + at)
    begin, length = at + 1, head & 0x1F
    if head == _STR8 and begin < end:
        length = load_u8(data + begin)
        begin += 1
    elif head & 0xE0 != 0xA0:
        return at, end + 1
    if begin + length > end:
        return at, end + 1
    if length and key_fault(data + begin, length, length) != SOUND:
        return at, end + 1
    return begin, begin + length


@njit(cache=True, error_model="numpy", _nrt=False)
def _integer(data: int, at: int, end: int) -> tuple[bool, int, int]:
    """(whether it is one of 64 bits with a sign, the integer, next place)."""
    head = load_u8(data + at)
    if head < 0x80:
        return True, head, at + 1
    if head >= 0xE0:
        return True, head - 0x100, at + 1
    if not (_U8 <= head <= _U64 or _I8 <= head <= _I64):
        return False, 0, end + 1
    size = 1 << (head & 3)
    address = data + at + 1
    at += 1 + size
    if at > end:
        return False, 0, at
    if head < _I8:
        if size == 1:
            return True, load_u8(address), at
        if size == 2:
            return True, load_u16(address), at
        if size == 4:
            return True, load_u32(address), at
        number = load_i64(address)
        return number >= 0, number, at
    if size == 1:
        return True, load_i8(address), at
    if size == 2:
        return True, load_i16(address), at
    if size == 4:
        return True, load_i32(address), at
    return True, load_i64(address), at


@njit(cache=True, error_model="numpy", _nrt=False)
def _double(data: int, at: int, end: int) -> tuple[bool, float, int]:
    """(whether it is a float, its value, next place)."""
    head = load_u8(data + at)
    if head == _F64 and at + 9 <= end:
        return True, load_f64(data + at + 1), at + 9
    if head == _F32 and at + 5 <= end:
        return True, load_f32(data + at + 1), at + 5
    return False, 0.0, end + 1


@njit(cache=True, error_model="numpy", _nrt=False)
def _instant(
    data: int, at: int, end: int, name: int, decimal: NDArray[np.uint8]
) -> tuple[int, int]:
    """(nanoseconds, next place) of what ``TS`` or ``TS_NS`` says."""
    if name == TS:
        good, number, after = _double(data, at, end)
        if good:
            what, ns, _ = read_seconds(decimal, 0, write(decimal, 0, number))
            return ns, after if what == NUMBER else end + 1
    good, integer, after = _integer(data, at, end)
    if name == TS:
        good = good and -9_223_372_036 < integer < 9_223_372_036
        integer *= 1_000_000_000
    return integer, after if good else end + 1


@njit(cache=True, error_model="numpy", _nrt=False)
def _number(data: int, at: int, end: int, values: NDArray[np.float64], m: int, k: int) -> int:
    """A number to ``values[m, k]``, or nil."""
    if at >= end:
        return end + 1
    good, number, after = _double(data, at, end)
    if good:
        values[m, k] = number
        return after
    if load_u8(data + at) == _NIL:
        values[m, k] = np.nan
        return at + 1
    good, integer, after = _integer(data, at, end)
    values[m, k] = integer
    return after if good else end + 1


@njit(cache=True, error_model="numpy", _nrt=False)
def _numbers(data: int, at: int, end: int, values: NDArray[np.float64], m: int) -> int:
    """A list of numbers to ``values[m]``, as many."""
    inputs = values.shape[1]
    head = load_u8(data + at)
    count = head & 0x0F
    at += 1
    if head == _LIST16 and at + 2 <= end:
        count = load_u16(data + at)
        at += 2
    elif head & 0xF0 != 0x90:
        return end + 1
    if count != inputs:
        return end + 1
    for k in range(inputs):
        at = _number(data, at, end, values, m, k)
    return at


@njit(cache=True, error_model="numpy", _nrt=False)
def _skip(data: int, at: int, end: int) -> int:
    """A scalar or a string of another field."""
    head = load_u8(data + at)
    if head in (_NIL, _TRUE, _FALSE):
        return at + 1
    good, _, after = _double(data, at, end)
    if good:
        return after
    good, _, after = _integer(data, at, end)
    return after if good else _string(data, at, end)[1]


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
        length = 0 + int(names.lengths[slot])  # of 64 bits
        if m and at + layout.fixed + layout.growth * length > len(data):
            return row
        at = put_topic(messages, m, at, names, slot)
        at = _put_head(data, put(data, at, labels, 0), length, 0xA0, 0x1F, _STR8)
        at = _put_double(data, put(data, put_name(data, at, names, slot), labels, 1), seconds(ts))
        at = _put_integer(data, put(data, at, labels, 2), ts)
        at = _put_list(data, put(data, at, labels, 3), forecasts.point[row])
        for level in range(2):
            at = _put_list(data, put(data, at, labels, 4 + level), forecasts.quantiles[row, level])
        at = _put_integer(data, put(data, at, labels, 6), forecasts.seq[row])
        for level in range(2, levels):
            at = _put_list(data, put(data, at, labels, 5 + level), forecasts.quantiles[row, level])
        for k in range(forecasts.quality.shape[1]):
            at = put(data, at, labels, 5 + levels + k)
            at = _put_double(data, at, forecasts.quality[row, k])
        messages.frames[2 * m + 2], messages.first[m + 1] = at, 2 * m + 2
    return begin + most


@njit(cache=True, _nrt=False)
def _put_head(
    data: NDArray[np.uint8], at: int, length: int, short: int, longest: int, long: int
) -> int:
    """The head of a string or list: ``short`` with a length, or ``long`` before one."""
    address = data.ctypes.data + at + 1
    if length <= longest:
        data[at] = short | length
        return at + 1
    if long == _STR8 and length < 0x100:
        data[at], data[at + 1] = _STR8, length
        return at + 2
    long += long == _STR8
    if length < 0x10000:
        data[at] = long
        store_16(address, length)
        return at + 3
    data[at] = long + 1
    store_32(address, length)
    return at + 5


@njit(cache=True, _nrt=False)
def _put_double(data: NDArray[np.uint8], at: int, number: float) -> int:
    data[at] = _F64
    store_f64(data.ctypes.data + at + 1, number)
    return at + 9


@njit(cache=True, _nrt=False)
def _put_integer(data: NDArray[np.uint8], at: int, number: int) -> int:
    """An integer in as few bytes as hold it."""
    address = data.ctypes.data + at + 1
    if -0x20 <= number < 0x80:
        data[at] = number & 0xFF
        return at + 1
    size = 0  # log2 of bytes
    while size < 3 and (number >> (8 << size) if number >= 0 else ~number >> ((8 << size) - 1)):
        size += 1
    data[at] = (_U8 if number >= 0 else _I8) + size
    store_64(address, number << (64 - (8 << size)))
    return at + 1 + (1 << size)


@njit(cache=True, error_model="numpy", _nrt=False)
def _put_list(data: NDArray[np.uint8], at: int, numbers: NDArray[np.float64]) -> int:
    """Numbers over the steps ahead, in lists of their own where there are several targets."""
    horizon, targets = numbers.shape
    at = _put_head(data, at, horizon, 0x90, 0x0F, _LIST16)
    for k in range(horizon):
        if targets > 1:
            at = _put_head(data, at, targets, 0x90, 0x0F, _LIST16)
        for t in range(targets):
            at = _put_double(data, at, numbers[k, t])
    return at
