"""Decoder and encoder: what is the same whatever the format."""

import importlib
import importlib.util
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from streamlstm.jit import njit
from streamlstm.ticks import Arrivals, Forecasts, Keys, Messages, Names
from streamlstm.wire.binary import BinaryReader, BinaryWriter
from streamlstm.wire.format import (
    ARRIVAL,
    NUMBERED,
    REASONS,
    SOUND,
    Columns,
    Format,
    FormatError,
    Limits,
    Reader,
    Shape,
    Writer,
)
from streamlstm.wire.json import JsonReader, JsonWriter
from streamlstm.wire.msgpack import MsgpackReader, MsgpackWriter
from streamlstm.wire.publishers import Publishers, follow

SET_BACK = 1_000_000_000
"""Nanoseconds: a clock that is set back by as much takes arrival times with it."""


class Decoder:
    """Messages of one format -> arrays. No bytes whatever make it raise.

    Attributes:
        sample: reason and content of a message dropped since this was last set to None.
        most: messages to read at once.
        rows: ticks read last, those dropped included; of a message that says none, 1.
        reader: of the format.
        refused: (reasons,) ticks dropped so far.
        latest_arrival: (1,) the latest arrival time given to a tick.
        publishers: who numbers ticks, and what was missed of them.
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
        """Expect ``inputs`` values a tick, ``most`` messages at once, of so many bytes at most.

        Raises:
            FormatError: the format needs a package that is not installed.
        """
        self.sample: tuple[str, str] | None = None
        self.reader = _classes(format)[0](inputs, Limits(max_key, max_frame), most)
        self.most = 1 if self.reader.batch else most
        self.rows = 0
        self.refused = np.zeros(len(REASONS), np.int64)
        self.latest_arrival = np.zeros(1, np.int64)
        self.publishers = Publishers.none()

    @property
    def drops(self) -> dict[str, int]:
        """Ticks dropped so far, by reason."""
        return dict(zip(REASONS, self.refused.tolist(), strict=True))

    def decode(self, messages: Messages, count: int, now_ns: int) -> Arrivals:
        """Read ``count`` messages that arrived at ``now_ns``.

        Those dropped are not in the result; arrival times rise by 1 ns from tick to tick, or more,
        unless the clock was set back by ``SET_BACK``. The arrays hold until the next call.
        """
        columns, rows = self.reader.read(messages, count)
        self.rows = rows
        kept, bad = settle(
            columns,
            rows,
            now_ns,
            self.latest_arrival,
            self.refused,
            self.publishers,
            messages.data,
        )
        if bad >= 0:
            reason = REASONS[columns.fault[bad] - SOUND - 1]
            self.sample = reason, self.reader.show(messages, bad)
        return Arrivals(
            Keys(messages.data, columns.begin[:kept], columns.end[:kept]),
            columns.ts[:kept],
            columns.values[:kept],
            columns.flags[:kept],
            max(now_ns, int(self.latest_arrival[0])),
        )


class Encoder:
    """Arrays -> messages of one format.

    Attributes:
        count: messages encoded last.
        writer: of the format.
    """

    def __init__(self, format: Format, shape: Shape) -> None:
        """Write predictions of one shape.

        Raises:
            FormatError: the format needs a package that is not installed.
        """
        self.writer = _classes(format)[1](shape)
        self.count = 0

    @property
    def messages(self) -> Messages:
        """Those encoded last."""
        return self.writer.messages

    def encode(self, forecasts: Forecasts, names: Names, begin: int = 0) -> int:
        """Write forecasts from ``begin`` on, as many as there is room for.

        Returns where the rest begins.
        """
        end = self.writer.write(forecasts, names, begin)
        self.count = min(1, end - begin) if self.writer.batch else end - begin
        return end


def _classes(
    format: Format,
) -> tuple[Callable[[int, Limits, int], Reader], Callable[[Shape], Writer]]:
    match format:
        case "json":
            return JsonReader, JsonWriter
        case "msgpack":
            return MsgpackReader, MsgpackWriter
        case "binary":
            return BinaryReader, BinaryWriter
        case "arrow":
            if importlib.util.find_spec("pyarrow") is None:
                raise FormatError(
                    "format 'arrow': pyarrow is not installed; pip install 'streamlstm[arrow]' or"
                    " choose another format"
                )
            arrow = importlib.import_module("streamlstm.wire.arrow")
            return arrow.ArrowReader, arrow.ArrowWriter


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def settle(
    columns: Columns,
    rows: int,
    now: int,
    latest: NDArray[np.int64],
    drops: NDArray[np.int64],
    publishers: Publishers,
    data: NDArray[np.uint8],
) -> tuple[int, int]:
    """Count faulty rows and close the gaps they leave; fill in arrival times; follow publishers.

    Where names of publishers lie counts from the begin of ``data``.

    Returns how many rows are left, and one that is faulty, -1 where none is.
    """
    kept, bad, numbered = 0, -1, 0
    for row in range(rows):
        if columns.fault[row] != SOUND:
            drops[columns.fault[row] - SOUND - 1] += 1
            if bad < 0:
                bad = row
            continue
        if kept != row:
            columns.begin[kept], columns.end[kept] = columns.begin[row], columns.end[row]
            columns.ts[kept], columns.flags[kept] = columns.ts[row], columns.flags[row]
            columns.seq[kept] = columns.seq[row]
            columns.publisher[kept, 0] = columns.publisher[row, 0]
            columns.publisher[kept, 1] = columns.publisher[row, 1]
            for k in range(columns.values.shape[1]):
                columns.values[kept, k] = columns.values[row, k]
        numbered |= columns.flags[kept] & NUMBERED
        if columns.flags[kept] & ARRIVAL:
            latest[0] = latest[0] + 1 if now <= latest[0] < now + SET_BACK else now
            columns.ts[kept] = latest[0]
        kept += 1
    for row in range(kept if numbered else 0):
        if columns.flags[row] & NUMBERED:
            columns.flags[row] &= ~NUMBERED
            begin, end = columns.publisher[row, 0], columns.publisher[row, 1]
            follow(publishers, data.ctypes.data + begin, end - begin, columns.seq[row])
    return kept, bad
