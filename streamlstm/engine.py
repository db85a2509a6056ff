"""step(ticks, now) -> forecasts: a pure function of the store and the batch.

First all ticks are admitted: policies, and rounds in which no series occurs twice. Then the kernels
move the rows of a round, a tile at a time and shared between threads, and call back before a tile
(features) and after it (raw units and intervals), while it is near. Rounds keep arrival order, so
what a series becomes does not depend on the batch it came in.
"""

import importlib
import importlib.util
import os
from collections.abc import Iterator
from itertools import pairwise
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from streamlstm import features, intervals
from streamlstm.copy_on_write import preserve
from streamlstm.events import Events
from streamlstm.golden import check_golden, network_of
from streamlstm.index import CLOSES, CLOSING, LINE, Index, approach, close, end, find, seek, touch
from streamlstm.kernels import cpu
from streamlstm.kernels.cell import BackendError, Stages
from streamlstm.memory import (
    Fields,
    address_of,
    clear,
    copy,
    load_value,
    pointer_to,
    prefetch,
    records,
    size_of,
    store_value,
)
from streamlstm.model import Model, ModelError, Spec
from streamlstm.series import Series, bytes_per_series
from streamlstm.ticks import END, RESET, WARM, Arrivals, Forecasts, Keys, Ticks, first, rows_of

BACKENDS = ("cpu", "cuda", "auto")
DROPS = ("nonfinite", "out_of_range", "late", "duplicate", "series_limit")
"""Reasons for which the engine drops a tick; ``series_limit``: no room for its series."""
NONFINITE, LATE, DUPLICATE, SERIES_LIMIT = 0, 2, 3, 4
MOMENT = 1 << 62
"""Nanoseconds from 1970 beyond which no timestamp is taken: their differences would overflow."""
LIMIT = 1e37
"""Largest absolute value taken: beyond it float32 state would overflow."""


UNKNOWN, MESSAGE, DROPPED = -1, -2, -3
"""What :func:`meet` finds instead of a slot: a series to be begun; none, and none is to be, since
the tick is but a message to end or reset it; a tick to be dropped, or below for further reasons."""
ANEW, OVER = np.uint8(1), np.uint8(2)
"""A series is to start anew, its numbers going on; from nothing at all."""
AHEAD = 16
"""Series whose records are on their way to the cache while one is worked on."""


class Clock(NamedTuple):
    """What admission looks at in each series."""

    last_ts: NDArray[np.int64]
    """(series,) of the latest tick taken"""
    seen: NDArray[np.int64]
    """(series,) ticks taken in the batches before"""
    rank: NDArray[np.int32]
    """(series,) ticks taken in the batch at hand; 0 between batches"""
    anew: NDArray[np.uint8]
    """(series,) ``ANEW`` or ``OVER`` before its next tick in the batch at hand; 0 between them"""
    heard: NDArray[np.int64]
    """(series,) ns since the epoch when the latest tick taken was stepped; no other state hangs on
    it"""


