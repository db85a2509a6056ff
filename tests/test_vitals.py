"""What is asked of a daemon's metrics, and how what goes wrong is told."""

import contextlib
import io
import math
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from streamlstm.config import ConfigError
from streamlstm.metrics import LATENCIES, Metrics
from streamlstm.vitals import PASSWORD, Daemon, VitalsError, password_of, quantile, vitals
from streamlstm.web import Server, hash_password
from tests.test_web import Certificates


def publish(metrics: Metrics, latency: float, times: int) -> None:
    """Count so many predictions."""
    metrics.values["predictions_published"] += times
    counts = metrics.values["tick_to_publish_seconds"]["counts"]
    counts[0, np.searchsorted(LATENCIES, latency)] += times


@pytest.fixture
def served() -> Iterator[tuple[Metrics, Server]]:
    metrics = Metrics()
    server = Server(metrics, "127.0.0.1", 0)
    yield metrics, server
    server.close()


def test_rates_and_latencies_are_of_the_time_between(served: tuple[Metrics, Server]) -> None:
    metrics, server = served
    metrics.dropped = {"malformed": 3, "bad_key": 0}
    publish(metrics, 5.0, 1000)
    daemon = Daemon(server.url)
    before = daemon.scrape()
    publish(metrics, 150e-6, 98)
    publish(metrics, 0.02, 2)
    metrics.values["ticks_received"] += 300
    metrics.dropped = {"malformed": 5, "bad_key": 0}
    now = daemon.scrape()
    # as if half a second lay between them
    found = vitals(now._replace(at=10.5), before._replace(at=10.0))
    assert (found.received_rate, found.published_rate, found.dropped_rate) == (600, 200, 4)
    assert (found.received, found.published) == (300, 1100)
    assert found.dropped == {"malformed": 5}
    for latency, q in ((150e-6, found.p50), (0.02, found.p99)):
        k = np.searchsorted(LATENCIES, latency)
        assert LATENCIES[k - 1] <= q <= LATENCIES[k]
    quiet = vitals(now._replace(at=11.5), now)
    assert (quiet.published_rate, math.isnan(quiet.p99)) == (0, True)


def test_what_is_not_known_yet_is_nan_and_the_rest_is_as_served(
    served: tuple[Metrics, Server],
) -> None:
    metrics, server = served
    found = vitals(Daemon(server.url).scrape())
    unknown = (found.received_rate, found.p50, found.lag, found.checkpoint_age, found.cores)
    assert all(map(math.isnan, unknown))
    assert not found.ready
    assert (found.model, found.dropped, found.coverage, found.counted) == ({}, {}, {}, {})
    server.ready = True
    metrics.model = {"model": "0123456789ab", "cell": "lstm"}
    metrics.scores = {1: (50, 45, 10.0, 20.0, math.nan), 24: (0, 0, 0.0, 0.0, math.nan)}
    metrics.values["journal_failures"] = 2
    scrape = Daemon(server.url + "/metrics").scrape()
    metrics.values["checkpoint_last_success_timestamp_seconds"] = scrape.now - 60
    found = vitals(Daemon(server.url.removeprefix("http://")).scrape())
    assert found.ready
    assert found.model == {"model": "0123456789ab", "cell": "lstm"}
    assert (found.coverage, found.over_last_value, found.over_seasonal_naive) == (
        {"1": 0.9}, {"1": 0.5}, {},
    )  # fmt: skip
    assert found.counted == {"journal_failures": 2}
    assert found.checkpoint_age == pytest.approx(60, abs=20)
    assert 0 < found.uptime < 1e6
    assert found.resident_bytes > 1e7


def test_a_daemon_started_anew_has_no_rates_yet(served: tuple[Metrics, Server]) -> None:
    scrape = Daemon(served[1].url).scrape()
    other = {**scrape.samples, "process_start_time_seconds": {(): 1.0}}
    assert math.isnan(vitals(scrape, scrape._replace(samples=other)).received_rate)


