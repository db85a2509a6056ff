"""Numbers of ticks: which were missed on the way from a publisher.

A publisher that numbers its ticks by 1 each (``seq``) has them followed. A jump ahead is a gap; the
same number again is a repeat; one that falls back is of a publisher that was started anew.
"""

import secrets
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm.hashing import siphash
from streamlstm.jit import njit

MOST = 1024
"""Publishers followed."""
COUNTS = ("gaps", "repeats", "restarts", "unfollowed")
"""Ticks missed; repeated; publishers begun anew; ticks of publishers beyond ``MOST``."""
GAPS, REPEATS, RESTARTS, UNFOLLOWED = range(len(COUNTS))
CEILING = 1 << 62
"""At which the count of gaps stays: a publisher may claim whatever it likes."""


class Publishers(NamedTuple):
    """The latest number of each: open addressing, linear probing, by a hash of its name alone."""

    seed: NDArray[np.uint64]
    """(2,) secret, so that nobody can choose names that collide"""
    hashes: NDArray[np.uint64]
    """(2 * MOST,) 0: free"""
    latest: NDArray[np.int64]
    """(2 * MOST,)"""
    used: NDArray[np.int64]
    """(1,) places taken"""
    counts: NDArray[np.int64]
    """(COUNTS,)"""

    @classmethod
    def none(cls) -> "Publishers":
        """Nobody is known yet."""
        return cls(
            np.array([secrets.randbits(64), secrets.randbits(64)], np.uint64),
            np.zeros(2 * MOST, np.uint64),
            np.zeros(2 * MOST, np.int64),
            np.zeros(1, np.int64),
            np.zeros(len(COUNTS), np.int64),
        )


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def follow(publishers: Publishers, name: int, length: int, seq: int) -> None:
    """Count what lies between tick ``seq``, 0 or more, and the last of the name at an address."""
    counts, latest, hashes = publishers.counts, publishers.latest, publishers.hashes
    hashed = siphash(publishers.seed[0], publishers.seed[1], name, length) | np.uint64(1)
    at = np.int64(hashed >> np.uint64(1)) & (len(hashes) - 1)
    while hashes[at] != hashed:
        if hashes[at] == 0:
            if publishers.used[0] == MOST:
                counts[UNFOLLOWED] += 1
                return
            publishers.used[0] += 1
            hashes[at], latest[at] = hashed, seq
            return
        at = (at + 1) & (len(hashes) - 1)
    if seq > latest[at]:
        counts[GAPS] += min(seq - latest[at] - 1, CEILING - counts[GAPS])
    elif seq == latest[at]:
        counts[REPEATS] += 1
    else:
        counts[RESTARTS] += 1
    latest[at] = seq
