"""The write-ahead journal: every batch of ticks is on file before it is stepped.

:class:`Journal` owns the files, which :mod:`streamlstm.segments` describes; :func:`append` and
:func:`commit` are for compiled code.
"""

import contextlib
import errno
import fcntl
import math
import os
import secrets
import threading
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numba import types
from numpy.typing import NDArray

from streamlstm.events import BACK, CHANGED, CREATE, EVICT, GONE, NEW, UNPARK, Events, told
from streamlstm.files import sync_folder
from streamlstm.hashing import siphash
from streamlstm.jit import njit
from streamlstm.memory import copy, load_u32, store_u8, store_u16, store_u32, store_u64
from streamlstm.placed import placed
from streamlstm.segments import (
    FORMAT,
    HEAD,
    HEAD_OF_SEGMENT,
    HEADER,
    ID,
    MAGIC,
    ORDER,
    PAGE,
    POLICIES,
    JournalError,
    checksum,
    end_of,
    error_at,
    files_in,
    first_of,
    needed,
    size_of_entry,
)
from streamlstm.ticks import Ticks, rows_of

Durability = Literal["strict", "interval", "off"]
"""A batch is on disk before its forecasts go out; soon after; or there is no journal."""

FULL = -1
"""What :func:`append` returns where the next segment is not there yet: :meth:`Journal.roll`."""

# What a Log counts; each is written by one thread alone but where said.
(
    _FD,
    _AT,  # where the next entry goes
    _NUMBER,  # of the next entry
    _SEGMENT,  # which one it goes to
    _SYNCED,  # up to which number all is on disk
    _NEXT,  # descriptor of the next segment, prepared; -1: none. By Journal, until it is taken.
    _FAILED,  # why there is none: an error number. By Journal.
    _RETIRED,  # descriptor of the segment before, until it is closed; -1: none
    _FIRST,  # number of the first entry of this segment
    _LEAVE,  # a number, where this segment is to be left: what lies there could not be synced
    _BROKEN,  # a number, where not all below it could be synced and forgetting it is the mend
    _SUSPENDED,  # 1: nothing is written
    _ALONE,  # 1: the thread has ended, and nothing can be appended. By Journal.
    BYTES,
    SYNCS,
    SYNC_ERRORS,
    MISSED,  # ticks that were not written while it was suspended
    _COUNTERS,
) = range(18)


class Log(NamedTuple):
    """A journal for compiled code to append to; a :class:`Journal` owns what it holds."""

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


def nowhere() -> Log:
    """A log that keeps nothing, for those who want none."""
    state = np.zeros(_COUNTERS, np.int64)
    state[_FD] = -1
    seeds, room, time = np.zeros(4, np.uint64), np.zeros(0, np.uint8), np.zeros(2, np.int64)
    return placed(Log(state, seeds, room, time, 0, 0, False))


