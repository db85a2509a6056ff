"""Arrow streams like one that pyarrow has read before -> rows, in compiled code.

What a sender writes before the columns hardly changes: the schema is the same in all its messages,
and the metadata of a record batch differs in a few numbers, each in a place of its own. So the
bytes of a stream from its begin to the body of its first record batch are remembered, with a mask
over those numbers, and so is which of its buffers hold the columns that matter. A stream that
begins with the same bytes is read here: the numbers are checked, as pyarrow would and not less
strictly, and all other bytes are known to be sound.

Only a stream is remembered in which this code finds the columns where pyarrow found them. So there
is no dictionary, no number to be converted, no other byte order.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamlstm.jit import njit
from streamlstm.memory import load_i64, load_u32, load_u64
from streamlstm.ticks import Messages
from streamlstm.wire.format import SOUND, UNREAD, Columns, Limits
from streamlstm.wire.layout import Layout, Numbers, Plain, Texts, places, take

MOST_ROWS = 1 << 16
"""Ticks of a message at most."""
SCHEMAS = 4
"""Remembered at once."""
LONGEST, NODES = 8192, 64
"""Bytes of a stream before its first body, and arrays of a record batch, at most to remember it."""
COLUMNS = ("series", "values", "ts", "warm", "reset", "end", "seq", "publisher")
"""Those that matter; ``value`` stands for ``values`` too."""
UNITS = {"s": 10**9, "ms": 10**6, "us": 1000, "ns": 1}
"""Nanoseconds in each."""

KNOWN = np.dtype(
    [
        ("size", "i8"),  # bytes remembered; 0: nothing is
        ("head", "i8"),  # those of the schema
        # in the message of a record batch, as Places
        ("body_size", "i8"),
        ("rows", "i8"),
        ("nodes", "i8"),
        ("buffers", "i8"),
        # the node and the first buffer of each column; -1: there is none
        ("series", "i8", (2,)),
        ("values", "i8", (2,)),
        ("ts", "i8", (2,)),
        ("warm", "i8", (2,)),
        ("reset", "i8", (2,)),
        ("end", "i8", (2,)),
        ("seq", "i8", (2,)),
        ("publisher", "i8", (2,)),
        ("text_width", "i8"),  # bytes of an offset
        ("publisher_width", "i8"),
        ("in_lists", "i8"),
        ("list_width", "i8"),  # bytes of an offset; 0: each list has list_size numbers
        ("list_size", "i8"),
        ("unit", "i8"),  # of ts, nanoseconds
        ("text", "i8", (1, 2)),  # room for Texts.data
        ("publisher_text", "i8", (1, 2)),
        ("column", "i1", (NODES,)),  # whether each node is of a column, not of something in one
        ("bytes", "u8", (LONGEST // 8,)),
        ("mask", "u8", (LONGEST // 8,)),
    ],
    align=True,
)
"""What is known of streams with one schema, all of it checked."""


def remember(
    known: NDArray[np.void], k: int, stream: NDArray[np.uint8], schema: Any, layout: Layout
) -> bool:
    """Let a sound stream be the one known as ``k``, if it can be; whether it is.

    Args:
        known: (n,) of :data:`KNOWN`.
        schema, layout: what pyarrow found in it, and where it found its first record batch.
    """
    address = stream.ctypes.data
    head = 8 + int(stream[4:8].view(np.int32)[0])
    found = places(address + head)
    size = head + found.body
    if min(found) == 0 or size > LONGEST or head % 8 or size % 8:
        return False
    if known_as(known, address, len(stream)) >= 0:
        return False
    given, mask = np.zeros(LONGEST, np.uint8), np.full(LONGEST, 0xFF, np.uint8)
    given[:size] = stream[:size]
    batch, counts = slice(head, size), []
    for at in (found.size, found.rows):
        mask[batch][at : at + 8] = 0
    for at in (found.nodes, found.buffers):
        count = int(given[batch][at : at + 4].view(np.int32)[0])
        mask[batch][at + 4 : at + 4 + 16 * count] = 0
        counts.append(count)
    made = np.zeros(1, KNOWN)
    made["size"], made["head"] = size, head
    made["body_size"], made["rows"], made["nodes"], made["buffers"] = found[:4]
    made["bytes"], made["mask"] = given.view(np.uint64), mask.view(np.uint64)
    if not _describe(made[0], schema, counts):
        return False
    if not _agrees(made, address + head, len(stream) - head, layout):
        return False
    known[k] = made[0]
    return True


def _describe(made: Any, schema: Any, counts: list[int]) -> bool:
    """Say of each column that matters where it is; whether that is sure.

    Args:
        counts: nodes and buffers that a record batch has.
    """
    node = buffer = 0
    kinds = {}
    for name in COLUMNS:
        made[name] = -1
    values = "value" if "value" in schema.names else "values"
    for field in schema:
        size = _size(field.type)
        if size is None or node >= NODES:
            return False
        made["column"][node] = 1
        kinds[field.name] = field.type
        if field.name == values:
            made["values"] = node, buffer
        elif field.name in COLUMNS and field.name != "values":
            made[field.name] = node, buffer
        node, buffer = node + size[0], buffer + size[1]
    if [node, buffer] != counts or node > NODES:
        return False
    if "seq" not in kinds:  # then it means nothing
        made["publisher"] = -1
    for name, width in (("series", "text_width"), ("publisher", "publisher_width")):
        made[width] = 8 if name in kinds and pa.types.is_large_string(kinds[name]) else 4
    made["in_lists"], made["list_size"], kind = values == "values", 1, kinds[values]
    if pa.types.is_fixed_size_list(kind):
        made["list_size"] = kind.list_size
    elif values == "values":
        made["list_width"] = 8 if pa.types.is_large_list(kind) else 4
    stamps = kinds.get("ts")
    made["unit"] = UNITS[stamps.unit] if stamps and pa.types.is_timestamp(stamps) else 1
    return True


_TEXTS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_binary,
    pa.types.is_large_binary,
)


def _size(kind: Any) -> tuple[int, int] | None:
    """Nodes and buffers of a column of a type; None where that is not sure."""
    is_a = pa.types
    within, buffers = [], 2
    if is_a.is_struct(kind):
        within, buffers = [kind.field(i).type for i in range(kind.num_fields)], 1
    elif is_a.is_fixed_size_list(kind):
        within, buffers = [kind.value_type], 1
    elif is_a.is_list(kind) or is_a.is_large_list(kind):
        within = [kind.value_type]
    elif any(is_text(kind) for is_text in _TEXTS):
        buffers = 3
    elif not (is_a.is_primitive(kind) or is_a.is_decimal(kind) or is_a.is_fixed_size_binary(kind)):
        return None
    nodes = 1
    for each in within:
        size = _size(each)
        if size is None:
            return None
        nodes, buffers = nodes + size[0], buffers + size[1]
    return nodes, buffers


# --- compiled -------------------------------------------------------------------------------------

_END = np.uint64(0xFFFFFFFF)
"""Of a stream: the continuation, and no message."""


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def read(messages: Messages, count: int, columns: Columns, limits: Limits) -> int:
    """As :attr:`Reader.compiled`."""
    row = 0 * count  # no literal, which would be another type
    for m in range(count):
        rows = read_one(messages, m, columns, row, limits)
        if rows < 0:
            columns.fault[row] = UNREAD
            rows = 1
        row += rows
    return row


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def read_one(messages: Messages, m: int, columns: Columns, first: int, limits: Limits) -> int:
    """Read message ``m`` to the rows from ``first`` on, and return how many they are.

    -1: it is for pyarrow to read; the rows mean nothing.
    """
    last = messages.first[m + 1]
    if not 1 <= last - messages.first[m] <= 2:
        return -1
    begin, end = messages.frames[last - 1], messages.frames[last]
    if end - begin > limits.max_frame:
        return -1
    data = np.int64(messages.data.ctypes.data)  # as Python says it
    at, stop, row = data + begin, data + end, first
    table = columns.scratch.view(KNOWN)
    k = known_as(table, at, stop - at)
    if k < 0:
        return -1
    known = table[k]
    at += known.head
    while at != stop:
        if stop - at >= 8 and load_u64(at) == _END:
            break
        if not _begins_as(known, known.head, at, stop - at):
            return -1
        layout = _layout(known, at, stop - at)
        if not 0 < layout.rows <= MOST_ROWS - row:
            return -1
        take(columns, row, limits.max_key, data, layout)
        for _ in range(layout.rows):
            if columns.fault[row] != SOUND:
                return -1
            row += 1
        at += known.size - known.head + load_i64(at + known.body_size)
    return row - first


@njit(cache=True, nogil=True, _nrt=False)
def known_as(known: NDArray[np.void], stream: int, size: int) -> int:
    """Which of those known a stream of ``size`` bytes at an address begins as; -1: none."""
    for k in range(len(known)):
        if known[k].size and _begins_as(known[k], 0, stream, size):
            return k
    return -1


@njit(cache=True, _nrt=False)
def _begins_as(known: Any, skipped: int, address: int, size: int) -> bool:
    """Whether ``size`` bytes at an address begin as what is known, but for its first bytes."""
    if size < known.size - skipped:
        return False
    given, mask, wrong = known.bytes, known.mask, np.uint64(0)
    address -= skipped
    for word in range(skipped >> 3, known.size >> 3):
        wrong |= (load_u64(address + 8 * word) ^ given[word]) & mask[word]
    return wrong == 0


@njit(cache=True, _nrt=False)
def _layout(known: Any, batch: int, size: int) -> Layout:
    """Where the columns of a record batch lie whose message begins at an address.

    Its rows are -1 where a number in it cannot be, or a column that matters has too little room.
    """
    rows, body_size = load_i64(batch + known.rows), load_i64(batch + known.body_size)
    body = batch + known.size - known.head
    nodes, buffers = batch + known.nodes, batch + known.buffers
    sound = 0 < rows <= MOST_ROWS and 0 <= body_size <= size - (body - batch) and body_size & 7 == 0
    for k in range(np.int64(load_u32(nodes))):
        length, nulls = _pair(nodes, k)
        sound &= 0 <= nulls <= length and (known.column[k] == 0 or length == rows)
    for k in range(np.int64(load_u32(buffers))):
        begin, length = _pair(buffers, k)
        sound &= begin & 7 == 0 and 0 <= begin <= body_size and 0 <= length <= body_size - begin

    names = _texts(known.series, known.text_width, known.text[:], nodes, buffers, body, rows)
    publishers = Texts(0, 0, 0, 0, 4, 0, known.publisher_text[:])
    if known.publisher[0] >= 0:
        publishers = _texts(
            known.publisher,
            known.publisher_width,
            known.publisher_text[:],
            nodes,
            buffers,
            body,
            rows,
        )

    node, buffer = known.values[0], known.values[1]
    valid_lists = lists = 0
    if known.in_lists:
        valid_lists = _bits(nodes, node, buffers, buffer, body)
        node, buffer = node + 1, buffer + 1
        if known.list_width:
            lists = _part(buffers, buffer, body, known.list_width * (rows + 1))
            buffer += 1
    count, _ = _pair(nodes, node)
    sound &= count <= body_size >> 3  # so that nothing below is beyond 64 bits
    sound &= known.list_width != 0 or count == rows * known.list_size
    count = count if sound else 0
    valid_numbers = _bits(nodes, node, buffers, buffer, body)
    numbers = _part(buffers, buffer + 1, body, 8 * count)

    stamps = _plain(known.ts, nodes, buffers, body, 8 * rows)
    warm = _plain(known.warm, nodes, buffers, body, (rows + 7) >> 3)
    reset = _plain(known.reset, nodes, buffers, body, (rows + 7) >> 3)
    ended = _plain(known.end, nodes, buffers, body, (rows + 7) >> 3)
    seq = _plain(known.seq, nodes, buffers, body, 8 * rows)
    least = min(valid_lists, lists, valid_numbers, numbers)
    for texts in (names, publishers):
        least = min(least, texts.valid, texts.entries)
    for column in (stamps, warm, reset, ended, seq):
        least = min(least, column.validity, column.data)
    return Layout(
        rows if sound and least >= 0 else -1,
        names,
        publishers,
        Numbers(
            valid_lists, known.list_width, lists, known.list_size, valid_numbers, numbers, count
        ),
        stamps,
        known.unit,
        warm,
        reset,
        ended,
        seq,
    )


@njit(cache=True, _nrt=False)
def _texts(
    column: NDArray[np.int64],
    width: int,
    data: NDArray[np.int64],
    nodes: int,
    buffers: int,
    body: int,
    rows: int,
) -> Texts:
    """Where the texts of a column lie; an address is -1 where there is too little room."""
    node, buffer = column[0], column[1]
    begin, length = _pair(buffers, buffer + 2)
    data[0, 0], data[0, 1] = body + begin, length
    valid = _bits(nodes, node, buffers, buffer, body)
    entries = _part(buffers, buffer + 1, body, width * (rows + 1))
    return Texts(valid, 0, rows, valid, width, entries, data)


@njit(cache=True, _nrt=False, inline="always")
def _pair(vector: int, k: int) -> tuple[int, int]:
    """The two numbers of a node or buffer."""
    at = vector + 4 + 16 * k
    return load_i64(at), load_i64(at + 8)


@njit(cache=True, _nrt=False)
def _part(buffers: int, k: int, body: int, least: int) -> int:
    """Where a buffer begins that has to have so many bytes; -1: it has fewer."""
    begin, length = _pair(buffers, k)
    return body + begin if length >= least else -1


@njit(cache=True, _nrt=False)
def _bits(nodes: int, node: int, buffers: int, buffer: int, body: int) -> int:
    """Where the validity of an array begins; 0: there is none, all are valid; -1: too short."""
    rows, nulls = _pair(nodes, node)
    return _part(buffers, buffer, body, (rows + 7) >> 3) if nulls else 0


@njit(cache=True, _nrt=False)
def _plain(column: NDArray[np.int64], nodes: int, buffers: int, body: int, least: int) -> Plain:
    """Where a column lies, if there is one."""
    node, buffer = column[0], column[1]
    if node < 0:
        return Plain(0, 0)
    valid = _bits(nodes, node, buffers, buffer, body)
    return Plain(valid, _part(buffers, buffer + 1, body, least))


@njit(cache=True, _nrt=False)
def _agrees(known: NDArray[np.void], batch: int, size: int, layout: Layout) -> bool:
    """Whether the columns of a record batch are found where ``layout`` says."""
    found = _layout(known[0], batch, size)
    for mine, theirs in ((found.texts, layout.texts), (found.publishers, layout.publishers)):
        if mine[:6] != theirs[:6]:
            return False
        if mine.texts and (
            len(theirs.data) != 1
            or mine.data[0, 1] != theirs.data[0, 1]
            or (mine.data[0, 1] and mine.data[0, 0] != theirs.data[0, 0])
        ):
            return False
    return found.rows == layout.rows and found[3:] == layout[3:]
