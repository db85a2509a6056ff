"""Gradients and a short training run by PyTorch, for tests/test_bptt.py.

    python tests/goldens/make_gradients.py        # needs torch; writes gradients.npz beside

Two layers of 13 units, 3 inputs, 4 outputs, 6 rows of 9 steps, a state carried in, a head with a
shortcut from the inputs, two thirds of the targets known; float64.
"""

from pathlib import Path

import numpy as np
import torch

ROWS, STEPS, INPUTS, HIDDEN, LAYERS, OUTPUTS = 6, 9, 3, 13, 2, 4
UPDATES, RATE, CLIP = 12, 1e-2, 0.5


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(INPUTS, HIDDEN, LAYERS, batch_first=True)
        self.head = torch.nn.Linear(HIDDEN, OUTPUTS)
        self.skip = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
        for n in range(LAYERS):  # one bias a layer, as ours
            bias = getattr(self.lstm, f"bias_hh_l{n}")
            bias.requires_grad_(False)
            bias.zero_()

    def forward(
        self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        h, state = self.lstm(x, state)
        return self.head(h) + self.skip(x), state

    def named(self) -> dict[str, torch.nn.Parameter]:
        names = {"head.weight": self.head.weight, "head.bias": self.head.bias}
        names["head.skip"] = self.skip.weight
        for n in range(LAYERS):
            names[f"lstm.weight_ih_l{n}"] = getattr(self.lstm, f"weight_ih_l{n}")
            names[f"lstm.weight_hh_l{n}"] = getattr(self.lstm, f"weight_hh_l{n}")
            names[f"lstm.bias_l{n}"] = getattr(self.lstm, f"bias_ih_l{n}")
        return names


def main() -> None:
    torch.manual_seed(1)
    torch.set_default_dtype(torch.float64)
    network = Network()
    x = torch.randn(ROWS, STEPS, INPUTS)
    target = torch.randn(ROWS, STEPS, OUTPUTS)
    known = torch.rand(ROWS, STEPS, OUTPUTS) < 2 / 3
    start = (torch.randn(LAYERS, ROWS, HIDDEN) / 2, torch.randn(LAYERS, ROWS, HIDDEN) / 2)
    out = {"x": x, "target": torch.where(known, target, torch.nan)}
    out |= {"start.h": start[0], "start.c": start[1]}
    out |= {f"weights.{k}": v.detach().clone() for k, v in network.named().items()}

    losses = {
        "mse": torch.nn.functional.mse_loss,
        "mae": torch.nn.functional.l1_loss,
        "huber": torch.nn.functional.huber_loss,
    }
    for name, loss in losses.items():
        network.zero_grad()
        answer, end = network(x, start)
        value = loss(answer[known], target[known])
        value.backward()
        out[f"{name}.loss"] = value.detach()
        for key, parameter in network.named().items():
            out[f"{name}.gradient.{key}"] = parameter.grad.clone()
    out |= {"end.h": end[0].detach(), "end.c": end[1].detach(), "answer": answer.detach()}

    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    curve = []
    for _ in range(UPDATES):
        network.zero_grad()
        value = losses["mse"](network(x, start)[0][known], target[known])
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        curve.append(value.detach())
    out["curve"] = torch.stack(curve)
    out |= {f"trained.{k}": v.detach().clone() for k, v in network.named().items()}
    arrays = {key: tensor.numpy() for key, tensor in out.items()}
    np.savez_compressed(Path(__file__).with_name("gradients.npz"), **arrays)


if __name__ == "__main__":
    main()
