"""Backpropagation through time for stacked LSTM layers and head, compiled, parallel over the batch.

The truncated form (Williams & Peng 1990): a chunk of T steps starts from a given state and the
gradient stops there. The batch is cut into shards of ``SHARD`` rows, each computed by one thread
from first to last step, and the gradients of the shards are added in their order: the result is
the same bits for any number of threads.

Parameters lie in one flat vector, each matrix in PyTorch's order with every dimension padded to a
multiple of 16; what pads is zero and stays zero. What a shard computes lies in one flat record, so
that compiled functions take few arguments and compile fast. Everything is generic in its
precision: float32 goes through the register-blocked kernels, float64 through plain loops, for
checking gradients.
"""

import math
import weakref
from collections.abc import Mapping
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.extending import overload
from numpy.typing import NDArray

from streamlstm.kernels import cell, pool, simd
from streamlstm.kernels.simd import intrinsic
from streamlstm.model import Spec

SHARD = 16
"""Rows of the batch that one thread takes through all steps."""
WORTH_HELP = 5e6
"""Floating-point operations of a job below which no other thread is asked."""
FULL = 1 << 30
"""Added to the count of shards taken, so that none is left."""
PANEL = 64
"""Columns of a transposed weight matrix that lie together."""
LOSSES = ("mse", "mae", "huber")
MSE, MAE, HUBER = range(3)

# Parts of a shard's record of b rows and T steps, rows in the order [step][row]:
X = 0  # (T * b, inputs)
OUT = 1  # (T * b, columns) outputs of the head; on the way back the gradient before its activation
DH = 2  # (T * b, units) gradient of the state h of the layer at hand
DC = 3  # (b, units)
GRADIENT = 4  # (P,) of the sum of the shard's losses
LAYER = 5  # the parts of the first layer; those of the next begin PARTS further
GATES = 0  # (T * b, 4 * units) activations i, f, g, o; on the way back the gradient before them
STATE = 1  # (b + T * b, units) h: the one carried in, then that of each step
CELL = 2  # (b + T * b, units) c
SEEN = 3  # (T * b, units) activation of c
DROPPED = 4  # (T * b, units) h after dropout, for what is above; empty without dropout
PARTS = 5

Array = NDArray[Any]
"""float32, or float64 for checking gradients"""


class Net(NamedTuple):
    """Sizes, activation codes and parameter offsets of a network."""

    layers: int
    hidden: int
    units: int
    """hidden, padded"""
    width: int
    inputs: int
    """width, padded"""
    outputs: int
    columns: int
    """outputs, padded"""
    activation: int
    recurrent: int
    head: int
    at: NDArray[np.int64]
    """(3 * layers + 4,) where weight_ih, weight_hh, bias of each layer, then weight, bias and skip
    of the head begin in the parameter vector; then its length P"""


class Room(NamedTuple):
    """What an update computes in: S shards."""

    record: Array
    """(S, size)"""
    at: NDArray[np.int64]
    """(LAYER + PARTS * layers,) where the parts of a record begin"""
    flipped: Array
    """(P,) weight matrices transposed, in panels of ``PANEL`` columns"""
    score: NDArray[np.float64]
    """(S, 2) sum of the losses, and of how many outputs"""


class Chunk(NamedTuple):
    """A batch of B rows, each up to T consecutive steps out of a pool of N."""

    steps: int
    """T"""
    x: Array
    """(N, width)"""
    target: Array
    """(N, outputs) NaN where missing"""
    weight: Array
    """(outputs,) of the losses"""
    rows: NDArray[np.int64]
    """(B, 3) first step in the pool, number of steps, how many of the first are not scored"""
    state: Array
    """(L, 2, B, units) h and c at the start; moved to the end by the chunk"""
    prediction: Array
    """(N, outputs) where :func:`predict` is to write the outputs of the steps, or (0, outputs)"""


class Adam(NamedTuple):
    """State of the optimiser (Kingma & Ba 2015)."""

    gradient: Array
    """(P,) of the last update, mean over the scored outputs, before clipping"""
    first: Array
    """(P,)"""
    second: Array
    """(P,)"""
    average: Array
    """(P,) moving average of the parameters (Polyak & Juditsky 1992)"""


