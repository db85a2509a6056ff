"""What becomes of slots beside their ticks: told to the journal before the ticks that follow.

Not a list of all that happened, but of slots that changed since the journal was last told: whom a
slot belonged to in between, nobody needs to know.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm.jit import njit
from streamlstm.placed import placed
from streamlstm.ticks import Names

CREATE, EVICT, UNPARK = 1, 2, 4
"""Kinds of event: a slot is given to a new series, taken from one, given to one that comes back
with its state. 3 was the last without its schema, in early versions."""

GONE, NEW, BACK = np.uint8(1), np.uint8(2), np.uint8(4)
"""Marks of a slot: taken from the series that had it; given to one; to one with a state."""
CHANGED = GONE | NEW | BACK


class Changes(NamedTuple):
    """The slots that changed, each once."""

    slots: NDArray[np.int32]
    """(capacity,) of which the first ``length`` count"""
    length: NDArray[np.int64]
    """(1,)"""
    marks: NDArray[np.uint8]
    """(capacity,) ``GONE``, ``NEW`` and ``BACK`` of each slot; other bits are others'"""

    @classmethod
    def none(cls, slots: int) -> "Changes":
        """Of so many slots none has changed."""
        return placed(
            cls(np.zeros(slots, np.int32), np.zeros(1, np.int64), np.zeros(slots, np.uint8))
        )


class Events(NamedTuple):
    """The changes, and where what there is to be told of them is read."""

    changes: Changes
    names: Names
    records: NDArray[np.uint8]
    """(capacity, bytes) all that is kept of a series, but for its recurrent state"""
    begin: int
    """first byte of a record that is state"""
    end: int
    """after the last one"""
    recurrent: NDArray[np.float32]
    """(capacity, floats) of those that came back with one, at least"""


class Event(NamedTuple):
    """One event, as it is read."""

    kind: int
    slot: int
    name: bytes
    """of the series; empty of one that went"""
    state: bytes
    """of a series that came back: u64 id of its schema, its record's part, its recurrent state"""


# --- compiled -------------------------------------------------------------------------------------


@njit(cache=True, error_model="numpy", _nrt=False)
def note(changes: Changes, slot: int, mark: np.uint8, over: np.uint8) -> None:
    """Mark a slot as changed; marks ``over`` hold no more."""
    if not changes.marks[slot] & CHANGED:
        changes.slots[changes.length[0]] = slot
        changes.length[0] += 1
    changes.marks[slot] = (changes.marks[slot] & ~over) | mark


@njit(cache=True, error_model="numpy", _nrt=False)
def told(changes: Changes) -> None:
    """Whatever changed is known."""
    for k in range(changes.length[0]):
        changes.marks[changes.slots[k]] &= ~CHANGED
    changes.length[0] = 0
