"""Of which series a tick is: of one that is kept, of one to be begun, or of none: it is dropped."""

from streamlstm.index import approach, find, seek, touch
from streamlstm.jit import njit
from streamlstm.policies import DROPS, SERIES_LIMIT, drop, fault, fault_of_first, is_message
from streamlstm.ticks import END, RESET, Arrivals, Ticks
from streamlstm.work import Work

UNKNOWN, MESSAGE, UNFIT = -1, -2, -3
"""What :func:`meet` finds instead of a slot: a series to be begun; none, and none is to be, since
the tick is but a message to end or reset it; a tick to be dropped, or below for further reasons."""
FIRST = UNFIT - len(DROPS)
"""Or below for further reasons: a tick to be dropped unless its series has begun before it."""


# _nrt=False: nothing here owns an array, and reference counts would cost more than the work.
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def meet(work: Work, arrivals: Arrivals, now: int) -> int:
    """Leave in ``work.found`` the slot of each arrival, or why it has none; how many are unknown.

    Those that are known are as of the moment ``now`` in the order of use, so that none of them has
    to make room for one that comes with it.
    """
    keys, data, unknown = arrivals.keys, arrivals.keys.data.ctypes.data, 0
    approach(work.slots, keys, work.hashes)
    for i in range(len(arrivals.ts)):
        message = is_message(arrivals.values, i, arrivals.flags[i])
        reason = -1 if message else fault(work.rules, arrivals.values, i, arrivals.ts[i])
        if reason >= 0 and not arrivals.flags[i] & (RESET | END):
            work.found[i] = UNFIT - reason
            continue
        slot = seek(work.slots, work.hashes[i], data + keys.begin[i], keys.end[i] - keys.begin[i])
        if slot >= 0:
            touch(work.slots, slot, now)
        elif message:
            slot = MESSAGE
        else:
            if reason < 0:
                now_ns = arrivals.now
                reason = fault_of_first(work.rules, arrivals.values, i, arrivals.ts[i], now_ns)
            slot, unknown = (UNKNOWN, unknown + 1) if reason < 0 else (FIRST - reason, unknown)
        work.found[i] = slot
    return unknown


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def place(work: Work, arrivals: Arrivals, ticks: Ticks, at: int, now: int, oldest: int) -> int:
    """Write those arrivals that a series can take to ``ticks``, row ``at`` on; how many they are.

    ``now`` is a moment that never falls, ``oldest`` that of the first of the ticks that wait to be
    stepped, or ``now``: no series with one from then on is evicted.
    """
    keys, data, begin = arrivals.keys, arrivals.keys.data.ctypes.data, at
    meet(work, arrivals, now)
    for i in range(len(arrivals.ts)):
        slot = int(work.found[i])
        if slot < 0 and not FIRST < slot <= UNFIT:
            key, length = data + keys.begin[i], keys.end[i] - keys.begin[i]
            if slot == UNKNOWN:
                slot = find(work.slots, work.hashes[i], key, length, now, oldest)
                if slot < 0:
                    slot = UNFIT - SERIES_LIMIT
            else:
                begun = seek(work.slots, work.hashes[i], key, length)  # by one before it
                if begun >= 0:
                    slot = begun
                elif slot <= FIRST:
                    slot += len(DROPS)
        if slot < 0:
            if slot <= UNFIT:
                key, length = data + keys.begin[i], keys.end[i] - keys.begin[i]
                drop(work.counts, work.dropped, UNFIT - slot, key, length)
            continue
        ticks.slot[at], ticks.ts[at] = slot, arrivals.ts[i]
        ticks.flags[at] = arrivals.flags[i]
        for k in range(arrivals.values.shape[1]):
            ticks.values[at, k] = arrivals.values[i, k]
        at += 1
    return at - begin
