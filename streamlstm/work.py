"""What the compiled stages of a step look at and write to."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm import adapt, features, intervals
from streamlstm.index import Index
from streamlstm.policies import Clock, Counts, Rules
from streamlstm.quality import Quality
from streamlstm.ticks import Forecasts, Ticks
from streamlstm.watch import Watched

DROPPED, FAULTY, TAKEN = range(3)
"""What becomes of a tick; ``FAULTY``: what it led to is not finite."""
NEXT, ROUNDS, JUDGED, SINGLY, PART, COUNT = range(6)
"""Words of :attr:`Schedule.progress`: the next round, of how many, up to which
they are judged (0: not the next), whether one by one; how many rounds the part at hand has; how
many ticks were taken in the end."""


class Schedule(NamedTuple):
    """How a batch is computed, a part after the other."""

    order: NDArray[np.int64]
    """(n,) all ticks, round after round, in the first those of series that occur once"""
    starts: NDArray[np.int64]
    """(rounds + 1,) where each round begins in it; within one, slots are unique"""
    fate: NDArray[np.uint8]
    """(n,) of each tick"""
    steps: NDArray[np.int64]
    """(n,) of each tick: grid steps since the tick before it in its series"""
    missing: NDArray[np.int64]
    """(n,) of each tick: grid points still to be stepped before it"""
    ahead: NDArray[np.int64]
    """(n,) of each tick: its steps, or those of the first of these grid points"""
    tick: NDArray[np.int64]
    """(rows,) of the part at hand, the ticks in computing order"""
    slot: NDArray[np.int32]
    """(rows,) their series"""
    place: NDArray[np.int64]
    """(rows,) their places in their series"""
    bounds: NDArray[np.int64]
    """(rounds + 1,) where each round of the part begins, of which only the first may be empty"""
    anew: NDArray[np.int32]
    """(n,) the series whose kernels' state is to be cleared before the part"""
    progress: NDArray[np.int64]
    """(words,)"""
    faults: NDArray[np.uint8]
    """(1,) whether a tick of the part turned out ``FAULTY``"""

    @classmethod
    def empty(cls, n: int) -> "Schedule":
        """Room for ``n`` ticks."""
        return cls(
            order=np.zeros(n, np.int64),
            starts=np.zeros(n + 4, np.int64),
            fate=np.zeros(n, np.uint8),
            steps=np.zeros(n, np.int64),
            missing=np.zeros(n, np.int64),
            ahead=np.zeros(n, np.int64),
            tick=np.zeros(n, np.int64),
            slot=np.zeros(n, np.int32),
            place=np.zeros(n, np.int64),
            bounds=np.zeros(n + 2, np.int64),
            anew=np.zeros(n, np.int32),
            progress=np.zeros(COUNT + 1, np.int64),
            faults=np.zeros(1, np.uint8),
        )


class Latest(NamedTuple):
    """The latest prediction of each series, for those who ask for it later."""

    kept: bool
    """else nothing of it means anything"""
    latest_seq: NDArray[np.int64]
    """(series,) 0: there is none"""
    latest_ts: NDArray[np.int64]
    """(series,)"""
    latest: NDArray[np.float64]
    """(series, 1 + 2 * coverages, horizon, targets): forecast, lower and upper ends"""
    latest_quality: NDArray[np.float64]
    """(series, measures) as :attr:`Forecasts.quality`"""


class Recent(NamedTuple):
    """The latest ticks of each series since it began, for another model to begin from."""

    recent: NDArray[np.int64]
    """(series, history, 1 + inputs) a ring: time, and the bits of the values, NaN where missing"""
    recent_count: NDArray[np.int64]
    """(series,) ticks that were written there"""


class Given(NamedTuple):
    """Ticks as the stages take them."""

    ticks: Ticks
    observed: NDArray[np.float64]
    """(n, inputs) their values, but NaN where one is missing"""


class Work(NamedTuple):
    """All that the compiled stages of a step look at and write to."""

    features: features.Plan
    intervals: intervals.Plan
    rules: Rules
    slots: Index
    clock: Clock
    memory: features.Memory
    bands: intervals.Bands
    lessons: adapt.Plan
    learned: adapt.Learned
    seq: NDArray[np.int64]
    """(series,) predictions made of each"""
    latest: Latest
    expected: NDArray[np.float64]
    """(series, inputs) what is taken for a value that is missing"""
    recent: Recent
    recurrent: NDArray[np.float32]
    """(series, floats) the kernels' state of each, or (0, floats) where it lies on a device"""
    unbounded: bool
    """whether it lies here, and can become infinite"""
    rows: features.Rows
    schedule: Schedule
    outputs: NDArray[np.float32]
    """(n, answers) of the network"""
    forecasts: Forecasts
    """(n, ...) of the tick in the same row, until those that are not published are left out"""
    values: NDArray[np.float64]
    """(n, inputs) as policies left them, where rounds are judged one by one"""
    given: Given
    """and then the ticks that the stages take"""
    counts: Counts
    quality: Quality
    watched: Watched
    hashes: NDArray[np.uint64]
    """(n,) of the keys of a batch"""
    found: NDArray[np.int32]
    """(n,) their slots, or ``UNKNOWN`` and so on"""
    forgotten: int
    """first byte of a record that is forgotten where a series begins anew"""
    told: NDArray[np.float32]
    """(series, floats) kernels' states of those that came back, at least, for the journal"""
    dropped: NDArray[np.uint8]
    """(reasons, max_key) the series of the latest tick dropped for each of them, zero-padded"""


class Batch(NamedTuple):
    """What the stages of a row are given, by the address of it."""

    given: Given
    work: Work
