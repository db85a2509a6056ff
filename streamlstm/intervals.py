"""Prediction intervals from each series' own past errors: conformal inference, online.

For each scored step k a series keeps the intervals that it issued for the ticks to come. When a
tick arrives, the one issued k steps ago is scored, and the half-width for k moves by a fixed share:
its logarithm by ``RATE * coverage`` up when the tick lay outside, by ``RATE * (1 - coverage)``
down when inside. That is adaptive conformal inference (Gibbs & Candes 2021) as
quantile tracking (Angelopoulos, Candes & Tibshirani 2023), in the log of the width: in the long run
a share 1 - coverage of what was issued misses, whatever the data do. Half-widths are in units of
the series' scale, so they follow it: for a share of ``NOW`` as it is at the tick, for the rest as
it usually is, since a series that varied little of late need not be easier to forecast. Steps
between two scored ones take the line between theirs, bent as the model's errors on unseen data rise
between them.

After a change of the data that is too slow. So where so many ticks in a row lay outside as seldom
do by chance (``RARE``; k times as many, since forecasts k ahead err together), the rate rises to
``FAST`` / k, where that is more, and falls back by and by. So a lasting change soon makes the
intervals as wide as they have to be, and an outage of a few ticks not for long.

The half-widths that a model brings are of other data. So at first they move faster: after n errors
k ahead by ``EARLY`` / (``PRIOR`` (k + 1) + n) more than by ``RATE`` (decaying steps: Angelopoulos,
Barber & Bates 2024; forecasts k ahead err together).

A series' history, whose ticks are no news to the model maybe, teaches one thing: whether it errs
more than others. Half-widths begin larger by the ratio of the mean of its errors there to that of
all series trained on, to the power of 3/4: those that erred twice as much err less than twice as
much from then on. Few errors count for less.

While a series has not all of its past yet to look back on, forecasts err more, by a factor that the
model brings for each phase of its youth, step and coverage: it goes with the scale.

Two things say more of what is to come, each the logarithm of a factor:

- the spread: a network may say with each forecast how far it may err, which differs by day and by
  night, say. What counts is how it differs from its own mean of late, over ``MEMORY`` ticks: how
  wide intervals are on the whole is learned.
- unrest: how much larger errors were of late, over ``LATELY`` ticks, than usually, over
  ``LASTING``: 2 (late - usual) / (late + usual), which is about that logarithm, and 2 at most.
  While the rate rises after a change, what is usual is learned anew.

Half-widths are in such units times each factor to the power of a share, between 0 and 1,
that is learned as the half-widths are: at a miss it moves by a rate of ``TILTS``, times coverage
and that logarithm, up, else by the rate times 1 - coverage and the logarithm down. All of this is
online quantile regression on a constant and those logarithms (Koenker & Bassett 1978): where one
says nothing, its share goes to 0.

Of several coverages each is tracked on its own. What is issued is nested: an interval gives way to
those of the coverages named before it, so that whoever names another changes nothing of these.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm.averages import weight
from streamlstm.jit import njit
from streamlstm.memory import Fields, beyond, records, row_of
from streamlstm.model import Errors
from streamlstm.placed import placed

RATE = 0.02
"""By how much the logarithm of a half-width moves at a miss (times coverage)."""
EARLY, PRIOR = 2.0, 10.0
"""How much faster it moves at first, and errors that what a model brings is worth."""
RARE = 1e-4
"""Probability of so many misses in a row, after which the rate rises."""
FAST, DECAY = 0.4, 0.02
"""Rate to which it rises one step ahead, and the share of itself by which it falls at each tick."""
SPREAD, UNREST = range(2)
TILTS = 0.05, 0.02
"""How fast the share of each moves."""
SHARES = 0.5, 0.25
"""That a series begins with."""
FINE = 64
"""A logarithm that is kept until its tick has come counts so many times, as a whole number."""
LATELY, LASTING = 20, 1000
"""Errors over which they are averaged; what the scale usually is, over as many as the latter."""
NOW = 0.25
"""What the scale at a tick counts for in the unit of half-widths, beside what it usually is."""
HUGE, LARGE = 1e6, 10.0
"""Largest error, in units, and in usual ones once these are known; a larger one is taken for that.
"""
MOST = 1.5
"""Largest logarithm of a spread; a larger one is taken for that."""
MEMORY, FEW = 50, 10
"""Ticks over which the mean of a logarithm is taken, and how many of 0 it begins with."""
DOUBT = 25.0
"""Errors of history that count for half of what they say."""
LEAST = 1e-9
"""Less than that of the scale is no width: the next error is one."""


class Plan(NamedTuple):
    """What compiled code needs to know: which steps are scored, and where their rings lie."""

    coverages: NDArray[np.float64]
    """(coverages,) shares of values to fall inside, the main one first; 0 alone: none"""
    narrower: NDArray[np.int64]
    """(coverages,) of those before each the next narrower; itself: there is none"""
    wider: NDArray[np.int64]
    """(coverages,) of those before each the next wider; itself: there is none"""
    steps: NDArray[np.int64]
    """(scored,) rising, from 1; none where intervals are off"""
    ring: NDArray[np.int64]
    """(scored + 1,) where the ring of each scored step begins in ``pending``"""
    share: NDArray[np.float64]
    """(horizon,) of the line from the scored step at or below each step to the next: where it is"""
    runs: NDArray[np.int64]
    """(coverages,) misses in a row, over k, after which the rate rises"""
    shape: NDArray[np.float64]
    """(phases, coverages, horizon, targets) half-width over what the line says, in each phase of a
    series' youth, the last of which does not end"""
    initial: NDArray[np.float32]
    """(scored, coverages, targets) half-widths of a new series, in its units; NaN: not known"""
    ages: NDArray[np.int64]
    """(phases - 1,) ages that end a phase of a series' youth, rising"""
    young: NDArray[np.float64]
    """(phases, scored, coverages, targets) how many times as large half-widths are in each; 1 in
    the last"""
    seen: NDArray[np.float64]
    """(scored, targets) mean error on data trained on, in units; 0: not known"""
    spread: int
    """where the spreads begin in the network's answers; 0: it gives none"""


