"""A small HTTP server, for Prometheus and people: TLS and basic authentication where asked for."""

import base64
import binascii
import contextlib
import hashlib
import hmac
import logging
import os
import re
import secrets
import ssl
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from socket import AF_INET, AF_INET6, SO_REUSEADDR, SOL_SOCKET, socket
from threading import Thread
from types import MappingProxyType
from typing import NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from streamlstm.metrics import Metrics

MOST_CLIENTS = 32
"""Connections kept at once; the oldest makes room for one more."""
PATIENCE = 5.0
"""Seconds that a client may take from connecting to having read its answer."""
LONGEST_REQUEST = 1 << 14
"""Bytes of a request, all its headers included."""
GUESS_EVERY = 1.0
"""Seconds from one password that has to be hashed to the next."""
_RECORD = 1 << 14
"""Bytes of a TLS record at most (RFC 8446): nothing read so stays behind in the library."""
_COST = 14, 8, 5
"""Of scrypt: log2(N), r, p, as OWASP's Password Storage Cheat Sheet has it for 16 MiB; 0.2 s."""
_MEMORY = 1 << 26
"""Bytes that a hash may take."""
_HASH = re.compile(r"\$scrypt\$ln=(\d\d?),r=(\d\d?),p=(\d\d?)\$([\w+/-]+)\$([\w+/-]+)", re.ASCII)

_log = logging.getLogger("streamlstm")


class MetricsError(OSError):
    """An address, certificate or password that is of no use; one line that says the mend."""


def hash_password(password: str) -> str:
    """A salted hash of it, by scrypt (RFC 7914), as a PHC string.

    Prometheus' own has bcrypt; this is in the standard library, and costs who guesses memory too.
    """
    salt = secrets.token_bytes(16)
    log_n, r, p = _COST
    code = _encode(_scrypt(password.encode(), salt, *_COST))
    return f"$scrypt$ln={log_n},r={r},p={p}${_encode(salt)}${code}"


