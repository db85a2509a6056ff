"""What runs on the GPU: the kernel of a round, and the copy of records.

A block takes a tile of series through all layers and the head. In it a warp has the 4 gates of 16
units for 4 * `rows` series: lane `p + 8 * q` those of units p and p + 8, rows `q * rows` and on.
Shared memory holds, one after the other:

    slots    int32 (tile,)             of the series; -1: no series
    terms    (chunk, tile + 4)         old h and inputs, transposed, a chunk of the terms at a time
    new      (units, tile + 4)         new h, transposed, until all of the old h has been used
    weights  all of them, or those of a chunk: [group of the block][chunk][16 units][4 gates]

Rows are 4 words longer than the tile, so that 4 of them stand in different banks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import config, cuda, float32, int32, int64, njit, types, void

from streamlstm.kernels import cell, simd
from streamlstm.kernels.cell import UNITS

if not config.ENABLE_CUDASIM:
    from numba.cuda.extending import intrinsic

SIMULATED = bool(config.ENABLE_CUDASIM)
LANES = 32
LANE_UNITS = 8  # lanes side by side in a warp; each has a unit there and the one 8 further on
LANE_ROWS = 4  # lanes above each other
CELLS = 2 * 4  # gates of the units of a lane
GROUP = UNITS * 4  # weights of a term for the units of a warp
THREADS = 512  # of a block at most, which leaves each 128 registers
PAD = 4


class Plan(NamedTuple):
    """What the kernel is told, as int64; the layers follow."""

    layers: int
    inputs: int
    outputs: int
    units: int
    record: int  # float32 of a series
    together: int  # groups of 16 units side by side in a block
    tile: int  # series of a block
    chunk: int  # terms of a product at a time
    resident: int  # weights that stay in shared memory: all, or 0
    head: int  # offset in the weights of [I + H][O]
    head_bias: int
    head_activation: int
    head_shift: int  # outputs side by side in a warp, as a power of two


class Layer(NamedTuple):
    """What the kernel is told of a layer."""

    hidden: int
    inputs: int
    weights: int  # offset of [group][H + I][16 units][4 gates]
    bias: int  # offset of [group][16][4]
    state: int  # offset of h in a record; c follows `units` later
    source: int  # offset in a record of the layer's inputs; -1: those of the tick
    shift: int  # inputs side by side in a warp, as a power of two


PLAN, LAYER = len(Plan._fields), len(Layer._fields)

SIGNATURE = void(
    float32[::1],  # state (capacity, record)
    float32[::1],  # weights
    int32[::1],  # plan
    int32[::1],  # slots (n,)
    float32[::1],  # inputs (n, I)
    int64[::1],  # bounds of rounds
    float32[::1],  # outputs (n, O)
    int64,  # the first round
    int64,  # the round after the last; several only where one block is launched
)
MOVE = void(float32[::1], int32[::1], float32[:, ::1], int64, int64)

Device = Callable[..., Any]


def _on_device(function: Device) -> Any:
    """A device function, inlined into its callers."""
    return cuda.jit(device=True, **({} if SIMULATED else {"forceinline": True}))(function)


@njit(cache=True)
def _fma(a: Any, b: Any, c: Any) -> Any:
    """fma(a, b, c); the simulator can call this, and not the intrinsic."""
    return simd.fma(a, b, c)


if SIMULATED:

    def load(array: Any, at: Any) -> Any:
        """Element `at`."""
        return array[at]

    def load4(array: Any, at: Any) -> Any:
        """Four float32 from element `at` on, a multiple of four."""
        return array[at], array[at + 1], array[at + 2], array[at + 3]

    def store(array: Any, at: Any, value: Any) -> None:
        """Set element `at`."""
        array[at] = value

    def store4(array: Any, at: Any, a: Any, b: Any, c: Any, d: Any) -> None:
        """Set four float32 from element `at` on, a multiple of four."""
        array[at], array[at + 1], array[at + 2], array[at + 3] = a, b, c, d

else:
    # The same without a look at the sign of the index, and four by one instruction.
    FOUR = ir.VectorType(ir.FloatType(), 4)

    def _start(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
        return builder.gep(context.make_array(kind)(context, builder, array).data, [at])

    def _start4(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
        start = _start(context, builder, kind, array, at)
        return builder.bitcast(start, FOUR.as_pointer(start.type.addrspace))

    @intrinsic
    def load(typing: Any, array: Any, at: Any) -> Any:
        """Element `at`."""

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.load(_start(context, builder, array, *args))

        return array.dtype(array, types.int64), generate

    @intrinsic
    def load4(typing: Any, array: Any, at: Any) -> Any:
        """Four float32 from element `at` on, a multiple of four."""
        kind = types.UniTuple(types.float32, 4)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            four = builder.load(_start4(context, builder, array, *args), align=16)
            lanes = (ir.Constant(ir.IntType(32), lane) for lane in range(4))
            values = [builder.extract_element(four, lane) for lane in lanes]
            return context.make_tuple(builder, kind, values)

        return kind(array, types.int64), generate

    @intrinsic
    def store(typing: Any, array: Any, at: Any, value: Any) -> Any:
        """Set element `at`."""

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            builder.store(args[2], _start(context, builder, array, *args[:2]))
            return context.get_dummy_value()

        return types.void(array, types.int64, array.dtype), generate

    @intrinsic
    def store4(typing: Any, array: Any, at: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        """Set four float32 from element `at` on, a multiple of four."""

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            four = ir.Constant(FOUR, ir.Undefined)
            for lane in range(4):
                place = ir.Constant(ir.IntType(32), lane)
                four = builder.insert_element(four, args[2 + lane], place)
            builder.store(four, _start4(context, builder, array, *args[:2]), align=16)
            return context.get_dummy_value()

        return types.void(array, types.int64, *[types.float32] * 4), generate


# Local arrays stand in registers: their lengths are constants wherever these functions are inlined.
# A `range` whose step is no constant would divide 64-bit integers, which takes a GPU a hundred
# instructions: there are `while` loops instead.


@_on_device
def _term(shared: Any, a: int, w: int, x: Any, y: Any, sums: Any) -> None:
    """sums[row][unit][gate] += input * weight of one term; x, y: room for the row and the gates."""
    if len(x) % 4 == 0:
        for r in range(0, len(x), 4):
            x[r], x[r + 1], x[r + 2], x[r + 3] = load4(shared, a + r)
    else:
        for r in range(len(x)):
            x[r] = load(shared, a + r)
    y[0], y[1], y[2], y[3] = load4(shared, w)
    y[4], y[5], y[6], y[7] = load4(shared, w + GROUP // 2)
    for r in range(len(x)):
        for k in range(CELLS):
            sums[r * CELLS + k] = _fma(x[r], y[k], sums[r * CELLS + k])


@_on_device
def _multiply(
    shared: Any, a: int, stride: int, w: int, terms: int, x: Any, y: Any, sums: Any
) -> None:
    """`_term` after term, four in a turn of the loop."""
    for _ in range(terms // 4):
        _term(shared, a, w, x, y, sums)
        _term(shared, a + stride, w + GROUP, x, y, sums)
        _term(shared, a + 2 * stride, w + 2 * GROUP, x, y, sums)
        _term(shared, a + 3 * stride, w + 3 * GROUP, x, y, sums)
        a += 4 * stride
        w += 4 * GROUP
    for _ in range(terms % 4):
        _term(shared, a, w, x, y, sums)
        a += stride
        w += GROUP


@_on_device
def _update(
    activation: int, recurrent: int, scaled: bool, state: Any, record: int, slots: Any, row: int,
    c_at: int, sums: Any, c: Any, shared: Any, to: int, stride: int,
) -> None:  # fmt: skip
    """The cells of a lane, from their pre-activations; c in place, h to shared memory."""
    rows = len(c) // 2
    for r in range(rows):
        slot = load(slots, row + r)
        c[r * 2], c[r * 2 + 1] = float32(0), float32(0)
        if slot >= 0:
            at = int64(slot) * record + c_at
            c[r * 2], c[r * 2 + 1] = load(state, at), load(state, at + LANE_UNITS)
    for r in range(rows):
        for u in range(2):
            n, s = r * 2 + u, r * CELLS + u * 4
            i, f, g, o = sums[s], sums[s + 1], sums[s + 2], sums[s + 3]
            if scaled:
                h, new = cell.update_scaled(i, f, g, o, c[n])
            else:
                h, new = cell.update(activation, recurrent, i, f, g, o, c[n])
            c[n] = new
            store(shared, to + r + u * (LANE_UNITS * stride), h)
    for r in range(rows):
        slot = load(slots, row + r)
        if slot >= 0:
            at = int64(slot) * record + c_at
            store(state, at, c[r * 2])
            store(state, at + LANE_UNITS, c[r * 2 + 1])


@functools.cache
def define(rows: int, activation: int, recurrent: int) -> Device:
    """The kernel whose lanes hold `rows` series, as Python; activations by code.

    It closes over numbers alone, so that Numba's cache knows it again in another process.
    """
    scaled = (activation, recurrent) == (cell.TANH, cell.SIGMOID)
    own, cells = rows * CELLS, rows * 2

    def kernel(
        state: Any, weights: Any, plan: Any, ticks: Any, inputs: Any, bounds: Any, outputs: Any,
        first: int, stop: int,
    ) -> None:  # fmt: skip
        slots = cuda.shared.array(0, int32)
        shared = cuda.shared.array(0, float32)
        sums = cuda.local.array(own, float32)
        c = cuda.local.array(cells, float32)
        x = cuda.local.array(rows, float32)
        y = cuda.local.array(CELLS, float32)
        thread, threads = cuda.threadIdx.x, cuda.blockDim.x
        layers, units, record, together = plan[0], plan[3], plan[4], plan[5]
        tile, chunk, resident = plan[6], plan[7], plan[8]
        stride = tile + PAD
        terms_at = tile
        new_at = terms_at + chunk * stride
        weights_at = new_at + units * stride
        lane, warp = thread % LANES, thread // LANES
        unit, row = lane % LANE_UNITS, lane // LANE_UNITS * rows
        row += warp // together * (LANE_ROWS * rows)
        beside = warp % together
        _copy(weights, 0, shared, weights_at, resident)

        for number in range(first, stop):
            start, end = bounds[number], bounds[number + 1]
            at = start + cuda.blockIdx.x * tile
            while at < end:
                cuda.syncthreads()  # the tile before is done with
                r = thread
                while r < tile:
                    slots[r] = ticks[at + r] if at + r < end else -1
                    r += threads
                for layer in range(layers):
                    told = PLAN + layer * LAYER
                    hidden, terms = plan[told], plan[told] + plan[told + 1]
                    panel, bias, h_at = plan[told + 2], plan[told + 3], plan[told + 4]
                    groups = (hidden + UNITS - 1) // UNITS
                    left = 0
                    while left < groups:
                        group = left + beside
                        if group < groups:
                            b = bias + group * GROUP + unit * 4
                            for r in range(0, own, CELLS):
                                for k in range(4):
                                    sums[r + k] = load(weights, b + k)
                                    sums[r + 4 + k] = load(weights, b + GROUP // 2 + k)
                        k = 0
                        while k < terms:
                            count = min(chunk, terms - k)
                            if left == 0 or terms > chunk or resident == 0:
                                cuda.syncthreads()  # the chunk before is done with
                                _gather(
                                    state, plan, slots, inputs, shared, terms_at, told, at, k, count
                                )
                                if resident == 0:
                                    for n in range(min(together, groups - left)):
                                        _copy(
                                            weights, panel + ((left + n) * terms + k) * GROUP,
                                            shared, weights_at + n * chunk * GROUP, count * GROUP,
                                        )  # fmt: skip
                                cuda.syncthreads()
                            if group < groups:
                                w = weights_at + beside * chunk * GROUP
                                if resident > 0:
                                    w = weights_at + panel + (group * terms + k) * GROUP
                                w += unit * 4
                                _multiply(shared, terms_at + row, stride, w, count, x, y, sums)
                            k += chunk
                        if group < groups:
                            u = group * UNITS + unit
                            to = new_at + u * stride + row
                            c_at = h_at + units + u
                            _update(
                                activation, recurrent, scaled, state, record, slots, row,
                                c_at, sums, c, shared, to, stride,
                            )  # fmt: skip
                        left += together
                    cuda.syncthreads()
                    _scatter(state, plan, slots, shared, new_at, h_at, groups)
                _head(weights, plan, inputs, outputs, shared, new_at, at, min(tile, end - at))
                at += cuda.gridDim.x * tile

    return kernel


@_on_device
def _copy(source: Any, source_at: int, shared: Any, at: int, count: int) -> None:
    """`count` float32, a multiple of four, by all threads of the block."""
    k = 4 * cuda.threadIdx.x
    while k < count:
        a, b, c, d = load4(source, source_at + k)
        store4(shared, at + k, a, b, c, d)
        k += 4 * cuda.blockDim.x


@_on_device
def _gather(
    state: Any, plan: Any, slots: Any, inputs: Any, shared: Any, terms_at: int,
    told: int, at: int, start: int, count: int,
) -> None:  # fmt: skip
    """Terms start:start + count of the rows of a tile, transposed: h, then the inputs.

    A warp takes 8 rows by 4 pieces of 16 bytes, which are whole sectors of device memory.
    """
    record, tile = plan[4], plan[6]
    hidden, entries, h_at, source = plan[told], plan[told + 1], plan[told + 4], plan[told + 5]
    shift = plan[told + 6]
    stride = tile + PAD
    lane, warp, warps = (
        cuda.threadIdx.x % LANES,
        cuda.threadIdx.x // LANES,
        cuda.blockDim.x // LANES,
    )
    stop = min(start + count, hidden)
    row = 8 * warp + lane % 8
    while row < tile:
        slot = load(slots, row)
        of = int64(slot) * record + h_at
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
    row = (warp * LANES + lane) >> shift
    while row < tile:
        slot = load(slots, row)
        k = begin + (lane & (wide - 1))
        while k < stop:
            value = float32(0)
            if slot >= 0:
                if source >= 0:
                    value = load(state, int64(slot) * record + source + k - hidden)
                else:
                    value = load(inputs, (at + row) * entries + k - hidden)
            store(shared, terms_at + (k - start) * stride + row, value)
            k += wide
        row += (warps * LANES) >> shift


@_on_device
def _scatter(
    state: Any, plan: Any, slots: Any, shared: Any, new_at: int, h_at: int, groups: int
) -> None:
    """New h from shared memory to the records of the tile; a warp as in `_gather`."""
    record, tile = plan[4], plan[6]
    stride = tile + PAD
    lane, warp, warps = (
        cuda.threadIdx.x % LANES,
        cuda.threadIdx.x // LANES,
        cuda.blockDim.x // LANES,
    )
    row = 8 * warp + lane % 8
    while row < tile:
        slot = load(slots, row)
        if slot >= 0:
            to = int64(slot) * record + h_at
            for unit in range(lane // 8 * 4, groups * UNITS, 16):
                of = new_at + unit * stride + row
                store4(
                    state, to + unit, load(shared, of), load(shared, of + stride),
                    load(shared, of + 2 * stride), load(shared, of + 3 * stride),
                )  # fmt: skip
        row += 8 * warps


@_on_device
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
                sums[0] = _fma(load(inputs, x), load(weights, w), sums[0])
                x += 1
                w += width
            h = new_at + row
            for _ in range(hidden):
                sums[0] = _fma(load(shared, h), load(weights, w), sums[0])
                h += stride
                w += width
            store(outputs, (at + row) * width + output, cell.activate(activation, sums[0]))
            output += wide
        row += cuda.blockDim.x >> shift


@functools.cache
def compiled(rows: int, activation: int, recurrent: int, device: int, shared: int) -> Any:
    """The kernel on a device (by number), whose blocks may have `shared` bytes of shared memory."""
    kernel = cuda.jit(
        SIGNATURE, **({} if SIMULATED else {"launch_bounds": THREADS, "lto": False, "cache": True})
    )(define(rows, activation, recurrent))
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
