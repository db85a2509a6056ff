"""CURVE for sockets (ZeroMQ RFCs 25, 26, 27): key files, and who may connect.

Files, handshakes and the list of those who may are pyzmq's and libzmq's: a key file is a
certificate as :mod:`zmq.auth` writes it, ``NAME.key`` to be given away, ``NAME.key_secret`` not.
"""

import contextlib
import logging
import os
import socket
import struct
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import zmq
import zmq.auth

from streamlstm.files import mend_of

HANDSHAKE = 5.0
"""Seconds that a peer may take for its handshake."""
AGAIN = 1.0
"""Seconds after which files of clients are looked at though none came or went: one may be new."""
_DOMAIN = "streamlstm"
_REFUSED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)

_COME = zmq.EVENT_ACCEPTED | zmq.EVENT_CONNECTED
_EVENT = struct.Struct("=Hi")
"""What zmq_socket_monitor(3) tells: an event, and its value."""

_log = logging.getLogger("streamlstm")


class SecurityError(ValueError):
    """A key that cannot be made or used; the message is one line and says the mend."""


class Keys(NamedTuple):
    """A key pair, each 40 characters of Z85 (ZeroMQ RFC 32)."""

    public: bytes
    secret: bytes = b""


def make_keys(path: Path) -> tuple[Path, Path]:
    """Make a key pair: ``path`` + ``.key``, for all to read, and ``.key_secret``, for nobody else.

    Raises:
        SecurityError: one of the files is there already, or cannot be written.
    """
    if not path.name:
        raise SecurityError(f"{path}: name the keys, as in 'streamlstm keys server'")
    files = [path.with_name(f"{path.name}{ending}") for ending in (".key", ".key_secret")]
    try:
        for file in files:
            if file.exists():
                raise SecurityError(f"{file}: is there already, is not overwritten; choose a name")
        # a folder of mode 0700, so that nobody sees a file before its mode is set
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".keys-") as folder:
            made = [Path(each) for each in zmq.auth.create_certificates(folder, path.name)]
            for each, mode in zip(made, (0o644, 0o600), strict=True):
                each.chmod(mode)
            for each, file in zip(made, files, strict=True):
                os.link(each, file)  # unlike a rename it never overwrites
    except OSError as error:
        mend = mend_of(error, "choose a folder to write to")
        raise SecurityError(f"{path}: {error.strerror}; {mend}") from None
    return files[0], files[1]


def load_keys(path: Path, *, secret: bool) -> Keys:
    """Read a key file; with ``secret``, of one that holds the secret key too.

    Raises:
        SecurityError: it is missing, no key file, or holds no secret key where one is wanted.
    """
    try:
        public, hidden = zmq.auth.load_certificate(path)
        if secret and hidden is None:
            raise SecurityError(f"{path}: holds no secret key; name the file NAME.key_secret")
        if (secret and zmq.curve_public(hidden or b"") != public) or len(public) != 40:
            raise ValueError
    except SecurityError:
        raise
    except OSError as error:
        said = error.strerror or "no such key file"
        mend = mend_of(error, "make one with 'streamlstm keys'")
        raise SecurityError(f"{path}: {said}; {mend}") from None
    except ValueError:
        raise SecurityError(
            f"{path}: not a key file; make one with 'streamlstm keys', or copy it again"
        ) from None
    if hidden and path.stat().st_mode & 0o077:
        _log.warning("%s: others than its owner may read this secret key; chmod 600", path)
    return Keys(public, (hidden or b"") if secret else b"")


class _Admitted:
    """Who may connect."""

    def __init__(self) -> None:
        self.keys: frozenset[bytes] = frozenset()

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether the client of this public key may; asked by the authenticator's thread."""
        return key in self.keys


