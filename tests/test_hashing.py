"""The hash is the published one."""

import subprocess
import sys

import numpy as np
import pytest
from numba import njit

from streamlstm.hashing import siphash


def test_the_hash_is_siphash_1_3() -> None:
    """Python's own str hash is SipHash-1-3; PYTHONHASHSEED=0 is the all-zero seed."""
    if sys.hash_info.algorithm != "siphash13":
        pytest.skip("this Python hashes otherwise")
    words = [b"x" * n for n in range(1, 40)]
    code = f"print(*[hash(w) % 2**64 for w in {words}])"
    theirs = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "0"}, capture_output=True, check=True
    ).stdout.split()

    @njit
    def hashed(data: np.ndarray) -> int:
        return siphash(np.uint64(0), np.uint64(0), data.ctypes.data, len(data))

    ours = [int(hashed(np.frombuffer(w, np.uint8))) for w in words]
    assert ours == [int(h) for h in theirs]
