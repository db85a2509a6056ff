"""Vector registers: the shape that suits the host, and powers of two."""

import numpy as np
from numba import njit

from streamlstm.kernels import simd


def test_register_block_follows_the_host():
    assert simd.shape_for({"avx512f": True, "avx2": True}, "x86_64") == (6, 4, 16)
    assert simd.shape_for({"avx512f": False, "avx2": True}, "x86_64") == (3, 4, 8)
    assert simd.shape_for({}, "aarch64") == (6, 4, 4)
    assert simd.shape_for({}, "x86_64") == (3, 4, 4)
    assert simd.host_shape().lanes in (4, 8, 16)


@njit(cache=True)
def powers(x, n, y):
    for k in range(len(x)):
        y[k] = simd.times_power(x[k], np.float32(12582912) + n[k])


def test_times_power_is_exact():
    random = np.random.default_rng(0)
    x = random.uniform(-2, 2, 1000).astype(np.float32)
    n = random.integers(-100, 100, 1000).astype(np.float32)
    y = np.zeros_like(x)
    powers(x, n, y)
    np.testing.assert_array_equal(y, np.ldexp(x, n.astype(np.int32)))
