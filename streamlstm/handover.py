"""Another model takes over the series of an engine, which meanwhile goes on with all its ticks.

Series are handed over some at a time, between two batches: with all of their state where both
models keep the same, else by their latest ticks, which the new model is run over from a cold start.
From then on a series' ticks move both. What becomes of a series is thus what it was when it was
handed over, and its ticks since; once all are, the new engine can take the place of the old one at
any moment, with the same slots.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.engine import Engine
from streamlstm.model import ModelError
from streamlstm.state_schema import schema_of
from streamlstm.ticks import Ticks


class Handover:
    """Two engines of which one follows the other.

    Attributes:
        old, new: the engines.
        keeps: whether states are kept.
        lost: whether a series came back from elsewhere to the old one that the new one knows only
            by its latest ticks: what the journal has of it is not for the new one.
    """

    def __init__(self, old: Engine, new: Engine) -> None:
        """Begin; ``new`` is fresh, and opened as ``old`` was but for the model.

        Raises:
            ModelError: it takes other ticks.
        """
        takes, before = new.model.spec.inputs, old.model.spec.inputs
        if takes != before:
            raise ModelError(
                f"model {new.model.id} takes {takes} values a tick, the one that serves {before};"
                " start a daemon of its own for it"
            )
        self.old, self.new = old, new
        self.keeps, self.lost = schema_of(old) == schema_of(new), False
        self._next = 0

    @property
    def done(self) -> bool:
        """Whether all series are handed over; those that begin from then on begin in both."""
        return self._next == self.old.series.capacity

    def advance(self) -> None:
        """Hand the next series over, about as many as there are ticks in a batch."""
        series, ticks = self.old.series, 1 if self.keeps else max(1, self.new.history)
        end = min(series.used, self._next + max(1, self.new.max_batch // ticks))
        slots = np.arange(self._next, end, dtype=np.int32)
        self._hand_over(slots[series.index.lengths[slots] > 0])
        self._next = end if end < series.used else series.capacity

    def prepare(self) -> None:
        """See to the slots that changed hands since the latest batch; before each is journalled."""
        changes = self.old.series.index.changes
        slots = changes.slots[: changes.length[0]]
        slots = slots[slots < self._next]
        if not len(slots):
            return
        mine, its = self.new.series.index.lengths, self.old.series.index.lengths
        self.new.series.release(slots[mine[slots] > 0])
        there = slots[its[slots] > 0]
        self.lost |= not self.keeps and bool(self.old.moved(there).any())
        self._hand_over(there)

    def follow(self, ticks: Ticks, now: int) -> None:
        """Step those of the old engine's ticks that are of series handed over."""
        known = ticks.slot < self._next
        slot, ts, values, flags = ticks
        self.new.step(Ticks(slot[known], ts[known], values[known], flags[known]), now)
        self.new.take_ended()  # closed as the old one closes them

    def settle(self) -> None:
        """Let the new engine count on, and take and give slots, where the old one leaves off."""
        self.prepare()
        mine, its = self.new.series.index, self.old.series.index
        pairs: list[tuple[NDArray[Any], NDArray[Any]]] = [
            (mine.counts, its.counts),
            (mine.free, its.free),
            (mine.closing, its.closing),
            (mine.links, its.links),
            (mine.placed, its.placed),
            (mine.latest, its.latest),
        ]
        pairs += zip(mine.changes, its.changes, strict=True)
        pairs += zip(self.new.work.counts, self.old.work.counts, strict=True)
        pairs.append((self.new.work.quality.alarms, self.old.work.quality.alarms))
        if self.new.scores.keys() == self.old.scores.keys():
            pairs += zip(self.new.work.quality.sums, self.old.work.quality.sums, strict=True)
        for one, other in pairs:
            one[:] = other

    def _hand_over(self, slots: NDArray[np.int32]) -> None:
        if not len(slots):
            return
        old, new = self.old, self.new
        index = old.series.index
        new.series.restore(index.names[slots], index.lengths[slots], slots)
        if self.keeps:
            new.set_records(slots, *old.records(slots))
        else:
            new.begin_with(
                slots, old.work.seq[slots], old.work.clock.heard[slots], old.recent(slots)
            )
