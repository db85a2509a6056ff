"""The stages around the network's: features before a tile of rows is stepped, forecasts after it.

Compiled on their own, and called by the kernels by address while the tile is near.
"""

import numpy as np
from numpy.typing import NDArray

from streamlstm import adapt, features, intervals, quality
from streamlstm.features import Rows
from streamlstm.jit import njit
from streamlstm.memory import LINE, beyond, copy, load_f64, prefetch, row_of, store_f64
from streamlstm.ticks import WARM
from streamlstm.work import FAULTY, Batch, Given, Recent, Work

AHEAD = 8
"""Series whose records are on their way to the cache while one is worked on."""
NEXT = 4
"""Of these, those in whose ring the place of the next tick is on its way too."""
MOST = 2048
"""Bytes of each that are, of what intervals, corrections and watch keep side by side."""


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def before(batch: Batch, start: int, stop: int) -> None:
    """The stage before the network's: features."""
    _features(batch.work, batch.given, start, stop, batch.work.rows.scale.shape[1])


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def after(batch: Batch, start: int, stop: int) -> None:
    """The stage after the network's: forecasts and intervals."""
    _forecast(batch.work, batch.given, start, stop, batch.work.rows.scale.shape[1])


# Most models have one target. What is compiled for these has no loops over them, nor distances.
@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def before_one(batch: Batch, start: int, stop: int) -> None:
    """:func:`before`, of a model with one target."""
    _features(batch.work, batch.given, start, stop, 1)


