"""Activations that are seldom used, as Keras 3 defines them, with its default numbers.

They are compiled when a network has one, once for all, and called through memory: in the registers
of each kernel they would double the time to compile. None has a jump, so that two that round
otherwise stay near each other.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.jit import njit
from streamlstm.kernels.cell import (
    ACTIVATIONS,
    BOUND,
    HALF,
    ONE,
    TRAINABLE,
    TWO,
    ZERO,
    exp2,
    exp2_less_1,
    hard_sigmoid,
    relu,
    sigmoid,
    tanh,
)
from streamlstm.kernels.simd import fma, maximum, minimum, number, product, set_number, within
from streamlstm.memory import require

(
    ELU, EXPONENTIAL, GELU, HARD_SILU, HARD_TANH, LEAKY_RELU, LOG_SIGMOID, MISH, RELU6, SELU, SILU,
    SOFT_SHRINK, SOFTPLUS, SOFTSIGN, SPARSE_PLUS, SPARSE_SIGMOID, TANH_SHRINK,
) = range(len(TRAINABLE), len(ACTIVATIONS))  # fmt: skip

FOR_EXP = np.float32(1 / math.log(2))
LARGE = np.float32(2**60)
SIX = np.float32(6)
FIFTH = np.float32(0.2)
QUARTER = np.float32(0.25)
SELU_SCALE = np.float32(1.0507009873554805)  # Klambauer et al. 2017
SELU_ALPHA = np.float32(1.6732632423543772)
# log(1 + u) = 2 s (1 + s^2 / 3 + s^4 / 5 + ...), s = u / (2 + u) no more than a third
L = tuple(np.float32(1 / k) for k in (13, 11, 9, 7, 5, 3, 1))
# erf(z) = 1 - (the sum of A t^k) exp(-z^2), t = 1 / (1 + P z): Abramowitz & Stegun 7.1.26, 1.5e-7
A5, A4 = np.float32(1.061405429), np.float32(-1.453152027)
A3, A2, A1 = np.float32(1.421413741), np.float32(-0.284496736), np.float32(0.254829592)
ERF_P = np.float32(0.3275911 / math.sqrt(2))
FOR_GAUSS = np.float32(-0.5 / math.log(2))


@njit(cache=True)
def _exp(x: Any) -> Any:
    """e^x, and 2^60 beyond."""
    return exp2(product(x, FOR_EXP))


@njit(cache=True)
def _clip(x: Any, low: Any, high: Any) -> Any:
    return minimum(maximum(x, low), high)


@njit(cache=True)
def _elu(x: Any, alpha: Any) -> Any:
    below = exp2_less_1(product(minimum(x, ZERO), FOR_EXP))
    return fma(below, alpha, relu(x))


@njit(cache=True)
def _softplus(x: Any) -> Any:
    """log(1 + e^x)."""
    u = _exp(minimum(x, ZERO - x))
    s = u / (TWO + u)
    square = product(s, s)
    series = fma(fma(fma(L[0], square, L[1]), square, L[2]), square, L[3])
    series = fma(fma(fma(series, square, L[4]), square, L[5]), square, L[6])
    return fma(product(s, TWO), series, relu(x))


@njit(cache=True)
def _gelu(x: Any) -> Any:
    """x times the share of a normal distribution that lies below x."""
    size = maximum(x, ZERO - x)
    t = ONE / fma(size, ERF_P, ONE)
    series = product(fma(fma(fma(fma(A5, t, A4), t, A3), t, A2), t, A1), t)
    tail = product(series, exp2(product(product(x, x), FOR_GAUSS)))
    return relu(x) - product(product(size, HALF), tail)


@njit(cache=True)
def _mish(x: Any) -> Any:
    """x * tanh(softplus(x))."""
    e = _exp(x)
    m = product(e, e + TWO)
    return product(maximum(x, -BOUND), m / (m + TWO))


@njit(cache=True)
def _sparse_plus(x: Any) -> Any:
    inner = _clip(x + ONE, ZERO, TWO)
    return fma(product(inner, inner), QUARTER, relu(x - ONE))


@njit(cache=True)
def activate(code: int, x: Any) -> Any:
    """The activation of this code at x."""
    if code == ELU:
        return _elu(x, ONE)
    if code == EXPONENTIAL:
        return _exp(x)
    if code == GELU:
        return _gelu(x)
    if code == HARD_SILU:
        return product(x, hard_sigmoid(x))
    if code == HARD_TANH:
        return _clip(x, -ONE, ONE)
    if code == LEAKY_RELU:
        return maximum(x, product(x, FIFTH))
    if code == LOG_SIGMOID:
        return ZERO - _softplus(ZERO - x)
    if code == MISH:
        return _mish(x)
    if code == RELU6:
        return _clip(x, ZERO, SIX)
    if code == SELU:
        return product(_elu(x, SELU_ALPHA), SELU_SCALE)
    if code == SILU:
        return product(maximum(x, -BOUND), sigmoid(x))
    if code == SOFT_SHRINK:
        return x - _clip(x, -HALF, HALF)
    if code == SOFTPLUS:
        return _softplus(x)
    if code == SOFTSIGN:
        x = within(x, LARGE)  # beyond it the limit, to the last bit
        return x / (ONE + maximum(x, ZERO - x))
    if code == SPARSE_PLUS:
        return _sparse_plus(x)
    if code == SPARSE_SIGMOID:
        return _clip(fma(x, HALF, HALF), ZERO, ONE)
    return x - tanh(x)


@njit(cache=True)
def _all(code: int, memory: int, count: int) -> None:
    """`activate` for float32 at an address, in place."""
    for k in range(count):
        set_number(memory, k, activate(code, number(memory, k)))


def words(code: int) -> NDArray[np.int64]:
    """What the address of says to `cell.activate` which activation it is."""
    return np.array([require(_all, 0, 0, 0), code], np.int64)
