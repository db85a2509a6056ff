"""How far a model errs on data: what the intervals of a new series begin with."""

from dataclasses import replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from streamlstm.directions import answers_of
from streamlstm.features import features_of, grid_places
from streamlstm.golden import network_of
from streamlstm.intervals import FEW, MEMORY, MOST, SHARES, SPREAD, units
from streamlstm.kernels import reference
from streamlstm.mixture import student, together
from streamlstm.model import Model, Spec
from streamlstm.samples import Pairs, evenly, fill, gather

LEVELS = np.array([0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975, 0.99])
"""Probabilities at which errors are kept."""
OUTAGE, MOSTLY = 10, 0.75
"""A block that errs so many times as such a share of the blocks do tells of an event and not of the
forecasts; at the step ahead where each errs most."""
STARTS, FORECASTS = 64, 2_400_000
"""Youths, and forecasts in them, at most by which the errors of the young are judged; forecasts at
most of whose errors quantiles are taken."""
LONGEST, MOST_AT_ONCE = 12_000, 1 << 26
"""Ticks of a youth, and forecasts in it, beyond which they are not."""
WORTH = 12
"""Blocks of unseen data that say as much of what is to come as the data trained on."""
SERIES, LATEST = 64, 12_000
"""Series, and ticks of each, at most by which errors on what was trained on are judged."""


