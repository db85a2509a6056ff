"""Ticks as a programmer of another language writes them."""

import struct


def binary(key: bytes, ts: int, *values: float, version: int = 1, flags: int = 0) -> bytes:
    """As a C programmer would write it from the table."""
    return key + b"\0" + struct.pack(f"<BBq{len(values)}d", version, flags, ts, *values)
