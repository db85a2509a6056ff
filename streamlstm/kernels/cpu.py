"""The step on the CPU: fused, tiled, parallel, in vector registers.

A step moves a tile of series at a time (`tiles`): gather their old states beside their inputs, then
for 16 units at a time the gates in registers, activations and cell update (`layers`), new state
scattered straight to the table. All numbers of a series come from its own row by a fixed order of
operations (`products`), so a state is the same bits whatever the batch, the tile, the path or the
thread.

`step` runs in the caller's thread; where a batch is large, a pool of threads helps. One thread at a
time may step the same buffers. Nothing is allocated after `warm_up`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import config, types
from numpy.typing import NDArray

from streamlstm.jit import njit
from streamlstm.kernels import cell, layers, pool, rarer, simd, tiles
from streamlstm.kernels.cell import (
    NO_STAGES,
    UNITS,
    Floats,
    Network,
    Stages,
    padded,
    record_shape,
    state_shape,
)
from streamlstm.kernels.tiles import FLOAT_BYTES, TILE
from streamlstm.memory import call, require

BLOCK = 384  # float32 of a register block at most
SUM_COST = 9  # of adding up the lanes of a vector, in multiply-adds of vectors
LINE = 64  # bytes of a cache line
SHARED_FLOPS = 500_000  # a round of less work than this stays in the caller's thread
NEVER = 1 << 62  # more rows than there are
AT_ONCE = 4 * TILE  # rows that a thread takes at most: so many that to take them costs little


@dataclass
class Buffers:
    """State and packed weights of a network.

    state: float32 (capacity, record), each record `cell.record_shape` when not flat.
    """

    state: Floats
    plan: int  # address of a `tiles.Plan` and those of the layers
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

    def code_of(activation: str) -> int:
        code = cell.activation_code(activation)
        if activation in cell.TRAINABLE:
            return code
        held.append(rarer.words(code))
        return held[-1].ctypes.data

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
                activation=code_of(layer.activation),
                recurrent=code_of(layer.recurrent_activation),
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
    plan = tiles.Plan(
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
        head_activation=code_of(head.activation),
        result=take(TILE * result_stride),
        result_stride=result_stride,
        head_terms=terms,
        sums=take(BLOCK),
        turn=take(2),
        rows_code=require(_ROWS[kind], 0, 0, tiles.Ticks(0, 0, 0, 0, 0, 0), 0, 0, 0, 0),
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
    stages: Stages = NO_STAGES,
) -> None:
    """Move series one step per row and write the head's outputs.

    slots (n,); inputs (n, I); outputs (n, O), all C-contiguous; rounds (r + 1,): rows
    rounds[j]:rounds[j+1] have unique slots, and rounds run in order. Rows before rounds[0], if any,
    have slots that no other row has; they run beside the rounds. Slots and rounds are trusted.
    `stages` run beside the step, for each row before and after it.
    """
    if stages is NO_STAGES:  # to hand a tuple over would take Python longer than a step
        _bare_step(buffers.plan, slots, inputs, rounds, outputs)
    else:
        _step(buffers.plan, slots, inputs, rounds, outputs, stages)


def compiled_step(buffers: Buffers) -> Any:
    """`step` for compiled code, which gives `buffers.plan` in the place of `buffers`."""
    return _step


def host_records(buffers: Buffers) -> Floats:
    """The records themselves, (capacity, floats), for compiled code; none where it cannot look."""
    return buffers.state


def to_host(buffers: Buffers, slots: NDArray[np.int32]) -> Floats:
    """A copy of the records of some slots, (n, *cell.record_shape)."""
    return buffers.state[slots].reshape(len(slots), *buffers.shape)


def from_host(buffers: Buffers, slots: NDArray[np.int32], records: Floats) -> None:
    """Set the records of some slots from (n, *cell.record_shape); units beyond H must be zero."""
    buffers.state[slots] = records.reshape(len(slots), buffers.state.shape[1])


def clear(buffers: Buffers, slots: NDArray[np.int32]) -> None:
    """Set the records of some slots to zero."""
    buffers.state[slots] = 0


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


@njit(cache=True, nogil=True)
def _step(plan: int, slots: Any, inputs: Any, rounds: Any, outputs: Any, stages: Any) -> None:
    p = tiles.plan_at(plan)
    caller, nobody = np.int64(0), np.int64(-1)
    ticks = tiles.Ticks(
        simd.address(slots), simd.address(inputs), simd.address(outputs),
        stages.before, stages.after, stages.context,
    )  # fmt: skip
    free, offered, start = np.int64(0), np.int64(0), rounds[0]
    shared, began = _least_shared(p), np.int64(0)
    large = start >= shared
    for number in range(1, len(rounds)):
        large |= rounds[number] - rounds[number - 1] >= shared
    if large:
        began, way = pool.now(p.pool), pool.way(p.pool)
        if way == pool.ALONE:
            shared = NEVER
    if start >= shared:
        _offer(p, ticks, free, start)
        free = offered = start
    for number in range(1, len(rounds)):
        stop = rounds[number]
        if stop - start == 1:  # bound by reading the weights: a second row costs little
            beside = nobody
            if free < rounds[0]:
                beside, free = free, free + 1
            call(p.rows_code, plan, caller, ticks, start, stop, stop, beside)
        elif stop - start >= shared:
            _complete(plan, offered)
            _offer(p, ticks, start, stop)
            _complete(plan, stop - start)
            offered = np.int64(0)
        else:
            call(p.rows_code, plan, caller, ticks, start, stop, stop, nobody)
        start = stop
    _complete(plan, offered)
    if free < rounds[0]:
        call(p.rows_code, plan, caller, ticks, free, rounds[0], rounds[0], nobody)
    if large:
        pool.learn(p.pool, way, start, began)


@njit(cache=True, nogil=True)
def _bare_step(plan: int, slots: Any, inputs: Any, rounds: Any, outputs: Any) -> None:
    _step(plan, slots, inputs, rounds, outputs, NO_STAGES)


@njit(cache=True)
def _least_shared(p: Any) -> int:
    """How many rows are to be shared with the helpers, if there are any; one cannot be."""
    return max(-(-SHARED_FLOPS // p.flops), 2) if p.threads > 1 else NEVER


@njit(cache=True)
def _offer(p: Any, ticks: Any, start: int, stop: int) -> None:
    """Open a job of the rows start:stop to the helpers."""
    step = max(simd.rows_of(simd.host_tile()) // 3, 1)
    pool.offer(p.pool, p.threads, start, stop, step, ticks)
    pool.wake(p.pool, p.threads)


@njit(cache=True)
def _complete(plan: int, rows: int) -> None:
    """Help with the open job of so many rows, and wait for its end; 0: there is none."""
    if rows > 0:
        _share(plan, 0)
        pool.finish(tiles.plan_at(plan).pool, rows)


@njit(cache=True)
def _share(plan: int, worker: int) -> None:
    """Rows of the open job, as long as there are any.

    They are counted as done at the end: the count is a cache line that all workers write to.
    """
    p = tiles.plan_at(plan)
    step, done = simd.rows_of(simd.host_tile()), 0
    start, stop, last = pool.take(p.pool, p.threads, worker, step, AT_ONCE)
    while stop > 0:
        ticks = tiles.ticks_at(p.pool + pool.WORDS * pool.BYTES)
        call(p.rows_code, plan, worker, ticks, start, stop, last, np.int64(-1))
        done += stop - start
        start, stop, last = pool.take(p.pool, p.threads, worker, step, AT_ONCE)
    if done > 0:
        pool.add(p.pool, pool.DONE, done)


@njit(cache=True, nogil=True)
def _help(plan: int, worker: int) -> None:
    """The life of a helper of the pool."""
    memory = tiles.plan_at(plan).pool
    job = pool.wait(memory, worker, 0)
    while job >= 0:
        _share(plan, worker)
        job = pool.wait(memory, worker, job)


# Of each kind of cell what is called by its address, so that only the one needed is compiled, and
# once, whoever calls it.


@njit(cache=True)
def _lstm_rows(
    plan: int, worker: int, ticks: Any, start: int, stop: int, last: int, beside: int
) -> None:
    layer = simd.function(layers.lstm)
    tiles.run_rows(simd.host_tile(), layer, plan, worker, ticks, start, stop, last, beside)


@njit(cache=True)
def _gru_rows(
    plan: int, worker: int, ticks: Any, start: int, stop: int, last: int, beside: int
) -> None:
    layer = simd.function(layers.gru)
    tiles.run_rows(simd.host_tile(), layer, plan, worker, ticks, start, stop, last, beside)


@njit(cache=True)
def _gru_before_rows(
    plan: int, worker: int, ticks: Any, start: int, stop: int, last: int, beside: int
) -> None:
    layer = simd.function(layers.gru_before)
    tiles.run_rows(simd.host_tile(), layer, plan, worker, ticks, start, stop, last, beside)


@njit(cache=True)
def _rnn_rows(
    plan: int, worker: int, ticks: Any, start: int, stop: int, last: int, beside: int
) -> None:
    layer = simd.function(layers.rnn)
    tiles.run_rows(simd.host_tile(), layer, plan, worker, ticks, start, stop, last, beside)


_ROWS = {"lstm": _lstm_rows, "gru": _gru_rows, "gru_before": _gru_before_rows, "rnn": _rnn_rows}
"""`tiles.run_rows` of each kind of cell."""
