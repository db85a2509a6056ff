"""Key -> slot: a hash table from which keys can go, a list of free slots, the longest idle first.

Who is longest idle is known exactly and at once, however many keys come: the slots in use form a
doubly linked list, and each tick moves its own to the front. A clock hand would cost less per tick
and look at every slot when all have spoken; a sample would not find the longest idle. The list is
kept only where it is asked for.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm.copy_on_write import Shadow, preserve_one
from streamlstm.events import BACK, GONE, NEW, Changes, note
from streamlstm.hashing import siphash
from streamlstm.jit import njit
from streamlstm.memory import clear, copy, load_u8, load_u64, prefetch
from streamlstm.ticks import Keys

REFUSED = np.int32(-1)
"""The slot of a series for which there was no room, or that is not there."""
USED, FREE, CLOSING, STARTED, FULL, IDLE, ENDED, UNCOUNTED, COUNTS = range(9)
"""What an index counts: slots ever taken; those of them that are free; those of series that ended
and are not closed yet; series begun; series closed, by reason, the last of no interest."""
REASONS = {"full": FULL, "idle": IDLE, "ended": ENDED}
"""For which a series is closed."""
WAITING = (1 << 63) - 1
"""A moment after which no tick waits."""

CLOSES, _WAITS = np.uint8(8), np.uint8(16)
"""Marks of a slot whose series ended, and of one of these with ticks that wait."""
_BEFORE, _AFTER = 0, 1
"""Of a slot in the list: the one used later, the one used earlier."""


class Index(NamedTuple):
    """Where a key's slot is found: open addressing, linear probing, SipHash of a secret seed."""

    seed: NDArray[np.uint64]
    """(2,) secret, so that nobody can choose keys that collide"""
    table: NDArray[np.int32]
    """(a power of two, at least 2 * capacity) slot + 1; 0: free"""
    hashes: NDArray[np.uint64]
    """(capacity,) of the key of each slot"""
    names: NDArray[np.uint8]
    """(capacity, max_key) the keys, zero-padded"""
    lengths: NDArray[np.uint16]
    """(capacity,) bytes of each key; 0: the slot is free"""
    counts: NDArray[np.int64]
    """(COUNTS,) see :data:`USED`"""
    free: NDArray[np.int32]
    """(capacity,) slots given back, the last to be taken first"""
    closing: NDArray[np.int32]
    """(capacity,) slots of series that ended"""
    links: NDArray[np.int32]
    """(capacity + 1, 2) the slots used just later and just earlier; of the last row, the slot used
    longest ago and the latest one. Or (0, 2)"""
    placed: NDArray[np.int64]
    """(capacity,) moment of the latest tick, which was then taken from the input; or (0,)"""
    evict: bool
    """whether a new series may take the slot of the longest idle"""
    latest: NDArray[np.uint8]
    """(max_key,) key of the series closed last"""
    records: NDArray[np.uint8]
    """(capacity, bytes) all that is kept of each slot"""
    begin: int
    """first byte of a record that is state"""
    end: int
    """after the last one"""
    near: NDArray[np.int64]
    """(lines,) bytes of a record, a cache line apart at most, that any tick looks at at first"""
    changes: Changes
    shadow: Shadow
    """of a moment that is being copied"""
    capacity: int


# _nrt=False: nothing here owns an array, and reference counts would cost more than the work.
# forceinline: to hand an index to a function costs more than many a function does.


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def approach(index: Index, keys: Keys, hashes: NDArray[np.uint64]) -> None:
    """Hash all keys, and bring near what :func:`seek` and whoever admits a tick will look at.

    The lines of many series are fetched at once, where one lookup after the other would wait for
    each.
    """
    data, mask = keys.data.ctypes.data, np.uint64(len(index.table) - 1)
    table = index.table.ctypes.data
    for i in range(len(keys.begin)):
        hashes[i] = hash_of(index, data + keys.begin[i], keys.end[i] - keys.begin[i])
        prefetch(table + 4 * np.int64(hashes[i] & mask))
    begin, size = index.hashes.ctypes.data, index.hashes.strides[0]
    for i in range(len(keys.begin)):
        slot = np.int64(index.table[np.int64(hashes[i] & mask)]) - 1
        if slot >= 0:
            record = begin + slot * size
            for at in index.near:
                prefetch(record + at)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def hash_of(index: Index, key: int, length: int) -> np.uint64:
    """The hash of the key at an address."""
    return siphash(index.seed[0], index.seed[1], key, length)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def seek(index: Index, hashed: np.uint64, key: int, length: int) -> int:
    """The slot of the key at an address, ``REFUSED`` if it has none."""
    mask = len(index.table) - 1
    at = np.int64(hashed & np.uint64(mask))
    while True:
        slot = int(index.table[at]) - 1
        if slot < 0:
            return int(REFUSED)
        if index.hashes[slot] == hashed and _same(index, slot, key, length):
            return slot
        at = (at + 1) & mask


