"""Where series that were evicted wait for their next tick: a file, from which they come back.

An SQLite file, since its rows are replaced one by one, under whatever moment it is killed at. A
series' row is on disk before its slot is given to another, and stays there when it comes back: what
it then had is in the journal, and the next time that it is parked the row is written over. Only a
series that ended is taken out. So whichever of its last entries the journal has lost, a series is
in one of both. Who has a slot is never looked for here.
"""

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamlstm.admission import FIRST, MESSAGE, UNKNOWN, meet
from streamlstm.engine import Engine
from streamlstm.index import FULL
from streamlstm.ticks import WARM, Arrivals, Ticks

FORMAT = 2

_SCHEMA = """
CREATE TABLE IF NOT EXISTS parked (
    key BLOB PRIMARY KEY, of BLOB NOT NULL, state BLOB NOT NULL, recurrent BLOB NOT NULL,
    recent BLOB NOT NULL, checksum BLOB NOT NULL
) WITHOUT ROWID
"""


_HEAD = 3
"""Words before the latest ticks."""
_HEADER, _VERSION_AT = 100, 60
"""Bytes of an SQLite file's header, and where in it user_version is: what is not yet in the file
itself, but in its write-ahead log, is 0 there."""
_UNUSABLE = (sqlite3.Error, UnicodeDecodeError)
"""What a file that is damaged, or not to be had, raises."""


class ParkingError(OSError):
    """A file that cannot be used; the message is one line and says the mend."""


