"""Ticks that are not as they should be: against a plain account of what is done with them.

The oracle asks an engine of no policies to step what it has decided to be stepped, so that only the
decisions are compared, but down to the last bit of the state.
"""

import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamlstm import features
from streamlstm.appending import append
from streamlstm.engine import Engine, events
from streamlstm.golden import make_golden
from streamlstm.journal import Journal
from streamlstm.kernels import cpu
from streamlstm.model import Model
from streamlstm.policies import AS_THEY_COME, DROPS, IN_A_ROW, Policies
from streamlstm.replay import replay
from streamlstm.rounds import forget
from streamlstm.segments import JournalError
from streamlstm.ticks import ARRIVAL, END, RESET, WARM, Arrivals, Forecasts, Keys, Ticks, rows_of
from tests.daemon import Client, eventually, start
from tests.models import HOUR, random_model, random_model_file
from tests.test_engine import START, copied, everything, ticks

SECOND = 10**9
NOW = START + 10**6 * HOUR
PLAIN = random_model(inputs=2, horizon=4, lags=(1, 3))
LENIENT = Policies(
    late="accept",
    duplicate="accept",
    max_gap=3 * 3600.0,
    gap="missing",
    max_missing=4,
    not_a_number="missing",
    outlier_sigma=3.0,
    outlier="clip",
)
EACH = {
    "late": Policies(late="accept"),
    "duplicate": Policies(duplicate="accept"),
    "reset": Policies(max_gap=3 * 3600.0, gap="reset"),
    "missing": Policies(max_gap=3600.0, gap="missing", max_missing=4),
    "not_a_number": Policies(not_a_number="missing"),
    "counted": Policies(outlier_sigma=3.0),
    "clip": Policies(outlier_sigma=3.0, outlier="clip"),
    "drop": Policies(outlier_sigma=3.0, outlier="drop"),
    "future": Policies(max_ahead=7200.0),
    "lenient": LENIENT,
    "lenient_reset": LENIENT._replace(gap="reset", outlier="drop", max_ahead=3600.0),
}


@dataclass
class Account:
    """What is known of a series, in plain Python, and an engine of its own for its state."""

    model: Model
    policies: Policies
    engine: Engine = field(init=False)
    last: int | None = None
    in_a_row: int = 0
    expected: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.engine = Engine(self.model, max_series=1, max_batch=1)
        self.engine.series.lookup(Keys.of([b"one"]))
        self.clock, self.in_a_row = START, 0

    @property
    def seen(self) -> int:
        return int(self.engine.series.state["seen"][0])

    def step(self, steps: int, values: list[float], missing: list[bool]) -> np.ndarray:
        """Of this many grid steps; whatever the calendar says, which this model does not ask."""
        known = [
            e if m else v for v, m, e in zip(values, missing, self.expected or values, strict=True)
        ]
        self.clock += steps * HOUR
        one = Ticks(
            np.zeros(1, np.int32), np.array([self.clock]), np.array([known]), np.zeros(1, np.uint8)
        )
        out = self.engine.step(one, 0)
        assert len(out.slot) == 1
        self.expected = [*out.point[0, 0], *known[out.point.shape[2] :]]
        return out.point[0].copy()

    def tick(self, ts: int, values: list[float], now: int) -> np.ndarray | None:
        """The forecast; None where the tick is dropped, for the reason that is counted."""
        p, last = self.policies, self.last
        bad = [not np.isfinite(value) for value in values]
        if any(bad) and p.not_a_number == "drop":
            return self.drop("nonfinite")
        if any(abs(v) > 1e37 for v, b in zip(values, bad, strict=True) if not b):
            return self.drop("out_of_range")
        if p.max_ahead and ts - now > p.max_ahead * SECOND:
            return self.drop("future")
        changes, steps, fill = Counter[str](), 1, 0
        if last is not None and ts <= last:
            name = "duplicate" if ts == last else "late"
            if getattr(p, name) == "drop":
                return self.drop(name)
            changes[name] += 1
        elif last is not None:
            steps = max(1, round((ts - last) / HOUR))
            if p.max_gap and ts - last > p.max_gap * SECOND:
                if p.gap == "reset":
                    changes["gap_reset"] += 1
                elif p.gap == "missing":
                    fill = min(steps - 1, p.max_missing)
                    changes["gap_missing"] += fill
        anew = last is None or changes["gap_reset"] > 0
        if any(bad):
            if anew:
                return self.drop("nonfinite")
            changes["not_a_number"] += 1
        state = self.engine.series.state
        if p.outlier_sigma and not anew and self.seen >= features.ENOUGH:
            limits = []
            for k in range(len(values)):
                mean, n = state["loc"][0, k], min(self.seen, self.model.spec.scaling.memory)
                prior, variance = (
                    self.model.spec.scaling.prior_ratio * mean,
                    state["variance"][0, k],
                )
                expected = prior * prior
                if self.seen > features.ENOUGH:
                    root = 1.0 + (self.seen - features.ENOUGH) / (16.0 * features.ENOUGH)
                    for _ in range(3):
                        root *= root
                    expected = min(expected, 25.0 * variance + expected / (root * root))
                scale = np.sqrt((n * variance + 10 * expected) / (n + 10))
                limits.append((mean - p.outlier_sigma * scale, mean + p.outlier_sigma * scale))
            far = [
                not b and not low <= v <= high
                for v, b, (low, high) in zip(values, bad, limits, strict=True)
            ]
            if any(far) and self.in_a_row >= IN_A_ROW:
                changes["level_shift"] += 1
            elif any(far):
                self.in_a_row += 1
                if p.outlier == "drop":
                    return self.drop("outlier")
                if p.outlier == "clip":
                    values = [
                        v if b else float(np.clip(v, low, high))
                        for v, b, (low, high) in zip(values, bad, limits, strict=True)
                    ]
                changes["outlier_clipped" if p.outlier == "clip" else "outlier_accepted"] += 1
            elif not any(bad):
                self.in_a_row = 0
        self.counts += changes
        if changes["gap_reset"]:
            self.begin()
            steps = 1
        self.last = ts if last is None else max(ts, last)
        for k in range(fill):
            self.step(steps - fill if k == 0 else 1, values, [True] * len(values))
        return self.step(1 if fill else steps, values, bad)

    def drop(self, reason: str) -> None:
        self.counts[f"dropped {reason}"] += 1


