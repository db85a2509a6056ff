"""The write-ahead journal: its files, and the thread that prepares and syncs them.

Ticks are appended by compiled code (:mod:`streamlstm.appending`); what the files look like is in
:mod:`streamlstm.segments`.
"""

import contextlib
import errno
import math
import os
import secrets
import threading
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streamlstm.appending import (
    ALONE,
    AT,
    BROKEN,
    COUNTERS,
    FAILED,
    FD,
    FIRST,
    LEAVE,
    NEXT,
    NUMBER,
    RETIRED,
    SEGMENT,
    SUSPENDED,
    SYNC_ERRORS,
    SYNCED,
    SYNCS,
    Log,
)
from streamlstm.files import lock_folder, mend_of, sync_folder
from streamlstm.placed import placed, rewrite
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
)

Durability = Literal["strict", "interval", "off"]
"""A batch is on disk before its forecasts go out; soon after; or there is no journal."""


class Journal:
    """Segments to append to, and the thread that prepares the next one and syncs.

    The thread wakes every ``fsync_interval``: under ``interval`` it syncs what was appended; under
    either it prepares the next segment once this one is half full, or may not hold the next entry.
    Whatever is called here is to be called by the thread that appends.

    An error of fdatasync is not tried again as if nothing were: the kernel may have thrown the
    pages away (Rebello et al. 2020, "Can applications recover from fsync failures?"). Appending
    goes on in the next segment, but ``synced`` stands still, and ``commit`` returns EIO, until
    :meth:`forget` is told that nobody needs those entries any more.

    Where the thread meets what it does not expect it ends, and ``append`` returns EIO until
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
        schema: int = 0,
        first: int,
    ) -> None:
        """Open a fresh segment for entries from number ``first`` on.

        It takes the place of all from that number on which older segments may hold. What they hold
        is synced first. The folder is made if need be.

        Args:
            folder: for this journal alone.
            inputs: values of a tick.
            max_batch: most ticks in one ``append``.
            max_key: longest name, bytes.
            model: its id.
            policies: of the engine, as text.
            durability: ``strict`` or ``interval``.
            fsync_interval: seconds.
            segment_bytes: of each; more where one entry needs more.
            state_bytes: of a series that comes back, its recurrent state included.
            schema: id of what such states are of.
            first: 1 more than the number of the last entry read.

        Raises:
            JournalError: the folder cannot be written to, is in use, or the disk is full.
            ValueError: the model's id or the policies are too long, or there is to be no journal.
        """
        if durability == "off" or len(model.encode()) > ID or len(policies.encode()) > POLICIES:
            raise ValueError(f"no journal with {durability = }, {model = }, {policies = }")
        told = 11 + max_key
        self._but_for_states = HEAD + max_batch * (13 + 8 * inputs + told) + told + 8
        longest = self._but_for_states + 8 + state_bytes
        size = -(-max(segment_bytes, HEADER + longest) // PAGE) * PAGE
        self.folder, self._inputs, self.model, self._policies = folder, inputs, model, policies
        self._lock, self._over = threading.Lock(), threading.Event()
        state, seeds = np.zeros(COUNTERS, np.int64), np.zeros(4, np.uint64)
        state[NUMBER] = state[FIRST] = first
        state[SYNCED] = first - 1
        state[AT] = HEADER
        state[[NEXT, RETIRED]] = -1
        strict = durability == "strict"
        room, time = np.zeros(longest, np.uint8), np.zeros(2, np.int64)
        self.log = placed(Log(state, seeds, room, time, size, inputs, strict, np.uint64(schema)))
        self._folder = _open_folder(folder)
        try:
            state[SEGMENT] = _tidy(folder) + 1
            state[FD], seeds[:2] = self._create(int(state[SEGMENT]), first)
        except BaseException as error:
            os.close(self._folder)
            if isinstance(error, OSError) and not isinstance(error, JournalError):
                mend = mend_of(error, "look at its disk")
                raise error_at(folder, error.errno, f"{error.strerror}", mend) from error
            raise
        self._interval, self.problem = fsync_interval, ""
        self._begin()

    @property
    def number(self) -> int:
        """Of the next entry."""
        return int(self.log.state[NUMBER])

    @property
    def synced(self) -> int:
        """Number up to which all entries are on disk."""
        return int(self.log.state[SYNCED])

    def roll(self) -> None:
        """See to it that the next segment is there, for ``append`` to go on in, and the thread.

        Raises:
            JournalError: the disk is full, say; it can be tried again.
        """
        with self._lock:
            self._retire()
            self._prepare()
        if self.log.state[ALONE]:
            self._thread.join()
            self._begin()

    def adopt(self, model: str, state_bytes: int, schema: int) -> None:
        """Another model steps what is appended from now on; ``log`` may be another one then."""
        self.model = model
        rewrite(self.log, schema=np.uint64(schema))
        longest = self._but_for_states + 8 + state_bytes
        if longest > len(self.log.buffer):
            size = max(self.log.size, -(-(HEADER + longest) // PAGE) * PAGE)
            buffer = np.zeros(longest, np.uint8)
            self.log = placed(self.log._replace(buffer=buffer, size=size))

    @property
    def suspended(self) -> bool:
        """Whether nothing is written."""
        return bool(self.log.state[SUSPENDED])

    def suspend(self) -> None:
        """Write nothing more until :meth:`resume`; ``state[MISSED]`` counts the ticks."""
        self.log.state[SUSPENDED] = 1

    def resume(self) -> int:
        """Go on writing, for those who have all of the state that is not here.

        The number returned is left out, so that nobody reads on from before the gap.
        """
        state = self.log.state
        number = int(state[NUMBER])
        state[NUMBER], state[SUSPENDED] = number + 1, 0
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
        if 0 < state[BROKEN] <= before:
            with self._lock:
                self._retire()
                state[BROKEN], state[SYNCED] = 0, max(state[SYNCED], before - 1)
        older = [path for path in files_in(self.folder) if int(path.stem) <= state[SEGMENT]]
        firsts = [first_of(path) for path in older[:-1]] + [int(state[FIRST])]
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
                os.ftruncate(int(state[FD]), int(state[AT]))
                if state[NEXT] >= 0:
                    self._path(int(state[SEGMENT]) + 1).unlink()
            for descriptor in (*state[[FD, NEXT, RETIRED]].tolist(), self._folder):
                if descriptor >= 0:
                    os.close(descriptor)
            state[[FD, NEXT, RETIRED]] = -1

    # --- the thread, and what it shares with roll, sync and forget: all hold the lock ---

    def _begin(self) -> None:
        self.log.state[ALONE] = 0
        self._thread = threading.Thread(target=self._tend, name="journal", daemon=True)
        self._thread.start()

    def _tend(self) -> None:
        try:
            while not self._over.wait(self._interval):
                self._look()
        except BaseException as error:  # never seen; but who appends is to know
            self.problem = repr(error)
            self.log.state[ALONE] = 1

    def _look(self) -> None:
        state = self.log.state
        with self._lock:
            if self.log.strict:
                self._retire()
            else:
                self._sync()
            enough = max(self.log.size // 2, len(self.log.buffer))  # for the longest entry too
            if self.log.size - state[AT] < enough or state[LEAVE]:
                with contextlib.suppress(JournalError):
                    self._prepare()

    def _sync(self) -> None:
        """Sync what was appended until now, in whichever segment."""
        state = self.log.state
        until, wrong = int(state[NUMBER]) - 1, int(state[SYNC_ERRORS])
        self._retire()
        while state[SYNCED] < until and not state[LEAVE]:
            if not self._synced(int(state[FD])):
                state[BROKEN] = state[LEAVE] = state[NUMBER]
            if state[RETIRED] < 0:  # appending has not gone on to another segment meanwhile
                break
            self._retire()
        if state[SYNC_ERRORS] == wrong and not state[BROKEN]:
            state[SYNCED] = max(state[SYNCED], until)

    def _retire(self) -> None:
        """Sync and close the segment before this one."""
        state = self.log.state
        if (descriptor := int(state[RETIRED])) >= 0:
            if not self.log.strict and not self._synced(descriptor):
                state[BROKEN] = max(state[BROKEN], state[FIRST])
            state[RETIRED] = -1  # first: whatever close says, it is not to be closed again
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
        if state[NEXT] >= 0:
            return
        try:
            descriptor, self.log.seeds[2:] = self._create(int(state[SEGMENT]) + 1, 0)
        except JournalError as error:
            state[FAILED] = error.errno or errno.EIO
            raise
        state[FAILED] = 0
        state[NEXT] = descriptor  # last: append may take it from here on

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
        return lock_folder(folder)
    except BlockingIOError as error:
        why = "another process writes there"
        raise error_at(folder, error.errno, why, "stop it, or choose another folder") from error
    except OSError as error:
        mend = mend_of(error, "choose another folder")
        raise error_at(folder, error.errno, f"no folder ({error.strerror})", mend) from error


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
