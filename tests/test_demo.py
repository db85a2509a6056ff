"""The demo keeps its promises on weeks that the model has never seen; counted in its own JSON."""

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from streamlstm.datasets.frames import read_table
from streamlstm.demo import fitted
from streamlstm.vitals import quantile
from tests.test_cli import series_file, streamlstm


@pytest.fixture(scope="module")
def report() -> dict:
    return json.loads(streamlstm("demo", "--json", alone=True).stdout)


def test_it_beats_both_naive_forecasts_near_and_far(report: dict) -> None:
    for k in ("1", "24", "48"):
        for measure in ("mae", "mase"):
            row = report[measure][k]
            assert row["model"] < row["seasonal_naive"]
            assert row["model"] < row["last_value"]


def test_its_intervals_hold_their_promise(report: dict) -> None:
    assert 0.87 <= report["coverage"] <= 0.93
    assert len(report["coverage_by_step"]) == 48
    assert all(0.83 <= share <= 0.97 for share in report["coverage_by_step"].values())
    assert report["winkler"]["model"] < report["winkler"]["seasonal_naive"]


def test_every_tick_is_accounted_for(report: dict) -> None:
    assert report["ticks"] == 4032
    assert report["predictions"] == 807  # the last fifth, and the tick before it
    assert report["ticks_per_second"] > 1000
    assert 0 < report["latency_seconds"]["p50"] <= report["latency_seconds"]["p99"] < 1
    assert 0 < report["fit_seconds"] < report["total_seconds"] < 110


def test_a_file_of_ones_own_and_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    data = series_file(tmp_path, 400)
    done = streamlstm(
        "demo", "--data", data, "--season", "24", "--json", "--plot", picture, alone=True
    )
    report = json.loads(done.stdout)
    assert report["ticks"] == 800
    assert report["predictions"] == 2 * 81
    assert set(report["mae"]) == {"1", "20", "40"}
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_keep_running_leaves_the_daemon_up_until_interrupted(tmp_path: Path) -> None:
    data = series_file(tmp_path, 200)
    process = subprocess.Popen(
        [sys.executable, "-m", "streamlstm", "demo", "--data", data, "--keep-running"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = next(line for line in process.stdout if "goes on until Ctrl-C" in line)
    endpoint = next(word for word in said.split() if word.startswith("tcp://")).rstrip(",")
    seen = streamlstm("watch", endpoint, "--json", "--count", "2", alone=True).stdout.splitlines()
    first, second = map(json.loads, seen)
    assert second["seq"] == first["seq"] + 1
    process.send_signal(2)
    assert process.wait(60) == 0
    process.stdout.close()


def test_a_table_too_short_is_told(tmp_path: Path) -> None:
    data = tmp_path / "short.csv"
    data.write_text("ds,y\n2024-01-01,1\n2024-01-02,2\n")
    done = streamlstm("demo", "--data", data, code=1, alone=True)
    assert "long enough" in done.stderr


def test_quantiles_of_a_histogram_are_those_of_prometheus() -> None:
    buckets = [(0.1, 50.0), (0.2, 90.0), (0.5, 100.0), (float("inf"), 100.0)]
    assert quantile(0.5, buckets) == pytest.approx(0.1)
    assert quantile(0.7, buckets) == pytest.approx(0.15)
    assert quantile(0.95, buckets) == pytest.approx(0.35)
    beyond = [(0.1, 1.0), (float("inf"), 10.0)]
    assert quantile(0.9, beyond) == 0.1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_whatever_ends_the_demo_ends_its_daemon(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "streamlstm", "demo", "--data", series_file(tmp_path, 200),
         "--keep-running"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = next(line for line in process.stdout if "goes on until Ctrl-C" in line)
    url = next(word for word in said.split() if word.startswith("http://"))
    with urllib.request.urlopen(f"{url}/metrics", timeout=30):
        pass  # it is up
    process.send_signal(number)
    assert process.wait(60) == 0
    process.stdout.close()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=30)


def test_an_interrupted_fit_ends_the_demo(tmp_path: Path) -> None:
    def interrupt(done: int, *_: object) -> None:
        raise KeyboardInterrupt

    table = read_table(series_file(tmp_path, 200))
    with pytest.raises(KeyboardInterrupt):
        fitted(table, 24, interrupt)
