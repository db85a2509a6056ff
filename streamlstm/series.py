"""The store of series: the one table that declares what each keeps, and who has which slot."""

import secrets

import numpy as np
from numpy.typing import NDArray

from streamlstm.copy_on_write import CopyOnWrite
from streamlstm.events import BACK, NEW, Changes, note, told
from streamlstm.index import (
    COUNTS,
    FREE,
    REASONS,
    STARTED,
    UNCOUNTED,
    USED,
    Index,
    approach,
    arrange,
    bind,
    find,
    longest_idle_ones,
    release,
    touch,
)
from streamlstm.jit import njit
from streamlstm.memory import LINE, Fields, record_layout, records, require
from streamlstm.placed import placed
from streamlstm.ticks import Keys, Names

LISTS = 13
"""Bytes that the lists of slots that are free, ended or changed take for each."""


class Series:
    """All series of one engine: a record each, committed by the system as it is first used.

    Attributes:
        table: (capacity,) records, keys included.
        state: by field, but for those of keys, (capacity, ...).
        copies: of the rows of a moment, for a checkpoint of it.
    """

    def __init__(
        self,
        fields: Fields,
        capacity: int,
        max_key: int,
        *,
        ordered: bool = False,
        evict: bool = False,
        far: str = "name",
    ) -> None:
        """Make room for ``capacity`` series whose keys are at most ``max_key`` bytes long.

        Args:
            fields: what is kept of each.
            capacity, max_key: as said.
            ordered: whether it is to be known who is longest idle.
            evict: whether a new key may then take that one's slot, where no other is free.
            far: the field from which on those lie that a tick does not look at at first.
        """
        self.capacity = capacity
        self.state = records(_all_fields(fields, max_key), capacity)
        hashes, lengths = self.state.pop("hash"), self.state.pop("length")
        layout, table = record_layout(_all_fields(fields, max_key)), hashes.base
        assert table is not None
        assert layout.fields
        offsets = {name: each[1] for name, each in layout.fields.items()}
        self.offsets = {name: offsets[name] for name in fields}
        self.table: NDArray[np.void] = table
        self.copies = CopyOnWrite(table)
        rows = len(table)
        links = np.zeros((capacity + 1 if ordered else 0, 2), np.int32)
        links[-1:] = capacity
        self.index = placed(
            Index(
                np.array([secrets.randbits(64), secrets.randbits(64)], np.uint64),
                np.zeros(_places(capacity), np.int32),
                hashes,
                self.state.pop("name"),
                lengths,
                np.zeros(COUNTS, np.int64),
                np.zeros(capacity, np.int32),
                np.zeros(capacity, np.int32),
                links,
                np.zeros(capacity if ordered else 0, np.int64),
                evict and ordered,
                np.zeros(max_key, np.uint8),
                table.view(np.uint8).reshape(rows, layout.itemsize),
                min(self.offsets.values()),
                offsets["name"],
                _near(offsets[far], offsets["name"], layout.itemsize),
                Changes.none(capacity),
                self.copies.shadow,
                capacity,
            )
        )
        keys, slots = Keys.of([]), np.zeros(0, np.int32)
        require(_lookup, self.index, keys, np.zeros(0, np.uint64), slots)
        require(_bind, self.index, slots, np.zeros((0, max_key), np.uint8), np.zeros(0, np.int64))

    @property
    def active(self) -> int:
        """Series that hold a slot."""
        return int(self.index.counts[USED] - self.index.counts[FREE])

    @property
    def used(self) -> int:
        """Slots below which all series are."""
        return int(self.index.counts[USED])

    @property
    def slots(self) -> NDArray[np.int32]:
        """Those in use, in order."""
        used = self.index.lengths[: self.index.counts[USED]]
        return np.flatnonzero(used).astype(np.int32)

    @property
    def started(self) -> int:
        """Series begun since the store was opened, those that were brought back not counted."""
        return int(self.index.counts[STARTED])

    @property
    def evicted(self) -> dict[str, int]:
        """Series closed since then, by reason."""
        return {reason: int(self.index.counts[at]) for reason, at in REASONS.items()}

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

    def keys(self, slots: NDArray[np.int32]) -> list[bytes]:
        """The keys of some slots; of one that was just given back, the one that it had."""
        return [bytes(self.index.names[slot]).rstrip(b"\0") for slot in slots.tolist()]

    def restore(
        self,
        names: NDArray[np.uint8],
        lengths: NDArray[np.uint16],
        slots: NDArray[np.int32] | None = None,
    ) -> None:
        """Give slots (n,), 0, 1, ... where none are said, to keys, (n, bytes) zero-padded and (n,).

        Their series are as new. What a slot or a key had before is forgotten. :meth:`arrange` is to
        follow, once all their state is there; the slots must be below the capacity, and differ.
        """
        if slots is None:
            slots = np.arange(len(lengths), dtype=np.int32)
        _bind(self.index, slots, np.ascontiguousarray(names), lengths.astype(np.int64))

    def bind(self, slot: int, key: bytes) -> None:
        """:meth:`restore` one."""
        name = np.frombuffer(bytearray(key), np.uint8)[None]
        self.restore(name, np.array([len(key)], np.uint16), np.array([slot], np.int32))

    def arrange(self) -> None:
        """Let slots that nobody has be taken, and the journal be told of nothing until now.

        Who was ``heard`` longest ago is the longest idle, if that is a field.
        """
        slots = self.slots
        heard = self.state["heard"][slots] if "heard" in self.state else np.zeros(len(slots))
        arrange(self.index, slots[np.argsort(heard, kind="stable")])
        told(self.index.changes)

    def release(self, slots: NDArray[np.int32], reason: int = UNCOUNTED) -> None:
        """Close series; of ``REASONS`` which it is counted for."""
        _release(self.index, slots, reason)

    def come_back(self, slots: NDArray[np.int32], now: int) -> None:
        """Series just begun are none of today: they come back, with a tick of the moment ``now``.

        The journal is to be told all of their state.
        """
        _come_back(self.index, slots, now)

    def longest_idle(self, most: int, oldest: int) -> NDArray[np.int32]:
        """The slots used longest ago, at most ``most``; see ``longest_idle_ones``."""
        slots = np.zeros(most, np.int32)
        return slots[: longest_idle_ones(self.index, oldest, slots)]

    def records(self, slots: NDArray[np.int32]) -> NDArray[np.uint8]:
        """A copy of the state of some slots, but for the recurrent one: (n, bytes)."""
        return self.index.records[slots, self.index.begin : self.index.end]

    def set_records(self, slots: NDArray[np.int32], records: NDArray[np.uint8]) -> None:
        """What :meth:`records` gave."""
        self.index.records[slots, self.index.begin : self.index.end] = records

    def warm_up(self) -> None:
        """Compile all there is; nothing changes, but that :meth:`arrange` is done."""
        nothing = np.zeros(0, np.int32)
        self.lookup(Keys.of([]))
        self.restore(np.zeros((0, 1), np.uint8), np.zeros(0, np.uint16), nothing)
        self.release(nothing)
        self.come_back(nothing, 0)
        self.arrange()
        self.longest_idle(0, 0)


