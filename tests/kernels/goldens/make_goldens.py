"""Make the goldens beside this script with PyTorch (2.13 made these): python make_goldens.py.

short_*.npz: weights, inputs, and the float64 states and outputs of every step.
gru_*.npz, rnn_*.npz: the same of PyTorch's GRU (which resets after the product) and RNN.
long_*.npz: a contracting model over 10,000 steps: the float64 h of every 100th step, and the
largest error there of PyTorch's own float32 run.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
STEPS = 12
LONG_STEPS, EVERY = 10_000, 100

# name: layers, hidden, inputs, outputs, activation, recurrent activation
SHORT = {
    "h1": (1, 1, 1, 1, "tanh", "sigmoid"),
    "h5": (1, 5, 7, 20, "tanh", "sigmoid"),
    "h16": (1, 16, 2, 3, "tanh", "sigmoid"),
    "h50_two_layers": (2, 50, 3, 5, "tanh", "sigmoid"),
    "h33_two_layers": (2, 33, 1, 48, "tanh", "sigmoid"),
    "relu": (2, 20, 2, 2, "relu", "sigmoid"),
    "hard_sigmoid": (1, 20, 2, 2, "tanh", "hard_sigmoid"),
    "linear": (1, 20, 2, 2, "linear", "hard_sigmoid"),
}
# name: PyTorch's class, its options, layers, hidden, inputs, outputs
OTHERS = {
    "gru_h5": (nn.GRU, {}, 1, 5, 7, 20),
    "gru_h50_two_layers": (nn.GRU, {}, 2, 50, 3, 5),
    "rnn_h5": (nn.RNN, {}, 1, 5, 7, 20),
    "rnn_h50_two_layers": (nn.RNN, {}, 2, 50, 3, 5),
    "rnn_relu": (nn.RNN, {"nonlinearity": "relu"}, 1, 20, 2, 2),
}
LONG = {"h32": (1, 32, 1), "h50_two_layers": (2, 50, 3)}

ACTIVATIONS = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "hard_sigmoid": nn.functional.hardsigmoid,
    "linear": lambda x: x,
}


def layers_of(lstm: nn.Module) -> dict[str, np.ndarray]:
    """The weights of each layer, biases summed."""
    arrays = {}
    for number in range(lstm.num_layers):
        own = {name: getattr(lstm, f"{name}_l{number}").detach() for name in (
            "weight_ih", "weight_hh", "bias_ih", "bias_hh")}  # fmt: skip
        arrays[f"weight_ih_{number}"] = own["weight_ih"].numpy()
        arrays[f"weight_hh_{number}"] = own["weight_hh"].numpy()
        arrays[f"bias_{number}"] = (own["bias_ih"] + own["bias_hh"]).numpy()
    return arrays


def double_lstm(arrays: dict[str, np.ndarray], layers: int) -> nn.LSTM:
    """PyTorch's LSTM in float64 with exactly these float32 weights."""
    hidden, inputs = arrays["weight_hh_0"].shape[1], arrays["weight_ih_0"].shape[1]
    lstm = nn.LSTM(inputs, hidden, layers).double()
    with torch.no_grad():
        for number in range(layers):
            for name in ("weight_ih", "weight_hh"):
                getattr(lstm, f"{name}_l{number}").copy_(torch.tensor(arrays[f"{name}_{number}"]))
            getattr(lstm, f"bias_ih_l{number}").copy_(torch.tensor(arrays[f"bias_{number}"]))
            getattr(lstm, f"bias_hh_l{number}").zero_()
    return lstm


def states_by_cells(arrays, layers, x, activation, recurrent):
    """h and c of every step, (T, layers, H), by PyTorch's functions: for other activations."""
    act, rec = ACTIVATIONS[activation], ACTIVATIONS[recurrent]
    weights = {name: torch.tensor(value).double() for name, value in arrays.items()}
    hidden = arrays["weight_hh_0"].shape[1]
    h, c = [torch.zeros(hidden).double()] * layers, [torch.zeros(hidden).double()] * layers
    hs, cs = [], []
    for value in x:
        for n in range(layers):
            z = weights[f"weight_ih_{n}"] @ value + weights[f"weight_hh_{n}"] @ h[n]
            i, f, g, o = torch.chunk(z + weights[f"bias_{n}"], 4)
            c[n] = rec(f) * c[n] + rec(i) * act(g)
            h[n] = value = rec(o) * act(c[n])
        hs.append(torch.stack(h))
        cs.append(torch.stack(c))
    return torch.stack(hs), torch.stack(cs)


