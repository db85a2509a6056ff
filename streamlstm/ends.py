"""The daemon's sockets, and who is at their other ends: who may be, how many, and at what cost.

libzmq limits the length of a frame, and the messages that wait, but neither the parts of a message
before its last one is there, nor a peer's subscriptions, nor connections; and it ends none of them.
So connections are counted as they come, and the latest ended beyond a limit; and where the process
grows by more than its series account for, all sockets are closed and opened anew.
"""

import contextlib
import ctypes
import logging
import os
import resource
import time
from pathlib import Path

import zmq

from streamlstm.config import Config
from streamlstm.security import Curve, Doors, SecurityError
from streamlstm.transport import Publisher, Receiver

LOOK_EVERY = 0.1
"""Seconds at least between two looks at what those who connect take."""
OTHER_FILES = 512
"""File descriptors for all but connections to input and output."""

_log = logging.getLogger("streamlstm")


class Ends:
    """All sockets of a daemon.

    Attributes:
        context: of all of them, until :meth:`look` says True.
        receiver, publisher: likewise; they have endpoints once :meth:`open` was called.
    """

    def __init__(self, config: Config, umask: int = 0o077) -> None:
        """Read the keys, and make the sockets.

        Args:
            config: the daemon's.
            umask: for ipc sockets: who may use them is for the operator to say.

        Raises:
            SecurityError: a key cannot be used.
        """
        asked = config.security
        self._config, self._umask = config, umask
        self._curve = Curve(keys=asked.secret_key, servers=asked.server_keys)
        self._bound: tuple[tuple[str, ...], tuple[str, ...]] = (), ()
        self._next_look, self._most, self._may_grow = 0.0, 0, 0
        self._refused = self._ended = 0
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            if asked.clients:
                self._curve.admit(self.context, asked.clients)
        except SecurityError:
            self.context.term()
            raise
        self._make()

    def _make(self) -> None:
        config, curve = self._config, self._curve
        self.publisher = Publisher(self.context, hwm=config.output.hwm, curve=curve)
        self.receiver = Receiver(
            self.context,
            kind=config.input.kind,
            topics=config.input.topics,
            hwm=config.input.hwm,
            max_frame=config.input.max_frame,
            most=config.engine.max_batch,
            curve=curve,
        )
        sockets = self.receiver.socket, self.publisher.socket
        self._doors = Doors(self.context, sockets, config.security.max_connections)

    def open(self, may_grow: int) -> None:
        """Open the endpoints, from when on the process may grow by so many bytes of its own.

        Raises:
            TransportError: one is malformed, in use, or not this machine's.
        """
        self._may_grow = may_grow
        self._open()
        self._plan()

    def _open(self) -> None:
        wire_in, wire_out = self._config.input, self._config.output
        before = os.umask(self._umask)
        try:  # opened anew, at the ports that were found then
            self.publisher.open(self._bound[1] or wire_out.bind, wire_out.connect)
            self.receiver.open(self._bound[0] or wire_in.bind, wire_in.connect)
        finally:
            os.umask(before)
        self._bound = (
            self.receiver.endpoints[: len(wire_in.bind)],
            self.publisher.endpoints[: len(wire_out.bind)],
        )

    def _plan(self) -> None:
        """Allow for what peers may take, on top of what is taken now and what series may take."""
        self._most = memory_taken() + self._config.security.max_held + self._may_grow

    @property
    def told(self) -> "list[zmq.Socket[bytes]]":
        """Of these there is something to read where :meth:`look` has something to see."""
        return self._doors.told

    @property
    def refused(self) -> int:
        """Connections that ended with the handshake."""
        return self._refused + self._doors.refused

    @property
    def ended(self) -> int:
        """Connections ended because there were too many, or because peers took too much."""
        return self._ended + self._doors.turned_away

    def look(self) -> bool:
        """See who came and what they take; True where all sockets had to be made anew.

        Raises:
            TransportError: somebody else has taken a port then.
        """
        self._doors.look()
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + LOOK_EVERY
        self._curve.refresh()
        if memory_taken() <= self._most:
            return False
        self._refused, self._ended = self.refused, self.ended + self._doors.inside
        self.close()  # waits until all is gone, ports included
        self.context = zmq.Context()
        self._curve.move(self.context)
        self._make()
        self._open()
        give_memory_back()
        self._plan()
        return True

    def close(self) -> None:
        """Let go of all, and of what it holds."""
        self._curve.close()
        self.context.destroy(linger=0)


def allow_files(connections: int) -> None:
    """Have as many files open as these take, and what else there is, where the system lets us."""
    wanted = connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    given = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (given, hard))
    if given < wanted:
        _log.warning(
            "only %d files may be open, %d might be; lower security.max_connections, or raise the"
            " limit (LimitNOFILE= of systemd, ulimit -n)",
            given,
            wanted,
        )


def memory_taken() -> int:
    """Bytes that this process has in memory; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def give_memory_back() -> None:
    """Have the C library give to the system what it keeps for later (malloc_trim(3)), if it can."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
