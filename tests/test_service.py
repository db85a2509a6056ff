"""The daemon as a process, seen from outside: a plain pyzmq client, HTTP, signals."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import zmq

from streamlstm import service
from streamlstm.checkpoint import CheckpointError
from streamlstm.config import Config
from streamlstm.engine import Engine
from streamlstm.model import ModelError
from streamlstm.model_file import load_model
from streamlstm.ticks import Keys, Ticks
from streamlstm.wire.format import Format
from streamlstm.wire.peer import decode_prediction, encode_tick
from tests.daemon import Client, Daemon, eventually, start
from tests.models import random_model_file

HOUR = 3600
DROPPED = 'streamlstm_ticks_dropped_total{reason="%s"}'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model_file(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def daemon(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with start(tmp_path_factory.mktemp("daemon"), model) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon) as client:
        yield client


def walk(names: list[str], ticks: int, seed: int = 0) -> list[tuple[str, int, float]]:
    """(series, hour, value): ``ticks`` rounds of random walks, in a new order each."""
    rng = np.random.default_rng(seed)
    values = 50 + rng.normal(size=(ticks, len(names))).cumsum(axis=0)
    return [
        (names[i], hour, float(values[hour, i]))
        for hour in range(ticks)
        for i in rng.permutation(len(names))
    ]


def expected(model: Path, ticks: list[tuple[str, int, float]]) -> list[dict[str, object]]:
    """What the engine says of each tick, one at a time, without any socket."""
    engine = Engine(load_model(model), max_series=1000, max_batch=1)
    found = []
    for name, hour, value in ticks:
        slots = engine.series.lookup(Keys.of([name.encode()]))
        ts = np.array([hour * HOUR * 10**9])
        row = engine.step(Ticks(slots, ts, np.array([[value]]), np.zeros(1, np.uint8)), 0)
        found.append(
            {
                "series": name,
                "ts_ns": int(ts[0]),
                "seq": int(row.seq[0]),
                "forecast": row.point[0, :, 0].tolist(),
                "lower": row.quantiles[0, 0, :, 0].tolist(),
                "upper": row.quantiles[0, 1, :, 0].tolist(),
            }
        )
    return found


def test_each_tick_gives_one_prediction_the_same_bits_as_without_sockets(
    client: Client, model: Path
) -> None:
    ticks = walk([f"walk-{i}" for i in range(40)], 50)
    for name, hour, value in ticks:
        client.tick(name, ts=hour * HOUR, value=value)
    predictions = client.predictions(len(ticks))
    assert client.silent()
    assert len({prediction.pop("boot") for prediction in predictions}) == 1
    assert {prediction.pop("model") for prediction in predictions} == {load_model(model).id}
    assert [prediction.pop("ts") for prediction in predictions] == [h * HOUR for _, h, _ in ticks]
    assert predictions == expected(model, ticks)


BAD: list[tuple[str, list[bytes]]] = [
    ("malformed", [b"bad", b'{"ts": 1, ']),
    ("malformed", [b"bad", b"\x00\xff"]),
    ("malformed", [b"bad", b"{}", b"{}"]),
    ("wrong_values", [b"bad", b'{"ts": 1, "values": [1, 2]}']),
    ("wrong_values", [b"bad", b'{"ts": 1}']),
    ("bad_timestamp", [b"bad", b'{"ts": "today", "value": 1}']),
    ("bad_key", [b"\xc3\x28", b'{"ts": 1, "value": 1}']),
    ("bad_key", [b"", b'{"ts": 1, "value": 1}']),
    ("key_too_long", [b"k" * 65, b'{"ts": 1, "value": 1}']),
    ("frame_too_large", [b"bad", b'{"ts": 1, "value": 1}' + b" " * 65_536]),
    ("nonfinite", [b"bad", b'{"ts": 1, "value": null}']),
    ("nonfinite", [b"bad", b'{"ts": 1, "value": NaN}']),
]


@pytest.mark.parametrize(("reason", "message"), BAD)
def test_nothing_a_peer_sends_stops_it(
    daemon: Daemon,
    client: Client,
    reason: str,
    message: list[bytes],
    request: pytest.FixtureRequest,
) -> None:
    before = daemon.metric(DROPPED % reason)
    client.send(*message)
    client.tick(request.node.name[-40:], ts=1, value=1)
    assert client.predictions(1)[0]["seq"] == 1
    assert client.silent()
    assert daemon.metric(DROPPED % reason) == before + 1


def test_a_tick_that_cannot_be_taken_starts_no_series(daemon: Daemon, client: Client) -> None:
    before = daemon.metric("streamlstm_active_series")
    refused = daemon.metric(DROPPED % "nonfinite")
    client.tick("never seen before", ts=HOUR, value=None)
    eventually(lambda: daemon.metric(DROPPED % "nonfinite") == refused + 1)
    assert daemon.metric("streamlstm_active_series") == before


def test_late_and_duplicate_ticks_are_dropped(daemon: Daemon, client: Client) -> None:
    for hour in (5, 5, 4, 6):
        client.tick("late", ts=hour * HOUR, value=1)
    assert [p["ts"] for p in client.predictions(2)] == [5 * HOUR, 6 * HOUR]
    assert daemon.metric(DROPPED % "late") == daemon.metric(DROPPED % "duplicate") == 1


def test_the_log_samples_what_is_dropped(daemon: Daemon, client: Client) -> None:
    for i in range(50):
        client.send(b"sampled", b"{%d" % i)
    client.tick("sampled", ts=1, value=1)
    client.predictions(1)
    lines = [line for line in daemon.log.splitlines() if "malformed" in line]
    assert 1 <= len(lines) <= 5
    assert all("WARNING tick dropped reason=" in line for line in lines)


def test_a_sender_of_a_huge_frame_is_cut_off_alone(daemon: Daemon, client: Client) -> None:
    with Client(daemon) as enemy:
        enemy.send(b"huge", b"x" * (16 * 65_536 + 1))
        client.tick("beside-huge", ts=1, value=1)
        assert client.predictions(1)[0]["series"] == "beside-huge"


def test_a_warm_tick_moves_its_series_in_silence(client: Client, model: Path) -> None:
    ticks = walk(["warm"], 5, seed=1)
    for name, hour, value in ticks:
        client.tick(name, ts=hour * HOUR, value=value, warm=hour < 4)
    (prediction,) = client.predictions(1)
    assert client.silent()
    assert prediction["seq"] == 1
    assert prediction["forecast"] == expected(model, ticks)[-1]["forecast"]


def test_ticks_without_a_timestamp_have_their_arrival_time(client: Client) -> None:
    before = time.time_ns()
    for value in range(3):
        client.tick("arrival", value=value)
    stamps = [prediction["ts_ns"] for prediction in client.predictions(3)]
    assert before < stamps[0] < stamps[1] < stamps[2] < time.time_ns()


def test_one_frame_that_carries_its_series(client: Client) -> None:
    client.send(b'{"series": "alone", "ts": 1, "value": 1}')
    (prediction,) = client.predictions(1)
    assert prediction["series"] == "alone"


def test_a_subscriber_gets_the_series_it_asks_for(daemon: Daemon, client: Client) -> None:
    with Client(daemon, b"prediction.mine/") as mine:
        client.tick("other/1", ts=1, value=1)
        client.tick("mine/1", ts=1, value=1)
        assert mine.predictions(1)[0]["series"] == "mine/1"
        assert mine.silent()


def test_health_and_metrics_of_the_real_process(daemon: Daemon, client: Client) -> None:
    received = daemon.metric("streamlstm_ticks_received_total")
    published = daemon.metric("streamlstm_predictions_published_total")
    latencies = daemon.metric("streamlstm_tick_to_publish_seconds_count")
    one_ahead = 'streamlstm_forecasts_scored_total{step="1"}'
    scored = daemon.metric(one_ahead)
    for hour in (1, 2, 5, 6):
        client.tick("measured", ts=hour * HOUR, value=1)
    client.predictions(4)
    assert daemon.get("/-/healthy") == "healthy\n"
    assert daemon.get("/-/ready") == "ready\n"
    assert daemon.metric("streamlstm_ticks_received_total") == received + 4
    assert daemon.metric("streamlstm_predictions_published_total") == published + 4
    assert daemon.metric("streamlstm_tick_to_publish_seconds_count") == latencies + 4
    assert daemon.metric(one_ahead) == scored + 2  # those made at hours 1 and 5
    assert daemon.metric("streamlstm_input_gaps_total") >= 1
    active = daemon.metric("streamlstm_active_series")
    assert active == daemon.metric("streamlstm_series_started_total")
    assert daemon.metric("streamlstm_state_bytes") % active == 0
    assert daemon.metric("streamlstm_event_lag_seconds") == pytest.approx(
        time.time() - 6 * HOUR, abs=60
    )


def test_promtool_finds_nothing(daemon: Daemon, client: Client) -> None:
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed")
    client.tick("promtool", ts=1, value=1)
    client.predictions(1)
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=daemon.get("/metrics"),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("format", ["msgpack", "binary"])
def test_the_other_formats(format: Format, model: Path, tmp_path: Path) -> None:
    ticks = walk(["a", "b", "é"], 5)
    options = {"input__format": format, "output__format": format}
    with start(tmp_path, model, **options) as daemon, Client(daemon) as client:
        for name, hour, value in ticks:
            client.send(*encode_tick(format, name, hour * HOUR * 10**9, [value]))
        read = [decode_prediction(format, each) for each in client.receive(len(ticks))]
        assert client.silent()
    for prediction, engine in zip(read, expected(model, ticks), strict=True):
        assert (prediction.series, prediction.seq) == (engine["series"], engine["seq"])
        assert prediction.forecast[:, 0].tolist() == engine["forecast"]
        assert prediction.upper[:, 0].tolist() == engine["upper"]


def test_it_connects_filters_topics_and_keeps_to_max_series(model: Path, tmp_path: Path) -> None:
    context = zmq.Context()
    far = context.socket(zmq.XPUB)
    far.bind("tcp://127.0.0.1:*")
    options = {"input__connect": far.get_string(zmq.LAST_ENDPOINT), "input__topics": "a/"}
    with (
        start(tmp_path, model, engine__max_series=2, **options) as daemon,
        Client(daemon) as near,
    ):
        assert far.poll(30_000)
        payload = b'{"ts": 1, "value": 1}'
        for name in (b"b/1", b"a/1"):
            far.send_multipart([name, payload])
        assert near.predictions(1)[0]["series"] == "a/1"
        for name in ("a/2", "a/3", "a/4"):
            near.tick(name, ts=1, value=1)
        near.tick("a/2", ts=2, value=1)
        assert [p["ts"] for p in near.predictions(2)] == [1, 2]
        assert daemon.metric(DROPPED % "series_limit") == 2
        assert daemon.metric("streamlstm_active_series") == 2
    context.destroy(linger=0)


EVICTED = 'streamlstm_series_evicted_total{reason="%s"}'


def test_a_new_series_takes_the_place_of_the_longest_idle_if_asked(
    model: Path, tmp_path: Path
) -> None:
    ticks = walk(["a", "b"], 5)
    options = {"engine__max_series": 2, "engine__when_full": "evict"}
    with start(tmp_path, model, **options) as daemon, Client(daemon) as client:
        for name, hour, value in ticks:
            client.tick(name, ts=hour * HOUR, value=value)
        client.predictions(len(ticks))
        for hour, name in enumerate(("a", "c", "a", "b"), 1000):
            client.tick(name, ts=hour * HOUR, value=1)
            (prediction,) = client.predictions(1)
            assert (prediction["seq"] > 1) == (name == "a")
        eventually(lambda: daemon.metric(EVICTED % "full") == 2)
        assert daemon.metric(DROPPED % "series_limit") == 0
        assert daemon.metric("streamlstm_active_series") == 2
        assert daemon.metric("streamlstm_series_started_total") == 4
        eventually(lambda: 'series evicted reason="full"' in daemon.log)


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("killed", [False, True])
def test_an_idle_series_is_parked_and_comes_back_as_if_it_had_never_been_away(
    model: Path, tmp_path: Path, killed: bool, changed: bool
) -> None:
    """Be it with another coverage: then the interval alone begins anew."""
    ticks = walk([f"s{i}" for i in range(20)], 8)
    wanted, found = expected(model, ticks), []
    options = {
        "engine__max_series": 20, "engine__idle_timeout": 0.05, "engine__when_full": "evict",
        "engine__parking": tmp_path / "parked", "checkpoint__path": tmp_path / "c",
        "journal__durability": "strict",
    }  # fmt: skip
    for part in range(2):
        if changed and part:
            options["interval__coverage"] = 0.8
        with start(tmp_path, model, **options) as daemon, Client(daemon) as client:
            for begin in range(80 * part, 80 * part + 80, 40):
                for name, hour, value in ticks[begin : begin + 40]:
                    client.tick(name, ts=hour * HOUR, value=value)
                found += client.predictions(40)
                eventually(lambda: daemon.metric("streamlstm_active_series") == 0)
            parked = daemon.metric("streamlstm_series_parked_total")
            assert daemon.metric(EVICTED % "idle") == parked
            returned = daemon.metric("streamlstm_series_returned_total")
            if not (killed and part):  # what was last parked is then here, and idle, once more
                assert (parked, returned) == (40, 20 + 20 * part)
            assert daemon.metric("streamlstm_series_started_total") == 20 - 20 * part
            compiled = daemon.metric("streamlstm_functions_compiled_total")
            assert f"functions_compiled={compiled:.0f}" in daemon.log
            if killed:
                os.kill(daemon.process.pid, signal.SIGKILL)
            else:
                assert daemon.stop() == 0
            assert ("parked with other settings" in daemon.log) == (changed and part > 0)
    keys = wanted[0].keys() - ({"lower", "upper"} if changed else set())
    assert [[each[key] for key in keys] for each in found] == [
        [each[key] for key in keys] for each in wanted
    ]


def test_many_more_keys_than_there_is_room_for(model: Path, tmp_path: Path) -> None:
    """Those that stay are served on, with both policies and with a file for the others."""
    for options in (
        {},
        {"engine__when_full": "evict"},
        {"engine__when_full": "evict", "engine__parking": tmp_path / "parked"},
    ):
        with (
            start(tmp_path, model, engine__max_series=10, input__kind="pull", **options) as daemon,
            Client(daemon, push=True) as client,
        ):
            for key in range(3000):
                client.tick(f"key {key}", ts=HOUR, value=1)
            client.tick("key 0", ts=2 * HOUR, value=1)

            def served() -> bool:
                counted = daemon.metric("streamlstm_predictions_published_total")
                return counted + daemon.metric(DROPPED % "series_limit") == 3001

            eventually(served)
            assert daemon.metric("streamlstm_active_series") == 10
            pushed_out = daemon.metric(EVICTED % "full")
            started = daemon.metric("streamlstm_series_started_total")
            came_back = daemon.metric("streamlstm_series_returned_total")
            assert started + came_back - pushed_out == 10
            assert (pushed_out > 0) == bool(options)


# the process


def test_sigterm_serves_what_has_arrived_and_a_restart_goes_on_from_there(
    model: Path, tmp_path: Path
) -> None:
    ticks = walk([f"s{i}" for i in range(20)], 40)
    half = len(ticks) // 2
    checkpoint = tmp_path / "checkpoint.safetensors"
    predictions = []
    for part in (ticks[:half], ticks[half:]):
        with start(tmp_path, model, checkpoint__path=checkpoint) as daemon:
            with Client(daemon) as client:
                os.kill(daemon.process.pid, signal.SIGSTOP)
                for name, hour, value in part:
                    client.tick(name, ts=hour * HOUR, value=value)
                daemon.process.terminate()
                os.kill(daemon.process.pid, signal.SIGCONT)
                assert daemon.wait() == 0
                predictions += client.predictions(len(part))
                assert client.silent()
            assert " stopped " in daemon.log
    assert predictions[0]["boot"] != predictions[-1]["boot"]
    wanted = expected(model, ticks)
    assert [{key: each[key] for key in wanted[0]} for each in predictions] == wanted


STALL = """
import time
def stall(*_, **__):
    print("stalled", flush=True)
    time.sleep(60)
