"""The daemon's sockets, and who is at their other ends: who may be, how many, and at what cost.

libzmq limits the length of a frame, and the messages that wait, but neither the parts of a message
before its last one is there, nor a peer's subscriptions, nor connections. So a thread of its own
counts connections as they come, and ends the latest beyond a limit, and all of them where the
process has grown by more than its series account for: with a connection goes what it had held here.
It also ends all where one client may connect no more, since libzmq does not say whose is which.
"""

import contextlib
import ctypes
import logging
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import zmq

from streamlstm.config import Config
from streamlstm.security import Curve, Doors, SecurityError
from streamlstm.transport import Publisher, Receiver, Responder, TransportError

LOOK_EVERY = 0.1
"""Seconds at most from one look at what those who connect take to the next."""
GRACE = 2.0
"""Seconds in which memory has to come back from those who were sent away."""
SAY_EVERY = 10.0
"""Seconds from one line in the log about those who were sent away to the next."""
OTHER_FILES = 512
"""File descriptors for all but connections to input and output."""
FEWEST = 64
"""Without as many there is no start: libzmq ends the process where its threads get none."""

_log = logging.getLogger("streamlstm")


class Ends:
    """All sockets of a daemon.

    Attributes:
        context: of all of them.
        receiver, publisher: they have endpoints once :meth:`open` was called.
        responder: one more, to serve snapshots, if these are asked for.
        doors: knows who is there.
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
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            if asked.clients:
                self._curve.admit(self.context, asked.clients)
        except SecurityError:
            self.context.term()
            raise
        self.publisher = Publisher(self.context, hwm=config.output.hwm, curve=self._curve)
        self.receiver = Receiver(
            self.context,
            kind=config.input.kind,
            topics=config.input.topics,
            hwm=config.input.hwm,
            max_frame=config.input.max_frame,
            most=config.engine.max_batch,
            curve=self._curve,
        )
        sockets = [self.receiver.socket, self.publisher.socket]
        self.responder: Responder | None = None
        if config.snapshot.bind:
            self.responder = Responder(self.context, curve=self._curve)
            sockets.append(self.responder.socket)
        self.doors = Doors(self.context, sockets)
        self._closing = False
        self._may_take: Callable[[], int] = lambda: 0
        self._wakeup, self._end = os.pipe()
        self._watcher = Thread(target=self._watch, name="doors", daemon=True)

    def open(self, may_grow: Callable[[], int]) -> None:
        """Open the endpoints; from now on the process may grow by so many bytes of its own.

        They are asked for by another thread, again and again.

        Raises:
            TransportError: one is malformed, in use, or not this machine's.
        """
        wire_in, wire_out = self._config.input, self._config.output
        before = os.umask(self._umask)
        try:
            self.publisher.open(wire_out.bind, wire_out.connect)
            if self.responder:
                self.responder.open(self._config.snapshot.bind)
            self.receiver.open(wire_in.bind, wire_in.connect)
        finally:
            os.umask(before)
        before_peers = memory_taken() + self._config.security.max_held
        self._may_take = lambda: before_peers + may_grow()
        self._watcher.start()

    def _watch(self) -> None:
        """See who may come, who came, and what they take."""
        doors, most = self.doors, self._config.security.max_connections
        refused = ended = 0
        say = again = 0.0
        limit = 0
        while not self._closing:
            doors.wait(LOOK_EVERY, self._wakeup)
            doors.look(most)
            if self._curve.refresh():
                _log.warning("all connections ended: a client's key was taken away")
                doors.end_all()
            now, taken, may = time.monotonic(), memory_taken(), self._may_take()
            if taken <= may:
                limit = may
            elif taken > limit or now >= again:  # who comes again at once may not go on either
                _log.error(
                    "all connections ended: the process has %d bytes, of %d that it may have;"
                    " where nobody means harm, raise security.max_held",
                    taken,
                    may,
                )
                doors.end_all()
                limit, again = taken, now + GRACE
            if taken > may or now < again:
                give_memory_back()
            if now >= say and (doors.refused, doors.ended) != (refused, ended):
                refused, ended, say = doors.refused, doors.ended, now + SAY_EVERY
                _log.warning("connections refused=%d ended=%d since the start", refused, ended)

    def close(self) -> None:
        """Let go of all."""
        self._closing = True
        os.close(self._end)
        if self._watcher.ident:
            self._watcher.join()
        os.close(self._wakeup)
        self.doors.close()
        self._curve.close()
        self.context.destroy(linger=0)


def allow_files(connections: int) -> None:
    """Have as many files open as these take, and what else there is, where the system lets us.

    Raises:
        TransportError: it lets us have so few that nothing could be served.
    """
    wanted = connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    given = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (given, hard))
    if given < FEWEST:
        raise TransportError(
            f"only {given} files may be open, {FEWEST} have to be; raise the limit (LimitNOFILE= of"
            " systemd, ulimit -n)"
        )
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
