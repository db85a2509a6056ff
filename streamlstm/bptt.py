"""Backpropagation through time for stacked LSTM layers and head, compiled, parallel over the batch.

The truncated form (Williams & Peng 1990): a chunk of T steps starts from a given state and the
gradient stops there. The batch is cut into shards of ``SHARD`` rows, each computed by one thread
from first to last step, and the gradients of the shards are added in their order: the result is
the same bits for any number of threads.

The passes themselves are in :mod:`streamlstm.gradient`. Everything is generic in its precision:
float32 goes through the register-blocked kernels, float64 through plain loops, for checking
gradients.
"""

import itertools
import math
import weakref
from collections.abc import Mapping
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
from numba import config
from numpy.typing import NDArray

from streamlstm.gradient import GRADIENT, Chunk, Net, Room, flip, take
from streamlstm.jit import njit
from streamlstm.kernels import cell, pool, simd
from streamlstm.model import Spec
from streamlstm.precision import Array, apart

__all__ = [
    "LOSSES",
    "Adam",
    "Chunk",
    "Net",
    "Work",
    "adam",
    "allocate",
    "learn",
    "net_of",
    "pack",
    "predict",
    "unpack",
]

SHARD = 16
"""Rows of the batch that one thread takes through all steps."""
WORTH_HELP = 5e6
"""Floating-point operations of a job below which no other thread is asked."""
FULL = 1 << 30
"""Added to the count of shards taken, so that none is left."""
LOSSES = ("mse", "mae", "huber")


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

    def __init__(self, room: Room, rows: int, drops: bool, threads: int) -> None:
        self.room, self.rows, self.drops = room, rows, drops
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
    """Sizes and offsets of the network of ``spec``.

    ValueError: it is not of LSTM cells, or has an activation that cannot be trained.
    """
    if spec.cell != "lstm":
        raise ValueError(f"only LSTM cells can be trained, not {spec.cell}")
    used = (*itertools.chain(*spec.activations), spec.head_activation)
    if strange := [name for name in used if name not in cell.TRAINABLE]:
        known = ", ".join(cell.TRAINABLE)
        raise ValueError(f"activation {strange[0]} cannot be trained; those that can: {known}")
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
        np.array([[*map(cell.activation_code, each)] for each in spec.activations]),
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
    net: Net, batch: int, steps: int, dropout: bool, dtype: type = np.float32, *, threads: int = 0
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
        _zeros((shards, int(at[-1])), dtype), at, _zeros((P,), dtype), np.zeros((shards, 2))
    )
    return Work(room, n, dropout, min(threads or config.NUMBA_NUM_THREADS, shards))


def adam(net: Net, dtype: type = np.float32) -> Adam:
    """A new optimiser."""
    return Adam(*(_zeros((int(net.at[-1]),), dtype) for _ in range(4)))


def _zeros(shape: tuple[int, ...], dtype: type) -> Array:
    """Zeros that begin where a cache line does."""
    line, size = 64, math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + line, np.uint8)
    skip = -memory.ctypes.data % line
    return memory[skip : skip + size].view(dtype).reshape(shape)


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
        take(net, theta, room, chunk, s, shards, loss, dropout, head_dropout, seed, learn)
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
    apart()
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
    rate_, root_, epsilon_, keep = (kind(rate), kind(root), kind(epsilon), kind(1.0 - decay))
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
    batch, room = len(chunk.rows), work.room
    shards = -(-batch // SHARD)
    if shards > len(room.record) or -(-batch // shards) * chunk.steps > work.rows:
        raise ValueError(f"no room for {batch} rows of {chunk.steps} steps; allocate more")
    if dropout + head_dropout > 0 and not work.drops:
        raise ValueError("no room for dropout; allocate with it")
    begin, length = chunk.rows[chunk.rows[:, 1] > 0, :2].T
    if (begin < 0).any() or (begin + length > len(chunk.x)).any() or (length > chunk.steps).any():
        raise ValueError("rows leave the pool, or are longer than the chunk")
    flip(net, theta, room.flipped)
    operations = 2.0 * net.at[-1] * chunk.steps * batch * (3 if learn else 1)
    job = (net, theta, room, chunk, loss, dropout, head_dropout, seed, learn)
    work.share(shards, operations, *job)


def _scored(work: Work, chunk: Chunk) -> tuple[float, int]:
    total, count = work.room.score[: -(-len(chunk.rows) // SHARD)].sum(axis=0)
    return float(total), int(count)