def look(path: Path) -> None:
    """See whether a file is one, if it is there: it is not made, and may be in use meanwhile.

    Raises:
        ParkingError: it is not, or of another version.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(_HEADER)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ParkingError(f"{path}: parking: {error.strerror}; choose another path") from error
    if head and (len(head) < _HEADER or not head.startswith(b"SQLite format 3\0")):
        raise ParkingError(f"{path}: parking: file is not a database; move it away")
    _heed_version(path, int.from_bytes(head[_VERSION_AT : _VERSION_AT + 4], "big"))


def _heed_version(path: Path, version: int) -> None:
    if version not in (0, FORMAT):
        raise ParkingError(
            f"{path}: parking of format {version}, this version reads {FORMAT}; use the"
            " version that wrote it, or move it away"
        )


class Parking:
    """Series parked in a file of one process.

    Attributes:
        parked, returned: series written since it was opened, and brought back.
        refused: rows that are damaged; their series start anew.
        failures: times that the file could not be read or written.
        problem: the latest of these, for the log.
    """

    def __init__(self, path: Path, engine: Engine, *, evict: bool = True) -> None:
        """Open the file, or make it; readable by its owner alone.

        With ``evict``, :meth:`make_way` parks the longest idle of the engine, whose series are then
        ordered; it evicts none on its own.

        Raises:
            ParkingError: it is not one, of another version, or in use.
        """
        self.path, self._evict = path, evict
        self.parked = self.returned = self.refused = self.failures = 0
        self.problem = ""
        self.adopt(engine)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            self._file = sqlite3.connect(path, timeout=0, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise ParkingError(f"{path}: parking: {error}; choose a path to write to") from error
        try:
            (version,) = self._file.execute("PRAGMA user_version").fetchone()
            _heed_version(path, version)
            self._file.execute("PRAGMA locking_mode = EXCLUSIVE")  # there is no second process
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = FULL")  # what is committed is on disk
            self._file.execute("BEGIN EXCLUSIVE")
            self._file.execute(_SCHEMA)
            self._file.execute(f"PRAGMA user_version = {FORMAT}")
            self._file.execute("COMMIT")
        except ParkingError:
            self._file.close()
            raise
        except _UNUSABLE as error:
            self._file.close()
            mend = "stop the other process" if "locked" in str(error) else "move it away"
            why = " ".join(str(error).split())  # it may quote what is damaged
            raise ParkingError(f"{path}: parking: {why}; {mend}") from error

    @property
    def rows(self) -> int:
        """Rows there are, those of series that have come back included."""
        return int(self._file.execute("SELECT count(*) FROM parked").fetchone()[0])

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def adopt(self, engine: Engine) -> None:
        """Take states as this engine has them from now on."""
        self._of = hashlib.blake2b(repr(engine.layout).encode(), digest_size=16).digest()

    def park(self, engine: Engine, slots: NDArray[np.int32]) -> bool:
        """Write the state of some series; False where they cannot, and must not be evicted."""
        slots = slots[engine.moved(slots)]
        if not len(slots):
            return True
        keys, recents = engine.series.keys(slots), _recent(engine, slots)
        parts = zip(keys, *engine.records(slots), recents, strict=True)
        rows = [
            (key, self._of, state.tobytes(), recurrent.tobytes(), recent)
            for key, state, recurrent, recent in parts
        ]
        try:
            self._file.execute("BEGIN")
            self._file.executemany(
                "REPLACE INTO parked VALUES (?, ?, ?, ?, ?, ?)",
                ((*row, _sum(*row)) for row in rows),
            )
            self._file.execute("COMMIT")
        except _UNUSABLE as error:
            self._fail(error)
            return False
        self.parked += len(rows)
        return True

    def forget(self, keys: Sequence[bytes]) -> None:
        """Take series out that ended."""
        try:
            self._file.execute("BEGIN")
            self._file.executemany("DELETE FROM parked WHERE key = ?", ((key,) for key in keys))
            self._file.execute("COMMIT")
        except _UNUSABLE as error:
            self._fail(error)

    def make_way(self, engine: Engine, arrivals: Arrivals, now: int, oldest: int) -> None:
        """Bring back those of these series that are parked, and park others to make room for all.

        Whoever is then still unknown is new, or too many. ``now`` and ``oldest`` are as for
        :func:`streamlstm.admission.place`, which is to follow.
        """
        meet(engine.work, arrivals, now)
        found = engine.work.found[: len(arrivals.ts)]
        rows = np.flatnonzero((found == UNKNOWN) | (found == MESSAGE) | (found <= FIRST)).tolist()
        if not rows:
            return
        begin, end = arrivals.keys.begin, arrivals.keys.end
        unknown: dict[bytes, bool] = {}
        for row in rows:
            key = arrivals.keys.data[begin[row] : end[row]].tobytes()
            unknown[key] = unknown.get(key, False) or found[row] == UNKNOWN
        parked = dict(self._fetch(engine, list(unknown)))
        wanted = sum(begins or key in parked for key, begins in unknown.items())
        self._make_room(engine, wanted, oldest)
        for key, (of, *state, recent) in parked.items():
            if (slot := engine.bring_back(key, now)) is None:
                break
            if of == self._of:
                engine.set_records(slot, *_records_of(engine, *state))
            else:  # of a model of another shape
                engine.begin_with(slot, *_ticks_of(slot, recent))
            engine.tell_state(slot)
            self.returned += 1

    def _make_room(self, engine: Engine, wanted: int, oldest: int) -> None:
        series = engine.series
        lacking = wanted - (series.capacity - series.active)
        if lacking > 0 and self._evict:
            slots = series.longest_idle(lacking, oldest)
            if self.park(engine, slots):
                series.release(slots, FULL)

    def _fetch(
        self, engine: Engine, keys: list[bytes]
    ) -> Iterator[tuple[bytes, tuple[bytes, bytes, bytes, bytes]]]:
        """Those of the keys that are parked: what their state is of, it, and their latest ticks."""
        for key in keys:
            try:
                row = self._file.execute("SELECT * FROM parked WHERE key = ?", (key,)).fetchone()
            except _UNUSABLE as error:
                self._fail(error)
                self.refused += 1
                continue
            if row is None:
                continue
            if not (self._is_sound(engine, row) and row[0] == key):
                self.refused += 1
                self.problem = f"{self.path}: {key!r} was parked and is damaged"
                continue
            yield key, row[1:-1]

    def _is_sound(self, engine: Engine, row: tuple[bytes, ...]) -> bool:
        if not all(isinstance(part, bytes) for part in row) or _sum(*row[:-1]) != row[-1]:
            return False
        _, of, state, recurrent, recent, _ = row
        sizes = [each.nbytes for each in engine.records(np.zeros(1, np.int32))]
        inputs = engine.model.spec.inputs
        return (
            (of != self._of or [len(state), len(recurrent)] == sizes)
            and recent[: 8 * _HEAD][-8:] == np.int64(inputs).tobytes()
            and (len(recent) // 8 - _HEAD) % (1 + inputs) == len(recent) % 8 == 0
        )

    def _fail(self, error: Exception) -> None:
        self.failures += 1
        self.problem = f"{self.path}: {error}"
        if self._file.in_transaction:
            self._file.execute("ROLLBACK")


def _recent(engine: Engine, slots: NDArray[np.int32]) -> Iterator[bytes]:
    """Of each series predictions made, when it was heard, values a tick, and its latest ticks."""
    ticks, inputs = engine.recent(slots), engine.model.spec.inputs
    words = np.column_stack((ticks.ts, ticks.values.view(np.int64)))
    ends = np.cumsum(np.minimum(engine.work.recent.recent_count[slots], engine.history))
    seqs, heard = engine.work.seq[slots], engine.work.clock.heard[slots]
    for seq, at, each in zip(seqs, heard, np.split(words, ends[:-1]), strict=True):
        yield np.array([seq, at, inputs], np.int64).tobytes() + each.tobytes()


def _records_of(
    engine: Engine, state: bytes, recurrent: bytes
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """What :meth:`Engine.records` gave, rows of one."""
    states, recurrents = engine.records(np.zeros(1, np.int32))
    return (
        np.frombuffer(bytearray(state), np.uint8).reshape(states.shape),
        np.frombuffer(bytearray(recurrent), np.float32).reshape(recurrents.shape),
    )


def _ticks_of(
    slot: NDArray[np.int32], recent: bytes
) -> tuple[NDArray[np.int64], NDArray[np.int64], Ticks]:
    """What :func:`_recent` gave, as :meth:`Engine.begin_with` takes it."""
    words = np.frombuffer(bytearray(recent), np.int64)
    head, rows = words[:_HEAD], words[_HEAD:].reshape(-1, 1 + int(words[2]))
    values, flags = rows[:, 1:].copy().view(np.float64), np.full(len(rows), WARM)
    ticks = Ticks(np.repeat(slot, len(rows)), rows[:, 0].copy(), values, flags)
    return head[:1], head[1:2], ticks


def _sum(*parts: bytes) -> bytes:
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        total.update(b"%d " % len(part) + part)
    return total.digest()