def _scrypt(password: bytes, salt: bytes, log_n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(password, salt=salt, n=1 << log_n, r=r, p=p, maxmem=_MEMORY, dklen=32)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


class Users:
    """Who may ask, by name and password."""

    def __init__(self, hashes: Mapping[str, str]) -> None:
        """Keep the hashes, as :func:`hash_password` makes them.

        Raises:
            MetricsError: one is no such hash.
        """
        self._hashes = {name.encode(): _parse(name, text) for name, text in hashes.items()}
        self._nobody = _COST, secrets.token_bytes(16), secrets.token_bytes(32)
        self._key = secrets.token_bytes(32)
        self._known: set[bytes] = set()
        self._next_guess = 0.0

    def admit(self, request: bytes) -> HTTPStatus:
        """Whether a request is of one of them: OK, UNAUTHORIZED, or TOO_MANY_REQUESTS.

        A password that was right is remembered, as a keyed hash; another one costs a hash made to
        be slow, so one is tried in ``GUESS_EVERY`` seconds.
        """
        if not self._hashes:
            return HTTPStatus.OK
        said = re.search(rb"\r\nauthorization:[ \t]*basic[ \t]+([\w+/=-]*)", request, re.IGNORECASE)
        try:
            name, colon, password = base64.b64decode(said[1] if said else b"").partition(b":")
        except binascii.Error:
            colon = b""
        if not colon:
            return HTTPStatus.UNAUTHORIZED
        digest = hmac.digest(self._key, name + colon + password, "sha256")
        if digest in self._known:
            return HTTPStatus.OK
        if time.monotonic() < self._next_guess:
            return HTTPStatus.TOO_MANY_REQUESTS
        cost, salt, expected = self._hashes.get(name, self._nobody)
        if hmac.compare_digest(_scrypt(password, salt, *cost), expected) and name in self._hashes:
            self._known.add(digest)
            return HTTPStatus.OK
        self._next_guess = time.monotonic() + GUESS_EVERY
        return HTTPStatus.UNAUTHORIZED


def _parse(name: str, text: str) -> tuple[tuple[int, int, int], bytes, bytes]:
    """Cost, salt and hash."""
    found = _HASH.fullmatch(text)
    mend = f"'streamlstm keys --password {name}' makes one"
    if not found:
        raise MetricsError(f"metrics.users: {name}: not a hash of a password; {mend}")
    log_n, r, p = int(found[1]), int(found[2]), int(found[3])
    try:
        salt, code = (base64.b64decode(part + "=" * (-len(part) % 4)) for part in found.group(4, 5))
        if not (log_n and r and p and 128 * r * ((1 << log_n) + p + 2) <= _MEMORY):
            raise ValueError
    except ValueError:
        raise MetricsError(f"metrics.users: {name}: not a hash to be computed; {mend}") from None
    return (log_n, r, p), salt, code


class Tls:
    """The certificate that a server shows, read again when it was renewed."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        """Read the PEM files; with ``client_ca``, clients have to show a certificate of it.

        Raises:
            MetricsError: one is missing, or they do not fit each other.
        """
        self._files = cert, key
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.options |= ssl.OP_NO_RENEGOTIATION
        self._load()
        if client_ca:
            try:
                self._context.load_verify_locations(client_ca)
            except OSError as error:
                raise MetricsError(
                    f"metrics.client_ca_file: {client_ca}: {error.strerror}; name a PEM file"
                ) from None
            self._context.verify_mode = ssl.CERT_REQUIRED

    def wrap(self, client: socket) -> ssl.SSLSocket:
        """Speak TLS from here on; the handshake is part of the first reading."""
        with contextlib.suppress(OSError):
            if self._changed() != self._seen:
                try:
                    self._load()
                except MetricsError as error:
                    _log.error("%s; the certificate of before is kept", error)
        return self._context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)

    def _changed(self) -> list[int]:
        return [file.stat().st_mtime_ns for file in self._files]

    def _load(self) -> None:
        try:
            self._seen = self._changed()
            self._context.load_cert_chain(*self._files, password=lambda: "")  # never ask for one
        except OSError as error:  # ssl.SSLError too
            said = error.strerror or "not a certificate and its key"
            named = ", ".join(map(str, self._files))
            raise MetricsError(
                f"metrics.cert_file, metrics.key_file: {named}: {said}; name PEM files that belong"
                " together, the key without a passphrase"
            ) from None


class Answer(NamedTuple):
    """What is said to a request."""

    status: HTTPStatus
    body: bytes
    kind: str = "text/plain; version=0.0.4; charset=utf-8"
    headers: str = ""
    """further ones, each a line with its end"""


def listen(host: str, port: int) -> socket:
    """A socket that listens there.

    Raises:
        MetricsError: the port is in use, or the address not this machine's.
    """
    listener = socket(AF_INET6 if ":" in host else AF_INET)
    listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    listener.setblocking(False)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise MetricsError(
            f"metrics on {host}:{port}: {error.strerror}; set metrics.host and metrics.port"
        ) from None
    return listener


class Server:
    """Serves /metrics, /-/healthy and, once ``ready`` is set, /-/ready from a thread of its own.

    One request a connection (RFC 9112), GET or HEAD. One thread serves all clients, so that none
    can take more of the machine than ``MOST_CLIENTS`` requests and answers, nor wait for another
    one that is slow.
    """

    def __init__(
        self,
        metrics: Metrics,
        host: str,
        port: int,
        *,
        tls: Tls | None = None,
        users: Mapping[str, str] = MappingProxyType({}),
        pages: Callable[[bytes, bytes], Answer | None] | None = None,
    ) -> None:
        """Listen on ``host``, at any free port where ``port`` is 0; to ``users``, where named.

        ``pages`` answers, in the server's thread, to paths that are not its own: it is given path
        and query of a request, as they came, and returns None where there is nothing.

        Raises:
            MetricsError: the port is in use, the address not this machine's, or a user's password
                no hash.
        """
        self.ready = False
        self._tls, self._users, self._pages = tls, Users(users), pages
        self.registry = CollectorRegistry()
        self.registry.register(metrics)
        ProcessCollector(registry=self.registry)
        self._listener = listen(host, port)
        address: str = self._listener.getsockname()[0]
        self.port: int = self._listener.getsockname()[1]
        self._private = not users and ip_address(address).is_loopback
        at = f"[{host}]" if ":" in host else host
        self.url = f"http{'s' * bool(tls)}://{at}:{self.port}"
        self._clients: dict[int, _Client] = {}  # by file descriptor, the oldest first
        self._wakeup, self._end = os.pipe()
        self._selector = DefaultSelector()
        self._selector.register(self._listener, EVENT_READ)
        self._selector.register(self._wakeup, EVENT_READ)
        self._thread = Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more, and hang up."""
        os.close(self._end)
        self._thread.join()
        for client in [*self._clients.values()]:
            self._hang_up(client)
        self._listener.close()
        self._selector.close()
        os.close(self._wakeup)

    def _serve(self) -> None:
        while True:
            oldest = next(iter(self._clients.values()), None)
            wait = None if oldest is None else max(0.0, oldest.deadline - time.monotonic())
            ready = [key.fd for key, _ in self._selector.select(wait)]
            if self._wakeup in ready:
                return
            for client in [self._clients[fd] for fd in ready if fd in self._clients]:
                self._attend(client)
            if oldest is not None and time.monotonic() >= oldest.deadline:
                self._hang_up(oldest)
            if self._listener.fileno() in ready:
                self._accept()

    def _accept(self) -> None:
        try:
            accepted = self._listener.accept()[0]
        except OSError:  # of file descriptors, maybe, there are none left: do not spin
            time.sleep(0.1)
            return
        if len(self._clients) == MOST_CLIENTS:
            self._hang_up(next(iter(self._clients.values())))
        accepted.setblocking(False)
        try:
            client = _Client(self._tls.wrap(accepted) if self._tls else accepted)
        except OSError:  # it has left already
            accepted.close()
            return
        self._clients[client.socket.fileno()] = client
        self._selector.register(client.socket, EVENT_READ)

    def _attend(self, client: "_Client") -> None:
        """Read what has come of a request, or send what there is room for of the answer."""
        try:
            if not client.answer:
                came = client.socket.recv(_RECORD)
                client.request += came
                if not came:
                    self._hang_up(client)
                elif b"\r\n\r\n" in client.request or len(client.request) >= LONGEST_REQUEST:
                    client.answer = self._answer(client.request)
                    self._selector.modify(client.socket, EVENT_WRITE)
                return
            client.answer = client.answer[client.socket.send(client.answer) :]
            if not client.answer:
                if isinstance(client.socket, ssl.SSLSocket):
                    with contextlib.suppress(OSError):
                        client.socket.unwrap()  # says that nothing was cut off
                self._hang_up(client)
        except BlockingIOError:
            pass
        except ssl.SSLWantReadError:
            self._selector.modify(client.socket, EVENT_READ)
        except ssl.SSLWantWriteError:
            self._selector.modify(client.socket, EVENT_WRITE)
        except OSError:
            self._hang_up(client)

    def _hang_up(self, client: "_Client") -> None:
        if self._clients.pop(client.socket.fileno(), None):
            self._selector.unregister(client.socket)
            client.socket.close()

    def _answer(self, request: bytes) -> bytes:
        line = request.partition(b"\r\n")[0].split(b" ")
        admitted = self._users.admit(request)
        match line:
            case [_, _, b"HTTP/1.1" | b"HTTP/1.0"] if b"\r\n\r\n" not in request:
                why = b"shorter, please: all the cookies of this host came with it, maybe\n"
                answer = Answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, why)
            case [_, _, b"HTTP/1.1" | b"HTTP/1.0"] if admitted != HTTPStatus.OK:
                answer = Answer(admitted, b"name and password, please\n")
            case [b"GET" | b"HEAD", path, b"HTTP/1.1" | b"HTTP/1.0"]:
                answer = self._look_up(path, request)
            case [_, _, b"HTTP/1.1" | b"HTTP/1.0"]:
                answer = Answer(HTTPStatus.METHOD_NOT_ALLOWED, b"GET or HEAD\n")
            case _:
                answer = Answer(HTTPStatus.BAD_REQUEST, b"HTTP/1.1, please\n")
        status = answer.status
        asked = 'WWW-Authenticate: Basic realm="streamlstm", charset="UTF-8"\r\n'
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\n"
            f"Date: {formatdate(usegmt=True)}\r\n"
            f"Content-Type: {answer.kind}\r\n"
            f"Content-Length: {len(answer.body)}\r\n"
            "Allow: GET, HEAD\r\n"
            f"{asked * (status == HTTPStatus.UNAUTHORIZED)}"
            f"{answer.headers}"
            "Connection: close\r\n\r\n"
        ).encode()
        return head if line[0] == b"HEAD" else head + answer.body

    def _look_up(self, asked: bytes, request: bytes) -> Answer:
        path, _, query = asked.partition(b"?")
        try:
            match path:
                case b"/metrics":
                    return Answer(HTTPStatus.OK, generate_latest(self.registry))
                case b"/-/healthy":
                    return Answer(HTTPStatus.OK, b"healthy\n")
                case b"/-/ready" if self.ready:
                    return Answer(HTTPStatus.OK, b"ready\n")
                case b"/-/ready":
                    return Answer(HTTPStatus.SERVICE_UNAVAILABLE, b"not ready\n")
            if self._pages and self._private and not _asks_by_address(request):
                why = b"ask by the address, or localhost; or set metrics.users\n"
                return Answer(HTTPStatus.MISDIRECTED_REQUEST, why)
            if self._pages and (answer := self._pages(path, query)):
                return answer
        except Exception:
            _log.exception("a scrape failed" if path == b"/metrics" else "an answer failed")
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"see the log\n")
        return Answer(HTTPStatus.NOT_FOUND, b"see /metrics, /-/healthy, /-/ready\n")


def _asks_by_address(request: bytes) -> bool:
    """Whether a browser's page is of this machine: another's may have its own name lead here."""
    found = re.search(rb"\r\nhost:[ \t]*(\[[^\r\n\]]*\]|[^\r\n:]*)", request, re.IGNORECASE)
    name = found[1].decode("latin-1").strip("[] \t").lower() if found else ""
    with contextlib.suppress(ValueError):
        return bool(ip_address(name))
    return name == "localhost"


class _Client:
    """A connection: what it asked so far, or what is still to be sent."""

    def __init__(self, socket: socket) -> None:
        self.socket, self.deadline = socket, time.monotonic() + PATIENCE
        self.request, self.answer = b"", b""
