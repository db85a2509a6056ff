"""Networks of PyTorch: a state_dict, from whose names and shapes the architecture is told.

``torch.nn.LSTM``, ``GRU`` and ``RNN``, their cells among them, one or several after each other, and
an ``nn.Linear`` on the last; whatever they are called. PyTorch is not needed to read them.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamlstm.importers.parts import Dense, Parts, Recurrent, RefusedError
from streamlstm.importers.state_dict import Array, read_state_dict, state_dict_in

Singles = NDArray[np.float32]
_CELLS = {4: "lstm", 3: "gru", 1: "rnn"}
_PART = re.compile(
    r"(?P<prefix>.*?)(?P<part>weight_ih|weight_hh|bias_ih|bias_hh|weight_hr)"
    r"(?:_l(?P<layer>[0-9]{1,4}))?(?P<reverse>_reverse)?",
    re.DOTALL,
)
UNSAID = (
    "what has no weights, such as a ReLU before the head or a sigmoid after it, is not in a"
    " state_dict: nothing of the kind is taken"
)
_MOST_SHUFFLED = 6
"""Modules whose order is looked for where that of the file does not fit."""


class Module(NamedTuple):
    """One ``nn.LSTM``, ``nn.LSTMCell`` or the like: tensors of each layer by part."""

    prefix: str
    cell: str
    layers: Sequence[dict[str, Singles]]
    single: bool
    """a cell: its names have no number of a layer"""

    @property
    def name(self) -> str:
        """As users call it."""
        return self.prefix.rstrip(".") or f"the {self.cell.upper()}"

    @property
    def inputs(self) -> int:
        """Numbers that it takes."""
        return self.layers[0]["weight_ih"].shape[1]

    @property
    def hidden(self) -> int:
        """Units of a layer."""
        return self.layers[0]["weight_hh"].shape[1]


class Linear(NamedTuple):
    """One ``nn.Linear``."""

    prefix: str
    weight: Singles
    bias: Singles | None

    @property
    def name(self) -> str:
        """As users call it."""
        return self.prefix.rstrip(".") or "the Linear layer"


class Network(NamedTuple):
    """What a state_dict is made of."""

    modules: Sequence[Module]
    """from the input up"""
    head: Linear | None
    skip: Linear | None
    """from the input to the output, of a network that streamlstm exported"""
    notes: Sequence[str]


def read(path: Path, activation: str | None = None) -> Parts:
    """What the state_dict at ``path`` is made of.

    ``activation``: tanh or relu, the nonlinearity of an ``nn.RNN``, of which its state_dict says
    nothing; None: tanh.

    Raises:
        RefusedError: it is none, or of a network that streamlstm cannot run, said by name.
    """
    network = _network(path)
    notes = [*network.notes, UNSAID]
    nonlinearity = _nonlinearity(network.modules[0], activation)
    if network.modules[0].cell == "rnn" and activation is None:
        notes.append("the nonlinearity of an nn.RNN is not in its state_dict: tanh is taken")
    layers = [
        _layer(module, n, nonlinearity)
        for module in network.modules
        for n in range(len(module.layers))
    ]
    head = None
    if network.head is not None:
        weight, bias = network.head.weight, network.head.bias
        bias = np.zeros(len(weight), np.float32) if bias is None else bias
        skip = None if network.skip is None else network.skip.weight
        head = Dense(network.head.name, weight, bias, skip=skip)
    return Parts(layers, head, notes=notes)


def run(path: Path, inputs: Singles, activation: str | None = None) -> Singles | None:
    """(O,) the output that PyTorch gives after ``inputs`` (T, I), from a zero state.

    None: PyTorch is not installed. It reads the file itself.

    Raises:
        RefusedError: as :func:`read`.
    """
    try:
        import torch
        from safetensors.torch import load_file
    except ImportError:
        return None
    network = _network(path)
    nonlinearity = _nonlinearity(network.modules[0], activation)
    if path.suffix.lower() == ".safetensors":
        saved = load_file(path)
    else:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # of entries that are not needed to read the weights, say
            return None
        saved = state_dict_in(loaded, torch.Tensor) or {}

    def filled(module: Any, prefix: str, suffix: str = "") -> Any:
        """A module of PyTorch's with the tensors of this prefix; ``suffix`` its names have more."""
        own = {name + suffix: saved[prefix + name] for name in _names(module, suffix)}
        module.load_state_dict({name: tensor.float() for name, tensor in own.items()})
        return module.eval()

    with torch.no_grad():
        given = x = torch.from_numpy(np.ascontiguousarray(inputs, np.float32))
        for each in network.modules:
            options: dict[str, Any] = {"bias": "bias_ih" in each.layers[0]}
            if each.cell == "rnn":
                options["nonlinearity"] = nonlinearity
            kind = getattr(torch.nn, each.cell.upper())
            module = kind(each.inputs, each.hidden, len(each.layers), **options)
            x = filled(module, each.prefix, "_l0" if each.single else "")(x)[0]
        x = x[-1]
        for linear, of in ((network.head, x), (network.skip, given[-1])):
            if linear is not None:
                outputs, width = linear.weight.shape
                module = torch.nn.Linear(width, outputs, bias=linear.bias is not None)
                result = filled(module, linear.prefix)(of)
                x = result if linear is network.head else x + result
        return np.asarray(x.numpy(), np.float32)


