"""Which season a fit smooths, and how fast: as errs least before the unseen span."""

import itertools
from collections.abc import Sequence

import numpy as np

from streamlstm.datasets.frames import SeriesData
from streamlstm.fit_options import ticks_needed
from streamlstm.linear import PENALTIES, Floats, Singles, ridge, trimmed_mean, with_blend
from streamlstm.mixture import few_blocks
from streamlstm.model import Smoothing, Spec
from streamlstm.samples import Pairs, evenly, gather

LEVELS = 0.01, 0.05, 0.2, 0.4, 0.6, 1.0
PROFILES = 0.05, 0.1, 0.2, 0.4
"""The shares that are tried. A faster profile says little that the latest season does not."""
SERIES, FORECASTS, ROWS = 32, 2_000_000, 8_000
"""Tried on no more series than these, forecasts made, and rows of them looked at."""
LATE = 0.25
"""Share of what is looked at, its latest, on which linear corrections are judged."""
NEAR = 1.02
"""Of losses that are nearly the least, in short series, the fastest is taken: it recovers sooner
from what was never seen before."""


def with_smoothing(spec: Spec, series: Sequence[SeriesData], unseen: float) -> Spec:
    """``spec`` with the smoothing that errs least at the steps ahead that are scored.

    By itself and, where there is enough to judge that by, corrected linearly: it serves both ways.

    Args:
        spec: with a blend of no smoothing yet, whose weights are zeros.
        series: to be fitted; those too short to learn from are left out, and if all are, it stays.
        unseen: share of each, its latest, that is not looked at.
    """
    assert spec.blend is not None
    long = [s for s in series if len(s.ts) >= ticks_needed(spec)]
    if not long:
        return spec
    few = [long[i] for i in evenly(len(long), SERIES)]
    most = max(FORECASTS // spec.outputs // len(few), 20 * spec.blend.long)
    ends = [len(s.ts) - max(1, round(unseen * len(s.ts))) for s in few]
    pairs = [(s.ts[:end][-most:], s.values[:end][-most:]) for s, end in zip(few, ends, strict=True)]
    cuts = [max(1, round((1 - LATE) * len(ts))) for ts, _ in pairs]
    corrected = not few_blocks(spec, pairs, cuts)
    last, trials, errors = gather(spec, pairs, cuts).target, [], []
    for season, level, profile in itertools.product(
        sorted({spec.blend.short, spec.blend.long}), LEVELS, PROFILES
    ):
        smoothing = Smoothing(season=season, level=level, profile=profile)
        alone = ((0.0, 0.0, 0.0, 1.0),) * spec.outputs
        blend = spec.blend.model_copy(update={"smoothing": smoothing, "weights": alone})
        trials.append(spec.model_copy(update={"blend": blend}))
        errors.append(_errors(trials[-1], pairs, cuts, last if corrected else None))
    loss = (errors / np.maximum(np.min(errors, axis=0), 1e-12)).mean(axis=1)
    near = loss <= loss.min() * (1 if corrected else NEAR)
    best = max(itertools.compress(trials, near), key=_pace)
    return with_blend(best, np.zeros((spec.outputs, 4)))


def _pace(spec: Spec) -> float:
    assert spec.smoothing is not None
    return spec.smoothing.level + spec.smoothing.profile


def _errors(spec: Spec, pairs: Pairs, cuts: Sequence[int], last: Singles | None) -> Floats:
    """(scored * targets,) error of the smoothing, or its geometric mean with that of a correction.

    The correction is fitted to what lies before the cuts, and judged on what lies after them.

    Args:
        spec: whose base is the smoothing's forecast.
        pairs, cuts: as :func:`streamlstm.samples.gather` takes them.
        last: (N, outputs) targets as seen from the latest value; None: nothing is corrected.
    """
    pool = gather(spec, pairs, cuts)
    early, late = (rows[evenly(len(rows), ROWS)] for rows in (pool.before_cut(), pool.after_cut()))
    columns = [(k - 1) * spec.targets + j for k in spec.scored for j in range(spec.targets)]
    errors = trimmed_mean(np.abs(pool.target[np.concatenate([early, late])][:, columns]))
    if last is None:
        return errors
    for i, k in enumerate(columns):
        target = pool.target[:, k]
        moved = (last[:, k] - target)[:, None]
        known = early[np.isfinite(target[early])]
        if len(known):
            before, after = (
                np.concatenate([pool.x[rows], moved[rows]], axis=1) for rows in (known, late)
            )
            found, bias = ridge(before, target[known], PENALTIES[0])
            (left,) = trimmed_mean(np.abs(target[late] - after @ found - bias)[:, None])
            errors[i] = np.sqrt(errors[i] * left)
    return errors
