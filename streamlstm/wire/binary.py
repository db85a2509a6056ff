"""binary: one frame, little endian, nothing aligned; what is fixed comes after the name.

**Ticks.** After the series, of any length:

======  =======  ===================================================================================
offset  type     what
======  =======  ===================================================================================
0       uint8    0, which ends the series (and lets a subscription select exactly one)
1       uint8    version, 1
2       uint8    flags: 1 warm; 2 ``ts`` is to be the arrival time; 4 reset: the series starts anew,
                 and then takes the values; 8 end: it takes the values, and is then closed;
                 16 numbered; all others 0
3       int64    ts, Unix nanoseconds
11      float64  one for each input of the model; NaN where it is missing; none at all where a reset
                 or an end comes alone
======  =======  ===================================================================================

Where it is numbered, this comes between ts and the values: uint64 ``seq``, below 2**63, which rises
by 1 with each tick of the publisher (gaps are counted); uint8 bytes of the publisher's name, and
these, any text.

**Predictions.** After the topic ``prediction.<series>``:

======  =======  ===================================================================================
offset  type     what
======  =======  ===================================================================================
0       uint8    0, which ends the topic
1       uint8    version, 1
2       uint16   horizon H: steps ahead
4       uint16   targets T
6       uint8    levels: 2, lower and upper, and 2 more for each further coverage
7       6 bytes  model; written as hexadecimal digits elsewhere
13      uint32   boot
17      uint64   seq
25      int64    ts, Unix nanoseconds
33      float64  forecast[H][T], then lower[H][T], then upper[H][T]; NaN where not known
======  =======  ===================================================================================

Of each further coverage follow, float64 too, the coverage and then its lower[H][T] and upper[H][T].
Where the daemon says how good the forecasts are, the frame ends with 7 more float64, those of
:data:`streamlstm.watch.MEASURES`.
"""

from typing import Any

import numpy as np

from streamlstm.jit import njit
from streamlstm.memory import (
    copy,
    load_f64,
    load_i64,
    load_u8,
    store_f64,
    store_u64,
)
from streamlstm.ticks import END, RESET, Forecasts, Messages, Names
from streamlstm.wire.format import (
    FRAME_TOO_LARGE,
    MALFORMED,
    NUMBERED,
    SOUND,
    TOPIC,
    TOPIC_SIZE,
    UNSUPPORTED,
    WRONG_VALUES,
    Columns,
    Limits,
    MessageLayout,
    Reader,
    Shape,
    Writer,
    key_fault,
)

VERSION = 1
TICK, VALUES = 11, 8
"""Bytes of a tick after its series, without values; of each value."""
SAYS_WARM, SAYS_ARRIVAL, SAYS_RESET, SAYS_END, SAYS_NUMBERED = 1, 2, 4, 8, 16
"""Its flags."""
ALONE = int(RESET | END)
"""Flags of ticks that may come without a value."""
SEQ_SIZE = 9
"""Bytes of its number and of the length of the publisher's name."""
HEAD, SEQ = 33, 17
"""Bytes of a prediction after its topic, without numbers; where ``seq`` lies, ``ts`` after it."""


class BinaryReader(Reader):
    """Reads all in compiled code."""

    @property
    def compiled(self) -> Any:
        """As :attr:`Reader.compiled`."""
        return _read


class BinaryWriter(Writer):
    """Writes all in compiled code."""

    def __init__(self, shape: Shape) -> None:
        """Of one shape."""
        head = np.zeros(1, prediction_layout(0, 0))
        head["version"], head["boot"] = VERSION, shape.boot
        head["levels"] = 2 * (1 + len(shape.further))
        head["horizon"], head["targets"] = shape.horizon, shape.targets
        head["model"] = np.frombuffer(bytes.fromhex(shape.model), np.uint8)
        lists, further = 3 + 2 * len(shape.further), np.array(shape.further, "<f8")
        numbers = VALUES * (lists * shape.horizon * shape.targets + len(shape.quality))
        super().__init__(shape, [TOPIC, head.tobytes(), further.tobytes()], numbers, growth=1)

    @property
    def compiled(self) -> Any:
        """As :attr:`Writer.compiled`."""
        return _write


def prediction_layout(
    horizon: int, targets: int, further: int = 0, measures: int = 0
) -> np.dtype[np.void]:
    """What follows the topic in a prediction of so many coverages beside the main one."""
    interval = ("interval", "<f8", (2, horizon, targets))
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
            interval,
            ("further", [("coverage", "<f8"), interval], (further,)),
            ("quality", "<f8", (measures,)),
        ]
    )