@njit(cache=True, nogil=True, error_model="numpy", _nrt=False)
def after_one(batch: Batch, start: int, stop: int) -> None:
    """:func:`after`, of a model with one target."""
    _forecast(batch.work, batch.given, start, stop, 1)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _features(work: Work, given: Given, start: int, stop: int, targets: int) -> None:
    """What the network is shown of some rows."""
    schedule, ticks = work.schedule, given.ticks
    features.advance(
        work.features,
        work.memory,
        work.rows,
        schedule.tick,
        schedule.slot,
        schedule.steps,
        ticks.ts,
        ticks.values,
        schedule.place,
        start,
        stop,
        targets,
    )


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _forecast(work: Work, given: Given, start: int, stop: int, targets: int) -> None:
    """Raw forecasts of some rows, intervals around them, what was learnt of those made before."""
    schedule, rows, outputs, forecasts, seq = (
        work.schedule, work.rows, work.outputs, work.forecasts, work.seq
    )  # fmt: skip
    point, ticks = forecasts.point, given.ticks
    latest, floor = work.latest, work.features.floor
    first_record, size = seq.ctypes.data, seq.strides[0]
    pending = work.bands.pending
    judged = min(work.recent.recent_count.ctypes.data + 8 - pending.ctypes.data, MOST)
    for j in range(start, stop):
        if j + AHEAD < stop:  # the network's states have driven it out of the near cache
            record = first_record + schedule.slot[j + AHEAD] * size
            prefetch(record)
            prefetch(record + LINE)
            record = row_of(pending, schedule.slot[j + AHEAD]).ctypes.data
            for line in range(0, judged, LINE):
                prefetch(record + line)
        if j + NEXT < stop:
            latter = schedule.slot[j + NEXT]
            ring = row_of(work.recent.recent, latter)
            prefetch(ring.ctypes.data + 8 * _next(work.recent, latter))
        i, slot = schedule.tick[j], schedule.slot[j]
        warm = (ticks.flags[i] & WARM) != 0
        finite = _compose(rows, outputs, j, point, i, targets)
        if work.unbounded:
            for k in range(work.recurrent.shape[1]):
                finite &= np.isfinite(work.recurrent[slot, k])
        if not finite:
            schedule.fate[i], schedule.faults[0] = FAULTY, 1
            continue
        adapt.correct(
            work.lessons,
            work.learned,
            slot,
            schedule.place[j],
            given.observed,
            i,
            rows.scale,
            outputs,
            j,
            point,
            i,
            warm,
            targets,
        )
        if floor > -np.inf:
            _raise(point.ctypes.data + i * point.strides[0], point.strides[0], floor)
        if not warm:
            seq[slot] += 1
            forecasts.slot[i] = slot
            forecasts.ts[i] = ticks.ts[i]
            forecasts.seq[i] = seq[slot]
        for k in range(ticks.values.shape[1]):
            work.expected[slot, k] = point[i, 0, k] if k < targets else ticks.values[i, k]
        _remember(work.recent, slot, ticks.ts[i], given.observed, i, warm)
        quality.mark(
            work.intervals,
            work.bands,
            work.memory.past,
            work.features.season,
            work.quality,
            slot,
            schedule.place[j],
            schedule.steps[i],
            given.observed,
            i,
            rows.scale,
            j,
            targets,
        )
        if work.watched.kept and not warm:
            quality.judge(work.watched, work.quality, slot, i, work.features.season, targets)
        intervals.surround(
            work.intervals,
            work.bands,
            slot,
            schedule.place[j],
            schedule.steps[i],
            given.observed,
            i,
            rows.scale,
            outputs,
            j,
            point,
            forecasts.quantiles,
            i,
            warm,
            targets,
        )
        if floor > -np.inf:
            quantiles = forecasts.quantiles
            _raise(quantiles.ctypes.data + i * quantiles.strides[0], quantiles.strides[0], floor)
        if latest.kept and not warm:
            latest.latest_seq[slot], latest.latest_ts[slot] = seq[slot], ticks.ts[i]
            to, length = latest.latest.ctypes.data, point.strides[0]
            to += slot * latest.latest.strides[0]
            copy(to, point.ctypes.data + i * length, length)
            ends, wide = forecasts.quantiles.ctypes.data, forecasts.quantiles.strides[0]
            copy(to + length, ends + i * wide, wide)
            for k in range(forecasts.quality.shape[1]):
                latest.latest_quality[slot, k] = forecasts.quality[i, k]


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _compose(
    rows: Rows, outputs: NDArray[np.float32], row: int, point: NDArray[np.float64], to: int,
    targets: int,
) -> bool:  # fmt: skip
    """Write the forecasts of a row; whether all are finite."""
    base, output, forecast = row_of(rows.base, row), row_of(outputs, row), row_of(point, to)
    finite = True
    for j in range(targets):
        scale = rows.scale[row, j]
        for k in range(j, len(forecast), targets):
            raw = base[k] + scale * output[k]
            finite &= raw - raw == 0.0
            forecast[k] = raw
    return finite


@njit(cache=True, error_model="numpy", _nrt=False)
def _raise(address: int, size: int, floor: float) -> None:
    """Let none of the numbers that lie at an address, ``size`` bytes of them, be below a floor."""
    for at in range(address, address + size, 8):
        if load_f64(at) < floor:
            store_f64(at, floor)


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _remember(
    recent: Recent, slot: int, ts: int, observed: NDArray[np.float64], tick: int, warm: bool
) -> None:
    """Keep a tick among the latest of its series; a grid point that only fills a gap is none."""
    history, inputs, missing = recent.recent.shape[1], observed.shape[1], 0
    values = row_of(observed, tick)
    for k in range(inputs):
        missing += np.isnan(values[k])
    if history == 0 or (warm and missing == inputs):
        return
    kept = beyond(row_of(recent.recent, slot), _next(recent, slot))
    kept[0] = ts
    for k in range(inputs):
        kept[1 + k] = np.float64(values[k]).view(np.int64)
    recent.recent_count[slot] += 1


@njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)
def _next(recent: Recent, slot: int) -> int:
    """Where the next tick of a series is kept."""
    history, width = recent.recent.shape[1:]
    return recent.recent_count[slot] % history * width if history > 0 else 0
