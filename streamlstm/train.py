"""``streamlstm fit``: one model for many series, from their own past.

The network corrects a linear forecast (:mod:`streamlstm.linear`) by truncated backpropagation
through time (:mod:`streamlstm.bptt`). All is done twice: once on the earlier part of the time span,
to learn from the latest part how far the corrections can be trusted at each step ahead
(:mod:`streamlstm.mixture`), and once on all of it.
"""

import contextlib
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm import bptt
from streamlstm.calibration import (
    LEVELS,
    blocks_of,
    error_quantiles,
    less_mean,
    with_seen_errors,
    with_young_errors,
)
from streamlstm.datasets.frames import SeriesData
from streamlstm.datasets.times import DataError
from streamlstm.directions import MOST as MOST_DIRECTIONS
from streamlstm.directions import with_directions
from streamlstm.fit_options import FitOptions, ticks_needed
from streamlstm.golden import make_golden
from streamlstm.infer import infer_spec, targets_of
from streamlstm.intervals import SHARES, SPREAD
from streamlstm.linear import PENALTIES, Floats, best_penalty, linear_start
from streamlstm.mixture import (
    MANY,
    Span,
    Trust,
    earlier_spans,
    few_blocks,
    joined,
    together,
    trusted,
)
from streamlstm.model import WIDEST, Errors, Input, Model, Spec
from streamlstm.outliers import without_outliers
from streamlstm.samples import Pairs, draw, evenly, gather, lanes
from streamlstm.spread import spread_of, with_spread

__all__ = ["FitOptions", "FitReport", "Progress", "fit"]

JUDGEMENTS = 20
"""How often a training is judged on the unseen span."""
JUDGED, FORECASTS = 50_000, 2_400_000
"""Rows, and forecasts in them, at most by which errors and trust are judged."""
WARM_UP = 20
"""Updates over which the learning rate rises."""
BUDGET = 1 << 30
"""Bytes that input vectors and targets may take; beyond it, not all series are learned from."""

Progress = Callable[[int, int, float, float], None]
"""Called with updates done, updates at most, training loss, loss on the unseen span (NaN where not
yet known); a loss of 1 is that of the linear start in training."""


@dataclass
class FitReport:
    """How a fit went."""

    series: int
    """learned from"""
    skipped: int
    """too short to learn from"""
    ticks: int
    updates: int
    """made"""
    loss: float
    """training loss at the end; 1 is the linear start's"""
    skill: Floats
    """(outputs,) mean absolute error on the unseen span over that of the naive forecast"""
    trust: Trust
    """how far the corrections of the naive forecast were trusted"""
    seconds: float
    interrupted: bool
    notes: list[str] = field(default_factory=list)
    """what was inferred or left out, a sentence each"""


def fit(
    series: Sequence[SeriesData],
    options: FitOptions | None = None,
    progress: Progress | None = None,
    *,
    name: str = "data",
    inputs: Sequence[Input] = (),
    like: Spec | None = None,
) -> tuple[Model, FitReport]:
    """Fit a model to ``series``.

    An interrupt (Ctrl-C) ends the training, and what was learned so far makes the model.

    Args:
        series: as :func:`streamlstm.datasets.frames.read_table` gives them.
        options: what to do otherwise than by default.
        progress: called after each update.
        name: of the data, for the model's provenance.
        inputs: what the values of a tick are; without, the first is the target, others measured.
        like: spec of a model fitted before, whose states this one is to go on with; None: the
            spec is inferred.

    Raises:
        DataError: no series is long enough.
        KeyboardInterrupt: before the first update.
    """
    tried = attempt(series, options or FitOptions(), progress, inputs=inputs, like=like)
    return finish(tried, progress, name=name)


@dataclass(frozen=True)
class Attempt:
    """The first of a fit's two trainings, on the earlier part of the time span, and its judgement.

    Its ``skill`` says on the rest of the span how good its options are.
    """

    options: FitOptions
    spec: Spec
    directions: int | None
    """that are wanted; None: as many as there is room for"""
    exact: bool
    """whether so many are needed, where fewer are found"""
    spread: bool
    """whether one is wanted"""
    series: Sequence[SeriesData]
    """learned from"""
    skipped: int
    stage: "_Stage"
    trust: Trust
    errors: Errors
    blocks: int
    """of the forecasts that these are of: those of one err together"""
    skill: Floats
    """(outputs,) as :class:`FitReport` has it"""
    interrupted: bool
    seconds: float
    notes: list[str]


