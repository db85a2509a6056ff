"""How far a model errs on data: what the intervals of a new series begin with."""

from dataclasses import replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from streamlstm.golden import network_of
from streamlstm.intervals import MEMORY, MOST, SHARES, SPREAD
from streamlstm.kernels import reference
from streamlstm.mixture import student
from streamlstm.model import Model
from streamlstm.samples import Pairs, Pool, gather, places

LEVELS = np.array([0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975, 0.99])
"""Probabilities at which errors are kept."""
OUTAGE = 10
"""Times the usual error, from which on a block tells of an event and not of the forecasts."""
STARTS, FORECASTS = 64, 2_400_000
"""Youths, and forecasts in them, at most by which the errors of the young are judged."""


def with_young_errors(model: Model, series: Pairs, seed: int) -> Model:
    """The model, with the errors that it makes while a series has not all of its past yet.

    Series are begun anew in the midst of the data, at places drawn by lot: there the forecasts have
    no more to look back on than those of a new series, though the network has seen the data.
    """
    spec, ages = model.spec, np.array(model.spec.ages, np.int64)
    if model.errors is None or not len(ages):
        return model
    youths = _youths(series, int(ages[-1]) + spec.horizon, FORECASTS // spec.outputs, seed)
    pool = gather(spec, youths, [len(ts) for ts, _ in youths], young=True)
    answers = _answers(model, pool)
    answer, begins = answers[:, : spec.outputs], pool.bounds[:, 0]
    if spec.floor is not None:
        answer = np.maximum(answer, pool.least)
    off = np.abs(pool.target - answer)
    if spec.spread:
        said = np.clip(answers[:, spec.outputs : 2 * spec.outputs], -MOST, MOST)
        for begin, _, end in pool.bounds:
            said[begin:end] -= mean_of_late(said[begin:end], MEMORY)
        off /= np.exp(SHARES[SPREAD] * said)
    place = np.concatenate([places(spec.step_ns, ts) for ts, _ in youths])
    ahead = np.repeat(np.arange(1, spec.horizon + 1), spec.targets)
    age = place[:, None] + 1 + (ahead - 1) % ages[0]  # as `model.Errors` says
    phase = np.searchsorted(ages, age, side="right")
    block = np.searchsorted(begins, np.arange(len(place)), side="right")
    young = [
        error_quantiles(np.where(phase == number, off, np.nan).astype(np.float32), block)
        for number in range(len(ages))
    ]
    return replace(model, errors=replace(model.errors, ages=ages, young=np.stack(young)))


def _youths(series: Pairs, length: int, room: int, seed: int) -> Pairs:
    """Spans of ``length`` ticks, or all that there are; as many as there is room for."""
    sizes = np.array([len(ts) for ts, _ in series], np.int64)
    rng = np.random.default_rng(seed)
    many = min(max(room // length, 1), STARTS)
    ends = np.cumsum(sizes)
    drawn = np.searchsorted(ends, rng.integers(0, ends[-1], many), side="right")
    starts = rng.integers(0, np.maximum(sizes[drawn] - length, 0) + 1)
    return [
        (series[i][0][start : start + length], series[i][1][start : start + length])
        for i, start in zip(drawn.tolist(), starts.tolist(), strict=True)
    ]


def _answers(model: Model, pool: Pool) -> NDArray[np.float32]:
    """(N, answers) of the network, each series from a zero state; side by side, step by step."""
    begins, _, ends = pool.bounds.T
    buffers = reference.allocate(network_of(model.spec, model.weights), len(begins))
    answers = np.zeros((len(pool.x), model.spec.answers), np.float32)
    for step in range(int((ends - begins).max())):
        slots = np.flatnonzero(begins + step < ends).astype(np.int32)
        rows = begins[slots] + step
        out = np.zeros((len(rows), model.spec.answers))
        reference.step(buffers, slots, pool.x[rows], np.array([0, len(rows)]), out)
        answers[rows] = out
    return answers


def mean_of_late(numbers: NDArray[np.float32], many: int) -> NDArray[np.float32]:
    """(n, outputs) of each row and those just before it, up to so ``many`` in all."""
    sums = np.cumsum(np.pad(numbers, ((1, 0), (0, 0))), axis=0, dtype=np.float64)
    row = np.arange(1, len(numbers) + 1)
    first = np.maximum(row - many, 0)
    mean: NDArray[np.float64] = (sums[row] - sums[first]) / (row - first)[:, None]
    return mean.astype(np.float32)


def error_quantiles(off: NDArray[np.float32], block: NDArray[np.int64]) -> NDArray[np.float32]:
    """(LEVELS, outputs) quantiles of absolute errors, to start intervals from.

    What few blocks say is uncertain: quantiles are widened as Student's t is over the normal. A
    block that errs ``OUTAGE`` times as much as the median block is left out: that was an event, and
    intervals made for it would be useless until the next one.

    Args:
        off: (n, outputs) NaN where not known.
        block: (n,) rising; rows of one block err together.
    """
    begins = np.flatnonzero(np.diff(block, prepend=block[0] - 1))
    known = np.isfinite(off)
    count = np.add.reduceat(known, begins, axis=0, dtype=np.float64)
    mean = np.add.reduceat(np.where(known, off, 0), begins, axis=0, dtype=np.float64)
    mean /= np.maximum(count, 1)
    normal = np.array([NormalDist().inv_cdf((1 + level) / 2) for level in LEVELS])
    wider = student(max(len(begins) - 1, 2), normal) / normal
    lengths = np.diff(begins, append=len(block))
    quantiles = np.zeros((len(LEVELS), off.shape[1]), np.float32)
    for k, errors in enumerate(off.T):
        if known[:, k].any():
            usual = np.median(mean[count[:, k] > 0, k])
            event = (mean[:, k] > OUTAGE * usual) & (usual > 0)
            kept = errors[known[:, k] & ~np.repeat(event, lengths)]
            quantiles[:, k] = np.quantile(kept, LEVELS) * wider
    return quantiles
