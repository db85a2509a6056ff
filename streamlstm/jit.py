"""Numba's ``njit`` as all functions here are compiled by it: without what calls them from C.

That wrapper would be a sixth of the time to compile, and nothing calls a function so: other
compiled code does by its name, or by the address of the function itself (`memory.require`).
"""

import fcntl
import os
from contextlib import suppress
from functools import partial
from typing import Any

import numba
from numba.core.caching import IndexDataCacheFile

njit = partial(numba.njit, no_cfunc_wrapper=True)

_save = IndexDataCacheFile.save


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
    finally:
        os.close(folder)


IndexDataCacheFile.save = _save_in_turn
