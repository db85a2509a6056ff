"""How a batch is stepped: in rounds, in which no series occurs twice, part after part.

The first round has the series that occur once in the batch: they wait for nobody, and nobody for
them. Every other series has its first tick in the second round, and so on.

All rounds are judged and laid out at once, or where judging takes what was computed before, round
after round.
"""

import numpy as np
from numpy.typing import NDArray

from streamlstm.copy_on_write import preserve
from streamlstm.index import end
from streamlstm.jit import njit
from streamlstm.kernels.cell import Stages
from streamlstm.memory import call, clear, copy
from streamlstm.placed import replace, whole
from streamlstm.policies import ANEW, is_message, judge
from streamlstm.quality import tally
from streamlstm.ticks import END, RESET, WARM, Ticks
from streamlstm.work import (
    COUNT,
    DROPPED,
    FAULTY,
    JUDGED,
    NEXT,
    PART,
    ROUNDS,
    SINGLY,
    TAKEN,
    Given,
    Work,
)

# _nrt=False: nothing here owns an array, and reference counts would cost more than the work.


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def compute(work: Work, ticks: Ticks, now: int, code: int, network: int, stages: Stages) -> int:
    """:meth:`Engine.step` by kernels that are compiled; how many forecasts are to be published."""
    schedule = work.schedule
    arrange(work, ticks, stages.context)
    while True:
        rows, rounds, anew = proceed(work, ticks, now)
        for k in range(anew):
            work.recurrent[schedule.anew[k]] = 0
        if rows == 0:
            return finish(work, ticks)
        call(
            code,
            network,
            schedule.slot[:rows],
            work.rows.x[:rows],
            schedule.bounds[1 : rounds + 1],
            work.outputs[:rows],
            stages,
        )


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False, inline="always")
def arrange(work: Work, ticks: Ticks, context: int) -> None:
    """Lay a batch out in rounds, for :func:`proceed`; ``context`` is of :attr:`Engine.stages`."""
    preserve(work.slots.shadow, ticks.slot)
    schedule, rank, n = work.schedule, work.clock.rank, len(ticks.slot)
    order, starts, ranks = schedule.order, schedule.starts, 0
    singly = work.rules.one_by_one
    starts[:4] = 0
    for i in range(n):
        slot = ticks.slot[i]
        singly |= ticks.flags[i] & (RESET | END) != 0
        ranked = rank[slot]
        rank[slot] = ranked + 1
        schedule.place[i] = ranked
        if ranked == ranks:
            ranks += 1
            starts[ranks + 3] = 0
        starts[ranked + 3] += 1  # its round's, and one ahead: the second pass moves it back
    starts[2] = starts[3] - starts[4] if ranks > 0 else 0
    starts[3] -= starts[2]
    rounds = ranks + 1 if ranks > 1 else ranks
    for r in range(rounds):
        starts[r + 2] += starts[r + 1]
    for i in range(n):
        number = 0 if rank[ticks.slot[i]] == 1 else schedule.place[i] + 1
        rank[ticks.slot[i]] = 0
        at = starts[number + 1]
        starts[number + 1] = at + 1
        order[at] = i
    schedule.progress[NEXT], schedule.progress[ROUNDS] = 0, rounds
    schedule.progress[JUDGED] = schedule.faults[0] = 0
    schedule.progress[SINGLY] = singly
    given = work.given
    handed = Given(whole(given.ticks), given.observed) if singly else Given(ticks, ticks.values)
    replace(context, handed)  # a `Batch` begins with it


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False, inline="always")
def proceed(work: Work, ticks: Ticks, now: int) -> tuple[int, int, int]:
    """Say what the kernels are to compute next, once they have computed what was said before.

    Returns how many rows, in how many rounds, and for how many series, of ``schedule.anew``, the
    kernels' state is to be cleared before that. No rows: that was all.
    """
    schedule, progress = work.schedule, work.schedule.progress
    singly, rows, rounds, anew = progress[SINGLY] != 0, 0, 0, 0
    if schedule.faults[0]:
        rows, rounds, anew = _quarantine(work, ticks)
    while rows == 0:
        begin = progress[NEXT]
        if not progress[JUDGED]:
            if singly and begin > 0:
                _end_series(work, ticks, begin - 1)
            if begin == progress[ROUNDS]:
                break
            progress[JUDGED] = begin + 1 if singly else progress[ROUNDS]
            _judge(work, ticks, now, begin, progress[JUDGED], singly)
        if singly:
            rows, rounds, anew = _fill_gaps(work, ticks, begin, anew)
        if rows == 0:
            rows, rounds, anew = _lay_out(work, ticks, begin, progress[JUDGED], singly, anew)
            progress[NEXT], progress[JUDGED] = progress[JUDGED], 0
    progress[PART] = rounds
    return rows, rounds, anew


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False, inline="always")
def finish(work: Work, ticks: Ticks) -> int:
    """Count the ticks taken, and close up the forecasts to be published; how many they are."""
    taken, published, fate = 0, 0, work.schedule.fate
    forecasts = work.forecasts
    slot, ts, seq = forecasts.slot, forecasts.ts, forecasts.seq
    point, quantiles, quality = forecasts.point, forecasts.quantiles, forecasts.quality
    for i in range(len(ticks.slot)):
        if fate[i] != TAKEN:
            continue
        taken += 1
        if ticks.flags[i] & WARM:
            continue
        tally(work.quality, i)
        if published < i:
            slot[published], ts[published], seq[published] = slot[i], ts[i], seq[i]
            _move_row(point.ctypes.data, point.strides[0], i, published)
            _move_row(quantiles.ctypes.data, quantiles.strides[0], i, published)
            for k in range(quality.shape[1]):
                quality[published, k] = quality[i, k]
        published += 1
    work.schedule.progress[COUNT] = taken
    return published


