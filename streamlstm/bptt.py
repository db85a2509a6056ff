"""Backpropagation through time for stacked LSTM layers and head, compiled, parallel over the batch.

The truncated form (Williams & Peng 1990): a chunk of T steps starts from a given state and the
gradient stops there. The batch is cut into shards of ``SHARD`` rows, each computed by one thread
from first to last step, and the gradients of the shards are added in their order: the result is
the same bits for any number of threads.

Parameters lie in one flat vector, each matrix in PyTorch's order with every dimension padded to a
multiple of 16; what pads is zero and stays zero. Everything is generic in its precision: float32
goes through the register-blocked kernels, float64 through plain loops, for checking gradients.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from streamlstm.kernels import cell, simd
from streamlstm.model import Spec

SHARD = 16
"""Rows of the batch that one thread takes through all steps."""
PANEL = 64
"""Columns of a transposed weight matrix that lie together."""
BLOCK = 2048
"""Parameters that are reduced and updated together."""
LOSSES = ("mse", "mae", "huber")
MSE, MAE, HUBER = range(3)

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
    of the head begin in the parameter vector; then its length"""


class Work(NamedTuple):
    """Everything one update writes to; S shards of b rows, T steps, L layers, P parameters."""

    x: Array
    """(S, T * b, inputs)"""
    gates: Array
    """(S, L, T * b, 4 * units) activations i, f, g, o; on the way back the gradient before them"""
    h: Array
    """(S, L, (T + 1) * b, units) the state carried in, then that of each step"""
    c: Array
    """(S, L, (T + 1) * b, units)"""
    a: Array
    """(S, L, T * b, units) activation of the cell state"""
    dropped: Array
    """(S, L - 1, T * b, units) input of the upper layers after dropout; empty without"""
    out: Array
    """(S, T * b, columns) output of the head; on the way back the gradient before its activation"""
    dh: Array
    """(S, T * b, units)"""
    dc: Array
    """(S, b, units)"""
    flipped: Array
    """(P,) weight matrices transposed, in panels of ``PANEL`` columns"""
    gradients: Array
    """(S, P)"""
    loss: NDArray[np.float64]
    """(S,)"""
    count: NDArray[np.int64]
    """(S,) outputs that had a target"""


class Chunk(NamedTuple):
    """A batch of B rows, each up to T consecutive steps out of a pool of N."""

    steps: int
    """T"""
    x: Array
    """(N, width)"""
    target: Array
    """(N, outputs) NaN where missing"""
    start: NDArray[np.int64]
    """(B,) first step of each row in the pool"""
    length: NDArray[np.int64]
    """(B,) how many steps of each row there are"""
    quiet: NDArray[np.int64]
    """(B,) how many of its first steps are not scored"""
    state: Array
    """(L, 2, B, units) h and c at the start; moved to the end by the chunk"""


class Adam(NamedTuple):
    """State of the optimiser (Kingma & Ba 2015)."""

    gradient: Array
    """(P,) of the last update, mean over the scored outputs, before clipping"""
    first: Array
    """(P,)"""
    second: Array
    """(P,)"""
    norms: NDArray[np.float64]
    """(blocks,) squared norm of each block of the gradient"""


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
        padded += [(4, net.units, net.units if n else net.inputs), (4, net.units, net.units)]
        padded += [(4, net.units)]
    padded += [(net.columns, net.units), (net.columns,), (net.columns, net.inputs)]
    views = {}
    shapes = spec.weight_shapes()
    for (name, shape), full, at in zip(shapes.items(), padded, net.at, strict=False):
        array = vector[at : at + math.prod(full)].reshape(full)
        if len(full) > len(shape):  # a gate apart from the other
            shape = (4, spec.hidden, *shape[1:])
        views[name] = array[tuple(slice(size) for size in shape)]
    return views


