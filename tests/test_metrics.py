import itertools
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from streamlstm.metrics import (
    COUNTERS,
    HISTOGRAMS,
    LATENCIES,
    Histogram,
    Metrics,
    MetricsError,
    Server,
)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(Metrics(), "127.0.0.1", 0)
    yield server
    server.close()


def get(server: Server, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(server.url + path, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


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


def test_a_histogram_counts_a_value_at_or_below_its_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value, times in ((0.5, 1), (1.0, 2), (1.5, 3), (2.5, 4)):
        histogram.observe(value, times)
    assert histogram.counts.tolist() == [3, 3, 4]
    assert histogram.sum[0] == 0.5 + 2 + 4.5 + 10


def test_a_scrape_tells_what_was_counted() -> None:
    metrics = Metrics()
    metrics.counters["ticks_received"] = 7
    metrics.model = {"model": "abc"}
    metrics.histograms["batch_size"].observe(3, 2)

    def refresh() -> None:
        metrics.dropped = {"late": 2, "malformed": 0}
        metrics.gauges["active_series"] = 5

    metrics.refresh = refresh
    server = Server(metrics, "127.0.0.1", 0)
    status, text = get(server, "/metrics")
    server.close()
    assert status == 200
    found = samples(text)
    nothing: frozenset[tuple[str, str]] = frozenset()
    assert found["streamlstm_ticks_received_total", nothing] == 7
    assert found["streamlstm_ticks_dropped_total", frozenset({("reason", "late")})] == 2
    assert found["streamlstm_active_series", nothing] == 5
    assert found["streamlstm_model_info", frozenset({("model", "abc")})] == 1
    assert found["streamlstm_batch_size_bucket", frozenset({("le", "2.0")})] == 0
    assert found["streamlstm_batch_size_bucket", frozenset({("le", "4.0")})] == 2
    assert found["streamlstm_batch_size_bucket", frozenset({("le", "+Inf")})] == 2
    assert found["streamlstm_batch_size_count", nothing] == 2
    assert found["streamlstm_batch_size_sum", nothing] == 6
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


def test_healthy_at_once_and_ready_when_told(server: Server) -> None:
    assert get(server, "/-/healthy")[0] == 200
    assert get(server, "/-/ready")[0] == 503
    server.ready = True
    assert get(server, "/-/ready")[0] == 200


@pytest.mark.parametrize("path", ["/", "/metricsx", "/-/", "/../etc/passwd"])
def test_other_paths_do_not_exist(server: Server, path: str) -> None:
    assert get(server, path)[0] == 404


def test_a_port_in_use_is_one_line_with_the_mend(server: Server) -> None:
    port = server.server_address[1]
    with pytest.raises(MetricsError, match=r"in use; set metrics\.host and metrics\.port") as error:
        Server(Metrics(), "127.0.0.1", port)
    assert f"127.0.0.1:{port}" in str(error.value)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_of_another_machine(host: str) -> None:
    with pytest.raises(MetricsError, match=r"set metrics\.host"):
        Server(Metrics(), host, 0)
