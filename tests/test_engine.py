"""The engine against a plain float64 forecaster, and its promise of the same bits always."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import typeof

from streamlstm import watch
from streamlstm.engine import Engine
from streamlstm.model import Model, ModelError
from streamlstm.model_file import save_model
from streamlstm.policies import EARLIEST, MOMENT, Policies
from streamlstm.ticks import END, RESET, WARM, Arrivals, Forecasts, Keys, Ticks, rows_of
from tests.models import HOUR, random_model
from tests.oracle import Oracle

START = 1_400_000_000 * 10**9
RICH = {
    "layers": 2,
    "hidden": 20,
    "horizon": 30,
    "season": 24,
    "base": "seasonal",
    "lags": (24, 23, 1),
    "calendar": ("hour", "week", "year"),
    "timezone": "Europe/Berlin",
    "directions": 6,
    "spread": True,
}

BLENDED = {
    "inputs": 2,
    "targets": 2,
    "horizon": 9,
    "season": 6,
    "lags": (1, 7),
    "directions": 3,
    "spread": True,
    "base": "blend",
    "blend": {
        "short": 3,
        "long": 6,
        "weights": np.random.default_rng(7).normal(0, 0.5, (18, 4)).tolist(),
        "smoothing": {"season": 6, "level": 0.3, "profile": 0.2},
    },
}


def ticks(slots: list[int], hours: list[float], values: np.ndarray, flags: int = 0) -> Ticks:
    return Ticks(
        np.array(slots, np.int32),
        START + np.round(np.array(hours) * HOUR).astype(np.int64),
        np.asarray(values, float).reshape(len(slots), -1),
        np.full(len(slots), flags, np.uint8),
    )


def opened(model: Model, **options: object) -> Engine:
    engine = Engine(model, **{"max_series": 100, "max_batch": 256} | options)
    engine.series.lookup(Keys.of([b"%d" % i for i in range(10)]))
    return engine


def copied(forecasts: Forecasts) -> Forecasts:
    return Forecasts(*(array.copy() for array in forecasts))


def everything(engine: Engine) -> dict[str, bytes]:
    """All state of all series, as bytes, but for when they were heard."""
    slots = engine.series.slots
    recurrent = engine.kernels.to_host(engine.buffers, slots)
    state = {name: array[slots].tobytes() for name, array in engine.series.state.items()}
    del state["heard"]
    return state | {"recurrent": recurrent.tobytes()}


KINDS: list[dict[str, object]] = [
    {"cell": "gru"},
    {"cell": "gru", "reset_after": False},
    {"cell": "rnn"},
    {"window": 1},
    {"window": 12},
    {"cell": "gru", "window": 30},
]


@pytest.mark.parametrize(
    "spec",
    [
        {},
        RICH,
        {"inputs": 3, "targets": 2, "base": "none"},
        BLENDED,
        *(RICH | kind for kind in KINDS),
    ],
    ids=lambda spec: "-".join(
        str(spec[name]) for name in ("cell", "window", "hidden") if name in spec
    ),
)
@pytest.mark.parametrize(("calibrated", "wild"), [(True, False), (False, False), (True, True)])
def test_equals_a_float64_forecaster_made_from_the_file_alone(
    tmp_path: Path, spec: dict[str, object], calibrated: bool, wild: bool
) -> None:
    model = random_model(calibrated=calibrated, **spec)
    save_model(model, tmp_path / "m.safetensors")
    oracle, engine = Oracle(tmp_path / "m.safetensors"), opened(model)
    rng = np.random.default_rng(3)
    hours = np.cumsum(rng.choice([1, 1, 1, 1, 1.2, 3, 40], 300))
    values = rng.normal(10, 2, (300, model.spec.inputs))
    if wild:  # errors one, two and three in a row, then a new level
        values[100] += 1e4
        values[140:142, 0] -= 3e3
        values[170:173] += 700
        values[250:] += 5e3
    for hour, value in zip(hours, values, strict=True):
        tick = ticks([4], [hour], value)
        ours = engine.step(tick, 0)
        point, lower, upper = oracle.step(int(tick.ts[0]), value.tolist())
        size = max(1.0, np.abs(point).max() / 10)
        np.testing.assert_allclose(ours.point[0], point, atol=1e-5 * size, rtol=1e-5)
        np.testing.assert_allclose(ours.quantiles[0, 0], lower, atol=2e-4 * size, rtol=5e-4)
        np.testing.assert_allclose(ours.quantiles[0, 1], upper, atol=2e-4 * size, rtol=5e-4)


@pytest.mark.parametrize("kind", [{}, *KINDS], ids=str)
@given(data=st.data())
@settings(max_examples=15)
def test_same_bits_however_the_ticks_were_batched(
    kind: dict[str, object], data: st.DataObject
) -> None:
    model = random_model(**RICH | kind)
    n = 120
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    slots, values = rng.integers(0, 4, n), rng.normal(5, 1, n)
    whole = opened(model)
    one = ticks(slots.tolist(), np.arange(n).tolist(), values)
    together = copied(whole.step(one, 0))

    parts = opened(model)
    cuts = sorted({0, n, *data.draw(st.lists(st.integers(1, n - 1), max_size=12))})
    apart = [
        copied(parts.step(Ticks(*(array[a:b] for array in one)), 0)) for a, b in pairwise(cuts)
    ]
    for k, array in enumerate(together):
        np.testing.assert_array_equal(array, np.concatenate([part[k] for part in apart]))
    assert everything(whole) == everything(parts)


def test_same_bits_whoever_shares_the_work() -> None:
    """Threads that share a batch, of which a part is warm, do as one that goes tick by tick."""
    model = random_model(hidden=64, horizon=3, lags=(2, 1))
    shared = Engine(model, max_series=1000, max_batch=2000, threads=4)
    alone = Engine(model, max_series=1000, max_batch=2000, threads=1)
    random = np.random.default_rng(1)
    names = Keys.of([b"%d" % i for i in range(1000)])
    for engine in (shared, alone):
        engine.series.lookup(names)
        engine.warm_up()
    for hour in range(20):
        slots = random.permutation(np.concatenate([np.arange(1000), np.arange(0, 1000, 2)]))
        many = ticks(
            slots.tolist(),
            (hour + np.arange(1500) / 1500).tolist(),
            slots + random.normal(size=1500),
        )
        many.flags[random.random(1500) < 0.3] = WARM
        ours = copied(shared.step(many, 0))
        theirs = [copied(alone.step(rows_of(many, i, i + 1), 0)) for i in range(1500)]
        for mine, single in zip(ours, zip(*theirs, strict=True), strict=True):
            assert mine.tobytes() == np.concatenate(single).tobytes()
    assert everything(shared) == everything(alone)


def test_a_series_does_not_depend_on_the_others() -> None:
    model, n = random_model(**RICH), 60
    values = np.random.default_rng(1).normal(size=n)
    alone, crowd = opened(model), opened(model)
    for i in range(n):
        mine = copied(alone.step(ticks([0], [i], values[i : i + 1]), 0))
        slots = np.random.default_rng(i).permutation(10)
        others = np.where(slots == 0, values[i], 1e30 * (slots - 5))
        theirs = crowd.step(ticks(slots.tolist(), [i] * 10, others), 0)
        at = int(np.flatnonzero(theirs.slot == 0)[0])
        np.testing.assert_array_equal(mine.point[0], theirs.point[at])
        np.testing.assert_array_equal(mine.quantiles[0], theirs.quantiles[at])


def test_what_is_compiled_serves_every_model() -> None:
    """Of whatever spec it is and whatever is kept: all have one type of work."""
    telling: dict[str, Any] = {"keep_latest": True, "telling": True, "history": 0}
    engines = [
        opened(random_model()),
        opened(random_model(**RICH)),
        opened(random_model(inputs=2, lags=(1, 3), window=2), coverage=0, learning=False),
        opened(random_model(directions=6), watching=False, max_series=10, **telling),
    ]
    assert len({typeof(engine.work) for engine in engines}) == 1


@pytest.mark.parametrize("calibrated", [True, False])
def test_further_coverages_change_nothing_of_the_main_one(calibrated: bool) -> None:
    model, n = random_model(calibrated=calibrated, **BLENDED), 150
    values = np.random.default_rng(2).normal(5, 1, (n, 2))
    coverages = (0.9, 0.5, 0.95)
    together = opened(model, coverage=coverages, keep_latest=True)
    alone = [opened(model, coverage=coverage, keep_latest=True) for coverage in coverages]
    for i in range(n):
        tick = ticks([i % 2], [i // 2], values[i])
        ours = together.step(tick, 0)
        theirs = [engine.step(tick, 0) for engine in alone]
        np.testing.assert_array_equal(ours.point, theirs[0].point)
        np.testing.assert_array_equal(ours.quantiles[:, :2], theirs[0].quantiles)
        if calibrated and i < 8:  # the others too, as long as they need not give way
            for c, other in enumerate(theirs):
                np.testing.assert_array_equal(ours.quantiles[:, 2 * c : 2 * c + 2], other.quantiles)
        latest = together.work.latest.latest[i % 2]
        np.testing.assert_array_equal(
            latest, np.concatenate([ours.point[0][None], ours.quantiles[0]])
        )
    np.testing.assert_equal(together.scores, alone[0].scores)
    assert together.scores[1][0] > 200
    mine, main = everything(together), everything(alone[0])
    more = {"reach", "width", "half", "pace", "share", "latest"}
    assert {name for name in mine if mine[name] != main[name]} == more


def test_forecasts_come_in_order_of_arrival_with_their_numbers() -> None:
    engine = opened(random_model())
    slots, hours = [2, 1, 2, 2, 1], [1, 1, 2, 3, 2]
    out = engine.step(ticks(slots, hours, np.arange(5.0)), 0)
    np.testing.assert_array_equal(out.slot, slots)
    np.testing.assert_array_equal(out.ts, START + np.array(hours) * HOUR)
    np.testing.assert_array_equal(out.seq, [1, 1, 2, 3, 2])


@pytest.mark.parametrize("calibrated", [True, False])
def test_warm_ticks_move_the_series_and_publish_nothing(calibrated: bool) -> None:
    """They teach the interval only where the model brings no errors to start from."""
    model = random_model(calibrated=calibrated, **RICH)
    shown, warmed = opened(model), opened(model)
    values = np.random.default_rng(0).normal(size=50)
    for i in range(49):
        shown.step(ticks([0], [i], values[i : i + 1]), 0)
        assert len(warmed.step(ticks([0], [i], values[i : i + 1], int(WARM)), 0).slot) == 0
    last = ticks([0], [49], values[49:])
    ours, theirs = shown.step(last, 0), warmed.step(last, 0)
    np.testing.assert_array_equal(ours.point, theirs.point)
    assert (ours.quantiles == theirs.quantiles).all() != calibrated
    assert (ours.seq[0], theirs.seq[0]) == (50, 1)


@pytest.mark.parametrize(
    ("hours", "value", "reason"),
    [
        (5, np.nan, "nonfinite"),
        (5, -np.inf, "nonfinite"),
        (5, 1e38, "out_of_range"),
        (2, 1.0, "late"),
        (3, 1.0, "duplicate"),
        (1.3e6, 1.0, "out_of_range"),
    ],
)
def test_a_tick_that_cannot_be_taken_is_counted_and_changes_nothing(
    hours: float, value: float, reason: str
) -> None:
    engine = opened(random_model())
    engine.step(ticks([0, 0, 1], [1, 3, 1], np.ones(3)), 0)
    before = everything(engine)
    out = engine.step(ticks([0], [hours], np.array([value])), 0)
    assert len(out.slot) == 0
    assert everything(engine) == before
    assert {k: v for k, v in engine.drops.items() if v} == {reason: 1}


@pytest.mark.parametrize(
    "policies", [Policies(max_ahead=3.2e9), Policies(gap="reset", max_gap=1.3e8)]
)
def test_a_series_may_begin_in_1700_and_rest_for_centuries(policies: Policies) -> None:
    """Its times are further apart than 64 bits of nanoseconds say."""
    day = 24 * HOUR
    years = np.array([1700, 1701, 1702, 2115])
    batch = ticks([0] * 4, [0.0] * 4, np.ones(4))._replace(ts=(years - 1970) * 365 * day)
    engine = opened(random_model(step_ns=day), policies=policies)
    assert len(engine.step(batch, (2026 - 1970) * 365 * day).slot) == 4
    assert engine.gaps == 3
    assert engine.changes["gap_reset"] == (policies.gap == "reset")


def test_a_refused_tick_between_good_ones_is_as_if_it_had_not_come() -> None:
    model = random_model(**RICH)
    clean, dirty = opened(model), opened(model)
    clean.step(ticks([0, 1, 0], [1, 1, 2], np.array([1.0, 2, 3])), 0)
    dirty.step(ticks([0, 0, 1, 0, 1], [1, 1, 1, 2, 0], np.array([1.0, 9, 2, 3, 9])), 0)
    assert everything(clean) == everything(dirty)
    assert dirty.drops["duplicate"] == dirty.drops["late"] == 1


def messages(n: int, seed: int, series: int = 4) -> Ticks:
    """Ticks among which series start anew and end, some by a message that has no value."""
    rng = np.random.default_rng(seed)
    slots, values = rng.integers(0, series, n), rng.normal(5, 1, n)
    many = ticks(slots.tolist(), np.arange(n).tolist(), values)
    many.flags[:] = rng.choice([0, WARM, RESET, END, RESET | END], n, p=[0.7, 0.1, 0.1, 0.05, 0.05])
    many.values[(many.flags & ~WARM > 0) & (rng.random(n) < 0.4)] = np.nan
    many.ts[rng.random(n) < 0.1] -= 5 * HOUR  # late, unless the series has started anew
    return many


@pytest.mark.parametrize("kind", [{}, {"cell": "gru"}, {"window": 12}], ids=str)
@given(data=st.data())
@settings(max_examples=15)
def test_a_series_that_starts_anew_is_as_new_however_the_ticks_were_batched(
    kind: dict[str, object], data: st.DataObject
) -> None:
    model, n = random_model(**RICH | kind), 120
    many = messages(n, data.draw(st.integers(0, 100)))
    whole, parts = opened(model), opened(model)
    together = copied(whole.step(many, 0))
    cuts = sorted({0, n, *data.draw(st.lists(st.integers(1, n - 1), max_size=12))})
    apart = [copied(parts.step(rows_of(many, a, b), 0)) for a, b in pairwise(cuts)]
    for k, array in enumerate(together):
        np.testing.assert_array_equal(array, np.concatenate([part[k] for part in apart]))
    assert everything(whole) == everything(parts)
    assert whole.drops == parts.drops
    assert whole.drops["nonfinite"] == 0

    lives = opened(model, max_series=n)  # a slot for each life
    lives.series.lookup(Keys.of([b"life %d" % i for i in range(n - 10)]))
    slot_of, numbers, fresh, row = {}, dict.fromkeys(range(4), 0), iter(range(n)), 0
    for i in range(n):
        series, flags, tick = int(many.slot[i]), int(many.flags[i]), rows_of(many, i, i + 1)
        if flags & RESET or series not in slot_of:
            slot_of[series] = next(fresh)
        alone = Ticks(
            np.array([slot_of[series]], np.int32), tick.ts, tick.values, tick.flags & WARM
        )
        out = lives.step(alone, 0)
        if len(out.slot):
            numbers[series] += 1
            assert (together.slot[row], together.seq[row]) == (series, numbers[series])
            np.testing.assert_array_equal(together.point[row], out.point[0])
            np.testing.assert_array_equal(together.quantiles[row], out.quantiles[0])
            row += 1
        if flags & END:
            del slot_of[series]
            numbers[series] = 0
    assert row == len(together.slot)


def placed(engine: Engine, names: list[bytes], hour: int, flags: int = 0) -> Ticks:
    """A tick of each, placed."""
    n = len(names)
    moments = np.full(n, START + hour * HOUR)
    values = np.array([[sum(name) + np.sin(hour)] for name in names]).reshape(n, 1)
    return engine.place(Arrivals(Keys.of(names), moments, values, np.full(n, flags, np.uint8)))


def test_a_series_that_ended_gives_its_slot_back() -> None:
    engine = Engine(random_model(), max_series=2)
    for hour in range(3):
        engine.step(placed(engine, [b"a", b"b"], hour), 0)
    out = engine.step(placed(engine, [b"a"], 3, int(END)), 0)
    assert out.seq.tolist() == [4]
    assert engine.series.keys(out.slot) == [b"a"]
    out = engine.step(placed(engine, [b"c", b"b"], 4), 0)
    assert (out.slot.tolist(), out.seq.tolist()) == ([0, 1], [1, 4])
    new = Engine(random_model(), max_series=2)
    np.testing.assert_array_equal(new.step(placed(new, [b"c"], 4), 0).point[0], out.point[0])
    assert engine.series.evicted == {"full": 0, "idle": 0, "ended": 1}
    assert engine.drops["series_limit"] == 0


def test_a_message_to_a_series_that_is_not_there_begins_none() -> None:
    engine = Engine(random_model(), max_series=2)
    for flags in (END, RESET, RESET | END):
        arrivals = Arrivals(
            Keys.of([b"a"]), np.zeros(1, np.int64), np.full((1, 1), np.nan), flags.reshape(1)
        )
        assert len(engine.place(arrivals).slot) == 0
    assert engine.series.started == 0
    assert not any(engine.drops.values())
    assert len(engine.step(placed(engine, [b"a"], 1, int(RESET | END)), 0).slot) == 1
    engine.close()
    assert (engine.series.started, engine.series.active) == (1, 0)


def test_what_takes_the_place_of_the_longest_idle_is_as_new() -> None:
    model = random_model(**RICH)
    engine, alone = Engine(model, max_series=2, ordered=True, evict=True), opened(model)
    for hour in range(5):
        engine.step(placed(engine, [b"a", b"b"], hour), 0)
    engine.step(placed(engine, [b"a"], 5), 0)
    for hour in range(6, 12):
        theirs = engine.step(placed(engine, [b"a", b"c"], hour), 0)
        ours = alone.step(placed(alone, [b"c"], hour), 0)
        np.testing.assert_array_equal(ours.point[0], theirs.point[1])
        np.testing.assert_array_equal(ours.quantiles[0], theirs.quantiles[1])
    assert engine.series.keys(engine.series.slots) == [b"a", b"c"]
    assert engine.series.evicted["full"] == 1


def test_when_a_series_was_heard_is_its_arrivals_alone() -> None:
    engine = opened(random_model())
    engine.step(ticks([0, 1], [50, 1], np.ones(2)), 7)
    engine.step(ticks([0, 1], [1, 2], np.array([1.0, np.nan])), 9)
    engine.step(ticks([1], [3], np.ones(1)), 11)
    assert engine.series.state["heard"][:3].tolist() == [7, 11, 0]


def test_gaps_are_counted() -> None:
    engine = opened(random_model())
    engine.step(ticks([0] * 4, [1, 2, 5, 6.2], np.ones(4)), 0)
    assert engine.gaps == 1


def test_all_state_is_declared() -> None:
    engine = opened(random_model(**RICH))
    per = engine.bytes_per_series
    assert per["recurrent"] == 2 * 2 * 32 * 4  # layers, h and c, 20 units in two 16s, float32
    arrays = {name: array[0].nbytes for name, array in engine.series.state.items()}
    assert {name: per[name] for name in arrays} == arrays
    gru = opened(random_model(**RICH | {"cell": "gru"}))
    assert gru.bytes_per_series["recurrent"] == 2 * 32 * 4  # h alone
    window = opened(random_model(**RICH | {"window": 24}))
    assert window.bytes_per_series["recurrent"] == (24 * window.model.spec.width + 1) * 4
    assert per.keys() == arrays.keys() | {"recurrent", "key"}


def test_a_model_whose_weights_were_changed_is_refused() -> None:
    model = random_model()
    model.weights["head.bias"][0] += 0.01
    with pytest.raises(ModelError, match="golden trajectory deviates by"):
        Engine(model)


def test_more_series_than_memory_can_hold_are_refused_at_start() -> None:
    with pytest.raises(ModelError, match=r"max_series = \d+ at \d+ bytes .* at most \d+ fit"):
        Engine(random_model(), max_series=2_000_000_000)


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="unknown backend 'tpu'; there is: cpu, cuda, auto"):
        Engine(random_model(), backend="tpu")


@pytest.mark.parametrize("ts", [np.iinfo(np.int64).min, EARLIEST, MOMENT, np.iinfo(np.int64).max])
def test_times_that_arithmetic_would_lead_beyond_64_bits_are_refused(ts: int) -> None:
    engine = opened(random_model())
    moment = np.array([ts], np.int64)
    out = engine.step(
        Ticks(np.zeros(1, np.int32), moment, np.ones((1, 1)), np.zeros(1, np.uint8)), 0
    )
    assert len(out.slot) == 0
    assert engine.drops["out_of_range"] == 1
    arrivals = Arrivals(Keys.of([b"new"]), moment, np.ones((1, 1)), np.zeros(1, np.uint8))
    assert len(engine.place(arrivals).slot) == 0
    assert engine.drops["out_of_range"] == 2


def test_places_beyond_what_a_double_holds() -> None:
    """A step of a nanosecond and clocks that leap: every place is still its own."""
    engine = opened(random_model(step_ns=1, horizon=48))
    rng = np.random.default_rng(0)
    ts = np.cumsum(rng.integers(1, 1 << 51, 2000))
    for i in range(0, 2000, 100):
        part = ts[i : i + 100]
        flags, slots = np.zeros(100, np.uint8), np.zeros(100, np.int32)
        out = engine.step(Ticks(slots, part, rng.normal(size=(100, 1)), flags), 0)
        assert np.isfinite(out.point).all()


def test_one_absurd_first_value_does_not_blur_what_follows() -> None:
    model = random_model(season=24, base="seasonal", scaling={"memory": 100})
    engine = opened(model)
    y = 100 + np.sin(np.arange(4000))
    y[0] = 1e9
    for i in range(0, 4000, 200):
        hours = list(range(i, i + 200))
        out = engine.step(ticks([0] * 200, hours, y[i : i + 200]), 0)
    assert np.abs(engine.series.state["past"][0, :, 0] - 100).max() <= 1
    assert np.abs(out.point[-1] - 100).max() < 20


def test_more_ticks_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(ValueError, match="257 ticks exceed max_batch = 256"):
        opened(random_model()).step(ticks([0] * 257, list(range(257)), np.ones(257)), 0)


def test_what_a_series_keeps_is_each_of_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of one name would lie in one place, and write over each other."""
    monkeypatch.setattr(watch, "watched_fields", lambda: {"width": (np.float64, ())})
    with pytest.raises(TypeError, match="width"):
        Engine(random_model(), max_series=1)
