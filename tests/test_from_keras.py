"""The example of the guide, in Keras itself and here: the same losses, the same forecasts.

Keras computes with JAX here, in a process of its own: it changes settings of the whole process.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from streamlstm.cli import main
from streamlstm.model_file import load_model
from streamlstm.sequential import LSTM, Dense, Sequential
from tests.daemon import Client, start

ORIGINAL = """
import os, sys
os.environ["KERAS_BACKEND"] = "jax"
import numpy as np
import keras
from keras.layers import LSTM, Dense

keras.utils.set_random_seed(0)
folder = sys.argv[1]
x, y = np.load(folder + "/x.npy"), np.load(folder + "/y.npy")
model = keras.Sequential()
model.add(keras.Input((10, 1)))
model.add(LSTM(50, activation="relu"))
model.add(Dense(1))
model.compile(optimizer="adam", loss="mse")
np.savez(folder + "/before.npz", *model.get_weights())
losses = model.fit(x, y, epochs=10, shuffle=False, verbose=0).history["loss"]
np.savez(folder + "/after.npz", *model.get_weights())
np.save(folder + "/losses.npy", losses)
model.save(folder + "/guide.keras")
series = np.load(folder + "/series.npy")
windows = np.lib.stride_tricks.sliding_window_view(series, 10)[:, :, None]
np.save(folder + "/windows.npy", model.predict(windows, verbose=0))
# the same weights, and a state that runs on over the whole history
running = keras.Sequential([keras.Input((None, 1)), LSTM(50, activation="relu"), Dense(1)])
running.set_weights(model.get_weights())
running.save(folder + "/running.keras")
every = keras.Sequential([keras.Input((None, 1)),
                          LSTM(50, activation="relu", return_sequences=True), Dense(1)])
every.set_weights(model.get_weights())
np.save(folder + "/history.npy", every.predict(series[None, :, None], verbose=0)[0])
"""
HOUR = 3600


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the original was given and gave."""
    folder = tmp_path_factory.mktemp("keras")
    rng = np.random.default_rng(0)
    np.save(folder / "x.npy", rng.random((1000, 10, 1)).astype(np.float32))
    np.save(folder / "y.npy", rng.random((1000, 1)).astype(np.float32))
    np.save(folder / "series.npy", rng.random(60).astype(np.float32))
    code = [sys.executable, "-c", ORIGINAL, str(folder)]
    subprocess.run(code, check=True, env=os.environ | {"KERAS_BACKEND": "jax"}, timeout=280)
    return folder


def weights(path: Path) -> list[np.ndarray]:
    with np.load(path) as file:
        return [file[f"arr_{n}"] for n in range(len(file.files))]


def test_training_follows_keras_from_the_same_weights_and_batches(folder: Path) -> None:
    model = Sequential()
    model.add(LSTM(50, activation="relu", input_shape=(10, 1)))
    model.add(Dense(1))
    model.compile(optimizer="adam", loss="mse")
    model.set_weights(weights(folder / "before.npz"))
    x, y = np.load(folder / "x.npy"), np.load(folder / "y.npy")
    losses = model.fit(x, y, epochs=10, shuffle=False).history["loss"]
    np.testing.assert_allclose(losses, np.load(folder / "losses.npy"), rtol=1e-4)
    for ours, theirs in zip(model.get_weights(), weights(folder / "after.npz"), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-2)  # what hardly matters wanders


@pytest.mark.parametrize("kind", ["windows", "history"])
def test_what_keras_trained_is_served_and_says_what_it_says(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    """On the last ten values, as it was trained; and on the whole history."""
    name = "guide" if kind == "windows" else "running"
    out = tmp_path / "model.safetensors"
    assert main(["import", str(folder / f"{name}.keras"), "--out", str(out), "--step", "1h"]) == 0
    assert load_model(out).spec.window == (10 if kind == "windows" else 0)
    series, expected = np.load(folder / "series.npy"), np.load(folder / f"{kind}.npy")[:, 0]
    with start(tmp_path, out) as daemon, Client(daemon) as client:
        for n, value in enumerate(series.tolist()):
            client.tick("a", ts=n * HOUR, value=value)
        said = [p["forecast"][0] for p in client.predictions(len(series))]
    np.testing.assert_allclose(said[-len(expected) :], expected, atol=1e-5)


def test_ours_written_as_keras_says_its_own_prediction(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.random((100, 10)), rng.random(100)
    model = Sequential([LSTM(50, activation="relu", input_shape=(10, 1)), Dense(1)])
    model.compile(optimizer="adam", loss="mse")
    model.fit(x, y, epochs=2)
    model.save(tmp_path / "model.safetensors", step_ns=HOUR * 10**9)
    with start(tmp_path, tmp_path / "model.safetensors") as daemon, Client(daemon) as client:
        for n, value in enumerate(x[-1].tolist()):
            client.tick("a", ts=n * HOUR, value=value)
        said = client.predictions(10)[-1]["forecast"]
    np.testing.assert_allclose(said, model.predict(x[-1:])[0], atol=1e-5)
