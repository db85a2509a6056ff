"""What the kernels make of this host, and how fast a model's step is on it."""

import os
import platform
import time
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numba
import numpy as np

from streamlstm.golden import network_of
from streamlstm.kernels import cpu, simd
from streamlstm.model import Model

BATCHES = (1, 64, 1024)
"""Batch sizes measured"""
SERIES = 4096
"""Series of the table that batches are drawn from"""
REPEATS, SECONDS = 5, 0.05


class Host(NamedTuple):
    """What the step is compiled for."""

    cpu: str
    """As LLVM calls it"""
    lanes: int
    """float32 of a vector register"""
    rows: int
    """series of a register block"""
    vectors: int
    """vectors of a register block, for each series"""
    cores: int
    """that this process may use"""
    threads: int
    """that share a large batch where ``engine.threads`` is 0"""


def host() -> Host:
    """Read from LLVM; compiles nothing."""
    block = simd.host_shape()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Host(
        f"{llvm.get_host_cpu_name()} ({platform.machine()})",
        block.lanes,
        block.rows,
        block.vectors,
        cores or 1,
        numba.config.NUMBA_NUM_THREADS,
    )


def million_steps_per_second(model: Model, threads: int = 0) -> dict[int, float]:
    """The network's step alone by batch size, of random series; the best of some repeats."""
    network = network_of(model.spec, model.weights)
    buffers = cpu.allocate(network, SERIES, threads or None)
    cpu.warm_up(buffers)
    everyone = np.arange(SERIES, dtype=np.int32)
    if network.window:  # full windows, as of series that have run for a while
        records = cpu.to_host(buffers, everyone)
        records[:, -1] = network.window
        cpu.from_host(buffers, everyone, records)
    rng = np.random.default_rng(0)
    speeds = {}
    for batch in BATCHES:
        slots = rng.permutation(everyone)[:batch]
        inputs = rng.normal(size=(batch, model.spec.width)).astype(np.float32)
        outputs = np.zeros((batch, model.spec.answers), np.float32)
        args = slots, inputs, np.array([0, batch]), outputs
        speeds[batch] = max(_per_second(buffers, *args) for _ in range(REPEATS)) * batch / 1e6
    return speeds


def _per_second(buffers: cpu.Buffers, *args: Any) -> float:
    """Calls in a second."""
    calls, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < SECONDS:
        cpu.step(buffers, *args)
        calls += 1
    return calls / spent
