import base64
import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from streamlstm import web as room
from streamlstm.metrics import Metrics
from streamlstm.web import (
    LONGEST_REQUEST,
    MOST_CLIENTS,
    MetricsError,
    Server,
    Tls,
    Users,
    hash_password,
)
from tests.daemon import get


def test_healthy_at_once_and_ready_when_told(server: Server) -> None:
    assert get(server, "/-/healthy")[0] == 200
    assert get(server, "/-/ready")[0] == 503
    server.ready = True
    assert get(server, "/-/ready")[0] == 200


@pytest.mark.parametrize("path", ["/", "/metricsx", "/-/", "/../etc/passwd"])
def test_other_paths_do_not_exist(server: Server, path: str) -> None:
    assert get(server, path)[0] == 404


def test_a_port_in_use_is_one_line_with_the_mend(server: Server) -> None:
    port = server.port
    with pytest.raises(MetricsError, match=r"in use; set metrics\.host and metrics\.port") as error:
        Server(Metrics(), "127.0.0.1", port)
    assert f"127.0.0.1:{port}" in str(error.value)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_of_another_machine(host: str) -> None:
    with pytest.raises(MetricsError, match=r"set metrics\.host"):
        Server(Metrics(), host, 0)


# clients that nobody can choose


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def read(client: socket.socket) -> bytes:
    """All that comes until the other end hangs up."""
    found = b""
    while came := client.recv(65_536):
        found += came
    return found


def ask(server: Server, *parts: bytes) -> bytes:
    with connect(server) as client:
        for part in parts:
            client.sendall(part)
        return read(client)


def test_the_head_of_an_answer(server: Server) -> None:
    head, _, body = ask(server, b"GET /metrics?a=b HTTP/1.1\r\nHost: a\r\n\r\n").partition(
        b"\r\n\r\n"
    )
    status, *fields = head.decode().split("\r\n")
    headers = dict(field.split(": ", 1) for field in fields)
    assert status == "HTTP/1.1 200 OK"
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert int(headers["Content-Length"]) == len(body) > 0
    assert headers["Connection"] == "close"
    assert parsedate_to_datetime(headers["Date"]).tzinfo


def test_head_gives_the_head_alone(server: Server) -> None:
    answer = ask(server, b"HEAD /metrics HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n")
    assert b"Content-Length: 0" not in answer


def test_a_request_may_come_in_pieces(server: Server) -> None:
    request = b"GET /-/healthy HTTP/1.1\r\nHost: a\r\n\r\n"
    with connect(server) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request:
            client.sendall(bytes([byte]))
        assert read(client).endswith(b"\r\n\r\nhealthy\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"DELETE / HTTP/1.1\r\n\r\n", b"405"),
        (b"GET /metrics\r\n\r\n", b"400"),
        (b"GET  /metrics HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/2\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x00\xff\r\n\r\n", b"400"),
        (b"\r\n\r\n", b"400"),
        (b"GET /" + b"x" * (LONGEST_REQUEST - 5), b"400"),
        (b"GET /metrics HTTP/1.1\r\nCookie: ".ljust(LONGEST_REQUEST, b"x"), b"431"),
    ],
)
def test_what_is_no_request_is_answered_so(server: Server, request_: bytes, status: bytes) -> None:
    assert ask(server, request_).split(b" ")[1] == status
    assert get(server, "/-/healthy")[0] == 200


def test_a_scrape_that_fails_is_an_answer_and_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refresh() -> None:
        raise RuntimeError("broken")

    metrics = Metrics()
    metrics.refresh = refresh
    server = Server(metrics, "127.0.0.1", 0)
    assert get(server, "/metrics")[0] == 500
    assert get(server, "/-/healthy")[0] == 200
    server.close()
    assert "broken" in caplog.text


