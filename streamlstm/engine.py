"""step(ticks, now) -> forecasts: a pure function of the store and the batch.

First all ticks are laid out in rounds, in which no series occurs twice, and judged (`policies`):
all at once, or where it takes what was computed before, round after round. Then the kernels move
the rows of a round, a tile at a time and shared between threads, and call back before a tile
(features) and after it (raw units and intervals), while it is near. Rounds keep arrival order, so
what a series becomes does not depend on the batch it came in.

A series begins anew where a tick says so, after a gap, or with the tick after one that left its
state or forecast not finite (that forecast is not published): its record is forgotten, be it in
the midst of a batch. What the kernels have of a series counts for nothing before the first tick
that is computed since, and is cleared then; so it does not matter who had its slot before.
"""

import importlib
import importlib.util
import os
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numba import njit
from numba.extending import register_jitable
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
    call,
    call_for_int,
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
from streamlstm.policies import (
    ANEW,
    AS_THEY_COME,
    CHANGES,
    DROPS,
    SERIES_LIMIT,
    Clock,
    Counts,
    Policies,
    Rules,
    fault,
    is_message,
    judge,
    rules_of,
)
from streamlstm.series import Series, bytes_per_series
from streamlstm.ticks import (
    END,
    RESET,
    WARM,
    Arrivals,
    Forecasts,
    Keys,
    Names,
    Ticks,
    first,
    rows_of,
)

BACKENDS = ("cpu", "cuda", "auto")
AHEAD = 16
"""Series whose records are on their way to the cache while one is worked on."""

UNKNOWN, MESSAGE, UNFIT = -1, -2, -3
"""What :func:`meet` finds instead of a slot: a series to be begun; none, and none is to be, since
the tick is but a message to end or reset it; a tick to be dropped, or below for further reasons."""
DROPPED, FAULTY, TAKEN = range(3)
"""What becomes of a tick; ``FAULTY``: what it led to is not finite."""
NEXT, ROUNDS, JUDGED, SINGLY, PART, COUNT = range(6)
"""Words of :attr:`Schedule.progress`: the next round, of how many, up to which
they are judged (0: not the next), whether one by one; how many rounds the part at hand has; how
many ticks were taken in the end."""


class Schedule(NamedTuple):
    """How a batch is computed, a part after the other."""

    order: NDArray[np.int64]
    """(n,) all ticks, round after round"""
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
    """(rounds + 1,) where each round of the part begins"""
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
            np.zeros(n, np.int64),
            np.zeros(n + 2, np.int64),
            np.zeros(n, np.uint8),
            np.zeros(n, np.int64),
            np.zeros(n, np.int64),
            np.zeros(n, np.int64),
            np.zeros(n, np.int64),
            np.zeros(n, np.int32),
            np.zeros(n, np.int64),
            np.zeros(n + 2, np.int64),
            np.zeros(n, np.int32),
            np.zeros(6, np.int64),
            np.zeros(1, np.uint8),
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
    seq: NDArray[np.int64]
    """(series,) predictions made of each"""
    latest: Latest
    expected: NDArray[np.float64]
    """(series, inputs) what is taken for a value that is missing"""
    recurrent: NDArray[np.float32]
    """(series, floats) the kernels' state of each, or (0, floats) where it lies on a device"""
    unbounded: bool
    """whether it lies here, and can become infinite"""
    rows: features.Rows
    schedule: Schedule
    outputs: NDArray[np.float32]
    """(n, outputs) of the network"""
    forecasts: Forecasts
    """(n, ...) of the tick in the same row, until those that are not published are left out"""
    values: NDArray[np.float64]
    """(n, inputs) as policies left them, where rounds are judged one by one"""
    given: Given
    """and then the ticks that the stages take"""
    counts: Counts
    hashes: NDArray[np.uint64]
    """(n,) of the keys of a batch"""
    found: NDArray[np.int32]
    """(n,) their slots, or ``UNKNOWN`` and so on"""
    forgotten: int
    """first byte of a record that is forgotten where a series begins anew"""
    told: NDArray[np.float32]
    """(series, floats) kernels' states of those that came back, at least, for the journal"""


class Batch(NamedTuple):
    """What the stages of a row are given, by the address of it."""

    given: Given
    work: Work