checkpoint.save = stall
"""


def test_a_second_signal_ends_it_at_once(model: Path, tmp_path: Path) -> None:
    with start(tmp_path, model, before=STALL, checkpoint__path=tmp_path / "c") as daemon:
        daemon.process.terminate()
        assert daemon.process.stdout is not None
        assert daemon.process.stdout.readline() == "stalled\n"
        daemon.process.send_signal(signal.SIGINT)
        assert daemon.wait() == -signal.SIGINT


def test_the_end_comes_within_shutdown_timeout(model: Path, tmp_path: Path) -> None:
    options = {"checkpoint__path": tmp_path / "c", "service__shutdown_timeout": 0.5}
    with start(tmp_path, model, before=STALL, **options) as daemon:
        began = time.monotonic()
        assert daemon.stop() == -signal.SIGALRM
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(model: Path, tmp_path: Path, abstract: bool) -> None:
    address = f"@streamlstm-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0"))
        manager.settimeout(60)
        with start(tmp_path, model, env={"NOTIFY_SOCKET": address}) as daemon:
            said = b""
            while b"READY=1" not in said:
                said = manager.recv(4096)
            assert b"STATUS=serving model" in said
            daemon.process.terminate()
            assert manager.recv(4096).startswith(b"STOPPING=1")
            assert daemon.wait() == 0


def test_it_keeps_to_its_cores_waits_and_looks_as_it_is_told(model: Path, tmp_path: Path) -> None:
    core = max(os.sched_getaffinity(0))
    options = {
        "service__cpus": core, "engine__max_wait_us": 100_000, "service__busy_poll_us": 10**9,
    }  # fmt: skip
    with start(tmp_path, model, **options) as daemon, Client(daemon) as client:
        pid = daemon.process.pid
        assert os.sched_getaffinity(pid) == {core}
        (sockets,) = [
            int(task.name)
            for task in Path(f"/proc/{pid}/task").iterdir()
            if (task / "comm").read_text() == "ZMQbg/IO/0\n"
        ]
        assert os.sched_getaffinity(sockets) == {core}
        began = time.monotonic()
        client.tick("a", ts=1, value=1)
        client.predictions(1)
        assert time.monotonic() - began >= 0.1

        def worked() -> int:
            """Clock ticks of the processor."""
            after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
            return sum(map(int, after.split()[11:13]))

        before = worked()
        eventually(lambda: worked() > before + 5)
        client.tick("a", ts=2, value=1)
        client.predictions(1)
        assert daemon.stop() == 0


def test_a_core_that_is_not_there_is_one_line_and_exit_code_1(
    model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = {"model": model, "metrics": {"enabled": False}, "service": {"cpus": (0, 99_999)}}
    before = os.sched_getaffinity(0)
    assert service.run(Config.model_validate(options)) == 1
    assert os.sched_getaffinity(0) == before
    (line,) = capfd.readouterr().err.splitlines()
    assert "service.cpus: core 99999 is not there" in line


def test_without_libzmqs_functions_it_serves_and_says_so_once(model: Path, tmp_path: Path) -> None:
    ticks = walk(["a", "b"], 100)
    missing = "service.transport._FUNCTIONS = ('zmq_of_another_time',)"
    with start(tmp_path, model, before=missing) as daemon, Client(daemon) as client:
        for name, hour, value in ticks:
            client.tick(name, ts=hour * HOUR, value=value)
        client.tick("odd", ts="today", value=1)
        wanted = expected(model, ticks)
        found = client.predictions(len(ticks))
        assert [{key: each[key] for key in wanted[0]} for each in found] == wanted
        assert daemon.stop() == 0
    (line,) = [line for line in daemon.log.splitlines() if "libzmq" in line]
    assert "WARNING" in line


@pytest.mark.parametrize("name", ["input", "output", "metrics"])
def test_a_port_in_use_is_one_line_and_exit_code_1(
    name: str, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        there = {"port": port} if name == "metrics" else {"bind": (f"tcp://127.0.0.1:{port}",)}
        free = {
            "input": {"bind": ("tcp://127.0.0.1:*",)},
            "output": {"bind": ("tcp://127.0.0.1:*",)},
        }
        options = {"metrics": {"port": 0}, **free, name: there, "model": model}
        assert service.run(Config.model_validate(options)) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert str(port) in line
    assert "in use" in line


@pytest.mark.parametrize(
    ("checkpoint", "said"),
    [("no/such/folder/c", "its folder does not exist"), ("damaged", "damaged")],
)
def test_a_checkpoint_that_cannot_be_used_is_one_line_and_exit_code_1(
    checkpoint: str, said: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "damaged").write_bytes(b"nothing")
    options = {"path": tmp_path / checkpoint}
    config = {"model": model, "metrics": {"enabled": False}, "checkpoint": options}
    assert service.run(Config.model_validate(config)) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert str(tmp_path / checkpoint) in line
    assert said in line


def test_a_missing_model_is_one_line_and_exit_code_1(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = Config.model_validate({"model": tmp_path / "none", "metrics": {"enabled": False}})
    before = os.umask(0o022)
    try:
        assert service.run(config) == 1
        assert os.umask(before) == 0o022  # as it was found
    finally:
        os.umask(before)
    (line,) = capfd.readouterr().err.splitlines()
    assert "no such model file" in line


def test_check_opens_all_but_sockets(model: Path, tmp_path: Path) -> None:
    said, doubtful = service.check(Config(model=model))
    assert not doubtful
    assert str(model) in said
    assert load_model(model).id in said
    assert "\n" not in said
    with pytest.raises(CheckpointError, match="its folder does not exist"):
        service.check(Config.model_validate({"model": model, "checkpoint": {"path": "no/c"}}))
    with pytest.raises(ModelError, match="no such model file"):
        service.check(Config(model=tmp_path / "none"))
    with pytest.raises(service.CoreError, match="core 99999 is not there"):
        service.check(Config.model_validate({"model": model, "service": {"cpus": (99_999,)}}))


def test_check_and_compiling_disturb_nothing_that_runs(model: Path, tmp_path: Path) -> None:
    options = {
        "checkpoint__path": tmp_path / "c", "engine__parking": tmp_path / "p",
        "engine__when_full": "evict",
        "snapshot__bind": f"ipc://{tmp_path}/snapshot", "input__bind": f"ipc://{tmp_path}/in",
    }  # fmt: skip
    given = [f"--set={name.replace('__', '.')}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "streamlstm", "check", "--compile", f"--set=model={model}"]
    with start(tmp_path, model, **options) as daemon:
        before = sorted(tmp_path.rglob("*"))
        done = subprocess.run(
            [*command, *given, f"--set=metrics.port={urlsplit(daemon.url).port}"],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert "compiled: all" in done.stdout
        assert sorted(tmp_path.rglob("*")) == before
        assert daemon.metric("streamlstm_checkpoint_failures_total") == 0
        assert daemon.stop() == 0


def test_what_it_announces(daemon: Daemon) -> None:
    for endpoint in (daemon.input, daemon.output):
        assert endpoint.startswith("tcp://127.0.0.1:")
        assert int(endpoint.rpartition(":")[2]) > 0
    assert daemon.url.startswith("http://127.0.0.1:")
