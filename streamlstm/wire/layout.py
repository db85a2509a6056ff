"""Columns as Arrow lays them out in memory -> rows, in compiled code, which is given addresses.

Nothing needs to be aligned, and nothing is believed: an offset that leads out of its buffer is a
fault of its row. The layouts: https://arrow.apache.org/docs/format/Columnar.html
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm.jit import njit
from streamlstm.memory import load_f64, load_i64, load_u8, load_u16, load_u32, load_u64
from streamlstm.ticks import END, RESET, WARM
from streamlstm.wire.format import (
    ARRIVAL,
    BAD_KEY,
    BAD_TIMESTAMP,
    MALFORMED,
    NUMBERED,
    SOUND,
    UNSUPPORTED,
    WRONG_VALUES,
    Columns,
    key_fault,
)


class Texts(NamedTuple):
    """Where names lie; addresses, 0 where there is nothing."""

    validity: int
    """bits, one a row"""
    codes: int
    """int64, one a row, of the text it has; 0: the text of each row is its own"""
    texts: int
    """how many"""
    valid: int
    """bits, one a text"""
    width: int
    """bytes of each entry: 4 or 8, an offset; 16, a view"""
    entries: int
    data: NDArray[np.int64]
    """(buffers, 2) address and size of each, all of them in the message"""


class Numbers(NamedTuple):
    """Where the values lie."""

    validity: int
    """bits, one a row"""
    width: int
    """bytes of an offset: 4 or 8; 0: there are none, each row has ``size`` numbers"""
    entries: int
    size: int
    valid: int
    """bits, one a number"""
    data: int
    """float64"""
    numbers: int
    """how many"""


class Plain(NamedTuple):
    """Where the times, or booleans, lie."""

    validity: int
    """bits, one a row"""
    data: int
    """int64, or bits; 0: there is no such column"""


class Layout(NamedTuple):
    """Where all columns of a record batch lie."""

    rows: int
    texts: Texts
    publishers: Texts
    """without any texts where there is no such column"""
    numbers: Numbers
    stamps: Plain
    unit: int
    """nanoseconds"""
    warm: Plain
    reset: Plain
    end: Plain
    seq: Plain


class Places(NamedTuple):
    """Where in the message of a record batch lies what the next one has otherwise.

    Bytes from the message's begin; 0 where there is no such thing.
    """

    size: int
    """int64, bytes of the body"""
    rows: int
    """int64"""
    nodes: int
    """uint32, how many; then of each array, children after parents, two int64: rows, nulls"""
    buffers: int
    """uint32, how many; then of each two int64: an offset in the body, bytes"""
    body: int


# --- compiled -------------------------------------------------------------------------------------

_WARM, _RESET, _END = int(WARM), int(RESET), int(END)
_LAST = np.iinfo(np.int64).max
_CONTINUES = 0xFFFFFFFF
_DICTIONARY, _BATCH = 2, 3
"""Kinds of messages, ``MessageHeader`` in Arrow's Message.fbs."""
KIND, HEADER, BODY = 1, 2, 3
"""Places of the fields of a ``Message`` there."""
ROWS, NODES, BUFFERS, COMPRESSION = 0, 1, 2, 3
"""Those of a ``RecordBatch``."""
_DATA = 1
"""That of ``DictionaryBatch.data``, a ``RecordBatch``."""


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def take(columns: Columns, first: int, max_key: int, data: int, layout: Layout) -> None:
    """Read a record batch to the rows from ``first`` on; keys count from the address ``data``."""
    texts, numbers, stamps = layout.texts, layout.numbers, layout.stamps
    inputs, most = columns.values.shape[1], _LAST // layout.unit
    ascii_only = (
        texts.width != 16 and len(texts.data) == 1 and _is_ascii(texts.data[0, 0], texts.data[0, 1])
    )
    rare = layout.reset.data or layout.end.data or layout.seq.data
    for i in range(layout.rows):
        row, fault, flags = first + i, SOUND, 0
        if _is_true(layout.warm, i):
            flags |= _WARM
        if rare:
            if _is_true(layout.reset, i):
                flags |= _RESET
            if _is_true(layout.end, i):
                flags |= _END
            if layout.seq.data and _bit(layout.seq.validity, i):
                flags |= NUMBERED
                columns.seq[row] = load_i64(layout.seq.data + 8 * i)
                if columns.seq[row] < 0 or not _name_publisher(columns, row, data, layout, i):
                    fault = MALFORMED
        if stamps.data and _bit(stamps.validity, i):
            ts = load_i64(stamps.data + 8 * i)
            if not -most <= ts <= most:
                fault = BAD_TIMESTAMP
            columns.ts[row] = ts * layout.unit
        else:
            flags |= ARRIVAL

        begin, end = _list(numbers, i)
        if end - begin == inputs:
            for k in range(inputs):
                known = _bit(numbers.valid, begin + k)
                columns.values[row, k] = (
                    load_f64(numbers.data + 8 * (begin + k)) if known else np.nan
                )
        elif begin == end and flags & (_RESET | _END):
            columns.values[row] = np.nan
        else:
            fault = WRONG_VALUES

        text = _which(texts, i)
        if text >= 0:
            at, length = _text(texts, text)
            if length < 0:
                fault = MALFORMED
            elif not (ascii_only and 0 < length <= max_key):
                wrong = key_fault(at, length, max_key)
                fault = fault if wrong == SOUND else wrong
            columns.begin[row], columns.end[row] = at - data, at - data + length
        else:
            fault = BAD_KEY
        columns.flags[row], columns.fault[row] = flags, fault


