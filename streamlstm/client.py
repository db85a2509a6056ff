"""The other ends of the daemon's sockets: a feed of ticks, and a listener to predictions."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import zmq
from numpy.typing import NDArray

from streamlstm.datasets.frames import SeriesData
from streamlstm.security import Curve, SecurityError
from streamlstm.transport import WELCOME, TransportError, attempt
from streamlstm.wire.format import BATCH, JOINED, REFUSED, SNAPSHOT, TOPIC, Format, WireError
from streamlstm.wire.peer import Glance, Prediction, decode_predictions, encode_tick, glance

LINGER = 30.0
"""Seconds in which what was sent may still go out."""
_JOIN = 1.0
"""Seconds for the output to say that it knows of a subscription."""
_LOOK_UP = 200
"""Milliseconds after which a feed that waits looks whether the daemon is still there."""

AT_ONCE = 4096
"""Predictions taken at once at most: some 20 ms of work."""
MOST_FOLLOWED = 1_000_000
"""Series whose numbers are followed; of more, those silent for longest are forgotten."""


class Feed:
    """Publishes ticks to a daemon; waits rather than drop when the daemon does not keep up."""

    def __init__(
        self,
        endpoint: str,
        format: Format,
        *,
        bind: bool = False,
        key: Path | None = None,
        server_key: Path | None = None,
    ) -> None:
        """Open the socket, with key files where the daemon asks for them.

        Raises:
            TransportError: the endpoint is malformed or in use.
            SecurityError: a key file cannot be used.
        """
        self.format, self.endpoint = format, endpoint
        curve = _curve(endpoint, key, server_key, bind)
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.XPUB)
        self.socket.setsockopt(zmq.XPUB_NODROP, 1)
        self.socket.sndtimeo = _LOOK_UP
        self._name, self._seq = secrets.token_hex(4), 0
        self._events = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        try:
            if bind:
                curve.before_bind(self.socket)
                attempt(self.socket.bind, endpoint)
            else:
                curve.before_connect(self.socket, endpoint)
                attempt(self.socket.connect, endpoint)
        except TransportError:
            self.close(0)
            raise

    def wait(self, seconds: float) -> None:
        """Wait until a daemon subscribes: what is sent before goes nowhere.

        Raises:
            TransportError: none did in time.
        """
        if not self.socket.poll(round(1000 * seconds)):
            raise TransportError(
                f"{self.endpoint}: no daemon subscribed within {seconds:g} s; is 'streamlstm run'"
                " up, does its input listen there, and do the keys fit, if it asks for any?"
            )

    def send(
        self,
        series: str,
        ts_ns: int,
        values: Sequence[float],
        *,
        warm: bool = False,
        reset: bool = False,
        end: bool = False,
    ) -> None:
        """Publish one tick; the daemon counts those that do not reach it.

        Raises:
            TransportError: the daemon went away, seen while waiting for it to take more.
        """
        message = encode_tick(
            self.format,
            series,
            ts_ns,
            values,
            warm=warm,
            reset=reset,
            end=end,
            seq=self._seq,
            publisher=self._name,
        )
        self._seq += 1
        while True:
            try:
                self.socket.send_multipart(message)
                return
            except zmq.Again:
                self.check()

    def check(self, seconds: float = 0) -> None:
        """Wait so long, and see whether the daemon is still there.

        Raises:
            TransportError: it went away; what was sent may not have reached it.
        """
        if self._events.poll(round(1000 * seconds)):
            raise TransportError(f"{self.endpoint}: the daemon went away; see why it ended")

    def close(self, linger: float = LINGER) -> None:
        """Leave, after what was sent has gone out, or after ``linger`` seconds."""
        self._context.destroy(round(1000 * linger))


class Listener:
    """Subscribes to the predictions of all series whose name begins with ``prefix``."""

    def __init__(
        self,
        endpoint: str,
        format: Format,
        prefix: str = "",
        *,
        key: Path | None = None,
        server_key: Path | None = None,
        most_waiting: int = 0,
    ) -> None:
        """Open the socket, with key files where the daemon asks for them; of it nothing is known.

        What waits here to be taken is ``most_waiting`` messages at most (0: any number); the daemon
        drops what comes on top of that.

        Raises:
            TransportError: the endpoint is malformed.
            SecurityError: a key file cannot be used.
        """
        self.format, self.endpoint, self.prefix = format, endpoint, prefix
        curve = _curve(endpoint, key, server_key)
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.SUB)
        self.socket.rcvhwm = most_waiting
        self._known: dict[str, int] = {}
        self._boot = -1
        self.socket.subscribe(WELCOME)
        self.socket.subscribe(BATCH if format == "arrow" else TOPIC + prefix.encode())
        try:
            curve.before_connect(self.socket, endpoint)
            attempt(self.socket.connect, endpoint)
        except TransportError:
            self.close()
            raise

    def wait(self, seconds: float) -> None:
        """Wait for the daemon's welcome: what a feed sends that connects after it is answered here.

        It comes with the connection. The subscription was sent before it arrived, but a feed that
        was connected before that may be read first.

        Raises:
            TransportError: none came in time.
        """
        if not self.socket.poll(round(1000 * seconds)):
            raise TransportError(
                f"{self.endpoint}: no daemon answered within {seconds:g} s; is 'streamlstm run' up,"
                " is this its output, and do the keys fit, if it asks for any?"
            )
        self.socket.recv_multipart()

    def receive(self, seconds: float) -> Iterator[Prediction]:
        """Those that wait; for ``seconds`` at most until the first."""
        while glances := self.take(seconds):
            for each in glances:
                yield each.whole()
            seconds = 0

    def take(self, seconds: float, most: int = AT_ONCE) -> list[Glance]:
        """Look at those that wait, some ``most`` of them; for ``seconds`` until the first.

        Raises:
            WireError: there is something that is none, or of another format.
        """
        found: list[Glance] = []
        until = time.monotonic() + seconds
        while len(found) < most:
            try:
                message = self._next()
            except zmq.Again:
                left = until - time.monotonic()
                if found or left <= 0:
                    break
                self.socket.poll(max(1, round(1000 * left)))
                continue
            if message:
                found += glance(self.format, message)
        if self._known or self.format == "arrow":
            return [each for each in found if self._is_new(each)]
        return found

    def _next(self) -> list[bytes]:
        """The next message; none of the daemon's that are not predictions.

        Whether more frames follow is seen in the first one: asking the socket takes longer than all
        else here.

        Raises:
            zmq.Again: there is none.
        """
        first = self.socket.recv(zmq.NOBLOCK)
        if first == WELCOME or first.startswith(JOINED):
            return []
        if (self.format == "binary") != (b"\0" in first):
            raise WireError(
                f"{self.endpoint}: not predictions in {self.format}; give the daemon's"
                " output.format by --format"
            )
        return [first] if self.format == "binary" else [first, self.socket.recv(zmq.NOBLOCK)]

    def catch_up(self, endpoint: str, seconds: float) -> list[Prediction]:
        """The latest prediction of each series, from the daemon's snapshot service.

        What :meth:`receive` gives from now on follows on these: none is missing, none comes twice.

        Raises:
            TransportError: the endpoint is malformed, or no snapshot came within ``seconds``.
        """
        until = time.monotonic() + seconds
        with self._context.socket(zmq.DEALER) as asking:
            asking.linger = 0
            attempt(asking.connect, endpoint)
            while True:
                token = secrets.token_hex(8).encode()
                self.socket.subscribe(JOINED + token)
                asking.send_multipart([self.prefix.encode(), token])
                found = self._snapshot(asking, endpoint, until)
                if self._joined(JOINED + token):
                    break
        self._known = {each.series: each.seq for each in found}
        self._boot = found[0].boot if found else -1
        return found

    def _snapshot(
        self, asking: "zmq.Socket[bytes]", endpoint: str, until: float
    ) -> list[Prediction]:
        found: list[Prediction] = []
        while asking.poll(max(0, round(1000 * (until - time.monotonic())))):
            message = asking.recv_multipart()
            if message[0] == REFUSED:
                raise TransportError(f"{endpoint}: no snapshot: {message[-1].decode()}")
            if message[0] == SNAPSHOT:
                return found
            found += decode_predictions(self.format, message)
        raise TransportError(
            f"{endpoint}: no snapshot in time; is that the daemon's snapshot.bind?"
        )

    def _joined(self, topic: bytes) -> bool:
        """Whether all is subscribed since before the snapshot; what came before is forgotten."""
        until = time.monotonic() + _JOIN
        while self.socket.poll(max(0, round(1000 * (until - time.monotonic())))):
            if self.socket.recv_multipart()[0] == topic:
                self.socket.unsubscribe(topic)
                return True
        return False

    def _is_new(self, prediction: Glance) -> bool:
        """Whether it is asked for, and later than the snapshot."""
        if not prediction.series.startswith(self.prefix):  # a batch has all
            return False
        if prediction.boot == self._boot:
            if prediction.seq <= self._known.get(prediction.series, 0):
                return False
            self._known.pop(prediction.series, None)  # so that a series may begin anew
        return True

    def close(self) -> None:
        """Leave."""
        self._context.destroy(0)


def _curve(endpoint: str, key: Path | None, server_key: Path | None, bind: bool = False) -> Curve:
    if key and not server_key and not bind:
        raise SecurityError(f"{key}: opens nothing alone; name the daemon's key too (--server-key)")
    return Curve(keys=key, servers={endpoint: server_key} if server_key else {})


class Continuity:
    """Notices what a subscriber missed: each series' predictions are numbered.

    Attributes:
        gaps: times that numbers were left out.
        missed: those left out, or more.
        restarts: times that the daemon was started anew.
    """

    def __init__(self) -> None:
        self.gaps = self.missed = self.restarts = 0
        self._boot = -1
        self._seq: OrderedDict[str, int] = OrderedDict()  # those heard of lately last

    @property
    def series(self) -> int:
        """How many were heard of since the daemon started."""
        return len(self._seq)

    def broken(self, prediction: Prediction | Glance) -> str:
        """What lies between this prediction and the one before it, in words; "" if nothing."""
        series, boot, seq = prediction.series, prediction.boot, prediction.seq
        if boot != self._boot:
            before, self._boot = self._boot, boot
            self._seq.clear()
            self._seq[series] = seq
            if before < 0:
                return ""
            self.restarts += 1
            return f"the daemon was started anew: boot {before}, now {boot}"
        last = self._seq.get(series)
        self._seq[series] = seq
        if last is None:
            if len(self._seq) > MOST_FOLLOWED:
                self._seq.popitem(last=False)
            return ""
        self._seq.move_to_end(series)
        if seq == last + 1:
            return ""
        self.gaps += 1
        self.missed += max(1, seq - last - 1)
        return f"{series}: seq {last} is followed by {seq}, predictions were missed"


class Pace:
    """Holds a replay to ``speed`` times the pace of its timestamps; 0: as fast as can be."""

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self._began, self._first = 0.0, 0

    def until(self, ts_ns: int) -> float:
        """Seconds still to wait before the tick of ``ts_ns`` is due."""
        if not self.speed:
            return 0.0
        now = time.monotonic()
        if not self._began:
            self._began, self._first = now, ts_ns
        return max(0.0, self._began + (ts_ns - self._first) / 1e9 / self.speed - now)


def in_time_order(series: Sequence[SeriesData]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which series, and which of its rows, comes when all are played at once; (ticks,) both."""
    which = np.repeat(np.arange(len(series)), [len(s.ts) for s in series])
    row = np.concatenate([np.arange(len(s.ts)) for s in series])
    order = np.argsort(np.concatenate([s.ts for s in series]), kind="stable")
    return which[order], row[order]