VALUES = st.one_of(
    st.floats(9, 11), st.floats(9, 11), st.sampled_from([np.nan, np.inf, 30.0, -1e6, 1e38, 10.5])
)
TICK = st.tuples(
    st.integers(0, 2),
    st.sampled_from([HOUR] * 6 + [0, -HOUR, HOUR + 7, 2 * HOUR, 4 * HOUR, 9 * HOUR]),
    VALUES,
    VALUES,
)


def stream(drawn: list[tuple[int, int, float, float]], seed: int) -> Ticks:
    """Ticks of three series that have had 40 sound ones each, when those drawn come."""
    rng, at = np.random.default_rng(seed), [START] * 3
    rows = []
    for step in range(40):
        for slot in range(3):
            at[slot] = START + step * HOUR
            rows.append((slot, at[slot], *rng.normal(10, 0.3, 2)))
    for slot, ahead, one, other in drawn:
        rows.append((slot, at[slot] + ahead, one, other))
        at[slot] = max(at[slot], at[slot] + ahead)
    slots, ts, *values = zip(*rows, strict=True)
    return Ticks(
        np.array(slots, np.int32),
        np.array(ts),
        np.array(values).T.copy(),
        np.zeros(len(rows), np.uint8),
    )


def engine_of(policies: Policies, model: Model = PLAIN, **options: Any) -> Engine:
    engine = Engine(model, policies=policies, **{"max_series": 10, "max_batch": 256} | options)
    engine.series.lookup(Keys.of([b"%d" % k for k in range(3)]))
    return engine


@pytest.mark.parametrize("name", EACH)
@given(drawn=st.lists(TICK, min_size=1, max_size=40), seed=st.integers(0, 9))
@settings(max_examples=25)
def test_each_tick_is_treated_as_its_policy_says(
    name: str, drawn: list[tuple[int, int, float, float]], seed: int
) -> None:
    policies, many = EACH[name], stream(drawn, seed)
    now = START + 45 * HOUR
    engine = engine_of(policies)
    out = engine.step(many, now)
    accounts = [Account(PLAIN, policies) for _ in range(3)]
    wanted = []
    for slot, ts, values in zip(
        many.slot.tolist(), many.ts.tolist(), many.values.tolist(), strict=True
    ):
        point = accounts[slot].tick(ts, values, now)
        if point is not None:
            wanted.append((slot, ts, point))
    assert out.slot.tolist() == [slot for slot, _, _ in wanted]
    assert out.ts.tolist() == [ts for _, ts, _ in wanted]
    np.testing.assert_array_equal(out.point, [point for _, _, point in wanted])
    counts = sum((account.counts for account in accounts), Counter[str]())
    dropped = {f"dropped {reason}": n for reason, n in engine.drops.items()}
    assert Counter(dropped | engine.changes) == counts
    for slot, account in enumerate(accounts):
        for kept in ("seen", "place", "loc", "variance", "past"):
            ours, theirs = (e.series.state[kept] for e in (engine, account.engine))
            np.testing.assert_array_equal(ours[slot], theirs[0], err_msg=kept)
        np.testing.assert_array_equal(
            cpu.to_host(engine.buffers, np.array([slot], np.int32)),
            cpu.to_host(account.engine.buffers, np.array([0], np.int32)),
        )


