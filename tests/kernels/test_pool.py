"""The threads of a step: every row done once, by whoever is awake; none left behind."""

import gc
import threading

import numpy as np
import pytest
from numba import njit

from streamlstm.kernels import cpu, pool, simd
from tests.kernels.networks import random_network


class Owner:
    """Something that owns a pool."""


@njit(nogil=True, cache=True)
def count_rows(memory, worker):
    """Take rows of the open job; count each and who took it."""
    threads = simd.word(memory, pool.WORDS + 1)
    start, stop, _ = pool.take(memory, threads, worker, 6, 48)
    while stop > 0:
        counts = simd.word(memory, pool.WORDS)
        for row in range(start, stop):
            simd.set_word(counts, row, simd.word(counts, row) + 1 + 1000 * worker)
        pool.add(memory, pool.DONE, stop - start)
        start, stop, _ = pool.take(memory, threads, worker, 6, 48)


@njit(nogil=True, cache=True)
def helper(memory, worker):
    job = pool.wait(memory, worker, 0)
    while job >= 0:
        count_rows(memory, worker)
        job = pool.wait(memory, worker, job)


@njit(nogil=True, cache=True)
def jobs(memory, threads, counts, times, wake):
    for _ in range(times):
        pool.offer(memory, threads, 0, len(counts), 6, (simd.address(counts), threads))
        if wake:
            pool.wake(memory, threads)
        count_rows(memory, 0)
        pool.finish(memory, len(counts))


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("rows", [1, 5, 100, 5000])
def test_every_row_of_every_job_is_done_exactly_once(threads, rows):
    owner, memory = Owner(), pool.block(threads)
    pool.start(owner, memory, threads, helper, memory.ctypes.data)
    counts = np.zeros(rows, np.int64)
    for _ in range(20):
        jobs(memory.ctypes.data, threads, counts, 10, True)
    assert (counts % 1000 == 200).all()


def test_the_caller_needs_nobody():
    """A helper that sleeps, or is not there at all (as after a fork), is not waited for."""
    memory, counts = pool.block(3), np.zeros(500, np.int64)
    jobs(memory.ctypes.data, 3, counts, 7, False)
    assert (counts == 7).all()


@njit(nogil=True, cache=True)
def ways(memory, steps, alone, together):
    """How many of the steps are done together, where they take so many nanoseconds a row."""
    found = 0
    for _ in range(steps):
        way = pool.way(memory)
        found += way
        took = 1000 * (together if way == pool.TOGETHER else alone)
        pool.learn(memory, way, 1000, pool.now(memory) - took)
    return found


def test_helpers_are_asked_where_they_help():
    memory = pool.block(2)
    at = memory.ctypes.data

    def share(alone, together, steps=2000):
        ways(at, 10 * pool.MOST, alone, together)  # until it has noticed
        return ways(at, steps, alone, together) / steps

    assert share(1000, 600) > 0.9
    assert share(1000, 1500) < 0.1, "whose helper has lost its core"
    assert share(1000, 100) > 0.95, "many cores"
    assert share(1000, 950) < 0.1, "not worth another core"
    assert share(1000, 20_000, 4 * pool.MOST) < 0.005, "the worse, the less it is tried"


def test_a_change_is_noticed_soon():
    memory = pool.block(2)
    at = memory.ctypes.data
    for alone, together, wanted in [(1000, 600, 1), (1000, 3000, 0)] * 3:
        ways(at, 4 * pool.TRIES * pool.RARELY + pool.LEAST, alone, together)
        assert abs(ways(at, 500, alone, together) / 500 - wanted) < 0.1


def test_one_late_step_does_not_send_the_helpers_away_for_long():
    """As when a helper loses its core for some milliseconds."""
    memory = pool.block(2)
    at = memory.ctypes.data
    ways(at, 10 * pool.MOST, 1000, 200)
    ways(at, 1, 20_000, 20_000)
    assert ways(at, 4 * pool.LEAST, 1000, 200) > 2 * pool.LEAST


def test_steps_with_cold_caches_do_not_send_the_helpers_away():
    """As the first of all, and the first after each pause."""
    memory = pool.block(2)
    at = memory.ctypes.data
    ways(at, 1, 20_000, 20_000)
    assert ways(at, 60, 1000, 520) > 50
    found = 0
    for _ in range(100):
        ways(at, 1, 6000, 4000)
        found += ways(at, 9, 1000, 520)
    assert found > 800


def test_helpers_do_help_and_end_with_their_owner():
    before = set(threading.enumerate())
    owner, memory = Owner(), pool.block(2)
    pool.start(owner, memory, 2, helper, memory.ctypes.data)
    pool.start(owner, memory, 2, helper, memory.ctypes.data)  # once is enough
    started = set(threading.enumerate()) - before
    assert len(started) == 1
    counts = np.zeros(200_000, np.int64)
    for _ in range(1000):
        jobs(memory.ctypes.data, 2, counts, 1, True)
        if counts.max() > 1000:
            break
    assert counts.max() > 1000  # some row was the helper's
    del owner
    gc.collect()
    assert not any(thread.is_alive() for thread in started)


def test_buffers_take_their_threads_with_them():
    before = set(threading.enumerate())
    buffers = cpu.allocate(random_network(16), 10, threads=3)
    cpu.warm_up(buffers)
    cpu.warm_up(buffers)
    started = set(threading.enumerate()) - before
    assert len(started) == 2
    del buffers
    gc.collect()
    assert not any(thread.is_alive() for thread in started)
