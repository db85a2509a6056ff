"""step(ticks, now) -> forecasts: a pure function of the store and the batch.

First all ticks are admitted: policies, and rounds in which no series occurs twice. Then the kernels
move the rows of a round, a tile at a time and shared between threads, and call back before a tile
(features) and after it (raw units and intervals), while it is near. Rounds keep arrival order, so
what a series becomes does not depend on the batch it came in.
"""

import importlib
import importlib.util
import os
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from streamlstm import features, intervals
from streamlstm.golden import check_golden, network_of
from streamlstm.kernels import cpu
from streamlstm.kernels.cell import BackendError, Stages
from streamlstm.memory import (
    Fields,
    address_of,
    copy,
    load_value,
    pointer_to,
    prefetch,
    records,
    size_of,
    store_value,
)
from streamlstm.model import Model, ModelError, Spec
from streamlstm.series import LINE, Index, Series, approach, bytes_per_series, find
from streamlstm.ticks import WARM, Arrivals, Forecasts, Keys, Ticks, first, rows_of

BACKENDS = ("cpu", "cuda", "auto")
DROPS = ("nonfinite", "out_of_range", "late", "duplicate", "series_limit")
"""Reasons for which the engine drops a tick; ``series_limit``: no room for its series."""
LATE, DUPLICATE, SERIES_LIMIT = 2, 3, 4
MOMENT = 1 << 62
"""Nanoseconds from 1970 beyond which no timestamp is taken: their differences would overflow."""
LIMIT = 1e37
"""Largest absolute value taken: beyond it float32 state would overflow."""


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
        keep_latest: bool = False,
    ) -> None:
        """Open ``model``: its golden trajectory is repeated on the backend.

        With ``keep_latest``, the latest prediction of each series is part of its state.

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
        fields = {**state_fields(spec, bands), **(latest if keep_latest else {})}
        network = network_of(spec, model.weights)
        self.bytes_per_series = {"recurrent": self.kernels.bytes_per_series(network)}
        self.bytes_per_series |= bytes_per_series(fields, max_series, max_key)
        _refuse_what_does_not_fit(sum(self.bytes_per_series.values()), max_series)
        check_golden(model, self.kernels)
        self.series = Series(fields, max_series, max_key)
        self.buffers = self.kernels.allocate(network, max_series, threads or None)
        state = self.series.state
        kept = state if keep_latest else records(latest, 1)
        self.work = Work(
            features.plan(spec),
            bands,
            self.series.index,
            Clock(state["last_ts"], state["seen"], state["rank"]),
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
        )
        self._ticks = Ticks.room(max_batch, spec.inputs)
        batch = Batch(self._ticks, self.work)
        self._batch = np.zeros(_room(batch), np.uint8)
        context = self._batch.ctypes.data
        _keep(context, batch)
        given = pointer_to(batch), 0, 0
        self.stages = Stages(address_of(_before, *given), address_of(_after, *given), context)
        self.taken = 0

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
        self.series.lookup(Keys.of([]))  # of a checkpoint, at the next start
        nothing = np.zeros(0, np.int64)
        keys = Keys(np.zeros(0, np.uint8), nothing, nothing)
        values, flags = np.zeros((0, self.model.spec.inputs)), np.zeros(0, np.uint8)
        self.step(self.place(Arrivals(keys, nothing, values, flags)), 0)

    def place(self, arrivals: Arrivals) -> Ticks:
        """Find the series of each of at most ``max_batch`` ticks, or begin it.

        A tick that no series could take is dropped, and begins none; so is one for whose series
        there is no room. What is returned is valid until the next call.
        """
        count = place(self.work, arrivals, self._ticks, 0)
        return rows_of(self._ticks, 0, count)

    def step(self, ticks: Ticks, now: int) -> Forecasts:
        """Move each series by its ticks, in order of arrival, and forecast.

        Args:
            ticks: at most ``max_batch``, as :meth:`place` gives them.
            now: ns since the epoch; no policy asks yet how old a tick is.

        Returns:
            A row for each tick taken that was not ``WARM``; valid until the next call.
        """
        if len(ticks.slot) > self.max_batch:
            raise ValueError(f"{len(ticks.slot)} ticks exceed max_batch = {self.max_batch}")
        work = self.work
        self.taken, rounds, published = admit(work, ticks, self.stages.context)
        taken = self.taken
        self.kernels.step(
            self.buffers,
            work.schedule.slot[:taken],
            work.rows.x[:taken],
            work.schedule.bounds[: rounds + 1],
            work.outputs[:taken],
            self.stages,
        )
        return first(work.forecasts, published)


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


def state_fields(spec: Spec, bands: intervals.Plan) -> Fields:
    """The one table of what a series keeps, but for its recurrent state, which is the kernels'."""
    return {
        "last_ts": (np.int64, ()),
        "rank": (np.int32, ()),
        "seq": (np.int64, ()),
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
def place(work: Work, arrivals: Arrivals, ticks: Ticks, at: int) -> int:
    """Write those arrivals that a series can take to ``ticks``, row ``at`` on; how many they are.

    As :meth:`Engine.place`.
    """
    keys, data, begin = arrivals.keys, arrivals.keys.data.ctypes.data, at
    approach(work.slots, keys, work.hashes)
    for i in range(len(arrivals.ts)):
        reason = _fault(arrivals.values, i, arrivals.ts[i])
        slot = -1
        if reason < 0:
            key, length = data + keys.begin[i], keys.end[i] - keys.begin[i]
            slot = find(work.slots, work.hashes[i], key, length)
            if slot < 0:
                reason = SERIES_LIMIT
        if reason >= 0:
            work.drops[reason] += 1
            continue
        ticks.slot[at], ticks.ts[at] = slot, arrivals.ts[i]
        ticks.flags[at] = arrivals.flags[i]
        for k in range(arrivals.values.shape[1]):
            ticks.values[at, k] = arrivals.values[i, k]
        at += 1
    return at - begin


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def admit(work: Work, ticks: Ticks, context: int) -> tuple[int, int, int]:
    """Decide what is to be computed, and leave ``ticks`` for the stages of :attr:`Engine.stages`.

    Returns how many are taken, in how many rounds, and how many are to be published.
    """
    store_value(context, ticks)  # a `Batch` begins with them
    return _admit(work.features.step_ns, work.clock, ticks, work.schedule, work.drops, work.gaps)


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
) -> tuple[int, int, int]:
    """Apply the policies, and lay the ticks taken out in rounds.

    Returns how many are taken, in how many rounds, and how many are to be published.
    """
    taken, rounds, published = 0, 0, 0
    bounds = schedule.bounds
    bounds[0] = bounds[1] = 0
    for i in range(len(ticks.slot)):
        slot, ts = ticks.slot[i], ticks.ts[i]
        reason = _fault(ticks.values, i, ts)
        begun = clock.seen[slot] > 0 or clock.rank[slot] > 0
        if reason < 0 and begun and ts <= clock.last_ts[slot]:
            reason = DUPLICATE if ts == clock.last_ts[slot] else LATE
        if reason >= 0:
            drops[reason] += 1
            schedule.round[i] = -1
            continue
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
