"""arrow: many ticks, or many predictions, in one message; needs pyarrow (the extra ``arrow``).

**Ticks.** One frame, or two of which the first is a topic to subscribe to and means nothing. The
frame is an Arrow IPC stream (not a file): a schema and record batches of these columns, of at most
``MOST_ROWS`` rows together; their order, and columns of other names, mean nothing.

=============  =====================================================================================
``series``     utf8, large_utf8, utf8_view, or a dictionary of one of them
``value``      any integer or floating-point type; null or NaN where it is missing
``values``     instead of ``value``: a list, large_list or fixed_size_list of such a type, one for
               each input of the model; each row must have one
``ts``         timestamp of any unit and zone (Arrow counts all from 1970 UTC; without a zone it is
               taken for UTC), or int64 Unix nanoseconds; where null, and where there is no such
               column, the arrival time
``warm``       bool; true: the series moves, no prediction is published
``reset``      bool; true: the series starts anew, and then takes the value, which may be null
``end``        bool; true: the series takes the value, if it is not null, and is then closed
``seq``        any integer type; from 0 on, rises by 1 with each tick of the publisher: gaps are
               counted
``publisher``  as ``series``; whose numbers these are; null, and without it, the empty text
=============  =====================================================================================

Ticks are taken in the order of the rows; one that is faulty is dropped, and those beside it are
taken. A compressed body is refused, and so is a dictionary that is sent in parts (deltas).

**Predictions.** Two frames: the topic ``predictions.batch``, and an Arrow IPC stream of one record
batch, a row for each prediction:

============  ======================================================================================
``series``    utf8
``ts``        timestamp[ns, UTC], of the tick
``forecast``  fixed_size_list of float64, one for each step ahead; where there are several targets,
              of fixed_size_lists of them
``lower``     the same; NaN where no interval is known
``upper``     the same
``seq``       int64, counts the predictions of a series from 1
============  ======================================================================================

The schema's metadata says ``model`` and ``boot``, as decimal digits. Of each further coverage there
are two columns like ``lower`` and ``upper``, named ``lower_0.5`` and ``upper_0.5`` where it is 0.5.
Where the daemon says how good the forecasts are, there is a column of float64 for each of
:data:`streamlstm.watch.MEASURES`.

How: pyarrow finds where the columns lie, and compiled code reads them there: names stay in the
message, numbers go straight to their rows. No object is made for a tick. Where pyarrow has read
a message of the same schema before, compiled code finds them too (:mod:`streamlstm.wire.schemas`),
but for messages that are not sound, or of which a row is not.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamlstm.jit import njit
from streamlstm.memory import copy, load_u32, store_f64, store_u32, store_u64
from streamlstm.ticks import Forecasts, Messages, Names
from streamlstm.wire.format import (
    BATCH,
    FRAME_TOO_LARGE,
    MALFORMED,
    SOUND,
    UNSUPPORTED,
    Columns,
    Limits,
    MessageLayout,
    Reader,
    Shape,
    Writer,
)
from streamlstm.wire.layout import (
    Layout,
    Numbers,
    Plain,
    Texts,
    envelope_fault,
    places,
    take,
)
from streamlstm.wire.schemas import KNOWN, MOST_ROWS, SCHEMAS, UNITS, read, read_one, remember

END = 32
"""Bytes of a stream's end, and of what fills up its buffers, at most."""
PATIENCE = 64
"""Messages that pyarrow reads for one that is looked at to be remembered, but for the first few."""
SHOWN = 40
"""Bytes of what is no stream that a sample shows."""
UNREADABLE = (pa.ArrowException, OSError, ValueError, LookupError, TypeError, MemoryError)
"""What reading a stream may raise."""


class RefusedError(Exception):
    """A message that is not taken: its fault, and what is wrong in words."""

    def __init__(self, fault: int, why: str) -> None:
        super().__init__(why)
        self.fault = fault


