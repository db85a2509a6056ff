"""``streamlstm fit``: one model for many series, from their own past.

The network corrects a naive forecast. First its linear part is fitted in closed form, by a robust
ridge regression; then truncated backpropagation through time (:mod:`streamlstm.bptt`) starts from
there. All of it is done twice: once on the earlier part of the time span, to learn from the latest
part how far the linear and the recurrent correction can be trusted at each step ahead, and once on
all of it. So a bad network ends as the naive forecast, a mediocre one as the linear model.
"""

import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm import bptt
from streamlstm.datasets.frames import SeriesData
from streamlstm.datasets.times import DataError
from streamlstm.features import DAY, WEEK, YEAR, default_calendar
from streamlstm.fit_options import FitOptions
from streamlstm.golden import make_golden
from streamlstm.model import Errors, Model, Scaling, Spec
from streamlstm.samples import Pool, draw, gather, lanes, places

__all__ = ["FitOptions", "FitReport", "Progress", "fit"]

Floats = NDArray[np.float64]
LEVELS = np.array([0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975, 0.99])
"""Probabilities at which the errors on the unseen span are kept."""
JUDGEMENTS = 30
"""How often a training is judged on the unseen span."""
WARM_UP = 20
"""Updates over which the learning rate rises."""

Progress = Callable[[int, int, float, float], None]
"""Called with updates done, updates at most, training loss, loss on the unseen span; both losses
are 1 where the model errs as much as its linear start did in training."""


@dataclass
class FitReport:
    """How a fit went."""

    series: int
    skipped: int
    """series too short to learn from"""
    ticks: int
    updates: int
    """updates made"""
    loss: float
    """training loss at the end; 1 is the linear start's"""
    skill: Floats
    """(outputs,) mean absolute error on the unseen span over that of the naive start"""
    linear: Floats
    """(outputs,) how far the linear correction is trusted, 0 to 1"""
    recurrent: Floats
    """(outputs,) how far the recurrent correction is trusted, 0 to 1"""
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
) -> tuple[Model, FitReport]:
    """Fit a model to ``series``.

    An interrupt (Ctrl-C) ends the training, and what was learned so far makes the model.

    Args:
        series: as :func:`streamlstm.datasets.frames.read_table` gives them.
        options: what to do otherwise than by default.
        progress: called after each update.
        name: of the data, for the model's provenance.

    Raises:
        DataError: no series is long enough.
        KeyboardInterrupt: before the first update.
    """
    began = time.perf_counter()
    options = options or FitOptions()
    notes: list[str] = []
    spec = infer_spec(series, options, notes)
    used = _long_enough(series, spec, notes)
    pairs = [(s.ts, s.values) for s in used]
    counts = [len(s.ts) for s in used]
    cuts = [n - max(1, round(options.validation * n)) for n in counts]

    first = _Stage(spec, gather(spec, pairs, cuts), options)
    finished = first.train(progress, 0, 2 * options.updates)
    trust, errors, skill = first.judge()
    last = first
    if finished:
        second = _Stage(spec, gather(spec, pairs, counts), options, updates=first.kept)
        if finished := second.train(progress, options.updates, 2 * options.updates):
            last = second
    weights = trust.fold(last.weights(), last.skip, last.bias)
    provenance = _provenance(name, used, options)
    model = Model(spec, weights, make_golden(spec, weights, options.seed), errors, provenance)
    report = FitReport(
        series=len(used),
        skipped=len(series) - len(used),
        ticks=sum(counts),
        updates=first.done + (last.done if last is not first else 0),
        loss=last.loss,
        skill=skill,
        linear=trust.linear,
        recurrent=trust.recurrent,
        seconds=time.perf_counter() - began,
        interrupted=not finished,
        notes=notes,
    )
    return model, report


def _long_enough(
    series: Sequence[SeriesData], spec: Spec, notes: list[str]
) -> Sequence[SeriesData]:
    need = max(spec.history + 2 * spec.horizon, 4)
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