class Engine:
    """A model, the series that it moves, and room for a batch.

    Attributes:
        work: what the compiled stages are given.
        stages: of them those that the kernels call, and where they find what :func:`arrange` left.
        code: where the kernels' machine code lies; 0: they are called from Python.
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
        policies: Policies = AS_THEY_COME,
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
        self.max_batch, self.coverage, self.policies = max_batch, coverage, policies
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
        kept = self.series.state if keep_latest else records(latest, 1)
        state, rules = self.series.state, rules_of(policies)
        recurrent, unbounded = self.kernels.host_records(self.buffers), can_diverge(spec)
        on_device = not len(recurrent)
        self._look = unbounded and on_device
        self.work = Work(
            features.plan(spec),
            bands,
            rules._replace(one_by_one=rules.one_by_one or self._look),
            self.series.index,
            Clock(*(state[name] for name in Clock._fields)),
            features.Memory(*(state[name] for name in features.Memory._fields)),
            intervals.Bands(*(state[name] for name in intervals.Bands._fields)),
            state["seq"],
            Latest(keep_latest, *(kept[name] for name in latest)),
            state["expected"],
            recurrent,
            unbounded and not on_device,
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
            np.zeros((max_batch, spec.inputs)),
            Given(Ticks.room(max_batch, spec.inputs), np.zeros((max_batch, spec.inputs))),
            Counts.empty(),
            np.zeros(max_batch, np.uint64),
            np.zeros(max_batch, np.int32),
            self.series.offsets["last_ts"],
            np.zeros((max_series, recurrent.shape[1]), np.float32) if on_device else recurrent,
        )
        self._ticks = Ticks.room(max_batch, spec.inputs)
        batch = Batch(self.work.given, self.work)
        self._batch = np.zeros(_room(batch), np.uint8)
        context = self._batch.ctypes.data
        _keep(context, batch)
        given = pointer_to(batch), 0, 0
        self.stages = Stages(address_of(_before, *given), address_of(_after, *given), context)
        self.code = self._compute = self.taken = self._moment = 0
        if kernel := self.kernels.compiled_step(self.buffers):
            rows = self.work.schedule.slot, self.work.rows.x, self.work.schedule.bounds
            self.code = address_of(kernel, 0, *rows, self.work.outputs, self.stages)
            self._compute = address_of(
                _compute, pointer_to(batch), self._ticks, 0, 0, 0, self.stages
            )

    @property
    def drops(self) -> dict[str, int]:
        """Ticks dropped since the engine was opened, by reason."""
        return dict(zip(DROPS, self.work.counts.drops.tolist(), strict=True))

    @property
    def changes(self) -> dict[str, int]:
        """Ticks taken otherwise than as they came, since the engine was opened, by policy."""
        return dict(zip(CHANGES, self.work.counts.changes.tolist(), strict=True))

    @property
    def gaps(self) -> int:
        """Ticks that came after at least one was missed."""
        return int(self.work.counts.gaps[0])

    @property
    def quarantined(self) -> int:
        """Ticks that led to what is not finite, and their series to a new beginning."""
        return int(self.work.counts.quarantined[0])

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
        close(self.series.index, slots, self.work.clock.begun)

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
        return (self.work.clock.begun[slots] > 0) | (self.work.seq[slots] > 0)

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
        self.work.told[slots] = recurrent.reshape(1, -1)
        return True

    def step(self, ticks: Ticks, now: int) -> Forecasts:
        """Move each series by its ticks, in order of arrival, and forecast.

        Args:
            ticks: at most ``max_batch``, as :meth:`place` gives them.
            now: when they came, ns since the epoch.

        Returns:
            A row for each tick taken that was not ``WARM``; valid until the next call.
        """
        if len(ticks.slot) > self.max_batch:
            raise ValueError(f"{len(ticks.slot)} ticks exceed max_batch = {self.max_batch}")
        work, progress = self.work, self.work.schedule.progress
        if self._compute:
            given = self.code, self.buffers.plan, self.stages
            published = _enter(self._compute, self.stages.context, ticks, now, *given)
        else:
            published = self._step(ticks, now)
        self.taken = int(progress[COUNT])
        return first(work.forecasts, published)

    def _step(self, ticks: Ticks, now: int) -> int:
        """The same by kernels that are called from Python; how many are to be published."""
        work, schedule = self.work, self.work.schedule
        arrange(work, ticks, self.stages.context)
        while True:
            rows, rounds, anew = proceed(work, ticks, now)
            if anew:
                self.kernels.clear(self.buffers, schedule.anew[:anew])
            if not rows:
                break
            slots = schedule.slot[:rows]
            self.kernels.step(
                self.buffers,
                slots,
                work.rows.x[:rows],
                schedule.bounds[: rounds + 1],
                work.outputs[:rows],
                self.stages,
            )
            if self._look:
                records = self.kernels.to_host(self.buffers, slots)
                finite = np.isfinite(records.reshape(rows, -1)).all(axis=1)
                blame(work, np.flatnonzero(~finite))
        return finish(work, ticks)


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
        "rank": (np.int32, ()),
        "seq": (np.int64, ()),
        "heard": (np.int64, ()),
        **(latest_fields(spec) if keep_latest else {}),
        # from here on what a series forgets when it begins anew
        "last_ts": (np.int64, ()),
        "begun": (np.uint8, ()),
        "outliers": (np.uint8, ()),
        **features.memory_fields(spec),
        **intervals.bands_fields(bands),
        "expected": (np.float64, (spec.inputs,)),
    }


def latest_fields(spec: Spec) -> Fields:
    """What a series keeps of its latest prediction, in the order of :class:`Latest`."""
    return {
        "latest_seq": (np.int64, ()),
        "latest_ts": (np.int64, ()),
        "latest": (np.float64, (3, spec.horizon, spec.targets)),
    }


def can_diverge(spec: Spec) -> bool:
    """Whether a recurrent state can become infinite, be its inputs what they may.

    Of gates in [0, 1] and a bounded activation it cannot: h is bounded, and c grows by 1 a step at
    most, which float32 no longer sees beyond 2^24. A window keeps no recurrent state.
    """
    grow = {"relu", "linear"}
    return not spec.window and bool({spec.activation, spec.recurrent_activation} & grow)


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
        message = is_message(arrivals.values, i, arrivals.flags[i])
        reason = -1 if message else fault(work.rules, arrivals.values, i, arrivals.ts[i])
        if reason >= 0 and not arrivals.flags[i] & (RESET | END):
            work.found[i] = UNFIT - reason
            continue
        slot = seek(work.slots, work.hashes[i], data + keys.begin[i], keys.end[i] - keys.begin[i])
        if slot >= 0:
            touch(work.slots, slot, now)
        elif message:
            slot = MESSAGE
        elif reason >= 0:
            slot = UNFIT - reason
        else:
            slot, unknown = UNKNOWN, unknown + 1
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
                slot = UNFIT - SERIES_LIMIT
        if slot < 0:
            if slot <= UNFIT:
                work.counts.drops[UNFIT - slot] += 1
            continue
        ticks.slot[at], ticks.ts[at] = slot, arrivals.ts[i]
        ticks.flags[at] = arrivals.flags[i]
        for k in range(arrivals.values.shape[1]):
            ticks.values[at, k] = arrivals.values[i, k]
        at += 1
    return at - begin


@register_jitable
def events(work: Work) -> Events:
    """What became of slots, for the journal."""
    index = work.slots
    names = Names(index.names, index.lengths)
    return Events(index.changes, names, index.records, index.begin, index.end, work.told)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def compute(work: Work, ticks: Ticks, now: int, code: int, network: int, stages: Stages) -> int:
    """:meth:`Engine.step` by kernels that are compiled; how many forecasts are to be published."""
    schedule = work.schedule
    arrange(work, ticks, stages.context)
    while True:
        rows, rounds, anew = proceed(work, ticks, now)
        for k in range(anew):
            work.recurrent[schedule.anew[k]] = 0
        if rows == 0:
            return finish(work, ticks)
        call(
            code,
            network,
            schedule.slot[:rows],
            work.rows.x[:rows],
            schedule.bounds[: rounds + 1],
            work.outputs[:rows],
            stages,
        )


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def arrange(work: Work, ticks: Ticks, context: int) -> None:
    """Lay a batch out in rounds, for :func:`proceed`; ``context`` is of :attr:`Engine.stages`."""
    preserve(work.slots.shadow, ticks.slot)
    schedule, rank, n = work.schedule, work.clock.rank, len(ticks.slot)
    order, starts, rounds = schedule.order, schedule.starts, 0
    singly = work.rules.one_by_one
    starts[0] = starts[1] = 0
    for i in range(n):
        slot = ticks.slot[i]
        singly |= ticks.flags[i] & (RESET | END) != 0
        ranked = rank[slot]
        rank[slot] = ranked + 1
        schedule.place[i] = ranked
        if ranked == rounds:
            rounds += 1
            starts[rounds + 1] = 0
        starts[ranked + 2] += 1  # one ahead: the second pass moves it back
    for r in range(rounds):
        starts[r + 2] += starts[r + 1]
    for i in range(n):
        rank[ticks.slot[i]] = 0
        at = starts[schedule.place[i] + 1]
        starts[schedule.place[i] + 1] = at + 1
        order[at] = i
    schedule.progress[NEXT], schedule.progress[ROUNDS] = 0, rounds
    schedule.progress[JUDGED] = schedule.faults[0] = 0
    schedule.progress[SINGLY] = singly
    given = work.given if singly else Given(ticks, ticks.values)
    store_value(context, given)  # a `Batch` begins with it


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def proceed(work: Work, ticks: Ticks, now: int) -> tuple[int, int, int]:
    """Say what the kernels are to compute next, once they have computed what was said before.

    Returns how many rows, in how many rounds, and for how many series, of ``schedule.anew``, the
    kernels' state is to be cleared before that. No rows: that was all.
    """
    schedule, progress = work.schedule, work.schedule.progress
    singly, rows, rounds, anew = progress[SINGLY] != 0, 0, 0, 0
    if schedule.faults[0]:
        rows, rounds, anew = _quarantine(work, ticks)
    while rows == 0:
        begin = progress[NEXT]
        if not progress[JUDGED]:
            if singly and begin > 0:
                _end_series(work, ticks, begin - 1)
            if begin == progress[ROUNDS]:
                break
            progress[JUDGED] = begin + 1 if singly else progress[ROUNDS]
            _judge(work, ticks, now, begin, progress[JUDGED], singly)
        if singly:
            rows, rounds, anew = _fill_gaps(work, ticks, begin, anew)
        if rows == 0:
            rows, rounds, anew = _lay_out(work, ticks, begin, progress[JUDGED], singly, anew)
            progress[NEXT], progress[JUDGED] = progress[JUDGED], 0
    progress[PART] = rounds
    return rows, rounds, anew


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def finish(work: Work, ticks: Ticks) -> int:
    """Count the ticks taken, and close up the forecasts to be published; how many they are."""
    taken, published, fate = 0, 0, work.schedule.fate
    slot, ts, seq, point, quantiles = work.forecasts
    for i in range(len(ticks.slot)):
        if fate[i] != TAKEN:
            continue
        taken += 1
        if ticks.flags[i] & WARM:
            continue
        if published < i:
            slot[published], ts[published], seq[published] = slot[i], ts[i], seq[i]
            _move_row(point.ctypes.data, point.strides[0], i, published)
            _move_row(quantiles.ctypes.data, quantiles.strides[0], i, published)
        published += 1
    work.schedule.progress[COUNT] = taken
    return published


@njit(cache=True, error_model="numpy", _nrt=False)
def _move_row(array: int, size: int, row: int, to: int) -> None:
    copy(array + to * size, array + row * size, size)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def blame(work: Work, rows: NDArray[np.int64]) -> None:
    """Mark rows of the part at hand, which has one round, whose state is not finite."""
    schedule, flags = work.schedule, work.given.ticks.flags
    for row in rows:
        i = schedule.tick[row]
        if schedule.fate[i] != FAULTY:
            schedule.fate[i], schedule.faults[0] = FAULTY, 1
            work.seq[schedule.slot[row]] -= not flags[i] & WARM


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def forget(work: Work, slot: int) -> None:
    """Let a series be as one that never began, but for its key and the number of its predictions.

    Its recurrent state is cleared with the first tick that is computed then.
    """
    _clear(work, slot, work.forgotten)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _clear(work: Work, slot: int, begin: int) -> None:
    """Clear the record of a series, from a byte of it on."""
    index = work.slots
    record = index.records.ctypes.data + slot * index.records.strides[0]
    clear(record + begin, index.end - begin)


@njit(cache=True)
def _room(batch: Batch) -> int:
    return size_of(batch)


@njit(cache=True, _nrt=False)
def _keep(address: int, batch: Batch) -> None:
    """Without what counts references to arrays: such a count would not outlive the call."""
    store_value(address, batch)


@njit(cache=True, nogil=True, _nrt=False)
def _enter(
    code: int, context: int, ticks: Ticks, now: int, kernels: int, network: int, stages: Stages
) -> int:
    """:func:`_compute` for Python, which would take longer to hand over a `Work` than to use it."""
    return call_for_int(code, context, ticks, now, kernels, network, stages)


# Compiled on their own, to be called by address.


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _compute(batch: Batch, ticks: Ticks, now: int, code: int, network: int, stages: Stages) -> int:
    """:func:`compute`, where a batch lies at an address."""
    _, work = load_value(batch)
    return compute(work, ticks, now, code, network, stages)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def _before(batch: Batch, start: int, stop: int) -> None:
    """The stage before the network's: features."""
    given, work = load_value(batch)
    ticks, schedule = given.ticks, work.schedule
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
    given, work = load_value(batch)
    _forecast(work, given, start, stop)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _judge(work: Work, ticks: Ticks, now: int, begin: int, end: int, singly: bool) -> None:
    """Judge the ticks of some rounds, and let series begin anew before them."""
    schedule = work.schedule
    for j in range(schedule.starts[begin], schedule.starts[end]):
        i = schedule.order[j]
        slot = ticks.slot[i]
        steps, missing = 0, 0
        if singly and ticks.flags[i] & RESET:
            forget(work, slot)
        if not (singly and is_message(ticks.values, i, ticks.flags[i])):
            steps, missing = judge(
                work.rules, work.features, work.memory, work.clock, work.counts,
                ticks, i, now, singly, work.values,
            )  # fmt: skip
        schedule.fate[i] = TAKEN if steps else DROPPED
        schedule.steps[i] = schedule.ahead[i] = steps
        schedule.missing[i] = missing
        if missing == ANEW:
            _restart(work, slot)


