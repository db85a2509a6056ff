"""The CPU step against the oracle and PyTorch, and the same bits however it is called."""

import tracemalloc
from itertools import pairwise

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core import event

from streamlstm.jit import njit
from streamlstm.kernels import cpu, layers, reference, simd, tiles
from streamlstm.kernels.cell import ACTIVATIONS, Stages, padded
from streamlstm.memory import require
from tests.kernels.networks import CELLS, LONG, OTHERS, SHORT, golden, random_network


def batch(slots, inputs, outputs):
    """Arguments of a step of unique slots."""
    slots = np.asarray(slots, np.int32)
    inputs = np.ascontiguousarray(inputs, np.float32)
    return slots, inputs, np.array([0, len(slots)]), np.zeros((len(slots), outputs), np.float32)


@pytest.mark.parametrize("name", SHORT)
def test_step_follows_pytorch(name):
    network, arrays = golden(name)
    hidden = arrays["h"].shape[2]
    buffers = cpu.allocate(network, 3)
    for x, h, c, y in zip(
        arrays["inputs"], arrays["h"], arrays["c"], arrays["outputs"], strict=True
    ):
        args = batch([1], x[None], len(y))
        cpu.step(buffers, *args)
        record = cpu.to_host(buffers, args[0])[0, :, :, :hidden]
        np.testing.assert_allclose(record[:, 0], h, atol=2e-6)
        np.testing.assert_allclose(record[:, 1], c, atol=4e-6)
        np.testing.assert_allclose(args[3][0], y, atol=4e-6)
    assert not buffers.state[[0, 2]].any()


@pytest.mark.parametrize("name", OTHERS)
def test_step_follows_pytorchs_gru_and_rnn(name):
    network, arrays = golden(name)
    hidden = arrays["h"].shape[2]
    buffers = cpu.allocate(network, 3)
    for x, h, y in zip(arrays["inputs"], arrays["h"], arrays["outputs"], strict=True):
        args = batch([1], x[None], len(y))
        cpu.step(buffers, *args)
        np.testing.assert_allclose(cpu.to_host(buffers, args[0])[0, :, 0, :hidden], h, atol=2e-6)
        np.testing.assert_allclose(args[3][0], y, atol=4e-6)
    assert not buffers.state[[0, 2]].any()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("hidden", [1, 5, 16, 32, 50, 64, 100, 128, 256])
@pytest.mark.parametrize("inputs", [1, 7])
def test_h_after_one_step_is_within_1e_6_of_float64(hidden, inputs, cell):
    network = random_network(hidden, inputs, outputs=3, **CELLS[cell])
    fast, exact = cpu.allocate(network, 64), reference.allocate(network, 64)
    random = np.random.default_rng(hidden)
    parts = 2 if cell == "lstm" else 1
    records = np.zeros((64, 1, parts, padded(hidden)), np.float32)
    records[..., :hidden] = random.uniform(-1, 1, (64, 1, parts, hidden))
    everyone = np.arange(64, dtype=np.int32)
    cpu.from_host(fast, everyone, records)
    reference.from_host(exact, everyone, records)
    args = batch(random.permutation(64)[:55], random.standard_normal((55, inputs)), 3)
    expected = np.zeros((55, 3))
    cpu.step(fast, *args)
    reference.step(exact, *args[:3], expected)
    difference = np.abs(cpu.to_host(fast, everyone) - exact.state)
    assert difference[:, :, 0].max() <= 1e-6
    assert difference[:, :, 1:].max(initial=0) <= 2e-6
    np.testing.assert_allclose(args[3], expected, atol=2e-6)
    assert not cpu.to_host(fast, everyone)[..., hidden:].any()


@pytest.mark.parametrize("name", LONG)
def test_ten_thousand_steps_stay_within_four_times_pytorchs_own_error(name):
    network, arrays = golden(name)
    buffers = cpu.allocate(network, 1)
    hidden, every = arrays["h"].shape[1], int(arrays["every"])
    worst = 0.0
    for at, h in enumerate(arrays["h"]):
        x = arrays["inputs"][at * every : (at + 1) * every]
        outputs = np.zeros((every, 1), np.float32)
        cpu.step(buffers, np.zeros(every, np.int32), x, np.arange(every + 1), outputs)
        top = cpu.to_host(buffers, np.zeros(1, np.int32))[0, -1, 0, :hidden]
        worst = max(worst, np.abs(top - h).max())
    assert worst <= 4 * arrays["torch_error"]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("recurrent", ["sigmoid", "relu", "softsign"])
