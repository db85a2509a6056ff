"""The state of one moment, copied while it goes on changing: copy-on-write, in software.

From :meth:`CopyOnWrite.begin` on, the row of a series is copied before it first changes
(:func:`preserve`), and the rows of the others little by little (:func:`sweep`). The copies go one
behind the other into a log, each row once, in no order; one thread copies, another may read the log
meanwhile. A fork would leave that to the system, but copies page tables while nothing else is done,
and is undefined beside other threads and a GPU.
"""

import mmap
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm.jit import njit
from streamlstm.memory import copy, load_shared, store_shared, store_u64
from streamlstm.placed import placed

Floats = NDArray[np.float32]

NOTHING, BEHIND, MORE = range(3)
"""What :func:`sweep` says: all is copied; the reader is to catch up first; there is more to do."""
PIECE = 1 << 18
"""Bytes copied at once, about: it takes 50 microseconds."""
MOST_AHEAD = 1 << 26
"""Bytes that :func:`sweep` runs ahead of the reader; :func:`preserve` cannot wait."""

(
    _SLOTS,  # of the moment, those without a series included; 0: all is copied
    _NEXT,  # slot that sweep looks at next
    _LOG,  # address
    _WRITTEN,  # bytes of it, whole rows; the other thread reads this
    _READ,  # bytes of it that the other thread has done with
    _RECORDS,  # where the records lie, how far apart, how long they are
    _RECORDS_APART,
    _RECORD,
    _STATES,  # the same of the recurrent states
    _STATES_APART,
    _STATE,
    _WORDS,
) = range(12)


class Shadow(NamedTuple):
    """What compiled code copies with."""

    words: NDArray[np.int64]
    live: NDArray[np.bool_]
    """(capacity,) whether a series has the slot; kept up to date by who gives and takes slots"""
    kept: NDArray[np.bool_]
    """(capacity,) whether the row is copied, or not of the moment"""


class CopyOnWrite:
    """Copies of all rows of one moment after the other.

    Attributes:
        shadow: what compiled code copies with.
        row: a slot (int64), the record of its series, its recurrent state (float32).
    """

    def __init__(self, table: NDArray[np.void]) -> None:
        """Be ready for the rows of ``table`` (capacity,)."""
        self._table = table
        self.row = row_layout(table.dtype, 0)
        words = np.zeros(_WORDS, np.int64)
        words[_RECORDS], words[_RECORDS_APART] = table.ctypes.data, table.strides[0]
        words[_RECORD] = table.itemsize
        self.shadow = placed(Shadow(words, np.zeros(len(table), bool), np.zeros(len(table), bool)))
        self._log: mmap.mmap | None = None
        self._held: Floats | None = None

    def begin(self, slots: int, states: Floats) -> int:
        """Take this moment.

        Args:
            slots: below which all series are.
            states: (slots at least, floats) recurrent states, which may go on changing behind
                :func:`preserve`.

        Returns:
            How many rows the log will have.
        """
        words, live = self.shadow.words, self.shadow.live[:slots]
        count = int(np.count_nonzero(live))
        self.row = row_layout(self._table.dtype, states.shape[1])
        # as much as all rows, but a page is not there before it is written to
        size = max(count * self.row.itemsize, 1)
        self._log = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._held = states
        np.logical_not(live, out=self.shadow.kept[:slots])
        words[_LOG] = np.frombuffer(self._log, np.uint8).ctypes.data
        words[_STATES], words[_STATES_APART] = states.ctypes.data, states.strides[0]
        words[_STATE] = self.row["state"].itemsize
        words[[_NEXT, _WRITTEN, _READ]] = 0
        words[_SLOTS] = slots
        return count

    def end(self) -> None:
        """Let go of the log; whoever reads it must be done."""
        self.shadow.words[_SLOTS] = 0
        self._log = self._held = None

    # for the thread that reads

    def written(self) -> int:
        """Bytes of the log that are there to be read."""
        return int(_written(self.shadow))

    def read(self, begin: int, end: int) -> NDArray[np.uint8]:
        """Those bytes of the log."""
        assert self._log is not None
        return np.frombuffer(self._log, np.uint8, end - begin, begin)

    def done_with(self, end: int) -> None:
        """The log up to there is not needed any more; its memory is given back."""
        assert self._log is not None
        begin = self.shadow.words[_READ] // mmap.PAGESIZE * mmap.PAGESIZE
        if length := end // mmap.PAGESIZE * mmap.PAGESIZE - begin:
            self._log.madvise(mmap.MADV_DONTNEED, int(begin), int(length))
        self.shadow.words[_READ] = end


def row_layout(record: np.dtype[np.void], floats: int) -> np.dtype[np.void]:
    """How the fields of a row lie, side by side; ``floats`` are of the recurrent state."""
    fields = [("slot", np.int64), ("record", record), ("state", np.float32, (floats,))]
    return np.dtype(fields, align=True)


# --- compiled -------------------------------------------------------------------------------------


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def preserve(shadow: Shadow, slots: NDArray[np.int32]) -> None:
    """Copy the rows of some slots that are about to change, where the moment needs them."""
    if shadow.words[_SLOTS]:
        for slot in slots:
            preserve_one(shadow, slot)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def preserve_one(shadow: Shadow, slot: int) -> None:
    """The same of one."""
    if slot < shadow.words[_SLOTS] and not shadow.kept[slot]:
        _copy(shadow.words, shadow.kept, slot)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def sweep(shadow: Shadow) -> int:
    """Copy some more rows: ``NOTHING``, ``BEHIND`` or ``MORE``."""
    words, kept = shadow.words, shadow.kept
    if words[_SLOTS] == 0:
        return NOTHING
    until = words[_WRITTEN] + PIECE
    if until > words[_READ] + MOST_AHEAD:
        return BEHIND
    slot = words[_NEXT]
    while slot < words[_SLOTS] and words[_WRITTEN] < until:
        if not kept[slot]:
            _copy(words, kept, slot)
        slot += 1
    words[_NEXT] = slot
    if slot < words[_SLOTS]:
        return MORE
    words[_SLOTS] = 0
    return NOTHING


@njit(cache=True, error_model="numpy", _nrt=False)
def _copy(words: NDArray[np.int64], kept: NDArray[np.bool_], slot: int) -> None:
    written = words[_WRITTEN]
    row = words[_LOG] + written
    store_u64(row, np.uint64(slot))
    copy(row + 8, words[_RECORDS] + slot * words[_RECORDS_APART], words[_RECORD])
    at = row + 8 + words[_RECORD]
    copy(at, words[_STATES] + slot * words[_STATES_APART], words[_STATE])
    kept[slot] = True
    end = at + words[_STATE]
    end += -end % 8
    store_shared(words[_WRITTEN:].ctypes.data, written + end - row)


@njit(cache=True, nogil=True, _nrt=False)
def _written(shadow: Shadow) -> Any:
    return load_shared(shadow.words[_WRITTEN:].ctypes.data)