class Schedule(NamedTuple):
    """How a batch is to be computed."""

    round: NDArray[np.int64]
    """(n,) of each tick; -1: dropped"""
    steps: NDArray[np.int64]
    """(n,) of each tick: grid steps since the tick before it in its series"""
    row: NDArray[np.int64]
    """(n,) of each tick: where its forecast goes; those that are not published from the end down"""
    tick: NDArray[np.int64]
    """(taken,) the ticks in computing order, round after round"""
    slot: NDArray[np.int32]
    """(taken,) their series"""
    place: NDArray[np.int64]
    """(taken,) their places in their series"""
    bounds: NDArray[np.int64]
    """(rounds + 1,) where each round begins; within one, slots are unique"""
    anew: NDArray[np.uint8]
    """(n,) of each tick: what its series does before it, as ``Clock.anew``"""
    over: NDArray[np.int32]
    """(n,) series that are to start anew after the batch, but for those that have done so in it"""
    over_count: NDArray[np.int64]
    """(1,) how many"""

    @classmethod
    def empty(cls, n: int) -> "Schedule":
        """Room for ``n`` ticks."""
        return cls(
            np.zeros(n, np.int64),
            np.zeros(n, np.int64),
            np.zeros(n, np.int64),
            np.zeros(n, np.int64),
            np.zeros(n, np.int32),
            np.zeros(n, np.int64),
            np.zeros(n + 2, np.int64),
            np.zeros(n, np.uint8),
            np.zeros(n, np.int32),
            np.zeros(1, np.int64),
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
    """(series, 3, horizon, targets): forecast, lower and upper end"""


class Work(NamedTuple):
    """All that the compiled stages of a step look at and write to."""

    features: features.Plan
    intervals: intervals.Plan
    slots: Index
    clock: Clock
    memory: features.Memory
    bands: intervals.Bands
    seq: NDArray[np.int64]
    """(series,) predictions made of each"""
    latest: Latest
    rows: features.Rows
    schedule: Schedule
    outputs: NDArray[np.float32]
    """(n, outputs) of the network"""
    forecasts: Forecasts
    drops: NDArray[np.int64]
    """(reasons,)"""
    gaps: NDArray[np.int64]
    """(1,)"""
    hashes: NDArray[np.uint64]
    """(n,) of the keys of a batch"""
    found: NDArray[np.int32]
    """(n,) their slots, or ``UNKNOWN`` and so on"""
    recurrent: NDArray[np.float32]
    """(series, floats) the kernels' state of each, or (0, floats) where it lies on a device"""
    begin: int
    """first byte of a record that is forgotten where a series starts anew"""
    events: Events


class Batch(NamedTuple):
    """What the stages of a row are given, by the address of it."""

    ticks: Ticks
    work: Work


class Engine:
    """A model, the series that it moves, and room for a batch.

    Attributes:
        work: what the compiled stages are given.
        stages: of them those that the kernels call, and where they find what :func:`admit` left.
        taken: ticks that :meth:`step` took last, those without a forecast included.
    """

    def __init__(
        self,
        model: Model,
        *,
        backend: str = "cpu",
        max_series: int = 100_000,
        max_batch: int = 1024,
        coverage: float = 0.9,
        threads: int = 0,
        max_key: int = 64,
        ordered: bool = False,
        evict: bool = False,
        keep_latest: bool = False,
    ) -> None:
        """Open ``model``: its golden trajectory is repeated on the backend.

        ``ordered`` and ``evict`` are as for :class:`streamlstm.series.Series`. With
        ``keep_latest``, the latest prediction of each series is part of its state.

        Raises:
            ModelError: the golden deviates, or ``max_series`` series do not fit in memory.
            BackendError: the backend cannot run here, or not this model.
            ValueError: unknown backend.
        """
        self.backend, self.backend_reason, self.kernels = open_backend(backend)
        self.model = model
        self.max_batch, self.coverage = max_batch, coverage
        spec = model.spec
        bands = intervals.plan(spec.horizon, spec.targets, coverage, model.errors)
        latest = latest_fields(spec)
        fields = state_fields(spec, bands, keep_latest)
        network = network_of(spec, model.weights)
        self.bytes_per_series = {"recurrent": self.kernels.bytes_per_series(network)}
        self.bytes_per_series |= bytes_per_series(fields, max_series, max_key)
        _refuse_what_does_not_fit(sum(self.bytes_per_series.values()), max_series)
        check_golden(model, self.kernels)
        self.series = Series(fields, max_series, max_key, ordered=ordered, evict=evict)
        self.buffers = self.kernels.allocate(network, max_series, threads or None)
        state, index = self.series.state, self.series.index
        kept = state if keep_latest else records(latest, 1)
        recurrent = self.kernels.host_records(self.buffers)
        self._on_device = not len(recurrent)
        told = recurrent
        if self._on_device:  # of those that come back it is kept here too, for the journal
            told = np.zeros((max_series, recurrent.shape[1]), np.float32)
        self.work = Work(
            features.plan(spec),
            bands,
            index,
            Clock(*(state[name] for name in Clock._fields)),
            features.Memory(*(state[name] for name in features.Memory._fields)),
            intervals.Bands(*(state[name] for name in intervals.Bands._fields)),
            state["seq"],
            Latest(keep_latest, *(kept[name] for name in latest)),
            features.Rows.empty(spec, max_batch),
            Schedule.empty(max_batch),
            np.zeros((max_batch, spec.outputs), np.float32),
            Forecasts(
                np.zeros(max_batch, np.int32),
                np.zeros(max_batch, np.int64),
                np.zeros(max_batch, np.int64),
                np.zeros((max_batch, spec.horizon, spec.targets)),
                np.zeros((max_batch, 2, spec.horizon, spec.targets)),
            ),
            np.zeros(len(DROPS), np.int64),
            np.zeros(1, np.int64),
            np.zeros(max_batch, np.uint64),
            np.zeros(max_batch, np.int32),
            recurrent,
            self.series.offsets[features.Memory._fields[0]],
            Events(index.changes, self.series.names, index.records, index.begin, index.end, told),
        )
        self._ticks = Ticks.room(max_batch, spec.inputs)
        batch = Batch(self._ticks, self.work)
        self._batch = np.zeros(_room(batch), np.uint8)
        context = self._batch.ctypes.data
        _keep(context, batch)
        given = pointer_to(batch), 0, 0
        self.stages = Stages(address_of(_before, *given), address_of(_after, *given), context)
        self.taken = 0
        self._moment = 0

    @property
    def drops(self) -> dict[str, int]:
        """Ticks dropped since the engine was opened, by reason."""
        return dict(zip(DROPS, self.work.drops.tolist(), strict=True))

    @property
    def gaps(self) -> int:
        """Ticks that came after at least one was missed."""
        return int(self.work.gaps[0])

    def warm_up(self) -> None:
        """Compile all that :meth:`step` can need; no series is begun or moved."""
        self.kernels.warm_up(self.buffers)
        self.series.warm_up()  # of a checkpoint, at the next start
        nothing = np.zeros(0, np.int64)
        keys = Keys(np.zeros(0, np.uint8), nothing, nothing)
        values, flags = np.zeros((0, self.model.spec.inputs)), np.zeros(0, np.uint8)
        arrivals = Arrivals(keys, nothing, values, flags)
        meet(self.work, arrivals, 0)
        self.step(self.place(arrivals), 0)

    def place(self, arrivals: Arrivals) -> Ticks:
        """Find the series of each of at most ``max_batch`` ticks, or begin it.

        A tick that no series could take is dropped, and begins none; so is one for whose series
        there is no room. What is returned is valid until the next call, before which it is to be
        stepped.
        """
        self.close()
        self._moment += 1
        count = place(self.work, arrivals, self._ticks, 0, self._moment, self._moment)
        return rows_of(self._ticks, 0, count)

    def close(self, waiting: Ticks | None = None) -> None:
        """Take their slots from series that ended, but where a tick waits; they begin anew."""
        slots = self._ticks.slot[:0] if waiting is None else waiting.slot
        close(self.series.index, slots, self.work.clock.seen)

    @property
    def ended(self) -> NDArray[np.int32]:
        """Slots of series that ended and that :meth:`close` did not see to yet."""
        index = self.series.index
        return index.closing[: index.counts[CLOSING]].copy()

    def take_ended(self) -> NDArray[np.int32]:
        """The same, for those who see to it themselves."""
        index, slots = self.series.index, self.ended
        index.changes.marks[slots] &= ~CLOSES
        index.counts[CLOSING] = 0
        return slots

    def moved(self, slots: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Whether some series are more than names, (n,): a tick moved them, or was published."""
        return (self.work.clock.seen[slots] > 0) | (self.work.seq[slots] > 0)

    def records(self, slots: NDArray[np.int32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """All state of some series: their records, (n, bytes), and recurrent states, (n, ...)."""
        return self.series.records(slots), self.kernels.to_host(self.buffers, slots)

    def set_records(
        self,
        slots: NDArray[np.int32],
        records: NDArray[np.uint8],
        recurrent: NDArray[np.float32],
    ) -> None:
        """What :meth:`records` gave."""
        self.series.set_records(slots, records)
        self.kernels.from_host(self.buffers, slots, recurrent)

    def bring_back(
        self, key: bytes, records: NDArray[np.uint8], recurrent: NDArray[np.float32], now: int
    ) -> bool:
        """Give a slot to a key that has none, with what :meth:`records` gave, rows of one.

        False where no slot is free. ``now`` is the moment of its tick, as for :func:`place`.
        """
        if self.series.active == self.series.capacity:
            return False
        slots = self.series.lookup(Keys.of([key]))
        self.series.come_back(slots, now)
        self.set_records(slots, records, recurrent)
        self.work.events.recurrent[slots] = recurrent.reshape(1, -1)
        return True

    def parts(self, ticks: Ticks) -> Iterator[Ticks]:
        """The same ticks, as many at a time as :meth:`step` takes.

        On a device a series can only start anew between two batches.
        """
        cuts = set(range(0, len(ticks.slot), self.max_batch))
        if self._on_device:
            cuts |= set(np.flatnonzero(ticks.flags & RESET).tolist())
            cuts |= set((1 + np.flatnonzero(ticks.flags & (RESET | END))).tolist())
        for begin, stop in pairwise(sorted(cuts | {0, len(ticks.slot)})):
            yield rows_of(ticks, begin, stop)

    def step(self, ticks: Ticks, now: int) -> Forecasts:
        """Move each series by its ticks, in order of arrival, and forecast.

        Args:
            ticks: at most ``max_batch``, as :meth:`place` gives them.
            now: ns since the epoch.

        Returns:
            A row for each tick taken that was not ``WARM``; valid until the next call.
        """
        if len(ticks.slot) > self.max_batch:
            raise ValueError(f"{len(ticks.slot)} ticks exceed max_batch = {self.max_batch}")
        work = self.work
        self.taken, rounds, published = admit(work, ticks, self.stages.context, now)
        taken = self.taken
        if self._on_device:
            self._start_anew(taken)
        self.kernels.step(
            self.buffers,
            work.schedule.slot[:taken],
            work.rows.x[:taken],
            work.schedule.bounds[: rounds + 1],
            work.outputs[:taken],
            self.stages,
        )
        finish(work)
        return first(work.forecasts, published)

    def _start_anew(self, taken: int) -> None:
        """Forget what a device has of series that begin, as :func:`_before` does elsewhere."""
        schedule = self.work.schedule
        slots, anew = schedule.slot[:taken], schedule.anew[schedule.tick[:taken]]
        fresh = np.unique(slots[(anew > 0) | (self.work.clock.seen[slots] == 0)])
        if len(fresh):
            zeros = np.zeros((len(fresh), self.work.recurrent.shape[1]), np.float32)
            self.kernels.from_host(self.buffers, fresh, zeros)


def open_backend(name: str) -> tuple[str, str, ModuleType]:
    """The backend taken, why that one, and its kernels. A GPU is looked for where one is asked for.

    Raises:
        BackendError: its package is not installed.
        ValueError: unknown backend.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; there is: {', '.join(BACKENDS)}")
    if name == "cpu":
        return "cpu", "as asked", cpu
    if importlib.util.find_spec("numba_cuda") is None:
        if name == "auto":
            return "cpu", "numba-cuda is not installed", cpu
        raise BackendError(
            "backend 'cuda': numba-cuda is not installed; pip install 'streamlstm[cuda]'"
            " or set backend = 'cpu'"
        )
    cuda = importlib.import_module("streamlstm.kernels.cuda")
    if name == "cuda":
        return "cuda", "as asked", cuda
    reason = cuda.unusable()
    return ("cpu", f"no usable GPU ({reason})", cpu) if reason else ("cuda", "a GPU is there", cuda)


def state_fields(spec: Spec, bands: intervals.Plan, keep_latest: bool = False) -> Fields:
    """The one table of what a series keeps, but for its recurrent state, which is the kernels'."""
    return {
        "last_ts": (np.int64, ()),
        "rank": (np.int32, ()),
        "anew": (np.uint8, ()),
        "seq": (np.int64, ()),
        "heard": (np.int64, ()),
        **(latest_fields(spec) if keep_latest else {}),
        # from here on what a series forgets when it starts anew
        **features.memory_fields(spec),
        **intervals.bands_fields(bands),
    }


def latest_fields(spec: Spec) -> Fields:
    """What a series keeps of its latest prediction, in the order of :class:`Latest`."""
    return {
        "latest_seq": (np.int64, ()),
        "latest_ts": (np.int64, ()),
        "latest": (np.float64, (3, spec.horizon, spec.targets)),
    }


def _refuse_what_does_not_fit(declared: int, max_series: int) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if declared * max_series > memory:
        raise ModelError(
            f"max_series = {max_series} at {declared} bytes a series needs"
            f" {declared * max_series / 2**30:.1f} GiB, this machine has {memory / 2**30:.1f};"
            f" at most {memory // declared} fit"
        )


# _nrt=False: nothing here owns an array, and reference counts would cost more than the work.
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def meet(work: Work, arrivals: Arrivals, now: int) -> int:
    """Leave in ``work.found`` the slot of each arrival, or why it has none; how many are unknown.

    Those that are known are as of the moment ``now`` in the order of use, so that none of them has
    to make room for one that comes with it.
    """
    keys, data, unknown = arrivals.keys, arrivals.keys.data.ctypes.data, 0
    approach(work.slots, keys, work.hashes)
    for i in range(len(arrivals.ts)):
        reason = _fault(arrivals.values, i, arrivals.ts[i])
        message = arrivals.flags[i] & (RESET | END) != 0
        if reason >= 0 and not message:
            work.found[i] = DROPPED - reason
            continue
        slot = seek(work.slots, work.hashes[i], data + keys.begin[i], keys.end[i] - keys.begin[i])
        if slot >= 0:
            touch(work.slots, slot, now)
        elif reason < 0:
            slot, unknown = UNKNOWN, unknown + 1
        else:
            slot = MESSAGE if reason == NONFINITE else DROPPED - reason
        work.found[i] = slot
    return unknown


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def place(work: Work, arrivals: Arrivals, ticks: Ticks, at: int, now: int, oldest: int) -> int:
    """Write those arrivals that a series can take to ``ticks``, row ``at`` on; how many they are.

    As :meth:`Engine.place`. ``now`` is a moment that never falls, ``oldest`` that of the first of
    the ticks that wait to be stepped, or ``now``: no series with one from then on is evicted.
    """
    keys, data, begin = arrivals.keys, arrivals.keys.data.ctypes.data, at
    meet(work, arrivals, now)
    for i in range(len(arrivals.ts)):
        slot = int(work.found[i])
        if slot == UNKNOWN:
            key, length = data + keys.begin[i], keys.end[i] - keys.begin[i]
            slot = find(work.slots, work.hashes[i], key, length, now, oldest)
            if slot < 0:
                slot = DROPPED - SERIES_LIMIT
        if slot < 0:
            if slot <= DROPPED:
                work.drops[DROPPED - slot] += 1
            continue
        ticks.slot[at], ticks.ts[at] = slot, arrivals.ts[i]
        ticks.flags[at] = arrivals.flags[i]
        for k in range(arrivals.values.shape[1]):
            ticks.values[at, k] = arrivals.values[i, k]
        at += 1
    return at - begin


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def admit(work: Work, ticks: Ticks, context: int, now: int) -> tuple[int, int, int]:
    """Decide what is to be computed, and leave ``ticks`` for the stages of :attr:`Engine.stages`.

    Returns how many are taken, in how many rounds, and how many are to be published. Once they are
    stepped, :func:`finish` is to follow.
    """
    preserve(work.slots.shadow, ticks.slot)
    store_value(context, ticks)  # a `Batch` begins with them
    return _admit(
        work.features.step_ns, work.clock, ticks, work.schedule, work.drops, work.gaps, now
    )


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def finish(work: Work) -> None:
    """Forget what is to be forgotten after a batch: of series that ended, or are to start anew."""
    for k in range(work.schedule.over_count[0]):
        slot = int(work.schedule.over[k])
        anew = work.clock.anew[slot]
        if anew:
            work.clock.anew[slot] = 0
            _forget(work, slot, anew)
            if anew & OVER:
                end(work.slots, slot)


@njit(cache=True, error_model="numpy", _nrt=False)
def _forget(work: Work, slot: int, anew: np.uint8) -> None:
    """Let a series start anew; with ``OVER``, as if it had never been there.

    Its recurrent state is forgotten at its first tick.
    """
    index = work.slots
    begin = index.begin if anew & OVER else work.begin
    record = index.records.ctypes.data + slot * index.records.strides[0]
    clear(record + begin, index.end - begin)


@njit(cache=True)
def _room(batch: Batch) -> int:
    return size_of(batch)


@njit(cache=True)
def _keep(address: int, batch: Batch) -> None:
    store_value(address, batch)


# Compiled on their own, for the kernels to call by address.


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _before(batch: Batch, start: int, stop: int) -> None:
    """The stage before the network's: features."""
    ticks, work = load_value(batch)
    schedule = work.schedule
    for j in range(start, stop):
        slot, anew = schedule.slot[j], schedule.anew[schedule.tick[j]]
        if anew:
            last_ts, heard = work.clock.last_ts[slot], work.clock.heard[slot]
            to_come = work.clock.anew[slot]
            _forget(work, slot, anew)
            work.clock.last_ts[slot], work.clock.heard[slot] = last_ts, heard
            work.clock.anew[slot] = to_come
        if work.clock.seen[slot] == 0 and len(work.recurrent) > 0:
            record = work.recurrent.ctypes.data + slot * work.recurrent.strides[0]
            clear(record, work.recurrent.shape[1] * work.recurrent.itemsize)
    features.advance(
        work.features,
        work.memory,
        work.rows,
        schedule.tick,
        schedule.slot,
        schedule.steps,
        ticks.ts,
        ticks.values,
        schedule.place,
        start,
        stop,
    )


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _after(batch: Batch, start: int, stop: int) -> None:
    """The stage after the network's: forecasts and intervals."""
    ticks, work = load_value(batch)
    _forecast(work, ticks, start, stop)


@njit(cache=True, error_model="numpy", _nrt=False)
def _admit(
    step_ns: int,
    clock: Clock,
    ticks: Ticks,
    schedule: Schedule,
    drops: NDArray[np.int64],
    gaps: NDArray[np.int64],
    now: int,
) -> tuple[int, int, int]:
    """Apply the policies, and lay the ticks taken out in rounds.

    Returns how many are taken, in how many rounds, and how many are to be published.
    """
    taken, rounds, published = 0, 0, 0
    bounds = schedule.bounds
    bounds[0] = bounds[1] = 0
    schedule.over_count[0] = 0
    for i in range(len(ticks.slot)):
        slot, ts = ticks.slot[i], ticks.ts[i]
        reason = _fault(ticks.values, i, ts)
        anew, message = clock.anew[slot], ticks.flags[i] & (RESET | END)
        if message & RESET:
            anew |= ANEW
        begun = (clock.seen[slot] > 0 or clock.rank[slot] > 0) and anew == 0
        if reason < 0 and begun and ts <= clock.last_ts[slot]:
            reason = DUPLICATE if ts == clock.last_ts[slot] else LATE
        if message:
            clock.anew[slot] = OVER if message & END else anew if reason >= 0 else 0
            schedule.over[schedule.over_count[0]] = slot
            schedule.over_count[0] += 1
        elif reason < 0:
            clock.anew[slot] = 0
        if reason >= 0:
            if reason != NONFINITE or message == 0:
                drops[reason] += 1
            schedule.round[i] = -1
            continue
        schedule.anew[i] = anew
        clock.heard[slot] = now
        steps = features.steps_since(step_ns, clock.last_ts[slot], ts) if begun else 1
        gaps[0] += steps > 1
        clock.last_ts[slot] = ts
        schedule.steps[i] = steps
        schedule.round[i] = clock.rank[slot]
        clock.rank[slot] += 1
        if schedule.round[i] == rounds:
            rounds += 1
            bounds[rounds + 1] = 0
        bounds[schedule.round[i] + 2] += 1  # one ahead: the second pass moves it back
        taken += 1
    for r in range(rounds):
        bounds[r + 2] += bounds[r + 1]
    last = len(schedule.row) - 1
    for i in range(len(ticks.slot)):
        if schedule.round[i] < 0:
            continue
        slot = ticks.slot[i]
        at = bounds[schedule.round[i] + 1]
        bounds[schedule.round[i] + 1] = at + 1
        schedule.tick[at] = i
        schedule.slot[at] = slot
        clock.rank[slot] = 0
        if ticks.flags[i] & WARM:
            schedule.row[i] = last
            last -= 1
        else:
            schedule.row[i] = published
            published += 1
    return taken, rounds, published


@njit(cache=True, error_model="numpy", _nrt=False)
def _fault(values: NDArray[np.float64], tick: int, ts: int) -> int:
    """The reason for which no series can take this tick; -1: none."""
    for k in range(values.shape[1]):
        if not np.isfinite(values[tick, k]):
            return 0
    for k in range(values.shape[1]):
        if abs(values[tick, k]) > LIMIT:
            return 1
    return -1 if -MOMENT < ts < MOMENT else 1


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _forecast(work: Work, ticks: Ticks, start: int, stop: int) -> None:
    """Raw forecasts of some rows, intervals around them, what was learnt of those made before."""
    schedule, rows, outputs, forecasts, seq = (
        work.schedule, work.rows, work.outputs, work.forecasts, work.seq
    )  # fmt: skip
    point, targets, latest = forecasts.point, rows.scale.shape[1], work.latest
    first_record, size = seq.ctypes.data, seq.strides[0]
    for j in range(start, stop):
        if j + AHEAD < stop:  # the network's states have driven it out of the near cache
            record = first_record + schedule.slot[j + AHEAD] * size
            prefetch(record)
            prefetch(record + LINE)
        i, slot, row = schedule.tick[j], schedule.slot[j], schedule.row[schedule.tick[j]]
        warm = (ticks.flags[i] & WARM) != 0
        if not warm:
            seq[slot] += 1
            forecasts.slot[row] = slot
            forecasts.ts[row] = ticks.ts[i]
            forecasts.seq[row] = seq[slot]
        for k in range(point.shape[1]):
            for t in range(targets):
                at = k * targets + t
                point[row, k, t] = rows.base[j, at] + rows.scale[j, t] * outputs[j, at]
        intervals.surround(
            work.intervals,
            work.bands,
            slot,
            schedule.place[j],
            schedule.steps[i],
            ticks.values,
            i,
            rows.scale,
            j,
            point,
            forecasts.quantiles,
            row,
            warm,
        )
        if latest.kept and not warm:
            latest.latest_seq[slot], latest.latest_ts[slot] = seq[slot], ticks.ts[i]
            to, size = latest.latest.ctypes.data + slot * latest.latest.strides[0], point.strides[0]
            copy(to, point.ctypes.data + row * size, size)
            copy(to + size, forecasts.quantiles.ctypes.data + 2 * row * size, 2 * size)
