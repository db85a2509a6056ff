"""From raw ticks to the network's input vector: scaling, lags, calendar, what is known ahead.

One compiled row, :func:`advance`, serves the stream, training and backtest alike, so a model meets
live exactly what it was trained on. It looks at a series' past and present only.

The input vector of a tick: the scaled values of the targets and of what is measured, then for each
lag how far the targets lay from where they are now, scaled (differences, because they are what a
linear start can weigh apart), then sine and cosine of each calendar phase and of its double. Then,
where the spec has them: the log of the time since the tick before (0 at the first); how far the
targets lie from what the smoothing foresaw, scaled; for each input that is known ahead its scaled
values at the steps of ``Spec.shown``; the numbers that a series has, scaled; for each category a
place for each that there is, a one in its own.
A forecast is ``base + scale * output``.

One wild reading would spoil a running scale, and all that looks back to it, for long. So a target's
value that lies ``FAR`` scales or more off the mean is taken for an error, unless the two before it
did too: it moves mean and scale as one at half of ``FAR`` would, and no more in a young series than
in an old one, the smoothing not at all; and where the next one is as usual, that takes its place in
what is looked back to. One of another input, whose past is not kept, always moves mean and scale as
one at half of ``FAR`` would, so that these reach a new level within some ticks. The network is
shown no number beyond ``FAR``. The forecast at the tick itself follows the value: it may be true.

A tick carries what is known ``horizon`` steps ahead of it, so that a series remembers what was told
for the steps between. What was not, before its first tick and in gaps, is taken to be what was told
next, or before.
"""

from collections.abc import Mapping
from math import exp
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm.calendars import DAY, PERIODS, UTC_ALONE, local_shift, sin_cos, utc_offsets
from streamlstm.jit import njit
from streamlstm.memory import LINE, Fields, beyond, prefetch, records, row_of
from streamlstm.model import CalendarName, Spec
from streamlstm.placed import placed

_SCALINGS = ("none", "fixed", "running")
_BASES = ("none", "last", "seasonal", "blend")
FIXED, RUNNING = 1, 2
AHEAD, LINES = 16, 4
"""Series whose past is on its way to the cache while one is worked on, and lines of what lies side
by side there: those that follow the core brings by itself."""
MOST_APART = (1 << 63) - 1  # nanoseconds
FARTHEST = 1 << 40  # steps
LAST, SEASONAL, BLEND = 1, 2, 3
PRIOR = 10.0  # ticks that the prior of the running scale is worth
WITHIN = 25.0  # times the series' own variance that the prior's is at most, once that is known
FARTHEST_APART = 8.0
"""Largest log of the time between two ticks that is shown, and smallest below 0."""
ENOUGH = 30
"""Ticks of a series before which its running scale says little."""
FAR = 30.0
"""Running scales off the mean, from which on a value is taken for an error."""
FEW = 2
"""In a row that are; a further one is not: it is a new level."""
_NEAREST = exp(-FARTHEST_APART)


class Plan(NamedTuple):
    """What compiled code needs to know of a spec."""

    step_ns: int
    horizon: int
    targets: int
    season: int
    base: int
    scaling: int
    memory: int
    prior_ratio: float
    fixed_loc: NDArray[np.float64]
    fixed_scale: NDArray[np.float64]
    short: int
    long: int
    blend: NDArray[np.float64]
    """(outputs, 3) weights of a blended base"""
    smoothing: int
    """season of a smoothed profile; 0: none"""
    level_share: float
    profile_share: float
    smoothed: NDArray[np.float64]
    """(outputs,) weights of the smoothing's forecast in a blended base"""
    lags: NDArray[np.int64]
    reads: NDArray[np.int64]
    """(lines,) how many places back a tick reads its past, one of each line of the cache"""
    periods: NDArray[np.int64]
    """(calendar,) length of each phase, ns"""
    shift_at: NDArray[np.int64]
    """(transitions,) UTC ns from which ``shift`` holds"""
    shift: NDArray[np.int64]
    """(transitions,) local time minus UTC, ns"""
    measured: int
    """inputs that are targets or measured, the first; then those known, numbers, categories"""
    own_loc: NDArray[np.float64]
    """(inputs,)"""
    own_scale: NDArray[np.float64]
    """(inputs,) of what is known and of numbers; 0: as the spec's scaling says"""
    elapsed_ns: int
    known: int
    shown: NDArray[np.int64]
    """(shown,) steps from the tick at which what is known is shown"""
    numbers: int
    categories: NDArray[np.int64]
    """(categories,) how many there are of each"""
    floor: float
    """below which no forecast lies; minus infinity: none"""