# --- defaults from the data -----------------------------------------------------------------------


def infer_spec(series: Sequence[SeriesData], options: FitOptions, notes: list[str]) -> Spec:
    """The spec that options and data ask for; what was inferred is noted."""
    spaced = [np.diff(s.ts) for s in series if len(s.ts) > 1]
    spacing = int(np.median([np.median(gaps) for gaps in spaced])) if spaced else 0
    step_ns = spacing
    if sum(int((gaps > 1.5 * spacing).sum()) for gaps in spaced) > 0.1 * sum(map(len, spaced)):
        step_ns = 0
        notes.append("ticks are unevenly spaced: steps ahead are counted in ticks")
    longest = max((len(s.ts) for s in series), default=0)
    if options.season is None:
        # what was not seen three times over is not believed to repeat
        seasons = [season for season in _seasons(spacing, step_ns) if longest >= 3 * season]
    else:
        seasons = [options.season] if options.season else []
    season, base = best_naive(series, step_ns, seasons, options)
    if options.base is not None:
        base = options.base
    if options.season is None:
        notes.append(
            f"season of {season} steps, forecasts start from the {base} value"
            if season
            else "no season found"
        )
    lags = options.lags
    if lags is None:
        lags = tuple(sorted({1, 2, *seasons, *(season + 1 for season in seasons)}))
    calendar = options.calendar
    if calendar is None:
        span = max((int(s.ts[-1] - s.ts[0]) for s in series if len(s.ts)), default=0)
        calendar = default_calendar(spacing, span)
    return Spec(
        layers=options.layers,
        hidden=options.hidden,
        step_ns=step_ns,
        horizon=options.horizon,
        season=season,
        base=base if season else "last",
        lags=lags,
        calendar=calendar,
        timezone=options.timezone,
        scaling=Scaling(kind="running", memory=options.memory or max([100, *seasons])),
    )


def _seasons(spacing: int, step_ns: int) -> list[int]:
    """Steps of the periods that people and weather follow, as a spacing lets them be seen."""
    if spacing == 0:
        return []
    if step_ns == 0:  # of trading days, say
        return [5] if DAY <= spacing < 2 * DAY else []
    periods = (DAY, WEEK) if spacing < DAY else (WEEK,) if spacing < WEEK else (YEAR,)
    return sorted({round(period / spacing) for period in periods} - {0, 1})