def parts_of(engine: Engine, many: Ticks, cuts: list[int], now: int = NOW) -> Forecasts:
    out = [copied(engine.step(rows_of(many, a, b), now)) for a, b in pairwise(cuts)]
    return Forecasts(*(np.concatenate(arrays) for arrays in zip(*out, strict=True)))


def same(one: Forecasts, other: Forecasts) -> None:
    for ours, theirs in zip(one, other, strict=True):
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("name", EACH)
@given(
    drawn=st.lists(TICK, min_size=1, max_size=60),
    cuts=st.lists(st.integers(1, 120), max_size=9),
    warm=st.integers(0, 3),
)
@settings(max_examples=15)
def test_the_same_bits_however_the_ticks_were_batched(
    name: str, drawn: list[tuple[int, int, float, float]], cuts: list[int], warm: int
) -> None:
    many = stream(drawn, 0)
    n = len(many.ts)
    many.flags[np.random.default_rng(warm).random(n) < 0.2 * warm] = WARM
    whole, parts = engine_of(EACH[name]), engine_of(EACH[name])
    now = START + 45 * HOUR
    together = copied(whole.step(many, now))
    same(together, parts_of(parts, many, sorted({0, n, *(cut for cut in cuts if cut < n)}), now))
    assert everything(whole) == everything(parts)
    assert (whole.drops, whole.changes) == (parts.drops, parts.changes)


def test_a_step_by_kernels_called_from_python_is_the_same() -> None:
    """As it is where a device has the state."""
    drawn = [
        (k % 3, 5 * HOUR if k % 7 == 0 else HOUR, [10.0, np.nan][k % 2], 99.0) for k in range(99)
    ]
    compiled, called = engine_of(LENIENT), engine_of(LENIENT)
    called._compute = 0
    many = stream(drawn, 1)
    same(copied(compiled.step(many, NOW)), copied(called.step(many, NOW)))
    assert everything(compiled) == everything(called)
    assert compiled.taken == called.taken


# what is not finite

SHARP = random_model(scaling={"kind": "fixed", "loc": (0.0,), "scale": (1e-3,)})
"""Of an input near 1e37 it makes infinity."""
HUGE = 3e36


def growing(layers: int = 1) -> Model:
    """A model whose state grows tenfold with each step, and at last is infinite."""
    model = random_model(cell="rnn", activation="relu", layers=layers, head_activation="sigmoid")
    for name, weight in model.weights.items():
        if "weight_hh" in name:
            weight[:] = 10 * np.eye(len(weight))
    return Model(model.spec, model.weights, make_golden(model.spec, model.weights, 0))


def sharp_ticks(n: int, seed: int = 0) -> Ticks:
    rng = np.random.default_rng(seed)
    values = rng.normal(10, 1, n)
    values[rng.random(n) < 0.1] = HUGE
    slots = rng.integers(0, 3, n)
    return ticks(slots.tolist(), np.arange(n).tolist(), values)


def test_a_series_that_is_not_finite_begins_anew_and_is_counted_alone() -> None:
    broken, others = engine_of(AS_THEY_COME, SHARP), engine_of(AS_THEY_COME, SHARP)
    for hour in range(3):
        both = ticks([0, 1], [hour, hour], np.array([HUGE if hour == 1 else 1.0, 2.0]))
        out = copied(broken.step(both, 0))
        assert out.slot.tolist() == ([1] if hour == 1 else [0, 1])
        alone = copied(others.step(rows_of(both, 1, 2), 0))
        assert out.point[-1].tobytes() == alone.point[0].tobytes()
    assert (broken.quarantined, others.quarantined) == (1, 0)
    assert broken.taken == 2
    assert out.seq.tolist() == [2, 3]  # none was given to what was not published
    fresh = engine_of(AS_THEY_COME, SHARP)
    new = fresh.step(ticks([0], [2], np.ones(1)), 0)
    np.testing.assert_array_equal(out.point[0], new.point[0])
    late = broken.step(ticks([0], [1], np.ones(1)), 0)
    assert len(late.slot) == 0, "its time does not go back"


