"""What a tick may carry beside its targets: each by hand, and the stream as the fit sees it."""

import numpy as np
import pytest
from pydantic import ValidationError

from streamlstm import features
from streamlstm.engine import Engine
from streamlstm.features import features_of
from streamlstm.model import Input, Scaling, Spec
from streamlstm.policies import Policies
from streamlstm.ticks import Keys, Ticks
from tests.models import HOUR, random_model

MEASURED = (Input(name="load", role="target"), Input(name="wind", role="measured"))
FULL = (
    *MEASURED,
    Input(name="holiday", role="known"),
    Input(name="price", role="known", loc=50.0, scale=10.0),
    Input(name="size", role="number", loc=3.0, scale=2.0),
    Input(name="type", role="category", categories=("hotel", "office", "shop")),
)


def spec(**changes: object) -> Spec:
    given = {"hidden": 4, "step_ns": HOUR, "horizon": 3, "inputs": 6, "roles": FULL}
    return Spec.model_validate(given | changes)


def ticks(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Hourly ticks, some missed, of the inputs of FULL."""
    rng = np.random.default_rng(seed)
    hours = np.cumsum(rng.choice([1, 1, 1, 2, 7], n))
    columns = [
        rng.normal(100, 10, n), rng.normal(5, 1, n), rng.integers(0, 2, n),
        rng.normal(50, 10, n), np.full(n, 7.0), rng.integers(-1, 4, n),
    ]  # fmt: skip
    return hours * HOUR, np.stack(columns, axis=1).astype(float)


def test_the_input_vector_by_hand() -> None:
    s = spec(lags=(1,), calendar=("hour",), elapsed_ns=HOUR, scaling=Scaling(kind="none"))
    ts, values = ticks(60)
    x = features_of(s, ts, values).x
    assert x.shape == (60, s.width) == (60, 2 + 1 + 4 + 1 + 2 * 4 + 1 + 3)
    np.testing.assert_allclose(x[:, :2], values[:, :2], rtol=1e-6)
    hours = ts // HOUR
    np.testing.assert_allclose(x[1:, 7], np.log(np.diff(hours)), atol=1e-6)
    assert x[0, 7] == 0
    for which, at in ((2, 8), (3, 12)):  # what is known, told three hours before
        told: dict[int, float] = {}
        first = values[0, which]
        latest = first
        for i, hour in enumerate(hours.tolist()):
            for missed in range(hours[i - 1] + 4 if i else hour, hour + 3):
                told[missed] = latest
            told[hour + 3] = latest = values[i, which]
            expected = np.array([told[hour + k] for k in range(4)])
            if which == 3:
                expected = (expected - 50) / 10
            np.testing.assert_allclose(x[i, at : at + 4], expected, rtol=1e-6)
    np.testing.assert_allclose(x[:, 16], (7 - 3) / 2)
    one_hot = values[:, 5, None] == np.arange(3)
    np.testing.assert_array_equal(x[:, 17:], one_hot)
    assert not x[values[:, 5] == -1, 17:].any()  # of no category, and
    assert not x[values[:, 5] == 3, 17:].any()  # of one that there is not


def test_what_is_known_is_scaled_by_its_own_past_where_no_scale_is_fixed() -> None:
    s = spec(scaling=Scaling(memory=10_000, prior_ratio=1e-9))
    ts, values = ticks(200)
    x = features_of(s, ts, values).x
    past = values[:, 2]
    deviation = past.std() * np.sqrt(200 / 210)
    assert x[199, 5] == pytest.approx((past[-1] - past.mean()) / deviation, rel=1e-5)


@pytest.mark.parametrize("policies", [Policies(), Policies(not_a_number="missing")])
def test_the_stream_sees_what_the_fit_saw(policies: Policies) -> None:
    model = random_model(
        horizon=3, inputs=6, roles=FULL, elapsed_ns=HOUR, lags=(1, 2), calendar=("hour",)
    )
    ts, values = ticks(100)
    rows = features_of(model.spec, ts, values)
    engine = Engine(model, max_series=1, max_batch=16, policies=policies)
    engine.series.lookup(Keys.of([b"x"]))
    for i in range(100):
        one = slice(i, i + 1)
        slot, quiet = np.zeros(1, np.int32), np.zeros(1, np.uint8)
        engine.step(Ticks(slot, ts[one], values[one], quiet), 0)
        np.testing.assert_array_equal(engine.work.rows.x[0], rows.x[i])


def test_a_value_that_is_missing_is_the_latest_of_what_is_no_target() -> None:
    model = random_model(horizon=3, inputs=6, roles=FULL, base="last")
    policies = Policies(not_a_number="missing")
    ts, values = ticks(10)
    gappy, held = values.copy(), values.copy()
    gappy[6, 1:] = np.nan
    held[6, 1:] = values[5, 1:]
    points = []
    for given in (gappy, held):
        engine = Engine(model, max_series=1, policies=policies)
        engine.series.lookup(Keys.of([b"x"]))
        quiet = np.zeros(10, np.uint8)
        points.append(engine.step(Ticks(np.zeros(10, np.int32), ts, given, quiet), 0).point.copy())
    np.testing.assert_array_equal(*points)


def test_elapsed_time_of_ticks_without_a_grid() -> None:
    s = Spec(hidden=4, step_ns=0, horizon=2, elapsed_ns=HOUR)
    apart = np.array([1.0, 0.5, 3.25, 1e-9, 1e5])
    ts = np.concatenate([[7], 7 + np.cumsum(apart * HOUR)]).astype(np.int64)
    x = features_of(s, ts, np.ones((6, 1))).x[:, 1]
    np.testing.assert_allclose(x[:4], [0, *np.log(apart[:3])], atol=1e-6)
    np.testing.assert_array_equal(x[4:], [-features.FARTHEST_APART, features.FARTHEST_APART])


@pytest.mark.parametrize("x", [1.0, 0.7500001, 1.5, 1.4999, 2.0, 1e3, 2980.0, 3.4e-4, 123.456])
def test_the_logarithm(x: float) -> None:
    assert features._log(x) == pytest.approx(np.log(x), abs=1e-12)
    assert features._log(1.0) == 0


def test_steps_shown_are_all_or_two_dozen() -> None:
    assert spec().shown == (0, 1, 2, 3)
    assert spec(horizon=24).shown == tuple(range(25))
    many = spec(horizon=100).shown
    assert (many[:2], many[-1], len({*many})) == ((0, 1), 100, 25)
    assert set(np.diff(many[1:])) <= {4, 5}


def test_no_forecast_and_no_end_of_an_interval_lies_below_the_floor() -> None:
    free, floored = (random_model(seed=0, base="last", **more) for more in ({}, {"floor": 0.0}))
    rng = np.random.default_rng(0)
    ts, values = np.arange(300) * HOUR, rng.poisson(0.4, (300, 1)).astype(float)
    outs = []
    for model in (free, floored):
        engine = Engine(model, max_series=1, max_batch=300)
        engine.series.lookup(Keys.of([b"x"]))
        slot, quiet = np.zeros(300, np.int32), np.zeros(300, np.uint8)
        out = engine.step(Ticks(slot, ts, values, quiet), 0)
        outs.append((out.point.copy(), out.quantiles.copy(), engine))
    (point, quantiles, _), (raised, ends, engine) = outs
    assert (point < 0).any()
    np.testing.assert_array_equal(raised, np.maximum(point, 0))
    assert (quantiles < 0).any()
    assert (ends >= 0).all()
    # what is scored when its tick comes is what was issued
    pending = engine.series.state["pending"][0, 0, 0]
    assert pending == raised[-1, 0, 0]
    # and so the intervals are those that the raised forecasts have earned
    off = np.abs(values[1:, 0] - raised[:-1, 0, 0])
    error = engine.scores[1][2]
    scale = features_of(floored.spec, ts, values).scale[1:, 0]
    assert error == pytest.approx((off / scale).sum(), rel=1e-5)


def test_specs_without_any_of_it_are_written_as_before() -> None:
    plain = Spec(hidden=4, step_ns=HOUR, horizon=2)
    assert not {"roles", "elapsed_ns", "floor"} & plain.model_dump().keys()
    whole = spec(elapsed_ns=HOUR, floor=0.0)
    assert Spec.model_validate_json(whole.model_dump_json()) == whole
    assert whole.model_dump()["floor"] == 0


@pytest.mark.parametrize(
    ("kind", "before"),
    [
        ({}, "a6719aea927e"),
        ({"inputs": 3, "targets": 2, "lags": (1,)}, "2dfb3fc9be91"),
        ({"cell": "gru", "window": 3}, "bd17ae3f3641"),
    ],
)
def test_models_made_before_there_were_roles_have_the_ids_that_they_had(
    kind: dict[str, object], before: str
) -> None:
    assert random_model(1, **kind).id == before


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        (FULL[:5], "roles of 5 values, the model takes 6"),
        ((*FULL[1:], FULL[0]), "roles come in this order"),
        ((*FULL[:5], FULL[5].model_copy(update={"name": "wind"})), "two inputs have one name"),
        (({"name": "a", "role": "category"},), "categories go with"),
        (({"name": "a", "role": "number"},), "scale above 0"),
        (({"name": "a", "role": "targett"},), "role"),
    ],
)
def test_roles_that_do_not_fit_are_refused(roles: object, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        spec(roles=roles)