class Curve:
    """What the sockets of one context say and ask in their handshakes.

    Without keys nothing: then whoever reaches an endpoint may speak there.
    """

    def __init__(
        self, *, keys: Path | None = None, servers: Mapping[str, Path] = MappingProxyType({})
    ) -> None:
        """Read all keys.

        Args:
            keys: our secret key: endpoints bound demand that clients know our public key, and
                those who are connected to learn it; None: a fresh one for the latter.
            servers: key files by endpoint that is connected to.

        Raises:
            SecurityError: a file cannot be used.
        """
        self.keys = load_keys(keys, secret=True) if keys else None
        self._ours = self.keys or Keys(*zmq.curve_keypair())
        self._servers = {
            endpoint: load_keys(path, secret=False).public for endpoint, path in servers.items()
        }
        self._authenticator: zmq.auth.Authenticator | None = None
        self._clients: Path | None = None
        self._admitted = _Admitted()
        self._seen: list[tuple[Path, int, int]] = []
        self._changed, self._again = 0, 0.0
        self._unusable = frozenset[str]()

    def admit(self, context: "zmq.Context[zmq.Socket[bytes]]", clients: Path) -> None:
        """Let nobody else connect to what the context's sockets will bind.

        Args:
            context: of the sockets; a thread of its own asks for nothing but keys there.
            clients: folder of their key files, ``*.key``.

        Raises:
            SecurityError: the folder is not there, or a file in it is no key file.
        """
        if not clients.is_dir():
            raise SecurityError(f"{clients}: no such folder; make it, and put NAME.key files in it")
        files = sorted(clients.glob("*.key"))
        for file in files:
            load_keys(file, secret=False)
        if not files:
            _log.warning("%s: no client's NAME.key is in it, so none may connect", clients)
        # brings asyncio along, for which nobody else has to wait
        from zmq.auth.thread import ThreadAuthenticator

        self._clients = clients
        self._authenticator = ThreadAuthenticator(context, log=_log.getChild("curve"))
        self._authenticator.start()
        self._authenticator.configure_curve_callback(_DOMAIN, self._admitted)
        self.refresh()

    def before_bind(self, socket: "zmq.Socket[bytes]") -> None:
        """Have the endpoints that ``socket`` binds from here on ask for keys, if there are any."""
        if not self.keys:
            return
        socket.curve_publickey, socket.curve_secretkey = self.keys
        socket.curve_server = True
        if self._authenticator:
            socket.zap_domain = _DOMAIN.encode()
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # nobody to ask: nobody may

    def before_connect(self, socket: "zmq.Socket[bytes]", endpoint: str) -> None:
        """Have ``socket`` show our key there, and trust in the server's alone, if it is known."""
        if endpoint in self._servers:
            socket.curve_publickey, socket.curve_secretkey = self._ours
            socket.curve_serverkey = self._servers[endpoint]
        else:
            socket.curve_server = False  # and no client either: no CURVE

    def refresh(self) -> bool:
        """Look whether files were put into the folder of clients, or taken from it.

        True where one was taken: it has its connections still, which nobody can tell apart.
        """
        if self._clients is None:
            return False
        try:
            changed = self._clients.stat().st_mtime_ns
            if changed == self._changed and time.monotonic() < self._again:
                return False
            seen = [_state_of(file) for file in sorted(self._clients.glob("*.key"))]
        except OSError:
            return False
        self._changed, self._again = changed, time.monotonic() + AGAIN
        if seen == self._seen:
            return False
        known, unusable, before = set[bytes](), set[str](), self._admitted.keys
        for file, *_ in seen:
            try:
                known.add(load_keys(file, secret=False).public)
            except SecurityError as error:  # maybe it is being written
                unusable.add(str(error))
        for said in unusable - self._unusable:
            _log.warning("%s", said)
        self._admitted.keys, self._unusable = frozenset(known), frozenset(unusable)
        self._seen = seen
        return bool(before - known)

    def close(self) -> None:
        """Decide of nobody any more; before the context ends."""
        if self._authenticator:
            self._authenticator.stop()
            self._authenticator = None


def _state_of(file: Path) -> tuple[Path, int, int]:
    """What changes where a file does."""
    try:
        found = file.stat()
    except OSError:  # gone meanwhile, say
        return file, 0, 0
    return file, found.st_mtime_ns, found.st_size


class Doors:
    """Knows those who come to sockets, and can send them away, which libzmq does of nobody.

    Attributes:
        refused: connections that ended with the handshake.
        ended: connections ended here.
    """

    def __init__(
        self, context: "zmq.Context[zmq.Socket[bytes]]", sockets: Iterable["zmq.Socket[bytes]"]
    ) -> None:
        """Watch ``sockets``, before they have endpoints.

        :meth:`look` often: what was told piles up until then. (Were there a limit, libzmq's own
        threads would wait at it.)
        """
        self.refused = self.ended = 0
        self._sockets = [*sockets]
        # by socket and file descriptor, in their order: whether they came. What sockets tell is not
        # in one order: a descriptor may be another's before it is heard that it was closed
        self._inside: dict[tuple[int, int], bool] = {}
        self._told: list[zmq.Socket[bytes]] = []
        for number, each in enumerate(self._sockets):
            endpoint = f"inproc://doors-{id(self)}-{number}"
            each.monitor(endpoint, _REFUSED | _COME | zmq.EVENT_DISCONNECTED)
            told = context.socket(zmq.PAIR)
            told.rcvhwm = 0
            told.connect(endpoint)
            self._told.append(told)

    def wait(self, seconds: float, fd: int) -> None:
        """Until somebody comes or leaves, or there is something to read of ``fd``."""
        poller = zmq.Poller()
        for each in (*self._told, fd):
            poller.register(each, zmq.POLLIN)
        poller.poll(round(1000 * seconds))

    def look(self, most: int) -> None:
        """Count what was told; end the latest connections where more than ``most`` came."""
        for number, told in enumerate(self._told):
            with contextlib.suppress(zmq.Again):
                while True:
                    self._hear(number, *_EVENT.unpack(told.recv_multipart(zmq.NOBLOCK)[0]))
        for connection in [each for each, came in self._inside.items() if came][most:]:
            self._end(connection)

    def end_all(self) -> None:
        """End all connections; who wants to may come again."""
        for connection in [*self._inside]:
            self._end(connection)

    def _end(self, connection: tuple[int, int]) -> None:
        del self._inside[connection]
        self.ended += 1
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection[1])) as peer:
            # libzmq sees the end, lets go of what it had for them, and closes, by a reset: who
            # waits for room to send more would not hear of it otherwise
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.shutdown(socket.SHUT_RDWR)

    def _hear(self, number: int, event: int, value: int) -> None:
        connection = number, value
        if event & _COME:
            self._inside.pop(connection, None)  # what was there before has left, whatever we heard
            self._inside[connection] = event == zmq.EVENT_ACCEPTED
        elif event == zmq.EVENT_DISCONNECTED:
            self._inside.pop(connection, None)
        else:
            self.refused += 1

    def close(self) -> None:
        """Look no more; in the thread of the sockets."""
        for each, told in zip(self._sockets, self._told, strict=True):
            if not each.closed:
                each.disable_monitor()  # first, or libzmq would wait for somebody to listen
            told.close(0)