def pack(spec: Spec, weights: Mapping[str, Array], dtype: type = np.float32) -> Array:
    """The parameter vector of ``weights``, named and shaped as in the model file."""
    vector = np.zeros(net_of(spec).at[-1], dtype)
    for name, view in _views(spec, vector).items():
        view[...] = np.asarray(weights[name]).reshape(view.shape)
    return vector


def unpack(spec: Spec, vector: Array) -> dict[str, Array]:
    """The named weights of a parameter vector, copied."""
    shapes = spec.weight_shapes()
    return {name: view.reshape(shapes[name]).copy() for name, view in _views(spec, vector).items()}


def allocate(net: Net, batch: int, steps: int, dropout: bool, dtype: type = np.float32) -> Work:
    """Room for updates of up to ``batch`` rows by ``steps`` steps."""
    shards, rows = -(-batch // SHARD), min(batch, SHARD)
    S, L, H, n = shards, net.layers, net.units, steps * rows

    def zeros(*shape: int) -> Array:
        return np.zeros(shape, dtype)

    return Work(
        x=zeros(S, n, net.inputs),
        gates=zeros(S, L, n, 4 * H),
        h=zeros(S, L, n + rows, H),
        c=zeros(S, L, n + rows, H),
        a=zeros(S, L, n, H),
        dropped=zeros(S, L - 1, n if dropout else 0, H),
        out=zeros(S, n, net.columns),
        dh=zeros(S, n, H),
        dc=zeros(S, rows, H),
        flipped=zeros(net.at[-1]),
        gradients=zeros(S, net.at[-1]),
        loss=np.zeros(S),
        count=np.zeros(S, np.int64),
    )


def adam(net: Net, dtype: type = np.float32) -> Adam:
    """A new optimiser."""
    size = net.at[-1]
    return Adam(*(np.zeros(size, dtype) for _ in range(3)), np.zeros(-(-size // BLOCK)))


# --- what depends on the precision ----------------------------------------------------------------


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
    return lambda array, at: array.ravel()[at]


def _store(array: Any, at: int, value: Any) -> None:
    raise NotImplementedError


@overload(_store, strict=False)
def _(array: Any, at: int, value: Any) -> Any:
    if _is_single(array):
        return lambda array, at, value: simd.store(array, at, value)

    def plain(array: Any, at: int, value: Any) -> None:
        array.ravel()[at] = value

    return plain


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
            simd.gemm(simd.host_tile(), m, n, k, a, a_at, a_row, a_k, b, b_at, b_k, c, c_at, c_row)

        return fast

    def plain(m, n, k, a, a_at, a_row, a_k, b, b_at, b_k, c, c_at, c_row):  # type: ignore[no-untyped-def]
        a, b, c = a.ravel(), b.ravel(), c.ravel()
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
            builder.fcmp_ordered(">", args[0], constant(0.0)), constant(1.0), constant(0.0)
        )

    return y(y), generate


@njit(cache=True)
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


# --- forward --------------------------------------------------------------------------------------


@njit(cache=True)
def _flip_matrix(theta: Array, flipped: Array, at: int, n: int, k: int) -> None:
    """Transpose a matrix of n rows and k columns, in panels of ``PANEL`` of its rows."""
    for first in range(0, n, PANEL):
        wide = min(PANEL, n - first)
        for column in range(k):
            to = at + first * k + column * wide
            for j in range(wide):
                flipped[to + j] = theta[at + (first + j) * k + column]


@njit(cache=True)
def _flip(net: Net, theta: Array, flipped: Array) -> None:
    for n in range(net.layers):
        below = net.units if n else net.inputs
        _flip_matrix(theta, flipped, net.at[3 * n], 4 * net.units, below)
        _flip_matrix(theta, flipped, net.at[3 * n + 1], 4 * net.units, net.units)
    head = 3 * net.layers
    _flip_matrix(theta, flipped, net.at[head], net.columns, net.units)
    _flip_matrix(theta, flipped, net.at[head + 2], net.columns, net.inputs)


@njit(cache=True)
def _through(
    m: int, n: int, k: int, a: Array, a_at: int, flipped: Array, at: int, c: Array, c_at: int
) -> None:
    """C (m, n) += A (m, k) @ W.T for a matrix W (n, k) at ``at`` of the flipped parameters."""
    for first in range(0, n, PANEL):
        wide = min(PANEL, n - first)
        _multiply(m, wide, k, a, a_at, k, 1, flipped, at + first * k, wide, c, c_at + first, n)


@njit(cache=True)
def _fill_rows(array: Array, rows: int, theta: Array, at: int) -> None:
    """Set each of the first rows to the parameters from ``at`` on."""
    for p in range(rows):
        for j in range(array.shape[1]):
            array[p, j] = theta[at + j]


@njit(cache=True)
def _noise(seed: int, layer: int, place: int) -> int:
    """24 random bits of a place (SplitMix64's finaliser over a counter)."""
    z = np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(place * 64 + layer + 1)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64((z ^ (z >> np.uint64(31))) >> np.uint64(40))


@njit(cache=True)
def _drop(
    net: Net, source: Array, source_at: int, to: Array, layer: int, row: int, batch: int, b: int,
    steps: int, dropout: float, seed: int,
) -> None:  # fmt: skip
    """Zero each element with probability ``dropout``, the others grow to make up for it."""
    limit = int(dropout * 2**24)
    grow = to.dtype.type(1.0 / (1.0 - dropout))
    flat, out = source.ravel(), to.ravel()
    for t in range(steps):
        for r in range(b):
            p = (t * b + r) * net.units
            place = (t * batch + row + r) * net.units
            for j in range(net.units):
                kept = _noise(seed, layer, place + j) >= limit
                out[p + j] = flat[source_at + p + j] * grow if kept else to.dtype.type(0)


@njit(cache=True)
def _cell(net: Net, z: Array, h: Array, c: Array, a: Array, t: int, b: int) -> None:
    """From pre-activations to h and c of step t, for all rows; keeps what the way back needs."""
    H, lanes = net.units, _lanes(z)
    for p in range(t * b, t * b + b):
        new = (p + b) * H
        for j in range(0, H, lanes):
            at = p * 4 * H + j
            i = _activate(net.recurrent, _load(z, at))
            f = _activate(net.recurrent, _load(z, at + H))
            g = _activate(net.activation, _load(z, at + 2 * H))
            o = _activate(net.recurrent, _load(z, at + 3 * H))
            cell_state = f * _load(c, p * H + j) + i * g
            seen = _activate(net.activation, cell_state)
            _store(z, at, i)
            _store(z, at + H, f)
            _store(z, at + 2 * H, g)
            _store(z, at + 3 * H, o)
            _store(c, new + j, cell_state)
            _store(a, p * H + j, seen)
            _store(h, new + j, o * seen)
        for j in range(net.hidden, H):
            h[p + b, j] = 0.0


@njit(cache=True)
def _forward(
    net: Net, theta: Array, work: Work, chunk: Chunk, s: int, row: int, b: int, dropout: float,
    seed: int,
) -> None:  # fmt: skip
    """Run rows ``row`` to ``row + b`` of the batch, the shard ``s``, up to the outputs."""
    H, steps, n = net.units, chunk.steps, chunk.steps * b
    x = work.x[s]
    for t in range(steps):
        for r in range(b):
            at = chunk.start[row + r] + t
            inside = t < chunk.length[row + r]
            for j in range(net.width):
                x[t * b + r, j] = chunk.x[at, j] if inside else x.dtype.type(0)

    below, below_at, below_width = x, 0, net.inputs
    for layer in range(net.layers):
        z, h, c, a = work.gates[s, layer], work.h[s, layer], work.c[s, layer], work.a[s, layer]
        at = net.at[3 * layer :]
        for r in range(b):
            for j in range(H):
                h[r, j] = chunk.state[layer, 0, row + r, j]
                c[r, j] = chunk.state[layer, 1, row + r, j]
        _fill_rows(z, n, theta, at[2])
        _through(n, 4 * H, below_width, below, below_at, work.flipped, at[0], z, 0)
        for t in range(steps):
            _through(b, 4 * H, H, h, t * b * H, work.flipped, at[1], z, t * b * 4 * H)
            _cell(net, z, h, c, a, t, b)
        for r in range(b):
            last = chunk.length[row + r] * b + r
            for j in range(H):
                chunk.state[layer, 0, row + r, j] = h[last, j]
                chunk.state[layer, 1, row + r, j] = c[last, j]
        below, below_at, below_width = h, b * H, H
        if dropout > 0.0 and layer + 1 < net.layers:
            batch = len(chunk.start)
            to = work.dropped[s, layer]
            _drop(net, h, b * H, to, layer, row, batch, b, steps, dropout, seed)
            below, below_at = to, 0

    out, head = work.out[s], net.at[3 * net.layers :]
    _fill_rows(out, n, theta, head[1])
    top = work.h[s, net.layers - 1]
    _through(n, net.columns, H, top, b * H, work.flipped, head[0], out, 0)
    _through(n, net.columns, net.inputs, x, 0, work.flipped, head[2], out, 0)
    if net.head != cell.LINEAR:
        for at in range(0, n * net.columns, _lanes(out)):
            _store(out, at, _activate(net.head, _load(out, at)))


# --- loss and backward ----------------------------------------------------------------------------


@njit(cache=True)
def _score(
    net: Net, work: Work, chunk: Chunk, s: int, row: int, b: int, loss: int, learn: bool
) -> None:
    """Sum of the losses of a shard; where it learns, outputs give way to their gradients."""
    out = work.out[s]
    total, count = 0.0, 0
    zero = out.dtype.type(0)
    for t in range(chunk.steps):
        for r in range(b):
            p = t * b + r
            scored = chunk.quiet[row + r] <= t < chunk.length[row + r]
            at = chunk.start[row + r] + t
            for k in range(net.outputs):
                d = zero
                if scored:
                    error = out[p, k] - chunk.target[at, k]
                    if error == error:
                        count += 1
                        size = abs(error)
                        if loss == MSE:
                            total += error * error
                            d = error + error
                        elif loss == HUBER and size <= 1:
                            total += 0.5 * error * error
                            d = error
                        else:
                            total += size - (0.5 if loss == HUBER else 0.0)
                            d = np.sign(error)
                if learn:
                    out[p, k] = d * _slope(net.head, out[p, k])
            if learn:
                for k in range(net.outputs, net.columns):
                    out[p, k] = zero
    work.loss[s], work.count[s] = total, count


@njit(cache=True)
def _add_rows(array: Array, rows: int, gradient: Array, at: int) -> None:
    """Add the first rows to the gradient from ``at`` on."""
    for p in range(rows):
        for j in range(array.shape[1]):
            gradient[at + j] += array[p, j]


@njit(cache=True)
def _cell_back(
    net: Net, z: Array, c: Array, a: Array, dh: Array, dc: Array, t: int, b: int
) -> None:
    """From the gradients of h and c at step t to those of pre-activations and of the earlier c."""
    H, lanes = net.units, _lanes(z)
    for r in range(b):
        p = t * b + r
        for j in range(0, H, lanes):
            at = p * 4 * H + j
            i, f = _load(z, at), _load(z, at + H)
            g, o = _load(z, at + 2 * H), _load(z, at + 3 * H)
            seen, back = _load(a, p * H + j), _load(dh, p * H + j)
            d = _load(dc, r * H + j) + back * o * _slope(net.activation, seen)
            _store(z, at, d * g * _slope(net.recurrent, i))
            _store(z, at + H, d * _load(c, p * H + j) * _slope(net.recurrent, f))
            _store(z, at + 2 * H, d * i * _slope(net.activation, g))
            _store(z, at + 3 * H, back * seen * _slope(net.recurrent, o))
            _store(dc, r * H + j, d * f)


@njit(cache=True)
def _backward(
    net: Net, theta: Array, work: Work, chunk: Chunk, s: int, row: int, b: int, dropout: float,
    seed: int,
) -> None:  # fmt: skip
    """Gradient of a shard's sum of losses, from the gradients of its outputs."""
    H, columns, inputs, steps, n = net.units, net.columns, net.inputs, chunk.steps, chunk.steps * b
    x, out, dh, dc = work.x[s], work.out[s], work.dh[s], work.dc[s]
    gradient, head = work.gradients[s], net.at[3 * net.layers :]
    gradient[:] = 0
    top = work.h[s, net.layers - 1]
    _multiply(columns, H, n, out, 0, 1, columns, top, b * H, H, gradient, head[0], H)
    _multiply(columns, inputs, n, out, 0, 1, columns, x, 0, inputs, gradient, head[2], inputs)
    _add_rows(out, n, gradient, head[1])
    dh[:] = 0
    _multiply(n, H, columns, out, 0, columns, 1, theta, head[0], H, dh, 0, H)

    for layer in range(net.layers - 1, -1, -1):
        z, h, c, a = work.gates[s, layer], work.h[s, layer], work.c[s, layer], work.a[s, layer]
        at = net.at[3 * layer :]
        dc[:] = 0
        for t in range(steps - 1, -1, -1):
            _cell_back(net, z, c, a, dh, dc, t, b)
            if t:
                now, before = t * b * 4 * H, (t - 1) * b * H
                _multiply(b, H, 4 * H, z, now, 4 * H, 1, theta, at[1], H, dh, before, H)
        _multiply(4 * H, H, n, z, 0, 1, 4 * H, h, 0, H, gradient, at[1], H)
        _add_rows(z, n, gradient, at[2])
        below, below_at, width = x, 0, inputs
        if layer:
            below, below_at, width = work.h[s, layer - 1], b * H, H
            if dropout > 0.0:
                below, below_at = work.dropped[s, layer - 1], 0
        _multiply(4 * H, width, n, z, 0, 1, 4 * H, below, below_at, width, gradient, at[0], width)
        if layer:
            dh[:] = 0
            _multiply(n, H, 4 * H, z, 0, 4 * H, 1, theta, at[0], H, dh, 0, H)
            if dropout > 0.0:
                batch = len(chunk.start)
                _drop(net, dh, 0, dh, layer - 1, row, batch, b, steps, dropout, seed)


# --- the update -----------------------------------------------------------------------------------


@njit(cache=True)
def _shard(
    net: Net, theta: Array, work: Work, chunk: Chunk, s: int, shards: int, loss: int,
    dropout: float, seed: int, learn: bool,
) -> tuple[int, int]:  # fmt: skip
    batch = len(chunk.start)
    row = s * batch // shards
    b = (s + 1) * batch // shards - row
    _forward(net, theta, work, chunk, s, row, b, dropout, seed)
    _score(net, work, chunk, s, row, b, loss, learn)
    if learn:
        _backward(net, theta, work, chunk, s, row, b, dropout, seed)
    return row, b


@njit(cache=True)
def _reduce(gradients: Array, shards: int, count: int, state: Adam, block: int) -> None:
    """Mean gradient of a block of parameters, the shards in their order, and its squared norm."""
    first, last = block * BLOCK, min((block + 1) * BLOCK, len(state.gradient))
    over = state.gradient.dtype.type(1.0 / max(count, 1))
    gradient = state.gradient[first:last]
    gradient[:] = gradients[0, first:last]
    for s in range(1, shards):
        gradient += gradients[s, first:last]
    norm = 0.0
    for j in range(len(gradient)):
        gradient[j] *= over
        norm += gradient[j] * gradient[j]
    state.norms[block] = norm


@njit(cache=True, error_model="numpy")
def _apply(
    theta: Array, state: Adam, block: int, factor: float, rate: float, root: float, epsilon: float,
    decay: float,
) -> None:  # fmt: skip
    """Adam's update of a block of parameters; ``factor`` clips the gradient."""
    kind = theta.dtype.type
    b1, b2 = kind(0.9), kind(0.999)
    shrink, rate_, root_ = kind(1.0 - decay), kind(rate), kind(root)
    factor_, epsilon_, one = kind(factor), kind(epsilon), kind(1)
    for j in range(block * BLOCK, min((block + 1) * BLOCK, len(theta))):
        g = state.gradient[j] * factor_
        m = b1 * state.first[j] + (one - b1) * g
        v = b2 * state.second[j] + (one - b2) * g * g
        state.first[j], state.second[j] = m, v
        theta[j] = theta[j] * shrink - rate_ * m / (np.sqrt(v) / root_ + epsilon_)


@njit(cache=True)
def _sum(array: Array, n: int) -> Any:
    """Sum of the first n, in their order (a sum in a parallel function would be cut by threads)."""
    total = array[0]
    for i in range(1, n):
        total += array[i]
    return total


@njit(cache=True, parallel=True)
def _learn(
    net: Net, theta: Array, work: Work, chunk: Chunk, state: Adam, loss: int, dropout: float,
    seed: int, clip: float, rate: float, root: float, epsilon: float, decay: float,
) -> tuple[float, int]:  # fmt: skip
    _flip(net, theta, work.flipped)
    shards = -(-len(chunk.start) // SHARD)
    for s in prange(shards):
        _shard(net, theta, work, chunk, s, shards, loss, dropout, seed, True)
    count = _sum(work.count, shards)
    blocks = len(state.norms)
    for block in prange(blocks):
        _reduce(work.gradients, shards, count, state, block)
    norm = np.sqrt(_sum(state.norms, blocks))
    factor = clip / (norm + 1e-6) if norm > clip > 0.0 else 1.0
    if rate > 0.0 and np.isfinite(norm):
        for block in prange(blocks):
            _apply(theta, state, block, factor, rate, root, epsilon, decay)
    return _sum(work.loss, shards), count


@njit(cache=True, parallel=True)
def _predict(
    net: Net, theta: Array, work: Work, chunk: Chunk, loss: int, prediction: Array
) -> tuple[float, int]:
    _flip(net, theta, work.flipped)
    shards = -(-len(chunk.start) // SHARD)
    for s in prange(shards):
        row, b = _shard(net, theta, work, chunk, s, shards, loss, 0.0, 0, False)
        if len(prediction):
            for r in range(row, row + b):
                for t in range(chunk.length[r]):
                    for k in range(net.outputs):
                        prediction[chunk.start[r] + t, k] = work.out[s, t * b + r - row, k]
    return _sum(work.loss, shards), _sum(work.count, shards)


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
    decay: float = 0.0,
    epsilon: float = 1e-8,
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
        decay: weight decay, decoupled (Loshchilov & Hutter 2019), times ``rate``.
        epsilon: of Adam, added after the bias correction as PyTorch does.
        seed: of the dropout.
    """
    total, count = _learn(
        net, theta, work, chunk, state, LOSSES.index(loss), dropout, seed + time, clip,
        rate / (1 - 0.9**time), math.sqrt(1 - 0.999**time), epsilon, decay * rate,
    )  # fmt: skip
    return float(total) / max(count, 1)


def predict(
    net: Net,
    theta: Array,
    work: Work,
    chunk: Chunk,
    *,
    loss: str = "mse",
    prediction: Array | None = None,
) -> tuple[float, int]:
    """Sum of the losses of a chunk and how many outputs were scored; nothing is learned.

    ``prediction`` (N, outputs), where given, receives the outputs in the place of the targets; the
    state of the chunk is moved to its end.
    """
    if prediction is None:
        prediction = np.zeros((0, net.outputs), theta.dtype)
    total, count = _predict(net, theta, work, chunk, LOSSES.index(loss), prediction)
    return float(total), int(count)
