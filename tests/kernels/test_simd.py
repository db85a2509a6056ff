"""Vector registers: the shape that suits the host, powers of two, and bounds."""

import numpy as np
import pytest
from numba import njit

from streamlstm.kernels import simd


def test_register_block_follows_the_host():
    assert simd.shape_for({"avx512f": True, "avx2": True}, "x86_64") == (6, 4, 16)
    assert simd.shape_for({"avx512f": False, "avx2": True}, "x86_64") == (3, 4, 8)
    assert simd.shape_for({}, "aarch64") == (6, 4, 4)
    assert simd.shape_for({}, "x86_64") == (3, 4, 4)
    assert simd.host_shape().lanes in (4, 8, 16)


@njit(cache=True)
def powers(n, y):
    for k in range(len(n)):
        y[k] = simd.power(np.float32(12582912 + 127) + n[k])


def test_powers_are_exact():
    n = np.arange(-126, 128, dtype=np.float32)
    y = np.zeros_like(n)
    powers(n, y)
    np.testing.assert_array_equal(y, np.ldexp(np.float32(1), n.astype(np.int32)))


def _bounded(lanes):
    @njit
    def bounded(x, y):
        block = simd.tile(1, 1, lanes)
        for k in range(0, len(x), lanes):
            simd.store(y, k, simd.within(simd.load(block, x, k), np.float32(60)))

    return bounded


@njit
def bounded_singly(x, y):
    for k in range(len(x)):
        y[k] = simd.within(x[k], np.float32(60))


@pytest.mark.parametrize("bounded", [_bounded(4), _bounded(8), _bounded(16), bounded_singly])
def test_within_bounds_whatever_the_number(bounded):
    around = np.nextafter(np.float32(60), np.array([0, 100], np.float32))
    tiny = np.array([0, 1e-45, 1e-30, 0.5, 59, 60, 61, 1e38, np.inf], np.float32)
    x = np.concatenate([around, tiny, np.linspace(-90, 90, 1001, dtype=np.float32)])
    x = np.concatenate([x, -x, np.full(16, np.nan, np.float32)])
    x = np.append(x, np.zeros(-len(x) % 16, np.float32))
    y = np.zeros_like(x)
    bounded(x, y)
    numbers = ~np.isnan(x)
    np.testing.assert_array_equal(y[numbers], np.clip(x[numbers], -60, 60))
    np.testing.assert_array_equal(np.abs(y[~numbers]), 60)