class Work:
    """Memory of an update, and threads that help the caller with its shards.

    A parallel loop of Numba ends in a barrier: each thread of the team must be given a core before
    the caller goes on, which costs milliseconds where other processes want the cores too. Here the
    caller works through the shards itself, whoever else is awake helps, and only shards that a
    helper has begun are waited for.
    """

    def __init__(self, room: Room, threads: int) -> None:
        self.room = room
        self._tally = np.zeros(3, np.int64)
        self._jobs: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()
        helpers = [
            Thread(target=_help, args=(self._jobs,), name=f"bptt-{n + 1}", daemon=True)
            for n in range(threads - 1)
        ]
        for helper in helpers:
            helper.start()
        self._helpers = len(helpers)
        weakref.finalize(self, _dismiss, self._jobs, len(helpers))

    def share(self, shards: int, operations: float, *job: Any) -> None:
        """Work through the shards of a job, with help if it is worth it, until all are done."""
        _settle(self._tally)  # an interrupt may have left the last job to the helpers
        self._tally = np.array([0, 0, shards])
        if operations > WORTH_HELP:
            for _ in range(self._helpers):
                self._jobs.put((self._tally, False, *job))
        _work_through(self._tally, True, *job)


def _help(jobs: "SimpleQueue[tuple[Any, ...] | None]") -> None:
    """The life of a helper. A job that is done already has no shard left for it."""
    while (job := jobs.get()) is not None:
        _work_through(*job)


def _dismiss(jobs: "SimpleQueue[tuple[Any, ...] | None]", helpers: int) -> None:
    for _ in range(helpers):
        jobs.put(None)


def net_of(spec: Spec) -> Net:
    """Sizes and offsets of the network of ``spec``."""
    units, inputs, columns = map(cell.padded, (spec.hidden, spec.width, spec.outputs))
    sizes = []
    for n in range(spec.layers):
        sizes += [4 * units * (units if n else inputs), 4 * units * units, 4 * units]
    sizes += [columns * units, columns, columns * inputs]
    return Net(
        spec.layers,
        spec.hidden,
        units,
        spec.width,
        inputs,
        spec.outputs,
        columns,
        cell.activation_code(spec.activation),
        cell.activation_code(spec.recurrent_activation),
        cell.activation_code(spec.head_activation),
        np.cumsum([0, *sizes]),
    )


def _views(spec: Spec, vector: Array) -> dict[str, Array]:
    """The tensors of the model file as views of a parameter vector, without what pads them."""
    net = net_of(spec)
    padded: list[tuple[int, ...]] = []
    for n in range(spec.layers):
        padded += [
            (4, net.units, net.units if n else net.inputs),
            (4, net.units, net.units),
        ]
        padded += [(4, net.units)]
    padded += [(net.columns, net.units), (net.columns,), (net.columns, net.inputs)]
    views = {}
    shapes = spec.weight_shapes()
    for (name, shape), full, at in zip(shapes.items(), padded, net.at, strict=False):
        array = vector[at : at + math.prod(full)].reshape(full)
        if len(full) > len(shape):  # each gate is padded by itself
            shape = (4, spec.hidden, *shape[1:])
        views[name] = array[tuple(slice(size) for size in shape)]
    return views


def pack(spec: Spec, weights: Mapping[str, Array], dtype: type = np.float32) -> Array:
    """The parameter vector of ``weights``, named and shaped as in the model file."""
    vector = _zeros((int(net_of(spec).at[-1]),), dtype)
    for name, view in _views(spec, vector).items():
        view[...] = np.asarray(weights[name]).reshape(view.shape)
    return vector


def unpack(spec: Spec, vector: Array) -> dict[str, Array]:
    """The named weights of a parameter vector, copied."""
    shapes = spec.weight_shapes()
    return {name: view.reshape(shapes[name]).copy() for name, view in _views(spec, vector).items()}