def test_every_activation_of_every_cell_follows_float64(cell, activation, recurrent):
    network = random_network(
        21, 2, layers=2, outputs=3, activation=activation, recurrent_activation=recurrent,
        **CELLS[cell],
    )  # fmt: skip
    if activation == "exponential":  # of itself it grows beyond what can be compared
        calm = [layer._replace(weight_hh=layer.weight_hh / 20) for layer in network.layers]
        network = network._replace(layers=tuple(calm))
    fast, exact = cpu.allocate(network, 9), reference.allocate(network, 9)
    random = np.random.default_rng(0)
    for _ in range(3):
        args = batch(random.permutation(9), random.standard_normal((9, 2)), 3)
        expected = np.zeros((9, 3))
        cpu.step(fast, *args)
        reference.step(exact, *args[:3], expected)
        np.testing.assert_allclose(args[3], expected, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_window_of_inputs_is_run_afresh_at_every_step(cell, window):
    """Series of different ages in every batch: as many steps as have come, at most the window."""
    network = random_network(21, 3, layers=2, outputs=5, window=window, **CELLS[cell])
    fast, exact = cpu.allocate(network, 60, threads=2), reference.allocate(network, 60)
    cpu.warm_up(fast)
    random = np.random.default_rng(0)
    for count in (1, 30, 7, 60, 49, 1, 60, 60, 60, 60, 60, 60, 13):
        args = batch(random.permutation(60)[:count], random.standard_normal((count, 3)), 5)
        expected = np.zeros((count, 5))
        cpu.step(fast, *args)
        reference.step(exact, *args[:3], expected)
        np.testing.assert_allclose(args[3], expected, atol=4e-6)
        everyone = np.arange(60, dtype=np.int32)
        np.testing.assert_array_equal(cpu.to_host(fast, everyone), exact.state)


def test_a_ring_of_inputs_goes_out_and_comes_back():
    network = random_network(16, 2, window=3)
    whole, moved = cpu.allocate(network, 5), cpu.allocate(network, 5)
    random = np.random.default_rng(0)
    before = batch(range(5), random.standard_normal((5, 2)), 1)
    for _ in range(4):
        cpu.step(whole, *before)
    everyone = np.arange(5, dtype=np.int32)
    cpu.from_host(moved, everyone, cpu.to_host(whole, everyone))
    after = batch(range(5), random.standard_normal((5, 2)), 1)
    cpu.step(whole, *after)
    expected = after[3].copy()
    cpu.step(moved, *after)
    assert after[3].tobytes() == expected.tobytes()


@pytest.mark.parametrize("window", [0, 6])
@pytest.mark.parametrize("cell", CELLS)
def test_bytes_per_series_are_what_is_allocated(cell, window):
    network = random_network(40, 3, layers=2, window=window, **CELLS[cell])
    assert cpu.bytes_per_series(network) == cpu.allocate(network, 4).state.nbytes // 4
    parts = 2 if cell == "lstm" else 1
    assert cpu.bytes_per_series(network) == ((6 * 3 + 1) if window else 2 * parts * 48) * 4


def test_a_network_has_one_kind_of_cell():
    lstm, gru = random_network(16), random_network(16, 16, cell="gru")
    mixed = lstm._replace(layers=lstm.layers + gru.layers)
    with pytest.raises(ValueError, match="layers of different cells: gru, lstm"):
        cpu.allocate(mixed, 1)
    unknown = lstm._replace(layers=(lstm.layers[0]._replace(cell="lru"),))
    with pytest.raises(ValueError, match="unknown cell 'lru'"):
        cpu.allocate(unknown, 1)


# --- the same bits --------------------------------------------------------------------------------

SERIES, TICKS = 70, 5
MIXED = {
    **{
        name: random_network(50, 3, layers=2, outputs=20, seed=3, **options)
        for name, options in CELLS.items()
    },
    "window": random_network(20, 3, layers=2, outputs=20, seed=3, window=3),
}
STREAM = np.random.default_rng(5).standard_normal((SERIES, TICKS, 3)).astype(np.float32)


@pytest.fixture(scope="module", params=MIXED)
def alone(request):
    """State and outputs of each series when it is stepped by itself, tick by tick."""
    network = MIXED[request.param]
    buffers = cpu.allocate(network, SERIES)
    outputs = np.zeros((SERIES, TICKS, 20), np.float32)
    for series in range(SERIES):
        for tick in range(TICKS):
            args = batch([series], STREAM[series, tick][None], 20)
            cpu.step(buffers, *args)
            outputs[series, tick] = args[3]
    return network, buffers.state.copy(), outputs


def in_place(slots):
    """(order, rounds): rows as they are, in consecutive rounds of unique slots."""
    bounds, seen = [0], set()
    for at, slot in enumerate(slots):
        if slot in seen:
            bounds.append(at)
            seen = set()
        seen.add(slot)
    return np.arange(len(slots)), np.array([*bounds, len(slots)])


def apart(slots):
    """(order, rounds): first the rows of slots that occur once, which wait for no round."""
    _, slot, count = np.unique(slots, return_inverse=True, return_counts=True)
    rank = np.array([np.sum(slots[:at] == slots[at]) for at in range(len(slots))])
    number = np.where(count[slot] == 1, -1, rank)
    order = np.argsort(number, kind="stable")
    return order, np.searchsorted(number[order], np.arange(rank.max() + 2))


@pytest.mark.parametrize("threads", [1, 2, 3])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_series_has_the_same_bits_in_any_batch_place_round_and_thread(alone, threads, data):
    order = [series for series in range(SERIES) for _ in range(TICKS)]
    order = np.array(data.draw(st.permutations(order)), np.int32)
    cuts = data.draw(st.sets(st.integers(1, len(order) - 1), max_size=6))
    layout = data.draw(st.sampled_from([in_place, apart]))
    network, state, expected = alone
    buffers = cpu.allocate(network, SERIES, threads)
    cpu.warm_up(buffers)
    done = np.zeros(SERIES, int)
    for start, stop in pairwise([0, *sorted(cuts), len(order)]):
        slots = order[start:stop]
        ticks = np.zeros(len(slots), int)
        for at, slot in enumerate(slots):
            ticks[at] = done[slot]
            done[slot] += 1
        rows, rounds = layout(slots)
        slots, ticks = slots[rows], ticks[rows]
        outputs = np.zeros((len(slots), 20), np.float32)
        cpu.step(buffers, slots, STREAM[slots, ticks], rounds, outputs)
        assert outputs.tobytes() == expected[slots, ticks].tobytes()
    assert buffers.state.tobytes() == state.tobytes()


@pytest.mark.parametrize("others", [0, 3, 9, 69])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_hot_series_has_the_same_bits_beside_any_number_of_others(alone, threads, others):
    network, state, expected = alone
    buffers = cpu.allocate(network, SERIES, threads)
    cpu.warm_up(buffers)
    slots = np.array([*range(1, others + 1), *[0] * TICKS], np.int32)
    ticks = np.array([0] * others + [*range(TICKS)])
    rounds, outputs = others + np.arange(TICKS + 1), np.zeros((len(slots), 20), np.float32)
    cpu.step(buffers, slots, STREAM[slots, ticks], rounds, outputs)
    assert outputs.tobytes() == expected[slots, ticks].tobytes()
    assert buffers.state[0].tobytes() == state[0].tobytes()
    assert not buffers.state[others + 1 :].any()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("hidden", "outputs"), [(16, 17), (48, 1), (64, 2)])
