"""The step on an NVIDIA GPU: one fused kernel a round, records in device memory from step to step.

A block of warps moves a tile of series at a time through all layers and the head: gather old states
beside the inputs, gates in registers, activations and cell update, new states scattered. A warp
does 64 gates of 4 * `rows` series: each lane holds 8 gates for `rows` series, so that 8 * `rows`
multiply-adds need 8 weights and `rows` inputs from shared memory. Cells differ in how many gates a
unit has, which of them a product adds to, and what becomes of them (`warp`); a GRU that resets
before the product takes two passes. With a window the states of the tiles under way are in scratch.

Every pre-activation is one chain of `fma` from its bias over h, then x, as on the CPU (see `simd`),
in one lane, whatever the tile; divisions are IEEE ones and nothing is flushed to zero. So a state
is the same bits in any batch, place and round; and as the formulas are those of `cell`, states
should have the CPU's bits too (in the simulator they have; `golden.TOLERANCE` is what is promised).
The head sums up over the inputs, then h.

**Reasoning** (H100, LSTM, H = 64, I = 1, a million series). A step takes 2 * 4 * 64 * 65 flops and
moves 4 * 4 * 64 bytes: 33 flops a byte where the machine has 20, so arithmetic binds. For 64 gates
of 32 series a warp needs 4160 multiply-adds. Of what ptxas 13.5 makes for sm_90 it issues about
7700 instructions: 4630 for the products (shared memory is read 4 times, 16 bytes a lane, for each
64 multiply-adds), 1890 for the cells (118 for each of 16: five powers of two, three divisions) and
1200 or so to gather, scatter and keep books. At one instruction a cycle that is 54 % of the FP32
peak, the roof of this design; waits cost some of it, so half of the peak is near and not sure. The
weights stay in shared memory where they fit beside the tiles of two blocks, or of one large block;
where they do not, they come through it in chunks, from the second-level cache: `tile` / 2 flops for
each byte read there. Not yet timed on a GPU.

Slots, inputs and outputs are in pinned host memory that the device reads and writes itself, while
it computes: no copy is launched. Two sets of it: the host fills one while the device works on the
other. Nothing is allocated after `allocate`, nothing compiled after `warm_up`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import cuda
from numpy.typing import NDArray

from streamlstm.kernels import block, cell, warp
from streamlstm.kernels.block import PAD
from streamlstm.kernels.cell import NO_STAGES, BackendError, Floats, Network, Stages
from streamlstm.kernels.device import SIMULATED
from streamlstm.kernels.warp import GROUP, LANE_ROWS, LANES

MANY, FEW = 8, 2  # rows of a lane, for large rounds and for small ones
SIDE = {MANY: 4, FEW: 8}  # warps side by side in a block, at most
WARPS = 8  # of a block of large rounds
PINNED = 1 << 24  # float32 of a set of pinned memory at most
SUBMIT = 65_536  # ticks of a set at most
FLOAT_BYTES = 4


class Limits(NamedTuple):
    """What a device has room for; bytes of shared memory."""

    multiprocessors: int
    shared_per_block: int
    shared_per_multiprocessor: int
    shared_reserved: int  # of each block


class Shape(NamedTuple):
    """How a round is cut; offsets and sizes in float32 of shared memory."""

    rows: int  # of a lane
    together: int  # warps side by side in a block, 64 gates each
    tile: int  # series of a block
    chunk: int  # terms of a product at a time
    resident: int  # weights that stay in shared memory: all, or 0
    blocks: int  # of the device at a time
    threads: int
    shared: int


class _Variant(NamedTuple):
    """A kernel with the shape it is launched in."""

    shape: Shape
    plan: Any  # on the device
    kernel: Any


class _Pinned(NamedTuple):
    """Host memory that the device reaches by itself, and what it was last used for."""

    slots: Any  # int32 (n,)
    inputs: Any  # float32 (n * I,)
    bounds: Any  # int64 (n + 1,)
    outputs: Any  # float32 (n * O,)
    done: Any  # event


@dataclass
class Buffers:
    """State and packed weights of a network, on the device.

    state: float32 (capacity * record,), each record of `shape`, which is `cell.record_shape`.
    """

    state: Any
    shape: tuple[int, ...]
    record: int  # float32 of one
    weights: Any
    scratch: tuple[Any, Any]  # with a window: states and inputs of the tiles that are under way
    many: _Variant
    few: _Variant
    pinned: tuple[_Pinned, _Pinned]
    moved: Any  # pinned float32 (n, record): records on their way
    moved_slots: Any  # pinned int32 (n,)
    move: Any  # the kernel that moves them
    stream: Any


def unusable() -> str:
    """Why no GPU can be used; empty where one can."""
    if SIMULATED:
        return ""
    try:
        cuda.current_context()
    except Exception as error:  # the driver's and the bindings' own, of many kinds
        return " ".join(str(error).split()) or type(error).__name__
    return ""


def refused(network: Network) -> str:
    """Why this network runs on no GPU; empty where it does."""
    pairs = {(layer.activation, layer.recurrent_activation) for layer in network.layers}
    used = {network.head.activation}.union(*pairs)
    if rarer := sorted(used - {*cell.TRAINABLE}):
        return f"it has no activation {rarer[0]}"
    return "" if len(pairs) == 1 else "it wants the same activations in all layers"


def bytes_per_series(network: Network) -> int:
    """Bytes of device memory that `allocate` takes for each series."""
    return math.prod(cell.record_shape(network)) * FLOAT_BYTES


def allocate(network: Network, capacity: int, threads: int | None = None) -> Buffers:
    """Buffers on the current device for `capacity` series at zero state; `threads` is the CPU's.

    Raises:
        BackendError: no usable GPU, not enough memory on it, or :func:`refused`.
    """
    if reason := refused(network):
        raise BackendError(f"backend 'cuda': {reason}; set backend = 'cpu'")
    if reason := unusable():
        raise BackendError(
            f"backend 'cuda': no usable GPU ({reason}); install its driver or set backend = 'cpu'"
        )
    one = network.layers[0]  # as all are
    codes = cell.activation_code(one.activation), cell.activation_code(one.recurrent_activation)
    shape, (number, parts, units) = cell.record_shape(network), cell.state_shape(network)
    record, size = math.prod(shape), number * parts * units
    inputs, outputs = network.head.skip.shape[::-1]
    device, room = 0 if SIMULATED else cuda.get_current_device().id, limits()
    weights, head, layers = _packed(network)
    shapes = {rows: shape_for(network, rows, len(weights), room) for rows in (MANY, FEW)}
    under_way = max(each.blocks * each.tile for each in shapes.values()) if network.window else 0
    free = cuda.current_context().get_memory_info().free
    floats = capacity * record + len(weights) + under_way * (size + inputs)
    if floats * FLOAT_BYTES > free:
        raise BackendError(
            f"backend 'cuda': {capacity} series need {floats * FLOAT_BYTES / 2**30:.1f} GiB on the"
            f" device, {free / 2**30:.1f} are free; lower max_series"
        )

    def variant(shape: Shape) -> _Variant:
        plan = block.Plan(
            layers=number,
            inputs=inputs,
            outputs=outputs,
            units=units,
            size=size,
            together=shape.together,
            tile=shape.tile,
            chunk=shape.chunk,
            resident=shape.resident,
            head=head[0],
            head_bias=head[1],
            head_activation=cell.activation_code(network.head.activation),
            head_shift=_shift(outputs),
            window=network.window,
            ring=record,
        )
        words = np.array([*plan, *(value for layer in layers for value in layer)], np.int32)
        first, windowed = warp.PASSES[cell.kind_of(network)][0], network.window > 0
        kernel = block.compiled(first, windowed, shape.rows, *codes, device, room.shared_per_block)
        return _Variant(shape, cuda.to_device(words), kernel)

    count = min(SUBMIT, max(1024, capacity), max(1, PINNED // (inputs + outputs + 1)))
    moved = max(1, min(capacity, PINNED // 4 // record))
    state = cuda.device_array(capacity * record, np.float32)
    zeros = np.zeros(moved * record, np.float32)
    for at in range(0, len(state), len(zeros)):
        state[at : at + len(zeros)].copy_to_device(zeros[: len(state) - at])
    return Buffers(
        state=state,
        shape=shape,
        record=record,
        weights=cuda.to_device(weights),
        scratch=(
            cuda.device_array(max(1, under_way * size), np.float32),
            cuda.device_array(max(1, under_way * inputs), np.float32),
        ),
        many=variant(shapes[MANY]),
        few=variant(shapes[FEW]),
        pinned=(_pinned(count, inputs, outputs), _pinned(count, inputs, outputs)),
        moved=cuda.mapped_array((moved, record), np.float32),
        moved_slots=cuda.mapped_array(moved, np.int32),
        move=block.compiled_move(device),
        stream=cuda.stream(),
    )


def _pinned(count: int, inputs: int, outputs: int) -> _Pinned:
    array = cuda.mapped_array
    return _Pinned(
        array(count, np.int32),
        array(count * inputs, np.float32),
        array(count + 1, np.int64),
        array(count * outputs, np.float32),
        cuda.event(),
    )


def _packed(network: Network) -> tuple[Floats, tuple[int, int], list[block.Layer]]:
    """All weights in one array, where the head's are in it, and the layers."""
    parts: list[Floats] = []
    at = 0

    def keep(array: Floats) -> int:
        """The offset of a copy, on 16 bytes."""
        nonlocal at
        start, at = at, at + -(-array.size // 4) * 4
        parts.append(np.append(array.ravel(), np.zeros(at - start - array.size, np.float32)))
        return start

    _, states, units = cell.state_shape(network)
    layers = []
    for number, layer in enumerate(network.layers):
        places = [keep(array) for both in warp.pack(layer) for array in both]
        weights, bias, then_weights, then_bias = [*places, 0, 0][:4]
        layers.append(
            block.Layer(
                hidden=layer.weight_hh.shape[1],
                inputs=layer.weight_ih.shape[1],
                weights=weights,
                bias=bias,
                then_weights=then_weights,
                then_bias=then_bias,
                state=number * states * units,
                source=(number - 1) * states * units if number else -1,
                shift=_shift(layer.weight_ih.shape[1]),
            )
        )
    head = network.head
    place = keep(np.vstack([head.skip.T, head.weight.T])), keep(head.bias)
    return np.concatenate(parts).astype(np.float32), place, layers


def _shift(wide: int) -> int:
    """The least power of two that is as wide, or a warp."""
    return min((wide - 1).bit_length(), (LANES - 1).bit_length())


def limits() -> Limits:
    """What the current device has room for; in the simulator, a small one."""
    if SIMULATED:
        return Limits(2, 99 << 10, 100 << 10, 1 << 10)
    device = cuda.get_current_device()
    return Limits(
        device.MULTIPROCESSOR_COUNT,
        device.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        device.MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
        device.RESERVED_SHARED_MEMORY_PER_BLOCK,
    )


def shape_for(network: Network, rows: int, weights: int, room: Limits) -> Shape:
    """The best shape that fits, for `rows` of a lane or fewer.

    weights: float32 of all. BackendError where even the least shape does not fit.
    """
    kind, units = cell.kind_of(network), cell.state_shape(network)[-1]
    gates = warp.GATES[warp.PASSES[kind][0]]
    groups = max(-(-layer.weight_hh.shape[1] * gates // GROUP) for layer in network.layers)
    kept = units * len(warp.PASSES[kind])  # h' of the units, and r * h
    terms = max(
        sum(layer.weight_hh.shape[1:] + layer.weight_ih.shape[1:]) for layer in network.layers
    )
    for lane_rows in sorted({rows, FEW}, reverse=True):
        passes = -(-groups // SIDE[lane_rows])
        together = -(-groups // passes)
        high = max(1, WARPS // together) if lane_rows == MANY else 1
        for above, blocks, chunk, resident in (
            (high, 2, terms, weights),
            (2 * high, 1, terms, weights),
            (high, 2, 32, 0),
            (high, 1, 32, 0),
            (1, 1, 8, 0),
        ):
            tile = LANE_ROWS * lane_rows * above
            held = resident or together * chunk * GROUP
            slots = tile * (2 if network.window else 1)
            shared = (slots + (chunk + kept) * (tile + PAD) + held) * FLOAT_BYTES
            each = room.shared_per_multiprocessor // blocks - room.shared_reserved
            if shared <= min(each, room.shared_per_block):
                return Shape(
                    rows=lane_rows,
                    together=together,
                    tile=tile,
                    chunk=chunk,
                    resident=resident,
                    blocks=room.multiprocessors * blocks,
                    threads=LANES * together * above,
                    shared=shared,
                )
    raise BackendError(
        f"backend 'cuda': {units} units do not fit in {room.shared_per_block} bytes of"
        " shared memory; set backend = 'cpu'"
    )


def step(
    buffers: Buffers,
    slots: NDArray[np.int32],
    inputs: Floats,
    rounds: NDArray[np.int64],
    outputs: Floats,
    stages: Stages = NO_STAGES,
) -> None:
    """Move series one step per row and write the head's outputs; see `cpu.step`.

    The host runs the stages of some rows while the device works on others.
    """
    rounds = np.concatenate([[0], rounds[1:] if len(rounds) > 1 else rounds])  # the first joined
    count = len(buffers.pinned[0].slots)
    waiting: list[tuple[_Pinned, int, int]] = []
    for number, start in enumerate(range(0, len(slots), count)):
        stop = min(start + count, len(slots))
        if len(waiting) == 2:
            _finish(*waiting.pop(0), outputs, stages)
        cell.run_stage(stages.before, stages.context, start, stop)
        pinned = buffers.pinned[number % 2]
        pinned.slots[: stop - start] = slots[start:stop]
        x = inputs[start:stop].ravel()
        pinned.inputs[: len(x)] = x
        first, last = np.searchsorted(rounds, start, "right") - 1, np.searchsorted(rounds, stop)
        bounds = np.unique(np.clip(rounds[first : last + 1], start, stop)) - start
        pinned.bounds[: len(bounds)] = bounds
        launch(buffers, pinned, np.diff(bounds).tolist())
        pinned.done.record(buffers.stream)
        waiting.append((pinned, start, stop))
    for submitted in waiting:
        _finish(*submitted, outputs, stages)


def launch(buffers: Buffers, pinned: _Pinned, sizes: list[int]) -> None:
    """Rounds of these sizes: a kernel for each, and one for a run of rounds of a tile or less."""
    number = 0
    while number < len(sizes):
        size, last = sizes[number], number + 1
        few = buffers.few.shape
        variant = buffers.many if size > few.tile * few.blocks else buffers.few
        if size <= few.tile:
            while last < len(sizes) and sizes[last] <= few.tile:
                last += 1
        shape = variant.shape
        blocks = min(-(-size // shape.tile), shape.blocks)
        variant.kernel[blocks, shape.threads, buffers.stream, shape.shared](
            buffers.state, buffers.weights, variant.plan,
            pinned.slots, pinned.inputs, pinned.bounds, pinned.outputs, *buffers.scratch,
            number, last,
        )  # fmt: skip
        number = last


def _finish(pinned: _Pinned, start: int, stop: int, outputs: Floats, stages: Stages) -> None:
    pinned.done.synchronize()
    width = outputs.shape[1]
    outputs[start:stop] = pinned.outputs[: (stop - start) * width].reshape(-1, width)
    cell.run_stage(stages.after, stages.context, start, stop)


def compiled_step(buffers: Buffers) -> None:
    """None: `step` is for Python, which launches what runs on the device."""


def host_records(buffers: Buffers) -> Floats:
    """(0, floats): they lie on the device; see `cpu.host_records`."""
    return np.zeros((0, buffers.record), np.float32)


def to_host(buffers: Buffers, slots: NDArray[np.int32]) -> Floats:
    """A copy of the records of some slots, (n, *cell.record_shape)."""
    records = np.empty((len(slots), buffers.record), np.float32)
    for at in range(0, len(slots), len(buffers.moved)):
        part = records[at : at + len(buffers.moved)]
        _move(buffers, slots[at : at + len(part)], down=1)
        part[:] = buffers.moved[: len(part)]
    return records.reshape(len(slots), *buffers.shape)


def from_host(buffers: Buffers, slots: NDArray[np.int32], records: Floats) -> None:
    """Set the records of some slots from (n, *cell.record_shape); units beyond H must be zero."""
    flat = records.reshape(len(slots), buffers.record)
    for at in range(0, len(slots), len(buffers.moved)):
        part = flat[at : at + len(buffers.moved)]
        buffers.moved[: len(part)] = part
        _move(buffers, slots[at : at + len(part)], down=0)


def clear(buffers: Buffers, slots: NDArray[np.int32]) -> None:
    """Set the records of some slots to zero."""
    from_host(buffers, slots, np.zeros((len(slots), buffers.record), np.float32))


def _move(buffers: Buffers, slots: NDArray[np.int32], down: int) -> None:
    buffers.moved_slots[: len(slots)] = slots
    blocks = min(len(slots), 1024) or 1
    buffers.move[blocks, LANES, buffers.stream](
        buffers.state, buffers.moved_slots, buffers.moved, len(slots), down
    )
    buffers.stream.synchronize()


def warm_up(buffers: Buffers) -> None:
    """Launch every kernel once (`allocate` has compiled them). Keeps states."""
    for variant in (buffers.many, buffers.few):
        shape, pinned = variant.shape, buffers.pinned[0]
        variant.kernel[1, shape.threads, buffers.stream, shape.shared](
            buffers.state, buffers.weights, variant.plan,
            pinned.slots, pinned.inputs, pinned.bounds, pinned.outputs, *buffers.scratch,
            0, 0,
        )  # fmt: skip
    _move(buffers, np.zeros(0, np.int32), down=1)
