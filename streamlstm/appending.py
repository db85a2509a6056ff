"""Appending to the journal, in compiled code: a batch of ticks is on file before it is stepped.

A :class:`Log` is what a ``Journal`` (:mod:`streamlstm.journal`) gives compiled code to write to;
how an entry is laid out, and read again, is in :mod:`streamlstm.segments`.
"""

import errno
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numpy.typing import NDArray

from streamlstm.events import BACK, CHANGED, CREATE, EVICT, GONE, NEW, UNPARK, Events, told
from streamlstm.hashing import siphash
from streamlstm.jit import njit
from streamlstm.memory import copy, load_u32, store_u8, store_u16, store_u32, store_u64
from streamlstm.placed import placed
from streamlstm.segments import HEAD, HEADER, size_of_entry
from streamlstm.ticks import Ticks, rows_of

FULL = -1
"""What :func:`append` returns where the next segment is not there yet: ``Journal.roll``."""

# What a Log counts; each is written by one thread alone but where said.
(
    FD,
    AT,  # where the next entry goes
    NUMBER,  # of the next entry
    SEGMENT,  # which one it goes to
    SYNCED,  # up to which number all is on disk
    NEXT,  # descriptor of the next segment, prepared; -1: none. By Journal, until it is taken.
    FAILED,  # why there is none: an error number. By Journal.
    RETIRED,  # descriptor of the segment before, until it is closed; -1: none
    FIRST,  # number of the first entry of this segment
    LEAVE,  # a number, where this segment is to be left: what lies there could not be synced
    BROKEN,  # a number, where not all below it could be synced and forgetting it is the mend
    SUSPENDED,  # 1: nothing is written
    ALONE,  # 1: the thread has ended, and nothing can be appended. By Journal.
    BYTES,
    SYNCS,
    SYNC_ERRORS,
    MISSED,  # ticks that were not written while it was suspended
    COUNTERS,
) = range(18)


class Log(NamedTuple):
    """A journal for compiled code to append to; a ``Journal`` owns what it holds."""

    state: NDArray[np.int64]
    """descriptors, offsets and counters: ``state[BYTES]`` appended, ``state[SYNCS]``,
    ``state[SYNC_ERRORS]``"""
    seeds: NDArray[np.uint64]
    """(4,) of the checksums of this segment and of the next"""
    buffer: NDArray[np.uint8]
    """room for the longest entry"""
    sleep: NDArray[np.int64]
    """(2,) room for a time"""
    size: int
    """bytes of a segment"""
    inputs: int
    strict: bool
    schema: np.uint64
    """id of what states are of"""


def nowhere() -> Log:
    """A log that keeps nothing, for those who want none."""
    state = np.zeros(COUNTERS, np.int64)
    state[FD] = -1
    seeds, room, time = np.zeros(4, np.uint64), np.zeros(0, np.uint8), np.zeros(2, np.int64)
    return placed(Log(state, seeds, room, time, 0, 0, False, np.uint64(0)))


