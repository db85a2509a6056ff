"""The maths of a cell: accuracy against float64, and the same bits in a register as alone."""

import numpy as np
import pytest
from numba import njit

from streamlstm.kernels import cell, rarer, simd
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


RARER = {
    name: rarer.words(code)
    for code, name in enumerate(cell.ACTIVATIONS)
    if name not in cell.TRAINABLE
}


def code_of(name):
    return RARER[name].ctypes.data if name in RARER else cell.activation_code(name)


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
    code = code_of(name)
    alone = np.zeros_like(NUMBERS)
    one_by_one(code, NUMBERS, alone)
    together = np.zeros((3, len(NUMBERS)), np.float32)
    in_registers(code, NUMBERS, together)
    for row in together:
        assert row.tobytes() == alone.tobytes()
    finite = np.isfinite(NUMBERS)
    exact = ACTIVATIONS[name](NUMBERS[finite].astype(float))
    error = np.abs(alone[finite] - exact) / np.maximum(1, np.abs(exact))
    assert error.max() <= TOLERANCES.get(name, 1.6e-7)


TOLERANCES = {
    "exponential": 2e-6,  # its argument, of up to 60 powers of two, is rounded first
    "gelu": 2.2e-7,
    "selu": 2.2e-7,
    "tanh_shrink": 2e-7,
}
"""Of what is no more than one or the number itself; else relative."""


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("tanh", -1, 1), ("sigmoid", 0, 1), ("hard_sigmoid", 0, 1), ("hard_tanh", -1, 1),
        ("softsign", -1, 1), ("sparse_sigmoid", 0, 1), ("relu6", 0, 6),
    ],
)  # fmt: skip
def test_bounded_activations_stay_in_their_bounds_for_any_number(name, low, high):
    y = np.zeros_like(NUMBERS)
    one_by_one(code_of(name), NUMBERS, y)
    assert np.isfinite(y).all()
    assert y.min() >= low
    assert y.max() <= high


@njit(cache=True)
def updates(gates, c, h, new):
    for k in range(len(c)):
        i, f, g, o = gates[0, k], gates[1, k], gates[2, k], gates[3, k]
        h[k], new[k] = cell.update_scaled(i, f, g, o, c[k])


def scaled(x):
    """Pre-activations of i, f, g, o as weights that carry the scales give them."""
    scales = np.full(4, cell.SIGMOID_SCALE)
    scales[2] = cell.TANH_SCALE
    return (x * scales[:, None]).astype(np.float32)


@pytest.mark.parametrize("spread", [0.01, 1, 5, 100, 1e30])
def test_scaled_update_is_the_cell_in_float64(spread):
    random = np.random.default_rng(0)
    gates = scaled(random.standard_normal((4, 100_000)) * spread)
    c = random.standard_normal(100_000).astype(np.float32)
    h, new = np.zeros_like(c), np.zeros_like(c)
    updates(gates, c, h, new)
    with np.errstate(over="ignore"):
        i, f, o = (1 / (1 + np.exp2(gates[k].astype(float))) for k in (0, 1, 3))
    exact = f * c + i * np.tanh(gates[2] / cell.TANH_SCALE)
    assert np.abs(new - exact).max() <= 5e-7
    assert np.abs(h - o * np.tanh(exact)).max() <= 4e-7


def test_a_cell_that_forgets_nothing_and_lets_nothing_in_keeps_its_state_to_the_last_bit():
    c = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    h, new = np.zeros_like(c), np.zeros_like(c)
    gates = scaled(np.array([-50.0, 50, 1, 0])[:, None] * np.ones(1000))
    updates(gates, c, h, new)
    assert new.tobytes() == c.tobytes()


def test_an_unknown_activation_is_refused_by_name():
    with pytest.raises(ValueError, match=r"unknown activation 'swish'.*hard_sigmoid"):
        cell.activation_code("swish")


def test_padding():
    assert [cell.padded(h) for h in (1, 16, 17, 50, 64)] == [16, 16, 32, 64, 64]
