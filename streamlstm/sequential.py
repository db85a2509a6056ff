"""A network written as in Keras, trained here, served by the daemon.

    model = Sequential([LSTM(50, activation="relu", input_shape=(10, 1)), Dense(1)])
    model.compile(optimizer="adam", loss="mse")
    model.fit(x, y, epochs=10)
    model.predict(x[-1:])
    model.save("model.safetensors")

From the same weights and the same batches the losses are those of Keras (tested). Names, defaults
and shapes of weights are Keras'; what of Keras is not here, is an error.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamlstm import bptt
from streamlstm.importers.parts import Dense as Head
from streamlstm.importers.parts import Parts, Recurrent, Wanted, assemble
from streamlstm.model import Model, Trainable
from streamlstm.model_file import save_model

Singles = NDArray[np.float32]
BATCH = 32
"""Windows at a time, as of Keras."""
EPSILON = 1e-7
"""Of Keras' Adam, which adds it before the bias correction."""


class LSTM(NamedTuple):
    """A layer of LSTM cells; the first one says what it is given."""

    units: int
    activation: Trainable = "tanh"
    recurrent_activation: Trainable = "sigmoid"
    input_shape: tuple[int, int] | None = None
    """(steps, values of a step)"""
    return_sequences: bool = False
    """True of each but the last LSTM layer"""


class Dense(NamedTuple):
    """The head: activation(weight @ h + bias)."""

    units: int
    activation: Trainable = "linear"


class History(NamedTuple):
    """What :meth:`Sequential.fit` returns."""

    history: dict[str, list[float]]
    """``loss``: the mean over each epoch, each batch as it was before it was learned from"""


