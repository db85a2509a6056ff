"""journal -> series: what a model can learn from of the ticks that came, as a table would have it.

A series is known by the hash of its name, or of its slot where the journal no longer says whose
that is. Of more series than are wanted those with the lowest hashes are kept, which is a lot drawn
among all without knowing them beforehand.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamlstm.datasets.frames import SeriesData
from streamlstm.events import CREATE, UNPARK
from streamlstm.hashing import checksum
from streamlstm.policies import EARLIEST, LIMIT, MOMENT
from streamlstm.segments import Entry, salvage
from streamlstm.ticks import END, RESET

ROOM = 1 << 20
"""Ticks that are read before those that are not wanted are left out."""
NOBODY = np.uint64(0)
"""Whose a slot is of which that is not known."""


def _row(inputs: int) -> np.dtype[np.void]:
    """Of a tick: the hash of its series, and what came."""
    fields = [("whose", "u8"), ("ts", "i8"), ("values", "f8", (inputs,)), ("flags", "u1")]
    return np.dtype(fields)


def recorded(
    folder: Path, inputs: int, *, ticks: int, series: int, max_ahead: float = 0.0
) -> list[SeriesData]:
    """What the journal in ``folder`` holds; it may be written to meanwhile.

    Left out is what a series cannot learn from: ticks that are late or of the same time as the one
    before, values that are not finite or beyond ``LIMIT``, times that no tick has, whatever was
    made of them then. A series that was reset or ended goes on as another one.

    Args:
        folder: of the journal.
        inputs: values of a tick; ticks of other numbers are passed over.
        ticks: at most so many of a series, the latest.
        series: at most so many, drawn by lot.
        max_ahead: seconds after its arrival that a tick may be dated; 0: any.
    """
    reader = _Reader(inputs, ticks, series, round(1e9 * max_ahead))
    for entry in salvage(folder):
        reader.take(entry)
    return list(_split(reader.found()))


class _Reader:
    """Entries go in, the latest ticks of some series come out."""

    def __init__(self, inputs: int, ticks: int, series: int, ahead_ns: int) -> None:
        self._inputs, self._ticks, self._series, self._ahead = inputs, ticks, series, ahead_ns
        self._owner = np.zeros(0, np.uint64)  # of each slot
        self._number = 0
        self._kept = np.zeros(0, _row(inputs))
        self._room, self._used = np.zeros(ROOM, _row(inputs)), 0

    def take(self, entry: Entry) -> None:
        """The next one."""
        if entry.number != self._number + 1:  # who had which slot may have changed meanwhile
            self._owner[:] = NOBODY
        self._number = entry.number
        slot, ts, values, flags = entry.ticks
        self._grow(max([int(slot.max(initial=-1)), *(event.slot for event in entry.events)]) + 1)
        for event in entry.events:
            if event.kind in (CREATE, UNPARK):
                self._owner[event.slot] = checksum(event.name)
        if values.shape[1] != self._inputs:
            return
        for unknown in np.unique(slot[self._owner[slot] == NOBODY]).tolist():
            self._owner[unknown] = checksum(b"%d since %d" % (unknown, self._number))
        if self._used + len(ts) > len(self._room):
            self._sift()
        rows = self._room[self._used : self._used + len(ts)]
        rows["whose"], rows["ts"], rows["flags"] = self._owner[slot], ts, flags
        rows["values"] = values
        if self._ahead:
            rows["values"][ts > entry.now + self._ahead] = np.nan
        self._used += len(ts)

    def found(self) -> NDArray[np.void]:
        """All that is kept, one series after the other, each as it came."""
        self._sift()
        return self._kept

    def _grow(self, slots: int) -> None:
        if slots > len(self._owner):
            self._owner = np.pad(self._owner, (0, max(slots, 1024)))

    def _sift(self) -> None:
        """Keep the latest ticks of those series that are wanted."""
        rows = np.concatenate([self._kept, self._room[: self._used]])
        wanted = np.unique(rows["whose"])[: self._series]
        if len(wanted):
            rows = rows[rows["whose"] <= wanted[-1]]
        rows = rows[np.argsort(rows["whose"], kind="stable")]
        ends = np.searchsorted(rows["whose"], rows["whose"], side="right")
        self._kept, self._used = rows[ends - np.arange(len(ends)) <= self._ticks], 0


def _split(rows: NDArray[np.void]) -> Iterator[SeriesData]:
    """Each series apart, of two ticks or more."""
    anew = np.diff(rows["whose"], prepend=NOBODY) != 0
    anew[1:] |= (rows["flags"][:-1] & END) > 0
    anew |= (rows["flags"] & RESET) > 0
    part = np.cumsum(anew)
    sound = np.all(np.abs(rows["values"]) <= LIMIT, axis=1)  # NaN is not
    sound &= (rows["ts"] > EARLIEST) & (rows["ts"] < MOMENT)
    rows, part = rows[sound], part[sound]
    for number, piece in enumerate(np.split(rows, np.flatnonzero(np.diff(part)) + 1)):
        if len(piece) < 2:
            continue
        later = np.diff(np.maximum.accumulate(piece["ts"]), prepend=piece["ts"][0] - 1) > 0
        if later.sum() > 1:
            name = f"{piece['whose'][0]:016x} {number}"
            yield SeriesData(name, piece["ts"][later], piece["values"][later])
