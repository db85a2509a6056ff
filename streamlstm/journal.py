"""The write-ahead journal: every batch of ticks is on file before it is stepped.

A folder of segments, ``<20 digits>.seg``, numbered without a gap in the order of writing; each is
preallocated, so that a full disk shows when one is opened, and never used twice. A segment has a
header of 4,096 bytes and then entries, one a batch; zeros follow the last. All is little endian.

Header: magic ``STREAMLJ``; u32 format, byte order mark 0x01020304, inputs, bytes of the model id;
u64 first (0, or see :class:`Journal`); two u64, the segment's own random seed of the checksums; the
model id, padded to 456 bytes; u64 SipHash-1-3 of all that with a zero seed.

Entry, a multiple of 8 bytes: u64 SipHash-1-3 of all the rest of it; u32 its length, u32 ticks; u64
number; u64 number up to which all was known to be on disk when this was written; i64 now; u32 first
new slot, new names, bytes of their text, 0. Then columns: ts i64, values f64 (ticks, inputs), slot
i32, lengths of names u16, flags u8, text of names.

Numbers count from 1 without a gap. What says that an entry is missing or damaged, and not merely
torn off by a crash, is a later entry by which it was on disk.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from streamlstm.hashing import siphash
from streamlstm.memory import (
    copy,
    load_u32,
    load_u64,
    store_u16,
    store_u32,
    store_u64,
)
from streamlstm.ticks import Names, Ticks, rows_of

Durability = Literal["strict", "interval", "off"]
"""A batch is on disk before its forecasts go out; soon after; or there is no journal."""

FORMAT = 1
FULL = -1
"""What :func:`append` returns where the next segment is not there yet: :meth:`Journal.roll`."""

_MAGIC = b"STREAMLJ"
_ORDER = 0x01020304
_HEADER = 4096
"""Bytes before the first entry: a page, so that no write of an entry touches the header."""
_ID = 456
"""Bytes that a model's id may have: the header lies in one sector of 512."""
_HEAD = 56
"""Bytes of an entry before its columns."""
_PAGE = 4096

_HEAD_OF_SEGMENT = np.dtype(
    [
        ("magic", "S8"), ("format", "<u4"), ("order", "<u4"), ("inputs", "<u4"), ("id", "<u4"),
        ("first", "<u8"), ("seed", "<u8", 2), ("model", f"S{_ID}"), ("checksum", "<u8"),
    ]
)  # fmt: skip

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
    BYTES,
    SYNCS,
    SYNC_ERRORS,
    MISSED,  # ticks that were not written while it was suspended
    _COUNTERS,
) = range(17)


class JournalError(OSError):
    """A journal that cannot be written or read; the message is one line and says the mend."""


class Log(NamedTuple):
    """A journal for compiled code to append to; a :class:`Journal` owns what it holds."""

    state: NDArray[np.int64]
    """descriptors, offsets and counters: ``state[BYTES]`` appended, ``state[SYNCS]``,
    ``state[SYNC_ERRORS]``"""
    seeds: NDArray[np.uint64]
    """(4,) of the checksums of this segment and of the next"""
    buffer: NDArray[np.uint8]
    """room for the longest entry"""
    size: int
    """bytes of a segment"""
    inputs: int
    strict: bool


class Entry(NamedTuple):
    """A batch of ticks as it was journalled; its arrays are the reader's to keep."""

    number: int
    now: int
    """as given to :func:`append`"""
    ticks: Ticks
    begun: int
    """slot of the first of ``names``"""
    names: list[bytes]
    """of series that began with this batch; a name may be told again, of the same slot"""
    model: str
    """id of the model that was to step it"""


@dataclass
class Found:
    """What was met while reading; ``torn`` are the bytes that a crash left unfinished."""

    segments: int = 0
    entries: int = 0
    last: int = 0
    """number of the last sound entry before the end or a torn tail; 0 where there is none"""
    torn: int = 0


def nowhere() -> Log:
    """A log that keeps nothing, for those who want none."""
    state = np.zeros(_COUNTERS, np.int64)
    state[_FD] = -1
    return Log(state, np.zeros(4, np.uint64), np.zeros(0, np.uint8), 0, 0, False)