_pwrite: Any = types.ExternalFunction(
    "pwrite", types.intp(types.int32, types.intp, types.intp, types.int64)
)
_fdatasync: Any = types.ExternalFunction("fdatasync", types.int32(types.int32))
_errno: Any = types.ExternalFunction("__errno_location", types.intp())
_EINTR, _EIO, _EMSGSIZE = errno.EINTR, errno.EIO, errno.EMSGSIZE


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def append(log: Log, ticks: Ticks, events: Events, now: int) -> int:
    """Write one entry: what became of slots since the entry before, and the ticks of a batch.

    More events than one entry has room for are told first, in entries without ticks. Where it
    fails, nothing that was written before is lost, and the same can be appended again later.

    Args:
        log: of a ``Journal``.
        ticks: at most ``max_batch``, contiguous.
        events: told once this returns 0.
        now: kept with the entry.

    Returns:
        0, ``FULL``, or an error number: EMSGSIZE where there are more ticks, longer names or larger
        states than were said, ENOSPC where the disk is full, EIO where the thread has ended.
    """
    if log.state[FD] < 0:
        told(events.changes)
        return 0
    if log.state[SUSPENDED]:
        log.state[MISSED] += len(ticks.ts)
        told(events.changes)
        return 0
    if log.state[ALONE]:
        return _EIO
    room = len(log.buffer) - 8
    rest = room - size_of_entry(len(ticks.ts), log.inputs, 0, 0)
    if ticks.values.shape[1] != log.inputs or rest < 0:
        return _EMSGSIZE
    last = 2 * events.changes.length[0]
    until = _fitting(events, rest)
    while until < last:
        until = _fitting(events, room - HEAD)
        if until == 0:
            return _EMSGSIZE
        error = _write(log, rows_of(ticks, 0, 0), events, until, now)
        if error:
            return error
        _tell(events, until)
        last = 2 * events.changes.length[0]
        until = _fitting(events, rest)
    error = _write(log, ticks, events, until, now)
    if error == 0:
        told(events.changes)
    return error


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def commit(log: Log) -> int:
    """Under ``strict``, wait until all that was appended is on disk; else return at once.

    Returns:
        0, or an error number; see ``Journal`` for what follows.
    """
    state = log.state
    number = int(state[NUMBER])
    if not log.strict or state[SYNCED] == number - 1:
        return 0
    if state[LEAVE] or state[BROKEN]:
        return _EIO
    error = _sync_file(state)
    if error == 0:
        state[SYNCED] = number - 1
    return error


@njit(cache=True, error_model="numpy", _nrt=False)
def _sync_file(state: NDArray[np.int64]) -> int:
    """Sync this segment; 0 or an error number, after which it is to be left."""
    while _fdatasync(state[FD]) < 0:
        error = int(load_u32(_errno()))
        if error != _EINTR:
            state[SYNC_ERRORS] += 1
            state[BROKEN] = state[LEAVE] = state[NUMBER]
            return error
    state[SYNCS] += 1
    return 0


@njit(cache=True, error_model="numpy", _nrt=False)
def _event(events: Events, at: int) -> tuple[int, int]:
    """Kind (0: none) and slot of an event: first all those that go, so that a key may move."""
    changes = events.changes
    count = changes.length[0]
    slot = int(changes.slots[at if at < count else at - count])
    marks = changes.marks[slot]
    if at < count:
        return EVICT if marks & GONE else 0, slot
    if not marks & NEW:
        return 0, slot
    return UNPARK if marks & BACK else CREATE, slot


@njit(cache=True, error_model="numpy", _nrt=False)
def _lengths(events: Events, kind: int, slot: int) -> tuple[int, int]:
    """Bytes of name and of state of an event."""
    if kind == EVICT:
        return 0, 0
    state = 8 + events.end - events.begin + 4 * events.recurrent.shape[1]
    return int(events.names.lengths[slot]), state if kind == UNPARK else 0


@njit(cache=True, error_model="numpy", _nrt=False)
def _fitting(events: Events, room: int) -> int:
    """Up to which event there is room."""
    for at in range(2 * events.changes.length[0]):
        kind, slot = _event(events, at)
        if kind:
            room -= 11 + sum(_lengths(events, kind, slot))
            if room < 0:
                return at
    return int(2 * events.changes.length[0])


@njit(cache=True, error_model="numpy", _nrt=False)
def _tell(events: Events, until: int) -> None:
    """The events up to one are told."""
    changes = events.changes
    count, left = changes.length[0], 0
    for at in range(until):
        slot = changes.slots[at if at < count else at - count]
        changes.marks[slot] &= ~GONE if at < count else ~(NEW | BACK)
    for k in range(count):
        slot = changes.slots[k]
        if changes.marks[slot] & CHANGED:
            changes.slots[left] = slot
            left += 1
    changes.length[0] = left