def allocate(
    net: Net,
    batch: int,
    steps: int,
    dropout: bool,
    dtype: type = np.float32,
    *,
    threads: int = 0,
) -> Work:
    """Room for updates of up to ``batch`` rows by ``steps`` steps.

    ``threads`` share the shards of an update, the caller's included; as many as Numba's
    NUMBA_NUM_THREADS where it is not given.
    """
    shards, b = -(-batch // SHARD), min(batch, SHARD)
    n, H, P = steps * b, net.units, int(net.at[-1])
    sizes = [n * net.inputs, n * net.columns, n * H, b * H, P]
    layer = [n * 4 * H, (n + b) * H, (n + b) * H, n * H, n * H if dropout else 0]
    at = np.cumsum([0, *sizes, *layer * net.layers])
    room = Room(
        _zeros((shards, int(at[-1])), dtype),
        at,
        _zeros((P,), dtype),
        np.zeros((shards, 2)),
    )
    return Work(room, min(threads or config.NUMBA_NUM_THREADS, shards))


def adam(net: Net, dtype: type = np.float32) -> Adam:
    """A new optimiser."""
    return Adam(*(_zeros((int(net.at[-1]),), dtype) for _ in range(4)))


def _zeros(shape: tuple[int, ...], dtype: type) -> Array:
    """Zeros that begin where a cache line does."""
    line, size = 64, math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + line, np.uint8)
    skip = -memory.ctypes.data % line
    return memory[skip : skip + size].view(dtype).reshape(shape)


def _is_single(array: Any) -> bool:
    return array.dtype == types.float32


def _lanes(array: Any) -> int:
    """How many elements of ``array`` are computed at once."""
    raise NotImplementedError


@overload(_lanes, strict=False)
def _(array: Any) -> Any:
    if _is_single(array):
        return lambda array: simd.lanes_of(simd.host_tile())
    return lambda array: 1


def _load(array: Any, at: int) -> Any:
    """Elements from ``at`` on: a register of float32, or one float64."""
    raise NotImplementedError


@overload(_load, strict=False)
def _(array: Any, at: int) -> Any:
    if _is_single(array):
        return lambda array, at: simd.load(simd.host_tile(), array, at)
    return lambda array, at: array[at]


def _store(array: Any, at: int, value: Any) -> None:
    raise NotImplementedError


@overload(_store, strict=False)
def _(array: Any, at: int, value: Any) -> Any:
    if _is_single(array):
        return lambda array, at, value: simd.store(array, at, value)

    def plain(array: Any, at: int, value: Any) -> None:
        array[at] = value

    return plain


@intrinsic
def _apart(typing: Any) -> Any:
    """Keep the calling function from being copied into its callers, which takes LLVM a minute."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.none(), generate


def _tile() -> Any:
    """The register block for products of SHARD rows: the host's, its rows a divisor of SHARD."""
    raise NotImplementedError


@overload(_tile, strict=False)
def _() -> Any:
    if simd.host_shape().rows > 4:
        return lambda: simd.with_rows(simd.host_tile(), 4)
    return lambda: simd.with_rows(simd.host_tile(), 2)


@njit(cache=True, _nrt=False)
def _product(
    m: int, n: int, k: int, a: int, a_at: int, a_row: int, a_k: int,
    b: int, b_at: int, b_k: int, c: int, c_at: int, c_row: int,
) -> None:  # fmt: skip
    _apart()
    simd.gemm(_tile(), m, n, k, a, a_at, a_row, a_k, b, b_at, b_k, c, c_at, c_row)


def _multiply(
    m: int, n: int, k: int, a: Any, a_at: int, a_row: int, a_k: int,
    b: Any, b_at: int, b_k: int, c: Any, c_at: int, c_row: int,
) -> None:  # fmt: skip
    """C (m, n) += A (m, k) @ B (k, n), offsets and strides as in :mod:`streamlstm.kernels.simd`."""
    raise NotImplementedError


@overload(_multiply, strict=False)
def _(
    m: int, n: int, k: int, a: Any, a_at: int, a_row: int, a_k: int,
    b: Any, b_at: int, b_k: int, c: Any, c_at: int, c_row: int,
) -> Any:  # fmt: skip
    if _is_single(a):

        def fast(m, n, k, a, a_at, a_row, a_k, b, b_at, b_k, c, c_at, c_row):  # type: ignore[no-untyped-def]
            # by address, so that the product is compiled for one kind of argument only
            _product(
                m, n, k, simd.address(a), a_at, a_row, a_k,
                simd.address(b), b_at, b_k, simd.address(c), c_at, c_row,
            )  # fmt: skip

        return fast

    def plain(m, n, k, a, a_at, a_row, a_k, b, b_at, b_k, c, c_at, c_row):  # type: ignore[no-untyped-def]
        for i in range(m):
            for p in range(k):
                left = a[a_at + i * a_row + p * a_k]
                for j in range(n):
                    c[c_at + i * c_row + j] += left * b[b_at + p * b_k + j]

    return plain


