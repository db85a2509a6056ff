"""The index against a dictionary in the order of use: keys that come, go and push others out."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from streamlstm.events import CHANGED
from streamlstm.index import ENDED, FULL, REFUSED, Index, close, end, find, hash_of, touch
from streamlstm.memory import Fields
from streamlstm.series import Series
from streamlstm.ticks import Keys

FIELDS: Fields = {"heard": (np.int64, ()), "level": (np.float64, (3,))}


def store(capacity: int, *, evict: bool = False) -> Series:
    return Series(FIELDS, capacity, 16, ordered=True, evict=evict)


@njit
def _take(index: Index, keys: Keys, now: int, oldest: int) -> int:
    key, length = keys.data.ctypes.data + keys.begin[0], keys.end[0] - keys.begin[0]
    slot = find(index, hash_of(index, key, length), key, length, now, oldest)
    if slot >= 0:
        touch(index, slot, now)
    return slot


def take(series: Series, key: bytes, now: int, oldest: int = 1 << 62) -> int:
    return int(_take(series.index, Keys.of([key]), now, oldest))


def idle_first(series: Series) -> list[bytes]:
    return series.keys(series.longest_idle(series.capacity, 1 << 62))


ACTS = st.lists(
    st.tuples(st.sampled_from(["take", "take", "take", "release", "rebuild"]), st.integers(0, 25)),
    max_size=150,
)


@pytest.mark.parametrize("evict", [True, False])
@given(acts=ACTS, capacity=st.integers(1, 20))
@settings(max_examples=60)
def test_it_is_a_dictionary_in_the_order_of_use(
    evict: bool, acts: list[tuple[str, int]], capacity: int
) -> None:
    series, oracle, last = store(capacity, evict=evict), OrderedDict[bytes, int](), 0
    level = series.state["level"]
    for now, (act, which) in enumerate(acts, 1):
        key = b"key %d" % which
        if act == "rebuild":  # as a start from a checkpoint does
            for moment, slot in enumerate(oracle.values()):
                series.state["heard"][slot] = moment
            series.arrange()
        elif act == "release":
            if key in oracle:
                series.release(np.array([oracle.pop(key)], np.int32))
        else:
            slot = take(series, key, now)
            if key in oracle:
                assert slot == oracle[key]
                oracle.move_to_end(key)
                assert (level[slot] == which).all()
            elif len(oracle) < capacity or evict:
                if len(oracle) == capacity:
                    assert oracle.popitem(last=False)[1] == slot
                assert slot not in oracle.values()
                assert not level[slot].any()  # as new
                level[slot] = which
                oracle[key] = slot
            else:
                assert slot == REFUSED
        assert series.active == len(oracle)
        assert idle_first(series) == list(oracle)
        last = max([last, *oracle.values()])
    assert series.slots.tolist() == sorted(oracle.values())
    assert last < capacity
    found = series.lookup(Keys.of(list(oracle)))
    assert found.tolist() == list(oracle.values())


def test_a_series_with_a_tick_that_waits_is_never_evicted() -> None:
    series = store(2, evict=True)
    assert [take(series, key, now) for now, key in enumerate([b"a", b"b"], 1)] == [0, 1]
    assert take(series, b"c", 3, oldest=1) == REFUSED
    assert take(series, b"c", 3, oldest=2) == 0
    assert take(series, b"d", 3, oldest=2) == REFUSED
    assert take(series, b"d", 3, oldest=3) == 1
    assert take(series, b"e", 3, oldest=3) == REFUSED  # both came with it
    assert series.evicted == {"full": 2, "idle": 0, "ended": 0}


@pytest.mark.parametrize("evict", [True, False])
def test_a_million_keys_at_a_thousand_slots(evict: bool) -> None:
    """Whatever comes, nothing grows, and of those that stay each has its own slot."""
    series = store(1000, evict=evict)
    before = {name: array.nbytes for name, array in series.state.items()}
    for begin in range(0, 1_000_000, 1000):
        keys = Keys.of([b"%d" % i for i in range(begin, begin + 1000)])
        slots = _flood(series.index, keys, begin + 1)
        if evict or begin == 0:
            assert sorted(slots) == list(range(1000))
        else:
            assert set(slots.tolist()) == {REFUSED}
    assert series.active == 1000
    assert series.evicted["full"] == (999_000 if evict else 0)
    assert {name: array.nbytes for name, array in series.state.items()} == before
    first = 999_000 if evict else 0
    assert set(idle_first(series)) == {b"%d" % i for i in range(first, first + 1000)}


@njit
def _flood(index: Index, keys: Keys, now: int) -> np.ndarray:
    slots = np.empty(len(keys.begin), np.int32)
    for i in range(len(slots)):
        key, length = keys.data.ctypes.data + keys.begin[i], keys.end[i] - keys.begin[i]
        slots[i] = find(index, hash_of(index, key, length), key, length, now, now)
    return slots


def test_bound_keys_have_their_slots_and_the_holes_are_filled_from_below() -> None:
    series = store(10)
    series.lookup(Keys.of([b"y", b"x", b"w"]))
    for slot, name in ((7, b"x"), (2, b"y"), (0, b"z")):  # w had 2, y had 0
        series.bind(slot, name)
    series.arrange()
    assert series.keys(series.slots) == [b"z", b"y", b"x"]
    assert series.slots.tolist() == [0, 2, 7]
    found = series.lookup(Keys.of([b"w", b"x", b"a", b"y", b"b", b"z"]))
    assert found.tolist() == [1, 7, 3, 2, 4, 0]


def test_who_ended_is_closed_unless_it_speaks_again() -> None:
    series = store(4)
    seen = np.zeros(4, np.int64)
    series.lookup(Keys.of([b"a", b"b", b"c", b"d"]))
    series.arrange()
    for slot in (0, 1, 2, 1):
        end(series.index, slot)
    seen[2] = 1
    close(series.index, np.array([1, 3, 1], np.int32), seen)
    assert series.keys(series.slots) == [b"b", b"c", b"d"]
    assert series.evicted["ended"] == 3
    assert series.index.changes.slots[: series.index.changes.length[0]].tolist() == [0]
    assert (series.index.changes.marks & ~CHANGED == 0).all()
    close(series.index, np.zeros(0, np.int32), seen)
    assert series.active == 3


def test_counts_are_by_reason() -> None:
    series = store(4)
    series.lookup(Keys.of([b"a", b"b", b"c"]))
    series.release(np.array([0, 1], np.int32), FULL)
    series.release(np.array([2], np.int32), ENDED)
    assert series.evicted == {"full": 2, "idle": 0, "ended": 1}
    assert (series.started, series.active) == (3, 0)
    assert bytes(series.index.latest).rstrip(b"\0") == b"c"


def test_warming_up_leaves_those_there_are_where_they_were() -> None:
    series = store(4)
    for now, key in enumerate([b"b", b"a", b"c", b"b"], 1):
        take(series, key, now)
    series.state["heard"][:3] = [3, 1, 2]
    series.warm_up()
    assert idle_first(series) == [b"a", b"c", b"b"]
    assert (series.slots.tolist(), series.started) == ([0, 1, 2], 3)