# --- compiled -------------------------------------------------------------------------------------


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _read(messages: Messages, count: int, columns: Columns, limits: Limits) -> int:
    data, inputs = messages.data.ctypes.data, columns.values.shape[1]
    for m in range(count):
        frame = messages.first[m]
        begin, end = messages.frames[frame], messages.frames[frame + 1]
        stop = end - TICK - VALUES * inputs  # where the name ends in a sound tick
        at = data + stop
        if not (
            messages.first[m + 1] - frame == 1
            and begin < stop
            and end - begin <= limits.max_frame
            and load_u8(at) == 0
            and load_u8(at + 1) == VERSION
            and load_u8(at + 2) < SAYS_RESET
            and key_fault(data + begin, stop - begin, limits.max_key) == SOUND
        ):
            columns.fault[m] = _read_odd(messages, m, columns, limits)
            continue
        columns.fault[m] = SOUND
        columns.begin[m], columns.end[m] = begin, stop
        said = np.int64(load_u8(at + 2))
        columns.flags[m] = said & SAYS_WARM | (said & SAYS_ARRIVAL) << 6
        columns.ts[m] = load_i64(at + 3)
        for k in range(inputs):
            columns.values[m, k] = load_f64(at + TICK + VALUES * k)
    return count


@njit(cache=True, _nrt=False, inline="always")
def _flags(said: int) -> Any:
    """Of a row, as a tick says them."""
    return (
        said & SAYS_WARM
        | (said & (SAYS_RESET | SAYS_END)) >> 1
        | (said & SAYS_ARRIVAL) << 6
        | (said & SAYS_NUMBERED) << 2
    )


@njit(cache=True, error_model="numpy", _nrt=False)
def _read_odd(messages: Messages, m: int, columns: Columns, limits: Limits) -> int:
    """Read a tick from its begin, one that has more or less than most; its fault."""
    data, frame, inputs = messages.data.ctypes.data, messages.first[m], columns.values.shape[1]
    begin, end = messages.frames[frame], messages.frames[frame + 1]
    if end - begin > limits.max_frame:
        return FRAME_TOO_LARGE
    stop = begin
    while stop < end and load_u8(data + stop) != 0:
        stop += 1
    if messages.first[m + 1] - frame > 1 or end - stop < TICK:
        return MALFORMED
    said = np.int64(load_u8(data + stop + 2))
    if load_u8(data + stop + 1) != VERSION or said >= 2 * SAYS_NUMBERED:
        return UNSUPPORTED
    flags, at = _flags(said), stop + TICK
    if flags & NUMBERED:
        if end - at < SEQ_SIZE or load_i64(data + at) < 0:
            return MALFORMED
        columns.seq[m] = load_i64(data + at)
        columns.publisher[m, 0] = at + SEQ_SIZE
        at += SEQ_SIZE + np.int64(load_u8(data + at + SEQ_SIZE - 1))
        columns.publisher[m, 1] = at
    if at == end and flags & ALONE:
        columns.values[m] = np.nan
    elif end - at == VALUES * inputs:
        for k in range(inputs):
            columns.values[m, k] = load_f64(data + at + VALUES * k)
    else:
        return WRONG_VALUES
    columns.begin[m], columns.end[m] = begin, stop
    columns.ts[m], columns.flags[m] = load_i64(data + stop + 3), flags
    return key_fault(data + begin, stop - begin, limits.max_key)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _write(
    messages: Messages,
    layout: MessageLayout,
    forecasts: Forecasts,
    names: Names,
    begin: int,
) -> int:
    data, source, longest = messages.data.ctypes.data, names.text.ctypes.data, names.text.strides[0]
    horizon, targets = forecasts.point.shape[1], forecasts.point.shape[2]
    levels = forecasts.quantiles.shape[1]
    labels = layout.labels.data.ctypes.data
    most = min(len(messages.first) - 1, len(forecasts.slot) - begin)
    at = 0
    for m in range(most):
        row = begin + m
        slot = forecasts.slot[row]
        length = int(names.lengths[slot])
        if m and at + layout.fixed + length > len(messages.data):
            return row
        to = data + at
        copy(to, labels, TOPIC_SIZE)
        to += TOPIC_SIZE
        copy(to, source + slot * longest, length)
        to += length
        copy(to, labels + TOPIC_SIZE, HEAD)
        store_u64(to + SEQ, np.uint64(forecasts.seq[row]))
        store_u64(to + SEQ + 8, np.uint64(forecasts.ts[row]))
        to += HEAD
        for k in range(horizon):
            for t in range(targets):
                store_f64(to, forecasts.point[row, k, t])
                to += 8
        for level in range(levels):
            if level >= 2 and level % 2 == 0:
                copy(to, labels + TOPIC_SIZE + HEAD + 4 * (level - 2), 8)
                to += 8
            for k in range(horizon):
                for t in range(targets):
                    store_f64(to, forecasts.quantiles[row, level, k, t])
                    to += 8
        for k in range(forecasts.quality.shape[1]):
            store_f64(to, forecasts.quality[row, k])
            to += 8
        at = to - data
        messages.frames[m + 1], messages.first[m + 1] = at, m + 1
    return begin + most
