"""The tensors of a state_dict, read without PyTorch.

A ``.safetensors`` is read by the safetensors library. Whatever else ``torch.save`` wrote is a zip:
a pickle that names the tensors, and the bytes of each storage beside it, not compressed. A pickle
is a program for a small machine with a stack. The one here knows the few instructions that a
state_dict takes, and can neither import nor call anything: what a file names is looked up in a
table, and what is not there is refused. No size that a file states is believed before the bytes
are there.
"""

import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from streamlstm.importers.parts import RefusedError

Array = NDArray[Any]
MEND = "save the weights alone: torch.save(model.state_dict(), 'model.pt')"
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training loops keep a state_dict among other things."""
MOST_NAMES = 1 << 24
"""Bytes of a pickle at most; a tensor's name and shape take some 150."""
_DTYPES = {
    "F64": "f8", "F32": "f4", "F16": "f2", "BF16": "u2",
    "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1", "U8": "u1", "BOOL": "u1",
}  # fmt: skip
_STORAGES = {
    "torch.DoubleStorage": "F64", "torch.FloatStorage": "F32", "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16", "torch.LongStorage": "I64", "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16", "torch.CharStorage": "I8", "torch.ByteStorage": "U8",
    "torch.BoolStorage": "BOOL",
}  # fmt: skip
_DICT = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_DAMAGED = "damaged; copy it again"


class Global(NamedTuple):
    """What a pickle names: a word and nothing more."""

    name: str


class Storage(NamedTuple):
    """Bytes of a file that tensors are views of."""

    key: str
    dtype: str


class Tensor(NamedTuple):
    """A view of a storage; offset and strides in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_state_dict(path: Path) -> dict[str, Array]:
    """Tensors by name; numbers with a point become float32.

    In the order of the file; those of a ``.safetensors``, which keeps none, sorted.

    Raises:
        RefusedError: there is no file, or it holds no state_dict, or is damaged.
    """
    if not path.is_file():
        raise RefusedError("no such file")
    try:
        if path.suffix.lower() == ".safetensors":
            return _of_safetensors(path)
        return _of_zip(path)
    except RefusedError:
        raise
    except (SafetensorError, zipfile.BadZipFile, OSError, EOFError) as error:
        raise RefusedError(f"{_DAMAGED} ({error})") from error
    except (
        LookupError,
        TypeError,
        ValueError,
        RuntimeError,
        ArithmeticError,
        struct.error,
    ) as error:
        raise RefusedError(f"{_DAMAGED} ({error!r})") from error


def _of_safetensors(path: Path) -> dict[str, Array]:
    found: dict[str, Array] = {}
    entries = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    for name, entry in sorted(entries, key=lambda pair: _natural(pair[0])):
        flat = np.frombuffer(entry["data"], "<" + _code(name, entry["dtype"]))
        found[name] = _numbers(flat.reshape(entry["shape"]), entry["dtype"])
    return found


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which 10 comes after 9: the library does not keep the order of a file."""
    words = re.split(r"([0-9]{1,18})", name)
    return [(int(word), "") if n % 2 else (-1, word) for n, word in enumerate(words)]


