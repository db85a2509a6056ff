"""How far a network can be trusted: the mixture of three forecasts that errs least where it counts.

Judged on a span that none of the three was fitted to, for each step ahead apart: the naive
forecast, the linear start, the network. A bad network ends as the naive forecast. Where that span
is short, the linear start is judged on spans before it too, for which it is fitted anew.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm.fit_options import ticks_needed
from streamlstm.linear import Floats, Singles, Start, earlier
from streamlstm.model import Spec
from streamlstm.samples import Pairs

FEW = 8
"""Blocks: with fewer on the unseen span, earlier ones are looked at too."""
MANY = 16
"""Series, from which on each is a block that errs together; of fewer, their seasons are."""
SHARES = np.linspace(0, 1, 5)
"""The shares that are tried."""


Span = tuple[Singles, Singles, Singles, Singles, NDArray[np.int64]]
"""(n, outputs) targets, the naive forecast, the linear start's and the network's; (n,) blocks."""


class Trust(NamedTuple):
    """naive + linear * (linear start - naive) + recurrent * (network - linear start)"""

    linear: Floats
    """(outputs,) 0 to 1"""
    recurrent: Floats
    """(outputs,) 0 to 1"""

    def answer(self, naive: Singles, linear: Singles, full: Singles) -> Singles:
        """The mixture of the three forecasts."""
        mixed = naive + self.linear * (linear - naive) + self.recurrent * (full - linear)
        return mixed.astype(np.float32)

    def fold(self, start: Start, weights: dict[str, Singles]) -> tuple[Spec, dict[str, Singles]]:
        """Spec and weights of the network that answers with the mixture."""
        a, b = self.linear, self.recurrent
        folded: dict[str, NDArray[Any]] = dict(weights)
        folded["head.weight"] = b[:, None] * weights["head.weight"]
        folded["head.skip"] = (a - b)[:, None] * start.skip + b[:, None] * weights["head.skip"]
        folded["head.bias"] = (a - b) * start.bias + b * weights["head.bias"]
        return start.blended(a), {k: array.astype(np.float32) for k, array in folded.items()}


def trusted(
    target: Singles,
    naive: Singles,
    linear: Singles,
    full: Singles,
    block: NDArray[np.int64],
    targets: int = 1,
) -> Trust:
    """The mixture that errs least on unseen rows.

    For each output the lower end of the 95 % confidence interval (Student's) of the gain in mean
    absolute error over the naive forecast, smoothed over the steps ahead, is made as large as
    possible, so that luck is not taken for skill: the fewer blocks, the surer the gain has to be.

    Args:
        target: (n, outputs) NaN where not known.
        naive, linear, full: (n, outputs) the forecasts; NaN where there is none.
        block: (n,) rising; rows of one block err together.
        targets: outputs are in the order [step][target].
    """
    begins = np.flatnonzero(np.diff(block, prepend=block[0] - 1))
    known = np.isfinite(target) & np.isfinite(full)
    count = np.add.reduceat(known, begins, axis=0, dtype=np.float64)
    size = np.maximum(count.sum(axis=0), 1)
    plain = np.where(known, np.abs(target - naive), 0)
    scale = np.maximum(plain.sum(axis=0) / size, 1e-12)
    blocks = np.maximum((count > 0).sum(axis=0), 2)
    costs, shares = [], [(a, b) for a in SHARES for b in SHARES]
    for a, b in shares:
        off = np.abs(target - (naive + a * (linear - naive) + b * (full - linear)))
        sums = np.add.reduceat(np.where(known, off - plain, 0), begins, axis=0, dtype=np.float64)
        mean = sums.sum(axis=0) / size
        spread = ((sums - mean * count) ** 2).sum(axis=0) * blocks / (blocks - 1)
        bound = mean + student(blocks - 1) * np.sqrt(spread) / size
        costs.append(_smooth(bound / scale, targets))
    chosen = np.array(shares)[np.argmin(costs, axis=0)]
    return Trust(chosen[:, 0], chosen[:, 1])


def student(freedom: NDArray[np.int64] | int, z: Floats | float = 1.96) -> Floats:
    """Student's t where the normal is ``z``, by its expansion around that (Fisher 1941)."""
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return np.asarray(z + first / freedom + second / freedom**2)


def _smooth(cost: Floats, targets: int) -> Floats:
    """Average over neighbouring steps ahead, more of them the further ahead."""
    step = np.arange(1, len(cost) // targets + 1)
    width = np.maximum(0.5, 0.15 * step)[:, None]
    kernel = np.exp(-0.5 * ((step[None, :] - step[:, None]) / width) ** 2)
    kernel /= kernel.sum(axis=1, keepdims=True)
    return (kernel @ cost.reshape(-1, targets)).ravel()


# --- where it is judged ---------------------------------------------------------------------------


def together(spec: Spec) -> int:
    """Steps of a series that err together: a season, or the horizon."""
    return max(spec.blend.short if spec.blend else 1, spec.horizon)


def few_blocks(spec: Spec, pairs: Pairs, cuts: Sequence[int]) -> bool:
    """Whether what lies after the cuts of (ts, values) pairs says too little by itself."""
    late = [len(ts) - cut for (ts, _), cut in zip(pairs, cuts, strict=True)]
    return len(pairs) < MANY and sum(late) < FEW * together(spec)


def earlier_spans(spec: Spec, pairs: Pairs, cuts: Sequence[int], penalty: float) -> Iterator[Span]:
    """Spans before the cuts, where there are :func:`few_blocks`; no network was trained there."""
    if few_blocks(spec, pairs, cuts):
        for target, linear, rows in earlier(spec, pairs, cuts, penalty, ticks_needed(spec)):
            yield target, np.zeros_like(target), linear, linear, rows // together(spec)


def joined(spans: Sequence[Span]) -> Span:
    """One after the other, each with blocks of its own."""
    begins = [np.append(True, np.diff(block) != 0) for *_, block in spans]
    *forecasts, _ = (np.concatenate(parts) for parts in zip(*spans, strict=True))
    target, naive, linear, full = forecasts
    return target, naive, linear, full, np.cumsum(np.concatenate(begins))
