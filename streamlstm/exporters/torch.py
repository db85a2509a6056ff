"""Models for PyTorch: a state_dict, and a small module that runs it."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from streamlstm.exporters.pipeline import described
from streamlstm.files import write_whole
from streamlstm.model import Model, ModelError, Spec, without

SUFFIX = ".safetensors"
_FIRST = "Exported from streamlstm"
_KINDS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
_HEADS = {
    "linear": "out",
    "relu": "torch.relu(out)",
    "tanh": "torch.tanh(out)",
    "sigmoid": "torch.sigmoid(out)",
    "hard_sigmoid": "nn.functional.hardsigmoid(out)",
    "elu": "nn.functional.elu(out)",
    "exponential": "torch.exp(out)",
    "gelu": "nn.functional.gelu(out)",
    "hard_silu": "nn.functional.hardswish(out)",
    "hard_tanh": "nn.functional.hardtanh(out)",
    "leaky_relu": "nn.functional.leaky_relu(out, 0.2)",
    "log_sigmoid": "nn.functional.logsigmoid(out)",
    "mish": "nn.functional.mish(out)",
    "relu6": "nn.functional.relu6(out)",
    "selu": "nn.functional.selu(out)",
    "silu": "nn.functional.silu(out)",
    "soft_shrink": "nn.functional.softshrink(out)",
    "softplus": "nn.functional.softplus(out)",
    "softsign": "nn.functional.softsign(out)",
    "tanh_shrink": "nn.functional.tanhshrink(out)",
}
_MEND = "export it as .onnx"
_MODULE = '''"""{doc}
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


class Network(nn.Module):
    """{what}."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = {rnn}
        self.head = nn.Linear({hidden}, {outputs}){skip}

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Outputs (N, T, {outputs}) of N series, and their state after; x (N, T, {width}).

        The state is that of ``nn.{kind}``; None: zero.
        """
        h, state = self.rnn(x, state)
        out = self.head(h){add}
        return {head}, state


def load(path: Path = Path(__file__).with_suffix(".safetensors")) -> Network:
    """The network with its weights."""
    network = Network()
    network.load_state_dict(load_file(path))
    return network.eval()
'''


def export(model: Model, path: Path) -> None:
    """Write the network of ``model`` to ``path``, a ``.safetensors``, and a module beside it.

    The module, of the same name with ``.py``, loads and runs it, and says what its input is made of
    and how a forecast is made of its output. Spreads and directions are left out.

    Raises:
        ModelError: PyTorch's layers cannot do what the model does, said by name, or a file that is
            none of ours is in the way.
        OSError: a file cannot be written.
    """
    spec, weights = without(model.spec, model.weights, spread=True, directions=True)
    _check(spec)
    module = path.with_suffix(".py")
    _check_place(path, module)
    tensors = _tensors(spec, weights)
    metadata = {"format": "pt", "spec": spec.model_dump_json(), "model": model.id}
    write_whole(path, save({k: np.ascontiguousarray(v) for k, v in tensors.items()}, metadata))
    source = _source(spec, model.id, path.name, "skip.weight" in tensors)
    write_whole(module, source.encode())


def _check(spec: Spec) -> None:
    kind = f"nn.{_KINDS[spec.cell]}"
    able = ("tanh", "relu") if spec.cell == "rnn" else ("tanh",)
    own, recurrent = ({*each} for each in zip(*spec.activations, strict=True))
    if spec.head_activation not in _HEADS:
        raise ModelError(f"activation {spec.head_activation} of the head: PyTorch has none such")
    if strange := sorted(own - {*able}):
        raise ModelError(f"activation {strange[0]}: {kind} has {' or '.join(able)}; {_MEND}")
    if len(own) > 1:
        raise ModelError(f"layers of {' and '.join(sorted(own))}: {kind} has one; {_MEND}")
    if spec.cell == "rnn":
        return
    if strange := sorted(recurrent - {"sigmoid"}):
        raise ModelError(f"recurrent_activation {strange[0]}: {kind} has sigmoid; {_MEND}")
    if not spec.reset_after:
        raise ModelError(f"reset_after false: {kind} resets after the product; {_MEND}")


def _check_place(path: Path, module: Path) -> None:
    if path.suffix != SUFFIX:
        raise ModelError(f"{path}: a state_dict for PyTorch is written as {SUFFIX}")
    if module.exists() and not module.read_bytes().startswith(f'"""{_FIRST}'.encode()):
        raise ModelError(f"{module} is there already, not of an export; choose another name")
    try:
        with safe_open(path, framework="numpy") as file:
            ours = "streamlstm" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return
    if ours:
        raise ModelError(f"{path} is a model of streamlstm; choose another name")


def _tensors(spec: Spec, weights: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
    """By PyTorch's names."""
    apart = spec.cell == "gru"
    tensors: dict[str, NDArray[Any]] = {}
    for n in range(spec.layers):
        for name in ("weight_ih", "weight_hh"):
            tensors[f"rnn.{name}_l{n}"] = weights[f"{spec.cell}.{name}_l{n}"]
        bias = weights[f"{spec.cell}.{'bias_ih' if apart else 'bias'}_l{n}"]
        other = weights[f"gru.bias_hh_l{n}"] if apart else np.zeros_like(bias)
        tensors |= {f"rnn.bias_ih_l{n}": bias, f"rnn.bias_hh_l{n}": other}
    tensors |= {f"head.{name}": weights[f"head.{name}"] for name in ("weight", "bias")}
    if weights["head.skip"].any():
        tensors["skip.weight"] = weights["head.skip"]
    return tensors


def _source(spec: Spec, name: str, file: str, skip: bool) -> str:
    """The module's text."""
    kind, width, outputs = _KINDS[spec.cell], spec.width, spec.outputs
    lines = [
        f"{_FIRST}: the network of model {name}, its weights in {file}.",
        "",
        "Needs torch and safetensors. It is the network alone; around it, streamlstm does this:",
        "",
    ]
    for line in described(spec):
        listed = line.startswith("x[")
        lines += textwrap.wrap(
            line, 96, initial_indent=" " * 4 * listed, subsequent_indent=" " * (8 if listed else 4),
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    relu = ', nonlinearity="relu"' if "relu" in spec.activations[0] else ""
    layers = f"num_layers={spec.layers}, batch_first=True{relu}"
    many = "layers" if spec.layers > 1 else "layer"
    return _MODULE.format(
        doc=_escaped("\n".join(lines)),
        what=f"{spec.layers} {many} of {spec.hidden} units, {width} inputs, {outputs} outputs",
        rnn=f"nn.{kind}({width}, {spec.hidden}, {layers})",
        kind=kind,
        hidden=spec.hidden,
        outputs=outputs,
        width=width,
        skip=f"\n        self.skip = nn.Linear({width}, {outputs}, bias=False)" if skip else "",
        add=" + self.skip(x)" if skip else "",
        head=_HEADS[spec.head_activation],
    )


def _escaped(text: str) -> str:
    """Within three quotes; names are what users chose."""
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return "".join(c if c == "\n" or c.isprintable() else repr(c)[1:-1] for c in text)
