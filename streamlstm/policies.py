"""What is done with a tick that is late, far ahead, not a number, far off, or after a gap.

A tick is judged before its series moves, by what the series has become until then and by the tick
alone. What is dropped changes nothing, but for the count of outliers in a row.

A value that is missing is taken to be what the model forecast for it one step before, as DeepAR
does (Salinas et al. 2020); of an input that is no target it is the latest one. It moves the series
as any value does, but teaches its interval nothing.
"""

import json
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm import features
from streamlstm.jit import njit
from streamlstm.memory import clear, copy, row_of
from streamlstm.ticks import ARRIVAL, END, RESET, Ticks

DROPS = (
    "nonfinite", "out_of_range", "late", "duplicate", "series_limit", "future", "outlier"
)  # fmt: skip
"""Reasons for which the engine drops a tick; ``series_limit``: no room for its series."""
NONFINITE, OUT_OF_RANGE, LATE, DUPLICATE, SERIES_LIMIT, FUTURE, OUTLIER = range(len(DROPS))
CHANGES = (
    "late", "duplicate", "gap_reset", "gap_missing", "not_a_number", "outlier_accepted",
    "outlier_clipped", "level_shift",
)  # fmt: skip
"""Policies by which a tick is taken otherwise than as it came: late or a duplicate, and taken as
the next one; after its series began anew; after grid points were stepped without a value (each
counts); without a value that was not a number; beyond the limit; cut to the limit; beyond it, but
after so many others that it is not cut or dropped any more."""
(
    _LATE, _DUPLICATE, _GAP_RESET, _GAP_MISSING, _NOT_A_NUMBER, _ACCEPTED, _CLIPPED, _LEVEL_SHIFT
) = range(len(CHANGES))  # fmt: skip

EARLIEST, MOMENT = -(1 << 63) + (1 << 52), 1 << 62
"""Nanoseconds from 1970 between which timestamps are taken, from November of 1677 to 2116: so much
off from what 64 bits hold that neither a time zone nor a horizon leads beyond that."""
LIMIT = 1e37
"""Largest absolute value taken: beyond it float32 state would overflow."""
IN_A_ROW = 10
"""Outliers after which those that follow are taken as they are, until one is none: a new level."""
ANEW = -1
"""In the place of grid points to be stepped before a tick: its series begins anew with it."""
_NEVER = (1 << 63) - 1
_RESET = 1
_CLIP, _DROP = 1, 2


