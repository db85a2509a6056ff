"""A tile of series through all layers and the head, in one thread: what all kinds of cell share.

With a window the records are rings of inputs, and the states of a tile live in scratch for as many
steps as the rings hold.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from streamlstm.jit import njit
from streamlstm.kernels import cell, layers, products, simd
from streamlstm.kernels.cell import UNITS

TILE = 48  # rows of a tile at most; a multiple of every host's register block
FLOAT_BYTES, WORD_BYTES = layers.FLOAT_BYTES, 8


class Plan(NamedTuple):
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
    turn: int  # in which order the units of the next tile are computed: 0 or 1
    rows_code: int  # address of the compiled `run_rows` of the network's kind of cell


class Ticks(NamedTuple):
    """Rows of a step by address: what the threads of a job are told."""

    slots: int  # int32 (n,)
    inputs: int  # float32 (n, I)
    outputs: int  # float32 (n, O)
    before: int  # of `cell.Stages`
    after: int
    context: int


@njit(cache=True)
def plan_at(plan: int) -> Any:
    """The plan at an address."""
    w = simd.word
    return Plan(
        w(plan, 0), w(plan, 1), w(plan, 2), w(plan, 3), w(plan, 4), w(plan, 5), w(plan, 6),
        w(plan, 7), w(plan, 8), w(plan, 9), w(plan, 10), w(plan, 11), w(plan, 12), w(plan, 13),
        w(plan, 14), w(plan, 15), w(plan, 16), w(plan, 17), w(plan, 18), w(plan, 19), w(plan, 20),
        w(plan, 21), w(plan, 22), w(plan, 23), w(plan, 24), w(plan, 25), w(plan, 26),
        w(plan, 27),
    )  # fmt: skip


@njit(cache=True)
def ticks_at(address: int) -> Any:
    """The ticks at an address."""
    w = simd.word
    return Ticks(
        w(address, 0), w(address, 1), w(address, 2), w(address, 3), w(address, 4), w(address, 5)
    )


@njit(cache=True)
def _layer_at(plan: int, number: int) -> Any:
    w = simd.word
    at = 28 + 11 * number
    return layers.Plan(
        w(plan, at), w(plan, at + 1), w(plan, at + 2), w(plan, at + 3), w(plan, at + 4),
        w(plan, at + 5), w(plan, at + 6), w(plan, at + 7), w(plan, at + 8), w(plan, at + 9),
        w(plan, at + 10),
    )  # fmt: skip


@njit(cache=True, inline="always")
def run_rows(
    block: Any,
    layer: Any,
    plan: int,
    worker: int,
    ticks: Any,
    start: int,
    stop: int,
    last: int,
    beside: int,
) -> None:
    """Rows start:stop of a round in one thread, a tile at a time; up to `last` more may follow.

    Where that is one row, the row `beside` is stepped with it, if not negative.
    """
    p = plan_at(plan)
    rows = p.scratch + (worker * p.share + p.rows) * FLOAT_BYTES
    ahead = rows + TILE * WORD_BYTES
    at, count = start, min(TILE, stop - start)
    # few vectors: weights that the row before has left near are not driven out by others
    pair = simd.with_vectors(simd.with_rows(block, 2), 4)
    if beside >= 0:
        _look_up(p, worker, rows, ticks, at, beside - at, 2, 2)
        cell.run_stage(ticks.before, ticks.context, at, at + 1)
        cell.run_stage(ticks.before, ticks.context, beside, beside + 1)
        _tile(pair, layer, plan, worker, ticks, at, beside - at, 2, rows, np.int64(0))
        cell.run_stage(ticks.after, ticks.context, at, at + 1)
        cell.run_stage(ticks.after, ticks.context, beside, beside + 1)
        return
    _look_up(p, worker, rows, ticks, at, 1, count, simd.rows_of(block))
    while count > 0:
        left, more = min(TILE, stop - at - count), min(TILE, last - at - count)
        if more > 0:
            _look_up(p, worker, ahead, ticks, at + count, 1, more, TILE)
        near = ahead if more > 0 and not p.window else np.int64(0)
        cell.run_stage(ticks.before, ticks.context, at, at + count)
        if count == 1:
            _tile(simd.with_rows(pair, 1), layer, plan, worker, ticks, at, 1, count, rows, near)
        elif count == 2:
            _tile(pair, layer, plan, worker, ticks, at, 1, count, rows, near)
        else:
            _tile(block, layer, plan, worker, ticks, at, 1, count, rows, near)
        cell.run_stage(ticks.after, ticks.context, at, at + count)
        rows, ahead = ahead, rows
        at, count = at + count, left


@njit(cache=True)
def _look_up(
    p: Any, worker: int, rows: int, ticks: Any, at: int, apart: int, count: int, multiple: int
) -> None:
    """Addresses of the records of a tile; up to a multiple, of the spare one."""
    for r in range(count):
        slot = simd.short_word(ticks.slots, at + r * apart)
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
    apart: int,
    count: int,
    rows: int,
    ahead: int,
) -> None:
    """`count` rows from row `at` on, each `apart` from the one before, up to TILE of them."""
    p = plan_at(plan)
    block_rows = simd.rows_of(block)
    scratch = p.scratch + worker * p.share * FLOAT_BYTES
    full = -(-count // block_rows) * block_rows
    head = scratch + p.head * FLOAT_BYTES
    for r in range(count):
        for k in range(p.inputs):
            value = simd.number(ticks.inputs, (at + r * apart) * p.inputs + k)
            simd.set_number(head, r * p.head_stride + p.head_inputs + k, value)
    if p.window:
        longest = _remember(p, rows, scratch, head, ticks, at, apart, count)
        for back in range(longest - 1, -1, -1):
            _recall(block, p, rows, head, ticks, at, apart, count, back)
            _advance(block, layer, plan, scratch, count, rows, ahead)
    else:
        _advance(block, layer, plan, scratch, count, rows, ahead)
    _head(block, p, scratch, full)
    result = scratch + p.result * FLOAT_BYTES
    for r in range(count):
        for k in range(p.outputs):
            value = cell.activate(p.head_activation, simd.number(result, r * p.result_stride + k))
            simd.set_number(ticks.outputs, (at + r * apart) * p.outputs + k, value)


@njit(cache=True)
def _advance(
    block: Any, layer: Any, plan: int, scratch: int, count: int, rows: int, ahead: int
) -> None:
    """One step of every layer, from the states that the rows point at."""
    p = plan_at(plan)
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
    turn = scratch + p.turn * FLOAT_BYTES
    backwards = simd.word(turn, 0)
    simd.set_word(turn, 0, 1 - backwards)
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
            backwards,
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
def _remember(
    p: Any, rows: int, scratch: int, head: int, ticks: Any, at: int, apart: int, count: int
) -> int:
    """Inputs of the tile to their rings; rows point at states in scratch. The longest history."""
    longest = 1
    for r in range(count):
        ring, seen, _ = _ring(p, ticks, at + r * apart)
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
    block: Any,
    p: Any,
    rows: int,
    head: int,
    ticks: Any,
    at: int,
    apart: int,
    count: int,
    back: int,
) -> None:
    """The inputs of `back` steps ago; a row whose history begins there, or later, at zero state."""
    for r in range(count):
        ring, seen, held = _ring(p, ticks, at + r * apart)
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
                products.dots(
                    block, groups, rows, p.head_stride, weights, bias, out, p.result_stride
                )
        return
    for column in range(0, p.result_stride, lanes):
        panel = column // UNITS * UNITS * terms + column % UNITS
        bias = simd.load(block, p.head_bias, column)
        for r in range(0, full, simd.rows_of(block)):
            for k in range(simd.rows_of(block)):
                at = p.result + (r + k) * p.result_stride + column
                simd.store(scratch, at, bias)
            products.multiply_add(
                narrow, terms,
                scratch, p.head + r * p.head_stride, p.head_stride, 1,
                p.head_weights, panel, UNITS,
                scratch, p.result + r * p.result_stride + column, p.result_stride,
            )  # fmt: skip
