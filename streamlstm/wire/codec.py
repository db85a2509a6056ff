"""Decoder and encoder: what is the same whatever the format."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numba import njit
from numpy.typing import NDArray

from streamlstm.ticks import Arrivals, Forecasts, Keys, Messages, Names
from streamlstm.wire.binary import BinaryReader, BinaryWriter
from streamlstm.wire.format import (
    ARRIVAL,
    REASONS,
    SOUND,
    Columns,
    Format,
    Limits,
    Reader,
    Shape,
    Writer,
)
from streamlstm.wire.json import JsonReader, JsonWriter
from streamlstm.wire.msgpack import MsgpackReader, MsgpackWriter

READERS: Mapping[Format, type[Reader]] = MappingProxyType(
    {"json": JsonReader, "msgpack": MsgpackReader, "binary": BinaryReader}
)
WRITERS: Mapping[Format, Callable[[Shape], Writer]] = MappingProxyType(
    {"json": JsonWriter, "msgpack": MsgpackWriter, "binary": BinaryWriter}
)
SAMPLED = 80
"""Bytes of each frame that a sample shows."""


class Decoder:
    """Messages of one format -> arrays. No bytes whatever make it raise.

    Attributes:
        sample: reason and content of a message dropped since this was last set to None.
    """

    def __init__(
        self,
        format: Format,
        inputs: int,
        *,
        most: int = 1024,
        max_key: int = 64,
        max_frame: int = 65_536,
    ) -> None:
        """Expect ``inputs`` values a tick, ``most`` messages at once, of so many bytes at most."""
        self.sample: tuple[str, str] | None = None
        self._reader = READERS[format](inputs, Limits(max_key, max_frame), most)
        self._drops = np.zeros(len(REASONS), np.int64)
        self._latest_arrival = np.zeros(1, np.int64)

    @property
    def drops(self) -> dict[str, int]:
        """Ticks dropped so far, by reason."""
        return dict(zip(REASONS, self._drops.tolist(), strict=True))

    def decode(self, messages: Messages, count: int, now_ns: int) -> Arrivals:
        """Read ``count`` messages that arrived at ``now_ns``.

        Those dropped are not in the result; arrival times rise by 1 ns from tick to tick. The
        arrays hold until the next call.
        """
        columns, rows = self._reader.read(messages, count)
        kept, bad = _settle(columns, rows, now_ns, self._latest_arrival, self._drops)
        if bad >= 0:
            reason = REASONS[columns.fault[bad] - SOUND - 1]
            frames = messages.message(min(bad, count - 1))
            self.sample = reason, " ".join(repr(frame[:SAMPLED]) for frame in frames)
        return Arrivals(
            Keys(messages.data, columns.begin[:kept], columns.end[:kept]),
            columns.ts[:kept],
            columns.values[:kept],
            columns.flags[:kept],
        )


class Encoder:
    """Arrays -> messages of one format."""

    def __init__(self, format: Format, shape: Shape) -> None:
        """Write predictions of one shape."""
        self._writer = WRITERS[format](shape)

    @property
    def messages(self) -> Messages:
        """Those encoded last."""
        return self._writer.messages

    def encode(self, forecasts: Forecasts, names: Names, begin: int = 0) -> int:
        """Write one message each for forecasts from ``begin`` on, as many as there is room for.

        Returns where the rest begins.
        """
        return self._writer.write(forecasts, names, begin)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _settle(
    columns: Columns,
    rows: int,
    now: int,
    latest: NDArray[np.int64],
    drops: NDArray[np.int64],
) -> tuple[int, int]:
    """Count faulty rows and close the gaps they leave; fill in arrival times.

    Returns how many rows are left, and one that is faulty, -1 where none is.
    """
    kept, bad = 0, -1
    for row in range(rows):
        if columns.fault[row] != SOUND:
            drops[columns.fault[row] - SOUND - 1] += 1
            if bad < 0:
                bad = row
            continue
        if kept != row:
            columns.begin[kept], columns.end[kept] = columns.begin[row], columns.end[row]
            columns.ts[kept], columns.flags[kept] = columns.ts[row], columns.flags[row]
            for k in range(columns.values.shape[1]):
                columns.values[kept, k] = columns.values[row, k]
        if columns.flags[kept] & ARRIVAL:
            columns.flags[kept] &= ~ARRIVAL
            latest[0] = max(now, latest[0] + 1)
            columns.ts[kept] = latest[0]
        kept += 1
    return kept, bad
