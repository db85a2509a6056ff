"""How the C library hands out memory for messages, which glibc is told as a process starts only.

libzmq allocates each prediction in one thread and frees it in another, and takes a large piece for
each 256 on their way. A thread of glibc keeps 7 pieces of a size for itself; all others are merged
with their neighbours as soon as a large one is wanted, and cut out again, behind a lock.
"""

import contextlib
import os
import sys

TUNABLES = {
    "glibc.malloc.tcache_count": 256,  # pieces of a size that a thread keeps, wanted again or not
    "glibc.malloc.mxfast": 160,  # bytes of the largest that is not merged at once
}
"""What is set, unless it is set already (libc manual, Memory Allocation Tunables)."""
_BEGUN = "_STREAMLSTM_BEGUN"
"""Names the process that began anew: a Python with privileges of its own is not told the rest."""


def begin_anew() -> None:
    """Begin this process anew with :data:`TUNABLES`: the same command, and the same process ID.

    Nothing happens where they are set, with another C library, and where that is forbidden.
    """
    given = os.environ.get("GLIBC_TUNABLES", "")
    missing = [f"{name}={value}" for name, value in TUNABLES.items() if f"{name}=" not in given]
    here = str(os.getpid())
    again = os.environ.get(_BEGUN) == here
    if again or not (missing and sys.executable and _is_glibc()):
        return
    os.environ[_BEGUN] = here
    os.environ["GLIBC_TUNABLES"] = ":".join([*filter(None, [given]), *missing])
    with contextlib.suppress(OSError):
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _is_glibc() -> bool:
    with contextlib.suppress(ValueError, OSError):
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    return False