@njit(cache=True, inline="always")
def _move_row(array: int, size: int, row: int, to: int) -> None:
    copy(array + to * size, array + row * size, size)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def blame(work: Work, rows: NDArray[np.int64]) -> None:
    """Mark rows of the part at hand, which has one round, whose state is not finite."""
    schedule, flags = work.schedule, work.given.ticks.flags
    for row in rows:
        i = schedule.tick[row]
        if schedule.fate[i] != FAULTY:
            schedule.fate[i], schedule.faults[0] = FAULTY, 1
            work.seq[schedule.slot[row]] -= not flags[i] & WARM


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False, inline="always")
def forget(work: Work, slot: int) -> None:
    """Let a series be as one that never began, but for its key and the number of its predictions.

    Its recurrent state is cleared with the first tick that is computed then.
    """
    _clear(work, slot, work.forgotten)


@njit(cache=True, inline="always")
def _clear(work: Work, slot: int, begin: int) -> None:
    """Clear the record of a series, from a byte of it on."""
    index = work.slots
    record = index.records.ctypes.data + slot * index.records.strides[0]
    clear(record + begin, index.end - begin)


# --- the parts ------------------------------------------------------------------------------------


@njit(cache=True, inline="always")
def _judge(work: Work, ticks: Ticks, now: int, begin: int, end: int, singly: bool) -> None:
    """Judge the ticks of some rounds, and let series begin anew before them."""
    schedule = work.schedule
    for j in range(schedule.starts[begin], schedule.starts[end]):
        i = schedule.order[j]
        slot = ticks.slot[i]
        steps, missing = 0, 0
        if singly and ticks.flags[i] & RESET:
            forget(work, slot)
        if not (singly and is_message(ticks.values, i, ticks.flags[i])):
            steps, missing = judge(
                work.rules, work.features, work.memory, work.clock, work.counts, work.dropped,
                work.slots.names, ticks, i, now, singly, work.values,
            )  # fmt: skip
        schedule.fate[i] = TAKEN if steps else DROPPED
        schedule.steps[i] = schedule.ahead[i] = steps
        schedule.missing[i] = missing
        if missing == ANEW:
            _restart(work, slot)


@njit(cache=True, inline="always")
def _restart(work: Work, slot: int) -> None:
    """Let a series begin anew, after its latest tick."""
    last_ts = work.clock.last_ts[slot]
    forget(work, slot)
    work.clock.last_ts[slot], work.clock.begun[slot] = last_ts, 1


@njit(cache=True, inline="always")
def _end_series(work: Work, ticks: Ticks, number: int) -> None:
    """End the series that a round, which is computed, was the last of."""
    schedule = work.schedule
    for j in range(schedule.starts[number], schedule.starts[number + 1]):
        i = schedule.order[j]
        if ticks.flags[i] & END:
            _clear(work, ticks.slot[i], work.slots.begin)
            end(work.slots, ticks.slot[i])


