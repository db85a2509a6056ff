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
from collections.abc import Sequence
from types import MappingProxyType, ModuleType
from typing import Any, TypeVar

import numpy as np
from numba.extending import register_jitable
from numpy.typing import NDArray

from streamlstm import adapt, features, intervals, quality, stages, watch
from streamlstm.admission import meet, place
from streamlstm.events import Events
from streamlstm.golden import check_golden, network_of
from streamlstm.index import CLOSES, CLOSING, close
from streamlstm.kernels import cpu
from streamlstm.kernels.cell import BackendError, Network, Stages
from streamlstm.memory import Fields, is_postponing, records, require
from streamlstm.model import Model, ModelError, Spec, without
from streamlstm.placed import address_of_placed, placed, rewrite
from streamlstm.policies import (
    AS_THEY_COME,
    CHANGES,
    DROPS,
    MOMENT,
    Clock,
    Counts,
    Policies,
    Rules,
    rules_of,
)
from streamlstm.rounds import arrange, blame, compute, finish, proceed
from streamlstm.series import Series, bytes_per_series
from streamlstm.ticks import WARM, Arrivals, Forecasts, Keys, Names, Ticks, first, rows_of
from streamlstm.work import COUNT, Batch, Given, Latest, Recent, Schedule, Work

Column = TypeVar("Column", bound=NDArray[Any])
BACKENDS = ("cpu", "cuda", "auto")
HISTORY = 32
"""Ticks kept of each series, unless it is said how many."""


