"""The maths of the recurrent cells and the plain structs of a network.

Written once, for scalars (float32) and vector registers alike; every backend computes with these
formulas. None of them calls a mathematical library: each is a fixed chain of operations, so that a
value is the same bits in any lane, loop or thread.

LSTM, gate order i, f, g, o, as PyTorch (Hochreiter & Schmidhuber 1997, forget gates by Gers 2000):

    i = sigmoid(..)  f = sigmoid(..)  g = tanh(..)  o = sigmoid(..)
    c' = f * c + i * g        h' = o * tanh(c')

GRU, gate order r, z, n, as PyTorch (Cho et al. 2014; Keras has z, r, h):

    r = sigmoid(..)  z = sigmoid(..)  h' = (1 - z) * n + z * h
    n = tanh(Wx + b + r * (Uh + b_hh))    reset after the product: PyTorch, and Keras by default
    n = tanh(Wx + U(r * h) + b)           reset before it: Keras' reset_after=False

RNN (Elman 1990; Keras' SimpleRNN): h' = tanh(Wx + Uh + b).
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm.jit import njit
from streamlstm.kernels.simd import elsewhere, fma, maximum, minimum, power, product, within
from streamlstm.memory import call

UNITS = 16  # hidden units are padded to a multiple of this
# by Keras' names; a code is an index into them. Those after the first five are in `rarer`
TRAINABLE = ("linear", "relu", "tanh", "sigmoid", "hard_sigmoid")
ACTIVATIONS = (
    *TRAINABLE, "elu", "exponential", "gelu", "hard_silu", "hard_tanh", "leaky_relu", "log_sigmoid",
    "mish", "relu6", "selu", "silu", "soft_shrink", "softplus", "softsign", "sparse_plus",
    "sparse_sigmoid", "tanh_shrink",
)  # fmt: skip
LINEAR, RELU, TANH, SIGMOID, HARD_SIGMOID = range(5)

CELLS = ("lstm", "gru", "rnn")

Floats = NDArray[np.float32]


class Stages(NamedTuple):
    """What a step calls for its rows, a tile at a time: compiled `(context, start, stop)`.

    The rows of a round are shared between threads, and a tile's are still in the caches.
    """

    before: int = 0  # address, 0: nothing; it writes the rows' inputs
    after: int = 0  # address, 0: nothing; it reads the rows' outputs
    context: int = 0  # an address, for them to know what it means


NO_STAGES = Stages()


@njit(cache=True, nogil=True)
def run_stage(stage: int, context: int, start: int, stop: int) -> None:
    """Call one of `Stages`, if it is there."""
    if stage:
        call(stage, context, start, stop)


NO_BIAS: Floats = np.zeros(0, np.float32)


class Layer(NamedTuple):
    """One layer of H units over I inputs; rows of the weights are G gates in the order above."""

    weight_ih: Floats  # (G * H, I)
    weight_hh: Floats  # (G * H, H)
    bias: Floats  # (G * H,): the sum of PyTorch's two; of a GRU that resets after: `bias_ih` alone
    activation: str = "tanh"  # of g and of the cell state on its way out; of n; of an RNN
    recurrent_activation: str = "sigmoid"  # of the other gates
    cell: str = "lstm"
    reset_after: bool = True  # whether a GRU's r scales the product with h, or h itself
    bias_hh: Floats = NO_BIAS  # (3H,) of a GRU that resets after; else empty


class Head(NamedTuple):
    """outputs = activation(weight @ h_top + skip @ inputs + bias)."""

    weight: Floats  # (O, H)
    bias: Floats  # (O,)
    skip: Floats  # (O, I): the linear shortcut from the input vector; zeros where it is not used
    activation: str = "linear"


class Network(NamedTuple):
    """Layers from the input up, all of one kind of cell, and the dense head on the last.

    Where `window` is not 0, what is kept of a series is its last `window` input vectors, and each
    step runs them, or as many as have come, from a zero state.
    """

    layers: tuple[Layer, ...]
    head: Head
    window: int = 0


def padded(hidden: int) -> int:
    """The hidden size rounded up to a multiple of UNITS."""
    return -(-hidden // UNITS) * UNITS


def kind_of(network: Network) -> str:
    """The cell of a network: "lstm", "gru", "gru_before" (reset before the product) or "rnn".

    ValueError where there is no such cell, or the layers differ.
    """
    kinds = {
        "gru_before" if layer.cell == "gru" and not layer.reset_after else layer.cell
        for layer in network.layers
    }
    if len(kinds) != 1:
        raise ValueError(f"layers of different cells: {', '.join(sorted(kinds))}")
    if unknown := kinds - {*CELLS, "gru_before"}:
        raise ValueError(f"unknown cell {unknown.pop()!r}: known are {', '.join(CELLS)}")
    return kinds.pop()


def state_shape(network: Network) -> tuple[int, int, int]:
    """(layers, parts, units) of a recurrent state: h, and of an LSTM c, units padded."""
    parts = 2 if kind_of(network) == "lstm" else 1
    units = max(padded(layer.weight_hh.shape[1]) for layer in network.layers)
    return len(network.layers), parts, units


def record_shape(network: Network) -> tuple[int, ...]:
    """Shape of what is kept of a series: `state_shape`, or (window * I + 1,) with a window.

    With a window it is a ring of input vectors, the k-th since the start at place k % window, and
    the count of those that came (once the ring is full it stays in window..2 * window - 1).
    """
    if network.window:
        return (network.window * network.layers[0].weight_ih.shape[1] + 1,)
    return state_shape(network)


def activation_code(name: str) -> int:
    """The code of an activation by its Keras name; ValueError where it is unknown."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}: known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS.index(name)