class Policies(NamedTuple):
    """What the operator wants."""

    late: Literal["drop", "accept"] = "drop"
    """of before the latest tick of its series; accept: it is stepped as the next one on the grid"""
    duplicate: Literal["drop", "accept"] = "drop"
    """of the same time as the latest tick of its series; accept: likewise"""
    max_gap: float = 0.0
    """seconds between two ticks of a series, beyond which ``gap`` holds; 0: none is too long"""
    gap: Literal["hold", "reset", "missing"] = "hold"
    """one step, of features that know of the gap; the series begins anew; each grid point between
    is stepped, its value missing"""
    max_missing: int = 100
    """grid points so stepped in one gap, at most: the last; those before are held"""
    not_a_number: Literal["drop", "missing"] = "drop"
    """of NaN and infinities; missing: that value is"""
    outlier_sigma: float = 0.0
    """how many times its series' scale a value may lie off its mean; 0: any. Where the model scales
    by neither its series nor fixed numbers there is no such limit, nor before a series has had
    ``features.ENOUGH`` ticks"""
    outlier: Literal["accept", "clip", "drop"] = "accept"
    """what lies beyond; accept: it is counted only. After ``IN_A_ROW`` of them, those that follow
    are taken as they are until one is none"""
    max_ahead: float = 0.0
    """seconds after its arrival that a tick may be dated; 0: any. Others are dropped"""

    def to_text(self) -> str:
        """All of it, for :meth:`from_text`."""
        return json.dumps(self._asdict(), separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> "Policies":
        """What :meth:`to_text` gave.

        Raises:
            ValueError: it is of another version.
        """
        try:
            policies = cls(**json.loads(text))
            rules_of(policies)
        except (TypeError, ValueError) as error:
            raise ValueError(f"unknown policies: {text}") from error
        return policies


AS_THEY_COME = Policies()
"""Ticks are taken as they come, or dropped where that cannot be."""


class Rules(NamedTuple):
    """The same, for compiled code; times in ns."""

    late: bool
    duplicate: bool
    max_gap: int
    gap: int
    max_missing: int
    missing: bool
    sigma: float
    outlier: int
    max_ahead: int
    one_by_one: bool
    """whether the ticks before have to be computed before one can be judged"""


class Clock(NamedTuple):
    """What a tick is judged by in its series."""

    last_ts: NDArray[np.int64]
    """(series,) the latest that a tick taken had, since one was last dated at its arrival"""
    begun: NDArray[np.uint8]
    """(series,) whether one was taken"""
    outliers: NDArray[np.uint8]
    """(series,) how many came in a row, up to ``IN_A_ROW``"""
    rank: NDArray[np.int32]
    """(series,) ticks met so far in the batch at hand; 0 between batches"""
    heard: NDArray[np.int64]
    """(series,) ns since the epoch when the latest tick taken came; no other state hangs on it"""


class Counts(NamedTuple):
    """What became of ticks, since the start."""

    drops: NDArray[np.int64]
    """(reasons,)"""
    changes: NDArray[np.int64]
    """(policies,)"""
    gaps: NDArray[np.int64]
    """(1,)"""
    quarantined: NDArray[np.int64]
    """(1,)"""

    @classmethod
    def empty(cls) -> "Counts":
        """Nothing yet."""
        return cls(
            np.zeros(len(DROPS), np.int64),
            np.zeros(len(CHANGES), np.int64),
            np.zeros(1, np.int64),
            np.zeros(1, np.int64),
        )


def rules_of(policies: Policies) -> Rules:
    """Lay ``policies`` out for compiled code."""
    gap = ("hold", "reset", "missing").index(policies.gap)
    max_gap = _ns(policies.max_gap) if gap else _NEVER
    missing = policies.not_a_number == "missing"
    return Rules(
        policies.late == "accept",
        policies.duplicate == "accept",
        max_gap,
        gap,
        policies.max_missing,
        missing,
        float(policies.outlier_sigma),
        ("accept", "clip", "drop").index(policies.outlier),
        _ns(policies.max_ahead),
        max_gap < _NEVER or missing or policies.outlier_sigma > 0,
    )


def _ns(seconds: float) -> int:
    return min(round(seconds * 1e9), _NEVER) if seconds else _NEVER


# --- compiled -------------------------------------------------------------------------------------


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def fault(rules: Rules, values: NDArray[np.float64], tick: int, ts: int) -> int:
    """The reason for which no series can take this tick; -1: none."""
    for k in range(values.shape[1]):
        if not (rules.missing or np.isfinite(values[tick, k])):
            return NONFINITE
    for k in range(values.shape[1]):
        if abs(values[tick, k]) > LIMIT and np.isfinite(values[tick, k]):
            return OUT_OF_RANGE
    return -1 if EARLIEST < ts < MOMENT else OUT_OF_RANGE


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def fault_of_first(rules: Rules, values: NDArray[np.float64], tick: int, ts: int, now: int) -> int:
    """The reason for which no series can begin with this tick, that came at ``now``; -1: none."""
    if ts > now and ts - now > rules.max_ahead:
        return FUTURE
    for k in range(values.shape[1]):
        if not np.isfinite(values[tick, k]):
            return NONFINITE
    return -1


@njit(cache=True, error_model="numpy", _nrt=False)
def drop(counts: Counts, last: NDArray[np.uint8], reason: int, key: int, length: int) -> None:
    """Count a tick that is dropped, and note as the ``last`` its series, whose name is at ``key``.

    Args:
        counts: of what became of ticks.
        last: (reasons, max_key) zero-padded.
        reason: of :data:`DROPS`.
        key, length: address and bytes of the name.
    """
    counts.drops[reason] += 1
    name, most = row_of(last, reason).ctypes.data, last.shape[1]
    length = min(length, most)
    copy(name, key, length)
    clear(name + length, most - length)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def is_message(values: NDArray[np.float64], tick: int, flags: int) -> bool:
    """Whether a tick has no value, since it only says that its series is reset or ends."""
    if not flags & (RESET | END):
        return False
    for k in range(values.shape[1]):
        if not np.isnan(values[tick, k]):
            return False
    return True


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def judge(
    rules: Rules,
    plan: features.Plan,
    memory: features.Memory,
    clock: Clock,
    counts: Counts,
    dropped: NDArray[np.uint8],
    names: NDArray[np.uint8],
    ticks: Ticks,
    tick: int,
    now: int,
    singly: bool,
    values: NDArray[np.float64],
) -> tuple[int, int]:
    """Steps of the grid from the latest tick to this one, and grid points to be stepped before it.

    Where it is dropped the steps are 0; where its series is to begin anew the points are ``ANEW``.
    All that is looked at was computed up to the tick before. ``now`` is when it came, ns since the
    epoch. One that is dated at its arrival is neither late nor ahead: where the clock was set back,
    so is the time of its series. Where rounds are judged ``singly``, as they are with rules that
    are ``one_by_one``, ``values`` (n, inputs) is given those to be taken, NaN for what is missing.
    """
    slot, ts = ticks.slot[tick], ticks.ts[tick]
    begun, last = clock.begun[slot] != 0, clock.last_ts[slot]
    behind, dated_here = begun and ts <= last, (ticks.flags[tick] & ARRIVAL) != 0
    steps, before = 1, 0
    reason = fault(rules, ticks.values, tick, ts)
    if reason < 0 and not dated_here:
        if ts > now and ts - now > rules.max_ahead:
            reason = FUTURE
        elif behind and not (rules.duplicate if ts == last else rules.late):
            reason = DUPLICATE if ts == last else LATE
    if reason < 0 and begun and not behind:
        steps = features.steps_since(plan.step_ns, last, ts)
        if features.apart(last, ts) > rules.max_gap:
            before = ANEW if rules.gap == _RESET else min(steps - 1, rules.max_missing)
    if reason < 0 and singly:
        anew = before == ANEW or memory.seen[slot] == 0
        reason = _weigh(rules, plan, memory, clock, counts, ticks.values, tick, slot, anew, values)
    if reason >= 0:
        drop(counts, dropped, reason, row_of(names, slot).ctypes.data, names.shape[1])
        return 0, 0
    counts.gaps[0] += steps > 1
    if behind:
        counts.changes[_DUPLICATE if ts == last else _LATE] += 1
    if dated_here or not behind:
        clock.last_ts[slot] = ts
    clock.begun[slot], clock.heard[slot] = 1, now
    if before == ANEW:
        counts.changes[_GAP_RESET] += 1
        return 1, ANEW
    counts.changes[_GAP_MISSING] += before
    return steps - before, before


@njit(cache=True, error_model="numpy", _nrt=False)
def _weigh(
    rules: Rules,
    plan: features.Plan,
    memory: features.Memory,
    clock: Clock,
    counts: Counts,
    values: NDArray[np.float64],
    tick: int,
    slot: int,
    anew: bool,
    taken: NDArray[np.float64],
) -> int:
    """The reason to drop a tick for its values, or -1 and what is to be taken for them."""
    missing = far = False
    for k in range(values.shape[1]):
        value = values[tick, k]
        taken[tick, k] = value
        if not np.isfinite(value):
            if anew:
                return NONFINITE
            taken[tick, k] = np.nan
            missing = True
        elif rules.sigma > 0.0 and not anew:
            loc, scale = features.spread(plan, memory, slot, k)
            reach = rules.sigma * scale
            if scale > 0.0 and abs(value - loc) > reach:
                far = True
                if rules.outlier == _CLIP and clock.outliers[slot] < IN_A_ROW:
                    taken[tick, k] = loc + reach if value > loc else loc - reach
    if far and clock.outliers[slot] == IN_A_ROW:
        counts.changes[_LEVEL_SHIFT] += 1
    elif far:
        clock.outliers[slot] += 1
        if rules.outlier == _DROP:
            return OUTLIER
        counts.changes[_CLIPPED if rules.outlier == _CLIP else _ACCEPTED] += 1
    elif not missing:
        clock.outliers[slot] = 0
    counts.changes[_NOT_A_NUMBER] += missing
    return -1