class Engine:
    """A model, the series that it moves, and room for a batch.

    Attributes:
        work: what the compiled stages are given.
        coverages: shares of values to fall within an interval, the main one first; 0 alone: none.
        stages: of them those that the kernels call, and where they find what :func:`arrange` left.
        code: where the kernels' machine code lies; None: they are called from Python.
        taken: ticks that :meth:`step` took last, those without a forecast included.
    """

    def __init__(
        self,
        model: Model,
        *,
        backend: str = "cpu",
        max_series: int = 100_000,
        max_batch: int = 1024,
        coverage: float | Sequence[float] = 0.9,
        threads: int = 0,
        max_key: int = 64,
        ordered: bool = False,
        evict: bool = False,
        keep_latest: bool = False,
        history: int = HISTORY,
        policies: Policies = AS_THEY_COME,
        scored: Sequence[int] = (),
        learning: bool = True,
        watching: bool = True,
        telling: bool = False,
    ) -> None:
        """Open ``model``: its golden trajectory is repeated on the backend.

        ``ordered`` and ``evict`` are as for :class:`streamlstm.series.Series`. With
        ``keep_latest``, the latest prediction of each series is part of its state, and so are its
        latest ``history`` ticks. ``scored`` are the steps ahead that are scored when their tick
        comes, for the intervals and, with ``learning``, for corrections; where none are named,
        those of the model's spec. Of several numbers in ``coverage``, all distinct, the first is
        the main one, which is scored; 0 or none: no intervals. ``watching`` series are judged by
        their own errors (where there are intervals); ``telling``, the forecasts say how.

        Raises:
            ModelError: the golden deviates, ``max_series`` series do not fit in memory, or a step
                to be scored lies beyond the horizon.
            BackendError: the backend cannot run here, or not this model.
            ValueError: unknown backend.
        """
        self.model = model
        self.max_batch, self.policies = max_batch, policies
        self.history = history
        spec, weights = model.spec, model.weights
        spec, weights = without(spec, weights, spread=not np.any(coverage), directions=not learning)
        steps = _scored(spec, scored)
        bands = intervals.plan(
            spec.horizon, spec.targets, coverage, model.errors, steps, spread=spec.spread
        )
        watching &= len(bands.steps) > 0
        self.coverages = tuple(bands.coverages.tolist())
        latest = latest_fields(spec, bands, telling)
        lessons = adapt.plan(spec, steps if learning else (), model.id)
        corrections = adapt.learned_fields(lessons, spec)
        told = latest if keep_latest else {}
        fields = state_fields(spec, bands, lessons, told, history, watching)
        network = network_of(spec, weights)
        self.backend, self.backend_reason, self.kernels = open_backend(backend, network)
        self.bytes_per_series = {"recurrent": self.kernels.bytes_per_series(network)}
        self.bytes_per_series |= bytes_per_series(fields, max_series, max_key)
        _refuse_what_does_not_fit(sum(self.bytes_per_series.values()), max_series)
        if not is_postponing():
            check_golden(model, self.kernels)
        self.series = Series(fields, max_series, max_key, ordered=ordered, evict=evict, far="past")
        self.buffers = self.kernels.allocate(network, max_series, threads or None)
        kept = self.series.state if keep_latest else records(latest, 1)
        state = self.series.state
        taught = state if len(lessons.steps) else records(corrections, 1)
        seen = state if watching else records(watch.watched_fields(), 1)
        recurrent, unbounded = self.kernels.host_records(self.buffers), can_diverge(spec)
        on_device = not len(recurrent)
        judged = quality.Quality.of(bands, spec.targets, max_batch)
        back = np.zeros((max_series, recurrent.shape[1]), np.float32) if on_device else recurrent
        ends = 2 * len(self.coverages)
        self._look = unbounded and on_device
        self.work = placed(
            Work(
                features=features.plan(spec),
                intervals=bands,
                rules=self._rules,
                slots=self.series.index,
                clock=Clock(*(state[name] for name in Clock._fields)),
                memory=features.memory_of(state),
                bands=intervals.Bands(*(state[name] for name in intervals.Bands._fields)),
                lessons=lessons,
                learned=adapt.Learned(*(taught[name] for name in corrections)),
                seq=state["seq"],
                latest=Latest(keep_latest, *(kept[name] for name in latest)),
                expected=state["expected"],
                recent=Recent(*(state[name] for name in Recent._fields)),
                recurrent=recurrent,
                unbounded=unbounded and not on_device,
                rows=features.Rows.empty(spec, max_batch),
                schedule=Schedule.empty(max_batch),
                outputs=np.zeros((max_batch, spec.answers), np.float32),
                forecasts=Forecasts(
                    slot=np.zeros(max_batch, np.int32),
                    ts=np.zeros(max_batch, np.int64),
                    seq=np.zeros(max_batch, np.int64),
                    point=np.zeros((max_batch, spec.horizon, spec.targets)),
                    quantiles=np.zeros((max_batch, ends, spec.horizon, spec.targets)),
                    quality=judged.measures if telling else np.zeros((max_batch, 0)),
                ),
                values=np.zeros((max_batch, spec.inputs)),
                given=Given(Ticks.room(max_batch, spec.inputs), np.zeros((max_batch, spec.inputs))),
                counts=Counts.empty(),
                quality=judged,
                watched=watch.Watched(
                    watching, telling, *(seen[name] for name in watch.watched_fields())
                ),
                hashes=np.zeros(max_batch, np.uint64),
                found=np.zeros(max_batch, np.int32),
                forgotten=self.series.offsets["last_ts"],
                told=back,
                dropped=np.zeros((len(DROPS), max_key), np.uint8),
            )
        )
        self._ticks = Ticks.room(max_batch, spec.inputs)
        self._batch = placed(Batch(self.work.given, self.work))
        given = self._batch, 0, 0
        one = spec.targets == 1
        self.stages = Stages(
            require(stages.before_one if one else stages.before, *given),
            require(stages.after_one if one else stages.after, *given),
            address_of_placed(self._batch),
        )
        self.code: int | None = None
        self.taken = self._moment = 0
        if kernel := self.kernels.compiled_step(self.buffers):
            rows = self.work.schedule.slot, self.work.rows.x, self.work.schedule.bounds
            self.code = require(kernel, 0, *rows, self.work.outputs, self.stages)
            require(compute, self.work, self._ticks, 0, 0, 0, self.stages)

    @property
    def _rules(self) -> Rules:
        rules = rules_of(self.policies)
        return rules._replace(one_by_one=rules.one_by_one or self._look)

    def judge_by(self, policies: Policies) -> None:
        """Judge ticks by other policies from here on; what the series are by now stays as it is."""
        self.policies = policies
        rewrite(self.work, rules=self._rules)

    @property
    def drops(self) -> dict[str, int]:
        """Ticks dropped since the engine was opened, by reason."""
        return dict(zip(DROPS, self.work.counts.drops.tolist(), strict=True))

    @property
    def changes(self) -> dict[str, int]:
        """Ticks taken otherwise than as they came, since the engine was opened, by policy."""
        return dict(zip(CHANGES, self.work.counts.changes.tolist(), strict=True))

    @property
    def scores(self) -> dict[int, tuple[float, ...]]:
        """Columns of :class:`Score`, since the engine was opened, by step ahead."""
        columns = [column.tolist() for column in self.work.quality.sums]
        steps = self.work.intervals.steps.tolist()
        return {k: tuple(column[a] for column in columns) for a, k in enumerate(steps)}

    @property
    def alarms(self) -> dict[str, int]:
        """Ticks that were anomalies, and those that told of a drift, since the engine opened."""
        return dict(zip(("anomaly", "drift"), self.work.quality.alarms.tolist(), strict=True))

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

        A tick that no series could take, or begin with, is dropped, and begins none; so is one for
        whose series there is no room. What is returned is valid until the next call, before which
        it is to be stepped.
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

    def recent(self, slots: NDArray[np.int32]) -> Ticks:
        """The latest ticks of some series, one series after the other, each in order of time."""
        recent = self.work.recent
        return unroll(slots, recent.recent[slots], recent.recent_count[slots])

    def begin_with(
        self,
        slots: NDArray[np.int32],
        seq: NDArray[np.int64],
        heard: NDArray[np.int64],
        ticks: Ticks,
    ) -> None:
        """Move series just begun by their latest ticks, which another engine took before.

        Args:
            slots: (n,) theirs.
            seq: (n,) predictions made of each.
            heard: (n,) when its latest tick came, ns since the epoch.
            ticks: as :meth:`recent` gives them.
        """
        counted = [count.copy() for count in self.work.counts]
        for begin in range(0, len(ticks.slot), self.max_batch):
            self.step(rows_of(ticks, begin, begin + self.max_batch), MOMENT)
        self.work.seq[slots], self.work.clock.heard[slots] = seq, heard
        for count, before in zip(self.work.counts, counted, strict=True):
            count[:] = before

    def bring_back(self, key: bytes, now: int) -> NDArray[np.int32] | None:
        """Give a slot, (1,), to a key that has none, whose series comes back.

        Its state is to follow, and then :meth:`tell_state`. None where no slot is free. ``now`` is
        the moment of its tick, as for :func:`place`.
        """
        if self.series.active == self.series.capacity:
            return None
        slot = self.series.lookup(Keys.of([key]))
        self.series.come_back(slot, now)
        return slot

    def tell_state(self, slots: NDArray[np.int32]) -> None:
        """Let the journal know what the kernels keep of series that came back."""
        recurrent = self.kernels.to_host(self.buffers, slots)
        self.work.told[slots] = recurrent.reshape(len(slots), -1)

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
        slot, ts, values, flags = ticks
        ticks = Ticks(_compact(slot), _compact(ts), _compact(values), _compact(flags))
        work, progress = self.work, self.work.schedule.progress
        if self.code is not None:
            published = compute(work, ticks, now, self.code, self.buffers.plan, self.stages)
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
                schedule.bounds[1 : rounds + 1],
                work.outputs[:rows],
                self.stages,
            )
            if self._look:
                records = self.kernels.to_host(self.buffers, slots)
                finite = np.isfinite(records.reshape(rows, -1)).all(axis=1)
                blame(work, np.flatnonzero(~finite))
        return finish(work, ticks)


