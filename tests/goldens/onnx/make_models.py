"""Make the ONNX files here, each beside what PyTorch itself gives: `python make_models.py`.

Needs torch, onnx and onnxscript; made with torch 2.14, both of its exporters.
"""

import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

HERE = Path(__file__).parent
STEPS, INPUTS, HIDDEN = 12, 3, 6


class Last(nn.Module):
    """Layers, and a head on the last step's state."""

    def __init__(self, layers: nn.Module, outputs: int = 4, end: nn.Module | None = None) -> None:
        super().__init__()
        self.layers, self.end = layers, end or nn.Identity()
        self.head = nn.Linear(layers.hidden_size, outputs)

    def forward(self, x):
        out, _ = self.layers(x)
        return self.end(self.head(out[:, -1] if self.layers.batch_first else out[-1]))


class FromState(Last):
    """The head on h_n of the top layer; the values scaled before, the forecasts after."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__(layers)
        self.register_buffer("loc", torch.tensor([3.0, -2.0, 0.5]))
        self.register_buffer("scale", torch.tensor([2.0, 0.5, 4.0]))

    def forward(self, x):
        _, state = self.layers((x - self.loc) / self.scale)
        h = state[0] if isinstance(state, tuple) else state
        return self.head(h[-1]) * 2.0 + 3.0


class Stateful(nn.Module):
    """States in and out, a forecast at each step, as [step][target]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.LSTM(INPUTS, HIDDEN, 2, dropout=0.1)
        self.head = nn.Linear(HIDDEN, 6)

    def forward(self, x, h, c):
        out, (h, c) = self.layers(x, (h, c))
        return self.head(out).unflatten(-1, (3, 2)), h, c


class Unbatched(Last):
    def forward(self, x):
        out, _ = self.layers(x)
        return self.head(out)


def slim(path: Path) -> None:
    """Leave out where in the source each node was made."""
    model = onnx.load(path)
    graph = model.graph
    for each in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del each.metadata_props[:]
        each.doc_string = ""
    onnx.save(model, path)


def main() -> None:
    torch.manual_seed(0)
    seeds = np.random.default_rng(0)
    H = HIDDEN
    batch_first = {"batch_first": True}
    cases = {
        "lstm_last": (Last(nn.LSTM(INPUTS, H, 2, **batch_first)), (2, STEPS, INPUTS)),
        "gru_tanh": (Last(nn.GRU(INPUTS, H, **batch_first), end=nn.Tanh()), (1, STEPS, INPUTS)),
        "rnn_relu": (Last(nn.RNN(INPUTS, H, 2, nonlinearity="relu")), (STEPS, 2, INPUTS)),
        "no_bias": (Last(nn.GRU(INPUTS, H, 2, bias=False)), (STEPS, 2, INPUTS)),
        "scaled": (FromState(nn.LSTM(INPUTS, H, **batch_first)), (2, STEPS, INPUTS)),
        "scaled_gru": (FromState(nn.GRU(INPUTS, H, 2, **batch_first)), (2, STEPS, INPUTS)),
        "hard": (
            Last(nn.LSTM(INPUTS, H, **batch_first), end=nn.Hardsigmoid()),
            (2, STEPS, INPUTS),
        ),
        "double": (Last(nn.LSTM(INPUTS, H, **batch_first)).double(), (2, STEPS, INPUTS)),
        "stateful": (Stateful(), (STEPS, 1, INPUTS)),
        "unbatched": (Unbatched(nn.LSTM(INPUTS, H)), (STEPS, INPUTS)),
    }
    truth = {}
    for name, (module, shape) in cases.items():
        module.eval()
        kind = next(module.parameters()).dtype
        x = torch.tensor(seeds.normal(size=shape), dtype=kind)
        given = (x,)
        if name == "stateful":
            given += (torch.zeros(2, 1, H), torch.zeros(2, 1, H))
        with torch.no_grad():
            y = module(*given)
        y = y[0] if isinstance(y, tuple) else y
        time = 1 if getattr(module.layers, "batch_first", False) else 0
        one = x if x.ndim == 2 else x.select(1 - time, 0)
        last = {"stateful": lambda y: y[-1, 0], "unbatched": lambda y: y[-1]}.get(
            name, lambda y: y[0]
        )(y)
        truth[f"{name}.inputs"] = one.numpy().astype(np.float32)
        truth[f"{name}.outputs"] = last.reshape(-1).numpy().astype(np.float64)
        names = ["x", "h", "c"][: len(given)]
        plain = {"input_names": names, "opset_version": 18, "verbose": False}
        axes = {"x": {0: "a", 1: "b"} if x.ndim == 3 else {0: "a"}}
        if len(given) > 1:
            axes |= {"h": {1: "b"}, "c": {1: "b"}}
        new = {"dynamo": True, "external_data": False}
        if time == 1:  # of others it fixes the number of steps
            dims = {k: torch.export.Dim.DYNAMIC for k in axes["x"] if x.shape[k] > 1}
            new["dynamic_shapes"] = (dims,)
        ways = {
            "script": {"dynamo": False, "dynamic_axes": axes},
            "fixed": {"dynamo": False},
            "dynamo": new,
        }
        if name == "rnn_relu":
            del ways["dynamo"]  # it writes a node for each step
        for how, options in ways.items():
            path = HERE / f"{name}.{how}.onnx"
            try:
                torch.onnx.export(module, given, path, **plain, **options)
            except Exception as error:
                path.unlink(missing_ok=True)
                print(f"{path.name}: {str(error).strip().splitlines()[0]}")
                continue
            slim(path)
            print(path.name, path.stat().st_size)
    np.savez_compressed(HERE / "truth.npz", **truth)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
