"""The golden trajectory: proof, at each opening of a model, that the backend computes it."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.kernels import cell, reference
from streamlstm.model import Golden, Model, ModelError, Spec

TOLERANCE = 5e-6
"""Largest deviation from the float64 golden allowed to a float32 backend, over 1 + |golden|."""


def network_of(spec: Spec, weights: Mapping[str, NDArray[np.float32]]) -> cell.Network:
    """Weights by name as the kernels take them."""
    apart = spec.cell == "gru" and spec.reset_after
    layers = tuple(
        cell.Layer(
            weights[f"{spec.cell}.weight_ih_l{n}"],
            weights[f"{spec.cell}.weight_hh_l{n}"],
            weights[f"{spec.cell}.bias_{'ih_' * apart}l{n}"],
            spec.activation,
            spec.recurrent_activation,
            spec.cell,
            spec.reset_after,
            weights[f"{spec.cell}.bias_hh_l{n}"] if apart else cell.NO_BIAS,
        )
        for n in range(spec.layers)
    )
    head = cell.Head(
        weights["head.weight"], weights["head.bias"], weights["head.skip"], spec.head_activation
    )
    return cell.Network(layers, head, spec.window)


def make_golden(spec: Spec, weights: Mapping[str, NDArray[np.float32]], seed: int = 0) -> Golden:
    """Run 16 random inputs through the float64 reference."""
    inputs = np.random.default_rng(seed).normal(size=(16, spec.width)).astype(np.float32)
    return Golden(inputs, *_run(reference, spec, weights, inputs))


def check_golden(model: Model, backend: ModuleType) -> None:
    """Repeat the model's golden trajectory on ``backend``.

    Raises:
        ModelError: the backend's outputs or final states deviate by more than ``TOLERANCE``.
    """
    golden = model.golden
    outputs, states = _run(backend, model.spec, model.weights, golden.inputs)
    pairs: list[tuple[NDArray[Any], NDArray[Any]]] = [(outputs, golden.outputs)]
    pairs += [(states[name], golden.states[name]) for name in states]
    worst = 0.0
    for ours, theirs in pairs:
        worst = max(worst, float(np.max(np.abs(ours - theirs) / (1 + np.abs(theirs)))))
    if not worst <= TOLERANCE:
        raise ModelError(
            f"golden trajectory deviates by {worst:.2g} (at most {TOLERANCE:g} allowed):"
            " the weights are not those the file was made with; fit or copy it again"
        )


def _run(
    backend: ModuleType,
    spec: Spec,
    weights: Mapping[str, NDArray[np.float32]],
    inputs: NDArray[np.float32],
) -> tuple[NDArray[Any], dict[str, NDArray[np.float32]]]:
    """Outputs (T, O) and final states (layers, H) of one series from a zero state."""
    network = network_of(spec, weights)
    buffers = backend.allocate(network, 1)
    length = len(inputs)
    dtype = np.float64 if backend is reference else np.float32
    outputs = np.zeros((length, spec.answers), dtype)
    slots = np.zeros(length, np.int32)
    backend.step(buffers, slots, inputs, np.arange(length + 1), outputs)
    record = backend.to_host(buffers, slots[:1])[0]
    return outputs, {name: record[:, k, : spec.hidden] for k, name in enumerate(spec.states)}