@pytest.mark.parametrize("said", [b"", b"GET /metrics HTTP/1.1\r\n"])
def test_idle_connections_take_no_thread_and_nobodys_place(server: Server, said: bytes) -> None:
    threads = threading.active_count()
    idle = [connect(server) for _ in range(200)]
    for client in idle:
        client.sendall(said)
    assert get(server, "/metrics")[0] == 200
    assert threading.active_count() == threads
    for client in idle[: -MOST_CLIENTS - 1]:  # the oldest made room
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    for client in idle:
        client.close()


def test_a_slow_client_is_cut_off_and_nobody_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "PATIENCE", 0.2)
    large = Metrics()
    large.model = {"model": "x" * 20_000_000}
    server = Server(large, "127.0.0.1", 0)
    with connect(server) as mute, connect(server) as deaf:
        deaf.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")  # and never reads it
        assert get(server, "/-/healthy")[0] == 200
        assert mute.recv(1) == b""
        with contextlib.suppress(ConnectionResetError):
            assert len(read(deaf)) < 20_000_000
    server.close()


def test_close_hangs_up_and_frees_the_port() -> None:
    server = Server(Metrics(), "127.0.0.1", 0)
    with connect(server) as client:
        get(server, "/-/healthy")
        server.close()
        assert client.recv(1) == b""
    Server(Metrics(), "127.0.0.1", server.port).close()


# TLS and passwords


