"""The arrays that travel from receive to publish: one row a tick, never an object a tick."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WARM = np.uint8(1)
"""Flag of a tick that moves its series without a forecast being published."""


class Keys(NamedTuple):
    """Names of series in UTF-8, end to end: ``data[offsets[i]:offsets[i + 1]]`` is name ``i``."""

    data: NDArray[np.uint8]
    """(bytes,) writable, whoever made it: to Numba a read-only array is another type"""
    offsets: NDArray[np.int64]
    """(n + 1,)"""

    @classmethod
    def of(cls, names: list[bytes]) -> "Keys":
        """Lay ``names`` end to end."""
        offsets = np.zeros(len(names) + 1, np.int64)
        np.cumsum([len(name) for name in names], out=offsets[1:])
        return cls(np.frombuffer(bytearray().join(names), np.uint8), offsets)

    def kept(self, mask: NDArray[np.bool_]) -> "Keys":
        """Those names where ``mask``, (n,), is true."""
        data, offsets = self.data.tobytes(), self.offsets.tolist()
        return Keys.of([data[offsets[i] : offsets[i + 1]] for i in np.flatnonzero(mask)])


class Ticks(NamedTuple):
    """A batch of ticks, in the order in which they arrived."""

    slot: NDArray[np.int32]
    """(n,) the row of the series in the state table"""
    ts: NDArray[np.int64]
    """(n,) nanoseconds since the Unix epoch, UTC"""
    values: NDArray[np.float64]
    """(n, inputs) raw, in the series' own unit; NaN and infinities are the engine's to refuse"""
    flags: NDArray[np.uint8]
    """(n,) ``WARM`` or 0"""


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
    """(n, 2, horizon, targets): lower and upper end of the interval; NaN where not yet known"""
