"""Learning on the stream: each series corrects the model's forecasts by its own errors.

The network gives, beside its forecasts, ``directions``: numbers of mean 0, variance 1 and no
correlation over the data that it was fitted to, which hold what its inputs and its state say. For
each learned step k ahead, a series weighs them to guess the model's error: the correction. When
the tick that was forecast arrives, and not before, the weights move towards the error that the
model made, by normalised least mean squares (Haykin 2014, section 6); in a basis of this kind that
learns as fast as recursive least squares, without its matrix, which winds up where nothing varies
and takes the square of the memory. The error that it learns from is clipped at the usual one (Huber
1964), a correction at twice that.

A correction is used, half or in whole, only once it made the forecasts better beyond doubt: its
mean gain in Huber's loss over the latest answers lies ``ON`` standard errors above 0;
and no longer than ``OFF`` of them. Else the model's own forecast stands, but for one case: where
its errors of late are ``UNUSUAL`` times the usual one, and those of the latest value are less than
two fifths of that, that is the forecast, until the model is the better one again. So it is after a
shift of the level such as none was in the data of the fit. That may have raised the scale, and
with it what errors are usual; so it is enough that the latest value is better by a third for
``LONGER``. Where a value is often the one before, which then errs by nothing, that counts for no
more than the model's error does beside the usual one.

A series' history, which the model may have been fitted on, teaches the weights alone: how large
errors are, and whether corrections make them smaller, is learned from what comes after it.

One example of each learned step is under way at a time. The next is taken some ticks after it was
answered, so many that they do not keep to one phase of a season. Steps between two learned ones
are corrected by the line between theirs. All is in units of the scale of the series.
"""

from collections.abc import Sequence
from math import gcd
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm.jit import njit
from streamlstm.memory import Fields, beyond, copy, dot, load_f32, row_of, store_f32
from streamlstm.model import Spec

RATE = 0.001
"""Share of an error that a direction of size 1 learns."""
MEMORY = 250
"""Ticks over which gain and usual error are averaged."""
LEAST_MEMORY = 25
"""Answers that this has to be, where they lie far apart."""
ON, OFF = 2.0, 1.0
"""Standard errors that the gain has to lie above 0 for a correction to be used, and to stay so."""
SHARES = (0.5, 1.0)
"""Of a correction that may be used."""
LARGEST = 2.0
"""Usual errors that a correction may come to."""
LATELY, LONGER = 5, 25
"""Answers over which the model is compared with the latest value."""
UNUSUAL = 3.0
"""Times the usual error, from which on errors are."""
LESS = 1.0 / 3.0
"""What the difference of two errors comes to over their sum and the usual one, where one is three
usual ones and the other two fifths of that."""
WORSE, MOST = 2.0 / 3.0, 2.0
"""Share of the model's errors below which those of the latest value have to lie for ``LONGER``, and
usual errors that one answer counts for in that at most."""
FEW = 20
"""Answers after which a single error no longer counts for more than ten usual ones."""
FAR = 1e9
"""What is that large, or no number, teaches nothing: an error in scales, a guess, an example."""


class Plan(NamedTuple):
    """What compiled code needs to know: which steps are learned."""

    steps: NDArray[np.int64]
    """(learned,) rising, from 1; none where nothing is"""
    apart: NDArray[np.int64]
    """(learned,) ticks between two examples of a step, at least as many as it lies ahead"""
    memory: NDArray[np.float64]
    """(learned,) answers over which gain and usual error are averaged"""
    fade: NDArray[np.float64]
    """(learned, horizon) share of a step's correction that each forecast gets"""
    model: int
    """what its directions mean: those of another model say nothing to what was learned from them"""


