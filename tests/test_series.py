"""The store of series: every key its own slot, for ever, and nothing beyond the room there is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlstm.index import REFUSED
from streamlstm.memory import Fields
from streamlstm.series import Series, bytes_per_series
from streamlstm.ticks import Keys

KEYS = st.binary(min_size=1, max_size=16).filter(lambda key: b"\0" not in key)

FIELDS: Fields = {"level": (np.float64, (3,)), "count": (np.int32, ())}


def store(capacity: int = 1000) -> Series:
    return Series(FIELDS, capacity, 16)


@given(st.lists(st.lists(KEYS), max_size=6))
def test_lookup_is_a_dictionary(batches: list[list[bytes]]) -> None:
    series, oracle = store(), dict[bytes, int]()
    for batch in batches:
        expected = [oracle.setdefault(key, len(oracle)) for key in batch]
        np.testing.assert_array_equal(series.lookup(Keys.of(batch)), expected)
    assert series.active == len(oracle)
    text, lengths = series.names
    kept = [text[slot, : lengths[slot]].tobytes() for slot in range(len(oracle))]
    assert kept == list(oracle)


def test_where_no_slot_is_free_new_keys_are_refused_and_old_ones_served() -> None:
    series = store(capacity=2)
    slots = series.lookup(Keys.of([b"a", b"b", b"c", b"a"]))
    np.testing.assert_array_equal(slots, [0, 1, REFUSED, 0])
    np.testing.assert_array_equal(series.lookup(Keys.of([b"c", b"b"])), [REFUSED, 1])
    assert series.active == 2


@pytest.mark.parametrize("capacity", [1, 3, 4, 1000])
def test_every_slot_can_be_used(capacity: int) -> None:
    series = store(capacity)
    keys = Keys.of([b"%d" % i for i in range(capacity)])
    np.testing.assert_array_equal(series.lookup(keys), np.arange(capacity))


def test_keys_that_share_a_prefix_are_apart() -> None:
    keys = [b"a", b"ab", b"aa", b"abcdefgh", b"abcdefgh1", b"abcdefgh12345678"[:16]]
    assert len(set(store().lookup(Keys.of(keys)).tolist())) == len(keys)


def test_bytes_per_series_are_those_of_the_arrays() -> None:
    series = store(4096)
    record = series.state["level"].base
    assert series.index.names.base is record
    declared = sum(bytes_per_series(FIELDS, 4096, 16).values())
    index = series.index
    lists = index.free, index.closing, index.changes.slots, index.changes.marks
    assert declared == (record.nbytes + index.table.nbytes + sum(a.nbytes for a in lists)) / 4096


def test_restored_keys_get_the_slots_they_had() -> None:
    series, again = store(), store()
    names = [b"a", b"bcd", b"\xc3\xa9", b"long key of 16 b"]
    slots = series.lookup(Keys.of(names))
    again.restore(series.index.names[:4], series.index.lengths[:4])
    np.testing.assert_array_equal(again.lookup(Keys.of(names)), slots)


def test_two_stores_place_keys_by_different_secrets() -> None:
    assert (store().index.seed != store().index.seed).any()
