"""What a model's spec says, and what follows from it."""

from typing import get_args

import numpy as np
import pytest

from streamlstm.kernels.cell import ACTIVATIONS, TRAINABLE
from streamlstm.model import ActivationName, Blend, Spec, Trainable
from tests.models import HOUR, random_model


@pytest.mark.parametrize(
    ("spec", "ages"),
    [
        ({}, ()),
        ({"lags": (1,)}, ()),
        ({"lags": (1, 24)}, (6, 12, 18, 24)),
        ({"base": "seasonal", "season": 12}, (3, 6, 9, 12)),
        ({"base": "seasonal", "season": 3}, (2, 3)),
        ({"base": "seasonal", "season": 12, "lags": (24,)}, (3, 6, 9, 12, 24)),
        (
            {
                "base": "blend",
                "blend": {"short": 24, "long": 168, "weights": [[0, 0, 0]] * 3},
                "lags": (24, 168),
            },
            (6, 12, 18, 24, 168),  # 192 is hardly more
        ),
    ],
)
def test_youth_ends_where_there_is_all_that_forecasts_look_back_on(
    spec: dict[str, object], ages: tuple[int, ...]
) -> None:
    assert random_model(**spec).spec.ages == ages


def test_the_id_tells_models_apart_and_nothing_else() -> None:
    model = random_model(1)
    assert model.id == random_model(1).id != random_model(2).id
    assert model.id != random_model(1, season=3).id


def test_weights_are_named_as_pytorch_names_them() -> None:
    def named(**spec: object) -> dict[str, tuple[int, ...]]:
        shapes = Spec(hidden=4, step_ns=HOUR, horizon=2, **spec).weight_shapes()
        return {name: shape for name, shape in shapes.items() if not name.startswith("head")}

    assert named() == {
        "lstm.weight_ih_l0": (16, 1), "lstm.weight_hh_l0": (16, 4), "lstm.bias_l0": (16,),
    }  # fmt: skip
    assert named(cell="gru", lags=(1,)) == {
        "gru.weight_ih_l0": (12, 2), "gru.weight_hh_l0": (12, 4),
        "gru.bias_ih_l0": (12,), "gru.bias_hh_l0": (12,),
    }  # fmt: skip
    assert named(cell="gru", reset_after=False)["gru.bias_l0"] == (12,)
    assert named(cell="rnn") == {
        "rnn.weight_ih_l0": (4, 1), "rnn.weight_hh_l0": (4, 4), "rnn.bias_l0": (4,),
    }  # fmt: skip


def test_options_that_change_nothing_are_not_written_so_that_ids_of_old_models_stay() -> None:
    spec = Spec(hidden=4, step_ns=HOUR, horizon=2).model_dump()
    assert not {"window", "reset_after"} & spec.keys()
    windowed = random_model(window=3)
    assert windowed.spec.model_dump()["window"] == 3
    assert windowed.id != random_model().id
    assert random_model(cell="gru").spec.model_dump()["reset_after"] is True


def test_the_input_vector_and_the_history_follow_from_the_spec() -> None:
    spec = Spec(
        hidden=4, step_ns=HOUR, horizon=2, season=24, inputs=3, targets=2, lags=(30, 1),
        base="seasonal", calendar=("hour", "year"),
    )  # fmt: skip
    assert spec.width == 3 + 2 * 2 + 2 * 4
    assert spec.history == 48  # whole seasons that hold the longest lag
    assert Spec(hidden=4, step_ns=HOUR, horizon=2).history == 0
    blend = Blend(short=24, long=168, weights=((0.0, 0.0, 0.0),) * 2)
    blended = Spec(hidden=4, step_ns=HOUR, horizon=2, base="blend", blend=blend)
    assert blended.history == 192
    assert blended.model_copy(update={"lags": (193,)}).history == 216  # whole short seasons


def test_first_middle_and_last_step_are_scored() -> None:
    shown = {k: Spec(step_ns=1, hidden=4, horizon=k).scored for k in (1, 2, 3, 48)}
    assert shown == {1: (1,), 2: (1, 2), 3: (1, 2, 3), 48: (1, 24, 48)}


def test_error_quantiles_between_the_levels_kept() -> None:
    errors = random_model().errors
    assert errors is not None
    np.testing.assert_allclose(errors.at(0.9), errors.quantiles[2])
    between = (errors.quantiles[2] + errors.quantiles[3]) / 2
    np.testing.assert_allclose(errors.at(0.925), between, rtol=1e-6)
    first = errors.levels[0]
    np.testing.assert_allclose(errors.at(first / 4), errors.quantiles[0] / 4, rtol=1e-6)


def test_activations_are_those_that_the_kernels_have() -> None:
    assert {*get_args(ActivationName)} == {*ACTIVATIONS}
    assert {*get_args(Trainable)} == {*TRAINABLE}