@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 47, 48, 49, 97, 1000])
def test_every_size_of_batch_gives_the_bits_of_single_steps(hidden, outputs, count, cell):
    network = random_network(hidden, 2, outputs=outputs, **CELLS[cell])
    together, single = cpu.allocate(network, count), cpu.allocate(network, count, threads=1)
    cpu.warm_up(together)
    random = np.random.default_rng(count)
    for _ in range(2):
        args = batch(random.permutation(count), random.standard_normal((count, 2)), outputs)
        cpu.step(together, *args)
        alone = np.zeros((count, outputs), np.float32)
        for at in range(count):
            row = slice(at, at + 1)
            cpu.step(single, args[0][row], args[1][row], np.array([0, 1]), alone[row])
        assert alone.tobytes() == args[3].tobytes()
    assert together.state.tobytes() == single.state.tobytes()


@njit
def bring_inputs(context, start, stop):
    """From one place to another, adding up in a third how often."""
    for j in range(start, stop):
        simd.set_number(simd.word(context, 1), j, simd.number(simd.word(context, 0), j))
        calls = simd.word(context, 2)
        simd.set_number(calls, j, simd.number(calls, j) + np.float32(1))


@njit
def take_outputs(context, start, stop):
    for j in range(start, stop):
        simd.set_number(simd.word(context, 4), j, simd.number(simd.word(context, 3), j))


