"""What the importers find in a file, put together as a model.

An importer reads a file and nothing else; what it found is :class:`Parts`, in PyTorch's order of
gates and with PyTorch's shapes. All that is common to them, names of what cannot be done included,
is here.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from streamlstm.golden import make_golden
from streamlstm.kernels.cell import ACTIVATIONS
from streamlstm.model import Model, ModelError, Scaling, Spec

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

TOLERANCE = 1e-4
"""Largest deviation from its framework, over 1 + |output|: beyond it, it was not understood."""
COARSE = 2e-2
"""The same of one that computes in 16 bits there."""
ROUNDED = (
    "where it was made it computes in 16 bits, here in float32: outputs differ by what was rounded"
)


class RefusedError(ModelError):
    """A model that cannot be imported: which part of it, why, and what to do."""


class Recurrent(NamedTuple):
    """A layer of H units over I inputs; G gates: of an LSTM i, f, g, o, of a GRU r, z, n."""

    name: str
    """in the file"""
    cell: str
    """lstm, gru or rnn"""
    weight_ih: Singles
    """(G * H, I)"""
    weight_hh: Singles
    """(G * H, H)"""
    bias: Singles
    """(G * H,) the sum of all biases; of a GRU that resets after the product: the input's alone"""
    bias_hh: Singles | None = None
    """(3 * H,) of a GRU that resets after the product"""
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"


class Dense(NamedTuple):
    """activation(weight @ h + skip @ x + bias)."""

    name: str
    weight: Singles
    """(O, H)"""
    bias: Singles
    """(O,)"""
    activation: str = "linear"
    skip: Singles | None = None
    """(O, I) what the input gives beside the layers; None: nothing"""


class Parts(NamedTuple):
    """A network as a file has it."""

    layers: Sequence[Recurrent]
    """from the input up"""
    head: Dense | None = None
    """None: the last layer's state is the output"""
    loc: Floats | None = None
    """(I,) the network sees (x - loc) / scale; None: x"""
    scale: Floats | None = None
    """(I,)"""
    out_loc: Floats | None = None
    """(O,) the output is out_loc + out_scale * what the head gives; None: that"""
    out_scale: Floats | None = None
    """(O,)"""
    window: int = 0
    """the number of steps that the file says the network is run over from a zero state; 0: none"""
    coarse: bool = False
    """it computes in 16 bits where it was made"""
    notes: Sequence[str] = ()
    """what was left out, such as dropout, a sentence each"""


class Wanted(NamedTuple):
    """What a file does not say."""

    targets: int = 1
    """values of a tick that are forecast, the first ones; outputs are [step][target]"""
    step_ns: int = 0
    """nanoseconds between ticks; 0: not known"""
    window: int | None = None
    """steps to run from a zero state at each tick; 0: the state runs on; None: as the file says"""


def assemble(parts: Parts, wanted: Wanted) -> Model:
    """The model of what was found.

    Layers narrower than the widest are padded with units that stay out of all sums.

    Raises:
        RefusedError: it is no network of ours, said by the name of the part.
    """
    layers = parts.layers
    if not layers:
        raise RefusedError("there is no recurrent layer in it; streamlstm runs LSTM, GRU and RNN")
    _check_alike(layers)
    first, last = layers[0], layers[-1]
    hidden = max(layer.weight_hh.shape[1] for layer in layers)
    inputs, units = first.weight_ih.shape[1], last.weight_hh.shape[1]
    head = parts.head or Dense(
        "output", np.eye(units, dtype=np.float32), np.zeros(units, np.float32)
    )
    outputs = len(head.weight)
    if head.weight.shape[1] != units:
        raise RefusedError(
            f"{head.name}: takes {head.weight.shape[1]} numbers, {last.name} gives {units}"
        )
    _check_activation(head.name, head.activation)
    if outputs % wanted.targets:
        raise RefusedError(f"{outputs} outputs are no whole steps of {wanted.targets} targets")
    if wanted.targets > inputs:
        raise RefusedError(
            f"{wanted.targets} targets, but a tick has {inputs} value{'s' * (inputs > 1)}"
        )
    try:
        scaling, folded = _scaled(parts, head, wanted.targets)
        spec = Spec(
            cell=first.cell,  # type: ignore[arg-type]
            reset_after=first.bias_hh is not None or first.cell != "gru",
            layers=len(layers),
            hidden=hidden,
            activation=_of_layers([layer.activation for layer in layers]),
            recurrent_activation=_of_layers([layer.recurrent_activation for layer in layers]),
            head_activation=head.activation,  # type: ignore[arg-type]
            window=parts.window if wanted.window is None else wanted.window,
            inputs=inputs,
            targets=wanted.targets,
            step_ns=wanted.step_ns,
            horizon=outputs // wanted.targets,
            base="none",
            scaling=scaling,
        )
    except ValidationError as error:
        issue = error.errors()[0]
        where = ".".join(map(str, issue["loc"])) or "the network"
        raise RefusedError(f"{where}: {issue['msg']}") from error
    weights: dict[str, Singles] = {}
    for n, layer in enumerate(layers):
        weights |= _padded(n, layer, hidden, hidden if n else inputs)
    wide = np.zeros((outputs, hidden), np.float32)
    wide[:, :units] = folded.weight
    skip = np.zeros((outputs, inputs), np.float32) if folded.skip is None else folded.skip
    weights |= {"head.weight": wide, "head.bias": folded.bias, "head.skip": skip}
    if scaling.kind == "none" and parts.loc is not None:
        _fold_into_inputs(weights, layers, parts)
    for name, weight in weights.items():
        if not np.isfinite(weight).all():
            raise RefusedError(
                f"{name}: with the scaling taken in it is beyond float32; check its mean and scale"
            )
    return Model(spec, weights, make_golden(spec, weights))


