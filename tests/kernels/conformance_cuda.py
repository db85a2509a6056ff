"""What the CUDA step owes, on whatever runs it: `test_cuda` runs this in Numba's simulator.

By hand, on a machine with a GPU: `pytest tests/kernels/conformance_cuda.py`.
"""

import os
import threading

import numpy as np
import pytest

from streamlstm.engine import Engine
from streamlstm.golden import check_golden
from streamlstm.kernels import cpu, cuda, reference
from streamlstm.kernels.cell import TRAINABLE, BackendError
from streamlstm.ticks import Ticks
from tests.kernels.networks import CELLS, random_network
from tests.kernels.test_cpu import apart, batch, in_place
from tests.models import random_model

SIMULATED = bool(os.environ.get("NUMBA_ENABLE_CUDASIM"))
if SIMULATED:
    from numba.cuda.simulator import kernel as simulator

    class BlockThread(simulator.BlockThread):
        """Sleeps until all of its block are there."""

        def syncthreads(self):
            self._manager.together.wait()

        def run(self):
            super().run()
            if self.exception:
                self._manager.together.abort()

    class BlockManager(simulator.BlockManager):
        """The simulator's own asks its threads again and again, and keeps them from running."""

        def run(self, grid_point, *args):
            points = list(np.ndindex(*self._block_dim))
            self.together = threading.Barrier(len(points), timeout=60)

            def lane():
                self.together.wait()  # who runs keeps others from being started
                self._f(*args)

            threads = [BlockThread(lane, self, grid_point, point, self._debug) for point in points]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            # the others' is that it did not come
            raised = [thread.exception for thread in threads if thread.exception]
            raised.sort(key=lambda one: isinstance(one[0], threading.BrokenBarrierError))
            for exception, traceback in raised[:1]:
                raise exception.with_traceback(traceback)

    simulator.BlockManager = BlockManager
ROOMY = cuda.Limits(1, 200_000, 400_000, 0)  # weights stay, of two blocks
NARROW = cuda.Limits(1, 30_000, 30_000, 0)  # weights come in chunks of 32 terms
LEAST = cuda.Limits(1, 9_500, 9_500, 0)  # of 8


def stepped(kernels, network, records, slots, inputs, rounds, **options):
    """Records of all series and outputs after a step from these records."""
    everyone = np.arange(len(records), dtype=np.int32)
    buffers = kernels.allocate(network, len(records))
    kernels.from_host(buffers, everyone, records)
    outputs = np.zeros((len(slots), len(network.head.bias)), np.float32)
    kernels.step(buffers, slots, inputs, rounds, outputs)
    return kernels.to_host(buffers, everyone), outputs


def some_records(count, network, seed=0):
    """States at random; with a window rings of all ages, whose inputs since the start are there."""
    buffers = reference.allocate(network, count)
    random = np.random.default_rng(seed)
    if network.window:
        seen = np.arange(count) % (2 * network.window)
        rings = buffers.state[:, :-1].reshape(count, network.window, -1)
        held = np.arange(network.window) < seen[:, None]
        rings[held] = random.uniform(-1, 1, (held.sum(), rings.shape[2]))
        buffers.state[:, -1] = seen
    else:
        for number, layer in enumerate(network.layers):
            hidden = layer.weight_hh.shape[1]
            shape = count, buffers.state.shape[2], hidden
            buffers.state[:, number, :, :hidden] = random.uniform(-1, 1, shape)
    return buffers.state.astype(np.float32)


def check_against_the_twins(network, count=3, seed=0):
    """One step within tolerance of float64, and in the simulator the records of the CPU in bits."""
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((count, network.head.skip.shape[1]))
    slots, x, rounds, _ = batch(random.permutation(count + 2)[:count], inputs, 1)
    given = (some_records(count + 2, network), slots, x, rounds)
    ours, theirs = stepped(cuda, network, *given), stepped(cpu, network, *given)
    records, outputs = stepped(reference, network, *given)
    np.testing.assert_allclose(ours[1], outputs, atol=4e-6)
    if network.window:
        np.testing.assert_array_equal(ours[0], records)
    else:
        for number, layer in enumerate(network.layers):
            units = slice(layer.weight_hh.shape[1])  # others mean nothing
            difference = np.abs(ours[0] - records)[:, number, :, units]
            assert difference[:, 0].max() <= 1e-6
            assert difference[:, 1:].max(initial=0) <= 2e-6
    check_twins(ours, theirs)


