"""The float64 reference against what PyTorch computed in float64."""

import os
import subprocess
import sys

import numpy as np
import pytest

from streamlstm.kernels import reference
from tests.kernels.networks import CELLS, OTHERS, SHORT, golden, random_network


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


@pytest.mark.parametrize("name", OTHERS)
def test_reference_follows_pytorchs_gru_and_rnn(name):
    network, arrays = golden(name)
    hidden = arrays["h"].shape[2]
    buffers = reference.allocate(network, 3)
    slots, rounds = np.array([1], np.int32), np.array([0, 1])
    outputs = np.zeros((1, arrays["outputs"].shape[1]))
    for x, h, y in zip(arrays["inputs"], arrays["h"], arrays["outputs"], strict=True):
        reference.step(buffers, slots, x[None], rounds, outputs)
        np.testing.assert_allclose(buffers.state[1, :, 0, :hidden], h, atol=1e-12)
        np.testing.assert_allclose(outputs[0], y, atol=1e-12)
    assert buffers.state.shape[2] == 1  # h alone is kept
    assert not buffers.state[[0, 2]].any()


def test_activations_are_those_of_keras(tmp_path):
    x = np.linspace(-9, 9, 4001, dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    script = (
        "import sys, keras, numpy as np; x = np.load(sys.argv[1]);"
        " np.savez(sys.argv[2], **{n: keras.activations.get(n)(x) for n in sys.argv[3:]})"
    )
    names = list(reference.ACTIVATIONS)
    subprocess.run(
        [sys.executable, "-c", script, tmp_path / "x.npy", tmp_path / "y.npz", *names],
        check=True, env=os.environ | {"KERAS_BACKEND": "jax"},
    )  # fmt: skip
    theirs = np.load(tmp_path / "y.npz")
    for name in names:
        ours = reference.ACTIVATIONS[name](x.astype(float))
        np.testing.assert_allclose(theirs[name], ours, rtol=5e-7, atol=2e-6, err_msg=name)


def test_a_gru_may_reset_before_the_product():
    """As Keras' reset_after=False: its own loop, unit by unit."""
    network = random_network(6, 2, cell="gru", reset_after=False)
    layer = network.layers[0]
    w, u, b = (np.split(v.astype(float), 3) for v in (layer.weight_ih, layer.weight_hh, layer.bias))
    buffers = reference.allocate(network, 1)
    slots, rounds, outputs = np.zeros(1, np.int32), np.array([0, 1]), np.zeros((1, 1))
    h = np.zeros(6)
    for x in np.random.default_rng(0).standard_normal((8, 2)).astype(np.float32):
        r, z, new = np.zeros(6), np.zeros(6), np.zeros(6)
        for k in range(6):
            r[k] = 1 / (1 + np.exp(-(w[0][k] @ x + u[0][k] @ h + b[0][k])))
            z[k] = 1 / (1 + np.exp(-(w[1][k] @ x + u[1][k] @ h + b[1][k])))
        for k in range(6):
            new[k] = np.tanh(w[2][k] @ x + u[2][k] @ (r * h) + b[2][k])
        h = z * h + (1 - z) * new
        reference.step(buffers, slots, x[None], rounds, outputs)
        np.testing.assert_allclose(buffers.state[0, 0, 0, :6], h, atol=1e-14)


@pytest.mark.parametrize("cell", CELLS)
def test_a_window_is_a_fresh_run_over_the_last_inputs(cell):
    network = random_network(7, 2, layers=2, outputs=3, window=4, **CELLS[cell])
    buffers = reference.allocate(network, 2)
    inputs = np.random.default_rng(0).standard_normal((11, 2)).astype(np.float32)
    outputs = np.zeros((11, 3))
    reference.step(buffers, np.ones(11, np.int32), inputs, np.arange(12), outputs)
    for tick in range(11):
        last = inputs[max(tick - 3, 0) : tick + 1]
        fresh = reference.allocate(network._replace(window=0), 1)
        expected = np.zeros((len(last), 3))
        slots, rounds = np.zeros(len(last), np.int32), np.arange(len(last) + 1)
        reference.step(fresh, slots, last, rounds, expected)
        np.testing.assert_array_equal(outputs[tick], expected[-1])
    assert buffers.state.shape == (2, 4 * 2 + 1)
    assert not buffers.state[0].any()


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
    reference.clear(buffers, slots[:1])
    assert buffers.state.any(axis=(1, 2, 3)).tolist() == [False, True, False, False]
