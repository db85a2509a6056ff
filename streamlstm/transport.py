"""ZeroMQ sockets: SUB or PULL in, XPUB out. The thread that uses one creates it.

pyzmq owns contexts, options and endpoints; batches of messages pass between a socket and an array
in compiled code, which calls the C functions of the very library that pyzmq uses. Where these
cannot be found, pyzmq passes the messages one by one, at a third of the speed.
"""

import contextlib
import ctypes
import errno
import socket as unix
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import llvmlite.binding as llvm
import numpy as np
import zmq
import zmq.backend.cython._zmq
from numba import types
from numpy.typing import NDArray

from streamlstm.endpoints import SUCH, check
from streamlstm.jit import njit
from streamlstm.memory import copy
from streamlstm.placed import placed
from streamlstm.security import HANDSHAKE, Curve
from streamlstm.ticks import FRAMES, Messages

WELCOME = b"streamlstm.welcome"
"""What a subscriber is sent once it is connected, if it subscribed to that too."""
ROOM = 1 << 20
"""Bytes of messages taken at once."""
MESSAGE = 64
"""Bytes of a zmq_msg_t, as zmq.h has it."""
NOTICES = 1000
"""Notices of subscriptions thrown away at once."""
SUBSCRIPTION = 1280
"""Bytes of a subscription, and of the longest message of a handshake; senders of more are
disconnected."""
REPLIES = 1000
"""Messages that wait for each one who asked, at most."""
REQUEST, REQUESTS = 4096, 64
"""Bytes of a request at most, and how many may wait for each requester."""
SUBSCRIPTIONS = 100
"""That wait, of each subscriber: libzmq takes them all at once, in whatever call comes next."""
KEEPALIVE = 60, 10, 6
"""Seconds of silence after which the kernel asks whether a peer's machine is there, and asks again;
how often it does (tcp(7)): after two minutes a connection of one that is gone is closed."""
_CUT_OFF = 16
"""Frames of so many times the limit are not even read: their sender is disconnected."""
_MENDS: Mapping[int, str] = MappingProxyType(
    {
        errno.EADDRINUSE: "stop what listens there, or choose another port",
        errno.EADDRNOTAVAIL: "bind to an address of this machine, or connect instead",
        errno.ENODEV: "bind to an address of this machine, or connect instead",
        errno.EINVAL: SUCH,
        errno.ENOENT: "make its folder first",
        errno.EACCES: "take a port from 1024 on, or let this user into the folder (chown, chmod)",
    }
)
_FUNCTIONS = (
    "zmq_errno",
    "zmq_msg_close",
    "zmq_msg_data",
    "zmq_msg_init",
    "zmq_msg_more",
    "zmq_msg_recv",
    "zmq_msg_size",
    "zmq_poll",
    "zmq_send",
    "zmq_setsockopt",
)


class TransportError(OSError):
    """An endpoint that cannot be used; the message is one line and says the mend."""


class Source(NamedTuple):
    """A socket for compiled code to receive from."""

    socket: int
    messages: Messages
    longest: int
    """bytes of a frame that are kept"""
    part: NDArray[np.int64]
    """(8,) a zmq_msg_t"""


class Sink(NamedTuple):
    """A socket for compiled code to send to."""

    socket: int
    overflows: NDArray[np.int64]
    """(1,)"""
    option: NDArray[np.int32]
    """(2,) off and on"""


@cache
def compiled() -> bool:
    """Whether libzmq's functions were found and made known to compiled code."""
    try:
        library = ctypes.CDLL(zmq.backend.cython._zmq.__file__)  # and what it was linked with
        found = {name: ctypes.cast(library[name], ctypes.c_void_p) for name in _FUNCTIONS}
    except (OSError, AttributeError):
        return False
    for name, address in found.items():
        llvm.add_symbol(name, address.value)
    return True