class BackendError(RuntimeError):
    """A backend that cannot run here; the message is one line and says the mend."""


# 2^z = 2^n (1 + r Q(r)) with n the nearest whole number and r the rest: Q is a minimax fit on
# [-1/2, 1/2], its own error 9.2e-8 of 2^r, about that of float32. Sigmoid and tanh are fractions of
# such powers. They are joined before they are divided, since divisions take long (on a GPU most of
# all); and the scales of their arguments are in the weights already.
SIGMOID_SCALE = -1 / math.log(2)  # sigmoid(x) = 1 / (1 + 2^(x * SIGMOID_SCALE))
TANH_SCALE = 2 / math.log(2)  # tanh(x) = m / (2 + m) with m = 2^(x * TANH_SCALE) - 1
FOR_SIGMOID = np.float32(SIGMOID_SCALE)
FOR_TANH = np.float32(TANH_SCALE)
BOUND = np.float32(60)  # beyond it both are their limits to the last bit, or nearer than 1e-18
# What is added to it is rounded to a whole number; its last bits are that + 127, as floats keep
# their exponents (`simd.power`).
SHIFT = np.float32(1.5 * 2**23 + 127)
Q4 = np.float32(0.001326472712352283)
Q3 = np.float32(0.009671512644821805)
Q2 = np.float32(0.05550733743497211)
Q1 = np.float32(0.24022242085262313)
Q0 = np.float32(0.6931469775989928)
ZERO = np.float32(0)
HALF = np.float32(0.5)
ONE = np.float32(1)
TWO = np.float32(2)
SIXTH = np.float32(1 / 6)


@njit(cache=True)
def _parts(z: Any) -> Any:
    """(n + SHIFT, r, Q(r)). What is not a number counts as infinity."""
    z = within(z, BOUND)
    shifted = z + SHIFT
    r = z - (shifted - SHIFT)
    return shifted, r, fma(fma(fma(fma(Q4, r, Q3), r, Q2), r, Q1), r, Q0)


@njit(cache=True)
def exp2(z: Any) -> Any:
    """2^z."""
    shifted, r, q = _parts(z)
    return product(power(shifted), fma(q, r, ONE))