@njit(cache=True, error_model="numpy", _nrt=False)
def _restart(work: Work, slot: int) -> None:
    """Let a series begin anew, after its latest tick."""
    last_ts = work.clock.last_ts[slot]
    forget(work, slot)
    work.clock.last_ts[slot], work.clock.begun[slot] = last_ts, 1


@njit(cache=True, error_model="numpy", _nrt=False)
def _end_series(work: Work, ticks: Ticks, number: int) -> None:
    """End the series that a round, which is computed, was the last of."""
    schedule = work.schedule
    for j in range(schedule.starts[number], schedule.starts[number + 1]):
        i = schedule.order[j]
        if ticks.flags[i] & END:
            _clear(work, ticks.slot[i], work.slots.begin)
            end(work.slots, ticks.slot[i])


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _add_row(work: Work, row: int, tick: int, slot: int, anew: int) -> int:
    """Give a tick a row of the part at hand; how many series are new to the kernels by now."""
    schedule = work.schedule
    schedule.tick[row], schedule.slot[row] = tick, slot
    if work.memory.seen[slot] == 0:
        schedule.anew[anew] = slot
        anew += 1
    return anew


@njit(cache=True, error_model="numpy", _nrt=False)
def _fill_gaps(work: Work, ticks: Ticks, number: int, anew: int) -> tuple[int, int, int]:
    """Lay out a grid point of each series of a round that misses one before its tick.

    Returns as :func:`proceed`, as the next two do; ``anew`` series were to be cleared already.
    """
    schedule, rows = work.schedule, 0
    for j in range(schedule.starts[number], schedule.starts[number + 1]):
        i = schedule.order[j]
        missing = schedule.missing[i]
        if schedule.fate[i] == TAKEN and missing > 0:
            ts = ticks.ts[i] - missing * work.features.step_ns
            _give(work, i, ticks.slot[i], ts, WARM, True)
            schedule.missing[i] = missing - 1
            anew = _add_row(work, rows, i, ticks.slot[i], anew)
            rows += 1
    schedule.bounds[0], schedule.bounds[1] = 0, rows
    return rows, 1, anew


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _give(work: Work, tick: int, slot: int, ts: int, flags: int, missing: bool) -> None:
    """Hand the stages a tick, or a grid point before it, whose values are all missing."""
    schedule, (given, observed) = work.schedule, work.given
    schedule.steps[tick], schedule.ahead[tick] = schedule.ahead[tick], 1
    given.slot[tick], given.ts[tick], given.flags[tick] = slot, ts, flags
    for k in range(observed.shape[1]):
        value = np.nan if missing else work.values[tick, k]
        observed[tick, k] = value
        given.values[tick, k] = work.expected[slot, k] if np.isnan(value) else value


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _lay_out(
    work: Work, ticks: Ticks, begin: int, end: int, singly: bool, anew: int
) -> tuple[int, int, int]:
    """Lay the ticks taken of some rounds out to be computed."""
    schedule, rows, rounds = work.schedule, 0, 0
    schedule.bounds[0] = 0
    for number in range(begin, end):
        for j in range(schedule.starts[number], schedule.starts[number + 1]):
            i = schedule.order[j]
            if schedule.fate[i] != TAKEN:
                continue
            if singly:
                _give(work, i, ticks.slot[i], ticks.ts[i], ticks.flags[i], False)
            anew = _add_row(work, rows, i, ticks.slot[i], anew)
            rows += 1
        if rows > schedule.bounds[rounds]:
            rounds += 1
            schedule.bounds[rounds] = rows
    return rows, rounds, anew


