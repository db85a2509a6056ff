"""Examples to learn from: the input vectors of many series, their targets, and a cut in time."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm.features import features_of, grid_places
from streamlstm.intervals import units
from streamlstm.jit import njit
from streamlstm.model import Spec

Pairs = Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]]
"""(ts (n,) ns, values (n, inputs)) of each series."""


class Pool(NamedTuple):
    """Series laid end to end: a row a tick."""

    x: NDArray[np.float32]
    """(N, width) what the network is shown at the tick"""
    target: NDArray[np.float32]
    """(N, outputs) what it should answer: (value to come - base) / scale; NaN where not known"""
    part: NDArray[np.float64]
    """(N, targets) one unit of the answer, in those of an interval's half-width"""
    bounds: NDArray[np.int64]
    """(S, 3) of each series the first row, the first row after the cut, and the end"""
    least: NDArray[np.float32]
    """(N, outputs) the answer that is the floor of the forecasts; no rows where there is none"""

    def least_of(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(rows, outputs) the answer that is the floor, however low where there is none."""
        if len(self.least):
            return self.least[rows]
        return np.full((len(rows), self.target.shape[1]), -np.inf, np.float32)

    def before_cut(self) -> NDArray[np.int64]:
        """The rows before the cut of their series."""
        return np.concatenate([np.arange(begin, cut) for begin, cut, _ in self.bounds])

    def after_cut(self) -> NDArray[np.int64]:
        """The rows after the cut of their series."""
        return np.concatenate([np.arange(cut, end) for _, cut, end in self.bounds])


def gather(
    spec: Spec,
    series: Pairs,
    cuts: Sequence[int],
) -> Pool:
    """Features and targets of (ts, values) pairs, each cut before its tick number ``cuts[i]``.

    A forecast made before the cut has no target after it, so that the two sides share nothing.
    While a series has no full history behind it, what it should answer is not asked either, unless
    that is more than a third of what comes before the cut.
    """
    ends = np.cumsum([0, *(len(ts) for ts, _ in series)])
    size, cut = int(ends[-1]), np.asarray(cuts, np.int64)
    x = np.empty((size, spec.width), np.float32)
    target = np.full((size, spec.outputs), np.nan, np.float32)
    part = np.empty((size, spec.targets))
    least = np.empty((0 if spec.floor is None else size, spec.outputs), np.float32)
    for i, (ts, values) in enumerate(series):
        begin, end = ends[i], ends[i + 1]
        rows = features_of(spec, ts, values)
        x[begin:end] = rows.x
        if spec.floor is not None:
            least[begin:end] = (spec.floor - rows.base) / np.tile(rows.scale, spec.horizon)
        place = grid_places(spec.step_ns, ts)
        part[begin:end] = rows.scale / units(place, rows.scale)
        early = int(np.searchsorted(place, min(spec.history, place[cut[i] - 1] // 3)))
        fill(place, values, rows.base, rows.scale, early, cut[i], spec.targets, target[begin:end])
    return Pool(x, target, part, np.stack([ends[:-1], ends[:-1] + cut, ends[1:]], axis=1), least)


def evenly(n: int, most: int) -> NDArray[np.int64]:
    """Which of ``n`` are taken where no more than ``most`` may be."""
    return np.linspace(0, n - 1, min(n, most)).astype(np.int64)


@njit(cache=True, error_model="numpy")
def fill(
    place: NDArray[np.int64],
    values: NDArray[np.float64],
    base: NDArray[np.float64],
    scale: NDArray[np.float64],
    early: int,
    cut: int,
    targets: int,
    target: NDArray[np.float32],
) -> None:
    """What the rows from ``early`` on should answer, as :class:`Pool` has it.

    ``target`` (n, outputs) holds NaN, and keeps it where that is not known.
    """
    n, horizon = len(place), target.shape[1] // targets
    for i in range(early, n):
        last = cut if i < cut else n
        ahead = i + 1
        for k in range(horizon):
            while ahead < last and place[ahead] <= place[i] + k:
                ahead += 1
            if ahead < last and place[ahead] == place[i] + k + 1:
                for j in range(targets):
                    column = k * targets + j
                    target[i, column] = (values[ahead, j] - base[i, column]) / scale[i, j]


def draw(
    rng: np.random.Generator, pool: Pool, batch: int, steps: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(batch,) first row and number of rows, at most ``steps``, of random spans before the cut.

    Every span of a long series is as likely as another; series count by their lengths.
    """
    begin, cut = pool.bounds[:, 0], pool.bounds[:, 1]
    ends = np.cumsum(cut - begin)
    which = np.searchsorted(ends, rng.integers(0, ends[-1], batch), side="right")
    room = np.maximum(cut[which] - begin[which] - steps, 0)
    start = begin[which] + rng.integers(0, room + 1)
    return start, np.minimum(cut[which] - start, steps)


def lanes(pool: Pool, batch: int, warm: int, most: int) -> Iterator[NDArray[np.int64]]:
    """Spans that end with their series, of at most ``most`` series, evenly taken.

    Yields (<= batch, 3): first row, number of rows, and how many of the first of them, up to
    ``warm``, lie before the cut and only warm the state up.
    """
    bounds = pool.bounds[evenly(len(pool.bounds), most)]
    start = np.maximum(bounds[:, 0], bounds[:, 1] - warm)
    spans = np.stack([start, bounds[:, 2] - start, bounds[:, 1] - start], axis=1)
    for at in range(0, len(spans), batch):
        yield spans[at : at + batch]