@njit(cache=True, _nrt=False)
def _name_publisher(columns: Columns, row: int, data: int, layout: Layout, i: int) -> bool:
    """Say which publisher ``row`` has; False where its name lies outside of its buffer."""
    text, at, length = _which(layout.publishers, i), data, 0
    if text >= 0:
        at, length = _text(layout.publishers, text)
    columns.publisher[row, 0], columns.publisher[row, 1] = at - data, at - data + length
    return length >= 0


@njit(cache=True, _nrt=False, inline="always")
def _which(texts: Texts, i: int) -> Any:
    """The text of row ``i``; -1: it has none."""
    text = load_i64(texts.codes + 8 * i) if texts.codes else i
    if _bit(texts.validity, i) and 0 <= text < texts.texts and _bit(texts.valid, text):
        return text
    return -1


@njit(cache=True, _nrt=False)
def _is_ascii(address: int, size: int) -> bool:
    """Whether all bytes are ASCII characters but NUL, so that any of them are a name."""
    low, wrong, end = np.uint64(0x7F7F7F7F7F7F7F7F), np.uint64(0), address + size
    for at in range(address, end - 7, 8):
        word = load_u64(at)
        wrong |= word | ~((word & low) + low)
    for at in range(end - size % 8, end):
        if not 0 < load_u8(at) < 0x80:
            return False
    return wrong & ~low == 0


@njit(cache=True, _nrt=False, inline="always")
def _bit(bits: int, i: int) -> bool:
    """Whether bit ``i`` is set; without bits all are."""
    return bits == 0 or (load_u8(bits + (i >> 3)) >> np.uint8(i & 7)) & 1 == 1


@njit(cache=True, _nrt=False, inline="always")
def _is_true(column: Plain, i: int) -> bool:
    """Whether row ``i`` is true, in a column of bits."""
    return column.data != 0 and _bit(column.validity, i) and _bit(column.data, i)


@njit(cache=True, _nrt=False, inline="always")
def _entry(entries: int, width: int, i: int) -> Any:
    """An offset of 4 or 8 bytes."""
    return load_i64(entries + 8 * i) if width == 8 else _i32(entries + 4 * i)


@njit(cache=True, _nrt=False, inline="always")
def _i32(address: int) -> Any:
    return np.int64(np.int32(load_u32(address)))


@njit(cache=True, _nrt=False)
def _list(numbers: Numbers, i: int) -> tuple[int, int]:
    """Which numbers row ``i`` has; fewer than none where that cannot be."""
    if numbers.width:
        begin = _entry(numbers.entries, numbers.width, i)
        end = _entry(numbers.entries, numbers.width, i + 1)
    else:
        begin, end = i * numbers.size, (i + 1) * numbers.size
    if not 0 <= begin <= end <= numbers.numbers:
        return 0, -1
    if not _bit(numbers.validity, i):
        return 0, 0
    return begin, end


