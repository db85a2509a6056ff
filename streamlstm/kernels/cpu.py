"""The step on the CPU: fused, tiled, parallel, in vector registers.

A step moves a tile of series at a time: gather their old states beside their inputs, then for 16
units at a time the four gates in registers, activations and cell update, new state scattered
straight to the table. All numbers of a series come from its own row by a fixed order of operations
(`simd`), so a state is the same bits whatever the batch, the tile, the path or the thread.

`step` runs in the caller's thread; where a batch is large, a pool of threads helps. One thread at a
time may step the same buffers. Nothing is allocated after `warm_up`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import config, njit, types
from numpy.typing import NDArray

from streamlstm.kernels import cell, pool, simd
from streamlstm.kernels.cell import UNITS, Floats, Network, padded

TILE = 48  # rows of a tile at most; a multiple of every host's register block
GROUP = 4 * UNITS  # pre-activations of a group of units
SHARED_FLOPS = 500_000  # a round of less work than this stays in the caller's thread
FLOAT_BYTES, WORD_BYTES = 4, 8
LINE = 64  # bytes of a cache line


class _Layer(NamedTuple):
    """What compiled code knows of a layer; offsets and strides in float32, addresses in bytes."""

    hidden: int
    inputs: int
    weights: int  # address of [group][H + I][4][16]
    bias: int  # address of [group][4][16]
    activation: int
    recurrent: int
    halved: int  # 1 where weights of i, f, o are halved, for `cell.update_halved`
    state: int  # offset of h in a record; c follows `units` later
    tile: int  # offset in the scratch of a worker: rows of [h (H), inputs (padded I)]
    stride: int


class _Plan(NamedTuple):
    """What compiled code knows of the buffers; the layers follow."""

    layers: int
    inputs: int
    outputs: int
    units: int
    flops: int  # of one row
    threads: int  # that may share a round
    pool: int  # address
    state: int  # address
    record: int
    scratch: int  # address
    share: int  # float32 of scratch per worker
    rows: int  # offset in the scratch of a worker of int64 record addresses
    spare: int  # a record for rows that are none
    head: int  # rows of [inputs (I), h (padded H)]
    head_stride: int
    head_weights: int  # address of [group][I + H][16]
    head_bias: int  # address of [group][16]
    head_activation: int
    result: int  # rows of padded outputs
    result_stride: int
    head_terms: int


@dataclass
class Buffers:
    """State and packed weights of a network.

    state: float32 (capacity, record), record = layers * 2 * units: [layer][h, c][unit].
    """

    state: Floats
    plan: int  # address of the plan below, for compiled code
    layers: int
    units: int
    threads: int
    helpers: NDArray[np.int64]  # memory of the pool
    held: tuple[NDArray[Any], ...]  # keeps what the plan points at alive


def allocate(network: Network, capacity: int, threads: int | None = None) -> Buffers:
    """Buffers for `capacity` series at zero state; the state's memory is committed when touched.

    threads: how many share a large round, the caller's included; Numba's NUMBA_NUM_THREADS where
    it is not given. The others start in `warm_up`; until then the caller works alone.
    """
    threads = threads or config.NUMBA_NUM_THREADS
    units = max(padded(layer.weight_hh.shape[1]) for layer in network.layers)
    record = len(network.layers) * 2 * units
    state = _aligned(capacity * record).reshape(capacity, record)
    held: list[NDArray[Any]] = [state]

    def keep(array: Floats) -> int:
        copy = _aligned(array.size)
        copy[:] = array.ravel()
        held.append(copy)
        return copy.ctypes.data

    helpers = pool.block(threads)
    held.append(helpers)
    at = 0  # in the scratch of a worker

    def take(count: int) -> int:
        nonlocal at
        start, at = at, at + padded(count)
        return start

    rows, spare = take(2 * TILE), take(record)
    layers = []
    flops = 0
    for number, layer in enumerate(network.layers):
        hidden, inputs = layer.weight_hh.shape[1], layer.weight_ih.shape[1]
        stride = hidden + padded(inputs)
        layers.append(
            _Layer(
                hidden=hidden,
                inputs=inputs,
                weights=keep(_packed(layer, np.hstack([layer.weight_hh, layer.weight_ih]))),
                bias=keep(_packed(layer, layer.bias[:, None])),
                activation=cell.activation_code(layer.activation),
                recurrent=cell.activation_code(layer.recurrent_activation),
                halved=int(_halved(layer)),
                state=number * 2 * units,
                tile=take(TILE * stride + UNITS),
                stride=stride,
            )
        )
        flops += 8 * padded(hidden) * (hidden + inputs)
    head = network.head
    targets, inputs = head.skip.shape
    hidden = head.weight.shape[1]
    head_stride = inputs + padded(hidden)
    result_stride = padded(targets)
    weights = np.zeros((result_stride, inputs + hidden), np.float32)
    weights[:targets, :inputs], weights[:targets, inputs:] = head.skip, head.weight
    packed = weights.reshape(-1, UNITS, inputs + hidden).transpose(0, 2, 1)
    bias = np.zeros(result_stride, np.float32)
    bias[:targets] = head.bias
    plan = _Plan(
        layers=len(layers),
        inputs=inputs,
        outputs=targets,
        units=units,
        flops=flops + 2 * result_stride * (inputs + hidden),
        threads=threads,
        pool=helpers.ctypes.data,
        state=state.ctypes.data,
        record=record,
        rows=rows,
        spare=spare,
        head=take(TILE * head_stride + UNITS),
        head_stride=head_stride,
        head_weights=keep(packed),
        head_bias=keep(bias),
        head_activation=cell.activation_code(head.activation),
        result=take(TILE * result_stride),
        result_stride=result_stride,
        head_terms=inputs + hidden,
        share=at,
        scratch=keep(np.zeros(at * threads, np.float32)),
    )
    words = np.array([*plan, *(value for layer in layers for value in layer)], np.int64)
    held.append(words)
    return Buffers(state, words.ctypes.data, len(layers), units, threads, helpers, tuple(held))


def _aligned(count: int) -> Floats:
    """Zeros that begin on a cache line, so that a vector of 16 lies in one."""
    zeros = np.zeros(count + LINE // FLOAT_BYTES, np.float32)
    start = -zeros.ctypes.data % LINE // FLOAT_BYTES
    return zeros[start : start + count]


def _halved(layer: cell.Layer) -> bool:
    return (layer.activation, layer.recurrent_activation) == ("tanh", "sigmoid")


def _packed(layer: cell.Layer, terms: Floats) -> Floats:
    """(4H, K) by gate and unit -> [group of 16 units][K][gate][unit]; units beyond H are zero."""
    hidden = layer.weight_hh.shape[1]
    gates = np.zeros((4, padded(hidden), terms.shape[1]), np.float32)
    gates[:, :hidden] = terms.reshape(4, hidden, -1)
    if _halved(layer):
        gates[[0, 1, 3]] *= np.float32(0.5)
    return gates.reshape(4, -1, UNITS, terms.shape[1]).transpose(1, 3, 0, 2)


def step(
    buffers: Buffers,
    slots: NDArray[np.int32],
    inputs: Floats,
    rounds: NDArray[np.int64],
    outputs: Floats,
) -> None:
    """Move series one step per row and write the head's outputs.

    slots (n,); inputs (n, I); outputs (n, O), all C-contiguous; rounds (r + 1,): rows
    rounds[j]:rounds[j+1] have unique slots, and rounds run in order. Slots and rounds are trusted.
    """
    _step(buffers.plan, slots, inputs, rounds, outputs)


def to_host(buffers: Buffers, slots: NDArray[np.int32]) -> Floats:
    """A copy of the records of some slots, (n, layers, 2, units)."""
    return buffers.state[slots].reshape(len(slots), buffers.layers, 2, buffers.units)


def from_host(buffers: Buffers, slots: NDArray[np.int32], records: Floats) -> None:
    """Set the records of some slots from (n, layers, 2, units); units beyond H must be zero."""
    buffers.state[slots] = records.reshape(len(slots), -1)


def warm_up(buffers: Buffers) -> None:
    """Compile (or load from Numba's cache) every path of `step`; start its threads. Keeps states.

    The threads end with the buffers.
    """
    slots, row, no_rounds = (
        np.zeros(0, np.int32),
        np.zeros((0, 1), np.float32),
        np.zeros(1, np.int64),
    )
    step(buffers, slots, row, no_rounds, row)
    _help.compile((types.int64, types.int64))  # here, not in the threads
    pool.start(buffers, buffers.helpers, buffers.threads, _help, buffers.plan)


# --- compiled -------------------------------------------------------------------------------------


@njit(cache=True)
def _plan_at(plan: int) -> Any:
    w = simd.word
    return _Plan(
        w(plan, 0), w(plan, 1), w(plan, 2), w(plan, 3), w(plan, 4), w(plan, 5), w(plan, 6),
        w(plan, 7), w(plan, 8), w(plan, 9), w(plan, 10), w(plan, 11), w(plan, 12), w(plan, 13),
        w(plan, 14), w(plan, 15), w(plan, 16), w(plan, 17), w(plan, 18), w(plan, 19), w(plan, 20),
    )  # fmt: skip


@njit(cache=True)
def _layer_at(plan: int, number: int) -> Any:
    w = simd.word
    at = 21 + 10 * number
    return _Layer(
        w(plan, at), w(plan, at + 1), w(plan, at + 2), w(plan, at + 3), w(plan, at + 4),
        w(plan, at + 5), w(plan, at + 6), w(plan, at + 7), w(plan, at + 8), w(plan, at + 9),
    )  # fmt: skip


class _Ticks(NamedTuple):
    """Rows of a step by address: what the threads of a job are told."""

    slots: int  # int32 (n,)
    inputs: int  # float32 (n, I)
    outputs: int  # float32 (n, O)
    stop: int  # the row after the last


@njit(cache=True, nogil=True)
def _step(plan: int, slots: Any, inputs: Any, rounds: Any, outputs: Any) -> None:
    """`step`, on the register block of this host."""
    step_on(simd.host_tile(), plan, slots, inputs, rounds, outputs)


@njit(cache=True, nogil=True)
def step_on(block: Any, plan: int, slots: Any, inputs: Any, rounds: Any, outputs: Any) -> None:
    """`step` on a given register block."""
    p = _plan_at(plan)
    for number in range(len(rounds) - 1):
        start, stop = rounds[number], rounds[number + 1]
        ticks = _Ticks(simd.address(slots), simd.address(inputs), simd.address(outputs), stop)
        if p.threads == 1 or (stop - start) * p.flops < SHARED_FLOPS:
            _rows(block, plan, 0, ticks, start, stop)
        else:
            pool.offer(p.pool, stop - start, ticks)
            pool.wake(p.pool, p.threads)
            _share(block, plan, 0)
            pool.finish(p.pool, stop - start)


@njit(cache=True, nogil=True)
def _help(plan: int, helper: int) -> None:
    """The life of a helper of the pool."""
    memory = _plan_at(plan).pool
    while pool.wait(memory, helper):
        _share(simd.host_tile(), plan, helper + 1)


@njit(cache=True)
def _share(block: Any, plan: int, worker: int) -> None:
    """Rows of the open job, as long as there are any."""
    p = _plan_at(plan)
    left, count = pool.claim(p.pool, p.threads, simd.rows_of(block))
    while count > 0:
        w = pool.WORDS
        ticks = _Ticks(
            simd.word(p.pool, w),
            simd.word(p.pool, w + 1),
            simd.word(p.pool, w + 2),
            simd.word(p.pool, w + 3),
        )
        start = ticks.stop - left
        _rows(block, plan, worker, ticks, start, start + count)
        pool.add(p.pool, pool.DONE, count)
        left, count = pool.claim(p.pool, p.threads, simd.rows_of(block))


@njit(cache=True)
def _rows(block: Any, plan: int, worker: int, ticks: Any, start: int, stop: int) -> None:
    """Rows start:stop of a round in one thread, a tile at a time."""
    at = start
    while at < stop:
        count = min(TILE, stop - at)
        if count == 1:
            _tile(simd.with_vectors(simd.with_rows(block, 1), 8), plan, worker, ticks, at, 1)
        else:
            _prefetch(plan, ticks, at + count, min(TILE, stop - at - count))
            _tile(block, plan, worker, ticks, at, count)
        at += count


@njit(cache=True)
def _prefetch(plan: int, ticks: Any, at: int, count: int) -> None:
    """Call the records of the next tile from a table that may be far larger than the caches."""
    p = _plan_at(plan)
    for r in range(count):
        record = p.state + simd.short_word(ticks.slots, at + r) * p.record * FLOAT_BYTES
        for byte in range(0, p.record * FLOAT_BYTES, LINE):
            simd.prefetch(record + byte)


@njit(cache=True)
def _tile(block: Any, plan: int, worker: int, ticks: Any, at: int, count: int) -> None:
    """`count` rows from row `at` on, up to TILE of them."""
    p = _plan_at(plan)
    block_rows = simd.rows_of(block)
    scratch = p.scratch + worker * p.share * FLOAT_BYTES
    rows = scratch + p.rows * FLOAT_BYTES
    full = -(-count // block_rows) * block_rows
    for r in range(count):
        slot = simd.short_word(ticks.slots, at + r)
        simd.set_word(rows, r, p.state + slot * p.record * FLOAT_BYTES)
    for r in range(count, full):
        simd.set_word(rows, r, scratch + p.spare * FLOAT_BYTES)

    first = _layer_at(plan, 0)
    x = scratch + first.tile * FLOAT_BYTES
    head = scratch + p.head * FLOAT_BYTES
    for number in range(p.layers):
        layer = _layer_at(plan, number)
        into = scratch + layer.tile * FLOAT_BYTES
        for r in range(count):
            record = simd.word(rows, r)
            for unit in range(0, layer.hidden, UNITS):
                _copy_group(block, record, layer.state + unit, into, r * layer.stride + unit)
    for r in range(count):
        for k in range(p.inputs):
            value = simd.number(ticks.inputs, (at + r) * p.inputs + k)
            simd.set_number(x, r * first.stride + first.hidden + k, value)
            simd.set_number(head, r * p.head_stride + k, value)

    for number in range(p.layers):
        layer = _layer_at(plan, number)
        if number + 1 < p.layers:
            above = _layer_at(plan, number + 1)
            onward = scratch + (above.tile + above.hidden) * FLOAT_BYTES
            onward_stride = above.stride
        else:
            onward = head + p.inputs * FLOAT_BYTES
            onward_stride = p.head_stride
        _layer(block, layer, p.units, rows, scratch, full, onward, onward_stride)
    _head(block, p, scratch, full)
    result = scratch + p.result * FLOAT_BYTES
    for r in range(count):
        for k in range(p.outputs):
            value = cell.activate(p.head_activation, simd.number(result, r * p.result_stride + k))
            simd.set_number(ticks.outputs, (at + r) * p.outputs + k, value)


@njit(cache=True)
def _copy_group(block: Any, source: int, source_at: int, target: int, target_at: int) -> None:
    """Copy 16 floats."""
    for lane in range(0, UNITS, simd.lanes_of(block)):
        simd.store(target, target_at + lane, simd.load(block, source, source_at + lane))


class _Place(NamedTuple):
    """Where a register tile writes: addresses, and offsets in float32."""

    halved: int
    activation: int
    recurrent: int
    rows: int  # of the record addresses
    h: int  # in a record
    c: int
    onward: int  # of the next layer's inputs, first row of the tile
    stride: int


@njit(cache=True)
def _layer(
    block: Any,
    layer: Any,
    units: int,
    rows: int,
    scratch: int,
    full: int,
    onward: int,
    onward_stride: int,
) -> None:
    """A layer over a tile: groups of units outside, so that their weights stay near."""
    terms = layer.hidden + layer.inputs
    panel = terms * GROUP
    tile = scratch + layer.tile * FLOAT_BYTES
    together = simd.vectors_of(block) // 4
    groups = -(-layer.hidden // UNITS)
    single = simd.with_vectors(block, 4)
    group = 0
    while group < groups:
        some = together if group + together <= groups else 1
        for lane in range(0, UNITS, simd.lanes_of(block)):
            unit = group * UNITS + lane
            weights = layer.weights + (group * panel + lane) * FLOAT_BYTES
            bias = layer.bias + (group * GROUP + lane) * FLOAT_BYTES
            for r in range(0, full, simd.rows_of(block)):
                place = _Place(
                    layer.halved,
                    layer.activation,
                    layer.recurrent,
                    rows + r * WORD_BYTES,
                    layer.state + unit,
                    layer.state + units + unit,
                    onward + (r * onward_stride + unit) * FLOAT_BYTES,
                    onward_stride,
                )
                a = tile + r * layer.stride * FLOAT_BYTES
                if some == together:
                    simd.gates(block, terms, a, layer.stride, weights, panel, bias, _cells, place)
                else:
                    simd.gates(single, terms, a, layer.stride, weights, panel, bias, _cells, place)
        group += some


@njit(cache=True, forceinline=True)
def _cells(place: Any, row: int, group: int, i: Any, f: Any, g: Any, o: Any) -> None:
    """Activations and update of the cells of one vector: new state to the table, h onward."""
    record = simd.word(place.rows, row)
    at = group * UNITS
    c = simd.load_like(i, record, place.c + at)
    if place.halved:
        h, c = cell.update_halved(i, f, g, o, c)
    else:
        h, c = cell.update(place.activation, place.recurrent, i, f, g, o, c)
    simd.store(record, place.h + at, h)
    simd.store(record, place.c + at, c)
    simd.store(place.onward, row * place.stride + at, h)


@njit(cache=True)
def _head(block: Any, p: Any, scratch: int, full: int) -> None:
    """The dense head over a tile, before its activation."""
    narrow = simd.with_vectors(block, 1)
    lanes = simd.lanes_of(block)
    terms = p.head_terms
    for column in range(0, p.result_stride, lanes):
        panel = column // UNITS * UNITS * terms + column % UNITS
        bias = simd.load(block, p.head_bias, column)
        for r in range(0, full, simd.rows_of(block)):
            for k in range(simd.rows_of(block)):
                at = p.result + (r + k) * p.result_stride + column
                simd.store(scratch, at, bias)
            simd.multiply_add(
                narrow, terms,
                scratch, p.head + r * p.head_stride, p.head_stride, 1,
                p.head_weights, panel, UNITS,
                scratch, p.result + r * p.result_stride + column, p.result_stride,
            )  # fmt: skip