@pytest.mark.parametrize("model", [SHARP, growing(), growing(2)], ids=["forecast", "h", "two"])
@pytest.mark.parametrize("policies", [AS_THEY_COME, LENIENT], ids=["plain", "lenient"])
def test_a_new_beginning_is_the_same_however_the_ticks_were_batched(
    model: Model, policies: Policies
) -> None:
    many = sharp_ticks(240)
    many.flags[::5] = WARM
    singly = engine_of(policies, model)
    one = parts_of(singly, many, list(range(241)), 0)
    assert singly.quarantined > 3
    for cuts in ([0, 240], [0, 60, 61, 240], [0, 20, 100, 240]):
        engine = engine_of(policies, model)
        same(parts_of(engine, many, cuts, 0), one)
        assert everything(engine) == everything(singly)
        assert engine.quarantined == singly.quarantined


def test_a_state_that_a_device_has_is_looked_at_too(monkeypatch: pytest.MonkeyPatch) -> None:
    many, model = sharp_ticks(240), growing(2)
    here = engine_of(AS_THEY_COME, model)
    with monkeypatch.context() as patch:
        patch.setattr(cpu, "host_records", lambda buffers: buffers.state[:0])
        patch.setattr(cpu, "compiled_step", lambda buffers: None)
        there = engine_of(AS_THEY_COME, model)
    same(copied(here.step(many, 0)), copied(there.step(many, 0)))
    assert everything(here) == everything(there)
    assert here.quarantined == there.quarantined > 3


# series that are reset or end


