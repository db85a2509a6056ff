"""The store of series: key -> slot, and the one table that declares what each series keeps."""

import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from streamlstm.ticks import Keys

Fields = Mapping[str, tuple[type, tuple[int, ...]]]
"""Name -> dtype and shape of what one series keeps."""

REFUSED = np.int32(-1)
"""The slot of a series for which there was no room."""


class Index(NamedTuple):
    """Where a key's slot is found: open addressing, linear probing, SipHash of a secret seed."""

    seed: NDArray[np.uint64]
    """(2,) secret, so that nobody can choose keys that collide"""
    table: NDArray[np.int32]
    """(a power of two, at least 2 * capacity) slot + 1; 0: free"""
    hashes: NDArray[np.uint64]
    """(capacity,) of the key of each slot"""
    names: NDArray[np.uint8]
    """(capacity, max_key) the keys, zero-padded"""
    lengths: NDArray[np.uint16]
    """(capacity,) bytes of each key"""
    used: NDArray[np.int64]
    """(1,) slots taken"""


class Series:
    """All series of one engine. Memory is committed by the system as slots are first used."""

    def __init__(self, fields: Fields, capacity: int, max_key: int) -> None:
        """Make room for ``capacity`` series whose keys are at most ``max_key`` bytes long."""
        self.fields = dict(fields)
        self.capacity = capacity
        self.index = Index(
            np.array([secrets.randbits(64), secrets.randbits(64)], np.uint64),
            np.zeros(_places(capacity), np.int32),
            np.zeros(capacity, np.uint64),
            np.zeros((capacity, max_key), np.uint8),
            np.zeros(capacity, np.uint16),
            np.zeros(1, np.int64),
        )
        self.state: dict[str, NDArray[Any]] = {
            name: np.zeros((capacity, *shape), dtype) for name, (dtype, shape) in fields.items()
        }

    @property
    def active(self) -> int:
        """Series that hold a slot."""
        return int(self.index.used[0])

    def lookup(self, keys: Keys) -> NDArray[np.int32]:
        """Slot of each key, (n,); a key never seen starts a series, ``REFUSED`` where none is free.

        Keys must be 1 to ``max_key`` bytes long and free of NUL.
        """
        slots = np.empty(len(keys.offsets) - 1, np.int32)
        _lookup(self.index, keys.data, keys.offsets, slots)
        return slots

    def names(self, slots: NDArray[np.int32]) -> list[bytes]:
        """The keys of slots in use, (n,)."""
        padded = self.index.names[slots]
        return padded.view(f"S{padded.shape[1]}")[:, 0].tolist()  # no key ends in NUL

    def restore(self, names: NDArray[np.uint8], lengths: NDArray[np.uint16]) -> None:
        """Give slots 0, 1, ... of an empty store to these keys, (n, bytes) zero-padded and (n,)."""
        data = names[np.arange(names.shape[1]) < lengths[:, None]]
        offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        self.lookup(Keys(data, offsets))


def bytes_per_series(fields: Fields, capacity: int, max_key: int) -> dict[str, int]:
    """Bytes that one of ``capacity`` series takes in the store, by field; its key's included."""
    declared = {
        name: int(np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64))
        for name, (dtype, shape) in fields.items()
    }
    hashed, length, place = 8, 2, -(-4 * _places(capacity) // capacity)
    return declared | {"key": hashed + length + place + max_key}


def _places(capacity: int) -> int:
    """Size of the hash table: a power of two, at most half full."""
    return 1 << (2 * capacity - 1).bit_length()


# _nrt=False: nothing here owns an array, and reference counts would cost more than the work.
@njit(cache=True, error_model="numpy", _nrt=False)
def _lookup(
    index: Index,
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    slots: NDArray[np.int32],
) -> None:
    mask = len(index.table) - 1
    capacity = len(index.hashes)
    for i in range(len(slots)):
        begin, end = offsets[i], offsets[i + 1]
        hashed = _siphash(index.seed, data, begin, end)
        at = np.int64(hashed & np.uint64(mask))
        slots[i] = REFUSED
        while True:
            slot = index.table[at] - 1
            if slot < 0:
                slot = index.used[0]
                if slot < capacity:
                    index.used[0] = slot + 1
                    index.table[at] = slot + 1
                    index.hashes[slot] = hashed
                    index.lengths[slot] = end - begin
                    for b in range(begin, end):
                        index.names[slot, b - begin] = data[b]
                    slots[i] = slot
                break
            if index.hashes[slot] == hashed and _same(index, slot, data, begin, end):
                slots[i] = slot
                break
            at = (at + 1) & mask


@njit(cache=True, error_model="numpy", _nrt=False)
def _same(index: Index, slot: int, data: NDArray[np.uint8], begin: int, end: int) -> bool:
    if index.lengths[slot] != end - begin:
        return False
    for b in range(begin, end):
        if index.names[slot, b - begin] != data[b]:
            return False
    return True


@njit(cache=True, inline="always")
def _rotate(x: np.uint64, by: int) -> np.uint64:
    return (x << np.uint64(by)) | (x >> np.uint64(64 - by))


@njit(cache=True, error_model="numpy", _nrt=False)
def _sip_round(
    a: np.uint64, b: np.uint64, c: np.uint64, d: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    a += b
    b = _rotate(b, 13) ^ a
    a = _rotate(a, 32)
    c += d
    d = _rotate(d, 16) ^ c
    a += d
    d = _rotate(d, 21) ^ a
    c += b
    b = _rotate(b, 17) ^ c
    c = _rotate(c, 32)
    return a, b, c, d


@njit(cache=True, error_model="numpy", _nrt=False)
def _siphash(seed: NDArray[np.uint64], data: NDArray[np.uint8], begin: int, end: int) -> np.uint64:
    """SipHash-1-3 (Aumasson & Bernstein 2012, fewer rounds as in Rust and Python) of a key."""
    k0, k1 = seed[0], seed[1]
    a = k0 ^ np.uint64(0x736F6D6570736575)
    b = k1 ^ np.uint64(0x646F72616E646F6D)
    c = k0 ^ np.uint64(0x6C7967656E657261)
    d = k1 ^ np.uint64(0x7465646279746573)
    length = end - begin
    at = begin
    while True:
        word = np.uint64(0)
        count = min(8, end - at)
        for byte in range(count):
            word |= np.uint64(data[at + byte]) << np.uint64(8 * byte)
        at += count
        last = count < 8
        if last:
            word |= np.uint64(length & 0xFF) << np.uint64(56)
        d ^= word
        a, b, c, d = _sip_round(a, b, c, d)
        a ^= word
        if last:
            break
    c ^= np.uint64(0xFF)
    for _ in range(3):
        a, b, c, d = _sip_round(a, b, c, d)
    return a ^ b ^ c ^ d
