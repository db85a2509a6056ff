"""Whether intervals hold what they promise, and how far chance alone may take them from it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streamlstm.backtest import Actual, Issued, Scores, score, targets

Floats = NDArray[np.float64]
Pairs = Sequence[tuple[Actual, Issued]]
LEVELS = (0.8, 0.9, 0.95)
LEAST = 0.015
"""A deviation that is always tolerated."""
DRAWS = 1000
FEW = 5
"""Series, at least, of which a worst fifth is looked at."""


def judged(pairs: Pairs, season: int) -> dict[float, dict[str, float]]:
    """What came of the intervals of each coverage.

    - covered: the share of all targets within their interval;
    - tolerance: two standard errors of it by a block bootstrap, at least ``LEAST``;
    - worst fifth: the same share in the fifth of the series where it is lowest, and chance: what
      it would fall below in 2.5 % of sets of these sizes, were each series covered perfectly;
      both left out where there are few series;
    - Winkler: the interval score over that of the conformal intervals of the seasonal naive
      forecast, or without a season of the last value.
    """
    scores = score(pairs)
    return {level: _judged(pairs, scores, level, season) for level in scores.coverages}


def _judged(pairs: Pairs, scores: Scores, level: float, season: int) -> dict[str, float]:
    hits = [inside(actual, issued, level) for actual, issued in pairs]
    length = max(hits[0].shape[1], min(season, max(map(len, hits)) // 10), 1)
    measures = {
        "covered": float(np.nanmean(np.concatenate(hits))),
        "tolerance": max(LEAST, 2 * standard_error(hits, length)),
        "Winkler": scores.mean("winkler", "model", level)
        / scores.mean("winkler", scores.names[-1], level),
    }
    if len(hits) >= FEW:
        if max(map(len, hits)) == 1:  # of one origin the steps ahead are what follows one another
            hits, length = [one.T for one in hits], max(season, hits[0].shape[1] // 4)
        measures["worst fifth"] = float(worst_fifth(np.array([np.nanmean(one) for one in hits])))
        measures["chance"] = worst_by_chance(hits, level, length)
    return measures


def inside(actual: Actual, issued: Issued, level: float) -> Floats:
    """(m, horizon) 1 where the target lay within its interval, 0 where not, NaN: none came."""
    target, (lower, upper) = targets(actual, issued), issued.intervals[level]
    hit = (lower <= target) & (target <= upper)
    return np.where(np.isfinite(target), hit, np.nan)


def standard_error(hits: Sequence[Floats], length: int) -> float:
    """Of the share of ones, by drawing blocks of ``length`` origins with replacement."""
    total, count = np.concatenate([blocks(one, length) for one in hits]).T
    drawn = np.random.default_rng(0).integers(0, len(total), (DRAWS, len(total)))
    return float((total[drawn].sum(axis=1) / count[drawn].sum(axis=1)).std())


def blocks(hits: Floats, length: int) -> Floats:
    """(blocks, 2) sum and number of the known hits in each block of origins; none empty."""
    begins = np.arange(0, len(hits), length)
    known = np.isfinite(hits)
    total = np.add.reduceat(np.where(known, hits, 0).sum(axis=1), begins)
    count = np.add.reduceat(known.sum(axis=1), begins)
    return np.stack([total, count], axis=1)[count > 0]


def worst_fifth(shares: Floats) -> Floats:
    """(...) mean of the lowest fifth of shares (..., series)."""
    few = -(-shares.shape[-1] // 5)
    lowest: Floats = np.sort(shares, axis=-1)[..., :few].mean(axis=-1)
    return lowest


def worst_by_chance(hits: Sequence[Floats], level: float, length: int) -> float:
    """What the worst fifth falls below in 2.5 % of simulated sets of perfectly covered series.

    In each, the blocks of all series deviate from ``level`` as they deviate here from their own
    series' share: so errors that come in bursts are known, and differences of series are not.
    """
    counts, deviations = [], []
    for one in hits:
        total, count = blocks(one, length).T
        m = len(total)
        if m > 1:  # the own mean takes 1/m of the variance away
            off = (total - count * total.sum() / count.sum()) * np.sqrt(m / (m - 1))
            deviations.append(off)
            counts.append((m, count.sum()))
    pool, rng = np.concatenate(deviations), np.random.default_rng(0)
    shares = np.stack(
        [level + rng.choice(pool, (DRAWS, m)).sum(axis=1) / size for m, size in counts], axis=1
    )
    return float(np.quantile(worst_fifth(shares), 0.025))