def _names(module: Any, suffix: str) -> list[str]:
    return [name.removesuffix(suffix) for name in module.state_dict()]


def _network(path: Path) -> Network:
    try:
        # a .safetensors has its tensors sorted: only numbers in names say what follows what
        return _told(read_state_dict(path), ordered=path.suffix.lower() != ".safetensors")
    except RefusedError as error:
        raise RefusedError(f"{path}: {error}") from error


def _told(tensors: dict[str, Array], ordered: bool) -> Network:
    """What names and shapes say; ``ordered``: that the order of the tensors says something too."""
    if "golden.inputs" in tensors:
        raise RefusedError("already a model of streamlstm; it is served as it is")
    modules, rest = _modules(tensors)
    if not modules:
        raise RefusedError("there is no nn.LSTM, nn.GRU or nn.RNN in it; streamlstm runs those")
    linears, notes = _linears(rest)
    skip = next((each for each in linears if _is_skip(each, linears)), None)
    linears = [each for each in linears if each is not skip]
    widths = {module.hidden for module in modules}
    for each in linears:
        if each.bias is None and each.weight.shape[1] not in widths:
            raise RefusedError(f"{each.name}: an nn.Embedding or the like, which is not run")
    if len(linears) > 1:
        names = " and ".join(each.name for each in linears[:2])
        raise RefusedError(
            f"{names}: more than one nn.Linear or nn.Embedding; streamlstm has one"
            " Linear, on the last layer. Fold those that follow each other into one, W2 @ W1 and"
            " W2 @ b1 + b2, where nothing is between"
        )
    head = linears[0] if linears else None
    ordered |= len({re.sub("[0-9]+", "", module.prefix) for module in modules}) == 1
    modules = _in_sequence(modules, None if head is None else head.weight.shape[1], ordered)
    if len(modules) > 1:
        notes.append("taken to follow each other: " + ", ".join(module.name for module in modules))
    if head is not None and len(head.weight) == modules[0].inputs:
        order, recurrent = list(tensors), tensors.keys() - rest.keys()
        if order.index(f"{head.prefix}weight") < min(order.index(each) for each in recurrent):
            notes.append(f"{head.name} is taken to be the head, though it stands first")
    if head is not None and head.bias is None:
        notes.append(f"{head.name} has no bias: taken to be nn.Linear(bias=False)")
    if skip is not None and skip.weight.shape != (len(linears[0].weight), modules[0].inputs):
        raise RefusedError(f"{skip.name}: does not lead from the input to the output")
    return Network(modules, head, skip, notes)


def _modules(tensors: dict[str, Array]) -> tuple[list[Module], dict[str, Array]]:
    """Recurrent modules in the order of the file, and the tensors of others."""
    groups: dict[tuple[str, bool], dict[int, dict[str, Singles]]] = {}
    rest: dict[str, Array] = {}
    for name, tensor in tensors.items():
        found = _PART.fullmatch(name)
        if found is None:
            rest[name] = tensor
            continue
        if found["reverse"]:
            raise RefusedError(
                f"{name}: bidirectional; it looks at what comes later, which a stream has not yet"
            )
        if found["part"] == "weight_hr":
            raise RefusedError(f"{name}: proj_size is not run; fit it without")
        group = groups.setdefault((found["prefix"], found["layer"] is None), {})
        group.setdefault(int(found["layer"] or 0), {})[found["part"]] = _weights(name, tensor)
    modules = [_module(prefix, single, layers) for (prefix, single), layers in groups.items()]
    return modules, rest