def make_short(name: str) -> None:
    layers, hidden, inputs, outputs, activation, recurrent = SHORT[name]
    arrays = layers_of(nn.LSTM(inputs, hidden, layers))
    x = torch.randn(STEPS, inputs)
    h, c = states_by_cells(arrays, layers, x.double(), activation, recurrent)
    if (activation, recurrent) == ("tanh", "sigmoid"):
        top, (h_end, c_end) = double_lstm(arrays, layers)(x.double()[:, None])
        assert torch.allclose(top[:, 0], h[:, -1], atol=1e-14)
        assert torch.allclose(h_end[:, 0], h[-1], atol=1e-14)
        assert torch.allclose(c_end[:, 0], c[-1], atol=1e-14)
    head, skip = nn.Linear(hidden, outputs), nn.Linear(inputs, outputs, bias=False)
    y = h[:, -1] @ head.weight.double().T + x.double() @ skip.weight.double().T + head.bias.double()
    np.savez_compressed(
        HERE / f"short_{name}.npz",
        **arrays,
        layers=layers,
        activation=activation,
        recurrent_activation=recurrent,
        head_weight=head.weight.detach().numpy(),
        head_bias=head.bias.detach().numpy(),
        head_skip=skip.weight.detach().numpy(),
        inputs=x.numpy(),
        h=h.numpy(),
        c=c.numpy(),
        outputs=y.detach().numpy(),
    )


def make_other(name: str) -> None:
    kind, options, layers, hidden, inputs, outputs = OTHERS[name]
    torch.manual_seed(len(name))
    net = kind(inputs, hidden, layers, **options)
    arrays = layers_of(net)
    if kind is nn.GRU:
        for n in range(layers):
            arrays[f"bias_{n}"] = getattr(net, f"bias_ih_l{n}").detach().numpy().copy()
            arrays[f"bias_hh_{n}"] = getattr(net, f"bias_hh_l{n}").detach().numpy().copy()
    else:  # one bias, so that float64 starts from the numbers in the file
        for n in range(layers):
            getattr(net, f"bias_ih_l{n}").copy_(torch.tensor(arrays[f"bias_{n}"]))
            getattr(net, f"bias_hh_l{n}").zero_()
    x = torch.randn(STEPS, inputs)
    net, h, states = net.double(), None, []
    for value in x.double():
        _, h = net(value[None, None], h)
        states.append(h[:, 0])
    h = torch.stack(states)
    head, skip = nn.Linear(hidden, outputs), nn.Linear(inputs, outputs, bias=False)
    y = h[:, -1] @ head.weight.double().T + x.double() @ skip.weight.double().T + head.bias.double()
    np.savez_compressed(
        HERE / f"{name}.npz",
        **arrays,
        cell=name[:3],
        layers=layers,
        activation=options.get("nonlinearity", "tanh"),
        head_weight=head.weight.numpy(),
        head_bias=head.bias.numpy(),
        head_skip=skip.weight.numpy(),
        inputs=x.numpy(),
        h=h.numpy(),
        outputs=y.numpy(),
    )


def make_long(name: str) -> None:
    layers, hidden, inputs = LONG[name]
    lstm = nn.LSTM(inputs, hidden, layers)
    with torch.no_grad():  # one bias, so that float32 and float64 start from the same numbers
        for number in range(layers):
            getattr(lstm, f"bias_hh_l{number}").zero_()
    arrays = layers_of(lstm)
    x = torch.randn(LONG_STEPS, 1, inputs)
    with torch.no_grad():
        exact = double_lstm(arrays, layers)(x.double())[0][EVERY - 1 :: EVERY, 0]
        own = lstm(x)[0][EVERY - 1 :: EVERY, 0]
    np.savez_compressed(
        HERE / f"long_{name}.npz",
        **arrays,
        layers=layers,
        every=EVERY,
        inputs=x[:, 0].numpy(),
        h=exact.numpy(),
        torch_error=(own - exact).abs().max().item(),
    )
    print(name, "PyTorch float32 error", (own - exact).abs().max().item())


if __name__ == "__main__":
    torch.manual_seed(20240607)
    with torch.no_grad():
        for case in SHORT:
            make_short(case)
        for case in OTHERS:
            make_other(case)
    for case in LONG:
        make_long(case)
