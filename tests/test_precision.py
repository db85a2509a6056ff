"""Both precisions compute the same things, and what mathematics says."""

import numpy as np
import pytest
from numba import njit

from streamlstm import precision
from streamlstm.kernels import cell


@njit
def product(a, b, c):
    m, k = a.shape
    n = b.shape[1]
    flat = a.ravel(), b.ravel(), c.ravel()
    precision.multiply(m, n, k, flat[0], 0, k, 1, flat[1], 0, n, flat[2], 0, n)


@njit
def outer(a, b, c):
    k, m = a.shape
    n = b.shape[1]
    flat = a.ravel(), b.ravel(), c.ravel()
    precision.multiply(m, n, k, flat[0], 0, 1, m, flat[1], 0, n, flat[2], 0, n)


@njit
def apply(code, values, steep):
    out = np.empty_like(values)
    for at in range(0, len(values), precision.lanes(values)):
        y = precision.activate(code, precision.load(values, at))
        precision.store(out, at, precision.slope(code, y) if steep else y)
    return out


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-13)])
@pytest.mark.parametrize("m", [1, 4, 7, 16])
def test_products(m: int, dtype: type, tolerance: float) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(m, 37)).astype(dtype), rng.normal(size=(37, 80)).astype(dtype)
    c = np.ones((m, 80), dtype)
    product(a, b, c)
    np.testing.assert_allclose(c, 1 + a @ b, atol=tolerance)
    c[:] = 1
    outer(np.ascontiguousarray(a.T), b, c)
    np.testing.assert_allclose(c, 1 + a @ b, atol=tolerance)


@pytest.mark.parametrize("name", cell.TRAINABLE)
def test_slopes_are_differences(name: str) -> None:
    code = cell.activation_code(name)
    x = np.linspace(-4.03, 4.01, 160)
    numeric = (apply(code, x + 1e-6, False) - apply(code, x - 1e-6, False)) / 2e-6
    np.testing.assert_allclose(apply(code, x, True), numeric, atol=1e-7)
    single = x.astype(np.float32)
    for steep in (False, True):
        np.testing.assert_allclose(apply(code, single, steep), apply(code, x, steep), atol=2e-6)


def test_noise_is_even_and_differs_by_seed_layer_and_place() -> None:
    drawn = np.array([precision.noise(7, 1, place) for place in range(20_000)]) / 2**24
    assert (drawn >= 0).all()
    assert (drawn < 1).all()
    assert np.abs(np.histogram(drawn, 10)[0] / 2000 - 1).max() < 0.1
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.03
    assert len({precision.noise(s, n, p) for s in (1, 2) for n in (0, 1) for p in (3, 4)}) == 8
