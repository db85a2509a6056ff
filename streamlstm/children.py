"""Children that run this package: how they are begun, and that they end with their parent."""

import ctypes
import os
import signal
import sys

_DIES_WITH_PARENT = 1
"""PR_SET_PDEATHSIG, see prctl(2)."""


def command(module: str) -> list[str]:
    """What begins a child, before its arguments; files in its folder are no modules (-P)."""
    return [sys.executable, "-P", "-m", module]


def environment() -> dict[str, str]:
    """This process's, for :func:`command`: what is imported is what this process would import."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def end_with(parent: int) -> None:
    """Have this process killed when that one, which began it, is gone."""
    ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before
        sys.exit(1)
