import itertools
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from streamlstm.metrics import (
    COUNTERS,
    HISTOGRAMS,
    LATENCIES,
    LAYOUT,
    Metrics,
    stepped,
    took,
)
from streamlstm.web import Server
from tests.daemon import get


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_latency_buckets_begin_at_10_us_and_grow_by_about_1_8() -> None:
    assert LATENCIES[0] == 1e-5
    assert LATENCIES[-1] > 10
    ratios = [b / a for a, b in itertools.pairwise(LATENCIES)]
    assert all(1.7 < ratio < 1.95 for ratio in ratios)


def step(metrics: Metrics, **changed: Any) -> None:
    """One batch of one tick, of a prediction, that took no time, but for what is ``changed``."""
    batch = {
        "ts": np.zeros(1, np.int64), "published": 1, "warm": 0, "now": 0,
        "step": 0.0, "encode": 0.0, "publish": 0.0, "tick_to_publish": 0.0,
    }  # fmt: skip
    stepped(metrics.values, *(batch | changed).values())


def test_a_sum_that_is_not_known_is_left_out() -> None:
    metrics = Metrics()
    metrics.scores = {1: (5.0, 4.0, 2.0, 3.0, 2.5), 24: (5.0, 4.0, 2.0, float("nan"), 2.5)}
    found = {
        (sample.name, sample.labels.get("step"))
        for family in metrics.collect()
        for sample in family.samples
    }
    assert ("streamlstm_last_value_errors_total", "1") in found
    assert ("streamlstm_last_value_errors_total", "24") not in found
    assert ("streamlstm_seasonal_naive_errors_total", "24") in found


TIMES = st.sampled_from((*LATENCIES, *np.nextafter(LATENCIES, 99), 0.0, 1e-9, 20.0, 1e9))


@given(st.lists(st.tuples(st.integers(0, 70_000), st.integers(0, 1000), TIMES, TIMES)))
@settings(max_examples=50)
def test_a_batch_counts_in_the_first_bucket_whose_bound_is_not_below_it(
    batches: list[tuple[int, int, float, float]],
) -> None:
    metrics = Metrics()
    for ticks, published, one, other in batches:
        took(metrics.values, ticks, one)
        step(metrics, ts=np.zeros(ticks, np.int64), published=published,
             step=other, encode=one, publish=other, tick_to_publish=one)  # fmt: skip
    values = metrics.values[0]
    ticks, published, one, other = np.array(batches).reshape(-1, 4).T
    assert values["batches"] == len(batches)
    assert values["ticks_received"] == ticks.sum()
    assert values["predictions_published"] == published.sum()
    once = np.ones_like(ticks)
    for name, observed, times in (
        ("batch_size", ticks, once),
        ("decode_duration_seconds", one, once),
        ("step_duration_seconds", other, once),
        ("encode_duration_seconds", one, once),
        ("publish_duration_seconds", other, once),
        ("tick_to_publish_seconds", one, published),  # of each prediction, not of each batch
    ):
        at_or_below = [times[observed <= bound].sum() for bound in HISTOGRAMS[name][0]]
        counts = values[name]["counts"].cumsum()
        np.testing.assert_array_equal(counts, [*at_or_below, times.sum()])
        assert values[name]["sum"] == pytest.approx((observed * times).sum())


def test_the_lag_is_that_of_the_latest_tick_of_the_latest_batch() -> None:
    metrics = Metrics()
    step(metrics, ts=np.array([3, 9, 5]) * 10**9, now=11 * 10**9)
    assert metrics.values["event_lag_seconds"] == 2
    step(metrics, ts=np.array([4]) * 10**9, now=11 * 10**9)
    assert metrics.values["event_lag_seconds"] == 7
    centuries = np.array([1700 - 1970]) * 365 * 86_400 * 10**9  # more ns before now than fit
    step(metrics, ts=centuries, now=56 * 365 * 86_400 * 10**9)
    assert metrics.values["event_lag_seconds"] == pytest.approx(2**62 / 1e9)


def test_without_a_record_nothing_is_counted() -> None:
    nothing = np.zeros(0, LAYOUT)  # of a warm-up
    took(nothing, 1, 1.0)
    stepped(nothing, np.zeros(0, np.int64), 0, 0, 0, 0.0, 0.0, 0.0, 0.0)


def test_a_scrape_tells_what_was_counted() -> None:
    metrics = Metrics()
    for _ in range(2):
        took(metrics.values, 3, 0.25)
        step(metrics, ts=np.zeros(3, np.int64), published=2)
    metrics.values["checkpoint_failures"] += 1
    metrics.model = {"model": "abc"}

    def refresh() -> None:
        metrics.dropped = {"late": 2, "malformed": 0}
        metrics.values["active_series"] = 5

    metrics.refresh = refresh
    server = Server(metrics, "127.0.0.1", 0)
    status, text = get(server, "/metrics")
    server.close()
    assert status == 200
    found = samples(text)
    nothing: frozenset[tuple[str, str]] = frozenset()
    assert found["streamlstm_ticks_received_total", nothing] == 6
    assert found["streamlstm_checkpoint_failures_total", nothing] == 1
    assert found["streamlstm_ticks_dropped_total", frozenset({("reason", "late")})] == 2
    assert found["streamlstm_active_series", nothing] == 5
    assert found["streamlstm_model_info", frozenset({("model", "abc")})] == 1
    assert found["streamlstm_batch_size_bucket", frozenset({("le", "2.0")})] == 0
    assert found["streamlstm_batch_size_bucket", frozenset({("le", "4.0")})] == 2
    assert found["streamlstm_batch_size_bucket", frozenset({("le", "+Inf")})] == 2
    assert found["streamlstm_batch_size_count", nothing] == 2
    assert found["streamlstm_batch_size_sum", nothing] == 6
    assert found["streamlstm_decode_duration_seconds_sum", nothing] == 0.5
    assert found["streamlstm_tick_to_publish_seconds_count", nothing] == 4
    for name in COUNTERS:
        assert (f"streamlstm_{name}_total", nothing) in found
    for name in HISTOGRAMS:
        assert (f"streamlstm_{name}_count", nothing) in found
    assert found["process_resident_memory_bytes", nothing] > 0


def test_what_is_not_known_yet_is_not_exposed(server: Server) -> None:
    assert "streamlstm_event_lag_seconds" not in get(server, "/metrics")[1]


def test_promtool_finds_nothing(server: Server) -> None:
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed")
    text = get(server, "/metrics")[1]
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