class Memory(NamedTuple):
    """What a series remembers for its features: one row a series."""

    place: NDArray[np.int64]
    """(series,) ticks since the first on the grid of steps, those missed included"""
    seen: NDArray[np.int64]
    """(series,) ticks taken; 0 for a series not yet begun"""
    loc: NDArray[np.float64]
    """(series, inputs) running mean"""
    variance: NDArray[np.float64]
    """(series, inputs) running variance"""
    past: NDArray[np.float64]
    """(series, history, targets) ring of past values, at place modulo history"""
    ahead: NDArray[np.float64]
    """(series, horizon + 1, known) ring of what is known, of a place at that modulo horizon + 1"""
    before: NDArray[np.int64]
    """(series,) time of the latest tick, ns"""
    level: NDArray[np.float64]
    """(series, targets) of :class:`streamlstm.model.Smoothing`"""
    profile: NDArray[np.float64]
    """(series, season, targets) likewise, at place modulo season"""


class Rows(NamedTuple):
    """What :func:`advance` makes of a tick: one row a tick."""

    x: NDArray[np.float32]
    """(n, I) the input vector"""
    base: NDArray[np.float64]
    """(n, horizon * targets) the forecast to be corrected, raw"""
    scale: NDArray[np.float64]
    """(n, targets) raw units per unit of the network's output"""
    error: NDArray[np.bool_]
    """(n, targets) whether the value is taken for an error"""

    @classmethod
    def empty(cls, spec: Spec, n: int) -> "Rows":
        """Room for ``n`` ticks."""
        return cls(
            np.zeros((n, spec.width), np.float32),
            np.zeros((n, spec.outputs)),
            np.zeros((n, spec.targets)),
            np.zeros((n, spec.targets), np.bool_),
        )


def memory_fields(spec: Spec) -> Fields:
    """Name, dtype and shape of what a series keeps of :class:`Memory`: not what it never uses."""
    fields: dict[str, tuple[type, tuple[int, ...]]] = {
        "place": (np.int64, ()),
        "seen": (np.int64, ()),
        "loc": (np.float64, (spec.inputs,)),
        "variance": (np.float64, (spec.inputs,)),
        "past": (np.float64, (spec.history, spec.targets)),
    }
    if known := len(spec.of_role("known")):
        fields["ahead"] = np.float64, (spec.horizon + 1, known)
    if spec.elapsed_ns:
        fields["before"] = np.int64, ()
    if spec.smoothing:
        fields["level"] = np.float64, (spec.targets,)
        fields["profile"] = np.float64, (spec.smoothing.season, spec.targets)
    return fields


def memory_of(state: Mapping[str, NDArray[Any]]) -> Memory:
    """The memory whose fields lie in ``state``; those that are never used are of no series."""
    few = np.float64, (1, 1)
    unused = records(
        {"ahead": few, "before": (np.int64, ()), "level": (np.float64, (1,)), "profile": few}, 1
    )
    return Memory(*({**unused, **state}[name] for name in Memory._fields))


def plan(spec: Spec) -> Plan:
    """Lay ``spec`` out for compiled code."""
    shift_at, shift = utc_offsets(spec.timezone) if spec.calendar else UTC_ALONE
    ones = np.ones(spec.inputs)
    weights, smoothing = spec.blend.weights if spec.blend else (), spec.smoothing
    return Plan(
        spec.step_ns,
        spec.horizon,
        spec.targets,
        spec.season,
        _BASES.index(spec.base),
        _SCALINGS.index(spec.scaling.kind),
        spec.scaling.memory,
        spec.scaling.prior_ratio,
        np.array(spec.scaling.loc or 0 * ones),
        np.array(spec.scaling.scale or ones),
        spec.blend.short if spec.blend else 1,
        spec.blend.long if spec.blend else 1,
        np.array([row[:3] for row in weights], np.float64).reshape(-1, 3),
        smoothing.season if smoothing else 0,
        smoothing.level if smoothing else 1.0,
        smoothing.profile if smoothing else 0.0,
        np.array([row[3] for row in weights if smoothing], np.float64),
        np.array(spec.lags, np.int64),
        _reads(spec),
        np.array([PERIODS[name] for name in spec.calendar], np.int64),
        shift_at,
        shift,
        spec.measured,
        np.array([each.loc for each in spec.roles]),
        np.array([each.scale for each in spec.roles]),
        spec.elapsed_ns,
        len(spec.of_role("known")),
        np.array(spec.shown, np.int64),
        len(spec.of_role("number")),
        np.array(spec.categories, np.int64),
        -np.inf if spec.floor is None else spec.floor,
    )


