"""Snapshots of an engine's series, replaced whole or not at all, the last few of them kept.

``NAME`` is the newest, ``NAME.1`` the one before it, and so on. A file is magic ``STREAMLC``, u32
format, u32 bytes of the header, u64 SipHash-1-3 of it, and the header: JSON, padded to 8 bytes.
Then pieces: u64 SipHash-1-3 of the rest of it, u32 its number from 0, u32 rows, and the rows, each
of a series, in no order: its slot, its record in the state table, its recurrent state. All is
little endian; the header says which fields lie where, and how many rows there are in all.
"""

import contextlib
import errno
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm.copy_on_write import MORE, sweep
from streamlstm.engine import Engine
from streamlstm.files import sync_folder
from streamlstm.hashing import checksum
from streamlstm.state_schema import UNREADABLE, Migration, dtype_of, fields_of, schema_of

FORMAT = 2

MAGIC = b"STREAMLC"
"""What a checkpoint begins with."""
_START = np.dtype([("magic", "S8"), ("format", "<u4"), ("length", "<u4"), ("checksum", "<u8")])
_PIECE = np.dtype([("checksum", "<u8"), ("number", "<u4"), ("rows", "<u4")])
_PIECE_BYTES = 1 << 20
"""Bytes of a piece, about."""
_SYNC_BYTES = 1 << 25
"""Bytes after which what was written is forced to disk, lest all wait for it at the end."""
_PAUSE = 0.001
"""Seconds until it is looked again whether there is something to be written, or room."""
_NICE = 10
"""How much less important than serving ticks the writing is, nice(2)."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line and says the mend."""


class DamagedError(CheckpointError):
    """It is not what was written; an older one may serve."""


class Restored(NamedTuple):
    """What was brought back."""

    engine: Engine
    """into which"""
    journalled: int
    """number of the last entry of the journal that is in it"""
    path: Path
    damaged: list[str]
    """why each newer one was passed over"""
    anew: list[str]
    """parts of all states that begin anew: they were made with other settings"""


class _Header(NamedTuple):
    """What a checkpoint says of itself."""

    model: str
    made: Mapping[str, Any]
    """settings that parts of the state were made with, as a schema has them"""
    journal: int
    series: int
    slots: int
    row: np.dtype[np.void]
    """how a row lies"""
    begin: int
    """where the pieces begin"""


