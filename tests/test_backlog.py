"""Ticks that wait, against a plain list; and what becomes of them when there are too many."""

from collections.abc import Sequence
from typing import NamedTuple, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlstm.backlog import Backlog, Policy, add, make_room
from streamlstm.ticks import END, RESET

POLICIES = get_args(Policy)
SERIES, INPUTS = 5, 2


class Tick(NamedTuple):
    """One that waits."""

    slot: int
    ts: int
    values: tuple[float, ...]
    flag: int
    taken: int


def put(backlog: Backlog, ticks: Sequence[Tick]) -> None:
    """As the loop does: write where there is room, then let them wait."""
    at, room = make_room(backlog.queue), backlog.queue.ticks
    for i, tick in enumerate(ticks):
        room.slot[at + i], room.ts[at + i], room.flags[at + i] = tick.slot, tick.ts, tick.flag
        room.values[at + i] = tick.values
    add(backlog.queue, len(ticks), ticks[0].taken if ticks else 0)


def take(backlog: Backlog) -> tuple[list[tuple[int, int, tuple[float, ...], int]], int]:
    ticks, taken = backlog.first()
    backlog.drop(len(ticks.ts))
    columns = ticks.slot.tolist(), ticks.ts.tolist(), map(tuple, ticks.values), ticks.flags.tolist()
    return list(zip(*columns, strict=True)), taken


class Plain:
    """The policies by their words."""

    def __init__(self, policy: Policy, most: int, batch: int) -> None:
        self.policy, self.most, self.batch = policy, most, batch
        self.waiting: list[Tick] = []
        self.dropped = self.coalesced = 0

    def put(self, ticks: Sequence[Tick]) -> None:
        together = [*self.waiting, *ticks]
        if self.policy == "coalesce" and len(together) > self.most:
            of_series = [[t for t in together if t.slot == slot] for slot in range(SERIES)]
            best = [max(ticks, key=lambda tick: tick.ts) for ticks in of_series if ticks]
            stay = [t for t in together if t in best or t.flag & (RESET | END)]
            self.coalesced += len(together) - len(stay)
            together = stay
        if self.policy != "block" and len(together) > self.most:
            self.dropped += len(together) - self.most
            newest = self.policy == "drop_newest"
            together = together[: self.most] if newest else together[-self.most :]
        self.waiting = together

    def take(self) -> list[Tick]:
        taken, self.waiting = self.waiting[: self.batch], self.waiting[self.batch :]
        return taken


SLOTS = st.integers(0, SERIES - 1)


@given(
    st.sampled_from(POLICIES),
    st.integers(1, 12),
    st.integers(1, 6),
    st.lists(st.none() | st.lists(SLOTS, max_size=6), max_size=60),
)
@settings(max_examples=300)
def test_it_is_as_a_list_would_be(
    policy: Policy, most: int, batch: int, moves: list[list[int] | None]
) -> None:
    """``moves``: series of the ticks that come, or None where a batch of those waiting goes."""
    backlog, plain = Backlog(policy, most, batch, INPUTS, SERIES, batch), Plain(policy, most, batch)
    rng = np.random.default_rng(len(moves))
    came = gone = 0
    for now, slots in enumerate(moves):
        if slots is None or (policy == "block" and plain.waiting):
            wanted = plain.take()
            found, taken = take(backlog)
            assert found == [(slot, ts, values, flag) for slot, ts, values, flag, _ in wanted]
            assert not wanted or taken == wanted[0].taken
            gone += len(found)
        else:
            ticks = [
                Tick(
                    slot,
                    came + i + int(rng.integers(-4, 4)),
                    tuple(rng.normal(size=INPUTS)),
                    int(rng.integers(8)),
                    now,
                )
                for i, slot in enumerate(slots[:batch])
            ]
            put(backlog, ticks)
            plain.put(ticks)
            came += len(ticks)
        assert len(backlog) == len(plain.waiting) <= max(most, batch if policy == "block" else 0)
        assert (backlog.dropped, backlog.coalesced) == (plain.dropped, plain.coalesced)
        assert came == gone + backlog.dropped + backlog.coalesced + len(backlog)


def ticks(*slots: int, begin: int = 0) -> list[Tick]:
    return [Tick(slot, begin + i, (0.0, 0.0), 0, 7) for i, slot in enumerate(slots)]


@pytest.mark.parametrize(
    ("policy", "left", "dropped", "coalesced"),
    [
        ("drop_newest", [0, 1, 2], 3, 0),
        ("drop_oldest", [3, 4, 5], 3, 0),
        ("coalesce", [2, 4, 5], 0, 3),
    ],
)
def test_of_six_ticks_three_stay(
    policy: Policy, left: list[int], dropped: int, coalesced: int
) -> None:
    backlog = Backlog(policy, 3, 6, INPUTS, SERIES, 6)
    put(backlog, ticks(0, 1, 2, 0, 1, 0))
    assert [ts for _, ts, _, _ in take(backlog)[0]] == left
    assert (backlog.dropped, backlog.coalesced) == (dropped, coalesced)


def test_no_message_that_a_series_begins_anew_or_ends_is_skipped() -> None:
    backlog = Backlog("coalesce", 4, 6, INPUTS, SERIES, 6)
    flags = 0, RESET, 0, 0, END, 0
    put(backlog, [t._replace(flag=flags[t.ts]) for t in ticks(0, 0, 0, 1, 1, 2)])
    assert [ts for _, ts, _, _ in take(backlog)[0]] == [1, 2, 4, 5]


def test_as_long_as_they_fit_none_is_coalesced() -> None:
    backlog = Backlog("coalesce", 6, 6, INPUTS, SERIES, 6)
    put(backlog, ticks(0, 0, 0, 0, 0, 0))
    assert len(backlog) == 6
    put(backlog, ticks(1, begin=6))
    assert [ts for _, ts, _, _ in take(backlog)[0]] == [5, 6]


def test_coalescing_drops_where_there_are_more_series_than_room() -> None:
    backlog = Backlog("coalesce", 2, 6, INPUTS, SERIES, 6)
    put(backlog, ticks(0, 1, 2, 3, 4, 0))
    assert [ts for _, ts, _, _ in take(backlog)[0]] == [4, 5]
    assert (backlog.dropped, backlog.coalesced) == (3, 1)


def test_nothing_waits_at_first() -> None:
    backlog = Backlog("block", 0, 3, INPUTS, SERIES, 3)
    assert take(backlog)[0] == []
    assert len(backlog) == backlog.dropped == backlog.coalesced == 0
