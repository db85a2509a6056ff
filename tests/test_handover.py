"""Another model goes on where the one before it leaves off, and loses no tick."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamlstm import offline
from streamlstm.engine import Engine
from streamlstm.events import told
from streamlstm.handover import Handover
from streamlstm.model import Model
from streamlstm.ticks import END, RESET, WARM, Arrivals, Keys, Ticks
from tests.models import HOUR, random_model

NAMES = [b"a", b"b", b"c", b"d", b"e", b"f"]
HISTORY = 4
Life = tuple[int, float, int]
"""A tick: its time, value and flags."""
Batch = list[tuple[bytes, int]]
A, RETRAINED = random_model(0), random_model(1)
WIDER, GATED = random_model(2, hidden=24, horizon=5, lags=(1, 3)), random_model(3, cell="gru")


def opened(model: Model, **options: object) -> Engine:
    settings = {"max_series": 4, "max_batch": 16, "history": HISTORY, "ordered": True} | options
    return Engine(model, threads=1, **settings)  # type: ignore[arg-type]


def arrivals(names: list[bytes], hour: int, flags: list[int]) -> Arrivals:
    ts = HOUR * (1 + hour + np.arange(len(names)))
    values = np.array(
        [[name[0] + np.sin(0.3 * t * t)] for name, t in zip(names, ts // HOUR, strict=True)]
    )
    return Arrivals(Keys.of(names), ts, values.reshape(-1, 1), np.array(flags, np.uint8))


def of(engine: Engine, name: bytes) -> dict[str, bytes]:
    """All bits of a series."""
    slots = engine.series.lookup(Keys.of([name]))
    return {field: rows.tobytes() for field, rows in offline.fields_of(engine, slots).items()}


batches = st.lists(
    st.lists(
        st.tuples(st.sampled_from(NAMES), st.sampled_from([0, 0, 0, 0, WARM, RESET, END])),
        min_size=1,
        max_size=8,
    ),
    min_size=1,
    max_size=8,
)


class Told(Handover):
    """One that writes down how many ticks each slot had had when it was handed over."""

    def __init__(self, old: Engine, new: Engine, lives: dict[int, list[Life]]) -> None:
        super().__init__(old, new)
        self.lives, self.at = lives, dict[int, int]()

    def _hand_over(self, slots: NDArray[np.int32]) -> None:
        super()._hand_over(slots)
        self.at |= {slot: len(self.lives.get(slot, ())) for slot in slots.tolist()}


def expected(life: list[Life], at: int, model: Model) -> dict[str, bytes]:
    """What a series comes to that was handed over after so many of its ticks, by fresh engines."""
    old, new = opened(A), opened(model)
    slots = old.series.lookup(Keys.of([b"x"]))
    new.series.lookup(Keys.of([b"x"]))
    feed(old, life[:at])
    if model is RETRAINED:
        new.set_records(slots, *old.records(slots))
    else:
        begins = max((k + (flags & END > 0) for k, (*_, flags) in enumerate(life[:at])
                      if flags & (RESET | END)), default=0)  # fmt: skip
        feed(new, [(ts, value, WARM) for ts, value, _ in life[begins:at][-HISTORY:]])
        new.work.seq[slots], new.work.clock.heard[slots] = old.work.seq[slots], 7
    feed(new, life[at:])
    return of(new, b"x")


def feed(engine: Engine, life: list[Life]) -> None:
    for ts, value, flags in life:
        engine.step(
            Ticks(
                np.zeros(1, np.int32),
                np.array([ts]),
                np.array([[value]]),
                np.array([flags], np.uint8),
            ),
            7,
        )
        engine.take_ended()


@pytest.mark.parametrize("model", [RETRAINED, WIDER, GATED], ids=["retrained", "wider", "gated"])
@given(before=batches, during=batches, after=batches)
@settings(max_examples=25)
def test_it_comes_to_what_each_series_was_and_its_ticks_since(
    model: Model, before: list[Batch], during: list[Batch], after: list[Batch]
) -> None:
    """Whoever comes, starts anew, ends and is evicted meanwhile."""
    old, new = opened(A, evict=True), opened(model, evict=True)
    lives: dict[int, list[Life]] = {}
    handover, hour = Told(old, new, lives), 0
    for number, batch in enumerate([*before, *during]):
        names, flags = zip(*batch, strict=True)
        ticks = old.place(arrivals([*names], hour, [*flags]))
        hour += len(names)
        changes = old.series.index.changes
        for slot in changes.slots[: changes.length[0]].tolist():
            lives[slot] = []
        if number >= len(before):
            handover.advance()
        handover.prepare()
        told(changes)
        old.step(ticks, 7)
        handover.follow(ticks, 7)
        for slot, ts, (value,), flag in zip(*(column.tolist() for column in ticks), strict=True):
            lives.setdefault(slot, []).append((ts, value, flag))
    while not handover.done:
        handover.advance()
    old.close()
    handover.settle()
    new._moment = old._moment  # a daemon has them of its clock
    for batch in after:
        names, flags = zip(*batch, strict=True)
        said = arrivals([*names], hour, [*flags])
        hour += len(names)
        ticks, theirs = new.place(said), old.place(said)
        np.testing.assert_array_equal(ticks.slot, theirs.slot)
        changes = new.series.index.changes
        for slot in changes.slots[: changes.length[0]].tolist():
            lives[slot], handover.at[slot] = [], 0
        told(changes)
        new.step(ticks, 7)
        old.step(theirs, 7)
        for slot, ts, (value,), flag in zip(*(column.tolist() for column in ticks), strict=True):
            lives.setdefault(slot, []).append((ts, value, flag))
    assert new.series.keys(new.series.slots) == old.series.keys(old.series.slots)
    for slot in new.series.slots.tolist():
        (name,) = new.series.keys(np.array([slot], np.int32))
        assert of(new, name) == expected(lives[slot], handover.at[slot], model), name