def best_naive(
    series: Sequence[SeriesData], step_ns: int, seasons: Sequence[int], options: FitOptions
) -> tuple[int, Any]:
    """The season that repeats best, and whether it or the last value forecasts better.

    Judged by the mean of the lower 90 % of absolute errors, over the steps ahead and at most 64
    series, before the unseen span.
    """
    if not seasons:
        return 0, "last"
    errors = dict.fromkeys([0, *seasons], 0.0)
    steps = np.unique(np.linspace(1, options.horizon, 8).astype(int))
    for s in series[:64]:
        kept = len(s.ts) - round(options.validation * len(s.ts))
        if kept < 3 * max(seasons):
            continue
        place = places(step_ns, s.ts[:kept])
        values = s.values[:kept, 0]
        for k in steps:
            offs = {}
            for season in errors:
                back = season * -(-k // season) if season else k
                at = np.searchsorted(place, place - back)
                known = (place[at] == place - back) & (place >= back)
                offs[season] = np.sort(np.abs(values - values[at])[known])
            scale = max(float(offs[0].mean()), 1e-12) if len(offs[0]) else 1.0
            for season, off in offs.items():
                lower = off[: max(1, int(0.9 * len(off)))]
                errors[season] += float(lower.mean()) / scale if len(lower) else 0.0
    season = min(seasons, key=lambda s: errors[s])
    return season, "seasonal" if errors[season] < errors[0] else "last"


# --- the linear start -----------------------------------------------------------------------------


def ridge(
    x: NDArray[np.float32], target: NDArray[np.float32], penalty: float, *, rows: int = 20_000
) -> tuple[Floats, Floats]:
    """Robust linear regression of each target on x: skip (O, I) and bias (O,).

    Huber's loss, which turns from square to line at three times the median error, by iteratively
    reweighted least squares (Holland & Welsch 1977). ``penalty`` shrinks each coefficient, in
    shares of the mean square of its column. Of more than ``rows`` rows, as many are taken, evenly.
    """
    taken = np.linspace(0, len(x) - 1, min(rows, len(x))).astype(int)
    wide = np.concatenate([x[taken], np.ones((len(taken), 1), np.float32)], axis=1)
    answers = target[taken]
    solution = np.zeros((target.shape[1], wide.shape[1]))
    for k, answer in enumerate(answers.T):
        known = np.isfinite(answer)
        if not known.any():
            continue
        a, y = wide[known].astype(np.float64), answer[known].astype(np.float64)
        weight = np.ones(len(y))
        for _ in range(6):
            weighted = a * weight[:, None]
            square = weighted.T @ a
            shrink = penalty * np.diag(square) + 1e-9 * len(y)
            shrink[-1] = 1e-9 * len(y)
            before = solution[k]
            solution[k] = np.linalg.solve(square + np.diag(shrink), weighted.T @ y)
            off = np.abs(a @ solution[k] - y)
            weight = np.minimum(1, 3 * (np.median(off) + 1e-9) / np.maximum(off, 1e-12))
            if np.abs(solution[k] - before).max() < 1e-4:
                break
    return solution[:, :-1], solution[:, -1]


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


# --- training -------------------------------------------------------------------------------------


class _Stage:
    """One training, on what lies before the cut of a pool."""

    def __init__(
        self, spec: Spec, pool: Pool, options: FitOptions, updates: int | None = None
    ) -> None:
        self.spec, self.pool, self.options = spec, pool, options
        self.net = bptt.net_of(spec)
        self.updates = options.updates if updates is None else updates
        learned = np.concatenate([np.arange(a, b) for a, b, _ in pool.bounds])
        x, target = pool.x[learned], pool.target[learned]
        self.skip, self.bias = ridge(x, target, options.ridge)
        off = np.abs(target - x @ self.skip.T - self.bias)
        known = np.isfinite(off)
        sizes = np.where(known, off, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        # each step ahead weighs the same, in units of the linear start's error
        self.weight = (1 / np.maximum(sizes, 1e-3 * sizes.mean() + 1e-9)).astype(np.float32)

        weights = initial_weights(spec, options.seed)
        weights["head.skip"] = self.skip.astype(np.float32)
        weights["head.bias"] = self.bias.astype(np.float32)
        self.theta = bptt.pack(spec, weights)
        self.state = bptt.adam(self.net)
        self.state.average[:] = self.theta
        self.best, self.best_loss, self.kept = self.theta.copy(), math.inf, 0
        longest = int((pool.bounds[:, 1] - pool.bounds[:, 0]).max())
        self.steps = min(options.chunk, longest)
        drops = options.dropout > 0 or options.head_dropout > 0
        self.work = bptt.allocate(self.net, options.batch, self.steps, drops)
        self.loss, self.done = math.nan, 0

    def train(self, progress: Progress | None, before: int, total: int) -> bool:
        """Make the updates, or fewer where the unseen span says so; False where interrupted."""
        options, rng = self.options, np.random.default_rng(self.options.seed)
        unseen = bool((self.pool.bounds[:, 2] > self.pool.bounds[:, 1]).any())
        every = max(1, options.updates // JUDGEMENTS)
        loss, worse = math.nan, 0
        try:
            while self.done < self.updates:
                self._update(rng)
                if unseen and (self.done % every == 0 or self.done == self.updates):
                    loss = self.unseen_loss(self.state.average)
                    worse = 0 if loss < self.best_loss else worse + 1
                    if not worse:
                        self.best_loss, self.kept = loss, self.done
                        self.best[:] = self.state.average
                    if worse >= options.patience:
                        break
                if progress:
                    progress(before + self.done, total, self.loss, loss)
        except KeyboardInterrupt:
            if not self.done:
                raise
            return False
        finally:
            if not math.isfinite(self.best_loss):
                self.best[:], self.kept = self.state.average, self.done
        return True

    def _update(self, rng: np.random.Generator) -> None:
        options, part = self.options, self.done % self.options.carried
        if part == 0:
            self._start, self._length = draw(
                rng, self.pool, options.batch, self.steps * options.carried
            )
            self._carried = self._zero_state(options.batch)
        begun = part * self.steps
        length = np.clip(self._length - begun, 0, self.steps)
        rows = np.stack([self._start + begun, length, 0 * length], axis=1)
        share = self.done / options.updates
        rate = options.rate * min(1, (self.done + 1) / WARM_UP)
        loss = bptt.learn(
            self.net, self.theta, self.work, self._chunk(rows, self._carried), self.state,
            self.done + 1, rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share))),
            loss=options.loss, clip=options.clip, dropout=options.dropout,
            head_dropout=options.head_dropout, decay=options.decay,
            ema=min(options.ema, (self.done + 1) / (self.done + 10)), seed=options.seed << 32,
        )  # fmt: skip
        self.loss = loss if self.done == 0 else 0.95 * self.loss + 0.05 * loss
        self.done += 1

    def unseen_loss(
        self, theta: NDArray[np.float32], prediction: NDArray[np.float32] | None = None
    ) -> float:
        """Mean loss after the cut; ``prediction`` (N, outputs) receives the outputs there."""
        total, count, steps = 0.0, 0, self.steps
        for spans in lanes(self.pool, self.options.batch, 2 * steps * self.options.carried):
            state = self._zero_state(len(spans))
            for begun in range(0, int(spans[:, 1].max()), steps):
                length, quiet = np.clip(spans[:, 1:] - begun, 0, steps).T
                rows = np.stack([spans[:, 0] + begun, length, quiet], axis=1)
                chunk = self._chunk(rows, state, prediction)
                part, scored = bptt.predict(self.net, theta, self.work, chunk, self.options.loss)
                total, count = total + part, count + scored
        return total / count if count else math.inf

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The weights kept: the best on the unseen span, or the last where there is none."""
        return bptt.unpack(self.spec, self.best)

    def judge(self) -> tuple["Trust", Errors, Floats]:
        """What of the model can be trusted, its errors on the unseen span, and its skill there."""
        prediction = np.full_like(self.pool.target, np.nan)
        self.unseen_loss(self.best, prediction)
        bounds = self.pool.bounds
        late = np.concatenate([np.arange(b, c) for _, b, c in bounds])
        target, full = self.pool.target[late], prediction[late]
        linear = self.pool.x[late] @ self.skip.T.astype(np.float32) + self.bias.astype(np.float32)
        cycles = [*_seasons(self.spec.step_ns, self.spec.step_ns), self.spec.season or 1]
        length = max(min(cycles), self.spec.horizon)
        if len(bounds) >= 16:  # series are the blocks that err together
            block = np.repeat(np.arange(len(bounds)), bounds[:, 2] - bounds[:, 1])
        else:
            block = late // length
        trust = trusted(target, linear, full, block, self.spec.targets)
        off = np.abs(target - trust.answer(linear, full))
        quantiles = np.zeros((len(LEVELS), self.spec.outputs), np.float32)
        skill = np.full(self.spec.outputs, np.nan)
        for k, errors in enumerate(off.T):
            known = np.isfinite(errors)
            if known.any():
                quantiles[:, k] = np.quantile(errors[known], LEVELS)
                skill[k] = errors[known].mean() / max(np.abs(target[known, k]).mean(), 1e-12)
        return trust, Errors(LEVELS, quantiles), skill

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


class Trust(NamedTuple):
    """How much of each correction of the naive forecast to keep."""

    linear: Floats
    """(outputs,) 0 to 1"""
    recurrent: Floats
    """(outputs,) 0 to 1"""

    def answer(self, linear: NDArray[np.float32], full: NDArray[np.float32]) -> NDArray[np.float32]:
        """The output of the trusted mixture, from those of the linear start and the network."""
        mixed = self.linear * linear + self.recurrent * (full - linear)
        return mixed.astype(np.float32)

    def fold(
        self, weights: dict[str, NDArray[np.float32]], skip: Floats, bias: Floats
    ) -> dict[str, NDArray[np.float32]]:
        """Weights of the network that answers with the mixture; skip, bias: its linear start."""
        a, b = self.linear, self.recurrent
        folded: dict[str, NDArray[Any]] = dict(weights)
        folded["head.weight"] = b[:, None] * weights["head.weight"]
        folded["head.skip"] = (a - b)[:, None] * skip + b[:, None] * weights["head.skip"]
        folded["head.bias"] = (a - b) * bias + b * weights["head.bias"]
        return {name: array.astype(np.float32) for name, array in folded.items()}


def trusted(
    target: NDArray[np.float32],
    linear: NDArray[np.float32],
    full: NDArray[np.float32],
    block: NDArray[np.int64],
    targets: int = 1,
) -> Trust:
    """The mixture of naive forecast (0), linear start and network that errs least on unseen rows.

    For each output the lower end of the 95 % confidence interval (Student's) of the gain in mean
    absolute error, smoothed over the steps ahead, is made as large as possible, so that luck is not
    taken for skill: the fewer blocks, the surer the gain has to be.

    Args:
        target: (n, outputs) NaN where not known.
        linear, full: (n, outputs) what each answers.
        block: (n,) rising; rows of one block err together.
        targets: outputs are in the order [step][target].
    """
    begins = np.flatnonzero(np.diff(block, prepend=block[0] - 1))
    known = np.isfinite(target) & np.isfinite(full)
    count = np.add.reduceat(known, begins, axis=0, dtype=np.float64)
    size = np.maximum(count.sum(axis=0), 1)
    naive = np.where(known, np.abs(target), 0)
    scale = np.maximum(naive.sum(axis=0) / size, 1e-12)
    grid = np.linspace(0, 1, 5)
    costs, pairs = [], [(a, b) for a in grid for b in grid]
    for a, b in pairs:
        off = np.abs(target - (a * linear + b * (full - linear)))
        sums = np.add.reduceat(np.where(known, off - naive, 0), begins, axis=0, dtype=np.float64)
        mean = sums.sum(axis=0) / size
        # of a ratio of sums over blocks
        spread = ((sums - mean * count) ** 2).sum(axis=0)
        blocks = np.maximum((count > 0).sum(axis=0), 2)
        error = np.sqrt(spread * blocks / (blocks - 1)) / size
        costs.append(_smooth((mean + _student(blocks - 1) * error) / scale, targets))
    chosen = np.array(pairs)[np.argmin(costs, axis=0)]
    return Trust(chosen[:, 0], chosen[:, 1])


def _student(freedom: NDArray[np.int64]) -> Floats:
    """The 97.5 % quantile of Student's t, by its expansion around the normal's (Fisher 1941)."""
    z = 1.96
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    quantile: Floats = z + first / freedom + second / freedom**2
    return quantile


def _smooth(cost: Floats, targets: int) -> Floats:
    """Average over neighbouring steps ahead, more of them the further ahead."""
    step = np.arange(1, len(cost) // targets + 1)
    width = np.maximum(0.5, 0.15 * step)[:, None]
    kernel = np.exp(-0.5 * ((step[None, :] - step[:, None]) / width) ** 2)
    kernel /= kernel.sum(axis=1, keepdims=True)
    return (kernel @ cost.reshape(-1, targets)).ravel()


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
