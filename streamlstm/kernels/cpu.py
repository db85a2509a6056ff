"""The step on the CPU: fused, tiled, parallel, in vector registers.

A step moves a tile of series at a time: gather their old states beside their inputs, then for 16
units at a time the gates in registers, activations and cell update (`layers`), new state scattered
straight to the table. With a window the records are rings of inputs, and the states of a tile live
in scratch for as many steps as the rings hold. All numbers of a series come from its own row by a
fixed order of operations (`simd`), so a state is the same bits whatever the batch, the tile, the
path or the thread.

`step` runs in the caller's thread; where a batch is large, a pool of threads helps. One thread at a
time may step the same buffers. Nothing is allocated after `warm_up`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import config, njit, types
from numpy.typing import NDArray

from streamlstm.kernels import cell, layers, pool, simd
from streamlstm.kernels.cell import UNITS, Floats, Network, padded, record_shape, state_shape

TILE = 48  # rows of a tile at most; a multiple of every host's register block
BLOCK = 384  # float32 of a register block at most
SUM_COST = 9  # of adding up the lanes of a vector, in multiply-adds of vectors
SHARED_FLOPS = 500_000  # a round of less work than this stays in the caller's thread
LINE = 64  # bytes of a cache line
FLOAT_BYTES, WORD_BYTES = layers.FLOAT_BYTES, 8


class _Plan(NamedTuple):
    """What compiled code knows of the buffers; the layers follow."""

    layers: int
    inputs: int
    outputs: int
    units: int
    window: int
    flops: int  # of one row
    threads: int  # that may share a round
    pool: int  # address
    state: int  # address
    record: int  # float32 of one
    scratch: int  # address
    share: int  # float32 of scratch per worker
    rows: int  # offset in the scratch of a worker: int64 record addresses of two tiles
    states: int  # one for rows that are none; with a window also one for each row
    state_size: int
    head: int  # rows of [h (padded H), inputs (padded I)]
    head_stride: int
    head_inputs: int  # where in a row the inputs begin
    head_few: int  # 1 where the outputs are so few that each is a product of its own
    head_weights: int  # address of [group][padded H + I][16], or where few of [O][row]
    head_bias: int  # address of [group][16]
    head_activation: int
    result: int  # rows of padded outputs
    result_stride: int
    head_terms: int
    sums: int  # room for the pre-activations of a register block


@dataclass
class Buffers:
    """State and packed weights of a network.

    state: float32 (capacity, record), each record `cell.record_shape` when not flat.
    """

    state: Floats
    plan: int  # address of the plan below, for compiled code
    shape: tuple[int, ...]  # of a record
    kind: str
    threads: int
    helpers: NDArray[np.int64]  # memory of the pool
    held: tuple[NDArray[Any], ...]  # keeps what the plan points at alive


def allocate(network: Network, capacity: int, threads: int | None = None) -> Buffers:
    """Buffers for `capacity` series at zero state; the state's memory is committed when touched.

    threads: how many share a large round, the caller's included; Numba's NUMBA_NUM_THREADS where
    it is not given. The others start in `warm_up`; until then the caller works alone.
    """
    threads = threads or config.NUMBA_NUM_THREADS
    number, parts, units = state_shape(network)
    state_size = number * parts * units
    shape = record_shape(network)
    record = math.prod(shape)
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

    rows, states = take(4 * TILE), take(state_size * (1 + TILE * (network.window > 0)))
    kind = cell.kind_of(network)
    plans = []
    for place, layer in enumerate(network.layers):
        hidden, inputs = layer.weight_hh.shape[1], layer.weight_ih.shape[1]
        stride = hidden + padded(inputs)
        weights, bias = layers.pack(layer)
        plans.append(
            layers.Plan(
                hidden=hidden,
                inputs=inputs,
                weights=keep(weights),
                bias=keep(bias),
                activation=cell.activation_code(layer.activation),
                recurrent=cell.activation_code(layer.recurrent_activation),
                scaled=int(layers.is_scaled(layer)),
                state=place * parts * units,
                tile=take(TILE * stride + UNITS),
                stride=stride,
                gated=take(2 * TILE * padded(hidden)) if kind == "gru_before" else 0,
            )
        )
    head = network.head
    targets, inputs = head.skip.shape
    hidden = head.weight.shape[1]
    head_inputs = padded(hidden)
    head_stride = head_inputs + padded(inputs)
    result_stride = padded(targets)
    dense = np.zeros((result_stride, head_stride), np.float32)
    dense[:targets, :hidden] = head.weight
    dense[:targets, head_inputs : head_inputs + inputs] = head.skip
    terms = head_inputs + inputs
    few = targets * (head_stride // UNITS + SUM_COST) < result_stride // UNITS * terms
    if few:
        packed = dense[:targets]
    else:
        packed = dense[:, :terms].reshape(-1, UNITS, terms).transpose(0, 2, 1)
    head_bias = np.zeros(result_stride, np.float32)
    head_bias[:targets] = head.bias
    steps = sum(map(layers.flops, network.layers)) * max(network.window, 1)
    plan = _Plan(
        layers=number,
        inputs=inputs,
        outputs=targets,
        units=units,
        window=network.window,
        flops=steps + 2 * result_stride * terms,
        threads=threads,
        pool=helpers.ctypes.data,
        state=state.ctypes.data,
        record=record,
        rows=rows,
        states=states,
        state_size=state_size,
        head=take(TILE * head_stride + UNITS),
        head_stride=head_stride,
        head_inputs=head_inputs,
        head_few=int(few),
        head_weights=keep(packed),
        head_bias=keep(head_bias),
        head_activation=cell.activation_code(head.activation),
        result=take(TILE * result_stride),
        result_stride=result_stride,
        head_terms=terms,
        sums=take(BLOCK),
        share=at,
        scratch=keep(np.zeros(at * threads, np.float32)),
    )
    words = np.array([*plan, *(value for layer in plans for value in layer)], np.int64)
    held.append(words)
    return Buffers(state, words.ctypes.data, shape, kind, threads, helpers, tuple(held))


def bytes_per_series(network: Network) -> int:
    """What `allocate` takes for each series."""
    return math.prod(record_shape(network)) * FLOAT_BYTES


def _aligned(count: int) -> Floats:
    """Zeros that begin on a cache line, so that a vector of 16 lies in one."""
    zeros = np.zeros(count + LINE // FLOAT_BYTES, np.float32)
    start = -zeros.ctypes.data % LINE // FLOAT_BYTES
    return zeros[start : start + count]


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
    _STEPS[buffers.kind](buffers.plan, slots, inputs, rounds, outputs)


def to_host(buffers: Buffers, slots: NDArray[np.int32]) -> Floats:
    """A copy of the records of some slots, (n, *cell.record_shape)."""
    return buffers.state[slots].reshape(len(slots), *buffers.shape)


def from_host(buffers: Buffers, slots: NDArray[np.int32], records: Floats) -> None:
    """Set the records of some slots from (n, *cell.record_shape); units beyond H must be zero."""
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
    help_ = _HELPS[buffers.kind]
    help_.compile((types.int64, types.int64))  # here, not in the threads
    pool.start(buffers, buffers.helpers, buffers.threads, help_, buffers.plan)


# --- compiled -------------------------------------------------------------------------------------


@njit(cache=True)
def _plan_at(plan: int) -> Any:
    w = simd.word
    return _Plan(
        w(plan, 0), w(plan, 1), w(plan, 2), w(plan, 3), w(plan, 4), w(plan, 5), w(plan, 6),
        w(plan, 7), w(plan, 8), w(plan, 9), w(plan, 10), w(plan, 11), w(plan, 12), w(plan, 13),
        w(plan, 14), w(plan, 15), w(plan, 16), w(plan, 17), w(plan, 18), w(plan, 19), w(plan, 20),
        w(plan, 21), w(plan, 22), w(plan, 23), w(plan, 24), w(plan, 25),
    )  # fmt: skip


@njit(cache=True)
def _layer_at(plan: int, number: int) -> Any:
    w = simd.word
    at = 26 + 11 * number
    return layers.Plan(
        w(plan, at), w(plan, at + 1), w(plan, at + 2), w(plan, at + 3), w(plan, at + 4),
        w(plan, at + 5), w(plan, at + 6), w(plan, at + 7), w(plan, at + 8), w(plan, at + 9),
        w(plan, at + 10),
    )  # fmt: skip


class _Ticks(NamedTuple):
    """Rows of a step by address: what the threads of a job are told."""

    slots: int  # int32 (n,)
    inputs: int  # float32 (n, I)
    outputs: int  # float32 (n, O)


@njit(cache=True, inline="always")
def step_on(
    block: Any, layer: Any, plan: int, slots: Any, inputs: Any, rounds: Any, outputs: Any
) -> None:
    """`step` on a given register block; layer: the `simd.function` of its kind of cell."""
    p = _plan_at(plan)
    caller = np.int64(0)  # a plain 0 would have the callees compiled once more
    for number in range(len(rounds) - 1):
        start, stop = rounds[number], rounds[number + 1]
        ticks = _Ticks(simd.address(slots), simd.address(inputs), simd.address(outputs))
        if p.threads == 1 or (stop - start) * p.flops < SHARED_FLOPS:
            _rows(block, layer, plan, caller, ticks, start, stop, stop)
        else:
            pool.offer(p.pool, p.threads, start, stop, max(simd.rows_of(block) // 3, 1), ticks)
            pool.wake(p.pool, p.threads)
            _share(block, layer, plan, caller)
            pool.finish(p.pool, stop - start)


@njit(cache=True, inline="always")
def _serve(block: Any, layer: Any, plan: int, worker: int) -> None:
    """The life of a helper of the pool."""
    memory = _plan_at(plan).pool
    job = pool.wait(memory, worker, 0)
    while job >= 0:
        _share(block, layer, plan, worker)
        job = pool.wait(memory, worker, job)


# Of each kind of cell what is entered from Python, so that only the one needed is compiled.


@njit(cache=True, nogil=True)
def _step_lstm(plan: int, slots: Any, inputs: Any, rounds: Any, outputs: Any) -> None:
    step_on(simd.host_tile(), simd.function(layers.lstm), plan, slots, inputs, rounds, outputs)


@njit(cache=True, nogil=True)
def _step_gru(plan: int, slots: Any, inputs: Any, rounds: Any, outputs: Any) -> None:
    step_on(simd.host_tile(), simd.function(layers.gru), plan, slots, inputs, rounds, outputs)


@njit(cache=True, nogil=True)
def _step_gru_before(plan: int, slots: Any, inputs: Any, rounds: Any, outputs: Any) -> None:
    step_on(
        simd.host_tile(), simd.function(layers.gru_before), plan, slots, inputs, rounds, outputs
    )


@njit(cache=True, nogil=True)
def _step_rnn(plan: int, slots: Any, inputs: Any, rounds: Any, outputs: Any) -> None:
    step_on(simd.host_tile(), simd.function(layers.rnn), plan, slots, inputs, rounds, outputs)


@njit(cache=True, nogil=True)
def _help_lstm(plan: int, worker: int) -> None:
    _serve(simd.host_tile(), simd.function(layers.lstm), plan, worker)


@njit(cache=True, nogil=True)
def _help_gru(plan: int, worker: int) -> None:
    _serve(simd.host_tile(), simd.function(layers.gru), plan, worker)


@njit(cache=True, nogil=True)
def _help_gru_before(plan: int, worker: int) -> None:
    _serve(simd.host_tile(), simd.function(layers.gru_before), plan, worker)


@njit(cache=True, nogil=True)
def _help_rnn(plan: int, worker: int) -> None:
    _serve(simd.host_tile(), simd.function(layers.rnn), plan, worker)


_STEPS = {
    "lstm": _step_lstm,
    "gru": _step_gru,
    "gru_before": _step_gru_before,
    "rnn": _step_rnn,
}
_HELPS = {
    "lstm": _help_lstm,
    "gru": _help_gru,
    "gru_before": _help_gru_before,
    "rnn": _help_rnn,
}


@njit(cache=True, inline="always")
def _share(block: Any, layer: Any, plan: int, worker: int) -> None:
    """Rows of the open job, as long as there are any."""
    p = _plan_at(plan)
    step = simd.rows_of(block)
    start, stop, last = pool.take(p.pool, p.threads, worker, step, TILE)
    while stop > 0:
        w = pool.WORDS
        ticks = _Ticks(simd.word(p.pool, w), simd.word(p.pool, w + 1), simd.word(p.pool, w + 2))
        _rows(block, layer, plan, worker, ticks, start, stop, last)
        pool.add(p.pool, pool.DONE, stop - start)
        start, stop, last = pool.take(p.pool, p.threads, worker, step, TILE)


@njit(cache=True)
def _rows(
    block: Any, layer: Any, plan: int, worker: int, ticks: Any, start: int, stop: int, last: int
) -> None:
    """Rows start:stop of a round in one thread, a tile at a time; up to `last` more may follow."""
    p = _plan_at(plan)
    rows = p.scratch + (worker * p.share + p.rows) * FLOAT_BYTES
    ahead = rows + TILE * WORD_BYTES
    at, count = start, min(TILE, stop - start)
    _look_up(p, worker, rows, ticks, at, count, simd.rows_of(block))
    while count > 0:
        left, more = min(TILE, stop - at - count), min(TILE, last - at - count)
        if more > 0:
            _look_up(p, worker, ahead, ticks, at + count, more, TILE)
        near = ahead if more > 0 and not p.window else np.int64(0)
        if count == 1:
            single = simd.with_vectors(simd.with_rows(block, 1), 8)
            _tile(single, layer, plan, worker, ticks, at, count, rows, near)
        else:
            _tile(block, layer, plan, worker, ticks, at, count, rows, near)
        rows, ahead = ahead, rows
        at, count = at + count, left


@njit(cache=True)
def _look_up(
    p: Any, worker: int, rows: int, ticks: Any, at: int, count: int, multiple: int
) -> None:
    """Addresses of the records of a tile; up to a multiple, of the spare one."""
    for r in range(count):
        slot = simd.short_word(ticks.slots, at + r)
        simd.set_word(rows, r, p.state + slot * p.record * FLOAT_BYTES)
    spare = p.scratch + (worker * p.share + p.states) * FLOAT_BYTES
    for r in range(count, -(-count // multiple) * multiple):
        simd.set_word(rows, r, spare)


@njit(cache=True)
def _tile(
    block: Any,
    layer: Any,
    plan: int,
    worker: int,
    ticks: Any,
    at: int,
    count: int,
    rows: int,
    ahead: int,
) -> None:
    """`count` rows from row `at` on, up to TILE of them."""
    p = _plan_at(plan)
    block_rows = simd.rows_of(block)
    scratch = p.scratch + worker * p.share * FLOAT_BYTES
    full = -(-count // block_rows) * block_rows
    head = scratch + p.head * FLOAT_BYTES
    for r in range(count):
        for k in range(p.inputs):
            value = simd.number(ticks.inputs, (at + r) * p.inputs + k)
            simd.set_number(head, r * p.head_stride + p.head_inputs + k, value)
    if p.window:
        longest = _remember(p, rows, scratch, head, ticks, at, count)
        for back in range(longest - 1, -1, -1):
            _recall(block, p, rows, head, ticks, at, count, back)
            _advance(block, layer, plan, scratch, count, rows, ahead)
    else:
        _advance(block, layer, plan, scratch, count, rows, ahead)
    _head(block, p, scratch, full)
    result = scratch + p.result * FLOAT_BYTES
    for r in range(count):
        for k in range(p.outputs):
            value = cell.activate(p.head_activation, simd.number(result, r * p.result_stride + k))
            simd.set_number(ticks.outputs, (at + r) * p.outputs + k, value)


@njit(cache=True)
def _advance(
    block: Any, layer: Any, plan: int, scratch: int, count: int, rows: int, ahead: int
) -> None:
    """One step of every layer, from the states that the rows point at."""
    p = _plan_at(plan)
    head = scratch + p.head * FLOAT_BYTES
    for number in range(p.layers):
        own = _layer_at(plan, number)
        into = scratch + own.tile * FLOAT_BYTES
        for r in range(count):
            record = simd.word(rows, r)
            for unit in range(0, own.hidden, UNITS):
                _copy_group(block, record, own.state + unit, into, r * own.stride + unit)
    first = _layer_at(plan, 0)
    for r in range(count):  # now, since the last group of h reaches over them
        for k in range(p.inputs):
            value = simd.number(head, r * p.head_stride + p.head_inputs + k)
            simd.set_number(scratch, first.tile + r * first.stride + first.hidden + k, value)
    for number in range(p.layers):
        own = _layer_at(plan, number)
        if number + 1 < p.layers:
            above = _layer_at(plan, number + 1)
            onward = scratch + (above.tile + above.hidden) * FLOAT_BYTES
            onward_stride = above.stride
        else:
            onward = head
            onward_stride = p.head_stride
        gated = scratch + own.gated * FLOAT_BYTES
        units = -(-own.hidden // UNITS) * UNITS
        place = layers.Place(
            own.scaled,
            own.activation,
            own.recurrent,
            rows,
            own.state,
            own.state + p.units,
            onward,
            onward_stride,
            gated,
            gated + TILE * units * FLOAT_BYTES,
            units,
            scratch + p.sums * FLOAT_BYTES,
            ahead,
            p.state_size // (p.layers * p.units),
        )
        full = layers.whole(block, count)
        simd.call(layer, block, own, place, scratch + own.tile * FLOAT_BYTES, full)


@njit(cache=True)
def _ring(p: Any, ticks: Any, row: int) -> Any:
    """(address, how many inputs have come, how many of them it holds) of a row's ring."""
    record = p.state + simd.short_word(ticks.slots, row) * p.record * FLOAT_BYTES
    seen = np.int64(simd.number(record, p.record - 1))
    return record, seen, min(seen, p.window)