def _module(prefix: str, single: bool, numbered: dict[int, dict[str, Singles]]) -> Module:
    if sorted(numbered) != [*range(len(numbered))]:
        raise RefusedError(f"{prefix}*: the layers {sorted(numbered)} alone are in it")
    layers = [numbered[n] for n in range(len(numbered))]
    parts = {"weight_ih", "weight_hh"} | ({"bias_ih", "bias_hh"} & layers[0].keys())
    cells = set()
    for n, layer in enumerate(layers):
        label = f"{prefix}*{'' if single else f'_l{n}'}"
        if layer.keys() != parts or len(parts) == 3:
            raise RefusedError(f"{label}: some of its tensors are missing")
        rows, units = len(layer["weight_ih"]), layers[0]["weight_hh"].shape[-1]
        width = units if n else layer["weight_ih"].shape[-1]
        shapes = {"weight_ih": (rows, width), "weight_hh": (rows, units)}
        if any(tensor.shape != shapes.get(part, (rows,)) for part, tensor in layer.items()):
            raise RefusedError(f"{label}: the shapes of its tensors do not fit each other")
        if rows % units or rows // units not in _CELLS:
            raise RefusedError(f"{label}: {rows} rows over {units} units are of no known cell")
        cells.add(_CELLS[rows // units])
    if len(cells) > 1:
        raise RefusedError(f"{prefix}*: its layers are of different cells")
    return Module(prefix, cells.pop(), layers, single)


def _weights(name: str, tensor: Array) -> Singles:
    if tensor.dtype != np.float32:
        raise RefusedError(f"{name}: is {tensor.dtype}; float32 is read, model.float() makes it")
    if not tensor.ndim or not tensor.size or not np.isfinite(tensor).all():
        raise RefusedError(f"{name}: is empty, or holds NaN or infinity")
    return tensor


def _linears(rest: dict[str, Array]) -> tuple[list[Linear], list[str]]:
    """The linear layers among tensors, and notes of what is left out; else it is refused."""
    linears, notes = [], []
    left = dict(rest)
    for name, tensor in rest.items():
        prefix, dot, word = name.rpartition(".")
        if word != "weight" or tensor.ndim != 2:
            continue
        bias = left.get(f"{prefix}{dot}bias")
        if bias is not None:
            bias = _weights(f"{prefix}{dot}bias", left.pop(f"{prefix}{dot}bias"))
            if bias.shape != tensor.shape[:1]:
                raise RefusedError(f"{prefix}: weight and bias do not fit each other")
        linears.append(Linear(prefix + dot, _weights(name, left.pop(name)), bias))
    for name, tensor in left.items():
        if tensor.dtype == np.float32:
            raise RefusedError(f"{name}: {_what_is(name, tensor, rest)}, which streamlstm has not")
        notes.append(f"{name} is left out: whole numbers are no weights")
    return linears, notes


def _what_is(name: str, tensor: Array, rest: dict[str, Array]) -> str:
    prefix, dot, word = name.rpartition(".")
    weight = rest.get(f"{prefix}{dot}weight", tensor)
    if f"{prefix}{dot}running_mean" in rest:
        return "of an nn.BatchNorm"
    if word in ("weight", "bias") and weight.ndim > 2:
        return "of an nn.Conv"
    if word in ("weight", "bias") and weight.ndim == 1:
        return "of an nn.LayerNorm or the like"
    return "of no nn.LSTM, nn.GRU, nn.RNN or nn.Linear"


def _is_skip(linear: Linear, among: Iterable[Linear]) -> bool:
    """As streamlstm exports it: ``skip.weight`` beside ``head.weight``."""
    stem = linear.prefix.removesuffix("skip.")
    beside = any(each.prefix == f"{stem}head." for each in among)
    return linear.prefix == f"{stem}skip." and linear.bias is None and beside


def _in_sequence(modules: Sequence[Module], top: int | None, ordered: bool) -> list[Module]:
    """Modules in an order in which the widths fit: as given, if that is ``ordered``, or the only.

    ``top``: the width that is taken by what follows them; None: any.
    """

    def fits(order: Sequence[Module]) -> bool:
        widths = [*(module.inputs for module in order[1:]), top or order[-1].hidden]
        return [module.hidden for module in order] == widths

    if len(modules) == 1 or (ordered and fits(modules)):
        return [*modules]
    few = permutations(modules) if len(modules) <= _MOST_SHUFFLED else ()
    fitting = [order for order in few if fits(order)]
    if len(fitting) != 1:
        names = ", ".join(module.name for module in modules)
        raise RefusedError(
            f"{names}: {'several orders fit' if fitting else 'no order fits'} their widths; a file"
            " of torch.save has them in the order in which the module defines them"
        )
    return [*fitting[0]]


def _nonlinearity(module: Module, activation: str | None) -> str:
    if module.cell != "rnn" and activation not in (None, "tanh"):
        raise RefusedError(f"{module.name}: an {module.cell.upper()} of PyTorch has tanh alone")
    if activation not in (None, "tanh", "relu"):
        raise RefusedError(f"{module.name}: an nn.RNN has tanh or relu, not {activation}")
    return activation or "tanh"


def _layer(module: Module, n: int, activation: str) -> Recurrent:
    tensors = module.layers[n]
    zeros = np.zeros(len(tensors["weight_hh"]), np.float32)
    bias_ih, bias_hh = tensors.get("bias_ih", zeros), tensors.get("bias_hh", zeros)
    apart = module.cell == "gru"
    return Recurrent(
        name=module.name + f", layer {n}" * (len(module.layers) > 1),
        cell=module.cell,
        weight_ih=tensors["weight_ih"],
        weight_hh=tensors["weight_hh"],
        bias=bias_ih if apart else bias_ih + bias_hh,
        bias_hh=bias_hh if apart else None,
        activation=activation,
    )