def check_twins(ours, theirs):
    if SIMULATED:
        assert ours[0].tobytes() == theirs[0].tobytes()
    np.testing.assert_allclose(ours[0], theirs[0], atol=2e-6)
    np.testing.assert_allclose(ours[1], theirs[1], atol=4e-6)  # heads sum up in orders of their own


SIZES = [(1, 1, 1, 1), (16, 1, 1, 2), (5, 7, 2, 3), (23, 2, 3, 1), (33, 40, 1, 35), (64, 1, 1, 1)]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("hidden", "inputs", "layers", "outputs"), SIZES)
def test_a_step_is_that_of_the_reference_and_of_the_cpu(hidden, inputs, layers, outputs, cell):
    check_against_the_twins(random_network(hidden, inputs, layers, outputs, **CELLS[cell]))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("window", [1, 3])
def test_a_window_of_inputs_is_run_afresh(window, cell):
    network = random_network(18, 2, 2, 3, window=window, **CELLS[cell])
    check_against_the_twins(network, count=2 * window + 2)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("activation", "recurrent"),
    list(zip(TRAINABLE, ("sigmoid", "tanh", "hard_sigmoid", "relu", "linear"), strict=True)),
)
def test_every_activation(activation, recurrent, cell):
    network = random_network(
        6, 2, 1, 2, activation, recurrent, head_activation=activation, **CELLS[cell]
    )
    check_against_the_twins(network, count=2)


def test_layers_may_differ_in_size():
    lower, upper = random_network(20, 2), random_network(9, 20, outputs=3)
    head = upper.head._replace(skip=np.ones((3, 2), np.float32))
    network = lower._replace(layers=lower.layers + upper.layers, head=head)
    check_against_the_twins(network)


@pytest.mark.parametrize(
    "spec",
    [{}, {"cell": "gru"}, {"cell": "gru", "reset_after": False}, {"cell": "rnn"}, {"window": 4}],
    ids=str,
)
def test_it_repeats_the_golden_of_a_model(spec):
    check_golden(random_model(hidden=20, **spec), cuda)


def test_an_engine_forecasts_as_it_does_on_the_cpu():
    model, points = random_model(), {}
    values = np.random.default_rng(0).standard_normal((5, model.spec.inputs))
    ts = np.array([1, 1, 1, 2, 2]) * model.spec.step_ns
    for backend in ("cpu", "cuda"):
        engine = Engine(model, backend=backend, max_series=5, max_batch=8)
        engine.warm_up()
        slots = np.array([0, 1, 2, 1, 0], np.int32)
        points[backend] = engine.step(Ticks(slots, ts, values, np.zeros(5, np.uint8)), 0).point
        assert engine.backend == backend
        assert len(points[backend]) == 5
    np.testing.assert_allclose(points["cuda"], points["cpu"], rtol=1e-5, atol=1e-5)


# --- the same bits --------------------------------------------------------------------------------

SERIES, TICKS = 10, 2
KINDS = {**CELLS, "window": {"window": 2}}
STREAM = np.random.default_rng(5).standard_normal((SERIES, TICKS, 3)).astype(np.float32)


@pytest.fixture(scope="module", params=KINDS)
def alone(request):
    """A network, and records and outputs of each series when it is stepped by itself."""
    network = random_network(20, 3, layers=2, outputs=5, seed=3, **KINDS[request.param])
    buffers = cuda.allocate(network, SERIES)
    outputs = np.zeros((SERIES, TICKS, 5), np.float32)
    for series in range(SERIES):
        slots = np.full(TICKS, series, np.int32)
        cuda.step(buffers, slots, STREAM[series], np.arange(TICKS + 1), outputs[series])
    return network, cuda.to_host(buffers, np.arange(SERIES, dtype=np.int32)), outputs


