"""Atomic snapshots of an engine's series: one ``.safetensors``, replaced whole or not at all.

Tensors are those of the state table, cut to the slots in use, and ``recurrent``, ``key.names``,
``key.lengths``. The metadata key ``streamlstm`` holds JSON: format, model id, a CRC-32 a tensor.
"""

import json
import os
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from streamlstm.engine import Engine

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line and says the mend."""


def save(engine: Engine, path: Path) -> None:
    """Write the state of all series to ``path``, readable by its owner alone.

    Raises:
        OSError: the file cannot be written; the one before it is left as it was.
    """
    series = engine.series
    n = series.active
    tensors = {name: array[:n] for name, array in series.state.items()}
    tensors["key.names"] = series.index.names[:n]
    tensors["key.lengths"] = series.index.lengths[:n]
    tensors["recurrent"] = engine.kernels.to_host(engine.buffers, np.arange(n, dtype=np.int32))
    header = {
        "format": FORMAT,
        "model": engine.model.id,
        "crc32": {name: _crc(tensor) for name, tensor in tensors.items()},
    }
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    try:
        save_file(tensors, temporary, {"streamlstm": json.dumps(header)})
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    _sync(path.parent)


def load(engine: Engine, path: Path) -> bool:
    """Bring the series of ``path`` back into a fresh engine; False where there is no such file.

    Raises:
        CheckpointError: damaged, of another format or model, or of more series than there is room.
    """
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})["streamlstm"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found, model, crcs = header["format"], header["model"], header["crc32"]
        damaged = [name for name, tensor in tensors.items() if _crc(tensor) != crcs[name]]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise _refused(path, f"damaged ({error})") from error
    if found != FORMAT:
        raise _refused(path, f"of format {found}, this version reads {FORMAT}")
    if damaged or tensors.keys() != crcs.keys():
        raise _refused(path, "damaged (checksums differ)")
    if model != engine.model.id:
        raise _refused(path, f"of model {model}, this is {engine.model.id}")
    _restore(engine, path, tensors)
    return True


def _restore(engine: Engine, path: Path, tensors: dict[str, NDArray[Any]]) -> None:
    series = engine.series
    lengths = tensors["key.lengths"]
    n = len(lengths)
    if n > series.capacity:
        raise _refused(path, f"of {n} series, max_series is {series.capacity}; raise it")
    for name, array in series.state.items():
        if name not in tensors or tensors[name].shape != (n, *array.shape[1:]):
            raise _refused(path, f"made with other settings ({name})")
    series.restore(tensors["key.names"], lengths)
    for name, array in series.state.items():
        array[:n] = tensors[name]
    slots = np.arange(n, dtype=np.int32)
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
