"""Gradients are right in both precisions; an update is the same bits however it is computed."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streamlstm import bptt
from streamlstm.golden import network_of
from streamlstm.kernels import reference
from streamlstm.model import Spec

GOLDEN = np.load(Path(__file__).parent / "goldens" / "gradients.npz")
GOLDEN_SPEC = Spec(step_ns=1, hidden=13, layers=2, horizon=4, inputs=3)
Array = NDArray[Any]


def golden_problem(dtype: type) -> tuple[bptt.Net, Array, bptt.Chunk]:
    net = bptt.net_of(GOLDEN_SPEC)
    weights = {k: GOLDEN[f"weights.{k}"] for k in GOLDEN_SPEC.weight_shapes()}
    rows, steps, _ = GOLDEN["x"].shape
    state = np.zeros((2, 2, rows, net.units), dtype)
    state[:, 0, :, :13], state[:, 1, :, :13] = GOLDEN["start.h"], GOLDEN["start.c"]
    chunk = bptt.Chunk(
        steps,
        GOLDEN["x"].reshape(-1, 3).astype(dtype),
        GOLDEN["target"].reshape(-1, 4).astype(dtype),
        np.ones(4, dtype),
        np.array([[row * steps, steps, 0] for row in range(rows)]),
        state,
        np.zeros((0, 4), dtype),
    )
    return net, bptt.pack(GOLDEN_SPEC, weights, dtype), chunk


def random_problem(
    spec: Spec, rows: int, steps: int, dtype: type = np.float32, seed: int = 0
) -> tuple[bptt.Net, Array, bptt.Chunk]:
    """Random spans of random lengths, with states carried in, gaps and steps not scored."""
    rng = np.random.default_rng(seed)
    weights = {k: 0.3 * rng.normal(size=shape) for k, shape in spec.weight_shapes().items()}
    net, size = bptt.net_of(spec), 200
    target = rng.normal(size=(size, spec.outputs)).astype(dtype)
    target[rng.random(target.shape) < 0.1] = np.nan
    state = np.zeros((spec.layers, 2, rows, net.units), dtype)
    state[..., : spec.hidden] = 0.5 * rng.normal(size=(spec.layers, 2, rows, spec.hidden))
    chunk = bptt.Chunk(
        steps,
        rng.normal(size=(size, spec.width)).astype(dtype),
        target,
        rng.uniform(0.5, 2, spec.outputs).astype(dtype),
        np.stack(
            [
                rng.integers(0, size - steps, rows),
                rng.integers(steps - 2, steps + 1, rows),
                rng.integers(0, 3, rows),
            ],
            axis=1,
        ),
        state,
        np.zeros((0, spec.outputs), dtype),
    )
    return net, bptt.pack(spec, weights, dtype), chunk


def gradient(net: bptt.Net, theta: Array, chunk: bptt.Chunk, **options: Any) -> tuple[float, Array]:
    """Loss and gradient; the state of the chunk is left as it is."""
    drops = options.get("dropout", 0) + options.get("head_dropout", 0) > 0
    work = bptt.allocate(net, len(chunk.rows), chunk.steps, drops, theta.dtype.type)
    optimizer = bptt.adam(net, theta.dtype.type)
    same = chunk._replace(state=chunk.state.copy())
    loss = bptt.learn(net, theta, work, same, optimizer, 1, 0.0, **options)
    return loss, optimizer.gradient


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-6)])
@pytest.mark.parametrize("loss", bptt.LOSSES)
def test_gradients_are_those_of_pytorch(loss: str, dtype: type, tolerance: float) -> None:
    net, theta, chunk = golden_problem(dtype)
    value, ours = gradient(net, theta, chunk, loss=loss)
    assert value == pytest.approx(float(GOLDEN[f"{loss}.loss"]), rel=tolerance)
    for name, tensor in bptt.unpack(GOLDEN_SPEC, ours).items():
        theirs = GOLDEN[f"{loss}.gradient.{name}"]
        np.testing.assert_allclose(tensor, theirs, rtol=0, atol=tolerance, err_msg=name)


def test_training_follows_pytorch() -> None:
    net, theta, chunk = golden_problem(np.float64)
    work = bptt.allocate(net, len(chunk.rows), chunk.steps, False, np.float64)
    optimizer, start, curve = bptt.adam(net, np.float64), chunk.state.copy(), []
    for time in range(1, len(GOLDEN["curve"]) + 1):
        chunk.state[:] = start
        curve.append(bptt.learn(net, theta, work, chunk, optimizer, time, 1e-2, clip=0.5))
    np.testing.assert_allclose(curve, GOLDEN["curve"], rtol=1e-7)
    for name, tensor in bptt.unpack(GOLDEN_SPEC, theta).items():
        np.testing.assert_allclose(tensor, GOLDEN[f"trained.{name}"], atol=1e-7, err_msg=name)


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


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_an_update_is_the_same_bits_for_any_number_of_threads(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bptt, "WORTH_HELP", 0)
    spec = Spec(step_ns=1, horizon=3, hidden=24, layers=2, lags=(1,))
    results = []
    for count in (1, threads):
        net, theta, chunk = random_problem(spec, rows=50, steps=10)
        work, optimizer = bptt.allocate(net, 50, 10, True, threads=count), bptt.adam(net)
        for time in range(1, 21):
            options: dict[str, Any] = {"clip": 1.0, "dropout": 0.2, "seed": 3, "ema": 0.9}
            bptt.learn(net, theta, work, chunk, optimizer, time, 1e-2, **options)
        results.append((theta, optimizer.average, chunk.state))
    for one, many in zip(*results, strict=True):
        np.testing.assert_array_equal(one, many)


def test_helpers_leave_with_their_work() -> None:
    before = threading.active_count()
    net = bptt.net_of(Spec(step_ns=1, horizon=1, hidden=4))
    work = bptt.allocate(net, 64, 4, False, threads=3)
    helpers = [t for t in threading.enumerate() if t.name.startswith("bptt")]
    assert threading.active_count() == before + 2
    del work
    for helper in helpers:
        helper.join(timeout=10)
        assert not helper.is_alive()


def test_an_interrupted_job_is_settled_before_the_next() -> None:
    spec = Spec(step_ns=1, horizon=2, hidden=8)
    net, theta, chunk = random_problem(spec, rows=40, steps=10)
    expected = gradient(net, theta, chunk)
    work, optimizer = bptt.allocate(net, 40, 10, False, threads=2), bptt.adam(net)
    # as an interrupt leaves it: a shard was begun by a helper, which is about to finish it
    tally = np.array([1, 0, 3])
    work._tally = tally
    done = threading.Timer(0.05, lambda: tally.__setitem__(1, 1))
    done.start()
    same = chunk._replace(state=chunk.state.copy())
    loss = bptt.learn(net, theta, work, same, optimizer, 1, 0.0)
    assert not done.is_alive()
    assert tally[0] > 3  # no shard of it is left to take
    assert loss == expected[0]
    np.testing.assert_array_equal(optimizer.gradient, expected[1])


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


def test_weights_survive_packing() -> None:
    spec = Spec(step_ns=1, horizon=19, hidden=33, layers=2, lags=(1, 5), calendar=("hour",))
    rng = np.random.default_rng(0)
    weights = {
        k: rng.normal(size=shape).astype(np.float32) for k, shape in spec.weight_shapes().items()
    }
    for name, tensor in bptt.unpack(spec, bptt.pack(spec, weights)).items():
        np.testing.assert_array_equal(tensor, weights[name])


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    spec = Spec(step_ns=1, horizon=1, hidden=4)
    net, theta, chunk = random_problem(spec, rows=4, steps=4)
    theta[0] = np.inf
    before = theta.copy()
    work, optimizer = bptt.allocate(net, 4, 4, False), bptt.adam(net)
    bptt.learn(net, theta, work, chunk._replace(target=chunk.target * 1e30), optimizer, 1, 0.1)
    np.testing.assert_array_equal(theta, before)


def test_the_average_trails_the_parameters() -> None:
    spec = Spec(step_ns=1, horizon=1, hidden=4)
    net, theta, chunk = random_problem(spec, rows=4, steps=4)
    work, optimizer = bptt.allocate(net, 4, 4, False), bptt.adam(net)
    optimizer.average[:] = theta
    expected = theta.astype(np.float64)
    for time in range(1, 4):
        bptt.learn(net, theta, work, chunk, optimizer, time, 0.01, ema=0.9)
        expected = 0.9 * expected + 0.1 * theta
    np.testing.assert_allclose(optimizer.average, expected, atol=1e-6)
