"""Memory between pages that nobody may touch: who reads beyond its end dies there."""

import ctypes
import mmap
import os
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm.wire.format import Columns

_NOTHING = 0
"""What may be done with a page: PROT_NONE of mmap(2)."""
_FENCE = 0xA5
"""Bytes between the page before and what is fenced."""
_libc = ctypes.CDLL(None, use_errno=True)


class Arena:
    """Bytes between two such pages.

    Attributes:
        bytes: (size,) at least as many as asked for; they end where a page begins.
    """

    kind: type[NDArray[np.uint8]] = np.ndarray
    """Of the arrays that :meth:`put` returns."""

    def __init__(self, size: int) -> None:
        """Of ``size`` bytes, rounded up to pages."""
        page = mmap.PAGESIZE
        size = max(page, -(-size // page) * page)
        whole = np.frombuffer(mmap.mmap(-1, size + 2 * page), np.uint8)
        for at in (0, page + size):
            address = ctypes.c_void_p(whole.ctypes.data + at)
            if _libc.mprotect(address, ctypes.c_size_t(page), _NOTHING):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self.bytes = whole[page : page + size]

    def put(self, data: NDArray[np.uint8], *, first: bool = False) -> NDArray[np.uint8]:
        """Bytes laid at the end, or at the begin; they are there until the next call."""
        size = len(data)
        place = self.bytes[:size] if first else self.bytes[len(self.bytes) - size :]
        place[:] = data
        return place.view(self.kind)


class Fenced(NamedTuple):
    """Columns, each at the end of an arena of its own."""

    columns: Columns
    fences: list[NDArray[np.uint8]]
    """what lies before each, up to the page that nobody may touch"""

    @classmethod
    def like(cls, columns: Columns) -> "Fenced":
        """Of the same shapes; 0 everywhere."""
        placed, fences = [], []
        for column in columns:
            arena = Arena(column.nbytes).bytes
            begin = len(arena) - column.nbytes
            arena[:begin] = _FENCE
            placed.append(arena[begin:].view(column.dtype).reshape(column.shape))
            fences.append(arena[:begin])
        return cls(Columns(*placed), fences)

    def touched(self) -> bool:
        """Whether anybody wrote before a column."""
        return any((fence != _FENCE).any() for fence in self.fences)