def test_a_quantile_is_as_prometheus_has_it() -> None:
    buckets = [(1.0, 10.0), (2.0, 30.0), (4.0, 40.0), (math.inf, 40.0)]
    assert quantile(0.5, buckets) == 1.5  # the 20th is half way from the 10th to the 30th
    assert quantile(1.0, buckets) == 4
    assert quantile(0.25, buckets) == 1
    assert quantile(0.1, buckets) == pytest.approx(0.4)
    assert quantile(0.99, [(1.0, 1.0), (math.inf, 100.0)]) == 1  # beyond all bounds
    assert math.isnan(quantile(0.5, [(1.0, 0.0), (math.inf, 0.0)]))
    assert math.isnan(quantile(0.5, []))


@pytest.mark.parametrize(
    "url",
    ["ftp://a", "http://", "http://a:b", "http://me:secret@a:1", "http://a b", "http://a\n:1"],
)
def test_a_url_of_no_use(url: str) -> None:
    with pytest.raises(ConfigError, match=r"give a URL like http://host:9464") as error:
        Daemon(url)
    assert "secret" not in str(error.value)


def complaint(daemon: Daemon) -> str:
    with pytest.raises(VitalsError) as error:
        daemon.scrape()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_nobody_listens_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        assert complaint(Daemon(url)).startswith(
            f"{url}: nothing listens there; is 'streamlstm run'"
        )


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "no answer in HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no answer in HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nfoo", "not the metrics of a daemon"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nfoo", "no answer in HTTP"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\n\r\n", "not the metrics"),
        (b"HTTP/1.1 500 No\r\n\r\n", "not the metrics of a daemon"),
    ],
)
def test_another_server_is_there(answer: bytes, said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):  # nobody asks any more
                for _ in range(2):
                    client = server.accept()[0]
                    with client:
                        client.recv(65_536)
                        client.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        assert said in complaint(Daemon(f"http://127.0.0.1:{server.getsockname()[1]}"))


def test_a_daemon_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamlstm.vitals.PATIENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert "no answer within 0.1 s" in complaint(Daemon(url))


def test_name_and_password() -> None:
    server = Server(Metrics(), "127.0.0.1", 0, users={"ann": hash_password("päss:word")})
    assert "give the name by --user" in complaint(Daemon(server.url))
    assert Daemon(server.url, user="ann", password="päss:word").scrape().samples
    wrong = Daemon(server.url, user="ann", password="guess")
    assert "name or password is wrong" in complaint(wrong)
    assert "try again in a second" in complaint(wrong)
    server.close()
    with pytest.raises(ConfigError, match="a name has no colon"):
        Daemon(server.url, user="a:b")


def test_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamlstm.web.PATIENCE", 1.0)  # of a server that hears no request
    made = Certificates(tmp_path)
    server = Server(Metrics(), "127.0.0.1", 0, tls=made.tls())
    assert "name its authority's file by --ca" in complaint(Daemon(server.url))
    assert Daemon(server.url, ca=made["authority.pem"]).scrape().samples
    assert "write https://" in complaint(Daemon(server.url.replace("https", "http")))
    server.close()
    server = Server(Metrics(), "127.0.0.1", 0, tls=made.tls(client_ca=True))
    ours = {"cert": made["client.pem"], "cert_key": made["client.key"]}
    assert "give --cert" in complaint(Daemon(server.url, ca=made["authority.pem"]))
    assert Daemon(server.url, ca=made["authority.pem"], **ours).scrape().samples
    server.close()
    server = Server(Metrics(), "127.0.0.1", 0)
    assert "write http://" in complaint(Daemon(server.url.replace("http", "https")))
    server.close()
    for flag, given in (
        ("--ca", {"ca": made["client.key"]}),
        ("--cert", {"cert": tmp_path / "no"}),
    ):
        with pytest.raises(ConfigError, match=f"{flag} .*; name another"):
            Daemon(server.url, **given)
    with pytest.raises(ConfigError, match=r"--cert-key .*: give the certificate too, by --cert"):
        Daemon(server.url, cert_key=made["client.key"])


def test_where_a_password_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "password"
    file.write_text("secret\n")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(ConfigError, match=f"no password; set {PASSWORD}, or give --password-file"):
        password_of("ann", None)
    monkeypatch.setenv(PASSWORD, "other")
    assert password_of("ann", None) == "other"
    assert password_of("ann", file) == "secret"
    with pytest.raises(ConfigError, match=r"none: No such file or directory; name another"):
        password_of("ann", tmp_path / "none")