def _of_zip(path: Path) -> dict[str, Array]:
    if not zipfile.is_zipfile(path):
        raise RefusedError(f"not the zip that torch.save writes since PyTorch 1.6; {MEND}")
    size = path.stat().st_size
    with zipfile.ZipFile(path) as file:
        entries = {info.filename: info for info in file.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
            raise RefusedError(f"its parts are compressed, as torch.save never does; {MEND}")
        if sum(info.file_size for info in entries.values()) > size:
            raise RefusedError(_DAMAGED)
        root = next((name[:-8] for name in entries if name.endswith("data.pkl")), None)
        if root is None:
            raise RefusedError(f"a zip, but not of torch.save; {MEND}")
        if any(name.startswith((f"{root}code/", f"{root}constants.pkl")) for name in entries):
            raise RefusedError(f"a scripted module (TorchScript), whose code is not run; {MEND}")
        order = ">" if _bytes(file, entries, f"{root}byteorder", b"") == b"big" else "<"
        if entries[f"{root}data.pkl"].file_size > MOST_NAMES:
            raise RefusedError(f"holds far more than weights; {MEND}")
        tensors = _chosen(unpickled(file.read(f"{root}data.pkl")))
        storages: dict[str, bytes] = {}
        for tensor in tensors.values():
            key = tensor.storage.key
            storages[key] = storages.get(key) or _bytes(file, entries, f"{root}data/{key}")
    views = {
        name: _view(name, tensor, storages[tensor.storage.key], order)
        for name, tensor in tensors.items()
    }
    # so many tensors may share a storage that all of them together would fill the memory
    if sum(view.size for view in views.values()) > size:
        raise RefusedError("its tensors are larger than the file; " + MEND)
    return {name: _numbers(view, tensors[name].storage.dtype) for name, view in views.items()}


def _bytes(
    file: zipfile.ZipFile,
    entries: dict[str, zipfile.ZipInfo],
    name: str,
    default: bytes | None = None,
) -> bytes:
    if name not in entries and default is not None:
        return default
    return file.read(entries[name])


def _chosen(saved: Any) -> dict[str, Tensor]:
    """The state_dict in what was saved: that itself, or a part of it."""
    found = state_dict_in(saved, Tensor)
    if found is None:
        raise RefusedError(f"there are no weights in it; {MEND}")
    return found


def state_dict_in(saved: Any, tensor: type) -> dict[str, Any] | None:
    """The tensors by name in a state_dict, or in what training loops wrap around one."""
    parts = [*(saved.get(key) for key in WRAPPERS), saved] if isinstance(saved, dict) else []
    for part in parts:
        if isinstance(part, dict):
            found = {str(k): value for k, value in part.items() if isinstance(value, tensor)}
            if found:
                return found
    return None


def _view(name: str, tensor: Tensor, stored: bytes, order: str) -> Array:
    """A tensor where it lies; that it lies within its storage is seen to."""
    flat = np.frombuffer(stored, order + _code(name, tensor.storage.dtype))
    offset, shape, strides = tensor.offset, tensor.shape, tensor.strides
    whole = all(type(n) is int and n >= 0 for n in (offset, *shape, *strides))
    if not whole or len(shape) != len(strides) or len(shape) > 8:
        raise RefusedError(f"{name}: {_DAMAGED}")
    numbers = 1
    for n in shape:
        numbers *= n
    if not numbers:
        return np.zeros(shape, flat.dtype)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if last >= len(flat) or numbers > len(flat):
        raise RefusedError(f"{name}: is larger than its storage; {MEND}")
    return as_strided(
        flat[offset:], shape, [stride * flat.itemsize for stride in strides], writeable=False
    )


def _code(name: str, dtype: str) -> str:
    """NumPy's code, without the order of bytes."""
    if dtype not in _DTYPES:
        raise RefusedError(f"{name}: is {dtype}; float32 is read, model.float() makes it")
    return _DTYPES[dtype]


def _numbers(view: Array, dtype: str) -> Array:
    """A tensor's numbers, float32 where they are no whole ones."""
    if dtype == "BF16":  # the upper half of a float32
        return (view.astype(np.uint32) << 16).view(np.float32)
    if dtype.startswith("F"):
        with np.errstate(over="ignore"):  # what is too large is infinite, and refused as such
            return np.ascontiguousarray(view, np.float32).reshape(view.shape)
    return view


def unpickled(program: bytes) -> Any:
    """What a pickle of a state_dict makes: dicts, lists, tuples, words, numbers, `Tensor`.

    Raises:
        RefusedError: it asks for anything else.
        LookupError, TypeError, ValueError: it is damaged.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def popped(count: int) -> list[Any]:
        if count > len(stack) - (marks[-1] if marks else 0):
            raise IndexError("nothing on the stack")
        cut = len(stack) - count
        taken = stack[cut:]
        del stack[cut:]
        return taken

    def since_mark() -> list[Any]:
        return popped(len(stack) - marks[-1]) if marks else popped(1 << 62)

    def unmarked() -> list[Any]:
        taken = since_mark()
        marks.pop()
        return taken

    argument: Any
    for opcode, argument, _ in pickletools.genops(program):
        name = opcode.name
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _PUSHES:
            stack.append(argument)
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            stack.append(tuple(popped(_TUPLES[name])))
        elif name in ("PROTO", "FRAME"):
            continue
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(unmarked()))
        elif name in ("APPEND", "APPENDS"):
            items = popped(1) if name == "APPEND" else unmarked()
            _top(stack, list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = popped(2) if name == "SETITEM" else unmarked()
            _set_items(_top(stack, dict), items)
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_known(argument.replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            stack.append(_known(".".join(popped(2))))
        elif name == "BINPERSID":
            stack.append(_storage(*popped(1)))
        elif name == "REDUCE":
            stack.append(_made(*popped(2)))
        elif name == "BUILD":  # attributes of a dict, such as versions of modules: not needed
            popped(1)
            _top(stack, dict)
        elif name == "STOP":
            return popped(1)[0]
        else:
            raise RefusedError(f"its pickle holds {name}, which no state_dict needs; {MEND}")
    raise ValueError("the pickle does not end")


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUSHES = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
}  # fmt: skip
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _top(stack: list[Any], kind: type) -> Any:
    if not isinstance(stack[-1], kind):
        raise TypeError(f"no {kind.__name__} on the stack")
    return stack[-1]


def _set_items(into: dict[Any, Any], items: Sequence[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, (str, int, float, type(None))):
            raise RefusedError(f"its pickle has a {type(key).__name__} for a key; {MEND}")
        into[key] = value


def _known(name: str) -> Global:
    if name not in {_DICT, _TENSOR, _PARAMETER, *_STORAGES}:
        what = "a whole module" if name.startswith("torch.nn.modules.") else "more than weights"
        raise RefusedError(f"{what}, pickled: it asks for {name}, which is not run; {MEND}")
    return Global(name)


def _storage(reference: Any) -> Storage:
    """Of a persistent id: ("storage", kind, key, device, count)."""
    word, kind, key, *_ = reference
    if word != "storage" or not isinstance(kind, Global) or not isinstance(key, str):
        raise TypeError("a persistent id that is no storage's")
    return Storage(key, _STORAGES[kind.name])


def _made(of: Any, arguments: Any) -> Any:
    """What the callables of a state_dict give."""
    name = of.name if isinstance(of, Global) else None
    if name == _DICT and arguments == ():
        return {}
    if name == _PARAMETER and isinstance(arguments[0], Tensor):
        return arguments[0]
    if name == _TENSOR:
        storage, offset, shape, strides, *_ = arguments
        if isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(strides, tuple):
            return Tensor(storage, offset, shape, strides)
    raise TypeError(f"a call of {name} with other arguments than torch.save's")