class Sequential:
    """LSTM layers and a dense head.

    Raises:
        ValueError: from all methods, where something is asked for that is not here; it says what.
    """

    def __init__(self, layers: Sequence[LSTM | Dense] = (), *, seed: int = 0) -> None:
        """``seed`` of the weights and of the order in which windows are learned from."""
        self.layers: list[LSTM | Dense] = []
        self._seed = seed
        self._weights: list[Singles] = []
        self._loss: Literal["mse", "mae", "huber"] = "mse"
        self._rate = 1e-3
        self._trainer: _Trainer | None = None
        for layer in layers:
            self.add(layer)

    def add(self, layer: LSTM | Dense) -> None:
        """Add a layer on top."""
        before = self.layers[-1] if self.layers else None
        if before is None and not (isinstance(layer, LSTM) and layer.input_shape):
            raise ValueError("the first layer is an LSTM with input_shape=(steps, values)")
        if isinstance(before, Dense):
            raise ValueError("nothing comes after the Dense head")
        if isinstance(before, LSTM):
            if isinstance(layer, LSTM) and not before.return_sequences:
                raise ValueError("an LSTM layer below another needs return_sequences=True")
            if isinstance(layer, Dense) and before.return_sequences:
                raise ValueError("the last LSTM layer needs return_sequences=False")
        recurrent = [each for each in (*self.layers, layer) if isinstance(each, LSTM)]
        widest = max(each.units for each in recurrent)
        for each in recurrent:  # the narrower are filled up with units that have to stay 0
            if each.units < widest and each.activation in ("sigmoid", "hard_sigmoid"):
                raise ValueError(f"a layer of {each.activation} has to be as wide as the widest")
        self.layers.append(layer)
        self._weights += self._initial(layer, len(self.layers))
        self._trainer = None

    def compile(
        self, optimizer: str = "adam", loss: str = "mse", *, learning_rate: float = 1e-3
    ) -> None:
        """Choose how it learns: by Adam, on ``mse``, ``mae`` or ``huber``."""
        if optimizer != "adam":
            raise ValueError(f"optimizer {optimizer!r}: there is adam alone")
        if loss not in bptt.LOSSES:
            raise ValueError(f"loss {loss!r}: there are {', '.join(bptt.LOSSES)}")
        self._loss, self._rate = loss, learning_rate  # type: ignore[assignment]
        self._trainer = None

    def fit(
        self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        epochs: int = 1,
        batch_size: int = BATCH,
        shuffle: bool = True,
        progress: Callable[[int, float], None] = lambda epoch, loss: None,
    ) -> History:
        """Learn from windows ``x`` (n, steps[, values]) what follows each, ``y`` (n[, outputs]).

        Called again, it goes on from where it is. ``progress`` is told of each epoch and its loss.
        """
        windows, wanted = self._windows(x), np.asarray(y, np.float32)
        if not len(windows):
            raise ValueError("x is empty; give at least one window")
        if wanted.ndim == 1:
            wanted = wanted[:, None]
        if wanted.shape != (len(windows), self._outputs):
            raise ValueError(
                f"y is {wanted.shape}; ({len(windows)}, {self._outputs}) go with x and the head"
            )
        if not (np.isfinite(windows).all() and np.isfinite(wanted).all()):
            raise ValueError("x and y have to be finite; leave out windows with gaps")
        trainer = self._trainer = self._trainer or _Trainer(self._model(), self._seed)
        trainer.make_room(min(batch_size, len(windows)))
        history = []
        try:
            for epoch in range(epochs):
                loss = trainer.epoch(windows, wanted, batch_size, shuffle, self._loss, self._rate)
                history.append(loss)
                progress(epoch + 1, loss)
        finally:  # an interrupt leaves what was learned so far
            self._take(trainer.weights())
        return History({"loss": history})

    def predict(self, x: ArrayLike) -> Singles:
        """(n, outputs) what follows windows ``x`` (n, steps[, values])."""
        windows = self._windows(x)
        trainer = self._trainer or _Trainer(self._model(), self._seed)
        return trainer.predict(windows, self._outputs)

    def get_weights(self) -> list[Singles]:
        """Kernel (I, 4H), recurrent kernel (H, 4H), bias (4H,) of each layer, then of the head."""
        return [weight.copy() for weight in self._weights]

    def set_weights(self, weights: Sequence[ArrayLike]) -> None:
        """Take weights such as :meth:`get_weights` gives, of this model or of Keras' one."""
        taken = [np.array(weight, np.float32) for weight in weights]
        shapes = [weight.shape for weight in self._weights]
        if [weight.shape for weight in taken] != shapes:
            raise ValueError(f"weights have to be of these shapes: {shapes}")
        self._weights, self._trainer = taken, None

    def model(self, *, targets: int = 1, step_ns: int = 0) -> Model:
        """What the daemon runs: at each tick, the windows that end there.

        The outputs are steps ahead of the first ``targets`` values, ``step_ns`` apart (0: not
        known).
        """
        return self._model(Wanted(targets, step_ns))

    def save(self, path: str | Path, *, targets: int = 1, step_ns: int = 0) -> None:
        """Write :meth:`model` to a file."""
        save_model(self.model(targets=targets, step_ns=step_ns), Path(path))

    @property
    def _outputs(self) -> int:
        return self.layers[-1].units

    @property
    def _shape(self) -> tuple[int, int]:
        first = self.layers[0] if self.layers else None
        if not (isinstance(first, LSTM) and first.input_shape):
            raise ValueError("the model has no layers; add an LSTM with input_shape")
        return first.input_shape

    def _windows(self, x: ArrayLike) -> Singles:
        steps, values = self._shape
        windows = np.asarray(x, np.float32)
        if windows.ndim == 2 and values == 1:
            windows = windows[:, :, None]
        if windows.shape[1:] != (steps, values):
            raise ValueError(f"x is {windows.shape}; the model takes (n, {steps}, {values})")
        return np.ascontiguousarray(windows)

    def _initial(self, layer: LSTM | Dense, count: int) -> list[Singles]:
        """Glorot uniform into the gates, orthogonal between states, forget bias 1."""
        rng = np.random.default_rng([self._seed, count])
        below = self._shape[1] if count == 1 else self.layers[count - 2].units
        columns = 4 * layer.units if isinstance(layer, LSTM) else layer.units
        limit = np.sqrt(6 / (below + columns))
        kernel = rng.uniform(-limit, limit, (below, columns)).astype(np.float32)
        bias = np.zeros(columns, np.float32)
        if isinstance(layer, Dense):
            return [kernel, bias]
        bias[layer.units : 2 * layer.units] = 1
        square, upper = np.linalg.qr(rng.normal(size=(columns, layer.units)))
        square *= np.sign(np.diag(upper))
        return [kernel, square.T.astype(np.float32), bias]

    def _model(self, wanted: Wanted | None = None) -> Model:
        if not (self.layers and isinstance(self.layers[-1], Dense)):
            raise ValueError("a Dense head is missing; add one")
        found, weights = list[Recurrent](), iter(self._weights)
        head: Head | None = None
        for n, layer in enumerate(self.layers):
            if isinstance(layer, Dense):
                kernel, bias = next(weights), next(weights)
                head = Head("Dense", kernel.T, bias, layer.activation)
            else:
                kernel, square, bias = next(weights), next(weights), next(weights)
                name, act = f"LSTM layer {n + 1}", layer.activation
                of = Recurrent(name, "lstm", kernel.T, square.T, bias, None, act)
                found.append(of._replace(recurrent_activation=layer.recurrent_activation))
        parts = Parts(found, head, window=self._shape[0])
        return assemble(parts, wanted or Wanted(targets=1))

    def _take(self, weights: dict[str, Singles]) -> None:
        """Weights of the model file, without what pads the narrower layers."""
        taken: list[Singles] = []
        for n, layer in enumerate(self.layers):
            if isinstance(layer, Dense):
                below = self.layers[n - 1].units
                taken += [weights["head.weight"][:, :below].T, weights["head.bias"]]
                continue
            below, units = self._weights[3 * n].shape[0], layer.units
            kernel, square, bias = (
                weights[f"lstm.{name}_l{n}"].reshape(4, -1, width)
                for name, width in (
                    ("weight_ih", weights[f"lstm.weight_ih_l{n}"].shape[1]),
                    ("weight_hh", weights[f"lstm.weight_hh_l{n}"].shape[1]),
                    ("bias", 1),
                )
            )
            taken.append(kernel[:, :units, :below].reshape(4 * units, below).T)
            taken.append(square[:, :units, :units].reshape(4 * units, units).T)
            taken.append(bias[:, :units].reshape(-1))
        self._weights = [np.ascontiguousarray(weight) for weight in taken]