def open_backend(name: str, network: Network) -> tuple[str, str, ModuleType]:
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
    if reason := cuda.unusable():
        return "cpu", f"no usable GPU ({reason})", cpu
    if reason := cuda.refused(network):
        return "cpu", f"a GPU does not run this model: {reason}", cpu
    return "cuda", "a GPU is there", cuda


def state_fields(
    spec: Spec,
    bands: intervals.Plan,
    lessons: adapt.Plan,
    latest: Fields = MappingProxyType({}),
    history: int = HISTORY,
    watching: bool = True,
) -> Fields:
    """The one table of what a series keeps, but for its recurrent state, which is the kernels'."""
    return dict(  # which refuses a name that is there already
        rank=(np.int32, ()),
        seq=(np.int64, ()),
        heard=(np.int64, ()),
        **latest,
        # from here on what a series forgets when it begins anew
        last_ts=(np.int64, ()),
        begun=(np.uint8, ()),
        outliers=(np.uint8, ()),
        **features.memory_fields(spec),
        # from here to `recent_count`, what `stages` fetches at once
        **intervals.bands_fields(bands),
        **(adapt.learned_fields(lessons, spec) if len(lessons.steps) else {}),
        **(watch.watched_fields() if watching else {}),
        expected=(np.float64, (spec.inputs,)),
        recent_count=(np.int64, ()),
        recent=(np.int64, (history, 1 + spec.inputs)),
    )


