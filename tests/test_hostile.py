"""The daemon among peers that mean harm: it goes on serving those that do not."""

import contextlib
import json
import os
import random
import socket
import stat
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import zmq

from streamlstm.client import Feed, Listener
from streamlstm.security import make_keys
from streamlstm.transport import TransportError
from streamlstm.web import hash_password
from streamlstm.wire.peer import encode_tick
from tests.daemon import LOCAL, Client, Daemon, eventually, start
from tests.models import random_model_file

GREETING = b"\xff\0\0\0\0\0\0\0\1\x7f\3\1NULL" + bytes(16 + 1 + 31)
"""ZMTP 3.1 (ZeroMQ RFC 37), without security, as a client."""
MB = 1 << 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model_file(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def daemon(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    options = {"security__max_connections": 40, "security__max_held": 64 * MB}
    options |= {"snapshot__bind": LOCAL}
    with start(
        tmp_path_factory.mktemp("daemon"), model, engine__max_series=1000, **options
    ) as daemon:
        yield daemon


@pytest.fixture
def friend(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon) as client:
        yield client


def port(endpoint: str) -> tuple[str, int]:
    return "127.0.0.1", int(endpoint.rpartition(":")[2])


def connect(endpoint: str, kind: bytes = b"") -> socket.socket:
    """Plain TCP; where a ``kind`` of socket is named, it says that it is one."""
    peer = socket.socket()
    peer.settimeout(30)
    with contextlib.suppress(ConnectionError):  # it may have been hung up on already
        peer.connect(port(endpoint))
        if kind:
            ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
            peer.sendall(GREETING + b"\4" + bytes([len(ready)]) + ready)
            said = b""  # what is sent before it is ready too is refused
            while b"READY" not in said and (came := peer.recv(4096)):
                said += came
    return peer


def serves(client: Client, series: str = "friend") -> bool:
    serves.ts += 3600  # type: ignore[attr-defined]
    client.tick(series, ts=serves.ts, value=1.0)  # type: ignore[attr-defined]
    (said,) = client.predictions(1)
    return bool(said["series"] == series)


serves.ts = 0  # type: ignore[attr-defined]


def memory(daemon: Daemon) -> int:
    return int(psutil.Process(daemon.process.pid).memory_info().rss)


def is_hung_up_on(peer: socket.socket) -> bool:
    with contextlib.suppress(ConnectionError):
        while peer.recv(65_536):
            pass
    return True


NOISE = [b"", b"\0", b"\xff", b"GET / HTTP/1.1\r\n\r\n", bytes(5000), b"\xff" * 5000,
         random.Random(0).randbytes(5000), GREETING[:11], GREETING[:40], GREETING,
         GREETING + b"\xff" * 100, GREETING + b"\4\xff" + b"\x05READY" + b"\xff" * 248,
         GREETING + b"\6" + b"\xff" * 8]  # fmt: skip


def test_noise_at_any_port_stops_nothing(daemon: Daemon, friend: Client) -> None:
    before = memory(daemon)
    for noise in NOISE:
        ends = (daemon.input, daemon.output, daemon.snapshot, daemon.url)
        peers = [connect(each) for each in ends]
        for peer in peers:
            with contextlib.suppress(ConnectionError):
                peer.sendall(noise)
        assert serves(friend)
        assert daemon.get("/-/ready")
        for peer in peers:
            peer.close()
    assert memory(daemon) - before < 10 * MB
    eventually(lambda: daemon.metric("streamlstm_connections_refused_total") >= 10)
    assert "connections refused=" in daemon.log


def test_a_message_of_very_many_parts_is_dropped_as_one(daemon: Daemon, friend: Client) -> None:
    dropped = 'streamlstm_ticks_dropped_total{reason="malformed"}'
    before = daemon.metric(dropped)
    friend.send(*[b"x"] * 200_000)
    assert serves(friend)
    assert daemon.metric(dropped) == before + 1


@pytest.mark.parametrize(("end", "kind"), [("input", b"PUB"), ("snapshot", b"DEALER")])
def test_a_message_without_end_takes_no_more_than_it_may(
    daemon: Daemon, end: str, kind: bytes
) -> None:
    """libzmq keeps its parts until the last one is there, however many; the daemon does not."""
    said = daemon.log.count("all connections ended")
    ended = daemon.metric("streamlstm_connections_ended_total")
    with Client(daemon) as friend:
        assert serves(friend)
        most = before = memory(daemon)
        deadline = time.monotonic() + 60
        while daemon.log.count("all connections ended") == said:  # who was cut off comes again
            assert time.monotonic() < deadline
            with contextlib.suppress(ConnectionError), connect(getattr(daemon, end), kind) as enemy:
                while most < before + 2000 * MB:
                    enemy.sendall((b"\1\x10" + b"x" * 16) * 4096)
                    most = max(most, memory(daemon))
                pytest.fail("nobody stops it")
        assert most < before + 400 * MB
        eventually(lambda: memory(daemon) < before + 64 * MB)
        eventually(lambda: daemon.metric("streamlstm_connections_ended_total") > ended)
        assert friend.feed.recv()  # it subscribes again: ZeroMQ has connected anew
        assert friend.sink.recv() == b"streamlstm.welcome"
        eventually(lambda: back(friend))


def back(friend: Client) -> bool:
    """Its subscription may come later than the welcome."""
    serves.ts += 3600  # type: ignore[attr-defined]
    friend.tick("back", ts=serves.ts, value=1.0)  # type: ignore[attr-defined]
    return bool(friend.sink.poll(100)) and friend.receive(1)[0][0].startswith(b"prediction.")


def snapshot(daemon: Daemon) -> set[str]:
    """The series in it, as a late joiner sees them."""
    listener = Listener(daemon.output, "json")
    try:
        listener.wait(30)
        return {each.series for each in listener.catch_up(daemon.snapshot, 30)}
    finally:
        listener.close()


def test_who_asks_for_snapshots_without_end_and_reads_none_holds_up_nobody(
    model: Path, tmp_path: Path
) -> None:
    names = {f"of the snapshot {k}" for k in range(500)}
    options = {"security__max_held": 64 * MB, "engine__max_series": 1000, "snapshot__bind": LOCAL}
    with start(tmp_path, model, **options) as daemon, Client(daemon) as friend:
        for name in names:
            assert serves(friend, name)
        assert names <= snapshot(daemon)
        before = most = memory(daemon)
        with contextlib.ExitStack() as stack:
            enemies = [stack.enter_context(connect(daemon.snapshot, b"DEALER")) for _ in range(30)]
            for enemy in enemies:
                enemy.setblocking(False)
            for _ in range(50):
                for enemy in enemies:
                    with contextlib.suppress(BlockingIOError):
                        enemy.send(b"\0\0" * 10_000)  # of all series
                most = max(most, memory(daemon))
                assert serves(friend)
            eventually(lambda: daemon.metric("streamlstm_snapshots_refused_total") > 1000)
            assert names <= snapshot(daemon)
        assert most < before + 64 * MB
        with friend.context.socket(zmq.DEALER) as asker:
            asker.rcvtimeo = 30_000
            asker.connect(daemon.snapshot)
            asker.send_multipart([b""] * 100_000)
            assert asker.recv_multipart()[0] == b"streamlstm.refused"
        assert names <= snapshot(daemon)
        assert serves(friend)
        assert "all connections ended" not in daemon.log


@pytest.mark.parametrize("full", ["reject", "evict"])
def test_a_million_names_take_no_more_than_a_thousand(
    model: Path, tmp_path: Path, full: str
) -> None:
    """With reject, who came first stays; with evict, who was not heard for 1000 names is forgotten.

    Either way whoever speaks next is served.
    """
    many = 1_000_000
    options: dict[str, object] = {"engine__max_series": 1000, "engine__when_full": full}
    options |= {"engine__max_batch": 256}  # whose tick waits is not evicted
    options |= {"input__format": "binary", "input__kind": "pull", "input__hwm": 1000}
    (frame,) = encode_tick("binary", "", 0, [1.0])
    with (
        start(tmp_path, model, **options) as daemon,
        Client(daemon, b"prediction.friend", push=True) as client,
    ):
        numbers, before = [], 0
        for tenth in range(11):
            client.send(*encode_tick("binary", "friend", 3600 * 10**9 * tenth, [1.0]))
            (said,) = client.predictions(1)
            numbers.append(said["seq"])
            before = before or memory(daemon)
            for k in range(many // 10 * (tenth < 10)):
                client.feed.send(b"%d.%d" % (tenth, k) + frame, copy=True)
        assert memory(daemon) < before + 32 * MB
        rejected = daemon.metric('streamlstm_ticks_dropped_total{reason="series_limit"}')
        evicted = daemon.metric('streamlstm_series_evicted_total{reason="full"}')
        started = daemon.metric("streamlstm_series_started_total")
        assert daemon.metric("streamlstm_ticks_received_total") == many + 11
        assert daemon.metric("streamlstm_active_series") == 1000
        if full == "reject":
            assert (rejected, evicted, started) == (many - 999, 0, 1000)
            assert numbers == list(range(1, 12))
        else:
            assert (rejected, evicted, started) == (0, many + 11 - 1000, many + 11)
            assert numbers == [1] * 11
        assert daemon.stop() == 0


def test_subscriptions_without_end_take_no_more_than_they_may(daemon: Daemon) -> None:
    before = memory(daemon)
    with connect(daemon.output, b"SUB") as enemy:
        most = before
        with contextlib.suppress(ConnectionError):
            while most < before + 2000 * MB:
                for _ in range(20):
                    enemy.sendall(b"\2" + struct.pack(">Q", 1001) + b"\1" + os.urandom(1000))
                most = max(most, memory(daemon))
            pytest.fail("nobody stops it")
    assert most < before + 400 * MB
    eventually(lambda: memory(daemon) < before + 64 * MB)
    with Client(daemon) as friend:
        eventually(lambda: back(friend))


def test_a_subscription_as_long_as_no_topic_is_the_last_of_its_sender(
    daemon: Daemon, friend: Client
) -> None:
    with connect(daemon.output, b"SUB") as enemy:
        enemy.sendall(b"\2" + struct.pack(">Q", 1 << 40) + b"\1" + b"x" * 1000)
        assert is_hung_up_on(enemy)
    assert serves(friend)


@pytest.mark.parametrize("kind", [b"", b"PUB"])
def test_of_very_many_connections_the_latest_are_ended(
    daemon: Daemon, friend: Client, kind: bytes
) -> None:
    process = psutil.Process(daemon.process.pid)
    before = process.num_fds()
    ended = daemon.metric("streamlstm_connections_ended_total")
    enemies = [connect(daemon.input, kind) for _ in range(300)]
    assert serves(friend)
    eventually(lambda: process.num_fds() < before + 60)
    eventually(lambda: daemon.metric("streamlstm_connections_ended_total") >= ended + 200)
    assert serves(friend)
    for enemy in enemies:
        enemy.close()
    eventually(lambda: process.num_fds() <= before + 2)
    with Client(daemon) as later:
        assert serves(later)


def test_with_too_few_file_descriptors_there_is_no_start(model: Path) -> None:
    """libzmq ends the process where its threads get none."""
    serve = f"ulimit -n 40; exec {sys.executable} -m streamlstm run --set model={model}"
    done = subprocess.run(["sh", "-c", serve], capture_output=True, text=True)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert "only 40 files may be open, 64 have to be; raise the limit" in line
    assert "Traceback" not in done.stderr


def test_without_file_descriptors_it_serves_those_that_are_there(
    model: Path, tmp_path: Path
) -> None:
    """They come back when those who took them leave, or are ended."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))"
    with start(tmp_path, model, before=limit) as daemon, Client(daemon) as friend:
        assert "only 100 files may be open" in daemon.log
        enemies = [connect(daemon.output) for _ in range(200)]
        for _ in range(10):
            assert serves(friend)
        for enemy in enemies:
            enemy.close()
        with Client(daemon) as later:
            assert serves(later)
        assert daemon.stop() == 0


# CURVE, TLS and file modes, of the real daemon


class Keyring:
    def __init__(self, folder: Path) -> None:
        self.server_public, self.server = make_keys(folder / "server")
        self.clients = folder / "clients"
        self.clients.mkdir()
        _, self.client = make_keys(self.clients / "client")
        _, self.stranger = make_keys(folder / "stranger")


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    return Keyring(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def guarded(
    model: Path, keyring: Keyring, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    with start(
        tmp_path_factory.mktemp("guarded"),
        model,
        security__secret_key=keyring.server,
        security__clients=keyring.clients,
        metrics__users=json.dumps({"prometheus": hash_password("secret")}),
        security__max_held=64 * MB,
        engine__max_series=1000,
    ) as daemon:
        yield daemon


def ask(daemon: Daemon, path: str) -> str:
    passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    passwords.add_password(None, daemon.url, "prometheus", "secret")
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(passwords))
    with opener.open(daemon.url + path, timeout=30) as answer:
        return str(answer.read().decode())


def served_by_keys(daemon: Daemon, keyring: Keyring) -> bool:
    feed = Feed(daemon.input, "json", key=keyring.client, server_key=keyring.server_public)
    keys = {"key": keyring.client, "server_key": keyring.server_public}
    listener = Listener(daemon.output, "json", **keys)
    try:
        feed.wait(30)
        listener.wait(30)
        for hour in range(1000):  # until the subscription is there too
            feed.send("a", hour * 3600 * 10**9, [1.0])
            for prediction in listener.receive(0.1):
                return prediction.series == "a"
    finally:
        feed.close(0)
        listener.close()
    return False


def test_who_has_the_keys_is_served_and_nobody_else(guarded: Daemon, keyring: Keyring) -> None:
    for keys in (
        {},
        {"server_key": keyring.server_public},
        {"server_key": keyring.server_public, "key": keyring.stranger},
        {"server_key": keyring.clients / "client.key", "key": keyring.client},
    ):
        feed = Feed(guarded.input, "json", **keys)
        listener = Listener(guarded.output, "json", **keys)
        with pytest.raises(TransportError, match="do the keys fit"):
            feed.wait(0.2)
        with pytest.raises(TransportError, match="do the keys fit"):
            listener.wait(0.2)
        feed.close(0)
        listener.close()
    assert served_by_keys(guarded, keyring)
    eventually(lambda: "streamlstm_connections_refused_total 0.0" not in ask(guarded, "/metrics"))
    with pytest.raises(urllib.error.HTTPError, match="401"):
        guarded.get("/metrics")


def test_the_commands_take_keys(guarded: Daemon, keyring: Keyring, tmp_path: Path) -> None:
    keys = ("--server-key", keyring.server_public, "--key", keyring.client)
    table = tmp_path / "data.csv"
    table.write_text(
        "unique_id,ds,y\n" + "\n".join(f"cli,2030-01-01 0{h}:00,{h}" for h in range(9))
    )
    command = [sys.executable, "-m", "streamlstm"]
    watch = [*command, "watch", guarded.output, "cli", "--json", "--count", "9", *keys]
    with subprocess.Popen(watch, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watcher:
        assert watcher.stderr
        assert b"watching" in watcher.stderr.readline()
        done = [*command, "publish", table, "--to", guarded.input, *keys]
        subprocess.run(done, check=True, capture_output=True, timeout=60)
        out, _ = watcher.communicate(timeout=60)
    assert [json.loads(line)["series"] for line in out.splitlines()] == ["cli"] * 9


def test_who_has_no_key_makes_it_hold_nothing(guarded: Daemon, keyring: Keyring) -> None:
    before = memory(guarded)
    for end, kind in ((guarded.input, b"PUB"), (guarded.output, b"SUB")):
        with connect(end, kind) as enemy, contextlib.suppress(ConnectionError):
            for _ in range(1000):
                enemy.sendall((b"\1\x10" + b"x" * 16) * 4096)
            pytest.fail("it is listened to")
    assert memory(guarded) < before + 10 * MB
    assert served_by_keys(guarded, keyring)


def test_keys_hold_after_all_were_disconnected(
    model: Path, keyring: Keyring, tmp_path: Path
) -> None:
    """Even of one that is trusted so many subscriptions are too much."""
    keys = {"key": keyring.client, "server_key": keyring.server_public}
    with start(
        tmp_path,
        model,
        security__secret_key=keyring.server,
        security__clients=keyring.clients,
        security__max_held=1 * MB,
        engine__max_series=10,
    ) as daemon:
        enemy = Listener(daemon.output, "json", **keys)
        enemy.wait(30)
        while "all connections ended" not in daemon.log:
            for _ in range(100):
                enemy.socket.subscribe(os.urandom(500))
        enemy.close()
        listener = Listener(daemon.output, "json", server_key=keyring.server_public)
        with pytest.raises(TransportError, match="do the keys fit"):
            listener.wait(0.2)
        listener.close()
        listener = Listener(daemon.output, "json", **keys)
        listener.wait(30)
        listener.close()
        assert daemon.stop() == 0


def test_whose_key_is_taken_away_hears_no_more(model: Path, tmp_path: Path) -> None:
    keyring = Keyring(tmp_path)
    public, secret = make_keys(keyring.clients / "other")
    with start(
        tmp_path,
        model,
        security__secret_key=keyring.server,
        security__clients=keyring.clients,
    ) as daemon:
        other = Listener(daemon.output, "json", key=secret, server_key=keyring.server_public)
        other.wait(30)
        assert served_by_keys(daemon, keyring)
        assert [*other.receive(30)]
        public.unlink()
        eventually(lambda: "a client's key was taken away" in daemon.log)
        [*other.receive(0.1)]  # what was on its way
        assert served_by_keys(daemon, keyring)
        assert not [*other.receive(0.1)]
        other.close()
        assert daemon.stop() == 0


def test_what_it_writes_is_for_nobody_else(model: Path, tmp_path: Path) -> None:
    """Whatever the umask is that it is started with; that one is heeded by its ipc sockets."""
    state = tmp_path / "state"
    state.mkdir(0o700)
    with start(
        tmp_path,
        model,
        before="import os; os.umask(0o007)",
        checkpoint__path=state / "checkpoint",
        checkpoint__interval=0.2,
        journal__segment_bytes=1 << 16,
        input__bind=f"ipc://{tmp_path}/in",
    ) as daemon:
        with Client(daemon) as client:
            assert stat.S_IMODE((tmp_path / "in").stat().st_mode) == 0o770
            for hour in range(200):
                client.tick("a", ts=3600 * hour, value=1.0)
            client.receive(200)
            eventually(lambda: (state / "checkpoint").exists())
            check_modes(state)
        assert daemon.stop() == 0
    assert len(check_modes(state)) >= 2


def check_modes(folder: Path) -> list[Path]:
    found = [*folder.rglob("*")]
    for each in found:
        with contextlib.suppress(FileNotFoundError):
            mode = stat.S_IMODE(each.stat().st_mode)
            assert mode == (0o700 if each.is_dir() else 0o600), each
    return found