def bytes_per_series(fields: Fields, capacity: int, max_key: int) -> dict[str, int]:
    """Bytes that one of ``capacity`` series takes in the store, by field; its key's included.

    Where it is to be known who is longest idle, it takes 16 more, which are not counted.
    """
    declared = {
        name: int(np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64))
        for name, (dtype, shape) in fields.items()
    }
    record = record_layout(_all_fields(fields, max_key)).itemsize
    place = -(-4 * _places(capacity) // capacity)
    return declared | {"key": record - sum(declared.values()) + place + LISTS}


def _all_fields(fields: Fields, max_key: int) -> Fields:
    """With those of the key; its name last, since most of it is never looked at."""
    head: Fields = {"hash": (np.uint64, ()), "length": (np.uint16, ())}
    return {**head, **fields, "name": (np.uint8, (max_key,))}


def _near(far: int, name: int, end: int) -> NDArray[np.int64]:
    """Bytes of a record, a cache line apart, that cover it up to ``far``, and its key's name."""
    return np.array([*range(0, far, LINE), far - 1, *range(name, end, LINE), end - 1], np.int64)


def _places(capacity: int) -> int:
    """Size of the hash table: a power of two, at most half full."""
    return 1 << (2 * capacity - 1).bit_length()


# _nrt=False: nothing here owns an array, and reference counts would cost more than the work.
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _lookup(index: Index, keys: Keys, hashes: NDArray[np.uint64], slots: NDArray[np.int32]) -> None:
    data = keys.data.ctypes.data
    approach(index, keys, hashes)
    for i in range(len(slots)):
        key, length = data + keys.begin[i], keys.end[i] - keys.begin[i]
        slots[i] = find(index, hashes[i], key, length, 0, -1)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _bind(
    index: Index,
    slots: NDArray[np.int32],
    names: NDArray[np.uint8],
    lengths: NDArray[np.int64],
) -> None:
    for i in range(len(slots)):
        bind(index, slots[i], names.ctypes.data + i * names.strides[0], lengths[i])


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _release(index: Index, slots: NDArray[np.int32], reason: int) -> None:
    for slot in slots:
        release(index, slot, reason)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _come_back(index: Index, slots: NDArray[np.int32], now: int) -> None:
    for slot in slots:
        touch(index, slot, now)
        index.counts[STARTED] -= 1
        note(index.changes, slot, NEW | BACK, np.uint8(0))
