"""Texts -> nanoseconds since the Unix epoch, to the digit."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?(?:[Zz]|([+-]\d\d:\d\d))", re.ASCII
)
_DECIMAL = re.compile(r"-?\d+(?:\.\d+)?(?:[Ee][+-]?\d+)?", re.ASCII)
_DIGITS = Context(prec=100_000)  # more than a frame has: nothing is rounded


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
        if not _DECIMAL.fullmatch(text):
            raise ValueError("neither a decimal number nor an RFC 3339 time")
        seconds = Decimal(text)
        if not abs(seconds) < 10**10:  # before a huge exponent is written out
            raise ValueError("beyond 64 bits")
        ns = int(seconds.scaleb(9, _DIGITS))
    if not -(2**63) <= ns < 2**63:
        raise ValueError("beyond 64 bits")
    return ns
