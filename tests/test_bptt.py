"""An update is PyTorch's, the same bits however it is computed, and safe to interrupt."""

import threading
from typing import Any

import numpy as np
import pytest

from streamlstm import bptt
from streamlstm.model import Spec
from tests.problems import GOLDEN, GOLDEN_SPEC, golden_problem, gradient, random_problem


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
    before = set(threading.enumerate())
    net = bptt.net_of(Spec(step_ns=1, horizon=1, hidden=4))
    work = bptt.allocate(net, 64, 4, False, threads=3)
    helpers = set(threading.enumerate()) - before
    assert len(helpers) == 2
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


@pytest.mark.parametrize(
    ("batch", "steps", "drops", "said"),
    [(8, 10, False, "40 rows"), (40, 5, False, "10 steps"), (40, 10, True, "dropout")],
)
def test_what_does_not_fit_is_refused(batch: int, steps: int, drops: bool, said: str) -> None:
    net, theta, chunk = random_problem(Spec(step_ns=1, horizon=1, hidden=4), rows=40, steps=10)
    work = bptt.allocate(net, batch, steps, False)
    with pytest.raises(ValueError, match=said):
        bptt.learn(net, theta, work, chunk, bptt.adam(net), 1, 0.1, head_dropout=0.1 * drops)


def test_rows_that_leave_the_pool_are_refused() -> None:
    net, theta, chunk = random_problem(Spec(step_ns=1, horizon=1, hidden=4), rows=4, steps=10)
    work = bptt.allocate(net, 4, 10, False)
    for row in ([195, 10, 0], [-1, 5, 0], [0, 11, 0]):
        chunk.rows[2] = row
        with pytest.raises(ValueError, match="pool"):
            bptt.predict(net, theta, work, chunk)


def test_other_cells_are_refused() -> None:
    with pytest.raises(ValueError, match="gru"):
        bptt.net_of(Spec(step_ns=1, horizon=1, hidden=4, cell="gru"))