class Bands(NamedTuple):
    """What a series keeps for its intervals: one row a series.

    Those of several coverages lie side by side.
    """

    pending: NDArray[np.float64]
    """(series, sum of scored steps, targets) forecasts, each at its place modulo k in the ring of
    step k; NaN where a tick was missed"""
    mean_scale: NDArray[np.float64]
    """(series, targets) over ``LASTING`` ticks; none where intervals are off"""
    reach: NDArray[np.float32]
    """(series, sum of scored steps * coverages, targets) half-widths issued with them, raw"""
    width: NDArray[np.float32]
    """(series, scored * coverages, targets) half-widths in units, but for what the factors say"""
    pace: NDArray[np.float32]
    """(series, scored * coverages, targets, 2) a rate that rose, else less than ``RATE``; misses in
    a row"""
    told: NDArray[np.int8]
    """(series, sum of scored steps, targets, 2) logarithms of the factors that went with these, in
    parts of ``FINE``"""
    mean: NDArray[np.float32]
    """(series, horizon, targets) mean logarithms of the spreads, where there are any"""
    share: NDArray[np.float32]
    """(series, scored * coverages, targets, 2) that counts of each factor"""
    half: NDArray[np.float32]
    """(series, scored * coverages, targets) half-widths in units now, but for the spread"""
    errors: NDArray[np.float32]
    """(series, scored, targets, 3) how many there were, less than 0 while all are of its history;
    their mean of late, and usually, in units and in those of the spread"""


class Row(NamedTuple):
    """Of :class:`Bands` what one series keeps but for ``mean``, each field in one piece."""

    pending: NDArray[np.float64]
    mean_scale: NDArray[np.float64]
    reach: NDArray[np.float32]
    width: NDArray[np.float32]
    pace: NDArray[np.float32]
    told: NDArray[np.int8]
    share: NDArray[np.float32]
    half: NDArray[np.float32]
    errors: NDArray[np.float32]


