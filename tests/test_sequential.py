"""What is written as in Keras trains as Keras does, and the daemon's engine serves it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from streamlstm.backtest import run
from streamlstm.model_file import load_model
from streamlstm.sequential import LSTM, Dense, Sequential
from tests.models import HOUR


def windows(n: int = 200, steps: int = 10, values: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.random((n, steps, values)).astype(np.float32)
    return x, x.mean(axis=(1, 2))[:, None]


def built(steps: int = 10, values: int = 1, seed: int = 0) -> Sequential:
    model = Sequential(seed=seed)
    model.add(LSTM(12, activation="relu", input_shape=(steps, values)))
    model.add(Dense(1))
    model.compile(optimizer="adam", loss="mse", learning_rate=1e-2)
    return model


def plainly(weights: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    """(n, outputs) by a loop in float64, one relu layer."""
    kernel, square, bias, head, head_bias = (w.astype(float) for w in weights)
    h = c = np.zeros((len(x), len(square)))
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ kernel + h @ square + bias, 4, axis=1)
        i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
        c = f * c + i * np.maximum(g, 0)
        h = o * np.maximum(c, 0)
    return h @ head + head_bias


def test_it_learns_and_predicts_what_its_weights_say() -> None:
    x, y = windows()
    model = built()
    history = model.fit(x, y, epochs=10).history["loss"]
    assert len(history) == 10
    assert history[-1] < 0.1 * history[0]
    np.testing.assert_allclose(model.predict(x), plainly(model.get_weights(), x), atol=1e-5)
    assert model.fit(x, y).history["loss"][0] < 1.2 * history[-1]  # it goes on from there


def mixed() -> Sequential:
    first = LSTM(9, "relu", "hard_sigmoid", input_shape=(10, 1), return_sequences=True)
    model = Sequential([first, LSTM(9, "sigmoid"), Dense(1)])
    model.compile()
    return model


@pytest.mark.parametrize("make", [built, mixed])
def test_what_is_saved_forecasts_each_tick_from_the_last_window(
    make: Callable[[], Sequential], tmp_path: Path
) -> None:
    x, y = windows()
    model = make()
    model.fit(x, y, epochs=2)
    model.save(tmp_path / "m.safetensors", step_ns=HOUR)
    series = np.random.default_rng(1).random(60)
    served = run(load_model(tmp_path / "m.safetensors"), np.arange(60) * HOUR, series[:, None], 1)
    last = np.lib.stride_tricks.sliding_window_view(series, 10)
    np.testing.assert_allclose(served.point[9:, 0], model.predict(last)[:, 0], atol=1e-5)


def test_layers_of_several_widths_train_and_keep_their_shapes() -> None:
    x, y = windows(values=2)
    layers = [LSTM(9, input_shape=(10, 2), return_sequences=True), LSTM(5), Dense(1)]
    model = Sequential(layers)
    model.compile(learning_rate=1e-2)
    before = model.get_weights()
    losses = model.fit(x, y, epochs=8).history["loss"]
    after = model.get_weights()
    assert losses[-1] < 0.5 * losses[0]
    assert [w.shape for w in after] == [w.shape for w in before]
    assert [w.shape for w in after[3:6]] == [(9, 20), (5, 20), (20,)]
    again = Sequential(layers)
    again.set_weights(after)
    np.testing.assert_array_equal(again.predict(x), model.predict(x))


def test_a_batch_that_is_not_full_counts_by_its_windows() -> None:
    """The loss of an epoch in batches, learning nothing, is that of all windows at once."""
    x, y = windows(50)
    model = built()
    model.compile(learning_rate=0.0)
    loss = model.fit(x, y, batch_size=32).history["loss"][0]
    assert loss == pytest.approx(np.mean((model.predict(x) - y) ** 2), rel=1e-5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Sequential([Dense(1)]), "input_shape"),
        (lambda: Sequential([LSTM(4, input_shape=(10, 1)), LSTM(4)]), "return_sequences=True"),
        (lambda: Sequential([LSTM(4, input_shape=(10, 1)), Dense(1), Dense(1)]), "after the Dense"),
        (lambda: built().compile(optimizer="sgd"), "adam"),
        (lambda: built().compile(loss="kl"), "mse, mae, huber"),
        (lambda: built().fit(np.ones((3, 9, 1)), np.ones(3)), r"\(n, 10, 1\)"),
        (lambda: built().fit(np.ones((3, 10)), np.ones(4)), r"\(3, 1\)"),
        (lambda: built().fit(np.full((3, 10), np.nan), np.ones(3)), "finite"),
        (lambda: built().fit(np.ones((0, 10)), np.ones((0, 1))), "empty"),
        (lambda: built().set_weights([np.ones(3)]), "shapes"),
        (lambda: Sequential().predict(np.ones((1, 10))), "no layers"),
        (lambda: Sequential().save("m.safetensors"), "Dense"),
        (lambda: Sequential([LSTM(3, input_shape=(10, 1))]).predict(np.ones((1, 10))), "Dense"),
        (
            lambda: Sequential(
                [
                    LSTM(8, "sigmoid", input_shape=(10, 1), return_sequences=True),
                    LSTM(4, "sigmoid"),
                ]
            ),
            "a layer of sigmoid has to be as wide as the widest",
        ),
        (
            lambda: built().save("m.safetensors", targets=2),
            "1 outputs are no whole steps of 2 targets",
        ),
    ],
)
def test_what_is_not_here_is_an_error_that_says_so(make: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()  # type: ignore[operator]


def test_an_interrupted_fit_keeps_what_was_learned() -> None:
    x, y = windows()
    model, whole = built(), built()

    def stop(epoch: int, loss: float) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, epochs=9, progress=stop)
    whole.fit(x, y, epochs=2)
    for ours, theirs in zip(model.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(model.predict(x), whole.predict(x))


def test_a_later_fit_goes_on_with_a_larger_batch_too() -> None:
    """Adam remembers: the same as if there had been one fit with those batches."""
    x, y = windows(64)
    model = built()
    model.fit(x[:16], y[:16], shuffle=False)
    done = model._trainer
    model.fit(x, y, batch_size=64, shuffle=False)
    assert model._trainer is done
    assert done._done == 2