class Journal:
    """Segments to append to, and the thread that prepares the next one and syncs.

    The thread wakes every ``fsync_interval``: under ``interval`` it syncs what was appended; under
    either it prepares the next segment once this one is half full. Whatever is called here is to be
    called by the thread that appends.

    An error of fdatasync is not tried again as if nothing were: the kernel may have thrown the
    pages away (Rebello et al. 2020, "Can applications recover from fsync failures?"). Appending
    goes on in the next segment, but ``synced`` stands still, and :func:`commit` returns EIO, until
    :meth:`forget` is told that nobody needs those entries any more.
    """

    def __init__(
        self,
        folder: Path,
        *,
        inputs: int,
        max_batch: int,
        max_key: int,
        model: str,
        durability: Durability,
        fsync_interval: float = 0.1,
        segment_bytes: int = 64 << 20,
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
            durability: ``strict`` or ``interval``.
            fsync_interval: seconds.
            segment_bytes: of each; more where one entry needs more.
            first: 1 more than the number of the last entry read.

        Raises:
            JournalError: the folder cannot be written to, is in use, or the disk is full.
            ValueError: the model's id is too long, or there is to be no journal.
        """
        if durability == "off" or len(model.encode()) > _ID:
            raise ValueError(f"no journal with durability {durability!r}, model {model!r}")
        longest = _HEAD + max_batch * (15 + 8 * inputs + max_key) + 8
        size = -(-max(segment_bytes, _HEADER + longest) // _PAGE) * _PAGE
        self.folder, self._inputs, self._model = folder, inputs, model
        self._lock, self._over = threading.Lock(), threading.Event()
        state, seeds = np.zeros(_COUNTERS, np.int64), np.zeros(4, np.uint64)
        state[_NUMBER] = state[_FIRST] = first
        state[_SYNCED] = first - 1
        state[_AT] = _HEADER
        state[[_NEXT, _RETIRED]] = -1
        strict = durability == "strict"
        self.log = Log(state, seeds, np.zeros(longest, np.uint8), size, inputs, strict)
        self._folder = _open_folder(folder)
        try:
            state[_SEGMENT] = _tidy(folder) + 1
            state[_FD], seeds[:2] = self._create(int(state[_SEGMENT]), first)
        except BaseException as error:
            os.close(self._folder)
            if isinstance(error, OSError) and not isinstance(error, JournalError):
                mend = "see to it that this user may write there"
                raise _error(folder, error.errno, f"{error.strerror}", mend) from error
            raise
        self._thread = threading.Thread(
            target=self._tend, args=(fsync_interval,), name="journal", daemon=True
        )
        self._thread.start()

    @property
    def number(self) -> int:
        """Of the next entry."""
        return int(self.log.state[_NUMBER])

    @property
    def synced(self) -> int:
        """Number up to which all entries are on disk."""
        return int(self.log.state[_SYNCED])

    def roll(self) -> None:
        """See to it that the next segment is there, for :func:`append` to go on in.

        Raises:
            JournalError: the disk is full, say; it can be tried again.
        """
        with self._lock:
            self._retire()
            self._prepare()

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
            raise _error(self.folder, errno.EIO, "not all is on disk", "look after the disk")

    def forget(self, before: int) -> int:
        """Delete segments of which every entry is below this number; bytes freed.

        Raises:
            JournalError: a file cannot be deleted.
        """
        state = self.log.state
        if 0 < state[_BROKEN] <= before:
            with self._lock:
                self._retire()
                state[_BROKEN], state[_SYNCED] = 0, max(state[_SYNCED], before - 1)
        older = [path for path in _segments(self.folder) if int(path.stem) <= state[_SEGMENT]]
        firsts = [_first(path) for path in older[:-1]] + [int(state[_FIRST])]
        needed = max((k for k, first in enumerate(firsts) if 0 < first <= before), default=0)
        freed = 0
        for path in older[:needed]:  # the oldest first: what a crash leaves has no gap
            try:
                freed += path.stat().st_size
                path.unlink()
            except OSError as error:
                raise _error(path, error.errno, "cannot be deleted", "look after it") from error
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

    def _tend(self, interval: float) -> None:
        state = self.log.state
        while not self._over.wait(interval):
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
            os.close(descriptor)
            state[_RETIRED] = -1

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
        path, model = self._path(segment), self._model.encode()
        seed = (secrets.randbits(64), secrets.randbits(64))
        head = np.array(
            (_MAGIC, FORMAT, _ORDER, self._inputs, len(model), first, seed, model, 0),
            _HEAD_OF_SEGMENT,
        )
        head["checksum"] = _checksum(head)
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
            raise _error(path, error.errno, f"no new segment ({error.strerror})", mend) from error
        return descriptor, np.array(seed, np.uint64)


def _error(path: Path, code: int | None, why: str, mend: str) -> JournalError:
    error = JournalError(f"{path}: journal: {why}; {mend}")
    error.errno = code
    return error


def _open_folder(folder: Path) -> int:
    """A descriptor of the folder, locked until it is closed."""
    try:
        missing = [each for each in folder.parents if not each.exists()]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for each in (folder, *missing):
            _sync_folder(each.parent)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        mend = "choose a folder that this user may write to"
        raise _error(folder, error.errno, f"no folder ({error.strerror})", mend) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        why = "another process writes there"
        raise _error(folder, error.errno, why, "stop it, or choose another folder") from error
    return descriptor


def _sync_folder(folder: Path) -> None:
    """Have the names in it on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _segments(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.seg") if path.stem.isdecimal())


def _tidy(folder: Path) -> int:
    """Sync older segments, give back what they never used; number of the last one, 0 if none."""
    last = 0
    for path in _segments(folder):
        used = np.flatnonzero(np.fromfile(path, np.uint8)[_HEADER:])
        if not len(used):
            path.unlink()
            continue
        with open(path, "r+b") as file:
            file.truncate(-(-(_HEADER + int(used[-1]) + 1) // _PAGE) * _PAGE)
            os.fsync(file)
        last = int(path.stem)
    return last


# --- reading --------------------------------------------------------------------------------------


class _Head(NamedTuple):
    inputs: int
    first: int
    seed: NDArray[np.uint64]
    model: str


def read(folder: Path, after: int, found: Found | None = None) -> Iterator[Entry]:
    """Entries with numbers above ``after``, in order, over all segments.

    Args:
        folder: of the journal; where there is none, there is nothing to read.
        after: the number of the last entry that is not needed.
        found: counts what is met.

    Raises:
        JournalError: an entry that was on disk is damaged or missing, or a segment is of another
            version.
    """
    found = found if found is not None else Found()
    paths = _segments(folder)
    heads = [_head(path) for path in paths]
    expected, before, damage = after + 1, -1, ""
    for k, (path, head) in enumerate(zip(paths, heads, strict=True)):
        if head is None:
            continue
        # a segment that a start opened takes the place of all from its first number on
        limit = min((h.first for h in heads[k + 1 :] if h and h.first), default=1 << 63)
        if expected < head.first < limit:
            raise _lost(path, expected, damage)
        data, end = _load(path), _HEADER
        found.segments += 1
        for at, number, synced, length in _entries(data, head):
            if number >= limit or number < expected:
                end = at + length if number < limit else end
                continue
            if at > end and number > expected:
                damage = damage or f"damaged at byte {end} of {path.name}"
            alone = at == _HEADER and before != int(path.stem) - 1 and not head.first
            if number > expected:
                if synced >= expected or alone:
                    raise _lost(path, expected, damage)
                continue  # a crash took what was before it
            yield _entry(data, at, head)
            found.entries, found.last, expected = found.entries + 1, number, number + 1
            end, damage = at + length, ""
        if (rest := _used(data) - end) > 0:
            damage = damage or f"damaged at byte {end} of {path.name}"
            found.torn += rest
        before = int(path.stem)


def tail(folder: Path) -> Found:
    """What is there to be read, from the oldest entry kept on.

    Raises:
        JournalError: as :func:`read` does.
    """
    found = Found()
    heads = ((path, _head(path)) for path in _segments(folder))
    oldest = next((_first(path) for path, head in heads if head), 0)
    for _ in read(folder, max(0, oldest - 1), found):
        pass
    return found


def _lost(path: Path, number: int, damage: str) -> JournalError:
    why = f"entry {number} is {damage or 'missing'}"
    mend = "bring it back from a copy, or move the folder away to go on from a checkpoint alone"
    return _error(path, None, why, mend)


def _load(path: Path) -> NDArray[np.uint8]:
    """All of a segment, whole words of it."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        mend = "bring it back from a copy"
        raise _error(path, error.errno, f"cannot be read ({error.strerror})", mend) from error
    return data[: len(data) & ~7]


def _head(path: Path) -> _Head | None:
    """What the header says; None where there is none and nothing else either."""
    try:
        with open(path, "rb") as file:
            raw = file.read(_HEAD_OF_SEGMENT.itemsize)
    except OSError as error:
        mend = "choose a folder that this user may read"
        raise _error(path, error.errno, f"cannot be read ({error.strerror})", mend) from error
    if len(raw) == _HEAD_OF_SEGMENT.itemsize:
        head = np.frombuffer(raw, _HEAD_OF_SEGMENT)[0]
        if head["magic"] == _MAGIC and head["order"] == _ORDER and head["format"] != FORMAT:
            why = f"of format {head['format']}, this version reads {FORMAT}"
            raise _error(path, None, why, "use the version that wrote it")
        if head["magic"] == _MAGIC and head["checksum"] == _checksum(head):
            seed, model = head["seed"].astype(np.uint64), bytes(head["model"])[: head["id"]]
            return _Head(int(head["inputs"]), int(head["first"]), seed, model.decode())
    if _load(path)[_HEADER:].any():
        mend = "bring it back from a copy, or move the folder away to go on from a checkpoint alone"
        raise _error(path, None, "the header is damaged", mend)
    return None


def _checksum(head: NDArray[np.void]) -> np.uint64:
    """Of a header, itself left out."""
    raw = np.frombuffer(head.tobytes(), np.uint8).copy()
    return np.uint64(_hash(raw[:-8]))


def _first(path: Path) -> int:
    """Number of the first entry that a segment is for; 0 where it cannot be said."""
    try:
        head = _head(path)
        if head is None or head.first:
            return head.first if head else 0
        words = np.fromfile(path, np.uint64, count=(_HEADER + _HEAD) // 8)[_HEADER // 8 :]
        length = int(words[1]) & 0xFFFFFFFF if len(words) > 1 else 0
        data = np.fromfile(path, np.uint8, count=_HEADER + length)
    except OSError:
        return 0
    sound = _next(data, _HEADER, head.seed, head.inputs) == _HEADER
    return int(words[2]) if sound else 0


def _used(data: NDArray[np.uint8]) -> int:
    """Bytes up to the last one that is not zero."""
    used = np.flatnonzero(data.view(np.uint64))
    return 8 * int(used[-1]) + 8 if len(used) else 0


def _entries(data: NDArray[np.uint8], head: _Head) -> Iterator[tuple[int, int, int, int]]:
    """Where each sound entry lies, its number, what was synced then, its length."""
    words, at = data.view(np.uint64), _HEADER
    while True:
        at = _next(data, at, head.seed, head.inputs)
        if at < 0:
            return
        length = int(words[at // 8 + 1] & np.uint64(0xFFFFFFFF))
        yield at, int(words[at // 8 + 2]), int(words[at // 8 + 3]), length
        at += length


def _entry(data: NDArray[np.uint8], at: int, head: _Head) -> Entry:
    n = int(data[at + 12 : at + 16].view(np.uint32)[0])
    number, _, now = data[at + 16 : at + 40].view(np.int64).tolist()
    begun, count, text = data[at + 40 : at + 52].view(np.uint32).tolist()
    at += _HEAD

    def column(kind: type[np.generic], many: int) -> NDArray[Any]:
        nonlocal at
        begin, at = at, at + many * np.dtype(kind).itemsize
        return data[begin:at].view(kind)

    ts = column(np.int64, n)
    values = column(np.float64, n * head.inputs).reshape(n, head.inputs)
    slot = column(np.int32, n)
    ends = np.cumsum(column(np.uint16, count), dtype=np.int64).tolist()
    flags, names = column(np.uint8, n), column(np.uint8, text).tobytes()
    told = [names[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    return Entry(number, now, Ticks(slot, ts, values, flags), begun, told, head.model)


# --- compiled -------------------------------------------------------------------------------------

_pwrite: Any = types.ExternalFunction(
    "pwrite", types.intp(types.int32, types.intp, types.intp, types.int64)
)
_fdatasync: Any = types.ExternalFunction("fdatasync", types.int32(types.int32))
_errno: Any = types.ExternalFunction("__errno_location", types.intp())
_EINTR, _EIO, _EMSGSIZE = errno.EINTR, errno.EIO, errno.EMSGSIZE


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def append(log: Log, ticks: Ticks, names: Names, begun: int, used: int, now: int) -> int:
    """Write one entry: the ticks of a batch, and the names of series begun since the entry before.

    More names than one entry has room for are told first, in entries without ticks. Where it fails,
    nothing that was written before is lost, and the same can be appended again later.

    Args:
        log: of a :class:`Journal`.
        ticks: at most ``max_batch``, contiguous.
        names: of all slots.
        begun: the first slot whose name was not yet told.
        used: 1 more than the last one.
        now: kept with the entry.

    Returns:
        0, ``FULL``, or an error number: EMSGSIZE where there are more ticks or longer names than
        were said, ENOSPC where the disk is full.
    """
    if log.state[_FD] < 0:
        return 0
    if log.state[_SUSPENDED]:
        log.state[MISSED] += len(ticks.ts)
        return 0
    fixed = _HEAD + len(ticks.ts) * (13 + 8 * log.inputs)
    room = len(log.buffer) - 8
    if ticks.values.shape[1] != log.inputs or fixed > room:
        return _EMSGSIZE
    until, text = _fitting(names, begun, used, room - fixed)
    while until < used:
        until, text = _fitting(names, begun, used, room - _HEAD)
        if until == begun:
            return _EMSGSIZE
        error = _write(log, rows_of(ticks, 0, 0), names, begun, until, text, now)
        if error:
            return error
        begun = until
        until, text = _fitting(names, begun, used, room - fixed)
    return _write(log, ticks, names, begun, used, text, now)


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
def _fitting(names: Names, begun: int, used: int, room: int) -> tuple[int, int]:
    """Up to which slot names fit, and the bytes of their text."""
    text = 0
    for slot in range(begun, used):
        length = int(names.lengths[slot])
        if text + length + 2 * (slot + 1 - begun) > room:
            return slot, text
        text += length
    return used, text


@njit(cache=True, error_model="numpy", _nrt=False)
def _write(
    log: Log, ticks: Ticks, names: Names, begun: int, until: int, text: int, now: int
) -> int:
    """Write one entry; 0 or an error number."""
    state, n, count = log.state, len(ticks.ts), until - begun
    whole = _HEAD + n * (13 + 8 * log.inputs) + 2 * count + text
    length = (whole + 7) & ~7
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
    store_u32(entry + 40, np.uint32(begun))
    store_u32(entry + 44, np.uint32(count))
    store_u32(entry + 48, np.uint32(text))
    store_u32(entry + 52, np.uint32(0))
    at = entry + _HEAD
    copy(at, ticks.ts.ctypes.data, 8 * n)
    at += 8 * n
    copy(at, ticks.values.ctypes.data, 8 * n * log.inputs)
    at += 8 * n * log.inputs
    copy(at, ticks.slot.ctypes.data, 4 * n)
    at += 4 * n
    for slot in range(begun, until):
        store_u16(at, names.lengths[slot])
        at += 2
    copy(at, ticks.flags.ctypes.data, n)
    at += n
    for slot in range(begun, until):
        size = int(names.lengths[slot])
        copy(at, names.text.ctypes.data + slot * names.text.strides[0], size)
        at += size
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
    state[_AT] = _HEADER
    state[_FD] = state[_NEXT]
    state[_NEXT] = -1
    state[_LEAVE] = 0
    return 0


@njit(cache=True, error_model="numpy", _nrt=False)
def _next(data: NDArray[np.uint8], at: int, seed: NDArray[np.uint64], inputs: int) -> int:
    """Where the next sound entry lies, at ``at`` or later; -1: there is none."""
    begin, size = data.ctypes.data, len(data)
    while at + _HEAD <= size:
        entry = begin + at
        length, n = np.int64(load_u32(entry + 8)), np.int64(load_u32(entry + 12))
        count, text = np.int64(load_u32(entry + 44)), np.int64(load_u32(entry + 48))
        whole = _HEAD + n * (13 + 8 * inputs) + 2 * count + text
        if (
            length == (whole + 7) & ~7
            and at + length <= size
            and siphash(seed[0], seed[1], entry + 8, length - 8) == load_u64(entry)
        ):
            return at
        at += 8
    return -1


@njit(cache=True, error_model="numpy", _nrt=False)
def _hash(data: NDArray[np.uint8]) -> np.uint64:
    return siphash(np.uint64(0), np.uint64(0), data.ctypes.data, len(data))