class _Trainer:
    """A network in training: windows laid end to end, each from a zero state."""

    def __init__(self, model: Model, seed: int) -> None:
        self.spec = model.spec
        self._net = bptt.net_of(model.spec)
        self._theta = bptt.pack(model.spec, model.weights)
        self._adam = bptt.adam(self._net)
        self.make_room(BATCH)
        self._rng, self._done = np.random.default_rng(seed), 0
        head = 3 * model.spec.layers
        self._skip = slice(self._net.at[head + 2], self._net.at[head + 3])

    def make_room(self, batch: int) -> None:
        """For batches of so many windows."""
        self.batch = batch
        self._work = bptt.allocate(self._net, batch, self.spec.window, dropout=False)

    def epoch(
        self, x: Singles, y: Singles, batch: int, shuffle: bool, loss: str, rate: float
    ) -> float:
        """Learn once from all windows, in batches; their mean loss."""
        order = self._rng.permutation(len(x)) if shuffle else np.arange(len(x))
        steps = x.shape[1]
        target = np.full((len(x), steps, y.shape[1]), np.nan, np.float32)
        target[:, -1] = y
        total = 0.0
        for begin in range(0, len(order), batch):
            which = order[begin : begin + batch]
            chunk = self._chunk(x, target, which)
            self._done += 1
            epsilon = EPSILON / np.sqrt(1 - 0.999**self._done)
            found = bptt.learn(
                self._net, self._theta, self._work, chunk, self._adam, self._done, rate,
                loss=loss, epsilon=epsilon,
            )  # fmt: skip
            self._theta[self._skip] = 0  # no shortcut in what this stands for
            total += found * len(which)
        return total / len(order)

    def predict(self, x: Singles, outputs: int) -> Singles:
        steps = x.shape[1]
        none = np.full((len(x), steps, outputs), np.nan, np.float32)
        made = np.empty_like(none)
        for begin in range(0, len(x), self.batch):
            which = np.arange(begin, min(begin + self.batch, len(x)))
            chunk = self._chunk(x, none, which)._replace(prediction=made.reshape(-1, outputs))
            bptt.predict(self._net, self._theta, self._work, chunk)
        return made[:, -1].copy()

    def weights(self) -> dict[str, Singles]:
        return bptt.unpack(self.spec, self._theta)

    def _chunk(self, x: Singles, target: Singles, which: NDArray[np.int64]) -> bptt.Chunk:
        steps, outputs = target.shape[1:]
        rows = np.stack([which * steps, np.full(len(which), steps), 0 * which + steps - 1], axis=1)
        state = np.zeros((self._net.layers, 2, len(which), self._net.units), np.float32)
        one, none = np.ones(outputs, np.float32), np.zeros((0, outputs), np.float32)
        flat = x.reshape(-1, x.shape[2]), target.reshape(-1, outputs)
        return bptt.Chunk(steps, *flat, one, rows, state, none)