@njit(cache=True, error_model="numpy", _nrt=False)
def _write(log: Log, ticks: Ticks, events: Events, until: int, now: int) -> int:
    """Write one entry, with the events up to one; 0 or an error number."""
    state, n = log.state, len(ticks.ts)
    count, text, states = 0, 0, 0
    for at in range(until):
        kind, slot = _event(events, at)
        if kind:
            name, size = _lengths(events, kind, slot)
            count, text, states = count + 1, text + name, states + size
    length = (size_of_entry(n, log.inputs, count, text + states) + 7) & ~7
    if state[AT] + length > log.size or state[LEAVE]:
        error = _turn(log)
        if error:
            return error
    entry = log.buffer.ctypes.data
    store_u64(entry + length - 8, np.uint64(0))  # what pads it
    store_u32(entry + 8, np.uint32(length))
    store_u32(entry + 12, np.uint32(n))
    store_u64(entry + 16, np.uint64(state[NUMBER]))
    store_u64(entry + 24, np.uint64(state[SYNCED]))
    store_u64(entry + 32, np.uint64(now))
    store_u32(entry + 40, np.uint32(count))
    store_u32(entry + 44, np.uint32(text))
    store_u32(entry + 48, np.uint32(states))
    store_u32(entry + 52, np.uint32(0))
    to = entry + HEAD
    copy(to, ticks.ts.ctypes.data, 8 * n)
    to += 8 * n
    copy(to, ticks.values.ctypes.data, 8 * n * log.inputs)
    to += 8 * n * log.inputs
    copy(to, ticks.slot.ctypes.data, 4 * n)
    to += 4 * n
    copy(to + 11 * count, ticks.flags.ctypes.data, n)
    slots, sizes, lengths, kinds = to, to + 4 * count, to + 8 * count, to + 10 * count
    to += 11 * count + n
    k, into = 0, to + text
    for at in range(until):
        kind, slot = _event(events, at)
        if kind:
            name, size = _lengths(events, kind, slot)
            store_u32(slots + 4 * k, np.uint32(slot))
            store_u32(sizes + 4 * k, np.uint32(size))
            store_u16(lengths + 2 * k, np.uint16(name))
            store_u8(kinds + k, np.uint8(kind))
            k += 1
            copy(to, events.names.text.ctypes.data + slot * events.names.text.strides[0], name)
            to += name
            if size:
                into += _write_state(log, events, slot, into)
    store_u64(entry, siphash(log.seeds[0], log.seeds[1], entry + 8, length - 8))
    done = 0
    while done < length:
        wrote = _pwrite(state[FD], entry + done, length - done, state[AT] + done)
        if wrote <= 0:
            error = int(load_u32(_errno())) if wrote < 0 else _EIO
            if error == _EINTR:
                continue
            return error
        done += wrote
    state[AT] += length
    state[BYTES] += length
    state[NUMBER] += 1
    return 0


@njit(cache=True, error_model="numpy", _nrt=False)
def _write_state(log: Log, events: Events, slot: int, to: int) -> int:
    """Write the state of a series; bytes written."""
    records, recurrent = events.records, events.recurrent
    size, floats = events.end - events.begin, 4 * recurrent.shape[1]
    store_u64(to, log.schema)
    copy(to + 8, records.ctypes.data + slot * records.strides[0] + events.begin, size)
    copy(to + 8 + size, recurrent.ctypes.data + slot * recurrent.strides[0], floats)
    return int(8 + size + floats)


@njit(cache=True, error_model="numpy", _nrt=False)
def _turn(log: Log) -> int:
    """Go on to the next segment; 0, ``FULL`` or an error number."""
    state = log.state
    if state[NEXT] < 0 or state[RETIRED] >= 0:
        return int(state[FAILED]) if state[FAILED] else FULL
    behind = log.strict and not state[LEAVE] and state[SYNCED] < state[NUMBER] - 1
    if behind and _sync_file(state) == 0:  # or else commit says so
        state[SYNCED] = state[NUMBER] - 1
    if state[LEAVE] and state[NUMBER] > state[LEAVE]:
        state[BROKEN] = state[NUMBER]
    log.seeds[0], log.seeds[1] = log.seeds[2], log.seeds[3]
    state[RETIRED] = state[FD]
    state[FIRST] = state[NUMBER]
    state[SEGMENT] += 1
    state[AT] = HEADER
    state[FD] = state[NEXT]
    state[NEXT] = -1
    state[LEAVE] = 0
    return 0
