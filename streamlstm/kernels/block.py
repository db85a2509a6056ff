"""What runs on the GPU: the kernel of a round, and the copy of records.

A block takes a tile of series through all layers and the head; its warps stand side by side, 64
gates each, and above each other (`warp`). Shared memory holds, one after the other:

    slots    int32 (tile,)             where the states of the series are; -1: no series
    rings    int32 (tile,)             with a window alone: where its ring is
    terms    (chunk, tile + 4)         old h and inputs, transposed, a chunk of the terms at a time
    new      (units, tile + 4)         new h, transposed, until all of the old h has been used
    gated    (units, tile + 4)         r * h of a GRU that resets before the product
    weights  all of them, or those of a chunk: [warp side by side][chunk][64 gates]

Rows are 4 words longer than the tile, so that 4 of them stand in different banks.

With a window a record is a ring of inputs. The block runs a step after the other from those that
its rings hold, on states and inputs in scratch of its own, where a step finds them as elsewhere in
the table of states and among the inputs of the ticks.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from numba import cuda, float32, int32, int64, void

from streamlstm.kernels import cell, warp
from streamlstm.kernels.cell import UNITS
from streamlstm.kernels.device import (
    SIMULATED,
    Device,
    fma,
    load,
    load4,
    on_device,
    store,
    store4,
)
from streamlstm.kernels.warp import CELLS, GROUP, LANE_ROWS, LANE_UNITS, LANES

THREADS = 512  # of a block at most, which leaves each 128 registers
PAD = 4


class Plan(NamedTuple):
    """What the kernel is told, as int32; the layers follow."""

    layers: int
    inputs: int
    outputs: int
    units: int
    size: int  # float32 of the states of a series
    together: int  # warps side by side in a block
    tile: int  # series of a block
    chunk: int  # terms of a product at a time
    resident: int  # weights that stay in shared memory: all, or 0
    head: int  # offset in the weights of [I + H][O]
    head_bias: int
    head_activation: int
    head_shift: int  # outputs side by side in a warp, as a power of two
    window: int
    ring: int  # float32 of a series with a window


class Layer(NamedTuple):
    """What the kernel is told of a layer; weights and biases as `warp.pack` gives them."""

    hidden: int
    inputs: int
    weights: int  # offset
    bias: int  # offset
    then_weights: int  # of the second pass, where there is one
    then_bias: int
    state: int  # offset of h in the states; an LSTM's c follows `units` later
    source: int  # offset in the states of the layer's inputs; -1: those of the tick
    shift: int  # inputs side by side in a warp, as a power of two


PLAN, LAYER = len(Plan._fields), len(Layer._fields)

SIGNATURE = void(
    float32[::1],  # records (capacity, record)
    float32[::1],  # weights
    int32[::1],  # plan
    int32[::1],  # slots (n,)
    float32[::1],  # inputs (n, I)
    int64[::1],  # bounds of rounds
    float32[::1],  # outputs (n, O)
    float32[::1],  # scratch, with a window: states (blocks * tile, size)
    float32[::1],  # and inputs (blocks * tile, I)
    int64,  # the first round
    int64,  # the round after the last; several only where one block is launched
)
MOVE = void(float32[::1], int32[::1], float32[:, ::1], int64, int64)


@functools.cache
def define(kind: int, windowed: bool, rows: int, activation: int, recurrent: int) -> Device:
    """The kernel whose lanes hold `rows` series, as Python; activations by code.

    kind: the first pass over a layer. It closes over numbers alone, so that Numba's cache knows it
    again in another process.
    """
    scaled = (activation, recurrent) == (cell.TANH, cell.SIGMOID)
    own, gates = rows * CELLS, warp.GATES[kind]
    kept = max(rows * CELLS // 4, CELLS)
    reset, new = warp.RESET, warp.NEW
    c_after = 1 if kind == warp.LSTM else 0  # whether it is c that a cell has need of, or h

    def kernel(
        records: Any, weights: Any, plan: Any, ticks: Any, inputs: Any, bounds: Any, outputs: Any,
        states: Any, recalled: Any, first: int, stop: int,
    ) -> None:  # fmt: skip
        slots = cuda.shared.array(0, int32)
        shared = cuda.shared.array(0, float32)
        sums = cuda.local.array(own, float32)
        old = cuda.local.array(kept, float32)
        x = cuda.local.array(rows, float32)
        y = cuda.local.array(CELLS, float32)
        thread, threads = cuda.threadIdx.x, cuda.blockDim.x
        layers, units, together, tile = plan[0], plan[3], plan[5], plan[6]
        chunk, resident = plan[7], plan[8]
        stride = tile + PAD
        terms_at = tile * 2 if windowed else tile
        new_at = terms_at + chunk * stride
        gated_at = new_at + units * stride
        weights_at = gated_at + units * stride if kind == reset else gated_at
        lane, above = thread % LANES, thread // LANES
        p = warp.Places(
            stride, terms_at, new_at, gated_at, weights_at,
            lane % LANE_UNITS * 4,
            lane // LANE_UNITS * rows + above // together * (LANE_ROWS * rows),
            above % together,
        )  # fmt: skip
        one = warp.Kind(kind, gates, activation, recurrent, scaled)
        two = warp.Kind(new, 1, activation, recurrent, scaled)
        _copy(weights, 0, shared, weights_at, resident)

        for number in range(first, stop):
            start, end = bounds[number], bounds[number + 1]
            at = start + cuda.blockIdx.x * tile
            while at < end:
                cuda.syncthreads()  # the tile before is done with
                r = thread
                while r < tile:
                    slot = ticks[at + r] if at + r < end else -1
                    if windowed:
                        slots[tile + r] = slot
                        slots[r] = cuda.blockIdx.x * tile + r if slot >= 0 else -1
                    else:
                        slots[r] = slot
                    r += threads
                back = 0
                if windowed:
                    back = plan[13] - 1
                    _remember(records, plan, slots, inputs, at)
                while back >= 0:
                    live, own_states, own_inputs, own_at = 1, records, inputs, at
                    if windowed:
                        own_states, own_inputs, own_at = states, recalled, cuda.blockIdx.x * tile
                        cuda.syncthreads()  # the step before is done with
                        live = cuda.syncthreads_or(
                            _recall(records, plan, slots, recalled, states, own_at, back)
                        )
                    if live:
                        for layer in range(layers):
                            told = PLAN + layer * LAYER
                            of = plan[told + 6] + units * c_after
                            _pass(
                                one, own_states, weights, plan, slots, own_inputs, shared, told,
                                plan[told + 2], plan[told + 3], of, own_at, p, sums, old, x, y,
                            )  # fmt: skip
                            if kind == reset:
                                cuda.syncthreads()  # all of r * h is there
                                _pass(
                                    two, own_states, weights, plan, slots, own_inputs, shared, told,
                                    plan[told + 4], plan[told + 5], of, own_at, p, sums, old, x, y,
                                )  # fmt: skip
                            cuda.syncthreads()
                            _scatter(own_states, plan, slots, shared, told, new_at)
                    back -= 1
                _head(weights, plan, inputs, outputs, shared, new_at, at, min(tile, end - at))
                at += cuda.gridDim.x * tile

    return kernel


@on_device
def _pass(
    kind: Any, state: Any, weights: Any, plan: Any, slots: Any, inputs: Any, shared: Any, told: int,
    panel: int, bias: int, of: int, at: int, p: Any, sums: Any, old: Any, x: Any, y: Any,
) -> None:  # fmt: skip
    """The gates and cells of all units of a layer; of: where c or h is in the states."""
    size, together, chunk, resident = plan[4], plan[5], plan[7], plan[8]
    hidden, terms = plan[told], plan[told] + plan[told + 1]
    groups = (hidden * kind.gates + GROUP - 1) // GROUP
    left = 0
    while left < groups:
        group = left + p.beside
        if group < groups:
            b = bias + group * GROUP + p.column
            for r in range(0, len(sums), CELLS):
                for k in range(4):
                    sums[r + k] = load(weights, b + k)
                    sums[r + 4 + k] = load(weights, b + GROUP // 2 + k)
        k = 0
        while k < terms:
            count = min(chunk, terms - k)
            if (left == 0 and kind.code != warp.NEW) or terms > chunk or resident == 0:
                cuda.syncthreads()  # the chunk before is done with
                _gather(state, plan, slots, inputs, shared, p.terms, told, at, k, count)
                if resident == 0:
                    for n in range(min(together, groups - left)):
                        _copy(
                            weights, panel + ((left + n) * terms + k) * GROUP,
                            shared, p.weights + n * chunk * GROUP, count * GROUP,
                        )  # fmt: skip
                cuda.syncthreads()
            if group < groups:
                w = p.weights + p.beside * chunk * GROUP
                if resident > 0:
                    w = p.weights + panel + (group * terms + k) * GROUP
                w += p.column
                warp.multiply(kind, shared, p, w, k, count, hidden, x, y, sums)
            k += chunk
        if group < groups:
            unit = group * (GROUP // kind.gates) + p.column // kind.gates
            units = (hidden + UNITS - 1) // UNITS * UNITS
            warp.update(kind, state, size, slots, of, unit, units, sums, old, shared, p)
        left += together


@on_device
def _remember(records: Any, plan: Any, slots: Any, inputs: Any, at: int) -> None:
    """The inputs of a tile to the rings of its series."""
    entries, tile, window, ring = plan[1], plan[6], plan[13], plan[14]
    shift = plan[PLAN + 8]
    wide = 1 << shift
    cuda.syncthreads()  # slots are there
    row = cuda.threadIdx.x >> shift
    while row < tile:
        slot = load(slots, tile + row)
        if slot >= 0:
            of = int64(slot) * ring
            to = of + int32(load(records, of + ring - 1)) % window * entries
            k = cuda.threadIdx.x & (wide - 1)
            while k < entries:
                store(records, to + k, load(inputs, (at + row) * entries + k))
                k += wide
        row += cuda.blockDim.x >> shift
    cuda.syncthreads()  # counts are done with
    row = cuda.threadIdx.x
    while row < tile:
        slot = load(slots, tile + row)
        if slot >= 0:
            count = int64(slot) * ring + ring - 1
            seen = int32(load(records, count)) + 1
            store(records, count, float32(window if seen == 2 * window else seen))
        row += cuda.blockDim.x


@on_device
def _recall(
    records: Any, plan: Any, slots: Any, recalled: Any, states: Any, at: int, back: int
) -> int:
    """The inputs of `back` steps ago; a row whose history begins there, or later, at zero state.

    Returns whether the thread has met a row whose history reaches as far.
    """
    entries, size, tile, window, ring = plan[1], plan[4], plan[6], plan[13], plan[14]
    shift = plan[PLAN + 8]
    wide = 1 << shift
    live = 0
    row = cuda.threadIdx.x >> shift
    while row < tile:
        slot = load(slots, tile + row)
        if slot >= 0:
            of = int64(slot) * ring
            seen = int32(load(records, of + ring - 1))
            held = min(seen, window)
            start = cuda.threadIdx.x & (wide - 1)
            if back < held:
                live = 1
                place = of + (seen - 1 - back) % window * entries
                k = start
                while k < entries:
                    store(recalled, (at + row) * entries + k, load(records, place + k))
                    k += wide
            if back >= held - 1:
                k = start
                while k < size:
                    store(states, (at + row) * size + k, float32(0))
                    k += wide
        row += cuda.blockDim.x >> shift
    return live


@on_device
def _copy(source: Any, source_at: int, shared: Any, at: int, count: int) -> None:
    """`count` float32, a multiple of four, by all threads of the block."""
    k = 4 * cuda.threadIdx.x
    while k < count:
        a, b, c, d = load4(source, source_at + k)
        store4(shared, at + k, a, b, c, d)
        k += 4 * cuda.blockDim.x


@on_device
def _gather(
    state: Any, plan: Any, slots: Any, inputs: Any, shared: Any, terms_at: int,
    told: int, at: int, start: int, count: int,
) -> None:  # fmt: skip
    """Terms start:start + count of the rows of a tile, transposed: h, then the inputs.

    A warp takes 8 rows by 4 pieces of 16 bytes, which are whole sectors of device memory.
    """
    size, tile = plan[4], plan[6]
    hidden, entries, h_at, source = plan[told], plan[told + 1], plan[told + 6], plan[told + 7]
    shift = plan[told + 8]
    stride = tile + PAD
    lane, number, warps = (
        cuda.threadIdx.x % LANES,
        cuda.threadIdx.x // LANES,
        cuda.blockDim.x // LANES,
    )
    stop = min(start + count, hidden)
    row = 8 * number + lane % 8
    while row < tile:
        slot = load(slots, row)
        of = int64(slot) * size + h_at
        for k in range(start + lane // 8 * 4, stop, 16):
            to = terms_at + (k - start) * stride + row
            a, b, c, d = float32(0), float32(0), float32(0), float32(0)
            if slot >= 0:
                a, b, c, d = load4(state, of + k)
            store(shared, to, a)
            if k + 1 < stop:
                store(shared, to + stride, b)
            if k + 2 < stop:
                store(shared, to + 2 * stride, c)
            if k + 3 < stop:
                store(shared, to + 3 * stride, d)
        row += 8 * warps
    begin, stop = max(start, hidden), start + count
    wide = 1 << shift  # lanes side by side, the others above each other
    row = (number * LANES + lane) >> shift
    while row < tile:
        slot = load(slots, row)
        k = begin + (lane & (wide - 1))
        while k < stop:
            value = float32(0)
            if slot >= 0:
                if source >= 0:
                    value = load(state, int64(slot) * size + source + k - hidden)
                else:
                    value = load(inputs, (at + row) * entries + k - hidden)
            store(shared, terms_at + (k - start) * stride + row, value)
            k += wide
        row += (warps * LANES) >> shift


@on_device
def _scatter(state: Any, plan: Any, slots: Any, shared: Any, told: int, new_at: int) -> None:
    """New h from shared memory to the states of the tile; a warp as in `_gather`."""
    size, tile, h_at = plan[4], plan[6], plan[told + 6]
    units = (plan[told] + UNITS - 1) // UNITS * UNITS
    stride = tile + PAD
    lane, number, warps = (
        cuda.threadIdx.x % LANES,
        cuda.threadIdx.x // LANES,
        cuda.blockDim.x // LANES,
    )
    row = 8 * number + lane % 8
    while row < tile:
        slot = load(slots, row)
        if slot >= 0:
            to = int64(slot) * size + h_at
            for unit in range(lane // 8 * 4, units, 16):
                of = new_at + unit * stride + row
                store4(
                    state, to + unit, load(shared, of), load(shared, of + stride),
                    load(shared, of + 2 * stride), load(shared, of + 3 * stride),
                )  # fmt: skip
        row += 8 * warps


@on_device
def _head(
    weights: Any, plan: Any, inputs: Any, outputs: Any, shared: Any, new_at: int, at: int, rows: int
) -> None:
    """outputs = activation(skip @ inputs + weight @ h + bias), a thread for each number."""
    entries, width, stride = plan[1], plan[2], plan[6] + PAD
    head, bias, activation, shift = plan[9], plan[10], plan[11], plan[12]
    hidden = plan[PLAN + (plan[0] - 1) * LAYER]
    wide = 1 << shift
    sums = cuda.local.array(1, float32)
    row = cuda.threadIdx.x >> shift
    while row < rows:
        output = cuda.threadIdx.x & (wide - 1)
        while output < width:
            sums[0] = load(weights, bias + output)
            w = head + output
            x = (at + row) * entries
            for _ in range(entries):
                sums[0] = fma(load(inputs, x), load(weights, w), sums[0])
                x += 1
                w += width
            h = new_at + row
            for _ in range(hidden):
                sums[0] = fma(load(shared, h), load(weights, w), sums[0])
                h += stride
                w += width
            store(outputs, (at + row) * width + output, cell.activate(activation, sums[0]))
            output += wide
        row += cuda.blockDim.x >> shift


@functools.cache
def compiled(
    kind: int, windowed: bool, rows: int, activation: int, recurrent: int, device: int, shared: int
) -> Any:
    """The kernel on a device (by number), whose blocks may have `shared` bytes of shared memory."""
    kernel = cuda.jit(
        SIGNATURE, **({} if SIMULATED else {"launch_bounds": THREADS, "lto": False, "cache": True})
    )(define(kind, windowed, rows, activation, recurrent))
    if not SIMULATED:
        _allow_shared(kernel, shared)
    return kernel


def _allow_shared(kernel: Any, size: int) -> None:
    """More than 48 KiB of dynamic shared memory has to be asked for, which Numba does not."""
    from cuda.bindings.driver import CUfunction_attribute
    from numba.cuda.cudadrv.driver import driver

    function = next(iter(kernel.overloads.values()))._codelibrary.get_cufunc()
    attribute = CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    driver.cuKernelSetAttribute(attribute, size, function.handle, function.device.id)


def define_move() -> Device:
    """The kernel that copies records between the state and `moved` (n, record)."""

    def move(state: Any, slots: Any, moved: Any, count: int, down: int) -> None:
        for n in range(cuda.blockIdx.x, count, cuda.gridDim.x):
            slot = slots[n]
            for k in range(cuda.threadIdx.x, moved.shape[1], cuda.blockDim.x):
                at = int64(slot) * moved.shape[1] + k
                if down:
                    moved[n, k] = state[at]
                else:
                    state[at] = moved[n, k]

    return move


@functools.cache
def compiled_move(device: int) -> Any:
    """The copy of records, on a device."""
    return cuda.jit(MOVE, **({} if SIMULATED else {"cache": True}))(define_move())
