"""Every backend repeats the golden trajectory of every model, and a changed weight is noticed."""

import numpy as np
import pytest

from streamlstm.golden import check_golden, make_golden
from streamlstm.kernels import cpu, reference
from streamlstm.model import ModelError
from tests.models import random_model


@pytest.mark.parametrize("backend", [cpu, reference], ids=["cpu", "reference"])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu", "hard_sigmoid", "linear"])
@pytest.mark.parametrize(("layers", "hidden", "horizon"), [(1, 1, 1), (2, 17, 50), (3, 64, 1)])
def test_every_backend_repeats_it(
    backend: object, activation: str, layers: int, hidden: int, horizon: int
) -> None:
    model = random_model(
        layers=layers, hidden=hidden, horizon=horizon, activation=activation,
        recurrent_activation="hard_sigmoid" if activation == "relu" else "sigmoid",
        lags=(1, 2), calendar=("hour",),
    )  # fmt: skip
    check_golden(model, backend)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", [cpu, reference], ids=["cpu", "reference"])
@pytest.mark.parametrize("window", [0, 6, 40])
@pytest.mark.parametrize(
    "kind", [{}, {"cell": "gru"}, {"cell": "gru", "reset_after": False}, {"cell": "rnn"}], ids=str
)
def test_every_cell_and_window(backend: object, window: int, kind: dict[str, object]) -> None:
    model = random_model(layers=2, hidden=17, window=window, **kind)
    check_golden(model, backend)  # type: ignore[arg-type]
    for name in model.weights:
        changed = random_model(layers=2, hidden=17, window=window, **kind)
        changed.weights[name].flat[0] += 1
        with pytest.raises(ModelError, match="fit or copy it again"):
            check_golden(changed, backend)  # type: ignore[arg-type]


def test_it_is_the_same_for_the_same_weights() -> None:
    model = random_model()
    again = make_golden(model.spec, model.weights)
    np.testing.assert_array_equal(again.outputs, model.golden.outputs)


@pytest.mark.parametrize("name", sorted(random_model(layers=2).weights))
def test_a_changed_weight_is_noticed(name: str) -> None:
    model = random_model(layers=2)
    model.weights[name].flat[0] += 1
    with pytest.raises(ModelError, match="fit or copy it again"):
        check_golden(model, cpu)