def attempt(
    series: Sequence[SeriesData],
    options: FitOptions,
    progress: Progress | None = None,
    *,
    inputs: Sequence[Input] = (),
    like: Spec | None = None,
) -> Attempt:
    """Train on the earlier part of the time span and judge on the rest; otherwise as :func:`fit`.

    Raises:
        DataError, KeyboardInterrupt: as :func:`fit`.
    """
    began = time.perf_counter()
    notes: list[str] = []
    series = without_outliers(series, like.targets if like else targets_of(inputs), notes)
    if like is None:
        spec, directions = infer_spec(series, options, notes, inputs), options.directions
        spread = options.spread and 2 * spec.outputs + MOST_DIRECTIONS <= WIDEST
        if options.spread and not spread:
            notes.append(
                f"{spec.outputs:,} forecasts a tick are too many to say a spread with each"
            )
    else:
        spec = like.model_copy(update={"directions": 0, "spread": False})
        directions, spread = like.directions, like.spread
    long = _long_enough(series, spec, notes)
    used = _within_budget(long, spec, options.seed, notes)
    cuts = [len(s.ts) - _unseen(len(s.ts), spec.horizon, options.validation) for s in used]
    pairs = _pairs(used)
    ridge = options.ridge or PENALTIES[0]
    if options.ridge is None and few_blocks(spec, pairs, cuts):
        ridge = best_penalty(spec, pairs, cuts, ticks_needed(spec))
    stage = _Stage(spec, pairs, cuts, options, options.updates, ridge)
    finished = stage.train(progress, 0, 2 * options.updates)
    trust, errors, skill, blocks = stage.judge(spread, notes)
    seconds = time.perf_counter() - began
    skipped = len(series) - len(long)
    return Attempt(
        options, spec, directions, like is not None, spread, used, skipped, stage, trust, errors,
        blocks, skill, not finished, seconds, notes,
    )  # fmt: skip


