"""Bytes at an address, and code at one."""

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from streamlstm import memory
from streamlstm.memory import address_of, call, call_for_int, copy

ROOM = 32
BYTES = st.binary(min_size=ROOM, max_size=ROOM)
LOADERS = {
    "u8": "<B", "u16": "<H", "u32": "<I", "u64": "<Q", "i64": "<q", "f64": "<d",
}  # fmt: skip


def loader(name: str) -> Any:
    load = getattr(memory, f"load_{name}")
    return njit(lambda room, at: load(room.ctypes.data + at))


def storer(name: str) -> Any:
    store = getattr(memory, f"store_{name}")
    return njit(lambda room, at, value: store(room.ctypes.data + at, value))


LOAD = {name: loader(name) for name in LOADERS}
STORE = {name: storer(name) for name in LOADERS if hasattr(memory, f"store_{name}")}


@pytest.mark.parametrize("name", LOAD)
@given(BYTES, st.integers(0, ROOM - 8))
def test_any_bytes_are_read_wherever_they_lie(name: str, content: bytes, at: int) -> None:
    room = np.frombuffer(bytearray(content), np.uint8)
    found = LOAD[name](room, at)
    (wanted,) = struct.unpack_from(LOADERS[name], content, at)
    np.testing.assert_array_equal(found, wanted)  # NaN too


@pytest.mark.parametrize("name", STORE)
@given(BYTES, BYTES, st.integers(0, ROOM - 8))
def test_they_are_written_and_none_beside_them(
    name: str, before: bytes, content: bytes, at: int
) -> None:
    room = np.frombuffer(bytearray(before), np.uint8)
    value = np.frombuffer(content, LOADERS[name], 1)[0]
    STORE[name](room, at, value)
    wanted = bytearray(before)
    struct.pack_into(LOADERS[name], wanted, at, value)
    assert room.tobytes() == bytes(wanted)


def test_copying() -> None:
    move = njit(lambda to, source, n: copy(to.ctypes.data + 1, source.ctypes.data + 2, n))
    to, source = np.zeros(8, np.uint8), np.arange(8, dtype=np.uint8)
    move(to, source, 3)
    assert to.tolist() == [0, 2, 3, 4, 0, 0, 0, 0]


@njit(_nrt=False)
def _scale(values: np.ndarray, by: float, pair: tuple[int, int]) -> None:
    for i in range(len(values)):
        values[i] = values[i] * by + pair[0] - pair[1]


@njit(_nrt=False)
def _count(values: np.ndarray, least: int) -> int:
    found = 0
    for value in values:
        found += value >= least
    return found


def test_calling_what_lies_at_an_address() -> None:
    """One caller, of whatever code it is given the address of."""
    values = np.arange(4.0)
    call_it = njit(lambda address, *given: call(address, *given))
    call_it(address_of(_scale, values, 2.0, (5, 1)), values, 2.0, (5, 1))
    assert values.tolist() == [4, 6, 8, 10]
    ask_it = njit(lambda address, *given: call_for_int(address, *given))
    assert ask_it(address_of(_count, values, 0), values, 7) == 2


def test_the_address_of_a_function_stays() -> None:
    values = np.zeros(1)
    assert address_of(_count, values, 0) == address_of(_count, values, 0) != 0
    assert address_of(_count, values, 0) != address_of(_count, values.astype(np.float32), 0)
