"""Compiled code in two precisions: registers of float32, or plain float64 for checking gradients.

The passes of :mod:`streamlstm.gradient` are written once, over these names.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from streamlstm.jit import emitted, njit
from streamlstm.kernels import cell, products, simd
from streamlstm.kernels.simd import intrinsic

Array = NDArray[Any]
"""float32 or float64"""


def _is_single(array: Any) -> bool:
    return array.dtype == types.float32


def lanes(array: Any) -> int:
    """How many elements of ``array`` are computed at once."""
    raise NotImplementedError


@overload(lanes, strict=False)
def _(array: Any) -> Any:
    if _is_single(array):
        return lambda array: simd.lanes_of(simd.host_tile())
    return lambda array: 1


def load(array: Any, at: int) -> Any:
    """Elements from ``at`` on: a register of float32, or one float64."""
    raise NotImplementedError


@overload(load, strict=False)
def _(array: Any, at: int) -> Any:
    if _is_single(array):
        return lambda array, at: simd.load(simd.host_tile(), array, at)
    return lambda array, at: array[at]


def store(array: Any, at: int, value: Any) -> None:
    """Write what :func:`load` gave, or was computed from it, to elements ``at`` and on."""
    raise NotImplementedError


@overload(store, strict=False)
def _(array: Any, at: int, value: Any) -> Any:
    if _is_single(array):
        return lambda array, at, value: simd.store(array, at, value)

    def plain(array: Any, at: int, value: Any) -> None:
        array[at] = value

    return plain


@emitted(types.void)
def apart(builder: Any) -> None:
    """Keep the calling function from being copied into its callers, which takes LLVM a minute."""
    builder.function.attributes.add("noinline")


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
    apart()
    products.gemm(_tile(), m, n, k, a, a_at, a_row, a_k, b, b_at, b_k, c, c_at, c_row)


def multiply(
    m: int, n: int, k: int, a: Any, a_at: int, a_row: int, a_k: int,
    b: Any, b_at: int, b_k: int, c: Any, c_at: int, c_row: int,
) -> None:  # fmt: skip
    """C (m, n) += A (m, k) @ B (k, n), strided as :mod:`streamlstm.kernels.products` says."""
    raise NotImplementedError


@overload(multiply, strict=False)
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


def activate(code: int, x: Any) -> Any:
    """The activation of this code at x: as the kernels compute it, or as mathematics has it."""
    raise NotImplementedError


@overload(activate, strict=False)
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
def positive(typing: Any, y: Any) -> Any:
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


@njit(cache=True, _nrt=False)
def slope(code: int, y: Any) -> Any:
    """Derivative of an activation where its value is y."""
    if code == cell.TANH:
        return cell.ONE - y * y
    if code == cell.SIGMOID:
        return y - y * y
    if code == cell.RELU:
        return positive(y)
    if code == cell.HARD_SIGMOID:
        return positive(y) * positive(cell.ONE - y) * cell.SIXTH
    return cell.ONE + cell.ZERO * y


@njit(cache=True, _nrt=False)
def noise(seed: int, layer: int, place: int) -> Any:
    """24 random bits of a place (SplitMix64's finaliser over a counter)."""
    z = np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(place * 64 + layer + 1)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64((z ^ (z >> np.uint64(31))) >> np.uint64(40))
