"""Atomic snapshots of an engine's series: one ``.safetensors``, replaced whole or not at all.

Tensors are those of the state table, cut to the slots in use, and ``recurrent``, ``key.names``,
``key.lengths``. The metadata key ``streamlstm`` holds JSON: format, model id, the last entry
of the journal that is in it, a CRC-32 a tensor.
"""

import ctypes
import json
import os
import signal
import warnings
import zlib
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from streamlstm.engine import Engine, Latest

FORMAT = 1
PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that a process is sent when its parent ends."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line and says the mend."""


def save(engine: Engine, path: Path, journalled: int = 0) -> None:
    """Write the state of all series to ``path``, readable by its owner alone.

    ``journalled`` is the number of the last entry of the journal whose ticks are in it.

    Raises:
        OSError: the file cannot be written; the one before it is left as it was.
    """
    series = engine.series
    n = series.active
    fields = series.state | {"key.names": series.index.names, "key.lengths": series.index.lengths}
    tensors = {name: np.ascontiguousarray(array[:n]) for name, array in fields.items()}
    tensors["recurrent"] = engine.kernels.to_host(engine.buffers, np.arange(n, dtype=np.int32))
    header = {
        "format": FORMAT,
        "model": engine.model.id,
        "coverage": engine.coverage,
        "journal": journalled,
        "crc32": {name: _crc(tensor) for name, tensor in tensors.items()},
    }
    temporary = path.with_name(f".{path.name}.new")  # one name: a crash leaves one file at most
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600))
        save_file(tensors, temporary, {"streamlstm": json.dumps(header)})
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, SafetensorError):  # what the library makes of a full disk, say
            raise OSError(f"{path}: {error}") from error
        raise
    _sync(path.parent)


class Saving:
    """A checkpoint being written by a child process, whose memory is a copy of this moment's.

    The system copies a page only when either side writes to it, so the engine can be stepped on;
    how long to fork takes grows with the memory in use, about 10 ms a gigabyte.

    Attributes:
        journalled: as given to :func:`save`.
    """

    def __init__(self, engine: Engine, path: Path, journalled: int = 0) -> None:
        """Begin; the process that calls is told of the end by SIGCHLD.

        Raises:
            OSError: the system has no room for another process.
        """
        self.journalled = journalled
        self._said, to_say = os.pipe()
        with warnings.catch_warnings():
            # other threads are not there in the child, which takes no lock of theirs
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                self.pid = os.fork()
            except OSError:
                os.close(self._said)
                os.close(to_say)
                raise
        if self.pid == 0:
            self._write(engine, path, to_say)
        os.close(to_say)

    def _write(self, engine: Engine, path: Path, to_say: int) -> NoReturn:
        """Be the child; nothing is cleaned up at its end, for what is open is the parent's."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            os.closerange(3, to_say)  # whom the parent hangs up on is not to wait for this end
            os.closerange(to_say + 1, os.sysconf("SC_OPEN_MAX"))
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)  # the parent ends it
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os.nice(10)
            save(engine, path, self.journalled)
            code = 0
        except BaseException as error:
            os.write(to_say, str(error).encode()[:4096])
        finally:
            os._exit(code)

    def done(self) -> bool:
        """Whether it is over.

        Raises:
            OSError: it failed; the file before it is left as it was.
        """
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return False
        self._end(status)
        return True

    def stop(self) -> None:
        """End it; the file before it is left as it was."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._said)

    def _end(self, status: int) -> None:
        with open(self._said, "rb") as said:
            why = said.read().decode()
        if code := os.waitstatus_to_exitcode(status):
            raise OSError(why or f"the child that wrote it ended with {code}")


def load(engine: Engine, path: Path) -> int | None:
    """Bring the series of ``path`` back into a fresh engine; None where there is no such file.

    Returns the number of the last entry of the journal that is in it.

    Raises:
        CheckpointError: damaged, of another format or model, or of more series than there is room.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})["streamlstm"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found, model, crcs = header["format"], header["model"], header["crc32"]
        coverage, journalled = header["coverage"], int(header.get("journal", 0))
        damaged = [name for name, tensor in tensors.items() if _crc(tensor) != crcs[name]]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise _refused(path, f"damaged ({error})") from error
    if found != FORMAT:
        raise _refused(path, f"of format {found}, this version reads {FORMAT}")
    if damaged or tensors.keys() != crcs.keys():
        raise _refused(path, "damaged (checksums differ)")
    if model != engine.model.id:
        raise _refused(path, f"of model {model}, this is {engine.model.id}")
    if coverage != engine.coverage:
        raise _refused(path, f"made at interval.coverage = {coverage}, now {engine.coverage}")
    _restore(engine, path, tensors)
    return journalled


def _restore(engine: Engine, path: Path, tensors: dict[str, NDArray[Any]]) -> None:
    series, index = engine.series, engine.series.index
    names, lengths = tensors.get("key.names"), tensors.get("key.lengths")
    if names is None or lengths is None or names.dtype != np.uint8 or lengths.dtype != np.uint16:
        raise _refused(path, "without keys")
    n, widest = len(lengths), index.names.shape[1]
    if n > series.capacity:
        raise _refused(path, f"of {n} series, max_series is {series.capacity}; raise it")
    if len(names) != n or (n and not 1 <= lengths.min() <= lengths.max() <= names.shape[1]):
        raise _refused(path, "with keys that cannot be")
    if n and lengths.max() > widest:
        raise _refused(path, f"has keys of {lengths.max()} bytes, max_key is {widest}; raise it")
    slots = np.arange(n, dtype=np.int32)
    expected = {name: array[:0] for name, array in series.state.items()}
    expected["recurrent"] = engine.kernels.to_host(engine.buffers, slots[:0])
    for name, like in expected.items():
        given = tensors.get(name)
        if given is None and name in Latest._fields:  # made while it was not kept
            tensors[name] = np.zeros((n, *like.shape[1:]), like.dtype)
        elif given is None or given.dtype != like.dtype or given.shape != (n, *like.shape[1:]):
            raise _refused(path, f"made with other settings ({name})")
    series.restore(names, lengths)
    for name, array in series.state.items():
        array[:n] = tensors[name]
    engine.kernels.from_host(engine.buffers, slots, tensors["recurrent"])


def _crc(tensor: NDArray[Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(tensor).data)


def _refused(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: checkpoint {why}; move it away to start with no state")


def _sync(path: str | Path) -> None:
    """Force a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