class ArrowReader(Reader):
    """Reads messages like earlier ones in compiled code, and the others by pyarrow."""

    batch = True

    def __init__(self, inputs: int, limits: Limits, most: int) -> None:
        """As :class:`Reader`; ``most`` messages at once."""
        super().__init__(inputs, limits, MOST_ROWS + most, SCHEMAS * KNOWN.itemsize)
        self._why: dict[int, str] = {}
        self._known, self._missed = self.columns.scratch.view(KNOWN), 0
        # so that all is compiled and loaded that a tick can need
        names, number = pa.array(["a"]), pa.array([0], pa.int8())
        for series, value in ((names.dictionary_encode(), number), (names, number.cast(_NUMBER))):
            batch = pa.record_batch({"series": series, "value": value})
            self.read(Messages.of([[serialize(batch)]]), 1)
        self.columns.scratch[:], self._missed = 0, 0

    @property
    def compiled(self) -> Any:
        """As :attr:`Reader.compiled`."""
        return read

    def read(self, messages: Messages, count: int) -> tuple[Columns, int]:
        """As :meth:`Reader.read`; a message that is refused has one row, and no other."""
        row = 0
        self._why.clear()
        for m in range(count):
            rows = read_one(messages, m, self.columns, row, self.limits)
            row += rows if rows >= 0 else self.read_one(messages, m, row)
        return self.columns, row

    def read_one(self, messages: Messages, m: int, first: int) -> int:
        """Read message ``m`` by pyarrow to the rows from ``first`` on; how many they are."""
        data, row = messages.data.ctypes.data, first
        try:
            for layout in self._layouts(messages, m, MOST_ROWS - row):
                take(self.columns, row, self.limits.max_key, data, layout)
                row += layout.rows
        except RefusedError as refused:
            self.columns.fault[first] = refused.fault
            self._why[first] = str(refused)
            return 1
        return row - first

    def show(self, messages: Messages, row: int) -> str:
        """As :meth:`Reader.show`."""
        return self._why.get(row) or f"row {row} of a batch"

    def _layouts(self, messages: Messages, m: int, room: int) -> Iterator[Layout]:
        """Of each record batch of message ``m``; holds until the next is asked for.

        Raises:
            RefusedError: the message is not to be taken, nor what was given of it.
        """
        first, end = messages.first[m : m + 2].tolist()
        if not 1 <= end - first <= 2:
            raise RefusedError(
                MALFORMED, f"{end - first} frames; send a stream, or a topic and one"
            )
        begin, stop = messages.frames[end - 1 : end + 1].tolist()
        if stop - begin > self.limits.max_frame:
            raise RefusedError(
                FRAME_TOO_LARGE,
                f"more than {self.limits.max_frame} bytes; raise input.max_frame, or send fewer"
                " rows in a message",
            )
        stream = messages.data[begin:stop]
        address = stream.ctypes.data
        fault = envelope_fault(address, stop - begin)
        if fault == UNSUPPORTED:
            raise RefusedError(fault, "a compressed body; write it without compression")
        if fault != SOUND:
            raise RefusedError(fault, f"not an Arrow IPC stream: {stream[:SHOWN].tobytes()!r}")
        try:
            batches = pa.ipc.open_stream(pa.py_buffer(stream), options=_READING)
            for k, batch in enumerate(batches):
                room -= batch.num_rows
                if room < 0:
                    raise RefusedError(
                        FRAME_TOO_LARGE, f"too many rows; send {MOST_ROWS} in a message at most"
                    )
                if batch.num_rows:
                    # in variables, so that what had to be converted stays until it is read
                    codes, names = _names(_column(batch, "series"))
                    lists, numbers = _values(batch)
                    stamps, marks = _column(batch, "ts", False), _marks(batch)
                    numbered, by, publishers = _numbering(batch)
                    layout = Layout(
                        batch.num_rows,
                        _texts(codes, names, address, address + stop - begin),
                        _texts(by, publishers, address, address + stop - begin),
                        _numbers(lists, numbers),
                        *_stamps(stamps),
                        _bools(marks[0]),
                        _bools(marks[1]),
                        _bools(marks[2]),
                        _stamps(numbered)[0],
                    )
                    if k == 0:
                        self._learn(stream, batch.schema, layout)
                    yield layout
        except UNREADABLE as error:
            raise RefusedError(MALFORMED, str(error).partition("\n")[0]) from None

    def _learn(self, stream: NDArray[np.uint8], schema: Any, layout: Layout) -> None:
        """Remember a stream, if it is plain and its turn has come."""
        self._missed += 1
        turn, waited = divmod(self._missed, PATIENCE)
        if self._missed <= SCHEMAS or not waited:
            remember(self._known, (turn or self._missed) % SCHEMAS, stream, schema, layout)