@njit(cache=True, inline="always")
def _add_row(work: Work, row: int, tick: int, slot: int, anew: int) -> int:
    """Give a tick a row of the part at hand; how many series are new to the kernels by now."""
    schedule = work.schedule
    schedule.tick[row], schedule.slot[row] = tick, slot
    if work.memory.seen[slot] == 0:
        schedule.anew[anew] = slot
        anew += 1
    return anew


@njit(cache=True, inline="always")
def _fill_gaps(work: Work, ticks: Ticks, number: int, anew: int) -> tuple[int, int, int]:
    """Lay out a grid point of each series of a round that misses one before its tick.

    Returns as :func:`proceed`, as the next two do; ``anew`` series were to be cleared already.
    """
    schedule, rows = work.schedule, 0
    for j in range(schedule.starts[number], schedule.starts[number + 1]):
        i = schedule.order[j]
        missing = schedule.missing[i]
        if schedule.fate[i] == TAKEN and missing > 0:
            ts = ticks.ts[i] - missing * work.features.step_ns
            _give(work, i, ticks.slot[i], ts, WARM, True)
            schedule.missing[i] = missing - 1
            anew = _add_row(work, rows, i, ticks.slot[i], anew)
            rows += 1
    schedule.bounds[0], schedule.bounds[1] = 0, rows
    return rows, 1, anew


@njit(cache=True, inline="always")
def _give(work: Work, tick: int, slot: int, ts: int, flags: int, missing: bool) -> None:
    """Hand the stages a tick, or a grid point before it, whose values are all missing."""
    schedule, given, observed = work.schedule, work.given.ticks, work.given.observed
    schedule.steps[tick], schedule.ahead[tick] = schedule.ahead[tick], 1
    given.slot[tick], given.ts[tick], given.flags[tick] = slot, ts, flags
    for k in range(observed.shape[1]):
        value = np.nan if missing else work.values[tick, k]
        observed[tick, k] = value
        given.values[tick, k] = work.expected[slot, k] if np.isnan(value) else value


@njit(cache=True, inline="always")
def _lay_out(
    work: Work, ticks: Ticks, begin: int, end: int, singly: bool, anew: int
) -> tuple[int, int, int]:
    """Lay the ticks taken of some rounds out to be computed."""
    schedule, rows, rounds = work.schedule, 0, 0
    schedule.bounds[0] = 0
    for number in range(begin, end):
        for j in range(schedule.starts[number], schedule.starts[number + 1]):
            i = schedule.order[j]
            if schedule.fate[i] != TAKEN:
                continue
            if singly:
                _give(work, i, ticks.slot[i], ticks.ts[i], ticks.flags[i], False)
            anew = _add_row(work, rows, i, ticks.slot[i], anew)
            rows += 1
        if number == begin or rows > schedule.bounds[rounds]:
            rounds += 1
            schedule.bounds[rounds] = rows
    return rows, rounds, anew


@njit(cache=True, inline="always")
def _quarantine(work: Work, ticks: Ticks) -> tuple[int, int, int]:
    """Let series begin anew after what was not finite, and lay out what came after that again."""
    schedule, begun_anew = work.schedule, work.clock.rank
    fate, bounds = schedule.fate, schedule.bounds
    rows, rounds, anew, stop = 0, 0, 0, 0
    for number in range(schedule.progress[PART]):
        start, stop = stop, bounds[number + 1]
        for j in range(start, stop):
            i, slot = schedule.tick[j], schedule.slot[j]
            if begun_anew[slot]:  # of what was not finite nothing is kept
                if fate[i] != FAULTY:
                    work.seq[slot] -= not ticks.flags[i] & WARM
                fate[i] = TAKEN
                schedule.tick[rows], schedule.slot[rows] = i, slot
                rows += 1
            elif fate[i] == FAULTY:
                _restart(work, slot)
                schedule.anew[anew] = slot
                anew += 1
                work.counts.quarantined[0] += 1
                begun_anew[slot] = 1
        if number == 0 or rows > bounds[rounds]:
            rounds += 1
            bounds[rounds] = rows
    for k in range(anew):
        begun_anew[schedule.anew[k]] = 0
    schedule.faults[0] = 0
    return rows, rounds, anew