@njit(cache=True, _nrt=False)
def _text(texts: Texts, i: int) -> tuple[int, int]:
    """Address and length of a text; its length is -1 where it lies outside of its buffer."""
    if texts.width == 16:
        view = texts.entries + 16 * i
        length, buffer, begin = _i32(view), _i32(view + 8), _i32(view + 12)
        if 0 <= length <= 12:
            return view + 4, length
        end = begin + length
    else:
        begin = _entry(texts.entries, texts.width, i)
        end, buffer = _entry(texts.entries, texts.width, i + 1), 0
    if not (0 <= buffer < len(texts.data) and 0 <= begin <= end <= texts.data[buffer, 1]):
        return texts.entries, -1
    return texts.data[buffer, 0] + begin, end - begin


@njit(cache=True, _nrt=False)
def places(message: int) -> Places:
    """Those of a message that is whole, at an address; all 0 where it is of another kind."""
    base, length = message + 8, _i32(message + 4)
    root = np.int64(load_u32(base))
    kind, header = field(base, length, root, KIND, 1), table(base, length, root, HEADER)
    if kind <= 0 or load_u8(base + kind) != _BATCH:
        return Places(0, 0, 0, 0, 0)
    return Places(
        _behind(field(base, length, root, BODY, 8)),
        _behind(field(base, length, header, ROWS, 8)),
        _behind(table(base, length, header, NODES)),
        _behind(table(base, length, header, BUFFERS)),
        8 + length,
    )


@njit(cache=True, _nrt=False, inline="always")
def _behind(at: int) -> int:
    """A place in a FlatBuffer, in a message."""
    return 8 + at if at > 0 else 0


@njit(cache=True, nogil=True, _nrt=False)
def envelope_fault(stream: int, size: int) -> int:
    """``UNSUPPORTED`` where a body is compressed, ``MALFORMED`` where that cannot be told.

    pyarrow would expand to memory whatever a few bytes claim to be. A stream is of messages: the
    continuation, the size of a FlatBuffer, the FlatBuffer (a ``Message``), and its body.
    """
    at = 0
    while at + 8 <= size:
        length = _i32(stream + at + 4)
        if load_u32(stream + at) != _CONTINUES or not 0 <= length <= size - at - 8:
            return MALFORMED
        if length == 0:  # the end of the stream
            break
        base = stream + at + 8
        if length < 4:
            return MALFORMED
        message = np.int64(load_u32(base))
        kind_at = field(base, length, message, KIND, 1)
        body_at = field(base, length, message, BODY, 8)
        header = table(base, length, message, HEADER)
        if kind_at < 0 or body_at < 0 or header < 0:
            return MALFORMED
        kind = load_u8(base + kind_at) if kind_at else np.uint8(0)
        if kind == _DICTIONARY:
            header = table(base, length, header, _DATA)
        if kind in (_DICTIONARY, _BATCH):
            compressed = field(base, length, header, COMPRESSION, 4)
            if header <= 0 or compressed < 0:
                return MALFORMED
            if compressed:
                return UNSUPPORTED
        body = load_i64(base + body_at) if body_at else 0
        if not 0 <= body <= size - at - 8 - length:
            return MALFORMED
        at += 8 + length + body
    return SOUND if at else MALFORMED


@njit(cache=True, _nrt=False)
def table(base: int, size: int, parent: int, number: int) -> Any:
    """Where the table or vector lies that a field refers to; 0: there is none; -1: damaged."""
    at = field(base, size, parent, number, 4)
    return at + np.int64(load_u32(base + at)) if at > 0 else at


@njit(cache=True, _nrt=False)
def field(base: int, size: int, parent: int, number: int, width: int) -> Any:
    """Where a field of a table in a FlatBuffer lies; 0: there is none; -1: it is damaged.

    Args:
        base, size: address and bytes of the FlatBuffer; where something lies counts from there.
        parent: where the table lies.
        number: of the field, in the order of its declaration.
        width: bytes of the field.
    """
    if not 0 < parent <= size - 4:
        return -1
    vtable = parent - _i32(base + parent)
    if not 0 <= vtable <= size - 4:
        return -1
    length = np.int64(load_u16(base + vtable))
    if length < 6 + 2 * number:
        return 0
    if vtable + length > size:
        return -1
    offset = np.int64(load_u16(base + vtable + 4 + 2 * number))
    if offset == 0:
        return 0
    return parent + offset if parent + offset <= size - width else -1
