"""Where series that were evicted wait for their next tick: a file, from which they come back.

An SQLite file, since its rows are replaced one by one, under whatever moment it is killed at. A
series' row is on disk before its slot is given to another, and stays there when it comes back: what
it then had is in the journal, and the next time that it is parked the row is written over. Only a
series that ended is taken out. So whichever of its last entries the journal has lost, a series is
in one of both. Who has a slot is never looked for here.
"""

import contextlib
import hashlib
import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamlstm import logs
from streamlstm.admission import FIRST, MESSAGE, UNKNOWN, meet
from streamlstm.engine import Engine
from streamlstm.files import mend_of
from streamlstm.index import FULL
from streamlstm.state_schema import Migration, Schema, schema_of
from streamlstm.ticks import Arrivals

FORMAT = 3

_PARKED = """
CREATE TABLE IF NOT EXISTS parked (
    key BLOB PRIMARY KEY, of BLOB NOT NULL, state BLOB NOT NULL, checksum BLOB NOT NULL
) WITHOUT ROWID
"""
_SCHEMAS = "CREATE TABLE IF NOT EXISTS schemas (id BLOB PRIMARY KEY, text TEXT NOT NULL)"
"""What states are of, each row of ``parked`` by its id; none is ever taken out."""
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
        mend = mend_of(error, "choose another path")
        raise ParkingError(f"{path}: parking: {error.strerror}; {mend}") from error
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
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            self._file = sqlite3.connect(path, timeout=0, isolation_level=None)
        except OSError as error:
            mend = mend_of(error, "choose a path to write to")
            raise ParkingError(f"{path}: parking: {error.strerror}; {mend}") from error
        except sqlite3.Error as error:
            raise ParkingError(f"{path}: parking: {error}; choose a path to write to") from error
        try:
            (version,) = self._file.execute("PRAGMA user_version").fetchone()
            _heed_version(path, version)
            self._file.execute("PRAGMA locking_mode = EXCLUSIVE")  # there is no second process
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = FULL")  # what is committed is on disk
            self._file.execute("BEGIN EXCLUSIVE")
            self._file.execute(_PARKED)
            self._file.execute(_SCHEMAS)
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
        self.adopt(engine)

    @property
    def rows(self) -> int:
        """Rows there are, those of series that have come back included."""
        return int(self._file.execute("SELECT count(*) FROM parked").fetchone()[0])

    @property
    def size(self) -> int:
        """Bytes of the file, and of its write-ahead log; from whichever thread."""
        size = 0
        for each in (self.path, self.path.with_name(f"{self.path.name}-wal")):
            with contextlib.suppress(OSError):  # there is no log yet, say
                size += each.stat().st_size
        return size

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def adopt(self, engine: Engine) -> None:
        """Take states as this engine has them from now on."""
        self._engine, self._schema = engine, schema_of(engine)
        self._of, text = self._schema.id, self._schema.to_text()
        self._say_schema = "INSERT OR IGNORE INTO schemas VALUES (?, ?)", (_id(self._of), text)
        self._migrations: dict[int, Migration] = {}
        try:
            self._file.execute(*self._say_schema)
        except _UNUSABLE as error:
            self._fail(error)

    def park(self, slots: NDArray[np.int32]) -> bool:
        """Write the state of some series; False where they cannot, and must not be evicted."""
        engine = self._engine
        slots = slots[engine.moved(slots)]
        if not len(slots):
            return True
        parts = zip(engine.series.keys(slots), *engine.records(slots), strict=True)
        rows = [
            (key, _id(self._of), record.tobytes() + recurrent.tobytes())
            for key, record, recurrent in parts
        ]
        try:
            self._file.execute("BEGIN")
            self._file.execute(*self._say_schema)
            self._file.executemany(
                "REPLACE INTO parked VALUES (?, ?, ?, ?)",
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

    def make_way(self, arrivals: Arrivals, now: int, oldest: int) -> None:
        """Bring back those of these series that are parked, and park others to make room for all.

        Whoever is then still unknown is new, or too many. ``now`` and ``oldest`` are as for
        :func:`streamlstm.admission.place`, which is to follow.
        """
        engine = self._engine
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
        parked = dict(self._fetch(list(unknown)))
        wanted = sum(begins or key in parked for key, begins in unknown.items())
        self._make_room(wanted, oldest)
        for key, (of, state) in parked.items():
            if (slot := engine.bring_back(key, now)) is None:
                break
            self.take_back(slot, of, state)
            engine.tell_state(slot)
            self.returned += 1

    def take_back(self, slot: NDArray[np.int32], of: int, state: bytes) -> None:
        """Give a series just begun, (1,), a state that some engine kept, as far as it goes.

        Args:
            slot: of the series.
            of: id of the state's schema.
            state: as it was kept.

        Raises:
            ValueError: it is of no schema that is known here, or not what it is said to be.
        """
        if of not in self._migrations:
            self._migrations[of] = Migration(self._read_schema(of), self._engine)
            if lost := self._migrations[of].lost:
                why = "parked with other settings"
                logs.event(logging.WARNING, "begins anew", what=", ".join(lost), because=why)
        self._migrations[of].take_back(slot, state)

    def _make_room(self, wanted: int, oldest: int) -> None:
        series = self._engine.series
        lacking = wanted - (series.capacity - series.active)
        if lacking > 0 and self._evict:
            slots = series.longest_idle(lacking, oldest)
            if self.park(slots):
                series.release(slots, FULL)

    def _fetch(self, keys: list[bytes]) -> Iterator[tuple[bytes, tuple[int, bytes]]]:
        """Those of the keys that are parked: the id of their state's schema, and it."""
        for key in keys:
            try:
                row = self._file.execute("SELECT * FROM parked WHERE key = ?", (key,)).fetchone()
                if row is None:
                    continue
                sound = all(isinstance(part, bytes) for part in row) and _sum(*row[:-1]) == row[-1]
                if not (sound and row[0] == key):
                    raise ValueError("checksums differ")
                of = int.from_bytes(row[1], "little")
                if len(row[2]) != self._read_schema(of).bytes:
                    raise ValueError("other length")
            except _UNUSABLE as error:
                self._fail(error)
                self.refused += 1
            except ValueError:
                self.refused += 1
                self.problem = f"{self.path}: {key!r} was parked and is damaged"
            else:
                yield key, (of, row[2])

    def _read_schema(self, of: int) -> Schema:
        """One that states are of, by its id.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        if of == self._of:
            return self._schema
        if of in self._migrations:
            return self._migrations[of].found
        row = self._file.execute("SELECT text FROM schemas WHERE id = ?", (_id(of),)).fetchone()
        found = Schema.from_text(row[0]) if row else None
        if found is None or found.id != of:
            raise ValueError("no such schema")
        return found

    def _fail(self, error: Exception) -> None:
        self.failures += 1
        self.problem = f"{self.path}: {error}"
        if self._file.in_transaction:
            self._file.execute("ROLLBACK")


def _id(schema: int) -> bytes:
    return schema.to_bytes(8, "little")


def _sum(*parts: bytes) -> bytes:
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        total.update(b"%d " % len(part) + part)
    return total.digest()
