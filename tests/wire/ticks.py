"""Ticks as a programmer of another language writes them."""

import struct


def binary(
    key: bytes,
    ts: int,
    *values: float,
    version: int = 1,
    flags: int = 0,
    numbered: bytes = b"",
) -> bytes:
    """As a C programmer would write it from the table."""
    head = key + b"\0" + struct.pack("<BBq", version, flags, ts)
    return head + numbered + struct.pack(f"<{len(values)}d", *values)
