"""How far a network can be trusted: the mixture of three forecasts that errs least where it counts.

Judged on a span that none of the three was fitted to, for each step ahead apart: the naive
forecast, the linear start, the network. A bad network ends as the naive forecast.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm.linear import Floats, Start
from streamlstm.model import Spec

Singles = NDArray[np.float32]
SHARES = np.linspace(0, 1, 5)
"""The shares that are tried."""


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