def _activate(code: int, x: Any) -> Any:
    raise NotImplementedError


@overload(_activate, strict=False)
def _(code: int, x: Any) -> Any:
    if x != types.float64:
        return lambda code, x: cell.activate(code, x)

    def plain(code: int, x: float) -> float:
        if code == cell.TANH:
            return math.tanh(x)
        if code == cell.SIGMOID:
            return 1 / (1 + math.exp(-x))
        if code == cell.RELU:
            return max(x, 0.0)
        if code == cell.HARD_SIGMOID:
            return min(max(x / 6 + 0.5, 0.0), 1.0)
        return x

    return plain


@intrinsic
def _positive(typing: Any, y: Any) -> Any:
    """1 where y > 0, else 0."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        def constant(value: float) -> Any:
            kind = args[0].type
            many = isinstance(kind, ir.VectorType)
            return ir.Constant(kind, [value] * kind.count if many else value)

        return builder.select(
            builder.fcmp_ordered(">", args[0], constant(0.0)),
            constant(1.0),
            constant(0.0),
        )

    return y(y), generate


@njit(cache=True, _nrt=False)
def _slope(code: int, y: Any) -> Any:
    """Derivative of an activation where its value is y."""
    if code == cell.TANH:
        return cell.ONE - y * y
    if code == cell.SIGMOID:
        return y - y * y
    if code == cell.RELU:
        return _positive(y)
    if code == cell.HARD_SIGMOID:
        return _positive(y) * _positive(cell.ONE - y) * cell.SIXTH
    return cell.ONE + cell.ZERO * y


@njit(cache=True, _nrt=False)
def _noise(seed: int, layer: int, place: int) -> Any:
    """24 random bits of a place (SplitMix64's finaliser over a counter)."""
    z = np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(place * 64 + layer + 1)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64((z ^ (z >> np.uint64(31))) >> np.uint64(40))


# --- forward --------------------------------------------------------------------------------------


@njit(cache=True, _nrt=False)
def _flip_matrix(theta: Array, flipped: Array, at: int, n: int, k: int) -> None:
    """Transpose a matrix of n rows and k columns, in panels of ``PANEL`` of its rows."""
    for first in range(0, n, PANEL):
        wide = min(PANEL, n - first)
        for column in range(k):
            to = at + first * k + column * wide
            for j in range(wide):
                flipped[to + j] = theta[at + (first + j) * k + column]


@njit(cache=True, _nrt=False)
def _flip(net: Net, theta: Array, flipped: Array) -> None:
    for n in range(net.layers):
        below = net.units if n else net.inputs
        _flip_matrix(theta, flipped, net.at[3 * n], 4 * net.units, below)
        _flip_matrix(theta, flipped, net.at[3 * n + 1], 4 * net.units, net.units)
    head = 3 * net.layers
    _flip_matrix(theta, flipped, net.at[head], net.columns, net.units)
    _flip_matrix(theta, flipped, net.at[head + 2], net.columns, net.inputs)


@njit(cache=True, _nrt=False)
def _through(
    rows: int,
    n: int,
    k: int,
    record: Array,
    a: int,
    flipped: Array,
    weight: int,
    c: int,
) -> None:
    """C (rows, n) += A (rows, k) @ W.T, A and C in the record, W (n, k) flipped."""
    for first in range(0, n, PANEL):
        wide = min(PANEL, n - first)
        _multiply(
            rows,
            wide,
            k,
            record,
            a,
            k,
            1,
            flipped,
            weight + first * k,
            wide,
            record,
            c + first,
            n,
        )


@njit(cache=True, _nrt=False)
def _drop(
    record: Array, source: int, to: int, steps: int, b: int, units: int, batch: int, row: int,
    layer: int, dropout: float, seed: int,
) -> None:  # fmt: skip
    """Zero each element with probability ``dropout``; the others grow to make up for it."""
    _apart()
    limit = int(dropout * 2**24)
    grow = record.dtype.type(1.0 / (1.0 - dropout))
    for t in range(steps):
        for r in range(b):
            p = (t * b + r) * units
            place = (t * batch + row + r) * units
            for j in range(units):
                kept = _noise(seed, layer, place + j) >= limit
                record[to + p + j] = record[source + p + j] * grow if kept else 0.0


@njit(cache=True, _nrt=False)
def _cell(net: Net, record: Array, z: int, h: int, c: int, seen: int, b: int) -> None:
    """One step of b rows: from pre-activations at z to h and c, keeping what the way back needs.

    h, c: where the states before the step lie; those after it follow.
    """
    H, lanes = net.units, _lanes(record)
    for r in range(b):
        for j in range(r * H, r * H + H, lanes):
            at = z + 3 * r * H + j
            i = _activate(net.recurrent, _load(record, at))
            f = _activate(net.recurrent, _load(record, at + H))
            g = _activate(net.activation, _load(record, at + 2 * H))
            o = _activate(net.recurrent, _load(record, at + 3 * H))
            state = f * _load(record, c + j) + i * g
            out = _activate(net.activation, state)
            _store(record, at, i)
            _store(record, at + H, f)
            _store(record, at + 2 * H, g)
            _store(record, at + 3 * H, o)
            _store(record, c + b * H + j, state)
            _store(record, seen + j, out)
            _store(record, h + b * H + j, o * out)
        after = h + (b + r) * H
        record[after + net.hidden : after + H] = 0


@njit(cache=True, _nrt=False)
def _forward(
    net: Net, theta: Array, flipped: Array, record: Array, part: Array, chunk: Chunk, row: int,
    b: int, dropout: float, head_dropout: float, seed: int,
) -> None:  # fmt: skip
    """Run rows ``row`` to ``row + b`` of the batch up to the outputs."""
    _apart()
    H, steps, n = net.units, chunk.steps, chunk.steps * b
    for t in range(steps):
        for r in range(b):
            at = part[X] + (t * b + r) * net.inputs
            from_, inside = chunk.rows[row + r, 0] + t, t < chunk.rows[row + r, 1]
            for j in range(net.width):
                record[at + j] = chunk.x[from_, j] if inside else 0.0
            record[at + net.width : at + net.inputs] = 0

    below, width = part[X], net.inputs
    for layer in range(net.layers):
        own = LAYER + PARTS * layer
        z, h, c, seen = (
            part[own + GATES],
            part[own + STATE],
            part[own + CELL],
            part[own + SEEN],
        )
        weight_ih, weight_hh, bias = (
            net.at[3 * layer],
            net.at[3 * layer + 1],
            net.at[3 * layer + 2],
        )
        for r in range(b):
            for j in range(H):
                record[h + r * H + j] = chunk.state[layer, 0, row + r, j]
                record[c + r * H + j] = chunk.state[layer, 1, row + r, j]
        for p in range(n):
            for j in range(4 * H):
                record[z + p * 4 * H + j] = theta[bias + j]
        _through(n, 4 * H, width, record, below, flipped, weight_ih, z)
        for t in range(steps):
            now = t * b * H
            _through(b, 4 * H, H, record, h + now, flipped, weight_hh, z + 4 * now)
            _cell(net, record, z + 4 * now, h + now, c + now, seen + now, b)
        for r in range(b):
            last = (chunk.rows[row + r, 1] * b + r) * H
            for j in range(H):
                chunk.state[layer, 0, row + r, j] = record[h + last + j]
                chunk.state[layer, 1, row + r, j] = record[c + last + j]
        below, width = h + b * H, H
        drop = dropout if layer + 1 < net.layers else head_dropout
        if drop > 0.0:
            to, batch = part[own + DROPPED], len(chunk.rows)
            _drop(record, below, to, steps, b, H, batch, row, layer, drop, seed)
            below = to

    out, columns, head = part[OUT], net.columns, 3 * net.layers
    for p in range(n):
        for k in range(columns):
            record[out + p * columns + k] = theta[net.at[head + 1] + k]
    _through(n, columns, H, record, below, flipped, net.at[head], out)
    _through(n, columns, net.inputs, record, part[X], flipped, net.at[head + 2], out)
    if net.head != cell.LINEAR:
        for at in range(out, out + n * columns, _lanes(record)):
            _store(record, at, _activate(net.head, _load(record, at)))


# --- loss and backward ----------------------------------------------------------------------------


@njit(cache=True, _nrt=False)
def _score(
    net: Net,
    record: Array,
    out: int,
    chunk: Chunk,
    row: int,
    b: int,
    loss: int,
    learn: bool,
) -> tuple[float, float]:
    """Sum of the losses of a shard and their number; to learn, outputs become their gradients."""
    _apart()
    total, count = 0.0, 0.0
    for t in range(chunk.steps):
        for r in range(b):
            start, length, quiet = chunk.rows[row + r]
            at = out + (t * b + r) * net.columns
            for k in range(net.outputs):
                d = record.dtype.type(0)
                if quiet <= t < length:
                    error = record[at + k] - chunk.target[start + t, k]
                    if error == error:  # else there is no target
                        count += 1.0
                        size = abs(error)
                        weight = chunk.weight[k]
                        if loss == MSE:
                            total += weight * error * error
                            d = weight * (error + error)
                        elif loss == HUBER and size <= 1:
                            total += 0.5 * weight * error * error
                            d = weight * error
                        else:
                            total += weight * (size - (0.5 if loss == HUBER else 0.0))
                            d = weight * np.sign(error)
                if learn:
                    record[at + k] = d * _slope(net.head, record[at + k])
            if learn:
                record[at + net.outputs : at + net.columns] = 0
    return total, count


@njit(cache=True, _nrt=False)
def _add_rows(record: Array, at: int, rows: int, n: int, to: int) -> None:
    """Add the sum of rows of n columns at ``at`` to what stands at ``to``."""
    for p in range(rows):
        for j in range(n):
            record[to + j] += record[at + p * n + j]


@njit(cache=True, _nrt=False)
def _cell_back(
    net: Net, record: Array, z: int, c: int, seen: int, dh: int, dc: int, b: int
) -> None:
    """One step back: from the gradients of h and c to those at z, and of the c before the step."""
    H, lanes = net.units, _lanes(record)
    for r in range(b):
        for j in range(r * H, r * H + H, lanes):
            at = z + 3 * r * H + j
            i, f = _load(record, at), _load(record, at + H)
            g, o = _load(record, at + 2 * H), _load(record, at + 3 * H)
            out, back = _load(record, seen + j), _load(record, dh + j)
            d = _load(record, dc + j) + back * o * _slope(net.activation, out)
            _store(record, at, d * g * _slope(net.recurrent, i))
            _store(record, at + H, d * _load(record, c + j) * _slope(net.recurrent, f))
            _store(record, at + 2 * H, d * i * _slope(net.activation, g))
            _store(record, at + 3 * H, back * out * _slope(net.recurrent, o))
            _store(record, dc + j, d * f)


@njit(cache=True, _nrt=False)
def _outer(record: Array, rows: int, m: int, n: int, a: int, b: int, to: int) -> None:
    """Add A.T @ B to the matrix (m, n) at ``to``, for A (rows, m) and B (rows, n)."""
    _multiply(m, n, rows, record, a, 1, m, record, b, n, record, to, n)


@njit(cache=True, _nrt=False)
def _back(record: Array, rows: int, m: int, n: int, a: int, theta: Array, w: int, to: int) -> None:
    """Add A @ W to the rows at ``to``, for A (rows, m) and the parameters W (m, n)."""
    _multiply(rows, n, m, record, a, m, 1, theta, w, n, record, to, n)


@njit(cache=True, _nrt=False)
def _backward(
    net: Net, theta: Array, record: Array, part: Array, steps: int, batch: int, row: int, b: int,
    dropout: float, head_dropout: float, seed: int,
) -> None:  # fmt: skip
    """Gradient of a shard's sum of losses, from the gradients of its outputs."""
    _apart()
    H, inputs, columns, n = net.units, net.inputs, net.columns, steps * b
    x, out, dh, dc, gradient = part[X], part[OUT], part[DH], part[DC], part[GRADIENT]
    record[gradient : gradient + net.at[-1]] = 0

    head, highest = 3 * net.layers, LAYER + PARTS * (net.layers - 1)
    top = part[highest + DROPPED] if head_dropout > 0.0 else part[highest + STATE] + b * H
    _outer(record, n, columns, H, out, top, gradient + net.at[head])
    _add_rows(record, out, n, columns, gradient + net.at[head + 1])
    _outer(record, n, columns, inputs, out, x, gradient + net.at[head + 2])
    record[dh : dh + n * H] = 0
    _back(record, n, columns, H, out, theta, net.at[head], dh)

    for layer in range(net.layers - 1, -1, -1):
        own = LAYER + PARTS * layer
        z, h, c, seen = (
            part[own + GATES],
            part[own + STATE],
            part[own + CELL],
            part[own + SEEN],
        )
        weight_ih, weight_hh, bias = (
            net.at[3 * layer],
            net.at[3 * layer + 1],
            net.at[3 * layer + 2],
        )
        drop = dropout if layer + 1 < net.layers else head_dropout
        if drop > 0.0:
            _drop(record, dh, dh, steps, b, H, batch, row, layer, drop, seed)
        record[dc : dc + b * H] = 0
        for t in range(steps - 1, -1, -1):
            now = t * b * H
            _cell_back(net, record, z + 4 * now, c + now, seen + now, dh + now, dc, b)
            if t:
                _back(record, b, 4 * H, H, z + 4 * now, theta, weight_hh, dh + now - b * H)
        below, width = x, inputs
        if layer:
            lower = own - PARTS
            below = part[lower + DROPPED] if dropout > 0.0 else part[lower + STATE] + b * H
            width = H
        _outer(record, n, 4 * H, width, z, below, gradient + weight_ih)
        _outer(record, n, 4 * H, H, z, h, gradient + weight_hh)
        _add_rows(record, z, n, 4 * H, gradient + bias)
        if layer:
            record[dh : dh + n * H] = 0
            _back(record, n, 4 * H, H, z, theta, weight_ih, dh)


# --- the update -----------------------------------------------------------------------------------


@njit(cache=True, _nrt=False)
def _shard(
    net: Net, theta: Array, room: Room, chunk: Chunk, s: int, shards: int, loss: int,
    dropout: float, head_dropout: float, seed: int, learn: bool,
) -> None:  # fmt: skip
    _apart()
    batch, record, part = len(chunk.rows), room.record[s], room.at
    row = s * batch // shards
    b = (s + 1) * batch // shards - row
    _forward(
        net,
        theta,
        room.flipped,
        record,
        part,
        chunk,
        row,
        b,
        dropout,
        head_dropout,
        seed,
    )
    total, count = _score(net, record, part[OUT], chunk, row, b, loss, learn)
    room.score[s, 0], room.score[s, 1] = total, count
    if learn:
        _backward(
            net,
            theta,
            record,
            part,
            chunk.steps,
            batch,
            row,
            b,
            dropout,
            head_dropout,
            seed,
        )
    elif len(chunk.prediction):
        for r in range(b):
            for t in range(chunk.rows[row + r, 1]):
                at, to = (
                    part[OUT] + (t * b + r) * net.columns,
                    chunk.rows[row + r, 0] + t,
                )
                for k in range(net.outputs):
                    chunk.prediction[to, k] = record[at + k]


@njit(cache=True, nogil=True, _nrt=False)
def _work_through(
    tally: NDArray[np.int64], all_: bool, net: Net, theta: Array, room: Room, chunk: Chunk,
    loss: int, dropout: float, head_dropout: float, seed: int, learn: bool,
) -> None:  # fmt: skip
    """Take shards of a job as long as there are any, or until ``all_`` are done.

    tally: how many shards are taken, how many are done, how many there are.
    """
    shards, words = tally[2], simd.address(tally)
    s = pool.add(words, 0, 1)
    while s < shards:
        _shard(net, theta, room, chunk, s, shards, loss, dropout, head_dropout, seed, learn)
        pool.add(words, 1, 1)
        s = pool.add(words, 0, 1)
    while all_ and pool.read(words, 1) < shards:
        pool.pause()


@njit(cache=True, nogil=True, _nrt=False)
def _settle(tally: NDArray[np.int64]) -> None:
    """Leave no shard of a job to take, and wait for those that were begun."""
    words = simd.address(tally)
    begun = min(pool.add(words, 0, FULL), tally[2])
    while pool.read(words, 1) < begun:
        pool.pause()


@njit(cache=True, error_model="numpy", _nrt=False)
def _descend(
    theta: Array, room: Room, shards: int, state: Adam, clip: float, rate: float, root: float,
    epsilon: float, decay: float, ema: float,
) -> None:  # fmt: skip
    """Add the gradients of the shards in their order, clip, and make Adam's step."""
    _apart()
    kind, size, first = theta.dtype.type, len(theta), room.at[GRADIENT]
    gradient = state.gradient
    count = 0.0
    for s in range(shards):
        count += room.score[s, 1]
    over = kind(1.0 / max(count, 1.0))
    for j in range(size):
        gradient[j] = room.record[0, first + j]
    for s in range(1, shards):
        for j in range(size):
            gradient[j] += room.record[s, first + j]
    square = 0.0
    for j in range(size):
        gradient[j] *= over
        square += gradient[j] * gradient[j]
    norm = np.sqrt(square)
    if rate == 0.0 or not np.isfinite(norm):
        return
    factor = kind(clip / (norm + 1e-6) if norm > clip > 0.0 else 1.0)
    b1, b2, one = kind(0.9), kind(0.999), kind(1)
    rate_, root_, epsilon_, keep = (
        kind(rate),
        kind(root),
        kind(epsilon),
        kind(1.0 - decay),
    )
    new = kind(1.0 - ema)
    for j in range(size):
        g = gradient[j] * factor
        m = b1 * state.first[j] + (one - b1) * g
        v = b2 * state.second[j] + (one - b2) * g * g
        state.first[j], state.second[j] = m, v
        theta[j] = theta[j] * keep - rate_ * m / (np.sqrt(v) / root_ + epsilon_)
        state.average[j] += new * (theta[j] - state.average[j])


def learn(
    net: Net,
    theta: Array,
    work: Work,
    chunk: Chunk,
    state: Adam,
    time: int,
    rate: float,
    *,
    loss: str = "mse",
    clip: float = 0.0,
    dropout: float = 0.0,
    head_dropout: float = 0.0,
    decay: float = 0.0,
    epsilon: float = 1e-8,
    ema: float = 0.0,
    seed: int = 0,
) -> float:
    """One update of ``theta`` by Adam on a chunk; returns the mean loss of its scored outputs.

    Args:
        net, work, state: of this network, ``work`` with room for the chunk.
        theta: (P,) the parameters, changed in place.
        chunk: the batch; its state is moved to its end.
        time: number of this update, from 1.
        rate: learning rate; 0 computes ``state.gradient`` and leaves ``theta`` as it is.
        loss: of ``LOSSES``; Huber's turns from square to line at 1.
        clip: largest Euclidean norm of the gradient; 0: any.
        dropout: share of the units between layers that is dropped.
        head_dropout: share of the units between the last layer and the head that is dropped.
        decay: weight decay, decoupled (Loshchilov & Hutter 2019), times ``rate``.
        epsilon: of Adam, added after the bias correction as PyTorch does.
        ema: share of the old in ``state.average`` that an update keeps.
        seed: of the dropout.
    """
    rate, root, decay = rate / (1 - 0.9**time), math.sqrt(1 - 0.999**time), decay * rate
    code = LOSSES.index(loss)
    _run(net, theta, work, chunk, code, dropout, head_dropout, seed + time, True)
    _descend(
        theta, work.room, -(-len(chunk.rows) // SHARD), state, clip, rate, root, epsilon, decay, ema
    )
    total, count = _scored(work, chunk)
    return total / max(count, 1)


def predict(
    net: Net, theta: Array, work: Work, chunk: Chunk, loss: str = "mse"
) -> tuple[float, int]:
    """Sum of the losses of a chunk and how many outputs were scored; nothing is learned.

    The outputs go to ``chunk.prediction``, and the state of the chunk is moved to its end.
    """
    _run(net, theta, work, chunk, LOSSES.index(loss), 0.0, 0.0, 0, False)
    return _scored(work, chunk)


def _run(
    net: Net, theta: Array, work: Work, chunk: Chunk, loss: int, dropout: float,
    head_dropout: float, seed: int, learn: bool,
) -> None:  # fmt: skip
    """All shards of a chunk, forward and, to learn, backward."""
    room = work.room
    _flip(net, theta, room.flipped)
    operations = 2.0 * net.at[-1] * chunk.steps * len(chunk.rows) * (3 if learn else 1)
    work.share(
        -(-len(chunk.rows) // SHARD),
        operations,
        net,
        theta,
        room,
        chunk,
        loss,
        dropout,
        head_dropout,
        seed,
        learn,
    )


def _scored(work: Work, chunk: Chunk) -> tuple[float, int]:
    total, count = work.room.score[: -(-len(chunk.rows) // SHARD)].sum(axis=0)
    return float(total), int(count)
