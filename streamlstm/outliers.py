"""Values that can only be errors: lone ones, far beyond all that a series does otherwise.

The scale of a series, its lags and its season would all go by them for long.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streamlstm.datasets.frames import SeriesData

AROUND = 5
"""Values, the one in their midst included, whose median says what would be usual there."""
USUAL = 0.98
"""Share of the values that lie as near to that as is usual."""
FAR = 30.0
"""Times as far off an error lies."""
RARE, PART = 3, 1e-4
"""As many there are at most, and as large a part of all: what comes more often belongs there."""
FEWEST = 50
"""Values without which nothing is known to be usual."""


def outliers(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) which of finite ``values`` (n,) in order are such: a running median tells (Tukey 1977).

    None where nearly all values are as their neighbours, so that any other one is far off.
    """
    if len(values) < FEWEST:
        return np.zeros(len(values), bool)
    padded = np.pad(values, AROUND // 2, mode="reflect")
    around = np.lib.stride_tricks.sliding_window_view(padded, AROUND)
    off = np.abs(values - np.median(around, axis=1))
    usual = np.quantile(off, USUAL)
    far = (off > FAR * usual) & (usual > 0)
    if np.count_nonzero(far) > RARE + PART * len(values):
        far[:] = False
    return np.asarray(far)


def without_outliers(
    series: Sequence[SeriesData], targets: int, notes: list[str]
) -> Sequence[SeriesData]:
    """The series less the ticks in which a target is one; ``notes`` tell of them."""
    kept, found, example = [], 0, ""
    for s in series:
        each = np.stack([outliers(s.values[:, j]) for j in range(targets)], axis=1)
        off = each.any(axis=1)
        if off.any():
            at, j = np.argwhere(each)[0]
            when = np.datetime64(int(s.ts[at]), "ns").astype("datetime64[s]")
            example = example or f"{s.values[at, j]:.6g} of {s.name!r} at {when}"
            found += int(off.sum())
            s = SeriesData(s.name, s.ts[~off], s.values[~off])
        kept.append(s)
    if found:
        notes.append(
            f"left out of the fit as errors, {FAR:.0f} times as far from their neighbours as is"
            f" usual: {found:,} ticks (the first: {example})"
        )
    return kept