class Learned(NamedTuple):
    """What a series learned: one row a series."""

    model: NDArray[np.int64]
    """(series,) as :attr:`Plan.model`; 0: none yet"""
    issued: NDArray[np.int64]
    """(series, learned) place of the tick of the latest example, and 1; 0: there was none"""
    example: NDArray[np.float32]
    """(series, learned, directions) its directions"""
    forecast: NDArray[np.float64]
    """(series, learned, targets, 3) the model's forecast then, the scale, and the correction"""
    theta: NDArray[np.float32]
    """(series, learned, targets, 1 + directions) weights, the first of a constant"""
    gain: NDArray[np.float32]
    """(series, learned, targets, shares, 2) mean gain of a share of the correction, mean square"""
    usual: NDArray[np.float32]
    """(series, learned, targets) mean absolute error of the model's own forecast"""
    answers: NDArray[np.int32]
    """(series, learned, targets) how many; less than 0 while all are of its history"""
    used: NDArray[np.float32]
    """(series, learned, targets) share of the correction that is used"""
    fallback: NDArray[np.float32]
    """(series, learned, targets, 5) the latest value less the model's forecast then, and the
    model's error of late, in units of the scale; that less the one of the latest value over their
    sum and the usual one, of late; whether the latest value is the forecast; how much better it
    was for longer, in usual errors"""


def plan(spec: Spec, steps: Sequence[int], model: str = "1") -> Plan:
    """Lay out the learning of ``steps`` ahead, rising; of none where the model has no directions.

    ``model`` is the id, hexadecimal, of that whose ``spec`` it is.
    """
    chosen = steps if spec.directions else ()
    seasons = [spec.season or 1]
    if spec.blend is not None:
        seasons += [spec.blend.short, spec.blend.long]
    apart = []
    for k in chosen:
        ticks = k
        while any(gcd(ticks, season) > 1 for season in seasons):
            ticks += 1
        apart.append(ticks)
    memory = [max(LEAST_MEMORY, MEMORY / ticks) for ticks in apart]
    return Plan(
        np.array(chosen, np.int64), np.array(apart, np.int64), np.array(memory),
        _faded(chosen, spec.horizon), int(model, 16),
    )  # fmt: skip


def _faded(steps: Sequence[int], horizon: int) -> NDArray[np.float64]:
    """A correction fades in from the step learned before, and out towards the next one."""
    edges, every = [0, *steps, horizon + 1], np.arange(1, horizon + 1)
    fade = np.zeros((len(steps), horizon))
    for a, (before, k, after) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        rising, falling = (before < every) & (every <= k), (k < every) & (every < after)
        fade[a, rising] = (every[rising] - before) / (k - before) if a > 0 else 1.0
        fade[a, falling] = (after - every[falling]) / (after - k) if a + 1 < len(steps) else 1.0
    return fade


def learned_fields(plan: Plan, spec: Spec) -> Fields:
    """Name, dtype and shape of one series' row of :class:`Learned`."""
    steps, targets, directions = len(plan.steps), spec.targets, spec.directions
    return {
        "model": (np.int64, ()),
        "issued": (np.int64, (steps,)),
        "example": (np.float32, (steps, directions)),
        "forecast": (np.float64, (steps, targets, 3)),
        "theta": (np.float32, (steps, targets, 1 + directions)),
        "gain": (np.float32, (steps, targets, len(SHARES), 2)),
        "usual": (np.float32, (steps, targets)),
        "answers": (np.int32, (steps, targets)),
        "used": (np.float32, (steps, targets)),
        "fallback": (np.float32, (steps, targets, 5)),
    }