class Receiver:
    """A SUB or PULL socket: messages from every publisher, each in turn.

    Attributes:
        messages: those received last.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        *,
        kind: Literal["sub", "pull"] = "sub",
        bind: Iterable[str] = (),
        connect: Iterable[str] = (),
        topics: Sequence[str] = (),
        hwm: int = 100_000,
        max_frame: int = 65_536,
        most: int = 1024,
        curve: Curve | None = None,
    ) -> None:
        """Open the endpoints; ``hwm`` messages may wait for each, ``most`` are taken at once.

        Raises:
            TransportError: an endpoint is malformed, in use, or not this machine's.
        """
        self.socket = _socket(context, zmq.SUB if kind == "sub" else zmq.PULL)
        self.socket.rcvhwm = hwm
        self.socket.maxmsgsize = max(SUBSCRIPTION, _CUT_OFF * max_frame)
        self.socket.linger = 0
        if kind == "sub":
            for topic in topics or ("",):
                self.socket.subscribe(topic)
        self.messages = Messages.room(most, max(ROOM, FRAMES * (max_frame + 1)))
        part = np.zeros(MESSAGE // 8, np.int64)
        self.source = placed(Source(self.socket.underlying, self.messages, max_frame + 1, part))
        self._receive = self._drain if compiled() else self._receive_one_by_one
        self._curve = curve
        self.endpoints: tuple[str, ...] = ()
        self.open(bind, connect)

    def open(self, bind: Iterable[str] = (), connect: Iterable[str] = ()) -> None:
        """Open further endpoints.

        Raises:
            TransportError: as :class:`Receiver`.
        """
        self.endpoints += _open(self.socket, bind, connect, self._curve)

    def receive(self, most: int) -> int:
        """Take what waits to :attr:`messages`, ``most`` at most, and return how many.

        Of a message, ``FRAMES`` frames are kept, and of a frame one byte more than ``max_frame``.
        There may be fewer than wait, where they are large; none only where none waits.
        """
        return self._receive(min(most, len(self.messages.first) - 1))

    def _drain(self, most: int) -> int:
        got = drain(self.source, most)
        if got < 0:
            raise zmq.ZMQError(-got)
        return got

    def _receive_one_by_one(self, most: int) -> int:
        data, frames, first = self.messages
        longest = self.source.longest
        count = frame = at = 0
        while count < most and at + FRAMES * longest <= len(data):
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            for part in parts[:FRAMES]:
                kept = part[:longest]
                data[at : at + len(kept)] = np.frombuffer(kept, np.uint8)
                at, frame = at + len(kept), frame + 1
                frames[frame] = at
            count += 1
            first[count] = frame
        return count

    def close(self) -> None:
        """Let go of what still waits, and of the endpoints."""
        self.socket.close()


class Responder:
    """A ROUTER socket: each message comes with who sent it, and an answer goes to that one alone.

    Where ``hwm`` messages wait for one, or it is gone, sending fails at once.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        *,
        hwm: int = REPLIES,
        curve: Curve | None = None,
    ) -> None:
        """It has no endpoints yet."""
        self.socket = _socket(context, zmq.ROUTER)
        self.socket.linger = 0
        self.socket.sndhwm, self.socket.rcvhwm = hwm, REQUESTS
        self.socket.maxmsgsize = REQUEST
        # says that a peer is gone, or its pipe full, where it would drop a part unseen
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._curve = curve
        self.endpoints: tuple[str, ...] = ()

    def open(self, bind: Iterable[str]) -> None:
        """Listen.

        Raises:
            TransportError: an endpoint is malformed, in use, or not this machine's.
        """
        self.endpoints += _open(self.socket, bind, (), self._curve)


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
        curve: Curve | None = None,
    ) -> None:
        """Open the endpoints.

        Raises:
            TransportError: an endpoint is malformed, in use, or not this machine's.
        """
        self.socket = _socket(context, zmq.XPUB)
        self.socket.sndhwm = hwm
        self.socket.linger = 0
        self.socket.maxmsgsize = SUBSCRIPTION  # nothing else comes in here
        self.socket.rcvhwm = SUBSCRIPTIONS
        self.socket.setsockopt(zmq.XPUB_WELCOME_MSG, WELCOME)
        self.socket.setsockopt(zmq.XPUB_NODROP, 1)  # says where it would drop
        overflows, option = np.zeros(1, np.int64), np.array([0, 1], np.int32)
        self.sink = placed(Sink(self.socket.underlying, overflows, option))
        self._send = self._flush if compiled() else self._send_one_by_one
        self._curve = curve
        self.endpoints: tuple[str, ...] = ()
        self.open(bind, connect)

    def open(self, bind: Iterable[str] = (), connect: Iterable[str] = ()) -> None:
        """Open further endpoints.

        Raises:
            TransportError: as :class:`Publisher`.
        """
        self.endpoints += _open(self.socket, bind, connect, self._curve)

    @property
    def overflows(self) -> int:
        """Times that a subscriber was found with ``hwm`` messages waiting for it.

        From there on it loses what is sent, until it has read half of them; how many these are
        ZeroMQ tells nobody.
        """
        return int(self.sink.overflows[0])

    def send(self, messages: Messages, count: int) -> None:
        """Send the first ``count`` messages; returns at once."""
        self._send(messages, count)

    def _flush(self, messages: Messages, count: int) -> None:
        error = flush(self.sink, messages, count)
        if error:
            raise zmq.ZMQError(error)

    def _send_one_by_one(self, messages: Messages, count: int) -> None:
        for m in range(count):
            frames = messages.message(m)
            try:
                self.socket.send_multipart(frames, zmq.NOBLOCK)
            except zmq.Again:
                self.sink.overflows[0] += 1
                self.socket.setsockopt(zmq.XPUB_NODROP, 0)
                self.socket.send_multipart(frames, zmq.NOBLOCK)
                self.socket.setsockopt(zmq.XPUB_NODROP, 1)

    def forget_subscriptions(self) -> None:
        """Throw away notices of new subscriptions, which would pile up otherwise.

        Not more than ``NOTICES`` at once: a peer that sends them without end stops nothing.
        """
        with contextlib.suppress(zmq.Again):
            for _ in range(NOTICES):
                self.socket.recv(zmq.NOBLOCK)

    def close(self, linger: float = 0) -> None:
        """Leave; subscribers have ``linger`` seconds to take what waits for them."""
        self.socket.close(round(1000 * linger))


