"""What the formats have in common: the reader and the writer that each of them offers.

**Welcome.** A subscriber of ``streamlstm.welcome`` gets that topic alone, once it has connected.
Whoever connects its ticks after that gets all of their predictions.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm import ticks
from streamlstm.jit import njit
from streamlstm.memory import load_u8, load_u64
from streamlstm.ticks import Forecasts, Keys, Messages, Names

Format = Literal["json", "msgpack", "binary", "arrow"]

TOPIC = b"prediction."
"""What the topic of a prediction begins with, before the series."""
TOPIC_SIZE = len(TOPIC)
BATCH = b"predictions.batch"
"""The topic of many predictions in one message."""
SNAPSHOT = b"streamlstm.snapshot"
"""What ends a snapshot."""
REFUSED = b"streamlstm.refused"
"""What a request for one gets that is not served."""
JOINED = b"streamlstm.joined."
"""What the topic begins with that tells a requester that it had joined; its token follows."""
LONGEST_TOKEN = 64
"""Bytes of a token at most."""
REASONS = (
    "malformed",
    "wrong_values",
    "bad_timestamp",
    "bad_key",
    "key_too_long",
    "frame_too_large",
    "unsupported",
)
"""Why a message is dropped. ``wrong_values``: not as many as the model has inputs. ``bad_key``:
empty, not UTF-8, or with a NUL. ``unsupported``: a version, flag or field of a later release."""
ARRIVAL = int(ticks.ARRIVAL)
"""Flag of a tick whose ``ts`` is to be its arrival time."""
NUMBERED = 64
"""Flag of a tick with a number of its publisher's."""
SOUND = 0
MALFORMED, WRONG_VALUES, BAD_TIMESTAMP, BAD_KEY, KEY_TOO_LONG, FRAME_TOO_LARGE, UNSUPPORTED = range(
    1, 1 + len(REASONS)
)
"""The faults of a row: 1 + the index of its reason."""
ROOM = 1 << 18
"""Bytes of predictions written at once: few enough to stay in the cache until they are sent."""
UNREAD = 255
"""The fault of a row that compiled code leaves to a library to read."""


SAMPLED = 80
"""Bytes of each frame that a sample shows."""


class FormatError(RuntimeError):
    """A format that cannot be used here; the message is one line and says the mend."""


class WireError(ValueError):
    """A prediction that cannot be read."""


class Limits(NamedTuple):
    """What is taken."""

    max_key: int
    """bytes"""
    max_frame: int
    """bytes; a longer frame may be cut, but to more than these"""


class Columns(NamedTuple):
    """Ticks as read, one row each. Where ``fault`` is not ``SOUND`` the rest means nothing."""

    begin: NDArray[np.int64]
    """(rows,) where the key begins in the data of the messages"""
    end: NDArray[np.int64]
    """(rows,)"""
    ts: NDArray[np.int64]
    """(rows,) nanoseconds since the Unix epoch, UTC"""
    values: NDArray[np.float64]
    """(rows, inputs)"""
    flags: NDArray[np.uint8]
    """(rows,) of those in :mod:`streamlstm.ticks`, ``ARRIVAL`` and ``NUMBERED``"""
    fault: NDArray[np.uint8]
    """(rows,)"""
    seq: NDArray[np.int64]
    """(rows,) where ``NUMBERED``: the tick's number, not below 0"""
    publisher: NDArray[np.int64]
    """(rows, 2) where ``NUMBERED``: where the publisher's name begins and ends, as the key"""
    scratch: NDArray[np.uint8]
    """(at least 64,) for the reader, which may keep there what it knows from earlier calls"""

    @classmethod
    def room(cls, rows: int, inputs: int, scratch: int = 64) -> "Columns":
        """For so many ticks."""
        return cls(
            np.zeros(rows, np.int64),
            np.zeros(rows, np.int64),
            np.zeros(rows, np.int64),
            np.zeros((rows, inputs)),
            np.zeros(rows, np.uint8),
            np.zeros(rows, np.uint8),
            np.zeros(rows, np.int64),
            np.zeros((rows, 2), np.int64),
            np.zeros(scratch, np.uint8),
        )


