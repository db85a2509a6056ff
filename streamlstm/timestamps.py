"""Texts -> nanoseconds since the Unix epoch, to the digit."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np
from numba import njit
from numpy.typing import NDArray

SECONDS, ABSENT, OTHER = range(3)
"""What a line was: plain decimal seconds; nothing, or null; anything else."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?(?:[Zz]|([+-]\d\d:\d\d))", re.ASCII
)


def parse_lines(lines: NDArray[np.uint8], n: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Read ``n`` lines, each ended by a newline: nanoseconds (0 where none), and what each was.

    Digits beyond the ninth after the point are cut.
    """
    ts, form = np.zeros(n, np.int64), np.full(n, OTHER, np.uint8)
    _parse_lines(lines, ts, form)
    return ts, form


def parse(text: str) -> int:
    """Nanoseconds of an RFC 3339 time, or of seconds in any notation of a decimal number.

    Raises:
        ValueError, ArithmeticError: it is neither, or beyond 64 bits.
    """
    if match := _RFC3339.fullmatch(text):
        date, time, fraction, offset = match.groups()
        whole = datetime.fromisoformat(f"{date}T{time}{offset or '+00:00'}") - _EPOCH
        ns = whole // timedelta(seconds=1) * 10**9 + int((fraction or "0")[:9].ljust(9, "0"))
    else:
        seconds = Decimal(text)
        if not abs(seconds) < 10**10:  # before a huge exponent is written out
            raise ValueError("beyond 64 bits")
        ns = int(seconds.scaleb(9))
    if not -(2**63) <= ns < 2**63:
        raise ValueError("beyond 64 bits")
    return ns


@njit(cache=True)
def _parse_lines(lines: NDArray[np.uint8], ts: NDArray[np.int64], form: NDArray[np.uint8]) -> None:
    at = 0
    for i in range(len(ts)):
        begin = at
        sign = 1
        if lines[at] == ord("-"):
            sign = -1
            at += 1
        whole, digits = 0, 0
        while ord("0") <= lines[at] <= ord("9"):
            whole = 10 * whole + lines[at] - ord("0")
            digits += 1
            at += 1
        nanos, unit = 0, 100_000_000
        if digits and lines[at] == ord("."):
            at += 1
            while ord("0") <= lines[at] <= ord("9"):
                nanos += unit * (lines[at] - ord("0"))
                unit //= 10
                at += 1
        if lines[at] == ord("\n"):
            if 0 < digits <= 10 and whole < 9_223_372_036:
                ts[i] = sign * (whole * 1_000_000_000 + nanos)
                form[i] = SECONDS
            elif at == begin:
                form[i] = ABSENT
        elif lines[begin] == ord("n"):  # null
            form[i] = ABSENT
        while lines[at] != ord("\n"):
            at += 1
        at += 1
