"""Forward and backward passes of stacked LSTM layers and head through a chunk of steps, compiled.

Parameters lie in one flat vector, each matrix in PyTorch's order with every dimension padded to a
multiple of 16; what pads is zero and stays zero. What a shard of the batch computes lies in one
flat record, so that compiled functions take few arguments and compile fast.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm.jit import njit
from streamlstm.kernels import cell
from streamlstm.precision import Array, activate, apart, lanes, load, multiply, noise, slope, store

PANEL = 64
"""Columns of a transposed weight matrix that lie together."""
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
    activations: NDArray[np.int64]
    """(layers, 2) of each layer: its activation, and that of its gates"""
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
def flip(net: Net, theta: Array, flipped: Array) -> None:
    """Transpose the weight matrices of ``theta`` into ``flipped``, for the forward pass."""
    for n in range(net.layers):
        below = net.units if n else net.inputs
        _flip_matrix(theta, flipped, net.at[3 * n], 4 * net.units, below)
        _flip_matrix(theta, flipped, net.at[3 * n + 1], 4 * net.units, net.units)
    head = 3 * net.layers
    _flip_matrix(theta, flipped, net.at[head], net.columns, net.units)
    _flip_matrix(theta, flipped, net.at[head + 2], net.columns, net.inputs)


@njit(cache=True, _nrt=False)
def _through(
    rows: int, n: int, k: int, record: Array, a: int, flipped: Array, weight: int, c: int
) -> None:
    """C (rows, n) += A (rows, k) @ W.T, A and C in the record, W (n, k) flipped."""
    for first in range(0, n, PANEL):
        wide = min(PANEL, n - first)
        multiply(
            rows, wide, k, record, a, k, 1, flipped, weight + first * k, wide, record, c + first, n
        )


@njit(cache=True, _nrt=False)
def _drop(
    record: Array, source: int, to: int, steps: int, b: int, units: int, batch: int, row: int,
    layer: int, dropout: float, seed: int,
) -> None:  # fmt: skip
    """Zero each element with probability ``dropout``; the others grow to make up for it."""
    apart()
    limit = int(dropout * 2**24)
    grow = record.dtype.type(1.0 / (1.0 - dropout))
    for t in range(steps):
        for r in range(b):
            p = (t * b + r) * units
            place = (t * batch + row + r) * units
            for j in range(units):
                kept = noise(seed, layer, place + j) >= limit
                record[to + p + j] = record[source + p + j] * grow if kept else 0.0


@njit(cache=True, _nrt=False)
def _cell(net: Net, layer: int, record: Array, z: int, h: int, c: int, seen: int, b: int) -> None:
    """One step of b rows: from pre-activations at z to h and c, keeping what the way back needs.

    h, c: where the states before the step lie; those after it follow.
    """
    H, wide = net.units, lanes(record)
    activation, recurrent = net.activations[layer]
    for r in range(b):
        for j in range(r * H, r * H + H, wide):
            at = z + 3 * r * H + j
            i = activate(recurrent, load(record, at))
            f = activate(recurrent, load(record, at + H))
            g = activate(activation, load(record, at + 2 * H))
            o = activate(recurrent, load(record, at + 3 * H))
            state = f * load(record, c + j) + i * g
            out = activate(activation, state)
            store(record, at, i)
            store(record, at + H, f)
            store(record, at + 2 * H, g)
            store(record, at + 3 * H, o)
            store(record, c + b * H + j, state)
            store(record, seen + j, out)
            store(record, h + b * H + j, o * out)
        after = h + (b + r) * H
        record[after + net.hidden : after + H] = 0


@njit(cache=True, _nrt=False)
def _forward(
    net: Net, theta: Array, flipped: Array, record: Array, part: Array, chunk: Chunk, row: int,
    b: int, dropout: float, head_dropout: float, seed: int,
) -> None:  # fmt: skip
    """Run rows ``row`` to ``row + b`` of the batch up to the outputs."""
    apart()
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
        z, h, c, seen = (part[own + GATES], part[own + STATE], part[own + CELL], part[own + SEEN])
        first = 3 * layer
        weight_ih, weight_hh, bias = net.at[first], net.at[first + 1], net.at[first + 2]
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
            _cell(net, layer, record, z + 4 * now, h + now, c + now, seen + now, b)
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
        for at in range(out, out + n * columns, lanes(record)):
            store(record, at, activate(net.head, load(record, at)))


# --- loss and backward ----------------------------------------------------------------------------


@njit(cache=True, _nrt=False)
def _score(
    net: Net, record: Array, out: int, chunk: Chunk, row: int, b: int, loss: int, learn: bool
) -> tuple[float, float]:
    """Sum of the losses of a shard and their number; to learn, outputs become their gradients."""
    apart()
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
                    record[at + k] = d * slope(net.head, record[at + k])
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
    net: Net, layer: int, record: Array, z: int, c: int, seen: int, dh: int, dc: int, b: int
) -> None:
    """One step back: from the gradients of h and c to those at z, and of the c before the step."""
    H, wide = net.units, lanes(record)
    activation, recurrent = net.activations[layer]
    for r in range(b):
        for j in range(r * H, r * H + H, wide):
            at = z + 3 * r * H + j
            i, f = load(record, at), load(record, at + H)
            g, o = load(record, at + 2 * H), load(record, at + 3 * H)
            out, back = load(record, seen + j), load(record, dh + j)
            d = load(record, dc + j) + back * o * slope(activation, out)
            store(record, at, d * g * slope(recurrent, i))
            store(record, at + H, d * load(record, c + j) * slope(recurrent, f))
            store(record, at + 2 * H, d * i * slope(activation, g))
            store(record, at + 3 * H, back * out * slope(recurrent, o))
            store(record, dc + j, d * f)


@njit(cache=True, _nrt=False)
def _outer(record: Array, rows: int, m: int, n: int, a: int, b: int, to: int) -> None:
    """Add A.T @ B to the matrix (m, n) at ``to``, for A (rows, m) and B (rows, n)."""
    multiply(m, n, rows, record, a, 1, m, record, b, n, record, to, n)


@njit(cache=True, _nrt=False)
def _back(record: Array, rows: int, m: int, n: int, a: int, theta: Array, w: int, to: int) -> None:
    """Add A @ W to the rows at ``to``, for A (rows, m) and the parameters W (m, n)."""
    multiply(rows, n, m, record, a, m, 1, theta, w, n, record, to, n)


@njit(cache=True, _nrt=False)
def _backward(
    net: Net, theta: Array, record: Array, part: Array, steps: int, batch: int, row: int, b: int,
    dropout: float, head_dropout: float, seed: int,
) -> None:  # fmt: skip
    """Gradient of a shard's sum of losses, from the gradients of its outputs."""
    apart()
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
        z, h, c, seen = (part[own + GATES], part[own + STATE], part[own + CELL], part[own + SEEN])
        first = 3 * layer
        weight_ih, weight_hh, bias = net.at[first], net.at[first + 1], net.at[first + 2]
        drop = dropout if layer + 1 < net.layers else head_dropout
        if drop > 0.0:
            _drop(record, dh, dh, steps, b, H, batch, row, layer, drop, seed)
        record[dc : dc + b * H] = 0
        for t in range(steps - 1, -1, -1):
            now = t * b * H
            _cell_back(net, layer, record, z + 4 * now, c + now, seen + now, dh + now, dc, b)
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


# --- a shard --------------------------------------------------------------------------------------


@njit(cache=True, _nrt=False)
def take(
    net: Net, theta: Array, room: Room, chunk: Chunk, s: int, shards: int, loss: int,
    dropout: float, head_dropout: float, seed: int, learn: bool,
) -> None:  # fmt: skip
    """Rows of shard ``s`` through all steps: scores, and gradients or predictions."""
    apart()
    batch, record, part = len(chunk.rows), room.record[s], room.at
    row = s * batch // shards
    b = (s + 1) * batch // shards - row
    _forward(net, theta, room.flipped, record, part, chunk, row, b, dropout, head_dropout, seed)
    total, count = _score(net, record, part[OUT], chunk, row, b, loss, learn)
    room.score[s, 0], room.score[s, 1] = total, count
    if learn:
        _backward(net, theta, record, part, chunk.steps, batch, row, b, dropout, head_dropout, seed)
    elif len(chunk.prediction):
        for r in range(b):
            for t in range(chunk.rows[row + r, 1]):
                at, to = (part[OUT] + (t * b + r) * net.columns, chunk.rows[row + r, 0] + t)
                for k in range(net.outputs):
                    chunk.prediction[to, k] = record[at + k]