@njit(cache=True)
def _remember(p: Any, rows: int, scratch: int, head: int, ticks: Any, at: int, count: int) -> int:
    """Inputs of the tile to their rings; rows point at states in scratch. The longest history."""
    longest = 1
    for r in range(count):
        ring, seen, _ = _ring(p, ticks, at + r)
        place = seen % p.window * p.inputs
        for k in range(p.inputs):
            value = simd.number(head, r * p.head_stride + p.head_inputs + k)
            simd.set_number(ring, place + k, value)
        seen += 1
        if seen == 2 * p.window:
            seen = p.window
        simd.set_number(ring, p.record - 1, np.float32(seen))
        longest = max(longest, min(seen, p.window))
        simd.set_word(rows, r, scratch + (p.states + (1 + r) * p.state_size) * FLOAT_BYTES)
    return longest


@njit(cache=True)
def _recall(
    block: Any, p: Any, rows: int, head: int, ticks: Any, at: int, count: int, back: int
) -> None:
    """The inputs of `back` steps ago; a row whose history begins there, or later, at zero state."""
    for r in range(count):
        ring, seen, held = _ring(p, ticks, at + r)
        if back < held:
            place = (seen - 1 - back) % p.window * p.inputs
            for k in range(p.inputs):
                at_head = r * p.head_stride + p.head_inputs + k
                simd.set_number(head, at_head, simd.number(ring, place + k))
        if back >= held - 1:
            zero = simd.splat(block, np.float32(0))
            for k in range(0, p.state_size, simd.lanes_of(block)):
                simd.store(simd.word(rows, r), k, zero)


@njit(cache=True)
def _copy_group(block: Any, source: int, source_at: int, target: int, target_at: int) -> None:
    """Copy 16 floats."""
    for lane in range(0, UNITS, simd.lanes_of(block)):
        simd.store(target, target_at + lane, simd.load(block, source, source_at + lane))


@njit(cache=True)
def _head(block: Any, p: Any, scratch: int, full: int) -> None:
    """The dense head over a tile, before its activation."""
    narrow = simd.with_vectors(block, 1)
    lanes = simd.lanes_of(block)
    terms = p.head_terms
    if p.head_few:
        line = p.head_stride * FLOAT_BYTES
        for column in range(p.outputs):
            bias = simd.number(p.head_bias, column)
            weights = p.head_weights + column * line
            for r in range(0, full, simd.rows_of(block)):
                rows = scratch + p.head * FLOAT_BYTES + r * line
                out = scratch + (p.result + r * p.result_stride + column) * FLOAT_BYTES
                groups = p.head_stride // UNITS
                simd.dots(block, groups, rows, p.head_stride, weights, bias, out, p.result_stride)
        return
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