def _unseen(ticks: int, horizon: int, share: float) -> int:
    """How many of a series' ticks are judged by: enough for some forecasts of each step, if few."""
    some = min(horizon + max(1, horizon // 4), ticks // 3)
    return max(1, round(share * ticks), some)


def finish(
    tried: Attempt, progress: Progress | None = None, *, name: str = "data"
) -> tuple[Model, FitReport]:
    """Train with the same options on all of the span; an interrupted attempt stays as it is."""
    began = time.perf_counter()
    first, used, options = tried.stage, tried.series, tried.options
    pairs, counts = _pairs(used), [len(s.ts) for s in used]
    last, updates, finished = first, first.done, not tried.interrupted
    if finished:
        second = _Stage(tried.spec, pairs, counts, options, first.kept, first.ridge)
        if finished := second.train(progress, options.updates, 2 * options.updates):
            last = second
        updates += second.done
    spec, weights = tried.trust.fold(last.start, last.weights())
    if tried.spread:
        spec, weights = with_spread(spec, weights, pairs)
    spec, weights = with_directions(spec, weights, pairs, tried.directions, exact=tried.exact)
    golden = make_golden(spec, weights, options.seed)
    model = Model(spec, weights, golden, tried.errors, _provenance(name, used, options))
    with contextlib.suppress(KeyboardInterrupt):  # what is there is of use without
        model = with_seen_errors(model, pairs, tried.blocks)
        model = with_young_errors(model, pairs, options.seed)
    report = FitReport(
        series=len(used),
        skipped=tried.skipped,
        ticks=sum(counts),
        updates=updates,
        loss=last.loss,
        skill=tried.skill,
        trust=tried.trust,
        seconds=tried.seconds + time.perf_counter() - began,
        interrupted=not finished,
        notes=tried.notes,
    )
    return model, report


def _pairs(series: Sequence[SeriesData]) -> Pairs:
    return [(s.ts, s.values) for s in series]


def _long_enough(
    series: Sequence[SeriesData], spec: Spec, notes: list[str]
) -> Sequence[SeriesData]:
    need = ticks_needed(spec)
    used = [s for s in series if len(s.ts) >= need]
    if not used:
        longest = max((len(s.ts) for s in series), default=0)
        raise DataError(
            f"no series is long enough: {need} ticks are needed for a horizon of {spec.horizon}"
            f" and a look back of {spec.history}, the longest has {longest};"
            " choose a shorter --horizon, --season or --lags"
        )
    if skipped := len(series) - len(used):
        notes.append(f"{skipped:,} of {len(series):,} series skipped: shorter than {need} ticks")
    return used


def _within_budget(
    series: Sequence[SeriesData], spec: Spec, seed: int, notes: list[str]
) -> Sequence[SeriesData]:
    """Of more data than fit in memory the latest ticks of some series, drawn by lot."""
    room = BUDGET // (4 * (spec.width + spec.outputs))
    if sum(len(s.ts) for s in series) <= room:
        return series
    order = np.random.default_rng(seed).permutation(len(series))
    drawn = [series[i] for i in order]
    drawn = [SeriesData(s.name, s.ts[-room:], s.values[-room:]) for s in drawn]
    count = int(np.searchsorted(np.cumsum([len(s.ts) for s in drawn]), room, side="right"))
    kept = drawn[: max(count, 1)]
    ticks = sum(len(s.ts) for s in kept)
    notes.append(
        f"learned from {ticks:,} ticks of {len(kept):,} of {len(series):,} series, drawn by lot,"
        f" so that they take no more than {BUDGET >> 20:,} MiB"
    )
    return kept


# --- training -------------------------------------------------------------------------------------


def initial_weights(spec: Spec, seed: int) -> dict[str, NDArray[np.float32]]:
    """Random weights: Glorot into the gates, orthogonal between states, forget bias 1, head 0."""
    rng = np.random.default_rng(seed)
    H = spec.hidden
    weights: dict[str, NDArray[Any]] = {
        name: np.zeros(shape) for name, shape in spec.weight_shapes().items()
    }
    for n in range(spec.layers):
        below = weights[f"lstm.weight_ih_l{n}"]
        limit = math.sqrt(6 / (H + below.shape[1]))
        below[:] = rng.uniform(-limit, limit, below.shape)
        for gate in range(4):
            square, _ = np.linalg.qr(rng.normal(size=(H, H)))
            weights[f"lstm.weight_hh_l{n}"][gate * H : (gate + 1) * H] = square
        weights[f"lstm.bias_l{n}"][H : 2 * H] = 1
    return {name: array.astype(np.float32) for name, array in weights.items()}


class _Stage:
    """One training, on what lies before the cuts."""

    def __init__(
        self,
        spec: Spec,
        pairs: Pairs,
        cuts: Sequence[int],
        options: FitOptions,
        updates: int,
        ridge: float,
    ) -> None:
        self.ridge, self.start = ridge, linear_start(spec, pairs, cuts, ridge)
        self.spec, self.options, self.updates = self.start.blended(1), options, updates
        self.pool = gather(self.spec, pairs, cuts)
        self._pairs, self._cuts = pairs, cuts
        learned = self.pool.before_cut()
        learned = learned[evenly(len(learned), JUDGED)]
        off = np.abs(self.pool.target[learned] - self._linear(learned))
        known = np.isfinite(off)
        sizes = np.where(known, off, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        # each step ahead weighs the same, in units of the linear start's error
        self.weight = (1 / np.maximum(sizes, 1e-3 * sizes.mean() + 1e-9)).astype(np.float32)

        weights = initial_weights(spec, options.seed)
        weights["head.skip"] = self.start.skip.astype(np.float32)
        weights["head.bias"] = self.start.bias.astype(np.float32)
        self.net = bptt.net_of(spec)
        self.theta = bptt.pack(spec, weights)
        self.state = bptt.adam(self.net)
        self.state.average[:] = self.theta
        self.best, self.best_loss, self.kept = self.theta.copy(), math.inf, 0
        longest = int((self.pool.bounds[:, 1] - self.pool.bounds[:, 0]).max())
        self.steps = min(options.chunk, longest)
        drops = options.dropout > 0 or options.head_dropout > 0
        self.work = bptt.allocate(self.net, options.batch, self.steps, drops)
        self.loss, self.done = math.nan, 0

    def train(self, progress: Progress | None, before: int, total: int) -> bool:
        """Make the updates, or fewer where patience ends; False where interrupted."""
        options, rng = self.options, np.random.default_rng(self.options.seed)
        unseen = bool((self.pool.bounds[:, 2] > self.pool.bounds[:, 1]).any())
        every = max(1, options.updates // JUDGEMENTS)
        loss, worse = math.nan, 0
        try:
            while self.done < self.updates and not 0 < options.patience <= worse:
                self._update(rng)
                if unseen and self.done % every == 0:
                    loss = self.judged(self.state.average)
                    worse = 0 if loss < self.best_loss else worse + 1
                    if options.patience and not worse:
                        self.best_loss, self.kept = loss, self.done
                        self.best[:] = self.state.average
                if progress:
                    progress(before + self.done, total, self.loss, loss)
        except KeyboardInterrupt:
            if not self.done:
                raise
            return False
        finally:
            if not self.kept:
                self.best[:], self.kept = self.state.average, self.done
        return True

    def _update(self, rng: np.random.Generator) -> None:
        options, part = self.options, self.done % self.options.carried
        if part == 0:
            self._first, self._length = draw(
                rng, self.pool, options.batch, self.steps * options.carried
            )
            self._carried = self._zero_state(options.batch)
        begun = part * self.steps
        length = np.clip(self._length - begun, 0, self.steps)
        rows = np.stack([self._first + begun, length, 0 * length], axis=1)
        cosine = 0.5 * (1 + math.cos(math.pi * self.done / options.updates))
        rate = options.rate * min(1, (self.done + 1) / WARM_UP) * (0.01 + 0.99 * cosine)
        loss = bptt.learn(
            self.net, self.theta, self.work, self._chunk(rows, self._carried), self.state,
            self.done + 1, rate, loss=options.loss, clip=options.clip, dropout=options.dropout,
            head_dropout=options.head_dropout, decay=options.decay, ema=options.ema,
            seed=options.seed << 32,
        )  # fmt: skip
        self.loss = loss if self.done == 0 else 0.95 * self.loss + 0.05 * loss
        self.done += 1

    def judged(
        self,
        theta: NDArray[np.float32],
        prediction: NDArray[np.float32] | None = None,
        series: int = 64,
    ) -> float:
        """Mean loss after the cut; ``prediction`` (N, outputs) receives the outputs there."""
        total, count, steps = 0.0, 0, self.steps
        warm = 2 * steps * self.options.carried
        for spans in lanes(self.pool, self.options.batch, warm, series):
            state = self._zero_state(len(spans))
            for begun in range(0, int(spans[:, 1].max()), steps):
                length, quiet = np.clip(spans[:, 1:] - begun, 0, steps).T
                rows = np.stack([spans[:, 0] + begun, length, quiet], axis=1)
                chunk = self._chunk(rows, state, prediction)
                part, scored = bptt.predict(self.net, theta, self.work, chunk, self.options.loss)
                total, count = total + part, count + scored
        return total / count if count else math.nan

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The weights kept: those at the end, or with patience the best on the unseen span."""
        return bptt.unpack(self.spec, self.best)

    def judge(self, spread: bool, notes: list[str]) -> tuple[Trust, Errors, Floats, int]:
        """What of the model can be trusted, its errors on unseen data, its skill there, blocks.

        With a ``spread`` the errors are what they are over its root: an interval's first share. Of
        the spans before, which no network was judged on, they are those without it.
        """
        pool, prediction = self.pool, np.full_like(self.pool.target, np.nan)
        self.judged(self.best, prediction, series=1024)
        late = pool.after_cut()
        late = late[evenly(len(late), min(JUDGED, FORECASTS // self.spec.outputs))]
        target, full, linear = pool.target[late], prediction[late], self._linear(late)
        off_naive, off_smoothed = (
            gather(self.start.blended(0, share), self._pairs, self._cuts).target[late]
            for share in (0, 1)
        )
        # what the naive forecast and the smoothed one would answer, seen from the base
        naive, smoothed = target - off_naive, target - off_smoothed
        block = np.searchsorted(pool.bounds[:, 2], late, side="right")
        if len(pool.bounds) < MANY:
            block = late // together(self.spec)
        least, part = pool.least_of(late), pool.part[late]
        unseen = Span(target, naive, smoothed, linear, full, least, part, block)
        before = [*earlier_spans(self.spec, self._pairs, self._cuts, self.ridge)]
        few = few_blocks(self.spec, self._pairs, self._cuts)
        trust = trusted(unseen, before if few else (), self.spec.targets)
        if not trust.recurrent.any():
            latest = f"the latest {self.options.validation:.0%}"
            why = f"{latest} are too short to judge it by"
            if unseen.tells_of_networks:
                why = f"on {latest} it was not surely better than without"
            notes.append(f"the network is left out: {why}")
        spans = joined([*before, unseen])
        off = np.abs(spans.target - trust.answer(spans))
        skill = np.full(self.spec.outputs, np.nan)
        for k, errors in enumerate(off[-len(late) :].T):
            known = np.isfinite(errors)
            if known.any():
                skill[k] = errors[known].mean() / max(np.abs(off_naive[known, k]).mean(), 1e-12)
        off *= np.tile(spans.part, self.spec.horizon)
        if spread:
            off[-len(late) :] /= np.exp(SHARES[SPREAD] * self._spread(trust)[late])
        targets = self.spec.targets
        quantiles = error_quantiles(off, spans.block, targets)
        farther = ~np.isfinite(off).any(axis=0)  # than could be judged
        for k in np.flatnonzero(farther).tolist():
            quantiles[:, k] = quantiles[:, max(k - targets, k % targets)]
        return trust, Errors(LEVELS, quantiles), skill, blocks_of(spans.block)

    def _spread(self, trust: Trust) -> NDArray[np.float32]:
        """(N, outputs) the logarithm of the spread after the cut, less its mean of late."""
        spec, weights = trust.fold(self.start, self.weights())
        rows = spread_of(spec, weights, self._pairs, list(self._cuts))
        said = np.full_like(self.pool.target, np.nan)
        # the same network with that head
        self.judged(bptt.pack(self.spec, self.weights() | rows), said, series=1024)
        for _, cut, end in self.pool.bounds:
            said[cut:end] = less_mean(said[cut:end])
        return said

    def _linear(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(rows, outputs) what the linear start answers."""
        skip, bias = self.start.skip.astype(np.float32), self.start.bias.astype(np.float32)
        return self.pool.x[rows] @ skip.T + bias

    def _zero_state(self, batch: int) -> NDArray[np.float32]:
        return np.zeros((self.net.layers, 2, batch, self.net.units), np.float32)

    def _chunk(
        self,
        rows: NDArray[np.int64],
        state: NDArray[np.float32],
        prediction: NDArray[np.float32] | None = None,
    ) -> bptt.Chunk:
        if prediction is None:
            prediction = np.zeros((0, self.spec.outputs), np.float32)
        pool = self.pool
        return bptt.Chunk(self.steps, pool.x, pool.target, self.weight, rows, state, prediction)


def _provenance(name: str, series: Sequence[SeriesData], options: FitOptions) -> dict[str, Any]:
    def stamp(ns: int) -> str:
        return datetime.fromtimestamp(ns // 1_000_000_000, UTC).isoformat()

    def released(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:  # run from a checkout
            return "unknown"

    return {
        "data": name,
        "series": len(series),
        "ticks": sum(len(s.ts) for s in series),
        "from": stamp(min(int(s.ts[0]) for s in series)),
        "to": stamp(max(int(s.ts[-1]) for s in series)),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "streamlstm": released("streamlstm"),
        "numba": released("numba"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "options": options.model_dump(mode="json", exclude_none=True),
    }
