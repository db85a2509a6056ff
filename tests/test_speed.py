"""Speeds that `inspect --kernels` prints: of full windows, and at every batch size."""

from streamlstm import speed
from streamlstm.kernels import simd
from tests.models import random_model


def test_the_host_is_what_the_kernels_compile_for() -> None:
    host = speed.host()
    assert (host.rows, host.vectors, host.lanes) == simd.host_shape()
    assert host.cpu
    assert host.threads >= 1


def test_a_window_costs_its_steps() -> None:
    stateful = speed.million_steps_per_second(random_model(), threads=1)
    window = speed.million_steps_per_second(random_model(window=32), threads=1)
    assert stateful.keys() == window.keys() == set(speed.BATCHES)
    assert window[1024] < stateful[1024] / 4
