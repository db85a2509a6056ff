"""The float64 reference against what PyTorch computed in float64."""

import numpy as np
import pytest

from streamlstm.kernels import reference
from tests.kernels.networks import SHORT, golden


@pytest.mark.parametrize("name", SHORT)
def test_reference_follows_pytorch(name):
    network, arrays = golden(name)
    hidden = arrays["h"].shape[2]
    buffers = reference.allocate(network, 3)
    slots, rounds = np.array([1], np.int32), np.array([0, 1])
    outputs = np.zeros((1, arrays["outputs"].shape[1]))
    for x, h, c, y in zip(
        arrays["inputs"], arrays["h"], arrays["c"], arrays["outputs"], strict=True
    ):
        reference.step(buffers, slots, x[None], rounds, outputs)
        np.testing.assert_allclose(buffers.state[1, :, 0, :hidden], h, atol=1e-12)
        np.testing.assert_allclose(buffers.state[1, :, 1, :hidden], c, atol=1e-12)
        np.testing.assert_allclose(outputs[0], y, atol=1e-12)
    assert not buffers.state[[0, 2]].any()


def test_rounds_run_in_order():
    network, arrays = golden("short_h5")
    twice, once = reference.allocate(network, 1), reference.allocate(network, 1)
    slots, x = np.zeros(2, np.int32), arrays["inputs"][:2]
    outputs, expected = np.zeros((2, 20)), np.zeros((2, 20))
    reference.step(twice, slots, x, np.array([0, 1, 2]), outputs)
    for k in range(2):
        row = slice(k, k + 1)
        reference.step(once, slots[row], x[row], np.array([0, 1]), expected[row])
    np.testing.assert_array_equal(twice.state, once.state)
    np.testing.assert_array_equal(outputs, expected)


def test_records_go_out_and_come_back():
    network, _ = golden("short_h50_two_layers")
    buffers = reference.allocate(network, 4)
    records = np.random.default_rng(0).standard_normal((2, 2, 2, 64), np.float32)
    slots = np.array([3, 1], np.int32)
    reference.from_host(buffers, slots, records)
    np.testing.assert_array_equal(reference.to_host(buffers, slots), records)
    assert not buffers.state[[0, 2]].any()