class Certificates:
    """Made by OpenSSL: an authority, and what it signed, each ``name.pem`` with ``name.key``."""

    def __init__(self, folder: Path) -> None:
        if not shutil.which("openssl"):
            pytest.skip("openssl is not installed")
        self.folder = folder
        self._openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
                      " -subj /CN=authority -keyout authority.key -out authority.pem")  # fmt: skip
        for name in ("server", "renewed", "client"):
            self._openssl("req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
                          f" -subj /CN={name} -keyout {name}.key -out {name}.csr")  # fmt: skip
            (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
            self._openssl(f"x509 -req -in {name}.csr -CA authority.pem -CAkey authority.key -days 2"
                          f" -CAcreateserial -extfile names -out {name}.pem")  # fmt: skip

    def _openssl(self, command: str) -> None:
        subprocess.run(["openssl", *command.split()], cwd=self.folder, check=True,
                       capture_output=True)  # fmt: skip

    def __getitem__(self, name: str) -> Path:
        return self.folder / name

    def tls(self, *, client_ca: bool = False) -> Tls:
        ca = self["authority.pem"] if client_ca else None
        return Tls(self["server.pem"], self["server.key"], ca)

    def trusting(self, client: str = "") -> ssl.SSLContext:
        """What a client makes of the authority alone."""
        context = ssl.create_default_context(cafile=self["authority.pem"])
        if client:
            context.load_cert_chain(self[f"{client}.pem"], self[f"{client}.key"])
        return context


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def get_by_tls(server: Server, context: ssl.SSLContext, path: str = "/metrics") -> bytes:
    with urllib.request.urlopen(server.url + path, timeout=30, context=context) as answer:
        return answer.read()


def test_https_for_a_client_that_trusts_the_authority(certificates: Certificates) -> None:
    large = Metrics()
    large.model = {"model": "x" * 3_000_000}  # more than the buffers on the way
    server = Server(large, "127.0.0.1", 0, tls=certificates.tls())
    assert server.url.startswith("https://")
    for _ in range(3):
        assert b"x" * 3_000_000 in get_by_tls(server, certificates.trusting())
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        get_by_tls(server, ssl.create_default_context())
    server.close()


def test_tls_tells_the_client_that_nothing_was_cut_off(certificates: Certificates) -> None:
    server = Server(Metrics(), "127.0.0.1", 0, tls=certificates.tls())
    with (
        connect(server) as plain,
        certificates.trusting().wrap_socket(plain, server_hostname="127.0.0.1",
                                            suppress_ragged_eofs=False) as client,
    ):  # fmt: skip
        client.sendall(b"GET /-/healthy HTTP/1.1\r\n")
        client.sendall(b"Host: a\r\n\r\n")
        found = b""
        while came := client.recv(1000):  # SSLEOFError, were the connection just closed
            found += came
    assert found.endswith(b"\r\n\r\nhealthy\n")
    server.close()


@pytest.mark.parametrize("said", [b"", b"GET /metrics HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\0\1"])
def test_who_speaks_no_tls_is_hung_up_on_and_keeps_nobody_waiting(
    certificates: Certificates, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "PATIENCE", 0.5)
    server = Server(Metrics(), "127.0.0.1", 0, tls=certificates.tls())
    with connect(server) as mute:
        mute.sendall(said)
        assert b"healthy" in get_by_tls(server, certificates.trusting(), "/-/healthy")
        with contextlib.suppress(ConnectionResetError):
            assert b"HTTP" not in read(mute)
    server.close()


def test_old_versions_of_tls_are_refused(certificates: Certificates) -> None:
    server = Server(Metrics(), "127.0.0.1", 0, tls=certificates.tls())
    old = certificates.trusting()
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(urllib.error.URLError):
        get_by_tls(server, old)
    server.close()


def test_clients_may_be_asked_for_a_certificate(certificates: Certificates) -> None:
    server = Server(Metrics(), "127.0.0.1", 0, tls=certificates.tls(client_ca=True))
    assert b"streamlstm_" in get_by_tls(server, certificates.trusting("client"))
    with pytest.raises(OSError, match=r"(?i)certificate|reset|EOF|pipe"):
        get_by_tls(server, certificates.trusting())
    server.close()


def test_a_renewed_certificate_is_shown_without_a_restart(
    certificates: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shown = tmp_path / "shown.pem"
    key = tmp_path / "shown.key"
    for source, target in (("server.pem", shown), ("server.key", key)):
        shutil.copy(certificates[source], target)
    server = Server(Metrics(), "127.0.0.1", 0, tls=Tls(shown, key))

    def name() -> str:
        with (
            connect(server) as plain,
            certificates.trusting().wrap_socket(plain, server_hostname="127.0.0.1") as client,
        ):
            said = client.getpeercert()
            assert said
            return dict(pair for (pair,) in said["subject"])["commonName"]

    assert name() == "server"
    shown.write_text("half written")
    assert name() == "server"
    assert "the certificate of before is kept" in caplog.text
    shutil.copy(certificates["renewed.pem"], shown)
    shutil.copy(certificates["renewed.key"], key)
    assert name() == "renewed"
    server.close()


def test_bad_certificates_are_one_line_with_the_mend(
    certificates: Certificates, tmp_path: Path
) -> None:
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("")
    subprocess.run(["openssl", "ec", "-aes128", "-passout", "pass:secret", "-in",
                    certificates["server.key"], "-out", tmp_path / "locked.key"],
                   check=True, capture_output=True)  # fmt: skip
    for cert, key, ca in (
        (tmp_path / "missing.pem", certificates["server.key"], None),
        (nothing, certificates["server.key"], None),
        (certificates["server.pem"], certificates["client.key"], None),
        (certificates["server.pem"], tmp_path / "locked.key", None),
        (certificates["server.pem"], certificates["server.key"], nothing),
    ):
        with pytest.raises(MetricsError, match=r"name (a )?PEM file") as error:
            Tls(cert, key, ca)
        assert "\n" not in str(error.value)


PASSWORD = "correct horse: battery staple é"
HASH = hash_password(PASSWORD)


@pytest.fixture
def guarded() -> Iterator[Server]:
    server = Server(Metrics(), "127.0.0.1", 0, users={"prometheus": HASH})
    yield server
    server.close()


def get_as(server: Server, user: str, password: str, path: str = "/metrics") -> tuple[int, str]:
    said = base64.b64encode(f"{user}:{password}".encode())
    answer = ask(
        server, b"GET %s HTTP/1.1\r\nauthorization: Basic %s\r\n\r\n" % (path.encode(), said)
    )
    return int(answer.split()[1]), answer.decode()


def test_who_has_a_name_and_a_password_may_ask(guarded: Server) -> None:
    for _ in range(2):
        status, text = get_as(guarded, "prometheus", PASSWORD)
        assert status == 200
        assert "streamlstm_" in text


def test_a_client_of_the_standard_library_may_ask(guarded: Server) -> None:
    asker = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    asker.add_password(None, guarded.url, "prometheus", PASSWORD)
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(asker))
    with opener.open(f"{guarded.url}/-/healthy", timeout=30) as answer:
        assert answer.read() == b"healthy\n"


@pytest.mark.parametrize("path", ["/metrics", "/-/healthy", "/-/ready", "/other"])
def test_nobody_else_learns_anything(guarded: Server, path: str) -> None:
    answer = ask(guarded, b"GET %s HTTP/1.1\r\n\r\n" % path.encode())
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b'WWW-Authenticate: Basic realm="streamlstm"' in answer
    assert b"streamlstm_" not in answer


@pytest.mark.parametrize(
    "said",
    [b"", b"Basic", b"Basic !!!!", b"Basic YQ", b"Basic YQ==", b"Basic " + b"=" * 100,
     b"Bearer cHJvbWV0aGV1czp4", b"Basic " + base64.b64encode(b"prometheus"),
     b"\xff\xfe\0", b"Basic " + base64.b64encode(b"\xff:\xff")],
)  # fmt: skip
def test_what_is_no_name_and_password_is_refused(guarded: Server, said: bytes) -> None:
    answer = ask(guarded, b"GET /metrics HTTP/1.1\r\nAuthorization: %s\r\n\r\n" % said)
    assert answer.startswith(b"HTTP/1.1 401 ")


def test_guessing_is_slow_and_keeps_out_nobody_who_was_let_in(
    guarded: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "GUESS_EVERY", 1000.0)
    assert get_as(guarded, "prometheus", PASSWORD)[0] == 200
    assert get_as(guarded, "prometheus", "guess")[0] == 401
    began = time.monotonic()
    for number in range(100):
        assert get_as(guarded, f"user {number}", "guess")[0] == 429
    assert time.monotonic() - began < 5  # a hash takes 0.2 s
    assert get_as(guarded, "prometheus", PASSWORD)[0] == 200


def test_a_guess_of_a_name_takes_as_long_as_one_of_a_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same hash is computed, whoever is named."""
    hashed = []
    scrypt = room._scrypt
    monkeypatch.setattr(room, "_scrypt", lambda *a: (hashed.append(a[2:]), scrypt(*a))[1])
    monkeypatch.setattr(room, "GUESS_EVERY", 0.0)
    users = Users({"prometheus": HASH})
    hashed.clear()
    for name in ("prometheus", "nobody"):
        said = base64.b64encode(f"{name}:guess".encode())
        request = b"GET / HTTP/1.1\r\nAuthorization: Basic %s\r\n\r\n" % said
        assert users.admit(request).value == 401
    assert hashed[0] == hashed[1]
    assert len(hashed) == 2


def test_hashes_are_salted_and_say_their_cost() -> None:
    assert hash_password("a") != hash_password("a")
    assert HASH.startswith("$scrypt$ln=14,r=8,p=5$")
    assert PASSWORD not in HASH


@pytest.mark.parametrize(
    "text",
    ["", PASSWORD, "$2y$10$abcdefghijklmnopqrstuv", HASH + "$", HASH.replace("ln=14", "ln=40"),
     HASH.replace("ln=14", "ln=99999"), HASH.replace("r=8", "r=0"),
     HASH.replace("p=5", "p=999")],
    ids=["none", "plain", "other", "longer", "cost", "high cost", "no block", "parallel"],
)  # fmt: skip
def test_what_is_no_hash_is_one_line_with_the_mend(text: str) -> None:
    with pytest.raises(MetricsError, match="streamlstm keys --password prometheus") as error:
        Users({"prometheus": text})
    assert "\n" not in str(error.value)