def with_young_errors(model: Model, series: Pairs, seed: int) -> Model:
    """The model, with the errors that it makes while a series has not all of its past yet.

    Series are begun anew in the midst of the data, at places drawn by lot: there the forecasts have
    no more to look back on than those of a new series, though the network has seen the data. A
    model whose look back is very long is left as it is.
    """
    spec, ages = model.spec, np.array(model.spec.ages, np.int64)
    if model.errors is None or not len(ages):
        return model
    length = int(ages[-1]) + spec.horizon
    if length > LONGEST or length * spec.outputs > MOST_AT_ONCE:
        return model
    room = max(FORECASTS // (spec.outputs * len(ages)), 1)  # places of a phase, of all youths
    starts, block = _starts([len(ts) for ts, _ in series], length, min(room, STARTS), seed)
    many, begins = max(room // len(starts), 1), (0, *(ages[:-1] - 1).tolist())
    wanted = [
        begin + evenly(age - 1 - begin, many)
        for begin, age in zip(begins, ages.tolist(), strict=True)
    ]
    youths = [_Youth(spec, series[i], start, length, wanted) for i, start in starts]
    young = [
        error_quantiles(off, np.repeat(block, len(each)), spec.targets)
        for off, each in zip(_errors_of(model, youths, wanted), wanted, strict=True)
    ]
    return replace(model, errors=replace(model.errors, ages=ages, young=np.stack(young)))


def with_seen_errors(model: Model, series: Pairs, blocks: int) -> Model:
    """The model, with what it errs on the ``series`` that it was trained on.

    Where few blocks of unseen data were there, their quantiles say less of what is to come than
    these do beside them: the logarithms of both are averaged, those of ``WORTH`` blocks by halves.
    What one of many series errs in its history, beside the mean of all, says whether it errs more
    than others.
    """
    spec, errors = model.spec, model.errors
    if errors is None:
        return model
    parts, numbers, total, count = [], [], 0.0, 0
    chosen = evenly(len(series), SERIES)
    many = max(FORECASTS // (spec.outputs * len(chosen)), 1)  # rows of each
    for i in chosen:
        ts, values = (each[-LATEST:] for each in series[i])
        pool = gather(spec, [(ts, values)], [len(ts)])
        answers = answers_of(spec, model.weights, pool.x)
        answer = np.maximum(answers[:, : spec.outputs], pool.least_of(np.arange(len(pool.x))))
        off = np.abs(pool.target - answer) * np.tile(pool.part, spec.horizon)
        if spec.spread:
            said = less_mean(answers[:, spec.outputs : 2 * spec.outputs])
            off /= np.exp(SHARES[SPREAD] * said)
        total, count = total + np.nansum(off, axis=0), count + np.isfinite(off).sum(axis=0)
        rows = evenly(len(off), many)
        parts.append(off[rows].astype(np.float32))
        numbers.append(i * LATEST + rows // together(spec))
    share = 1 / (1 + blocks / WORTH)
    block = np.concatenate(numbers)
    seen = quantiles_of(np.concatenate(parts), block, spec.targets, errors.levels)
    both = errors.quantiles ** (1 - share) * seen**share
    quantiles = np.where((seen > 0) & (errors.quantiles > 0), both, errors.quantiles)
    errors = replace(errors, quantiles=np.maximum.accumulate(quantiles.astype(np.float32)))
    if len(series) > 1:
        errors = replace(errors, seen=(total / np.maximum(count, 1)).astype(np.float32))
    return replace(model, errors=errors)


def _starts(
    sizes: list[int], length: int, many: int, seed: int
) -> tuple[list[tuple[int, int]], NDArray[np.int64]]:
    """(series, first tick) of each youth, in order, and the block that it belongs to.

    Those of one block overlap, or nearly so, and err together.
    """
    rng, ends = np.random.default_rng(seed), np.cumsum(sizes)
    which = np.searchsorted(ends, rng.integers(0, ends[-1], many), side="right")
    first = rng.integers(0, np.maximum(np.array(sizes)[which] - length, 0) + 1)
    order = np.lexsort((first, which))
    which, first = which[order], first[order]
    parts = np.stack([which, first // length], axis=1)
    block = np.cumsum((np.diff(parts, axis=0, prepend=parts[:1]) != 0).any(axis=1))
    return list(zip(which.tolist(), first.tolist(), strict=True)), block


class _Youth:
    """A span of a series as if it began there.

    Attributes:
        x: (n, width) what the network is shown.
        target, least: (n, outputs) what it should answer, NaN where not known, and the answer that
            is the floor.
        part: (n, outputs) one unit of the answer, in those of an interval's half-width.
        wanted: of each row whose place is: the phase, and which of its places that is.
    """

    def __init__(
        self,
        spec: Spec,
        series: tuple[NDArray[np.int64], NDArray[np.float64]],
        start: int,
        length: int,
        wanted: list[NDArray[np.int64]],
    ) -> None:
        ts, values = series[0][start : start + length], series[1][start : start + length]
        rows, place = features_of(spec, ts, values), grid_places(spec.step_ns, ts)
        self.x = rows.x
        self.target = np.full((len(ts), spec.outputs), np.nan, np.float32)
        fill(place, values, rows.base, rows.scale, 0, len(ts), spec.targets, self.target)
        self.part = np.tile(rows.scale / units(place, rows.scale), spec.horizon)
        floor = -np.inf if spec.floor is None else spec.floor
        self.least = (floor - rows.base) / np.tile(rows.scale, spec.horizon)
        self.wanted = {
            row: (phase, which)
            for phase, each in enumerate(wanted)
            for which, row in enumerate(np.searchsorted(place, each).tolist())
            if row < len(place) and place[row] == each[which]
        }


def _errors_of(
    model: Model, youths: list[_Youth], wanted: list[NDArray[np.int64]]
) -> list[NDArray[np.float32]]:
    """(youths * places, outputs) of each phase; with a spread, over its root. NaN: not known."""
    spec, many = model.spec, len(youths)
    buffers = reference.allocate(network_of(spec, model.weights), many)
    off = [np.full((many, len(each), spec.outputs), np.nan, np.float32) for each in wanted]
    mean, unit = np.zeros((many, spec.outputs)), np.ones((many, spec.outputs))
    for step in range(max(len(youth.x) for youth in youths)):
        there = np.array([n for n, youth in enumerate(youths) if step < len(youth.x)], np.int32)
        x, out = np.stack([youths[n].x[step] for n in there]), np.zeros((len(there), spec.answers))
        reference.step(buffers, there, x, np.array([0, len(there)]), out)
        if spec.spread:  # its mean of late is taken from it as `intervals` does
            said = np.clip(out[:, spec.outputs : 2 * spec.outputs], -MOST, MOST)
            mean[there] += (said - mean[there]) / min(step + 1 + FEW, MEMORY)
            unit[there] = np.exp(SHARES[SPREAD] * np.clip(said - mean[there], -MOST, MOST))
        for n, answer in zip(there.tolist(), out[:, : spec.outputs], strict=True):
            youth = youths[n]
            if step in youth.wanted:
                phase, which = youth.wanted[step]
                error = np.abs(youth.target[step] - np.maximum(answer, youth.least[step]))
                off[phase][n, which] = error * youth.part[step] / unit[n]
    return [each.reshape(-1, spec.outputs) for each in off]


def less_mean(said: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, outputs) logarithms of the spreads of a series' rows, less their mean of late."""
    said = np.clip(said, -MOST, MOST)
    return said - mean_of_late(said, MEMORY)


def mean_of_late(numbers: NDArray[np.float32], many: int) -> NDArray[np.float32]:
    """(n, outputs) of each row and those just before it, up to so ``many`` in all."""
    sums = np.cumsum(np.pad(numbers, ((1, 0), (0, 0))), axis=0, dtype=np.float64)
    row = np.arange(1, len(numbers) + 1)
    first = np.maximum(row - many, 0)
    mean: NDArray[np.float64] = (sums[row] - sums[first]) / (row - first)[:, None]
    return mean.astype(np.float32)


def error_quantiles(
    off: NDArray[np.float32], block: NDArray[np.int64], targets: int = 1
) -> NDArray[np.float32]:
    """(LEVELS, outputs) those of :func:`quantiles_of`, wider for what few blocks leave uncertain.

    That is, as Student's t is over the normal.
    """
    normal = np.array([NormalDist().inv_cdf((1 + level) / 2) for level in LEVELS])
    wider = student(max(blocks_of(block) - 1, 2), normal) / normal
    return (quantiles_of(off, block, targets) * wider[:, None]).astype(np.float32)


def blocks_of(block: NDArray[np.int64]) -> int:
    """How many blocks there are, of rows (n,) that are said to be of one each, rising."""
    return 1 + int(np.count_nonzero(np.diff(block)))


def quantiles_of(
    off: NDArray[np.float32],
    block: NDArray[np.int64],
    targets: int = 1,
    levels: NDArray[np.float64] = LEVELS,
) -> NDArray[np.float32]:
    """(levels, outputs) quantiles of absolute errors, to start intervals from.

    A block that errs ``OUTAGE`` times as much as most do is left out: that was an event, and
    intervals made for it would be useless until the next one. It is left out at all steps ahead, or
    intervals would be wide and narrow by turns.

    Args:
        off: (n, outputs) NaN where not known.
        block: (n,) rising; rows of one block err together.
        targets: of which the outputs are by turns; each has events of its own.
        levels: probabilities, rising.
    """
    begins = np.flatnonzero(np.diff(block, prepend=block[0] - 1))
    known = np.isfinite(off)
    count = np.add.reduceat(known, begins, axis=0, dtype=np.float64)
    mean = np.add.reduceat(np.where(known, off, 0), begins, axis=0, dtype=np.float64)
    mean /= np.maximum(count, 1)
    lengths = np.diff(begins, append=len(block))
    quantiles = np.zeros((len(levels), off.shape[1]), np.float32)
    calm = [
        ~np.repeat(_events(mean[:, j::targets], count[:, j::targets]), lengths)
        for j in range(targets)
    ]
    for k, errors in enumerate(off.T):
        if known[:, k].any():
            kept = known[:, k] & calm[k % targets]
            kept = kept if kept.any() else known[:, k]
            quantiles[:, k] = np.quantile(errors[kept], levels)
    return quantiles


def _events(mean: NDArray[np.float64], count: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(blocks,) which are events, of their mean errors at each step ahead, (blocks, steps).

    ``count`` (blocks, steps) is of how many errors these are.
    """
    worst, known = np.zeros(len(mean)), count > 0
    for errors, there in zip(mean.T, known.T, strict=True):
        most = np.quantile(errors[there], MOSTLY, method="nearest") if there.any() else 0.0
        if most > 0:
            worst = np.maximum(worst, errors / most)
    some = known.any(axis=1)
    limit = np.quantile(worst[some], MOSTLY, method="nearest") if some.any() else 0.0
    return worst > OUTAGE * limit
