"""Ticks taken from the input and not yet stepped, and what becomes of them when there are too many.

``block``       no more are taken while any waits here: the senders' queues fill
``drop_newest`` those that came last are dropped
``drop_oldest`` those that came first are dropped
``coalesce``    of each series the tick of the latest moment stays, and those that reset or end it;
                if these are too many too, those that came first are dropped
"""

from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from streamlstm.jit import njit
from streamlstm.placed import placed
from streamlstm.ticks import END, RESET, Ticks, rows_of

Policy = Literal["block", "drop_newest", "drop_oldest", "coalesce"]
BLOCK, DROP_NEWEST, DROP_OLDEST, COALESCE = range(len(get_args(Policy)))


class Queue(NamedTuple):
    """Ticks that wait, in order: rows ``bounds[0]:bounds[1]`` of ``ticks``."""

    policy: int
    most: int
    """that may wait; where ``BLOCK``, none before more are taken"""
    batch: int
    """ticks added at once, at most"""
    ticks: Ticks
    taken: NDArray[np.int64]
    """(rows,) ns of the monotonic clock when each was taken from the input"""
    bounds: NDArray[np.int64]
    """(2,)"""
    latest: NDArray[np.int32]
    """(series,) where the latest tick of each lies; used where ``COALESCE``"""
    counts: NDArray[np.int64]
    """(2,) ticks dropped, ticks coalesced"""


class Backlog:
    """A queue of ticks, for the compiled functions below."""

    def __init__(
        self, policy: Policy, most: int, batch: int, inputs: int, series: int, read: int
    ) -> None:
        """Keep ``most`` ticks waiting, of slots below ``series``; ``batch`` are added at once.

        Where it blocks there is room for ``read``, which come together.
        """
        kind = get_args(Policy).index(policy)
        most = 0 if kind == BLOCK else most
        rows = max(2 * most + batch, -(-read // batch) * batch)
        self.queue = placed(
            Queue(
                kind,
                most,
                batch,
                Ticks.room(rows, inputs),
                np.zeros(rows, np.int64),
                np.zeros(2, np.int64),
                np.zeros(series if kind == COALESCE else 0, np.int32),
                np.zeros(2, np.int64),
            )
        )

    def __len__(self) -> int:
        """Ticks that wait."""
        begin, end = self.queue.bounds.tolist()
        return int(end - begin)

    def first(self) -> tuple[Ticks, int]:
        """Up to ``batch`` of them, the first, and when the very first was taken, ns."""
        queue = self.queue
        begin, end = queue.bounds.tolist()
        end = min(end, begin + queue.batch)
        return rows_of(queue.ticks, begin, end), int(queue.taken[begin % len(queue.taken)])

    @property
    def waiting(self) -> Ticks:
        """All of them."""
        begin, end = self.queue.bounds.tolist()
        return rows_of(self.queue.ticks, begin, end)

    def drop(self, count: int) -> None:
        """The first ``count`` wait no more; they stay readable until others are added."""
        self.queue.bounds[0] += count

    @property
    def dropped(self) -> int:
        """Ticks dropped because too many waited."""
        return int(self.queue.counts[0])

    @property
    def coalesced(self) -> int:
        """Ticks skipped because a later one of their series waited."""
        return int(self.queue.counts[1])


# --- compiled -------------------------------------------------------------------------------------


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def make_room(queue: Queue) -> int:
    """The row from which on ``batch`` ticks may be written, before :func:`add`."""
    begin, end = queue.bounds[0], queue.bounds[1]
    if begin == end:
        queue.bounds[:] = 0
    elif end + queue.batch > len(queue.taken):
        for row in range(begin, end):
            _move(queue, row, row - begin)
        queue.bounds[0], queue.bounds[1] = 0, end - begin
    return int(queue.bounds[1])


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def add(queue: Queue, count: int, now: int) -> None:
    """Let ``count`` ticks written there wait, taken at ``now``; too many of them go."""
    begin, end = queue.bounds[0], queue.bounds[1] + count
    queue.taken[end - count : end] = now
    excess = end - begin - queue.most
    if queue.policy != BLOCK and excess > 0:
        if queue.policy == COALESCE:
            kept = _coalesce(queue, begin, end)
            queue.counts[1] += end - kept
            excess, end = excess - (end - kept), kept
        excess = max(excess, 0)
        queue.counts[0] += excess
        if queue.policy == DROP_NEWEST:
            end -= excess
        else:
            begin += excess
    queue.bounds[0], queue.bounds[1] = begin, end


@njit(cache=True, error_model="numpy", _nrt=False)
def _coalesce(queue: Queue, begin: int, end: int) -> int:
    """Close up what stays of each series; where they end."""
    slot, ts = queue.ticks.slot, queue.ticks.ts
    for row in range(begin, end):
        best = queue.latest[slot[row]]  # of this series in these rows, or left from before
        known = begin <= best < row and slot[best] == slot[row]
        if not known or ts[row] > ts[best]:
            queue.latest[slot[row]] = row
    kept = begin
    for row in range(begin, end):
        if queue.latest[slot[row]] == row or queue.ticks.flags[row] & (RESET | END):
            _move(queue, row, kept)
            kept += 1
    return kept


@njit(cache=True, error_model="numpy", _nrt=False)
def _move(queue: Queue, row: int, to: int) -> None:
    ticks = queue.ticks
    ticks.slot[to], ticks.ts[to], ticks.flags[to] = ticks.slot[row], ticks.ts[row], ticks.flags[row]
    for k in range(ticks.values.shape[1]):
        ticks.values[to, k] = ticks.values[row, k]
    queue.taken[to] = queue.taken[row]