@njit(cache=True, error_model="numpy", _nrt=False)
def find(index: Index, hashed: np.uint64, key: int, length: int, now: int, oldest: int) -> int:
    """The slot of the key at an address; a new key is given one, ``REFUSED`` if none is free.

    Where one may be taken from the longest idle, that is one without a tick from the moment
    ``oldest`` on. A new one's moment is ``now``.
    """
    slot = seek(index, hashed, key, length)
    if slot >= 0:
        return slot
    if index.counts[FREE] == 0 and index.counts[USED] == index.capacity:
        if not index.evict:
            return int(REFUSED)
        slot = longest_idle(index, oldest)
        if slot < 0:
            return int(REFUSED)
        release(index, slot, FULL)
    if index.counts[FREE] > 0:
        index.counts[FREE] -= 1
        slot = int(index.free[index.counts[FREE]])
    else:
        slot = int(index.counts[USED])
        index.counts[USED] += 1
    _put(index, slot, hashed, key, length)
    _link(index, slot, now)
    index.counts[STARTED] += 1
    note(index.changes, slot, NEW, BACK)
    return slot


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def touch(index: Index, slot: int, now: int) -> None:
    """A tick of a series was taken at the moment ``now``, which never falls."""
    if len(index.placed) > 0 and index.placed[slot] != now:
        _unlink(index, slot)
        _link(index, slot, now)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def longest_idle(index: Index, oldest: int) -> int:
    """The slot used longest ago, if it was before the moment ``oldest``; else ``REFUSED``."""
    if len(index.links) == 0:
        return int(REFUSED)
    slot = int(index.links[index.capacity, _BEFORE])
    if slot == index.capacity or index.placed[slot] >= oldest:
        return int(REFUSED)
    return slot


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def longest_idle_ones(index: Index, oldest: int, slots: NDArray[np.int32]) -> int:
    """The slots used longest ago, at most as many as there is room for; how many they are.

    Only those used before the moment ``oldest``.
    """
    count = 0
    if len(index.links) == 0:
        return 0
    slot = int(index.links[index.capacity, _BEFORE])
    while count < len(slots) and slot < index.capacity and index.placed[slot] < oldest:
        slots[count] = slot
        count += 1
        slot = int(index.links[slot, _BEFORE])
    return count


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def release(index: Index, slot: int, reason: int) -> None:
    """Take a slot from its series, and forget all of it but the recurrent state.

    That counts for nothing once no tick was seen.
    """
    preserve_one(index.shadow, slot)
    index.shadow.live[slot] = False
    _remove(index, slot)
    if len(index.links) > 0:
        _unlink(index, slot)
    name = index.names.ctypes.data + slot * index.names.strides[0]
    copy(index.latest.ctypes.data, name, len(index.latest))
    index.lengths[slot] = 0
    clear(_record(index, slot) + index.begin, index.end - index.begin)
    if index.counts[FREE] < index.capacity:  # while slots are bound, the list does not count
        index.free[index.counts[FREE]] = slot
        index.counts[FREE] += 1
    index.counts[reason] += 1
    note(index.changes, slot, GONE, NEW | BACK | CLOSES)