def _reads(spec: Spec) -> NDArray[np.int64]:
    """Where in the ring of the past lies what a tick reads; of long runs only where they begin."""
    back, ahead = set(spec.lags), np.arange(spec.horizon)
    if spec.base == "seasonal":
        back |= {*(spec.season - 1 - ahead[: spec.season]).tolist()}
    if spec.blend:
        short, long = spec.blend.short, spec.blend.long
        back |= {*(short - 1 - ahead % short).tolist(), *(long - 1 - ahead % long).tolist()}
        back |= {*(long + short - 1 - ahead % short).tolist()}
    places, line = np.array(sorted(back), np.int64), max(1, LINE // (8 * spec.targets))
    reads: set[int] = set()
    for run in np.split(places, np.flatnonzero(np.diff(places) > line) + 1):
        if len(run):  # it is read from the farthest place on
            reads |= {int(run[0]), *range(int(run[-1]), int(run[0]), -line)[:LINES]}
    return np.array(sorted(reads), np.int64)


# _nrt=False: nothing here owns an array, and reference counts would cost more than the work.
@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def steps_since(step_ns: int, last_ts: int, ts: int) -> int:
    """How many steps of the grid lie between two ticks; at least 1, 1 where no step is known.

    At most ``FARTHEST``, so that no clock can drive a place beyond what 64 bits hold.
    """
    if step_ns == 0:
        return 1
    since = apart(last_ts, ts)
    nearer = since % step_ns >= step_ns - step_ns // 2
    return min(max(1, since // step_ns + nearer), FARTHEST)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def apart(earlier: int, later: int) -> int:
    """Nanoseconds from one time to a later one, or the most that 64 bits hold."""
    since = later - earlier
    return since if since >= 0 else MOST_APART


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def advance(
    plan: Plan,
    memory: Memory,
    rows: Rows,
    tick: NDArray[np.int64],
    slot: NDArray[np.int32],
    steps: NDArray[np.int64],
    ts: NDArray[np.int64],
    values: NDArray[np.float64],
    place: NDArray[np.int64],
    start: int,
    stop: int,
    targets: int,
) -> None:
    """Move series by their ticks, one after the other, and write each one's features to ``rows``.

    Rows ``start`` to ``stop``: row j is of tick ``tick[j]`` of series ``slot[j]``, whose place
    there goes to ``place[j]``. Of every tick: ``steps`` (n,) since the one before, ``ts`` (n,) ns,
    ``values`` (n, inputs), finite. Where ticks were missed, the places between keep what stood
    there whole seasons before, or the latest value where nothing did.
    """
    for j in range(start, stop):
        if j + AHEAD < len(slot):  # of a later batch, maybe: no harm in that
            _fetch(plan, memory, slot[j + AHEAD], steps[tick[j + AHEAD]], 8 * targets)
        i = tick[j]
        place[j] = _advance(plan, memory, rows, j, slot[j], steps[i], ts[i], values, i, targets)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _fetch(plan: Plan, memory: Memory, slot: int, steps: int, width: int) -> None:
    """Bring near what the next tick of a series looks at in its rings, ``width`` bytes a place."""
    place, history, season = memory.place[slot] + steps, memory.past.shape[1], plan.smoothing
    if len(plan.reads):
        ring, now = row_of(memory.past, slot).ctypes.data, place % history
        for n in range(len(plan.reads)):
            at = now - plan.reads[n]
            prefetch(ring + (at if at >= 0 else at + history) * width)
    if plan.elapsed_ns:
        prefetch(row_of(memory.before, slot).ctypes.data)
    if plan.known:
        ring = row_of(memory.ahead, slot).ctypes.data
        for at in range(0, memory.ahead.shape[1] * plan.known * 8, LINE):
            prefetch(ring + at)
    if season:
        prefetch(row_of(memory.level, slot).ctypes.data)
        ring, begin = row_of(memory.profile, slot).ctypes.data, place % season * width
        for at in range(begin, begin + min(plan.horizon + 1, season) * width, LINE):
            prefetch(ring + (at if at < season * width else at - season * width))


# No array is sliced from here on: to make a view costs more than to use it.


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _advance(
    plan: Plan,
    memory: Memory,
    rows: Rows,
    row: int,
    slot: int,
    steps: int,
    ts: int,
    values: NDArray[np.float64],
    tick: int,
    targets: int,
) -> int:
    history, inputs = memory.past.shape[1], values.shape[1]
    place = 0
    if memory.seen[slot] == 0:
        for i in range(inputs):
            memory.loc[slot, i] = 0.0
            memory.variance[slot, i] = 0.0
    else:
        before = memory.place[slot]
        place = before + steps
        for missed in range(before + 1, min(place, history)):
            for j in range(targets):
                memory.past[slot, missed, j] = memory.past[slot, before, j]
    memory.place[slot] = place
    memory.seen[slot] += 1

    column = 0
    for i in range(plan.measured):
        reach, value = _reach(plan, memory, slot, i), values[tick, i]
        if i < targets:
            most = _beyond_belief(memory, slot, place, value, i, targets, reach)
            rows.error[row, i] = most < np.inf
        else:
            most = reach / 2.0 if abs(value - memory.loc[slot, i]) > reach else np.inf
        loc, scale = _scaling(plan, memory, slot, i, value, most)
        rows.x[row, column] = _shown(plan, (value - loc) / scale)
        column += 1
        if i < targets:
            rows.scale[row, i] = scale
            rows.base[row, i] = loc  # until the base forecast takes its place
    now = place % history if history else 0
    for a in range(len(plan.lags)):
        lag = plan.lags[a]
        at = now - lag if now >= lag else now - lag + history
        for j in range(targets):
            since = 0.0
            if place >= lag:
                since = memory.past[slot, at, j] - values[tick, j]
            rows.x[row, column] = _shown(plan, since / rows.scale[row, j])
            column += 1
    if len(plan.periods):
        local = ts + local_shift(plan.shift_at, plan.shift, ts)
        for a in range(len(plan.periods)):
            period = plan.periods[a]
            sine, cosine = sin_cos((local % period) / period)
            rows.x[row, column], rows.x[row, column + 1] = sine, cosine
            rows.x[row, column + 2] = 2.0 * sine * cosine
            rows.x[row, column + 3] = cosine * cosine - sine * sine
            column += 4
    if column < rows.x.shape[1]:
        _further(plan, memory, rows, row, slot, steps, ts, values, tick, place, column)

    if history:
        for j in range(targets):
            memory.past[slot, now, j] = values[tick, j]
    for j in range(targets):
        _base_forecast(plan, memory, rows, row, slot, place, values[tick, j], j, targets)
    return place


@njit(cache=True, error_model="numpy", _nrt=False)
def _further(
    plan: Plan,
    memory: Memory,
    rows: Rows,
    row: int,
    slot: int,
    steps: int,
    ts: int,
    values: NDArray[np.float64],
    tick: int,
    place: int,
    column: int,
) -> None:
    """Write what only some models are shown, from ``column`` on."""
    first = memory.seen[slot] == 1
    if plan.elapsed_ns:
        elapsed = 1.0
        if not first:
            since = np.float64(ts - memory.before[slot])
            if plan.step_ns:  # on the grid: a tick may be a little early or late
                since = np.float64(steps) * np.float64(plan.step_ns)
            elapsed = since / np.float64(plan.elapsed_ns)
        memory.before[slot] = ts
        rows.x[row, column] = np.float32(_log(elapsed))
        column += 1
    if plan.smoothing:
        for j in range(plan.targets):
            off = _smooth(
                plan, memory, slot, place, steps, first, values[tick, j], j, rows.error[row, j]
            )
            rows.x[row, column] = _shown(plan, off / rows.scale[row, j])
            column += 1
    i = plan.measured
    for a in range(plan.known):
        value = values[tick, i]
        _tell(memory.ahead, slot, a, place, steps, first, value)
        loc, scale = plan.own_loc[i], plan.own_scale[i]
        if scale == 0.0:
            loc, scale = _scaling(plan, memory, slot, i, value, np.inf)
        for k in range(len(plan.shown)):
            at = (place + plan.shown[k]) % memory.ahead.shape[1]
            rows.x[row, column] = np.float32((memory.ahead[slot, at, a] - loc) / scale)
            column += 1
        i += 1
    for _ in range(plan.numbers):
        scaled = (values[tick, i] - plan.own_loc[i]) / plan.own_scale[i]
        rows.x[row, column] = np.float32(scaled)
        column, i = column + 1, i + 1
    for a in range(len(plan.categories)):
        for which in range(plan.categories[a]):
            rows.x[row, column] = np.float32(1.0) if values[tick, i] == which else np.float32(0.0)
            column += 1
        i += 1


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _smooth(
    plan: Plan, memory: Memory, slot: int, place: int, steps: int, first: bool, value: float,
    j: int, error: bool,
) -> float:  # fmt: skip
    """Take a value of target ``j`` in, unless it is an ``error``; how far off it was."""
    season, targets, profile = plan.smoothing, plan.targets, row_of(memory.profile, slot)
    before = place if first else place - steps
    for missed in range(before + 1, min(place, season)):
        profile[missed * targets + j] = profile[before * targets + j]
    at = (place % season) * targets + j
    if first:
        memory.level[slot, j] = 0.0
    if place < season:
        profile[at] = profile[at - targets] if error else value
        return 0.0
    off = value - memory.level[slot, j] - profile[at]
    if error:
        return off
    share = max(plan.level_share, 1.0 / (place - season + 2))
    memory.level[slot, j] += share * off
    profile[at] += max(plan.profile_share, 1.0 / (place // season + 1)) * (1.0 - share) * off
    return off


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _add_smoothed(
    plan: Plan,
    level: float,
    profile: NDArray[np.float64],
    past: NDArray[np.float64],
    place: int,
    value: float,
    j: int,
    targets: int,
    base: NDArray[np.float64],
) -> None:
    """Add the term of the smoothing to the base forecast of target ``j``."""
    season = plan.smoothing
    phase, history = (place + 1) % season, len(past) // targets
    for k in range(plan.horizon):
        if phase <= place:
            off = level + profile[phase * targets + j] - value
        else:
            back = place + 1 + k - plan.short * (k // plan.short + 1)
            off = past[back % history * targets + j] - value if back >= 0 else 0.0
        base[k * targets + j] += plan.smoothed[k * targets + j] * off
        phase = phase + 1 if phase + 1 < season else 0


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _tell(
    ahead: NDArray[np.float64], slot: int, a: int, place: int, steps: int, first: bool, value: float
) -> None:
    """Remember that the known input ``a`` is ``value`` at the farthest step ahead of a place."""
    ring = ahead.shape[1]
    farthest = place + ring - 1
    missed, between = max(farthest - steps + 1, place), value
    if first:
        missed = place
    else:
        between = ahead[slot, (farthest - steps) % ring, a]
    for at in range(missed, farthest):
        ahead[slot, at % ring, a] = between
    ahead[slot, farthest % ring, a] = value


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _base_forecast(
    plan: Plan,
    memory: Memory,
    rows: Rows,
    row: int,
    slot: int,
    place: int,
    value: float,
    j: int,
    targets: int,
) -> None:
    """Write the base forecast of target ``j``, for whose step 1 loc stands there on entry."""
    base, past = row_of(rows.base, row), row_of(memory.past, slot)
    if plan.base == BLEND:
        _blended(plan, past, place, value, j, targets, base)
        if plan.smoothing:
            profile = row_of(memory.profile, slot)
            _add_smoothed(
                plan, memory.level[slot, j], profile, past, place, value, j, targets, base
            )
    elif plan.base == SEASONAL:
        _seasonal(plan, past, place, value, j, targets, base)
    else:
        known = value if plan.base == LAST else base[j]
        for at in range(j, len(base), targets):
            base[at] = known


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _seasonal(
    plan: Plan,
    past: NDArray[np.float64],
    place: int,
    value: float,
    j: int,
    targets: int,
    base: NDArray[np.float64],
) -> None:
    """The value one season before each step; ``value`` where that is before the first tick."""
    season = plan.season
    history, filled = len(past) // targets, min(season, plan.horizon)
    back = place + 1 - season  # the place one season before the step ahead
    at = back % history
    for k in range(filled):
        base[k * targets + j] = past[at * targets + j] if back + k >= 0 else value
        at = at + 1 if at + 1 < history else 0
    for k in range(filled, plan.horizon):
        base[k * targets + j] = base[(k - season) * targets + j]


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _blended(
    plan: Plan,
    past: NDArray[np.float64],
    place: int,
    value: float,
    j: int,
    targets: int,
    base: NDArray[np.float64],
) -> None:
    """The base forecast of target ``j`` as :class:`streamlstm.model.Blend` says."""
    history, short, long = len(past) // targets, plan.short, plan.long
    # the places at the phase of the step ahead, and where the ring holds them
    place1, place2 = place + 1 - short, place + 1 - long
    at1, at2, at3 = place1 % history, place2 % history, (place1 - long) % history
    k = 0
    while k < plan.horizon:
        if place1 > place:
            place1 -= short
            at1 -= short if at1 >= short else short - history
            at3 -= short if at3 >= short else short - history
        if place2 > place:
            place2 -= long
            at2 -= long if at2 >= long else long - history
        # as many steps as go alike: before the first tick or not, none beyond the end of the ring
        run = min(plan.horizon - k, place + 1 - max(place1, place2))
        run = min(run, history - max(at1, at2, at3))
        one, two, three = place1 >= 0, place2 >= 0, place1 >= long
        if not three:
            run = min(run, long - place1 if one else -place1)
        if not two:
            run = min(run, -place2)
        past1, past2 = beyond(past, at1 * targets + j), beyond(past, at2 * targets + j)
        past3, to = beyond(past, at3 * targets + j), beyond(base, k * targets + j)
        weights = beyond(plan.blend, 3 * (k * targets + j))
        for n in range(0, run * targets, targets):
            known = value
            if one:
                known += weights[3 * n] * (past1[n] - value)
            if three:
                known += weights[3 * n + 2] * (past1[n] - past3[n])
            if two:
                known += weights[3 * n + 1] * (past2[n] - value)
            elif one:
                known += weights[3 * n + 1] * (past1[n] - value)
            to[n] = known
        k, place1, place2 = k + run, place1 + run, place2 + run
        at1 = at1 + run if at1 + run < history else 0
        at2 = at2 + run if at2 + run < history else 0
        at3 = at3 + run if at3 + run < history else 0


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _shown(plan: Plan, x: float) -> np.float32:
    """What the network is shown of a scaled number."""
    return np.float32(min(max(x, -FAR), FAR) if plan.scaling == RUNNING else x)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _reach(plan: Plan, memory: Memory, slot: int, i: int) -> float:
    """How far off the mean of input ``i`` a value may lie to be believed at once."""
    if plan.scaling != RUNNING or memory.seen[slot] <= ENOUGH:
        return np.inf
    loc, variance = memory.loc[slot, i], memory.variance[slot, i]
    reach = FAR * _deviation(plan, memory.seen[slot] - 1, loc, variance)
    return reach if reach > 0.0 else np.inf


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _beyond_belief(
    memory: Memory, slot: int, place: int, value: float, j: int, targets: int, reach: float
) -> float:
    """How far off the mean of target ``j`` a ``value`` that is an error counts for; else infinite.

    Where it is none, it takes the place of those just before it that were.
    """
    past, history, loc = row_of(memory.past, slot), memory.past.shape[1], memory.loc[slot, j]
    if history <= FEW:
        return np.inf
    far = 0  # of those before it, in a row
    while far < FEW and abs(past[(place - 1 - far) % history * targets + j] - loc) > reach:
        far += 1
    if abs(value - loc) > reach:
        return reach / 2.0 if far < FEW else np.inf
    for back in range(1, far + 1):
        past[(place - back) % history * targets + j] = value
    return np.inf


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _scaling(
    plan: Plan, memory: Memory, slot: int, i: int, value: float, most: float
) -> tuple[float, float]:
    """Loc and scale of input ``i`` of a series, a ``value`` that is ``most`` off taken in."""
    loc, scale = 0.0, 1.0
    if plan.scaling == FIXED:
        loc, scale = plan.fixed_loc[i], plan.fixed_scale[i]
    elif plan.scaling == RUNNING:
        seen = min(float(memory.seen[slot]), float(plan.memory))
        alpha = 1.0 / (seen if most == np.inf else plan.memory)
        off = min(max(value - memory.loc[slot, i], -most), most)
        loc = memory.loc[slot, i] + alpha * off
        variance = (1.0 - alpha) * (memory.variance[slot, i] + alpha * off * off)
        memory.loc[slot, i] = loc
        memory.variance[slot, i] = variance
        deviation = _deviation(plan, memory.seen[slot], loc, variance)
        if deviation > 0.0:
            scale = deviation
    return loc, scale


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _deviation(plan: Plan, ticks: int, loc: float, variance: float) -> float:
    """Of a series' values, with what is to be expected before any is known.

    What is expected is of other series, maybe of another level over their deviation: it gives way
    where the series itself says otherwise, by about exp(-x) after ``ENOUGH`` (1 + x) ticks.
    """
    seen, expected = min(float(ticks), float(plan.memory)), plan.prior_ratio * loc
    expected *= expected
    if ticks > ENOUGH:
        root = 1.0 + (ticks - ENOUGH) / (16.0 * ENOUGH)
        root *= root
        root *= root
        root *= root
        expected = min(expected, WITHIN * variance + expected / (root * root))
    return np.sqrt((seen * variance + PRIOR * expected) / (seen + PRIOR))


@njit(cache=True, error_model="numpy", _nrt=False)
def spread(plan: Plan, memory: Memory, slot: int, i: int) -> tuple[float, float]:
    """Loc and scale of input ``i`` of a series as its latest tick left them; 0: not known.

    Of what is not measured it is never known: a holiday is no outlier.
    """
    if i >= plan.measured:
        return 0.0, 0.0
    if plan.scaling == FIXED:
        return plan.fixed_loc[i], plan.fixed_scale[i]
    if plan.scaling == RUNNING and memory.seen[slot] >= ENOUGH:
        loc = memory.loc[slot, i]
        return loc, _deviation(plan, memory.seen[slot], loc, memory.variance[slot, i])
    return 0.0, 0.0


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _log(x: float) -> float:
    """Natural logarithm, within ``FARTHEST_APART`` of 0; to 1e-12, the same bits everywhere."""
    if not x > _NEAREST:
        return -FARTHEST_APART
    exponent = 0
    while x > 1.5:
        x *= 0.5
        exponent += 1
    while x < 0.75:
        x *= 2.0
        exponent -= 1
    # 2 artanh of (x - 1) / (x + 1), a fifth at most, by Taylor's series
    ratio = (x - 1.0) / (x + 1.0)
    total = 0.0
    for power in range(17, 0, -2):
        total = total * (ratio * ratio) + 1.0 / power
    return min(2.0 * ratio * total + exponent * 0.6931471805599453, FARTHEST_APART)


def features_of(spec: Spec, ts: NDArray[np.int64], values: NDArray[np.float64]) -> Rows:
    """Features of a whole series from a cold start, as the stream would compute them.

    Args:
        spec: the model's.
        ts: (n,) ns since the epoch, rising.
        values: (n, inputs) finite.
    """
    memory = placed(memory_of(records(memory_fields(spec), 1)))
    n = len(ts)
    rows, slots = Rows.empty(spec, n), np.zeros(n, np.int32)
    steps, place = grid_steps(spec.step_ns, ts), np.empty_like(ts)
    to, layout = placed(rows), placed(plan(spec))
    advance(layout, memory, to, np.arange(n), slots, steps, ts, values, place, 0, n, spec.targets)
    return rows


@njit(cache=True, error_model="numpy")
def grid_steps(step_ns: int, ts: NDArray[np.int64]) -> NDArray[np.int64]:
    """:func:`steps_since` of each tick of a series, (n,); 1 for the first."""
    steps = np.ones(len(ts), np.int64)
    for i in range(1, len(ts)):
        steps[i] = steps_since(step_ns, ts[i - 1], ts[i])
    return steps


def grid_places(step_ns: int, ts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) the place of each tick on its series' grid of steps, from 0."""
    return np.cumsum(grid_steps(step_ns, ts)) - 1


def default_calendar(step_ns: int, span_ns: int) -> tuple[CalendarName, ...]:
    """The phases that a spacing can see and a span of at least two periods can teach."""
    longest: dict[CalendarName, int] = {"hour": DAY // 2, "week": 2 * DAY, "year": 60 * DAY}
    return tuple(
        name
        for name, most in longest.items()
        if 0 < step_ns <= most and span_ns >= 2 * PERIODS[name]
    )