class Journal:
    """Segments to append to, and the thread that prepares the next one and syncs.

    The thread wakes every ``fsync_interval``: under ``interval`` it syncs what was appended; under
    either it prepares the next segment once this one is half full. Whatever is called here is to be
    called by the thread that appends.

    An error of fdatasync is not tried again as if nothing were: the kernel may have thrown the
    pages away (Rebello et al. 2020, "Can applications recover from fsync failures?"). Appending
    goes on in the next segment, but ``synced`` stands still, and :func:`commit` returns EIO, until
    :meth:`forget` is told that nobody needs those entries any more.

    Where the thread meets what it does not expect it ends, and :func:`append` returns EIO until
    :meth:`roll` begins another.

    Attributes:
        problem: what the thread ended by, for the log.
    """

    def __init__(
        self,
        folder: Path,
        *,
        inputs: int,
        max_batch: int,
        max_key: int,
        model: str,
        policies: str = "",
        durability: Durability,
        fsync_interval: float = 0.1,
        segment_bytes: int = 64 << 20,
        state_bytes: int = 0,
        first: int,
    ) -> None:
        """Open a fresh segment for entries from number ``first`` on.

        It takes the place of all from that number on which older segments may hold. What they hold
        is synced first. The folder is made if need be.

        Args:
            folder: for this journal alone.
            inputs: values of a tick.
            max_batch: most ticks in one :func:`append`.
            max_key: longest name, bytes.
            model: its id.
            policies: of the engine, as text.
            durability: ``strict`` or ``interval``.
            fsync_interval: seconds.
            segment_bytes: of each; more where one entry needs more.
            state_bytes: of a series that comes back, its recurrent state included.
            first: 1 more than the number of the last entry read.

        Raises:
            JournalError: the folder cannot be written to, is in use, or the disk is full.
            ValueError: the model's id or the policies are too long, or there is to be no journal.
        """
        if durability == "off" or len(model.encode()) > ID or len(policies.encode()) > POLICIES:
            raise ValueError(f"no journal with {durability = }, {model = }, {policies = }")
        told = 11 + max_key
        self._but_for_states = HEAD + max_batch * (13 + 8 * inputs + told) + told + 8
        longest = self._but_for_states + state_bytes
        size = -(-max(segment_bytes, HEADER + longest) // PAGE) * PAGE
        self.folder, self._inputs, self.model, self._policies = folder, inputs, model, policies
        self._lock, self._over = threading.Lock(), threading.Event()
        state, seeds = np.zeros(_COUNTERS, np.int64), np.zeros(4, np.uint64)
        state[_NUMBER] = state[_FIRST] = first
        state[_SYNCED] = first - 1
        state[_AT] = HEADER
        state[[_NEXT, _RETIRED]] = -1
        strict = durability == "strict"
        room, time = np.zeros(longest, np.uint8), np.zeros(2, np.int64)
        self.log = placed(Log(state, seeds, room, time, size, inputs, strict))
        self._folder = _open_folder(folder)
        try:
            state[_SEGMENT] = _tidy(folder) + 1
            state[_FD], seeds[:2] = self._create(int(state[_SEGMENT]), first)
        except BaseException as error:
            os.close(self._folder)
            if isinstance(error, OSError) and not isinstance(error, JournalError):
                mend = "see to it that this user may write there"
                raise error_at(folder, error.errno, f"{error.strerror}", mend) from error
            raise
        self._interval, self.problem = fsync_interval, ""
        self._begin()

    @property
    def number(self) -> int:
        """Of the next entry."""
        return int(self.log.state[_NUMBER])

    @property
    def synced(self) -> int:
        """Number up to which all entries are on disk."""
        return int(self.log.state[_SYNCED])

    def roll(self) -> None:
        """See to it that the next segment is there, for :func:`append` to go on in, and the thread.

        Raises:
            JournalError: the disk is full, say; it can be tried again.
        """
        with self._lock:
            self._retire()
            self._prepare()
        if self.log.state[_ALONE]:
            self._thread.join()
            self._begin()

    def adopt(self, model: str, state_bytes: int) -> None:
        """Another model steps what is appended from now on; ``log`` may be another one then."""
        self.model = model
        longest = self._but_for_states + state_bytes
        if longest > len(self.log.buffer):
            size = max(self.log.size, -(-(HEADER + longest) // PAGE) * PAGE)
            buffer = np.zeros(longest, np.uint8)
            self.log = placed(self.log._replace(buffer=buffer, size=size))

    @property
    def suspended(self) -> bool:
        """Whether nothing is written."""
        return bool(self.log.state[_SUSPENDED])

    def suspend(self) -> None:
        """Write nothing more until :meth:`resume`; ``state[MISSED]`` counts the ticks."""
        self.log.state[_SUSPENDED] = 1

    def resume(self) -> int:
        """Go on writing, for those who have all of the state that is not here.

        The number returned is left out, so that nobody reads on from before the gap.
        """
        state = self.log.state
        number = int(state[_NUMBER])
        state[_NUMBER], state[_SUSPENDED] = number + 1, 0
        return number

    def sync(self) -> None:
        """Wait until all that was appended is on disk.

        Raises:
            JournalError: it could not be written there.
        """
        with self._lock:
            self._sync()
        if self.synced < self.number - 1:
            raise error_at(self.folder, errno.EIO, "not all is on disk", "look after the disk")

    def forget(self, before: int, until: float = math.inf) -> int:
        """Delete segments of which every entry is below this number; bytes freed.

        Those that were written to after ``until``, seconds since the epoch, stay, and what follows
        them.

        Raises:
            JournalError: a file cannot be deleted.
        """
        state = self.log.state
        if 0 < state[_BROKEN] <= before:
            with self._lock:
                self._retire()
                state[_BROKEN], state[_SYNCED] = 0, max(state[_SYNCED], before - 1)
        older = [path for path in files_in(self.folder) if int(path.stem) <= state[_SEGMENT]]
        firsts = [first_of(path) for path in older[:-1]] + [int(state[_FIRST])]
        freed = 0
        # the oldest first: what a crash leaves has no gap
        for path in older[: needed(firsts, before)]:
            try:
                file = path.stat()
                if file.st_mtime > until:
                    break
                path.unlink()
                freed += file.st_size
            except OSError as error:
                raise error_at(path, error.errno, "cannot be deleted", "look after it") from error
        return freed

    def close(self) -> None:
        """Sync and close; the unused rest of the segment is given back.

        Raises:
            JournalError: not all could be synced; it is closed nevertheless.
        """
        self._over.set()
        self._thread.join()
        state = self.log.state
        try:
            self.sync()
        finally:
            with contextlib.suppress(OSError):
                os.ftruncate(int(state[_FD]), int(state[_AT]))
                if state[_NEXT] >= 0:
                    self._path(int(state[_SEGMENT]) + 1).unlink()
            for descriptor in (*state[[_FD, _NEXT, _RETIRED]].tolist(), self._folder):
                if descriptor >= 0:
                    os.close(descriptor)
            state[[_FD, _NEXT, _RETIRED]] = -1

    # --- the thread, and what it shares with roll, sync and forget: all hold the lock ---

    def _begin(self) -> None:
        self.log.state[_ALONE] = 0
        self._thread = threading.Thread(target=self._tend, name="journal", daemon=True)
        self._thread.start()

    def _tend(self) -> None:
        try:
            while not self._over.wait(self._interval):
                self._look()
        except BaseException as error:  # never seen; but who appends is to know
            self.problem = repr(error)
            self.log.state[_ALONE] = 1

    def _look(self) -> None:
        state = self.log.state
        with self._lock:
            if self.log.strict:
                self._retire()
            else:
                self._sync()
            if 2 * state[_AT] > self.log.size or state[_LEAVE]:
                with contextlib.suppress(JournalError):
                    self._prepare()

    def _sync(self) -> None:
        """Sync what was appended until now, in whichever segment."""
        state = self.log.state
        until, wrong = int(state[_NUMBER]) - 1, int(state[SYNC_ERRORS])
        self._retire()
        while state[_SYNCED] < until and not state[_LEAVE]:
            if not self._synced(int(state[_FD])):
                state[_BROKEN] = state[_LEAVE] = state[_NUMBER]
            if state[_RETIRED] < 0:  # appending has not gone on to another segment meanwhile
                break
            self._retire()
        if state[SYNC_ERRORS] == wrong and not state[_BROKEN]:
            state[_SYNCED] = max(state[_SYNCED], until)

    def _retire(self) -> None:
        """Sync and close the segment before this one."""
        state = self.log.state
        if (descriptor := int(state[_RETIRED])) >= 0:
            if not self.log.strict and not self._synced(descriptor):
                state[_BROKEN] = max(state[_BROKEN], state[_FIRST])
            state[_RETIRED] = -1  # first: whatever close says, it is not to be closed again
            os.close(descriptor)

    def _synced(self, descriptor: int) -> bool:
        try:
            os.fdatasync(descriptor)
        except OSError:
            self.log.state[SYNC_ERRORS] += 1
            return False
        self.log.state[SYNCS] += 1
        return True

    def _prepare(self) -> None:
        """Create the next segment, unless it is there."""
        state = self.log.state
        if state[_NEXT] >= 0:
            return
        try:
            descriptor, self.log.seeds[2:] = self._create(int(state[_SEGMENT]) + 1, 0)
        except JournalError as error:
            state[_FAILED] = error.errno or errno.EIO
            raise
        state[_FAILED] = 0
        state[_NEXT] = descriptor  # last: append may take it from here on

    def _path(self, segment: int) -> Path:
        return self.folder / f"{segment:020}.seg"

    def _create(self, segment: int, first: int) -> tuple[int, NDArray[np.uint64]]:
        """A segment on disk, ready to be written to: its descriptor and seed."""
        path, model = self._path(segment), self.model.encode()
        seed = (secrets.randbits(64), secrets.randbits(64))
        said = model, self._policies.encode()
        head = np.array(
            (MAGIC, FORMAT, ORDER, self._inputs, len(model), first, seed, *said, 0),
            HEAD_OF_SEGMENT,
        )
        head["checksum"] = checksum(head)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self.log.size)
                os.pwrite(descriptor, head.tobytes(), 0)
                os.fsync(descriptor)
                os.fsync(self._folder)
            except BaseException:
                os.close(descriptor)
                path.unlink()
                raise
        except OSError as error:
            mend = "free some space" if error.errno == errno.ENOSPC else "see to its folder"
            raise error_at(path, error.errno, f"no new segment ({error.strerror})", mend) from error
        return descriptor, np.array(seed, np.uint64)


def _open_folder(folder: Path) -> int:
    """A descriptor of the folder, locked until it is closed."""
    try:
        missing = [each for each in folder.parents if not each.exists()]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for each in (folder, *missing):
            sync_folder(each.parent)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        mend = "choose a folder that this user may write to"
        raise error_at(folder, error.errno, f"no folder ({error.strerror})", mend) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        why = "another process writes there"
        raise error_at(folder, error.errno, why, "stop it, or choose another folder") from error
    return descriptor


def _tidy(folder: Path) -> int:
    """Sync older segments, give back what they never used; number of the last one, 0 if none.

    Only the last three may need it: the one that was prepared, the one written to, and the one
    before. Those older were full and on disk before that was begun.
    """
    files = files_in(folder)
    last = int(files[-4].stem) if len(files) > 3 else 0
    for path in files[-3:]:
        end = end_of(path)
        if not end:
            path.unlink()
            continue
        with open(path, "r+b") as file:
            size = -(-end // PAGE) * PAGE
            if os.fstat(file.fileno()).st_size > size:  # or else the file would be as of today
                file.truncate(size)
            os.fsync(file)
        last = int(path.stem)
    return last


# --- compiled -------------------------------------------------------------------------------------

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
        log: of a :class:`Journal`.
        ticks: at most ``max_batch``, contiguous.
        events: told once this returns 0.
        now: kept with the entry.

    Returns:
        0, ``FULL``, or an error number: EMSGSIZE where there are more ticks, longer names or larger
        states than were said, ENOSPC where the disk is full, EIO where the thread has ended.
    """
    if log.state[_FD] < 0:
        told(events.changes)
        return 0
    if log.state[_SUSPENDED]:
        log.state[MISSED] += len(ticks.ts)
        told(events.changes)
        return 0
    if log.state[_ALONE]:
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
        0, or an error number; see :class:`Journal` for what follows.
    """
    state = log.state
    number = int(state[_NUMBER])
    if not log.strict or state[_SYNCED] == number - 1:
        return 0
    if state[_LEAVE] or state[_BROKEN]:
        return _EIO
    error = _sync_file(state)
    if error == 0:
        state[_SYNCED] = number - 1
    return error


@njit(cache=True, error_model="numpy", _nrt=False)
def _sync_file(state: NDArray[np.int64]) -> int:
    """Sync this segment; 0 or an error number, after which it is to be left."""
    while _fdatasync(state[_FD]) < 0:
        error = int(load_u32(_errno()))
        if error != _EINTR:
            state[SYNC_ERRORS] += 1
            state[_BROKEN] = state[_LEAVE] = state[_NUMBER]
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
    state = events.end - events.begin + 4 * events.recurrent.shape[1] if kind == UNPARK else 0
    return int(events.names.lengths[slot]), state


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
    if state[_AT] + length > log.size or state[_LEAVE]:
        error = _turn(log)
        if error:
            return error
    entry = log.buffer.ctypes.data
    store_u64(entry + length - 8, np.uint64(0))  # what pads it
    store_u32(entry + 8, np.uint32(length))
    store_u32(entry + 12, np.uint32(n))
    store_u64(entry + 16, np.uint64(state[_NUMBER]))
    store_u64(entry + 24, np.uint64(state[_SYNCED]))
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
                into += _write_state(events, slot, into)
    store_u64(entry, siphash(log.seeds[0], log.seeds[1], entry + 8, length - 8))
    done = 0
    while done < length:
        wrote = _pwrite(state[_FD], entry + done, length - done, state[_AT] + done)
        if wrote <= 0:
            error = int(load_u32(_errno())) if wrote < 0 else _EIO
            if error == _EINTR:
                continue
            return error
        done += wrote
    state[_AT] += length
    state[BYTES] += length
    state[_NUMBER] += 1
    return 0


@njit(cache=True, error_model="numpy", _nrt=False)
def _write_state(events: Events, slot: int, to: int) -> int:
    """Write the state of a series; bytes written."""
    records, recurrent = events.records, events.recurrent
    size, floats = events.end - events.begin, 4 * recurrent.shape[1]
    copy(to, records.ctypes.data + slot * records.strides[0] + events.begin, size)
    copy(to + size, recurrent.ctypes.data + slot * recurrent.strides[0], floats)
    return int(size + floats)


@njit(cache=True, error_model="numpy", _nrt=False)
def _turn(log: Log) -> int:
    """Go on to the next segment; 0, ``FULL`` or an error number."""
    state = log.state
    if state[_NEXT] < 0 or state[_RETIRED] >= 0:
        return int(state[_FAILED]) if state[_FAILED] else FULL
    behind = log.strict and not state[_LEAVE] and state[_SYNCED] < state[_NUMBER] - 1
    if behind and _sync_file(state) == 0:  # or else commit says so
        state[_SYNCED] = state[_NUMBER] - 1
    if state[_LEAVE] and state[_NUMBER] > state[_LEAVE]:
        state[_BROKEN] = state[_NUMBER]
    log.seeds[0], log.seeds[1] = log.seeds[2], log.seeds[3]
    state[_RETIRED] = state[_FD]
    state[_FIRST] = state[_NUMBER]
    state[_SEGMENT] += 1
    state[_AT] = HEADER
    state[_FD] = state[_NEXT]
    state[_NEXT] = -1
    state[_LEAVE] = 0
    return 0