def check_any_order(alone, seed, cuts, layout=apart):
    """The stream in a random order and in batches, against each series by itself."""
    network, records, expected = alone
    random = np.random.default_rng(seed)
    order = random.permutation(np.repeat(np.arange(SERIES, dtype=np.int32), TICKS))
    buffers = cuda.allocate(network, SERIES)
    done = np.zeros(SERIES, int)
    for slots in np.split(order, np.sort(random.integers(0, len(order), cuts))):
        ticks = np.zeros(len(slots), int)
        for at, slot in enumerate(slots):
            ticks[at] = done[slot]
            done[slot] += 1
        rows, rounds = layout(slots)
        slots, ticks = slots[rows], ticks[rows]
        outputs = np.zeros((len(slots), 5), np.float32)
        cuda.step(buffers, slots, STREAM[slots, ticks], rounds, outputs)
        assert outputs.tobytes() == expected[slots, ticks].tobytes()
    own = cuda.to_host(buffers, np.arange(SERIES, dtype=np.int32))
    assert own.tobytes() == records.tobytes()


@pytest.mark.parametrize("layout", [in_place, apart])
def test_a_series_has_the_same_bits_in_any_batch_place_and_round(alone, layout):
    check_any_order(alone, 0, 2, layout)


def test_a_batch_larger_than_pinned_memory_goes_in_parts(alone, monkeypatch):
    monkeypatch.setattr(cuda, "SUBMIT", 7)
    check_any_order(alone, 4, cuts=0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_shape_gives_the_same_bits(monkeypatch, kind):
    network = random_network(37, 3, outputs=2, seed=1, **KINDS[kind])
    random = np.random.default_rng(0)
    slots, inputs, rounds, _ = batch(random.permutation(9), random.standard_normal((9, 3)), 2)
    given = (some_records(9, network), slots, inputs, rounds)
    expected = stepped(cuda, network, *given)
    shapes = set()
    for room, side in ((ROOMY, 1), (NARROW, 1), (NARROW, 2), (LEAST, 2)):
        monkeypatch.setattr(cuda, "limits", lambda room=room: room)
        monkeypatch.setattr(cuda, "SIDE", {cuda.MANY: side, cuda.FEW: side})
        shapes.add(cuda.allocate(network, 1).few.shape)
        for own, theirs in zip(stepped(cuda, network, *given), expected, strict=True):
            assert own.tobytes() == theirs.tobytes()
    few = network.layers[0].cell == "rnn"  # whose weights are
    assert {shape.chunk for shape in shapes} == ({8, 40} if few else {8, 32, 40})
    assert {shape.together for shape in shapes} == ({1} if few else {1, 2})


@pytest.mark.parametrize(
    ("room", "kind"), [*((ROOMY, kind) for kind in KINDS), (NARROW, "lstm"), (NARROW, "gru_before")]
)
def test_large_rounds_have_the_records_of_the_cpu(monkeypatch, room, kind):
    network = random_network(18, 2, layers=2, outputs=2, **KINDS[kind])
    random = np.random.default_rng(0)
    slots, inputs, rounds, _ = batch(random.permutation(40)[:37], random.random((37, 2)), 2)
    given = (some_records(40, network), slots, inputs, rounds)
    expected = stepped(cpu, network, *given)
    monkeypatch.setattr(cuda, "limits", lambda: room)
    monkeypatch.setattr(cuda, "WARPS", 2)
    buffers = cuda.allocate(network, 1)
    assert buffers.many.shape.rows == cuda.MANY
    assert buffers.few.shape.tile * buffers.few.shape.blocks < 37
    large = stepped(cuda, network, *given)
    check_twins(large, expected)
    small = [
        stepped(cuda, network, given[0], slots[k:][:1], inputs[k:][:1], np.array([0, 1]))[1]
        for k in (0, 36)
    ]
    assert large[1][[0, 36]].tobytes() == np.concatenate(small).tobytes()


# --- neighbours, memory, refusals -----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_inputs_stay_with_their_own_series(kind):
    network = random_network(5, 2, outputs=2, **KINDS[kind])
    hostile, calm = cuda.allocate(network, 12), cuda.allocate(network, 12)
    random = np.random.default_rng(0)
    extremes = np.array([3e38, -3e38, 1e-45, -1e-40, 1e30, np.inf, np.nan])
    everyone = np.arange(12, dtype=np.int32)
    for _ in range(2):
        args = batch(everyone, random.standard_normal((12, 2)), 2)
        cuda.step(calm, *args)
        expected = args[3].copy()
        args[1][: len(extremes)] = extremes[:, None] * [1, -1]
        with np.errstate(all="ignore"):
            cuda.step(hostile, *args)
        others = slice(len(extremes), None)
        assert args[3][others].tobytes() == expected[others].tobytes()
        own, theirs = cuda.to_host(hostile, everyone), cuda.to_host(calm, everyone)
        assert own[others].tobytes() == theirs[others].tobytes()
        assert np.isfinite(own).all() or network.window


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_named_slots_change(kind):
    network = random_network(10, layers=2, **KINDS[kind])
    buffers = cuda.allocate(network, 20)
    everyone = np.arange(20, dtype=np.int32)
    records = some_records(20, network)
    cuda.from_host(buffers, everyone, records)
    assert cuda.to_host(buffers, everyone).tobytes() == records.tobytes()
    cuda.step(buffers, *batch([3, 17, 4], np.ones((3, 1)), 1))
    changed = (cuda.to_host(buffers, everyone) != records).reshape(20, -1).any(axis=1)
    assert set(np.flatnonzero(changed)) == {3, 4, 17}
    wanted = cuda.to_host(buffers, everyone)
    wanted[[4, 9]] = 0
    cuda.clear(buffers, np.array([4, 9], np.int32))
    assert cuda.to_host(buffers, everyone).tobytes() == wanted.tobytes()
    assert len(cuda.host_records(buffers)) == 0


def test_records_move_in_parts(monkeypatch):
    network = random_network(10, layers=2)
    monkeypatch.setattr(cuda, "PINNED", 4 * 3 * 64)  # of three records
    buffers = cuda.allocate(network, 8)
    assert len(buffers.moved) == 3
    slots = np.array([6, 1, 0, 7, 3, 2, 5], np.int32)
    records = some_records(7, network)
    cuda.from_host(buffers, slots, records)
    assert cuda.to_host(buffers, slots).tobytes() == records.tobytes()
    assert not cuda.to_host(buffers, np.array([4], np.int32)).any()


def test_states_start_at_zero_and_warm_up_keeps_them():
    buffers = cuda.allocate(random_network(10, layers=2), 5)
    cuda.warm_up(buffers)
    assert not cuda.to_host(buffers, np.arange(5, dtype=np.int32)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_per_series_are_those_of_a_record(kind):
    network = random_network(40, 3, layers=2, **KINDS[kind])
    buffers = cuda.allocate(network, 7)
    assert buffers.state.nbytes == 7 * cuda.bytes_per_series(network)
    assert cuda.bytes_per_series(network) == cpu.bytes_per_series(network)


def test_rarer_activations_are_refused():
    for network in (random_network(3, 1, 1, 1, "elu"), random_network(3, head_activation="elu")):
        with pytest.raises(BackendError, match="no activation elu; set backend = 'cpu'"):
            cuda.allocate(network, 1)


def test_layers_of_different_activations_are_refused():
    network = random_network(8, layers=2)
    layers = (network.layers[0], network.layers[1]._replace(activation="relu"))
    with pytest.raises(BackendError, match="same activations in all layers; set backend = 'cpu'"):
        cuda.allocate(network._replace(layers=layers), 1)


def test_what_does_not_fit_in_shared_memory_is_refused(monkeypatch):
    monkeypatch.setattr(cuda, "limits", lambda: cuda.Limits(1, 2000, 2000, 0))
    with pytest.raises(BackendError, match="16 units do not fit in 2000 bytes"):
        cuda.allocate(random_network(8), 1)