@pytest.mark.parametrize("count", [1, 5, 1000])
def test_stages_run_for_each_row_before_and_after_it(count):
    network = random_network(48, 1, outputs=1)
    with_stages, plain = cpu.allocate(network, count), cpu.allocate(network, count)
    cpu.warm_up(with_stages)
    slots = np.concatenate([np.arange(count), np.arange(count)[::3], [0] * 5]).astype(np.int32)
    rounds = np.cumsum([0, count, len(range(0, count, 3)), 1, 1, 1, 1, 1])
    inputs = np.random.default_rng(count).standard_normal((len(slots), 1)).astype(np.float32)
    expected = np.zeros((len(slots), 1), np.float32)
    cpu.step(plain, slots, inputs, rounds, expected)
    brought, calls, outputs, taken = (np.zeros_like(expected) for _ in range(4))
    arrays = inputs, brought, calls, outputs, taken
    context = np.array([array.ctypes.data for array in arrays])
    stages = Stages(
        require(bring_inputs, 0, 0, 0), require(take_outputs, 0, 0, 0), context.ctypes.data
    )
    cpu.step(with_stages, slots, brought, rounds, outputs, stages)
    assert (calls == 1).all()
    assert outputs.tobytes() == taken.tobytes() == expected.tobytes()


@njit(cache=True)
def lstm_avx512(plan, worker, ticks, start, stop, last, beside):
    kind = simd.function(layers.lstm)
    tiles.run_rows(simd.tile(6, 4, 16), kind, plan, worker, ticks, start, stop, last, beside)


@njit(cache=True)
def lstm_avx2(plan, worker, ticks, start, stop, last, beside):
    kind = simd.function(layers.lstm)
    tiles.run_rows(simd.tile(3, 4, 8), kind, plan, worker, ticks, start, stop, last, beside)


@njit(cache=True)
def lstm_narrow(plan, worker, ticks, start, stop, last, beside):
    kind = simd.function(layers.lstm)
    tiles.run_rows(simd.tile(3, 4, 4), kind, plan, worker, ticks, start, stop, last, beside)


# of one row, which is all that these need to compile: how rows are grouped is nothing of the cell's


@njit(cache=True)
def gru_narrow(plan, worker, ticks, start, stop, last, beside):
    kind = simd.function(layers.gru)
    tiles.run_rows(simd.tile(1, 4, 4), kind, plan, worker, ticks, start, stop, last, beside)


@njit(cache=True)
def gru_before_narrow(plan, worker, ticks, start, stop, last, beside):
    kind = simd.function(layers.gru_before)
    tiles.run_rows(simd.tile(1, 4, 4), kind, plan, worker, ticks, start, stop, last, beside)


@njit(cache=True)
def rnn_narrow(plan, worker, ticks, start, stop, last, beside):
    kind = simd.function(layers.rnn)
    tiles.run_rows(simd.tile(1, 4, 4), kind, plan, worker, ticks, start, stop, last, beside)


WIDTHS = {
    "lstm": [lstm_avx512, lstm_avx2, lstm_narrow],
    "gru": [gru_narrow],
    "gru_before": [gru_before_narrow],
    "rnn": [rnn_narrow],
}


@pytest.mark.parametrize(("activation", "outputs"), [("tanh", 20), ("relu", 1)])
@pytest.mark.parametrize("cell", CELLS)
def test_every_vector_width_gives_the_bits_of_the_hosts_own(activation, outputs, cell, monkeypatch):
    network = random_network(50, 3, 2, outputs, activation=activation, **CELLS[cell])
    random = np.random.default_rng(0)
    host, others = cpu.allocate(network, 100), []
    for rows in WIDTHS[host.kind]:
        monkeypatch.setitem(cpu._ROWS, host.kind, rows)
        others.append(cpu.allocate(network, 100))
    for count in (1, 2, 4, 100):
        args = batch(random.permutation(100)[:count], random.standard_normal((count, 3)), outputs)
        cpu.step(host, *args)
        expected = args[3].tobytes(), host.state.tobytes()
        for own in others:
            cpu.step(own, *args)
            assert (args[3].tobytes(), own.state.tobytes()) == expected


