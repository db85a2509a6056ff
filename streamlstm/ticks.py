"""The arrays that travel from receive to publish: one row a tick, never an object a tick."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable
from numpy.typing import NDArray

WARM = np.uint8(1)
"""Flag of a tick that moves its series without a forecast being published."""
RESET = np.uint8(2)
"""Flag of a tick before which its series starts anew."""
END = np.uint8(4)
"""Flag of a tick after which its series is closed."""
ARRIVAL = np.uint8(128)
"""Flag of a tick without a time of its own: it is dated at its arrival, and never late."""

FRAMES = 3
"""Frames of a message that are kept: one more than any format has, so that too many are seen."""


class Messages(NamedTuple):
    """Room for a batch of ZeroMQ messages, used again and again; how many it holds goes beside it.

    Message m has frames ``first[m]:first[m + 1]``; frame f is ``data[frames[f]:frames[f + 1]]``.
    """

    data: NDArray[np.uint8]
    """(bytes,)"""
    frames: NDArray[np.int64]
    """(at most FRAMES * messages, + 1)"""
    first: NDArray[np.int64]
    """(at most messages, + 1)"""

    @classmethod
    def room(cls, most: int, size: int) -> "Messages":
        """For ``most`` messages of ``size`` bytes together."""
        return cls(
            np.zeros(size, np.uint8),
            np.zeros(FRAMES * most + 1, np.int64),
            np.zeros(most + 1, np.int64),
        )

    @classmethod
    def of(cls, messages: Sequence[Sequence[bytes]]) -> "Messages":
        """Lay out ``messages``, of at most ``FRAMES`` frames each."""
        frames = [frame for message in messages for frame in message]
        room = cls.room(len(messages), sum(map(len, frames)))
        room.data[:] = np.frombuffer(b"".join(frames), np.uint8)
        room.frames[1 : len(frames) + 1] = np.cumsum([len(frame) for frame in frames])
        room.first[1:] = np.cumsum([len(message) for message in messages])
        return room

    def message(self, m: int) -> list[bytes]:
        """The frames of message ``m``."""
        begin, end = self.first[m : m + 2].tolist()
        bounds = self.frames[begin : end + 1].tolist()
        return [self.data[a:b].tobytes() for a, b in pairwise(bounds)]


class Keys(NamedTuple):
    """Names of series in UTF-8: name ``i`` is ``data[begin[i]:end[i]]``."""

    data: NDArray[np.uint8]
    """(bytes,) writable, whoever made it: to Numba a read-only array is another type"""
    begin: NDArray[np.int64]
    """(n,)"""
    end: NDArray[np.int64]
    """(n,)"""

    @classmethod
    def of(cls, names: Sequence[bytes]) -> "Keys":
        """Lay ``names`` end to end."""
        offsets = np.zeros(len(names) + 1, np.int64)
        np.cumsum([len(name) for name in names], out=offsets[1:])
        return cls(np.frombuffer(bytearray().join(names), np.uint8), offsets[:-1], offsets[1:])


LONG_AFTER = 1 << 62
"""A moment after that of any tick."""


class Arrivals(NamedTuple):
    """Ticks as messages say them, in their order; which series each is of, its name tells."""

    keys: Keys
    ts: NDArray[np.int64]
    """(n,) nanoseconds since the Unix epoch, UTC"""
    values: NDArray[np.float64]
    """(n, inputs) raw, in the series' own unit; NaN and infinities are the engine's to refuse. All
    are NaN where ``RESET`` or ``END`` came without a value"""
    flags: NDArray[np.uint8]
    """(n,) of ``WARM``, ``RESET`` and ``END``"""
    now: int = LONG_AFTER
    """when they came, ns since the epoch; unless it is said, none is dated too far after that"""

    def parts(self, most: int) -> Iterator["Arrivals"]:
        """The same ticks, ``most`` at a time; at least one part, be it empty."""
        if len(self.ts) <= most:
            yield self
            return
        for begin in range(0, len(self.ts), most):
            part = slice(begin, begin + most)
            keys = Keys(self.keys.data, self.keys.begin[part], self.keys.end[part])
            yield Arrivals(keys, self.ts[part], self.values[part], self.flags[part], self.now)


class Ticks(NamedTuple):
    """A batch of ticks, in the order in which they arrived."""

    slot: NDArray[np.int32]
    """(n,) the row of the series in the state table"""
    ts: NDArray[np.int64]
    """(n,) nanoseconds since the Unix epoch, UTC"""
    values: NDArray[np.float64]
    """(n, inputs) raw, in the series' own unit"""
    flags: NDArray[np.uint8]
    """(n,) of ``WARM``, ``RESET`` and ``END``"""

    @classmethod
    def room(cls, n: int, inputs: int) -> "Ticks":
        """For ``n`` ticks."""
        return cls(
            np.zeros(n, np.int32),
            np.zeros(n, np.int64),
            np.zeros((n, inputs)),
            np.zeros(n, np.uint8),
        )


class Forecasts(NamedTuple):
    """What a batch of ticks led to: a row for each tick to be published, in arrival order."""

    slot: NDArray[np.int32]
    """(n,)"""
    ts: NDArray[np.int64]
    """(n,) of the tick; forecast ``k`` (from 0) is for ``ts + (k + 1) * step`` of the model"""
    seq: NDArray[np.int64]
    """(n,) the number of this prediction in its series, from 1, since the series began"""
    point: NDArray[np.float64]
    """(n, horizon, targets) raw units"""
    quantiles: NDArray[np.float64]
    """(n, 2 * coverages, horizon, targets): lower and upper end of each interval, the main one
    first; NaN where not yet known"""
    quality: NDArray[np.float64] = np.zeros((0, 0))
    """(n, measures) :data:`streamlstm.watch.MEASURES` of each tick; none where not asked for"""


class Names(NamedTuple):
    """The name of the series in each slot."""

    text: NDArray[np.uint8]
    """(slots, longest) UTF-8, zero-padded"""
    lengths: NDArray[np.uint16]
    """(slots,) bytes of each"""


@register_jitable
def rows_of(ticks: Ticks, begin: int, end: int) -> Ticks:
    """Ticks from ``begin`` to ``end``."""
    part = slice(begin, end)
    return Ticks(ticks.slot[part], ticks.ts[part], ticks.values[part], ticks.flags[part])


@register_jitable
def first(forecasts: Forecasts, n: int) -> Forecasts:
    """The first ``n`` forecasts."""
    return Forecasts(
        forecasts.slot[:n],
        forecasts.ts[:n],
        forecasts.seq[:n],
        forecasts.point[:n],
        forecasts.quantiles[:n],
        forecasts.quality[:n],
    )
