"""Gradients are right in both precisions, and the forward pass is the network."""

from typing import Any

import numpy as np
import pytest

from streamlstm import bptt
from streamlstm.golden import network_of
from streamlstm.kernels import reference
from streamlstm.model import Spec
from tests.problems import GOLDEN, GOLDEN_SPEC, golden_problem, gradient, random_problem


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-6)])
@pytest.mark.parametrize("loss", bptt.LOSSES)
def test_gradients_are_those_of_pytorch(loss: str, dtype: type, tolerance: float) -> None:
    net, theta, chunk = golden_problem(dtype)
    value, ours = gradient(net, theta, chunk, loss=loss)
    assert value == pytest.approx(float(GOLDEN[f"{loss}.loss"]), rel=tolerance)
    for name, tensor in bptt.unpack(GOLDEN_SPEC, ours).items():
        theirs = GOLDEN[f"{loss}.gradient.{name}"]
        np.testing.assert_allclose(tensor, theirs, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(
    "spec",
    [
        Spec(step_ns=1, horizon=3, inputs=2, hidden=5, layers=2, lags=(1, 2)),
        Spec(step_ns=1, horizon=1, hidden=16, activation="relu",
             recurrent_activation="hard_sigmoid"),
        Spec(step_ns=1, horizon=17, hidden=18, layers=3, activation="sigmoid",
             head_activation="tanh"),
        Spec(step_ns=1, horizon=2, hidden=7, activation="linear", recurrent_activation="tanh",
             head_activation="sigmoid"),
        Spec(step_ns=1, horizon=2, hidden=4, layers=2, activation="hard_sigmoid",
             head_activation="relu"),
        Spec(step_ns=1, horizon=2, hidden=4, layers=2, activation=("sigmoid", "tanh"),
             recurrent_activation=("tanh", "sigmoid")),
    ],
    ids=lambda spec: f"{spec.activation}-{spec.recurrent_activation}-{spec.head_activation}",
)  # fmt: skip
@pytest.mark.parametrize(
    "options", [{"loss": "mse"}, {"loss": "huber", "dropout": 0.3, "head_dropout": 0.2}]
)
def test_gradients_are_differences(spec: Spec, options: dict[str, Any]) -> None:
    net, theta, chunk = random_problem(spec, rows=19, steps=5, dtype=np.float64)
    _, exact = gradient(net, theta, chunk, **options)
    ones = {name: np.ones(shape) for name, shape in spec.weight_shapes().items()}
    used = np.flatnonzero(bptt.pack(spec, ones))
    assert not np.delete(exact, used).any()  # what pads the matrices is not learned
    step = 1e-6
    for at in np.random.default_rng(1).choice(used, 20, replace=False):
        losses = []
        for sign in (1, -1):
            moved = theta.copy()
            moved[at] += sign * step
            losses.append(gradient(net, moved, chunk, **options)[0])
        numeric = (losses[0] - losses[1]) / (2 * step)
        assert exact[at] == pytest.approx(numeric, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("hidden", [5, 64])
def test_single_precision_agrees_with_double(hidden: int) -> None:
    spec = Spec(step_ns=1, horizon=24, hidden=hidden, layers=2, lags=(1, 2, 3))
    results = []
    for dtype in (np.float32, np.float64):
        problem = random_problem(spec, rows=33, steps=20, dtype=dtype)
        options = {"loss": "mae", "dropout": 0.2, "head_dropout": 0.1}
        results.append(gradient(*problem, **options)[1])
    scale = np.abs(results[1]).max()
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=2e-5 * scale)


def test_outputs_and_states_are_those_of_the_reference() -> None:
    spec = Spec(step_ns=1, horizon=5, hidden=20, layers=2, lags=(1,))
    net, theta, chunk = random_problem(spec, rows=3, steps=30)
    rows = np.array([[0, 30, 0], [50, 30, 0], [100, 12, 0]])
    chunk = chunk._replace(
        rows=rows, state=np.zeros_like(chunk.state), prediction=np.full_like(chunk.target, np.nan)
    )
    work = bptt.allocate(net, 3, 30, False)
    bptt.predict(net, theta, work, chunk)
    network = network_of(spec, bptt.unpack(spec, theta))
    written = np.zeros(len(chunk.x), bool)
    for row, (start, length, _) in enumerate(rows):
        buffers = reference.allocate(network, 1)
        answer = np.zeros((length, spec.outputs))
        reference.step(
            buffers,
            np.zeros(length, np.int32),
            chunk.x[start : start + length],
            np.arange(length + 1),
            answer,
        )
        ours = chunk.prediction[start : start + length]
        np.testing.assert_allclose(ours, answer, atol=2e-5)
        final = reference.to_host(buffers, np.zeros(1, np.int32))[0][:, :, : spec.hidden]
        np.testing.assert_allclose(chunk.state[:, :, row, : spec.hidden], final, atol=2e-5)
        written[start : start + length] = True
    assert np.isnan(chunk.prediction[~written]).all()


def test_a_sequence_in_pieces_is_the_sequence() -> None:
    spec = Spec(step_ns=1, horizon=2, hidden=8)
    net, theta, chunk = random_problem(spec, rows=2, steps=24)
    work = bptt.allocate(net, 2, 24, False)
    whole = chunk._replace(
        rows=np.array([[0, 24, 4], [60, 24, 4]]),
        state=np.zeros_like(chunk.state),
        prediction=np.zeros_like(chunk.target),
    )
    total, count = bptt.predict(net, theta, work, whole)
    pieces = whole._replace(
        steps=8, state=np.zeros_like(chunk.state), prediction=np.zeros_like(chunk.target)
    )
    sums = np.zeros(2)
    for begun in (0, 8, 16):
        rows = np.array([[begun, 8, max(4 - begun, 0)], [60 + begun, 8, max(4 - begun, 0)]])
        sums += bptt.predict(net, theta, work, pieces._replace(rows=rows))
    assert sums[1] == count
    assert sums[0] == pytest.approx(total, rel=1e-6)
    np.testing.assert_array_equal(pieces.prediction, whole.prediction)
    np.testing.assert_array_equal(pieces.state, whole.state)


def test_dropout_depends_on_its_seed_and_drops_its_share() -> None:
    spec = Spec(step_ns=1, horizon=1, hidden=64)
    problem = random_problem(spec, rows=20, steps=10)
    losses = [gradient(*problem, head_dropout=0.5, seed=seed)[0] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    net, theta, chunk = problem
    zeros = np.zeros(net.at[-1], np.float32)
    zeros[net.at[3] :] = theta[net.at[3] :]  # a layer of zeros but for its head: h is its bias
    zeros[net.at[2] : net.at[2] + 4 * net.units] = 5
    ones = chunk._replace(state=np.zeros_like(chunk.state), target=0 * chunk.x[:, :1] + 1e3)
    _, whole = gradient(net, zeros, ones, loss="mae")
    _, half = gradient(net, zeros, ones, loss="mae", head_dropout=0.5)
    head = slice(net.at[3], net.at[3] + 64)
    assert np.mean(half[head]) == pytest.approx(np.mean(whole[head]), rel=0.03)
    assert np.std(half[head] / whole[head]) > 0.02