@pytest.mark.parametrize("policies", [AS_THEY_COME, LENIENT, EACH["reset"]], ids=str)
@pytest.mark.parametrize("model", [PLAIN, random_model(inputs=2)], ids=["lags", "plain"])
def test_resets_and_ends_are_the_same_however_the_ticks_were_batched(
    policies: Policies, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where a device has the state; a message without values is no missing value."""
    rng = np.random.default_rng(3)
    many = stream([(int(k), 5 * HOUR, 10.0, np.nan) for k in rng.integers(0, 3, 60)], 3)
    n = len(many.ts)
    many.flags[:] = rng.choice(
        [0, WARM, RESET, END, RESET | END], n, p=[0.8, 0.05, 0.05, 0.05, 0.05]
    )
    messages = (many.flags > WARM) & (rng.random(n) < 0.5)
    many.values[messages] = np.nan
    singly, whole = engine_of(policies, model), engine_of(policies, model)
    one = parts_of(singly, many, list(range(n + 1)))
    same(copied(whole.step(many, NOW)), one)
    assert everything(whole) == everything(singly)
    assert (whole.drops, whole.changes) == (singly.drops, singly.changes)
    forecast = set(zip(one.slot.tolist(), one.ts.tolist(), strict=True))
    asked = zip(many.slot[messages].tolist(), many.ts[messages].tolist(), strict=True)
    assert not forecast & set(asked)
    with monkeypatch.context() as patch:
        patch.setattr(cpu, "host_records", lambda buffers: buffers.state[:0])
        patch.setattr(cpu, "compiled_step", lambda buffers: None)
        there = engine_of(policies, model)
    same(parts_of(there, many, [0, 70, n]), one)
    assert everything(there) == everything(singly)


# the rest


def test_what_is_forgotten_is_as_if_it_had_never_been() -> None:
    engine, fresh = engine_of(LENIENT), engine_of(LENIENT)
    engine.step(stream([], 0), NOW)
    number = engine.series.state["seq"].copy()
    for slot in range(3):
        forget(engine.work, slot)
    np.testing.assert_array_equal(engine.series.state["seq"], number)
    engine.series.state["seq"][:] = 0
    first = rows_of(stream([], 1), 0, 3)
    same(copied(engine.step(first, NOW)), copied(fresh.step(first, NOW)))
    assert everything(engine) == everything(fresh)


def test_a_new_level_is_no_outlier_for_ever() -> None:
    engine = engine_of(Policies(outlier_sigma=4.0, outlier="drop"), random_model())
    y = np.random.default_rng(0).normal(100, 1, 200)
    y[100:] += 900
    slots = np.arange(200) * 0
    out = engine.step(ticks(slots.tolist(), np.arange(200).tolist(), y), 0)
    assert engine.drops["outlier"] == IN_A_ROW
    assert len(out.slot) == 200 - IN_A_ROW
    assert engine.changes["level_shift"] > 0
    assert engine.series.state["outliers"][0] == 0, "by now it is the usual one"


def test_a_missing_value_teaches_the_interval_nothing() -> None:
    engine = engine_of(Policies(not_a_number="missing"), random_model(horizon=1))
    rng = np.random.default_rng(0)
    for hour in range(50):
        engine.step(ticks([0], [hour], rng.normal(size=1)), 0)
    width = engine.series.state["width"][0].copy()
    for hour in range(50, 60):
        out = engine.step(ticks([0], [hour], np.array([np.nan])), 0)
        assert np.isfinite(out.quantiles).all()
    np.testing.assert_array_equal(engine.series.state["width"][0], width)


def test_one_tick_far_ahead_does_not_bar_its_series() -> None:
    careful, careless = engine_of(Policies(max_ahead=60.0)), engine_of(AS_THEY_COME)
    for engine in (careful, careless):
        for ahead in (0, 10**5 * HOUR, HOUR):
            one = ticks([0], [ahead / HOUR], np.ones(2))
            engine.step(one, START + min(ahead, HOUR))
    assert careful.drops["future"] == 1
    assert careful.taken == 1
    assert careless.taken == 0


def test_a_replay_of_the_journal_judges_as_the_day_did(tmp_path: Path) -> None:
    policies = LENIENT._replace(max_ahead=1800.0)
    live, later = engine_of(policies), Engine(PLAIN, policies=policies, max_series=10)
    drawn = [(k % 3, [6, 1, 1, 1][k % 4] * HOUR, [9.0, np.nan, 50][k % 3], 9.0) for k in range(80)]
    many = stream(drawn, 2)
    journal = Journal(
        tmp_path, inputs=2, max_batch=256, max_key=64, model=PLAIN.id, durability="strict", first=1
    )
    for begin in range(0, len(many.ts), 30):
        part = rows_of(many, begin, begin + 30)
        now = int(part.ts.max()) - HOUR  # so that some of them are ahead
        assert append(journal.log, part, events(live.work), now) == 0
        live.step(part, now)
    journal.close()
    assert replay(later, tmp_path, 0).entries == -(-len(many.ts) // 30)
    assert live.drops["future"] > 0
    assert everything(live) == everything(later)


def test_a_restart_with_other_policies_replays_by_those_of_the_day(tmp_path: Path) -> None:
    """Each stretch by its own, and what comes then by the new ones."""
    strict, first = AS_THEY_COME, 1
    other = Policies(late="accept", outlier_sigma=3.0, outlier="drop")
    live, later = engine_of(strict), Engine(PLAIN, policies=LENIENT, max_series=10)
    values = [9.0, 8.0, np.nan, 99.0, 9.0]
    drawn = [(k % 3, [6, 1, -3, 1][k % 4] * HOUR, values[k % 5], 10.0) for k in range(80)]
    many = rows_of(stream(drawn, 2), 20, 200)
    for begin, policies in ((0, strict), (120, LENIENT), (140, other), (160, strict)):
        live.judge_by(policies)
        journal = Journal(
            tmp_path, inputs=2, max_batch=256, max_key=64, model=PLAIN.id, durability="strict",
            policies=policies.to_text(), first=first,
        )  # fmt: skip
        part = rows_of(many, begin, max(begin + 20, 120))
        assert append(journal.log, part, events(live.work), NOW) == 0
        live.step(part, NOW)
        journal.close()
        first += 1
    assert replay(later, tmp_path, 0).entries == 4
    assert everything(later) == everything(live)
    assert later.policies == LENIENT
    live.judge_by(LENIENT)
    for engine in (live, later):
        engine.step(rows_of(many, 100, 120), NOW)
    assert everything(later) == everything(live)
    assert later.changes["late"] > 5
    for policies in (strict, LENIENT, other):
        alone = engine_of(policies)
        alone.step(many, NOW)
        alone.judge_by(LENIENT)
        alone.step(rows_of(many, 100, 120), NOW)
        assert everything(alone) != everything(live)


def test_policies_of_another_version_are_refused(tmp_path: Path) -> None:
    later = engine_of(AS_THEY_COME)
    journal = Journal(
        tmp_path, inputs=2, max_batch=256, max_key=64, model=PLAIN.id, durability="strict",
        policies='{"late":"drop","mood":"bad"}', first=1,
    )  # fmt: skip
    assert append(journal.log, ticks([0], [0], np.ones(2)), events(later.work), NOW) == 0
    journal.close()
    with pytest.raises(JournalError, match="other policies; move it away"):
        replay(later, tmp_path, 0)


def test_a_new_series_does_not_begin_with_what_is_no_number() -> None:
    for policies in (AS_THEY_COME, LENIENT):
        engine = engine_of(policies)
        nan = np.full((1, 2), np.nan)
        arrivals = Arrivals(Keys.of([b"0"]), np.array([START]), nan, np.zeros(1, np.uint8))
        engine.step(engine.place(arrivals), NOW)
        assert engine.drops["nonfinite"] == 1
        assert engine.taken == 0


def test_a_name_with_no_tick_to_begin_with_takes_no_slot() -> None:
    engine = Engine(PLAIN, policies=LENIENT._replace(max_ahead=60.0), max_series=10)
    names, values = Keys.of([b"no number", b"ahead", b"sound"]), np.ones((3, 2))
    values[0, 1] = np.nan
    ts, flags = np.array([0, 61 * SECOND + 1, 60 * SECOND]), np.zeros(3, np.uint8)
    out = engine.step(engine.place(Arrivals(names, ts, values, flags, SECOND)), SECOND)
    assert engine.series.keys(out.slot) == [b"sound"]
    assert (engine.series.active, engine.series.started) == (1, 1)
    assert (engine.drops["nonfinite"], engine.drops["future"]) == (1, 1)


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("most", [1, 3, 100])
def test_what_a_series_begins_with_does_not_hang_on_the_batch(name: str, most: int) -> None:
    policies, chance = EACH[name]._replace(max_ahead=3600.0), np.random.default_rng(3)
    keys = Keys.of([b"%d" % k for k in chance.integers(0, 12, 100)])
    values = chance.choice([1.0, 2.0, np.nan], (100, 2), p=[0.4, 0.3, 0.3])
    ts = START + np.arange(100) * HOUR // 10 + chance.choice([0, 3 * HOUR], 100)
    flags = chance.choice([0, RESET], 100, p=[0.8, 0.2]).astype(np.uint8)
    found = []
    for size in (1, most):
        engine = Engine(PLAIN, policies=policies, max_series=10)
        for begin in range(0, 100, size):
            part = slice(begin, begin + size)
            few = Keys(keys.data, keys.begin[part], keys.end[part])
            arrivals = Arrivals(few, ts[part], values[part], flags[part], START + HOUR)
            engine.step(engine.place(arrivals), START + HOUR)
        assert engine.drops["nonfinite"] > 0
        assert engine.drops["future"] > 0
        found.append((engine.series.keys(engine.series.slots), everything(engine), engine.drops))
    assert found[0] == found[1]


def test_a_clock_that_is_set_back_drops_nothing_that_is_dated_at_its_arrival(
    tmp_path: Path,
) -> None:
    """Neither as late, nor as ahead of it; nor after a restart."""
    model = random_model_file(tmp_path)
    back = """
import time
real, calls = time.time_ns, [0]
def set_back():
    calls[0] += 1
    return real() - calls[0] * 3600 * 10**9
time.time_ns = set_back
"""
    options: dict[str, Any] = {"ticks__max_ahead": 1, "checkpoint__path": tmp_path / "state"}
    options |= {"output__batch": True}  # two formats: the way from Python
    for first, before in ((0, ""), (20, back)):
        with start(tmp_path, model, before=before, **options) as daemon, Client(daemon) as client:
            for number in range(first, first + 20):
                client.tick("a", value=1.0)
                assert client.predictions(1)[0]["seq"] == number + 1
            assert daemon.metric('streamlstm_ticks_dropped_total{reason="late"}') == 0
            assert daemon.metric('streamlstm_ticks_dropped_total{reason="future"}') == 0
            assert daemon.stop() == 0


def test_what_is_dated_at_its_arrival_is_never_late_and_takes_the_time_of_its_series_back() -> None:
    def step(*at: int, flags: int = int(ARRIVAL), now: int = 0) -> list[int]:
        n = len(at)
        one = Ticks(np.zeros(n, np.int32), np.array(at), np.ones((n, 2)), np.full(n, flags, "u1"))
        return [int(ts) for ts in engine.step(one, now).ts]

    engine = Engine(PLAIN, policies=AS_THEY_COME._replace(max_ahead=1.0), max_series=1)
    engine.series.lookup(Keys.of([b"one"]))
    ahead = START + 30 * HOUR
    assert step(START, now=START) == [START]
    assert step(ahead, now=ahead) == [ahead]
    assert step(START + HOUR, flags=0, now=ahead) == []  # has a time of its own
    assert step(START + HOUR, START + HOUR, now=START) == [START + HOUR] * 2
    assert step(START + 2 * HOUR, flags=0, now=START + 2 * HOUR) == [START + 2 * HOUR]
    assert (engine.drops["late"], engine.drops["future"]) == (1, 0)
    assert (engine.changes["late"], engine.changes["duplicate"]) == (1, 1)
    assert engine.gaps == 1


def test_a_clock_that_was_a_day_ahead_leaves_no_trace_in_what_comes_after(tmp_path: Path) -> None:
    """Be it the same process or, after a crash, the next one."""
    model, ahead = random_model_file(tmp_path), tmp_path / "ahead"
    clock = f"""
import pathlib, time
real = time.time_ns
time.time_ns = lambda: real() + 86_400 * 10**9 * pathlib.Path({str(ahead)!r}).exists()
"""
    options: dict[str, Any] = {"checkpoint__path": tmp_path / "state", "before": clock}
    options |= {"output__batch": True, "journal__durability": "strict"}  # the way from Python
    for first in (0, 3):
        with start(tmp_path, model, **options) as daemon, Client(daemon) as client:
            for number, days in enumerate((0, 1, 0), first + 1):
                ahead.touch() if days else ahead.unlink(missing_ok=True)
                client.tick("a", value=1.0)
                (said,) = client.predictions(1)
                assert said["seq"] == number
                assert abs(said["ts"] - time.time() - 86_400 * days) < 60
                if days:
                    eventually(lambda: "clock set seconds=86" in daemon.log)
            assert daemon.metric('streamlstm_ticks_dropped_total{reason="late"}') == 0
            eventually(lambda: "clock set seconds=-86" in daemon.log)
            assert daemon.log.count("clock set seconds=86") == 1
            daemon.process.kill()
            daemon.wait()


def test_of_each_reason_it_is_known_which_series_met_it_last() -> None:
    def names() -> dict[str, bytes]:
        found = zip(DROPS, engine.work.dropped, strict=True)
        return {reason: name.tobytes().rstrip(b"\0") for reason, name in found if name.any()}

    def take(key: str, ts: int, value: float = 1.0) -> None:
        one = Keys.of([key.encode()])
        values, flags = np.full((1, 2), value), np.zeros(1, np.uint8)
        engine.step(engine.place(Arrivals(one, np.array([ts]), values, flags, NOW)), NOW)

    engine = Engine(PLAIN, max_series=2, max_key=8)
    take("öl", START)
    take("longest", START)
    assert names() == {}
    take("longest", START - 1)
    take("one more", START)
    take("beside", START, np.nan)
    assert names() == {"late": b"longest", "series_limit": b"one more", "nonfinite": b"beside"}
    take("öl", START - 1)
    take("öl", START)
    assert names()["late"] == names()["duplicate"] == "öl".encode()


def test_the_daemon_counts_what_its_policies_do(tmp_path: Path) -> None:
    model = random_model_file(tmp_path)
    options = {"ticks__late": "accept", "ticks__max_ahead": 60}
    with start(tmp_path, model, **options) as daemon, Client(daemon) as client:
        for ts in (7200, 3600, 4_000_000_000, 10_800):
            client.tick("a", ts=ts, value=1.0)
        assert len(client.predictions(3)) == 3
        eventually(lambda: daemon.metric('streamlstm_ticks_dropped_total{reason="future"}') == 1)
        assert daemon.metric('streamlstm_ticks_adjusted_total{policy="late"}') == 1
        assert daemon.metric("streamlstm_series_quarantined_total") == 0
        eventually(lambda: 'tick dropped reason="future" series="a"\n' in daemon.log)
