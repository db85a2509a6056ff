"""ZeroMQ sockets: SUB in, XPUB out. The thread that uses one creates it."""

import contextlib
import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

import zmq

WELCOME = b"streamlstm.welcome"
"""What a subscriber is sent once it is connected, if it subscribed to that too."""
_CUT_OFF = 16
"""Frames of so many times the limit are not even read: their sender is disconnected."""
_MENDS: Mapping[int, str] = MappingProxyType(
    {
        errno.EADDRINUSE: "stop what listens there, or choose another port",
        errno.EADDRNOTAVAIL: "bind to an address of this machine, or connect instead",
        errno.ENODEV: "bind to an address of this machine, or connect instead",
        errno.EINVAL: "an endpoint is tcp://address:port or ipc://path",
        errno.EPROTONOSUPPORT: "an endpoint is tcp://address:port or ipc://path",
        errno.ENOENT: "make its folder first",
        errno.EACCES: "choose a port or folder that this user may use",
    }
)


class TransportError(OSError):
    """An endpoint that cannot be used; the message is one line and says the mend."""


class Receiver:
    """A SUB socket: messages from every publisher, each in turn."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        *,
        bind: Iterable[str] = (),
        connect: Iterable[str] = (),
        topics: Sequence[str] = (),
        hwm: int = 100_000,
        max_frame: int = 65_536,
    ) -> None:
        """Open the endpoints; ``hwm`` messages may wait for each.

        Raises:
            TransportError: an endpoint is malformed, in use, or not this machine's.
        """
        self.socket = context.socket(zmq.SUB)
        self.socket.rcvhwm = hwm
        self.socket.maxmsgsize = _CUT_OFF * max_frame
        self.socket.linger = 0
        for topic in topics or ("",):
            self.socket.subscribe(topic)
        self.endpoints = _open(self.socket, bind, connect)

    def receive(self, most: int) -> list[list[bytes]]:
        """Take what waits, ``most`` messages at most, as lists of frames; none where none waits."""
        receive, now = self.socket.recv, zmq.NOBLOCK
        messages: list[list[bytes]] = []
        with contextlib.suppress(zmq.Again):
            while len(messages) < most:
                frame = receive(now, copy=False)
                message = [frame.bytes]
                while frame.more:
                    frame = receive(now, copy=False)
                    message.append(frame.bytes)
                messages.append(message)
        return messages

    def close(self) -> None:
        """Let go of what still waits, and of the endpoints."""
        self.socket.close()


class Publisher:
    """An XPUB socket: each message goes to those who subscribed to how it begins.

    A subscriber that does not keep up loses what is sent while ``hwm`` messages wait for it; it
    never slows this end or another one.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        *,
        bind: Iterable[str] = (),
        connect: Iterable[str] = (),
        hwm: int = 100_000,
    ) -> None:
        """Open the endpoints.

        Raises:
            TransportError: an endpoint is malformed, in use, or not this machine's.
        """
        self.socket = context.socket(zmq.XPUB)
        self.socket.sndhwm = hwm
        self.socket.linger = 0
        self.socket.maxmsgsize = 4096  # of what comes in here: subscriptions
        self.socket.setsockopt(zmq.XPUB_WELCOME_MSG, WELCOME)
        self.endpoints = _open(self.socket, bind, connect)

    def send(self, messages: Iterable[Sequence[bytes]]) -> None:
        """Send each message, a sequence of frames; returns at once."""
        send, more = self.socket.send, zmq.SNDMORE
        for *first, last in messages:
            for frame in first:
                send(frame, more)
            send(last)

    def forget_subscriptions(self) -> None:
        """Throw away the notices of new subscriptions, which would pile up otherwise."""
        with contextlib.suppress(zmq.Again):
            while True:
                self.socket.recv(zmq.NOBLOCK)

    def close(self, linger: float = 0) -> None:
        """Leave; subscribers have ``linger`` seconds to take what waits for them."""
        self.socket.close(round(1000 * linger))


def _open(
    socket: "zmq.Socket[bytes]", bind: Iterable[str], connect: Iterable[str]
) -> tuple[str, ...]:
    """Open all endpoints and name them, wildcards resolved."""
    endpoints = []
    try:
        for endpoint in bind:
            _try(socket.bind, endpoint)
            endpoints.append(socket.get_string(zmq.LAST_ENDPOINT))
        for endpoint in connect:
            _try(socket.connect, endpoint)
            endpoints.append(endpoint)
    except TransportError:
        socket.close(0)
        raise
    return tuple(endpoints)


def _try(open_endpoint: Callable[[str], object], endpoint: str) -> None:
    try:
        open_endpoint(endpoint)
    except zmq.ZMQError as error:
        code = error.errno or 0
        mend = _MENDS.get(code, "check the endpoint")
        raise TransportError(
            f"{endpoint or 'an empty endpoint'}: {zmq.strerror(code)}; {mend}"
        ) from None