class ArrowWriter(Writer):
    """Writes all in compiled code, but for what pyarrow writes once.

    The schema never changes; the metadata of a record batch does in a few numbers, each in a place
    of its own. So the room for messages begins with all of that, as pyarrow writes it.
    """

    batch = True

    def __init__(self, shape: Shape) -> None:
        """As :class:`Writer`."""
        step: tuple[Any, Any] = pa.float64(), 1.0
        if shape.targets > 1:
            step = pa.list_(step[0], shape.targets), [step[1]] * shape.targets
        steps, ones = pa.list_(step[0], shape.horizon), [step[1]] * shape.horizon
        ends = [f"{end}_{each}" for each in shape.further for end in ("lower", "upper")]
        lists = ["forecast", "lower", "upper", *ends]
        kinds = {"series": pa.utf8(), "ts": pa.timestamp("ns", "UTC")}
        kinds |= dict.fromkeys(lists, steps) | dict.fromkeys(shape.quality, pa.float64())
        kinds["seq"] = pa.int64()
        schema = pa.schema(kinds, {"model": shape.model, "boot": str(shape.boot)})
        row = {"series": "1", "ts": 1, "seq": 1} | dict.fromkeys(lists, ones)
        row |= dict.fromkeys(shape.quality, 1.0)
        batch = pa.RecordBatch.from_pylist([row], schema)
        begin = BATCH + schema.serialize().to_pybytes()
        message = np.frombuffer(bytearray(batch.serialize()), np.uint8)
        metadata = message[: places(message.ctypes.data).body].tobytes()
        head = begin + metadata
        numbers = 2 + len(shape.quality) + len(lists) * shape.horizon * shape.targets
        each = 4 + shape.max_key + 8 * numbers
        super().__init__(shape, [], len(head) + shape.most * each + END, growth=0)
        self.messages.data[: len(head)] = np.frombuffer(head, np.uint8)
        self.messages.frames[1], self.messages.first[1] = len(BATCH), 2

    @property
    def compiled(self) -> Any:
        """As :attr:`Writer.compiled`."""
        return _write