# _nrt=False: nothing here owns an array, and reference counts would cost more than the work.
# Sums keep their order: what a series learns is the same bits everywhere.
@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def correct(
    plan: Plan,
    learned: Learned,
    slot: int,
    place: int,
    values: NDArray[np.float64],
    tick: int,
    scale: NDArray[np.float64],
    outputs: NDArray[np.float32],
    row: int,
    point: NDArray[np.float64],
    to: int,
    warm: bool,
    targets: int,
) -> None:
    """Learn from the tick at ``place``, then correct the forecast ``point[to]`` made there.

    A ``warm`` one is history, maybe that which the model was fitted on. ``values`` (n, at least
    targets) at ``tick`` are raw, NaN where missing. At ``row`` lie the ``scale`` (n, targets) and
    the network's ``outputs`` (n, answers).
    """
    size = 4 * learned.example.shape[2]
    # the directions are the last of the outputs
    shown = outputs.ctypes.data + (row + 1) * outputs.strides[0] - size
    if learned.model[slot] != plan.model and len(plan.steps):
        _begin(plan, learned, slot)
    for a in range(len(plan.steps)):
        k, since = plan.steps[a], place + 1 - learned.issued[slot, a]
        begun = learned.issued[slot, a] > 0
        anew = not begun or since >= plan.apart[a]
        for j in range(targets):
            if not warm and learned.answers[slot, a, j] < 0:
                _doubt(learned, slot, a, j)
            if begun and since == k:
                _learn(learned, slot, a, j, values[tick, j], plan.memory[a], warm)
            frozen = point[to, k - 1, j]
            guess = learned.theta[slot, a, j, 0] + _dot(_weights(learned, slot, a, j), shown, size)
            most = np.float32(LARGEST) * learned.usual[slot, a, j]
            guess = min(max(guess, -most), most) if abs(guess) < FAR else np.float32(0.0)
            off = values[tick, j] - frozen
            amount = np.float64(learned.used[slot, a, j]) * guess * scale[row, j]
            if learned.fallback[slot, a, j, 3] > 0.0 and abs(off) < FAR * scale[row, j]:
                amount = off
            if anew:
                learned.forecast[slot, a, j, 0] = frozen
                learned.forecast[slot, a, j, 1] = scale[row, j]
                learned.forecast[slot, a, j, 2] = guess
                learned.fallback[slot, a, j, 0] = off / scale[row, j]
            _apply(plan, a, j, amount, point, to, targets)
        if anew:
            learned.issued[slot, a] = place + 1
            copy(_example(learned, slot, a), shown, size)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _begin(plan: Plan, learned: Learned, slot: int) -> None:
    """Forget what was learned from another model's directions."""
    learned.model[slot] = plan.model
    for a in range(len(plan.steps)):
        learned.issued[slot, a] = 0
        for j in range(learned.theta.shape[2]):
            _doubt(learned, slot, a, j)
            for i in range(learned.theta.shape[3]):
                learned.theta[slot, a, j, i] = 0.0


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _doubt(learned: Learned, slot: int, a: int, j: int) -> None:
    """Forget how good forecasts and corrections were; the corrections stay."""
    learned.usual[slot, a, j] = learned.answers[slot, a, j] = learned.used[slot, a, j] = 0
    for n in range(len(SHARES)):
        learned.gain[slot, a, j, n, 0] = learned.gain[slot, a, j, n, 1] = 0.0
    for n in range(1, 5):
        learned.fallback[slot, a, j, n] = 0.0


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _apply(
    plan: Plan, a: int, j: int, amount: float, point: NDArray[np.float64], to: int, targets: int
) -> None:
    """Correct the forecasts that a learned step has a share in."""
    if amount == 0.0:
        return
    begin = plan.steps[a - 1] if a > 0 else 0
    end = plan.steps[a + 1] - 1 if a + 1 < len(plan.steps) else point.shape[1]
    fade, forecast = (
        beyond(row_of(plan.fade, a), begin),
        beyond(row_of(point, to), begin * targets + j),
    )
    for k in range(end - begin):
        forecast[k * targets] += fade[k] * amount


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _learn(
    learned: Learned, slot: int, a: int, j: int, value: float, memory: float, warm: bool
) -> None:
    """Learn from the answer to the latest example of a step."""
    forecast = learned.forecast
    error = (value - forecast[slot, a, j, 0]) / forecast[slot, a, j, 1]
    if not abs(error) < FAR:  # or missing
        return
    before = learned.answers[slot, a, j]
    count = abs(before) + 1
    learned.answers[slot, a, j] = min(count, MEMORY) * (-1 if warm and before <= 0 else 1)
    usual = np.float64(learned.usual[slot, a, j])
    size = abs(error)
    if count > FEW:
        size = min(size, 10.0 * usual)
    usual += (size - usual) / min(count, memory)
    learned.usual[slot, a, j] = usual
    if usual > 0.0:
        _compare(learned, slot, a, j, error, usual)
        _weigh(learned, slot, a, j, error, usual, memory)
        _move(learned, slot, a, j, error, usual)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _compare(learned: Learned, slot: int, a: int, j: int, error: float, usual: float) -> None:
    """Decide whether the latest value is the forecast from now on."""
    count, fallback = abs(learned.answers[slot, a, j]), learned.fallback
    guess = np.float64(learned.used[slot, a, j]) * learned.forecast[slot, a, j, 2]
    naive = abs(error - np.float64(fallback[slot, a, j, 0]))
    if not naive < FAR:  # or missing
        return
    size, share = abs(error - guess), 1.0 / min(count, LATELY)
    model, less = np.float64(fallback[slot, a, j, 1]), np.float64(fallback[slot, a, j, 2])
    model += share * (size - model)
    longer = np.float64(fallback[slot, a, j, 4])
    less += share * ((size - naive) / (size + naive + usual) - less)
    off = (WORSE * size - naive) / usual
    longer += (min(max(off, -MOST), MOST) - longer) / min(count, LONGER)
    fallback[slot, a, j, 1], fallback[slot, a, j, 2], fallback[slot, a, j, 4] = model, less, longer
    if less <= 0.0:
        fallback[slot, a, j, 3] = 0.0
    elif count > FEW and (longer > 0.0 or (less > LESS and model > UNUSUAL * usual)):
        fallback[slot, a, j, 3] = 1.0


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _weigh(
    learned: Learned, slot: int, a: int, j: int, error: float, usual: float, memory: float
) -> None:
    """Decide which share of the correction is used from now on."""
    guess, doubt = learned.forecast[slot, a, j, 2], ON
    if learned.used[slot, a, j] > 0.0:
        doubt = OFF
    best, share = 0.0, 0.0
    plain = _loss(error, usual)
    for n in range(len(SHARES)):
        gain = (plain - _loss(error - SHARES[n] * guess, usual)) / usual
        mean = np.float64(learned.gain[slot, a, j, n, 0])
        square = np.float64(learned.gain[slot, a, j, n, 1])
        mean += (gain - mean) / memory
        square += (gain * gain - square) / memory
        learned.gain[slot, a, j, n, 0] = mean
        learned.gain[slot, a, j, n, 1] = square
        sure = mean - doubt * np.sqrt(2.0 * square / memory)
        if sure > best:
            best, share = sure, SHARES[n]
    learned.used[slot, a, j] = share


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _loss(error: float, usual: float) -> float:
    """Huber's, which turns from square to line at the usual error."""
    size = abs(error)
    return 0.5 * size * size / usual if size <= usual else size - 0.5 * usual


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _move(learned: Learned, slot: int, a: int, j: int, error: float, usual: float) -> None:
    """Move the weights towards what the error asks for."""
    weights, example = _weights(learned, slot, a, j), _example(learned, slot, a)
    size = 4 * learned.example.shape[2]
    guess = learned.theta[slot, a, j, 0] + _dot(weights, example, size)
    square = np.float32(1.0) + _dot(example, example, size)
    if not square < FAR:
        return
    left = min(max(error - guess, -usual), usual)
    step = np.float32(RATE * left / (1.0 + RATE * square))
    learned.theta[slot, a, j, 0] += step
    for at in range(0, size, 4):
        store_f32(weights + at, load_f32(weights + at) + step * load_f32(example + at))


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _weights(learned: Learned, slot: int, a: int, j: int) -> int:
    """Where the weights of the directions lie."""
    s, t, u, one = learned.theta.strides
    return learned.theta.ctypes.data + slot * s + a * t + j * u + one


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _example(learned: Learned, slot: int, a: int) -> int:
    """Where the directions of the latest example of a step lie."""
    s, t, _ = learned.example.strides
    return learned.example.ctypes.data + slot * s + a * t


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _dot(one: int, other: int, size: int) -> np.float32:
    """Inner product of float32 at two addresses, ``size`` bytes; the same bits everywhere."""
    whole = size & ~31
    total = dot(one, other, whole)
    for at in range(whole, size, 4):
        total += load_f32(one + at) * load_f32(other + at)
    return total