class Reader(ABC):
    """Reads the ticks of one format.

    Attributes:
        columns: room for the ticks of a batch.
    """

    batch: ClassVar[bool] = False
    """whether a message holds many ticks, to be read by itself"""

    def __init__(self, inputs: int, limits: Limits, rows: int, scratch: int = 64) -> None:
        """Expect ``inputs`` values a tick, and at most ``rows`` ticks at once."""
        self.inputs, self.limits = inputs, limits
        self.columns = Columns.room(rows, inputs, scratch)

    @property
    @abstractmethod
    def compiled(self) -> Any:
        """Compiled ``(messages, count, columns, limits)``, which returns an int.

        It reads the first ``count`` messages to ``columns``, and returns to how many rows. A
        message that it leaves to a library has one row, which is ``UNREAD``.
        """

    def read(self, messages: Messages, count: int) -> tuple[Columns, int]:
        """Ticks of the first ``count`` messages, good or bad, and how many; none raises."""
        return self.columns, int(self.compiled(messages, count, self.columns, self.limits))

    def show(self, messages: Messages, row: int) -> str:
        """What a sample of the log says of a faulty ``row`` of those read last."""
        return " ".join(repr(frame[:SAMPLED]) for frame in messages.message(row))


class Shape(NamedTuple):
    """What is the same in all predictions of a daemon."""

    model: str
    """12 hexadecimal digits"""
    boot: int
    """below 2**32"""
    horizon: int
    targets: int
    max_key: int
    """bytes of a name at most"""
    most: int
    """messages at once"""
    further: tuple[float, ...] = ()
    """coverages of the intervals beside the main one"""
    quality: tuple[str, ...] = ()
    """names of the numbers in :attr:`Forecasts.quality`"""


class MessageLayout(NamedTuple):
    """What a format's messages are made of."""

    labels: Keys
    """texts that are the same in all of them"""
    fixed: int
    """bytes of a message at most, but for those that its name adds"""
    growth: int
    """bytes that each byte of a name adds at most"""


class Writer(ABC):
    """Writes the predictions of one format.

    Attributes:
        messages: room for those written last.
    """

    batch: ClassVar[bool] = False
    """whether one message holds all that is written at once"""

    def __init__(self, shape: Shape, labels: Sequence[bytes], numbers: int, growth: int) -> None:
        """Make room for messages of ``labels``, at most so many bytes of ``numbers``, and a name.

        ``growth`` is what each byte of a name adds to a message at most.
        """
        self.shape, keys = shape, Keys.of(labels)
        self.layout = MessageLayout(keys, TOPIC_SIZE + len(keys.data) + numbers, growth)
        largest = self.layout.fixed + growth * shape.max_key
        self.messages = Messages.room(shape.most, max(ROOM, largest))

    @property
    @abstractmethod
    def compiled(self) -> Any:
        """Compiled ``(messages, layout, forecasts, names, begin)``, which returns an int.

        It writes one message each for forecasts from ``begin`` on, or one for all where ``batch``,
        as many as there is room for, and returns where the rest begins.
        """

    def write(self, forecasts: Forecasts, names: Names, begin: int) -> int:
        """Write forecasts from ``begin`` on, and return where the rest begins."""
        return int(self.compiled(self.messages, self.layout, forecasts, names, begin))


# --- compiled -------------------------------------------------------------------------------------


@njit(cache=True, _nrt=False)
def key_fault(address: int, length: int, max_key: int) -> int:
    """The fault of a key: ``BAD_KEY``, ``KEY_TOO_LONG`` or ``SOUND``."""
    if length > max_key:
        return KEY_TOO_LONG
    if length == 0 or not _is_text(address, length):
        return BAD_KEY
    return SOUND


@njit(cache=True, _nrt=False)
def _is_text(address: int, length: int) -> bool:
    """Whether bytes are UTF-8 (RFC 3629) without NUL."""
    at, end = address, address + length
    while at < end:
        if end - at >= 8:  # eight ASCII characters, none of them NUL
            word = load_u64(at)
            low = np.uint64(0x7F7F7F7F7F7F7F7F)
            if word & ~low == 0 and (word + low) & ~low == ~low:
                at += 8
                continue
        lead = np.int64(load_u8(at))
        at += 1
        if lead == 0:
            return False
        if lead < 0x80:
            continue
        if 0xC2 <= lead <= 0xDF:
            more = 1
        elif 0xE0 <= lead <= 0xEF:
            more = 2
        elif 0xF0 <= lead <= 0xF4:
            more = 3
        else:
            return False
        if end - at < more:
            return False
        # the second byte rules out longer forms than needed, surrogates, and what is beyond Unicode
        second = np.int64(load_u8(at))
        least = 0xA0 if lead == 0xE0 else 0x90 if lead == 0xF0 else 0x80
        greatest = 0x9F if lead == 0xED else 0x8F if lead == 0xF4 else 0xBF
        if not least <= second <= greatest:
            return False
        for k in range(1, more):
            if load_u8(at + k) & 0xC0 != 0x80:
                return False
        at += more
    return True