@njit(cache=True, error_model="numpy", _nrt=False)
def _quarantine(work: Work, ticks: Ticks) -> tuple[int, int, int]:
    """Let series begin anew after what was not finite, and lay out what came after that again."""
    schedule, begun_anew = work.schedule, work.clock.rank
    fate, bounds = schedule.fate, schedule.bounds
    rows, rounds, anew, stop = 0, 0, 0, 0
    for number in range(schedule.progress[PART]):
        start, stop = stop, bounds[number + 1]
        for j in range(start, stop):
            i, slot = schedule.tick[j], schedule.slot[j]
            if begun_anew[slot]:  # of what was not finite nothing is kept
                if fate[i] != FAULTY:
                    work.seq[slot] -= not ticks.flags[i] & WARM
                fate[i] = TAKEN
                schedule.tick[rows], schedule.slot[rows] = i, slot
                rows += 1
            elif fate[i] == FAULTY:
                _restart(work, slot)
                schedule.anew[anew] = slot
                anew += 1
                work.counts.quarantined[0] += 1
                begun_anew[slot] = 1
        if rows > bounds[rounds]:
            rounds += 1
            bounds[rounds] = rows
    for k in range(anew):
        begun_anew[schedule.anew[k]] = 0
    schedule.faults[0] = 0
    return rows, rounds, anew


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _forecast(work: Work, given: Given, start: int, stop: int) -> None:
    """Raw forecasts of some rows, intervals around them, what was learnt of those made before."""
    schedule, rows, outputs, forecasts, seq = (
        work.schedule, work.rows, work.outputs, work.forecasts, work.seq
    )  # fmt: skip
    point, targets, ticks = forecasts.point, rows.scale.shape[1], given.ticks
    latest = work.latest
    first_record, size = seq.ctypes.data, seq.strides[0]
    for j in range(start, stop):
        if j + AHEAD < stop:  # the network's states have driven it out of the near cache
            record = first_record + schedule.slot[j + AHEAD] * size
            prefetch(record)
            prefetch(record + LINE)
        i, slot = schedule.tick[j], schedule.slot[j]
        warm, finite = (ticks.flags[i] & WARM) != 0, True
        for k in range(point.shape[1]):
            for t in range(targets):
                at = k * targets + t
                raw = rows.base[j, at] + rows.scale[j, t] * outputs[j, at]
                finite &= np.isfinite(raw)
                point[i, k, t] = raw
        if work.unbounded:
            for k in range(work.recurrent.shape[1]):
                finite &= np.isfinite(work.recurrent[slot, k])
        if not finite:
            schedule.fate[i], schedule.faults[0] = FAULTY, 1
            continue
        if not warm:
            seq[slot] += 1
            forecasts.slot[i] = slot
            forecasts.ts[i] = ticks.ts[i]
            forecasts.seq[i] = seq[slot]
        for k in range(ticks.values.shape[1]):
            work.expected[slot, k] = point[i, 0, k] if k < targets else ticks.values[i, k]
        intervals.surround(
            work.intervals,
            work.bands,
            slot,
            schedule.place[j],
            schedule.steps[i],
            given.observed,
            i,
            rows.scale,
            j,
            point,
            forecasts.quantiles,
            i,
            warm,
        )
        if latest.kept and not warm:
            latest.latest_seq[slot], latest.latest_ts[slot] = seq[slot], ticks.ts[i]
            to, length = latest.latest.ctypes.data, point.strides[0]
            to += slot * latest.latest.strides[0]
            copy(to, point.ctypes.data + i * length, length)
            copy(to + length, forecasts.quantiles.ctypes.data + 2 * i * length, 2 * length)
