"""Debian's Prometheus scrapes the real daemon, by the very files that operators are given."""

import json
import math
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from streamlstm.metrics import GAUGES, PREFIX, Metrics
from tests.daemon import Client, Daemon, eventually, start
from tests.models import random_model_file

DEPLOY = Path(__file__).parent.parent / "deploy"
RULES = DEPLOY / "prometheus" / "streamlstm.rules.yml"
CASES = DEPLOY / "prometheus" / "streamlstm.test.yml"
DASHBOARD = DEPLOY / "grafana" / "streamlstm.json"
SERIES, HOUR = 40, 3600


def needs(program: str) -> None:
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")


def promtool(*arguments: str | Path) -> None:
    needs("promtool")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


class Prometheus:
    """A running one."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series that it gives now."""
        asked = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{asked}", timeout=30) as answer:
            found = json.load(answer)["data"]["result"]
        return [(each["metric"], float(each["value"][1])) for each in found]

    def value(self, expression: str) -> float:
        """The only one; NaN: there is none."""
        found = self.query(expression)
        assert len(found) <= 1, expression
        return found[0][1] if found else math.nan

    def has(self, counter: str, rounds: int) -> bool:
        """Whether it has seen so many rounds of ticks."""
        return self.value(counter) >= rounds * SERIES

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=30) as answer:
                return answer.status == 200
        except (urllib.error.URLError, ConnectionError):
            return False


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("daemon")
    kept = {"checkpoint__path": folder / "state", "checkpoint__interval": 1}
    with start(folder, random_model_file(folder, lags=(1, 2, 3)), **kept) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def prometheus(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """By the configuration in deploy/, but of this daemon and sooner."""
    needs("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    assert text.count("127.0.0.1:9464") == 1
    text = text.replace("127.0.0.1:9464", daemon.url.removeprefix("http://"))
    (folder / "prometheus.yml").write_text(text.replace(": 15s", ": 500ms"))
    shutil.copy(RULES, folder)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                "prometheus", f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}",
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        running = Prometheus(f"http://{address}")
        eventually(running.ready)
        eventually(lambda: running.value('up{job="streamlstm"}') == 1)
        yield running
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def watched(daemon: Daemon, prometheus: Prometheus) -> Prometheus:
    """It has seen ticks come, late ones too, and the first checkpoint."""
    random = np.random.default_rng(0)
    eventually(lambda: prometheus.value("streamlstm_ticks_received_total") == 0)
    with Client(daemon) as client:
        for hour in range(12):
            for series in range(SERIES):
                client.tick(f"s{series}", ts=hour * HOUR, value=random.normal())
            client.predictions(SERIES)
            if hour % 3 == 0:  # so that there are rates
                eventually(partial(prometheus.has, "streamlstm_ticks_received_total", hour + 1))
        for series in range(5):
            client.tick(f"s{series}", ts=HOUR, value=0.0)
    dropped = 'streamlstm_ticks_dropped_total{reason="late"}'
    eventually(lambda: prometheus.value(dropped) == 5)
    written = "streamlstm_checkpoint_last_success_timestamp_seconds"
    eventually(lambda: prometheus.value(written) > 0)
    scored = daemon.metric('streamlstm_forecasts_scored_total{step="1"}')
    eventually(lambda: prometheus.value('streamlstm_forecasts_scored_total{step="1"}') == scored)
    return prometheus


def test_rules_hold_for_their_cases_and_each_alert_has_one() -> None:
    promtool("check", "rules", RULES)
    promtool("test", "rules", CASES)
    fired = re.findall(r"alertname: (\w+)\n +exp_alerts:\n +-", CASES.read_text())
    assert {*fired} == {*re.findall(r"- alert: (\w+)", RULES.read_text())}


def test_the_configuration_is_in_order() -> None:
    promtool("check", "config", DEPLOY / "prometheus" / "prometheus.yml")


def test_no_rule_and_no_panel_speaks_of_a_metric_that_is_not_there() -> None:
    exposed = {metric.name for metric in Metrics().collect()}
    ends = ("_total", "_bucket", "_sum", "_count", "_info")
    text = RULES.read_text() + DASHBOARD.read_text()
    names = {*re.findall(rf"(?<!:){PREFIX}\w+(?![\w:])", text)}
    groups = {*re.findall(r"name: (\w+)", RULES.read_text())}
    gauges = {PREFIX + name for name in GAUGES}  # exposed once they are known
    for name in names - groups - gauges:
        bare = next((name.removesuffix(end) for end in ends if name.endswith(end)), name)
        assert bare in exposed, name


def test_what_an_operator_looks_at(daemon: Daemon, watched: Prometheus) -> None:
    for name in ("ticks_received_total", "predictions_published_total", "active_series"):
        assert watched.value(f"streamlstm_{name}") == daemon.metric(f"streamlstm_{name}")
    for name in ("ticks_received", "predictions_published", "ticks_dropped"):
        rate = f"instance:streamlstm_{name}:rate1m"
        eventually(lambda: watched.value(rate) > 0)  # noqa: B023  called at once
    p50, p99 = (
        watched.value(f"instance:streamlstm_tick_to_publish_seconds:{p}_1m") for p in ("p50", "p99")
    )
    assert 0 < p50 <= p99 < 5
    assert watched.value("streamlstm_event_lag_seconds") > 1e8
    scored, covered, errors, naive = (
        daemon.metric(f'streamlstm_{name}_total{{step="1"}}')
        for name in (
            "forecasts_scored",
            "forecasts_covered",
            "forecast_errors",
            "last_value_errors",
        )
    )

    def recorded() -> list[float]:
        return [
            watched.value(f'instance_step:streamlstm_{name}:ratio1h{{step="1"}}')
            for name in ("forecasts_covered", "forecast_errors")
        ]

    expected = pytest.approx([covered / scored, errors / naive], rel=1e-6)
    eventually(lambda: recorded() == expected)


def test_every_query_of_the_dashboard_gives_data(watched: Prometheus) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len(panels) > 20
    for panel in panels:
        for target in panel["targets"]:
            asked = target["expr"].replace("$__rate_interval", "1m")
            asked = asked.replace("$job", "streamlstm").replace("$instance", ".*")
            assert "$" not in asked
            found = watched.query(asked)
            assert found, f"{panel['title']}: {asked}"
            assert all(math.isfinite(value) for _, value in found), (panel["title"], asked, found)
            used = {*re.findall(r"{{(\w+)}}", target["legendFormat"])}
            assert used <= found[0][0].keys(), (panel["title"], used)
    for variable in dashboard["templating"]["list"][1:]:
        metric, label = re.fullmatch(
            r"label_values\((.+), (\w+)\)", variable["query"]["query"]
        ).groups()  # type: ignore[union-attr]
        assert watched.query(metric.replace("$job", "streamlstm"))[0][0][label]


def test_it_hears_that_the_daemon_is_gone(daemon: Daemon, watched: Prometheus) -> None:
    """The last test: there is no daemon any more."""
    firing = 'ALERTS{alertname="StreamlstmDown"}'
    assert watched.query(firing) == []
    assert daemon.stop() == 0
    eventually(lambda: watched.query(firing) != [])