def latest_fields(spec: Spec, bands: intervals.Plan, telling: bool = False) -> Fields:
    """What a series keeps of its latest prediction, in the order of :class:`Latest`."""
    return {
        "latest_seq": (np.int64, ()),
        "latest_ts": (np.int64, ()),
        "latest": (np.float64, (1 + 2 * len(bands.coverages), spec.horizon, spec.targets)),
        "latest_quality": (np.float64, (len(watch.MEASURES) * telling,)),
    }


def unroll(slots: NDArray[np.int32], rings: NDArray[np.int64], count: NDArray[np.int64]) -> Ticks:
    """The latest ticks of some series, whose rings, (n, history, 1 + inputs), took so many, (n,).

    One series after the other, each in order of time.
    """
    history = rings.shape[1]
    many = np.minimum(count, history)
    rank = np.arange(history)
    which, back = np.nonzero(rank < many[:, None])
    rows = rings[which, (count[which] - many[which] + back) % max(1, history)]
    values = np.ascontiguousarray(rows[:, 1:]).view(np.float64)
    return Ticks(slots[which], rows[:, 0].copy(), values, np.full(len(which), WARM))


def _compact(column: Column) -> Column:
    """The same in one piece, and not read-only: what compiled code is compiled for."""
    whole: Column = np.require(column, requirements=("C", "W"))
    return whole


def _scored(spec: Spec, steps: Sequence[int]) -> tuple[int, ...]:
    chosen = tuple(sorted({*steps})) or spec.scored
    for step in (chosen[0], chosen[-1]):
        if not 1 <= step <= spec.horizon:
            raise ModelError(
                f"step {step} is to be scored, the model's horizon is {spec.horizon};"
                f" choose engine.scored from 1 to {spec.horizon}"
            )
    return chosen


def can_diverge(spec: Spec) -> bool:
    """Whether a recurrent state can become infinite, be its inputs what they may.

    Of gates in [-1, 1] and a bounded activation it cannot: h is bounded, and c grows by 1 a step at
    most, which float32 no longer sees beyond 2^24. A window keeps no recurrent state.
    """
    gates = {"tanh", "sigmoid", "hard_sigmoid", "hard_tanh", "softsign", "sparse_sigmoid"}
    bounded = all(
        activation in gates | {"relu6"} and recurrent in gates
        for activation, recurrent in spec.activations
    )
    return not (spec.window or bounded)


def _refuse_what_does_not_fit(declared: int, max_series: int) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if declared * max_series > memory:
        raise ModelError(
            f"max_series = {max_series} at {declared} bytes a series needs"
            f" {declared * max_series / 2**30:.1f} GiB, this machine has {memory / 2**30:.1f};"
            f" at most {memory // declared} fit"
        )


@register_jitable
def events(work: Work) -> Events:
    """What became of slots, for the journal."""
    index = work.slots
    names = Names(index.names, index.lengths)
    return Events(index.changes, names, index.records, index.begin, index.end, work.told)
