"""Make keras2/ and tf2onnx/, each file beside what Keras 2 predicts: `python make_keras2.py`.

Needs tensorflow and tf2onnx; made with tensorflow-cpu 2.15.1 (Keras 2.15.0), tf2onnx 1.17.0, onnx
1.16.2, h5py 3.16.0 and numpy 1.26.4, on Python 3.11.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}

import numpy as np
import tensorflow as tf
import tf2onnx

HERE = Path(__file__).parent
STEPS = 240
K, L = tf.keras, tf.keras.layers


class Case(NamedTuple):
    """A model and the forms that it is saved in."""

    make: Callable[[], Any]
    forms: tuple[str, ...]
    opset: int = 0
    """0: not exported by tf2onnx"""
    fit: bool = False
    """compiled and trained for a step, so that the state of the optimizer is in it"""


def guide() -> Any:
    model = K.Sequential()
    model.add(L.LSTM(50, activation="relu", input_shape=(10, 1)))
    model.add(L.Dense(1))
    return model


def stacked() -> Any:
    return K.Sequential(
        [
            L.LSTM(7, return_sequences=True, input_shape=(None, 2), dropout=0.1),
            L.Dropout(0.2),
            L.LSTM(4, return_sequences=True, dropout=0.1),
            L.Dropout(0.2),
            L.LSTM(5),
            L.Dense(3),
        ],
        name="demand_model",
    )


def stateful() -> Any:
    return K.Sequential(
        [
            L.LSTM(6, stateful=True, return_sequences=True, batch_input_shape=(1, 1, 2)),
            L.LSTM(6, stateful=True),
            L.Dense(1),
        ]
    )


def gru_after() -> Any:
    return K.Sequential([K.Input((12, 2)), L.GRU(6), L.Dense(4), L.Reshape((2, 2))])


def gru_before() -> Any:
    return K.Sequential(
        [
            L.GRU(5, reset_after=False, return_sequences=True, input_shape=(None, 3)),
            L.GRU(4, reset_after=False),
            L.Dense(2, activation="sigmoid"),
        ]
    )


def simple() -> Any:
    return K.Sequential(
        [
            L.SimpleRNN(5, activation="relu", return_sequences=True, input_shape=(None, 1)),
            L.SimpleRNN(5, activation="relu", use_bias=False),
            L.Dense(1),
        ]
    )


def scaled() -> Any:
    normalization = L.Normalization(name="fit_to_train")
    normalization.adapt(np.random.default_rng(7).normal((20, -3), (4, 0.5), (50, 9, 2)))
    return K.Sequential(
        [
            K.Input((9, 2)),
            normalization,
            L.Rescaling(0.5, offset=0.1),
            L.LSTM(6),
            L.Dense(2),
            L.Rescaling(4.0, offset=20.0),
        ]
    )


def functional() -> Any:
    load = K.Input((8, 2), name="load")
    x = L.LSTM(6, return_sequences=True, name="z_encoder")(load)
    x = L.SpatialDropout1D(0.1, name="m_drop")(x)
    x = L.LSTM(4, name="a_encoder", kernel_regularizer="l2", unit_forget_bias=False)(x)
    x = L.Dense(3, name="y_mix")(x)
    return K.Model(load, L.Dense(2, name="b_out", activation="tanh")(x), name="net")


def each_step() -> Any:
    return K.Sequential(
        [
            K.Input((None, 2)),
            L.GaussianNoise(0.01),
            L.LSTM(5, return_sequences=True),
            L.TimeDistributed(L.Dense(2, activation="relu")),
        ]
    )


def hard() -> Any:
    return K.Sequential(
        [
            L.LSTM(6, recurrent_activation="hard_sigmoid", input_shape=(None, 2)),
            L.Dense(1),
            L.Activation("hard_sigmoid"),
        ]
    )


def hard_gru() -> Any:
    x = i = K.Input((None, 2))
    x = L.GRU(4, recurrent_activation="hard_sigmoid", reset_after=False)(x)
    return K.Model(i, L.Dense(2)(x))


def cells() -> Any:
    x = i = K.Input((None, 2))
    x = L.RNN([L.LSTMCell(4), L.LSTMCell(3)], return_sequences=True)(x)
    x = L.RNN(L.LSTMCell(5))(x)
    return K.Model(i, L.Dense(1)(x))


def slashes() -> Any:
    model = K.Sequential(
        [
            L.LSTM(4, return_sequences=True, input_shape=(6, 1), name="base/first"),
            L.LSTM(4, name="base/second"),
            L.Dense(1, name="head.out"),
        ]
    )
    model.layers[0].trainable = False
    return model


def dropouts() -> Any:
    return K.Sequential(
        [
            L.GRU(4, dropout=0.2, return_sequences=True, input_shape=(8, 2)),
            L.TimeDistributed(L.Dropout(0.1)),
            L.GRU(4, dropout=0.2, recurrent_dropout=0.3),
            L.Dense(1),
        ]
    )


def operations() -> Any:
    i = K.Input((8, 2))
    x = L.LSTM(4, return_sequences=True)((1.0 - i) / 5.0)
    return K.Model(i, L.Dense(1)(x[:, -1]) * 10.0 + 3.0)


def under(policy: str) -> Callable[[], Any]:
    def make() -> Any:
        K.mixed_precision.set_global_policy(policy)
        try:
            return K.Sequential(
                [K.Input((None, 2)), L.LSTM(5), L.Dense(1), L.Activation("linear", dtype="float32")]
            )
        finally:
            K.mixed_precision.set_global_policy("float32")

    return make


ALL = (".h5", ".keras", ".weights.h5", "_weights.h5")
CASES = {
    "guide": Case(guide, (".h5", ".keras"), 14),
    "stacked": Case(stacked, ALL, 15, fit=True),
    "stateful": Case(stateful, (".h5", ".keras"), 16),
    "gru_after": Case(gru_after, (".h5", ".keras", "_weights.h5"), 17),
    "gru_before": Case(gru_before, (".keras",), 18),
    "simple": Case(simple, (".keras",), 15),
    "scaled": Case(scaled, (".h5", ".keras"), 17),
    "functional": Case(functional, (".h5", ".keras"), 16),
    "each_step": Case(each_step, (".keras",), 17),
    "hard": Case(hard, (".h5", ".keras"), 17),
    "hard_gru": Case(hard_gru, (".keras",)),
    "cells": Case(cells, (".keras",), 17),
    "slashes": Case(slashes, (".h5", ".keras"), 17),
    "dropouts": Case(dropouts, (".keras",), 18),
    "operations": Case(operations, (".keras",), 17),
    "mixed_float16": Case(under("mixed_float16"), (".h5", ".keras"), 17),
    "mixed_bfloat16": Case(under("mixed_bfloat16"), (".keras",)),
}


def randomize(model: Any, rng: np.random.Generator) -> None:
    """Biases, which a model begins with at zero, say nothing until they differ."""
    for layer in model.layers:
        if not isinstance(layer, L.Normalization):
            layer.set_weights([w + rng.normal(0, 0.2, w.shape) for w in layer.get_weights()])


def main() -> None:
    truth = {}
    for n, (name, case) in enumerate(CASES.items()):
        K.utils.set_random_seed(n)
        rng = np.random.default_rng(n)
        model = case.make()
        randomize(model, rng)
        rows, steps, width = model.input_shape
        x = rng.normal(size=(STEPS, width)).astype(np.float32)
        if name == "scaled":
            x = (x * (4, 0.5) + (20, -3)).astype(np.float32)
        if case.fit:
            model.compile(optimizer="adam", loss="mse", metrics=["mae"])
            windows = np.stack([x[k : k + (steps or 9)] for k in range(16)])
            target = rng.normal(size=model(windows).shape)
            model.fit(windows, target, epochs=1, verbose=0)
        at, found = predictions(model, x)
        truth |= {f"{name}.inputs": x, f"{name}.at": at, f"{name}.outputs": found}
        for form in case.forms:
            path = HERE / "keras2" / f"{name}{form}"
            (model.save_weights if "weights" in form else model.save)(path)
            print(path.name, path.stat().st_size)
        if case.opset:
            path = HERE / "tf2onnx" / f"{name}.onnx"
            signature = [tf.TensorSpec((rows, steps, width), tf.float32, name="x")]
            tf2onnx.convert.from_keras(model, signature, opset=case.opset, output_path=str(path))
            print(path.name, path.stat().st_size)
    np.savez_compressed(HERE / "keras2" / "truth.npz", **truth)


def predictions(model: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ticks, and what the model predicts after each: of the window up to it, or of all before."""
    rows, steps, _ = model.input_shape
    if rows:  # a state that runs on
        model.reset_states()
        at = np.arange(len(x))
        found = [model.predict(tick[None, None], verbose=0)[0] for tick in x]
        model.reset_states()
    elif steps:
        at = np.arange(steps - 1, len(x))
        found = model.predict(np.stack([x[k - steps + 1 : k + 1] for k in at]), verbose=0)
    elif len(model.output_shape) == 3:
        at, found = np.arange(len(x)), model.predict(x[None], verbose=0)[0]
    else:
        at = np.array([0, 1, 6, 199, len(x) - 1])  # each is a network of its own to TensorFlow
        found = [model.predict(x[None, : k + 1], verbose=0)[0] for k in at]
    found = np.asarray(found, np.float32).reshape(len(at), -1)
    return at, found


if __name__ == "__main__":
    for folder in ("keras2", "tf2onnx"):
        (HERE / folder).mkdir(exist_ok=True)
    main()
