"""Networks saved and run by PyTorch, for tests/importers/test_torch.py.

    python tests/goldens/make_torch.py        # needs torch; writes the folder torch beside

24 drawn networks: NN.pt and NN.safetensors hold each one's state_dict, cases.json what was drawn,
runs.npz the inputs (all take their first columns) and every fifth output of 1,000 steps from a zero
state. The folder refused holds files that are no state_dicts of ours.
"""

import json
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

FOLDER = Path(__file__).with_name("torch")
CASES, STEPS, EVERY = 24, 1000, 5
NAMES = ["rnn", "encoder", "net.0", "lstm_1", "model.core.cell", "Block", ""]
HEADS = ["fc", "out", "net.2", "linear", "a_head", "decoder.0"]
LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
CELLS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}


def over(module: nn.Module, x: Tensor) -> Tensor:
    """(T, H) outputs of a module of layers, or of a single cell, over (T, I) from a zero state."""
    if isinstance(module, nn.RNNBase):
        return module(x)[0]
    state, tops = None, []
    for row in x:
        state = module(row, state)
        tops.append(state[0] if isinstance(state, tuple) else state)
    return torch.stack(tops)


def draw(rng: np.random.Generator, number: int, inputs: Tensor) -> tuple[dict[str, Any], Tensor]:
    """What was drawn, and every fifth output; the files are written."""
    kind = ("lstm", "gru", "rnn")[number % 3]
    width, outputs = int(rng.integers(1, 4)), int(rng.integers(1, 5))
    bias, single = bool(rng.random() < 0.75), bool(rng.random() < 0.25)
    options: dict[str, Any] = {"bias": bias}
    activation = "tanh"
    if kind == "rnn":
        activation = options["nonlinearity"] = str(rng.choice(["tanh", "relu"]))
    # up to three layers, in one module or in several that follow each other
    counts = {1: [1], 2: [2], 3: [3], 4: [1, 1], 5: [1, 2]}[int(rng.integers(1, 6))]
    modules: list[nn.Module] = []
    taken = width
    for count in counts:
        hidden = int(1 + 23 * rng.random() ** 1.5)
        if single:
            modules.append(CELLS[kind](taken, hidden, **options))
        else:
            layers = LAYERS[kind](taken, hidden, count, batch_first=True, **options)
            modules.append(layers)
        taken = hidden
    head = nn.Linear(taken, outputs, bias=bool(rng.random() < 0.75)) if rng.random() < 0.8 else None

    kept = [torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64][number % 5]
    with torch.no_grad():
        for module in [*modules, *([head] if head else [])]:
            for parameter in module.parameters():
                parameter *= 1 if activation == "relu" else 2  # livelier than at its birth
            module.to(kept).float()  # the network that runs is the one that the file holds
        top = inputs[:, :width]
        for module in modules:
            top = over(module, top)
        if head is not None:
            top = head(top)

    name = NAMES[int(rng.integers(len(NAMES)))]
    if len(modules) > 1 and not name:
        name = "layers"
    prefix = str(rng.choice(["", "model.", "net.backbone."])) if name else ""
    named = [(f"{prefix}{name}" + f".{i}" * (len(modules) > 1), m) for i, m in enumerate(modules)]
    if head is not None:
        at = int(rng.integers(2)) * len(named)
        named.insert(at, (prefix + HEADS[int(rng.integers(len(HEADS)))], head))
    state: OrderedDict[str, Tensor] = OrderedDict()
    keep_vars = number % 4 == 3  # parameters instead of tensors
    for label, module in named:
        module.to(kept)
        module.state_dict(destination=state, prefix=label + "." * bool(label), keep_vars=keep_vars)
    plain = OrderedDict((k, v.detach().clone()) for k, v in state.items())
    save_file(dict(plain), FOLDER / f"{number:02}.safetensors")
    if number % 6 == 1:  # views of one storage, as a GPU's kernels want them
        flat = torch.cat([v.detach().reshape(-1) for v in state.values()])
        sizes = [v.numel() for v in state.values()]
        pieces = zip(state, flat.split(sizes), state.values(), strict=True)
        state = OrderedDict((k, piece.view(v.shape)) for k, piece, v in pieces)
    if number % 6 == 2:  # column by column
        state = OrderedDict((k, v.detach().T.contiguous().T) for k, v in state.items())
    torch.save(wrapped(number, state), FOLDER / f"{number:02}.pt")
    drawn = {
        "cell": kind, "activation": activation, "inputs": width, "outputs": top.shape[1],
        "layers": len(counts) if single else sum(counts), "names": [label for label, _ in named],
        "hidden": max(m.hidden_size for m in modules), "bias": bias, "dtype": str(kept),
    }  # fmt: skip
    return drawn, top[EVERY - 1 :: EVERY]


def wrapped(number: int, state: OrderedDict[str, Tensor]) -> Any:
    """A state_dict alone, or in what training loops save beside it."""
    if number % 4 == 0:
        return state
    if number % 4 == 1:
        return {"epoch": 3, "state_dict": state, "hyper_parameters": {"lr": 1e-3, "name": "a"}}
    if number % 4 == 2:
        some = nn.Linear(2, 3)
        optimizer = torch.optim.Adam(some.parameters())
        some(torch.ones(2)).sum().backward()
        optimizer.step()
        return {
            "model_state_dict": state,
            "optimizer_state_dict": optimizer.state_dict(),
            "loss": 0.125,
            "done": [True, None, 2**40, (1, 2, 3, 4)],
        }
    return {"model": state}


def refused() -> None:
    folder = FOLDER / "refused"
    folder.mkdir(exist_ok=True)
    lstm = nn.LSTM(2, 3)
    torch.save(nn.LSTM(2, 3, bidirectional=True).state_dict(), folder / "bidirectional.pt")
    torch.save(nn.LSTM(2, 3, proj_size=1).state_dict(), folder / "projected.pt")
    torch.save(lstm, folder / "module.pt")
    torch.save(lstm.state_dict(), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    whole = folder / "whole.pt"
    torch.jit.script(lstm).save(str(whole))
    with zipfile.ZipFile(whole) as file, zipfile.ZipFile(folder / "scripted.pt", "w") as out:
        for (
            name
        ) in file.namelist():  # what helps debuggers holds paths of the machine it is made on
            if not name.endswith(".debug_pkl"):
                out.writestr(name, file.read(name))
    whole.unlink()


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    inputs = torch.from_numpy(rng.normal(size=(STEPS, 3)).astype(np.float32))
    drawn = [draw(rng, number, inputs) for number in range(CASES)]
    (FOLDER / "cases.json").write_text(
        "[\n" + ",\n".join(json.dumps(case) for case, _ in drawn) + "\n]\n"
    )
    runs = {f"{number:02}": out.numpy() for number, (_, out) in enumerate(drawn)}
    np.savez_compressed(FOLDER / "runs.npz", inputs=inputs.numpy(), **runs)
    refused()


if __name__ == "__main__":
    main()