def upright(layer: Recurrent, scale: Floats) -> tuple[Recurrent, Floats]:
    """The first layer and the scale (I,) of its inputs, above 0: signs go into the weights."""
    weight = (layer.weight_ih * np.sign(scale)).astype(np.float32)
    return layer._replace(weight_ih=weight), np.abs(scale)


def _check_alike(layers: Sequence[Recurrent]) -> None:
    """All layers of one kind: ours are."""
    first = layers[0]
    for layer in layers:
        _check_activation(layer.name, layer.activation)
        if layer.cell != "rnn":
            _check_activation(layer.name, layer.recurrent_activation)
    width = first.weight_ih.shape[1]
    for layer in layers:
        if layer.cell != first.cell:
            raise RefusedError(
                f"{layer.name} is of {layer.cell.upper()} cells, {first.name} of"
                f" {first.cell.upper()}; all layers have to be of one kind"
            )
        if (layer.bias_hh is None) != (first.bias_hh is None):
            raise RefusedError(
                f"{layer.name} resets otherwise than {first.name}: reset_after has to be the same"
            )
        if layer.weight_ih.shape[1] != width:
            raise RefusedError(
                f"{layer.name}: takes {layer.weight_ih.shape[1]} numbers, what is before it gives"
                f" {width}"
            )
        width = layer.weight_hh.shape[1]


def _of_layers(activations: list[str]) -> Any:
    """As a spec says it: once where all layers have the same."""
    return activations[0] if len({*activations}) == 1 else tuple(activations)


def _check_activation(name: str, activation: str) -> None:
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise RefusedError(
            f"{name}: activation {activation} cannot be run; those that can: {known}"
        )


def _padded(n: int, layer: Recurrent, hidden: int, inputs: int) -> dict[str, Singles]:
    """The tensors of layer ``n``, ``hidden`` units over ``inputs``."""
    gates = len(layer.weight_hh) // layer.weight_hh.shape[1]

    def wide(array: Any, columns: int | None) -> Singles:
        units = len(array) // gates
        by_gate = np.asarray(array, np.float32).reshape(gates, units, -1)
        full = np.zeros((gates, hidden, columns or 1), np.float32)
        full[:, :units, : by_gate.shape[2]] = by_gate
        return full.reshape(gates * hidden, columns) if columns else full.reshape(-1)

    of = layer.cell
    found = {
        f"{of}.weight_ih_l{n}": wide(layer.weight_ih, inputs),
        f"{of}.weight_hh_l{n}": wide(layer.weight_hh, hidden),
    }
    if layer.bias_hh is None:
        return found | {f"{of}.bias_l{n}": wide(layer.bias, None)}
    return found | {
        f"{of}.bias_ih_l{n}": wide(layer.bias, None),
        f"{of}.bias_hh_l{n}": wide(layer.bias_hh, None),
    }


@np.errstate(over="ignore", invalid="ignore")  # what comes of that is refused
def _scaled(parts: Parts, head: Dense, targets: int) -> tuple[Scaling, Dense]:
    """The scaling of the values of a tick, and a head whose outputs it turns back into raw ones.

    A head that is not linear cannot be; the scaling is then folded into the first layer.
    """
    outputs = len(head.weight)
    out_loc = np.zeros(outputs) if parts.out_loc is None else parts.out_loc
    out_scale = np.ones(outputs) if parts.out_scale is None else parts.out_scale
    plain = parts.out_loc is None and parts.out_scale is None
    if parts.loc is None or parts.scale is None:
        loc, scale, scaling = np.zeros(1), np.ones(1), Scaling(kind="none")
        target_loc, target_scale = np.zeros(outputs), np.ones(outputs)
    else:
        loc, scale = parts.loc, parts.scale
        scaling = Scaling(kind="fixed", loc=tuple(loc.tolist()), scale=tuple(scale.tolist()))
        steps = outputs // targets
        target_loc, target_scale = np.tile(loc[:targets], steps), np.tile(scale[:targets], steps)
    if head.activation != "linear":
        if not plain:
            raise RefusedError(
                f"{head.name}: its outputs go through {head.activation} and are scaled after it;"
                " leave the scaling out"
            )
        return Scaling(kind="none"), head
    factor = out_scale / target_scale
    bias = (head.bias * out_scale + out_loc - target_loc) / target_scale
    weight = (head.weight * factor[:, None]).astype(np.float32)
    skip = None if head.skip is None else (head.skip * factor[:, None]).astype(np.float32)
    return scaling, head._replace(weight=weight, bias=bias.astype(np.float32), skip=skip)


@np.errstate(over="ignore", invalid="ignore")
def _fold_into_inputs(
    weights: dict[str, Singles], layers: Sequence[Recurrent], parts: Parts
) -> None:
    """W (x - loc) / scale + b = (W / scale) x + (b - W loc / scale), wherever x goes."""
    assert parts.loc is not None
    assert parts.scale is not None
    cell = layers[0].cell
    first = f"{cell}.bias_{'ih_' * (layers[0].bias_hh is not None)}l0"
    for name, bias in ((f"{cell}.weight_ih_l0", first), ("head.skip", "head.bias")):
        weight = weights[name].astype(np.float64) / parts.scale
        weights[name] = weight.astype(np.float32)
        weights[bias] = (weights[bias] - weight @ parts.loc).astype(np.float32)
