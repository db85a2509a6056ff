"""The store of series: key -> slot, and the one table that declares what each series keeps."""

import secrets
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from streamlstm.hashing import siphash
from streamlstm.memory import Fields, load_u8, load_u64, prefetch, record_layout, records
from streamlstm.ticks import Keys, Names

REFUSED = np.int32(-1)
"""The slot of a series for which there was no room."""


LINE = 64
"""Bytes of a cache line."""


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
    capacity: int


class Series:
    """All series of one engine: a record each, committed by the system as it is first used.

    Attributes:
        table: (capacity,) records, those of the keys included.
        state: by field, but for the key's, (capacity, ...).
    """

    def __init__(self, fields: Fields, capacity: int, max_key: int) -> None:
        """Make room for ``capacity`` series whose keys are at most ``max_key`` bytes long."""
        self.capacity = capacity
        self.state = records(_all_fields(fields, max_key), capacity)
        hashes, lengths = self.state.pop("hash"), self.state.pop("length")
        assert hashes.base is not None
        self.table: NDArray[np.void] = hashes.base
        self.index = Index(
            np.array([secrets.randbits(64), secrets.randbits(64)], np.uint64),
            np.zeros(_places(capacity), np.int32),
            hashes,
            self.state.pop("name"),
            lengths,
            np.zeros(1, np.int64),
            capacity,
        )

    @property
    def active(self) -> int:
        """Series that hold a slot."""
        return int(self.index.used[0])

    def lookup(self, keys: Keys) -> NDArray[np.int32]:
        """Slot of each key, (n,); a key never seen starts a series, ``REFUSED`` where none is free.

        Keys must be 1 to ``max_key`` bytes long and free of NUL.
        """
        slots = np.empty(len(keys.begin), np.int32)
        _lookup(self.index, keys, np.empty(len(slots), np.uint64), slots)
        return slots

    @property
    def names(self) -> Names:
        """The key of each slot in use."""
        return Names(self.index.names, self.index.lengths)

    @property
    def live(self) -> NDArray[np.bool_]:
        """Of the slots that were ever used, whether there is a series in each."""
        return self.index.lengths[: self.index.used[0]] > 0

    def restore(self, used: int) -> None:
        """Find the series again whose records were written to slots below ``used``."""
        self.index.used[0] = used
        _restore(self.index)


def bytes_per_series(fields: Fields, capacity: int, max_key: int) -> dict[str, int]:
    """Bytes that one of ``capacity`` series takes in the store, by field; its key's included."""
    declared = {
        name: int(np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64))
        for name, (dtype, shape) in fields.items()
    }
    record = record_layout(_all_fields(fields, max_key)).itemsize
    place = -(-4 * _places(capacity) // capacity)
    return declared | {"key": record - sum(declared.values()) + place}


def _all_fields(fields: Fields, max_key: int) -> Fields:
    """With those of the key; its name last, since most of it is never looked at."""
    head: Fields = {"hash": (np.uint64, ()), "length": (np.uint16, ())}
    return {**head, **fields, "name": (np.uint8, (max_key,))}


def _places(capacity: int) -> int:
    """Size of the hash table: a power of two, at most half full."""
    return 1 << (2 * capacity - 1).bit_length()


# _nrt=False: nothing here owns an array, and reference counts would cost more than the work.
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _restore(index: Index) -> None:
    """Hash all names, and enter them in the empty table."""
    mask, names = np.uint64(len(index.table) - 1), index.names.ctypes.data
    for slot in range(index.used[0]):
        length = np.int64(index.lengths[slot])
        if length:
            index.hashes[slot] = hash_of(index, names + slot * index.names.strides[0], length)
            at = np.int64(index.hashes[slot] & mask)
            while index.table[at]:
                at = (at + 1) & np.int64(mask)
            index.table[at] = slot + 1


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _lookup(index: Index, keys: Keys, hashes: NDArray[np.uint64], slots: NDArray[np.int32]) -> None:
    data = keys.data.ctypes.data
    approach(index, keys, hashes)
    for i in range(len(slots)):
        key, length = data + keys.begin[i], keys.end[i] - keys.begin[i]
        slots[i] = find(index, hashes[i], key, length)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def approach(index: Index, keys: Keys, hashes: NDArray[np.uint64]) -> None:
    """Hash all keys, and bring near what :func:`find` and a step will look at.

    The lines of many series are fetched at once, where one lookup after the other would wait for
    each.
    """
    data, mask = keys.data.ctypes.data, np.uint64(len(index.table) - 1)
    table = index.table.ctypes.data
    for i in range(len(keys.begin)):
        hashes[i] = hash_of(index, data + keys.begin[i], keys.end[i] - keys.begin[i])
        prefetch(table + 4 * np.int64(hashes[i] & mask))
    begin, size = index.hashes.ctypes.data, index.hashes.strides[0]
    for i in range(len(keys.begin)):
        slot = np.int64(index.table[np.int64(hashes[i] & mask)]) - 1
        if slot >= 0:
            record = begin + slot * size
            for line in range(0, size, LINE):
                prefetch(record + line)


@njit(cache=True, error_model="numpy", _nrt=False)
def hash_of(index: Index, key: int, length: int) -> np.uint64:
    """The hash of the key at an address."""
    return siphash(index.seed[0], index.seed[1], key, length)


@njit(cache=True, error_model="numpy", _nrt=False)
def find(index: Index, hashed: np.uint64, key: int, length: int) -> int:
    """The slot of the key at an address; a new key is given one, ``REFUSED`` if none is free."""
    mask = len(index.table) - 1
    at = np.int64(hashed & np.uint64(mask))
    while True:
        slot = int(index.table[at]) - 1
        if slot < 0:
            return _begin(index, at, hashed, key, length)
        if index.hashes[slot] == hashed and _same(index, slot, key, length):
            return slot
        at = (at + 1) & mask


@njit(cache=True, error_model="numpy", _nrt=False)
def _begin(index: Index, at: int, hashed: np.uint64, key: int, length: int) -> int:
    """Give a new key the next free slot, its place in the table being known."""
    slot = int(index.used[0])
    if slot == index.capacity:
        return int(REFUSED)
    index.used[0] = slot + 1
    index.table[at] = slot + 1
    index.hashes[slot] = hashed
    index.lengths[slot] = length
    for byte in range(length):
        index.names[slot, byte] = load_u8(key + byte)
    return slot


@njit(cache=True, error_model="numpy", _nrt=False)
def _same(index: Index, slot: int, key: int, length: int) -> bool:
    if index.lengths[slot] != length:
        return False
    name = index.names.ctypes.data + slot * index.names.strides[0]
    for byte in range(0, length - 7, 8):
        if load_u64(name + byte) != load_u64(key + byte):
            return False
    if length >= 8:  # the last eight, some of them once more
        return load_u64(name + length - 8) == load_u64(key + length - 8)
    for byte in range(length):
        if load_u8(name + byte) != load_u8(key + byte):
            return False
    return True