def warm_up() -> None:
    """Compile what receiving and sending need."""
    if compiled():
        nothing = Messages.room(0, 0)
        drain(placed(Source(0, nothing, 1, np.zeros(MESSAGE // 8, np.int64))), 0)
        flush(placed(Sink(0, np.zeros(1, np.int64), np.zeros(2, np.int32))), nothing, 0)


def poll_items(*waited_for: "zmq.Socket[bytes] | int") -> NDArray[np.int64]:
    """Sockets and file descriptors to be read from, as :func:`wait` takes them: zmq_pollitem_t."""
    items = np.zeros(
        len(waited_for),
        [("socket", np.int64), ("fd", np.int32), ("events", np.int16), ("revents", np.int16)],
    )
    items["events"] = int(zmq.POLLIN)
    for item, each in zip(items, waited_for, strict=True):
        if isinstance(each, int):
            item["fd"] = each
        else:
            item["socket"] = each.underlying
    return items.view(np.int64)


def _socket(context: "zmq.Context[zmq.Socket[bytes]]", kind: int) -> "zmq.Socket[bytes]":
    """A socket whose peers have to finish their handshakes, and to be there."""
    socket = context.socket(kind)
    socket.handshake_ivl = round(1000 * HANDSHAKE)
    socket.tcp_keepalive = 1
    socket.tcp_keepalive_idle, socket.tcp_keepalive_intvl, socket.tcp_keepalive_cnt = KEEPALIVE
    return socket


def _open(
    socket: "zmq.Socket[bytes]",
    bind: Iterable[str],
    connect: Iterable[str],
    curve: Curve | None = None,
) -> tuple[str, ...]:
    """Open all endpoints and name them, wildcards resolved."""
    endpoints = []
    try:
        for endpoint in bind:
            if curve:
                curve.before_bind(socket)
            _free(endpoint)
            attempt(socket.bind, endpoint)
            endpoints.append(socket.get_string(zmq.LAST_ENDPOINT))
        for endpoint in connect:
            if curve:
                curve.before_connect(socket, endpoint)
            attempt(socket.connect, endpoint)
            endpoints.append(endpoint)
    except TransportError:
        socket.close(0)
        raise
    return tuple(endpoints)


def _free(endpoint: str) -> None:
    """See to it that nobody listens on an ipc endpoint: libzmq would take it from them.

    Raises:
        TransportError: somebody does.
    """
    transport, _, path = endpoint.partition("://")
    if transport == "ipc" and not path.startswith("@"):
        with unix.socket(unix.AF_UNIX) as asking:
            try:
                asking.connect(path)
            except OSError:
                return
        code = errno.EADDRINUSE
        raise TransportError(f"{endpoint}: {zmq.strerror(code)}; {_MENDS[code]}")


def attempt(open_endpoint: Callable[[str], object], endpoint: str) -> None:
    """Bind or connect a socket.

    Raises:
        TransportError: the endpoint is malformed, in use, or not this machine's.
    """
    try:
        open_endpoint(check(endpoint))
    except ValueError as error:
        raise TransportError(str(error)) from None
    except zmq.ZMQError as error:
        code = error.errno or 0
        mend = _MENDS.get(code, "check the endpoint")
        raise TransportError(f"{endpoint}: {zmq.strerror(code)}; {mend}") from None


# --- compiled -------------------------------------------------------------------------------------

_NOBLOCK, _MORE, _NODROP = int(zmq.NOBLOCK), int(zmq.SNDMORE), int(zmq.XPUB_NODROP)
_AGAIN, _INTERRUPTED = errno.EAGAIN, errno.EINTR

_errno: Any = types.ExternalFunction("zmq_errno", types.int32())
_init: Any = types.ExternalFunction("zmq_msg_init", types.int32(types.intp))
_close: Any = types.ExternalFunction("zmq_msg_close", types.int32(types.intp))
_data: Any = types.ExternalFunction("zmq_msg_data", types.intp(types.intp))
_size: Any = types.ExternalFunction("zmq_msg_size", types.intp(types.intp))
_more: Any = types.ExternalFunction("zmq_msg_more", types.int32(types.intp))
_recv: Any = types.ExternalFunction(
    "zmq_msg_recv", types.int32(types.intp, types.intp, types.int32)
)
_send: Any = types.ExternalFunction(
    "zmq_send", types.int32(types.intp, types.intp, types.intp, types.int32)
)
_poll: Any = types.ExternalFunction("zmq_poll", types.int32(types.intp, types.int32, types.int64))
_set: Any = types.ExternalFunction(
    "zmq_setsockopt", types.int32(types.intp, types.int32, types.intp, types.intp)
)


@njit(cache=True, nogil=True, _nrt=False)
def drain(source: Source, most: int) -> int:
    """As :meth:`Receiver.receive`; an error number below 0 where there is one."""
    messages, longest, part = source.messages, source.longest, source.part.ctypes.data
    data, room = messages.data.ctypes.data, len(messages.data)
    count, frame, at, error = 0, 0, 0, 0
    _init(part)
    while count < most and at + FRAMES * longest <= room:
        if _recv(part, source.socket, _NOBLOCK) < 0:
            error = _errno()
            if error == _INTERRUPTED:
                continue
            break
        kept = 0
        while True:
            if kept < FRAMES:
                size = min(_size(part), longest)
                copy(data + at, _data(part), size)
                at, frame, kept = at + size, frame + 1, kept + 1
                messages.frames[frame] = at
            if not _more(part):
                break
            while _recv(part, source.socket, _NOBLOCK) < 0:  # what follows is there already
                error = _errno()
                if error != _INTERRUPTED:
                    _close(part)
                    return -error
        count += 1
        messages.first[count] = frame
    _close(part)
    return -error if count == 0 and error not in (0, _AGAIN, _INTERRUPTED) else count


@njit(cache=True, nogil=True, _nrt=False)
def flush(sink: Sink, messages: Messages, count: int) -> int:
    """As :meth:`Publisher.send`; 0, or an error number."""
    data, off, on = messages.data.ctypes.data, sink.option.ctypes.data, sink.option.ctypes.data + 4
    for m in range(count):
        last = messages.first[m + 1] - 1
        dropping = False
        for frame in range(messages.first[m], last + 1):
            begin = messages.frames[frame]
            size = messages.frames[frame + 1] - begin
            flags = _NOBLOCK if frame == last else _NOBLOCK | _MORE
            while _send(sink.socket, data + begin, size, flags) < 0:
                error = _errno()
                if error == _AGAIN and not dropping:  # a subscriber is full: the others get it
                    sink.overflows[0] += 1
                    dropping = True
                    _set(sink.socket, _NODROP, off, 4)
                elif error != _INTERRUPTED:
                    return error
        if dropping:
            _set(sink.socket, _NODROP, on, 4)
    return 0


@njit(cache=True, nogil=True, _nrt=False)
def wait(items: NDArray[np.int64], milliseconds: int) -> int:
    """Until one of ``items``, as :func:`poll_items` gives them, is ready; for ever where -1.

    Returns a bit for each that is, 0 where none was in time, or an error number below 0.
    """
    count = len(items) // 2
    if _poll(items.ctypes.data, count, milliseconds) < 0:
        error = _errno()
        return 0 if error == _INTERRUPTED else -error
    ready = 0
    for k in range(count):
        if items[2 * k + 1] >> 48:  # short revents
            ready |= 1 << k
    return ready