def bands_fields(plan: Plan) -> Fields:
    """Name, dtype and shape of one series' row of :class:`Bands`."""
    horizon = plan.shape.shape[2] if plan.spread else 0
    scored, coverages, targets = plan.initial.shape
    pending, widths = int(plan.ring[-1]), (scored * coverages, targets)
    return {
        "pending": (np.float64, (pending, targets)),
        "mean_scale": (np.float64, (targets if scored else 0,)),
        "reach": (np.float32, (pending * coverages, targets)),
        "width": (np.float32, widths),
        "pace": (np.float32, (*widths, 2)),
        "told": (np.int8, (pending, targets, 2)),
        "mean": (np.float32, (horizon, targets)),
        "share": (np.float32, (*widths, 2)),
        "half": (np.float32, widths),
        "errors": (np.float32, (scored, targets, 3)),
    }


def begun_anew(plan: Plan) -> dict[str, NDArray[Any]]:
    """A row of :class:`Bands` as if nothing had been issued yet, for a series that is not new.

    Of the fields that are left out all is 0.
    """
    scored, coverages, targets = plan.initial.shape
    widths = (scored * coverages, targets)
    return {
        "pending": np.full((int(plan.ring[-1]), targets), np.nan),
        "width": plan.initial.reshape(widths),
        "share": np.broadcast_to(np.array(SHARES, np.float32), (*widths, 2)),
    }


def plan(
    horizon: int,
    targets: int,
    coverage: float | Sequence[float],
    errors: Errors | None,
    steps: Sequence[int],
    *,
    spread: bool = False,
) -> Plan:
    """Lay out the scoring of ``steps`` ahead, rising, for one ``coverage`` or several.

    Several are distinct, the main one first; 0 or none at all turns intervals off. ``spread``: the
    network gives one with each forecast.
    """
    coverages = np.array(coverage or 0.0, np.float64).reshape(-1)
    scored = np.array(steps if coverages[0] else (), np.int64)
    count, every = len(scored), np.arange(1, horizon + 1)
    left = np.maximum(np.searchsorted(scored, every, side="right") - 1, 0)
    share = np.interp(every, scored, np.arange(count)) - left if count else np.zeros(horizon)
    ages = errors.ages if errors is not None and count else np.zeros(0, np.int64)
    initial = np.full((count, len(coverages), targets), np.nan, np.float32)
    young = np.ones((len(ages) + 1, *initial.shape))
    shape = np.ones((len(ages) + 1, len(coverages), horizon, targets))
    seen = np.zeros((count, targets))
    if errors is not None and len(errors.seen):
        seen = errors.seen.reshape(horizon, targets)[scored - 1].astype(np.float64)
    if errors is not None and count:
        for c, level in enumerate(coverages.tolist()):
            grown = errors.at(level).reshape(1, horizon, targets)
            known = np.concatenate([errors.young_at(level).reshape(-1, horizon, targets), grown])
            known = np.where(known > 0, known, grown).astype(np.float64)
            initial[:, c] = grown[0, scored - 1]
            of = known[:, scored - 1]
            np.divide(of, of[-1], out=young[:, :, c], where=of[-1] > 0)
            for phase, half in enumerate(of):
                line = np.stack([np.interp(every, scored, one) for one in half.T], axis=1)
                fits = (line > 0) & (known[phase] > 0)
                np.divide(known[phase], line, out=shape[phase, c], where=fits)
    ring = np.concatenate(([0], np.cumsum(scored)))
    narrower, wider = _beside(coverages), _beside(-coverages)
    runs = np.array([_seldom(1.0 - level) for level in coverages.tolist()])
    column = horizon * targets if spread and count else 0
    return Plan(
        coverages, narrower, wider, scored, ring, share, runs, shape, initial, ages, young, seen,
        column,
    )  # fmt: skip


def _seldom(probability: float) -> int:
    """How often in a row what is of such a probability seldom comes."""
    some = 0.0 < probability < 1.0
    return math.ceil(math.log(RARE) / math.log(probability) - 1e-9) if some else 1


