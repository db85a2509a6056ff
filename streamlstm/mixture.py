"""How far a network can be trusted: the mixture of four forecasts that errs least where it counts.

Judged on a span that none of the four was fitted to, for each step ahead apart: the naive
forecast, the smoothed one, the linear start, the network. A bad network ends as the naive forecast.
Where that span is short, all but the network are judged on spans before it too, for which the
linear start is fitted anew.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm.fit_options import ticks_needed
from streamlstm.linear import Floats, Singles, Start, earlier
from streamlstm.model import Spec
from streamlstm.samples import Pairs

FEW, FEW_ERRORS = 8, 16
"""Blocks: with fewer on the unseen span, earlier ones are looked at too; for quantiles of errors,
which say more, with fewer than the latter."""
LEAST = 6
"""Blocks on the unseen span, with fewer than which the network is not trusted: it fits so few by
luck."""
MANY = 16
"""Series, from which on each is a block that errs together; of fewer, their seasons are."""
SURE = 1.28
"""Deviations by which a gain has to be sure: those of the 80 % interval of a normal."""
SHARES = np.linspace(0, 1, 5)
"""The shares that are tried."""
Share = Floats | float


class Span(NamedTuple):
    """What came, and four forecasts of it: (n, outputs) each, NaN where there is none."""

    target: Singles
    naive: Singles
    smoothed: Singles
    """the naive forecast, where there is no smoothing"""
    linear: Singles
    full: Singles
    least: Singles
    """the floor of the forecasts"""
    part: Floats
    """(n, targets) one unit of all these, in those of an interval's half-width"""
    block: NDArray[np.int64]
    """(n,) rising; rows of one block err together"""

    @property
    def tells_of_networks(self) -> bool:
        """Whether it has blocks enough to trust a network by."""
        return bool(1 + np.count_nonzero(np.diff(self.block)) >= LEAST)


class Trust(NamedTuple):
    """The shares of what each forecast adds to the one before.

    naive + smoothed * (smoothed - naive) + linear * (linear start - naive) + recurrent * (network -
    linear start)
    """

    smoothed: Floats
    """(outputs,) 0 to 1, with ``linear`` no more than 1"""
    linear: Floats
    """(outputs,) 0 to 1"""
    recurrent: Floats
    """(outputs,) 0 to 1"""

    def answer(self, span: Span) -> Singles:
        """The mixture of the four forecasts, none below the floor."""
        return np.maximum(mixed(span, *self), span.least).astype(np.float32)

    def fold(self, start: Start, weights: dict[str, Singles]) -> tuple[Spec, dict[str, Singles]]:
        """Spec and weights of the network that answers with the mixture."""
        a, b = self.linear, self.recurrent
        folded: dict[str, NDArray[Any]] = dict(weights)
        folded["head.weight"] = b[:, None] * weights["head.weight"]
        folded["head.skip"] = (a - b)[:, None] * start.skip + b[:, None] * weights["head.skip"]
        folded["head.bias"] = (a - b) * start.bias + b * weights["head.bias"]
        spec = start.blended(a, self.smoothed)
        return spec, {k: array.astype(np.float32) for k, array in folded.items()}


def mixed(span: Span, smoothed: Share, linear: Share, recurrent: Share) -> NDArray[Any]:
    """The mixture of a span's forecasts with these shares."""
    naive = span.naive
    return (
        naive
        + smoothed * (span.smoothed - naive)
        + linear * (span.linear - naive)
        + recurrent * (span.full - span.linear)
    )


def trusted(unseen: Span, before: Sequence[Span] = (), targets: int = 1) -> Trust:
    """The mixture that errs least on unseen rows.

    For each output the lower end of the 80 % confidence interval (Student's) of the gain in mean
    absolute error over the naive forecast, smoothed over the steps ahead, is made as large as
    possible, so that luck is not taken for skill: the fewer blocks, the surer the gain has to be.
    What the network adds is judged on the unseen span alone, if that has blocks enough.

    Args:
        unseen: the span that no forecast was fitted to.
        before: spans before it, of which no network has a forecast.
        targets: outputs are in the order [step][target].
    """
    spans = joined([*before, unseen])
    known = np.isfinite(spans.target)
    plain = np.abs(spans.target - spans.naive)
    size = np.where(known, plain, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    scale = np.maximum(size, 1e-12)
    apart = bool((spans.smoothed != spans.naive)[known].any())
    costs, shares = [], []
    for s, a in itertools.product(SHARES if apart else SHARES[:1], SHARES):
        if s + a > 1:
            continue
        cost, off = np.zeros_like(scale), plain
        if before:
            cost = bound(np.abs(spans.target - mixed(spans, s, a, 0)) - plain, spans.block)
            off = np.abs(unseen.target - mixed(unseen, s, a, 0))
        for b in SHARES if unseen.tells_of_networks else SHARES[:1]:
            change = np.abs(unseen.target - mixed(unseen, s, a, b)) - off
            shares.append((s, a, b))
            costs.append(_smooth((cost + bound(change, unseen.block)) / scale, targets))
    return Trust(*np.array(shares)[np.argmin(costs, axis=0)].T)


def bound(change: NDArray[Any], block: NDArray[np.int64]) -> Floats:
    """(outputs,) upper end of the mean change of an error, (n, outputs), NaN left out."""
    begins = np.flatnonzero(np.diff(block, prepend=block[0] - 1))
    known = np.isfinite(change)
    count = np.add.reduceat(known, begins, axis=0, dtype=np.float64)
    sums = np.add.reduceat(np.where(known, change, 0), begins, axis=0, dtype=np.float64)
    size, blocks = np.maximum(count.sum(axis=0), 1), (count > 0).sum(axis=0)
    mean, freedom = sums.sum(axis=0) / size, np.maximum(blocks - 1, 1)
    spread = ((sums - mean * count) ** 2).sum(axis=0) * blocks / freedom
    spread[blocks == 1] = (sums.sum(axis=0) ** 2)[blocks == 1]  # of one, no more is known
    return np.asarray(mean + student(freedom) * np.sqrt(spread) / size)


def student(freedom: NDArray[np.int64] | int, z: Floats | float = SURE) -> Floats:
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
    return _blocks(spec, pairs, cuts) < FEW


def _blocks(spec: Spec, pairs: Pairs, cuts: Sequence[int]) -> float:
    """How many lie after the cuts; of many series there are enough, however short they are."""
    late = [len(ts) - cut for (ts, _), cut in zip(pairs, cuts, strict=True)]
    return math.inf if len(pairs) >= MANY else sum(late) / together(spec)


def earlier_spans(spec: Spec, pairs: Pairs, cuts: Sequence[int], penalty: float) -> Iterator[Span]:
    """Spans before the cuts, where few blocks lie after them; no network was trained there."""
    if _blocks(spec, pairs, cuts) < FEW_ERRORS:
        for target, smoothed, linear, least, part, rows in earlier(
            spec, pairs, cuts, penalty, ticks_needed(spec)
        ):
            naive, block = np.zeros_like(target), rows // together(spec)
            yield Span(target, naive, smoothed, linear, linear, least, part, block)


def joined(spans: Sequence[Span]) -> Span:
    """One after the other, each with blocks of its own."""
    begins = [np.append(True, np.diff(span.block) != 0) for span in spans]
    target, naive, smoothed, linear, full, least, part = (
        np.concatenate(each) for each in zip(*(span[:-1] for span in spans), strict=True)
    )
    block = np.cumsum(np.concatenate(begins))
    return Span(target, naive, smoothed, linear, full, least, part, block)
