"""The golden trajectory: proof, at each opening of a model, that the backend computes it."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm.kernels import cell, reference
from streamlstm.model import Golden, Model, ModelError, Spec

TOLERANCE = 5e-6
"""Largest deviation from the float64 golden allowed to a float32 backend, over 1 + |golden|, and of
an output over what is summed to it: large terms that cancel round as they are large."""


def network_of(spec: Spec, weights: Mapping[str, NDArray[np.float32]]) -> cell.Network:
    """Weights by name as the kernels take them."""
    apart = spec.cell == "gru" and spec.reset_after
    layers = tuple(
        cell.Layer(
            weights[f"{spec.cell}.weight_ih_l{n}"],
            weights[f"{spec.cell}.weight_hh_l{n}"],
            weights[f"{spec.cell}.bias_{'ih_' * apart}l{n}"],
            *activations,
            spec.cell,
            spec.reset_after,
            weights[f"{spec.cell}.bias_hh_l{n}"] if apart else cell.NO_BIAS,
        )
        for n, activations in enumerate(spec.activations)
    )
    head = cell.Head(
        weights["head.weight"], weights["head.bias"], weights["head.skip"], spec.head_activation
    )
    return cell.Network(layers, head, spec.window)


def outputs_of(model: Model, x: NDArray[Any]) -> NDArray[np.float64]:
    """(T, outputs) after each of the input vectors ``x`` (T, I), from a zero state, in float64.

    All of them are seen, also where the model would see a window of the last ones alone.
    """
    network = network_of(model.spec, model.weights)._replace(window=0)
    buffers = reference.allocate(network, 1)
    outputs = np.zeros((len(x), model.spec.answers))
    reference.step(buffers, np.zeros(len(x), np.int32), x, np.arange(len(x) + 1), outputs)
    return outputs[:, : model.spec.outputs]


def forecasts_of(model: Model, values: NDArray[Any]) -> NDArray[np.float64]:
    """(T, outputs) in raw units after each of the ticks' values (T, I), of a fixed scaling or none.

    Of what an importer makes: a model without inputs but these.
    """
    spec, scaling = model.spec, model.spec.scaling
    loc, scale = np.zeros(spec.inputs), np.ones(spec.inputs)
    if scaling.kind == "fixed":
        loc, scale = np.array(scaling.loc), np.array(scaling.scale)
    center, unit = (np.tile(part[: spec.targets], spec.horizon) for part in (loc, scale))
    return center + unit * outputs_of(model, (values - loc) / scale)


def make_golden(spec: Spec, weights: Mapping[str, NDArray[np.float32]], seed: int = 0) -> Golden:
    """Run 16 random inputs through the float64 reference."""
    inputs = np.random.default_rng(seed).normal(size=(16, spec.width)).astype(np.float32)
    return Golden(inputs, *_run(reference, spec, weights, inputs))


def check_golden(model: Model, backend: ModuleType) -> None:
    """Repeat the model's golden trajectory on ``backend``.

    Raises:
        ModelError: the backend's outputs or final states deviate by more than ``TOLERANCE``.
    """
    golden, weights = model.golden, model.weights
    outputs, states = _run(backend, model.spec, weights, golden.inputs)
    largest = max((float(np.abs(state).max()) for state in golden.states.values()), default=1.0)
    summed = np.abs(golden.inputs) @ np.abs(weights["head.skip"]).T
    summed += max(1.0, largest) * np.abs(weights["head.weight"]).sum(axis=1)
    off = np.abs(outputs - golden.outputs) / (1 + np.abs(golden.outputs) + summed)
    worst = float(off.max())
    for name, theirs in golden.states.items():
        worst = max(worst, float(np.max(np.abs(states[name] - theirs) / (1 + np.abs(theirs)))))
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
