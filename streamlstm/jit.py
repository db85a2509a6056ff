"""Numba's ``njit`` as all functions here are compiled by it: without what calls them from C.

That wrapper would be a sixth of the time to compile, and nothing calls a function so: other
compiled code does by its name, or by the address of the function itself (`memory.require`).

And what Numba lacks where several processes keep their code in one folder, or the power goes; and
where all code is there already, so that nothing of what compiling takes is needed.
"""

import fcntl
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial, wraps
from typing import Any

from streamlstm.compiled import NoFolderError, choose_folder

if "numba" not in sys.modules:  # it looks for its folder once, when it is imported
    with suppress(NoFolderError):  # then Numba finds another place, or none
        choose_folder()

# ruff: isort: split
import llvmlite.binding
import numba
from numba.core.caching import Cache, IndexDataCacheFile
from numba.core.runtime import _nrt_python
from numba.extending import intrinsic

njit = partial(numba.njit, no_cfunc_wrapper=True)


def emitted(result: Any, *given: Any) -> Callable[[Callable[..., Any]], Any]:
    """A function for compiled code, of these Numba types, made of one that emits its LLVM.

    That takes the IR builder and the arguments' values, and returns the result's, or nothing for
    ``void``. What is made is untyped, since its callers leave out the builder.
    """

    def of(emit: Callable[..., Any]) -> Any:
        @wraps(emit)
        def define(typing: Any, *_: Any) -> Any:
            def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
                value = emit(builder, *args)
                return value if value is not None else context.get_dummy_value()

            return result(*given), generate

        return intrinsic(define)

    return of


# --- the folder of compiled code ------------------------------------------------------------------

_load, _save, _load_index, _load_data = (
    Cache.load_overload,
    IndexDataCacheFile.save,
    IndexDataCacheFile._load_index,
    IndexDataCacheFile._load_data,
)


def _save_in_turn(file: Any, key: Any, data: Any) -> None:
    """Save compiled code, and no other process meanwhile.

    Of two that save a function's code for different arguments, both would give it the same name,
    and who asks for the one might be given the other.
    """
    folder = os.open(file._cache_path, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every file system can
            fcntl.flock(folder, fcntl.LOCK_EX)
        _save(file, key, data)
    except OSError as error:  # a full disk's names no file
        raise OSError(error.errno, error.strerror, file._cache_path) from error
    finally:
        os.close(folder)


def _load_sound_index(file: Any) -> dict[Any, str]:
    """Load what is saved; nothing, to be compiled again, where a power cut left no sound file."""
    try:
        return dict(_load_index(file))
    except OSError:
        raise
    except Exception:  # whatever unpickling raises
        return {}


def _load_sound_data(file: Any, name: str) -> Any:
    """The same of one; its OSError means to Numba that it is not there."""
    try:
        return _load_data(file, name)
    except Exception as error:
        raise OSError(f"{name}: {error!r}") from error


def _load_alone(cache: Any, signature: Any, target: Any) -> Any:
    """Load a function of ours, and not first all that could be compiled; whoever compiles does so.

    Without the half of Numba that says how to compile what (and SciPy's linear algebra, where it is
    installed), a process begins in two thirds of the time.
    """
    if not cache._py_func.__module__.startswith("streamlstm."):
        return _load(cache, signature, target)
    return cache._load_overload(signature, target)


for _name, _address in _nrt_python.c_helpers.items():  # of that half, all that our code calls
    llvmlite.binding.add_symbol(_name if _name.startswith("_") else f"NRT_{_name}", _address)
Cache.load_overload = _load_alone
IndexDataCacheFile.save = _save_in_turn
IndexDataCacheFile._load_index = _load_sound_index
IndexDataCacheFile._load_data = _load_sound_data