class Saving:
    """A checkpoint being written, of the moment at which it began, by a thread.

    Rows are copied by whoever steps the engine: before they change, and all others by
    :func:`streamlstm.copy_on_write.sweep`, which is to be called between batches.
    """

    def __init__(
        self,
        engine: Engine,
        path: Path,
        journalled: int = 0,
        *,
        keep: int = 1,
        tell: Callable[[], object] = lambda: None,
    ) -> None:
        """Begin, between two batches.

        Args:
            engine: it may be stepped on.
            path: the file, readable by its owner alone.
            journalled: the number of the last entry of the journal whose ticks are in it.
            keep: how many to keep, this one included.
            tell: called by the thread at its end.
        """
        self._path, self._keep, self._tell = path, keep, tell
        self._copies, used = engine.series.copies, engine.series.used
        states = engine.kernels.host_records(engine.buffers)
        if not len(states):  # they lie on a device
            slots = np.arange(used, dtype=np.int32)
            states = engine.kernels.to_host(engine.buffers, slots).reshape(used, -1)
        rows = self._copies.begin(used, states)
        self._total = rows * self._copies.row.itemsize
        self._header = _pack_header(engine, rows, journalled)
        self._error: OSError | None = None
        self._stopped, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    def done(self) -> bool:
        """Whether it is over.

        Raises:
            OSError: it failed; the files before it are left as they were.
        """
        if not self._over.is_set():
            return False
        self._thread.join()
        self._copies.end()
        if self._error:
            raise self._error
        return True

    def finish(self) -> None:
        """Do nothing else until it is over.

        Raises:
            OSError: as :meth:`done`.
        """
        while not self.done():
            if sweep(self._copies.shadow) != MORE:
                time.sleep(_PAUSE)

    def stop(self) -> None:
        """End it; where it was not over, the files before it are left as they were."""
        self._stopped.set()
        self._thread.join()
        self._copies.end()

    # the thread

    def _run(self) -> None:
        try:
            with contextlib.suppress(OSError):  # where that may not be: then as any other
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
            self._write()
        except OSError as error:
            self._error = error
        except BaseException as error:  # never seen; but who waits for it is to know
            self._error = OSError(errno.EIO, repr(error), f"{self._path}")
        finally:
            self._over.set()
            self._tell()

    def _write(self) -> None:
        path = self._path
        temporary = path.with_name(f".{path.name}.new")  # one name: a crash leaves one at most
        descriptor = os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        try:
            try:
                _write_all(descriptor, self._header)
                self._write_rows(descriptor)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if self._stopped.is_set():
                temporary.unlink()
                return
            _put(temporary, path, self._keep)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _write_rows(self, descriptor: int) -> None:
        row, copies = self._copies.row.itemsize, self._copies
        most = max(1, _PIECE_BYTES // row) * row
        head, number, done, synced = np.zeros(1, _PIECE), 0, 0, 0
        buffer = np.zeros(_PIECE.itemsize + most, np.uint8)
        while done < self._total and not self._stopped.is_set():
            ready = min(copies.written() - done, most)
            if ready < min(most, self._total - done):
                time.sleep(_PAUSE)
                continue
            head["number"], head["rows"] = number, ready // row
            size = _PIECE.itemsize + ready
            buffer[_PIECE.itemsize : size] = copies.read(done, done + ready)
            buffer[: _PIECE.itemsize] = head.view(np.uint8)
            buffer[:8] = np.frombuffer(np.uint64(checksum(buffer[8:size])), np.uint8)
            _write_all(descriptor, buffer[:size].data)
            number, done = number + 1, done + ready
            copies.done_with(done)
            if done >= synced + _SYNC_BYTES:
                os.fdatasync(descriptor)
                synced = done


def save(engine: Engine, path: Path, journalled: int = 0, *, keep: int = 1) -> None:
    """Write the state of all series, and return when it is on disk; as :class:`Saving`.

    Raises:
        OSError: the file cannot be written; those before it are left as they were.
    """
    Saving(engine, path, journalled, keep=keep).finish()


def warm_up(engine: Engine) -> None:
    """Compile all that a checkpoint can need."""
    sweep(engine.series.copies.shadow)
    engine.series.copies.written()
    checksum(b"")


def load(
    engine: Engine, path: Path, engine_of: Callable[[str], Engine] | None = None
) -> Restored | None:
    """Bring the series of the newest sound checkpoint, if any, back into a fresh engine.

    Args:
        engine: for one of its model.
        path: of the newest.
        engine_of: gives an engine for one of another, by that one's id.

    Raises:
        CheckpointError: all are damaged, or the newest sound one is of another format, of a model
            for which there is no engine, or of more series than there is room for.
    """
    damaged: list[str] = []
    for each in kept(path):
        try:
            with open(each, "rb") as file:
                header = _read_header(each, file)
                if engine_of and header.model != engine.model.id:
                    engine = engine_of(header.model)
                _refuse_others(each, header, engine)
                _verify(each, file, header, engine)
                anew = _restore(each, file, header, engine)
        except DamagedError as error:
            damaged.append(str(error))
        except OSError as error:
            damaged.append(f"{each}: checkpoint cannot be read ({error.strerror})")
        else:
            return Restored(engine, header.journal, each, damaged, anew)
    if damaged:
        raise DamagedError(damaged[0])
    return None


def kept(path: Path) -> list[Path]:
    """The checkpoints there are, the newest first."""
    older = [
        each
        for each in path.parent.iterdir()
        if each.stem == path.name and each.suffix[1:].isdecimal()
    ]
    older.sort(key=lambda each: int(each.suffix[1:]))
    return [path, *older] if path.exists() else older


def journalled(path: Path) -> int:
    """Number of the last entry of the journal that every checkpoint kept has, 0: none is known."""
    return min((header.journal for header in _headers(path)), default=0)


def models(path: Path) -> set[str]:
    """Ids of the models that the checkpoints kept are of."""
    return {header.model for header in _headers(path)}


def _headers(path: Path) -> Iterator[_Header]:
    for each in kept(path):
        with contextlib.suppress(CheckpointError, OSError), open(each, "rb") as file:
            yield _read_header(each, file)


# --- the file -------------------------------------------------------------------------------------


def _pack_header(engine: Engine, rows: int, journalled: int) -> bytes:
    header = {
        "model": engine.model.id,
        "made": schema_of(engine).made,
        "journal": journalled,
        "series": rows,
        "slots": engine.series.used,
        "fields": fields_of(engine.series.copies.row),
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = np.zeros(1, _START)
    start["magic"], start["format"], start["length"] = MAGIC, FORMAT, len(text)
    start["checksum"] = checksum(text)
    return start.tobytes() + text


def _read_header(path: Path, file: BufferedReader) -> _Header:
    raw = file.read(_START.itemsize)
    if len(raw) < _START.itemsize or raw[:8] != MAGIC:
        raise _damaged(path, "is no checkpoint, or one of an early version")
    start = np.frombuffer(raw, _START)[0]
    if start["format"] != FORMAT:
        raise _refused(path, f"of format {start['format']}, this version reads {FORMAT}")
    text = file.read(min(int(start["length"]), 1 << 24))
    if len(text) != start["length"] or checksum(text) != start["checksum"]:
        raise _damaged(path, "header")
    try:
        said = json.loads(text)
        numbers = journal, series, slots = [said[name] for name in ("journal", "series", "slots")]
        if not all(isinstance(number, int) and 0 <= number < 1 << 63 for number in numbers):
            raise ValueError("no number of these")
        row = dtype_of(said["fields"])
        slot, name, _ = row["slot"], row["record"]["name"], row["state"]
        if slot != np.int64 or name.base != np.uint8 or name.ndim != 1:
            raise ValueError("no series")
        begin, made = _START.itemsize + len(text), dict(said.get("made", {}))
        return _Header(said["model"], made, journal, series, slots, row, begin)
    except UNREADABLE:  # its checksum is right, but no checkpoint has that
        raise _damaged(path, "header") from None


def _migration(header: _Header, engine: Engine) -> Migration:
    """From the states that are there to those of an engine of the same model."""
    record, state = header.row["record"], header.row["state"]
    kept = record[[name for name in record.names or () if name not in ("hash", "length", "name")]]
    floats = math.prod(state.shape) if state.base == np.float32 else -1
    return Migration(
        schema_of(engine)._replace(made=header.made, record=kept, floats=floats), engine
    )


def _refuse_others(path: Path, header: _Header, engine: Engine) -> None:
    model, slots = header.model, header.slots
    if model != engine.model.id:
        raise _refused(path, f"of model {model}, this is {engine.model.id}")
    if slots > engine.series.capacity:
        raise _refused(path, f"of {slots} series, max_series is {engine.series.capacity}; raise it")


def _pieces(path: Path, file: BufferedReader, header: _Header) -> Iterator[NDArray[np.void]]:
    """All rows, some at a time; valid until the next are asked for."""
    end, row = file.seek(0, os.SEEK_END), header.row
    file.seek(header.begin)
    head, left, number = np.zeros(1, _PIECE), header.series, 0
    buffer = np.zeros(0, np.uint8)
    while left:
        if file.readinto(head.data.cast("B")) < _PIECE.itemsize:
            raise _damaged(path, "ends too early")
        count = int(head["rows"][0])
        if not 0 < count <= left or head["number"][0] != number:
            raise _damaged(path, "piece out of place")
        size = _PIECE.itemsize + count * row.itemsize
        if size > end - header.begin:
            raise _damaged(path, "ends too early")
        if len(buffer) < size:
            buffer = np.zeros(size, np.uint8)
        buffer[: _PIECE.itemsize] = head.view(np.uint8)
        if file.readinto(buffer[_PIECE.itemsize : size].data) < size - _PIECE.itemsize:
            raise _damaged(path, "ends too early")
        if checksum(buffer[8:size]) != head["checksum"][0]:
            raise _damaged(path, "checksums differ")
        yield buffer[_PIECE.itemsize : size].view(row)
        left, number = left - count, number + 1
    if file.read(1):
        raise _damaged(path, "goes on too long")


def _verify(path: Path, file: BufferedReader, header: _Header, engine: Engine) -> None:
    """Look at all of it before anything is changed."""
    if misfit := _migration(header, engine).misfit:
        raise _refused(path, f"made with other settings ({misfit})")
    widest, seen = engine.series.index.names.shape[1], np.zeros(header.slots, bool)
    for rows in _pieces(path, file, header):
        slots, lengths = rows["slot"], rows["record"]["length"]
        if slots.min() < 0 or slots.max() >= len(seen) or seen[slots].any() or not lengths.min():
            raise _damaged(path, "has series that cannot be")
        if lengths.max() > widest:
            raise _refused(
                path, f"has keys of {lengths.max()} bytes, max_key is {widest}; raise it"
            )
        seen[slots] = True


def _restore(path: Path, file: BufferedReader, header: _Header, engine: Engine) -> list[str]:
    """Bring all back; what begins anew."""
    migration = _migration(header, engine)
    for rows in _pieces(path, file, header):
        slots, records = rows["slot"].astype(np.int32), rows["record"]
        engine.series.restore(records["name"], records["length"], slots)
        migration.take_over(slots, records, rows["state"])
    engine.series.arrange()
    return migration.lost


def _put(temporary: Path, path: Path, keep: int) -> None:
    """Give a file its name, the one before it the next, and so on; :func:`kept` knows any rest."""
    for each in kept(path)[keep:]:
        each.unlink()
    for older in reversed(kept(path)[: keep - 1]):
        number = 0 if older == path else int(older.suffix[1:])
        os.replace(older, path.with_name(f"{path.name}.{number + 1}"))
    os.replace(temporary, path)
    sync_folder(path.parent)


def _write_all(descriptor: int, data: memoryview | bytes) -> None:
    left = memoryview(data).cast("B")
    while left:
        left = left[os.write(descriptor, left) :]


def _damaged(path: Path, what: str) -> DamagedError:
    return DamagedError(f"{path}: checkpoint damaged ({what}); move it away to start with no state")


def _refused(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: checkpoint {why}; move it away to start with no state")
