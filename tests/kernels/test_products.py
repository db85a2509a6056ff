"""Products against NumPy, bits against a scalar chain, whatever the shape."""

import numpy as np
import pytest
from numba import njit

from streamlstm.kernels import products, simd


@njit(cache=True)
def scalar_product(a, b, c):
    """c += a @ b by the promised chain, one scalar fma after the other."""
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            for k in range(a.shape[1]):
                c[i, j] = simd.fma(a[i, k], b[k, j], c[i, j])


@njit(cache=True)
def on_host(a, b, c):
    m, k = a.shape
    n = b.shape[1]
    products.gemm(simd.host_tile(), m, n, k, a, 0, k, 1, b, 0, n, c, 0, n)


@njit(cache=True)
def on_avx512(a, b, c):
    m, k = a.shape
    n = b.shape[1]
    products.gemm(simd.tile(6, 4, 16), m, n, k, a, 0, k, 1, b, 0, n, c, 0, n)


@njit(cache=True)
def on_avx2(a, b, c):
    m, k = a.shape
    n = b.shape[1]
    products.gemm(simd.tile(3, 4, 8), m, n, k, a, 0, k, 1, b, 0, n, c, 0, n)


@njit(cache=True)
def on_neon(a, b, c):
    m, k = a.shape
    n = b.shape[1]
    products.gemm(simd.tile(6, 4, 4), m, n, k, a, 0, k, 1, b, 0, n, c, 0, n)


@njit(cache=True)
def transposed(a, b, c):
    """c += a.T @ b, with addresses in place of arrays."""
    k, m = a.shape
    n = b.shape[1]
    start = simd.address(a), simd.address(b), simd.address(c)
    products.gemm(simd.host_tile(), m, n, k, start[0], 0, 1, m, start[1], 0, n, start[2], 0, n)


SHAPES = [(1, 16, 1), (7, 64, 5), (6, 64, 33), (13, 80, 300), (48, 256, 65), (3, 48, 0), (0, 16, 4)]


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_product_is_the_scalar_chain_bit_for_bit_at_every_width(m, n, k):
    random = np.random.default_rng(1)
    a = random.standard_normal((m, k), np.float32)
    b = random.standard_normal((k, n), np.float32)
    start = random.standard_normal((m, n), np.float32)
    expected = start.copy()
    scalar_product(a, b, expected)
    np.testing.assert_allclose(expected, start + a.astype(float) @ b, atol=1e-4)
    for product in (on_host, on_avx512, on_avx2, on_neon):
        c = start.copy()
        product(a, b, c)
        assert c.tobytes() == expected.tobytes()
    c = start.copy()
    transposed(np.ascontiguousarray(a.T), b, c)
    assert c.tobytes() == expected.tobytes()


@njit(cache=True)
def dots_at(block, a, b, start, c):
    k = a.shape[1]
    products.dots(block, k // 16, simd.address(a), k, simd.address(b), start, simd.address(c), 1)


@njit(cache=True)
def dots_at_all_widths(a, b, start, c):
    dots_at(simd.tile(6, 4, 16), a, b, start, c[0])
    dots_at(simd.tile(6, 4, 8), a, b, start, c[1])
    dots_at(simd.tile(6, 4, 4), a, b, start, c[2])


@pytest.mark.parametrize("k", [16, 32, 208])
def test_dots_add_sixteen_chains_in_halves_at_every_width(k):
    random = np.random.default_rng(k)
    a, b = random.standard_normal((6, k), np.float32), random.standard_normal(k, np.float32)
    c = np.zeros((3, 6), np.float32)
    dots_at_all_widths(a, b, np.float32(0.5), c)
    np.testing.assert_allclose(c[0], 0.5 + a.astype(float) @ b, atol=1e-5)
    assert c[0].tobytes() == c[1].tobytes() == c[2].tobytes()
    chains = np.zeros((1, 16), np.float32)
    scalar = np.zeros(6, np.float32)
    for row in range(6):
        chains[:] = 0
        for at in range(0, k, 16):
            for lane in range(16):
                term = a[row : row + 1, at + lane : at + lane + 1], b[at + lane].reshape(1, 1)
                scalar_product(*term, chains[:, lane : lane + 1])
        sums = chains[0]
        while len(sums) > 1:
            sums = sums[: len(sums) // 2] + sums[len(sums) // 2 :]
        scalar[row] = np.float32(0.5) + sums[0]
    assert scalar.tobytes() == c[0].tobytes()