# --- neighbours, extremes, memory -----------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_extreme_inputs_stay_finite_and_with_their_own_series(cell):
    network = random_network(32, 2, outputs=2, **CELLS[cell])
    hostile, calm = cpu.allocate(network, 60), cpu.allocate(network, 60)
    random = np.random.default_rng(0)
    extremes = [3e38, -3e38, 1e-45, -1e-40, 1e30, np.inf, np.nan]
    for _ in range(5):
        args = batch(range(60), random.standard_normal((60, 2)), 2)
        cpu.step(calm, *args)
        expected = args[3].copy()
        args[1][: len(extremes)] = np.array(extremes)[:, None] * [1, -1]
        cpu.step(hostile, *args)
        others = slice(len(extremes), None)
        assert args[3][others].tobytes() == expected[others].tobytes()
        assert hostile.state[others].tobytes() == calm.state[others].tobytes()
        assert np.isfinite(hostile.state).all()


def test_no_slot_may_be_named():
    buffers = cpu.allocate(random_network(16), 3)
    nobody = np.zeros(0, np.int32)
    cpu.from_host(buffers, nobody, cpu.to_host(buffers, nobody))
    assert not buffers.state.any()


def test_only_the_named_slots_change():
    network = random_network(40, layers=2)
    buffers = cpu.allocate(network, 20)
    everyone = np.arange(20, dtype=np.int32)
    records = np.zeros((20, 2, 2, 48), np.float32)
    records[..., :40] = np.random.default_rng(0).uniform(-1, 1, (20, 2, 2, 40))
    cpu.from_host(buffers, everyone, records)
    cpu.step(buffers, *batch([3, 17, 4], np.ones((3, 1)), 1))
    changed = (cpu.to_host(buffers, everyone) != records).any(axis=(1, 2, 3))
    assert set(np.flatnonzero(changed)) == {3, 4, 17}
    cpu.clear(buffers, np.array([4, 9], np.int32))
    empty = ~cpu.to_host(buffers, everyone).any(axis=(1, 2, 3))
    assert set(np.flatnonzero(empty)) == {4, 9}
    assert cpu.host_records(buffers) is buffers.state


def test_state_is_exactly_the_declared_record_and_starts_at_zero():
    buffers = cpu.allocate(random_network(50, layers=2), 1000)
    assert buffers.state.shape == (1000, 2 * 2 * 64)
    assert buffers.state.dtype == np.float32
    assert not buffers.state.any()


def test_layers_may_differ_in_size_and_heads_in_activation():
    lower, upper = random_network(40, 2), random_network(20, 40, outputs=3, head_activation="relu")
    network = lower._replace(
        layers=lower.layers + upper.layers,
        head=upper.head._replace(skip=np.ones((3, 2), np.float32)),
    )
    fast, exact = cpu.allocate(network, 9), reference.allocate(network, 9)
    random = np.random.default_rng(0)
    for _ in range(3):
        args = batch(random.permutation(9), random.standard_normal((9, 2)), 3)
        expected = np.zeros((9, 3))
        cpu.step(fast, *args)
        reference.step(exact, *args[:3], expected)
        np.testing.assert_allclose(args[3], expected, atol=2e-6)
    everyone = np.arange(9, dtype=np.int32)
    np.testing.assert_allclose(cpu.to_host(fast, everyone), exact.state, atol=2e-6)


def test_warm_up_compiles_everything_and_touches_no_state():
    network = random_network(32, 2, layers=2, outputs=3)
    buffers = cpu.allocate(network, 500)
    cpu.warm_up(buffers)
    assert not buffers.state.any()
    with event.install_recorder("numba:compile") as compiled:
        for count in (1, 3, 48, 500):
            cpu.step(buffers, *batch(range(count), np.ones((count, 2)), 3))
    assert not compiled.buffer


def test_a_step_allocates_nothing():
    network = random_network(32)
    buffers = cpu.allocate(network, 20_000)
    args = batch(range(20_000), np.ones((20_000, 1)), 1)
    cpu.warm_up(buffers)
    cpu.step(buffers, *args)
    heap = numba.core.runtime._nrt_python
    heap.memsys_enable_stats()
    tracemalloc.start()
    try:
        before = heap.memsys_get_stats_alloc()
        for _ in range(50):
            cpu.step(buffers, *args)
        in_compiled_code = heap.memsys_get_stats_alloc() - before
        # a helper may begin only now, for 11 kB; any array of the batch has 80
        assert tracemalloc.get_traced_memory()[1] < 40_000
    finally:
        tracemalloc.stop()
        heap.memsys_disable_stats()
    assert in_compiled_code <= 50 * 4  # the handles of the four arrays passed