@njit(cache=True)
def exp2_and_1(z: Any) -> Any:
    """2^z + 1."""
    shifted, r, q = _parts(z)
    return fma(power(shifted), fma(q, r, ONE), ONE)


@njit(cache=True)
def exp2_less_1(z: Any) -> Any:
    """2^z - 1, near zero as exact as anywhere."""
    shifted, r, q = _parts(z)
    whole = power(shifted)
    return fma(whole, product(q, r), whole - ONE)


@njit(cache=True)
def scaled_tanh(z: Any) -> Any:
    """tanh(x) where z = x * TANH_SCALE."""
    m = exp2_less_1(z)
    return m / (TWO + m)


@njit(cache=True)
def scaled_sigmoid(z: Any) -> Any:
    """sigmoid(x) where z = x * SIGMOID_SCALE."""
    return ONE / exp2_and_1(z)


@njit(cache=True)
def tanh(x: Any) -> Any:
    """Hyperbolic tangent; largest error 1.6e-7. What is not a number counts as infinity."""
    return scaled_tanh(product(x, FOR_TANH))


@njit(cache=True)
def sigmoid(x: Any) -> Any:
    """Logistic function, 1 / (1 + exp(-x)); largest error 1.1e-7."""
    return scaled_sigmoid(product(x, FOR_SIGMOID))


@njit(cache=True)
def relu(x: Any) -> Any:
    """max(x, 0)."""
    return maximum(x, ZERO)


@njit(cache=True)
def hard_sigmoid(x: Any) -> Any:
    """relu6(x + 3) / 6, as Keras 3 and PyTorch define it."""
    return minimum(maximum(fma(x, SIXTH, HALF), ZERO), ONE)


@njit(cache=True)
def activate(code: int, x: Any) -> Any:
    """The activation of this code at x; one of the rarer: by its address, see `rarer.words`."""
    if code == TANH:
        return tanh(x)
    if code == SIGMOID:
        return sigmoid(x)
    if code == RELU:
        return relu(x)
    if code == HARD_SIGMOID:
        return hard_sigmoid(x)
    if code != LINEAR:
        return elsewhere(code, x)
    return x


@njit(cache=True)
def update(activation: int, recurrent: int, i: Any, f: Any, g: Any, o: Any, c: Any) -> Any:
    """(h', c') of one unit, or of a vector of units, from its pre-activations and old c."""
    remembered = activate(recurrent, f) * c
    new = fma(activate(recurrent, i), activate(activation, g), remembered)
    return activate(recurrent, o) * activate(activation, new), new


@njit(cache=True)
def update_scaled(i: Any, f: Any, g: Any, o: Any, c: Any) -> Any:
    """`update` for tanh and sigmoid, where the pre-activations come scaled for them: sooner."""
    m = exp2_less_1(g)
    new = c / exp2_and_1(f) + m / product(exp2_and_1(i), TWO + m)
    m = exp2_less_1(product(new, FOR_TANH))
    return m / product(exp2_and_1(o), TWO + m), new


@njit(cache=True)
def blend(z: Any, n: Any, h: Any) -> Any:
    """(1 - z) * n + z * h."""
    return fma(z, h - n, n)


@njit(cache=True)
def gru(activation: int, recurrent: int, r: Any, z: Any, n: Any, u: Any, h: Any) -> Any:
    """h' where r scales u, the product with h; from pre-activations (n: what the input gives)."""
    new = activate(activation, fma(activate(recurrent, r), u, n))
    return blend(activate(recurrent, z), new, h)


@njit(cache=True)
def gru_scaled(r: Any, z: Any, n: Any, u: Any, h: Any) -> Any:
    """`gru` for tanh and sigmoid, where the pre-activations come scaled for them: sooner."""
    new = scaled_tanh(n + u / exp2_and_1(r))
    return new + (h - new) / exp2_and_1(z)
