"""The spread of a fitted model: how far each of its forecasts may err, said with the forecast.

A head of its own on the trained network, linear in the input vector and the last layer's state: the
logarithm of a high quantile of the absolute error, less its mean, learned by pinball loss (Koenker
& Bassett 1978). What it says is a guess; each series learns on the stream how much of it to believe
(:mod:`streamlstm.intervals`).
"""

import math

import numpy as np
from numpy.typing import NDArray

from streamlstm.directions import components, state_of
from streamlstm.linear import Floats
from streamlstm.model import Spec
from streamlstm.samples import Pairs, evenly, gather

Singles = NDArray[np.float32]
QUANTILE = 0.8
"""Of the absolute error."""
COMPONENTS = 32
"""Principal components that it is learned from, at most: more would follow chance."""
PENALTY = 40.0
"""Of the square of its weights, over the ticks learned from."""
SMALL = 0.01
"""Mean errors that are added before the logarithm is taken: how much smaller yet is no matter."""
ROWS, NUMBERS = 8_000, 400_000
"""Ticks, and ticks times forecasts, that are learned from at most, evenly spaced."""
SERIES = 256
"""And series."""
UPDATES, RATE, SMOOTH = 600, 0.03, 0.05
"""Of the training; the corner of the loss is rounded within ``SMOOTH``."""
PRODUCT = 1 << 18
"""Multiplications of an update's matrix product, few enough for one thread."""


def spread_of(
    spec: Spec, weights: dict[str, Singles], pairs: Pairs, cuts: list[int]
) -> dict[str, Singles]:
    """Rows of the head that say the logarithms of the spreads, (outputs, ...) each.

    Learned from what each of the (ts, values) pairs was before its tick number ``cuts[i]``.
    """
    few = evenly(len(pairs), SERIES)
    past = [(pairs[i][0][: cuts[i]], pairs[i][1][: cuts[i]]) for i in few]
    pool = gather(spec, past, [len(ts) for ts, _ in past])
    asked = np.flatnonzero(np.isfinite(pool.target).any(axis=1))
    if not len(asked):
        return {
            name: np.zeros((spec.outputs, *shape[1:]), np.float32)
            for name, shape in spec.weight_shapes().items()
            if name.startswith("head.")
        }
    rows = min(ROWS, max(NUMBERS // spec.outputs, 4 * COMPONENTS))
    taken = asked[evenly(len(asked), rows)]
    states = [
        state_of(spec, weights, pool.x[a:b])[taken[(taken >= a) & (taken < b)] - a]
        for a, b, _ in pool.bounds
    ]
    known = np.concatenate([pool.x[taken], np.concatenate(states)], axis=1).astype(np.float64)
    head = np.concatenate([weights["head.skip"], weights["head.weight"]], axis=1)
    off = np.abs(pool.target[taken] - known @ head.T - weights["head.bias"])
    mean, vectors = components(known, COMPONENTS)
    learned = vectors.T @ regressed((known - mean) @ vectors.T, off, PENALTY / len(asked))
    parts = learned.T
    return {
        "head.skip": parts[:, : spec.width].astype(np.float32),
        "head.weight": parts[:, spec.width :].astype(np.float32),
        "head.bias": (-parts @ mean).astype(np.float32),
    }


def with_spread(
    spec: Spec, weights: dict[str, Singles], pairs: Pairs
) -> tuple[Spec, dict[str, Singles]]:
    """Spec and weights with a spread, learned from all of the (ts, values) pairs."""
    rows = spread_of(spec, weights, pairs, [len(ts) for ts, _ in pairs])
    joined = {name: np.concatenate([weights[name], part]) for name, part in rows.items()}
    return spec.model_copy(update={"spread": True}), weights | joined


def regressed(shown: Floats, off: Floats, penalty: float) -> Floats:
    """Weights (n, outputs) of ``shown`` (rows, n), of mean 0, in the logarithm of the spread.

    Quantile regression of the logarithm of ``off`` (rows, outputs), absolute errors, NaN where not
    known, by Adam on the pinball loss of batches. The constant is learned too, and left out.
    """
    known = np.isfinite(off)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, off, 0).sum(axis=0) / count
    wanted = np.log(np.where(known, off, 1) + SMALL * mean + 1e-12).astype(np.float32)
    start = [
        np.quantile(y[at], QUANTILE) if at.any() else 0.0
        for y, at in zip(wanted.T, known.T, strict=True)
    ]
    design = np.concatenate([shown, np.ones((len(shown), 1))], axis=1).astype(np.float32)
    theta = np.zeros((design.shape[1], len(start)), np.float32)
    theta[-1] = start
    first, second = np.zeros_like(theta), np.zeros_like(theta)
    rng, batch = np.random.default_rng(0), min(max(PRODUCT // theta.size, 32), 256)
    for update in range(1, UPDATES + 1):
        rows = rng.integers(0, len(design), batch)
        x, y, here = design[rows], wanted[rows], known[rows]
        # slope of the loss, but for its sign; 0 where nothing is known
        slope = np.clip((y - x @ theta) / (2 * SMOOTH), -0.5, 0.5) + (QUANTILE - 0.5)
        gradient = x.T @ np.where(here, slope, 0) / -np.maximum(here.sum(axis=0), 1)
        gradient[:-1] += penalty * theta[:-1]
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient**2
        step = first / (1 - 0.9**update) / (np.sqrt(second / (1 - 0.99**update)) + 1e-8)
        theta -= (RATE * 0.5 * (1 + math.cos(math.pi * update / UPDATES)) * step).astype(np.float32)
    return theta[:-1].astype(np.float64)
