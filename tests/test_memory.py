"""Bytes and functions at an address; records of several fields."""

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit, typeof
from numpy.typing import NDArray

from streamlstm import memory
from streamlstm.memory import beyond, call, call_for_int, copy, records, require, row_of

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
    call_it(require(_scale, values, 2.0, (5, 1)), values, 2.0, (5, 1))
    assert values.tolist() == [4, 6, 8, 10]
    ask_it = njit(lambda address, *given: call_for_int(address, *given))
    assert ask_it(require(_count, values, 0), values, 7) == 2


def test_the_address_of_a_function_stays() -> None:
    values = np.zeros(1)
    assert require(_count, values, 0) == require(_count, values, 0) != 0
    assert require(_count, values, 0) != require(_count, values.astype(np.float32), 0)


FIELDS: memory.Fields = {
    "a": (np.uint8, ()), "b": (np.float64, (2, 3)), "c": (np.int16, (0,)), "d": (np.float32, (5,)),
}  # fmt: skip


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_fields_of_a_record_lie_side_by_side_and_do_not_touch(n: int) -> None:
    found = memory.records(FIELDS, n)
    size = memory.record_layout(FIELDS).itemsize
    assert size >= 1 + 48 + 20
    for name, (kind, shape) in FIELDS.items():
        array = found[name]
        assert (array.dtype, array.shape[1:]) == (kind, shape)
        assert len(array) >= n
        assert array.strides[0] == size
        assert array.ctypes.data % np.dtype(kind).itemsize == 0
        assert not array.any()
        array[...] = len(name) + np.arange(array.size).reshape(array.shape) % 7
    for array in found.values():
        np.testing.assert_array_equal(array, 1 + np.arange(array.size).reshape(array.shape) % 7)


def test_to_compiled_code_one_record_is_like_many() -> None:
    one, many = (memory.records(FIELDS, n) for n in (1, 100))
    for name in FIELDS:
        assert typeof(one[name]) == typeof(many[name])


def test_prefetching_changes_nothing() -> None:
    fetch = njit(lambda room: memory.prefetch(room.ctypes.data))
    room = np.arange(8)
    fetch(room)
    assert room.tolist() == list(range(8))


@njit(_nrt=False)
def _numbers(view: NDArray[np.float32], to: NDArray[np.float32]) -> None:
    for k in range(len(view)):
        to[k] = view[k]


@njit(_nrt=False)
def _row(table: NDArray[np.float32], index: int, to: NDArray[np.float32]) -> int:
    _numbers(row_of(table, index), to)
    return len(row_of(table, index))


@njit(_nrt=False)
def _rest(array: NDArray[np.float32], begin: int, to: NDArray[np.float32]) -> int:
    _numbers(beyond(array, begin), to)
    return len(beyond(array, begin))


def test_views_are_of_one_row_and_of_what_is_left() -> None:
    table = records({"other": (np.int8, ()), "y": (np.float32, (3, 2))}, 5)["y"]
    table[:] = np.random.default_rng(0).normal(size=table.shape)
    to = np.zeros(6, np.float32)
    assert _row(table, 3, to) == 6
    np.testing.assert_array_equal(to, table[3].ravel())
    whole = np.ascontiguousarray(table)
    to = np.zeros(30, np.float32)
    assert _rest(whole, 4, to) == 26
    np.testing.assert_array_equal(to[:26], whole.ravel()[4:])
    assert _rest(whole, 30, to) == 0


@given(st.integers(0, 12), st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_an_inner_product_is_of_eight_sums(eights: int, seed: int, at: int) -> None:
    """To the last bit, wherever the numbers lie."""
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(2, 8 * eights + at)).astype(np.float32)
    found = _dot(one[at:], other[at:])
    sums = np.zeros(8, np.float32)
    for x, y in zip(one[at:].reshape(-1, 8), other[at:].reshape(-1, 8), strict=True):
        sums += x * y
    fours = sums[:4] + sums[4:]
    twos = fours[:2] + fours[2:]
    assert found == twos[0] + twos[1]


@njit
def _dot(one: NDArray[np.float32], other: NDArray[np.float32]) -> Any:
    return memory.dot(one.ctypes.data, other.ctypes.data, 4 * len(one))