def serialize(batch: Any) -> bytes:
    """A record batch as an IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=_WRITING) as stream:
        stream.write_batch(batch)
    return bytes(sink.getvalue())


_NUMBER, _INT = pa.float64(), pa.int64()
_READING = pa.ipc.IpcReadOptions(use_threads=False)
_WRITING = pa.ipc.IpcWriteOptions(use_threads=False)


# --- where the columns of a record batch lie ------------------------------------------------------


def _column(batch: Any, name: str, needed: bool = True) -> Any:
    """A column whose buffers are there and long enough; None where there is none."""
    found = batch.schema.get_all_field_indices(name)
    if len(found) > 1 or (needed and not found):
        raise ValueError(f"{len(found)} columns {name!r}; there is to be one")
    if not found:
        return None
    column = batch.column(found[0])
    column.validate()
    if column.offset:
        raise ValueError(f"column {name!r} does not begin where its buffers do")
    return column


def _names(column: Any) -> tuple[Any, Any]:
    """The codes of a dictionary as int64 and its texts; without one, None and the texts."""
    if not pa.types.is_dictionary(column.type):
        return None, column
    column.dictionary.validate()
    return column.indices.cast(pa.int64(), safe=False), column.dictionary


def _values(batch: Any) -> tuple[Any, Any]:
    """The lists of numbers, None where each row has one, and the numbers as float64."""
    lists, numbers = None, _column(batch, "value", False)
    if numbers is None:
        lists = _column(batch, "values")
        kind = lists.type
        if not (
            pa.types.is_list(kind) or pa.types.is_large_list(kind)
            or pa.types.is_fixed_size_list(kind)
        ):  # fmt: skip
            raise ValueError(f"values are of type {kind}; they are to be lists")
        numbers = lists.values
        numbers.validate()
    if not (pa.types.is_floating(numbers.type) or pa.types.is_integer(numbers.type)):
        raise ValueError(f"a value is of type {numbers.type}; it is to be a number")
    if numbers.type != _NUMBER:
        numbers = numbers.cast(_NUMBER, safe=False)
    return lists, numbers


def _address(buffer: Any, least: int) -> int:
    """Where a buffer begins that has to have so many bytes."""
    if buffer is None or buffer.size < least:
        raise ValueError("a buffer is missing or too short")
    return buffer.address


def _bits(buffer: Any, rows: int) -> int:
    """Where the validity of ``rows`` begins; 0: there is none, all are valid."""
    return _address(buffer, -(-rows // 8)) if buffer else 0


def _marks(batch: Any) -> list[Any]:
    """The columns of flags, None where there is none."""
    marks = [_column(batch, name, False) for name in ("warm", "reset", "end")]
    for mark in marks:
        if not (mark is None or pa.types.is_null(mark.type) or pa.types.is_boolean(mark.type)):
            raise ValueError(f"warm, reset or end is of type {mark.type}; they are to be bool")
    return marks


def _numbering(batch: Any) -> tuple[Any, Any, Any]:
    """The numbers as int64, and the publishers as :func:`_names`; None where there are none."""
    numbers, publishers = _column(batch, "seq", False), _column(batch, "publisher", False)
    if numbers is None or pa.types.is_null(numbers.type):
        return None, None, None
    if not pa.types.is_integer(numbers.type):
        raise ValueError(f"seq is of type {numbers.type}; it is to be an integer")
    numbers = numbers.view(_INT) if numbers.type == pa.uint64() else numbers.cast(_INT)
    if publishers is None or pa.types.is_null(publishers.type):
        return numbers, None, None
    return numbers, *_names(publishers)


def _texts(codes: Any, names: Any, begin: int, end: int) -> Texts:
    """Where names lie; their bytes from ``begin`` to ``end``, in the message."""
    if names is None:
        return Texts(0, 0, 0, 0, 4, 0, np.zeros((0, 2), np.int64))
    kind, count = names.type, len(names)
    if pa.types.is_string_view(kind):
        width, entries = 16, count
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        width, entries = 4 if pa.types.is_string(kind) else 8, count + 1
    else:
        raise ValueError(f"a name is of type {kind}; it is to be utf8")
    valid, entry, *data = names.buffers()
    index = _address(entry, width * entries) if count else 0  # of a dictionary that is empty
    held = [(text.address, text.size) if text else (begin, 0) for text in data]
    inside = [*held, (index, width * entries)] if width == 16 and count else held
    if not all(begin <= at and at + size <= end for at, size in inside):
        raise RefusedError(
            UNSUPPORTED, "a dictionary in parts, or another byte order; send neither"
        )
    bits, where = _bits(valid, count), np.array(held, np.int64).reshape(-1, 2)
    if codes is None:
        return Texts(bits, 0, count, bits, width, index, where)
    known, numbers = codes.buffers()
    rows = len(codes)
    return Texts(_bits(known, rows), _address(numbers, 8 * rows), count, bits, width, index, where)


def _numbers(lists: Any, numbers: Any) -> Numbers:
    count, width, index, size = len(numbers), 0, 0, 1
    valid, data = numbers.buffers()
    bits, where, validity = _bits(valid, count), _address(data, 8 * count) if count else 0, 0
    if lists is not None:
        validity = _bits(lists.buffers()[0], len(lists))
        if pa.types.is_fixed_size_list(lists.type):
            size = lists.type.list_size
        else:
            width = 4 if pa.types.is_list(lists.type) else 8
            index = _address(lists.buffers()[1], width * (len(lists) + 1))
    return Numbers(validity, width, index, size, bits, where, count)


def _stamps(column: Any) -> tuple[Plain, int]:
    """Where the times lie, and their unit in nanoseconds."""
    if column is None or pa.types.is_null(column.type):
        return Plain(0, 0), 1
    timed, rows = pa.types.is_timestamp(column.type), len(column)
    if not (timed or pa.types.is_int64(column.type)):
        raise ValueError(f"ts is of type {column.type}; it is to be a timestamp or int64")
    valid, data = column.buffers()
    unit = UNITS[column.type.unit] if timed else 1
    return Plain(_bits(valid, rows), _address(data, 8 * rows)), unit


def _bools(column: Any) -> Plain:
    if column is None or pa.types.is_null(column.type):
        return Plain(0, 0)
    valid, data = column.buffers()
    return Plain(_bits(valid, len(column)), _address(data, -(-len(column) // 8)))


# --- compiled -------------------------------------------------------------------------------------

_TOPIC_SIZE = len(BATCH)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _write(
    messages: Messages, layout: MessageLayout, forecasts: Forecasts, names: Names, begin: int
) -> int:
    end = min(begin + len(messages.first) - 1, len(forecasts.slot))
    data, source, longest = messages.data.ctypes.data, names.text.ctypes.data, names.text.strides[0]
    horizon, targets, rows = forecasts.point.shape[1], forecasts.point.shape[2], end - begin
    outputs = horizon * targets
    schema = data + _TOPIC_SIZE
    message = schema + 8 + np.int64(load_u32(schema + 4))
    found = places(message)
    node, buffer, body = (
        message + found.nodes + 4,
        message + found.buffers + 4,
        message + found.body,
    )

    at = _padded(4 * (rows + 1))
    text = at
    store_u64(body + at - 8, np.uint64(0))
    store_u32(body, np.uint32(0))
    for i in range(rows):
        slot = np.int64(forecasts.slot[begin + i])
        length = np.int64(names.lengths[slot])
        copy(body + text, source + slot * longest, length)
        text += length
        store_u32(body + 4 * (i + 1), np.uint32(text - at))
    node, buffer = _pair(node, rows, 0), _pair(buffer, 0, 0)
    buffer = _pair(_pair(buffer, 0, 4 * (rows + 1)), at, text - at)
    store_u64(body + text, np.uint64(0))
    at = _padded(text)

    node, buffer = _pair(node, rows, 0), _pair(_pair(buffer, at, 0), at, 8 * rows)
    copy(body + at, forecasts.ts.ctypes.data + 8 * begin, 8 * rows)
    at += 8 * rows

    size, levels = 8 * outputs, forecasts.quantiles.shape[1]
    for part in range(1 + levels):
        node, buffer = _pair(node, rows, 0), _pair(buffer, at, 0)
        if targets > 1:
            node, buffer = _pair(node, rows * horizon, 0), _pair(buffer, at, 0)
        node = _pair(node, rows * outputs, 0)
        buffer = _pair(_pair(buffer, at, 0), at, size * rows)
        if part == 0:
            copy(body + at, forecasts.point.ctypes.data + size * begin, size * rows)
        else:
            for i in range(rows):
                row = levels * (begin + i) + part - 1
                copy(body + at + size * i, forecasts.quantiles.ctypes.data + size * row, size)
        at += size * rows

    for k in range(forecasts.quality.shape[1]):
        node, buffer = _pair(node, rows, 0), _pair(_pair(buffer, at, 0), at, 8 * rows)
        for i in range(rows):
            store_f64(body + at + 8 * i, forecasts.quality[begin + i, k])
        at += 8 * rows

    _pair(node, rows, 0)
    _pair(_pair(buffer, at, 0), at, 8 * rows)
    copy(body + at, forecasts.seq.ctypes.data + 8 * begin, 8 * rows)
    at += 8 * rows

    store_u64(message + found.rows, np.uint64(rows))
    store_u64(message + found.size, np.uint64(at))
    store_u64(body + at, np.uint64(0xFFFFFFFF))  # the end of the stream
    messages.frames[2] = body + at + 8 - data
    return end


@njit(cache=True, _nrt=False, inline="always")
def _pair(address: int, first: int, second: int) -> int:
    """Write two numbers, a node or a buffer; returns where the next goes."""
    store_u64(address, np.uint64(first))
    store_u64(address + 8, np.uint64(second))
    return address + 16


@njit(cache=True, _nrt=False, inline="always")
def _padded(size: int) -> int:
    """Every buffer begins at a multiple of 8 bytes."""
    return (size + 7) & ~7