def _beside(numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    """Of those before each number the largest that is smaller, or itself: where it lies."""
    found = np.arange(len(numbers))
    for at in range(len(numbers)):
        smaller = np.flatnonzero(numbers[:at] < numbers[at])
        if len(smaller):
            found[at] = smaller[numbers[smaller].argmax()]
    return found


# Rows are views, for inner loops over their numbers; of one target these lie side by side.
@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def surround(
    plan: Plan,
    bands: Bands,
    slot: int,
    place: int,
    steps: int,
    values: NDArray[np.float64],
    tick: int,
    scale: NDArray[np.float64],
    answers: NDArray[np.float32],
    row: int,
    point: NDArray[np.float64],
    quantiles: NDArray[np.float64],
    to: int,
    warm: bool,
    targets: int,
) -> None:
    """Learn from the tick at ``place``, then write the intervals around the forecast made there.

    The tick came ``steps`` after the one before it; at ``place`` 0 the series begins anew. A
    ``warm`` one is history, maybe that which the model was fitted on: where the model brings errors
    on unseen data to start from, it teaches by how much to begin with more or less. All are raw:
    its ``values`` (n, at least targets) at ``tick``, ``scale`` (n, targets) and what the network
    ``answers`` (n, N) at ``row``, ``point`` (n, horizon, targets) and the ``quantiles`` (n, 2 *
    coverages, horizon, targets) to be written at ``to``.
    """
    own = Row(
        row_of(bands.pending, slot), row_of(bands.mean_scale, slot), row_of(bands.reach, slot),
        row_of(bands.width, slot), row_of(bands.pace, slot), row_of(bands.told, slot),
        row_of(bands.share, slot), row_of(bands.half, slot), row_of(bands.errors, slot),
    )  # fmt: skip
    forecast, logs = row_of(point, to), row_of(answers, row)
    many = len(plan.coverages)
    if plan.spread > 0:
        _centre(plan, row_of(bands.mean, slot), place, logs)
    grown = len(plan.ages)
    young = grown > 0 and place < plan.ages[grown - 1] + plan.shape.shape[2]
    phase = _phase(plan, place) if young else grown
    for j in range(len(own.mean_scale)):
        own.mean_scale[j] = _mean_scale(own.mean_scale[j], place, scale[row, j])
    # the main one apart: where there is no other, nothing is paid for others
    for a in range(len(plan.steps)):
        k, ring = plan.steps[a], plan.ring[a]
        for missed in range(max(place - steps + 1, place - k), place):
            for j in range(targets):
                own.pending[(ring + missed % k) * targets + j] = np.nan
        at = ring + place % k
        for j in range(targets):
            here = at * targets + j
            error, due = abs(values[tick, j] - own.pending[here]), place >= k
            past = warm and plan.initial[a, 0, j] >= 0.0
            own.pending[here] = forecast[(k - 1) * targets + j]
            told, unit = beyond(own.told, 2 * here), _unit(own.mean_scale[j], scale[row, j])
            said = told[SPREAD] / FINE, told[UNREST] / FINE
            spread = np.float64(logs[plan.spread + (k - 1) * targets + j]) if plan.spread else 0.0
            youth, before = (1.0, 1.0), phase  # of what is scored, and of what is issued
            if young:
                before = _phase(plan, place - k)
                youth = plan.young[before, a, 0, j], plan.young[phase, a, 0, j]
            relative = error / (unit * youth[0])
            unrest = _unrest(plan, own, a, j, targets, place, due, past, relative, said[SPREAD])
            now, due = (spread, unrest), due and not past
            told[SPREAD], told[UNREST] = _fine(spread), _fine(unrest)
            _track(plan, own, targets, a, at, 0, j, place, due, error, unit, youth, said, now)
            for c in range(1, many):
                if young:
                    youth = plan.young[before, a, c, j], plan.young[phase, a, c, j]
                _track(plan, own, targets, a, at, c, j, place, due, error, unit, youth, said, now)
                first = at * many * targets + j
                own.reach[first + c * targets] = _between(
                    own.reach[first + c * targets],
                    own.reach[first + plan.narrower[c] * targets],
                    own.reach[first + plan.wider[c] * targets],
                )
    if warm:
        _begin(plan, own, targets)
    ends = row_of(quantiles, to)
    _issue(plan, own, phase, 0, scale, row, logs, forecast, ends, targets)
    for c in range(1, many):
        _issue(plan, own, phase, c, scale, row, logs, forecast, ends, targets)
        size, inner, outer = len(forecast), 2 * plan.narrower[c], 2 * plan.wider[c]
        _nest(ends, 2 * c * size, outer * size, inner * size, size)
        _nest(ends, (2 * c + 1) * size, (inner + 1) * size, (outer + 1) * size, size)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _mean_scale(mean: float, place: int, scale: float) -> float:
    """That of a series, what its scale is at ``place`` taken in."""
    if place == 0 or not mean > 0.0:
        return scale
    return mean + (scale - mean) * weight(place + 1, LASTING)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _unit(mean_scale: float, scale: float) -> float:
    """What half-widths are in units of."""
    return mean_scale + NOW * (scale - mean_scale)


@njit(cache=True, error_model="numpy")
def units(place: NDArray[np.int64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, targets) what the half-widths of a series are in units of, from its first tick on.

    ``place`` (n,) of each tick on its grid, and the ``scale`` (n, targets) of the series there.
    """
    unit, mean = np.empty_like(scale), np.zeros(scale.shape[1])
    for i in range(len(place)):
        for j in range(len(mean)):
            mean[j] = _mean_scale(mean[j], place[i], scale[i, j])
            unit[i, j] = _unit(mean[j], scale[i, j])
    return unit


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _phase(plan: Plan, place: int) -> int:
    """The phase of its youth that a series is in at ``place``."""
    phase = 0
    while phase < len(plan.ages) and place + 1 >= plan.ages[phase]:
        phase += 1
    return phase


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _pace(
    plan: Plan, pace: NDArray[np.float32], a: int, c: int, at: int, error: float, reach: float,
    count: float,
) -> float:  # fmt: skip
    """The rate at which half-widths move now, after so many errors.

    What else it goes by lies at ``at`` and beside it.
    """
    k = plan.steps[a]
    if error <= reach:
        pace[at + 1] = 0.0
    elif error > reach:
        pace[at + 1] += 1.0
    if pace[at + 1] >= plan.runs[c] * k:
        pace[at] = FAST / k
    elif pace[at] > RATE:
        pace[at] *= 1.0 - DECAY / k
    return max(np.float64(pace[at]), RATE) + EARLY / (PRIOR * (k + 1) + count)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _exp(x: float) -> float:
    """Of a small number; the same bits everywhere."""
    even, odd = 1.0 + x * x * (1 / 40), x * (1 / 4) + x * x * x * (1 / 960)
    root = (even + odd) / (even - odd)  # Padé's approximant
    return root * root


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _fine(logarithm: float) -> np.int8:
    """A logarithm as it is kept."""
    return np.int8(min(np.rint(FINE * logarithm), 127.0))


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _unrest(
    plan: Plan, own: Row, a: int, j: int, targets: int, place: int, due: bool, past: bool,
    error: float, said: float,
) -> float:  # fmt: skip
    """Take in an ``error``, in units, where one was ``due``; the unrest since.

    There is none in the ``past``, of which the mean is taken until the first error after it.
    """
    errors, main = beyond(own.errors, 3 * (a * targets + j)), a * len(plan.coverages) * targets + j
    count, late, usual = float(errors[0]), float(errors[1]), float(errors[2])
    if place == 0:
        count = late = usual = 0.0
    elif due and error >= 0.0 and not (past and count > 0.0):
        if said != 0.0:
            error /= _exp(own.share[2 * main + SPREAD] * said)
        off = min(error, HUGE)
        if count > LATELY and usual > 0.0:
            off = min(off, LARGE * usual)
        if past:
            count = max(count - 1.0, -LASTING)
            usual += (off - usual) * weight(-count, LASTING)
            late = usual
        else:
            count = min(max(count, 0.0) + 1.0, LASTING)
            late += (off - late) * weight(count, LATELY)
            usual += (off - usual) * weight(count, LASTING)
            if own.pace[2 * main + 1] >= plan.runs[0] * plan.steps[a]:
                count, usual = min(count, LATELY), late
    errors[0], errors[1], errors[2] = count, late, usual
    return 2.0 * (late - usual) / (late + usual) if late + usual > 0.0 else 0.0


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _begin(plan: Plan, own: Row, targets: int) -> None:
    """Let half-widths begin as large as errors in the history of a series say, if that is all."""
    many = len(plan.coverages)
    for j in range(targets):
        ratio = known = 0.0
        for a in range(len(plan.steps)):
            errors, seen = beyond(own.errors, 3 * (a * targets + j)), plan.seen[a, j]
            if errors[0] < 0.0 and seen > 0.0:
                count = -np.float64(errors[0])
                ratio += (DOUBT + count * errors[2] / seen) / (DOUBT + count)
                known += 1.0
        if known == len(plan.steps) and known > 0.0:
            factor = math.sqrt(ratio / known * math.sqrt(ratio / known))
            for a in range(len(plan.steps)):
                for c in range(many):
                    w = (a * many + c) * targets + j
                    own.width[w] = plan.initial[a, c, j] * factor


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _centre(
    plan: Plan, means: NDArray[np.float32], place: int, answers: NDArray[np.float32]
) -> None:
    """Take from the logarithms of the spreads their means, in place; those learn of them first.

    What is no number counts as 0.
    """
    count, logs = float(min(place + 1 + FEW, MEMORY)), beyond(answers, plan.spread)
    for n in range(len(means)):
        log = np.float64(logs[n])
        log = np.float64(min(max(log, -MOST), MOST) if log == log else 0.0)
        mean = np.float64(means[n]) if place > 0 else 0.0
        mean += (log - mean) / count
        means[n] = mean
        logs[n] = min(max(log - mean, -MOST), MOST)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _track(
    plan: Plan,
    own: Row,
    targets: int,
    a: int,
    at: int,
    c: int,
    j: int,
    place: int,
    due: bool,
    error: float,
    unit: float,
    youth: tuple[float, float],
    said: tuple[float, float],
    told: tuple[float, float],
) -> None:
    """Learn from an ``error`` where one was ``due``, and keep the half-width issued at ``place``.

    Of scored step ``a``, coverage ``c`` and target ``j``; it lies at ``at`` in the ring. The
    factors of its ``youth`` are that of what is scored and of what is issued; the logarithms of the
    others were ``said`` with the one, and are ``told`` with the other.
    """
    reach, width, many = own.reach, own.width, len(plan.coverages)
    w, r = (a * many + c) * targets + j, (at * many + c) * targets + j
    share = beyond(own.share, 2 * w)
    if place == 0:
        width[w] = plan.initial[a, c, j]
        own.pace[2 * w] = own.pace[2 * w + 1] = 0.0
        share[SPREAD], share[UNREST] = SHARES
    elif due and error >= 0.0:  # NaN, after a gap, says nothing
        # there lies what was issued as many steps ago
        count = own.errors[3 * (a * targets + j)]
        rate = _pace(plan, own.pace, a, c, 2 * w, error, reach[r], count)
        if reach[r] >= 0.0:
            missed = plan.coverages[c] - (1.0 if error <= reach[r] else 0.0)
            for n in range(len(TILTS)):
                share[n] = min(max(share[n] + TILTS[n] * missed * said[n], 0.0), 1.0)
        if error <= reach[r]:
            width[w] *= _exp(rate * (plan.coverages[c] - 1.0))
            if width[w] < LEAST:
                width[w] = 0.0
        elif not width[w] > 0.0:  # nothing to widen yet
            factor = _exp(share[SPREAD] * said[SPREAD] + share[UNREST] * said[UNREST])
            width[w] = error / (unit * youth[0]) / factor
        elif error > reach[r]:
            width[w] *= _exp(rate * plan.coverages[c])
    half = width[w] * youth[1] * _exp(share[UNREST] * told[UNREST])
    own.half[w] = half
    if plan.spread > 0:
        half *= _exp(share[SPREAD] * told[SPREAD])
    reach[r] = np.float32(half * unit)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _issue(
    plan: Plan,
    own: Row,
    phase: int,
    c: int,
    scale: NDArray[np.float64],
    row: int,
    answers: NDArray[np.float32],
    forecast: NDArray[np.float64],
    ends: NDArray[np.float64],
    targets: int,
) -> None:
    """Write the interval of coverage ``c``, of a series in this phase of its youth."""
    for j in range(targets):
        unit = _unit(own.mean_scale[j], scale[row, j]) if len(own.mean_scale) else np.nan
        _issue_one(plan, own, phase, c, j, targets, unit, answers, forecast, ends)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _issue_one(
    plan: Plan,
    own: Row,
    phase: int,
    c: int,
    j: int,
    targets: int,
    unit: float,
    answers: NDArray[np.float32],
    forecast: NDArray[np.float64],
    ends: NDArray[np.float64],
) -> None:
    """That of one target: between two scored steps half-widths take the line between theirs."""
    size, last = len(forecast), len(plan.steps) - 1
    shape = beyond(row_of(plan.shape, phase), c * size)
    lower, upper = 2 * c * size, (2 * c + 1) * size
    if last < 0:
        for at in range(j, size, targets):
            ends[lower + at] = ends[upper + at] = np.nan
    for a in range(last + 1):
        first = (a * len(plan.coverages) + c) * targets + j
        second = first + (len(plan.coverages) * targets if a < last else 0)
        half, beside = np.float64(own.half[first]), np.float64(own.half[second])
        used = also = 0.0
        if plan.spread > 0:
            used = np.float64(own.share[2 * first + SPREAD])
            also = np.float64(own.share[2 * second + SPREAD])
        begin = plan.steps[a] - 1 if a > 0 else 0
        end = plan.steps[a + 1] - 1 if a < last else size // targets
        at = begin * targets + j
        shares, shapes = beyond(plan.share, begin), beyond(shape, at)
        below, above = beyond(ends, lower + at), beyond(ends, upper + at)
        for k in range(end - begin):
            wide = half + shares[k] * (beside - half) if shares[k] > 0.0 else half
            above[k * targets] = wide * (shapes[k * targets] * unit)
        if plan.spread > 0:
            logs = beyond(answers, plan.spread + at)
            for k in range(end - begin):
                part = used + shares[k] * (also - used) if shares[k] > 0.0 else used
                above[k * targets] *= _exp(part * logs[k * targets])
        forecasts = beyond(forecast, at)
        for k in range(end - begin):
            wide = above[k * targets]
            below[k * targets] = forecasts[k * targets] - wide
            above[k * targets] = forecasts[k * targets] + wide


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _nest(ends: NDArray[np.float64], at: int, least: int, most: int, size: int) -> None:
    """Keep the ends of an interval, ``size`` from ``at`` on, between those of others."""
    for k in range(size):
        ends[at + k] = _between(ends[at + k], ends[least + k], ends[most + k])


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _between(number: float, least: float, most: float) -> float:
    """A number within two bounds; one that is NaN, or the number itself, bounds nothing."""
    return least if least > number else most if most < number else number


def around(
    layout: Plan,
    place: NDArray[np.int64],
    y: NDArray[np.float64],
    point: NDArray[np.float64],
    told: NDArray[np.float32] | None = None,
) -> NDArray[np.float64]:
    """Lower and upper ends, (n, 2 * coverages, horizon), that any forecasts of a series would get.

    ``place`` (n,) of each tick on its grid, ``y`` (n,), ``point`` (n, horizon) made there, and the
    logarithms of the spreads ``told`` (n, horizon) with them, if the layout is of such.
    """
    n, horizon = point.shape
    bands = placed(Bands(**records(bands_fields(layout), 1)))
    quantiles = np.empty((n, 2 * len(layout.coverages), horizon, 1))
    told = np.zeros((n, 0), np.float32) if told is None else told
    answers = np.concatenate([np.zeros((n, layout.spread), np.float32), told], axis=1)
    values, forecasts = y[:, None], point[:, :, None]
    _around(placed(layout), bands, place, values, np.ones((n, 1)), answers, forecasts, quantiles)
    return quantiles[..., 0]


@njit(cache=True, error_model="numpy", _nrt=False)
def _around(
    plan: Plan,
    bands: Bands,
    place: NDArray[np.int64],
    values: NDArray[np.float64],
    scale: NDArray[np.float64],
    answers: NDArray[np.float32],
    point: NDArray[np.float64],
    quantiles: NDArray[np.float64],
) -> None:
    before = place[0] - 1 if len(place) else 0
    for i in range(len(place)):
        surround(
            plan, bands, 0, place[i], place[i] - before, values, i, scale, answers, i, point,
            quantiles, i, False, 1,
        )  # fmt: skip
        before = place[i]