@njit(cache=True, error_model="numpy", _nrt=False)
def end(index: Index, slot: int) -> None:
    """A series has ended; :func:`close` is to follow."""
    marks = index.changes.marks
    if not marks[slot] & CLOSES:
        marks[slot] |= CLOSES
        index.closing[index.counts[CLOSING]] = slot
        index.counts[CLOSING] += 1


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def close(index: Index, waiting: NDArray[np.int32], begun: NDArray[np.uint8]) -> None:
    """Take their slots from series that ended, but from those that have begun anew or are about to.

    Args:
        index: its list of them is empty afterwards.
        waiting: slots of the ticks that wait.
        begun: (series,) whether a tick was taken of each, since it ended.
    """
    marks = index.changes.marks
    for slot in waiting:
        if marks[slot] & CLOSES:
            marks[slot] |= _WAITS
    for k in range(index.counts[CLOSING]):
        slot = int(index.closing[k])
        if not marks[slot] & CLOSES:
            continue
        again = marks[slot] & _WAITS or begun[slot] > 0
        marks[slot] &= ~(CLOSES | _WAITS)
        if again:
            index.counts[ENDED] += 1
            index.counts[STARTED] += 1
        else:
            release(index, slot, ENDED)
    index.counts[CLOSING] = 0


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def bind(index: Index, slot: int, key: int, length: int) -> None:
    """Give a slot to the key at an address, as new; :func:`arrange` is to follow.

    Whoever had the slot is forgotten, and so is what the key had.
    """
    hashed = hash_of(index, key, length)
    if index.lengths[slot] > 0:
        release(index, slot, UNCOUNTED)
    other = seek(index, hashed, key, length)
    if other >= 0:
        release(index, other, UNCOUNTED)
    _put(index, slot, hashed, key, length)
    _link(index, slot, 0)
    index.counts[USED] = max(index.counts[USED], slot + 1)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def arrange(index: Index, order: NDArray[np.int32]) -> None:
    """Find the free slots, and list those in use, the longest idle of ``order`` first."""
    counts = index.counts
    while counts[USED] > 0 and index.lengths[counts[USED] - 1] == 0:
        counts[USED] -= 1
    counts[FREE] = 0
    for slot in range(counts[USED] - 1, -1, -1):  # the lowest is to be taken first
        if index.lengths[slot] == 0:
            index.free[counts[FREE]] = slot
            counts[FREE] += 1
    if len(index.links) > 0:
        index.links[index.capacity, _BEFORE] = index.links[index.capacity, _AFTER] = index.capacity
        for slot in order:
            _link(index, slot, 0)


# --- the parts ------------------------------------------------------------------------------------


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _put(index: Index, slot: int, hashed: np.uint64, key: int, length: int) -> None:
    """Write a key that is not there to a slot that is free, and to the table."""
    mask = len(index.table) - 1
    at = np.int64(hashed & np.uint64(mask))
    while index.table[at] != 0:
        at = (at + 1) & mask
    index.table[at] = slot + 1
    index.shadow.live[slot] = True
    index.hashes[slot] = hashed
    index.lengths[slot] = length
    name = index.names.ctypes.data + slot * index.names.strides[0]
    copy(name, key, length)
    clear(name + length, index.names.shape[1] - length)


@njit(cache=True, error_model="numpy", _nrt=False)
def _remove(index: Index, slot: int) -> None:
    """Take the key of a slot out of the table; those behind it that probed over it move up.

    Knuth 1998, The Art of Computer Programming 3, section 6.4, algorithm R.
    """
    mask = len(index.table) - 1
    hole = np.int64(index.hashes[slot] & np.uint64(mask))
    while index.table[hole] != slot + 1:
        hole = (hole + 1) & mask
    at = hole
    while True:
        at = (at + 1) & mask
        if index.table[at] == 0:
            break
        home = np.int64(index.hashes[index.table[at] - 1] & np.uint64(mask))
        if (at - home) & mask >= (at - hole) & mask:
            index.table[hole] = index.table[at]
            hole = at
    index.table[hole] = 0


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _link(index: Index, slot: int, now: int) -> None:
    """Put a slot that is not in the list to its front."""
    if len(index.links) == 0:
        return
    links, head = index.links, index.capacity
    latest = links[head, _AFTER]
    links[slot, _BEFORE], links[slot, _AFTER] = head, latest
    links[latest, _BEFORE] = slot
    links[head, _AFTER] = slot
    index.placed[slot] = now


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _unlink(index: Index, slot: int) -> None:
    links = index.links
    before, after = links[slot, _BEFORE], links[slot, _AFTER]
    links[before, _AFTER] = after
    links[after, _BEFORE] = before


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _record(index: Index, slot: int) -> int:
    return index.records.ctypes.data + slot * index.records.strides[0]


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _same(index: Index, slot: int, key: int, length: int) -> bool:
    if index.lengths[slot] != length:
        return False
    name = index.names.ctypes.data + slot * index.names.strides[0]
    for byte in range(0, length - 7, 8):
        if load_u64(name + byte) != load_u64(key + byte):
            return False
    if length >= 8:  # the last eight, some of them once more
        return load_u64(name + length - 8) == load_u64(key + length - 8)
    for byte in range(length):
        if load_u8(name + byte) != load_u8(key + byte):
            return False
    return True
