"""The maths of a cell: accuracy against float64, and the same bits in a register as alone."""

import numpy as np
import pytest
from numba import njit

from streamlstm.kernels import cell, simd
from streamlstm.kernels.reference import ACTIVATIONS

NUMBERS = np.concatenate(
    [
        np.linspace(-12, 12, 200_000),
        np.geomspace(1e-45, 3e38, 50_000),
        -np.geomspace(1e-45, 3e38, 50_000),
        [0.0, -0.0, np.inf, -np.inf, np.nan, 7.9, -7.9, 3.0, -3.0],
    ]
).astype(np.float32)
NUMBERS = np.concatenate([NUMBERS, np.zeros(-len(NUMBERS) % 16, np.float32)])


@njit(cache=True)
def one_by_one(code, x, y):
    for k in range(len(x)):
        y[k] = cell.activate(code, x[k])


@njit(cache=True)
def in_registers(code, x, y):
    for width in range(3):
        for k in range(0, len(x), 16):
            if width == 0:
                block = simd.tile(1, 1, 16)
                simd.store(y[0], k, cell.activate(code, simd.load(block, x, k)))
            elif width == 1:
                narrow = simd.tile(1, 1, 8)
                for lane in (0, 8):
                    v = simd.load(narrow, x, k + lane)
                    simd.store(y[1], k + lane, cell.activate(code, v))
            else:
                narrowest = simd.tile(1, 1, 4)
                for lane in (0, 4, 8, 12):
                    w = simd.load(narrowest, x, k + lane)
                    simd.store(y[2], k + lane, cell.activate(code, w))


@pytest.mark.parametrize("name", cell.ACTIVATIONS)
def test_activation_is_accurate_and_the_same_bits_in_every_width(name):
    code = cell.activation_code(name)
    alone = np.zeros_like(NUMBERS)
    one_by_one(code, NUMBERS, alone)
    together = np.zeros((3, len(NUMBERS)), np.float32)
    in_registers(code, NUMBERS, together)
    for row in together:
        assert row.tobytes() == alone.tobytes()
    finite = np.isfinite(NUMBERS)
    exact = ACTIVATIONS[name](NUMBERS[finite].astype(float))
    assert np.abs(alone[finite] - exact).max() <= 3.3e-7


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "hard_sigmoid"])
def test_bounded_activations_stay_in_their_bounds_for_any_number(name):
    y = np.zeros_like(NUMBERS)
    one_by_one(cell.activation_code(name), NUMBERS, y)
    low = -1 if name == "tanh" else 0
    assert np.isfinite(y).all()
    assert y.min() >= low
    assert y.max() <= 1


def test_an_unknown_activation_is_refused_by_name():
    with pytest.raises(ValueError, match=r"unknown activation 'swish'.*hard_sigmoid"):
        cell.activation_code("swish")


def test_padding():
    assert [cell.padded(h) for h in (1, 16, 17, 50, 64)] == [16, 16, 32, 64, 64]
